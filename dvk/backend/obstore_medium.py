"""S3, Google Cloud Storage and Azure through obstore: the fast way, beside a slow one that can explain.

    medium = ObstoreMedium(plan, prefix, settings=settings, slow=lambda: S3Medium(...))
    medium.read_range("p/ab/...", 0, 8 << 20)

obstore (Rust) needs a quarter of the processor time of s3fs for a small request and imports in 12 ms instead of 300.
But it tells of a refusal only a text, without the headers that name the right region, the server's clock or the pause
it asks for; it shows no progress of an upload; and it does not survive a fork. So each way does what it is good at:

- What succeeds, and the plain answers (no such object, already there, beyond the end), come the fast way.
- Any other refusal is asked once more the slow way (s3fs), whose error has everything in it. What only the slow way can
  do is left to it from then on.
- A server or network in trouble: the error is transient, and for a minute all goes the slow way, which hears how long
  the server wants to be left alone.
- Uploads above 256 KiB go the slow way: the time is the same, and a stalled one is noticed.
- Deletes go the slow way: obstore follows redirects, though with nothing secret (`obstore_options` sees to that).
- In a forked child all goes the slow way: the threads of obstore stayed with the parent.

Where there is no slow way (Google, Azure), the text is taken apart.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import obstore
import obstore.store

from dvk.backend.contract import Buffer, Listed
from dvk.backend.obstore_options import Plan
from dvk.backend.pace import SLOWEST_BYTES_PER_S, Pace, content, room_for
from dvk.backend.remote_fs import Medium, seconds_of
from dvk.backend.settings import RemoteSettings
from dvk.backend.text import redact
from dvk.errors import DvkError

_T = TypeVar("_T")

#: Larger uploads go the slow way where there is one, and in parts where there is none.
SMALL_PUT_BYTES = 256 << 10
SLOW_FOR_S = 60.0
_PIECE_BYTES = 8 << 10  # so often the pace of a download is looked at, if it comes that slowly
_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 4
_SLOWEST_PART_BYTES_PER_S = 32 << 10
_NO_LIMIT = timedelta(days=1)  # of a download: its pace is watched here
_STATUS = re.compile(r"Server returned non-2xx status code: ([0-9]{3})[^:]*: ?(.*)", re.DOTALL)
_ELEMENT = re.compile(r"<(Code|Message|Region|BucketName)>([^<]{0,300})</")
_BUSY = (429, 503)  # these may ask for a pause, and obstore does not tell
_TRANSIENT = (408, 429, 500, 502, 503, 504)

_NO_TOKEN = re.compile(r"token request|/token[? ]|169\.254\.169\.254|[Cc]redential")


class CredentialRetrievalError(Exception):
    """Called as botocore's, which `remote_errors` knows."""


class CertificateError(Exception):
    """Called as Python's; likewise."""


class Refused(Exception):
    """An answer of the server, in the shape of botocore's `ClientError`."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        found: dict[str, str] = {}
        for name, value in _ELEMENT.findall(body):
            found.setdefault(name, value)
        headers = {"retry-after": "1"} if status in _BUSY else {}
        self.response: dict[str, dict[str, Any]] = {
            "Error": {"Code": found.pop("Code", str(status)), **found},
            "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
        }
        super().__init__(f"{status} {self.code}")

    @property
    def code(self) -> str:
        """The server's word for it, or the status."""
        return str(self.response["Error"]["Code"])


