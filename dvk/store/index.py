"""Where chunks, pages and recipes lie in a local store. docs/format/index.md is the truth, this module is its code.

A store of a terabyte has sixteen million chunks. A dictionary of them would take gigabytes; sorted columns take 16
bytes a chunk, are searched for a whole batch at once, and are read through the page cache. A hit is a hint (8 of 32
bytes match) that the pack's footer confirms.

>>> segment = Segment.build([(bytes(32), footer)])           # doctest: +SKIP
>>> segment.find(ids)                                         # doctest: +SKIP
(array([0]), array([0]), array([17]))                         # which id, which pack, which row
"""

from __future__ import annotations

import struct
from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt
import xxhash
from msgspec import Struct

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt, NewerFormat
from dvk.ids import ID_BYTES
from dvk.store.names import U8
from dvk.store.pack import Footer, PackKind

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
Index = npt.NDArray[np.intp]

HEADER = struct.Struct("<8sHHIQQQ24s")
_MAGIC = b"dvkIDX1\0"
MERGE_FAN_IN = 8
_CHECKED_BYTES = 8 << 20


def prefixes(ids: U8) -> U64:
    """uint64[n]: the first 8 bytes of each id as a big-endian number, so that number order is id order."""
    return np.ascontiguousarray(ids[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


class Table(Struct, frozen=True):
    """Sorted columns: prefix uint64[n], pack uint32[n] (position in the segment's packs), row uint32[n] of a footer."""

    prefix: U64
    pack: U32
    row: U32

    @classmethod
    def of(cls, parts: Sequence[tuple[int, U8]]) -> Table:
        """From (pack position, ids uint8[n, 32]) for each pack."""
        if not parts:
            empty = np.zeros(0, np.uint32)
            return cls(np.zeros(0, np.uint64), empty, empty)
        prefix = np.concatenate([prefixes(ids) for _, ids in parts])
        pack = np.concatenate([np.full(len(ids), at, np.uint32) for at, ids in parts])
        row = np.concatenate([np.arange(len(ids), dtype=np.uint32) for _, ids in parts])
        order = np.argsort(prefix, kind="stable")
        return cls(prefix[order], pack[order], row[order])

    @classmethod
    def merge(cls, tables: Sequence[Table], shifts: Sequence[int]) -> Table:
        """Several tables as one; `shifts` is what is added to the pack positions of each."""
        prefix = np.concatenate([t.prefix for t in tables])
        pack = np.concatenate([t.pack + np.uint32(s) for t, s in zip(tables, shifts, strict=True)])
        row = np.concatenate([t.row for t in tables])
        order = np.argsort(prefix, kind="stable")
        return cls(prefix[order], pack[order], row[order])

    def find(self, wanted: U64) -> tuple[Index, Index]:
        """All candidate pairs (position in `wanted`, position in the table); one vectorised search."""
        low = np.searchsorted(self.prefix, wanted, side="left")
        high = np.searchsorted(self.prefix, wanted, side="right")
        counts = high - low
        which = np.repeat(np.arange(len(wanted)), counts)
        starts = np.cumsum(counts) - counts
        at = np.arange(len(which)) - np.repeat(starts, counts) + np.repeat(low, counts)
        return which, at


class Segment(Struct, frozen=True):
    """An immutable index over a set of packs."""

    level: int
    packs: tuple[bytes, ...]
    kinds: tuple[PackKind, ...]
    chunks: Table
    recipes: Table

    @classmethod
    def build(cls, packs: Sequence[tuple[bytes, Footer]], *, level: int = 0) -> Segment:
        """Index packs from their footers."""
        return cls(
            level=level,
            packs=tuple(name for name, _ in packs),
            kinds=tuple(f.kind for _, f in packs),
            chunks=Table.of([(i, f.ids) for i, (_, f) in enumerate(packs)]),
            recipes=Table.of(
                [
                    (
                        i,
                        np.frombuffer(np.ascontiguousarray(f.recipes["file"]).tobytes(), np.uint8).reshape(-1, 32),
                    )
                    for i, (_, f) in enumerate(packs)
                    if len(f.recipes)
                ]
            ),
        )

    @classmethod
    def merge(cls, segments: Sequence[Segment]) -> Segment:
        """Several segments as one of the next level, each pack once; sorts columns, reads no footer."""
        # Two processes may have indexed the same pack.
        seen: set[bytes] = set()
        apart: list[Segment] = []
        for segment in segments:
            apart.append(segment if seen.isdisjoint(segment.packs) else segment.without(seen))
            seen.update(segment.packs)
        segments = apart
        shifts = np.cumsum([0, *(len(s.packs) for s in segments)])[:-1].tolist()
        return cls(
            level=min(15, max(s.level for s in segments) + 1),
            packs=tuple(p for s in segments for p in s.packs),
            kinds=tuple(k for s in segments for k in s.kinds),
            chunks=Table.merge([s.chunks for s in segments], shifts),
            recipes=Table.merge([s.recipes for s in segments], shifts),
        )

    def without(self, gone: Container[bytes]) -> Segment:
        """The same segment without some packs."""
        keep = np.array([p not in gone for p in self.packs], np.bool_)
        new = (np.cumsum(keep) - 1).astype(np.uint32)

        def cut(t: Table) -> Table:
            mask = keep[t.pack]
            return Table(t.prefix[mask], new[t.pack[mask]], t.row[mask])

        return Segment(
            self.level,
            tuple(p for p in self.packs if p not in gone),
            tuple(k for p, k in zip(self.packs, self.kinds, strict=True) if p not in gone),
            cut(self.chunks),
            cut(self.recipes),
        )


def format_segment(s: Segment) -> bytes:
    """The bytes of a segment."""
    body = b"".join(
        [
            b"".join(s.packs),
            bytes(s.kinds),
            bytes(-len(s.packs) % 8),
            *(c.tobytes() for t in (s.chunks, s.recipes) for c in (t.prefix, t.pack, t.row)),
        ]
    )
    counts = (len(s.packs), len(s.chunks.row), len(s.recipes.row))
    return HEADER.pack(_MAGIC, 1, s.level, *counts, xxhash.xxh3_64_intdigest(body), bytes(24)) + body


def is_checked(data: Buffer) -> bool:
    """Whether a segment of that length is verified by its checksum whenever it is read."""
    return memoryview(data).nbytes <= _CHECKED_BYTES


def parse_segment(data: Buffer, *, subject: str, check: bool = False) -> Segment:
    """Read a segment; its columns stay views of `data`.

    Args:
        check: verify the checksum whatever the size.

    Raises:
        NewerFormat, Corrupt
    """
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise Corrupt("an index segment is cut short", subject=subject)
    magic, version, level, p, n, r, checksum, reserved = HEADER.unpack_from(view)
    if magic != _MAGIC:
        raise Corrupt("this is no index segment", subject=subject)
    if version != 1 or level > 15 or any(reserved):
        raise NewerFormat("this index segment was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if HEADER.size + p * 33 + -p % 8 + (n + r) * 16 != len(view):
        raise Corrupt("an index segment has not the length it states", subject=subject)
    body = view[HEADER.size :]
    if (check or is_checked(view)) and xxhash.xxh3_64_intdigest(body) != checksum:
        raise Corrupt("an index segment fails its checksum", subject=subject)
    names = bytes(body[: p * ID_BYTES])
    kinds = bytes(body[p * ID_BYTES : p * 33])
    if any(k not in (1, 2) for k in kinds):
        raise Corrupt("an index segment names a pack of unknown kind", subject=subject)
    at = p * 33 + -p % 8

    def table(count: int) -> Table:
        nonlocal at
        prefix = np.frombuffer(body, "<u8", count, at)
        pack = np.frombuffer(body, "<u4", count, at + 8 * count)
        row = np.frombuffer(body, "<u4", count, at + 12 * count)
        at += 16 * count
        if count and int(pack.max()) >= p:
            raise Corrupt("an index segment names a pack it does not list", subject=subject)
        return Table(prefix, pack, row)

    return Segment(
        level,
        tuple(names[32 * i : 32 * i + 32] for i in range(p)),
        tuple(PackKind(k) for k in kinds),
        table(n),
        table(r),
    )
