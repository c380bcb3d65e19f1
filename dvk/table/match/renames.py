"""Columns that were renamed, by evidence: the same type, and the same values in rows that are the same otherwise.

A column that one side has alone and one that the other has alone are the same column if at least 95 % of their values
agree in matching rows of a sample, each is the other's best partner, and the values say something: a column of zeros
agrees with every column of zeros.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dvk.table.contract import Column
from dvk.table.equal import encode, forms, values
from dvk.table.equal.forms import Equality
from dvk.table.match.schema import Match
from dvk.table.walk.chain import I64
from dvk.table.walk.feed import Rows

#: The least share of equal values.
SCORE = 0.95

_EVIDENCE_ROWS = 3
_MOST = 64  # columns of each side that are tried


def find(
    a: Rows, b: Rows, matched: Match, key: tuple[int, ...], equality: Equality, *, untyped: tuple[bool, bool]
) -> list[tuple[str, str]]:
    """(label in A, label in B) of renamed columns.

    `a`, `b`: samples whose `raw` has all columns; `key`: pairs that identify rows, else rows match by all other
    columns; `untyped`: whether each side is text without types.
    """
    if not matched.removed or not matched.added or not matched.pairs:
        return []
    ia, ib = _matching(a, b, key or tuple(range(len(matched.pairs))))
    if len(ia) < _EVIDENCE_ROWS:
        return []
    scores = []
    for old in matched.removed[:_MOST]:
        for new in matched.added[:_MOST]:
            score = _score(a.raw, b.raw, old, new, ia, ib, equality, untyped)
            if score >= SCORE:
                scores.append((-score, abs(old.index - new.index), old.index, new.index, old, new))
    scores.sort(key=lambda s: s[:4])
    out: list[tuple[str, str]] = []
    used: set[tuple[str, int]] = set()
    for *_, old, new in scores:
        if ("a", old.index) not in used and ("b", new.index) not in used:
            used |= {("a", old.index), ("b", new.index)}
            out.append((old.label, new.label))
    return out


def _matching(a: Rows, b: Rows, columns: tuple[int, ...]) -> tuple[I64, I64]:
    """Positions of rows that agree in some columns, those only that no other row agrees with."""
    x, y = (encode.rows([rows.flat[c] for c in columns]) for rows in (a, b))
    codes = np.asarray(pc.dictionary_encode(pa.concat_arrays([x, y])).indices.to_numpy(zero_copy_only=False), np.int64)
    left, right = codes[: a.count], codes[a.count :]
    once_a, at_a, n_a = np.unique(left, return_index=True, return_counts=True)
    once_b, at_b, n_b = np.unique(right, return_index=True, return_counts=True)
    _, ka, kb = np.intersect1d(once_a[n_a == 1], once_b[n_b == 1], assume_unique=True, return_indices=True)
    return at_a[n_a == 1][ka], at_b[n_b == 1][kb]


def _score(
    a: pa.RecordBatch,
    b: pa.RecordBatch,
    old: Column,
    new: Column,
    ia: I64,
    ib: I64,
    equality: Equality,
    untyped: tuple[bool, bool],
) -> float:
    """Share of equal values; 0 where they cannot be the same column or say nothing."""
    if forms.storage(old.type) != forms.storage(new.type):
        return 0.0
    form = forms.meet(old.type, new.type, equality)
    if form is None:
        return 0.0
    x = values.flat(a.column(f"c{old.index}"), form, untyped=untyped[0]).take(pa.array(ia))
    y = values.flat(b.column(f"c{new.index}"), form, untyped=untyped[1]).take(pa.array(ib))
    if pc.count_distinct(x, mode="all").as_py() < 2:
        return 0.0
    return float(encode.equal(x, y).mean())
