"""What of a tracked folder is meant, when only a part of it is here: the part that was asked for, and what is new.

A clone pulled `val` of a folder with `train` and `val`. That `train/1.jpg` is not on disk says nothing; that
`val/7.jpg` is not says that it was deleted; `train/new.jpg` on disk is new, and from now on part of what is here. An
empty directory `train` is only the place where files that are not here would be. A file called `train` cannot become
part of the folder, since files that are not here lie below that name.

    part = plan_part(store, b"images", pointer, b"", names, kinds, selected)
    part.before                  # the entries that the names on disk are compared with: missing ones were deleted
    part.keep                    # which names on disk are entries
    part.selected                # what is asked for once these are recorded

`add` and `status` ask here, so that one records what the other showed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.commands.pathwork import above
from dvk.commands.tracked import join_path, read_parts
from dvk.errors import DataMissing, DvkError, Refused, one_or_many
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8, Names, same_rows, show, windows
from dvk.store.pages import ListKind, leaf_refs, load_leaf
from dvk.store.store import Store
from dvk.workspace.align import align
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected, normal_prefixes

Mask = npt.NDArray[np.bool_]


class Part(Struct, frozen=True):
    """A folder, or what lies at one path in it, as it was recorded and as it is asked for.

    Attributes:
        before: recorded entries that were asked for, or that something on disk stands for.
        keep: bool[n], which of the names on disk are entries.
        selected: what is asked for, with what is new on disk.
    """

    before: Entries
    keep: Mask
    selected: Selected


def plan_part(
    store: Store, path: bytes, pointer: Pointer, inner: bytes, names: Names, kinds: U8, selected: Selected
) -> Part:
    """Find out what the names on disk are compared with.

    Args:
        inner: look only at what lies at this path inside the folder; b"" for all.
        names, kinds: what is on disk there, with names as the folder has them.

    Raises:
        Refused: something on disk takes a name that files which are not here need.
        DataMissing: pages that are needed are not in the store.
    """
    root = PageId(pointer.id)
    before = read_parts(store, root, _within(selected, inner))
    keep = np.ones(len(names), np.bool_)
    if selected.everything:
        return Part(before, keep, selected)
    new = np.flatnonzero(align(names, before.names) < 0)
    if not len(new):
        return Part(before, keep, selected)
    fresh = list(names.take(new))
    hidden = _Hidden(store, root, selected, known_dirs={d for name in before.names for d in above(name)})
    problems: list[DvkError] = []
    for i, name in zip(new.tolist(), fresh, strict=True):
        try:
            below = hidden.below(name)
            if below is not None and kinds[i] == Kind.EMPTYDIR:
                keep[i] = False
            elif below is not None:
                problems.append(_takes_the_place(path, name, below))
            else:
                problems += [_takes_the_place(path, name, d) for d in above(name) if hidden.has(d)]
        except DataMissing as error:
            where = show(join_path(path, name))
            raise DataMissing(
                f"it is not known here what the folder has at this place ({error.message})",
                subject=where,
                hint=f"`dvk fetch {where}` brings that part of the list of files",
            ) from error
    if problems:
        raise one_or_many(f"some names in {show(path)} are taken by files that are not here", problems)
    outside = [name for i, name in zip(new.tolist(), fresh, strict=True) if keep[i] and not selected.covers_one(name)]
    if not outside:
        return Part(before, keep, selected)
    wider = Selected(normal_prefixes({*(selected.prefixes or ()), *outside}))
    return Part(read_parts(store, root, _within(wider, inner)), keep, wider)


def _within(selected: Selected, inner: bytes) -> tuple[bytes, ...]:
    """The paths that were asked for at and below `inner`."""
    if selected.prefixes is None or selected.covers_one(inner):
        return (inner,)
    return tuple(p for p in selected.prefixes if not inner or p.startswith(inner + b"/"))


class _Hidden:
    """Looks for entries that were not asked for, and loads no page that only they are on if it can be helped."""

    def __init__(self, store: Store, root: PageId, selected: Selected, *, known_dirs: set[bytes]) -> None:
        self._store, self._selected, self._known_dirs = store, selected, known_dirs
        self._refs = list(leaf_refs(ListKind.LISTING, root, store.load_page))
        self._firsts = [ref.first for ref in self._refs]
        self._leaves: dict[int, Entries] = {}
        self._files: dict[bytes, bool] = {}

    def below(self, directory: bytes) -> bytes | None:
        """The name of some entry below `directory`."""
        first = directory + b"/"
        start = self._page_of(first)
        # What lies below begins with a slash after the name, and b"0" is the byte after that.
        for i in range(start, max(bisect_left(self._firsts, directory + b"0"), start + 1)):
            if self._firsts[i].startswith(first) and not self._selected.covers_one(self._firsts[i]):
                return self._firsts[i]
            names = self._leaf(i).names
            names = names.slice(*names.under(directory))
            at = np.flatnonzero(~self._selected.covers(names))
            if len(at):
                return names[int(at[0])]
        return None

    def has(self, name: bytes) -> bool:
        """Whether a file or link of that name is an entry; the entry of an empty directory gives way."""
        if name in self._known_dirs or self._selected.covers_one(name):
            return False
        if name not in self._files:
            leaf = self._leaf(self._page_of(name))
            at = leaf.names.find(name)
            self._files[name] = at < len(leaf) and leaf.names[at] == name and leaf.kinds[at] != Kind.EMPTYDIR
        return self._files[name]

    def _page_of(self, name: bytes) -> int:
        return max(bisect_right(self._firsts, name) - 1, 0)

    def _leaf(self, i: int) -> Entries:
        if i not in self._leaves:
            leaf = load_leaf(ListKind.LISTING, self._refs[i], self._store.load_page)
            assert isinstance(leaf, Entries)
            self._leaves[i] = leaf
        return self._leaves[i]


def _takes_the_place(path: bytes, name: bytes, hidden: bytes) -> Refused:
    return Refused(
        f"has a name that the folder needs for {show(hidden)}, which is not here",
        subject=show(join_path(path, name)),
        hint=f"rename it, or first take the other out of the folder: `dvk rm {show(join_path(path, hidden))}`",
    )


def changed_entries(before: Entries, now: Entries) -> I64:
    """Positions in `now` of entries that are new or different."""
    return _changed(before, now, align(now.names, before.names))


def _changed(before: Entries, now: Entries, at: I64) -> I64:
    """As `changed_entries`, where the names of `now` stand `at` these positions in `before`, -1 for none."""
    same = at >= 0
    for run in windows(len(at)):
        rows = np.flatnonzero(same[run]) + run.start
        then = at[rows]
        equal = (now.kinds[rows] == before.kinds[then]) & (now.sizes[rows] == before.sizes[then])
        same[rows] = equal & same_rows(now.ids, rows, before.ids, then)
    links = np.flatnonzero(same & (now.kinds == Kind.LINK))
    if len(links):
        ours, theirs = np.cumsum(now.kinds == Kind.LINK) - 1, np.cumsum(before.kinds == Kind.LINK) - 1
        for i in links.tolist():
            same[i] = now.targets[int(ours[i])] == before.targets[int(theirs[at[i]])]
    return np.flatnonzero(~same)


def gone_names(before: Entries, now: Entries) -> Iterator[bytes]:
    """Names of `before` that `now` has no more."""
    return iter(before.names.take(np.flatnonzero(align(before.names, now.names) < 0)))


def compare(before: Entries, now: Entries) -> tuple[int, int, int]:
    """How many entries were added, modified and removed."""
    if before is now:
        return 0, 0, 0
    if not len(before):  # a first add, where copies of a million names would be most of its memory
        return len(now), 0, 0
    at = align(now.names, before.names)
    changed = _changed(before, now, at)
    modified = int(np.count_nonzero(at[changed] >= 0))
    removed = len(before) - int(np.count_nonzero(at >= 0))
    return len(changed) - modified, modified, removed
