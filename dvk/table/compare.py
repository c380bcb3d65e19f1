"""What changed between two tables.

    with compare(table_a, table_b, CompareOptions(key=("id",)), plan=plan(table_a, table_b, cache=cache)) as diff:
        diff.rows.modified, diff.columns[0].top

The way of a row: columns are matched (`schema`), a key is chosen (`keys`), rows that the plan leaves are read and
brought into comparable form (`feed`, `values`), both sides are walked side by side and rows that are in step and
equal drop out (`pace`), what is left is joined by key or content (`residue`, `join`), modified rows are compared cell
by cell (`cells`), and the answer stays open for questions (`finished`).

Every row is accounted for, on every run: rows that dropped out, pairs, and rows of one side add up to the rows that the
readers counted, or there is an error and no answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import TableError
from dvk.table import memory
from dvk.table.answer import profile
from dvk.table.answer.cells import CHUNK_ROWS, Cells, Judge
from dvk.table.answer.fetch import Fetch
from dvk.table.answer.finished import Finished
from dvk.table.answer.kept import Kept
from dvk.table.contract import Plan, Table
from dvk.table.engine import Engine
from dvk.table.match import keys, renames, schema
from dvk.table.match.keys import ChosenKey
from dvk.table.match.schema import Match
from dvk.table.match.where import Where
from dvk.table.options import CompareOptions
from dvk.table.pair.join import MODIFIED
from dvk.table.pair.pairing import Pairer, Pairing, shown_keys
from dvk.table.result import ColumnChange, Key, Notice, RowCounts, Side, TableDiff
from dvk.table.walk import planned
from dvk.table.walk.feed import Cell, Rows, SideSpec

_DEFAULTS = CompareOptions()
_KEPT_LEAST_BYTES = 256 << 20
_CHUNK_VALUES = 1 << 21  # of one side that are compared cell by cell at once


def compare(a: Table, b: Table, options: CompareOptions = _DEFAULTS, *, plan: Plan | None = None) -> TableDiff:
    """Compare two tables. Closing the answer closes both; after an error they are the caller's still.

    `plan`: rows that need not be read because they are known to be equal; None: nothing is known. It is not used where
    the question needs every row: with `where`, with columns that were renamed, by position.

    Raises:
        TableError: the comparison cannot be made as asked, a table is broken, or the memory limit is too small.
        UsageError: an option makes no sense.
        StorageFull, StorageError: no room for temporary files.
    """
    started = time.perf_counter()
    limits = memory.split(options.memory_bytes)
    engine = Engine(memory_bytes=limits.engine, temp_dir=options.temp_dir, threads=options.threads)
    try:
        whole = planned.checked(plan or Plan.everything(a, b), a, b)
        finished = _Comparison(a, b, options, whole, engine, limits).answer()
        finished.seconds = time.perf_counter() - started
        return finished
    except BaseException:
        engine.close()
        raise


class _Comparison(Struct):
    a: Table
    b: Table
    options: CompareOptions
    plan: Plan
    engine: Engine
    limits: memory.Limits
    tries: int = 0

    def answer(self) -> Finished:
        renamed = self._renamed()
        while True:
            matched = self._matched(renamed)
            pairing, chosen, specs = self._pair(matched)
            fetch = self._fetch(pairing, specs)
            judge = Judge(matched, specs[0].cells, specs[1].cells, self.options.tolerance)
            cells = self._cells(pairing, fetch, judge)
            columns = cells.finish(*fetch)
            scores = _scores(renamed, columns, pairing)
            if all(score >= renames.SCORE for score in scores.values()):
                break
            renamed = [pair for pair in renamed if scores[pair[1]] >= renames.SCORE]
        if self.options.profile:
            columns = profile.add(self.engine, specs, matched, columns)
        counts = pairing.counts
        rows = RowCounts(
            a=pairing.rows[0],
            b=pairing.rows[1],
            added=counts.added,
            removed=counts.removed,
            modified=counts.modified - cells.unchanged,
            unchanged=pairing.same + counts.same + counts.moved + cells.unchanged,
            moved=counts.moved,
        )
        _add_up(rows)
        key = _key(matched, chosen, pairing, self.options)
        return Finished(
            a=_side(self.a, rows.a),
            b=_side(self.b, rows.b),
            key=key,
            schema=schema.changes(matched, formats=(self.a.format, self.b.format), scores=scores),
            rows=rows,
            columns=tuple(columns),
            notices=(*self.a.notices, *self.b.notices, *pairing.notices, *_notices(matched, key)),
            engine=self.engine,
            tables=(self.a, self.b),
            fetch=fetch,
            judge=judge,
            key_pairs=chosen.columns,
            level=pairing.plan.level,
            rows_skipped=2 * pairing.plan.skipped,
        )

    def _matched(self, renamed: list[tuple[str, str]]) -> Match:
        keep = (*self.options.key, *self.a.declared_key, *self.b.declared_key)
        return schema.match(self.a.columns, self.b.columns, self.options, keep=keep, renames=renamed)

    def _renamed(self) -> list[tuple[str, str]]:
        """Columns that were renamed, by evidence of a sample."""
        matched = self._matched([])
        if not (matched.removed and matched.added and matched.pairs) or self.plan.level == "L0":
            return []
        samples = self._samples(matched, whole=True)
        known = next(self._choices(matched, samples))
        untyped = (self.a.is_text, self.b.is_text)
        return renames.find(*samples, matched, known.columns, schema.equality_of(self.options), untyped=untyped)

    def _choices(self, matched: Match, samples: tuple[Rows, Rows] | None = None) -> Iterator[ChosenKey]:
        return keys.choose(
            matched,
            self.options,
            declared=(self.a.declared_key, self.b.declared_key),
            samples=None if self.plan.level == "L0" else lambda: samples or self._samples(matched),
        )

    def _samples(self, matched: Match, *, whole: bool = False) -> tuple[Rows, Rows]:
        """The first rows of each side; `whole`: with all columns."""
        a, b = self._specs(matched, ())
        if whole:
            a = replace(a, columns=tuple(c.index for c in self.a.columns))
            b = replace(b, columns=tuple(c.index for c in self.b.columns))
        return a.first(keys.SAMPLE_ROWS), b.first(keys.SAMPLE_ROWS)

    def _specs(self, matched: Match, key: tuple[int, ...], where: Where | None = None) -> tuple[SideSpec, SideSpec]:
        """What is read of each side, and how it is compared."""
        sides = []
        mixed = self.options.coerce and self.a.format != self.b.format
        for table, alone, is_new in ((self.a, matched.removed, False), (self.b, matched.added, True)):
            mark, json = "new" if is_new else "old", mixed and table.format == "jsonl"
            cells = tuple(
                Cell((p.b if is_new else p.a).index, p.form, table.is_text, mark, json) for p in matched.pairs
            )
            columns = sorted({c.index for c in cells} | {c.index for c in alone})
            if not columns and table.columns:
                columns = [0]  # a batch without columns would have no rows either
            names = {i: cell.name for i, cell in enumerate(cells)}
            keep = None if where is None else partial(where.keep, self.engine, columns=names)
            sides.append(SideSpec(table, tuple(columns), cells, key, keep))
        return sides[0], sides[1]

    def _pair(self, matched: Match) -> tuple[Pairing, ChosenKey, tuple[SideSpec, SideSpec]]:
        """Pair rows by the first key that holds, else without."""
        where = None if self.options.where is None else Where.parse(self.engine, self.options.where, matched)
        renamed = any(p.renamed for p in matched.pairs)
        plan = Plan.everything(self.a, self.b) if where is not None or renamed else self.plan
        for chosen in self._choices(matched):
            specs = self._specs(matched, chosen.columns, where)
            pairer = Pairer(
                engine=self.engine,
                matched=matched,
                specs=specs,
                chosen=chosen,
                plan=plan,
                options=self.options,
                kept=(self._kept(self.a), self._kept(self.b)),
                look_ahead_bytes=self.limits.look_ahead,
            )
            pairing = pairer.by_key() if chosen.columns else pairer.by_content()
            if chosen.source != "inferred" or _holds(pairing):
                return pairing, chosen, specs
            for kept in pairing.kept:
                kept.close()
        raise AssertionError("the last choice is always taken")

    def _kept(self, table: Table) -> Kept:
        self.tries += 1
        limit = max(_KEPT_LEAST_BYTES, table.source.size // 2)
        return Kept(self.engine.folder, f"rows-{self.tries}", memory_bytes=self.limits.kept, limit_bytes=limit)

    def _fetch(self, pairing: Pairing, specs: tuple[SideSpec, SideSpec]) -> tuple[Fetch, Fetch]:
        """Where full values come from; those of modified rows are at hand after it."""
        sides = []
        for spec, kept, column in zip(specs, pairing.kept, ("ar", "br"), strict=True):
            self.tries += 1
            fetch = Fetch(
                spec.table,
                spec.columns,
                kept,
                folder=self.engine.folder,
                name=f"rows-{self.tries}",
                memory_bytes=self.limits.kept,
            )
            if not kept.complete:
                wanted = np.zeros(spec.table.count_rows(), bool)
                for batch in self.engine.batches(f"select {column} from changed where kind = {MODIFIED}"):
                    wanted[batch.column(0).to_numpy()] = True
                fetch.prepare(wanted)
            sides.append(fetch)
        return sides[0], sides[1]

    def _cells(self, pairing: Pairing, fetch: tuple[Fetch, Fetch], judge: Judge) -> Cells:
        """Compare modified rows cell by cell; those that differ within tolerance only are no longer modified."""
        cells = Cells(self.engine, judge, top=self.options.top)
        if pairing.counts.modified:
            size = max(64, min(CHUNK_ROWS, _CHUNK_VALUES // max(1, len(judge.a))))
            sql = f"select ar, br from changed where kind = {MODIFIED} order by ar"
            for batch in self.engine.batches(sql, rows=size):
                for start in range(0, batch.num_rows, size):
                    ar, br = (batch.column(n).slice(start, size).to_numpy() for n in (0, 1))
                    cells.add(ar, br, fetch[0].take(ar), fetch[1].take(br))
            if cells.unchanged:
                self.engine.run(f"delete from changed where kind = {MODIFIED} and ar in (select ar from within)")
        return cells


def _holds(pairing: Pairing) -> bool:
    """Whether an inferred key is one: it repeats nowhere, is never null, and finds rows again."""
    found = pairing.same + pairing.counts.same + pairing.counts.modified
    return not any(pairing.duplicates) and not any(pairing.nulls) and found >= keys.SHARED * min(pairing.rows)


def _scores(renamed: list[tuple[str, str]], columns: list[ColumnChange], pairing: Pairing) -> dict[str, float]:
    """New label -> share of equal values over all paired rows."""
    changed = {c.name: c.changed for c in columns}
    pairs = pairing.same + pairing.counts.same + pairing.counts.moved + pairing.counts.modified
    return {new: 1.0 - changed.get(new, 0) / max(1, pairs) for _, new in renamed}


def _key(matched: Match, chosen: ChosenKey, pairing: Pairing, options: CompareOptions) -> Key:
    samples = () if pairing.duplicate_keys is None else shown_keys(pairing.duplicate_keys, matched, chosen)
    return Key(
        columns=tuple(matched.pairs[k].label for k in chosen.columns),
        source=chosen.source,
        align=pairing.align,
        checked=pairing.checked,
        duplicates=pairing.duplicates,
        nulls=pairing.nulls,
        samples=tuple(samples[: options.samples]),
    )


def _notices(matched: Match, key: Key) -> list[Notice]:
    out = []
    name = ", ".join(key.columns)
    if any(key.duplicates):
        text = f"the key {name} repeats in {key.duplicates[0]} and {key.duplicates[1]} rows"
        out.append(Notice("duplicate-keys", text + (f", such as {'; '.join(key.samples)}" if key.samples else "")))
    if any(key.nulls):
        out.append(Notice("null-keys", f"the key {name} is null in {key.nulls[0]} and {key.nulls[1]} rows"))
    for pair in matched.pairs:
        if pair.form is None:
            text = f"{pair.label}: {pair.a.type} is never equal to {pair.b.type}"
            out.append(Notice("never-equal", f"{text}; `coerce` compares by meaning where it can"))
    return out


def _side(table: Table, rows: int) -> Side:
    known = table.source.id
    return Side(table.source.label, rows, table.format, None if known is None else known.hex())


def _add_up(rows: RowCounts) -> None:
    pairs = rows.modified + rows.unchanged
    if rows.removed + pairs != rows.a or rows.added + pairs != rows.b:
        raise TableError(
            f"the comparison does not add up: {rows}",
            hint="no result is shown since it would be wrong; please report this with the versions of duckdb and dvk",
        )
