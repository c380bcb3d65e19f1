"""The terminal side of looking at versions and taking them out: `log`, `ls`, `cat`, `get`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here, show_name
from dvk.cli.text import Line, Piece, ago, columns, count, cyan, dim, green, plural, red, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import NotARepository, Refused, UsageError

if TYPE_CHECKING:
    from dvk.commands.get import Content, Got
    from dvk.commands.log import Log, LoggedVersion, Stat
    from dvk.commands.ls import Listed, Listing
    from dvk.commands.repo import Repo
    from dvk.commands.spec import Spec

_REMOTE = Annotated[str | None, typer.Option("--remote", metavar="NAME", help="Where to read what is not here.")]
_REPO = Annotated[
    str | None, typer.Option("--repo", metavar="URL|FOLDER", help="Of another repository, which is not cloned.")
]
_SPEC = Annotated[str, typer.Argument(metavar="[REV:]PATH", help="PATH as it is now, or REV:PATH from the top.")]


# ------------------------------------------------------------ log


def _logged(result: Log) -> Iterator[Line]:
    now = time.time()
    rows = [_version(v, now) for v in result.versions]
    first = 3 + any(v.tags for v in result.versions)
    yield from columns(rows, right=(first, first + 1))
    if result.more:
        yield dim("older versions are not shown")


def _version(v: LoggedVersion, now: float) -> tuple[str | Piece, ...]:
    if v.deleted:
        what: tuple[str | Piece, str | Piece] = (red("deleted"), "")
    elif v.size is None:
        what = (yellow("?"), "")
    else:
        new = "" if v.new_bytes is None else f"{size(v.new_bytes)} new"
        what = (size(v.size), green(new) if v.new_bytes else dim(new))
    files = plural(v.files, "file") if v.kind == "dir" and v.files is not None else ""
    about = " ".join(text for text in (f"[{files}]" if files else "", v.subject) if text)
    problem = f" ({v.problem})" if v.problem else ""
    tags = (cyan(", ".join(v.tags)),) if v.tags else ()
    stat = (_stat(v.stat),) if v.stat is not None else ()
    return (yellow(v.commit[:9]), *tags, _day(v.date, now), v.author, *what, *stat, about + problem)


def _stat(stat: Stat) -> str:
    """How much changed, with its unit."""
    if stat.unit == "bytes":
        return f"+{size(stat.added)} -{size(stat.removed)}"
    changed = f" ~{count(stat.modified)}" if stat.modified else ""
    return f"+{count(stat.added)} -{count(stat.removed)}{changed} {stat.unit}"


def _day(date: datetime | None, now: float) -> str:
    if date is None:
        return "?"
    age = now - date.timestamp()
    return ago(age) if 0 <= age < 7 * 86_400 else f"{date:%Y-%m-%d}"


@verb(render=_logged, answer=True)
def log(
    run: Run,
    words: Annotated[list[str], typer.Argument(metavar="[REV --] PATH", help="A tracked path, or one inside.")],
    rev: Annotated[str | None, typer.Option("--rev", help="The versions up to this revision.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", help="So many at most.")] = None,
    tags: Annotated[bool, typer.Option("--tags", help="What it was at each tag, the newest first.")] = False,
    diffstat: Annotated[bool, typer.Option("--diffstat", help="Count changed rows, files or bytes.")] = False,
) -> Log:
    """List the versions of a path, newest first, with what was new in each.

    "New" is content that the version before does not have. It is left blank where this clone does not know. --diffstat
    counts rows of tables whose content is here (with the extra `table`), files of folders, and else bytes of chunks.
    """
    from dvk.commands.log import log as command
    from dvk.commands.repo import Repo

    paths, before = _apart(run, words)
    if len(paths) != 1 or len(before) > 1 or (before and rev):
        raise UsageError("one path, please", hint="`dvk log PATH`, `dvk log REV -- PATH`")
    with Repo(environ=run.environ) as repo:
        wanted = before[0] if before else rev
        if tags and wanted:
            raise UsageError("--tags looks at all tags and takes no revision", subject=wanted)
        return command(
            repo,
            paths[0],
            rev=wanted or "HEAD",
            limit=limit,
            tags=tags,
            diffstat=diffstat,
            on_event=run.on_event,
        )


def _apart(run: Run, words: list[str]) -> tuple[list[str], list[str]]:
    """Paths and revisions, by Git's rule: what follows `--` is a path, what comes before it a revision."""
    if run.after_dashes is None:
        return words, []
    after = len(run.after_dashes)
    return words[len(words) - after :], words[: len(words) - after]


# ------------------------------------------------------------ ls


