"""What the tests of columnar files share: random tables of every type, edits of them, writers with every setting."""

from __future__ import annotations

import datetime as dt
import decimal
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from dvk.store.pages import Chunks
from dvk.table.columnar.open import open_columnar
from dvk.table.contract import Plan, Region, Table
from dvk.table.source import BytesSource

Rng = np.random.Generator
_EPOCH = dt.datetime(1970, 1, 1)


def _text(rng: Rng) -> str:
    return ["", "a", "b", "naïve", "x" * 40, f"row-{rng.integers(1000)}", "日本"][rng.integers(7)]


def _decimal(digits: int, scale: int) -> Callable[[Rng], decimal.Decimal]:
    def make(rng: Rng) -> decimal.Decimal:
        number = int("".join(map(str, rng.integers(0, 10, digits)))) * (-1 if rng.random() < 0.5 else 1)
        return decimal.Decimal(number).scaleb(-scale, decimal.Context(prec=80))

    return make


def _moment(rng: Rng) -> dt.datetime:
    return _EPOCH + dt.timedelta(seconds=int(rng.integers(-(10**9), 2 * 10**9)))


#: A type, and one random value of it.
TYPES: list[tuple[pa.DataType, Callable[[Rng], Any]]] = [
    (pa.int64(), lambda r: int(r.integers(-(2**63), 2**63 - 1))),
    (pa.int64(), lambda r: int(r.integers(0, 4))),
    (pa.int8(), lambda r: int(r.integers(-128, 128))),
    (pa.uint16(), lambda r: int(r.integers(0, 65536))),
    (pa.uint64(), lambda r: int(r.integers(0, 2**63))),
    (pa.float64(), lambda r: float([0.0, -0.0, float("inf"), 1.5, r.random()][r.integers(5)])),
    (pa.float32(), lambda r: float(np.float32(r.random()))),
    (pa.bool_(), lambda r: bool(r.integers(2))),
    (pa.string(), _text),
    (pa.large_string(), _text),
    (pa.binary(), lambda r: r.bytes(r.integers(0, 9))),
    (pa.binary(5), lambda r: r.bytes(5)),
    (pa.date32(), lambda r: _moment(r).date()),
    (pa.time64("us"), lambda r: _moment(r).time()),
    (pa.timestamp("ms"), _moment),
    (pa.timestamp("us", tz="Europe/Berlin"), lambda r: _moment(r).replace(tzinfo=dt.UTC)),
    (pa.duration("ms"), lambda r: dt.timedelta(milliseconds=int(r.integers(-(10**9), 10**9)))),
    (pa.decimal128(20, 3), _decimal(20, 3)),
    (pa.decimal256(60, 10), _decimal(60, 10)),
    (pa.dictionary(pa.int32(), pa.string()), _text),
    (pa.list_(pa.int32()), lambda r: [int(x) for x in r.integers(0, 9, r.integers(0, 4))]),
    (pa.list_(pa.string()), lambda r: [_text(r) for _ in range(r.integers(0, 3))]),
    (pa.list_(pa.int16(), 2), lambda r: [int(x) for x in r.integers(0, 9, 2)]),
    (pa.struct([("x", pa.int32()), ("y", pa.string())]), lambda r: {"x": int(r.integers(9)), "y": _text(r)}),
    (
        pa.list_(pa.struct([("k", pa.list_(pa.int8())), ("v", pa.float64())])),
        lambda r: [{"k": [1] * int(r.integers(3)), "v": None} for _ in range(r.integers(3))],
    ),
    (pa.map_(pa.string(), pa.int64()), lambda r: [(_text(r) + str(i), i) for i in range(r.integers(3))]),
    (pa.float16(), lambda r: np.float16(r.random())),
    (pa.null(), lambda r: None),
]


def column(rng: Rng, which: int, rows: int, *, nulls: float) -> pa.Array:
    kind, make = TYPES[which]
    values = [None if rng.random() < nulls else make(rng) for _ in range(rows)]
    return pa.array(values, kind)


def random_table(rng: Rng, *, rows: int, columns: int) -> pa.Table:
    """Columns of random types; `id` first, ascending."""
    arrays: list[pa.Array] = [pa.array(np.arange(rows), pa.int64())]
    names = ["id"]
    for i in range(columns):
        arrays.append(column(rng, int(rng.integers(len(TYPES))), rows, nulls=float(rng.choice([0.0, 0.2, 0.9]))))
        names.append(f"x{i}")
    return pa.table(arrays, names=names)


