"""What is damaged on a remote is called damaged, not missing; it is read again, then searched for; bombs stay small."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import synckit as kit
import xxhash
import zstandard
from msgspec.structs import replace
from storekit import b3
from synckit import Around, Heard, Remote, add_file, add_folder, check_honest, chunks, new_store, send

from dvk.backend.contract import Backend
from dvk.errors import Corrupt, DataMissing, DvkError, NewerFormat
from dvk.ids import PageId
from dvk.store import locator as loc
from dvk.store.codec import ZSTD
from dvk.store.fetch import Wanted, fetch
from dvk.store.locator import Locator, Ref, format_locator, locator_key
from dvk.store.pack import PackBuilder, PackKind, RecipeRow, block_header, pack_key
from dvk.store.pages import Children, ListKind, PageRef, format_page, page_id
from dvk.store.resolve import NotWhole, Resolver
from dvk.store.root import FILE, Root
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)

TREE = {b"a": chunks("a", 1), b"b/big": chunks("big", 9), b"c": chunks("c", 3)}
FILE_ = chunks("file", 12)
World = tuple[Remote, dict[Root, object]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    roots: dict[Root, object] = {add_folder(local, TREE): TREE, add_file(local, FILE_): FILE_}
    send(local, remote.store, tmp_path, *roots)
    return remote, roots


def spoil(remote: Remote, *prefixes: str) -> None:
    """Flip a bit in the middle and one near the end of every object under some prefixes."""
    for prefix in prefixes:
        for key, data in remote.objects(prefix).items():
            bad = bytearray(data)
            bad[len(bad) // 2] ^= 1
            bad[-5] ^= 1
            remote.inner.put(key, [bytes(bad)])


def errors(remote: Backend, roots: dict[Root, object], heard: Heard | None = None) -> list[DvkError]:
    local = new_store()
    done = fetch(Store(remote), local, [Wanted(r) for r in roots], on_event=heard or Heard())
    failed = {w.root for w, _ in done.failures}
    for root, what in roots.items():
        assert check_honest(Store(local.backend), root, what) == (root not in failed)
    return [e for _, e in done.failures]


def test_a_damaged_locator_costs_a_search_and_a_note(world: World) -> None:
    remote, roots = world
    spoil(remote, "l/")
    heard = Heard()
    assert not errors(remote.inner, roots, heard)
    assert len(heard.notes) == 2
    for note in heard.notes:
        assert "fails its checksum" in note.message and "footers" in note.hint and "--verify full" in note.hint


def test_an_answer_that_was_wrong_once_costs_nothing(world: World) -> None:
    class Once(Around):
        seen: set[str] = set()

        def get(self, key: str, *, max_bytes: int) -> bytes:
            data = super().get(key, max_bytes=max_bytes)
            if key.startswith("l/") and key not in self.seen:
                self.seen.add(key)
                return data[:-1] + bytes([data[-1] ^ 1])
            return data

    remote, roots = world
    heard = Heard()
    assert not errors(Once(remote.inner), roots, heard) and not heard.notes


@pytest.mark.parametrize("spoilt", [("l/", "m/"), ("l/", "p/"), ("l/", "m/", "p/"), ("m/", "p/"), ("p/",)])
def test_what_is_damaged_is_not_called_missing(spoilt: tuple[str, ...], world: World) -> None:
    remote, roots = world
    spoil(remote, *spoilt)
    found = errors(remote.inner, roots)
    assert found and all(isinstance(e, Corrupt) for e in found), found
    for error in found:
        assert ("remote" in error.subject and error.hint) or "fails" in error.message


def test_a_damaged_locator_and_packs_that_are_gone_is_damage_that_names_the_locator(world: World) -> None:
    remote, roots = world
    spoil(remote, "l/")
    for key in remote.keys("p/") + remote.keys("m/"):
        remote.inner.delete(key)
    found = errors(remote.inner, roots)
    assert len(found) == 2
    for error in found:
        assert isinstance(error, NotWhole) and "locator" in error.message and "l/" in error.message
        assert "--verify full" in error.hint


def test_what_was_never_there_is_missing(world: World) -> None:
    remote, _ = world
    (error,) = errors(remote.inner, {Root(FILE, b3(b"x"), 1): (b"x",)})
    assert isinstance(error, DataMissing) and "push" in error.hint


def test_a_locator_of_a_newer_dvk_says_upgrade(world: World) -> None:
    """Unless the footers tell all that is needed."""
    remote, roots = world
    for root in roots:
        key = locator_key(root.kind, root.id)
        data = bytearray(remote.inner.get(key, max_bytes=1 << 30))
        data[8] = 2
        put_checked(remote, key, bytes(data))
    assert not errors(remote.inner, roots)
    for key in remote.keys("m/"):
        remote.inner.delete(key)
    found = errors(remote.inner, roots)
    assert len(found) == 2 and all(isinstance(e, NewerFormat) and "upgrade dvk" in e.hint for e in found)


def put_checked(remote: Remote, key: str, data: bytes) -> None:
    remote.inner.put(key, [data[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:-8]))])


# ---------------------------------------------------------------- claims of terabytes


def claim(size: int, *, leaves: int = 1000) -> tuple[bytes, bytes]:
    """A root page of a recipe that states `size` bytes in leaves that nobody has; its id and bytes."""
    each = PageRef(PageId(b3(b"nowhere")), 4096, 0, size // leaves, b"")
    data = format_page(ListKind.RECIPE, 1, Children((each,) * leaves))
    return page_id(ListKind.RECIPE, data), data


def measured(work: Callable[[], object]) -> tuple[object, int]:
    """What work gives, and the memory that it took at most."""
    tracemalloc.start()
    try:
        out = work()
        return out, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("by_locator", [True, False])
def test_a_small_pointer_whose_recipe_claims_terabytes_costs_nothing(by_locator: bool) -> None:
    remote = Remote()
    remote.store.create()
    root = Root(FILE, b3(b"small"), 100)
    name, page = claim(1 << 42)
    if by_locator:
        refs = (Ref(bytes(32), 32, 60),) * 1000
        lie = Locator(FILE, root.id, root.size, 0, name, bytes(32), "cdc-64k", page, refs)
        remote.inner.put(locator_key(FILE, root.id), [format_locator(lie)])
    else:
        builder = PackBuilder(PackKind.PAGES)
        builder.add_block(0, page, len(page), ids=name, lengths=np.array([len(page)], np.uint32))
        builder.add_recipe(RecipeRow(root.id, name, root.size, "cdc-64k"))
        pack, parts = builder.finish()
        remote.inner.put(pack_key(PackKind.PAGES, pack), parts)
    found, peak = measured(lambda: errors(remote.inner, {root: b""}))
    assert isinstance(found, list) and len(found) == 1 and found[0].hint
    assert peak < 8 << 20


def test_a_recipe_has_no_more_chunks_than_its_file_has_bytes(world: World) -> None:
    remote, _ = world
    root = Root(FILE, b3(b"small"), 100_000)
    each = PageRef(PageId(b3(b"nowhere")), 4096, 0, 100, b"")
    data = format_page(ListKind.RECIPE, 1, Children((each,) * 1000))
    refs = (Ref(bytes(32), 32, 60),) * 1000
    lie = Locator(FILE, root.id, root.size, 0, page_id(ListKind.RECIPE, data), bytes(32), "cdc-64k", data, refs)
    with Resolver(remote.store) as resolver, pytest.raises(Corrupt, match="more chunks"):
        list(resolver.by_locator(root, lie))


def test_a_section_of_a_file_that_decodes_to_megabytes_is_refused_before_it_is_decoded(world: World) -> None:
    """A hundred bytes that become 64 MiB, and a few hundred of them: a decoder that believed it would take 20 GB."""
    remote, roots = world
    root = next(r for r in roots if r.kind == FILE)
    good = remote.locator(root)
    packed = zstandard.compress(bytes(1 << 20))
    bomb = (block_header(ZSTD, 1 << 20, packed) + packed) * 64
    lie = replace(good, sections=tuple(replace(r, length=len(bomb)) for r in good.sections), inline=(bomb,) * 2)
    lie = replace(lie, inline=lie.inline[: len(lie.sections)])

    def read() -> None:
        with Resolver(remote.store) as resolver, pytest.raises(Corrupt, match="larger than allowed"):
            list(resolver.by_locator(root, lie))

    _, peak = measured(read)
    assert peak < 8 << 20
    remote.inner.put(locator_key(FILE, root.id), [format_locator(lie)])
    assert not errors(remote.inner, roots)
    assert loc.MAX_BYTES == 64 << 20
