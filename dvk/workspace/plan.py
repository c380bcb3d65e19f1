"""What a checkout has to do to one tracked path, worked out from columns, touching nothing.

The folder's pointer now says v1; on disk lies v2 with two files edited by hand. Writing must not destroy
the only copy of those edits, so whatever is replaced or deleted is content that the store holds; the
rest is a conflict, named, and left as it is. Deciding here, on records, keeps the part that writes simple
and lets `--dry-run` print the same decisions.

    plan = plan_checkout(target, scan, known=match.known, ids=match.ids, holds=store_holds)
    restore(content, plan.ids, plan.sizes, sink)      # sink writes what plan.write lists, by number
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.errors import DvkError, Refused
from dvk.ids import ID_BYTES
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8, Names, same_rows, show
from dvk.workspace.align import align
from dvk.workspace.stats import Scan

Mask = npt.NDArray[np.bool_]

#: For ids (uint8[n, 32]) and sizes (int64[n]) whether a store holds each: bool[n].
Holds = Callable[[U8, I64], Mask]

_BLOCK = 4096
_IN_FLIGHT = 4  # big files that are written at the same time, at most


class CheckoutPlan(Struct, frozen=True):
    """What to do with the entries of `target`, and with what `scan` found in their place.

    `write`, `links`, `modes` and `mkdirs` are positions in `target`; `deletes` are positions in `scan`.

    Attributes:
        write: int64[k], files whose content is to be written.
        expected: int64[k], for each of these what is there now, a position in `scan`, or -1 for nothing.
        replaced_ids: uint8[k, 32], for each of these the id of the file that is there now; zeros for none, or where it
            is not known.
        links: links to make; `links_expected` as above.
        modes: files of which only the executable bit differs; `modes_expected` as above.
        mkdirs: empty directories to make.
        deletes: files, links and empty directories to remove.
        stay: bool[m], entries that are as they should be.
        stay_at: int64[m], where in `scan` such an entry is, else -1.
        conflicts: what is in the way and not dvk's to remove, one error each; nothing is done about these.
    """

    target: Entries
    scan: Scan
    write: I64
    expected: I64
    replaced_ids: U8
    links: I64
    links_expected: I64
    modes: I64
    modes_expected: I64
    mkdirs: I64
    deletes: I64
    stay: Mask
    stay_at: I64
    conflicts: tuple[DvkError, ...]

    @property
    def ids(self) -> U8:
        """uint8[k, 32], the ids of what is written."""
        return self.target.ids[self.write]

    @property
    def sizes(self) -> I64:
        """int64[k], the sizes of what is written."""
        return self.target.sizes[self.write]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(map(len, (self.write, self.links, self.modes, self.mkdirs, self.deletes)))

    @property
    def needed_bytes(self) -> int:
        """Free space that the checkout needs at its worst moment, whatever the order of writing."""
        new = -(-self.sizes // _BLOCK) * _BLOCK
        old = np.where(self.expected >= 0, self.scan.stats.sizes[self.expected], 0) if len(self.scan) else new * 0
        growth = int(np.maximum(new - old, 0).sum(dtype=np.float64))
        both = np.sort(np.minimum(new, old))[-_IN_FLIGHT:]  # the new one is written beside the old one
        freed = int(self.scan.stats.sizes[self.deletes].sum())
        return max(0, growth + int(both.sum()) - freed)


def content_needed(target: Entries, scan: Scan, known: Mask, *, previous: Sequence[Entries] = ()) -> I64:
    """Which files of `scan` the caller has to hash before `plan_checkout` can decide about them.

    Files whose id is not known and that `target` wants to have a content of, or that `previous` put there.
    Returns positions in `scan`.
    """
    unknown = np.flatnonzero(~known & (scan.kinds != Kind.LINK) & (scan.kinds != Kind.EMPTYDIR))
    if not len(unknown):
        return unknown
    names = scan.names.take(unknown)
    wanted = align(names, target.names) >= 0
    for version in previous:
        wanted |= align(names, version.names) >= 0
    return unknown[wanted]


def plan_checkout(
    target: Entries,
    scan: Scan,
    *,
    known: Mask,
    ids: U8,
    holds: Holds,
    previous: Sequence[Entries] = (),
    selected: Mask | None = None,
    collisions: Sequence[tuple[bytes, bytes]] = (),
    force: bool = False,
    subject: bytes = b"",
) -> CheckoutPlan:
    """Work out how to bring what `scan` saw in step with `target`. Changes nothing.

    Args:
        target: the m entries that should be there.
        scan: the n entries that are there.
        known, ids: bool[n], uint8[n, 32]: the ids of what is there. Unknown content is a conflict.
        holds: tells which contents could be brought back from a store.
        previous: the versions that dvk put there last, as far as known: one, or more after a run that was killed
            on its way to another. What of them is not in `target` is deleted when it is as one of them had it, and
            held. Without them nothing is deleted: a file that is not in `target` may be the user's own.
        selected: bool[m], entries that this worktree asked for; the others are left alone.
        collisions: pairs of paths that this filesystem takes for one (see `probe.find_folded`):
            neither is written, nor anything below them.
        force: replace and delete content that no store holds as well.
        subject: path of the folder, for messages.
    """
    return _Planner(target, scan, known, ids, holds, previous, force, subject).plan(selected, collisions)


class _Planner:
    def __init__(
        self,
        target: Entries,
        scan: Scan,
        known: Mask,
        ids: U8,
        holds: Holds,
        previous: Sequence[Entries],
        force: bool,
        subject: bytes,
    ) -> None:
        self.target, self.scan, self.known, self.ids = target, scan, known, ids
        self.previous, self.force, self.subject = previous, force, subject
        self.conflicts: list[DvkError] = []
        self.scan_file = (scan.kinds == Kind.FILE) | (scan.kinds == Kind.EXEC)
        self.holds = holds
        self._held = np.zeros(len(scan), np.bool_)
        self._asked = ~(self.scan_file & known)  # of the rest no store can say anything

    def plan(self, selected: Mask | None, collisions: Sequence[tuple[bytes, bytes]]) -> CheckoutPlan:
        target, scan = self.target, self.scan
        m, n = len(target), len(scan)
        wanted = np.ones(m, np.bool_) if selected is None else selected.copy()
        self.exclude_collisions(wanted, collisions)
        place = align(target.names, scan.names)
        here = place >= 0
        stay, modes = self.compare(place, here & wanted)
        todo = wanted & ~stay & ~modes

        matched = np.zeros(n, np.bool_)
        matched[place[here]] = True
        deletable = self.deletable(np.flatnonzero(~matched))
        deletes = self.plan_deletes(matched, deletable)

        # What stands in the place of a wanted entry, by the same name.
        replaced = np.flatnonzero(todo & here)
        at = place[replaced]
        fine = self.replaceable(at)
        for i in at[~fine].tolist():
            self.keep(i, "would be overwritten")
        todo[replaced[~fine]] = False
        emptied = at[fine & (scan.kinds[at] == Kind.EMPTYDIR)]
        deletes[emptied] = True
        place = place.copy()
        place[np.isin(place, emptied)] = -1

        self.clear_the_way(todo, matched, deletes, deletable)

        kinds = target.kinds
        write = np.flatnonzero(todo & ((kinds == Kind.FILE) | (kinds == Kind.EXEC)))
        links = np.flatnonzero(todo & (kinds == Kind.LINK))
        mode_at = np.flatnonzero(modes)
        mkdirs = np.flatnonzero(todo & (kinds == Kind.EMPTYDIR))
        # A file where an empty directory should be goes first; making the directory needs it gone.
        blocking = place[mkdirs]
        deletes[blocking[blocking >= 0]] = True
        expected = place[write]
        replaced_ids = np.zeros((len(write), ID_BYTES), np.uint8)
        old = np.flatnonzero((expected >= 0) & self.scan_file[expected] & self.known[expected]) if n else expected[:0]
        replaced_ids[old] = self.ids[expected[old]]
        return CheckoutPlan(
            target=target,
            scan=scan,
            write=write,
            expected=expected,
            replaced_ids=replaced_ids,
            links=links,
            links_expected=place[links],
            modes=mode_at,
            modes_expected=place[mode_at],
            mkdirs=mkdirs,
            deletes=np.flatnonzero(deletes),
            stay=stay,
            stay_at=np.where(stay, place, -1),
            conflicts=tuple(self.conflicts),
        )

    def compare(self, place: I64, look: Mask) -> tuple[Mask, Mask]:
        """Which entries are right as they are, and which but for the executable bit."""
        target, scan = self.target, self.scan
        stay = np.zeros(len(target), np.bool_)
        modes = np.zeros(len(target), np.bool_)
        rows = np.flatnonzero(look)
        at = place[rows]
        kinds, now = target.kinds[rows], scan.kinds[at]
        is_file = (kinds == Kind.FILE) | (kinds == Kind.EXEC)
        same = is_file & self.scan_file[at] & self.known[at] & (scan.stats.sizes[at] == target.sizes[rows])
        same[same] = same_rows(self.ids, at[same], target.ids, rows[same])
        stay[rows[same & (kinds == now)]] = True
        modes[rows[same & (kinds != now)]] = True
        stay[rows[(kinds == Kind.EMPTYDIR) & (now == Kind.EMPTYDIR)]] = True
        both = np.flatnonzero((kinds == Kind.LINK) & (now == Kind.LINK))
        if len(both):
            theirs, ours = _link_numbers(target.kinds), _link_numbers(scan.kinds)
            for i, j in zip(rows[both].tolist(), at[both].tolist(), strict=True):
                stay[i] = target.targets[int(theirs[i])] == scan.targets[int(ours[j])]
        return stay, modes

    def held(self, at: I64) -> Mask:
        """For positions of the scan whether a store could bring back what is there. Asked for each once."""
        rows = at[~self._asked[at]]
        if len(rows):
            self._held[rows] = self.holds(self.ids[rows], self.scan.stats.sizes[rows])
            self._asked[rows] = True
        return self._held[at]

    @cached_property
    def unchanged_links(self) -> Mask:
        """bool[n]: links that are as some previous version had them."""
        scan = self.scan
        out = np.zeros(len(scan), np.bool_)
        rows = np.flatnonzero(scan.kinds == Kind.LINK)
        if not len(rows):
            return out
        names, ours = scan.names.take(rows), _link_numbers(scan.kinds)
        for version in self.previous:
            before, theirs = align(names, version.names), _link_numbers(version.kinds)
            for i, j in zip(rows.tolist(), before.tolist(), strict=True):
                if j >= 0 and version.kinds[j] == Kind.LINK:
                    out[i] |= scan.targets[int(ours[i])] == version.targets[int(theirs[j])]
        return out

    def replaceable(self, at: I64) -> Mask:
        """For positions of the scan whether what is there may be replaced by another version."""
        if self.force or not len(at):
            return np.ones(len(at), np.bool_)
        empty = self.scan.kinds[at] == Kind.EMPTYDIR
        fine: Mask = empty.copy()
        if not empty.all():
            fine |= self.held(at) | self.unchanged_links[at]
        return fine

    def deletable(self, among: I64) -> Mask:
        """bool[n]: what of `among`, positions in the scan, dvk put there, unchanged since, and could bring back."""
        scan = self.scan
        out = np.zeros(len(scan), np.bool_)
        empty = np.zeros(len(scan), np.bool_)
        if not len(among):
            return out
        names = scan.names.take(among)
        for version in self.previous:
            place = align(names, version.names)
            there, before = among[place >= 0], place[place >= 0]
            file = self.scan_file[there] & self.known[there] & version.is_file[before]
            rows, before = there[file], before[file]
            out[rows[same_rows(self.ids, rows, version.ids, before)]] = True
            empty[there[scan.kinds[there] == Kind.EMPTYDIR]] = True
        ours = np.flatnonzero(out)
        out[ours] = self.held(ours)
        return out | self.unchanged_links | empty

    def plan_deletes(self, matched: Mask, deletable: Mask) -> Mask:
        """bool[n]: what was there before and should be no more."""
        deletes = np.zeros(len(self.scan), np.bool_)
        gone = np.flatnonzero(~matched)
        names = self.scan.names.take(gone)
        ours = np.zeros(len(gone), np.bool_)
        for version in self.previous:
            ours |= align(names, version.names) >= 0
        # What is left of a directory of a version before, when a run ended after the files and before the directory.
        for i in np.flatnonzero(~ours & (self.scan.kinds[gone] == Kind.EMPTYDIR)).tolist():
            if not _has_below(self.target, names[i]) and any(_has_below(v, names[i]) for v in self.previous):
                deletes[gone[i]] = True
        gone = gone[ours]
        for i in gone[~deletable[gone]].tolist():
            if not self.force:
                self.keep(i, "is no longer part of this version and would be deleted")
        deletes[gone if self.force else gone[deletable[gone]]] = True
        return deletes

    def clear_the_way(self, todo: Mask, matched: Mask, deletes: Mask, deletable: Mask) -> None:
        """Where a directory is wanted and a file stands, or the other way round: delete or give up."""
        target, scan = self.target, self.scan
        rows = np.flatnonzero(todo)
        if not len(rows) or not len(scan):
            return
        names = target.names.take(rows)
        wanted_dirs = _directories(names)
        for i in np.flatnonzero(~matched & (scan.kinds != Kind.EMPTYDIR)).tolist():
            name = scan.names[i]
            if name not in wanted_dirs or deletes[i]:
                continue
            if deletable[i] or self.force:
                deletes[i] = True
            else:
                self.keep(i, "stands where a directory of this version should be")
                start, stop = target.names.under(name)
                todo[start:stop] = False
        # A wanted file must not be where a directory with other things is.
        present_dirs = _directories(scan.names)
        present_dirs.update(scan.names[i] for i in np.flatnonzero(~matched & (scan.kinds == Kind.EMPTYDIR)).tolist())
        if not present_dirs:
            return
        for i, name in zip(rows.tolist(), names, strict=True):
            if name not in present_dirs or target.kinds[i] == Kind.EMPTYDIR or not todo[i]:
                continue
            start, stop = scan.names.under(name)
            left = [k for k in range(start, stop) if not (deletes[k] or deletable[k] or self.force)]
            if left:
                todo[i] = False
                self.keep(left[0], f'is in the directory that stands where "{show(name)}" should be')
            else:
                deletes[start:stop] = True

    def exclude_collisions(self, wanted: Mask, collisions: Sequence[tuple[bytes, bytes]]) -> None:
        names = self.target.names
        for pair in collisions:
            for path, other in (pair, pair[::-1]):
                self.conflicts.append(
                    Refused(
                        f'is the same name as "{show(other)}" for this filesystem; neither is written',
                        subject=show(self.full(path)),
                        hint="rename one of them in a checkout on a filesystem that tells them apart",
                    )
                )
                at = names.find(path)
                if at < len(names) and names[at] == path:
                    wanted[at] = False
                start, stop = names.under(path)
                wanted[start:stop] = False

    def keep(self, i: int, why: str) -> None:
        """Name entry `i` of the scan as one that stays although it is in the way."""
        if self.scan_file[i] and not self.known[i]:
            reason = "its content was not read"
        elif self.scan_file[i] and self.held(np.array([i]))[0]:
            reason = "it was changed here"
        else:
            reason = "the store does not hold it"
        self.conflicts.append(
            Refused(
                f"{why}, but {reason}: left as it is",
                subject=show(self.full(self.scan.names[i])),
                hint="`dvk add` keeps it as a version; --force drops it",
            )
        )

    def full(self, name: bytes) -> bytes:
        return self.subject + b"/" + name if self.subject and name else self.subject or name


def _link_numbers(kinds: U8) -> I64:
    """For each entry that is a link, its number among the links."""
    numbers: I64 = np.cumsum(kinds == Kind.LINK) - 1
    return numbers


def _has_below(entries: Entries, directory: bytes) -> bool:
    start, stop = entries.names.under(directory)
    return start < stop


def _directories(names: Names) -> set[bytes]:
    """Every directory on the way to one of `names`."""
    out: set[bytes] = set()
    for directory in {name.rpartition(b"/")[0] for name in names}:
        while directory and directory not in out:
            out.add(directory)
            directory = directory.rpartition(b"/")[0]
    return out
