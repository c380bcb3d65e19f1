"""A table of text: rows by number out of bytes, on all cores, reading only what is asked for.

Where each record lies is known from facts about chunks (`index.py`); so any run of rows is a run of bytes, pieces of
it are parsed side by side, and rows 5 and 7,000,000 cost two chunks. What a record means is the business of the two
formats, which say how bytes become columns: `csv.py`, `jsonl.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from dvk.errors import TableError
from dvk.store.names import I64
from dvk.store.pages import Chunks
from dvk.table.cache import Cache
from dvk.table.contract import Column, Region, Source
from dvk.table.file_table import FileTable
from dvk.table.parallel import ordered_map
from dvk.table.text.index import Marks, TextIndex, TextIndexed, build_index
from dvk.table.text.spool import Text

BOM = b"\xef\xbb\xbf"
UNIT_BYTES = 2 << 20  #: what one thread parses at once: measured fastest from 1 to 4 MiB
_MAX_UNIT_BYTES = 16 << 20
_UNIT_BYTES_PER_COLUMN = 8 << 10  # a call costs something for each column, so that wide tables want larger pieces
_SPAN_BYTES = 8 << 20  # single rows of such a stretch are found, read and parsed together
_GAP_BYTES = 64 << 10  # nearer ones with one read
_PIECES = 512  # short runs of rows that are parsed with one call
_REGIONS = 1024  # whose places are looked up at once

Piece = tuple[int, int, int, int]  #: a run of records: first record, records, offset, stop


class TextTable(FileTable, ABC):
    """What CSV and JSONL have in common. Implements `dvk.table.contract.Table`."""

    format: str
    is_text: bool

    def __init__(self, source: Source, text: Text, marks: Marks, columns: tuple[Column, ...], *, header: bool) -> None:
        """`header`: whether record 0 is no row."""
        super().__init__(source)
        self.text, self.marks = text, marks
        self._columns = columns
        self.header = int(header)
        self._notices += text.notices
        self._indexed: TextIndexed | None = None
        self._held: dict[int, bytes] = {}
        self.given_recipe: Chunks | None = None  #: chunks that somebody found, where no store knows any
        self._unit_bytes = min(_MAX_UNIT_BYTES, max(UNIT_BYTES, len(columns) * _UNIT_BYTES_PER_COLUMN))

    # ------------------------------------------------------------ what it says of itself

    @property
    @abstractmethod
    def reading(self) -> tuple[object, ...]:
        """What decides what bytes mean: rows of equal bytes are equal rows if this is equal."""

    def close(self) -> None:
        self.text.close()
        super().close()

    # ------------------------------------------------------------ where rows lie

    @property
    def index(self) -> TextIndex:
        return self.build_index().index

    @property
    def stored_recipe(self) -> Chunks | None:
        """The chunks of the text that its store knows; None for a plain file and for what had to be expanded."""
        return self._source.chunks() if self.text.is_source else None

    def build_index(self, *, cache: Cache | None = None, like: TextTable | None = None) -> TextIndexed:
        """Find out where records lie, once: from `cache`, from chunks shared with `like`, from a scan.

        Raises:
            TableError: a quote is never closed.
        """
        if self._indexed is None:
            known = like.build_index() if like is not None and like.marks == self.marks else None
            stored = self.stored_recipe
            recipe = stored if stored is not None else self.given_recipe
            file_id = None if stored is None else self._source.id
            indexed = build_index(self.text, self.marks, recipe, file_id=file_id, cache=cache, like=known)
            if indexed.index.open_at_end:
                self._never_closed(indexed.index)
            self._indexed = indexed
        return self._indexed

    def count_rows(self) -> int:
        return max(0, self.index.records - self.header)

    # ------------------------------------------------------------ rows

    def batches(
        self, columns: Sequence[int], *, regions: Sequence[Region] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Table.batches`."""
        wanted = regions if regions is not None else (Region(0, self.count_rows()),)
        for batches in ordered_map(lambda pieces: self._parsed(pieces, columns), self._groups(wanted)):
            yield from batches

    def hold(self, offset: int, data: bytes) -> None:
        """Keep some of the text, from the start of a record on, for whoever reads exactly these records."""
        self._held[offset] = data

    def _read_at(self, offset: int, length: int) -> bytes:
        held = self._held.get(offset)
        return held if held is not None and len(held) == length else self.text.read_at(offset, length)

    def _groups(self, regions: Sequence[Region]) -> Iterator[list[Piece]]:
        """Pieces of all regions, short ones together, since each call of a parser costs something."""
        group: list[Piece] = []
        size = 0
        for piece in self._pieces(regions):
            length = piece[3] - piece[2]
            if group and (size + length > self._unit_bytes or len(group) == _PIECES):
                yield group
                group, size = [], 0
            group.append(piece)
            size += length
        if group:
            yield group

    def _pieces(self, regions: Sequence[Region]) -> Iterator[Piece]:
        """Regions in pieces of at most about one unit."""
        index = self.index
        for at in range(0, len(regions), _REGIONS):
            some = [r for r in regions[at : at + _REGIONS] if r.rows]
            bounds = np.array([(r.first, r.first + r.rows) for r in some], np.int64).reshape(-1, 2) + self.header
            places = index.offsets(bounds.reshape(-1)).reshape(-1, 2).tolist()
            for (first, stop), (start, end) in zip(bounds.tolist(), places, strict=True):
                if end - start <= self._unit_bytes:
                    yield first, stop - first, start, end
                else:
                    yield from index.units(first, stop - first, unit_bytes=self._unit_bytes)

    def _parsed(self, pieces: list[Piece], columns: Sequence[int]) -> list[tuple[int, pa.RecordBatch]]:
        """(number of its first row, batch) for each piece."""
        data = [self._read_at(start, stop - start) for _, _, start, stop in pieces]
        if len(pieces) == 1:
            ((first, records, start, _),) = pieces
            return [(first - self.header, self._checked(data[0], columns, records, start))]
        try:
            batch = self._checked(b"".join(data), columns, sum(records for _, records, _, _ in pieces), None)
        except TableError:
            for part, (_, records, start, _) in zip(data, pieces, strict=True):
                self._checked(part, columns, records, start)  # says where
            raise
        out, at = [], 0
        for first, records, _, _ in pieces:
            out.append((first - self.header, batch.slice(at, records)))
            at += records
        return out

    def take(self, rows: I64, columns: Sequence[int]) -> pa.Table:
        """See `Table.take`."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.count_rows()):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {self.count_rows()}")
        groups = self.index.near(rows + self.header, span_bytes=_SPAN_BYTES) if len(rows) else ()
        batches = ordered_map(lambda records: self._take(records, columns), groups)
        return pa.Table.from_batches(batches, schema=self.schema(columns))

    def schema(self, columns: Sequence[int]) -> pa.Schema:
        """The schema of batches of `columns`."""
        return pa.schema([pa.field(f"c{i}", self._columns[i].type) for i in columns])

    def _take(self, records: I64, columns: Sequence[int]) -> pa.RecordBatch:
        """Records that are not far apart, as one batch."""
        bounds = np.unique(np.concatenate([records, records + 1]))
        offsets = self.index.offsets(bounds)
        starts = offsets[np.searchsorted(bounds, records)]
        stops = offsets[np.searchsorted(bounds, records + 1)]
        parts: list[memoryview] = []
        for group in np.split(np.arange(len(starts)), np.flatnonzero(starts[1:] - stops[:-1] > _GAP_BYTES) + 1):
            base = int(starts[group[0]])
            data = memoryview(self.text.read_at(base, int(stops[group[-1]]) - base))
            parts += [
                data[x:y] for x, y in zip((starts[group] - base).tolist(), (stops[group] - base).tolist(), strict=True)
            ]
        return self._checked(b"".join(parts), columns, len(records), None)

    def _checked(self, data: bytes, columns: Sequence[int], records: int, offset: int | None) -> pa.RecordBatch:
        """Parse, and insist that the parser saw the records that the index promised."""
        if not self._columns:
            batch = _no_columns(records)
        else:
            batch = self._parse(data, columns or (0,), offset)
        if batch.num_rows != records:
            where = "" if offset is None else f" at byte {offset}"
            raise TableError(
                f"the parser found {batch.num_rows} rows{where} where {records} records end", subject=self.text.label
            )
        if not columns:
            batch = _no_columns(records)
        self._count_decoded(records)
        return batch

    @abstractmethod
    def _parse(self, data: bytes, columns: Sequence[int], offset: int | None) -> pa.RecordBatch:
        """`columns` of the records in `data`; `offset`: where it lies in the text, None if it was put together."""

    # ------------------------------------------------------------ errors

    def _broken(self, why: str, *, offset: int | None, hint: str = "", index: TextIndex | None = None) -> TableError:
        """An error that says where; `offset` is one of the text."""
        where = self._where(offset, index)
        hint = hint or "mend the file there, or write it again"
        return TableError(f"{where}: {why}" if where else why, subject=self.text.label, hint=hint)

    def _where(self, offset: int | None, index: TextIndex | None = None) -> str:
        """Line and byte of a place, for messages; empty if it is not known."""
        if index is None:
            index = self._indexed.index if self._indexed is not None else None
        if offset is None or index is None:
            return ""
        what = f" of the {self.text.what} text" if self.text.what else ""
        return f"line {index.line(offset)}, byte {offset}{what}"

    def _never_closed(self, index: TextIndex) -> None:
        """Raise the error of a text that ends within quotes."""
        raise self._broken("a quote is never closed", offset=self.text.size, index=index)


def _no_columns(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), rows, [None]))
