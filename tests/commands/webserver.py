"""A web server for tests of imports: it counts what it is asked, and misbehaves as told."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class WebServer:
    """Serves `files` (path -> content) on the loopback.

    Attributes:
        asked: method and path of each request.
        lie: added to the length that is stated.
        cut: bodies end (and the connection breaks) after so many bytes, once for each entry.
        etags, heads, ranges: whether the server knows these.
        after_get: called when a body is out.
        redirects: path -> where it leads.
        weak: an etag that stays, whatever the content is.
        modified: what is said of the time, if anything.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[str] = []
        self.lie, self.cut = 0, list[int]()
        self.etags = self.heads = self.ranges = self.lengths = True
        self.after_get: Callable[[], None] = lambda: None
        self.redirects: dict[str, str] = {}
        self.weak: str | None = None
        self.modified = ""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                server.asked.append(f"{self.command} {self.path}")
                if self.path in server.redirects:
                    self.send_response(302)
                    self.send_header("Location", server.redirects[self.path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                data = server.files.get(self.path.partition("?")[0])
                if data is None or (not body and not server.heads):
                    self.send_error(404 if data is None else 405)
                    return
                etag = f'"{hashlib.md5(data).hexdigest()}"'
                span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(span[1]) if span and server.ranges and self.headers.get("If-Range") == etag else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if server.etags:
                    self.send_header("ETag", etag if server.weak is None else f'W/"{server.weak}"')
                if server.modified:
                    self.send_header("Last-Modified", server.modified)
                if server.lengths:
                    self.send_header("Content-Length", str(len(data) - start + server.lie))
                self.end_headers()
                if body:
                    end = start + server.cut.pop(0) if server.cut else len(data)
                    self.wfile.write(data[start:end])
                    server.after_get()
                if not body or server.lie or end < len(data) or not server.lengths:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def __enter__(self) -> WebServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
