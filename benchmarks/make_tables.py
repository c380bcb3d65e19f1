"""A table of orders and an edit of it, as CSV and as Parquet with and without content-defined pages.

10.5 million rows at full scale: ids and times that grow, a category, prices, quantities, coordinates, three words and
a random 63-bit token. The edit is what happens between two exports of such a table: prices of some customers change
(0.1 % of the rows, in runs of 100), 1,000 rows come in between, 500 go, 2 % are appended. In the CSV the 500 are
strewn over the file. In Parquet they are one run, because a page holds 30,000 rows and more and would meet one of them
anyway, whoever cuts it: strewn rows show nothing about how Parquet is written.

Made in batches, so memory stays small, and each batch has a random state of its own, so the order of the work does not
matter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

ROWS = 10_500_000
BATCH_ROWS = 100_000
ROW_GROUP_ROWS = 1 << 20  # what pyarrow does unless told otherwise
RUN_ROWS = 100
SEED = 20_260_101
CATEGORIES = pa.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])
WORDS = pa.array(
    ["lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "do", "eiusmod", "tempor"]
)


def table(cache: str, scale: float) -> None:
    """Write `table/`, `parquet/` and `parquet-cdc/`, two versions each."""
    rows = max(RUN_ROWS * 20, int(ROWS * scale))
    for version, batches in enumerate((_first(rows), _second(rows, strewn=True))):
        _write_csv(cache, version, batches)
    for version, batches in enumerate((_first(rows), _second(rows, strewn=False))):
        _write_parquet(cache, version, batches)


def _write_csv(cache: str, version: int, batches: Iterator[pa.Table]) -> None:
    with pa.csv.CSVWriter(os.path.join(cache, "table", f"{version}.csv"), _rows(0, 1, part=0).schema) as csv:
        for batch in batches:
            csv.write_table(batch)


def _write_parquet(cache: str, version: int, batches: Iterator[pa.Table]) -> None:
    schema = _rows(0, 1, part=0).schema
    plain = pa.parquet.ParquetWriter(os.path.join(cache, "parquet", f"{version}.parquet"), schema)
    cdc = pa.parquet.ParquetWriter(
        os.path.join(cache, "parquet-cdc", f"{version}.parquet"), schema, use_content_defined_chunking=True
    )
    with plain, cdc:
        held = schema.empty_table()
        for batch in batches:
            held = pa.concat_tables([held, batch])
            while held.num_rows >= ROW_GROUP_ROWS:
                group = held.slice(0, ROW_GROUP_ROWS).combine_chunks()
                plain.write_table(group)
                cdc.write_table(group)
                held = held.slice(ROW_GROUP_ROWS)
        if held.num_rows:
            plain.write_table(held.combine_chunks())
            cdc.write_table(held.combine_chunks())


def _first(rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, BATCH_ROWS):
        yield _rows(start, min(BATCH_ROWS, rows - start), part=0)


def _second(rows: int, *, strewn: bool) -> Iterator[pa.Table]:
    starts = range(0, rows, BATCH_ROWS)
    rng = np.random.default_rng([SEED, 1])
    inserting = set(rng.choice(len(starts), size=min(10, len(starts)), replace=False).tolist())
    removed = min(500, rows // 1000)
    gone = np.sort(rng.choice(rows, size=removed, replace=False)) if strewn else rows // 2 + np.arange(removed)
    for number, start in enumerate(starts):
        batch = _rows(start, min(BATCH_ROWS, rows - start), part=0)
        batch = _reprice(batch, np.random.default_rng([SEED, 2, number]))
        keep = np.ones(batch.num_rows, bool)
        keep[gone[(gone >= start) & (gone < start + batch.num_rows)] - start] = False
        batch = batch.filter(pa.array(keep))
        if number in inserting:
            at = batch.num_rows // 3
            new = _rows(10**9 + start, min(RUN_ROWS, batch.num_rows // 10), part=1)
            batch = pa.concat_tables([batch.slice(0, at), new, batch.slice(at)])
        yield batch
    appended = rows // 50
    for start in range(0, appended, BATCH_ROWS):
        yield _rows(rows + start, min(BATCH_ROWS, appended - start), part=2)


def _reprice(batch: pa.Table, rng: np.random.Generator) -> pa.Table:
    price = batch["price"].to_numpy().copy()
    at = int(rng.integers(0, max(1, batch.num_rows - RUN_ROWS)))
    price[at : at + RUN_ROWS] = np.round(price[at : at + RUN_ROWS] * 1.1, 2)
    return batch.set_column(batch.schema.get_field_index("price"), "price", pa.array(price))


def _rows(start: int, n: int, *, part: int) -> pa.Table:
    """`n` rows with ids from `start`. The same arguments give the same rows."""
    rng = np.random.default_rng([SEED, 3, part, start])

    def pick(words: pa.Array) -> Any:
        return words.take(pa.array(rng.integers(0, len(words), n)))

    note = pa.compute.binary_join_element_wise(pick(WORDS), pick(WORDS), pick(WORDS), " ")
    return pa.table(
        {
            "id": pa.array(np.arange(start, start + n)),
            "ts": pa.array(1_600_000_000 + start * 15 + np.cumsum(rng.integers(0, 30, n))),
            "category": pick(CATEGORIES),
            "price": pa.array(np.round(rng.lognormal(3, 1, n), 2)),
            "qty": pa.array(rng.integers(1, 100, n)),
            "lat": pa.array(np.round(rng.normal(40, 5, n), 6)),
            "lon": pa.array(np.round(rng.normal(-70, 10, n), 6)),
            "note": note,
            "token": pa.array(rng.integers(0, 2**63 - 1, n)),
        }
    )
