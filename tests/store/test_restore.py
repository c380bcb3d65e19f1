"""Restore: a file gets its name with exactly its bytes, or an error of its own; its neighbours arrive."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from storekit import Folder, add, b3, column, get, keys, make_pack, noise, put_pack, words

from dvk.backend.contract import Backend
from dvk.backend.memory import MemoryBackend
from dvk.errors import (
    Corrupt,
    DataMissing,
    DvkError,
    FormatError,
    Refused,
    RemoteUnreachable,
    StorageError,
    StorageFull,
)
from dvk.ids import FileId
from dvk.store import restore as restore_module
from dvk.store import stream as stream_module
from dvk.store.codec import RAW
from dvk.store.content import Content, StoreContent
from dvk.store.pack import BLOCK_HEADER, PackBuilder, PackKind, RecipeRow
from dvk.store.pages import Chunks, ListKind, format_page, page_id
from dvk.store.placement import plan_ranges, read_blocks, read_parts
from dvk.store.restore import readable, restore
from dvk.store.store import Store
from dvk.store.stream import iter_file
from dvk.testing.faults import FaultBackend

MIB = 1 << 20


def threads() -> list[str]:
    """Those that a restore started and that still run."""
    return [t.name for t in threading.enumerate() if t.name.startswith("dvk-restore")]


def sizes_of(contents: list[bytes]) -> Any:
    return np.array([len(c) for c in contents], np.int64)


def damage(store: Store, chunk: bytes) -> None:
    """Turn a bit over in the block that holds `chunk`."""
    placed = store.place(Chunks(column([chunk]), np.array([len(chunk)], np.uint32)))
    key = placed.blocks.key(0)
    data = bytearray(store.backend.get(key, max_bytes=1 << 30))
    offset, length = placed.blocks.span(0)
    data[offset + length - 1] ^= 1
    store.backend.put(key, [bytes(data)])


# ---------------------------------------------------------------- damage


def test_a_damaged_block_fails_its_files_and_no_others(tmp_path: Path) -> None:
    """Small files by the hundred in a few blocks, and a big one, half of which lies elsewhere."""
    store = Store(MemoryBackend())
    small = [words(i, 9_000) for i in range(400)]
    big, other = noise("big", 12 * MIB), noise("other", 12 * MIB)
    contents = [*small, big, other]
    ids, _ = add(store, contents)
    damage(store, small[200])
    chunks = store.chunks_of(FileId(b3(big)), len(big))
    assert chunks is not None
    middle = int(chunks.lengths[:50].sum())
    damage(store, big[middle : middle + int(chunks.lengths[50])])
    placed = store.place(Chunks(column(small), sizes_of(small).astype(np.uint32)))
    lost = set(np.flatnonzero(placed.block == placed.block[200]).tolist()) | {400}
    assert 50 < len(lost) < 300
    got, failed = get(store, ids, sizes_of(contents), tmp_path / "out")
    assert set(failed) == lost
    assert {type(e) for e in failed.values()} == {Corrupt}
    assert got == {i: c for i, c in enumerate(contents) if i not in lost}
    named, errors = get(store, ids, sizes_of(contents), tmp_path / "named", names=[f"n{i}" for i in range(402)])
    assert len(named) == len(got)
    assert all(e.subject == f"n{i}" and "p/" in e.message for i, e in errors.items())


def test_of_a_damaged_block_that_is_stored_as_it_is_one_file_is_lost_and_none_counts_as_readable(
    tmp_path: Path,
) -> None:
    """Whatever else is asked for with it. Who is about to delete the other copy hears of the damage all the same."""
    store = Store(MemoryBackend())
    small = [noise(i, 9_000) for i in range(300)]
    ids, _ = add(store, small)
    damage(store, small[150])
    placed = store.place(Chunks(ids, sizes_of(small).astype(np.uint32)))
    same = np.flatnonzero(placed.block == placed.block[150])
    lost = int(same[np.argmax(placed.offset[same])])  # the bit lies at the end of the block
    for chosen in ([*range(300)], same.tolist(), same[:60].tolist(), [lost], [int(same[0])]):
        wanted = [small[i] for i in chosen]
        out = tmp_path / f"{len(chosen)} from {chosen[0]}"
        got, failed = get(store, column(wanted), sizes_of(wanted), out)
        assert got == {n: small[i] for n, i in enumerate(chosen) if i != lost}
        assert {chosen[n]: type(e) for n, e in failed.items()} == {i: Corrupt for i in chosen if i == lost}
        assert all("p/" in e.message for e in failed.values())
        sound = readable(store, column(wanted), sizes_of(wanted))
        assert sound.tolist() == [i not in same for i in chosen]


def test_a_damaged_recipe_fails_its_files_and_no_others(tmp_path: Path) -> None:
    store = Store(MemoryBackend())
    contents = [noise(i, 300_000) for i in range(5)] + [noise(i, 1000) for i in range(5)]
    ids, _ = add(store, contents)
    (key,) = keys(store.backend, "m/")
    data = bytearray(store.backend.get(key, max_bytes=MIB))
    data[60] ^= 1
    store.backend.put(key, [bytes(data)])
    got, failed = get(Store(store.backend), ids, sizes_of(contents), tmp_path / "out")
    assert got == {i: contents[i] for i in range(5, 10)}
    assert {type(failed[i]) for i in range(5)} == {Corrupt}


@pytest.mark.parametrize("fresh", [True, False])
def test_a_missing_pack_fails_its_files_and_no_others(fresh: bool, tmp_path: Path) -> None:
    """Whether the store knows already, or finds out while it reads."""
    store = Store(MemoryBackend())
    one, two = [noise(i, 5000) for i in range(20)], [noise(-i, 5000) for i in range(1, 20)] + [noise("x", 9 * MIB)]
    add(store, one)
    (key,) = keys(store.backend, "p/")
    add(store, two)
    store.backend.delete(key)
    contents = one + two
    ids = column(contents)
    got, failed = get(Store(store.backend) if fresh else store, ids, sizes_of(contents), tmp_path / "out")
    assert got == {i: c for i, c in enumerate(contents) if i >= 20}
    assert {type(e) for e in failed.values()} == {DataMissing} and len(failed) == 20


def lying_store(lie: str) -> tuple[Store, bytes]:
    """A store whose footer or recipe says that it holds a file of 30 bytes, and holds something else."""
    store = Store(MemoryBackend())
    content = noise("true", 30)
    first, second = content[:10], content[10:]
    builder = PackBuilder(PackKind.DATA)
    if lie == "chunk":
        builder.add_block(0, noise("false", 30), 30, ids=b3(content), lengths=np.array([30], np.uint32))
    else:
        builder.add_block(0, second + first, 30, ids=b3(second) + b3(first), lengths=np.array([20, 10], np.uint32))
        listed = Chunks(column([second, first]), np.array([20, 10], np.uint32))
        page = format_page(ListKind.RECIPE, 0, listed)
        pages = PackBuilder(PackKind.PAGES)
        root = page_id(ListKind.RECIPE, page)
        pages.add_block(0, page, len(page), ids=root, lengths=np.array([len(page)], np.uint32))
        pages.add_recipe(RecipeRow(b3(content), root, 30, "cdc-64k"))
        name, parts = pages.finish()
        put_pack(store, name, b"".join(parts))
    name, parts = builder.finish()
    put_pack(store, name, b"".join(parts))
    return store, content


@pytest.mark.parametrize("lie", ["chunk", "recipe"])
def test_what_is_well_formed_and_not_the_file_is_never_written(lie: str, tmp_path: Path) -> None:
    """Every checksum is right; the hash of the file is not."""
    store, content = lying_store(lie)
    got, failed = get(store, column([content]), np.array([30]), tmp_path / "out")
    assert got == {} and isinstance(failed[0], Corrupt)
    with pytest.raises(Corrupt):
        list(iter_file(StoreContent(store), FileId(b3(content)), 30, subject="it"))


def test_files_that_are_not_here_are_named_and_the_others_arrive(tmp_path: Path) -> None:
    store = Store(MemoryBackend())
    contents = [noise(i, 100) for i in range(4)]
    add(store, contents[:3])
    sizes = sizes_of(contents)
    sizes[1] += 1  # a size that is not that of the id is another file
    got, failed = get(store, column(contents), sizes, tmp_path / "out", names=["a", "b", "c", "d"])
    assert got == {0: contents[0], 2: contents[2]}
    assert {i: (type(e), e.subject) for i, e in failed.items()} == {1: (DataMissing, "b"), 3: (DataMissing, "d")}


def test_what_another_process_added_meanwhile_is_found(tmp_path: Path) -> None:
    store = Store(MemoryBackend())
    ids, _ = add(store, [b"old"])
    late = [noise("late", 3 * MIB), b"late"]
    late_ids, _ = add(Store(store.backend), late)
    got, failed = get(store, np.concatenate([ids, late_ids]), sizes_of([b"old", *late]), tmp_path / "out")
    assert not failed and got == dict(enumerate([b"old", *late]))


def test_an_answer_that_is_cut_short_once_is_asked_for_again(tmp_path: Path) -> None:
    faults = FaultBackend(MemoryBackend())
    contents = [noise(i, 2000) for i in range(30)]
    ids, _ = add(Store(faults), contents)
    store = Store(faults)
    store.refresh()
    assert store.has_chunks(ids).all()
    faults.short_reads(prefix="p/")
    got, failed = get(store, ids, sizes_of(contents), tmp_path / "out")
    assert not failed and got == dict(enumerate(contents))


@pytest.mark.parametrize("wanted", [1, 30])
def test_an_answer_that_is_wrong_once_is_asked_for_again(wanted: int, tmp_path: Path) -> None:
    """Whether the block is read whole, and verified at once, or of a block as it is only a part."""

    class Wrong(MemoryBackend):
        left = 0

        def get_range(self, key: str, offset: int, length: int) -> bytes:
            data = super().get_range(key, offset, length)
            if key.startswith("p/") and self.left:
                self.left -= 1
                return data[:-1] + bytes([data[-1] ^ 1])
            return data

    backend = Wrong()
    contents = [noise(i, 2000) for i in range(30)]
    ids, _ = add(Store(backend), contents)
    store = Store(backend)
    assert store.has_chunks(ids).all()
    backend.left = 1
    got, failed = get(store, ids[:wanted], sizes_of(contents[:wanted]), tmp_path / "out")
    assert not backend.left
    assert not failed and got == dict(enumerate(contents[:wanted]))


def test_a_pack_that_the_disk_cannot_read_fails_its_files_alone(tmp_path: Path) -> None:
    faults = FaultBackend(MemoryBackend())
    lost = [noise("big", 9 * MIB), noise("small", 3000)]
    kept = [noise(i, 3000) for i in range(5)]
    add(Store(faults), lost)
    (key,) = keys(faults, "p/")
    add(Store(faults), kept)
    contents = lost + kept
    store = Store(faults)
    assert store.has_chunks(column(contents)).sum() == 6
    faults.fail("get_range", error=lambda: StorageError("i/o error", subject="disk"), forever=True, prefix=key)
    got, failed = get(store, column(contents), sizes_of(contents), tmp_path / "out")
    assert got == {i: c for i, c in enumerate(contents) if i >= 2}
    assert {i: type(e) for i, e in failed.items()} == {0: StorageError, 1: StorageError}


@pytest.mark.parametrize("size", [3000, 9 * MIB])
def test_a_remote_that_is_gone_ends_the_run_at_once(size: int, tmp_path: Path) -> None:
    """Each request that finds out may wait for its whole deadline."""
    faults = FaultBackend(MemoryBackend())
    contents = [noise(i, size) for i in range(6)]
    ids, _ = add(Store(faults), contents)
    store = Store(faults)
    assert store.holds(ids, sizes_of(contents)).all()
    faults.fail("get_range", error=lambda: RemoteUnreachable("no answer"), forever=True, prefix="p/")
    before = faults.operations
    with pytest.raises(RemoteUnreachable):
        get(store, ids, sizes_of(contents), tmp_path / "out")
    assert faults.operations - before < 12
    assert Folder(tmp_path / "out").read() == {} and not threads()


# ---------------------------------------------------------------- sinks that fail


class Stubborn(Folder):
    """A sink that refuses some files at some step."""

    def __init__(self, path: Path, step: str, bad: set[int], error: Callable[[], BaseException]) -> None:
        super().__init__(path)
        self.step, self.bad, self.error = step, bad, error

    def create(self, index: int) -> int:
        if self.step == "create" and index in self.bad:
            raise self.error()
        return super().create(index)

    def finish(self, index: int, fd: int) -> None:
        if self.step == "finish" and index in self.bad:
            super().discard(index, fd)
            raise self.error()
        super().finish(index, fd)


def mixture() -> tuple[Store, list[bytes], Any]:
    store = Store(MemoryBackend())
    contents = [words(i, 5000) for i in range(30)] + [noise("big", 9 * MIB), b"", noise("big 2", 10 * MIB)]
    ids, _ = add(store, contents)
    return store, contents, ids


@pytest.mark.parametrize("step", ["create", "finish"])
def test_a_file_that_the_sink_refuses_fails_alone(step: str, tmp_path: Path) -> None:
    store, contents, ids = mixture()
    bad = {3, 30, 31}
    sink = Stubborn(tmp_path / "out", step, bad, lambda: Refused("somebody's file is in the way", subject="it"))
    failed = dict(restore(StoreContent(store), ids, sizes_of(contents), sink))
    assert {i: type(e) for i, e in failed.items()} == dict.fromkeys(bad, Refused)
    assert sink.read() == {i: c for i, c in enumerate(contents) if i not in bad}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [StorageFull("no space left"), KeyboardInterrupt(), OSError("odd")], ids=repr)
@pytest.mark.parametrize("step", ["create", "finish"])
@pytest.mark.parametrize("at", [3, 30])
def test_what_concerns_all_files_ends_the_run(step: str, at: int, error: BaseException, tmp_path: Path) -> None:
    """No thread stays, no temporary file stays, and what was finished is whole."""
    store, contents, ids = mixture()
    sink = Stubborn(tmp_path / "out", step, {at}, lambda: error)
    with pytest.raises(type(error)):
        restore(StoreContent(store), ids, sizes_of(contents), sink)
    assert not threads()
    assert all(contents[i] == data for i, data in sink.read().items())
    assert sink.created == sink.finished + sink.discarded


class Full(Folder):
    """A sink on a disk that is full from the first byte of some files on."""

    def __init__(self, path: Path, bad: set[int]) -> None:
        super().__init__(path)
        self.bad = bad

    def create(self, index: int) -> int:
        if index not in self.bad:
            return super().create(index)
        os.close(super().create(index))
        return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("bad", [{5}, {30}, {0, 1, 2, 3}, {29, 32}])
def test_a_full_disk_leaves_nothing_half_finished(bad: set[int], tmp_path: Path) -> None:
    store, contents, ids = mixture()
    sink = Full(tmp_path / "out", bad)
    with pytest.raises(StorageFull) as caught:
        restore(StoreContent(store), ids, sizes_of(contents), sink, names=[f"n{i}" for i in range(33)])
    assert caught.value.subject in {f"n{i}" for i in bad}
    assert all(contents[i] == data for i, data in sink.read().items())
    assert sink.created == sink.finished + sink.discarded
    assert not threads()
    got, failed = get(store, ids, sizes_of(contents), tmp_path / "again")
    assert not failed and got == dict(enumerate(contents))


LIMITED = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from storekit import Folder, add, noise
from dvk.backend.memory import MemoryBackend
from dvk.errors import StorageError
from dvk.store.content import StoreContent
from dvk.store.placement import plan_ranges, read_blocks, read_parts
from dvk.store.restore import readable, restore
from dvk.store.store import Store
import numpy as np

store = Store(MemoryBackend())
contents = [noise(1, 1000), noise(2, 3 << 20), noise(3, 9 << 20)]
ids, _ = add(store, contents)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
sink = Folder(Path(sys.argv[1]))
try:
    restore(StoreContent(store), ids, np.array([len(c) for c in contents]), sink)
except StorageError as error:
    print("storage error:", error.kind)
assert sink.created == sink.finished + sink.discarded
assert sink.read() in ({}, {0: contents[0]})
"""


