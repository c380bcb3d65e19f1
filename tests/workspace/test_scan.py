"""Scanning a folder: everything in it, in the order of a listing, and whatever may not be in it named."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvk.errors import ChangedWhileRead, NotFound, Refused
from dvk.store.listing import Kind
from dvk.store.paths import why_bad
from dvk.workspace.handles import DirHandles, make_dirs, open_dir, open_regular, stat_at
from dvk.workspace.scan import scan_file, scan_folder
from dvk.workspace.source import SourceFiles


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def put(top: Path, path: bytes, data: bytes = b"x") -> None:
    whole = os.fsencode(top) + b"/" + path
    os.makedirs(os.path.dirname(whole), exist_ok=True)
    with open(whole, "wb") as f:
        f.write(data)


class Rules:
    def __init__(self, match: Callable[[bytes, bool], bool]) -> None:
        self._match = match

    def ignored(self, base: bytes, keys: list[bytes], /) -> list[bytes]:
        return [k for k in keys if self._match(base + k.rstrip(b"/"), k.endswith(b"/"))]


def test_a_folder_comes_out_sorted_by_whole_path_with_kinds_and_sizes(tmp_path: Path, root: int) -> None:
    put(tmp_path, b"f/a", b"12")
    put(tmp_path, b"f/a.d/x", b"123")
    put(tmp_path, b"f/a-z", b"")
    put(tmp_path, b"f/b/c/d", b"1")
    os.chmod(tmp_path / "f/a-z", 0o755)
    (tmp_path / "f/b.empty").mkdir()
    os.symlink("a", tmp_path / "f/link")
    scan = scan_folder(root, b"f")
    assert list(scan.names) == [b"a", b"a-z", b"a.d/x", b"b.empty", b"b/c/d", b"link"]
    assert scan.kinds.tolist() == [Kind.FILE, Kind.EXEC, Kind.FILE, Kind.EMPTYDIR, Kind.FILE, Kind.LINK]
    assert scan.stats.sizes.tolist() == [2, 0, 3, 0, 1, 1]
    assert list(scan.targets) == [b"a"]
    assert scan.problems == ()
    for i, name in enumerate(scan.names):
        now = os.lstat(os.fsencode(tmp_path) + b"/f/" + name)
        size, mtime_ns, ctime_ns, inode = scan.stats.row(i)
        assert (mtime_ns, ctime_ns, inode) == (now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
        assert scan.kinds[i] == Kind.EMPTYDIR or size == now.st_size


def test_an_empty_directory_sorts_before_its_longer_siblings(tmp_path: Path, root: int) -> None:
    (tmp_path / "f/d").mkdir(parents=True)
    put(tmp_path, b"f/d-1/x", b"12345")
    put(tmp_path, b"f/d.txt", b"123")
    os.symlink("d.txt", tmp_path / "f/d.l")
    scan = scan_folder(root, b"f")
    assert list(scan.names) == [b"d", b"d-1/x", b"d.l", b"d.txt"]
    assert scan.kinds.tolist() == [Kind.EMPTYDIR, Kind.FILE, Kind.LINK, Kind.FILE]
    assert scan.stats.sizes.tolist() == [0, 5, 5, 3]
    assert list(scan.targets) == [b"d.txt"]


def test_an_empty_folder_is_no_entries(tmp_path: Path, root: int) -> None:
    (tmp_path / "f").mkdir()
    assert len(scan_folder(root, b"f")) == 0


PART = st.binary(min_size=1, max_size=3).filter(lambda b: b"\0" not in b and not why_bad(b))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.lists(PART, min_size=1, max_size=3).map(b"/".join), max_size=15))
def test_any_names_come_out_as_they_are(tmp_path: Path, paths: list[bytes]) -> None:
    """Bytes that are no UTF-8, newlines, dashes: all round trip, in order."""
    top = tmp_path / f"t{len(os.listdir(tmp_path))}"
    (top / "f").mkdir(parents=True)
    made = set()
    for path in paths:
        try:
            put(top, b"f/" + path)
        except OSError:
            continue  # a part of it is a file already
        made.add(path)
    fd = os.open(top, os.O_RDONLY)
    try:
        scan = scan_folder(fd, b"f")
    finally:
        os.close(fd)
    assert list(scan.names) == sorted(made)
    assert scan.problems == ()


def test_every_problem_is_named_not_only_the_first(tmp_path: Path, root: int) -> None:
    put(tmp_path, b"f/ok")
    put(tmp_path, b"f/sub/.git/config")
    put(tmp_path, b"f/sub/ok")
    put(tmp_path, b"f/deep/x.csv.dvk")
    put(tmp_path, b"f/.GIT/x")
    put(tmp_path, b"f/git~1")
    os.mkfifo(tmp_path / "f/pipe")
    os.symlink("/etc/passwd", tmp_path / "f/out")
    os.symlink("../../x", tmp_path / "f/sub/up")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path / "f/sock"))
    scan = scan_folder(root, b"f")
    said = "\n".join(sorted(map(str, scan.problems)))
    assert len(scan.problems) == 8, said
    for part in (
        "f/sub",
        "f/deep/x.csv.dvk",
        "f/.GIT",
        "f/git~1",
        "f/pipe: is a FIFO",
        '"out"',
        '"sub/up"',
        "socket",
    ):
        assert part in said
    assert b"ok" in list(scan.names) and b"sub/ok" in list(scan.names)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_unreadable_files_and_directories_are_all_named(tmp_path: Path, root: int) -> None:
    for name in (b"f/a", b"f/b", b"f/c", b"f/d/x"):
        put(tmp_path, name)
    os.chmod(tmp_path, 0o755)
    os.chmod(tmp_path / "f", 0o755)
    for name in ("a", "b"):
        os.chmod(tmp_path / "f" / name, 0o600)
    os.chmod(tmp_path / "f/d", 0o700)
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setuid(65534)
            scan = scan_folder(root, b"f")
            os.write(into, "\n".join(sorted(map(str, scan.problems))).encode())
        finally:
            os._exit(0)
    os.close(into)
    said = b""
    while part := os.read(out, 65536):
        said += part
    os.close(out)
    os.waitpid(pid, 0)
    assert said.decode().splitlines() == [
        "f/a: cannot be read: permission denied",
        "f/b: cannot be read: permission denied",
        "f/d: cannot be opened: permission denied",
    ]


def test_rules_leave_out_files_and_whole_directories_and_are_counted(tmp_path: Path, root: int) -> None:
    for name in (b"f/a.tmp", b"f/b", b"f/cache/1", b"f/cache/2", b"f/d/x.tmp"):
        put(tmp_path, name)
    seen: list[tuple[bytes, bool]] = []

    def match(path: bytes, is_dir: bool) -> bool:
        seen.append((path, is_dir))
        return path.endswith(b".tmp") or (is_dir and path == b"f/cache")

    scan = scan_folder(root, b"f", Rules(match))
    assert list(scan.names) == [b"b", b"d"]
    assert scan.kinds.tolist() == [Kind.FILE, Kind.EMPTYDIR]
    assert scan.ignored == 3
    assert set(scan.ignored_examples) == {b"a.tmp", b"cache", b"d/x.tmp"}
    assert (b"f/cache", True) in seen and (b"f/cache/1", False) not in seen and (b"f/d/x.tmp", False) in seen


def test_temporary_files_of_killed_runs_are_no_entries(tmp_path: Path, root: int) -> None:
    leftover = b"d/.dvk-" + b"0a" * 16 + b".tmp"
    put(tmp_path, b"f/" + leftover)
    put(tmp_path, b"f/d/.dvk-notes")
    scan = scan_folder(root, b"f")
    assert list(scan.names) == [b"d/.dvk-notes"]
    assert scan.leftovers == (leftover,)


def test_a_link_on_the_way_to_the_folder_is_refused(tmp_path: Path, root: int) -> None:
    put(tmp_path, b"real/f/x")
    os.symlink("real", tmp_path / "via")
    with pytest.raises(Refused, match="symbolic link"):
        scan_folder(root, b"via/f")
    with pytest.raises(Refused, match="symbolic link"):
        scan_folder(root, b"via")
    with pytest.raises(Refused):
        scan_folder(root, b"real/f/x")
    with pytest.raises(NotFound):
        scan_folder(root, b"nothing")


def test_a_thousand_nested_levels_are_walked(tmp_path: Path, root: int) -> None:
    """No recursion, few open files, and time that does not explode; every level has a second child."""
    fd = make_dirs(root, b"f")
    try:
        for _ in range(1000):
            os.mkdir("d", dir_fd=fd)
            os.close(os.open("z", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.mkdir("x", dir_fd=fd)
            child = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = child
    finally:
        os.close(fd)
    try:
        scan = scan_folder(root, b"f")
        assert len(scan) == 2 * 1000 + 1  # x and z at each level, and the last d
        assert scan.problems == ()
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "f"], check=True)  # shutil.rmtree recurses too deep


def test_a_wide_folder_is_statted_in_batches(tmp_path: Path, root: int) -> None:
    (tmp_path / "f/a").mkdir(parents=True)
    fd = os.open(tmp_path / "f/a", os.O_RDONLY)
    for i in range(9000):
        os.close(os.open(f"{i:05}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.mkfifo("00100.pipe", dir_fd=fd)
    os.close(fd)
    put(tmp_path, b"f/b/1")
    scan = scan_folder(root, b"f")
    assert len(scan) == 9001
    assert len(scan.problems) == 1
    names = list(scan.names)
    assert names == sorted(names)
    for i in (0, 100, 101, 5000, 9000):
        assert scan.stats.row(i)[3] == os.lstat(os.fsencode(tmp_path) + b"/f/" + names[i]).st_ino


def test_a_single_file_is_one_entry_without_a_name(tmp_path: Path, root: int) -> None:
    put(tmp_path, b"d/x", b"123")
    scan = scan_file(root, b"d/x")
    assert list(scan.names) == [b""] and scan.stats.sizes.tolist() == [3]
    with SourceFiles(root, b"d/x", scan) as source:
        fd = source.open(0)
        assert os.pread(fd, 10, 0) == b"123"
        source.recheck(0, fd)
        os.close(fd)
    os.mkfifo(tmp_path / "pipe")
    os.symlink("d", tmp_path / "l")
    for path, kind in ((b"pipe", "FIFO"), (b"l", "symbolic link"), (b"d", "directory")):
        with pytest.raises(Refused, match=kind):
            scan_file(root, path)
    with pytest.raises(NotFound):
        scan_file(root, b"none")


@pytest.mark.parametrize("change", ["append", "truncate", "replace", "rewrite with mtime restored"])
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, root: int, change: str) -> None:
    put(tmp_path, b"f/a", b"0")
    put(tmp_path, b"f/x", b"12345")
    scan = scan_folder(root, b"f")
    file = tmp_path / "f/x"
    with SourceFiles(root, b"f", scan, np.array([1])) as source:
        assert source.show(0) == "f/x"
        fd = source.open(0)
        before = os.stat(file)
        if change == "append":
            with open(file, "ab") as f:
                f.write(b"6")
        elif change == "truncate":
            os.truncate(file, 1)
        elif change == "replace":
            put(tmp_path, b"f/new", b"54321")
            os.utime(tmp_path / "f/new", ns=(before.st_atime_ns, before.st_mtime_ns))
            os.rename(tmp_path / "f/new", file)
        else:
            while True:  # until the clock has ticked, as it has in any run that reads much
                file.write_bytes(b"54321")
                os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
                if os.stat(file).st_ctime_ns != before.st_ctime_ns:
                    break
        if change == "replace":
            os.close(fd)
            fd = -1
            with pytest.raises(ChangedWhileRead, match="changed"):
                source.open(0)
        else:
            with pytest.raises(ChangedWhileRead, match="changed"):
                source.recheck(0, fd)
            os.close(fd)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["", "a/", "a/b/", "c/"]), st.integers(1, 3000)), min_size=1, max_size=12))
def test_a_run_of_small_files_is_read_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[str, int]]
) -> None:
    """Files of one folder and another, one after the other, and nothing but them."""
    top = tmp_path_factory.mktemp("run")
    for n, (folder, size) in enumerate(shape):
        put(top, f"f/{folder}{n}".encode(), bytes([n + 1]) * size)
    fd = os.open(top, os.O_RDONLY)
    try:
        scan = scan_folder(fd, b"f")
        sizes = scan.stats.sizes
        index = np.flatnonzero(sizes % 2 == 1) if (sizes % 2).any() else np.arange(len(scan))
        room = bytearray(int(sizes[index].sum()) + 1)
        with SourceFiles(fd, b"f", scan, index) as source:
            assert source.read_run(np.arange(len(index)), memoryview(room)) == len(index)
        want = b"".join((top / "f" / os.fsdecode(scan.names[i])).read_bytes() for i in index.tolist())
        assert room[:-1] == want
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "change", ["append", "truncate", "replace", "rewrite", "remove", "link", "pipe", "directory", "linked folder"]
)
def test_a_run_ends_before_a_file_that_is_not_what_it_was(tmp_path: Path, root: int, change: str) -> None:
    for name in (b"f/a", b"f/s/x", b"f/z"):
        put(tmp_path, name, b"12345")
    scan = scan_folder(root, b"f")
    file = tmp_path / "f/s/x"
    was = os.stat(file)
    if change == "append":
        file.write_bytes(b"123456")
    elif change == "truncate":
        os.truncate(file, 1)
    elif change == "replace":
        put(tmp_path, b"other", b"54321")
        os.utime(tmp_path / "other", ns=(was.st_atime_ns, was.st_mtime_ns))
        os.rename(tmp_path / "other", file)
    elif change == "rewrite":
        while os.stat(file).st_ctime_ns == was.st_ctime_ns:
            file.write_bytes(b"54321")
            os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    elif change == "linked folder":
        os.rename(tmp_path / "f/s", tmp_path / "elsewhere")
        os.symlink("../elsewhere", tmp_path / "f/s")
    else:
        file.unlink()
        if change == "link":
            os.symlink("../a", file)
        elif change == "pipe":
            os.mkfifo(file)
        elif change == "directory":
            file.mkdir()
    with SourceFiles(root, b"f", scan) as source:
        assert source.read_run(np.arange(3), memoryview(bytearray(100))) == 1
        assert source.read_run(np.arange(1, 3), memoryview(bytearray(100))) == 0
        if change != "linked folder":
            assert source.read_run(np.arange(2, 3), memoryview(bytearray(100))) == 1
        with pytest.raises((ChangedWhileRead, NotFound, Refused)):
            os.close(source.open(1))


def test_handles_never_follow_links_and_never_block(tmp_path: Path, root: int) -> None:
    put(tmp_path, b"real/x")
    os.symlink("real", tmp_path / "link")
    os.symlink("x", tmp_path / "real/l")
    os.mkfifo(tmp_path / "real/pipe")
    with pytest.raises(Refused, match="link"):
        os.close(open_dir(root, b"link"))
    with pytest.raises(Refused, match="link"):
        os.close(make_dirs(root, b"link/new"))
    assert not (tmp_path / "real/new").exists()
    with pytest.raises(Refused):
        stat_at(root, b"link/x")
    assert stat_at(root, b"none/x") is None
    with DirHandles(root) as dirs:
        for path, kind in (
            (b"link/x", "link"),
            (b"real/l", "link"),
            (b"real/pipe", "FIFO"),
            (b"real", "directory"),
        ):
            with pytest.raises(Refused, match=kind):
                open_regular(dirs, path)
        for path in (b"..", b"real/..", b".", b"real//"):
            with pytest.raises(Refused):
                dirs.acquire(path)
        os.close(open_regular(dirs, b"real/x"))


def test_directory_handles_stay_few(tmp_path: Path, root: int) -> None:
    for i in range(60):
        put(tmp_path, b"d%02d/s/x" % i)
    before = len(os.listdir("/dev/fd"))
    with DirHandles(root, limit=8) as dirs:
        for i in range(60):
            os.close(open_regular(dirs, b"d%02d/s/x" % i))
        assert len(os.listdir("/dev/fd")) - before <= 10
    assert len(os.listdir("/dev/fd")) == before
