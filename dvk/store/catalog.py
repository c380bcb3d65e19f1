"""Which packs a store has, and in which of them an id stands: index segments, footers, and what to do when they fail.

Other processes add packs, merge segments and collect garbage at any time, and a disk may damage an index, so nothing
here is believed for good: packs that no segment covers are read from their footers, a damaged segment counts as none,
what vanished is looked for again, and a hit counts only once the footer says so too.

>>> catalog = Catalog(MemoryBackend())                     # doctest: +SKIP
>>> for hit in catalog.hits(ids): ...                      # doctest: +SKIP
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError
from dvk.ids import ID_BYTES
from dvk.store import pack as packs
from dvk.store.index import MERGE_FAN_IN, Segment, Table, format_segment, is_checked, parse_segment, prefixes
from dvk.store.names import I64, U8
from dvk.store.pack import TRAILER, Footer, PackKind, pack_key
from dvk.timings import Stage, stage

Index = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_FOOTER_CACHE_BYTES = 64 << 20
_MAX_SEGMENT_BYTES = 1 << 40
_SEGMENT_KEY = re.compile(r"i/[0-9]{1,2}-[0-9a-f]{32}")
_PACK_KEY = re.compile(r"[pm]/([0-9a-f]{2})/(\1[0-9a-f]{62})")


@dataclass(frozen=True, slots=True)
class Hit:
    """Ids that stand in one pack: `which` int[k] of those asked for, `rows` int64[k] of the footer."""

    name: bytes
    kind: PackKind
    footer: Footer
    which: Index
    rows: I64


#: Says which rows of a footer will do: (kind, footer, which, rows) -> bool[k].
Accept = Callable[[PackKind, Footer, Index, I64], Mask]


class Catalog:
    """The packs of one backend. Safe to use from many threads; other processes may change the store at any time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self._lock = threading.RLock()
        self._segments: list[tuple[str, Segment]] = []  # key ("" while not written) and segment
        self._covered: set[bytes] = set()  # packs in `_segments`
        self._footers: OrderedDict[bytes, Footer] = OrderedDict()
        self._footer_bytes = 0
        self._unverified: set[str] = set()  # segments too big for their checksum to be verified on every start
        self._bad_segments: set[str] = set()
        self._damaged: dict[bytes, DvkError] = {}
        self._loaded = False

    @property
    def damaged(self) -> tuple[DvkError, ...]:
        """What is wrong with packs that could not be read; their chunks count as not here, so that adding heals."""
        with self._lock:
            return tuple(self._damaged.values())

    # ------------------------------------------------------------ what is there

    def refresh(self) -> None:
        """Look again which packs and segments there are. Cheap when nothing changed."""
        with stage(Stage.INDEX), self._lock:
            for _ in range(5):
                try:
                    self._load()
                    return
                except KeyMissing:
                    continue  # a merge deleted it between listing and reading
            raise DataMissing("the index changes faster than it can be read", subject=self.name)

    def look_again(self) -> None:
        """`refresh`, and verify what was believed without its checksum: for when something is not found."""
        with self._lock:
            for key in list(self._unverified):
                try:
                    data = self.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES)
                    parse_segment(data, subject=f"{self.name}/{key}", check=True)
                except Corrupt:
                    self._bad_segments.add(key)
                except KeyMissing:
                    pass  # merged since; `refresh` will see
                self._unverified.discard(key)
            self._damaged.clear()  # a medium may have answered wrongly once
            self.refresh()

    def _load(self) -> None:
        old = {key: s for key, s in self._segments if key}
        segments: list[tuple[str, Segment]] = []
        unverified: set[str] = set()
        for item in self.backend.list("i/"):
            key = item.key
            if key in self._bad_segments or not _SEGMENT_KEY.fullmatch(key):
                continue
            if key in old:
                segments.append((key, old[key]))
                continue
            try:
                data = self.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES)
                segments.append((key, parse_segment(data, subject=f"{self.name}/{key}")))
            except Corrupt:
                self._bad_segments.add(key)  # what it covered is read from footers until the next `save_index`
                continue
            if not is_checked(data):
                unverified.add(key)
        present = self.list_packs()
        covered = {p for _, s in segments for p in s.packs}
        gone = covered - present.keys()
        if gone:
            segments = [(k, s if gone.isdisjoint(s.packs) else s.without(gone)) for k, s in segments]
        new = [(name, kind) for name, kind in present.items() if name not in covered]
        found = [(name, self._readable(name, kind, vanished=True)) for name, kind in new]
        loose = [(name, footer) for name, footer in found if footer is not None]
        if loose:
            segments.append(("", Segment.build(loose)))
        self._segments = segments
        self._covered = (covered - gone).union(name for name, _ in loose)
        self._unverified = {k for k in self._unverified if k in old} | unverified
        self._loaded = True

    def list_packs(self) -> dict[bytes, PackKind]:
        """All packs that are there now."""
        out: dict[bytes, PackKind] = {}
        for kind in PackKind:
            for item in self.backend.list(f"{kind.prefix}/"):
                if match := _PACK_KEY.fullmatch(item.key):
                    out[bytes.fromhex(match[2])] = kind
        return out

    def segments(self) -> list[Segment]:
        """The index as it is known now."""
        with self._lock:
            if not self._loaded:
                self.refresh()
            return [s for _, s in self._segments]

    # ------------------------------------------------------------ what is added

    def adopt(self, new: Sequence[tuple[bytes, Footer]]) -> None:
        """Make packs findable in this process that it has just made durable."""
        with self._lock:
            fresh = [(name, footer) for name, footer in new if name not in self._covered]
            for name, footer in fresh:
                self._keep_footer(name, footer)
            if not fresh:
                return
            with stage(Stage.INDEX):
                self._segments.append(("", Segment.build(fresh)))
            self._covered.update(name for name, _ in fresh)
            # Merged as they would be on disk, or an `add` of a terabyte would search a segment for each of its packs.
            while group := self._full_level(written=False):
                merged = Segment.merge([s for _, s in group])
                self._segments = [x for x in self._segments if not any(x is g for g in group)] + [("", merged)]

    def save_index(self) -> None:
        """Write what is indexed only in memory as a segment, and merge levels that are full."""
        with stage(Stage.INDEX), self._lock:
            loose = [item for item in self._segments if not item[0]]
            kept = [s for _, s in loose if s.packs]
            if not kept:
                return
            level = max(s.level for s in kept)
            self._replace(loose, kept[0] if len(kept) == 1 else Segment.merge(kept), level=level)
            while group := self._full_level(written=True):
                level = group[0][1].level + 1
                self._replace(group, Segment.merge([s for _, s in group]), level=level)
            for key in self._bad_segments:  # what they covered has just been written
                self.backend.delete(key)
            self._bad_segments.clear()

    def _full_level(self, *, written: bool) -> list[tuple[str, Segment]]:
        """The segments of a level that has as many as are merged; empty when there is none."""
        levels: dict[int, list[tuple[str, Segment]]] = {}
        for item in self._segments:
            if bool(item[0]) == written and item[1].level < 15:
                levels.setdefault(item[1].level, []).append(item)
        return next((g for _, g in sorted(levels.items()) if len(g) >= MERGE_FAN_IN), [])

    def _replace(self, old: list[tuple[str, Segment]], new: Segment, *, level: int) -> None:
        new = Segment(level, new.packs, new.kinds, new.chunks, new.recipes)
        key = f"i/{level}-{secrets.token_hex(16)}"
        self.backend.put(key, [format_segment(new)])
        keys = {k for k, _ in old}
        self._segments = [item for item in self._segments if item[0] not in keys] + [(key, new)]
        for k in keys - {""}:
            self.backend.delete(k)
            self._unverified.discard(k)

    # ------------------------------------------------------------ footers

    def footer(self, name: bytes, kind: PackKind) -> Footer:
        """The footer of a pack; some 64 MiB of them are kept.

        Raises:
            KeyMissing, Corrupt, NewerFormat
        """
        with self._lock:
            if (found := self._footers.get(name)) is not None:
                self._footers.move_to_end(name)
                return found
        key = pack_key(kind, name)
        subject = f"{self.name}/{key}"
        size = self.backend.stat(key)
        if size is None:
            raise KeyMissing("a pack is gone", subject=subject)
        if size < TRAILER.size:
            raise Corrupt("a pack is shorter than its trailer", subject=subject)
        trailer = packs.parse_trailer(self.backend.get_range(key, size - TRAILER.size, TRAILER.size), subject=subject)
        if trailer.pack_len != size or trailer.kind is not kind:
            raise Corrupt("a pack has not the length or kind it states", subject=subject)
        data = self.backend.get_range(key, trailer.footer_offset, trailer.footer_len)
        found = packs.parse_footer(data, trailer, subject=subject)
        with self._lock:
            self._keep_footer(name, found)
        return found

    def _readable(self, name: bytes, kind: PackKind, *, vanished: bool = False) -> Footer | None:
        """The footer, or None for a pack that is damaged or gone; `vanished` makes the latter an error."""
        with self._lock:
            if name in self._damaged:
                return None
        try:
            return self.footer(name, kind)
        except KeyMissing:
            if vanished:
                raise
            return None  # collected since; another copy, or a refresh, will tell
        except Corrupt as error:
            with self._lock:
                self._damaged[name] = error
            return None

    def _keep_footer(self, name: bytes, footer: Footer) -> None:
        if name in self._footers:
            return
        self._footers[name] = footer
        self._footer_bytes += _weight(footer)
        while self._footer_bytes > _FOOTER_CACHE_BYTES and len(self._footers) > 1:
            self._footer_bytes -= _weight(self._footers.popitem(last=False)[1])

    # ------------------------------------------------------------ looking up

    def hits(self, ids: U8, *, recipes: bool = False, accept: Accept | None = None) -> Iterator[Hit]:
        """Where each of n ids stands (chunks and pages, or files with `recipes`), pack by pack; each id at most once.

        One vectorised search for each segment, confirmed by the footers. What `accept` refuses is looked for elsewhere.
        """
        wanted = prefixes(ids)
        waiting = np.ones(len(ids), np.bool_)
        for segment in self.segments():
            open_ = np.flatnonzero(waiting)
            if not len(open_):
                return
            table: Table = segment.recipes if recipes else segment.chunks
            which, at = table.find(wanted[open_])
            if not len(which):
                continue
            which = open_[which]
            for p, members in groups(table.pack[at]):
                name, kind = segment.packs[p], segment.kinds[p]
                footer = self._readable(name, kind)
                if footer is None:
                    continue
                stated = file_column(footer) if recipes else footer.ids
                candidates, rows = which[members], table.row[at[members]].astype(np.int64)
                good = waiting[candidates] & (rows < len(stated))
                candidates, rows = candidates[good], rows[good]
                good = (stated[rows] == ids[candidates]).all(axis=1)
                if accept is not None:
                    candidates, rows = candidates[good], rows[good]
                    good = accept(kind, footer, candidates, rows)
                candidates, rows = candidates[good], rows[good]
                # A pack may state an id twice; any of its rows will do.
                candidates, first = np.unique(candidates, return_index=True)
                if len(candidates):
                    waiting[candidates] = False
                    yield Hit(name, kind, footer, candidates, rows[first])


def groups(values: npt.NDArray[np.integer]) -> Iterator[tuple[int, Index]]:
    """Each different value with its positions, ascending; one sort, whatever the number of values."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(values)]])
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(ordered[a]), order[a:b]


def file_column(footer: Footer) -> U8:
    """uint8[r, 32]: the file ids of the recipes in a footer."""
    column = np.ascontiguousarray(footer.recipes["file"]).tobytes()
    return np.frombuffer(column, np.uint8).reshape(-1, ID_BYTES)


def _weight(footer: Footer) -> int:
    """Bytes of memory that a footer takes, with what is computed of it."""
    return len(footer.ids) * 44 + len(footer.raw_len) * 21 + footer.recipes.nbytes + 1024
