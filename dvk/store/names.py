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
_WINDOW = 1 << 15


def windows(n: int, size: int = _WINDOW) -> Iterator[slice]:
    """`range(n)` in runs, for work on columns whose temporaries would else be several times the columns.

    >>> list(windows(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


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
        return cls.cut(np.frombuffer(b"".join(kept), np.uint8), np.array([len(x) for x in kept], np.int64))

    @classmethod
    def cut(cls, blob: U8, lengths: npt.NDArray[np.integer]) -> Names:
        """The names of these lengths that lie one after the other in `blob`."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, dtype=np.int64, out=offsets[1:])
        return cls(blob, offsets)

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
        offsets = np.zeros(len(index) + 1, np.int64)
        for run in windows(len(index)):
            at = index[run]
            np.subtract(self.offsets[1:][at], self.offsets[:-1][at], out=offsets[1:][run])
        np.cumsum(offsets[1:], out=offsets[1:])
        blob = np.empty(int(offsets[-1]), np.uint8)
        # A gather by the run: where each byte comes from is a number eight times its size.
        for run in windows(len(index)):
            ends = offsets[1:][run]
            first, last = int(offsets[run.start]), int(ends[-1])
            source = np.arange(first, last, dtype=np.int64)
            source += np.repeat(self.offsets[:-1][index[run]] - offsets[:-1][run], np.diff(ends, prepend=first))
            blob[first:last] = self.blob[source]
        return Names(blob, offsets)

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


def merge_order(names: Names, first: int) -> I64:
    """The order that sorts `names`, of which the first `first` are ascending, and those that follow as well.

    >>> merge_order(Names.of([b"a", b"c", b"b", b"d"]), 2).tolist()
    [0, 2, 1, 3]
    """
    ours, theirs = names.slice(0, first), names.slice(first, len(names))
    few, many = (ours, theirs) if len(ours) <= len(theirs) else (theirs, ours)
    if len(few) * 16 > len(many):  # a sort knows ascending runs, and looks at each name once
        each = list(names)
        return np.array(sorted(range(len(each)), key=each.__getitem__), np.int64)
    places = np.fromiter((many.find(name) for name in few), np.int64, len(few))
    a, b = (0, first) if few is ours else (first, 0)
    return np.insert(np.arange(b, b + len(many)), places, np.arange(a, a + len(few)))


def same_rows(ours: U8, at: npt.NDArray[np.intp], theirs: U8, there: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """bool[k]: whether row `at[i]` of `ours` (uint8[n, 32]) is row `there[i]` of `theirs` (uint8[m, 32])."""
    out = np.empty(len(at), np.bool_)
    for run in windows(len(at)):
        out[run] = (ours[at[run]] == theirs[there[run]]).all(axis=1)
    return out


def rows_among(wanted: U8, columns: Iterable[U8]) -> npt.NDArray[np.bool_]:
    """bool[k]: which of the ids `wanted` (uint8[k, 32]) stand in one of `columns` (uint8[n, 32] each).

    The columns may be long: nothing of their size is made.
    """
    if not len(wanted):
        return np.zeros(0, np.bool_)
    starts = distinct(_starts(wanted))
    found: set[bytes] = set()
    for column in columns:
        for run in windows(len(column)):
            theirs = _starts(column[run])
            at = np.minimum(np.searchsorted(starts, theirs), len(starts) - 1)
            found.update(row.tobytes() for row in column[run][starts[at] == theirs])
    return np.fromiter((row.tobytes() in found for row in wanted), np.bool_, len(wanted))


def _starts(ids: U8) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(ids[:, :8]).view(np.uint64).reshape(-1)


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
