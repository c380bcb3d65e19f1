"""A diff as JSON (docs/format/diff.schema.json, table-diff.schema.json) and as JSON Lines.

One document for a whole diff, with rows up to a limit; or one line for each fact, in a fixed order, without a limit:
`diff`, then for each path `path`, its `file`s, for a table `header`, `schema`, `column`, `row`, `summary`, for tensors
`tensor`; `failure`; at last `end`. A path is on every line. Paths that are not UTF-8 are `{"bytes_b64": ...}`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from dvk.commands.diff_words import value_json
from dvk.errors import DvkError

if TYPE_CHECKING:
    from dvk.commands.diff_folder import FileChange, FileEntry
    from dvk.commands.diff_gates import Exceeded
    from dvk.commands.diff_result import DiffResult, Item, PathDiff
    from dvk.table.contract import Column
    from dvk.table.result import ColumnChange, Distribution, RowChange, SchemaChange, Side, TableDiff
    from dvk.table.tensors.compare import TensorChange, TensorDiff, TensorShape

Json = Any

#: The published name and version of the whole form (docs/format/diff.schema.json).
FORMAT = "dvk.diff/1"

ROW_KINDS = ("added", "removed", "modified")


class Show(Struct, frozen=True, kw_only=True):
    """Which parts of a diff are shown, in every form.

    Attributes:
        schema, columns, rows: parts of a table; all False: its summary only.
        kinds: of rows and files.
        limit, offset: of the rows of a table and the files of a folder; None: all.
        sort: `key` or `position`.
        full: unchanged cells of modified rows too.
    """

    schema: bool = True
    columns: bool = True
    rows: bool = True
    kinds: tuple[str, ...] = ROW_KINDS
    limit: int | None = 20
    offset: int = 0
    sort: str = "key"
    full: bool = False

    def changes(self, table: TableDiff) -> Iterator[RowChange]:
        """The rows to show."""
        kinds = tuple(k for k in self.kinds if k in ("added", "removed", "modified", "moved"))
        if not self.rows or not kinds:
            return iter(())
        return table.changes(kinds=kinds, limit=self.limit, offset=self.offset, sort=self.sort, full=self.full)

    def files(self, path: PathDiff) -> Iterator[FileChange]:
        """The files of a folder to show; renamed ones count as modified."""
        if path.files is None or not self.rows:
            return
        kinds = {*self.kinds, *(["renamed"] if "modified" in self.kinds else [])}
        found = (row for row in path.files.rows() if row.change in kinds)
        yield from islice(found, self.offset, None if self.limit is None else self.offset + self.limit)

    def total(self, table: TableDiff) -> int:
        """How many rows there are of the kinds to show."""
        r = table.rows
        counts = {"added": r.added, "removed": r.removed, "modified": r.modified, "moved": r.moved}
        return sum(n for kind, n in counts.items() if kind in self.kinds)


def name_json(name: bytes) -> Json:
    """A path: text where it is UTF-8, else its exact bytes."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes_b64": base64.b64encode(name).decode("ascii")}


# ---------------------------------------------------------------- one document


def document(result: DiffResult, show: Show, *, over: Sequence[Exceeded] = ()) -> Json:
    """The whole diff; `over`: the gates that were exceeded.

    `complete` is false where a path failed or the counts of a table are not exact.
    """
    paths = [_path(p, show) for p in result.paths]
    tables = [t for p in result.paths for t in p.each()]
    return {
        "format": FORMAT,
        "a": result.a,
        "b": result.b,
        "equal": result.equal,
        "complete": not result.failures and all(p.table is None or p.table.complete for p in tables),
        "remote": result.remote,
        "paths": paths,
        "gates": [{"path": name_json(e.path), "gate": e.gate, "found": e.found} for e in over],
    }


def _path(p: PathDiff, show: Show) -> Json:
    out = _path_head(p)
    if p.files is not None:
        out["files"]["changes"] = [_file(row) for row in show.files(p)]
    if p.table is not None:
        out["table"] = table_document(p.path, p.table, show)
    if p.tensors is not None:
        out["tensors"] = tensors_document(p.tensors, show)
    if p.inside:
        out["inside"] = [_path(inner, show) for inner in p.inside]
    return out


