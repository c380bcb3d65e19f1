"""Verbs as a reader, a pusher and a collector, with the policies of docs/remote-policies.md on a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workbench import Bench

from dvk.commands.get import get
from dvk.commands.pull import fetch, pull
from dvk.commands.push import push
from dvk.commands.remote_check import remote_check
from dvk.commands.remotes import remote_add
from dvk.commands.repo import Repo
from dvk.errors import RemoteDenied
from dvk.testing.s3server import S3Address, aws_env

DOCS = Path(__file__).parents[2] / "docs/remote-policies.md"


def policy(bucket: str, prefix: str, *, without: str = "") -> dict[str, Any]:
    """The policy of the page for a bucket and prefix, less one statement."""
    found = re.search(r"```json\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    parsed: dict[str, Any] = json.loads(found[1].replace("BUCKET", bucket).replace("PREFIX", prefix))
    kept = [s for s in parsed["Statement"] if s["Sid"] != without]
    assert len(kept) == len(parsed["Statement"]) - bool(without)
    return parsed | {"Statement": kept}


class Team:
    """One bucket, one repository, and clones of it for each role."""

    def __init__(self, s3: S3Address, bucket: str, place: Path) -> None:
        self.s3, self.bucket, self.place = s3, bucket, place
        self.bench = Bench(place / "work", place / "home")
        self.bench.git_repo.environ |= aws_env(s3.endpoint_url, role="pusher")
        s3.set_policy(bucket, policy(bucket, "churn"))
        self.bench.add_commit({"a.csv": b"x,y\n1,2\n" * 3000, "img/a": b"a" * 900, "img/b": b"b" * 900}, "a.csv", "img")
        with self.bench.open() as repo:
            remote_add(repo, "origin", f"s3://{bucket}/churn")
        self.bench.git("add", "-A")
        self.bench.commit("the remote")

    def clone(self, role: str) -> Repo:
        top = self.place / f"clone of {role} {len(list(self.place.iterdir()))}"
        self.bench.git("clone", "-q", str(self.bench.top), str(top))
        return Repo(top, environ=self.bench.environ | aws_env(self.s3.endpoint_url, role=role))

    def push(self) -> None:
        with self.bench.open() as repo:
            assert push(repo).sent


@pytest.fixture
def team(s3: S3Address, new_bucket: Callable[[], str], tmp_path: Path) -> Team:
    return Team(s3, new_bucket(), tmp_path)


def names(repo: Repo) -> set[str]:
    result = remote_check(repo)
    assert result.fit, result.failures
    return {f.name for step in result.steps for f in step.findings}


@pytest.mark.parametrize("role", ["reader", "pusher", "collector"])
def test_whoever_may_read_fetches_pulls_and_gets(team: Team, role: str) -> None:
    team.push()
    with team.clone(role) as repo:
        assert not get(repo, "img", out="got").failures
        assert fetch(repo, ["a.csv"]).fetched == 1
        assert not pull(repo).failures
        top = Path(repo.workspace.top.decode())
    assert (top / "a.csv").read_bytes() == team.bench.read("a.csv")
    assert (top / "img/b").read_bytes() == team.bench.read("img/b")


def test_a_pusher_makes_the_store_pushes_again_and_never_deletes(team: Team) -> None:
    team.push()
    with team.clone("pusher") as repo:
        assert names(repo) == {"no-delete"}
        assert not push(repo).sent
    team.bench.add_commit({"a.csv": b"x,y\n3,4\n" * 3000}, "a.csv")
    team.push()


def test_a_collector_may_do_everything(team: Team) -> None:
    team.push()
    with team.clone("collector") as repo:
        assert names(repo) == set()


def test_a_reader_is_refused_a_push_and_nothing_is_written(team: Team) -> None:
    with team.clone("reader") as repo:
        repo.environ = repo.environ | {"DVK_TRUST_REMOTES": f"s3://{team.bucket}"}  # type: ignore[operator]
        with pytest.raises(RemoteDenied):
            remote_check(repo)
    team.push()
    team.bench.add_commit({"b.csv": b"new\n" * 500}, "b.csv")
    team.bench.git_repo.environ |= aws_env(team.s3.endpoint_url, role="reader")
    with team.bench.open() as repo, pytest.raises(RemoteDenied) as caught:
        push(repo)
    assert "AccessDenied" in caught.value.message
    with team.clone("reader") as repo:
        assert names(repo) == {"no-write"}


def test_a_reader_without_the_right_to_list_pulls_all_the_same(team: Team) -> None:
    team.push()
    team.s3.set_policy(team.bucket, policy(team.bucket, "churn", without="ListObjects"))
    with team.clone("reader") as repo:
        assert not pull(repo).failures
        assert (Path(repo.workspace.top.decode()) / "a.csv").read_bytes() == team.bench.read("a.csv")


def test_a_stranger_is_told_and_sees_nothing(team: Team) -> None:
    team.push()
    team.s3.set_policy(team.bucket, policy(team.bucket, "elsewhere"))
    with team.clone("reader") as repo:
        with pytest.raises(RemoteDenied) as caught:
            pull(repo)
        assert "aws" in caught.value.hint
