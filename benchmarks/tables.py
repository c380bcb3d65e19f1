"""What a diff of two tables costs, beside a plain DuckDB join of the same files on all columns.

    python -m benchmarks tables                # writes tables.json and tables.md

Two versions of a table of 10.5 million rows (`make_tables`), as CSV and as Parquet, read in full as plain files, from
the store of a repository with and without what earlier diffs left in the cache, and a version with one changed cell.
Every answer is checked. The ways take turns in each round, since a machine is not equally fast at all times; the best
round of each counts.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

from benchmarks.measure import Command, Cost, StepFailed, quietly, run
from benchmarks.tools import Place, new_place, quietly_in, with_dvk
from benchmarks.workloads import chosen, ensure

MEMORY = "2G"
_KEY = "id"


@dataclass(frozen=True)
class Way:
    """One way to get the answer. `reset` runs before each round, not measured."""

    name: str
    command: Command
    expected: tuple[int, int, int]
    baseline: str = ""  #: the way it is compared with
    reset: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Row:
    """The best of all rounds; `bytes_read` as dvk says it, 0 where unknown."""

    name: str
    wall_s: float
    cpu_s: float
    rss_bytes: int
    level: str = ""
    bytes_read: int = 0
    bytes_total: int = 0
    rows_decoded: int = 0
    baseline: str = ""


def measure(work: str, *, scale: float, rounds: int, out: str, say: Callable[[str], None] = print) -> int:
    """Measure every way, write tables.json and tables.md into `out`; 1 when an answer was wrong, else 0."""
    os.makedirs(out, exist_ok=True)

    def measured(folder: str, program: tuple[str, ...]) -> int:
        cache = ensure(chosen(("table",), scale=scale), work=os.path.dirname(folder), scale=scale)
        place = new_place(os.path.join(folder, "place"), "t.csv", extra_env={})
        ways = _ways(place, program, cache, say)
        best: dict[str, Row] = {}
        load = 0.0
        for number in range(rounds):
            for way in ways:
                way.reset()
                row = _one(way, place)
                kept = best.get(way.name, row)
                best[way.name] = replace(
                    row,
                    wall_s=min(row.wall_s, kept.wall_s),
                    cpu_s=min(row.cpu_s, kept.cpu_s),
                    rss_bytes=max(row.rss_bytes, kept.rss_bytes),
                )
                took = f"{row.wall_s:7.2f} s {row.cpu_s:7.2f} s CPU {row.rss_bytes / 1e6:6.0f} MB"
                say(f"{number + 1}  {way.name:38} {took}")
            load = max(load, os.getloadavg()[0])
        _write(list(best.values()), out, scale=scale, rounds=rounds, load=load)
        return 0

    return with_dvk(work, "tables", measured, say=say)


def _write(rows: list[Row], out: str, *, scale: float, rounds: int, load: float) -> None:
    cores = os.cpu_count() or 0
    with open(os.path.join(out, "tables.json"), "w") as f:
        how = {"scale": scale, "rounds": rounds, "cores": cores, "load": round(load, 1)}
        json.dump({**how, "rows": [asdict(r) for r in rows]}, f, indent=1)
        f.write("\n")
    with open(os.path.join(out, "tables.md"), "w") as f:
        f.write(render(rows, scale=scale, rounds=rounds, cores=cores, load=load))


def render(rows: list[Row], *, scale: float, rounds: int, cores: int, load: float) -> str:
    """The table as Markdown. `load`: the highest load average of the run, said where it is beyond the cores."""
    shared = f" Others used the machine meanwhile (load {load:.0f}), so the ratios count." if load > 2 * cores else ""
    by_name = {row.name: row for row in rows}
    lines = [
        "# Diff of tables",
        "",
        f"Two versions of a table of {int(10_500_000 * scale):,} rows and 9 columns, by key `{_KEY}`; at full size"
        " 10,500 rows are modified, 211,000 added, 500 removed."
        f" Best of {rounds} rounds on {cores} cores, files in the page cache, dvk with `--memory {MEMORY}`.{shared}"
        " `python -m benchmarks tables` measures it again.",
        "",
        "| way | wall s | of the join | CPU s | of the join | peak MB | level | MB read | rows decoded |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        base = by_name.get(row.baseline)
        wall = f"{row.wall_s / base.wall_s:.2f}" if base else ""
        cpu = f"{row.cpu_s / base.cpu_s:.2f}" if base else ""
        read = f"{row.bytes_read / 1e6:,.0f} of {row.bytes_total / 1e6:,.0f}" if row.bytes_total else ""
        decoded = f"{row.rows_decoded:,}" if row.bytes_total else ""
        lines.append(
            f"| {row.name} | {row.wall_s:.2f} | {wall} | {row.cpu_s:.2f} | {cpu} | {row.rss_bytes / 1e6:.0f}"
            f" | {row.level} | {read} | {decoded} |"
        )
    return "\n".join(lines) + "\n"


def _ways(place: Place, program: tuple[str, ...], cache: str, say: Callable[[str], None]) -> list[Way]:
    csv = [os.path.join(cache, "table", f"{n}.csv") for n in (0, 1)]
    parquet = [os.path.join(cache, "parquet", f"{n}.parquet") for n in (0, 1)]
    say("joining once, for what the answer is; making a repository of three versions")
    join = (sys.executable, "-m", "benchmarks.tables_child", _KEY)
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    joins = {name: Command((*join, *files), top, place.env) for name, files in (("csv", csv), ("parquet", parquet))}
    answers = {name: _numbers(quietly(command, scratch=place.scratch)) for name, command in joins.items()}
    _repository(place, program, csv)

    def forget() -> None:
        shutil.rmtree(os.path.join(place.repo, ".git", "dvk", "tables"), ignore_errors=True)

    def diff(*arguments: str) -> Command:
        how = ("diff", "--key", _KEY, "--memory", MEMORY, "--stat", "--format", "json")
        return Command((*program, *how, *arguments), place.repo, place.env)

    versions = ("HEAD~2", "HEAD~1", "--", place.path)
    return [
        Way("DuckDB, CSV", joins["csv"], answers["csv"]),
        Way("dvk, CSV, plain files", diff("--no-index", *csv), answers["csv"], "DuckDB, CSV"),
        Way("dvk, CSV, store, first time", diff(*versions), answers["csv"], "DuckDB, CSV", forget),
        Way("dvk, CSV, store, again", diff(*versions), answers["csv"], "DuckDB, CSV"),
        Way("dvk, CSV, store, one changed cell", diff("HEAD~1", "HEAD", "--", place.path), (0, 0, 1), "DuckDB, CSV"),
        Way("DuckDB, Parquet", joins["parquet"], answers["parquet"]),
        Way("dvk, Parquet, plain files", diff("--no-index", *parquet), answers["parquet"], "DuckDB, Parquet"),
    ]


def _repository(place: Place, program: tuple[str, ...], csv: list[str]) -> None:
    """Three versions: the first, its edit, and the edit with one cell changed."""
    do = partial(quietly_in, place)
    do("git", "init", "-q")
    do(*program, "-q", "init")
    for number, source in enumerate((*csv, None)):
        if source is not None:
            shutil.copyfile(source, place.target)
        else:
            _change_a_cell(place.target)
        do(*program, "-q", "add", place.path)
        do("git", "commit", "-q", "-m", f"v{number}")


def _change_a_cell(path: str) -> None:
    """Another last digit of the last field of a row in the middle."""
    with open(path, "r+b") as f:
        middle = os.stat(path).st_size // 2
        f.seek(middle)
        near = f.read(4096)
        end = near.index(b"\n", near.index(b"\n") + 1)
        f.seek(middle + end - 1)
        f.write(b"1" if near[end - 1 : end] != b"1" else b"2")


def _numbers(text: str) -> tuple[int, int, int]:
    added, removed, modified = text.split()
    return int(added), int(removed), int(modified)


def _one(way: Way, place: Place) -> Row:
    cost: Cost = run(way.command, scratch=place.scratch)
    row = Row(way.name, cost.wall_s, cost.user_s + cost.system_s, cost.rss_bytes, baseline=way.baseline)
    if not way.baseline:
        found = _numbers(cost.stdout)
    else:
        table = json.loads(cost.stdout)["paths"][0]["table"]
        found = (table["rows"]["added"], table["rows"]["removed"], table["rows"]["modified"])
        said = table["cost"]
        row = replace(
            row,
            level=said["level"],
            bytes_read=said["bytes_read"],
            bytes_total=said["bytes_total"],
            rows_decoded=said["rows_decoded"],
        )
    if found != way.expected:
        raise StepFailed(f"{way.name}: {found} rows added, removed, modified, and not {way.expected}")
    return row
