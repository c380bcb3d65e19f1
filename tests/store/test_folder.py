"""A folder at random access is the folder: every name, every level, from a store and from a remote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from storekit import noise
from synckit import add_folder, new_store, send, small_pages

from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.ids import PageId
from dvk.store.folder import Folder, Item, RemoteFolder
from dvk.store.listing import Entries, Kind
from dvk.store.pages import ListKind
from dvk.store.pagewriter import ListWriter
from dvk.store.resolve import Resolver
from dvk.store.store import Store

NAMES = st.lists(st.sampled_from(["a", "b", "a-", "a.", "c", "0", "zz"]), min_size=1, max_size=3).map("/".join)


def listing(names: list[str]) -> tuple[Folder, dict[str, int], list[int]]:
    """A folder of files called so, in tiny pages, and how often pages were loaded."""
    sizes = {name: i + 1 for i, name in enumerate(names)}
    pages: dict[PageId, bytes] = {}
    writer = ListWriter(ListKind.LISTING, pages.__setitem__)
    writer.add(Entries.of([(n.encode(), Kind.FILE, size, bytes([size % 256]) * 32, b"") for n, size in sizes.items()]))
    root = writer.finish().id
    loads: list[int] = []

    def load(page: PageId) -> bytes:
        loads.append(1)
        return pages[page]

    return Folder(root, load), sizes, loads


def level(sizes: dict[str, int], path: str) -> list[tuple[str, bool, int, int]]:
    """What a plain walk finds directly below `path`: name, whether it is a folder, bytes, files."""
    start = f"{path}/" if path else ""
    out: dict[str, tuple[bool, int, int]] = {}
    for name, size in sizes.items():
        if name.startswith(start):
            head, slash, _ = name[len(start) :].partition("/")
            _, before, count = out.get(start + head, (False, 0, 0))
            out[start + head] = (bool(slash), before + size, count + 1)
    return sorted((name, *rest) for name, rest in out.items())


def shown(item: Item) -> tuple[str, bool, int, int]:
    return item.name.decode(), item.kind is None, item.size, item.files


@settings(max_examples=150)
@given(names=st.sets(NAMES, max_size=60), wanted=NAMES)
def test_every_level_is_what_a_walk_finds(names: set[str], wanted: str) -> None:
    # A name that is also a folder of another one cannot be in a listing.
    kept = sorted(n for n in names if not any(o.startswith(n + "/") for o in names))
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        folder, sizes, _ = listing(kept)
        for path in ("", wanted):
            if path not in sizes:
                assert sorted(map(shown, folder.children(path.encode()))) == level(sizes, path)
            below = [n.decode() for part in folder.below(path.encode()) for n in part.names]
            assert below == [n for n in sorted(sizes) if not path or n == path or n.startswith(f"{path}/")]
        found = folder.find(wanted.encode())
        assert (found is not None) == (wanted in sizes)
        if found is not None:
            assert int(found[0].sizes[found[1]]) == sizes[wanted]
        assert folder.holds_below(wanted.encode()) == any(n.startswith(f"{wanted}/") for n in sizes)


def test_one_level_of_a_big_folder_reads_the_pages_around_its_borders() -> None:
    names = [f"{part}/{i:05}" for part in ("train", "val") for i in range(20_000)]
    folder, sizes, loads = listing(names)
    loads.clear()
    assert [shown(item) for item in folder.children(b"")] == level(sizes, "")
    assert sum(loads) <= 2
    for i in range(100):
        assert folder.find(b"val/%05d" % i)
    assert sum(loads) <= 3


def test_a_remote_tells_of_a_file_and_where_it_lies_by_one_request_a_page(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_pages(patch)
        local, counting = new_store(), CountingBackend(MemoryBackend())
        files = {b"%03d/%d" % (i // 10, i): (noise(i, 100 + i),) for i in range(300)}
        root = add_folder(local, files)
        remote = Store(counting)
        send(local, remote, tmp_path, root)
        with Resolver(remote) as resolver:
            found = resolver.reader.locator(root)
            assert found is not None
            counting.reset()
            folder = RemoteFolder(resolver, root, found)
            for name, data in files.items():
                content = folder.content(name)
                assert content is not None and content.chunks.total_bytes == len(data[0])
            assert folder.content(b"000") is None and folder.content(b"999/1") is None
            assert counting.counts.requests <= len(found.sections)
            assert np.array_equal([i.files for i in folder.children(b"")], [10] * 30)
