"""Which rows of two columnar tables are equal: their column chunks are the same bytes (L2), or their segments are (L3).

    A   group 0 | group 1     | group 2                 group 0 is the same in all columns: skipped on both sides;
    B   group 0 | group 1, x' | new | group 2           group 1 in all but x: its rows correspond, only x may differ;
                                                        group 2 is skipped although it moved

L2 costs footers, recipes and, where a chunk of the store reaches over the border of a column chunk, that border; for
plain files, a pass over the bytes of both, undecoded. L3 needs a list of segments for each side
(`dvk.table.skip.segments`), which a diff that has to read much leaves in the cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from dvk.store.names import I64
from dvk.store.pages import Chunks
from dvk.table.cache import Cache
from dvk.table.columnar.parquet import Leaf, ParquetTable
from dvk.table.columnar.table import ColumnarTable
from dvk.table.contract import Aligned, Plan, Region, Source, Table
from dvk.table.parallel import ordered_map
from dvk.table.skip.segments import Segments
from dvk.table.skip.text import Run, align

#: Columns without a partner on the other side may be one another's, renamed; of more pairs nothing is skipped.
_MOST_LOOSE_PAIRS = 256
#: Columns that are tried to align row groups by, where none is the same as a whole.
_MOST_TRIED = 8
#: With less than this share of rows to read there is no point in looking further.
_LITTLE = 0.05
#: Of the rows that are read, those in segments that are known already; with fewer, segments are recorded again.
_MOST = 0.9
#: Rows are decoded by the row group, so that knowing which of them changed saves nothing where all groups have some.
_WORTHWHILE = 0.7
_READ_BYTES = 1 << 20
#: How far into a column chunk the cuts of a store may still depend on what lies before it, unless it begins with a cut.
_MARGIN_BYTES = 256 << 10


def plan_columnar(a: Table, b: Table, cache: Cache | None) -> Plan:
    """What of two columnar tables has to be read. Exact: a row that is skipped is skipped on both sides, and is equal.

    Where all has to be read, both tables are asked to leave their segments in the cache.

    Raises:
        TableError: a footer places a column outside its file. DvkError: a source does not give its bytes.
    """
    if not isinstance(a, ColumnarTable) or not isinstance(b, ColumnarTable):
        return Plan.everything(a, b)
    if a.source.id is not None and a.source.id == b.source.id:
        return Plan("L0", (), (), skipped=a.count_rows(), ordered=True)
    plan = Plan.everything(a, b)
    if isinstance(a, ParquetTable) and isinstance(b, ParquetTable):
        plan = _by_chunks(a, b) or plan
    if cache is None or _to_read(plan) <= _LITTLE * (a.count_rows() + b.count_rows()):
        return plan
    one, other = a.known_segments(cache), b.known_segments(cache)
    for table, known, regions in ((a, one, plan.a), (b, other, plan.b)):
        left = sum(r.rows for r in regions)
        if known is None or known.inside(regions).total_rows < _MOST * left:
            table.record_segments(cache)
    if one is None or other is None or not _same_columns(a, b):
        return plan
    finer = _by_segments(plan, one, other)
    before = a.rows_near(plan.a) + b.rows_near(plan.b)
    return finer if a.rows_near(finer.a) + b.rows_near(finer.b) <= _WORTHWHILE * before else plan


def _to_read(plan: Plan) -> int:
    """Rows of both sides that have to be read in full."""
    return sum(r.rows for r in (*plan.a, *plan.b))


# ---------------------------------------------------------------- L2: column chunks


class _Pairs(Struct, frozen=True):
    """Columns that are compared: `same` in equal forms, `other` in forms of which equal bytes say nothing."""

    same: tuple[tuple[int, int], ...]
    other: tuple[tuple[int, int], ...]


def _by_chunks(a: ParquetTable, b: ParquetTable) -> Plan | None:
    pairs = _pair_columns(a, b)
    if pairs is None or not pairs.same:
        return None
    side_a, side_b = _Side(a, [i for i, _ in pairs.same]), _Side(b, [j for _, j in pairs.same])
    _give_keys(side_a, side_b)
    whole = _codes(side_a.group_keys(), side_b.group_keys())
    matched: list[tuple[int, int]] = []
    partly: list[tuple[int, int]] = []
    evidence = _Evidence(side_a, side_b)
    at_a = at_b = 0
    for run in [*align(*whole), Run(len(whole[0]), len(whole[1]), 0)]:
        partly += _partners(side_a, side_b, range(at_a, run.a), range(at_b, run.b), evidence)
        matched += [(run.a + k, run.b + k) for k in range(run.chunks)]
        at_a, at_b = run.a + run.chunks, run.b + run.chunks
    skips, aligned = [], []
    for ga, gb in sorted(matched + partly):
        differ = (*(p for k, p in enumerate(pairs.same) if side_a.key(ga, k) != side_b.key(gb, k)), *pairs.other)
        region_a = Region(side_a.groups[ga].first, side_a.groups[ga].rows)
        region_b = Region(side_b.groups[gb].first, side_b.groups[gb].rows)
        if differ:
            aligned.append(Aligned(region_a, region_b, differ))
        else:
            skips.append((region_a, region_b))
    if not skips and not aligned:
        return None
    done = skips + [(x.a, x.b) for x in aligned]
    return Plan(
        "L2",
        _rest([r for r, _ in done], a.count_rows()),
        _rest([r for _, r in done], b.count_rows()),
        aligned=tuple(_joined(aligned)),
        skipped=sum(r.rows for r, _ in skips),
        ordered=True,
    )


def _pair_columns(a: ParquetTable, b: ParquetTable) -> _Pairs | None:
    """Columns by their names; of those that only one side has, each may be a renamed one of the other's."""
    there = {c.identity: c.index for c in b.columns}
    pairs = [(c.index, there.pop(c.identity)) for c in a.columns if c.identity in there]
    paired = {i for i, _ in pairs}
    loose_a = [c.index for c in a.columns if c.index not in paired]
    if len(loose_a) * len(there) > _MOST_LOOSE_PAIRS:
        return None
    same = [p for p in pairs if _same_form(a, b, *p)]
    other = [p for p in pairs if p not in set(same)]
    loose = [(i, j) for i in loose_a for j in there.values()]
    return _Pairs(tuple(same), (*other, *loose))


