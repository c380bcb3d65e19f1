"""A remote that serves anything: the right bytes arrive or a clear error does, and the local store stays true.

`check_true` looks at everything a local store holds: each chunk, page and recipe is what its id says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synckit as kit
import xxhash
from msgspec.structs import replace
from storekit import b3, keys
from synckit import Around, Heard, Remote, add_file, add_folder, check_honest, chunks, new_store, send

from dvk.backend.contract import Backend
from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, DvkError, NewerFormat
from dvk.ids import PageId
from dvk.store import locator as loc
from dvk.store.codec import decode_block
from dvk.store.fetch import Fetched, Wanted, fetch, is_here
from dvk.store.locator import Locator, Ref, format_locator, locator_key
from dvk.store.pack import PackKind, block_header, iter_blocks, parse_footer_of
from dvk.store.pages import Children, Chunks, ListKind, PageRef, format_page, page_id
from dvk.store.resolve import Resolver
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(120)

TREE = {
    b"a": chunks("a", 1),
    b"b/big": chunks("big", 9),
    b"b/link": kit.Link(b"../a"),
    b"c": chunks("c", 3),
    b"d": (),
    b"e": kit.EMPTY,
    b"f": chunks("f", 5),
}
FILE_ = chunks("file", 12)


def check_true(local: Store) -> None:
    """Fail if anything in a store is not what its id says."""
    for key in keys(local.backend):
        if key[:2] not in ("p/", "m/"):
            continue
        data = local.backend.get(key, max_bytes=1 << 30)
        assert b3(data).hex() == key.rsplit("/", 1)[-1]
        footer = parse_footer_of(data)
        raw = b"".join(decode_block(c, p, n) for c, n, p in iter_blocks(_blocks(data), subject=key))
        at = 0
        for i, length in enumerate(footer.chunk_len.tolist()):
            piece, name = raw[at : at + length], footer.ids[i].tobytes()
            at += length
            if footer.kind is PackKind.DATA:
                assert b3(piece) == name
            else:
                assert name in {page_id(kind, piece) for kind in ListKind}
        fresh = Store(local.backend)
        for i in range(len(footer.recipes)):
            row = footer.recipe(i)
            if is_here(fresh, Wanted(Root(FILE, row.file, row.size))):
                kit.content(fresh, Root(FILE, row.file, row.size))


def _blocks(pack: bytes) -> bytes:
    from dvk.store.pack import HEADER, TRAILER, parse_trailer

    return pack[HEADER.size : parse_trailer(pack[-TRAILER.size :], subject="").footer_offset]


class Spoiled(Around):
    """Answers something else for some objects."""

    def __init__(self, inner: Backend, change: Callable[[str, bytes], bytes]) -> None:
        super().__init__(inner)
        self._change = change

    def _object(self, key: str) -> bytes:
        return self._change(key, self.inner.get(key, max_bytes=1 << 30))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._object(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        data = self._object(key)
        if offset + length > len(data):
            raise Corrupt("the object ends before that")
        return data[offset : offset + length]

    def stat(self, key: str) -> int | None:
        return None if self.inner.stat(key) is None else len(self._object(key))


class Modest(Around):
    """Fails the test when more is asked for than any section, footer or range can have."""

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        assert length <= 64 << 20
        return super().get_range(key, offset, length)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        assert max_bytes <= 64 << 20
        return super().get(key, max_bytes=max_bytes)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Remote, Root, Root]:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    folder, file = add_folder(local, TREE), add_file(local, FILE_)
    send(local, remote.store, tmp_path, folder, file)
    return remote, folder, file


def try_fetch(remote: Backend, roots: Sequence[tuple[Root, Any]]) -> tuple[Fetched | None, Store]:
    """Fetch into an empty store, which must stay true; None when that ended in an error of ours."""
    local = new_store()
    try:
        done = fetch(Store(Modest(remote)), local, [Wanted(r) for r, _ in roots])
    except DvkError:
        done = None
    check_true(local)
    for root, what in roots:
        here = check_honest(Store(local.backend), root, what)
        if done is not None:
            assert here == (root not in [w.root for w, _ in done.failures])
    return done, local


@pytest.mark.parametrize("prefix", ["l/d/", "l/f/", "m/", "p/"])
def test_flipped_bits(prefix: str, setting: tuple[Remote, Root, Root]) -> None:
    """In locators, sections, pages, footers and data; what is served by other copies still arrives."""
    remote, folder, file = setting
    for key in remote.keys(prefix):
        size = remote.inner.stat(key) or 0
        for at in range(0, size, max(1, size // 25)):
            bit = 1 << at % 8

            def flip(k: str, data: bytes, at: int = at, bit: int = bit, key: str = key) -> bytes:
                return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :] if k == key else data

            done, _ = try_fetch(Spoiled(remote.inner, flip), [(folder, TREE), (file, FILE_)])
            if prefix.startswith("l/"):
                assert done is not None and not done.failures  # footers know everything


@pytest.mark.parametrize("prefix", ["l/d/", "l/f/", "m/", "p/"])
def test_cut_objects(prefix: str, setting: tuple[Remote, Root, Root]) -> None:
    remote, folder, file = setting
    for key in remote.keys(prefix):
        size = remote.inner.stat(key) or 0
        for length in (0, 1, size // 3, size // 2, size - 64, size - 1):
            cut = lambda k, data, key=key, n=length: data[:n] if k == key else data  # noqa: E731
            try_fetch(Spoiled(remote.inner, cut), [(folder, TREE), (file, FILE_)])


def test_swapped_objects(setting: tuple[Remote, Root, Root]) -> None:
    remote, folder, file = setting
    objects = remote.objects()
    every = [k for k in objects if k[:2] in ("l/", "m/", "p/")]
    for i, a in enumerate(every):
        for b in every[i + 1 :]:
            other = {a: objects[b], b: objects[a]}
            done, _ = try_fetch(
                Spoiled(remote.inner, lambda k, data, other=other: other.get(k, data)), [(folder, TREE), (file, FILE_)]
            )
            if a[:2] == b[:2] == "l/":
                assert done is not None and not done.failures


# ---------------------------------------------------------------- locators with a right checksum


def checksummed(data: bytes) -> bytes:
    return data[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:-8]))


def put_locator(remote: Remote, root: Root, data: bytes) -> None:
    remote.inner.put(locator_key(root.kind, root.id), [checksummed(data)])


@pytest.mark.parametrize("which", [0, 1], ids=["folder", "file"])
def test_every_byte_of_a_locator_altered_with_a_right_checksum(which: int, setting: tuple[Remote, Root, Root]) -> None:
    """The reader raises an error of ours or says the truth about pages, whatever the locator states."""
    remote, root = setting[0], setting[1 + which]
    good = format_locator(remote.locator(root))
    altered = 0
    with Resolver(Store(Modest(remote.inner))) as resolver:
        for at in range(len(good) - 8):
            for bit in (0x01, 0x80):
                data = checksummed(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
                try:
                    found = loc.parse_locator(data, kind=root.kind, wanted=root.id, subject="")
                except (Corrupt, NewerFormat):
                    continue
                altered += 1
                try:
                    parts = list(resolver.resolve(root, found=found))
                except DvkError:
                    continue
                for part in parts:
                    for name, page in part.pages:
                        assert name in {page_id(kind, page) for kind in ListKind}
    assert altered > 50


def rebuilt(found: Locator, streams: Sequence[bytes]) -> bytes:
    """The same locator with other sections in it: right headers and checksums around any bytes."""
    inline = tuple(
        b"".join(
            block_header(0, len(s[i : i + 1000]), s[i : i + 1000]) + s[i : i + 1000] for i in range(0, len(s), 1000)
        )
        for s in streams
    )
    refs = tuple(replace(r, length=len(i)) for r, i in zip(found.sections, inline, strict=True))
    return format_locator(replace(found, sections=refs, inline=inline))


@pytest.mark.parametrize("which", [0, 1], ids=["folder", "file"])
def test_every_byte_of_a_section_altered_with_right_checksums(which: int, setting: tuple[Remote, Root, Root]) -> None:
    remote, root, what = setting[0], setting[1 + which], (TREE, FILE_)[which]
    found = remote.locator(root)
    streams = [loc.decode_blocks(data, subject="") for data in found.inline]
    assert streams
    believed = 0
    with Resolver(Store(Modest(remote.inner))) as resolver:
        for n, stream in enumerate(streams):
            for at in range(len(stream)):
                bad = list(streams)
                bad[n] = stream[:at] + bytes([stream[at] ^ (1 << at % 8)]) + stream[at + 1 :]
                data = rebuilt(found, bad)
                hostile = loc.parse_locator(data, kind=root.kind, wanted=root.id, subject="")
                resolver.records.clear()
                try:
                    parts = list(resolver.resolve(root, found=hostile))
                except DvkError:
                    continue
                for part in parts:
                    assert all(name in {page_id(kind, page) for kind in ListKind} for name, page in part.pages)
                if at % 12 == 0:
                    # What looks well-formed leads to wrong places at most, which a fetch finds out.
                    believed += 1
                    altered = MemoryBackend()
                    for key, value in remote.objects().items():
                        altered.put(key, [value])
                    altered.put(locator_key(root.kind, root.id), [data])
                    done, _ = try_fetch(altered, [(root, what)])
                    assert done is not None and not done.failures
    assert believed > 10


def test_a_locator_of_another_id_or_of_before(setting: tuple[Remote, Root, Root], tmp_path: Path) -> None:
    remote, folder, file = setting
    local = new_store()
    newer = add_folder(local, {**TREE, b"a": (b"edit",)})
    send(local, remote.store, tmp_path / "2", newer)
    old = remote.objects("l/")[locator_key(folder.kind, folder.id)]
    remote.inner.put(locator_key(newer.kind, newer.id), [old])
    heard = Heard()
    other = new_store()
    done = fetch(remote.store, other, [Wanted(newer)], on_event=heard)
    assert not done.failures and len(heard.notes) == 1
    assert check_honest(other, newer, {**TREE, b"a": (b"edit",)})
    # Under the right id in its header it still leads to the pages of the older folder.
    forged = remote.locator(folder)
    put_locator(remote, newer, format_locator(replace(forged, id=newer.id, root=newer.id, size=newer.size)))
    done, _ = try_fetch(remote.inner, [(newer, {**TREE, b"a": (b"edit",)})])
    assert done is not None and not done.failures
    assert file.kind == FILE


def test_a_pointer_that_states_other_totals_gets_nothing(setting: tuple[Remote, Root, Root], tmp_path: Path) -> None:
    """Neither from an honest remote nor from one that agrees with the pointer."""
    remote, folder, _ = setting
    for wrong in (replace(folder, size=folder.size + 1), replace(folder, files=folder.files + 1)):
        for forge in (False, True):
            if forge:
                found = remote.locator(folder)
                put_locator(remote, folder, format_locator(replace(found, size=wrong.size, files=wrong.files)))
            done = fetch(remote.store, new_store(), [Wanted(wrong)])
            assert [w.root for w, _ in done.failures] == [wrong]
    local = new_store()
    big = add_folder(local, {b"%03d" % i: chunks(i, 1) for i in range(100)})
    remote2 = Remote()
    send(local, remote2.store, str(tmp_path / "state"), big)
    wrong = replace(big, size=big.size - 1)
    put_locator(remote2, big, format_locator(replace(remote2.locator(big), size=wrong.size)))
    done = fetch(remote2.store, new_store(), [Wanted(wrong)])
    assert [w.root for w, _ in done.failures] == [wrong]


# ---------------------------------------------------------------- recipes that are not true


def test_a_recipe_of_another_file_is_not_kept(setting: tuple[Remote, Root, Root], tmp_path: Path) -> None:
    """Every chunk is what it says, but together they are another file. Nothing but the whole hash can tell."""
    remote, _, file = setting
    real = tuple(reversed(FILE_))  # of the same length
    lie = Root(FILE, b3(b"".join(real)), file.size)
    put_locator(remote, lie, format_locator(replace(remote.locator(file), id=lie.id)))
    local = new_store()
    done = fetch(remote.store, local, [Wanted(lie, name="lie"), Wanted(file)])
    assert [w.root for w, _ in done.failures] == [lie] and isinstance(done.failures[0][1], Corrupt)
    assert not is_here(local, Wanted(lie)) and check_honest(local, file, FILE_)
    check_true(local)
    # The store is not poisoned: adding the real file works.
    assert add_file(local, real) == lie
    assert check_honest(local, lie, real)


def test_a_wrong_recipe_in_a_folder_is_not_kept(setting: tuple[Remote, Root, Root]) -> None:
    remote, folder, _ = setting
    pieces, other = chunks("c", 3), tuple(reversed(chunks("c", 3)))
    found = remote.locator(folder)
    streams = [loc.decode_blocks(data, subject="") for data in found.inline]
    good = format_page(ListKind.RECIPE, 0, _recipe(pieces))
    assert good in streams[0]
    bad = streams[0].replace(good, format_page(ListKind.RECIPE, 0, _recipe(other)))
    # The places must follow, so that each chunk is found: swap the first and the last of the three.
    section = loc.parse_section(found.inline[0], single=False, subject="")
    per_entry = section.placed.per_entry.tolist()
    first = sum(per_entry[:3])
    p = section.placed.placement
    order = np.arange(len(p.block))
    order[[first, first + 2]] = order[[first + 2, first]]
    swapped = replace(section.placed, placement=replace(p, block=p.block[order], offset=p.offset[order]))
    bad = bad.replace(loc.format_placement(section.placed), loc.format_placement(swapped))
    put_locator(remote, folder, rebuilt(found, [bad, *streams[1:]]))
    done, local = try_fetch(remote.inner, [(folder, TREE)])
    assert done is not None and isinstance(done.failures[0][1], Corrupt)
    root = add_file(local, pieces)
    assert check_honest(local, root, pieces)


def _recipe(pieces: Sequence[bytes]) -> Chunks:
    ids = np.frombuffer(b"".join(map(b3, pieces)), np.uint8).reshape(-1, 32)
    return Chunks(ids, np.array([len(p) for p in pieces], np.uint32))


# ---------------------------------------------------------------- bombs


def test_a_locator_to_a_gigabyte_is_refused_before_it_is_read(setting: tuple[Remote, Root, Root]) -> None:
    remote, folder, file = setting
    for root in (folder, file):
        found = remote.locator(root)
        refs = tuple(Ref(r.pack, 32, (1 << 30) - 32) for r in found.sections)
        put_locator(remote, root, format_locator(replace(found, sections=refs, inline=())))
    done, _ = try_fetch(remote.inner, [(folder, TREE), (file, FILE_)])
    assert done is not None and not done.failures  # by the footers


def test_pages_that_repeat_one_another_end() -> None:
    """Eight levels of pages, each naming the one below ten thousand times: a few hundred kB for 10^32 leaves."""
    remote = Remote()
    remote.store.create()
    leaf = format_page(ListKind.RECIPE, 0, _recipe([b"x"]))
    pages, below = [], PageRef(PageId(page_id(ListKind.RECIPE, leaf)), 1, 0, 1, b"")
    for level in range(1, 9):
        n = 1000 if level < 5 else 1
        body = Children((below,) * n)
        data = format_page(ListKind.RECIPE, level, body)
        pages.insert(0, data)
        below = PageRef(PageId(page_id(ListKind.RECIPE, data)), below.entries * n, 0, below.total_bytes * n, b"")
    root = Root(FILE, b3(b"bomb"), below.total_bytes)
    sections = (Ref(bytes(32), 32, 100),) * 50
    bomb = Locator(FILE, root.id, root.size, 0, below.id, bytes(32), "cdc-64k", b"".join(pages), sections)
    put_locator(remote, root, format_locator(bomb))
    done, _ = try_fetch(remote.inner, [(root, None)])
    assert done is not None and len(done.failures) == 1


def test_a_file_of_one_chunk_that_is_too_long_is_refused() -> None:
    remote = Remote()
    remote.store.create()
    for size in (1 << 21, 1 << 33, 1 << 40):
        root = Root(FILE, b3(b"%d" % size), size)
        none = loc.SectionPlacement(loc.empty_placement(), np.zeros(0, np.uint32), ())
        placed = loc.format_placement(none)
        inline = (block_header(0, len(placed), placed) + placed,)
        refs = (Ref(bytes(32), 32, len(inline[0])),)
        put_locator(
            remote, root, format_locator(Locator(FILE, root.id, size, 0, bytes(32), bytes(32), "", b"", refs, inline))
        )
        done, _ = try_fetch(remote.inner, [(root, None)])
        assert done is not None and len(done.failures) == 1


def test_a_root_that_is_no_leaf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A locator that gives the root page of a long folder as its only leaf."""
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%03d" % i: chunks(i, 1) for i in range(60)}
    root = add_folder(local, tree)
    send(local, remote.store, tmp_path, root)
    found = remote.locator(root)
    top = loc.split_pages(found.pages, subject="")[0]
    none = loc.SectionPlacement(loc.empty_placement(), np.zeros(0, np.uint32), ())
    lie = replace(found, pages=b"", sections=found.sections[:1], inline=(b"",))
    put_locator(remote, root, rebuilt(lie, [top + loc.format_placement(none)]))
    done, _ = try_fetch(remote.inner, [(root, tree)])
    assert done is not None and not done.failures


