"""A diff of two tables of 100 million rows and 10 columns, as Parquet files, within a memory limit of 2 GB.

    python -m benchmarks big                    # makes 2 x 4 GB and measures; exit code 1 over the limit or when wrong

In the second version one row in 10,000 has another value and 1,000 rows in the middle are gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks.measure import Command, Cost, run
from benchmarks.tools import new_place, with_dvk

LIMIT_BYTES = 2_000_000_000
_BATCH_ROWS = 1_000_000
_GONE = 1_000
_EVERY = 10_000


def measure(work: str, *, rows: int, say: Callable[[str], None] = print) -> int:
    """Make both versions below `work`, compare them, say what it took; 1 when the answer or the memory is wrong."""

    def measured(folder: str, program: tuple[str, ...]) -> int:
        place = new_place(os.path.join(folder, "place"), "t", extra_env={})
        paths = [os.path.join(folder, f"{version}.parquet") for version in (0, 1)]
        for version, path in enumerate(paths):
            _write(path, rows, edited=bool(version))
        options = ("--key", "id", "--memory", "2GB", "--tmp", folder, "--stat", "--format", "json")
        cost = run(Command((*program, "diff", "--no-index", *options, *paths), folder, place.env), scratch=folder)
        return _judge(cost, rows, say)

    return with_dvk(work, "big", measured, say=say)


def _judge(cost: Cost, rows: int, say: Callable[[str], None]) -> int:
    table = json.loads(cost.stdout)["paths"][0]["table"]
    found = [table["rows"][kind] for kind in ("added", "removed", "modified")]
    middle = rows // 2
    changed = len([at for at in range(0, rows, _EVERY) if not middle <= at < middle + _GONE])
    size = table["cost"]["bytes_total"] / 1e9
    say(f"{rows:,} rows, 10 columns, {size:.1f} GB in both: {found} added, removed, modified")
    cpu = cost.user_s + cost.system_s
    say(f"{cost.wall_s:.1f} s, {cpu:.1f} s of processors, {cost.rss_bytes / 1e6:.0f} MB at most")
    return int(found != [0, _GONE, changed] or cost.rss_bytes > LIMIT_BYTES)


def _write(path: str, rows: int, *, edited: bool) -> None:
    middle = rows // 2
    with pa.parquet.ParquetWriter(path, _batch(np.zeros(0, np.int64)).schema) as writer:
        for start in range(0, rows, _BATCH_ROWS):
            ids = np.arange(start, min(rows, start + _BATCH_ROWS))
            batch = _batch(ids)
            if edited:
                price = np.where(ids % _EVERY == 0, -1.0, batch["price"].to_numpy())
                batch = batch.set_column(1, "price", pa.array(price))
                batch = batch.filter(pa.array((ids < middle) | (ids >= middle + _GONE)))
            writer.write_table(batch)


def _batch(ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Table:
    """Rows of these ids; the same ids give the same rows."""
    rng = np.random.default_rng([20_260_102, int(ids[0]) if len(ids) else 0])
    n = len(ids)
    words = pa.array(["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"])
    return pa.table(
        {
            "id": ids,
            "price": np.round(rng.lognormal(3, 1, n), 2),
            "ts": pa.array(1_600_000_000 + ids * 15, pa.timestamp("s")),
            "kind": words.take(pa.array(rng.integers(0, 8, n))),
            "qty": rng.integers(1, 100, n).astype(np.int32),
            "lat": rng.normal(40, 5, n).astype(np.float32),
            "lon": rng.normal(-70, 10, n).astype(np.float32),
            "flag": pa.array(rng.integers(0, 2, n).astype(bool)),
            "note": words.take(pa.array(rng.integers(0, 8, n))),
            "token": rng.integers(0, 2**63 - 1, n),
        }
    )
