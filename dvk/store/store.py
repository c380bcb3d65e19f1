"""A store: packs, index and pages on one backend. The local store and a remote are the same thing on two backends.

This module answers "is it here" and "where does it lie" for batches of ids, from immutable index segments and from the
footers of packs that no segment covers yet. It writes nothing but its own identity; `dvk.store.writer` does.

>>> store = Store(MemoryBackend())                         # doctest: +SKIP
>>> store.find_chunks(ids).found                           # doctest: +SKIP
array([ True, False])
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.contract import Backend, KeyExists, KeyMissing
from dvk.errors import DataMissing, DvkError, FormatError, NotOurs
from dvk.ids import EMPTY_FILE, FileId, PageId
from dvk.store import descriptor as dvk_json
from dvk.store.catalog import Catalog, Hit, Index, Mask, groups
from dvk.store.descriptor import Descriptor
from dvk.store.names import I64, U8
from dvk.store.pack import Footer, PackKind, RecipeRow
from dvk.store.pages import Chunks, read_recipe
from dvk.store.placement import Blocks, Placement, read_blocks

U32 = npt.NDArray[np.uint32]
_PAGE_BLOCKS_KEPT = 4
_PAGES_AT_ONCE = 1024
_FILES_AT_ONCE = 1 << 15  # in one search; what it takes grows with them
_RECIPES_TRIED = 8  # of one file; a stranger may have pushed any number of them


class Where(Struct, frozen=True):
    """For n ids: `pack` int64[n] into `names` (-1: not here) and `row` int64[n] of that pack's footer."""

    names: tuple[tuple[bytes, PackKind], ...]
    pack: I64
    row: I64

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        return self.pack >= 0


