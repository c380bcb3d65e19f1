"""Parquet as a table: row groups are read as they are needed, columns by position, values in batches.

    table = ParquetTable(source)
    table.groups[3].rows, table.chunk(3, 0)         # where the bytes of a column of a row group lie

Names do not identify a Parquet column (two may share one, and a dot may be part of one), so leaves are counted off the
schema and everything goes by number. What a footer states (rows, places) is checked against the file before anything is
made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from dvk.errors import TableError
from dvk.table.broken import broken
from dvk.table.columnar.parquet_footer import parse_footer
from dvk.table.columnar.table import PARQUET_MAGIC, TARGET_BATCH_BYTES, ColumnarTable, SourceFile, batch_rows, reading
from dvk.table.contract import I64, Notice, Region, Source

_MAX_FOOTER_BYTES = 256 << 20
#: Row groups whose columns take more than this are read through a window; smaller ones in one request each.
_WHOLE_BYTES = 64 << 20
_WINDOW_BYTES = 1 << 20
_MAX_RUN_ROWS = 1 << 20


class RowGroup(Struct, frozen=True):
    """`first`: number of its first row."""

    first: int
    rows: int


class Leaf(Struct, frozen=True):
    """A leaf of a column in a row group: its bytes [start, start + length), dictionary included, and what is stated.

    Two leaves of the same form whose `facts` and bytes are equal hold equal values.
    """

    start: int
    length: int
    facts: tuple[int, ...]


class ParquetTable(ColumnarTable):
    """A Parquet file. Any thread may read; `Source` says what a read costs."""

    format = "parquet"

    def __init__(self, source: Source) -> None:
        """Read the footer.

        Raises:
            TableError: it is cut short, encrypted or broken. DvkError: the source does not give its bytes.
        """
        super().__init__(source)
        self._metadata: Any = None
        self._footer = parse_footer(self._footer_bytes(), subject=source.label)
        with reading(source, "its footer"):
            file = self._open()
            self._metadata, self._schema, arrow = file.metadata, file.schema, file.schema_arrow
        self._take_schema(arrow)
        self._leaves = self._count_leaves(arrow)
        self._row_bytes: dict[tuple[int, ...], float] = {}  # of leaves that were read together, the most so far
        self.groups = self._check_groups()
        if any(self._schema.column(i).physical_type == "INT96" for i in range(len(self._schema))):
            self._notices.append(
                Notice("int96", f"{source.label}: its timestamps (INT96) are read as nanoseconds, of 1678 to 2262 only")
            )

    def count_rows(self) -> int:
        return self._footer.rows

    def _ends(self) -> I64:
        return np.cumsum(self._footer.group_rows)

    def leaves(self, column: int) -> range:
        """The numbers of the leaves that make a column (several for nested types)."""
        return self._leaves[column]

    def leaf_form(self, leaf: int) -> tuple[Any, ...]:
        """How values of a leaf are written: bytes mean the same only in the same form."""
        c = self._schema.column(leaf)
        logical = str(c.logical_type)
        return (
            c.physical_type,
            logical,
            c.length,
            c.max_definition_level,
            c.max_repetition_level,
            c.precision,
            c.scale,
        )

    def leaf(self, group: int, leaf: int) -> Leaf:
        """Where a leaf of a row group lies."""
        f, at = self._footer, (group, leaf)
        start, length, raw = int(f.starts[at]), int(f.lengths[at]), int(f.raw_lengths[at])
        return Leaf(start, length, (length, raw, int(f.values[at]), int(f.codecs[at])))

    # ------------------------------------------------------------ the footer

    def _footer_bytes(self) -> bytes:
        source = self._source
        if source.size < 12:
            raise broken("is cut short: no Parquet file is that small", source.label)
        tail = source.read_at(source.size - 8, 8)
        length = struct.unpack("<I", tail[:4])[0]
        if tail[4:] == b"PARE":
            raise TableError(
                "is Parquet with an encrypted footer", subject=source.label, hint="dvk holds no keys: decrypt it first"
            )
        if tail[4:] != PARQUET_MAGIC:
            raise broken("begins as Parquet and does not end so: it is cut short, or still being written", source.label)
        if length > min(source.size - 12, _MAX_FOOTER_BYTES):
            raise broken("states a footer that is longer than a footer can be", source.label)
        return source.read_at(source.size - 8 - length, length)

    def _open(self, *, window: bool = False, repeated: Sequence[int] = ()) -> pq.ParquetFile:
        return pq.ParquetFile(
            pa.PythonFile(SourceFile(self._source), mode="r"),
            metadata=self._metadata,
            read_dictionary=[self._columns[c].name for c in repeated] or None,
            pre_buffer=not window,
            buffer_size=_WINDOW_BYTES if window else 0,
            page_checksum_verification=self._source.id is None,  # what comes from a store was proven by hash
        )

    def _count_leaves(self, schema: pa.Schema) -> tuple[range, ...]:
        out, at = [], 0
        for field in schema:
            count = _leaf_count(field.type)
            out.append(range(at, at + count))
            at += count
        stated = self._footer.starts.shape[1] if len(self._footer.group_rows) else at
        if at != self._metadata.num_columns or at != stated:
            raise broken("its columns are not those of its schema", self._source.label)
        return tuple(out)

    def _check_groups(self) -> tuple[RowGroup, ...]:
        f = self._footer
        held = (f.group_rows > 0)[:, None]  # what an empty row group states of its place means nothing
        if bool((held & ((f.starts < len(PARQUET_MAGIC)) | (f.starts > self._source.size - f.lengths))).any()):
            raise broken("its footer places columns outside the file", self._source.label)
        total = sum(f.group_rows.tolist())
        if total != f.rows or f.rows != self._metadata.num_rows:
            raise broken(f"states {f.rows:,} rows, and its row groups {total:,}", self._source.label)
        firsts = np.concatenate([[0], np.cumsum(f.group_rows)]).tolist()
        return tuple(RowGroup(first, n) for first, n in zip(firsts, f.group_rows.tolist(), strict=False))

    # ------------------------------------------------------------ rows

    def _iter_raw(self, columns: Sequence[int], runs: Sequence[Region]) -> Iterator[tuple[int, pa.RecordBatch]]:
        leaves = [leaf for c in columns for leaf in self._leaves[c]]
        # Readers of its own: pyarrow's remember what was requested last, and somebody else may be reading too.
        files: dict[tuple[bool, tuple[int, ...]], pq.ParquetFile] = {}
        for part in self._parts(leaves, runs):
            window = sum(self._weight(g, leaves)[0] for g in part) > _WHOLE_BYTES
            way = window, self._repeated(part, columns)
            if way not in files:
                with reading(self._source):
                    files[way] = self._open(window=window, repeated=way[1])
            yield from self._read(files[way], part, leaves, runs)

    def _repeated(self, part: Sequence[int], columns: Sequence[int]) -> tuple[int, ...]:
        """Columns of text or bytes that are dictionaries in all of these row groups.

        They are read as that, and turned into values a piece at a time: ten bytes may stand for a megabyte each.
        """
        flat = [c for c in columns if _is_text(self._plain[c]) and len(self._leaves[c]) == 1]
        return tuple(c for c in flat if bool(self._footer.repeated[part, self._leaves[c][0]].all()))

    def _parts(self, leaves: Sequence[int], runs: Sequence[Region]) -> Iterator[list[int]]:
        """Row groups that touch `runs`: neighbours together while they are small."""
        part: list[int] = []
        weight = rows = 0
        for g in _touched(self.groups, runs):
            packed = self._weight(g, leaves)[0]
            apart = part and (g != part[-1] + 1 or weight + packed > _WHOLE_BYTES // 4)
            if apart or rows + self.groups[g].rows > _MAX_RUN_ROWS:
                if part:
                    yield part
                part, weight, rows = [], 0, 0
            part.append(g)
            weight += packed
            rows += self.groups[g].rows
        if part:
            yield part

    def _weight(self, group: int, leaves: Sequence[int]) -> tuple[int, int]:
        """Bytes of these leaves of a row group, compressed and not."""
        f = self._footer
        return int(f.lengths[group, leaves].sum()), int(f.raw_lengths[group, leaves].sum())

    def _read(
        self, file: pq.ParquetFile, part: list[int], leaves: list[int], runs: Sequence[Region]
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        first, rows = self.groups[part[0]].first, sum(self.groups[g].rows for g in part)
        end = min(first + rows, max((r.first + r.rows for r in runs if r.first < first + rows), default=0))
        what = f"row group {part[0]}" if len(part) == 1 else f"row groups {part[0]} to {part[-1]}"
        # Sizes in the footer do not count how often a value of a dictionary occurs, so what was seen counts too.
        key = tuple(leaves)
        stated = max(map(sum, zip(*(self._weight(g, leaves) for g in part), strict=True))) / max(rows, 1)
        length = batch_rows(max(stated, self._row_bytes.get(key, 0.0)))
        at = first
        with reading(self._source, what):
            batches = file.reader.iter_batches(length, part, column_indices=leaves, use_threads=True)
            while at < end and (batch := next(batches, None)) is not None:
                if batch.num_rows:
                    self._row_bytes[key] = max(self._row_bytes.get(key, 0.0), batch.nbytes / batch.num_rows)
                for low, high in _pieces(batch):
                    yield at + low, batch.slice(low, high - low)
                at += batch.num_rows
        if at < end or at > first + rows:
            raise TableError(
                f"{what} should have {rows:,} rows and has {'only ' if at < end else 'at least '}{at - first:,}",
                subject=self._source.label,
                hint="the file is broken; nothing was concluded from it",
            )


def _pieces(batch: pa.RecordBatch) -> Iterator[tuple[int, int]]:
    """The rows of a batch in runs whose values, out of their dictionaries, take about `TARGET_BATCH_BYTES` at most."""
    rows = batch.num_rows
    sizes = np.zeros(rows, np.int64)
    for array in batch.columns:
        if not pa.types.is_dictionary(array.type) or not _is_text(array.type.value_type) or not len(array.dictionary):
            continue
        lengths = pc.fill_null(pc.binary_length(array.dictionary), 0).to_numpy().astype(np.int64)
        if int(lengths.max()) * rows > TARGET_BATCH_BYTES // 8:
            sizes += lengths[pc.fill_null(array.indices, 0).to_numpy()]
    low = 0
    ends = np.cumsum(sizes)
    while low < rows:
        begun = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, begun + TARGET_BATCH_BYTES, side="right")))
        yield low, high
        low = high


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _touched(groups: Sequence[RowGroup], runs: Sequence[Region]) -> Iterator[int]:
    """Numbers of the groups that share a row with a run; both ascend."""
    r = 0
    for i, g in enumerate(groups):
        while r < len(runs) and runs[r].first + runs[r].rows <= g.first:
            r += 1
        if r < len(runs) and g.rows and runs[r].first < g.first + g.rows:
            yield i


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _leaf_count(kind.value_type)
    return sum(_leaf_count(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1
