"""`dvk status`: what differs between history, index, pointers, data, store and remote. Never uses the network.

A file that the stat cache vouches for is not read; the others are hashed, once, and the cache learns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.commands.folder import Part, compare, plan_part
from dvk.commands.placed import Placed, bare
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import (
    Look,
    is_changed,
    is_there,
    kind_on_disk,
    look,
    pointer_entries,
    read_where_it_could_be,
)
from dvk.commands.versions import head_history, roots_here, staged
from dvk.errors import DataMissing, DvkError, NotFound
from dvk.events import OnEvent, ignore
from dvk.ids import ID_BYTES
from dvk.store.listing import Entries
from dvk.workspace.ignore import excluded_paths
from dvk.workspace.pointer import Pointer, data_name
from dvk.workspace.selection import Selected, Selection
from dvk.workspace.statcache import Clock, StatCache, read_clock


class PathStatus(Struct, frozen=True):
    """One tracked path. Counts are of files; for a file they are 0 or 1."""

    path: bytes
    kind: str  #: "file" or "dir"
    size: int  #: as the pointer says
    files: int
    staged: str = ""  #: "new", "modified" or "deleted": the index differs from HEAD
    unstaged: bool = False  #: the pointer on disk differs from the index
    modified: int = 0  #: on disk and different from the pointer
    added: int = 0  #: on disk and not in the folder
    missing: int = 0  #: asked for and not on disk
    not_present: int = 0  #: never asked for in this worktree
    not_fetched: bool = False  #: neither on disk nor in the store: `dvk pull`
    behind: bool = False  #: the pointer moved on, and on disk is unchanged what dvk put there last

    @property
    def clean(self) -> bool:
        """Whether there is nothing to say about it."""
        on_disk = self.modified or self.added or self.missing or self.behind
        return not (self.staged or self.unstaged or on_disk or self.not_fetched)


class Conflict(Struct, frozen=True):
    """A path that a merge left undecided."""

    path: bytes
    what: str  #: "both changed", "both added", "deleted by us" or "deleted by them"


#: Which stages the Git index has, and what that means.
_WHAT = {(1, 2, 3): "both changed", (2, 3): "both added", (1, 3): "deleted by us", (1, 2): "deleted by them"}


class Status(Struct):
    """The whole answer."""

    branch: str = ""
    paths: list[PathStatus] = field(default_factory=list)
    not_pushed: int = 0  #: versions that are here and not known to be on the default remote
    not_pushed_bytes: int = 0  #: their logical size
    remote: str = ""  #: the default remote, empty when there is none
    left_behind: list[bytes] = field(default_factory=list)  #: data that is ignored for dvk and has no pointer
    conflicts: list[Conflict] = field(default_factory=list)  #: what `dvk resolve` has to decide; not among `paths`

    @property
    def clean(self) -> bool:
        """Whether data, pointers and index agree."""
        return all(p.clean for p in self.paths) and not self.conflicts


def status(
    repo: Repo, paths: Sequence[bytes | str] = (), *, on_event: OnEvent = ignore
) -> tuple[Status, list[DvkError]]:
    """What differs, and the pointers that cannot be read. Changes nothing but the stat cache."""
    ws = repo.workspace
    wanted = [ws.locate(p, cwd=repo.cwd) for p in paths]
    run = _Status(repo, on_event)
    out = Status(branch=(ws.git.branch() or "") if ws.git else "")
    problems: list[DvkError] = []
    index, head = run.git_side()
    out.conflicts = [c for c in run.conflicts if _covers(wanted, c.path)]
    undecided = {c.path for c in run.conflicts}
    on_disk: set[bytes] = set()
    for path, pointer in ws.worktree_pointers(under=wanted):
        on_disk.add(path)
        if path in undecided:
            continue
        if isinstance(pointer, DvkError):
            problems.append(pointer)
            continue
        try:
            out.paths.append(run.one(path, pointer, index.get(path), head))
        except DvkError as error:
            problems.append(error)
    for path, change in head.items():
        if change == "deleted" and path not in on_disk and _covers(wanted, path):
            out.paths.append(PathStatus(path, "file", 0, 0, staged="deleted"))
    out.paths.sort(key=lambda p: p.path)
    if not wanted:
        run.pushed(out)
        out.left_behind = run.left_behind(on_disk)
    return out, problems


def _covers(wanted: Sequence[bytes], path: bytes) -> bool:
    return not wanted or any(path == w or path.startswith(w + b"/") for w in wanted)


class _Status:
    def __init__(self, repo: Repo, on_event: OnEvent) -> None:
        self.repo, self.on_event = repo, on_event
        self.rules = repo.workspace.ignore_rules()
        self.selection = Selection.load(repo.state)
        self.placed = Placed(repo.state).read()
        self.conflicts: list[Conflict] = []

    def git_side(self) -> tuple[dict[bytes, Pointer], dict[bytes, str]]:
        """By data path: what the index holds, and how it differs from HEAD."""
        git = self.repo.workspace.git
        if git is None or not git.has_program:
            return {}, {}
        entries = list(git.index_pointers())
        rows = [(e.path, e.oid) for e in entries if e.stage == 0]
        stages: dict[bytes, tuple[int, ...]] = {}
        for e in entries:
            if e.stage:
                stages[data_name(e.path)] = (*stages.get(data_name(e.path), ()), e.stage)
        self.conflicts = [Conflict(path, _WHAT.get(found, "undecided")) for path, found in sorted(stages.items())]
        found = self.repo.workspace.read_committed(rows)
        index = {path: pointer for path, pointer in found if isinstance(pointer, Pointer)}
        changes = {}
        for c in git.staged_changes():
            word = "deleted" if c.index is None else "new" if c.head is None else "modified"
            changes[data_name(c.path)] = word
        return index, changes

    def one(self, path: bytes, pointer: Pointer, index: Pointer | None, head: dict[bytes, str]) -> PathStatus:
        git = self.repo.workspace.git
        unstaged = git is not None and git.has_program and index != pointer
        files = pointer.files or 0 if pointer.is_dir else 1
        base = PathStatus(path, pointer.kind, pointer.size, files, head.get(path, ""), unstaged)
        if not kind_on_disk(self.repo.root_fd, path):
            return self._nothing_there(base, pointer)
        clock = self._clock()
        seen = look(self.repo.root_fd, path, self.repo.state, self.rules, on_event=self.on_event)
        selected = self.selection.get(path) or Selected(None)
        if seen.kind != pointer.kind:
            return _with(base, modified=1, behind=self._is_behind(path, pointer, seen, selected))
        if seen.scan.problems:
            raise seen.scan.problems[0]
        if seen.root_id == pointer.id:
            return base
        try:
            part = self._part(path, pointer, seen, selected)
        except DataMissing:
            return _with(base, not_fetched=True, behind=self._is_behind(path, pointer, seen, selected))
        seen, entries = self._read(seen, part.before, clock)
        found = self._counts(base, part, entries)
        if found.modified or found.added or found.missing:
            found = _with(found, behind=self._is_behind(path, pointer, seen, selected))
        return found

    def _is_behind(self, path: bytes, pointer: Pointer, seen: Look, selected: Selected) -> bool:
        """Whether what is on disk is, unchanged, another version than the pointer's that dvk put there last."""
        put = self.placed.get(path)
        if put is None or put == bare(pointer):
            return False
        return not is_changed(self.repo.store, self.repo.root_fd, seen, put, selected, on_event=self.on_event)

    def _part(self, path: bytes, pointer: Pointer, seen: Look, selected: Selected) -> Part:
        if not pointer.is_dir:
            return Part(pointer_entries(self.repo.store, pointer), np.ones(len(seen.scan), np.bool_), selected)
        return plan_part(self.repo.store, path, pointer, b"", seen.scan.names, seen.scan.kinds, selected)

    def _clock(self) -> Clock | None:
        try:
            return read_clock(self.repo.state)
        except OSError:
            return None  # a read-only repository has no cache to write

    def _read(self, seen: Look, before: Entries, clock: Clock | None) -> tuple[Look, Entries]:
        """`read_where_it_could_be`, and the cache learns."""
        learned = bool(len(seen.unknown()))
        seen = read_where_it_could_be(self.repo.root_fd, seen, before, on_event=self.on_event)
        entries = seen.entries()
        if clock is not None and learned:
            whole = len(entries) == len(before) and bool((entries.ids == before.ids).all())
            root = seen.root_id if seen.root_id and whole else bytes(ID_BYTES)
            StatCache.of(seen.scan, seen.ids, clock=clock, known=seen.known, root_id=root).save(
                self.repo.state, seen.path
            )
        return seen, entries

    def _counts(self, base: PathStatus, part: Part, entries: Entries) -> PathStatus:
        before = part.before
        # A file that was not read has another size than the version, so its missing id makes it differ as it should.
        added, modified, missing = compare(before, entries.take(np.flatnonzero(part.keep)))
        return _with(
            base,
            modified=modified,
            added=added,
            missing=missing,
            not_present=0 if part.selected.everything else base.files - before.files,
        )

    def _nothing_there(self, base: PathStatus, pointer: Pointer) -> PathStatus:
        selected = self.selection.get(base.path)
        if pointer.is_dir and not pointer.files and pointer.size == 0 and selected is None:
            return _with(base, missing=1)
        if roots_here(self.repo.store, [root_of(pointer)])[0]:
            return _with(base, missing=base.files or 1)
        return _with(base, not_fetched=True)

    def pushed(self, out: Status) -> None:
        """Count the versions that are here and that no record on the default remote is known to hold."""
        try:
            config = self.repo.remote_config()
        except NotFound:
            config = None
        out.remote = config.name if config else ""
        roots = {n.root: n for n in [*staged(self.repo), *head_history(self.repo)]}
        known = self.repo.confirmed([out.remote]) if config else set()
        waiting = [r for r in roots if r.text not in known and (r.size or r.files)]
        for root, here in zip(waiting, roots_here(self.repo.store, waiting), strict=True):
            if here:
                out.not_pushed += 1
                out.not_pushed_bytes += root.size

    def left_behind(self, tracked: set[bytes]) -> list[bytes]:
        """Data that Git is told to ignore for dvk's sake and that has no pointer here."""
        git = self.repo.workspace.git
        if git is None:
            return []
        paths = excluded_paths(git.common_dir)
        left = [p for p in paths if p not in tracked and is_there(self.repo.root_fd, p)]
        owned = git.tracked_among(left) if left and git.has_program else set()
        return sorted(set(left) - owned)


def _with(base: PathStatus, **changes: int | bool) -> PathStatus:
    return replace(base, **changes)
