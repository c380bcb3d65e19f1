"""Samples of the long runs: `python -m dvk.testing.flips` and `python -m dvk.testing.damage`."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from dvk.testing import damage, flips

DOC = Path(__file__).parents[2] / "docs" / "reliability-damage.md"


def test_no_bit_and_no_length_of_any_object_changes_unnoticed() -> None:
    """One in eleven, others each time; the page of the full run speaks of the same kinds and the same exceptions."""
    start = random.randrange(11)
    rows = flips.run_all(every=11, start=start)
    assert {r.kind: r.unnoticed for r in rows if r.unnoticed} == {}, f"start {start}"
    documented = {cells[0]: cells[4] for line in DOC.read_text().splitlines() if len(cells := _cells(line)) == 5}
    assert documented.keys() == {r.kind for r in rows}
    for row in rows:
        assert all(why in documented[row.kind] for why in row.meaningless), row.kind


def _cells(line: str) -> list[str]:
    if not re.match(r"\| [a-z]", line) or line.startswith("| object |"):
        return []
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_damage_of_known_place_is_named_exactly_and_mended(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials 1 to 8: both sides, single objects, a fifth of all, repairs."""
    assert damage.main(["--trials", "8", "--seed", "1"]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out.startswith("seeds 1 to 8\n")


def test_a_difference_is_told_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself can fail: when `verify` is made blind, the first trial with damage says so."""
    world = damage.build(str(tmp_path))
    real = damage.verify

    def blind(*a: object, **k: object) -> object:
        found = real(*a, **k)  # type: ignore[arg-type]
        found.affected.clear()
        found.objects.clear()
        return found

    monkeypatch.setattr(damage, "verify", blind)
    with pytest.raises(damage.Wrong):
        for seed in range(1, 5):
            damage.trial(world, seed)
