"""Entries: a folder as columns is a folder as a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import b3

from dvk.store.listing import Entries, Kind, merge_entries

Row = tuple[bytes, Kind, int, bytes, bytes]
names = st.lists(st.sampled_from([b"a", b"b", b"c-", b"\xff", b"0"]), min_size=1, max_size=3).map(b"/".join)


@st.composite
def rows(draw: st.DrawFn) -> dict[bytes, Row]:
    out: dict[bytes, Row] = {}
    for name in draw(st.sets(names, max_size=12)):
        kind = draw(st.sampled_from(list(Kind)))
        target = draw(st.sampled_from([b"x", b"yy", b"z/z"])) if kind is Kind.LINK else b""
        size = {Kind.LINK: len(target), Kind.EMPTYDIR: 0}.get(kind, draw(st.integers(0, 1 << 50)))
        is_file = kind in (Kind.FILE, Kind.EXEC)
        out[name] = (name, kind, size, b3(b"%d" % size) if is_file else bytes(32), target)
    return out


def back(entries: Entries) -> list[Row]:
    """The rows again; the links take their targets in turn."""
    targets = iter(entries.targets)
    out = []
    for i, name in enumerate(entries.names):
        kind = Kind(int(entries.kinds[i]))
        target = next(targets) if kind is Kind.LINK else b""
        out.append((name, kind, int(entries.sizes[i]), entries.ids[i].tobytes(), target))
    assert next(targets, None) is None
    return out


def ordered(model: dict[bytes, Row]) -> list[Row]:
    return [model[n] for n in sorted(model)]


@settings(deadline=None)
@given(rows())
def test_entries_are_their_rows_in_order_of_name(model: dict[bytes, Row]) -> None:
    entries = Entries.of(list(model.values())[::-1])
    assert back(entries) == ordered(model)
    files = [r for r in model.values() if r[1] in (Kind.FILE, Kind.EXEC)]
    assert (len(entries), entries.files, entries.total_bytes) == (
        len(model),
        len(files),
        sum(r[2] for r in files),
    )


@settings(deadline=None)
@given(rows(), st.data())
def test_slices_and_choices_keep_links_with_their_targets(model: dict[bytes, Row], data: st.DataObject) -> None:
    entries, all_rows = Entries.of(model.values()), ordered(model)
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(model))] * 2)))
    assert back(entries.slice(a, b)) == all_rows[a:b]
    index = sorted(data.draw(st.sets(st.integers(0, len(model) - 1)))) if model else []
    assert back(entries.take(np.array(index, np.intp))) == [all_rows[i] for i in index]
    taken = entries.slice(a, b)
    inner = [i for i in range(b - a) if i % 2]
    assert back(taken.take(np.array(inner, np.intp))) == [all_rows[a:b][i] for i in inner]
    assert back(Entries.join([entries.slice(0, a), entries.slice(a, b), entries.slice(b, len(model))])) == all_rows


@settings(deadline=None)
@given(rows(), names)
def test_what_is_under_a_path_is_the_entry_or_what_lies_below(model: dict[bytes, Row], path: bytes) -> None:
    got = back(Entries.of(model.values()).under(path))
    if path in model:
        assert got == [model[path]]
    else:
        assert got == [r for r in ordered(model) if r[0].startswith(path + b"/")]
    assert back(Entries.of(model.values()).under(b"")) == ordered(model)


@settings(deadline=None)
@given(rows(), rows(), st.sets(names, max_size=4))
def test_merged_entries_are_a_dictionary_that_was_updated(old: Any, new: Any, removed: set[bytes]) -> None:
    got = merge_entries(Entries.of(old.values()), Entries.of(new.values()), removed=removed)
    model = {n: r for n, r in old.items() if n not in removed} | new
    assert back(got) == ordered(model)


def test_sizes_are_summed_in_integers_that_cannot_wrap() -> None:
    entries = Entries.of([(b"%d" % i, Kind.FILE, (1 << 62) - 1, bytes(32), b"") for i in range(9)])
    assert entries.total_bytes == 9 * ((1 << 62) - 1)
