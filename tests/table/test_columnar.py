"""Parquet and Arrow files are read as exactly what they hold, whatever is asked for, or refused with the reason."""

from __future__ import annotations

import base64
import io
import struct
import threading
from collections.abc import Callable
from typing import Any

import columnkit as kit
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as kms
import pytest
from columnkit import Stored, arrow, opened, parquet, parquet_settings, random_table, read_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.errors import ChangedWhileRead, DvkError, TableError
from dvk.table.columnar.open import is_columnar, open_columnar
from dvk.table.columnar.types import plain_array, plain_type
from dvk.table.contract import Region
from dvk.table.open import open_table
from dvk.table.source import BytesSource

WRITERS: dict[str, Callable[[Any, pa.Table], bytes]] = {
    "parquet": lambda rng, t: parquet(t, **(parquet_settings(rng, t.num_rows) | {"store_schema": True})),
    "arrow": lambda rng, t: arrow(
        t, rows=int(rng.choice([1, 7, 50, 999])), compression=[None, "lz4", "zstd"][rng.integers(3)]
    ),
    "stream": lambda rng, t: arrow(t, rows=int(rng.choice([1, 7, 50, 999])), stream=True),
}


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(sorted(WRITERS)))
def test_values_come_back_exactly(seed: int, kind: str) -> None:
    """All of them, of some columns in any order, of some regions, and single rows."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, rows=int(rng.choice([0, 1, 9, 120])), columns=int(rng.integers(0, 5)))
    rows = table.num_rows
    read = opened(WRITERS[kind](rng, table))
    assert read.format == ("parquet" if kind == "parquet" else "arrow") and not read.is_text
    assert [c.name for c in read.columns] == table.schema.names and read.count_rows() == rows
    assert [c.type for c in read.columns] == [plain_type(f.type) for f in table.schema]
    assert_equal(read_rows(read), table)

    columns = rng.permutation(table.num_columns)[: rng.integers(0, table.num_columns + 1)].tolist()
    regions, at = [], 0
    while at < rows:
        at += int(rng.integers(0, 20))
        length = min(int(rng.integers(0, 40)), rows - at)
        if length > 0:
            regions.append(Region(at, length))
        at += max(length, 0)
    found = read_rows(read, columns, regions)
    if columns:
        numbers = pa.array([n for r in regions for n in range(r.first, r.first + r.rows)], pa.int64())
        assert_equal(found, table.combine_chunks().select(columns).take(numbers))
    chosen = np.flatnonzero(rng.random(rows) < 0.1)
    if columns:
        assert_equal(read.take(chosen, columns), table.combine_chunks().select(columns).take(pa.array(chosen)))
    assert read.take(chosen, []).num_rows == len(chosen) or not len(chosen)


def assert_equal(found: pa.Table, expected: pa.Table) -> None:
    assert found.num_rows == expected.num_rows or not expected.num_columns
    for one, other in zip(found.columns, expected.columns, strict=True):
        # Equal at once for what Python has no value for (nanoseconds); by words for NaN, which is not equal to itself.
        assert one.equals(other) or [repr(v) for v in one.to_pylist()] == [repr(v) for v in other.to_pylist()]


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_names_identify_nothing(kind: str) -> None:
    """Names that occur twice, differ in case only, hold dots or nothing at all."""
    names = ["a", "A", "a", "a.b", "", "a", "list.element"]
    struct_ = pa.array([{"b": i} for i in range(9)])
    arrays = [pa.array(range(i, i + 9)) for i in range(6)]
    table = pa.table([*arrays[:5], struct_, arrays[5]], names=names)
    read = opened(WRITERS[kind](np.random.default_rng(0), table))
    assert [c.label for c in read.columns] == ["a", "A", "a#2", "a.b", "", "a#3", "list.element"]
    assert_equal(
        read_rows(read, [5, 3, 6, 0]), pa.table([struct_, *[arrays[i] for i in (3, 5, 0)]], names=list("abcd"))
    )


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_tables_without_rows_or_columns(kind: str) -> None:
    rng = np.random.default_rng(0)
    empty = opened(WRITERS[kind](rng, pa.table({"a": pa.array([], pa.int64())})))
    assert (
        empty.count_rows() == 0
        and not list(empty.batches([0]))
        and empty.take(np.zeros(0, np.int64), [0]).num_rows == 0
    )
    bare = opened(WRITERS[kind](rng, pa.table({})))
    assert bare.columns == () and bare.count_rows() == 0 and not list(bare.batches([]))
    rows = opened(WRITERS[kind](rng, pa.table({"a": range(10)})))
    assert [(first, b.num_rows) for first, b in rows.batches([], regions=[Region(2, 5)])] == [(2, 5)] or kind != "x"
    assert sum(b.num_rows for _, b in rows.batches([])) == 10


def test_types_that_are_other_layouts_of_the_same_values() -> None:
    """Dictionaries, run ends, views, large offsets and extension types are the values they hold."""
    rows = [["a", "b"], None, [], ["a", None]]
    text = pa.array(["a", None, "bb", "a"])
    ends = pa.RunEndEncodedArray.from_arrays([2, 4], pa.array(["x", None]))
    columns: list[tuple[pa.Array, pa.DataType]] = [
        (text.dictionary_encode(), pa.string()),
        (text.cast(pa.large_string()), pa.string()),
        (text.cast(pa.string_view()), pa.string()),
        (text.cast(pa.binary()).cast(pa.binary_view()), pa.binary()),
        (ends, pa.string()),
        (pa.array(rows, pa.list_view(pa.string())), pa.list_(pa.string())),
        (pa.array(rows, pa.large_list_view(pa.large_string())), pa.list_(pa.string())),
        (pa.array(rows, pa.large_list(pa.string_view())), pa.list_(pa.string())),
        (pa.array([{"v": r} for r in rows], pa.struct([("v", pa.list_view(pa.string()))])), plain_struct()),
        (pa.array([[r] for r in rows], pa.list_(pa.list_view(pa.string()))), pa.list_(pa.list_(pa.string()))),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"u" * 16] * 4, pa.binary(16))), pa.binary(16)),
    ]
    for array, expected in columns:
        assert plain_type(array.type) == expected
        storage = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
        for low, high in ((0, 4), (1, 3), (2, 2)):
            plain = plain_array(array.slice(low, high - low), expected)
            plain.validate(full=True)
            assert plain.type == expected and plain.to_pylist() == storage.to_pylist()[low:high]
    table = pa.table([a for a, _ in columns], names=[f"x{i}" for i in range(len(columns))])
    read = opened(arrow(table))
    assert [c.type for c in read.columns] == [t for _, t in columns]
    read_rows(read)


def plain_struct() -> pa.DataType:
    return pa.struct([("v", pa.list_(pa.string()))])


def test_types_nested_without_end_are_refused() -> None:
    kind: pa.DataType = pa.int8()
    for _ in range(100):
        kind = pa.list_(kind)
    with pytest.raises(TableError):
        plain_type(kind)


def test_the_key_that_pandas_noted() -> None:
    def key(note: bytes, names: list[str]) -> tuple[str, ...]:
        table = pa.table([pa.array([1])] * len(names), names=names).replace_schema_metadata({b"pandas": note})
        found: tuple[str, ...] = opened(parquet(table)).declared_key
        assert opened(arrow(table)).declared_key == found
        return found

    assert key(b'{"index_columns": ["k"]}', ["v", "k"]) == ("k",)
    assert key(b'{"index_columns": ["k", "v"]}', ["v", "k"]) == ("k", "v")
    assert key(b'{"index_columns": [{"kind": "range", "start": 0, "stop": 9, "step": 1}]}', ["v"]) == ()
    assert key(b'{"index_columns": ["__index_level_0__"]}', ["v", "__index_level_0__"]) == ()
    for broken in (b"", b"[]", b"3", b'{"index_columns": 7}', b'{"index_columns": ["gone"]}', b"[" * 9999, b"\xff"):
        assert key(broken, ["v"]) == ()
    assert key(b'{"index_columns": ["k"]}', ["k", "k"]) == ()


# ---------------------------------------------------------------- cost


def test_only_what_is_asked_for_is_read() -> None:
    table = pa.table({f"c{i}": np.random.default_rng(i).random(20_000) for i in range(10)})
    source = Stored(parquet(table, row_group_size=1000, compression="none"))
    read = open_columnar(source)
    before = source.bytes_read
    assert before < source.size / 20
    assert_equal(read.take(np.array([5, 15_500]), [3]), table.select(["c3"]).take(pa.array([5, 15_500])))
    assert source.bytes_read - before < 2 * 8 * 1000 * 1.5 and read.rows_decoded == 2000
    before = source.bytes_read
    read_rows(read, [7, 1], [Region(900, 200)])
    assert source.bytes_read - before < 2 * 2 * 8 * 1000 * 1.5 and read.rows_decoded == 4000


def test_small_row_groups_are_read_together() -> None:
    table = pa.table({"a": range(5000), "b": [str(i) for i in range(5000)]})
    source = Stored(parquet(table, row_group_size=10))
    read = open_columnar(source)
    source.reads.clear()
    assert_equal(read_rows(read), table)
    assert len(source.reads) < 20


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_batches_are_bounded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different length, values that a dictionary holds once: no batch of more than a few rows is large."""
    monkeypatch.setattr("dvk.table.columnar.table.MAX_BATCH_BYTES", 20_000)
    monkeypatch.setattr("dvk.table.columnar.table.TARGET_BATCH_BYTES", 10_000)
    monkeypatch.setattr("dvk.table.columnar.parquet.TARGET_BATCH_BYTES", 10_000)
    values = [("x" * 5000 if i % 3 == 0 else "") for i in range(300)] + ["y" * 50_000]
    table = pa.table({"a": values, "i": range(301)})
    read = opened({"parquet": parquet, "arrow": arrow, "stream": lambda t: arrow(t, stream=True)}[kind](table))
    sizes = [(b.nbytes, b.num_rows) for _, b in read.batches([0, 1])]
    assert all(size <= 20_000 or rows == 1 for size, rows in sizes)
    assert_equal(read_rows(read), table)


