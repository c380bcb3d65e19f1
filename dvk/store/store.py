"""A store: packs, index and pages on one backend. The local store and a remote are the same thing on two backends.

This module answers "is it here" and "where does it lie" for batches of ids, from immutable index segments and from the
footers of packs that no segment covers yet. It writes nothing but its own identity; `dvk.store.writer` does.

>>> store = Store(MemoryBackend())                         # doctest: +SKIP
>>> store.find_chunks(ids).found                           # doctest: +SKIP
array([ True, False])
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvk.backend.contract import Backend, KeyExists, KeyMissing
from dvk.errors import Corrupt, DataMissing, NotOurs
from dvk.ids import EMPTY_FILE, FileId, PageId
from dvk.store import descriptor as dvk_json
from dvk.store import pack as packs
from dvk.store.descriptor import Descriptor
from dvk.store.index import MERGE_FAN_IN, Segment, Table, format_segment, parse_segment, prefixes
from dvk.store.names import I64, U8
from dvk.store.pack import TRAILER, Footer, PackKind, RecipeRow, pack_key
from dvk.store.pages import Chunks, read_recipe
from dvk.store.placement import Blocks, Placement, read_blocks

U32 = npt.NDArray[np.uint32]
_FOOTERS_KEPT = 512
_MAX_SEGMENT_BYTES = 1 << 40


@dataclass(frozen=True, slots=True)
class Where:
    """For n ids: `pack` int64[n] into `names` (-1: not here) and `row` int64[n] of that pack's footer."""

    names: tuple[tuple[bytes, PackKind], ...]
    pack: I64
    row: I64

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        return self.pack >= 0


