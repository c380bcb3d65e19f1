"""Whether a store with an index holds versions whole, and of those that it does not, what is missing and was here once.

    check = Wholeness(store)
    found = check.look(root)
    found.state                        # WHOLE, PARTLY, ABSENT or LOST
    found.missing[0].name              # b"train/0007.jpg", where it is a folder

A clone holds what it added or fetched, so that something is not here is no damage. It is damage where the store knew
of it: the index, or a note of damage (`catalog`), speaks of a chunk or page that no pack can give any more. Versions of
a folder share pages and files, so each leaf is looked at once.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import StrEnum

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.ids import EMPTY_FILE, ID_BYTES, PageId
from dvk.store.catalog import Index, Mask
from dvk.store.listing import Entries
from dvk.store.names import I64, U8, distinct
from dvk.store.pack import Footer, PackKind, RecipeRow
from dvk.store.pages import Children, Chunks, ListKind, Page, PageRef, load_page, parse_page
from dvk.store.root import FOLDER, Root
from dvk.store.salvageable import Salvageable
from dvk.store.store import Store, as_column

#: Files of one version that are named; all are counted.
NAMED = 1000


class State(StrEnum):
    """What a store has of a version."""

    WHOLE = "whole"
    PARTLY = "partly"  #: the rest was never here
    ABSENT = "absent"  #: never here, as far as the store knows
    LOST = "lost"  #: something of it was here and is damaged or gone


class Missing(Struct, frozen=True):
    """A file that cannot be had: its path in the folder (empty for a file), or the first path of a lost page."""

    name: bytes
    size: int
    files: int = 1  #: more than one where a page of the list is gone
    lost: bool = True
    why: str = ""
    saved: bool = False  #: all that it lacks is still in damaged packs, where `salvage` gets at it


class Found(Struct):
    """What was found of one version. Counts are of all; `missing` names the first `NAMED`, lost ones first."""

    state: State = State.WHOLE
    missing: list[Missing] = field(default_factory=list)
    missing_files: int = 0
    missing_bytes: int = 0
    lost_files: int = 0
    lost_bytes: int = 0
    error: DvkError | None = None  #: what is wrong, where one thing is

    def add(self, rows: Iterable[Missing]) -> None:
        """Count files that cannot be had."""
        for m in rows:
            self.missing_files += m.files
            self.missing_bytes += m.size
            if m.lost:
                self.lost_files += m.files
                self.lost_bytes += m.size
            self.missing.append(m)

    def settle(self, *, files: int) -> None:
        """Say what it comes to, of so many files in all."""
        if self.lost_files:
            self.state = State.LOST
        elif self.missing_files:
            self.state = State.ABSENT if self.missing_files >= files else State.PARTLY
        self.missing.sort(key=lambda m: not m.lost)
        del self.missing[NAMED:]


class Wholeness:
    """Looks at versions one after the other. Changes nothing. One thread."""

    def __init__(
        self, store: Store, *, salvageable: Salvageable | None = None, was_here: Container[str] = frozenset()
    ) -> None:
        """
        Args:
            salvageable: what is in damaged packs and can be saved from them.
            was_here: versions, as records write roots, that were here whole once, whatever the store knows of them.
        """
        self.store = store
        self._was_here = was_here
        store.tolerate_unreadable()
        self._salvageable = Salvageable(store) if salvageable is None else salvageable
        self.used: set[bytes] = set()  #: data packs that hold something of a version that was looked at
        self.gone: list[U8] = []  #: uint8[n, 32] each: ids that versions need and no pack gives
        self._leaves: dict[bytes, tuple[Missing, ...]] = {}
        self._saved_pages: dict[bytes, bool] = {}

    def look(self, root: Root, under: bytes = b"") -> Found:
        """What the store has of a version, or of the part of a folder at and below `under`.

        Raises:
            StorageError: the store cannot be read at all.
        """
        out = self._look(root, under)
        if out.missing_files > out.lost_files and root.text in self._was_here:
            why = "it was added here, and nothing in the store speaks of it any more"
            out.missing = [m if m.lost else replace(m, lost=True, why=why) for m in out.missing]
            out.lost_files, out.lost_bytes = out.missing_files, out.missing_bytes
            out.state = State.LOST
        return out

    def _look(self, root: Root, under: bytes) -> Found:
        out = Found()
        if root.kind != FOLDER:
            ids = np.frombuffer(root.id, np.uint8).reshape(1, ID_BYTES)
            if root.size or root.id != EMPTY_FILE:
                out.add(self._files(ids, np.array([root.size], np.int64), [b""]))
            out.settle(files=1)
            return out
        ref = PageRef(PageId(root.id), 0, root.files, root.size, b"")
        page = self._page(ref, None)
        if isinstance(page, Missing):
            out.add([page])
        elif (page.files, page.total_bytes) != (root.files, root.size):
            out.error = Corrupt("a folder is not what its pointer says", subject=root.text)
            self.gone.append(as_column([root.id]))
            out.add([Missing(b"", root.size, max(1, root.files), why=out.error.message)])
        else:
            out.add(m for m in self._below(ref, page) if not under or is_at(m.name, under))
        out.settle(files=max(1, root.files))
        return out

    # ------------------------------------------------------------ pages

    def _page(self, ref: PageRef, level: int | None) -> Page | Missing:
        """A page, or what is missing with it."""
        try:
            page = load_page(ListKind.LISTING, ref.id, self._load)
            if level is not None and page.level != level:
                raise Corrupt("a page is not what its parent says")
            return page
        except DataMissing:
            self.gone.append(as_column([ref.id]))
            lost = bool(self.store.knew(as_column([ref.id]))[0])
            why = "the list of files is gone" if lost else "the list of files is not here"
            return Missing(
                ref.first, ref.total_bytes, max(1, ref.files), lost, why, self._can_save(ListKind.LISTING, ref.id)
            )
        except FormatError as error:
            self.gone.append(as_column([ref.id]))
            return Missing(ref.first, ref.total_bytes, max(1, ref.files), why=str(error))

    def _can_save(self, kind: ListKind, name: bytes, level: int | None = None) -> bool:
        """Whether a list that is lost can be saved, and all that it names is here or can be saved. Each page once.

        Args:
            level: that its parent says it has: a list that goes down without end is no list.
        """
        known = self._saved_pages.get(name)
        if known is None:
            known = self._saved_pages[name] = self._look_to_save(kind, name, level)
        return known

    def _look_to_save(self, kind: ListKind, name: bytes, level: int | None) -> bool:
        try:
            data: bytes | None = self._load(PageId(name))
        except (DataMissing, FormatError):
            data = self._salvageable.find_page(name)
        if data is None:
            return False
        try:
            page = parse_page(data, kind, subject=self.store.name)
        except FormatError:
            return False
        if level is not None and page.level != level:
            return False
        body = page.body
        if isinstance(body, Children):
            return all(self._can_save(kind, ref.id, page.level - 1) for ref in body.refs)
        if isinstance(body, Chunks):
            return bool((self._here(body) | self._salvageable.holds(body.ids)).all())
        which = np.flatnonzero(body.is_file & (body.sizes > 0))
        return all(m.saved for m in self._files(body.ids[which], body.sizes[which], [b""] * len(which)))

    def _can_save_file(self, name: bytes, known: RecipeRow | None) -> bool:
        """The same of a file whose chunks nobody can name."""
        if self._salvageable.holds(as_column([name]))[0]:
            return True
        recipes = (*self._salvageable.recipes(name), *([known] if known is not None else []))
        return any(self._can_save(ListKind.RECIPE, r.root) for r in recipes)

    def _load(self, name: PageId) -> bytes:
        found = self.store.load_pages([name])
        if not found:
            raise DataMissing("a page is not in this store", subject=self.store.name)
        return found[name]

    def _below(self, ref: PageRef, page: Page) -> Iterable[Missing]:
        if not isinstance(page.body, Children):
            yield from self._leaf(ref.id, page)
            return
        for child in page.body.refs:
            if page.level == 1 and (known := self._leaves.get(child.id)) is not None:
                yield from known
                continue
            got = self._page(child, page.level - 1)
            if isinstance(got, Missing):
                yield got
            else:
                yield from self._below(child, got)

    def _leaf(self, name: bytes, page: Page) -> tuple[Missing, ...]:
        known = self._leaves.get(name)
        if known is None:
            entries = page.body
            assert isinstance(entries, Entries)
            which = np.flatnonzero(entries.is_file & (entries.sizes > 0))
            names = entries.names
            known = tuple(self._files(entries.ids[which], entries.sizes[which], _Lazy(names, which)))
            self._leaves[name] = known
        return known

    # ------------------------------------------------------------ files

    def _files(self, ids: U8, sizes: I64, names: _Lazy | list[bytes]) -> list[Missing]:
        """Those of n files that cannot be had."""
        if not len(sizes):
            return []
        chunks = self.store.chunks_of_many(ids, sizes)
        unknown = np.array([i for i, c in enumerate(chunks) if c is None], np.intp)
        known = np.array([i for i, c in enumerate(chunks) if c is not None], np.intp)
        out: list[tuple[int, Missing]] = []
        if len(unknown):
            self.gone.append(ids[unknown])
            was = self.store.knew(ids[unknown]) | self.store.knew(ids[unknown], recipes=True)
            rows = self.store.find_recipes(ids[unknown])
            roots = as_column(r.root if r is not None else bytes(ID_BYTES) for r in rows)
            self.gone.append(roots)
            saved = [self._can_save_file(ids[i].tobytes(), r) for i, r in zip(unknown.tolist(), rows, strict=True)]
            for i, lost, kept in zip(unknown.tolist(), was.tolist(), saved, strict=True):
                why = self.store.why_missing(ids[i].tobytes())
                said = str(why) if why else "what it consists of is gone" if lost else "it is not here"
                out.append((i, Missing(names[i], int(sizes[i]), 1, lost or why is not None, said, kept)))
        together = Chunks.join([c for c in chunks if c is not None])
        here = self._here(together)
        if not here.all():
            owner = np.repeat(known, [len(chunks[i] or ()) for i in known.tolist()])
            gone = np.flatnonzero(~here)
            self.gone.append(together.ids[gone])
            knew = self.store.knew(together.ids[gone])
            lost_of, saved_of = np.zeros(len(sizes), np.bool_), np.ones(len(sizes), np.bool_)
            np.logical_or.at(lost_of, owner[gone], knew)
            np.logical_and.at(saved_of, owner[gone], self._salvageable.holds(together.ids[gone]))
            for i in distinct(owner[gone]).tolist():
                lost = bool(lost_of[i])
                why_ = "chunks of it are damaged or gone" if lost else "chunks of it are not here"
                out.append((i, Missing(names[i], int(sizes[i]), 1, lost, why_, bool(saved_of[i]))))
        return [m for _, m in sorted(out, key=lambda x: x[0])]

    def _here(self, chunks: Chunks) -> Mask:
        """bool[n]: which chunks some pack can give, as far as is known of damage."""
        here = np.zeros(len(chunks), np.bool_)

        def accept(kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
            return np.asarray((footer.chunk_len[rows] == chunks.lengths[which]) & (kind is PackKind.DATA))

        for hit in self.store.hits(chunks.ids, accept=accept):
            here[hit.which] = True
            self.used.add(hit.name)
        return here


class _Lazy:
    """The names of some entries, made when they are asked for."""

    def __init__(self, names: object, which: Index) -> None:
        self._names, self._which = names, which

    def __getitem__(self, i: int) -> bytes:
        return self._names[int(self._which[i])]  # type: ignore[index, no-any-return]


def is_at(path: bytes, wanted: bytes) -> bool:
    """Whether one path is the other or lies in it: a lost page is named by the first path on it."""
    return path == wanted or path.startswith(wanted + b"/") or wanted.startswith(path + b"/")