def test_a_limit_on_the_size_of_files_is_a_storage_error(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "out"), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert out.stdout == "storage error: storage\n"


# ---------------------------------------------------------------- reading little


class Watched(MemoryBackend):
    """Remembers how much was read at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[str, int]] = []

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self.ranges.append((key, length))
        return super().get_range(key, offset, length)


def test_neighbours_are_read_together(tmp_path: Path) -> None:
    backend = Watched()
    contents = [noise(i, 8000) for i in range(800)]
    ids, _ = add(Store(backend), contents)
    store = Store(backend)
    assert store.has_chunks(ids).all()
    backend.ranges = []
    got, failed = get(store, ids, sizes_of(contents), tmp_path / "out")
    assert not failed and got == dict(enumerate(contents))
    assert len([r for r in backend.ranges if r[0].startswith("p/")]) < 10
    assert sum(n for _, n in backend.ranges) < 1.3 * sum(map(len, contents))


def test_files_that_lie_far_apart_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One small file of each of many blocks, and a file whose chunks lie in as many: a few blocks at a time."""
    store = Store(MemoryBackend())
    blocks = [[noise((b, c), 30_000) for c in range(30)] for b in range(120)]
    for b in range(0, 120, 10):
        name, data = make_pack([c for block in blocks[b : b + 10] for c in block], label=b, per_block=30)
        put_pack(store, name, data)
    scattered = b"".join(block[7] for block in blocks)
    page = format_page(
        ListKind.RECIPE, 0, Chunks(column([block[7] for block in blocks]), np.full(120, 30_000, np.uint32))
    )
    pages = PackBuilder(PackKind.PAGES)
    root = page_id(ListKind.RECIPE, page)
    pages.add_block(0, page, len(page), ids=root, lengths=np.array([len(page)], np.uint32))
    pages.add_recipe(RecipeRow(b3(scattered), root, len(scattered), "cdc-64k"))
    name, parts = pages.finish()
    put_pack(store, name, b"".join(parts))
    asked: list[int] = []

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def count(backend: Backend, where: Any, wanted: Any) -> Any:
            asked.append(len(wanted))
            return read(backend, where, wanted)

        return count

    monkeypatch.setattr(restore_module, "read_parts", counted(restore_module.read_parts))
    monkeypatch.setattr(stream_module, "read_blocks", counted(stream_module.read_blocks))
    contents = [block[3] for block in blocks] + [scattered]
    got, failed = get(store, column(contents), sizes_of(contents), tmp_path / "out")
    assert not failed and got == dict(enumerate(contents))
    assert max(asked) <= 17


