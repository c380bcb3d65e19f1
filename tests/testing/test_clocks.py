"""A clock that is off by years changes no result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dvk.testing.stages import ONCE_CODES, build
from dvk.testing.strike import Program

TEN_YEARS_S = 10 * 365.25 * 86_400


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with Program() as program:
        yield program


@pytest.mark.parametrize("verb", ["add", "push", "pull", "checkout", "gc", "condemn"])
def test_results_are_the_same_ten_years_ahead_and_behind(verb: str, tmp_path: Path, program: Program) -> None:
    """The store was written by a right clock; what is done with a wrong one is whole, and a right one goes on."""
    stage = build(verb, str(tmp_path / "stage"))
    for clock_s in (TEN_YEARS_S, -TEN_YEARS_S):
        stage.reset()
        ran = program.run(stage.argv, cwd=stage.top, environ=stage.environ, clock_s=clock_s)
        assert ran.code == 0, ran.said
        stage.check_struck(ran)
        again = program.run(stage.argv, cwd=stage.top, environ=stage.environ)
        assert again.code == 0 or (verb == "condemn" and again.code in ONCE_CODES), again.said
        stage.check_done()
