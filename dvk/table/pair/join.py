"""Left-over rows joined: by key, by content in order, or by content as a bag. The answer is a table `changed`.

`changed` has `kind` (0 removed, 1 added, 2 modified, 3 moved), `ar` and `br` (row numbers, null where there is none),
and the key columns in comparable form.

By key, one full outer join answers where keys are unique among the left-over rows, and its own counts say whether they
were: rows of A with a partner and rows without must be the rows of A, and so for B. Otherwise it is a bag for each key:

    A has (7, x) (7, y); B has (7, y) (7, z): y cancels, and x became z

Copies that are identical cancel, the rest is paired in row order. Whatever way was taken, the counts must add up to the
rows that went in, and an independent count of each key must agree; else there is an error and no answer.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import TableError
from dvk.table.engine import Engine
from dvk.table.pair.residue import Residue
from dvk.table.walk.sequence import in_order, positions

REMOVED, ADDED, MODIFIED, MOVED = range(4)
KINDS = ("removed", "added", "modified", "moved")

_KIND = f"case when br is null then {REMOVED} when ar is null then {ADDED} else {MODIFIED} end kind"


class Counts(Struct, frozen=True):
    """Of the left-over rows: pairs of equal rows, and how many rows of each kind are in `changed`."""

    same: int = 0
    removed: int = 0
    added: int = 0
    modified: int = 0
    moved: int = 0

    def fits(self, rows: tuple[int, int]) -> bool:
        """Whether these are all rows of A and all rows of B."""
        pairs = self.same + self.modified + self.moved
        return pairs + self.removed == rows[0] and pairs + self.added == rows[1]


def by_key(engine: Engine, residue: Residue) -> Counts:
    """Join by key; makes `changed`.

    Raises:
        TableError: the counts do not add up, even the second way.
    """
    residue.flush()
    on = _same_key(residue)
    shown = "".join(
        f", case when x.r is null then y.{k} when y.r is null or not same then x.{k} end {k}" for k in residue.columns
    )
    _start(engine, "joined", "select x.r ar, y.r br, true same" + "".join(f", x.{k}" for k in residue.columns))
    for part in residue.slices(residue.columns):
        engine.run(
            f"insert into joined select x.r ar, y.r br, x.h is not distinct from y.h same{shown}"
            f" from (select * from a where {part}) x full outer join (select * from b where {part}) y on {on}"
        )
    counts = _count(engine, "joined")
    if not counts.fits(residue.rows):
        counts = _bag_by_key(engine, residue)
    keys = "".join(f", {k}" for k in residue.columns)
    engine.run(
        f"create or replace table changed as select {_KIND}, ar, br{keys} from joined"
        f" where ar is null or br is null or not same union all select {MODIFIED}, ar, br{keys} from m"
    )
    engine.run("drop table joined")
    return replace(counts, modified=counts.modified + residue.pairs)


def by_content(engine: Engine, residue: Residue, *, align: str) -> Counts:
    """Pair rows without a key; makes `changed`.

    `bag`: rows of equal content cancel, wherever they are. `sequence`: those have moved, and in a gap with as many rows
    on both sides the rest is paired in row order. `position`: only rows of the same gap are paired, nothing moves.

    Raises:
        TableError: the counts do not add up.
    """
    residue.flush()
    engine.run("create or replace table cancelled (ar bigint, br bigint)")
    for side in "ab":
        engine.run(f"create or replace table rest_{side} (r bigint, g bigint)")
    for part in residue.slices(["h"]):
        if align != "position":
            copies = "r, h, row_number() over (partition by h order by r) n"
            engine.run(
                "create or replace table part as select x.r ar, y.r br"
                f" from (select {copies} from a where {part}) x join (select {copies} from b where {part}) y"
                " on x.h = y.h and x.n = y.n"
            )
        else:
            engine.run("create or replace table part as select * from cancelled limit 0")
        engine.run("insert into cancelled select * from part")
        engine.run(f"insert into rest_a select r, g from a anti join part on r = ar where {part}")
        engine.run(f"insert into rest_b select r, g from b anti join part on r = br where {part}")
    cancelled = engine.one("select count(*) from cancelled")
    if align == "bag":
        engine.run(
            "create or replace table joined as select r ar, null::bigint br, false same from rest_a"
            " union all select null, r, false from rest_b"
        )
    else:
        place = "r, g, row_number() over (partition by g order by r) n, count(*) over (partition by g) size"
        _start(engine, "joined", "select x.r ar, y.r br, true same")
        for part in residue.slices(["g"]):
            engine.run(
                "insert into joined select x.r ar, y.r br, false same"
                f" from (select {place} from rest_a where {part}) x"
                f" full outer join (select {place} from rest_b where {part}) y"
                " on x.g = y.g and x.n = y.n and x.size = y.size"
            )
    found = _count(engine, "joined")
    counts = replace(found, same=cancelled) if align == "bag" else replace(found, moved=cancelled)
    _check(counts, residue)
    kinds = f"select {_KIND}, ar, br from joined"
    if align == "sequence":
        kinds += f" union all select {MOVED}, ar, br from cancelled"
    engine.run(f"create or replace table changed as {kinds}")
    for name in ("joined", "cancelled", "part", "rest_a", "rest_b"):
        engine.run(f"drop table {name}")
    return counts


def in_sequence(engine: Engine, residue: Residue) -> int:
    """Take rows out of `a` and `b` that are equal and in the same order on both sides; how many pairs.

    For what a walk left over because it looks only so far ahead. Needs 24 bytes a row.
    """
    residue.flush()
    coded = engine.table(
        "select side, r, g, dense_rank() over (order by h) code"
        " from (select 0 side, r, g, h from a union all select 1, r, g, h from b) order by side, r"
    )
    side, r, g, code = (coded.column(n).to_numpy().astype(np.int64) for n in ("side", "r", "g", "code"))
    cut = int(np.searchsorted(side, 1))
    in_step = np.zeros(len(side), bool)
    for gap in np.intersect1d(g[:cut], g[cut:]).tolist():
        i, until_i = np.searchsorted(g[:cut], [gap, gap + 1]).tolist()
        j, until_j = (np.searchsorted(g[cut:], [gap, gap + 1]) + cut).tolist()
        ia, ib = positions(in_order(code[i:until_i], code[j:until_j]))
        in_step[ia + i] = True
        in_step[ib + j] = True
    found = int(in_step[:cut].sum())
    if found:
        # Both sides have as many rows in step before each gap, so adding that number splits gaps alike.
        g[:cut] += np.cumsum(in_step[:cut])
        g[cut:] += np.cumsum(in_step[cut:])
        for name, part in (("a", slice(0, cut)), ("b", slice(cut, None))):
            left = ~in_step[part]
            engine.put(
                f"create or replace table {name} as select x.h, x.r, feed.g from {name} x join feed on x.r = feed.r",
                pa.table({"r": r[part][left], "g": g[part][left]}),
            )
        residue.matched(found)
    return found


def _bag_by_key(engine: Engine, residue: Residue) -> Counts:
    keys = ", ".join(residue.columns)
    on = _same_key(residue)
    copies = f"*, row_number() over (partition by {keys}, h order by r) n"
    rest = f"{keys}, r, row_number() over (partition by {keys} order by r) n"
    shown = "".join(f", case when x.r is null then y.{k} else x.{k} end {k}" for k in residue.columns)
    _start(engine, "joined", "select x.r ar, y.r br, true same" + "".join(f", x.{k}" for k in residue.columns))
    cancelled = paired = 0
    for part in residue.slices(residue.columns):
        engine.run(
            "create or replace table part as select x.r ar, y.r br"
            f" from (select {copies} from a where {part}) x join (select {copies} from b where {part}) y"
            f" on {on} and x.h = y.h and x.n = y.n"
        )
        engine.run(
            f"insert into joined select x.r ar, y.r br, false same{shown}"
            f" from (select {rest} from a anti join part on r = ar where {part}) x"
            f" full outer join (select {rest} from b anti join part on r = br where {part}) y on {on} and x.n = y.n"
        )
        cancelled += engine.one("select count(*) from part")
        paired += engine.one(
            f"select coalesce(sum(least(na, nb)), 0) from (select {keys}, sum(1 - s) na, sum(s) nb from"
            f" (select {keys}, 0 s from a where {part} union all select {keys}, 1 from b where {part}) group by {keys})"
        )
    engine.run("drop table part")
    counts = replace(_count(engine, "joined"), same=cancelled)
    _check(counts, residue)
    if paired != counts.same + counts.modified:
        raise _wrong(counts, residue)
    return counts


def _start(engine: Engine, table: str, row: str) -> None:
    """An empty table for rows like this one, of `a` as x and `b` as y."""
    engine.run(f"create or replace table {table} as {row} from a x, b y limit 0")


def _same_key(residue: Residue) -> str:
    return " and ".join(f"x.{k} is not distinct from y.{k}" for k in residue.columns)


def _count(engine: Engine, table: str) -> Counts:
    same, removed, added, modified = engine.rows(
        "select count(*) filter (same and ar is not null and br is not null), count(*) filter (br is null),"
        " count(*) filter (ar is null), count(*) filter (not same and ar is not null and br is not null)"
        f" from {table}"
    )[0]
    return Counts(same, removed, added, modified)


def _check(counts: Counts, residue: Residue) -> None:
    if not counts.fits(residue.rows):
        raise _wrong(counts, residue)


def _wrong(counts: Counts, residue: Residue) -> TableError:
    return TableError(
        f"the comparison does not add up: {residue.rows[0]} and {residue.rows[1]} rows went in, {counts} came out",
        hint="no result is shown since it would be wrong; please report this with the versions of duckdb and dvk",
    )
