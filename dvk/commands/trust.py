"""`dvk remote trust`: say that the place which a repository names may be used. Nothing is contacted.

A URL in `dvk.toml` came with the repository; `dvk.workspace.trust` says which uses of it need this word first. A URL
that the user typed on this machine (`dvk remote add`, `dvk config`) has it already.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from dvk.backend.locate import parse_remote_url
from dvk.commands.repo import Repo
from dvk.errors import FormatError, StorageError
from dvk.store.names import show
from dvk.workspace.config import Config, ConfigFiles
from dvk.workspace.trust import add_trust, parse_place, remove_trust, trust_file, trusted_urls


class Trust(Struct, frozen=True):
    """What became of the trust in a remote."""

    name: str  #: empty when it was given by its URL
    url: str  #: what is trusted: this URL, in every repository of this user
    trusted: bool
    changed: bool  #: False when it was so already
    needed: bool  #: whether the URL comes from a tracked file; the user's own settings need no trust
    place: str  #: the list that was written
    forgot_store: str = ""  #: the id of the store that this clone expected there; any other is taken now


class Trusted(Struct, frozen=True):
    """The URLs that this user trusts."""

    urls: tuple[str, ...]
    place: str


def trust(repo: Repo, name: str | None = None, *, revoke: bool = False) -> Trust:
    """Trust the URL of a remote (the default one without a name) and the store that is there now, or stop to.

    Instead of the name of a remote it may be the URL of one that another repository names, of a Git repository, or of
    a file that was imported.

    Raises:
        NotFound: there is no such remote. UsageError: its URL makes no sense.
        StorageError: the user's settings cannot be written.
    """
    if name is not None and (":" in name or "/" in name):  # which no name of a remote has
        url = parse_place(name)
        changed = remove_trust(url, repo.environ) if revoke else add_trust(url, repo.environ)
        return Trust("", str(url), not revoke, changed, True, show(trust_file(repo.environ)))
    config = repo.remote_config(name)
    url = parse_remote_url(config.url)
    changed = remove_trust(url, repo.environ) if revoke else add_trust(url, repo.environ)
    from_others = config.origin.scope == "repo"
    forgot = "" if revoke else repo.forget_store(config.url)
    return Trust(config.name, str(url), not revoke, changed, from_others, show(trust_file(repo.environ)), forgot)


def trust_list(environ: Mapping[str, str]) -> Trusted:
    """What this user trusts, for all repositories."""
    return Trusted(tuple(trusted_urls(environ)), show(trust_file(environ)))


def trust_typed(files: ConfigFiles, environ: Mapping[str, str], name: str) -> str:
    """Remember that the user typed the URL of a remote themself; why that was not possible, or nothing.

    A machine on which the user's settings cannot be written is no reason to refuse the setting itself.
    """
    config = Config.load(files, environ).remotes().get(name)
    if config is None or config.origin.scope != "repo":
        return ""
    try:
        add_trust(parse_remote_url(config.url), environ)
    except (StorageError, FormatError) as error:
        return f"cannot be remembered as trusted, so the first use will ask ({error})"
    return ""
