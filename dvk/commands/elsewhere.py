"""Another repository: a folder of this machine or a Git URL, opened so that its versions can be read like our own.

    with open_elsewhere("git@host:acme/registry", "v1.0", environ=environ, home=repo) as there:
        target = find_target(there.repo, there.spec(b"models/best.pt"))
        with Reader(there.repo) as reader: ...

`there.repo` is a `Repo`: its Git objects, its remotes (of its `dvk.toml` at HEAD and that revision) and a store to look
into first, so whatever reads versions reads these. Of a URL a bare copy without contents is kept in the user's cache
(`dvk.workspace.git_mirror`); data never goes there. A work tree of this machine is opened as it is, with its own store,
and without a revision it means what its pointers say now; everything else means `HEAD` then.

Remotes that the other repository names are strangers' words, and `dvk.workspace.trust` asks the same of them as of our
own `dvk.toml`. Where our own configuration knows the same URL, its settings (endpoint, profile) serve for both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType

from msgspec import Struct
from msgspec.structs import replace

from dvk.backend.locate import parse_remote_url
from dvk.commands.repo import Repo
from dvk.commands.spec import Spec
from dvk.errors import NotARepository, NotFound, UsageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.names import show
from dvk.workspace.config import FILE_NAME, MAX_BYTES, Config, ConfigFiles, Layer, RemoteConfig
from dvk.workspace.git import CommitId, GitRepo
from dvk.workspace.git_mirror import Mirror, looks_like_git_url, mirror_folder, open_bare, parse_git_url
from dvk.workspace.places import Places, writable_cache
from dvk.workspace.repo import Workspace

_NOTHING = Layer({})


class Elsewhere(Struct, frozen=True):
    """Another repository at one version of it. Close it, or use it in a `with`."""

    repo: Repo
    url: str  #: in its canonical form; a folder of this machine is file:///...
    rev: str | None  #: None: its work tree as it is
    commit: CommitId  #: what `rev` comes to; empty for a work tree as it is

    def __post_init__(self) -> None:
        self.repo.elsewhere = self.url

    def spec(self, path: bytes) -> Spec:
        """What `find_target` of `self.repo` takes for a path from the top there."""
        shown = show(path)
        if self.rev is None:  # then a path counts from where a command runs
            return Spec(shown, None, os.path.join(self.repo.workspace.top, path))
        return Spec(f"{self.rev}:{shown}", self.rev, path)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of handles and processes."""
        self.repo.close()


def open_elsewhere(
    where: str,
    rev: str | None = None,
    *,
    environ: Mapping[str, str],
    cwd: bytes | None = None,
    home: Repo | None = None,
    committed: bool = False,
    interactive: bool = False,
    on_event: OnEvent = ignore,
) -> Elsewhere:
    """Open the repository at `where`; a URL is asked for what is new there, unless `rev` is a whole commit id known.

    Args:
        where: a folder (also a bare repository), or SCHEME://HOST/PATH, or USER@HOST:PATH.
        cwd: where a folder counts from; the process's own working folder by default.
        home: the repository that asks. Its store is looked into first, and settings of its remotes serve.
        committed: without a revision take `HEAD`, of a work tree too.
        interactive: a person is there whom git may ask for a password.

    Raises:
        UsageError: `where` is no URL that is allowed, or `rev` no revision.
        NotFound, NotARepository: there is no repository, no such revision.
        RemoteUnreachable, RemoteDenied: its server does not answer, or wants a sign-in.
    """
    environ = {k: v for k, v in environ.items() if k != "DVK_REMOTE"}  # that is the name of a remote of ours
    folder = _as_folder(where, home.cwd if cwd is None and home is not None else cwd)
    wanted = (rev or "HEAD") if committed else rev
    if folder is None:
        return _by_url(where, wanted or "HEAD", environ, home, interactive, on_event)
    if not os.path.isdir(folder):
        raise NotFound("there is no such folder", subject=show(folder), hint="--repo takes a folder or a Git URL")
    try:
        repo = Repo(os.fsdecode(folder), environ=environ)
    except NotARepository as error:
        try:
            # A folder in a stranger's repository may be a bare one, whose settings name programs for its transports.
            git = open_bare(folder, {**environ, "GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"})
        except NotARepository:
            raise error from None
        url = f"file://{os.fsdecode(folder)}"
        return _over(git, url, wanted or "HEAD", mirror_folder(writable_cache(environ), url), environ, home)
    try:
        url = f"file://{os.fsdecode(repo.workspace.top)}"
        return Elsewhere(repo, url, wanted, CommitId("") if wanted is None else _resolve(repo, wanted, url))
    except BaseException:
        repo.close()
        raise


