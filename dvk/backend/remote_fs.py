"""A remote behind fsspec as a medium.

fsspec opens every store there is, and its filesystems answer from caches, lose error codes and once
returned half a file as success (measured: a short answer with a matching length). So this backend
trusts none of it: it builds on one small protocol, `Medium`, one call of which is one request for one
object or range, checks the length of every answer, translates every exception, and opens a connection
of its own in a forked child.

>>> from fsspec.implementations.memory import MemoryFileSystem
>>> b = FsspecBackend(lambda: FsspecMedium(MemoryFileSystem(), "doc"), name="memory://doc")
>>> b.put("j/x", [b"abc"])
>>> b.get_range("j/x", 1, 2)
b'bc'

Many threads may use it at once; parallelism is theirs. It does not retry: `RetryBackend` does.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from dvk.backend.contract import (
    Backend,
    Buffer,
    Capabilities,
    KeyExists,
    KeyMissing,
    Listed,
    ShortAnswer,
    check_key,
    check_prefix,
    check_range,
    is_key,
)
from dvk.backend.remote_errors import BAD_RANGE, CONFLICT, MISSING, code_of, translate_remote
from dvk.errors import Corrupt, FormatError, RemoteError, StorageError

# Some filesystems allocate what is asked for before they look what there is.
_LOOK_FIRST_BYTES = 64 << 20


class Medium(Protocol):
    """What a kind of remote does for `FsspecBackend`. Keys are relative to it; any exception may fly."""

    def head(self, key: str) -> int | None:
        """Size in bytes, None when there is no such object."""

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        """The object's bytes and its stated size; not more than `limit + 1` bytes are read."""

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        """Bytes from `offset` and the stated size of the whole object; `length` is at least 1."""

    def write(self, key: str, parts: Sequence[Buffer], *, create_only: bool) -> None:
        """Store the concatenation of `parts`, whole or not at all."""

    def walk(self, prefix: str) -> Iterator[Listed]:
        """All objects that start with `prefix`, page by page; maybe of others too."""

    def remove(self, key: str) -> None:
        """Delete the object; a missing one may raise `FileNotFoundError`."""

    def close(self) -> None:
        """Let go of connections."""


#: What the kinds of fsspec filesystems call the time of the last change.
_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "created")
_live: weakref.WeakSet[FsspecBackend] = weakref.WeakSet()
_inherited: list[Medium] = []  # kept from finalizers, which would talk to the parent's event loop


_obstore_died = False


def _forget_after_fork() -> None:
    global _obstore_died
    # Whoever had it: its threads are one set for the whole process, and a child waits for them for ever.
    _obstore_died = _obstore_died or "obstore" in sys.modules
    for backend in list(_live):
        backend._after_fork()


def obstore_survives() -> bool:
    """Whether obstore can work in this process: no parent had it loaded before it forked."""
    return not _obstore_died


os.register_at_fork(after_in_child=_forget_after_fork)