def edited(rng: Rng, table: pa.Table, *, unique: bool = False) -> pa.Table:
    """The same with some cells set, rows put in, taken out and appended, columns added, removed and moved.

    `unique`: the column `id` stays, and no two rows have the same.
    """
    fresh = itertools.count(10**6)

    def renew(rows: pa.Table) -> pa.Table:
        if not unique:
            return rows
        at = rows.schema.get_field_index("id")
        return rows.set_column(at, rows.field(at), pa.array([next(fresh) for _ in range(rows.num_rows)], pa.int64()))

    n = table.num_rows
    for kind in rng.choice(["cells", "insert", "delete", "append", "add", "drop", "move", "nothing"], 2):
        n = table.num_rows
        if kind == "cells" and n:
            c = int(rng.integers(table.num_columns))
            values = table.column(c).to_pylist()
            values[int(rng.integers(n))] = values[int(rng.integers(n))]
            if unique and table.field(c).name == "id":
                continue
            table = table.set_column(c, table.field(c), pa.array(values, table.field(c).type))
        elif kind == "insert":
            at = int(rng.integers(n + 1))
            new = renew(table.slice(int(rng.integers(n + 1)), 2))
            table = pa.concat_tables([table.slice(0, at), new, table.slice(at)])
        elif kind == "delete" and n:
            at = int(rng.integers(n))
            table = pa.concat_tables([table.slice(0, at), table.slice(at + int(rng.integers(1, 4)))])
        elif kind == "append":
            table = pa.concat_tables([table, renew(table.slice(0, int(rng.integers(1, 30))))])
        elif kind == "add":
            new = column(rng, int(rng.integers(len(TYPES))), n, nulls=0.1)
            table = table.add_column(int(rng.integers(table.num_columns + 1)), f"new{rng.integers(99)}", new)
        elif kind == "drop" and table.num_columns > 1:
            c = int(rng.integers(table.num_columns))
            table = table if unique and table.field(c).name == "id" else table.remove_column(c)
        elif kind == "move":
            table = table.select(rng.permutation(table.num_columns).tolist())
    return table.combine_chunks()


def parquet_settings(rng: Rng, rows: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "row_group_size": int(rng.choice([1, 7, 50, 10_000])) if rows < 300 else int(rng.choice([64, 700, 10_000])),
        "compression": str(rng.choice(["none", "snappy", "zstd", "gzip", "lz4", "brotli"])),
        "use_dictionary": bool(rng.integers(2)),
        "data_page_size": int(rng.choice([64, 1 << 20])),
        "data_page_version": str(rng.choice(["1.0", "2.0"])),
        "version": str(rng.choice(["2.4", "2.6"])),
        "write_statistics": bool(rng.integers(2)),
        "store_schema": bool(rng.integers(4)),
        "write_page_index": bool(rng.integers(2)),
        "write_page_checksum": bool(rng.integers(2)),
    }
    if rng.integers(2):
        settings["use_content_defined_chunking"] = True
    return settings


def parquet(table: pa.Table, **settings: Any) -> bytes:
    # float16 has no place in older formats, nor has a time zone by name; both are kept by the schema that pyarrow adds.
    sink = io.BytesIO()
    pq.write_table(table, sink, **settings)
    return sink.getvalue()


def arrow(table: pa.Table, *, rows: int | None = None, stream: bool = False, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


@dataclass
class Stored(BytesSource):
    """Bytes with the id and the chunks that a store would have."""

    content: bytes
    file_name: bytes = b"t.parquet"
    cuts: bool = True
    aligned: bool = True
    reads: list[tuple[int, int]] = field(default_factory=list)
    for_plan: list[int] = field(default_factory=list)  #: bytes of each read that a plan took

    def __post_init__(self) -> None:
        chunks = cut(self.content, aligned=self.aligned) if self.cuts else None
        super().__init__(
            self.content, name=self.file_name, label="t at v1", id=blake3(self.content).digest(), chunks=chunks
        )

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)


