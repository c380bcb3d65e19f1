"""CSV and TSV as exact text: no type, no guess, nothing dropped.

    id,name,note
    007,"Smith, J.",            ->  c0 "007", c1 "Smith, J.", c2 null
    8,"","6"" pipe"             ->  c0 "8",   c1 "" (not null), c2 6" pipe

Readers differ most where a file is a little wrong, and a wrong table is worse than an error. So the rules are few: a
field is quoted as a whole or not at all, every record has as many fields as the header, only an unquoted empty field is
null, the delimiter comes from the name or the header line and never from values. pyarrow cuts the fields, after our own
check of the quotes, which it does not make: measured, the two together take as long as DuckDB's reader takes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
from msgspec import Struct

from dvk.errors import TableError, UsageError
from dvk.table.contract import Column, Notice, ReadOptions, Source, columns_of
from dvk.table.text.index import MAX_RECORD_BYTES, Marks, TextIndex
from dvk.table.text.scan import CR, LF, QUOTE, Flaw, field_counts, find_flaw, last_record_end, outside
from dvk.table.text.spool import Rewrite, Text
from dvk.table.text.table import BOM, TextTable

MAX_HEADER_BYTES = 16 << 20
MAX_COLUMNS = 1 << 16
#: pyarrow takes 3 kB for each column that it converts, however short; more are converted one group after the other.
_COLUMNS_AT_ONCE = 16_384
_CANDIDATES = b",;\t|"
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_DELIMITERS = {b"csv": ",", b"tsv": "\t", b"tab": "\t", b"psv": "|"}
_FORBIDDEN = {QUOTE, LF, CR, 0}
_PLAIN_QUOTES = "`--quote-char ''` reads quotes as plain characters"


class Dialect(Struct, frozen=True):
    """How records are cut into fields. Bytes as numbers; `quote` 0: quotes are plain characters."""

    delimiter: int
    quote: int
    end: int

    @property
    def marks(self) -> Marks:
        return Marks(self.quote, self.end)


class CsvTable(TextTable):
    """A table of text fields; every column is a string."""

    format = "csv"
    is_text = True

    def __init__(
        self,
        source: Source,
        text: Text,
        dialect: Dialect,
        columns: tuple[Column, ...],
        *,
        header: bool,
        null_values: tuple[str, ...],
        notices: tuple[Notice, ...],
    ) -> None:
        super().__init__(source, text, dialect.marks, columns, header=header)
        self.dialect = dialect
        self._null_values = null_values
        self._blank = "an empty line" if len(columns) > 1 else ""
        self._notices += notices
        self._names = [f"c{c.index}" for c in columns]
        self._parse_options = pc.ParseOptions(
            delimiter=chr(dialect.delimiter),
            quote_char=chr(dialect.quote) if dialect.quote else False,
            double_quote=bool(dialect.quote),
            escape_char=False,
            newlines_in_values=True,
            ignore_empty_lines=False,
        )
        self._convert_options: Callable[[tuple[int, ...]], pc.ConvertOptions] = lru_cache(8)(self._make_convert_options)

    @property
    def reading(self) -> tuple[object, ...]:
        return self.format, self.dialect, tuple(c.identity for c in self._columns), self.header, self._null_values

    def _make_convert_options(self, columns: tuple[int, ...]) -> pc.ConvertOptions:
        wanted = [f"c{i}" for i in columns]
        return pc.ConvertOptions(
            check_utf8=True,
            column_types={name: pa.string() for name in wanted},
            include_columns=wanted,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=["", *self._null_values],
        )

    def _parse(self, data: bytes, columns: Sequence[int], offset: int | None) -> pa.RecordBatch:
        d = self.dialect
        flaw = find_flaw(data, quote=d.quote, delimiter=d.delimiter, end=d.end, blank=self._blank)
        if flaw is not None and flaw.why == self._blank:
            raise self._ragged(1, None if offset is None else offset + flaw.offset)
        if flaw is not None:
            hint = _PLAIN_QUOTES if data[flaw.offset] == d.quote else ""
            raise self._broken(flaw.why, offset=None if offset is None else offset + flaw.offset, hint=hint)
        # pyarrow takes these bytes at the beginning of its input for a byte-order mark; they are content here.
        given = BOM + data if data.startswith(BOM) else data
        # An empty field behind a quoted one is "" and not null for pyarrow if its input ends there without a line end.
        given = given if given[-1] == d.end else given + bytes((d.end,))
        try:
            starts = range(0, max(1, len(columns)), _COLUMNS_AT_ONCE)
            parts = [self._convert(given, columns[at : at + _COLUMNS_AT_ONCE]) for at in starts]
        except pa.ArrowInvalid as error:
            raise self._explain(data, offset, error) from error
        if not parts[0].num_rows:
            return pa.RecordBatch.from_pylist([], schema=self.schema(columns))
        if len(parts) == 1:
            return parts[0].combine_chunks().to_batches()[0]
        arrays = [column.chunk(0) for part in parts for column in part.itercolumns()]  # one block has one chunk
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema(columns))

    def _convert(self, data: bytes, columns: Sequence[int]) -> pa.Table:
        return pc.read_csv(
            pa.py_buffer(data),
            read_options=pc.ReadOptions(column_names=self._names, use_threads=False, block_size=len(data) + 1),
            parse_options=self._parse_options,
            convert_options=self._convert_options(tuple(columns)),
        )

    def _explain(self, data: bytes, offset: int | None, error: Exception) -> TableError:
        """What pyarrow refused, in terms of the file."""
        d = self.dialect
        starts, counts = field_counts(data, quote=d.quote, delimiter=d.delimiter, end=d.end)
        ragged = np.flatnonzero(counts != len(self._columns))
        if len(ragged):
            at = None if offset is None else offset + int(starts[ragged[0]])
            return self._ragged(int(counts[ragged[0]]), at)
        try:
            data.decode()
        except UnicodeDecodeError as bad:
            return not_utf8(bad, data, self.text.label, self._where(None if offset is None else offset + bad.start))
        return self._broken(f"it cannot be parsed: {error}", offset=offset)

    def _ragged(self, fields: int, offset: int | None) -> TableError:
        what = "1 field" if fields == 1 else f"{fields} fields"
        return self._broken(
            f"a record of {what} in a table of {len(self._columns)} columns",
            offset=offset,
            hint="`--ragged pad` fills short records with nulls, `--ragged skip` leaves out what does not fit",
        )

    def _never_closed(self, index: TextIndex) -> None:
        """Name the first quote that is out of place; without one, the one that opens the end of the text."""
        d = self.dialect
        at, size = self.text.skip, 4 << 20
        while True:
            data = self.text.read_at(at, min(size, self.text.size - at))
            last = at + len(data) == self.text.size or len(data) > MAX_RECORD_BYTES
            stop = len(data) if last else last_record_end(data, quote=d.quote, end=d.end)
            if not stop:
                size *= 2
                continue
            flaw = find_flaw(data[:stop], quote=d.quote, delimiter=d.delimiter, end=d.end)
            if flaw is None and last:
                flaw = Flaw(data.rfind(d.quote), "the quote that opens here is never closed")
            if flaw is not None:
                where = at + flaw.offset
                raise self._broken(flaw.why, offset=where, index=index, hint=_PLAIN_QUOTES)
            at, size = at + stop, 4 << 20


def open_csv(
    source: Source,
    text_of: Callable[[Rewrite | None], Text],
    options: ReadOptions,
    *,
    suffix: bytes,
    like: TextTable | None,
) -> CsvTable:
    """A table of delimited text.

    `text_of` gives the text, its pieces rewritten if asked; `suffix`: of the name, without a dot; `like`: the other
    side of a comparison, whose delimiter is used where the header line leaves it open.

    Raises:
        UsageError: an option makes no sense.
        TableError: the delimiter is in doubt, or the header line is no record.
    """
    quote = QUOTE if options.quote is None else _one_byte(options.quote, "quote") if options.quote else 0
    text = text_of(None)
    try:
        first, end = _first_record(text, quote)
        delimiter, notices = _delimiter(first, options, suffix, quote, text.label, like)
        if delimiter == quote:
            raise UsageError("delimiter and quote are the same character")
        if end == CR:
            notices += (Notice("line-ends", f"{text.label} ends its lines with CR alone"),)
        dialect = Dialect(delimiter, quote, end)
        names = _names(first, dialect, text) if text.size > text.skip else []
        if options.ragged != "error" and names:
            fix = Ragged(dialect, len(names), skip=options.ragged == "skip", label=text.label)
            text.close()
            text = text_of(fix.rewrite)
            notices += fix.notices
    except BaseException:
        text.close()
        raise
    if not options.header:
        names = [f"column{i + 1}" for i in range(len(names))]
    return CsvTable(
        source,
        text,
        dialect,
        to_columns(names, pa.string()),
        header=options.header and bool(names),
        null_values=options.null_values,
        notices=notices,
    )


def to_columns(names: Sequence[str], kind: pa.DataType) -> tuple[Column, ...]:
    """Columns of these names, repeated ones numbered."""
    return columns_of((name, kind, True) for name in names)


# ---------------------------------------------------------------- dialect and header


def _one_byte(text: str, what: str) -> int:
    if len(text) != 1 or not text.isascii() or ord(text) in _FORBIDDEN - {QUOTE}:
        raise UsageError(f"the {what} must be one ASCII character, not {text!r}")
    return ord(text)


def _first_record(text: Text, quote: int) -> tuple[bytes, int]:
    """(the first record without its end, the byte that ends records): LF, also as CRLF, or CR alone."""
    size, rest = 64 << 10, text.size - text.skip
    while True:
        data = text.read_at(text.skip, min(size, rest))
        whole = len(data) == rest
        line_feeds, returns = outside(data, LF, quote=quote), outside(data, CR, quote=quote)
        feed = int(line_feeds[0]) if len(line_feeds) else len(data)
        back = int(returns[0]) if len(returns) else len(data)
        if min(feed, back) < len(data) - 1 or whole:
            break
        if len(data) > MAX_HEADER_BYTES:
            break
        size *= 4
    if min(feed, back) > MAX_HEADER_BYTES:
        raise TableError(
            f"the header line is longer than {MAX_HEADER_BYTES >> 20} MiB",
            subject=text.label,
            hint="is it a table? A quote in the first line may never be closed",
        )
    if back < feed and data[back + 1 : back + 2] != b"\n":
        return data[:back], CR
    return data[: min(feed, back)], LF


def _delimiter(
    first: bytes, options: ReadOptions, suffix: bytes, quote: int, label: str, like: TextTable | None
) -> tuple[int, tuple[Notice, ...]]:
    """What separates fields, and what to tell about it: the option, else the suffix, for `.csv` the header line too.

    A `.csv` whose header line has no comma outside quotes, but semicolons, tabs or bars, is cut at those; with two
    of them, it is refused.
    """
    if options.delimiter is not None:
        return _one_byte(options.delimiter, "delimiter"), ()
    usual = ord(_DELIMITERS.get(suffix, ","))
    if chr(usual) != "," or not options.header:
        return usual, ()
    found = [c for c in _CANDIDATES if len(outside(first, c, quote=quote))]
    if usual in found:
        return usual, ()
    if len(found) > 1:
        names = " and ".join(_NAMES[chr(c)] for c in found)
        raise TableError(
            f"the header line has no comma, but {names}: the delimiter is in doubt",
            subject=label,
            hint="say which with `--delimiter`",
        )
    if found:
        name = _NAMES[chr(found[0])]
        told = f"the header line of {label} has no comma but {name}s: fields are cut at each {name}"
        return found[0], (Notice("delimiter", told),)
    return like.dialect.delimiter if isinstance(like, CsvTable) else usual, ()


def _names(first: bytes, dialect: Dialect, text: Text) -> list[str]:
    """The fields of the first record."""
    flaw = find_flaw(first, quote=dialect.quote, delimiter=dialect.delimiter, end=dialect.end)
    if flaw is None and dialect.quote and first.count(dialect.quote) % 2:
        flaw = Flaw(first.rfind(dialect.quote), "the quote that opens here is never closed")
    if flaw is not None:
        raise TableError(
            f"line 1, byte {text.skip + flaw.offset}: {flaw.why}",
            subject=text.label,
            hint=_PLAIN_QUOTES,
        )
    cuts = outside(first, dialect.delimiter, quote=dialect.quote).tolist()
    if len(cuts) >= MAX_COLUMNS:
        raise TableError(
            f"the first line has {len(cuts) + 1:,} fields; dvk compares up to {MAX_COLUMNS:,}", subject=text.label
        )
    if 0 in first:
        raise TableError(
            f"line 1, byte {text.skip + first.index(0)}: a zero byte in a name",
            subject=text.label,
            hint="it may be UTF-16 without a byte-order mark: `--encoding utf-16-le` or `utf-16-be`",
        )
    names = []
    for start, stop in zip([0, *[c + 1 for c in cuts]], [*cuts, len(first)], strict=True):
        field, mark = first[start:stop], bytes((dialect.quote,))
        if dialect.quote and field.startswith(mark):
            field = field[1:-1].replace(mark * 2, mark)
        try:
            names.append(field.decode())
        except UnicodeDecodeError as bad:
            raise not_utf8(bad, first, text.label, f"line 1, byte {text.skip + start + bad.start}") from bad
    return names


def not_utf8(bad: UnicodeDecodeError, data: bytes, label: str, where: str) -> TableError:
    """The error of bytes that are no UTF-8, with a likely encoding from the bytes around them."""
    shown = " ".join(f"{byte:02x}" for byte in bad.object[bad.start : bad.start + 4])
    likely = "utf-16" if data.count(0) * 4 > len(data) else "cp1252 or latin-1"
    return TableError(
        f"{where}: the bytes {shown} are not UTF-8 ({bad.reason})",
        subject=label,
        hint=f"say what it is with `--encoding NAME`, likely {likely}",
    )


# ---------------------------------------------------------------- records that do not fit


class Ragged:
    """Rewrites a text so that every record has `fields` fields, and counts what that took."""

    def __init__(self, dialect: Dialect, fields: int, *, skip: bool, label: str) -> None:
        """`skip`: leave out records that do not fit; else fill short ones with nulls and let long ones be."""
        self._dialect, self._fields, self._skip, self._label = dialect, fields, skip, label
        self._count = 0

    @property
    def notices(self) -> tuple[Notice, ...]:
        if not self._count:
            return ()
        what = "left out" if self._skip else "filled with nulls"
        return (Notice("ragged", f"{self._label}: records with too {self._how} fields, {what}: {self._count}"),)

    @property
    def _how(self) -> str:
        return "few or too many" if self._skip else "few"

    def rewrite(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces, cut between records, with other records."""
        d = self._dialect
        held = b""
        for piece in pieces:
            held += piece
            stop = last_record_end(held, quote=d.quote, end=d.end)
            if stop:
                yield self._fit(held[:stop])
                held = held[stop:]
            if len(held) > MAX_RECORD_BYTES:
                raise TableError(
                    f"a record is longer than {MAX_RECORD_BYTES >> 20} MiB",
                    subject=self._label,
                    hint="a quote in it may never be closed",
                )
        if held:
            yield self._fit(held)

    def _fit(self, data: bytes) -> bytes:
        d = self._dialect
        starts, counts = field_counts(data, quote=d.quote, delimiter=d.delimiter, end=d.end)
        wrong = np.flatnonzero(counts != self._fields if self._skip else counts < self._fields)
        if not len(wrong):
            return data
        self._count += len(wrong)
        bounds = np.append(starts, len(data))
        out, at = [], 0
        for i in wrong.tolist():
            start, stop = int(bounds[i]), int(bounds[i + 1])
            out.append(data[at:start])
            if not self._skip:
                record = data[start:stop]
                body = record.rstrip(b"\r\n") if record[-1:] == bytes((d.end,)) else record
                out += [body, bytes((d.delimiter,)) * (self._fields - int(counts[i])), record[len(body) :]]
            at = stop
        return b"".join([*out, data[at:]])
