"""Values in comparable form: plain arrays in which equal values are equal.

>>> form = meet(pa.int32(), pa.float64(), Equality())
>>> flat(pa.array([1, 2], pa.int32()), form).to_pylist(), flat(pa.array([1.0, 2.0]), form).to_pylist()
(['1', '2'], ['1', '2'])

A flat array is one of bool, int64, uint64, decimals of one scale, bytes or text; nested values become bytes. Which form
two types share, and what equality means, is in `dvk.table.equal.forms`. And back: values for people and for Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace
from pyarrow import types as T

from dvk.errors import TableError
from dvk.table.equal import encode, numerals
from dvk.table.equal.forms import (
    INTEGER_DIGITS,
    SCALES,
    Equality,
    Form,
    fields_of,
    is_text,
    is_view,
    storage,
    unit_of,
)

_NOTHING = pa.scalar(None, pa.string())


def flat(array: pa.Array, form: Form, *, untyped: bool = False) -> pa.Array:
    """The values of `array` in a form that `meet` gave for its type and another one. `untyped`: of a text format."""
    array = plain(array)
    if T.is_null(array.type):
        return pa.nulls(len(array), form.type)
    try:
        if untyped and form.equality.null_values:
            nothing = pc.is_in(array, value_set=pa.array(form.equality.null_values, pa.string()))
            array = pc.if_else(nothing, _NOTHING, array)
        return _FLAT[form.kind](array, form)
    except pa.ArrowInvalid as problem:
        raise TableError(f"values of the type {array.type} cannot be compared: {problem}") from problem


def unquoted(texts: pa.Array) -> pa.Array:
    """JSON texts as the values that a table without JSON would hold: strings without quotes, null as no value.

    Half of a surrogate pair is no text in any other format: a string with one stays as JSON says it.
    """
    texts = texts.cast(pa.string())
    quoted = pc.match_substring_regex(texts, r'^"[^\\]*"$')
    out = pc.if_else(quoted, pc.utf8_slice_codeunits(texts, 1, -1), texts)
    out = pc.if_else(pc.equal(texts, "null"), _NOTHING, out)
    escaped = encode.to_mask(pc.fill_null(pc.match_substring_regex(texts, r'^".*\\.*"$'), False))
    if escaped.any():
        found = [_unescaped(text) for text in texts.filter(pa.array(escaped)).to_pylist()]
        out = pc.replace_with_mask(out, pa.array(escaped), pa.array(found, pa.string()))
    return out


def _unescaped(text: str) -> str:
    found: str = json.loads(text)
    return text if any("\ud800" <= c <= "\udfff" for c in found) else found


def plain(array: pa.Array) -> pa.Array:
    """The values themselves, and those of views as ordinary lists and text."""
    while True:
        kind = array.type
        if T.is_dictionary(kind):
            array = pc.dictionary_decode(array)
        elif T.is_run_end_encoded(kind):
            array = pc.run_end_decode(array)
        elif isinstance(kind, pa.BaseExtensionType):
            array = array.storage
        elif is_view(kind):
            return array.cast(pa.string() if kind == pa.string_view() else pa.binary())
        else:
            return array


def seconds(array: pa.Array) -> pa.Array:
    """decimal128(36, 9)[n]: times, durations, dates and timestamps as seconds, exactly."""
    return _decimals(plain(array), Form("decimal", pa.decimal128(36, 9), Equality()))


def python(array: pa.Array) -> list[Any]:
    """Python values; what Python's own types cannot hold (nanoseconds) as text."""
    array = plain(array)
    try:
        return list(array.to_pylist())
    except (ValueError, OverflowError, ImportError):
        return [_python(value) for value in array]


def _python(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, ImportError):
        return str(value.cast(pa.string()).as_py())


def shown(array: pa.Array, kind: pa.DataType) -> list[str]:
    """Values in comparable form as text for people, as near to `kind` as that is to be had."""
    kind = storage(kind)
    if array.type == pa.int64() and T.is_floating(kind):
        bits = np.asarray(array.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        floats = (bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))).view(np.float64)
        array = pa.array(floats, mask=~encode.valid_mask(array))
    elif array.type == pa.int64() and T.is_temporal(kind):
        array = array.cast(pa.int32()).view(kind) if kind.bit_width == 32 else array.view(kind)
    return ["null" if value is None else str(value) for value in python(array)]


