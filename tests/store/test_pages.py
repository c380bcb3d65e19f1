"""Paged lists: one form, cuts by content alone, edits that touch only what is near, and hostile pages refused."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import b3, flips, mutate, noise, only_dvk_errors, vectors

from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.ids import PageId
from dvk.store import pages as pages_module
from dvk.store import pagewriter
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names
from dvk.store.pages import (
    Children,
    Chunks,
    ListKind,
    PageRef,
    format_page,
    iter_entries,
    leaf_refs,
    leaves_under,
    load_leaf,
    page_id,
    parse_page,
    read_entries,
    read_recipe,
)
from dvk.store.pagewriter import ListWriter, edit_listing, write_listing

ACCEPT, REFUSE = vectors("pages")
Row = tuple[bytes, Kind, int, bytes, bytes]


def row(name: bytes, version: int = 0) -> Row:
    return (name, Kind.FILE, 100 + version, noise((name, version), 32), b"")


class Pages(dict[PageId, bytes]):
    """A store of pages that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[PageId] = []
        self.emitted: list[tuple[PageId, bytes]] = []

    def emit(self, name: PageId, data: bytes) -> None:
        self.emitted.append((name, data))
        self[name] = data

    def load(self, name: PageId) -> bytes:
        self.loaded.append(name)
        if name not in self:
            raise DataMissing("no such page")
        return self[name]

    def forget(self) -> None:
        self.loaded, self.emitted = [], []


def small_pages(monkeypatch: pytest.MonkeyPatch, *, least: int = 2, most: int = 12, mean: int = 6) -> None:
    """The same rule with small numbers, so that few entries make many pages and levels."""
    monkeypatch.setattr(pagewriter, "MIN_ENTRIES", least)
    monkeypatch.setattr(pagewriter, "MAX_ENTRIES", most)
    monkeypatch.setattr(pagewriter, "_CUT_BELOW", (1 << 64) // mean)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_pages_are_read_and_written_alike(case: dict[str, Any]) -> None:
    kind, data = ListKind[case["of"].upper()], bytes.fromhex(case["hex"])
    page = parse_page(data, kind, subject="here")
    assert page_id(kind, data).hex() == case["id"]
    assert format_page(kind, page.level, page.body) == data


@pytest.mark.parametrize("case", REFUSE)
def test_damaged_pages_are_refused_as_what_they_are(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_page(bytes.fromhex(case["hex"]), ListKind[case["of"].upper()], subject="here")
    assert caught.value.kind == case["kind"]
    assert caught.value.subject == "here"


@pytest.mark.parametrize("case", ACCEPT)
def test_every_flipped_bit_of_a_page_changes_its_id_and_reads_as_itself_or_not_at_all(
    case: dict[str, Any],
) -> None:
    kind, data = ListKind[case["of"].upper()], bytes.fromhex(case["hex"])
    seen = {page_id(kind, data)}
    for bad in flips(data):
        assert page_id(kind, bad) not in seen
        page = only_dvk_errors(lambda bad=bad: parse_page(bad, kind, subject="here"))  # type: ignore[misc]
        if isinstance(page, pages_module.Page):
            assert format_page(kind, page.level, page.body) == bad


@settings(deadline=None)
@given(
    st.sampled_from([c.values[0] for c in ACCEPT]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 50), st.binary(max_size=50)), min_size=1, max_size=4),
    st.booleans(),
)
def test_mutated_pages_raise_nothing_but_our_errors(case: dict[str, Any], changes: Any, fit: bool) -> None:
    kind, bad = ListKind[case["of"].upper()], mutate(bytes.fromhex(case["hex"]), changes)
    if fit and len(bad) >= 12:
        bad = bad[:8] + struct.pack("<I", len(bad)) + bad[12:]
    page = only_dvk_errors(lambda: parse_page(bad, kind, subject="here"))
    if isinstance(page, pages_module.Page):
        assert format_page(kind, page.level, page.body) == bad


