"""`log` lists the versions of one path and what was new in each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from projects import Project, noise

from dvk.commands.log import Log, Stat, log
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


# ------------------------------------------------------------ tags, and how much changed

CSV = b"id,price\n" + b"".join(b"%d,%d\n" % (i, i * 7) for i in range(2000))


def test_tags_name_the_versions_that_they_released(project: Project) -> None:
    project.version({"t.csv": CSV}, "t.csv", message="one")
    project.git("tag", "v1")
    project.git("tag", "-a", "-m", "the first", "first")
    project.version({"t.csv": CSV + b"2000,1\n"}, "t.csv", message="never released")
    project.git("commit", "-q", "--allow-empty", "-m", "code")
    project.git("tag", "v1.1-code")
    project.git("checkout", "-q", "-b", "side", "v1")
    project.version({"t.csv": CSV + b"2000,9\n"}, "t.csv", message="side")
    project.git("tag", "side-1")
    project.git("checkout", "-q", "main")
    blob = project.git("rev-parse", "HEAD:t.csv.dvk").strip()
    project.git("tag", "of-a-file", blob)
    found = logged(project, "t.csv", tags=True).versions
    assert [(set(v.tags), v.subject) for v in found] == [
        ({"side-1"}, "side"),
        ({"v1.1-code"}, "code"),
        ({"v1", "first"}, "one"),
    ]
    assert [v.size for v in found] == [len(CSV) + 7, len(CSV) + 7, len(CSV)]
    assert [set(v.tags) for v in logged(project, "t.csv", tags=True, limit=1).versions] == [{"side-1"}]
    with pytest.raises(NotFound, match="no tag has a version"):
        logged(project, "other.csv", tags=True)
    project.git("tag", "-a", "-m", "again", "twice", "first")
    assert "twice" in next(v for v in logged(project, "t.csv", tags=True).versions if v.subject == "one").tags
    project.version({"new.csv": CSV}, "new.csv", message="not tagged")
    with pytest.raises(NotFound) as none:
        logged(project, "new.csv", tags=True)
    assert "did you mean" not in none.value.hint and "without --tags" in none.value.hint


def test_a_part_of_a_folder_at_tags(project: Project) -> None:
    project.version({"d/a/1": b"1", "d/b": b"2"}, "d")
    project.git("tag", "v1")
    project.version({"d/b": b"22"}, "d")
    project.git("tag", "v2")
    assert [(v.tags, v.new_bytes) for v in logged(project, "d/a", tags=True).versions] == [(("v2",), 0), (("v1",), 1)]


def test_diffstat_counts_rows_of_tables_files_of_folders_and_else_bytes(project: Project) -> None:
    pytest.importorskip("duckdb")
    first = noise(1_000_000, 1)
    project.version({"t.csv": CSV, "d/a": b"1", "d/b": b"2", "a.bin": first}, "t.csv", "d", "a.bin")
    edited = CSV.replace(b"\n7,49\n", b"\n7,50\n").replace(b"\n9,63\n", b"\n") + b"3000,1\n3001,1\n"
    project.version({"t.csv": edited, "d/a": b"11", "d/c": b"3", "a.bin": first + b"tail"}, "t.csv", "d", "a.bin")
    rows = [v.stat for v in logged(project, "t.csv", diffstat=True).versions]
    assert rows[0] == Stat("rows", 2, 1, 1)
    assert [v.stat for v in logged(project, "d", diffstat=True).versions] == [
        Stat("files", 1, 0, 1),
        Stat("files", 2, 0),
    ]
    newest, oldest = [v.stat for v in logged(project, "a.bin", diffstat=True).versions]
    assert oldest == Stat("bytes", 1_000_000, 0)
    assert newest is not None and newest.unit == "bytes" and 4 < newest.added == newest.removed + 4 < 400_000
    assert [v.stat for v in logged(project, "t.csv").versions] == [None, None]
    done = project.dvk("log", "--diffstat", "t.csv")
    assert done.code == 0 and "+2 -1 ~1 rows" in done.out, done.out


def test_diffstat_of_what_is_not_here_is_not_guessed_and_not_fetched(project: Project, tmp_path: Path) -> None:
    project.version({"t.csv": CSV}, "t.csv")
    project.push(tmp_path / "remote")
    clone = project.clone(tmp_path / "clone")
    assert [v.stat for v in logged(clone, "t.csv", diffstat=True).versions] == [None]
    assert not (clone.top / ".git/dvk/store/p").exists()