def _same_form(a: ParquetTable, b: ParquetTable, i: int, j: int) -> bool:
    if a.columns[i].type != b.columns[j].type or len(a.leaves(i)) != len(b.leaves(j)):
        return False
    return all(a.leaf_form(x) == b.leaf_form(y) for x, y in zip(a.leaves(i), b.leaves(j), strict=True))


class _Side:
    """One table's row groups, and for each of them and each compared column a key: equal keys, equal values."""

    def __init__(self, table: ParquetTable, columns: Sequence[int]) -> None:
        self.table = table
        self.numbers = [g for g, group in enumerate(table.groups) if group.rows]
        self.groups = [table.groups[g] for g in self.numbers]
        self.columns = columns
        self._keys: dict[tuple[int, int], bytes] = {}

    def leaves(self, g: int, k: int) -> list[Leaf]:
        """Of group `g` and compared column `k`."""
        return [self.table.leaf(self.numbers[g], leaf) for leaf in self.table.leaves(self.columns[k])]

    def facts(self, g: int, k: int) -> tuple[Any, ...]:
        """What is equal if the values are the same bytes, known without looking at them."""
        return self.groups[g].rows, *(leaf.facts for leaf in self.leaves(g, k))

    def set_key(self, g: int, k: int, key: bytes) -> None:
        self._keys[g, k] = key

    def key(self, g: int, k: int) -> bytes | tuple[int, int, int]:
        """Where nothing on the other side can be equal, it is a key that nothing else has."""
        return self._keys.get((g, k)) or (id(self), g, k)

    def group_keys(self) -> list[tuple[Any, ...]]:
        return [tuple(self.key(g, k) for k in range(len(self.columns))) for g in range(len(self.groups))]


