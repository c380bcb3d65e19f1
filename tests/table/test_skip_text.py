"""What a plan leaves out changes nothing in the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from textkit import Row, content_chunks, difference, open_text_table, rows_of, stored, write_csv

from dvk.errors import TableError
from dvk.store.chunker import Cutter
from dvk.table.cache import Cache
from dvk.table.contract import Plan, ReadOptions
from dvk.table.open import open_table
from dvk.table.skip.plan import plan
from dvk.table.skip.text import Run, align, cut_text
from dvk.table.skip.trim import Ends, Gap, common_ends, trim
from dvk.table.source import BytesSource, FileSource
from dvk.table.text.index import build_index
from dvk.table.text.table import TextTable

VALUES = st.sampled_from(["a", "b", "7", 'say "x"', "two\nlines", "c,d", "\n", '"', "", None])


@st.composite
def versions(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """A table and an edit of it: rows changed, put in, taken out, moved, a run repeated."""
    width = draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(*[VALUES] * width), max_size=40))
    edited = list(rows)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(edited)))
        match draw(st.integers(0, 3)):
            case 0:
                edited[at : at + 1] = [draw(st.tuples(*[VALUES] * width))]
            case 1:
                edited[at:at] = draw(st.lists(st.tuples(*[VALUES] * width), max_size=3))
            case 2:
                del edited[at : at + draw(st.integers(1, 5))]
            case 3:
                edited = edited[at:] + edited[:at] if draw(st.booleans()) else edited[:at] * 2 + edited[at:]
    return rows, edited


def check(a: TextTable, b: TextTable, made: Plan) -> None:
    """The regions of a plan and what it skips make up both tables, and differ as the tables do."""
    rows_a, rows_b = rows_of(a), rows_of(b)
    left_a, left_b = rows_of(a, made.a), rows_of(b, made.b)
    assert len(left_a) + made.skipped == len(rows_a)
    assert len(left_b) + made.skipped == len(rows_b)
    assert difference(left_a, left_b) == difference(rows_a, rows_b)
    # Not only as bags: the n-th row skipped in A is the n-th row skipped in B.
    out_a = {n for r in made.a for n in range(r.first, r.first + r.rows)}
    out_b = {n for r in made.b for n in range(r.first, r.first + r.rows)}
    assert [row for n, row in enumerate(rows_a) if n not in out_a] == [
        row for n, row in enumerate(rows_b) if n not in out_b
    ]


@given(versions(), st.integers(0, 2**32), st.integers(1, 40), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_skipping_changes_nothing(
    pair: tuple[list[Row], list[Row]], seed: int, chunk_mean: int, header: bool, end: str
) -> None:
    """Random tables with quotes and line ends across chunk borders, random edits, with and without a header."""
    names: list[Row] = [tuple(f"n{i}" for i in range(len((pair[0] + pair[1] + [("x",)])[0])))]
    tables = []
    for number, rows in enumerate(pair):
        text = names * header + [row for row in rows if end != "\r" or row != (None,)]
        # Each row is quoted as its values have it, so that equal rows are mostly equal bytes.
        data = b"".join(write_csv([row], random.Random(str((seed, row))), end=end) for row in text)
        if seed % 3 == number:
            data = data[: -len(end)] if text and text[-1] != (None,) else data
        options = ReadOptions(header=header, delimiter=",")
        unit_bytes = 1 + seed % 50 if seed % 2 else 0
        tables.append(open_text_table(data, chunk_mean=chunk_mean, unit_bytes=unit_bytes, options=options))
    made = plan(*tables)
    if tables[0].reading == tables[1].reading:
        check(*tables, made)
    else:
        assert made.level == "L4"


@given(st.lists(st.integers(0, 6), max_size=30), st.lists(st.integers(0, 6), max_size=30))
def test_alignment_never_mismatches(a: list[int], b: list[int]) -> None:
    """Runs are equal, ascending and disjoint on both sides, and hold the common beginning and end."""
    one, other = np.array(a, np.int64), np.array(b, np.int64)
    runs = align(one, other)
    at_a = at_b = 0
    for run in runs:
        assert run.a >= at_a and run.b >= at_b and run.chunks > 0
        assert a[run.a : run.a + run.chunks] == b[run.b : run.b + run.chunks]
        at_a, at_b = run.a + run.chunks, run.b + run.chunks
    assert at_a <= len(a) and at_b <= len(b)
    if a == b and a:
        assert runs == [Run(0, 0, len(a))]


def test_alignment_finds_an_insert_and_a_delete() -> None:
    """Unique parts are found wherever they moved to in order."""
    runs = align(np.array([1, 2, 3, 4, 5, 6, 7]), np.array([1, 9, 2, 3, 5, 6, 8]))
    assert runs == [Run(0, 0, 1), Run(1, 2, 2), Run(4, 4, 2)]


def test_one_changed_row_is_all_that_is_read() -> None:
    """The cost follows the change, with facts in a cache; without one, each chunk is read once to find the records."""
    rows: list[Row] = [("id", "text"), *((str(i), f'a "{i}"\nline') for i in range(20_000))]
    edited = [*rows]
    edited[9_000] = ("8999", "other")
    data_a, data_b = (write_csv(table, random.Random(1)) for table in (rows, edited))
    tables = [open_text_table(data, chunk_mean=300) for data in (data_a, data_b)]
    before = [table.source.bytes_read for table in tables]
    made = plan(*tables)
    read = [table.source.bytes_read - n for table, n in zip(tables, before, strict=True)]
    assert made.level == "L1"
    assert read[0] < len(data_a) * 1.01
    assert read[1] < len(data_b) * 0.01  # shared chunks were scanned in A
    assert [r.rows for r in made.a] == [r.rows for r in made.b] == [1]
    check(*tables, made)


def test_a_cache_saves_the_scan(tmp_path: Path) -> None:
    """A second diff of the same versions reads the chunks that differ, and nothing else, and those once."""
    data_a = write_csv([("a", "b"), *((str(i), "x" * (i % 90)) for i in range(9_000))], random.Random(1))
    data_b = data_a.replace(b"4321,", b"4321!,")
    cache = Cache(str(tmp_path).encode())
    plans = []
    for _ in range(2):
        tables = [open_text_table(data, chunk_mean=500) for data in (data_a, data_b)]
        before = [table.source.bytes_read for table in tables]
        plans.append(plan(*tables, cache=cache))
    recipes = [set(table.source.chunks().ids.view("S32").reshape(-1).tolist()) for table in tables]
    alone = [
        sum(int(n) for name, n in zip(names.tolist(), chunks.lengths, strict=True) if name not in other)
        for chunks, other in zip((t.source.chunks() for t in tables), recipes[::-1], strict=True)
        for names in [chunks.ids.view("S32").reshape(-1)]
    ]
    assert [table.source.bytes_read - n for table, n in zip(tables, before, strict=True)] == alone
    for table, regions in zip(tables, (plans[1].a, plans[1].b), strict=True):
        rows_of(table, regions)
    assert [table.source.bytes_read - n for table, n in zip(tables, before, strict=True)] == alone
    assert plans[0] == plans[1] and plans[0].level == "L1"
    check(*tables, plans[1])


def test_a_wrong_cache_entry_is_no_entry(tmp_path: Path) -> None:
    """Facts that cannot be true of these chunks are found again."""
    data = write_csv([("a",), *((str(i),) for i in range(999))], random.Random(1))
    cache = Cache(str(tmp_path).encode())
    table = open_text_table(data, chunk_mean=100)
    table.build_index(cache=cache)
    (entry,) = (tmp_path / "tables" / "1").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(good[:-9] + b"\xff" * 9)
    again = open_text_table(data, chunk_mean=100)
    again.build_index(cache=cache)
    assert again.count_rows() == 999
    assert entry.read_bytes() == good
    other = content_chunks(data, mean=37)  # the same file in other chunks has other facts
    cut = BytesSource(data, name=b"t.csv", id=blake3(data).digest(), chunks=other)
    opened = open_table(cut)
    assert isinstance(opened, TextTable)
    assert len(opened.build_index(cache=cache).index.first) == len(other)


def test_equal_bytes_within_quotes_are_no_rows() -> None:
    """Chunks of a version that are rows there and the inside of one text in the other are not the same."""
    rows = b"".join(b"row %d\n" % (i * i) for i in range(400))
    one, two = b"a\nx\n" + rows + b"z\n", b'a\n"x\n' + rows + b'z"\n'
    for data in ((one, two), (two, one), (one + two[2:], two + one[2:])):
        a, b = (open_text_table(text, chunk_mean=60) for text in data)
        check(a, b, plan(a, b))


@pytest.mark.parametrize("changed", [(1, 2), (397, 398, 399), (0, 200, 399)])
@pytest.mark.parametrize("last", [b"\n", b"", b"\r\n"])
def test_gaps_at_the_ends_of_the_texts_are_cut_as_well(changed: tuple[int, ...], last: bytes) -> None:
    """What the first and the last chunks have in common is not parsed either; their line ends may be missing."""
    lines = [b"%d,%d" % (i, i * i) for i in range(400)]
    edited = [line + b"!" if i in changed else line for i, line in enumerate(lines)]
    a, b = (
        open_text_table(b"\xef\xbb\xbfid,x\n" + b"\n".join(text) + last, chunk_mean=400) for text in (lines, edited)
    )
    made = plan(a, b)
    assert made.level == "L1"
    assert {n for r in made.b for n in range(r.first, r.first + r.rows)} >= set(changed)
    assert sum(r.rows for r in made.a) == sum(r.rows for r in made.b) <= len(changed) + 1
    check(a, b, made)


@pytest.mark.parametrize("header", [True, False])
def test_a_version_that_is_the_inside_of_another(header: bool) -> None:
    """The first chunk of a text may be one in the middle of the other, the last one too, and lines go on there."""
    options = ReadOptions(header=header, delimiter=",")
    for n in range(40):
        rows = b"".join(b"%d\n" % ((i + n) * 7919 % 1000) for i in range(60))
        before, after = b"new%d\n" % n, b"%d\nend\n" % n
        for data in ((rows, before + rows), (rows[:-1], rows[:-1] + after), (rows[:-1], before + rows[:-1] + after)):
            for pair in (data, data[::-1]):
                a, b = (open_text_table(text, chunk_mean=3, options=options) for text in pair)
                if a.reading == b.reading:
                    check(a, b, plan(a, b))


@pytest.mark.parametrize("changed", [(500,), (0,), (999,), (200, 201, 700)])
def test_a_change_in_the_middle_of_a_text_of_several_lines(changed: tuple[int, ...]) -> None:
    """The common head and the common tail may end and begin within quotes, where a line end ends no record."""

    def version(word: str) -> bytes:
        lines = (f'{i},"first\nsays {word if i in changed else i} ""\nmore\n\n",{i * i}' for i in range(1000))
        return ("id,x,y\n" + "\n".join(lines)).encode()

    a, b = (open_text_table(version(word), chunk_mean=400) for word in ("old", "something new"))
    made = plan(a, b)
    assert [list(range(r.first, r.first + r.rows)) for r in made.a] == [
        list(range(r.first, r.first + r.rows)) for r in made.b
    ]
    assert sum(r.rows for r in made.a) == len(changed)
    check(a, b, made)


def test_what_ends_have_in_common_never_overlaps() -> None:
    """Repeated bytes belong to the head or to the tail of a gap, not to both."""
    assert common_ends(b"aaa", b"aa") == (2, 0)
    assert common_ends(b"abab", b"ab") == (2, 0)
    assert common_ends(b"abXab", b"abab") == (2, 2)
    assert common_ends(b"", b"a") == (0, 0)
    same = b"id\n" + b"".join(b"%d\n" % i for i in range(300))
    for at in (400, 900):
        more = same[:at] + same[at - 40 : at] * 7 + same[at:]
        for data in ((same, more), (more, same)):
            a, b = (open_text_table(text, chunk_mean=50) for text in data)
            check(a, b, plan(a, b))


def test_trimming_says_nothing_of_what_does_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that were counted otherwise before, or another state of the quotes: no row is skipped for it."""
    texts = [b"a\n" + b"".join(b"%d\n" % (i + (i == 50) * shift) for i in range(100)) for shift in (0, 1000)]

    def tables() -> tuple[TextTable, TextTable, list[Gap]]:
        a, b = (open_text_table(text, chunk_mean=30) for text in texts)
        a.build_index()
        b.build_index(like=a)
        return a, b, [Gap(0, len(a.index.first), 0, len(b.index.first))]

    a, b, gaps = tables()
    assert trim(a, b, gaps) == [Ends(51, 50)]
    assert a._held and b._held
    a, b, gaps = tables()
    a.index.before[5:] += 1
    assert trim(a, b, gaps) == [Ends()]
    a, b, gaps = tables()
    b.index.open_at_end = True
    assert trim(a, b, gaps) == [Ends()]
    monkeypatch.setattr("dvk.table.skip.trim._HELD_BYTES", 0)
    a, b, gaps = tables()
    assert trim(a, b, gaps) == [Ends(51, 50)]
    assert not a._held and not b._held  # what is held is bounded; the reader reads it again


