"""`ls` lists what is tracked and what folders hold, and reads no more pages than it needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from projects import Project

from dvk.commands.ls import Listed, ls
from dvk.errors import DataMissing, FormatError, NotFound
from dvk.events import Note
from dvk.ids import PageId


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    files: dict[str | bytes, bytes] = {f"im/val/{i}.jpg": bytes([i]) * 10 for i in range(3)}
    files |= {"im/a-b": b"1", "im/a/x": b"22", "im/a0": b"333", "t.csv": b"4444"}
    made.write(files)
    os.symlink("a/x", made.top / "im/link")
    os.mkdir(made.top / "im/empty")
    os.chmod(made.top / "im/a0", 0o755)
    made.version({}, "im", "t.csv")
    return made


def names(listed: list[Listed]) -> list[bytes]:
    return [e.path for e in listed]


def test_without_a_path_all_tracked_paths_are_listed(project: Project) -> None:
    with project.repo() as repo:
        found = ls(repo).entries
    assert [(e.path, e.kind, e.size, e.files, e.tracked) for e in found] == [
        (b"im", "dir", 36, 6, True),
        (b"t.csv", "file", 4, 1, True),
    ]


@pytest.mark.parametrize("spec", ["im", "HEAD:im", ":im", "im/"])
def test_one_level_of_a_folder(project: Project, spec: str) -> None:
    with project.repo() as repo:
        found = ls(repo, spec).entries
    assert [(e.path, e.kind, e.size, e.files, e.exec, e.target) for e in found] == [
        (b"im/a-b", "file", 1, 1, False, None),
        (b"im/a", "dir", 2, 1, False, None),
        (b"im/a0", "file", 3, 1, True, None),
        (b"im/empty", "dir", 0, 0, False, None),
        (b"im/link", "link", 3, 0, False, b"a/x"),
        (b"im/val", "dir", 30, 3, False, None),
    ]


def test_a_part_of_a_folder_and_a_single_file(project: Project) -> None:
    with project.repo() as repo:
        assert names(ls(repo, "im/val").entries) == [b"im/val/0.jpg", b"im/val/1.jpg", b"im/val/2.jpg"]
        assert names(ls(repo, "im/val/1.jpg").entries) == [b"im/val/1.jpg"]
        assert names(ls(repo, "t.csv").entries) == [b"t.csv"]
        assert names(ls(repo, "im/empty").entries) == [b"im/empty"]
        with pytest.raises(NotFound, match="no such file or folder"):
            ls(repo, "im/nope")


def test_recursive_lists_every_file(project: Project) -> None:
    with project.repo() as repo:
        found = names(ls(repo, recursive=True).entries)
        assert found == sorted(found) and len(found) == 9
        assert names(ls(repo, "im/val", recursive=True).entries) == [b"im/val/%d.jpg" % i for i in range(3)]


def test_a_revision_before_the_path_was_tracked_has_nothing(project: Project) -> None:
    project.git("rm", "-q", "--cached", "t.csv.dvk")
    project.git("commit", "-q", "-m", "gone")
    with project.repo() as repo:
        assert names(ls(repo, "HEAD:").entries) == [b"im"]
        with pytest.raises(NotFound):
            ls(repo, "HEAD:t.csv")
        assert names(ls(repo, "HEAD~1:").entries) == [b"im", b"t.csv"]


def test_a_broken_pointer_does_not_hide_the_others(project: Project) -> None:
    project.write({"bad.dvk": b"junk\n"})
    with project.repo() as repo:
        found = ls(repo)
    assert names(found.entries) == [b"im", b"t.csv"]
    assert [type(e) for e in found.failures] == [FormatError]


def test_one_level_of_a_big_folder_reads_the_pages_around_it_only(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", tmp_path / "home")
    files: dict[str | bytes, bytes] = {f"d/{s}/{i:05}": b"" for s in ("a", "b") for i in range(9000)}
    project.version({**files, "d/one": b"1"}, "d")
    with project.repo() as repo:
        loaded: list[PageId] = []
        load = repo.store.load_page

        def counting(name: PageId) -> bytes:
            loaded.append(name)
            return load(name)

        repo.store.load_page = counting  # type: ignore[method-assign]
        found = ls(repo, "d").entries
        one_level = len(loaded)
        loaded.clear()
        assert len(ls(repo, "d", recursive=True).entries) == 18_001
    assert [(e.path, e.files, e.size) for e in found] == [(b"d/a", 9000, 0), (b"d/b", 9000, 0), (b"d/one", 1, 1)]
    assert one_level < len(loaded) / 1.5


def test_a_fresh_clone_lists_from_the_remote_and_keeps_nothing(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "store")
    clone = project.clone(tmp_path / "clone")
    notes: list[object] = []
    with clone.repo() as repo:
        found = ls(repo, "im", on_event=notes.append)
        assert not os.path.exists(repo.workspace.store_dir)
    assert found.remote == "origin" and any(isinstance(n, Note) and "origin" in n.message for n in notes)
    with project.repo() as repo:
        assert found.entries == ls(repo, "im").entries


def test_a_list_that_is_nowhere_is_named_with_who_could_help(project: Project, tmp_path: Path) -> None:
    clone = project.clone(tmp_path / "clone")
    with clone.repo() as repo:
        assert names(ls(repo).entries) == [b"im", b"t.csv"]
        with pytest.raises(DataMissing) as caught:
            ls(repo, "im")
    assert "by Ada" in caught.value.message and "no remote is configured" in caught.value.message
