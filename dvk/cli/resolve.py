"""The terminal side of conflicts: `resolve`, and what Git runs to merge a pointer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, cyan, dim, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.merge_folder import Side
    from dvk.commands.resolve import ResolveResult


@verb()
def resolve(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Paths with a conflict; all.")] = None,
    ours: Annotated[bool, typer.Option("--ours", help="Take the version of the side that is checked out.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Take the version that is being merged.")] = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge a folder file by file; --ours or --theirs where both changed one.")
    ] = False,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="NAME", help="Where to fetch lists of files that are not here.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.")] = False,
    git_driver: Annotated[bool, typer.Option("--git-driver", hidden=True)] = False,
) -> ResolveResult | None:
    """End a conflict: choose a version or merge, stage it, bring the data in step.

    Reads Git's index, so it works whether or not Git ran dvk for the merge. In a rebase "ours" is what you rebase onto,
    as everywhere in Git.
    """
    if git_driver:
        _for_git(run, paths or [])
        return None
    from dvk.commands.repo import Repo
    from dvk.commands.resolve import resolve as command

    if ours and theirs:
        raise UsageError("--ours and --theirs say different things", hint="use one of them")
    side: Side | None = "ours" if ours else "theirs" if theirs else None
    with Repo(environ=run.environ) as repo:
        result = command(
            repo, paths or (), side=side, merge=merge, remote=remote, dry_run=dry_run, on_event=run.on_event
        )
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_resolved(result, here)))
    run.partial(result.failures, of=len(result.paths) + len(result.failures))
    return result


def _resolved(result: ResolveResult, here: Here) -> Iterator[Line]:
    for p in result.paths:
        if p.outcome == "deleted":
            yield (cyan(here(p.path)), " is gone")
        else:
            yield (
                cyan(here(p.path)),
                f" {'merged' if p.outcome == 'merged' else 'as ' + p.outcome}",
                dim(f"  {p.version}"),
            )
        if p.behind is not None:
            yield (yellow(f"    its data is not here ({size(p.behind)}): "), f"dvk pull {here(p.path)}")
    yield from result.conflicts
    if result.dry_run:
        yield "dry run: nothing was changed"
    elif result.paths:
        yield "staged; `git commit` (or `git rebase --continue`) ends the merge"
    elif not result.failures:
        yield "nothing to do: no pointer has a conflict"


def _for_git(run: Run, words: list[str]) -> None:
    """What Git runs to merge a pointer: the ancestor, ours (which takes the result), theirs, the path."""
    from dvk.commands.merge import merge_driver
    from dvk.commands.repo import Repo

    if len(words) != 4:
        raise UsageError("this is what Git runs; see `dvk hooks install`", subject="--git-driver")
    with Repo(environ=run.environ) as repo:
        result = merge_driver(repo, *words)
    run.show([f"dvk: {line}" for line in result.told])
    run.exit_code = 0 if result.merged else 1
