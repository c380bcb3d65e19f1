"""Which remotes this user trusts. A URL in `dvk.toml` was chosen by whoever wrote that file, maybe a stranger.

Problem: a cloned repository could make `dvk push` send data to its author, or make `dvk pull` knock at a service inside
the user's own network or read a folder of this machine.

    why = why_ask(parse_remote_url("s3://acme/churn"), Origin("repo", "dvk.toml"), write=True)
    if why and not is_trusted(url, environ): ...            # refuse, before anything is contacted

Choice: writing to a URL of a tracked file needs trust, and so does reading where the file chose the server itself
(https, ssh) or a folder here. Buckets are read without: the server behind `s3://`, `gs://` and `az://` comes from the
user's own settings, and every byte is checked against its hash. Trust belongs to a user and a URL, not to a repository
or a remote's name, so that a changed URL is a new question. It is kept in the user's configuration folder, and
`DVK_TRUST_REMOTES` holds URLs for jobs that have no such folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from dvk.backend.disk import OPEN_DIR, locked_folder, make_durable_dirs, translate
from dvk.backend.locate import RemoteUrl, parse_remote_url
from dvk.errors import FormatError, UsageError
from dvk.store.names import show
from dvk.workspace.config import Origin, user_config_dir
from dvk.workspace.durable import read_small, replace_file
from dvk.workspace.git_mirror import parse_git_url

FILE_NAME = b"trusted-remotes"
VARIABLE = "DVK_TRUST_REMOTES"
MAX_BYTES = 1 << 20
_HEADER = "dvk trusted remotes 1"
_CHOOSE_SERVER = ("http", "https", "ssh", "hdfs")


def why_ask(url: RemoteUrl, origin: Origin, *, write: bool) -> str:
    """Why this use of a remote needs the user's trust, for people; empty when it needs none."""
    if origin.scope != "repo":
        return ""
    if write:
        return "data would be sent to a place that this user has not trusted yet"
    if url.is_local:
        return "a folder of this machine would be read that this user has not trusted yet"
    if url.scheme in _CHOOSE_SERVER:
        return "a server would be contacted that this user has not trusted yet"
    return ""


def is_trusted(url: RemoteUrl, environ: Mapping[str, str]) -> bool:
    """Whether the user trusts a URL, by their list or by `DVK_TRUST_REMOTES`.

    Raises:
        UsageError: the variable holds something that is no URL of a remote.
        FormatError, StorageError: the list cannot be read.
    """
    return any(_covers(prefix, url) for prefix in _prefixes(environ)) or str(url) in trusted_urls(environ)


def trusted_urls(environ: Mapping[str, str]) -> list[str]:
    """The URLs that the user has trusted, in order; without those of the variable. Raises as `is_trusted`."""
    path = trust_file(environ)
    # Like the other files of settings it may be a link into a folder of dotfiles.
    data = read_small(None, path, max_bytes=MAX_BYTES, subject=show(path), follow=True)
    return [] if data is None else _parse(data, show(path))


def add_trust(url: RemoteUrl, environ: Mapping[str, str]) -> bool:
    """Remember that the user trusts a URL; False when that was known.

    Raises:
        StorageError: the folder of the user's settings cannot be written. FormatError: the list cannot be read.
    """
    with _change(environ) as urls:
        new = str(url) not in urls
        urls.add(str(url))
    return new


def remove_trust(url: RemoteUrl, environ: Mapping[str, str]) -> bool:
    """Forget that the user trusts a URL; False when it was not on the list. Raises as `add_trust`."""
    with _change(environ) as urls:
        known = str(url) in urls
        urls.discard(str(url))
    return known


def trust_file(environ: Mapping[str, str]) -> bytes:
    """Where the list of this user is."""
    return os.path.join(user_config_dir(environ), FILE_NAME)


def parse_place(text: str) -> RemoteUrl:
    """What trust is given to: the URL of a remote, of something to import, or of a Git repository.

    Raises:
        UsageError: it is none of these.
    """
    try:
        return parse_remote_url(text)
    except UsageError as error:
        try:
            return parse_git_url(text).place
        except UsageError:
            raise error from None


def _prefixes(environ: Mapping[str, str]) -> list[RemoteUrl]:
    found = []
    for text in environ.get(VARIABLE, "").split():
        try:
            found.append(parse_place(text))
        except UsageError as e:
            raise UsageError(
                f"{e.message} ({e.subject})", subject=VARIABLE, hint="URLs of remotes, with spaces between them"
            ) from e
    return found


def _covers(prefix: RemoteUrl, url: RemoteUrl) -> bool:
    """Whether `url` is `prefix` or lies below it, by whole components: s3://a/b does not cover s3://a/bc."""
    same_place = (prefix.scheme, prefix.authority) == (url.scheme, url.authority)
    return same_place and (not prefix.path or f"{url.path}/".startswith(f"{prefix.path}/"))


@contextmanager
def _change(environ: Mapping[str, str]) -> Iterator[set[str]]:
    """The set of trusted URLs, written back durably when the body has changed it."""
    path = os.path.realpath(trust_file(environ))
    folder, name = os.path.split(path)
    with translate(show(folder)):
        make_durable_dirs(os.fsdecode(folder))
        fd = os.open(folder, OPEN_DIR)
    try:
        with locked_folder(fd):
            before = set(trusted_urls(environ))
            urls = set(before)
            yield urls
            if urls != before:
                text = "".join(f"{line}\n" for line in (_HEADER, *sorted(urls)))
                replace_file(fd, name, text.encode("utf-8"), subject=show(path), mode=0o600)
    finally:
        os.close(fd)


def _parse(data: bytes, subject: str) -> list[str]:
    hint = "remove the file, then `dvk remote trust` each remote again"
    try:
        header, *urls = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise FormatError("is not UTF-8 text", subject=subject, hint=hint) from e
    if header != _HEADER or urls[-1:] != [""]:
        raise FormatError("is not a list of trusted remotes of this dvk", subject=subject, hint=hint)
    return urls[:-1]
