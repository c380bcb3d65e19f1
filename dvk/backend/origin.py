"""Where imported data comes from: one object, or a folder of them, at a URL of somebody else.

    url = parse_origin_url("https://example.org/iris.csv", cwd=b"/")
    origin = dvk.backend.locate.open_origin(url, settings=RemoteSettings(), environ=environ)
    mark = origin.look()                          # size, etag, version, time: one request, no content
    mark = origin.take(dir_fd, b"iris.csv")       # the content, and the mark that belongs to exactly these bytes

Problem: nothing here has a hash to check against, servers cut answers, and an object may be replaced while it is read.
So the length of every answer is checked, the mark is asked again at the end, and a difference is `ChangedWhileRead`.

HTTP is in `dvk.backend.http_origin`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from msgspec import Struct

from dvk.backend.disk import storage_error, write_at
from dvk.backend.locate import MarkedMedium, RemoteUrl, parse_remote_url
from dvk.backend.remote_errors import translate_remote
from dvk.backend.text import holds_secret, printable, redact
from dvk.errors import ChangedWhileRead, DvkError, NotFound, Refused, RemoteError, UsageError
from dvk.events import Meter, OnEvent, ignore

_T = TypeVar("_T")

HTTP = ("http", "https")
_HTTP_URL = re.compile(r"(?i)(https?)://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?(/[^#]*)")
_MAX_URL = 2048
_PART_BYTES = 8 << 20
_AT_ONCE = 8  # requests under way
_WAITS_S = (0.2, 1.0, 3.0)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Mark(Struct, frozen=True):
    """What a place says of an object, so that a later look can tell whether it is another one now."""

    size: int | None = None
    etag: str = ""
    version: str = ""
    modified: str = ""

    def same(self, other: Mark) -> bool:
        """Whether both speak of the same content for certain. What says too little is not the same."""
        if self.size is not None and other.size is not None and self.size != other.size:
            return False
        if self.etag and other.etag:
            # A weak one may stay where something changed that the server finds unimportant; a time may know better.
            told = self.etag.startswith("W/") and self.modified and other.modified
            return self.etag == other.etag and (not told or self.modified == other.modified)
        if self.version and other.version:
            return self.version == other.version
        return bool(self.modified) and self.modified == other.modified and self.size == other.size


class Origin(Protocol):
    """One place. Not for several threads."""

    url: RemoteUrl
    requests: int  #: how often it was asked so far

    def look(self) -> Mark:
        """What is there now, without its content.

        Raises:
            NotFound: nothing. RemoteDenied, RemoteUnreachable, RemoteError: it cannot be told.
        """

    def take(self, dir_fd: int, name: bytes, *, on_event: OnEvent = ignore) -> Mark:
        """Write the content as a new file (or folder) `name` of an open folder; its mark.

        Raises:
            ChangedWhileRead: it was replaced meanwhile. Otherwise as `look`; StorageError, StorageFull: of the disk.
        """

    def close(self) -> None:
        """Let go of connections."""


def parse_origin_url(text: str, *, cwd: bytes) -> RemoteUrl:
    """Check what `dvk import` is given: an HTTP URL (with a query), the URL of an object, or a path of this machine.

    A slash at the end says that it is a folder of objects.

    Raises:
        UsageError: it makes no sense, or would put a secret into a commit.
    """
    shown = redact(text)
    if not text or not text.isprintable() or len(text) > _MAX_URL:
        raise UsageError("nothing that can be imported: empty, too long, or with control characters", subject=shown)
    if "://" not in text:
        full = os.path.abspath(os.path.join(cwd, os.fsencode(text)))
        return parse_remote_url(os.fsdecode(full))
    if not text.lower().startswith(("http://", "https://")):
        url = parse_remote_url(text)
        if url.scheme != "file" and not url.path:
            raise UsageError("names a whole bucket or host", subject=shown, hint="name an object, or a folder with /")
        return RemoteUrl(url.scheme, url.authority, url.path + ("/" if text.endswith("/") and not url.is_local else ""))
    if "@" in text.split("://", 1)[1].partition("/")[0] or holds_secret(text):
        raise UsageError(
            "the URL holds a password, a token or a signature, and would be committed with the pointer",
            subject=shown,
            hint="download it and `dvk add` the file, or import it from a URL without secrets (s3://, a .netrc file)",
        )
    match = _HTTP_URL.fullmatch(text)
    if match is None:
        raise UsageError("not the URL of a file", subject=shown, hint="like https://example.org/data.csv")
    return RemoteUrl(match[1].lower(), match[2] + (match[3] or ""), match[4][1:])


def name_of(url: RemoteUrl) -> bytes:
    """The name that the data has there; empty when the URL shows none."""
    path = url.path.partition("?")[0] if url.scheme in HTTP else url.path
    return os.fsencode(path.rstrip("/").rpartition("/")[2])


# ------------------------------------------------------------ this machine


class LocalOrigin:
    """A file of this machine."""

    def __init__(self, url: RemoteUrl) -> None:
        self.url, self.requests = url, 0
        self._path = os.fsencode(url.path)

    def look(self) -> Mark:
        self.requests += 1
        fd = self._open()
        try:
            return self._mark(os.fstat(fd))
        finally:
            os.close(fd)

    def take(self, dir_fd: int, name: bytes, *, on_event: OnEvent = ignore) -> Mark:
        self.requests += 1
        source = self._open()
        try:
            before = os.fstat(source)
            meter = Meter(on_event, "copy", total_bytes=before.st_size)
            with new_file(dir_fd, name) as target, disk_errors(self._path):
                os.fchmod(target, 0o755 if before.st_mode & 0o100 else 0o644)
                written = 0
                while data := os.read(source, _PART_BYTES):
                    write_at(target, data, written)
                    written += len(data)
                    meter.advance(bytes_=len(data))
            after = os.fstat(source)
            if written != before.st_size or self._mark(before) != self._mark(after):
                raise changed(self.url)
            return self._mark(after)
        finally:
            os.close(source)

    def close(self) -> None:
        return

    def _open(self) -> int:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFound("there is no such file", subject=printable(self.url.path)) from error
        except OSError as error:
            raise storage_error(error, printable(self.url.path)) from error
        if not os.path.isfile(self._path):
            os.close(fd)
            raise Refused(
                "is no file",
                subject=printable(self.url.path),
                hint="a repository goes to --repo; else copy it here and `dvk add` it",
            )
        return fd

    @staticmethod
    def _mark(found: os.stat_result) -> Mark:
        return Mark(found.st_size, modified=_iso(found.st_mtime_ns))


def _iso(ns: int) -> str:
    """A time to the nanosecond."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ns // 1_000_000_000))}.{ns % 1_000_000_000:09d}Z"