def _give_keys(a: _Side, b: _Side) -> None:
    """Find the keys of all column chunks that may be the same on both sides.

    Only of those whose footers and whole chunks of the store agree with some column chunk of the other side are bytes
    looked at, and of these only what lies in no whole chunk.
    """
    chunks_a, chunks_b = a.table.source.chunks(), b.table.source.chunks()
    both = chunks_a is not None and chunks_b is not None
    covers = (_Cover(a.table.source, chunks_a if both else None), _Cover(b.table.source, chunks_b if both else None))
    wanted: list[tuple[_Side, _Cover, int, int, bytes]] = []
    for k in range(len(a.columns)):
        known = [
            [_known_of(side, cover, g, k) for g in range(len(side.groups))]
            for side, cover in zip((a, b), covers, strict=True)
        ]
        shared = set(known[0]) & set(known[1])
        for side, cover, some in zip((a, b), covers, known, strict=True):
            wanted += [(side, cover, g, k, key) for g, key in enumerate(some) if key in shared]

    def work(item: tuple[_Side, _Cover, int, int, bytes]) -> bytes:
        side, cover, g, k, key = item
        content = blake3(key)
        for leaf in side.leaves(g, k):
            cover.add_edges(content, leaf.start, leaf.length)
        return bytes(content.digest())

    for (side, _, g, k, _), key in zip(wanted, ordered_map(work, wanted), strict=True):
        side.set_key(g, k, key)


def _known_of(side: _Side, cover: _Cover, g: int, k: int) -> bytes:
    """A digest of what is known of a column chunk without reading it."""
    content = blake3(repr(side.facts(g, k)).encode())
    for leaf in side.leaves(g, k):
        cover.add_inside(content, leaf.start, leaf.length)
    return bytes(content.digest())


class _Cover:
    """What is known of the bytes of a file: chunks by their ids, or nothing but the bytes."""

    def __init__(self, source: Source, chunks: Chunks | None) -> None:
        self._source, self._chunks = source, chunks
        lengths = chunks.lengths if chunks is not None else np.zeros(0, np.uint32)
        self._starts: I64 = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)

    def _whole(self, start: int, length: int) -> tuple[int, int]:
        """The chunks [low, high) that lie in a range as a whole, and do not depend on what lies before it."""
        low = int(np.searchsorted(self._starts, start, side="left"))
        if low < len(self._starts) and self._starts[low] != start:
            low = int(np.searchsorted(self._starts, start + _MARGIN_BYTES, side="left"))
        return low, max(low, int(np.searchsorted(self._starts, start + length, side="right")) - 1)

    def add_inside(self, content: Any, start: int, length: int) -> None:
        """Feed a hash with ids and places of these chunks."""
        low, high = self._whole(start, length)
        if self._chunks is None or low == high:
            return
        content.update((self._starts[low : high + 1] - start).tobytes())
        content.update(self._chunks.ids[low:high].tobytes())

    def add_edges(self, content: Any, start: int, length: int) -> None:
        """Feed a hash with the bytes of a range that lie in none of them: at its two ends, or all of them."""
        low, high = self._whole(start, length)
        if low == high:
            self._add_bytes(content, start, start + length)
        else:
            self._add_bytes(content, start, int(self._starts[low]))
            self._add_bytes(content, int(self._starts[high]), start + length)

    def _add_bytes(self, content: Any, start: int, end: int) -> None:
        for at in range(start, end, _READ_BYTES):
            content.update(self._source.read_at(at, min(_READ_BYTES, end - at)))


class _Evidence:
    """Whether two row groups that share a column chunk are likely to be the same rows.

    A column that holds the same value everywhere is the same in every row group, so it says nothing; what occurs only
    once on each side does. Only the cost depends on it: whatever corresponds by position is compared.
    """

    def __init__(self, a: _Side, b: _Side) -> None:
        self._a, self._b = a, b
        self._counts = [
            [Counter(side.key(g, k) for g in range(len(side.groups))) for k in range(len(side.columns))]
            for side in (a, b)
        ]

    def links(self, x: int, y: int) -> bool:
        for k in range(len(self._a.columns)):
            key = self._a.key(x, k)
            if key == self._b.key(y, k) and self._counts[0][k][key] == self._counts[1][k][key] == 1:
                return True
        return False


def _partners(a: _Side, b: _Side, gap_a: range, gap_b: range, evidence: _Evidence) -> Iterator[tuple[int, int]]:
    """Row groups of two gaps that are the same rows in at least one column, in order."""
    if not gap_a or not gap_b:
        return
    even = len(gap_a) == len(gap_b) and all(
        a.groups[x].rows == b.groups[y].rows for x, y in zip(gap_a, gap_b, strict=True)
    )
    if even:
        pairs = list(zip(gap_a, gap_b, strict=True))
    else:
        pairs = []
        for k in range(min(len(a.columns), _MOST_TRIED)):
            codes = _codes([a.key(g, k) for g in gap_a], [b.key(g, k) for g in gap_b])
            runs = align(*codes)
            if sum(r.chunks for r in runs) > len(pairs):
                pairs = [(gap_a[r.a + i], gap_b[r.b + i]) for r in runs for i in range(r.chunks)]
    yield from ((x, y) for x, y in pairs if evidence.links(x, y))


