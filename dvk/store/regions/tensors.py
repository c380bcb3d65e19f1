"""Files of tensors: safetensors, GGUF, npy. Each tensor is a region on a grid of its own, its words known by dtype."""

from __future__ import annotations

import json
import re
import struct
from typing import Any, Final

import numpy as np

from dvk.store.codec import WORDS, Hint
from dvk.store.regions.span import Doubt, Piece, Span

# ---------------------------------------------------------------- safetensors

#: A header of JSON takes some thirty times its length while it is parsed.
_MAX_JSON_BYTES: Final = 4 << 20
#: How deep a parser can go differs from machine to machine, and cuts must not.
MAX_JSON_DEPTH: Final = 64
_NESTING: Final = np.array([(chr(c) in "[{") - (chr(c) in "]}") for c in range(256)], np.int8)
_SAFETENSORS_WIDTHS: Final = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 4,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
}  # fmt: skip


def is_safetensors(head: bytes) -> bool:
    """Whether a file may be one: the length of a header, and a brace where it starts."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= _MAX_JSON_BYTES


def split_safetensors(span: Span) -> list[Piece]:
    """One piece for each tensor."""
    length = int.from_bytes(span.at(0, 8), "little")
    if length > (32 << 10) + span.size // 64:
        raise Doubt
    text = span.at(8, length)
    if json_depth(text) > MAX_JSON_DEPTH:
        raise Doubt
    header: Any = json.loads(text)
    base = 8 + length
    found: list[tuple[int, int, str]] = []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise Doubt
        if begin < end:
            found.append((begin, end, str(tensor["dtype"])))
    span.budget.spend(steps=4 * len(found))
    found.sort()
    pieces: list[Piece] = []
    at = 0
    for begin, end, dtype in found:
        if begin < at:
            raise Doubt  # tensors overlap
        hint = WORDS.get(_SAFETENSORS_WIDTHS.get(dtype, 1), Hint.BYTES)
        pieces.append(span.piece(base + begin, base + end, fixed=True, hint=hint))
        at = end
    return pieces


def json_depth(text: bytes) -> int:
    """How deep brackets and braces nest, those in strings included."""
    return int(np.cumsum(_NESTING[np.frombuffer(text, np.uint8)], dtype=np.int32).max())


# ---------------------------------------------------------------- npy

_MAX_NPY_HEADER_BYTES: Final = 64 << 10
_NPY_DESCR: Final = re.compile(rb"'descr': *'([<>|=])([bifcumM?])([0-9]{1,2})")


def is_npy(head: bytes) -> bool:
    """Whether a file is an array of NumPy, format 1 to 3."""
    return head.startswith(b"\x93NUMPY") and head[6] in (1, 2, 3) and head[7] == 0


def split_npy(span: Span) -> list[Piece]:
    """One piece for the array; none where its items are not numbers."""
    head = span.at(0, 12)
    start, length = (10, head[8:10]) if head[6] == 1 else (12, head[8:12])
    end = start + int.from_bytes(length, "little")
    if end > _MAX_NPY_HEADER_BYTES:
        raise Doubt
    found = _NPY_DESCR.search(span.at(start, end - start))
    if found is None:
        return []
    order, kind, digits = found.groups()
    width = int(digits) // 2 if kind == b"c" else int(digits)
    # Only little-endian words can be split into planes; a wrong guess of the order costs nothing but the gain.
    hint = Hint.UNKNOWN if order == b">" and width > 1 else WORDS.get(width, Hint.BYTES)
    return [span.piece(end, span.size, fixed=True, hint=hint)]


# ---------------------------------------------------------------- GGUF

_GGUF_STEP_BYTES: Final = 256 << 10
_GGUF_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY, _GGUF_U32 = 8, 9, 4
#: Types of tensors whose items are plain words; all others are packed.
_GGUF_WIDTHS: Final = {0: 4, 1: 2, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


def is_gguf(head: bytes) -> bool:
    """Whether a file is GGUF, little-endian, format 2 or 3."""
    return head.startswith(b"GGUF") and head[4:8] in (b"\2\0\0\0", b"\3\0\0\0")


def split_gguf(span: Span) -> list[Piece]:
    """One piece for each tensor, with the padding behind it."""
    cursor = _Cursor(span, 8)
    tensors, pairs = cursor.u64(), cursor.u64()
    alignment = 32
    for _ in range(pairs):
        span.budget.spend(steps=4)
        key, kind = cursor.text(), cursor.u32()
        if key == b"general.alignment" and kind == _GGUF_U32:
            alignment = cursor.u32()
        else:
            cursor.skip_value(kind)
    if not 1 <= alignment <= 1 << 20:
        raise Doubt
    found: list[tuple[int, int]] = []  # (offset, type)
    for _ in range(tensors):
        span.budget.spend(steps=5)
        cursor.text()
        dimensions = cursor.u32()
        if dimensions > 8:
            raise Doubt
        cursor.skip(8 * dimensions)
        kind = cursor.u32()
        found.append((cursor.u64(), kind))
    base = -(-cursor.at // alignment) * alignment
    found.sort()
    pieces: list[Piece] = []
    for (offset, kind), (end, _) in zip(found, [*found[1:], (span.size - base, 0)], strict=True):
        if offset < end:
            hint = WORDS.get(_GGUF_WIDTHS.get(kind, 1), Hint.BYTES)
            pieces.append(span.piece(base + offset, base + end, fixed=True, hint=hint))
    return pieces


class _Cursor:
    """Reads a header from front to back, in steps."""

    def __init__(self, span: Span, start: int) -> None:
        self._span = span
        self._data = bytearray()
        self._start = start  # offset of `_data` in the span
        self._at = 0  # in `_data`

    @property
    def at(self) -> int:
        """The offset in the span of what is read next."""
        return self._start + self._at

    def _need(self, size: int) -> int:
        """Where the next `size` bytes, at most a few, lie in `_data`; they count as read."""
        if self._at + size > len(self._data):
            start = self._start + self._at
            step = min(_GGUF_STEP_BYTES, self._span.size - start)
            if step < size:
                raise Doubt
            self._data, self._start, self._at = bytearray(self._span.at(start, step)), start, 0
        self._at += size
        return self._at - size

    def u32(self) -> int:
        at = self._need(4)
        return int(_U32.unpack_from(self._data, at)[0])

    def u64(self) -> int:
        at = self._need(8)
        return int(_U64.unpack_from(self._data, at)[0])

    def skip(self, size: int) -> None:
        if self.at + size > self._span.size:
            raise Doubt
        self._at += size

    def text(self) -> bytes:
        """A string of up to 64 KiB, the longest name that anybody uses."""
        size = self.u64()
        if size > 1 << 16:
            raise Doubt
        at = self._need(size)
        return bytes(self._data[at : at + size])

    def _skip_strings(self, count: int) -> None:
        # A vocabulary has 100,000 of them and more: the one loop here that has to be short.
        length_of = _U64.unpack_from
        data, at, last = self._data, self._at, len(self._data) - 8
        for _ in range(count):
            if at > last:
                self._at = at
                at = self._need(8)
                data, last = self._data, len(self._data) - 8
            at += 8 + length_of(data, at)[0]
        self._at = at
        self.skip(0)

    def skip_value(self, kind: int) -> None:
        """Pass over the value of a key."""
        if kind in _GGUF_SIZES:
            self.skip(_GGUF_SIZES[kind])
        elif kind == _GGUF_STRING:
            self.skip(self.u64())
        elif kind == _GGUF_ARRAY:
            kind, count = self.u32(), self.u64()
            if kind in _GGUF_SIZES:
                self.skip(_GGUF_SIZES[kind] * count)
            elif kind == _GGUF_STRING:
                self._span.budget.spend(steps=count // 4)
                self._skip_strings(count)
            else:
                raise Doubt  # an array of arrays
        else:
            raise Doubt
