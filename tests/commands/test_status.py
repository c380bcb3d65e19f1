"""`status` tells the states of a path apart, reads only what may have changed and never uses the network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from projects import Project, noise

from dvk.commands.add import add
from dvk.commands.pull import pull
from dvk.commands.status import PathStatus, Status, status
from dvk.errors import FormatError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version({"a": noise(10_000, 1), "d/x/1": b"1", "d/y": b"2"}, "a", "d")
    return made


def look(project: Project, *paths: str) -> Status:
    with project.repo() as repo:
        found, problems = status(repo, paths)
    assert problems == []
    return found


def of(project: Project, path: bytes) -> PathStatus:
    return next(p for p in look(project).paths if p.path == path)


def test_nothing_changed_is_clean(project: Project) -> None:
    found = look(project)
    assert found.clean and found.branch == "main" and [p.path for p in found.paths] == [b"a", b"d"]


def test_changes_on_disk_are_counted(project: Project) -> None:
    project.write({"a": b"other", "d/y": b"22", "d/new": b"3"})
    os.unlink(project.top / "d/x/1")
    os.rmdir(project.top / "d/x")
    assert of(project, b"a").modified == 1
    d = of(project, b"d")
    assert (d.modified, d.added, d.missing) == (1, 1, 1)
    assert not look(project).clean


def test_touching_a_file_changes_nothing(project: Project) -> None:
    os.utime(project.top / "a")
    os.utime(project.top / "d/y")
    assert look(project).clean


def test_a_change_of_the_same_size_and_time_is_seen(project: Project) -> None:
    before = os.stat(project.top / "a")
    project.write({"a": noise(10_000, 2)})
    os.utime(project.top / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert of(project, b"a").modified == 1


def test_the_executable_bit_is_a_change(project: Project) -> None:
    os.chmod(project.top / "a", 0o755)
    assert of(project, b"a").modified == 1


def test_index_and_pointer_are_compared_with_head(project: Project) -> None:
    project.write({"a": b"2", "new": b"3"})
    with project.repo() as repo:
        add(repo, ["a", "new"])
        project.write({"d/y": b"4"})
        add(repo, ["d"], stage=False)
    project.git("rm", "-q", "--cached", "new.dvk")
    found = {p.path: (p.staged, p.unstaged) for p in look(project).paths}
    assert found == {b"a": ("modified", False), b"d": ("", True), b"new": ("", True)}
    project.git("rm", "-q", "-f", "a.dvk")
    assert of(project, b"a").staged == "deleted"


def test_missing_not_present_and_not_fetched_are_three_things(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "store")
    clone = project.clone(tmp_path / "clone")
    clone.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}"
    assert all(p.not_fetched for p in look(clone).paths)
    with clone.repo() as repo:
        pull(repo, ["a", "d/x"])
    d = of(clone, b"d")
    assert (d.not_present, d.missing, d.not_fetched, d.clean) == (1, 0, False, True)
    os.unlink(clone.top / "a")
    assert (of(clone, b"a").missing, of(clone, b"a").not_fetched) == (1, False)


def test_not_pushed_counts_versions_and_a_push_clears_it(project: Project, tmp_path: Path) -> None:
    project.version({"a": noise(20_000, 3)}, "a")
    found = look(project)
    assert (found.not_pushed, found.not_pushed_bytes, found.remote) == (3, 30_002, "")
    project.push(tmp_path / "store")
    assert (look(project).not_pushed, look(project).remote) == (0, "origin")
    shutil.rmtree(tmp_path / "store")
    assert look(project).not_pushed == 0


def test_paths_narrow(project: Project) -> None:
    assert [p.path for p in look(project, "d").paths] == [b"d"]


def test_broken_pointers_are_reported_beside_the_rest(project: Project) -> None:
    project.write({"bad.dvk": b"junk", "newer.dvk": b"dvk pointer 9\n"})
    with project.repo() as repo:
        found, problems = status(repo)
    assert [p.path for p in found.paths] == [b"a", b"d"]
    assert {(e.subject, e.kind) for e in problems} == {("bad.dvk", "malformed"), ("newer.dvk", "newer-format")}
    assert all(isinstance(e, FormatError) for e in problems)


def test_data_without_a_pointer_is_left_behind(project: Project) -> None:
    project.git("rm", "-q", "a.dvk")
    assert look(project).left_behind == [b"a"]
