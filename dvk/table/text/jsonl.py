"""JSON Lines as exact JSON: each field's value as JSON text, in one form for one value.

    {"id": 1, "x": 1.10, "tags": ["a"]}          id '1'     x '1.10'    tags '["a"]'
    {"id": "1", "x": null}                       id '"1"'   x 'null'    tags missing (null)

So 1 and "1" differ, null is not a missing field, a number keeps every digit it was written with. One form: no white
space, strings escaped only where they must be, the members of nested objects by name, since JSON gives their order no
meaning. A value that is simple (most are) is its own form and is only checked, by a regular expression over a whole
column; others go through Python's parser one by one.

The columns are the union of all fields, in the order in which they appear first. That takes a pass over the file, in
pieces and on all cores; what is kept of it is the names, at most 10,000.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dvk.errors import TableError
from dvk.store.names import I64
from dvk.table.broken import broken
from dvk.table.cache import Cache
from dvk.table.contract import Column, Notice, ReadOptions, Source
from dvk.table.parallel import ordered_map
from dvk.table.text.csv import not_utf8, to_columns
from dvk.table.text.index import MAX_RECORD_BYTES, Marks
from dvk.table.text.json_lines import Fields, NotJson, find_fields
from dvk.table.text.scan import LF
from dvk.table.text.spool import Rewrite, Text
from dvk.table.text.table import TextTable

MAX_FIELDS = 10_000
_UNIT_BYTES = 2 << 20
_SIMPLE = r'^(?:"[^"\\\x00-\x1f]*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)$'
_SPEC = b"jsonl-fields/1\0"


class JsonlTable(TextTable):
    """A table of JSON texts; every column is a string, a missing field is null."""

    format = "jsonl"
    is_text = False

    def __init__(self, source: Source, text: Text, notices: tuple[Notice, ...] = ()) -> None:
        super().__init__(source, text, Marks(0, LF), (), header=False)
        self._notices += notices
        self._by_name: dict[str, int] = {}

    @property
    def reading(self) -> tuple[object, ...]:
        return (self.format,)  # fields have names of their own, so equal lines are equal rows in any columns

    # ------------------------------------------------------------ columns

    def find_columns(self, cache: Cache | None) -> None:
        """Take all lines and name their fields.

        Raises:
            TableError: a line is no object, or there are too many names.
        """
        file_id = self._source.id if self.text.is_source else None
        kept = cache.get(file_id, _SPEC) if cache is not None and file_id is not None else None
        names = _parse_names(kept)
        if names is None:
            found: dict[str, None] = {}
            units = self.build_index(cache=cache).index.units(0, self.count_rows(), unit_bytes=_UNIT_BYTES)
            for part in ordered_map(self._names_of_unit, units):
                found.update(part)
                if len(found) > MAX_FIELDS:
                    raise TableError(
                        f"it has more than {MAX_FIELDS} different fields",
                        subject=self.text.label,
                        hint="are some of the names values?",
                    )
            names = list(found)
            if cache is not None and file_id is not None:
                cache.put(file_id, _SPEC, json.dumps(names).encode())
        self._columns: tuple[Column, ...] = to_columns(names, pa.string())
        self._by_name = {name: i for i, name in enumerate(names)}

    def _names_of_unit(self, unit: tuple[int, int, int, int]) -> dict[str, None]:
        """Names of the fields of some records, in the order of their first appearance."""
        _, _, start, stop = unit
        data, fields = self._fields(self.text.read_at(start, stop - start), start)
        return dict.fromkeys(self._keys(data, fields, start)[1])

    def _fields(self, data: bytes, offset: int | None) -> tuple[bytes, Fields]:
        """(data, with a line end at its end, its fields)."""
        if not data.endswith(b"\n"):
            data += b"\n"
        try:
            return data, find_fields(data)
        except NotJson as error:
            at = None if offset is None else offset + error.flaw.offset
            hint = "`--ragged skip` leaves out empty lines" if "empty" in error.flaw.why else ""
            raise self._broken(error.flaw.why, offset=at, hint=hint) from error

    def _keys(self, data: bytes, fields: Fields, offset: int | None) -> tuple[pa.Array, list[str]]:
        """(number of the key of each field, the keys by number, in the order of their first appearance)."""
        encoded = _cut(data, fields, 0).dictionary_encode()
        names = []
        for number, key in enumerate(encoded.dictionary.to_pylist()):
            try:
                name = json.loads(key.decode())
                if not isinstance(name, str):
                    raise ValueError("no string")
                name.encode()
            except (ValueError, RecursionError) as error:
                first = pc.index(encoded.indices, pa.scalar(number, encoded.indices.type)).as_py()
                at = None if offset is None else offset + int(fields.places[4 * first])
                raise self._broken("this is no name of a field: a string in UTF-8", offset=at) from error
            names.append(name)
        return encoded.indices, names

    # ------------------------------------------------------------ values

    def _parse(self, data: bytes, columns: Sequence[int], offset: int | None) -> pa.RecordBatch:
        data, fields = self._fields(data, offset)
        indices, names = self._keys(data, fields, offset)
        column_of = np.array([self._by_name.get(name, -1) for name in names], np.int64)
        column = column_of[indices.to_numpy(zero_copy_only=False)] if len(fields) else np.zeros(0, np.int64)
        if len(column) and column.min() < 0:
            raise self._broken("it changed while it was read", offset=None)
        order = np.argsort(column, kind="stable")
        bounds = np.searchsorted(column[order], np.arange(len(self._columns) + 1))
        self._no_repeats(fields, column, order, offset)
        values = _cut(data, fields, 2)
        arrays = [self._column(data, fields, values, order[bounds[i] : bounds[i + 1]], offset) for i in columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema(columns))

    def _no_repeats(self, fields: Fields, column: I64, order: I64, offset: int | None) -> None:
        """Refuse a line that says a field twice."""
        line = fields.line[order]
        again = np.flatnonzero((column[order][1:] == column[order][:-1]) & (line[1:] == line[:-1]))
        if len(again):
            field = int(order[again + 1].min())
            at = None if offset is None else offset + int(fields.places[4 * field])
            raise self._broken(
                f"the field {self._columns[int(column[field])].name!r} occurs twice in a line", offset=at
            )

    def _column(self, data: bytes, fields: Fields, values: pa.Array, which: I64, offset: int | None) -> pa.Array:
        """The values of the fields `which`, each in the row of its line; `values`: of all fields."""
        try:
            values = values.take(pa.array(which)).cast(pa.string())
        except pa.ArrowInvalid as error:
            raise self._not_utf8(data, offset) from error
        simple = pc.match_substring_regex(values, _SIMPLE)
        if not pc.all(simple).as_py():
            hard = pc.invert(simple)
            texts = values.filter(hard).to_pylist()
            numbers = which[np.flatnonzero(hard.to_numpy(zero_copy_only=False))]
            forms = [self._form(t, n, fields, offset) for t, n in zip(texts, numbers.tolist(), strict=True)]
            values = pc.replace_with_mask(values, hard, pa.array(forms, pa.string()))
        if len(which) == fields.lines:
            return values
        rows = np.full(fields.lines, -1, np.int64)
        rows[fields.line[which]] = np.arange(len(which))
        return values.take(pa.array(rows, mask=rows < 0))

    def _form(self, text: str, field: int, fields: Fields, offset: int | None) -> str:
        try:
            return canonical(text)
        except (ValueError, RecursionError) as error:
            at = None if offset is None else offset + int(fields.places[4 * field + 2])
            why = "it is nested too deeply" if isinstance(error, RecursionError) else f"no JSON value ({error})"
            raise self._broken(why, offset=at) from error

    def _not_utf8(self, data: bytes, offset: int | None) -> TableError:
        try:
            data.decode()
        except UnicodeDecodeError as bad:
            return not_utf8(bad, data, self.text.label, self._where(None if offset is None else offset + bad.start))
        return self._broken("a value is not UTF-8", offset=offset)


def _cut(data: bytes, fields: Fields, which: int) -> pa.Array:
    """All keys (`which` 0) or values (2) of some data as binary."""
    # The places ascend, so they are the offsets of an array of which every fourth piece is a key, every fourth a value.
    offsets = np.append(fields.places, fields.places[-1:] if len(fields) else 0).astype(np.int32)
    pieces = pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return pieces.take(pa.array(np.arange(which, 4 * len(fields), 4)))


# ---------------------------------------------------------------- one form for one value


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


def canonical(text: str) -> str:
    """The one form of a JSON value.

    Raises:
        ValueError: it is no JSON. RecursionError: it is nested beyond what Python parses.

    >>> canonical('{"b" : [1.0, 1e5], "a": "\\\\u00e9\\\\/"}')
    '{"a":"é/","b":[1.0,1e5]}'
    """
    return _form(_DECODER.decode(text))


def _form(value: Any) -> str:
    match value:
        case _Number():
            return str(value)
        case str():
            return _string(value)
        case True:
            return "true"
        case False:
            return "false"
        case None:
            return "null"
        case list():
            return "[" + ",".join(map(_form, value)) + "]"
        case _:
            return "{" + ",".join(f"{_string(key)}:{_form(value[key])}" for key in sorted(value)) + "}"


def _string(value: str) -> str:
    text: str = encode_basestring(value)
    if value.isascii():
        return text
    # Half of a surrogate pair can be escaped in JSON and is no text: it stays escaped.
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text) if _is_broken(text) else text


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return out


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_refuse, object_pairs_hook=_pairs)


# ---------------------------------------------------------------- opening


def open_jsonl(
    source: Source, text_of: Callable[[Rewrite | None], Text], options: ReadOptions, *, cache: Cache | None
) -> JsonlTable:
    """A table of JSON objects, one a line; `text_of` gives the text, its pieces rewritten if asked.

    Raises:
        TableError: a line is no object, with its number.
    """
    if options.ragged == "error":
        table = JsonlTable(source, text_of(None))
    else:
        fix = _EmptyLines(source.label)
        text = text_of(fix.rewrite)
        table = JsonlTable(source, text, fix.notices)
    try:
        table.find_columns(cache)
    except BaseException:
        table.text.close()
        raise
    return table


class _EmptyLines:
    """Leaves out lines without anything on them, and counts them."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._count = 0

    @property
    def notices(self) -> tuple[Notice, ...]:
        if not self._count:
            return ()
        return (Notice("ragged", f"{self._label}: empty lines, left out: {self._count}"),)

    def rewrite(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, without empty lines."""
        held = b""
        for piece in pieces:
            *lines, held = (held + piece).split(b"\n")
            if len(held) > MAX_RECORD_BYTES:
                raise broken(f"a line is longer than {MAX_RECORD_BYTES >> 20} MiB", self._label)
            yield self._kept(lines)
        yield self._kept([held] if held else [])

    def _kept(self, lines: list[bytes]) -> bytes:
        kept = [line + b"\n" for line in lines if line.strip(b" \t\r")]
        self._count += len(lines) - len(kept)
        return b"".join(kept)


def _parse_names(body: bytes | None) -> list[str] | None:
    """Names from the cache."""
    if body is None:
        return None
    try:
        names = json.loads(body)
    except ValueError:
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return names if good else None
