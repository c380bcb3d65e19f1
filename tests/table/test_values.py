"""Comparable forms: equal exactly if the values are, and rows as bytes that tell all rows apart."""

from __future__ import annotations

import doctest
import types
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.errors import TableError
from dvk.table.contract import Column
from dvk.table.equal import encode, forms, numerals, values
from dvk.table.equal.forms import Equality, form_of, meet
from dvk.table.match import schema
from dvk.table.options import CompareOptions
from dvk.table.walk import chain, sequence

NUMERALS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.integers().map(str),
    st.from_regex(r"[+-]?[0-9]{0,3}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,2})?", fullmatch=True),
    st.text(max_size=4),
)


def _exactly(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip()) if text.strip().isascii() and "_" not in text else None
    except ArithmeticError:
        return None
    return number if number is not None and number.is_finite() else None


@given(st.lists(NUMERALS, max_size=6))
def test_numerals_have_one_form_for_each_number(texts: list[str]) -> None:
    found = numerals.canonical(pa.array(texts, pa.string())).to_pylist()
    for text, form in zip(texts, found, strict=True):
        if form is not None:
            assert Decimal(form) == Decimal(text.strip())
        elif _exactly(text) is not None:
            assert not text.strip()[:1].isascii() or not text.strip()
    for x, fx in zip(texts, found, strict=True):
        for y, fy in zip(texts, found, strict=True):
            if fx is not None and fy is not None:
                assert (fx == fy) == (Decimal(x.strip()) == Decimal(y.strip()))


def test_numerals_of_any_size_take_no_room() -> None:
    texts = ["1e999999999", "-1e-999999999", "1" + "0" * 500, "1e500", "0.5", ".5", "5e-1", "NaN", "1e9999999999"]
    found = numerals.canonical(pa.array(texts)).to_pylist()
    assert found == ["1e999999999", "-1e-999999999", "1e500", "1e500", "0.5", "0.5", "0.5", None, None]
    special = numerals.canonical(pa.array(["nan", "-Infinity", "+inf"]), special=True)
    assert special.to_pylist() == ["nan", "-inf", "inf"]


CELL = st.one_of(st.none(), st.binary(max_size=3))


@given(st.lists(st.tuples(CELL, CELL, st.one_of(st.none(), st.integers(-2, 2))), min_size=2, max_size=6))
def test_rows_have_the_same_bytes_exactly_if_they_are_equal(
    table: list[tuple[bytes | None, bytes | None, int | None]],
) -> None:
    columns = [pa.array([r[k] for r in table], t) for k, t in enumerate((pa.binary(), pa.binary(), pa.int64()))]
    found = encode.rows(columns).to_pylist()
    for x, fx in zip(table, found, strict=True):
        for y, fy in zip(table, found, strict=True):
            assert (fx == fy) == (x == y)
    sliced = encode.rows([c.slice(1) for c in columns]).to_pylist()
    assert sliced == found[1:]


NESTED = pa.list_(pa.struct([("k", pa.string()), ("v", pa.list_(pa.int16()))]))
VALUE = st.one_of(
    st.none(),
    st.lists(
        st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {
                    "k": st.one_of(st.none(), st.text(max_size=2)),
                    "v": st.one_of(st.none(), st.lists(st.integers(-1, 1), max_size=2)),
                }
            ),
        ),
        max_size=3,
    ),
)


@given(st.lists(VALUE, max_size=5), st.lists(VALUE, max_size=5))
def test_nested_values_are_equal_exactly_if_python_says_so(old: list[object], new: list[object]) -> None:
    n = min(len(old), len(new))
    form = form_of(NESTED)
    x, y = (values.flat(pa.array(v[:n], NESTED), form) for v in (old, new))
    assert encode.equal(x, y).tolist() == [a == b for a, b in zip(old[:n], new[:n], strict=True)]


