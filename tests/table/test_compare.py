"""What a comparison says: counts, cells, schema, keys, and that it says nothing rather than something wrong."""

from __future__ import annotations

import datetime as dt
import os
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tablekit import MemoryTable, table, text

from dvk.errors import TableError, UsageError
from dvk.table.answer import cells as cells_of
from dvk.table.answer.fetch import Fetch
from dvk.table.compare import compare
from dvk.table.contract import I64, Aligned, Plan, ReadOptions, Region, Tolerance
from dvk.table.memory import Limits
from dvk.table.open import open_table
from dvk.table.options import CompareOptions
from dvk.table.result import RowCounts
from dvk.table.source import BytesSource

NAN = float("nan")


def counts(rows: RowCounts) -> tuple[int, int, int, int]:
    return rows.added, rows.removed, rows.modified, rows.unchanged


def test_cells_of_a_modified_row_have_old_and_new_values() -> None:
    a = text({"id": ["1", "2", "3"], "price": ["1.10", "5", "7"], "note": ["x", None, "z"]})
    b = text({"id": ["2", "3", "4"], "price": ["5", "8", "9"], "note": ["y", "z", ""]})
    with compare(a, b) as diff:
        assert diff.key.columns == ("id",) and diff.key.source == "inferred" and diff.key.checked == "full"
        assert counts(diff.rows) == (1, 1, 2, 0)
        removed, two, three, added = list(diff.changes())
        assert (removed.kind, removed.a_row, removed.values) == (
            "removed",
            0,
            {"id": "1", "price": "1.10", "note": "x"},
        )
        assert (two.key, two.cells, two.a_row, two.b_row) == ({"id": "2"}, {"note": (None, "y")}, 1, 0)
        assert three.cells == {"price": ("7", "8")}
        assert (added.kind, added.b_row, added.values["note"]) == ("added", 2, "")
        columns = {c.name: c for c in diff.columns}
        assert columns["note"].null_to_value == 1 and columns["note"].top == (((None, "y"), 1),)
        assert columns["price"].movement is not None and columns["price"].movement.mean == 1.0
        assert not diff.equal and diff.complete
    assert a.closed and b.closed


@pytest.mark.parametrize(
    ("old", "new", "rise", "fall"),
    [
        (pa.array([2**62, 2**63 - 1]), pa.array([2**62 + 1, 2**63 - 3]), 1.0, -2.0),
        (pa.array([2**64 - 1, 0], pa.uint64()), pa.array([2**64 - 3, 1], pa.uint64()), 1.0, -2.0),
        (pa.array([100, -100], pa.int8()), pa.array([-100, 100], pa.int8()), 200.0, -200.0),
        (
            pa.array([Decimal("99999999999999999999.10"), Decimal(0)], pa.decimal128(38, 2)),
            pa.array([Decimal("99999999999999999999.30"), Decimal("-0.1")], pa.decimal128(38, 2)),
            0.2,
            -0.1,
        ),
    ],
)
def test_movements_of_large_numbers_are_exact(old: pa.Array, new: pa.Array, rise: float, fall: float) -> None:
    """Beyond what floats hold, the difference is taken first and rounded then."""
    a, b = (MemoryTable(pa.table({"id": [1, 2], "x": values})) for values in (old, new))
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        moved = diff.columns[0].movement
        assert moved is not None
        assert (moved.count, moved.largest_rise, moved.largest_fall) == (2, rise, fall)
        assert moved.mean == (rise + fall) / 2


def test_the_same_table_is_equal() -> None:
    columns = {"id": [1, 2], "x": [NAN, None]}
    with compare(table(columns), table(columns)) as diff:
        assert diff.equal and list(diff.changes()) == [] and counts(diff.rows) == (0, 0, 0, 2)


def test_order_and_paging_are_the_same_on_each_run() -> None:
    """Numbers in text sort as numbers; limit and offset cut the same list; position sorts as in the file."""
    a = text({"id": [str(i) for i in range(30)], "x": ["a"] * 30})
    b = text({"id": [str(i) for i in reversed(range(30))], "x": ["b"] * 30})
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        keys = [c.key["id"] for c in diff.changes()]
        assert keys == [str(i) for i in range(30)]
        assert [c.key["id"] for c in diff.changes(limit=4, offset=8)] == keys[8:12]
        assert [c.key["id"] for c in diff.changes(sort="position", limit=2)] == ["29", "28"]
        assert list(diff.changes(limit=0)) == [] and list(diff.changes(kinds=())) == []
        assert next(diff.changes(full=True, limit=1)).values == {"id": "0"}
        with pytest.raises(UsageError):
            list(diff.changes(kinds=("changed",)))
        with pytest.raises(UsageError):
            list(diff.changes(sort="column"))


