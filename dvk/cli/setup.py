"""The terminal side of what is set up once: `init`, `remote`, `config`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dvk.cli.hooks import hook_lines
from dvk.cli.names import show_name
from dvk.cli.text import Line, Piece, bold, columns, cyan, dim, green, size
from dvk.cli.verb import Run, verb
from dvk.errors import NotARepository, UsageError
from dvk.events import Note

if TYPE_CHECKING:
    from dvk.commands.init import InitResult
    from dvk.commands.remotes import RemoteChanged, RemoteInfo
    from dvk.commands.settings import SettingChanged, Settings, SettingValue
    from dvk.workspace.keys import Scope

_GLOBAL = Annotated[bool, typer.Option("--global", help="Your own settings, for all repositories.")]
_LOCAL = Annotated[bool, typer.Option("--local", help="Settings of this clone only.")]


def _initialised(result: InitResult) -> Iterator[Line]:
    hooked = result.hooks is not None and bool(result.hooks.changed)
    if not result.wrote and not result.staged and not hooked and not result.no_hooks:
        yield "nothing to do: dvk.toml and .gitattributes are there"
        return
    if result.wrote:
        yield f"wrote {', '.join(map(show_name, result.wrote))}" + ("; staged" if result.staged else "")
    elif result.staged:
        yield f"staged {', '.join(map(show_name, result.staged))}"
    if result.not_staged:
        yield f"not staged: {result.not_staged}; `git add {' '.join(map(show_name, result.wrote))}` does it"
    if result.hooks is not None and hooked:
        yield from hook_lines(result.hooks)
    if result.no_hooks:
        yield f"hooks not installed: {result.no_hooks}; `dvk hooks install` tries again"
    yield (dim("next: "), cyan("dvk remote add origin s3://BUCKET/PREFIX"), dim(" (or a path), "), cyan("dvk add PATH"))


@verb(render=_initialised)
def init(
    run: Run,
    stage: Annotated[bool, typer.Option("--stage/--no-stage", help="Put the files into the Git index.")] = True,
    hooks: Annotated[bool, typer.Option("--hooks/--no-hooks", help="Let data follow what Git does here.")] = True,
) -> InitResult:
    """Make a Git repository ready for dvk.

    Writes dvk.toml (settings that travel with the repository) and the line in .gitattributes that keeps Git from
    converting pointers, and stages both. Installs hooks in this clone, see `dvk hooks`. Safe to repeat.
    """
    from dvk.commands.init import init as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return command(repo, stage=stage, hooks=hooks)


# ------------------------------------------------------------ remotes


def _added(result: RemoteChanged) -> Iterator[Line]:
    yield (
        f"{result.name} is {result.url}; ",
        "default remote; " if result.default else f"the default remote is {result.default_now or 'not set'}; ",
        "nothing contacted",
    )
    yield dim(_written(result))


def _written(result: RemoteChanged) -> str:
    return f"wrote {', '.join(result.places)}" + ("; staged" if result.staged else "")


@verb(render=_added)
def remote_add(
    run: Run,
    name: Annotated[str, typer.Argument(help="What to call it: origin.")],
    url: Annotated[str, typer.Argument(help="s3://BUCKET/PREFIX, or the path of a folder.")],
    default: Annotated[bool, typer.Option("--default", help="Use it when no remote is named.")] = False,
    to_local: _LOCAL = False,
    to_global: _GLOBAL = False,
    endpoint_url: Annotated[str | None, typer.Option(help="Of an S3-compatible server.")] = None,
    region: Annotated[str | None, typer.Option(help="The region of the bucket.")] = None,
    profile: Annotated[str | None, typer.Option(help="The section of the AWS files.")] = None,
    addressing: Annotated[str | None, typer.Option(help="auto, path or virtual.")] = None,
    sse: Annotated[str | None, typer.Option(help="Server-side encryption: AES256 or aws:kms.")] = None,
    sse_kms_key_id: Annotated[str | None, typer.Option(help="The key of aws:kms.")] = None,
    checksum: Annotated[str | None, typer.Option(help="auto or when_required.")] = None,
    anon: Annotated[bool, typer.Option("--anon", help="Unsigned requests, for public buckets.")] = False,
) -> RemoteChanged:
    """Say where data goes. Nothing is contacted.

    The URL goes into dvk.toml, for everybody; the other settings stay on this machine. The first remote becomes the
    default. Credentials are taken from where the AWS tools keep them.
    """
    from dvk.commands.remotes import remote_add as command
    from dvk.commands.repo import Repo

    settings = {
        "endpoint_url": endpoint_url,
        "region": region,
        "profile": profile,
        "addressing": addressing,
        "sse": sse,
        "sse_kms_key_id": sse_kms_key_id,
        "checksum": checksum,
        "anon": "true" if anon else None,
    }
    given = {k: v for k, v in settings.items() if v is not None}
    with Repo(environ=run.environ) as repo:
        scope = _scope(to_local=to_local, to_global=to_global) or "repo"
        result = command(repo, name, url, default=default, scope=scope, settings=given)
    if default and not result.default:
        run.on_event(Note(f"a stronger setting says {result.default_now}", subject="core.remote"))
    if result.not_trusted:
        run.on_event(Note(result.not_trusted, subject=result.url))
    return result


def _remotes(found: list[RemoteInfo]) -> Iterator[Line]:
    if not found:
        yield (dim("no remote yet: "), cyan("dvk remote add origin s3://BUCKET/PREFIX"), dim(" (or a path)"))
    rows = []
    for r in found:
        settings = ", ".join(f"{k}={v}" for k, v in sorted(r.settings.items()))
        name = bold(r.name) if r.default else r.name
        rows.append(("*" if r.default else " ", name, r.url, dim(f"{settings}  {r.place}".strip())))
    yield from columns(rows, gap=1)


@verb(render=_remotes, answer=True)
def remote_list(run: Run) -> list[RemoteInfo]:
    """List the remotes; a star marks the default."""
    from dvk.commands.remotes import remote_list as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return command(repo)


def _removed(result: RemoteChanged) -> Iterator[Line]:
    yield f"forgot {result.name} ({result.url}); what it holds stays there"
    if result.default:
        yield f"it was the default remote; now it is {result.default_now or 'none'}"
    yield dim(_written(result))


@verb(render=_removed)
def remote_remove(run: Run, name: Annotated[str, typer.Argument(help="The remote to forget.")]) -> RemoteChanged:
    """Forget a remote. What it holds stays there."""
    from dvk.commands.remotes import remote_remove as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return command(repo, name)


def _renamed(result: RemoteChanged) -> Iterator[Line]:
    yield f"{result.old_name} is called {result.name} now" + ("; default remote" if result.default else "")
    yield dim(_written(result))


@verb(render=_renamed)
def remote_rename(
    run: Run,
    old: Annotated[str, typer.Argument(help="What it is called.")],
    new: Annotated[str, typer.Argument(help="What to call it.")],
) -> RemoteChanged:
    """Give a remote another name."""
    from dvk.commands.remotes import remote_rename as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        return command(repo, old, new)


# ------------------------------------------------------------ settings


@verb(answer=True)
def config(
    run: Run,
    key: Annotated[str | None, typer.Argument(help="A setting, like core.remote.")] = None,
    value: Annotated[str | None, typer.Argument(help="What to set it to; without it the setting is shown.")] = None,
    list_: Annotated[bool, typer.Option("--list", "-l", help="All settings that have a value.")] = False,
    unset: Annotated[bool, typer.Option("--unset", help="Remove the setting.")] = False,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Where each value comes from.")] = False,
    in_repo: Annotated[bool, typer.Option("--tracked", help="dvk.toml, which travels with the repository.")] = False,
    in_local: _LOCAL = False,
    in_global: _GLOBAL = False,
) -> SettingValue | list[SettingValue] | SettingChanged:
    """Show or change settings.

    A value is written where its key belongs: into dvk.toml what everybody shares, into this clone's own file the rest.
    What comes later in this list wins: dvk.toml, --global, --local, environment.

    \b
    core.remote: the remote to use when none is named
    remote.<name>.url: where the remote is: `s3://bucket/prefix` or an absolute path
    remote.<name>.endpoint_url: of an S3-compatible server
    remote.<name>.region: the region of the bucket
    remote.<name>.profile: the section of the AWS files to take credentials from
    remote.<name>.addressing: `path` for host/bucket, `virtual` for bucket.host
    remote.<name>.sse: server-side encryption of what is written
    remote.<name>.sse_kms_key_id: the key of `aws:kms`
    remote.<name>.checksum: `when_required` for servers that do not know the newer checksums
    remote.<name>.backend: the library that talks to s3, gs and az
    remote.<name>.anon: send unsigned requests (public buckets)
    remote.<name>.connect_timeout_s: seconds to wait for a connection (10)
    remote.<name>.read_timeout_s: seconds to wait for the next byte (60)
    remote.<name>.deadline_s: seconds to repeat what fails for the moment (120)
    remote.<name>.max_concurrency: connections kept open (32)
    store.path: where data is kept on this machine, in place of the Git folder
    store.max_size: how large the local store may be: `dvk gc` makes room above it
    cache.max_size: how much whole files for `dvk.local_path` may take in the user's cache
    hooks.push_limit: how much the pre-push hook sends by itself
    hooks.large_file: from which size on the pre-commit hook warns of a file that would go into Git
    project.id: whose records on a remote are whose, made by `dvk init`
    profile.default: how files are cut into chunks
    """
    scope = _scope(to_local=in_local, to_global=in_global, to_repo=in_repo)
    settings = _settings(run)
    try:
        if list_ or key is None:
            if key is not None or unset:
                raise UsageError("--list takes no setting")
            found = settings.all(scope)
            run.show(list(_listed(found, show_origin=show_origin)))
            return found
        if value is None and not unset:
            one = settings.get(key, scope=scope)
            run.show([_text(one) + (f"  ({_origin(one)})" if show_origin else "")])
            return one
        if unset and value is not None:
            raise UsageError("--unset takes no value", subject=key)
        changed = settings.unset(key, scope=scope) if value is None else settings.set(key, value, scope=scope)
    finally:
        if settings.repo is not None:
            settings.repo.close()
    if changed.not_trusted:
        run.on_event(Note(changed.not_trusted, subject=changed.key))
    run.show([] if run.terminal.quiet else list(_changed(changed)))
    return changed


def _settings(run: Run) -> Settings:
    from dvk.commands.repo import Repo
    from dvk.commands.settings import Settings

    try:
        return Settings(Repo(environ=run.environ), run.environ)
    except NotARepository:
        return Settings(None, run.environ)


def _scope(*, to_local: bool, to_global: bool, to_repo: bool = False) -> Scope | None:
    chosen: list[Scope] = []
    chosen += ["local"] if to_local else []
    chosen += ["user"] if to_global else []
    chosen += ["repo"] if to_repo else []
    if len(chosen) > 1:
        raise UsageError("--local, --global and --tracked say different things", hint="use one of them")
    return chosen[0] if chosen else None


def _text(setting: SettingValue) -> str:
    if isinstance(setting.value, bool):
        return "true" if setting.value else "false"
    return str(setting.value)


def _origin(setting: SettingValue) -> str:
    words = {"repo": "", "user": "global ", "local": "local ", "env": "environment ", "default": ""}
    return words[setting.scope] + setting.place


def _listed(found: list[SettingValue], *, show_origin: bool) -> Iterator[Line]:
    rows: list[list[str | Piece]] = []
    for s in found:
        about = f"  ({size(s.value)})" if isinstance(s.value, int) and not isinstance(s.value, bool) else ""
        rows.append([f"{s.key} = {_text(s)}{about}"])
        if show_origin:
            rows[-1].append(dim(_origin(s)))
    yield from columns(rows)


def _changed(result: SettingChanged) -> Iterator[Line]:
    staged = "; staged" if result.staged else ""
    if result.value is None:
        yield f"{result.key} removed from {result.place}{staged}"
        if result.now is not None:
            yield dim(f"now {_text(result.now)} ({_origin(result.now)})")
        return
    yield (green(result.key), f" written to {result.place}{staged}")
    if result.now is not None and result.now.value != result.value:
        yield f"{_origin(result.now)} is stronger and says {_text(result.now)}"