@given(st.lists(st.floats(), min_size=2, max_size=6))
def test_floats_keep_their_order(numbers: list[float]) -> None:
    form = form_of(pa.float64())
    flat = values.flat(pa.array(numbers), form).to_pylist()
    for x, fx in zip(numbers, flat, strict=True):
        for y, fy in zip(numbers, flat, strict=True):
            if x == x and y == y:
                assert (x < y) == (fx < fy) and (x == y) == (fx == fy)
    shown = values.shown(pa.array(flat), pa.float64())
    assert [float(s) for s in shown if s != "nan"] == [x for x in numbers if x == x]


@given(st.lists(st.one_of(st.integers(-(2**63), 2**64 - 1), st.floats()), min_size=1, max_size=5))
def test_integers_and_floats_are_equal_as_numbers_only(numbers: list[float]) -> None:
    floats = pa.array([float(x) for x in numbers], pa.float64())
    for kind, low, high in ((pa.int64(), -(2**63), 2**63), (pa.uint64(), 0, 2**64)):
        whole = [int(x) if x == x and low <= x < high else 0 for x in numbers]
        form = meet(kind, pa.float64(), Equality())
        assert form is not None
        same = encode.equal(values.flat(pa.array(whole, kind), form), values.flat(floats, form))
        for x, number, found in zip(whole, floats.to_pylist(), same.tolist(), strict=True):
            assert found == (number.is_integer() and int(number) == x)


def test_types_that_meet_nowhere() -> None:
    for a, b in (
        (pa.string(), pa.int64()),
        (pa.timestamp("s"), pa.timestamp("s", "UTC")),
        (pa.date32(), pa.timestamp("s")),
        (pa.list_(pa.string()), pa.list_(pa.int8())),
        (pa.string(), pa.binary()),
        (pa.bool_(), pa.int8()),
    ):
        assert meet(a, b, Equality()) is None
    with pytest.raises(TableError, match="cannot be compared"):
        meet(pa.sparse_union([pa.field("a", pa.int8())]), pa.int8(), Equality())


def test_decimals_too_wide_for_one_type_are_compared_as_text() -> None:
    a, b = pa.decimal256(76, 0), pa.decimal256(76, 70)
    form = meet(a, b, Equality())
    assert form is not None and form.kind == "bigdecimal"
    x = values.flat(pa.array([Decimal(12), Decimal(13)], a), form)
    y = values.flat(pa.array([Decimal("12.000"), Decimal("13.001")], b), form)
    assert encode.equal(x, y).tolist() == [True, False]


def test_json_text_as_plain_values() -> None:
    texts = pa.array(['"a"', '"a\\nb"', "1", "null", '[1,"x"]', None, '""'])
    assert values.unquoted(texts).to_pylist() == ["a", "a\nb", "1", None, '[1,"x"]', None, ""]


def test_times_and_their_differences_are_exact() -> None:
    far = pa.array([-(2**62), 2**62 + 1], pa.timestamp("ns"))
    assert [int(x * 10**9) for x in values.seconds(far).to_pylist()] == [-(2**62), 2**62 + 1]
    assert values.python(pa.array([1], pa.timestamp("ns")))[0] is not None


def test_what_was_left_out_of_a_file_is_not_missed() -> None:
    arrays = pa.array(["a", "b", "a"]).dictionary_encode()
    assert values.plain(arrays).to_pylist() == ["a", "b", "a"]
    ends = pa.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"])
    assert values.plain(ends).to_pylist() == ["x", "x", "y"]
    assert values.plain(pa.array(["v"], pa.string_view())).type == pa.string()


@pytest.mark.parametrize("module", [chain, encode, forms, numerals, schema, sequence, values])
def test_examples_in_docstrings(module: types.ModuleType) -> None:
    names = {"pa": pa, "np": np, "CompareOptions": CompareOptions, "Column": Column, "Equality": Equality, "meet": meet}
    assert doctest.testmod(module, extraglobs={**names, "flat": values.flat, "equal": encode.equal}).failed == 0