# ---------------------------------------------------------------- what is gone


def test_a_locator_that_leads_to_missing_packs_is_no_end(setting: tuple[Remote, Root, Root], tmp_path: Path) -> None:
    """Somebody packed anew and did not write the locators: footers are read, and that is said."""
    remote, folder, file = setting
    other = new_store()
    fetch(remote.store, other, [Wanted(folder), Wanted(file)])
    for key in remote.keys("p/") + remote.keys("m/"):
        remote.inner.delete(key)
    for key in keys(other.backend):
        if key[:2] in ("p/", "m/"):
            remote.inner.put(key, [other.backend.get(key, max_bytes=1 << 30)])
    heard, local = Heard(), new_store()
    done = fetch(remote.store, local, [Wanted(folder), Wanted(file)], on_event=heard)
    assert not done.failures and len(heard.notes) == 2
    assert all("footers" in n.hint and n.subject for n in heard.notes)
    assert check_honest(local, folder, TREE) and check_honest(local, file, FILE_)


@pytest.mark.parametrize("by_locator", [True, False])
def test_data_that_is_gone_is_missed_and_the_rest_arrives(
    by_locator: bool, setting: tuple[Remote, Root, Root], tmp_path: Path
) -> None:
    """A folder that lost one pack is a failure, never a success with holes; its other files come all the same."""
    remote, folder, _ = setting
    local = new_store()
    grown = {**TREE, b"new": chunks("new", 4)}
    root = add_folder(local, grown)
    before = set(remote.keys("p/"))
    from dvk.store.push import Version

    send(local, remote.store, tmp_path / "2", Version(root, (folder,)))
    (lost,) = set(remote.keys("p/")) - before
    remote.inner.delete(lost)
    if not by_locator:
        remote.inner.delete(locator_key(FOLDER, root.id))
    done, other = try_fetch(remote.inner, [(root, grown)])
    assert done is not None and [e.kind for _, e in done.failures] == ["data-missing"]
    assert done.failures[0][1].hint
    for name in (b"a", b"c", b"f"):
        pieces = TREE[name]
        assert isinstance(pieces, tuple)
        data = b"".join(pieces)
        if by_locator or name == b"a":
            assert check_honest(Store(other.backend), Root(FILE, b3(data), len(data)), pieces)


def test_long_recipes_come_by_footers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All their leaves, not only the pages above them."""
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"big": chunks("big", 200, 20), b"small": chunks("small", 2)}
    folder, file = add_folder(local, tree), add_file(local, chunks("f", 300, 20))
    send(local, remote.store, tmp_path, folder, file)
    for key in remote.keys("l/"):
        remote.inner.delete(key)
    done, _ = try_fetch(remote.inner, [(folder, tree), (file, chunks("f", 300, 20))])
    assert done is not None and not done.failures


def test_an_empty_remote_is_a_clear_error() -> None:
    done, _ = try_fetch(MemoryBackend("nothing here"), [(Root(FILE, b3(b"x"), 1), (b"x",))])
    assert done is not None
    (failure,) = done.failures
    assert failure[1].kind == "data-missing" and "nothing here" in failure[1].subject and failure[1].hint
