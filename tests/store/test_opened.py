"""A version at random access: any range is the file's bytes, each read decodes and moves only what it touches."""

from __future__ import annotations

import functools
import io
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import add, b3, keys, noise
from synckit import Around, add_file, dvk_error, new_store, send, small_packs, small_pages

from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.errors import Corrupt, DataMissing, RemoteUnreachable
from dvk.store.block_reader import BlockCache
from dvk.store.content import Content, StoreContent
from dvk.store.opened import Opened
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.root import FILE, Root
from dvk.store.store import Store
from dvk.testing.faults import FaultBackend
from dvk.testing.s3server import S3Address

MIB = 1 << 20


@functools.cache
def table(label: str, size: int) -> bytes:
    """Half of it shrinks, half does not."""
    rng = np.random.default_rng(list(label.encode()))
    pieces = (rng.integers(48, 58, 300_000, np.uint8).tobytes() if i % 2 else rng.bytes(300_000) for i in range(999))
    return b"".join(itertools.islice(pieces, size // 300_000 + 1))[:size]


def stored(store: Store, data: bytes, **more: Any) -> Opened:
    add(store, [data])
    return Opened(StoreContent(store), b3(data), len(data), label="data.bin at v1", name=b"data.bin", **more)


def from_remote(backend: Backend, root: Root, **more: Any) -> Opened:
    """As a clone that holds nothing opens it."""
    remote = Store(backend)
    content = RemoteContent(remote)
    with Resolver(remote) as resolver:
        for part in resolver.resolve(root):
            content.add(part)
    return Opened(content, root.id, root.size, label="data.bin at v1", name=b"data.bin", **more)


@pytest.fixture(scope="module")
def big() -> tuple[bytes, Opened]:
    data = table("big", 12 * MIB)
    return data, stored(Store(MemoryBackend()), data, cache_bytes=3 * MIB)


# ---------------------------------------------------------------- exact


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_range_is_the_bytes_of_the_file(big: tuple[bytes, Opened], data: st.DataObject) -> None:
    content, version = big
    offset = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, min(len(content) - offset, data.draw(st.sampled_from([9, 5000, 4 * MIB])))))
    assert version.read_at(offset, length) == content[offset : offset + length]
    buffer = bytearray(length + 3)
    assert version.readinto(offset, buffer) == min(length + 3, len(content) - offset)
    assert buffer[:length] == content[offset : offset + length]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), max_size=60),
    repeats=st.booleans(),
    cache=st.sampled_from([1, 300, 4096]),
    reads=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 6000)), max_size=12),
)
def test_files_of_odd_chunks(lengths: list[int], repeats: bool, cache: int, reads: list[tuple[int, int]]) -> None:
    """Chunks that occur twice, blocks that hold some of them, caches that hold nothing."""
    pieces = [noise(i % 5 if repeats else i, n) for i, n in enumerate(lengths)]
    content = b"".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        small_packs(patch, 1500)
        store = new_store()
        root = add_file(store, pieces)
        with Opened(StoreContent(store), root.id, root.size, label="x", cache_bytes=cache) as version:
            for a, b in reads:
                low, high = sorted((a % (len(content) + 1), b % (len(content) + 1)))
                assert version.read_at(low, high - low) == content[low:high]
            assert version.read_at(0, len(content)) == content


def test_many_threads_get_their_bytes_and_share_blocks(tmp_path: Path) -> None:
    data = table("threads", 8 * MIB)
    counting = CountingBackend(LocalBackend(str(tmp_path / "store")))
    version = stored(Store(counting), data)
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                offset = int(rng.integers(0, len(data)))
                length = min(int(rng.integers(0, 400_000)), len(data) - offset)
                if version.read_at(offset, length) != data[offset : offset + length]:
                    wrong.append(offset)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert version.bytes_read == len(data)  # each block once
    version.close()


def test_reading_on_and_on_decodes_each_block_once(tmp_path: Path) -> None:
    data = table("stream", 30 * MIB)
    version = stored(Store(LocalBackend(str(tmp_path / "store"))), data, cache_bytes=12 * MIB)
    out = io.BytesIO()
    with version.file() as file:
        while piece := file.read(100_000):
            out.write(piece)
    assert out.getvalue() == data
    assert version.bytes_read <= len(data) + 2 * MIB


