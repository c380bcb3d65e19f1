"""`dvk rm`: stop tracking a path, or take entries out of a tracked folder; data goes only where it can come back from.

    dvk rm data/old.csv          pointer gone and staged as deleted, data deleted
    dvk rm --cached data/old.csv the same, the data stays
    dvk rm images/0001.jpg       a new version of images without it

All paths are judged before the first change. A file is deleted when it is exactly what its pointer says, the local
store or a confirmed remote holds it, and a commit leads to it; what dvk never stored in a folder stays and is counted.

Order, so that the same command finishes what a kill left: new pages of a folder, then data, then the pointer, then the
Git index, then the ignore rule, then what the worktree remembers. With data before pointer a killed run leaves a
tracked path whose data is missing, which `dvk checkout` brings back; the other way round it would leave data that
nothing speaks for.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from dvk.commands.pathwork import in_other_worktree, remove_empty_dirs, stage_pointers
from dvk.commands.placed import Placed
from dvk.commands.removal_plan import RemovalPlanner, Removed, Target
from dvk.commands.repo import Repo
from dvk.commands.tracked import folder_pointer, join_path, not_here
from dvk.errors import Busy, DataMissing, DvkError, FormatError, NotFound, StorageError, UsageError
from dvk.events import Note, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.listing import Entries
from dvk.store.names import show
from dvk.store.pagewriter import edit_listing
from dvk.store.writer import Writer
from dvk.workspace.materialize import WorkTree
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import edit
from dvk.workspace.statcache import forget

_RETRIES = 5


class RemoveResult(Struct):
    """What a removal did, or would do when it was only tried."""

    paths: list[Removed] = field(default_factory=list)
    cached: bool = False
    staged: int = 0  #: pointers whose change was put into the Git index
    not_staged: str = ""  #: why that did not happen although the pointers are changed
    failures: list[DvkError] = field(default_factory=list)  #: data that could not be deleted; its pointer stays
    dry_run: bool = False


def remove(
    repo: Repo,
    paths: Sequence[bytes | str],
    *,
    cached: bool = False,
    force: bool = False,
    recursive: bool = False,
    dry_run: bool = False,
    stage: bool = True,
    on_event: OnEvent = ignore,
) -> RemoveResult:
    """Stop tracking `paths` and delete their data.

    Args:
        cached: leave the data on disk.
        force: delete data that could not be brought back, too.
        recursive: a folder that is not tracked itself stands for all tracked paths in it.

    Raises:
        UsageError: no path is given.
        NotFound: a path is not tracked. Refused: data would be lost. Nothing was changed in either case.
        Busy: another process keeps changing the same pointer.
    """
    if not paths:
        raise UsageError("nothing to remove", hint="name the files or folders to stop tracking")
    planner = RemovalPlanner(repo, cached=cached, force=force, on_event=on_event)
    out = RemoveResult(cached=cached, dry_run=dry_run)
    with repo.writing():
        targets = planner.targets(paths, recursive=recursive)
        planner.judge_all(targets)
        if dry_run:
            out.paths = [removed for target in targets for removed in target.removed]
        else:
            _Remove(repo, out, on_event).run(targets, stage=stage)
    return out


class _Remove:
    def __init__(self, repo: Repo, out: RemoveResult, on_event: OnEvent) -> None:
        self.repo, self.ws, self.store, self.out, self.on_event = repo, repo.workspace, repo.store, out, on_event

    def run(self, targets: list[Target], *, stage: bool) -> None:
        """Remove one after the other what was judged."""
        whole, gone = [], []
        for target in targets:
            edited = self._edit(target, target.pointer) if target.parts else None
            failed = self._delete(target)
            if failed:
                self.out.failures += failed
                continue
            self.out.paths += target.removed
            if edited is not None:
                self._write_edited(target, edited)
            else:
                whole.append(target)
            gone.append(target)
        with self.ws.lock():
            for target in whole:
                self._check_unchanged(target)
            for target in whole:
                self.ws.remove_pointer(target.path)
            if stage:
                self.out.staged, self.out.not_staged = stage_pointers(self.repo, [t.path for t in gone])
            shown = [t.path for t in whole if not in_other_worktree(self.repo, t.path)]
            news = self.ws.hide(remove=shown)
        self._forget([t.path for t in whole])
        self._say_what_stays(whole, seen_by_git=news)

    def _delete(self, target: Target) -> list[DvkError]:
        failed: list[DvkError] = []
        for part, plan in target.plans:
            if plan is None:
                continue
            where = join_path(target.path, part)
            with WorkTree(self.repo.root_fd, where, plan) as tree:
                failed += tree.delete()
            if not failed:
                try:
                    remove_empty_dirs(self.repo.root_fd, where, top=target.path if part else where)
                except StorageError as error:
                    failed.append(error)
        return failed

    def _edit(self, target: Target, pointer: Pointer | None) -> tuple[Pointer, Pointer]:
        """The pointer as it is, and the pointer of the folder without the parts; its pages are durable."""
        assert pointer is not None
        with Writer(self.store) as writer:
            try:
                root = edit_listing(
                    PageId(pointer.id),
                    self.store.load_page,
                    writer.add_page,
                    put=Entries.empty(),
                    remove=target.parts,
                )
            except DataMissing as error:
                raise not_here(target.path, error) from error
            writer.flush()
        new = folder_pointer(root, pointer)
        return pointer, new

    def _write_edited(self, target: Target, edited: tuple[Pointer, Pointer]) -> None:
        """Write the folder's pointer, starting over from what another process made of it meanwhile."""
        old, new = edited
        for _ in range(_RETRIES):
            with self.ws.lock():
                now = self.ws.read_pointer(target.path)
                if now == old:
                    self.ws.write_pointer(target.path, new)
                    # A file that stays on disk must not be taken for one that dvk put there.
                    Placed(self.repo.state).update({target.path: new})
                    return
            old, new = self._edit(target, now)
        raise _busy(target.path)

    def _check_unchanged(self, target: Target) -> None:
        try:
            now = self.ws.read_pointer(target.path)
        except (NotFound, FormatError):
            return  # gone by itself, or the broken one that is to be removed
        if now != target.pointer:
            raise _busy(target.path)

    def _forget(self, paths: list[bytes]) -> None:
        if not paths:
            return
        with edit(self.repo.state) as selection:
            for path in paths:
                selection.remove(path)
        for path in paths:
            forget(self.repo.state, path)
        Placed(self.repo.state).update(dict.fromkeys(paths))

    def _say_what_stays(self, whole: list[Target], *, seen_by_git: bool) -> None:
        for target in whole:
            kept = sum(r.kept for r in target.removed)
            if not kept or self.ws.git is None:
                continue
            name = show(target.path)
            what = "stays on disk" if self.out.cached else f"keeps {kept:,} files that were never added"
            if seen_by_git:
                self.on_event(
                    Note(
                        f"{what}, and Git sees it now: `git add` would take it in",
                        subject=name,
                        hint=f"list it in .gitignore or move it away; `dvk add {name}` tracks it again",
                    )
                )
            else:
                self.on_event(Note(what, subject=name))
        for removed in self.out.paths:
            if self.out.cached and removed.inside and removed.kept:
                self.on_event(
                    Note(
                        f"stays on disk, where the next `dvk add {show(removed.inside)}` takes it in again",
                        subject=show(removed.path),
                        hint="move it out of the folder, or list it in .dvkignore",
                    )
                )


def _busy(path: bytes) -> Busy:
    return Busy("another process keeps changing this pointer", subject=show(path), hint="run the command again")
