"""CSV comes out exactly as it was written, or not at all."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from textkit import Malformed, open_text_table, read_slowly, rows_of, stored, write_csv

from dvk.errors import StorageError, TableError, UsageError
from dvk.table.contract import ReadOptions, Region
from dvk.table.open import open_table
from dvk.table.text.csv import CsvTable

FIELD = st.one_of(st.none(), st.text(st.sampled_from('ab,"\n\r\té\ufeff;€'), max_size=4), st.text(max_size=3))


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str | None, ...]]:
    """A header and rows: as many fields each as the header has, and some row that is more than an empty line."""
    width = draw(st.integers(1, 4))
    row = st.tuples(*[FIELD.filter(lambda v: v is None or "\x00" not in v)] * width)
    return [tuple(f"n{i}" for i in range(width)), *draw(st.lists(row, max_size=12))]


@given(tables(), st.integers(), st.sampled_from([",", "\t", ";", "|"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_is_written_is_read(
    table: list[tuple[str | None, ...]], seed: int, delimiter: str, end: str, last: bool
) -> None:
    """Any values, any legal quoting, any delimiter and line end, chunk borders anywhere, pieces of any size."""
    last = last or table[-1] == (None,)  # a last empty record needs its line end to be seen
    data = write_csv(table, random.Random(seed), delimiter=delimiter, end=end, last=last)
    opened = open_text_table(
        data, chunk_mean=1 + seed % 9, unit_bytes=1 + seed % 40, options=ReadOptions(delimiter=delimiter)
    )
    assert [c.name for c in opened.columns] == list(table[0])
    assert opened.count_rows() == len(table) - 1
    assert rows_of(opened) == table[1:]


@given(tables(), st.integers(), st.data())
def test_regions_and_single_rows(table: list[tuple[str | None, ...]], seed: int, data: st.DataObject) -> None:
    """A part of a table is the same part of all of it."""
    rows = table[1:]
    opened = open_text_table(write_csv(table, random.Random(seed)), chunk_mean=6, unit_bytes=1 + seed % 30)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=6, unique=True)))
    regions = [Region(a, b - a) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    assert rows_of(opened, regions) == [row for r in regions for row in rows[r.first : r.first + r.rows]]

    picked = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1)))) if rows else []
    columns = data.draw(st.permutations(range(len(table[0]))))[: 1 + seed % len(table[0])]
    taken = opened.take(np.array(picked, np.int64), columns)
    assert taken.schema == pa.schema([(f"c{i}", pa.string()) for i in columns])
    assert [tuple(r.values()) for r in taken.to_pylist()] == [tuple(rows[i][c] for c in columns) for i in picked]


@given(
    st.lists(st.sampled_from([b"a", b"b", b",", b'"', b'"', b"\n", b"\r\n", b"\r"]), max_size=25).map(b"".join),
    st.integers(0, 8),
)
@example(b'a,b\n1,"2\n3,"4"\n', 2)
@example(b"a\n\n\n", 1)
@example(b"a,b\n\r\n", 1)
def test_any_bytes_are_read_by_the_letter_or_refused(body: bytes, chunk_mean: int) -> None:
    """No text is read otherwise than by the grammar; what has no reading by it is an error that says where."""
    data = b"x,y\n" + body
    try:
        expected = read_slowly(data)[1:]
        ragged = any(len(row) != 2 for row in expected)
    except Malformed:
        ragged = True
    table = open_text_table(data, chunk_mean=chunk_mean, unit_bytes=1 + chunk_mean)
    if ragged:
        with pytest.raises(TableError, match=r"line \d+, byte \d+"):
            rows_of(table)
    else:
        assert rows_of(table) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1\n", "line 2, byte 4: a record of 1 field in a table of 2 columns"),
        (b'a,b\n"x\ny",2\n1,2,3\n', "line 4, byte 12: a record of 3 fields in a table of 2 columns"),
        (b"a,b\n1,2\n\n3,4\n", "line 3, byte 8: a record of 1 field in a table of 2 columns"),
        (b'a,b\n1,2"\n', "line 2, byte 7: a quote inside a field"),
        (b'a,b\n1,"2"x\n', "line 2, byte 8: text behind the quote"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3, byte 10: the quote that opens here is never closed"),
        (b'a,"b\n1,2\n', "line 1, byte 2: the quote that opens here is never closed"),
        (b"a,b\n1,2\r3\n", "line 2, byte 7: a carriage return"),
        (b"a,b\r1,2\n3,4\r", "line 2, byte 7: a line feed"),
        (b"a,b\n1,\xe9t\xe9\n", "line 2, byte 6: the bytes e9 74 e9 0a are not UTF-8"),
        (b"a,\xe9\n1,2\n", "line 1, byte 2: the bytes e9 are not UTF-8"),
        (b"a;b|c\n", "the header line has no comma, but semicolon and bar"),
    ],
)
def test_errors_say_where(data: bytes, message: str) -> None:
    """File, line and byte of what is wrong."""
    with pytest.raises(TableError, match=re.escape(message)) as caught:
        rows_of(open_text_table(data, name=b"t.csv"))
    assert caught.value.subject == "t.csv"


def test_an_open_quote_in_a_large_file_is_found_where_it_opens() -> None:
    """Not at the end of the file, where parsers notice."""
    lines = [b"%d,x%d\n" % (i, i) for i in range(200_000)]
    lines[150_000] = b'7,"oops\n'
    lines[150_001] = b'8,"fine"\n'
    data = b"a,b\n" + b"".join(lines)
    at = data.index(b'"fine') + 1  # here the text behind a closing quote begins
    with pytest.raises(TableError, match=f"line 150003, byte {at - 1}: text behind"):
        rows_of(open_text_table(data))


@pytest.mark.parametrize(
    ("data", "names", "rows"),
    [
        (b"", [], []),
        (b"\xef\xbb\xbf", [], []),
        (b"a,b", ["a", "b"], []),
        (b"a,b\r\n", ["a", "b"], []),
        (b"\xef\xbb\xbfa,b\n1,2", ["a", "b"], [("1", "2")]),
        (b"a\n\n1\n\n", ["a"], [(None,), ("1",), (None,)]),
        (b'a\n""\n', ["a"], [("",)]),
        (b'"a ""x""","b,c"\n1,2\n', ['a "x"', "b,c"], [("1", "2")]),
        (b"a,b\r1,2\r3,4", ["a", "b"], [("1", "2"), ("3", "4")]),
        (b"a,b\n 007 ,1.10\n", ["a", "b"], [(" 007 ", "1.10")]),
        (b"a,b\nNA,null\n", ["a", "b"], [("NA", "null")]),
        (b"a,b\n\xef\xbb\xbfx,\x00\n", ["a", "b"], [("\ufeffx", "\x00")]),
        (b"a;b\n1,5;2\n", ["a", "b"], [("1,5", "2")]),
        (b'"a,b;c"\n1\n', ["a,b;c"], [("1",)]),
    ],
)
def test_cases(data: bytes, names: list[str], rows: list[tuple[str | None, ...]]) -> None:
    """Small files that readers disagree about."""
    table = open_text_table(data)
    assert [c.name for c in table.columns] == names
    assert rows_of(table) == rows


