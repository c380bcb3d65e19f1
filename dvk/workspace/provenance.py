"""Where imported data came from, as the `source` lines of a pointer keep it.

    source commit 3f2a...            source etag 5f0c9a...
    source path models/best.pt       source size 4551
    source repo git@host:acme/reg    source url s3://public-data/iris.csv
    source rev v1.0

Either a path of another repository at a commit, or an object at a URL with what the server said of it. The lines are
specified in `docs/format/pointer.md`; they came with the repository, so `update` asks for trust before it follows one.
"""

from __future__ import annotations

import re

from msgspec import Struct

from dvk.backend.origin import Mark
from dvk.errors import FormatError, Refused
from dvk.store.names import show
from dvk.store.paths import why_bad
from dvk.workspace.pointer import Pointer

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")

Lines = tuple[tuple[str, str], ...]


class FromRepo(Struct, frozen=True):
    """A tracked path, or a part of one, of another repository."""

    repo: str
    path: bytes
    commit: str
    rev: str = ""  #: what to follow; empty: the default branch

    @property
    def lines(self) -> Lines:
        """The lines of a pointer."""
        try:
            path = self.path.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("its name there is not UTF-8, which a pointer cannot say", subject=show(self.path)) from error
        rows = (("commit", self.commit), ("path", path), ("repo", self.repo), ("rev", self.rev))
        return tuple((name, value) for name, value in rows if value)

    def __str__(self) -> str:
        return f"{self.repo} {self.rev or 'HEAD'}:{show(self.path)}"


class FromUrl(Struct, frozen=True):
    """An object, or a folder of them, at a URL."""

    url: str
    mark: Mark

    @property
    def lines(self) -> Lines:
        """The lines of a pointer."""
        m = self.mark
        size = "" if m.size is None else str(m.size)
        rows = (("etag", m.etag), ("modified", m.modified), ("size", size), ("url", self.url), ("version", m.version))
        return tuple((name, value) for name, value in rows if value)

    def __str__(self) -> str:
        return self.url


def provenance_of(pointer: Pointer, *, subject: str) -> FromRepo | FromUrl | None:
    """Where the data of a pointer was imported from; None for data of our own.

    Raises:
        FormatError: the lines contradict each other or say what cannot be.
    """
    found = dict(pointer.source)
    if "repo" in found and "url" in found:
        raise _wrong("both a repository and a URL", subject)
    if "url" in found:
        size = found.get("size")
        if size is not None and not _NUMBER.fullmatch(size):
            raise _wrong("a size that is no number", subject)
        mark = Mark(
            None if size is None else int(size),
            found.get("etag", ""),
            found.get("version", ""),
            found.get("modified", ""),
        )
        return FromUrl(found["url"], mark)
    if "repo" not in found:
        return None
    path = found.get("path", "").encode()
    if not _COMMIT.fullmatch(found.get("commit", "")):
        raise _wrong("no whole commit id", subject)
    if why_bad(path):
        raise _wrong(f"a path that cannot be ({why_bad(path)})", subject)
    return FromRepo(found["repo"], path, found["commit"], found.get("rev", ""))


def _wrong(what: str, subject: str) -> FormatError:
    return FormatError(
        f"says where it was imported from in a way that makes no sense: {what}",
        subject=subject,
        hint="take the pointer as it was committed, or import the data again",
    )
