"""Walking side by side: rows in step are found, whatever was inserted, deleted, replaced; and it knows when to stop."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tablekit import MemoryTable

from dvk.table.equal.forms import Equality, meet
from dvk.table.walk.ascent import Ascent
from dvk.table.walk.chain import heaviest_chain
from dvk.table.walk.feed import Cell, Feed, SideSpec
from dvk.table.walk.pace import Walk
from dvk.table.walk.sequence import in_order, positions


def spec(ids: list[int], batch_rows: int) -> SideSpec:
    data = pa.table({"id": pa.array(ids, pa.int64()), "x": pa.array([i % 5 for i in ids], pa.int64())})
    form = meet(pa.int64(), pa.int64(), Equality())
    cells = tuple(Cell(i, form, False, "") for i in (0, 1))
    return SideSpec(MemoryTable(data, batch_rows=batch_rows), (0, 1), cells, (0,))


def walked(
    a: list[int], b: list[int], *, mode: str = "key", batch_rows: int = 997, look_ahead: int = 1 << 26
) -> tuple[int, bool]:
    """Walk and check what is promised: (how many rows were in step, whether it gave up)."""
    with Feed(spec(a, batch_rows)) as x, Feed(spec(b, batch_rows + 50)) as y:
        walk = Walk(x, y, mode, look_ahead)
        at_a = at_b = matched = 0
        for step in walk.steps():
            assert step.a.numbers.tolist() == list(range(at_a, at_a + step.a.count))
            assert step.b.numbers.tolist() == list(range(at_b, at_b + step.b.count))
            assert (np.diff(step.ia) > 0).all() and (np.diff(step.ib) > 0).all()
            for i, j in zip(step.ia.tolist(), step.ib.tolist(), strict=True):
                assert a[at_a + i] == b[at_b + j]
            assert step.same.all()
            at_a, at_b, matched = at_a + step.a.count, at_b + step.b.count, matched + len(step.ia)
    assert (at_a, at_b) == (len(a), len(b))
    return matched, walk.gave_up


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["key", "content"]))
def test_edits_here_and_there_leave_the_rest_in_step(seed: int, mode: str) -> None:
    rng = random.Random(seed)
    n = rng.choice([0, 10, 3000, 20_000])
    a, b, kept = [], [], 0
    for i in range(n):
        roll = rng.random()
        if roll > 0.01:
            kept += 1
            a.append(i)
            b.append(i)
        elif roll > 0.006:
            a.append(i)
        elif roll > 0.003:
            b.append(10**6 + i)
        else:
            a.append(i)
            b.append(10**6 + i)
    assert walked(a, b, mode=mode) == (kept, False)


def test_big_blocks_are_looked_past() -> None:
    ids = list(range(200_000))
    for a, b in ((ids, ids[:1000] + ids[150_000:]), (ids[:1000] + ids[150_000:], ids), (ids, ids[:50_000])):
        assert walked(a, b, batch_rows=9000) == (min(len(a), len(b)), False)


def test_scrambled_rows_are_given_up_soon() -> None:
    rng = random.Random(1)
    ids = list(range(400_000))
    other = ids[:]
    rng.shuffle(other)
    assert walked(ids, other, batch_rows=30_000, look_ahead=1)[1]


def test_runs_of_equal_keys_are_walked_too() -> None:
    rng = random.Random(2)
    a = [rng.randrange(4) for _ in range(5000)]
    b = [x for x in a if rng.random() < 0.95]
    assert walked(a, b, mode="content")[0] > 0.9 * len(b)


@given(st.lists(st.integers(0, 5), max_size=14), st.lists(st.integers(0, 5), max_size=14))
def test_a_sequence_is_in_order_and_equal(a: list[int], b: list[int]) -> None:
    ia, ib = positions(in_order(np.array(a, np.int64), np.array(b, np.int64)))
    assert (np.diff(ia) > 0).all() and (np.diff(ib) > 0).all()
    assert [a[i] for i in ia] == [b[j] for j in ib]


def test_small_gaps_are_aligned_as_well_as_can_be() -> None:
    a, b = [1, 2, 3, 1, 2, 3, 1], [3, 1, 1, 2, 2, 3]
    ia, _ = positions(in_order(np.array(a), np.array(b)))
    assert len(ia) == 4


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), max_size=8))
def test_the_heaviest_chain_is_the_heaviest(runs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([r[k] for r in runs], np.int64) for k in (0, 1))
    chain = heaviest_chain(starts, lengths).tolist()
    assert all(starts[i] + lengths[i] <= starts[j] for i, j in pairwise(chain))
    best = 0
    for mask in range(1 << len(runs)):
        chosen = [k for k in range(len(runs)) if mask >> k & 1]
        if all(starts[i] + lengths[i] <= starts[j] for i, j in pairwise(chosen)):
            best = max(best, int(lengths[chosen].sum()) if chosen else 0)
    assert int(lengths[chain].sum()) == best


@given(st.lists(st.lists(st.integers(-3, 30), max_size=5), max_size=6), st.booleans())
def test_keys_that_ascend_are_unique(windows: list[list[int]], as_text: bool) -> None:
    """It never says unique of keys that repeat, and says so of numbers that ascend, in text as well."""
    ascent = Ascent()
    for window in windows:
        keys = pa.array([str(x) for x in window]) if as_text else pa.array(window, pa.int64())
        ascent.add([keys], np.arange(len(window)))
    everything = [x for window in windows for x in window]
    if ascent.holds():
        assert len(set(everything)) == len(everything)
    elif all(x >= 0 for x in everything):
        assert everything != sorted(set(everything))


def test_numbers_in_text_that_begin_with_as_many_digits() -> None:
    """Either order may hold at first; only one does later."""
    for windows in ((["5", "6"], ["10", "11"]), (["10", "11"], ["5", "6"]), (["a", "bb"], ["c"])):
        ascent = Ascent()
        for window in windows:
            ascent.add([pa.array(window)], np.arange(len(window)))
        assert ascent.holds()


def test_new_keys_in_between_are_set_aside_and_still_checked() -> None:
    for new, expected in ((1000, True), (-1, True), (7, False)):
        ascent = Ascent()
        ascent.add([pa.array(range(10))], np.arange(10))
        ascent.add([pa.array([10, new, 11])], np.array([0, 2]))
        assert ascent.holds() is expected
