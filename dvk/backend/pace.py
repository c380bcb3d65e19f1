"""Downloads: their pace, and room for them.

>>> pace = Pace(10.0)
>>> pace.check(4_096)
>>> room = room_for(6)
>>> room.write(b"abc"), room.write(b"def"), content(room)
(3, 3, b'abcdef')

A limit on each read would let one byte a minute pass for ever. So after a grace, a slowest rate must have been kept up
since the beginning, and something must have moved lately.

Pieces that are joined at the end need twice the room, and a buffer that grows leaves holes in the heap that nobody
fills again: 100 MB of a pull. So the room is made at once, and given away without a copy.
"""

from __future__ import annotations

import io
import time

#: The floor is for one connection of many.
SLOWEST_BYTES_PER_S = 4 << 10


class Pace:
    """Watches one transfer, from now on. `grace_s` is how long nothing may move."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._began = self._moved_at = time.monotonic()
        self._moved = 0

    def check(self, moved: int) -> None:
        """Note that `moved` bytes have passed so far.

        Raises:
            TimeoutError: they are too few by now.
        """
        now = time.monotonic()
        if moved != self._moved:
            self._moved, self._moved_at = moved, now
        if now - self._moved_at > self._grace_s:
            raise TimeoutError(f"nothing moved for {self._grace_s:.0f} s")
        if moved < (now - self._began - self._grace_s) * SLOWEST_BYTES_PER_S:
            raise TimeoutError(f"only {moved:,} bytes moved in {now - self._began:.0f} s")


def room_for(size_bytes: int) -> io.BytesIO:
    """A file in memory that takes that many bytes without growing. Take them with `content`."""
    room = io.BytesIO()
    if size_bytes > 0:
        room.seek(size_bytes - 1)
        room.write(b"\0")
        room.seek(0)
    return room


def content(room: io.BytesIO) -> bytes:
    """What was written to it; no copy when that is all there was room for."""
    room.truncate()
    return room.getvalue()
