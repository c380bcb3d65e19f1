"""Three versions become one: exactly what each side did, or a conflict that is named. No data is read for it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dvk.backend.memory import MemoryBackend
from dvk.commands.merge import merge_pointers
from dvk.commands.merge_folder import MergedFolder, Side, merge_folders
from dvk.errors import DataMissing
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.pages import read_entries
from dvk.store.pagewriter import write_listing
from dvk.store.store import Store
from dvk.store.writer import Writer
from dvk.workspace.pointer import Pointer

#: path -> (kind, a number for the content)
Tree = dict[bytes, tuple[Kind, int]]
F, X, D, L = Kind.FILE, Kind.EXEC, Kind.EMPTYDIR, Kind.LINK


class Pages:
    def __init__(self) -> None:
        self.held: dict[PageId, bytes] = {}
        self.loaded: set[PageId] = set()

    def put(self, tree: Mapping[bytes, tuple[Kind, int]]) -> PageId:
        rows = []
        for name, (kind, n) in tree.items():
            target = b"t%d" % n if kind == L else b""
            is_file = kind in (F, X)
            rows.append((name, kind, n + 1 if is_file else len(target), bytes([n] * 32 if is_file else 32), target))
        return write_listing(Entries.of(rows), self.held.__setitem__).id

    def load(self, name: PageId) -> bytes:
        self.loaded.add(name)
        if name not in self.held:
            raise DataMissing("a page is not here")
        return self.held[name]

    def tree(self, root: PageId) -> Tree:
        entries = read_entries(root, self.load)
        targets = iter(entries.targets)
        return {
            name: (Kind(k), int(next(targets)[1:]) if k == L else max(size - 1, 0))
            for name, k, size in zip(entries.names, entries.kinds.tolist(), entries.sizes.tolist(), strict=True)
        }

    def merge(self, base: Tree | None, ours: Tree, theirs: Tree, favour: Side | None = None) -> MergedFolder:
        start = None if base is None else self.put(base)
        return merge_folders(
            start, self.put(ours), self.put(theirs), load=self.load, emit=self.held.__setitem__, favour=favour
        )


def merged(base: Tree | None, ours: Tree, theirs: Tree, favour: Side | None = None) -> Tree | list[bytes]:
    """The tree that comes out, or the names of conflicts."""
    pages = Pages()
    done = pages.merge(base, ours, theirs, favour)
    if done.root is None:
        return [c.path for c in done.conflicts]
    tree = pages.tree(done.root.id)
    assert done.root.files == sum(k in (F, X) for k, _ in tree.values())
    return tree


def valid(tree: Tree) -> Tree | None:
    """The tree without entries for directories that are not empty; None when a file is also a directory."""
    out = {}
    for name, entry in tree.items():
        below = any(other.startswith(name + b"/") for other in tree)
        if below and entry[0] != D:
            return None
        if not below:
            out[name] = entry
    return out


def model(base: Tree, ours: Tree, theirs: Tree) -> Tree | None:
    """By the definition; None for a conflict."""
    out: Tree = {}
    for name in {*base, *ours, *theirs}:
        b, o, t = base.get(name), ours.get(name), theirs.get(name)
        entry = o if o == t or t == b else t if o == b else None
        if entry is None and not (o in (t, b) or t == b):
            if None in (b, o, t) or not all(e is not None and e[0] in (F, X) for e in (b, o, t)):
                return None
            assert b and o and t
            kind = t[0] if o[0] == b[0] else o[0]
            content = {o[1], t[1]} - {b[1]} or {b[1]}
            if len(content) > 1:
                return None
            entry = (kind, content.pop())
        if entry is not None:
            out[name] = entry
    return valid(out)


names = st.sampled_from([b"a", b"a/b", b"a/c", b"a/b/c", b"a.b", b"d", b"d/e"])
entries = st.tuples(st.sampled_from([F, F, X, L, D]), st.integers(1, 3)).map(lambda e: (D, 0) if e[0] == D else e)
trees = st.dictionaries(names, entries, max_size=5).map(valid).filter(lambda t: t is not None)


@given(base=trees, ours=trees, theirs=trees)
@example(base={b"d/e": (F, 1)}, ours={b"d": (D, 0)}, theirs={b"d/e": (F, 2)})
@example(base={b"a/b": (F, 1)}, ours={b"a": (D, 0)}, theirs={b"a/b": (F, 1), b"a/c": (F, 2)})
@example(base={b"a": (F, 1)}, ours={b"a/b": (F, 1)}, theirs={b"a": (F, 2)})
@example(base={b"a": (F, 1)}, ours={b"a": (X, 1)}, theirs={b"a": (F, 2)})
def test_a_merge_is_what_each_side_did_to_the_ancestor(base: Tree, ours: Tree, theirs: Tree) -> None:
    found = merged(base, ours, theirs)
    expected = model(base, ours, theirs)
    assert (found == expected) if expected is not None else (isinstance(found, list) and found)
    other = merged(base, theirs, ours)
    assert other == found, "the sides are alike"
    if expected is not None:
        assert merged(base, ours, theirs, "ours") == merged(base, ours, theirs, "theirs") == expected


@given(base=trees, ours=trees, theirs=trees, favour=st.sampled_from(["ours", "theirs"]))
def test_with_a_side_to_favour_there_is_no_conflict_and_the_folder_is_whole(
    base: Tree, ours: Tree, theirs: Tree, favour: Side
) -> None:
    found = merged(base, ours, theirs, favour)
    assert isinstance(found, dict) and valid(found) == found
    clash = valid({**ours, **theirs}) is None
    chosen = ours if favour == "ours" else theirs
    for name in set(ours) & set(theirs) if not clash else ():
        if base.get(name) not in (ours[name], theirs[name]) and not (ours[name][0] in (F, X) and name in base):
            assert found.get(name) == chosen[name], name


def test_both_sides_added_a_folder() -> None:
    assert merged(None, {b"a": (F, 1), b"b": (F, 1)}, {b"a": (F, 1), b"c": (F, 2)}) == {
        b"a": (F, 1),
        b"b": (F, 1),
        b"c": (F, 2),
    }
    assert merged(None, {b"a": (F, 1)}, {b"a": (F, 2)}) == [b"a"]


def test_only_pages_around_changes_are_read() -> None:
    """A folder of 40,000 files with a change on each side: a handful of pages, and no file."""
    pages = Pages()
    base = {b"d%02d/%05d" % (i % 50, i): (F, i % 200) for i in range(40_000)}
    roots = [pages.put(base), pages.put(base | {b"d03/x": (F, 1)}), pages.put(base | {b"d44/y": (F, 2)})]
    pages.loaded.clear()
    before = len(pages.held)
    done = merge_folders(*roots, load=pages.load, emit=pages.held.__setitem__)
    assert done.root is not None and done.root.files == 40_002 and done.taken == 1
    assert len(pages.loaded) <= 12 and len(pages.held) - before <= 3
    assert before > 15
    found = pages.tree(done.root.id)
    assert found == base | {b"d03/x": (F, 1), b"d44/y": (F, 2)}


def pointer(n: int, *, exec: bool = False, source: str = "") -> Pointer:
    return Pointer("file", bytes([n] * 32), n, exec=exec, source=(("url", source),) if source else ())


def test_files_merge_where_only_one_side_changed_them() -> None:
    store = Store(MemoryBackend())
    base, ours, theirs = pointer(1), pointer(2), pointer(3)
    for a, b, expected in (
        (ours, base, ours),
        (base, theirs, theirs),
        (ours, ours, ours),
        (pointer(1, exec=True), theirs, pointer(3, exec=True)),
        (ours, pointer(1, exec=True), pointer(2, exec=True)),
        (pointer(2, exec=True), pointer(2), pointer(2, exec=True)),
        (pointer(1, source="x"), base, pointer(1, source="x")),
        (pointer(2, source="x"), pointer(2), pointer(2, source="x")),
        (pointer(2, source="x"), pointer(1, exec=True), pointer(2, exec=True, source="x")),
    ):
        assert merge_pointers(store, base, a, b).pointer == expected, (a, b)
    for base_, a, b, why in (
        (base, ours, theirs, "both sides changed it"),
        (None, ours, theirs, "both sides added it"),
        (base, pointer(2, source="x"), pointer(2, source="y"), "where it came from"),
        (base, ours, Pointer("dir", bytes([9] * 32), 5, 1), "a file on our side and a folder on theirs"),
    ):
        found = merge_pointers(store, base_, a, b)
        assert found.pointer is None and why in found.why


def test_a_folder_of_two_sources_is_of_neither() -> None:
    """Who edits an import stops following it, and a merge with a newer import does not begin again."""
    store = Store(MemoryBackend())

    def folder(files: dict[bytes, int], source: str) -> Pointer:
        with Writer(store) as writer:
            rows = [(name, F, 1, bytes([n] * 32), b"") for name, n in files.items()]
            root = write_listing(Entries.of(rows), writer.add_page)
            writer.flush()
        return Pointer("dir", bytes(root.id), root.total_bytes, root.files, source=(("url", source),) if source else ())

    base = folder({b"a": 1, b"b": 1}, "old")
    for ours, theirs, expected in (("", "new", ""), ("new", "", ""), ("old", "new", "new"), ("new", "new", "new")):
        a, b = folder({b"a": 2, b"b": 1}, ours), folder({b"a": 1, b"b": 3}, theirs)
        merged = merge_pointers(store, base, a, b).pointer
        assert merged is not None and merged.id == folder({b"a": 2, b"b": 3}, "").id
        assert merged.source == ((("url", expected),) if expected else ()), (ours, theirs)
    alone = merge_pointers(store, None, folder({b"a": 1}, "x"), folder({b"b": 1}, "y")).pointer
    assert alone is not None and alone.source == ()


def test_pages_that_are_not_here_are_an_error_and_no_guess() -> None:
    store = Store(MemoryBackend())
    versions = [Pointer("dir", bytes([n] * 32), 5, 1) for n in (1, 2, 3)]
    with pytest.raises(DataMissing):
        merge_pointers(store, *versions)
