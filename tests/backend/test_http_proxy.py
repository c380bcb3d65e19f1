"""What a spoilt answer becomes, for each operation, against a real server behind the HTTP proxy."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator

import pytest

from dvk.backend.contract import Backend, KeyExists, KeyMissing, ShortAnswer
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.backend.wrappers import RetryBackend
from dvk.errors import DvkError, FormatError, RemoteDenied, RemoteError, RemoteUnreachable
from dvk.testing.backend_suite import pattern
from dvk.testing.http_proxy import FAULTS, HttpProxy
from dvk.testing.s3server import S3Address, aws_env

DATA = pattern(200_000)
SHORT_OBJECT = "truncated-matching"  # nothing in such an answer says how long the object is
OPERATIONS: dict[str, Callable[[Backend], object]] = {
    "put": lambda b: b.put("p/new", [DATA]),
    "get": lambda b: b.get("p/x", max_bytes=len(DATA)),
    "get_range": lambda b: b.get_range("p/x", 1000, 100_000),
    "stat": lambda b: b.stat("p/x"),
    "list": lambda b: list(b.list("p/")),
    "delete": lambda b: b.delete("p/gone"),
}


@pytest.fixture(scope="module")
def bucket(s3: S3Address) -> str:
    name = f"proxy{os.getpid()}"
    s3.create_bucket(name)
    return name


@pytest.fixture
def proxy(s3: S3Address) -> Iterator[HttpProxy]:
    with HttpProxy(s3.port) as proxy:
        yield proxy


@pytest.fixture(params=["obstore", "fsspec"])
def opened(
    s3: S3Address, proxy: HttpProxy, bucket: str, request: pytest.FixtureRequest
) -> Iterator[Callable[[float], Backend]]:
    """Opens a store behind the proxy, with so many seconds of patience."""
    if request.param == "obstore":
        pytest.importorskip("obstore")
    url = f"s3://{bucket}/{time.monotonic_ns():x}"
    made = []

    def make(patience_s: float, endpoint_url: str = proxy.endpoint_url) -> Backend:
        settings = RemoteSettings(connect_timeout_s=patience_s, read_timeout_s=patience_s, backend=request.param)
        made.append(open_backend(url, settings=settings, environ=aws_env(endpoint_url)))
        return made[-1]

    RetryBackend(make(30, s3.endpoint_url)).put("p/x", [DATA])
    yield make
    for backend in made:
        backend.close()


@pytest.fixture
def backend(opened: Callable[[float], Backend]) -> Backend:
    """One that soon gives up."""
    return opened(1)


def error_of(work: Callable[[], object]) -> DvkError:
    with pytest.raises(DvkError) as caught:
        work()
    return caught.value


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("expired-token", RemoteDenied, "expired"),
        ("clock-skew", RemoteError, "clock is 20 minutes behind"),
        ("denied", RemoteDenied, "AccessDenied"),
    ],
)
def test_expired_credentials_a_wrong_clock_and_missing_rights_are_named_in_every_operation(
    proxy: HttpProxy, backend: Backend, fault: str, kind: type[DvkError], says: str
) -> None:
    proxy.spoil(fault, times=None)
    for operation, work in OPERATIONS.items():
        error = error_of(lambda work=work: work(backend))  # type: ignore[misc]
        assert isinstance(error, kind) and says in error.message and error.hint, (operation, error)
        assert not getattr(error, "transient", False)


def test_the_right_region_is_named(proxy: HttpProxy, backend: Backend) -> None:
    proxy.spoil("wrong-region", times=None)
    error = error_of(lambda: backend.get("p/x", max_bytes=len(DATA)))
    assert "eu-central-1" in error.message and "eu-central-1" in error.hint


@pytest.mark.parametrize(
    "fault", ["500", "502", "503", "503-retry-after", "429", "reset-before", "lost-reply", "silence"]
)
def test_what_passes_is_repeated_and_ends_well(proxy: HttpProxy, backend: Backend, fault: str) -> None:
    takes_a_second = fault in ("429", "503-retry-after", "silence")
    for operation in ("put", "get") if takes_a_second else OPERATIONS:
        proxy.heal()
        proxy.spoil(fault)
        OPERATIONS[operation](RetryBackend(backend, first_wait_s=0.02))
        assert proxy.spoiled
    assert backend.get("p/new", max_bytes=len(DATA)) == DATA


def test_a_pause_that_the_server_asks_for_is_kept(proxy: HttpProxy, backend: Backend) -> None:
    proxy.spoil("429")
    began = time.monotonic()
    RetryBackend(backend, first_wait_s=0.01).stat("p/x")
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_read_is_right_or_an_error_and_never_short(proxy: HttpProxy, backend: Backend, fault: str) -> None:
    proxy.spoil(fault, times=None)
    for operation, wanted in (("get", DATA), ("get_range", DATA[1000:101_000])):
        began = time.monotonic()
        try:
            found = OPERATIONS[operation](backend)
        except DvkError:
            found = wanted
        assert time.monotonic() - began < 15
        # Only hashes see these: the store checks every byte that it takes from a backend.
        unseen = ("flipped", "wrong-range") if operation == "get_range" else ("flipped", "wrong-range", SHORT_OBJECT)
        assert found == wanted or fault in unseen


def test_a_short_range_is_told_apart_from_an_object_that_ends_early(proxy: HttpProxy, backend: Backend) -> None:
    proxy.spoil("truncated-matching", method="GET")
    assert isinstance(error_of(lambda: backend.get_range("p/x", 10, 1000)), ShortAnswer)
    with pytest.raises(FormatError):
        backend.get_range("p/x", len(DATA) - 5, 10)


@pytest.mark.parametrize("fault", ["slow", "stall", "silence"])
def test_an_upload_that_does_not_move_ends_and_leaves_nothing(proxy: HttpProxy, backend: Backend, fault: str) -> None:
    """8 MB, more than the buffers of sockets take, so that the client itself has to notice."""
    proxy.spoil(fault, method="PUT")
    began = time.monotonic()
    error = error_of(lambda: backend.put("p/big", [pattern(8 << 20)]))
    assert isinstance(error, RemoteUnreachable) and error.transient
    assert time.monotonic() - began < 10
    assert backend.stat("p/big") is None


def test_an_upload_that_was_cut_arrives_whole_or_not_at_all(
    proxy: HttpProxy, opened: Callable[[float], Backend]
) -> None:
    """The HTTP client repeats an idempotent request by itself, and must send the body from its start."""
    backend = opened(30)
    data = pattern(8 << 20)
    proxy.spoil("reset-during", method="PUT")
    try:
        backend.put("p/big", [data])
    except RemoteUnreachable:
        assert backend.stat("p/big") is None
    else:
        assert backend.get("p/big", max_bytes=len(data)) == data
    assert proxy.spoiled == 1


def test_a_create_whose_reply_was_lost_is_recognised_by_what_is_there(proxy: HttpProxy, backend: Backend) -> None:
    proxy.spoil("lost-reply", method="PUT")
    with pytest.raises(KeyExists):
        RetryBackend(backend, first_wait_s=0.01).put("j/x", [b"token"], create_only=True)
    assert backend.get("j/x", max_bytes=10) == b"token"


def test_rules_choose_by_method_key_and_turn(proxy: HttpProxy, backend: Backend) -> None:
    proxy.spoil("not-found", method="GET", key="/p/x", skip=1, every=2, times=1)
    outcomes = []
    for _ in range(5):
        try:
            backend.get_range("p/x", 0, 1)
            outcomes.append(True)
        except KeyMissing:
            outcomes.append(False)
    assert outcomes == [True, True, False, True, True]
    assert proxy.spoiled == 1
    assert [method for method, _ in proxy.requests].count("GET") >= 5
    with pytest.raises(ValueError, match="no fault"):
        proxy.spoil("nonsense")


def test_an_upload_of_which_everything_was_taken_and_nothing_arrives_ends() -> None:
    """What the client took can be stuck before the buffer of a socket, where its own timeout does not count yet."""
    from dvk.backend.s3 import S3Medium, _Body

    medium, body = S3Medium.__new__(S3Medium), _Body([b"all of it"])
    medium._grace_s = 0.2

    async def stuck() -> None:
        body.read()
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match="after the last byte"):
        asyncio.run(asyncio.wait_for(medium._watch(body, stuck()), 30))
