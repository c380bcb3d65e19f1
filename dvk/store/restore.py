"""Writing files out of a store, verified: every byte of a file is hashed before the file gets its name.

It reads from anything that can place chunks (a local store by its index, a remote by a locator) and writes to a `Sink`,
which knows nothing of stores. Small files that lie in the same blocks are done together, so that a block is decoded
once; big ones are a stream of decoded blocks, written in order while the next ones are being decoded.

>>> restore(StoreContent(store), ids, sizes, sink)          # doctest: +SKIP
[]
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from blake3 import blake3

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import (
    Corrupt,
    DataMissing,
    DvkError,
    RemoteDenied,
    RemoteUnreachable,
    StorageError,
    StorageFull,
)
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import FileId
from dvk.store.names import I64, U8
from dvk.store.pages import Chunks
from dvk.store.placement import Placement, read_blocks
from dvk.store.store import Store
from dvk.store.threads import brisk, default_workers

#: Output of one task; also about the length of a range that is read from a remote.
TASK_BYTES = 8 << 20
_STREAM_TASK_BYTES = 4 << 20
#: Blocks that one task decodes: what it needs may lie in as many blocks as it has chunks, each of 1 MiB.
_TASK_BLOCKS = 16
#: No other file would fare better, and trying them all may take hours of waiting.
_HOPELESS = (RemoteUnreachable, RemoteDenied)


class Sink(Protocol):
    """Takes n files by number; called from several threads."""

    def create(self, index: int) -> int:
        """A descriptor to write file `index` to, under a temporary name."""

    def finish(self, index: int, fd: int) -> None:
        """The whole content is there and verified: close it and give it its name."""

    def discard(self, index: int, fd: int) -> None:
        """Close it and remove what was written."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file's chunks and where each lies: `first` is the position of the first one in `placement`."""

    chunks: Chunks
    placement: Placement
    first: int = 0


class ContentSource(Protocol):
    """Knows the chunks of files and where they lie."""

    @property
    def backend(self) -> Backend:
        """Where the blocks are read from."""

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        """For n files what they consist of; None where it is not known or not all here."""


