"""What long work tells whoever watches: progress and notes. Libraries emit, the terminal renders.

>>> seen = []
>>> meter = Meter(seen.append, "upload", total_bytes=10)
>>> meter.advance(bytes_=4)
>>> seen[-1].done_bytes
4
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec import Struct


class Progress(Struct, frozen=True):
    """How far one stage is. Totals are None while they are not known."""

    stage: str  #: a word for people: "read", "upload", "download", "write", "scan"
    done_bytes: int
    total_bytes: int | None
    done_items: int
    total_items: int | None


class Note(Struct, frozen=True):
    """Something worth a line that is no error: a rule that was overruled, a file left out."""

    message: str
    subject: str = ""
    hint: str = ""


class Used(Struct, frozen=True):
    """A version of tracked data that was handed out: what a job read (`dvk manifest --read`)."""

    path: bytes  #: the tracked path, from the top
    kind: str  #: "file" or "dir"
    id: bytes
    size: int
    files: int | None = None  #: of a folder
    parts: tuple[bytes, ...] = ()  #: of a folder, what was asked for of it; empty: all
    commit: str = ""  #: where a revision was named
    repo: str = ""  #: the URL of another repository that it is from


Event = Progress | Note | Used
OnEvent = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The listener that drops everything."""


class Meter:
    """Counts one stage from any thread and emits a `Progress` at each step of `advance`."""

    def __init__(
        self,
        on_event: OnEvent,
        stage: str,
        *,
        total_bytes: int | None = None,
        total_items: int | None = None,
    ) -> None:
        self._on_event = on_event
        self._lock = threading.Lock()
        self.stage = stage
        self.total_bytes = total_bytes
        self.total_items = total_items
        self.done_bytes = 0
        self.done_items = 0

    def advance(self, *, bytes_: int = 0, items: int = 0) -> None:
        """Add to what is done. Call it for batches, not for single chunks."""
        with self._lock:
            self.done_bytes += bytes_
            self.done_items += items
            event = Progress(self.stage, self.done_bytes, self.total_bytes, self.done_items, self.total_items)
        self._on_event(event)