def cut(data: bytes, *, aligned: bool = True) -> Chunks:
    """Chunks by content, of about 100 bytes. `aligned`: column chunks of Parquet begin and end one, as in a store."""
    borders = {0, len(data)}
    if aligned and data[:4] == b"PAR1":
        facts = pq.ParquetFile(io.BytesIO(data)).metadata
        for g in range(facts.num_row_groups):
            for c in (facts.row_group(g).column(i) for i in range(facts.num_columns)):
                start = c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset
                borders |= {start, start + c.total_compressed_size}
    ends = []
    for low, high in itertools.pairwise(sorted(borders)):
        values = np.frombuffer(data[low:high], np.uint8).astype(np.int64)
        mixed = (values[2:] * 31 + values[1:-1] * 17 + values[:-2] * 7) % 101
        ends += [*(low + 3 + np.flatnonzero(mixed == 0)).tolist(), high]
    ends = sorted(set(ends))
    ids = [blake3(data[a:b]).digest() for a, b in itertools.pairwise([0, *ends])]
    column_ = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
    return Chunks(column_, np.diff([0, *ends]).astype(np.uint32))


def opened(data: bytes, *, cuts: bool = True, aligned: bool = True) -> Any:
    return open_columnar(Stored(data, cuts=cuts, aligned=aligned))


# ---------------------------------------------------------------- looking


def plain_rows(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows as Python values that compare as the bits do (NaN and -0.0 told apart)."""
    return (
        list(zip(*([repr(v) for v in c.to_pylist()] for c in table.columns), strict=True)) if table.num_columns else []
    )


def read_rows(table: Table, columns: Sequence[int] | None = None, regions: Sequence[Region] | None = None) -> pa.Table:
    """What `batches` gives, joined; checks names, order, row numbers and limits on the way."""
    wanted = list(range(len(table.columns))) if columns is None else list(columns)
    expected = regions if regions is not None else [Region(0, table.count_rows())]
    numbers = [n for r in expected for n in range(r.first, r.first + r.rows)]
    seen: list[int] = []
    parts = []
    for first, batch in table.batches(wanted, regions=regions):
        assert batch.num_rows
        assert batch.schema.names == [f"c{c}" for c in wanted]
        assert [f.type for f in batch.schema] == [table.columns[c].type for c in wanted]
        batch.validate(full=True)
        seen += range(first, first + batch.num_rows)
        parts.append(batch)
    assert seen == numbers
    schema = pa.schema([pa.field(f"c{c}", table.columns[c].type) for c in wanted])
    return pa.Table.from_batches(parts, schema=schema) if wanted else pa.table({})


def check_plan(a: Table, b: Table, plan: Plan) -> None:
    """Everything that a plan says is so: what it leaves out is equal on both sides, in order."""
    labels = {c.label: c.index for c in b.columns}
    pairs = [(c.index, labels[c.label]) for c in a.columns if c.label in labels]
    all_a, all_b = read_rows(a), read_rows(b)
    kept_a = _complement([*plan.a, *(x.a for x in plan.aligned)], a.count_rows())
    kept_b = _complement([*plan.b, *(x.b for x in plan.aligned)], b.count_rows())
    assert len(kept_a) == len(kept_b) == plan.skipped
    for i, j in pairs:
        left, right = (
            all_a.column(i).take(pa.array(kept_a, pa.int64())),
            all_b.column(j).take(pa.array(kept_b, pa.int64())),
        )
        assert left.type == right.type or not kept_a
        assert [repr(x) for x in left.to_pylist()] == [repr(x) for x in right.to_pylist()]
    if len(pairs) < min(len(a.columns), len(b.columns)):
        assert not plan.skipped or plan.level in ("L0", "L3")  # a column may have another name
    for part in plan.aligned:
        assert part.a.rows == part.b.rows and part.columns
        for i, j in pairs:
            if (i, j) not in part.columns:
                left, right = all_a.column(i), all_b.column(j)
                assert left.type == right.type
                one, other = left.slice(part.a.first, part.a.rows), right.slice(part.b.first, part.b.rows)
                assert [repr(x) for x in one.to_pylist()] == [repr(x) for x in other.to_pylist()]
    for regions in (plan.a, plan.b):
        assert all(x.first + x.rows < y.first for x, y in itertools.pairwise(regions))


def _complement(regions: Sequence[Region], rows: int) -> list[int]:
    inside = np.zeros(rows, np.bool_)
    for r in regions:
        assert not inside[r.first : r.first + r.rows].any() and r.first + r.rows <= rows
        inside[r.first : r.first + r.rows] = True
    found: list[int] = np.flatnonzero(~inside).tolist()
    return found
