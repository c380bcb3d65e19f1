"""Where the chunks of a list lie: blocks as columns, and for each chunk its block and its offset there.

The local index, a remote's locator and a pack's own footer all answer "where is it" in this one form, and everything
that reads (restore, fetch, push) takes it, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.contract import Backend
from dvk.errors import Corrupt
from dvk.store.codec import MAX_BLOCK_BYTES, RAW, decode_block
from dvk.store.names import I64, U8
from dvk.store.pack import BLOCK_HEADER, PackKind, open_block, pack_key

U32 = npt.NDArray[np.uint32]

#: Neighbouring ranges closer than this are read as one; a request to a server costs more than the bytes between.
COALESCE_GAP_BYTES = 1 << 20
MAX_RANGE_BYTES = 16 << 20


class Blocks(Struct, frozen=True):
    """m blocks: `packs` names them, the columns say where each lies. `offset` is that of the block header."""

    kind: PackKind
    packs: tuple[bytes, ...]
    pack: U32
    offset: I64
    packed_len: U32
    raw_len: U32
    codec: U8

    def __len__(self) -> int:
        return len(self.offset)

    def key(self, block: int) -> str:
        """The key of the pack of a block."""
        return pack_key(self.kind, self.packs[int(self.pack[block])])

    def span(self, block: int) -> tuple[int, int]:
        """Offset and length of a block with its header."""
        return int(self.offset[block]), BLOCK_HEADER.size + int(self.packed_len[block])


class Placement(Struct, frozen=True):
    """n chunks in the order of their list: `block` uint32[n] into `blocks`, `offset` uint32[n] in the decoded block."""

    blocks: Blocks
    block: U32
    offset: U32


class Range(Struct, frozen=True):
    """A run of blocks of one pack that is read in one request."""

    key: str
    offset: int
    length: int
    blocks: tuple[int, ...]


def plan_ranges(
    blocks: Blocks,
    wanted: Iterable[int],
    *,
    max_range_bytes: int = MAX_RANGE_BYTES,
    max_gap_bytes: int = COALESCE_GAP_BYTES,
    span: Callable[[int], tuple[int, int]] | None = None,
) -> Iterator[Range]:
    """Join blocks that lie close together into ranges; in order of pack and offset.

    `span`: offset and length in the pack of what is to be read of a block, in place of all of it.
    """
    span = span or blocks.span
    order = sorted(set(wanted), key=lambda b: (int(blocks.pack[b]), int(blocks.offset[b])))
    run: list[int] = []
    start = end = 0
    for b in order:
        offset, length = span(b)
        same = run and blocks.pack[b] == blocks.pack[run[-1]]
        if same and 0 <= offset - end <= max_gap_bytes and offset + length - start <= max_range_bytes:
            run.append(b)
            end = offset + length
            continue
        if run:
            yield Range(blocks.key(run[0]), start, end - start, tuple(run))
        run, start, end = [b], offset, offset + length
    if run:
        yield Range(blocks.key(run[0]), start, end - start, tuple(run))


class Encoded(Struct, frozen=True):
    """A block as it lies in its pack."""

    codec: int
    raw_len: int
    payload: memoryview


def read_range(backend: Backend, blocks: Blocks, r: Range) -> Iterator[tuple[int, Encoded]]:
    """Read a range; the checksum of each block is verified and what it says of itself is compared.

    Raises:
        KeyMissing: the pack is gone. Corrupt: a block is not what it should be.
    """
    data = memoryview(backend.get_range(r.key, r.offset, r.length))
    for b in r.blocks:
        offset, length = blocks.span(b)
        yield b, _opened(backend, blocks, b, data[offset - r.offset : offset - r.offset + length])


def _opened(backend: Backend, blocks: Blocks, b: int, piece: memoryview) -> Encoded:
    """A block, verified, out of its bytes with its header."""
    subject = f"{backend.name}/{blocks.key(b)} at {int(blocks.offset[b]):,}"
    codec, raw_len, payload = open_block(piece, subject=subject)
    stated = (int(blocks.codec[b]), int(blocks.raw_len[b]), int(blocks.packed_len[b]))
    if (codec, raw_len, len(payload)) != stated:
        raise Corrupt("a block is not what the index says", subject=subject)
    return Encoded(codec, raw_len, payload)


def read_encoded(backend: Backend, blocks: Blocks, wanted: Iterable[int]) -> Iterator[tuple[int, Encoded]]:
    """Read blocks in coalesced ranges; raises as `read_range`."""
    for r in plan_ranges(blocks, wanted, max_gap_bytes=backend.capabilities.gap_bytes):
        yield from read_range(backend, blocks, r)


def read_blocks(backend: Backend, blocks: Blocks, wanted: Sequence[int]) -> dict[int, bytes]:
    """Read and decode blocks: number -> decoded bytes."""
    return {b: decode_block(e.codec, e.payload, e.raw_len) for b, e in read_encoded(backend, blocks, wanted)}


class Part(Struct, frozen=True):
    """Decoded bytes of a block from `begin` on."""

    data: bytes
    begin: int = 0


def read_parts(backend: Backend, blocks: Blocks, wanted: Mapping[int, tuple[int, int]]) -> dict[int, Part]:
    """Of each block the decoded bytes from the first number to the second one; or more of it, often all.

    A block that is stored as it is need not be read whole, and where small files lie in one by the dozen and a few of
    them are wanted, that is what reading costs. The checksum is of a whole block, so a part is not verified: the caller
    has to prove what it takes.

    Raises:
        KeyMissing: the pack is gone. Corrupt: a block is not what it should be.
    """
    some = {b: span for b, span in wanted.items() if _can_be_cut(blocks, b, *span)}
    out: dict[int, Part] = {}

    def place(b: int) -> tuple[int, int]:
        if b not in some:
            return blocks.span(b)
        begin, end = some[b]
        return int(blocks.offset[b]) + BLOCK_HEADER.size + begin, end - begin

    for r in _plan_parts(backend, blocks, wanted, place):
        data = memoryview(backend.get_range(r.key, r.offset, r.length))
        for b in r.blocks:
            offset, length = place(b)
            piece = data[offset - r.offset : offset - r.offset + length]
            if b in some:
                out[b] = Part(bytes(piece), some[b][0])
            else:
                e = _opened(backend, blocks, b, piece)
                out[b] = Part(decode_block(e.codec, e.payload, e.raw_len))
    return out


def _plan_parts(
    backend: Backend, blocks: Blocks, wanted: Iterable[int], span: Callable[[int], tuple[int, int]]
) -> Iterator[Range]:
    """Ranges for parts of some blocks, and for others as a whole.

    Where a request costs as much as a block, there are as many as whole blocks would take: only what lies before the
    first part and behind the last one is left out.
    """
    gap = backend.capabilities.gap_bytes
    for r in plan_ranges(blocks, wanted, max_gap_bytes=gap):
        inside = gap if gap < MAX_BLOCK_BYTES else r.length
        yield from plan_ranges(blocks, r.blocks, max_gap_bytes=inside, span=span)


def read_bare(backend: Backend, blocks: Blocks, b: int) -> Part | None:
    """A damaged block that is stored as it is, whatever its header and its checksum say; None for any other.

    Not verified: the caller has to prove what it takes.

    Raises:
        KeyMissing: the pack is gone. Corrupt: the pack ends before.
    """
    raw = int(blocks.raw_len[b])
    if not _is_as_it_is(blocks, b):
        return None
    return Part(backend.get_range(blocks.key(b), int(blocks.offset[b]) + BLOCK_HEADER.size, raw))


def _is_as_it_is(blocks: Blocks, b: int) -> bool:
    return int(blocks.codec[b]) == RAW and int(blocks.packed_len[b]) == int(blocks.raw_len[b])


def _can_be_cut(blocks: Blocks, b: int, begin: int, end: int) -> bool:
    raw = int(blocks.raw_len[b])
    return _is_as_it_is(blocks, b) and 0 <= begin < end <= raw and 2 * (end - begin) <= raw
