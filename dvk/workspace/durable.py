"""Replacing a small file so that after a power cut there is the old one or the new one, whole.

>>> import tempfile
>>> folder = os.open(tempfile.mkdtemp(), os.O_RDONLY)
>>> replace_file(folder, b"x.dvk", b"text\\n", subject="x.dvk")
>>> read_small(folder, b"x.dvk", max_bytes=100, subject="x.dvk")
b'text\\n'

The temporary file has a random name in the same folder and is made by handle, so that neither a link nor
another user can stand in its way; large data goes through `materialize` instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

from dvk.backend.disk import storage_error, sync_fd, write_all
from dvk.errors import FormatError, Refused
from dvk.store.names import show

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def replace_file(dir_fd: int, name: bytes, data: bytes, *, subject: str, mode: int = 0o644) -> None:
    """Make `name` in the folder `dir_fd` have exactly `data`, durably. A link there is replaced, not followed.

    A file that exists keeps its permissions; a new one gets `mode` without what the umask takes. On any
    error the file is as it was.

    Raises:
        StorageError: the folder cannot be written, or is full (StorageFull).
        Refused: a folder has the name.
    """
    temporary = b".dvk-%s.tmp" % secrets.token_hex(16).encode()
    try:
        fd = os.open(temporary, _NEW, mode, dir_fd=dir_fd)
        try:
            try:
                _keep_permissions(fd, dir_fd, name)
                write_all(fd, [data])
                sync_fd(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=dir_fd)
            raise
        sync_fd(dir_fd)
    except OSError as e:
        if e.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise Refused("a folder is where a file has to be written", subject=subject) from e
        raise storage_error(e, subject) from e


def _keep_permissions(fd: int, dir_fd: int, name: bytes) -> None:
    try:
        old = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(old):
        # A file of somebody else's, or a filesystem without modes: what the new one has is good enough.
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, stat.S_IMODE(old) & 0o777)


def remove_file(dir_fd: int, name: bytes, *, subject: str) -> bool:
    """Remove `name` from the folder `dir_fd`, durably; False when it was not there.

    Raises:
        StorageError: the folder cannot be written, or a folder has the name.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
        sync_fd(dir_fd)
    except FileNotFoundError:
        return False
    except OSError as e:
        raise storage_error(e, subject) from e
    return True


def exists(path: bytes) -> bool:
    """Whether there is anything of that name, a link to nowhere too. `os.path.lexists` takes a failing disk for a no.

    Raises:
        StorageError: the disk does not tell.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as e:
        raise storage_error(e, show(path)) from e
    return True


def read_small(dir_fd: int | None, name: bytes, *, max_bytes: int, subject: str, follow: bool = False) -> bytes | None:
    """The content of a regular file of at most `max_bytes`; None when there is none.

    `follow` allows `name` itself to be a link: for files of the user's own, never for what was cloned.

    Raises:
        Refused: it is a link, a folder, or a special file.
        FormatError: it is larger.
        StorageError: it cannot be read.
    """
    flags = _READ & ~os.O_NOFOLLOW if follow else _READ
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK):
            raise Refused(
                "is a symbolic link where a file is expected", subject=subject, hint="replace it by the file"
            ) from e
        if e.errno in (errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP):
            raise Refused("is not a regular file", subject=subject) from e
        raise storage_error(e, subject) from e
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused("is not a regular file", subject=subject)
        parts = []
        left = max_bytes + 1
        while left and (part := os.read(fd, min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    except OSError as e:
        raise storage_error(e, subject) from e
    finally:
        os.close(fd)
    if not left:
        raise FormatError(f"larger than the {max_bytes:,} bytes allowed", subject=subject)
    return b"".join(parts)
