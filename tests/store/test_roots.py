"""What a clone knows of confirmed roots, and what a remote says of records."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storekit import b3, flips

from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, StorageError
from dvk.store.record import Record, format_mark, format_record, record_id
from dvk.store.roots import ConfirmedRoots, is_live, load_record

STORE = "0" * 32
pytestmark = pytest.mark.timeout(60)


def root(i: object) -> str:
    return f"{'fd'[len(str(i)) % 2]}:{b3(str(i).encode()).hex()}"


def rid(i: object) -> bytes:
    return b3(f"record {i}".encode())


def path(tmp_path: Path) -> Path:
    return tmp_path / STORE / "confirmed"


def test_roots_are_remembered_and_forgotten(tmp_path: Path) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    assert known.read() == {}
    known.add({root(1): rid(1), root(2): rid(1)})
    known.add({root(2): rid(2), root(3): rid(2)})
    assert ConfirmedRoots(str(tmp_path), STORE).read() == {root(1): rid(1), root(2): rid(2), root(3): rid(2)}
    known.forget([root(2), root(9)])
    assert known.read() == {root(1): rid(1), root(3): rid(2)}
    assert ConfirmedRoots(str(tmp_path), "1" * 32).read() == {}


@given(st.dictionaries(st.integers(0, 50), st.integers(0, 5), max_size=20))
def test_any_roots_come_back(tmp_path_factory: pytest.TempPathFactory, given_: dict[int, int]) -> None:
    known = ConfirmedRoots(str(tmp_path_factory.mktemp("state")), STORE)
    roots = {root(k): rid(v) for k, v in given_.items()}
    known.add(roots)
    assert known.read() == roots


@pytest.mark.parametrize(
    "text", [b"", b"something else\n", b"dvk confirmed roots 2\nx\n", b"\xff\xfe", b"dvk confirmed roots 1"]
)
def test_a_damaged_list_counts_as_none_and_is_replaced(text: bytes, tmp_path: Path) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(1): rid(1)})
    path(tmp_path).write_bytes(text)
    assert known.read() == {}
    known.add({root(2): rid(2)})
    assert known.read() == {root(2): rid(2)}


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(i): rid(i) for i in range(3)})
    good = known.read()
    for cut in range(len(path(tmp_path).read_bytes())):
        path(tmp_path).write_bytes(path(tmp_path).read_bytes()[:-1])
        assert known.read().items() <= good.items(), cut


def test_nothing_is_written_when_nothing_changes(tmp_path: Path) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(1): rid(1)})
    before = os.stat(path(tmp_path))
    known.add({root(1): rid(1)})
    known.forget([root(2)])
    assert os.stat(path(tmp_path)) == before


def test_the_list_is_durable_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, then name, then folder."""
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(1): rid(1)})
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") or os.path.isdir(f"/dev/fd/{fd}") else "file")
        fsync(fd)

    def rename(a: str, b: str) -> None:
        done.append("name")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    known.add({root(2): rid(2)})
    assert done[-3:] == ["file", "name", "folder"]


def test_a_disk_that_refuses_leaves_the_old_list_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(1): rid(1)})

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(StorageError) as caught:
            known.add({root(2): rid(2)})
    assert caught.value.kind == "storage-full" and caught.value.subject and caught.value.hint
    assert known.read() == {root(1): rid(1)}
    assert os.listdir(tmp_path / STORE) == ["confirmed"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    known = ConfirmedRoots(str(tmp_path), STORE)
    known.add({root(1): rid(1)})
    (tmp_path / STORE / "confirmed.0123456789abcdef.tmp").write_bytes(b"half")
    (tmp_path / STORE / "something else").write_bytes(b"")
    known.add({root(2): rid(2)})
    assert sorted(os.listdir(tmp_path / STORE)) == ["confirmed", "something else"]


def test_a_list_that_must_not_be_read_is_an_error(tmp_path: Path) -> None:
    path(tmp_path).mkdir(parents=True)
    with pytest.raises(StorageError):
        ConfirmedRoots(str(tmp_path), STORE).read()


def _add(folder: str, worker: int) -> None:
    known = ConfirmedRoots(folder, STORE)
    for i in range(10):
        known.add({root((worker, i)): rid(worker)})
        known.forget([root((worker, i - 1))] if i % 2 else [])


def test_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn" if os.uname().sysname == "Darwin" else "fork")
    workers = [context.Process(target=_add, args=(str(tmp_path), n)) for n in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(30)
        assert w.exitcode == 0
    wanted = {root((n, i)): rid(n) for n in range(3) for i in range(1, 10, 2)}
    assert ConfirmedRoots(str(tmp_path), STORE).read() == wanted


def test_threads_at_once_lose_nothing(tmp_path: Path) -> None:
    threads = [threading.Thread(target=_add, args=(str(tmp_path), n)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert len(ConfirmedRoots(str(tmp_path), STORE).read()) == 4 * 5


# ---------------------------------------------------------------- records


def a_record() -> tuple[bytes, bytes]:
    r = Record(STORE, (root(1),), ("p/ab/ab" + "0" * 62,), (), (), 1, "dvk", "1" * 32)
    data = format_record(r)
    return data, record_id(data)


def test_a_record_is_live_when_confirmed_and_not_retired() -> None:
    remote = MemoryBackend()
    data, name = a_record()
    key = f"j/{name.hex()}"
    assert not is_live(remote, name)
    remote.put(key, [data])
    assert not is_live(remote, name)
    remote.put(key + ".ok", [format_mark(name)])
    assert is_live(remote, name)
    remote.put(key + ".x", [format_mark(name)])
    assert not is_live(remote, name)
    remote.delete(key + ".x")
    assert is_live(remote, name)
    remote.put(key + ".e", [format_mark(name)])
    assert not is_live(remote, name), "given up once, it is no base for anybody, confirmed or not"
    remote.delete(key + ".e")
    remote.delete(key)
    assert not is_live(remote, name)


def test_a_record_is_proven_by_its_id() -> None:
    remote = MemoryBackend()
    data, name = a_record()
    remote.put(f"j/{name.hex()}", [data])
    assert load_record(remote, name).roots == (root(1),)
    for i, bad in enumerate(flips(data)):
        if i % 11 == 0:
            remote.put(f"j/{name.hex()}", [bad])
            with pytest.raises(Corrupt):
                load_record(remote, name)
