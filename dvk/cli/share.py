"""The terminal side of what goes between clones and remotes: `push`, `fetch`, `pull`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, cyan, dim, duration, green, plural, size
from dvk.cli.verb import Run, verb
from dvk.cli.work import path_lines

if TYPE_CHECKING:
    from dvk.commands.pull import FetchResult, PullResult
    from dvk.commands.push import PushResult

_REMOTE = Annotated[str | None, typer.Option("--remote", metavar="NAME", help="Instead of the default remote.")]
_PATHS = Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Tracked paths, or parts of folders.")]


@verb()
def push(
    run: Run,
    paths: _PATHS = None,
    remote: _REMOTE = None,
    only_head: Annotated[bool, typer.Option("--only-head", help="Only what HEAD and the index name.")] = False,
    all_branches: Annotated[bool, typer.Option("--all-branches", help="Of all local branches.")] = False,
    rev: Annotated[list[str] | None, typer.Option("--rev", metavar="REV", help="A revision, or A..B.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be sent; send nothing.")] = False,
    verify: Annotated[
        Literal["packs", "full"],
        typer.Option(help="Read back the end and a piece of each new pack, or everything, old and new."),
    ] = "packs",
) -> PushResult:
    """Send the versions that this clone holds and the remote does not.

    All versions reachable from HEAD and the index, unless options say otherwise. It ends well only when another clone
    could restore all of it. Interrupted, the same command goes on where it stopped.
    """
    from dvk.commands.push import push as command
    from dvk.commands.repo import Repo

    began = time.monotonic()
    with Repo(environ=run.environ) as repo:
        result = command(
            repo,
            paths or (),
            remote=remote,
            only_head=only_head,
            all_branches=all_branches,
            revs=rev or (),
            dry_run=dry_run,
            verify_full=verify == "full",
            on_event=run.on_event,
        )
    run.show(list(_pushed(result, time.monotonic() - began)))
    run.partial(result.failures, of=len(result.sent) + len(result.failures), noun="version")
    return result


def _pushed(result: PushResult, seconds: float) -> Iterator[Line]:
    versions = plural(len(result.sent), "version")
    if result.dry_run:
        if result.sent:
            yield f"dry run: {versions} would go to {result.remote}, {size(result.new_bytes)} new before compression"
        else:
            yield f"dry run: {result.remote} has everything"
        return
    if not result.sent and result.failures:
        return
    if not result.sent:
        there = plural(result.already_there, "version") + " there" if result.already_there else ""
        read = f"{size(result.read_back_bytes)} read back and right" if result.verified == "full" else ""
        known = ", ".join(filter(None, (there, read)))
        yield f"nothing to push: {result.remote} has everything" + (f" ({known})" if known else "")
        return
    how = "all of it read back" if result.verified == "full" else "verified"
    asked = dim(f", {plural(result.requests, 'request')}")
    yield (green(size(result.moved_bytes)), f" to {result.remote}, {versions}, {duration(seconds)}, {how}", asked)
    if result.already_there:
        read = f", {size(result.read_back_bytes)} read back and right" if result.verified == "full" else ""
        yield dim(f"{plural(result.already_there, 'version')} there already{read}")
    if result.lost_packs:
        yield f"lost or damaged on {result.remote}, and sent again: {plural(result.lost_packs, 'pack')}"


@verb()
def fetch(
    run: Run,
    paths: _PATHS = None,
    remote: _REMOTE = None,
    rev: Annotated[str | None, typer.Option("--rev", metavar="REV", help="The pointers of that revision.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Read, and keep nothing.")] = False,
) -> FetchResult:
    """Bring data into the local store; the workspace is not touched."""
    from dvk.commands.pull import fetch as command
    from dvk.commands.repo import Repo

    began = time.monotonic()
    with Repo(environ=run.environ) as repo:
        result = command(repo, paths or (), remote=remote, rev=rev, dry_run=dry_run, on_event=run.on_event)
    run.show(list(_fetched(result, time.monotonic() - began)))
    run.partial(result.failures, of=result.paths)
    return result


def _fetched(result: FetchResult, seconds: float) -> Iterator[Line]:
    if not result.remote:
        if not result.failures:
            yield f"everything is here ({plural(result.paths, 'path')})"
        return
    if result.fetched:
        yield (
            green(size(result.new_bytes)),
            f" from {result.remote} ({size(result.moved_bytes)} moved), {plural(result.fetched, 'path')}, "
            f"{duration(seconds)}",
            dim(f", {plural(result.requests, 'request')}"),
        )


@verb()
def pull(
    run: Run,
    paths: _PATHS = None,
    remote: _REMOTE = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Keep what is fetched in the local store too.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace content that no store holds.")] = False,
) -> PullResult:
    """Bring data into the workspace: all that is tracked, or what is named.

    Naming a part of a folder brings that part; the rest stays on the remote, and dvk remembers what you asked for.
    """
    from dvk.commands.hooks import remind
    from dvk.commands.pull import pull as command
    from dvk.commands.repo import Repo

    began = time.monotonic()
    with Repo(environ=run.environ) as repo:
        result = command(repo, paths or (), remote=remote, store=store, force=force, on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
        if result.fetch.paths and (note := remind(repo)):
            run.on_event(note)
    run.show(list(_pulled(result, here, time.monotonic() - began, kept=store)))
    run.partial(result.failures, of=max(result.fetch.paths, len(result.failures)))
    return result


def _pulled(result: PullResult, here: Here, seconds: float, *, kept: bool) -> Iterator[Line]:
    if result.fetch.remote and result.fetch.fetched and kept:
        yield from _fetched(result.fetch, seconds)
    elif written := sum(path.written_bytes for path in result.checkout.paths if not kept):
        asked = dim(f", {plural(result.fetch.requests, 'request')}")
        yield (
            green(size(written)),
            f" from {result.fetch.remote}, {duration(seconds)}, nothing kept in the store",
            asked,
        )
    yield from path_lines(result.checkout, here)
    if result.not_present:
        stay = "stays" if result.not_present == 1 else "stay"
        yield (dim(f"{plural(result.not_present, 'file')} {stay} remote: "), cyan("dvk pull PATH"), dim(" brings more"))
    fetched = result.fetch.fetched if kept else 0
    if not (result.checkout.paths or result.checkout.removed or fetched or result.failures):
        yield f"everything is in step ({plural(result.checkout.in_step, 'path')})"
