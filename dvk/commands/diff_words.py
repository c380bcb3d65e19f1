"""The words in which every form of a diff speaks: one line for a path, for a table, for what it took.

>>> amount(1_020_000_000), plural(1, "row"), plural(48_800, "row")
('1.02 GB', '1 row', '48,800 rows')
>>> value_text(None), value_text(""), value_text("1.10"), value_text(b"\\x00a")
('null', '""', '1.10', 'base64:AGE=')

Values of a table are text here, escaped by whoever shows them: a terminal, Markdown and HTML have dangers of their own.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from dvk.table.json_text import JsonText

if TYPE_CHECKING:
    from dvk.commands.diff_result import DiffResult, Item, PathDiff
    from dvk.table.contract import Column
    from dvk.table.result import ColumnChange, RowChange, SchemaChange, TableDiff
    from dvk.table.tensors.compare import TensorChange, TensorDiff, TensorShape

_MOST_FREQUENT = 3  # changes of a column that are shown
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def amount(size_bytes: int) -> str:
    """A size in decimal units with three digits."""
    value, unit = float(size_bytes), 0
    while value >= (999.5 if unit else 1000) and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if not unit:
        return f"{size_bytes} B"
    text = f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {_UNITS[unit]}"


def plural(n: int, one: str, many: str = "") -> str:
    """A counted noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def share(part: int, whole: int) -> str:
    """A part in percent; never 100 % before it is all, never 0 % before it is nothing."""
    if whole <= 0:
        return "0 %"
    value = 100 * part / whole
    if 0 < value < 0.1:
        return "< 0.1 %"
    return f"{math.floor(value * 10) / 10:.1f}".removesuffix(".0") + " %"


def number(value: float) -> str:
    """A measured number with four digits."""
    return f"{value:.4g}"


def signed(value: float) -> str:
    """A difference as people write it: whole numbers whole, anything else with at least four digits.

    >>> signed(-18721), signed(0.5), signed(-18720.6), signed(1e-9), signed(3e20)
    ('-18,721', '+0.5', '-18,721', '+1e-09', '+3e+20')
    """
    if 999.95 <= abs(value) < 1e15:  # below, four digits hold a whole number
        return f"{value:+,.0f}"
    return f"{value:+.4g}"


# ---------------------------------------------------------------- values


def value_json(value: Any) -> Any:
    """A value of a table as JSON has it: what JSON cannot hold exactly becomes text (docs/diff.md, "Values")."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            if math.isfinite(value):
                return float(value)
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
        case timedelta():
            return _duration(value)
        case datetime() | date() | time():
            return value.isoformat()
        case Mapping():
            return {k if isinstance(k, str) else value_text(k): value_json(v) for k, v in value.items()}
        case Sequence():
            return [value_json(v) for v in value]
    if getattr(getattr(value, "dtype", None), "kind", "") in ("M", "m"):
        return str(value)  # nanoseconds, of which Python's own types know nothing
    for method in ("isoformat", "item"):  # timestamps of pandas, scalars of NumPy
        if hasattr(value, method):
            return value_json(getattr(value, method)())
    return str(value)


def _duration(value: timedelta) -> str:
    """ISO 8601, in seconds: PT1.5S."""
    micros = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    whole, rest = divmod(abs(micros), 1_000_000)
    fraction = f".{rest:06d}".rstrip("0") if rest else ""
    return f"{'-' if micros < 0 else ''}PT{whole}{fraction}S"


def value_text(value: Any) -> str:
    """A value for people, in which null, the empty text and the text `null` look different."""
    if value is None:
        return "null"
    if isinstance(value, JsonText):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if value in ("", "null") or value != value.strip() else value
    if isinstance(value, bytes | bytearray | memoryview):
        return "base64:" + base64.b64encode(value).decode("ascii")
    found = value_json(value)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def pair_texts(old: Any, new: Any) -> tuple[str, str]:
    """Both values of a cell for people. A field that a row of JSON Lines does not have is `absent`, which is not null.

    >>> pair_texts(JsonText('"null"'), JsonText("null")), pair_texts(None, JsonText("1")), pair_texts(None, 1)
    (('"null"', 'null'), ('absent', '1'), ('null', '1'))
    """
    json = isinstance(old, JsonText) or isinstance(new, JsonText)
    one, other = ("absent" if json and value is None else value_text(value) for value in (old, new))
    return one, other


def nothing(column: ColumnChange) -> str:
    """What people call a cell of the column that has no value: `null`, or `absent` where null is a value of JSON."""
    return "absent" if any(isinstance(value, JsonText) for pair, _ in column.top for value in pair) else "null"


def top_changes(column: ColumnChange, show: Callable[[str], str]) -> Iterator[tuple[str, str, int]]:
    """The most frequent changes of a column, both values as `show` has them, and how many."""
    for (old, new), count in column.top[:_MOST_FREQUENT]:
        one, other = pair_texts(old, new)
        yield show(one), show(other), count


def cut(text: str, width: int) -> str:
    """`text` in at most `width` characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


