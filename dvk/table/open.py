"""Which reader a file gets: by its first bytes, else by its suffix, else it is refused by name.

A picture named `notes` must not be read as a table of one strange column, and a Parquet file named `.csv` is Parquet.

    with closing(open_table(FileSource(b"prices.csv.gz"))) as table:
        table.count_rows()
"""

from __future__ import annotations

from functools import partial

from dvk.errors import TableError, UsageError
from dvk.table.broken import broken
from dvk.table.cache import Cache
from dvk.table.columnar.open import open_columnar
from dvk.table.contract import ReadOptions, Source, Table
from dvk.table.text.csv import open_csv
from dvk.table.text.jsonl import open_jsonl
from dvk.table.text.spool import open_text, packing
from dvk.table.text.table import TextTable

AS_IT_IS = ReadOptions()
_CSV = (b"csv", b"tsv", b"tab", b"psv")
_JSONL = (b"jsonl", b"ndjson")
_COLUMNAR = (b"parquet", b"pq", b"arrow", b"arrows", b"feather", b"ipc")
_FORMATS = ("csv", "tsv", "psv", "jsonl", "parquet", "arrow")
_PACKED = {b"gz": "gzip", b"zst": "zstd"}
_RAGGED = ("error", "pad", "skip")


def open_table(
    source: Source, options: ReadOptions = AS_IT_IS, *, like: Table | None = None, cache: Cache | None = None
) -> Table:
    """The table in `source`. Closing the table closes the source; a failure does not.

    `like`: the other side of a comparison, whose delimiter is used where this file leaves it open. `cache`: what was
    found out about versions before; the fields of JSON lines take a pass over the file.

    Raises:
        TableError: it is no table, or broken.
        UsageError: an option makes no sense.
    """
    _check(options)
    kind = table_kind(source, options)
    if kind in _COLUMNAR:
        return open_columnar(source)
    text_of = partial(open_text, source, encoding=options.encoding, directory=options.temp_dir)
    named = source.name.lower().rpartition(b".")[2]
    if named in (b"gz", b"zst") and source.size and packing(source) is None:
        raise broken(f"it is named .{named.decode()} and is no {_PACKED[named]} data", source.label)
    if kind in _JSONL:
        return open_jsonl(source, text_of, options, cache=cache)
    other = like if isinstance(like, TextTable) else None
    return open_csv(source, text_of, options, suffix=kind, like=other)


def table_kind(source: Source, options: ReadOptions = AS_IT_IS) -> bytes:
    """The suffix that says how to read it: `csv`, `tsv`, `psv`, `jsonl`, `parquet`, `arrow`, ...

    Raises:
        TableError: it is no table as far as first bytes and name tell.
    """
    head = source.read_at(0, min(6, source.size))
    if head[:4] == b"PAR1" or head[:4] == b"PARE":
        return b"parquet"
    if head == b"ARROW1":
        return b"arrow"
    if head[:4] == b"FEA1":
        return b"feather"
    if options.format is not None:
        return options.format.encode()
    suffix = table_suffix(source.name)
    if suffix is None and options.delimiter is not None:
        return b"csv"  # who names a delimiter says that it is delimited
    if suffix is None:
        raise TableError(
            "it is not a table that dvk knows: neither its first bytes nor its name say so",
            subject=source.label,
            hint="for text, say `--input-format csv` or `--delimiter`",
        )
    return suffix


def table_suffix(name: bytes) -> bytes | None:
    """The suffix of a name that promises a table, `.gz` and `.zst` set aside, lower case; else None."""
    stem, dot, suffix = name.lower().rpartition(b".")
    if dot and suffix in (b"gz", b"zst"):
        stem, dot, suffix = stem.rpartition(b".")
        if suffix in _COLUMNAR:
            return None
    return suffix if dot and suffix in _CSV + _JSONL + _COLUMNAR else None


def _check(options: ReadOptions) -> None:
    if options.format is not None and options.format not in _FORMATS:
        raise UsageError(f"there is no table format {options.format!r}", hint="one of " + ", ".join(_FORMATS))
    if options.ragged not in _RAGGED:
        raise UsageError(f"--ragged is {', '.join(_RAGGED)}, not {options.ragged!r}")