# ------------------------------------------------------------ buckets and their kind


class MediumOrigin:
    """An object of a bucket (or behind ssh), or with a slash at the end all objects below."""

    def __init__(self, url: RemoteUrl, medium: MarkedMedium) -> None:
        self.url, self.requests = url, 0
        self._medium, self._lock = medium, threading.Lock()
        self._folder = url.path.endswith("/")

    def look(self) -> Mark:
        if self._folder:
            return _mark_of(self._objects())
        found = self._ask(lambda: self._medium.mark(self.url.path))
        if found is None:
            raise NotFound("there is no such object", subject=str(self.url), hint="a folder of objects ends in /")
        return Mark(*found)

    def take(self, dir_fd: int, name: bytes, *, on_event: OnEvent = ignore) -> Mark:
        if not self._folder:
            before = self.look()
            meter = Meter(on_event, "download", total_bytes=before.size)
            self._take_one(self.url.path, before, dir_fd, name, meter)
            if not before.same(self.look()):
                raise changed(self.url)
            return before
        objects = self._objects()
        meter = Meter(on_event, "download", total_bytes=sum(m.size or 0 for _, m in objects), total_items=len(objects))
        os.mkdir(name, dir_fd=dir_fd)

        def take(row: tuple[str, Mark]) -> None:
            key, mark = row
            inner = os.fsencode(key[len(self.url.path) :])
            top = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
            try:
                *above, last = inner.split(b"/")
                for part in above:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=top)
                    below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                    os.close(top)
                    top = below
                self._take_one(key, mark, top, last, meter)
            except OSError as error:
                raise storage_error(error, printable(key)) from error
            finally:
                os.close(top)
            meter.advance(items=1)

        small = [row for row in objects if (row[1].size or 0) <= _PART_BYTES]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dvk-import") as pool:
            for _ in pool.map(take, small):  # of one request each; larger ones are several by themselves
                pass
        for row in objects:
            if (row[1].size or 0) > _PART_BYTES:
                take(row)
        if _mark_of(self._objects()) != _mark_of(objects):
            raise changed(self.url)
        return _mark_of(objects)

    def close(self) -> None:
        self._medium.close()

    def _objects(self) -> list[tuple[str, Mark]]:
        """Everything below the folder, by key."""
        rows = self._ask(lambda: list(self._medium.marks(self.url.path)))
        found = sorted((key, Mark(*mark)) for key, mark in rows if key.startswith(self.url.path))
        found = [(key, mark) for key, mark in found if not key.endswith("/")]  # "folders" that consoles make
        if not found:
            raise NotFound("there is nothing below it", subject=str(self.url))
        for key, _ in found:
            parts = key[len(self.url.path) :].split("/")
            if any(p in ("", ".", "..") or "\0" in p or len(os.fsencode(p)) > 255 for p in parts):
                raise Refused("the name of an object can be no path of files", subject=f"{self.url}: {printable(key)}")
        return found

    def _take_one(self, key: str, mark: Mark, dir_fd: int, name: bytes, meter: Meter) -> None:
        size = mark.size or 0
        with new_file(dir_fd, name) as target:
            starts = range(0, size, _PART_BYTES)

            def part(start: int) -> None:
                length = min(_PART_BYTES, size - start)
                data, total = self._ask(lambda: self._medium.read_range(key, start, length))
                if total is not None and total != size:
                    raise changed(self.url)
                if len(data) != length:
                    raise RemoteError(
                        f"the server answered {len(data):,} bytes where {length:,} were asked for",
                        subject=str(self.url),
                    )
                with disk_errors(name):
                    write_at(target, data, start)
                meter.advance(bytes_=length)

            with ThreadPoolExecutor(_AT_ONCE if len(starts) > 1 else 1, thread_name_prefix="dvk-import") as pool:
                for _ in pool.map(part, starts):
                    pass

    def _ask(self, request: Callable[[], _T]) -> _T:
        def counted() -> _T:
            with self._lock:
                self.requests += 1
            try:
                return request()
            except Exception as error:
                raise translate_remote(error, name=str(self.url)) from error

        return again(counted)


