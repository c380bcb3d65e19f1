"""The terminal side of looking for damage and mending it: `verify`, `repair`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, Piece, bold, count, cyan, dim, green, plural, red, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import Damaged, DataMissing, DvkError, StorageError, UsageError

if TYPE_CHECKING:
    from dvk.commands.repair_report import RepairResult
    from dvk.commands.repo import Repo
    from dvk.commands.verify_report import AffectedVersion, VerifyResult

_FILES_SHOWN = 5
_OBJECTS_SHOWN = 20
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)%")
_BARE = {"--remote": ("", r"[^-].*"), "--data": ("100%", r"[0-9.]+%")}

_REMOTE = Annotated[
    str | None,
    typer.Option("--remote", metavar="[NAME]", help="A remote, the default one without NAME.", show_default=False),
]


def _percent(text: str) -> float:
    found = _PERCENT.fullmatch(text)
    if found is None or not 0 < float(found[1]) <= 100:
        raise UsageError("should be a share like 10%", subject=f"--data={text}", hint="--data alone reads everything")
    return float(found[1])


# ------------------------------------------------------------ verify


@verb(answer=True, bare=_BARE)
def verify(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[REV|A..B]... [-- PATH...]", help="Only what these point to.")
    ] = None,
    remote: _REMOTE = None,
    quick: Annotated[bool, typer.Option("--quick", help="Sizes and existence only.")] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="[N%]", help="Read everything, or a share: what was read longest ago.", show_default=False
        ),
    ] = None,
) -> VerifyResult:
    """Look whether every version can be had, and name exactly what cannot.

    Looks at the local store and the work tree, or with --remote at what a fresh clone could restore from there. Ends
    with 23 for damage, with 16 for what cannot be read, and with 7 for what was never pushed.
    """
    from dvk.commands.repo import Repo
    from dvk.commands.verify import Level
    from dvk.commands.verify import verify as command

    if quick and data is not None:
        raise UsageError("--quick and --data say different things", hint="use one of them")
    percent = 100.0 if data is None else _percent(data)
    level = Level.QUICK if quick else Level.NORMAL if data is None else Level.DATA
    paths = list(run.after_dashes or ())
    revs = list(words or ())[: len(words or ()) - len(paths)]
    with Repo(environ=run.environ) as repo:
        if remote and remote not in repo.workspace.config.remotes() and _is_revision(repo, remote):
            revs, remote = [remote, *revs], ""  # `dvk verify --remote HEAD` leaves no doubt
        result = command(repo, revs, paths, remote=remote, level=level, percent=percent, on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_verified(result, here)))
    _judge(run, result)
    return result


def _is_revision(repo: Repo, text: str) -> bool:
    try:
        return ".." in text or bool(repo.workspace.resolve(text))
    except DvkError:
        return False


def _judge(run: Run, result: VerifyResult) -> None:
    where = result.remote or "this clone"
    if result.damaged:
        run.failure = Damaged(f"{where} is not whole: {result.summary}")
    elif result.unread:
        what = f"{plural(len(result.unread), 'object')} could not be read: {result.unread[0].message}"
        subject = f"{result.remote or result.store}/{result.unread[0].key}"
        run.failure = StorageError(what, subject=subject, hint=result.unread[0].hint)
    elif result.unread_here:
        from dvk.store.names import show

        what = f"{plural(len(result.unread_here), 'file')} could not be read: {result.unread_here[0].message}"
        run.failure = StorageError(what, subject=show(result.unread_here[0].path), hint=result.unread_here[0].hint)
    elif result.missing:
        what = f"{plural(sum(v.state in ('not-pushed', 'unprotected') for v in result.affected), 'version')}"
        run.failure = DataMissing(f"{what} that these revisions point to were never pushed to {result.remote}")
    elif result.failures:
        run.partial(result.failures, of=result.versions + len(result.failures), noun="version")


def _verified(result: VerifyResult, here: Here) -> Iterator[Line]:
    if result.summary:
        yield bold(result.summary)
    style = {"lost": red, "unreachable": yellow, "not-pushed": yellow, "unprotected": yellow, "unsure": yellow}
    for v in result.affected:
        yield from _version(v, here, style[v.state](v.state.replace("-", " ")))
    for o in result.objects[:_OBJECTS_SHOWN]:
        mark = red("damaged") if o.certain else yellow("unread") if o.unread else dim("unsure")
        need = "" if o.needed or not o.certain else " (no version that was looked at needs it)"
        yield (mark, f" {o.kind} ", cyan(o.key), f": {o.message}{need}")
        if o.others:
            yield dim(f"    needed by {plural(len(o.others), 'version')} that no revision here names")
    if len(result.objects) > _OBJECTS_SHOWN:
        yield dim(f"... and {plural(len(result.objects) - _OBJECTS_SHOWN, 'object')} more; --json names all")
    for p in result.workspace:
        yield (yellow(p.kind), " ", cyan(here(p.path)), f": {p.message}")
        if p.hint:
            yield dim(f"    -> {p.hint}")
    yield _sum(result)


def _version(v: AffectedVersion, here: Here, state: Piece) -> Iterator[Line]:
    revisions = ", ".join(r[:9] if r != "work tree" else r for r in v.revisions[:_FILES_SHOWN])
    more = f", {count(len(v.revisions) - _FILES_SHOWN)} more" if len(v.revisions) > _FILES_SHOWN else ""
    what = f"{plural(v.files, 'file')}, {size(v.bytes)}" if v.kind == "dir" else size(v.size)
    yield (state, " ", cyan(here(v.path, folder=v.kind == "dir")), f" ({v.id.hex()[:12]}, {what}) at {revisions}{more}")
    for m in v.missing[:_FILES_SHOWN] if v.kind == "dir" else ():
        and_more = f" and {plural(m.files - 1, 'file')} after it" if m.files > 1 else ""
        yield f"    {here(m.path)}{and_more}: {m.why}"
    shown = sum(m.files for m in v.missing[:_FILES_SHOWN])
    if v.kind == "dir" and v.files > shown:
        yield dim(f"    ... and {plural(v.files - shown, 'file')} more; --json names them")
    if v.why and v.kind == "file":
        yield f"    {v.why}"
    if v.hint:
        yield dim(f"    -> {v.hint}")


def _sum(result: VerifyResult) -> Line:
    where = result.remote or result.store
    read = f", {count(result.packs_read)} of them to the last byte" if result.packs_read else ""
    not_here = f", {count(result.not_here)} not here (never fetched, or only in part)" if result.not_here else ""
    versions = f"{count(result.whole)} of {plural(result.versions, 'version')} whole{not_here}"
    packs = f"{plural(result.packs, 'pack')}{read} ({size(result.read_bytes)} read)"
    if result.summary:
        return dim(f"{where}: {versions}; {packs}")
    return (green("all is well"), f" in {where}: {versions}; {packs}")


# ------------------------------------------------------------ repair


@verb(answer=True, bare={"--remote": _BARE["--remote"]})
def repair(
    run: Run,
    remote: _REMOTE = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="REMOTE|FOLDER", help="Where good copies are: a remote, a clone, a store."),
    ] = None,
    data: Annotated[
        bool | None,
        typer.Option("--data/--no-data", help="Read everything first: done of the local store, not of a remote."),
    ] = None,
    drop_records: Annotated[
        bool,
        typer.Option("--drop-records", help="Of a remote: put aside records that cannot be read, promises and all."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Look, and say what would be done.")] = False,
) -> RepairResult:
    """Bring back what is damaged or lost, from wherever a good copy is.

    Deletes nothing: salvages what is good in damaged packs, puts them aside under quarantine/, writes the index anew,
    and brings the rest from the files on disk, the remotes, or --from. With --remote the same for a remote, from this
    clone. Interrupted, the same command goes on. Ends with 23 when something is still damaged or lost, with 16 when
    something could not be read: that is left alone.
    """
    from dvk.commands.repair import repair as command
    from dvk.commands.repo import Repo
    from dvk.commands.verify import Level

    level = None if data is None else Level.DATA if data else Level.NORMAL
    with Repo(environ=run.environ) as repo:
        result = command(
            repo,
            remote=remote,
            source=source,
            level=level,
            drop_records=drop_records,
            dry_run=dry_run,
            on_event=run.on_event,
        )
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_repaired(result, here)))
    if not dry_run:
        _judge(run, result.after)
    return result


def _repaired(result: RepairResult, here: Here) -> Iterator[Line]:
    if result.before.summary:
        yield bold(result.before.summary)
    would = "would be " if result.dry_run else ""
    style = {"healed": green, "sent": green, "salvaged": green}
    for m in result.done:
        yield (style.get(m.what, cyan)(m.what), f" {m.subject}", dim(f"  {m.detail}" if m.detail else ""))
    if result.quarantine:
        yield f"damaged objects are kept under {result.quarantine}"
    if result.report:
        yield f"what was done is in {result.report}"
    if result.dry_run:
        yield f"dry run: nothing was changed; {plural(len(result.done), 'thing')} {would}done"
    elif result.after.summary:
        yield from _verified(result.after, here)
    elif result.done:
        yield (green("all is well"), f" now: {plural(result.after.whole, 'version')} whole")
    else:
        yield "nothing to repair"
