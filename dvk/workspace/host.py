"""The few questions to the operating system that Python's standard library does not ask.

A stat cache must know whether the machine has been restarted since (after a power cut a file may be
empty and still have the size and times that the cache remembers); a checkout must put a file in place
only where there is none, in one step. Linux and macOS answer both, each in its own way, and no other
module cares which of them it runs on.

>>> boot_id() == boot_id()
True
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import time
from functools import lru_cache

_LIBC = ctypes.CDLL(None, use_errno=True)
_MACOS = sys.platform == "darwin"

_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # macOS sys/stdio.h
_SYNC_VOLUME_FULLSYNC_WAIT = 3  # macOS sys/fsctl.h: SYNC_VOLUME_FULLSYNC | SYNC_VOLUME_WAIT
_F_GETPATH = 50  # macOS sys/fcntl.h
_MAX_ID_BYTES = 64


@lru_cache(maxsize=1)
def boot_id() -> bytes:
    """What names the present run of the machine's kernel, at most 64 bytes; empty where unknown."""
    if _MACOS:
        return (_sysctl(b"kern.bootsessionuuid") or _sysctl(b"kern.boottime"))[:_MAX_ID_BYTES]
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as f:
            return f.read(256).strip()[:_MAX_ID_BYTES]
    except OSError:
        return b""


def boot_time_ns() -> int:
    """When the machine was started, ns since 1970 by its present clock; 0 where unknown."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time_ns() - time.clock_gettime_ns(clock) if clock is not None else 0


def sync_filesystem(fd: int) -> bool:
    """Write everything of the filesystem of `fd` to its medium; False where that cannot be proven."""
    if _MACOS:
        sync_volume = getattr(_LIBC, "sync_volume_np", None)
        if sync_volume is None:
            return False
        path = fcntl.fcntl(fd, _F_GETPATH, bytes(1024)).rstrip(b"\0")
        return bool(sync_volume(path, _SYNC_VOLUME_FULLSYNC_WAIT) == 0)
    syncfs = getattr(_LIBC, "syncfs", None)
    return syncfs is not None and bool(syncfs(fd) == 0)


def rename_new(source: bytes, source_dir: int, target: bytes, target_dir: int) -> bool:
    """Rename if nothing has the name `target`; False, with nothing done, if this filesystem cannot tell.

    Raises:
        FileExistsError: when there is something; it stays as it is.
        OSError: as `os.rename` would.
    """
    if _MACOS:
        call, flag = getattr(_LIBC, "renameatx_np", None), _RENAME_EXCL
    else:
        call, flag = getattr(_LIBC, "renameat2", None), _RENAME_NOREPLACE
    if call is None:
        return False
    if call(source_dir, source, target_dir, target, flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), os.fsdecode(target))


def _sysctl(name: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t(len(buffer))
    if _LIBC.sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return b""
    return buffer.raw[: size.value]