def test_of_blocks_that_are_stored_as_they_are_little_more_is_read_than_is_wanted(tmp_path: Path) -> None:
    """One small file of each of many blocks, two neighbours of another; what is damaged beside them costs nothing."""
    backend = Watched()
    backend.capabilities = replace(backend.capabilities, gap_bytes=4096)  # as on a disk
    store = Store(backend)
    small = [noise(i, 20_000) for i in range(1100)]
    ids, _ = add(store, small)
    placed = store.place(Chunks(ids, sizes_of(small).astype(np.uint32)))
    assert (placed.blocks.codec == RAW).all()
    order = np.lexsort((placed.offset, placed.block))
    of_block = [rows for b in np.unique(placed.block) if len(rows := order[placed.block[order] == b]) > 40]
    chosen = [int(rows[11]) for rows in of_block[1:]] + of_block[0][12:14].tolist()
    backend.ranges = []
    wanted = [small[i] for i in chosen]
    got, failed = get(store, column(wanted), sizes_of(wanted), tmp_path / "out")
    assert not failed and got == dict(enumerate(wanted))
    assert sum(n for key, n in backend.ranges if key.startswith("p/")) == sum(map(len, wanted))
    for i in (int(of_block[1][12]), chosen[3]):
        b = int(placed.block[i])
        data = bytearray(backend.get(placed.blocks.key(b), max_bytes=1 << 30))
        data[int(placed.blocks.offset[b]) + BLOCK_HEADER.size + int(placed.offset[i]) + 5] ^= 1
        backend.put(placed.blocks.key(b), [bytes(data)])
    got, failed = get(store, column(wanted), sizes_of(wanted), tmp_path / "again")
    assert got == {i: c for i, c in enumerate(wanted) if i != 3}
    assert [type(e) for e in failed.values()] == [Corrupt]


