"""S3 against a real server: the contract suite, what its refusals become, and broken connections."""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from dvk.backend.contract import Backend, KeyExists, KeyMissing
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.backend.wrappers import RetryBackend
from dvk.errors import Corrupt, NotFound, RemoteDenied, RemoteError, RemoteUnreachable
from dvk.testing.backend_suite import BackendSuite, pattern, race
from dvk.testing.s3server import ACCESS_KEY, SECRET_KEY, S3Address, aws_env
from dvk.testing.tcp_proxy import TcpProxy


@pytest.fixture(autouse=True, params=["obstore", "fsspec"])
def library(request: pytest.FixtureRequest) -> str:
    """Everything is true of both ways to S3."""
    if request.param == "obstore":
        pytest.importorskip("obstore")
    # "auto" and not "obstore", which would be refused where only s3fs can do it.
    global LIBRARY
    LIBRARY = "auto" if request.param == "obstore" else "fsspec"
    return str(request.param)


LIBRARY = "auto"


def connect(url: str, environ: dict[str, str], **settings: object) -> Backend:
    wanted = RemoteSettings(**{"backend": LIBRARY, **settings})  # type: ignore[arg-type]
    return open_backend(url, settings=wanted, environ=environ)


class TestS3(BackendSuite):
    @pytest.fixture(autouse=True)
    def _bucket(self, s3: S3Address, shared_bucket: str) -> None:
        self.server = s3
        self.url = f"s3://{shared_bucket}/{random.SystemRandom().getrandbits(64):x}/deep"

    def make(self) -> Backend:
        return connect(self.url, self.server.env)

    def plant_foreign(self) -> bool:
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        outer = connect(f"s3://{bucket}", self.server.env, backend="fsspec")
        medium = outer._open()  # type: ignore[attr-defined]
        for name in ("UPPER", "p/with space", "p/ab/.hidden"):
            medium.write(f"{prefix}/{name}", [b"x"], create_only=False)
        medium.write(f"{prefix}2/p/ab/neighbour", [b"x"], create_only=False)
        outer.close()
        return True


@pytest.fixture(scope="session")
def shared_bucket(s3: S3Address) -> str:
    """One bucket for many tests, each in a prefix of its own: making one takes longer than a test."""
    name = f"suite{os.getpid()}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def url(shared_bucket: str) -> str:
    return f"s3://{shared_bucket}/{random.SystemRandom().getrandbits(64):x}"


def test_an_object_that_needs_several_parts_comes_back(s3: S3Address, url: str) -> None:
    backend = connect(url, s3.env)
    data = pattern((100 << 20) + 1)
    backend.put("p/big", [data[: 1 << 20], data[1 << 20 :]])
    assert backend.stat("p/big") == len(data)
    assert backend.get_range("p/big", (50 << 20) - 5, 10) == data[(50 << 20) - 5 : (50 << 20) + 5]
    assert backend.get_range("p/big", len(data) - 64, 64) == data[-64:]
    backend.close()


def test_a_bucket_that_does_not_exist_is_named(s3: S3Address) -> None:
    with pytest.raises(NotFound, match="no bucket 'no-such-bucket'") as caught:
        connect("s3://no-such-bucket/x", s3.env).get("dvk.json", max_bytes=10)
    assert not isinstance(caught.value, KeyMissing)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}, "secret key does not fit"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know this access key"),
    ],
)
def test_wrong_credentials_are_denied_without_showing_them(
    s3: S3Address, url: str, change: dict[str, str], says: str
) -> None:
    with pytest.raises(RemoteDenied, match=says) as caught:
        connect(url, s3.env | change).get("x", max_bytes=1)
    shown = f"{caught.value} {caught.value.hint}"
    assert "aws sso login" in shown
    for value in (SECRET_KEY, *change.values()):
        assert value not in shown


