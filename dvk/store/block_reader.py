"""Decoded blocks on demand: each is read once however many want it, neighbours together, lately used ones kept.

    reader = BlockReader(backend, placement.blocks, local=False, cache_bytes=64 << 20, check=prove)
    reader.ahead({7: [], 8: []})             # begins reading, returns at once
    reader.get({7: [12, 13]})[7].raw         # waits for it, proves chunks 12 and 13 in it

For several threads. A thread that needs one range reads it itself; more than one are read by a few threads of its own,
which wait for nobody, so that nothing can lock up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from dvk.backend.contract import Backend
from dvk.errors import FormatError
from dvk.store.codec import decode_block
from dvk.store.names import I64
from dvk.store.placement import Blocks, Range, plan_ranges, read_range
from dvk.store.threads import default_workers

#: A request to a remote takes a while, so it asks for much; a disk answers at once, so cores get a part each.
_REMOTE_RANGE_BYTES = 16 << 20
_LOCAL_RANGE_BYTES = 2 << 20
_CONNECTIONS = 8


@dataclass(slots=True)
class Block:
    """A decoded block, and those of its parts (chunks of a file, by their number in it) that were proven in it."""

    raw: bytes
    proven: set[int] = field(default_factory=set)


Wanted = Mapping[int, Sequence[int]]  #: number of a block -> parts of it that are wanted
Check = Callable[[Block, int], None]  #: proves a part of a block and notes it there; raises Corrupt


@dataclass(slots=True)
class _Claim:
    """A block that somebody reads: for which parts, and where it will be found."""

    parts: Sequence[int]
    future: Future[Block] = field(default_factory=Future)


_Job = tuple[Range, dict[int, _Claim]]


class BlockReader:
    """Reads some of `blocks`. The backend stays open when it is closed."""

    def __init__(
        self, backend: Backend, blocks: Blocks, used: I64, *, local: bool, cache_bytes: int, check: Check
    ) -> None:
        """`used`: numbers of the blocks that may be asked for; `local`: whether a small request costs nothing."""
        self._backend, self._blocks, self._used = backend, blocks, used
        self._local, self._cache_bytes, self._check = local, cache_bytes, check
        self._by_place: I64 | None = None  # `used` by pack and offset, once somebody asks
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Block] = OrderedDict()
        self._kept_bytes = 0
        self._flying: dict[int, Future[Block]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self.decoded_bytes = self.encoded_bytes = self.requests = 0

    @property
    def kept(self) -> frozenset[int]:
        """Numbers of the blocks that are kept."""
        with self._lock:
            return frozenset(self._kept)

    @property
    def kept_bytes(self) -> int:
        return self._kept_bytes

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

    def close(self) -> None:
        """Stop reading and forget everything."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for waiting in self._flying.values():
                waiting.cancel()
            self._flying.clear()
            self._kept.clear()
            self._kept_bytes = 0

    # ------------------------------------------------------------ who reads what

    def _claim(self, wanted: Wanted, out: dict[int, Block]) -> tuple[dict[int, _Claim], dict[int, Future[Block]]]:
        """The blocks that nobody reads, now ours to read, and those that others are reading; kept ones go to `out`."""
        mine: dict[int, _Claim] = {}
        theirs: dict[int, Future[Block]] = {}
        with self._lock:
            for b, parts in wanted.items():
                if (kept := self._kept.get(b)) is not None:
                    self._kept.move_to_end(b)
                    out[b] = kept
                elif (flying := self._flying.get(b)) is not None:
                    theirs[b] = flying
                else:
                    mine[b] = _Claim(parts)
                    self._flying[b] = mine[b].future
        return mine, theirs

    def _plan(self, mine: dict[int, _Claim]) -> list[_Job]:
        if self._local:
            ranges = plan_ranges(self._blocks, mine, max_range_bytes=_LOCAL_RANGE_BYTES)
            return [(r, {b: mine[b] for b in r.blocks}) for r in ranges]
        filled = (self._fill(r) for r in plan_ranges(self._blocks, mine, max_range_bytes=_REMOTE_RANGE_BYTES))
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
                if b not in r.blocks and b not in self._kept and b not in self._flying:
                    extra[b] = _Claim(())
                    self._flying[b] = extra[b].future
        return Range(r.key, r.offset, r.length, (*r.blocks, *extra)), extra

    def _submit(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            with self._lock:
                if self._closed:
                    for claim in job[1].values():
                        claim.future.cancel()
                    continue
                if self._pool is None:
                    workers = default_workers() if self._local else _CONNECTIONS
                    self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dvk-blocks")
                self._pool.submit(self._read, *job)

    # ------------------------------------------------------------ reading

    def _read(self, r: Range, wanted: Mapping[int, _Claim]) -> None:
        """Read one range and hand out its blocks; an error goes to those who wait for what it kept from them."""
        done: set[int] = set()
        try:
            for b, block in self._decoded(r):
                for part in wanted[b].parts:
                    self._check(block, part)
                self._keep(b, block)
                done.add(b)
                wanted[b].future.set_result(block)
        except BaseException as error:
            with self._lock:
                for b in wanted.keys() - done:
                    self._flying.pop(b, None)
            for b in wanted.keys() - done:
                wanted[b].future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _alone(self, b: int, parts: Sequence[int]) -> Block:
        offset, length = self._blocks.span(b)
        ((_, block),) = self._decoded(Range(self._blocks.key(b), offset, length, (b,)))
        for part in parts:
            self._check(block, part)
        self._keep(b, block)
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

    def _keep(self, b: int, block: Block) -> None:
        with self._lock:
            self._flying.pop(b, None)
            if self._closed or b in self._kept:
                return
            self._kept[b] = block
            self._kept_bytes += len(block.raw)
            while self._kept_bytes > self._cache_bytes and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._kept_bytes -= len(old.raw)
