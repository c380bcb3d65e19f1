"""JSON Lines come out as the JSON values they are, or not at all."""

from __future__ import annotations

import doctest
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from textkit import difference, open_text_table, rows_of, stored

from dvk.commands.diff_words import pair_texts, row_cells
from dvk.errors import TableError
from dvk.table.cache import Cache
from dvk.table.compare import compare
from dvk.table.contract import ReadOptions
from dvk.table.json_text import JsonText
from dvk.table.open import open_table
from dvk.table.options import CompareOptions
from dvk.table.skip.plan import plan
from dvk.table.text import jsonl
from dvk.table.text.jsonl import canonical
from dvk.table.text.table import TextTable

NAME = st.sampled_from(["a", "b", "", 'q"\\', "é", "a b", "{", ",:"])
TEXT = st.one_of(st.text(st.sampled_from('ab"\\{}[],:\n\té/😀'), max_size=5), st.text(max_size=3))
NUMBER = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBER, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAME, inner, max_size=3)),
    max_leaves=5,
)
LINE = st.dictionaries(NAME, VALUE, max_size=5)


def write(lines: list[dict[str, Any]], source: random.Random) -> bytes:
    """The lines with white space, escapes and line ends as chance has it."""
    out = []
    for line in lines:
        space = source.choice(["", " ", "  \t   "])
        text = json.dumps(
            line,
            ensure_ascii=source.random() < 0.5,
            separators=(space + "," + space, space + ":" + space),
        )
        out.append(space + text + space + source.choice(["\n", "\r\n"]))
    text = "".join(out)
    return (text.rstrip("\r\n") if source.random() < 0.5 else text).encode()


def expected(lines: list[dict[str, Any]], names: list[str]) -> list[tuple[str | None, ...]]:
    return [tuple(canonical(json.dumps(line[n])) if n in line else None for n in names) for line in lines]


@given(st.lists(LINE, max_size=8), st.integers(0, 2**32))
@example([{}, {}], 0)
@example([{}], 2)
def test_what_is_written_is_read(lines: list[dict[str, Any]], seed: int) -> None:
    """Any values in any spelling, chunk borders anywhere: columns in order of appearance, one form for one value."""
    data = write(lines, random.Random(seed))
    table = open_text_table(data, name=b"t.jsonl", chunk_mean=1 + seed % 20, unit_bytes=1 + seed % 60)
    names = list(dict.fromkeys(name for line in lines for name in line))
    assert [c.label for c in table.columns] == names
    assert table.count_rows() == len(lines)
    if not names:
        assert sum(batch.num_rows for _, batch in table.batches([])) == len(lines)
        return
    assert rows_of(table) == expected(lines, names)
    picked = np.arange(seed % 2, len(lines), 2)
    assert [tuple(r.values()) for r in table.take(picked, range(len(names))).to_pylist()] == expected(
        lines[seed % 2 :: 2], names
    )


@given(
    st.lists(
        st.sampled_from([b"{", b"}", b'"a"', b'"b"', b":", b",", b"1", b" ", b"[", b"]", b'"', b"\\", b"\n"]),
        max_size=12,
    ).map(b"".join)
)
@example(b'{"a":1,}')
@example(b'{"a":[1},{"b":2]}')
@example(b'{"a":1}{"b":2}')
@example(b'{"a" "b":1}')
@example(b'"')
def test_any_bytes_are_read_as_json_or_refused(data: bytes) -> None:
    """What Python's parser takes as an object in each line is read as that; all else is an error that says where."""
    lines: list[Any] | None = []
    try:
        for text in data.decode().split("\n")[: -1 if data.endswith(b"\n") else None] if data else []:
            pairs = json.loads(text, object_pairs_hook=lambda found: found)
            if not isinstance(pairs, list) or text.strip()[0] != "{" or len(dict(pairs)) != len(pairs):
                raise ValueError
            canonical(text)
            lines.append(json.loads(text))
    except ValueError:
        lines = None
    if lines is None:
        with pytest.raises(TableError, match=r"line \d+, byte \d+"):
            rows_of(open_text_table(data, name=b"t.jsonl"))
    else:
        table = open_text_table(data, name=b"t.jsonl")
        if table.columns:
            assert rows_of(table) == expected(lines, [c.label for c in table.columns])


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("1", "1"),
        ("1.0", "1.0"),
        ("1.10", "1.10"),
        ("1e5", "1e5"),
        ("-0", "-0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("9" * 5000, "9" * 5000),
        ('"1"', '"1"'),
        ('"\\u00e9\\/\\n"', '"é/\\n"'),
        ('"\\ud83d\\ude00"', '"😀"'),
        ('"\\ud83d"', '"\\ud83d"'),
        ('"\\ud83dé"', '"\\ud83dé"'),
        ("null", "null"),
        ('{"b" : 1.50, "a":[ true , {} ]}', '{"a":[true,{}],"b":1.50}'),
    ],
)
def test_one_form(text: str, form: str) -> None:
    """Digits stay, white space and escapes and the order of members do not."""
    data = f'{{"x": {text}}}\n'.encode()
    assert rows_of(open_text_table(data, name=b"t.jsonl")) == [(form,)]
    assert canonical(form) == form


