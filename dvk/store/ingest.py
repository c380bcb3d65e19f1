"""Taking files into a store: read, cut, hash, encode and write overlap on all cores.

    reader (caller's thread)      workers                            writer's threads
    big files: read, cut      ->  hash chunks, look up, encode   ->  name packs, write, fsync
                              ->  hash the file (one thread)
    small ones: groups        ->  read, cut, hash, look up, encode

An edit of a big file is read, cut and hashed and little else, so the id of the file, which has to be made from front to
back, must not wait in line with reading and cutting, which have to be as well.

Buffers come from a fixed set, so memory is bounded whatever the file; a big file is a stream of buffers, small files
share one, which one thread fills and works on, since what a small file costs is system calls and Python. Python works
per buffer and per chunk of 64 KiB, and what it calls there releases the GIL.

A file is only recorded as what was really read: it is compared before and after (`Source.recheck`), and a file that
changed is an error, not a mixture.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
from blake3 import blake3

from dvk.errors import ChangedWhileRead, DvkError, StorageError, one_or_many
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import EMPTY_FILE, ID_BYTES, FileId, PageId
from dvk.store.chunker import Cut, Cutter, max_chunk_bytes
from dvk.store.codec import Hint
from dvk.store.names import I64, U8
from dvk.store.pack import RecipeRow
from dvk.store.pages import Chunks, ListKind, format_page, page_id
from dvk.store.pagewriter import ListWriter
from dvk.store.store import as_column
from dvk.store.threads import brisk, default_workers
from dvk.store.writer import Writer
from dvk.timings import Stage, stage

SEGMENT_BYTES = 4 << 20
#: Files up to this size share a buffer; longer ones are streamed.
SMALL_FILE_BYTES = 1 << 20
_MAX_PROBLEMS = 1000
_FILES_AT_ONCE = 1 << 16  # that are sorted into small ones and others


class Source(Protocol):
    """n files to read, by number."""

    def open(self, i: int) -> int:
        """A descriptor for reading file i; raises DvkError naming it when that is impossible."""

    def recheck(self, i: int, fd: int) -> None:
        """Raise ChangedWhileRead if file i is not what it was when it was scanned."""

    def read_run(self, files: I64, into: memoryview) -> int:
        """Read small files (ascending) one after the other to the start of `into`, each as it was when it was scanned.

        Returns how many there were before the first one with which something was not as expected; that one is then
        opened, read and rechecked by itself. Any thread may call, several at once.
        """

    def show(self, i: int) -> str:
        """The name of file i for messages."""


def ingest(
    writer: Writer,
    source: Source,
    sizes: I64,
    *,
    profile: str,
    on_event: OnEvent = ignore,
    workers: int | None = None,
) -> U8:
    """Store the content of n files; their ids, uint8[n, 32]. Nothing is promised before `writer.flush()`.

    Args:
        sizes: int64[n], as scanned; a file that has another size now counts as changed.

    Raises:
        ChangedWhileRead, StorageError: for one file; with `failures` when there are several. All files are tried first,
            so that every unreadable one is named.
        Refused: the store does not take data that is cut by `profile`.
    """
    writer.require_profile(profile)
    workers = workers or default_workers()
    with (
        brisk(),
        ThreadPoolExecutor(1, thread_name_prefix="dvk-hash") as hashing,
        ThreadPoolExecutor(workers, thread_name_prefix="dvk-encode") as pool,
    ):
        meter = Meter(on_event, "read", total_bytes=int(sizes.sum(dtype=np.uint64)), total_items=len(sizes))
        run = _Ingest(writer, source, sizes, profile, pool, hashing, workers, meter)
        try:
            run.all_files()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    if run.problems:
        raise one_or_many(f"{len(run.problems):,} files could not be read; nothing was recorded", run.errors())
    writer.end_of_path()
    return run.ids


class _Batch:
    """The chunks of several small files, in order, and the recipes of those files that have more than one."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.lengths: list[int] = []
        self.hints: list[Hint] = []
        self.recipes: list[tuple[PageId, bytes, RecipeRow]] = []

    def add(self, name: bytes, length: int, hint: Hint = Hint.UNKNOWN) -> None:
        self.names.append(name)
        self.lengths.append(length)
        self.hints.append(hint)


