"""A backend that fails when told to: the Nth operation, once or from then on.

    b = FaultBackend(MemoryBackend())
    b.fail("put", at=3, error=lambda: RemoteUnreachable("cut"))           # the third put, once
    b.fail("put", at=1, error=..., forever=True)                          # every put
    b.fail("put", at=1, error=..., lost_reply=True)                       # applied, then the error
    b.short_reads(at=2)                                                   # an answer of half the length
    b.hold_listings()                                                     # list() shows the past from now on

"For every N: fail the Nth operation, once and from then on, then run again" is the cheapest proof that a
protocol survives its faults; `operations` says how many there are to fail.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from dvk.backend.contract import Backend, Buffer, Capabilities, Listed

_T = TypeVar("_T")

Operation = Literal["put", "get", "get_range", "stat", "list", "delete", "any"]


@dataclass(frozen=True)
class _Fault:
    operation: Operation
    at: int
    error: Callable[[], Exception] | None  # None: answer short
    forever: bool
    lost_reply: bool
    prefix: str


class FaultBackend(Backend):
    """`inner` with faults. Thread-safe; counts from 1, per operation kind and for "any" over all."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self._lock = threading.Lock()
        self._faults: list[tuple[_Fault, list[int]]] = []  # each with its own counter
        self._operations = 0
        self._past: tuple[Listed, ...] | None = None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.inner.capabilities

    @property
    def operations(self) -> int:
        """How many operations were called since the start or `heal`."""
        with self._lock:
            return self._operations

    def fail(
        self,
        operation: Operation,
        *,
        error: Callable[[], Exception],
        at: int = 1,
        forever: bool = False,
        lost_reply: bool = False,
        prefix: str = "",
    ) -> None:
        """Raise `error()` from the `at`-th call of `operation` (counted from now) on a key under `prefix`.

        `lost_reply` applies the operation first, as when the answer is lost on its way. `forever`
        goes on failing after it.
        """
        with self._lock:
            self._faults.append((_Fault(operation, at, error, forever, lost_reply, prefix), [0]))

    def short_reads(self, *, at: int = 1, forever: bool = False, prefix: str = "") -> None:
        """Answer the `at`-th `get_range` and the `at`-th `get` with half the bytes, as some servers do."""
        with self._lock:
            for operation in ("get", "get_range"):
                self._faults.append((_Fault(operation, at, None, forever, False, prefix), [0]))

    def hold_listings(self) -> None:
        """Let `list` show the objects of this moment until `heal`: no new ones, and the deleted still."""
        past = tuple(self.inner.list(""))
        with self._lock:
            self._past = past

    def heal(self) -> None:
        """Forget all faults and start to count again."""
        with self._lock:
            self._faults.clear()
            self._operations = 0
            self._past = None

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self._run("put", key, lambda: self.inner.put(key, parts, create_only=create_only))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._run("get", key, lambda: self.inner.get(key, max_bytes=max_bytes), _half)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._run("get_range", key, lambda: self.inner.get_range(key, offset, length), _half)

    def stat(self, key: str) -> int | None:
        return self._run("stat", key, lambda: self.inner.stat(key))

    def list(self, prefix: str) -> Iterator[Listed]:
        with self._lock:
            past = self._past
        if past is not None:
            return self._run("list", prefix, lambda: iter([x for x in past if x.key.startswith(prefix)]))
        return self._run("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        self._run("delete", key, lambda: self.inner.delete(key))

    def close(self) -> None:
        self.inner.close()

    def _run(self, operation: str, key: str, work: Callable[[], _T], spoil: Callable[[_T], _T] | None = None) -> _T:
        fault = self._due(operation, key)
        if fault is not None and fault.error is not None and not fault.lost_reply:
            raise fault.error()
        answer = work()
        if fault is None:
            return answer
        if fault.error is not None:
            raise fault.error()
        return answer if spoil is None else spoil(answer)

    def _due(self, operation: str, key: str) -> _Fault | None:
        """Count this call, and the first fault that is due on it."""
        with self._lock:
            self._operations += 1
            due = None
            for fault, count in self._faults:
                if fault.operation in (operation, "any") and key.startswith(fault.prefix):
                    count[0] += 1
                    if count[0] == fault.at or (fault.forever and count[0] > fault.at):
                        due = due or fault
            return due


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]
