"""Two sources of bytes to the difference of two tables. What imports this needs pyarrow and DuckDB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from msgspec.structs import replace

from dvk.commands.diff_content import Contents
from dvk.table.cache import Cache
from dvk.table.compare import compare
from dvk.table.contract import I64, Column, Plan, ReadOptions, Region, Source, Table, Tolerance
from dvk.table.open import open_table
from dvk.table.options import CompareOptions
from dvk.table.result import Notice, TableDiff
from dvk.table.skip.plan import plan
from dvk.table.source import BytesSource


class NoRows:
    """The table that is not there, of a file that was added or removed: the columns of the other side and no row."""

    def __init__(self, like: Table) -> None:
        self._like = like
        self._source = BytesSource(b"", name=like.source.name, label="nothing")

    @property
    def source(self) -> Source:
        return self._source

    @property
    def format(self) -> str:
        return self._like.format

    @property
    def is_text(self) -> bool:
        return self._like.is_text

    @property
    def columns(self) -> tuple[Column, ...]:
        return self._like.columns

    @property
    def declared_key(self) -> tuple[str, ...]:
        return self._like.declared_key

    @property
    def notices(self) -> tuple[Notice, ...]:
        return ()

    def count_rows(self) -> int:
        return 0

    def batches(
        self,
        columns: Sequence[int],  # noqa: ARG002
        *,
        regions: Sequence[Region] | None = None,  # noqa: ARG002
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        return iter(())

    def take(self, rows: I64, columns: Sequence[int]) -> pa.Table:  # noqa: ARG002
        fields = [pa.field(f"c{i}", self.columns[i].type) for i in columns]
        return pa.schema(fields).empty_table()

    @property
    def rows_decoded(self) -> int:
        return 0

    def close(self) -> None:
        self._source.close()


def compare_tables(a: Source | None, b: Source | None, how: Contents, declared: tuple[str, ...]) -> TableDiff:
    """The difference of two tables, one of which may be missing; closing it closes the sources.

    Raises:
        TableError: a file is no table as its format says, or they cannot be compared as asked.
    """
    read = how.read or ReadOptions()
    options = _options(how, declared)
    cache = Cache(how.cache) if how.cache else None
    opened: list[Table] = []
    try:
        if a is not None:
            opened.append(open_table(a, read, cache=cache))
        if b is not None:
            opened.append(open_table(b, read, like=opened[0] if opened else None, cache=cache))
        left: Table = opened[0] if a is not None else NoRows(opened[0])
        right: Table = opened[-1] if b is not None else NoRows(opened[0])
        chosen = Plan.everything(left, right) if a is None or b is None else plan(left, right, cache=cache)
        return compare(left, right, options, plan=chosen)
    except BaseException:
        for table in opened:
            table.close()
        raise


def _options(how: Contents, declared: tuple[str, ...]) -> CompareOptions:
    options = how.compare or CompareOptions()
    if how.key:
        return replace(options, key=how.key, key_source="option")
    if not options.key and declared:
        return replace(options, key=declared, key_source="config")
    return options


def table_options(
    *, tolerance: tuple[float, float, dict[str, float]], read: Mapping[str, Any], compare: Mapping[str, Any]
) -> tuple[CompareOptions, ReadOptions]:
    """The records for options by their names, for callers that cannot import these.

    Args:
        tolerance: absolute, relative, and of single columns.

    Raises:
        UsageError: one has a value that makes no sense.
    """
    options = CompareOptions(tolerance=Tolerance(*tolerance), **compare)
    return options, ReadOptions(**read)