def _bool(array: pa.Array, _form: Form) -> pa.Array:
    return array


def _int(array: pa.Array, form: Form) -> pa.Array:
    if not T.is_integer(array.type):  # times: the count of units they are kept as
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return array.cast(form.type)


def _decimals(array: pa.Array, form: Form) -> pa.Array:
    if T.is_temporal(array.type):
        unit = unit_of(array.type)
        counts = _int(array, replace(form, type=pa.int64()))
        if T.is_date32(array.type):
            counts = pc.multiply_checked(counts, 86_400_000)
        array = counts.cast(pa.decimal128(20, 0)).view(pa.decimal128(20, SCALES[unit]))
    elif T.is_integer(array.type):
        array = array.cast(pa.decimal128(INTEGER_DIGITS[array.type.bit_width // 8], 0))
    return array.cast(form.type)


def _big_decimals(array: pa.Array, _form: Form) -> pa.Array:
    return numerals.canonical(pa.array([None if v is None else str(v) for v in array.to_pylist()], pa.string()))


def _float(array: pa.Array, form: Form) -> pa.Array:
    """The bits of the number as int64, ordered like the numbers."""
    floats = array.cast(pa.float64())
    if len(floats) == 0:
        return pa.array([], pa.int64())
    valid = None if floats.null_count == 0 else pa.array(~encode.valid_mask(floats))
    values = np.frombuffer(floats.buffers()[1], np.float64, len(floats), floats.offset * 8)
    if not form.equality.float_bits:
        values = values + 0.0  # -0.0 + 0.0 is 0.0
        values[np.isnan(values)] = np.nan
    bits = values.view(np.int64)
    ordered = bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))
    return pa.array(ordered, mask=None if valid is None else encode.to_mask(valid))


def _number(array: pa.Array, form: Form) -> pa.Array:
    """Integers and floats as text: floats that are whole numbers of at most 64 bits look like integers."""
    if T.is_integer(array.type):
        return array.cast(pa.string())
    floats = array.cast(pa.float64())
    values = np.asarray(floats.fill_null(0.5).to_numpy(zero_copy_only=False), np.float64)
    with np.errstate(invalid="ignore"):
        whole = (np.floor(values) == values) & (np.abs(values) < 2.0**64)
    if form.equality.float_bits:
        whole &= ~((values == 0) & np.signbit(values))
    small = whole & (values >= -(2.0**63)) & (values < 2.0**63)
    as_int = pa.array(np.where(small, values, 0).astype(np.int64)).cast(pa.string())
    as_uint = pa.array(np.where(whole & (values >= 0), values, 0).astype(np.uint64)).cast(pa.string())
    bits = _float(floats, replace(form, type=pa.int64())).cast(pa.string())
    other = pc.binary_join_element_wise("bits ", bits, "")
    out = pc.if_else(pa.array(small), as_int, pc.if_else(pa.array(whole & (values >= 0)), as_uint, other))
    return pc.if_else(pc.is_valid(floats), out, _NOTHING)


def _text(array: pa.Array, form: Form) -> pa.Array:
    texts = array if T.is_string(array.type) else array.cast(pa.string())
    if form.equality.ignore_space:
        texts = spaced(texts)
    return pc.utf8_lower(texts) if form.equality.ignore_case else texts


def spaced(texts: pa.Array) -> pa.Array:
    """Text without white space at its ends and with one blank for each run of it inside."""
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"[\s\pZ]+", " ")