class Store:
    """One store. Safe to use from many threads; other processes may add to the same store at any time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self._lock = threading.RLock()
        self._segments: list[tuple[str, Segment]] = []  # key ("" while not written) and segment
        self._footers: OrderedDict[bytes, Footer] = OrderedDict()
        self._descriptor: Descriptor | None = None
        self._loaded = False

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

    # ------------------------------------------------------------ catalog

    def refresh(self) -> None:
        """Look again which packs and segments there are. Cheap when nothing changed."""
        with self._lock:
            for _ in range(5):
                try:
                    self._load()
                    return
                except KeyMissing:
                    continue  # a merge deleted it between listing and reading
            raise DataMissing("the index changes faster than it can be read", subject=self.name)

    def _load(self) -> None:
        old = {key: s for key, s in self._segments if key}
        segments: list[tuple[str, Segment]] = []
        for item in self.backend.list("i/"):
            if item.key in old:
                segments.append((item.key, old[item.key]))
                continue
            try:
                data = self.backend.view(item.key, max_bytes=_MAX_SEGMENT_BYTES)
                segments.append((item.key, parse_segment(data, subject=f"{self.name}/{item.key}")))
            except Corrupt:
                continue  # rebuilt below from the footers it covered
        present = self.list_packs()
        covered = {p for _, s in segments for p in s.packs}
        if not covered <= present.keys():
            segments = [
                (k, s if covered <= present.keys() else s.without(covered - present.keys())) for k, s in segments
            ]
        loose = [(name, self.footer(name, kind)) for name, kind in present.items() if name not in covered]
        if loose:
            segments.append(("", Segment.build(loose)))
        self._segments = segments
        self._loaded = True

    def list_packs(self) -> dict[bytes, PackKind]:
        """All packs that are there now."""
        out: dict[bytes, PackKind] = {}
        for kind in PackKind:
            for item in self.backend.list(f"{kind.prefix}/"):
                digits = item.key.rsplit("/", 1)[-1]
                if len(digits) == 64 and item.key == f"{kind.prefix}/{digits[:2]}/{digits}":
                    try:
                        out[bytes.fromhex(digits)] = kind
                    except ValueError:
                        continue  # a foreign object with a look-alike name
        return out

    def segments(self) -> list[Segment]:
        """The index as it is known now."""
        with self._lock:
            if not self._loaded:
                self.refresh()
            return [s for _, s in self._segments]

    def adopt(self, new: Sequence[tuple[bytes, Footer]]) -> None:
        """Make packs findable in this process that it has just made durable."""
        with self._lock:
            self._segments.append(("", Segment.build(new)))
            for name, footer in new:
                self._keep_footer(name, footer)

    def save_index(self) -> None:
        """Write what is indexed only in memory as a segment, and merge levels that are full."""
        with self._lock:
            loose = [s for key, s in self._segments if not key and s.packs]
            if not loose:
                return
            merged = loose[0] if len(loose) == 1 else Segment.merge(loose)
            self._replace([s for s in self._segments if not s[0]], merged, level=0)
            while True:
                levels: dict[int, list[tuple[str, Segment]]] = {}
                for item in self._segments:
                    levels.setdefault(item[1].level, []).append(item)
                full = [g for level, g in sorted(levels.items()) if len(g) >= MERGE_FAN_IN and level < 15]
                if not full:
                    return
                self._replace(full[0], Segment.merge([s for _, s in full[0]]), level=full[0][0][1].level + 1)

    def _replace(self, old: list[tuple[str, Segment]], new: Segment, *, level: int) -> None:
        new = Segment(level, new.packs, new.kinds, new.chunks, new.recipes)
        key = f"i/{level}-{secrets.token_hex(16)}"
        self.backend.put(key, [format_segment(new)])
        keys = {k for k, _ in old}
        self._segments = [item for item in self._segments if item[0] not in keys] + [(key, new)]
        for k in keys - {""}:
            self.backend.delete(k)

    def footer(self, name: bytes, kind: PackKind) -> Footer:
        """The footer of a pack; a few hundred are kept.

        Raises:
            KeyMissing, Corrupt
        """
        with self._lock:
            if (found := self._footers.get(name)) is not None:
                self._footers.move_to_end(name)
                return found
        key = pack_key(kind, name)
        size = self.backend.stat(key)
        if size is None:
            raise KeyMissing("a pack is gone", subject=f"{self.name}/{key}")
        subject = f"{self.name}/{key}"
        if size < TRAILER.size:
            raise Corrupt("a pack is shorter than its trailer", subject=subject)
        trailer = packs.parse_trailer(self.backend.get_range(key, size - TRAILER.size, TRAILER.size), subject=subject)
        if trailer.pack_len != size or trailer.kind is not kind:
            raise Corrupt("a pack has not the length or kind it states", subject=subject)
        data = self.backend.get_range(key, trailer.footer_offset, trailer.footer_len)
        found = packs.parse_footer(data, trailer, subject=subject)
        with self._lock:
            self._keep_footer(name, found)
        return found

    def _keep_footer(self, name: bytes, footer: Footer) -> None:
        self._footers[name] = footer
        while len(self._footers) > _FOOTERS_KEPT:
            self._footers.popitem(last=False)

    # ------------------------------------------------------------ looking up

    def find_chunks(self, ids: U8) -> Where:
        """Where chunks (or pages) lie; one vectorised search a segment, confirmed by the footers."""
        return self._find(ids, recipes=False)

    def _find(self, ids: U8, *, recipes: bool) -> Where:
        wanted = prefixes(ids)
        pack = np.full(len(ids), -1, np.int64)
        row = np.full(len(ids), -1, np.int64)
        names: list[tuple[bytes, PackKind]] = []
        for segment in self.segments():
            open_ = np.flatnonzero(pack < 0)
            if not len(open_):
                break
            table: Table = segment.recipes if recipes else segment.chunks
            which, at = table.find(wanted[open_])
            if not len(which):
                continue
            which = open_[which]
            for p in np.unique(table.pack[at]).tolist():
                mine = table.pack[at] == p
                candidates, rows = which[mine], table.row[at[mine]].astype(np.int64)
                name, kind = segment.packs[p], segment.kinds[p]
                try:
                    footer = self.footer(name, kind)
                except KeyMissing:
                    continue  # collected since; another copy, or a refresh, will tell
                stated = _file_ids(footer) if recipes else footer.ids
                good = rows < len(stated)
                candidates, rows = candidates[good], rows[good]
                same = (stated[rows] == ids[candidates]).all(axis=1)
                candidates, rows = candidates[same], rows[same]
                fresh = pack[candidates] < 0
                if fresh.any():
                    pack[candidates[fresh]] = len(names)
                    row[candidates[fresh]] = rows[fresh]
                    names.append((name, kind))
        return Where(tuple(names), pack, row)

    def has_chunks(self, ids: U8) -> npt.NDArray[np.bool_]:
        """bool[n]: whether each chunk is here."""
        return self._find(ids, recipes=False).found

    def chunk_lengths(self, where: Where) -> I64:
        """int64[n]: the raw length of each found chunk, -1 where it is not here."""
        out = np.full(len(where.pack), -1, np.int64)
        for p, (name, kind) in enumerate(where.names):
            mine = np.flatnonzero(where.pack == p)
            out[mine] = self.footer(name, kind).chunk_len[where.row[mine]]
        return out

    def find_recipes(self, ids: U8) -> list[RecipeRow | None]:
        """For each file id the row that names its recipe, or None."""
        where = self._find(ids, recipes=True)
        out: list[RecipeRow | None] = []
        for p, r in zip(where.pack.tolist(), where.row.tolist(), strict=True):
            out.append(None if p < 0 else self.footer(*where.names[p]).recipe(r))
        return out

    def place(self, chunks: Chunks) -> Placement:
        """Where each chunk lies.

        Raises:
            DataMissing: at least one is not here; the message counts them.
        """
        placement, found = self.place_some(chunks)
        if not found.all():
            self.refresh()
            placement, found = self.place_some(chunks)
        missing = int(np.count_nonzero(~found))
        if missing:
            bytes_ = int(chunks.lengths[~found].sum(dtype=np.uint64))
            raise DataMissing(f"{missing:,} chunks ({bytes_:,} bytes) are not in this store", subject=self.name)
        return placement

    def place_some(self, chunks: Chunks) -> tuple[Placement, npt.NDArray[np.bool_]]:
        """As `place`, for those that are here: the mask says which; the others have block 0, offset 0."""
        where = self.find_chunks(chunks.ids)
        n = len(chunks)
        block, offset, found = np.zeros(n, np.uint32), np.zeros(n, np.uint32), np.zeros(n, np.bool_)
        columns: list[tuple[U32, I64, U32, U32, U8]] = []
        used: list[bytes] = []
        base = 0
        for p, (name, kind) in enumerate(where.names):
            mine = np.flatnonzero(where.pack == p)
            footer = self.footer(name, kind)
            rows = where.row[mine]
            right = footer.chunk_len[rows] == chunks.lengths[mine]
            mine, rows = mine[right], rows[right]
            blocks, local = np.unique(footer.chunk_block[rows], return_inverse=True)
            block[mine] = local + base
            offset[mine] = footer.chunk_offset[rows]
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
            used.append(name)
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
            DataMissing: it is not here.
        """
        ids = np.frombuffer(name, np.uint8).reshape(1, 32)
        where = self.find_chunks(ids)
        if not where.found[0]:
            self.refresh()
            where = self.find_chunks(ids)
        if not where.found[0]:
            raise DataMissing(f"page {name.hex()[:12]} is not in this store", subject=self.name)
        pack_name, kind = where.names[int(where.pack[0])]
        footer = self.footer(pack_name, kind)
        row = int(where.row[0])
        b = int(footer.chunk_block[row])
        one = slice(b, b + 1)
        blocks = Blocks(
            kind,
            (pack_name,),
            np.zeros(1, np.uint32),
            footer.block_offset[one],
            footer.packed_len[one],
            footer.raw_len[one],
            footer.codec[one],
        )
        raw = self._page_block(pack_name, b, blocks)
        start = int(footer.chunk_offset[row])
        return raw[start : start + int(footer.chunk_len[row])]

    def _page_block(self, pack_name: bytes, number: int, blocks: Blocks) -> bytes:
        # Pages of one list lie together, so the last block decoded is the likeliest next one.
        last = getattr(self, "_last_page_block", None)
        if last is not None and last[0] == (pack_name, number):
            return bytes(last[1])
        raw = read_blocks(self.backend, blocks, [0])[0]
        self._last_page_block = ((pack_name, number), raw)
        return raw

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
        for i, row in zip(rest.tolist(), self.find_recipes(ids[rest]), strict=True):
            if row is not None and row.size == int(sizes[i]):
                out[i] = self._read_recipe(row)
        return out

    def _read_recipe(self, row: RecipeRow) -> Chunks | None:
        try:
            chunks = read_recipe(PageId(row.root), self.load_page)
        except DataMissing:
            return None  # a writer was killed between the row and the page
        return chunks if chunks.total_bytes == row.size else None

    def single_chunk(self, ids: U8, sizes: I64) -> npt.NDArray[np.bool_]:
        """bool[n]: files that are one chunk of exactly the stated size."""
        if not len(sizes):
            return np.zeros(0, np.bool_)
        where = self.find_chunks(ids)
        return np.asarray((self.chunk_lengths(where) == sizes) & (sizes > 0))

    def holds(self, ids: U8, sizes: I64) -> npt.NDArray[np.bool_]:
        """bool[n]: files of which every chunk is here."""
        held = self.single_chunk(ids, sizes)
        empty = np.frombuffer(EMPTY_FILE, np.uint8)
        held |= (sizes == 0) & (ids == empty).all(axis=1)
        rest = np.flatnonzero(~held & (sizes > 0))
        for i, row in zip(rest.tolist(), self.find_recipes(ids[rest]), strict=True):
            if row is not None and row.size == int(sizes[i]):
                chunks = self._read_recipe(row)
                held[i] = chunks is not None and bool(self.has_chunks(chunks.ids).all())
        return held

    def close(self) -> None:
        """Let go of the backend."""
        self.backend.close()


def _file_ids(footer: Footer) -> U8:
    column = np.ascontiguousarray(footer.recipes["file"]).tobytes()
    return np.frombuffer(column, np.uint8).reshape(-1, 32)


def as_column(ids: Iterable[bytes]) -> U8:
    """Ids as uint8[n, 32]."""
    return np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
