"""Reading an old version straight from a bucket, by the libraries that people use.

    python -m benchmarks reading               # writes reading.json and reading.md

A repository of two versions (a table of 10.5 million rows as CSV, as Parquet, compressed, and as a partitioned folder)
is pushed to a real S3 server. Each reader is a process of its own in a fresh clone that never pulled, asks for the old
version, and its answer is compared with the same reader's on plain files. Bytes and requests are counted by the server;
those that are not data are locators and pages. The best of all rounds counts for seconds, the worst for bytes.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.measure import Command, quietly
from benchmarks.reading_child import READERS
from benchmarks.s3 import CountingS3
from benchmarks.tools import Place, new_place, quietly_in, with_dvk
from benchmarks.workloads import chosen, ensure

BUCKET = "reading"
PARTS = 8
_GZ_SHARE = 0.1
_NEEDS = {"pandas": "pandas", "polars": "polars", "datasets": "datasets", "duckdb": "duckdb", "pyarrow": "pyarrow"}
_TITLES = {
    "pandas_gz": '`pandas.read_csv("dvk://v1@t.csv.gz")`',
    "pandas_column": "pandas, one column of nine of the Parquet file",
    "duckdb_filter": "DuckDB, two columns, 200,000 ids of the Parquet file",
    "duckdb_csv": "DuckDB, the whole CSV",
    "pyarrow_parts": "pyarrow, two columns of one of eight partitions",
    "polars_columns": "Polars, two columns of the Parquet file",
    "datasets_parts": "Hugging Face `datasets`, one partition",
}


def measure(work: str, *, scale: float, rounds: int, out: str, say: Callable[[str], None] = print) -> int:
    """Measure all readers, write reading.json and reading.md into `out`; 1 when an answer was wrong, else 0."""
    os.makedirs(out, exist_ok=True)

    def measured(folder: str, program: tuple[str, ...]) -> int:
        cache = ensure(chosen(("table",), scale=scale), work=os.path.dirname(folder), scale=scale)
        size = os.path.getsize(os.path.join(cache, "table", "0.csv"))
        rows: dict[str, dict[str, Any]] = {}
        plain = os.path.join(folder, "plain")
        say("making plain files ...")
        _plain(cache, plain, 0)
        with CountingS3(os.path.join(folder, "s3")) as server:
            server.create_bucket(BUCKET)
            place = new_place(os.path.join(folder, "place"), "t.csv", extra_env=server.env)
            _repository(place, program, cache, plain)
            for number in range(rounds):
                for what in ("pull", "sequential", "anywhere", *READERS):
                    if missing := _missing(what):
                        say(f"{what}: {missing} is not installed")
                        continue
                    row = _one(place, server, what, plain)
                    rows[what] = _better(rows.get(what, row), row)
                    say(f"{number + 1}  {what:16} {json.dumps(row)}")
                found = {"scale": scale, "rounds": number + 1, "cores": os.cpu_count(), "csv_bytes": size, "rows": rows}
                _write(found, out)  # so that an interrupted run leaves what it had
        return 0 if all(row["right"] for row in rows.values()) else 1

    return with_dvk(work, "reading", measured, say=say)


def _write(found: dict[str, Any], out: str) -> None:
    with open(os.path.join(out, "reading.json"), "w") as f:
        json.dump(found, f, indent=1)
        f.write("\n")
    with open(os.path.join(out, "reading.md"), "w") as f:
        f.write(render(found))


def _missing(what: str) -> str:
    package = _NEEDS.get(what.partition("_")[0], "")
    return package if package and importlib.util.find_spec(package) is None else ""


def _plain(cache: str, folder: str, version: int) -> None:
    """The files of a version: CSV, a part of it compressed, Parquet, and that cut into a partitioned folder."""
    import pyarrow.parquet as pq

    os.makedirs(folder)
    csv, parquet = os.path.join(folder, "t.csv"), os.path.join(folder, "t.parquet")
    shutil.copyfile(os.path.join(cache, "table", f"{version}.csv"), csv)
    shutil.copyfile(os.path.join(cache, "parquet", f"{version}.parquet"), parquet)
    share = int(os.path.getsize(csv) * _GZ_SHARE)
    with open(csv, "rb") as source, gzip.GzipFile(os.path.join(folder, "t.csv.gz"), "wb", 6, mtime=0) as target:
        head = source.read(share)
        target.write(head[: head.rindex(b"\n") + 1])
    table = pq.read_table(parquet)
    for part in range(PARTS):
        os.makedirs(os.path.join(folder, "parts", f"part={part}"))
        rows = table.slice(part * table.num_rows // PARTS, table.num_rows // PARTS)
        pq.write_table(rows, os.path.join(folder, "parts", f"part={part}", "a.parquet"))


def _repository(place: Place, program: tuple[str, ...], cache: str, plain: str) -> None:
    """v1 as it is in `plain`, v2 with its edit, both pushed."""
    do = partial(quietly_in, place)
    do("git", "init", "-q")
    do(*program, "-q", "init")
    do(*program, "-q", "remote", "add", "origin", f"s3://{BUCKET}/team")
    names = ("t.csv", "t.csv.gz", "t.parquet", "parts")
    for version in (0, 1):
        if version:
            newer = os.path.join(place.root, "newer")
            _plain(cache, newer, 1)
        for name in names:
            target = os.path.join(place.repo, name)
            shutil.rmtree(target, ignore_errors=True)
            subprocess.run(["cp", "-R", os.path.join(newer if version else plain, name), target], check=True)
        do(*program, "-q", "add", *names)
        do("git", "commit", "-q", "-m", f"v{version + 1}")
        do("git", "tag", f"v{version + 1}")
    do(*program, "-q", "push")
    shutil.rmtree(newer)


def _one(place: Place, server: CountingS3, what: str, plain: str) -> dict[str, Any]:
    """One reader in a fresh clone."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    quietly(Command(("git", "clone", "-q", place.repo, place.clone), place.root, place.env), scratch=place.scratch)
    try:
        before = server.traffic(BUCKET)
        env = {**place.env, "PYTHONPATH": top}
        said = quietly(
            Command((sys.executable, "-m", "benchmarks.reading_child", what, plain, "v1"), place.clone, env),
            scratch=place.scratch,
        )
        moved = server.traffic(BUCKET) - before
    finally:
        shutil.rmtree(place.clone, ignore_errors=True)
    row: dict[str, Any] = json.loads(said.splitlines()[-1])
    return row | {"sent_bytes": moved.sent_bytes, "all_requests": moved.requests}


