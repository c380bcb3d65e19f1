"""What readers of columnar files share: runs of rows in, plain batches out.

A columnar file says what its columns are, so nothing is decided here; but it may come from anybody. Every value that is
handed on was checked where its library does not check it (offsets, UTF-8), counts are compared with what was read, and
whatever the library raises becomes one error that names file and version.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from dvk.errors import DvkError, TableError
from dvk.table.broken import broken
from dvk.table.cache import Cache
from dvk.table.columnar.types import batch_of, plain_array, plain_type
from dvk.table.contract import I64, Column, Region, Source, columns_of
from dvk.table.file_table import FileTable
from dvk.table.skip.segments import SegmentBuilder, Segments, spec_of

#: What a batch should hold, and what it holds at most (more only where a single row does).
TARGET_BATCH_BYTES = 32 << 20
MAX_BATCH_BYTES = 64 << 20
MAX_BATCH_ROWS = 131_072

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"


class ColumnarTable(FileTable, ABC):
    """What readers of columnar files share. They say how to read a run of rows; this turns it into plain batches."""

    format: str
    is_text = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._plain: tuple[pa.DataType, ...] = ()
        self._record_to: Cache | None = None

    def _take_schema(self, schema: pa.Schema) -> None:
        with reading(self._source):
            self._columns = columns_of((field.name, plain_type(field.type), field.nullable) for field in schema)
            self._declared_key = pandas_key(schema.metadata, self._columns)
        self._plain = tuple(c.type for c in self._columns)

    @abstractmethod
    def count_rows(self) -> int:
        """Rows of the whole table, as the file states them."""

    @abstractmethod
    def _ends(self) -> I64:
        """int64[n]: behind which rows the n parts end that are decoded as one."""

    def rows_near(self, regions: Sequence[Region]) -> int:
        """How many rows have to be decoded to read some."""
        ends = self._ends()
        touched = np.zeros(len(ends), np.bool_)
        for r in regions:
            low, high = np.searchsorted(ends, [r.first, r.first + r.rows - 1], side="right").tolist()
            touched[low : high + 1] |= r.rows > 0
        return int(np.diff(ends, prepend=0)[touched].sum())

    @abstractmethod
    def _iter_raw(self, columns: Sequence[int], runs: Sequence[Region]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row, batch) of at least the rows in `runs`, in order; columns ascending, by position."""

    def batches(
        self, columns: Sequence[int], *, regions: Sequence[Region] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As `dvk.table.contract.Table` says. Columns that are not asked for are neither read nor decoded."""
        total = self.count_rows()
        runs = [r for r in ([Region(0, total)] if regions is None else regions) if r.rows]
        for r in runs:
            if r.first < 0 or r.first + r.rows > total:
                raise ValueError(f"rows {r.first} to {r.first + r.rows} of {total}")
        wanted = sorted(set(columns))
        places = np.searchsorted(wanted, columns).tolist()
        names = [f"c{c}" for c in columns]
        recorder = self._recorder(columns)
        waiting = iter(runs)
        run = next(waiting, None)
        at = run.first if run else 0  # the next row that is to come
        for first, raw in self._iter_raw(wanted, runs):
            stop = first + raw.num_rows
            plain: list[pa.Array] | None = None
            while run is not None and run.first < stop:
                low, high = max(at, first), min(run.first + run.rows, stop)
                if low != at:
                    raise self._short(at)
                if plain is None:
                    self._count_decoded(raw.num_rows)
                    plain = self._plain_columns(wanted, raw, first)
                if recorder is not None:
                    recorder.add(low, [x.slice(low - first, high - low) for x in plain])
                for a, b in _cuts([plain[p] for p in places], low - first, high - first):
                    piece = [plain[p].slice(a, b - a) for p in places]
                    yield first + a, batch_of(piece, names, b - a)
                at = high
                if high < run.first + run.rows:
                    break
                run = next(waiting, None)
                at = run.first if run else 0
        if run is not None:
            raise self._short(at)
        if recorder is not None:
            self._keep_segments(recorder.finish())

    # ------------------------------------------------------------ segments

    def record_segments(self, cache: Cache) -> None:
        """Leave the segments of the rows that are read next in `cache`, if all columns are read."""
        self._record_to = cache

    def known_segments(self, cache: Cache) -> Segments | None:
        """Those that an earlier reading left, if they are of this table."""
        spec, name = spec_of(self._plain), self._source.id
        data = cache.get(name, spec) if spec is not None and name is not None else None
        return None if data is None else Segments.from_bytes(data, rows=self.count_rows())

    def _recorder(self, columns: Sequence[int]) -> SegmentBuilder | None:
        if self._record_to is None or self._source.id is None or spec_of(self._plain) is None:
            return None
        return SegmentBuilder() if set(columns) == set(range(len(self._columns))) else None

    def _keep_segments(self, found: Segments) -> None:
        cache, spec, name = self._record_to, spec_of(self._plain), self._source.id
        if cache is None or spec is None or name is None:
            return
        self._record_to = None
        known = self.known_segments(cache)
        if known is None or known.total_rows < found.total_rows:
            cache.put(name, spec, found.to_bytes())

    # ------------------------------------------------------------ single rows

    def take(self, rows: I64, columns: Sequence[int]) -> pa.Table:
        """As `dvk.table.contract.Table` says: decodes the row groups (or batches) in which these rows lie."""
        names = [f"c{c}" for c in columns]
        schema = pa.schema([pa.field(n, self._plain[c]) for n, c in zip(names, columns, strict=True)])
        if not len(rows):
            return schema.empty_table()
        if int(rows[0]) < 0 or int(rows[-1]) >= self.count_rows() or bool((np.diff(rows) <= 0).any()):
            raise ValueError("rows are ascending, distinct and inside the table")
        parts = []
        wanted = sorted(set(columns))
        places = np.searchsorted(wanted, columns).tolist()
        for first, raw in self._iter_raw(wanted, _runs_near(rows)):
            low, high = np.searchsorted(rows, [first, first + raw.num_rows]).tolist()
            if low == high:
                continue
            self._count_decoded(raw.num_rows)
            plain = self._plain_columns(wanted, raw, first)
            inside = pa.array(rows[low:high] - first)
            picked = [plain[p].take(inside) for p in places]
            parts.append(batch_of(picked, names, high - low))
        found = sum(p.num_rows for p in parts)
        if found != len(rows):
            raise self._short(int(rows[min(found, len(rows) - 1)]))
        if not columns:
            return pa.Table.from_batches(parts)
        return pa.Table.from_batches(parts, schema=schema)

    def _plain_columns(self, columns: Sequence[int], raw: pa.RecordBatch, first: int) -> list[pa.Array]:
        if raw.num_columns != len(columns):
            raise broken("has other columns in its data than in its schema", self._source.label)
        out = []
        for c, array in zip(columns, raw.columns, strict=True):
            with reading(self._source, f"column {self._columns[c].label}, rows {first:,} and on"):
                by_number = isinstance(array, pa.DictionaryArray)
                if by_number:  # valid numbers of valid values make valid values, at a small part of the cost
                    array.validate(full=True)
                    array.dictionary.validate(full=True)
                out.append(plain_array(array, self._plain[c]))
                if not by_number and _may_be_wrong(self._plain[c]):
                    out[-1].validate(full=True)
        return out

    def _short(self, row: int) -> TableError:
        return TableError(
            f"states {self.count_rows():,} rows and does not have row {row:,}",
            subject=self._source.label,
            hint="the file is broken; nothing was concluded from it",
        )


def batch_rows(row_bytes: float) -> int:
    """How many rows a batch should have, given how long one is about."""
    return max(1, min(MAX_BATCH_ROWS, int(TARGET_BATCH_BYTES / max(row_bytes, 1.0))))


def pandas_key(metadata: dict[bytes, bytes] | None, columns: Sequence[Column]) -> tuple[str, ...]:
    """Labels of the named index columns that pandas noted in a schema; empty without any.

    An index without a name (`__index_level_0__`) is what was left of row numbers after a filter, not an identity.
    """
    note = (metadata or {}).get(b"pandas")
    if note is None:
        return ()
    try:
        found = json.loads(note).get("index_columns")
    except (ValueError, AttributeError, RecursionError):
        return ()  # another program's note, which we may not understand
    if not isinstance(found, list) or not found or not all(isinstance(n, str) for n in found):
        return ()
    names = [c.name for c in columns]
    good = all(names.count(n) == 1 and not n.startswith("__index_level_") for n in found)
    return tuple(found) if good and len(set(found)) == len(found) else ()


@contextmanager
def reading(source: Source, what: str = "") -> Iterator[None]:
    """Turn what pyarrow raises into an error that names the file, the version and the part of it."""
    where = f" ({what})" if what else ""
    hint = "if other programs read this file, please report it"
    try:
        yield
    except TableError as error:
        if error.subject:
            raise
        raise TableError(f"{error.message}{where}", subject=source.label, hint=error.hint) from error
    except DvkError:
        raise
    except MemoryError as error:
        raise TableError(
            f"does not fit into memory{where}", subject=source.label, hint="write it with smaller row groups or batches"
        ) from error
    except pa.ArrowNotImplementedError as error:
        raise TableError(f"is not supported: {_first_line(error)}{where}", subject=source.label, hint=hint) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise TableError(f"cannot be read: {_first_line(error)}{where}", subject=source.label, hint=hint) from error


class SourceFile(io.RawIOBase):
    """A source as pyarrow wants to see it."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._source.size)[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._source.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        data = self._source.read_at(self._at, length) if length else b""
        self._at += length
        return data


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:300].rstrip(".")


