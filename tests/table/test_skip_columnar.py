"""What a plan leaves out is equal on both sides, whatever was written how; and what is shared is left out."""

from __future__ import annotations

import tempfile
from typing import Any

import columnkit as kit
import numpy as np
import pyarrow as pa
import pytest
from columnkit import Stored, arrow, check_plan, edited, opened, parquet, parquet_settings, random_table, read_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import Bytes

from dvk.backend.memory import MemoryBackend
from dvk.store.content import StoreContent
from dvk.store.ingest import ingest
from dvk.store.opened import Opened
from dvk.store.push import Version, push
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.root import FILE, Root
from dvk.store.store import Store
from dvk.store.writer import Writer
from dvk.table.cache import Cache
from dvk.table.columnar.open import open_columnar
from dvk.table.compare import compare
from dvk.table.contract import Plan, Region
from dvk.table.options import CompareOptions
from dvk.table.skip.columnar import plan_columnar
from dvk.table.skip.plan import plan
from dvk.table.skip.segments import SPEC, Segments


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), cuts=st.booleans(), aligned=st.booleans(), same_writer=st.booleans())
def test_what_is_skipped_is_equal(seed: int, cuts: bool, aligned: bool, same_writer: bool) -> None:
    """Random tables of all types, random edits, writers with every setting, with and without chunks of a store."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, rows=int(rng.choice([0, 1, 5, 60, 300])), columns=int(rng.integers(1, 5)))
    one = parquet_settings(rng, table.num_rows)
    other = one if same_writer else parquet_settings(rng, table.num_rows)
    a = opened(parquet(table, **one), cuts=cuts, aligned=aligned)
    b = opened(parquet(edited(rng, table), **other), cuts=cuts, aligned=aligned)
    check_plan(a, b, plan(a, b))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), kinds=st.tuples(*[st.sampled_from(["parquet", "arrow", "stream"])] * 2))
def test_what_segments_skip_is_equal(seed: int, kinds: tuple[str, str]) -> None:
    """Two plans after one another: the first leaves segments behind as the tables are read, the second uses them."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, rows=int(rng.choice([300, 1500])), columns=int(rng.integers(1, 4)))
    data = []
    for kind, version in zip(kinds, (table, edited(rng, table)), strict=True):
        if kind == "parquet":
            data.append(parquet(version, **parquet_settings(rng, version.num_rows)))
        else:
            data.append(arrow(version, rows=int(rng.choice([100, 5000])), stream=kind == "stream"))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        small_segments(patch)
        cache = Cache(folder.encode())
        for _ in range(3):
            a, b = opened(data[0]), opened(data[1])
            found = plan(a, b, cache=cache)
            check_plan(a, b, found)
            for table_, regions in ((opened(data[0]), found.a), (opened(data[1]), found.b)):
                table_.record_segments(cache)
                read_rows(table_, regions=regions)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvk.table.skip.columnar._MARGIN_BYTES", 150)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["parquet", "arrow", "both"]), key=st.booleans())
def test_the_answer_is_the_same_with_everything_read(seed: int, kind: str, key: bool) -> None:
    """By key and by content; before segments are known and after."""
    rng = np.random.default_rng(seed)
    table = random_table(rng, rows=int(rng.choice([20, 300])), columns=int(rng.integers(1, 4)))
    other = edited(rng, table, unique=True)
    how = parquet_settings(rng, table.num_rows)
    one = arrow(table, rows=50) if kind == "arrow" else parquet(table, **how)
    two = parquet(other, **how) if kind == "parquet" else arrow(other, rows=50)
    options = CompareOptions(key=("id",) if key else (), infer=False, memory_bytes=640 << 20, threads=1)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        small_segments(patch)
        with compare(opened(one), opened(two), options) as diff:
            expected = answer(diff)
        for _ in range(2):
            a, b = opened(one), opened(two)
            with compare(a, b, options, plan=plan(a, b, cache=Cache(folder.encode()))) as diff:
                assert answer(diff) == expected


