"""A file that is being written under a temporary name: to any place, from any thread, quickly.

    write_all(fd, data, at=0, subject="train.csv")
    begin_writeback(fd, 0, len(data))

Two things that a plain `write` of everything at once gets wrong, measured with 1 GB on ext4 (Linux 6.18). Such kernels
look for a run of free memory as long as a write, which for one of several MiB takes up to ten times as long as writing
the same bytes in small ones. And a file that is renamed over another is sent to the disk at that moment (a rule of ext4
and btrfs that saves the file in a power cut), 0.25 s during which nothing else happens, unless that was begun earlier.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from dvk.errors import StorageError, StorageFull
from dvk.timings import Stage, stage

#: How much is written at a time.
WRITE_BYTES = 128 << 10
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class CannotWrite(StorageError):
    """A file takes no more bytes, and no other on the same medium would."""


def write_all(fd: int, data: memoryview | bytes, *, at: int = 0, subject: str) -> None:
    """Write everything to a place in a file; a short write is continued.

    Raises:
        StorageFull, CannotWrite
    """
    view = memoryview(data)
    try:
        with stage(Stage.WRITE, bytes_=len(view)):
            while view:
                done = os.pwrite(fd, view[:WRITE_BYTES], at)
                if done <= 0:
                    raise OSError(errno.EIO, "a write made no progress")
                view, at = view[done:], at + done
    except OSError as error:
        raise _cannot_write(error, subject) from error


def empty(fd: int, *, subject: str) -> None:
    """Take back everything that was written to a file.

    Raises:
        StorageFull, CannotWrite
    """
    try:
        os.ftruncate(fd, 0)
    except OSError as error:
        raise _cannot_write(error, subject) from error


def begin_writeback(fd: int, at: int, length: int) -> None:
    """Let the system begin to send a range to the disk. Promises nothing, and does nothing but on Linux."""
    if _sync_file_range is not None:
        _sync_file_range(fd, at, length, _SYNC_FILE_RANGE_WRITE)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_sync_file_range = _find_sync_file_range()


def _cannot_write(error: OSError, subject: str) -> StorageError:
    """The category of an error of a medium."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no space left on the device", subject=subject, hint="free some space and run it again")
    return CannotWrite(f"cannot be written ({error.strerror})", subject=subject)
