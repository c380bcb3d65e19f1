"""Writing files out of a store, verified: every byte of a file is hashed before the file gets its name.

It reads from anything that can place chunks (a local store by its index, a remote by a locator) and writes to a `Sink`,
which knows nothing of stores. Small files that lie in the same blocks are done together, so that a block is decoded
once. Big ones are a stream, written in order while the next part is decoded, or copied from the older version that the
file is to replace.

>>> restore(StoreContent(store), ids, sizes, sink)          # doctest: +SKIP
[]
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import (
    Corrupt,
    DataMissing,
    DvkError,
    FormatError,
    RemoteDenied,
    RemoteUnreachable,
    StorageFull,
)
from dvk.events import Meter, OnEvent, ignore
from dvk.store.content import Content, ContentSource, StoreContent, pieces
from dvk.store.names import I64, U8
from dvk.store.outfile import CannotWrite, begin_writeback, empty, reserve, write_all
from dvk.store.placement import Blocks, Part, Placement, read_bare, read_blocks, read_parts
from dvk.store.reuse import Old, OldChanged, Reuse, find_shared
from dvk.store.store import Store
from dvk.store.stream import MAX_PART_BYTES, PART_BLOCKS, stream
from dvk.store.threads import brisk, default_workers
from dvk.timings import Stage, stage

#: Larger files are a stream of parts; smaller ones are done together up to this.
SMALL_BYTES = MAX_PART_BYTES
#: After this much of a big file the disk is told to begin.
_WRITEBACK_BYTES = 32 << 20

#: What ends the whole run: no other file would fare better, and trying them all may take hours of waiting.
_HOPELESS = (StorageFull, CannotWrite, RemoteUnreachable, RemoteDenied)

#: For the number of a file the older version of it that is at hand, if there is one.
FindOld = Callable[[int], Old | None]


class Sink(Protocol):
    """Takes n files by number; called from several threads."""

    def create(self, index: int) -> int:
        """A descriptor to write file `index` to, under a temporary name."""

    def finish(self, index: int, fd: int) -> None:
        """The whole content is there and verified: close it and give it its name."""

    def discard(self, index: int, fd: int) -> None:
        """Close it and remove what was written."""


class Nowhere:
    """A sink for files that are only to be proven."""

    def create(self, index: int) -> int:  # noqa: ARG002
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def finish(self, index: int, fd: int) -> None:  # noqa: ARG002
        os.close(fd)

    def discard(self, index: int, fd: int) -> None:  # noqa: ARG002
        os.close(fd)


def readable(store: Store, ids: U8, sizes: I64, *, on_event: OnEvent = ignore) -> npt.NDArray[np.bool_]:
    """bool[n]: files that a store gives back whole: each is read with the blocks that it lies in, and proven by its id.

    Costs what reading costs.
    """
    out = store.holds(ids, sizes)
    which = np.flatnonzero(out & (sizes > 0))
    if len(which):
        # The same content under many names is read once.
        _, first, again = np.unique(ids[which], axis=0, return_index=True, return_inverse=True)
        chosen = which[first]
        good = np.ones(len(chosen), np.bool_)
        source = StoreContent(store)
        for i, _ in restore(source, ids[chosen], sizes[chosen], Nowhere(), sound_blocks=True, on_event=on_event):
            good[i] = False
        out[which] = good[again.reshape(-1)]
    return out


class SomeFiles:
    """Some of the files of a sink, numbered from 0."""

    def __init__(self, sink: Sink, which: Sequence[int]) -> None:
        self._sink, self._which = sink, which

    def create(self, index: int) -> int:
        """As of the sink."""
        return self._sink.create(self._which[index])

    def finish(self, index: int, fd: int) -> None:
        """As of the sink."""
        self._sink.finish(self._which[index], fd)

    def discard(self, index: int, fd: int) -> None:
        """As of the sink."""
        self._sink.discard(self._which[index], fd)


def restore(
    source: ContentSource,
    ids: U8,
    sizes: I64,
    sink: Sink,
    *,
    names: Sequence[str] = (),
    find_old: FindOld | None = None,
    sound_blocks: bool = False,
    on_event: OnEvent = ignore,
    workers: int | None = None,
) -> list[tuple[int, DvkError]]:
    """Write n files to `sink`; returns the number and the error of each that could not be.

    Args:
        ids: uint8[n, 32] file ids; sizes: int64[n].
        names: n names for messages.
        find_old: asked for big files; what the older version has in common with the new one is taken from it, and where
            that turns out to be something else, the store gives it all. `sink` must then open files for reading too.
        sound_blocks: every block is read whole, and a file that lies in a damaged one fails even where its own bytes
            are right; for who is about to rely on the store alone.

    Raises:
        StorageFull, StorageError (from writing), RemoteUnreachable, RemoteDenied, Interrupted: what ends the whole run,
            since the next file would fare no better; temporary files are gone.
    """
    run = _Restore(source, ids, sizes, sink, names, find_old, sound_blocks, workers or default_workers())
    run.meter = Meter(on_event, "write", total_bytes=int(sizes.sum(dtype="u8")), total_items=len(sizes))
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
        self,
        source: ContentSource,
        ids: U8,
        sizes: I64,
        sink: Sink,
        names: Sequence[str],
        find_old: FindOld | None,
        sound_blocks: bool,
        workers: int,
    ) -> None:
        self.source, self.ids, self.sizes, self.sink, self.names = source, ids, sizes, sink, names
        self.find_old, self.sound_blocks, self.workers = find_old, sound_blocks, workers
        self.failed: list[tuple[int, DvkError]] = []

    def show(self, i: int) -> str:
        return self.names[i] if self.names else f"file {self.ids[i].tobytes().hex()[:12]}"

    def all_files(self, pool: ThreadPoolExecutor) -> None:
        # Batches bound what is known of chunks at a time, whatever the number of files.
        for start in range(0, len(self.sizes), 16384):
            part = slice(start, min(start + 16384, len(self.sizes)))
            found = self.source.contents(self.ids[part], self.sizes[part])
            small: list[tuple[int, Content]] = []
            self._missing(np.array([i for i, content in enumerate(found, start) if content is None], np.intp))
            for i, content in enumerate(found, start):
                if content is None:
                    continue
                if int(self.sizes[i]) <= SMALL_BYTES and len(content.chunks) <= 4 * PART_BLOCKS:
                    small.append((i, content))
                else:
                    self._big(pool, i, content)
            self._all_small(pool, small)

    def _missing(self, which: npt.NDArray[np.intp]) -> None:
        hidden: list[DvkError | None] = [None] * len(which)
        if len(which) and isinstance(self.source, StoreContent):
            hidden = self.source.why_missing(self.ids[which], self.sizes[which])
        for i, error in zip(which.tolist(), hidden, strict=True):
            if error is not None:
                self._failed(i, error)
                continue
            message = f"its data ({self.ids[i].tobytes().hex()[:12]}, {int(self.sizes[i]):,} bytes) is not here"
            self.failed.append((i, DataMissing(message, subject=self.show(i))))

    def _put(self, i: int, fill: Callable[[int], None]) -> None:
        """Make one file; `fill` writes its content to a descriptor, and raises unless that is proven.

        What is wrong with this file alone is noted; anything else is raised.
        """
        try:
            fd = self.sink.create(i)
            try:
                fill(fd)
            except BaseException:
                self.sink.discard(i, fd)
                raise
            self.sink.finish(i, fd)
        except _HOPELESS:
            raise
        except DvkError as error:
            self._failed(i, error)

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

    def _not_it(self, i: int) -> Corrupt:
        return Corrupt("its stored bytes fail their hash", subject=self.show(i))

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
            if apart or size >= SMALL_BYTES or (group and len(blocks.union(own)) > PART_BLOCKS):
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
        raw = self._read_together(placement, self._spans(group, sorted(needed)))
        again = _SecondLook(self.source.backend, placement.blocks, bare=not self.sound_blocks)
        for i, c in group:
            found = self._proven(i, c, raw) if raw is not None else None
            data = found if isinstance(found, memoryview) else self._looked_at_again(i, c, again)
            if isinstance(data, memoryview):
                self._small(i, data)
            else:
                self._failed(i, data)
        self.meter.advance(bytes_=sum(int(self.sizes[i]) for i, _ in group), items=len(group))

    def _spans(self, group: list[tuple[int, Content]], needed: list[int]) -> dict[int, tuple[int, int]]:
        """What of each block to read, in decoded bytes: all, where the files of the group are much of them."""
        placement = group[0][1].placement
        whole = {b: (0, int(placement.blocks.raw_len[b])) for b in needed}
        if self.sound_blocks or 2 * sum(int(self.sizes[i]) for i, _ in group) > sum(end for _, end in whole.values()):
            return whole
        out: dict[int, tuple[int, int]] = {}
        for _, c in group:
            part = slice(c.first, c.first + len(c.chunks))
            begins = placement.offset[part].astype(np.int64)
            ends = begins + c.chunks.lengths
            for b, begin, end in zip(placement.block[part].tolist(), begins.tolist(), ends.tolist(), strict=True):
                low, high = out.get(b, (begin, end))
                out[b] = (min(low, begin), max(high, end))
        return out

    def _read_together(self, placement: Placement, spans: dict[int, tuple[int, int]]) -> dict[int, Part] | None:
        """Of each block what is wanted; None where one cannot be read, which must not take its neighbours with it."""
        try:
            return read_parts(self.source.backend, placement.blocks, spans)
        except _HOPELESS:
            raise
        except DvkError:
            return None

    def _proven(self, i: int, c: Content, raw: Mapping[int, Part]) -> memoryview | Corrupt:
        """The bytes of a small file, or why these are not it."""
        try:
            data = list(pieces(c, 0, len(c.chunks), raw))
        except Corrupt as damaged:
            return damaged
        whole = data[0] if len(data) == 1 else memoryview(b"".join(data))
        with stage(Stage.HASH, bytes_=len(whole)):
            right = blake3(whole).digest() == self.ids[i].tobytes()
        return whole if right else self._not_it(i)

    def _looked_at_again(self, i: int, c: Content, again: _SecondLook) -> memoryview | DvkError:
        """The bytes of a small file; what was damaged was so perhaps only on its way, or only beside it."""
        own = list(dict.fromkeys(c.placement.block[c.first : c.first + len(c.chunks)].tolist()))
        damage = again.read(own)
        data = self._proven(i, c, again.raw) if all(b in again.raw for b in own) else self._not_it(i)
        return data if damage is None or isinstance(data, memoryview) else damage

    def _small(self, i: int, data: memoryview) -> None:
        with stage(Stage.WRITE, count=0):  # to make a file and to name it is most of the work
            self._put(i, lambda fd: write_all(fd, data, subject=self.show(i)))

    # ------------------------------------------------------------ big files

    def _big(self, pool: ThreadPoolExecutor, i: int, content: Content) -> None:
        failed = len(self.failed)
        self._put(i, lambda fd: self._fill(pool, i, content, fd))
        if len(self.failed) == failed:
            self.meter.advance(items=1)

    def _fill(self, pool: ThreadPoolExecutor, i: int, content: Content, fd: int) -> None:
        old = self.find_old(i) if self.find_old is not None else None
        if old is not None:
            try:
                reuse, shared = Reuse(old, fd, subject=self.show(i)), find_shared(content.chunks, old.chunks)
                if shared.max(initial=-1) >= 0 and self._streamed(pool, i, content, fd, reuse, shared):
                    return
            except OldChanged:
                pass  # as good as a file that is not there
            finally:
                os.close(old.fd)
            empty(fd, subject=self.show(i))
        if not self._streamed(pool, i, content, fd):
            raise self._not_it(i)

    def _streamed(
        self,
        pool: ThreadPoolExecutor,
        i: int,
        content: Content,
        fd: int,
        reuse: Reuse | None = None,
        shared: I64 | None = None,
    ) -> bool:
        """Write everything; whether it is the file that it should be."""
        name = self.show(i)
        has_room = reserve(fd, int(self.sizes[i]))
        source = stream(
            self.source.backend,
            content,
            pool,
            lambda data, at: write_all(fd, data, at=at, subject=name),
            workers=self.workers,
            reuse=reuse,
            shared=shared,
        )
        hasher = blake3()
        done = begun = 0
        writeback: list[Future[None]] = []
        try:
            for data in source:
                with stage(Stage.HASH, bytes_=len(data)):
                    hasher.update(data)
                done += len(data)
                self.meter.advance(bytes_=len(data))
                if done - begun >= _WRITEBACK_BYTES:
                    writeback.append(pool.submit(begin_writeback, fd, begun, done - begun))
                    begun = done
            if has_room and done > begun:
                # A file with room set aside ext4 does not send to the disk when it replaces another.
                writeback.append(pool.submit(begin_writeback, fd, begun, done - begun))
        except OldChanged:
            self.meter.advance(bytes_=-done)
            raise
        finally:
            source.close()
            wait(writeback)  # nobody may use the descriptor after this
        # The length as well: with room set aside, a file that gets fewer bytes ends in zeros.
        right = done == int(self.sizes[i]) and hasher.digest() == self.ids[i].tobytes()
        if not right:
            self.meter.advance(bytes_=-done)
        return right


class _SecondLook:
    """Blocks of small files that were not read or did not prove right: each is read again, once, whole and alone.

    Args:
        bare: of a damaged block that is stored as it is, take what is there: the files in it may be right all the same.
    """

    def __init__(self, backend: Backend, blocks: Blocks, *, bare: bool) -> None:
        self._backend, self._blocks, self._bare = backend, blocks, bare
        self.raw: dict[int, Part] = {}
        self._damage: dict[int, DvkError] = {}

    def read(self, wanted: Sequence[int]) -> DvkError | None:
        """Have these blocks in `raw`, as far as that can be; what is wrong with the first of them that is damaged."""
        for b in wanted:
            if b not in self.raw and b not in self._damage:
                self._read(b)
        return next((self._damage[b] for b in wanted if b in self._damage), None)

    def _read(self, b: int) -> None:
        try:
            self.raw[b] = Part(read_blocks(self._backend, self._blocks, [b])[b])
        except _HOPELESS:
            raise
        except DvkError as error:
            self._damage[b] = error
            if self._bare and isinstance(error, FormatError):
                self._take_bare(b)

    def _take_bare(self, b: int) -> None:
        try:
            part = read_bare(self._backend, self._blocks, b)
        except _HOPELESS:
            raise
        except DvkError:
            return  # what is wrong with it is known
        if part is not None:
            self.raw[b] = part
