"""Writing: each new chunk is stored once, nothing is promised early, and no failure hangs or is forgotten."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from storekit import add, b3, column, keys, noise, words

from dvk.backend.contract import Buffer
from dvk.backend.memory import MemoryBackend
from dvk.errors import StorageFull
from dvk.ids import PackId, PageId
from dvk.store import pack, packwriter
from dvk.store.pack import Footer, PackKind, RecipeRow, parse_footer_of
from dvk.store.packwriter import PackWriter
from dvk.store.pages import Chunks, ListKind, format_page, page_id
from dvk.store.store import Store, as_column
from dvk.store.writer import Writer
from dvk.testing.faults import FaultBackend


def small_packs(monkeypatch: pytest.MonkeyPatch, size: int = 100_000) -> None:
    monkeypatch.setattr(pack, "TARGET_PACK_BYTES", size)


def threads() -> list[str]:
    """Ours that still run, but for those of files that some other test left open."""
    ours = (t.name for t in threading.enumerate() if t.name.startswith("dvk-"))
    return [name for name in ours if not name.startswith("dvk-blocks")]


class Slow(MemoryBackend):
    """A medium that takes its time for packs, and says how many it was given at once."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now, self.most = seconds, 0, 0
        self._counting = threading.Lock()

    def put(self, key: str, parts: Any, *, create_only: bool = False) -> None:
        with self._counting:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self._counting:
            self.now -= 1
        super().put(key, parts, create_only=create_only)


def test_chunks_come_back_from_where_they_were_written() -> None:
    store = Store(MemoryBackend())
    chunks = [words(i, 1000 * i + 1) for i in range(60)]
    with Writer(store) as writer:
        raw = b"".join(chunks)
        writer.add_chunks([b3(c) for c in chunks], [len(c) for c in chunks], memoryview(raw))
        assert not Store(store.backend).has_chunks(column(chunks)).any(), "nothing is promised before flush"
        writer.flush()
    for s in (store, Store(store.backend)):
        assert s.has_chunks(column(chunks)).all()
    assert writer.written.new_chunks == 60 and writer.written.new_bytes == len(raw)
    stored = sum(x.size_bytes for x in store.backend.list("p/"))
    assert writer.written.stored_bytes == stored < len(raw)


