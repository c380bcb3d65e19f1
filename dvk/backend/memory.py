"""A medium in memory: the model that the others are tested against, and the fastest test store.

>>> b = MemoryBackend()
>>> b.put("j/x", [b"ab", b"c"])
>>> b.get_range("j/x", 1, 2), b.stat("j/y")
(b'bc', None)

One lock and one dictionary make every operation happen at one instant, so whatever a store does
wrong on this medium it does wrong by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from dvk.backend.contract import (
    Backend,
    Buffer,
    Capabilities,
    KeyExists,
    KeyMissing,
    Listed,
    check_key,
    check_prefix,
    check_range,
)
from dvk.errors import Corrupt, FormatError


class MemoryBackend(Backend):
    """Linearizable; `create_only` is exact."""

    capabilities = Capabilities(create_only=True, releases_parts=True)

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        check_key(key)
        data = b"".join(parts)
        with self._lock:
            if create_only and key in self._objects:
                raise KeyExists("already there", subject=f"{self.name}/{key}")
            self._objects[key] = data

    def get(self, key: str, *, max_bytes: int) -> bytes:
        data = self._find(key)
        if len(data) > max_bytes:
            raise FormatError(
                f"object of {len(data):,} bytes where at most {max_bytes:,} make sense",
                subject=f"{self.name}/{key}",
            )
        return data

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        data = self._find(key)
        if offset + length > len(data):
            raise Corrupt(
                f"object ends at byte {len(data):,}, before {offset + length:,}", subject=f"{self.name}/{key}"
            )
        return data[offset : offset + length]

    def stat(self, key: str) -> int | None:
        with self._lock:
            data = self._objects.get(check_key(key))
        return None if data is None else len(data)

    def list(self, prefix: str) -> Iterator[Listed]:
        check_prefix(prefix)
        with self._lock:
            rows = [Listed(key, len(data)) for key, data in self._objects.items() if key.startswith(prefix)]
        return iter(rows)

    def delete(self, key: str) -> None:
        with self._lock:
            self._objects.pop(check_key(key), None)

    def _find(self, key: str) -> bytes:
        with self._lock:
            data = self._objects.get(check_key(key))
        if data is None:
            raise KeyMissing("no such object", subject=f"{self.name}/{key}")
        return data
