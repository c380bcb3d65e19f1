"""The terminal side of what changes the workspace: `checkout`, `restore`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, cyan, plural, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.materializer import CheckoutResult

_FORCE = Annotated[bool, typer.Option("--force", "-f", help="Replace and delete content that no store holds.")]
_DRY = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.")]


def path_lines(result: CheckoutResult, here: Here) -> Iterator[Line]:
    """A line for each path that changed."""
    for p in result.paths:
        is_dir = p.kind == "dir"
        done = []
        if p.written:
            done.append(
                f"{plural(p.written, 'file')} written, {size(p.written_bytes)}" if is_dir else size(p.written_bytes)
            )
        if p.deleted:
            done.append(f"{plural(p.deleted, 'file')} deleted")
        yield (cyan(here(p.path, folder=is_dir)), f" {'; '.join(done)}")
    for path in result.removed:
        yield (cyan(here(path)), " removed, it has no pointer here")


@verb()
def checkout(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[REV --] [PATH...]", help="What to bring in step.")
    ] = None,
    force: _FORCE = False,
    dry_run: _DRY = False,
) -> CheckoutResult:
    """Bring data in step with its pointers, or take paths from a revision.

    `checkout REV -- PATH` does the latter, and writes and stages the pointers as well. Only what differs is written.
    What no store holds is never overwritten without --force. Data that is not here: `dvk pull`.
    """
    given = words or []
    if run.after_dashes is None:
        return _run(run, given, None, force=force, dry_run=dry_run)
    before = given[: len(given) - len(run.after_dashes)]
    if len(before) > 1:
        raise UsageError("one revision at most", hint="dvk checkout [REV] -- PATH...")
    return _run(run, list(run.after_dashes), before[0] if before else None, force=force, dry_run=dry_run)


@verb()
def restore(
    run: Run,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Tracked paths, or parts of folders.")],
    source: Annotated[
        str | None, typer.Option("--source", "-s", metavar="REV", help="The revision; without it, the pointers here.")
    ] = None,
    force: _FORCE = False,
    dry_run: _DRY = False,
) -> CheckoutResult:
    """Write paths as they are at a revision: the same as `checkout REV -- PATH`."""
    return _run(run, paths, source, force=force, dry_run=dry_run)


def _run(run: Run, paths: list[str], rev: str | None, *, force: bool, dry_run: bool) -> CheckoutResult:
    from dvk.commands.checkout import checkout as command
    from dvk.commands.repo import Repo

    if rev is not None and not paths:
        raise UsageError("a revision needs paths", hint=f"dvk checkout {rev} -- PATH, or `git checkout {rev}` for all")
    with Repo(environ=run.environ) as repo:
        result = command(repo, paths, rev=rev, force=force, dry_run=dry_run, on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_checked_out(result, here)))
    run.partial(result.failures, of=len(result.paths) + result.in_step + len(result.failures))
    return result


def _checked_out(result: CheckoutResult, here: Here) -> Iterator[Line]:
    yield from path_lines(result, here)
    if not (result.paths or result.removed or result.failures):
        yield f"nothing to do: {plural(result.in_step, 'path')} in step"
    if result.dry_run:
        yield "dry run: nothing was changed"
    elif result.not_staged:
        yield (yellow("pointers written, not staged: "), result.not_staged)
    elif result.staged:
        yield f"staged {plural(result.staged, 'pointer')}"
