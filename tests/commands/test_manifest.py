"""`manifest` says what a version holds and what a job read; its key changes exactly when the data does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from projects import Project, noise

from dvk.commands.manifest import manifest, read_manifest
from dvk.errors import FormatError, NotFound


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version({"data/t.bin": noise(9000, 1), "im/a/1": b"one", "im/b": noise(700, 2)}, "data/t.bin", "im")
    made.git("tag", "v1")
    made.version({"data/t.bin": noise(9000, 3)}, "data/t.bin")
    return made


def key(project: Project, rev: str | None = None, *paths: str) -> str:
    with project.repo() as repo:
        return manifest(repo, rev, paths).key


def said(project: Project, *argv: str, environ: dict[str, str] | None = None, code: int = 0) -> Any:
    done = project.dvk("manifest", *argv, environ=environ)
    assert done.code == code, done.err
    return json.loads(done.out) if done.out.startswith("{") else done.out


def test_a_manifest_names_every_path_with_id_and_size(project: Project) -> None:
    commit = project.git("rev-parse", "v1").strip()
    found = said(project, "v1")
    assert (found["manifest"], found["rev"], found["commit"]) == (1, "v1", commit)
    assert (found["size"], found["files"]) == (9703, 3)
    assert [(p["path"], p["kind"], p["size"], p["files"]) for p in found["paths"]] == [
        ("data/t.bin", "file", 9000, None),
        ("im", "dir", 703, 2),
    ]
    pointer = project.git("show", "v1:data/t.bin.dvk")
    assert f"id {found['paths'][0]['id']}\n" in pointer
    each = said(project, "-r", "v1", "--", "im")
    assert [(p["path"], p["size"]) for p in each["paths"]] == [("im/a/1", 3), ("im/b", 700)]


def test_the_key_follows_the_data_and_nothing_else(project: Project) -> None:
    first, second = key(project, "v1"), key(project, "HEAD")
    assert first != second and len(first) == 32
    assert key(project) == second, "the work tree is at HEAD"
    assert key(project, "v1", "im") == key(project, "HEAD", "im"), "im did not change"
    project.git("commit", "-q", "--allow-empty", "-m", "only code")
    assert key(project, "HEAD") == second
    assert project.dvk("mv", "data/t.bin", "other.bin").code == 0
    assert key(project) == second, "renamed data is the same data"
    project.write({"im/b": b"x"})
    assert project.dvk("add", "im").code == 0
    assert key(project) != second
    assert key(project, "HEAD", "im/a") == key(project, None, "im/a") != key(project, None, "im")
    assert project.dvk("manifest", "--key").out == key(project) + "\n"


def test_the_key_of_every_file_is_that_of_the_folders(project: Project) -> None:
    """A link, an executable bit and an empty folder are data as well, though no file's content."""
    keys = []
    for change in (
        lambda: os.symlink("b", project.top / "im/link"),
        lambda: (project.top / "im/b").chmod(0o755),
        lambda: (project.top / "im/empty").mkdir(),
    ):
        change()
        assert project.dvk("add", "im").code == 0
        with project.repo() as repo:
            keys.append(manifest(repo, None, ["im"], recursive=True).key)
            assert keys[-1] == manifest(repo, None, ["im"]).key
            part = manifest(repo, None, ["im/a"], recursive=True)
            assert part.key == manifest(repo, None, ["im/a"]).key and [p.path for p in part.paths] == [b"im/a/1"]
    assert len(set(keys)) == 3


def test_a_clone_without_data_makes_the_same_manifest(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "remote")
    clone = project.clone(tmp_path / "clone")
    clone.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}/remote"
    assert said(clone, "v1") == said(project, "v1")
    assert said(clone, "-r", "v1") == said(project, "-r", "v1")
    assert key(clone, "v1", "im/a") == key(project, "v1", "im/a")


def test_what_does_not_exist_is_named_with_what_is_near(project: Project) -> None:
    with project.repo() as repo:
        with pytest.raises(NotFound) as caught:
            manifest(repo, "v1", ["t.bin"])
        assert caught.value.hint == "did you mean data/t.bin?"
        with pytest.raises(NotFound, match="no such revision"):
            manifest(repo, "v3")
        with pytest.raises(NotFound):
            manifest(repo, "v1", ["im/none"])
    assert project.dvk("manifest", "v9").code == 6
    project.git("tag", "im")
    assert project.dvk("manifest", "im").code == 2, "a tag and a path"
    assert said(project, "im", "--")["rev"] == "im"
    assert said(project, "--", "im")["rev"] == ""


def test_a_pointer_that_cannot_be_read_makes_no_manifest(project: Project) -> None:
    project.write({"bad.dvk": b"no pointer"})
    project.git("add", "bad.dvk")
    with project.repo() as repo, pytest.raises(FormatError):
        manifest(repo)


def test_what_a_job_read_is_noted_by_its_commands(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "remote")
    clone = project.clone(tmp_path / "clone")
    clone.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}/remote"
    ledger = {"DVK_MANIFEST": str(tmp_path / "job.jsonl")}
    for argv in (
        ["pull", "data/t.bin"],
        ["pull", "im/a"],
        ["get", "v1:data/t.bin", "-o", "old"],
        ["checkout", "data/t.bin"],
        ["get", "--repo", "../p", "v1:im/b", "-o", "b"],
        ["status"],
    ):
        done = clone.dvk(*argv, environ=ledger)
        assert done.code == 0, done.err
    found = read_manifest(ledger["DVK_MANIFEST"])
    assert len(found.paths) == 4, "two versions of t.bin"
    assert {(p.path, p.parts, p.repo) for p in found.paths} == {
        (b"data/t.bin", (), ""),
        (b"im", (b"a",), ""),
        (b"im", (b"b",), f"file://{project.top}"),
    }
    assert said(clone, "--read", ledger["DVK_MANIFEST"])["key"] == found.key
    assert clone.dvk("pull", environ={"DVK_MANIFEST": "/nowhere/x"}).code != 0, "a job with a record has one"


def test_commands_of_a_job_that_run_at_once_share_the_file(project: Project, tmp_path: Path) -> None:
    for i in range(30):
        project.write({f"f{i}": noise(100, i)})
    project.version({}, *[f"f{i}" for i in range(30)])
    environ = {**os.environ, **project.environ, "DVK_MANIFEST": str(tmp_path / "job")}
    runs = [
        subprocess.Popen(["dvk", "checkout", f"f{i}", f"f{i + 10}", f"f{i + 20}"], cwd=project.top, env=environ)
        for i in range(4)
    ]
    assert [run.wait() for run in runs] == [0] * 4
    assert len(read_manifest(str(tmp_path / "job")).paths) == 12


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"path": "x", "kind": "link", "id": "00", "size": 1, "files": null, "parts": []}',
        "null",
        '"x"',
        "[" * 100_000,
    ],
)
def test_a_file_of_something_else_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text + "\n")
    with pytest.raises(FormatError, match="line 1"):
        read_manifest(str(tmp_path / "x"))
    with pytest.raises(NotFound):
        read_manifest(str(tmp_path / "y"))