def _as_folder(where: str, cwd: bytes | None) -> bytes | None:
    """The folder that `where` names, None for a URL."""
    if "\0" in where or not where:
        raise UsageError("neither a folder nor the URL of a Git repository", subject=where, hint="--repo URL|FOLDER")
    if where.lower().startswith("file://"):
        return os.path.realpath(os.fsencode(parse_remote_url(where).path))
    full = os.path.realpath(os.path.join(cwd if cwd is not None else os.getcwdb(), os.fsencode(where)))
    # Never by what is on disk: a folder `git@host:path` in a stranger's repository is not the place that was meant.
    if looks_like_git_url(where):
        return None
    if where.startswith("-"):
        raise UsageError("starts with a dash, like an option", subject=where, hint=f"./{where} for a folder")
    return full


def _by_url(
    where: str, rev: str, environ: Mapping[str, str], home: Repo | None, interactive: bool, on_event: OnEvent
) -> Elsewhere:
    url = parse_git_url(where)
    outside = home.workspace.top if home is not None else None
    mirror = Mirror(url, writable_cache(environ), environ, interactive=interactive, outside=outside)
    if not os.path.isdir(mirror.git_dir):
        on_event(Note("its history is read for the first time", subject=str(url)))
    mirror.refresh(rev)
    return _over(mirror.open(), str(url), rev, mirror.folder, environ, home)


def _over(git: GitRepo, url: str, rev: str, folder: bytes, environ: Mapping[str, str], home: Repo | None) -> Elsewhere:
    """A repository without a work tree, with what dvk remembers of it in `folder`."""
    try:
        state = os.path.join(folder, b"dvk")
        store = home.workspace.store_dir if home is not None else Places.in_cache(git.top, environ).store_dir
        files = ConfigFiles.of(git.top, state, environ)
        bare = Workspace(git.top, git, state, state, store, Config(files, {}), environ)
        commit = _resolve(Repo.over(bare, cwd=git.top, environ=environ), rev, url)
        # Where data is, HEAD knows best, as in a clone; a branch may name a remote that HEAD does not.
        head = git.head()
        layer = _layer(git, head, f"dvk.toml of {url}") if head is not None else _NOTHING
        if commit != head:
            older = _layer(git, commit, f"dvk.toml of {url} at {rev}")
            layer = replace(layer, values={**older.values, **layer.values})
        config = _with_settings(Config.load(files, environ, repo=layer), home)
        return Elsewhere(Repo.over(replace(bare, config=config), cwd=git.top, environ=environ), url, rev, commit)
    except BaseException:
        git.close()
        raise


def _layer(git: GitRepo, commit: CommitId, place: str) -> Layer:
    text = git.blob_at(commit, FILE_NAME, max_bytes=MAX_BYTES)
    return _NOTHING if text is None else Layer.parse(text, "repo", place=place)


def _resolve(repo: Repo, rev: str, url: str) -> CommitId:
    try:
        return repo.workspace.resolve(rev)
    except NotFound as error:
        raise NotFound(f"no such revision in {url}", subject=error.subject, hint=error.hint) from error


def _with_settings(config: Config, home: Repo | None) -> Config:
    """The same configuration, where remotes whose URL our own repository knows have our settings."""
    if home is None:
        return config
    ours: dict[str, RemoteConfig] = {}
    for remote in home.workspace.config.remotes().values():
        ours.setdefault(remote.url, remote)
    values = dict(config.values)
    for name, remote in config.remotes().items():
        if remote.url in ours:
            known = f"remote.{ours[remote.url].name}."
            mine = {k: v for k, v in home.workspace.config.values.items() if k.startswith(known)}
            values |= {f"remote.{name}.{k[len(known) :]}": v for k, v in mine.items()}
    return replace(config, values=values)