def test_a_part_between_two_whole_blocks_costs_no_request() -> None:
    backend = Watched()
    store = Store(backend)
    small = [noise(i, 20_000) for i in range(200)]
    ids, _ = add(store, small)
    placed = store.place(Chunks(ids, sizes_of(small).astype(np.uint32)))
    blocks = placed.blocks
    order = sorted(range(3), key=lambda b: int(blocks.offset[b]))
    assert (blocks.pack == blocks.pack[0]).all() and (blocks.codec == RAW).all()
    whole = read_blocks(backend, blocks, order)
    backend.ranges = []
    first, part, last = order
    wanted = {first: (0, int(blocks.raw_len[first])), part: (100, 5000), last: (0, int(blocks.raw_len[last]))}
    got = read_parts(backend, blocks, wanted)
    assert len(backend.ranges) == 1
    assert {b: (p.begin, p.data) for b, p in got.items()} == {
        first: (0, whole[first]),
        part: (100, whole[part][100:5000]),
        last: (0, whole[last]),
    }


def test_parts_of_blocks_take_no_more_requests_of_a_server_than_whole_blocks() -> None:
    """Each costs as much there as a block: one file at the beginning of a block, the next at the end of another."""
    backend = Watched()
    store = Store(backend)
    small = [noise(i, 20_000) for i in range(700)]
    ids, _ = add(store, small)
    placed = store.place(Chunks(ids, sizes_of(small).astype(np.uint32)))
    blocks = placed.blocks
    by_offset = sorted(range(len(blocks)), key=lambda b: (int(blocks.pack[b]), int(blocks.offset[b])))
    raw = {b: int(blocks.raw_len[b]) for b in by_offset}
    wanted = {b: (0, 20_000) if n % 2 else (raw[b] - 20_000, raw[b]) for n, b in enumerate(by_offset)}
    whole = read_blocks(backend, blocks, by_offset)
    for few in (wanted, {b: wanted[b] for b in by_offset[::3]}, {by_offset[2]: wanted[by_offset[2]]}):
        backend.ranges = []
        got = read_parts(backend, blocks, few)
        assert all(got[b].data == whole[b][begin:end] for b, (begin, end) in few.items())
        before = list(plan_ranges(blocks, few))
        assert len(backend.ranges) == len(before)
        assert sum(n for _, n in backend.ranges) < sum(r.length for r in before)
    assert backend.ranges[0][1] == 20_000


