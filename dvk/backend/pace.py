"""Ends a transfer that stalls or trickles, where a limit on each read would let one byte a minute pass for ever.

>>> pace = Pace(10.0)
>>> pace.check(4_096)

Choice: after a grace, a slowest rate must have been kept up since the beginning, and something must have moved lately.
"""

from __future__ import annotations

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
