"""The diff of two tables equals the edits that made one from the other, whatever they were and whatever was skipped."""

from __future__ import annotations

import collections
import datetime as dt
import random
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tablekit import MemoryTable, plan_for

from dvk.table.compare import compare
from dvk.table.contract import Plan
from dvk.table.options import CompareOptions

NAN = float("nan")
POOLS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int": (pa.int64(), [None, 0, 1, -1, 2**63 - 1, -(2**63)]),
    "uint": (pa.uint64(), [None, 0, 2**64 - 1]),
    "float": (pa.float64(), [None, NAN, 0.5, float("inf"), -1.25, 1e300]),
    "half": (pa.float16(), [None, 0.5, -2.0]),
    "bool": (pa.bool_(), [None, True, False]),
    "text": (pa.string(), [None, "", "a", "A", "a ", "ä", "x" * 40, "\x00"]),
    "bytes": (pa.binary(), [None, b"", b"\x00", b"\x00\x00"]),
    "decimal": (
        pa.decimal256(50, 3),
        [None, Decimal("1.100"), Decimal("-99999999999999999999999999999999999999999.125")],
    ),
    "time": (pa.timestamp("ns", "UTC"), [None, 0, 1, -1]),
    "span": (pa.duration("us"), [None, dt.timedelta(0), dt.timedelta(microseconds=1)]),
    "list": (pa.list_(pa.int32()), [None, [], [None], [1], [1, 2]]),
    "map": (pa.map_(pa.string(), pa.int8()), [None, [], [("a", 1)], [("a", 2)]]),
    "struct": (pa.struct({"p": pa.int8(), "q": pa.string()}), [None, {"p": 1, "q": None}, {"p": None, "q": "1"}]),
    "kind": (pa.dictionary(pa.int8(), pa.string()), [None, "u", "v"]),
}
KINDS = sorted(POOLS)


def _build(rows: list[tuple[Any, ...]], kinds: list[str], key: list[Any] | None) -> pa.Table:
    columns = {} if key is None else {"id": pa.array(key, pa.int64())}
    for n, kind in enumerate(kinds):
        type_, pool = POOLS[kind]
        values = [pool[row[n]] for row in rows]
        if kind == "kind":
            columns[f"{kind}{n}"] = pa.array(values, pa.string()).dictionary_encode()
        else:
            columns[f"{kind}{n}"] = pa.array(values, type_)
    return pa.table(columns) if columns else pa.table({"nothing": pa.array([None] * len(rows), pa.int8())})


@st.composite
def _cases(draw: st.DrawFn) -> tuple[random.Random, list[str]]:
    rng = random.Random(draw(st.integers(0, 2**32)))
    return rng, [rng.choice(KINDS) for _ in range(rng.randint(1, 4))]


def _row(rng: random.Random, kinds: list[str]) -> tuple[int, ...]:
    return tuple(rng.randrange(len(POOLS[kind][1])) for kind in kinds)


def _other(rng: random.Random, row: tuple[int, ...], kinds: list[str]) -> tuple[tuple[int, ...], set[int]]:
    """The row with one or more cells changed, and which."""
    changed = {n for n in range(len(kinds)) if rng.random() < 0.4} or {rng.randrange(len(kinds))}
    new = list(row)
    for n in changed:
        size = len(POOLS[kinds[n]][1])
        new[n] = (row[n] + rng.randrange(1, size)) % size
    return tuple(new), changed


