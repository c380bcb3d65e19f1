"""dvk.json: whose store it is, and who may do what with it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import flips, mutate, only_dvk_errors, vectors

from dvk.errors import DvkError, NewerFormat, NotOurs
from dvk.store.descriptor import MAX_BYTES, Descriptor, format_descriptor, parse_descriptor

ACCEPT, REFUSE = vectors("store")
GOOD = bytes.fromhex(ACCEPT[0].values[0]["hex"])


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_descriptors_are_read_and_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    found = parse_descriptor(data, subject="here")
    assert format_descriptor(found) == data
    for operation in ("read", "write", "gc"):
        if operation in case["needs_newer"]:
            with pytest.raises(NewerFormat, match=operation):
                found.require(operation, subject="here")  # type: ignore[arg-type]
        else:
            found.require(operation, subject="here")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_descriptors_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_descriptor(bytes.fromhex(case["hex"]), subject="here")
    assert caught.value.kind == case["kind"]


def test_a_descriptor_beyond_its_limit_is_not_ours() -> None:
    with pytest.raises(NotOurs):
        parse_descriptor(GOOD + b" " * MAX_BYTES, subject="here")


def test_every_flipped_bit_is_noticed_or_means_something_else() -> None:
    """Nothing guards it but its form; what is still read is written as it was."""
    for bad in flips(GOOD):
        found = only_dvk_errors(lambda bad=bad: parse_descriptor(bad, subject="here"))  # type: ignore[misc]
        if isinstance(found, Descriptor):
            assert format_descriptor(found) == bad


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=20)), min_size=1, max_size=3))
def test_mutated_descriptors_raise_nothing_but_our_errors(changes: Any) -> None:
    bad = mutate(GOOD, changes)
    found = only_dvk_errors(lambda: parse_descriptor(bad, subject="here"))
    if isinstance(found, Descriptor):
        assert format_descriptor(found) == bad


names = st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True), max_size=4).map(tuple)


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), names, names, names, names, names)
def test_what_is_written_is_read(store: bytes, codecs: Any, profiles: Any, read: Any, write: Any, gc: Any) -> None:
    d = Descriptor(store.hex(), codecs, profiles, read, write, gc)
    assert parse_descriptor(format_descriptor(d), subject="here") == d


def test_a_new_store_may_be_used_by_this_program() -> None:
    d = Descriptor.new()
    for operation in ("read", "write", "gc"):
        d.require(operation, subject="here")  # type: ignore[arg-type]
    assert d.store != Descriptor.new().store