def _mark_of(objects: Sequence[tuple[str, Mark]]) -> Mark:
    """One mark for many objects: its etag changes when any of theirs does."""
    text = "".join(f"{key}\0{m.size}\0{m.etag or m.version or m.modified}\n" for key, m in objects)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return Mark(sum(m.size or 0 for _, m in objects), etag=f"sha256-of-{len(objects)}:{digest}")


# ------------------------------------------------------------ for every kind


def again(request: Callable[[], _T]) -> _T:
    """Ask, and ask again for what fails for a moment."""
    for wait_s in (*_WAITS_S, None):
        try:
            return request()
        except RemoteError as error:
            if not error.transient or wait_s is None:
                raise
            time.sleep(min(30.0, max(wait_s, error.retry_after_s or 0.0)))
    raise AssertionError("unreachable")


@contextlib.contextmanager
def new_file(dir_fd: int, name: bytes) -> Iterator[int]:
    """A new file to write into."""
    with disk_errors(name):
        fd = os.open(name, _NEW, 0o644, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def disk_errors(name: bytes) -> Iterator[None]:
    """Errors of our own disk, which are no errors of the place that is read."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, printable(os.fsdecode(name)) or "the download") from error


def changed(url: RemoteUrl) -> DvkError:
    """The error for a place whose content was replaced while it was read."""
    return ChangedWhileRead(
        "it was replaced there while dvk was reading it; nothing was recorded",
        subject=redact(str(url)),
        hint="run the command again",
    )