def test_a_chunk_is_stored_once_whoever_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads bring the same chunks while packs are being published around them."""
    small_packs(monkeypatch, 20_000)
    store = Store(MemoryBackend())
    chunks = [noise(i, 4000) for i in range(200)]
    names = [b3(c) for c in chunks]
    with Writer(store) as writer:

        def bring(order: int) -> None:
            rng = np.random.default_rng(order)
            for i in rng.permutation(len(chunks)).tolist():
                writer.add_chunks([names[i]], [4000], memoryview(chunks[i]))

        workers = [threading.Thread(target=bring, args=(n,)) for n in range(8)]
        for t in workers:
            t.start()
        for t in workers:
            t.join(60)
        writer.flush()
    assert writer.written.new_chunks == 200
    held = [
        i.tobytes()
        for key in keys(store.backend, "p/")
        for i in parse_footer_of(store.backend.get(key, max_bytes=1 << 30)).ids
    ]
    assert len(held) == 200 and set(held) == set(names)


def test_a_second_writer_finds_everything_known() -> None:
    store = Store(MemoryBackend())
    contents = [words(i, 5000) for i in range(20)] + [noise("big", 3_000_000)]
    add(store, contents)
    before = keys(store.backend)
    _, written = add(Store(store.backend), contents)
    assert (written.new_chunks, written.new_bytes, written.stored_bytes) == (0, 0, 0)
    assert keys(store.backend) == before


def test_a_dry_run_says_what_would_be_stored_and_stores_nothing() -> None:
    chunks = [words(i, 70_000) for i in range(40)]
    raw = memoryview(b"".join(chunks))
    told = []
    for dry_run in (True, False):
        store = Store(MemoryBackend())
        with Writer(store, dry_run=dry_run) as writer:
            for _ in range(2):
                writer.add_chunks([b3(c) for c in chunks], [len(c) for c in chunks], raw)
            writer.flush()
        told.append((writer.written.new_chunks, writer.written.new_bytes, writer.written.stored_bytes))
        assert bool(keys(store.backend)) is not dry_run
    assert told[0] == told[1]


def test_blocks_do_not_span_tracked_paths() -> None:
    store = Store(MemoryBackend())
    with Writer(store) as writer:
        for path in range(3):
            writer.add_chunks([b3(b"%d" % path)], [1], memoryview(b"%d" % path))
            writer.end_of_path()
        writer.flush()
    (key,) = keys(store.backend, "p/")
    assert parse_footer_of(store.backend.get(key, max_bytes=1 << 20)).chunk_count.tolist() == [1, 1, 1]


def test_chunks_that_are_not_neighbours_make_whole_blocks() -> None:
    """Every other chunk is known: the new ones are joined into blocks of about a megabyte."""
    store = Store(MemoryBackend())
    chunks = [noise(i, 100_000) for i in range(40)]
    with Writer(store) as writer:
        writer.add_chunks([b3(c) for c in chunks[::2]], [100_000] * 20, memoryview(b"".join(chunks[::2])))
        writer.flush()
    with Writer(store) as writer:
        assert writer.add_chunks([b3(c) for c in chunks], [100_000] * 40, memoryview(b"".join(chunks))) == 2_000_000
        writer.flush()
    for key in keys(store.backend, "p/"):
        footer = parse_footer_of(store.backend.get(key, max_bytes=1 << 30))
        assert footer.chunk_count.tolist() == [10, 10]
    assert store.has_chunks(column(chunks)).all()


def test_a_chunk_that_fits_no_block_is_refused() -> None:
    with Writer(Store(MemoryBackend())) as writer, pytest.raises(ValueError, match="fits no block"):
        writer.add_chunks([bytes(32)], [2 << 20], memoryview(bytes(2 << 20)))


def test_what_was_given_back_may_be_brought_again() -> None:
    store = Store(MemoryBackend())
    chunk = b"chunk"
    with Writer(store) as writer:
        assert writer.choose_new([b3(chunk)], column([chunk])) == [0]
        assert writer.choose_new([b3(chunk)], column([chunk])) == []
        writer.give_back([b3(chunk)])
        assert writer.add_chunks([b3(chunk)], [5], memoryview(chunk)) == 5
        writer.flush()
    assert store.has_chunks(column([chunk])).all()


def test_a_look_up_that_fails_claims_nothing() -> None:
    faults = FaultBackend(MemoryBackend())
    add(Store(faults), [b"old"])
    store = Store(faults)
    with Writer(store) as writer:
        faults.fail("list", error=lambda: StorageFull("no"))
        with pytest.raises(StorageFull):
            writer.choose_new([b3(b"x")], column([b"x"]))
        assert writer.choose_new([b3(b"x")], column([b"x"])) == [0]


def test_the_rows_of_the_same_file_are_written_once_and_after_their_pages() -> None:
    store = Store(MemoryBackend())
    listed = Chunks(column([b"a", b"b"]), np.array([1, 1], np.uint32))
    page = format_page(ListKind.RECIPE, 0, listed)
    root = page_id(ListKind.RECIPE, page)
    row = RecipeRow(b3(b"ab"), root, 2, "cdc-64k")
    for _ in range(2):
        with Writer(store) as writer:
            for _ in range(3):
                writer.add_page(root, page)
                writer.add_recipe(row)
            writer.flush()
    (key,) = keys(store.backend, "m/")
    footer = parse_footer_of(store.backend.get(key, max_bytes=1 << 20))
    assert (len(footer.ids), len(footer.recipes)) == (1, 1)
    assert store.find_recipes(as_column([row.file])) == [row]


def test_data_is_durable_before_the_pages_that_speak_of_it() -> None:
    class Ordered(MemoryBackend):
        puts: list[str] = []

        def put(self, key: str, parts: Any, *, create_only: bool = False) -> None:
            if key.startswith("p/"):
                time.sleep(0.05)
            super().put(key, parts, create_only=create_only)
            self.puts.append(key[:2])

    add(Store(Ordered()), [noise("big", 3_000_000)])
    assert Ordered.puts == ["dv", "p/", "m/", "i/"]


# ---------------------------------------------------------------- failing and slow media


def test_memory_stays_bounded_behind_a_slow_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads bring chunks, at most the packs in flight and one more are held."""
    small_packs(monkeypatch)
    backend = Slow(0.01)
    held, most = [0], [0]
    real = packwriter.PackBuilder

    class Counted(real):  # type: ignore[misc, valid-type]
        def add_block(self, *args: Any, **settings: Any) -> int:
            if self.kind is PackKind.DATA and self.empty:
                held[0] += 1
                most[0] = max(most[0], held[0])
            return super().add_block(*args, **settings)

        def finish(self) -> Any:
            out = super().finish()
            held[0] -= 1
            return out

    monkeypatch.setattr(packwriter, "PackBuilder", Counted)
    store = Store(backend)
    with Writer(store) as writer:

        def bring(label: int) -> None:
            for i in range(25):
                chunk = noise((label, i), 40_000)
                writer.add_chunks([b3(chunk)], [40_000], memoryview(chunk))

        workers = [threading.Thread(target=bring, args=(n,)) for n in range(8)]
        for t in workers:
            t.start()
        for t in workers:
            t.join(60)
            assert not t.is_alive()
        writer.flush()
    assert backend.most == 1
    assert most[0] <= 1 + 2
    assert writer.written.new_chunks == 200
    assert not threads()


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_failed_put_ends_the_writer_and_frees_every_thread(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Threads that wait for a slot get the error too; a second flush does not pretend."""
    small_packs(monkeypatch)
    faults = FaultBackend(Slow(0.005))
    store = Store(faults)
    store.create()
    faults.fail("put", error=lambda: StorageFull("no space left"), at=at, prefix="p/")
    raised: list[BaseException] = []

    def bring(writer: Writer, label: int) -> None:
        try:
            for i in range(50):
                chunk = noise((label, i), 90_000)
                writer.add_chunks([b3(chunk)], [90_000], memoryview(chunk))
        except StorageFull as error:
            raised.append(error)

    with pytest.raises(StorageFull), Writer(store) as writer:
        workers = [threading.Thread(target=bring, args=(writer, n)) for n in range(6)]
        for t in workers:
            t.start()
        for t in workers:
            t.join(30)
            assert not t.is_alive()
        with pytest.raises(StorageFull):
            writer.flush()
        writer.flush()
    assert len(raised) == 6
    assert not threads()


def test_a_pack_writer_that_is_left_by_an_error_leaves_no_thread() -> None:
    release = threading.Event()

    def put(kind: PackKind, name: PackId, parts: list[Buffer]) -> None:
        release.wait(5)

    def published(kind: PackKind, name: PackId, footer: Footer) -> None:
        pass

    with pytest.raises(KeyboardInterrupt), PackWriter(put, published) as writer:
        writer.add_page(PageId(bytes(32)), b"page")
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt
    assert not threads()


def test_an_error_of_whoever_is_told_counts_as_one_of_the_pack() -> None:
    def published(kind: PackKind, name: PackId, footer: Footer) -> None:
        raise RuntimeError("told")

    with pytest.raises(RuntimeError, match="told"), PackWriter(lambda k, n, p: None, published) as writer:
        writer.add_page(PageId(bytes(32)), b"page")
        writer.flush()
