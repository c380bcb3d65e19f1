"""`add` records exactly what is on disk, keeps what was never asked for, and refuses what it cannot keep."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from projects import Project, noise

from dvk.commands import add_version
from dvk.commands.add import AddResult, add
from dvk.commands.ls import ls
from dvk.commands.pull import pull
from dvk.errors import DvkError, NotFound, Refused, StorageError, UsageError
from dvk.ids import EMPTY_FILE
from dvk.store import pages, pagewriter
from dvk.store.ingest import ingest
from dvk.workspace.repo import Workspace


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def added(project: Project, *paths: str | bytes, folder: str = "", **options: bool) -> AddResult:
    with project.repo(folder) as repo:
        return add(repo, paths, **options)


def listed(project: Project, path: str) -> dict[bytes, int]:
    with project.repo() as repo:
        return {e.path: e.size for e in ls(repo, path, recursive=True).entries}


def test_a_path_and_its_pointer_mean_the_same_and_a_repeat_stores_nothing(project: Project) -> None:
    project.write({"a.bin": noise(100_000, 1)})
    first = added(project, "a.bin").paths[0]
    assert first.changed and first.new_bytes == 100_000
    again = added(project, "a.bin.dvk", "./a.bin").paths
    assert [(a.path, a.changed, a.stored_bytes) for a in again] == [(b"a.bin", False, 0)]


def test_git_sees_pointers_and_no_data(project: Project) -> None:
    project.write({"d/x": b"1", "big": b"2"})
    added(project, "d", "big")
    project.git("add", "-A")
    assert project.git("ls-files").split() == ["big.dvk", "d.dvk"]


def test_one_file_of_a_folder_changes_that_entry_alone(project: Project) -> None:
    project.version({f"d/{i}": b"%d" % i for i in range(5)}, "d")
    project.write({"d/new": b"n", "d/0": b"changed, not named"})
    done = added(project, "d/new").paths[0]
    assert (done.path, done.files, done.added, done.modified) == (b"d", 6, 1, 0)
    assert listed(project, "d")[b"d/0"] == 1


def test_a_new_file_keeps_what_was_never_pulled(project: Project, tmp_path: Path) -> None:
    project.version({f"d/{s}/{i}": b"%d" % i for s in "ab" for i in range(20)}, "d")
    project.push(tmp_path / "store")
    clone = project.clone(tmp_path / "clone")
    clone.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}"
    with clone.repo() as repo:
        pull(repo, ["d/a"])
    clone.write({"d/a/new": b"n"})
    done = added(clone, "d").paths[0]
    assert (done.files, done.added, done.removed, done.not_present) == (41, 1, 0, 20)
    os.unlink(clone.top / "d/a/3")
    done = added(clone, "d").paths[0]
    assert (done.files, done.removed) == (40, 1)


def test_empty_files_and_folders_and_odd_names_are_kept(project: Project) -> None:
    odd = [b"-rf", b"with space", b"new\nline", b"caf\xe9", b"n" * 255]
    project.write({b"d/" + name: b"" for name in odd})
    project.write({b"-x y\xe9.bin": b"1", "empty": b""})
    os.mkdir(project.top / "d/void")
    done = added(project, "d", b"./-x y\xe9.bin", "empty")
    assert {a.path: a.files for a in done.paths} == {b"d": 5, b"-x y\xe9.bin": 1, b"empty": 1}
    with project.repo() as repo:
        assert {e.path for e in ls(repo, "d").entries} == {b"d/" + n for n in [*odd, b"void"]}
        assert repo.workspace.read_pointer(b"empty").id == EMPTY_FILE


def test_what_cannot_be_stored_is_all_named_and_nothing_recorded(project: Project, tmp_path: Path) -> None:
    project.write({"d/fine": b"1", "d/secret": b"2"})
    os.mkfifo(project.top / "d/fifo")
    os.symlink("/etc/passwd", project.top / "d/out")
    here = os.getcwd()
    os.chdir(project.top / "d")
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind("sock")
    finally:
        os.chdir(here)
    with pytest.raises(DvkError) as caught:
        added(project, "d")
    server.close()
    named = " ".join(map(str, caught.value.failures))
    assert "d/fifo" in named and "d/sock" in named and "out" in named, named
    assert not (project.top / "d.dvk").exists()
    assert "d.dvk" not in project.git("ls-files")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(project: Project) -> None:
    project.write({"d/a": b"1"})
    os.chmod(project.top / "d/a", 0)
    with pytest.raises(StorageError, match="d/a"):
        added(project, "d")


def test_one_path_has_one_owner(project: Project) -> None:
    project.git_repo.commit({"code/x.py": b"1"})
    with pytest.raises(Refused) as caught:
        added(project, "code")
    assert "code/x.py" in caught.value.message and "git rm -r --cached code" in caught.value.hint
    project.write({"d/sub/x": b"1"})
    added(project, "d/sub")
    with pytest.raises(DvkError) as caught:
        added(project, "d")
    assert "d/sub" in str(caught.value)
    assert not (project.top / "d.dvk").exists()


def test_arguments_that_make_no_sense_touch_nothing(project: Project) -> None:
    project.write({"a": b"1"})
    cases: list[tuple[tuple[str, ...], type[DvkError]]] = [
        ((), UsageError),
        ((".",), UsageError),
        (("..",), UsageError),
        (("nope",), NotFound),
        (("a", "nope"), NotFound),
        ((".git/config",), UsageError),
    ]
    for paths, kind in cases:
        with pytest.raises(kind):
            added(project, *paths)
    assert not (project.top / "a.dvk").exists() and not (project.top / ".git/dvk/p").exists()


def test_update_takes_what_changed_and_leaves_what_is_gone(project: Project) -> None:
    project.version({"a": b"1", "b": b"2", "d/x": b"3"}, "a", "b", "d")
    project.write({"a": b"11"})
    os.unlink(project.top / "b")
    shutil.rmtree(project.top / "d")
    done = added(project, update=True)
    assert {a.path: a.changed for a in done.paths} == {b"a": True}
    assert project.read("b.dvk") and project.read("d.dvk")


def test_a_rule_of_the_users_does_not_keep_a_pointer_out(project: Project) -> None:
    project.write({".gitignore": b"*.dvk\n", "a": b"1"})
    done = added(project, "a")
    assert done.staged == 1 and ".gitignore:1" in done.overruled[b"a.dvk"]


def test_of_many_files_one_that_changed_is_all_that_is_read_and_its_page_all_that_is_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of 200 entries here; how long pages are in a folder of real size is a promise of theirs."""
    for module in (pages, pagewriter):
        monkeypatch.setattr(module, "MIN_ENTRIES", 100)
        monkeypatch.setattr(module, "MAX_ENTRIES", 300)
    names = [f"d/{i % 20:02}/{i:05}" for i in range(2000)]
    project.write({name: b"%d" % i for i, name in enumerate(names)})
    time.sleep(0.05)  # a file as young as the clock is read again to be sure
    read: list[int] = []

    def counted(*arguments: Any, **settings: Any) -> Any:
        read.append(len(arguments[2]))
        return ingest(*arguments, **settings)

    def page_bytes() -> int:
        return sum(p.stat().st_size for p in (project.top / ".git" / "dvk").glob("**/m/*/*"))

    monkeypatch.setattr(add_version, "ingest", counted)
    added(project, "d")
    whole = page_bytes()
    assert read == [2000] and whole > 64_000
    project.write({names[700]: b"changed"})
    assert added(project, "d").paths[0].modified == 1
    assert read == [2000, 1]
    assert 0 < page_bytes() - whole < whole // 5


