"""From an id to what it consists of and where that lies on a remote, in two round trips (three for a big folder).

A locator is a hint. Where it is missing, damaged or leads nowhere it is read once more; then everything is searched
for by the footers of all packs (`search`): complete, slow, and announced.

>>> for part in Resolver(remote).resolve(root, under=b"images/val"):      # doctest: +SKIP
...     part.entries, part.contents
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import Corrupt, DvkError, FormatError
from dvk.events import Note, OnEvent, ignore
from dvk.ids import EMPTY_FILE
from dvk.store import locator as loc
from dvk.store.content import Content
from dvk.store.listing import Entries
from dvk.store.locator import Locator, Ref, Section
from dvk.store.names import I64, U8
from dvk.store.pack import RecipeRow
from dvk.store.pages import Chunks, ListKind, PageRef, leaves_under, load_leaf, page_id, parse_page
from dvk.store.root import FILE, Root
from dvk.store.search import NotWhole, Part, file_as_entries, search
from dvk.store.section_reader import MAX_SECTION_BYTES, SectionReader, checked, pages_among, single_chunk
from dvk.store.store import Store

__all__ = ["Leaf", "NotWhole", "Part", "RemoteContent", "Resolver"]

#: Leaves of a folder that are resolved together; bounds memory.
_LEAVES_AT_ONCE = 16


class Leaf(Struct, frozen=True):
    """A leaf of a folder, and for each entry its chunks, where its own locator lies, or None for what has no data."""

    entries: Entries
    contents: list[Content | Ref | None]
    page: bytes
    recipes: list[RecipeRow]


class Resolver:
    """Tells what roots consist of on one remote. Changes nothing. Its methods may be called from many threads."""

    def __init__(self, remote: Store, *, on_event: OnEvent = ignore) -> None:
        self.remote = remote
        self.reader = SectionReader(remote)
        self._on_event = on_event
        self.records: dict[str, bytes] = {}  #: of the roots resolved by locator, which record wrote it

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self.reader.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def locators(self, roots: Sequence[Root]) -> list[Locator | None]:
        """The locators of several roots for `resolve`, read in parallel; None where that has to look again."""
        return self.reader.locators(roots)

    def resolve(self, root: Root, *, under: bytes = b"", found: Locator | None = None) -> Iterator[Part]:
        """What `root` consists of, or the part of a folder at and below `under`, a group of leaves at a time.

        Args:
            found: its locator, where that was read before.

        Raises:
            DataMissing: nothing on the remote knows the id. NotWhole: what the remote has of it is damaged.
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
                found = found or self.reader.locator(root)
                if found is None:
                    break
                for part in self.by_locator(root, found, under=under):
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
        """As `resolve`, by the footers of all packs. `why` is what following the locator ended in.

        Raises:
            DataMissing, NotWhole: nothing on the remote knows the id, or some of its data is gone or damaged; what is
                there came before.
        """
        self._on_event(
            Note(
                f"its locator is of no use ({why})" if why else "it has no locator",
                subject=f"{self.remote.name}: {root.text[:14]}",
                hint="reading the footers of all packs instead, which is slow; "
                "`dvk push --verify full` by whoever has this version mends it",
            )
        )
        yield from search(self.remote, root, under=under, why=why)

    # ------------------------------------------------------------ by its locator

    def by_locator(
        self,
        root: Root,
        found: Locator,
        *,
        under: bytes = b"",
        skip: Callable[[bytes, Ref], bool] = lambda _leaf, _ref: False,
    ) -> Iterator[Part]:
        """What the locator alone says, without a second try and without a search.

        Args:
            skip: leaves of a folder that are not wanted, by page id and section.

        Raises:
            Corrupt, KeyMissing: what it leads to is damaged or gone.
        """
        refs = self.reader.leaf_refs(root, found)
        if root.kind == FILE:
            yield self._file(root, found)
            return
        exact = bool(found.pages)
        number = {r.id: i for i, r in enumerate(refs)}
        follows = dict(zip([r.id for r in refs], [r.first for r in refs[1:]], strict=False))
        wanted = [r for r in leaves_under(refs, under) if not skip(r.id, found.sections[number[r.id]])]
        kept = list(self.reader.pages_of(found).items())
        while wanted:
            # As many leaves as fit the memory that is meant for them; usually all of `_LEAVES_AT_ONCE`.
            n = weight = 0
            while n < min(_LEAVES_AT_ONCE, len(wanted)) and (not n or weight <= MAX_SECTION_BYTES):
                weight += found.sections[number[wanted[n].id]].length
                n += 1
            group, wanted = wanted[:n], wanted[n:]
            for ref, section in zip(
                group, self.reader.iter_sections(found, [number[r.id] for r in group]), strict=True
            ):
                part = self._leaf(root, ref, section, under, exact=exact, before=follows.get(ref.id))
                part.pages[:0] = kept
                kept = []
                yield part
        if kept:
            yield Part(Entries.empty(), [], kept)

    def leaf_at(self, root: Root, found: Locator, refs: Sequence[PageRef], number: int) -> Leaf:
        """One leaf of a folder; `refs`: of all of them. One request.

        Raises:
            Corrupt, KeyMissing: what the locator leads to is damaged or gone.
        """
        before = refs[number + 1].first if number + 1 < len(refs) else None
        (section,) = self.reader.sections(found, [number])
        return self._leaf_alone(root, refs[number], section, exact=bool(found.pages), before=before)

    def external(self, file: Root, ref: Ref) -> Content | None:
        """What a file consists of whose folder says only where its own locator is. Raises as `leaf_at`."""
        return self._file(file, self.reader.nested([(file, ref)])[0]).contents[0]

    def _leaf_alone(self, root: Root, ref: PageRef, section: Section, *, exact: bool, before: bytes | None) -> Leaf:
        if page_id(ListKind.LISTING, section.leaf) != ref.id:
            raise Corrupt("a section holds another page than its leaf", subject=root.text)
        page = parse_page(section.leaf, ListKind.LISTING, subject=root.text)
        if page.level or not isinstance(page.body, Entries):
            raise Corrupt("a section holds a page that is no leaf", subject=root.text)
        if exact:
            load_leaf(ListKind.LISTING, ref, pages_among({ref.id: section.leaf}, root))
        elif (page.files, page.total_bytes) != (root.files, root.size):
            raise Corrupt("a folder is not what its pointer says", subject=root.text)
        entries = page.body
        if before is not None and len(entries) and entries.names[len(entries) - 1] >= before:
            raise Corrupt("the pages of a folder are not in order", subject=root.text)
        contents, recipes = self.reader.entry_contents(root, entries, section)
        return Leaf(entries, contents, section.leaf, recipes)

    def _leaf(
        self, root: Root, ref: PageRef, section: Section, under: bytes, *, exact: bool, before: bytes | None
    ) -> Part:
        leaf = self._leaf_alone(root, ref, section, exact=exact, before=before)
        entries, contents, recipes = leaf.entries, leaf.contents, leaf.recipes
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
        inner = self.reader.nested([(file, c) for _, file, c in refs])
        for (i, file, _), found in zip(refs, inner, strict=True):
            part = self._file(file, found)
            known[i] = part.contents[0]
            pages += part.pages
            recipes += part.recipes
        return Part(entries, known, pages, recipes)

    def _file(self, root: Root, found: Locator) -> Part:
        refs = self.reader.leaf_refs(root, found)
        if sum(r.length for r in found.sections) > root.size + MAX_SECTION_BYTES // 16:
            raise Corrupt("a locator leads to more bytes than its file has", subject=root.text)
        sections = self.reader.sections(found, range(len(found.sections)))
        if not any(found.root):
            content = Content(single_chunk(root), sections[0].placed.placement)
            if len(content.placement.block) != 1:
                raise Corrupt("a placement does not fit its file", subject=root.text)
            return Part(file_as_entries(root), [checked(content, root)])
        pages = self.reader.pages_of(found)
        leaves = []
        for ref, section in zip(refs, sections, strict=True):
            if found.pages:
                load_leaf(ListKind.RECIPE, ref, pages_among({ref.id: section.leaf}, root))
            leaves.append(self.reader.recipe_leaf(root, ref.id, section))
            pages[ref.id] = section.leaf
            if len(section.placed.placement.block) != len(leaves[-1]):
                raise Corrupt("a placement does not fit its file", subject=root.text)
        chunks = Chunks.join(leaves)
        if chunks.total_bytes != root.size:
            raise Corrupt("a recipe does not fit its file", subject=root.text)
        placement = loc.concat_placements([s.placed.placement for s in sections])
        row = RecipeRow(root.id, found.root, root.size, found.profile)
        return Part(file_as_entries(root), [checked(Content(chunks, placement), root)], list(pages.items()), [row])


class RemoteContent:
    """Content by locators, for restoring straight from a remote without the local store."""

    def __init__(self, remote: Store) -> None:
        self.remote = remote
        self._known: dict[bytes, Content] = {}

    @property
    def backend(self) -> Backend:
        return self.remote.backend

    def __len__(self) -> int:
        """How many files are known."""
        return len(self._known)

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