def test_arrow_rows_carry_the_users_labels() -> None:
    a = MemoryTable(pa.table([[1, 2, 3], ["p", "q", "r"], [1.0, 2.0, 3.0]], names=["id", "x", "x"]))
    b = MemoryTable(pa.table([[2, 3, 4], ["q", "s", "t"], [2.5, 3.0, 4.0]], names=["id", "x", "x"]))
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        (modified,) = diff.changed_rows("modified")
        assert modified.to_pylist() == [
            {"a_row": 1, "b_row": 0, "id": 2, "x__a": "q", "x__b": "q", "x#2__a": 2.0, "x#2__b": 2.5},
            {"a_row": 2, "b_row": 1, "id": 3, "x__a": "r", "x__b": "s", "x#2__a": 3.0, "x#2__b": 3.0},
        ]
        (added,) = diff.changed_rows("added")
        assert added.to_pylist() == [{"b_row": 2, "id": 4, "x": "t", "x#2": 4.0}]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (pa.array([1, None], pa.int32()), pa.array([1, None], pa.int64()), True),
        (pa.array([1, 2], pa.int8()), pa.array([1.0, 2.5]), [True, False]),
        (pa.array([2**63], pa.uint64()), pa.array([2.0**63]), True),
        (pa.array([2**53 + 1]), pa.array([2.0**53]), False),
        (pa.array([-1], pa.int64()), pa.array([2**64 - 1], pa.uint64()), False),
        (pa.array([Decimal("1.10")]), pa.array([Decimal("1.1")], pa.decimal256(60, 1)), True),
        (pa.array([1, 2]), pa.array([Decimal("1.00"), Decimal("2.01")]), [True, False]),
        (pa.array([1], pa.timestamp("s")), pa.array([1000], pa.timestamp("ms")), True),
        (pa.array([1], pa.timestamp("s", "Asia/Tokyo")), pa.array([1], pa.timestamp("s", "UTC")), True),
        (pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("s", "UTC")), False),
        (pa.array([dt.date(2020, 1, 1)]), pa.array([dt.date(2020, 1, 1)], pa.date64()), True),
        (pa.array([1], pa.time32("s")), pa.array([10**9], pa.time64("ns")), True),
        (pa.array([1], pa.duration("s")), pa.array([1001], pa.duration("ms")), False),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "c"], pa.large_string()), [True, False]),
        (pa.array([b"ab"], pa.binary(2)), pa.array([b"ab"], pa.large_binary()), True),
        (pa.array(["1"]), pa.array([1]), False),
        (pa.array([None, None], pa.string()), pa.array([None, 1]), [True, False]),
        (pa.array([NAN, -0.0], pa.float32()), pa.array([NAN, 0.0]), True),
        (pa.array([[1, None], []]), pa.array([[1.0, None], None]), [True, False]),
        (pa.array([{"a": 1, "b": 2}]), pa.array([{"b": 2, "a": 1}]), True),
        (pa.array([{"a": 1}]), pa.array([{"a": 1, "b": None}]), False),
        (pa.array([b""]), pa.array([""]), False),
        (pa.array([True]), pa.array([1]), False),
    ],
)
def test_types_may_change_and_values_are_compared_without_loss(old: pa.Array, new: pa.Array, same: Any) -> None:
    """A widened type is a change of schema and of no cell; what cannot be equal is not called equal."""
    expected = [same] * len(old) if isinstance(same, bool) else same
    key = pa.array(range(len(old)))
    a, b = (MemoryTable(pa.table({"id": key, "x": x})) for x in (old, new))
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        changed = {c.key["id"] for c in diff.changes()}
        assert [i not in changed for i in range(len(old))] == expected
        assert [s.kind for s in diff.schema] == (["retyped"] if old.type != new.type else [])


def test_float_bits_tell_zeros_apart() -> None:
    a, b = table({"id": [1, 2], "x": [-0.0, NAN]}), table({"id": [1, 2], "x": [0.0, NAN]})
    with compare(a, b, CompareOptions(key=("id",), float_bits=True)) as diff:
        assert diff.rows.modified == 1


def test_maps_are_sets_of_entries() -> None:
    kind = pa.map_(pa.string(), pa.int32())
    a = table({"id": [1, 2], "m": pa.array([[("a", 1), ("b", 2)], [("a", 1)]], kind)})
    b = table({"id": [1, 2], "m": pa.array([[("b", 2), ("a", 1)], [("a", 2)]], kind)})
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert [c.key["id"] for c in diff.changes()] == [2]


def test_text_that_is_the_same_number_is_formatting_and_told_apart() -> None:
    a = text({"id": ["1", "2", "3", "4", "5"], "x": ["1.10", "a  b", "Ab", "100", "0x1"]})
    b = text({"id": ["1", "2", "3", "4", "5"], "x": ["+1.1", "a b ", "ab", "1e2", "0x01"]})
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert diff.rows.modified == 5
        assert (diff.columns[0].changed, diff.columns[0].formatting_only) == (5, 3)
    with compare(a, b, CompareOptions(key=("id",), ignore_case=True, ignore_space=True)) as diff:
        assert [c.key["id"] for c in diff.changes()] == ["1", "4", "5"]