def test_what_it_says_of_itself() -> None:
    data = table("facts", 3 * MIB)
    version = stored(Store(MemoryBackend()), data)
    assert (version.size, version.id, version.label, version.name) == (
        len(data),
        b3(data),
        "data.bin at v1",
        b"data.bin",
    )
    assert version.path is None and version.proven and version.bytes_read == version.requests == 0
    assert version.chunks().total_bytes == len(data)
    for offset, length in ((-1, 1), (0, -1), (len(data), 1), (0, len(data) + 1)):
        with pytest.raises(ValueError):
            version.read_at(offset, length)
    version.close()
    version.close()
    with pytest.raises(ValueError):
        version.read_at(0, 1)


def test_nothing_and_one_chunk() -> None:
    store = Store(MemoryBackend())
    for data in (b"", b"x", noise(1, 20_000)):
        version = stored(store, data)
        assert version.read_at(0, len(data)) == data == version.file().read()
        assert version.proven
        version.prove()


def test_a_file_object_is_a_file() -> None:
    data = table("file", 3 * MIB)
    version = stored(Store(MemoryBackend()), data)
    file = version.file()
    assert file.readable() and file.seekable() and not file.writable() and file.name == "data.bin at v1"
    assert file.seek(-7, io.SEEK_END) == len(data) - 7 and file.read() == data[-7:] and file.read(5) == b""
    assert file.seek(10) == 10 and file.seek(5, io.SEEK_CUR) == 15 and file.tell() == 15
    assert file.read(3) == data[15:18] and version.file().read(3) == data[:3]
    assert file.seek(len(data) + 9) and file.read(1) == b"" and file.readinto(bytearray(4)) == 0
    buffered = io.BufferedReader(version.file(), 1 << 16)
    assert buffered.read() == data and buffered.seek(99) == 99 and buffered.read(2) == data[99:101]
    with pytest.raises(ValueError):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError):
        file.read()
    assert version.read_at(0, 2) == data[:2]


# ---------------------------------------------------------------- cost


@pytest.fixture
def pushed(tmp_path: Path) -> tuple[bytes, Root, CountingBackend]:
    data = table("remote", 20 * MIB)
    local = Store(MemoryBackend("local"))
    add(local, [data])
    root = Root(FILE, b3(data), len(data))
    remote = MemoryBackend("remote")
    send(local, Store(remote), tmp_path, root)
    return data, root, CountingBackend(remote)


