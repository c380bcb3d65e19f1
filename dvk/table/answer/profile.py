"""Distributions of changed columns, before and after, over all rows.

Rows, nulls and the most frequent values are counted exactly; distinct values and quantiles are approximate, which keeps
memory bounded. A column of text counts as numbers if nearly all of its values are numbers on both sides.
"""

from __future__ import annotations

import pyarrow as pa
from msgspec.structs import replace
from pyarrow import types as T

from dvk.table.engine import Engine
from dvk.table.equal import forms, values
from dvk.table.match.schema import Match
from dvk.table.result import ColumnChange, Distribution
from dvk.table.walk.feed import Feed, SideSpec

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TOP = 5
_NEARLY_ALL = 0.95
_WINDOW_ROWS = 1 << 16


def add(
    engine: Engine, specs: tuple[SideSpec, SideSpec], matched: Match, columns: list[ColumnChange]
) -> list[ColumnChange]:
    """The same columns with distributions. Reads both tables once more, only these columns."""
    index = {pair.label: i for i, pair in enumerate(matched.pairs)}
    chosen = [index[c.name] for c in columns]
    if not chosen:
        return columns
    for name, spec in zip(("profile_a", "profile_b"), specs, strict=True):
        _load(engine, name, spec, chosen)
    out = []
    for k, column in enumerate(columns):
        number = all(_is_number(engine, name, k) for name in ("profile_a", "profile_b"))
        before, after = (_distribution(engine, name, k, number) for name in ("profile_a", "profile_b"))
        out.append(replace(column, before=before, after=after))
    for name in ("profile_a", "profile_b"):
        engine.run(f"drop table {name}")
    return out


def _load(engine: Engine, name: str, spec: SideSpec, chosen: list[int]) -> None:
    """A table of these columns: `v0`, `v1`, ..."""
    needed = {spec.cells[i].index for i in chosen}
    columns = spec.columns if spec.where is not None else tuple(sorted(needed))
    made = False
    with Feed(replace(spec, columns=columns, cells=(), key=())) as feed:
        while True:
            window = feed.window(_WINDOW_ROWS)
            arrays = [_readable(window.raw.column(spec.cells[i].name)) for i in chosen]
            data = pa.table(arrays, names=[f"v{k}" for k in range(len(chosen))])
            if not made:
                engine.put(f"create or replace table {name} as select * from feed limit 0", data)
                made = True
            if not window.count:
                return
            engine.put(f"insert into {name} select * from feed", data)
            feed.drop(window.count)


def _readable(array: pa.Array) -> pa.Array:
    """The values in a type that the engine keeps as they are: others as text, nested ones only as their presence."""
    array = values.plain(array)
    kind = array.type
    if T.is_float16(kind):
        return array.cast(pa.float32())
    if T.is_decimal256(kind) or T.is_duration(kind) or T.is_timestamp(kind) or T.is_time(kind) or T.is_date64(kind):
        return pa.array([None if v is None else str(v) for v in values.python(array)], pa.string())
    if T.is_nested(kind) or T.is_interval(kind) or T.is_null(kind):
        return pa.nulls(len(array), pa.string()) if T.is_null(kind) else _presence(array)
    return array


def _presence(array: pa.Array) -> pa.Array:
    form = forms.form_of(array.type)
    return values.flat(array, form)


def _is_number(engine: Engine, table: str, k: int) -> bool:
    """Whether statistics of numbers make sense; a table without rows says nothing against it."""
    total, good, kind = engine.rows(
        f"select count(v{k}), count(try_cast(v{k}::varchar as double)), any_value(typeof(v{k})) from {table}"
    )[0]
    return kind not in ("BLOB", "BOOLEAN", "DATE") and good >= _NEARLY_ALL * total


def _distribution(engine: Engine, table: str, k: int, number: bool) -> Distribution:
    value = f"try_cast(v{k} as double)" if number else f"v{k}"
    numbers = f"avg({value}), stddev_pop({value})" if number else "null, null"
    spread = f"approx_quantile({value}, {list(QUANTILES)})" if number else "null"
    rows, present, distinct, minimum, maximum, mean, deviation, quantiles = engine.rows(
        f"select count(*), count(v{k}), approx_count_distinct(v{k}), min({value}), max({value}), {numbers}, {spread}"
        f" from {table}"
    )[0]
    top = engine.rows(
        f"select v{k}, count(*) n from {table} where v{k} is not null group by 1 order by n desc, 1 limit {_TOP}"
    )
    return Distribution(
        rows=rows,
        nulls=rows - present,
        distinct=min(distinct, present),
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        deviation=deviation,
        quantiles=tuple(quantiles or ()),
        top=tuple((value, count) for value, count in top),
    )
