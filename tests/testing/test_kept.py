"""States that are told apart, and put back: what saves the matrix from judging one state twice must not mix up two."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dvk.testing.kept import Kept
from dvk.testing.stages import Stage, build
from dvk.testing.strike import Program


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return build("add", str(tmp_path_factory.mktemp("kept") / "stage"))


@pytest.fixture
def kept(stage: Stage) -> Kept:
    kept = Kept(stage.place, stage.saved)
    kept.reset()
    return kept


def _first_file(top: str, *under: str) -> Path:
    return next(p for p in sorted(Path(top, *under).rglob("*")) if p.is_file())


def _flip(path: Path) -> None:
    """One bit, the size and the times as they were, as a failing disk does it."""
    info = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(info.st_mode)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


CHANGES: dict[str, Callable[[Stage], None]] = {
    "a bit of a pack": lambda s: _flip(_first_file(s.store, "p")),
    "a bit of a page pack of the remote": lambda s: _flip(_first_file(s.remote, "m")),
    "a bit of a file of the user's": lambda s: _flip(Path(s.top, "d/0/0")),
    "a bit of a stat cache": lambda s: _flip(_first_file(s.top, ".git/dvk/stat")),
    "a file more": lambda s: Path(s.top, ".dvk-x").touch(),
    "a file less": lambda s: Path(s.top, "d/0/0").unlink(),
    "an empty folder": lambda s: Path(s.top, "e").mkdir(),
    "a mode": lambda s: Path(s.top, "d/0/0").chmod(0o600),
    "a folder for a file": lambda s: (Path(s.top, "d/0/0").unlink(), Path(s.top, "d/0/0").mkdir())[1],
    "a link for a file": lambda s: (Path(s.top, "d/0/0").unlink(), Path(s.top, "d/0/0").symlink_to("x"))[1],
    "what Git is about to commit": lambda s: s.git("update-index", "--force-remove", "dvk.toml") and None,
    "a lock that is gone": lambda s: Path(s.top, ".git/dvk/lock").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_makes_another_state_and_is_put_back(stage: Stage, kept: Kept, what: str) -> None:
    before = kept.state()
    CHANGES[what](stage)
    assert kept.state() != before
    kept.reset()
    assert kept.state() == before


def test_a_copy_has_the_state_of_the_original(stage: Stage, kept: Kept, tmp_path: Path) -> None:
    """Inodes and times differ, and what lies there does not. Before dvk ran in it, so no stat cache fits."""
    shutil.copytree(stage.place, tmp_path / "copy", symlinks=True)
    assert Kept(str(tmp_path / "copy"), stage.saved).state() == kept.state()


def test_runs_with_equal_random_names_leave_equal_states(stage: Stage, kept: Kept) -> None:
    with Program() as program:
        states = {}
        for run, entropy in enumerate(("one", "one", "two")):
            kept.reset()
            ran = program.run(stage.argv, cwd=stage.top, environ=stage.environ, entropy=entropy)
            assert ran.code == 0, ran.said
            states[run] = kept.state()
    assert states[0] == states[1] != states[2]


def test_a_stat_cache_that_will_be_believed_is_another_state(stage: Stage, kept: Kept) -> None:
    """Both times the same entries; but once the file there was written again since."""
    with Program() as program:
        assert program.run(stage.argv, cwd=stage.top, environ=stage.environ, entropy="one").code == 0
    before = kept.state()
    os.utime(os.path.join(stage.top, "t.csv"))
    assert kept.state() != before
