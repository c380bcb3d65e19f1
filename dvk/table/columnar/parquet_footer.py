"""The footer of a Parquet file, read just far enough to know where each column chunk lies and how many rows there are.

pyarrow ends the process (`std::terminate`) when it is asked about a column chunk whose statistics contradict
themselves, and a file may come from anybody. So what dvk has to know of column chunks it reads itself; reading values
stays with pyarrow, which turns whatever it finds into errors there.

    footer = parse_footer(data, subject="train.parquet at v1")
    footer.rows, footer.starts[group, leaf], footer.lengths[group, leaf]

The footer is one Thrift structure (`dvk.store.regions.thrift`); unknown fields are passed over.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from msgspec import Struct

from dvk.errors import TableError
from dvk.store.names import I64
from dvk.store.regions.thrift import LIST, NUMBERS, STRUCT, Malformed, Thrift
from dvk.table.broken import broken

_MAX_DEPTH: Final = 64
_MAX_NUMBER: Final = (1 << 63) - 1

_ROWS, _GROUPS = 3, 4  # of FileMetaData
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3  # of RowGroup
_FILE, _META, _CRYPTO = 1, 3, 8  # of ColumnChunk
_CODEC, _VALUES, _RAW, _PACKED, _DATA, _DICTIONARY, _PAGES = 4, 5, 6, 7, 9, 11, 13  # of ColumnMetaData
_DATA_PAGES: Final = (0, 3)
_DICTIONARY_ENCODINGS: Final = (2, 8)


class Footer(Struct, frozen=True):
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
        rows, groups = _file(Thrift(data, max_depth=_MAX_DEPTH))
    except _Encrypted:
        raise TableError("has encrypted columns", subject=subject, hint="dvk holds no keys: decrypt it first") from None
    except (IndexError, Malformed) as error:
        raise broken(
            f"its Parquet footer is broken{f' ({error})' if isinstance(error, Malformed) else ''}", subject
        ) from error
    leaves = len(groups[0][1]) if groups else 0
    if any(len(chunks) != leaves for _, chunks in groups):
        raise broken("its Parquet footer is broken (row groups have different columns)", subject)
    table = np.array([chunk for _, chunks in groups for chunk in chunks], np.int64).reshape(len(groups), leaves, 6)
    return Footer(rows, np.array([n for n, _ in groups], np.int64), *(table[:, :, i] for i in range(6)))


class _Encrypted(Exception):
    """A column is."""


_Chunk = tuple[int, int, int, int, int, int]
_Group = tuple[int, list[_Chunk]]


def _file(t: Thrift) -> tuple[int, list[_Group]]:
    rows: int | None = None
    groups: list[_Group] = []
    for field, kind in t.fields():
        if field == _ROWS and kind in NUMBERS:
            rows = t.number()
        elif field == _GROUPS and kind == LIST:
            groups = [_group(t) for _ in range(_structs(t))]
        else:
            t.skip(kind)
    if rows is None or not 0 <= rows <= _MAX_NUMBER:
        raise Malformed("no number of rows")
    return rows, groups


def _group(t: Thrift) -> _Group:
    rows, chunks = -1, None
    for field, kind in t.fields():
        if field == _GROUP_ROWS and kind in NUMBERS:
            rows = t.number()
        elif field == _GROUP_COLUMNS and kind == LIST:
            chunks = [_chunk(t) for _ in range(_structs(t))]
        else:
            t.skip(kind)
    if not 0 <= rows <= _MAX_NUMBER or chunks is None:
        raise Malformed("a row group without rows or columns")
    return rows, chunks


def _chunk(t: Thrift) -> _Chunk:
    found: dict[int, int] = {}
    for field, kind in t.fields():
        if field == _FILE:
            raise Malformed("its columns lie in other files")
        if field == _CRYPTO:
            raise _Encrypted
        if field == _META and kind == STRUCT:
            for inner, inner_kind in t.fields():
                if inner_kind in NUMBERS:
                    found[inner] = t.number()
                elif inner == _PAGES and inner_kind == LIST:
                    found[-1] = int(_is_repeated(t))
                else:
                    t.skip(inner_kind)
        else:
            t.skip(kind)
    try:
        data, packed, raw, values, codec = (found[i] for i in (_DATA, _PACKED, _RAW, _VALUES, _CODEC))
    except KeyError:
        raise Malformed("a column chunk without a place") from None
    dictionary = found.get(_DICTIONARY, 0)
    start = dictionary if 0 < dictionary < data else data
    if not 0 <= min(start, packed, raw, values, codec) <= max(start, packed, raw, values, codec) <= _MAX_NUMBER:
        raise Malformed("a column chunk of impossible length")
    return start, packed, raw, values, codec, found.get(-1, 0)


def _is_repeated(t: Thrift) -> bool:
    """Of the statistics of a column chunk's pages: whether all data pages refer to a dictionary."""
    data, plain = 0, 0
    for _ in range(_structs(t)):
        page: dict[int, int] = {}  # 1: type, 2: encoding, 3: count
        for field, kind in t.fields():
            if kind in NUMBERS:
                page[field] = t.number()
            else:
                t.skip(kind)
        if page.get(1) in _DATA_PAGES:
            data += 1
            plain += page.get(2) not in _DICTIONARY_ENCODINGS
    return bool(data) and not plain


def _structs(t: Thrift) -> int:
    """How many structures a list has."""
    count, kind = t.list_of()
    if count and kind != STRUCT:
        raise Malformed("a list of something else")
    return count
