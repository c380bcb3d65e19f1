"""A run: all items, all tools, several rounds, the tools taking turns.

The order within a round turns by one from round to round, so that no tool always comes after the same other one.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence

from benchmarks import scenario
from benchmarks.measure import filesystem, synced_write_rate
from benchmarks.results import Origin, Result, machine
from benchmarks.tools import Tool, find_tools
from benchmarks.workloads import Item, ensure

START_TIMES = 5
PEERS = "peers"


def run_suite(
    items: Sequence[Item],
    *,
    work: str,
    scale: float,
    rounds: int,
    tools: tuple[str, ...] | None,
    remotes: tuple[str, ...],
    start: bool,
    say: Callable[[str], None],
    keep: Callable[[Result], None],
) -> Result:
    """Measure `items` and return the result; `keep` gets what there is after every round of an item.

    `tools` names the peers, None for all that are installed. `start` measures the start-up of the programs as well.
    """
    work = os.path.abspath(work)
    os.makedirs(work, exist_ok=True)
    here, missing = find_tools(tools, peers=os.path.join(work, PEERS))
    for name, why in missing.items():
        say(f"{name} is not here ({why}); its columns stay empty")
    say("making workloads ...")
    cache = ensure(items, work=work, scale=scale)
    result = Result(
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        scale=scale,
        rounds=rounds,
        machine=machine(filesystem(work)),
        versions={tool.name: tool.version for tool in here},
        missing=missing,
        items={item.name: _about(item, cache) for item in items},
    )
    scratch = tempfile.mkdtemp(prefix="run-", dir=work)
    try:

        def began(item: str, rate: float | None) -> None:
            origin = result.origins.setdefault(
                item, Origin(made=result.made, scale=scale, rounds=rounds, write_rates=[], loads=[])
            )
            origin.loads.append(round(os.getloadavg()[0], 2))
            if rate:
                origin.write_rates.append(rate)

        if start:
            began("start", None)
            for number in range(rounds):
                for tool in _turned(here, number):
                    folder = os.path.join(scratch, "start")
                    _take(result, scenario.start_up(tool, number=number, folder=folder, times=START_TIMES))
        for item in items:
            for number in range(1 if item.once else rounds):
                say(f"{item.title}, round {number + 1}")
                result.write_rates.append(synced_write_rate(scratch, size_bytes=_probe_bytes(scale)))
                say(f"  synced writes: {result.write_rates[-1] / 1e6:.0f} MB/s")
                began(item.name, result.write_rates[-1])
                for tool in _turned(here, number):
                    if item.tools and tool.name not in item.tools:
                        continue
                    cached = item.open(cache, tool=tool.name)
                    folder = os.path.join(scratch, f"{item.name}-{tool.name}")
                    _take(
                        result,
                        scenario.play(item, cached, tool, number=number, folder=folder, remotes=remotes, say=say),
                    )
                keep(result)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    keep(result)
    return result


def _take(result: Result, outcome: scenario.Outcome) -> None:
    result.samples += outcome.samples
    result.failures += outcome.failures


def _turned(tools: Sequence[Tool], number: int) -> list[Tool]:
    at = number % len(tools)
    return [*tools[at:], *tools[:at]]


def _probe_bytes(scale: float) -> int:
    return int(min(1.0, max(0.06, scale)) * (1 << 30))


def _about(item: Item, cache: str) -> dict[str, object]:
    cached = item.open(cache)
    files, size = cached.files(0), cached.size_bytes(0) / 1e6
    amount = f"{files:,} files" if files > 1 else f"{size / 1000:.2f} GB" if size >= 995 else f"{size:.0f} MB"
    return {
        "title": f"{item.title}, {amount}" + (f", {item.versions} epochs" if item.versions > 2 else ""),
        "versions": item.versions,
        "bytes": [cached.size_bytes(version) for version in range(item.versions)],
        "files": [cached.files(0), cached.files(item.versions - 1)],
    }
