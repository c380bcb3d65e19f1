"""A sample of the link swapping: `python -m dvk.testing.swaps --seconds 60`."""

from __future__ import annotations

from dvk.testing.swaps import swap


def test_nothing_is_written_or_read_through_a_link_that_appears_meanwhile() -> None:
    report = swap(3, say=print)
    assert report.swaps > 20 and report.runs >= 5
