"""Reuse of an older version: the same bytes with it and without it, whatever the old file holds, and little decoded."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storekit import Folder, add, column, mutate, noise, words

from dvk.backend.disk import WRITE_BYTES
from dvk.backend.memory import MemoryBackend
from dvk.errors import DvkError, StorageFull
from dvk.ids import FileId
from dvk.store import reuse as reuse_module
from dvk.store import stream as stream_module
from dvk.store.content import StoreContent
from dvk.store.pages import Chunks
from dvk.store.restore import restore
from dvk.store.reuse import Old, OldChanged, Reuse, find_shared
from dvk.store.store import Store

MIB = 1 << 20
SIZE = 5 * MIB  # more chunks than a small file may have


class Both(Folder):
    """A sink whose files can be read as well, as `WorkTree` has them."""

    def create(self, index: int) -> int:
        os.close(super().create(index))
        return os.open(self.path / f"{index}.tmp", os.O_RDWR)


def store_of(*contents: bytes) -> tuple[Store, Any]:
    store = Store(MemoryBackend())
    ids = [add(store, [c])[0] for c in contents]
    return store, np.concatenate(ids)


class Given:
    """Hands out an old file by number and remembers its descriptors."""

    def __init__(self, store: Store, folder: Path, said: bytes, there: bytes | None = None) -> None:
        """`said` is the version that the store knows, `there` what the file really holds."""
        self.path = folder / "old"
        self.path.write_bytes(said if there is None else there)
        chunks = store.chunks_of(FileId(column([said])[0].tobytes()), len(said))
        assert chunks is not None
        self.chunks, self.fds = chunks, list[int]()

    def __call__(self, _index: int) -> Old:
        self.fds.append(os.open(self.path, os.O_RDONLY))
        return Old(self.fds[-1], self.chunks)

    def all_closed(self) -> bool:
        for fd in self.fds:
            try:
                os.fstat(fd)
            except OSError:
                continue
            return False
        return True


def written(
    store: Store, new: bytes, folder: Path, find_old: Callable[[int], Old | None] | None
) -> tuple[dict[int, bytes], list[tuple[int, DvkError]]]:
    """Restore one file; what arrived, and the errors."""
    sink = Both(folder)
    ids = column([new])
    failed = restore(StoreContent(store), ids, np.array([len(new)], np.int64), sink, find_old=find_old)
    return sink.read(), failed


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each part asked for."""
    out: list[int] = []
    real = stream_module.read_blocks

    def counted(backend: Any, blocks: Any, wanted: Any) -> dict[int, bytes]:
        out.append(len(wanted))
        return real(backend, blocks, wanted)

    monkeypatch.setattr(stream_module, "read_blocks", counted)
    return out


# ---------------------------------------------------------------- which chunks


@given(
    st.lists(st.integers(0, 12), max_size=30),
    st.lists(st.integers(0, 12), max_size=30),
)
def test_shared_chunks_are_found_where_they_lie(new: list[int], old: list[int]) -> None:
    """Also those that occur more than once: any place will do."""

    def chunks(labels: list[int]) -> Chunks:
        return Chunks(column([bytes([x]) for x in labels]), np.array([x + 1 for x in labels], np.uint32))

    places: dict[int, set[int]] = {}
    at = 0
    for label in old:
        places.setdefault(label, set()).add(at)
        at += label + 1
    found = find_shared(chunks(new), chunks(old)).tolist()
    assert [x in places.get(label, {-1}) for label, x in zip(new, found, strict=True)] == [True] * len(new)


def test_a_chunk_of_another_length_is_another_chunk() -> None:
    ids = column([b"a", b"b"])
    new, old = Chunks(ids, np.array([5, 6], np.uint32)), Chunks(ids, np.array([5, 7], np.uint32))
    assert find_shared(new, old).tolist() == [0, -1]


