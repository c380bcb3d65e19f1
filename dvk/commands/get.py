"""`dvk cat` and `dvk get`: the bytes of any version, without a checkout and without touching the workspace.

A file is hashed before it gets its final name, and inside OUT no link is followed. A folder that was cut off in the
middle holds whole files only; the same command with `force` goes on where it stopped, since what is right stays.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np
from msgspec import Struct, field

from dvk.backend.contract import KeyMissing
from dvk.commands.reader import Reader, from_here
from dvk.commands.repo import Repo
from dvk.commands.spec import Spec, Target, find_target
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, Refused, StorageError
from dvk.events import OnEvent, Used, ignore
from dvk.ids import ID_BYTES, FileId
from dvk.store.content import ContentSource
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8, show
from dvk.store.restore import SomeFiles, restore
from dvk.store.stream import iter_file
from dvk.workspace.handles import kind_name, lstat_in
from dvk.workspace.hashing import hash_files
from dvk.workspace.materialize import WorkTree
from dvk.workspace.plan import CheckoutPlan, Mask, plan_checkout
from dvk.workspace.probe import find_folded
from dvk.workspace.scan import scan_file, scan_folder
from dvk.workspace.source import SourceFiles
from dvk.workspace.stats import Scan, empty_scan


class Content(Struct, frozen=True):
    """What `cat` wrote."""

    path: bytes  #: from the top
    id: bytes
    size: int
    remote: str = ""  #: where it was read from; empty: the local store


class Got(Struct):
    """What `get` did."""

    path: bytes  #: from the top
    out: bytes  #: absolute path of what was written
    kind: str  #: "file" or "dir"
    files: int = 0  #: written
    written_bytes: int = 0
    unchanged: int = 0  #: that were there already
    remote: str = ""  #: where data was read from that is not here
    failures: list[DvkError] = field(default_factory=list)


def cat(
    repo: Repo, spec: Spec | str | bytes, out: BinaryIO, *, remote: str | None = None, on_event: OnEvent = ignore
) -> Content:
    """Write the content of a file at a revision to `out`: every chunk is proven first, the whole at the end.

    Raises:
        Refused: it is a folder, or a link in one. DataMissing: it is neither here nor on the remote.
        Corrupt: what was written is the beginning only.
    """
    target = find_target(repo, spec)
    with Reader(repo, remote=remote, on_event=on_event) as reader:
        entries = from_here(reader.entries(target), target.inner)
        _expect_file(target, entries)
        for source, which in reader.sources(target, entries):
            if len(which):
                _stream(reader, target, source, entries, out)
        out.flush()
        on_event(used(repo, target))
        return Content(target.full, entries.ids[0].tobytes(), int(entries.sizes[0]), reader.remote_name)


def used(repo: Repo, target: Target) -> Used:
    """That a target was handed out."""
    p = target.pointer
    parts = (target.inner,) if target.inner else ()
    return Used(target.path, p.kind, p.id, p.size, p.files, parts, target.commit, repo.elsewhere)


def _stream(reader: Reader, target: Target, source: ContentSource, entries: Entries, out: BinaryIO) -> None:
    """Write a file. Where the remote turns out not to have what its locator says, the rest comes by a search."""
    name, size = FileId(entries.ids[0].tobytes()), int(entries.sizes[0])
    written = 0
    try:
        for piece in iter_file(source, name, size, subject=target.shown):
            out.write(piece)
            written += len(piece)
    except (KeyMissing, FormatError) as error:
        again = reader.look_again(target, source, error)
        if again is None:
            raise
        done = 0
        for piece in iter_file(again, name, size, subject=target.shown):
            out.write(piece[max(0, written - done) :])
            done += len(piece)


def _expect_file(target: Target, entries: Entries) -> None:
    if len(entries) != 1 or entries.names[0] or entries.kinds[0] == Kind.EMPTYDIR:
        raise Refused(
            "is a folder",
            subject=target.shown,
            hint=f"`dvk ls {target.shown}` lists it, `dvk get {target.shown} -o OUT` takes it out",
        )
    if entries.kinds[0] == Kind.LINK:
        raise Refused(f"is a link to {show(entries.targets[0])}", subject=target.shown, hint="name what it leads to")


def get(
    repo: Repo,
    spec: Spec | str | bytes,
    out: bytes | str | None = None,
    *,
    force: bool = False,
    remote: str | None = None,
    cwd: bytes | None = None,
    on_event: OnEvent = ignore,
) -> Got:
    """Write a file or folder at a revision to `out`; nothing of the workspace is touched besides.

    Args:
        out: the new file or folder; a file may also name an existing folder to put it in. Without it: the same
            name in the working folder.
        force: replace files that are in the way. Other files in an existing folder stay.
        cwd: the folder that `out` counts from, where that is not the one of `repo`.

    Raises:
        Refused: something is there, or `out` is a link. NotFound: the folder of `out` does not exist.
        StorageFull: there is no room; what was finished is whole.
    """
    target = find_target(repo, spec)
    with Reader(repo, remote=remote, on_event=on_event) as reader:
        entries = from_here(reader.entries(target), target.inner)
        single = len(entries) == 1 and not entries.names[0]
        folder = not single or int(entries.kinds[0]) == Kind.EMPTYDIR
        where = _Place(repo.cwd if cwd is None else cwd, target, out, folder=folder)
        try:
            plan = where.plan(entries, force=force, on_event=on_event)
            got = Got(target.full, where.path, "dir" if folder else "file")
            wanted = plan.target.take(plan.write)
            again = functools.partial(reader.look_again, target)
            # Asked before anything is written: what is nowhere must not leave an empty folder behind.
            sources = list(reader.sources(target, wanted))
            with WorkTree(where.parent_fd, where.name, plan) as tree:
                tree.check_space()
                got.failures += plan.conflicts
                got.failures += tree.delete()
                if folder:
                    where.make_folder()
                got.failures += tree.make_dirs()
                failed, done = _write(sources, wanted, tree, again, on_event)
                got.failures += failed
                got.failures += tree.link()
                got.failures += tree.set_modes()
            got.files, got.written_bytes = done
            got.unchanged = int(np.count_nonzero(plan.stay & plan.target.is_file))
            got.remote = reader.remote_name
        finally:
            where.close()
    if not folder and got.failures:
        raise got.failures[0]
    on_event(used(repo, target))
    return got


def _write(
    sources: Sequence[tuple[ContentSource, I64]], wanted: Entries, tree: WorkTree, again: _Again, on_event: OnEvent
) -> tuple[list[DvkError], tuple[int, int]]:
    """Write the files of a plan; what failed, and how many files and bytes did not."""
    problems: list[DvkError] = []
    names = tree.shown()
    files = size = 0

    def write(source: ContentSource, which: I64) -> list[tuple[int, DvkError]]:
        ids, sizes = wanted.ids[which], wanted.sizes[which]
        shown = [names[i] for i in which.tolist()]
        return restore(source, ids, sizes, SomeFiles(tree, which.tolist()), names=shown, on_event=on_event)

    for source, which in sources:
        failed = write(source, which)
        astray = [i for i, error in failed if isinstance(error, DataMissing | FormatError)]
        other = again(source, next(e for i, e in failed if i == astray[0])) if astray else None
        if other is not None:
            where = np.array(astray, np.int64)
            failed = [(i, e) for i, e in failed if i not in set(astray)]
            failed += [(astray[n], e) for n, e in write(other, which[where])]
        problems += [error for _, error in failed]
        lost = {i for i, _ in failed}
        files += len(which) - len(lost)
        size += sum(n for i, n in enumerate(wanted.sizes[which].tolist()) if i not in lost)
    return problems, (files, size)


#: What another look finds, for those who were led astray by what a source said.
_Again = Callable[[ContentSource, DvkError], ContentSource | None]


class _Place:
    """Where something is written to: a name in an open folder. Links on the way there are the user's own."""

    def __init__(self, cwd: bytes, target: Target, out: bytes | str | None, *, folder: bool) -> None:
        last = target.full.rpartition(b"/")[2]
        given = os.path.join(cwd, os.fsencode(out) if out is not None else last)
        if not folder and os.path.isdir(given):
            given = os.path.join(given, last)
        elif given.endswith(b"/") and not folder:
            raise NotFound("there is no such folder", subject=show(given))
        parent, self.name = os.path.split(given.rstrip(b"/") or b"/")
        if self.name in (b"", b".", b".."):
            parent, self.name = os.path.split(os.path.realpath(given))
        if not self.name:
            raise Refused("cannot be replaced", subject=show(given), hint="name a new file or folder with -o")
        parent = os.path.realpath(parent)
        self.path, self._folder = os.path.join(parent, self.name), folder
        try:
            self.parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(
                "there is no such folder to write into", subject=show(parent), hint="make it first"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot be opened ({error.strerror})", subject=show(parent)) from error

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self.parent_fd)

    def make_folder(self) -> None:
        """Make the folder itself, also when nothing is to be in it."""
        try:
            os.mkdir(self.name, dir_fd=self.parent_fd)
        except FileExistsError:
            return  # what it is, whoever opens it without following links finds out
        except OSError as error:
            raise StorageError(f"cannot be made ({error.strerror})", subject=show(self.path)) from error

    def plan(self, entries: Entries, *, force: bool, on_event: OnEvent) -> CheckoutPlan:
        """What to write, after a look at what is there."""
        scan = self._look(force)
        if self._folder and len(entries) == 1 and not entries.names[0]:
            entries = Entries.empty()  # an empty folder: there is nothing but itself
        known, ids = self._ids(scan, entries, on_event)
        return plan_checkout(
            entries,
            scan,
            known=known,
            ids=ids,
            holds=lambda found, _sizes: np.ones(len(found), np.bool_),
            collisions=find_folded(self.parent_fd, self.name, entries.names) if self._folder else (),
            force=force,
            subject=self.name,
        )

    def _look(self, force: bool) -> Scan:
        found = lstat_in(self.parent_fd, self.name)
        if found is None:
            return empty_scan()
        is_dir = stat.S_ISDIR(found.st_mode)
        if is_dir != self._folder or not (is_dir or stat.S_ISREG(found.st_mode)):
            raise Refused(
                f"{kind_name(found.st_mode)} is in the way",
                subject=show(self.path),
                hint="move it away, or choose another name with -o",
            )
        scan = scan_folder(self.parent_fd, self.name) if is_dir else scan_file(self.parent_fd, self.name)
        if not force and (len(scan) or scan.problems or not is_dir):
            raise Refused(
                "is not empty" if is_dir else "exists already",
                subject=show(self.path),
                hint="--force replaces what is in the way; -o chooses another name",
            )
        return scan

    def _ids(self, scan: Scan, entries: Entries, on_event: OnEvent) -> tuple[Mask, U8]:
        """The ids of what is there already; files that cannot be read stay unknown and are replaced."""
        ids = np.zeros((len(scan), ID_BYTES), np.uint8)
        known = (scan.kinds == Kind.LINK) | (scan.kinds == Kind.EMPTYDIR)
        sizes = set(entries.sizes.tolist())
        index = np.array([i for i in np.flatnonzero(~known).tolist() if scan.stats.sizes[i] in sizes], np.int64)
        if len(index):
            with SourceFiles(self.parent_fd, self.name, scan, index) as source:
                ids[index], problems = hash_files(source, scan.stats.sizes[index], on_event=on_event)
            known[index] = True
            known[index[[i for i, _ in problems]]] = False
        return known, ids
