"""Collecting costs as many requests as there are records and packs to delete, and not more."""

from __future__ import annotations

from dvk.testing.gc_cost import main, measure


def test_requests_follow_records_and_what_is_deleted() -> None:
    cost = measure(packs=100, records=1000)
    assert cost.deleted == 10
    # Each record once, a mark for each retired and two deletions, a deletion for each pack, and some listings.
    assert cost.requests <= 1000 + 3 * 100 + 10 + 60
    more = measure(packs=1000, records=1000)
    assert more.requests - cost.requests <= 100, "packs that stay cost nothing but their line in a listing"


def test_the_command_says_what_it_measured(capsys: object) -> None:
    assert main(["--packs", "20", "--records", "200"]) == 0
    del capsys