def test_files_of_several_placements_are_kept_apart(tmp_path: Path) -> None:
    """As a remote gives them: a table of blocks for each leaf, numbers that mean something there alone."""
    store = Store(MemoryBackend())
    contents = [noise(i, 3000 + i) for i in range(60)] + [noise("big", 9 * MIB), noise("big 2", 9 * MIB)]
    for c in contents:
        add(store, [c])
    ids = column(contents)

    class Apart:
        backend = store.backend

        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            whole = StoreContent(store)
            parts = [whole.contents(ids[i : i + 3], sizes[i : i + 3]) for i in range(0, len(ids), 3)]
            return [c for part in parts for c in part]

    sink = Folder(tmp_path / "out")
    assert restore(Apart(), ids, sizes_of(contents), sink) == []
    assert sink.read() == dict(enumerate(contents))


def test_a_placement_that_leads_beyond_a_block_fails_its_file_alone(tmp_path: Path) -> None:
    store = Store(MemoryBackend())
    contents = [noise(i, 3000) for i in range(4)]
    ids, _ = add(store, contents)

    class Hostile(StoreContent):
        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            found = super().contents(ids, sizes)
            assert found[2] is not None
            found[2].placement.offset[found[2].first] = 1_000_000
            return found

    sink = Folder(tmp_path / "out")
    failed = restore(Hostile(store), ids, sizes_of(contents), sink)
    assert [(i, type(e)) for i, e in failed] == [(2, Corrupt)]
    assert sink.read() == {i: contents[i] for i in (0, 1, 3)}


