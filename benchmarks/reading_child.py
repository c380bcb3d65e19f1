"""One reader in a process of its own, as a user's program is: reads, counts what it touched, prints JSON.

    python -m benchmarks.reading_child READER PLAIN REV     # in a clone that holds no data

Every answer is compared with the same reader's on the plain files in the folder PLAIN.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 1 << 20
SMALL = 4096


class Touched:
    """Encoded bytes of the blocks that reads ask for, each once, and what comes out of data packs."""

    def __init__(self) -> None:
        from dvk.backend.wrappers import CountingBackend
        from dvk.store.block_reader import BlockReader

        self.blocks: dict[tuple[bytes, int], int] = {}
        self.data_bytes = self.requests = 0
        get, get_range = BlockReader.get, CountingBackend.get_range

        def noted(reader: BlockReader, wanted: Any) -> Any:
            if not reader._local:
                for b in wanted:
                    self.blocks[reader._place(b)] = reader._blocks.span(b)[1]
            return get(reader, wanted)

        def counted(backend: CountingBackend, key: str, offset: int, length: int) -> bytes:
            if key.startswith("p/"):
                self.requests += 1
                self.data_bytes += length
            return get_range(backend, key, offset, length)

        BlockReader.get, CountingBackend.get_range = noted, counted  # type: ignore[method-assign]

    @property
    def bytes(self) -> int:
        return sum(self.blocks.values())


# ---------------------------------------------------------------- what is read; `at` makes a path or URL of a name


def pandas_gz(at: Callable[[str], str]) -> Any:
    import pandas

    frame = pandas.read_csv(at("t.csv.gz"))
    return len(frame), int(frame["token"].astype("uint64").sum() % 2**32), round(float(frame["price"].sum()), 2)


def pandas_column(at: Callable[[str], str]) -> Any:
    import pandas

    frame = pandas.read_parquet(at("t.parquet"), columns=["price"])
    return len(frame), round(float(frame["price"].sum()), 2)


def _connected() -> Any:
    import duckdb
    import fsspec

    con = duckdb.connect()
    con.register_filesystem(fsspec.filesystem("dvk"))
    return con


def duckdb_filter(at: Callable[[str], str]) -> Any:
    sql = f"select count(*), sum(qty) from read_parquet('{at('t.parquet')}') where id between 100000 and 300000"
    return [int(x) for x in _connected().sql(sql).fetchall()[0]]


def duckdb_csv(at: Callable[[str], str]) -> Any:
    sql = f"select count(*), sum(qty) from read_csv('{at('t.csv')}')"
    return [int(x) for x in _connected().sql(sql).fetchall()[0]]


def pyarrow_parts(at: Callable[[str], str]) -> Any:
    import pyarrow.dataset as ds

    where = at("parts")
    source = ds.dataset(f"fsspec+{where}" if "://" in where else where, partitioning="hive", format="parquet")
    found = source.to_table(columns=["id", "qty"], filter=ds.field("part") == 3)
    return found.num_rows, int(np.asarray(found["qty"]).sum())


def polars_columns(at: Callable[[str], str]) -> Any:
    import polars
    import pyarrow.dataset as ds

    where = at("t.parquet")
    source = ds.dataset(f"fsspec+{where}" if "://" in where else where, format="parquet")
    frame = polars.scan_pyarrow_dataset(source).select("id", "lat").collect()
    return frame.height, round(float(frame["lat"].sum()), 3)


def datasets_parts(at: Callable[[str], str]) -> Any:
    import datasets

    cache = os.path.join(os.environ["HOME"], f"hf-{os.getpid()}")
    found = datasets.load_dataset(
        "parquet", data_files=f"{at('parts')}/part=1/*.parquet", split="train", cache_dir=cache
    )
    return len(found), int(np.asarray(found.with_format("numpy")[:]["qty"]).sum())


READERS = {
    f.__name__: f
    for f in (pandas_gz, pandas_column, duckdb_filter, duckdb_csv, pyarrow_parts, polars_columns, datasets_parts)
}


# ---------------------------------------------------------------- how fast


def through(path: str) -> int:
    """Read a local file to its end."""
    total = 0
    with open(path, "rb") as file:
        while piece := file.read(STEP):
            total += len(piece)
    return total


def pull(plain: str, rev: str) -> dict[str, Any]:
    """`dvk pull` and a read of the file, as a user without `dvk.open` would."""
    began = time.perf_counter()
    subprocess.run(["git", "checkout", "-q", rev], check=True)
    subprocess.run([sys.executable, "-m", "dvk", "-q", "pull", "t.csv"], check=True)
    total = through("t.csv")
    return {"seconds": time.perf_counter() - began, "right": total == os.path.getsize(os.path.join(plain, "t.csv"))}


def sequential(plain: str, rev: str) -> dict[str, Any]:
    """The same bytes by `dvk.open`."""
    began = time.perf_counter()
    import dvk

    total = 0
    with dvk.open("t.csv", rev=rev) as file:
        while piece := file.read(STEP):
            total += len(piece)
    return {"seconds": time.perf_counter() - began, "right": total == os.path.getsize(os.path.join(plain, "t.csv"))}


def anywhere(plain: str, rev: str) -> dict[str, Any]:
    """4 KB from random places: requests for cold blocks and for warm ones, and how long they take."""
    touched = Touched()
    import dvk

    with open(os.path.join(plain, "t.csv"), "rb") as truth, dvk.open("t.csv", rev=rev) as file:
        rng = np.random.default_rng(11)

        def read(offset: int) -> bool:
            file.seek(offset)
            truth.seek(offset)
            return file.read(SMALL) == truth.read(SMALL)

        right = read(0)  # the recipe and the connection
        offsets = [int(x) for x in rng.integers(0, file.size - SMALL, 40)]
        before, began = (touched.requests, len(touched.blocks)), time.perf_counter()
        right &= sum(map(read, offsets)) == len(offsets)
        cold = time.perf_counter() - began
        asked, blocks = touched.requests - before[0], len(touched.blocks) - before[1]
        warm_before, began = touched.requests, time.perf_counter()
        for _ in range(25):
            right &= sum(map(read, offsets)) == len(offsets)
        warm = time.perf_counter() - began
    return {
        "right": right,
        "reads": len(offsets),
        "cold_requests": asked,
        "cold_blocks": blocks,
        "cold_ms": cold / len(offsets) * 1e3,
        "warm_requests": touched.requests - warm_before,
        "warm_us": warm / len(offsets) / 25 * 1e6,
        "data_bytes": touched.data_bytes,
        "touched_bytes": touched.bytes,
    }


def reader(name: str, plain: str, rev: str) -> dict[str, Any]:
    """One of `READERS`."""
    touched = Touched()
    work = READERS[name]
    expected = work(lambda path: os.path.join(plain, path))
    began = time.perf_counter()
    found = work(lambda path: f"dvk://{rev}@{path}")
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "right": found == expected,
        "data_bytes": touched.data_bytes,
        "touched_bytes": touched.bytes,
        "requests": touched.requests,
    }


def main() -> None:
    """Do what the command line says."""
    what, plain, rev = sys.argv[1:]
    ways = {"pull": pull, "sequential": sequential, "anywhere": anywhere}
    print(json.dumps(ways[what](plain, rev) if what in ways else reader(what, plain, rev)), flush=True)
    # pyarrow's threads let go of Python files at the end of a process, and abort it when Python is gone before them.
    os._exit(0)


if __name__ == "__main__":
    main()
