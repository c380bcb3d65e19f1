"""Several media read as one: the first that has an object gives it. Only the first is listed, written and deleted from.

>>> from dvk.backend.memory import MemoryBackend
>>> own, other = MemoryBackend(), MemoryBackend()
>>> other.put("p/x", [b"abc"])
>>> FirstOf([own, other]).get_range("p/x", 1, 2)
b'bc'

Objects of a store are named by their content or at random, so one of a name is as good as another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dvk.backend.contract import Backend, Buffer, Capabilities, KeyMissing, Listed

_T = TypeVar("_T")


class FirstOf(Backend):
    """The backend `backends[0]`, with the objects of the others to read. Closing it closes all."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._own, self._all = backends[0], tuple(backends)
        self.name = self._own.name

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._own.capabilities

    def _first(self, read: Callable[[Backend], _T]) -> _T:
        for backend in self._all[:-1]:
            try:
                return read(backend)
            except KeyMissing:
                continue
        return read(self._all[-1])

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._first(lambda backend: backend.get(key, max_bytes=max_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self._first(lambda backend: backend.get_range(key, offset, length))

    def view(self, key: str, *, max_bytes: int) -> memoryview:
        return self._first(lambda backend: backend.view(key, max_bytes=max_bytes))

    def stat(self, key: str) -> int | None:
        found = (backend.stat(key) for backend in self._all)
        return next((size for size in found if size is not None), None)

    def list(self, prefix: str) -> Iterator[Listed]:
        return self._own.list(prefix)

    def survey(self, prefix: str) -> Iterator[Listed]:
        return self._own.survey(prefix)

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self._own.put(key, parts, create_only=create_only)

    def delete(self, key: str) -> None:
        self._own.delete(key)

    def close(self) -> None:
        for backend in self._all:
            backend.close()
