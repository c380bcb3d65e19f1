"""A read-only mirror over plain HTTP."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.errors import Corrupt, FormatError, RemoteError
from dvk.testing.backend_suite import pattern

DATA = pattern(100_000)


class Mirror(BaseHTTPRequestHandler):
    ranges = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path != "/team/x/p/ab/one":
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        body, status = DATA, 200
        if asked and self.ranges:
            body, status = DATA[int(asked[1]) : int(asked[2]) + 1], 206
        if not body:
            self.send_error(416)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests are silent."""


class Careless(Mirror):
    ranges = False


@pytest.fixture
def mirror(request: pytest.FixtureRequest) -> Iterator[Backend]:
    handler = getattr(request, "param", Mirror)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        backend = open_backend(f"http://127.0.0.1:{server.server_port}/team/x", settings=RemoteSettings(), environ={})
        yield backend
        backend.close()
        server.shutdown()
        thread.join()


def test_objects_and_ranges_come_back_exactly(mirror: Backend) -> None:
    assert mirror.stat("p/ab/one") == len(DATA)
    assert mirror.get("p/ab/one", max_bytes=len(DATA)) == DATA
    assert mirror.get_range("p/ab/one", 99_936, 64) == DATA[-64:]
    with pytest.raises(FormatError):
        mirror.get("p/ab/one", max_bytes=10)


def test_what_is_missing_or_too_short_is_told_apart(mirror: Backend) -> None:
    assert mirror.stat("p/ab/none") is None
    with pytest.raises(KeyMissing):
        mirror.get("p/ab/none", max_bytes=10)
    with pytest.raises(KeyMissing):
        mirror.get_range("p/ab/none", 0, 10)
    for offset in (99_990, 200_000):
        with pytest.raises(Corrupt):
            mirror.get_range("p/ab/one", offset, 64)


@pytest.mark.parametrize("mirror", [Careless], indirect=True)
def test_a_server_that_ignores_ranges_gives_an_error_and_not_other_bytes(mirror: Backend) -> None:
    with pytest.raises(RemoteError):
        mirror.get_range("p/ab/one", 10, 64)
