"""Remotes that are not there, not ours, or do not let us in: a clear category, and nothing lost."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flowkit import Flow, csv, failure_of, noise

from dvk.backend.wrappers import RetryBackend
from dvk.commands import repo
from dvk.errors import DvkError, NotFound, NotOurs, RemoteDenied, RemoteError, RemoteUnreachable, UsageError
from dvk.testing.s3server import aws_env

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up after the first tries."""

    def quick(inner: object, **options: object) -> RetryBackend:
        return RetryBackend(inner, tries=2, first_wait_s=0.01)  # type: ignore[arg-type]

    monkeypatch.setattr(repo, "RetryBackend", quick)


def both_ways(flow: Flow, tmp_path: Path, kind: type[DvkError]) -> list[DvkError]:
    """Push and pull fail alike; data and state stay as they were."""
    flow.version({"t.csv": csv(100)}, "t.csv")
    before = flow.data()
    errors = [failure_of(flow.push)]
    assert flow.data() == before and flow.status().not_pushed == 1
    clone = flow.clone(tmp_path / "clone")
    errors.append(failure_of(clone.pull))
    assert clone.data() == {}
    for error in errors:
        assert isinstance(error, kind), repr(error)
        assert error.hint, repr(error)
    return errors


def test_one_that_is_not_configured(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(100)}, "t.csv")
    error = failure_of(lambda: flow.push(remote="nowhere"))
    assert isinstance(error, NotFound) and error.subject == "nowhere" and "origin" in error.hint
    flow.write({"dvk.toml": b"format = 1\n"})
    error = failure_of(flow.push)
    assert isinstance(error, NotFound) and "dvk remote add" in error.hint
    flow.remove("t.csv")
    flow.checkout()  # needs no remote
    assert flow.read("t.csv") == csv(100)


@pytest.mark.parametrize("url", ["gopher://x/y", "s3://", "s3://user:secret@bucket/x"])
def test_one_that_makes_no_sense(tmp_path: Path, url: str) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(100)}, "t.csv")
    flow.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{url}"\n'.encode()})
    error = failure_of(flow.push)
    assert isinstance(error, DvkError) and not isinstance(error, RemoteError)
    assert "secret" not in f"{error} {error.hint}"


@pytest.mark.usefixtures("impatient")
def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        flow = Flow(
            tmp_path / "a", tmp_path, remote="s3://bucket/x", environ=aws_env(f"http://127.0.0.1:{s.getsockname()[1]}")
        )
        for error in both_ways(flow, tmp_path, RemoteUnreachable):
            assert "s3://bucket/x" in str(error)


@pytest.mark.usefixtures("impatient")
def test_wrong_credentials(s3: S3Address, new_bucket: Callable[[], str], tmp_path: Path) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "else-entirely"}
    flow = Flow(tmp_path / "a", tmp_path, remote=f"s3://{new_bucket()}/x", environ=s3.env | wrong)
    for error in both_ways(flow, tmp_path, RemoteDenied):
        assert "else-entirely" not in f"{error} {error.hint}"
    flow.environ |= s3.env
    flow.push()
    assert flow.status().not_pushed == 0


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    (flow.remote_dir / "p").mkdir(parents=True)
    (flow.remote_dir / "p/holiday.jpg").write_bytes(b"precious")
    (flow.remote_dir / "dvk.json").write_bytes(b'{"name": "somebody else"}')
    flow.version({"t.csv": csv(100)}, "t.csv")
    error = failure_of(flow.push)
    assert isinstance(error, DvkError) and str(flow.remote_dir) in str(error)
    assert sorted(p.name for p in flow.remote_dir.rglob("*")) == ["dvk.json", "holiday.jpg", "p"]
    clone = flow.clone(tmp_path / "b")
    assert isinstance(failure_of(clone.pull), DvkError)


def test_a_place_without_a_store(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(100)}, "t.csv")
    clone = flow.clone(tmp_path / "b")
    error = failure_of(clone.pull)
    assert isinstance(error, NotOurs) and "dvk push" in error.hint
    assert not flow.remote_dir.exists()


def test_empty_and_damaged_objects_are_no_data(tmp_path: Path) -> None:
    """Objects of 0 bytes, as some servers leave them: named by the paths they belong to, never taken for content."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(3000), "big.bin": noise(500_000, 1), "empty": b""}, "t.csv", "big.bin", "empty")
    flow.push()
    for folder in ("p", "m", "l"):
        clone = flow.clone(tmp_path / f"without {folder}")
        kept = {p: p.read_bytes() for p in (flow.remote_dir / folder).rglob("*") if p.is_file()}
        for path in kept:
            path.chmod(0o644)
            path.write_bytes(b"")
        done = clone.pull(ok=False)
        for name in ("t.csv", "big.bin"):
            if clone.exists(name):
                assert clone.read(name) == flow.read(name)
            else:
                assert name in [e.subject for e in done.failures]
        assert clone.read("empty") == b""
        if folder == "p":
            assert sorted(e.subject for e in done.failures) == ["big.bin", "t.csv"]
        for path, content in kept.items():
            path.write_bytes(content)
        clone.pull()
        assert clone.data() == flow.data()


def test_a_pull_by_revision_of_an_unknown_one(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(100)}, "t.csv")
    for rev in ("nowhere", "-x", "HEAD~50"):
        assert isinstance(failure_of(lambda rev=rev: flow.fetch(rev=rev)), NotFound | UsageError)
        assert isinstance(failure_of(lambda rev=rev: flow.push(revs=[rev])), NotFound | UsageError)
