"""Writing verified content into the work tree, so that a file is either its old self or its new one.

A checkout may be killed, run out of space, meet an editor that saves at the same moment, or a repository
that planted links. So content goes to a temporary file beside its target, by directory handle; it gets
its name only after its hash was verified, and only if what stands there is still what the plan saw.

    with WorkTree(root_fd, b"data/images", plan) as tree:
        tree.check_space()
        problems = tree.delete() + tree.make_dirs()
        failed = restore(content, plan.ids, plan.sizes, tree, names=tree.shown())
        problems += tree.link() + tree.set_modes()
        entries = tree.entries()                     # for the stat cache

Each file appears whole; a checkout as a whole converges when it is run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.disk import write_all
from dvk.errors import ChangedWhileRead, DvkError, NotFound, Refused, StorageError, StorageFull
from dvk.store.listing import Kind
from dvk.store.names import I64, U8, show, windows
from dvk.workspace.handles import STAYS, DirHandles, kind_name, lstat_in, open_regular, os_error
from dvk.workspace.host import rename_new
from dvk.workspace.plan import CheckoutPlan
from dvk.workspace.probe import TEMP_FLAGS, TempNames, check_space
from dvk.workspace.stats import Scan, Stats, signature

_MILLISECOND_NS = 1_000_000
_COPY_BYTES = 1 << 20
_SECOND_NS = 1_000_000_000
_BACK_NS = 20 * _MILLISECOND_NS  # more than the slowest kernel tick, as which a later write is stamped


class _Writing(Struct, frozen=True):
    """A file between `create` and `finish`; its directory's handle is held."""

    path: bytes
    parent: bytes
    name: bytes
    dir_fd: int
    temp: bytes


class Tally(Struct, frozen=True):
    """What a checkout did, in files and links."""

    written: int
    written_bytes: int
    deleted: int


class Written(Struct, frozen=True):
    """The entries that are in step after a checkout, for `StatCache.of`.

    Attributes:
        scan: names, kinds and stats of these entries, as a scan would have seen them.
        ids: uint8[n, 32].
        settled: bool[n], rows that any later write must change (see `WorkTree.finish`).
    """

    scan: Scan
    ids: U8
    settled: npt.NDArray[np.bool_]


