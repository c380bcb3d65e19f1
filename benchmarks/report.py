"""A result as Markdown: one table a question, dvk in the first column, each peer with its ratio to dvk.

`3.1 (2.6x)` reads: the peer takes 3.1, which is 2.6 times what dvk takes. Above 1 dvk is ahead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from benchmarks import chart, marks
from benchmarks.results import Result
from benchmarks.workloads import CATALOG

VERBS = {
    "add": "first add",
    "add-next": "add of the next epoch",
    "status": "status, nothing changed",
    "status-edit": "status, 1 % changed",
    "add-edit": "add of an edit",
    "back": "checkout of the version before",
    "forth": "checkout of the newer one",
    "push-local": "push, local disk",
    "push-edit-local": "push of the edit, local disk",
    "pull-local": "pull, local disk",
    "push-s3": "push, S3",
    "push-edit-s3": "push of the edit, S3",
    "pull-s3": "pull, S3",
    "version": "`--version`",
    "empty-status": "status, empty repository",
}
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def write(result: Result, folder: str) -> None:
    """Write results.md and chart.svg into `folder`, and renew the part of `folder.md` between its marks, if any."""
    text = render(result)
    _write(os.path.join(folder, "results.md"), "# Results\n\n" + text)
    _write(os.path.join(folder, "chart.svg"), chart.render(result))
    page = folder.rstrip("/") + ".md"
    if os.path.exists(page):
        with open(page) as f:
            before, begin, rest = f.read().partition(BEGIN)
        _, end, after = rest.partition(END)
        if begin and end:
            _write(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)


def render(result: Result) -> str:
    """The whole result as Markdown, from the heading of level 2 on."""
    parts = [_head(result)]
    parts.append(_section(result, "Wall time, seconds", "wall_s", _seconds))
    parts.append(_section(result, "New bytes in the store or on the remote, MB", "stored_bytes", _megabytes))
    parts.append(_section(result, "Processor time, seconds", "cpu_s", _seconds))
    parts.append(_section(result, "Peak memory of the largest process, MB", "rss_bytes", _megabytes))
    parts.append(_section(result, "Moved to or from S3, MB", "moved_bytes", _megabytes))
    parts.append(_section(result, "Requests to S3", "requests", _count))
    parts.append(_left_to_write(result))
    parts.append(_marks(result))
    if result.failures:
        parts.append("## What failed\n\n" + "\n".join(_failures(result)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(result: Result) -> str:
    about = result.machine
    memory = int(about["memory_bytes"]) / 1e9
    rate = f"{result.write_rate / 1e6:.0f} MB/s" if result.write_rate else "not measured"
    lines = [
        f"Measured {result.made[:10]} at scale {result.scale:g}, median of {result.rounds} rounds, on {about['cpus']}"
        f" cores of {about['cpu']}, {memory:.0f} GB of memory, {about['filesystem'] or 'unknown filesystem'},"
        f" {about['system']}, Python {about['python']}. Synced writes: {rate}.",
        "",
        "| tool | version |",
        "|---|---|",
        *(f"| {tool} | {version} |" for tool, version in result.versions.items() if tool != "cp"),
        *(f"| {tool} | not installed, so not measured |" for tool in result.missing),
    ]
    if result.scale < 1:
        lines += ["", "**A scaled run: start-up weighs more than in real work. Only scale 1 counts.**"]
    return "\n".join([*lines, *_origins(result)])


def _origins(result: Result) -> list[str]:
    """When and how each item was measured."""
    if not result.origins:
        return []
    rows = [
        "",
        "| item | measured | scale | rounds | synced writes | other load on the cores |",
        "|---|---|---|---|---|---|",
    ]
    for item, o in result.origins.items():
        rate = result.write_rate_of(item) if o.write_rates else None
        loads = ", ".join(f"{load:.1f}" for load in o.loads) or "not noted"
        shown = f"{rate / 1e6:.0f} MB/s" if rate else ""
        rows.append(f"| {_title(result, item)} | {o.made[:16]} | {o.scale:g} | {o.rounds} | {shown} | {loads} |")
    return rows


def _section(result: Result, title: str, field: str, show: Callable[[float], str]) -> str:
    rows: list[str] = []
    tools = [t for t in result.tools() if any(s.tool == t and getattr(s, field) is not None for s in result.samples)]
    for item in ["start", *result.items]:
        for verb in result.verbs(item):
            cells = _row(result, item, verb, tools, field, show)
            if any(cells):
                rows.append(f"| {_title(result, item)} | {VERBS.get(verb, verb)} | " + " | ".join(cells) + " |")
    if not rows:
        return ""
    head = [f"| | | {' | '.join(tools)} |", "|---|---|" + "---:|" * len(tools)]
    return "\n".join([f"## {title}", "", *head, *rows])


def _row(
    result: Result, item: str, verb: str, tools: Sequence[str], field: str, show: Callable[[float], str]
) -> list[str]:
    own = result.median(item, verb, "dvk", field)
    cells = []
    for tool in tools:
        value = result.median(item, verb, tool, field)
        if value is None:
            cells.append("")
            continue
        text = show(value)
        if tool == "dvk":
            text = f"**{text}**"
        elif own:
            text += f" ({value / own:.2g}x)" if value < 100 * own else f" ({value / own:.0f}x)"
        files, whole = (result.median(item, verb, t, "files") for t in (tool, "dvk"))
        if files and whole and files < whole:
            text += f" for {files:,.0f} files"
        cells.append(text)
    return cells


def _title(result: Result, item: str) -> str:
    if item in result.items:
        return str(result.items[item]["title"])
    return CATALOG[item].title if item in CATALOG else "start-up"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.2f}" if abs(value) < 10e6 else f"{value / 1e6:,.0f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _left_to_write(result: Result) -> str:
    """Who had not written yet when the command ended: dvk has, by promise."""
    section = _section(result, "Still to be written when the command had ended, seconds", "sync_s", _seconds)
    if not section:
        return ""
    kept = [line for line in section.splitlines() if not line.startswith("|") or "add" in line or "push" in line]
    head = [line for line in section.splitlines() if line.startswith(("| | |", "|---"))]
    at = next((i for i, line in enumerate(kept) if line.startswith("| ")), len(kept))
    return "\n".join([*kept[:at], *[h for h in head if h not in kept[:at]], *kept[at:]])


def _marks(result: Result) -> str:
    rows = [
        "## Marks",
        "",
        "| mark | limit | dvk | |",
        "|---|---:|---:|---|",
    ]
    for j in marks.judge(result):
        mark = j.mark
        show = _megabytes if mark.field == "stored_bytes" else _seconds
        unit = "MB" if mark.field == "stored_bytes" else "s"
        against = f"{mark.factor:.3g} s" if mark.peer == "seconds" else f"{mark.factor:.3g} x {mark.peer}"
        word = {True: "reached", False: "**missed**", None: "unknown"}[j.reached]
        limit = f"{show(j.limit)} {unit}" if j.limit is not None else ""
        value = f"{show(j.value)} {unit}" if j.value is not None else ""
        verb = VERBS.get(mark.verb, mark.verb)
        title = f"{_title(result, mark.item)}: {verb}, {'bytes' if unit == 'MB' else 'time'}, at most {against}"
        rows.append(f"| {title} | {limit} | {value} | {word}{', ' + j.why if j.why else ''} |")
    return "\n".join(rows)


def _failures(result: Result) -> list[str]:
    seen: dict[tuple[str, str, str], str] = {}
    for f in result.failures:
        seen.setdefault((f.tool, f.item, f.verb), " ".join(f.what.split())[-300:])
    return [f"- {tool}, {item}, {verb}: `{what.replace('`', ' ')}`" for (tool, item, verb), what in seen.items()]
