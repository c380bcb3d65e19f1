"""`dvk add`: data on disk becomes chunks in the store and a pointer in the work tree, staged for Git.

The user's files are only read. Order: data durable, then pages, then the pointer, then Git: a kill leaves at most
data that nothing refers to. A folder is scanned whole and compared with the stat cache; only what changed is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dvk.commands.placed import Placed
from dvk.commands.repo import Repo
from dvk.commands.tracked import (
    Look,
    in_the_way,
    join_path,
    kind_on_disk,
    look,
    not_here,
    pointer_entries,
    prefixed,
)
from dvk.errors import Busy, DataMissing, DvkError, NotFound, Refused, UsageError, one_or_many
from dvk.events import Note, OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.ingest import ingest
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, show
from dvk.store.pages import PageRef, edit_listing, write_listing
from dvk.store.writer import Writer
from dvk.workspace.align import align
from dvk.workspace.pointer import Pointer, pointer_name
from dvk.workspace.selection import Selected, Selection, edit
from dvk.workspace.source import SourceFiles
from dvk.workspace.statcache import Clock, StatCache, read_clock

_RETRIES = 5


@dataclass(frozen=True, slots=True)
class Added:
    """One tracked path after an add."""

    path: bytes
    kind: str  #: "file" or "dir"
    size: int  #: bytes of content, of a folder all its files together
    files: int
    changed: bool  #: whether the pointer is another one now
    stored_bytes: int  #: what the store grew by, encoded
    new_bytes: int  #: the same before encoding
    added: int = 0  #: files, of a folder
    modified: int = 0
    removed: int = 0
    not_present: int = 0  #: files outside of what this worktree asked for; they stay in the folder
    ignored: int = 0  #: left out by .dvkignore


@dataclass(slots=True)
class AddResult:
    """What an add did."""

    paths: list[Added] = field(default_factory=list)
    staged: int = 0  #: pointers that were put into the Git index
    not_staged: str = ""  #: why staging did not happen although the pointers are written
    overruled: dict[bytes, str] = field(default_factory=dict)  #: pointers that a Git ignore rule would have kept out
    dry_run: bool = False


def add(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    update: bool = False,
    dry_run: bool = False,
    stage: bool = True,
    keep_missing: bool = False,
    delete_missing: bool = False,
    on_event: OnEvent = ignore,
) -> AddResult:
    """Record what is on disk at `paths`; with `update`, at all tracked paths that changed.

    Args:
        dry_run: do all the work and keep nothing.
        stage: put the pointers into the Git index.
        keep_missing, delete_missing: what to do about files of a folder that are not here when it is not known
            whether they were ever asked for.

    Raises:
        NotFound, Refused, UsageError: a path that cannot be added; nothing was recorded.
        StorageError, StorageFull, ChangedWhileRead: of a file or of the store; nothing was recorded.
    """
    if bool(paths) == update and not (paths and update):
        raise UsageError("nothing to add", hint="name a file or folder, or use -u for all tracked paths that changed")
    with _Add(repo, dry_run, keep_missing, delete_missing, on_event) as run:
        targets = run.targets(paths, update=update)
        with repo.writing():
            return run.run(targets, stage=stage)


@dataclass(slots=True)
class _Target:
    """What to add: a tracked path, or a path inside a tracked folder."""

    path: bytes  #: the tracked path
    inner: bytes = b""  #: inside a tracked folder
    pointer: Pointer | None = None


@dataclass(slots=True)
class _Done:
    """A tracked path whose data is on its way; the pointer is not written yet."""

    target: _Target
    pointer: Pointer
    added: Added
    cache: StatCache | None
    select_all: bool = False
    old: Pointer | None = None  #: what this one was made from


class _Add:
    def __init__(self, repo: Repo, dry_run: bool, keep: bool, delete: bool, on_event: OnEvent) -> None:
        self.repo, self.dry_run, self.keep, self.delete = repo, dry_run, keep, delete
        self.on_event = on_event
        self.ws = repo.workspace
        self.rules = self.ws.ignore_rules()
        self.selection = Selection.load(repo.state)
        self.writer: Writer

    def __enter__(self) -> _Add:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # ------------------------------------------------------------ what to add

    def targets(self, paths: Sequence[bytes | str], *, update: bool) -> list[_Target]:
        """The tracked paths that the arguments mean, each once, those inside another left out."""
        found: dict[tuple[bytes, bytes], _Target] = {}
        problems: list[DvkError] = []
        for arg in paths:
            try:
                target = self._target(self.ws.locate(arg, cwd=self.repo.cwd))
                found[target.path, target.inner] = target
            except DvkError as error:
                problems.append(error)
        if update:
            for path, pointer in self.ws.worktree_pointers():
                if isinstance(pointer, DvkError):
                    problems.append(pointer)
                elif kind_on_disk(self.repo.root_fd, path):
                    found.setdefault((path, b""), _Target(path, b"", pointer))
        if problems:
            raise one_or_many("some paths cannot be added; nothing was recorded", problems)
        out: list[_Target] = []
        whole = {path for path, inner in found if not inner}
        for (path, inner), target in sorted(found.items()):
            above = {path} | {path[:i] for i in range(len(path)) if path[i : i + 1] == b"/"}
            if not (inner and path in whole) and not (above - {path}) & whole:
                out.append(target)
        self._check_owners(out)
        return out

    def _target(self, path: bytes) -> _Target:
        owner = self.ws.owner_of(path)
        if owner is not None and owner[1]:
            return _Target(owner[0], owner[1], self.ws.read_pointer(owner[0]))
        pointer = self._pointer(path)
        if not kind_on_disk(self.repo.root_fd, path):
            if pointer is not None:
                raise NotFound(
                    "it is tracked and its data is not here",
                    subject=show(path),
                    hint=f"`dvk checkout {show(path)}` brings it back, `dvk rm {show(path)}` stops tracking it",
                )
            raise NotFound("there is no such file or folder", subject=show(path))
        return _Target(path, b"", pointer)

    def _check_owners(self, targets: list[_Target]) -> None:
        """One path, one owner: data must not be tracked by Git as well, nor pointers lie inside it."""
        git = self.ws.git
        if git is None or not git.has_program:
            return
        problems: list[DvkError] = []
        for t in targets:
            if t.pointer is not None and not t.inner:
                continue
            tracked = git.tracked_under(join_path(t.path, t.inner))
            if tracked:
                shown = ", ".join(show(p) for p in tracked[:3]) + (", ..." if len(tracked) > 3 else "")
                problems.append(
                    Refused(
                        f"Git tracks {len(tracked):,} of its files ({shown})",
                        subject=show(join_path(t.path, t.inner)),
                        hint=f"`git rm -r --cached {show(join_path(t.path, t.inner))}` hands it over to dvk, "
                        "the files stay",
                    )
                )
        if problems:
            raise one_or_many("some paths belong to Git; nothing was recorded", problems)

    # ------------------------------------------------------------ doing it

    def run(self, targets: list[_Target], *, stage: bool) -> AddResult:
        """Data first, then pointers, then Git."""
        result = AddResult(dry_run=self.dry_run)
        clock = self._clock()
        with Writer(self.repo.store, dry_run=self.dry_run) as self.writer:
            done = [self._one(t, clock) for t in targets]
            self.writer.flush()
            if self.dry_run:
                result.paths = [d.added for d in done]
                return result
            with self.ws.lock():
                for i, d in enumerate(done):
                    done[i] = self._write_pointer(d, clock)
                self.ws.hide(add=[d.target.path for d in done])
        for d in done:
            if d.cache is not None:
                d.cache.save(self.repo.state, d.target.path)
        Placed(self.repo.state).update({d.target.path: d.pointer for d in done})
        fresh = [d.target.path for d in done if d.select_all]
        if fresh:
            with edit(self.repo.state) as selection:
                for path in fresh:
                    selection.set_all(path)
        result.paths = [d.added for d in done]
        if stage:
            self._stage(result, [pointer_name(d.target.path) for d in done])
        return result

    def _clock(self) -> Clock:
        return read_clock(self.repo.state)

    def _write_pointer(self, d: _Done, clock: Clock) -> _Done:
        """Write the pointer, unless another process changed it since it was read: then start over from that."""
        for _ in range(_RETRIES):
            now = self._pointer(d.target.path)
            if now == d.old:
                if d.pointer != now:
                    self.ws.write_pointer(d.target.path, d.pointer)
                return d
            d = self._one(_Target(d.target.path, d.target.inner, now), clock)
            self.writer.flush()
        raise Busy(
            "other processes keep changing this pointer", subject=show(d.target.path), hint="run the command again"
        )

    def _pointer(self, path: bytes) -> Pointer | None:
        try:
            return self.ws.read_pointer(path)
        except NotFound:
            return None

    def _stage(self, result: AddResult, pointers: list[bytes]) -> None:
        if self.ws.git is None:
            result.not_staged = "this is no Git repository"
            return
        try:
            result.overruled = self.ws.git.stage(pointers)
            result.staged = len(pointers)
        except Busy as error:
            result.not_staged = error.message
        for path, rule in result.overruled.items():
            self.on_event(
                Note(
                    f"a Git ignore rule would have kept this pointer out ({rule}); it was staged by force",
                    subject=show(path),
                )
            )

    def _one(self, t: _Target, clock: Clock) -> _Done:
        old = t.pointer
        where = join_path(t.path, t.inner)
        seen = look(self.repo.root_fd, where, self.repo.state, self.rules, on_event=self.on_event)
        if seen.scan.problems:
            raise one_or_many(
                f"{len(seen.scan.problems):,} things in {show(where)} cannot be stored; nothing was recorded",
                seen.scan.problems,
            )
        if t.pointer is not None and not t.inner and seen.kind and seen.kind != t.pointer.kind:
            raise in_the_way(t.path, "folder" if seen.kind == "dir" else "file")
        if t.inner:
            return self._inside(t, seen, old)
        if seen.kind == "file":
            return self._file(t, seen, clock, old)
        return self._folder(t, seen, clock, old)

    def _take(self, path: bytes, seen: Look, trusted: Entries | None) -> tuple[Look, int, int]:
        """Store what is not stored: files whose id is unknown, and known ones that no version vouches for."""
        before = (self.writer.written.encoded_bytes, self.writer.written.new_bytes)
        unsure = np.flatnonzero(seen.is_file & seen.known)
        if trusted is not None and len(unsure):
            at = align(seen.scan.names.take(unsure), trusted.names)
            same = at >= 0
            same[same] = (trusted.ids[at[same]] == seen.ids[unsure[same]]).all(axis=1)
            unsure = unsure[~same]
        if len(unsure):
            unsure = unsure[~self.repo.store.holds(seen.ids[unsure], seen.scan.stats.sizes[unsure])]
        index = np.sort(np.concatenate([seen.unknown(), unsure]))
        if len(index):
            seen = self._ingest(path, seen, index)
        after = self.writer.written
        return seen, after.encoded_bytes - before[0], after.new_bytes - before[1]

    def _ingest(self, path: bytes, seen: Look, index: I64) -> Look:
        with SourceFiles(self.repo.root_fd, seen.path, seen.scan, index) as source:
            ids = ingest(
                self.writer,
                source,
                seen.scan.stats.sizes[index],
                profile=self.ws.config.profile_for(path),
                on_event=self.on_event,
            )
        return seen.with_ids(index, ids)

    def _file(self, t: _Target, seen: Look, clock: Clock, old: Pointer | None) -> _Done:
        trusted = pointer_entries(self.repo.store, t.pointer) if t.pointer else None
        seen, stored, new = self._take(t.path, seen, trusted)
        size = int(seen.scan.stats.sizes[0])
        source = t.pointer.source if t.pointer and t.pointer.id == seen.ids[0].tobytes() else ()
        executable = int(seen.scan.kinds[0]) == Kind.EXEC
        pointer = Pointer("file", seen.ids[0].tobytes(), size, exec=executable, source=source)
        added = Added(t.path, "file", size, 1, pointer != t.pointer, stored, new)
        cache = StatCache.of(seen.scan, seen.ids, clock=clock, root_id=pointer.id)
        return _Done(t, pointer, added, cache, old=old)

    def _folder(self, t: _Target, seen: Look, clock: Clock, old: Pointer | None) -> _Done:
        selected = self._selected(t, seen)
        before = self._before(t, selected)
        seen, stored, new = self._take(t.path, seen, before)
        entries = seen.entries()
        if selected.prefixes is None:
            root = write_listing(entries, self.writer.add_page)
        else:
            root = self._partly(t, entries, before)
        pointer = Pointer(
            "dir", bytes(root.id), root.total_bytes, files=root.files, source=t.pointer.source if t.pointer else ()
        )
        changes = _compare(before, entries)
        added = Added(
            t.path,
            "dir",
            root.total_bytes,
            root.files,
            t.pointer is None or pointer.id != t.pointer.id,
            stored,
            new,
            *changes,
            not_present=root.files - entries.files,
            ignored=seen.scan.ignored,
        )
        whole = selected.prefixes is None
        cache = StatCache.of(seen.scan, seen.ids, clock=clock, root_id=bytes(root.id) if whole else bytes(ID_BYTES))
        fresh = self.selection.get(t.path) is None
        return _Done(t, pointer, added, cache, select_all=fresh and whole, old=old)

    def _selected(self, t: _Target, seen: Look) -> Selected:
        """What of the folder this worktree asked for; decides whether a file that is not here was deleted."""
        recorded = self.selection.get(t.path)
        if t.pointer is None or recorded is not None:
            return recorded if recorded is not None and t.pointer is not None else Selected(None)
        here = set(seen.scan.names)
        missing = [n for n in self._all(t).names if n not in here]
        if not missing or self.delete:
            return Selected(None)
        if self.keep:
            return Selected(tuple(sorted(here)))
        raise Refused(
            f"{len(missing):,} of its files are not here ({show(missing[0])}, ...), and it is not recorded whether "
            "they were ever asked for",
            subject=show(t.path),
            hint="--keep-missing leaves them in the folder, --delete-missing takes them out of it",
        )

    def _all(self, t: _Target) -> Entries:
        assert t.pointer is not None
        try:
            return pointer_entries(self.repo.store, t.pointer)
        except DataMissing as error:
            raise not_here(t.path, error) from error

    def _before(self, t: _Target, selected: Selected) -> Entries:
        """The entries of the version that the pointer stands for, as far as they were asked for."""
        if t.pointer is None:
            return Entries.empty()
        try:
            return pointer_entries(self.repo.store, t.pointer, selected)
        except DataMissing as error:
            raise not_here(t.path, error) from error

    def _partly(self, t: _Target, entries: Entries, before: Entries) -> PageRef:
        """A new version of a folder of which only a part is here."""
        assert t.pointer is not None
        present = align(before.names, entries.names) >= 0
        removed = [before.names[i] for i in np.flatnonzero(~present).tolist()]
        changed = _changed(before, entries)
        try:
            return edit_listing(
                PageId(t.pointer.id),
                self.repo.store.load_page,
                self.writer.add_page,
                put=entries.take(changed),
                remove=removed,
            )
        except DataMissing as error:
            raise not_here(t.path, error) from error

    def _inside(self, t: _Target, seen: Look, old: Pointer | None) -> _Done:
        """One file or subfolder of a tracked folder: only the pages around it are needed."""
        assert t.pointer is not None
        if not t.pointer.is_dir:
            raise Refused(
                "a file is tracked under this name, so nothing can lie inside it",
                subject=show(join_path(t.path, t.inner)),
            )
        try:
            before = pointer_entries(self.repo.store, t.pointer, Selected((t.inner,)))
            if not seen.kind and not len(before):
                raise NotFound("there is no such file or folder", subject=show(join_path(t.path, t.inner)))
            seen, stored, new = self._take(t.path, seen, None)
            entries = prefixed(seen.entries(), t.inner)
            if seen.kind == "dir" and not len(entries):
                entries = Entries.of([(t.inner, Kind.EMPTYDIR, 0, bytes(ID_BYTES), b"")])
            root = edit_listing(
                PageId(t.pointer.id),
                self.repo.store.load_page,
                self.writer.add_page,
                put=entries,
                remove=[t.inner],
            )
        except DataMissing as error:
            raise not_here(t.path, error) from error
        pointer = Pointer("dir", bytes(root.id), root.total_bytes, files=root.files, source=t.pointer.source)
        added = Added(
            t.path,
            "dir",
            root.total_bytes,
            root.files,
            pointer.id != t.pointer.id,
            stored,
            new,
            *_compare(before, entries),
            ignored=seen.scan.ignored,
        )
        selected = self.selection.get(t.path)
        if not self.dry_run and selected is not None and not selected.covers_one(t.inner) and seen.kind:
            with edit(self.repo.state) as selection:
                selection.add(t.path, t.inner)
        return _Done(t, pointer, added, None, old=old)


def _changed(before: Entries, now: Entries) -> I64:
    """Positions in `now` of entries that are new or different."""
    at = align(now.names, before.names)
    same = at >= 0
    rows = np.flatnonzero(same)
    then = at[rows]
    equal = (now.kinds[rows] == before.kinds[then]) & (now.sizes[rows] == before.sizes[then])
    equal &= (now.ids[rows] == before.ids[then]).all(axis=1)
    links = np.flatnonzero(equal & (now.kinds[rows] == Kind.LINK))
    ours, theirs = np.cumsum(now.kinds == Kind.LINK) - 1, np.cumsum(before.kinds == Kind.LINK) - 1
    for k in links.tolist():
        equal[k] = now.targets[int(ours[rows[k]])] == before.targets[int(theirs[then[k]])]
    same[rows[~equal]] = False
    return np.flatnonzero(~same)


def _compare(before: Entries, now: Entries) -> tuple[int, int, int]:
    """How many entries were added, modified and removed."""
    changed = _changed(before, now)
    there = align(now.names.take(changed), before.names) >= 0
    modified = int(np.count_nonzero(there))
    removed = int(np.count_nonzero(align(before.names, now.names) < 0))
    return len(changed) - modified, modified, removed
