"""One plain Arrow form for values of columnar files, so that versions which hold the same values have equal columns.

A library decides per release whether text is `string`, `large_string` or `string_view`, whether a repeated column is a
dictionary, and what the item of a list is called. None of that is a value, so a diff must not see it; what *is* one
(width, unit, time zone, scale, precision) stays as the file declares it.

>>> plain_type(pa.dictionary(pa.int32(), pa.large_string()))
DataType(string)

Choice: the narrow types (`string`, `list`), which every engine reads; batches hold at most 64 MiB, so that 32-bit
offsets reach. An extension type is its storage: which extensions a process has registered must not change an answer.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dvk.errors import TableError

_MAX_DEPTH = 64


def plain_type(declared: pa.DataType, *, depth: int = 0) -> pa.DataType:
    """The type in which values of `declared` are given.

    Raises:
        TableError: nested deeper than anybody nests.
    """
    t = pa.types
    if depth > _MAX_DEPTH:
        raise TableError(f"its types are nested more than {_MAX_DEPTH} deep")

    def inner(child: pa.DataType) -> pa.DataType:
        return plain_type(child, depth=depth + 1)

    if isinstance(declared, pa.BaseExtensionType):
        return inner(declared.storage_type)
    if t.is_dictionary(declared) or t.is_run_end_encoded(declared):
        return inner(declared.value_type)
    if t.is_large_string(declared) or t.is_string_view(declared):
        return pa.string()
    if t.is_large_binary(declared) or t.is_binary_view(declared):
        return pa.binary()
    if t.is_fixed_size_list(declared):
        return pa.list_(inner(declared.value_type), declared.list_size)
    if t.is_list(declared) or t.is_large_list(declared) or _is_list_view(declared):
        return pa.list_(inner(declared.value_type))
    if t.is_map(declared):
        return pa.map_(inner(declared.key_type), inner(declared.item_type))
    if t.is_struct(declared):
        return pa.struct([pa.field(f.name, inner(f.type)) for f in declared])
    return declared


def plain_array(array: pa.Array, plain: pa.DataType) -> pa.Array:
    """The values of `array` in its plain type.

    Raises:
        pa.ArrowInvalid: they do not fit: text of more than 2 GiB in one batch.
    """
    while isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if array.type == plain:
        return array
    if not _needs_hands(array.type):
        return array.cast(plain)
    t = pa.types
    if t.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array), plain)
    if _is_list_view(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int32())
        ends = pc.cumulative_sum(lengths, start=0)
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
        values = plain_array(array.flatten(), plain.value_type)
        return pa.ListArray.from_arrays(offsets, values, mask=array.is_null() if array.null_count else None)
    if t.is_struct(array.type):
        children = [plain_array(c, plain[i].type) for i, c in enumerate(array.flatten())]
        mask = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(children, fields=list(plain), mask=mask)
    if t.is_list(array.type) or t.is_large_list(array.type):
        offsets = pc.subtract(array.offsets, array.offsets[0]) if len(array) else pa.array([0], pa.int32())
        first = array.offsets[0].as_py() if len(array) else 0
        last = array.offsets[-1].as_py() if len(array) else 0
        values = plain_array(array.values.slice(first, last - first), plain.value_type)
        mask = array.is_null() if array.null_count else None
        return pa.ListArray.from_arrays(offsets.cast(pa.int32()), values, mask=mask)
    raise pa.ArrowNotImplementedError(f"no plain form of {array.type}")


def empty_batch(rows: int) -> pa.RecordBatch:
    """A batch of rows without columns."""
    return pa.RecordBatch.from_struct_array(pa.nulls(rows, pa.struct([])))


def batch_of(arrays: list[pa.Array], names: list[str], rows: int) -> pa.RecordBatch:
    """A batch of these columns; of `rows` rows even without any."""
    return pa.RecordBatch.from_arrays(arrays, names=names) if arrays else empty_batch(rows)


def _is_list_view(kind: pa.DataType) -> bool:
    name = str(kind)
    return name.startswith(("list_view<", "large_list_view<"))  # pyarrow 16 has no test for them


def _needs_hands(kind: Any) -> bool:
    """Whether pyarrow's own cast cannot take it, or takes it wrongly (list views, in 26)."""
    t = pa.types
    if t.is_run_end_encoded(kind) or _is_list_view(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _needs_hands(kind.storage_type)
    if t.is_struct(kind):
        return any(_needs_hands(f.type) for f in kind)
    if t.is_list(kind) or t.is_large_list(kind):
        return _needs_hands(kind.value_type)
    return False
