"""What the two sides of a gap between shared chunks have in common at their ends.

    A   ... shared | 5,e  6,f  7,g  8,h | shared ...      one changed row makes a new chunk of some 600 rows;
    B   ... shared | 5,e  6,X  7,g  8,h | shared ...      5, 7 and 8 are the same bytes behind the same state

Bytes that are equal and lie behind an equal state of the quotes are equal records, wherever chunks were cut. So the
chunks of a gap are decoded once, here, the record ends in the common head and tail are counted, and what lies between
is kept for the reader, who would have to decode the same chunks again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.table.parallel import ordered_map
from dvk.table.text.index import TextIndex
from dvk.table.text.scan import scan
from dvk.table.text.table import TextTable

_WHOLE_BYTES = 2 << 20  # of one side of a gap; in a longer one little is gained
_TOGETHER = 16  # gaps whose bytes are asked for together
_HELD_BYTES = 64 << 20  # of what lies between heads and tails, of all gaps together


class Gap(Struct, frozen=True):
    """Chunks [a, a_stop) of A and [b, b_stop) of B, between shared ones or the ends of the texts."""

    a: int
    a_stop: int
    b: int
    b_stop: int

    @property
    def two_sided(self) -> bool:
        return self.a < self.a_stop and self.b < self.b_stop


class Ends(Struct, frozen=True):
    """How many records end in the common head of both sides of a gap, and how many in the common tail."""

    head: int = 0
    tail: int = 0


class _Cut(Struct, frozen=True):
    """One side of a gap cut into head, middle and tail.

    Record ends in it, in its head, in its tail; offset in the text behind the last one of the head, and behind the
    first one of the tail.
    """

    records: int
    head: int
    tail: int
    head_at: int
    tail_at: int
    middle: bytes


def trim(a: TextTable, b: TextTable, gaps: list[Gap]) -> list[Ends]:
    """What the sides of each gap (ascending) have in common. Both tables then know where the rest of each gap lies."""
    room = _HELD_BYTES
    out = []
    for gap, cuts in zip(gaps, ordered_map(lambda gap: _cut_both(a, b, gap), _expected(a, b, gaps)), strict=True):
        if cuts is None:
            out.append(Ends())
            continue
        room -= sum(len(cut.middle) for cut in cuts)
        for table, cut, low, high in ((a, cuts[0], gap.a, gap.a_stop), (b, cuts[1], gap.b, gap.b_stop)):
            index = table.index
            if cut.head:
                index.pin(int(index.before[low]) + cut.head, cut.head_at)
            if cut.tail:
                index.pin(int(index.before[high]) - cut.tail + 1, cut.tail_at)
            if cut.middle and room >= 0:
                table.hold(cut.head_at, cut.middle)
        out.append(Ends(cuts[0].head, cuts[0].tail))
    return out


def _expected(a: TextTable, b: TextTable, gaps: list[Gap]) -> Iterator[Gap]:
    """The gaps; what several of them take is announced before the first of them is cut."""
    for at in range(0, len(gaps), _TOGETHER):
        some = gaps[at : at + _TOGETHER]
        for table, bounds in ((a, [(g.a, g.a_stop) for g in some]), (b, [(g.b, g.b_stop) for g in some])):
            starts = table.index.starts
            ranges = [
                (int(starts[low]), int(starts[high] - starts[low]))
                for gap, (low, high) in zip(some, bounds, strict=True)
                if _worth(a, b, gap)
            ]
            table.text.expect(ranges)
        yield from some


def _worth(a: TextTable, b: TextTable, gap: Gap) -> bool:
    """Whether a gap is read to be cut."""
    sizes = a.index.starts[gap.a_stop] - a.index.starts[gap.a], b.index.starts[gap.b_stop] - b.index.starts[gap.b]
    return gap.two_sided and max(sizes) <= _WHOLE_BYTES


def _cut_both(a: TextTable, b: TextTable, gap: Gap) -> tuple[_Cut, _Cut] | None:
    """Both sides cut at the same places, counted from their ends; None where nothing is gained or sure."""
    one, other = a.index, b.index
    sizes = int(one.starts[gap.a_stop] - one.starts[gap.a]), int(other.starts[gap.b_stop] - other.starts[gap.b])
    if not _worth(a, b, gap) or _states(one, gap.a, gap.a_stop) != _states(other, gap.b, gap.b_stop):
        return None
    x, y = a.text.read_at(int(one.starts[gap.a]), sizes[0]), b.text.read_at(int(other.starts[gap.b]), sizes[1])
    head, tail = common_ends(x, y)
    cuts = _cut(one, x, gap.a, head, tail), _cut(other, y, gap.b, head, tail)
    # What was known of the chunks before must agree, or nothing is said about their records here.
    known = int(one.before[gap.a_stop] - one.before[gap.a]), int(other.before[gap.b_stop] - other.before[gap.b])
    return cuts if known == (cuts[0].records, cuts[1].records) else None


def _states(index: TextIndex, low: int, high: int) -> tuple[bool, bool]:
    """Whether a quote is open before and behind some chunks."""
    behind = bool(index.odd[high]) if high < len(index.odd) else index.open_at_end
    return bool(index.odd[low]), behind


def common_ends(x: bytes, y: bytes) -> tuple[int, int]:
    """How many bytes are the same at the beginning, and at the end of the rest.

    >>> common_ends(b"abcXef", b"abcYYef")
    (3, 2)
    """
    one, other = np.frombuffer(x, np.uint8), np.frombuffer(y, np.uint8)
    n = min(len(one), len(other))
    head = equal_run(one[:n], other[:n])
    n -= head
    return head, equal_run(one[::-1][:n], other[::-1][:n])


def equal_run(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> int:
    """How many elements of two arrays of one length are equal from the beginning; looks at little more than those."""
    at, step = 0, 64
    while at < len(a):
        differ = np.flatnonzero(a[at : at + step] != b[at : at + step])
        if len(differ):
            return at + int(differ[0])
        at, step = at + step, step * 2
    return len(a)


def _cut(index: TextIndex, data: bytes, low: int, head: int, tail: int) -> _Cut:
    """The records of one side: `data` are its chunks from `low` on, of which `head` and `tail` bytes are common."""
    base = int(index.starts[low])
    marks = index.marks
    facts = scan(data, np.array([0, head, len(data) - tail, len(data)], np.int64), quote=marks.quote, end=marks.end)
    odd = (int(index.odd[low]) + np.concatenate([[0], np.cumsum(facts.quotes[:2].astype(np.int64))])) % 2 == 1
    ends = np.where(odd, facts.odd, facts.even).astype(np.int64)
    head_at = int(facts.last_odd[0] if odd[0] else facts.last_even[0])
    tail_at = len(data) - tail + int(facts.first_odd[2] if odd[2] else facts.first_even[2])
    middle = data[head_at:tail_at] if ends[0] and ends[2] else b""
    return _Cut(int(ends.sum()), int(ends[0]), int(ends[2]), base + head_at, base + tail_at, middle)
