"""Whose the chunks of a store are: what several owners have in common, what each has alone, what nobody has.

    counter = UsageCounter(store, owners=2)
    counter.add(root_of_v1, 0)             # bytes of it that are here
    counter.add(root_of_v2, 0)
    counter.add(other_root, 1)
    counter.totals().reclaimable_bytes, counter.owned()

A store of a terabyte has sixteen million chunks, so each pack has one column of owners (4 bytes a chunk) and nothing
is a Python object a chunk. Versions share most pages of their lists: a leaf that was counted is not read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.contract import KeyMissing
from dvk.errors import FormatError
from dvk.ids import ID_BYTES, PageId
from dvk.store.catalog import Index, Mask
from dvk.store.listing import Entries
from dvk.store.names import I64, U8
from dvk.store.pack import BLOCK_HEADER, Footer, PackKind
from dvk.store.pages import Chunks, ListKind, PageRef, leaf_refs, load_leaf
from dvk.store.root import FOLDER, Root
from dvk.store.store import Store

_NOBODY, _SHARED = -1, -2
_PACK_KEY = re.compile(r"p/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class Owned(Struct, frozen=True):
    """Chunks that one owner has and no other: their bytes as they were, and their share of the packed blocks."""

    raw_bytes: int
    stored_bytes: int


class StoreTotals(Struct, frozen=True):
    """A store as a whole. Bytes of chunks are before encoding unless it says stored.

    Attributes:
        packs: data packs; `stored_bytes` is their length together, `other_bytes` that of lists and index.
        used_bytes: chunks that some owner has, each once; `used_stored_bytes` their share of the packed blocks.
        unused_bytes: chunks that no owner has.
        reclaimable_bytes: packed length of the blocks of which no chunk has an owner. A block is freed as a whole, so
            an unused chunk beside a used one does not count.
    """

    packs: int
    stored_bytes: int
    other_bytes: int
    used_bytes: int
    used_stored_bytes: int
    unused_bytes: int
    reclaimable_bytes: int


class UsageCounter:
    """Counts versions of `owners` owners, numbered from 0, against what a store holds. One thread."""

    def __init__(self, store: Store, *, owners: int) -> None:
        self.store = store
        self.owners = owners
        self._columns: dict[bytes, npt.NDArray[np.int32]] = {}  # data pack -> owner of each of its chunks
        self._counted: dict[bytes, tuple[int, int]] = {}  # leaf or file -> who had it, bytes that are here

    def add(self, root: Root, owner: int) -> int:
        """Count one version; how many of its bytes are here, a chunk that it repeats each time.

        Raises:
            DataMissing: the list of a folder's files is not here.
            FormatError: pages are damaged.
        """
        if root.kind != FOLDER:
            ids, sizes = np.frombuffer(root.id, np.uint8).reshape(1, ID_BYTES), np.array([root.size], np.int64)
            return self._once(root.id, owner, lambda: self._files(ids, sizes, owner))
        return sum(self._leaf(ref, owner) for ref in leaf_refs(ListKind.LISTING, PageId(root.id), self.store.load_page))

    def _leaf(self, ref: PageRef, owner: int) -> int:
        def read() -> int:
            entries = load_leaf(ListKind.LISTING, ref, self.store.load_page)
            assert isinstance(entries, Entries)
            data = np.flatnonzero(entries.is_file & (entries.sizes > 0))
            return self._files(entries.ids[data], entries.sizes[data], owner)

        return self._once(ref.id, owner, read)

    def _once(self, name: bytes, owner: int, count: Callable[[], int]) -> int:
        """What is here of something that may have been counted, for this owner or for another."""
        known = self._counted.get(name)
        if known is not None and known[0] in (owner, _SHARED):
            return known[1]
        here = count()
        self._counted[name] = (owner if known is None else _SHARED, here)
        return here

    def _files(self, ids: U8, sizes: I64, owner: int) -> int:
        chunks = Chunks.join([c for c in self.store.chunks_of_many(ids, sizes) if c is not None])
        here = 0

        def accept(kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
            return np.asarray((footer.chunk_len[rows] == chunks.lengths[which]) & (kind is PackKind.DATA))

        for hit in self.store.hits(chunks.ids, accept=accept):
            column = self._columns.get(hit.name)
            if column is None:
                column = self._columns[hit.name] = np.full(len(hit.footer.ids), _NOBODY, np.int32)
            now = column[hit.rows]
            column[hit.rows] = np.where((now == _NOBODY) | (now == owner), owner, _SHARED)
            here += int(chunks.lengths[hit.which].sum(dtype=np.int64))
        return here

    # ------------------------------------------------------------ the answer

    def owned(self) -> list[Owned]:
        """For each owner what it has alone."""
        raw, stored = np.zeros(self.owners), np.zeros(self.owners)
        for name, column in self._columns.items():
            footer = self.store.footer(name, PackKind.DATA)
            mine = column >= 0
            raw += np.bincount(column[mine], weights=footer.chunk_len[mine], minlength=self.owners)
            stored += np.bincount(column[mine], weights=_shares(footer)[mine], minlength=self.owners)
        return [Owned(round(r), round(s)) for r, s in zip(raw.tolist(), stored.tolist(), strict=True)]

    def totals(self) -> StoreTotals:
        """The store as a whole; packs that a collector takes away meanwhile are left out."""
        packs = stored = used = unused = reclaimable = 0
        used_stored = 0.0
        for item in self.store.backend.list("p/"):
            if not (key := _PACK_KEY.fullmatch(item.key)):
                continue
            name = bytes.fromhex(key[2])
            try:
                footer = self.store.footer(name, PackKind.DATA)
            except (KeyMissing, FormatError):
                continue
            packs += 1
            stored += item.size_bytes
            column = self._columns.get(name)
            live = column != _NOBODY if column is not None else np.zeros(len(footer.ids), np.bool_)
            used += int(footer.chunk_len[live].sum(dtype=np.int64))
            unused += int(footer.chunk_len[~live].sum(dtype=np.int64))
            used_stored += float(_shares(footer)[live].sum())
            needed = np.zeros(len(footer.raw_len), np.bool_)
            needed[footer.chunk_block[live]] = True
            dead = footer.packed_len[~needed]
            reclaimable += int(dead.sum(dtype=np.int64)) + len(dead) * BLOCK_HEADER.size
        other = sum(item.size_bytes for tree in ("m/", "i/") for item in self.store.backend.list(tree))
        return StoreTotals(packs, stored, other, used, round(used_stored), unused, reclaimable)


def _shares(footer: Footer) -> npt.NDArray[np.float64]:
    """float64[n]: for each chunk its part of the packed length of its block."""
    ratio = footer.packed_len / np.maximum(footer.raw_len, 1)
    return np.asarray(footer.chunk_len * ratio[footer.chunk_block], np.float64)
