"""Schedules of real pushers and collectors lose nothing, are the same each time, and notice what they are for."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest

from dvk.store import collect, promise
from dvk.store.census import Census
from dvk.testing import schedules
from dvk.testing.schedules import Lost, run_schedules

pytestmark = pytest.mark.timeout(120)


def test_nothing_that_was_promised_is_lost_in_any_order_of_operations() -> None:
    """A sample; `python -m dvk.testing.schedules` runs as many as one likes."""
    seen = run_schedules(range(150))
    assert seen.acknowledged > 150 and seen.deleted > 20 and seen.crashes > 20 and seen.undone
    assert seen.lies == seen.lies_refused > 5, "whoever gets half a listing deletes nothing"


def test_a_schedule_is_the_same_each_time() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        run_schedules([17], tell=lines.append)
    assert told[0] == told[1] and len(told[0]) > 50


def without_checks(*_: object) -> None:
    return


def stale(real: Callable[[collect.Collector], Census]) -> Callable[[collect.Collector], Census]:
    seen: dict[int, Census] = {}
    return lambda self: seen.setdefault(id(self), real(self))


@pytest.mark.parametrize("rule", ["P4", "P5", "G3", "G5", "own list", "bases", "own record"])
def test_a_rule_that_is_left_out_is_noticed(rule: str) -> None:
    changes = {
        "P4": mock.patch.object(promise, "condemned", lambda _backend: set()),
        "G5": mock.patch.object(collect.Collector, "_bury", without_checks),
        "own list": mock.patch.object(collect.Collector, "_publish", without_checks),
        "P5": mock.patch.object(promise, "_check", without_checks),
        "G3": mock.patch.object(collect.Collector, "_census", stale(collect.Collector._census)),
        "bases": mock.patch.object(Census, "reach", lambda _self, rids: set(rids)),
        "own record": mock.patch("dvk.store.push_plan.Plan._find_alone", without_checks),
    }
    with changes[rule], pytest.raises((Lost, Exception)) as caught:
        run_schedules(range(300))
    assert "--seed" in caught.value.__notes__[0]


def test_the_command_says_what_it_saw(capsys: pytest.CaptureFixture[str]) -> None:
    assert schedules.main(["--count", "3", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 schedules, ") and "nothing lost" in out and "acknowledged" in out
