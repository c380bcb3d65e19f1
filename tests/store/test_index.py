"""Index segments: what the footers say, found in one search, and nothing that a segment does not hold."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import b3, flips, mutate, noise, only_dvk_errors, script, vectors

from dvk.errors import Corrupt, DvkError
from dvk.store import index
from dvk.store.index import Segment, Table, format_segment, parse_segment, prefixes
from dvk.store.pack import PackBuilder, PackKind, RecipeRow, parse_footer_of

ACCEPT, REFUSE = vectors("index")


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_segments_are_read_and_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert format_segment(parse_segment(data, subject="here")) == data


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_segments_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_segment(bytes.fromhex(case["hex"]), subject="here")
    assert caught.value.kind == case["kind"]


def test_every_flipped_bit_of_a_segment_is_noticed() -> None:
    """Except in the level, which says only what is merged with what."""
    good = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    for number, bad in enumerate(flips(good)):
        found = only_dvk_errors(lambda bad=bad: parse_segment(bad, subject="here"))  # type: ignore[misc]
        if found is not None:
            assert number // 8 == 10
            assert isinstance(found, Segment) and found.packs == parse_segment(good, subject="here").packs


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=3))
def test_mutated_segments_raise_nothing_but_our_errors(changes: Any) -> None:
    good = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    bad = mutate(good, changes)
    found = only_dvk_errors(lambda: parse_segment(bad, subject="here"))
    if isinstance(found, Segment):
        assert format_segment(found) == bad


def test_a_big_segment_is_believed_until_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are read as they are needed; `check` reads all of it."""
    monkeypatch.setattr(index, "_CHECKED_BYTES", 100)
    good = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    bad = good[:-1] + b"\x55"
    parse_segment(bad, subject="here")
    with pytest.raises(Corrupt, match="checksum"):
        parse_segment(bad, subject="here", check=True)


def test_a_hostile_segment_allocates_nothing() -> None:
    good = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    tracemalloc.start()
    try:
        for at, size in ((12, 4), (16, 8), (24, 8)):
            for value in (1 << (8 * size - 1), (1 << 8 * size) - 1, 1 << 28, 1 << 20):
                bad = good[:at] + value.to_bytes(size, "little") + good[at + size :]
                with pytest.raises(DvkError):
                    parse_segment(bad, subject="here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def packs_of(groups: list[list[int]]) -> list[tuple[bytes, Any]]:
    """Footers of page packs with these chunks, and recipes for the even ones; ids share prefixes."""
    out = []
    for p, group in enumerate(groups):
        builder = PackBuilder(PackKind.PAGES, nonce=noise(("nonce", p), 16))
        for n in group:
            builder.add_block(0, b"x", 1, ids=identity(n), lengths=np.array([1], np.uint32))
            if n % 2 == 0:
                builder.add_recipe(RecipeRow(identity(n), bytes(32), n, "cdc-64k"))
        name, parts = builder.finish()
        out.append((name, parse_footer_of(b"".join(parts))))
    return out


def identity(n: int) -> bytes:
    """Ids of which four at a time have the same first 8 bytes."""
    return b3(b"%d" % (n // 4))[:8] + b3(b"%d" % n)[8:]


groups = st.lists(st.lists(st.integers(0, 40), max_size=8), max_size=6)


def model_of(groups_: list[list[int]], recipes: bool) -> dict[bytes, set[tuple[bytes, int]]]:
    """Prefix -> all (pack, row)."""
    out: dict[bytes, set[tuple[bytes, int]]] = {}
    for (name, _), group in zip(packs_of(groups_), groups_, strict=True):
        for r, n in enumerate([n for n in group if n % 2 == 0] if recipes else group):
            out.setdefault(identity(n)[:8], set()).add((name, r))
    return out


def found_in(segment: Segment, table: Table, wanted: list[bytes]) -> list[set[tuple[bytes, int]]]:
    ids = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, 32)
    which, at = table.find(prefixes(ids))
    out: list[set[tuple[bytes, int]]] = [set() for _ in wanted]
    for w, a in zip(which.tolist(), at.tolist(), strict=True):
        out[w].add((segment.packs[int(table.pack[a])], int(table.row[a])))
    return out


@settings(max_examples=50, deadline=None)
@given(groups, st.integers(1, 3))
def test_a_segment_finds_what_its_packs_hold(groups_: list[list[int]], parts: int) -> None:
    """As do a merged one, one that was written and read, and one without some packs."""
    packs = packs_of(groups_)
    whole = Segment.build(packs)
    pieces = Segment.merge([Segment.build(packs[i::parts]) for i in range(parts)])
    written = parse_segment(format_segment(pieces), subject="here")
    wanted = [identity(n) for n in range(42)]
    for recipes in (False, True):
        model = model_of(groups_, recipes)
        for s in (whole, pieces, written):
            assert found_in(s, s.recipes if recipes else s.chunks, wanted) == [model.get(w[:8], set()) for w in wanted]
        gone = {name for name, _ in packs[::2]}
        left = written.without(gone)
        expected = [{x for x in model.get(w[:8], set()) if x[0] not in gone} for w in wanted]
        assert found_in(left, left.recipes if recipes else left.chunks, wanted) == expected
    assert written.level == 1 and pieces.packs == written.packs


def test_a_pack_that_two_processes_indexed_is_merged_once() -> None:
    packs = packs_of([[1, 2], [3], [4, 5]])
    both = Segment.merge([Segment.build(packs[:2]), Segment.build(packs[1:]), Segment.build(packs)])
    assert both.packs == tuple(name for name, _ in packs)
    assert len(both.chunks.row) == 5


def test_a_segment_that_loses_all_its_packs_stays_usable() -> None:
    packs = packs_of([[1, 2]])
    none = Segment.build(packs).without({packs[0][0]})
    assert parse_segment(format_segment(none.without({b"x" * 32})), subject="here").packs == ()


def test_the_golden_segment_names_the_golden_packs() -> None:
    made = script()
    segment = parse_segment(bytes.fromhex(ACCEPT[0].values[0]["hex"]), subject="here")
    assert segment.packs == (made.data_pack()[0], made.page_pack()[0])
    assert segment.kinds == (PackKind.DATA, PackKind.PAGES)
