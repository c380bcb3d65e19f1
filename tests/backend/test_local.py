"""The local medium: the contract suite, and what a disk can do to us."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dvk.backend import disk, local
from dvk.backend.contract import Backend, KeyExists, KeyMissing, Listed
from dvk.backend.local import LocalBackend
from dvk.errors import Corrupt, StorageError, StorageFull
from dvk.testing.backend_suite import BackendSuite, pattern, race


class TestLocal(BackendSuite):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path / "team" / "store"

    def make(self) -> Backend:
        return LocalBackend(str(self.root))

    def plant_foreign(self) -> bool:
        (self.root / "p" / "ab" / "UPPER").write_bytes(b"x")
        (self.root / "p" / "ab" / ".hidden").write_bytes(b"x")
        (self.root / "p" / "name with space").write_bytes(b"x")
        (self.root / ".git").mkdir()
        (self.root / ".git" / "config").write_bytes(b"x")
        (self.root / "outside").symlink_to(self.root.parent)
        (self.root / "p" / "link").symlink_to(self.root / "p" / "ab" / "mine")
        os.mkfifo(self.root / "p" / "pipe")
        (self.root / os.fsdecode(b"\xff\xfe")).write_bytes(b"x")
        return True


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def backend(root: Path) -> LocalBackend:
    return LocalBackend(str(root))


def temporaries(root: Path) -> list[str]:
    return sorted(os.listdir(root / "tmp")) if (root / "tmp").exists() else []


def fail(error: int) -> Callable[..., None]:
    def call(*_args: object, **_kw: object) -> None:
        raise OSError(error, os.strerror(error))

    return call


def test_a_root_that_does_not_exist_reads_as_empty_and_is_not_made(backend: LocalBackend, root: Path) -> None:
    assert list(backend.list("")) == []
    assert backend.stat("a") is None
    backend.delete("a")
    with pytest.raises(KeyMissing):
        backend.get("a", max_bytes=1)
    assert not root.exists()


def test_objects_are_read_only_and_folders_private(backend: LocalBackend, root: Path) -> None:
    backend.put("p/ab/x", [b"1"])
    modes = {n: stat.S_IMODE((root / n).stat().st_mode) for n in (".", "p", "p/ab", "p/ab/x", "tmp")}
    assert modes == {".": 0o700, "p": 0o700, "p/ab": 0o700, "p/ab/x": 0o444, "tmp": 0o700}


def test_folders_of_a_group_root_are_for_the_group_and_never_for_all(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    LocalBackend(str(root)).put("p/ab/x", [b"1"])
    assert stat.S_IMODE((root / "p" / "ab").stat().st_mode) == 0o775


def test_no_temporary_file_stays_after_success_or_failure(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("a", [b"1"])
    backend.put("b", [b"1"], create_only=True)
    with pytest.raises(KeyExists):
        backend.put("b", [b"2"], create_only=True)
    monkeypatch.setattr(os, "writev", fail(errno.EIO))
    with pytest.raises(StorageError):
        backend.put("c", [b"3"])
    assert temporaries(root) == []


@pytest.mark.parametrize("step", ["writev", "fsync", "rename"])
@pytest.mark.parametrize(
    ("code", "category"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageError),
        (errno.EACCES, StorageError),
        (errno.EIO, StorageError),
    ],
)
def test_an_error_of_the_disk_leaves_the_old_object_and_a_clear_error(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, category: type
) -> None:
    backend.put("p/x", [b"old"])
    with monkeypatch.context() as m:
        m.setattr(os, step, fail(code))
        with pytest.raises(category) as caught:
            backend.put("p/x", [b"new"])
    assert caught.value.subject == f"{root}/p/x"
    assert caught.value.hint
    assert backend.get("p/x", max_bytes=3) == b"old"
    assert temporaries(root) == []
    backend.put("p/x", [b"new"])
    assert backend.get("p/x", max_bytes=3) == b"new"


def test_short_writes_are_continued_where_they_stopped(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def short(fd: int, views: list[memoryview]) -> int:
        return real(fd, [next(v for v in views if v.nbytes)[:7]])

    monkeypatch.setattr(os, "writev", short)
    data = pattern(1000)
    backend.put("a", [data[:100], data[100:101], data[101:]])
    assert backend.get("a", max_bytes=1000) == data


def test_a_write_without_progress_ends(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "writev", lambda *_: 0)
    with pytest.raises(StorageError, match="input/output"):
        backend.put("a", [b"1"])


def test_short_reads_are_continued(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    data = pattern(1000)
    backend.put("p/x", [data])
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real(fd, min(n, 9), at))
    assert backend.get_range("p/x", 10, 900) == data[10:910]


def test_every_step_is_synced_in_order(backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary file before its new name; the new name's folder and all new folders before `put` returns."""
    events: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def name_of(fd: int) -> str:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return "file" if "/tmp/." in path.removeprefix(str(root)) else os.path.relpath(path, root)

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(name_of(fd)), real_sync(fd)))
    monkeypatch.setattr(os, "rename", lambda *a, **k: (events.append("rename"), real_rename(*a, **k)))
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    backend.put("p/ab/x", [b"1"])
    assert events == ["..", ".", "file", ".", "p", "rename", "p/ab"]
    events.clear()
    backend.put("p/ab/y", [b"1"])
    assert events == ["file", "rename", "p/ab"]


