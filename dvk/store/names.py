"""Many byte strings as two arrays, since a million entries must not be a million objects.

A folder of a million files is one blob of names and one array of offsets: 30 MB instead of 100 MB of
Python objects, compared with one `==` and searched without decoding.

>>> n = Names.of([b"a.txt", b"b/c.txt"])
>>> n[1], len(n), n.under(b"b")
(b'b/c.txt', 2, (1, 2))
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

_AT_ONCE = 1 << 14


class Names:
    """An immutable sequence of byte strings: `blob` (uint8) cut at `offsets` (int64, n + 1 of them)."""

    __slots__ = ("_bytes", "blob", "offsets")

    def __init__(self, blob: U8, offsets: I64) -> None:
        self.blob = blob
        self.offsets = offsets
        self._bytes: bytes | None = None

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Names:
        """Pack an iterable of byte strings."""
        kept = list(names)
        offsets = np.zeros(len(kept) + 1, np.int64)
        np.cumsum([len(x) for x in kept], out=offsets[1:])
        return cls(np.frombuffer(b"".join(kept), np.uint8), offsets)

    @classmethod
    def join(cls, parts: Iterable[Names]) -> Names:
        """The concatenation of several sequences."""
        kept = list(parts)
        if not kept:
            return cls.of([])
        sizes = [np.diff(p.offsets) for p in kept]
        offsets = np.zeros(sum(len(s) for s in sizes) + 1, np.int64)
        np.cumsum(np.concatenate(sizes), out=offsets[1:])
        return cls(np.concatenate([p.blob[p.offsets[0] : p.offsets[-1]] for p in kept]), offsets)

    @property
    def lengths(self) -> I64:
        """The length of each name in bytes."""
        return np.diff(self.offsets)

    def tobytes(self) -> bytes:
        """The whole blob; made once, kept for slicing."""
        if self._bytes is None:
            self._bytes = self.blob.tobytes()
        return self._bytes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> bytes:
        n = len(self)
        if i < 0:
            i += n
        if not 0 <= i < n:
            raise IndexError(i)
        return self.blob[int(self.offsets[i]) : int(self.offsets[i + 1])].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        # By the run: a million numbers of Python take more memory than the names.
        for start in range(0, len(self), _AT_ONCE):
            offsets = self.offsets[start : start + _AT_ONCE + 1]
            first = int(offsets[0])
            blob = self.blob[first : int(offsets[-1])].tobytes()
            for a, b in itertools.pairwise((offsets - first).tolist()):
                yield blob[a:b]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Names)
            and len(self) == len(other)
            and bool(np.array_equal(self.lengths, other.lengths))
            and bool(
                np.array_equal(
                    self.blob[self.offsets[0] : self.offsets[-1]],
                    other.blob[other.offsets[0] : other.offsets[-1]],
                )
            )
        )

    __hash__ = None  # type: ignore[assignment]

    def slice(self, start: int, stop: int) -> Names:
        """Names `start` to `stop`; shares memory."""
        return Names(self.blob, self.offsets[start : stop + 1])

    def take(self, index: npt.NDArray[np.intp]) -> Names:
        """The names at `index` (int array, any order), copied together."""
        lengths = self.lengths[index]
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # One gather: for each output byte, where it comes from.
        source = np.arange(int(offsets[-1]), dtype=np.int64)
        source += np.repeat(self.offsets[:-1][index] - offsets[:-1], lengths)
        return Names(self.blob[source], offsets)

    def find(self, name: bytes) -> int:
        """The position where `name` is, or would be inserted, in a sorted sequence (bisect_left)."""
        low, high = 0, len(self)
        while low < high:
            mid = (low + high) // 2
            if self[mid] < name:
                low = mid + 1
            else:
                high = mid
        return low

    def under(self, prefix: bytes) -> tuple[int, int]:
        """The half-open range of names that lie below the directory `prefix`, in a sorted sequence."""
        if not prefix:
            return 0, len(self)
        return self.find(prefix + b"/"), self.find(prefix + b"0")


def distinct(values: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """The distinct `values` (of any shape), ascending.

    As `np.unique`, which asks first whether they are masked, and imports numpy.ma for that: 6 to 10 ms of each start.
    """
    out: npt.NDArray[_T] = np.unique(values, return_counts=True)[0]
    return out


def show(name: bytes) -> str:
    """A name for people: printable text as it is, the rest escaped, so that a hostile name cannot reach the terminal.

    >>> show(b"a\\x1b[31m.txt"), show("é".encode())
    ('a\\\\x1b[31m.txt', 'é')
    """
    text = name.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    out = []
    for ch in text:
        code = ord(ch)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif ch == "\\":
            out.append("\\\\")
        elif ch.isprintable():
            out.append(ch)
        else:
            out.append(ch.encode("unicode_escape").decode("ascii"))
    return "".join(out)