def test_whatever_a_placement_says_only_right_bytes_are_written(tmp_path: Path) -> None:
    """Numbers of blocks that lie: blocks as they are that are not, that overlap, that lie elsewhere or nowhere."""
    store = Store(MemoryBackend())
    contents = (
        [noise(i, 3000 + i) for i in range(200)] + [words(i, 5000 + i) for i in range(300)] + [noise("m", 3 * MIB)]
    )
    add(store, contents)
    rng = np.random.default_rng(seed := 46)
    print("seed", seed)
    arrived = 0

    class Hostile(StoreContent):
        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            found = super().contents(ids, sizes)
            assert found[0] is not None
            b = found[0].placement.blocks
            columns = {name: getattr(b, name).copy() for name in ("offset", "packed_len", "raw_len", "codec")}
            for _ in range(rng.integers(1, 4)):
                i, j = rng.integers(0, len(b), 2)
                name = rng.choice([*columns, "as it is"])
                if name == "as it is":
                    columns["codec"][i] = RAW
                    columns["packed_len"][i] = columns["raw_len"][i]
                elif rng.random() < 0.5:
                    columns[name][i] = columns[name][j]
                else:
                    top = {"offset": 1 << 33, "codec": 9}.get(str(name), MIB + 1)
                    columns[name][i] = rng.integers(0, top)
            lying = replace(found[0].placement, blocks=replace(b, **columns))
            return [c and replace(c, placement=lying) for c in found]

    for n in range(60):
        chosen = rng.choice(len(contents), int(rng.integers(1, 40)), replace=False).tolist()
        wanted = [contents[i] for i in chosen]
        sink = Folder(tmp_path / str(n))
        failed = dict(restore(Hostile(store), column(wanted), sizes_of(wanted), sink))
        assert all(isinstance(e, (FormatError, DataMissing)) for e in failed.values())
        assert sink.read() == {i: c for i, c in enumerate(wanted) if i not in failed}
        arrived += len(wanted) - len(failed)
    assert arrived > 300


