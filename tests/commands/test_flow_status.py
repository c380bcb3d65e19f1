"""Status tells the truth about every combination of history, index, pointers, data, store and remote."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.commands.status import PathStatus


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def facts(one: PathStatus) -> dict[str, object]:
    """What of a path is worth saying."""
    names = ("staged", "unstaged", "modified", "added", "missing", "not_present", "not_fetched")
    return {name: value for name in names if (value := getattr(one, name))}


class TestOneFile:
    def test_each_step_of_its_life(self, flow: Flow) -> None:
        flow.write({"t.csv": csv(100)})
        assert flow.status().paths == []
        flow.add("t.csv")
        assert facts(flow.one("t.csv")) == {"staged": "new"}
        flow.commit()
        assert facts(flow.one("t.csv")) == {} and flow.status().clean
        flow.write({"t.csv": csv(101)})
        assert facts(flow.one("t.csv")) == {"modified": 1}
        flow.add("t.csv")
        assert facts(flow.one("t.csv")) == {"staged": "modified"}
        flow.write({"t.csv": csv(102)})
        assert facts(flow.one("t.csv")) == {"staged": "modified", "modified": 1}
        flow.git("reset", "-q")
        assert facts(flow.one("t.csv")) == {"unstaged": True, "modified": 1}
        flow.add("t.csv", stage=False)
        assert facts(flow.one("t.csv")) == {"unstaged": True}
        flow.git("checkout", "-q", "--", "t.csv.dvk")
        assert facts(flow.one("t.csv")) == {"modified": 1}
        flow.checkout(force=True)
        flow.remove("t.csv")
        assert facts(flow.one("t.csv")) == {"missing": 1}
        flow.write({"t.csv": csv(100)})
        assert facts(flow.one("t.csv")) == {}
        flow.git("rm", "-q", "--cached", "t.csv.dvk")
        flow.remove("t.csv.dvk")
        assert facts(flow.one("t.csv")) == {"staged": "deleted"}
        assert flow.status().left_behind == [b"t.csv"]

    def test_only_the_mode_differs(self, flow: Flow) -> None:
        flow.version({"run": b"#!/bin/sh\n"}, "run")
        os.chmod(flow.at("run"), 0o755)
        assert facts(flow.one("run")) == {"modified": 1}
        flow.add("run")
        assert flow.pointer("run").exec
        assert facts(flow.one("run")) == {"staged": "modified"}

    def test_another_kind_stands_there(self, flow: Flow) -> None:
        flow.version({"t": csv(100), "d/1": b"1"}, "t", "d")
        flow.remove("t", "d/1")
        os.rmdir(flow.at("d"))
        flow.write({"t/1": b"1", "d": b"d"})
        assert [facts(p) for p in flow.status().paths] == [{"modified": 1}, {"modified": 1}]

    def test_an_empty_file(self, flow: Flow, tmp_path: Path) -> None:
        flow.version({"empty": b""}, "empty")
        assert facts(flow.one("empty")) == {}
        clone = flow.clone(tmp_path / "b")
        assert facts(clone.one("empty")) == {"missing": 1}
        clone.checkout()
        assert clone.read("empty") == b"" and clone.status().clean


class TestAFolder:
    def test_counts(self, flow: Flow) -> None:
        flow.version({f"d/{i}": b"%d" % i for i in range(10)}, "d")
        flow.write({"d/1": b"x", "d/2": b"xx", "d/new": b"new", "d/deep/new": b"new"})
        flow.remove("d/3", "d/4", "d/5")
        os.symlink("1", flow.at("d/link"))
        os.mkdir(flow.at("d/empty"))
        assert facts(flow.one("d")) == {"modified": 2, "added": 4, "missing": 3}
        flow.add("d")
        flow.commit()
        assert facts(flow.one("d")) == {}
        os.unlink(flow.at("d/link"))
        os.symlink("2", flow.at("d/link"))
        assert facts(flow.one("d")) == {"modified": 1}

    def test_all_of_it_is_gone(self, flow: Flow, tmp_path: Path) -> None:
        flow.version({"d/1": b"1", "d/2": b"2"}, "d")
        os.rename(flow.at("d"), tmp_path / "elsewhere")
        assert facts(flow.one("d")) == {"missing": 2}
        flow.checkout()
        assert facts(flow.one("d")) == {}

    def test_ignored_files_are_no_news(self, flow: Flow) -> None:
        flow.version({"d/1": b"1", ".dvkignore": b"*.tmp\n"}, "d")
        flow.write({"d/x.tmp": b"x", "d/.DS_Store": b"x"})
        assert facts(flow.one("d")) == {}


class TestClones:
    def test_not_fetched_then_not_present_then_clean(self, flow: Flow, tmp_path: Path) -> None:
        flow.version({"t.csv": csv(1000), "d/a/1": b"1", "d/b/2": b"2"}, "t.csv", "d")
        flow.push()
        clone = flow.clone(tmp_path / "b")
        assert facts(clone.one("t.csv")) == {"not_fetched": True}
        assert facts(clone.one("d")) == {"not_fetched": True}
        clone.fetch("t.csv")
        assert facts(clone.one("t.csv")) == {"missing": 1}
        clone.pull("d/a")
        assert facts(clone.one("d")) == {"not_present": 1}
        clone.pull("d")
        assert facts(clone.one("d")) == {}
        clone.pull()
        assert clone.status().clean and clone.status().not_pushed == 0

    def test_versions_that_are_not_pushed(self, flow: Flow, tmp_path: Path) -> None:
        flow.version({"t.csv": csv(1000)}, "t.csv")
        flow.version({"t.csv": csv(1001)}, "t.csv")
        now = flow.status()
        assert (now.not_pushed, now.not_pushed_bytes) == (2, len(csv(1000)) + len(csv(1001)))
        flow.push()
        assert flow.status().not_pushed == 0
        flow.write({"t.csv": csv(1002)})
        flow.add("t.csv")
        assert flow.status().not_pushed == 1
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        assert clone.status().not_pushed == 0
        clone.version({"u.csv": csv(10)}, "u.csv")
        assert clone.status().not_pushed == 1
        clone.push()
        assert clone.status().not_pushed == 0

    def test_without_a_remote_everything_waits(self, flow: Flow) -> None:
        flow.version({"t.csv": csv(1000)}, "t.csv")
        flow.write({"dvk.toml": b"format = 1\n"})
        now = flow.status()
        assert (now.remote, now.not_pushed) == ("", 1)


def test_edits_of_the_same_size_in_the_same_tick_are_caught(flow: Flow) -> None:
    names = [f"d/{i}" for i in range(40)]
    flow.write(dict.fromkeys(names, b"0000"))
    flow.add("d")
    for edit in range(15):
        flow.write(dict.fromkeys(names[: edit + 1], b"%04d" % (edit + 1)))
        assert flow.one("d").modified == edit + 1
        flow.add("d")
        flow.write({names[-1]: b"%04d" % (9000 + edit)})
        assert facts(flow.one("d")) == {"staged": "new", "modified": 1}
        flow.write({names[-1]: b"0000"})


def test_the_second_look_reads_nothing(flow: Flow) -> None:
    """A repository that nobody can read any more has a known status still."""
    flow.version({f"d/{i}": noise(100, i) for i in range(20)} | {"t.csv": csv(10)}, "d", "t.csv")
    for name in [*(f"d/{i}" for i in range(20)), "t.csv"]:
        os.utime(flow.at(name), ns=(1_700_000_000_000_000_000,) * 2)
    os.sync()
    for _ in range(2):
        flow.status()
    before = {n: os.stat(flow.at(n)).st_atime_ns for n in ("d/3", "t.csv")}
    assert flow.status().clean
    assert {n: os.stat(flow.at(n)).st_atime_ns for n in before} == before


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to become somebody else")
def test_works_where_nothing_can_be_written(flow: Flow) -> None:
    flow.version({"d/1": b"1", "t.csv": csv(10)}, "d", "t.csv")
    flow.write({"t.csv": csv(11)})
    for folder in [flow.home, *flow.home.parents]:
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            os.chmod(folder, folder.stat().st_mode | 0o005)
    subprocess.run(["chmod", "-R", "a+rX,a-w", str(flow.top)], check=True)
    before = sorted(os.walk(flow.top))
    child = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "dvk", "status"],
        cwd=flow.top,
        env={**flow.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert "t.csv" in child.stdout and "modified" in child.stdout
    assert sorted(os.walk(flow.top)) == before
