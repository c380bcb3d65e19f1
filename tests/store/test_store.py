"""A store finds what its packs hold, whatever happened to its index, and never what they do not hold."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storekit import VECTORS, add, b3, column, flips, get, keys, make_pack, noise, put_pack

from dvk.backend.contract import KeyMissing
from dvk.backend.local import LocalBackend
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.errors import Corrupt, DataMissing, NewerFormat, NotOurs
from dvk.ids import EMPTY_FILE, PageId
from dvk.store import catalog, index
from dvk.store.descriptor import Descriptor, format_descriptor
from dvk.store.listing import Kind
from dvk.store.pack import PackBuilder, PackKind, RecipeRow, pack_key, parse_footer_of
from dvk.store.pages import Chunks, ListKind, format_page, page_id, read_entries
from dvk.store.store import Store, as_column
from dvk.testing.faults import FaultBackend


def filled(backend: Any, packs: int, *, per_pack: int = 5, save: bool = True) -> tuple[Store, list[list[bytes]]]:
    """A store of packs, each with chunks of its own, and one segment for each."""
    store = Store(backend)
    store.create()
    contents = [[noise((p, c), 20 + c) for c in range(per_pack)] for p in range(packs)]
    for p, chunks in enumerate(contents):
        name, data = make_pack(chunks, label=p)
        put_pack(store, name, data)
        if save:
            store.save_index()
    return store, contents


def flat(contents: list[list[bytes]]) -> list[bytes]:
    return [c for pack in contents for c in pack]


# ---------------------------------------------------------------- looking up


def test_look_ups_answer_as_a_dictionary_would() -> None:
    """Several packs, several segments, chunks in more than one pack, ids that nobody has."""
    rng = random.Random(4)
    store = Store(MemoryBackend())
    model: dict[bytes, int] = {}
    for p in range(30):
        chunks = [noise(rng.randrange(150), 30 + rng.randrange(9)) for _ in range(rng.randrange(1, 12))]
        name, data = make_pack(chunks, label=p)
        put_pack(store, name, data)
        model |= {b3(c): len(c) for c in chunks}
        if p % 3 == 0:
            store.save_index()
        wanted = list({*rng.sample(sorted(model), min(20, len(model))), *(noise(("no", i), 32) for i in range(9))})
        for s in (store, Store(store.backend)):
            ids = as_column(wanted)
            where = s.find_chunks(ids)
            assert where.found.tolist() == [w in model for w in wanted]
            assert s.has_chunks(ids).tolist() == where.found.tolist()
            assert s.chunk_lengths(where).tolist() == [model.get(w, -1) for w in wanted]


def test_chunks_are_placed_where_their_bytes_lie() -> None:
    store, contents = filled(MemoryBackend(), 4)
    chunks = flat(contents)[::-1]
    listed = Chunks(column(chunks), np.array([len(c) for c in chunks], np.uint32))
    placed = store.place(listed)
    for i, chunk in enumerate(chunks):
        b = int(placed.block[i])
        data = store.backend.get(placed.blocks.key(b), max_bytes=1 << 20)
        start = int(placed.blocks.offset[b]) + 24 + int(placed.offset[i])
        assert data[start : start + len(chunk)] == chunk


def test_a_chunk_of_another_length_is_another_chunk() -> None:
    """An id whose length is stated wrongly is not here, also when the pack with the right one comes later."""
    store, contents = filled(MemoryBackend(), 2)
    chunk = contents[0][0]
    wrong = Chunks(column([chunk]), np.array([len(chunk) + 1], np.uint32))
    assert not store.place_some(wrong)[1].any()
    with pytest.raises(DataMissing, match="1 chunks"):
        store.place(wrong)
    builder = PackBuilder(PackKind.DATA)
    builder.add_block(0, b"lie", 3, ids=b3(chunk), lengths=np.array([3], np.uint32))
    name, parts = builder.finish()
    fresh = Store(store.backend)
    put_pack(fresh, name, b"".join(parts))
    right = Chunks(column([chunk]), np.array([len(chunk)], np.uint32))
    assert fresh.place_some(right)[1].all()
    assert store.single_chunk(column([chunk]), np.array([len(chunk)])).all()


def test_nothing_is_asked_for_and_nothing_is_found() -> None:
    store = Store(MemoryBackend())
    none = np.zeros((0, 32), np.uint8)
    assert len(store.find_chunks(none).found) == 0
    assert store.chunks_of_many(none, np.zeros(0, np.int64)) == []
    assert len(store.place(Chunks.join([])).block) == 0
    assert store.load_pages([]) == {}
    assert store.find_recipes(none) == []


def test_an_empty_file_is_known_without_being_stored() -> None:
    store = Store(MemoryBackend())
    ids = as_column([EMPTY_FILE, b3(b"x")])
    known = store.chunks_of_many(ids, np.array([0, 0]))
    assert known[0] is not None and len(known[0]) == 0 and known[1] is None
    assert store.holds(ids, np.array([0, 0])).tolist() == [True, False]


# ---------------------------------------------------------------- the index


def test_eight_segments_become_one_and_everything_stays_findable() -> None:
    """The inputs go only once the merged one is there."""
    backend = CountingBackend(MemoryBackend(), keep_calls=True)
    _, contents = filled(backend, 70)
    levels = sorted(k[2] for k in keys(backend, "i/"))
    assert levels == ["0"] * 6 + ["2"]
    assert Store(backend).has_chunks(column(flat(contents))).all()
    gone: set[str] = set()
    last_put = ""
    for operation, key in backend.counts.calls:
        if operation == "delete" and key.startswith("i/"):
            gone.add(key)
            assert last_put.startswith(f"i/{int(key[2]) + 1}-")
        elif operation == "put":
            last_put = key
    assert len(gone) == 64 + 8


def test_an_index_is_never_needed() -> None:
    backend = MemoryBackend()
    _, contents = filled(backend, 9)
    for key in keys(backend, "i/"):
        backend.delete(key)
    store = Store(backend)
    assert store.has_chunks(column(flat(contents))).all()
    store.save_index()
    counting = CountingBackend(backend)
    assert Store(counting).has_chunks(column(flat(contents[:1]))).all()
    assert counting.counts.get_range == 2, "one footer, by the index that was written again"


@pytest.mark.parametrize("damage", ["truncate", "empty", "extend", "flip", "garbage"])
def test_a_damaged_segment_counts_as_none_and_is_replaced(damage: str) -> None:
    backend = MemoryBackend()
    store, contents = filled(backend, 3)
    del store
    key = keys(backend, "i/")[1]
    good = backend.get(key, max_bytes=1 << 20)
    bad = {
        "truncate": good[:-5],
        "empty": b"",
        "extend": good + b"\0",
        "flip": good[:-9] + bytes([good[-9] ^ 4]) + good[-8:],
        "garbage": b"not an index" * 20,
    }[damage]
    backend.put(key, [bad])
    again = Store(backend)
    assert again.has_chunks(column(flat(contents))).all()
    again.save_index()
    assert key not in keys(backend, "i/")
    assert Store(backend).has_chunks(column(flat(contents))).all()


def test_every_flipped_bit_of_a_segment_leaves_everything_findable() -> None:
    backend = MemoryBackend()
    _, contents = filled(backend, 2, per_pack=2)
    key = keys(backend, "i/")[0]
    wanted = column(flat(contents))
    for number, bad in enumerate(flips(backend.get(key, max_bytes=1 << 20))):
        backend.put(key, [bad])
        try:
            assert Store(backend).has_chunks(wanted).all()
        except NewerFormat:
            assert number // 8 in (8, 9, 10, 11, *range(40, 64))


def test_a_big_segment_that_hides_chunks_is_found_out_by_what_it_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is not verified on every start, only once something is missing."""
    monkeypatch.setattr(index, "_CHECKED_BYTES", 100)
    backend = MemoryBackend()
    _, contents = filled(backend, 2)
    (one, two) = keys(backend, "i/")
    for key in (one, two):
        data = bytearray(backend.get(key, max_bytes=1 << 20))
        data[104:112] = b"\xff" * 8
        backend.put(key, [bytes(data)])
    chunks = flat(contents)
    listed = Chunks(column(chunks), np.array([len(c) for c in chunks], np.uint32))
    store = Store(backend)
    assert not store.has_chunks(listed.ids).all()
    assert len(store.place(listed).block) == len(chunks)
    assert store.has_chunks(listed.ids).all()


