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
from collections.abc import Iterator, Sequence
from types import TracebackType

import numpy as np
from blake3 import blake3

from dvk.backend.contract import Backend, Buffer, KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.ids import ID_BYTES
from dvk.store.block_reader import Block, BlockCache, BlockReader, Proof
from dvk.store.content import ContentSource, StoreContent
from dvk.store.names import I64, distinct
from dvk.store.pages import Chunks

CACHE_BYTES = 64 << 20
#: What one step of a long read decodes at most: bytes of the file, and blocks, since each chunk may lie in its own.
_STEP_BYTES = 8 << 20
_STEP_BLOCKS = 16
#: A remote takes several requests at a time before it gives what it can.
_READ_AHEAD_BYTES, _REMOTE_AHEAD_BYTES = 8 << 20, 24 << 20
_IN_A_ROW = 3
_STREAMS = 16  #: readers that go through the file at their own pace, as columns of a table do


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
        cache: BlockCache | None = None,
        proven: bool | None = None,
    ) -> None:
        """Find out what the file consists of; no data is read.

        Args:
            source: the local store, or a remote that was asked for this file before.
            size: bytes, as the pointer says.
            label: for messages, with the revision: `data.csv at v1.0`.
            name: the file's own name.
            cache_bytes: of decoded blocks that are kept; a read in progress holds up to 16 MiB besides.
            cache: one that is shared with other files of the same backend, in place of one of its own.
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

        self._own_cache = BlockCache(cache_bytes) if cache is None else None
        self._cache = cache or self._own_cache or BlockCache(cache_bytes)
        self._reader = BlockReader(
            source.backend,
            content.placement.blocks,
            distinct(self._block).astype(np.int64),
            local=self._local,
            cache=self._cache,
            check=self._prove_chunk,
        )
        self._most_ahead = min(_READ_AHEAD_BYTES if self._local else _REMOTE_AHEAD_BYTES, self._cache.cache_bytes // 2)
        self._lock = threading.Lock()
        self._streams: OrderedDict[int, tuple[int, int, int]] = (
            OrderedDict()
        )  # by where it ended: reads, bytes, read ahead
        self._closed = False

    def _missing(self) -> DvkError:
        if isinstance(self._source, StoreContent):
            own = np.frombuffer(self._id, np.uint8).reshape(1, -1), np.array([self._size], np.int64)
            if (hidden := self._source.why_missing(*own)[0]) is not None:
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
    def backend(self) -> Backend:
        """Where its blocks are read from."""
        return self._source.backend

    @property
    def path(self) -> None:
        """There is no plain file with these bytes."""
        return None

    def packs(self) -> frozenset[bytes]:
        """The names of the packs that its blocks lie in."""
        return self._reader.packs()

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
        return self._reader.decoded_bytes

    @property
    def encoded_bytes(self) -> int:
        """Bytes that the backend was asked for so far."""
        return self._reader.encoded_bytes

    @property
    def requests(self) -> int:
        """Ranges that the backend was asked for so far."""
        return self._reader.requests

    # ------------------------------------------------------------ reading

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly the bytes [offset, offset + length), which must lie inside the file; each chunk is proven by its id.

        Raises:
            DataMissing: a pack is gone. Corrupt: a block is damaged, or a chunk is not what its id says.
            StorageError, RemoteUnreachable, RemoteDenied: from the backend.
        """
        self._check(offset, length)
        out = io.BytesIO()  # not a list to join, which would keep every block until the last one is there
        for piece in self._pieces(offset, length):
            out.write(piece)
        return out.getvalue()

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

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to read what several reads (offset and length of each) will want, neighbours by one request.

        As much as half of the cache takes; what goes wrong waits for the reads.
        """
        wanted: dict[int, list[int]] = {}
        limit = max(1, self._cache.cache_bytes // (2 << 20))
        for offset, length in ranges:
            self._check(offset, length)
            start = int(np.searchsorted(self._ends, offset, side="right"))
            end = int(np.searchsorted(self._ends, offset + length, side="left")) + 1
            for b, chunks in self._wanted(start, end if length else start).items():
                wanted.setdefault(b, []).extend(chunks)
            if len(wanted) >= limit:
                break
        if len(wanted) > 1:
            self._reader.ahead(dict(list(wanted.items())[:limit]))

    def end_of_block(self, offset: int) -> int:
        """Where the run of chunks ends that the byte at `offset` shares a block with; the size at the end."""
        i = int(np.searchsorted(self._ends, offset, side="right"))
        if i >= len(self._ends):
            return self._size
        return int(self._ends[int(np.searchsorted(self._jumps, self._jumps[i], side="right")) - 1])

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
        self._closed = True
        if self._own_cache is not None:
            self._own_cache.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ValueError(f"{self._label} is closed")
        check_range(offset, length, self._size, self._label)

    def _pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range in order, chunk by chunk, from a bounded number of blocks at a time."""
        if not length:
            return
        stop_at = offset + length
        horizon = self._note_stream(offset, stop_at)
        if horizon > stop_at:
            for start, stop in self._steps(stop_at, horizon):
                self._reader.ahead(self._wanted(start, stop))
        steps = list(self._steps(offset, stop_at))
        for n, (start, stop) in enumerate(steps):
            try:
                blocks = self._reader.get(self._wanted(start, stop))
            except DvkError as error:
                raise self._named(error) from error
            if n + 1 < len(steps):
                self._reader.ahead(self._wanted(*steps[n + 1]))
            for i in range(start, stop):
                end, low = int(self._ends[i]), int(self._offset[i])
                begin = end - int(self._chunks.lengths[i])
                block = blocks[int(self._block[i])]
                if self._proof(i) not in block.proven:
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

    def _wanted(self, start: int, stop: int) -> dict[int, list[int]]:
        """The blocks of some chunks, with the chunks."""
        wanted: dict[int, list[int]] = {}
        for i, b in enumerate(self._block[start:stop].tolist(), start):
            wanted.setdefault(b, []).append(i)
        return wanted

    def _proof(self, i: int) -> Proof:
        return int(self._offset[i]), int(self._chunks.lengths[i]), self._chunks.ids[i].tobytes()

    def _prove_chunk(self, block: Block, i: int) -> None:
        low, length, name = proof = self._proof(i)
        data = memoryview(block.raw)[low : low + length]
        if len(data) != length or blake3(data).digest() != name:
            begin = int(self._ends[i]) - length
            raise Corrupt(f"the stored chunk at byte {begin:,} fails its hash", subject=self._label)
        block.proven.add(proof)

    def _note_stream(self, offset: int, stop_at: int) -> int:
        """Up to where somebody who reads from `offset` should find it read already: 0 where nobody reads in a row.

        Not before the fourth read in a row, since a reader of columns makes two or three, and twice as much as was read
        in a row, so that whoever stops soon has not paid for much that nobody wanted.
        """
        with self._lock:
            count, row, horizon = self._streams.pop(offset, (0, 0, 0))
            window = min(self._most_ahead, 2 * row) if count >= _IN_A_ROW else 0
            ahead = min(self._size, stop_at + window)
            # By half windows, so that small reads do not ask for a block each.
            wanted = ahead if window and horizon - stop_at < window // 2 else 0
            self._streams[stop_at] = count + 1, row + stop_at - offset, max(horizon, wanted)
            while len(self._streams) > _STREAMS:
                self._streams.popitem(last=False)
        return wanted

    def _named(self, error: DvkError) -> DvkError:
        """The same error in the name of this file."""
        if error.subject == self._label:
            return error
        where = f" ({error.subject})" if error.subject else ""
        if isinstance(error, KeyMissing):
            hint = "`dvk fetch` gets it again" if self._local else "`dvk push` of whoever has this version mends it"
            named: DvkError = DataMissing(f"a pack with its data is gone{where}", subject=self._label, hint=hint)
        elif isinstance(error, FormatError):
            repair = "`dvk repair`" if self._local else "`dvk repair --remote` in a clone that has this version"
            hint = error.hint or f"{repair} brings it back"
            named = type(error)(f"{error.message}{where}", subject=self._label, hint=hint)
        elif isinstance(error, DataMissing):
            named = DataMissing(f"{error.message}{where}", subject=self._label, hint=error.hint)
        else:
            return error
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


def check_range(offset: int, length: int, size: int, label: str) -> None:
    """Pass if [offset, offset + length) lies in a file of `size` bytes.

    Raises:
        ValueError: it does not; a mistake of the caller.
    """
    if offset < 0 or length < 0 or offset + length > size:
        raise ValueError(f"{label}: bytes {offset} to {offset + length} of {size}")