def test_null_values_are_text_only() -> None:
    a, b = text({"id": ["1", "2"], "x": ["NA", "-"]}), text({"id": ["1", "2"], "x": [None, "NA"]})
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert diff.rows.modified == 2
    with compare(a, b, CompareOptions(key=("id",), null_values=("NA", "-"))) as diff:
        assert diff.rows.equal


def test_tolerance_absolute_relative_and_of_a_column() -> None:
    a = table({"id": [1, 2, 3, 4], "x": [1.0, 100.0, NAN, 2.0], "y": [0, 0, 0, 2**60]})
    b = table({"id": [1, 2, 3, 4], "x": [1.05, 101.0, 1.0, float("inf")], "y": [0, 0, 0, 2**60 + 1]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.1))) as diff:
        assert [c.key["id"] for c in diff.changes()] == [2, 3, 4]
        assert next(diff.changes(limit=1)).cells == {"x": (100.0, 101.0)}
        assert {c.name: (c.changed, c.within_tolerance) for c in diff.columns} == {"x": (3, 1), "y": (1, 0)}
        assert counts(diff.rows) == (0, 0, 3, 1)
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(relative=0.05, columns={"y": 1}))) as diff:
        assert {c.name: (c.changed, c.within_tolerance) for c in diff.columns} == {"x": (2, 2), "y": (0, 1)}
    t1, t2 = dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 0, 0, 1)
    a, b = table({"id": [1], "t": [t1]}), table({"id": [1], "t": [t2]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=9))) as diff:
        assert diff.rows.modified == 1  # of times only where a column is named
    a, b = table({"id": [1], "t": [t1]}), table({"id": [1], "t": [t2]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(columns={"t": 1}))) as diff:
        assert diff.rows.equal and diff.columns[0].within_tolerance == 1


def test_tolerance_of_numbers_in_text() -> None:
    a = text({"id": ["1", "2", "3"], "x": ["1.00", "x", "9007199254740993"]})
    b = text({"id": ["1", "2", "3"], "x": ["1.01", "y", "9007199254740992"]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.5))) as diff:
        assert [c.key["id"] for c in diff.changes()] == ["2", "3"]


def test_tolerance_is_exact_at_its_border() -> None:
    """A cent is a cent wherever it was spent: what floats make of decimals, texts and large numbers decides nothing."""
    old = ["1.10", "0.3", "9.99", "100.00", "-0.30", "9007199254740993", "1.10", "1e-3"]
    new = ["1.11", "0.31", "10.00", "100.01", "-0.29", "9007199254740993.01", "1.110000000000000000001", "0.0110001"]
    a, b = (text({"id": list("12345678"), "x": x}) for x in (old, new))
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(columns={"x": 0.01}))) as diff:
        assert [c.key["id"] for c in diff.changes()] == ["7", "8"]
        assert diff.columns[0].within_tolerance == 6
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.00999999999))) as diff:
        assert diff.rows.modified == 8
    money = pa.decimal128(6, 2)
    a, b = (
        table({"id": [1, 2, 3], "x": pa.array([Decimal(v) for v in x], money)})
        for x in (("1.10", "1.10", "10.00"), ("1.11", "1.12", "11.00"))
    )
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.01))) as diff:
        assert [c.key["id"] for c in diff.changes()] == [2, 3]
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(relative=1 / 11))) as diff:
        assert diff.rows.equal  # 1 of 11
    a, b = table({"id": [1, 2], "x": [2**53 + 1, 0]}), table({"id": [1, 2], "x": [2**53 + 2, 2]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=1))) as diff:
        assert [c.key["id"] for c in diff.changes()] == [2]
    a, b = table({"id": [1, 2], "x": [0.0, 1.10]}), table({"id": [1, 2], "x": [0.01, 1.11]})
    with compare(a, b, CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.01))) as diff:
        assert [c.key["id"] for c in diff.changes()] == [2]  # floats are what they are: 0.01000000000000000888 apart


@pytest.mark.parametrize("bad", [NAN, -0.1])
def test_a_tolerance_is_a_number_from_0(bad: float) -> None:
    for tolerance in (Tolerance(absolute=bad), Tolerance(relative=bad), Tolerance(columns={"x": bad})):
        with pytest.raises(UsageError, match="0 or more"):
            CompareOptions(tolerance=tolerance)


def test_half_a_surrogate_pair_equals_nothing_of_another_format() -> None:
    """Text that only JSON can hold is compared with a table of text, by value, and is no failure."""
    lines = b'{"id": 1, "x": "\\ud800"}\n{"id": 2, "x": "\\ud83d\\ude00"}\n{"id": 3, "x": "a\\tb"}\n'
    a, b = (
        open_table(BytesSource(lines, name=b"a.jsonl")),
        open_table(BytesSource("id,x\n1,\ufffd\n2,\U0001f600\n3,a\tb\n".encode(), name=b"b.csv")),
    )
    with compare(a, b, CompareOptions(key=("id",), coerce=True)) as diff:
        assert [(c.key["id"], c.cells["x"][1]) for c in diff.changes()] == [("1", "\ufffd")]


