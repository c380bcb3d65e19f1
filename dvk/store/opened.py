"""Random access to one version of a file, straight from its blocks.

A reader of Parquet wants eight bytes at the end, a footer, and three column chunks out of forty; restoring a gigabyte
for that is what dvk exists to avoid. So a read here finds the chunks that cover it, decodes the blocks that hold
those, proves each chunk by its id, and keeps lately used blocks.

    with Opened(StoreContent(store), file_id, size, label="train.parquet at v1", name=b"train.parquet") as version:
        version.read_at(size - 8, 8)            # one block, decoded once
        pyarrow.parquet.ParquetFile(version.file())

Choice: the block (up to 1 MiB) is the unit of cache and of reading, since nothing smaller can be decoded; blocks that
lie close together are one request; who reads on and on is read ahead for; two threads that want one block share one
read. What is read is what the recipe says. That the recipe is the file's is proven for a local store, which checks a
recipe before it keeps it, and is otherwise the word of whoever pushed it, until `prove` has read all (design.md 4).
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from blake3 import blake3

from dvk.backend.contract import Buffer, KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.ids import ID_BYTES
from dvk.store.codec import decode_block
from dvk.store.content import ContentSource, StoreContent
from dvk.store.names import I64
from dvk.store.pages import Chunks
from dvk.store.placement import Range, plan_ranges, read_range
from dvk.store.threads import default_workers

CACHE_BYTES = 64 << 20
#: What one step of a long read decodes at most: bytes of the file, and blocks, since each chunk may lie in its own.
_STEP_BYTES = 8 << 20
_STEP_BLOCKS = 16
#: A request to a remote takes a while, so it asks for much; a disk answers at once, so cores get a part each.
_REMOTE_RANGE_BYTES = 16 << 20
_LOCAL_RANGE_BYTES = 2 << 20
_READ_AHEAD_BYTES = 8 << 20
_STREAMS = 16  #: readers that go through the file at their own pace, as columns of a table do
_CONNECTIONS = 8


@dataclass(slots=True)
class _Block:
    """A decoded block, and those chunks of the file (by their number in it) that were proven in it."""

    raw: bytes
    proven: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Claim:
    """A block that somebody reads: for which chunks of the file, and where it will be found."""

    members: list[int]
    future: Future[_Block] = field(default_factory=Future)


_Job = tuple[Range, dict[int, _Claim]]


class Opened:
    """The content of one version. Safe to use from many threads; implements `dvk.table.contract.Source`."""

    def __init__(
        self,
        source: ContentSource,
        file_id: bytes,
        size: int,
        *,
        label: str,
        name: bytes = b"",
        cache_bytes: int = CACHE_BYTES,
        proven: bool | None = None,
    ) -> None:
        """Find out what the file consists of; no data is read.

        Args:
            source: the local store, or a remote that was asked for this file before.
            size: bytes, as the pointer says.
            label: for messages, with the revision: `data.csv at v1.0`.
            name: the file's own name.
            cache_bytes: of decoded blocks that are kept; a read in progress holds up to 16 MiB besides.
            proven: whether the recipe is known to be the file's; by default for a local store.

        Raises:
            DataMissing: the source has not all of it. Corrupt: its recipe is damaged, or not of this size.
        """
        self._source, self._id, self._size, self._label, self._name = source, bytes(file_id), size, label, name
        self._local = isinstance(source, StoreContent)
        ids = np.frombuffer(self._id, np.uint8).reshape(1, ID_BYTES)
        content = source.contents(ids, np.array([size], np.int64))[0]
        if content is None:
            raise self._missing()
        self._chunks = content.chunks
        part = slice(content.first, content.first + len(content.chunks))
        self._blocks = content.placement.blocks
        self._block = content.placement.block[part]
        self._offset = content.placement.offset[part].astype(np.int64)
        self._ends: I64 = np.cumsum(content.chunks.lengths, dtype=np.int64)
        if len(self._block) != len(self._ends) or (int(self._ends[-1]) if len(self._ends) else 0) != size:
            raise Corrupt("its recipe is not of its size", subject=label)
        jumps = self._block[1:] != self._block[:-1]
        #: How often the file has gone to another block before each chunk.
        self._jumps: I64 = np.concatenate([np.zeros(min(1, size), np.int64), np.cumsum(jumps, dtype=np.int64)])
        one = len(self._ends) == 1 and self._chunks.ids[0].tobytes() == self._id
        self._proven = one or not size or (self._local if proven is None else proven)

        self._lock = threading.Lock()
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[int, _Block] = OrderedDict()
        self._kept_bytes = 0
        self._by_place: I64 | None = None  # blocks of the file by pack and offset, once somebody asks
        self._flying: dict[int, Future[_Block]] = {}
        self._streams: OrderedDict[int, tuple[int, int]] = OrderedDict()  # where it ended: (reads in a row, read ahead)
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False
        self._bytes_decoded = self._encoded_bytes = self._requests = 0

    def _missing(self) -> DvkError:
        hidden = self._source.store.why_missing(self._id) if isinstance(self._source, StoreContent) else None
        if hidden is not None:
            return self._named(hidden)
        return DataMissing(
            f"its data ({self._id.hex()[:12]}, {self._size:,} bytes) is not here",
            subject=self._label,
            hint="`dvk fetch` gets it, if a remote has it",
        )

    # ------------------------------------------------------------ what it is

    @property
    def label(self) -> str:
        """For messages: which file at which revision."""
        return self._label

    @property
    def name(self) -> bytes:
        """The file's own name."""
        return self._name

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def id(self) -> bytes:
        """The file id, 32 bytes."""
        return self._id

    @property
    def path(self) -> None:
        """There is no plain file with these bytes."""
        return None

    @property
    def proven(self) -> bool:
        """Whether the recipe is known to be that of the file id."""
        return self._proven

    def chunks(self) -> Chunks:
        """The recipe: ids and lengths in file order."""
        return self._chunks

    @property
    def bytes_read(self) -> int:
        """Bytes of blocks that were decoded so far, those read ahead included."""
        return self._bytes_decoded

    @property
    def encoded_bytes(self) -> int:
        """Bytes that the backend was asked for so far."""
        return self._encoded_bytes

    @property
    def requests(self) -> int:
        """Ranges that the backend was asked for so far."""
        return self._requests

    # ------------------------------------------------------------ reading

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly the bytes [offset, offset + length), which must lie inside the file; each chunk is proven by its id.

        Raises:
            DataMissing: a pack is gone. Corrupt: a block is damaged, or a chunk is not what its id says.
            StorageError, RemoteUnreachable, RemoteDenied: from the backend.
        """
        self._check(offset, length)
        return b"".join(self._pieces(offset, length))

    def readinto(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` on; how many bytes, less than it holds only at the end. Raises as `read_at`."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), max(0, self._size - offset))
        self._check(offset if length else 0, length)
        at = 0
        for piece in self._pieces(offset, length):
            view[at : at + len(piece)] = piece
            at += len(piece)
        return length

    def file(self) -> OpenedFile:
        """A new file object over it, with a position of its own; closing it leaves this open."""
        return OpenedFile(self)

    def prove(self) -> None:
        """Read all of it and compare with the file id, unless that is known already.

        Raises:
            Corrupt: the recipe is another file's. Otherwise as `read_at`.
        """
        if self._proven:
            return
        hasher = blake3()
        for piece in self._pieces(0, self._size):
            hasher.update(piece)
        if hasher.digest() != self._id:
            raise Corrupt("its recipe is not that of the file; its stored bytes fail their hash", subject=self._label)
        self._proven = True

    def close(self) -> None:
        """Let go of what is cached. The source stays open, since it is not ours."""
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

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ValueError(f"{self._label} is closed")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"[{offset}, {offset + length}) does not lie inside {self._label} ({self._size} bytes)")

    def _pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range in order, chunk by chunk, from a bounded number of blocks at a time."""
        if not length:
            return
        stop_at = offset + length
        horizon = self._note_stream(offset, stop_at)
        if horizon > stop_at:
            self._read_ahead(stop_at, horizon)
        steps = list(self._steps(offset, stop_at))
        for n, (start, stop) in enumerate(steps):
            blocks = self._get(range(start, stop))
            if n + 1 < len(steps):
                self._submit(self._plan(self._claim(range(*steps[n + 1]), {})[0]))
            for i in range(start, stop):
                end, low = int(self._ends[i]), int(self._offset[i])
                begin = end - int(self._chunks.lengths[i])
                block = blocks[int(self._block[i])]
                if i not in block.proven:
                    self._prove_chunk(block, i)
                first, last = max(begin, offset), min(end, stop_at)
                yield memoryview(block.raw)[low + first - begin : low + last - begin]

    def _steps(self, offset: int, stop_at: int) -> Iterator[tuple[int, int]]:
        """The chunks that cover a range, as runs that touch a bounded number of blocks."""
        start = int(np.searchsorted(self._ends, offset, side="right"))
        end = int(np.searchsorted(self._ends, stop_at, side="left")) + 1
        while start < end:
            begun = int(self._ends[start]) - int(self._chunks.lengths[start])
            stop = int(np.searchsorted(self._ends, begun + _STEP_BYTES)) + 1
            stop = min(stop, int(np.searchsorted(self._jumps, self._jumps[start] + _STEP_BLOCKS)), end)
            yield start, max(stop, start + 1)
            start = max(stop, start + 1)

    def _prove_chunk(self, block: _Block, i: int) -> None:
        low, length = int(self._offset[i]), int(self._chunks.lengths[i])
        data = memoryview(block.raw)[low : low + length]
        if len(data) != length or blake3(data).digest() != self._chunks.ids[i].tobytes():
            begin = int(self._ends[i]) - length
            raise Corrupt(f"the stored chunk at byte {begin:,} fails its hash", subject=self._label)
        block.proven.add(i)

    # ------------------------------------------------------------ reading ahead

    def _note_stream(self, offset: int, stop_at: int) -> int:
        """Up to where somebody who reads from `offset` should find it read already: 0 where nobody reads in a row."""
        with self._lock:
            row, horizon = self._streams.pop(offset, (0, 0))
            window = min(_READ_AHEAD_BYTES, self._cache_bytes // 4, (1 << 20) << min(row, 8)) if row else 0
            ahead = min(self._size, stop_at + window)
            # By half windows, so that small reads do not ask for a block each.
            wanted = ahead if window and horizon - stop_at < window // 2 else 0
            self._streams[stop_at] = row + 1, max(horizon, wanted)
            while len(self._streams) > _STREAMS:
                self._streams.popitem(last=False)
        return wanted

    def _read_ahead(self, start_at: int, stop_at: int) -> None:
        for start, stop in self._steps(start_at, stop_at):
            mine, _ = self._claim(range(start, stop), {})
            self._submit(self._plan(mine))

    # ------------------------------------------------------------ blocks

    def _get(self, chunks: range) -> dict[int, _Block]:
        """The blocks of some chunks, from the cache, from whoever is reading them already, or read now."""
        out: dict[int, _Block] = {}
        mine, theirs = self._claim(chunks, out)
        jobs = self._plan(mine)
        if len(jobs) == 1:
            self._read(*jobs[0])
        else:
            self._submit(jobs)
        for b, future in (theirs | {b: claim.future for b, claim in mine.items()}).items():
            out[b] = future.result()
        return out

    def _claim(self, chunks: range, out: dict[int, _Block]) -> tuple[dict[int, _Claim], dict[int, Future[_Block]]]:
        """Those blocks that nobody has read or is reading, now ours to read (with our chunks in them), and the others'.

        What the cache holds goes to `out`.
        """
        wanted: dict[int, list[int]] = {}
        for i, b in zip(chunks, self._block[chunks.start : chunks.stop].tolist(), strict=True):
            wanted.setdefault(b, []).append(i)
        mine: dict[int, _Claim] = {}
        theirs: dict[int, Future[_Block]] = {}
        with self._lock:
            for b, members in wanted.items():
                if (kept := self._kept.get(b)) is not None:
                    self._kept.move_to_end(b)
                    out[b] = kept
                elif (flying := self._flying.get(b)) is not None:
                    theirs[b] = flying
                else:
                    mine[b] = _Claim(members)
                    self._flying[b] = mine[b].future
        return mine, theirs

    def _plan(self, mine: dict[int, _Claim]) -> list[_Job]:
        if self._local:
            ranges = plan_ranges(self._blocks, mine, max_range_bytes=_LOCAL_RANGE_BYTES)
            return [(r, {b: mine[b] for b in r.blocks}) for r in ranges]
        filled = (self._fill(r) for r in plan_ranges(self._blocks, mine, max_range_bytes=_REMOTE_RANGE_BYTES))
        return [(r, {b: mine.get(b) or extra[b] for b in r.blocks}) for r, extra in filled]

    def _fill(self, r: Range) -> tuple[Range, dict[int, _Claim]]:
        """The same range with those blocks of the file that lie in its gaps: their bytes are paid for anyway.

        A pack holds the blocks of a file nearly in order, so that the next read wants them.
        """
        if sum(self._blocks.span(b)[1] for b in r.blocks) == r.length:
            return r, {}
        if self._by_place is None:
            used = np.unique(self._block).astype(np.int64)
            self._by_place = used[np.lexsort((self._blocks.offset[used], self._blocks.pack[used]))]
        pack = self._blocks.pack[r.blocks[0]]
        same = self._by_place[self._blocks.pack[self._by_place] == pack]
        low, high = np.searchsorted(self._blocks.offset[same], [r.offset, r.offset + r.length])
        extra: dict[int, _Claim] = {}
        with self._lock:
            for b in same[low:high].tolist():
                if b not in r.blocks and b not in self._kept and b not in self._flying:
                    extra[b] = _Claim([])
                    self._flying[b] = extra[b].future
        return Range(r.key, r.offset, r.length, (*r.blocks, *extra)), extra

    def _submit(self, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            with self._lock:
                if self._closed:
                    for claim in job[1].values():
                        claim.future.cancel()
                    continue
                if self._pool is None:
                    workers = default_workers() if self._local else _CONNECTIONS
                    self._pool = ThreadPoolExecutor(workers, thread_name_prefix="dvk-opened")
                self._pool.submit(self._read, *job)

    def _read(self, r: Range, wanted: Mapping[int, _Claim]) -> None:
        """Read one range and hand out its blocks; an error goes to those who wait for what it kept from them."""
        done: set[int] = set()
        try:
            with self._lock:
                self._requests += 1
                self._encoded_bytes += r.length
            for b, encoded in read_range(self._source.backend, self._blocks, r):
                block = _Block(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
                for i in wanted[b].members:
                    self._prove_chunk(block, i)
                self._keep(b, block)
                done.add(b)
                wanted[b].future.set_result(block)
        except BaseException as error:
            known = self._named(error) if isinstance(error, DvkError) else error
            with self._lock:
                for b in wanted.keys() - done:
                    self._flying.pop(b, None)
            for b in wanted.keys() - done:
                wanted[b].future.set_exception(known)
            if not isinstance(error, Exception):
                raise

    def _keep(self, b: int, block: _Block) -> None:
        with self._lock:
            self._flying.pop(b, None)
            self._bytes_decoded += len(block.raw)
            if self._closed:
                return
            self._kept[b] = block
            self._kept_bytes += len(block.raw)
            while self._kept_bytes > self._cache_bytes and len(self._kept) > 1:
                _, old = self._kept.popitem(last=False)
                self._kept_bytes -= len(old.raw)

    def _named(self, error: DvkError) -> DvkError:
        """The same error in the name of this file."""
        if error.subject == self._label:
            return error
        where = f" ({error.subject})" if error.subject else ""
        if isinstance(error, KeyMissing):
            hint = "`dvk fetch` gets it again" if self._local else "`dvk push` of whoever has this version mends it"
            named: DvkError = DataMissing(f"a pack with its data is gone{where}", subject=self._label, hint=hint)
        elif isinstance(error, FormatError):
            named = type(error)(f"{error.message}{where}", subject=self._label, hint=error.hint)
        else:
            return error
        named.__cause__ = error
        return named


class OpenedFile(io.RawIOBase):
    """A version as a file: for pyarrow, zipfile, `io.BufferedReader`. One thread at a time, as with any file."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self._opened, self._at = opened, 0

    @property
    def name(self) -> str:
        """Which file at which revision."""
        return self._opened.label

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"unknown whence {whence}")
        at = offset + (0, self._at, self._opened.size)[whence]
        if at < 0:
            raise ValueError("a position before the start")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes (all that is left for -1 or None); less only at the end. Raises as `Opened.read_at`."""
        self._check_open()
        left = max(0, self._opened.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        data = self._opened.read_at(self._at, length) if length else b""
        self._at += length
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        self._check_open()
        count = self._opened.readinto(self._at, buffer)
        self._at += count
        return count

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
