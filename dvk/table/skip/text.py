"""Which rows of two texts are equal because their bytes are (L1).

    A   | c1 | c2 | c3 | c4 |          c1, c2 and c4 are chunks of both. Their bytes are equal, and so are the rows in
    B   | c1 | c2 | x | y | c4 |       them, if as many quotes, even or odd, lie before each on both sides.

A run of shared chunks begins inside a record and ends inside one; the records that lie in it whole are skipped, their
neighbours are read with what differs. That is arithmetic on facts about chunks. What a run leaves on both sides is
decoded and trimmed (`trim.py`), since one changed row makes a new chunk of many.

Two plain files have no chunks, so they are cut and named here, by the same rule as in a store. That is a pass over both
at 2 GB/s, where parsing and comparing what it saves runs at a tenth of that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from blake3 import blake3
from msgspec import Struct

from dvk.ids import ID_BYTES
from dvk.store.chunker import Cutter
from dvk.store.names import I64
from dvk.store.pages import Chunks
from dvk.store.threads import brisk, default_workers
from dvk.table.cache import Cache
from dvk.table.contract import Plan, Region
from dvk.table.skip.trim import Ends, Gap, equal_run, trim
from dvk.table.text.index import TextIndex, chunk_names
from dvk.table.text.spool import Text
from dvk.table.text.table import TextTable

_PROFILE = "cdc-64k"
_READ_BYTES = 8 << 20


class Run(Struct, frozen=True):
    """Chunks [a, a + chunks) of A are chunks [b, b + chunks) of B."""

    a: int
    b: int
    chunks: int


def plan_text(a: TextTable, b: TextTable, cache: Cache | None) -> Plan:
    """What of two texts has to be read. Exact: a row that is skipped is skipped on both sides, and they are equal.

    Raises:
        TableError: a text ends within quotes.
    """
    if a.reading != b.reading:
        return Plan.everything(a, b)  # equal bytes do not mean equal rows
    if a.source.id is not None and a.source.id == b.source.id:
        a.build_index(cache=cache)
        b.build_index(cache=cache, like=a)
        return Plan("L0", (), (), skipped=a.count_rows(), ordered=True)
    _give_chunks(a, b)
    one, other = a.build_index(cache=cache), b.build_index(cache=cache, like=a)
    if one.recipe is None or other.recipe is None:
        return Plan.everything(a, b)
    runs = align(*_codes(one.recipe, one.index, other.recipe, other.index))
    if not any(_skip(run, one.index, other.index, a.header) for run in runs):
        return Plan.everything(a, b)
    skips = _extended(runs, a, b)
    skipped = sum(rows for _, _, rows in skips)
    return Plan(
        "L1",
        tuple(_rest([(at, rows) for at, _, rows in skips], a.count_rows())),
        tuple(_rest([(at, rows) for _, at, rows in skips], b.count_rows())),
        skipped=skipped,
        ordered=True,  # runs ascend on both sides
    )


def _extended(runs: list[Run], a: TextTable, b: TextTable) -> list[tuple[int, int, int]]:
    """What is skipped: the records that lie whole in a run and in what the gaps around it have in common."""
    chunks_a, chunks_b = len(a.index.first), len(b.index.first)
    if runs[0].a and runs[0].b:
        runs = [Run(0, 0, 0), *runs]  # the texts begin with a gap, which may have a common head
    if runs[-1].a + runs[-1].chunks < chunks_a and runs[-1].b + runs[-1].chunks < chunks_b:
        runs = [*runs, Run(chunks_a, chunks_b, 0)]
    gaps = [Gap(x.a + x.chunks, y.a, x.b + x.chunks, y.b) for x, y in pairwise(runs)]
    ends = [Ends(), *trim(a, b, gaps), Ends()]
    skips = (
        _skip(run, a.index, b.index, a.header, tail=ends[i].tail, head=ends[i + 1].head) for i, run in enumerate(runs)
    )
    return [skip for skip in skips if skip is not None]


def _skip(
    run: Run, a: TextIndex, b: TextIndex, header: int, *, tail: int = 0, head: int = 0
) -> tuple[int, int, int] | None:
    """(first row in A, first row in B, rows) of the records that lie whole in a run, and in what is shared around it.

    `tail`, `head`: how many records end in the common tail of the gap before it, and in the common head of the next.
    """
    first_a, first_b = int(a.before[run.a]) - tail + 1, int(b.before[run.b]) - tail + 1
    if run.a == run.b == 0:
        first_a = first_b = header  # the texts begin here, and the first row with them
    stop = int(a.before[run.a + run.chunks]) + head
    if run.a + run.chunks == len(a.first) and run.b + run.chunks == len(b.first):
        stop = a.records  # the texts end here, and the last row with them
    rows = stop - first_a
    return (first_a - header, first_b - header, rows) if rows > 0 else None


def _rest(skips: list[tuple[int, int]], rows: int) -> Iterator[Region]:
    """The rows between those that are skipped."""
    at = 0
    for first, count in [*skips, (rows, 0)]:
        if first > at:
            yield Region(at, first - at)
        at = first + count


# ---------------------------------------------------------------- alignment


def _codes(a: Chunks, index_a: TextIndex, b: Chunks, index_b: TextIndex) -> tuple[I64, I64]:
    """A number for each chunk: equal for equal bytes behind an equal state of the quotes."""
    names = np.concatenate([chunk_names(a), chunk_names(b)])
    _, number = np.unique(names, return_inverse=True)
    number = number.reshape(-1).astype(np.int64) * 2 + np.concatenate([index_a.odd, index_b.odd])
    return number[: len(a)], number[len(a) :]


def align(a: I64, b: I64) -> list[Run]:
    """Runs that are equal in both sequences, ascending and disjoint in both: what is common at the ends, then patience.

    Between the ends, the elements that occur once on each side are taken in their longest common order, and each match
    is extended over equal neighbours. So moved and repeated parts may be missed, never mismatched; n log n.
    """
    shorter = min(len(a), len(b))
    head = equal_run(a[:shorter], b[:shorter])
    tail = equal_run(a[head:][::-1][: shorter - head], b[head:][::-1][: shorter - head])
    mid_a, mid_b = a[head : len(a) - tail], b[head : len(b) - tail]
    runs = [Run(0, 0, head)] if head else []
    stop_a, stop_b = 0, 0
    anchors = [*_anchors(mid_a, mid_b), (len(mid_a), len(mid_b))]
    for at_a, at_b in anchors:
        if at_a < stop_a or at_b < stop_b:
            continue  # inside what was extended before
        back = min(at_a - stop_a, at_b - stop_b)
        back = equal_run(mid_a[at_a - back : at_a][::-1], mid_b[at_b - back : at_b][::-1])
        ahead = min(len(mid_a) - at_a, len(mid_b) - at_b)
        ahead = equal_run(mid_a[at_a : at_a + ahead], mid_b[at_b : at_b + ahead])
        if back + ahead:
            runs.append(Run(head + at_a - back, head + at_b - back, back + ahead))
        stop_a, stop_b = at_a + ahead, at_b + ahead
    if tail:
        runs.append(Run(len(a) - tail, len(b) - tail, tail))
    return runs


def _anchors(a: I64, b: I64) -> list[tuple[int, int]]:
    """Places of elements that occur once in each, in their longest common order."""
    values_a, at_a, count_a = np.unique(a, return_index=True, return_counts=True)
    values_b, at_b, count_b = np.unique(b, return_index=True, return_counts=True)
    values_a, at_a = values_a[count_a == 1], at_a[count_a == 1]
    values_b, at_b = values_b[count_b == 1], at_b[count_b == 1]
    _, in_a, in_b = np.intersect1d(values_a, values_b, assume_unique=True, return_indices=True)
    order = np.argsort(at_a[in_a])
    places_a, places_b = at_a[in_a][order].tolist(), at_b[in_b][order].tolist()
    # Longest increasing subsequence: `tops[k]` ends the best one of k + 1 elements, `before` leads back through it.
    tops: list[int] = []
    last: list[int] = []
    before = [-1] * len(places_b)
    for i, place in enumerate(places_b):
        k = bisect_left(tops, place)
        tops[k : k + 1] = [place]
        last[k : k + 1] = [i]
        before[i] = last[k - 1] if k else -1
    out = []
    i = last[-1] if last else -1
    while i >= 0:
        out.append((places_a[i], places_b[i]))
        i = before[i]
    return out[::-1]


# ---------------------------------------------------------------- chunks of plain files


def _give_chunks(a: TextTable, b: TextTable) -> None:
    """Cut and name what has no recipe, so that it can be aligned: by content, as a store cuts text by default."""
    missing = [table for table in (a, b) if table.stored_recipe is None]
    if not missing:
        return
    with ThreadPoolExecutor(default_workers(), "dvk-chunks") as pool, brisk():
        for table, recipe in zip(missing, pool.map(lambda table: cut_text(table.text), missing), strict=True):
            table.given_recipe = recipe


def cut_text(text: Text) -> Chunks:
    """The chunks of a text by content, with their ids. Reads all of it, a few MiB at a time."""
    cutter = Cutter(_PROFILE)
    ids: list[bytes] = []
    lengths: list[I64] = []
    at = 0
    while at < text.size:
        data = memoryview(text.read_at(at, min(_READ_BYTES, text.size - at)))
        cut = cutter.feed(data, final=at + len(data) == text.size)
        start = 0
        for length in cut.tolist():
            ids.append(blake3(data[start : start + length]).digest())
            start += length
        lengths.append(cut)
        at += start  # what is not cut yet is read again
    joined = np.concatenate([np.zeros(0, np.int64), *lengths]).astype(np.uint32)
    return Chunks(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, ID_BYTES), joined)
