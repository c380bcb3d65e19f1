"""Reaching files by directory handle, so that no link on the way can lead elsewhere.

A path as a string is walked by the kernel afresh each time, through whatever links stand there at that
moment: a cloned repository with `data -> ~/.ssh` and a checkout of `data/config` is enough. Here a path
below an open root is walked one component at a time, links refused, and files are opened, made and
renamed relative to the handle of their own directory.

    root = os.open(b"/home/me/project", os.O_RDONLY | os.O_DIRECTORY)
    with DirHandles(root) as dirs:
        fd = open_regular(dirs, b"data/images/cat.jpg")

The cost of 50,000 opens in one folder is 50,000 opens: recently used directories stay open.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import OrderedDict
from types import TracebackType

from dvk.errors import DvkError, NotFound, Refused, StorageError, StorageFull
from dvk.store.names import show

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How a file is opened for reading: a link is refused, a FIFO or a device does not block.
REGULAR = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFREG: "a file",
}


def kind_name(mode: int) -> str:
    """What an `st_mode` is, for people: "a FIFO", "a symbolic link"."""
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")


#: Why a directory rightly stays: it is not empty, gone, no directory any more, or something is mounted there.
STAYS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EBUSY)


def os_error(error: OSError, path: bytes, doing: str) -> DvkError:
    """The category of our own for what the system said about `path` while `doing` ("read", "written")."""
    subject = show(path)
    code = error.errno
    if code in (errno.ENOSPC, errno.EDQUOT):
        why = "quota exceeded" if code == errno.EDQUOT else "no space left"
        return StorageFull(
            f"cannot be {doing}: {why}",
            subject=subject,
            hint="free some space and run the same command again",
        )
    if code == errno.ENOENT:
        return NotFound(f"cannot be {doing}: it does not exist", subject=subject)
    if code in (errno.EACCES, errno.EPERM):
        return StorageError(f"cannot be {doing}: permission denied", subject=subject)
    return StorageError(f"cannot be {doing}: {error.strerror or error}", subject=subject)


def _refused_link(path: bytes) -> Refused:
    return Refused(
        "is a symbolic link; dvk does not walk through links",
        subject=show(path),
        hint="replace the link by the directory it points to, or track that directory where it is",
    )


def _open_child(parent_fd: int, name: bytes, path: bytes) -> int:
    """Open the directory `name` of `parent_fd`; `path` is what messages call it."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
            mode = _mode_at(parent_fd, name)
            if stat.S_ISLNK(mode):
                raise _refused_link(path) from error
            raise Refused(f"is {kind_name(mode)} where a directory is needed", subject=show(path)) from error
        raise os_error(error, path, "opened") from error


def _mode_at(parent_fd: int, name: bytes) -> int:
    try:
        return os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
    except OSError:
        return 0  # gone in the meantime: "something unknown"


def open_dir(root_fd: int, path: bytes) -> int:
    """A new handle of the directory `path` below `root_fd` (`b""`: the root itself). The caller closes it.

    Raises:
        Refused: a component is a link or no directory; the component is named.
        NotFound, StorageError: it does not exist or may not be opened.
    """
    return _walk(root_fd, path, make=False)


def make_dirs(root_fd: int, path: bytes) -> int:
    """As `open_dir`, making the directories that are missing (mode 0777 & ~umask)."""
    return _walk(root_fd, path, make=True)


def _walk(root_fd: int, path: bytes, *, make: bool) -> int:
    fd = os.open(b".", _DIRECTORY, dir_fd=root_fd)
    done = 0
    try:
        for part in path.split(b"/") if path else ():
            done += len(part)
            child = _open_or_make(fd, part, path[:done], make=make)
            done += 1
            # In this order: a close that fails has closed all the same, and a second one would hit a stranger's handle.
            fd, above = child, fd
            os.close(above)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_or_make(parent_fd: int, name: bytes, path: bytes, *, make: bool) -> int:
    if name in (b"", b".", b".."):
        raise Refused("is no plain name of a directory", subject=show(path))
    try:
        return _open_child(parent_fd, name, path)
    except NotFound:
        if not make:
            raise
    try:
        os.mkdir(name, 0o777, dir_fd=parent_fd)
    except FileExistsError:
        pass  # somebody else made it just now; what it is, the open below finds out
    except OSError as error:
        raise os_error(error, path, "created") from error
    return _open_child(parent_fd, name, path)


