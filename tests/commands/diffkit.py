"""A finished comparison without an engine, so that forms are tested for what they do with it, whatever it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
from msgspec.structs import replace

from dvk.commands.diff_result import DiffResult, Item, PathDiff
from dvk.table.contract import Column
from dvk.table.result import (
    ColumnChange,
    Cost,
    Distribution,
    Key,
    Movement,
    Notice,
    RowChange,
    RowCounts,
    SchemaChange,
    Side,
)

_COST = Cost("L1", 12_000_000, 2_060_000_000, 20_000, 10_480_000, 0.52)


@dataclass
class FakeDiff:
    """A `TableDiff` that holds its rows."""

    a: Side
    b: Side
    key: Key
    schema: tuple[SchemaChange, ...]
    rows: RowCounts
    columns: tuple[ColumnChange, ...]
    notices: tuple[Notice, ...]
    complete: bool
    held: tuple[RowChange, ...]
    cost: Cost = _COST
    closed: int = 0

    @property
    def equal(self) -> bool:
        return self.rows.equal and not self.schema and not any(c.changed for c in self.columns)

    def changes(
        self,
        *,
        kinds: tuple[str, ...] = ("added", "removed", "modified"),
        limit: int | None = None,
        offset: int = 0,
        sort: str = "key",
        full: bool = False,
    ) -> Iterator[RowChange]:
        assert not self.closed
        found = (c for c in self.held if c.kind in kinds)
        for change in islice(found, offset, None if limit is None else offset + limit):
            yield change if full or change.kind != "modified" else replace(change, values={})

    def changed_rows(self, kind: str) -> Iterator[pa.RecordBatch]:
        return iter(())

    def close(self) -> None:
        self.closed += 1


def modified(key: dict[str, Any], cells: dict[str, tuple[Any, Any]], at: int = 0) -> RowChange:
    return RowChange("modified", at, at, key, cells, {**key, "unchanged": "u"})


def added(key: dict[str, Any], values: dict[str, Any], at: int = 0) -> RowChange:
    return RowChange("added", None, at, key, {}, {**key, **values})


def removed(key: dict[str, Any], values: dict[str, Any], at: int = 0) -> RowChange:
    return RowChange("removed", at, None, key, {}, {**key, **values})


def fake(*held: RowChange, **more: Any) -> FakeDiff:
    """A comparison with these rows; `more` replaces fields."""
    counts = {kind: sum(c.kind == kind for c in held) for kind in ("added", "removed", "modified", "moved")}
    cells: dict[str, list[tuple[Any, Any]]] = {}
    for change in held:
        for label, pair in change.cells.items():
            cells.setdefault(label, []).append(pair)
    columns = tuple(
        ColumnChange(label, len(pairs), top=tuple((pair, pairs.count(pair)) for pair in list(dict.fromkeys(pairs))[:5]))
        for label, pairs in cells.items()
    )
    key = tuple(held[0].key) if held else ()
    rows = RowCounts(
        100,
        100 + counts["added"] - counts["removed"],
        counts["added"],
        counts["removed"],
        counts["modified"],
        100 - counts["removed"] - counts["modified"],
        counts["moved"],
    )
    made = FakeDiff(
        Side("t.csv at HEAD", rows.a, "csv", "ab" * 32),
        Side("t.csv in the workspace", rows.b, "csv"),
        Key(key, "config" if key else "none", "key" if key else "sequence", "partial"),
        (),
        rows,
        columns,
        (),
        True,
        held,
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def typical() -> FakeDiff:
    """One of everything."""
    text, whole = pa.string(), pa.int32()
    return fake(
        modified({"id": 7}, {"price": (Decimal("1.10"), Decimal("1.20"))}, 6),
        modified({"id": 8}, {"price": (Decimal("1.10"), Decimal("1.20")), "note": (None, "")}, 7),
        added({"id": 9}, {"price": Decimal("2.00"), "note": "new"}, 100),
        removed({"id": 3}, {"price": Decimal("0.50"), "note": "old"}, 2),
        schema=(
            SchemaChange("added", b=Column(3, "extra", whole)),
            SchemaChange("removed", a=Column(3, "gone", text)),
            SchemaChange("renamed", Column(4, "old", text), Column(4, "new", text), 0.97),
            SchemaChange("retyped", Column(0, "id", whole), Column(0, "id", pa.int64())),
            SchemaChange("reordered", Column(1, "x", whole), Column(2, "x", whole)),
            SchemaChange("nullability", Column(1, "x", whole), Column(1, "x", whole, nullable=False)),
        ),
        columns=(
            ColumnChange(
                "price",
                2,
                formatting_only=1,
                top=(((Decimal("1.10"), Decimal("1.20")), 2),),
                movement=Movement(2, 0.1, 0.1, 0.1),
                before=Distribution(100, 1, 40, 0.5, 9.5, 4.25, 1.5, (1.0, 2.0, 4.0, 6.0, 9.0), ((1.1, 9),)),
                after=Distribution(100, 0, 41, 0.5, float("inf"), None, None, (), ()),
            ),
            ColumnChange("note", 1, null_to_value=1, top=(((None, ""), 1),)),
        ),
        notices=(Notice("duplicate-keys", "2 rows have a key that another row has"),),
    )


def result_of(*tables: FakeDiff, name: bytes = b"data/t.csv", **more: Any) -> DiffResult:
    """A result with a path for each table."""
    out = DiffResult("HEAD", "workspace")
    for i, table in enumerate(tables):
        path = name if i == 0 else b"data/t%d.csv" % i
        out.paths.append(
            PathDiff(
                path,
                "changed",
                Item("file", 1_020_000_000, 1, bytes([i]) * 32),
                Item("file", 1_040_000_000, 1),
                new_bytes=27_200_000,
                table=table,
            )
        )
    for field, value in more.items():
        setattr(out, field, value)
    return out
