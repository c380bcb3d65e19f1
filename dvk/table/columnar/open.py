"""Tables of Parquet and Arrow files: which of them a file is, by its first bytes.

    table = open_columnar(FileSource(b"train.parquet"))
    table.columns[0].type, table.count_rows()
    for first, batch in table.batches([0, 3], regions=[Region(1000, 50)]): ...

What a magic cannot mean (Feather version 1, a footer that is encrypted) is refused by its name.
"""

from __future__ import annotations

from dvk.errors import TableError
from dvk.table.broken import broken
from dvk.table.columnar.arrow import ArrowFile, ArrowStream
from dvk.table.columnar.parquet import ParquetTable
from dvk.table.columnar.table import ARROW_MAGIC, PARQUET_MAGIC
from dvk.table.contract import Source, Table

_ENCRYPTED_MAGIC = b"PARE"
_FEATHER_1_MAGIC = b"FEA1"
_STREAM_MAGIC = b"\xff\xff\xff\xff"


def is_columnar(head: bytes) -> bool:
    """Whether `open_columnar` reads a file that begins with these 8 bytes, or refuses it by its name."""
    return head.startswith((PARQUET_MAGIC, _ENCRYPTED_MAGIC, ARROW_MAGIC, _FEATHER_1_MAGIC, _STREAM_MAGIC))


def open_columnar(source: Source) -> Table:
    """The table in a Parquet file, an Arrow file (Feather version 2) or an Arrow stream, by its magic.

    Raises:
        TableError: it is none of them, cut short, encrypted, or broken.
    """
    head = source.read_at(0, min(8, source.size))
    if head.startswith(PARQUET_MAGIC):
        return ParquetTable(source)
    if head.startswith(ARROW_MAGIC):
        return ArrowFile(source)
    if head.startswith(_STREAM_MAGIC):
        return ArrowStream(source)
    if head.startswith(_ENCRYPTED_MAGIC):
        raise TableError(
            "is Parquet with an encrypted footer",
            subject=source.label,
            hint="dvk holds no keys: decrypt it first, or compare what it was made from",
        )
    if head.startswith(_FEATHER_1_MAGIC):
        raise TableError(
            "is Feather version 1, which has been out of use since 2020",
            subject=source.label,
            hint="write it again: `pyarrow.feather.write_feather(pyarrow.feather.read_table(old), new)`",
        )
    raise broken("is neither a Parquet nor an Arrow file", source.label)