@settings(max_examples=12, deadline=None)
@given(_cases())
def test_by_key_the_diff_equals_the_edits(case: tuple[random.Random, list[str]]) -> None:
    """Rows added, removed, changed and shuffled by construction come out exactly, with and without skipped rows."""
    rng, kinds = case
    n = rng.choice([0, 1, 5, 60, 400])
    ids = rng.sample(range(-10_000, 10_000), n) if rng.random() < 0.5 else list(range(n))
    before = {i: _row(rng, kinds) for i in ids}
    removed = {i for i in ids if rng.random() < 0.1}
    modified: dict[int, set[int]] = {}
    after: list[tuple[int, tuple[int, ...]]] = []
    for i in ids:
        if i in removed:
            continue
        row = before[i]
        if rng.random() < 0.15:
            row, modified[i] = _other(rng, row, kinds)
        after.append((i, row))
    added = {20_000 + k: _row(rng, kinds) for k in range(rng.choice([0, 1, 30]))}
    for i, row in added.items():
        after.insert(rng.randint(0, len(after)), (i, row))
    shuffled = rng.random() < 0.3
    if shuffled:
        rng.shuffle(after)
    a = _build([before[i] for i in ids], kinds, ids)
    b = _build([row for _, row in after], kinds, [i for i, _ in after])
    where_a = {i: k for k, i in enumerate(ids)}
    same = [(where_a[i], k) for k, (i, _) in enumerate(after) if i in before and i not in modified]
    for plan in (None, plan_for(same, (len(ids), len(after)), rng)):
        with compare(
            MemoryTable(a, batch_rows=rng.choice([7, 100])),
            MemoryTable(b, batch_rows=37),
            CompareOptions(key=("id",)),
            plan=plan,
        ) as diff:
            assert (diff.rows.added, diff.rows.removed, diff.rows.modified) == (len(added), len(removed), len(modified))
            assert diff.rows.unchanged == len(same)
            found = {c.key["id"]: c for c in diff.changes()}
            assert {i for i, c in found.items() if c.kind == "added"} == set(added)
            assert {i for i, c in found.items() if c.kind == "removed"} == removed
            assert {i for i, c in found.items() if c.kind == "modified"} == set(modified)
            for i, cells in modified.items():
                assert set(found[i].cells) == {f"{kinds[n]}{n}" for n in cells}
                assert found[i].a_row == where_a[i] and after[found[i].b_row or 0][0] == i
            per_column = collections.Counter(f"{kinds[n]}{n}" for cells in modified.values() for n in cells)
            assert {c.name: c.changed for c in diff.columns} == dict(per_column)
            assert sum(b.num_rows for b in diff.changed_rows("modified")) == len(modified)


def _bag_oracle(a: list[tuple[int, Any]], b: list[tuple[int, Any]]) -> tuple[int, int, int, int]:
    """added, removed, modified, same for rows (key, content): identical copies cancel, the rest pairs up per key."""
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    left_a = collections.Counter(
        k for (k, _), n in (collections.Counter(a) - collections.Counter(b)).items() for _ in range(n)
    )
    left_b = collections.Counter(
        k for (k, _), n in (collections.Counter(b) - collections.Counter(a)).items() for _ in range(n)
    )
    modified = sum((left_a & left_b).values())
    return sum(left_b.values()) - modified, sum(left_a.values()) - modified, modified, same


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_repeated_and_null_keys_are_a_bag_for_each_key(seed: int) -> None:
    """Copies cancel first, the rest is paired; counts are those of a brute-force count, also with skipped rows."""
    rng = random.Random(seed)
    n, keys = rng.choice([3, 20, 300]), rng.choice([1, 3, 10, 200])
    a = [(rng.randrange(keys), rng.randrange(3)) for _ in range(n)]
    b = [(k, rng.randrange(3)) if rng.random() < 0.2 else (k, x) for k, x in a if rng.random() < 0.9]
    b += [(rng.randrange(keys), rng.randrange(3)) for _ in range(rng.randrange(4))]
    same, at = [], 0
    for i, row in enumerate(a):
        if at < len(b) and b[at] == row and rng.random() < 0.9:
            same.append((i, at))
            at += 1
        elif at < len(b) and rng.random() < 0.3:
            at += 1

    def build(rows: list[tuple[int, int]]) -> MemoryTable:
        key = pa.array([None if k == 0 else k for k, _ in rows], pa.int64())
        return MemoryTable(pa.table({"k": key, "x": pa.array([x for _, x in rows], pa.int8())}), batch_rows=11)

    for plan in (None, plan_for(same, (len(a), len(b)), rng)):
        with compare(build(a), build(b), CompareOptions(key=("k",)), plan=plan) as diff:
            r = diff.rows
            assert (r.added, r.removed, r.modified, r.unchanged) == _bag_oracle(a, b)
            if plan is None:
                repeats = [sum(c - 1 for c in collections.Counter(k for k, _ in side).values()) for side in (a, b)]
                assert diff.key.duplicates == tuple(repeats) and diff.key.checked == "full"
                assert diff.key.nulls == tuple(sum(k == 0 for k, _ in side) for side in (a, b))
    with compare(build(a), build(b), CompareOptions(key=("k",), verify_key=True), plan=plan) as diff:
        assert diff.key.duplicates == tuple(repeats) and diff.key.checked == "full"
        assert diff.key.nulls == tuple(sum(k == 0 for k, _ in side) for side in (a, b))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["sequence", "bag", "position", "auto"]))
