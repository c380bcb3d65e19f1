"""What a pusher knows of a remote: which chunks lie where, and which sections already describe a leaf.

It grows from three sources: locators of earlier versions, packs of this push, and packs of a push that was
interrupted. A push of a terabyte knows sixteen million chunks, so they are columns, not objects, kept as a few sorted
runs: a new run is merged into its neighbour once it is no longer small beside it, and no chunk is sorted more often
than the logarithm of their number.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.store.index import prefixes
from dvk.store.locator import Ref, compact, concat_placements
from dvk.store.names import U8
from dvk.store.pack import Footer, PackKind
from dvk.store.pages import Chunks
from dvk.store.placement import Blocks, Placement

U64 = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]


class _Run(Struct, frozen=True):
    """n chunks in the order of their prefixes: ids uint8[n, 32], prefix uint64[n], placement of n."""

    ids: U8
    prefix: U64
    placement: Placement

    @classmethod
    def of(cls, ids: U8, placement: Placement) -> _Run:
        prefix = prefixes(ids)
        order = np.argsort(prefix, kind="stable")
        p = placement
        return cls(ids[order], prefix[order], Placement(p.blocks, p.block[order], p.offset[order]))

    def __len__(self) -> int:
        return len(self.prefix)

    def find(self, ids: U8, wanted: U64) -> Rows:
        """intp[n]: the row of each chunk, -1 where it is not in this run."""
        out = np.full(len(ids), -1, np.intp)
        low = np.searchsorted(self.prefix, wanted, side="left")
        high = np.searchsorted(self.prefix, wanted, side="right")
        # Nearly every prefix stands once; the loop runs as often as the most frequent one.
        open_ = np.flatnonzero(low < high)
        while len(open_):
            at = low[open_]
            same = (self.ids[at] == ids[open_]).all(axis=1)
            out[open_[same]] = at[same]
            low[open_] += 1
            open_ = open_[~same & (low[open_] < high[open_])]
        return out


class KnownChunks:
    """Chunks on a remote and their places. Its methods may be called from many threads."""

    def __init__(self, *, avoid: Container[bytes] = ()) -> None:
        self._avoid = avoid  # packs that must not be relied on
        self._lock = threading.Lock()
        self._waiting: list[tuple[U8, Placement]] = []
        self._runs: list[_Run] = []  # from long to short

    def add(self, chunks: Chunks, placement: Placement) -> None:
        """Chunks whose places a section states."""
        bad = np.array([p in self._avoid for p in placement.blocks.packs], np.bool_)
        ids = chunks.ids
        if bad.any():
            keep = np.flatnonzero(~bad[placement.blocks.pack[placement.block]])
            placement = Placement(placement.blocks, placement.block[keep], placement.offset[keep])
            ids = ids[keep]
        if len(ids):
            with self._lock:
                self._waiting.append((ids, placement))

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
        with self._lock:
            self._waiting.append((footer.ids, Placement(blocks, footer.chunk_block, footer.chunk_offset)))

    def _settle(self) -> None:
        if self._waiting:
            # A section adds its files one by one: what shares a table of blocks goes together first.
            groups: dict[int, list[tuple[U8, Placement]]] = {}
            for ids, placement in self._waiting:
                groups.setdefault(id(placement.blocks), []).append((ids, placement))
            parts = [
                Placement(
                    g[0][1].blocks, np.concatenate([p.block for _, p in g]), np.concatenate([p.offset for _, p in g])
                )
                for g in groups.values()
            ]
            ids = np.concatenate([i for g in groups.values() for i, _ in g])
            self._runs.append(_Run.of(ids, compact(concat_placements(parts))))
            self._waiting = []
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            b, a = self._runs.pop(), self._runs.pop()
            self._runs.append(_Run.of(np.concatenate([a.ids, b.ids]), concat_placements([a.placement, b.placement])))

    def _find(self, ids: U8) -> Iterator[tuple[_Run, Rows, Rows]]:
        """For each run that holds some: the run, the positions in `ids`, their rows there."""
        self._settle()
        wanted = prefixes(ids)
        open_ = np.arange(len(ids))
        for run in self._runs:
            rows = run.find(ids[open_], wanted[open_])
            hit = rows >= 0
            if hit.any():
                yield run, open_[hit], rows[hit]
                open_ = open_[~hit]
            if not len(open_):
                return

    def holds(self, ids: U8) -> npt.NDArray[np.bool_]:
        """bool[n]: which chunks are known."""
        out = np.zeros(len(ids), np.bool_)
        with self._lock:
            for _, positions, _ in self._find(ids):
                out[positions] = True
        return out

    def place(self, ids: U8) -> Placement | None:
        """Where n chunks lie, with only the blocks that they use; None when one of them is not known."""
        parts: list[Placement] = []
        positions: list[Rows] = []
        with self._lock:
            for run, at, rows in self._find(ids):
                p = run.placement
                parts.append(compact(Placement(p.blocks, p.block[rows], p.offset[rows])))
                positions.append(at)
        if sum(map(len, positions)) != len(ids):
            return None
        together = concat_placements(parts)
        if not parts:
            return together
        order = np.argsort(np.concatenate(positions))
        return compact(Placement(together.blocks, together.block[order], together.offset[order]))


class SeenOnce:
    """Which of many chunks come for the first time: sorted 8-byte prefixes, enough for a count that people read."""

    def __init__(self) -> None:
        self._runs: list[U64] = []

    def first(self, ids: U8) -> Rows:
        """Positions of chunks that were in no call before, each once; from now on they were."""
        return self.first_of(prefixes(ids))

    def first_of(self, numbers: U64) -> Rows:
        """As `first`, of things that a number of 64 bits stands for."""
        fresh, at = np.unique(numbers, return_index=True)
        for run in self._runs:
            where = np.minimum(np.searchsorted(run, fresh), len(run) - 1)
            new = run[where] != fresh
            fresh, at = fresh[new], at[new]
        if len(fresh):
            self._runs.append(fresh)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            b, a = self._runs.pop(), self._runs.pop()
            self._runs.append(np.sort(np.concatenate([a, b])))
        return np.sort(at)


class KnownLeaves:
    """Leaf page id -> the section that describes it, and the record whose packs that section relies on."""

    def __init__(self, *, avoid: Container[bytes] = ()) -> None:
        self._avoid = avoid  # packs that must not be relied on
        self._refs: dict[bytes, tuple[Ref, bytes]] = {}

    def add(self, leaf: bytes, ref: Ref, record: bytes) -> None:
        """Remember a section, if its pack may be relied on."""
        if ref.pack not in self._avoid:
            self._refs.setdefault(leaf, (ref, record))

    def get(self, leaf: bytes) -> tuple[Ref, bytes] | None:
        return self._refs.get(leaf)