class ObstoreMedium:
    """Objects below `prefix` of what `plan` leads to. Many threads may use it at once.

    Args:
        slow: makes the other way to the same place; None where there is none.
    """

    def __init__(
        self, plan: Plan, prefix: str, *, settings: RemoteSettings, slow: Callable[[], Medium] | None = None
    ) -> None:
        self._start = f"{prefix}/" if prefix else ""
        self._make_slow = slow
        self._slow_medium: Medium | None = None
        self._slow_lock = threading.Lock()
        self._slow_until = 0.0
        self._grace_s = settings.connect_timeout_s + settings.read_timeout_s
        wait = timedelta(seconds=settings.read_timeout_s)
        # obstore knows one limit for all requests of a store, and small ones shall not wait as long as large ones.
        small = timedelta(seconds=self._grace_s + SMALL_PUT_BYTES / SLOWEST_BYTES_PER_S)
        self._quick = _store(plan, timeout=small, read_timeout=wait)
        self._loads = _store(plan, timeout=_NO_LIMIT, read_timeout=wait)
        part = timedelta(seconds=self._grace_s + _PART_BYTES / _SLOWEST_PART_BYTES_PER_S)
        self._parts = None if slow else _store(plan, timeout=part)

    def head(self, key: str) -> int | None:
        def head() -> int:
            return int(obstore.head(self._quick, self._start + key)["size"])

        return self._ask(head, lambda slow: slow.head(key))

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        def read() -> tuple[bytes, int | None]:
            answer = obstore.get(self._loads, self._start + key)
            total = int(answer.meta["size"])
            return (b"", total) if total > limit else (self._all_of(answer, limit + 1), total)

        return self._ask(read, lambda slow: slow.read(key, limit))

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        def read() -> tuple[bytes, int | None]:
            options: Any = {"range": (offset, offset + length)}
            answer = obstore.get(self._loads, self._start + key, options=options)
            return self._all_of(answer, length + 1), int(answer.meta["size"])

        return self._ask(read, lambda slow: slow.read_range(key, offset, length))

    def write(self, key: str, parts: Sequence[Buffer], *, create_only: bool) -> None:
        size = sum(memoryview(part).nbytes for part in parts)
        if size > SMALL_PUT_BYTES and self._make_slow is not None:
            self._slow().write(key, parts, create_only=create_only)
            return
        mode: Any = "create" if create_only else "overwrite"

        def write() -> None:
            data = b"".join(parts)
            if size <= SMALL_PUT_BYTES or self._parts is None:
                obstore.put(self._quick, self._start + key, data, mode=mode, use_multipart=False)
            else:
                many = size > _PART_BYTES and not create_only
                obstore.put(
                    self._parts,
                    self._start + key,
                    data,
                    mode=mode,
                    use_multipart=many,
                    chunk_size=_PART_BYTES,
                    max_concurrency=_PARTS_AT_ONCE,
                )

        self._ask(write, lambda slow: slow.write(key, parts, create_only=create_only))

    def walk(self, prefix: str) -> Iterator[Listed]:
        folder, _, rest = prefix.rpartition("/")
        # obstore lists folders. What starts with a longer prefix lies behind the prefix without its last letter, and
        # S3 lists in order; one letter narrows nothing down.
        if self._goes_slow() or (len(rest) == 1 and self._make_slow is not None):
            yield from self._slow().walk(prefix)
            return
        offset = self._start + prefix[:-1] if len(rest) > 1 and self._make_slow is not None else None
        wanted = self._start + prefix
        began = False
        pages: Any = None

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(obstore.list(self._quick, self._start + folder, offset=offset, chunk_size=1000))
            return next(pages, None)

        while True:
            try:
                page = _interruptibly(next_page)
            except Exception as e:
                error = self._understand(e)
                if error is None and not began:
                    yield from self._slow().walk(prefix)
                    return
                raise error or ConnectionError("a listing broke") from e
            if page is None:
                return
            path = ""
            for row in page:
                began = True
                path = str(row["path"])
                if path.startswith(self._start):
                    yield Listed(path[len(self._start) :], int(row["size"]), seconds_of(row["last_modified"]))
            if offset is not None and path > wanted and not path.startswith(wanted):
                return

    def remove(self, key: str) -> None:
        if self._make_slow is not None:  # which follows no redirect
            self._slow().remove(key)
        else:
            self._ask(lambda: obstore.delete(self._quick, self._start + key), lambda slow: slow.remove(key))

    def close(self) -> None:
        with self._slow_lock:
            slow, self._slow_medium = self._slow_medium, None
        if slow is not None:
            slow.close()

    # ------------------------------------------------------------ which way

    def _ask(self, fast: Callable[[], _T], slow: Callable[[Medium], _T]) -> _T:
        if self._goes_slow():
            return slow(self._slow())
        try:
            return _interruptibly(fast)
        except Exception as e:
            error = self._understand(e)
            if error is not None:
                raise error from e
        answer = slow(self._slow())
        self._slow_until = float("inf")  # it can what the fast way cannot
        return answer

    def _goes_slow(self) -> bool:
        return self._make_slow is not None and time.monotonic() < self._slow_until

    def _slow(self) -> Medium:
        with self._slow_lock:
            if self._slow_medium is None:
                assert self._make_slow is not None
                self._slow_medium = self._make_slow()
            return self._slow_medium

    def _understand(self, e: Exception) -> Exception | None:
        """What to raise for an exception of obstore; None: ask the slow way."""
        if isinstance(e, DvkError):
            return e
        said, _, detail = str(e).partition("\n\nDebug source:")
        refused = _STATUS.search(said)
        alone = self._make_slow is None
        if alone and _NO_TOKEN.search(said):
            return CredentialRetrievalError(redact(said))
        if refused is not None:
            return self._refused(Refused(int(refused[1]), refused[2]))
        if "certificate" in detail:
            return CertificateError(_cause(said, detail)) if alone else None
        if isinstance(e, TimeoutError) or "HTTP error" in said:
            self._rest()
            return e if isinstance(e, TimeoutError) else ConnectionError(_cause(said, detail))
        return RuntimeError(redact(said)) if alone else None

    def _refused(self, answer: Refused) -> Exception | None:
        if answer.status == 404 and answer.code in ("NoSuchKey", "BlobNotFound", "404"):
            return FileNotFoundError("no such object")
        if answer.status == 412:
            return FileExistsError("already there")
        if answer.status == 416:
            return answer
        if answer.status in _TRANSIENT:
            self._rest()
            return answer
        return answer if self._make_slow is None else None

    def _rest(self) -> None:
        """Leave it to the slow way for a while."""
        self._slow_until = max(self._slow_until, time.monotonic() + SLOW_FOR_S)

    def _all_of(self, answer: Any, limit: int) -> bytes:
        """The body of an answer, or a little more than its first `limit` bytes when it is longer."""
        pace = Pace(self._grace_s)
        begin, end = answer.range
        whole = room_for(min(end - begin, limit))
        for part in answer.stream(min_chunk_size=_PIECE_BYTES):
            whole.write(part)
            pace.check(whole.tell())
            if whole.tell() >= limit:
                break
        return content(whole)