@pytest.mark.parametrize("width", ["f4", "f8"])
def test_nans_of_any_bits_are_one_value(width: str) -> None:
    """0/0 has another sign on the next machine; as a value, in a list and in a key it is NaN all the same."""
    bits = [0x7FF8_0000_0000_0000, 0xFFF8_0000_0000_0000, 0x7FF8_0000_0000_1000]
    if width == "f4":
        bits = [0x7FC0_0000, 0xFFC0_0000, 0x7FC0_0001]
    nans = np.array(bits, width.replace("f", "u")).view(width)
    a, b = (
        table({"id": [1, 2, 3], "x": pa.array(x), "l": [[v] for v in x.tolist()]}) for x in (nans, np.roll(nans, 1))
    )
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert diff.rows.equal
    a, b = (table({"k": pa.array(nans[n : n + 1]), "x": [1]}) for n in (0, 1))
    with compare(a, b, CompareOptions(key=("k",))) as diff:
        assert counts(diff.rows) == (0, 0, 0, 1)


def test_a_plan_is_set_aside_where_other_rows_or_columns_are_asked_for() -> None:
    """Skipped rows are equal as a whole, which says nothing of one column against another or of who takes part."""
    a = table({"id": list(range(10)), "x": list(range(10)), "y": [5] * 10})
    b = table({"id": list(range(10)), "x": list(range(10)), "y": [5] * 9 + [6]})
    most = Plan("L1", (Region(9, 1),), (Region(9, 1),), skipped=9, ordered=True)
    with compare(a, b, CompareOptions(key=("id",), where="id >= 5"), plan=most) as diff:
        assert (diff.rows.a, diff.rows.b) == (5, 5) and counts(diff.rows) == (0, 0, 1, 4)
    with compare(a, b, CompareOptions(key=("id",)), plan=most) as diff:
        assert counts(diff.rows) == (0, 0, 1, 9) and diff.cost.level == "L1"
    same = table({"id": list(range(10)), "x": list(range(10)), "y": [5] * 10})
    everything = Plan("L0", (), (), skipped=10, ordered=True)
    with compare(a, same, CompareOptions(key=("id",), rename=(("x", "y"),)), plan=everything) as diff:
        assert counts(diff.rows) == (0, 0, 9, 1)  # x of A and y of B are both 5 in one row
        assert [c.kind for c in diff.schema if c.kind in ("renamed", "added", "removed")] == [
            "removed",
            "added",
            "renamed",
        ]


def test_rows_of_a_gap_are_paired_only_where_both_sides_have_as_many() -> None:
    """Without a key nothing says which of two rows became which of three, so none did."""
    options = CompareOptions(infer=False, align="sequence")
    a = table({"x": ["k1", "p", "q", "k2", "k3"]})
    for new, expected in (("rst", (3, 2, 0, 3)), ("rs", (0, 0, 2, 3)), ("r", (1, 2, 0, 3)), ("", (0, 2, 0, 3))):
        with compare(a, table({"x": ["k1", *new, "k2", "k3"]}), options) as diff:
            assert counts(diff.rows) == expected
            assert [(c.a_row, c.b_row) for c in diff.changes(kinds=("modified",))] == [(1, 1), (2, 2)][: expected[2]]


def test_names_that_look_like_numbers_of_repeated_ones() -> None:
    """`x`, `x` and `x#2` are three columns, each paired with itself, also where the other version lacks one."""
    header, rows = b"id,x,x,x#2\n", (b"1,a,b,c\n2,a,b,c\n", b"1,a,b,d\n2,a,e,c\n")
    a, b = (open_table(BytesSource(header + part, name=b"t.csv")) for part in rows)
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert not diff.schema
        assert [c.cells for c in diff.changes()] == [{"x#2": ("c", "d")}, {"x##2": ("b", "e")}]
    a, b = (
        open_table(BytesSource(text, name=b"t.csv"))
        for text in (b"id,x,x\n1,a,b\n2,c,d\n", b"id,x,x#2,x\n1,a,!,b\n2,c,!,D\n")
    )
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert [(c.kind, c.b and c.b.name) for c in diff.schema] == [("added", "x#2")]
        assert [c.cells for c in diff.changes()] == [{"x##2": ("d", "D")}]


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    """Also where the first record is a row, and in JSON Lines."""
    for name, plain, options in (
        (b"t.csv", b"1,a\n2,b\n", ReadOptions(header=False)),
        (b"t.jsonl", b'{"id": 1}\n{"id": 2}\n', ReadOptions()),
    ):
        a, b = (open_table(BytesSource(text, name=name), options) for text in (plain, b"\xef\xbb\xbf" + plain))
        with compare(a, b, CompareOptions(infer=False)) as diff:
            assert diff.equal and diff.rows.unchanged == 2