def test_a_page_is_of_one_kind_only() -> None:
    """Same bytes, other context, other id: a recipe can never be taken for a folder."""
    data = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    assert len({page_id(ListKind.LISTING, data), page_id(ListKind.RECIPE, data), b3(data)}) == 3


def test_totals_that_wrap_are_refused() -> None:
    """Four sizes of 2^62 - 1 and a few bytes sum to little in 64 bits."""
    huge = (1 << 62) - 1
    entries = Entries.of([(b"%d" % i, Kind.FILE, huge, b3(b"x"), b"") for i in range(5)])
    assert entries.total_bytes == 5 * huge
    sizes = np.array([huge] * 4 + [9], np.int64)
    wrapping = Entries(entries.names, entries.kinds, sizes, entries.ids, entries.targets)
    wrapped = (4 * huge + 9) % (1 << 64)
    few = Entries(entries.names, entries.kinds, np.array([1, 1, 1, 1, 1], np.int64), entries.ids, entries.targets)
    data = format_page(ListKind.LISTING, 0, few)
    columns = data[:32] + struct.pack("<Q", wrapped) + data[40:55] + wrapping.sizes.tobytes() + data[95:]
    with pytest.raises(Corrupt, match="add up"):
        parse_page(columns, ListKind.LISTING, subject="here")


def test_a_hostile_page_allocates_nothing() -> None:
    data = bytes.fromhex(ACCEPT[0].values[0]["hex"])
    tracemalloc.start()
    try:
        for count in (0xFFFFFFFF, 1 << 28, 100_000):
            for level in (0, 1):
                for kind in ListKind:
                    bad = data[:5] + bytes([kind, level]) + data[7:12] + struct.pack("<I", count) + data[16:]
                    with pytest.raises(DvkError):
                        parse_page(bad, kind, subject="here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- the cut rule


def cut_by_the_page(costs: list[int], marks: list[bool]) -> list[int]:
    """docs/format/pages.md, "Where pages end", word for word and slowly."""
    ends, k, length = [], 0, 40
    for i, (cost, mark) in enumerate(zip(costs, marks, strict=True)):
        k += 1
        length += cost
        if (k >= 1024 and mark) or k == 6144 or length >= 786_432:
            ends.append(i + 1)
            k, length = 0, 40
    if not ends or ends[-1] < len(costs):
        ends.append(len(costs))
    return ends


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 20_000),
    st.integers(0, 2**32),
    st.sampled_from([1 / 2048, 1 / 300, 0.0, 0.5]),
    st.integers(1, 9000),
)
def test_cuts_follow_the_documented_rule(n: int, seed: int, density: float, cost: int) -> None:
    rng = np.random.default_rng(seed)
    costs, marks = rng.integers(1, cost + 1, n), rng.random(n) < density
    assert pagewriter.cut_points(costs, marks, final=True) == cut_by_the_page(costs.tolist(), marks.tolist())


def test_a_listing_is_cut_where_its_names_say() -> None:
    """Leaves against the rule, with the hash of each name computed here."""
    entries = Entries.of([row(b"d%03d/%05d" % (i % 7, i)) for i in range(20_000)])
    store = Pages()
    root = write_listing(entries, store.emit)
    marks = [xxhash.xxh3_64_intdigest(n) < (1 << 64) // 2048 for n in entries.names]
    expected = cut_by_the_page([43 + len(n) for n in entries.names], marks)
    ends = np.cumsum([r.entries for r in leaf_refs(ListKind.LISTING, root.id, store.load)]).tolist()
    assert ends == expected and len(ends) > 3
    assert (root.entries, root.files, root.total_bytes) == (20_000, 20_000, entries.total_bytes)
    assert list(read_entries(root.id, store.load).names) == list(entries.names)


def test_a_recipe_is_cut_where_its_ids_say() -> None:
    ids = np.frombuffer(noise("recipe", 32 * 20_000), np.uint8).reshape(-1, 32)
    chunks = Chunks(ids, np.arange(1, 20_001, dtype=np.uint32))
    store = Pages()
    writer = ListWriter(ListKind.RECIPE, store.emit)
    writer.add(chunks)
    root = writer.finish()
    marks = [int.from_bytes(i.tobytes()[:8], "big") < (1 << 64) // 2048 for i in ids]
    ends = np.cumsum([r.entries for r in leaf_refs(ListKind.RECIPE, root.id, store.load)]).tolist()
    assert ends == cut_by_the_page([36] * 20_000, marks)
    again = read_recipe(root.id, store.load)
    assert np.array_equal(again.ids, ids) and np.array_equal(again.lengths, chunks.lengths)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 9000), max_size=6), st.integers(0, 2**32))