def answer(diff: Any) -> Any:
    columns = sorted((c.name, c.changed, c.null_to_value, c.value_to_null) for c in diff.columns)
    changes = [(c.kind, c.a_row, c.b_row, repr(c.key), repr(c.cells), repr(c.values)) for c in diff.changes()]
    return diff.rows, [repr(x) for x in diff.schema], columns, changes


def small_segments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("dvk.table.skip.segments.MIN_ROWS", 4)
    patch.setattr("dvk.table.skip.segments.MAX_ROWS", 64)
    patch.setattr("dvk.table.skip.segments._CUT_MASK", np.uint64(7))


# ---------------------------------------------------------------- what is found


def numbers(rows: int = 1000, *, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "id": np.arange(rows),
            "x": rng.random(rows),
            "s": [f"text {v}" for v in rng.integers(0, 10**9, rows)],
            "same": ["DE"] * rows,
        }
    )


def with_cell(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table.column(name).to_pylist()
    values[row] = value
    i = table.schema.get_field_index(name)
    return table.set_column(i, table.field(i), pa.array(values, table.field(i).type))


def planned(one: pa.Table, other: pa.Table, *, cuts: bool = True, **how: Any) -> tuple[Plan, Stored, Stored]:
    how.setdefault("row_group_size", 100)
    a, b = Stored(parquet(one, **how), cuts=cuts), Stored(parquet(other, **how), cuts=cuts)
    left, right = open_columnar(a), open_columnar(b)
    for source in (a, b):
        source.reads.clear()
    found = plan_columnar(left, right, None)
    a.for_plan, b.for_plan = [n for _, n in a.reads], [n for _, n in b.reads]
    check_plan(left, right, found)
    return found, a, b


both = pytest.mark.parametrize("cuts", [True, False], ids=["chunks", "plain"])


def test_the_same_file_is_not_read() -> None:
    found, a, _ = planned(numbers(), numbers())
    assert found == Plan("L0", (), (), skipped=1000, ordered=True) and not a.for_plan


@both
def test_a_changed_cell_leaves_its_row_group_and_column(cuts: bool) -> None:
    found, _, _ = planned(numbers(), with_cell(numbers(), "x", 250, 7.0), cuts=cuts)
    (part,) = found.aligned
    assert (found.level, found.a, found.b, found.skipped) == ("L2", (), (), 900)
    assert (part.a, part.b, part.columns) == (Region(200, 100), Region(200, 100), ((1, 1),))


@both
def test_appended_rows(cuts: bool) -> None:
    table = pa.concat_tables([numbers(), numbers(50, seed=1)])
    found, _, _ = planned(numbers(), table, cuts=cuts)
    assert (found.a, found.b, found.skipped, found.aligned) == ((), (Region(1000, 50),), 1000, ())


@both
def test_a_row_group_put_in_and_one_taken_out(cuts: bool) -> None:
    table, new = numbers(), numbers(100, seed=1)
    longer = pa.concat_tables([table.slice(0, 300), new, table.slice(300, 300), table.slice(700)])
    found, _, _ = planned(table, longer, cuts=cuts)
    assert (found.a, found.b, found.skipped) == ((Region(600, 100),), (Region(300, 100),), 900)


@both
def test_columns_added_removed_and_moved_break_nothing(cuts: bool) -> None:
    table = numbers()
    more = table.add_column(1, "new", pa.array(range(1000))).select(["s", "new", "same", "x", "id"])
    found, _, _ = planned(table, more, cuts=cuts)
    assert (found.skipped, found.a, found.b) == (1000, (), ())
    found, _, _ = planned(more, table, cuts=cuts)
    assert found.skipped == 1000


def test_a_column_of_another_name_may_be_the_same() -> None:
    """Then the others are not read, and these two are compared."""
    found, _, _ = planned(numbers(), with_cell(numbers(), "x", 5, 1.0).rename_columns(["id", "y", "s", "same"]))
    (part,) = found.aligned
    assert part.columns == ((1, 1),) and part.a == part.b == Region(0, 1000) and not found.skipped


def test_a_column_of_another_type_is_compared_alone() -> None:
    table = numbers()
    other = table.set_column(1, "x", table.column("x").cast(pa.float32()))
    found, _, _ = planned(table, other)
    assert [x.columns for x in found.aligned] == [((1, 1),)] and not found.a


def test_bytes_of_another_meaning_are_not_the_same() -> None:
    """The bytes of an int64 and of a timestamp are equal; the values are not."""
    table = pa.table({"id": pa.array(range(500)), "t": pa.array(range(500), pa.int64())})
    other = table.set_column(1, "t", pa.array(range(500), pa.timestamp("us")))
    found, _, _ = planned(table, other, store_schema=False)
    assert not found.skipped and all((1, 1) in x.columns for x in found.aligned)


@both
def test_a_column_that_is_the_same_everywhere_links_nothing(cuts: bool) -> None:
    """A row put in near the start: only the column of one value is the same then, which says nothing about rows."""
    table = numbers()
    found, _, _ = planned(table, pa.concat_tables([table.slice(500, 1), table]), cuts=cuts)
    assert found == Plan.everything(opened(parquet(table)), opened(parquet(table.slice(0, 1)))) or found.level == "L4"
    assert not found.aligned


def test_chunks_of_a_store_are_compared_without_reading() -> None:
    table = numbers(20_000)
    found, a, b = planned(table, with_cell(table, "x", 5, 7.0), row_group_size=5000, compression="none")
    assert found.skipped == 15_000 and not a.for_plan and not b.for_plan


def test_what_cannot_be_equal_is_not_read_of_plain_files_either() -> None:
    found, a, b = planned(numbers(), numbers(seed=9).select(["x", "s"]), cuts=False, row_group_size=77)
    assert found.level in ("L2", "L4") and not found.skipped
    assert sum(a.for_plan) + sum(b.for_plan) < (a.size + b.size) / 2


# ---------------------------------------------------------------- segments


def shifted(rows: int = 40_000) -> tuple[pa.Table, pa.Table]:
    table = numbers(rows)
    return table, pa.concat_tables([table.slice(0, 9000), numbers(1, seed=3), table.slice(9000)])


def test_a_row_put_in_is_found_by_segments_the_second_time(tmp_path: Any) -> None:
    one, other = (parquet(t, row_group_size=2000) for t in shifted())
    cache = Cache(bytes(tmp_path))
    first = plan(a := opened(one), b := opened(other), cache=cache)
    assert first.level == "L2" and first.a == (Region(8000, 32_000),) and first.b == (Region(8000, 32_001),)
    read_rows(a, regions=first.a), read_rows(b, regions=first.b)
    second = plan(a := opened(one), b := opened(other), cache=cache)
    check_plan(a, b, second)
    assert second.level == "L3" and sum(r.rows for r in second.a) < 9000 > sum(r.rows for r in second.b)


def test_segments_of_two_formats(tmp_path: Any) -> None:
    table, other = shifted()
    cache = Cache(bytes(tmp_path))
    a, b = opened(parquet(table)), opened(arrow(other, rows=1000))
    found = plan(a, b, cache=cache)
    assert found.level == "L4"
    read_rows(a), read_rows(b)
    found = plan(a, b, cache=cache)
    check_plan(a, b, found)
    assert found.level == "L3" and found.skipped > 30_000


def test_reading_some_columns_or_not_to_the_end_leaves_nothing(tmp_path: Any) -> None:
    data = parquet(numbers())
    cache = Cache(bytes(tmp_path))
    table = opened(data)
    table.record_segments(cache)
    read_rows(table, [0, 1])
    next(table.batches(range(4)))
    assert table.known_segments(cache) is None
    read_rows(table, [3, 2, 1, 0])
    assert table.known_segments(cache).total_rows == 1000
    other = opened(data)
    other.record_segments(cache)
    read_rows(other, regions=[Region(5, 500)])
    assert other.known_segments(cache).total_rows == 1000


def test_what_a_cache_holds_is_checked(tmp_path: Any) -> None:
    """Segments of more rows than there are, of none, over one another, cut short: as if there were none."""
    table = opened(parquet(numbers()))
    cache = Cache(bytes(tmp_path))
    table.record_segments(cache)
    read_rows(table)
    good = table.known_segments(cache)
    spec = next(iter(_specs(table)))
    assert spec.startswith(SPEC) and Segments.from_bytes(good.to_bytes(), rows=1000) is not None
    assert Segments.from_bytes(good.to_bytes(), rows=999) is None
    assert Segments.from_bytes(good.to_bytes()[:-1], rows=1000) is None
    assert Segments.from_bytes(b"", rows=0).total_rows == 0  # type: ignore[union-attr]
    for starts, rows in (
        ([0, 5], [6, 5]),
        ([-1], [5]),
        ([0], [0]),
        ([0], [1 << 31]),
        ([1 << 62], [9]),
        ([5, 0], [2, 2]),
    ):
        bad = Segments(np.array(starts), np.array(rows, np.uint32), np.zeros((len(rows), 16), np.uint8))
        assert Segments.from_bytes(bad.to_bytes(), rows=1000) is None
        cache.put(table.source.id, spec, bad.to_bytes())
        assert table.known_segments(cache) is None


def _specs(table: Any) -> list[bytes]:
    from dvk.table.skip.segments import spec_of

    found = spec_of([c.type for c in table.columns])
    assert found is not None
    return [found]


def test_chunks_that_reach_over_the_borders_of_column_chunks() -> None:
    """As in a store that cuts Parquet like anything else: what did not move is found, with its borders read."""
    table = numbers(20_000)
    data = [parquet(t, row_group_size=5000, compression="none") for t in (table, with_cell(table, "x", 12_000, 7.0))]
    sources = [Stored(d, aligned=False) for d in data]
    a, b = map(open_columnar, sources)
    for source in sources:
        source.reads.clear()
    found = plan_columnar(a, b, None)
    for source in sources:
        assert sum(n for _, n in source.reads) < source.size / 20
    check_plan(a, b, found)
    assert found.skipped == 15_000 and found.aligned[0].columns == ((1, 1),)


@pytest.mark.parametrize("profile", ["auto-64k", "cdc-64k"])
def test_versions_in_a_real_store_and_on_a_remote(profile: str, tmp_path: Any) -> None:
    """A cell of 400,000 rows: footers and the column chunks around it are read, wherever they are."""
    table = numbers(400_000)
    data = [parquet(t, row_group_size=50_000) for t in (table, with_cell(table, "x", 170_000, 7.0))]
    local, remote = Store(MemoryBackend("local")), Store(MemoryBackend("remote"))
    with Writer(local) as writer:
        source = Bytes(data)
        ids = ingest(writer, source, source.sizes, profile=profile)
        writer.flush()
    roots = [Root(FILE, bytes(i), len(d)) for i, d in zip(ids, data, strict=True)]
    push(local, remote, [Version(r) for r in roots], str(tmp_path))
    there = RemoteContent(remote)
    with Resolver(remote) as resolver:
        for root in roots:
            for part in resolver.resolve(root):
                there.add(part)
    for content in (StoreContent(local), there):
        one, other = (Opened(content, r.id, r.size, label="t", cache_bytes=4 << 20) for r in roots)
        a, b = open_columnar(one), open_columnar(other)
        found = plan(a, b)
        assert found.level == "L2" and found.skipped == 350_000
        assert [(x.a, x.b, x.columns) for x in found.aligned] == [(Region(150_000, 50_000),) * 2 + (((1, 1),),)]
        with compare(a, b, CompareOptions(key=("id",)), plan=found) as diff:
            (change,) = diff.changes()
            assert change.key == {"id": 170_000} and set(change.cells) == {"x"}
        if profile == "auto-64k":
            # Blocks of a megabyte of a file of ten; how they lie in their pack is a matter of timing.
            assert one.encoded_bytes + other.encoded_bytes < (one.size + other.size) / 2


def test_kit_cuts_by_content() -> None:
    data = bytes(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8))
    one, other = kit.cut(data), kit.cut(data[100:])
    shared = set(map(bytes, one.ids)) & set(map(bytes, other.ids))
    assert one.total_bytes == 20_000 and len(shared) > 0.9 * len(other)
