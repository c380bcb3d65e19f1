"""A sample of power cuts: `python -m dvk.testing.power --cuts 200` does the real number."""

from __future__ import annotations

import pytest

from dvk.testing.power import can_cut, cut_power

pytestmark = pytest.mark.skipif(bool(why := can_cut()), reason=f"power cannot be cut here: {why}")


@pytest.mark.parametrize("verb", ["add", "push"])
def test_nothing_acknowledged_is_lost_in_a_power_cut(verb: str) -> None:
    report = cut_power(2, verbs=[verb], say=print)
    assert report.cuts == 2 and report.broken == []


def test_the_cuts_bite() -> None:
    """Without a single fsync something acknowledged is lost, so a run that loses nothing says something."""
    report = cut_power(1, verbs=["push"], sync=False, after=True, say=print)
    assert report.broken
