"""Segments: equal digests are equal rows; the same rows are cut the same way, however they come by."""

from __future__ import annotations

import columnkit as kit
import numpy as np
import pyarrow as pa
import pytest
from columnkit import random_table
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.table.columnar.types import plain_array, plain_type
from dvk.table.contract import Region
from dvk.table.skip import segments as module
from dvk.table.skip.segments import MAX_ROWS, SegmentBuilder, Segments, row_hashes, spec_of


def plain(table: pa.Table) -> list[pa.Array]:
    return [plain_array(c, plain_type(c.type)) for c in table.combine_chunks().to_batches()[0].columns]


def build(columns: list[pa.Array], pieces: list[int], *, first: int = 0) -> Segments:
    """The segments of rows that come in batches of these lengths, again and again."""
    builder, at, i = SegmentBuilder(), 0, 0
    while at < len(columns[0]):
        step = min(pieces[i % len(pieces)], len(columns[0]) - at)
        builder.add(first + at, [c.slice(at, step) for c in columns])
        at, i = at + step, i + 1
    return builder.finish()


def small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "MIN_ROWS", 4)
    patch.setattr(module, "MAX_ROWS", 64)
    patch.setattr(module, "_CUT_MASK", np.uint64(7))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), pieces=st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_batches_make_no_difference(seed: int, pieces: list[int]) -> None:
    rng = np.random.default_rng(seed)
    columns = plain(random_table(rng, rows=300, columns=int(rng.integers(1, 5))))
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        whole, parts = build(columns, [300]), build(columns, pieces)
    assert whole.total_rows == 300 and whole.starts.tolist() == parts.starts.tolist()
    assert whole.rows.tolist() == parts.rows.tolist() and np.array_equal(whole.digests, parts.digests)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_equal_digests_are_equal_rows(seed: int) -> None:
    """And a changed value changes the digest of its segment and of no other that holds the same rows."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, rows=200, columns=int(rng.integers(1, 5)))
    other = kit.edited(rng, table)
    if other.schema != table.schema or not other.num_rows:
        return
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        a, b = build(plain(table), [200]), build(plain(other), [77])
    rows_a, rows_b = kit.plain_rows(table), kit.plain_rows(other)
    seen = {}
    for s, rows in ((a, rows_a), (b, rows_b)):
        for start, count, digest in zip(s.starts.tolist(), s.rows.tolist(), s.digests, strict=True):
            content = rows[start : start + count]
            assert seen.setdefault(digest.tobytes(), content) == content


def test_neighbours_of_an_edit_stay() -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"id": np.arange(60_000), "s": [f"t{v}" for v in rng.integers(0, 10**9, 60_000)]})
    edit = pa.concat_tables([table.slice(0, 20_000), table.slice(7, 1), table.slice(20_000)])
    a, b = build(plain(table), [10_000]), build(plain(edit), [10_000])
    shared = set(map(bytes, a.digests)) & set(map(bytes, b.digests))
    assert len(a.rows) > 30 and len(a.rows) - len(shared) <= 2
    assert 500 < a.total_rows / len(a.rows) < 2500


def test_tables_that_repeat_one_row() -> None:
    """Every row could be a cut, or none: segments stay within their limits."""
    for value in range(200):
        found = build([pa.array([value] * 30_000)], [7000])
        assert found.rows.max() <= MAX_ROWS and len(found.rows) <= 30_000 // 256 + 1 and found.total_rows == 30_000
    assert len(build([pa.nulls(100)], [9]).rows) == 1


def test_rows_that_are_left_out_end_a_segment() -> None:
    columns = [pa.array(range(1000))]
    builder = SegmentBuilder()
    builder.add(100, [columns[0].slice(100, 50)])
    builder.add(400, [columns[0].slice(400, 20)])
    builder.add(420, [columns[0].slice(420, 5)])
    found = builder.finish()
    assert (found.starts.tolist(), found.rows.tolist()) == ([100, 400], [50, 25])
    inside = found.inside([Region(0, 150), Region(401, 500)])
    assert inside.starts.tolist() == [100]
    assert found.inside([]).total_rows == 0 and found.inside([Region(99, 1000)]).total_rows == 75
    again = Segments.from_bytes(found.to_bytes(), rows=425)
    assert again is not None and again.starts.tolist() == [100, 400] and np.array_equal(again.digests, found.digests)


def test_what_lies_below_a_null_means_nothing() -> None:
    """Values of fixed width; two libraries leave different bytes there."""
    valid = pa.py_buffer(bytes([0b101]))
    arrays = [
        pa.Array.from_buffers(pa.int64(), 3, [valid, pa.py_buffer(np.array([1, x, 3], "<i8").tobytes())])
        for x in (7, 8)
    ]
    one, other = (build([a], [3]) for a in arrays)
    assert np.array_equal(one.digests, other.digests)
    assert not np.array_equal(build([pa.array([1, 0, 3])], [3]).digests, one.digests)


def test_the_format_is_frozen() -> None:
    """docs/format/table-cache.md; a change of any of this needs another name of the spec."""
    table = pa.table(
        {
            "i": pa.array([1, None, -3], pa.int64()),
            "b": pa.array([True, False, None]),
            "d": pa.array([None, 2, 3], pa.decimal128(20, 3)),
            "s": pa.array(["", None, "long enough text"]),
            "l": pa.array([[1], None, []], pa.list_(pa.int8())),
            "m": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int16())),
            "t": pa.array([{"x": 1.5}, None, {"x": None}], pa.struct([("x", pa.float64())])),
            "f": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int16(), 2)),
            "n": pa.nulls(3),
        }
    )
    columns = plain(table)
    found = build(columns, [3])
    assert [hex(h) for h in row_hashes(columns).tolist()] == ROW_HASHES
    assert found.digests.tobytes().hex() == DIGEST
    assert (spec_of([c.type for c in columns]) or b"").hex() == SPEC


ROW_HASHES = ["0x4ae494c5a6714f99", "0x6b1826912433ef00", "0x5a7281524652a8db"]
DIGEST = "46cfdb03cdd237af4f2f496d965061c4"
SPEC = "7365676d656e74732f31007e6f87956277f7f195f149b6fb8bb732"


def test_types_that_have_no_segments() -> None:
    assert spec_of([]) is None
    assert spec_of([pa.dense_union([pa.field("a", pa.int8())])]) is None
    assert spec_of([pa.int8(), pa.struct([])]) is None
    for kind, _ in kit.TYPES:
        assert spec_of([plain_type(kind)]) is not None
