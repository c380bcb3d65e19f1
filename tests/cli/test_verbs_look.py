"""`log`, `ls`, `cat` and `get` as a person types them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from projects import Project, files_below, noise


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version(
        {"data/t.csv": noise(50_000, 1), "im/a/1": b"one", "im/b": b"22"}, "data/t.csv", "im", message="v1: in"
    )
    made.git("tag", "v1")
    made.version({"data/t.csv": noise(50_000, 1) + b"end", "im/b": b"333"}, "data/t.csv", "im", message="v2")
    return made


def test_log(project: Project) -> None:
    done = project.dvk("log", "t.csv", folder="data")
    rows = [re.split(r"\s{2,}", line) for line in done.out.splitlines()]
    assert [r[2:4] for r in rows] == [["Ada", "50 kB"]] * 2
    assert [r[-1] for r in rows] == ["v2", "v1: in"] and rows[1][4] == "50 kB new"
    assert project.dvk("log", "v1", "--", "im").out.splitlines()[0].endswith("[2 files] v1: in")
    assert "older versions are not shown" in project.dvk("log", "im", "-n", "1").out
    result = project.dvk("log", "im", "--json").document["result"]
    assert (result["path"], result["more"]) == ("im", False)
    assert [(v["subject"], v["size"], v["files"], v["new_bytes"]) for v in result["versions"]] == [
        ("v2", 6, 2, 3),
        ("v1: in", 5, 2, 5),
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", result["versions"][0]["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", result["versions"][0]["date"])
    assert (project.dvk("log", "nope").code, project.dvk("log", "a", "b").code) == (6, 2)


def test_ls(project: Project) -> None:
    assert project.dvk("ls").out == "data/t.csv\nim/\n"
    assert project.dvk("ls", folder="data").out == "t.csv\n../im/\n"
    assert project.dvk("ls", "im").out == "im/a/\nim/b\n"
    assert project.dvk("ls", "v1:im/a").out == "im/a/1\n"
    assert project.dvk("ls", "-r", "HEAD:").out == "data/t.csv\nim/a/1\nim/b\n"
    lines = project.dvk("ls", "-l").out.splitlines()
    assert [line.split()[:3] for line in lines] == [["file", "50", "kB"], ["dir", "6", "B"]]
    assert project.dvk("ls", "nope").code == 6
    result = project.dvk("ls", "im", "--json").document["result"]
    assert [(e["path"], e["kind"], e["size"]) for e in result["entries"]] == [("im/a", "dir", 3), ("im/b", "file", 3)]
    assert "failures" not in result


def test_a_broken_pointer_is_named_and_the_others_listed(project: Project) -> None:
    project.write({"bad.dvk": b"junk\n"})
    done = project.dvk("ls")
    assert (done.code, done.out) == (3, "data/t.csv\nim/\n") and "bad.dvk: not a dvk pointer" in done.err
    document = project.dvk("ls", "--json").document
    assert (document["ok"], document["error"]["kind"], len(document["result"]["entries"])) == (False, "partial", 2)


def test_cat(project: Project) -> None:
    done = project.dvk("cat", "v1:im/b")
    assert (done.code, done.out, done.err) == (0, "22", "")
    assert project.dvk("cat", "./b", folder="im").out == "333"
    assert project.dvk("cat", ":im/b").out == "333"
    done = project.dvk("cat", "im")
    assert (done.code, done.out) == (5, "") and "dvk get im -o OUT" in done.err
    assert project.dvk("cat", "im/b", "--json").document["error"]["kind"] == "usage"
    assert project.dvk("cat", "HEAD:im/zz").code == project.dvk("cat", "v9:im/b").code == 6


def test_get(project: Project, tmp_path: Path) -> None:
    done = project.dvk("get", "v1:im", "-o", "old")
    assert (done.code, done.out) == (0, "old/ 2 files, 5 B, verified\n")
    assert files_below(project.top / "old") == {"a/1": b"one", "b": b"22"}
    done = project.dvk("get", "im", "-o", "old")
    assert done.code == 5 and "--force" in done.err
    assert project.dvk("get", "im", "-o", "old", "--force").out == "old/ 1 file, 3 B, verified; 1 file there already\n"
    assert project.dvk("get", "v1:im/b", "-o", "-").out == "22"
    done = project.dvk("get", "im", "-o", "-")
    assert done.code == 5 and "-o OUT" in done.err
    done = project.dvk("get", "v1:data/t.csv", "--json")
    result = done.document["result"]
    assert (result["path"], result["kind"], result["files"], result["written_bytes"]) == (
        "data/t.csv",
        "file",
        1,
        50_000,
    )
    assert project.read("t.csv") == noise(50_000, 1)


def test_what_is_not_here_comes_from_the_remote_or_says_who_has_it(project: Project, tmp_path: Path) -> None:
    clone = project.clone(tmp_path / "clone")
    done = clone.dvk("cat", "v1:im/b")
    assert done.code == 7 and "by Ada" in done.err and "dvk remote add" in done.err
    project.push(tmp_path / "store")
    clone.git("pull", "-q")
    done = clone.dvk("cat", "v1:im/b", environ={"DVK_TRUST_REMOTES": f"file://{tmp_path}"})
    assert (done.code, done.out) == (0, "22") and "it is read from origin" in done.err
    assert clone.dvk("cat", "im/b", "--remote", "nope").code == 6


def test_names_that_could_talk_to_a_terminal_are_escaped(project: Project) -> None:
    name = b"d/\x1b[31mred\n"
    project.version({name: b"1"}, "d")
    done = project.dvk("ls", "d")
    assert "\x1b" not in done.out and done.out.count("\n") == 1
    assert project.dvk("ls", "d", "--json").document["result"]["entries"][0]["path"] == os.fsdecode(name)
