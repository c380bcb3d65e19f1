"""The main job as one story: version data, push it, have it elsewhere, at every commit, byte for byte.

The same story is told with a remote in a folder, with a real S3 server, and with a connection that breaks in the
middle of a push and of a pull.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flowkit import Flow, csv, noise

from dvk.backend.wrappers import RetryBackend
from dvk.commands import repo
from dvk.errors import RemoteError
from dvk.testing.s3server import aws_env
from dvk.testing.tcp_proxy import TcpProxy

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address


@dataclass(frozen=True)
class Version:
    """One commit and what the data was then."""

    commit: str
    data: Mapping[bytes, bytes]


IMAGES = 800


def live(flow: Flow) -> list[Version]:
    """A table, a folder of small files and a model change over four commits."""
    model = noise(1_500_000, 7)
    out = []

    def commit(*paths: str) -> None:
        flow.add(*paths)
        out.append(Version(flow.commit(), flow.data()))

    flow.write({f"images/{i % 20:02d}/{i:04d}.bin": noise(60 + i % 90, i) for i in range(IMAGES)})
    flow.write({"table.csv": csv(20_000), "models/best.bin": model, "images/empty": b""})
    os.makedirs(flow.at("images/no files here"))
    commit("table.csv", "images", "models/best.bin")
    flow.write({"table.csv": csv(21_000)})
    flow.write({f"images/{i % 20:02d}/{i:04d}.bin": b"edited %d" % i for i in range(0, IMAGES, 50)})
    commit("table.csv", "images")
    flow.write(
        {"table.csv": csv(21_000).replace(b"n3\n", b"n4\n", 10), "models/best.bin": model[:-300] + noise(400, 8)}
    )
    flow.remove(*(f"images/{i % 20:02d}/{i:04d}.bin" for i in range(1, IMAGES, 100)))
    commit("table.csv", "images", "models/best.bin")
    flow.write({"images/new/one": b"1", "images/new/two": b"2"})
    os.symlink("../new/one", flow.at("images/00/link"))
    os.chmod(flow.at("images/new/two"), 0o755)
    commit("images")
    return out


def assert_all_there(clone: Flow, versions: list[Version]) -> None:
    """Every version is what it was, by `git checkout` and by `dvk checkout REV -- PATH`."""
    assert clone.data() == versions[-1].data
    clone.fetch_all([v.commit for v in versions])
    for v in [*versions[::-1], versions[-1]]:
        clone.switch(v.commit)
        assert clone.data() == v.data, v.commit
        assert clone.git("status", "--porcelain") == ""
    for v in versions:
        clone.checkout("table.csv", "images", "models/best.bin", rev=v.commit)
        assert clone.data() == v.data, v.commit
    clone.git("reset", "-q", "--hard")
    clone.checkout()
    assert clone.status().clean


class Story(Flow):
    """A flow that knows how to fetch several versions."""

    def fetch_all(self, commits: list[str]) -> None:
        for commit in commits:
            self.fetch(rev=commit)


def cloned(flow: Flow, top: Path, environ: Mapping[str, str]) -> Story:
    flow.git("clone", "-q", str(flow.top), str(top))
    out = Story(top, flow.home, init=False)
    out.environ = {**flow.environ, **environ}
    return out


def test_with_a_remote_in_a_folder(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    versions = live(flow)
    assert flow.push().sent
    assert flow.status().not_pushed == 0 and flow.push().sent == []
    clone = cloned(flow, tmp_path / "b", {})
    clone.pull()
    assert_all_there(clone, versions)


@pytest.fixture
def proxy(s3: S3Address) -> Iterator[TcpProxy]:
    with TcpProxy(s3.port) as out:
        yield out


def test_with_a_bucket_and_a_connection_that_breaks(
    new_bucket: Callable[[], str], proxy: TcpProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repo, "RetryBackend", lambda inner, **_: RetryBackend(inner, deadline_s=0.5))
    url = f"s3://{new_bucket()}/data"
    flow = Flow(tmp_path / "a", tmp_path, remote=url, environ=aws_env(proxy.endpoint_url))
    versions = live(flow)
    before = flow.data()
    proxy.cut_after(bytes_up=700_000, then_refuse=True)
    with pytest.raises(RemoteError) as caught:
        flow.push()
    assert caught.value.kind == "remote-unreachable" and url in str(caught.value), str(caught.value)
    assert proxy.cuts == 1
    assert flow.status().not_pushed > 0 and flow.data() == before
    proxy.heal()
    assert flow.push().sent
    assert flow.status().not_pushed == 0 and flow.push().sent == []

    clone = cloned(flow, tmp_path / "b", {})
    proxy.cut_after(bytes_down=900_000, then_refuse=True)
    with pytest.raises(RemoteError):
        clone.pull()
    assert proxy.cuts == 2
    for path, content in clone.data().items():
        assert versions[-1].data.get(path) == content
    proxy.heal()
    clone.pull()
    assert_all_there(clone, versions)


def test_with_a_bucket_straight_to_the_workspace(s3: S3Address, new_bucket: Callable[[], str], tmp_path: Path) -> None:
    """`pull --no-store`, as a job in a container does it: the data is in the workspace and nowhere else."""
    flow = Flow(tmp_path / "a", tmp_path, remote=f"s3://{new_bucket()}/data", environ=s3.env)
    versions = live(flow)
    flow.push(only_head=True)
    clone = cloned(flow, tmp_path / "b", {})
    clone.pull(store=False)
    assert clone.data() == versions[-1].data
    assert clone.status().clean
    with clone.repo() as opened:
        kept = sum(
            os.path.getsize(os.path.join(d, n)) for d, _, names in os.walk(opened.workspace.store_dir) for n in names
        )
    assert kept < 500_000  # the list of files, not the files
