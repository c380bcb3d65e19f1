"""Which rows of two lists correspond, when all there is to go by is their content and their order.

As `diff` does it for lines: the ends that are the same come off first; then rows that occur exactly once on each side
are anchors (patience diff), or rows that do together with those that follow; and what lies between two anchors is
looked at in the same way. What is small and has no anchors is compared row by row for a longest common subsequence.

>>> in_order(np.array([1, 2, 3, 4]), np.array([1, 9, 3, 4]))
[(0, 0, 1), (2, 2, 2)]

The answer is always right, in that the rows of a run are equal and runs are in order; it need not be the longest one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dvk.table.walk.chain import heaviest_chain

I64 = npt.NDArray[np.int64]
Run = tuple[int, int, int]

#: The largest table (rows of A x rows of B) that is compared row by row.
_FULL_CELLS = 1 << 22
_LONGEST_SPAN = 64  # rows that are looked at together
_MOST_RUNS = 20_000  # of anchors; more are out of order altogether


def in_order(a: I64, b: I64) -> list[Run]:
    """Runs (start in A, start in B, length) of equal values, ascending on both sides."""
    out: list[Run] = []
    todo = [(0, len(a), 0, len(b))]
    while todo:
        i, until_i, j, until_j = todo.pop()
        head = _common(a[i:until_i], b[j:until_j])
        if head:
            out.append((i, j, head))
            i, j = i + head, j + head
        tail = _common(a[i:until_i][::-1], b[j:until_j][::-1])
        if tail:
            until_i, until_j = until_i - tail, until_j - tail
            out.append((until_i, until_j, tail))
        if i == until_i or j == until_j or (until_i - i == 1 and until_j - j == 1):
            continue
        x, y = a[i:until_i], b[j:until_j]
        anchors = _anchors(x, y)
        if anchors:
            at_i, at_j = i, j
            for p, q, n in anchors:
                todo.append((at_i, i + p, at_j, j + q))
                out.append((i + p, j + q, n))
                at_i, at_j = i + p + n, j + q + n
            todo.append((at_i, until_i, at_j, until_j))
        elif len(x) * len(y) <= _FULL_CELLS:
            out += [(i + p, j + q, n) for p, q, n in _longest(x, y)]
    out.sort()
    return _merged(out)


def to_list(table: I64) -> list[Run]:
    """int64[r, 3] as runs."""
    return [(i, j, n) for i, j, n in table.tolist()]


def run_table(ia: I64, ib: I64) -> I64:
    """Pairs of positions as runs, int64[r, 3]: where there may be very many."""
    if not len(ia):
        return np.zeros((0, 3), np.int64)
    cuts = np.flatnonzero((np.diff(ia) != 1) | (np.diff(ib) != 1)) + 1
    starts = np.concatenate([np.zeros(1, np.int64), cuts])
    lengths = np.diff(np.concatenate([starts, [len(ia)]]))
    return np.stack([ia[starts], ib[starts], lengths], axis=1)


def positions(runs: list[Run]) -> tuple[I64, I64]:
    """Runs as pairs of positions, two int64[m]."""
    if not runs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    table = np.array(runs, np.int64)
    lengths = table[:, 2]
    inside = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(table[:, 0], lengths) + inside, np.repeat(table[:, 1], lengths) + inside


def _common(a: I64, b: I64) -> int:
    n = min(len(a), len(b))
    step, total = 16, 0
    while total < n:
        same = a[total : min(n, total + step)] == b[total : min(n, total + step)]
        if not same.all():
            return total + int(same.argmin())
        total += len(same)
        step *= 4
    return total


def _anchors(a: I64, b: I64) -> list[Run]:
    """Runs of rows that can be told from all others by themselves, else by the few rows that follow them."""
    _, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    x, y = codes[: len(a)].astype(np.int64), codes[len(a) :].astype(np.int64)
    span = 1
    while True:
        runs = _unique_runs(x, y)
        if runs is None:
            return []
        if runs or span >= _LONGEST_SPAN or min(len(x), len(y)) <= span:
            return runs
        # Each row together with what follows it: twice as many rows as before.
        size = int(max(x.max(), y.max())) + 1
        pairs = np.concatenate([x[:-span] * size + x[span:], y[:-span] * size + y[span:]])
        _, codes = np.unique(pairs, return_inverse=True)
        x, y = codes[: len(x) - span].astype(np.int64), codes[len(x) - span :].astype(np.int64)
        span *= 2


def _unique_runs(a: I64, b: I64) -> list[Run] | None:
    """Runs of values that occur once on each side, in order; None if they are too many to have one."""
    values_a, first_a, counts_a = np.unique(a, return_index=True, return_counts=True)
    values_b, first_b, counts_b = np.unique(b, return_index=True, return_counts=True)
    once_a, once_b = counts_a == 1, counts_b == 1
    _, at_a, at_b = np.intersect1d(values_a[once_a], values_b[once_b], assume_unique=True, return_indices=True)
    ia, ib = first_a[once_a][at_a], first_b[once_b][at_b]
    order = np.argsort(ia)
    table = run_table(ia[order], ib[order])
    if len(table) > _MOST_RUNS:
        return None
    return to_list(table[heaviest_chain(table[:, 1], table[:, 2])])


def _longest(a: I64, b: I64) -> list[Run]:
    """A longest common subsequence, by the whole table of lengths."""
    swap = len(a) > len(b)
    rows, columns = (b, a) if swap else (a, b)
    lengths = np.zeros((len(rows) + 1, len(columns) + 1), np.int32)
    for k, value in enumerate(rows):
        above = lengths[k]
        here = np.maximum(above[1:], np.where(columns == value, above[:-1] + 1, 0))
        np.maximum.accumulate(here, out=lengths[k + 1, 1:])
    found = []
    i, j = len(rows), len(columns)
    while i and j:
        if lengths[i, j] == lengths[i - 1, j]:
            i -= 1
        elif lengths[i, j] == lengths[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found.append((j, i, 1) if swap else (i, j, 1))
    return found[::-1]


def _merged(runs: list[Run]) -> list[Run]:
    """Runs that touch on both sides, joined."""
    out: list[Run] = []
    for i, j, n in runs:
        if out and out[-1][0] + out[-1][2] == i and out[-1][1] + out[-1][2] == j:
            out[-1] = (out[-1][0], out[-1][1], out[-1][2] + n)
        else:
            out.append((i, j, n))
    return out