def test_without_a_key_every_row_is_accounted_for(seed: int, align: str) -> None:
    """A bag is the difference of multisets, a position is compared with the same position, a sequence explains both."""
    rng = random.Random(seed)
    n, spread = rng.choice([0, 3, 50, 400]), rng.choice([2, 10, 10_000])
    a = [rng.randrange(spread) for _ in range(n)]
    b = [rng.randrange(spread) if rng.random() < 0.1 else x for x in a if rng.random() < 0.95]
    for _ in range(rng.randrange(3)):
        b.insert(rng.randint(0, len(b)), rng.randrange(spread))
    if rng.random() < 0.2:
        rng.shuffle(b)

    def build(values: list[int]) -> MemoryTable:
        return MemoryTable(pa.table({"x": pa.array(values, pa.int32())}), batch_rows=13)

    with compare(build(a), build(b), CompareOptions(align=align, infer=False)) as diff:
        r = diff.rows
        moved = list(diff.changes(kinds=("moved",)))
        found = list(diff.changes())
    assert r.a == len(a) == r.removed + r.modified + r.unchanged
    assert r.b == len(b) == r.added + r.modified + r.unchanged
    assert len(moved) == r.moved and all(a[c.a_row or 0] == b[c.b_row or 0] for c in moved)
    for c in found:
        if c.kind == "modified":
            assert c.cells == {"x": (a[c.a_row or 0], b[c.b_row or 0])}
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    if diff.key.align == "bag":
        assert r.unchanged == common and r.modified == 0
    elif diff.key.align == "position":
        assert r.modified == sum(x != y for x, y in zip(a, b, strict=False)) and r.moved == 0
    else:
        assert r.unchanged == common  # in place or moved: content that is on both sides is found
        left_a = [x for i, x in enumerate(a) if i not in {c.a_row for c in [*found, *moved]}]
        left_b = [x for i, x in enumerate(b) if i not in {c.b_row for c in [*found, *moved]}]
        assert left_a == left_b  # what is left is in the same order


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_a_plan_in_order_changes_no_sequence(seed: int) -> None:
    """Without a key, rows that a plan skips stay in place: what is left is aligned between them, and adds up."""
    rng = random.Random(seed)
    a = [rng.randrange(1000) for _ in range(200)]
    b, same = [], []
    for i, x in enumerate(a):
        if rng.random() < 0.05:
            continue
        if rng.random() < 0.05:
            b.append(rng.randrange(1000))
        if rng.random() < 0.9:
            same.append((i, len(b)))
            b.append(x)
        else:
            b.append(rng.randrange(1000))
    plan = plan_for(same, (len(a), len(b)), rng)

    def build(values: list[int]) -> MemoryTable:
        return MemoryTable(pa.table({"x": pa.array(values, pa.int32())}), batch_rows=13)

    for use in (None, plan, Plan(plan.level, plan.a, plan.b, skipped=plan.skipped)):
        with compare(build(a), build(b), CompareOptions(align="sequence", infer=False), plan=use) as diff:
            r = diff.rows
            changed = list(diff.changes(kinds=("added", "removed", "modified", "moved")))
            assert diff.cost.rows_skipped == (2 * plan.skipped if use is plan else 0)
        left_a = [x for i, x in enumerate(a) if i not in {c.a_row for c in changed}]
        left_b = [x for i, x in enumerate(b) if i not in {c.b_row for c in changed}]
        assert left_a == left_b
        assert r.unchanged >= len(same) or use is None
        assert r.unchanged == sum((collections.Counter(a) & collections.Counter(b)).values())


@pytest.mark.parametrize("rows", [(200_000, 1)])
def test_rows_far_apart_are_found_by_key(rows: tuple[int, int]) -> None:
    """A block that moved to the other end is unchanged by key, and moved without one."""
    n = rows[0]
    ids = list(range(n))
    moved = ids[150_000:] + ids[:150_000]
    a, b = (MemoryTable(pa.table({"id": pa.array(x, pa.int64())}), batch_rows=20_000) for x in (ids, moved))
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert diff.rows.equal and diff.rows.unchanged == n
    with compare(a, b, CompareOptions(infer=False)) as diff:
        assert (diff.rows.unchanged, diff.rows.moved) == (n, 50_000)
