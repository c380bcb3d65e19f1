"""A store that was replaced at the same URL, and remotes in places where none can be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flowkit import Flow, csv, failure_of

from dvk.commands.remote_check import remote_check
from dvk.commands.remotes import remote_add
from dvk.commands.repo import Repo
from dvk.commands.trust import trust
from dvk.commands.upgrade import upgrade
from dvk.errors import Refused


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """One version, pushed."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(500)}, "t.csv")
    flow.push()
    return flow


def replace_store(flow: Flow, tmp_path: Path) -> None:
    """Somebody else's store, at the URL that `flow` knows."""
    other = Flow(tmp_path / "other", tmp_path / "elsewhere")
    other.version({"o.csv": csv(100, seed=9)}, "o.csv")
    other.push()
    shutil.move(flow.remote_dir, tmp_path / "aside")
    shutil.move(other.remote_dir, flow.remote_dir)


def test_a_replaced_store_is_refused_by_name_in_every_verb_and_nothing_is_written(flow: Flow, tmp_path: Path) -> None:
    replace_store(flow, tmp_path)
    flow.version({"t.csv": csv(600)}, "t.csv")
    before = sorted(p.name for p in flow.remote_dir.rglob("*"))
    for verb in (
        flow.push,
        lambda: flow.push(dry_run=True),
        lambda: upgrade(flow.repo(), "origin", dry_run=True),
    ):
        error = failure_of(verb)
        assert isinstance(error, Refused), repr(error)
        assert "another dvk store" in error.message and "dvk remote trust origin" in error.hint
    assert sorted(p.name for p in flow.remote_dir.rglob("*")) == before


def test_nothing_is_read_from_a_replaced_store(flow: Flow, tmp_path: Path) -> None:
    clone = flow.clone(tmp_path / "clone")
    clone.pull()
    flow.version({"t.csv": csv(700)}, "t.csv")
    flow.push()
    clone.git("pull", "-q")
    replace_store(flow, tmp_path)
    error = failure_of(clone.pull)
    assert isinstance(error, Refused) and "another dvk store" in error.message
    assert clone.read("t.csv") == csv(500)


def test_remote_check_finds_it(flow: Flow, tmp_path: Path) -> None:
    replace_store(flow, tmp_path)
    with flow.repo() as repo:
        result = remote_check(repo)
    assert not result.fit and "another-store" in [f.name for step in result.steps for f in step.findings]


def test_an_emptied_place_is_not_quietly_filled_again(flow: Flow) -> None:
    shutil.rmtree(flow.remote_dir)
    flow.version({"t.csv": csv(600)}, "t.csv")
    error = failure_of(flow.push)
    assert isinstance(error, Refused) and "is gone" in error.message and "dvk remote trust origin" in error.hint
    assert not flow.remote_dir.exists()


def test_trust_takes_the_store_that_is_there_now(flow: Flow, tmp_path: Path) -> None:
    replace_store(flow, tmp_path)
    with flow.repo() as repo:
        known = repo.known_store_id("origin")
        done = trust(repo)
        assert done.forgot_store == known != ""
        assert trust(repo).forgot_store == ""
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    clone.pull()
    assert clone.data() == flow.data()
    flow.push()  # and remembers it


def test_a_new_url_is_another_place(flow: Flow, tmp_path: Path) -> None:
    flow.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "file://{tmp_path}/new"\n'.encode()})
    flow.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}/new"
    flow.push()
    assert (tmp_path / "new/dvk.json").exists()


# ------------------------------------------------------------ where a remote cannot be


@pytest.mark.parametrize("inner", ["images", "images/deep/er", "docs"])
def test_a_remote_in_what_is_tracked_is_refused(tmp_path: Path, inner: str) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.write({"docs/readme.md": b"hello"})
    flow.git("add", "docs")
    flow.git("commit", "-q", "-m", "docs")
    flow.version({"images/1.bin": b"1" * 100, "images/2.bin": b"2" * 100}, "images")
    with flow.repo() as repo, pytest.raises(Refused, match="belongs to what is tracked here") as caught:
        remote_add(repo, "inside", f"{flow.top}/{inner}")
    assert inner.split("/")[0] in caught.value.message and "outside" in caught.value.hint
    with flow.repo() as repo:
        assert "inside" not in repo.workspace.config.remotes()


@pytest.mark.parametrize("inner", ["", "..", ".git", ".git/dvk", ".git/dvk/store"])
def test_a_remote_around_the_workspace_or_in_its_own_data_is_refused(tmp_path: Path, inner: str) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(10)}, "t.csv")
    with Repo(flow.top, environ=flow.environ) as repo:
        places = {".git/dvk": repo.workspace.common_dir, ".git/dvk/store": repo.workspace.store_dir}
        place = places.get(inner, b"").decode() or str((flow.top / inner).resolve())
        with pytest.raises(Refused) as caught:
            remote_add(repo, "inside", place)
    assert "outside" in caught.value.hint


def test_a_link_into_a_tracked_folder_is_seen_through(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"images/1.bin": b"1" * 100}, "images")
    (tmp_path / "link").symlink_to(flow.top / "images")
    with flow.repo() as repo, pytest.raises(Refused, match="images"):
        remote_add(repo, "inside", str(tmp_path / "link/x"))


def test_one_that_became_tracked_later_is_refused_at_its_next_use(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{flow.top}/out/remote"\n'.encode()})
    flow.environ["DVK_TRUST_REMOTES"] = f"file://{flow.top}/out/remote"
    flow.version({"t.csv": csv(10)}, "t.csv")
    flow.push()
    flow.version({"out/1.bin": b"1" * 100}, "out")
    error = failure_of(flow.push)
    assert isinstance(error, Refused) and "tracked here (out)" in error.message


def test_a_folder_that_nobody_tracks_is_a_place_like_any_other(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"t.csv": csv(10)}, "t.csv")
    with flow.repo() as repo:
        assert remote_add(repo, "scratch", f"{flow.top}/scratch", scope="local").name == "scratch"
