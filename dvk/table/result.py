"""What changed between two versions of a table: the record that a diff returns.

    with compare(table_a, table_b, options) as diff:
        diff.rows.modified                 # 10_412
        diff.columns[0].top                # ((("1.10", "1.20"), 31), ...)
        for change in diff.changes(limit=20): ...
        diff.changed_rows("modified")      # Arrow batches, as many as there are

Counts are exact whenever `complete` is true. Rows are read when they are asked for: a diff of a hundred million rows
holds numbers and a temporary file, not rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pyarrow as pa
from msgspec import Struct

from dvk.table.contract import Column, Notice

__all__ = [
    "FORMAT",
    "ColumnChange",
    "Cost",
    "Distribution",
    "Key",
    "Movement",
    "Notice",
    "RowChange",
    "RowCounts",
    "SchemaChange",
    "Side",
    "TableDiff",
]

#: The published name and version of the JSON form (docs/format/table-diff.schema.json).
FORMAT = "dvk.table-diff/1"


class Side(Struct, frozen=True):
    """One of the two versions."""

    label: str
    rows: int
    format: str
    id: str | None = None


class Key(Struct, frozen=True):
    """How rows were identified, and what was seen of it.

    `source`: `option`, `config` (dvk.toml), `file`, `inferred` or `none`. `align`: `key`, or without a key `sequence`,
    `position` or `bag`. `checked`: `full` when uniqueness was checked over all rows, `partial` when equal parts were
    skipped, `no`. `duplicates` and `nulls`: (A, B) rows whose key occurs before, and rows with a null in the key, among
    the rows that were checked; `samples`: a few duplicated keys, as text.
    """

    columns: tuple[str, ...]
    source: str
    align: str
    checked: str
    duplicates: tuple[int, int] = (0, 0)
    nulls: tuple[int, int] = (0, 0)
    samples: tuple[str, ...] = ()


class SchemaChange(Struct, frozen=True):
    """`kind`: `added`, `removed`, `renamed`, `retyped`, `reordered`, `nullability` or `format`.

    `score`: of a rename that was inferred, the share of equal values.
    """

    kind: str
    a: Column | None = None
    b: Column | None = None
    score: float | None = None


class RowCounts(Struct, frozen=True):
    """Rows of each side and what became of them.

    a = removed + modified + unchanged, b = added + modified + unchanged; moved rows are among the unchanged.
    """

    a: int
    b: int
    added: int
    removed: int
    modified: int
    unchanged: int
    moved: int = 0

    @property
    def equal(self) -> bool:
        return not (self.added or self.removed or self.modified or self.moved)


class Movement(Struct, frozen=True):
    """Of a numeric column over the modified cells: differences new - old, as float64.

    Between integers and between decimals each difference is exact before it is rounded to float64; numbers in texts are
    rounded first. The mean is rounded sums divided: right to some 15 digits, and not a value to test for equality.
    """

    count: int
    mean: float
    largest_rise: float
    largest_fall: float


class Distribution(Struct, frozen=True):
    """Of one column on one side, over all rows: exact counts, approximate quantiles and distinct values."""

    rows: int
    nulls: int
    distinct: int
    minimum: Any
    maximum: Any
    mean: float | None
    deviation: float | None
    quantiles: tuple[Any, ...]  # 5, 25, 50, 75, 95 %
    top: tuple[tuple[Any, int], ...]


class ColumnChange(Struct, frozen=True):
    """What changed in one column, over rows that are on both sides."""

    name: str
    changed: int
    within_tolerance: int = 0
    formatting_only: int = 0
    null_to_value: int = 0
    value_to_null: int = 0
    top: tuple[tuple[tuple[Any, Any], int], ...] = ()
    movement: Movement | None = None
    before: Distribution | None = None
    after: Distribution | None = None


class Cost(Struct, frozen=True):
    """What the answer took. `level`: see `dvk.table.contract.Plan`."""

    level: str
    bytes_read: int
    bytes_total: int
    rows_decoded: int
    rows_skipped: int
    seconds: float


class RowChange(Struct, frozen=True):
    """One row. `kind`: `added`, `removed`, `modified` or `moved`.

    Rows are counted from 0 as in the file, the header not counted. `key`: label -> value; `cells`: label -> (old, new)
    of what differs; `values`: label -> value of an added or removed row. Values of JSON Lines are `JsonText`, and None
    where a row does not have the field.
    """

    kind: str
    a_row: int | None
    b_row: int | None
    key: dict[str, Any]
    cells: dict[str, tuple[Any, Any]]
    values: dict[str, Any]


class TableDiff(Protocol):
    """A finished comparison. Use it as a context manager: it holds a temporary file until it is closed."""

    a: Side
    b: Side
    key: Key
    schema: tuple[SchemaChange, ...]
    rows: RowCounts
    columns: tuple[ColumnChange, ...]  # those with a change, most changed first; then those within tolerance
    notices: tuple[Notice, ...]
    complete: bool

    @property
    def equal(self) -> bool:
        """No row, no cell and no column differs."""

    @property
    def cost(self) -> Cost:
        """So far: asking for rows reads more."""

    def changes(
        self,
        *,
        kinds: tuple[str, ...] = ("added", "removed", "modified"),
        limit: int | None = None,
        offset: int = 0,
        sort: str = "key",
        full: bool = False,
    ) -> Iterator[RowChange]:
        """Rows one by one, in key order (`sort`: `key` or `position`).

        `full`: also unchanged cells of modified rows, in `values`.
        """

    def changed_rows(self, kind: str) -> Iterator[pa.RecordBatch]:
        """All rows of one kind as Arrow, under the user's column labels.

        Modified rows have `a_row`, `b_row`, the key columns, and `<label>__a`, `<label>__b` for each compared column
        with a change.
        """

    def close(self) -> None:
        """Remove the temporary file and close both tables."""
