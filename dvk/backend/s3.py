"""S3 through s3fs: its session, event loop and signing; the requests are ours.

s3fs's own `cat_file`, `info` and `find` send extra requests (a listing after each 404), answer from
caches and drop the headers that say how long the object is. Each method here is exactly one request by
`S3FileSystem._call_s3`, whose answer keeps its headers; only `pipe_file` is used as it is, for its
multipart uploads of 100 MiB and more.

Importing this module costs 350 ms and is left to `dvk.backend.locate`, on the first use of an s3 remote.
"""

from __future__ import annotations

import asyncio
import io
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec.asyn
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from s3fs import S3FileSystem

from dvk.backend.contract import Buffer, Listed, WrongAnswer
from dvk.backend.pace import SLOWEST_BYTES_PER_S, Pace, content, room_for
from dvk.backend.remote_errors import MISSING, code_of, redirected
from dvk.backend.remote_fs import seconds_of
from dvk.backend.settings import RemoteSettings
from dvk.errors import RemoteError

_T = TypeVar("_T")

_MULTIPART_BYTES = 100 << 20
_PIECE_BYTES = 1 << 20  # aiohttp gathers as much as it is asked for, and then makes another copy
_TICK_S = 0.5
_SPEECHLESS = ("400", "403", "301", "307", "Forbidden", "Bad Request")


