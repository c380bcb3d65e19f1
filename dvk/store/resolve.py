"""From an id to what it consists of and where that lies on a remote, in two round trips (three for a big folder).

A `Resolver` reads locators and sections and proves every page by its id. When a locator is missing or leads nowhere it
reads it once more, then falls back to the footers of all packs: complete, slow, and announced.

>>> for part in Resolver(remote).resolve(root, under=b"images/val"):      # doctest: +SKIP
...     part.entries, part.contents
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.events import Note, OnEvent, ignore
from dvk.ids import EMPTY_FILE, PageId
from dvk.store import locator as loc
from dvk.store.listing import Entries, Kind
from dvk.store.locator import Locator, Ref, Section, locator_key
from dvk.store.names import I64, U8, Names
from dvk.store.pack import MAX_BLOCK_BYTES, PackKind, RecipeRow, pack_key
from dvk.store.pages import (
    Chunks,
    ListKind,
    PageRef,
    leaf_refs,
    leaves_under,
    load_leaf,
    load_page,
    page_id,
    parse_page,
)
from dvk.store.restore import Content, StoreContent
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.store import Store, as_column

#: Requests to a remote at a time.
CONNECTIONS = 16
#: Leaves of a folder that are resolved together; bounds memory.
_LEAVES_AT_ONCE = 16
#: A leaf of 6,144 files of 64 chunks, each in a block of its own, takes 30 MB before it is encoded.
_MAX_SECTION_BYTES = 64 << 20


@dataclass(slots=True)
class Part:
    """Some of a root: entries in order, and for each what it consists of (None: no data, or not known here)."""

    entries: Entries
    contents: list[Content | None]
    pages: list[tuple[PageId, bytes]] = field(default_factory=list)  #: proven pages worth keeping
    recipes: list[RecipeRow] = field(default_factory=list)


def file_as_entries(root: Root) -> Entries:
    """A file as a listing of one entry without a name."""
    return Entries(
        Names.of([b""]),
        np.array([Kind.FILE], np.uint8),
        np.array([root.size], np.int64),
        as_column([root.id]),
        Names.of([]),
    )


class Resolver:
    """Reads what a remote says about roots. Changes nothing. Its methods may be called from many threads."""

    def __init__(self, remote: Store, *, on_event: OnEvent = ignore) -> None:
        self.remote = remote
        self._on_event = on_event
        self.records: dict[str, bytes] = {}  #: of the roots resolved by locator, which record wrote it
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-resolve")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ reading

    def locators(self, roots: Sequence[Root]) -> list[Locator | None]:
        """The locators of several roots, read in parallel; None where there is none that can be used."""
        return list(self._pool.map(self._usable_locator, roots))

    def _usable_locator(self, root: Root) -> Locator | None:
        try:
            return self.locator(root) if root.size or root.kind == FOLDER else None
        except FormatError:
            return None  # `resolve` looks again and says what is wrong

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
        if any(r.length > _MAX_SECTION_BYTES for r in refs):
            raise Corrupt("a locator leads to more bytes than a section can have", subject=self.remote.name)
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
        if found.inline:
            data = [found.inline[i] for i in which]
        else:
            data = self.ranges([found.sections[i] for i in which])
        single = found.kind == FILE and not any(found.root)
        subject = f"{self.remote.name}, section of {found.id.hex()[:12]}"
        return [loc.parse_section(d, single=single, subject=subject) for d in data]

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
        return [r.id for r in self._leaf_refs(root, found)]

    def _leaf_refs(self, root: Root, found: Locator) -> list[PageRef]:
        top = PageId(found.root if root.kind == FILE else root.id)
        if not any(top):
            refs = [PageRef(PageId(root.id), 1, 0, root.size, b"")]
        elif not found.pages:
            refs = [PageRef(top, 0, root.files, root.size, b"")]
        else:
            kind = ListKind.LISTING if root.kind == FOLDER else ListKind.RECIPE
            load = _from(self.pages_of(found), root)
            page = load_page(kind, top, load)
            if (page.files, page.total_bytes) != (root.files, root.size):
                raise Corrupt("its first page is not what the pointer says", subject=root.text)
            # Not more than there are sections, since pages that repeat one another could go on for ever.
            refs = list(islice(leaf_refs(kind, top, load), len(found.sections) + 1))
        if len(refs) != len(found.sections):
            raise Corrupt("the locator has not a section for each leaf", subject=root.text)
        return refs

    # ------------------------------------------------------------ resolving

    def resolve(self, root: Root, *, under: bytes = b"", found: Locator | None = None) -> Iterator[Part]:
        """What `root` consists of, or the part of a folder at and below `under`, a group of leaves at a time.

        Args:
            found: its locator, where that was read before.

        Raises:
            DataMissing: nothing on the remote knows the id.
            Corrupt, KeyMissing: after the first part, what the locator leads to is damaged or gone; `search` may help.
        """
        if root.size == 0 and root.kind == FILE:
            if root.id != EMPTY_FILE:
                raise Corrupt("an id of zero bytes that is not the id of nothing", subject=root.text)
            yield Part(file_as_entries(root), [None])
            return
        yielded = False
        trouble: DvkError | None = None
        for _ in range(2):
            try:
                found = found or self.locator(root)
                if found is None:
                    break
                for part in self._by_locator(root, found, under):
                    yielded = True
                    yield part
                self.records[root.text] = found.record
                return
            except (KeyMissing, FormatError) as error:
                if yielded:
                    raise
                trouble, found = error, None
        yield from self.search(root, under=under, why=trouble)

    def search(self, root: Root, *, under: bytes = b"", why: DvkError | None = None) -> Iterator[Part]:
        """As `resolve`, by the footers of all packs: complete, slow, and announced. `why` is what the locator led to.

        Raises:
            DataMissing: nothing on the remote knows the id, or some of its data is gone; what is there came before.
        """
        self._on_event(
            Note(
                f"its locator is unusable ({why})" if why else "it has no locator",
                subject=f"{self.remote.name}: {root.text[:14]}",
                hint="reading the footers of all packs instead, which is slow; the next `dvk push` mends it",
            )
        )
        yield from self._by_footers(root, under)

    def _by_locator(self, root: Root, found: Locator, under: bytes) -> Iterator[Part]:
        refs = self._leaf_refs(root, found)
        if root.kind == FILE:
            yield self._file(root, found)
            return
        exact = bool(found.pages)
        number = {r.id: i for i, r in enumerate(refs)}
        follows = dict(zip([r.id for r in refs], [r.first for r in refs[1:]], strict=False))
        wanted = leaves_under(refs, under)
        kept = list(self.pages_of(found).items())
        while wanted:
            # As many leaves as fit the memory that is meant for them; usually all of `_LEAVES_AT_ONCE`.
            n = weight = 0
            while n < min(_LEAVES_AT_ONCE, len(wanted)) and (not n or weight <= _MAX_SECTION_BYTES):
                weight += found.sections[number[wanted[n].id]].length
                n += 1
            group, wanted = wanted[:n], wanted[n:]
            for ref, section in zip(group, self.sections(found, [number[r.id] for r in group]), strict=True):
                part = self._leaf(root, ref, section, under, exact=exact, before=follows.get(ref.id))
                part.pages[:0] = kept
                kept = []
                yield part
        if kept:
            yield Part(Entries.empty(), [], kept)

    def _leaf(
        self, root: Root, ref: PageRef, section: Section, under: bytes, *, exact: bool, before: bytes | None
    ) -> Part:
        if page_id(ListKind.LISTING, section.leaf) != ref.id:
            raise Corrupt("a section holds another page than its leaf", subject=root.text)
        page = parse_page(section.leaf, ListKind.LISTING, subject=root.text)
        if page.level or not isinstance(page.body, Entries):
            raise Corrupt("a section holds a page that is no leaf", subject=root.text)
        if exact:
            load_leaf(ListKind.LISTING, ref, _from({ref.id: section.leaf}, root))
        elif (page.files, page.total_bytes) != (root.files, root.size):
            raise Corrupt("a folder is not what its pointer says", subject=root.text)
        entries = page.body
        if before is not None and len(entries) and entries.names[len(entries) - 1] >= before:
            raise Corrupt("the pages of a folder are not in order", subject=root.text)
        contents, recipes = self._leaf_contents(root, entries, section)
        pages = [(ref.id, section.leaf), *((page_id(ListKind.RECIPE, data), data) for data in section.recipes)]
        if under:
            low, high = entries.names.under(under)
            at = entries.names.find(under)
            if at < len(entries) and entries.names[at] == under:
                low, high = at, at + 1
            entries, contents = entries.slice(low, high), contents[low:high]
            held = {entries.ids[i].tobytes() for i in range(len(entries))}
            recipes = [r for r in recipes if r.file in held]
        refs = [
            (i, Root(FILE, entries.ids[i].tobytes(), int(entries.sizes[i])), c)
            for i, c in enumerate(contents)
            if isinstance(c, Ref)
        ]
        known: list[Content | None] = [None if isinstance(c, Ref) else c for c in contents]
        inner = self.nested([(file, c) for _, file, c in refs])
        for (i, file, _), found in zip(refs, inner, strict=True):
            part = self._file(file, found)
            known[i] = part.contents[0]
            pages += part.pages
            recipes += part.recipes
        return Part(entries, known, pages, recipes)

    def recipe_leaf(self, root: Root, leaf: bytes, section: Section) -> Chunks:
        """The chunks of one leaf of a file's recipe from its section."""
        if not section.leaf:
            return _single(root)
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
        return page.body, *self._leaf_contents(root, page.body, section)

    def _leaf_contents(
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
            contents.append(_checked(Content(chunks, placed.placement, at), root))
            at += n
        return contents, rows

    def _recipe_page(self, root: Root, data: bytes) -> tuple[Chunks, PageId]:
        page = parse_page(data, ListKind.RECIPE, subject=root.text)
        if page.level or not isinstance(page.body, Chunks):
            raise Corrupt("a section holds a recipe that is not one page", subject=root.text)
        return page.body, page_id(ListKind.RECIPE, data)

    def _file(self, root: Root, found: Locator) -> Part:
        refs = self._leaf_refs(root, found)
        if sum(r.length for r in found.sections) > root.size + _MAX_SECTION_BYTES // 16:
            raise Corrupt("a locator leads to more bytes than its file has", subject=root.text)
        sections = self.sections(found, range(len(found.sections)))
        if not any(found.root):
            content = Content(_single(root), sections[0].placed.placement)
            if len(content.placement.block) != 1:
                raise Corrupt("a placement does not fit its file", subject=root.text)
            return Part(file_as_entries(root), [_checked(content, root)])
        pages = self.pages_of(found)
        leaves = []
        for ref, section in zip(refs, sections, strict=True):
            if found.pages:
                load_leaf(ListKind.RECIPE, ref, _from({ref.id: section.leaf}, root))
            leaves.append(self.recipe_leaf(root, ref.id, section))
            pages[ref.id] = section.leaf
            if len(section.placed.placement.block) != len(leaves[-1]):
                raise Corrupt("a placement does not fit its file", subject=root.text)
        chunks = Chunks.join(leaves)
        if chunks.total_bytes != root.size:
            raise Corrupt("a recipe does not fit its file", subject=root.text)
        placement = loc.concat_placements([s.placed.placement for s in sections])
        row = RecipeRow(root.id, found.root, root.size, found.profile)
        return Part(file_as_entries(root), [_checked(Content(chunks, placement), root)], list(pages.items()), [row])

    def _by_footers(self, root: Root, under: bytes) -> Iterator[Part]:
        """Everything by the index that the footers of all packs make."""
        gone = DataMissing(
            f"{root.text[:14]} is not on this remote",
            subject=self.remote.name,
            hint="whoever has this version can `dvk push` it",
        )
        source = StoreContent(self.remote)
        pages: dict[PageId, bytes] = {}

        def load(name: PageId) -> bytes:
            data = pages[name] = self.remote.load_page(name)
            return data

        missing = 0
        try:
            self.remote.refresh()
            if root.kind == FILE:
                groups: Iterator[Entries] = iter([file_as_entries(root)])
            else:
                groups = self._leaves_by_footers(root, under, load)
            for entries in groups:
                sizes = np.where(entries.is_file, entries.sizes, 0)
                contents: list[Content | None] = [
                    c if n else None for c, n in zip(source.contents(entries.ids, sizes), sizes.tolist(), strict=True)
                ]
                missing += sum(c is None and n > 0 for c, n in zip(contents, sizes.tolist(), strict=True))
                rows = [r for r in self.remote.find_recipes(entries.ids) if r is not None]
                for row in rows:
                    self._recipe_by_footers(row, load)
                found, pages = pages, {}
                yield Part(entries, contents, list(found.items()), rows)
        except (DataMissing, KeyMissing) as error:
            raise gone from error
        if missing and root.kind == FILE:
            raise gone
        if missing:
            raise DataMissing(f"the data of {missing:,} files of it is gone", subject=gone.subject, hint=gone.hint)

    def _recipe_by_footers(self, row: RecipeRow, load: Callable[[PageId], bytes]) -> None:
        try:
            for ref in leaf_refs(ListKind.RECIPE, PageId(row.root), load):
                load_leaf(ListKind.RECIPE, ref, load)
        except DataMissing:
            pass  # its pusher did not get to the end; whether the data is there shows in the contents

    def _leaves_by_footers(self, root: Root, under: bytes, load: Callable[[PageId], bytes]) -> Iterator[Entries]:
        page = load_page(ListKind.LISTING, PageId(root.id), load)
        if (page.files, page.total_bytes) != (root.files, root.size):
            raise Corrupt("a folder is not what its pointer says", subject=root.text)
        refs = list(leaf_refs(ListKind.LISTING, PageId(root.id), load))
        follows = dict(zip([r.id for r in refs], [r.first for r in refs[1:]], strict=False))
        for ref in leaves_under(refs, under):
            entries = load_leaf(ListKind.LISTING, ref, load)
            assert isinstance(entries, Entries)
            if len(entries) and entries.names[len(entries) - 1] >= follows.get(ref.id, b"\xff" * 4096):
                raise Corrupt("the pages of a folder are not in order", subject=root.text)
            yield entries.under(under) if under else entries


def _single(root: Root) -> Chunks:
    """A file that is one chunk."""
    if root.size > MAX_BLOCK_BYTES:
        raise Corrupt("a file of one chunk that is longer than a chunk can be", subject=root.text)
    return Chunks(as_column([root.id]), np.array([root.size], np.uint32))


def _from(pages: dict[PageId, bytes], root: Root) -> Callable[[PageId], bytes]:
    def load(name: PageId) -> bytes:
        try:
            return pages[name]
        except KeyError:
            raise Corrupt("the locator leaves out a page", subject=root.text) from None

    return load


def _checked(content: Content, root: Root) -> Content:
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


class RemoteContent:
    """Content by locators, for restoring straight from a remote without the local store."""

    def __init__(self, remote: Store) -> None:
        self.remote = remote
        self._known: dict[bytes, Content] = {}

    @property
    def backend(self) -> Backend:
        return self.remote.backend

    def add(self, part: Part) -> None:
        """Make the files of a part readable."""
        for i, content in enumerate(part.contents):
            if content is not None:
                self._known[part.entries.ids[i].tobytes()] = content

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        """For n files what they consist of."""
        empty = Content(Chunks.join([]), loc.empty_placement())
        out: list[Content | None] = []
        for i, size in enumerate(sizes.tolist()):
            name = ids[i].tobytes()
            out.append(empty if size == 0 and name == EMPTY_FILE else self._known.get(name))
        return out
