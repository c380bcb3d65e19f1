"""What a durable write on a POSIX filesystem is made of, and what its errors mean.

Each of these has bitten somebody: a short `writev` is normal near a full disk, `fsync` on macOS
does not reach the medium, a new folder vanishes in a power cut unless its parent is synced, and "Not a
directory" in a store usually means that somebody put a link there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dvk.backend.contract import Buffer
from dvk.errors import StorageError, StorageFull
from dvk.timings import Stage, stage

if sys.platform != "win32":
    import fcntl

OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024) if "SC_IOV_MAX" in os.sysconf_names else 16
#: How much `write_at` writes at a time.
WRITE_BYTES = 256 << 10
_MAX_WRITE = 1 << 30  # Linux stops at 2 GiB - 4 KiB, macOS refuses more than 2 GiB - 1
_DIRECT: int = getattr(os, "O_DIRECT", 0)  # Linux
_DIRECT_FROM = 8 << 20
_DIRECT_STEP = 16 << 20
_DIRECT_ALIGN = 4096
#: Errors that say nothing of the bytes and may be gone a moment later.
_PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}
)
_PAUSES_S = (0.02, 0.2)
_T = TypeVar("_T")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")  # starts with a dot, so it can never be a key


def is_temporary(name: str) -> bool:
    """Whether a file in `tmp/` has a name that only our writers give."""
    return _TEMPORARY.fullmatch(name) is not None


def write_all(fd: int, parts: Sequence[Buffer]) -> int:
    """Write all of `parts`, without joining them, to a file that is empty and about to be synced; the number of bytes.

    A long first part goes to the disk past the page cache where the system can: that takes a tenth of the processor
    time of a copy into fresh pages, and the sync finds next to nothing to do. What the user works with stays cached.

    Raises:
        OSError: what the system said; some of the bytes may be written.
    """
    views = [view for part in parts if (view := memoryview(part).cast("B")).nbytes]
    total = sum(view.nbytes for view in views)
    at = 0
    if _DIRECT and views and views[0].nbytes >= _DIRECT_FROM:
        views[0] = views[0][_write_direct(fd, views[0]) :]
        at = 0 if views[0].nbytes else 1
    while at < len(views):
        batch, size = [], 0
        for view in views[at : at + _IOV_MAX]:
            batch.append(view[: _MAX_WRITE - size])
            size += batch[-1].nbytes
            if size >= _MAX_WRITE:
                break
        with stage(Stage.WRITE, bytes_=size):
            written = os.writev(fd, batch)
        if written <= 0:
            raise OSError(errno.EIO, "a write made no progress")
        while written:
            step = min(written, views[at].nbytes)
            written -= step
            if step == views[at].nbytes:
                at += 1
            else:
                views[at] = views[at][step:]
    return total


def write_at(fd: int, data: Buffer, at: int) -> None:
    """Write all of `data` to a place in a file, piece by piece; a short write is continued. From any thread.

    Raises:
        OSError: what the system said; some of the bytes may be written.
    """
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(fd, view[:WRITE_BYTES], at)
        if done <= 0:
            raise OSError(errno.EIO, "a write made no progress")
        view, at = view[done:], at + done


def _write_direct(fd: int, view: memoryview) -> int:
    """Write as much of `view` as goes past the page cache; the number of bytes, 0 where that is not possible.

    What it leaves, the end of the last page at least, is for an ordinary write, which also tells what went wrong.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    done, end = 0, view.nbytes & -_DIRECT_ALIGN
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT)  # refused where the filesystem cannot
        while done < end:
            size = min(_DIRECT_STEP, end - done)
            with stage(Stage.WRITE, bytes_=size):
                written = os.write(fd, view[done : done + size])
            done += written
            if written < size:
                break
    except OSError:
        pass  # an alignment that it wants and we do not know, or an error that comes again
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


def sync_fd(fd: int) -> None:
    """Make a file or folder durable. After an error it must not be synced and believed again."""
    with stage(Stage.SYNC):
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
                return
            except OSError as e:
                if e.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                    raise
        os.fsync(fd)


def make_durable_dirs(path: str) -> None:
    """Make the folder `path` (0700) and the missing ones above it, each durable in its parent.

    An existing `path` gets its entry synced too, since whoever made it may have been killed in between.

    Raises:
        OSError: something that is no folder is in the way, or the system refuses.
    """
    missing = []
    while not os.path.isdir(path):
        if os.path.lexists(path):
            # A file, a dangling link or a loop: ask the system for its own word on it.
            os.close(os.open(path, OPEN_DIR))
        missing.append(path)
        path = os.path.dirname(path)
    if not missing:
        _sync_parent(path)
    for i, folder in enumerate(reversed(missing), 1):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700 if i == len(missing) else 0o777)
        _sync_parent(folder)


def _sync_parent(path: str) -> None:
    # The parent of a root that an administrator made may be closed to us, and is then not ours to sync.
    with contextlib.suppress(PermissionError):
        fd = os.open(os.path.dirname(path), OPEN_DIR)
        try:
            sync_fd(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked_folder(fd: int) -> Iterator[None]:
    """Hold the exclusive flock of an open folder; where flock does not exist, hold nothing."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as e:
        if e.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EBADF):
            raise
        yield
        return
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def translate(subject: str) -> Iterator[None]:
    """Turn an `OSError` from the body into the category of error that says what to do."""
    try:
        yield
    except OSError as e:
        raise storage_error(e, subject) from e


def storage_error(e: OSError, subject: str) -> StorageError:
    """The dvk error behind an `OSError` of a local medium."""
    what = os.strerror(e.errno) if e.errno else str(e)
    match e.errno:
        case errno.ENOSPC:
            return StorageFull("no space left", subject=subject, hint="free some space and run the same command again")
        case errno.EDQUOT:
            return StorageFull(
                "disk quota exceeded",
                subject=subject,
                hint="free some of your space and run the same command again",
            )
        case errno.EROFS:
            return StorageError("the filesystem is read-only", subject=subject, hint="mount it writable")
        case errno.EACCES | errno.EPERM:
            return StorageError(
                "permission denied",
                subject=subject,
                hint="check owner and permissions of the folder and of its parents",
            )
        case errno.ENOTDIR:
            return StorageError(
                "not a directory: a file or a symbolic link is where the store needs a folder",
                subject=subject,
            )
        case errno.ELOOP:
            return StorageError(
                "a symbolic link (or a loop of them) where the store needs a folder or file of its own",
                subject=subject,
            )
        case errno.EMFILE | errno.ENFILE:
            return StorageError("too many open files", subject=subject, hint="raise the limit (`ulimit -n 4096`)")
        case errno.EIO:
            return StorageError(
                "the medium reports an input/output error",
                subject=subject,
                hint="the disk or its connection may be failing; look at the system log",
            )
    return StorageError(what, subject=subject)


def is_passing(error: BaseException | None) -> bool:
    """Whether an error of a medium says nothing of what lies there, so that the same read may succeed."""
    return isinstance(error, OSError) and error.errno in _PASSING


def patiently(read: Callable[[], _T]) -> _T:
    """What `read` gives; where the medium refuses it for a reason that may pass, it is tried again, twice.

    For whoever judges what is read: an object that could not be read is not damaged.

    Raises:
        StorageError: it cannot be read now.
    """
    for pause in _PAUSES_S:
        try:
            return read()
        except StorageError as error:
            if not is_passing(error.__cause__):
                raise
            time.sleep(pause)
    return read()