# ---------------------------------------------------------------- the same bytes


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, SIZE), st.sampled_from([0, 1, 70_000, 900_000]), st.binary(max_size=40)), max_size=6
    ),
    spoiled=st.lists(
        st.tuples(st.integers(0, SIZE), st.sampled_from([0, 1, 5000, 3 * MIB]), st.binary(max_size=9)), max_size=2
    ),
    compresses=st.booleans(),
)
def test_random_edits_give_the_same_bytes(
    edits: list[tuple[int, int, bytes]],
    spoiled: list[tuple[int, int, bytes]],
    compresses: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """With the old file, without it, and with one that was changed, cut or lengthened behind our back."""
    tmp_path = tmp_path_factory.mktemp("reuse")
    old = words("old", SIZE) if compresses else noise("old", SIZE)
    new = mutate(old, edits)
    store, _ = store_of(old, new)
    for n, there in enumerate((old, mutate(old, spoiled), None)):
        given_ = Given(store, tmp_path, old, there) if there is not None else None
        got, failed = written(store, new, tmp_path / f"out{n}", given_)
        assert got == {0: new} and failed == []
        assert given_ is None or given_.all_closed()


def edited(old: bytes) -> bytes:
    """A cell changed, some rows in, some out, some appended."""
    third = len(old) // 3
    return old[:third] + b"inserted" + old[third : 2 * third] + old[2 * third + 999 :] + noise("end", 30_000)


@pytest.mark.parametrize("what", ["the file", "nothing", "half of it", "one other byte", "something longer"])
def test_what_the_old_file_holds_costs_time_and_never_bytes(what: str, tmp_path: Path, decoded: list[int]) -> None:
    old = noise("old", 12 * MIB)
    new = edited(old)
    there = {
        "the file": old,
        "nothing": b"",
        "half of it": old[: len(old) // 2],
        "one other byte": old[:1000] + bytes([old[1000] ^ 1]) + old[1001:],
        "something longer": old + b"x",
    }[what]
    store, _ = store_of(old, new)
    given_ = Given(store, tmp_path, old, there)
    got, failed = written(store, new, tmp_path / "out", given_)
    assert got == {0: new} and failed == [] and given_.all_closed()
    if what in ("the file", "something longer"):
        assert sum(decoded) <= 3
    else:
        assert sum(decoded) >= 12


def test_what_both_versions_have_needs_no_block_of_the_store(tmp_path: Path) -> None:
    """Even where the store's copy of it is damaged."""
    old = noise("old", 12 * MIB)
    new = edited(old)
    backend = MemoryBackend()
    add(Store(backend), [old])
    for item in list(backend.list("p/")):
        data = bytearray(backend.get(item.key, max_bytes=1 << 30))
        data[6 * MIB] ^= 1
        backend.put(item.key, [bytes(data)])
    add(Store(backend), [new])
    store = Store(backend)
    got, failed = written(store, new, tmp_path / "with", Given(store, tmp_path, old))
    assert got == {0: new} and failed == []
    got, failed = written(store, new, tmp_path / "without", None)
    assert got == {} and len(failed) == 1


def test_a_file_that_changes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise("old", 40 * MIB)
    new = edited(old)
    store, _ = store_of(old, new)
    for n, change in enumerate((lambda p: os.truncate(p, MIB), lambda p: p.write_bytes(bytes(len(old))))):
        given_ = Given(store, tmp_path, old)
        calls = []
        real = Reuse.take

        def take(self: Reuse, *arguments: Any, real: Any = real, calls: Any = calls, change: Any = change) -> None:
            calls.append(None)
            if len(calls) == 3:
                change(tmp_path / "old")
            real(self, *arguments)

        monkeypatch.setattr(Reuse, "take", take)
        got, failed = written(store, new, tmp_path / f"out{n}", given_)
        monkeypatch.setattr(Reuse, "take", real)
        assert got == {0: new} and failed == [] and given_.all_closed()


def test_many_scattered_chunks(tmp_path: Path) -> None:
    """Every other chunk is new, and the old ones come in another order, some of them twice."""
    pieces = [noise(i, 50_000) for i in range(200)]
    old = b"".join(pieces)
    source = random.Random(5)
    new = b"".join(pieces[source.randrange(200)] + noise(("new", i), 20_000) for i in range(200))
    store, _ = store_of(old, new)
    got, failed = written(store, new, tmp_path / "out", Given(store, tmp_path, old))
    assert got == {0: new} and failed == []


# ---------------------------------------------------------------- filesystems


def sharing(monkeypatch: pytest.MonkeyPatch, *, lie: bool = False) -> list[tuple[int, int, int]]:
    """A filesystem that can share blocks of 4 KiB; returns what was shared: offsets in old and new, length."""
    shared: list[tuple[int, int, int]] = []
    lock = threading.Lock()

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        assert request == reuse_module._FICLONERANGE
        source, at, length, to = reuse_module._CLONE_RANGE.unpack(argument)
        if at % 4096 or length % 4096 or to % 4096 or not length or at + length > os.fstat(source).st_size:
            raise OSError(errno.EINVAL, "not whole blocks")
        data = os.pread(source, length, at)
        assert len(data) == length
        os.pwrite(fd, bytes(length) if lie else data, to)
        with lock:
            shared.append((at, to, length))
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(reuse_module, "_CAN_SHARE", True)
    return shared


def in_place(old: bytes) -> bytes:
    """As a tensor that was trained further: the same length, a range in the middle replaced."""
    return old[: 4 * MIB] + noise("tuned", MIB) + old[5 * MIB :]


def test_blocks_are_shared_where_the_filesystem_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise("old", 12 * MIB)
    new = in_place(old)
    store, _ = store_of(old, new)
    shared = sharing(monkeypatch)
    got, failed = written(store, new, tmp_path / "out", Given(store, tmp_path, old))
    assert got == {0: new} and failed == []
    assert sum(length for _, _, length in shared) > 10 * MIB


def test_what_is_shared_is_hashed_as_the_new_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise("old", 12 * MIB)
    new = in_place(old)
    store, _ = store_of(old, new)
    shared = sharing(monkeypatch, lie=True)
    got, failed = written(store, new, tmp_path / "out", Given(store, tmp_path, old))
    assert shared
    assert got == {0: new} and failed == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM])
