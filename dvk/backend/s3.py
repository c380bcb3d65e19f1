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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import fsspec.asyn
from aiobotocore.session import AioSession
from s3fs import S3FileSystem

from dvk.backend.contract import WrongAnswer
from dvk.backend.remote_errors import code_of
from dvk.backend.settings import RemoteSettings
from dvk.errors import RemoteError

_T = TypeVar("_T")

# No call may take for ever even if a byte arrives in every read timeout. The floor is for one connection of many.
_SLOWEST_BYTES_PER_S = 4 << 10
_MULTIPART_BYTES = 100 << 20
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
        async def head() -> Any:
            place = {"Bucket": self._bucket, "Key": self._start + key}
            try:
                return await self._fs._call_s3("head_object", **place)
            except Exception as e:
                if code_of(e) in _SPEECHLESS:
                    # The answer to a HEAD has no body, so a wrong clock looks like a wrong key. Ask for a byte.
                    await self._fs._call_s3("get_object", Range="bytes=0-0", **place)
                raise

        return int(self._run(head, 0)["ContentLength"])

    def read(self, key: str, limit: int) -> tuple[bytes, int | None]:
        async def read() -> tuple[bytes, int | None]:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=self._start + key)
            total = int(answer["ContentLength"])
            async with answer["Body"] as body:
                return (b"", total) if total > limit else (await self._read_up_to(body, limit + 1), total)

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
                return await self._read_up_to(body, length + 1), total

        return self._run(read, length)

    def write(self, key: str, data: bytes, *, create_only: bool) -> None:
        path = f"{self._bucket}/{self._start}{key}"

        async def write() -> None:
            if len(data) >= _MULTIPART_BYTES:
                await self._fs._pipe_file(path, data, mode="create" if create_only else "overwrite")
                return
            only_new = {"IfNoneMatch": "*"} if create_only else {}
            body = _Body(data)
            await self._watch(
                body, self._fs._call_s3("put_object", Bucket=self._bucket, Key=self._start + key, Body=body, **only_new)
            )

        self._run(write, len(data))

    async def _watch(self, body: _Body, call: Awaitable[object]) -> None:
        """Await `call` as long as it takes bytes from `body`: the read timeout starts only after the last of them."""
        task = asyncio.ensure_future(call)
        try:
            pace = _Pace(self._grace_s)
            while not (await asyncio.wait({task}, timeout=_TICK_S))[0]:
                if body.taken < body.size:
                    pace.check(body.taken)
            await task
        finally:
            task.cancel()

    async def _read_up_to(self, body: Any, limit: int) -> bytes:
        """All of a body, or its first `limit` bytes when it is longer."""
        pace = _Pace(self._grace_s)
        parts = []
        left = limit
        while left > 0:
            part = await body.read(left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
            pace.check(limit - left)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._start + prefix, **more)
            for row in page.get("Contents", ()):
                path = str(row["Key"])
                if path.startswith(self._start):
                    yield path[len(self._start) :], int(row["Size"])
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
        limit_s = self._grace_s + size_bytes / _SLOWEST_BYTES_PER_S

        async def limited() -> _T:
            return await asyncio.wait_for(work(), limit_s)

        result: _T = fsspec.asyn.sync(self._fs.loop, limited)
        return result


class _Body(io.BytesIO):
    """The bytes of an upload, which tell how far the connection has taken them."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = len(data)
        self.taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.taken = self.tell()
        return found


class _Pace:
    """Ends a transfer that stalls or trickles: after a grace it must have kept up a slowest rate."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._began = self._moved_at = time.monotonic()
        self._moved = 0

    def check(self, moved: int) -> None:
        """Raises `TimeoutError` unless enough bytes have moved by now."""
        now = time.monotonic()
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        if now - self._moved_at > self._grace_s:
            raise TimeoutError(f"nothing moved for {self._grace_s:.0f} s")
        if moved < (now - self._began - self._grace_s) * _SLOWEST_BYTES_PER_S:
            raise TimeoutError(f"only {moved:,} bytes moved in {now - self._began:.0f} s")


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
