"""`push`, `fetch`, `pull`, `checkout` and `restore` as a person types them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from projects import Project, files_below, noise


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.dvk("init", "--no-hooks")
    made.dvk("remote", "add", "origin", str(tmp_path / "remote"))
    made.version({"t.csv": noise(50_000, 1), "im/a/1": b"one", "im/a/2": b"two", "im/b": b"b"}, "t.csv", "im")
    made.version({"t.csv": noise(60_000, 2)}, "t.csv")
    return made


def test_push_says_how_much_went_where_and_that_it_was_verified(project: Project) -> None:
    done = project.dvk("push", "--dry-run")
    assert done.out == "dry run: 3 versions would go to origin, 110 kB new before compression\n"
    done = project.dvk("push", "--only-head")
    assert done.code == 0 and re.fullmatch(
        r"6\d(\.\d)? kB to origin, 2 versions, [\d.]+ m?s, verified, \d+ requests\n", done.out
    )
    done = project.dvk("push", "--verify", "full")
    assert re.fullmatch(
        r"5\d(\.\d)? kB to origin, 1 version, [\d.]+ m?s, all of it read back, \d+ requests\n"
        r"2 versions there already, 6\d(\.\d)? kB read back and right\n",
        done.out,
    )
    assert project.dvk("push").out == "nothing to push: origin has everything (3 versions there)\n"
    assert project.dvk("push", "--dry-run").out == "dry run: origin has everything\n"
    assert project.dvk("push", "--only-head", "--all-branches").code == 2
    assert project.dvk("push", "--remote", "other").code == 6
    assert project.dvk("push", "--rev", "nosuchrev").code == 6


def test_a_clone_pulls_a_part_and_then_the_rest(project: Project, tmp_path: Path) -> None:
    assert project.dvk("push").code == 0
    clone = project.clone(tmp_path / "clone")
    assert clone.dvk("remote", "trust").code == 0
    done = clone.dvk("pull", "im/a")
    assert done.code == 0 and "told once" in done.err
    lines = done.out.splitlines()
    assert re.fullmatch(r"6 B from origin \(.* moved\), 1 path, .*", lines[0])
    assert lines[1:] == ["im/ 2 files written, 6 B", "1 file stays remote: dvk pull PATH brings more"]
    done = clone.dvk("fetch")
    assert re.fullmatch(r"60 kB from origin \(.* moved\), 1 path, .*\n", done.out)
    assert clone.dvk("fetch").out == "everything is here (2 paths)\n"
    assert clone.dvk("pull").out.splitlines()[0] == "t.csv 60 kB"
    assert "everything is in step (2 paths)" in clone.dvk("pull").out
    assert clone.dvk("pull", "im").out.splitlines()[-1] == "im/ 1 file written, 1 B"
    data = {n: d for n, d in files_below(project.top).items() if not n.startswith(".git")}
    assert {n: d for n, d in files_below(clone.top).items() if not n.startswith(".git")} == data


def test_pull_without_a_store_leaves_none_of_the_data_there(project: Project, tmp_path: Path) -> None:
    project.dvk("push")
    clone = project.clone(tmp_path / "clone")
    clone.dvk("remote", "trust")
    done = clone.dvk("pull", "--no-store")
    assert done.code == 0 and clone.read("t.csv") == project.read("t.csv")
    assert not list((clone.top / ".git/dvk/store").glob("p/*/*"))


def test_what_is_nowhere_does_not_keep_the_rest_from_arriving(project: Project, tmp_path: Path) -> None:
    project.dvk("push")
    project.version({"never": b"pushed"}, "never")
    clone = project.clone(tmp_path / "clone")
    clone.dvk("remote", "trust")
    done = clone.dvk("pull")
    assert done.code == 3 and clone.read("t.csv") == project.read("t.csv")
    assert "error: never: " in done.err and "dvk push --rev" in done.err
    assert done.err.splitlines()[-1].startswith("error: 1 of 3 paths failed")


def test_checkout_brings_back_and_takes_from_a_revision(project: Project) -> None:
    (project.top / "t.csv").unlink()
    assert project.dvk("checkout").out == "t.csv 60 kB\n"
    assert project.dvk("checkout").out == "nothing to do: 2 paths in step\n"
    done = project.dvk("checkout", "HEAD~1", "--", "t.csv")
    assert (done.code, done.out) == (0, "t.csv 50 kB\nstaged 1 pointer\n") and project.read("t.csv") == noise(50_000, 1)
    assert project.dvk("restore", "--source", "HEAD", "t.csv").out == "t.csv 60 kB\nstaged 1 pointer\n"
    (project.top / "im/b").unlink()
    assert project.dvk("checkout", "b", folder="im").out == "./ 1 file written, 1 B\n"
    project.write({"t.csv": b"mine"})
    done = project.dvk("checkout", "t.csv")
    assert done.code == 3 and "--force" in done.err and project.read("t.csv") == b"mine"
    assert project.dvk("checkout", "--force", "--dry-run").out.splitlines()[-1] == "dry run: nothing was changed"
    assert project.dvk("checkout", "--force").out == "t.csv 60 kB\n"
    assert project.dvk("checkout", "a", "b", "--", "t.csv").code == 2
    assert project.dvk("checkout", "HEAD", "--").code == 2
    assert project.dvk("checkout", "nothing").code == 6
    assert project.dvk("checkout", "nosuchrev", "--", "t.csv").code == 6
