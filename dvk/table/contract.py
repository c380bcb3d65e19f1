"""What the parts of a table diff promise each other: a source of bytes, a table, and what two tables need not read.

A diff asks three questions, and each has one home. *Where are the bytes* (`Source`: a plain file, a file in the local
store, ranges of a remote). *What are the rows* (`Table`: exact values, nothing guessed, rows numbered from 0 in file
order). *What do both versions share* (`Plan`: rows that are equal on both sides because their bytes are, found without
decoding them). The comparison in `dvk.table.compare` works on these alone, so a format is one reader and one planner.

Values travel as Arrow record batches, whose columns are called `c0`, `c1`, ... by position in the table: the engine
must never see a user's column name, since engines fold case and rename duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct, field

from dvk.store.pages import Chunks

I64 = npt.NDArray[np.int64]


class Source(Protocol):
    """The bytes of one version of one file, at random access. Safe to use from many threads."""

    @property
    def label(self) -> str:
        """For messages: `data.csv at v1.0`, `data.csv in the workspace`."""

    @property
    def name(self) -> bytes:
        """The file's own name, for its suffixes."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def id(self) -> bytes | None:
        """The file id (32 bytes) where it is known without reading."""

    @property
    def path(self) -> bytes | None:
        """An absolute path of a plain file with exactly these bytes, for native readers; None if there is none."""

    @property
    def bytes_read(self) -> int:
        """Raw bytes of content that were read or decoded so far."""

    def chunks(self) -> Chunks | None:
        """The recipe: chunk ids and lengths in file order. None where nothing is known (a plain file)."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly the bytes [offset, offset + length), which must lie inside the file.

        Verified by hash where they come from a store.

        Raises:
            DataMissing, Corrupt, StorageError, RemoteUnreachable: as the store does.
        """

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These (offset, length) will be read soon, in this order: where reading takes a while it may begin now."""

    def close(self) -> None:
        """Give back descriptors and caches."""


class Notice(Struct, frozen=True):
    """Something that the reader of a result has to know; `code` is stable."""

    code: str
    message: str


class Column(Struct, frozen=True):
    """A column as the file declares it. Two may share a name: `occurrence` tells them apart (0 for the first).

    `mark` stands between a repeated name and its number, and is such that labels of a table are never equal.
    """

    index: int
    name: str
    type: pa.DataType
    occurrence: int = 0
    nullable: bool = True
    mark: str = "#"

    @property
    def label(self) -> str:
        """The name as it is shown and as options name it: `x`, the second one `x#2`."""
        return self.name if self.occurrence == 0 else f"{self.name}{self.mark}{self.occurrence + 1}"

    @property
    def identity(self) -> tuple[str, int]:
        """By which columns of two tables correspond. Labels do not say it: the mark depends on the other names."""
        return self.name, self.occurrence


def columns_of(fields: Iterable[tuple[str, pa.DataType, bool]]) -> tuple[Column, ...]:
    """Columns of these (name, type, whether nullable), repeated names numbered.

    >>> [c.label for c in columns_of((name, pa.string(), True) for name in ("x", "x", "x#2"))]
    ['x', 'x##2', 'x#2']
    """
    fields = list(fields)
    counts = Counter(name for name, _, _ in fields)
    mark = "#"
    while any(f"{name}{mark}{k}" in counts for name, n in counts.items() if n > 1 for k in range(2, n + 1)):
        mark += "#"
    if len(counts) == len(fields):
        return tuple(Column(index, name, kind, 0, nullable) for index, (name, kind, nullable) in enumerate(fields))
    seen: Counter[str] = Counter()
    out = []
    for index, (name, kind, nullable) in enumerate(fields):
        out.append(Column(index, name, kind, seen[name], nullable, mark))
        seen[name] += 1
    return tuple(out)


class Region(Struct, frozen=True):
    """A run of rows of one table: [first, first + rows)."""

    first: int
    rows: int


class Table(Protocol):
    """One version of a table. Every value is exactly what the file says: text formats give text."""

    @property
    def source(self) -> Source:
        """Where it comes from."""

    @property
    def format(self) -> str:
        """`csv`, `jsonl`, `parquet` or `arrow`."""

    @property
    def is_text(self) -> bool:
        """Whether values are text without a type of their own (CSV and TSV)."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """In file order."""

    @property
    def declared_key(self) -> tuple[str, ...]:
        """Labels of the columns that the file itself declares as identity (pandas index metadata), else empty."""

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What was decided or left out in reading; grows while rows are read, so ask at the end."""

    def count_rows(self) -> int:
        """Rows of the whole table, counted by the reader and never by the comparison."""

    def batches(
        self, columns: Sequence[int], *, regions: Sequence[Region] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row, batch) in file order; the batch has one column `c<index>` for each of `columns`.

        `regions`: only these rows (ascending, disjoint); None: all. A batch holds at most about 64 MiB.

        Raises:
            TableError: the bytes are not what the format says; names file, version, byte offset and line or row.
        """

    def take(self, rows: I64, columns: Sequence[int]) -> pa.Table:
        """The values of these rows (ascending, distinct), one column `c<index>` for each of `columns`.

        Reads only near them.
        """

    @property
    def rows_decoded(self) -> int:
        """Rows whose values were decoded so far, counted once for each time."""

    def close(self) -> None:
        """Close the source too."""


class Aligned(Struct, frozen=True):
    """Rows that correspond one to one by position, because the other columns of both runs are the same bytes.

    `a` and `b` have the same number of rows; `columns` are pairs (index in A, index in B) that may differ.
    """

    a: Region
    b: Region
    columns: tuple[tuple[int, int], ...]


class Plan(Struct, frozen=True):
    """What has to be read to compare two tables; everything else is equal, row for row, as a bag, on both sides.

    `level`: `L0` same file, `L1` shared chunks of a text, `L2` shared column chunks, `L3` segment index, `L4`
    everything is read. `skipped` rows of each side are equal and in neither region list, nor are those of `aligned`.
    Exact for a keyed diff: for every key, the counts of equal rows cancel. `ordered`: the skipped rows also come in
    the same order on both sides, row n of A's with row n of B's; without it, only a diff by key or as a bag can use
    the plan.
    """

    level: str
    a: tuple[Region, ...]
    b: tuple[Region, ...]
    aligned: tuple[Aligned, ...] = ()
    skipped: int = 0
    ordered: bool = False

    @classmethod
    def everything(cls, a: Table, b: Table) -> Plan:
        """Nothing is known to be equal."""
        return cls("L4", (Region(0, a.count_rows()),), (Region(0, b.count_rows()),))


class ReadOptions(Struct, frozen=True):
    """How text is read. `None` means: as the file itself says, by strict rules, never by a guess on values."""

    format: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    header: bool = True
    null_values: tuple[str, ...] = ()
    ragged: str = "error"  # "error", "pad" or "skip"
    temp_dir: bytes | None = None  # for what has to be expanded first; by default where the system keeps such files


class Tolerance(Struct, frozen=True):
    """|a - b| <= max(absolute, relative * max(|a|, |b|)); `columns` override both by label."""

    absolute: float = 0.0
    relative: float = 0.0
    columns: dict[str, float] = field(default_factory=dict)