def _cuts(arrays: Sequence[pa.Array], low: int, high: int) -> Iterator[tuple[int, int]]:
    """[low, high) in pieces of at most `MAX_BATCH_BYTES`; a row that is longer is a piece of its own."""
    pieces = [(low, high)]
    while pieces:
        a, b = pieces.pop()
        if b - a > 1 and sum(x.slice(a, b - a).nbytes for x in arrays) > MAX_BATCH_BYTES:
            middle = (a + b) // 2
            pieces += [(middle, b), (a, middle)]
        elif b > a:
            yield a, b


def _runs_near(rows: I64) -> list[Region]:
    """Runs that hold these rows, joined where they lie close together."""
    breaks = np.flatnonzero(np.diff(rows) > 1024) + 1
    starts = rows[np.concatenate([[0], breaks])]
    ends = rows[np.concatenate([breaks - 1, [len(rows) - 1]])] + 1
    return [Region(a, b - a) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def _may_be_wrong(kind: pa.DataType) -> bool:
    """Whether bytes of the right length need not be a value: text that is no UTF-8, a time of 25 o'clock."""
    t = pa.types
    if t.is_string(kind) or t.is_time(kind) or t.is_decimal(kind) or t.is_date64(kind):
        return True
    return any(_may_be_wrong(kind.field(i).type) for i in range(kind.num_fields))