def _better(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The best time, the worst count."""
    out = dict(new)
    for name, value in new.items():
        if name in ("seconds", "cold_ms", "warm_us"):
            out[name] = min(value, old[name])
        elif name == "right":
            out[name] = value and old[name]
        elif isinstance(value, int):
            out[name] = max(value, old[name])
    return out


def render(found: dict[str, Any]) -> str:
    """The page of a result."""
    rows, megabyte = found["rows"], 1e6
    lines = [
        "# Reading old versions from a bucket",
        "",
        f"A repository of two versions on a real S3 server on the same {found['cores']} cores; each reader, in a fresh"
        f" clone that never pulled, asks for the older one. The CSV has {found['csv_bytes'] / 1e9:.2f} GB. Best of"
        f" {found['rounds']} rounds for seconds, worst for bytes and requests. `python -m benchmarks reading` measures"
        " it again; every answer is compared with the same reader's on plain files.",
        "",
        "Touched: the encoded bytes of the blocks that hold what the reader asked for, each once. Data: what was read"
        " of data packs. All: what the server sent, with the clone's look at the store, locators and pages.",
        "",
        "| reader | answer | s | touched MB | data MB | data / touched | all MB | requests |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, title in _TITLES.items():
        if name in rows:
            row = rows[name]
            ratio = row["data_bytes"] / row["touched_bytes"]
            lines.append(
                f"| {title} | {'right' if row['right'] else 'WRONG'} | {row['seconds']:.2f}"
                f" | {row['touched_bytes'] / megabyte:.2f} | {row['data_bytes'] / megabyte:.2f} | {ratio:.3f}"
                f" | {row['sent_bytes'] / megabyte:.2f} | {row['all_requests']} |"
            )
    lines += ["", "## All of a file", "", "| way | s | MB/s |", "|---|---|---|"]
    size = found["csv_bytes"] / megabyte
    for name, title in (("pull", "`dvk pull`, then read the file"), ("sequential", "`dvk.open`, read to the end")):
        if name in rows:
            lines.append(f"| {title} | {rows[name]['seconds']:.2f} | {size / rows[name]['seconds']:.0f} |")
    if "pull" in rows and "sequential" in rows:
        lines += ["", f"{rows['pull']['seconds'] / rows['sequential']['seconds']:.2f} x the speed of pull and read."]
    if "anywhere" in rows:
        row = rows["anywhere"]
        lines += [
            "",
            "## 4 KB anywhere",
            "",
            f"{row['reads']} reads of 4 KB at random places of the CSV: {row['cold_requests']} range requests for"
            f" {row['cold_blocks']} cold blocks, {row['cold_ms']:.1f} ms a read; the same places again 25 times:"
            f" {row['warm_requests']} requests, {row['warm_us']:.0f} µs a read.",
        ]
    return "\n".join(lines) + "\n"
