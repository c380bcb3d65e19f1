"""What a folder's filesystem can do that dvk makes use of: locks, and copies that share their blocks.

Tried out in the folder itself, with files of random names that are removed at once: what the operating system is
called, or the filesystem, says little about a network mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Iterator

from dvk.workspace.probe import TEMP_FLAGS, temp_name

_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
_LIBC = ctypes.CDLL(None, use_errno=True)


def nearest_folder(path: bytes) -> bytes:
    """`path` itself if it is a folder, else the nearest one above it."""
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def has_locks(folder: bytes) -> bool:
    """Whether `flock` works there.

    Raises:
        OSError: nothing can be written there.
    """
    with _temporary(folder) as path:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        finally:
            os.close(fd)
    return True


def has_reflinks(folder: bytes) -> bool:
    """Whether a copy can share the blocks of its original there, so that it costs neither time nor space.

    Raises:
        OSError: nothing can be written there.
    """
    with _temporary(folder, b"x" * 4096) as source:
        target = os.path.join(folder, temp_name())
        try:
            if sys.platform == "darwin":
                return bool(_LIBC.clonefile(source, target, 0) == 0)
            source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                target_fd = os.open(target, TEMP_FLAGS, 0o600)
                try:
                    fcntl.ioctl(target_fd, _FICLONE, source_fd)
                except OSError:
                    return False
                finally:
                    os.close(target_fd)
            finally:
                os.close(source_fd)
            return True
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)


@contextlib.contextmanager
def _temporary(folder: bytes, data: bytes = b"") -> Iterator[bytes]:
    path = os.path.join(folder, temp_name())
    fd = os.open(path, TEMP_FLAGS, 0o600)
    try:
        os.write(fd, data)
        yield path
    finally:
        os.close(fd)
        os.unlink(path)
