"""Comparing what two files hold, where dvk knows their kind: tables by rows and cells, files of tensors by numbers.

The kind is told by the first bytes, else by the suffix, and never by a guess at the content. Tables need pyarrow and
DuckDB, which are an extra; whoever asks for tables without it is told how to get it, and everything else works.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from msgspec import Struct

from dvk.commands.diff_result import PathDiff
from dvk.errors import DvkError
from dvk.table.tensors.compare import compare_tensors
from dvk.table.tensors.files import tensor_format

if TYPE_CHECKING:
    from dvk.table.contract import ReadOptions, Source
    from dvk.table.options import CompareOptions
    from dvk.table.result import TableDiff

_TABLES = (
    b"csv",
    b"tsv",
    b"tab",
    b"psv",
    b"jsonl",
    b"ndjson",
    b"parquet",
    b"pq",
    b"feather",
    b"arrow",
    b"ipc",
    b"arrows",
)
_PACKED = (b"gz", b"zst", b"zstd")
_MAGIC = (b"PAR1", b"PARE", b"ARROW1")


class Contents(Struct, frozen=True, kw_only=True):
    """Which contents are compared, and how; see `dvk.commands.diff.diff`. `cache`: a folder for facts."""

    wanted: bool = True
    tables: bool = False
    key: tuple[str, ...] = ()
    compare: CompareOptions | None = None
    read: ReadOptions | None = None
    cache: bytes | None = None


def compare_files(
    out: PathDiff, a: Source | None, b: Source | None, how: Contents, *, declared: tuple[str, ...], named: bool
) -> None:
    """Compare the contents of two files, one of which may be missing, into `out`. A table takes the sources over.

    Args:
        declared: the key that dvk.toml names for this path.
        named: the user named this file, so that a format that was asked for applies to it.

    Raises:
        TableError: a file is not what its format says. DvkError: `dvk[table]` is not installed.
    """
    # Who says how a file is read says that it is a table.
    forced = named and how.read is not None and bool(how.read.format or how.read.delimiter)
    kinds = {"table" if forced else file_kind(source) for source in (a, b) if source is not None}
    if len(kinds) != 1:
        return  # a table became a model, or neither is anything of which more can be said than its size
    kind = kinds.pop()
    if kind == "tensors":
        out.tensors = compare_tensors(a, b)
    elif kind == "table":
        out.table = _compare_tables(a, b, how, declared)


def file_kind(source: Source) -> str:
    """`table`, `tensors`, or empty for any other file."""
    head = source.read_at(0, min(16, source.size))
    if tensor_format(head, source.name):
        return "tensors"
    parts = source.name.lower().rsplit(b".", 2)
    suffix = parts[-2] if len(parts) > 2 and parts[-1] in _PACKED else parts[-1]
    return "table" if head.startswith(_MAGIC) or (len(parts) > 1 and suffix in _TABLES) else ""


def _compare_tables(a: Source | None, b: Source | None, how: Contents, declared: tuple[str, ...]) -> TableDiff:
    found: TableDiff = tables_module().compare_tables(a, b, how, declared)
    return found


def tables_module() -> ModuleType:
    """What needs pyarrow and DuckDB.

    Raises:
        DvkError: they are not installed.
    """
    try:
        # The one gate to pyarrow and DuckDB, an extra that most verbs do without.
        return importlib.import_module("dvk.commands.diff_tables")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("pyarrow", "duckdb"):
            raise
        raise DvkError(
            f"comparing tables needs {error.name}, which is not installed",
            hint="`pip install 'dvk[table]'`; everything else is compared without it",
        ) from error
