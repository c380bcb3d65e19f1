"""`rm`, `mv`, `du` and `doctor` as a person types them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from projects import Project, noise


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.dvk("init", "--no-hooks")
    made.version({"data/t.csv": noise(50_000, 1), "im/a/1": b"one", "im/b": noise(1000, 2)}, "data/t.csv", "im")
    return made


def test_rm_says_what_went(project: Project) -> None:
    done = project.dvk("rm", "data/t.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out == "data/t.csv is no longer tracked; 1 file deleted, 50 kB\nstaged 1 pointer\n"
    done = project.dvk("rm", "a", folder="im")
    assert done.out == "a/ is out of ./; 1 file deleted, 3 B\nstaged 1 pointer\n"
    assert project.dvk("rm", "im", "--dry-run").out == (
        "im/ would no longer be tracked; 1 file deleted, 1 kB\ndry run: nothing was changed\n"
    )
    assert project.dvk("-q", "rm", "im").out == ""
    assert project.git("status", "--porcelain").splitlines() == ["D  data/t.csv.dvk", "D  im.dvk"]


def test_rm_refuses_what_would_be_lost(project: Project) -> None:
    project.write({"data/t.csv": b"changed"})
    done = project.dvk("rm", "data/t.csv")
    assert done.code == 5 and done.out == ""
    assert done.err == (
        "error: data/t.csv: it was changed since the last `dvk add`\n"
        "hint: `dvk add` keeps it as a version, --cached leaves it on disk, --force deletes it\n"
    )
    done = project.dvk("rm", "--cached", "data/t.csv", "--no-stage")
    assert done.code == 0 and "1 file stays on disk" in done.out and "not staged (--no-stage)" in done.out
    assert "Git sees it now" in done.err and project.read("data/t.csv") == b"changed"
    assert project.dvk("rm", "-f", "im/b").code == 0
    assert project.dvk("rm", "nothing").code == 6


def test_rm_of_a_folder_of_tracked_paths_needs_r(project: Project) -> None:
    done = project.dvk("rm", "data")
    assert done.code == 5 and "`dvk rm -r data`" in done.err
    assert project.dvk("rm", "-r", "data").code == 0


def test_mv_says_both_names(project: Project) -> None:
    done = project.dvk("mv", "t.csv", "u.csv", folder="data")
    assert (done.code, done.out, done.err) == (0, "t.csv -> u.csv\nstaged 2 pointers\n", "")
    (project.top / "data/u.csv").unlink()
    assert project.dvk("mv", "data/u.csv", "v.csv").out == (
        "data/u.csv -> v.csv (its data is not here: only the name changes)\nstaged 2 pointers\n"
    )
    assert project.dvk("mv", "im/b", "im/c", "-n").out == "im/b -> im/c\ndry run: nothing was changed\n"
    assert project.dvk("mv", "im/b", "im/c").out == "im/b -> im/c\nstaged 1 pointer\n"
    done = project.dvk("mv", "im", "v.csv")
    assert done.code == 5 and done.err == (
        "error: v.csv: another tracked path has this name already\nhint: move that away first; dvk overwrites nothing\n"
    )
    assert project.dvk("mv", "im").code == 2


def test_du_adds_up_in_words(project: Project) -> None:
    project.version({"data/t.csv": noise(50_000, 1) + noise(30_000, 3)}, "data/t.csv")
    lines = project.dvk("du").out.splitlines()
    assert lines[0].split() == ["now", "files", "versions", "in", "full", "its", "own", "path"]
    assert lines[1].split()[:5] == ["80", "kB", "1", "2", "130"] and lines[1].endswith("data/t.csv")
    assert lines[2].split()[:4] == ["1", "kB", "2", "1"] and lines[2].endswith("im/")
    assert re.fullmatch(r"all +131 kB  in 3 versions of 2 paths, each in full", lines[4])
    assert lines[5].startswith("saved") and "by deduplication" in lines[5] and lines[6].startswith("stored")
    assert len(lines) == 7
    (row,) = project.dvk("du", "im/a").out.splitlines()[1:]
    assert row.split() == ["3", "B", "1", "im/a/"]
    assert project.dvk("du", "none").code == 6


def test_du_says_what_could_be_freed(project: Project) -> None:
    project.write({"data/t.csv": noise(90_000, 9)})
    project.dvk("add", "data/t.csv")
    project.git("reset", "-q", "--hard")
    last = project.dvk("du").out.splitlines()[-1]
    assert re.fullmatch(r"free +90 kB  could be freed: 90 kB belong to no version of this repository", last)


def test_du_where_nothing_is(tmp_path: Path) -> None:
    project = Project(tmp_path / "empty", tmp_path / "home")
    assert project.dvk("du").out == "nothing is tracked yet: `dvk add PATH` starts\n"


def test_doctor_is_a_table_and_an_exit_code(project: Project) -> None:
    done = project.dvk("doctor")
    assert (done.code, done.err) == (0, "") and done.out.splitlines()[-1] == "all is well"
    assert all(re.match(r"(ok|info|warn|fail) +[a-z]+ |  +-> ", line) for line in done.out.splitlines()[:-1])
    (project.top / ".gitattributes").unlink()
    assert project.dvk("doctor").out.splitlines()[-1] == "1 warning"
    project.write({"im.dvk": b"broken"})
    done = project.dvk("doctor")
    assert done.code == 1 and "fail  pointers" in done.out and re.match(r"error: 1 check of \d+ failed\n", done.err)
