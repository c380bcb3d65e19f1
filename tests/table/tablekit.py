"""Tables in memory, for tests of the comparison: any Arrow table as one version of a file.

a = MemoryTable(pa.table({"id": [1, 2], "x": ["p", "q"]}), label="old")
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dvk.store.pages import Chunks
from dvk.table.contract import I64, Plan, Region, columns_of
from dvk.table.result import Notice


class MemorySource:
    """Bytes that nobody has."""

    def __init__(self, label: str, size: int) -> None:
        self.label = label
        self.name = b"memory"
        self.size = size
        self.id: bytes | None = None
        self.path: bytes | None = None
        self.bytes_read = 0

    def chunks(self) -> Chunks | None:
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        pass


class MemoryTable:
    """An Arrow table as `dvk.table.contract.Table`. `text`: its values have no types of their own."""

    def __init__(
        self,
        data: pa.Table,
        *,
        label: str = "memory",
        text: bool = False,
        batch_rows: int = 1000,
        key: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.source = MemorySource(label, data.nbytes)
        self.format = "csv" if text else "parquet"
        self.is_text = text
        self.columns = columns_of((field.name, field.type, field.nullable) for field in data.schema)
        self.declared_key = tuple(key)
        self.notices: tuple[Notice, ...] = ()
        self.rows_decoded = 0
        self.closed = False
        self.batch_rows = batch_rows
        self.counted: int | None = None  #: what `count_rows` says instead of the truth
        self.fails_at: int | None = None  #: row at which reading raises

    def count_rows(self) -> int:
        return self.data.num_rows if self.counted is None else self.counted

    def batches(
        self, columns: Sequence[int], *, regions: Sequence[Region] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        chosen = self._chosen(columns)
        for region in regions if regions is not None else (Region(0, self.data.num_rows),):
            for start in range(region.first, region.first + region.rows, self.batch_rows):
                count = min(self.batch_rows, region.first + region.rows - start)
                if self.fails_at is not None and start + count > self.fails_at:
                    raise ValueError(f"row {self.fails_at}")
                for batch in chosen.slice(start, count).combine_chunks().to_batches():
                    self.rows_decoded += batch.num_rows
                    yield start, batch

    def take(self, rows: I64, columns: Sequence[int]) -> pa.Table:
        assert (np.diff(rows) > 0).all()
        self.rows_decoded += len(rows)
        return self._chosen(columns).take(pa.array(rows, pa.int64()))

    def close(self) -> None:
        self.closed = True

    def _chosen(self, columns: Sequence[int]) -> pa.Table:
        return pa.table([self.data.column(i) for i in columns], names=[f"c{i}" for i in columns])


def table(columns: dict[str, Any], **options: Any) -> MemoryTable:
    """A table of these columns."""
    return MemoryTable(pa.table(columns), **options)


def text(columns: dict[str, list[str | None]], **options: Any) -> MemoryTable:
    """A table as CSV gives it."""
    return MemoryTable(pa.table({n: pa.array(v, pa.string()) for n, v in columns.items()}), text=True, **options)


def plan_for(pairs: Sequence[tuple[int, int]], rows: tuple[int, int], rng: random.Random, *, level: str = "L1") -> Plan:
    """A valid plan that skips some of the rows (row in A, row in B) that are known to be equal."""
    chosen = sorted(pair for pair in pairs if rng.random() < 0.7)
    kept: list[tuple[int, int]] = []
    for pair in chosen:
        if not kept or pair[1] > kept[-1][1]:
            kept.append(pair)
    sides = []
    for side in (0, 1):
        left = np.ones(rows[side], bool)
        left[[pair[side] for pair in kept]] = False
        edges = np.flatnonzero(np.diff(np.concatenate([[0], left.view(np.int8), [0]])))
        sides.append(tuple(Region(int(i), int(j - i)) for i, j in zip(edges[::2], edges[1::2], strict=True)))
    return Plan(level, sides[0], sides[1], skipped=len(kept), ordered=True)
