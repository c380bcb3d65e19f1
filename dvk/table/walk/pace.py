"""Two tables walked through side by side, so that only what differs needs a join.

Versions of a table mostly hold the same rows in the same order. Walking both at one pace, comparing a window of each
column at a time, finds those rows at the speed of memory, exactly, without a hash. Where the rows come apart (some
inserted, some deleted, some replaced), the walk looks for the next row that both sides have and goes on from there:

    A   1 2 3 4 5 6 7        rows 1 2 3, then 5 6 7 are in step (with or without equal values);
    B   1 2 3 5 6 8 7        4 of A and 8 of B are left over

What is left over, and what is in step and differs, goes to the join (`dvk.table.pair.residue`), which decides by keys.
Nothing depends on how well the walk does: rows that are equal on both sides cancel whichever copies they are, and rows
that were not met are joined later. When the order has nothing in common, the walk notices and gives up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from dvk.table.equal import encode
from dvk.table.walk.chain import heaviest_chain
from dvk.table.walk.feed import Feed, Rows
from dvk.table.walk.sequence import Run, in_order, positions, run_table, to_list

I64 = npt.NDArray[np.int64]

_WINDOW_ROWS = 1 << 16
_GROWTH = 4  # of a window in which nothing is in step
_SEARCH_BYTES = 100  # a row, besides its values, for looking up where it is on the other side
_LEAST_ROWS = 256  # of a window that ends where a batch does, so that nothing is copied
_CLOSE = (16, 256, 4096)  # how far the next common row is looked for, step by step, before a search of the whole window
_SEARCHES = 64  # in one window, before one join of what is left of it
_FIRST_STEP = 64  # rows compared at once after a search, doubled as long as they are equal
_IN_STEP = 0.1  # of a window's rows; with fewer the rows count as out of step
_PATIENCE = 2  # windows at full look-ahead out of step, before the walk gives up
_MOST_RUNS = 20_000  # of a window; with more it is not worth looking for order


class Step(Struct, frozen=True):
    """Some of the next rows of both sides. Rows `ia` of `a` are in step with `ib` of `b`; `same`: with equal values.

    int64[m], int64[m], bool[m]. Rows of either side that are in neither list are left over.
    """

    a: Rows
    b: Rows
    ia: I64
    ib: I64
    same: encode.BoolArray


class Walk(Struct):
    """What is being walked, and how it went.

    `mode`: rows are in step by `key` (some of the columns), by `content` (all), or by `position`.
    """

    a: Feed
    b: Feed
    mode: str
    look_ahead_bytes: int
    gave_up: bool = False

    def steps(self, rows_a: int | None = None, rows_b: int | None = None) -> Iterator[Step]:
        """Walk on to the end, or for that many rows of each side."""
        size, lost = _WINDOW_ROWS, 0
        while True:
            wa, wb = _window(self.a, size, rows_a), _window(self.b, size, rows_b)
            if not wa.count and not wb.count:
                return
            final = self._ends(self.a, wa, rows_a) and self._ends(self.b, wb, rows_b)
            ia, ib, whole = self._in_step(wa, wb)
            enough = len(ia) >= _IN_STEP * min(wa.count, wb.count) and len(ia) > 0
            if not enough and not final and not self.gave_up and wa.count and wb.count and self.mode != "position":
                more = size == _WINDOW_ROWS or max(wa.count, wb.count) >= size
                held = wa.raw.nbytes + wb.raw.nbytes + (wa.count + wb.count) * _SEARCH_BYTES
                if more and held * _GROWTH < self.look_ahead_bytes:
                    size *= _GROWTH
                    continue
                lost += 1
                self.gave_up = lost >= _PATIENCE
            elif enough:
                lost = 0
            if enough and not final:
                wa, wb = wa.slice(0, int(ia[-1]) + 1), wb.slice(0, int(ib[-1]) + 1)
            size = _WINDOW_ROWS
            yield Step(wa, wb, ia, ib, np.ones(len(ia), bool) if whole else self._same(wa, wb, ia, ib))
            self.a.drop(wa.count)
            self.b.drop(wb.count)
            rows_a = None if rows_a is None else rows_a - wa.count
            rows_b = None if rows_b is None else rows_b - wb.count

    def _ends(self, feed: Feed, window: Rows, limit: int | None) -> bool:
        return window.count == limit if limit is not None else feed.at_end(window.count)

    def _in_step(self, a: Rows, b: Rows) -> tuple[I64, I64, bool]:
        """Positions that are in step, and whether their values are known to be equal."""
        count = min(a.count, b.count)
        if self.mode == "position":
            return np.arange(count), np.arange(count), False
        if self.gave_up or not count:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), True
        if self.mode == "key":
            return *positions(_runs(*_keys(a, b, self.a.spec.key))), False
        if self._same_run(a, b, 0, 0, count).all():
            return np.arange(count), np.arange(count), True
        return *positions(in_order(*_codes(a, b))), True

    def _same(self, a: Rows, b: Rows, ia: I64, ib: I64) -> encode.BoolArray:
        """bool[m]: whether rows that are in step hold the same values."""
        runs = run_table(ia, ib)
        if len(runs) <= 4:
            parts = [self._same_run(a, b, i, j, n) for i, j, n in to_list(runs)]
            return np.concatenate(parts) if parts else np.zeros(0, bool)
        left, right = pa.array(ia), pa.array(ib)
        same = np.ones(len(ia), bool)
        for k in self._others():
            x, y = a.flat[k].take(left), b.flat[k].take(right)
            if not x.equals(y):
                same &= encode.equal(x, y)
        return same

    def _same_run(self, a: Rows, b: Rows, i: int, j: int, n: int) -> encode.BoolArray:
        same = np.ones(n, bool)
        for k in self._others():
            x, y = a.flat[k].slice(i, n), b.flat[k].slice(j, n)
            if not x.equals(y):
                same &= encode.equal(x, y)
        return same

    def _others(self) -> list[int]:
        """Columns that are not known to be equal in rows in step."""
        known = self.a.spec.key if self.mode == "key" else ()
        return [k for k in range(len(self.a.spec.cells)) if k not in known]


def _window(feed: Feed, size: int, limit: int | None) -> Rows:
    least = _LEAST_ROWS if size == _WINDOW_ROWS else None
    if limit is None:
        return feed.window(size, least=least)
    return feed.window(min(size, limit), least=least)


def _keys(a: Rows, b: Rows, key: tuple[int, ...]) -> tuple[pa.Array, pa.Array]:
    """The key of each row, in one array without nulls for each side."""
    if len(key) == 1:
        x, y = a.flat[key[0]], b.flat[key[0]]
        if not x.null_count and not y.null_count and (pa.types.is_integer(x.type) or pa.types.is_string(x.type)):
            return x, y
    return encode.rows([a.flat[i] for i in key]), encode.rows([b.flat[i] for i in key])


def _codes(a: Rows, b: Rows) -> tuple[I64, I64]:
    """Each row as a number: the same for rows of equal values."""
    both = pa.concat_arrays([encode.rows(a.flat), encode.rows(b.flat)])
    codes = np.asarray(pc.dictionary_encode(both).indices.to_numpy(zero_copy_only=False), np.int64)
    return codes[: a.count], codes[a.count :]


def _runs(a: pa.Array, b: pa.Array) -> list[Run]:
    """Runs (start in A, start in B, length) of rows that both have in the same order; as many as is cheap to find."""
    n, m = len(a), len(b)
    i = j = searches = 0
    runs = []
    while i < n and j < m:
        k = _common(a, i, b, j)
        if k:
            runs.append((i, j, k))
            i, j = i + k, j + k
            continue
        searches += 1
        meeting = _nearest(a, i, b, j) if searches <= _SEARCHES else None
        if meeting is None:
            return runs + [(i + x, j + y, k) for x, y, k in _joined(a.slice(i), b.slice(j))]
        i, j = i + meeting[0], j + meeting[1]
    return runs


def _common(a: pa.Array, i: int, b: pa.Array, j: int) -> int:
    """How many rows from `a[i]` and `b[j]` on are the same."""
    total, step = 0, _FIRST_STEP
    limit = min(len(a) - i, len(b) - j)
    while total < limit:
        count = min(step, limit - total)
        x, y = a.slice(i + total, count), b.slice(j + total, count)
        if not x.equals(y):
            return total + int(encode.equal(x, y).argmin())
        total += count
        step *= 4
    return total


def _nearest(a: pa.Array, i: int, b: pa.Array, j: int) -> tuple[int, int] | None:
    """How far to go on each side to be in step again: forward on one side only, to the row where the other one is."""
    for span in _CLOSE:
        in_b = pc.index(b.slice(j, span), a[i]).as_py()
        in_a = pc.index(a.slice(i, span), b[j]).as_py()
        if in_b >= 0 and (in_a < 0 or in_b <= in_a):
            return 0, in_b
        if in_a >= 0:
            return in_a, 0
    return None


def _joined(a: pa.Array, b: pa.Array) -> list[Run]:
    """Runs that are in order on both sides, of all rows that both have anywhere."""
    found = pc.index_in(a, value_set=b)
    valid = encode.valid_mask(found)
    ia = np.flatnonzero(valid)
    if not len(ia):
        return []
    ib = np.asarray(found.filter(pa.array(valid)).to_numpy(zero_copy_only=False), np.int64)
    runs = run_table(ia, ib)
    if len(runs) > _MOST_RUNS:
        return []
    return to_list(runs[heaviest_chain(runs[:, 1], runs[:, 2])])
