"""Arrow files (Feather version 2) and Arrow streams as tables.

A file lists its batches, so that any of them is one step away; a stream must be read from its start. Buffers are used
as they lie on disk, and a broken or hostile file may point anywhere: so every batch is checked in full before a value
of it is touched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from dvk.table.broken import broken
from dvk.table.columnar.table import ARROW_MAGIC, ColumnarTable, SourceFile, reading
from dvk.table.contract import I64, Region, Source


class ArrowFile(ColumnarTable):
    """An Arrow file. Any thread may read."""

    format = "arrow"

    def __init__(self, source: Source) -> None:
        """Read the footer.

        Raises:
            TableError: it is cut short or broken.
        """
        super().__init__(source)
        if source.size < 20 or source.read_at(source.size - 6, 6) != ARROW_MAGIC:
            raise broken(
                "begins as an Arrow file and does not end so: it is cut short, or still being written", source.label
            )
        length = struct.unpack("<i", source.read_at(source.size - 10, 4))[0]
        if not 0 < length <= source.size - 18:
            raise broken("states a footer that is longer than the file", source.label)
        with reading(source, "its footer"):
            reader = self._open(())
            self._batches = reader.num_record_batches
            schema = reader.schema
        self._take_schema(schema)
        self._starts: I64 | None = None

    def count_rows(self) -> int:
        return int(self._batch_starts()[-1])

    def _ends(self) -> I64:
        return self._batch_starts()[1:]

    def _open(self, columns: Sequence[int]) -> pa.ipc.RecordBatchFileReader:
        # To pyarrow no columns are all columns; whoever asks for none reads rows of the cheapest one.
        options = pa.ipc.IpcReadOptions(included_fields=list(columns), use_threads=True)
        return pa.ipc.open_file(pa.PythonFile(SourceFile(self._source), mode="r"), options=options)

    def _batch_starts(self) -> I64:
        """Numbers of the first rows of all batches, and of the row behind the last. Each batch states its own."""
        if self._starts is None:
            cheapest = _cheapest([c.type for c in self._columns])
            rows = []
            with reading(self._source, "its batches"):
                reader = self._open(cheapest)
                for i in range(self._batches):
                    rows.append(reader.get_batch(i).num_rows)
            self._starts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]).astype(np.int64)
        return self._starts

    def _iter_raw(self, columns: Sequence[int], runs: Sequence[Region]) -> Iterator[tuple[int, pa.RecordBatch]]:
        starts = self._batch_starts()
        fields = columns or _cheapest([c.type for c in self._columns])
        with reading(self._source):
            reader = self._open(fields)
        r = 0
        for i in range(self._batches):
            first, stop = int(starts[i]), int(starts[i + 1])
            while r < len(runs) and runs[r].first + runs[r].rows <= first:
                r += 1
            if r == len(runs):
                return
            if first == stop or runs[r].first >= stop:
                continue
            with reading(self._source, f"batch {i}"):
                batch = _checked(reader.get_batch(i))
            if batch.num_rows != stop - first:
                raise broken(f"batch {i} has not the rows it stated", self._source.label)
            yield first, batch if columns else batch.select([])


class ArrowStream(ColumnarTable):
    """An Arrow stream: each pass reads from the start. Any thread may read."""

    format = "arrow"

    def __init__(self, source: Source) -> None:
        """Read the schema.

        Raises:
            TableError: it is broken.
        """
        super().__init__(source)
        with reading(source, "its schema"):
            schema = self._open(()).schema
        self._take_schema(schema)
        self._rows: int | None = None

    def count_rows(self) -> int:
        if self._rows is None:
            with reading(self._source):
                self._rows = sum(b.num_rows for b in self._open(_cheapest([c.type for c in self._columns])))
        return self._rows

    def _ends(self) -> I64:
        return np.array([self.count_rows()], np.int64)

    def _open(self, columns: Sequence[int]) -> pa.ipc.RecordBatchStreamReader:
        options = pa.ipc.IpcReadOptions(included_fields=list(columns), use_threads=True)
        return pa.ipc.open_stream(pa.PythonFile(SourceFile(self._source), mode="r"), options=options)

    def _iter_raw(self, columns: Sequence[int], runs: Sequence[Region]) -> Iterator[tuple[int, pa.RecordBatch]]:
        end = max((r.first + r.rows for r in runs), default=0)
        at = 0
        with reading(self._source):
            reader = self._open(columns or _cheapest([c.type for c in self._columns]))
        while at < end:
            with reading(self._source, f"the batch with row {at:,}"):
                batch = next(reader, None)
                if batch is None:
                    return  # the caller counts
                _checked(batch)
            if any(r.first < at + batch.num_rows and at < r.first + r.rows for r in runs):
                yield at, batch if columns else batch.select([])
            at += batch.num_rows


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


def _cheapest(kinds: Sequence[pa.DataType]) -> list[int]:
    """The column that is read to count rows, as a list; empty for a table without columns."""

    def cost(i: int) -> int:
        try:
            return int(kinds[i].bit_width)
        except ValueError:
            return 1 << 20

    return sorted(range(len(kinds)), key=cost)[:1]
