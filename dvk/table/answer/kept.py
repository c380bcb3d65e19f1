"""Rows that are needed again, kept where they can be picked by number: in memory, and beyond a limit in a file.

    kept = Kept(folder, "a", memory_bytes=32 << 20, limit_bytes=1 << 30)
    kept.add(numbers, batch)
    kept.take(np.array([17, 4711]))

Reading a row again from a CSV or a Parquet file means decoding everything near it. Rows that differ are at hand when
the comparison meets them, so they are written down, as Arrow, in the comparison's own folder. If that grows beyond a
limit (the order of two tables has nothing in common, say), they are let go, and the few that are needed are read again.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dvk.errors import StorageError, StorageFull
from dvk.store.names import show
from dvk.table.equal import values

I64 = npt.NDArray[np.int64]


class Kept:
    """Rows of one side by number. `add` all, then `take`; for one thread."""

    def __init__(self, folder: bytes, name: str, *, memory_bytes: int, limit_bytes: int | None) -> None:
        self._path = os.path.join(folder, os.fsencode(name))
        self._memory_bytes = memory_bytes
        self._limit_bytes = limit_bytes
        self._numbers: list[I64] = []
        self._batches: list[pa.RecordBatch] = []  #: those in memory, after those in the file
        self._in_file = 0
        self._bytes = self._bytes_held = 0
        self._sink: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._reader: pa.RecordBatchFileReader | None = None
        self._map: mmap.mmap | None = None
        self._all: I64 | None = None
        self._order: I64 | None = None
        self.complete = True  #: whether all that was added is still here

    def add(self, numbers: I64, batch: pa.RecordBatch) -> None:
        """Keep rows of these numbers.

        Raises:
            StorageFull, StorageError: the folder takes no more.
        """
        if not self.complete or not len(numbers):
            return
        batch = pa.RecordBatch.from_arrays([values.plain(c) for c in batch.columns], names=batch.schema.names)
        size = batch.nbytes
        self._bytes += size
        if self._limit_bytes is not None and self._bytes > self._limit_bytes:
            self._let_go()
            return
        self._numbers.append(numbers)
        self._batches.append(batch)
        self._bytes_held += size
        if self._bytes_held > self._memory_bytes:
            self._write()

    def take(self, rows: I64) -> pa.Table:
        """These rows in this order, with the columns they were added with. Any order, repeats allowed.

        Raises:
            KeyError: one of them was not added.
        """
        self._seal()
        assert self._all is not None and self._order is not None
        at = np.searchsorted(self._all, rows, sorter=self._order)
        at = self._order[np.minimum(at, len(self._order) - 1)] if len(self._order) else np.zeros(len(rows), np.int64)
        if len(rows) and (not len(self._order) or not (self._all[at] == rows).all()):
            raise KeyError("a row that was not kept")
        starts = np.cumsum([0] + [len(n) for n in self._numbers])
        which = np.searchsorted(starts, at, side="right") - 1
        order = np.argsort(which, kind="stable")
        parts = []
        for k in np.unique(which).tolist():
            inside = at[order[which[order] == k]] - starts[k]
            parts.append(self._batch(k).take(pa.array(inside)))
        if not parts:
            return pa.Table.from_batches([self._batch(0).slice(0, 0)])
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)  # the system may keep the pages; they are no memory of ours
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        table = pa.Table.from_batches(parts)
        return table if bool((order[1:] > order[:-1]).all()) else table.take(pa.array(back))

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return not self._numbers

    def close(self) -> None:
        """Let go of the file; its folder's owner removes it."""
        self._let_go()

    def _batch(self, k: int) -> pa.RecordBatch:
        if k >= self._in_file:
            return self._batches[k - self._in_file]
        assert self._reader is not None
        return self._reader.get_batch(k)

    def _write(self) -> None:
        try:
            if self._writer is None:
                self._sink = pa.OSFile(os.fsdecode(self._path), "wb")
                self._writer = pa.ipc.new_file(self._sink, self._batches[0].schema)
            for batch in self._batches:
                self._writer.write_batch(batch)
        except OSError as problem:
            kind = StorageFull if "No space left" in str(problem) or "quota" in str(problem) else StorageError
            raise kind(
                f"rows of the comparison cannot be kept: {problem}",
                subject=show(self._path),
                hint="choose a folder on another disk for temporary files",
            ) from problem
        self._in_file += len(self._batches)
        self._batches.clear()
        self._bytes_held = 0

    def _seal(self) -> None:
        if self._all is not None:
            return
        if self._writer is not None:
            self._write()
            self._writer.close()
            assert self._sink is not None
            self._sink.close()
            with open(self._path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            self._reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(self._map)))
        self._all = np.concatenate(self._numbers) if self._numbers else np.zeros(0, np.int64)
        self._order = np.argsort(self._all, kind="stable")

    def _let_go(self) -> None:
        self.complete = False
        self._numbers.clear()
        self._batches.clear()
        self._reader = self._writer = self._map = None
        if self._sink is not None:
            self._sink.close()
            self._sink = None
            os.unlink(self._path)
