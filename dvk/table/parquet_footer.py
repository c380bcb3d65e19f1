"""The footer of a Parquet file, read just far enough to know where each column chunk lies and how many rows there are.

pyarrow ends the process (`std::terminate`) when it is asked about a column chunk whose statistics contradict
themselves, and a file may come from anybody. So what dvk has to know of column chunks it reads itself; reading values
stays with pyarrow, which turns whatever it finds into errors there.

    footer = parse_footer(data, subject="train.parquet at v1")
    footer.rows, footer.starts[group, leaf], footer.lengths[group, leaf]

The footer is one Thrift structure in the compact protocol; unknown fields are passed over. Time is linear in its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from dvk.errors import TableError
from dvk.store.names import I64

_MAX_DEPTH: Final = 64
_MAX_NUMBER: Final = (1 << 63) - 1

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_NUMBERS: Final = frozenset((_I16, _I32, _I64))
_SMALL: Final = frozenset((_TRUE, _FALSE, _BYTE))

_ROWS, _GROUPS = 3, 4  # of FileMetaData
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3  # of RowGroup
_FILE, _META, _CRYPTO = 1, 3, 8  # of ColumnChunk
_CODEC, _VALUES, _RAW, _PACKED, _DATA, _DICTIONARY, _PAGES = 4, 5, 6, 7, 9, 11, 13  # of ColumnMetaData
_DATA_PAGES: Final = (0, 3)
_DICTIONARY_ENCODINGS: Final = (2, 8)


@dataclass(frozen=True, slots=True)
class Footer:
    """n row groups of m leaves, and `rows` of the file as it states them.

    int64[n]: `group_rows`. int64[n, m]: `starts` and `lengths` of the bytes of a leaf, its dictionary included,
    `raw_lengths` of them decompressed, `values` (for nested types other than rows), `codecs`, `repeated`: 1 where all
    values are given as numbers of values in a dictionary.
    """

    rows: int
    group_rows: I64
    starts: I64
    lengths: I64
    raw_lengths: I64
    values: I64
    codecs: I64
    repeated: I64


def parse_footer(data: bytes, *, subject: str) -> Footer:
    """Read a footer.

    Raises:
        TableError: it is not one: cut short, without what it must have, with row groups of different columns; or
            columns are encrypted.
    """
    try:
        rows, groups = _file(_Thrift(data))
    except _Encrypted:
        raise TableError("has encrypted columns", subject=subject, hint="dvk holds no keys: decrypt it first") from None
    except (IndexError, _Malformed) as error:
        raise TableError(
            f"its Parquet footer is broken{f' ({error})' if isinstance(error, _Malformed) else ''}", subject=subject
        ) from error
    leaves = len(groups[0][1]) if groups else 0
    if any(len(chunks) != leaves for _, chunks in groups):
        raise TableError("its Parquet footer is broken (row groups have different columns)", subject=subject)
    table = np.array([chunk for _, chunks in groups for chunk in chunks], np.int64).reshape(len(groups), leaves, 6)
    return Footer(rows, np.array([n for n, _ in groups], np.int64), *(table[:, :, i] for i in range(6)))


class _Malformed(Exception):
    """What is wrong."""


class _Encrypted(Exception):
    """A column is."""


_Chunk = tuple[int, int, int, int, int, int]
_Group = tuple[int, list[_Chunk]]


def _file(t: _Thrift) -> tuple[int, list[_Group]]:
    rows: int | None = None
    groups: list[_Group] = []
    for field, kind in t.fields():
        if field == _ROWS and kind in _NUMBERS:
            rows = t.number()
        elif field == _GROUPS and kind == _LIST:
            groups = [_group(t) for _ in range(t.structs())]
        else:
            t.skip(kind)
    if rows is None or rows < 0:
        raise _Malformed("no number of rows")
    return rows, groups


def _group(t: _Thrift) -> _Group:
    rows, chunks = -1, None
    for field, kind in t.fields():
        if field == _GROUP_ROWS and kind in _NUMBERS:
            rows = t.number()
        elif field == _GROUP_COLUMNS and kind == _LIST:
            chunks = [_chunk(t) for _ in range(t.structs())]
        else:
            t.skip(kind)
    if rows < 0 or chunks is None:
        raise _Malformed("a row group without rows or columns")
    return rows, chunks


def _chunk(t: _Thrift) -> _Chunk:
    found: dict[int, int] = {}
    for field, kind in t.fields():
        if field == _FILE:
            raise _Malformed("its columns lie in other files")
        if field == _CRYPTO:
            raise _Encrypted
        if field == _META and kind == _STRUCT:
            for inner, inner_kind in t.fields():
                if inner_kind in _NUMBERS:
                    found[inner] = t.number()
                elif inner == _PAGES and inner_kind == _LIST:
                    found[-1] = int(_is_repeated(t))
                else:
                    t.skip(inner_kind)
        else:
            t.skip(kind)
    try:
        data, packed, raw, values, codec = (found[i] for i in (_DATA, _PACKED, _RAW, _VALUES, _CODEC))
    except KeyError:
        raise _Malformed("a column chunk without a place") from None
    dictionary = found.get(_DICTIONARY, 0)
    start = dictionary if 0 < dictionary < data else data
    if min(start, packed, raw, values) < 0:
        raise _Malformed("a column chunk of negative length")
    return start, packed, raw, values, codec, found.get(-1, 0)


def _is_repeated(t: _Thrift) -> bool:
    """Of the statistics of a column chunk's pages: whether all data pages refer to a dictionary."""
    data, plain = 0, 0
    for _ in range(t.structs()):
        page: dict[int, int] = {}  # 1: type, 2: encoding, 3: count
        for field, kind in t.fields():
            if kind in _NUMBERS:
                page[field] = t.number()
            else:
                t.skip(kind)
        if page.get(1) in _DATA_PAGES:
            data += 1
            plain += page.get(2) not in _DICTIONARY_ENCODINGS
    return bool(data) and not plain