def test_schema_changes() -> None:
    a = MemoryTable(
        pa.schema(
            [
                pa.field("id", pa.int64()),
                pa.field("gone", pa.int8()),
                pa.field("p", pa.int8()),
                pa.field("q", pa.int8(), nullable=False),
                pa.field("Name", pa.string()),
            ]
        ).empty_table()
    )
    b = MemoryTable(
        pa.schema(
            [
                pa.field("q", pa.int8()),
                pa.field("id", pa.int32()),
                pa.field("p", pa.int8()),
                pa.field("new", pa.int8()),
                pa.field("name", pa.string()),
            ]
        ).empty_table(),
        text=True,
    )
    with compare(a, b) as diff:
        found = {(s.kind, s.a.label if s.a else None, s.b.label if s.b else None) for s in diff.schema}
    assert found == {
        ("format", None, None),
        ("removed", "gone", None),
        ("removed", "Name", None),
        ("added", None, "new"),
        ("added", None, "name"),
        ("retyped", "id", "id"),
        ("nullability", "q", "q"),
        ("reordered", "q", "q"),
    }


def test_renames_are_inferred_from_values_or_told() -> None:
    rows = 200
    data = {"id": list(range(rows)), "zero": [0] * rows, "old": [f"v{i}" for i in range(rows)]}
    changed = [*data["old"][:-1], "other"]
    with compare(table(data), table({"id": data["id"], "none": data["zero"], "new": changed})) as diff:
        renamed = [s for s in diff.schema if s.kind == "renamed"]
        assert [(s.a.label, s.b.label, s.score) for s in renamed if s.a and s.b] == [("old", "new", 1 - 1 / rows)]
        assert {s.kind for s in diff.schema} == {"renamed", "removed", "added"}  # a column of zeros is no evidence
        assert [c.cells for c in diff.changes()] == [{"new": (f"v{rows - 1}", "other")}]
    a, b = table({"id": [1], "p": ["x"]}), table({"id": [1], "q": ["y"]})
    with compare(a, b, CompareOptions(rename=(("p", "q"),))) as diff:
        assert diff.rows.modified == 1 and diff.schema[0].score is None
    with pytest.raises(TableError, match="no column 'nope'"):
        compare(a, b, CompareOptions(rename=(("nope", "q"),)))


def test_ignore_and_only_leave_columns_out_but_never_the_key() -> None:
    a = table({"id": [1], "x_at": [1], "y": [1], "z": [1]})
    b = table({"id": [1], "x_at": [2], "y": [1], "w": [2]})
    with compare(a, b, CompareOptions(key=("id",), ignore=("*_at", "id", "w", "z"))) as diff:
        assert diff.equal
    with compare(a, b, CompareOptions(key=("id",), only=("y",))) as diff:
        assert diff.equal and diff.key.columns == ("id",)
    with pytest.raises(TableError, match="no column matches"):
        compare(a, b, CompareOptions(only=("yy",)))


def test_where_applies_to_both_sides() -> None:
    a = text({"id": ["1", "2", "3"], "price": ["5", "20", "x"]})
    b = text({"id": ["1", "2", "3"], "price": ["15", "20", "30"]})
    with compare(a, b, CompareOptions(key=("id",), where="price > 10")) as diff:
        assert counts(diff.rows) == (2, 0, 0, 1) and (diff.rows.a, diff.rows.b) == (1, 3)


@pytest.mark.parametrize(
    "expression", ["1) from read_csv('/etc/passwd') where (1=1", "getenv('HOME') = 'x'", "1; select 1", ""]
)
def test_where_is_one_harmless_expression(expression: str) -> None:
    a, b = text({"id": ["1"]}), text({"id": ["1"]})
    with pytest.raises(UsageError):
        compare(a, b, CompareOptions(where=expression))


def test_a_where_that_fails_says_so() -> None:
    a, b = text({"id": ["1"], "x": ["p"]}), text({"id": ["1"], "x": ["q"]})
    with pytest.raises(TableError, match="where"):
        compare(a, b, CompareOptions(where="x::int > 1"))


