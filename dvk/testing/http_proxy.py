"""An HTTP proxy that breaks answers on command, to stand before a real S3 server.

    with HttpProxy(server.address.port) as proxy:
        environ = aws_env(proxy.endpoint_url)
        proxy.spoil("503", method="PUT", times=2)               # the next two uploads
        proxy.spoil("lost-reply", method="PUT", key="/j/", times=None)      # every record, until heal()
        ...
        assert proxy.spoiled > 0
        proxy.heal()

Where `TcpProxy` cuts bytes, this one knows requests: it can lose the reply of one that was applied, shorten a body and
its length together, or answer another range. `FAULTS` lists what it can do and what each means.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from dvk.testing.tcp_proxy import reset

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "proxy-connection"}
_PIECE = 64 << 10
_UPSTREAM_S = 60.0

#: What each fault does. "applied" says that the server has done what was asked.
FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "500": "500 InternalError, not applied",
        "502": "502 from a proxy, without an explanation, not applied",
        "503": "503 SlowDown, not applied",
        "503-retry-after": "503 with Retry-After: 1, not applied",
        "429": "429 TooManyRequests with Retry-After: 1, not applied",
        "reset-before": "connection reset before the request is read",
        "reset-during": "connection reset in the middle of the body, of the upload or of the answer",
        "reset-after": "connection reset right after a complete answer",
        "lost-reply": "applied, then reset without an answer",
        "truncated": "half of the body, then an orderly end; the stated length is that of the whole",
        "truncated-matching": "half of the body with a matching length and without checksums",
        "wrong-range": "other bytes than those of the range, of the same length, under the right Content-Range",
        "ignored-range": "200 and all bytes up to the end of the range",
        "flipped": "one wrong byte in the body, without checksums",
        "slow": "one kilobyte a second",
        "stall": "half of the body, then silence with the connection open",
        "silence": "the request is read and never answered",
        "short-list": "a listing without its second half, and no word that there is more",
        "error-in-200": "200 with an error in the body, not applied",
        "expired-token": "400 ExpiredToken",
        "clock-skew": "403 RequestTimeTooSkewed, with a date 20 minutes away",
        "wrong-region": "400 AuthorizationHeaderMalformed that names another region",
        "denied": "403 AccessDenied",
        "not-found": "404 NoSuchKey for what is there",
    }
)


@dataclass(slots=True)
class _Rule:
    fault: str
    method: str
    key: re.Pattern[str]
    skip: int
    every: int
    left: float  #: how many requests are still to be spoiled
    seen: int = 0


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class HttpProxy:
    """Listens on a loopback port and passes requests on to `port` of the same machine, spoiling those it is told to."""

    def __init__(self, port: int) -> None:
        self.target_port = port
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._open: set[socket.socket] = set()
        self.closing = threading.Event()
        self.requests: list[tuple[str, str]] = []  #: (method, path and query) of each request, in order
        self.spoiled = 0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.daemon_threads = True
        self._server.request_queue_size = 128
        self._server.server_bind()
        self._server.server_activate()
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HttpProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            live = list(self._open)
        for s in live:
            reset(s)

    def spoil(
        self, fault: str, *, method: str = "", key: str = "", skip: int = 0, every: int = 1, times: int | None = 1
    ) -> None:
        """Spoil `times` requests (None: until `heal`) of a method on a key: after `skip` of them, one in `every`.

        `key` is a regular expression that is searched in path and query. Of several rules the first that fits counts.
        """
        if fault not in FAULTS:
            raise ValueError(f"no fault {fault!r}")
        left = float("inf") if times is None else times
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(key), skip, every, left))

    def heal(self) -> None:
        """Pass everything on again, and count from zero."""
        with self._lock:
            self._rules.clear()
            self.spoiled = 0
            self.requests.clear()

    def due(self, method: str, path: str) -> str:
        """Count a request; the fault it gets, or ""."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self._rules:
                if rule.left > 0 and rule.method in ("", method) and rule.key.search(path):
                    rule.seen += 1
                    if rule.seen <= rule.skip or (rule.seen - rule.skip) % rule.every:
                        continue
                    rule.left -= 1
                    self.spoiled += 1
                    return rule.fault
        return ""

    def applied(self, method: str, path: str) -> None:
        """Hears of each request that the server has answered, before the client does; for subclasses."""

    def track(self, s: socket.socket, *, live: bool) -> None:
        """Note a client's connection, to end it with the proxy."""
        with self._lock:
            (self._open.add if live else self._open.discard)(s)


