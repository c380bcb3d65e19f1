"""The terminal side of keeping a repository in order: `rm`, `mv`, `du`, `doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, Piece, bold, columns, count, cyan, dim, green, percent, plural, red, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import DvkError, UsageError

if TYPE_CHECKING:
    from dvk.commands.doctor import DoctorResult
    from dvk.commands.du import DuResult, PathUsage
    from dvk.commands.move import MoveResult
    from dvk.commands.removal_plan import Removed
    from dvk.commands.remove import RemoveResult

_DRY = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.")]
_STAGE = Annotated[bool, typer.Option("--stage/--no-stage", help="Put the change into the Git index.")]


def _staging(staged: int, why_not: str, *, asked: bool, changed: int) -> Iterator[Line]:
    if staged:
        yield f"staged {plural(staged, 'pointer')}"
    elif why_not:
        yield (yellow(f"{plural(changed, 'pointer')} changed, not staged: "), why_not)
    elif not asked and changed:
        yield f"{plural(changed, 'pointer')} changed, not staged (--no-stage)"


# ------------------------------------------------------------ rm


@verb()
def rm(
    run: Run,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Tracked paths, or parts of folders.")],
    cached: Annotated[bool, typer.Option("--cached", help="Stop tracking and leave the data on disk.")] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Delete data that could not be brought back, too.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="A folder stands for all tracked paths in it.")
    ] = False,
    dry_run: _DRY = False,
    stage: _STAGE = True,
) -> RemoveResult:
    """Stop tracking paths and delete their data, also inside a tracked folder.

    Data is deleted only when it is exactly what a commit names and this store, or a remote, holds it. What was never
    added to a folder stays.
    """
    from dvk.commands.remove import remove as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        result = command(
            repo,
            paths,
            cached=cached,
            force=force,
            recursive=recursive,
            dry_run=dry_run,
            stage=stage,
            on_event=run.on_event,
        )
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_removed(result, here, stage=stage)))
    run.partial(result.failures, of=len(result.paths) + len(result.failures), hint="what failed is tracked as before")
    return result


def _removed(result: RemoveResult, here: Here, *, stage: bool) -> Iterator[Line]:
    for r in result.paths:
        yield (cyan(here(r.path, folder=r.kind == "dir")), f" {_removed_what(r, here, dry_run=result.dry_run)}")
    if result.dry_run:
        yield "dry run: nothing was changed"
        return
    pointers = len({r.inside or r.path for r in result.paths})
    yield from _staging(result.staged, result.not_staged, asked=stage, changed=pointers)


def _removed_what(r: Removed, here: Here, *, dry_run: bool) -> str:
    if dry_run:
        what = f"would go out of {here(r.inside, folder=True)}" if r.inside else "would no longer be tracked"
    else:
        what = f"is out of {here(r.inside, folder=True)}" if r.inside else "is no longer tracked"
    if r.deleted:
        what += f"; {plural(r.deleted, 'file')} deleted" + (f", {size(r.size)}" if r.deleted == r.files else "")
    if r.kept:
        what += f"; {plural(r.kept, 'file')} {'stays' if r.kept == 1 else 'stay'} on disk"
    return what


# ------------------------------------------------------------ mv


@verb()
def mv(
    run: Run,
    paths: Annotated[
        list[str], typer.Argument(metavar="SOURCE... DESTINATION", help="Tracked paths, or parts of one folder.")
    ],
    dry_run: _DRY = False,
    stage: _STAGE = True,
) -> MoveResult:
    """Give tracked paths another name or folder, together with their data.

    Also inside one tracked folder. Nothing is overwritten, and nothing is read, so that it takes the same time for a
    terabyte, here or not.
    """
    from dvk.commands.move import move as command
    from dvk.commands.repo import Repo

    if len(paths) < 2:
        raise UsageError("a move needs a source and a destination", hint="dvk mv SOURCE... DESTINATION")
    *sources, destination = paths
    with Repo(environ=run.environ) as repo:
        result = command(repo, sources, destination, dry_run=dry_run, stage=stage, on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_moved(result, here, stage=stage)))
    return result


def _moved(result: MoveResult, here: Here, *, stage: bool) -> Iterator[Line]:
    for m in result.paths:
        note = "" if m.on_disk else " (its data is not here: only the name changes)"
        is_dir = m.kind == "dir"
        yield (cyan(here(m.source, folder=is_dir)), " -> ", cyan(here(m.destination, folder=is_dir)), dim(note))
    if result.dry_run:
        yield "dry run: nothing was changed"
        return
    changed = len({p for m in result.paths for p in ([m.inside] if m.inside else [m.source, m.destination])})
    yield from _staging(result.staged, result.not_staged, asked=stage, changed=changed)


# ------------------------------------------------------------ du


@verb(answer=True)
def du(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Rows for these only.")] = None,
) -> DuResult:
    """Say how large the versions are, what was saved, and what could be freed.

    Counts every version that a branch, tag, stash, staged pointer or worktree leads to.
    """
    from dvk.commands.du import du as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        result = command(repo, paths or (), on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_usage(result, here, narrowed=bool(paths))))
    run.partial(result.failures, of=max(result.versions, len(result.failures)), noun="version")
    return result


def _usage(result: DuResult, here: Here, *, narrowed: bool) -> Iterator[Line]:
    if result.paths:
        head = [dim(text) for text in ("now", "files", "versions", "in full", "its own", "path")]
        yield from columns([head, *(_usage_row(p, here) for p in result.paths)], right=range(5))
    elif not result.versions:
        yield "nothing is tracked yet: `dvk add PATH` starts"
    if narrowed or not (result.versions or result.store_bytes):
        return
    if result.paths:
        yield ""
    versions = f"{plural(result.versions, 'version')} of {plural(len(result.paths), 'path')}"
    rows: list[list[str | Piece]] = [[bold("all"), size(result.logical_bytes), f"in {versions}, each in full"]]
    if result.here_bytes != result.logical_bytes:
        elsewhere = size(result.logical_bytes - result.here_bytes)
        rows.append([bold("here"), size(result.here_bytes), f"of it, {elsewhere} elsewhere"])
    saved = result.saved_by_dedup_bytes + result.saved_by_compression_bytes
    if result.here_bytes:
        how = (
            f"{percent(saved, result.here_bytes)}: {size(result.saved_by_dedup_bytes)} by deduplication, "
            f"{size(result.saved_by_compression_bytes)} by compression"
        )
        rows.append([bold("saved"), size(saved), how])
    if result.store_bytes:
        where = f"of {size(result.store_bytes)} in {result.store}, lists and index included"
        rows.append([bold("stored"), green(size(result.stored_bytes)), where])
    if result.unused_bytes:
        rows.append([bold("free"), size(result.reclaimable_bytes), _reclaimable(result)])
    yield from columns(rows, right=[1])


def _usage_row(p: PathUsage, here: Here) -> list[str | Piece]:
    def known(n: int | None) -> str:
        return "" if n is None else size(n)

    name: Piece = cyan(here(p.path, folder=p.kind == "dir"))
    now: list[str | Piece] = [size(p.size), count(p.files)] if p.current else [dim("-"), dim("-")]
    versions = "" if p.versions is None else count(p.versions)
    return [*now, versions, known(p.history_bytes), known(p.own_stored_bytes), name]


def _reclaimable(result: DuResult) -> str:
    what = f"could be freed: {size(result.unused_bytes)} belong to no version of this repository"
    if result.shared_store:
        return f"{what} (other repositories may use this store)"
    if result.reclaimable_bytes < result.unused_bytes // 2:
        return f"{what}, but blocks go as a whole, and most hold something in use"
    return what


# ------------------------------------------------------------ doctor


@verb(answer=True)
def doctor(run: Run) -> DoctorResult:
    """Look for what is wrong with this machine and repository.

    Says what to do about it. Uses no network. Ends with 1 when something fails.
    """
    from dvk.commands.doctor import doctor as command

    result = command(environ=run.environ)
    run.show(list(_examined(result)))
    if result.failed:
        run.failure = DvkError(f"{plural(result.failed, 'check')} of {len(result.checks)} failed")
    return result


def _examined(result: DoctorResult) -> Iterator[Line]:
    style = {"ok": green, "info": dim, "warn": yellow, "fail": red}
    rows: list[list[str | Piece]] = []
    for c in result.checks:
        rows.append([style[c.state](c.state), c.name, c.message])
        if c.hint and c.state != "ok":
            rows.append(["", "", dim(f"-> {c.hint}")])
    yield from columns(rows)
    if not result.failed:
        yield f"{plural(result.warned, 'warning')}" if result.warned else "all is well"
