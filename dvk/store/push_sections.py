"""The sections of a push: page packs with what leads to its data, and the locators that lead to them.

What refers to a section needs its range, so recipes of files come first, then the locators of big files inside
folders, then the leaves of folders. Sections that the remote has already are referred to where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field

from dvk.errors import DataMissing, FormatError, Refused
from dvk.ids import ID_BYTES, PageId
from dvk.store import locator as loc
from dvk.store.locator import MAX_INLINE_CHUNKS, External, Locator, Ref, SectionPlacement
from dvk.store.pack import RecipeRow
from dvk.store.pages import Children, Chunks, ListKind, format_page, page_id, parse_page
from dvk.store.placement import Placement
from dvk.store.push_data import Uploader
from dvk.store.push_known import File, OpenLeaf
from dvk.store.push_plan import Plan
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.sections import SectionWriter

#: A nested locator must fit a block with what surrounds it.
_NESTED_INLINE_BYTES = 512 << 10
#: Sections of a list of more leaves are not inline: together they are longer than a locator may hold.
_LEAVES_INLINE = 16


class _Draft(Struct):
    """A file's locator before its sections have references."""

    root: Root
    file: File
    pages: bytes = b""
    sections: list[int | Ref] = field(default_factory=list)


class Sections:
    """Writes the sections of one push and remembers what they rely on."""

    def __init__(self, plan: Plan, uploader: Uploader) -> None:
        self.used_packs: set[bytes] = set()  #: data packs that new sections place chunks in
        self.used_refs: set[tuple[Ref, bytes]] = set()  #: sections that were there, and the record that covers each
        self._plan = plan
        self._writer = SectionWriter(uploader.put, codecs=plan.codecs)
        self._drafts: dict[bytes, _Draft] = {}
        self._nested: dict[bytes, tuple[Ref, bytes]] = dict(plan.known.nested)
        self._own: dict[bytes, int] = {}  # leaf of a recipe or listing -> number of its section in this push

    def write(self) -> list[Locator]:
        """Put the page packs; the locators of all versions that are sent, without their record.

        Raises:
            RemoteError: the remote.
        """
        sent = [v.root for v in self._plan.out.sent]
        for root in sent:
            if root.kind == FILE:
                self._draft(root, self._plan.known.file(root))
        self._write_nested([r for r in sent if r.kind == FOLDER])
        for root in sent:
            if root.kind == FOLDER:
                self._write_folder(root)
        self._writer.finish()
        return [
            self._file_locator(self._drafts[r.id], loc.INLINE_BYTES) if r.kind == FILE else self._folder_locator(r)
            for r in sent
        ]

    # ------------------------------------------------------------ files

    def _draft(self, root: Root, file: File) -> None:
        """Write the sections of a file that no known section serves."""
        if root.id in self._drafts:
            return
        draft = self._drafts[root.id] = _Draft(root, file)
        if not file.root:
            placed = SectionPlacement(self._place(file.chunks), np.zeros(0, np.uint32), ())
            draft.sections.append(self._writer.add([], loc.format_placement(placed), [], keep=True))
            return
        self._check_profile(file.profile)
        leaves = self._plan.known.recipe_leaves(file)
        if len(leaves) > 1:
            draft.pages = self._inner_pages(ListKind.RECIPE, file.root)
        row = RecipeRow(root.id, file.root, root.size, file.profile)
        at = 0
        for name, count in leaves:
            known = self._plan.known.leaves.get(name)
            if known is not None:
                self.used_refs.add(known)
                draft.sections.append(known[0])
            else:
                if name not in self._own:
                    chunks = file.chunks.slice(at, at + count)
                    rows = [] if draft.pages else [row]
                    self._own[name] = self._recipe_section(name, chunks, file.profile, rows, leaves=len(leaves))
                draft.sections.append(self._own[name])
            at += count
        self._upper(ListKind.RECIPE, draft.pages, row)

    def _recipe_section(
        self, name: bytes, chunks: Chunks, profile: str, rows: Sequence[RecipeRow], *, leaves: int
    ) -> int:
        placed = SectionPlacement(self._place(chunks), np.zeros(0, np.uint32), (), profile)
        page = (name, self._recipe_page(name, chunks))
        return self._writer.add([page], loc.format_placement(placed), rows, keep=leaves <= _LEAVES_INLINE)

    def _recipe_page(self, name: bytes, chunks: Chunks) -> bytes:
        page = format_page(ListKind.RECIPE, 0, chunks)
        if page_id(ListKind.RECIPE, page) != name:
            raise FormatError("a page of a recipe is not what its list says", subject=name.hex()[:12])
        return page

    def _file_locator(self, draft: _Draft, inline_bytes: int) -> Locator:
        refs = tuple(s if isinstance(s, Ref) else self._writer.ref(s) for s in draft.sections)
        root = draft.root
        return Locator(
            FILE,
            root.id,
            root.size,
            0,
            draft.file.root or bytes(ID_BYTES),
            bytes(ID_BYTES),
            draft.file.profile,
            draft.pages,
            refs,
            self._inline(draft.sections, refs, inline_bytes),
        )

    def _inline(self, sections: Sequence[int | Ref], refs: Sequence[Ref], limit: int) -> tuple[bytes, ...]:
        """The bytes of sections where all are ours and few enough to be put into the locator itself."""
        mine = [s for s in sections if isinstance(s, int) and self._writer.has_bytes(s)]
        if len(mine) < len(refs) or sum(r.length for r in refs) > limit:
            return ()
        return tuple(self._writer.encoded(n) for n in mine)

    # ------------------------------------------------------------ folders

    def _write_nested(self, folders: Sequence[Root]) -> None:
        """Big files inside folders: their sections, then their locators into the page packs."""
        names: dict[bytes, None] = {}
        for folder in folders:
            for leaf in self._plan.known.open_leaves(folder):
                profile = _section_profile(leaf.files)
                for i, file in enumerate(leaf.files):
                    if file is not None and _is_external(file, profile):
                        root = Root(FILE, leaf.entries.ids[i].tobytes(), int(leaf.entries.sizes[i]))
                        self._draft(root, file)
                        names[root.id] = None
        if not names:
            return
        self._writer.finish()
        numbers = {}
        for name in names:
            data = loc.format_locator(self._file_locator(self._drafts[name], _NESTED_INLINE_BYTES))
            numbers[name] = self._writer.add([], data, [], keep=False)
        self._writer.finish()
        for name, number in numbers.items():
            self._nested[name] = (self._writer.ref(number), b"")

    def _write_folder(self, root: Root) -> None:
        few = len(self._plan.known.leaf_refs(ListKind.LISTING, root.id)) <= _LEAVES_INLINE
        for leaf in self._plan.known.open_leaves(root):
            if leaf.ref.id not in self._own:
                self._own[leaf.ref.id] = self._folder_section(leaf, keep=few)
        self._upper(ListKind.LISTING, self._inner_pages(ListKind.LISTING, root.id))

    def _folder_section(self, leaf: OpenLeaf, *, keep: bool) -> int:
        entries = leaf.entries
        profile = _section_profile(leaf.files)
        self._check_profile(profile)
        per_entry = np.zeros(len(entries), np.uint32)
        externals: list[External] = []
        chunks: list[Chunks] = []
        recipes: dict[bytes, tuple[bytes, RecipeRow]] = {}
        for i, file in enumerate(leaf.files):
            name = entries.ids[i].tobytes()
            if file is None or _is_external(file, profile):
                if name in self._nested and int(entries.sizes[i]):
                    found, record = self._nested[name]
                    externals.append(External(i, found))
                    if record:
                        self.used_refs.add((found, record))
                continue
            per_entry[i] = len(file.chunks)
            chunks.append(file.chunks)
            if file.root and name not in recipes:
                row = RecipeRow(name, file.root, int(entries.sizes[i]), file.profile)
                recipes[name] = (self._recipe_page(file.root, file.chunks), row)
        placed = SectionPlacement(self._place(Chunks.join(chunks)), per_entry, tuple(externals), profile)
        pages = [(bytes(leaf.ref.id), self._plan.known.load_page(leaf.ref.id))]
        pages += [(row.root, page) for page, row in recipes.values()]
        return self._writer.add(pages, loc.format_placement(placed), [row for _, row in recipes.values()], keep=keep)

    def _folder_locator(self, root: Root) -> Locator:
        sections: list[int | Ref] = []
        for ref in self._plan.known.leaf_refs(ListKind.LISTING, root.id):
            known = self._plan.known.leaves.get(ref.id)
            if known is not None:
                self.used_refs.add(known)
                sections.append(known[0])
            else:
                sections.append(self._own[ref.id])
        refs = tuple(s if isinstance(s, Ref) else self._writer.ref(s) for s in sections)
        return Locator(
            FOLDER,
            root.id,
            root.size,
            root.files,
            root.id,
            bytes(ID_BYTES),
            "",
            self._inner_pages(ListKind.LISTING, root.id),
            refs,
            self._inline(sections, refs, loc.INLINE_BYTES),
        )

    # ------------------------------------------------------------ both

    def _inner_pages(self, kind: ListKind, root: bytes) -> bytes:
        """All pages of a list above its leaves, root first, each level in order."""
        out: list[bytes] = []
        level = [PageId(root)]
        while True:
            pages = [self._plan.known.load_page(name) for name in level]
            parsed = [parse_page(data, kind, subject=n.hex()[:12]) for n, data in zip(level, pages, strict=True)]
            if parsed[0].level == 0:
                return b"".join(out)
            out += pages
            if parsed[0].level == 1:
                return b"".join(out)
            level = [r.id for page in parsed if isinstance(page.body, Children) for r in page.body.refs]

    def _upper(self, kind: ListKind, pages: bytes, *rows: RecipeRow) -> None:
        """The pages above the leaves stand in a page pack as well as in the locator: a repair starts from packs."""
        if pages:
            upper = loc.split_pages(pages, subject=kind.name)
            self._writer.add([(page_id(kind, p), p) for p in upper], b"", rows, keep=False)

    def _place(self, chunks: Chunks) -> Placement:
        placed = self._plan.known.chunks.place(chunks.ids)
        if placed is None:
            raise DataMissing("a chunk that was just sent is not known", subject=self._plan.remote.name)
        self.used_packs.update(placed.blocks.packs)
        return placed

    def _check_profile(self, profile: str) -> None:
        assert self._plan.store is not None
        if profile and profile not in self._plan.store.profiles:
            raise Refused(
                f"this data is cut by the profile {profile}, which that store does not take",
                subject=self._plan.remote.name,
                hint="`dvk remote upgrade` allows it, once everybody who uses this remote has a dvk that knows it",
            )


def _section_profile(files: Sequence[File | None]) -> str:
    return next((f.profile for f in files if f is not None and 1 < len(f.chunks) <= MAX_INLINE_CHUNKS), "")


def _is_external(file: File, profile: str) -> bool:
    return len(file.chunks) > MAX_INLINE_CHUNKS or (bool(file.root) and file.profile != profile)