def test_a_dictionary_that_stands_for_much_is_taken_apart_bit_by_bit() -> None:
    """A file of some kilobytes with 2 GB of values."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 50_000, pa.int8()), pa.array(["x" * 40_000, "y"]))
    read = opened(parquet(pa.table({"a": texts.cast(pa.dictionary(pa.int8(), pa.string()))}), store_schema=False))
    before, most, total = pa.total_allocated_bytes(), 0, 0
    for _, batch in read.batches([0], regions=[Region(0, 20_000)]):
        most = max(most, pa.total_allocated_bytes() - before)
        total += batch.nbytes
        assert batch.nbytes <= 64 << 20
    assert total > 400_000_000 and most < 200_000_000


def test_row_groups_beyond_a_limit_are_read_through_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvk.table.columnar.parquet._WHOLE_BYTES", 50_000)
    monkeypatch.setattr("dvk.table.columnar.parquet._WINDOW_BYTES", 4096)
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.random(50_000), "b": rng.integers(0, 9, 50_000)})
    source = Stored(parquet(table, compression="none", data_page_size=8000, use_dictionary=False))
    read = open_columnar(source)
    source.reads.clear()
    assert_equal(read_rows(read), table)
    assert max(n for _, n in source.reads) < 20_000


def test_several_readers_of_one_table() -> None:
    table = pa.table({"a": range(30_000), "b": [str(i) for i in range(30_000)]})
    read = opened(parquet(table, row_group_size=500))
    one, other = read.batches([0]), read.batches([1, 0], regions=[Region(20_000, 5000)])
    begun = next(one)[1].num_rows + next(other)[1].num_rows
    assert read.take(np.array([3, 29_999]), [1]).to_pydict() == {"c1": ["3", "29999"]}
    wrong: list[object] = []

    def work() -> None:
        try:
            assert_equal(read_rows(read), table)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert begun + sum(b.num_rows for _, b in one) + sum(b.num_rows for _, b in other) == 35_000


def test_rows_that_are_not_there_are_a_mistake_of_the_caller() -> None:
    read = opened(parquet(pa.table({"a": range(10)})))
    for regions in ([Region(5, 6)], [Region(-1, 2)]):
        with pytest.raises(ValueError):
            list(read.batches([0], regions=regions))
    for rows in ([10], [-1], [3, 3], [4, 2]):
        with pytest.raises(ValueError):
            read.take(np.array(rows), [0])


# ---------------------------------------------------------------- broken and hostile files


def refused(data: bytes, *, name: bytes = b"t.parquet") -> TableError:
    """The error of reading all of it."""
    with pytest.raises(TableError) as caught:
        read_rows(open_columnar(BytesSource(data, name=name, label="t at v1")))
    assert caught.value.subject == "t at v1" and "Traceback" not in caught.value.message
    return caught.value


def test_formats_are_told_by_their_first_bytes() -> None:
    for head in (b"PAR1", b"PARE", b"ARROW1\0\0", b"FEA1", b"\xff\xff\xff\xff"):
        assert is_columnar(head)
    assert not is_columnar(b"id,name") and not is_columnar(b"")
    assert "encrypted" in refused(b"PARE" + bytes(40)).message
    assert "version 1" in refused(b"FEA1" + bytes(40)).message
    assert "neither" in refused(b"hello").message
    good = parquet(pa.table({"a": [1]}))
    assert "encrypted" in refused(good[:-4] + b"PARE").message
    table = open_table(BytesSource(good, name=b"named.csv"))
    assert table.format == "parquet"


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_cut_short_anywhere(kind: str) -> None:
    """An error, or for a stream at a border of batches, the rows before."""
    table = pa.table({"a": range(200), "b": [str(i) for i in range(200)]})
    data = WRITERS[kind](np.random.default_rng(3), table)
    for size in [*range(4, 40), *range(40, len(data) - 1, max(1, len(data) // 150)), len(data) - 1]:
        try:
            found = read_rows(open_columnar(BytesSource(data[:size], name=b"t", label="t at v1")))
        except TableError as error:
            assert error.subject == "t at v1"
            continue
        assert kind == "stream"
        assert_equal(found, table.slice(0, found.num_rows))


def test_footers_that_state_other_rows() -> None:
    """More or fewer rows than there are: never an answer."""
    data = parquet(pa.table({"a": [f"v{i}" for i in range(1234)]}), use_dictionary=False)
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    places = [i for i in range(footer, len(data) - 9) if data[i : i + 2] == b"\xa4\x13"]  # 1234 as Thrift writes it
    assert len(places) == 4
    file, values, _, group = places
    for rows in (b"\xa6\x13", b"\xa2\x13", b"\xa3\x13", b"\xfe\x7f"):
        for some in ([file], [group], [file, group], [file, values], places[1:]):
            broken = bytearray(data)
            for at in some:
                broken[at : at + 2] = rows
            if some != [file, group] or rows != b"\xa2\x13":
                refused(bytes(broken))
                continue
            fewer = read_rows(opened(bytes(broken)))  # one row less, wherever that is said: a table of its own
            assert fewer.num_rows == 1233


def test_bits_turned_over_in_a_footer() -> None:
    """The values, or an error of ours: nothing else, and not for long."""
    table = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    data = parquet(table, compression="none")
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    rng = np.random.default_rng(1)
    for at in rng.choice(np.arange(footer, len(data) - 8), 250, replace=False).tolist():
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            read_rows(open_columnar(BytesSource(bytes(broken), name=b"t", label="t at v1")))
        except TableError:
            continue


def test_bits_turned_over_in_an_arrow_file() -> None:
    """Buffers that point anywhere are found before a value is touched."""
    table = pa.table({"a": [1, 2, 3] * 20, "b": ["x", "yy", None] * 20, "l": [[1], [], [2, 3]] * 20})
    data = arrow(table)
    rng = np.random.default_rng(2)
    for at in rng.choice(len(data), 400, replace=False).tolist():
        broken = bytearray(data)
        broken[at] ^= 1 << int(rng.integers(8))
        try:
            read_rows(open_columnar(BytesSource(bytes(broken), name=b"t", label="t at v1")))
        except TableError:
            continue


def test_damaged_pages_are_found_by_their_checksums() -> None:
    data = bytearray(
        parquet(pa.table({"a": range(1000)}), compression="none", use_dictionary=False, write_page_checksum=True)
    )
    data[3000] ^= 1
    assert "cannot be read" in refused(bytes(data)).message


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_text_that_is_no_utf8(kind: str) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe")]
    )
    error = refused(WRITERS[kind](np.random.default_rng(0), pa.table({"id": [1], "name": bad})))
    assert "UTF" in error.message and ("column name" in error.message or kind != "parquet")


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_text_that_is_no_utf8_behind_a_dictionary(use_dictionary: bool) -> None:
    """A value that many rows name by a number is looked at once, and looked at."""
    ends = struct.pack("<201i", *range(0, 402, 2))
    bad = pa.Array.from_buffers(
        pa.string(), 200, [None, pa.py_buffer(ends), pa.py_buffer(b"ab" * 150 + b"\xff\xfe" * 50)]
    )
    data = parquet(pa.table({"id": range(200), "name": bad}), use_dictionary=use_dictionary)
    assert "UTF" in refused(data).message


class _Keys(kms.KmsClient):
    """Keys that are wrapped by nothing."""

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
        return base64.b64decode(wrapped)


@pytest.mark.parametrize("plain_footer", [True, False])
def test_encrypted_files_are_named_so(plain_footer: bool) -> None:
    table = pa.table({"id": range(50), "secret": [str(i) for i in range(50)]})
    how = kms.EncryptionConfiguration(footer_key="f", column_keys={"c": ["secret"]}, plaintext_footer=plain_footer)
    crypto = kms.CryptoFactory(lambda _: _Keys())
    sink = io.BytesIO()
    properties = crypto.file_encryption_properties(kms.KmsConnectionConfig(), how)
    with pq.ParquetWriter(sink, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    error = refused(sink.getvalue())
    assert "encrypted" in error.message and "decrypt" in error.hint


def test_values_that_are_none() -> None:
    """A time of day beyond the day, as a file may hold it."""
    late = pa.array([10**12], pa.int64())
    for kind in sorted(WRITERS):
        refused(WRITERS[kind](np.random.default_rng(0), pa.table({"t": late.view(pa.time64("us"))})))


def test_types_and_codecs_that_no_library_reads() -> None:
    data = parquet(pa.table({"a": [1, 2, 3]}), compression="snappy")
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.row_group(0).column(0).compression == "SNAPPY"
    at = data.rindex(b"\x15\x02\x16\x06")  # codec 1, then the number of values, 3
    assert "LZO" in refused(data[: at + 1] + b"\x06" + data[at + 2 :]).message
    refused(data[: at + 1] + b"\x7e" + data[at + 2 :])  # codec 63


def test_errors_of_the_source_are_its_own() -> None:
    """A file that changes, a remote that is gone: not a broken table."""

    class Changing(BytesSource):
        changed = False

        def read_at(self, offset: int, length: int) -> bytes:
            if self.changed:
                raise ChangedWhileRead("it changed", subject=self.label)
            return super().read_at(offset, length)

    for kind in sorted(WRITERS):
        data = WRITERS[kind](np.random.default_rng(0), pa.table({"a": range(50)}))
        source = Changing(data, name=b"t", label="t at v1")
        read = open_columnar(source)
        read.count_rows()
        source.changed = True
        with pytest.raises(DvkError) as caught:
            read_rows(read)
        assert type(caught.value) is ChangedWhileRead


def test_old_timestamps_are_noted() -> None:
    table = pa.table({"t": pa.array([1, 2], pa.timestamp("ns"))})
    read = opened(parquet(table, use_deprecated_int96_timestamps=True))
    assert [n.code for n in read.notices] == ["int96"]
    assert_equal(read_rows(read), table)
    assert not opened(parquet(table)).notices


def test_ten_thousand_columns() -> None:
    table = pa.table({f"x{i}": [i, i + 1] for i in range(10_000)})
    read = opened(parquet(table))
    assert len(read.columns) == 10_000
    assert read_rows(read, [9999, 5]).to_pydict() == {"c9999": [9999, 10_000], "c5": [5, 6]}
    assert kit.read_rows(read).num_columns == 10_000
