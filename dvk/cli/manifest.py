"""The terminal side of `manifest`."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.records import to_json
from dvk.cli.verb import Run, verb
from dvk.errors import NotFound, Refused, UsageError

if TYPE_CHECKING:
    from dvk.commands.manifest import Manifest
    from dvk.commands.repo import Repo


@verb(answer=True)
def manifest(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[REV] [-- PATH...]", help="What, without a revision as it is now.")
    ] = None,
    key: Annotated[bool, typer.Option("--key", help="Only the key: it changes exactly when the data does.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Every file of tracked folders.")] = False,
    read: Annotated[
        str | None, typer.Option("--read", metavar="FILE", help="What commands noted in FILE under DVK_MANIFEST.")
    ] = None,
    out: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")] = None,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="NAME", help="Where to read what is not here.")
    ] = None,
) -> Manifest:
    """Say what a revision holds, or what a job read: paths, ids and sizes, as JSON.

    Needs no data and, but for parts of folders, no network. With --key one line for a cache: equal data has an equal
    key, whatever its paths are called. With DVK_MANIFEST=FILE set, pull, checkout, get and cat note in FILE what they
    handed out; `dvk manifest --read FILE` shows that.
    """
    from dvk.commands.manifest import manifest as command
    from dvk.commands.manifest import read_manifest
    from dvk.commands.repo import Repo

    if read is not None:
        if words or recursive:
            raise UsageError("--read shows a file and takes no revision or path")
        result = read_manifest(read)
    else:
        with Repo(environ=run.environ) as repo:
            rev, paths = _apart(run, repo, words or [])
            result = command(repo, rev, paths, recursive=recursive, remote=remote, on_event=run.on_event)
    text = result.key if key else json.dumps(to_json(result), indent=1)
    if out is not None:
        _write(out, text + "\n")
        run.show([f"{out}: {len(result.paths)} paths, key {result.key}"])
    else:
        run.show(text.split("\n"))
    return result


def _apart(run: Run, repo: Repo, words: list[str]) -> tuple[str | None, list[str]]:
    """A revision and paths, by Git's rule: what follows `--` are paths; a single word may be either."""
    if run.after_dashes is not None:
        after = len(run.after_dashes)
        before, paths = words[: len(words) - after], words[len(words) - after :]
        if len(before) > 1:
            raise UsageError("one revision at most", subject=before[1], hint="`dvk manifest REV -- PATH...`")
        return (before[0] if before else None), paths
    if not words:
        return None, []
    is_path = any(os.path.lexists(words[0] + end) for end in ("", ".dvk"))
    try:
        repo.workspace.resolve(words[0])
    except (NotFound, UsageError, Refused):
        if not is_path and len(words) == 1:
            raise  # a word that is nothing: as a revision it gets the better answer
        return None, words
    if is_path:
        either = f"`dvk manifest {words[0]} --` or `dvk manifest -- {words[0]}`"
        raise UsageError("is a revision and a path", subject=words[0], hint=either)
    return words[0], words[1:]


def _write(out: str, text: str) -> None:
    from dvk.backend.disk import storage_error

    try:
        with open(out, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise storage_error(error, out) from error
