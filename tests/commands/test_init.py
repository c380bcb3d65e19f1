"""`init` prepares a repository once, says what it did, and is safe to repeat."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from projects import Project

from dvk.commands.init import init
from dvk.commands.repo import Repo
from dvk.errors import NotARepository, StorageError
from dvk.workspace.config import Layer


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def test_it_writes_and_stages_two_files_that_dvk_reads_back(project: Project) -> None:
    with project.repo() as repo:
        done = init(repo)
    assert done.wrote == done.staged == [b"dvk.toml", b".gitattributes"] and not done.not_staged
    assert project.git("status", "--porcelain") == "A  .gitattributes\nA  dvk.toml\n"
    assert project.read(".gitattributes") == b"*.dvk -text merge=dvk\n"
    values = Layer.parse(project.read("dvk.toml"), "repo", place="dvk.toml").values
    found = {k: v.value for k, v in values.items()}
    project_id = found.pop("project.id")
    assert re.fullmatch("[0-9a-f]{32}", str(project_id)) and found == {"profile.default": "auto-64k"}
    with project.repo() as repo:
        assert repo.project == project_id


def test_a_second_run_changes_nothing(project: Project) -> None:
    with project.repo() as repo:
        init(repo)
    before = project.read("dvk.toml"), project.git("status", "--porcelain")
    with project.repo() as repo:
        done = init(repo)
    assert (done.wrote, done.staged) == ([], [])
    assert (project.read("dvk.toml"), project.git("status", "--porcelain")) == before


def test_a_disk_that_does_not_tell_whether_there_is_a_file_does_not_cost_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write({"dvk.toml": b"format = 1 # ours\n"})
    real = os.lstat

    def fails(path: str | bytes, **options: int) -> os.stat_result:
        if os.fsencode(path).endswith(b"dvk.toml"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, **options)

    with project.repo() as repo, monkeypatch.context() as broken:
        broken.setattr(os, "lstat", fails)
        with pytest.raises(StorageError):
            init(repo)
    assert project.read("dvk.toml") == b"format = 1 # ours\n"


def test_what_the_user_wrote_stays(project: Project) -> None:
    project.write({".gitattributes": b"*.png binary", "dvk.toml": b'format = 1 # ours\n[core]\nremote = "x"\n'})
    with project.repo() as repo:
        init(repo)
    assert project.read(".gitattributes") == b"*.png binary\n*.dvk -text merge=dvk\n"
    text = project.read("dvk.toml").decode()
    assert "format = 1 # ours" in text and 'remote = "x"' in text
    assert 'default = "auto-64k"' in text and "[project]" in text


def test_it_works_from_a_subfolder_and_in_a_linked_worktree(project: Project, tmp_path: Path) -> None:
    project.write({"a/b/code.py": b""})
    with project.repo("a/b") as repo:
        assert init(repo).wrote == [b"dvk.toml", b".gitattributes"]
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "x")
    project.git("worktree", "add", "-q", str(tmp_path / "w"))
    with Repo(tmp_path / "w", environ=project.environ) as repo:
        assert init(repo).wrote == []


def test_a_busy_index_does_not_fail_it(project: Project) -> None:
    (project.top / ".git/index.lock").write_bytes(b"")
    with project.repo() as repo:
        done = init(repo)
    assert done.wrote and not done.staged and done.not_staged
    (project.top / ".git/index.lock").unlink()
    with project.repo() as repo:
        assert init(repo).staged == [b"dvk.toml", b".gitattributes"]


def test_outside_of_a_repository_the_hint_is_git_init(project: Project, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(NotARepository) as caught:
        Repo(plain, environ=project.environ)
    assert "git init" in caught.value.hint
    (plain / "dvk.toml").write_bytes(b"format = 1\n")
    with Repo(plain, environ=project.environ) as repo, pytest.raises(NotARepository) as caught:
        init(repo)
    assert "git init" in caught.value.hint


def test_hooks_that_cannot_be_installed_are_said_and_the_rest_is_done(project: Project) -> None:
    (project.top / ".git/hooks").rename(project.top / ".git/no-hooks")
    project.write({".git/hooks": b"a file"})
    done = project.dvk("init")
    assert done.code == 0 and "hooks not installed: " in done.out and "wrote dvk.toml" in done.out
    assert project.dvk("hooks", "install").code != 0