def test_the_same_entries_make_the_same_pages_whatever_the_batches(sizes: list[int], seed: int) -> None:
    n = sum(sizes)
    rng = np.random.default_rng(seed)
    chunks = Chunks(rng.integers(0, 256, (n, 32)).astype(np.uint8), rng.integers(1, 1 << 20, n).astype(np.uint32))
    roots = []
    for batches in (sizes, [n], [1] * min(n, 50) + [max(0, n - 50)]):
        store, at = Pages(), 0
        writer = ListWriter(ListKind.RECIPE, store.emit)
        for size in batches:
            writer.add(chunks.slice(at, at + size))
            at += size
        roots.append((writer.finish(), frozenset(store)))
    assert roots[0] == roots[1] == roots[2]


def test_the_longest_names_fill_no_page_beyond_its_limit() -> None:
    component = b"n" * 255
    names = [b"/".join([component] * 15 + [b"%0200d" % i]) for i in range(400)]
    store = Pages()
    root = write_listing(Entries.of([row(n) for n in names]), store.emit)
    assert max(map(len, store.values())) <= 1 << 20
    assert len(list(leaf_refs(ListKind.LISTING, root.id, store.load))) > 1
    assert list(read_entries(root.id, store.load).names) == names


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_levels_above_the_leaves_are_read_back(monkeypatch: pytest.MonkeyPatch, levels: int) -> None:
    small_pages(monkeypatch)
    entries = Entries.of([row(b"%06d" % i) for i in range(5 ** (levels + 1))])
    store = Pages()
    root = write_listing(entries, store.emit)
    assert parse_page(store[root.id], ListKind.LISTING, subject="here").level >= levels
    assert list(read_entries(root.id, store.load).names) == list(entries.names)
    store.forget()
    assert [n for e in iter_entries(root.id, store.load, under=b"000007") for n in e.names] == [b"000007"]


# ---------------------------------------------------------------- versions


def test_one_changed_file_in_200_000_rewrites_under_300_kilobytes() -> None:
    """Content moves no page: the leaf and the pages above it are all that is new."""
    entries = Entries.of([row(b"images/train/%07d.jpeg" % i) for i in range(200_000)])
    store = Pages()
    old = write_listing(entries, store.emit)
    leaves = len(list(leaf_refs(ListKind.LISTING, old.id, store.load)))
    store.forget()
    new = edit_listing(
        old.id, store.load, store.emit, put=Entries.of([row(b"images/train/0123456.jpeg", 1)]), remove=[]
    )
    packed = sum(len(zstandard.compress(data, 3)) for _, data in store.emitted)
    assert packed < 300_000
    assert len(store.emitted) == 2 and len(store.loaded) <= 3 < leaves
    assert new.id != old.id and new.entries == 200_000


def test_an_insertion_in_the_middle_leaves_the_other_leaves_shared() -> None:
    names = [b"f/%06d" % i for i in range(60_000)]
    one, two = Pages(), Pages()
    write_listing(Entries.of([row(n) for n in names]), one.emit)
    write_listing(Entries.of([row(n) for n in [*names, b"f/030000-new"]]), two.emit)
    assert len(set(two) - set(one)) <= 4 and len(one) > 15


