"""What a walk left over: rows that are not known to have an equal partner.

Each side is a table in the engine: `a` and `b`, with the key columns `k0`, `k1`, ... in comparable form, the digest
`h` of the other values (keyless: of all), the number `r` of the row in its file, and the gap `g` it lies in (keyless:
how many rows before it are in step on both sides). `c` has the keys of rows in step, for the check that keys are
unique: those of one side are enough, since both sides have the same. `m` has pairs of rows in step whose values
differ: they are modified rows, unless their key repeats.

`dvk.table.pair.join` turns them into the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from msgspec import Struct, field

from dvk.table.engine import Engine
from dvk.table.equal import encode
from dvk.table.walk.feed import Rows

I64 = npt.NDArray[np.int64]

_FLUSH_ROWS = 1 << 18
_ROW_BYTES = 64  # of a row in a hash table of the engine, about
_SLICE_SHARE = 0.4  # of the engine's memory, for one
_FLUSH_SHARE = 16  # of the engine's memory: rows of one side that wait for it


class _Side(Struct):
    rows: int = 0
    nulls: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0
    waiting_bytes: int = 0


class Residue:
    """The left-over rows of both sides in an engine.

    `key`: which of the flat columns identify a row, and `key_types` theirs; empty: none do.
    """

    def __init__(self, engine: Engine, key: Sequence[int], key_types: Sequence[pa.DataType]) -> None:
        self._engine = engine
        self._key = tuple(key)
        self.columns = tuple(f"k{n}" for n in range(len(key)))
        self._sides = {"a": _Side(), "b": _Side(), "c": _Side(), "m": _Side()}
        self.whole = False  #: whether `c` has the keys of all rows of A, not only of those in step
        keys = pa.table([pa.array([], t) for t in key_types], names=list(self.columns)) if key else pa.table({"k": [1]})
        for side in "ab":
            digest = engine.digest("''::blob")
            what = ", ".join([*self.columns, f"{digest} h", "0::bigint r", "0::bigint g"])
            engine.put(f"create or replace table {side} as select {what} from feed limit 0", keys)
        engine.put("create or replace table c as select * from feed limit 0", keys)
        what = ", ".join([*self.columns, "0::bigint ar", "0::bigint br"])
        engine.put(f"create or replace table m as select {what} from feed limit 0", keys)

    @property
    def rows(self) -> tuple[int, int]:
        """Left over so far, of A and of B."""
        return self._sides["a"].rows, self._sides["b"].rows

    @property
    def pairs(self) -> int:
        """Rows in step with other values that are paired for good."""
        return self._sides["m"].rows

    @property
    def nulls(self) -> tuple[int, int]:
        """Rows with a null in the key, of A and of B, those in step included."""
        a, b, c, m = (self._sides[name].nulls for name in "abcm")
        return (c, c - a + b) if self.whole else (a + c + m, b + c + m)

    def add(self, side: str, rows: Rows, gaps: I64 | None = None) -> None:
        """Rows of side `a` or `b` that are left over; `gaps`: int64[n], where they lie."""
        if not rows.count:
            return
        keys = [rows.flat[k] for k in self._key]
        others = [f for i, f in enumerate(rows.flat) if i not in self._key]
        content = encode.rows(others) if others else pa.array([b""] * rows.count, pa.binary())
        gap = np.zeros(rows.count, np.int64) if gaps is None else gaps
        columns = [*keys, content, pa.array(rows.numbers), pa.array(gap)]
        self._put(side, pa.table(columns, names=[*self.columns, "p", "r", "g"]), keys)

    def add_pairs(self, rows: Rows, other: I64) -> None:
        """Rows of A that are in step with rows `other` of B, by key, and have other values."""
        if rows.count:
            keys = [rows.flat[k] for k in self._key]
            data = pa.table([*keys, pa.array(rows.numbers), pa.array(other)], names=[*self.columns, "ar", "br"])
            self._put("m", data, keys)

    def dissolve(self) -> tuple[I64, I64]:
        """Take out pairs whose key repeats, since who belongs to whom is decided for all rows of a key together.

        Returns the rows of A and of B, to be added again. Call it before the join.
        """
        on = " and ".join(f"m.{k} is not distinct from x.{k}" for k in self.columns)
        self._engine.run(f"create or replace table again as select ar, br from m semi join repeated x on {on}")
        found = self._engine.table("select ar, br from again")
        self._engine.run("delete from m where ar in (select ar from again)")
        self._engine.run("drop table again")
        self._sides["m"] = _Side(rows=self._sides["m"].rows - found.num_rows, nulls=self._sides["m"].nulls)
        return np.sort(found.column(0).to_numpy()), np.sort(found.column(1).to_numpy())

    def add_in_step(self, rows: Rows, positions: I64) -> None:
        """The keys of rows of A at these positions, which have an equal partner, for `find_repeated`."""
        if not len(positions):
            return
        keys = [rows.flat[k] for k in self._key]
        if int(positions[-1]) - int(positions[0]) + 1 == len(positions):
            keys = [k.slice(int(positions[0]), len(positions)) for k in keys]
        else:
            keys = [k.take(pa.array(positions)) for k in keys]
        self._put("c", pa.table(keys, names=list(self.columns)), keys)

    def add_keys(self, keys: Sequence[pa.Array]) -> None:
        """Keys of rows that are on both sides and were not walked."""
        self._put("c", pa.table(list(keys), names=list(self.columns)), keys)

    def keep_first(self) -> tuple[int, int]:
        """Only the first row of each key on each side stays; how many went."""
        self.flush()
        gone = []
        for side in "ab":
            state = self._sides[side]
            keys = ", ".join(self.columns)
            self._engine.run(
                f"create or replace table {side} as select * from {side}"
                f" qualify row_number() over (partition by {keys} order by r) = 1"
            )
            rows = int(self._engine.one(f"select count(*) from {side}"))
            gone.append(state.rows - rows)
            state.rows = rows
        return gone[0], gone[1]

    def matched(self, pairs: int) -> None:
        """So many rows of each side were taken out of the tables."""
        for side in "ab":
            self._sides[side].rows -= pairs

    def flush(self) -> None:
        """Nothing waits any more; before anything is asked."""
        for side in self._sides:
            self._flush(side)

    def slices(self, columns: Sequence[str]) -> list[str]:
        """Conditions that cut `a`, `b`, `c` and `m` into parts that fit in memory, rows with equal `columns` together.

        The engine can spill, but not in every plan and not below any limit; a part at a time it need not.
        """
        rows = sum(side.rows for side in self._sides.values())
        count = math.ceil(rows * _ROW_BYTES / (self._engine.memory_bytes * _SLICE_SHARE))
        if count <= 1:
            return ["true"]
        return [f"hash({', '.join(columns)}) % {count} = {k}" for k in range(count)]

    def find_repeated(self) -> tuple[int, int]:
        """Rows of A and of B whose key occurs before, among the rows that were added; call it when all are.

        Makes a table `repeated`: the keys that occur more than once on a side, and how often on each, `a` and `b`.
        """
        self.flush()
        keys = ", ".join(self.columns)
        self._engine.run(
            f"create or replace table repeated as select {keys}, 0::hugeint a, 0::hugeint b from a limit 0"
        )
        for part in self.slices(self.columns):
            in_step = "sum(c) a, sum(c) - sum(a) + sum(b) b" if self.whole else "sum(c) + sum(a) a, sum(c) + sum(b) b"
            paired = "" if self.whole else f" union all select {keys}, 1, 0, 0 from m where {part}"
            self._engine.run(
                f"insert into repeated select {keys}, {in_step} from ("
                f"select {keys}, 1 c, 0 a, 0 b from c where {part}"
                f" union all select {keys}, 0, 1, 0 from a where {part}"
                f" union all select {keys}, 0, 0, 1 from b where {part}{paired}) group by {keys} having a > 1 or b > 1"
            )
        a, b = self._engine.rows("select sum(greatest(a - 1, 0)), sum(greatest(b - 1, 0)) from repeated")[0]
        return int(a or 0), int(b or 0)

    def repeated_keys(self, limit: int) -> pa.Table:
        """A few keys that occur more than once on a side, in comparable form, in their order."""
        keys = ", ".join(self.columns)
        return self._engine.table(f"select {keys} from repeated order by {keys} limit {limit}")

    def _put(self, side: str, data: pa.Table, keys: Sequence[pa.Array]) -> None:
        state = self._sides[side]
        state.rows += data.num_rows
        if any(k.null_count for k in keys):
            nothing = np.zeros(data.num_rows, bool)
            for k in keys:
                nothing |= ~encode.valid_mask(k)
            state.nulls += int(nothing.sum())
        state.waiting.append(data)
        state.waiting_rows += data.num_rows
        state.waiting_bytes += data.nbytes
        if state.waiting_rows >= _FLUSH_ROWS or state.waiting_bytes * _FLUSH_SHARE >= self._engine.memory_bytes:
            self._flush(side)

    def _flush(self, side: str) -> None:
        state = self._sides[side]
        if not state.waiting:
            return
        what = ", ".join([*self.columns, self._engine.digest("p"), "r", "g"]) if side in "ab" else "*"
        self._engine.put(f"insert into {side} select {what} from feed", pa.concat_tables(state.waiting))
        state.waiting.clear()
        state.waiting_rows = state.waiting_bytes = 0
