"""docs/reliability.md promises nothing that no test holds."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def promises() -> ModuleType:
    loader = SourceFileLoader("promises", str(TOP / "scripts" / "promises"))
    spec = importlib.util.spec_from_loader("promises", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_every_promise_names_a_test_that_exists(promises: ModuleType) -> None:
    assert promises.problems((TOP / "docs" / "reliability.md").read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("| it is safe | |", "without a test"),
        ("| it is safe | `tests/test_promises.py::test_nowhere` |", "has no ::test_nowhere"),
        ("| it is safe | `tests/test_nowhere.py::test_x` |", "there is no tests/test_nowhere.py"),
        ("`python -m dvk.testing.nowhere`", "there is no dvk.testing.nowhere"),
    ],
)
def test_a_promise_that_nothing_holds_is_noticed(promises: ModuleType, line: str, says: str) -> None:
    assert any(says in problem for problem in promises.problems(line))
