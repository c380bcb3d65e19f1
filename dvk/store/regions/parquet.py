"""Parquet: each column chunk is a region, and so is the footer.

The footer is a Thrift structure that is read here just far enough to know where column chunks start and end: pyarrow is
an extra that a store must not need, and would believe what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dvk.store.codec import Hint
from dvk.store.regions.span import Doubt, Piece, Span
from dvk.store.regions.thrift import LIST, NUMBERS, STRUCT, Thrift

_MAX_FOOTER_BYTES: Final = 16 << 20
_MAX_DEPTH: Final = 12
#: GZIP, BROTLI, ZSTD: nothing is left to gain. Snappy and LZ4 leave something.
_PACKED: Final = frozenset((2, 4, 6))


def is_parquet(head: bytes) -> bool:
    """Whether a file starts like Parquet with a footer that is not encrypted."""
    return head.startswith(b"PAR1")


def split_parquet(span: Span) -> list[Piece]:
    """One piece for each column chunk, in the order of their bytes."""
    tail = span.at(span.size - 8, 8)
    length = int.from_bytes(tail[:4], "little")
    footer_at = span.size - 8 - length
    if tail[4:] != b"PAR1" or length > min((16 << 10) + span.size // 256, _MAX_FOOTER_BYTES) or footer_at < 4:
        raise Doubt
    footer = Thrift(
        span.at(footer_at, length), max_depth=_MAX_DEPTH, spend=lambda steps: span.budget.spend(steps=steps)
    )
    found = sorted(_column_chunks(footer))
    pieces: list[Piece] = []
    at = 4
    for start, size, codec in found:
        if start < at or size < 0 or start + size > footer_at:
            raise Doubt
        at = start + size
        hint = Hint.INCOMPRESSIBLE if codec in _PACKED else Hint.UNKNOWN
        pieces.append(span.piece(start, at, hint=hint))
    return pieces


def _column_chunks(footer: Thrift) -> Iterator[tuple[int, int, int]]:
    """Start, length and compression of each column chunk that lies in this file."""
    for field, kind in footer.fields():
        if field != 4 or kind != LIST:  # FileMetaData.row_groups
            footer.skip(kind)
            continue
        for _ in range(_structs(footer)):
            for in_group, group_kind in footer.fields():
                if in_group != 1 or group_kind != LIST:  # RowGroup.columns
                    footer.skip(group_kind)
                    continue
                for _ in range(_structs(footer)):
                    chunk = _column_chunk(footer)
                    if chunk is not None:
                        yield chunk


def _column_chunk(footer: Thrift) -> tuple[int, int, int] | None:
    elsewhere = False
    numbers: dict[int, int] = {}
    for field, kind in footer.fields():
        if field == 1:  # ColumnChunk.file_path
            elsewhere = True
        if field != 3 or kind != STRUCT:  # ColumnChunk.meta_data
            footer.skip(kind)
            continue
        for in_meta, meta_kind in footer.fields():
            # ColumnMetaData: codec, total_compressed_size, data_page_offset, dictionary_page_offset
            if in_meta in (4, 7, 9, 11) and meta_kind in NUMBERS:
                numbers[in_meta] = footer.number()
            else:
                footer.skip(meta_kind)
    if elsewhere or 7 not in numbers or 9 not in numbers:
        return None
    data, dictionary = numbers[9], numbers.get(11, 0)
    return dictionary if 0 < dictionary < data else data, numbers[7], numbers.get(4, 0)


def _structs(footer: Thrift) -> int:
    """How many structures a list has."""
    count, kind = footer.list_of()
    if kind != STRUCT:
        raise Doubt
    return count