def test_a_segment_that_vanishes_while_the_index_is_loaded_is_looked_for_again() -> None:
    """Another process merged it between our listing and our reading."""
    inner = MemoryBackend()
    _, contents = filled(inner, 8)
    faults = FaultBackend(inner)
    faults.fail("get", error=lambda: KeyMissing("gone"), at=1, prefix="i/")
    assert Store(faults).has_chunks(column(flat(contents))).all()
    faults.fail("get", error=lambda: KeyMissing("gone"), forever=True, prefix="i/")
    with pytest.raises(DataMissing, match="faster"):
        Store(faults).has_chunks(column(flat(contents)))


def test_many_packs_of_one_writer_are_searched_in_few_segments() -> None:
    """A terabyte added at once is sixteen thousand packs."""
    store = Store(MemoryBackend())
    store.create()
    contents = [[noise(p, 20)] for p in range(200)]
    for p, chunks in enumerate(contents):
        name, data = make_pack(chunks, label=p)
        put_pack(store, name, data)
        assert len(store.segments()) < 3 * 8
    assert store.has_chunks(column(flat(contents))).all()
    store.save_index()
    assert len(keys(store.backend, "i/")) == 1


def test_adopting_a_pack_twice_indexes_it_once() -> None:
    store, contents = filled(MemoryBackend(), 1, save=False)
    name, data = make_pack(contents[0], label=0)
    store.refresh()
    store.adopt([(name, parse_footer_of(data))])
    assert [s.packs for s in store.segments()] == [(name,)]