def _store(plan: Plan, *, timeout: timedelta, read_timeout: timedelta | None = None) -> Any:
    client = {**plan.client, "timeout": timeout} | ({} if read_timeout is None else {"read_timeout": read_timeout})
    # `RetryBackend` repeats.
    options: dict[str, Any] = {"config": dict(plan.config), "client_options": client}
    options["retry_config"] = {"max_retries": 0}
    if plan.keys is not None:
        options["credential_provider"] = plan.keys
    make = {"s3": obstore.store.S3Store, "gcs": obstore.store.GCSStore, "azure": obstore.store.AzureStore}[plan.kind]
    return make(plan.place, **options)


def _interruptibly(work: Callable[[], _T]) -> _T:
    """Do `work` so that Ctrl-C ends the waiting: inside of obstore, Python does not see signals."""
    if threading.current_thread() is not threading.main_thread():
        return _without_panic(work)
    done = threading.Event()
    result: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            result.append(_without_panic(work))
        except Exception as e:
            errors.append(e)
        finally:
            done.set()

    threading.Thread(target=run, daemon=True).start()
    done.wait()
    if errors:
        raise errors[0]
    return result[0]


def _without_panic(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except BaseException as e:
        if type(e).__name__ != "PanicException":  # of Rust, which Python must not take for an end of the process
            raise
        raise RuntimeError(f"obstore: {redact(str(e))}") from e


def _cause(said: str, detail: str) -> str:
    """Why a request broke, in a few words: the text has the address and the time, the detail the system's reason."""
    for sign, words in (
        ("TimedOut", "timed out"),
        ("ConnectionRefused", "connection refused"),
        ("ConnectionReset", "connection reset by the other side"),
        ("dns error", "the name of the host is not known"),
        ("IncompleteBody", "the answer was cut"),
        ("certificate", "the server's certificate is not trusted"),
    ):
        if sign in detail:
            return words
    return redact(said.rpartition(" - ")[2])
