"""The terminal side of dvk in `git diff` and `git log -p`; `dvk.commands.diff_git` says what that is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import show_name
from dvk.cli.text import Line, cyan, dim
from dvk.cli.verb import Run, verb
from dvk.errors import DvkError, NotARepository, UsageError

if TYPE_CHECKING:
    from dvk.commands.diff_git import GitDiff
    from dvk.commands.repo import Repo


def _switched(result: GitDiff) -> Iterator[Line]:
    words = "shows" if result.on else "does not show"
    yield f"git {words} in this clone what changed behind pointers"
    if result.changed:
        yield dim(f"wrote {', '.join(show_name(p) for p in result.places)}")
    if not result.on:
        yield (dim("switch it on: "), cyan("dvk git-diff on"))


@verb(render=_switched, answer=True)
def git_diff(
    run: Run,
    state: Annotated[str | None, typer.Argument(metavar="[on|off]", help="Without it: say what is the case.")] = None,
) -> GitDiff:
    """Let git diff and git log -p show what changed behind pointers.

    For this clone only. It never downloads anything; what is not here is told by its size.
    """
    from dvk.commands.diff_git import git_diff as command
    from dvk.commands.repo import Repo

    if state not in (None, "on", "off"):
        raise UsageError("on or off", subject=state or "")
    with Repo(environ=run.environ) as repo:
        return command(repo, on=None if state is None else state == "on")


def for_git(run: Run, words: Sequence[str], *, textconv: bool) -> None:
    """What Git runs. It is shown whatever can be shown, and Git never hears of a failure."""
    lines: list[Line] = []
    try:
        lines += _textconv(run, words) if textconv else _driver(run, words)
    except DvkError as error:
        if error.kind == "interrupted":
            raise
        lines.append(str(error))
    except Exception as problem:  # a bug of ours must not end a diff of code
        lines.append(f"not shown: dvk ran into a bug ({type(problem).__name__}: {problem})")
    run.show(lines)


def _textconv(run: Run, words: Sequence[str]) -> Iterator[Line]:
    from dvk.commands.diff_git import profile

    if len(words) != 1:
        raise UsageError("this is what Git runs; see `dvk git-diff`", subject="--git-textconv")
    repo = _repo(run)
    try:
        yield from profile(repo, os.fsencode(words[0]))
    finally:
        if repo is not None:
            repo.close()


def _driver(run: Run, words: Sequence[str]) -> Iterator[Line]:
    from dvk.cli.diff_text import diff_lines
    from dvk.commands.diff_git import driver
    from dvk.commands.diff_json import Show

    if len(words) == 1:  # of a path with a conflict Git says nothing but its name
        yield f"* unmerged {words[0]}"
        return
    if len(words) not in (7, 9):
        raise UsageError("this is what Git runs; see `dvk git-diff`", subject="--git-driver")
    path, old, new = words[0], words[1], words[4]
    yield f"diff --dvk a/{path} b/{words[7] if len(words) == 9 else path}"
    repo = _repo(run)
    if repo is None:
        return
    with repo, driver(repo, os.fsencode(path), os.fsencode(old), os.fsencode(new)) as result:
        yield from diff_lines(result, Show(), show_name, stat_only=True)
        for error in result.failures:
            yield (dim("not compared: "), str(error))


def _repo(run: Run) -> Repo | None:
    from dvk.commands.repo import Repo

    try:
        return Repo(environ=run.environ)
    except NotARepository:
        return None
