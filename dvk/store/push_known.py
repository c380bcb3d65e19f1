"""What a push knows of its versions: their chunks from the local store, and what the remote already has of them.

A remote is not listed. What it has is learned from the locators of earlier versions: a leaf of the list that did not
change needs no look at all, the others tell where each chunk lies. A clone need not hold the old data for that;
whatever it lacks and the remote has is referred to where it is.

>>> known.take_in(new, old, locator_of_old)                         # doctest: +SKIP
>>> sum(len(c) for c in known.chunks_to_place(new))                 # doctest: +SKIP
3071
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Container, Iterator, Sequence

import numpy as np
from msgspec import Struct

from dvk.errors import DataMissing, FormatError
from dvk.ids import PageId
from dvk.store.known import KnownChunks, KnownLeaves
from dvk.store.listing import Entries
from dvk.store.locator import Locator, Ref
from dvk.store.names import I64, U8
from dvk.store.pack import MAX_BLOCK_BYTES
from dvk.store.pages import MIN_ENTRIES, Chunks, ListKind, PageRef, leaf_refs, load_leaf
from dvk.store.placement import Placement
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.section_reader import SectionReader
from dvk.store.store import Store, as_column

#: Chunks that are looked up together.
_CHUNKS_AT_ONCE = 65536
#: Open leaves of folders that are remembered, each a few MB.
_LEAVES_KEPT = 32


class File(Struct, frozen=True):
    """The chunks of a file with its recipe; `root` is empty for a file of one chunk."""

    chunks: Chunks
    root: bytes = b""
    profile: str = ""


class OpenLeaf(Struct, frozen=True):
    """A leaf of a listing that no known section describes; for each entry its file, None where that is not needed."""

    ref: PageRef
    entries: Entries
    files: list[File | None]


class Known:
    """Versions as the local store has them, and what was learned of a remote.

    Args:
        is_live: whether a record is confirmed and not retired; what a live record covers may be relied on through it.
        avoid: packs that must not be relied on.
    """

    def __init__(
        self, local: Store, reader: SectionReader, is_live: Callable[[bytes], bool], *, avoid: Container[bytes] = ()
    ) -> None:
        self.local = local
        self._reader, self._is_live = reader, is_live
        self.chunks = KnownChunks(avoid=avoid)
        self.leaves = KnownLeaves(avoid=avoid)
        self._avoid = avoid
        self.nested: dict[bytes, tuple[Ref, bytes]] = {}  #: file id -> its own locator in a page pack, live record
        self.origin: dict[bytes, bytes] = {}  #: data pack -> live record that covers it
        self._files: dict[bytes, File] = {}  # recipes learned from the remote
        self._pages: dict[PageId, bytes] = {}  # pages of those recipes
        self._read: dict[Root, set[int]] = {}  # sections that were taken in
        self._external: dict[Root, dict[bytes, tuple[Root, Ref]]] = {}  # big files on those sections, by path
        self._locators: dict[Root, Locator] = {}  # of big files in folders
        self._recent: dict[bytes, OpenLeaf] = {}  # leaves are gone through once for each step of a push

    # ------------------------------------------------------------ what the remote says of earlier versions

    def take_in(self, new: Root, root: Root, locator: Locator) -> None:
        """Learn what the remote has of `root`, an earlier version of `new` or `new` itself.

        Raises:
            KeyMissing, FormatError: what the locator leads to cannot be read.
            DataMissing: pages of `new` are not here.
        """
        if root.kind == FOLDER:
            self._absorb_folder(new, root, locator)
        else:
            self._absorb_file(new, root, locator, locator.record, keep=False)

    def _open(self, root: Root, leaves: Sequence[bytes], shared: Collection[bytes]) -> list[int]:
        """Sections that are neither shared nor taken in already."""
        read = self._read.get(root, set())
        return [i for i, leaf in enumerate(leaves) if i not in read and leaf not in shared]

    def _absorb_folder(self, new: Root, root: Root, locator: Locator) -> None:
        """Take in an earlier folder: whole sections that the new one shares, and of the others what is on them."""
        live = self._is_live(locator.record)
        leaves = self._reader.leaves(root, locator)
        # Sections that are shared need no reading, unless their record no longer vouches for them.
        shared = self._leaf_ids(new) if live else frozenset()
        which = self._open(root, leaves, shared)
        sections = self._reader.sections(locator, which)
        read = [self._reader.leaf_contents(root, leaves[i], s) for i, s in zip(which, sections, strict=True)]
        # Everything could be read; from here on it is believed.
        external = self._external.setdefault(root, {})
        for section, (entries, contents, rows) in zip(sections, read, strict=True):
            self._vouch(section.placed.placement, locator.record)
            recipe_of = {r.file: r for r in rows}
            for k, content in enumerate(contents):
                name = entries.ids[k].tobytes()
                if isinstance(content, Ref):
                    external[entries.names[k]] = (Root(FILE, name, int(entries.sizes[k])), content)
                    if live and content.pack not in self._avoid:
                        self.nested.setdefault(name, (content, locator.record))
                elif content is not None:
                    part = slice(content.first, content.first + len(content.chunks))
                    p = content.placement
                    self.chunks.add(content.chunks, Placement(p.blocks, p.block[part], p.offset[part]))
                    if name in recipe_of:
                        row = recipe_of[name]
                        self._files[name] = File(content.chunks, row.root, row.profile)
        if live:
            for leaf, ref in zip(leaves, locator.sections, strict=True):
                self.leaves.add(leaf, ref, locator.record)
        self._read.setdefault(root, set()).update(which)
        self._absorb_externals(new, external, locator.record)

    def _absorb_externals(self, new: Root, external: dict[bytes, tuple[Root, Ref]], record: bytes) -> None:
        """Take in big files of an earlier folder that the new one changed, or that nobody vouches for."""
        live = self._is_live(record)
        pairs: list[tuple[Root, Root]] = []
        unread: dict[Root, Ref] = {}
        for name, now in self._entries_named(new, sorted(external)):
            old, ref = external[name]
            if now != old or not live:
                pairs.append((now, old))
                if old not in self._locators:
                    unread[old] = ref
        self._locators.update(zip(unread, self._reader.nested(list(unread.items())), strict=True))
        for now, old in pairs:
            self._absorb_file(now, old, self._locators[old], record, keep=not live)

    def _entries_named(self, folder: Root, names: Sequence[bytes]) -> Iterator[tuple[bytes, Root]]:
        """Those files of a folder that have one of these names (ascending) and stand on a leaf that is not known."""
        for _, entries in self._unknown_leaves(folder) if names else ():
            if not len(entries):
                continue
            low, high = bisect_left(names, entries.names[0]), bisect_right(names, entries.names[-1])
            for name in names[low:high]:
                at = entries.names.find(name)
                if at < len(entries) and entries.names[at] == name and entries.is_file[at]:
                    yield name, Root(FILE, entries.ids[at].tobytes(), int(entries.sizes[at]))

    def _absorb_file(self, new: Root, root: Root, locator: Locator, record: bytes, *, keep: bool) -> None:
        """Take in an earlier file. `keep` its recipe, too, since this clone may lack it."""
        live = self._is_live(record)
        leaves = self._reader.leaves(root, locator)
        which = self._open(root, leaves, self._leaf_ids(new) if live else frozenset())
        sections = self._reader.sections(locator, which)
        read = [self._reader.recipe_leaf(root, leaves[i], s) for i, s in zip(which, sections, strict=True)]
        if any(len(c) != len(s.placed.placement.block) for c, s in zip(read, sections, strict=True)):
            raise FormatError("a placement does not fit its recipe", subject=root.text)
        for section, chunks in zip(sections, read, strict=True):
            self._vouch(section.placed.placement, record)
            self.chunks.add(chunks, section.placed.placement)
        if live:
            for leaf, ref in zip(leaves, locator.sections, strict=True):
                self.leaves.add(leaf, ref, record)
        self._read.setdefault(root, set()).update(which)
        if keep and any(locator.root) and len(which) == len(leaves):
            self._files[root.id] = File(Chunks.join(read), locator.root, locator.profile)
            self._pages.update(self._reader.pages_of(locator))
            self._pages.update((leaves[i], s.leaf) for i, s in zip(which, sections, strict=True))

    def _vouch(self, placement: Placement, record: bytes) -> None:
        if self._is_live(record):
            for name in placement.blocks.packs:
                self.origin.setdefault(name, record)

    # ------------------------------------------------------------ what a version consists of

    def load_page(self, name: PageId) -> bytes:
        """A page from here, or one that was learned. Raises DataMissing."""
        return self._pages.get(name) or self.local.load_page(name)

    def leaf_refs(self, kind: ListKind, root: bytes) -> list[PageRef]:
        """The leaves of a list. Raises DataMissing."""
        return list(leaf_refs(kind, PageId(root), self.load_page))

    def _leaf_ids(self, root: Root) -> Collection[bytes]:
        """The ids of the leaves of a root as far as they are known; a file of one chunk is its own leaf."""
        try:
            if root.kind == FOLDER:
                return {r.id for r in self.leaf_refs(ListKind.LISTING, root.id)}
            file = self.file(root)
            return {r.id for r in self.leaf_refs(ListKind.RECIPE, file.root)} if file.root else {root.id}
        except DataMissing:
            return frozenset()

    def file(self, root: Root) -> File:
        """The chunks of a file. Raises DataMissing."""
        return self.files(as_column([root.id]), np.array([root.size], np.int64))[0]

    def files(self, ids: U8, sizes: I64) -> list[File]:
        """The chunks of files, from here or as the remote says.

        Raises:
            DataMissing: neither knows one of them.
        """
        out: list[File] = []
        found = self.local.chunks_of_many(ids, sizes)
        multi = [i for i, c in enumerate(found) if c is not None and len(c) > 1]
        rows = dict(zip(multi, self.local.find_recipes(ids[multi]), strict=True)) if multi else {}
        unknown = [i for i, c in enumerate(found) if c is None]
        there = dict(zip(unknown, self.chunks.holds(ids[unknown]).tolist(), strict=True)) if unknown else {}
        for i, chunks in enumerate(found):
            name = ids[i].tobytes()
            row = rows.get(i)
            if chunks is not None:
                out.append(File(chunks, row.root, row.profile) if row is not None else File(chunks))
            elif name in self._files:
                out.append(self._files[name])
            elif there[i] and int(sizes[i]) <= MAX_BLOCK_BYTES:
                out.append(File(Chunks(ids[i : i + 1], sizes[i : i + 1].astype(np.uint32))))
            else:
                raise DataMissing(f"the data of {name.hex()[:12]} is not in this clone", subject=self.local.name)
        return out

    def _unknown_leaves(self, folder: Root) -> Iterator[tuple[PageRef, Entries]]:
        for ref in self.leaf_refs(ListKind.LISTING, folder.id):
            if self.leaves.get(ref.id) is None:
                entries = load_leaf(ListKind.LISTING, ref, self.load_page)
                assert isinstance(entries, Entries)
                yield ref, entries

    def open_leaves(self, folder: Root) -> Iterator[OpenLeaf]:
        """The leaves of a folder that need a new section. Raises DataMissing."""
        for ref, entries in self._unknown_leaves(folder):
            leaf = self._recent.get(ref.id)
            if leaf is None:
                data = np.flatnonzero(entries.is_file & (entries.sizes > 0)).tolist()
                # Files with a locator of their own on the remote need not be known here.
                here = [i for i in data if entries.ids[i].tobytes() not in self.nested]
                files: list[File | None] = [None] * len(entries)
                for i, file in zip(here, self.files(entries.ids[here], entries.sizes[here]), strict=True):
                    files[i] = file
                leaf = self._recent[ref.id] = OpenLeaf(ref, entries, files)
                while len(self._recent) > _LEAVES_KEPT:
                    del self._recent[next(iter(self._recent))]
            yield leaf

    def recipe_leaves(self, file: File) -> list[tuple[bytes, int]]:
        """The leaves of a recipe: page id and number of chunks. A recipe of few chunks is one page."""
        if len(file.chunks) < MIN_ENTRIES:
            return [(file.root, len(file.chunks))]
        return [(r.id, r.entries) for r in self.leaf_refs(ListKind.RECIPE, file.root)]

    def _open_chunks(self, file: File) -> Iterator[Chunks]:
        """Chunks of a file whose places no known section states."""
        if not file.root:
            yield file.chunks
            return
        at = 0
        for leaf, count in self.recipe_leaves(file):
            if self.leaves.get(leaf) is None:
                yield file.chunks.slice(at, at + count)
            at += count

    def chunks_to_place(self, root: Root) -> Iterator[Chunks]:
        """All chunks that new sections will place, some ten thousand at a time. Raises DataMissing."""
        if root.kind == FILE:
            yield from _regroup(self._open_chunks(self.file(root)))
            return
        for leaf in self.open_leaves(root):
            yield from _regroup(c for f in leaf.files if f is not None for c in self._open_chunks(f))


def _regroup(parts: Iterator[Chunks]) -> Iterator[Chunks]:
    waiting: list[Chunks] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= _CHUNKS_AT_ONCE:
            yield Chunks.join(waiting)
            waiting, count = [], 0
    if waiting:
        yield Chunks.join(waiting)
