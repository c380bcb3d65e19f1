"""A few kills at random moments; `python -m dvk.testing.kills` has a thousand, on a project of real size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvk.testing.command import Broken
from dvk.testing.kills import Kills, kills
from dvk.testing.strike import Program


@pytest.mark.timeout(300)
def test_a_few_kills_at_random_moments_lose_nothing() -> None:
    seen = kills(5, files=40, model_bytes=1_000_000, seed=3, say=print)
    assert seen.killed >= 5 and seen.versions and seen.compared > 10_000_000


@pytest.mark.timeout(300)
def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    """A check that cannot fail is none: a pack of the remote is taken away."""
    with Program() as program:
        run = Kills(str(tmp_path), program, files=10, model_bytes=1_000_000, seed=4, say=print)
        run.run(1)
        os.rename(tmp_path / "remote" / "p", tmp_path / "remote" / "gone")
        with pytest.raises(Broken, match="not to be had from the remote"):
            run.look()
