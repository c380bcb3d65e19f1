"""Killed or interrupted anywhere: what was there is there, and the same command finishes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.testing import dying

DYING = str(dying.__file__)
KILLS = 5  # `python -m dvk.testing.matrix` strikes at every point


@dataclass
class Stage:
    """A repository in some state, which each attempt finds anew at the same place."""

    flow: Flow
    versions: dict[str, dict[bytes, bytes]]  #: commit -> data
    base: Path
    place: Path
    argv: tuple[str, ...] = ()

    def reset(self) -> None:
        """Back to the state in which `freeze` found it."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.base, self.place, symlinks=True)

    def freeze(self) -> Stage:
        shutil.copytree(self.place, self.base, symlinks=True)
        return self

    def strike(self, at: int, signum: int = signal.SIGKILL) -> tuple[int, str]:
        """Run the command with a signal at one of its changes to the disk; exit code, messages."""
        done = subprocess.run(
            [sys.executable, DYING, str(at), str(int(signum)), *self.argv],
            cwd=self.flow.top,
            env=self.flow.environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stderr

    def count(self) -> int:
        """How many changes the undisturbed command makes."""
        code, said = self.strike(0)
        assert code == 0, said
        return int(said.splitlines()[-1])


Make = Callable[[Path], Stage]


def two_versions(tmp_path: Path) -> Stage:
    """A table, a folder and a binary file in two committed versions, in the second one."""
    place = tmp_path / "place"
    place.mkdir()
    flow = Flow(place / "a", place)
    versions = {}
    files: dict[str | bytes, bytes] = {f"d/{i % 3}/{i}": noise(300 + i, i) for i in range(60)}
    commit = flow.version({"t.csv": csv(4000), **files}, "t.csv", "d")
    versions[commit] = flow.data()
    flow.write({"t.csv": csv(4100), "d/0/0": b"edited", "d/new": b"new", "n.bin": noise(400_000, 99)})
    flow.remove("d/1/1", "d/2/2")
    commit = flow.version({}, "t.csv", "d", "n.bin")
    versions[commit] = flow.data()
    return Stage(flow, versions, tmp_path / "base", place)


def an_add(tmp_path: Path) -> Stage:
    stage = two_versions(tmp_path)
    stage.flow.write(
        {"t.csv": csv(4200), "d/0/3": b"third", "d/third": noise(100_000, 3), "third.bin": noise(300_000, 4)}
    )
    stage.flow.remove("d/new")
    stage.argv = ("add", "t.csv", "d", "third.bin")
    return stage.freeze()


def a_checkout(tmp_path: Path) -> Stage:
    stage = two_versions(tmp_path)
    stage.flow.git("checkout", "-q", "HEAD~1")
    stage.argv = ("checkout",)
    return stage.freeze()


def a_push(tmp_path: Path) -> Stage:
    stage = two_versions(tmp_path)
    stage.argv = ("push",)
    return stage.freeze()


def a_pull(tmp_path: Path) -> Stage:
    stage = two_versions(tmp_path)
    stage.flow.push()
    stage.flow = stage.flow.clone(stage.place / "b")
    stage.argv = ("pull",)
    return stage.freeze()


STAGES: dict[str, Make] = {"add": an_add, "checkout": a_checkout, "push": a_push, "pull": a_pull}


def present(flow: Flow) -> dict[bytes, bytes]:
    """The data without temporary files of a killed run."""
    return {path: found for path, found in flow.data().items() if b".dvk-" not in path}


def check_after_a_strike(stage: Stage) -> None:
    """What holds at any moment: the user's files are old or new, Git sees no data, acknowledged versions are there."""
    flow, verb = stage.flow, stage.argv[0]
    data = present(flow)
    if verb in ("add", "push"):
        assert data == stage.before  # type: ignore[attr-defined]
    else:
        known = [*stage.versions.values()]
        for path, found in data.items():
            assert any(v.get(path) == found for v in known) or found == b"dir", path
    if verb != "push":
        flow.git("add", "-A")
        staged = flow.git("diff", "--cached", "--name-only").split()
        known = [name for name in staged if not name.endswith(".dvk") and flow.exists(name + ".dvk")]
        assert known == [] and not any(".dvk-" in name for name in staged), staged
        flow.git("reset", "-q")


def check_at_the_end(stage: Stage, tmp_path: Path) -> None:
    """The command was run again: it did what it should, and every version can be had.

    A temporary file of a killed run stays for an hour, for it might be one of a run that is under way.
    """
    flow, verb = stage.flow, stage.argv[0]
    versions = dict(stage.versions)
    if verb == "add":
        assert present(flow) == stage.before  # type: ignore[attr-defined]
        versions[flow.commit()] = present(flow)
    elif verb == "checkout":
        assert present(flow) == versions[flow.head()]
    elif verb == "push":
        assert flow.status().not_pushed == 0
        shutil.rmtree(tmp_path / "clone", ignore_errors=True)
        flow = flow.clone(tmp_path / "clone")
        flow.pull()
    else:
        assert present(flow) == versions[flow.head()]
        for commit in versions:
            flow.fetch(rev=commit)
    assert flow.status().clean
    assert flow.git("status", "--porcelain") == ""
    if verb == "push":
        for commit in versions:
            flow.fetch(rev=commit)
    for commit in versions:  # from the last one to the first, and on
        flow.git("checkout", "-q", commit)
        flow.checkout()
        assert present(flow) == versions[commit]


def again(stage: Stage) -> None:
    """The same command, undisturbed."""
    flow, verb = stage.flow, stage.argv[0]
    if verb == "add":
        flow.add(*stage.argv[1:])
    else:
        {"checkout": flow.checkout, "push": flow.push, "pull": flow.pull}[verb]()


@pytest.mark.parametrize("verb", STAGES)
def test_killed_anywhere(verb: str, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    stage = STAGES[verb](tmp_path)
    stage.before = stage.flow.data()  # type: ignore[attr-defined]
    total = stage.count()
    for at in sorted(random.Random(seed).sample(range(1, total + 1), min(KILLS, total))):
        print("killed at", at, "of", total)
        stage.reset()
        code, said = stage.strike(at)
        assert code in (-signal.SIGKILL, 0), said
        check_after_a_strike(stage)
        again(stage)
        check_at_the_end(stage, tmp_path)


@pytest.mark.parametrize("verb", STAGES)
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_interrupted_in_the_middle(verb: str, signum: int, exit_code: int, tmp_path: Path) -> None:
    stage = STAGES[verb](tmp_path)
    stage.before = stage.flow.data()  # type: ignore[attr-defined]
    total = stage.count()
    for at in (total // 4, total // 2):
        stage.reset()
        code, said = stage.strike(max(at, 1), signum)
        assert code == exit_code, said
        assert "Traceback" not in said and "same command" in said
        leftovers = [n for _, _, names in os.walk(stage.flow.top) for n in names if n.startswith(".dvk-")]
        assert leftovers == []
        check_after_a_strike(stage)
        again(stage)
        check_at_the_end(stage, tmp_path)