# ---------------------------------------------------------------- paths


def item_text(item: Item | None) -> str:
    """What one side has, in short."""
    if item is None:
        return "nothing"
    if item.kind == "dir":
        return f"{plural(item.files, 'file')}, {amount(item.size)}"
    return "link" if item.kind == "link" else amount(item.size)


def sizes(path: PathDiff) -> str:
    """`1.02 GB -> 1.04 GB, 28 MB new`."""
    if path.status in ("added", "removed", "missing", "not-present", "unchanged"):
        return item_text(path.b if path.status == "added" else path.a or path.b)
    if path.status == "kind-changed":
        return f"{_kind(path.a)}, {item_text(path.a)} -> {_kind(path.b)}, {item_text(path.b)}"
    before, after = item_text(path.a), item_text(path.b)
    text = before if before == after else f"{before} -> {after}"
    if path.new_bytes is not None and path.status == "changed":
        text += f", {amount(path.new_bytes)} new"
    return text


def _kind(item: Item | None) -> str:
    return "nothing" if item is None else {"dir": "folder"}.get(item.kind, item.kind)


def file_counts(path: PathDiff) -> str:
    """`+2 -1 ~3 files, 1 renamed` of a folder; empty where there is nothing to count."""
    f = path.files
    if f is None or not len(f):
        return ""
    counts = [f"{sign}{n:,}" for sign, n in (("+", len(f.added)), ("-", len(f.removed)), ("~", len(f.modified))) if n]
    text = " ".join(counts) + (" files" if counts else "")
    renamed = f"{len(f.renamed):,} renamed" if len(f.renamed) else ""
    return ", ".join(x for x in (text, renamed) if x)


def overall(result: DiffResult) -> str:
    """The last line: how many paths differ."""
    n = len(result.differing)
    return f"{plural(n, 'path')} of {len(result.paths):,} {'differs' if n == 1 else 'differ'}"


# ---------------------------------------------------------------- tables


def row_counts(table: TableDiff) -> str:
    """`+12 -3 ~40 rows`."""
    r = table.rows
    counts = [f"{sign}{n:,}" for sign, n in (("+", r.added), ("-", r.removed), ("~", r.modified)) if n]
    text = " ".join(counts) + " rows" if counts else "no row differs"
    return text + (f", {r.moved:,} moved" if r.moved else "")


def table_summary(table: TableDiff) -> str:
    """`+12 -3 ~40 rows, 57 cells in 2 columns, 1 column added`."""
    parts = [row_counts(table)]
    cells = sum(c.changed for c in table.columns)
    if cells:
        parts.append(f"{plural(cells, 'cell')} in {plural(sum(bool(c.changed) for c in table.columns), 'column')}")
    near = sum(c.within_tolerance for c in table.columns)
    if near:
        parts.append(f"{plural(near, 'cell')} within tolerance")
    kinds: dict[str, int] = {}
    for change in table.schema:
        kinds[change.kind] = kinds.get(change.kind, 0) + 1
    for kind, n in kinds.items():
        parts.append("another format" if kind == "format" else f"{plural(n, 'column')} {_SCHEMA.get(kind, kind)}")
    return ", ".join(parts)


_SCHEMA = {"nullability": "with other nullability"}


def key_text(table: TableDiff) -> str:
    """How rows were identified."""
    k = table.key
    if not k.columns:
        how = {
            "sequence": "rows are aligned in order, by content",
            "position": "rows are compared by position",
            "bag": "rows are compared as a set, without order",
        }
        return f"no key; {how.get(k.align, k.align)}"
    where = {"option": "", "config": " (dvk.toml)", "file": " (declared in the file)", "inferred": " (inferred)"}
    return f"key: {', '.join(k.columns)}{where.get(k.source, '')}"


