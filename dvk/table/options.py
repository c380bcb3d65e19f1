"""What a comparison is asked to do: identity, equality, which rows and columns, and how much of the machine it may use.

    CompareOptions(key=("id",), tolerance=Tolerance(absolute=0.01), ignore=("updated_*",))

One record, since these travel together from the command line through the comparison to its parts. The defaults are the
strict ones: exact values, every column, every row, a key only where the file or its contents give one.
"""

from __future__ import annotations

from msgspec import Struct, field

from dvk.errors import UsageError
from dvk.table.contract import Tolerance

ALIGN = ("auto", "sequence", "position", "bag")
ON_DUPLICATE = ("bag", "error", "first")
KEY_SOURCES = ("option", "config")

#: The least memory that a comparison of large tables can be held to: what is loaded, batches of both readers on their
#: way and the engine's own fixed parts (measured: 10 million rows of Parquet peak at 550 MiB).
LEAST_MEMORY_BYTES = 640 << 20


class CompareOptions(Struct, frozen=True, kw_only=True):
    """What `dvk.table.compare.compare` is asked.

    Identity:
        key: labels of the columns that identify a row; empty: declared in the file, else inferred, else none.
        key_source: where `key` comes from, for the result: `option` or `config` (dvk.toml).
        infer: whether a key may be inferred at all; without one rows are aligned by content.
        key_strict: refuse to compare by an inferred key or by none.
        verify_key: check over all rows that the key is unique and not null, even where equal parts could be skipped.
        on_dup: of rows with the same key: `bag` (identical copies cancel, the rest is paired in row order), `error`,
            `first` (only the first of each side counts). `error` and `first` read every row.
        align: without a key: `sequence` (order counts), `position`, `bag` (order does not), `auto`.
        max_gap_rows: the most rows that `sequence` aligns; more are compared as a bag, and said to be.

    Equality:
        tolerance: numbers; for dates and times the column's own tolerance, in seconds.
        null_values: texts that count as null, in columns of text.
        ignore_case, ignore_space: of text, case and leading, trailing and repeated white space.
        coerce: compare columns of different kinds (text and numbers, text and dates) by value.
        float_bits: tell -0.0 from 0.0 and NaNs from one another.

    Columns and rows:
        ignore, only: globs on labels; key columns are never left out.
        rename: (label in A, label in B) of columns that are the same.
        where: one SQL expression on labels, applied to both sides.

    Result:
        profile: distributions before and after of each column that changed; reads every row.
        top: how many (old, new) pairs of each column.
        samples: how many duplicated keys are shown.

    Machine:
        memory_bytes: of the whole process, as far as this comparison can hold it; None: half of what there is.
        temp_dir: an existing folder for what does not fit in memory; None: the system's. Left as it was in any case.
        threads: None: as many as there are cores.
    """

    key: tuple[str, ...] = ()
    key_source: str = "option"
    infer: bool = True
    key_strict: bool = False
    verify_key: bool = False
    on_dup: str = "bag"
    align: str = "auto"
    max_gap_rows: int = 1_000_000

    tolerance: Tolerance = field(default_factory=Tolerance)
    null_values: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_space: bool = False
    coerce: bool = False
    float_bits: bool = False

    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    where: str | None = None

    profile: bool = False
    top: int = 5
    samples: int = 3

    memory_bytes: int | None = None
    temp_dir: bytes | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for word, value, allowed in (
            ("align", self.align, ALIGN),
            ("on_dup", self.on_dup, ON_DUPLICATE),
            ("key_source", self.key_source, KEY_SOURCES),
        ):
            if value not in allowed:
                raise UsageError(f"{word} is one of {', '.join(allowed)}, not {value!r}")
        tolerance = self.tolerance
        if not all(value >= 0 for value in (tolerance.absolute, tolerance.relative, *tolerance.columns.values())):
            raise UsageError("a tolerance is 0 or more")
        if self.memory_bytes is not None and self.memory_bytes < LEAST_MEMORY_BYTES:
            raise UsageError(
                f"a comparison needs {LEAST_MEMORY_BYTES >> 20} MiB of memory, not {self.memory_bytes:,} bytes",
                hint="give it more, or leave out the limit: half of what there is is used then",
            )
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is 1 or more, not {self.threads}")
        if self.max_gap_rows < 0 or self.top < 0 or self.samples < 0:
            raise UsageError("max_gap_rows, top and samples are 0 or more")
