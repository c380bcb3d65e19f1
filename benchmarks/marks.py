"""The marks: what dvk promises beside its peers, as a table of numbers, and which of them a result reaches.

A mark compares dvk with a peer of the same run, or with the raw size, or with seconds. A mark on the time of an `add`
never lies under the disk: all adds are synced, so the limit is at least 1.15 x what was stored / the synced write rate
of the same run. A mark that cannot be judged (a peer was missing, an item was left out, the scale was too small) says
so; it is neither reached nor missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import Result

OVER_THE_DISK = 1.15
MS = 1e-3


@dataclass(frozen=True)
class Mark:
    """`field` of dvk for `item` and `verb` is at most `factor` times that of `peer`.

    Instead of a tool's name `peer` may be "raw" (the item's first version in bytes), "seconds" (an absolute limit),
    or "dvc/file" (per file, where DVC got fewer).
    """

    item: str
    verb: str
    peer: str
    factor: float
    field: str = "wall_s"
    full_scale_only: bool = False


MARKS = (
    Mark("table", "add", "dvc", 0.45),
    Mark("table", "add", "xet", 0.55),
    Mark("table", "add", "xet", 0.60, "stored_bytes"),
    Mark("table", "add-edit", "dvc", 0.2),
    Mark("table", "add-edit", "xet", 0.5),
    Mark("table", "add-edit", "xet", 0.5, "stored_bytes"),
    Mark("model", "add", "xet", 1.0),
    Mark("model", "add", "xet", 0.85, "stored_bytes"),
    Mark("weights-bf16", "add", "raw", 0.67, "stored_bytes"),
    Mark("weights-fp32", "add", "raw", 0.84, "stored_bytes"),
    Mark("weights-fp16", "add", "raw", 0.86, "stored_bytes"),
    Mark("files", "add", "dvc", 0.25),
    Mark("files", "add", "restic", 0.6),
    Mark("files", "add", "xet", 0.4),
    Mark("files", "add-edit", "dvc", 0.15),
    Mark("files", "status", "dvc", 0.1),
    Mark("many", "status", "seconds", 5.0, full_scale_only=True),
    Mark("many", "add", "dvc/file", 1 / 8),
    Mark("table", "back", "dvc", 1.0),
    Mark("files", "back", "dvc", 0.15),
    Mark("files", "push-s3", "dvc", 0.1),
    Mark("files", "pull-s3", "dvc", 0.1),
    Mark("table", "push-s3", "dvc", 0.4),
    Mark("table", "pull-s3", "dvc", 0.6),
    Mark("start", "version", "seconds", 80 * MS),
    Mark("start", "empty-status", "seconds", 200 * MS),
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A mark against a result."""

    mark: Mark
    value: float | None  #: dvk's own
    limit: float | None  #: what it had to be at most
    ratio: float | None = None  #: of the value to what the mark compares it with, in the units of its factor
    reached: bool | None  #: None: cannot be judged
    why: str  #: what cannot be judged, or that the disk set the limit


def judge(result: Result, marks: Sequence[Mark] = MARKS) -> list[Judged]:
    """Compare every mark with the medians of a result."""
    return [_judge(mark, result) for mark in marks]


def _judge(mark: Mark, result: Result) -> Judged:
    value = result.median(mark.item, mark.verb, "dvk", mark.field)
    if value is None:
        failed = any(f.tool == "dvk" and f.item == mark.item for f in result.failures)
        # A failure of dvk is a miss; a verb that was left out is not.
        return Judged(
            mark=mark, value=None, limit=None, reached=False if failed else None, why="failed" if failed else "not run"
        )
    if mark.full_scale_only and result.scale_of(mark.item) < 1:
        return Judged(mark=mark, value=value, limit=None, reached=None, why="full scale only")
    base = _base(mark, result)
    if base is None:
        why = "peer missing" if mark.peer in result.missing else "peer not measured"
        return Judged(mark=mark, value=value, limit=None, reached=None, why=why)
    limit, why = base * mark.factor, ""
    floor = _disk_floor(mark, result)
    if floor is not None and floor > limit:
        limit, why = floor, "limit is the disk"
    return Judged(mark=mark, value=value, limit=limit, ratio=value / base, reached=value <= limit, why=why)


def _base(mark: Mark, result: Result) -> float | None:
    if mark.peer == "seconds":
        return 1.0
    if mark.peer == "raw":
        sizes = result.items[mark.item]["bytes"]
        assert isinstance(sizes, list)
        return float(sizes[0])
    if mark.peer == "dvc/file":
        whole, part = (result.median(mark.item, mark.verb, tool, "files") for tool in ("dvk", "dvc"))
        seconds = result.median(mark.item, mark.verb, "dvc", mark.field)
        return seconds * whole / part if seconds and whole and part else None
    return result.median(mark.item, mark.verb, mark.peer, mark.field)


def _disk_floor(mark: Mark, result: Result) -> float | None:
    if mark.field != "wall_s" or not mark.verb.startswith("add"):
        return None
    stored = result.median(mark.item, mark.verb, "dvk", "stored_bytes")
    rate = result.write_rate_of(mark.item)
    return OVER_THE_DISK * stored / rate if stored and rate else None


def render(judged: Sequence[Judged], result: Result) -> str:
    """One line a mark for people."""
    lines = [describe(j) for j in judged]
    known = [j for j in judged if j.reached is not None]
    reached = sum(1 for j in known if j.reached)
    lines.append(f"{reached} of {len(known)} marks reached, {len(judged) - len(known)} cannot be judged from this run")
    if result.scale != 1:
        lines.append(f"scale {result.scale:g}: start-up weighs more than in real work; only full scale counts")
    return "\n".join(lines)


def describe(j: Judged) -> str:
    """The mark, the value, the limit."""
    word = {True: "reached", False: "MISSED ", None: "unknown"}[j.reached]
    mark = j.mark
    what = f"{mark.item} {mark.verb} {'bytes' if mark.field == 'stored_bytes' else 'time'}"
    against = "s" if mark.peer == "seconds" else f"x {mark.peer}"
    text = f"{word}  {what:32} at most {mark.factor:.3g} {against}"
    if j.value is not None and j.limit is not None:
        value, limit = _amount(j.value, mark), _amount(j.limit, mark)
        text = f"{text:64} {value} of {limit} ({j.ratio:.2f})"
    return f"{text}  {j.why}".rstrip()


def _amount(value: float, mark: Mark) -> str:
    return f"{value / 1e6:.1f} MB" if mark.field == "stored_bytes" else f"{value:.3f} s"