# ---------------------------------------------------------------- a big file


def test_a_big_file_of_another_length_than_stated_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its hash would be right, and with room set aside it would end in zeros."""
    store = Store(MemoryBackend())
    content = noise("big", 9 * MIB)
    ids, _ = add(store, [content])
    monkeypatch.setattr(restore_module, "reserve", lambda fd, size: os.truncate(fd, size) is None)

    class Hostile(StoreContent):
        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            return super().contents(ids, sizes - 4096)

    sink = Folder(tmp_path / "out")
    failed = restore(Hostile(store), ids, sizes_of([content]) + 4096, sink)
    assert [(i, type(e)) for i, e in failed] == [(0, Corrupt)]
    assert sink.read() == {}


@pytest.mark.parametrize("has_room", [True, False])
def test_a_big_file_with_room_set_aside_is_on_its_way_to_the_disk_before_it_gets_its_name(
    has_room: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ext4 does not see to that when the file replaces another, as it does without that room."""
    store = Store(MemoryBackend())
    content = noise("big", 70 * MIB)
    ids, _ = add(store, [content])
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(restore_module, "reserve", lambda _fd, _size: has_room)
    monkeypatch.setattr(restore_module, "begin_writeback", lambda _fd, at, length: begun.append((at, at + length)))

    class Sink(Folder):
        def finish(self, index: int, fd: int) -> None:
            self.begun = sorted(begun)
            super().finish(index, fd)

    sink = Sink(tmp_path / "out")
    assert restore(StoreContent(store), ids, sizes_of([content]), sink) == []
    assert [a for a, _ in sink.begun] == [0, *(b for _, b in sink.begun[:-1])]
    assert (sink.begun[-1][1] == len(content)) is has_room


# ---------------------------------------------------------------- a file as a stream


@pytest.mark.parametrize("size", [0, 1, 100_000, 5 * MIB, 12 * MIB])
def test_a_file_is_streamed_in_order(size: int) -> None:
    store = Store(MemoryBackend())
    content = noise(size, size)
    add(store, [content])
    pieces = list(iter_file(StoreContent(store), FileId(b3(content)), size, subject="it"))
    assert b"".join(pieces) == content
    assert all(len(p) <= 64 * 192 * 1024 for p in pieces)


def test_a_stream_gives_no_byte_that_is_not_proven() -> None:
    store = Store(MemoryBackend())
    content = noise("s", 12 * MIB)
    add(store, [content])
    chunks = store.chunks_of(FileId(b3(content)), len(content))
    assert chunks is not None
    start = int(chunks.lengths[:100].sum())
    damage(store, content[start : start + int(chunks.lengths[100])])
    got = b""
    with pytest.raises(DvkError):
        for piece in iter_file(StoreContent(store), FileId(b3(content)), len(content), subject="it"):
            got += piece
    assert 0 < len(got) < len(content) and content.startswith(got)


def test_a_stream_of_what_is_not_here_is_missing() -> None:
    with pytest.raises(DataMissing) as caught:
        next(iter_file(StoreContent(Store(MemoryBackend())), FileId(bytes(32)), 5, subject="it"))
    assert caught.value.subject == "it"
