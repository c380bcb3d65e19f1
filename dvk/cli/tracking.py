"""The terminal side of the daily round: `add` and `status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import Here
from dvk.cli.text import Line, Piece, columns, count, cyan, dim, green, percent, plural, red, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.add import AddResult
    from dvk.commands.add_version import Added
    from dvk.commands.status import PathStatus, Status


# ------------------------------------------------------------ add


@verb()
def add(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Files and folders.")] = None,
    update: Annotated[bool, typer.Option("--update", "-u", help="All tracked paths that changed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be stored; keep nothing.")] = False,
    stage: Annotated[bool, typer.Option("--stage/--no-stage", help="Put the pointers into the Git index.")] = True,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Files of a folder that are not here stay in it.")
    ] = False,
    delete_missing: Annotated[
        bool, typer.Option("--delete-missing", help="Files of a folder that are not here are deleted from it.")
    ] = False,
) -> AddResult:
    """Record files and folders as they are now, and stage their pointers.

    Only what is new is stored. The files themselves are not touched. A path inside a tracked folder records that file
    or subfolder alone.
    """
    from dvk.commands.add import add as command
    from dvk.commands.repo import Repo

    if keep_missing and delete_missing:
        raise UsageError("--keep-missing and --delete-missing say different things", hint="use one of them")
    with Repo(environ=run.environ) as repo:
        result = command(
            repo,
            paths or (),
            update=update,
            dry_run=dry_run,
            stage=stage,
            keep_missing=keep_missing,
            delete_missing=delete_missing,
            on_event=run.on_event,
        )
        here = Here(repo.workspace.top, run.cwd)
    run.show(list(_added(result, here, only_changed=update and not paths)))
    return result


def _added(result: AddResult, here: Here, *, only_changed: bool) -> Iterator[Line]:
    shown = [a for a in result.paths if a.changed or not only_changed]
    if not shown:
        yield "nothing has changed" if result.paths else "nothing is tracked yet: `dvk add PATH` starts"
        return
    for a in shown:
        yield _added_path(a, here)
    if result.dry_run:
        whole = sum(a.size for a in shown)
        stored = sum(a.stored_bytes for a in shown)
        saved = f", {percent(whole - stored, whole)} less than a copy" if whole > stored else ""
        yield f"dry run: {size(stored)} would be stored of {size(whole)}{saved}; nothing was written"
    elif result.not_staged:
        n = plural(len(result.paths), "pointer")
        yield (yellow(f"{n} written, not staged: "), result.not_staged)
    elif result.staged:
        yield f"staged {plural(result.staged, 'pointer')}"
    else:
        yield f"{plural(len(result.paths), 'pointer')} written, not staged (--no-stage)"


def _added_path(a: Added, here: Here) -> Line:
    is_dir = a.kind == "dir"
    name = here(a.path, folder=is_dir)
    amount = f"{plural(a.files, 'file')} {size(a.size)}" if is_dir else size(a.size)
    line: list[str | Piece] = [cyan(name), f" {amount}, "]
    line.append(green(f"{size(a.stored_bytes)} new") if a.changed or a.stored_bytes else dim("unchanged"))
    if a.added == a.files and not (a.modified or a.removed):
        changes = ""  # the first version: everything was added, which the number of files says already
    else:
        changes = _changes(a.added, a.removed, a.modified)
    extra = [
        changes,
        f"{plural(a.not_present, 'file')} not present" if a.not_present else "",
        f"{count(a.ignored)} ignored" if a.ignored else "",
    ]
    told = "; ".join(e for e in extra if e)
    return (*line, f" ({told})") if told else tuple(line)


def _changes(added: int, removed: int, modified: int) -> str:
    parts = ((added, "+"), (removed, "-"), (modified, "~"))
    return " ".join(f"{sign}{count(n)}" for n, sign in parts if n)


# ------------------------------------------------------------ status


@verb(answer=True)
def status(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...", help="Look at these only.")] = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 4 when data, pointers and index differ.")
    ] = False,
) -> Status:
    """Say what differs between data, pointers, the Git index and the remote.

    Never uses the network: "not pushed" is what this clone does not know to be on the remote.
    """
    from dvk.commands.hooks import remind
    from dvk.commands.repo import Repo
    from dvk.commands.status import status as command

    with Repo(environ=run.environ) as repo:
        result, problems = command(repo, paths or (), on_event=run.on_event)
        here = Here(repo.workspace.top, run.cwd)
        if result.paths and (note := remind(repo)):
            run.on_event(note)
    run.show(list(_status(result, here, narrowed=bool(paths), broken=len(problems))))
    run.partial(problems, of=len(result.paths) + len(problems), hint="the others are shown")
    run.differences(exit_code and not (result.clean and not problems))
    return result


def _status(result: Status, here: Here, *, narrowed: bool, broken: int) -> Iterator[Line]:
    if result.branch:
        yield f"On branch {result.branch}"
    gone = [p for p in result.paths if _is_gone(p)]
    behind = [p for p in result.paths if p.behind and p not in gone]
    changed = [p for p in result.paths if (p.modified or p.added or p.missing) and p not in gone and not p.behind]
    sections = (
        _section(
            "Conflict",
            "`dvk resolve PATH --ours`, `--theirs`, or `--merge` for a folder",
            [_row(red(c.what), here(c.path)) for c in result.conflicts],
        ),
        _section(
            "Staged",
            "`git commit` records them",
            [_row(green(p.staged), here(p.path, folder=_folder(p)), _amount(p)) for p in result.paths if p.staged],
        ),
        _section(
            "Pointer differs from the Git index",
            "`git add PATH.dvk` stages it",
            [_row(yellow("not staged"), here(p.path, folder=_folder(p))) for p in result.paths if p.unstaged],
        ),
        _section(
            "Changed",
            "`dvk add -u` records them, `dvk checkout PATH` takes them back",
            [_row(red("modified"), here(p.path, folder=_folder(p)), _what(p)) for p in changed],
        ),
        _section(
            "Behind: the pointer moved, the data did not",
            "`dvk checkout` brings them in step, `dvk pull` where it is not here",
            [_row(yellow("behind"), here(p.path, folder=_folder(p)), _amount(p)) for p in behind],
        ),
        _section(
            "Missing",
            "`dvk checkout PATH` brings them back, `dvk rm PATH` stops tracking them",
            [_row(red("missing"), here(p.path, folder=_folder(p)), _amount(p)) for p in gone],
        ),
        _section(
            "Not fetched",
            "`dvk pull` brings them",
            [_row(yellow("not here"), here(p.path, folder=_folder(p)), _amount(p)) for p in _unfetched(result)],
        ),
        _section(
            "Not present, since nobody asked for them here",
            "`dvk pull PATH` brings them",
            [
                _row(dim(count(p.not_present)), here(p.path, folder=True), f"of {plural(p.files, 'file')}")
                for p in result.paths
                if p.not_present
            ],
        ),
        _section(
            "Left behind: ignored by Git, without a pointer",
            "`dvk add PATH` tracks it again, else delete it",
            [_row(yellow("no pointer"), here(path)) for path in result.left_behind],
        ),
    )
    for lines in sections:
        yield from lines
    yield from _summary(result, narrowed=narrowed, broken=broken)


def _summary(result: Status, *, narrowed: bool, broken: int) -> Iterator[Line]:
    if result.not_pushed:
        amount = f"{plural(result.not_pushed, 'version')}, {size(result.not_pushed_bytes)}"
        where = f" to {result.remote}" if result.remote else ""
        how = "`dvk push` sends them" if result.remote else "`dvk remote add origin URL` says where to"
        yield (yellow(f"Not pushed{where}: "), amount, dim(f"  ({how})"))
    if result.clean and not broken:
        if result.paths:
            total = sum(p.size for p in result.paths)
            amount = f"{plural(len(result.paths), 'path')}, {size(total)}"
            yield f"in step: {amount}" if result.not_pushed else f"nothing to do: {amount} in step"
        elif not narrowed:
            yield (dim("nothing is tracked yet: "), cyan("dvk add PATH"), dim(" starts"))
        else:
            yield "nothing is tracked there"


def _section(title: str, hint: str, rows: Sequence[tuple[str | Piece, ...]]) -> Iterable[Line]:
    if not rows:
        return ()
    return [(f"{title}:", dim(f"  ({hint})")), *[("    ", *_parts(line)) for line in columns(rows)]]


def _parts(line: Line) -> Sequence[str | Piece]:
    return (line,) if isinstance(line, str | Piece) else line


def _row(word: str | Piece, name: str, more: str = "") -> tuple[str | Piece, ...]:
    return (word, name, dim(more)) if more else (word, name)


def _folder(p: PathStatus) -> bool:
    return p.kind == "dir"


def _amount(p: PathStatus) -> str:
    if p.staged == "deleted":
        return ""
    return f"{plural(p.files, 'file')}, {size(p.size)}" if _folder(p) else size(p.size)


def _what(p: PathStatus) -> str:
    return _changes(p.added, p.missing, p.modified) if _folder(p) else ""


def _is_gone(p: PathStatus) -> bool:
    """Nothing of it is on disk."""
    return bool(p.missing) and p.missing >= max(p.files - p.not_present, 1) and not (p.modified or p.added)


def _unfetched(result: Status) -> list[PathStatus]:
    return [p for p in result.paths if p.not_fetched and not p.behind]
