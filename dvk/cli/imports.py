"""The terminal side of data from elsewhere: `import` and `update`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import show_name
from dvk.cli.text import Line, Piece, columns, cyan, dim, green, plural, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.import_content import Imported
    from dvk.commands.imports import ImportResult

_HEX = re.compile(r'"?[0-9a-f]{16}')
_STAGE = Annotated[bool, typer.Option("--stage/--no-stage", help="Stage the pointer for Git.")]


def _imported(result: ImportResult) -> Iterator[Line]:
    yield from columns([_row(p) for p in result.paths], right=(2,))
    if result.not_staged:
        yield yellow(f"not staged: {result.not_staged}")


def _row(p: Imported) -> tuple[str | Piece, ...]:
    shown = show_name(p.path) + ("/" if p.kind == "dir" else "")
    paint = {"imported": green, "updated": green, "changed": cyan}.get(p.state, dim)
    words = {"recorded": "same content, noted", "changed": "there"}.get(p.state, p.state)
    amount = "" if p.size is None else size(p.size)
    new = f", {size(p.new_bytes)} new" if p.state in ("imported", "updated") else ""
    files = f" {plural(p.files, 'file')}" if p.kind == "dir" and p.files is not None else ""
    short = p.version[:12] if _HEX.match(p.version) else p.version  # a commit or hash; a time is shown whole
    version = f" ({short})" if short else ""
    return (paint(words), shown, amount, f"{files.strip()}{new}".strip(", "), dim(f"{p.source}{version}"))


@verb(render=_imported)
def import_(
    run: Run,
    what: Annotated[str, typer.Argument(metavar="URL|[REV:]PATH", help="A URL, or with --repo a version of a path.")],
    out: Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="The new path here.")] = None,
    repo: Annotated[
        str | None, typer.Option("--repo", metavar="URL|FOLDER", help="The other repository, which is not cloned.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is in the way.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only look what is there.")] = False,
    stage: _STAGE = True,
) -> ImportResult:
    """Track data of another repository or at a URL, and note where it came from.

    The pointer keeps the repository, path, revision and commit, or the URL with what the server said of the version.
    `dvk update` brings a newer one. From a URL: http, https, s3, gs, az, ssh, hdfs, or a file of this machine; one that
    ends in / is a folder of objects.
    """
    from dvk.commands.imports import import_repo, import_url
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as ours:
        if repo is None:
            result = import_url(ours, what, out, force=force, stage=stage, dry_run=dry_run, on_event=run.on_event)
        else:
            result = import_repo(
                ours,
                repo,
                what,
                out,
                force=force,
                stage=stage,
                dry_run=dry_run,
                interactive=run.is_interactive,
                on_event=run.on_event,
            )
    run.partial(result.failures, of=len(result.paths), hint="it is recorded; `dvk checkout` puts it in place")
    return result


@verb(render=_imported)
def update(
    run: Run,
    paths: Annotated[list[str] | None, typer.Argument(help="Imported paths; without any all of them.")] = None,
    rev: Annotated[
        str | None, typer.Option("--rev", help="Follow this revision from now on (of other repositories).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only tell what is newer.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what was changed here.")] = False,
    stage: _STAGE = True,
) -> ImportResult:
    """Bring imported data to the newest version of where it came from.

    What did not change there is not downloaded: a question to the server, or a commit of the other repository, tells.
    """
    from dvk.commands.imports import update as command
    from dvk.commands.repo import Repo

    if rev is not None and not paths:
        raise UsageError("--rev needs paths", hint="name the imported paths that shall follow it")
    with Repo(environ=run.environ) as repo:
        result = command(
            repo,
            paths or (),
            rev=rev,
            dry_run=dry_run,
            force=force,
            stage=stage,
            interactive=run.is_interactive,
            on_event=run.on_event,
        )
    if not result.paths and not result.failures:
        run.show(["nothing here was imported"])
    run.partial(result.failures, of=len(result.paths) + len(result.failures))
    return result
