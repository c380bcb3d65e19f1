"""Packs: what is written is read; a damaged pack is noticed wherever the damage is, before anything is allocated."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import VECTORS, b3, flips, make_pack, mutate, noise, only_dvk_errors, script, vectors

from dvk.errors import Corrupt, DvkError
from dvk.store import pack as packs
from dvk.store.pack import (
    PackBuilder,
    PackKind,
    RecipeRow,
    block_header,
    check_header,
    format_footer,
    iter_blocks,
    open_block,
    parse_footer,
    parse_footer_of,
    parse_trailer,
)

ACCEPT, REFUSE = vectors("pack")
GOLDEN = (VECTORS / "pack" / "data.pack").read_bytes()
PAGES = (VECTORS / "pack" / "pages.pack").read_bytes()


def footer_of(data: bytes) -> tuple[int, bytes]:
    trailer = parse_trailer(data[-64:], subject="here")
    return trailer.footer_offset, data[trailer.footer_offset : -64]


def test_the_script_writes_the_vectors_that_lie_here() -> None:
    """The golden files are what this code writes, byte for byte, and nothing else lies among them."""
    made = script().files()
    for name, data in made.items():
        assert (VECTORS / name).read_bytes() == data, name
    mine = {"pack", "pages", "index", "locator", "record", "store", "condemned"}
    found = {p.relative_to(VECTORS).as_posix() for d in mine for p in (VECTORS / d).rglob("*") if p.is_file()}
    assert found == set(made)


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_packs_are_read_and_their_footers_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    footer = parse_footer_of(data)
    assert b3(data).hex() == case["id"]
    assert packs.pack_key(footer.kind, b3(data)) == case["file_name"]
    assert format_footer(footer) == footer_of(data)[1]


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_packs_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_footer_of(bytes.fromhex(case["hex"]))
    assert caught.value.kind == case["kind"]
    assert caught.value.subject == "pack"


def test_blocks_lie_where_the_footer_says() -> None:
    footer = parse_footer_of(GOLDEN)
    assert footer.chunk_block.tolist() == [0, 0, 0, 1]
    assert footer.chunk_offset.tolist() == [0, 13, 313, 0]
    for i, offset in enumerate(footer.block_offset.tolist()):
        codec, raw_len, payload = open_block(memoryview(GOLDEN)[offset:], subject="here")
        stated = (footer.codec[i], footer.raw_len[i], footer.packed_len[i])
        assert (codec, raw_len, len(payload)) == stated
    start, _ = footer_of(GOLDEN)
    assert len(list(iter_blocks(GOLDEN[32:start], subject="here"))) == 2


def test_every_flipped_bit_of_a_pack_is_noticed() -> None:
    """By header, block checksum, footer hash or trailer; only the nonce is covered by the pack's name alone."""
    start, _ = footer_of(GOLDEN)
    good = [(c, n, bytes(p)) for c, n, p in iter_blocks(GOLDEN[32:start], subject="here")]
    for number, bad in enumerate(flips(GOLDEN)):
        at = number // 8
        if 16 <= at < 32:
            assert b3(bad) != b3(GOLDEN)
            continue
        try:
            parse_footer_of(bad)
            read = [(c, n, bytes(p)) for c, n, p in iter_blocks(bad[32:start], subject="here")]
        except DvkError:
            continue
        # A block's codec and raw length are outside its checksum; the footer, which is hashed, says them too.
        assert 32 <= at < start and read != good
        footer = parse_footer_of(bad)
        assert [(r[0], r[1]) for r in read] != list(zip(footer.codec.tolist(), footer.raw_len.tolist(), strict=True))


edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4)


@settings(deadline=None)
@given(edits)
def test_mutated_packs_raise_nothing_but_our_errors(changes: list[tuple[int, int, bytes]]) -> None:
    bad = mutate(PAGES, changes)
    only_dvk_errors(lambda: parse_footer_of(bad))
    only_dvk_errors(lambda: list(iter_blocks(bad[32:], subject="here")))
    only_dvk_errors(lambda: check_header(bad, subject="here"))


@settings(deadline=None)
@given(st.data())
def test_mutated_footers_with_a_right_hash_raise_nothing_but_our_errors(data: st.DataObject) -> None:
    """The hash keeps accidents away, not strangers: what is behind it is checked on its own."""
    refooted = script().refooted
    whole = data.draw(st.sampled_from([GOLDEN, PAGES]))
    _, footer = footer_of(whole)
    bad = mutate(footer, data.draw(edits))
    found = only_dvk_errors(lambda: parse_footer_of(refooted(whole, bad)))
    if found is not None:
        assert isinstance(found, packs.Footer)
        assert format_footer(found) == bad
        assert int(found.chunk_count.sum(dtype=np.uint64)) == len(found.chunk_len)
        assert (found.chunk_offset.astype(np.int64) + found.chunk_len <= found.raw_len[found.chunk_block]).all()


