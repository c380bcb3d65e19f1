"""Pairs of small tables on which diff tools are known to go wrong, each with the answer that is right.

A case is two files, the key that a user names, and what changed. Rows are counted as a keyed diff counts them: a key
on one side only is an added or a removed row, a key on both sides with another value is a modified one, and copies of a
key cancel where they are equal. What a column is called or how wide its type is belongs to the schema and modifies no
row. Where the bytes are no table, the right answer is an error.

>>> one = CASES[0]
>>> one.name, one.expect
('one cell', Expect(added=0, removed=0, modified=1, schema=(), error=False))

`python -m benchmarks right` asks every tool and writes docs/benchmarks/tables-right.md; the test suite asks dvk.
"""

from __future__ import annotations

import datetime as dt
import decimal
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Bytes = bytes | Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Expect:
    """Rows added, removed and modified, and kinds of schema changes; or that the input is refused."""

    added: int = 0
    removed: int = 0
    modified: int = 0
    schema: tuple[str, ...] = ()
    error: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """`trap`: what goes wrong elsewhere. `key`: columns, or none. `suffix`: of both files."""

    name: str
    trap: str
    a: Bytes
    b: Bytes
    expect: Expect
    key: tuple[str, ...] = ("id",)
    suffix: str = ".csv"

    def files(self) -> tuple[bytes, bytes]:
        """The bytes of both versions."""
        return (self.a() if callable(self.a) else self.a, self.b() if callable(self.b) else self.b)


