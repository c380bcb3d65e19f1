"""A plan turned into what a walk reads: checked, cut into segments that lie between skipped rows, aligned parts apart.

    A   [0..100) read   [100..900) skipped   [900..950) read
    B   [0..90)  read   [90..890)  skipped   [890..960) read

Without a key, rows before the skipped ones must not be paired with rows after them; each pair of read parts is a
segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import TableError
from dvk.table.contract import Aligned, Plan, Region, Table


class Segment(Struct, frozen=True):
    """`before`: how many skipped rows precede it; `a`, `b`: rows to read of each side."""

    before: int
    a: int
    b: int


def checked(plan: Plan, a: Table, b: Table) -> Plan:
    """The plan, if it speaks of all rows of both tables exactly once.

    Raises:
        TableError: it does not, so its answer would be wrong.
    """
    together = sum(x.a.rows for x in plan.aligned)
    for table, regions, aligned in (
        (a, plan.a, [x.a for x in plan.aligned]),
        (b, plan.b, [x.b for x in plan.aligned]),
    ):
        rows = table.count_rows()
        parts = sorted([*regions, *aligned], key=lambda r: r.first)
        fits = all(x.first + x.rows <= y.first for x, y in pairwise(parts))
        inside = not parts or (parts[0].first >= 0 and parts[-1].first + parts[-1].rows <= rows)
        if not (fits and inside and sum(r.rows for r in regions) + together + plan.skipped == rows):
            raise TableError(
                f"the plan ({plan.level}) does not cover its {rows} rows",
                subject=table.source.label,
                hint="please report this; `--no-index` style full reading is not affected",
            )
    return plan


def without_aligned(plan: Plan) -> Plan:
    """The same with aligned parts read in full."""
    return replace(
        plan,
        a=_merged([*plan.a, *(x.a for x in plan.aligned)]),
        b=_merged([*plan.b, *(x.b for x in plan.aligned)]),
        aligned=(),
    )


def keep_aligned(plan: Plan, key: Sequence[tuple[int, int]]) -> Plan:
    """The same, with aligned parts in which the key itself may differ read in full. `key`: (index in A, index in B)."""
    good = [x for x in plan.aligned if not any(pair in x.columns for pair in key)]
    bad: list[Aligned] = [x for x in plan.aligned if x not in good]
    rest = without_aligned(replace(plan, aligned=tuple(bad)))
    return replace(rest, aligned=tuple(good))


def segments(plan: Plan) -> list[Segment]:
    """The read parts of an ordered plan, in order."""
    rows: dict[int, list[int]] = {}
    for side, regions in enumerate((plan.a, plan.b)):
        read = 0
        for region in regions:
            rows.setdefault(region.first - read, [0, 0])[side] += region.rows
            read += region.rows
    return [Segment(before, a, b) for before, (a, b) in sorted(rows.items())]


def complement(regions: Sequence[Region], rows: int) -> tuple[Region, ...]:
    """All other rows of a table."""
    out, at = [], 0
    for region in regions:
        if region.first > at:
            out.append(Region(at, region.first - at))
        at = region.first + region.rows
    if at < rows:
        out.append(Region(at, rows - at))
    return tuple(out)


def _merged(regions: Sequence[Region]) -> tuple[Region, ...]:
    out: list[Region] = []
    for region in sorted((r for r in regions if r.rows), key=lambda r: r.first):
        if out and out[-1].first + out[-1].rows == region.first:
            out[-1] = Region(out[-1].first, out[-1].rows + region.rows)
        else:
            out.append(region)
    return tuple(out)
