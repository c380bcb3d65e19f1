"""The bytes of one file in order, while the next ones are being decoded.

    for data in stream(backend, content, pool, write, workers=2):
        hasher.update(data)

A file may be larger than memory, and its chunks may lie all over the store. So it is cut into parts of a few MiB that
lie in few blocks; a bounded number of them is decoded ahead, and written by the thread that decoded it. What an older
version of the file at hand has in common with it is taken from there instead (see `dvk.store.reuse`), in the same
parts.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

import numpy as np
from blake3 import blake3
from msgspec import Struct

from dvk.backend.contract import Backend
from dvk.errors import Corrupt, DataMissing
from dvk.ids import FileId
from dvk.store.codec import MAX_BLOCK_BYTES
from dvk.store.content import Content, ContentSource, pieces
from dvk.store.names import I64, distinct
from dvk.store.placement import Part, read_blocks
from dvk.store.reuse import Reuse

#: Output of one part; also about the length of a range that is read from a remote.
PART_BYTES = 4 << 20
#: A part that would end inside a block goes on to its end, up to this.
MAX_PART_BYTES = 8 << 20
#: Blocks that one part needs: it may lie in as many as it has chunks, each of 1 MiB.
PART_BLOCKS = 16
_PIPE_CHUNKS = 64

#: Puts bytes at a place in the file.
Write = Callable[[memoryview, int], None]


def stream(
    backend: Backend,
    content: Content,
    pool: ThreadPoolExecutor,
    write: Write,
    *,
    workers: int,
    reuse: Reuse | None = None,
    shared: I64 | None = None,
) -> Generator[memoryview]:
    """The bytes of a file from its beginning to its end, once they are written.

    They last until the next ones are asked for. When the generator is closed no thread works for it any more.

    Args:
        write: called from several threads, in any order.
        shared: int64[n], where `reuse` has each chunk, or -1 (see `find_shared`); it does the writing of these.

    Raises:
        Corrupt, KeyMissing, RemoteError: from reading blocks. OldChanged: from `reuse`. What `write` raises.
    """
    parts = _Parts(backend, content, write, reuse, shared)
    jobs: deque[Future[_Part]] = deque()
    try:
        for start, stop in parts.plan():
            jobs.append(pool.submit(parts.part, start, stop))
            while len(jobs) > workers + 1:
                yield from parts.handed_out(jobs.popleft().result())
        while jobs:
            yield from parts.handed_out(jobs.popleft().result())
    finally:
        for job in jobs:
            job.cancel()
        wait(jobs)


class _Part(Struct, frozen=True):
    data: list[memoryview]
    room: bytearray  #: where some of it lies


class _Parts:
    """One file, cut into parts."""

    def __init__(
        self, backend: Backend, content: Content, write: Write, reuse: Reuse | None = None, shared: I64 | None = None
    ) -> None:
        self._backend, self._content, self._write, self._reuse = backend, content, write, reuse
        self._lengths = lengths = content.chunks.lengths.astype(np.int64)
        n = len(lengths)
        self._begins: I64 = np.concatenate([[0], np.cumsum(lengths)])
        self._old_at = np.full(n, -1, np.int64) if shared is None or reuse is None else shared
        self._is_old = self._old_at >= 0
        # Where a run of chunks ends that come from the same place, one after the other.
        follows = self._old_at[1:] == self._old_at[:-1] + lengths[:-1]
        self._turns = np.flatnonzero((self._is_old[1:] != self._is_old[:-1]) | (self._is_old[1:] & ~follows)) + 1
        self._blocks = content.placement.block[content.first : content.first + n].astype(np.int64)
        self._blocks[self._is_old] = -1
        self._recent = _Recent()
        self._rooms: list[bytearray] = []

    def plan(self) -> Iterator[tuple[int, int]]:
        """First and last chunk of each part."""
        blocks, ends = self._blocks, self._begins[1:]
        n = len(blocks)
        # How often the file has gone to another block, after each chunk.
        jumps = np.cumsum((blocks[1:] != blocks[:-1]) & (blocks[1:] >= 0))
        start = 0
        while start < n:
            begun = int(self._begins[start])
            stop = int(np.searchsorted(ends, begun + PART_BYTES)) + 1
            before = int(jumps[start - 1]) if start else 0
            stop = min(stop, int(np.searchsorted(jumps, before + PART_BLOCKS)) + 1)
            stop = min(n, max(stop, start + 1))
            # Ends with a block where possible, so that no block is decoded twice.
            while stop < n and 0 <= blocks[stop] == blocks[stop - 1] and ends[stop] - begun < MAX_PART_BYTES:
                stop += 1
            yield start, stop
            start = stop

    def part(self, start: int, stop: int) -> _Part:
        """Decode and write one part, or take it from the old file."""
        wanted = distinct(self._blocks[start:stop][~self._is_old[start:stop]]).tolist()
        raw = self._recent.get(wanted)
        fresh = read_blocks(self._backend, self._content.placement.blocks, [b for b in wanted if b not in raw])
        self._recent.keep(fresh)
        at_hand = {b: Part(data) for b, data in (raw | fresh).items()}
        turns = self._turns[np.searchsorted(self._turns, start, "right") : np.searchsorted(self._turns, stop)]
        bounds = [start, *turns.tolist(), stop]
        room = self._room(int(self._lengths[start:stop][self._is_old[start:stop]].sum()))
        free = memoryview(room)
        out: list[memoryview] = []
        for a, b in pairwise(bounds):
            at, length = int(self._begins[a]), int(self._begins[b] - self._begins[a])
            if self._is_old[a] and self._reuse is not None:
                out.append(free[:length])
                free = free[length:]
                self._reuse.take(self._content.chunks.slice(a, b), int(self._old_at[a]), at, out[-1])
                continue
            for data in pieces(self._content, a, b, at_hand):
                self._write(data, at)
                out.append(data)
                at += len(data)
        return _Part(out, room)

    def handed_out(self, part: _Part) -> Iterator[memoryview]:
        """The bytes of a part; its memory is used again once they have been dealt with."""
        yield from part.data
        if part.room:
            self._rooms.append(part.room)

    def _room(self, size: int) -> bytearray:
        """Memory for what a part takes from the old file; used again, since fresh memory costs as much as copying."""
        if not size:
            return bytearray()
        try:
            room = self._rooms.pop()
        except IndexError:
            return bytearray(max(size, PART_BYTES + MAX_BLOCK_BYTES))
        return room if len(room) >= size else bytearray(size)


class _Recent:
    """The last few decoded blocks: an edited file jumps back and forth between old blocks and new ones."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def get(self, wanted: Sequence[int]) -> dict[int, bytes]:
        return {b: raw for b in wanted if (raw := self._kept.get(b)) is not None}

    def keep(self, raw: dict[int, bytes]) -> None:
        for b, data in list(raw.items())[-4:]:
            self._kept[b] = data
        while len(self._kept) > 16:
            try:
                self._kept.popitem(last=False)
            except KeyError:
                return  # another thread emptied it first


