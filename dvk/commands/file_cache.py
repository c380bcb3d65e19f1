"""Whole files for libraries that want a path: read-only, verified, bounded, shared by all repositories of a user.

    cache = FileCache.of(environ, max_bytes)
    cache.get(file_id, size, b"best.safetensors", write)    # b"/home/me/.cache/dvk/files/3f/3f2a.../best.safetensors"

A file is written under a temporary name, hashed, synced, made read-only and moved to its place; its time of change is
set to one that follows from its id, so that a file somebody wrote to is noticed and made again. The file that was not
asked for longest goes first when there is too much, but none that a living process was given (it holds a shared lock)
and none of the last hour.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from blake3 import blake3
from msgspec import Struct

from dvk.backend.disk import storage_error, write_all
from dvk.errors import Corrupt, StorageFull
from dvk.store.names import show
from dvk.workspace.places import NO_LOCKS, check_ownership, exclusive, writable_cache

MAX_BYTES = 20_000_000_000
_GRACE_S = 3600.0
_HELD = 256  #: files that this process keeps from being removed; more would use up its handles
_FICLONE = 0x40049409  # linux/fs.h: share all blocks of another file
_BASE_NS = 1_000_000_000 * 10**9

Write = Callable[[Callable[[memoryview | bytes], object]], object]  #: gives the content, piece by piece

_held_lock = threading.Lock()
_held: OrderedDict[bytes, int] = OrderedDict()
_room: dict[bytes, int] = {}  #: by folder of a cache, what may be written to it before somebody looks through it


class FileCache(Struct, frozen=True):
    """The cache in `folder`. Any number of processes may use it at once."""

    folder: bytes
    max_bytes: int = MAX_BYTES

    @classmethod
    def of(cls, environ: Mapping[str, str], max_bytes: int | None = None) -> FileCache:
        """The user's own.

        Raises:
            Refused: its folder belongs to another user.
        """
        folder = os.path.join(writable_cache(environ), b"files")
        check_ownership(folder, accepted_uid=None, environ=environ)
        return cls(folder, MAX_BYTES if max_bytes is None else max_bytes)

    def get(self, file_id: bytes, size: int, name: bytes, write: Write, *, alike: bytes | None = None) -> bytes:
        """The path of a file with the content `file_id` that is called `name`; `write` gives the content if needed.

        Args:
            alike: a file that may have the same content, to share its blocks where the filesystem can.

        Raises:
            Corrupt: what `write` gave is not what the id says. StorageFull, StorageError: it cannot be kept.
        """
        place = os.path.join(self.folder, file_id[:1].hex().encode(), file_id.hex().encode())
        path = os.path.join(place, name)
        for attempt in range(3):
            try:
                os.makedirs(place, mode=0o700, exist_ok=True)
                _hold(place)
                if not self._is_whole(path, file_id, size):
                    self._make(place, path, file_id, size, write, alike)
                os.utime(place)  # used now
                return path
            except FileNotFoundError as e:  # another process removed the folder before it was ours
                _let_go(place)
                if attempt == 2:
                    raise storage_error(e, show(path)) from e
            except OSError as e:
                raise storage_error(e, show(path)) from e
        raise AssertionError("unreachable")

    def _is_whole(self, path: bytes, file_id: bytes, size: int) -> bool:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        if found.st_mtime_ns == _time_of(file_id) and not found.st_mode & 0o222:
            return True
        with _opened(path) as fd:  # touched by somebody: only its content tells
            if _hash(fd) != file_id:
                return False
            os.fchmod(fd, 0o444)
            os.utime(fd, ns=(_time_of(file_id), _time_of(file_id)))
            return True

    def _make(self, place: bytes, path: bytes, file_id: bytes, size: int, write: Write, alike: bytes | None) -> None:
        self._make_room(size, place)
        temporary = os.path.join(place, b".%s.tmp" % secrets.token_hex(8).encode())
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if not (alike and _share(fd, alike, size) and _hash(fd) == file_id):
                os.ftruncate(fd, 0)
                os.lseek(fd, 0, os.SEEK_SET)
                self._check_room(fd, size, path)
                hasher = blake3()

                def out(piece: memoryview | bytes) -> None:
                    hasher.update(piece)
                    write_all(fd, [piece])

                write(out)
                if hasher.digest() != file_id:
                    raise Corrupt("its stored bytes fail their hash", subject=show(os.path.basename(path)))
            os.fchmod(fd, 0o444)
            os.fsync(fd)  # before its time says that it is whole
            os.utime(fd, ns=(_time_of(file_id), _time_of(file_id)))
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            os.close(fd)

    @staticmethod
    def _check_room(fd: int, size: int, path: bytes) -> None:
        disk = os.fstatvfs(fd)
        free = disk.f_bavail * disk.f_frsize
        if free < size:
            raise StorageFull(f"needs {size:,} bytes, {free:,} are free", subject=show(path))

    def _make_room(self, size: int, but: bytes) -> None:
        """Remove what was not used for longest until `size` more bytes fit, as far as may be.

        A look through all that is kept takes seconds where that is small files, so it says how much may be written
        before the next one: a part of what is free, as other processes write too.
        """
        with _held_lock:
            _room[self.folder] = left = _room.get(self.folder, 0) - size
        if left >= 0:
            return
        with exclusive(os.path.join(self.folder, b"lock")):
            found = sorted(self._places())
            total = sum(held for _, held, _ in found) + size
            newest = time.time() - _GRACE_S
            wanted = self.max_bytes if total <= self.max_bytes else self.max_bytes - self.max_bytes // 16
            for used, held, place in found:
                if total <= wanted or used > newest:
                    break
                if place != but and _remove(place, used):
                    total -= held
        with _held_lock:
            free = self.max_bytes - total
            _room[self.folder] = free // 32 if free > 0 else total // 64

    def _places(self) -> Iterator[tuple[float, int, bytes]]:
        """When each file was last asked for, its size, and its folder."""
        for start in _names(self.folder):
            for name in _names(os.path.join(self.folder, start)):
                place = os.path.join(self.folder, start, name)
                try:
                    used = os.stat(place).st_mtime
                    held = sum(os.lstat(os.path.join(place, file)).st_blocks * 512 for file in _names(place))
                except OSError:
                    continue  # removed by another process
                yield used, held, place


def _names(folder: bytes) -> list[bytes]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _time_of(file_id: bytes) -> int:
    return _BASE_NS + int.from_bytes(file_id[:3], "little") * 10**9


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _hash(fd: int) -> bytes:
    hasher, at = blake3(), 0
    while piece := os.pread(fd, 8 << 20, at):
        hasher.update(piece)
        at += len(piece)
    return hasher.digest()


def _share(fd: int, alike: bytes, size: int) -> bool:
    """Make the file at `fd` share the blocks of another of `size` bytes; whether that worked."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        source = os.open(alike, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = os.fstat(source)
        if not stat.S_ISREG(info.st_mode) or info.st_size != size or not size:
            return False
        fcntl.ioctl(fd, _FICLONE, source)
        return True
    except OSError:
        return False  # another filesystem, or one that cannot
    finally:
        os.close(source)