def _bytes(array: pa.Array, _form: Form) -> pa.Array:
    if T.is_interval(array.type):
        array = array.view(pa.binary(array.type.bit_width // 8))
    return array if T.is_binary(array.type) else array.cast(pa.binary())


def _list(array: pa.Array, form: Form) -> pa.Array:
    """A list as the number of its elements and then their rows, which follow one another in memory already."""
    kind = array.type
    if not T.is_list(kind):
        array = array.cast(pa.list_(kind.value_field))
    elements = encode.rows([flat(array.values, form.children[0])])
    return _spans(array, elements)


def _spans(array: pa.Array, elements: pa.Array) -> pa.Array:
    """binary[n]: for each list of `array` its count and the bytes of `elements` that belong to it."""
    at = encode.offsets(array)
    joined = encode.offsets(elements)[at]
    inside = pa.Array.from_buffers(pa.binary(), len(array), [None, pa.py_buffer(joined), elements.buffers()[2]])
    counts = np.diff(at).astype("<i4")
    counted = encode.from_matrix(counts.view(np.uint8).reshape(len(array), 4))
    out = pc.binary_join_element_wise(counted, inside, pa.scalar(b"", pa.binary()))
    return pc.if_else(pc.is_valid(array), out, pa.scalar(None, pa.binary()))


def _map(array: pa.Array, form: Form) -> pa.Array:
    """As a list of its entries in the order of their bytes."""
    key, item = form.children
    entries = encode.rows([flat(array.keys, key), flat(array.items, item)])
    owner = np.searchsorted(encode.offsets(array)[1:], np.arange(len(entries)), side="right")
    order = pc.sort_indices(
        pa.table({"owner": owner, "entry": entries}), sort_keys=[("owner", "ascending"), ("entry", "ascending")]
    )
    return _spans(array, entries.take(order))


def _struct(array: pa.Array, form: Form) -> pa.Array:
    present = fields_of(array.type)
    columns = []
    for name, child in zip(form.names, form.children, strict=True):
        columns.append(pa.array(np.full(len(array), name in present)))
        if name in present:
            columns.append(flat(array.field(present[name][0]), child))
        else:
            columns.append(pa.nulls(len(array), child.type))
    out = encode.rows(columns) if columns else pa.array([b""] * len(array), pa.binary())
    return pc.if_else(pc.is_valid(array), out, pa.scalar(None, pa.binary()))


def _numeral(array: pa.Array, form: Form) -> pa.Array:
    """The number as exact text; text that is no number behind a mark, so that it equals none."""
    if is_text(array.type):
        texts = _text(array, form)
        return pc.coalesce(numerals.canonical(texts, special=True), pc.binary_join_element_wise("?", texts, ""))
    if T.is_decimal(array.type):
        return _big_decimals(array, form)
    return numerals.canonical(
        array.cast(pa.float64() if T.is_float16(array.type) else array.type).cast(pa.string()), special=True
    )


def _truth(array: pa.Array, form: Form) -> pa.Array:
    if T.is_boolean(array.type):
        return array.cast(pa.string())
    texts = _text(array, form)
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    known = pc.is_in(lower, value_set=pa.array(["true", "false"]))
    return pc.if_else(known, lower, pc.binary_join_element_wise("?", texts, ""))


def _moment(array: pa.Array, form: Form) -> pa.Array:
    """ISO 8601 with a blank and without trailing zeros, a date as its midnight; instants in UTC."""
    if is_text(array.type):
        texts = _text(array, form)
        texts = pc.replace_substring_regex(texts, r"^\s*([0-9]{4,}-[0-9]{2}-[0-9]{2})\s*$", r"\1 00:00:00")
        texts = pc.replace_substring_regex(texts, r"^\s*([0-9-]+)[Tt ]([0-9:.]+)(Z|z|[+-]00:?00)?\s*$", r"\1 \2\3")
        texts = pc.replace_substring_regex(texts, r"(z|[+-]00:?00)$", "Z")
    else:
        array = array.cast(pa.timestamp("ms")) if T.is_date(array.type) else array
        texts = array.cast(pa.string())
    texts = pc.replace_substring_regex(texts, r"( [0-9]{2}:[0-9]{2})(Z?)$", r"\1:00\2")
    texts = pc.replace_substring_regex(texts, r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
    return pc.replace_substring_regex(texts, r"\.(Z?)$", r"\1")


_FLAT: dict[str, Callable[[pa.Array, Form], pa.Array]] = {
    "null": lambda array, _form: pa.nulls(len(array)),
    "bool": _bool,
    "int": _int,
    "uint": _int,
    "decimal": _decimals,
    "bigdecimal": _big_decimals,
    "float": _float,
    "number": _number,
    "text": _text,
    "bytes": _bytes,
    "list": _list,
    "map": _map,
    "struct": _struct,
    "numeral": _numeral,
    "truth": _truth,
    "moment": _moment,
}
