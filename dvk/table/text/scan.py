"""Where the records of a text lie: quotes and line ends as bits, 64 to a word.

    7,"a
    b",3                      one record of two lines: the first line end lies inside quotes

A line end ends a record if an even number of quotes lies before it. Byte by byte that is slow in Python, and positions
of every quote take more memory than the text. So a run of bytes becomes one bit a byte for each byte that matters,
"odd number of quotes so far" is a prefix XOR of the quote bits, and everything else is a few operations on words:
2.7 GB/s on one core, with the interpreter lock released.

>>> facts = scan(b'7,"a\\nb",3\\n', np.array([0, 5, 10]), quote=34, end=10)
>>> facts.quotes.tolist(), facts.even.tolist(), facts.odd.tolist(), facts.first_even.tolist(), facts.first_odd.tolist()
([1, 1], [0, 0], [1, 1], [0, 0], [5, 5])
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import astuple

from dvk.store.names import I64, U8

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

QUOTE, LF, CR = 34, 10, 13
_ONE = np.uint64(1)
_SHIFTS = tuple(np.uint64(s) for s in (1, 2, 4, 8, 16, 32))
_63 = np.uint64(63)
_WORD = 64


class Facts(Struct, frozen=True):
    """About n runs of bytes, each array uint32[n]; docs/format/table-cache.md says what each is.

    They depend on the bytes of a run alone, so that runs that two versions share are scanned once.
    """

    quotes: U32
    even: U32
    odd: U32
    first_even: U32
    first_odd: U32
    last_even: U32
    last_odd: U32

    def __len__(self) -> int:
        return len(self.quotes)

    @property
    def arrays(self) -> tuple[U32, ...]:
        """In the order of the format."""
        return astuple(self)

    @classmethod
    def join(cls, parts: Sequence[Facts]) -> Facts:
        """Of the runs of all parts, in order."""
        none = np.zeros(0, np.uint32)
        columns = zip((none,) * len(cls.__struct_fields__), *(p.arrays for p in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, index: I64) -> Facts:
        """Of the runs at `index`."""
        return Facts(*(column[index] for column in self.arrays))


class Flaw(Struct, frozen=True):
    """What makes a text no table: `offset` of the byte (in the run that was checked) and why."""

    offset: int
    why: str


def scan(data: bytes, cuts: I64, *, quote: int, end: int) -> Facts:
    """Facts about the runs `data[cuts[i]:cuts[i + 1]]`, each as if it began with no quote open.

    `quote`: the quote byte, 0 for none; `end`: the byte that ends a record (LF or CR). Runs are under 4 GiB.
    """
    starts, stops = cuts[:-1], cuts[1:]
    zero = np.zeros(len(starts), np.uint32)
    ends = _bits(data, end)
    if not quote or quote not in data:
        count, first, last = _ends(ends, starts, stops)
        return Facts(zero, count, zero, first, zero, last, zero)
    quotes = _bits(data, quote)
    open_ = _prefix_xor(quotes)
    at = _Ranked(quotes).before(cuts)
    evens, odds = _ends(ends & ~open_, starts, stops), _ends(ends & open_, starts, stops)
    # What counted from the beginning of `data` is wanted from the beginning of each run.
    flip = (at[:-1] & 1).astype(bool)
    even, first_even, last_even = (np.where(flip, b, a) for a, b in zip(evens, odds, strict=True))
    odd, first_odd, last_odd = (np.where(flip, a, b) for a, b in zip(evens, odds, strict=True))
    return Facts(np.diff(at).astype(np.uint32), even, odd, first_even, first_odd, last_even, last_odd)


def find_record_ends(data: bytes, nth: I64, *, quote: int, end: int, odd: bool = False) -> I64:
    """Offsets just behind the record ends of these numbers (from 0) in `data`, 0 for one that it has not.

    `odd`: an odd number of quotes lies before it.
    """
    ends = _bits(data, end)
    if quote and quote in data:
        open_ = _prefix_xor(_bits(data, quote))
        ends = ends & (open_ if odd else ~open_)
    elif odd:
        return np.zeros(len(nth), np.int64)
    return _Ranked(ends).place(nth) + 1


def last_record_end(data: bytes, *, quote: int, end: int) -> int:
    """The offset behind the last record end of `data`, which begins with no quote open; 0 if there is none."""
    if not quote or quote not in data:
        return data.rfind(end) + 1
    ends = _bits(data, end) & ~_prefix_xor(_bits(data, quote))
    words = np.flatnonzero(ends)
    return int(words[-1]) * _WORD + int(ends[words[-1]]).bit_length() if len(words) else 0


def find_flaw(data: bytes, *, quote: int, delimiter: int, end: int, blank: str = "") -> Flaw | None:
    """The first misplaced quote or line end of `data`, which begins at a record and stops behind one or with the file.

    A quote opens a field only as its first byte and closes it only as its last; between, quotes come in pairs. A
    carriage return outside quotes belongs to a line end. `blank`: what is wrong with an empty record; empty: nothing.
    """
    other = CR if end == LF else LF
    has_quotes, has_other = bool(quote) and quote in data, other in data
    if not has_quotes and not has_other and not blank:
        return None
    ends = _bits(data, end)
    others = _bits(data, other) if has_other else np.zeros_like(ends)
    quotes = _bits(data, quote) if has_quotes else np.zeros_like(ends)
    open_ = _prefix_xor(quotes) if has_quotes else quotes
    flaws: list[Flaw] = []
    if blank:
        starts = _towards_end(ends & ~open_)
        empty = ends & starts
        if has_other:
            empty |= others & starts & _towards_start(ends, len(data), last=False)
        flaws += _flaw(empty & ~open_, blank)
    if has_other:
        alone = others & ~open_
        if end == LF:
            alone &= ~_towards_start(ends, len(data), last=False)
        what = "a carriage return outside quotes that ends no line" if end == LF else "a line feed outside quotes"
        flaws += _flaw(alone, f"{what}, in a text whose lines end in {'LF or CRLF' if end == LF else 'CR'}")
    if has_quotes:
        around = _bits(data, delimiter) | ends | quotes
        flaws += _flaw(quotes & open_ & ~_towards_end(around), "a quote inside a field that does not begin with one")
        flaws += _flaw(
            quotes & ~open_ & ~_towards_start(around | others, len(data), last=True),
            "text behind the quote that closes a field",
        )
    return min(flaws, key=lambda flaw: flaw.offset, default=None)


def field_counts(data: bytes, *, quote: int, delimiter: int, end: int) -> tuple[I64, I64]:
    """(starts of the records, fields of each) of `data`, which begins with no quote open."""
    ends, delimiters = _bits(data, end), _bits(data, delimiter)
    if quote and quote in data:
        open_ = _prefix_xor(_bits(data, quote))
        ends, delimiters = ends & ~open_, delimiters & ~open_
    stops = _positions(ends) + 1
    if not len(stops) or stops[-1] < len(data):
        stops = np.append(stops, len(data))
    before = _Ranked(delimiters).before(np.concatenate([np.zeros(1, np.int64), stops]))
    return np.concatenate([np.zeros(1, np.int64), stops[:-1]]), np.diff(before) + 1


def inside_quotes(quotes: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether each byte lies inside quotes, given which are quotes; an opening one does, a closing one does not."""
    padded = np.zeros((len(quotes) // _WORD + 1) * _WORD, np.bool_)
    padded[: len(quotes)] = quotes
    words = np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    inside = _prefix_xor(words).astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(inside, bitorder="little", count=len(quotes)).view(np.bool_)


def outside(data: bytes, byte: int, *, quote: int) -> I64:
    """Where `byte` lies outside quotes."""
    found = _bits(data, byte)
    if quote and quote in data:
        found = found & ~_prefix_xor(_bits(data, quote))
    return _positions(found)


# ---------------------------------------------------------------- bits

_kept = threading.local()


def _bits(data: bytes, byte: int) -> U64:
    """One bit for each byte of `data` that is `byte`, first byte lowest, with a word of zeros at the end."""
    size = (len(data) // _WORD + 2) * _WORD
    mask = getattr(_kept, "mask", None)
    if mask is None or len(mask) < size:
        mask = _kept.mask = np.zeros(max(size, 1 << 20), np.bool_)
    mask = mask[:size]
    np.equal(np.frombuffer(data, np.uint8), byte, out=mask[: len(data)])
    mask[len(data) :] = False
    words: U64 = np.packbits(mask, bitorder="little").view("<u8").astype(np.uint64, copy=False)
    return words


def _prefix_xor(words: U64) -> U64:
    """Bit i: whether an odd number of bits is set up to and with bit i."""
    out = words.copy()
    moved = np.empty_like(out)
    for shift in _SHIFTS:
        np.left_shift(out, shift, out=moved)
        np.bitwise_xor(out, moved, out=out)
    carry = np.bitwise_xor.accumulate(out >> _63)
    out[1:] ^= np.negative(carry[:-1])  # all ones behind an odd number
    return out


def _towards_end(words: U64) -> U64:
    """Each bit moved one byte up; the byte before the first counts as set."""
    out = words << _ONE
    out[1:] |= words[:-1] >> _63
    out[0] |= _ONE
    return out


def _towards_start(words: U64, size: int, *, last: bool) -> U64:
    """Each bit moved one byte down; `last` says whether the byte behind the last counts as set."""
    out = words >> _ONE
    out[:-1] |= words[1:] << _63
    if last and size:
        out[(size - 1) // _WORD] |= _ONE << np.uint64((size - 1) % _WORD)
    return out


def _positions(words: U64) -> I64:
    return np.flatnonzero(np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), bitorder="little"))


def _flaw(words: U64, why: str) -> list[Flaw]:
    bad = np.flatnonzero(words)
    if not len(bad):
        return []
    word = int(words[bad[0]])
    return [Flaw(int(bad[0]) * _WORD + (word & -word).bit_length() - 1, why)]


if hasattr(np, "bitwise_count"):

    def _popcount(words: U64) -> I64:
        counts: I64 = np.bitwise_count(words).astype(np.int64)
        return counts

else:  # numpy 1
    _ONES: U8 = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)

    def _popcount(words: U64) -> I64:
        counts: I64 = _ONES[np.ascontiguousarray(words).view(np.uint8)].reshape(-1, 8).sum(axis=1, dtype=np.int64)
        return counts


class _Ranked:
    """Bits that can be counted up to any place."""

    __slots__ = ("_sums", "words")

    def __init__(self, words: U64) -> None:
        self.words = words
        self._sums = np.zeros(len(words) + 1, np.int64)
        np.cumsum(_popcount(words), out=self._sums[1:])

    def before(self, at: I64) -> I64:
        """How many bits are set before each of `at`."""
        word = at // _WORD
        below = (_ONE << (at % _WORD).astype(np.uint64)) - _ONE
        return self._sums[word] + _popcount(self.words[word] & below)

    def place(self, rank: I64) -> I64:
        """Where the set bits of these ranks are, from 0; -1 for a rank that no bit has."""
        known = (rank >= 0) & (rank < self._sums[-1])
        rank = np.where(known, rank, 0)
        word = np.minimum(np.searchsorted(self._sums, rank, side="right") - 1, len(self.words) - 1)
        bits = self.words[word]
        for left in range(int((rank - self._sums[word]).max(initial=0))):
            bits = np.where(left < rank - self._sums[word], bits & (bits - _ONE), bits)  # drop the lowest
        lowest = bits & np.negative(bits)
        return np.where(known, word * _WORD + _popcount(lowest - _ONE), -1)


def _ends(words: U64, starts: I64, stops: I64) -> tuple[U32, U32, U32]:
    """Of each run: (record ends in it, offsets just behind the first and the last of them, 0 for none)."""
    ranked = _Ranked(words)
    before, until = ranked.before(starts), ranked.before(stops)
    some = until > before
    first = np.where(some, ranked.place(before) + 1 - starts, 0)
    last = np.where(some, ranked.place(until - 1) + 1 - starts, 0)
    return (until - before).astype(np.uint32), first.astype(np.uint32), last.astype(np.uint32)
