"""`dvk remote add|list|remove|rename`: where data goes. Nothing is contacted.

The URL goes into `dvk.toml`, so that whoever clones the repository has it; how to reach it (endpoint, region, profile)
goes into the clone's own file, since it is this machine's business and must not come from a stranger.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from dvk.backend.locate import parse_remote_url
from dvk.backend.text import redact
from dvk.commands.init import stage_files
from dvk.commands.remote_place import check_place
from dvk.commands.repo import Repo
from dvk.commands.trust import trust_typed
from dvk.errors import NotFound, Refused, UsageError
from dvk.workspace.config import FILE_NAME, Config, Layer
from dvk.workspace.config_edit import remove_remote, rename_remote, set_value, unset
from dvk.workspace.keys import FILE_SCOPES, Scope, Setting, check_remote_name, find_key, split_remote_key


class RemoteInfo(Struct, frozen=True):
    """A remote as it is configured."""

    name: str
    url: str
    default: bool  #: used when none is named
    scope: Scope  #: where the URL comes from: repo, user, local
    place: str  #: the file
    settings: Mapping[str, Setting]  #: how to reach it: endpoint_url, region, ...


class RemoteChanged(Struct, frozen=True):
    """A remote that was added, removed or renamed."""

    name: str
    url: str
    default: bool  #: whether it is (or was) the one used when none is named
    places: tuple[str, ...]  #: the files that were written
    staged: bool  #: dvk.toml was put into the Git index
    default_now: str = ""  #: the remote that is used when none is named, from now on; empty: none
    old_name: str = ""  #: before a rename
    not_trusted: str = ""  #: why the URL could not be remembered as trusted; empty: it was, or needs no trust


def remote_list(repo: Repo) -> list[RemoteInfo]:
    """The remotes by name."""
    config = _config(repo)
    chosen = config.default_remote()
    options: dict[str, dict[str, Setting]] = {}
    for key, value in config.items():
        name, option = split_remote_key(key)
        if name and option != "url":
            options.setdefault(name, {})[option] = value.value
    return [
        RemoteInfo(name, r.url, name == chosen, r.origin.scope, r.origin.place, options.get(name, {}))
        for name, r in config.remotes().items()
    ]


def remote_add(
    repo: Repo,
    name: str,
    url: str,
    *,
    default: bool = False,
    scope: Scope = "repo",
    settings: Mapping[str, str] | None = None,
) -> RemoteChanged:
    """Make a remote known by a name. The first one becomes the default.

    Args:
        url: `s3://BUCKET/PREFIX` and its kin, or a path; one that is not absolute is counted from the working folder.
        default: use it from now on when none is named.
        scope: where the URL is written; `settings` never go into a tracked file.

    Raises:
        UsageError: a name, URL or setting that makes no sense. Refused: there is a remote of that name, or the URL is
        a folder that belongs to what is tracked here.
    """
    ws = repo.workspace
    check_remote_name(name)
    known = _config(repo).remotes()
    if name in known:
        raise Refused(
            f"a remote of that name exists: {known[name].url}",
            subject=name,
            hint=f"`dvk config remote.{name}.url URL` changes where it leads, `dvk remote remove {name}` forgets it",
        )
    settings = dict(settings or {})
    url = absolute_url(url, cwd=repo.cwd)
    if settings and parse_remote_url(url).is_local:
        raise UsageError(f"{_option(next(iter(settings)))} is for a remote behind a network", subject=url)
    own: Scope = "local" if scope == "repo" else scope
    values: list[tuple[Scope, str, str]] = [(scope, f"remote.{name}.url", url)]
    values += [(own, f"remote.{name}.{option}", text) for option, text in settings.items()]
    for _, key, text in values:
        find_key(key).parse(text)
    check_place(ws, url)
    if default or not known:
        values.append((scope, "core.remote", name))
    files = ws.config.files
    with ws.lock():
        for where, key, text in values:
            set_value(files, where, key, text)
    done = _changed(repo, name, url, [where for where, _, _ in values])
    return replace(done, not_trusted=trust_typed(files, repo.environ, name))


def remote_remove(repo: Repo, name: str) -> RemoteChanged:
    """Forget a remote. What it holds stays there.

    Raises:
        NotFound: there is none of that name. Refused: it comes from the user's own file, for all repositories.
    """
    found = _known(repo, name)
    was_default = _config(repo).default_remote() == name
    files = repo.workspace.config.files
    touched: list[Scope] = []
    with repo.workspace.lock():
        for scope in _scopes_of(repo, name):
            if remove_remote(files, scope, name):
                touched.append(scope)
            if _says_default(repo, scope, name):
                unset(files, scope, "core.remote")
                touched.append(scope)
    return _changed(repo, name, found, touched, was_default=was_default)


def remote_rename(repo: Repo, old: str, new: str) -> RemoteChanged:
    """Give a remote another name, in every file of this repository that knows it.

    Raises:
        NotFound: there is none called `old`. Refused: there is one called `new`, or it is a remote of all repositories.
    """
    url = _known(repo, old)
    check_remote_name(new)
    if new in _config(repo).remotes():
        raise Refused("a remote of that name exists", subject=new, hint="`dvk remote list` shows them")
    files = repo.workspace.config.files
    with repo.workspace.lock():
        touched = [scope for scope in _scopes_of(repo, old) if rename_remote(files, scope, old, new)]
    return _changed(repo, new, url, touched, old_name=old)


def absolute_url(url: str, *, cwd: bytes) -> str:
    """A URL as it is stored: paths absolute, names of schemes and slashes in their one form.

    Raises:
        UsageError: it is neither a URL that dvk knows nor a path.
    """
    if url and not url.startswith(("-", "/")) and "://" not in url and not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):
        path = os.path.abspath(os.path.join(os.fsdecode(cwd), url))
        if re.match(r"(s3|gs|gcs|az|abfss?|ssh|sftp|https?|file)/", url) and not os.path.isdir(path):
            raise UsageError(
                "this looks like a URL without its colon",
                subject=redact(url),
                hint=f"like {url.partition('/')[0]}://PLACE/PREFIX; a folder of that name: ./{redact(url)}",
            )
        url = path
    found = parse_remote_url(url)
    return found.path if found.is_local else str(found)


def _config(repo: Repo) -> Config:
    """The settings as they are now; `repo` may be older than the last change."""
    return Config.load(repo.workspace.config.files, repo.environ)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _known(repo: Repo, name: str) -> str:
    remotes = _config(repo).remotes()
    if name not in remotes:
        known = ", ".join(sorted(remotes)) or "none"
        raise NotFound("no remote has this name", subject=name, hint=f"known remotes: {known}")
    return remotes[name].url


def _scopes_of(repo: Repo, name: str) -> Sequence[Scope]:
    """The files of this repository that speak of a remote.

    Raises:
        Refused: only the user's own file does, which all repositories share.
    """
    files = repo.workspace.config.files
    found: list[Scope] = []
    for scope in FILE_SCOPES:
        values = Layer.read(files.path(scope), scope).values
        if any(split_remote_key(k)[0] == name for k in values) or _says_default(repo, scope, name):
            found.append(scope)
    if "user" in found and f"remote.{name}.url" in Layer.read(files.user, "user").values:
        raise Refused(
            "is a remote of all your repositories",
            subject=name,
            hint=f"`dvk config --global --unset remote.{name}.url` forgets it everywhere",
        )
    return [scope for scope in found if scope != "user"]


def _says_default(repo: Repo, scope: Scope, name: str) -> bool:
    value = Layer.read(repo.workspace.config.files.path(scope), scope).values.get("core.remote")
    return value is not None and value.value == name


def _changed(
    repo: Repo, name: str, url: str, touched: Sequence[Scope], *, was_default: bool = False, old_name: str = ""
) -> RemoteChanged:
    files = repo.workspace.config.files
    config = _config(repo)
    places = {s: "dvk.toml" if s == "repo" else os.fsdecode(files.path(s)) for s in touched}
    staged = "repo" in places and bool(stage_files(repo, [FILE_NAME])[0])
    chosen = config.default_remote() or ""
    return RemoteChanged(name, url, was_default or chosen == name, tuple(places.values()), staged, chosen, old_name)
