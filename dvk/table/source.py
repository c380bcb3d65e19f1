"""Bytes at random access for the readers of tables: a plain file, or bytes that are already in memory.

`dvk diff --no-index a.csv b.csv` compares files that no store knows. They are read with `pread`, never mapped (a file
that is cut short meanwhile would kill the process), and looked at before every read: a table of which the first half is
old and the second half new must become an error, not an answer. `dvk.store.opened` is the same for a stored version.

>>> with BytesSource(b"id,x", name=b"a.csv") as source:
...     source.read_at(3, 1)
b'x'
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Sequence
from types import TracebackType

from dvk.errors import ChangedWhileRead, DvkError, NotFound, Refused, StorageError
from dvk.store.names import show
from dvk.store.opened import check_range
from dvk.store.pages import Chunks

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MAX_PREAD = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in a call


class FileSource:
    """A plain file. Links are followed: the user named it. Any thread may read."""

    def __init__(self, path: bytes, *, label: str | None = None) -> None:
        """Open `path`; `label` is how messages call it, its path without one.

        Raises:
            NotFound, Refused, StorageError: there is no such file, it is a folder or a device, it may not be read.
        """
        self._label = show(path) if label is None else label
        self._path = os.path.abspath(path)
        try:
            self._fd = os.open(path, _FLAGS)
        except OSError as error:
            raise self._failed(error) from error
        self._closed = False
        self._lock = threading.Lock()
        self._bytes_read = 0
        self._stat = os.fstat(self._fd)
        if not stat.S_ISREG(self._stat.st_mode):
            self.close()
            kind = "a folder" if stat.S_ISDIR(self._stat.st_mode) else "not a regular file"
            raise Refused(f"is {kind}, so it is no table", subject=self._label)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def label(self) -> str:
        return self._label

    @property
    def name(self) -> bytes:
        return os.path.basename(self._path)

    @property
    def size(self) -> int:
        return self._stat.st_size

    @property
    def id(self) -> bytes | None:
        return None

    @property
    def path(self) -> bytes | None:
        return self._path

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def chunks(self) -> Chunks | None:
        return None

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes.

        Raises:
            ChangedWhileRead: the file is no longer the one that was opened.
            StorageError: the disk refused.
        """
        check_range(offset, length, self.size, self._label)
        parts = []
        at, end = offset, offset + length
        try:
            while at < end:
                part = os.pread(self._fd, min(end - at, _MAX_PREAD), at)
                if not part:
                    break
                parts.append(part)
                at += len(part)
            now = os.fstat(self._fd)
        except OSError as error:
            raise self._failed(error) from error
        if at < end or _changed(self._stat, now):
            raise ChangedWhileRead(
                "it changed while dvk was reading it",
                subject=self._label,
                hint="run the command again when nothing writes to it",
            )
        with self._lock:
            self._bytes_read += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """The system reads ahead of its own."""

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)

    def _failed(self, error: OSError) -> DvkError:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return NotFound("there is no such file", subject=self._label)
        return StorageError(f"cannot be read: {error.strerror}", subject=self._label)


class BytesSource:
    """A file that is in memory, with a recipe if one is given."""

    def __init__(
        self,
        data: bytes,
        *,
        name: bytes,
        label: str | None = None,
        id: bytes | None = None,
        chunks: Chunks | None = None,
    ) -> None:
        """`id`: the file id; `chunks`: its recipe, whose lengths add up to `len(data)`."""
        if chunks is not None and chunks.total_bytes != len(data):
            raise ValueError("the recipe is of another file")
        self._data = data
        self._name = name
        self._label = show(name) if label is None else label
        self._id = id
        self._chunks = chunks
        self._lock = threading.Lock()
        self._bytes_read = 0

    def __enter__(self) -> BytesSource:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def label(self) -> str:
        return self._label

    @property
    def name(self) -> bytes:
        return self._name

    @property
    def size(self) -> int:
        return len(self._data)

    @property
    def id(self) -> bytes | None:
        return self._id

    @property
    def path(self) -> bytes | None:
        return None

    @property
    def bytes_read(self) -> int:
        return self._bytes_read

    def chunks(self) -> Chunks | None:
        return self._chunks

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes."""
        check_range(offset, length, len(self._data), self._label)
        with self._lock:
            self._bytes_read += length
        return self._data[offset : offset + length]

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """All of it is here."""

    def close(self) -> None:
        """Nothing is held."""


def _changed(before: os.stat_result, now: os.stat_result) -> bool:
    # Not ctime: a link made to the file or a permission changed does not touch its bytes.
    return (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns)
