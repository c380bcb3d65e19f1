"""The terminal side of Git in step: `hooks install`, `remove`, `status`, `run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.names import show_name
from dvk.cli.text import Line, columns, cyan, dim, green, plural, printable, size, yellow
from dvk.cli.verb import Run, verb
from dvk.errors import DvkError

if TYPE_CHECKING:
    from dvk.commands.follow import Followed
    from dvk.commands.hooks import HooksResult
    from dvk.commands.pre_commit import PreCommit
    from dvk.commands.pre_push import PrePush

_NAMES = Annotated[list[str] | None, typer.Argument(metavar="[HOOK...]", help="Some of them; all without names.")]
_DRY = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; change nothing.")]
_MAX_NAMED = 10


def hook_lines(result: HooksResult) -> Iterator[Line]:
    """Which hooks there are, and for those that could not be installed the line to add."""
    there = [h.name for h in result.hooks if h.place != "none"]
    if there:
        yield f"hooks: {', '.join(there)}"
    for hook in result.left_out:
        yield (yellow(f"{hook.name} is not installed: "), f"{hook.obstacle} ({show_name(hook.path)})")
        if hook.owner == "pre-commit":
            yield (dim("    add dvk to .pre-commit-config.yaml, see docs/git.md"),)
        else:
            where = f".husky/{hook.name}" if hook.owner == "husky" else "it"
            yield (dim(f"    add this line to {where}: "), cyan(f'dvk hooks run {hook.name} "$@"'))


def _installed(result: HooksResult) -> Iterator[Line]:
    yield from hook_lines(result)
    if result.dry_run:
        yield f"would install {', '.join(result.changed)}" if result.changed else "nothing to do"
        yield "dry run: nothing was changed"
    elif not result.changed:
        yield "nothing to do: they are there"


@verb(render=_installed)
def install(run: Run, names: _NAMES = None, dry_run: _DRY = False) -> HooksResult:
    """Let data follow what Git does: hooks, and the merge of pointers.

    Hooks of other people stay and go on running. Where a file belongs to another tool, the line to add there is shown.
    Safe to repeat; run it again after dvk was installed elsewhere.
    """
    from dvk.commands.hooks import install_hooks
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return install_hooks(repo, names or (), dry_run=dry_run)


def _removed(result: HooksResult) -> Iterator[Line]:
    if not result.changed:
        yield "nothing to do: there are none"
    else:
        yield f"{'would remove' if result.dry_run else 'removed'} {', '.join(result.changed)}"


@verb(render=_removed)
def remove(run: Run, names: _NAMES = None, dry_run: _DRY = False) -> HooksResult:
    """Take the hooks out again; what other people have in the same files stays."""
    from dvk.commands.hooks import remove_hooks
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return remove_hooks(repo, names or (), dry_run=dry_run)


def _states(result: HooksResult) -> Iterator[Line]:
    words = {"file": "in its own file", "block": "beside other lines", "config": "in Git's configuration"}
    rows: list[tuple[Line, ...]] = []
    for h in result.hooks:
        if h.place == "none":
            rows.append((h.name, yellow("not installed"), h.obstacle))
        else:
            old = "" if h.current else "of another version of dvk: `dvk hooks install` renews it"
            rows.append((h.name, green(words[h.place]), old))
    yield from columns(rows)  # type: ignore[arg-type]
    yield f"merge of pointers: {'by dvk' if result.driver else 'by Git, as text'}"
    if result.program:
        yield f"program: {result.program}"


@verb(render=_states, answer=True)
def status(run: Run) -> HooksResult:
    """Say which hooks are installed, where, and which program they run."""
    from dvk.commands.hooks import hooks_status
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return hooks_status(repo)


# ------------------------------------------------------------ what Git runs


@verb(answer=True)
def run_hook(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="HOOK", help="pre-push, post-checkout, ...")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS...]", help="As Git gives them.")] = None,
) -> Followed | PrePush | PreCommit | None:
    """Do what a hook does: this is the line for other tools that run hooks.

    Only pre-push uses the network and can fail. The others always end with 0. DVK_HOOKS=0 skips all.
    """
    from dvk.commands.hooks import check_names

    check_names([name])
    if run.environ.get("DVK_HOOKS") == "0":
        run.show([])
        return None
    if name == "pre-push":
        return _pre_push(run, arguments or [])
    try:
        return _pre_commit(run) if name == "pre-commit" else _follow(run, name, arguments or [])
    except DvkError as error:
        if error.kind == "interrupted":
            raise
        run.show([f"dvk: {error}", *([dim(f"dvk: {error.hint}")] if error.hint else [])])
    except OSError as problem:
        name = problem.filename
        subject = printable(os.fsdecode(name)) if isinstance(name, bytes | str) else "the disk"
        run.show([f"dvk: {subject}: {problem.strerror or problem}; `dvk status` says more"])
    except Exception as problem:  # a bug of ours must not stop anybody's commit
        run.show([f"dvk: ran into a bug ({type(problem).__name__}: {problem}); `dvk status` says more"])
    return None


def _pre_push(run: Run, arguments: list[str]) -> PrePush:
    from dvk.commands.pre_push import pre_push
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        told, git_remote = _pushed(run, arguments)
        result = pre_push(repo, told, git_remote=git_remote, on_event=run.on_event)
    done = result.pushed
    lines: list[Line] = []
    if done is not None and done.sent:
        lines.append(f"dvk: {plural(len(done.sent), 'version')}, {size(done.moved_bytes)} to {done.remote}, verified")
    run.show(lines)
    if done is not None:
        run.partial(
            done.failures,
            of=result.versions,
            noun="version",
            hint="nothing was pushed by Git; `DVK_HOOKS=0 git push` pushes without these data",
        )
    return result


def _pushed(run: Run, arguments: list[str]) -> tuple[list[str], str]:
    """What is pushed, a line a branch, and to which Git remote."""
    if "PRE_COMMIT_REMOTE_NAME" in run.environ:  # the pre-commit framework, which keeps what Git says to itself
        tip = run.environ.get("PRE_COMMIT_TO_REF") or run.environ.get("PRE_COMMIT_LOCAL_BRANCH", "HEAD")
        return [f"- {tip} - -"], run.environ["PRE_COMMIT_REMOTE_NAME"]
    raw = getattr(run.stdin, "buffer", None)  # a branch may have any bytes in its name
    text = raw.read().decode("utf-8", "surrogateescape") if raw is not None else run.stdin.read()
    return text.splitlines(), arguments[0] if arguments else ""


def _follow(run: Run, name: str, arguments: list[str]) -> Followed | None:
    from dvk.commands.follow import follow
    from dvk.commands.repo import Repo
    from dvk.workspace.git_moved import concerns_files

    if not concerns_files(name, arguments, run.environ):
        run.show([])
        return None
    with Repo(environ=run.environ) as repo:
        result = follow(repo, name, on_event=run.on_event)
    run.show(list(_followed(result)))
    return result


def _followed(result: Followed) -> Iterator[Line]:
    parts = []
    updated = len(result.updated) + len(result.removed)
    if updated and not result.quiet:
        parts.append(f"{plural(updated, 'path')} updated")
    if result.behind:
        total = sum(b.size for b in result.behind)
        parts.append(f"{len(result.behind)} behind ({size(total)}): dvk pull")
    if parts:
        yield f"dvk: {', '.join(parts)}"
    if len(result.behind) > 1 or (result.behind and result.kept):
        for b in result.behind[:_MAX_NAMED]:
            yield dim(f"dvk: behind: {show_name(b.path)} ({size(b.size)})")
        if len(result.behind) > _MAX_NAMED:
            yield dim(f"dvk: and {len(result.behind) - _MAX_NAMED} more; `dvk status` lists them")
    for note in result.kept[:_MAX_NAMED]:
        yield f"dvk: {note.subject}: {note.message}"
        if note.hint:
            yield dim(f"dvk:     {note.hint}")
    if len(result.kept) > _MAX_NAMED:
        yield dim(f"dvk: and {len(result.kept) - _MAX_NAMED} more; `dvk status` lists them")


def _pre_commit(run: Run) -> PreCommit:
    from dvk.commands.pre_commit import pre_commit
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        result = pre_commit(repo, on_event=run.on_event)
    run.show(list(_warnings(result)))
    return result


def _warnings(result: PreCommit) -> Iterator[Line]:
    for large in result.large[:_MAX_NAMED]:
        name = show_name(large.path)
        if large.staged:
            yield f"dvk: {name} ({size(large.size)}) goes into Git for good: `git rm --cached {name}`, `dvk add {name}`"
        else:
            yield f"dvk: {name} ({size(large.size)}) is not tracked: `dvk add {name}` keeps it out of Git"
    if len(result.large) > _MAX_NAMED:
        yield f"dvk: and {len(result.large) - _MAX_NAMED} more big files"
    for what, paths, hint in (
        ("changed since its pointer was written, so not as it is in this commit", result.stale, "dvk add -u"),
        ("did not follow its pointer", result.behind, "dvk checkout (or dvk pull)"),
    ):
        for path in paths[:_MAX_NAMED]:
            yield f"dvk: {show_name(path)} {what}: {hint}"
        if len(paths) > _MAX_NAMED:
            yield f"dvk: and {len(paths) - _MAX_NAMED} more; `dvk status` lists them"
    for note in result.broken[:_MAX_NAMED]:
        yield f"dvk: {note.subject}: {note.message}"
        yield dim(f"dvk:     {note.hint}")
