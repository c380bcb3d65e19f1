"""What it means that two values are equal, as plain arrays in which equal values are equal.

Two versions of a column rarely have quite the same type: an int32 became an int64, a timestamp of seconds one of
milliseconds, a dictionary plain text. `meet` finds the form in which both can be compared without loss, and `flat`
brings an array into it: an array of bool, int64, uint64, decimals of one scale, bytes or text.

>>> form = meet(pa.int32(), pa.float64(), Equality())
>>> flat(pa.array([1, 2], pa.int32()), form).to_pylist(), flat(pa.array([1.0, 2.5]), form).to_pylist()
(['1', '2'], ['1', '2.5'])

The rules, chosen so that nothing that differs is ever called equal:

* integers by value, whatever their width; an integer and a float are equal if they are exactly the same number;
* floats by value, NaN equals NaN and -0.0 equals 0.0 (unless `float_bits`); decimals by value, whatever their scale;
* times, durations and timestamps by value, whatever their unit; aware timestamps as instants; naive never equals aware;
* dictionaries, run-ends, extension types as the values they hold; lists by order, structs by field name (a field that
  one side lacks differs from a null), maps as sets of entries;
* text and bytes as they are. Text never equals a number or a date, unless `coerce`.

What has no common form is never equal, except that null equals null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types as T

from dvk.errors import TableError
from dvk.table import encode, numerals

_DIGITS = {1: 3, 2: 5, 4: 10, 8: 20}  # the most decimal digits of an integer of so many bytes
_SCALE = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_NOTHING = pa.scalar(None, pa.string())


@dataclass(frozen=True, slots=True)
class Equality:
    """The user's choices about equality of values. `null_values` are for text without types (CSV) only."""

    null_values: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_space: bool = False
    coerce: bool = False
    float_bits: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """What both sides of a column are brought into. `type` is that of the flat array.

    `kind`: `null`, `bool`, `int`, `uint`, `decimal`, `float`, `number` (integers against floats), `bigdecimal`, `text`,
    `bytes`, `list`, `map`, `struct`; of coerced values `numeral`, `truth`, `moment`.
    """

    kind: str
    type: pa.DataType
    equality: Equality
    names: tuple[tuple[str, int], ...] = ()  #: of a struct: the fields by name and occurrence, sorted
    children: tuple[Form, ...] = ()


def storage(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves: of dictionaries, run-ends and extension types what is inside."""
    while True:
        if T.is_dictionary(kind) or T.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def meet(a: pa.DataType, b: pa.DataType, equality: Equality) -> Form | None:
    """The form in which values of both types are compared without loss; None if none of them can be equal.

    Raises:
        TableError: a type that cannot be compared at all.
    """
    a, b = storage(a), storage(b)
    if T.is_null(a):
        a = b
    elif T.is_null(b):
        b = a
    for kind in (a, b):
        if T.is_union(kind):
            raise TableError(f"values of the type {kind} cannot be compared", hint="leave the column out with `ignore`")
    return _scalar(a, b, equality) or _nested(a, b, equality) or (_coerced(a, b, equality) if equality.coerce else None)


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
        elif _is_view(kind):
            return array.cast(pa.string() if kind == pa.string_view() else pa.binary())
        else:
            return array


def form_of(kind: pa.DataType) -> Form:
    """The form of a type's own values."""
    form = meet(kind, kind, Equality())
    assert form is not None
    return form


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


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text of any layout."""
    kind = storage(kind)
    return bool(T.is_string(kind) or T.is_large_string(kind) or _name(kind) == "string_view")


def is_number(kind: pa.DataType) -> bool:
    """Integers, floats and decimals."""
    kind = storage(kind)
    return bool(T.is_integer(kind) or T.is_floating(kind) or T.is_decimal(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes of any layout."""
    kind = storage(kind)
    fixed = T.is_fixed_size_binary(kind) and not T.is_decimal(kind)
    return bool(T.is_binary(kind) or T.is_large_binary(kind) or fixed or _name(kind) == "binary_view")


def _name(kind: pa.DataType) -> str:
    return str(kind)


def _is_view(kind: pa.DataType) -> bool:
    return _name(kind) in ("string_view", "binary_view")


def _is_list(kind: pa.DataType) -> bool:
    views = _name(kind).startswith(("list_view<", "large_list_view<"))
    return bool(T.is_list(kind) or T.is_large_list(kind) or T.is_fixed_size_list(kind) or views)


def _scalar(a: pa.DataType, b: pa.DataType, equality: Equality) -> Form | None:
    def both(test: Callable[[pa.DataType], object]) -> bool:
        return bool(test(a)) and bool(test(b))

    def form(kind: str, flat_type: pa.DataType) -> Form:
        return Form(kind, flat_type, equality)

    if both(T.is_null):
        return form("null", pa.null())
    if both(T.is_boolean):
        return form("bool", pa.bool_())
    if both(T.is_integer):
        if T.is_uint64(a) == T.is_uint64(b):
            return form("uint", pa.uint64()) if T.is_uint64(a) else form("int", pa.int64())
        return form("decimal", pa.decimal128(20, 0))
    if both(T.is_floating):
        return form("float", pa.int64())
    if both(lambda t: T.is_integer(t) or T.is_floating(t)):
        return form("number", pa.string())
    if both(lambda t: T.is_integer(t) or T.is_decimal(t)):
        return _decimal([_digits(a), _digits(b)], equality)
    if both(is_text):
        return form("text", pa.string())
    if both(is_bytes):
        return form("bytes", pa.binary())
    if both(T.is_date) or both(T.is_time) or both(T.is_duration) or (both(T.is_timestamp) and bool(a.tz) == bool(b.tz)):
        if _unit(a) == _unit(b) and a.bit_width == b.bit_width:
            return form("int", pa.int64())
        return _decimal([(20, _SCALE[_unit(t)]) for t in (a, b)], equality)
    if a == b and T.is_interval(a):
        return form("bytes", pa.binary())
    return None


def _decimal(digits: list[tuple[int, int]], equality: Equality) -> Form:
    """The decimal that holds both of two (precision, scale)."""
    scale = max(s for _, s in digits)
    precision = max(p - s for p, s in digits) + scale
    if scale < 0 or precision > 76:
        return Form("bigdecimal", pa.string(), equality)
    return Form(
        "decimal", pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale), equality
    )


