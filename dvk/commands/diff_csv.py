"""A diff as CSV, in long form: one line for each cell, for spreadsheets and for tools that read nothing else.

    path,change,row_a,row_b,key.id,column,old,new
    t.csv,modified,6,6,7,price,1.10,1.20
    t.csv,added,,100,9,price,,2.00

Words and not signs, since a spreadsheet takes `+` and `-` for formulas; and a text that begins as a formula does gets
an apostrophe before it, so that opening a file cannot run anything. Null is an empty field, the empty text is `""`. A
path without a table has one line for its size and one for each file of a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dvk.commands.diff_folder import FileEntry
from dvk.commands.diff_json import Show
from dvk.commands.diff_result import DiffResult, PathDiff
from dvk.commands.diff_words import value_json, value_text
from dvk.store.names import show as show_name

if TYPE_CHECKING:
    from dvk.table.result import RowChange

_SPECIAL = re.compile(r'[",\r\n]|^\s|\s$')
_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def csv_lines(result: DiffResult, show: Show) -> Iterator[str]:
    """The lines, each with its end; rows are read as they are asked for."""
    parts = [part for path in result.paths for part in path.each()]
    keys = list(dict.fromkeys(label for p in parts if p.table is not None for label in p.table.key.columns))
    yield _line(["path", "change", "row_a", "row_b", *(f"key.{label}" for label in keys), "column", "old", "new"])
    blank: list[Any] = [None] * len(keys)
    for p in parts:
        name = show_name(p.path)
        if p.table is not None:
            for change in show.changes(p.table):
                head = [name, change.kind, change.a_row, change.b_row, *(change.key.get(label) for label in keys)]
                yield from (_line([*head, *cell]) for cell in _cells(change))
        elif p.tensors is not None:
            for t in p.tensors.changes:
                for column, value in (("changed", t.changed), ("max_abs", t.max_abs), ("relative_l2", t.relative_l2)):
                    yield _line([name, f"tensor-{t.kind}", None, None, *blank, f"{t.name}: {column}", None, value])
        else:
            yield from (_line([name, *row[:1], None, None, *blank, *row[1:]]) for row in _path(p, show))


def _cells(change: RowChange) -> Iterator[Sequence[Any]]:
    if not change.cells and not change.values:
        yield (None, None, None)  # a row that only moved
    for label, (old, new) in change.cells.items():
        yield (label, old, new)
    for label, value in change.values.items():
        if label not in change.cells:
            yield (label, None if change.kind == "added" else value, None if change.kind == "removed" else value)


def _path(p: PathDiff, show: Show) -> Iterator[list[Any]]:
    if p.files is None:
        yield [f"path-{p.status}", "size", p.a and p.a.size, p.b and p.b.size]
    for row in show.files(p):
        old, new = row.old_path or row.path, row.path
        yield [f"file-{row.change}", show_name(new), _size(row.a), _size(row.b)]
        if row.change == "renamed":
            yield ["file-renamed", "path", show_name(old), show_name(new)]


def _size(entry: FileEntry | None) -> int | None:
    return None if entry is None else entry.size


def _line(values: Sequence[Any]) -> str:
    return ",".join(map(_field, values)) + "\r\n"


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else _plain(value)
    if isinstance(value, str) and _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = "'" + text
    if not text or _SPECIAL.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def _plain(value: Any) -> str:
    found = value_json(value)
    return found if isinstance(found, str) else value_text(value)
