"""What a pusher knows of a remote: which chunks lie where, and which sections already describe a leaf.

It grows from three sources: locators of earlier versions, packs of this push, and packs of a push that was
interrupted. Columns,
not objects: a push of a terabyte knows sixteen million chunks.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import numpy.typing as npt

from dvk.store.index import prefixes
from dvk.store.locator import Ref, concat_placements, empty_placement
from dvk.store.names import U8
from dvk.store.pack import Footer, PackKind
from dvk.store.pages import Chunks
from dvk.store.placement import Blocks, Placement


class KnownChunks:
    """Chunks on a remote and their places."""

    def __init__(self, *, avoid: Container[bytes] = ()) -> None:
        self._avoid = avoid  # packs that must not be relied on
        self._waiting: list[tuple[U8, Placement]] = []
        self._ids: U8 = np.zeros((0, 32), np.uint8)
        self._placement = empty_placement()
        self._prefix = np.zeros(0, np.uint64)
        self._order = np.zeros(0, np.intp)

    def add(self, chunks: Chunks, placement: Placement) -> None:
        """Chunks whose places a section states."""
        bad = np.array([p in self._avoid for p in placement.blocks.packs], np.bool_)
        if bad.any():
            keep = np.flatnonzero(~bad[placement.blocks.pack[placement.block]])
            placement = Placement(placement.blocks, placement.block[keep], placement.offset[keep])
            chunks = Chunks(chunks.ids[keep], chunks.lengths[keep])
        if len(chunks):
            self._waiting.append((chunks.ids, placement))

    def add_pack(self, name: bytes, footer: Footer) -> None:
        """All chunks of a data pack."""
        if not len(footer.ids):
            return
        count = len(footer.raw_len)
        blocks = Blocks(
            PackKind.DATA,
            (name,),
            np.zeros(count, np.uint32),
            footer.block_offset,
            footer.packed_len,
            footer.raw_len,
            footer.codec,
        )
        self._waiting.append((footer.ids, Placement(blocks, footer.chunk_block, footer.chunk_offset)))

    def _settle(self) -> None:
        if not self._waiting:
            return
        self._placement = concat_placements([self._placement, *(p for _, p in self._waiting)])
        self._ids = np.concatenate([self._ids, *(i for i, _ in self._waiting)])
        self._waiting = []
        prefix = prefixes(self._ids)
        self._order = np.argsort(prefix, kind="stable")
        self._prefix = prefix[self._order]

    def find(self, ids: U8) -> npt.NDArray[np.intp]:
        """intp[n]: the position of each chunk, -1 where it is not known."""
        self._settle()
        wanted = prefixes(ids)
        out = np.full(len(ids), -1, np.intp)
        low = np.searchsorted(self._prefix, wanted, side="left")
        high = np.searchsorted(self._prefix, wanted, side="right")
        step = 0
        # Nearly every prefix stands once; the loop runs as often as the most frequent one.
        while True:
            open_ = np.flatnonzero((out < 0) & (low + step < high))
            if not len(open_):
                return out
            at = self._order[low[open_] + step]
            same = (self._ids[at] == ids[open_]).all(axis=1)
            out[open_[same]] = at[same]
            step += 1

    def place(self, at: npt.NDArray[np.intp]) -> Placement:
        """The placement of chunks found at these positions."""
        return Placement(self._placement.blocks, self._placement.block[at], self._placement.offset[at])


class KnownLeaves:
    """Leaf page id -> the section that describes it, and the record whose packs that section relies on."""

    def __init__(self) -> None:
        self._refs: dict[bytes, tuple[Ref, bytes]] = {}

    def add(self, leaf: bytes, ref: Ref, record: bytes) -> None:
        self._refs.setdefault(leaf, (ref, record))

    def get(self, leaf: bytes) -> tuple[Ref, bytes] | None:
        return self._refs.get(leaf)
