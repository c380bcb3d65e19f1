"""Rows as bytes, and which values of two arrays are equal.

Flat arrays (`dvk.table.equal.values`) hold one of a few plain types in which equal values are equal bytes. From them:

>>> equal(pa.array([1, None, 3]), pa.array([1, None, 4])).tolist()
[True, True, False]
>>> rows([pa.array([1, None]), pa.array(["a", None])]).to_pylist()[1].hex()
'000000000000000000ffffffff'

`rows` is injective for columns of the same types, and a row's bytes say their own length, so that rows may follow one
another: two rows have the same bytes exactly if all their values are equal. Fixed-width values come first, each behind
a byte that says whether there is one, then the lengths of the others (-1: null), then the others. Everything is done
a column at a time: no step in Python for a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


def equal(a: pa.Array, b: pa.Array) -> BoolArray:
    """bool[n]: where two flat arrays of one type and length hold the same; null equals null and nothing else."""
    if a.equals(b):  # a third of the cost, and mostly the answer
        return np.ones(len(a), bool)
    same = pc.equal(a, b)
    if a.null_count or b.null_count:
        neither = pc.and_(pc.is_null(a), pc.is_null(b))
        same = pc.or_(pc.fill_null(same, False), neither)
    return to_mask(same)


def to_mask(array: pa.Array) -> BoolArray:
    """A boolean Arrow array without nulls as numpy."""
    return np.asarray(array.to_numpy(zero_copy_only=False), bool)


def valid_mask(array: pa.Array) -> BoolArray:
    """bool[n]: where there is a value."""
    if array.null_count == 0:
        return np.ones(len(array), bool)
    return to_mask(pc.is_valid(array))


def rows(columns: Sequence[pa.Array]) -> pa.Array:
    """binary[n]: the bytes of each row of flat `columns` (at least one), as the module says.

    Raises:
        pa.ArrowInvalid: more than 2 GiB of them; callers pass windows of far less.
    """
    n = len(columns[0])
    fixed = [c for c in columns if not _is_variable(c.type)]
    others = [c for c in columns if _is_variable(c.type)]
    parts = [_fixed(c) for c in fixed]
    width = sum(1 + p.shape[1] for p in parts) + 4 * len(others)
    head = np.empty((n, width), np.uint8)
    at = 0
    for column, part in zip(fixed, parts, strict=True):
        valid = valid_mask(column)
        until = at + 1 + part.shape[1]
        head[:, at] = valid
        head[:, at + 1 : until] = part
        if column.null_count:
            head[~valid, at + 1 : until] = 0
        at = until
    if others:
        lengths = np.empty((n, len(others)), "<i4")
        for i, column in enumerate(others):
            lengths[:, i] = np.diff(offsets(column))
            if column.null_count:
                lengths[~valid_mask(column), i] = -1
        head[:, at:] = lengths.view(np.uint8).reshape(n, 4 * len(others))
    first = from_matrix(head)
    if not others:
        return first
    texts = [c.cast(pa.binary()) for c in others]
    texts = [pc.fill_null(t, b"") if t.null_count else t for t in texts]
    return pc.binary_join_element_wise(first, *texts, pa.scalar(b"", pa.binary()))


def offsets(array: pa.Array) -> npt.NDArray[np.int32]:
    """int32[n + 1] into the data of a string, binary, list or map array, its own offset applied."""
    buffer = array.buffers()[1]
    if buffer is None or len(array) == 0:
        return np.zeros(len(array) + 1, np.int32)
    return np.frombuffer(buffer, np.int32, len(array) + 1, array.offset * 4)


def from_matrix(matrix: ByteArray) -> pa.Array:
    """binary[n] whose values are the rows of uint8[n, w]; shares its memory.

    Raises:
        pa.ArrowInvalid: more than 2 GiB.
    """
    n, width = matrix.shape
    if n * width > np.iinfo(np.int32).max:
        raise pa.ArrowInvalid("more than 2 GiB of rows at once")
    at = np.arange(n + 1, dtype=np.int32) * np.int32(width)
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(at), pa.py_buffer(np.ascontiguousarray(matrix))])


def _is_variable(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _fixed(column: pa.Array) -> ByteArray:
    """uint8[n, width] of a fixed-width flat array; what stands at nulls is anything."""
    n = len(column)
    if pa.types.is_null(column.type) or n == 0:
        return np.zeros((n, 0), np.uint8)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    width = column.type.bit_width // 8
    return np.frombuffer(column.buffers()[1], np.uint8, n * width, column.offset * width).reshape(n, width)