def test_repeated_names_are_told_apart() -> None:
    """No column is dropped or renamed."""
    table = open_text_table(b"x,X,x,x\n1,2,3,4\n")
    assert [c.label for c in table.columns] == ["x", "X", "x#2", "x#3"]
    assert rows_of(table) == [("1", "2", "3", "4")]


def test_twenty_thousand_columns() -> None:
    """Width costs no correctness. They are converted in groups."""
    names = [f"n{i}" for i in range(20_000)]
    rows = [tuple(str(i * j) for i in range(20_000)) for j in range(10)]
    table = open_text_table(write_csv([tuple(names), *rows], random.Random(0)))
    assert [c.name for c in table.columns] == names
    assert rows_of(table) == rows
    assert table.take(np.array([3, 7]), [19_999]).to_pylist() == [{"c19999": str(19_999 * j)} for j in (3, 7)]


def test_a_delimiter_from_the_header_line_is_reported() -> None:
    """A decision is told; values never decide."""
    assert [n.code for n in open_text_table(b"a;b\n1;2\n").notices] == ["delimiter"]
    assert [c.name for c in open_text_table(b"a\n1;2\n").columns] == ["a"]
    assert open_text_table(b"a,b\n1;2,3\n").notices == ()
    assert [c.name for c in open_text_table(b"a,b\n", name=b"t.tsv").columns] == ["a,b"]


