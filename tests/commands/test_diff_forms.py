"""Every form of a diff: what it says, that its limits hold, and that no value gets out of its place."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffkit import added, fake, modified, result_of, typical
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from dvk.cli.diff_text import diff_lines
from dvk.cli.names import show_name
from dvk.cli.text import plain, width
from dvk.commands.diff_csv import csv_lines
from dvk.commands.diff_folder import compare_entries
from dvk.commands.diff_gates import exceeded, parse_gates
from dvk.commands.diff_html import html_fragment, html_page
from dvk.commands.diff_json import Show, document, lines
from dvk.commands.diff_markdown import MOST_CHARS, escape, markdown
from dvk.commands.diff_result import DiffResult, Item, PathDiff
from dvk.commands.diff_words import signed, value_json, value_text
from dvk.errors import DataMissing, TableError, UsageError
from dvk.store.listing import Entries, Kind
from dvk.table.result import RowChange
from dvk.table.tensors.compare import TensorChange, TensorDiff, TensorShape

FORMAT = Path(__file__).parents[2] / "docs/format"


def schema(name: str) -> Any:
    return json.loads((FORMAT / f"{name}.schema.json").read_text(encoding="utf-8"))


def validator(name: str) -> Draft202012Validator:
    resources = [Resource.from_contents(schema(n)) for n in ("diff", "table-diff")]
    registry: Registry[Any] = Registry().with_resources((r.id() or "", r) for r in resources)
    return Draft202012Validator(schema(name), registry=registry)


def text(result: DiffResult, show: Show | None = None, *, limit: int | None = None, stat_only: bool = False) -> str:
    found = diff_lines(result, show or Show(), show_name, stat_only=stat_only, limit=limit)
    return "".join(plain(line) + "\n" for line in found)


def folder() -> PathDiff:
    rows = [
        (b"a", Kind.FILE, 3, b"1" * 32, b""),
        (b"b", Kind.FILE, 4, b"2" * 32, b""),
        (b"c", Kind.FILE, 5, b"3" * 32, b""),
    ]
    after = [
        (b"a", Kind.EXEC, 3, b"1" * 32, b""),
        (b"d", Kind.FILE, 4, b"2" * 32, b""),
        (b"\xff", Kind.LINK, 1, bytes(32), b"a"),
    ]
    changes = compare_entries(Entries.of(rows), Entries.of(after))
    a, b = Item("dir", 12, 3, b"x" * 32), Item("dir", 7, 2)
    return PathDiff(b"im", "changed", a, b, new_bytes=0, files=changes, base=b"im")


def tensors() -> PathDiff:
    old, new = TensorShape("F32", (4, 2), 32), TensorShape("BF16", (4, 2), 16)
    changes = (
        TensorChange("w", "changed", old, old, 8, 4, 0.5, math.inf, (0, 1)),
        TensorChange("v", "retyped", old, new, 8, 0, 0.0, 0.0, (0, 0)),
        TensorChange("new", "added", b=new),
    )
    diff = TensorDiff(("safetensors",) * 2, (9, 10), changes, (("step", "1", "2"),), 7, 6, 1000, 9000, 0.25)
    return PathDiff(b"m.safetensors", "changed", Item("file", 9, 1), Item("file", 9, 1), tensors=diff)


def everything() -> DiffResult:
    out = result_of(typical())
    out.paths += [
        folder(),
        tensors(),
        PathDiff(b"same", "unchanged", Item("file", 1, 1, b"1" * 32), Item("file", 1, 1, b"1" * 32), 0),
        PathDiff(b"gone", "removed", Item("file", 1, 1, b"1" * 32), None, 0),
        PathDiff(b"caf\xe9", "kind-changed", Item("link", 1, 0), Item("dir", 5, 2), 5),
    ]
    out.failures.append(DataMissing("is nowhere", subject="far.csv", hint="ask"))
    return out


# ---------------------------------------------------------------- text


def test_text_golden() -> None:
    assert text(everything()) == (
        "changed  data/t.csv  1.02 GB -> 1.04 GB, 27.2 MB new\n"
        "    +1 -1 ~2 rows, 3 cells in 2 columns, 1 column added, 1 column removed, 1 column renamed, 1 column "
        "retyped, 1 column reordered, 1 column with other nullability; key: id (dvk.toml)\n"
        "    note: 2 rows have a key that another row has\n"
        "    schema: + extra (int32)\n"
        "    schema: - gone (string)\n"
        "    schema: old -> new (renamed, 97 % of the values are equal)\n"
        "    schema: id: int32 -> int64\n"
        "    schema: x: column 2 -> column 3\n"
        "    schema: x: nullable -> not null\n"
        "    column  cells  most frequent changes\n"
        "    price       2  1.10 -> 1.20 (2), 1 written differently only, new - old: mean +0.1, up to +0.1\n"
        '    note        1  null -> "" (1), 1 null to value\n'
        "    price:\n"
        "        rows              100      100\n"
        "        nulls             1        0\n"
        "        distinct (about)  40       41\n"
        "        minimum           0.5      0.5\n"
        "        maximum           9.5      inf\n"
        "        mean              4.25     null\n"
        "        deviation         1.5      null\n"
        "        top               1.1 (9)  \n"
        "    ~  id=7  price: 1.10 -> 1.20\n"
        '    ~  id=8  price: 1.10 -> 1.20, note: null -> ""\n'
        "    +  id=9  price=2.00, note=new\n"
        "    -  id=3  price=0.50, note=old\n"
        "    L1: read 12 MB (2.06 GB in both files), decoded 20,000 rows, skipped 10,480,000, 0.5 s\n"
        "changed  im/  +1 -1 ~1 files, 1 renamed; 3 files, 12 B -> 2 files, 7 B, 0 B new\n"
        "    ~  a       3 B\n"
        "    -  c       5 B\n"
        "    >  b -> d  4 B\n"
        "    +  \\xff    1 B\n"
        "changed  m.safetensors  9 B\n"
        "    1 changed, 1 retyped, 1 added, 1 entry of the metadata; 7 tensors unchanged\n"
        "    metadata: step: 1 -> 2\n"
        "    ~  w    F32[4, 2], 50 % of 8 items, max |d| 0.5, relative L2 inf, NaN 0 -> 1\n"
        "    ~  v    F32[4, 2] -> BF16[4, 2], 0 % of 8 items, max |d| 0, relative L2 0\n"
        "    +  new  BF16[4, 2]\n"
        "    read 1 kB (9 kB in both files), 6 tensors equal by chunks and not read, 0.2 s\n"
        "removed  gone  1 B\n"
        "kind-changed  caf\\xe9/  link, link -> folder, 2 files, 5 B\n"
        "5 paths of 6 differ\n"
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (-18721.0, "-18,721"),
        (-18720.6, "-18,721"),
        (999.96, "+1,000"),
        (0.5, "+0.5"),
        (-29.0, "-29"),
        (123.456, "+123.5"),
        (1e-9, "+1e-09"),
        (3e20, "+3e+20"),
        (math.inf, "+inf"),
    ],
)
def test_differences_are_written_as_people_write_them(value: float, words: str) -> None:
    assert signed(value) == words


def test_one_is_not_many() -> None:
    changes = (TensorChange("w", "added", b=TensorShape("F32", (4, 2), 32)),)
    diff = TensorDiff(("safetensors",) * 2, (2, 2), changes, (), 1, 1, 10, 90, 0.25)
    both = PathDiff(b"m.safetensors", "changed", Item("file", 9, 1), Item("file", 9, 1), tensors=diff)
    assert "1 added; 1 tensor unchanged" in text(DiffResult("HEAD", "workspace", [both]))


def test_levels_of_detail() -> None:
    whole = everything()
    stat = text(whole, stat_only=True)
    assert "+1 -1 ~2 rows" in stat and "price" not in stat and "schema:" not in stat and "id=7" not in stat
    rows = text(whole, Show(schema=False, columns=False))
    assert "id=7" in rows and "schema:" not in rows and "most frequent" not in rows
    assert "id=7" not in text(whole, Show(rows=False))
    assert "id=9" not in text(whole, Show(kinds=("modified",))) and "id=7" in text(whole, Show(kinds=("modified",)))
    limited = text(whole, Show(limit=1, offset=1))
    assert "id=8" in limited and "id=7" not in limited and "1 of 4 rows shown" in limited
    assert "unchanged: u" in text(result_of(fake(modified({"k": 1}, {"x": (1, 2)}))), Show(full=True))


def test_nothing_differs() -> None:
    same = PathDiff(b"a", "unchanged", Item("file", 1, 1), Item("file", 1, 1), 0)
    assert text(DiffResult("HEAD", "workspace", [same])) == "nothing differs between HEAD and workspace\n"
    rewritten = result_of(fake())
    assert (
        "no row differs" in text(rewritten) and "other bytes, the same content" in text(rewritten) and rewritten.equal
    )


@given(st.text(max_size=80), st.text(max_size=80), st.integers(10, 60))
@settings(max_examples=150, deadline=None)
def test_no_value_reaches_the_terminal_unescaped_or_goes_beyond_its_width(a: str, b: str, limit: int) -> None:
    found = text(
        result_of(fake(modified({a or "k": b}, {b or "x": (a, b)}), added({a or "k": b}, {"y": a}))), limit=limit
    )
    assert found.replace("\n", "").isprintable()
    assert all(width(line) <= limit for line in found.splitlines())


# ---------------------------------------------------------------- JSON


def test_the_document_is_what_its_schema_says() -> None:
    for name in ("diff", "table-diff"):
        Draft202012Validator.check_schema(schema(name))
    result = everything()
    result.paths[1].inside.append(result_of(typical()).paths[0])
    found = document(result, Show(full=True), over=exceeded(result, parse_gates("modified>1%,schema")))
    validator("diff").validate(json.loads(json.dumps(found, allow_nan=False)))
    validator("table-diff").validate(json.loads(json.dumps(found["paths"][0]["table"])))
    assert found["complete"] is False and found["equal"] is False
    assert found["paths"][5]["path"] == {"bytes_b64": "Y2Fm6Q=="}
    assert found["gates"] == [
        {"path": "data/t.csv", "gate": "modified>1%", "found": 2.0},
        {"path": "data/t.csv", "gate": "schema", "found": 6.0},
        {"path": "im", "gate": "modified>1%", "found": pytest.approx(100 / 3)},
        {"path": "data/t.csv", "gate": "modified>1%", "found": 2.0},
        {"path": "data/t.csv", "gate": "schema", "found": 6.0},
        {"path": "m.safetensors", "gate": "modified>1%", "found": pytest.approx(200 / 9)},
        {"path": "m.safetensors", "gate": "schema", "found": 2.0},
        {"path": {"bytes_b64": "Y2Fm6Q=="}, "gate": "modified>1%", "found": 100.0},
        {"path": {"bytes_b64": "Y2Fm6Q=="}, "gate": "schema", "found": 1.0},
    ]  # fmt: skip
    strict = json.loads(json.dumps(found))
    del strict["paths"][0]["table"]["rows"]["moved"]
    assert not validator("diff").is_valid(strict), "the schema means something"


def test_lines_come_in_a_fixed_order_with_a_path_on_each() -> None:
    found = list(lines(everything(), Show(limit=None)))
    json.dumps(found, allow_nan=False)
    kinds = [line["record"] for line in found]
    assert kinds == [
        "diff", "path", "header", *["schema"] * 6, *["column"] * 2, *["row"] * 4, "summary", "path", *["file"] * 4,
        "path", "tensors", *["tensor"] * 3, "path", "path", "path", "failure", "end",
    ]  # fmt: skip
    assert all("path" in line for line in found[1:-2]) and found[-1]["complete"] is False
    row = next(line for line in found if line["record"] == "row")
    assert row == {
        "record": "row", "path": "data/t.csv", "kind": "modified", "a_row": 6, "b_row": 6, "key": {"id": 7},
        "cells": {"price": {"a": "1.10", "b": "1.20"}},
    }  # fmt: skip


def test_lines_are_read_as_they_are_asked_for() -> None:
    class Endless(type(fake())):  # type: ignore[misc]
        def changes(self, **_options: Any) -> Iterator[RowChange]:
            while True:
                yield modified({"k": 1}, {"x": (1, 2)})

    table = fake(modified({"k": 1}, {"x": (1, 2)}))
    table.__class__ = Endless
    found = lines(result_of(table), Show(limit=None))
    assert [next(found)["record"] for _ in range(100)][-1] == "row"


@pytest.mark.parametrize(
    ("value", "as_json", "as_text"),
    [
        (None, None, "null"),
        ("", "", '""'),
        ("null", "null", '"null"'),
        (" x", " x", '" x"'),
        ("1.10", "1.10", "1.10"),
        (True, True, "true"),
        (2**80, 2**80, str(2**80)),
        (0.1, 0.1, "0.1"),
        (math.nan, "NaN", "NaN"),
        (-math.inf, "-Infinity", "-Infinity"),
        (Decimal("1.10"), "1.10", "1.10"),
        (date(2020, 1, 2), "2020-01-02", "2020-01-02"),
        (datetime(2020, 1, 2, 3, tzinfo=UTC), "2020-01-02T03:00:00+00:00", "2020-01-02T03:00:00+00:00"),
        (timedelta(days=-1, microseconds=500_000), "-PT86399.5S", "-PT86399.5S"),
        (b"\x00a", "AGE=", "base64:AGE="),
        ([1, None, "x"], [1, None, "x"], '[1, null, "x"]'),
        ({"a": [b"1"]}, {"a": ["MQ=="]}, '{"a": ["MQ=="]}'),
        ([("k", 1)], [["k", 1]], '[["k", 1]]'),
        (np.float32(0.5), 0.5, "0.5"),
        (np.datetime64("2020-01-01T00:00:00.12", "ns"), *["2020-01-01T00:00:00.120000000"] * 2),
    ],
)  # fmt: skip
def test_values(value: object, as_json: object, as_text: str) -> None:
    assert value_json(value) == as_json and value_text(value) == as_text
    json.dumps(value_json(value), allow_nan=False)


# ---------------------------------------------------------------- CSV


def test_csv_golden() -> None:
    found = "".join(csv_lines(everything(), Show(limit=None)))
    assert found.replace("\r\n", "\n") == (
        "path,change,row_a,row_b,key.id,column,old,new\n"
        "data/t.csv,modified,6,6,7,price,1.10,1.20\n"
        "data/t.csv,modified,7,7,8,price,1.10,1.20\n"
        'data/t.csv,modified,7,7,8,note,,""\n'
        "data/t.csv,added,,100,9,id,,9\n"
        "data/t.csv,added,,100,9,price,,2.00\n"
        "data/t.csv,added,,100,9,note,,new\n"
        "data/t.csv,removed,2,,3,id,3,\n"
        "data/t.csv,removed,2,,3,price,0.50,\n"
        "data/t.csv,removed,2,,3,note,old,\n"
        "im,file-modified,,,,a,3,3\n"
        "im,file-removed,,,,c,5,\n"
        "im,file-renamed,,,,d,4,4\n"
        "im,file-renamed,,,,path,b,d\n"
        "im,file-added,,,,\\xff,,1\n"
        "m.safetensors,tensor-changed,,,,w: changed,,4\n"
        "m.safetensors,tensor-changed,,,,w: max_abs,,0.5\n"
        "m.safetensors,tensor-changed,,,,w: relative_l2,,Infinity\n"
        "m.safetensors,tensor-retyped,,,,v: changed,,0\n"
        "m.safetensors,tensor-retyped,,,,v: max_abs,,0.0\n"
        "m.safetensors,tensor-retyped,,,,v: relative_l2,,0.0\n"
        "m.safetensors,tensor-added,,,,new: changed,,\n"
        "m.safetensors,tensor-added,,,,new: max_abs,,\n"
        "m.safetensors,tensor-added,,,,new: relative_l2,,\n"
        "same,path-unchanged,,,,size,1,1\n"
        "gone,path-removed,,,,size,1,\n"
        "caf\\xe9,path-kind-changed,,,,size,1,5\n"
    )


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_csv_reads_back_and_no_field_is_a_formula(old: str, new: str) -> None:
    table = fake(modified({"k": "1"}, {"x": (old, new)}))
    found = "".join(csv_lines(result_of(table), Show(limit=None)))
    rows = list(csv.reader(io.StringIO(found, newline=""), strict=True))
    assert [len(row) for row in rows] == [8, 8]
    for field, value in zip(rows[1][6:], (old, new), strict=True):
        assert field in (value, "'" + value)
        if field[:1] and field[0] in "=+-@\t\r":
            float(field)  # only a number may begin like that


# ---------------------------------------------------------------- Markdown


def test_markdown_golden() -> None:
    found = markdown(everything(), Show())
    assert found.startswith("**dvk diff** <code>HEAD</code> → <code>workspace</code>: 5 paths of 6 differ\n\n")
    assert "### <code>data/t.csv</code>\n\nchanged: 1.02 GB -&#62; 1.04 GB, 27.2 MB new\n" in found
    assert "| <code>price</code> | 2 | <code>1.10</code> → <code>1.20</code> (2) |" in found
    assert "<details><summary>4 rows</summary>" in found
    assert "| ~ | row 7 | <code>id&#61;7</code> | <code>price</code>: <code>1.10</code> → <code>1.20</code> |" in found
    assert "| > | <code>b</code> → <code>d</code> | 4 B |" in found
    assert "**not compared** <code>far.csv</code>: is nowhere" in found and "truncated" not in found
    assert "same" not in found.replace("the same", "")


def units(value: str) -> int:
    return len(value.encode("utf-16-le")) // 2


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_markdown_never_exceeds_what_a_forge_takes(data: st.DataObject) -> None:
    most = data.draw(st.sampled_from([0, 200, 1000, 5000, 60_000, MOST_CHARS, 10**9]))
    piece = data.draw(st.sampled_from(["x", "|", "😀", "\n@all", "é", "\x1b"]))
    size, rows, paths, columns = (data.draw(st.integers(0, n)) for n in (200, 60, 60, 4))
    changes = [
        modified({"id": i}, {f"c{j}": (piece * size, piece * size + "!") for j in range(columns)}) for i in range(rows)
    ]
    result = result_of(*[fake(*changes)] * paths)
    result.failures += [TableError(piece * size, subject=piece * size)] * data.draw(st.integers(0, 40))
    found = markdown(result, Show(limit=data.draw(st.sampled_from([None, 20, 1000]))), max_chars=most)
    assert units(found) <= min(max(most, 200), MOST_CHARS)
    assert found.startswith("**dvk diff**") and found.count("<details>") == found.count("</details>")
    rows_shown = len(re.findall(r"^\| ~ \| ", found, re.MULTILINE))
    if paths and rows and rows_shown < rows * paths and "truncated" not in found:
        assert re.search(r"of [0-9,]+ rows</summary>", found), "what is not shown is said not to be"


def test_markdown_shrinks_rows_before_columns_before_summaries() -> None:
    table = fake(*[modified({"id": i}, {f"c{j}": ("a" * 30, "b" * 30) for j in range(40)}) for i in range(100)])
    sizes = {}
    for most in (MOST_CHARS, 20_000, 3_500, 600):
        found = markdown(result_of(table), Show(limit=100), max_chars=most)
        rows, columns = (len(re.findall(p, found, re.MULTILINE)) for p in (r"^\| ~ ", r"^\| <code>c\d+</code> \| "))
        sizes[most] = (rows, columns)
        assert "\\~100 rows" in found.replace("&#126;", "\\~") and "truncated" in found
    assert sizes[MOST_CHARS][0] > sizes[20_000][0] > 0 and sizes[20_000][1] == 40
    assert sizes[3_500][0] == 0 < sizes[3_500][1] < 40 and sizes[600] == (0, 0)


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_markdown_holds_nothing_that_acts(value: str) -> None:
    found = escape(value)
    assert found.isprintable() and not re.search(r"[<>|`*_\[\]\\~!@:$\"']|&(?!#[0-9]+;)|(?<!&)#", found)
    whole = markdown(
        result_of(fake(modified({value or "k": value}, {value or "x": (value, value)})), name=b"p"), Show()
    )
    table = [line for line in whole.splitlines() if line.startswith("| ~")]
    assert len(table) == 1 and table[0].count("|") == 5


def test_markdown_makes_no_links() -> None:
    """A forge takes `www.` for an address as it takes `://`, inside of `<code>` too."""
    assert escape("www.a.example http://b.example") == "&#119;ww.a.example http&#58;//b.example"


# ---------------------------------------------------------------- HTML


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


_TAGS = {
    "div",
    "style",
    "p",
    "b",
    "code",
    "h3",
    "table",
    "tr",
    "td",
    "th",
    "ul",
    "li",
    "details",
    "summary",
    "del",
    "ins",
}


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_html_loads_nothing_runs_nothing_and_holds_values_as_text(value: str) -> None:
    hostile = value + "<script>alert(1)</script><img src=x onerror=y>\"' --><style>"
    result = result_of(
        fake(modified({hostile: hostile}, {hostile: (hostile, value)})), name=hostile.encode("utf-8", "replace")
    )
    result.failures.append(TableError(hostile, subject=hostile))
    found = Tags(html_fragment(result))
    assert found.tags <= _TAGS and found.attributes <= {"class", "open"}


def test_html_of_everything() -> None:
    result = everything()
    assert result._repr_html_() == html_fragment(result)
    page = "".join(html_page(result, Show()))
    assert page.startswith("<!doctype html>") and "default-src 'none'" in page
    assert {"html", "head", "body", "meta", "title"} | _TAGS >= Tags(page).tags
    for part in ("price", "<ins><code>1.20</code></ins>", "BF16[4, 2]", "caf\\xe9", "far.csv"):
        assert part in page


# ---------------------------------------------------------------- gates


def test_gates() -> None:
    result = result_of(typical())

    def found(gates: str) -> list[tuple[str, float]]:
        return [(e.gate, e.found) for e in exceeded(result, parse_gates(gates))]

    assert found("modified>1%, added>0 ,rows>4,schema,cells>2,any") == [
        ("modified>1%", 2.0), ("added>0", 1.0), ("schema", 6.0), ("cells>2", 3.0), ("any", 1.0),
    ]  # fmt: skip
    assert found("modified>2%,removed>1,moved") == []
    for path, gate in ((folder(), "removed"), (tensors(), "modified>1"), (PathDiff(b"x", "missing"), "removed")):
        assert exceeded(DiffResult("a", "b", [path]), parse_gates(gate))
    same = PathDiff(b"a", "unchanged")
    assert exceeded(DiffResult("a", "b", [same]), parse_gates("any")) == []
    for bad in ("", "nope", "modified>", "modified>x", "any>1%", "schema>1%", "modified<1", "modified>1%,"):
        with pytest.raises(UsageError):
            parse_gates(bad)