class WorkTree:
    """Carries out a `CheckoutPlan`, and is the `Sink` of `restore`: file k is `plan.write[k]`.

    `create`, `finish` and `discard` may be called from several threads; the rest from one, in the order
    delete, make_dirs, restore, link, set_modes. What cannot be done is returned, one error a path, and
    the rest is done; running out of space raises.
    """

    def __init__(self, root_fd: int, path: bytes, plan: CheckoutPlan) -> None:
        self.plan = plan
        self._path = path
        self._dirs = DirHandles(root_fd, limit=128)
        umask = _current_umask()
        self._file_mode, self._exec_mode = 0o666 & ~umask, 0o777 & ~umask
        self._temp_names = TempNames()
        self._writing: dict[int, _Writing] = {}
        n = len(plan.write)
        self._rows = np.zeros((n, 4), np.int64)
        self._done = np.zeros(n, np.bool_)
        self._settled = np.zeros(n, np.bool_)
        self._deleted = 0
        self._link_rows: dict[int, tuple[int, int, int, int]] = {}
        self._mode_rows: dict[int, tuple[int, int, int, int]] = {}

    def __enter__(self) -> WorkTree:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory handles, and remove what was begun and neither finished nor discarded."""
        for job in self._writing.values():
            with contextlib.suppress(OSError):
                os.unlink(job.temp, dir_fd=job.dir_fd)
        self._writing.clear()
        self._dirs.close()

    def shown(self) -> Sequence[str]:
        """The names of the files to be written, for messages."""
        return _Shown(self)

    def check_space(self) -> None:
        """Pass if there is room for the whole checkout.

        Raises:
            StorageFull: before anything was touched.
        """
        directory = self._path
        while True:
            try:
                fd = self._dirs.acquire(directory)
                break
            except (NotFound, Refused):  # not there yet, or a file: its directory will do
                directory = directory.rpartition(b"/")[0]
        try:
            check_space(fd, self.plan.needed_bytes)
        finally:
            self._dirs.release(directory)

    # ------------------------------------------------------------ files

    def create(self, index: int) -> int:
        """A descriptor, open for reading and writing, of a new file beside the target of file `index`."""
        path = self.path_of(index)
        parent, _, name = path.rpartition(b"/")
        dir_fd = self._dirs.acquire(parent, make=True)
        temp = self._temp_names.next()
        # Known before it exists: Ctrl-C may come between any two steps, and then `close` removes it.
        self._writing[index] = _Writing(path, parent, name, dir_fd, temp)
        try:
            fd = os.open(temp, TEMP_FLAGS, 0o600, dir_fd=dir_fd)
        except OSError as error:
            del self._writing[index]
            self._dirs.release(parent)
            raise os_error(error, path, "written") from error
        return fd

    def open_old(self, index: int) -> int | None:
        """A descriptor, for reading, of what file `index` is to replace; None where that is not what the plan saw."""
        expected = self.plan.expected.item(index)
        if expected < 0:
            return None
        try:
            fd = open_regular(self._dirs, self.path_of(index))
        except DvkError:
            return None  # something else stands there now, which `finish` will name
        if signature(os.fstat(fd)) == self.plan.scan.stats.row(expected):
            return fd
        os.close(fd)
        return None

    def finish(self, index: int, fd: int) -> None:
        """Give the verified content its name. On any error the temporary file is gone, the target untouched.

        The file's mtime is set a moment into the past. Any later write then shows in it, even within the
        same tick of the clock, and the stat cache may trust the file at once.

        Raises:
            ChangedWhileRead: what stands there is not what the plan saw; it stays as it is.
            StorageFull, StorageError: the system refused.
        """
        job = self._writing[index]
        try:
            at = self.plan.write.item(index)
            os.fchmod(fd, self._mode(self.plan.target.kinds.item(at)))
            mtime_ns = _moment_ago()
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            self._put_in_place(job.dir_fd, job.temp, job.name, job.path, self.plan.expected.item(index))
            row = signature(os.fstat(fd))
            self._rows[index] = row
            # Where the filesystem rounds the time, or somebody wrote already, the row is as any other.
            self._settled[index] = row[1] == mtime_ns and row[0] == self.plan.target.sizes.item(at)
            self._done[index] = True
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(job.temp, dir_fd=job.dir_fd)
            if isinstance(error, OSError):
                raise os_error(error, job.path, "written") from error
            raise
        finally:
            os.close(fd)
            self._dirs.release(job.parent)
            del self._writing[index]

    def discard(self, index: int, fd: int) -> None:
        """Close and remove a file that is not to be; never raises for a file that is gone."""
        os.close(fd)
        job = self._writing.pop(index, None)
        if job is None:
            return
        with contextlib.suppress(OSError):  # removed under our hands: then nothing is left behind either
            os.unlink(job.temp, dir_fd=job.dir_fd)
        self._dirs.release(job.parent)

    def _put_in_place(self, dir_fd: int, temp: bytes, name: bytes, path: bytes, expected: int) -> None:
        """Rename `temp` to `name` if there stands what the plan saw: row `expected` of the scan, or nothing."""
        if expected < 0:
            try:
                if rename_new(temp, dir_fd, name, dir_fd):
                    return
            except FileExistsError as error:
                raise self._appeared(dir_fd, name, path) from error
        now = lstat_in(dir_fd, name)
        if expected < 0 and now is not None:
            raise self._appeared(dir_fd, name, path)
        if expected >= 0 and (now is None or signature(now) != self.plan.scan.stats.row(expected)):
            raise ChangedWhileRead(
                "was changed while the checkout was under way: left as it is",
                subject=show(path),
                hint="look at it, then run the same command again",
            )
        os.rename(temp, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def _appeared(self, dir_fd: int, name: bytes, path: bytes) -> DvkError:
        now = lstat_in(dir_fd, name)
        what = kind_name(now.st_mode) if now is not None else "something"
        return ChangedWhileRead(
            f"cannot be written: {what} that the plan did not see is there",
            subject=show(path),
            hint="it may be ignored or have appeared just now: move it away and run the same command again",
        )

    # ------------------------------------------------------------ everything else

    def delete(self) -> list[DvkError]:
        """Remove what the plan lists, if it is still what the plan saw, and directories that become empty.

        The folder itself stays; see `remove_empty_dirs`.
        """
        scan = self.plan.scan
        problems: list[DvkError] = []
        parents: set[bytes] = set()
        rows = self.plan.deletes
        for i, name in zip(rows.tolist(), scan.names.take(rows), strict=True):
            path = self._full(name)
            parent, _, last = path.rpartition(b"/")
            try:
                dir_fd = self._dirs.acquire(parent)
            except NotFound:
                continue
            except DvkError as error:
                problems.append(error)
                continue
            try:
                if scan.kinds[i] == Kind.EMPTYDIR:
                    os.rmdir(last, dir_fd=dir_fd)
                else:
                    now = lstat_in(dir_fd, last)
                    if now is None:
                        continue
                    if signature(now) != scan.stats.row(i):
                        raise ChangedWhileRead(
                            "was changed while the checkout was under way: not deleted", subject=show(path)
                        )
                    os.unlink(last, dir_fd=dir_fd)
                self._deleted += 1
                parents.add(parent)
            except FileNotFoundError:
                continue
            except OSError as error:
                if scan.kinds[i] != Kind.EMPTYDIR or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    problems.append(os_error(error, path, "deleted"))
            except DvkError as error:
                problems.append(error)
            finally:
                self._dirs.release(parent)
        return problems + self._remove_empty(parents)

    def _remove_empty(self, directories: Iterable[bytes]) -> list[DvkError]:
        """Remove those of `directories`, and then of their parents, that are empty, below the folder."""
        problems: list[DvkError] = []
        left = set(directories)
        while left:
            directory = max(left, key=lambda d: d.count(b"/"))
            left.discard(directory)
            if len(directory) <= len(self._path):
                continue
            parent, _, name = directory.rpartition(b"/")
            self._dirs.forget(directory)
            try:
                dir_fd = self._dirs.acquire(parent)
            except StorageError as error:
                problems.append(error)
                continue
            except DvkError:
                continue  # gone, or replaced by something that is not ours
            try:
                os.rmdir(name, dir_fd=dir_fd)
                left.add(parent)
            except OSError as error:  # not empty is the usual case
                if error.errno not in STAYS:
                    problems.append(os_error(error, directory, "deleted"))
            finally:
                self._dirs.release(parent)
        return problems

    def make_dirs(self) -> list[DvkError]:
        """Make the empty directories of the plan."""
        problems: list[DvkError] = []
        for name in self.plan.target.names.take(self.plan.mkdirs):
            path = self._full(name)
            try:
                self._dirs.acquire(path, make=True)
            except StorageFull:
                raise
            except DvkError as error:
                problems.append(error)
            else:
                self._dirs.release(path)
        return problems

    def link(self) -> list[DvkError]:
        """Make the links of the plan, each in one step in place of what stood there."""
        plan = self.plan
        problems: list[DvkError] = []
        numbers = np.cumsum(plan.target.kinds == Kind.LINK) - 1
        for i, expected in zip(plan.links.tolist(), plan.links_expected.tolist(), strict=True):
            path = self._full(plan.target.names[i])
            parent, _, name = path.rpartition(b"/")
            temp = self._temp_names.next()
            try:
                dir_fd = self._dirs.acquire(parent, make=True)
            except StorageFull:
                raise
            except DvkError as error:
                problems.append(error)
                continue
            try:
                try:
                    os.symlink(plan.target.targets[int(numbers[i])], temp, dir_fd=dir_fd)
                    self._put_in_place(dir_fd, temp, name, path, expected)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temp, dir_fd=dir_fd)
                    raise
                now = lstat_in(dir_fd, name)
                if now is not None:
                    self._link_rows[i] = signature(now)
            except OSError as error:
                failure = os_error(error, path, "written")
                if isinstance(failure, StorageFull):
                    raise failure from error
                problems.append(failure)
            except DvkError as error:
                problems.append(error)
            finally:
                self._dirs.release(parent)
        return problems

    def set_modes(self) -> list[DvkError]:
        """Give the executable bit to files that differ in it alone, or take it."""
        plan = self.plan
        problems: list[DvkError] = []
        for i, expected in zip(plan.modes.tolist(), plan.modes_expected.tolist(), strict=True):
            path = self._full(plan.target.names[i])
            try:
                fd = open_regular(self._dirs, path)
            except DvkError as error:
                problems.append(error)
                continue
            try:
                if signature(os.fstat(fd)) != plan.scan.stats.row(expected):
                    raise ChangedWhileRead(
                        "was changed while the checkout was under way: its mode stays", subject=show(path)
                    )
                mode = self._mode(int(plan.target.kinds[i]))
                if os.fstat(fd).st_nlink > 1:  # the file has another name, whose owner did not ask for this
                    self._mode_rows[i] = self._copy_with_mode(fd, path, mode, expected)
                else:
                    os.fchmod(fd, mode)
                    self._mode_rows[i] = signature(os.fstat(fd))
            except OSError as error:
                problems.append(os_error(error, path, "changed"))
            except DvkError as error:
                problems.append(error)
            finally:
                os.close(fd)
        return problems

    def _copy_with_mode(self, fd: int, path: bytes, mode: int, expected: int) -> tuple[int, int, int, int]:
        """Put a copy of the open file in its place, with another mode; the signature of the copy.

        Raises:
            ChangedWhileRead: the file is another one by now; it stays.
        """
        parent, _, name = path.rpartition(b"/")
        dir_fd = self._dirs.acquire(parent)
        temp = self._temp_names.next()
        try:
            out = os.open(temp, TEMP_FLAGS, 0o600, dir_fd=dir_fd)
            try:
                at = 0
                while part := os.pread(fd, _COPY_BYTES, at):
                    write_all(out, [part])
                    at += len(part)
                os.fchmod(out, mode)
                info = os.fstat(fd)
                os.utime(out, ns=(info.st_atime_ns, info.st_mtime_ns))
                self._put_in_place(dir_fd, temp, name, path, expected)
                return signature(os.fstat(out))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temp, dir_fd=dir_fd)
                raise
            finally:
                os.close(out)
        finally:
            self._dirs.release(parent)

    def tally(self) -> Tally:
        """What was done so far; a file that could not be written does not count."""
        written = int(np.count_nonzero(self._done)) + len(self._link_rows)
        return Tally(written, int(self.plan.sizes[self._done].sum()), self._deleted)

    def entries(self) -> Written:
        """The entries that are in step now: those that were, and those that this made so."""
        plan, target = self.plan, self.plan.target
        m = len(target)
        have, settled = plan.stay.copy(), np.zeros(m, np.bool_)
        done = plan.write[self._done]
        have[done], settled[done] = True, self._settled[self._done]
        other = {**self._link_rows, **self._mode_rows}
        have[list(other)] = True
        have[plan.mkdirs] = True
        index = np.flatnonzero(have)

        def column(k: int, before: I64) -> I64:
            out = np.zeros(m, np.int64)
            for run in windows(m):
                stay = plan.stay[run]
                out[run][stay] = before[plan.stay_at[run][stay]]
            out[done] = self._rows[self._done, k]
            for i, row in other.items():
                out[i] = row[k]
            return out if len(index) == m else out[index]

        before = plan.scan.stats
        stats = Stats(
            column(0, before.sizes),
            column(1, before.mtime_ns),
            column(2, before.ctime_ns),
            column(3, before.inodes),
            before.device or self._device(),
        )
        # Usually all is there, and then the columns of the target are not made a second time.
        there = target if len(index) == m else target.take(index)
        scan = Scan(there.names, there.kinds, stats, there.targets)
        return Written(scan, there.ids, settled if there is target else settled[index])

    def _device(self) -> int:
        try:
            fd = self._dirs.acquire(self._path.rpartition(b"/")[0])
        except DvkError:
            return 0
        try:
            return os.fstat(fd).st_dev
        finally:
            self._dirs.release(self._path.rpartition(b"/")[0])

    def _mode(self, kind: int) -> int:
        return self._exec_mode if kind == Kind.EXEC else self._file_mode

    def path_of(self, index: int) -> bytes:
        """The path of file `index`, from the root."""
        return self._full(self.plan.target.names[self.plan.write.item(index)])

    def _full(self, name: bytes) -> bytes:
        return self._path + b"/" + name if self._path and name else self._path or name


class _Shown(Sequence[str]):
    """The names of files to be written, made when asked for: few of a million are ever shown."""

    def __init__(self, tree: WorkTree) -> None:
        self._tree = tree

    def __len__(self) -> int:
        return len(self._tree.plan.write)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        return show(self._tree.path_of(i))


def _moment_ago() -> int:
    """A time in the past that no filesystem can take a later write for: milliseconds, never a whole second."""
    mtime_ns = (time.time_ns() - _BACK_NS) // _MILLISECOND_NS * _MILLISECOND_NS
    return mtime_ns if mtime_ns % _SECOND_NS else mtime_ns - _MILLISECOND_NS


def _current_umask() -> int:
    # There is no call that only asks. Between the two calls a file of another thread could get too few
    # bits taken away; 077 takes too many.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