@st.composite
def edit_cases(draw: st.DrawFn) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Names of a folder, names to put and names to remove (files, directories, and what is not there)."""
    seed = draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    n = draw(st.sampled_from([0, 1, 2, 5, 30, 200, 1000]))
    names = {b"d%d/e%d/%04d" % (rng.randrange(4), rng.randrange(5), rng.randrange(3000)) for _ in range(n)}
    names |= {b"x-%d" % rng.randrange(100) for _ in range(n // 10)}
    present = sorted(names)
    puts = [rng.choice(present) for _ in range(draw(st.integers(0, 5))) if present]
    puts += [
        b"d%d/e%d/n%d" % (rng.randrange(5), rng.randrange(5), rng.randrange(9)) for _ in range(draw(st.integers(0, 5)))
    ]
    gone = [rng.choice(present) for _ in range(draw(st.integers(0, 5))) if present]
    gone += draw(
        st.lists(st.sampled_from([b"d0", b"d1/e1", b"d2/e2", b"d3", b"x", b"x-5", b"zz", b"d", b""]), max_size=3)
    )
    return present, sorted(set(puts)), gone


def edited(names: list[bytes], puts: list[bytes], gone: list[bytes]) -> Entries:
    """What an edit means, by a dictionary."""
    model = {n: row(n) for n in names}
    for g in gone:
        model = {n: r for n, r in model.items() if g and n != g and not n.startswith(g + b"/")}
    for p in puts:
        model[p] = row(p, 1)
    return Entries.of(model.values())


@settings(max_examples=150, deadline=None)
@given(edit_cases(), st.integers(2, 6))
def test_an_edit_gives_the_pages_of_the_edited_folder(
    case: tuple[list[bytes], list[bytes], list[bytes]], least: int
) -> None:
    """Same root and same pages as writing the whole folder anew, with pages so small that borders are everywhere."""
    names, puts, gone = case
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch, least=least, most=4 * least, mean=2 * least)
        store, fresh = Pages(), Pages()
        old = write_listing(Entries.of([row(n) for n in names]), store.emit)
        new = edit_listing(old.id, store.load, store.emit, put=Entries.of([row(p, 1) for p in puts]), remove=gone)
        assert new == write_listing(edited(names, puts, gone), fresh.emit)
        assert fresh.keys() <= store.keys()


@pytest.mark.parametrize("seed", range(3))
def test_an_edit_with_the_real_limits_gives_the_pages_of_the_edited_folder(seed: int) -> None:
    rng = random.Random(seed)
    names = sorted({b"d%02d/%05d" % (rng.randrange(30), rng.randrange(9000)) for _ in range(20_000)})
    store, fresh = Pages(), Pages()
    old = write_listing(Entries.of([row(n) for n in names]), store.emit)
    borders = [r.first for r in leaf_refs(ListKind.LISTING, old.id, store.load)][1:]
    puts = sorted({rng.choice(names), b"d11/new", rng.choice(borders), rng.choice(borders) + b"+"})
    gone = [rng.choice(borders), b"d17", rng.choice(names)]
    new = edit_listing(old.id, store.load, store.emit, put=Entries.of([row(p, 1) for p in puts]), remove=gone)
    assert new == write_listing(edited(names, puts, gone), fresh.emit)
    assert fresh.keys() <= store.keys()


def test_an_edit_at_one_place_loads_and_writes_pages_near_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise behind `dvk add images/new.jpg`; a page that is not here is not missed."""
    small_pages(monkeypatch, least=20, most=120, mean=40)
    names = [b"a/%06d" % i for i in range(5000)]
    store = Pages()
    old = write_listing(Entries.of([row(n) for n in names]), store.emit)
    leaves = list(leaf_refs(ListKind.LISTING, old.id, store.load))
    assert len(leaves) > 60
    middle = len(leaves) // 2
    for leaf_ref in leaves[: middle - 10] + leaves[middle + 10 :]:
        del store[leaf_ref.id]
    at = leaves[middle].first
    for put, gone in (([at + b"+"], []), ([at], []), ([], [at]), ([at + b"-", at], [at + b"+"])):
        near = Pages()
        near.update(store)
        edit_listing(old.id, near.load, near.emit, put=Entries.of([row(p, 1) for p in put]), remove=gone)
        above = len([n for n in near.loaded if n not in {x.id for x in leaves}])
        assert len(near.loaded) - above <= 5
        assert len(near.emitted) <= 5 + above


