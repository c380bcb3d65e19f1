"""The whole benchmark at a thousandth of its size, against cp only: nothing but dvk and git is needed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.workloads import CATALOG, ensure

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

SCALE = 0.001


def contents(folder: str) -> dict[str, bytes]:
    return {
        os.path.relpath(os.path.join(at, name), folder): Path(at, name).read_bytes()
        for at, _, names in os.walk(folder)
        for name in names
    }


def test_workloads_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    items = [CATALOG[name] for name in ("table", "parquet-cdc", "files", "weights-bf16")]
    first, second = (ensure(items, work=str(tmp_path / name), scale=SCALE) for name in ("a", "b"))
    once = contents(first)
    assert once == contents(second)
    assert len(once) > 300


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("name", ["files", "mixed", "table", "series-pt"])
def test_every_version_is_recognised_and_a_wrong_byte_is_found(work: Path, tmp_path: Path, name: str) -> None:
    item = CATALOG[name]
    cached = item.open(ensure([item], work=str(work), scale=SCALE))
    target = str(tmp_path / item.path)
    cached.place(target, 0)
    assert cached.differences(target, 0) == ""
    cached.edit(target, 1)
    assert cached.differences(target, 1) == ""
    assert cached.differences(target, 0)
    cached.revert_part(target)
    assert cached.differences(target, 1)


def test_a_file_that_should_not_be_there_is_found(work: Path, tmp_path: Path) -> None:
    item = CATALOG["files"]
    cached = item.open(ensure([item], work=str(work), scale=SCALE))
    target = tmp_path / item.path
    cached.place(str(target), 0)
    (target / "stray").write_bytes(b"")
    assert "stray" in cached.differences(str(target), 0)
    assert cached.differences(str(target), 0, extra_allowed=True) == ""


def test_a_run_measures_verifies_and_writes_its_report(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = ["--only", "files,weights-bf16", "--peers", "cp", "--remotes", "local", "--runs", "1"]
    assert main(["run", "--scale", str(SCALE), "--work", str(work), "--out", str(out), *only]) == 0
    said = json.loads((out / "results.json").read_text())
    assert said["failures"] == []
    got = {(s["item"], s["verb"]) for s in said["samples"] if s["tool"] == "dvk"}
    verbs = ("add", "status", "add-edit", "back", "forth", "status-edit", "push-local", "push-edit-local", "pull-local")
    assert got == {("weights-bf16", "add"), *(("files", verb) for verb in verbs)}
    assert all(s["wall_s"] > 0 and s["rss_bytes"] > 0 for s in said["samples"])
    assert "first add" in (out / "results.md").read_text()
    assert (out / "chart.svg").read_text().startswith("<svg")
    assert not [n for n in os.listdir(work) if n.startswith("run-")]


def test_a_big_file_stays_below_a_limit_of_memory_or_the_check_fails(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["memory", "--work", str(work), "--size", "20e6"]
    assert main([*small, "--limit", "300e6"]) == 0
    assert main([*small, "--limit", "1e6"]) == 1
    assert "OVER 1 MB" in capsys.readouterr().out


def test_an_unknown_item_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["run", "--only", "nothing", "--work", str(tmp_path), "--out", str(tmp_path)]) == 2
