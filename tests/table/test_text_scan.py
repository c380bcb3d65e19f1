"""Records are found in words of 64 bits exactly as byte by byte."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dvk.table.text import scan as text_scan
from dvk.table.text.scan import field_counts, find_record_ends, last_record_end, outside, scan

TEXT = st.lists(st.sampled_from([b"a", b'"', b"\n", b",", b"\r", b"x" * 61, b"\n" * 64, b'"' * 65]), max_size=30).map(
    b"".join
)


def slow_facts(data: bytes, quote: int) -> tuple[int, ...]:
    quotes = even = odd = first_even = first_odd = last_even = last_odd = 0
    for i, byte in enumerate(data):
        if quote and byte == quote:
            quotes += 1
        elif byte == 10 and quotes % 2 == 0:
            even, first_even, last_even = even + 1, first_even or i + 1, i + 1
        elif byte == 10:
            odd, first_odd, last_odd = odd + 1, first_odd or i + 1, i + 1
    return quotes, even, odd, first_even, first_odd, last_even, last_odd


@given(TEXT, st.lists(st.integers(0, 2000), max_size=6), st.sampled_from([0, 34]))
def test_facts(data: bytes, cuts: list[int], quote: int) -> None:
    """Of any runs of any text."""
    bounds = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    facts = scan(data, np.array(bounds), quote=quote, end=10)
    slow = [slow_facts(data[a:b], quote) for a, b in itertools.pairwise(bounds)]
    assert [column.tolist() for column in facts.arrays] == [list(column) for column in zip(*slow, strict=True)]


@given(TEXT, st.sampled_from([0, 34]), st.booleans())
def test_record_ends_and_fields(data: bytes, quote: int, odd: bool) -> None:
    """Where records end, where a byte lies outside quotes, how many fields a record has."""
    inside, ends, commas, counts, starts = odd, [], [], [1], [0]
    for i, byte in enumerate(data):
        if quote and byte == quote:
            inside = not inside
        elif byte == 10 and not inside:
            ends.append(i + 1)
            starts.append(i + 1)
            counts.append(1)
        elif byte == 44 and not inside:
            commas.append(i)
            counts[-1] += 1
    if quote or not odd:
        nth = np.arange(len(ends) + 1)
        assert find_record_ends(data, nth, quote=quote, end=10, odd=odd).tolist() == [*ends, 0]
    if not odd:
        assert last_record_end(data, quote=quote, end=10) == max(ends, default=0)
        assert outside(data, 44, quote=quote).tolist() == commas
        if starts[-1] == len(data) and ends:
            starts, counts = starts[:-1], counts[:-1]
        found = field_counts(data, quote=quote, delimiter=44, end=10)
        assert (found[0].tolist(), found[1].tolist()) == (starts, counts)


def test_examples() -> None:
    """The docstring is right."""
    assert doctest.testmod(text_scan).failed == 0
