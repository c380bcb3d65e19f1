"""Locators, sections and placements: hints that are checked before they are followed."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import b3, flips, mutate, noise, only_dvk_errors, script, vectors

from dvk.errors import Corrupt, DvkError, FormatError
from dvk.store.locator import (
    External,
    Locator,
    Ref,
    SectionPlacement,
    compact,
    concat_placements,
    decode_blocks,
    empty_placement,
    format_locator,
    format_placement,
    format_section,
    parse_locator,
    parse_placement,
    parse_section,
    piece_id,
    split_pages,
)
from dvk.store.pack import PackKind, block_header
from dvk.store.pages import ListKind
from dvk.store.placement import Blocks, Placement
from dvk.store.root import FILE, FOLDER

ACCEPT, REFUSE = vectors("locator")


def read(case: dict[str, Any], data: bytes) -> object:
    if case["of"] == "placement":
        return parse_placement(data, subject="here")
    if case["of"] == "section":
        return parse_section(data, single=False, subject="here")
    wanted = bytes.fromhex(case["id"])
    return parse_locator(data, kind=case["locator_kind"], wanted=wanted, subject="here")


def write(case: dict[str, Any], found: Any) -> bytes:
    if case["of"] == "placement":
        return format_placement(found)
    if case["of"] == "section":
        raw = b"".join(data for _, data in format_section(found.leaf, found.recipes, found.placed))
        return block_header(0, len(raw), raw) + raw
    return format_locator(found)


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_locators_are_read_and_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert write(case, read(case, data)) == data
    if "piece" in case:
        assert piece_id(data).hex() == case["piece"]


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_locators_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        read(case, bytes.fromhex(case["hex"]))
    assert caught.value.kind == case["kind"]
    assert caught.value.subject == "here"


@pytest.mark.parametrize("case", ACCEPT)
def test_every_flipped_bit_is_noticed_or_means_something_else(case: dict[str, Any]) -> None:
    """A locator and a block have checksums; a placement lies in a block and is written as it was read."""
    for bad in flips(bytes.fromhex(case["hex"])):
        found = only_dvk_errors(lambda bad=bad: read(case, bad))  # type: ignore[misc]
        assert found is None or (case["of"] == "placement" and write(case, found) == bad)


@settings(deadline=None)
@given(
    st.sampled_from([c.values[0] for c in ACCEPT]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 50), st.binary(max_size=50)), min_size=1, max_size=4),
    st.booleans(),
)
def test_mutated_locators_raise_nothing_but_our_errors(case: dict[str, Any], changes: Any, seal: bool) -> None:
    bad = mutate(bytes.fromhex(case["hex"]), changes)
    if seal and case["of"] == "locator" and len(bad) > 8:
        bad = script().resealed(bad)
    if seal and case["of"] == "section" and len(bad) > 24:
        bad = block_header(0, len(bad) - 24, bad[24:]) + bad[24:]
    found = only_dvk_errors(lambda: read(case, bad))
    if found is not None and case["of"] != "section":
        assert write(case, found) == bad


ids = st.binary(min_size=32, max_size=32)
refs = st.builds(Ref, ids, st.integers(32, 1 << 29), st.integers(25, 1 << 20))


@settings(deadline=None)
@given(
    st.sampled_from([FILE, FOLDER]),
    ids,
    st.integers(0, (1 << 62) - 1),
    st.lists(refs, max_size=6),
    st.binary(max_size=100),
    st.sampled_from(["", "cdc-64k", "p" * 16]),
)
def test_what_is_written_is_read(kind: int, name: bytes, size: int, where: Any, pages: bytes, profile: str) -> None:
    found = Locator(kind, name, size, 7, b"r" * 32, b"j" * 32, profile, pages, tuple(where))
    data = format_locator(found)
    assert parse_locator(data, kind=kind, wanted=name, subject="here") == found


@settings(deadline=None)
@given(st.lists(st.binary(min_size=25, max_size=99), min_size=1, max_size=5))
def test_sections_inline_are_the_sections(parts: list[bytes]) -> None:
    where = tuple(Ref(b3(b"%d" % (i % 2)), 32 + i, len(p)) for i, p in enumerate(parts))
    found = Locator(FOLDER, b"n" * 32, 5, 1, b"n" * 32, b"j" * 32, "", b"", where, tuple(parts))
    assert parse_locator(format_locator(found), kind=FOLDER, wanted=b"n" * 32, subject="here") == found


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    packs = tuple(b3(b"pack %d" % i) for i in range(draw(st.integers(1, 4))))
    m = draw(st.integers(1, 6))
    n = draw(st.integers(0, 12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    raw = rng.integers(1, 1 << 20, m).astype(np.uint32)
    blocks = Blocks(
        PackKind.DATA,
        packs,
        rng.integers(0, len(packs), m).astype(np.uint32),
        rng.integers(32, 1 << 29, m),
        (raw // 2 + 1).astype(np.uint32),
        raw,
        rng.integers(0, 2, m).astype(np.uint8),
    )
    block = rng.integers(0, m, n).astype(np.uint32)
    return Placement(blocks, block, (rng.random(n) * raw[block]).astype(np.uint32))


def spelled(p: Placement) -> list[tuple[Any, ...]]:
    """Each chunk with all that is said of where it lies."""
    b = p.blocks
    return [
        (
            b.packs[int(b.pack[i])],
            int(b.offset[i]),
            int(b.packed_len[i]),
            int(b.raw_len[i]),
            int(b.codec[i]),
            o,
        )
        for i, o in zip(p.block.tolist(), p.offset.tolist(), strict=True)
    ]


@settings(deadline=None)
@given(placements(), st.lists(st.tuples(st.integers(0, 19), refs), max_size=3), st.sampled_from(["", "cdc-64k"]))
def test_placements_are_read_as_they_were_written(p: Placement, outside: Any, profile: str) -> None:
    n = len(p.block)
    per_entry = np.array([1] * n + [0] * (20 - n), np.uint32)
    externals = tuple(External(i, r) for i, r in outside)
    data = format_placement(SectionPlacement(p, per_entry, externals, profile))
    found = parse_placement(data, subject="here")
    assert spelled(found.placement) == spelled(p)
    assert found.per_entry.tolist() == per_entry.tolist()
    assert (found.externals, found.profile) == (externals, profile)
    assert format_placement(found) == data


@settings(deadline=None)
@given(st.lists(placements(), max_size=4))
def test_joined_and_compacted_placements_say_the_same_of_every_chunk(parts: list[Placement]) -> None:
    joined = concat_placements(parts)
    expected = [x for p in parts for x in spelled(p)]
    assert spelled(joined) == expected
    small = compact(joined) if expected else empty_placement()
    assert spelled(small) == expected
    assert sorted(set(small.block.tolist())) == list(range(len(small.blocks)))
    assert len(set(small.blocks.packs)) == len(small.blocks.packs)
    assert {x[0] for x in expected} == set(small.blocks.packs)


def test_a_section_that_unfolds_beyond_the_limit_is_refused() -> None:
    """Blocks of zeros take some hundred bytes a megabyte."""
    packed = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(bytes(1 << 20))
    bomb = (block_header(1, 1 << 20, packed) + packed) * 100
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt, match="larger"):
            decode_blocks(bomb, subject="here")
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


def test_a_hostile_locator_allocates_nothing() -> None:
    made = script()
    good = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    plain = bytes.fromhex(next(c.values[0]["hex"] for c in ACCEPT if c.values[0]["of"] == "placement"))
    tracemalloc.start()
    try:
        for at in (12, 16, 20):
            for value in (0xFFFFFFFF, 1 << 28, 1 << 20):
                field = value.to_bytes(4, "little")
                with pytest.raises(FormatError):
                    parse_locator(
                        made.resealed(good[:at] + field + good[at + 4 :]),
                        kind=FOLDER,
                        wanted=good[40:72],
                        subject="here",
                    )
                with pytest.raises(FormatError):
                    parse_placement(plain[: at - 4] + field + plain[at:], subject="here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_section_gives_the_pages_it_was_made_of() -> None:
    made = script()
    _, data = made.section()
    found = parse_section(data, single=False, subject="here")
    assert (found.leaf, found.recipes) == (made.listing_page(), (made.recipe_page(),))
    assert format_section(found.leaf, found.recipes, found.placed)[0][0] is ListKind.LISTING
    assert split_pages(made.listing_page() + made.recipe_page(), subject="here") == [
        found.leaf,
        *found.recipes,
    ]
    with pytest.raises(Corrupt):
        parse_section(data, single=True, subject="here")
    with pytest.raises(Corrupt):
        split_pages(made.listing_page() + noise("x", 50), subject="here")
