"""Writing paged lists: where pages end, a whole list from batches of entries, and a changed folder from an old one.

docs/format/pages.md is the truth about where pages end; `dvk.store.pages` knows what a page is and reads lists.

>>> pages = {}
>>> writer = ListWriter(ListKind.RECIPE, lambda i, data: pages.update({i: data}))
>>> writer.add(Chunks(np.zeros((2, 32), np.uint8), np.array([5, 6], np.uint32)))
>>> root = writer.finish()
>>> read_recipe(root.id, pages.__getitem__).lengths.tolist(), root.total_bytes
([5, 6], 11)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from dvk.ids import PageId
from dvk.store.listing import Entries, Kind, merge_entries
from dvk.store.names import I64, windows
from dvk.store.pages import (
    FULL_PAGE_BYTES,
    MAX_ENTRIES,
    MIN_ENTRIES,
    PAGE_HEADER,
    Body,
    Children,
    Chunks,
    Emit,
    ListKind,
    Load,
    PageRef,
    format_page,
    leaf_refs,
    load_leaf,
    page_id,
)

_CUT_BELOW = (1 << 64) // 2048
_SLASH = ord("/")


def _costs(body: Body, kind: ListKind) -> I64:
    """Bytes that each entry takes on a page."""
    if isinstance(body, Entries):
        links = np.where(body.kinds == Kind.LINK, body.sizes, 0)
        return body.names.lengths + 43 + links
    if isinstance(body, Chunks):
        return np.full(len(body), 36, np.int64)
    extra = 58 if kind is ListKind.LISTING else 48
    return np.array([extra + len(r.first) for r in body.refs], np.int64)


def _ends(body: Body) -> npt.NDArray[np.bool_]:
    """Whether a page may end after each entry (rule 1, without the minimum)."""
    if isinstance(body, Entries):
        h = xxhash.xxh3_64_intdigest
        return np.fromiter((h(x) < _CUT_BELOW for x in body.names), np.bool_, len(body))
    if isinstance(body, Chunks):
        first = np.ascontiguousarray(body.ids[:, :8]).view(">u8").reshape(-1)
        return np.asarray(first < _CUT_BELOW)
    return np.array([int.from_bytes(r.id[:8], "big") < _CUT_BELOW for r in body.refs], np.bool_)


def cut_points(costs: I64, ends: npt.NDArray[np.bool_], *, final: bool) -> list[int]:
    """Where pages end, as exclusive positions; what follows the last one waits for more entries unless `final`."""
    n = len(costs)
    total = np.concatenate([[0], np.cumsum(costs)])
    candidates = np.flatnonzero(ends)
    cuts: list[int] = []
    start = 0
    while start < n:
        stop = start + MAX_ENTRIES
        at = int(np.searchsorted(candidates, start + MIN_ENTRIES - 1))
        if at < len(candidates):
            stop = min(stop, int(candidates[at]) + 1)
        full = FULL_PAGE_BYTES - PAGE_HEADER.size + int(total[start])
        stop = min(stop, int(np.searchsorted(total, full)))
        if stop > n:
            break
        cuts.append(stop)
        start = stop
    if final and (not cuts or cuts[-1] < n or n == 0):
        cuts.append(n)
    return cuts


class ListWriter:
    """Builds a paged list from batches of entries in order; holds one page and one batch, never the list."""

    def __init__(self, kind: ListKind, emit: Emit, *, level: int = 0) -> None:
        self.kind, self.level = kind, level
        self._emit = emit
        self._waiting: list[Body] = []
        self._waiting_count = 0
        self._refs: list[PageRef] = []

    def add(self, batch: Body) -> None:
        """Append entries."""
        if not len(batch):
            return
        self._waiting.append(batch)
        self._waiting_count += len(batch)
        if self._waiting_count >= 2 * MAX_ENTRIES:
            self._cut(final=False)

    def settle(self) -> bool:
        """Cut what is certain; True when nothing waits, so that whole old pages may follow by `adopt`."""
        self._cut(final=False)
        return not self._waiting_count

    def adopt(self, ref: PageRef) -> None:
        """Append a whole page that exists already and began at the same entry. Only when `settle` said so."""
        self._refs.append(ref)

    def _cut(self, *, final: bool) -> None:
        if not self._waiting and not final:
            return
        body: Body
        if not self._waiting:
            if self._refs:
                return
            body = Entries.empty() if self.kind is ListKind.LISTING else Chunks.join([])
        else:
            body = type(self._waiting[0]).join(self._waiting)  # type: ignore[arg-type]
        start = 0
        for stop in cut_points(_costs(body, self.kind), _ends(body), final=final):
            self._page(body.slice(start, stop))
            start = stop
        rest = body.slice(start, len(body))
        self._waiting = [rest] if len(rest) else []
        self._waiting_count = len(rest)

    def _page(self, body: Body) -> None:
        data = format_page(self.kind, self.level, body)
        name = page_id(self.kind, data)
        self._emit(name, data)
        _, _, _, _, _, _, _, entries, files, total = PAGE_HEADER.unpack_from(data)
        first = b""
        if self.kind is ListKind.LISTING and len(body):
            first = body.names[0] if isinstance(body, Entries) else body.refs[0].first  # type: ignore[union-attr]
        self._refs.append(PageRef(name, entries, files, total, first))

    def finish(self) -> PageRef:
        """Write the rest and the levels above; the root."""
        self._cut(final=True)
        if len(self._refs) == 1:
            return self._refs[0]
        above = ListWriter(self.kind, self._emit, level=self.level + 1)
        above.add(Children(tuple(self._refs)))
        return above.finish()


def write_listing(entries: Entries, emit: Emit) -> PageRef:
    """The listing of a whole folder."""
    writer = ListWriter(ListKind.LISTING, emit)
    for run in windows(len(entries)):
        writer.add(entries.slice(run.start, run.stop))
    return writer.finish()


# ---------------------------------------------------------------- editing


def edit_listing(root: PageId, load: Load, emit: Emit, *, put: Entries, remove: Sequence[bytes]) -> PageRef:
    """A new version of a folder in which `put` are set and `remove` are gone; loads and writes only pages around them.

    A name in `remove` takes out the entry of that name and everything below it (b"": everything), before `put` is set.
    An entry that is put below a directory replaces an entry of that directory's own; what is put in the place of a
    directory with content needs that name in `remove` too.

    Raises:
        DataMissing: from `load`, when a page that must change is not here.
    """
    refs = list(leaf_refs(ListKind.LISTING, root, load))
    from_edits = _Edits(put, remove, [r.first for r in refs])
    writer = ListWriter(ListKind.LISTING, emit)
    settled = True
    for i, ref in enumerate(refs):
        low = ref.first if i else b""
        high = refs[i + 1].first if i + 1 < len(refs) else None
        touched = from_edits.touches(low, high)
        if settled and not touched:
            writer.adopt(ref)
            continue
        entries = load_leaf(ListKind.LISTING, ref, load)
        assert isinstance(entries, Entries)
        after = from_edits.apply(entries, low, high)
        if settled and after is entries:
            writer.adopt(ref)
            continue
        writer.add(after)
        settled = writer.settle()
    return writer.finish()


class _Edits:
    """Changes to a listing: entries to set, and names to take out with all that lies below them."""

    def __init__(self, put: Entries, remove: Sequence[bytes], firsts: Sequence[bytes]) -> None:
        self.put = put
        self.remove = sorted(set(remove))
        self._gone = set(remove)
        # An entry below a directory takes the place of that directory's own entry, which says that it is empty.
        # Where a page begins below it, it is not empty and has none.
        parents = {d for name in put.names for d in _parents(name)}
        self.parents = sorted(d for d in parents if not _begins_below(firsts, d))

    def _range(self, low: bytes, high: bytes | None) -> tuple[int, int]:
        start = self.put.names.find(low) if low else 0
        return start, len(self.put) if high is None else self.put.names.find(high)

    def _removed(self, low: bytes, high: bytes | None) -> list[bytes]:
        start = bisect_left(self.remove, low)
        stop = len(self.remove) if high is None else bisect_left(self.remove, high)
        # A directory that is removed may start before this page and reach into it: then `low` begins with its name.
        reaching = [low[:k] for k in range(len(low)) if low[:k] in self._gone and (not k or low[k] <= _SLASH)]
        return reaching + self.remove[start:stop]

    def _replaced(self, low: bytes, high: bytes | None) -> list[bytes]:
        start = bisect_left(self.parents, low)
        return self.parents[start : len(self.parents) if high is None else bisect_left(self.parents, high)]

    def touches(self, low: bytes, high: bytes | None) -> bool:
        a, b = self._range(low, high)
        return b > a or bool(self._removed(low, high)) or bool(self._replaced(low, high))

    def apply(self, entries: Entries, low: bytes, high: bytes | None) -> Entries:
        a, b = self._range(low, high)
        keep = np.ones(len(entries), np.bool_)
        for name in self._removed(low, high):
            start, stop = entries.names.under(name)
            keep[start:stop] = False
            _drop(entries, name, keep)
        for name in self._replaced(low, high):
            _drop(entries, name, keep)
        rest = entries if keep.all() else entries.take(np.flatnonzero(keep))
        return merge_entries(rest, self.put.slice(a, b)) if b > a else rest


def _parents(name: bytes) -> Iterator[bytes]:
    while name := name.rpartition(b"/")[0]:
        yield name


def _begins_below(firsts: Sequence[bytes], directory: bytes) -> bool:
    at = bisect_left(firsts, directory + b"/")
    return at < len(firsts) and firsts[at].startswith(directory + b"/")


def _drop(entries: Entries, name: bytes, keep: npt.NDArray[np.bool_]) -> None:
    at = entries.names.find(name)
    if at < len(entries) and entries.names[at] == name:
        keep[at] = False