def iter_file(source: ContentSource, file_id: FileId, size: int, *, subject: str) -> Iterator[memoryview]:
    """The bytes of a file in order, for a pipe: each chunk is proven before it is yielded, the whole at the end.

    Raises:
        DataMissing: it is not here. Corrupt: what follows, or the whole, is not what the id says.
    """
    ids = np.frombuffer(file_id, np.uint8).reshape(1, 32)
    content = source.contents(ids, np.array([size], np.int64))[0]
    if content is None:
        raise DataMissing(f"its data ({file_id.hex()[:12]}, {size:,} bytes) is not here", subject=subject)
    hasher = blake3()
    parts = _Parts(source.backend, content, _nowhere)
    for start in range(0, len(content.chunks), _PIPE_CHUNKS):
        stop = min(start + _PIPE_CHUNKS, len(content.chunks))
        data = b"".join(parts.part(start, stop).data)
        at = 0
        for n, length in enumerate(content.chunks.lengths[start:stop].tolist(), start):
            if blake3(data[at : at + length]).digest() != content.chunks.ids[n].tobytes():
                raise Corrupt("a stored chunk fails its hash", subject=subject)
            at += length
        hasher.update(data)
        yield memoryview(data)
    if hasher.digest() != file_id:
        raise Corrupt("its stored bytes fail their hash", subject=subject)


def _nowhere(_data: memoryview, _at: int) -> None:
    """For bytes that only pass by."""