def _hold(place: bytes) -> None:
    """Keep the folder of a file from being removed while this process runs.

    Raises:
        FileNotFoundError: it is being removed by another process.
    """
    with _held_lock:
        if place in _held:
            if _is_at(_held[place], place):
                _held.move_to_end(place)
                return
            os.close(_held.pop(place))  # somebody emptied the cache by hand, and this is another folder
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)  # who removes it is soon done
            except OSError as e:
                if e.errno not in NO_LOCKS:  # there a file has the hour
                    raise
            if not _is_at(fd, place):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)
        except BaseException:
            os.close(fd)
            raise
        _held[place] = fd
        while len(_held) > _HELD:
            os.close(_held.popitem(last=False)[1])


def _is_at(fd: int, place: bytes) -> bool:
    """Whether the open folder `fd` is the one at `place`."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(place))
    except FileNotFoundError:
        return False


def _let_go(place: bytes) -> None:
    with _held_lock:
        if place in _held:
            os.close(_held.pop(place))


def _after_fork() -> None:
    global _held_lock
    _held_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _remove(place: bytes, used: float) -> bool:
    """Remove a file that nobody holds and nobody asked for since `used`; whether it is gone."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_mtime != used:
            return False
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)
        os.rmdir(place)
        return True
    except OSError:
        return False  # in use, or no longer there
    finally:
        os.close(fd)
