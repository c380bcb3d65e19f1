"""Keys that ascend are unique: most tables prove it while they are read, without a memory of what was seen.

    ascent = Ascent()
    ascent.add([keys_of_a_window], in_step)
    ascent.holds()                                   # in the end: nothing spoke against it

The keys of rows in step must ascend strictly, over the whole table, by value or (numbers as text: "9" before "10")
first by length. Keys of left-over rows may lie in between in the same order; those that do not (new rows put
somewhere with numbers of their own) are set aside, and must in the end lie outside of all that the spine spans. What
is set aside is compared among itself by the join.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dvk.table.equal import encode

I64 = npt.NDArray[np.int64]
Columns = Sequence[pa.Array]
Less = Callable[[pa.Array, pa.Array], encode.BoolArray]

_MOST_ASIDE = 200_000  # rows


class Ascent:
    """The keys of one side, window after window. After it has once failed it takes nothing more."""

    def __init__(self) -> None:
        self._spines: list[_Spine] | None = None

    @property
    def started(self) -> bool:
        """Whether it has seen a key."""
        return self._spines is not None

    @property
    def failed(self) -> bool:
        """Whether keys do not ascend, in no order."""
        return self._spines == []

    def add(self, keys: Columns, in_step: I64) -> None:
        """The keys of the next rows, and the positions of those that are in step."""
        if self.failed or not len(keys[0]):
            return
        if self._spines is None:
            texts = any(pa.types.is_string(k.type) or pa.types.is_binary(k.type) for k in keys)
            self._spines = [_Spine(_by_length), _Spine(_lexical)] if texts else [_Spine(_lexical)]
        if any(k.null_count for k in keys):
            self._spines = []
        self._spines = [spine for spine in self._spines if spine.add(keys, in_step)]

    def holds(self) -> bool:
        """Whether no key of rows in step repeats, and none that was set aside is one of them."""
        return self._spines is None or any(spine.holds() for spine in self._spines)


class _Spine:
    """Keys that ascend in one order."""

    def __init__(self, less: Less) -> None:
        self._less = less
        self._first: Columns | None = None
        self._last: Columns | None = None
        self._aside: list[Columns] = []
        self._aside_rows = 0

    def add(self, keys: Columns, in_step: I64) -> bool:
        """Whether they still ascend."""
        if self._follows(keys):
            return True
        aside = np.ones(len(keys[0]), bool)
        aside[in_step] = False
        self._aside_rows += int(aside.sum())
        self._aside.append(_pick(keys, np.flatnonzero(aside)))
        return self._aside_rows <= _MOST_ASIDE and self._follows(_pick(keys, in_step))

    def holds(self) -> bool:
        """Whether all that was set aside lies before or after the rest."""
        if self._first is None or self._last is None:
            return True
        for keys in self._aside:
            n = len(keys[0])
            before = _less_rows(keys, [_repeat(k, n) for k in self._first], self._less)
            after = _less_rows([_repeat(k, n) for k in self._last], keys, self._less)
            if not (before | after).all():
                return False
        return True

    def _follows(self, keys: Columns) -> bool:
        """Whether these ascend from where the spine ended; then they are part of it."""
        if not len(keys[0]):
            return True
        if self._last is not None and not _less_rows(self._last, [k.slice(0, 1) for k in keys], self._less).all():
            return False
        if not _ascends(keys, self._less):
            return False
        if self._first is None:
            self._first = [k.slice(0, 1) for k in keys]
        self._last = [k.slice(len(k) - 1, 1) for k in keys]
        return True


def _pick(keys: Columns, at: I64) -> Columns:
    return [k.take(pa.array(at)) for k in keys]


def _repeat(one: pa.Array, n: int) -> pa.Array:
    return one.take(pa.array(np.zeros(n, np.int64)))


def _ascends(keys: Columns, less: Less) -> bool:
    n = len(keys[0])
    if n < 2:
        return True
    return bool(_less_rows([k.slice(0, n - 1) for k in keys], [k.slice(1) for k in keys], less).all())


def _less_rows(a: Columns, b: Columns, less: Less) -> encode.BoolArray:
    """bool[n]: whether rows of `a` come before rows of `b`, column by column."""
    before = less(a[0], b[0])
    if len(a) > 1:
        tied = encode.equal(a[0], b[0])
        for x, y in zip(a[1:], b[1:], strict=True):
            before |= tied & less(x, y)
            tied &= encode.equal(x, y)
    return before


def _lexical(a: pa.Array, b: pa.Array) -> encode.BoolArray:
    return encode.to_mask(pc.less(a, b))


def _by_length(a: pa.Array, b: pa.Array) -> encode.BoolArray:
    before = pc.less(a, b)
    if pa.types.is_string(a.type) or pa.types.is_binary(a.type):
        m, n = pc.binary_length(a), pc.binary_length(b)
        before = pc.or_(pc.less(m, n), pc.and_(pc.equal(m, n), before))
    return encode.to_mask(before)
