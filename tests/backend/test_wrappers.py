"""Counting, retrying and failing on purpose."""

from __future__ import annotations

import random

import pytest

from dvk.backend.contract import Backend, KeyExists, KeyMissing, Listed, ShortAnswer
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend, RetryBackend
from dvk.errors import RemoteDenied, RemoteError, RemoteUnreachable
from dvk.testing.backend_suite import BackendSuite, race
from dvk.testing.faults import FaultBackend


class TestCounting(BackendSuite):
    tells_time = False

    @pytest.fixture(autouse=True)
    def _medium(self) -> None:
        self.medium = CountingBackend(MemoryBackend(), keep_calls=True)

    def make(self) -> Backend:
        return self.medium


class TestRetry(BackendSuite):
    tells_time = False

    """Every operation fails once, and nobody notices."""

    @pytest.fixture(autouse=True)
    def _medium(self) -> None:
        self.medium = RetryBackend(Flaky(MemoryBackend()), sleep=lambda _: None)

    def make(self) -> Backend:
        return self.medium


class Flaky(FaultBackend):
    """Fails every other operation."""

    def _due(self, operation: str, key: str) -> None:
        super()._due(operation, key)
        with self._lock:
            odd = self._operations % 2
        if odd:
            raise RemoteUnreachable("flaky")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def cut() -> RemoteUnreachable:
    return RemoteUnreachable("cut")


def test_counts_are_exact_under_threads() -> None:
    b = CountingBackend(MemoryBackend())

    def work(i: int) -> object:
        for n in range(50):
            b.put(f"p/{i}/{n}", [b"ab", memoryview(b"c")])
            b.get_range(f"p/{i}/{n}", 0, 2)
        return None

    assert race(8, work) == [None] * 8
    assert (b.counts.put, b.counts.get_range) == (400, 400)
    assert (b.counts.bytes_out, b.counts.bytes_in) == (1200, 800)
    assert b.counts.requests == 800
    assert b.reset().requests == 800
    assert b.counts.requests == 0


def test_calls_are_recorded_when_asked_for_and_failed_ones_too() -> None:
    b = CountingBackend(MemoryBackend(), keep_calls=True)
    with pytest.raises(KeyMissing):
        b.get("dvk.json", max_bytes=1)
    b.stat("l/f/x")
    list(b.list("j/"))
    b.delete("j/x")
    assert b.counts.calls == [("get", "dvk.json"), ("stat", "l/f/x"), ("list", "j/"), ("delete", "j/x")]


def test_waits_are_jittered_doubling_and_bounded() -> None:
    clock = Clock()
    faults = FaultBackend(MemoryBackend())
    faults.fail("put", error=cut, forever=True)
    rng = random.Random(7)
    b = RetryBackend(
        faults,
        deadline_s=1000,
        tries=8,
        first_wait_s=1,
        longest_wait_s=10,
        clock=clock,
        sleep=clock.sleep,
        rng=rng,
    )
    with pytest.raises(RemoteUnreachable, match="gave up after 8 tries"):
        b.put("a", [b"1"])
    twin = random.Random(7)
    assert clock.slept == [twin.uniform(0, bound) for bound in (1, 2, 4, 8, 10, 10, 10)]
    assert faults.operations == 8


def test_the_deadline_ends_it_before_the_tries() -> None:
    clock = Clock()
    faults = FaultBackend(MemoryBackend())
    faults.fail("get", error=cut, forever=True)
    b = RetryBackend(faults, deadline_s=5, tries=10_000, clock=clock, sleep=clock.sleep, rng=random.Random(1))
    with pytest.raises(RemoteUnreachable):
        b.get("a", max_bytes=1)
    assert clock.now - 100 <= 5


@pytest.mark.parametrize("error", [RemoteDenied("no"), RemoteError("odd"), KeyMissing("gone"), OSError("bug")])
def test_what_is_not_transient_is_raised_at_once(error: Exception) -> None:
    faults = FaultBackend(MemoryBackend())
    faults.fail("stat", error=lambda: error)
    b = RetryBackend(faults, sleep=lambda _: pytest.fail("slept"))
    with pytest.raises(type(error)) as caught:
        b.stat("a")
    assert caught.value is error
    assert "tries" not in str(error)


def test_a_transient_flag_is_enough() -> None:
    faults = FaultBackend(MemoryBackend())
    faults.fail("stat", error=lambda: RemoteError("busy", transient=True))
    assert RetryBackend(faults, sleep=lambda _: None).stat("a") is None


