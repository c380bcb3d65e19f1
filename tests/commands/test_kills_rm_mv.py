"""`rm` and `mv` are killed before each change that they make to the disk, and the same command finishes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workbench import Bench

from dvk.commands import move as move_module
from dvk.commands.move import move
from dvk.commands.remove import remove
from dvk.commands.repo import Repo
from dvk.errors import NotFound
from dvk.workspace import host
from dvk.workspace.stats import TEMP_NAME

FILES: dict[str | bytes, bytes] = {
    "a.csv": b"1,2\n" * 100,
    "im/x/1": b"one",
    "im/x/2": b"two",
    "im/y": b"y",
    "im/z/3": b"three",
}
KILLED = 9
#: system calls that change what a later run finds
CHANGES = ("rename", "replace", "unlink", "rmdir", "link")

Verb = Callable[[Repo], object]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("template")
    bench = Bench(folder / "work", folder / "home")
    bench.add_commit(FILES, "a.csv", "im")
    return bench


def copy(template: Bench, to: Path) -> Bench:
    shutil.copytree(template.top, to, symlinks=True)
    made = object.__new__(Bench)
    made.top, made.environ, made.git_repo = to, template.environ, object.__new__(type(template.git_repo))
    made.git_repo.top, made.git_repo.environ, made.git_repo._seconds = to, template.environ, 1_700_000_000
    return made


def die_before(change: int) -> None:
    """Make this process end before change number `change` to the disk."""
    left = [change]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if left[0] == 0:
                os._exit(KILLED)
            left[0] -= 1
            return real(*arguments, **options)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    move_module.rename_new = counted(host.rename_new)


def run_killed(bench: Bench, verb: Verb, change: int) -> bool:
    """Run the verb in a child that dies; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            with bench.open() as repo:
                die_before(change)
                verb(repo)
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED), "the verb itself failed"
    return code == KILLED


def seen_by_git(bench: Bench) -> list[str]:
    """What Git sees beside pointers, but for the small files that a kill leaves and a later checkout removes."""
    names = [path for path in bench.seen_by_git() if not path.endswith(".dvk")]
    return [n for n in names if not TEMP_NAME.fullmatch(os.fsencode(n.rpartition("/")[2]))]


def files(bench: Bench) -> dict[str, bytes]:
    return {n: d for n, d in bench.files().items() if not TEMP_NAME.fullmatch(os.fsencode(n.rpartition("/")[2]))}


def again(bench: Bench, verb: Verb) -> None:
    with bench.open() as repo:
        try:
            verb(repo)
        except NotFound:
            pass  # it was done but for what is only tidiness


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(lambda repo: move(repo, ["a.csv"], "b.csv"), id="mv-file"),
        pytest.param(lambda repo: move(repo, ["im"], "pictures"), id="mv-folder"),
        pytest.param(lambda repo: move(repo, ["im/x"], "im/w"), id="mv-inside"),
        pytest.param(lambda repo: remove(repo, ["a.csv", "im"]), id="rm"),
        pytest.param(lambda repo: remove(repo, ["im/x", "im/z/3"]), id="rm-inside"),
    ],
)
def test_whatever_a_verb_dies_at_the_same_command_finishes_it(template: Bench, tmp_path: Path, verb: Verb) -> None:
    """Git never sees data in between, and in the end files and index are those of a run that nobody disturbed."""
    undisturbed = copy(template, tmp_path / "undisturbed")
    with undisturbed.open() as repo:
        verb(repo)
    change = 0
    while True:
        bench = copy(template, tmp_path / f"{change}")
        killed = run_killed(bench, verb, change)
        assert seen_by_git(bench) == [], f"after a kill before change {change}"
        if killed:
            again(bench, verb)
        assert files(bench) == undisturbed.files(), f"after a kill before change {change}"
        assert bench.staged() == undisturbed.staged(), f"after a kill before change {change}"
        shutil.rmtree(bench.top)
        if not killed:
            break
        change += 1
    assert change > 5, "the verb changed the disk, and was killed at each of its changes"
