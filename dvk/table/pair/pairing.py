"""Every row of both tables paired with a row of the other side, or found to have none; by one key, or without.

The walk (`pace`) drops rows that are in step and equal, the rest goes to the residue and is joined; rows that the plan
skips are not read. What comes out is a table `changed` in the engine and numbers that add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct, field

from dvk.errors import TableError
from dvk.table.answer.kept import Kept
from dvk.table.contract import Aligned, Plan, Region
from dvk.table.engine import Engine
from dvk.table.equal import encode, values
from dvk.table.match.keys import ChosenKey
from dvk.table.match.schema import Match
from dvk.table.options import CompareOptions
from dvk.table.pair import join
from dvk.table.pair.join import Counts
from dvk.table.pair.residue import Residue
from dvk.table.result import Notice
from dvk.table.walk import planned
from dvk.table.walk.ascent import Ascent
from dvk.table.walk.feed import Feed, Rows, SideSpec
from dvk.table.walk.pace import Step, Walk

I64 = npt.NDArray[np.int64]

_SCRAMBLED_IN_STEP = 0.2  # at most so many rows in step,
_SCRAMBLED_SHARED = 0.8  # but so many that are on both sides somewhere: the order says nothing
_STREAM = 0.05  # of an aligned part; when more rows of it differ, it is read in one go
_TAKE_ROWS = 1 << 14


class Pairing(Struct, frozen=True, kw_only=True):
    """How rows were paired. `same`: pairs of equal rows, those that were skipped included; `counts`: of the others.

    `rows`: of A and B, those that take part. `checked`, `duplicates`, `nulls`: see `dvk.table.result.Key`;
    `duplicate_keys`: a few of them in comparable form.
    """

    plan: Plan
    align: str
    rows: tuple[int, int]
    same: int
    counts: Counts
    kept: tuple[Kept, Kept]
    checked: str = "no"
    duplicates: tuple[int, int] = (0, 0)
    nulls: tuple[int, int] = (0, 0)
    duplicate_keys: pa.Table | None = None
    notices: tuple[Notice, ...] = ()


class Pairer(Struct, kw_only=True):
    """Pairs rows by one key (`chosen`), or without."""

    engine: Engine
    matched: Match
    specs: tuple[SideSpec, SideSpec]
    chosen: ChosenKey
    plan: Plan
    options: CompareOptions
    kept: tuple[Kept, Kept]
    look_ahead_bytes: int
    _in_step: int = 0
    _read: tuple[int, int] = (0, 0)

    def by_key(self) -> Pairing:
        """Pair rows by key.

        Raises:
            TableError: keys repeat and `on_dup` is `error`; or the counts do not add up.
        """
        options = self.options
        verify = options.verify_key or options.on_dup != "bag"
        pairs = [(self.matched.pairs[k].a.index, self.matched.pairs[k].b.index) for k in self.chosen.columns]
        plan = planned.without_aligned(self.plan) if verify else planned.keep_aligned(self.plan, pairs)
        residue = self._residue()
        sink = self._walk(residue, "key", plan, store=verify)
        for part in plan.aligned:
            self._aligned(residue, part)
        if verify and plan.skipped:
            self._scan_keys(residue, planned.complement(plan.a, self.specs[0].table.count_rows()))
        elif not sink.unique():
            residue.whole = True
            parts = [*plan.a, *(part.a for part in plan.aligned)]
            self._scan_keys(residue, sorted(parts, key=lambda region: region.first))
        duplicates = residue.find_repeated()
        shown = residue.repeated_keys(max(1, options.samples)) if any(duplicates) else None
        if any(duplicates) and options.on_dup == "error":
            assert shown is not None
            raise TableError(
                f"the key {self._labels()} is not unique: {duplicates[0]} and {duplicates[1]} rows repeat one, such as "
                + ", ".join(shown_keys(shown, self.matched, self.chosen)),
                hint="choose another key, or pair repeated keys with `on_dup` bag or first",
            )
        nulls = residue.nulls
        left_out: tuple[int, int] = (0, 0)
        if any(duplicates) and options.on_dup == "first":
            plan = Plan.everything(self.specs[0].table, self.specs[1].table)
            residue = self._residue()
            self._walk(residue, "key", plan, together=False)
            left_out = residue.keep_first()
        elif any(duplicates):
            for side, numbers in enumerate(residue.dissolve()):
                for found in self._again(side, numbers):
                    residue.add("ab"[side], found)
        counts = join.by_key(self.engine, residue)
        skipped = plan.skipped + sum(part.a.rows for part in plan.aligned)
        return Pairing(
            plan=plan,
            align="key",
            rows=(self._rows(0, plan) - left_out[0], self._rows(1, plan) - left_out[1]),
            same=self._in_step + plan.skipped,
            counts=counts,
            kept=self.kept,
            checked="full" if verify or not skipped else "partial",
            duplicates=duplicates,
            nulls=nulls,
            duplicate_keys=shown,
            notices=self._left_out(left_out),
        )

    def by_content(self) -> Pairing:
        """Pair rows without a key, as `align` says.

        Raises:
            TableError: the counts do not add up.
        """
        align = "sequence" if self.options.align == "auto" else self.options.align
        plan = planned.without_aligned(self.plan)
        if align == "position" or (align == "sequence" and not plan.ordered):
            plan = Plan.everything(self.specs[0].table, self.specs[1].table)
        residue = self._residue()
        sink = self._walk(residue, "position" if align == "position" else "content", plan, gaps=align != "bag")
        notices: list[Notice] = []
        if align == "sequence" and sink.gave_up:
            if max(residue.rows) <= self.options.max_gap_rows:
                self._in_step += join.in_sequence(self.engine, residue)
            else:
                align = "bag"
                limit = self.options.max_gap_rows
                notices.append(
                    Notice(
                        "too-long-to-align", f"more than {limit} rows are out of order: compared without their order"
                    )
                )
        counts = join.by_content(self.engine, residue, align=align)
        smaller = min(self._rows(0, plan), self._rows(1, plan))
        in_step = self._in_step + plan.skipped
        if (
            self.options.align == "auto"
            and align == "sequence"
            and in_step < _SCRAMBLED_IN_STEP * smaller
            and in_step + counts.moved > _SCRAMBLED_SHARED * smaller
        ):
            align = "bag"
            counts = join.by_content(self.engine, residue, align=align)
            notices.append(Notice("rows-reordered", "rows come in another order: compared without their order"))
        return Pairing(
            plan=plan,
            align=align,
            rows=(self._rows(0, plan), self._rows(1, plan)),
            same=in_step,
            counts=counts,
            kept=self.kept,
            notices=tuple(notices),
        )

    def _residue(self) -> Residue:
        forms = [self.matched.pairs[k].form for k in self.chosen.columns]
        self._in_step = 0
        return Residue(self.engine, self.chosen.columns, [f.type for f in forms if f is not None])

    def _rows(self, side: int, plan: Plan) -> int:
        return self._read[side] + plan.skipped + sum(part.a.rows for part in plan.aligned)

    def _walk(
        self, residue: Residue, mode: str, plan: Plan, *, gaps: bool = False, together: bool = True, store: bool = False
    ) -> _Sink:
        """Read what the plan leaves, and feed the residue.

        `gaps`: say where left-over rows lie; `together`: False leaves all rows over; `store`: all keys.
        """
        with Feed(self.specs[0], plan.a) as a, Feed(self.specs[1], plan.b) as b:
            walk = Walk(a, b, mode, self.look_ahead_bytes, gave_up=not together)
            sink = _Sink(residue, self.kept, self.chosen.columns, by_position=mode == "position", storing=store)
            if gaps and plan.ordered:
                for part in planned.segments(plan):
                    sink.skipped = part.before
                    for step in walk.steps(part.a, part.b):
                        sink.add(step, gaps=True)
            else:
                for step in walk.steps():
                    sink.add(step, gaps=gaps)
            for feed, regions in ((a, plan.a), (b, plan.b)):
                wanted = sum(r.rows for r in regions)
                if feed.seen != wanted:
                    raise TableError(
                        f"{wanted} rows were counted and {feed.seen} were read",
                        subject=feed.spec.table.source.label,
                        hint="the file changed while it was read, or its own row count is wrong",
                    )
        pa.default_memory_pool().release_unused()  # the join needs the room
        self._in_step += sink.same
        self._read = sink.read
        sink.gave_up = walk.gave_up
        return sink

    def _aligned(self, residue: Residue, part: Aligned) -> None:
        """Rows that correspond by position and of which a few columns may differ: only those are read."""
        pairs = self.matched.pairs
        chosen = [i for i, p in enumerate(pairs) if (p.a.index, p.b.index) in part.columns]
        if not chosen:
            self._in_step += part.a.rows
            return
        narrow = [spec.only(chosen) for spec in self.specs]
        at = 0
        differ: list[I64] = []
        with Feed(narrow[0], [part.a]) as a, Feed(narrow[1], [part.b]) as b:
            for step in Walk(a, b, "position", self.look_ahead_bytes).steps():
                if step.a.count != step.b.count:
                    raise TableError("rows that correspond are not as many on both sides", hint="please report this")
                differ.append(at + np.flatnonzero(~step.same))
                at += step.a.count
        rows = np.concatenate(differ) if differ else np.zeros(0, np.int64)
        self._in_step += part.a.rows - len(rows)
        for side, region in enumerate((part.a, part.b)):
            for found in self._pick(side, region, rows + region.first):
                residue.add("ab"[side], found)
                self.kept[side].add(found.numbers, found.raw)

    def _pick(self, side: int, region: Region, numbers: I64) -> Iterator[Rows]:
        """Full rows of these numbers, which lie in a region."""
        spec = self.specs[side]
        if len(numbers) > _STREAM * region.rows:
            for first, batch in spec.table.batches(spec.columns, regions=[region]):
                inside = numbers[(numbers >= first) & (numbers < first + batch.num_rows)]
                if len(inside):
                    yield spec.comparable(inside, batch.take(pa.array(inside - first)))
            return
        for start in range(0, len(numbers), _TAKE_ROWS):
            some = numbers[start : start + _TAKE_ROWS]
            for batch in spec.table.take(some, spec.columns).combine_chunks().to_batches():
                yield spec.comparable(some, batch)

    def _again(self, side: int, numbers: I64) -> Iterator[Rows]:
        """Full rows that were met before, ascending."""
        spec, kept = self.specs[side], self.kept[side]
        for start in range(0, len(numbers), _TAKE_ROWS):
            some = numbers[start : start + _TAKE_ROWS]
            table = kept.take(some) if kept.complete else spec.table.take(some, spec.columns)
            for batch in table.combine_chunks().to_batches():
                yield spec.comparable(some, batch)

    def _scan_keys(self, residue: Residue, regions: Sequence[Region]) -> None:
        """The keys of rows of A that were not stored while they were walked, or not walked."""
        with Feed(self.specs[0].only(self.chosen.columns), regions) as feed:
            while (window := feed.window(1 << 16)).count:
                residue.add_keys(list(window.flat))
                feed.drop(window.count)

    def _labels(self) -> str:
        return ", ".join(self.matched.pairs[k].label for k in self.chosen.columns)

    def _left_out(self, rows: tuple[int, int]) -> tuple[Notice, ...]:
        if not any(rows):
            return ()
        text = f"{rows[0]} and {rows[1]} rows repeat a key and are left out: only the first of each key counts"
        return (Notice("repeats-left-out", text),)


class _Sink(Struct):
    """Takes the steps of a walk: equal rows are counted, others go to the residue and are kept.

    Keys either prove to be unique as they ascend, or are stored: where they do not ascend from the start, or on demand.
    """

    residue: Residue
    kept: tuple[Kept, Kept]
    key: tuple[int, ...]
    by_position: bool
    storing: bool
    skipped: int = 0  #: rows that the plan skips before this step
    same: int = 0
    read: tuple[int, int] = (0, 0)
    gave_up: bool = False
    ascents: tuple[Ascent, Ascent] = field(default_factory=lambda: (Ascent(), Ascent()))

    def add(self, step: Step, *, gaps: bool) -> None:
        ia, ib = step.ia[step.same], step.ib[step.same]
        met = [ia, ib]
        if self.key and len(ia) < len(step.ia):
            self._pair(step)
            met = [step.ia, step.ib]
        for side, rows, at in ((0, step.a, met[0]), (1, step.b, met[1])):
            left = np.ones(rows.count, bool)
            left[at] = False
            if left.any():
                where = self._gaps(side, at, left) if gaps else None
                over = rows.pick(left)
                self.residue.add("ab"[side], over, where)
                self.kept[side].add(over.numbers, over.raw)
        if self.key:
            self._check(step)
            if self.storing:
                self.residue.add_in_step(step.a, ia)
        self.same += len(ia)
        self.read = (self.read[0] + step.a.count, self.read[1] + step.b.count)

    def unique(self) -> bool:
        """Whether what was stored is enough to know which keys repeat."""
        return self.storing or all(ascent.holds() for ascent in self.ascents)

    def _pair(self, step: Step) -> None:
        """Rows in step whose values differ."""
        sides = []
        for rows, at in ((step.a, step.ia), (step.b, step.ib)):
            differs = np.zeros(rows.count, bool)
            differs[at[~step.same]] = True
            sides.append(rows.pick(differs))
        self.residue.add_pairs(sides[0], sides[1].numbers)
        for kept, rows in zip(self.kept, sides, strict=True):
            kept.add(rows.numbers, rows.raw)

    def _check(self, step: Step) -> None:
        if self.storing or any(ascent.failed for ascent in self.ascents):
            return
        first = not any(ascent.started for ascent in self.ascents)
        for ascent, rows, at in zip(self.ascents, (step.a, step.b), (step.ia, step.ib), strict=True):
            ascent.add([rows.flat[k] for k in self.key], at)
        self.storing = first and any(ascent.failed for ascent in self.ascents)

    def _gaps(self, side: int, at: I64, left: encode.BoolArray) -> I64:
        """Where rows lie: how many rows that both sides have in step precede them; or their own position."""
        over = np.flatnonzero(left)
        if self.by_position:
            return over + self.read[side]
        return np.searchsorted(at, over) + self.same + self.skipped


def shown_keys(found: pa.Table, matched: Match, chosen: ChosenKey) -> list[str]:
    """Keys in comparable form as text for people."""
    columns: Sequence[list[str]] = [
        values.shown(found.column(n).combine_chunks(), matched.pairs[k].b.type) for n, k in enumerate(chosen.columns)
    ]
    return [", ".join(row) for row in zip(*columns, strict=True)]