def schema_text(change: SchemaChange) -> str:
    """One change of the schema, in words."""
    a, b = change.a, change.b
    if change.kind == "added" and b is not None:
        return f"+ {b.label} ({b.type})"
    if change.kind == "removed" and a is not None:
        return f"- {a.label} ({a.type})"
    if a is None or b is None:
        return change.kind
    if change.kind == "renamed":
        score = "" if change.score is None else f", {100 * change.score:.3g} % of the values are equal"
        return f"{a.label} -> {b.label} (renamed{score})"
    if change.kind == "retyped":
        return f"{b.label}: {a.type} -> {b.type}"
    if change.kind == "reordered":
        return f"{b.label}: column {a.index + 1} -> column {b.index + 1}"
    if change.kind == "nullability":
        return f"{b.label}: {_nullable(a)} -> {_nullable(b)}"
    return f"{b.label}: {change.kind}"


def _nullable(column: Column) -> str:
    return "nullable" if column.nullable else "not null"


def cost_text(table: TableDiff) -> str:
    """What the answer took: level, bytes, rows."""
    c = table.cost
    return (
        f"{c.level}: read {amount(c.bytes_read)} ({amount(c.bytes_total)} in both files), "
        f"decoded {plural(c.rows_decoded, 'row')}, skipped {c.rows_skipped:,}, {c.seconds:.1f} s"
    )


def row_number(change: RowChange) -> str:
    """Where a row stands, counted from 1 as people do."""
    a, b = change.a_row, change.b_row
    if a is None or b is None or a == b:
        at = b if a is None else a
        return "" if at is None else f"row {at + 1:,}"
    return f"row {a + 1:,} -> {b + 1:,}"


def row_cells(change: RowChange) -> Iterator[tuple[str, str | None, str | None]]:
    """Label, old and new value of what a row shows; None on the side that has none. Unchanged cells: both the same."""
    for label, (old, new) in change.cells.items():
        yield label, *pair_texts(old, new)
    json = any(isinstance(value, JsonText) for value in change.values.values())
    for label, value in change.values.items():
        if label in change.cells or (json and value is None):
            continue
        text = value_text(value)
        yield label, (None if change.kind == "added" else text), (None if change.kind == "removed" else text)


# ---------------------------------------------------------------- tensors


def tensors_summary(diff: TensorDiff) -> str:
    """`60 of 316 tensors differ: 58 changed, 2 added`."""
    if diff.equal:
        return f"no tensor differs ({plural(diff.tensors[1], 'tensor')})"
    if [c.name for c in diff.changes] == [""]:  # npy: the one array of the file has no name
        return f"the array is {diff.changes[0].kind}"
    kinds: dict[str, int] = {}
    for change in diff.changes:
        kinds[change.kind] = kinds.get(change.kind, 0) + 1
    parts = [f"{n:,} {kind}" for kind, n in kinds.items()]
    if diff.metadata:
        parts.append(plural(len(diff.metadata), "entry of the metadata", "entries of the metadata"))
    return f"{', '.join(parts)}; {plural(diff.unchanged, 'tensor')} unchanged"


def tensor_shape(shape: TensorShape | None) -> str:
    """`F32[1024, 1024]`."""
    return "" if shape is None else f"{shape.dtype}[{', '.join(map(str, shape.shape))}]"


def tensor_text(change: TensorChange) -> str:
    """What became of a tensor, in one line."""
    a, b = tensor_shape(change.a), tensor_shape(change.b)
    parts = [a or b if a == b or not a or not b else f"{a} -> {b}"]
    if change.changed is not None and change.elements is not None:
        parts.append(f"{share(change.changed, change.elements)} of {change.elements:,} items")
    if change.max_abs is not None and change.relative_l2 is not None:
        parts += [f"max |d| {number(change.max_abs)}", f"relative L2 {number(change.relative_l2)}"]
    if change.nan is not None and any(change.nan):
        parts.append(f"NaN {change.nan[0]:,} -> {change.nan[1]:,}")
    return ", ".join(parts)


def tensor_cost(diff: TensorDiff) -> str:
    """What the answer took."""
    return (
        f"read {amount(diff.bytes_read)} ({amount(diff.bytes_total)} in both files), "
        f"{plural(diff.not_read, 'tensor')} equal by chunks and not read, {diff.seconds:.1f} s"
    )