class Store(Catalog):
    """One store. Safe to use from many threads; other processes may add to the same store at any time."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self._descriptor: Descriptor | None = None
        self._page_blocks: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._damaged_recipes: dict[bytes, DvkError] = {}

    @property
    def own(self) -> Store:
        """The part of it that is written to: itself, unless it also reads other stores (`dvk.store.borrowing`)."""
        return self

    @property
    def parts(self) -> tuple[Store, ...]:
        """Itself and the other stores that it also reads."""
        return (self,)

    # ------------------------------------------------------------ identity

    def describe(self) -> Descriptor | None:
        """What dvk.json says, or None where there is no store yet.

        Raises:
            NotOurs, NewerFormat, FormatError: from reading it.
        """
        if self._descriptor is None:
            self._descriptor = self.describe_again()
        return self._descriptor

    def describe_again(self) -> Descriptor | None:
        """Read dvk.json now, whatever is remembered."""
        try:
            data = self.backend.get(dvk_json.KEY, max_bytes=dvk_json.MAX_BYTES)
        except KeyMissing:
            return None
        return dvk_json.parse_descriptor(data, subject=f"{self.name}/{dvk_json.KEY}")

    def assume(self, descriptor: Descriptor) -> None:
        """Go on as if dvk.json said this: for whoever looks at what is left of a store whose dvk.json is damaged."""
        self._descriptor = descriptor

    def create(self) -> Descriptor:
        """The descriptor, written first if there is none. Racing creators end up with the same one."""
        found = self.describe()
        if found is None:
            parts = [dvk_json.format_descriptor(Descriptor.new())]
            try:
                self.backend.put(dvk_json.KEY, parts, create_only=True)
            except KeyExists:
                pass  # somebody else was first, or our own reply was lost: what is there counts
            found = self.describe_again()
            if found is None:
                raise NotOurs("dvk.json was written and is not there", subject=self.name)
            self._descriptor = found
        found.require("write", subject=self.name)
        return found

    def _load(self) -> None:
        if not self._loaded and (found := self.describe()) is not None:
            found.require("read", subject=self.name)
        super()._load()

    # ------------------------------------------------------------ looking up

    def find_chunks(self, ids: U8) -> Where:
        """Where chunks (or pages) lie."""
        pack, row = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int64)
        names: list[tuple[bytes, PackKind]] = []
        for hit in self.hits(ids):
            pack[hit.which], row[hit.which] = len(names), hit.rows
            names.append((hit.name, hit.kind))
        return Where(tuple(names), pack, row)

    def has_chunks(self, ids: U8) -> npt.NDArray[np.bool_]:
        """bool[n]: whether each chunk is here."""
        found = np.zeros(len(ids), np.bool_)
        for hit in self.hits(ids):
            found[hit.which] = True
        return found

    def chunk_lengths(self, where: Where) -> I64:
        """int64[n]: the raw length of each found chunk, -1 where it is not here."""
        out = np.full(len(where.pack), -1, np.int64)
        for p, mine in groups(where.pack):
            if p >= 0:
                out[mine] = self.footer(*where.names[p]).chunk_len[where.row[mine]]
        return out

    def find_recipes(self, ids: U8) -> list[RecipeRow | None]:
        """For each file id the row that names its recipe, or None; of different ones one that is whole, if any is.

        There are different ones where data was lost and came back cut by another profile.
        """
        out = self._recipes_but(ids, np.zeros_like(ids))
        which = [i for i, row in enumerate(out) if row is not None]
        others = self._recipes_but(ids[which], as_column(row.root for row in out if row is not None))
        for i, other in zip(which, others, strict=True):
            if other is not None:
                out[i] = self._whole_recipe(ids[i : i + 1]) or out[i]
        return out

    def _recipes_but(self, ids: U8, roots: U8) -> list[RecipeRow | None]:
        """For n files the row of any recipe that has not the root (uint8[n, 32]) given for this file."""
        out: list[RecipeRow | None] = [None] * len(ids)

        def accept(_kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
            return np.asarray((_root_column(footer)[rows] != roots[which]).any(axis=1))

        for hit in self.hits(ids, recipes=True, accept=accept):
            for i, row in zip(hit.which.tolist(), hit.rows.tolist(), strict=True):
                out[i] = hit.footer.recipe(row)
        return out

    def _whole_recipe(self, file_id: U8) -> RecipeRow | None:
        """Of all recipes of a file (uint8[1, 32]) one of which pages and chunks are here, as far as is worth a try."""
        tried: set[bytes] = set()

        def accept(_kind: PackKind, footer: Footer, _which: Index, rows: I64) -> Mask:
            return np.array([root.tobytes() not in tried for root in _root_column(footer)[rows]], np.bool_)

        while len(tried) < _RECIPES_TRIED:
            hit = next(self.hits(file_id, recipes=True, accept=accept), None)
            if hit is None:
                break
            row = hit.footer.recipe(int(hit.rows[0]))
            chunks = self._read_recipe(row, {})
            if chunks is not None and self.has_chunks(chunks.ids).all():
                return row
            tried.add(row.root)
        return None

    def place(self, chunks: Chunks) -> Placement:
        """Where each chunk lies.

        Raises:
            DataMissing: at least one is not here; the message counts them.
        """
        placement, found = self.place_some(chunks)
        if not found.all():
            self.look_again()
            placement, found = self.place_some(chunks)
        missing = int(np.count_nonzero(~found))
        if missing:
            bytes_ = int(chunks.lengths[~found].sum(dtype=np.uint64))
            raise DataMissing(
                f"{missing:,} chunks ({bytes_:,} bytes) are not in this store{self._and_damage()}", subject=self.name
            )
        return placement

    def place_some(self, chunks: Chunks) -> tuple[Placement, npt.NDArray[np.bool_]]:
        """As `place`, for those that are here: the mask says which; the others have block 0, offset 0."""
        n = len(chunks)
        block, offset, found = np.zeros(n, np.uint32), np.zeros(n, np.uint32), np.zeros(n, np.bool_)
        columns: list[tuple[U32, I64, U32, U32, U8]] = []
        used: list[bytes] = []
        base = 0

        def accept(kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
            return np.asarray((footer.chunk_len[rows] == chunks.lengths[which]) & (kind is PackKind.DATA))

        for hit in self.hits(chunks.ids, accept=accept):
            footer, mine = hit.footer, hit.which
            blocks, local = np.unique(footer.chunk_block[hit.rows], return_inverse=True)
            block[mine] = local + base
            offset[mine] = footer.chunk_offset[hit.rows]
            found[mine] = True
            at = np.full(len(blocks), len(used), np.uint32)
            columns.append(
                (
                    at,
                    footer.block_offset[blocks],
                    footer.packed_len[blocks],
                    footer.raw_len[blocks],
                    footer.codec[blocks],
                )
            )
            used.append(hit.name)
            base += len(blocks)
        if columns:
            joined = [np.concatenate(c) for c in zip(*columns, strict=True)]
        else:
            joined = [np.zeros(0, t) for t in (np.uint32, np.int64, np.uint32, np.uint32, np.uint8)]
        blocks_ = Blocks(PackKind.DATA, tuple(used), *joined)
        return Placement(blocks_, block, offset), found

    # ------------------------------------------------------------ pages and recipes

    def has_page(self, name: PageId) -> bool:
        """Whether a page is here."""
        return bool(self.has_chunks(np.frombuffer(name, np.uint8).reshape(1, 32))[0])

    def load_page(self, name: PageId) -> bytes:
        """The bytes of a page; the caller proves its id.

        Raises:
            DataMissing: it is not here. Corrupt: the block that holds it is damaged.
        """
        found = self.load_pages([name])
        if not found:
            self.look_again()
            found = self.load_pages([name])
        if not found:
            raise DataMissing(f"page {name.hex()[:12]} is not in this store{self._and_damage()}", subject=self.name)
        return found[name]

    def load_pages(self, names: Sequence[PageId]) -> dict[PageId, bytes]:
        """Those pages of several that are here; a block that holds many of them is decoded once.

        Raises:
            Corrupt: a block is damaged.
        """
        out: dict[PageId, bytes] = {}
        for hit in self.hits(as_column(names)):
            footer = hit.footer
            for b, members in groups(footer.chunk_block[hit.rows]):
                raw = self._page_block(hit, b)
                for i, row in zip(hit.which[members].tolist(), hit.rows[members].tolist(), strict=True):
                    start = int(footer.chunk_offset[row])
                    out[names[i]] = raw[start : start + int(footer.chunk_len[row])]
        return out

    def _page_block(self, hit: Hit, number: int) -> bytes:
        # Pages of one list lie together, so a block decoded lately is the likeliest next one.
        key = (hit.name, number)
        with self._lock:
            if (raw := self._page_blocks.get(key)) is not None:
                self._page_blocks.move_to_end(key)
                return raw
        one = slice(number, number + 1)
        f = hit.footer
        where = (f.block_offset[one], f.packed_len[one], f.raw_len[one], f.codec[one])
        blocks = Blocks(hit.kind, (hit.name,), np.zeros(1, np.uint32), *where)
        raw = read_blocks(self.backend, blocks, [0])[0]
        with self._lock:
            self._page_blocks[key] = raw
            while len(self._page_blocks) > _PAGE_BLOCKS_KEPT:
                self._page_blocks.popitem(last=False)
        return raw

    def _and_damage(self) -> str:
        broken = self.damaged
        if not broken:
            return ""
        return f"; {len(broken):,} packs are damaged, the first: {broken[0]}"

    def chunks_of(self, file_id: FileId, size: int) -> Chunks | None:
        """The chunks of a file, or None when this store does not know them.

        A file of one chunk is known by that chunk; longer ones by their recipe.
        """
        return self.chunks_of_many(np.frombuffer(file_id, np.uint8).reshape(1, 32), np.array([size], np.int64))[0]

    def chunks_of_many(self, ids: U8, sizes: I64) -> list[Chunks | None]:
        """`chunks_of` for n files."""
        out: list[Chunks | None] = [None] * len(sizes)
        single = self.single_chunk(ids, sizes)
        rest = np.flatnonzero(~single & (sizes > 0))
        for i in np.flatnonzero(single).tolist():
            out[i] = Chunks(ids[i : i + 1], sizes[i : i + 1].astype(np.uint32))
        empty = np.frombuffer(EMPTY_FILE, np.uint8)
        for i in np.flatnonzero(sizes == 0).tolist():
            if np.array_equal(ids[i], empty):
                out[i] = Chunks.join([])
        for i, chunks in zip(rest.tolist(), self._chunks_by_recipe(ids, sizes, rest), strict=True):
            out[i] = chunks
        return out

    def _chunks_by_recipe(self, ids: U8, sizes: I64, which: Index) -> list[Chunks | None]:
        """For the files at `which` their chunks, where a recipe of the right size is here."""
        found = self.find_recipes(ids[which])
        right = [r is not None and r.size == n for r, n in zip(found, sizes[which].tolist(), strict=True)]
        chunks = iter(self._read_recipes([r for r, good in zip(found, right, strict=True) if good and r is not None]))
        return [next(chunks) if good else None for good in right]

    def _read_recipes(self, rows: Sequence[RecipeRow]) -> list[Chunks | None]:
        """The chunks of several files, None where pages are missing or not what they should be."""
        out: list[Chunks | None] = []
        for start in range(0, len(rows), _PAGES_AT_ONCE):
            group = rows[start : start + _PAGES_AT_ONCE]
            try:
                roots = self.load_pages(list({PageId(r.root): None for r in group}))
            except FormatError:
                roots = {}  # one damaged block: each recipe on its own
            out += [self._read_recipe(r, roots) for r in group]
        return out

    def _read_recipe(self, row: RecipeRow, roots: dict[PageId, bytes]) -> Chunks | None:
        def load(name: PageId) -> bytes:
            return roots.get(name) or self.load_page(name)

        try:
            return read_recipe(PageId(row.root), load, total_bytes=row.size)
        except DataMissing:
            return None  # a writer was killed between the row and the page
        except FormatError as error:
            with self._lock:
                self._damaged_recipes[row.file] = error
            return None

    def why_missing(self, file_id: bytes) -> DvkError | None:
        """The damage that hides a file, where that is why `chunks_of` does not know it."""
        with self._lock:
            return self._damaged_recipes.get(file_id)

    def single_chunk(self, ids: U8, sizes: I64) -> npt.NDArray[np.bool_]:
        """bool[n]: files that are one chunk of exactly the stated size."""
        if not len(sizes):
            return np.zeros(0, np.bool_)
        found = np.zeros(len(sizes), np.bool_)

        def accept(kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
            return np.asarray((footer.chunk_len[rows] == sizes[which]) & (kind is PackKind.DATA))

        for hit in self.hits(ids, accept=accept):
            found[hit.which] = True
        return found & (sizes > 0)

    def holds(self, ids: U8, sizes: I64) -> npt.NDArray[np.bool_]:
        """bool[n]: files of which every chunk is here."""
        starts = range(0, len(sizes), _FILES_AT_ONCE)
        parts = [self._holds(ids[a : a + _FILES_AT_ONCE], sizes[a : a + _FILES_AT_ONCE]) for a in starts]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)

    def _holds(self, ids: U8, sizes: I64) -> npt.NDArray[np.bool_]:
        held = self.single_chunk(ids, sizes)
        empty = np.frombuffer(EMPTY_FILE, np.uint8)
        held |= (sizes == 0) & (ids == empty).all(axis=1)
        rest = np.flatnonzero(~held & (sizes > 0))
        # By the group, since the chunks of all files together may be many.
        for start in range(0, len(rest), _PAGES_AT_ONCE):
            part = rest[start : start + _PAGES_AT_ONCE]
            known = [(i, c) for i, c in zip(part.tolist(), self._chunks_by_recipe(ids, sizes, part), strict=True) if c]
            here = self.has_chunks(Chunks.join([c for _, c in known]).ids)
            at = 0
            for i, chunks in known:
                held[i] = here[at : at + len(chunks)].all()
                at += len(chunks)
        return held

    def close(self) -> None:
        """Let go of the backend."""
        self.backend.close()


def _root_column(footer: Footer) -> U8:
    """uint8[r, 32]: the root pages of the recipes in a footer."""
    return np.frombuffer(np.ascontiguousarray(footer.recipes["root"]).tobytes(), np.uint8).reshape(-1, 32)


def as_column(ids: Iterable[bytes]) -> U8:
    """Ids as uint8[n, 32]."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
