"""Decoded blocks on demand: each is read once however many want it, neighbours together, lately used ones kept.

    reader = BlockReader(backend, placement.blocks, local=False, cache_bytes=64 << 20, check=prove)
    reader.ahead({7: [], 8: []})             # begins reading, returns at once
    reader.get({7: [12, 13]})[7].raw         # waits for it, proves chunks 12 and 13 in it

For several threads. A thread that needs one range reads it itself; more than one are read by a few threads of the
cache, which wait for nobody, so that nothing can lock up. Readers of many small files share a `BlockCache`, since fifty
of them may lie in one block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from msgspec import Struct, field

from dvk.backend.contract import Backend
from dvk.errors import FormatError
from dvk.store.codec import decode_block
from dvk.store.names import I64, distinct
from dvk.store.placement import COALESCE_GAP_BYTES, Blocks, Range, plan_ranges, read_range
from dvk.store.threads import default_workers

#: A request to a remote takes a while, so it asks for much; a disk answers at once, so cores get a part each.
_REMOTE_RANGE_BYTES = 16 << 20
_LOCAL_RANGE_BYTES = 2 << 20
_CONNECTIONS = 8


#: A chunk in a block: offset, length, id.
Proof = tuple[int, int, bytes]


class Block(Struct):
    """A decoded block, and which chunks were proven in it."""

    raw: bytes
    proven: set[Proof] = field(default_factory=set)


Wanted = Mapping[int, Sequence[int]]  #: number of a block -> parts of it that are wanted
Check = Callable[[Block, int], None]  #: proves a part of a block and notes it there; raises Corrupt
Place = tuple[bytes, int]  #: where a block lies: its pack and the offset there


class _Claim(Struct):
    """A block that somebody reads: for which parts, and where it will be found."""

    parts: Sequence[int]
    future: Future[Block] = field(default_factory=Future)


_Job = tuple[Range, dict[int, _Claim]]


class BlockCache:
    """Decoded blocks of one backend for any number of readers; holds up to `cache_bytes` and the block in use.

    `max_gap_bytes`: two blocks of a remote that lie closer are read by one request, with what is between them.
    """

    def __init__(self, cache_bytes: int, *, max_gap_bytes: int = COALESCE_GAP_BYTES) -> None:
        self.cache_bytes, self.max_gap_bytes = cache_bytes, max_gap_bytes
        self.lock = threading.Lock()
        self.kept: OrderedDict[Place, Block] = OrderedDict()
        self.kept_bytes = 0
        self.flying: dict[Place, Future[Block]] = {}
        self.closed = False
        self._pool: ThreadPoolExecutor | None = None

    def keep(self, place: Place, block: Block) -> None:
        """Keep a block that was just read, in the stead of those that were not used for longest."""
        with self.lock:
            self.flying.pop(place, None)
            if self.closed or place in self.kept:
                return
            self.kept[place] = block
            self.kept_bytes += len(block.raw)
            while self.kept_bytes > self.cache_bytes and len(self.kept) > 1:
                _, old = self.kept.popitem(last=False)
                self.kept_bytes -= len(old.raw)

    def submit(self, workers: int, work: Callable[..., None], *arguments: object) -> bool:
        """Have `work` done by a thread of the cache; False once it is closed."""
        with self.lock:
            if self.closed:
                return False
            if self._pool is None:
                self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dvk-blocks")
            self._pool.submit(work, *arguments)
            return True

    def close(self) -> None:
        """Stop reading and forget everything."""
        with self.lock:
            self.closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self.lock:
            for waiting in self.flying.values():
                waiting.cancel()
            self.flying.clear()
            self.kept.clear()
            self.kept_bytes = 0


class BlockReader:
    """Reads some of `blocks`. The backend stays open when it is closed."""

    def __init__(
        self, backend: Backend, blocks: Blocks, used: I64, *, local: bool, cache: BlockCache, check: Check
    ) -> None:
        """`used`: numbers of the blocks that may be asked for; `local`: whether a small request costs nothing."""
        self._backend, self._blocks, self._used = backend, blocks, used
        self._local, self._cache, self._check = local, cache, check
        self._by_place: I64 | None = None  # `used` by pack and offset, once somebody asks
        self._lock = cache.lock
        self.decoded_bytes = self.encoded_bytes = self.requests = 0

    @property
    def kept(self) -> frozenset[int]:
        """Numbers of the blocks that are kept."""
        with self._lock:
            return frozenset(b for b in self._used.tolist() if self._place(b) in self._cache.kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all blocks that the cache keeps."""
        return self._cache.kept_bytes

    def packs(self) -> frozenset[bytes]:
        """The names of the packs that its blocks lie in."""
        return frozenset(self._blocks.packs[p] for p in distinct(self._blocks.pack[self._used]).tolist())

    def _place(self, b: int) -> Place:
        return self._blocks.packs[int(self._blocks.pack[b])], int(self._blocks.offset[b])

    def get(self, wanted: Wanted) -> dict[int, Block]:
        """These blocks, from the cache, from whoever is reading them already, or read now.

        Raises:
            KeyMissing, Corrupt, StorageError, RemoteUnreachable, RemoteDenied: as reading does.
        """
        out: dict[int, Block] = {}
        mine, theirs = self._claim(wanted, out)
        jobs = self._plan(mine)
        if len(jobs) == 1:
            self._read(*jobs[0])
        else:
            self._submit(jobs)
        for b, future in (theirs | {b: claim.future for b, claim in mine.items()}).items():
            try:
                out[b] = future.result()
            except FormatError:
                out[b] = self._alone(b, wanted[b])  # it may be a neighbour that is damaged
        return out

    def ahead(self, wanted: Wanted) -> None:
        """Begin to read these blocks; an error waits for who gets them."""
        self._submit(self._plan(self._claim(wanted, {})[0]))

    # ------------------------------------------------------------ who reads what

    def _claim(self, wanted: Wanted, out: dict[int, Block]) -> tuple[dict[int, _Claim], dict[int, Future[Block]]]:
        """The blocks that nobody reads, now ours to read, and those that others are reading; kept ones go to `out`."""
        mine: dict[int, _Claim] = {}
        theirs: dict[int, Future[Block]] = {}
        cache = self._cache
        with self._lock:
            for b, parts in wanted.items():
                place = self._place(b)
                if (kept := cache.kept.get(place)) is not None:
                    cache.kept.move_to_end(place)
                    out[b] = kept
                elif (flying := cache.flying.get(place)) is not None:
                    theirs[b] = flying
                else:
                    mine[b] = _Claim(parts)
                    cache.flying[place] = mine[b].future
        return mine, theirs

    def _plan(self, mine: dict[int, _Claim]) -> list[_Job]:
        if self._local:
            gap = self._backend.capabilities.gap_bytes
            ranges = plan_ranges(self._blocks, mine, max_range_bytes=_LOCAL_RANGE_BYTES, max_gap_bytes=gap)
            return [(r, {b: mine[b] for b in r.blocks}) for r in ranges]
        gap = self._cache.max_gap_bytes
        ranges = plan_ranges(self._blocks, mine, max_range_bytes=_REMOTE_RANGE_BYTES, max_gap_bytes=gap)
        filled = (self._fill(r) for r in ranges)
        return [(r, {b: mine.get(b) or extra[b] for b in r.blocks}) for r, extra in filled]

    def _fill(self, r: Range) -> tuple[Range, dict[int, _Claim]]:
        """The same range with those used blocks that lie in its gaps: their bytes are paid for anyway.

        A pack holds the blocks of a file nearly in order, so that the next read wants them.
        """
        if sum(self._blocks.span(b)[1] for b in r.blocks) == r.length:
            return r, {}
        if self._by_place is None:
            self._by_place = self._used[np.lexsort((self._blocks.offset[self._used], self._blocks.pack[self._used]))]
        pack = self._blocks.pack[r.blocks[0]]
        same = self._by_place[self._blocks.pack[self._by_place] == pack]
        low, high = np.searchsorted(self._blocks.offset[same], [r.offset, r.offset + r.length])
        extra: dict[int, _Claim] = {}
        with self._lock:
            for b in same[low:high].tolist():
                place = self._place(b)
                if b not in r.blocks and place not in self._cache.kept and place not in self._cache.flying:
                    extra[b] = _Claim(())
                    self._cache.flying[place] = extra[b].future
        return Range(r.key, r.offset, r.length, (*r.blocks, *extra)), extra

    def _submit(self, jobs: Sequence[_Job]) -> None:
        workers = default_workers() if self._local else _CONNECTIONS
        for job in jobs:
            if not self._cache.submit(workers, self._read, *job):
                self._let_go(job[1])
                for claim in job[1].values():
                    claim.future.cancel()

    def _let_go(self, blocks: Iterable[int]) -> None:
        """No longer say of these blocks that they are being read."""
        with self._lock:
            for b in blocks:
                self._cache.flying.pop(self._place(b), None)

    # ------------------------------------------------------------ reading

    def _read(self, r: Range, wanted: Mapping[int, _Claim]) -> None:
        """Read one range and hand out its blocks; an error goes to those who wait for what it kept from them."""
        done: set[int] = set()
        try:
            for b, block in self._decoded(r):
                for part in wanted[b].parts:
                    self._check(block, part)
                self._cache.keep(self._place(b), block)
                done.add(b)
                wanted[b].future.set_result(block)
        except BaseException as error:
            self._let_go(wanted.keys() - done)
            for b in wanted.keys() - done:
                wanted[b].future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _alone(self, b: int, parts: Sequence[int]) -> Block:
        offset, length = self._blocks.span(b)
        ((_, block),) = self._decoded(Range(self._blocks.key(b), offset, length, (b,)))
        for part in parts:
            self._check(block, part)
        self._cache.keep(self._place(b), block)
        return block

    def _decoded(self, r: Range) -> Iterator[tuple[int, Block]]:
        with self._lock:
            self.requests += 1
            self.encoded_bytes += r.length
        for b, encoded in read_range(self._backend, self._blocks, r):
            block = Block(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
            with self._lock:
                self.decoded_bytes += len(block.raw)
            yield b, block
