"""Ingest: what is recorded is what was read, whatever its size; what cannot be read is named, and nothing hangs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import PROFILE, Bytes, Paths, add, b3, column, get, keys, noise, words

from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.memory import MemoryBackend
from dvk.errors import ChangedWhileRead, DvkError, NotFound, StorageError, StorageFull
from dvk.events import Progress
from dvk.ids import EMPTY_FILE
from dvk.store import ingest as ingest_module
from dvk.store import pack
from dvk.store.chunker import Cutter
from dvk.store.ingest import ingest
from dvk.store.store import Store
from dvk.store.writer import Writer
from dvk.testing.faults import FaultBackend

KIB, MIB = 1024, 1 << 20
#: Around every border of the pipeline: chunk sizes, block, small-file limit, buffer, restore task.
BORDERS = sorted({0, 1, *(n + d for n in (32 * KIB, 192 * KIB, MIB, 4 * MIB, 8 * MIB) for d in (-1, 0, 1)), 9 * MIB})


@pytest.fixture(params=["memory", "local"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return MemoryBackend() if request.param == "memory" else LocalBackend(str(tmp_path / "store"))


def threads() -> list[str]:
    """Ours that still run, but for those of files that some other test left open."""
    ours = (t.name for t in threading.enumerate() if t.name.startswith("dvk-"))
    return [name for name in ours if not name.startswith("dvk-blocks")]


def sizes_of(contents: list[bytes]) -> Any:
    return np.array([len(c) for c in contents], np.int64)


def round_trip(store: Store, contents: list[bytes], tmp_path: Path) -> None:
    """Everything comes back from a fresh look at the store, and a second ingest finds nothing new."""
    ids, _ = add(store, contents)
    assert [i.tobytes() for i in ids] == [b3(c) for c in contents]
    fresh = Store(store.backend)
    got, failed = get(fresh, ids, sizes_of(contents), tmp_path / f"out-{time.monotonic_ns()}")
    assert not failed
    assert got == dict(enumerate(contents))
    again, written = add(fresh, contents)
    assert np.array_equal(again, ids)
    assert (written.new_bytes, written.stored_bytes) == (0, 0)
    assert fresh.holds(ids, sizes_of(contents)).all()
    assert not threads()


# ---------------------------------------------------------------- round trips


def test_files_of_every_size_come_back(backend: Backend, tmp_path: Path) -> None:
    """One after the other in one ingest: noise, text and zeros around every border, and nine megabytes that repeat."""
    contents = [noise(n, n) for n in BORDERS] + [words(n, n) for n in BORDERS[::4]]
    contents += [bytes(n) for n in BORDERS[::3]] + [noise("dup", 3 * MIB) * 3]
    round_trip(Store(backend), contents, tmp_path)


def test_many_small_files_come_back(backend: Backend, tmp_path: Path) -> None:
    rng = random.Random(1)
    contents = [words(i, rng.randrange(0, 3000)) for i in range(1500)]
    contents += [contents[rng.randrange(1500)] for _ in range(300)] + [b""] * 10
    contents += [noise(i, rng.randrange(30_000, 250_000)) for i in range(40)]
    rng.shuffle(contents)
    round_trip(Store(backend), contents, tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 40_000, 300_000, MIB, MIB + 1, 5 * MIB]), st.integers(0, 3)), max_size=8
    )
)
def test_any_mixture_of_files_comes_back(files: list[tuple[int, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        round_trip(Store(MemoryBackend()), [noise(k, n) for n, k in files], Path(folder))


def test_the_chunks_of_a_file_are_those_of_the_profile(backend: Backend) -> None:
    """Not those of the buffers that it was read in, nor of the path it took as a small or a big file."""
    cutter = Cutter(PROFILE)
    for n in (100_000, MIB, MIB + 1, 9 * MIB + 5):
        content = noise("cuts", n)
        store = Store(backend)
        ids, _ = add(store, [content])
        chunks = store.chunks_of(ids[0].tobytes(), n)
        assert chunks is not None
        expected = cutter.feed(memoryview(content), final=True).tolist()
        assert chunks.lengths.tolist() == expected
        ends = np.cumsum(expected).tolist()
        assert [i.tobytes() for i in chunks.ids] == [b3(content[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def test_identical_files_are_stored_once(backend: Backend) -> None:
    contents = [noise("same", 500_000)] * 40 + [noise("big", 2 * MIB)] * 3
    ids, written = add(Store(backend), contents)
    assert written.new_bytes == 500_000 + 2 * MIB
    assert len({i.tobytes() for i in ids}) == 2


def test_content_that_repeats_inside_a_file_is_stored_once(backend: Backend) -> None:
    _, written = add(Store(backend), [noise("part", 3 * MIB) * 3])
    assert written.new_bytes < 3 * MIB + 2 * 192 * KIB + 1


def test_an_inserted_byte_stores_little(backend: Backend) -> None:
    content = noise("v1", 6 * MIB)
    store = Store(backend)
    add(store, [content])
    _, written = add(store, [content[: 3 * MIB] + b"!" + content[3 * MIB :]])
    assert 0 < written.new_bytes < 500_000


def test_files_of_one_chunk_need_no_recipe(backend: Backend) -> None:
    add(Store(backend), [noise(i, 30 * KIB) for i in range(20)])
    assert not keys(backend, "m/")


def test_a_dry_run_gives_the_same_ids_and_leaves_nothing(backend: Backend) -> None:
    contents = [noise(n, n) for n in (5, 100_000, 3 * MIB)]
    store = Store(backend)
    source = Bytes(contents)
    with Writer(store, dry_run=True) as writer:
        ids = ingest(writer, source, source.sizes, profile=PROFILE)
        writer.flush()
    assert [i.tobytes() for i in ids] == [b3(c) for c in contents]
    assert writer.written.new_bytes == sum(map(len, contents))
    assert keys(backend) == []


def test_no_files_are_no_trouble(backend: Backend) -> None:
    ids, written = add(Store(backend), [])
    assert ids.shape == (0, 32) and written.new_chunks == 0
    assert keys(backend) == ["dvk.json"]


def test_progress_ends_with_everything_done() -> None:
    contents = [b"", b"x", noise(1, 100_000), noise(2, 3 * MIB)]
    events: list[Any] = []
    add(Store(MemoryBackend()), contents, on_event=events.append)
    last = max((e for e in events if isinstance(e, Progress)), key=lambda e: (e.done_bytes, e.done_items))
    assert (last.done_bytes, last.total_bytes) == (sum(map(len, contents)),) * 2
    assert (last.done_items, last.total_items) == (4, 4)


# ---------------------------------------------------------------- files that do not hold still


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


CHANGES: dict[str, Callable[[Path], Any]] = {
    "grows": lambda p: p.open("ab").write(b"more"),
    "grows by much": lambda p: os.truncate(p, 20 * MIB),
    "shrinks": lambda p: os.truncate(p, p.stat().st_size // 2),
    "is rewritten": lambda p: p.write_bytes(noise("other", p.stat().st_size)),
}


@pytest.mark.parametrize(
    ("change", "size"),
    [(c, n) for c in CHANGES for n in (0, 10, 100_000, MIB, 3 * MIB, 4 * MIB, 9 * MIB) if n or "grows" in c],
)
def test_a_file_that_changes_while_it_is_read_is_named(change: str, size: int, tmp_path: Path) -> None:
    """Its neighbours are read, nothing is recorded, and the next run succeeds."""
    paths = [write(tmp_path / "before", b"1"), write(tmp_path / "it", noise(1, size)), write(tmp_path / "after", b"2")]

    def on_open(i: int, path: Path) -> None:
        if i == 1:
            CHANGES[change](path)

    source = Paths(paths, on_open=on_open)
    store = Store(MemoryBackend())
    with pytest.raises(ChangedWhileRead) as caught, Writer(store) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE)
    assert caught.value.subject == "it"
    quiet = Paths(paths)
    with Writer(store) as writer:
        ids = ingest(writer, quiet, quiet.sizes, profile=PROFILE)
        writer.flush()
    assert [i.tobytes() for i in ids] == [b3(p.read_bytes()) for p in paths]


def test_reads_that_give_less_than_was_asked_for_let_no_byte_of_another_file_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers are used again and never cleared, so each holds other files; network filesystems read short."""
    preadv, count = os.preadv, itertools.count()

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        room = len(buffers[0])
        return preadv(fd, [buffers[0][: room if room < 2 or next(count) % 3 else room * 2 // 3]], offset)

    sizes = [5, 70_000, 3 * MIB, 200_000, 5 * MIB, 900_000, 4 * MIB, 12 * MIB, 1] * 2
    paths = [write(tmp_path / f"f{i:02}", noise(i, n)) for i, n in enumerate(sizes)]
    source = Paths(paths)
    store = Store(MemoryBackend())
    monkeypatch.setattr(os, "preadv", short)
    with Writer(store) as writer:
        ids = ingest(writer, source, source.sizes, profile=PROFILE, workers=1)
        writer.flush()
    monkeypatch.undo()
    assert [i.tobytes() for i in ids] == [b3(p.read_bytes()) for p in paths]
    got, failed = get(store, ids, source.sizes, tmp_path / "out")
    assert not failed and got == {i: p.read_bytes() for i, p in enumerate(paths)}


def test_every_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Small ones, big ones and empty ones, gone or changed, in one error; more big ones than there are buffers."""
    paths = [write(tmp_path / f"f{i:02}", noise(i, n)) for i, n in enumerate([0, 5, 100_000, 2 * MIB] * 8)]
    bad = {f"f{i:02}" for i in range(32) if i % 3}

    def on_open(i: int, path: Path) -> None:
        if path.name in bad:
            path.open("ab").write(b"x")

    source = Paths(paths, on_open=on_open)
    paths[30].unlink()
    bad.add("f30")
    with pytest.raises(DvkError) as caught, Writer(Store(MemoryBackend())) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE)
    assert {e.subject for e in caught.value.failures} == bad
    assert {type(e) for e in caught.value.failures} == {ChangedWhileRead, NotFound}
    assert not threads()


class Failing(Bytes):
    """Files whose reading fails with an I/O error: descriptors of a directory."""

    def open(self, i: int) -> int:
        return os.open("/", os.O_RDONLY) if i % 2 else super().open(i)


@pytest.mark.timeout(60)
def test_files_whose_reading_fails_take_no_buffer_with_them() -> None:
    """There are few buffers; if each failure kept one, the reader would wait for ever."""
    contents = [noise(i, 2 * MIB if i % 4 else 10) for i in range(60)]
    source = Failing(contents)
    with pytest.raises(StorageError) as caught, Writer(Store(MemoryBackend())) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE, workers=2)
    assert [e.subject for e in caught.value.failures] == [f"file-{i}" for i in range(1, 60, 2)]
    assert not threads()


def test_a_file_that_vanishes_before_the_last_look_is_named_like_the_others() -> None:
    class Vanishing(Bytes):
        def recheck(self, i: int, fd: int) -> None:
            if i in (1, 3):
                raise NotFound("it vanished", subject=self.show(i))

    source = Vanishing([b"a", b"b", noise(1, 2 * MIB), noise(2, 2 * MIB)])
    with pytest.raises(NotFound) as caught, Writer(Store(MemoryBackend())) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE)
    assert [e.subject for e in caught.value.failures] == ["file-1", "file-3"]


def test_too_many_failures_end_the_run_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_module, "_MAX_PROBLEMS", 5)

    class Bad(Bytes):
        opened = 0

        def open(self, i: int) -> int:
            Bad.opened += 1
            raise StorageError("cannot be read", subject=self.show(i))

    source = Bad([b"x"] * 100)
    with pytest.raises(StorageError, match="too many") as caught, Writer(Store(MemoryBackend())) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE)
    assert len(caught.value.failures) == Bad.opened == 5


def test_something_that_reports_no_bytes_and_has_some_is_refused() -> None:
    class Pseudo(Bytes):
        def open(self, i: int) -> int:
            return os.open("/proc/self/status", os.O_RDONLY)

    if not os.path.exists("/proc/self/status"):
        pytest.skip("needs /proc")
    source = Pseudo([b""])
    with pytest.raises(ChangedWhileRead), Writer(Store(MemoryBackend())) as writer:
        ingest(writer, source, source.sizes, profile=PROFILE)


# ---------------------------------------------------------------- stores that fail


def full() -> StorageFull:
    return StorageFull("no space left")


@pytest.mark.timeout(120)
def test_whichever_write_fails_the_same_ingest_succeeds_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For every put of the run: the error comes out, no thread stays, and the next run is whole."""
    monkeypatch.setattr(pack, "TARGET_PACK_BYTES", 400_000)
    contents = [noise(i, n) for i, n in enumerate([10, 70_000, 200_000, MIB, 2 * MIB, 0])]
    counting = FaultBackend(MemoryBackend())
    add(Store(counting), contents)
    puts = len(keys(counting))
    assert puts > 6
    for lost in (False, True):
        for n in range(1, puts + 1):
            faults = FaultBackend(MemoryBackend())
            faults.fail("put", error=full, at=n, lost_reply=lost)
            with pytest.raises(StorageFull):
                add(Store(faults), contents)
            assert not threads()
            faults.heal()
            ids, _ = add(Store(faults), contents)
            got, failed = get(Store(faults), ids, sizes_of(contents), tmp_path / f"{lost}{n}")
            assert not failed and got == dict(enumerate(contents))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("operation", ["stat", "get_range", "list", "get"])
def test_a_look_up_that_fails_ends_the_run_and_frees_every_thread(operation: Any) -> None:
    inner = MemoryBackend()
    contents = [noise(i, 200_000) for i in range(30)] + [noise("big", 9 * MIB)]
    add(Store(inner), contents[::2])
    faults = FaultBackend(inner)
    faults.fail(operation, error=lambda: StorageError("broken", subject="the store"), forever=True)
    with pytest.raises(StorageError, match="broken"):
        add(Store(faults), contents)
    assert not threads()


@pytest.mark.timeout(60)
def test_a_store_that_fills_up_under_many_big_files_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer is in use and every slot taken when the error comes."""
    monkeypatch.setattr(pack, "TARGET_PACK_BYTES", MIB)
    faults = FaultBackend(MemoryBackend())
    faults.fail("put", error=full, at=3, forever=True, prefix="p/")
    with pytest.raises(StorageFull):
        add(Store(faults), [noise(i, 6 * MIB) for i in range(8)], workers=4)
    assert not threads()


def test_an_interrupt_leaves_no_thread_and_a_usable_store(tmp_path: Path) -> None:
    store = Store(LocalBackend(str(tmp_path / "store")))
    contents = [noise(i, 300_000) for i in range(20)]

    def on_event(event: Any) -> None:
        if isinstance(event, Progress) and event.done_bytes > MIB:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(store, contents, on_event=on_event)
    assert not threads()
    round_trip(Store(store.backend), contents, tmp_path)


# ---------------------------------------------------------------- a real kill

CHILD = """
import sys
sys.path.insert(0, sys.argv[3])
from storekit import add, noise
from dvk.backend.local import LocalBackend
from dvk.store import pack
from dvk.store.store import Store
pack.TARGET_PACK_BYTES = 300_000
store = Store(LocalBackend(sys.argv[1]))
print("ready", flush=True)
for part in range(int(sys.argv[2])):
    add(store, [noise((part, i), 20_000 * i) for i in range(12)])
print("done", flush=True)
"""


@pytest.mark.timeout(120)
def test_a_writer_that_is_killed_leaves_a_store_that_works(tmp_path: Path) -> None:
    """SIGKILL at ten moments: what has a final name is whole, the store opens, and the same run succeeds."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    root = tmp_path / "store"
    parts = 6
    here = str(Path(__file__).parent)
    finished = 0
    for _ in range(10):
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(root), str(parts), here], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
            finished += "done" in child.stdout.read()
        backend = LocalBackend(str(root))
        for item in backend.list(""):
            if item.key[:2] in ("p/", "m/"):
                assert b3(backend.get(item.key, max_bytes=1 << 30)).hex() == item.key[-64:]
        store = Store(backend)
        store.has_chunks(column([b"x"]))
        assert not store.damaged
        backend.close()
    store = Store(LocalBackend(str(root)))
    for part in range(parts):
        contents = [noise((part, i), 20_000 * i) for i in range(12)]
        ids, _ = add(store, contents)
        got, failed = get(store, ids, sizes_of(contents), tmp_path / f"out{part}")
        assert not failed and got == dict(enumerate(contents))
    assert finished < 10, "no run was killed before its end"


# ---------------------------------------------------------------- memory

MEMORY = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from storekit import PROFILE, Folder, Paths
from pathlib import Path
from dvk.backend.local import LocalBackend
from dvk.store.ingest import ingest
from dvk.store.content import StoreContent
from dvk.store.restore import restore
from dvk.store.store import Store
from dvk.store.writer import Writer

def peak():
    if os.path.exists("/proc/self/status"):  # what getrusage says there begins with the memory of the parent
        lines = open("/proc/self/status").read().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale

before = peak()
top = Path(sys.argv[1])
source = Paths([top / "big"])
store = Store(LocalBackend(str(top / "store")))
with Writer(store) as writer:
    ids = ingest(writer, source, source.sizes, profile=PROFILE)
    writer.flush()
added = peak()
sink = Folder(top / "out")
assert not restore(StoreContent(store), ids, source.sizes, sink)
print(before, added, peak())
"""


@pytest.mark.timeout(120)
def test_memory_does_not_follow_the_size_of_a_file(tmp_path: Path) -> None:
    """300 MB in and out: under 400 MB resident, of which less than 250 MB are the work's."""
    with (tmp_path / "big").open("wb") as file:
        for i in range(22):
            file.write(noise(i, 10 * MIB))
            file.seek(4 * MIB, os.SEEK_CUR)
        file.truncate(300 * MIB)
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    before, added, restored = map(int, out.stdout.split())
    print(f"import {before >> 20} MiB, add {added >> 20} MiB, restore {restored >> 20} MiB")
    assert restored < 400 * 1000**2
    assert restored - before < 250 * 1000**2
    with (tmp_path / "big").open("rb") as one, (tmp_path / "out" / "0").open("rb") as two:
        while piece := one.read(MIB):
            assert two.read(MIB) == piece
        assert not two.read(1)


def test_the_id_of_an_empty_file_is_that_of_no_bytes() -> None:
    ids, _ = add(Store(MemoryBackend()), [b""])
    assert ids[0].tobytes() == EMPTY_FILE == b3(b"")


@pytest.mark.parametrize("again", ["refresh", "look_again"])
def test_what_the_index_says_of_a_pack_that_is_gone_is_known_however_often_one_looks(
    backend: Backend, again: str
) -> None:
    """Else a version that lost its pack would pass for one that was never here."""
    ids, _ = add(Store(backend), [noise("lost", 5 * KIB)])
    (gone,) = [key for key in keys(backend) if key.startswith("p/")]
    backend.delete(gone)
    store = Store(backend)
    for _ in range(3):
        getattr(store, again)()
        assert [name.hex() for name in store.vanished] == [gone[-64:]]
        assert store.knew(ids).all()
    add(store, [noise("lost", 5 * KIB)])
    getattr(store, again)()
    assert store.knew(ids).all() and store.has_chunks(ids).all()
