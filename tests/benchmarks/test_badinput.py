"""Files that lie or do not compress cost little more than cutting them plainly; the command that measures it."""

from __future__ import annotations

import pytest

from benchmarks.badinput import CASES, MAX_SIZE_RATIO, SIZE_FLOOR_BYTES, Cost, check, measure


@pytest.mark.parametrize("name", CASES)
def test_no_case_is_an_error_or_takes_more_than_one_percent_more(name: str) -> None:
    cost = measure(name, CASES[name](1 << 20), rounds=1)
    assert cost.stored <= MAX_SIZE_RATIO * cost.size + SIZE_FLOOR_BYTES
    assert cost.splitting_s > 0 and cost.plain_s > 0


def test_a_case_that_costs_too_much_is_told() -> None:
    good = Cost("x", size=10_000_000, stored=10_050_000, splitting_s=0.14, plain_s=0.1)
    assert good.ok
    assert not Cost("x", good.size, good.stored, splitting_s=0.17, plain_s=0.1).ok
    assert not Cost("x", good.size, 10_200_000, good.splitting_s, good.plain_s).ok


@pytest.mark.slow
def test_no_case_is_slower_than_half_as_much_again() -> None:
    """About a minute; `python -m benchmarks badinput` shows the table."""
    lines: list[str] = []
    assert check(size_bytes=64_000_000, rounds=5, say=lines.append) == 0, "\n".join(lines)