# ---------------------------------------------------------------- packs that are gone, damaged, foreign


def test_a_deleted_pack_takes_its_chunks_with_it_and_no_others() -> None:
    for refresh in (True, False):
        backend = MemoryBackend()
        store, contents = filled(backend, 4)
        name, _ = make_pack(contents[1], label=1)
        backend.delete(pack_key(PackKind.DATA, name))
        for s in (store, Store(backend)):
            if refresh:
                s.refresh()
            elif s is store:
                continue  # its footers are in memory, and what it reads there it will miss at the next look
            expected = [p != 1 for p in range(4) for _ in range(5)]
            assert s.has_chunks(column(flat(contents))).tolist() == expected
            with pytest.raises(DataMissing, match="5 chunks"):
                s.place(Chunks(column(flat(contents)), np.array([len(c) for c in flat(contents)], np.uint32)))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("damage", ["truncate", "empty", "footer", "trailer"])
def test_a_damaged_pack_takes_its_chunks_with_it_and_is_named(damage: str, indexed: bool) -> None:
    """Adding the same content stores it again; reading says what is damaged."""
    backend = MemoryBackend()
    _, contents = filled(backend, 3)
    name, good = make_pack(contents[1], label=1)
    footer_at = parse_footer_of(good).block_offset[-1] + 200
    bad = {
        "truncate": good[:-70],
        "empty": b"",
        "footer": good[:footer_at] + b"\0\1\2" + good[footer_at + 3 :],
        "trailer": good[:-1] + bytes([good[-1] ^ 1]),
    }[damage]
    backend.put(pack_key(PackKind.DATA, name), [bad])
    if not indexed:
        for key in keys(backend, "i/"):
            backend.delete(key)
    store = Store(backend)
    assert store.has_chunks(column(flat(contents))).tolist() == [p != 1 for p in range(3) for _ in range(5)]
    assert [type(e) for e in store.damaged] == [Corrupt]
    lost = contents[1]
    with pytest.raises(DataMissing, match="damaged") as caught:
        store.place(Chunks(column(lost), np.array([len(c) for c in lost], np.uint32)))
    assert name.hex() in str(caught.value)
    add(store, lost)
    assert Store(backend).has_chunks(column(flat(contents))).all()


