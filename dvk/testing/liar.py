"""A backend that misbehaves the way broken servers do, all the time, and says that all is well.

    b = LyingBackend(MemoryBackend(), "short-answer")
    b.put("p/x", [b"abcdef"])
    b.get_range("p/x", 0, 6)                        # b"abc", and no error

`FaultBackend` fails an operation and says so; this one lies. The lies carry the names of the findings of
`dvk.backend.check`, which has to tell them all. Others can hold their own checks against them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from dvk.backend.contract import Backend, Buffer, Capabilities, Listed
from dvk.errors import RemoteDenied

Lie = Literal[
    "create-only",  # ignored: whoever comes last wins, and everybody is told that they won
    "short-answer",  # ranges and objects come back short, with a matching length
    "wrong-range",  # ranges are ignored: the first bytes come, whatever was asked for
    "stored-framing",  # the framing of an upload becomes part of the object (boto3#4435)
    "truncates",  # objects above 64 KiB lose their end
    "lost-write",  # an error under the status 200: nothing is stored
    "wrong-content",  # a byte flips
    "stale-list",  # new objects are listed only after some listings
    "stale-read",  # new objects are found only after some questions
    "keeps-deleted",  # deleted objects stay
    "key-case",  # listings spell keys in capitals
    "key-spelling",  # listings spell keys percent-encoded
    "list-cap",  # listings end after 1,000 keys
    "missing-is-denied",  # 403 for what does not exist
    "no-delete",  # deleting is forbidden, as for a pusher
    "no-write",  # writing is forbidden, as for a reader
]
LIES: tuple[Lie, ...] = get_args(Lie)
_LATE = 2  # questions that are answered from the past


class LyingBackend(Backend):
    """`inner`, seen through one lie. Thread-safe."""

    def __init__(self, inner: Backend, lie: Lie) -> None:
        self.inner, self.lie, self.name = inner, lie, inner.name
        self._lock = threading.Lock()
        self._asked: dict[str, int] = {}  # how often about each key since it was written

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self.inner.capabilities

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        data = b"".join(parts)
        if self.lie == "no-write":
            raise RemoteDenied("the server says AccessDenied", subject=f"{self.name}/{key}")
        if self.lie == "lost-write":
            return
        if self.lie == "truncates":
            data = data[: 64 << 10]
        if self.lie == "wrong-content" and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.lie == "stored-framing":
            data = b"%x;chunk-signature=%s\r\n" % (len(data), b"0" * 64) + data + b"\r\n0\r\n\r\n"
        self.inner.put(key, [data], create_only=create_only and self.lie != "create-only")
        with self._lock:
            self._asked[key] = 0

    def get(self, key: str, *, max_bytes: int) -> bytes:
        self._deny_missing(key)
        return self._cut(self.inner.get(key, max_bytes=max_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._deny_missing(key)
        data = self.inner.get_range(key, offset, length)
        if self.lie == "wrong-range":
            return self.inner.get_range(key, 0, length)
        return self._cut(data)

    def stat(self, key: str) -> int | None:
        self._deny_missing(key)
        return None if self.lie == "stale-read" and self._is_late(key) else self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        return (row for row in self.survey(prefix) if row.key.startswith(prefix) and row.key.islower())

    def survey(self, prefix: str) -> Iterator[Listed]:
        rows = sorted(self.inner.survey(prefix), key=lambda row: row.key)
        match self.lie:
            case "list-cap":
                rows = rows[:1000]
            case "stale-list":
                rows = [row for row in rows if not self._is_late(row.key)]
            case "key-case":
                rows = [Listed(row.key.upper(), row.size_bytes) for row in rows]
            case "key-spelling":
                rows = [Listed(row.key.replace("/", "%2F"), row.size_bytes) for row in rows]
        return iter(rows)

    def delete(self, key: str) -> None:
        if self.lie == "no-delete":
            raise RemoteDenied("the server says AccessDenied", subject=f"{self.name}/{key}")
        if self.lie != "keeps-deleted":
            self.inner.delete(key)

    def close(self) -> None:
        self.inner.close()

    def _cut(self, data: bytes) -> bytes:
        return data[: (len(data) + 1) // 2] if self.lie == "short-answer" and len(data) > 1 else data

    def _deny_missing(self, key: str) -> None:
        if self.lie == "missing-is-denied" and self.inner.stat(key) is None:
            raise RemoteDenied("the server says AccessDenied", subject=f"{self.name}/{key}")

    def _is_late(self, key: str) -> bool:
        with self._lock:
            self._asked[key] = self._asked.get(key, 0) + 1
            return self._asked[key] <= _LATE