def test_options() -> None:
    """What the user says goes."""
    assert rows_of(open_text_table(b"1,2\n", options=ReadOptions(header=False))) == [("1", "2")]
    assert [c.name for c in open_text_table(b"1,2\n", options=ReadOptions(header=False)).columns] == [
        "column1",
        "column2",
    ]
    assert rows_of(open_text_table(b'a,b\n5" pipe,x\n', options=ReadOptions(quote=""))) == [('5" pipe', "x")]
    assert rows_of(open_text_table(b"a,b\n'x,y',2\n", options=ReadOptions(quote="'"))) == [("x,y", "2")]
    assert rows_of(open_text_table(b'a,b\nNA,"NA"\n', options=ReadOptions(null_values=("NA",)))) == [(None, "NA")]
    assert rows_of(open_text_table(b"a^b\n1^2\n", name=b"t.dat", options=ReadOptions(delimiter="^"))) == [("1", "2")]


@pytest.mark.parametrize(
    "options",
    [
        ReadOptions(delimiter=",,"),
        ReadOptions(delimiter="\n"),
        ReadOptions(delimiter='"'),
        ReadOptions(quote="é"),
        ReadOptions(encoding="klingon"),
        ReadOptions(encoding="base64"),
        ReadOptions(format="xls"),
        ReadOptions(ragged="maybe"),
    ],
)
def test_options_that_make_no_sense(options: ReadOptions) -> None:
    """Refused before anything is read."""
    with pytest.raises(UsageError):
        open_text_table(b"a,b\n1,2\n", options=options)


@pytest.mark.parametrize("unit", [1, 1 << 20])
def test_ragged_records_on_request(unit: int) -> None:
    """Padded or left out, and counted; too long a record is no short one."""
    data = b'a,b\n1\n2,"x\ny"\n\n3,4,5\n6,7'
    skipped = open_text_table(data, unit_bytes=unit, options=ReadOptions(ragged="skip"))
    assert rows_of(skipped) == [("2", "x\ny"), ("6", "7")]
    assert [(n.code, n.message) for n in skipped.notices] == [
        ("ragged", "t.csv: records with too few or too many fields, left out: 3")
    ]
    padded = open_text_table(data.replace(b",5", b""), unit_bytes=unit, options=ReadOptions(ragged="pad"))
    assert rows_of(padded) == [("1", None), ("2", "x\ny"), (None, None), ("3", "4"), ("6", "7")]
    assert "filled with nulls: 2" in padded.notices[0].message
    with pytest.raises(TableError, match="record of 3 fields"):
        rows_of(open_text_table(data, options=ReadOptions(ragged="pad")))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252", "shift_jis", "utf-7"])
def test_other_encodings(encoding: str) -> None:
    """A byte-order mark is enough; without one the user says."""
    text = "a,b\n" + "".join(f'{i},"x\n{i}"\n' for i in range(5000))
    text += "1,é\n" if encoding != "shift_jis" else "1,日本\n"
    data = text.encode(encoding)
    marked = encoding in ("utf-16", "utf-32", "utf-8-sig")
    table = open_text_table(data, options=ReadOptions(encoding=None if marked else encoding))
    assert rows_of(table)[-2:] == [("4999", "x\n4999"), ("1", text[-2])] if encoding != "shift_jis" else True
    assert table.count_rows() == 5001
    assert bool(table.notices) == (encoding != "utf-8-sig")


def test_bytes_that_an_encoding_does_not_know() -> None:
    """The place is that in the file."""
    data = "a,b\n1,x\n".encode("utf-16") + b"\x00\xdc\x0a\x00"
    with pytest.raises(TableError, match="line 3, byte 18, is not utf-16"):
        open_text_table(data)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