def lstat_in(dir_fd: int, name: bytes) -> os.stat_result | None:
    """The lstat of one name in an open directory; None when there is nothing of that name."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def stat_at(root_fd: int, path: bytes) -> os.stat_result | None:
    """The lstat of `path` below `root_fd`; None when it, or a directory on the way, does not exist.

    Raises:
        Refused: a directory on the way is a link or no directory.
    """
    parent, _, name = path.rpartition(b"/")
    try:
        fd = open_dir(root_fd, parent)
    except NotFound:
        return None
    try:
        return lstat_in(fd, name or b".")
    except OSError as error:
        raise os_error(error, path, "read") from error
    finally:
        os.close(fd)


class DirHandles:
    """Open directories below one root, the recently used ones kept open. Any thread may call.

    `acquire` and `release` come in pairs; between them the handle stays valid. A missing directory is
    opened from its nearest ancestor that is open, so a walk in order opens each directory about once,
    1,000 levels deep as well, with at most `limit` handles plus those in use.
    """

    def __init__(self, root_fd: int, *, limit: int = 64) -> None:
        self._root_fd = os.open(b".", _DIRECTORY, dir_fd=root_fd)
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, list[int]] = OrderedDict()  # path -> [fd, users]

    def __enter__(self) -> DirHandles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every handle, also those in use. A second call does nothing."""
        with self._lock:
            for fd, _ in self._open.values():
                os.close(fd)
            self._open.clear()
            if self._root_fd >= 0:
                os.close(self._root_fd)
                self._root_fd = -1

    def acquire(self, path: bytes, *, make: bool = False) -> int:
        """The handle of directory `path` (`b""`: the root), made first if missing and `make`.

        Raises:
            Refused, NotFound, StorageError: as `open_dir`.
        """
        if not path:
            return self._root_fd
        with self._lock:
            held = self._open.get(path)
            if held is None:
                held = self._descend(path, make)
            else:
                self._open.move_to_end(path)
            held[1] += 1
            return held[0]

    def release(self, path: bytes) -> None:
        """Give back what `acquire(path)` returned."""
        if not path:
            return
        with self._lock:
            held = self._open.get(path)
            if held is not None:
                held[1] -= 1
            self._shrink()

    def forget(self, path: bytes) -> None:
        """Close `path` and what is below it, unless in use: it was removed or replaced."""
        with self._lock:
            below = path + b"/"
            for each in [p for p in self._open if p == path or p.startswith(below)]:
                if not self._open[each][1]:
                    os.close(self._open.pop(each)[0])

    def _descend(self, path: bytes, make: bool) -> list[int]:
        missing = [path]
        parent = path.rpartition(b"/")[0]
        while parent and parent not in self._open:
            missing.append(parent)
            parent = parent.rpartition(b"/")[0]
        fd = self._open[parent][0] if parent else self._root_fd
        held: list[int] = []
        # Ancestors are kept only as many as fit: the nearest ones, which a walk comes back to.
        for depth, each in zip(range(len(missing), 0, -1), reversed(missing), strict=True):
            fd = _open_or_make(fd, each.rpartition(b"/")[2], each, make=make)
            held = [fd, 0]
            self._open[each] = held
            if depth > 1:
                held[1] = 1  # its own child is being opened: not to be closed by the shrinking
                self._shrink()
                held[1] = 0
        self._shrink(keep=path)
        return held

    def _shrink(self, keep: bytes | None = None) -> None:
        if len(self._open) <= self._limit:
            return
        for each in list(self._open):
            if each != keep and not self._open[each][1]:
                os.close(self._open.pop(each)[0])
                if len(self._open) <= self._limit:
                    return


def open_regular(dirs: DirHandles, path: bytes) -> int:
    """Open the regular file `path` for reading, without blocking and without following a link.

    Returns a descriptor that the caller closes.

    Raises:
        Refused: it is a link, a FIFO, a socket, a device or a directory; the kind is named.
        NotFound, StorageError: it does not exist or may not be read.
    """
    return open_and_stat(dirs, path)[0]


def open_and_stat(dirs: DirHandles, path: bytes) -> tuple[int, os.stat_result]:
    """As `open_regular`, with what the system says of the open file."""
    parent, _, name = path.rpartition(b"/")
    dir_fd = dirs.acquire(parent)
    try:
        fd = os.open(name, REGULAR, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise _refused_link(path) from error
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            # A socket, or a device without a driver: open refuses these by itself.
            raise special_file(path, _mode_at(dir_fd, name)) from error
        raise os_error(error, path, "read") from error
    finally:
        dirs.release(parent)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise special_file(path, found.st_mode)
    return fd, found


def special_file(path: bytes, mode: int) -> Refused:
    """The refusal of something that is neither file, directory nor link."""
    return Refused(f"is {kind_name(mode)}, not a file", subject=show(path), hint="remove it, or name it in .dvkignore")