def test_what_is_put_below_an_empty_directory_replaces_its_entry() -> None:
    store = Pages()
    old = write_listing(Entries.of([(b"d", Kind.EMPTYDIR, 0, bytes(32), b""), row(b"e")]), store.emit)
    new = edit_listing(old.id, store.load, store.emit, put=Entries.of([row(b"d/f")]), remove=[])
    assert list(read_entries(new.id, store.load).names) == [b"d/f", b"e"]


def test_many_removals_cost_what_they_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of 20,000 names removed one by one: a page looks at its own, not at all of them."""
    names = [b"f%06d" % i for i in range(20_000)]
    store, fresh = Pages(), Pages()
    old = write_listing(Entries.of([row(n) for n in names]), store.emit)
    new = edit_listing(old.id, store.load, store.emit, put=Entries.empty(), remove=names[::2])
    assert new == write_listing(Entries.of([row(n) for n in names[1::2]]), fresh.emit)


# ---------------------------------------------------------------- reading a part


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([b"a", b"b", b"a-", b"\xff", b"\xff\xff", b"0"]), min_size=1, max_size=4),
        max_size=60,
    ),
    st.sampled_from([b"a", b"a/a", b"\xff", b"\xff/\xff\xff", b"a-", b"b/\xff", b"", b"zz"]),
)
def test_a_part_of_a_folder_is_what_lies_at_and_below_a_path(paths: list[list[bytes]], under: bytes) -> None:
    names: set[bytes] = {b"/".join(p) for p in paths}
    names = {n for n in names if not any(m.startswith(n + b"/") for m in names)}
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        store = Pages()
        root = write_listing(Entries.of([row(n) for n in names]), store.emit)
        got = list(read_entries(root.id, store.load, under=under).names)
    assert got == sorted(n for n in names if not under or n == under or n.startswith(under + b"/"))


def test_leaves_that_begin_with_high_bytes_are_not_passed_over() -> None:
    refs = [PageRef(PageId(bytes([i]) * 32), 1, 1, 1, first) for i, first in enumerate([b"a", b"d/\xff\xff", b"e"])]
    assert leaves_under(refs, b"d") == refs[:2]


# ---------------------------------------------------------------- hostile lists


def forged(store: Pages, refs: list[PageRef], *, level: int = 1, kind: ListKind = ListKind.LISTING) -> PageId:
    """A page of pages that says what it is told to say."""
    data = format_page(kind, level, Children(tuple(refs)))
    name = page_id(kind, data)
    store[name] = data
    return name


def leaf(store: Pages, *names: bytes) -> PageRef:
    return write_listing(Entries.of([row(n) for n in names]), store.emit)


Change = Callable[[PageRef], PageRef]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: PageRef(r.id, r.entries + 1, r.files, r.total_bytes, r.first),
        lambda r: PageRef(r.id, r.entries, r.files + 1, r.total_bytes, r.first),
        lambda r: PageRef(r.id, r.entries, r.files, r.total_bytes + 1, r.first),
        lambda r: PageRef(r.id, r.entries, r.files, r.total_bytes, r.first + b"x"),
    ],
    ids=["entries", "files", "bytes", "first"],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_page_that_is_not_what_its_parent_says_is_refused(change: Change, deep: bool) -> None:
    store = Pages()
    a, b = leaf(store, b"a", b"b"), leaf(store, b"m", b"n")
    if deep:
        inner = forged(store, [b])
        root = forged(store, [a, change(PageRef(inner, b.entries, b.files, b.total_bytes, b.first))], level=2)
        assert parse_page(store[root], ListKind.LISTING, subject="here").level == 2
        with pytest.raises(Corrupt):
            list(leaf_refs(ListKind.LISTING, root, store.load))
    else:
        root = forged(store, [a, change(b)])
        with pytest.raises(Corrupt):
            read_entries(root, store.load)


def test_a_child_of_the_wrong_level_is_refused() -> None:
    store = Pages()
    a = leaf(store, b"a")
    with pytest.raises(Corrupt, match="parent"):
        list(leaf_refs(ListKind.LISTING, forged(store, [a], level=3), store.load))


def test_leaves_out_of_order_are_refused() -> None:
    store = Pages()
    a, m = leaf(store, b"a", b"z"), leaf(store, b"m")
    with pytest.raises(Corrupt, match="order"):
        read_entries(forged(store, [a, m]), store.load)
    deep = [forged(store, [m]), forged(store, [a])]
    refs = [
        PageRef(name, r.entries, r.files, r.total_bytes, first)
        for name, r, first in zip(deep, (m, a), (b"a", b"m"), strict=True)
    ]
    with pytest.raises(Corrupt):
        read_entries(forged(store, refs, level=2), store.load)


@pytest.mark.parametrize(
    ("before", "after"),
    [([b"a"], [b"a/b"]), ([b"0", b"a", b"a-"], [b"a.txt", b"a/b"]), ([b"d/x"], [b"d/x/y", b"e"])],
)
def test_a_file_that_is_a_directory_on_another_leaf_is_refused(before: list[bytes], after: list[bytes]) -> None:
    store = Pages()
    root = forged(store, [leaf(store, *before), leaf(store, *after)])
    with pytest.raises(FormatError, match="directory"):
        read_entries(root, store.load)


def test_a_file_that_is_a_directory_two_leaves_on_is_refused_and_its_likes_are_not() -> None:
    store = Pages()
    middle = leaf(store, b"a-1", b"a-2")
    with pytest.raises(FormatError, match="directory"):
        read_entries(forged(store, [leaf(store, b"a"), middle, leaf(store, b"a.b", b"a/b")]), store.load)
    good = [leaf(store, b"a"), middle, leaf(store, b"a.b", b"a0/b"), leaf(store, b"a0/c", b"b")]
    assert len(read_entries(forged(store, good), store.load)) == 7


def test_the_same_page_again_and_again_is_refused_before_it_is_expanded() -> None:
    """Three pages of a megabyte must not become a list of billions."""
    store = Pages()
    a = leaf(store, b"a")
    level = [PageRef(a.id, 1, 1, a.total_bytes, b"%05d" % i) for i in range(10_000)]
    inner = forged(store, level)
    page = parse_page(store[inner], ListKind.LISTING, subject="here")
    refs = [PageRef(inner, page.entries, page.files, page.total_bytes, b"%05d" % (i * 10)) for i in range(1000)]
    root = forged(store, refs, level=2)
    store.forget()
    with pytest.raises(Corrupt):
        read_entries(root, store.load)
    assert len(store.loaded) < 5


def test_a_page_that_fails_its_hash_is_refused() -> None:
    store = Pages()
    root = leaf(store, b"a")
    store[root.id] = store[leaf(store, b"b").id]
    with pytest.raises(Corrupt, match="hash"):
        read_entries(root.id, store.load)
    with pytest.raises(Corrupt, match="hash"):
        load_leaf(ListKind.LISTING, root, store.load)


def test_a_missing_page_is_missing_not_empty() -> None:
    store = Pages()
    root = forged(store, [leaf(store, b"a"), PageRef(PageId(b"?" * 32), 1, 1, 1, b"b")])
    with pytest.raises(DataMissing):
        read_entries(root, store.load)


def test_an_empty_folder_is_a_page_of_its_own() -> None:
    store = Pages()
    root = write_listing(Entries.empty(), store.emit)
    assert (root.entries, root.files, root.total_bytes, root.first) == (0, 0, 0, b"")
    assert len(read_entries(root.id, store.load)) == 0
    assert len(Names.join([])) == 0
