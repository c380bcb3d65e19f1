"""A diff in the terminal: a line for each path, then what was asked of its contents. `Terminal` colours and escapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dvk.cli.text import Line, Piece, bold, columns, cyan, dim, green, pieces, plain, printable, red, width, yellow
from dvk.commands.diff_json import Show
from dvk.commands.diff_words import (
    cost_text,
    cut,
    file_counts,
    key_text,
    nothing,
    overall,
    plural,
    row_cells,
    row_number,
    schema_text,
    signed,
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
    from dvk.table.result import ColumnChange, Distribution, RowChange, TableDiff
    from dvk.table.tensors.compare import TensorDiff

Name = Callable[..., str]

_CELL = 60  #: characters of a value
_SIGNS = {"added": green("+"), "removed": red("-"), "modified": yellow("~"), "moved": cyan(">"), "renamed": cyan(">")}
_STATUS = {"added": green, "removed": red, "changed": yellow, "kind-changed": yellow, "missing": red}


def diff_lines(
    result: DiffResult, show: Show, name: Name, *, stat_only: bool, hint: str = "", limit: int | None = None
) -> Iterator[Line]:
    """All lines.

    Args:
        stat_only: one line a path, with the counts of its contents.
        hint: what to say where nothing differs.
        name: how a path is shown.
        limit: the width of the terminal; longer lines are cut. None: as long as they are.
    """
    for line in _lines(result, show, name, stat_only=stat_only, hint=hint):
        yield line if limit is None else _clipped(line, limit)


def _lines(result: DiffResult, show: Show, name: Name, *, stat_only: bool, hint: str) -> Iterator[Line]:
    shown = [p for p in result.paths if p.status != "unchanged"]
    absent = [p for p in shown if p.status == "not-present"]
    for top in shown:
        if top.status == "not-present" and len(shown) > 1 and len(absent) > 3:
            continue
        for path in top.each():
            yield from _path(path, show, name, stat_only=stat_only, inside=path is not top)
    if len(absent) > 3 and len(shown) > 1:
        yield dim(f"{plural(len(absent), 'path')} not present here: `dvk pull` brings them")
    if not shown and not result.failures:
        yield dim(f"nothing differs between {printable(result.a)} and {printable(result.b)}{hint}")
    elif len(result.paths) > 1:
        yield dim(overall(result))
    if result.remote:
        yield dim(f"read from {result.remote} and not kept")


def _path(path: PathDiff, show: Show, name: Name, *, stat_only: bool, inside: bool) -> Iterator[Line]:
    is_folder = "dir" in (path.a and path.a.kind, path.b and path.b.kind)
    style = _STATUS.get(path.status, dim)
    counts = file_counts(path)
    more = [x for x in (counts, sizes(path)) if x]
    if path.not_present:
        more.append(f"{plural(path.not_present, 'file')} not present here")
    if path.status == "changed" and not path.differs:
        more.append("other bytes, the same content")
    head: list[str | Piece] = [
        "  " if inside else "",
        style(path.status),
        "  ",
        bold(name(path.path, folder=is_folder)),
    ]
    yield (*head, "  ", "; ".join(more))
    if path.table is not None:
        yield from _indented(_table(path.table, show, stat_only=stat_only))
    elif path.tensors is not None:
        yield from _indented(_tensors(path.tensors, show, stat_only=stat_only))
    elif path.files is not None and not stat_only:
        yield from _indented(_files(path, show))


def _indented(lines: Iterator[Line]) -> Iterator[Line]:
    return (("    ", *pieces(line)) for line in lines)


def _files(path: PathDiff, show: Show) -> Iterator[Line]:
    assert path.files is not None
    rows: list[list[str | Piece]] = []
    for row in show.files(path):
        old = f"{show_name(row.old_path)} -> " if row.old_path is not None else ""
        size = [f"{e.size:,} B" for e in (row.a, row.b) if e is not None]
        rows.append([_SIGNS[row.change], old + show_name(row.path), dim(" -> ".join(dict.fromkeys(size)))])
    yield from columns(rows)
    yield from _rest(len(rows), len(path.files), show, "file")


def _rest(shown: int, total: int, show: Show, noun: str) -> Iterator[Line]:
    if show.limit is not None and shown and shown + show.offset < total:
        yield dim(f"{shown:,} of {plural(total, noun)} shown; --limit N --offset N show others")


# ---------------------------------------------------------------- tables


def _table(table: TableDiff, show: Show, *, stat_only: bool) -> Iterator[Line]:
    yield (table_summary(table), dim(f"; {key_text(table)}"))
    for notice in table.notices:
        yield (Piece("note:", "note"), f" {notice.message}")
    if not stat_only:
        if show.schema and table.schema:
            yield from _schema(table)
        if show.columns:
            yield from _columns(table)
        if show.rows:
            yield from _rows(table, show)
    if not table.complete:
        yield yellow("the counts are not exact")
    yield dim(cost_text(table))


def _schema(table: TableDiff) -> Iterator[Line]:
    for change in table.schema:
        text = schema_text(change)
        style = green if change.kind == "added" else red if change.kind == "removed" else yellow
        yield ("schema: ", style(text))


def _columns(table: TableDiff) -> Iterator[Line]:
    changed = [c for c in table.columns if c.changed or c.within_tolerance or c.before is not None]
    if not changed:
        return
    rows: list[list[str | Piece]] = [[dim("column"), dim("cells"), dim("most frequent changes")]]
    rows += [[bold(c.name), f"{c.changed:,}", _about(c)] for c in changed]
    yield from columns(rows, right=(1,))
    for c in changed:
        if c.before is not None and c.after is not None:
            yield (bold(c.name), ":")
            yield from _indented(iter(_distributions(c.before, c.after)))


def _about(c: ColumnChange) -> str:
    parts = [f"{a} -> {b} ({n:,})" for a, b, n in top_changes(c, lambda text: cut(text, _CELL))]
    for n, words in (
        (c.formatting_only, "written differently only"),
        (c.null_to_value, f"{nothing(c)} to value"),
        (c.value_to_null, f"value to {nothing(c)}"),
        (c.within_tolerance, "more within tolerance"),
    ):
        if n:
            parts.append(f"{n:,} {words}")
    if c.movement is not None and c.movement.count and c.changed > 1:  # of one change both values say all
        m = c.movement
        ends = [f"up to {signed(m.largest_rise)}"] if m.largest_rise > 0 else []
        ends += [f"down to {signed(m.largest_fall)}"] if m.largest_fall < 0 else []
        parts.append(", ".join([f"new - old: mean {signed(m.mean)}", *ends]))
    return ", ".join(parts)


def _distributions(a: Distribution, b: Distribution) -> Sequence[Line]:
    def text(value: object) -> str:
        return f"{value:,.6g}" if isinstance(value, float) else _value(value)

    names = ("rows", "nulls", "distinct (about)", "minimum", "maximum", "mean", "deviation")
    left = (a.rows, a.nulls, a.distinct, a.minimum, a.maximum, a.mean, a.deviation)
    right = (b.rows, b.nulls, b.distinct, b.minimum, b.maximum, b.mean, b.deviation)
    known = ((n, x, y) for n, x, y in zip(names, left, right, strict=True) if x is not None or y is not None)
    rows: list[list[str | Piece]] = [[dim(n), text(x), text(y)] for n, x, y in known]
    for q, x, y in zip(("5 %", "25 %", "median", "75 %", "95 %"), a.quantiles, b.quantiles, strict=False):
        rows.append([dim(q), text(x), text(y)])
    top = [", ".join(f"{_value(v)} ({n:,})" for v, n in side.top[:3]) for side in (a, b)]
    if any(top):
        rows.append([dim("top"), *top])
    return columns(rows)


def _value(value: object) -> str:
    return cut(value_text(value), _CELL)


def _rows(table: TableDiff, show: Show) -> Iterator[Line]:
    rows: list[list[str | Piece]] = []
    for change in show.changes(table):
        key = " ".join(f"{cut(k, _CELL)}={_value(v)}" for k, v in change.key.items())
        rows.append([_SIGNS[change.kind], cyan(key) if key else dim(row_number(change)), "".join(_cells(change))])
    yield from columns(rows)
    yield from _rest(len(rows), show.total(table), show, "row")


def _cells(change: RowChange) -> Iterator[str]:
    first = True
    for label, old, new in row_cells(change):
        if label in change.key:
            continue
        values = [cut(x, _CELL) for x in (old, new) if x is not None]
        text = values[0] if old == new else " -> ".join(values)
        yield f"{'' if first else ', '}{cut(label, _CELL)}{': ' if change.kind == 'modified' else '='}{text}"
        first = False
    if first and change.kind == "moved":
        yield row_number(change)


# ---------------------------------------------------------------- tensors


def _tensors(diff: TensorDiff, show: Show, *, stat_only: bool) -> Iterator[Line]:
    yield tensors_summary(diff)
    if not stat_only:
        for key, a, b in diff.metadata[: show.limit]:
            yield ("metadata: ", f"{cut(key, _CELL)}: {_value(a)} -> {_value(b)}")
        shown = diff.changes[show.offset :][: show.limit]
        signs = {"added": green("+"), "removed": red("-")}
        yield from columns([[signs.get(t.kind, yellow("~")), bold(t.name or "array"), tensor_text(t)] for t in shown])
        yield from _rest(len(shown), len(diff.changes), show, "tensor")
    yield dim(tensor_cost(diff))


def _clipped(line: Line, limit: int) -> Line:
    """The line in at most `limit` cells of the terminal."""
    if width(plain(line)) <= limit:
        return line
    out: list[str | Piece] = []
    left = limit - 1
    for piece in pieces(line):
        text = printable(piece if isinstance(piece, str) else piece.text)
        kept = text
        while width(kept) > left:
            kept = kept[: max(0, min(len(kept) - 1, left))]
        out.append(kept if isinstance(piece, str) else Piece(kept, piece.style))
        left -= width(kept)
        if kept != text:
            break
    return (*out, "…")
