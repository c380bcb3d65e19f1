"""A diff as HTML, for a notebook cell or a page of its own: no script, nothing loaded, all values escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from dvk.commands.diff_json import Show
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
from dvk.store.names import show as show_name

if TYPE_CHECKING:
    from dvk.commands.diff_result import DiffResult, PathDiff
    from dvk.table.result import RowChange, TableDiff

_STYLE = """\
.dvk{font:13px/1.5 system-ui,sans-serif}
.dvk h3{font-size:14px;margin:1em 0 .2em}.dvk p{margin:.2em 0}
.dvk table{border-collapse:collapse;margin:.4em 0}
.dvk td,.dvk th{border:1px solid #8884;padding:1px 6px;text-align:left;vertical-align:top}
.dvk td.n{text-align:right}.dvk code{white-space:pre-wrap;overflow-wrap:anywhere}
.dvk .small{opacity:.7}.dvk del,.dvk ins{text-decoration:none}
.dvk del{background:#e5534b33}.dvk ins{background:#57ab5a33}
"""
_WIDTH = 120
_SIGNS = {"added": "+", "removed": "-", "modified": "~", "moved": ">", "renamed": ">"}


def html_fragment(result: DiffResult, show: Show | None = None) -> str:
    """For a page that exists already, a notebook above all."""
    return f'<div class="dvk"><style>{_STYLE}</style>{"".join(_body(result, show or Show()))}</div>'


def html_page(result: DiffResult, show: Show) -> Iterator[str]:
    """A page of its own, piece by piece."""
    title = f"{_text(result.a)} → {_text(result.b)}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>dvk diff {title}</title>\n'
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    yield f'<style>body{{margin:2em}}\n{_STYLE}</style></head><body class="dvk">\n'
    yield from _body(result, show)
    yield "</body></html>\n"


def _text(text: str, width: int = 400) -> str:
    """Text of a stranger: escaped, control characters spelled out, so that they turn no line around."""
    spelled = (ch if ch.isprintable() else ascii(ch)[1:-1] for ch in cut(text, width))
    return escape("".join(spelled))


def _code(text: str, width: int = _WIDTH) -> str:
    return f"<code>{_text(text, width)}</code>"


def _body(result: DiffResult, show: Show) -> Iterator[str]:
    yield f"<p><b>dvk diff</b> {_code(result.a)} → {_code(result.b)}: {_text(overall(result))}</p>\n"
    for top in result.paths:
        if top.status != "unchanged":
            for path in top.each():
                yield from _path(path, show)
    for error in result.failures:
        yield f"<p><b>not compared</b> {_text(str(error))}</p>\n"


def _path(path: PathDiff, show: Show) -> Iterator[str]:
    counts = file_counts(path)
    about = f"{path.status}: {sizes(path)}" + (f"; {counts}" if counts else "")
    yield f"<h3>{_code(show_name(path.path))}</h3><p>{_text(about)}</p>\n"
    if path.table is not None:
        yield from _table(path.table, show)
    elif path.tensors is not None:
        yield f'<p>{_text(tensors_summary(path.tensors))}</p><p class="small">{_text(tensor_cost(path.tensors))}</p>\n'
        shown = path.tensors.changes[show.offset :][: show.limit]
        rows = (f"<tr><td>{_code(t.name)}<td>{t.kind}<td>{_text(tensor_text(t))}</tr>" for t in shown)
        yield f"<table>{''.join(rows)}</table>\n"
    elif path.files is not None and len(path.files):
        yield "<table>"
        for row in show.files(path):
            size = " → ".join(f"{e.size:,}" for e in (row.a, row.b) if e is not None)
            old = f"{_code(show_name(row.old_path))} → " if row.old_path is not None else ""
            yield f'<tr><td>{_SIGNS[row.change]}<td>{old}{_code(show_name(row.path))}<td class="n">{size}</tr>'
        yield "</table>\n"


def _table(table: TableDiff, show: Show) -> Iterator[str]:
    yield f"<p>{_text(table_summary(table))}. {_text(key_text(table))}.</p>\n"
    yield from (f"<p>{_text(n.message)}</p>\n" for n in table.notices)
    if table.schema and show.schema:
        yield f"<ul>{''.join(f'<li>{_code(schema_text(c), 300)}' for c in table.schema)}</ul>\n"
    changed = [c for c in table.columns if c.changed]
    if changed and show.columns:
        yield "<table><tr><th>column<th>cells<th>most frequent</tr>"
        for c in changed:
            pairs = ", ".join(f"{a} → {b} ({n:,})" for a, b, n in top_changes(c, _code))
            yield f'<tr><td>{_code(c.name)}<td class="n">{c.changed:,}<td>{pairs}</tr>'
        yield "</table>\n"
    if show.rows and show.total(table):
        yield f"<details open><summary>of {show.total(table):,} rows</summary><table>"
        yield from map(_row, show.changes(table))
        yield "</table></details>\n"
    yield f'<p class="small">{_text(cost_text(table))}</p>\n'


def _row(change: RowChange) -> str:
    key = ", ".join(f"{_text(k)}={_code(value_text(v))}" for k, v in change.key.items())
    cells = []
    for label, old, new in row_cells(change):
        if label in change.key:
            continue
        if old == new:
            value = _code(old or "")
        else:
            before = "" if old is None else f"<del>{_code(old)}</del>"
            after = "" if new is None else f"<ins>{_code(new)}</ins>"
            value = " ".join(x for x in (before, after) if x)
        cells.append(f"{_text(label)}: {value}")
    return f"<tr><td>{_SIGNS[change.kind]}<td>{row_number(change)}<td>{key}<td>{'; '.join(cells)}</tr>"