class TestKeys:
    def test_a_key_that_is_not_there_is_named(self) -> None:
        with pytest.raises(TableError, match="no column 'ids'") as caught:
            compare(table({"id": [1]}), table({"id": [1]}), CompareOptions(key=("ids",)))
        assert "'id'" in caught.value.hint

    def test_a_composite_key_is_not_a_concatenation(self) -> None:
        a = text({"p": ["1", "11"], "q": ["11", "1"], "x": ["a", "b"]})
        b = text({"p": ["1", "11"], "q": ["11", "1"], "x": ["a", "c"]})
        with compare(a, b, CompareOptions(key=("p", "q"))) as diff:
            assert [c.key for c in diff.changes()] == [{"p": "11", "q": "1"}]

    def test_the_file_says_its_key(self) -> None:
        a = table({"n": [3, 4], "x": [1, 1]}, key=("n",))
        with compare(a, table({"n": [3, 4], "x": [1, 2]}, key=("n",))) as diff:
            assert diff.key.source == "file" and diff.key.columns == ("n",)

    def test_an_inferred_key_is_refuted_by_repeats_beyond_the_sample(self) -> None:
        n = 25_000
        ids = np.arange(n)
        ids[-1] = 0
        a = MemoryTable(pa.table({"id": ids, "code": np.arange(n)}), batch_rows=5000)
        with compare(a, MemoryTable(a.data, batch_rows=5000)) as diff:
            assert diff.key.columns == ("code",)

    def test_an_inferred_key_must_find_its_rows_again(self) -> None:
        n = 300
        a = table({"code": [f"a{i}" for i in range(n)], "v": [i * 7 % 13 for i in range(n)]})
        b = table({"code": [f"b{i}" for i in range(n)], "v": [i * 7 % 13 for i in range(n)]})
        with compare(a, b) as diff:
            assert diff.key.source == "none" and diff.key.align == "sequence" and diff.rows.modified == n

    def test_floats_and_small_tables_give_no_key(self) -> None:
        a, b = table({"x": [1.5, 2.5], "y": ["p", "q"]}), table({"x": [1.5, 3.5], "y": ["p", "q"]})
        with compare(a, b) as diff:
            assert diff.key.source == "none"
        t = text({"x": [f"{i}.5" for i in range(200)]})
        with compare(t, t) as diff:
            assert diff.key.source == "none"

    def test_strict_refuses_to_guess(self) -> None:
        a = table({"id": [1]})
        with pytest.raises(TableError, match="nobody said"):
            compare(a, a, CompareOptions(key_strict=True))
        with compare(a, a, CompareOptions(key_strict=True, key=("id",), key_source="config")) as diff:
            assert diff.key.source == "config"

    def test_repeats_are_counted_and_shown(self) -> None:
        a = table({"k": [1, 1, 2, None], "x": ["p", "q", "r", "s"]})
        b = table({"k": [1, 1, 2, None], "x": ["q", "t", "r", "u"]})
        with compare(a, b, CompareOptions(key=("k",))) as diff:
            assert diff.key.duplicates == (1, 1) and diff.key.nulls == (1, 1) and diff.key.samples == ("1",)
            assert counts(diff.rows) == (0, 0, 2, 2)
            assert {n.code for n in diff.notices} == {"duplicate-keys", "null-keys"}
            assert [c.cells for c in diff.changes()] == [{"x": ("p", "t")}, {"x": ("s", "u")}]
        with pytest.raises(TableError, match="not unique"):
            compare(a, b, CompareOptions(key=("k",), on_dup="error"))
        with compare(a, b, CompareOptions(key=("k",), on_dup="first")) as diff:
            assert counts(diff.rows) == (0, 0, 2, 1) and (diff.rows.a, diff.rows.b) == (3, 3)
            assert "repeats-left-out" in {n.code for n in diff.notices}

    def test_a_repeat_among_skipped_rows_is_found_when_asked(self) -> None:
        a = table({"k": [5, 5, 6], "x": [1, 2, 3]})
        b = table({"k": [5, 5, 6], "x": [1, 2, 4]})
        plan = Plan("L1", (Region(2, 1),), (Region(2, 1),), skipped=2, ordered=True)
        with compare(a, b, CompareOptions(key=("k",)), plan=plan) as diff:
            assert diff.key.checked == "partial" and diff.key.duplicates == (0, 0) and counts(diff.rows) == (0, 0, 1, 2)
        with compare(a, b, CompareOptions(key=("k",), verify_key=True), plan=plan) as diff:
            assert diff.key.checked == "full" and diff.key.duplicates == (1, 1) and diff.key.samples == ("5",)
        with pytest.raises(TableError, match="not unique"):
            compare(a, b, CompareOptions(key=("k",), on_dup="error"), plan=plan)

    def test_keys_of_new_rows_within_the_old_range_are_checked(self) -> None:
        """Ids ascend, but a new row in the middle repeats an id from far below."""
        n = 70_000
        ids = list(range(n))
        a = MemoryTable(pa.table({"id": ids}), batch_rows=9000)
        b = MemoryTable(pa.table({"id": [*ids[:50_000], 7, *ids[50_000:]]}), batch_rows=9000)
        with compare(a, b, CompareOptions(key=("id",))) as diff:
            assert diff.key.duplicates == (0, 1) and diff.key.samples == ("7",) and counts(diff.rows) == (1, 0, 0, n)
        for new in (-5, n + 9):
            b = MemoryTable(pa.table({"id": [*ids[:50_000], new, *ids[50_000:]]}), batch_rows=9000)
            with compare(a, b, CompareOptions(key=("id",))) as diff:
                assert diff.key.duplicates == (0, 0) and counts(diff.rows) == (1, 0, 0, n)

    def test_a_key_whose_types_never_meet_is_refused(self) -> None:
        with pytest.raises(TableError, match="int64 on one side and string on the other"):
            compare(table({"k": [1]}), table({"k": ["1"]}), CompareOptions(key=("k",)))
        with compare(table({"k": [1]}), table({"k": ["1"]}), CompareOptions(key=("k",), coerce=True)) as diff:
            assert diff.rows.equal


