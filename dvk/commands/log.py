"""`dvk log`: the versions of one path, newest first, and how much was new in each.

Size and id are in the pointers, so history alone tells them. How much was new needs the chunk ids (of a folder: the ids
of its files) of a version and of the one before it; where they were never fetched it is not known, and said so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.commands.diff import diff_pointers
from dvk.commands.repo import Repo
from dvk.commands.spec import Spec, Version, near_misses, place
from dvk.errors import DataMissing, DvkError, NotFound, UsageError
from dvk.events import OnEvent, ignore
from dvk.ids import FileId, PageId
from dvk.store.listing import Entries
from dvk.store.names import I64, U8, show
from dvk.store.pages import read_entries
from dvk.workspace.git import Commit
from dvk.workspace.pointer import Pointer, pointer_name

_GROUP = 64

Parts = tuple[Sequence[bytes], Sequence[int]]


class Stat(Struct, frozen=True):
    """How much a version changed since the one before, counted in the best unit that this clone can tell."""

    unit: str  #: "rows" of a table, "files" of a folder, "bytes" of chunks (changed bytes are removed and added)
    added: int
    removed: int
    modified: int = 0


class LoggedVersion(Struct, frozen=True):
    """One version of a path; of a deleted one only what the commit says."""

    commit: str
    author: str
    email: str
    date: datetime | None
    subject: str
    kind: str = ""  #: "file", "dir", "link"; empty: not known here
    size: int | None = None
    files: int | None = None
    id: bytes | None = None
    new_bytes: int | None = None  #: content that the version before does not have; None: not known here
    deleted: bool = False
    problem: str = ""  #: why its pointer cannot be read
    tags: tuple[str, ...] = ()  #: with `tags`: those that name this version
    stat: Stat | None = None  #: with `diffstat`: how much changed; None: not known here


class Log(Struct):
    """The answer."""

    path: bytes
    rev: str
    versions: list[LoggedVersion] = field(default_factory=list)
    more: bool = False  #: there are older ones than `limit` allowed


def log(
    repo: Repo,
    path: bytes | str,
    *,
    rev: str = "HEAD",
    limit: int | None = None,
    tags: bool = False,
    diffstat: bool = False,
    on_event: OnEvent = ignore,
) -> Log:
    """The versions of a tracked path, or of a part of a tracked folder, reachable from `rev`.

    Args:
        tags: only what it was at each tag of the repository, the newest tag first, each compared with the tag before.
        diffstat: count what changed: rows where it is a table whose content is here, files of folders, else bytes.

    Raises:
        NotFound: there is none. Refused: this is a plain folder, without history.
    """
    if limit is not None and limit < 1:
        raise UsageError("at least 1", subject="--limit")
    git = repo.workspace.need_git("history")
    if rev == "HEAD" and git.head() is None:
        raise NotFound("nothing is committed yet", hint="`dvk add` and `git commit` make the first version")
    wanted = place(repo, Spec(os.fsdecode(path), None, os.fsencode(path)))
    if not wanted:
        raise UsageError("is the whole work tree", subject=".", hint="name one tracked path; `dvk ls` lists them")
    owner, inner = _owner(repo, wanted, rev)
    named: dict[str, tuple[str, ...]] = {}
    if tags:
        found = git.tagged(pointer_name(owner))
        named = {t.commit.id: t.names for t in found}
        history = iter([t.commit for t in found])
    else:
        history = git.history(pointer_name(owner), rev)
    work = _Versions(repo, owner, inner, every=tags, diffstat=diffstat, on_event=on_event)
    versions = (replace(line, tags=named.get(line.commit, ())) for line in work.of(history))
    out = Log(wanted, rev)
    out.versions = list(versions if limit is None else islice(versions, limit))
    out.more = limit is not None and next(versions, None) is not None
    if not out.versions:
        names = Version(repo, rev).names()
        near = "" if wanted in names else near_misses(wanted, names)
        if tags and not near:
            near = "`git tag` lists the tags; without --tags the versions of all commits are shown"
        raise NotFound(
            "no tag has a version of it" if tags else f"no commit up to {rev} has a version of it",
            subject=show(wanted),
            hint=near or "a new version appears here once its pointer is committed; `dvk ls` lists what is tracked",
        )
    return out


def _owner(repo: Repo, wanted: bytes, rev: str) -> tuple[bytes, bytes]:
    """The tracked path whose history to read, and the part of it."""
    for version in (Version(repo, rev), Version(repo, None)):
        try:
            found = version.owner(wanted)
        except DvkError:
            continue  # a pointer that cannot be read has a history all the same
        if found is not None:
            return found[0], found[1]
    return wanted, b""


class _Step(Struct, frozen=True):
    """A commit with what it made of the path; `pointer` None: deleted or unreadable."""

    line: LoggedVersion
    pointer: Pointer | None
    entries: Entries | None = None  #: of a part of a folder, where the pages are here


class _Versions:
    def __init__(
        self, repo: Repo, owner: bytes, inner: bytes, *, every: bool, diffstat: bool, on_event: OnEvent
    ) -> None:
        self.repo, self.owner, self.inner = repo, owner, inner
        self.every, self.diffstat, self.on_event = every, diffstat, on_event

    def of(self, history: Iterator[Commit]) -> Iterator[LoggedVersion]:
        """The versions of the path, each compared with the next older one."""
        newer: _Step | None = None
        for step in self._steps(history):
            if newer is not None:
                line = self._compared(newer, step)
                if line is not None:
                    yield line
            newer = step
        if newer is not None:
            line = self._compared(newer, None)
            if line is not None:
                yield line

    def _steps(self, history: Iterator[Commit]) -> Iterator[_Step]:
        # Small groups, so that `--limit 3` does not read the pointers of ten years.
        while group := list(islice(history, _GROUP)):
            name = pointer_name(self.owner)
            rows = [(name, c.oid) for c in group if c.oid is not None]
            found = iter(self.repo.workspace.read_committed(rows))
            for commit in group:
                line = LoggedVersion(commit.id, commit.author, commit.email, commit.date, commit.subject)
                if commit.oid is None:
                    yield _Step(replace(line, deleted=True), None)
                    continue
                pointer = next(found)[1]
                if isinstance(pointer, DvkError):
                    yield _Step(replace(line, problem=pointer.message), None)
                elif self.inner:
                    yield self._part(line, pointer)
                else:
                    files = pointer.files if pointer.is_dir else 1
                    line = replace(line, kind=pointer.kind, size=pointer.size, files=files, id=pointer.id)
                    yield _Step(line, pointer)

    def _part(self, line: LoggedVersion, pointer: Pointer) -> _Step:
        """What the folder of a version has at `inner`."""
        if not pointer.is_dir:
            return _Step(replace(line, deleted=True), None)
        try:
            entries = read_entries(PageId(pointer.id), self.repo.store.load_page, under=self.inner)
        except DataMissing:
            return _Step(replace(line, problem="its list of files is not here: `dvk fetch` brings it"), pointer)
        if not len(entries):
            return _Step(replace(line, deleted=True), None)
        single = len(entries) == 1 and entries.names[0] == self.inner
        line = replace(line, size=entries.total_bytes, files=entries.files, kind="dir")
        if single and entries.files:
            line = replace(line, kind="file", id=entries.ids[0].tobytes())
        elif single and int(entries.sizes[0]):
            line = replace(line, kind="link", size=int(entries.sizes[0]))
        return _Step(line, pointer, entries)

    def _compared(self, step: _Step, older: _Step | None) -> LoggedVersion | None:
        """The line of a version; None where it did not change the part that was asked for."""
        line = step.line
        if self.inner and not self.every:
            if line.deleted and (older is None or older.line.deleted):
                return None
            if step.entries is not None and older is not None and _same(step.entries, older.entries):
                return None
        if line.deleted or step.pointer is None or line.problem:
            return line
        before = None if older is None or older.line.deleted else older
        if before is not None and before.pointer is None:
            return line
        stat = self._stat(step, before) if self.diffstat else None
        return replace(line, new_bytes=self._new_bytes(step, before), stat=stat)

    def _stat(self, step: _Step, before: _Step | None) -> Stat | None:
        """How much changed, from what is here; nothing is fetched for it."""
        old = before.pointer if before is not None else None
        try:
            with diff_pointers(
                self.repo, self.owner, old, step.pointer, contents=True, inner=self.inner, on_event=self.on_event
            ) as found:
                path = found.paths[0]
                if path.table is not None:
                    rows = path.table.rows
                    return Stat("rows", rows.added, rows.removed, rows.modified)
                if path.files is not None:
                    f = path.files
                    return Stat("files", len(f.added), len(f.removed), len(f.modified) + len(f.renamed))
        except DvkError as error:
            if error.kind in ("interrupted", "storage-full"):
                raise
        now = self._parts(step)
        then = self._parts(before) if before is not None and before.line.kind == step.line.kind else ([], [])
        if now is None or then is None:
            return None
        if step.line.kind == "dir":
            return Stat("files", _beyond(now, then, count=True), _beyond(then, now, count=True))
        return Stat("bytes", _beyond(now, then), _beyond(then, now))

    def _new_bytes(self, step: _Step, before: _Step | None) -> int | None:
        """The bytes of chunks (of a folder: of files) that the version before does not have."""
        now = self._parts(step)
        then = self._parts(before) if before is not None and before.line.kind == step.line.kind else ([], [])
        return None if now is None or then is None else _beyond(now, then)

    def _parts(self, step: _Step) -> Parts | None:
        """Ids and sizes of what a version consists of; None when this clone does not know."""
        line, store = step.line, self.repo.store
        if line.kind == "file":
            chunks = store.chunks_of(FileId(line.id or b""), line.size or 0)
            return None if chunks is None else (_rows(chunks.ids), chunks.lengths.tolist())
        entries = step.entries
        if entries is None:
            assert step.pointer is not None
            try:
                entries = read_entries(PageId(step.pointer.id), store.load_page)
            except DataMissing:
                return None
        files: I64 = np.flatnonzero(entries.is_file)
        return _rows(entries.ids[files]), entries.sizes[files].tolist()


def _beyond(these: Parts, those: Parts, *, count: bool = False) -> int:
    """Bytes (or how many) of what `these` have and `those` do not, each once."""
    known = set(those[0])
    fresh = {name: size for name, size in zip(*these, strict=True) if name not in known}
    return len(fresh) if count else sum(fresh.values())


def _rows(ids: U8) -> list[bytes]:
    blob = np.ascontiguousarray(ids).tobytes()
    return [blob[i : i + 32] for i in range(0, len(blob), 32)]


def _same(a: Entries, b: Entries | None) -> bool:
    return (
        b is not None
        and a.names == b.names
        and a.targets == b.targets
        and np.array_equal(a.kinds, b.kinds)
        and np.array_equal(a.ids, b.ids)
    )
