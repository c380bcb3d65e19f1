"""`dvk import` and `dvk update`: data of another repository or at a URL becomes our own version of it.

    dvk import --repo git@host:acme/registry v1.0:models/best.pt      a path of another repository
    dvk import https://example.org/iris.csv -o data/iris.csv          a file somewhere
    dvk update data/iris.csv                                          its newer version, or "unchanged"

The pointer keeps where it came from (`dvk.workspace.provenance`). Order: content into the store and proven, then the
pointer, then the workspace, so that a kill at any moment leaves the old version or the new one, and `dvk checkout`
brings the workspace in step. A file that changed here since it was imported is never replaced without `force`.

Whether there is something newer costs no content: a commit and a pointer of the other repository, or one question to
the server. A URL in a pointer came with our own repository, so following it needs trust, unless it was typed here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from dvk.backend.locate import RemoteUrl, parse_remote_url
from dvk.backend.origin import name_of, parse_origin_url
from dvk.backend.text import redact
from dvk.commands.acknowledged import Acknowledged
from dvk.commands.checkout import checkout, tracked
from dvk.commands.elsewhere import Elsewhere, open_elsewhere
from dvk.commands.import_content import Content, Imported, Made, told
from dvk.commands.pathwork import stage_pointers
from dvk.commands.repo import Repo, root_of
from dvk.commands.spec import find_target, parse_spec
from dvk.commands.status import status
from dvk.commands.tracked import is_there
from dvk.errors import (
    ChangedWhileRead,
    DataMissing,
    DvkError,
    FormatError,
    NotFound,
    Refused,
    StorageError,
    UsageError,
)
from dvk.events import Note, OnEvent, ignore
from dvk.store.names import show
from dvk.workspace.config import Origin as Scope
from dvk.workspace.git_mirror import looks_like_git_url, parse_git_url
from dvk.workspace.pointer import Pointer, pointer_name
from dvk.workspace.provenance import FromRepo, FromUrl, provenance_of
from dvk.workspace.selection import edit
from dvk.workspace.trust import VARIABLE, add_trust, is_trusted, why_ask


class ImportResult(Struct):
    """What an import or an update did."""

    paths: list[Imported] = field(default_factory=list)
    staged: int = 0  #: pointers that were put into the Git index
    not_staged: str = ""  #: why staging did not happen although the pointers are written
    dry_run: bool = False
    failures: list[DvkError] = field(default_factory=list)


def import_repo(
    repo: Repo,
    where: str,
    spec: str | bytes,
    out: bytes | str | None = None,
    *,
    force: bool = False,
    stage: bool = True,
    dry_run: bool = False,
    interactive: bool = False,
    on_event: OnEvent = ignore,
) -> ImportResult:
    """Track a path of another repository here; it follows the revision of `spec`, the default branch without one.

    Args:
        out: the new path, or an existing folder to put it in; by default its own name in the working folder.
        force: replace what is in the way.
        dry_run: only look; of a URL then no more is known than what its server says.

    Raises:
        NotFound: there is no such repository, revision or path. Refused: something is in the way, or the path cannot
        be one of data. DataMissing: its data is on none of its remotes. Nothing was recorded.
    """
    wanted = parse_spec(spec)
    if wanted.rev == "":
        raise UsageError(
            "another repository has no Git index here", subject=wanted.text, hint="REV:PATH, or PATH alone"
        )
    with _Import(repo, force=force, interactive=interactive, on_event=on_event) as run:
        there = run.elsewhere(where, wanted.rev or "")
        target = find_target(there.repo, there.spec(wanted.path))
        path = run.place(out, target.full.rpartition(b"/")[2])
        if not dry_run:
            _trust_typed(repo, _place_of_repo(there.url), on_event)
        source = FromRepo(there.url, target.full, there.commit, wanted.rev or "")
        made = run.content.from_repo(path, there, target, source, dry_run=dry_run)
        return run.record([made], stage=stage, dry_run=dry_run)


def import_url(
    repo: Repo,
    url: str,
    out: bytes | str | None = None,
    *,
    force: bool = False,
    stage: bool = True,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
) -> ImportResult:
    """Track what is at a URL (http, https, s3, gs, az, ssh, a file here). Arguments and errors as `import_repo`.

    Raises:
        ChangedWhileRead: it was replaced there meanwhile.
    """
    place = parse_origin_url(url, cwd=repo.cwd)
    with _Import(repo, force=force, interactive=False, on_event=on_event) as run:
        name = name_of(place)
        if out is None and not name:
            raise UsageError("the URL has no name for the data", subject=redact(url), hint="choose one with -o PATH")
        path = run.place(out, name)
        made = run.content.from_url(path, place, dry_run=dry_run)
        if not dry_run:
            _trust_typed(repo, place, on_event)
        return run.record([made], stage=stage, dry_run=dry_run)


def update(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    rev: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    stage: bool = True,
    interactive: bool = False,
    on_event: OnEvent = ignore,
) -> ImportResult:
    """Bring imported paths (all by default) to the newest version of where they came from.

    What one path lacks does not keep the others from arriving: see `failures`.

    Args:
        rev: follow this revision from now on, for what came from repositories.
        dry_run: only tell what is newer.
        force: replace what was changed here since.

    Raises:
        NotFound: a path is not tracked.
    """
    failures: list[DvkError] = []
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    targets = tracked(repo, wanted, failures)
    with _Import(repo, force=force, interactive=interactive, on_event=on_event) as run:
        done: list[Made] = []
        for path, inside, pointer in targets:
            try:
                if inside:
                    raise UsageError(
                        "is a part of an import", subject=show(path), hint="update the path that was imported"
                    )
                found = run.newer(path, pointer, rev, dry_run=dry_run)
                if found is not None:
                    done.append(found)
                elif path in wanted:
                    raise NotFound(
                        "was not imported", subject=show(path), hint="`dvk import` keeps where data came from"
                    )
            except DvkError as error:
                failures.append(error)
        result = run.record(done, stage=stage, dry_run=dry_run)
        result.failures = [*failures, *result.failures]
        return result


class _Import:
    def __init__(self, repo: Repo, *, force: bool, interactive: bool, on_event: OnEvent) -> None:
        self.repo, self.ws = repo, repo.workspace
        self.force, self.interactive, self.on_event = force, interactive, on_event
        self.content = Content(repo, on_event)
        self._stack = contextlib.ExitStack()
        self._elsewhere: dict[tuple[str, str], Elsewhere] = {}

    def __enter__(self) -> _Import:
        self._stack.enter_context(self.repo.writing())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------ where to

    def place(self, out: bytes | str | None, name: bytes) -> bytes:
        """The path for a new import.

        Raises:
            Refused: something is there already, or it belongs to a tracked folder or to Git.
        """
        given = os.path.join(self.repo.cwd, os.fsencode(out) if out is not None else name)
        if os.path.isdir(given) and not os.path.lexists(given.rstrip(b"/") + b".dvk"):
            given = os.path.join(given, name)
        path = self.ws.locate(given, cwd=self.repo.cwd)
        pointer_name(path)
        owner = self.ws.owner_of(path)
        if owner is not None and owner[1]:
            raise Refused(
                "lies in a folder that is tracked as a whole",
                subject=show(path),
                hint="choose a place outside of it with -o, or `dvk get` it there and `dvk add` the folder",
            )
        if owner is not None and not self.force:
            raise Refused(
                "is tracked already",
                subject=show(path),
                hint=f"`dvk update {show(path)}` brings a newer version; -o chooses another name; --force replaces",
            )
        below = next(iter(self.ws.worktree_pointers([path])), None)
        if below is not None and below[0] != path:
            raise Refused("has tracked paths in it", subject=show(path), hint="choose another name with -o")
        if is_there(self.repo.root_fd, path) and not self.force:
            raise Refused("exists already", subject=show(path), hint="--force replaces it; -o chooses another name")
        git = self.ws.git
        held = git.tracked_under(path) if git is not None and git.has_program else []
        if held:
            raise Refused(f"Git tracks it ({show(held[0])})", subject=show(path), hint="choose another name with -o")
        return path

    def elsewhere(self, where: str, rev: str) -> Elsewhere:
        """Another repository, opened once."""
        key = (where, rev)
        if key not in self._elsewhere:
            self._elsewhere[key] = self._stack.enter_context(
                open_elsewhere(
                    where,
                    rev or None,
                    environ=self.repo.environ,
                    home=self.repo,
                    committed=True,
                    interactive=self.interactive,
                    on_event=self.on_event,
                )
            )
        return self._elsewhere[key]

    # ------------------------------------------------------------ what is newer

    def newer(self, path: bytes, pointer: Pointer, rev: str | None, *, dry_run: bool) -> Made | None:
        """The newer version of an imported path; None when it was not imported.

        Raises:
            Refused: it was changed here, or its place has to be trusted first. NotFound: it is not there any more.
        """
        shown = show(path)
        then = provenance_of(pointer, subject=shown)
        if then is None:
            return None

        def ready() -> None:
            self._check_clean(path)

        if isinstance(then, FromUrl):
            if rev is not None:
                raise UsageError(
                    "came from a URL, which has no revisions",
                    subject=shown,
                    hint=f"without --rev it is brought up to date; `dvk import URL -o {shown} --force` takes another",
                )
            url = _recorded(lambda: parse_origin_url(then.url, cwd=b"/"), shown)
            self._check_trust(url, shown)
            with _about(shown, then):
                made = self.content.from_url(path, url, old=pointer, dry_run=dry_run, ready=ready)
        else:
            place = _recorded(lambda: _place_of_repo(then.repo), shown)
            self._check_trust(place, shown, always=True)
            with _about(shown, then if rev is None else replace(then, rev=rev)):
                there = self.elsewhere(then.repo, then.rev if rev is None else rev)
                follow = replace(then, commit=there.commit, rev=then.rev if rev is None else rev)
                if there.commit == then.commit and follow == then:
                    return Made(told(path, str(then), "unchanged", pointer, then.commit))
                target = find_target(there.repo, there.spec(then.path))
                made = self.content.from_repo(path, there, target, follow, old=pointer, dry_run=dry_run, ready=ready)
        return made

    def _check_trust(self, url: RemoteUrl, path: str, *, always: bool = False) -> None:
        """Raise unless the user trusts a place that a pointer of the repository names."""
        why = why_ask(url, Scope("repo", path), write=False)
        if always and not why:
            why = "a Git server would be contacted that this user has not trusted yet"
        if why and not is_trusted(url, self.repo.environ):
            raise Refused(
                f"{why}: {url}, from where it was imported",
                subject=path,
                hint=f"if it is the right place: `dvk remote trust '{url}'`, once; "
                f"in an automatic job: {VARIABLE}='{url}'",
            )

    def _check_clean(self, path: bytes) -> None:
        if self.force:
            return
        found, problems = status(self.repo, [os.path.join(self.ws.top, path)], on_event=self.on_event)
        if problems:
            raise problems[0]
        for row in found.paths:
            if row.path == path and (row.modified or row.added) and not row.behind:
                raise Refused(
                    "was changed here since it was imported",
                    subject=show(path),
                    hint=f"`dvk add {show(path)}` keeps the change and stops following; --force replaces it",
                )

    # ------------------------------------------------------------ recording

    def record(self, done: Sequence[Made], *, stage: bool, dry_run: bool = False) -> ImportResult:
        """Write the pointers, bring the workspace in step, stage."""
        out = ImportResult([d.told for d in done], dry_run=dry_run)
        news = [(d.told.path, d.pointer, d.old) for d in done if d.pointer is not None]
        if dry_run:
            return out
        out.failures += self._finish([d.told.path for d in done if d.pointer is None])
        if not news:
            return out
        Acknowledged(self.ws.common_dir).add(root_of(pointer).text for _, pointer, _ in news)
        with self.ws.lock():
            self.ws.hide(add=[path for path, _, _ in news])
            for path, pointer, old in news:
                if old is not None and self.ws.read_pointer(path) != old:
                    raise ChangedWhileRead(
                        "another process changed its pointer just now", subject=show(path), hint="run the command again"
                    )
                if old is None and pointer.is_dir:
                    with edit(self.repo.state) as selection:
                        selection.add(path, b"")
                self.ws.write_pointer(path, pointer)
        out.failures += self._place([path for path, pointer, old in news if old is None or old.id != pointer.id])
        if stage:
            out.staged, out.not_staged = stage_pointers(self.repo, [path for path, _, _ in news])
        return out

    def _place(self, paths: Sequence[bytes]) -> list[DvkError]:
        """Bring data in step with its pointers."""
        if not paths:
            return []
        whole = [os.path.join(self.ws.top, path) for path in paths]
        return checkout(self.repo, whole, force=self.force, on_event=self.on_event).failures

    def _finish(self, paths: Sequence[bytes]) -> list[DvkError]:
        """The same for what nothing is new of, where an update was killed between the pointer and the data."""
        if not paths:
            return []
        found, _ = status(self.repo, [os.path.join(self.ws.top, path) for path in paths], on_event=self.on_event)
        return self._place([row.path for row in found.paths if row.behind and not row.not_fetched])


@contextlib.contextmanager
def _about(shown: str, source: FromRepo | FromUrl) -> Iterator[None]:
    """Errors about a place, told of the path that came from there."""
    try:
        yield
    except NotFound as error:
        near = f"; {error.hint}" if error.hint.startswith("did you mean") else ""
        raise NotFound(
            f"is not any more where it was imported from: {source} ({error.message}: {error.subject})",
            subject=shown,
            hint=f"what is here stays; `dvk import` it from its new place, or `dvk update --rev REV {shown}`{near}",
        ) from error
    except (Refused, StorageError, FormatError, DataMissing):
        raise
    except DvkError as error:
        where = f" ({error.subject})" if error.subject and error.subject != shown else ""
        error.args, error.message, error.subject = (error.message + where,), error.message + where, shown
        raise


def _recorded(parse: Callable[[], RemoteUrl], shown: str) -> RemoteUrl:
    """The place that a pointer names, which nobody typed here.

    Raises:
        FormatError: it is none.
    """
    try:
        return parse()
    except UsageError as error:
        raise FormatError(
            f"its pointer names a place that cannot be one: {error.subject}: {error.message}",
            subject=shown,
            hint="take the pointer as it was committed, or `dvk import` the data again",
        ) from error


def _place_of_repo(where: str) -> RemoteUrl:
    """What trust is given to, of another repository.

    Raises:
        UsageError: it is no place of a repository.
    """
    if where.lower().startswith("file://") or not looks_like_git_url(where):
        return parse_remote_url(where)
    return parse_git_url(where).place


def _trust_typed(repo: Repo, url: RemoteUrl, on_event: OnEvent) -> None:
    """The user typed this place on this machine, so a later update may ask it."""
    try:
        add_trust(url, repo.environ)
    except (StorageError, FormatError) as error:
        on_event(Note(f"cannot be remembered as trusted, so `dvk update` will ask ({error})", subject=str(url)))