def test_null_and_missing_are_two() -> None:
    """And neither is an empty string."""
    rows = rows_of(open_text_table(b'{"a":null}\n{}\n{"a":""}\n{"a":"null"}', name=b"t.ndjson"))
    assert rows == [("null",), (None,), ('""',), ('"null"',)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a":1}\n\n{"a":2}\n', "line 2, byte 8: an empty line"),
        (b'{"a":1}\n[1]\n', "line 2, byte 8: a line must be an object"),
        (b'{"a":1}\n1\n', "line 2, byte 8: this is no JSON object"),
        (b'{"a":01}\n', "line 1, byte 5: no JSON value"),
        (b'{"a":NaN}\n', "line 1, byte 5: no JSON value"),
        (b'{"a":1}\n{"a":"x\n"}\n', "line 2, byte 8: a string of this line is never closed"),
        (b'{"a":1}\n{"a":[1}\n', "line 2, byte 8: the brackets of this line do not match"),
        (b'{"a":1,"b":2,"a":3}\n', "line 1, byte 13: the field 'a' occurs twice"),
        (b'{"a":1,"\\u0061":3}\n', "line 1, byte 7: the field 'a' occurs twice"),
        (b'{"a":{"b":1,"b":2}}\n', "line 1, byte 5: no JSON value (a name occurs twice"),
        (b'{"a":"\xff"}\n', "line 1, byte 6: the bytes ff 22 7d 0a are not UTF-8"),
        (b'{"\xff":1}\n', "line 1, byte 1: this is no name of a field"),
        (b'{"a":"\t"}\n', "line 1, byte 5: no JSON value"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "line 1, byte 5: it is nested too deeply"),
    ],
)
def test_errors_say_where(data: bytes, message: str) -> None:
    """File, line and byte of what is wrong."""
    with pytest.raises(TableError, match=re.escape(message)) as caught:
        rows_of(open_text_table(data, name=b"t.jsonl"))
    assert caught.value.subject == "t.jsonl"


def test_names_that_are_values_are_refused() -> None:
    """A file with ever new names would need a column for each."""
    data = b"".join(b'{"id%d":1}\n' % i for i in range(10_001))
    with pytest.raises(TableError, match="more than 10000 different fields"):
        open_text_table(data, name=b"t.jsonl")


def test_empty_lines_on_request() -> None:
    """Left out and counted."""
    table = open_text_table(b'{"a":1}\n\n \r\n{"a":2}', name=b"t.jsonl", options=ReadOptions(ragged="skip"))
    assert rows_of(table) == [("1",), ("2",)]
    assert [n.message for n in table.notices] == ["t.jsonl: empty lines, left out: 2"]
    assert rows_of(open_text_table(b"", name=b"t.jsonl")) == []


@given(st.lists(LINE, max_size=15), st.integers(0, 2**32), st.integers(1, 60), st.data())
def test_skipping_changes_nothing(lines: list[dict[str, Any]], seed: int, chunk_mean: int, data: st.DataObject) -> None:
    """Two versions with other columns in another order share lines all the same."""
    at = data.draw(st.integers(0, len(lines)))
    stop = data.draw(st.integers(at, len(lines)))
    edited = lines[:at] + data.draw(st.lists(LINE, max_size=2)) + lines[stop:]
    tables = []
    for version in (lines, edited):
        body = b"".join(write([line], random.Random(repr((seed, line)))).strip() + b"\n" for line in version)
        tables.append(open_text_table(body, name=b"t.jsonl", chunk_mean=chunk_mean))
    made = plan(*tables)
    names = sorted({c.label for table in tables for c in table.columns})

    def named(table: TextTable, rows: list[tuple[str | None, ...]]) -> list[tuple[str | None, ...]]:
        labels = [c.label for c in table.columns]
        return [tuple(row[labels.index(n)] if n in labels else None for n in names) for row in rows]

    if all(table.columns for table in tables):
        whole = [named(table, rows_of(table)) for table in tables]
        left = [named(t, rows_of(t, r)) for t, r in zip(tables, (made.a, made.b), strict=True)]
        assert difference(*whole) == difference(*left)
        assert len(whole[0]) - len(left[0]) == len(whole[1]) - len(left[1]) == made.skipped


def test_a_cache_saves_the_pass_for_names(tmp_path: Path) -> None:
    """The columns of a version are found once."""
    data = b"".join(b'{"id":%d,"x%d":1}\n' % (i, i % 7) for i in range(20_000))
    cache = Cache(bytes(tmp_path))
    opened = []
    for _ in range(2):
        source = stored(data, name=b"t.jsonl", chunk_mean=300)
        table = open_table(source, cache=cache)
        assert isinstance(table, TextTable)
        table.build_index(cache=cache)
        assert table.count_rows() == 20_000
        opened.append((table, source.bytes_read))
    assert opened[0][0].columns == opened[1][0].columns
    assert opened[0][1] > len(data) > opened[1][1] * 1000


def test_examples() -> None:
    """The docstrings are right."""
    assert doctest.testmod(jsonl).failed == 0


def test_values_of_a_diff_are_json_and_a_missing_field_is_none() -> None:
    """Null, the text null and a field that is not there are three things in what a diff answers."""
    a = open_text_table(b'{"id":1,"a":null,"b":"null","c":[1, "y"]}\n{"id":2,"a":1}\n', name=b"a.jsonl")
    b = open_text_table(b'{"id":1,"a":"null","b":null,"c":[1,"y"]}\n{"id":3,"a":null}\n', name=b"b.jsonl")
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        first, removed, added = diff.changes()
        assert first.cells == {"a": ("null", '"null"'), "b": ('"null"', "null")}
        assert all(isinstance(value, JsonText) for pair in first.cells.values() for value in pair)
        assert removed.values == {"id": "2", "a": "1", "b": None, "c": None}
        assert [change.top for change in diff.columns] == [((("null", '"null"'), 1),), ((('"null"', "null"), 1),)]
        assert [list(row_cells(change)) for change in (first, removed, added)] == [
            [("a", "null", '"null"'), ("b", '"null"', "null")],
            [("id", "2", None), ("a", "1", None)],
            [("id", None, "3"), ("a", None, "null")],
        ]
    assert pair_texts(None, JsonText("1")) == ("absent", "1") and pair_texts(None, 1) == ("null", "1")