def test_foreign_objects_are_passed_over() -> None:
    backend = MemoryBackend()
    _, contents = filled(backend, 2)
    foreign = ["i/readme.txt", "i/0-short", "p/ab/readme", "p/x", "m/ab/cd", "notes.txt", "p/00/" + "g" * 64]
    foreign += ["p/00/" + "1" * 64 + ".tmp", "p/11/" + "0" * 64, "l/f/ab/x", "x/y"]
    for key in foreign:
        backend.put(key, [b"hello"])
    store = Store(backend)
    assert store.has_chunks(column(flat(contents))).all()
    assert len(store.list_packs()) == 2
    add(store, [b"more"])
    assert set(foreign) <= set(keys(backend))


# ---------------------------------------------------------------- identity


def test_racing_creators_agree_on_one_store() -> None:
    backend = MemoryBackend()
    stores = [Store(backend) for _ in range(8)]
    found: list[Descriptor] = []
    threads = [threading.Thread(target=lambda s=s: found.append(s.create())) for s in stores]  # type: ignore[misc]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)
    assert len(found) == 8 and len({d.store for d in found}) == 1


def test_a_store_of_a_newer_program_is_refused_before_anything_is_read() -> None:
    backend = MemoryBackend()
    filled(backend, 1)
    backend.put("dvk.json", [format_descriptor(Descriptor("0" * 32, ("raw",), (), read=("sealed",)))])
    with pytest.raises(NewerFormat, match="sealed"):
        Store(backend).has_chunks(column([b"x"]))
    with pytest.raises(NewerFormat, match="sealed"):
        Store(backend).create()
    backend.put("dvk.json", [b"{}"])
    with pytest.raises(NotOurs):
        Store(backend).create()


# ---------------------------------------------------------------- recipes and pages


def with_recipe(pages: list[bytes], rows: list[RecipeRow]) -> tuple[bytes, bytes]:
    builder = PackBuilder(PackKind.PAGES)
    for data in pages:
        lengths = np.array([len(data)], np.uint32)
        builder.add_block(0, data, len(data), ids=page_id(ListKind.RECIPE, data), lengths=lengths)
    for row in rows:
        builder.add_recipe(row)
    name, parts = builder.finish()
    return name, b"".join(parts)


def recipe(chunks: list[bytes]) -> tuple[bytes, RecipeRow]:
    data = format_page(ListKind.RECIPE, 0, Chunks(column(chunks), np.array([len(c) for c in chunks], np.uint32)))
    whole = b"".join(chunks)
    return data, RecipeRow(b3(whole), page_id(ListKind.RECIPE, data), len(whole), "cdc-64k")


def test_recipes_that_are_not_whole_are_no_recipes() -> None:
    """Another size, a page that is missing, a page that lies: the file is not known, and nothing is raised."""
    store, contents = filled(MemoryBackend(), 1)
    good, row = recipe(contents[0])
    other, missing = recipe(contents[0][:2])
    liar_page, liar = recipe(contents[0][1:])
    rows = [row, missing, RecipeRow(liar.file, row.root, liar.size, liar.profile)]
    put_pack(store, *with_recipe([good], rows))
    ids = as_column([r.file for r in rows])
    sizes = np.array([r.size for r in rows])
    found = store.chunks_of_many(ids, sizes)
    assert [c is not None for c in found] == [True, False, False]
    assert store.holds(ids, sizes).tolist() == [True, False, False]
    assert store.chunks_of_many(ids, sizes + 1) == [None, None, None]
    assert other != liar_page


def test_a_damaged_page_hides_its_file_and_says_why() -> None:
    store, contents = filled(MemoryBackend(), 1)
    good, row = recipe(contents[0])
    name, data = with_recipe([good], [row])
    at = parse_footer_of(data).block_offset[0] + 30
    bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    put_pack(store, name, data)
    store.backend.put(pack_key(PackKind.PAGES, name), [bad])
    assert store.chunks_of_many(as_column([row.file]), np.array([row.size])) == [None]
    assert isinstance(store.why_missing(row.file), Corrupt)
    with pytest.raises(Corrupt):
        store.load_page(PageId(row.root))


