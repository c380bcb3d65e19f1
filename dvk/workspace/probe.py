"""What a filesystem can take: room, names that it folds together, and what killed runs left in it.

Asked before the first write, since "no space left" after 400 GB, or `Makefile` overwritten by `makefile`,
comes too late. The filesystem is tried out; the name of the operating system says little about it.
"""

from __future__ import annotations

import itertools
import os
import secrets
import stat
import time
from collections.abc import Iterable

from dvk.errors import DvkError, NotFound, Refused, StorageFull
from dvk.store.names import Names, show
from dvk.store.paths import find_collisions
from dvk.workspace.handles import DirHandles, lstat_in, open_dir, os_error
from dvk.workspace.host import boot_time_ns
from dvk.workspace.stats import TEMP_NAME

TEMP_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_STALE_NS = 3600 * 1_000_000_000


def temp_name() -> bytes:
    """A fresh name for a file that is being written; `scan` knows and skips such names."""
    return b".dvk-" + secrets.token_hex(16).encode() + b".tmp"


class TempNames:
    """Many fresh names: unpredictable as a whole, a number to tell them apart. Any thread may call `next`."""

    def __init__(self) -> None:
        self._start = b".dvk-" + secrets.token_hex(12).encode()
        self._numbers = itertools.count()

    def next(self) -> bytes:
        """The next name; the first 4,294,967,296 differ."""
        return b"%s%08x.tmp" % (self._start, next(self._numbers) & 0xFFFFFFFF)


def check_space(fd: int, needed_bytes: int) -> None:
    """Pass if the filesystem of `fd` has room for `needed_bytes` more.

    Raises:
        StorageFull: naming both numbers.
    """
    free = free_bytes(fd)
    if needed_bytes > free:
        raise StorageFull(
            f"needs {_size(needed_bytes)}, {_size(free)} free",
            hint="free some space, or name fewer paths; nothing was changed",
        )


def free_bytes(fd: int) -> int:
    """What an ordinary user may still write to the filesystem of `fd`; quotas are not seen."""
    st = os.fstatvfs(fd)
    return st.f_bavail * st.f_frsize


def find_folded(root_fd: int, directory: bytes, names: Names) -> list[tuple[bytes, bytes]]:
    """Pairs of `names` that the filesystem of `directory` takes for one; probed, not guessed by system.

    Touches the filesystem only when there are names that some filesystem folds together.
    """
    if not find_collisions(names):
        return []
    with DirHandles(root_fd) as dirs:
        while True:
            try:
                fd = dirs.acquire(directory)
                break
            except NotFound:  # not made yet: it will be like the directory that it is made in
                directory = directory.rpartition(b"/")[0]
        case, forms = _probe(fd, directory)
    return find_collisions(names, case=case, forms=forms) if case or forms else []


def _probe(fd: int, directory: bytes) -> tuple[bool, bool]:
    """Whether a directory ignores case, and Unicode normal forms."""
    stem = temp_name()
    name = stem + "\u00e9".encode()
    try:
        os.close(os.open(name, TEMP_FLAGS, 0o600, dir_fd=fd))
    except OSError as error:
        raise os_error(error, directory, "written to") from error
    try:
        case = _exists(fd, stem.upper() + "\u00e9".encode())
        forms = _exists(fd, stem + "e\u0301".encode())
    finally:
        os.unlink(name, dir_fd=fd)
    return case, forms


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def leftovers_in(root_fd: int, directory: bytes) -> tuple[bytes, ...]:
    """Temporary files of earlier runs in one directory, by name; `Scan.leftovers` has those of a folder."""
    fd = open_dir(root_fd, directory)
    try:
        names = [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)
    return tuple(sorted(name for name in names if TEMP_NAME.fullmatch(name)))


def clean_leftovers(root_fd: int, path: bytes, leftovers: Iterable[bytes]) -> int:
    """Remove temporary files that killed runs left below `path`; returns how many.

    Only what was last written an hour ago or before the machine was started: a younger one may belong to
    a run that is under way.
    """
    limit = max(time.time_ns() - _STALE_NS, boot_time_ns())
    count = 0
    with DirHandles(root_fd) as dirs:
        for leftover in leftovers:
            whole = path + b"/" + leftover if path else leftover
            parent, _, name = whole.rpartition(b"/")
            if not TEMP_NAME.fullmatch(name):
                raise Refused("is no temporary file of dvk", subject=show(whole))
            try:
                dir_fd = dirs.acquire(parent)
            except DvkError:
                continue  # gone meanwhile
            try:
                st = lstat_in(dir_fd, name)
                if st is not None and not stat.S_ISDIR(st.st_mode) and st.st_mtime_ns < limit:
                    os.unlink(name, dir_fd=dir_fd)
                    count += 1
            except OSError:
                continue  # somebody else's, or gone: the next run looks again
            finally:
                dirs.release(parent)
    return count


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for unit in ("bytes", "KB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"