def test_csv_against_parquet_needs_coerce() -> None:
    a = text({"id": ["1", "2"], "x": ["1.50", "x"], "d": ["2020-01-01", "2020-01-02T00:00:00"]})
    b = table({"id": [1, 2], "x": [1.5, 2.0], "d": [dt.date(2020, 1, 1), dt.date(2020, 1, 2)]})
    with compare(a, b, CompareOptions(key=("id",), coerce=True)) as diff:
        assert [c.cells for c in diff.changes()] == [{"x": ("x", 2.0)}]
        assert "format" in {s.kind for s in diff.schema}
    with compare(a, b) as diff:
        assert diff.rows.modified == 2 and "never-equal" in {n.code for n in diff.notices}
        assert diff.columns[0].top[0][1] == 1


@pytest.mark.parametrize("cells", [1, 40, cells_of.CELLS_AT_ONCE])
def test_whole_rows_that_are_had_again_for_the_most_frequent_changes_are_few_at_a_time(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """Or a table of tens of thousands of columns that all changed would be in memory once for each of them."""
    source, n, width = random.Random(7), 30, 12
    old = {f"c{k}": [str(source.randrange(3)) for _ in range(n)] for k in range(width)}
    new = {name: [source.choice([value, "x", None]) for value in column] for name, column in old.items()}
    ids = {"id": [str(i) for i in range(n)]}
    had: list[int] = []

    class Watched(Fetch):
        def take(self, rows: I64) -> pa.RecordBatch:
            had.append(len(rows))
            return super().take(rows)

    def watched(fetch: Fetch, wanted: Sequence[tuple[int, str]], *, width: int) -> list[object]:
        fetch.__class__ = Watched
        return single_cells(fetch, wanted, width=width)

    single_cells = cells_of.single_cells
    monkeypatch.setattr(cells_of, "single_cells", watched)
    monkeypatch.setattr(cells_of, "CELLS_AT_ONCE", cells)
    with compare(text(ids | old), text(ids | new), CompareOptions(key=("id",))) as diff:
        found = {c.name: dict(c.top) for c in diff.columns}
    assert had and max(had) <= max(1, cells // (width + 1))
    for name, column in old.items():
        pairs = Counter((a, b) for a, b in zip(column, new[name], strict=True) if a != b)
        assert found[name].items() <= pairs.items()
        assert sorted(found[name].values()) == sorted(pairs.values())[-len(found[name]) :]


def test_scrambled_rows_are_compared_as_a_bag_and_said_to_be() -> None:
    n = 500
    order = np.random.default_rng(1).permutation(n)
    a = table({"x": np.arange(n), "y": np.arange(n) % 7})
    b = MemoryTable(a.data.take(pa.array(order)))
    with compare(a, b, CompareOptions(infer=False)) as diff:
        assert diff.key.align == "bag" and [x.code for x in diff.notices] == ["rows-reordered"]
        assert diff.rows.equal


def test_too_many_rows_out_of_order_are_a_bag_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key, the order of more rows than the limit is not looked for, and the answer says so."""
    monkeypatch.setattr("dvk.table.walk.pace._WINDOW_ROWS", 64)  # so that the walk gives up on a small table
    monkeypatch.setattr("dvk.table.memory.split", lambda _: Limits(engine=256 << 20, look_ahead=1, kept=1 << 20))
    values = list(range(3_000))
    a, b = table({"x": values}), table({"x": values[::-1]})
    with compare(a, b, CompareOptions(align="sequence", infer=False, max_gap_rows=1_000)) as diff:
        assert diff.rows.equal and diff.key.align == "bag"
        assert [notice.code for notice in diff.notices] == ["too-long-to-align"]


def test_a_few_rows_that_moved_are_moved() -> None:
    a = table({"x": list(range(100))})
    b = table({"x": [50, *range(50), *range(51, 100)]})
    with compare(a, b, CompareOptions(infer=False)) as diff:
        assert (diff.rows.moved, diff.rows.unchanged) == (1, 100) and not diff.rows.equal
        (row,) = diff.changes(kinds=("moved",))
        assert (row.a_row, row.b_row, row.values) == (50, 0, {"x": 50})


def test_aligned_rows_need_only_the_columns_that_may_differ() -> None:
    n = 5000
    columns = {"id": np.arange(n), "x": np.zeros(n), "big": np.arange(n)}
    a = table(columns)
    for share in (3, 1000):  # rows read one by one, and in one go
        x = np.zeros(n)
        x[:share] = 1
        b = table({**columns, "x": x})
        a.rows_decoded = 0
        part = Aligned(Region(0, n), Region(0, n), ((1, 1),))
        with compare(a, b, CompareOptions(key=("id",)), plan=Plan("L2", (), (), (part,))) as diff:
            assert counts(diff.rows) == (0, 0, share, n - share) and diff.key.checked == "partial"
            assert next(diff.changes(limit=1)).cells == {"x": (0.0, 1.0)}
        with compare(a, b, CompareOptions(key=("x",)), plan=Plan("L2", (), (), (part,))) as diff:
            assert diff.rows.modified + diff.rows.unchanged + diff.rows.removed == n  # the key may differ: read in full
        with compare(a, b, CompareOptions(infer=False), plan=Plan("L2", (), (), (part,))) as diff:
            assert diff.rows.modified == share


def test_profiles_count_before_and_after() -> None:
    a = text({"id": ["1", "2", "3", "4"], "x": ["1", "2", None, "4"], "t": ["u", "u", "v", "w"]})
    b = text({"id": ["1", "2", "3", "4"], "x": ["1", "2", "3", "40"], "t": ["u", "u", "w", "w"]})
    with compare(a, b, CompareOptions(key=("id",), profile=True)) as diff:
        by_name = {c.name: c for c in diff.columns}
        before, after = by_name["x"].before, by_name["x"].after
        assert before is not None and after is not None
        assert (before.rows, before.nulls, before.minimum, before.maximum) == (4, 1, 1.0, 4.0)
        assert (after.nulls, after.maximum, after.mean) == (0, 40.0, 11.5)
        words = by_name["t"].after
        assert words is not None and words.mean is None and words.top == (("u", 2), ("w", 2))


def test_no_columns_no_rows_no_trouble() -> None:
    empty = pa.table({})
    with compare(MemoryTable(empty), MemoryTable(empty)) as diff:
        assert diff.equal
    with compare(MemoryTable(empty), table({"id": [1, 2]})) as diff:
        assert counts(diff.rows) == (2, 0, 0, 0) and [s.kind for s in diff.schema] == ["added"]
    with compare(table({"p": [1, 2]}), table({"q": [1]}), CompareOptions(infer=False)) as diff:
        assert diff.rows.a == 2 and diff.rows.b == 1


class TestNothingWrongIsShown:
    def test_a_reader_that_lost_rows(self) -> None:
        a, b = table({"id": [1, 2, 3]}), table({"id": [1, 2, 3]})
        b.counted = 4
        with pytest.raises(TableError, match="were counted and 3 were read"):
            compare(a, b, CompareOptions(key=("id",)))

    def test_a_plan_that_does_not_cover_the_rows(self) -> None:
        a = table({"id": [1, 2, 3]})
        for plan in (
            Plan("L1", (Region(0, 1),), (Region(0, 1),), skipped=1),
            Plan("L1", (Region(0, 2), Region(1, 1)), (Region(0, 3),)),
            Plan("L1", (Region(1, 3),), (Region(0, 3),)),
        ):
            with pytest.raises(TableError, match="does not cover"):
                compare(a, a, plan=plan)

    def test_a_join_that_loses_rows_is_done_again_and_then_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from dvk.table.pair import join

        real = join._count
        calls: list[str] = []

        def lossy(engine: Any, name: str) -> Any:
            calls.append(name)
            found = real(engine, name)
            return found if len(calls) > failures else join.Counts(found.same, 0, 0, 0)

        monkeypatch.setattr(join, "_count", lossy)
        a, b = table({"id": [1, 2, 3], "x": [1, 2, 3]}), table({"id": [2, 3, 4], "x": [2, 5, 4]})
        failures = 1
        with compare(a, b, CompareOptions(key=("id",))) as diff:
            assert counts(diff.rows) == (1, 1, 1, 1) and len(calls) == 2
        calls.clear()
        failures = 2
        with pytest.raises(TableError, match="does not add up"):
            compare(a, b, CompareOptions(key=("id",)))

    def test_an_error_while_reading_is_raised_and_leaves_nothing(self, tmp_path: Path) -> None:
        a, b = table({"id": list(range(5000))}), table({"id": list(range(5000))})
        b.fails_at = 4000
        with pytest.raises(ValueError, match="row 4000"):
            compare(a, b, CompareOptions(temp_dir=os.fsencode(tmp_path)))
        assert os.listdir(tmp_path) == [] and not a.closed

    def test_temporary_files_go_with_the_answer(self, tmp_path: Path) -> None:
        a, b = table({"id": [1]}), table({"id": [2]})
        with compare(a, b, CompareOptions(temp_dir=os.fsencode(tmp_path))) as diff:
            assert len(os.listdir(tmp_path)) == 1
        assert os.listdir(tmp_path) == []
        diff.close()