class _Handler(BaseHTTPRequestHandler):
    """One client connection."""

    protocol_version = "HTTP/1.1"
    owner: HttpProxy
    _upstream: http.client.HTTPConnection | None = None

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owner.track(self.connection, live=True)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        if self._upstream is not None:
            self._upstream.close()
        self.owner.track(self.connection, live=False)

    def handle(self) -> None:
        # Also what the server breaks off when it is killed: the client then sees the connection close.
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's output is not the place."""

    def handle_expect_100(self) -> bool:
        """The client waits for a word before it sends a body; a reset before the body must come first."""
        return True

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        fault = self.owner.due(self.command, self.path)
        if fault == "reset-before":
            return self._reset()
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        sending = self.command in ("PUT", "POST")
        if fault in ("reset-during", "slow", "stall") and sending:
            return self._spoil_upload(fault)
        body = self._read_body()
        if fault in _REFUSALS:
            return self._send(_refusal(fault, self.command))
        if fault == "silence":
            self._wait_for_the_end()
            return None
        if fault == "error-in-200" and sending:
            return self._send(_Answer(200, [("Content-Type", "application/xml")], _xml("InternalError", "try again")))
        answer = self._forward(body)
        self.owner.applied(self.command, self.path)
        if fault == "lost-reply":
            return self._reset()
        return self._send_spoilt(answer, fault) if fault else self._send(answer)

    # ------------------------------------------------------------ the client's side

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _spoil_upload(self, fault: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "slow":
            for _ in range(0, length, 1024):
                if self.owner.closing.wait(1):
                    return self._reset()
                self.rfile.read1(1024)
        else:
            self.rfile.read(length // 2)
            if fault == "stall":
                self._wait_for_the_end(reading=False)
        return self._reset()

    def _send(self, answer: _Answer, *, length: int | None = None, body: bytes | None = None) -> None:
        """Send an answer whole; `length` and `body` overrule what is true."""
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if answer.status != 204:
            stated = {k.lower(): v for k, v in answer.headers}.get("content-length", str(len(answer.body)))
            size = stated if self.command == "HEAD" else str(len(answer.body))
            self.send_header("Content-Length", size if length is None else str(length))
        self.end_headers()
        self.wfile.write(answer.body if body is None else body)
        self.wfile.flush()

    def _send_spoilt(self, answer: _Answer, fault: str) -> None:
        bare = [(k, v) for k, v in answer.headers if not k.lower().startswith("x-amz-checksum")]
        half = answer.body[: len(answer.body) // 2]
        match fault:
            case "reset-after":
                self._send(answer)
                time.sleep(0.05)  # so that the answer is read before the reset takes it back
                self._reset()
            case "reset-during":
                self._send(answer, body=half)
                time.sleep(0.05)
                self._reset()
            case "truncated":
                self._send(answer, body=half)
                self.close_connection = True
            case "truncated-matching":
                self._send(_Answer(answer.status, bare, half))
            case "flipped" if answer.body:
                at = len(answer.body) // 2
                flipped = answer.body[:at] + bytes([answer.body[at] ^ 1]) + answer.body[at + 1 :]
                self._send(_Answer(answer.status, bare, flipped))
            case "wrong-range":
                self._send(_Answer(answer.status, bare, answer.body[1:] + answer.body[:1]))
            case "ignored-range" if answer.status == 206:
                # The range itself is signed, so the server cannot be asked for more.
                start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
                rest = [(k, v) for k, v in bare if k.lower() != "content-range"]
                self._send(_Answer(200, rest, bytes(start) + answer.body))
            case "short-list" if b"<ListBucketResult" in answer.body:
                rows = re.findall(rb"<Contents>.*?</Contents>", answer.body, re.DOTALL)
                body = answer.body
                for row in rows[len(rows) // 2 :]:
                    body = body.replace(row, b"", 1)
                self._send(_Answer(answer.status, bare, body))
            case "stall":
                self._send(answer, body=half)
                self._wait_for_the_end()
            case "slow":
                self._send(answer, body=b"")
                for at in range(0, len(answer.body), 1024):
                    if self.owner.closing.wait(1):
                        break
                    self.wfile.write(answer.body[at : at + 1024])
            case _:
                self._send(answer)

    def _wait_for_the_end(self, *, reading: bool = True) -> None:
        """Say nothing until the client or the test gives up."""
        self.connection.settimeout(0.2)
        while not self.owner.closing.is_set():
            try:
                # Without taking bytes, so that an upload that is stalled stays so.
                if not self.connection.recv(1, socket.MSG_PEEK):
                    break
                if not reading:
                    self.owner.closing.wait(0.2)
            except TimeoutError:
                continue
            except OSError:
                break
        self.close_connection = True

    def _reset(self) -> None:
        self.close_connection = True
        reset(self.connection)

    # ------------------------------------------------------------ the server's side

    def _forward(self, body: bytes) -> _Answer:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        if body or self.command in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        for attempt in (1, 2):
            if self._upstream is None:
                self._upstream = http.client.HTTPConnection("127.0.0.1", self.owner.target_port, timeout=_UPSTREAM_S)
            try:
                self._upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    self._upstream.putheader(name, value)
                self._upstream.endheaders(body or None)
                found = self._upstream.getresponse()
                return _Answer(found.status, found.getheaders(), found.read())
            except (OSError, http.client.HTTPException):
                # The server closed a connection that was idle; a second failure is its own.
                self._upstream.close()
                self._upstream = None
                if attempt == 2:
                    raise
        raise AssertionError


def _xml(code: str, message: str, more: str = "") -> bytes:
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


#: fault -> status, code, message, further headers, further elements
_REFUSALS: dict[str, tuple[int, str, str, dict[str, str], str]] = {
    "500": (500, "InternalError", "We encountered an internal error.", {}, ""),
    "502": (502, "", "", {}, ""),
    "503": (503, "SlowDown", "Please reduce your request rate.", {}, ""),
    "503-retry-after": (503, "SlowDown", "Please reduce your request rate.", {"Retry-After": "1"}, ""),
    "429": (429, "TooManyRequests", "Too many requests.", {"Retry-After": "1"}, ""),
    "expired-token": (400, "ExpiredToken", "The provided token has expired.", {}, ""),
    "clock-skew": (403, "RequestTimeTooSkewed", "The difference between the request time is too large.", {}, ""),
    "wrong-region": (
        400,
        "AuthorizationHeaderMalformed",
        "The authorization header is malformed; the region is wrong.",
        {"x-amz-bucket-region": "eu-central-1"},
        "<Region>eu-central-1</Region>",
    ),
    "denied": (403, "AccessDenied", "Access Denied", {}, ""),
    "not-found": (404, "NoSuchKey", "The specified key does not exist.", {}, ""),
}


def _refusal(fault: str, method: str) -> _Answer:
    status, code, message, more, elements = _REFUSALS[fault]
    ahead_s = 20 * 60 if fault == "clock-skew" else 0
    headers = [("Date", email.utils.formatdate(time.time() + ahead_s, usegmt=True)), *more.items()]
    if not code or method == "HEAD":
        return _Answer(status, headers, b"" if method == "HEAD" else b"<html>Bad Gateway</html>")
    return _Answer(status, [*headers, ("Content-Type", "application/xml")], _xml(code, message, elements))