def _codes(a: Sequence[Any], b: Sequence[Any]) -> tuple[I64, I64]:
    """A number for each key, the same for equal ones."""
    numbers: dict[Any, int] = {}
    return (
        np.array([numbers.setdefault(key, len(numbers)) for key in a], np.int64),
        np.array([numbers.setdefault(key, len(numbers)) for key in b], np.int64),
    )


def _rest(skips: Sequence[Region], rows: int) -> tuple[Region, ...]:
    """The rows between those that are skipped."""
    out, at = [], 0
    for r in (*sorted(skips, key=lambda r: r.first), Region(rows, 0)):
        if r.first > at:
            out.append(Region(at, r.first - at))
        at = r.first + r.rows
    return tuple(out)


def _joined(parts: Sequence[Aligned]) -> Iterator[Aligned]:
    """Neighbours with the same columns as one."""
    waiting: Aligned | None = None
    for part in parts:
        if waiting is not None and waiting.columns == part.columns and _follows(waiting, part):
            waiting = Aligned(
                Region(waiting.a.first, waiting.a.rows + part.a.rows),
                Region(waiting.b.first, waiting.b.rows + part.b.rows),
                part.columns,
            )
            continue
        if waiting is not None:
            yield waiting
        waiting = part
    if waiting is not None:
        yield waiting


def _follows(x: Aligned, y: Aligned) -> bool:
    return x.a.first + x.a.rows == y.a.first and x.b.first + x.b.rows == y.b.first


# ---------------------------------------------------------------- L3: segments


def _by_segments(plan: Plan, one: Segments, other: Segments) -> Plan:
    """What is left of a plan without the segments that both sides share, in order, between what it skips already."""
    skips_a, skips_b = [], []
    for in_a, in_b in _gaps(plan):
        left, right = one.inside(in_a), other.inside(in_b)
        for run in align(*_codes(_names(left), _names(right))):
            part_a, part_b = slice(run.a, run.a + run.chunks), slice(run.b, run.b + run.chunks)
            skips_a += [Region(*x) for x in zip(left.starts[part_a].tolist(), left.rows[part_a].tolist(), strict=True)]
            skips_b += [
                Region(*x) for x in zip(right.starts[part_b].tolist(), right.rows[part_b].tolist(), strict=True)
            ]
    if not skips_a:
        return plan
    return replace(
        plan,
        level="L3",
        a=_without(plan.a, skips_a),
        b=_without(plan.b, skips_b),
        skipped=plan.skipped + sum(r.rows for r in skips_a),
        ordered=True,
    )


def _gaps(plan: Plan) -> Iterator[tuple[list[Region], list[Region]]]:
    """The regions of a plan that lie between the same skipped or aligned rows on both sides.

    Rows that a plan of this module takes out of both sides correspond in order, so the n-th row taken out of A is the
    n-th of B; a gap is where one side has regions behind equally many rows that were taken out.
    """
    by_place: dict[int, tuple[list[Region], list[Region]]] = {}
    for which, regions in enumerate((plan.a, plan.b)):
        before = 0
        for r in regions:
            by_place.setdefault(r.first - before, ([], []))[which].append(r)
            before += r.rows
    for place in sorted(by_place):
        if all(by_place[place]):
            yield by_place[place]


def _without(regions: Sequence[Region], skips: Sequence[Region]) -> tuple[Region, ...]:
    """Regions without the rows of `skips`, which lie in them; both ascend."""
    out, waiting = [], iter(skips)
    skip = next(waiting, None)
    for r in regions:
        at, end = r.first, r.first + r.rows
        while skip is not None and skip.first < end:
            if skip.first > at:
                out.append(Region(at, skip.first - at))
            at = skip.first + skip.rows
            skip = next(waiting, None)
        if at < end:
            out.append(Region(at, end - at))
    return tuple(out)


def _same_columns(a: ColumnarTable, b: ColumnarTable) -> bool:
    return [(c.identity, c.type) for c in a.columns] == [(c.identity, c.type) for c in b.columns]


def _names(segments: Segments) -> list[bytes]:
    return [digest.tobytes() for digest in segments.digests]