class StoreContent:
    """Content by the index of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._looked_again = False

    @property
    def backend(self) -> Backend:
        return self.store.backend

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        out = self._contents(ids, sizes)
        missing = np.array([i for i, c in enumerate(out) if c is None and sizes[i] > 0], np.intp)
        if len(missing) and not self._looked_again:
            self._looked_again = True  # once: another process may have added it, or our index is damaged
            self.store.look_again()
            for i, content in zip(missing.tolist(), self._contents(ids[missing], sizes[missing]), strict=True):
                out[i] = content
        return out

    def _contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        found = self.store.chunks_of_many(ids, sizes)
        known = [c for c in found if c is not None]
        # One search for the chunks of all files together.
        placement, here = self.store.place_some(Chunks.join(known))
        out: list[Content | None] = []
        at = 0
        for chunks in found:
            if chunks is None:
                out.append(None)
                continue
            n = len(chunks)
            out.append(Content(chunks, placement, at) if here[at : at + n].all() else None)
            at += n
        return out


def restore(
    source: ContentSource,
    ids: U8,
    sizes: I64,
    sink: Sink,
    *,
    names: Sequence[str] = (),
    on_event: OnEvent = ignore,
    workers: int | None = None,
) -> list[tuple[int, DvkError]]:
    """Write n files to `sink`; returns the number and the error of each that could not be.

    Args:
        ids: uint8[n, 32] file ids; sizes: int64[n].
        names: n names for messages.

    Raises:
        StorageFull, StorageError (from writing), RemoteUnreachable, RemoteDenied, Interrupted: what ends the whole run,
            since the next file would fare no better; temporary files are gone.
    """
    run = _Restore(source, ids, sizes, sink, names, workers or default_workers())
    run.meter = Meter(on_event, "write", total_bytes=int(sizes.sum(dtype=np.uint64)), total_items=len(sizes))
    with brisk(), ThreadPoolExecutor(run.workers, thread_name_prefix="dvk-restore") as pool:
        try:
            run.all_files(pool)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return sorted(run.failed, key=lambda f: f[0])


class _Restore:
    meter: Meter

    def __init__(
        self, source: ContentSource, ids: U8, sizes: I64, sink: Sink, names: Sequence[str], workers: int
    ) -> None:
        self.source, self.ids, self.sizes, self.sink, self.names = source, ids, sizes, sink, names
        self.workers = workers
        self.failed: list[tuple[int, DvkError]] = []

    def show(self, i: int) -> str:
        return self.names[i] if self.names else f"file {self.ids[i].tobytes().hex()[:12]}"

    def all_files(self, pool: ThreadPoolExecutor) -> None:
        # Batches bound what is known of chunks at a time, whatever the number of files.
        for start in range(0, len(self.sizes), 16384):
            part = slice(start, min(start + 16384, len(self.sizes)))
            found = self.source.contents(self.ids[part], self.sizes[part])
            small: list[tuple[int, Content]] = []
            for i, content in enumerate(found, start):
                if content is None:
                    self._missing(i)
                elif int(self.sizes[i]) <= TASK_BYTES and len(content.chunks) <= 4 * _TASK_BLOCKS:
                    small.append((i, content))
                else:
                    self._stream(pool, i, content)
            self._all_small(pool, small)

    def _missing(self, i: int) -> None:
        name = self.ids[i].tobytes()
        hidden = self.source.store.why_missing(name) if isinstance(self.source, StoreContent) else None
        if hidden is not None:
            self._failed(i, hidden)
            return
        message = f"its data ({name.hex()[:12]}, {int(self.sizes[i]):,} bytes) is not here"
        self.failed.append((i, DataMissing(message, subject=self.show(i))))

    # ------------------------------------------------------------ small files

    def _all_small(self, pool: ThreadPoolExecutor, small: list[tuple[int, Content]]) -> None:
        placements: dict[int, int] = {}  # block numbers mean something within one placement only

        def place(item: tuple[int, Content]) -> tuple[int, int, int, int]:
            c = item[1]
            which = placements.setdefault(id(c.placement), len(placements))
            if not len(c.chunks):
                return (which, -1, 0, 0)
            b = int(c.placement.block[c.first])
            blocks = c.placement.blocks
            return which, int(blocks.pack[b]), int(blocks.offset[b]), int(c.placement.offset[c.first])

        jobs: deque[Future[None]] = deque()
        group: list[tuple[int, Content]] = []
        blocks: set[int] = set()
        size = 0
        for item in sorted(small, key=place):
            c = item[1]
            own = c.placement.block[c.first : c.first + len(c.chunks)].tolist()
            apart = bool(group) and group[-1][1].placement is not c.placement
            if apart or size >= TASK_BYTES or (group and len(blocks.union(own)) > _TASK_BLOCKS):
                jobs.append(pool.submit(self._small_files, group))
                group, blocks, size = [], set(), 0
                while len(jobs) > 2 * self.workers:
                    jobs.popleft().result()
            group.append(item)
            blocks.update(own)
            size += int(self.sizes[item[0]])
        if group:
            jobs.append(pool.submit(self._small_files, group))
        while jobs:
            jobs.popleft().result()

    def _small_files(self, group: list[tuple[int, Content]]) -> None:
        placement = group[0][1].placement
        needed: set[int] = set()
        for _, c in group:
            needed.update(placement.block[c.first : c.first + len(c.chunks)].tolist())
        raw, bad = self._readable(placement, sorted(needed))
        for i, c in group:
            blocks = placement.block[c.first : c.first + len(c.chunks)].tolist() if bad else ()
            error = next((bad[b] for b in blocks if b in bad), None)
            if error is not None:
                self._failed(i, error)
                continue
            try:
                pieces = list(_pieces(c, 0, len(c.chunks), raw))
            except DvkError as damaged:
                self._failed(i, damaged)
                continue
            self._one(i, pieces)
        self.meter.advance(bytes_=sum(int(self.sizes[i]) for i, _ in group), items=len(group))

    def _readable(self, placement: Placement, needed: list[int]) -> tuple[dict[int, bytes], dict[int, DvkError]]:
        """The blocks that can be read, decoded, and for each of the others why not."""
        try:
            return read_blocks(self.source.backend, placement.blocks, needed), {}
        except _HOPELESS:
            raise
        except DvkError:
            pass  # one damaged block must not take its neighbours with it, so each is read on its own
        raw: dict[int, bytes] = {}
        bad: dict[int, DvkError] = {}
        for b in needed:
            try:
                raw |= read_blocks(self.source.backend, placement.blocks, [b])
            except _HOPELESS:
                raise
            except DvkError as error:
                bad[b] = error
        return raw, bad

    def _failed(self, i: int, error: DvkError) -> None:
        """Note why file i could not be written, in its own name."""
        if error.subject == self.show(i):
            self.failed.append((i, error))
            return
        where = f" ({error.subject})" if error.subject else ""
        kind = DataMissing if isinstance(error, KeyMissing) else type(error)
        named = kind(f"{error.message}{where}", subject=self.show(i), hint=error.hint)
        named.__cause__ = error
        self.failed.append((i, named))

    def _one(self, i: int, pieces: list[memoryview]) -> None:
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        if blake3(data).digest() != self.ids[i].tobytes():
            self.failed.append((i, Corrupt("its stored bytes fail their hash", subject=self.show(i))))
            return
        try:
            fd = self.sink.create(i)
        except StorageFull:
            raise
        except DvkError as error:
            self.failed.append((i, error))
            return
        try:
            write_all(fd, data, subject=self.show(i))
        except BaseException:
            self.sink.discard(i, fd)
            raise
        try:
            self.sink.finish(i, fd)
        except StorageFull:
            raise
        except DvkError as error:
            self.failed.append((i, error))

    # ------------------------------------------------------------ big files

    def _stream(self, pool: ThreadPoolExecutor, i: int, content: Content) -> None:
        try:
            fd = self.sink.create(i)
        except StorageFull:
            raise
        except DvkError as error:
            self.failed.append((i, error))
            return
        hasher = blake3()
        try:
            for pieces in _decoded(self.source.backend, content, pool, self.workers):
                for piece in pieces:
                    hasher.update(piece)
                    write_all(fd, piece, subject=self.show(i))
                self.meter.advance(bytes_=sum(map(len, pieces)))
            if hasher.digest() != self.ids[i].tobytes():
                raise Corrupt("its stored bytes fail their hash", subject=self.show(i))
        except DvkError as error:
            self.sink.discard(i, fd)
            # What names the file comes from writing it; what names a pack, from reading that.
            of_writing = isinstance(error, StorageError) and error.subject == self.show(i)
            if of_writing or isinstance(error, _HOPELESS):
                raise
            self._failed(i, error)
            return
        except BaseException:
            self.sink.discard(i, fd)
            raise
        try:
            self.sink.finish(i, fd)
        except StorageFull:
            raise
        except DvkError as error:
            self.failed.append((i, error))
            return
        self.meter.advance(items=1)


def _pieces(content: Content, start: int, stop: int, raw: dict[int, bytes]) -> Iterator[memoryview]:
    """The bytes of chunks `start` to `stop`, neighbours in a block joined."""
    at = content.first
    blocks = content.placement.block[at + start : at + stop]
    offsets = content.placement.offset[at + start : at + stop].astype(np.int64)
    lengths = content.chunks.lengths[start:stop].astype(np.int64)
    if not len(blocks):
        return
    follows = (blocks[1:] == blocks[:-1]) & (offsets[1:] == offsets[:-1] + lengths[:-1])
    starts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    ends = np.concatenate([starts[1:], [len(blocks)]])
    total = np.concatenate([[0], np.cumsum(lengths)])
    for a, b in zip(starts.tolist(), ends.tolist(), strict=True):
        data = memoryview(raw[int(blocks[a])])
        begin, length = int(offsets[a]), int(total[b] - total[a])
        if begin + length > len(data):
            raise Corrupt("a chunk reaches beyond its block")
        yield data[begin : begin + length]


def _decoded(backend: Backend, content: Content, pool: ThreadPoolExecutor, workers: int) -> Iterator[list[memoryview]]:
    """The bytes of a big file in order; tasks run ahead by a bounded number."""
    lengths = content.chunks.lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    recent = _Recent()
    jobs: deque[Future[list[memoryview]]] = deque()
    start = 0
    begun = 0
    blocks = content.placement.block[content.first : content.first + len(lengths)]
    jumps = np.cumsum(blocks[1:] != blocks[:-1])  # how often the file has gone to another block, after each chunk
    try:
        while start < len(lengths):
            stop = int(np.searchsorted(ends, begun + _STREAM_TASK_BYTES))
            before = int(jumps[start - 1]) if start else 0
            stop = min(stop + 1, int(np.searchsorted(jumps, before + _TASK_BLOCKS)) + 1)
            stop = min(len(lengths), max(stop, start + 1))
            # Ends with a block where possible, so that no block is decoded twice.
            while stop < len(lengths) and blocks[stop] == blocks[stop - 1] and ends[stop] - begun < TASK_BYTES:
                stop += 1
            jobs.append(pool.submit(_decode_part, backend, content, start, stop, recent))
            start, begun = stop, int(ends[stop - 1])
            while len(jobs) > workers + 1 or (begun == total and jobs):
                yield jobs.popleft().result()
        while jobs:
            yield jobs.popleft().result()
    finally:
        for job in jobs:
            job.cancel()


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


def _decode_part(backend: Backend, content: Content, start: int, stop: int, recent: _Recent) -> list[memoryview]:
    at = content.first
    wanted = np.unique(content.placement.block[at + start : at + stop]).tolist()
    raw = recent.get(wanted)
    fresh = read_blocks(backend, content.placement.blocks, [b for b in wanted if b not in raw])
    recent.keep(fresh)
    return list(_pieces(content, start, stop, raw | fresh))


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
    recent = _Recent()
    step = 64
    for start in range(0, len(content.chunks), step):
        stop = min(start + step, len(content.chunks))
        data = b"".join(_decode_part(source.backend, content, start, stop, recent))
        at = 0
        for n, length in enumerate(content.chunks.lengths[start:stop].tolist(), start):
            if blake3(data[at : at + length]).digest() != content.chunks.ids[n].tobytes():
                raise Corrupt("a stored chunk fails its hash", subject=subject)
            at += length
        hasher.update(data)
        yield memoryview(data)
    if hasher.digest() != file_id:
        raise Corrupt("its stored bytes fail their hash", subject=subject)


def write_all(fd: int, data: memoryview | bytes, *, subject: str) -> None:
    """Write everything; a short write is continued.

    Raises:
        StorageFull, StorageError
    """
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise storage_error(error, subject=subject) from error


def storage_error(error: OSError, *, subject: str) -> StorageError:
    """The category of an error of a medium."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no space left on the device", subject=subject, hint="free some space and run it again")
    return StorageError(f"cannot be written ({error.strerror})", subject=subject)
