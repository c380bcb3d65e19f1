"""Thrift structures in the compact protocol, front to back, as Parquet footers have them.

    footer = Thrift(data, max_depth=12)
    for field, kind in footer.fields():
        if field == 3 and kind in NUMBERS:
            rows = footer.number()
        else:
            footer.skip(kind)

The bytes come from anybody: lengths are checked before they are believed, nesting is bounded, and time is linear in the
bytes. What a footer means is the business of who reads it: `regions/parquet.py`, `table/columnar/parquet_footer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
NUMBERS: Final = frozenset((I16, I32, I64))
_SMALL: Final = frozenset((TRUE, FALSE, BYTE))
_MOST_BYTES: Final = 10  # of a number


class Malformed(ValueError):
    """What is wrong with a structure."""


def _nothing(_steps: int) -> None:
    """Steps cost nothing."""


class Thrift:
    """A reader at the start of `data`. Every method raises Malformed, or IndexError at the end of the data."""

    def __init__(self, data: bytes, *, max_depth: int, spend: Callable[[int], None] = _nothing) -> None:
        """`spend` is told of each field and of each item of a list that is passed over, and may raise."""
        self._data, self._max_depth, self._spend = data, max_depth, spend
        self._at = 0

    def number(self) -> int:
        """A signed integer; the protocol means 64 bits, a liar may give 70."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure; the caller reads or skips its value before the next."""
        field = 0
        while head := self._data[self._at]:
            self._at += 1
            self._spend(1)
            field = field + (head >> 4) if head >> 4 else self.number()
            yield field, head & 15
        self._at += 1

    def list_of(self) -> tuple[int, int]:
        """How many items a list has, and of which type; the caller reads them."""
        head = self._data[self._at]
        self._at += 1
        count = head >> 4
        if count == 15:
            count = self._varint()
        self._bounded(count)
        return count, head & 15

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over a value."""
        if depth > self._max_depth:
            raise Malformed("nested too deeply")
        if kind in NUMBERS:
            self._varint()
        elif kind == BINARY:
            self._forward(self._varint())
        elif kind == BYTE:
            self._forward(1)
        elif kind == DOUBLE:
            self._forward(8)
        elif kind in (TRUE, FALSE):
            return
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner, depth + 1)
        elif kind in (LIST, SET):
            count, inner = self.list_of()
            self._skip_items(count, inner, depth)
        elif kind == MAP:
            count = self._varint()
            if count:
                kinds = self._data[self._at]
                self._at += 1
                self._bounded(count)
                for _ in range(count):
                    self._skip_items(1, kinds >> 4, depth)
                    self._skip_items(1, kinds & 15, depth)
        else:
            raise Malformed("an unknown type")

    def _skip_items(self, count: int, kind: int, depth: int) -> None:
        self._spend(count)
        if kind in _SMALL:  # in a list, a boolean is a byte
            self._forward(count)
            return
        for _ in range(count):
            self.skip(kind, depth + 1)

    def _bounded(self, count: int) -> None:
        if count > len(self._data) - self._at:  # an item takes a byte at least
            raise Malformed("a list longer than the structure")

    def _forward(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise Malformed("cut short")

    def _varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        at += 1
        value, shift = byte & 127, 7
        while byte > 127:
            if shift == 7 * _MOST_BYTES:
                raise Malformed("a number beyond 64 bits")
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
        self._at = at
        return value