def test_a_filesystem_that_cannot_share_is_asked_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    asked = []

    def ioctl(*_arguments: object) -> int:
        asked.append(None)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    old = noise("old", 12 * MIB)
    new = in_place(old)
    store, _ = store_of(old, new)
    got, failed = written(store, new, tmp_path / "out", Given(store, tmp_path, old))
    assert got == {0: new} and failed == []
    assert len(asked) <= (os.cpu_count() or 1) and sum(decoded) <= 4


def test_without_positions_that_fit_nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = noise("old", 12 * MIB)
    new = b"x" + old
    store, _ = store_of(old, new)
    shared = sharing(monkeypatch)
    got, failed = written(store, new, tmp_path / "out", Given(store, tmp_path, old))
    assert got == {0: new} and failed == [] and shared == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_while_copying_ends_the_run(tmp_path: Path) -> None:
    old = noise("old", 12 * MIB)
    new = edited(old)
    store, _ = store_of(old, new)
    given_ = Given(store, tmp_path, old)

    class Full(Both):
        def create(self, index: int) -> int:
            os.close(super().create(index))
            return os.open("/dev/full", os.O_RDWR)

    sink = Full(tmp_path / "out")
    with pytest.raises(StorageFull):
        restore(StoreContent(store), column([new]), np.array([len(new)], np.int64), sink, find_old=given_)
    assert sink.read() == {} and given_.all_closed()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("dvk-")]


def test_an_old_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(bytes(2 * WRITE_BYTES))
    out = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    blind = os.open(path, os.O_WRONLY)
    try:
        reuse = Reuse(Old(blind, Chunks.join([])), out, subject="new")
        with pytest.raises(OldChanged):
            reuse.take(Chunks.join([]), 0, 0, memoryview(bytearray(1000)))
    finally:
        os.close(blind)
        os.close(out)
