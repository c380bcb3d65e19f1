"""What it means that two values are equal: the form in which both sides of a column can be compared without loss.

Two versions of a column rarely have quite the same type: an int32 became an int64, a timestamp of seconds one of
milliseconds, a dictionary plain text. `meet` finds what both can be brought into (`dvk.table.equal.values` does it):

>>> meet(pa.int32(), pa.int64(), Equality()).type, meet(pa.int32(), pa.string(), Equality())
(DataType(int64), None)

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

import pyarrow as pa
from msgspec import Struct
from pyarrow import types as T

from dvk.errors import TableError

#: Most decimal digits of an integer of so many bytes.
INTEGER_DIGITS = {1: 3, 2: 5, 4: 10, 8: 20}
#: Decimal digits after the second, by unit.
SCALES = {"s": 0, "ms": 3, "us": 6, "ns": 9}


class Equality(Struct, frozen=True):
    """The user's choices about equality of values. `null_values` are for text without types (CSV) only."""

    null_values: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_space: bool = False
    coerce: bool = False
    float_bits: bool = False


class Form(Struct, frozen=True):
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


def form_of(kind: pa.DataType) -> Form:
    """The form of a type's own values."""
    form = meet(kind, kind, Equality())
    assert form is not None
    return form


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


def is_view(kind: pa.DataType) -> bool:
    return _name(kind) in ("string_view", "binary_view")


def is_list(kind: pa.DataType) -> bool:
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
        if unit_of(a) == unit_of(b) and a.bit_width == b.bit_width:
            return form("int", pa.int64())
        return _decimal([(20, SCALES[unit_of(t)]) for t in (a, b)], equality)
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
        return INTEGER_DIGITS[kind.bit_width // 8], 0
    return kind.precision, kind.scale


def unit_of(kind: pa.DataType) -> str:
    """Of a date: the day counts as 86,400,000 ms."""
    return "ms" if T.is_date(kind) else str(kind.unit)


def _nested(a: pa.DataType, b: pa.DataType, equality: Equality) -> Form | None:
    if is_list(a) and is_list(b):
        child = meet(a.value_type, b.value_type, equality)
        return None if child is None else Form("list", pa.binary(), equality, children=(child,))
    if T.is_map(a) and T.is_map(b):
        key, item = meet(a.key_type, b.key_type, equality), meet(a.item_type, b.item_type, equality)
        return None if key is None or item is None else Form("map", pa.binary(), equality, children=(key, item))
    if T.is_struct(a) and T.is_struct(b):
        fields_a, fields_b = fields_of(a), fields_of(b)
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


def fields_of(kind: pa.DataType) -> dict[tuple[str, int], tuple[int, pa.DataType]]:
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