def test_no_credentials_anywhere_are_denied_with_the_next_step(
    s3: S3Address, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    environ = {k: v for k, v in s3.env.items() if "KEY" not in k}
    with pytest.raises(RemoteDenied, match="no usable credentials") as caught:
        connect(url, environ).put("x", [b"1"])
    assert "aws configure" in caught.value.hint


def test_a_profile_of_the_aws_files_is_used_and_an_unknown_one_named(s3: S3Address, url: str, tmp_path: object) -> None:
    path = f"{tmp_path}/credentials"
    with open(path, "w") as f:
        f.write(f"[team]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    # The keys in the environment are wrong: a profile that is asked for by name outranks them.
    environ = s3.env | {"AWS_SHARED_CREDENTIALS_FILE": path, "AWS_SECRET_ACCESS_KEY": "wrong"}
    backend = connect(url, environ, profile="team", addressing="path", checksum="when_required")
    backend.put("x", [b"1"])
    assert backend.get("x", max_bytes=1) == b"1"
    with pytest.raises(RemoteDenied, match="other"):
        connect(url, environ, profile="other").stat("x")
    backend.close()


def test_a_dead_endpoint_is_unreachable_within_the_deadline(url: str, s3: S3Address) -> None:
    with TcpProxy(s3.port) as proxy:
        backend = RetryBackend(connect(url, aws_env(proxy.endpoint_url)), deadline_s=1.0, first_wait_s=0.05)
        backend.put("x", [b"1"])
        proxy.refuse()
        with pytest.raises(RemoteUnreachable, match="gave up after"):
            backend.get("x", max_bytes=1)
        proxy.heal()
        assert backend.get("x", max_bytes=1) == b"1"
        backend.close()


def test_a_silent_server_times_out(url: str) -> None:

    with socket.create_server(("127.0.0.1", 0)) as silent:
        environ = aws_env(f"http://127.0.0.1:{silent.getsockname()[1]}")
        backend = connect(url, environ, connect_timeout_s=0.5, read_timeout_s=0.5)
        with pytest.raises(RemoteUnreachable):
            backend.stat("x")
        backend.close()


@pytest.mark.parametrize("at", [100, 1_000_000, 2_900_000])
def test_a_cut_in_the_middle_never_gives_wrong_or_partial_bytes(s3: S3Address, url: str, at: int) -> None:
    data = pattern(3_000_000, seed=at)
    with TcpProxy(s3.port) as proxy:
        bare = connect(url, aws_env(proxy.endpoint_url))
        retrying = RetryBackend(bare, first_wait_s=0.02)
        proxy.cut_after(bytes_up=at, then_refuse=True)
        with pytest.raises(RemoteError) as caught:
            bare.put("p/up", [data])
        assert caught.value.transient
        proxy.heal()
        assert bare.stat("p/up") is None
        proxy.cut_after(bytes_up=at)
        retrying.put("p/up", [data])
        proxy.cut_after(bytes_down=at, then_refuse=True)
        with pytest.raises(RemoteError) as caught:
            bare.get_range("p/up", 0, len(data))
        assert caught.value.transient
        proxy.heal()
        proxy.cut_after(bytes_down=at)
        assert retrying.get("p/up", max_bytes=len(data)) == data
        assert proxy.cuts == 4
        bare.close()


def test_a_create_whose_reply_was_lost_is_told_as_taken(s3: S3Address, url: str) -> None:
    with TcpProxy(s3.port) as proxy:
        backend = RetryBackend(connect(url, aws_env(proxy.endpoint_url)), first_wait_s=0.02)
        assert backend.stat("j/x") is None
        # The server first says "100 Continue", and only the byte after that is about the object.
        proxy.cut_after(bytes_down=len("HTTP/1.1 100 Continue\r\n\r\n") + 1)
        with pytest.raises(KeyExists):
            backend.put("j/x", [b"token"], create_only=True)
        assert backend.get("j/x", max_bytes=10) == b"token"
        backend.close()


def test_a_forked_child_opens_its_own_connection(s3: S3Address, url: str) -> None:
    backend = connect(url, s3.env)
    backend.put("p/x", [b"parent"])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            threading.Timer(20, os._exit, (2,)).start()
            ok = backend.get("p/x", max_bytes=10) == b"parent"
            backend.put("p/y", [b"child"])
            code = 0 if ok else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert backend.get("p/y", max_bytes=10) == b"child"
    backend.close()


def test_many_threads_share_one_loop(s3: S3Address, url: str) -> None:
    backend = connect(url, s3.env)
    data = pattern(1_000_000)
    backend.put("p/x", [data])

    def work(i: int) -> object:
        return all(backend.get_range("p/x", n * 9973, 5000) == data[n * 9973 : n * 9973 + 5000] for n in range(10))

    assert race(16, work) == [True] * 16
    backend.close()


def test_a_range_past_the_end_is_corrupt(s3: S3Address, url: str) -> None:
    backend = connect(url, s3.env)
    backend.put("p/x", [b"abc"])
    for call in (lambda: backend.get_range("p/x", 2, 2), lambda: backend.get_range("p/x", 3, 1)):
        with pytest.raises(Corrupt):
            call()
    backend.close()


def test_nothing_is_contacted_before_the_first_operation() -> None:
    backend = connect("s3://acme/churn", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert backend.name == "s3://acme/churn"
    assert backend._medium is None  # type: ignore[attr-defined]
    backend.close()
