"""`dvk add`: data on disk becomes chunks in the store and a pointer in the work tree, staged for Git.

The user's files are only read. Order: data durable, then pages, then the pointer, then Git: a kill leaves at most
data that nothing refers to. A folder is scanned whole and compared with the stat cache; only what changed is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from dvk.commands.acknowledged import Acknowledged
from dvk.commands.add_targets import Targets, read_pointer
from dvk.commands.add_version import Added, NewVersion, Versions
from dvk.commands.placed import Placed
from dvk.commands.repo import Repo, root_of
from dvk.errors import Busy, NotFound, UsageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.names import show
from dvk.store.writer import Writer
from dvk.workspace.pointer import pointer_name
from dvk.workspace.selection import Selection, edit
from dvk.workspace.statcache import read_clock

_RETRIES = 5


class AddResult(Struct):
    """What an add did."""

    paths: list[Added] = field(default_factory=list)
    staged: int = 0  #: pointers that were put into the Git index
    not_staged: str = ""  #: why staging did not happen although the pointers are written
    overruled: dict[bytes, str] = field(default_factory=dict)  #: pointers that a Git ignore rule would have kept out
    dry_run: bool = False


def add(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    update: bool = False,
    dry_run: bool = False,
    stage: bool = True,
    keep_missing: bool = False,
    delete_missing: bool = False,
    on_event: OnEvent = ignore,
) -> AddResult:
    """Record what is on disk at `paths`; with `update`, at all tracked paths that changed.

    Args:
        dry_run: do all the work and keep nothing.
        stage: put the pointers into the Git index.
        keep_missing, delete_missing: what to do about files of a folder that are not here when it is not known
            whether they were ever asked for.

    Raises:
        NotFound, Refused, UsageError: a path that cannot be added; nothing was recorded.
        StorageError, StorageFull, ChangedWhileRead: of a file or of the store; nothing was recorded.
    """
    if bool(paths) == update and not (paths and update):
        raise UsageError("nothing to add", hint="name a file or folder, or use -u for all tracked paths that changed")
    ws = repo.workspace
    rules = ws.ignore_rules()
    targets = Targets(repo, rules, on_event=on_event).find(paths, update=update)
    with repo.writing():
        clock = read_clock(repo.state)
        with Writer(repo.store, dry_run=dry_run) as writer:
            versions = Versions(repo, writer, rules, clock, keep=keep_missing, delete=delete_missing, on_event=on_event)
            new = [versions.make(t) for t in targets]
            writer.flush()
            if dry_run:
                return AddResult([v.added for v in new], dry_run=True)
            _acknowledge(repo, new)
            with ws.lock():
                if not delete_missing:
                    _select(repo, versions.selection, new)
                # Before its pointer tells Git's users that the data is dvk's: a kill must not leave it to `git add -A`.
                ws.hide(add=[v.target.path for v in new])
                new = [_write_pointer(repo, versions, v) for v in new]
                if delete_missing:
                    _select(repo, versions.selection, new)
        for v in new:
            if v.cache is not None:
                v.cache.save(repo.state, v.target.path)
        Placed(repo.state).update({v.target.path: v.pointer for v in new})
        result = AddResult([v.added for v in new])
        if stage:
            _stage(repo, result, [pointer_name(v.target.path) for v in new], on_event)
        return result


def _acknowledge(repo: Repo, new: Sequence[NewVersion]) -> None:
    """Remember of what is new that all of it was here; of a folder that is here in part nobody can say that."""
    news = [v for v in new if v.added.changed or v.added.new_bytes]
    known = Acknowledged(repo.workspace.common_dir)
    before = known.read() if any(v.target.inner for v in news) else frozenset()

    def is_whole(v: NewVersion) -> bool:
        if not v.target.inner:
            return not v.added.not_present
        return v.target.pointer is not None and root_of(v.target.pointer).text in before

    known.add(root_of(v.pointer).text for v in news if is_whole(v))


def _select(repo: Repo, known: Selection, new: Sequence[NewVersion]) -> None:
    """Record what is asked for, before the pointer says so: a kill must not make a deletion of what is not here.

    With --delete-missing after it: a kill must not turn a question into an answer.
    """
    news = [(v.target.path, v.select) for v in new if v.select and v.select != known.get(v.target.path)]
    if news:
        with edit(repo.state) as selection:
            for path, selected in news:
                for prefix in (b"",) if selected.prefixes is None else selected.prefixes:
                    selection.add(path, prefix)


def _write_pointer(repo: Repo, versions: Versions, v: NewVersion) -> NewVersion:
    """Write the pointer, unless another process changed it since it was read: then start over from that."""
    path = v.target.path
    for _ in range(_RETRIES):
        now = read_pointer(repo.workspace, path)
        if now == v.target.pointer:
            if v.pointer != now:
                repo.workspace.write_pointer(path, v.pointer)
            return v
        if now is None and v.target.inner:
            raise NotFound(
                "another process removed the pointer of this folder meanwhile",
                subject=show(path),
                hint=f"`dvk add {show(path)}` tracks it again, with what is on disk",
            )
        v = versions.make(replace(v.target, pointer=now))
        versions.writer.flush()
        _acknowledge(repo, [v])
    raise Busy("other processes keep changing this pointer", subject=show(path), hint="run the command again")


def _stage(repo: Repo, result: AddResult, pointers: list[bytes], on_event: OnEvent) -> None:
    if repo.workspace.git is None:
        result.not_staged = "this is no Git repository"
        return
    try:
        result.overruled = repo.workspace.git.stage(pointers)
        result.staged = len(pointers)
    except Busy as error:
        result.not_staged = error.message
    for path, rule in result.overruled.items():
        on_event(
            Note(
                f"a Git ignore rule would have kept this pointer out ({rule}); it was staged by force",
                subject=show(path),
            )
        )