def _digits(kind: pa.DataType) -> tuple[int, int]:
    if T.is_integer(kind):
        return _DIGITS[kind.bit_width // 8], 0
    return kind.precision, kind.scale


def _unit(kind: pa.DataType) -> str:
    """Of a date: the day counts as 86,400,000 ms."""
    return "ms" if T.is_date(kind) else str(kind.unit)


def _nested(a: pa.DataType, b: pa.DataType, equality: Equality) -> Form | None:
    if _is_list(a) and _is_list(b):
        child = meet(a.value_type, b.value_type, equality)
        return None if child is None else Form("list", pa.binary(), equality, children=(child,))
    if T.is_map(a) and T.is_map(b):
        key, item = meet(a.key_type, b.key_type, equality), meet(a.item_type, b.item_type, equality)
        return None if key is None or item is None else Form("map", pa.binary(), equality, children=(key, item))
    if T.is_struct(a) and T.is_struct(b):
        fields_a, fields_b = _fields(a), _fields(b)
        names = tuple(sorted(fields_a.keys() | fields_b.keys()))
        children = []
        for name in names:
            kinds = [fields[name][1] for fields in (fields_a, fields_b) if name in fields]
            child = meet(kinds[0], kinds[-1], equality)
            if child is None:
                return None
            children.append(child)
        return Form("struct", pa.binary(), equality, names, tuple(children))
    return None


def _fields(kind: pa.DataType) -> dict[tuple[str, int], tuple[int, pa.DataType]]:
    """(name, occurrence) -> (index, type)."""
    seen: dict[str, int] = {}
    out = {}
    for i in range(kind.num_fields):
        name = kind.field(i).name
        occurrence = seen.get(name, 0)
        seen[name] = occurrence + 1
        out[name, occurrence] = (i, kind.field(i).type)
    return out


def _coerced(a: pa.DataType, b: pa.DataType, equality: Equality) -> Form | None:
    def among(test: Callable[[pa.DataType], object]) -> bool:
        """Both are text or pass the test."""
        return all(is_text(t) or bool(test(t)) for t in (a, b))

    if among(is_number):
        return Form("numeral", pa.string(), equality)
    if among(T.is_boolean):
        return Form("truth", pa.string(), equality)
    if among(lambda t: T.is_date(t) or T.is_timestamp(t)):
        return Form("moment", pa.string(), equality)
    if among(is_bytes):
        return Form("bytes", pa.binary(), equality)
    return None


def _bool(array: pa.Array, _form: Form) -> pa.Array:
    return array


def _int(array: pa.Array, form: Form) -> pa.Array:
    if not T.is_integer(array.type):  # times: the count of units they are kept as
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    return array.cast(form.type)


def _decimals(array: pa.Array, form: Form) -> pa.Array:
    if T.is_temporal(array.type):
        unit = _unit(array.type)
        counts = _int(array, replace(form, type=pa.int64()))
        if T.is_date32(array.type):
            counts = pc.multiply_checked(counts, 86_400_000)
        array = counts.cast(pa.decimal128(20, 0)).view(pa.decimal128(20, _SCALE[unit]))
    elif T.is_integer(array.type):
        array = array.cast(pa.decimal128(_DIGITS[array.type.bit_width // 8], 0))
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
    small = whole & (np.abs(values) < 2.0**63)
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
    present = _fields(array.type)
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
