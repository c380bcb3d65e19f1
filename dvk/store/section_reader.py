"""Reading what a remote says of one root: its locator, and the sections that this leads to.

`SectionWriter` (`sections`) has written them. Every page is proven by its id, every number that leads somewhere is
checked before it is followed, and how much is read and decoded is bounded by what the pointer states: a locator is the
word of whoever may write to the remote.

>>> found = reader.locator(root)                                     # doctest: +SKIP
>>> for section in reader.iter_sections(found, range(3)):            # doctest: +SKIP
...     section.leaf, section.placed

What is made of it is the business of others: a fetch asks what the root consists of (`resolve`), a push what the remote
has of an earlier version (`push_known`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from dvk.backend.contract import KeyMissing
from dvk.errors import Corrupt, FormatError
from dvk.ids import PageId
from dvk.store import locator as loc
from dvk.store.content import Content
from dvk.store.listing import Entries
from dvk.store.locator import Locator, Ref, Section, locator_key
from dvk.store.pack import MAX_BLOCK_BYTES, PackKind, RecipeRow, pack_key
from dvk.store.pages import Chunks, ListKind, PageRef, leaf_refs, load_page, page_id, parse_page
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.store import Store, as_column

#: Requests to a remote at a time.
CONNECTIONS = 16
#: A leaf of 6,144 files of 64 chunks, each in a block of its own, takes 30 MB before it is encoded.
MAX_SECTION_BYTES = 64 << 20
#: A leaf of a recipe with its placement: 6,144 chunks, each in a block and a pack of its own, 97 bytes a chunk.
_MAX_RECIPE_BYTES = 1 << 20


class SectionReader:
    """Reads locators and sections of a remote. Changes nothing. Its methods may be called from many threads."""

    def __init__(self, remote: Store) -> None:
        self.remote = remote
        self._used: set[bytes] = set()
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-resolve")

    def take_used(self) -> set[bytes]:
        """The page packs that locators led to since the last call, whether or not they had to be read."""
        used, self._used = self._used, set()
        return used

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> SectionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def locators(self, roots: Sequence[Root]) -> list[Locator | None]:
        """The locators of several roots, read in parallel; None where there is none that can be used."""
        return list(self._pool.map(self._usable_locator, roots))

    def _usable_locator(self, root: Root) -> Locator | None:
        try:
            return self.locator(root) if root.size or root.kind == FOLDER else None
        except FormatError:
            return None  # `locator` says what is wrong

    def locator(self, root: Root) -> Locator | None:
        """The locator of one root, checked against what the pointer says.

        Raises:
            Corrupt, NewerFormat: one is there and cannot be used.
        """
        key = locator_key(root.kind, root.id)
        try:
            data = self.remote.backend.get(key, max_bytes=loc.MAX_BYTES)
        except KeyMissing:
            return None
        subject = f"{self.remote.name}/{key}"
        found = loc.parse_locator(data, kind=root.kind, wanted=root.id, subject=subject)
        if found.size != root.size or (root.kind == FOLDER and found.files != root.files):
            raise Corrupt("the locator disagrees with the pointer about the size", subject=subject)
        return found

    def ranges(self, refs: Sequence[Ref]) -> list[bytes]:
        """The bytes of several ranges of page packs, read in parallel; neighbours are one request."""
        if any(r.length > MAX_SECTION_BYTES for r in refs):
            raise Corrupt("a locator leads to more bytes than a section can have", subject=self.remote.name)
        self._used.update(r.pack for r in refs)
        order = sorted(range(len(refs)), key=lambda i: (refs[i].pack, refs[i].offset))
        runs: list[list[int]] = []
        for i in order:
            last = refs[runs[-1][-1]] if runs else None
            r = refs[i]
            begun = refs[runs[-1][0]].offset if runs else 0
            near = last is not None and last.pack == r.pack and 0 <= r.offset - last.offset - last.length <= 65536
            if near and r.offset + r.length - begun <= 16 << 20:
                runs[-1].append(i)
            else:
                runs.append([i])
        out: list[bytes] = [b""] * len(refs)

        def read(run: list[int]) -> None:
            first, last = refs[run[0]], refs[run[-1]]
            start, end = first.offset, last.offset + last.length
            data = self.remote.backend.get_range(pack_key(PackKind.PAGES, first.pack), start, end - start)
            if len(data) != end - start:  # promised by the backend; every byte that follows depends on it
                raise Corrupt("the remote answered with another length than asked for", subject=self.remote.name)
            for i in run:
                at = refs[i].offset - start
                out[i] = data[at : at + refs[i].length]

        list(self._pool.map(read, runs))
        return out

    def sections(self, found: Locator, which: Sequence[int]) -> list[Section]:
        """Some sections of a locator, decoded."""
        return list(self.iter_sections(found, which))

    def iter_sections(self, found: Locator, which: Sequence[int]) -> Iterator[Section]:
        """As `sections`; they are read together and decoded one by one, since a few kilobytes may become 64 MiB."""
        if found.inline:
            data = [found.inline[i] for i in which]
        else:
            data = self.ranges([found.sections[i] for i in which])
        single = found.kind == FILE and not any(found.root)
        limit = _MAX_RECIPE_BYTES if found.kind == FILE else loc.MAX_BYTES
        subject = f"{self.remote.name}, section of {found.id.hex()[:12]}"
        return (loc.parse_section(d, single=single, limit=limit, subject=subject) for d in data)

    def nested(self, refs: Sequence[tuple[Root, Ref]]) -> list[Locator]:
        """The locators of files that stand in page packs, read in parallel."""
        out = []
        for (root, _), data in zip(refs, self.ranges([r for _, r in refs]), strict=True):
            subject = f"{self.remote.name}, locator of {root.id.hex()[:12]}"
            raw = loc.decode_blocks(data, subject=subject)
            inner = loc.parse_locator(raw, kind=FILE, wanted=root.id, subject=subject)
            if inner.size != root.size:
                raise Corrupt("a locator disagrees with its folder about the size", subject=subject)
            out.append(inner)
        return out

    def pages_of(self, found: Locator) -> dict[PageId, bytes]:
        """The pages above the leaves that come with a locator, under their true ids, in order."""
        kind = ListKind.LISTING if found.kind == FOLDER else ListKind.RECIPE
        pages = loc.split_pages(found.pages, subject=f"{self.remote.name}, locator of {found.id.hex()[:12]}")
        return {page_id(kind, data): data for data in pages}

    def leaves(self, root: Root, found: Locator) -> list[PageId]:
        """The leaves that the sections of a locator describe, in order; a file of one chunk is its own leaf."""
        return [r.id for r in self.leaf_refs(root, found)]

    def leaf_refs(self, root: Root, found: Locator) -> list[PageRef]:
        """As `leaves`, with the totals that the pages above them state."""
        self._used.update(r.pack for r in found.sections)
        top = PageId(found.root if root.kind == FILE else root.id)
        if not any(top):
            refs = [PageRef(PageId(root.id), 1, 0, root.size, b"")]
        elif not found.pages:
            refs = [PageRef(top, 0, root.files, root.size, b"")]
        else:
            kind = ListKind.LISTING if root.kind == FOLDER else ListKind.RECIPE
            load = pages_among(self.pages_of(found), root)
            page = load_page(kind, top, load)
            if (page.files, page.total_bytes) != (root.files, root.size):
                raise Corrupt("its first page is not what the pointer says", subject=root.text)
            if root.kind == FILE and page.entries > root.size:
                raise Corrupt("a recipe has more chunks than its file has bytes", subject=root.text)
            # Not more than there are sections, since pages that repeat one another could go on for ever.
            refs = list(islice(leaf_refs(kind, top, load), len(found.sections) + 1))
        if len(refs) != len(found.sections):
            raise Corrupt("the locator has not a section for each leaf", subject=root.text)
        return refs

    # ------------------------------------------------------------ what a section says of files

    def recipe_leaf(self, root: Root, leaf: bytes, section: Section) -> Chunks:
        """The chunks of one leaf of a file's recipe from its section."""
        if not section.leaf:
            return single_chunk(root)
        page = load_page(ListKind.RECIPE, PageId(leaf), lambda _: section.leaf)
        if not isinstance(page.body, Chunks):
            raise Corrupt("a section holds a page that is no leaf", subject=root.text)
        return page.body

    def leaf_contents(
        self, root: Root, leaf: bytes, section: Section
    ) -> tuple[Entries, list[Content | Ref | None], list[RecipeRow]]:
        """One listing leaf from its section: entries, for each its chunks or where its own locator lies, recipes."""
        page = load_page(ListKind.LISTING, PageId(leaf), lambda _: section.leaf)
        if not isinstance(page.body, Entries):
            raise Corrupt("a section holds another page than its leaf", subject=root.text)
        return page.body, *self.entry_contents(root, page.body, section)

    def entry_contents(
        self, root: Root, entries: Entries, section: Section
    ) -> tuple[list[Content | Ref | None], list[RecipeRow]]:
        """For each entry of a leaf its chunks, or where its own locator lies."""
        placed = section.placed
        if len(placed.per_entry) != len(entries):  # so the chunks are as many as it counts, too
            raise Corrupt("a placement does not fit its leaf", subject=root.text)
        external = {x.entry: x.ref for x in placed.externals}
        recipe_of: dict[bytes, tuple[Chunks, PageId]] = {}
        waiting = iter(section.recipes)
        contents: list[Content | Ref | None] = []
        rows: list[RecipeRow] = []
        at = 0
        sizes = entries.sizes.tolist()
        has_data = (entries.is_file & (entries.sizes > 0)).tolist()
        for i, n in enumerate(placed.per_entry.tolist()):
            if not has_data[i]:
                if n or i in external:
                    raise Corrupt("a placement gives data to an entry that has none", subject=root.text)
                contents.append(None)
                continue
            file_id = entries.ids[i].tobytes()
            if n == 0:
                if i not in external:
                    raise Corrupt("a placement leaves out an entry", subject=root.text)
                contents.append(external[i])
                continue
            if n == 1:
                chunks = Chunks(entries.ids[i : i + 1], entries.sizes[i : i + 1].astype(np.uint32))
            else:
                if file_id not in recipe_of:
                    recipe_of[file_id] = self._recipe_page(root, next(waiting, b""))
                    rows.append(RecipeRow(file_id, recipe_of[file_id][1], sizes[i], placed.profile))
                chunks = recipe_of[file_id][0]
            if len(chunks) != n or chunks.total_bytes != sizes[i]:
                raise Corrupt("a recipe does not fit its file", subject=root.text)
            contents.append(checked(Content(chunks, placed.placement, at), root))
            at += n
        return contents, rows

    def _recipe_page(self, root: Root, data: bytes) -> tuple[Chunks, PageId]:
        page = parse_page(data, ListKind.RECIPE, subject=root.text)
        if page.level or not isinstance(page.body, Chunks):
            raise Corrupt("a section holds a recipe that is not one page", subject=root.text)
        return page.body, page_id(ListKind.RECIPE, data)


def single_chunk(root: Root) -> Chunks:
    """A file that is one chunk."""
    if root.size > MAX_BLOCK_BYTES:
        raise Corrupt("a file of one chunk that is longer than a chunk can be", subject=root.text)
    return Chunks(as_column([root.id]), np.array([root.size], np.uint32))


def pages_among(pages: dict[PageId, bytes], root: Root) -> Callable[[PageId], bytes]:
    """A function that loads a page from those that a locator has."""

    def load(name: PageId) -> bytes:
        try:
            return pages[name]
        except KeyError:
            raise Corrupt("the locator leaves out a page", subject=root.text) from None

    return load


def checked(content: Content, root: Root) -> Content:
    """The same content, once no chunk of it reaches beyond its block."""
    p, n = content.placement, len(content.chunks)
    part = slice(content.first, content.first + n)
    block = p.block[part]
    if len(block) != n:
        raise Corrupt("a placement is shorter than its list", subject=root.text)
    ends = p.offset[part].astype(np.int64) + content.chunks.lengths
    if n and bool((ends > p.blocks.raw_len[block]).any()):
        raise Corrupt("a placement reaches beyond a block", subject=root.text)
    return content