@settings(deadline=None)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), max_size=6),
    st.integers(0, 3),
    st.none() | st.integers(0, 400),
)
def test_what_is_built_is_read(blocks: list[list[bytes]], recipes: int, room: int | None) -> None:
    """Whatever of it lies in memory that was given: nothing, all, or what fits."""
    memory = None if room is None else np.frombuffer(bytearray(room), np.uint8)
    builder = PackBuilder(PackKind.PAGES, nonce=b"n" * 16, room=memory)
    rows = [RecipeRow(noise(("f", i), 32), noise(("r", i), 32), 1 << (20 * i), f"profile-{i}") for i in range(recipes)]
    for block in blocks:
        raw = b"".join(block)
        ids, lengths = b"".join(map(b3, block)), np.array([len(c) for c in block], np.uint32)
        assert builder.add_block(0, raw, len(raw), ids=ids, lengths=lengths) >= 32
    for row in rows:
        builder.add_recipe(row)
    name, parts = builder.finish()
    data = b"".join(parts)
    footer = parse_footer_of(data)
    assert name == b3(data)
    assert [footer.recipe(i) for i in range(recipes)] == rows
    got = []
    for b, at in zip(footer.chunk_block.tolist(), range(len(footer.chunk_len)), strict=True):
        start = int(footer.block_offset[b]) + 24 + int(footer.chunk_offset[at])
        got.append(data[start : start + int(footer.chunk_len[at])])
    assert got == [c for block in blocks for c in block]
    assert [i.tobytes() for i in footer.ids] == list(map(b3, got))


def test_a_hostile_footer_allocates_nothing() -> None:
    """Counts are held against the bytes that are there before a column is made of them."""
    refooted = script().refooted
    _, footer = footer_of(GOLDEN)
    tracemalloc.start()
    try:
        for at in (8, 12, 16):
            for value in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 24):
                bad = refooted(GOLDEN, footer[:at] + struct.pack("<I", value) + footer[at + 4 :])
                with pytest.raises(Corrupt):
                    parse_footer_of(bad)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_block_that_states_impossible_lengths_is_refused() -> None:
    good = block_header(0, 5, b"hello") + b"hello"
    for raw_len, packed_len in ((0, 5), (4, 5), (1 << 20 | 1, 5), (5, 0), (0xFFFFFFFF, 0xFFFFFFFF)):
        bad = good[:8] + struct.pack("<II", raw_len, packed_len) + good[16:]
        with pytest.raises(Corrupt):
            open_block(memoryview(bad), subject="here")


def test_a_footer_that_is_not_what_the_trailer_hashed_is_refused() -> None:
    trailer = parse_trailer(GOLDEN[-64:], subject="here")
    with pytest.raises(Corrupt):
        parse_footer(PAGES[-300:-64], trailer, subject="here")


def test_a_pack_of_tiny_chunks_ends_before_its_footer_outgrows_the_format() -> None:
    """Two million labels of some bytes must not make a pack that nobody can read again."""
    builder = PackBuilder(PackKind.DATA, nonce=b"n" * 16)
    ids, lengths = noise("ids", 32 * 100_000), np.full(100_000, 10, np.uint32)
    blocks = 0
    while not builder.full:
        builder.add_block(1, b"x" * 100, 1_000_000, ids=ids, lengths=lengths)
        blocks += 1
    _, parts = builder.finish()
    assert blocks == 3
    footer = parse_footer_of(b"".join(parts))
    assert len(footer.chunk_len) == 300_000
    recipes = PackBuilder(PackKind.PAGES)
    while not recipes.full:
        recipes.add_recipe(RecipeRow(b"f" * 32, b"r" * 32, 5, "cdc-64k"))
    assert len(recipes.footer().recipes) < 100_000


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5))
def test_each_pack_has_a_name_of_its_own(count: int, per_block: int) -> None:
    """The nonce sees to it: a name that was collected never comes back with the same bytes."""
    chunks = [noise(i, 10) for i in range(count)]
    assert make_pack(chunks, label=1, per_block=per_block)[0] != make_pack(chunks, label=2, per_block=per_block)[0]


def test_a_builder_keeps_nothing_that_its_caller_may_change() -> None:
    """Buffers are used for the next files while a pack still fills, whether its room took the block or not."""
    for room in (None, 60, 1000):
        memory = None if room is None else np.frombuffer(bytearray(room), np.uint8)
        builder = PackBuilder(PackKind.DATA, nonce=b"n" * 16, room=memory)
        buffer = bytearray(b"first")
        builder.add_block(0, memoryview(buffer), 5, ids=b3(b"first"), lengths=np.array([5], np.uint32))
        buffer[:] = b"other"
        name, parts = builder.finish()
        data = b"".join(parts)
        assert name == b3(data) and b"first" in data and b"other" not in data