class S3Medium:
    """Objects below `prefix` of one bucket. One event loop thread serves all threads that call."""

    def __init__(self, bucket: str, prefix: str, *, settings: RemoteSettings, environ: Mapping[str, str]) -> None:
        self._bucket = bucket
        self._start = f"{prefix}/" if prefix else ""
        self._grace_s = settings.connect_timeout_s + settings.read_timeout_s
        self._fs = _filesystem(settings, environ)

    def head(self, key: str) -> int | None:
        return int(self._head(key)["ContentLength"])

    def mark(self, key: str) -> tuple[int, str, str, str] | None:
        """Size, etag, version and time of an object (`dvk.backend.locate.MarkedMedium`)."""
        try:
            answer = self._head(key)
        except Exception as e:
            if code_of(e) in MISSING:
                return None
            raise
        version = str(answer.get("VersionId") or "")
        etag = str(answer.get("ETag") or "").strip('"')
        return int(answer["ContentLength"]), etag, "" if version == "null" else version, _iso(answer)

    def marks(self, prefix: str) -> Iterator[tuple[str, tuple[int, str, str, str]]]:
        """The same of all objects that start with `prefix`, without versions."""
        for row in self._rows(prefix):
            yield row["Key"], (int(row["Size"]), str(row.get("ETag") or "").strip('"'), "", _iso(row))

    def _head(self, key: str) -> Any:
        async def head() -> Any:
            place = {"Bucket": self._bucket, "Key": self._start + key}
            try:
                return await self._fs._call_s3("head_object", **place)
            except Exception as e:
                if code_of(e) in _SPEECHLESS:
                    # The answer to a HEAD has no body, so a wrong clock looks like a wrong key. Ask for a byte.
                    await self._fs._call_s3("get_object", Range="bytes=0-0", **place)
                raise

        return self._run(head, 0)

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        async def read() -> tuple[bytes, int | None]:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._start + key)
            total = int(answer["ContentLength"])
            async with answer["Body"] as body:
                return (b"", total) if total > limit else (await self._read_up_to(body, limit + 1, total), total)

        return self._run(read, limit)

    def read_range(self, key: str, offset: int, length: int) -> tuple[bytes, int | None]:
        async def read() -> tuple[bytes, int | None]:
            answer = await self._fs._call_s3(
                "get_object",
                Bucket=self._bucket,
                Key=self._start + key,
                Range=f"bytes={offset}-{offset + length - 1}",
            )
            async with answer["Body"] as body:
                total = _total_of(answer, offset, length)
                return await self._read_up_to(body, length + 1, min(length, total - offset)), total

        return self._run(read, length)

    def write(self, key: str, parts: Sequence[Buffer], *, create_only: bool) -> None:
        path = f"{self._bucket}/{self._start}{key}"
        body = _Body(parts)

        async def write() -> None:
            if body.size >= _MULTIPART_BYTES:
                await self._fs._pipe_file(path, b"".join(parts), mode="create" if create_only else "overwrite")
                return
            only_new = {"IfNoneMatch": "*"} if create_only else {}
            await self._watch(
                body, self._fs._call_s3("put_object", Bucket=self._bucket, Key=self._start + key, Body=body, **only_new)
            )

        self._run(write, body.size)

    async def _watch(self, body: _Body, call: Awaitable[object]) -> None:
        """Await `call` as long as it takes bytes from `body`.

        The client's own read timeout starts only when the connection has the last of them, which it may never have:
        what was taken can be stuck before a full buffer of the socket. So there is a limit from the last one taken on.
        """
        task = asyncio.ensure_future(call)
        try:
            pace = Pace(self._grace_s)
            all_taken_at = None
            while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
                if body.taken < body.size:
                    pace.check(body.taken)
                    all_taken_at = None  # it may be sent once more
                elif all_taken_at is None:
                    all_taken_at = time.monotonic()
                elif time.monotonic() - all_taken_at > 2 * self._grace_s:
                    raise TimeoutError(f"no answer {2 * self._grace_s:.0f} s after the last byte")
            await task
        finally:
            task.cancel()

    async def _read_up_to(self, body: Any, limit: int, expected: int) -> bytes:
        """All of a body, or its first `limit` bytes when it is longer. `expected` is how long it says that it is."""
        pace = Pace(self._grace_s)
        whole = room_for(expected)
        while whole.tell() < limit:
            part = await body.read(min(limit - whole.tell(), _PIECE_BYTES))
            if not part:
                break
            whole.write(part)
            pace.check(whole.tell())
        return content(whole)

    def walk(self, prefix: str) -> Iterator[Listed]:
        for row in self._rows(prefix):
            yield Listed(row["Key"], int(row["Size"]), seconds_of(row.get("LastModified")))

    def _rows(self, prefix: str) -> Iterator[dict[str, Any]]:
        """What a listing says of each object, with keys below our prefix."""
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._start + prefix, **more)
            for row in page.get("Contents", ()):
                path = str(row["Key"])
                if path.startswith(self._start):
                    yield {**row, "Key": path[len(self._start) :]}
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == more.get("ContinuationToken"):
                raise RemoteError("the server cut a listing and does not say how to go on")
            more = {"ContinuationToken": token}

    def remove(self, key: str) -> None:
        self._call("delete_object", Key=self._start + key)

    def close(self) -> None:
        """Close the connections on the loop that owns them."""
        creator = getattr(self._fs, "_s3creator", None)
        if creator is not None:
            S3FileSystem.close_session(self._fs.loop, creator)

    def _call(self, method: str, **arguments: Any) -> Any:
        async def call() -> Any:
            return await self._fs._call_s3(method, Bucket=self._bucket, **arguments)

        return self._run(call, 0)

    def _run(self, work: Callable[[], Awaitable[_T]], size_bytes: int) -> _T:
        """Run on the event loop, with a limit on the whole; cancelled there when it is over."""
        limit_s = self._grace_s + size_bytes / SLOWEST_BYTES_PER_S

        async def limited() -> _T:
            return await asyncio.wait_for(work(), limit_s)

        result: _T = fsspec.asyn.sync(self._fs.loop, limited)
        return result