def test_compressed(pack: Callable[[bytes], bytes]) -> None:
    """Expanded once; several members or frames are one text; a truncated one is no table."""
    text = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(300_000))
    suffix = b".gz" if pack is gzip.compress else b".zst"
    packed = pack(text[:1_000_000]) + pack(text[1_000_000:])
    table = open_text_table(packed, name=b"t.csv" + suffix)
    assert table.count_rows() == 300_000
    assert table.take(np.array([299_999]), [0, 1]).to_pylist() == [{"c0": "299999", "c1": str(299_999**2)}]
    assert [n.code for n in table.notices] == ["compressed"]
    with pytest.raises(TableError, match="ends early"):
        open_text_table(packed[:-5], name=b"t.csv" + suffix)
    with pytest.raises(TableError, match="is broken"):
        open_text_table(packed[:5000] + b"\0" * 20 + packed[5020:], name=b"t.csv" + suffix)
    with pytest.raises(TableError, match="is no "):
        open_text_table(b"a,b\n", name=b"t.csv" + suffix)
    with pytest.raises(TableError, match="byte 4 of the decompressed text: a record of 1 field"):
        rows_of(open_text_table(pack(b"a,b\n1\n"), name=b"t.csv" + suffix))


def test_the_name_must_promise_a_table() -> None:
    """What is no table is refused by name, not read as one strange column."""
    for name in (b"notes.txt", b"picture.png", b"csv", b"x.csv.bz2"):
        with pytest.raises(TableError, match="not a table"):
            open_text_table(b"a,b\n1,2\n", name=name)
    assert open_text_table(b"a,b\n", name=b"X.CSV").format == "csv"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,2\n3," + b"x" * (65 << 20) + b"\n", "a record near line 2 .byte 4. is longer than 64 MiB"),
        (b"a" * (17 << 20), "the header line is longer than 16 MiB"),
        (b"," * 200_000 + b"\n", "the first line has 200,001 fields"),
    ],
)
def test_what_has_no_bound_is_refused(data: bytes, message: str) -> None:
    """Memory follows the piece that is read, not what a file claims."""
    with pytest.raises(TableError, match=message):
        rows_of(open_text_table(data))


@pytest.mark.parametrize("pack", [lambda n: gzip.compress(bytes(n)), lambda n: zstandard.compress(bytes(n))])
def test_what_expands_beyond_reason_is_refused(monkeypatch: pytest.MonkeyPatch, pack: Callable[[int], bytes]) -> None:
    """A small file that fills the disk is stopped on the way."""
    monkeypatch.setattr("dvk.table.text.spool._FREE_BYTES", 1 << 20)
    monkeypatch.setattr("dvk.table.text.spool.MAX_RATIO", 100)
    with pytest.raises(TableError, match="expands to more than"):
        open_text_table(pack(64 << 20), name=b"t.csv")


def test_no_room_for_a_temporary_copy(tmp_path: Path) -> None:
    """The error says which setting helps."""
    options = ReadOptions(temp_dir=bytes(tmp_path / "none"))
    with pytest.raises(StorageError, match="temporary copy of") as caught:
        open_text_table(gzip.compress(b"a,b\n1,2\n"), options=options)
    assert "--tmp" in caught.value.hint


def test_many_threads_read_one_table() -> None:
    """A table may be read from several threads at once."""
    data = b"a,b\n" + b"".join(b'%d,"x\n%d"\n' % (i, i) for i in range(30_000))
    table = open_text_table(gzip.compress(data), name=b"t.csv.gz", unit_bytes=10_000)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda n: rows_of(table, [Region(n * 7000, 7000)]), range(4)))
    assert [row for part in parts for row in part] == [(str(i), f"x\n{i}") for i in range(28_000)]


def test_the_other_side_decides_what_the_header_leaves_open() -> None:
    """A table that lost all columns but one is still cut as it was."""
    old = open_text_table(b"a;b\n1;2\n")
    new = open_table(stored(b'"a;"\n"1;"\n'), like=old)
    assert isinstance(new, CsvTable) and chr(new.dialect.delimiter) == ";"
    other = open_table(stored(b"a,b\n1,2\n"), like=old)
    assert isinstance(other, CsvTable) and chr(other.dialect.delimiter) == ","


def test_utf_16_without_a_mark_is_recognised_by_its_zeros() -> None:
    """It would be a table of strange names otherwise."""
    with pytest.raises(TableError, match="line 1, byte 1: a zero byte") as caught:
        open_text_table("a,b\n1,2\n".encode("utf-16-le"))
    assert "utf-16" in caught.value.hint
