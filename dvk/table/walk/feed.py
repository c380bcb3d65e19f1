"""The rows of one side on their way into a comparison: read ahead, filtered, and brought into comparable form.

    with Feed(table, side) as feed:
        while (window := feed.window(65_536)).count:
            ...
            feed.drop(1000)

Reading and the work on single values happen in a thread for each side, a little ahead of the comparison, so that both
sides and the comparison use the cores at the same time. Batches come as the reader likes them; `window` shows as many
of the next rows as the comparison wants to look at, without copying where it can.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from msgspec.structs import replace

from dvk.table.contract import Region, Table
from dvk.table.equal import encode, values
from dvk.table.equal.forms import Form

I64 = npt.NDArray[np.int64]

_AHEAD = 2  # pieces that wait for the comparison
_SMALL_ROWS = 1 << 13  # batches of fewer rows are joined: the cost of a step is one of its own
PIECE_ROWS = 1 << 17  # so that pieces are small beside the memory limit


class Cell(Struct, frozen=True):
    """One compared column of one side: where it is read from, and how it is brought into comparable form.

    `form` None: no value of it equals any of the other side; `mark` tells the sides apart then. `json`: its values are
    JSON texts, and those of the other side are not.
    """

    index: int
    form: Form | None
    untyped: bool
    mark: str
    json: bool = False

    @property
    def name(self) -> str:
        """Of the column in what is read."""
        return f"c{self.index}"

    def flat(self, array: pa.Array) -> pa.Array:
        """The comparable values of this column."""
        if self.form is None:
            return pc.if_else(pc.is_valid(array), pa.scalar(self.mark), pa.scalar(None, pa.string()))
        return values.flat(values.unquoted(array) if self.json else array, self.form, untyped=self.untyped)


class SideSpec(Struct, frozen=True):
    """What is read of one side. `cells`: one for each compared pair; `key`: those among them that identify a row.

    `columns`: contract indices to read, which include the cells'. `where`: keeps some rows of a batch.
    """

    table: Table
    columns: tuple[int, ...]
    cells: tuple[Cell, ...]
    key: tuple[int, ...]
    where: Callable[[pa.RecordBatch], encode.BoolArray] | None = None

    def only(self, chosen: Sequence[int]) -> SideSpec:
        """The same with these cells alone, by position."""
        cells = tuple(self.cells[i] for i in chosen)
        # `where` may ask for any of the columns, so with it all of them are read.
        columns = tuple(dict.fromkeys(c.index for c in cells)) if self.where is None else self.columns
        return replace(self, columns=columns, cells=cells, key=())

    def first(self, count: int) -> Rows:
        """The first rows of the table, at most so many, whatever `where` says."""
        batches = self.table.batches(self.columns)
        try:
            for _, batch in batches:
                batch = batch.slice(0, count)
                return self.comparable(np.arange(batch.num_rows), batch)
        finally:
            if isinstance(batches, Generator):
                batches.close()
        return self.nothing()

    def nothing(self) -> Rows:
        """No rows."""
        fields = [pa.field(f"c{i}", self.table.columns[i].type) for i in self.columns]
        batch = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in fields], schema=pa.schema(fields))
        return self.comparable(np.zeros(0, np.int64), batch)

    def rows(self, parts: Sequence[tuple[int, pa.RecordBatch]]) -> Rows:
        """Batches, each with the number of its first row, as rows in comparable form."""
        numbers = np.concatenate([np.arange(first, first + x.num_rows, dtype=np.int64) for first, x in parts])
        batch = parts[0][1] if len(parts) == 1 else _joined([x for _, x in parts])
        if self.where is not None:
            kept = self.where(batch)
            if not kept.all():
                numbers, batch = numbers[kept], batch.filter(pa.array(kept))
        return self.comparable(numbers, batch)

    def comparable(self, numbers: I64, batch: pa.RecordBatch) -> Rows:
        """Rows of these numbers in comparable form."""
        return Rows(numbers, batch, tuple(cell.flat(batch.column(cell.name)) for cell in self.cells))


class Rows(Struct, frozen=True):
    """Some rows: int64[n] numbers in their file, values as read, comparable values for each compared pair."""

    numbers: I64
    raw: pa.RecordBatch
    flat: tuple[pa.Array, ...]

    @property
    def count(self) -> int:
        return len(self.numbers)

    def slice(self, start: int, count: int) -> Rows:
        """Shares memory."""
        if start == 0 and count == self.count:
            return self
        flat = tuple(f.slice(start, count) for f in self.flat)
        return Rows(self.numbers[start : start + count], self.raw.slice(start, count), flat)

    def pick(self, mask: encode.BoolArray) -> Rows:
        """Those where bool[n] `mask` is true."""
        if mask.all():
            return self
        arrow = pa.array(mask)
        return Rows(self.numbers[mask], self.raw.filter(arrow), tuple(f.filter(arrow) for f in self.flat))


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Several in a row (at least one)."""
    if len(parts) == 1:
        return parts[0]
    flat = tuple(pa.concat_arrays([p.flat[i] for p in parts]) for i in range(len(parts[0].flat)))
    return Rows(np.concatenate([p.numbers for p in parts]), _joined([p.raw for p in parts]), flat)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    columns = [pa.concat_arrays([b.column(i) for b in batches]) for i in range(batches[0].num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)


class Feed:
    """The rows of one side in order. Use it as a context manager: leaving it stops the reading."""

    def __init__(self, spec: SideSpec, regions: Sequence[Region] | None = None) -> None:
        self.spec = spec
        self._queue: queue.Queue[Rows | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._held: list[Rows] = []
        self._count = 0
        self._ended = False
        self.seen = 0  #: rows that were read, before `where`
        self._thread = threading.Thread(target=self._read, args=(regions,), name="dvk-table-feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            _drain(self._queue)
            self._thread.join(0.02)

    def window(self, count: int, *, least: int | None = None) -> Rows:
        """The next `count` rows, fewer only at the end; or at least `least`, whatever needs no copy.

        They stay until they are dropped.

        Raises:
            DvkError: what reading raised.
        """
        self._fill(count)
        count = min(count, self._count)
        if not count:
            return self.spec.nothing()
        parts, total = 0, 0
        if least is not None and least <= self._held[0].count < count:
            count = self._held[0].count
        while total < count:
            total += self._held[parts].count
            parts += 1
        if parts > 1:
            self._held[:parts] = [join_rows(self._held[:parts])]
        return self._held[0].slice(0, count)

    def at_end(self, count: int) -> bool:
        """Whether there are no rows after the next `count`."""
        self._fill(count + 1)
        return self._count <= count

    def drop(self, count: int) -> None:
        """Be done with the next `count` rows."""
        self._count -= count
        while count:
            first = self._held[0]
            if first.count > count:
                self._held[0] = first.slice(count, first.count - count)
                return
            count -= first.count
            del self._held[0]

    def _fill(self, count: int) -> None:
        while self._count < count and not self._ended:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self._ended = True
            elif item.count:
                self._held.append(item)
                self._count += item.count

    def _read(self, regions: Sequence[Region] | None) -> None:
        try:
            for rows in self._pieces(regions):
                if not self._offer(rows):
                    return
            self._offer(None)
        except BaseException as problem:
            self._offer(problem)

    def _pieces(self, regions: Sequence[Region] | None) -> Iterator[Rows]:
        """Rows in pieces of about the same size, whatever size batches and regions have."""
        small: list[tuple[int, pa.RecordBatch]] = []
        rows = 0
        for first, batch in self.spec.table.batches(self.spec.columns, regions=regions):
            if self._stop.is_set():
                return
            self.seen += batch.num_rows
            if small and (batch.num_rows >= _SMALL_ROWS or rows >= _SMALL_ROWS):
                yield self.spec.rows(small)
                small, rows = [], 0
            if batch.num_rows < _SMALL_ROWS:
                small.append((first, batch))
                rows += batch.num_rows
                continue
            for start in range(0, batch.num_rows, PIECE_ROWS):
                if self._stop.is_set():
                    return
                yield self.spec.rows([(first + start, batch.slice(start, PIECE_ROWS))])
        if small:
            yield self.spec.rows(small)

    def _offer(self, item: Rows | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False


def _drain(items: queue.Queue[Rows | BaseException | None]) -> None:
    while not items.empty():
        items.get_nowait()
