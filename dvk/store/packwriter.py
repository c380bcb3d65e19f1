"""From chunks and pages to packs on a backend: blocks are filled and encoded, packs filled, named, put and published.

Both `add` (into the local store) and `push` (into a remote) write packs; what differs is what they call new and
what they do once a pack is there, so that is passed in. Nothing is promised before `flush` returned.
"""

from __future__ import annotations

import mmap
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import groupby
from types import TracebackType

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.contract import Buffer
from dvk.ids import PackId, PageId
from dvk.store.codec import ALL_CODECS, Hint, decode_block, encode_checked
from dvk.store.names import U8
from dvk.store.pack import BLOCK_HEADER, MAX_BLOCK_BYTES, TARGET_PACK_BYTES, Footer, PackBuilder, PackKind, RecipeRow
from dvk.store.threads import default_workers as default_workers
from dvk.timings import Stage, stage

U32 = npt.NDArray[np.uint32]

#: A tail of new chunks shorter than this waits for more before it becomes a block.
_SMALL_BLOCK_BYTES = 512 << 10

#: Of memory that is used again: two take less than all else that an `add` needs, and a disk is as fast with 32 MiB as
#: with 64.
_REUSED_BYTES = 32 << 20
_ROOM_BYTES = TARGET_PACK_BYTES + (2 << 20)  # and the block that makes it full

#: Puts the parts of a finished pack; returns when they are durable.
PutPack = Callable[[PackKind, PackId, list[Buffer]], None]
#: Hears of a pack once it is durable.
Published = Callable[[PackKind, PackId, Footer], None]


class Written(Struct):
    """What has been stored so far."""

    new_chunks: int = 0
    new_bytes: int = 0  #: decoded bytes of the chunks taken
    encoded_bytes: int = 0  #: of their blocks, as soon as they are encoded
    stored_bytes: int = 0  #: bytes of the packs


class _Tail:
    """Pieces that wait to become a block."""

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.ids: list[bytes] = []
        self.lengths: list[int] = []
        self.size = 0

    def add(self, name: bytes, piece: Buffer) -> None:
        self.pieces.append(piece)
        self.ids.append(name)
        self.lengths.append(len(piece))
        self.size += len(piece)