def test_many_changes_in_a_chunk_are_one_gap_and_errors_in_it_name_their_place() -> None:
    """Short runs of rows are parsed with one call, and what is wrong in one of them is told as if it were alone."""
    lines = [b"id,text\n", *(b"%d,%d\n" % (i, i * i) for i in range(9_000))]
    edited = [*lines]
    for at in range(500, 9_000, 1_000):
        edited[at] = b"%d,new\n" % (at - 1)
    a, b = (open_text_table(b"".join(text), chunk_mean=200) for text in (lines, edited))
    made = plan(a, b)
    assert sum(r.rows for r in made.b) == 9 == sum(r.rows for r in made.a)
    assert [row[1] for row in rows_of(b, made.b)] == ["new"] * 9
    assert len(list(b._groups(made.b))) == 1
    edited[4_500] = b"4499,two,more\n"
    a, b = (open_text_table(b"".join(text), chunk_mean=200) for text in (lines, edited))
    made = plan(a, b)
    offset = len(b"".join(edited[:4_500]))
    with pytest.raises(TableError, match=rf"line 4501, byte {offset}: a record of 3 fields"):
        rows_of(b, made.b)


def test_a_long_gap_is_not_read_for_a_plan() -> None:
    """Where much differs in a row, trimming its ends is not worth holding it."""
    data = write_csv([("a", "b"), *((str(i), "x" * 50) for i in range(100_000))], random.Random(1))
    other = data[: 1 << 20] + data[1 << 20 : 5 << 20].replace(b"x,", b"y,").replace(b"x\n", b"y\n") + data[5 << 20 :]
    a, b = (open_text_table(text, chunk_mean=4_000) for text in (data, other))
    a.build_index()
    b.build_index(like=a)
    before = b.source.bytes_read
    made = plan(a, b)
    assert b.source.bytes_read == before
    check(a, b, made)


