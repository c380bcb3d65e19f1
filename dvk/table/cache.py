"""Facts about a version that cost a pass over it, kept for the next diff. docs/format/table-cache.md is the truth.

A diff of two 10 GB texts with one changed row reads a megabyte once it knows where the records lie; to know that,
somebody has to scan 10 GB. The facts of a scan are a few hundred kilobytes, belong to a file id for ever, and are kept
here. Being derived, they are never worth an error: what is torn, foreign or unreadable is absent, and is found again.

    cache = Cache(b"/repo/.git/dvk/tables")
    cache.put(file_id, b"text-facts/1" + dialect, body)
    cache.get(file_id, b"text-facts/1" + dialect)         # body, or None
"""

from __future__ import annotations

import os
import secrets
import stat
import struct
import time

import xxhash

from dvk.ids import ID_BYTES

_MAGIC = b"dvkT"
_VERSION = 1
_HEADER = struct.Struct("<4sB3xQQ16s")
_DIRECTORY = b"tables/1"
_STALE_S = 3600.0
DEFAULT_LIMIT_BYTES = 256 << 20


class Cache:
    """Entries by (file id, spec) below a directory. Several threads and processes may use it at once.

    Every failure of the medium counts as absence: `get` returns None, `put` keeps nothing.
    """

    def __init__(self, directory: bytes, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        """`directory` need not exist; `limit_bytes` bounds the sum of all entries."""
        self._directory = os.path.join(directory, _DIRECTORY)
        self._limit = limit_bytes

    def get(self, file_id: bytes, spec: bytes) -> bytes | None:
        """The body that was kept for exactly this id and spec, or None."""
        path = self._path(file_id, spec)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > self._limit:
                return None
            body = _parse(os.pread(fd, info.st_size, 0), file_id, spec)
            if body is not None:
                _renew(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        return body

    def put(self, file_id: bytes, spec: bytes, body: bytes) -> bool:
        """Keep `body`; False if the medium refused or it is too large to keep."""
        data = _format(file_id, spec, body)
        if len(data) > self._limit // 2:
            return False
        temporary = os.path.join(self._directory, b"tmp-" + secrets.token_hex(8).encode())
        try:
            os.makedirs(self._directory, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, self._path(file_id, spec))
        except OSError:
            _remove(temporary)
            return False
        self._shrink()
        return True

    def _path(self, file_id: bytes, spec: bytes) -> bytes:
        return os.path.join(self._directory, xxhash.xxh3_128_hexdigest(_key(file_id) + spec).encode())

    def _shrink(self) -> None:
        """Remove what was not used for longest until the limit holds."""
        found: list[tuple[float, int, bytes]] = []
        now = time.time()
        try:
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if not entry.name.startswith(b"tmp-"):
                        found.append((info.st_mtime, info.st_size, entry.path))
                    elif now - info.st_mtime > _STALE_S:
                        _remove(entry.path)
        except OSError:
            return  # another process is at it, or the directory went away
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                return
            _remove(path)
            total -= size


def _key(file_id: bytes) -> bytes:
    if len(file_id) != ID_BYTES:
        raise ValueError("a file id has 32 bytes")
    return file_id


def _format(file_id: bytes, spec: bytes, body: bytes) -> bytes:
    checksum = xxhash.xxh3_128_digest(_key(file_id) + spec + body)
    return _HEADER.pack(_MAGIC, _VERSION, len(spec), len(body), checksum) + file_id + spec + body


def _parse(data: bytes, file_id: bytes, spec: bytes) -> bytes | None:
    if len(data) < _HEADER.size + ID_BYTES:
        return None
    magic, version, spec_bytes, body_bytes, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION or len(data) != _HEADER.size + ID_BYTES + spec_bytes + body_bytes:
        return None
    if xxhash.xxh3_128_digest(memoryview(data)[_HEADER.size :]) != checksum:
        return None
    if not data.startswith(file_id + spec, _HEADER.size) or spec_bytes != len(spec):
        return None
    return data[len(data) - body_bytes :]


def _renew(fd: int) -> None:
    """Note that an entry was of use."""
    try:
        os.utime(fd)
    except OSError:
        return  # a read-only cache is read none the less


def _remove(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # already gone, or not ours to remove: the limit is then kept by others