def _parquet(**columns: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        pq.write_table(pa.table(columns), out)
        return out.getvalue()

    return make


def _jsonl(*rows: str) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


def _wide(changed: bool) -> Callable[[], bytes]:
    def make() -> bytes:
        names = ",".join(["id", *(f"c{i}" for i in range(10_000))])
        values = ["1", *(str(i) for i in range(10_000))]
        if changed:
            values[7_001] = "x"
        return f"{names}\n{','.join(values)}\n".encode()

    return make


def _quoted(changed: bool) -> Callable[[], bytes]:
    """400 KB of fields with line ends, quotes and commas: every chunk border lies inside of something."""

    def make() -> bytes:
        draw = random.Random(7)
        rows = ["id,text,n"]
        for i in range(4_000):
            text = "".join(
                draw.choice(['""', "\n", ",", "a", "b", "\r\n", " "]) for _ in range(draw.randrange(60, 120))
            )
            rows.append(f'{i},"{text}",{i % 7}')
        if changed:
            rows[2_001] = '2000,"one\nother, ""text""",3'
            rows.insert(3_000, '9999,"new\n",1')
        return ("\n".join(rows) + "\n").encode()

    return make


def _ints(*values: int | None) -> pa.Array:
    return pa.array(values, pa.int64())


_UTC = dt.UTC
_NOON = dt.datetime(2026, 3, 29, 12, 0, tzinfo=_UTC)
_ID3 = _ints(1, 2, 3)
_BIG = decimal.Decimal("1234567890123456789012345678901234567890.1")

CASES: tuple[Case, ...] = (
    # ------------------------------------------------------------------ rows and keys
    Case("one cell", "none", b"id,v\n1,a\n2,b\n", b"id,v\n1,a\n2,c\n", Expect(modified=1)),
    Case("rows in and out", "none", b"id,v\n1,a\n2,b\n", b"id,v\n2,b\n3,c\n4,d\n", Expect(added=2, removed=1)),
    Case("shuffled rows", "rows compared by position", b"id,v\n1,a\n2,b\n3,c\n", b"id,v\n3,c\n1,a\n2,b\n", Expect()),
    Case(
        "key of two columns",
        "only the first counts",
        b"a,b,v\n1,1,x\n1,2,y\n",
        b"a,b,v\n1,2,z\n1,1,x\n",
        Expect(modified=1),
        key=("a", "b"),
    ),
    Case(
        "keys that concatenate alike",
        "(1, 11) taken for (11, 1)",
        b"a,b,v\n1,11,x\n",
        b"a,b,v\n11,1,x\n",
        Expect(added=1, removed=1),
        key=("a", "b"),
    ),
    Case(
        "duplicate key, one copy changed",
        "last copy wins",
        b"id,v\n1,x\n1,y\n2,z\n",
        b"id,v\n1,q\n1,y\n2,z\n",
        Expect(modified=1),
    ),
    Case(
        "duplicate key, one copy gone",
        "last copy wins",
        b"id,v\n1,x\n1,y\n2,z\n",
        b"id,v\n1,y\n2,z\n",
        Expect(removed=1),
    ),
    Case("duplicate key, copies swapped", "paired by position", b"id,v\n1,x\n1,y\n", b"id,v\n1,y\n1,x\n", Expect()),
    Case("null key", "null never equals null", b"id,v\n1,a\n,b\n", b"id,v\n1,a\n,c\n", Expect(modified=1)),
    Case(
        "null in one part of a key",
        "null never equals null",
        b"a,b,v\n1,,x\n1,2,y\n",
        b"a,b,v\n1,,x\n1,2,z\n",
        Expect(modified=1),
        key=("a", "b"),
    ),
    Case("null key beside an empty one", "null taken for empty", b'id,v\n,a\n"",b\n', b'id,v\n"",b\n,a\n', Expect()),
    Case(
        "keys with leading zeros",
        "007 read as 7",
        b"id,v\n007,a\n7,b\n",
        b"id,v\n7,b\n07,a\n",
        Expect(added=1, removed=1),
    ),
    Case(
        "keys beyond 2^53",
        "read as floats",
        b"id,v\n9007199254740992,a\n9007199254740993,b\n,c\n",
        b"id,v\n9007199254740992,a\n9007199254740994,b\n,c\n",
        Expect(added=1, removed=1),
    ),
    Case("key column missing", "compared all the same", b"id,v\n1,a\n", b"key,v\n1,a\n", Expect(error=True)),
    Case(
        "no key, a row on top",
        "every row below changed",
        b"v,w\na,1\nb,2\nc,3\nd,4\n",
        b"v,w\nx,0\na,1\nb,2\nc,3\nd,4\n",
        Expect(added=1),
        key=(),
    ),
    Case(
        "no key, one copy of equal rows gone",
        "rows as a set",
        b"v\nx\nx\nx\ny\n",
        b"v\nx\nx\ny\n",
        Expect(removed=1),
        key=(),
    ),
    # ------------------------------------------------------------------ columns
    Case(
        "columns reordered",
        "compared by position",
        b"id,v,w\n1,a,b\n",
        b"id,w,v\n1,b,a\n",
        Expect(schema=("reordered",)),
    ),
    Case(
        "column added", "all rows modified", b"id,v\n1,a\n2,b\n", b"id,v,w\n1,a,p\n2,b,q\n", Expect(schema=("added",))
    ),
    Case(
        "column removed",
        "refused, or all rows modified",
        b"id,v,w\n1,a,p\n2,b,q\n",
        b"id,v\n1,a\n2,c\n",
        Expect(modified=1, schema=("removed",)),
    ),
    Case(
        "column renamed",
        "removed and added",
        b"id,price\n1,5\n2,6\n3,7\n",
        b"id,cost\n1,5\n2,6\n3,7\n",
        Expect(schema=("renamed",)),
    ),
    Case("duplicate column names", "second one lost", b"id,x,x\n1,a,b\n", b"id,x,x\n1,a,c\n", Expect(modified=1)),
    Case(
        "names that differ in case",
        "folded together",
        b"id,v,V\n1,a,b\n2,c,d\n",
        b"id,v,V\n1,a,b\n2,c,e\n",
        Expect(modified=1),
    ),
    Case("10,000 columns", "limits of parsers", _wide(False), _wide(True), Expect(modified=1)),
    # ------------------------------------------------------------------ text of a CSV
    Case(
        "line ends in quotes",
        "rows cut in the middle",
        b'id,v\n1,"a\nb"\n2,c\n',
        b'id,v\n1,"a\nB"\n2,c\n',
        Expect(modified=1),
    ),
    Case("delimiters in quotes", "fields cut", b'id,v,w\n1,"a,b",c\n', b'id,v,w\n1,a,"b,c"\n', Expect(modified=1)),
    Case("doubled quotes", "unescaped wrongly", b'id,v\n1,"say ""a"""\n', b'id,v\n1,"say ""b"""\n', Expect(modified=1)),
    Case("quotes that change nothing", "bytes compared", b"id,v\n1,a\n", b'"id","v"\n"1","a"\n', Expect()),
    Case("CRLF and LF", "every row modified", b"id,v\r\n1,a\r\n2,b\r\n", b"id,v\n1,a\n2,b\n", Expect()),
    Case("no line end at the end", "last row lost", b"id,v\n1,a\n2,b", b"id,v\n1,a\n2,c", Expect(modified=1)),
    Case("byte order mark", "first column renamed", b"\xef\xbb\xbfid,v\n1,a\n", b"id,v\n1,b\n", Expect(modified=1)),
    Case(
        "UTF-16",
        "not read, or as other text",
        "id,v\n1,é\n".encode("utf-16"),
        "id,v\n1,è\n".encode("utf-16"),
        Expect(modified=1),
    ),
    Case(
        "not UTF-8",
        "column turned binary or replaced in silence",
        b"id,v\n1,a\n",
        b"id,v\n1,\xff\xfe\xe9\n",
        Expect(error=True),
    ),
    Case("short row", "padded in silence", b"id,v,w\n1,a,b\n", b"id,v,w\n1,a\n", Expect(error=True)),
    Case("long row", "cut or shifted in silence", b"id,v\n1,a\n", b"id,v\n1,a,b\n", Expect(error=True)),
    Case(
        "quote that never ends",
        "rest of the file in one field",
        b"id,v\n1,a\n2,b\n",
        b'id,v\n1,"a\n2,b\n',
        Expect(error=True),
    ),
    Case("null and empty", "both NaN", b"id,v\n1,\n", b'id,v\n1,""\n', Expect(modified=1)),
    Case("NA and null", "both NaN", b"id,v\n1,NA\n2,x\n", b"id,v\n1,\n2,x\n", Expect(modified=1)),
    Case("leading zeros", "007 read as 7", b"id,v\n1,007\n2,1\n", b"id,v\n1,7\n2,1\n", Expect(modified=1)),
    Case(
        "integers beyond 2^53",
        "rounded",
        b"id,v\n1,9007199254740993\n2,\n",
        b"id,v\n1,9007199254740992\n2,\n",
        Expect(modified=1),
    ),
    Case("digits beyond a float", "rounded", b"id,v\n1,0.30000000000000000001\n", b"id,v\n1,0.3\n", Expect(modified=1)),
    Case("spaces", "stripped", b"id,v\n1, a\n", b"id,v\n1,a\n", Expect(modified=1)),
    Case(
        "composed and decomposed letters",
        "normalised",
        "id,v\n1,é\n".encode(),
        "id,v\n1,e\u0301\n".encode(),
        Expect(modified=1),
    ),
    Case(
        "a field of 200 KB",
        "limit of a parser",
        b"id,v\n1," + b"x" * 200_000 + b"\n",
        b"id,v\n1," + b"x" * 199_999 + b"y\n",
        Expect(modified=1),
    ),
    Case("NUL in a field", "text ends there", b"id,v\n1,a\0b\n", b"id,v\n1,a\0c\n", Expect(modified=1)),
    Case("blank lines are rows", "dropped", b"v\n1\n\n2\n", b"v\n1\n2\n", Expect(removed=1), key=()),
    Case("quotes across chunk borders", "state lost", _quoted(False), _quoted(True), Expect(added=1, modified=1)),
    Case("header only, then rows", "an error, or typed by accident", b"id,v\n", b"id,v\n1,a\n2,b\n", Expect(added=2)),
    Case("empty file", "an error", b"", b"id,v\n", Expect(schema=("added", "added")), key=()),
    Case("tabs", "one column", b"id\tv\n1\ta,b\n", b"id\tv\n1\ta,c\n", Expect(modified=1), suffix=".tsv"),
    Case(
        "semicolons",
        "one column, so the key is missing",
        b"id;v\n1;a,b\n2;c\n",
        b"id;v\n1;a,c\n2;c\n",
        Expect(modified=1),
    ),
    # ------------------------------------------------------------------ JSON lines
    Case(
        'JSON: 1 and "1"',
        "made text",
        _jsonl('{"id":1,"v":1}'),
        _jsonl('{"id":1,"v":"1"}'),
        Expect(modified=1),
        suffix=".jsonl",
    ),
    Case(
        "JSON: missing and null",
        "both null",
        _jsonl('{"id":1,"v":null}', '{"id":2,"v":1}'),
        _jsonl('{"id":1}', '{"id":2,"v":1}'),
        Expect(modified=1),
        suffix=".jsonl",
    ),
    Case(
        "JSON: order of fields",
        "bytes compared",
        _jsonl('{"id":1,"v":2}'),
        _jsonl('{"v":2,"id":1}'),
        Expect(),
        suffix=".jsonl",
    ),
    Case(
        "JSON: integers beyond 2^53",
        "rounded",
        _jsonl('{"id":1,"v":9007199254740993}'),
        _jsonl('{"id":1,"v":9007199254740992}'),
        Expect(modified=1),
        suffix=".jsonl",
    ),
    Case(
        "JSON: nested",
        "not compared",
        _jsonl(json.dumps({"id": 1, "v": {"a": [1, 2]}})),
        _jsonl(json.dumps({"id": 1, "v": {"a": [2, 1]}})),
        Expect(modified=1),
        suffix=".jsonl",
    ),
    # ------------------------------------------------------------------ Parquet
    Case(
        "NaN",
        "never equals itself",
        _parquet(id=_ID3, v=pa.array([1.0, float("nan"), 2.0])),
        _parquet(id=_ID3, v=pa.array([1.0, float("nan"), 3.0])),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "-0.0 and 0.0",
        "bits compared",
        _parquet(id=_ints(1), v=pa.array([-0.0])),
        _parquet(id=_ints(1), v=pa.array([0.0])),
        Expect(),
        suffix=".parquet",
    ),
    Case(
        "NaN and null",
        "both NaN",
        _parquet(id=_ints(1, 2), v=pa.array([float("nan"), 1.0])),
        _parquet(id=_ints(1, 2), v=pa.array([None, 1.0], pa.float64())),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "decimals of 41 digits",
        "read as floats",
        _parquet(id=_ints(1), v=pa.array([_BIG], pa.decimal256(41, 1))),
        _parquet(id=_ints(1), v=pa.array([_BIG + decimal.Decimal("0.1")], pa.decimal256(41, 1))),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "instants in two time zones",
        "wall clocks compared",
        _parquet(id=_ints(1), v=pa.array([_NOON], pa.timestamp("us", "UTC"))),
        _parquet(id=_ints(1), v=pa.array([_NOON], pa.timestamp("us", "Europe/Berlin"))),
        Expect(schema=("retyped",)),
        suffix=".parquet",
    ),
    Case(
        "with and without a time zone",
        "taken for equal",
        _parquet(id=_ints(1), v=pa.array([_NOON], pa.timestamp("us", "UTC"))),
        _parquet(id=_ints(1), v=pa.array([_NOON.replace(tzinfo=None)], pa.timestamp("us"))),
        Expect(modified=1, schema=("retyped",)),
        suffix=".parquet",
    ),
    Case(
        "milliseconds and microseconds",
        "all rows modified",
        _parquet(id=_ints(1), v=pa.array([_NOON.replace(tzinfo=None)], pa.timestamp("ms"))),
        _parquet(id=_ints(1), v=pa.array([_NOON.replace(tzinfo=None)], pa.timestamp("us"))),
        Expect(schema=("retyped",)),
        suffix=".parquet",
    ),
    Case(
        "a nanosecond of a duration",
        "lost",
        _parquet(id=_ints(1), v=pa.array([10**15], pa.duration("ns"))),
        _parquet(id=_ints(1), v=pa.array([10**15 + 1], pa.duration("ns"))),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "unsigned beyond 2^63",
        "wraps or rounds",
        _parquet(id=_ints(1), v=pa.array([2**64 - 1], pa.uint64())),
        _parquet(id=_ints(1), v=pa.array([2**64 - 2], pa.uint64())),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "int32 to int64",
        "all rows modified",
        _parquet(id=_ID3, v=pa.array([1, 2, 3], pa.int32())),
        _parquet(id=_ID3, v=_ints(1, 2, 4)),
        Expect(modified=1, schema=("retyped",)),
        suffix=".parquet",
    ),
    Case(
        "int64 to float64",
        "compared as floats",
        _parquet(id=_ID3, v=_ints(1, 2, 2**53 + 1)),
        _parquet(id=_ID3, v=pa.array([1.0, 2.0, 2.0**53])),
        Expect(modified=1, schema=("retyped",)),
        suffix=".parquet",
    ),
    Case(
        "structs",
        "not compared",
        _parquet(id=_ints(1), v=pa.array([{"a": 1, "b": [1, 2]}])),
        _parquet(id=_ints(1), v=pa.array([{"a": 1, "b": [2, 1]}])),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "maps in another order",
        "order compared",
        _parquet(id=_ints(1), v=pa.array([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int64()))),
        _parquet(id=_ints(1), v=pa.array([[("b", 2), ("a", 1)]], pa.map_(pa.string(), pa.int64()))),
        Expect(),
        suffix=".parquet",
    ),
    Case(
        "dictionary and plain",
        "types compared",
        _parquet(id=_ID3, v=pa.array(["a", "b", "a"]).dictionary_encode()),
        _parquet(id=_ID3, v=pa.array(["a", "b", "b"])),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "bytes",
        "read as text",
        _parquet(id=_ints(1), v=pa.array([b"\xff\x00"])),
        _parquet(id=_ints(1), v=pa.array([b"\xff\x01"])),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "null keys in Parquet",
        "null never equals null",
        _parquet(id=_ints(1, None), v=pa.array(["a", "b"])),
        _parquet(id=_ints(1, None), v=pa.array(["a", "c"])),
        Expect(modified=1),
        suffix=".parquet",
    ),
    Case(
        "integer keys beyond 2^53 with a null",
        "read as floats",
        _parquet(id=_ints(2**53, 2**53 + 1, None), v=_ID3),
        _parquet(id=_ints(2**53 + 1, 2**53, None), v=_ID3),
        Expect(modified=2),
        suffix=".parquet",
    ),
    Case(
        "truncated Parquet",
        "a traceback",
        _parquet(id=_ID3, v=_ID3),
        lambda: _parquet(id=_ID3, v=_ID3)()[:-30],
        Expect(error=True),
        suffix=".parquet",
    ),
)
