"""Behaviour around any backend: count what is asked, and ask again what failed for a moment.

>>> from dvk.backend.memory import MemoryBackend
>>> b = CountingBackend(MemoryBackend())
>>> b.put("j/x", [b"abc"])
>>> b.counts.put, b.counts.bytes_out
(1, 3)
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from dvk.backend.contract import Backend, Buffer, Capabilities, Listed, WrongAnswer
from dvk.errors import RemoteError
from dvk.timings import Stage, stage

_T = TypeVar("_T")
_Calls = list[tuple[str, str]]

WRONG_TRIES = 3


class _Around(Backend):
    """What all wrappers share: the name, the capabilities and the end of the wrapped one."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.inner.capabilities

    def survey(self, prefix: str) -> Iterator[Listed]:
        return self.inner.survey(prefix)

    def close(self) -> None:
        self.inner.close()


class Counts(Struct):
    """How often each operation was called, and the bytes of objects that went out and came in."""

    put: int = 0
    get: int = 0
    get_range: int = 0
    stat: int = 0
    list: int = 0
    delete: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    calls: _Calls = field(default_factory=_Calls)  #: (operation, key), when asked for

    @property
    def requests(self) -> int:
        """All operations together. A listing counts once, however many pages it has."""
        return self.put + self.get + self.get_range + self.stat + self.list + self.delete


class CountingBackend(_Around):
    """Counts the calls to `inner`, failed ones included. `keep_calls` also records each with its key."""

    def __init__(self, inner: Backend, *, keep_calls: bool = False) -> None:
        super().__init__(inner)
        self._keep_calls = keep_calls
        self._lock = threading.Lock()
        self._counts = Counts()

    @property
    def counts(self) -> Counts:
        """A copy of the counts so far."""
        with self._lock:
            return replace(self._counts, calls=list(self._counts.calls))

    def reset(self) -> Counts:
        """Start again at zero; the counts until now."""
        with self._lock:
            counts, self._counts = self._counts, Counts()
        return counts

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self._count("put", key)
        kept = list(parts)
        self.inner.put(key, kept, create_only=create_only)
        self._count_bytes(out=sum(memoryview(part).nbytes for part in kept))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        self._count("get", key)
        data = self.inner.get(key, max_bytes=max_bytes)
        self._count_bytes(in_=len(data))
        return data

    def view(self, key: str, *, max_bytes: int) -> memoryview:
        self._count("get", key)
        data = self.inner.view(key, max_bytes=max_bytes)
        self._count_bytes(in_=data.nbytes)
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._count("get_range", key)
        data = self.inner.get_range(key, offset, length)
        self._count_bytes(in_=len(data))
        return data

    def stat(self, key: str) -> int | None:
        self._count("stat", key)
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        self._count("list", prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._count("delete", key)
        self.inner.delete(key)

    def _count(self, operation: str, key: str) -> None:
        with self._lock:
            setattr(self._counts, operation, getattr(self._counts, operation) + 1)
            if self._keep_calls:
                self._counts.calls.append((operation, key))

    def _count_bytes(self, *, out: int = 0, in_: int = 0) -> None:
        with self._lock:
            self._counts.bytes_out += out
            self._counts.bytes_in += in_


class RetryBackend(_Around):
    """Repeats an operation of `inner` whose error says that it is transient.

    Waits a random time between nothing and a bound that doubles from `first_wait_s` to `longest_wait_s`
    (full jitter, so that a crowd of clients spreads out), and never less than the server asked for. Gives up with
    the last error after `tries` (after `WRONG_TRIES` whole answers with wrong content, which time seldom cures), or
    when the next wait would end later than `deadline_s` after the operation began. All operations of the
    contract are safe to repeat; a create whose reply was lost ends in `KeyExists`, and the caller reads
    back whose object it is.

    `clock`, `sleep` and `rng` are for tests, and `sleep` also for callers that want to be woken early.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        deadline_s: float = 120.0,
        tries: int = 8,
        first_wait_s: float = 0.25,
        longest_wait_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(inner)
        self._deadline_s = deadline_s
        self._tries = tries
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        kept = list(parts)
        size = sum(memoryview(part).nbytes for part in kept)
        self._try(lambda: self.inner.put(key, kept, create_only=create_only), sent_bytes=size)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._try(lambda: self.inner.get(key, max_bytes=max_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._try(lambda: self.inner.get_range(key, offset, length))

    def stat(self, key: str) -> int | None:
        return self._try(lambda: self.inner.stat(key))

    def list(self, prefix: str) -> Iterator[Listed]:
        # Whole, since a listing that breaks in the middle starts again and must not show a key twice.
        return iter(self._try(lambda: tuple(self.inner.list(prefix))))

    def delete(self, key: str) -> None:
        self._try(lambda: self.inner.delete(key))

    def _try(self, work: Callable[[], _T], *, sent_bytes: int = 0) -> _T:
        began = self._clock()
        bound = self._first_wait_s
        tries = 1
        wrong = 0
        while True:
            try:
                with stage(Stage.REQUEST, bytes_=sent_bytes) as asking:
                    answer = work()
                    asking.add(bytes_=len(answer) if isinstance(answer, bytes) else 0)
                return answer
            except RemoteError as e:
                if not e.transient:
                    raise
                wrong += isinstance(e, WrongAnswer)
                asked = e.retry_after_s or 0.0
                wait = self._rng.uniform(asked, asked + bound)
                spent = self._clock() - began
                if tries >= self._tries or wrong >= WRONG_TRIES or spent + wait > self._deadline_s:
                    if tries > 1:
                        e.message += f" (gave up after {tries} tries in {spent:.0f} s)"
                    if asked and asked > self._deadline_s - spent:
                        e.message += f"; the server asks to be left alone for {asked:.0f} s"
                    raise
            self._sleep(wait)
            bound = min(2 * bound, self._longest_wait_s)
            tries += 1