@pytest.mark.parametrize("change", [lambda d: b"A" + d[1:], lambda d: d.replace(b",", b";"), lambda d: d + b'"x'])
def test_another_header_or_dialect_is_read_whole(change: Callable[[bytes], bytes]) -> None:
    """Equal bytes are equal rows only where they are read alike; an open quote is an error in any case."""
    data = b"a,b\n" + write_csv([(str(i), "z") for i in range(500)], random.Random(1))
    a, b = open_text_table(data, chunk_mean=50), open_text_table(change(data), chunk_mean=50)
    if change(data).endswith(b'"x'):
        with pytest.raises(TableError, match="never closed"):
            plan(a, b)
    else:
        assert plan(a, b).level == "L4"


def test_the_same_file_is_not_read() -> None:
    """Equal ids: nothing to compare."""
    a, b = (open_text_table(b"a,b\n1,2\n3,4", chunk_mean=3) for _ in range(2))
    made = plan(a, b)
    assert (made.level, made.a, made.b, made.skipped) == ("L0", (), (), 2)


def test_plain_files_share_parts_too(tmp_path: Path) -> None:
    """Files that no store knows are cut as a store cuts them."""
    rows: list[Row] = [("id", "text"), *((str(i), f"value {i * 7919 % 10_007}") for i in range(60_000))]
    data_a = write_csv(rows, random.Random(1))
    data_b = write_csv([*rows[:30_000], ("x", "y"), *rows[30_001:]], random.Random(1))
    paths = []
    for name, data in ((b"a.csv", data_a), (b"b.csv", data_b)):
        path = str(tmp_path).encode() + b"/" + name
        Path(path.decode()).write_bytes(data)
        paths.append(path)
    tables = [open_table(FileSource(path)) for path in paths]
    made = plan(*tables)
    assert made.level == "L1" and made.skipped > 30_000
    assert isinstance(tables[0], TextTable) and isinstance(tables[1], TextTable)
    check(tables[0], tables[1], made)
    lengths = Cutter("cdc-64k").feed(memoryview(data_a), final=True)
    assert cut_text(tables[0].text).lengths.tolist() == lengths.tolist()
    for table in tables:
        table.close()


def test_facts_of_shared_chunks_are_those_of_a_scan() -> None:
    """The index of a version is the same, found with or without the other version."""
    data_a = write_csv([("a", "b"), *((str(i), f'q "{i}"\n') for i in range(2000))], random.Random(1))
    data_b = data_a[:5000] + b'x","y\n' * 3 + data_a[5000:]
    a, b = (stored(data, chunk_mean=40) for data in (data_a, data_b))
    one, two = (open_table(s) for s in (a, b))
    assert isinstance(one, TextTable) and isinstance(two, TextTable)
    known = one.build_index()
    facts = [
        build_index(two.text, two.marks, b.chunks(), file_id=None, cache=None, like=like).index.facts
        for like in (None, known)
    ]
    for with_other, alone in zip(facts[0].arrays, facts[1].arrays, strict=True):
        assert with_other.tolist() == alone.tolist()