def _path_head(p: PathDiff) -> Json:
    out = {
        "path": name_json(p.path),
        "status": p.status,
        "differs": p.differs,
        "a": _item(p.a),
        "b": _item(p.b),
        "new_bytes": p.new_bytes,
        "not_present": p.not_present,
    }
    if p.files is not None:
        f = p.files
        out["files"] = {
            "added": len(f.added),
            "removed": len(f.removed),
            "modified": len(f.modified),
            "renamed": len(f.renamed),
        }
    return out


def _item(item: Item | None) -> Json:
    if item is None:
        return None
    return {
        "kind": item.kind,
        "size": item.size,
        "files": item.files,
        "id": None if item.id is None else item.id.hex(),
        "exec": item.exec,
    }


def _file(row: FileChange) -> Json:
    return {
        "path": name_json(row.path),
        "change": row.change,
        "a": _entry(row.a),
        "b": _entry(row.b),
        "old_path": None if row.old_path is None else name_json(row.old_path),
    }


def _entry(entry: FileEntry | None) -> Json:
    if entry is None:
        return None
    return {
        "kind": entry.kind,
        "size": entry.size,
        "id": None if entry.id is None else entry.id.hex(),
        "target": None if entry.target is None else name_json(entry.target),
    }


# ---------------------------------------------------------------- tables


def table_document(path: bytes, table: TableDiff, show: Show) -> Json:
    """One table, as docs/format/table-diff.schema.json says."""
    changes = [_row(c) for c in show.changes(table)]
    return {
        **_table_head(path, table),
        "equal": table.equal,
        "complete": table.complete,
        "rows": _rows(table),
        "schema": [_schema(c) for c in table.schema],
        "columns": [_column(c) for c in table.columns],
        "changes": changes,
        "warnings": _warnings(table),
        "cost": _cost(table),
    }


def _table_head(path: bytes, table: TableDiff) -> Json:
    from_key = table.key
    return {
        "format": "dvk.table-diff/1",
        "path": name_json(path),
        "a": _side(table.a),
        "b": _side(table.b),
        "key": {
            "columns": list(from_key.columns),
            "source": from_key.source,
            "align": from_key.align,
            "checked": from_key.checked,
            "duplicates": {"a": from_key.duplicates[0], "b": from_key.duplicates[1]},
            "nulls": {"a": from_key.nulls[0], "b": from_key.nulls[1]},
            "samples": list(from_key.samples),
        },
    }


def _side(side: Side) -> Json:
    return {"label": side.label, "rows": side.rows, "format": side.format, "id": side.id}


def _rows(table: TableDiff) -> Json:
    r = table.rows
    return {
        "a": r.a,
        "b": r.b,
        "added": r.added,
        "removed": r.removed,
        "modified": r.modified,
        "unchanged": r.unchanged,
        "moved": r.moved,
    }


def _schema(change: SchemaChange) -> Json:
    out = {"kind": change.kind, "a": _declared(change.a), "b": _declared(change.b)}
    if change.score is not None:
        out["score"] = change.score
    return out


def _declared(column: Column | None) -> Json:
    if column is None:
        return None
    return {
        "name": column.label,
        "index": column.index,
        "type": str(column.type),
        "nullable": column.nullable,
    }


def _column(c: ColumnChange) -> Json:
    out: dict[str, Json] = {
        "name": c.name,
        "changed": c.changed,
        "within_tolerance": c.within_tolerance,
        "formatting_only": c.formatting_only,
        "null_to_value": c.null_to_value,
        "value_to_null": c.value_to_null,
        "top": [{"a": value_json(a), "b": value_json(b), "count": n} for (a, b), n in c.top],
    }
    if c.movement is not None:
        m = c.movement
        out["movement"] = {
            "count": m.count,
            "mean": value_json(m.mean),
            "largest_rise": value_json(m.largest_rise),
            "largest_fall": value_json(m.largest_fall),
        }
    for name, found in (("before", c.before), ("after", c.after)):
        if found is not None:
            out[name] = _distribution(found)
    return out


def _distribution(d: Distribution) -> Json:
    return {
        "rows": d.rows,
        "nulls": d.nulls,
        "distinct": d.distinct,
        "minimum": value_json(d.minimum),
        "maximum": value_json(d.maximum),
        "mean": value_json(d.mean),
        "deviation": value_json(d.deviation),
        "quantiles": [value_json(q) for q in d.quantiles],
        "top": [{"value": value_json(v), "count": n} for v, n in d.top],
    }