def test_pages_that_lie_together_are_read_together() -> None:
    """Fifty recipes in one block cost one read, not fifty."""
    inner = MemoryBackend()
    contents = [noise(("f", i), 100_000) for i in range(50)]
    ids, _ = add(Store(inner), contents)
    counting = CountingBackend(inner)
    store = Store(counting)
    known = store.chunks_of_many(ids, np.array([len(c) for c in contents]))
    assert all(c is not None and c.total_bytes == 100_000 for c in known)
    assert counting.counts.get_range <= 2 + 2 + 1


# ---------------------------------------------------------------- others at work


def _add_in_child(root: str, label: int, count: int) -> None:
    store = Store(LocalBackend(root))
    for i in range(count):
        add(store, [noise((label, i, k), 3000) for k in range(3)])
    store.close()


def test_two_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each sees the other's packs after a refresh, and merges of both leave an index that names every pack once."""
    root = str(tmp_path / "store")
    mine = Store(LocalBackend(root))
    mine.create()
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_add_in_child, args=(root, label, 12)) for label in (1, 2)]
    for c in children:
        c.start()
    added = [noise((0, i), 3000) for i in range(5)]
    for chunk in added:
        add(mine, [chunk])
    for c in children:
        c.join(60)
        assert c.exitcode == 0
    wanted = added + [noise((label, i, k), 3000) for label in (1, 2) for i in range(12) for k in range(3)]
    mine.refresh()
    for s in (mine, Store(LocalBackend(root))):
        assert s.has_chunks(column(wanted)).all()
        assert not s.damaged
    mine.close()


def test_a_store_is_used_from_many_threads_while_another_adds() -> None:
    backend = MemoryBackend()
    store, contents = filled(backend, 10)
    other = Store(backend)
    problems: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        try:
            while not stop.is_set():
                assert store.has_chunks(column(flat(contents))).all()
                store.refresh()
        except BaseException as error:
            problems.append(error)

    def write() -> None:
        try:
            for i in range(40):
                add(other, [noise(("w", i), 500)])
        except BaseException as error:
            problems.append(error)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    writer = threading.Thread(target=write)
    for t in (*lookers, writer):
        t.start()
    writer.join(60)
    stop.set()
    for t in lookers:
        t.join(20)
        assert not t.is_alive()
    assert not problems
    store.refresh()
    assert store.has_chunks(column([noise(("w", i), 500) for i in range(40)])).all()


def test_footers_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_FOOTER_CACHE_BYTES", 5000)
    backend = MemoryBackend()
    _, contents = filled(backend, 40)
    store = Store(backend)
    for _ in range(2):
        assert store.has_chunks(column(flat(contents))).all()
    assert 1 <= len(store._footers) <= 5
    assert store._footer_bytes == sum(catalog._weight(f) for f in store._footers.values())


# ---------------------------------------------------------------- golden


def test_the_golden_store_gives_back_its_folder(tmp_path: Path) -> None:
    """Format 1 for ever: what lies in the repository is read by today's code, every entry of it."""
    shutil.copytree(VECTORS / "store" / "golden", tmp_path / "store")
    told = json.loads((VECTORS / "store" / "golden.json").read_text())
    store = Store(LocalBackend(str(tmp_path / "store")))
    description = store.describe()
    assert description is not None and description.codecs == ("raw", "zstd")
    entries = read_entries(PageId(bytes.fromhex(told["id"])), store.load_page)
    assert (entries.total_bytes, entries.files) == (told["size"], told["files"])
    rows = told["entries"]
    assert [n.hex() for n in entries.names] == [r["path"] for r in rows]
    assert [Kind(int(k)).name.lower() for k in entries.kinds] == [r["kind"] for r in rows]
    which = np.flatnonzero(entries.is_file)
    got, failed = get(store, entries.ids[which], entries.sizes[which], tmp_path / "out")
    assert not failed
    assert {i: data.hex() for i, data in got.items()} == {i: rows[w]["content"] for i, w in enumerate(which)}
    assert [t.hex() for t in entries.targets] == [r["content"] for r in rows if r["kind"] == "link"]
    store.close()
    assert not os.path.exists(tmp_path / "out" / "0.tmp")