class _Body(io.RawIOBase):
    """The bytes of an upload as they lie in memory, which tell how far the connection has taken them."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._parts = [view for part in parts if (view := memoryview(part).cast("B")).nbytes]
        self._starts = list(accumulate((part.nbytes for part in self._parts), initial=0))
        self.size = self._starts[-1]
        self.taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        end = self.size if size is None or size < 0 else min(self.taken + size, self.size)
        found: list[memoryview] = []
        while self.taken < end:
            at = bisect_right(self._starts, self.taken) - 1
            piece = self._parts[at][self.taken - self._starts[at] : end - self._starts[at]]
            found.append(piece)
            self.taken += piece.nbytes
        return b"".join(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.taken, io.SEEK_END: self.size}[whence]
        self.taken = min(max(base + offset, 0), self.size)
        return self.taken

    def tell(self) -> int:
        return self.taken

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def __len__(self) -> int:
        return self.size


class _Stays(AIOHTTPSession):  # type: ignore[misc]  # untyped
    """Takes a redirect for what it is, an answer, as botocore itself does.

    aiobotocore follows it to any host, and takes the session token (`X-Amz-Security-Token`) along.
    """

    async def _get_session(self, proxy_url: str | None) -> Any:
        return _NoRedirects(await super()._get_session(proxy_url))

    async def send(self, request: Any) -> Any:
        answer = await super().send(request)
        asked, said = urlsplit(request.url), urlsplit(str(answer.url))
        if (asked.scheme, asked.netloc) != (said.scheme, said.netloc):  # another version of it, where the above is void
            raise redirected(said.netloc)
        # Without a region, botocore would look for one at this same server, without end.
        if answer.status_code in (301, 302, 303, 307, 308) and "x-amz-bucket-region" not in answer.headers:
            raise redirected(urlsplit(str(answer.headers.get("location", ""))).netloc)
        return answer


class _NoRedirects:
    """An aiohttp session that follows no redirect."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **arguments: Any) -> Any:
        return await self._session.request(method, allow_redirects=False, **arguments)


def _iso(answer: Mapping[str, Any]) -> str:
    """The time of the last change, as S3 tells it."""
    when = answer.get("LastModified")
    return when.isoformat() if isinstance(when, datetime) else ""


def _total_of(answer: Mapping[str, Any], offset: int, length: int) -> int:
    """The object's size from "bytes 0-99/1234".

    Raises:
        RemoteError: the answer is about another range than the one that was asked for.
    """
    text = str(answer.get("ContentRange") or "")
    span, _, total = text.removeprefix("bytes ").partition("/")
    first, _, last = span.partition("-")
    if not (first.isdigit() and last.isdigit() and total.isdigit()):
        raise RemoteError("the server ignores ranges", hint="`dvk remote check` looks closer")
    if int(first) != offset or int(last) != min(offset + length, int(total)) - 1:
        raise WrongAnswer(f"the server answered another range ({text[:60]!r})", transient=True)
    return int(total)


def _filesystem(settings: RemoteSettings, environ: Mapping[str, str]) -> Any:
    """An s3fs filesystem without caches and without retries of its own.

    Settings win over the environment, and that over the files of the AWS tools, as with those tools.
    Sources that are neither (container, instance and web identity roles) botocore finds by itself, in the
    environment of the process.
    """
    profile = settings.profile or environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE")
    session = AioSession(profile=profile or None)
    for variable, value in (
        ("config_file", environ.get("AWS_CONFIG_FILE")),
        ("credentials_file", environ.get("AWS_SHARED_CREDENTIALS_FILE")),
        ("ca_bundle", environ.get("AWS_CA_BUNDLE")),
        ("region", settings.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")),
    ):
        if value:
            session.set_config_variable(variable, value)
    # A profile that was asked for by name outranks keys that happen to lie in the environment.
    if not settings.profile and environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        session.set_credentials(
            environ["AWS_ACCESS_KEY_ID"],
            environ["AWS_SECRET_ACCESS_KEY"],
            environ.get("AWS_SESSION_TOKEN") or environ.get("AWS_SECURITY_TOKEN") or None,
        )
    config: dict[str, Any] = {
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "max_pool_connections": settings.max_concurrency,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "http_session_cls": _Stays,
    }
    if settings.addressing != "auto":
        config["s3"] = {"addressing_style": settings.addressing}
    if settings.checksum == "when_required":
        config["request_checksum_calculation"] = "when_required"
        config["response_checksum_validation"] = "when_required"
    extra = {}
    if settings.sse:
        extra["ServerSideEncryption"] = settings.sse
    if settings.sse_kms_key_id:
        extra["SSEKMSKeyId"] = settings.sse_kms_key_id
    endpoint = settings.endpoint_url or environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    fs = S3FileSystem(
        anon=settings.anon,
        endpoint_url=endpoint or None,
        session=session,
        config_kwargs=config,
        s3_additional_kwargs=extra,
        max_concurrency=settings.max_concurrency,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return fs
