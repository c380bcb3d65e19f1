"""A diff as Markdown for a comment on a pull request: never longer than a forge takes, and nothing in it acts.

A forge refuses a comment of more than 65,536 characters, and a diff is as long as the data wants. So it is written with
all that was asked for, and when that is too long with fewer rows, then fewer columns, then summaries, then fewer paths;
a line says what is missing. Values come from data that anybody may have written: they stand in `<code>` with every
character that Markdown or HTML could act on as an entity, so that they neither break the table nor call for a user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct, field

from dvk.commands.diff_folder import FileChange
from dvk.commands.diff_json import Show
from dvk.commands.diff_result import DiffResult, PathDiff
from dvk.commands.diff_words import (
    cost_text,
    cut,
    file_counts,
    key_text,
    overall,
    row_cells,
    row_number,
    schema_text,
    sizes,
    table_summary,
    tensor_cost,
    tensor_text,
    tensors_summary,
    top_changes,
    value_text,
)
from dvk.errors import DvkError
from dvk.store.names import show as show_name

if TYPE_CHECKING:
    from dvk.table.result import RowChange, TableDiff

MOST_CHARS = 65_536
DEFAULT_CHARS = 60_000
LEAST_CHARS = 200
_MOST_ROWS = 2_000  #: more cannot fit
_ACTIVE = re.compile(r"[&<>|`*_\[\]\\~#!@:$\"'^=]|w(?=ww\.)")  # forges make a link of www. as well
_SIGNS = {"added": "+", "removed": "-", "modified": "~", "moved": ">", "renamed": ">"}


def markdown(result: DiffResult, show: Show, *, max_chars: int = DEFAULT_CHARS) -> str:
    """The whole diff in at most `max_chars` characters (200 to 65,536), by the count that forges use."""
    max_chars = min(max(max_chars, LEAST_CHARS), MOST_CHARS)
    source = _Source(result, show)
    for detail in _details(show):
        text = _render(source, detail, max_chars)
        if text is not None:
            return text
    # Summaries of all paths do not fit either: as many as do.
    low, high, found = 0, len(result.paths), None
    while low <= high:
        middle = (low + high) // 2
        text = _render(source, _Detail(paths=middle), max_chars)
        if text is None:
            high = middle - 1
        else:
            low, found = middle + 1, text
    return found or _render(source, _Detail(paths=0, failures=0), MOST_CHARS) or ""


def code(text: str) -> str:
    """Text of a stranger as Markdown shows it and does nothing with it."""
    return f"<code>{escape(text)}</code>" if text else ""


def escape(text: str) -> str:
    """`text` in which nothing is Markdown or HTML, control characters spelled out."""
    visible = "".join(ch if ch.isprintable() else _spelled(ch) for ch in text)
    return _ACTIVE.sub(lambda found: f"&#{ord(found[0])};", visible)


def _spelled(ch: str) -> str:
    return f"\\x{ord(ch) - 0xDC00:02x}" if 0xDC80 <= ord(ch) <= 0xDCFF else ch.encode("unicode_escape").decode("ascii")


def _length(text: str) -> int:
    """Characters as forges count: those beyond the basic plane twice."""
    return len(text) + sum(ch > "\uffff" for ch in text) if not text.isascii() else len(text)


class _Detail(Struct, frozen=True):
    """How much is written; None: all."""

    rows: int | None = 0
    columns: int | None = 0
    schema: int | None = 0
    width: int = 40
    paths: int | None = None
    failures: int | None = 10


def _details(show: Show) -> Iterator[_Detail]:
    """From everything that was asked for to summaries."""
    columns = None if show.columns else 0
    schema = None if show.schema else 0
    rows = 0 if not show.rows else _MOST_ROWS if show.limit is None else min(show.limit, _MOST_ROWS)
    yield _Detail(rows, columns, schema, 80)
    while rows := rows // 2:
        yield _Detail(rows, columns, schema, 60)
    if columns is None or schema is None:
        yield _Detail(0, columns, schema, 60)
        for n in (20, 5):
            yield _Detail(0, n if columns is None else 0, n if schema is None else 0)
    yield _Detail()


class _Source(Struct):
    """A result whose rows are read once, however often it is written."""

    result: DiffResult
    show: Show
    _rows: dict[int, list[RowChange]] = field(default_factory=dict)
    _files: dict[int, list[FileChange]] = field(default_factory=dict)

    def rows(self, path: PathDiff) -> list[RowChange]:
        if id(path) not in self._rows:
            self._rows[id(path)] = [c for c, _ in zip(self._changes(path), range(_MOST_ROWS), strict=False)]
        return self._rows[id(path)]

    def _changes(self, path: PathDiff) -> Iterator[RowChange]:
        return iter(()) if path.table is None else self.show.changes(path.table)

    def files(self, path: PathDiff) -> list[FileChange]:
        if id(path) not in self._files:
            self._files[id(path)] = [f for f, _ in zip(self.show.files(path), range(_MOST_ROWS), strict=False)]
        return self._files[id(path)]


def _render(source: _Source, detail: _Detail, most: int) -> str | None:
    """The text in that detail; None when it is longer than `most`, which is found out on the way."""
    result = source.result
    shown = [p for p in result.paths if p.differs or p.status != "unchanged"]
    kept = shown if detail.paths is None else shown[: detail.paths]
    head = f"**dvk diff** {code(cut(result.a, 60))} → {code(cut(result.b, 60))}: {overall(result)}"
    parts = [head]
    length = _length(head)
    truncated = len(kept) < len(shown)
    for top in kept:
        for path in top.each():
            text, whole = _path(source, path, detail)
            parts.append(text)
            truncated = truncated or not whole
            length += 2 + _length(text)
            if length > most:
                return None
    errors = result.failures if detail.failures is None else result.failures[: detail.failures]
    parts += [_failure(error) for error in errors]
    missing = []
    if len(kept) < len(shown):
        missing.append(f"{len(shown) - len(kept):,} more paths")
    if len(errors) < len(result.failures):
        missing.append(f"{len(result.failures) - len(errors):,} more failures")
    if truncated or missing:
        more = f" ({', '.join(missing)})" if missing else ""
        parts.append(f"_truncated{more}: `dvk diff` shows the rest_")
    text = "\n\n".join(parts) + "\n"
    return text if _length(text) <= most else None


def _failure(error: DvkError) -> str:
    subject = f"{code(cut(error.subject, 120))}: " if error.subject else ""
    return f"**not compared** {subject}{escape(cut(error.message, 200))}"


def _path(source: _Source, path: PathDiff, detail: _Detail) -> tuple[str, bool]:
    """A path, and whether nothing that was asked for is missing."""
    counts = file_counts(path)
    lines = [f"### {code(cut(show_name(path.path), 200))}", f"{path.status}: " + escape(sizes(path))]
    if counts:
        lines[1] += f"; {counts}"
    parts, whole = [lines[0] + "\n\n" + lines[1]], True
    if path.table is not None:
        more, whole = _table(source, path, path.table, detail)
        parts += more
    elif path.tensors is not None:
        changes = path.tensors.changes
        kept = changes if detail.rows is None else changes[: detail.rows]
        parts.append(f"{tensors_summary(path.tensors)}. _{tensor_cost(path.tensors)}_")
        if kept:
            rows = [f"| {code(cut(t.name, 100))} | {t.kind} | {escape(tensor_text(t))} |" for t in kept]
            parts.append("\n".join(["| tensor | | |", "|---|---|---|", *rows]))
        whole = len(kept) == len(changes)
    elif path.files is not None and len(path.files):
        found = source.files(path)
        files = found if detail.rows is None else found[: detail.rows]
        if files:
            parts.append("\n".join(["| | file | |", "|---|---|---|", *map(_file, files)]))
        whole = len(files) == len(path.files)
    return "\n\n".join(parts), whole


def _file(row: FileChange) -> str:
    before = f"{row.a.size:,}" if row.a else ""
    after = f"{row.b.size:,}" if row.b else ""
    size = before if before == after else " → ".join(x for x in (before, after) if x)
    name = code(cut(show_name(row.path), 120))
    if row.old_path is not None:
        name = f"{code(cut(show_name(row.old_path), 120))} → {name}"
    return f"| {_SIGNS[row.change]} | {name} | {size} B |"


def _table(source: _Source, path: PathDiff, table: TableDiff, detail: _Detail) -> tuple[list[str], bool]:
    show = source.show
    parts = [f"{escape(table_summary(table))}. {escape(key_text(table))}."]
    parts += [f"> {escape(n.message)}" for n in table.notices[:10]]
    whole = True
    if table.schema and show.schema:
        schema = table.schema[: detail.schema]
        whole = len(schema) == len(table.schema)
        if schema:
            parts.append("\n".join(f"- {code(cut(schema_text(c), 160))}" for c in schema))
    changed = [c for c in table.columns if c.changed]
    if changed and show.columns:
        columns = changed[: detail.columns]
        whole = whole and len(columns) == len(changed)
        rows = []
        for c in columns:
            pairs = [f"{a} → {b} ({n:,})" for a, b, n in top_changes(c, lambda text: code(cut(text, detail.width)))]
            rows.append(f"| {code(cut(c.name, 60))} | {c.changed:,} | {', '.join(pairs)} |")
        if rows:
            parts.append("\n".join(["| column | cells | most frequent |", "|---|---:|---|", *rows]))
    if show.rows:
        found = source.rows(path)
        rows_shown = found if detail.rows is None else found[: detail.rows]
        total = show.total(table)
        whole = whole and len(rows_shown) == len(found)
        if rows_shown:
            lines = ["| | row | key | |", "|---|---|---|---|", *(_row(c, detail.width) for c in rows_shown)]
            title = f"{len(rows_shown):,} of {total:,} rows" if len(rows_shown) < total else f"{total:,} rows"
            parts.append(f"<details><summary>{title}</summary>\n\n" + "\n".join(lines) + "\n\n</details>")
    parts.append(f"_{escape(cost_text(table))}_")
    return parts, whole


def _row(change: RowChange, width: int) -> str:
    key = ", ".join(code(f"{cut(k, 40)}={cut(value_text(v), width)}") for k, v in change.key.items())
    cells = []
    for n, (label, old, new) in enumerate(row_cells(change)):
        if label in change.key:
            continue
        if n >= 20:
            cells.append("…")
            break
        values = [code(cut(x, width)) for x in (old, new) if x is not None]
        cells.append(f"{code(cut(label, 40))}: " + (values[0] if old == new else " → ".join(values)))
    return f"| {_SIGNS[change.kind]} | {row_number(change)} | {key} | {', '.join(cells)} |"
