"""The quick question of a hook is answered without the heavy part of dvk, and in doubt with no."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gitkit
import pytest

from dvk.workspace import git_moved


@pytest.fixture
def repo(tmp_path: Path) -> gitkit.Repo:
    made = gitkit.Repo(tmp_path / "r", tmp_path)
    made.commit({"a.csv.dvk": gitkit.pointer(1), "code.py": b"x"})
    return made


def ask(repo: gitkit.Repo, name: str = "post-merge", *arguments: str, **environ: str) -> bool:
    return git_moved.nothing_to_do(name, arguments, {**repo.environ, **environ}, os.fsencode(repo.top))


def settle(repo: gitkit.Repo) -> None:
    state = os.fsencode(repo.top / ".git/dvk")
    git_moved.remember(state, repo.git("ls-files", "-s", "-z", "--", "*.dvk").encode())


def test_nothing_moved_once_data_followed_until_a_pointer_is_another(repo: gitkit.Repo) -> None:
    assert not ask(repo)
    settle(repo)
    assert ask(repo)
    repo.commit({"code.py": b"y"})
    assert ask(repo), "code is not data"
    repo.commit({"a.csv.dvk": gitkit.pointer(2)})
    assert not ask(repo)
    repo.git("reset", "-q", "--hard", "HEAD~1")
    assert ask(repo), "back where data is"
    git_moved.forget(os.fsencode(repo.top / ".git/dvk"))
    assert not ask(repo)


def test_a_checkout_of_files_and_an_index_without_files_are_nothing(repo: gitkit.Repo) -> None:
    assert ask(repo, "post-checkout", "a", "b", "0") and not ask(repo, "post-checkout", "a", "b", "1")
    assert ask(repo, "post-index-change", "0", "0") and not ask(repo, "post-index-change", "1", "0")
    assert not ask(repo, "pre-push", "origin", "url") and not ask(repo, "pre-commit")


def test_the_switch_skips_all(repo: gitkit.Repo) -> None:
    assert ask(repo, DVK_HOOKS="0") and ask(repo, "pre-push", DVK_HOOKS="0") and not ask(repo, DVK_HOOKS="1")


def test_a_rebase_with_steps_left_waits_for_its_end(repo: gitkit.Repo) -> None:
    folder = repo.top / ".git/rebase-merge"
    folder.mkdir()
    (folder / "git-rebase-todo").write_text("# comment\npick 123 x\n")
    assert ask(repo, "post-checkout", "a", "b", "1") and not ask(repo, "post-rewrite", "rebase")
    (folder / "git-rebase-todo").write_text("\n# comment\n")
    assert not ask(repo, "post-checkout", "a", "b", "1")
    (repo.top / ".git/rebase-apply").mkdir()
    (repo.top / ".git/rebase-apply/rebasing").touch()
    assert ask(repo, "post-checkout", "a", "b", "1")


def test_a_record_that_is_damaged_or_of_another_version_is_none(repo: gitkit.Repo) -> None:
    settle(repo)
    path = repo.top / ".git/dvk/in-step"
    good = path.read_bytes()
    for bad in (b"", good[:-3], b"dvk in-step 2" + good[13:], b"\xff" * 80):
        path.write_bytes(bad)
        assert not ask(repo), bad
    path.write_bytes(good)
    assert ask(repo)


def test_a_linked_worktree_has_a_record_of_its_own(repo: gitkit.Repo, tmp_path: Path) -> None:
    settle(repo)
    repo.git("worktree", "add", "-q", str(tmp_path / "w"))
    there = os.fsencode(tmp_path / "w")
    assert ask(repo) and not git_moved.nothing_to_do("post-merge", [], repo.environ, there)


def test_a_git_in_the_work_tree_is_not_run(repo: gitkit.Repo) -> None:
    fake = repo.top / "bin/git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\ntouch stolen\n")
    fake.chmod(0o755)
    settle(repo)
    for path in (str(fake.parent), "bin", ".", ""):
        ask(repo, PATH=path)
    assert ask(repo, PATH=f"{fake.parent}:{os.environ['PATH']}") and not (repo.top / "stolen").exists()


def test_the_answer_costs_a_start_of_python_and_one_of_git(repo: gitkit.Repo) -> None:
    """Nothing heavy is imported, and it takes under a quarter of a second of the processor."""
    settle(repo)
    argv = ["-m", "dvk", "hooks", "run", "post-checkout", "a", "b", "1"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], cwd=repo.top, env=repo.environ, capture_output=True, check=True
    )
    assert done.stdout == b"" and not {b"numpy", b"typer", b"pygit2"} & set(done.stderr.replace(b"|", b" ").split())
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, *argv], cwd=repo.top, env=repo.environ, check=True)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        times.append(used)
    assert min(times) < 0.25, times
