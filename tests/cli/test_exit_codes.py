"""Every category has a number of its own, and the page says so."""

from __future__ import annotations

import os

import pytest

from dvk import errors
from dvk.backend.contract import KeyExists, KeyMissing
from dvk.cli import exit_codes
from dvk.cli.signals import Terminated

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_the_page_is_the_table() -> None:
    with open(os.path.join(ROOT, "docs", "exit-codes.md"), encoding="utf-8") as page:
        assert page.read() == exit_codes.markdown(), "run `just docs`"


def test_every_error_category_has_its_own_row() -> None:
    categories = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DvkError)}
    rows = {row.category: row for row in exit_codes.TABLE if row.category}
    assert categories - rows.keys() == set()
    assert all(row.kind == category.kind for category, row in rows.items())


def test_codes_and_kinds_are_unique_and_fit_a_shell() -> None:
    codes = [row.code for row in exit_codes.TABLE]
    assert codes == sorted(set(codes)) and all(0 <= c < 256 for c in codes)
    assert len({row.kind for row in exit_codes.TABLE}) == len(codes)
    assert all("|" not in row.meaning.replace("`dvk log | head`", "") for row in exit_codes.TABLE)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DvkError("x"), 1),
        (errors.UsageError("x"), 2),
        (errors.Partial("x", failures=[]), 3),
        (errors.NotARepository("x"), 10),
        (errors.Corrupt("x"), 13),
        (errors.FormatError("x"), 14),
        (errors.Interrupted("x"), 130),
        (Terminated("x"), 143),
        (KeyMissing("x"), 6),
        (KeyExists("x"), 1),
    ],
)
def test_an_error_gets_the_code_of_its_nearest_category(error: errors.DvkError, code: int) -> None:
    assert exit_codes.for_error(error) == code