# ---------------------------------------------------------------- another process meanwhile


def meanwhile(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Have `change` happen once: after data was stored for the pointer as it was, before the new pointer is written."""
    lock, left = Workspace.lock, [change]

    def locked(self: Workspace) -> AbstractContextManager[None]:
        while left:
            left.pop()()
        return lock(self)

    monkeypatch.setattr(Workspace, "lock", locked)


def test_a_part_is_put_into_the_version_that_another_process_made_meanwhile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.version({"d/a": b"1", "d/b": b"2"}, "d")
    old = project.read("d.dvk")
    project.write({"d/b": b"theirs"})
    added(project, "d/b")
    theirs = project.read("d.dvk")
    project.write({"d.dvk": old, "d/a": b"ours, longer"})
    meanwhile(monkeypatch, lambda: project.write({"d.dvk": theirs}))
    added(project, "d/a")
    assert listed(project, "d") == {b"d/a": 12, b"d/b": 6}


def test_a_part_of_a_folder_whose_pointer_goes_meanwhile_is_an_error_that_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.version({"d/a": b"1", "d/b": b"2"}, "d")
    project.write({"d/a": b"changed"})
    meanwhile(monkeypatch, (project.top / "d.dvk").unlink)
    with pytest.raises(NotFound, match="another process") as caught:
        added(project, "d/a")
    assert caught.value.subject == "d" and "dvk add d" in caught.value.hint
    assert not (project.top / "d.dvk").exists()
    assert (project.top / "d/a").read_bytes() == b"changed"


def test_a_pointer_that_becomes_one_of_a_file_meanwhile_is_left_alone(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.version({"d/a": b"1", "f": b"2"}, "d", "f")
    other = project.read("f.dvk")
    for path in ("d", "d/a"):
        project.write({"d.dvk": project.git("show", "HEAD:d.dvk").encode(), "d/a": path.encode()})
        with monkeypatch.context() as patch:
            meanwhile(patch, lambda: project.write({"d.dvk": other}))
            with pytest.raises(Refused):
                added(project, path)
        assert project.read("d.dvk") == other
