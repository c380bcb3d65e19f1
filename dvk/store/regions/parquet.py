"""Parquet: each column chunk is a region, and so is the footer.

The footer is a Thrift structure (compact protocol) that is read here just far enough to know where column chunks start
and end: pyarrow is an extra that a store must not need, and would believe what it reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dvk.store.codec import Hint
from dvk.store.regions.span import Budget, Doubt, Piece, Span

_MAX_FOOTER_BYTES: Final = 16 << 20
_MAX_DEPTH: Final = 12
#: GZIP, BROTLI, ZSTD: nothing is left to gain. Snappy and LZ4 leave something.
_PACKED: Final = frozenset((2, 4, 6))

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_VARINTS: Final = frozenset((_I16, _I32, _I64))


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
    footer = _Thrift(span.at(footer_at, length), span.budget)
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


def _column_chunks(footer: _Thrift) -> Iterator[tuple[int, int, int]]:
    """Start, length and compression of each column chunk that lies in this file."""
    for field, kind in footer.fields():
        if field != 4 or kind != _LIST:  # FileMetaData.row_groups
            footer.skip(kind)
            continue
        for _ in range(footer.list_of(_STRUCT)):
            for in_group, group_kind in footer.fields():
                if in_group != 1 or group_kind != _LIST:  # RowGroup.columns
                    footer.skip(group_kind)
                    continue
                for _ in range(footer.list_of(_STRUCT)):
                    chunk = _column_chunk(footer)
                    if chunk is not None:
                        yield chunk


def _column_chunk(footer: _Thrift) -> tuple[int, int, int] | None:
    elsewhere = False
    numbers: dict[int, int] = {}
    for field, kind in footer.fields():
        if field == 1:  # ColumnChunk.file_path
            elsewhere = True
        if field != 3 or kind != _STRUCT:  # ColumnChunk.meta_data
            footer.skip(kind)
            continue
        for in_meta, meta_kind in footer.fields():
            # ColumnMetaData: codec, total_compressed_size, data_page_offset, dictionary_page_offset
            if in_meta in (4, 7, 9, 11) and meta_kind in _VARINTS:
                numbers[in_meta] = footer.number()
            else:
                footer.skip(meta_kind)
    if elsewhere or 7 not in numbers or 9 not in numbers:
        return None
    data, dictionary = numbers[9], numbers.get(11, 0)
    return dictionary if 0 < dictionary < data else data, numbers[7], numbers.get(4, 0)


class _Thrift:
    """Reads the compact protocol from front to back."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        self._data, self._budget, self._at = data, budget, 0

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._at]  # IndexError at the end
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise Doubt

    def number(self) -> int:
        """A signed integer."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure; the caller reads or skips its value before the next."""
        field = 0
        while True:
            head = self._data[self._at]
            self._at += 1
            if not head:
                return
            self._budget.spend(steps=1)
            field = field + (head >> 4) if head >> 4 else self.number()
            yield field, head & 0x0F

    def list_of(self, kind: int) -> int:
        """How many items of `kind` a list has."""
        count, found = self._list()
        if found != kind:
            raise Doubt
        return count

    def _list(self) -> tuple[int, int]:
        head = self._data[self._at]
        self._at += 1
        count = head >> 4
        if count == 15:
            count = self._varint()
        if count > len(self._data) - self._at:  # an item takes a byte at least
            raise Doubt
        return count, head & 0x0F

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if depth > _MAX_DEPTH:
            raise Doubt
        if kind in _VARINTS:
            self._varint()
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind in (_TRUE, _FALSE):
            pass
        elif kind == _BYTE:
            self._forward(1)
        elif kind == _DOUBLE:
            self._forward(8)
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
                if count > len(self._data) - self._at:
                    raise Doubt
                for _ in range(count):
                    self._skip_items(1, kinds >> 4, depth)
                    self._skip_items(1, kinds & 0x0F, depth)
        else:
            raise Doubt

    def _skip_items(self, count: int, kind: int, depth: int) -> None:
        self._budget.spend(steps=count)
        if kind in (_TRUE, _FALSE, _BYTE):  # in a list, a boolean is a byte
            self._forward(count)
        else:
            for _ in range(count):
                self.skip(kind, depth + 1)

    def _forward(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise Doubt