class PackWriter:
    """Fills packs. Its methods may be called from many threads.

    While `in_flight` packs are being put and another one is full, all callers wait: memory stays bounded however slow
    the medium is. Once a pack could not be put, every further call raises that error.

    Args:
        put: stores a pack; called from up to `in_flight` threads.
        published: told of each pack once it is stored.
        level: of zstd, for data.
        in_flight: packs being put at a time; each holds 64 MiB of memory, or 32 with `reuse_memory`.
        codecs: those that the store takes; a block that comes encoded as something else is encoded again.
        reuse_memory: build one pack after the other in the same memory, since fresh memory costs more than copying.
            Only for a medium that `releases_parts`.
    """

    def __init__(
        self,
        put: PutPack,
        published: Published,
        *,
        level: int = 1,
        in_flight: int = 2,
        codecs: frozenset[int] = ALL_CODECS,
        reuse_memory: bool = False,
    ) -> None:
        self.written = Written()
        self._reuse_memory = reuse_memory
        self._rooms: list[U8] = []  # free ones
        self._put_pack, self._published, self._level, self._codecs = put, published, level, codecs
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._tails: dict[Hint, _Tail] = defaultdict(_Tail)
        self._pages = _Tail()
        self._recipes: list[RecipeRow] = []  # their pages may still wait in the tail
        self._builders = {kind: self._builder(kind) for kind in PackKind}
        self._puts: list[Future[None]] = []
        self._error: BaseException | None = None  # of the first pack that could not be put
        self._slots = threading.Semaphore(in_flight)
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="dvk-put")

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        self._builders.clear()
        self._rooms.clear()

    # ------------------------------------------------------------ data

    def add_new(
        self,
        new: Sequence[int],
        ids: Sequence[bytes],
        lengths: Sequence[int],
        raw: memoryview,
        *,
        hints: Sequence[Hint] | None = None,
    ) -> int:
        """Store the chunks at positions `new` (ascending); returns their bytes.

        Args:
            ids, lengths: of n chunks that cover `raw` from its start. `raw` may be reused after the call.
            hints: what each of the n holds; chunks of different hints share no block.
        """
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        if hints is None:
            return self._add_run(new, ids, lengths, starts, raw, Hint.UNKNOWN)
        runs = groupby(new, key=hints.__getitem__)
        return sum(self._add_run(list(run), ids, lengths, starts, raw, hint) for hint, run in runs)

    def _add_run(
        self,
        new: Sequence[int],
        ids: Sequence[bytes],
        lengths: Sequence[int],
        starts: Sequence[int],
        raw: memoryview,
        hint: Hint,
    ) -> int:
        total = first = 0
        while first < len(new):
            # As many chunks as a block holds; joined without a copy where they are neighbours.
            last, size = first, 0
            while last < len(new) and size + lengths[new[last]] <= MAX_BLOCK_BYTES:
                size += lengths[new[last]]
                last += 1
            if last == first:
                raise ValueError(f"a chunk of {lengths[new[first]]:,} bytes fits no block")
            group = new[first:last]
            total += size
            if last == len(new) and size < _SMALL_BLOCK_BYTES:
                self._wait(group, size, ids, starts, raw, hint)
                break
            a, b = starts[group[0]], starts[group[-1] + 1]
            block = raw[a:b] if b - a == size else memoryview(b"".join(raw[starts[i] : starts[i + 1]] for i in group))
            self._encode([ids[i] for i in group], [lengths[i] for i in group], block, hint)
            first = last
        return total

    def _wait(
        self,
        group: Sequence[int],
        size: int,
        ids: Sequence[bytes],
        starts: Sequence[int],
        raw: memoryview,
        hint: Hint,
    ) -> None:
        full: _Tail | None = None
        with self._lock:
            if self._tails[hint].size + size > MAX_BLOCK_BYTES:
                full = self._tails.pop(hint)
            for i in group:
                self._tails[hint].add(ids[i], bytes(raw[starts[i] : starts[i + 1]]))
        if full is not None:
            self._encode(full.ids, full.lengths, memoryview(b"".join(full.pieces)), hint)

    def end_of_path(self) -> None:
        """Close the blocks that wait for more, so that blocks do not span tracked paths."""
        with self._lock:
            tails = list(self._tails.items())
            self._tails.clear()
        for hint, tail in tails:
            self._encode(tail.ids, tail.lengths, memoryview(b"".join(tail.pieces)), hint)

    def _encode(self, ids: Sequence[bytes], lengths: Sequence[int], raw: memoryview, hint: Hint) -> None:
        codec, payload = encode_checked(raw, hint=hint, level=self._level, codecs=self._codecs)
        self.add_encoded(codec, payload, len(raw), ids=ids, lengths=lengths)

    def add_encoded(
        self, codec: int, payload: Buffer, raw_len: int, *, ids: Sequence[bytes], lengths: Sequence[int]
    ) -> None:
        """Append a block that is encoded already; its chunks are new and were proven by hash."""
        if codec not in self._codecs:
            raw = memoryview(decode_block(codec, payload, raw_len))
            codec, payload = encode_checked(raw, level=self._level, codecs=self._codecs)
        with stage(Stage.PACK, bytes_=len(payload)), self._lock:
            self.written.new_chunks += len(ids)
            self.written.new_bytes += raw_len
            self.written.encoded_bytes += BLOCK_HEADER.size + len(payload)
            builder = self._builders[PackKind.DATA]
            builder.add_block(codec, payload, raw_len, ids=b"".join(ids), lengths=np.array(lengths, np.uint32))
            self._put_if_full(PackKind.DATA)

    # ------------------------------------------------------------ pages

    def add_page(self, name: PageId, data: bytes) -> None:
        """Store a page; the caller looked whether it is new."""
        full: _Tail | None = None
        with self._lock:
            if self._pages.size + len(data) > MAX_BLOCK_BYTES:
                full, self._pages = self._pages, _Tail()
            self._pages.add(name, data)
        if full is not None:
            self._encode_pages(full)

    def add_recipe(self, row: RecipeRow) -> None:
        """State which page is the root of a file's recipe, after its pages were added. The first one wins."""
        with self._lock:
            self._recipes.append(row)

    def _encode_pages(self, tail: _Tail) -> None:
        raw = b"".join(tail.pieces)
        codec, payload = encode_checked(memoryview(raw), level=3, codecs=self._codecs) if raw else (0, b"")
        with self._lock:
            builder = self._builders[PackKind.PAGES]
            if raw:
                lengths = np.array(tail.lengths, np.uint32)
                builder.add_block(codec, bytes(payload), len(raw), ids=b"".join(tail.ids), lengths=lengths)
            waiting = set(self._pages.ids)
            for row in self._recipes:
                if row.root not in waiting:
                    builder.add_recipe(row)
            self._recipes = [r for r in self._recipes if r.root in waiting]
            self._put_if_full(PackKind.PAGES)

    # ------------------------------------------------------------ packs

    def _put_if_full(self, kind: PackKind) -> None:
        # With `self._lock` held, also while waiting for a slot, so that nobody fills another pack meanwhile. What runs
        # in the slots never takes that lock.
        if self._error is not None:
            raise self._error
        if self._builders[kind].full:
            self._put(kind)

    def _put(self, kind: PackKind) -> None:
        builder = self._builders[kind]
        with stage(Stage.WAIT):
            self._slots.acquire()
        self._builders[kind] = self._builder(kind)  # not earlier: the pack before has given its memory back by now
        try:
            put = self._pool.submit(self._put_now, builder)
        except BaseException:
            self._slots.release()
            raise
        self._puts = [f for f in self._puts if not f.done()] + [put]

    def _put_now(self, builder: PackBuilder) -> None:
        try:
            if self._error is None:
                with stage(Stage.PACK, count=0):
                    name, parts = builder.finish()
                self._put_pack(builder.kind, name, parts)
                self._published(builder.kind, name, builder.footer())
                with self._counting:
                    self.written.stored_bytes += sum(map(len, parts))
        except BaseException as error:
            self._error = self._error or error
            raise
        finally:
            if builder.room is not None and self._reuse_memory:
                self._rooms.append(builder.room)
            self._slots.release()

    def _builder(self, kind: PackKind) -> PackBuilder:
        # Blocks are copied into one piece of memory: what it takes goes back to the system at once, where payloads of
        # all lengths would leave holes, and the disk gets it without a detour.
        if kind is not PackKind.DATA:
            return PackBuilder(kind)
        if not self._reuse_memory:
            return PackBuilder(kind, room=_new_room(_ROOM_BYTES))
        try:
            room = self._rooms.pop()
        except IndexError:
            room = _new_room(_REUSED_BYTES)
        return PackBuilder(kind, room=room)

    def flush(self) -> None:
        """Return only when everything taken so far is stored and published; data before the pages that speak of it.

        Raises:
            StorageError, StorageFull, RemoteError: something could not be written; nothing of it was promised.
        """
        self.end_of_path()
        with self._lock:
            pages, self._pages = self._pages, _Tail()
        if pages.size or self._recipes:
            self._encode_pages(pages)
        for kind in PackKind:
            with self._lock:
                if not self._builders[kind].empty:
                    self._put(kind)
                puts = list(self._puts)
            with stage(Stage.WAIT):
                wait(puts)
            if self._error is not None:
                raise self._error


def _new_room(size: int) -> U8:
    """Memory for a pack, at the start of a page, as disks want it; what is not written to takes none."""
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(room, np.uint8)