def test_a_cold_block_is_one_request_and_a_warm_one_none(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    version = from_remote(counting, root)
    counting.reset()
    rng = np.random.default_rng(1)
    for at in rng.integers(0, len(data) - 4096, 40).tolist():
        first, last = np.searchsorted(version._ends, [at, at + 4095], side="right").tolist()
        cold = set(version._block[first : last + 1].tolist()) - version._reader.kept
        assert version.read_at(at, 4096) == data[at : at + 4096]
        asked = counting.reset()
        # On the border of two blocks it is one if they lie close together.
        assert bool(cold) <= asked.get_range == asked.requests <= len(cold)
        assert asked.bytes_in <= 3 * MIB + 200
        assert version.read_at(at, 4096) == data[at : at + 4096]
        assert counting.reset().requests == 0
    version.close()


def test_reading_all_of_a_remote_file_takes_few_requests(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    for size in (8192, MIB, len(data)):
        with from_remote(counting, root) as version:
            counting.reset()
            file, parts = version.file(), []
            while piece := file.read(size):
                parts.append(piece)
            assert b"".join(parts) == data
            assert counting.reset().requests == version.requests <= 16
            assert version.bytes_read == len(data)
            assert version.encoded_bytes < 0.9 * len(data)


def test_reads_that_were_announced_share_their_requests(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    with from_remote(counting, root) as version:
        counting.reset()
        ranges = [(at, 1000) for at in range(0, len(data) - 1000, len(data) // 60)]
        version.expect([*ranges, (0, 0), (len(data), 0)])
        assert [version.read_at(*part) for part in ranges] == [data[at : at + 1000] for at, _ in ranges]
        assert counting.reset().requests <= 4  # all blocks, in ranges of up to 16 MiB
        with pytest.raises(ValueError, match="20971521 of 20971520"):
            version.expect([(len(data), 1)])


def test_files_that_share_a_cache_share_blocks(tmp_path: Path) -> None:
    """Fifty small files are a block; each is proven by its own chunks."""
    store = Store(LocalBackend(str(tmp_path / "store")))
    files = [noise(i, 20_000) for i in range(40)]
    add(store, files)
    cache = BlockCache(8 * MIB)
    versions = [Opened(StoreContent(store), b3(f), len(f), label=str(i), cache=cache) for i, f in enumerate(files)]
    assert [v.read_at(0, v.size) for v in versions] == files
    assert sum(v.bytes_read for v in versions) == sum(map(len, files))
    versions[0].close()
    assert versions[1].read_at(5, 10) == files[1][5:15]  # what is shared stays
    cache.close()


def test_memory_stays_within_the_cache(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    with from_remote(counting, root, cache_bytes=2 * MIB) as version:
        assert version.read_at(0, len(data)) == data
        assert version._reader.kept_bytes <= 2 * MIB
        until = time.monotonic() + 10
        while version._cache.flying and time.monotonic() < until:
            time.sleep(0.01)  # neighbours that came with the last request are still being decoded
        assert not version._cache.flying


def test_an_s3_bucket(s3: S3Address, new_bucket: Callable[[], str], tmp_path: Path) -> None:
    data = table("s3", 6 * MIB)
    local = Store(MemoryBackend("local"))
    add(local, [data])
    root = Root(FILE, b3(data), len(data))
    backend = open_backend(f"s3://{new_bucket()}/team", settings=RemoteSettings(), environ=s3.env)
    try:
        send(local, Store(backend), tmp_path, root)
        counting = CountingBackend(backend)
        with from_remote(counting, root) as version:
            counting.reset()
            assert version.read_at(4 * MIB, 4096) == data[4 * MIB : 4 * MIB + 4096]
            assert counting.reset().requests == 1
            assert version.file().read() == data
            version.prove()
    finally:
        backend.close()


# ---------------------------------------------------------------- proof and damage


class _Liar:
    """A co-writer's word: the recipe of another file of the same size."""

    def __init__(self, store: Store, other: bytes) -> None:
        self.source, self.other = StoreContent(store), other

    @property
    def backend(self) -> Backend:
        return self.source.backend

    def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
        return self.source.contents(np.frombuffer(b3(self.other), np.uint8).reshape(1, 32), sizes)


def test_a_recipe_is_somebodys_word_until_it_is_proven(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    with from_remote(counting, root) as version:
        assert not version.proven
        version.prove()
        assert version.proven and version.bytes_read == len(data)
        version.prove()
        assert version.bytes_read == len(data)
    store = Store(MemoryBackend())
    mine, other = table("mine", 2 * MIB), table("other", 2 * MIB)
    add(store, [mine, other])
    lied = Opened(_Liar(store, other), b3(mine), len(mine), label="x at v1")
    assert not lied.proven and lied.read_at(0, 9) == other[:9]
    with pytest.raises(Corrupt) as caught:
        lied.prove()
    assert caught.value.subject == "x at v1" and not lied.proven


def test_what_is_not_here_is_named() -> None:
    with pytest.raises(DataMissing) as caught:
        Opened(StoreContent(Store(MemoryBackend())), b3(b"no"), 2, label="no.csv at HEAD")
    assert caught.value.subject == "no.csv at HEAD" and caught.value.hint


@pytest.mark.parametrize("what", ["gone", "bit", "cut"])
def test_damage_is_an_error_that_names_the_file(what: str, tmp_path: Path) -> None:
    """And only of the reads that touch it; the next read asks again."""
    backend = MemoryBackend()
    data = table("damage", 6 * MIB)
    store = Store(backend)
    version = stored(store, data)
    (key,) = keys(backend, "p/")
    whole = backend.get(key, max_bytes=1 << 30)
    blocks, last = version._reader._blocks, int(version._block[-1])
    offset, length = blocks.span(last)
    if what == "gone":
        backend.delete(key)
    elif what == "bit":
        backend.put(
            key, [whole[: offset + length - 1], bytes([whole[offset + length - 1] ^ 1]), whole[offset + length :]]
        )
    else:
        backend.put(key, [whole[: offset + 40]])
    expected = DataMissing if what == "gone" else Corrupt
    for _ in range(2):
        error = dvk_error(lambda: version.read_at(len(data) - 10, 10))
        assert type(error) is expected and error.subject == "data.bin at v1"
    if what != "gone":
        assert version.read_at(0, 100) == data[:100]
    backend.put(key, [whole])
    assert version.read_at(0, len(data)) == data


def test_a_damaged_block_does_not_fail_its_neighbours() -> None:
    """Even where they are read together with it, or read ahead."""
    backend = MemoryBackend()
    data = table("row", 8 * MIB)
    version = stored(Store(backend), data)
    (key,) = keys(backend, "p/")
    whole = backend.get(key, max_bytes=1 << 30)
    starts = version._ends - version.chunks().lengths
    offset, length = version._reader._blocks.span(int(version._block[len(starts) // 2]))
    backend.put(key, [whole[: offset + length - 1], bytes([whole[offset + length - 1] ^ 1]), whole[offset + length :]])
    bad = version._block == version._block[len(starts) // 2]
    for start, end, broken in zip(starts.tolist(), version._ends.tolist(), bad.tolist(), strict=True):
        if broken:
            assert type(dvk_error(lambda a=start, b=end: version.read_at(a, b - a))) is Corrupt
        else:
            assert version.read_at(start, end - start) == data[start:end]


def test_a_block_of_other_bytes_is_found_by_its_chunks() -> None:
    """A whole, well-formed block whose content is not what the ids say."""
    store = Store(MemoryBackend())
    mine, other = [noise(i, 40_000) for i in range(4)], [noise(-1 - i, 40_000) for i in range(4)]
    good, bad = add_file(store, mine), add_file(store, other)

    class Swapped(_Liar):
        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            chunks = store.chunks_of(good.id, good.size)  # type: ignore[arg-type]
            theirs = store.chunks_of(bad.id, bad.size)  # type: ignore[arg-type]
            assert chunks is not None and theirs is not None
            return [Content(chunks, store.place(theirs))]

    version = Opened(Swapped(store, b""), good.id, good.size, label="x", proven=True)
    for _ in range(2):
        assert type(dvk_error(lambda: version.read_at(50_000, 10))) is Corrupt


def test_a_recipe_of_another_size_is_refused() -> None:
    store = Store(MemoryBackend())
    root = add_file(store, [noise(i, 900) for i in range(3)])

    class Short(_Liar):
        def contents(self, ids: Any, sizes: Any) -> list[Content | None]:
            chunks = store.chunks_of(root.id, root.size)  # type: ignore[arg-type]
            assert chunks is not None
            return [Content(chunks.slice(0, 2), store.place(chunks))]

    assert type(dvk_error(lambda: Opened(Short(store, b""), root.id, root.size, label="x"))) is Corrupt


def test_an_error_of_the_network_is_told_and_not_kept(pushed: tuple[bytes, Root, CountingBackend]) -> None:
    data, root, counting = pushed
    faults = FaultBackend(counting)
    with from_remote(faults, root) as version:
        faults.fail("get_range", prefix="p/", error=lambda: RemoteUnreachable("cut", subject="remote"))
        assert type(dvk_error(lambda: version.read_at(0, len(data)))) is RemoteUnreachable
        assert version.read_at(0, len(data)) == data


def test_threads_that_wait_for_one_read_hear_its_error() -> None:
    data = noise("one", 20_000)
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Around):
        broken = False

        def get_range(self, key: str, offset: int, length: int) -> bytes:
            if not self.broken:
                return super().get_range(key, offset, length)
            entered.set()
            go_on.wait(10)
            raise RemoteUnreachable("cut", subject="remote")

    backend = Slow(MemoryBackend())
    version = stored(Store(backend), data)
    backend.broken = True
    heard: list[object] = []
    threads = [
        threading.Thread(target=lambda: heard.append(type(dvk_error(lambda: version.read_at(5, 5))))) for _ in range(4)
    ]
    threads[0].start()
    assert entered.wait(10)
    for t in threads[1:]:
        t.start()
    go_on.set()
    for t in threads:
        t.join(20)
    assert heard == [RemoteUnreachable] * 4
    backend.broken = False
    assert version.read_at(5, 5) == data[5:10]


def test_many_pages_and_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of several levels, from a remote of many small packs."""
    small_pages(monkeypatch)
    small_packs(monkeypatch)
    local, remote = new_store(), MemoryBackend("remote")
    pieces = [noise(i, 50 + i % 9) for i in range(300)]
    root = add_file(local, pieces)
    send(local, Store(remote), tmp_path, root)
    data = b"".join(pieces)
    with from_remote(remote, root) as version:
        for at in range(0, len(data), 977):
            assert version.read_at(at, min(100, len(data) - at)) == data[at : at + 100]
        assert version.file().read() == data
