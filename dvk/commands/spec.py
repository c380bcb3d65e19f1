"""`[REV:]PATH`, the one way to name a version of data, and what it means.

    HEAD~1:data/train.csv     as committed; from the top of the work tree
    v1.0:./train.csv          as committed; from the folder where the command runs
    :data/train.csv           as staged
    data/train.csv            as the pointer in the work tree says; from the folder where the command runs

The grammar is Git's, since everybody knows it: the first colon outside of braces ends the revision. A path with a
colon is written `./a:b`. What is named may be a tracked path, a part of a tracked folder, or a folder above tracked
paths.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from dvk.commands.repo import Repo
from dvk.errors import DvkError, NotFound, Refused, UsageError
from dvk.store.names import show
from dvk.store.paths import why_bad
from dvk.workspace.git import CommitId
from dvk.workspace.pointer import (
    MAX_BYTES,
    MAX_NAME_BYTES,
    SUFFIX,
    Pointer,
    data_name,
    is_pointer_name,
    parse,
    pointer_name,
)

_MAX_NAMES = 5000  # of tracked paths that a wrong one is compared with


class Spec(Struct, frozen=True):
    """What a person wrote, in its two parts."""

    text: str
    rev: str | None  #: None: the work tree; empty: the Git index
    path: bytes  #: as written, trailing slashes included


class Target(Struct, frozen=True):
    """A version of something tracked: a tracked path as a whole, or what lies at `inner` in a tracked folder."""

    path: bytes  #: the tracked path, from the top
    inner: bytes  #: inside of it; empty for all of it
    pointer: Pointer
    rev: str | None  #: as in `Spec`
    commit: str = ""  #: what the revision came to

    @property
    def full(self) -> bytes:
        """Where it is, or would be, from the top of the work tree."""
        return self.path + b"/" + self.inner if self.inner else self.path

    @property
    def shown(self) -> str:
        """For messages: as it could be typed at the top."""
        return show(self.full) if self.rev is None else f"{self.rev}:{show(self.full)}"


def parse_spec(text: str | bytes) -> Spec:
    """Take `[REV:]PATH` apart. Says nothing about whether it exists.

    >>> parse_spec("HEAD@{1 day ago: noon}:a:b").rev, parse_spec("./a:b").rev
    ('HEAD@{1 day ago: noon}', None)

    Raises:
        UsageError: it is empty, or a search (`:/text`), which names a commit and no path.
    """
    whole = os.fsdecode(text)
    if not whole or "\0" in whole:
        raise UsageError("not a path", subject=whole)
    if whole.startswith(":/"):
        raise UsageError("names a commit and no path", subject=whole, hint="write REV:PATH")
    at = -1 if whole.startswith(("./", "../", "/")) else _colon(whole)
    if at < 0:
        return Spec(whole, None, os.fsencode(whole))
    return Spec(whole, whole[:at], os.fsencode(whole[at + 1 :]))


def _colon(text: str) -> int:
    depth = 0
    for i, ch in enumerate(text):
        if ch == ":" and not depth:
            return i
        depth += {"{": 1, "}": -1 if depth else 0}.get(ch, 0)
    return -1


class Version:
    """The pointers of one version of the repository: of a commit, of the Git index, or of the work tree."""

    def __init__(self, repo: Repo, rev: str | None) -> None:
        """Raises:
        Refused: a revision in a plain folder. NotFound, UsageError: there is no such revision.
        """
        self.repo, self.ws, self.rev = repo, repo.workspace, rev
        self.commit = CommitId("")
        if rev:
            self.commit = self.ws.resolve(rev)

    @property
    def words(self) -> str:
        """For messages: " at v1.0"."""
        return "" if self.rev is None else " at " + self.rev if self.rev else " in the Git index"

    def pointer(self, path: bytes) -> Pointer | None:
        """The pointer of the data at `path`; None when it is not tracked.

        Raises:
            FormatError: it cannot be read.
        """
        if path.endswith(SUFFIX) or len(path.rpartition(b"/")[2]) > MAX_NAME_BYTES:
            return None
        if self.rev is None:
            try:
                return self.ws.read_pointer(path)
            except NotFound:
                return None
        name = pointer_name(path)
        git = self.ws.need_git("the Git index")
        if self.rev:
            entry = git.entry_at(self.commit, name)
            oid = entry.oid if entry is not None and entry.is_file else None
        else:
            staged = [e.oid for e in git.index_pointers([path]) if e.path == name and e.stage == 0]
            oid = staged[0] if staged else None
        if oid is None:
            return None
        return parse(git.read_blob(oid, max_bytes=MAX_BYTES), subject=show(name))

    def owner(self, path: bytes) -> tuple[bytes, bytes, Pointer] | None:
        """Who tracks `path`: the nearest tracked path at or above it, the rest, and its pointer."""
        found: tuple[bytes, bytes, Pointer] | None = None
        parts = path.split(b"/")
        for i in range(1, len(parts) + 1):
            owner = b"/".join(parts[:i])
            try:
                pointer = self.pointer(owner)
            except Refused:
                if found is None:
                    raise
                break  # a link or file of the user's in tracked data: further down there is no pointer of ours
            if pointer is not None:
                found = owner, b"/".join(parts[i:]), pointer
        return found

    def below(self, path: bytes) -> Iterator[tuple[bytes, Pointer | DvkError]]:
        """Every tracked path at or below `path` (all with b""), by path, or what is wrong with its pointer."""
        under = [path] if path else []
        if self.rev is None:
            yield from self.ws.worktree_pointers(under)
            return
        if self.rev:
            yield from sorted(self.ws.pointers_at(self.commit, under), key=lambda found: found[0])
            return
        git = self.ws.need_git("the Git index")
        rows = [(e.path, e.oid) for e in git.index_pointers(under) if e.stage == 0]
        yield from sorted(self.ws.read_committed(rows), key=lambda found: found[0])

    def names(self, path: bytes = b"") -> list[bytes]:
        """The tracked paths at or below `path`, without a look into their pointers."""
        under = [path] if path else []
        if self.rev is None:
            return [found for found, _ in self.ws.worktree_pointers(under)]
        git = self.ws.need_git("the Git index")
        if self.rev:
            rows = (name for name, _ in git.pointers_at(self.commit))
        else:
            rows = (e.path for e in git.index_pointers(under) if e.stage == 0)
        found = [name[: -len(SUFFIX)] for name in rows]
        return [name for name in found if not path or name == path or name.startswith(path + b"/")]

    def is_plain(self, path: bytes) -> bool:
        """Whether Git itself has a file or folder there, or the disk has, which dvk does not track."""
        if self.rev is None:
            return os.path.lexists(os.path.join(self.ws.top, path))
        return bool(self.rev) and self.ws.need_git("a revision").entry_at(self.commit, path) is not None


def open_version(repo: Repo, spec: Spec) -> Version:
    """The version that a spec speaks of. Errors as `Version`, with a word on paths that hold a colon."""
    try:
        return Version(repo, spec.rev)
    except (NotFound, UsageError) as error:
        there = os.path.join(repo.cwd, os.fsencode(spec.text))
        if spec.rev and (os.path.lexists(there) or os.path.lexists(there + SUFFIX)):
            raise type(error)(
                error.message, subject=error.subject, hint=f"a path with a colon: ./{spec.text}"
            ) from error
        raise


def place(repo: Repo, spec: Spec) -> bytes:
    """The path from the top that a spec means; empty for the whole work tree. `x` and `x.dvk` are the same.

    Raises:
        UsageError: it lies outside of the work tree, or can be no path of data.
    """
    ws = repo.workspace
    if spec.rev is None:
        if os.path.realpath(os.path.join(repo.cwd, spec.path)) == ws.top:
            return b""
        return ws.locate(spec.path, cwd=repo.cwd)
    path = spec.path
    if path.split(b"/")[0] in (b".", b".."):
        here = os.path.relpath(os.path.realpath(repo.cwd), ws.top)
        path = os.path.normpath(os.path.join(here, path))
        if path == b".":
            return b""
    if path.startswith(b"/") or path.split(b"/")[0] == b"..":
        raise UsageError(
            "a path at a revision is counted from the top of the work tree",
            subject=spec.text,
            hint="REV:PATH from the top, REV:./PATH from here",
        )
    path = path.rstrip(b"/")
    if not path:
        return b""
    reason = why_bad(path)
    if reason:
        raise UsageError(reason, subject=spec.text)
    return data_name(path) if is_pointer_name(path) else path


def find_target(repo: Repo, spec: Spec | str | bytes) -> Target:
    """The tracked path, or part of a tracked folder, that a spec (or what a person wrote) names.

    Raises:
        NotFound: dvk does not track it in that version. UsageError, Refused, FormatError: as above.
    """
    if not isinstance(spec, Spec):
        spec = parse_spec(spec)
    version = open_version(repo, spec)
    path = place(repo, spec)
    found = version.owner(path) if path else None
    if found is None:
        raise not_tracked(version, path)
    owner, inner, pointer = found
    if inner and not pointer.is_dir:
        raise NotFound(f"a file is tracked as {show(owner)}{version.words}, so nothing lies in it", subject=show(path))
    return Target(owner, inner, pointer, spec.rev, version.commit)


def not_tracked(version: Version, path: bytes) -> DvkError:
    """The error for a path that no pointer stands for, with the nearest thing that the user may have meant."""
    shown = show(path)
    if not path:
        return UsageError("is the whole work tree", subject=".", hint="name one tracked path; `dvk ls` lists them")
    names = version.names()
    if any(name.startswith(path + b"/") for name in names):
        return UsageError(
            f"is a folder with tracked paths in it{version.words}, not tracked as a whole",
            subject=shown,
            hint="name one of them; `dvk ls` lists them",
        )
    if version.is_plain(path):
        hint = (
            f"`dvk add {shown}` starts tracking it"
            if version.rev is None
            else f"`git show {version.rev}:{shown}` shows it"
        )
    else:
        hint = near_misses(path, names) or f"`dvk log {shown}` lists its versions, `dvk ls` what is tracked"
    return NotFound(f"dvk does not track it{version.words}", subject=shown, hint=hint)


def near_misses(path: bytes, names: Sequence[bytes]) -> str:
    """A hint that names what is tracked and nearly called `path`: in another folder, or by a slip of the keys."""
    last = path.rpartition(b"/")[2]
    same = [name for name in names if name.rpartition(b"/")[2] == last]
    wanted = os.fsdecode(path)
    close = difflib.get_close_matches(wanted, [os.fsdecode(n) for n in names[:_MAX_NAMES]], n=3, cutoff=0.6)
    found = list(dict.fromkeys([*(show(n) for n in same[:3]), *(show(os.fsencode(n)) for n in close)]))[:3]
    return f"did you mean {' or '.join(found)}?" if found else ""