class _Thrift:
    """Reads the compact protocol from front to back; IndexError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self) -> int:
        """A signed integer of 64 bits."""
        value = self._varint()
        value = value >> 1 ^ -(value & 1)
        if not -_MAX_NUMBER <= value <= _MAX_NUMBER:
            raise _Malformed("a number beyond 64 bits")
        return value

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure; the caller reads or skips its value before the next."""
        field = 0
        while head := self._data[self._at]:
            self._at += 1
            field = field + (head >> 4) if head >> 4 else self.number()
            yield field, head & 15
        self._at += 1

    def structs(self) -> int:
        """How many structures a list has."""
        count, kind = self._list()
        if count and kind != _STRUCT:
            raise _Malformed("a list of something else")
        return count

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if kind in _NUMBERS:
            self._varint()
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind == _BYTE:
            self._forward(1)
        elif kind == _DOUBLE:
            self._forward(8)
        elif kind in (_TRUE, _FALSE):
            return
        elif depth > _MAX_DEPTH:
            raise _Malformed("nested too deeply")
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (_LIST, _SET):
            count, inner = self._list()
            self._skip_items(count, inner, depth)
        elif kind == _MAP:
            count = self._varint()
            if count:
                kinds = self._data[self._at]
                self._at += 1
                self._bounded(count)
                for _ in range(count):
                    self._skip_items(1, kinds >> 4, depth)
                    self._skip_items(1, kinds & 15, depth)
        else:
            raise _Malformed("an unknown type")

    def _skip_items(self, count: int, kind: int, depth: int) -> None:
        if kind in _SMALL:  # in a list, a boolean is a byte
            self._forward(count)
            return
        for _ in range(count):
            self.skip(kind, depth + 1)

    def _list(self) -> tuple[int, int]:
        head = self._data[self._at]
        self._at += 1
        count = head >> 4
        if count == 15:
            count = self._varint()
        self._bounded(count)
        return count, head & 15

    def _bounded(self, count: int) -> None:
        if count > len(self._data) - self._at:  # an item takes a byte at least
            raise _Malformed("a list longer than the footer")

    def _forward(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise _Malformed("cut short")

    def _varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        at += 1
        value, shift = byte & 127, 7
        while byte > 127:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise _Malformed("a number beyond 64 bits")
        self._at = at
        return value
