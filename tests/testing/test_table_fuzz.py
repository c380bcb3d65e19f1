"""A sample of `python -m dvk.testing.table_fuzz`, and that it can fail."""

from __future__ import annotations

import pytest

from dvk.testing import table_fuzz
from dvk.testing.table_fuzz import FORMATS, Wrong, fuzz, main, make


@pytest.mark.parametrize("format", FORMATS)
def test_the_diff_is_the_edit(format: str, pytestconfig: pytest.Config) -> None:
    """Six cases of each format; thousands are a command."""
    seed = int(pytestconfig.getoption("randomly_seed", 0))
    assert sum(fuzz(range(seed, seed + 6), formats=(format,)).values()) == 6


def test_a_wrong_answer_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A version that is not the one that was made: with a key and without."""
    write = table_fuzz.write
    monkeypatch.setattr(table_fuzz, "write", lambda case, rows, order: write(case, rows[: len(rows) - 1], order))
    seeds: dict[bool, int] = {}
    for seed in range(200):
        case = make(seed)
        if case.a and case.b and case.a[-1] != case.b[-1]:
            seeds.setdefault(case.keyed, seed)
        if len(seeds) == 2:
            break
    assert set(seeds) == {True, False}
    for seed in seeds.values():
        with pytest.raises(Wrong, match=f"seed {seed}: "):
            fuzz([seed])
        assert main(["--seed", str(seed), "--cases", "1"]) == 1
        assert f"seed {seed}: " in capsys.readouterr().err
