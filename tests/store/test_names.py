"""Names: a list of byte strings in every respect but its size."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.store.names import Names, merge_order, rows_among, same_rows, show, windows

lists = st.lists(st.binary(max_size=12), max_size=40)


@settings(deadline=None)
@given(lists)
def test_names_are_a_sequence_of_byte_strings(model: list[bytes]) -> None:
    names = Names.of(model)
    assert len(names) == len(model)
    assert list(names) == model
    assert [names[i] for i in range(len(model))] == model
    assert [names[-i - 1] for i in range(len(model))] == model[::-1]
    assert names.lengths.tolist() == list(map(len, model))
    assert names == Names.of(model)
    for i in (len(model), -len(model) - 1):
        with pytest.raises(IndexError):
            names[i]


@settings(deadline=None)
@given(lists, st.integers(0, 40), st.integers(0, 40))
def test_a_slice_of_names_stands_for_itself(model: list[bytes], a: int, b: int) -> None:
    start, stop = sorted((min(a, len(model)), min(b, len(model))))
    part = Names.of(model).slice(start, stop)
    assert list(part) == model[start:stop]
    assert part == Names.of(model[start:stop])
    assert list(Names.join([part, part])) == model[start:stop] * 2
    assert list(part.take(np.arange(len(part))[::-1])) == model[start:stop][::-1]


@settings(deadline=None)
@given(lists, st.data())
def test_names_are_taken_in_any_order(model: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(model) - 1), max_size=50)) if model else []
    assert list(Names.of(model).take(np.array(index, np.intp))) == [model[i] for i in index]


@settings(deadline=None)
@given(st.lists(lists, max_size=5))
def test_joined_names_follow_one_another(models: list[list[bytes]]) -> None:
    assert list(Names.join(map(Names.of, models))) == [n for m in models for n in m]


@settings(deadline=None)
@given(lists, st.binary(max_size=4))
def test_a_sorted_sequence_is_searched(model: list[bytes], name: bytes) -> None:
    model = sorted(set(model))
    names = Names.of(model)
    assert names.find(name) == bisect_left(model, name)
    low, high = names.under(name)
    assert model[low:high] == [n for n in model if not name or n.startswith(name + b"/")]


@settings(deadline=None)
@given(lists, lists)
def test_equal_means_the_same_names(one: list[bytes], two: list[bytes]) -> None:
    assert (Names.of(one) == Names.of(two)) == (one == two)
    assert Names.of(one) != one


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_a_name_is_shown_without_control_characters_and_without_doubt(name: bytes) -> None:
    """No hostile name reaches the terminal, and two names never look alike by escaping."""
    text = show(name)
    assert text.isprintable()
    text.encode("utf-8")
    if "\\" not in text:
        assert text.encode() == name
    assert show(text.encode()) != text or "\\" not in text


def test_windows_cover_a_range_once() -> None:
    for n in (0, 1, 4, 5, 8):
        assert [i for run in windows(n, 4) for i in range(n)[run]] == list(range(n))


def test_more_names_than_a_window_are_taken_as_few_are() -> None:
    model = [b"%d" % i * (i % 5) for i in range(70_000)]
    index = np.random.default_rng(5).permutation(len(model))
    assert list(Names.of(model).take(index)) == [model[i] for i in index.tolist()]


@settings(deadline=None)
@given(st.sets(st.binary(max_size=3), max_size=60), st.data())
def test_two_ascending_runs_merge_into_one(model: set[bytes], data: st.DataObject) -> None:
    """By search where one is much shorter, and by a sort else."""
    some = data.draw(st.sets(st.sampled_from(sorted(model)), max_size=3)) if model else set()
    for first, second in ((some, model - some), (model - some, some)):
        both = Names.of([*sorted(first), *sorted(second)])
        assert list(both.take(merge_order(both, len(first)))) == sorted(model)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=20), st.lists(st.integers(0, 9), max_size=20))
def test_ids_are_compared_and_found_by_all_their_bytes(one: list[int], two: list[int]) -> None:
    """Those of the odd numbers begin like those of the even ones."""

    def ids(numbers: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        rows = [bytes([n // 2]) * 8 + bytes([n]) * 24 for n in numbers]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)

    k = min(len(one), len(two))
    at = np.arange(k)
    assert same_rows(ids(one), at, ids(two), at).tolist() == [a == b for a, b in zip(one, two, strict=False)]
    assert rows_among(ids(one), [ids(two[:5]), ids(two[5:])]).tolist() == [n in two for n in one]
