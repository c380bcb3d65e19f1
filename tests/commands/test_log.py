"""`log` lists the versions of one path and what was new in each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from projects import Project, noise

from dvk.commands.log import Log, log
from dvk.errors import NotFound, Refused, UsageError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def logged(project: Project, path: str | bytes, **options: object) -> Log:
    with project.repo() as repo:
        return log(repo, path, **options)  # type: ignore[arg-type]


def test_versions_of_a_file_newest_first(project: Project) -> None:
    first = noise(1_000_000, 1)
    ids = [
        project.version({"a.bin": first}, "a.bin", message="v1"),
        project.version({"a.bin": first + b"tail"}, "a.bin", message="v2"),
        project.version({"a.bin": first}, "a.bin", message="back"),
    ]
    found = logged(project, "a.bin")
    assert [(v.commit, v.subject, v.size) for v in found.versions] == [
        (ids[2], "back", 1_000_000),
        (ids[1], "v2", 1_000_004),
        (ids[0], "v1", 1_000_000),
    ]
    new = [v.new_bytes for v in found.versions]
    assert new[2] == 1_000_000
    # At most the last two chunks (192 KiB each) around an edit at the end.
    assert all(n is not None and 0 < n < 400_000 for n in new[:2])
    v = found.versions[0]
    assert (v.author, v.email, v.kind, v.files) == ("Ada", "ada@example.org", "file", 1)
    assert v.date is not None and v.date.tzinfo is not None


def test_content_that_occurs_twice_is_new_once(project: Project) -> None:
    project.version({"d/a": b"same", "d/b": b"same", "d/c": b"other"}, "d")
    assert logged(project, "d").versions[0].new_bytes == 9


def test_versions_of_a_folder_count_files_with_new_content(project: Project) -> None:
    project.version({"d/a": b"1", "d/b": b"22"}, "d")
    project.version({"d/a": b"333", "d/c": b"22"}, "d")
    found = logged(project, "d").versions
    assert [(v.kind, v.files, v.size, v.new_bytes) for v in found] == [("dir", 3, 7, 3), ("dir", 2, 3, 3)]


def test_a_part_of_a_folder_has_the_versions_that_changed_it(project: Project) -> None:
    project.version({"d/x/1": b"1", "d/y": b"2"}, "d", message="first")
    project.version({"d/y": b"22"}, "d", message="y alone")
    project.version({"d/x/1": b"111"}, "d", message="x")
    os.unlink(project.top / "d/x/1")
    project.version({}, "d", message="gone")
    assert [(v.subject, v.deleted, v.size) for v in logged(project, "d/x/1").versions] == [
        ("gone", True, None),
        ("x", False, 3),
        ("first", False, 1),
    ]
    assert [v.subject for v in logged(project, "d/y").versions] == ["y alone", "first"]


def test_deleted_versions_and_paths_are_shown(project: Project) -> None:
    project.version({"a": b"1"}, "a", message="in")
    project.git("rm", "-q", "a.dvk")
    project.git("commit", "-q", "-m", "out")
    project.version({"a": b"12"}, "a", message="in again")
    found = logged(project, "a").versions
    assert [(v.subject, v.deleted, v.new_bytes) for v in found] == [
        ("in again", False, 2),
        ("out", True, None),
        ("in", False, 1),
    ]
    project.git("rm", "-q", "a.dvk")
    project.git("commit", "-q", "-m", "out again")
    assert [v.subject for v in logged(project, "a").versions][:2] == ["out again", "in again"]


def test_limit_and_revision_narrow(project: Project) -> None:
    ids = [project.version({"a": b"x" * n}, "a", message=str(n)) for n in range(1, 5)]
    found = logged(project, "a", limit=2)
    assert [v.subject for v in found.versions] == ["4", "3"] and found.more
    assert [v.new_bytes for v in found.versions] == [4, 3]
    found = logged(project, "a", rev=ids[1], limit=2)
    assert [v.subject for v in found.versions] == ["2", "1"] and not found.more
    with pytest.raises(UsageError):
        logged(project, "a", limit=0)


def test_what_is_new_is_unknown_where_the_data_never_was(project: Project, tmp_path: Path) -> None:
    project.version({"a": noise(200_000, 1), "d/x": b"1"}, "a", "d")
    project.version({"a": noise(200_000, 2), "d/x": b"2"}, "a", "d")
    clone = project.clone(tmp_path / "clone")
    for path in ("a", "d"):
        assert [(v.size is not None, v.new_bytes) for v in logged(clone, path).versions] == [(True, None)] * 2
    assert [v.problem != "" for v in logged(clone, "d/x").versions] == [True, True]


def test_a_pointer_that_was_broken_is_named_and_the_rest_shown(project: Project) -> None:
    project.version({"a": b"1"}, "a", message="good")
    project.git_repo.commit({"a.dvk": b"junk\n"}, "bad")
    found = logged(project, "a").versions
    assert [(v.subject, bool(v.problem), v.size) for v in found] == [("bad", True, None), ("good", False, 1)]


def test_no_versions_is_an_error_that_says_why(project: Project, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing is committed yet"):
        logged(project, "a")
    project.version({"a": b"1"}, "a")
    with pytest.raises(NotFound, match="no commit up to HEAD"):
        logged(project, "b")
    with pytest.raises(NotFound, match="no such revision"):
        logged(project, "a", rev="nope")
    with pytest.raises(UsageError):
        logged(project, ".")
    plain = Project(tmp_path / "plain", tmp_path / "home", init=False)
    plain.top.mkdir(exist_ok=True)
    plain.write({"dvk.toml": b"format = 1\n"})
    with pytest.raises(Refused, match="no Git history"):
        logged(plain, "a")
