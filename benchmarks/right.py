"""Which table diff tool says what is true: every pair of `table_cases`, asked of dvk and of four others.

    python -m benchmarks right --work DIR

It writes docs/benchmarks/tables-right.md and .json; exit code 1 when dvk is wrong once. Each tool runs as a process of
its own, the others in an environment that this makes (`DIR/table-peers`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.table_cases import CASES, Case
from dvk import __version__

PEERS = ("daff", "csv-diff", "datacompy", "pandas")
_PACKAGES = ("daff", "csv-diff", "datacompy", "pandas", "pyarrow")
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "table_child.py")
Answer = Mapping[str, Any]


def run(work: str, out: str) -> int:
    """Ask everybody, write the tables; the exit code."""
    python = _peers(work)
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            a, b = (os.path.join(folder, name + case.suffix) for name in "ab")
            for path, data in zip((a, b), case.files(), strict=True):
                with open(path, "wb") as file:
                    file.write(data)
            answers = {"dvk": ask_dvk(case, a, b), **{t: _ask_peer(python, t, case, a, b) for t in PEERS}}
        rows.append((case, answers))
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "tables-right.json"), "w", encoding="utf-8") as file:
        json.dump([{"case": c.name, "expect": asdict(c.expect), "answers": a} for c, a in rows], file, indent=1)
        file.write("\n")
    with open(os.path.join(out, "tables-right.md"), "w", encoding="utf-8") as file:
        file.write(_markdown(rows, _versions(python)))
    wrong = [case.name for case, answers in rows if verdict(case, answers["dvk"]) != "right"]
    for name in wrong:
        print(f"dvk is wrong: {name}")
    return 1 if wrong else 0


def ask_dvk(case: Case, a: str, b: str) -> Answer:
    """What `dvk diff --no-index` says."""
    command = [sys.executable, "-m", "dvk", "diff", "--no-index", "--json"]
    command += ["--key", ",".join(case.key)] if case.key else ["--align", "auto"]
    done = subprocess.run([*command, a, b], capture_output=True, text=True, timeout=300, check=False)
    try:
        document = json.loads(done.stdout)
    except ValueError:
        return {"error": f"no JSON: {(done.stdout + done.stderr)[-200:]}"}
    if not document.get("ok", done.returncode == 0):
        return {"error": document["error"]["message"]}
    table = document["result"]["paths"][0]["table"]
    counts = {k: table["rows"][k] for k in ("added", "removed", "modified")}
    return {**counts, "schema": [change["kind"] for change in table["schema"]]}


def _ask_peer(python: str, tool: str, case: Case, a: str, b: str) -> Answer:
    command = [python, _CHILD, tool, a, b, *case.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    try:
        answer: Answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": (done.stderr.strip().splitlines() or ["it died"])[-1][:200]}
    return answer


def verdict(case: Case, answer: Answer) -> str:
    """`right`, `wrong` (said without an error), `error`, or `unsupported`."""
    if "unsupported" in answer:
        return "unsupported"
    if "error" in answer:
        return "right" if case.expect.error else "error"
    expect = case.expect
    counts = tuple(answer[k] for k in ("added", "removed", "modified"))
    fine = not expect.error and counts == (expect.added, expect.removed, expect.modified)
    if "schema" in answer:
        fine = fine and sorted(answer["schema"]) == sorted(expect.schema)
    return "right" if fine else "wrong"


def _said(case: Case, answer: Answer) -> str:
    found = verdict(case, answer)
    if found in ("unsupported", "error"):
        return "cannot" if found == "unsupported" else "error"
    if "error" in answer:
        return "**refused**"
    text = f"+{answer['added']} -{answer['removed']} ~{answer['modified']}"
    return f"**{text}**" if found == "right" else f"{text} ✗"


def _markdown(rows: Sequence[tuple[Case, Mapping[str, Answer]]], versions: str) -> str:
    tools = ("dvk", *PEERS)
    lines = [
        "# Who says what is true",
        "",
        f"{len(rows)} pairs of small tables on which diff tools go wrong, made by `benchmarks/table_cases.py`.",
        "Each tool is used the way its documentation shows first, with the key named. Bold is right; ✗ is a wrong",
        "answer without a word; *error* ends without an answer where there is one; *cannot* reads no such file or",
        "takes no such key. Repeat it with `python -m benchmarks right`.",
        "",
        f"Versions: {versions}.",
        "",
        "| | " + " | ".join(tools) + " |",
        "|---" * (len(tools) + 1) + "|",
    ]
    for kind in ("right", "wrong", "error", "unsupported"):
        counts = [sum(verdict(c, a[t]) == kind for c, a in rows) for t in tools]
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    lines += [
        "",
        "| case | what goes wrong elsewhere | true | " + " | ".join(tools) + " |",
        "|---" * (len(tools) + 3) + "|",
    ]
    for case, answers in rows:
        e = case.expect
        true = "refused" if e.error else f"+{e.added} -{e.removed} ~{e.modified}" + "".join(f", {k}" for k in e.schema)
        said = " | ".join(_said(case, answers[t]) for t in tools)
        lines.append(f"| {case.name} | {case.trap} | {true} | {said} |")
    return "\n".join(lines) + "\n"


def _peers(work: str) -> str:
    folder = os.path.join(work, "table-peers")
    python = os.path.join(folder, "bin", "python")
    if not os.path.exists(python):
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *_PACKAGES], check=True)
    return python


def _versions(python: str) -> str:
    code = (
        "import sys; from importlib.metadata import version as v; print(', '.join(f'{p} {v(p)}' for p in sys.argv[1:]))"
    )
    found = subprocess.run([python, "-c", code, *_PACKAGES], capture_output=True, text=True, check=True)
    return f"dvk {__version__}, {found.stdout.strip()}"
