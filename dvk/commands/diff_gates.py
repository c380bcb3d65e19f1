"""`--fail-on 'modified>0.1%,schema'`: what a job in CI does not let pass.

    gate   = metric [ ">" number [ "%" ] ]                a metric alone means > 0
    metric = any | added | removed | modified | moved | rows | cells | schema

Of a table `added` to `rows` count rows (`rows` all three together), of a folder files, of a file of tensors tensors, of
any other path the path itself; per cent are of what the first side has. `schema` counts changes of columns, shapes and
types. Each path is held against each gate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from dvk.commands.diff_result import DiffResult, PathDiff
from dvk.errors import UsageError

METRICS = ("any", "added", "removed", "modified", "moved", "rows", "cells", "schema")
_GATE = re.compile(r"\s*([a-z]+)\s*(?:>\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*(%?)\s*)?")


class Gate(Struct, frozen=True):
    """A bound that must not be exceeded; `percent` of what the first side has."""

    text: str
    metric: str
    bound: float = 0.0
    percent: bool = False


class Exceeded(Struct, frozen=True):
    """A gate that a path did not pass; `found` in the unit of the gate."""

    path: bytes
    gate: str
    found: float


def parse_gates(text: str) -> tuple[Gate, ...]:
    """The gates in a text.

    Raises:
        UsageError: it is not written as the module says.
    """
    gates = []
    for part in text.split(","):
        found = _GATE.fullmatch(part)
        if found is None or found[1] not in METRICS:
            raise UsageError(
                "not a gate",
                subject=part.strip()[:80] or "--fail-on",
                hint=f"one of {', '.join(METRICS)}, alone or with a bound: modified>0.1%,schema",
            )
        metric, bound, percent = found[1], float(found[2] or 0), bool(found[3])
        if percent and metric in ("any", "cells", "schema"):
            raise UsageError(f"`{metric}` has no whole to be a part of", subject=part.strip(), hint="leave out the %")
        gates.append(Gate(part.strip(), metric, bound, percent))
    return tuple(gates)


def exceeded(result: DiffResult, gates: Sequence[Gate]) -> list[Exceeded]:
    """Which paths do not pass which gates."""
    out = []
    for top in result.paths:
        # A folder whose contents were compared is judged by these as well.
        for path in top.each():
            if not path.differs:
                continue
            counts, whole = _counts(path)
            for gate in gates:
                found = float(counts[gate.metric])
                if gate.percent:
                    found = 100 * found / whole if whole else 100.0 * bool(found)
                if found > gate.bound:
                    out.append(Exceeded(path.path, gate.text, found))
    return out


def _counts(path: PathDiff) -> tuple[dict[str, int], int]:
    """What of each metric a path has, and how much there was before."""
    counts = dict.fromkeys(METRICS, 0)
    whole = 1 if path.a is not None else 0
    if path.table is not None:
        r = path.table.rows
        counts.update(added=r.added, removed=r.removed, modified=r.modified, moved=r.moved)
        counts["cells"] = sum(c.changed for c in path.table.columns)
        counts["schema"] = len(path.table.schema)
        whole = r.a
    elif path.tensors is not None:
        kinds = [c.kind for c in path.tensors.changes]
        counts.update(added=kinds.count("added"), removed=kinds.count("removed"))
        counts["modified"] = len(kinds) - counts["added"] - counts["removed"]
        counts["schema"] = sum(k in ("reshaped", "retyped", "added", "removed") for k in kinds)
        whole = path.tensors.tensors[0]
    elif path.files is not None:
        f = path.files
        counts.update(added=len(f.added), removed=len(f.removed), modified=len(f.modified), moved=len(f.renamed))
        whole = path.a.files if path.a is not None else 0
    else:
        word = {"added": "added", "removed": "removed", "missing": "removed"}.get(path.status, "modified")
        counts[word] = 1
    if path.status == "kind-changed":
        counts["schema"] += 1
    counts["rows"] = counts["added"] + counts["removed"] + counts["modified"]
    counts["any"] = 1
    return counts, whole
