"""`add` and `status` as a person types them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from projects import Project, noise


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.dvk("init", "--no-hooks")
    made.git("commit", "-q", "-m", "init")
    made.write({"data/t.csv": noise(50_000, 1), "im/a/1": b"one", "im/b": noise(1000, 2)})
    return made


def test_add_says_what_was_new(project: Project) -> None:
    done = project.dvk("add", "data/t.csv", "im")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0] == "data/t.csv 50 kB, 50 kB new"
    assert re.fullmatch(r"im/ 2 files 1 kB, 1(\.\d+)? kB new", done.out.splitlines()[1])
    assert done.out.splitlines()[2:] == ["staged 2 pointers"]
    project.write({"im/c": b"c", "im/b": b"b"})
    shutil.rmtree(project.top / "im/a")
    done = project.dvk("add", "../im", folder="data")
    assert re.fullmatch(r"\.\./im/ 2 files 2 B, \d+ B new \(\+1 -1 ~1\)\nstaged 1 pointer\n", done.out)
    assert project.dvk("add", "im").out == "im/ 2 files 2 B, unchanged\nstaged 1 pointer\n"


def test_add_update_names_only_what_changed(project: Project) -> None:
    assert "nothing is tracked yet" in project.dvk("add", "-u").out
    project.dvk("add", "data/t.csv", "im")
    assert project.dvk("add", "-u").out == "nothing has changed\n"
    project.write({"im/b": b"b"})
    assert project.dvk("add", "-u").out.splitlines()[0].startswith("im/ 2 files 4 B, ")
    done = project.dvk("add")
    assert done.code == 2 and "-u" in done.err


def test_a_dry_run_says_what_would_be_saved_and_writes_nothing(project: Project) -> None:
    project.write({"zeros": bytes(1_000_000)})
    before = project.git("status", "--porcelain", "--ignored")
    done = project.dvk("add", "zeros", "im", "--dry-run")
    last = done.out.splitlines()[-1]
    assert re.fullmatch(r"dry run: .+ would be stored of 1 MB, 99 % less than a copy; nothing was written", last)
    assert project.git("status", "--porcelain", "--ignored") == before
    result = project.dvk("add", "zeros", "-n", "--json").document["result"]
    assert result["dry_run"] and result["paths"][0]["new_bytes"] < 1_000_000


def test_pointers_that_are_not_staged_are_told(project: Project) -> None:
    assert "not staged (--no-stage)" in project.dvk("add", "im", "--no-stage").out
    (project.top / ".git/index.lock").write_bytes(b"")
    done = project.dvk("add", "data/t.csv")
    assert done.code == 0 and "1 pointer written, not staged: " in done.out
    assert project.read("data/t.csv.dvk")


def test_what_is_left_out_is_counted(project: Project) -> None:
    project.write({".dvkignore": b"*.tmp\n", "im/x.tmp": b"", "im/y.tmp": b""})
    assert "(2 ignored)" in project.dvk("add", "im").out


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["nope"], 6, "no such file"),
        (["."], 2, "the whole work tree"),
        (["../x"], 2, "outside"),
        (["im", "nope"], 6, "no such file"),
        (["dvk.toml"], 5, "Git tracks"),
        (["im", "--keep-missing", "--delete-missing"], 2, "different things"),
        (["fifo"], 5, "FIFO"),
    ],
)
def test_what_cannot_be_added(project: Project, argv: list[str], code: int, words: str) -> None:
    os.mkfifo(project.top / "fifo")
    done = project.dvk("add", *argv)
    assert done.code == code and words in done.err
    assert not (project.top / "im.dvk").exists()


def test_status_of_a_new_repository(project: Project) -> None:
    assert project.dvk("status").out == "On branch main\nnothing is tracked yet: dvk add PATH starts\n"


def test_status_through_a_day(project: Project, tmp_path: Path) -> None:
    project.dvk("add", "data/t.csv", "im")
    done = project.dvk("status")
    assert done.out == (
        "On branch main\n"
        "Staged:  (`git commit` records them)\n"
        "    new  data/t.csv  50 kB\n"
        "    new  im/         2 files, 1 kB\n"
        "Not pushed: 2 versions, 51 kB  (`dvk remote add origin URL` says where to)\n"
    )
    project.git("commit", "-q", "-m", "v1")
    assert project.dvk("status", "--exit-code").code == 0
    project.push(tmp_path / "store")
    assert project.dvk("status").out == "On branch main\nnothing to do: 2 paths, 51 kB in step\n"
    project.write({"im/new": b"1", "data/t.csv": b"2"})
    os.unlink(project.top / "im/b")
    done = project.dvk("status", folder="data")
    assert done.out == (
        "On branch main\n"
        "Changed:  (`dvk add -u` records them, `dvk checkout PATH` takes them back)\n"
        "    modified  t.csv\n"
        "    modified  ../im/  +1 -1\n"
    )
    assert (project.dvk("status").code, project.dvk("status", "--exit-code").code) == (0, 4)
    document = project.dvk("status", "--exit-code", "--json").document
    assert document["ok"] and [p["modified"] for p in document["result"]["paths"]] == [1, 0]
    assert project.dvk("-q", "status").out.splitlines()[2].split() == ["modified", "data/t.csv"]


def test_status_of_a_fresh_clone_and_of_missing_data(project: Project, tmp_path: Path) -> None:
    project.dvk("add", "data/t.csv", "im")
    project.git("commit", "-q", "-m", "v1")
    clone = project.clone(tmp_path / "clone")
    done = clone.dvk("status")
    assert "Not fetched:  (`dvk pull` brings them)" in done.out and "not here  data/t.csv  50 kB" in done.out
    os.unlink(project.top / "data/t.csv")
    done = project.dvk("status")
    assert "Missing:  (`dvk checkout PATH` brings them back" in done.out and "missing  data/t.csv  50 kB" in done.out


def test_a_pointer_that_cannot_be_read_is_a_partial_failure(project: Project) -> None:
    project.dvk("add", "im")
    project.write({"bad.dvk": b"<<<<<<< HEAD\n", "crlf.dvk": project.read("im.dvk").replace(b"\n", b"\r\n")})
    done = project.dvk("status")
    assert done.code == 3 and "new  im/" in done.out
    assert "bad.dvk" in done.err and "crlf.dvk: has CRLF line ends" in done.err


def test_a_pointer_that_went_leaves_data_that_is_named(project: Project) -> None:
    project.dvk("add", "im")
    project.git("rm", "-q", "--cached", "im.dvk")
    os.unlink(project.top / "im.dvk")
    done = project.dvk("status")
    assert "Left behind" in done.out and "no pointer  im" in done.out
