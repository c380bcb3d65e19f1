"""Full values of the rows of one side that a comparison needs again, wherever they can be had from.

First from what was kept when they were met (`dvk.table.answer.kept`). If that was too much to keep: a few rows are
taken from the table, which reads only near them; for many, the table is streamed once more and they are kept this time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dvk.table.answer.kept import Kept
from dvk.table.contract import Table
from dvk.table.equal import values
from dvk.table.json_text import JsonText

I64 = npt.NDArray[np.int64]

_FEW = 20_000  # rows


class Fetch:
    """Rows of `table` with these columns, by number."""

    def __init__(
        self, table: Table, columns: tuple[int, ...], kept: Kept, *, folder: bytes, name: str, memory_bytes: int
    ) -> None:
        self._table = table
        self._columns = columns
        self._kept = kept
        self._folder = folder
        self._name = name
        self._memory_bytes = memory_bytes

    def prepare(self, wanted: npt.NDArray[np.bool_]) -> None:
        """These rows, bool[rows of the table], will be asked for: have them at hand if they are many."""
        if self._kept.complete or int(wanted.sum()) <= _FEW:
            return
        self._kept.close()
        kept = Kept(self._folder, self._name + "-again", memory_bytes=self._memory_bytes, limit_bytes=None)
        for first, batch in self._table.batches(self._columns):
            inside = wanted[first : first + batch.num_rows]
            if inside.any():
                kept.add(first + np.flatnonzero(inside), batch.filter(pa.array(inside)))
        self._kept = kept

    def take(self, rows: I64) -> pa.RecordBatch:
        """These rows, in this order."""
        if self._kept.complete:
            try:
                return _one(self._kept.take(rows))
            except KeyError:  # of a kind that was not prepared for
                return self._from_table(rows)
        return self._from_table(rows)

    def python(self, column: pa.Array) -> list[Any]:
        """Values of one of its columns for programs and people."""
        found = values.python(column)
        if self._table.format != "jsonl":
            return found
        return [None if value is None else JsonText(value) for value in found]

    def close(self) -> None:
        """Let go of what was kept."""
        self._kept.close()

    def _from_table(self, rows: I64) -> pa.RecordBatch:
        ascending, place = np.unique(rows, return_inverse=True)
        table = self._table.take(ascending, self._columns)
        in_order = len(ascending) == len(rows) and bool((place == np.arange(len(rows))).all())
        return _one(table if in_order else table.take(pa.array(place)))


def _one(table: pa.Table) -> pa.RecordBatch:
    columns = []
    for column in table.columns:
        whole = column.combine_chunks()
        columns.append(whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks))
    return pa.RecordBatch.from_arrays(columns, schema=table.schema)