@verb(answer=True)
def ls(
    run: Run,
    spec: Annotated[str, typer.Argument(metavar="[REV:]PATH", help="What to list; without it all tracked paths.")] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Every file of tracked folders.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Size, kind and id as well.")] = False,
    repo: _REPO = None,
    remote: _REMOTE = None,
) -> Listing:
    """List what is tracked, or what a tracked folder holds, now or at a revision.

    Reads no data, only lists; what is not here comes from the remote and is not kept.
    """
    from dvk.commands.ls import ls as command

    with contextlib.ExitStack() as stack:
        source, what = _source(run, stack, repo, spec)
        result = command(source, what, recursive=recursive, remote=remote, on_event=run.on_event)
        top = source.workspace.top
        here = Here(top, run.cwd if result.rev is None and repo is None else top)
    run.show(list(_listing(result, here, long=long)))
    run.partial(result.failures, of=len(result.entries) + len(result.failures))
    return result


def _listing(result: Listing, here: Here, *, long: bool) -> Iterator[Line]:
    if not long:
        yield from (_name(e, here) for e in result.entries)
        return
    rows: list[list[str | Piece]] = []
    for e in result.entries:
        kind = "exec" if e.exec else e.kind
        amount = "" if e.kind == "link" else size(e.size)
        files = plural(e.files, "file") if e.kind == "dir" else ""
        row: list[str | Piece] = [dim(kind), amount, files, dim(e.id.hex()[:12] if e.id else ""), _name(e, here)]
        rows.append(row if e.target is None else [*row, f"-> {show_name(e.target)}"])
    yield from columns(rows, right=(1, 2))


def _name(entry: Listed, here: Here) -> str | Piece:
    shown = here(entry.path, folder=entry.kind == "dir")
    return cyan(shown) if entry.kind == "dir" else shown


# ------------------------------------------------------------ cat, get


def _source(run: Run, stack: contextlib.ExitStack, where: str | None, spec: str) -> tuple[Repo, Spec]:
    """Where a version is to be read, our own repository or another, and what of it."""
    from dvk.commands.elsewhere import open_elsewhere
    from dvk.commands.repo import Repo
    from dvk.commands.spec import Spec, parse_spec

    what = parse_spec(spec) if spec else Spec("", None, b"")
    if where is None:
        return stack.enter_context(Repo(environ=run.environ)), what
    if what.rev == "":
        raise UsageError("another repository has no Git index here", subject=spec, hint="REV:PATH, or PATH alone")
    try:
        home = stack.enter_context(Repo(environ=run.environ))
    except NotARepository:
        home = None
    there = open_elsewhere(
        where,
        what.rev,
        environ=run.environ,
        cwd=run.cwd,
        home=home,
        interactive=run.is_interactive,
        on_event=run.on_event,
    )
    stack.enter_context(there)
    return there.repo, there.spec(what.path)


@verb(answer=True)
def cat(run: Run, spec: _SPEC, repo: _REPO = None, remote: _REMOTE = None) -> Content:
    """Write the content of a file at a revision to standard output.

    Also of a file inside a tracked folder. What is not here is read from the remote and not kept. Every byte is proven;
    when something is wrong, the exit code says so.
    """
    from dvk.commands.get import cat as command

    out = run.raw_output()
    run.show([])
    with contextlib.ExitStack() as stack:
        source, what = _source(run, stack, repo, spec)
        return command(source, what, out, remote=remote, on_event=run.on_event)


@verb()
def get(
    run: Run,
    spec: _SPEC,
    out: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="Where to write; - is standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace files that are in the way.")] = False,
    repo: _REPO = None,
    remote: _REMOTE = None,
) -> Got | Content:
    """Write a file or folder at a revision to a place of your choice.

    The workspace is not touched. Each file is proven before it gets its name. Without -o it is written under its own
    name into the working folder. With --repo it is a version of another repository, and no workspace is needed here.
    """
    from dvk.commands.get import cat as to_stream
    from dvk.commands.get import get as command

    with contextlib.ExitStack() as stack:
        source, what = _source(run, stack, repo, spec)
        if out == "-":
            stream = run.raw_output()
            run.show([])
            try:
                return to_stream(source, what, stream, remote=remote, on_event=run.on_event)
            except Refused as error:
                if error.message == "is a folder":
                    error.hint = "a folder needs a place of its own: -o OUT"
                raise
        result = command(source, what, out, force=force, remote=remote, cwd=run.cwd, on_event=run.on_event)
    run.show(list(_got(result, run.cwd)))
    run.partial(result.failures, of=result.files + result.unchanged + len(result.failures), noun="file")
    return result


def _got(result: Got, cwd: bytes) -> Iterator[Line]:
    where = os.path.relpath(result.out, os.path.realpath(cwd))
    shown = show_name(result.out if where.startswith(b"..") else where) + ("/" if result.kind == "dir" else "")
    there = f"{plural(result.unchanged, 'file')} there already"
    if result.unchanged and not result.files:
        yield (green(shown), f" {there}, verified")
        return
    amount = f"{plural(result.files, 'file')}, " if result.kind == "dir" else ""
    source = f", from {result.remote}" if result.remote else ""
    kept = f"; {there}" if result.unchanged else ""
    yield (green(shown), f" {amount}{size(result.written_bytes)}{source}, verified{kept}")
