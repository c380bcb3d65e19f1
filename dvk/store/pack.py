"""Packs: the one object that holds data. docs/format/pack.md is the truth, this module is its code.

A builder collects encoded blocks in memory and yields the parts of a finished pack; a footer read back is columns
of numbers, never objects per chunk.

>>> builder = PackBuilder(PackKind.DATA, nonce=bytes(16))
>>> offset = builder.add_block(0, b"hello", 5, ids=bytes(32), lengths=np.array([5], np.uint32))
>>> name, parts = builder.finish()
>>> parse_footer_of(b"".join(parts)).chunk_len.tolist()
[5]
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3
from msgspec import Struct

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt, FormatError, NewerFormat
from dvk.ids import ID_BYTES, PackId
from dvk.store.names import U8, distinct

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]

MAX_BLOCK_BYTES = 1 << 20
TARGET_PACK_BYTES = 64 << 20
#: A pack ends here too: a million files of a few bytes fill a footer long before they fill a pack.
TARGET_FOOTER_BYTES = 8 << 20
MAX_PACK_BYTES = 1 << 30
MAX_FOOTER_BYTES = 64 << 20

HEADER = struct.Struct("<8sHHI16s")
BLOCK_HEADER = struct.Struct("<4sB3sIIQ")
FOOTER_HEADER = struct.Struct("<8sIIIIQ")
TRAILER = struct.Struct("<8sHHIQQQ16sQ")

_MAGIC, _BLOCK, _FOOT, _END = b"dvkPACK\0", b"BLK1", b"dvkFOOT\0", b"dvkEND1\0"
_RECIPE = np.dtype([("file", "V32"), ("root", "V32"), ("size", "<u8"), ("profile", "V16")])


class PackKind(IntEnum):
    """What a pack holds."""

    DATA = 1
    PAGES = 2

    @property
    def prefix(self) -> str:
        """The first part of its key."""
        return "p" if self is PackKind.DATA else "m"


def pack_key(kind: PackKind, name: bytes) -> str:
    """The key of a pack in a store."""
    digits = name.hex()
    return f"{kind.prefix}/{digits[:2]}/{digits}"


class RecipeRow(Struct, frozen=True):
    """Says that `root` is the root page of the recipe of a file."""

    file: bytes
    root: bytes
    size: int
    profile: str


class Footer(Struct, frozen=True, dict=True):
    """What a pack says of itself, as columns: m blocks, n chunks, r recipes.

    Attributes:
        packed_len, raw_len, chunk_count: uint32[m]; codec: uint8[m].
        chunk_len: uint32[n]; ids: uint8[n, 32].
        recipes: the rows of a page pack; empty for a data pack.
    """

    kind: PackKind
    packed_len: U32
    raw_len: U32
    chunk_count: U32
    codec: U8
    chunk_len: U32
    ids: U8
    recipes: npt.NDArray[np.void]

    @cached_property
    def block_offset(self) -> I64:
        """int64[m]: where each block header starts in the pack."""
        ends = np.cumsum(self.packed_len.astype(np.int64) + BLOCK_HEADER.size)
        return np.concatenate([[0], ends[:-1]]) + HEADER.size if len(ends) else ends

    @cached_property
    def chunk_block(self) -> U32:
        """uint32[n]: the block of each chunk."""
        return np.repeat(np.arange(len(self.chunk_count), dtype=np.uint32), self.chunk_count)

    @cached_property
    def chunk_offset(self) -> U32:
        """uint32[n]: where each chunk starts in its decoded block."""
        starts = np.cumsum(self.chunk_len.astype(np.int64)) - self.chunk_len
        first = np.concatenate([[0], np.cumsum(self.chunk_count.astype(np.int64))[:-1]]).astype(np.int64)
        if not len(self.chunk_count):
            return np.zeros(0, np.uint32)
        return (starts - np.repeat(starts[first], self.chunk_count)).astype(np.uint32)

    def recipe(self, row: int) -> RecipeRow:
        """Row `row` of the recipes."""
        r = self.recipes[row]
        name = bytes(r["profile"]).rstrip(b"\0")
        return RecipeRow(bytes(r["file"]), bytes(r["root"]), int(r["size"]), name.decode("ascii"))


def block_header(codec: int, raw_len: int, payload: Buffer) -> bytes:
    """The 24 bytes before a payload."""
    return BLOCK_HEADER.pack(_BLOCK, codec, b"\0\0\0", raw_len, len(payload), xxhash.xxh3_64_intdigest(payload))


def open_block(data: memoryview, *, subject: str) -> tuple[int, int, memoryview]:
    """Codec, raw length and payload of the block at the start of `data`, checksum verified.

    Raises:
        Corrupt: the bytes are no whole block, or its checksum fails.
    """
    if len(data) < BLOCK_HEADER.size:
        raise Corrupt("a block is cut short", subject=subject)
    magic, codec, reserved, raw_len, packed_len, checksum = BLOCK_HEADER.unpack_from(data)
    if magic != _BLOCK or reserved != b"\0\0\0":
        raise Corrupt("no block starts here", subject=subject)
    if not 1 <= packed_len <= raw_len <= MAX_BLOCK_BYTES:
        raise Corrupt("a block states impossible lengths", subject=subject)
    payload = data[BLOCK_HEADER.size : BLOCK_HEADER.size + packed_len]
    if len(payload) != packed_len:
        raise Corrupt("a block is cut short", subject=subject)
    if xxhash.xxh3_64_intdigest(payload) != checksum:
        raise Corrupt("a block fails its checksum", subject=subject)
    return codec, raw_len, payload


def iter_blocks(data: Buffer, *, subject: str) -> Iterator[tuple[int, int, memoryview]]:
    """The blocks of a range that holds whole blocks and nothing else."""
    view = memoryview(data)
    while view:
        codec, raw_len, payload = open_block(view, subject=subject)
        yield codec, raw_len, payload
        view = view[BLOCK_HEADER.size + len(payload) :]


class PackBuilder:
    """Collects the blocks of one pack in memory. Not for use by several threads at once.

    Args:
        room: writable memory that blocks are copied into one after the other, as far as it goes, so that payloads need
            not live on and the pack can be hashed and written in one go. It belongs to the builder until its parts were
            written. Without it, payloads are kept, as copies where they lie in a buffer.
    """

    def __init__(self, kind: PackKind, *, nonce: bytes | None = None, room: U8 | None = None) -> None:
        self.kind = kind
        self.room = room
        self._room_used = 0
        self._parts: list[Buffer] = []  # what the room did not take
        self._blocks: list[tuple[int, int, int, int]] = []
        self._ids: list[bytes] = []
        self._lengths: list[U32] = []
        self._recipes: list[RecipeRow] = []
        self.size_bytes = 0  #: where the next block will start
        self._footer_bytes = FOOTER_HEADER.size
        self._append(HEADER.pack(_MAGIC, 1, kind, 0, nonce or os.urandom(16)))

    def add_block(self, codec: int, payload: Buffer, raw_len: int, *, ids: bytes, lengths: U32) -> int:
        """Append an encoded block; `ids` are 32 bytes a chunk, `lengths` uint32. Returns its offset in the pack."""
        offset = self.size_bytes
        self._append(block_header(codec, raw_len, payload), payload)
        self._blocks.append((len(payload), raw_len, len(lengths), codec))
        self._ids.append(ids)
        self._lengths.append(lengths)
        self._footer_bytes += 13 + len(lengths) * (4 + ID_BYTES)
        return offset

    def _append(self, *parts: Buffer) -> None:
        size = sum(map(len, parts))
        self.size_bytes += size
        if self.room is None or self._parts or self._room_used + size > len(self.room):
            # Buffers are used again, so what is in them is copied.
            self._parts += (part if isinstance(part, bytes) else bytes(part) for part in parts)
            return
        for part in parts:
            end = self._room_used + len(part)
            # By numpy, which lets other threads run meanwhile.
            np.copyto(self.room[self._room_used : end], np.frombuffer(part, np.uint8))
            self._room_used = end

    def add_recipe(self, row: RecipeRow) -> None:
        """State in the footer which page is the root of a file's recipe."""
        self._recipes.append(row)
        self._footer_bytes += _RECIPE.itemsize

    @property
    def empty(self) -> bool:
        return not self._blocks and not self._recipes

    @property
    def full(self) -> bool:
        """Whether the pack should be finished: its blocks or its footer have the length they should have, or its room
        may not take another block."""
        if self.room is not None and self._room_used + BLOCK_HEADER.size + MAX_BLOCK_BYTES > len(self.room):
            return True
        return self.size_bytes >= TARGET_PACK_BYTES or self._footer_bytes >= TARGET_FOOTER_BYTES

    def footer(self) -> Footer:
        """The columns so far."""
        columns = np.array(self._blocks, np.uint32).reshape(-1, 4)
        recipes = np.zeros(len(self._recipes), _RECIPE)
        for i, r in enumerate(self._recipes):
            recipes[i] = (r.file, r.root, r.size, r.profile.encode("ascii").ljust(16, b"\0"))
        return Footer(
            kind=self.kind,
            packed_len=columns[:, 0].copy(),
            raw_len=columns[:, 1].copy(),
            chunk_count=columns[:, 2].copy(),
            codec=columns[:, 3].astype(np.uint8),
            chunk_len=np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.uint32),
            ids=np.frombuffer(b"".join(self._ids), np.uint8).reshape(-1, ID_BYTES),
            recipes=recipes,
        )

    def finish(self) -> tuple[PackId, list[Buffer]]:
        """The name of the pack and its bytes as parts, ready for `Backend.put`."""
        footer = format_footer(self.footer())
        total = self.size_bytes + len(footer) + TRAILER.size
        if len(footer) > MAX_FOOTER_BYTES or total > MAX_PACK_BYTES:
            raise ValueError(f"a pack of {total:,} bytes with a footer of {len(footer):,} could not be read again")
        head = TRAILER.pack(
            _END, self.kind, 1, 0, self.size_bytes, len(footer), total, blake3(footer).digest()[:16], 0
        )[:-8]
        trailer = head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head))
        inside = [] if self.room is None else [self.room[: self._room_used].data]
        parts = [*inside, *self._parts, footer, trailer]
        hasher = blake3()
        for part in parts:
            hasher.update(part)
        return PackId(hasher.digest()), parts


