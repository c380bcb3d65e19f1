"""A full disk during add, checkout, push and pull: originals intact, nothing half written, a re-run succeeds."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flowkit import Flow, csv, failure_of, noise

from dvk.errors import StorageFull


class SmallDisk:
    """A filesystem of a few megabytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("cannot mount a small disk here")

    def fill(self, leave: int) -> None:
        """Take all the room but `leave` bytes."""
        found = os.statvfs(self.place)
        with open(self.place / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)

    def relieve(self) -> None:
        (self.place / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("needs root to mount a small disk")
    out = SmallDisk(tmp_path / "small")
    yield out
    subprocess.run(["umount", "-l", str(out.place)], check=False)


MB = 1 << 20


@pytest.mark.parametrize("room", [100_000, 1 * MB, 3 * MB])
def test_add(disk: SmallDisk, tmp_path: Path, room: int) -> None:
    flow = Flow(disk.place / "a", tmp_path)
    one = flow.version({"t.csv": csv(1000), "d/1": b"1"}, "t.csv", "d")
    first = flow.data()
    flow.write({"big.bin": noise(6 * MB, 1), "d/2": noise(2 * MB, 2), "t.csv": csv(2000)})
    data = flow.data()
    disk.fill(room)
    error = failure_of(lambda: flow.add("big.bin", "d", "t.csv"))
    assert isinstance(error, StorageFull) and error.subject and error.hint, repr(error)
    assert flow.data() == data
    assert not flow.exists("big.bin.dvk") and flow.git("diff", "HEAD", "--name-only") == ""
    disk.relieve()
    flow.add("big.bin", "d", "t.csv")
    two = flow.commit()
    assert flow.status().clean
    flow.switch(one)
    assert flow.data() == first
    flow.switch(two)
    assert flow.data() == data


@pytest.mark.parametrize("room", [100_000, 3 * MB])
@pytest.mark.parametrize("what", ["one big file", "many files"])
def test_checkout(disk: SmallDisk, tmp_path: Path, room: int, what: str) -> None:
    flow = Flow(disk.place / "a", tmp_path)
    flow.environ["DVK_STORE"] = str(tmp_path / "store")
    name = "big.bin" if what == "one big file" else "d"
    many = {f"d/{i}": noise(100_000, i) for i in range(60)}
    one = flow.version(
        {"t.csv": csv(1000), **({"big.bin": noise(6 * MB, 1)} if name == "big.bin" else many)}, name, "t.csv"
    )
    first = flow.data()
    flow.write({"t.csv": csv(10)})
    for path in first:
        if path != b"t.csv":
            flow.write({path: b"small " + path})
    flow.add(update=True)
    flow.commit()
    second = flow.data()
    flow.git("checkout", "-q", one)
    disk.fill(room)
    error = failure_of(flow.checkout)
    assert isinstance(error, StorageFull) and error.hint, repr(error)
    for path, found in flow.data().items():
        assert found in (first[path], second[path])
    disk.relieve()
    flow.checkout()
    assert flow.data() == first and flow.status().clean
    flow.switch("main")
    assert flow.data() == second


@pytest.mark.parametrize("room", [0, 1 * MB, 3 * MB])
def test_push(disk: SmallDisk, tmp_path: Path, room: int) -> None:
    flow = Flow(tmp_path / "a", tmp_path, remote=f"file://{disk.place}/remote")
    flow.version({"t.csv": csv(1000), "big.bin": noise(6 * MB, 1)}, "t.csv", "big.bin")
    disk.fill(room)
    error = failure_of(flow.push)
    assert isinstance(error, StorageFull) and error.subject and error.hint, repr(error)
    assert flow.status().not_pushed == 2
    disk.relieve()
    flow.push()
    assert flow.status().not_pushed == 0
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    assert clone.data() == flow.data()


@pytest.mark.parametrize("room", [1 * MB, 9 * MB])
def test_pull(disk: SmallDisk, tmp_path: Path, room: int) -> None:
    """First there is no room for the store's copy, then none for the workspace's."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(1000), "big.bin": noise(6 * MB, 1)}, "t.csv", "big.bin")
    flow.push()
    clone = flow.clone(disk.place / "b")
    disk.fill(room)
    error = failure_of(clone.pull)
    assert isinstance(error, StorageFull) and error.hint, repr(error)
    assert not clone.exists("big.bin")
    disk.relieve()
    clone.pull()
    assert clone.data() == flow.data() and clone.status().clean


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """What works without a small disk: the system refuses to let a file grow."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.write({"big.bin": noise(3 * MB, 1), "t.csv": csv(100)})
    data = flow.data()
    child = subprocess.run(
        [sys.executable, "-m", "dvk", "add", "big.bin", "t.csv"],
        cwd=flow.top,
        env=flow.environ,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MB, MB)),
    )
    assert child.returncode not in (0, 1) and "Traceback" not in child.stderr, child.stderr
    assert flow.data() == data and not flow.exists("big.bin.dvk") and not flow.exists("t.csv.dvk")
    flow.add("big.bin", "t.csv")
    flow.commit()
    assert flow.status().clean
