"""Several processes and several worktrees at once: one store, nobody's change lost."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.commands.add import add
from dvk.commands.checkout import checkout
from dvk.commands.repo import Repo

_SPAWN = multiprocessing.get_context("spawn")


def _add(top: str, environ: dict[str, str], barrier: object, rounds: list[list[str]]) -> None:
    for paths in rounds:
        barrier.wait(60)  # type: ignore[attr-defined]
        with Repo(top, environ=environ) as repo:
            add(repo, paths)


def _checkout(top: str, environ: dict[str, str], barrier: object) -> None:
    barrier.wait(60)  # type: ignore[attr-defined]
    with Repo(top, environ=environ) as repo:
        done = checkout(repo)
    assert all(e.kind == "changed-while-read" for e in done.failures), [str(e) for e in done.failures]


def together(*jobs: tuple[Callable[..., None], Flow, tuple[object, ...]]) -> None:
    """Run each job in a process of its own, all from one moment on."""
    barrier = _SPAWN.Barrier(len(jobs))
    children = [
        _SPAWN.Process(target=work, args=(str(flow.top), dict(flow.environ), barrier, *more))
        for work, flow, more in jobs
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * len(children)


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def test_two_linked_worktrees_share_one_store(flow: Flow, tmp_path: Path) -> None:
    flow.version({"t.csv": csv(20_000)}, "t.csv")
    other = flow.worktree(tmp_path / "b", "side")
    assert other.checkout().paths[0].path == b"t.csv"
    assert other.data() == flow.data()
    other.write({"t.csv": csv(21_000)})
    [added] = other.add("t.csv").paths
    assert added.new_bytes < added.size / 2  # its beginning is known from the first worktree
    other.commit()
    with flow.repo() as one, other.repo() as two:
        assert one.workspace.store_dir == two.workspace.store_dir and one.state != two.state
    assert flow.one("t.csv").clean and other.one("t.csv").clean
    flow.git("merge", "-q", "side")
    flow.checkout()
    assert flow.read("t.csv") == csv(21_000)


def test_a_selection_belongs_to_its_worktree(flow: Flow, tmp_path: Path) -> None:
    flow.version({f"d/{k}/{i}": b"%d" % i for k in "ab" for i in range(5)}, "d")
    other = flow.worktree(tmp_path / "b", "side")
    other.checkout("d/a")
    assert len(other.data()) == 5 and len(flow.data()) == 10
    [added] = other.add("d").paths
    assert (added.files, added.removed) == (10, 0)
    assert flow.one("d").clean


def test_two_worktrees_add_at_once(flow: Flow, tmp_path: Path) -> None:
    flow.version({"t.csv": csv(100)}, "t.csv")
    other = flow.worktree(tmp_path / "b", "side")
    other.checkout()
    flow.write({"t.csv": csv(20_000, 1), "one": noise(300_000, 1)})
    other.write({"t.csv": csv(20_000, 2), "two": noise(300_000, 2)})
    together((_add, flow, ([["t.csv", "one"]],)), (_add, other, ([["t.csv", "two"]],)))
    for tree in (flow, other):
        tree.commit()
        assert tree.status().clean
        assert tree.git("status", "--porcelain") == ""
    before = flow.data(), other.data()
    flow.remove("t.csv", "one")
    other.remove("t.csv", "two")
    flow.checkout()
    other.checkout()
    assert (flow.data(), other.data()) == before


def test_two_processes_add_different_files_of_one_folder(flow: Flow, tmp_path: Path) -> None:
    flow.version({f"d/{i}": b"%d" % i for i in range(50)}, "d")
    rounds = 6
    files: dict[str | bytes, bytes] = {}
    for who in "ab":
        files |= {f"d/{who}{n}": noise(50_000, ord(who) + n) for n in range(rounds)}
    flow.write(files)
    together(*((_add, flow, ([[f"d/{who}{n}"] for n in range(rounds)],)) for who in "ab"))
    assert flow.pointer("d").files == 50 + 2 * rounds
    flow.commit()
    assert flow.status().clean
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    assert clone.data() == flow.data()


def test_a_whole_folder_and_a_file_in_it_at_once(flow: Flow) -> None:
    flow.version({f"d/{i}": b"%d" % i for i in range(50)}, "d")
    for n in range(3):
        flow.write({f"d/new{n}": noise(200_000, n), f"d/{n}": b"edited %d" % n})
        together((_add, flow, ([["d"]],)), (_add, flow, ([[f"d/new{n}"]],)))
        assert flow.pointer("d").files == 51 + n
    flow.commit()
    assert flow.status().clean


def test_two_processes_track_different_new_paths(flow: Flow) -> None:
    rounds = 5
    names = {who: [f"{who}{n}.bin" for n in range(rounds)] for who in "ab"}
    flow.write({name: noise(20_000, hash(name) % 1000) for group in names.values() for name in group})
    together(*((_add, flow, ([[name] for name in group],)) for group in names.values()))
    assert len(flow.status().paths) == 2 * rounds
    flow.commit()
    # Every exclude rule, every staged pointer and every record of what was placed is there.
    assert flow.git("status", "--porcelain") == ""
    assert flow.status().clean
    before = flow.data()
    flow.git("checkout", "-q", "HEAD~1")
    assert len(flow.checkout().removed) == 2 * rounds
    flow.git("checkout", "-q", "main")
    flow.checkout()
    assert flow.data() == before


def test_two_checkouts_at_once_agree(flow: Flow) -> None:
    flow.version({f"d/{i}": noise(3000, i) for i in range(300)} | {"t.csv": csv(20_000)}, "d", "t.csv")
    want = flow.data()
    flow.version({f"d/{i}": noise(3000, i + 1000) for i in range(300)} | {"t.csv": csv(20_000, 9)}, "d", "t.csv")
    for _ in range(2):
        flow.git("checkout", "-q", "HEAD~1")
        together((_checkout, flow, ()), (_checkout, flow, ()))
        flow.checkout()
        assert flow.data() == want
        assert flow.status().clean
        leftovers = [n for _, _, names in os.walk(flow.top / "d") for n in names if n.startswith(".dvk-")]
        assert leftovers == []
        flow.switch("main")
