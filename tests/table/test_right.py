"""dvk is right about every pair of tables on which diff tools go wrong (docs/benchmarks/tables-right.md)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.right import verdict
from benchmarks.table_cases import CASES, Case
from dvk.commands.diff_plain import diff_files
from dvk.errors import DvkError
from dvk.table.options import CompareOptions


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_dvk_says_what_is_true(case: Case, tmp_path: Path) -> None:
    paths = [str(tmp_path / (name + case.suffix)) for name in "ab"]
    for path, data in zip(paths, case.files(), strict=True):
        Path(path).write_bytes(data)
    assert verdict(case, _ask(*paths, case.key)) == "right"


def _ask(a: str, b: str, key: tuple[str, ...]) -> Mapping[str, Any]:
    try:
        with diff_files(a, b, key=key) as result:
            if result.failures:
                return {"error": result.failures[0].message}
            table = result.paths[0].table
            assert table is not None
            kinds = [change.kind for change in table.schema]
            rows = table.rows
            return {"added": rows.added, "removed": rows.removed, "modified": rows.modified, "schema": kinds}
    except DvkError as error:
        return {"error": error.message}


def test_a_wrong_answer_would_be_noticed() -> None:
    case = next(c for c in CASES if c.expect.modified)
    e = case.expect
    right = {"added": e.added, "removed": e.removed, "modified": e.modified, "schema": list(e.schema)}
    assert verdict(case, right) == "right"
    assert verdict(case, {**right, "added": e.added + 1}) == "wrong"
    assert verdict(case, {**right, "schema": ["added"]}) == "wrong"
    assert verdict(case, {"error": "no"}) == "error"


@pytest.mark.parametrize("on_dup", ["bag", "first"])
def test_a_filter_on_another_column_than_a_key_that_repeats(tmp_path: Path, on_dup: Any) -> None:
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_bytes(b"id,city,p\n1,a,1\n2,b,2\n")
    b.write_bytes(b"id,city,p\n1,a,1\n2,b,2\n1,a,9\n")
    options = CompareOptions(key=("id",), where="city='a'", on_dup=on_dup)
    with diff_files(str(a), str(b), compare=options) as result:
        assert not result.failures
        table = result.paths[0].table
        assert table is not None and table.key.duplicates == (0, 1)
        assert (table.rows.added, table.rows.removed) == (1 if on_dup == "bag" else 0, 0)
