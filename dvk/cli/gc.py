"""The terminal side of `dvk gc`: of the local store with a question, of a remote with a plan."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from dvk.cli.text import Line, bold, count, cyan, dim, duration, plural, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.gc_local import LocalGcResult
    from dvk.commands.gc_remote import Asked, RemoteGcResult

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_REMOTE_ONLY = "only with --remote"


@verb()
def gc(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="What --keep-last speaks of.")] = None,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="NAME", help="A remote, not the local store.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what could be freed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    apply: Annotated[str | None, typer.Option("--apply", metavar="PLAN", help="Do what this plan says.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Delete what was condemned, once the grace is over.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take back what was condemned.")] = False,
    plan: Annotated[str | None, typer.Option("--plan", metavar="FILE", help="Where to write the plan.")] = None,
    keep_since: Annotated[
        str | None, typer.Option("--keep-since", metavar="DATE", help="Keep what was current then or later (or: 90d).")
    ] = None,
    keep_tags: Annotated[bool, typer.Option("--keep-tags", help="Keep what tags name, too.")] = False,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", metavar="N", min=1, help="Keep N versions of each PATH.")
    ] = None,
    retention: Annotated[
        str, typer.Option("--retention", metavar="AGE", help="Whatever was pushed later stays.")
    ] = "30d",
    grace: Annotated[
        str | None, typer.Option("--grace", metavar="AGE", help="Between --apply and --sweep.", show_default="7d")
    ] = None,
    young: Annotated[str, typer.Option("--young", metavar="AGE", help="What was stored later stays.")] = "1d",
    i_know: Annotated[bool, typer.Option("--i-know", help="More than half of all bytes may go.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Go by the branches that Git fetched last; do not ask its remotes.")
    ] = False,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="You promise that nobody else uses the store until this ends.")
    ] = False,
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="PATH", help="A repository that is gone and uses the local store.")
    ] = None,
) -> LocalGcResult | RemoteGcResult:
    """Free the local store, or a remote, of what no version needs.

    Without --remote: of versions that no branch, tag, stash, reflog, index or worktree leads to. Says how much that is,
    and asks.

    With --remote: writes a plan and changes nothing. --apply PLAN condemns what it names; that can still be read, and
    --undo takes it back. --sweep deletes it once the grace is over.
    """
    from dvk.commands.gc_remote import Asked
    from dvk.commands.kept import Policy
    from dvk.store.collect_plan import Limits

    modes = [name for name, given in (("--apply", apply), ("--sweep", sweep), ("--undo", undo)) if given]
    if len(modes) > 1:
        raise UsageError(f"{' and '.join(modes)} say different things", hint="use one of them")
    policy = Policy(_since(keep_since), keep_tags, keep_last)
    if remote is None and apply is None:
        given: dict[str, object] = {**dict.fromkeys(modes, True), "--keep-since": keep_since, "--keep-tags": keep_tags}
        given |= {"--keep-last": keep_last, "--plan": plan, "--grace": grace, "--i-know": i_know, "--offline": offline}
        wrong = next((name for name, value in given.items() if value), None)
        if wrong is not None or paths:
            raise UsageError(_REMOTE_ONLY, subject=wrong or "PATH", hint="`dvk gc` alone keeps all that Git leads to")
        return _local(run, dry_run=dry_run, yes=yes, exclusive=exclusive, young=young, forget=forget)
    if forget is not None:
        raise UsageError("is about the local store", subject="--forget")
    if bool(paths) != (keep_last is not None):
        raise UsageError(
            "--keep-last N speaks of the paths after it", hint="dvk gc --remote NAME --keep-last 3 PATH..."
        )
    if keep_tags and not policy.lets_go:
        raise UsageError("--keep-tags adds to --keep-since and --keep-last; without them everything stays")
    if modes and policy.lets_go:
        raise UsageError("what is kept was said when the plan was made", hint=f"leave it out with {modes[0]}")
    limits = Limits(_age(retention), _age(young), _age(grace or "7d"), i_know, exclusive)
    asked = Asked(remote, policy, limits, offline)
    return _remote(run, asked, paths or [], apply, sweep, undo, plan, None if grace is None else _age(grace))


def _remote(
    run: Run,
    asked: Asked,
    paths: list[str],
    apply: str | None,
    sweep: bool,
    undo: bool,
    plan: str | None,
    grace: int | None,
) -> RemoteGcResult:
    from dvk.commands import gc_remote as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        if apply is not None:
            known = asked.limits.more_than_half
            result = command.apply_remote_gc(
                repo, apply, remote=asked.remote, more_than_half=known, on_event=run.on_event
            )
        elif sweep:
            result = command.sweep_remote_gc(
                repo,
                asked.remote,
                grace=grace,
                offline=asked.offline,
                exclusive=asked.limits.exclusive,
                on_event=run.on_event,
            )
        elif undo:
            result = command.undo_remote_gc(repo, asked.remote, on_event=run.on_event)
        else:
            where = tuple(repo.workspace.locate(p, cwd=run.cwd).hex() for p in paths)
            asked = replace(asked, policy=replace(asked.policy, paths=where))
            result = command.plan_remote_gc(repo, asked, plan_file=plan, on_event=run.on_event)
    run.show(list(_remote_lines(result)))
    run.partial(result.failures, of=result.versions + len(result.failures), noun="version")
    return result


def _remote_lines(r: RemoteGcResult) -> Iterator[Line]:
    if r.step == "plan":
        yield from _plan_lines(r)
    elif r.step == "condemn" and not r.packs:
        yield f"nothing is condemned on {r.remote}" + (f"; {plural(r.records, 'record')} went" if r.records else "")
    elif r.step == "condemn":
        yield (
            bold(f"{size(r.bytes)} in {plural(r.packs, 'pack')}"),
            f" condemned on {r.remote}; nothing is deleted yet",
        )
        yield f"`dvk gc --remote {r.remote} --undo` takes it back{_until(r)}"
    elif r.step == "sweep":
        yield f"{size(r.bytes)} in {plural(r.packs, 'pack')} deleted from {r.remote}"
        if r.spared:
            yield f"{plural(r.spared, 'pack')} stayed: somebody came to need {'it' if r.spared == 1 else 'them'}"
    else:
        yield f"{plural(r.versions, 'version')} on {r.remote} {'is' if r.versions == 1 else 'are'} whole and kept again"


def _plan_lines(r: RemoteGcResult) -> Iterator[Line]:
    if r.waiting:
        yield (
            yellow(f"{plural(r.waiting, 'pack')} condemned earlier{_ripe(r)}"),
            ": --sweep deletes, --undo takes back",
        )
    if not r.plan_file:
        held = f"{size(r.total_bytes)} in {plural(r.total_packs, 'pack')}, each with something that is needed"
        yield f"nothing to collect on {r.remote}: {held}"
    else:
        packs = f"{count(r.packs)} of {plural(r.total_packs, 'pack')}"
        what = f"{packs}, {plural(r.versions, 'version')} that nothing leads to"
        if r.packs or not r.repack:
            yield (bold(f"{size(r.bytes)} of {size(r.total_bytes)}"), f" could go from {r.remote}: {what}")
        if r.repack:
            yield f"{plural(r.repack, 'pack')} with little in use would be written anew, through this clone's store"
        yield f"`dvk gc --apply {r.plan_file}` condemns it; it can be read and taken back until it is swept"
    if r.young:
        yield dim(
            f"{plural(r.young, 'pack')} that no record names yet may be of a push under way: left alone for a day"
        )


def _ripe(r: RemoteGcResult) -> str:
    left = (r.ripe_at or 0) - time.time()
    return "" if r.ripe_at is None else f", to be swept in {duration(left)}" if left > 0 else ", to be swept now"


def _until(r: RemoteGcResult) -> str:
    left = (r.ripe_at or 0) - time.time()
    return f"; `--sweep` deletes it from {duration(left)} on" if left > 0 else "; `--sweep` deletes it"


# ------------------------------------------------------------ local


def _local(run: Run, *, dry_run: bool, yes: bool, exclusive: bool, young: str, forget: str | None) -> LocalGcResult:
    from dvk.commands.gc_local import gc_local
    from dvk.commands.repo import Repo
    from dvk.workspace import repositories

    young_s = _age(young)
    with Repo(environ=run.environ) as repo:
        if forget is not None:
            repositories.forget(repo.workspace, forget)
        if dry_run or not yes:
            found = gc_local(repo, dry_run=True, young_s=young_s, on_event=run.on_event)
            if dry_run or found.nothing:
                run.show(list(_found(found)))
                return found
            where = f"{size(found.freeable_bytes)} of {size(found.store_bytes)} in {found.store}"
            more = f", and {size(found.over_bytes)} that a remote holds" if found.over_bytes else ""
            run.confirm(f"Free {where}{more}?", option="--yes")
        result = gc_local(repo, exclusive=exclusive, young_s=young_s, on_event=run.on_event)
    run.show(list(_freed(result)))
    run.partial(result.failures, of=max(result.packs, len(result.failures)), noun="pack")
    return result


def _found(r: LocalGcResult) -> Iterator[Line]:
    yield from _whose(r)
    if r.nothing:
        yield f"nothing to free: {size(r.store_bytes)} in {plural(r.packs, 'pack')}, {plural(r.versions, 'version')}"
    else:
        yield (bold(size(r.freeable_bytes)), f" of {size(r.store_bytes)} could be freed in {r.store}")
    if r.over_bytes:
        yield f"store.max_size asks for {size(r.over_bytes)} more, as far as a remote holds it"
    if r.young_packs:
        yield dim(f"{plural(r.young_packs, 'pack')} written lately {'is' if r.young_packs == 1 else 'are'} left alone")


def _freed(r: LocalGcResult) -> Iterator[Line]:
    yield from _whose(r)
    yield (bold(size(r.freed_bytes)), f" freed; {size(r.left_bytes)} left in {r.store}")
    if r.evicted_packs:
        yield f"{plural(r.evicted_packs, 'pack')} of that a remote holds: `dvk pull` brings it back"
    if r.disk_full:
        yield yellow("the disk is full: run it again to fold small packs, now that there is room")


def _whose(r: LocalGcResult) -> Iterator[Line]:
    if len(r.repositories) > 1:
        from dvk.store.names import show

        yield from (cyan(show(top)) for top in r.repositories)


# ------------------------------------------------------------ ages and dates


def _age(text: str) -> int:
    """Seconds of `30d`, `12h`, `0`."""
    found = re.fullmatch(r"([0-9]{1,6})([smhdw]?)", text)
    if found is None or (not found[2] and found[1].strip("0")):
        raise UsageError("an age is a number and a unit: 30d, 12h, 0", subject=text)
    return int(found[1]) * _UNITS.get(found[2], 1)


def _since(text: str | None) -> int | None:
    """Unix seconds of a date, a time, or an age before now."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,6}[smhdw]", text):
        return int(time.time()) - _age(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            "a date is like 2026-01-31, 2026-01-31T12:00 or 90d (ago)", subject=f"--keep-since {text}"
        ) from error
    return int((found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp())
