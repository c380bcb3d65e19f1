"""Parts of a folder that got other names while their data was not here are pulled under the new names."""

from __future__ import annotations

from pathlib import Path

import pytest
from flowkit import Flow, noise

from dvk.commands.add import add
from dvk.commands.move import move

FILES: dict[str | bytes, bytes] = {f"d/{part}/{i}": noise(2000 + i, i) for part in ("val", "train") for i in range(100)}


@pytest.fixture
def clone(tmp_path: Path) -> Flow:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({**FILES, "d/one": b"one"}, "d")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull("d/val/0")
    return clone


def test_a_file_and_a_folder(clone: Flow) -> None:
    with clone.repo() as repo:
        move(repo, ["d/one"], "d/uno")
        move(repo, ["d/train"], "d/learn")
    assert not clone.exists("d/uno")
    assert not clone.pull("d/uno").failures and clone.read("d/uno") == b"one"
    assert not clone.pull("d/learn/7").failures and clone.read("d/learn/7") == FILES["d/train/7"]
    assert not clone.pull("d").failures
    for name, data in FILES.items():
        assert clone.read(str(name).replace("train", "learn")) == data


def test_names_and_data_that_were_never_pushed_are_still_an_error(clone: Flow) -> None:
    with clone.repo() as repo:
        move(repo, ["d/one"], "d/uno")
    clone.write({"d/new": b"new"})
    with clone.repo() as repo:
        add(repo, ["d/new"])
    clone.git("commit", "-qam", "moved")
    other = clone.clone(Path(str(clone.top) + "-other"))
    assert other.pull("d/uno", ok=False).failures
