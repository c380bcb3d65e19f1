"""A comparison that is done: numbers at hand, rows on demand. What `compare` returns.

Rows are answered from the engine's table `changed` (`dvk.table.pair.join`) and full values from
`dvk.table.answer.fetch`, a chunk at a time, in an order that is the same on each run: by key (numbers in texts as
numbers), or by position.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct
from pyarrow import types as T

from dvk.errors import UsageError
from dvk.table.answer.cells import Judge
from dvk.table.answer.fetch import Fetch
from dvk.table.contract import Column, Table
from dvk.table.engine import Engine
from dvk.table.pair.join import ADDED, KINDS, MODIFIED, REMOVED
from dvk.table.result import ColumnChange, Cost, Key, Notice, RowChange, RowCounts, SchemaChange, Side

I64 = npt.NDArray[np.int64]

_CHUNK_ROWS = 2048
_BATCH_ROWS = 1 << 14


class Finished(Struct, kw_only=True):
    """See `dvk.table.result.TableDiff`."""

    a: Side
    b: Side
    key: Key
    schema: tuple[SchemaChange, ...]
    rows: RowCounts
    columns: tuple[ColumnChange, ...]
    notices: tuple[Notice, ...]
    complete: bool = True

    engine: Engine
    tables: tuple[Table, Table]
    fetch: tuple[Fetch, Fetch]
    judge: Judge
    key_pairs: tuple[int, ...] = ()
    level: str = "L4"
    rows_skipped: int = 0
    seconds: float = 0.0

    def __enter__(self) -> Finished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def equal(self) -> bool:
        return self.rows.equal and not self.schema

    @property
    def cost(self) -> Cost:
        sources = [table.source for table in self.tables]
        return Cost(
            level=self.level,
            bytes_read=sum(s.bytes_read for s in sources),
            bytes_total=sum(s.size for s in sources),
            rows_decoded=sum(t.rows_decoded for t in self.tables),
            rows_skipped=self.rows_skipped,
            seconds=self.seconds,
        )

    def changes(
        self,
        *,
        kinds: tuple[str, ...] = ("added", "removed", "modified"),
        limit: int | None = None,
        offset: int = 0,
        sort: str = "key",
        full: bool = False,
    ) -> Iterator[RowChange]:
        """Rows one by one. See `dvk.table.result.TableDiff.changes`.

        Raises:
            UsageError: an unknown kind or order.
        """
        if limit is not None and limit <= 0:
            return
        for kind, ar, br in self._chunks(kinds, sort, limit, offset, _CHUNK_ROWS):
            yield from self._row_changes(kind, ar, br, full)

    def changed_rows(self, kind: str) -> Iterator[pa.RecordBatch]:
        """All rows of one kind as Arrow, in key order. See `dvk.table.result.TableDiff.changed_rows`."""
        for _, ar, br in self._chunks((kind,), "key", None, 0, _BATCH_ROWS):
            columns: list[pa.Array] = []
            names: list[str] = []
            a = None if kind == "added" else self._take(0, ar)
            b = None if kind == "removed" else self._take(1, br)
            for name, rows, side in (("a_row", ar, a), ("b_row", br, b)):
                if side is not None:
                    names.append(name)
                    columns.append(pa.array(rows))
            for name, column in self._layout(kind, a, b):
                names.append(name)
                columns.append(column)
            yield pa.RecordBatch.from_arrays(columns, names=names)

    def close(self) -> None:
        """Remove the temporary files and close both tables. May be called twice."""
        for fetch in self.fetch:
            fetch.close()
        self.engine.close()
        for table in self.tables:
            table.close()

    def _layout(self, kind: str, a: pa.RecordBatch | None, b: pa.RecordBatch | None) -> Iterator[tuple[str, pa.Array]]:
        if kind == "modified":
            assert a is not None and b is not None
            changed = {c.name for c in self.columns if c.changed}
            for i, pair in enumerate(self.judge.matched.pairs):
                if i in self.key_pairs:
                    yield pair.label, b.column(self.judge.b[i].name)
            for i, pair in enumerate(self.judge.matched.pairs):
                if pair.label in changed:
                    yield f"{pair.label}__a", a.column(self.judge.a[i].name)
                    yield f"{pair.label}__b", b.column(self.judge.b[i].name)
            return
        side, batch = (0, a) if b is None else (1, b)
        assert batch is not None
        for column in self._columns(side):
            yield column.label, batch.column(f"c{column.index}")

    def _columns(self, side: int) -> list[Column]:
        """All columns of one side that take part, in file order."""
        matched = self.judge.matched
        alone = (matched.removed, matched.added)[side]
        both = [pair.b if side else pair.a for pair in matched.pairs]
        return sorted([*both, *alone], key=lambda c: c.index)

    def _take(self, side: int, rows: I64) -> pa.RecordBatch:
        return self.fetch[side].take(rows)

    def _chunks(
        self, kinds: tuple[str, ...], sort: str, limit: int | None, offset: int, size: int
    ) -> Iterator[tuple[I64, I64, I64]]:
        """(kind, row in A, row in B) in order, -1 where there is none."""
        for kind in kinds:
            if kind not in KINDS:
                raise UsageError(f"no kind of change is called {kind!r}", hint="kinds: " + ", ".join(KINDS))
        if sort not in ("key", "position"):
            raise UsageError(f"rows are sorted by key or position, not by {sort!r}")
        if not kinds:
            return
        wanted = ", ".join(str(KINDS.index(kind)) for kind in kinds)
        only = f" limit {limit}" if limit is not None else ""
        answer = self.engine.batches(
            "select kind::bigint kind, coalesce(ar, -1) ar, coalesce(br, -1) br from changed"
            f" where kind in ({wanted}) order by {self._order(sort)}{only} offset {offset}",
            rows=size,
        )
        for batch in answer:
            for start in range(0, batch.num_rows, size):
                part = batch.slice(start, size)
                yield tuple(part.column(n).to_numpy(zero_copy_only=False) for n in range(3))

    def _order(self, sort: str) -> str:
        parts = []
        if sort == "key":
            for n, i in enumerate(self.key_pairs):
                form = self.judge.matched.pairs[i].form
                if form is not None and T.is_string(form.type):
                    parts.append(f"try_cast(k{n} as hugeint) nulls last")
                parts.append(f"k{n} nulls last")
        return ", ".join([*parts, "coalesce(br, ar)", "kind", "ar", "br"])

    def _row_changes(self, kinds: I64, ar: I64, br: I64, full: bool) -> Iterator[RowChange]:
        has_a, has_b = ar >= 0, br >= 0
        place_a, place_b = np.cumsum(has_a) - 1, np.cumsum(has_b) - 1
        sides = []
        for side, rows in ((0, ar[has_a]), (1, br[has_b])):
            batch = self._take(side, rows) if len(rows) else None
            columns = self._columns(side)
            sides.append(
                {}
                if batch is None
                else {c.index: self.fetch[side].python(batch.column(f"c{c.index}")) for c in columns}
            )
        modified = np.flatnonzero(kinds == MODIFIED)
        differs: dict[int, list[int]] = {int(k): [] for k in modified}
        if len(modified):
            a, b = self._take(0, ar[modified]), self._take(1, br[modified])
            for i, difference in self.judge.differences(a, b):
                for k in modified[difference.changed].tolist():
                    differs[k].append(i)
        pairs = self.judge.matched.pairs
        for k, kind in enumerate(kinds.tolist()):
            i, j = int(place_a[k]), int(place_b[k])
            if kind == ADDED:
                key = {pairs[p].label: sides[1][pairs[p].b.index][j] for p in self.key_pairs}
            else:
                key = {pairs[p].label: sides[0][pairs[p].a.index][i] for p in self.key_pairs}
            cells, shown = {}, {}
            if kind == MODIFIED:
                for p in differs[k]:
                    cells[pairs[p].label] = (sides[0][pairs[p].a.index][i], sides[1][pairs[p].b.index][j])
                if full:
                    shown = {c.label: sides[1][c.index][j] for c in self._columns(1) if c.label not in cells}
            elif kind == REMOVED:
                shown = {c.label: sides[0][c.index][i] for c in self._columns(0)}
            else:
                shown = {c.label: sides[1][c.index][j] for c in self._columns(1)}
            yield RowChange(
                KINDS[kind],
                int(ar[k]) if ar[k] >= 0 else None,
                int(br[k]) if br[k] >= 0 else None,
                key,
                cells,
                shown,
            )
