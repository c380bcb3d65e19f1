"""Records: one form each, since a record's name is the hash of its bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import flips, mutate, only_dvk_errors, vectors

from dvk.errors import DvkError
from dvk.store.record import Record, format_mark, format_record, parse_record, record_id, record_key

ACCEPT, REFUSE = vectors("record")
GOOD = bytes.fromhex(ACCEPT[0].values[0]["hex"])


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_records_are_read_and_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert format_record(parse_record(data, subject="here")) == data
    assert record_id(data).hex() == case["id"]
    assert record_key(record_id(data), ".ok") == f"j/{case['id']}.ok"
    if "mark" in case:
        assert format_mark(record_id(data)).decode() == case["mark"]
        assert json.loads(case["mark"]) == {"format": 1, "record": case["id"]}


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_records_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_record(bytes.fromhex(case["hex"]), subject="here")
    assert caught.value.kind == case["kind"]


def test_every_flipped_bit_changes_the_name_and_what_is_read_is_written_as_it_was() -> None:
    for bad in flips(GOOD):
        assert record_id(bad) != record_id(GOOD)
        found = only_dvk_errors(lambda bad=bad: parse_record(bad, subject="here"))  # type: ignore[misc]
        if isinstance(found, Record):
            assert format_record(found) == bad


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 70), st.binary(max_size=20)), min_size=1, max_size=3))
def test_mutated_records_raise_nothing_but_our_errors(changes: Any) -> None:
    bad = mutate(GOOD, changes)
    found = only_dvk_errors(lambda: parse_record(bad, subject="here"))
    if isinstance(found, Record):
        assert format_record(found) == bad


def some(pattern: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sets(st.from_regex(pattern, fullmatch=True), max_size=4).map(sorted).map(tuple)


pack_keys = some("[0-9a-f]{64}").map(lambda names: tuple(sorted(f"p/{n[:2]}/{n}" for n in names)))


@settings(deadline=None)
@given(
    some("[fd]:[0-9a-f]{64}"),
    pack_keys,
    pack_keys,
    some("[0-9a-f]{64}"),
    st.integers(0, (1 << 62) - 1),
    st.from_regex(r"[ -~]{1,100}", fullmatch=True),
    st.from_regex(r"([0-9a-f]{32})?", fullmatch=True),
)
def test_what_is_written_is_read(
    roots: Any, packs: Any, reused: Any, bases: Any, time: int, writer: str, project: str
) -> None:
    record = Record("0a" * 16, roots, packs, reused, bases, time, writer, "1b" * 16, project)
    assert parse_record(format_record(record), subject="here") == record
