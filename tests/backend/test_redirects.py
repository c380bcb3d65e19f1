"""A server that sends us on to another one: nothing secret goes along, and nothing is taken from there unseen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dvk.backend.contract import Backend
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.errors import DvkError, RemoteError

TOKEN = "the-session-token"
SECRET = "the-secret-key"


class Elsewhere(BaseHTTPRequestHandler):
    """Another server, which answers whatever it is asked and notes what it is told."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        self.server.seen.append((self.command, self.path, str(self.headers)))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"abc")

    do_GET = do_HEAD = do_PUT = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


class Sends(Elsewhere):
    """The server that we know; it sends everybody on."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.same and self.path.startswith("/moved"):
            return Elsewhere.answer(self)
        self.send_response(self.server.status)
        self.send_header("Location", self.server.to + self.path)
        if self.server.region:
            self.send_header("x-amz-bucket-region", self.server.region)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    do_GET = do_HEAD = do_PUT = do_DELETE = answer


class Server(ThreadingHTTPServer):
    daemon_threads = True
    status, region, to, same = 307, "", "", False

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.seen: list[tuple[str, str, str]] = []


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    known, other = Server(Sends), Server(Elsewhere)
    known.to = f"http://localhost:{other.server_port}"
    threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in (known, other)]
    for thread in threads:
        thread.start()
    yield known, other
    for server, thread in zip((known, other), threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


def s3_at(server: Server, library: str, *, token: str = "") -> Backend:
    environ = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    } | ({"AWS_SESSION_TOKEN": token} if token else {})
    settings = RemoteSettings(backend=library, connect_timeout_s=2, read_timeout_s=2)
    return open_backend("s3://acme/x", settings=settings, environ=environ)


CALLS = {
    "get": lambda b: b.get("k", max_bytes=10),
    "get_range": lambda b: b.get_range("k", 0, 2),
    "stat": lambda b: b.stat("k"),
    "put": lambda b: b.put("k", [b"data of ours"]),
    "list": lambda b: list(b.list("")),
    "delete": lambda b: b.delete("k"),
}


@pytest.mark.parametrize("library", ["auto", "fsspec"])
@pytest.mark.parametrize("token", ["", TOKEN])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nothing_secret_and_no_data_goes_to_the_server_that_a_redirect_names(
    servers: tuple[Server, Server], status: int, token: str, library: str
) -> None:
    known, other = servers
    known.status = status
    backend = s3_at(known, library, token=token)
    for call in CALLS.values():
        try:
            call(backend)
        except DvkError as e:
            assert TOKEN not in f"{e} {e.hint}" and SECRET not in f"{e} {e.hint}"
    backend.close()
    for command, _, headers in other.seen:
        assert command in ("GET", "HEAD"), "what was to be stored here was offered there"
        assert "authorization" not in headers.lower() and TOKEN not in headers and "Signature" not in headers
    if library == "fsspec" or token:
        assert other.seen == []


@pytest.mark.parametrize("call", CALLS)
def test_a_redirect_is_an_error_that_names_where_it_leads(servers: tuple[Server, Server], call: str) -> None:
    known, other = servers
    backend = s3_at(known, "fsspec")
    with pytest.raises(RemoteError, match=f"redirects to 'localhost:{other.server_port}'") as caught:
        CALLS[call](backend)
    assert "endpoint_url" in caught.value.hint and not caught.value.transient
    backend.close()


@pytest.mark.parametrize("library", ["auto", "fsspec"])
def test_a_redirect_to_the_right_region_names_the_region(servers: tuple[Server, Server], library: str) -> None:
    known, other = servers
    known.status, known.region, known.to = 301, "eu-west-1", ""  # Amazon's has no useful address either
    backend = s3_at(known, library)
    with pytest.raises(RemoteError, match="it is in eu-west-1") as caught:
        backend.put("k", [b"x"])
    assert "eu-west-1" in caught.value.hint
    assert other.seen == []
    backend.close()


@pytest.mark.parametrize("call", ["get", "get_range", "stat"])
def test_a_mirror_does_not_lead_to_another_server(servers: tuple[Server, Server], call: str) -> None:
    known, other = servers
    backend = open_backend(f"http://127.0.0.1:{known.server_port}/x", settings=RemoteSettings(), environ={})
    with pytest.raises(RemoteError, match=f"redirects to http://localhost:{other.server_port}") as caught:
        CALLS[call](backend)
    assert "URL of the remote" in caught.value.hint
    assert other.seen == []
    backend.close()


def test_a_mirror_may_redirect_within_itself(servers: tuple[Server, Server]) -> None:
    known, _ = servers
    known.same, known.to = True, f"http://127.0.0.1:{known.server_port}/moved"
    backend = open_backend(f"http://127.0.0.1:{known.server_port}/x", settings=RemoteSettings(), environ={})
    assert backend.get("k", max_bytes=10) == b"abc"
    backend.close()
