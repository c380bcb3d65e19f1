"""Writing into a store: new chunks become blocks, blocks become packs, packs become durable, then findable.

One `Writer` is one unit of work (an `add`, a `fetch`). Nothing that it takes is promised before `flush` returned; after a kill
at any point the store holds either whole packs or nothing, and whatever was not referred to is found again by its id.

>>> with Writer(store) as writer:                           # doctest: +SKIP
...     writer.add_chunks(ids, lengths, raw)
...     writer.flush()
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from dvk.backend.contract import Buffer
from dvk.ids import PageId
from dvk.store.codec import encode_checked
from dvk.store.names import U8
from dvk.store.pack import MAX_BLOCK_BYTES, TARGET_PACK_BYTES, PackBuilder, PackKind, RecipeRow, pack_key
from dvk.store.store import Store, as_column

U32 = npt.NDArray[np.uint32]

#: A tail of new chunks shorter than this waits for more before it becomes a block.
_SMALL_BLOCK_BYTES = 512 << 10
_PACKS_IN_FLIGHT = 2


@dataclass(slots=True)
class Written:
    """What a writer has stored so far."""

    new_chunks: int = 0
    new_bytes: int = 0  #: of chunks that were not here before, decoded
    stored_bytes: int = 0  #: of the packs that hold them


class _Tail:
    """New chunks that wait to become a block."""

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


class Writer:
    """Adds chunks and pages to a store. Its methods may be called from many threads.

    Args:
        dry_run: do all the work and keep nothing; `written` tells what it would have been.
    """

    def __init__(self, store: Store, *, dry_run: bool = False, level: int = 1) -> None:
        self.store = store
        self.dry_run = dry_run
        self.written = Written()
        self._level = level
        self._lock = threading.Lock()
        self._pending: set[bytes] = set()  # chunks taken and not yet in a findable pack
        self._tail = _Tail()
        self._builders = {kind: PackBuilder(kind) for kind in PackKind}
        self._pages = _Tail()
        self._recipes: list[RecipeRow] = []  # their pages may still wait in the tail
        self._new_packs: list[tuple[bytes, PackKind]] = []
        self._puts: list[Future[None]] = []
        self._slots = threading.Semaphore(_PACKS_IN_FLIGHT)
        self._pool = ThreadPoolExecutor(_PACKS_IN_FLIGHT, thread_name_prefix="dvk-put")
        if not dry_run:
            store.create()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    # ------------------------------------------------------------ data

    def choose_new(self, ids: Sequence[bytes], column: U8) -> list[int]:
        """Positions of the chunks that neither the store nor this writer has; they are taken by the caller now."""
        known = self.store.has_chunks(column)
        new = []
        with self._lock:
            for i in np.flatnonzero(~known).tolist():
                if ids[i] not in self._pending:
                    self._pending.add(ids[i])
                    new.append(i)
        return new

    def add_chunks(self, ids: Sequence[bytes], lengths: Sequence[int], raw: memoryview) -> int:
        """Store those chunks of `raw` that are new; returns how many bytes were.

        Args:
            ids: n chunk ids, already computed from `raw`.
            lengths: n lengths that cover `raw` from its start.
        """
        new = self.choose_new(ids, as_column(ids))
        if not new:
            return 0
        starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
        total = 0
        first = 0
        while first < len(new):
            # As many chunks as a block holds; joined without a copy where they are neighbours.
            last, size = first, 0
            while last < len(new) and size + lengths[new[last]] <= MAX_BLOCK_BYTES:
                size += lengths[new[last]]
                last += 1
            group = new[first:last]
            total += size
            if last == len(new) and size < _SMALL_BLOCK_BYTES:
                self._wait(group, ids, starts, raw)
                break
            a, b = starts[group[0]], starts[group[-1] + 1]
            block: Buffer
            if b - a == size:
                block = raw[a:b]
            else:
                block = b"".join(raw[starts[i] : starts[i + 1]] for i in group)
            self._encode([ids[i] for i in group], [lengths[i] for i in group], memoryview(block))
            first = last
        return total

    def _wait(self, group: list[int], ids: Sequence[bytes], starts: list[int], raw: memoryview) -> None:
        full: _Tail | None = None
        with self._lock:
            size = sum(starts[i + 1] - starts[i] for i in group)
            if self._tail.size + size > MAX_BLOCK_BYTES:
                full, self._tail = self._tail, _Tail()
            for i in group:
                self._tail.add(ids[i], bytes(raw[starts[i] : starts[i + 1]]))
        if full is not None:
            self._encode(full.ids, full.lengths, memoryview(b"".join(full.pieces)))

    def end_of_path(self) -> None:
        """Close the block that waits for more, so that blocks do not span tracked paths."""
        with self._lock:
            full, self._tail = self._tail, _Tail()
        if full.size:
            self._encode(full.ids, full.lengths, memoryview(b"".join(full.pieces)))

    def _encode(self, ids: Sequence[bytes], lengths: Sequence[int], raw: memoryview) -> None:
        codec, payload = encode_checked(raw, level=self._level)
        self.add_encoded(codec, payload, len(raw), ids=ids, lengths=lengths)

    def add_encoded(
        self, codec: int, payload: Buffer, raw_len: int, *, ids: Sequence[bytes], lengths: Sequence[int]
    ) -> None:
        """Append a block that is encoded already; its chunks were chosen by `choose_new` and proven by hash."""
        if isinstance(payload, memoryview):
            payload = bytes(payload)  # the caller's buffer is used again
        with self._lock:
            self.written.new_chunks += len(ids)
            self.written.new_bytes += raw_len
            builder = self._builders[PackKind.DATA]
            builder.add_block(codec, payload, raw_len, ids=b"".join(ids), lengths=np.array(lengths, np.uint32))
            full = builder.size_bytes >= TARGET_PACK_BYTES
            if full:
                self._builders[PackKind.DATA] = PackBuilder(PackKind.DATA)
        if full:
            self._put(builder)

    # ------------------------------------------------------------ pages

    def add_page(self, name: PageId, data: bytes) -> None:
        """Store a page unless it is here."""
        if not self.choose_new([name], as_column([name])):
            return
        self._pages_append(name, data)

    def _pages_append(self, name: bytes, data: bytes) -> None:
        full: _Tail | None = None
        with self._lock:
            if self._pages.size + len(data) > MAX_BLOCK_BYTES:
                full, self._pages = self._pages, _Tail()
            self._pages.add(name, data)
        if full is not None:
            self._encode_pages(full)

    def add_recipe(self, row: RecipeRow) -> None:
        """State which page is the root of a file's recipe, after its pages were added. The first one for a file wins."""
        with self._lock:
            self._recipes.append(row)

    def _encode_pages(self, tail: _Tail) -> None:
        raw = b"".join(tail.pieces)
        codec, payload = encode_checked(memoryview(raw), level=3) if raw else (0, b"")
        with self._lock:
            builder = self._builders[PackKind.PAGES]
            if raw:
                lengths = np.array(tail.lengths, np.uint32)
                builder.add_block(codec, bytes(payload), len(raw), ids=b"".join(tail.ids), lengths=lengths)
            waiting = {r.root for r in self._recipes} & set(self._pages.ids)
            for row in self._recipes:
                if row.root not in waiting:
                    builder.add_recipe(row)
            self._recipes = [r for r in self._recipes if r.root in waiting]
            full = builder.size_bytes >= TARGET_PACK_BYTES
            if full:
                self._builders[PackKind.PAGES] = PackBuilder(PackKind.PAGES)
        if full:
            self._put(builder)

    # ------------------------------------------------------------ packs

    def _put(self, builder: PackBuilder) -> None:
        self._slots.acquire()
        self._puts.append(self._pool.submit(self._put_now, builder))
        for done in [f for f in self._puts if f.done()]:
            done.result()

    def _put_now(self, builder: PackBuilder) -> None:
        try:
            name, parts = builder.finish()
            size = sum(map(len, parts))
            footer = builder.footer()
            if not self.dry_run:
                self.store.backend.put(pack_key(builder.kind, name), parts)
                self.store.adopt([(name, footer)])
            with self._lock:
                self.written.stored_bytes += size
                self._new_packs.append((name, builder.kind))
                if not self.dry_run:  # findable now, so no longer pending
                    self._pending.difference_update(footer.ids[i].tobytes() for i in range(len(footer.ids)))
        finally:
            self._slots.release()

    def flush(self) -> None:
        """Return only when everything taken so far is durable and findable.

        Raises:
            StorageError, StorageFull: something could not be written; nothing of it was promised.
        """
        self.end_of_path()
        with self._lock:
            pages, self._pages = self._pages, _Tail()
        if pages.size or self._recipes:
            self._encode_pages(pages)
        # Data before the pages that speak of it: a reader that finds a page finds its chunks.
        for kind in PackKind:
            with self._lock:
                builder = self._builders[kind]
                self._builders[kind] = PackBuilder(kind)
            if not builder.empty:
                self._put(builder)
            for put in self._puts:
                put.result()
            self._puts = []
        if not self.dry_run:
            self.store.save_index()


def default_workers() -> int:
    """How many threads encode and decode: the cores this process may use."""
    return max(1, min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))

