"""What a splitter may look at, and how much of it: a part of a file, read at random, within a budget.

A file's headers come from anybody. They are read through a `Span`, which cannot leave its part of the file, and every
look and every step of a loop is paid from a `Budget` that grows with the file, so that a lying header costs little
beside cutting the file plainly. Whoever has a doubt raises `Doubt`, and that part of the file is cut plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from dvk.store.codec import Hint

#: Up to `size` bytes at `offset`; fewer only at the end of the file.
Read = Callable[[int, int], bytes]

#: A piece of at least this length is cut by itself; shorter ones are joined with their neighbours. A chunk costs about
#: 90 bytes in recipe, footer and index: 0.3 % of this.
STANDING_BYTES: Final = 32 * 1024
#: How deep formats are looked for in members of archives: a tensor file in a tar in a zip.
_MAX_DEPTH: Final = 2


class Doubt(Exception):
    """A file's structure does not hold, or costs too much to follow."""


class Piece(NamedTuple):
    """Bytes `start` to `end` of a file, which belong together."""

    start: int
    end: int
    fixed: bool  #: cut on a grid from `start`, since nothing is ever inserted into it; else by content
    hint: Hint


class Budget:
    """How much may be read and done for one file. A step is 0.2 to 0.5 us of Python; a read costs three."""

    def __init__(self, size: int) -> None:
        self._bytes = min(1 << 20, size) + min(size // 8, 32 << 20)
        self._steps = 500 + size // 1024

    def spend(self, *, steps: int, bytes_: int = 0) -> None:
        """Raises Doubt when the budget does not allow it."""
        self._steps -= steps
        self._bytes -= bytes_
        if self._steps < 0 or self._bytes < 0:
            raise Doubt


class Span:
    """`size` bytes of a file from `base` on. Offsets are of the span, positions (`absolute`) of the file."""

    def __init__(self, read: Read, base: int, size: int, budget: Budget, depth: int = 0) -> None:
        self._read = read
        self.base, self.size, self.budget, self.depth = base, size, budget, depth

    def at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes at `offset`, or Doubt."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Doubt
        self.budget.spend(steps=3, bytes_=size)
        data = self._read(self.base + offset, size)
        if len(data) != size:
            raise Doubt
        return data

    def within(self, offset: int, size: int) -> Span:
        """A part of the span, one level deeper."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Doubt
        return Span(self._read, self.base + offset, size, self.budget, self.depth + 1)

    @property
    def may_nest(self) -> bool:
        """Whether formats are looked for in here."""
        return self.depth <= _MAX_DEPTH

    def piece(self, offset: int, end: int, *, fixed: bool = False, hint: Hint = Hint.UNKNOWN) -> Piece:
        """A piece of the span, checked to lie in it."""
        if not 0 <= offset <= end <= self.size:
            raise Doubt
        return Piece(self.base + offset, self.base + end, fixed, hint)
