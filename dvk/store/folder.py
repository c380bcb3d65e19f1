"""A folder at random access: what is at a path, what lies directly below one, without going through all of it.

A training job opens fifty thousand images by name, in any order, and a folder of a million files has three hundred
pages. So pages are found by the first path on each, the lately used ones are kept as columns, and a page that lies in
one subfolder as a whole is counted by what its parent says.

    folder = Folder(root, store.load_page)
    folder.find(b"val/7.jpg")                 # (entries, position) on its page, or None
    for item in folder.children(b"val"): ...

`RemoteFolder` reads the same from a remote that has the only copy: a section holds a page, the recipes of its files and
where these lie, so that the page that tells of a file also tells how to read it.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

from msgspec import Struct

from dvk.errors import Corrupt, DataMissing
from dvk.ids import PageId
from dvk.store.content import Content
from dvk.store.listing import Entries, Kind
from dvk.store.locator import Locator, Ref
from dvk.store.pages import ListKind, Load, PageRef, leaf_refs, leaves_under, load_leaf
from dvk.store.resolve import Leaf, Resolver
from dvk.store.root import FILE, Root

_LEAVES_KEPT = 64  # of some 3,000 entries, 80 bytes each


class Item(Struct, frozen=True):
    """One line of one level of a folder: an entry, or everything below a subfolder together."""

    name: bytes  #: from the top of the folder
    kind: Kind | None  #: None: a subfolder with something in it
    size: int  #: bytes; of a subfolder all its files together
    files: int
    id: bytes | None = None  #: of a file
    target: bytes = b""  #: of a link


class Folder:
    """The folder with the listing `root`. Safe to use from many threads."""

    def __init__(self, root: PageId, load: Load) -> None:
        """Reads the pages above the leaves. `load`: as of `Store.load_page`; its errors come through every method."""
        self._load = load
        self._refs = list(leaf_refs(ListKind.LISTING, root, load))
        self._firsts = [ref.first for ref in self._refs]
        self._follows = {a.first: b.first for a, b in itertools.pairwise(self._refs)}
        self._lock = threading.Lock()
        self._leaves: OrderedDict[int, Entries] = OrderedDict()

    def leaf_of(self, path: bytes) -> int:
        """The number of the leaf that holds `path`, if any does."""
        return max(0, bisect_right(self._firsts, path) - 1)

    def leaf(self, number: int) -> Entries:
        """The entries of a leaf."""
        with self._lock:
            if (found := self._leaves.get(number)) is not None:
                self._leaves.move_to_end(number)
                return found
        entries = self._read_leaf(number)
        with self._lock:
            self._leaves[number] = entries
            while len(self._leaves) > _LEAVES_KEPT:
                self._leaves.popitem(last=False)
        return entries

    def _read_leaf(self, number: int) -> Entries:
        entries = load_leaf(ListKind.LISTING, self._refs[number], self._load)
        assert isinstance(entries, Entries)
        if len(entries) and number + 1 < len(self._refs) and entries.names[-1] >= self._firsts[number + 1]:
            raise Corrupt("the pages of a folder are not in order", subject=f"folder, leaf {number}")
        return entries

    def find(self, path: bytes) -> tuple[Entries, int] | None:
        """The leaf that has the entry `path`, and where on it; None where nothing of exactly that name is."""
        if not self._refs:
            return None
        entries = self.leaf(self.leaf_of(path))
        at = entries.names.find(path)
        return (entries, at) if at < len(entries) and entries.names[at] == path else None

    def holds_below(self, path: bytes) -> bool:
        """Whether something lies below `path`."""
        start = path + b"/"
        for ref in leaves_under(self._refs, path):
            if ref.first.startswith(start):
                return True
            low, high = self.leaf(self.leaf_of(ref.first)).names.under(path)
            if low < high:
                return True
        return False

    def below(self, path: bytes) -> Iterator[Entries]:
        """The entries below `path` (all of them with `b""`), and the one of that very name, leaf by leaf."""
        for ref in leaves_under(self._refs, path):
            entries = self.leaf(self.leaf_of(ref.first))
            yield entries.under(path) if path else entries

    def children(self, path: bytes) -> Iterator[Item]:
        """What lies directly below `path` (at the top with `b""`), in order; pages in one subfolder are not read."""
        start = path + b"/" if path else b""
        return group(self._one_level(path, start), start)

    def _one_level(self, path: bytes, start: bytes) -> Iterator[Entries | PageRef]:
        for ref in leaves_under(self._refs, path):
            sub = subfolder(ref.first, start)
            if sub and self._follows.get(ref.first, b"").startswith(start + sub + b"/"):
                yield ref
                continue
            entries = self.leaf(self.leaf_of(ref.first))
            yield entries.under(path) if path else entries


class RemoteFolder(Folder):
    """The folder `root` on a remote, by its locator: sections are read as they are needed."""

    def __init__(self, resolver: Resolver, root: Root, found: Locator) -> None:
        """Raises: Corrupt: what the locator says does not fit the pointer."""
        self._resolver, self._root, self._found = resolver, root, found
        self._numbered = resolver.reader.leaf_refs(root, found)
        self._above = resolver.reader.pages_of(found)
        self._sections: OrderedDict[int, Leaf] = OrderedDict()
        self._sections_lock = threading.Lock()
        self._reading = [threading.Lock() for _ in self._numbered]  # one request at a time for the same section
        super().__init__(PageId(root.id), self.page)

    def page(self, page: PageId) -> bytes:
        """The bytes of a page of the listing.

        Raises:
            DataMissing: the folder has no such page. Corrupt, KeyMissing: its section is damaged or gone.
        """
        if (data := self._above.get(page)) is not None:
            return data
        number = next((i for i, ref in enumerate(self._numbered) if ref.id == page), None)
        if number is None:
            raise DataMissing(f"page {page.hex()[:12]} is not of this folder", subject=self._root.text)
        return self._section(number).page

    def _section(self, number: int) -> Leaf:
        with self._reading[number]:
            with self._sections_lock:
                if (leaf := self._sections.get(number)) is not None:
                    self._sections.move_to_end(number)
                    return leaf
            leaf = self._resolver.leaf_at(self._root, self._found, self._numbered, number)
            with self._sections_lock:
                self._sections[number] = leaf
                while len(self._sections) > _LEAVES_KEPT:
                    self._sections.popitem(last=False)
            return leaf

    def _read_leaf(self, number: int) -> Entries:
        return self._section(number).entries

    def content(self, path: bytes) -> Content | None:
        """What the file at `path` consists of; None for what is no file.

        Raises:
            Corrupt, KeyMissing: what the locator leads to is damaged or gone.
        """
        leaf = self._section(self.leaf_of(path))
        at = leaf.entries.names.find(path)
        if at >= len(leaf.entries) or leaf.entries.names[at] != path:
            return None
        content = leaf.contents[at]
        if isinstance(content, Ref):
            file = Root(FILE, leaf.entries.ids[at].tobytes(), int(leaf.entries.sizes[at]))
            return self._resolver.external(file, content)
        return content


def subfolder(name: bytes, start: bytes) -> bytes:
    """The folder just below `start` that `name` lies in; empty when it lies in none."""
    if not name.startswith(start):
        return b""
    head, slash, _ = name[len(start) :].partition(b"/")
    return head if slash else b""


def group(parts: Iterator[Entries | PageRef], start: bytes) -> Iterator[Item]:
    """Entries with everything in a subfolder taken together; `start` is what their names begin with."""
    folder, files, size = b"", 0, 0

    def closed() -> Iterator[Item]:
        if folder:
            yield Item(start + folder, None, size, files)

    for part in parts:
        rows = 1 if isinstance(part, PageRef) else len(part)
        i = 0
        while i < rows:
            name = part.first if isinstance(part, PageRef) else part.names[i]
            sub = subfolder(name, start)
            if sub != folder:
                yield from closed()
                folder, files, size = sub, 0, 0
            if isinstance(part, PageRef):
                files, size, i = files + part.files, size + part.total_bytes, 1
            elif sub:
                _, high = part.names.under(start + sub)
                inside = part.slice(i, high)
                files, size, i = files + inside.files, size + inside.total_bytes, high
            else:
                yield entry_item(part, i)
                i += 1
    yield from closed()


def entry_item(entries: Entries, i: int) -> Item:
    """An entry as a line of its own."""
    kind = Kind(int(entries.kinds[i]))
    if kind == Kind.LINK:
        number = int((entries.kinds[:i] == Kind.LINK).sum())
        return Item(entries.names[i], kind, int(entries.sizes[i]), 0, target=entries.targets[number])
    if kind == Kind.EMPTYDIR:
        return Item(entries.names[i], kind, 0, 0)
    return Item(entries.names[i], kind, int(entries.sizes[i]), 1, entries.ids[i].tobytes())
