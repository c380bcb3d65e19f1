"""A run's samples, how they become JSON, and the medians that tables, marks and charts are made from.

result = load("docs/benchmarks/results.json")
result.median("table", "add", "dvk", "wall_s")     # 2.4, or None when it was not measured
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from dataclasses import dataclass, field

#: Of the JSON document. Fields may be added; a change of meaning raises it.
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one command cost once. None: not measurable for this tool and verb."""

    item: str
    verb: str
    tool: str
    round: int
    wall_s: float
    user_s: float
    system_s: float
    rss_bytes: int
    sync_s: float  #: how long a `sync` took afterwards: what the tool left to the system to write
    stored_bytes: int | None = None  #: apparent bytes by which its store, or the local remote, grew
    stored_files: int | None = None
    moved_bytes: int | None = None  #: payload over the network, as the S3 server counted it
    requests: int | None = None  #: requests, as the S3 server counted them
    told_bytes: int | None = None  #: payload as dvk itself says with --json
    files: int = 1  #: files the tool was given; fewer than the others get where all would take hours

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that did not work, so that a gap in the table is explained."""

    item: str
    verb: str
    tool: str
    round: int
    what: str


@dataclass(frozen=True, kw_only=True)
class Origin:
    """When and how an item of a result was measured, since a result may be put together from several runs."""

    made: str
    scale: float
    rounds: int
    write_rates: list[float]  #: synced, bytes a second, one a round
    loads: list[float]  #: how many other programs wanted the cores when a round began (the load average of a minute)


@dataclass(kw_only=True)
class Result:
    """One run, or several put together."""

    made: str
    scale: float
    rounds: int
    machine: dict[str, str]
    versions: dict[str, str]  #: tool -> what it says of itself
    missing: dict[str, str]  #: tool -> what would bring it
    items: dict[str, dict[str, object]]
    write_rates: list[float] = field(default_factory=list)  #: synced, bytes a second, one or more a round
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    format: int = FORMAT
    origins: dict[str, Origin] = field(default_factory=dict)  #: of each item; of those without, the fields above hold

    @property
    def write_rate(self) -> float | None:
        """The median synced write rate in bytes a second."""
        return statistics.median(self.write_rates) if self.write_rates else None

    def write_rate_of(self, item: str) -> float | None:
        """The same in the run that an item comes from."""
        origin = self.origins.get(item)
        return statistics.median(origin.write_rates) if origin and origin.write_rates else self.write_rate

    def scale_of(self, item: str) -> float:
        """The scale at which an item was measured."""
        origin = self.origins.get(item)
        return origin.scale if origin else self.scale

    def pick(self, item: str, verb: str, tool: str) -> list[Sample]:
        """The samples of all rounds."""
        return [s for s in self.samples if (s.item, s.verb, s.tool) == (item, verb, tool)]

    def median(self, item: str, verb: str, tool: str, field_name: str) -> float | None:
        """The median over rounds of one field, None when nothing was measured."""
        values = [getattr(s, field_name) for s in self.pick(item, verb, tool)]
        known = [v for v in values if v is not None]
        return float(statistics.median(known)) if known else None

    def verbs(self, item: str) -> list[str]:
        """The verbs that were measured with an item, in order."""
        return list(dict.fromkeys(s.verb for s in self.samples if s.item == item))

    def tools(self) -> list[str]:
        """The tools that were there, in the order of the run."""
        return list(self.versions)


def joined(older: Result, newer: Result) -> Result:
    """`newer` and those items of `older` that it does not have, each with its origin.

    Raises:
        ValueError: the two come from different machines, so that one table would be no comparison.
    """
    if older.machine != newer.machine:
        raise ValueError("the result that is there was measured on another machine or system")
    mine = {*newer.items, *(s.item for s in newer.samples), *(f.item for f in newer.failures)}
    theirs = {*older.items, *(s.item for s in older.samples)} - mine
    before = Origin(made=older.made, scale=older.scale, rounds=older.rounds, write_rates=older.write_rates, loads=[])
    return dataclasses.replace(
        newer,
        versions={**older.versions, **newer.versions},
        missing={t: why for t, why in newer.missing.items() if t not in older.versions},
        items={**newer.items, **{k: v for k, v in older.items.items() if k in theirs}},
        samples=[*newer.samples, *(s for s in older.samples if s.item in theirs)],
        failures=[*newer.failures, *(f for f in older.failures if f.item in theirs)],
        origins={**newer.origins, **{item: older.origins.get(item, before) for item in sorted(theirs)}},
    )


def save(result: Result, path: str) -> None:
    """Write the document, replacing it whole."""
    with open(path + ".new", "w") as f:
        json.dump(dataclasses.asdict(result), f, indent=1)
        f.write("\n")
    os.replace(path + ".new", path)


def load(path: str) -> Result:
    """Read a document.

    Raises:
        ValueError: it is not of the format that this version reads.
    """
    with open(path) as f:
        said = json.load(f)
    if said.get("format") != FORMAT:
        raise ValueError(f"{path} has format {said.get('format')}, not {FORMAT}")
    said["samples"] = [Sample(**s) for s in said["samples"]]
    said["failures"] = [Failure(**f) for f in said["failures"]]
    said["origins"] = {item: Origin(**o) for item, o in said.get("origins", {}).items()}
    return Result(**said)


def machine(filesystem: str) -> dict[str, str]:
    """What the numbers were measured on, without names of hosts or users."""
    about = {
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "filesystem": filesystem,
        "python": platform.python_version(),
        "cpu": platform.processor() or platform.machine(),
    }
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        about["cpu"] = names[0] if names else about["cpu"]
    except FileNotFoundError:
        pass  # not Linux; platform's word stays
    return about
