"""The command line of the benchmarks: `python -m benchmarks VERB`; `--help` lists the verbs."""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks import badinput, marks, memory, peers, reading, report, results, suite, tables
from benchmarks.measure import filesystem
from benchmarks.tools import TOOLS
from benchmarks.workloads import CATALOG, chosen, ensure

_OUT = "docs/benchmarks"
#: What `--only` calls the start-up of the programs.
START = "start"


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    args = _parser().parse_args(argv)
    return int(args.do(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="dvk beside the tools people use today")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    work = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "dvk-benchmarks")

    def verb(name: str, do: object, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.set_defaults(do=do)
        if name not in ("marks", "report", "badinput"):
            sub.add_argument("--work", default=work, help="folder for workloads and repositories (%(default)s)")
        return sub

    run = verb("run", _run, "Measure, and write results.json, results.md and chart.svg.")
    run.add_argument("--scale", type=float, default=1.0, help="size of the workloads; 1 is the real thing")
    run.add_argument("--only", default="", metavar="ITEMS", help="of: " + ", ".join((START, *CATALOG)))
    names = ", ".join(t.name for t in TOOLS if t.name != "dvk")
    run.add_argument("--peers", default=None, metavar="TOOLS", help=f"of: {names}; empty for none; default all")
    run.add_argument("--runs", type=int, default=3, help="rounds; the median counts (%(default)s)")
    run.add_argument("--remotes", default="local,s3", help="where to push to and pull from (%(default)s)")
    run.add_argument("--out", default=_OUT, help="folder for what is written (%(default)s)")
    run.add_argument("--keep", action="store_true", help="keep what the result in --out says of other items")
    make = verb("make", _make, "Make the workloads and stop.")
    make.add_argument("--scale", type=float, default=1.0)
    make.add_argument("--only", default="", metavar="ITEMS")
    verb("peers", _peers, "Install DVC and hf-xet into an environment of their own.")
    judge = verb("marks", _marks, "Say which marks a result reaches; exit code 1 when one is missed.")
    judge.add_argument("result", nargs="?", default=os.path.join(_OUT, "results.json"))
    diff = verb(
        "tables", _tables, "Measure the diff of tables beside a plain DuckDB join; write tables.json, tables.md."
    )
    diff.add_argument("--scale", type=float, default=1.0)
    diff.add_argument("--runs", type=int, default=3, help="rounds; the best counts (%(default)s)")
    diff.add_argument("--out", default=_OUT, help="folder for what is written (%(default)s)")
    big = verb("big", _big, "Compare two tables of 100 million rows within 2 GB of memory; 1 when it takes more.")
    big.add_argument("--rows", type=int, default=100_000_000)
    read = verb(
        "reading", _reading, "Read old versions from S3 by pandas and its kind; write reading.json, reading.md."
    )
    read.add_argument("--scale", type=float, default=1.0)
    read.add_argument("--runs", type=int, default=3, help="rounds; the best counts (%(default)s)")
    read.add_argument("--out", default=_OUT, help="folder for what is written (%(default)s)")
    again = verb("report", _report, "Write results.md and chart.svg of a result again.")
    again.add_argument("result", nargs="?", default=os.path.join(_OUT, "results.json"))
    right = verb("right", _right, "Ask table diff tools about tables on which they go wrong; 1 when dvk is wrong.")
    right.add_argument("--out", default=_OUT, help="folder for what is written (%(default)s)")
    bad = verb("badinput", _badinput, "Store files that lie or do not compress; fail where that costs too much.")
    bad.add_argument("--size", type=float, default=64e6, help="bytes of each (%(default).0f)")
    bad.add_argument("--runs", type=int, default=5, help="rounds; the best counts (%(default)s)")
    mem = verb("memory", _memory, "Add and check out a big file and fail above a limit of memory.")
    mem.add_argument("--size", type=float, default=4e9, help="bytes of the file (%(default).0f)")
    mem.add_argument("--limit", type=float, default=400e6, help="bytes of memory (%(default).0f)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _run(args: argparse.Namespace) -> int:
    named = _names(args.only)
    only = tuple(n for n in named if n != START)
    tools = None if args.peers is None else _names(args.peers)
    known = {t.name for t in TOOLS}
    unknown = [n for n in only if n not in CATALOG] + [n for n in tools or () if n not in known]
    if unknown:
        print(f"no such item or tool: {', '.join(unknown)}", file=sys.stderr)
        return 2
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "results.json")
    os.makedirs(args.work, exist_ok=True)
    before = results.load(path) if args.keep and os.path.exists(path) else None
    if before and before.machine != results.machine(filesystem(args.work)):
        print(f"{path} was measured on another machine: write to another --out", file=sys.stderr)
        return 2
    result = suite.run_suite(
        () if named and not only else chosen(only, scale=args.scale),
        work=args.work,
        scale=args.scale,
        rounds=args.runs,
        tools=tools,
        remotes=_names(args.remotes),
        start=not named or START in named,
        say=lambda line: print(line, flush=True),
        keep=lambda so_far: results.save(results.joined(before, so_far) if before else so_far, path),
    )
    failed = any(f.tool == "dvk" for f in result.failures)
    if before:
        result = results.joined(before, result)
    report.write(result, args.out)
    print(f"\nwrote {path}, results.md, chart.svg\n")
    print(marks.render(marks.judge(result), result))
    return 1 if failed else 0


def _make(args: argparse.Namespace) -> int:
    os.makedirs(args.work, exist_ok=True)
    print(ensure(chosen(_names(args.only), scale=args.scale), work=args.work, scale=args.scale))
    return 0


def _peers(args: argparse.Namespace) -> int:
    return peers.install(args.work)


def _marks(args: argparse.Namespace) -> int:
    result = results.load(args.result)
    judged = marks.judge(result)
    print(marks.render(judged, result))
    return 1 if any(j.reached is False for j in judged) else 0


def _big(args: argparse.Namespace) -> int:
    from benchmarks import big_table  # pyarrow makes the tables

    return big_table.measure(args.work, rows=args.rows)


def _report(args: argparse.Namespace) -> int:
    report.write(results.load(args.result), os.path.dirname(args.result) or ".")
    return 0


def _right(args: argparse.Namespace) -> int:
    from benchmarks import right  # pyarrow makes the cases

    return right.run(args.work, args.out)


def _badinput(args: argparse.Namespace) -> int:
    return badinput.check(size_bytes=int(args.size), rounds=args.runs, say=lambda line: print(line, flush=True))


def _tables(args: argparse.Namespace) -> int:
    return tables.measure(args.work, scale=args.scale, rounds=args.runs, out=args.out)


def _reading(args: argparse.Namespace) -> int:
    return reading.measure(args.work, scale=args.scale, rounds=args.runs, out=args.out)


def _memory(args: argparse.Namespace) -> int:
    return memory.check(args.work, size_bytes=int(args.size), limit_bytes=int(args.limit))


if __name__ == "__main__":
    sys.exit(main())
