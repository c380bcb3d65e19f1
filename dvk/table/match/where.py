"""`--where`: one SQL expression on column labels that says which rows of both sides take part.

    Where.parse(engine, "price > 10 and \"x#2\" is not null", matched)

The expression is somebody's text, perhaps from a script that somebody else wrote, so it is not pasted into a statement:
the engine's own parser turns it into a tree, and the tree may hold constants, columns of the table, comparisons, casts
and functions that depend on their arguments alone. No second statement, no subquery, no function that reads a file, a
setting or the clock. Labels become column numbers in the tree: names that differ in case only stay apart, and a name
can hold anything.

Rows for which the expression is null do not take part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import Struct
from pyarrow import types as T

from dvk.errors import TableError, UsageError
from dvk.table.engine import Engine
from dvk.table.equal import encode
from dvk.table.equal.forms import is_text, storage
from dvk.table.match.schema import Match, Pair

_SIMPLE = ("CONJUNCTION", "COMPARISON", "CONSTANT", "OPERATOR", "CAST", "TYPE", "CASE", "BETWEEN", "COLLATE")
_CLASSES = (*_SIMPLE, "COLUMN_REF", "FUNCTION")
_BARRED = ("current_setting", "getvariable", "getenv", "nextval", "currval", "write_log", "sleep_ms")
_OPERANDS = {"COMPARISON": ("left", "right"), "BETWEEN": ("input", "lower", "upper")}
_NUMBERS = ("INTEGER", "BIGINT", "HUGEINT", "DECIMAL", "DOUBLE", "FLOAT", "NUMERIC", "INTEGER_LITERAL")
_EMPTY = ("EMPTY", None)


class Where(Struct, frozen=True):
    """A checked expression; columns are numbers of pairs: `p0`, `p1`, ..."""

    text: str
    sql: str
    pairs: tuple[int, ...]

    @classmethod
    def parse(cls, engine: Engine, text: str, matched: Match) -> Where:
        """Check and translate.

        Raises:
            UsageError: it is no single expression, or uses what it may not.
            TableError: it names a column that is not on both sides.
        """
        if not text.strip():
            raise _bad(text, "it is empty")
        answer = json.loads(engine.one("select json_serialize_sql(?)", [f"select (\n{text}\n)"]))
        if answer.get("error"):
            raise _bad(text, str(answer.get("error_message", "it is no SQL expression")))
        node = _only_expression(text, answer)
        functions = {name for (name,) in engine.rows(_FUNCTIONS)}
        used: dict[int, None] = {}
        as_number = json.loads(engine.one("select json_serialize_sql('select try_cast(x as double)')"))
        cast = as_number["statements"][0]["node"]["select_list"][0]
        for part in _parts(node["select_list"][0]):
            if part["class"] not in _CLASSES:
                raise _bad(text, f"{part['class'].lower()} is not allowed")
            if part["class"] == "FUNCTION":
                name = str(part["function_name"]).lower()
                if name not in functions or name in _BARRED or part.get("schema") or part.get("catalog"):
                    raise _bad(text, f"the function {name!r} is not allowed")
            if part["class"] == "COLUMN_REF":
                index = _column(part["column_names"][0], matched)
                part["column_names"][0] = f"p{index}"
                _check_type(matched.pairs[index])
                used[index] = None
        for part in list(_parts(node["select_list"][0])):
            _read_as_numbers(part, cast, matched)
        sql = engine.one("select json_deserialize_sql(?)", [json.dumps(answer)])
        return cls(text, str(sql), tuple(used))

    def keep(self, engine: Engine, batch: pa.RecordBatch, columns: dict[int, str]) -> encode.BoolArray:
        """bool[n]: the rows of a batch that take part. `columns`: the name in the batch for each pair that is used.

        Raises:
            TableError: a value does not fit the expression.
        """
        names = [f"p{pair}" for pair in self.pairs]
        data = pa.table([batch.column(columns[pair]) for pair in self.pairs], names=names) if names else None
        if data is None:
            data = pa.table({"nothing": pa.nulls(batch.num_rows, pa.int8())})
        expression = self.sql.removeprefix("SELECT").rstrip().removesuffix(";")
        try:
            kept = engine.feed(f"select coalesce(({expression})::boolean, false) from feed", data)
        except TableError as problem:
            raise TableError(
                f"`where` cannot be answered: {problem.message.removeprefix('the comparison failed: ')}",
                hint="values of CSV are text: cast them, as in try_cast(price as double) > 10",
            ) from problem
        return np.asarray(kept.column(0).to_numpy(zero_copy_only=False), bool) if kept.num_rows else np.zeros(0, bool)


_FUNCTIONS = (
    "select distinct lower(function_name) from duckdb_functions()"
    " where function_type = 'scalar' and stability = 'CONSISTENT'"
)


def _check_type(pair: Pair) -> None:
    for kind in (storage(pair.a.type), storage(pair.b.type)):
        if T.is_decimal256(kind) or T.is_float16(kind) or T.is_duration(kind) or T.is_interval(kind):
            raise TableError(f"`where` cannot use the column {pair.label!r}: it is {kind}")


def _only_expression(text: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The tree of a statement that is nothing but one expression."""
    statements = answer["statements"]
    node: dict[str, Any] = statements[0]["node"]
    table = node.get("from_table") or {}
    if (
        len(statements) != 1
        or node["type"] != "SELECT_NODE"
        or len(node["select_list"]) != 1
        or table.get("type") not in _EMPTY
        or node["modifiers"]
        or node["cte_map"]["map"]
        or any(node.get(name) for name in ("where_clause", "group_expressions", "having", "qualify", "sample"))
    ):
        raise _bad(text, "it is not one expression")
    return node


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every expression in a tree."""
    if isinstance(tree, dict):
        if "class" in tree and "type" in tree:
            yield tree
        for value in tree.values():
            yield from _parts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _parts(value)


def _read_as_numbers(part: dict[str, Any], cast: dict[str, Any], matched: Match) -> None:
    """`price > 10` on a column of text: its values as numbers, null where they are none."""
    names = _OPERANDS.get(part["class"])
    if names is None:
        return
    operands = [part[name] for name in names]
    if not any(_is_number(x) for x in operands):
        return
    for name in names:
        column = part[name]
        if column["class"] == "COLUMN_REF" and len(column["column_names"]) == 1:
            pair = matched.pairs[int(column["column_names"][0][1:])]
            if is_text(pair.a.type) or is_text(pair.b.type):
                part[name] = {**cast, "child": column}


def _is_number(part: dict[str, Any]) -> bool:
    """A numeral, perhaps with a sign."""
    if part["class"] == "FUNCTION" and part["function_name"] in ("-", "+") and len(part["arguments"]) == 1:
        return _is_number(part["arguments"][0].get("expression", part["arguments"][0]))
    if part["class"] != "CONSTANT":
        return False
    kind = str((part.get("literal") or {}).get("kind") or ((part.get("value") or {}).get("type") or {}).get("id"))
    return kind.upper() in _NUMBERS


def _column(label: str, matched: Match) -> int:
    """The pair of a label; in another case where that is clear."""
    if label not in matched.labels:
        same = [x for x in matched.labels if x.lower() == label.lower()]
        if len(same) == 1:
            label = same[0]
    return matched.find(label)


def _bad(text: str, why: str) -> UsageError:
    return UsageError(f"`where` {text!r}: {why}", hint='one SQL expression on columns, such as: "unit price" > 10')