class FsspecBackend(Backend):
    """`connect` makes the medium on first use, and again in a forked child.

    `name` is for messages and holds no credentials; `profile` is named in the hint to sign in again.
    """

    def __init__(
        self,
        connect: Callable[[], Medium],
        *,
        name: str,
        create_only: bool = False,
        read_only: bool = False,
        profile: str = "",
    ) -> None:
        self.name = name
        self.capabilities = Capabilities(create_only=create_only and not read_only, writable=not read_only)
        self.read_only = read_only
        self._connect = connect
        self._profile = profile
        self._lock = threading.Lock()
        self._medium: Medium | None = None
        _live.add(self)

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        check_key(key)
        self._check_writable(key)
        kept = list(parts)
        try:
            self._open().write(key, kept, create_only=create_only)
        except Exception as e:
            if create_only and code_of(e) in CONFLICT and self.stat(key) is not None:
                raise KeyExists("already there", subject=f"{self.name}/{key}") from e
            raise self._translate(e, key, create_only=create_only) from e

    def get(self, key: str, *, max_bytes: int) -> bytes:
        check_key(key)
        try:
            data, total = self._open().read(key, max_bytes)
        except Exception as e:
            raise self._translate(e, key) from e
        size = len(data) if total is None else total
        if size > max_bytes:
            raise FormatError(
                f"object of {size:,} bytes where at most {max_bytes:,} make sense",
                subject=f"{self.name}/{key}",
            )
        if len(data) != size:
            raise self._short(key, len(data), size)
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        check_key(key)
        check_range(offset, length)
        if length == 0:  # no request can ask for nothing
            size = self.stat(key)
            if size is None:
                raise KeyMissing("no such object", subject=f"{self.name}/{key}")
            if offset > size:
                raise self._ends_early(key, size, offset)
            return b""
        try:
            data, total = self._open().read_range(key, offset, length)
        except Exception as e:
            if code_of(e) in BAD_RANGE:
                raise self._ends_early(key, None, offset + length) from e
            raise self._translate(e, key) from e
        if len(data) == length and (total is None or offset + length <= total):
            return data
        if total is None:
            total = self.stat(key)
        if total is not None and offset + length > total:
            raise self._ends_early(key, total, offset + length)
        raise self._short(key, len(data), length)

    def stat(self, key: str) -> int | None:
        check_key(key)
        try:
            return self._open().head(key)
        except Exception as e:
            error = self._translate(e, key)
            if isinstance(error, KeyMissing):
                return None
            raise error from e

    def list(self, prefix: str) -> Iterator[Listed]:
        return (row for row in self.survey(prefix) if row.key.startswith(prefix) and is_key(row.key))

    def survey(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        return self._rows(prefix)

    def _rows(self, prefix: str) -> Iterator[Listed]:
        rows = None
        while True:
            try:
                if rows is None:
                    rows = self._open().walk(prefix)
                row = next(rows)
            except StopIteration:
                return
            except Exception as e:
                raise self._translate(e, prefix) from e
            yield row

    def delete(self, key: str) -> None:
        check_key(key)
        self._check_writable(key)
        try:
            self._open().remove(key)
        except Exception as e:
            error = self._translate(e, key)
            if not isinstance(error, KeyMissing):
                raise error from e

    def close(self) -> None:
        with self._lock:
            medium, self._medium = self._medium, None
        if medium is not None:
            medium.close()

    def _open(self) -> Medium:
        medium = self._medium
        if medium is None:
            with self._lock:
                if self._medium is None:
                    self._medium = self._connect()
                medium = self._medium
        return medium

    def _after_fork(self) -> None:
        """Threads and sockets stayed with the parent, and a thread of it may have held the lock."""
        self._lock = threading.Lock()
        if self._medium is not None:
            _inherited.append(self._medium)
            self._medium = None

    def _check_writable(self, key: str) -> None:
        if self.read_only:
            raise StorageError("this remote can only be read", subject=f"{self.name}/{key}")

    def _translate(self, e: Exception, key: str, *, create_only: bool = False) -> Exception:
        return translate_remote(e, name=self.name, key=key, create_only=create_only, profile=self._profile)

    def _short(self, key: str, got: int, wanted: int) -> ShortAnswer:
        return ShortAnswer(
            f"the remote answered {got:,} bytes where {wanted:,} were asked for",
            subject=f"{self.name}/{key}",
            hint="a proxy may be cutting answers, or the server is broken: `dvk remote check` looks closer",
            transient=True,
        )

    def _ends_early(self, key: str, size: int | None, end: int) -> Corrupt:
        where = "too early" if size is None else f"at byte {size:,}"
        return Corrupt(f"object ends {where}, before {end:,}", subject=f"{self.name}/{key}")


class FsspecMedium:
    """Any synchronous fsspec filesystem, below the folder or bucket prefix `base`.

    `atomic_put` says that the filesystem shows an object only when it is whole, as object stores do. Where
    it does not (ssh), objects are written under a temporary name and moved.
    """

    def __init__(self, fs: Any, base: str, *, atomic_put: bool = True) -> None:
        self._fs = fs
        self._base = base.rstrip("/")
        self._atomic_put = atomic_put

    def head(self, key: str) -> int | None:
        try:
            info = self._fs.info(self._path(key))
        except FileNotFoundError as e:
            # fsspec's HTTP says this of every failure, and what really happened is its cause.
            if isinstance(e.__cause__, Exception) and code_of(e.__cause__) not in MISSING:
                raise e.__cause__ from None
            return None
        if info.get("type", "file") != "file":
            return None
        size = info.get("size")
        if not isinstance(size, int):
            raise RemoteError("the remote does not tell the size of objects", subject=key)
        return size

    def mark(self, key: str) -> tuple[int, str, str, str] | None:
        """Size, etag, version and time of an object (`dvk.backend.locate.MarkedMedium`)."""
        try:
            info = self._fs.info(self._path(key))
        except FileNotFoundError:
            return None
        return _mark(info) if info.get("type", "file") == "file" and isinstance(info.get("size"), int) else None

    def marks(self, prefix: str) -> Iterator[tuple[str, tuple[int, str, str, str]]]:
        """The same of all objects in the folder `prefix`."""
        folder = self._path(prefix.rstrip("/"))
        self._fs.invalidate_cache(folder)
        start = f"{self._base.strip('/')}/" if self._base.strip("/") else ""
        for path, info in self._fs.find(folder, detail=True).items():
            path = self._fs._strip_protocol(path).lstrip("/")
            if path.startswith(start) and info.get("type", "file") == "file":
                yield path[len(start) :], _mark(info)

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        data, size = b"", self._size(key)
        for _ in range(3):  # the object may be replaced between the question for its size and the reading
            if size > limit:
                return b"", size
            data = bytes(self._fs.cat_file(self._path(key)))
            if len(data) == size or (size := self._size(key)) == len(data):
                break
        return data, size

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        if length > _LOOK_FIRST_BYTES:
            size = self._size(key)
            if offset + length > size:
                return b"", size
        return bytes(self._fs.cat_file(self._path(key), start=offset, end=offset + length)), None

    def write(self, key: str, parts: Sequence[Buffer], *, create_only: bool) -> None:
        path = self._path(key)
        data = parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)
        if self._atomic_put:
            if create_only:
                self._fs.pipe_file(path, data, mode="create")
            else:
                self._fs.pipe_file(path, data)
            return
        if create_only and self.head(key) is not None:
            raise FileExistsError(path)
        temporary = self._path(f"tmp/.{secrets.token_hex(16)}")
        for child in (temporary, path):
            self._fs.makedirs(child.rpartition("/")[0], exist_ok=True)
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm_file(temporary)
            raise

    def walk(self, prefix: str) -> Iterator[Listed]:
        folder = self._path(prefix.rpartition("/")[0]).rstrip("/")
        self._fs.invalidate_cache(folder)
        try:
            found = self._fs.find(folder, detail=True)
        except FileNotFoundError:
            return
        # A filesystem may write its paths with or without the leading slash that we gave.
        start = f"{self._base.strip('/')}/" if self._base.strip("/") else ""
        for path, info in found.items():
            path = self._fs._strip_protocol(path).lstrip("/")
            if path.startswith(start) and info.get("type", "file") == "file":
                if not isinstance(info.get("size"), int):
                    raise RemoteError("this kind of remote cannot be listed")
                found = next((info[name] for name in _MODIFIED if info.get(name)), None)
                yield Listed(path[len(start) :], info["size"], seconds_of(found))

    def remove(self, key: str) -> None:
        self._fs.rm_file(self._path(key))

    def close(self) -> None:
        """fsspec filesystems hold nothing that outlives them."""

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}" if self._base else key

    def _size(self, key: str) -> int:
        size = self.head(key)
        if size is None:
            raise FileNotFoundError(key)
        return size


def seconds_of(found: object) -> float | None:
    """A time as servers and filesystems tell it, in Unix seconds; None where it is no time."""
    if isinstance(found, datetime):
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    return float(found) if isinstance(found, int | float) else None


def _mark(info: Mapping[str, Any]) -> tuple[int, str, str, str]:
    """What an fsspec filesystem says of an object, by the names that the kinds of them use."""

    def first(*names: str) -> str:
        found = next((info[name] for name in names if info.get(name)), "")
        return str(found.isoformat() if isinstance(found, datetime) else found)[:200]

    etag = first("ETag", "etag", "md5Hash", "content_md5").strip('"')
    return int(info["size"]), etag, first("version_id", "generation"), first("last_modified", "updated", "mtime")