def test_a_failed_sync_is_never_repeated_on_the_same_file(
    backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.put("p/x", [b"1"])
    synced: list[int] = []

    def failing(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fsync", failing)
    for _ in range(3):
        with pytest.raises(StorageError):
            backend.put("p/y", [b"2"])
    assert len(synced) == 3
    assert backend.stat("p/y") is None


def test_stale_temporaries_are_swept_and_young_or_foreign_files_are_not(root: Path) -> None:
    (root / "tmp").mkdir(parents=True)
    old = time.time() - 3 * 86400
    for name in ("." + "a" * 32, "." + "b" * 32, "notes.txt", ".short"):
        (root / "tmp" / name).write_bytes(b"x")
        os.utime(root / "tmp" / name, (old, old))
    os.utime(root / "tmp" / ("." + "b" * 32))
    LocalBackend(str(root)).put("a", [b"1"])
    assert temporaries(root) == ["." + "b" * 32, ".short", "notes.txt"]


def test_create_only_works_without_hard_links_and_gives_up_the_promise(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert backend.capabilities.create_only
    monkeypatch.setattr(os, "link", fail(errno.EPERM))
    answers = race(8, lambda i: backend.put("j/x", [b"%d" % i], create_only=True))
    assert sum(a is None for a in answers) == 1
    assert sum(isinstance(a, KeyExists) for a in answers) == 7
    assert not backend.capabilities.create_only
    assert temporaries(root) == []


def test_a_link_whose_reply_was_lost_counts_as_ours(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(*args: object, **kw: object) -> None:
        real(*args, **kw)  # type: ignore[arg-type]
        raise FileExistsError(errno.EEXIST, "repeated by NFS")

    monkeypatch.setattr(os, "link", link)
    backend.put("j/x", [b"ours"], create_only=True)
    assert backend.get("j/x", max_bytes=10) == b"ours"


@pytest.mark.parametrize("kind", ["file", "loop", "dangling"])
def test_a_root_that_is_no_folder_is_named(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "r"
    if kind == "file":
        root.write_bytes(b"")
    else:
        root.symlink_to(root if kind == "loop" else tmp_path / "gone")
    backend = LocalBackend(str(root))
    with pytest.raises(StorageError) as caught:
        backend.put("a", [b"1"])
    assert str(root) in str(caught.value)
    if kind != "dangling":
        with pytest.raises(StorageError):
            backend.stat("a")


def test_links_below_the_root_are_never_followed(backend: LocalBackend, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"secret")
    backend.put("a", [b"1"])
    (root / "p").symlink_to(outside)
    (root / "b").symlink_to(outside / "x")
    for call in (
        lambda: backend.get("p/x", max_bytes=10),
        lambda: backend.put("p/y", [b"1"]),
        lambda: backend.delete("p/x"),
        lambda: backend.stat("p/x"),
        lambda: backend.get("b", max_bytes=10),
    ):
        with pytest.raises(StorageError):
            call()
    assert backend.stat("b") is None
    assert sorted(os.listdir(outside)) == ["x"]
    backend.put("b", [b"mine"])
    assert (outside / "x").read_bytes() == b"secret"


def test_a_fifo_in_the_place_of_an_object_does_not_hang(backend: LocalBackend, root: Path) -> None:
    backend.put("p/a", [b"1"])
    os.mkfifo(root / "p" / "f")
    with pytest.raises(StorageError, match="regular"):
        backend.get("p/f", max_bytes=1)


def test_a_relative_root_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="absolute"):
        LocalBackend("store")


def test_read_only_refuses_before_touching_anything(root: Path) -> None:
    backend = LocalBackend(str(root), read_only=True)
    with pytest.raises(StorageError, match="reading only"):
        backend.put("a", [b"1"])
    with pytest.raises(StorageError, match="reading only"):
        backend.delete("a")
    assert not root.exists()


def test_many_ranges_open_a_pack_once(backend: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put("p/ab/x", [pattern(1000)])
    opened: list[object] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: (opened.append(path), real(path, *a, **k))[1])
    for i in range(100):
        backend.get_range("p/ab/x", i, 10)
    assert opened.count("x") == 1


def test_open_packs_are_bounded_and_closed(backend: LocalBackend) -> None:
    fds = "/proc/self/fd"
    if not os.path.exists(fds):
        pytest.skip("needs /proc")
    for i in range(local._KEPT_OPEN + 40):
        backend.put(f"p/{i}", [b"x"])
    before = len(os.listdir(fds))
    for i in range(local._KEPT_OPEN + 40):
        backend.get_range(f"p/{i}", 0, 1)
    assert len(os.listdir(fds)) - before <= local._KEPT_OPEN
    backend.close()
    assert len(os.listdir(fds)) <= before


def test_a_pack_replaced_or_cut_by_another_process_is_noticed(backend: LocalBackend, root: Path) -> None:
    backend.put("p/x", [b"one"])
    assert backend.get_range("p/x", 0, 3) == b"one"
    os.chmod(root / "p/x", 0o600)
    os.truncate(root / "p/x", 2)
    with pytest.raises(Corrupt):
        backend.get_range("p/x", 0, 3)
    LocalBackend(str(root)).put("p/x", [b"two"])
    assert backend.get_range("p/x", 0, 3) == b"two"


def test_eviction_never_closes_a_file_that_is_being_read(backend: LocalBackend) -> None:
    n = local._KEPT_OPEN * 2
    contents = {f"p/{i:03d}": b"%06d" % i for i in range(n)}
    for key, data in contents.items():
        backend.put(key, [data])
    stop = time.monotonic() + 0.5

    def work(i: int) -> object:
        at = i
        while time.monotonic() < stop:
            key = f"p/{at % n:03d}"
            if backend.get_range(key, 0, 6) != contents[key]:
                return key
            at += 17
        return None

    assert race(8, work) == [None] * 8


def test_a_root_removed_underneath_is_made_again(backend: LocalBackend, root: Path) -> None:
    backend.put("p/ab/x", [b"1"])
    os.rename(root, root.with_name("moved"))
    backend.put("p/ab/y", [b"2"])
    assert list(backend.list("p/")) == [Listed("p/ab/y", 1)]


def test_a_listing_survives_concurrent_deletes_and_puts(backend: LocalBackend) -> None:
    keep = {f"p/{i:02x}/keep" for i in range(16)}
    for key in keep:
        backend.put(key, [b"1"])
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            backend.put("p/00/other", [b"1"])
            backend.delete("p/00/other")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            assert keep <= {row.key for row in backend.list("p/")}
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_an_error_and_not_a_shorter_listing(backend: LocalBackend, root: Path) -> None:
    backend.put("p/ab/x", [b"1"])
    os.chmod(root / "p", 0)
    try:
        with pytest.raises(StorageError, match="permission"):
            list(backend.list(""))
    finally:
        os.chmod(root / "p", 0o700)


def test_write_all_takes_more_parts_than_one_call_can(tmp_path: Path) -> None:
    parts = [b"%d," % i for i in range(disk._IOV_MAX * 2 + 3)]
    with open(tmp_path / "f", "wb") as f:
        assert disk.write_all(f.fileno(), parts) == sum(map(len, parts))
    assert (tmp_path / "f").read_bytes() == b"".join(parts)


DIRECT = 3 * disk._DIRECT_ALIGN


def pages(size: int) -> memoryview:
    """Memory at the start of a page, as a disk wants it."""
    memory = mmap.mmap(-1, max(size, 1))
    memory[:size] = pattern(size)
    return memoryview(memory)[:size]


@pytest.mark.parametrize("size", [DIRECT - 1, DIRECT, DIRECT + 1, 5 * DIRECT, 5 * DIRECT + 4095])
@pytest.mark.parametrize("trouble", ["none", "unaligned", "refused", "short", "full"])
def test_a_long_part_is_whole_whatever_the_disk_thinks_of_direct_writes(
    backend: LocalBackend, root: Path, monkeypatch: pytest.MonkeyPatch, size: int, trouble: str
) -> None:
    """Past the page cache, beside it, or first one and then the other: the same bytes, or the error of the disk."""
    monkeypatch.setattr(disk, "_DIRECT_FROM", DIRECT)
    monkeypatch.setattr(disk, "_DIRECT_STEP", 2 * disk._DIRECT_ALIGN)
    real, calls = os.write, 0

    def write(fd: int, view: memoryview) -> int:
        nonlocal calls
        calls += 1
        if trouble == "refused" or (trouble == "full" and calls == 2):
            raise OSError(errno.EINVAL if trouble == "refused" else errno.ENOSPC, "no")
        return real(fd, view[: -disk._DIRECT_ALIGN] if trouble == "short" else view)

    monkeypatch.setattr(os, "write", write)
    if trouble == "full":
        monkeypatch.setattr(os, "writev", fail(errno.ENOSPC))
    data = pages(size + 1)[1:] if trouble == "unaligned" else pages(size)
    parts = [data, b"footer", b"end"]
    if trouble == "full":
        with pytest.raises(StorageFull):
            backend.put("p/x", parts)
        assert backend.stat("p/x") is None
        assert temporaries(root) == []
    else:
        backend.put("p/x", parts)
        assert backend.get("p/x", max_bytes=size + 9) == b"".join(parts)
    if sys.platform == "linux" and size >= DIRECT:
        assert calls