def test_a_listing_that_broke_shows_each_key_once() -> None:
    class Breaking(MemoryBackend):
        broken = False

        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            for n, row in enumerate(super().list(prefix)):
                if n == 2 and not self.broken:
                    self.broken = True
                    raise cut()
                yield row

    inner = Breaking()
    for i in range(4):
        inner.put(f"p/{i}", [b"1"])
    assert sorted(row.key for row in RetryBackend(inner, sleep=lambda _: None).list("p/")) == [
        f"p/{i}" for i in range(4)
    ]


def test_a_lost_reply_of_a_create_ends_in_exists() -> None:
    faults = FaultBackend(MemoryBackend())
    faults.fail("put", error=cut, lost_reply=True)
    with pytest.raises(KeyExists):
        RetryBackend(faults, sleep=lambda _: None).put("j/x", [b"mine"], create_only=True)
    assert faults.get("j/x", max_bytes=10) == b"mine"


def test_a_fault_hits_the_nth_once_or_from_then_on() -> None:
    b = FaultBackend(MemoryBackend())
    b.fail("put", at=2, error=cut, prefix="p/")
    b.put("j/other", [b""])
    b.put("p/1", [b""])
    with pytest.raises(RemoteUnreachable):
        b.put("p/2", [b""])
    assert b.stat("p/2") is None
    b.put("p/3", [b""])
    b.fail("any", at=2, error=cut, forever=True)
    b.stat("p/1")
    for _ in range(3):
        with pytest.raises(RemoteUnreachable):
            b.stat("p/1")
    b.heal()
    assert b.operations == 0
    assert b.stat("p/1") == 0


def test_short_reads_and_stale_listings() -> None:
    b = FaultBackend(MemoryBackend())
    b.put("p/x", [b"0123456789"])
    b.short_reads(at=2)
    assert b.get_range("p/x", 0, 10) == b"0123456789"
    assert b.get_range("p/x", 0, 10) == b"01234"
    assert b.get("p/x", max_bytes=10) == b"0123456789"
    b.hold_listings()
    b.delete("p/x")
    b.put("p/y", [b"1"])
    assert list(b.list("p/")) == [Listed("p/x", 10)]
    b.heal()
    assert list(b.list("p/")) == [Listed("p/y", 1)]


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    medium, clock = FaultBackend(MemoryBackend()), Clock()

    def busy() -> RemoteError:
        error = RemoteError("SlowDown", transient=True)
        error.retry_after_s = 7.0
        return error

    medium.fail("stat", error=busy)
    RetryBackend(medium, clock=clock, sleep=clock.sleep, rng=random.Random(0)).stat("p/x")
    assert 7.0 <= clock.slept[0] <= 7.25


def test_a_pause_beyond_the_deadline_is_not_waited_for_and_is_told() -> None:
    medium, clock = FaultBackend(MemoryBackend()), Clock()

    def busy() -> RemoteError:
        error = RemoteError("SlowDown", transient=True)
        error.retry_after_s = 3600.0
        return error

    medium.fail("stat", error=busy)
    with pytest.raises(RemoteError, match="left alone for 3600 s"):
        RetryBackend(medium, clock=clock, sleep=clock.sleep).stat("p/x")
    assert not clock.slept


def test_only_a_server_that_asked_to_be_left_alone_is_said_to_have() -> None:
    """The last try took longer than was left."""
    medium, clock = FaultBackend(MemoryBackend()), Clock()

    def slowly() -> RemoteError:
        clock.sleep(500)
        return RemoteError("busy", transient=True)

    medium.fail("stat", error=slowly, forever=True)
    with pytest.raises(RemoteError) as caught:
        RetryBackend(medium, clock=clock, sleep=clock.sleep).stat("p/x")
    assert "left alone" not in caught.value.message


def test_wrong_answers_are_asked_for_again_only_a_little() -> None:
    medium, clock = FaultBackend(MemoryBackend()), Clock()
    medium.fail("get", error=lambda: ShortAnswer("short", transient=True), forever=True)
    with pytest.raises(ShortAnswer, match="after 3 tries"):
        RetryBackend(medium, clock=clock, sleep=clock.sleep).get("p/x", max_bytes=1)
    medium.heal()
    medium.put("p/x", [b"1"])
    medium.fail("get", error=lambda: ShortAnswer("short", transient=True))
    assert RetryBackend(medium, clock=clock, sleep=clock.sleep).get("p/x", max_bytes=1) == b"1"
