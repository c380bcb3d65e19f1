"""Cells old and new of modified rows: which differ, by how much, and what that comes to for each column.

Rows are paired by now; their full values are compared a column at a time. A cell that differs is one of:

* *within tolerance*: both are numbers (or times) and no further apart than was allowed; it does not count as changed,
  and a row with no other difference is not modified;
* *formatting only*: text that is the same number (`1.10`, `1.1`) or differs in white space only; it counts as changed;
* changed otherwise. A difference in case is a change like any other: codes have meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Context, Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field
from pyarrow import types as T

from dvk.table.answer.fetch import Fetch
from dvk.table.contract import Tolerance
from dvk.table.engine import Engine
from dvk.table.equal import encode, forms, numerals, values
from dvk.table.match.schema import Match, Pair
from dvk.table.result import ColumnChange, Movement
from dvk.table.walk.feed import Cell

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

CHUNK_ROWS = 1 << 16
_INTEGERS = pa.decimal128(21, 0)  # of 64 bits, with or without a sign
_EXACT_FLOAT = 2.0**52  # integers up to here are exact as floats
_NEARLY = 2.0**-49  # of a number: further apart than this, floats say which of two differences is larger
_EXACT = Context(prec=2_000)  # enough for any two numbers that are floats, nearly

#: After so many changed cells of a column, only the pairs of values that were the most frequent so far are counted on.
_TOP_CELLS = 1_000_000
_TOP_PAIRS = 10_000
#: Whole rows are had again for a cell of each: this many cells of them at a time.
CELLS_AT_ONCE = 1 << 20


class Difference(Struct, frozen=True):
    """One column of some pairs of rows, bool[n] each: `changed` really, `within` tolerance, `formatting` among changed.

    `old` and `new` are comparable values, of a form or each of its own.
    """

    changed: encode.BoolArray
    within: encode.BoolArray
    old: pa.Array
    new: pa.Array


class _Sums(Struct):
    changed: int = 0
    within: int = 0
    formatting: int = 0
    null_to_value: int = 0
    value_to_null: int = 0
    moves: int = 0
    moved_by: float = 0.0
    rise: float = 0.0
    fall: float = 0.0
    settled: bool = False  #: whether the most frequent pairs are chosen


class Judge(Struct, frozen=True):
    """Says which cells of paired rows differ."""

    matched: Match
    a: tuple[Cell, ...]
    b: tuple[Cell, ...]
    tolerance: Tolerance = field(default_factory=Tolerance)

    def differences(self, a: pa.RecordBatch, b: pa.RecordBatch) -> Iterator[tuple[int, Difference]]:
        """For each pair of columns in which something differs between rows of `a` and of `b`."""
        for i, pair in enumerate(self.matched.pairs):
            old, new = a.column(self.a[i].name), b.column(self.b[i].name)
            x, y = self.a[i].flat(old), self.b[i].flat(new)
            differs = ~encode.equal(x, y)
            if not differs.any():
                continue
            within = np.zeros(len(differs), bool)
            absolute, relative = self._allowed(pair)
            if absolute or relative:
                at = np.flatnonzero(differs)
                pick = pa.array(at)
                within[at] = _within(pair, old.take(pick), new.take(pick), absolute, relative)
            yield i, Difference(differs & ~within, within, x, y)

    def _allowed(self, pair: Pair) -> tuple[float, float]:
        for label in (pair.b.label, pair.a.label):
            if label in self.tolerance.columns:
                return self.tolerance.columns[label], 0.0
        if T.is_temporal(forms.storage(pair.b.type)):
            return 0.0, 0.0
        return self.tolerance.absolute, self.tolerance.relative


class Cells:
    """Goes through modified rows and sums up. `unchanged`: rows in which nothing differs but within tolerance."""

    def __init__(self, engine: Engine, judge: Judge, *, top: int) -> None:
        self._engine = engine
        self._judge = judge
        self._top = top
        self._sums: dict[int, _Sums] = {}
        self.unchanged = 0
        engine.run("create or replace table within (ar bigint, br bigint)")
        engine.run("create or replace table tops (c integer, h uhugeint, n bigint, ar bigint, br bigint)")
        engine.run("create or replace table settled (c integer, h uhugeint)")

    def add(self, ar: I64, br: I64, a: pa.RecordBatch, b: pa.RecordBatch) -> None:
        """Rows `ar` of A with values `a` became rows `br` of B with values `b`."""
        changed = np.zeros(len(ar), bool)
        for i, difference in self._judge.differences(a, b):
            sums = self._sums.setdefault(i, _Sums())
            sums.within += int(difference.within.sum())
            if difference.changed.any():
                changed |= difference.changed
                self._sum(i, sums, difference, a, b, ar, br)
        if not changed.all():
            self.unchanged += int((~changed).sum())
            self._engine.put(
                "insert into within select ar, br from feed", pa.table({"ar": ar[~changed], "br": br[~changed]})
            )

    def _sum(
        self, i: int, sums: _Sums, difference: Difference, a: pa.RecordBatch, b: pa.RecordBatch, ar: I64, br: I64
    ) -> None:
        at = np.flatnonzero(difference.changed)
        pick = pa.array(at)
        x, y = difference.old.take(pick), difference.new.take(pick)
        old, new = a.column(self._judge.a[i].name).take(pick), b.column(self._judge.b[i].name).take(pick)
        has_old, has_new = encode.valid_mask(x), encode.valid_mask(y)
        sums.null_to_value += int((~has_old & has_new).sum())
        sums.value_to_null += int((has_old & ~has_new).sum())
        pair = self._judge.matched.pairs[i]
        if forms.is_text(pair.a.type) and forms.is_text(pair.b.type):
            sums.formatting += int(formatting_only(old, new).sum())
        moved = _moves(pair, old, new)
        moved = moved[np.isfinite(moved)]
        if len(moved):
            sums.moves += len(moved)
            sums.moved_by += float(moved.sum())
            sums.rise = max(sums.rise, float(moved.max()))
            sums.fall = min(sums.fall, float(moved.min()))
        if self._top:
            if pair.form is None:  # comparable values say only that these are never equal
                x, y = values.flat(old, forms.form_of(pair.a.type)), values.flat(new, forms.form_of(pair.b.type))
            self._count_pairs(i, sums, x, y, ar[at], br[at])
        sums.changed += len(at)

    def _count_pairs(self, i: int, sums: _Sums, x: pa.Array, y: pa.Array, ar: I64, br: I64) -> None:
        content = encode.rows([x, y])
        digest = self._engine.digest("p")
        grouped = f"select {i} c, {digest} h, count(*) n, min(ar) ar, arg_min(br, ar) br from feed group by h"
        if sums.changed > _TOP_CELLS and not sums.settled:
            sums.settled = True
            self._settle(i)
        known = f" where h in (select h from settled where c = {i})" if sums.settled else ""
        self._engine.put(
            f"insert into tops select * from ({grouped}){known}", pa.table({"p": content, "ar": ar, "br": br})
        )

    def _settle(self, i: int) -> None:
        """Forget all but the most frequent pairs of a column."""
        best = f"select h, sum(n)::bigint n, min(ar) ar, arg_min(br, ar) br from tops where c = {i} group by h"
        self._engine.run(f"create or replace table best as {best} order by n desc, ar limit {_TOP_PAIRS}")
        self._engine.run(f"delete from tops where c = {i}")
        self._engine.run(f"insert into tops select {i}, h, n, ar, br from best")
        self._engine.run(f"insert into settled select {i}, h from best")
        self._engine.run("drop table best")

    def finish(self, fetch_a: Fetch, fetch_b: Fetch) -> list[ColumnChange]:
        """What it comes to, most changed first."""
        best = self._engine.rows(
            "select c, n, ar, br from"
            " (select c, h, sum(n)::bigint n, min(ar) ar, arg_min(br, ar) br from tops group by c, h)"
            f" qualify row_number() over (partition by c order by n desc, ar) <= {self._top} order by c, n desc, ar"
        )
        tops: dict[int, list[tuple[tuple[object, object], int]]] = {}
        olds = single_cells(fetch_a, [(ar, self._judge.a[i].name) for i, _, ar, _ in best], width=len(self._judge.a))
        news = single_cells(fetch_b, [(br, self._judge.b[i].name) for i, _, _, br in best], width=len(self._judge.b))
        for (i, count, _, _), old, new in zip(best, olds, news, strict=True):
            tops.setdefault(i, []).append(((old, new), count))
        out = []
        for i, s in self._sums.items():
            movement = Movement(s.moves, s.moved_by / s.moves, s.rise, s.fall) if s.moves else None
            out.append(
                ColumnChange(
                    self._judge.matched.pairs[i].label,
                    s.changed,
                    within_tolerance=s.within,
                    formatting_only=s.formatting,
                    null_to_value=s.null_to_value,
                    value_to_null=s.value_to_null,
                    top=tuple(tops.get(i, ())),
                    movement=movement,
                )
            )
        out.sort(key=lambda c: -c.changed)  # columns with equal counts stay in the order of B
        return out


def single_cells(fetch: Fetch, wanted: Sequence[tuple[int, str]], *, width: int) -> list[object]:
    """The values of single cells, given as row and name of a column; `width`: how many columns a row has."""
    out: list[object] = [None] * len(wanted)
    rows = np.array([row for row, _ in wanted], np.int64)
    order = np.argsort(rows, kind="stable")
    distinct, starts = np.unique(rows[order], return_index=True)
    bounds = np.append(starts, len(rows)).tolist()
    step = max(1, CELLS_AT_ONCE // max(1, width))
    for first in range(0, len(distinct), step):
        batch = fetch.take(distinct[first : first + step])
        for place in range(batch.num_rows):
            for k in order[bounds[first + place] : bounds[first + place + 1]].tolist():
                out[k] = fetch.python(batch.column(wanted[k][1]).slice(place, 1))[0]
    return out


def formatting_only(old: pa.Array, new: pa.Array) -> encode.BoolArray:
    """bool[n]: text that is the same number on both sides, or the same but for white space."""
    x, y = values.plain(old).cast(pa.string()), values.plain(new).cast(pa.string())
    same_number = pc.fill_null(pc.equal(numerals.canonical(x), numerals.canonical(y)), False)
    same_words = pc.fill_null(pc.equal(values.spaced(x), values.spaced(y)), False)
    return encode.to_mask(pc.or_(same_number, same_words))


def _moves(pair: Pair, old: pa.Array, new: pa.Array) -> F64:
    """float64[n]: new - old, NaN where one is no number. Of integers and decimals the exact difference, rounded."""
    kinds = forms.storage(pair.a.type), forms.storage(pair.b.type)
    if all(T.is_integer(kind) or T.is_decimal(kind) for kind in kinds):
        x, y = (_wide(values.plain(array)) for array in (old, new))
        try:
            apart = pc.subtract(y, x).cast(pa.float64(), safe=False)
            return np.asarray(apart.to_numpy(zero_copy_only=False), np.float64)
        except pa.ArrowInvalid:
            pass  # a difference of more digits than decimals have: nearly right is what is left
    return _as_floats(pair.b.type, new) - _as_floats(pair.a.type, old)


def _wide(array: pa.Array) -> pa.Array:
    """Integers of 32 bits and less as int64, larger ones and decimals as wider decimals: differences have room."""
    if T.is_decimal(array.type):
        return array.cast(pa.decimal256(array.type.precision, array.type.scale))
    return array.cast(pa.int64() if array.type.bit_width <= 32 else _INTEGERS)


def _as_floats(kind: pa.DataType, array: pa.Array) -> F64:
    """float64[n], NaN where there is no number."""
    array = values.plain(array)
    if forms.is_text(kind):
        return numerals.to_float(numerals.canonical(array.cast(pa.string())))
    if not forms.is_number(kind):
        return np.full(len(array), np.nan)
    floats = array.cast(pa.float64(), safe=False)
    return np.asarray(floats.to_numpy(zero_copy_only=False), np.float64)


def _within(pair: Pair, old: pa.Array, new: pa.Array, absolute: float, relative: float) -> encode.BoolArray:
    """bool[n]: |old - new| <= max(absolute, relative * max(|old|, |new|)); of times absolute, in seconds."""
    kind_a, kind_b = forms.storage(pair.a.type), forms.storage(pair.b.type)
    if T.is_temporal(kind_b):
        if pair.form is None or not T.is_temporal(kind_a):
            return np.zeros(len(old), bool)
        apart = pc.abs(pc.subtract(values.seconds(old), values.seconds(new)))
        return np.asarray(apart.cast(pa.float64()).fill_null(np.inf).to_numpy(zero_copy_only=False)) <= absolute
    x, y = _as_floats(pair.a.type, old), _as_floats(pair.b.type, new)
    with np.errstate(invalid="ignore", over="ignore"):
        apart, largest = np.abs(x - y), np.maximum(np.abs(x), np.abs(y))
        allowed = np.maximum(absolute, relative * largest)
        finite = np.isfinite(x) & np.isfinite(y)
        within = (apart <= allowed) & finite
        # Floats are nearly what was written: 1.11 - 1.10 comes to more than 0.01. Where that decides, it is worked out.
        doubtful = finite & (np.abs(apart - allowed) <= _NEARLY * largest)
    if not relative and all(T.is_integer(kind) or T.is_floating(kind) for kind in (kind_a, kind_b)):
        doubtful &= largest > _EXACT_FLOAT
    at = np.flatnonzero(doubtful)
    pick = pa.array(at)
    of_floats = T.is_floating(kind_a) or T.is_floating(kind_b)
    most, share = _limit(absolute, of_floats), _limit(relative, of_floats)
    for k, p, q in zip(at.tolist(), _exactly(old.take(pick)), _exactly(new.take(pick)), strict=True):
        limit = max(most, _EXACT.multiply(share, max(p.copy_abs(), q.copy_abs())))
        within[k] = _EXACT.subtract(p, q).copy_abs() <= limit
    return within


def _exactly(numbers: pa.Array) -> list[Decimal]:
    """Numbers as they are, or as they were written."""
    values_ = values.plain(numbers)
    if T.is_float16(values_.type):
        values_ = values_.cast(pa.float64())
    return [Decimal(v.strip() if isinstance(v, str) else v) for v in values_.to_pylist()]


def _limit(tolerance: float, of_floats: bool) -> Decimal:
    """What was written (0.01); of floats the float that stands for it, if that is more: 0.01 - 0.0 is within 0.01."""
    written = Decimal(repr(float(tolerance)))
    return max(written, Decimal(tolerance)) if of_floats else written
