"""`dvk mv`: a tracked path gets another name, or entries get other names inside one tracked folder. Nothing is read.

    dvk mv data/train.csv data/train-2024.csv      data, pointer, ignore rule and what the worktree remembers
    dvk mv images/a.jpg images/b.jpg               a new version of images, and the file on disk
    dvk mv a.csv b.csv archive                     into a folder that exists

Never overwrites, and works as well when the data is not here. Order for a tracked path, so that data is hidden from
Git and spoken for by a pointer at every moment, and the same command finishes what a kill left:

1. ignore rule of the new place;  2. selection of the new place;  3. pointer at the new place, equal to the old one;
4. data, by one rename that fails where something is;  5. pointer at the old place removed;  6. both staged in one
step;  7. ignore rule, selection and caches of the old place forgotten.

Inside a folder: new pages, selection, data, pointer, index. There a kill after the data moved leaves what a plain `mv`
leaves, and both this command and `dvk add` take it from there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field

from dvk.backend.disk import sync_fd
from dvk.commands.move_plan import Moved, Step, plan_move, renamed
from dvk.commands.pathwork import in_other_worktree, remove_empty_dirs, stage_pointers
from dvk.commands.placed import Placed
from dvk.commands.repo import Repo
from dvk.commands.tracked import Look, folder_pointer, kind_on_disk, look, not_here
from dvk.errors import DataMissing, DvkError, Refused
from dvk.events import OnEvent, ignore
from dvk.ids import PageId
from dvk.store.names import show
from dvk.store.pages import read_entries
from dvk.store.pagewriter import edit_listing
from dvk.store.writer import Writer
from dvk.workspace.handles import lstat_in, make_dirs, open_dir, os_error
from dvk.workspace.host import rename_new
from dvk.workspace.pointer import Pointer
from dvk.workspace.scan import scan_file
from dvk.workspace.selection import Selected, edit
from dvk.workspace.statcache import Clock, StatCache, forget, read_clock

_CALM_NS = 2_000_000_000  # older than the coarsest clock of a filesystem: a later write changes the time


class MoveResult(Struct):
    """What a move did, or would do when it was only tried."""

    paths: list[Moved] = field(default_factory=list)
    staged: int = 0  #: pointers whose change was put into the Git index
    not_staged: str = ""  #: why that did not happen although the pointers are changed
    dry_run: bool = False


def move(
    repo: Repo,
    sources: Sequence[bytes | str],
    destination: bytes | str,
    *,
    dry_run: bool = False,
    stage: bool = True,
    on_event: OnEvent = ignore,
) -> MoveResult:
    """Give `sources` the name `destination`, or move them into it if it is a folder.

    Raises:
        NotFound: a source is not tracked, or the folder to move into does not exist.
        Refused: something has the new name already, or the move would cross the border of a tracked folder.
        UsageError: the paths make no sense together. In all these cases nothing was changed.
        StorageError: the filesystem refused a rename; paths before it in `sources` are moved.
    """
    steps = plan_move(repo, sources, destination, on_event=on_event)
    out = MoveResult([s.moved for s in steps], dry_run=dry_run)
    if dry_run:
        return out
    run = _Move(repo, steps)
    with repo.writing(), repo.workspace.lock():
        done: list[Step] = []
        try:
            for step in steps:
                run.carry_out(step)
                done.append(step)
        finally:
            changed = sorted({path for s in done for path in s.pointers})
            if stage and changed:
                out.staged, out.not_staged = stage_pointers(repo, changed)
            run.forget_old(done)
    return out


class _Move:
    def __init__(self, repo: Repo, steps: Sequence[Step]) -> None:
        self.repo, self.ws, self.store = repo, repo.workspace, repo.store
        self.rules = repo.workspace.ignore_rules()
        #: folders as they are before the next step; several of one run may be in the same folder
        self._folders = {s.moved.inside: s.pointer for s in steps if s.moved.inside}

    def carry_out(self, step: Step) -> None:
        """One rename. The caller holds the lock.

        Raises:
            Refused: a pointer is not what it was when the move was planned.
            StorageError: the filesystem refuses; what was begun is taken back.
        """
        if step.pointer is None:
            return
        moved, folder = step.moved, step.moved.inside
        expected = self._folders[folder] if folder else step.pointer
        now = self.ws.read_pointer(folder or moved.source)
        if now != expected:
            raise Refused(
                "another process changed its pointer just now",
                subject=show(folder or moved.source),
                hint="run the command again",
            )
        if folder:
            self._inside(moved, now)
        else:
            self._whole(moved, now, resumed=step.resumed)

    # ------------------------------------------------------------ a tracked path

    def _whole(self, moved: Moved, pointer: Pointer, *, resumed: bool) -> None:
        source, target = moved.source, moved.destination
        clock = self._clock()
        seen = look(self.repo.root_fd, source, self.repo.state, self.rules)
        self.ws.hide(add=[target])
        with edit(self.repo.state) as selection:
            if (selected := selection.get(source)) is not None:
                selection.folders[target] = selected
        self.ws.write_pointer(target, pointer)
        if seen.kind:
            try:
                self._rename(source, target)
            except DvkError:
                # With both pointers the same command goes on from a rename that was done and is not durable yet.
                if not resumed and kind_on_disk(self.repo.root_fd, source):
                    self.ws.remove_pointer(target)
                raise
            self._keep_cache(seen, clock, target)
        placed = Placed(self.repo.state)
        placed.update({target: placed.read().get(source)})
        self.ws.remove_pointer(source)

    def _clock(self) -> Clock | None:
        try:
            return read_clock(self.repo.state)
        except OSError:
            return None

    def _keep_cache(self, seen: Look, clock: Clock | None, target: bytes) -> None:
        """Let the stat cache follow. A rename changes the ctime of what is renamed and of nothing below it."""
        if seen.kind == "dir":
            cache = StatCache.load(self.repo.state, seen.path)
            if cache is not None:
                cache.save(self.repo.state, target)
            return
        if clock is None or not seen.known.all():
            return
        now = scan_file(self.repo.root_fd, target)
        before, after = seen.scan.stats.row(0), now.stats.row(0)
        # Size, mtime and inode as when the cache knew the content, and the mtime so old that a write since then shows.
        same = before[:2] == after[:2] and before[3] == after[3] and after[1] < clock.now_ns - _CALM_NS
        StatCache.of(now, seen.ids, clock=clock, settled=np.array([same]), root_id=seen.ids[0].tobytes()).save(
            self.repo.state, target
        )

    def forget_old(self, steps: Sequence[Step]) -> None:
        """Drop what is remembered of the old names of tracked paths."""
        old = [s.moved.source for s in steps if not s.moved.inside]
        if not old:
            return
        self.ws.hide(remove=[path for path in old if not in_other_worktree(self.repo, path)])
        with edit(self.repo.state) as selection:
            for path in old:
                selection.remove(path)
        for path in old:
            forget(self.repo.state, path)
        Placed(self.repo.state).update(dict.fromkeys(old))

    # ------------------------------------------------------------ inside a folder

    def _inside(self, moved: Moved, pointer: Pointer) -> None:
        folder = moved.inside
        source, target = moved.source[len(folder) + 1 :], moved.destination[len(folder) + 1 :]
        root_id = PageId(pointer.id)
        try:
            entries = read_entries(root_id, self.store.load_page, under=source)
            with Writer(self.store) as writer:
                root = edit_listing(
                    root_id,
                    self.store.load_page,
                    writer.add_page,
                    put=renamed(entries, source, target),
                    remove=[source],
                )
                writer.flush()
        except DataMissing as error:
            raise not_here(folder, error) from error
        self._select(folder, source, target)
        if kind_on_disk(self.repo.root_fd, moved.source):
            self._rename(moved.source, moved.destination)
        remove_empty_dirs(self.repo.root_fd, moved.source, top=folder)
        new = folder_pointer(root, pointer)
        self.ws.write_pointer(folder, new)
        Placed(self.repo.state).update({folder: new})
        self._folders[folder] = new

    def _select(self, folder: bytes, source: bytes, target: bytes) -> None:
        """What was asked for under the old name is asked for under the new one."""
        with edit(self.repo.state) as selection:
            selected = selection.get(folder)
            if selected is None or selected.prefixes is None:
                return
            kept = [p for p in selected.prefixes if p != source and not p.startswith(source + b"/")]
            moved = [target + p[len(source) :] for p in selected.prefixes if p == source or p.startswith(source + b"/")]
            if not moved and selected.covers_one(source):
                moved = [target]
            after = Selected(tuple(kept))
            for prefix in moved:
                after = after.plus(prefix)
            selection.folders[folder] = after

    # ------------------------------------------------------------ the rename

    def _rename(self, source: bytes, target: bytes) -> None:
        """Rename by handles, never over something, durably.

        Raises:
            Refused: something has the name, or it is on another filesystem. StorageError: the system refuses.
        """
        from_fd = open_dir(self.repo.root_fd, source.rpartition(b"/")[0])
        try:
            to_fd = make_dirs(self.repo.root_fd, target.rpartition(b"/")[0])
            try:
                self._rename_in(from_fd, source, to_fd, target)
                sync_fd(to_fd)
                sync_fd(from_fd)
            except OSError as error:
                raise os_error(error, source, "renamed") from error
            finally:
                os.close(to_fd)
        finally:
            os.close(from_fd)

    def _rename_in(self, from_fd: int, source: bytes, to_fd: int, target: bytes) -> None:
        old, new = source.rpartition(b"/")[2], target.rpartition(b"/")[2]
        taken = Refused("something has this name already", subject=show(target), hint="move that away first")
        try:
            if rename_new(old, from_fd, new, to_fd):
                return
        except FileExistsError as error:
            raise taken from error
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise Refused(
                "lies on another filesystem than where it would go, so it cannot be renamed",
                subject=show(source),
                hint="copy it there, `dvk add` the copy, then `dvk rm` this one",
            ) from error
        # A filesystem that cannot rename without replacing: look first, which is as good as it gets there.
        if lstat_in(to_fd, new) is not None:
            raise taken
        os.rename(old, new, src_dir_fd=from_fd, dst_dir_fd=to_fd)
