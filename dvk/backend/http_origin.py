"""A file that a web server has, as a place to import from.

One answer carries the mark and the content, so they belong together, and a broken transfer goes on where it stopped
only when the server proves that it is still the same object (`If-Range`). A redirect may lead to another public server
over https (releases, data archives), never into a private network that the URL did not name itself, and never from
https to an unprotected connection.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Coroutine, Mapping
from typing import Any

import aiohttp
import fsspec.asyn
from yarl import URL

from dvk.backend.disk import write_at
from dvk.backend.locate import RemoteUrl
from dvk.backend.origin import Mark, again, changed, disk_errors, new_file
from dvk.backend.remote_errors import Interjected, translate_remote
from dvk.backend.settings import RemoteSettings
from dvk.backend.text import redact
from dvk.errors import NotFound, RemoteError
from dvk.events import Meter, Note, OnEvent, ignore


class HttpOrigin:
    """A file that a web server has."""

    def __init__(self, url: RemoteUrl, settings: RemoteSettings) -> None:
        self.url, self.requests = url, 0
        self._settings = settings

    def look(self) -> Mark:
        return again(lambda: self._run(self._look()))

    def take(self, dir_fd: int, name: bytes, *, on_event: OnEvent = ignore) -> Mark:
        with new_file(dir_fd, name) as target:
            progress = _Transfer(target, on_event)

            def once() -> Mark:
                return self._run(self._take(progress))

            mark = again(once)
            with contextlib.suppress(NotFound, RemoteError):  # a server that says nothing now said enough before
                now = self._run(self._look())
                if (mark.etag or mark.modified) and not mark.same(now):
                    raise changed(self.url)
            return Mark(progress.done, mark.etag, mark.version, mark.modified)

    def close(self) -> None:
        return

    def _run(self, work: Coroutine[Any, Any, Mark]) -> Mark:
        async def run() -> Mark:
            return await work

        try:
            found: Mark = fsspec.asyn.sync(fsspec.asyn.get_loop(), run)
            return found
        except Exception as error:
            raise translate_remote(error, name=redact(str(self.url))) from error

    def _session(self) -> aiohttp.ClientSession:
        watch = aiohttp.TraceConfig()
        watch.on_request_redirect.append(_check_redirect)
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._settings.connect_timeout_s, sock_read=self._settings.read_timeout_s
        )
        # Bytes as they are: what the server compresses on the way would have another length and no range.
        return aiohttp.ClientSession(
            trace_configs=[watch],
            timeout=timeout,
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            trust_env=True,
        )

    async def _look(self) -> Mark:
        async with self._session() as session:
            self.requests += 1
            async with session.head(self._text, allow_redirects=True, max_redirects=5) as answer:
                if answer.status not in (403, 405, 501):  # of those that only know GET
                    answer.raise_for_status()
                    return _http_mark(answer.headers)
            self.requests += 1
            async with session.get(self._text, max_redirects=5) as answer:
                answer.raise_for_status()
                return _http_mark(answer.headers)

    async def _take(self, progress: _Transfer) -> Mark:
        headers = {}
        if progress.done and progress.validator:
            headers = {"Range": f"bytes={progress.done}-", "If-Range": progress.validator}
        async with self._session() as session:
            self.requests += 1
            async with session.get(self._text, headers=headers, max_redirects=5) as answer:
                answer.raise_for_status()
                progress.begin(answer)
                async for data in answer.content.iter_chunked(1 << 20):
                    progress.write(data)
        progress.end(self.url)
        return progress.mark

    @property
    def _text(self) -> URL:
        return URL(str(self.url), encoded=True)


class _Transfer:
    """A file that arrives, maybe in several answers."""

    def __init__(self, target: int, on_event: OnEvent) -> None:
        self._target, self._on_event = target, on_event
        self.done = 0
        self.total: int | None = None
        self.mark = Mark()
        self._meter: Meter | None = None

    @property
    def validator(self) -> str:
        """What proves that a later answer is of the same object; weak ones prove nothing."""
        return self.mark.etag if self.mark.etag and not self.mark.etag.startswith("W/") else ""

    def begin(self, answer: aiohttp.ClientResponse) -> None:
        """Take the head of an answer: it goes on, or starts again."""
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        goes_on = answer.status == 206 and span is not None and int(span[1]) == self.done
        if goes_on and span is not None:
            return
        if answer.status != 200:
            raise RemoteError(f"the server answered {answer.status} where 200 was expected")
        self.mark = _http_mark(answer.headers)
        self.done, self.total = 0, self.mark.size
        os.ftruncate(self._target, 0)
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            self._on_event(Note(f"the server sends it encoded ({redact(encoding)}); it is kept as it comes"))
        if self.total is None and answer.headers.get("Transfer-Encoding", "").lower() != "chunked":
            self._on_event(Note("the server does not say how long it is, so a cut answer would not be noticed"))
        self._meter = Meter(self._on_event, "download", total_bytes=self.total)

    def write(self, data: bytes) -> None:
        """Append what arrived."""
        with disk_errors(b""):
            write_at(self._target, data, self.done)
        self.done += len(data)
        if self._meter is not None:
            self._meter.advance(bytes_=len(data))

    def end(self, url: RemoteUrl) -> None:
        """Pass if everything arrived that the server spoke of."""
        if self.total is not None and self.done != self.total:
            raise RemoteError(
                f"{self.done:,} bytes arrived where the server said {self.total:,}",
                subject=redact(str(url)),
                transient=True,
            )


def _http_mark(headers: Mapping[str, str]) -> Mark:
    size = headers.get("Content-Length", "")
    etag = " ".join(headers.get("ETag", "").split())
    modified = " ".join(headers.get("Last-Modified", "").split())
    clean = [text if text.isprintable() and len(text) <= 1000 else "" for text in (etag, modified)]
    return Mark(int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None, etag=clean[0], modified=clean[1])


async def _check_redirect(_session: object, _context: object, params: aiohttp.TraceRequestRedirectParams) -> None:
    """Stop before a request to a place that the URL did not name and that is not public and protected."""
    said = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
    try:
        target = params.url.join(URL(said))
        same = target.origin() == params.url.origin()
    except ValueError:
        raise Interjected("the server redirects to something that is no address", subject=redact(said)) from None
    safer = target.scheme == "https" and not _is_private(target.host or "")
    if not same and not safer:
        raise Interjected(
            f"the server redirects to {redact(str(target.origin()))}, which dvk does not follow",
            subject=redact(str(params.url)),
            hint="if that is the right place, import from there",
        )


def _is_private(host: str) -> bool:
    """Whether a host is an address, or a name, of a network that is nobody else's business."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))
