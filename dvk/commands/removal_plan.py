"""What a `dvk rm` means, and whether something would be lost by it; worked out before anything is changed.

A file may go when it is exactly what its pointer says, can be brought back from the local store or from a remote whose
record was seen confirmed, and some commit leads to it. What dvk never stored in a folder stays, as with `git rm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.commands.pathwork import above, staged_pointer
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import Look, join_path, look, not_here, pointer_entries, read_unknown
from dvk.commands.versions import head_history
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, Refused, one_or_many
from dvk.events import OnEvent
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names, show
from dvk.store.pages import read_entries
from dvk.store.restore import readable
from dvk.store.root import FOLDER, Root
from dvk.store.roots import ConfirmedRoots
from dvk.workspace.plan import CheckoutPlan, Holds, content_needed, plan_checkout
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected, Selection
from dvk.workspace.statcache import StatCache

_EXAMPLES = 3
_RECENT = 8  # versions of folders that are read to find content again


class Removed(Struct, frozen=True):
    """One path that is no longer tracked. Counts are of files on disk."""

    path: bytes
    kind: str  #: "file" or "dir"
    inside: bytes = b""  #: the tracked folder that it was a part of; empty for a tracked path of its own
    files: int = 0  #: how many files are tracked no longer
    size: int = 0  #: their bytes
    deleted: int = 0  #: files deleted from disk
    kept: int = 0  #: files that stay on disk: with `cached` all of them, else those that were never added


class Target(Struct):
    """A tracked path, or parts of a tracked folder, and what is to happen to the data."""

    path: bytes
    parts: list[bytes] = field(default_factory=list)  #: inside a tracked folder; empty: all of it
    pointer: Pointer | None = None  #: None: it cannot be read, or only the Git index still has it
    plans: list[tuple[bytes, CheckoutPlan | None]] = field(default_factory=list)  #: for each place on disk
    removed: list[Removed] = field(default_factory=list)


class RemovalPlanner:
    """Finds what arguments mean (`targets`) and what may be deleted for it (`judge`). Changes nothing.

    Args:
        cached: nothing on disk is to be deleted.
        force: whatever is there may be deleted.
    """

    def __init__(self, repo: Repo, *, cached: bool, force: bool, on_event: OnEvent) -> None:
        self.repo, self.ws, self.store = repo, repo.workspace, repo.store
        self.cached, self.force, self.on_event = cached, force, on_event
        self.rules = repo.workspace.ignore_rules()
        self.selection = Selection.load(repo.state)

    def targets(self, paths: Sequence[bytes | str], *, recursive: bool) -> list[Target]:
        """What the arguments mean, each tracked path once."""
        found: dict[bytes, Target] = {}
        problems: list[DvkError] = []
        for arg in paths:
            try:
                for path, part in self._meant(self.ws.locate(arg, cwd=self.repo.cwd), recursive=recursive):
                    target = found.setdefault(path, Target(path))
                    target.parts.append(part)
            except DvkError as error:
                problems.append(error)
        for target in found.values():
            # The folder itself takes all of its parts with it, and a directory what is in it.
            parts = set(target.parts)
            target.parts = [] if b"" in parts else sorted(p for p in parts if not above(p) & parts)
            try:
                target.pointer = self._pointer(target)
            except DvkError as error:
                problems.append(error)
        if problems:
            raise one_or_many("some paths cannot be removed; nothing was changed", problems)
        return [found[path] for path in sorted(found)]

    def _meant(self, path: bytes, *, recursive: bool) -> list[tuple[bytes, bytes]]:
        owner = self.ws.owner_of(path)
        if owner is not None:
            return [owner]
        below = [p for p, _ in self.ws.worktree_pointers(under=[path])]
        if below and recursive:
            return [(p, b"") for p in below]
        if below:
            raise Refused(
                f"is not tracked itself; {len(below):,} tracked paths lie in it ({_some(below)})",
                subject=show(path),
                hint=f"`dvk rm -r {show(path)}` removes all of them",
            )
        if staged_pointer(self.repo, path) is not None:
            return [(path, b"")]  # its pointer was removed by other means, or by a run that was killed
        raise NotFound("dvk does not track this", subject=show(path), hint="`dvk ls` lists what it tracks")

    def _pointer(self, target: Target) -> Pointer | None:
        try:
            return self.ws.read_pointer(target.path)
        except NotFound:
            return None
        except FormatError:
            if target.parts or not (self.cached or self.force):
                raise
            return None

    # ------------------------------------------------------------ may it go?

    def judge_all(self, targets: Sequence[Target]) -> None:
        """Judge every target, so that all objections are heard at once.

        Raises:
            DvkError: those of `judge`.
        """
        problems: list[DvkError] = []
        for target in targets:
            try:
                self.judge(target)
            except DvkError as error:
                problems.append(error)
        if problems:
            raise one_or_many("some paths cannot be removed; nothing was changed", problems)

    def judge(self, target: Target) -> None:
        """Work out what to delete.

        Raises:
            Refused: that would lose something.
            NotFound: a part is not in its folder.
        """
        for part in target.parts or [b""]:
            if part and (target.pointer is None or not target.pointer.is_dir):
                raise Refused("a file is tracked under this name", subject=show(target.path))
            self._judge_part(target, part)

    def _judge_part(self, target: Target, part: bytes) -> None:
        where = join_path(target.path, part)
        seen = self._look(target.path, part)
        if seen.hidden and not self.cached:
            raise one_or_many(f"{len(seen.hidden):,} folders in {show(where)} cannot be read", seen.hidden)
        entries = self._entries(target, part, seen)
        if part and not len(entries) and (seen.kind or not self._staged_still(target.path, part)):
            raise self._not_in_folder(target.path, part, seen)
        if not (self.cached or self.force) and target.pointer is not None:
            self._check_committed(target, part)
        stays = len(seen.scan)
        plan = None
        if not self.cached and seen.kind:
            seen = read_unknown(
                self.repo.root_fd,
                seen,
                content_needed(Entries.empty(), seen.scan, seen.known, previous=[entries]),
                on_event=self.on_event,
            )
            plan = plan_checkout(
                Entries.empty(),
                seen.scan,
                known=seen.known,
                ids=seen.ids,
                holds=self._holds(target),
                previous=[entries],
                force=self.force,
                subject=where,
            )
            if plan.conflicts:
                raise self._would_lose(where, seen, entries, plan)
            stays -= len(plan.deletes)
        files, size = entries.files, entries.total_bytes
        if target.pointer is not None and not part:
            files, size = target.pointer.files or 0 if target.pointer.is_dir else 1, target.pointer.size
        deleted = 0
        if plan is not None:
            deleted = int(np.count_nonzero(plan.scan.kinds[plan.deletes] != Kind.EMPTYDIR))
        target.plans.append((part, plan))
        if part:
            kind = "file" if list(entries.names) == [b""] and entries.kinds[0] != Kind.EMPTYDIR else "dir"
        else:
            kind = target.pointer.kind if target.pointer is not None else seen.kind or "file"
        target.removed.append(Removed(where, kind, target.path if part else b"", files, size, deleted, stays))

    def _look(self, path: bytes, part: bytes) -> Look:
        """What is on disk; for a part of a folder the stat cache of the folder is asked."""
        seen = look(self.repo.root_fd, join_path(path, part), self.repo.state, self.rules, on_event=self.on_event)
        cache = StatCache.load(self.repo.state, path) if part and seen.kind else None
        if cache is None:
            return seen
        names = Names.of(part + b"/" + name if name else part for name in seen.scan.names)
        match = cache.match(replace(seen.scan, names=names))
        return replace(seen, known=match.known, ids=match.ids)

    def _entries(self, target: Target, part: bytes, seen: Look) -> Entries:
        """What the pointer says is there, relative to the part."""
        pointer = target.pointer
        if pointer is None:
            return seen.entries() if self.force else Entries.empty()
        if not pointer.is_dir:
            return pointer_entries(self.store, pointer)
        try:
            if part:
                return _relative(pointer_entries(self.store, pointer, Selected((part,))), part)
            return pointer_entries(self.store, pointer, self.selection.get(target.path))
        except DataMissing as error:
            if part:
                raise not_here(target.path, error) from error
            if self.cached or not seen.kind:
                return Entries.empty()
            # Pulled past the store: then the stat cache knows what was written, and that it is still that.
            if self.force or seen.root_id == pointer.id:
                return seen.entries()
            raise not_here(target.path, error) from error

    def _staged_still(self, path: bytes, part: bytes) -> bool:
        """Whether the Git index has a part that the pointer has no more: a run was killed before it could stage."""
        before = staged_pointer(self.repo, path)
        if before is None or not before.is_dir:
            return False
        try:
            return len(pointer_entries(self.store, before, Selected((part,)))) > 0
        except DataMissing:
            return False

    def _not_in_folder(self, path: bytes, part: bytes, seen: Look) -> DvkError:
        where = show(join_path(path, part))
        if seen.kind:
            return Refused(
                f"it was never added to {show(path)}, so there is nothing to stop tracking",
                subject=where,
                hint=f"`rm {where}` deletes it",
            )
        return NotFound("there is no such file or folder", subject=where, hint=f"`dvk ls {show(path)}` lists it")

    def _check_committed(self, target: Target, part: bytes) -> None:
        """Some commit must lead back to what is deleted."""
        pointer = target.pointer
        assert pointer is not None
        root = root_of(pointer)
        committed = [version.root for version in head_history(self.repo)]
        if root in committed or (pointer.is_dir and self._contents_committed(pointer, part, committed)):
            return
        where = show(join_path(target.path, part))
        raise Refused(
            "no commit has this version, so nothing would lead back to its data",
            subject=where,
            hint="commit it first; --cached keeps the data on disk, --force drops it",
        )

    def _contents_committed(self, pointer: Pointer, part: bytes, committed: Sequence[Root]) -> bool:
        """Whether recent versions of folders, taken together, hold every file of a folder or of a part of it.

        Names do not matter: after a `dvk mv` or `dvk rm` that was not committed yet, most of a folder is as it was.
        """
        try:
            left = _contents(pointer_entries(self.store, pointer, Selected((part,)) if part else None))
            for root in list(dict.fromkeys(r for r in committed if r.kind == FOLDER))[:_RECENT]:
                left = np.setdiff1d(left, _contents(read_entries(PageId(root.id), self.store.load_page)))
                if not len(left):
                    return True
        except DataMissing:
            return False
        return not len(left)

    def _holds(self, target: Target) -> Holds:
        """Which contents could be brought back; where a remote has the version, what is as the pointer says."""
        pointer = target.pointer
        if pointer is not None and self._confirmed(root_of(pointer).text):
            return lambda _ids, sizes: np.ones(len(sizes), np.bool_)
        # What is deleted here may be the only other copy: what the store holds is read back before it counts.
        return lambda ids, sizes: readable(self.store, ids, sizes, on_event=self.on_event)

    def _confirmed(self, root: str) -> bool:
        """Whether a remote is known to hold a version, for this clone has seen its record confirmed."""
        for name in self.ws.config.remotes():
            store = self.repo.known_store_id(name)
            if store and root in ConfirmedRoots(self.repo.remotes_state, store).read():
                return True
        return False

    def _rotten(self, seen: Look) -> str:
        """What to say of a file that the store claims to hold."""
        if not self.store.holds(seen.ids, seen.scan.stats.sizes).all():
            return ""
        return ": the copy in its store is damaged, and `dvk repair` mends it from this file"

    def _would_lose(self, where: bytes, seen: Look, entries: Entries, plan: CheckoutPlan) -> Refused:
        if seen.kind == "file":
            changed = len(entries) != 1 or not bool((seen.ids == entries.ids).all())
            what = (
                "it was changed since the last `dvk add`"
                if changed
                else f"neither this clone nor a remote that it knows holds the data{self._rotten(seen)}"
            )
        else:
            names = ", ".join(c.subject for c in plan.conflicts[:_EXAMPLES])
            more = ", ..." if len(plan.conflicts) > _EXAMPLES else ""
            what = f"{len(plan.conflicts):,} of its files could not be brought back ({names}{more})"
        return Refused(
            what,
            subject=show(where),
            hint="`dvk add` keeps it as a version, --cached leaves it on disk, --force deletes it",
        )


def _contents(entries: Entries) -> npt.NDArray[np.bytes_]:
    """The ids of the files, each once, as 32 bytes each."""
    ids = np.ascontiguousarray(entries.ids[entries.is_file & (entries.sizes > 0)])
    return np.unique(ids.reshape(-1).view("S32"))


def _relative(entries: Entries, part: bytes) -> Entries:
    """The entries at and below `part` as they are called from there; that of `part` itself is b""."""
    cut = len(part) + 1
    return replace(entries, names=Names.of(name[cut:] for name in entries.names))


def _some(paths: Sequence[bytes]) -> str:
    return ", ".join(show(p) for p in paths[:_EXAMPLES]) + (", ..." if len(paths) > _EXAMPLES else "")
