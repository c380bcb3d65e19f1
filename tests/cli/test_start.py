"""What a start costs, and what it imports."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

HEAVY = {"s3fs", "fsspec", "botocore", "aiohttp", "pandas", "pyarrow", "duckdb", "numpy", "pygit2"}
HEAVY |= {"rich", "typer"}
PROGRAM = os.path.join(os.path.dirname(__file__), "program.py")


def imported(*argv: str) -> set[str]:
    """The top-level packages that a run of `python ARGV` imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def test_version_imports_nothing_heavy() -> None:
    assert imported("-m", "dvk", "--version") & HEAVY == set()


def test_help_and_a_small_verb_import_neither_libraries_of_formats_nor_rich() -> None:
    """A verb pays for typer and for what its own command needs."""
    assert imported("-m", "dvk", "--help") & (HEAVY - {"typer"}) == set()
    assert imported(PROGRAM, "where") & (HEAVY - {"typer", "numpy"}) == set()


def test_only_the_module_of_the_verb_is_imported(tmp_path: object) -> None:
    from dvk.cli.grammar import Row, parse, tree

    table = (Row("where", "sample_verbs:where", "A"), Row("broken", "no_such_module:verb", "A"))
    call = parse(tree(table, {}, text="", version="1"), ["where"])
    assert not isinstance(call, int) and call.words == "where"


def cpu_seconds(*argv: str) -> float:
    """Processor seconds of `python ARGV`, the least of five runs: other work on the machine adds waiting, not these."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *argv], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_version_is_answered_in_80_ms() -> None:
    """Of a processor; with the interpreter's own start taken as it is on this machine."""
    assert cpu_seconds("-m", "dvk", "--version") < max(0.08, 3 * cpu_seconds("-c", "pass"))


def test_a_start_that_costs_more_is_noticed() -> None:
    assert cpu_seconds("-c", "import numpy") > max(0.08, 3 * cpu_seconds("-c", "pass"))


def test_version_says_the_version_in_both_ways() -> None:
    from dvk import __version__

    for argv in (["--version"], ["-V"], ["-q", "--version"]):
        done = subprocess.run([sys.executable, "-m", "dvk", *argv], capture_output=True, text=True, check=True)
        assert done.stdout == f"dvk {__version__}\n"
