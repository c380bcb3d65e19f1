"""What the tests of text tables share: CSV written in every legal way, a slow reader to compare with, tiny chunks.

table = open_csv(write_csv(rows, random.Random(1)), chunk_mean=8)     # chunk borders everywhere
assert rows_of(table) == rows
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from dvk.store.pages import Chunks
from dvk.table.contract import ReadOptions, Region, Table
from dvk.table.open import open_table
from dvk.table.source import BytesSource
from dvk.table.text.table import TextTable

Row = tuple[str | None, ...]


class Malformed(Exception):
    """What the slow reader makes of a text that is no table."""


def content_chunks(data: bytes, *, mean: int) -> Chunks:
    """Chunks cut where the four bytes before say so, as small as a byte: versions share them."""
    ends = [i for i in range(1, len(data)) if zlib.crc32(data[max(0, i - 4) : i]) % mean == 0]
    return chunks_at(data, ends)


def chunks_at(data: bytes, ends: Sequence[int]) -> Chunks:
    """The recipe of `data` cut before each of `ends`."""
    bounds = sorted({0, len(data), *ends})
    parts = [data[a:b] for a, b in itertools.pairwise(bounds)]
    ids = b"".join(blake3(part).digest() for part in parts)
    return Chunks(np.frombuffer(ids, np.uint8).reshape(-1, 32), np.array([len(p) for p in parts], np.uint32))


def stored(data: bytes, *, name: bytes = b"t.csv", chunk_mean: int = 0, label: str | None = None) -> BytesSource:
    """A version as a store has it: with its id and its recipe (`chunk_mean` 0: without)."""
    if not chunk_mean:
        return BytesSource(data, name=name, label=label)
    chunks = content_chunks(data, mean=chunk_mean)
    return BytesSource(data, name=name, label=label, id=blake3(data).digest(), chunks=chunks)


def open_text_table(
    data: bytes,
    *,
    name: bytes = b"t.csv",
    chunk_mean: int = 0,
    unit_bytes: int = 0,
    options: ReadOptions = ReadOptions(),  # noqa: B008
) -> TextTable:
    """A table of text, parsed in pieces of about `unit_bytes`."""
    table = open_table(stored(data, name=name, chunk_mean=chunk_mean), options)
    assert isinstance(table, TextTable)
    if unit_bytes:
        table._unit_bytes = unit_bytes
    return table


def rows_of(table: Table, regions: Sequence[Region] | None = None) -> list[Row]:
    """All rows, or those of `regions`; checks the numbers that the batches carry."""
    out: list[Row] = []
    wanted = [Region(0, table.count_rows())] if regions is None else regions
    numbers = [n for region in wanted for n in range(region.first, region.first + region.rows)]
    for first, batch in table.batches(range(len(table.columns)), regions=regions):
        assert numbers[len(out)] == first
        assert batch.schema.names == [f"c{c.index}" for c in table.columns]
        out += list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    assert len(out) == len(numbers)
    return out


def difference(a: Sequence[Row], b: Sequence[Row]) -> tuple[Counter[Row], Counter[Row]]:
    """What is only in `a`, and only in `b`, as bags."""
    one, other = Counter(a), Counter(b)
    return one - other, other - one


def write_csv(
    rows: Sequence[Row], source: random.Random, *, delimiter: str = ",", end: str = "\n", last: bool = True
) -> bytes:
    """The rows as text, each field quoted where it must be and else as chance has it; null is an unquoted nothing."""

    def field(value: str | None) -> str:
        if value is None:
            return ""
        if not value or source.random() < 0.2 or any(c in value for c in (delimiter, '"', "\n", "\r")):
            return '"' + value.replace('"', '""') + '"'
        return value

    text = end.join(delimiter.join(map(field, row)) for row in rows)
    return (text + end * last).encode() if rows else b""


def read_slowly(data: bytes, *, delimiter: int = 44, quote: int = 34) -> list[Row]:
    """CSV by the letter, one byte at a time.

    Raises:
        Malformed: a quote out of place, a carriage return alone, or an open end.
    """
    records: list[Row] = []
    record: list[str | None] = []
    at, size = 0, len(data)
    while at < size:
        if data[at] == quote and quote:  # a quoted field
            value = bytearray()
            at += 1
            while True:
                if at >= size:
                    raise Malformed("open quote")
                if data[at] != quote:
                    value.append(data[at])
                elif data[at + 1 : at + 2] == bytes((quote,)):
                    value.append(quote)
                    at += 1
                else:
                    at += 1
                    break
                at += 1
            record.append(value.decode())
        else:
            start = at
            while at < size and data[at] not in (delimiter, 10, 13):
                if data[at] == quote and quote:
                    raise Malformed("stray quote")
                at += 1
            record.append(data[start:at].decode() or None)
        if at >= size:
            break
        if data[at] == delimiter:
            at += 1
            if at >= size:
                record.append(None)
            continue
        if data[at] == 13:
            at += 1
        if data[at : at + 1] != b"\n":
            raise Malformed("neither delimiter nor line end")
        at += 1
        records.append(tuple(record))
        record = []
    if record:
        records.append(tuple(record))
    return records
