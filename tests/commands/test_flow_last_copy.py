"""What Git tracks is Git's, and the last copy of a version is never taken for one that is safe elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.commands.push import push


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "work", tmp_path)


@pytest.mark.parametrize("name", ["t.csv", "d/t.csv"])
def test_a_path_that_git_tracks_at_this_commit_is_left_alone(flow: Flow, name: str) -> None:
    """Data was handed over from Git to dvk; before that commit it is Git's again."""
    path = name.split("/")[0]
    flow.write({name: csv(500)})
    flow.git("add", path)
    flow.commit("in Git")
    flow.git("rm", "-rq", "--cached", path)
    flow.add(path)
    flow.commit("in dvk")
    flow.git("checkout", "-q", "HEAD~1")
    assert flow.checkout().removed == []
    assert flow.read(name) == csv(500)
    assert flow.git("status", "--porcelain") == ""
    assert flow.status().left_behind == []


def test_a_pointer_does_not_take_over_what_git_tracks(flow: Flow) -> None:
    flow.version({"data.bin": b"other"}, "data.bin")
    flow.write({"code.py": b"print(1)\n"})
    flow.git("add", "code.py")
    flow.commit("code")
    flow.write({"code.py.dvk": flow.read("data.bin.dvk")})
    result = flow.checkout(ok=False)
    assert flow.read("code.py") == b"print(1)\n"
    assert [e.kind for e in result.failures] == ["refused"]


def test_an_added_version_that_no_commit_has_is_not_removed(flow: Flow) -> None:
    flow.write({"x.csv": csv(300)})
    flow.add("x.csv")
    flow.git("reset", "-q", "--hard")
    assert flow.checkout().removed == []
    assert flow.read("x.csv") == csv(300)


def test_a_push_that_cannot_send_what_is_checked_out_says_so(flow: Flow) -> None:
    flow.version({"t.csv": csv(400)}, "t.csv")
    shutil.rmtree(flow.top / ".git" / "dvk" / "store")
    with flow.repo() as repo:
        done = push(repo)
    assert [e.kind for e in done.failures] == ["data-missing"]


def test_an_add_stores_again_what_neither_store_nor_remote_has(flow: Flow) -> None:
    flow.version({"t.csv": csv(400)}, "t.csv")
    shutil.rmtree(flow.top / ".git" / "dvk" / "store")
    assert flow.add("t.csv").paths[0].new_bytes == len(csv(400))
    flow.remove("t.csv")
    flow.checkout()
    assert flow.read("t.csv") == csv(400)


@pytest.mark.parametrize("by", ["add", "pull"])
def test_lost_data_comes_back_cut_by_another_profile(tmp_path: Path, by: str) -> None:
    """The recipe that stays behind names chunks that nobody brings back; what came is not lost for it."""
    flow = Flow(tmp_path / "a", tmp_path)
    array = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    array += b"{'descr': '<f4', 'fortran_order': False, 'shape': (524288,), }".ljust(117) + b"\n" + noise(2 << 20, 1)
    flow.version({"w.npy": array}, "w.npy")
    other = flow.clone(tmp_path / "b")
    other.write({"dvk.toml": other.read("dvk.toml") + b'[profile]\ndefault = "cdc-64k"\n', "w.npy": array})
    other.add("w.npy")
    other.push()
    for pack in (flow.top / ".git/dvk/store/p").rglob("*"):
        if pack.is_file():
            pack.unlink()
    if by == "add":
        flow.write({"dvk.toml": other.read("dvk.toml"), "w.npy": array})
        flow.add("w.npy")
    else:
        flow.pull()
    shutil.rmtree(flow.remote_dir)
    flow.remove("w.npy")
    flow.checkout()
    assert flow.read("w.npy") == array
    if by == "add":
        flow.push()
        clone = flow.clone(tmp_path / "c")
        clone.pull()
        assert clone.read("w.npy") == array