def _row(change: RowChange) -> Json:
    out: dict[str, Json] = {"kind": change.kind, "a_row": change.a_row, "b_row": change.b_row}
    if change.key:
        out["key"] = {label: value_json(v) for label, v in change.key.items()}
    if change.cells:
        out["cells"] = {label: {"a": value_json(a), "b": value_json(b)} for label, (a, b) in change.cells.items()}
    if change.values:
        out["values"] = {label: value_json(v) for label, v in change.values.items()}
    return out


def _warnings(table: TableDiff) -> Json:
    return [{"code": n.code, "message": n.message} for n in table.notices]


def _cost(table: TableDiff) -> Json:
    c = table.cost
    return {
        "level": c.level,
        "bytes_read": c.bytes_read,
        "bytes_total": c.bytes_total,
        "rows_decoded": c.rows_decoded,
        "rows_skipped": c.rows_skipped,
        "seconds": round(c.seconds, 3),
    }


# ---------------------------------------------------------------- tensors


def tensors_document(diff: TensorDiff, show: Show) -> Json:
    """A file of tensors, as docs/format/diff.schema.json says."""
    return {
        **_tensors_head(diff),
        "changes": [tensor_json(c) for c in diff.changes[show.offset :][: show.limit]],
    }


def _tensors_head(diff: TensorDiff) -> Json:
    return {
        "format": "dvk.tensor-diff/1",
        "equal": diff.equal,
        "a": {"format": diff.format[0], "tensors": diff.tensors[0]},
        "b": {"format": diff.format[1], "tensors": diff.tensors[1]},
        "unchanged": diff.unchanged,
        "not_read": diff.not_read,
        "differing": len(diff.changes),
        "metadata": [{"key": k, "a": a, "b": b} for k, a, b in diff.metadata],
        "cost": {
            "bytes_read": diff.bytes_read,
            "bytes_total": diff.bytes_total,
            "seconds": round(diff.seconds, 3),
        },
    }


def tensor_json(c: TensorChange) -> Json:
    """One tensor."""
    return {
        "name": c.name,
        "kind": c.kind,
        "a": _shape(c.a),
        "b": _shape(c.b),
        "elements": c.elements,
        "changed": c.changed,
        "max_abs": value_json(c.max_abs),
        "relative_l2": value_json(c.relative_l2),
        "nan": None if c.nan is None else {"a": c.nan[0], "b": c.nan[1]},
    }


def _shape(shape: TensorShape | None) -> Json:
    return None if shape is None else {"dtype": shape.dtype, "shape": list(shape.shape), "size": shape.size}


# ---------------------------------------------------------------- lines


def lines(result: DiffResult, show: Show) -> Iterator[Json]:
    """The same facts, one a line; rows are read as they are asked for."""
    yield {"record": "diff", "format": FORMAT, "a": result.a, "b": result.b}
    for path in result.paths:
        for part in path.each():
            yield from _path_lines(part, show)
    for error in result.failures:
        yield {"record": "failure", **failure_json(error)}
    complete = not result.failures and all(
        p.table is None or p.table.complete for top in result.paths for p in top.each()
    )
    yield {"record": "end", "equal": result.equal, "complete": complete, "remote": result.remote}


def _path_lines(p: PathDiff, show: Show) -> Iterator[Json]:
    name = name_json(p.path)
    yield {"record": "path", **_path_head(p)}
    for row in show.files(p):
        yield {"record": "file", "of": name, **_file(row)}
    if p.table is not None:
        yield {"record": "header", **_table_head(p.path, p.table)}
        yield from ({"record": "schema", "path": name, **_schema(c)} for c in p.table.schema)
        yield from ({"record": "column", "path": name, **_column(c)} for c in p.table.columns)
        yield from ({"record": "row", "path": name, **_row(c)} for c in show.changes(p.table))
        yield {
            "record": "summary",
            "path": name,
            "equal": p.table.equal,
            "complete": p.table.complete,
            "rows": _rows(p.table),
            "warnings": _warnings(p.table),
            "cost": _cost(p.table),
        }
    if p.tensors is not None:
        yield {"record": "tensors", "path": name, **_tensors_head(p.tensors)}
        changes: Sequence[TensorChange] = p.tensors.changes[show.offset :][: show.limit]
        yield from ({"record": "tensor", "path": name, **tensor_json(c)} for c in changes)


def failure_json(error: DvkError) -> Json:
    """What went wrong for one path."""
    return {"kind": error.kind, "message": error.message, "subject": error.subject, "hint": error.hint}