def format_footer(f: Footer) -> bytes:
    """The bytes of a footer."""
    head = FOOTER_HEADER.pack(_FOOT, len(f.raw_len), len(f.chunk_len), len(f.recipes), 0, 0)
    columns = (f.packed_len, f.raw_len, f.chunk_count, f.codec, f.chunk_len, f.ids, f.recipes)
    return head + b"".join(np.ascontiguousarray(c).tobytes() for c in columns)


class Trailer(Struct, frozen=True):
    """The last 64 bytes of a pack."""

    kind: PackKind
    footer_offset: int
    footer_len: int
    pack_len: int
    footer_hash: bytes


def parse_trailer(data: bytes, *, subject: str) -> Trailer:
    """Read the 64 bytes at a pack's end.

    Raises:
        NewerFormat, Corrupt
    """
    if len(data) != TRAILER.size:
        raise Corrupt("a pack is shorter than its trailer", subject=subject)
    magic, kind, version, reserved, offset, length, total, digest, checksum = TRAILER.unpack(data)
    if magic != _END or xxhash.xxh3_64_intdigest(data[:-8]) != checksum:
        raise Corrupt("the end of the pack is missing or damaged", subject=subject)
    if version != 1 or kind not in (1, 2) or reserved:
        raise NewerFormat("this pack was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if length > MAX_FOOTER_BYTES or total > MAX_PACK_BYTES or offset + length + TRAILER.size != total:
        raise Corrupt("the pack's trailer states impossible lengths", subject=subject)
    return Trailer(PackKind(kind), offset, length, total, digest)


def parse_footer(data: bytes, trailer: Trailer, *, subject: str) -> Footer:
    """Read a footer whose trailer is known; every count is checked before a column is made.

    Raises:
        Corrupt: it does not hash to what the trailer says, or contradicts itself.
    """
    if len(data) != trailer.footer_len or blake3(data).digest()[:16] != trailer.footer_hash:
        raise Corrupt("the pack's footer fails its hash", subject=subject)
    if len(data) < FOOTER_HEADER.size:
        raise Corrupt("the pack's footer is cut short", subject=subject)
    magic, m, n, r, bases, reserved = FOOTER_HEADER.unpack_from(data)
    if magic != _FOOT:
        raise Corrupt("the pack's footer is damaged", subject=subject)
    if bases or reserved:
        raise NewerFormat("this pack was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if FOOTER_HEADER.size + m * 13 + n * (4 + ID_BYTES) + r * _RECIPE.itemsize != len(data):
        raise Corrupt("the pack's footer states counts that do not fill it", subject=subject)
    at = FOOTER_HEADER.size

    def column(dtype: npt.DTypeLike, count: int) -> npt.NDArray[np.generic]:
        nonlocal at
        out = np.frombuffer(data, dtype, count, at)
        at += out.nbytes
        return out

    footer = Footer(
        kind=trailer.kind,
        packed_len=column("<u4", m),  # type: ignore[arg-type]
        raw_len=column("<u4", m),  # type: ignore[arg-type]
        chunk_count=column("<u4", m),  # type: ignore[arg-type]
        codec=column("u1", m),  # type: ignore[arg-type]
        chunk_len=column("<u4", n),  # type: ignore[arg-type]
        ids=column("u1", n * ID_BYTES).reshape(n, ID_BYTES),  # type: ignore[arg-type]
        recipes=column(_RECIPE, r),  # type: ignore[arg-type]
    )
    _check_footer(footer, trailer, subject)
    return footer


def _check_footer(f: Footer, trailer: Trailer, subject: str) -> None:
    def bad(what: str) -> Corrupt:
        return Corrupt(f"the pack's footer contradicts itself: {what}", subject=subject)

    n = len(f.chunk_len)
    if len(f.raw_len) and (int(f.chunk_count.min()) < 1 or int(f.raw_len.max()) > MAX_BLOCK_BYTES):
        raise bad("an impossible block")
    if int(f.chunk_count.sum(dtype=np.uint64)) != n:
        raise bad("chunk counts")
    if n and int(f.chunk_len.min()) < 1:
        raise bad("an empty chunk")
    if np.any(f.packed_len > f.raw_len) or (len(f.packed_len) and int(f.packed_len.min()) < 1):
        raise bad("packed lengths")
    packed = int(f.packed_len.sum(dtype=np.uint64)) + len(f.packed_len) * BLOCK_HEADER.size
    if HEADER.size + packed != trailer.footer_offset:
        raise bad("block lengths")
    ends = np.concatenate([[0], np.cumsum(f.chunk_len.astype(np.uint64))])
    bounds = np.concatenate([[0], np.cumsum(f.chunk_count.astype(np.int64))])
    if n and not np.array_equal(np.diff(ends[bounds]), f.raw_len.astype(np.uint64)):
        raise bad("chunk lengths")
    if len(f.recipes) and f.kind is not PackKind.PAGES:
        raise bad("recipes in a data pack")
    for name in distinct(f.recipes["profile"]):
        text = bytes(name).rstrip(b"\0")
        if not text or not text.isascii() or any(b < 33 for b in text):
            raise bad("a profile name")


def check_header(data: Buffer, *, subject: str) -> PackKind:
    """Read the first 32 bytes of a pack.

    Raises:
        FormatError: not a pack. NewerFormat: not of this version.
    """
    if len(data) < HEADER.size:
        raise Corrupt("a pack is cut short", subject=subject)
    magic, version, kind, flags, _nonce = HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FormatError("this is not a pack", subject=subject)
    if version != 1 or kind not in (1, 2) or flags:
        raise NewerFormat("this pack was written by a newer dvk", subject=subject, hint="upgrade dvk")
    return PackKind(kind)


def parse_footer_of(data: Buffer, *, subject: str = "pack") -> Footer:
    """The footer of a whole pack held in memory, header and trailer checked."""
    view = memoryview(data)
    kind = check_header(view, subject=subject)
    trailer = parse_trailer(bytes(view[-TRAILER.size :]), subject=subject)
    if trailer.pack_len != len(view) or trailer.kind is not kind:
        raise Corrupt("the pack has not the length it states", subject=subject)
    start = trailer.footer_offset
    return parse_footer(bytes(view[start : start + trailer.footer_len]), trailer, subject=subject)