class _Ingest:
    def __init__(
        self,
        writer: Writer,
        source: Source,
        sizes: I64,
        profile: str,
        pool: ThreadPoolExecutor,
        hashing: ThreadPoolExecutor,
        workers: int,
        meter: Meter,
    ) -> None:
        self.writer, self.source, self.sizes, self.profile = writer, source, sizes, profile
        self.pool, self.hashing, self.meter = pool, hashing, meter
        self.ids = np.zeros((len(sizes), ID_BYTES), np.uint8)
        self.problems: list[tuple[int, DvkError]] = []  # by file, not in order
        self._cutter = Cutter(profile)
        self._local = threading.local()
        self._buffers: queue.SimpleQueue[U8] = queue.SimpleQueue()
        for _ in range(workers * 2 + 1):  # not zeroed, which took 8 ms for each tracked path
            self._buffers.put(np.empty(SEGMENT_BYTES + max_chunk_bytes, np.uint8))
        self._jobs: deque[Future[None]] = deque()

    def all_files(self) -> None:
        """Read every file, small ones in groups that share a buffer."""
        for first in range(0, len(self.sizes), _FILES_AT_ONCE):
            sizes = self.sizes[first : first + _FILES_AT_ONCE]
            is_small = (sizes > 0) & (sizes <= SMALL_FILE_BYTES)
            small = np.flatnonzero(is_small)
            others = deque(np.flatnonzero(~is_small).tolist())
            for group in _groups(small, sizes[small] + 1, SEGMENT_BYTES):
                while others and others[0] < group[0]:
                    self._one(first + others.popleft())
                self._submit(self._small_files, self._free_buffer(), first + group)
            for i in others:
                self._one(first + i)
        while self._jobs:
            self._jobs.popleft().result()

    def _one(self, i: int) -> None:
        size = int(self.sizes[i])
        if size:
            self._big(i, size)
        else:
            self._empty(i)

    def _free_buffer(self) -> U8:
        with stage(Stage.WAIT):
            return self._buffers.get()

    def _submit(self, work: Callable[[U8, I64], None], buffer: U8, group: I64) -> None:
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft().result()
        self._jobs.append(self.pool.submit(work, buffer, group))

    def errors(self) -> list[DvkError]:
        """What went wrong so far, in the order of the files."""
        return [error for _, error in sorted(self.problems, key=lambda p: p[0])]

    def _problem(self, i: int, error: DvkError) -> None:
        self.problems.append((i, error))
        if len(self.problems) >= _MAX_PROBLEMS:
            raise one_or_many("too many files could not be read; nothing was recorded", self.errors())

    # ------------------------------------------------------------ small files

    def _empty(self, i: int) -> None:
        try:
            fd = self.source.open(i)
            try:
                self.source.recheck(i, fd)
                if self._pread(i, fd, memoryview(bytearray(1)), 0):  # some pseudo-files report 0 bytes and have content
                    raise ChangedWhileRead("it reports 0 bytes and has content", subject=self.source.show(i))
            finally:
                os.close(fd)
        except DvkError as error:
            self._problem(i, error)
            return
        self.ids[i] = np.frombuffer(EMPTY_FILE, np.uint8)
        self.meter.advance(items=1)

    def _read_group(self, group: I64, view: memoryview) -> list[int]:
        """Read files one after the other into `view`; those that could be read."""
        files, room = group.tolist(), np.cumsum(self.sizes[group]).tolist()
        good: list[int] = []
        at = used = 0
        with stage(Stage.READ, count=len(files)) as reading:
            while at < len(files):
                done = self.source.read_run(group[at:], view[used:])
                good += files[at : at + done]
                used += room[at + done - 1] - (room[at - 1] if at else 0) if done else 0
                at += done
                if at < len(files):  # this one needs a closer look, which says what is wrong
                    size = int(self.sizes[files[at]])
                    if self._read_small(files[at], size, view[used : used + size + 1]):
                        good.append(files[at])
                        used += size
                    at += 1
            reading.add(bytes_=used)
        return good

    def _read_small(self, i: int, size: int, into: memoryview) -> bool:
        try:
            fd = self.source.open(i)
            try:
                # One byte of room more than expected: a file that grew shows itself.
                got = self._pread(i, fd, into, 0, enough=size)
                if got != size:
                    raise ChangedWhileRead("it changed while it was read", subject=self.source.show(i))
                self.source.recheck(i, fd)
            finally:
                os.close(fd)
        except DvkError as error:
            self._problem(i, error)
            return False
        return True

    def _pread(self, i: int, fd: int, into: memoryview, offset: int, *, enough: int = -1) -> int:
        """Fill `into` as far as the file goes, or until there is `enough`."""
        done = 0
        try:
            while done < len(into) and done != enough:
                got = os.preadv(fd, [into[done:]], offset + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise StorageError(f"cannot be read ({error.strerror})", subject=self.source.show(i)) from error
        return done

    def _small_files(self, buffer: U8, group: I64) -> None:
        """Read files into `buffer`, one after the other, cut, hash and store them."""
        try:
            cutter = self._thread_cutter()
            view = buffer.data
            good = self._read_group(group, view)
            sizes = self.sizes[good].tolist()
            total = sum(sizes)
            ids: list[bytes] = []
            chunks = _Batch()
            at = 0
            with stage(Stage.HASH, bytes_=total, count=len(good)):
                for size in sizes:
                    file = view[at : at + size]
                    at += size
                    if size <= cutter.min_chunk_bytes:
                        name = blake3(file).digest()
                        chunks.add(name, size)
                    else:
                        name = self._medium(cutter, file, chunks)
                    ids.append(name)
            if not good:
                return
            self.ids[good] = as_column(ids)
            self.writer.add_chunks(chunks.names, chunks.lengths, view[:total], hints=chunks.hints)
            if chunks.recipes:
                self.writer.add_pages([name for name, _, _ in chunks.recipes], [data for _, data, _ in chunks.recipes])
                self.writer.add_recipes([row for _, _, row in chunks.recipes])
            self.meter.advance(bytes_=total, items=len(good))
        finally:
            self._buffers.put(buffer)

    def _medium(self, cutter: Cutter, file: memoryview, chunks: _Batch) -> bytes:
        """A file in one buffer that may have several chunks, never more than a page of them; its id."""
        with stage(Stage.CUT, bytes_=len(file)):
            whole = cutter.for_file(lambda offset, size: bytes(file[offset : offset + size]), len(file))
            cut, hints = whole.feed(file, final=True)
        lengths = cut.tolist()
        if len(lengths) == 1:
            name = blake3(file).digest()
            chunks.add(name, lengths[0], hints[0])
            return name
        pieces, start = [], 0
        for length, hint in zip(lengths, hints, strict=True):
            pieces.append(blake3(file[start : start + length]).digest())
            chunks.add(pieces[-1], length, hint)
            start += length
        file_id = blake3(file).digest()
        data = format_page(ListKind.RECIPE, 0, Chunks(as_column(pieces), cut.astype(np.uint32)))
        root = page_id(ListKind.RECIPE, data)
        chunks.recipes.append((root, data, RecipeRow(file_id, root, len(file), self.profile)))
        return file_id

    def _thread_cutter(self) -> Cutter:
        cutter: Cutter | None = getattr(self._local, "cutter", None)
        if cutter is None:
            cutter = self._local.cutter = Cutter(self.profile)
        return cutter

    # ------------------------------------------------------------ big files

    def _big(self, i: int, size: int) -> None:
        try:
            fd = self.source.open(i)
        except DvkError as error:
            self._problem(i, error)
            return
        try:
            self._stream(i, fd, size)
        except DvkError as error:
            if error.subject != self.source.show(i):
                raise  # the store's trouble, not this file's
            self._problem(i, error)
        finally:
            os.close(fd)

    def _stream(self, i: int, fd: int, size: int) -> None:
        hasher = blake3()
        recipe = _RecipeWriter(self.writer)
        cutter = self._cutter.for_file(lambda at, count: self._look(i, fd, at, count), size)
        waiting: deque[Future[Chunks]] = deque()
        carry: bytes | memoryview = b""
        offset = 0
        try:
            while True:
                buffer = self._free_buffer()
                view = buffer.data
                view[: len(carry)] = carry
                room = view[len(carry) : len(carry) + SEGMENT_BYTES]
                try:
                    with stage(Stage.READ) as reading:
                        got = self._pread(i, fd, room, offset)
                        reading.add(bytes_=got)
                except BaseException:
                    self._buffers.put(buffer)  # or the next reader waits for it for ever
                    raise
                hashed = self.hashing.submit(_hash, hasher, room[:got])
                offset += got
                final = got < len(room)
                filled = view[: len(carry) + got]
                with stage(Stage.CUT, bytes_=got):
                    cut = cutter.feed(filled, final=final)
                used = int(cut.lengths.sum())
                carry = bytes(filled[used:])
                waiting.append(self.pool.submit(self._segment, buffer, cut, used, hashed))
                self.meter.advance(bytes_=got)
                while waiting and (waiting[0].done() or len(waiting) > 64):
                    recipe.add(waiting.popleft().result())
                if offset > size or (final and offset != size):
                    raise ChangedWhileRead("it changed while it was read", subject=self.source.show(i))
                if final:
                    break
            self.source.recheck(i, fd)
        except BaseException:
            for job in waiting:  # buffers come back, and an error of the store counts for more than one of the file
                job.result()
            raise
        for job in waiting:
            recipe.add(job.result())
        file_id = FileId(hasher.digest())
        recipe.finish(file_id, size, self.profile)
        self.ids[i] = np.frombuffer(file_id, np.uint8)
        self.meter.advance(items=1)

    def _look(self, i: int, fd: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes of file i, for headers that say where it is cut."""
        into = bytearray(size)
        return bytes(into[: self._pread(i, fd, memoryview(into), offset)])

    def _segment(self, buffer: U8, cut: Cut, used: int, hashed: Future[None]) -> Chunks:
        try:
            view = buffer.data[:used]
            lengths = cut.lengths.tolist()
            names, start = [], 0
            with stage(Stage.HASH, bytes_=used, count=len(lengths)):
                for length in lengths:
                    names.append(blake3(view[start : start + length]).digest())
                    start += length
            self.writer.add_chunks(names, lengths, view, hints=cut.hints)
            return Chunks(as_column(names), cut.lengths.astype(np.uint32))
        finally:
            hashed.result()
            self._buffers.put(buffer)


def _groups(files: I64, sizes: I64, limit: int) -> Iterator[I64]:
    """`files` in runs of which the sizes together are at most `limit`, as every size by itself is."""
    ends = np.cumsum(sizes)
    start, before = 0, 0
    while start < len(files):
        stop = int(np.searchsorted(ends, before + limit, "right"))
        yield files[start:stop]
        start, before = stop, int(ends[stop - 1])


def _hash(hasher: blake3, piece: memoryview) -> None:
    with stage(Stage.HASH, bytes_=len(piece)):
        hasher.update(piece)


class _RecipeWriter:
    """Collects the chunks of one file into pages; a file of one chunk leaves none."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._list = ListWriter(ListKind.RECIPE, writer.add_page)
        self._first: Chunks | None = None
        self._count = 0

    def add(self, chunks: Chunks) -> None:
        if not len(chunks):
            return
        self._count += len(chunks)
        if self._first is None and self._count == 1:
            self._first = chunks  # perhaps the only one
            return
        if self._first is not None:
            self._list.add(self._first)
            self._first = None
        self._list.add(chunks)

    def finish(self, file_id: FileId, size: int, profile: str) -> None:
        if self._count <= 1:
            return
        root = self._list.finish()
        self._writer.add_recipe(RecipeRow(file_id, root.id, size, profile))
