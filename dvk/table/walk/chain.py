"""The heaviest part of a list of runs that is in order on both sides.

Runs of rows that two tables share are found by content, so they come in the order of A with their places in B in any
order. What stayed in place is the heaviest chain of them whose places ascend; the others moved.

>>> heaviest_chain(np.array([50, 0, 10, 30]), np.array([5, 10, 20, 4])).tolist()
[1, 2, 3]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


def heaviest_chain(starts: I64, lengths: I64) -> I64:
    """Ascending positions of the heaviest runs [start, start + length) that follow one another without overlap.

    Takes n log n steps in Python where the runs are out of order, and one pass of numpy where they are not.
    """
    n = len(starts)
    ends = starts + lengths
    if n < 2 or bool((starts[1:] >= ends[:-1]).all()):
        return np.arange(n)
    places = np.unique(ends)
    before = np.searchsorted(places, starts, side="right").tolist()  # how many ends are not after each start
    rank = (np.searchsorted(places, ends) + 1).tolist()
    weight = lengths.tolist()
    size = len(places)
    best = [0] * (size + 1)  # a Fenwick tree of maxima over ends: the heaviest chain, and its last run
    last = [-1] * (size + 1)
    previous = [-1] * n
    heaviest, tail = 0, -1
    for i in range(n):
        total, from_run, at = 0, -1, before[i]
        while at:
            if best[at] > total:
                total, from_run = best[at], last[at]
            at &= at - 1
        total += weight[i]
        previous[i] = from_run
        if total > heaviest:
            heaviest, tail = total, i
        at = rank[i]
        while at <= size:
            if best[at] < total:
                best[at], last[at] = total, i
            at += at & -at
    chain = []
    while tail >= 0:
        chain.append(tail)
        tail = previous[tail]
    return np.array(chain[::-1], np.int64)
