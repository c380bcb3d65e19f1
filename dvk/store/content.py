"""What files consist of and where each part lies: from the index of a store, a locator, a recipe not yet proven.

>>> found = StoreContent(store).contents(ids, sizes)        # doctest: +SKIP
>>> found[0].chunks.total_bytes                             # doctest: +SKIP
1020654073
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from msgspec import Struct

from dvk.backend.contract import Backend
from dvk.errors import Corrupt, DataMissing, DvkError
from dvk.store.names import I64, U8
from dvk.store.pages import Chunks
from dvk.store.placement import Part, Placement
from dvk.store.store import Store


class Content(Struct, frozen=True):
    """A file's chunks and where each lies: `first` is the position of the first one in `placement`."""

    chunks: Chunks
    placement: Placement
    first: int = 0


class ContentSource(Protocol):
    """Knows the chunks of files and where they lie."""

    @property
    def backend(self) -> Backend:
        """Where the blocks are read from."""

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        """For n files what they consist of; None where it is not known or not all here."""


class StoreContent:
    """Content by the index of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._looked_again = False

    @property
    def backend(self) -> Backend:
        return self.store.backend

    def why_missing(self, ids: U8, sizes: I64) -> list[DvkError | None]:
        """For n files that `contents` does not know what is wrong with each that was here once; None: it never was."""
        out = [self.store.why_missing(name.tobytes()) for name in ids]
        if not self.store.notes:
            return out
        found = self.store.chunks_of_many(ids, sizes)
        unknown = np.array([c is None for c in found], np.bool_)
        chunks = [ids[i : i + 1] if c is None else c.ids for i, c in enumerate(found)]
        owner, together = np.repeat(np.arange(len(chunks)), [len(c) for c in chunks]), np.concatenate(chunks)
        gone = np.flatnonzero(~self.store.has_chunks(together))
        was_here = unknown & self.store.knew(ids, recipes=True)
        was_here[owner[gone[self.store.knew(together[gone])]]] = True
        for i in np.flatnonzero(was_here).tolist():
            out[i] = out[i] or DataMissing(
                f"its data ({ids[i].tobytes().hex()[:12]}, {int(sizes[i]):,} bytes) was here and is damaged or gone",
                hint="`dvk pull` brings it from a remote; `dvk repair` also from a clone, or a copy in the work tree",
            )
        return out

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        out = self._contents(ids, sizes)
        missing = np.array([i for i, c in enumerate(out) if c is None and sizes[i] > 0], np.intp)
        if len(missing) and not self._looked_again:
            self._looked_again = True  # once: another process may have added it, or our index is damaged
            self.store.look_again()
            for i, content in zip(missing.tolist(), self._contents(ids[missing], sizes[missing]), strict=True):
                out[i] = content
        return out

    def _contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        return place_all(self.store, self.store.chunks_of_many(ids, sizes))


def place_all(store: Store, found: list[Chunks | None]) -> list[Content | None]:
    """Where the chunks of several files lie in a store; None for a file of which some are not there."""
    # One search for the chunks of all files together.
    placement, here = store.place_some(Chunks.join([c for c in found if c is not None]))
    all_here = bool(here.all())
    out: list[Content | None] = []
    at = 0
    for chunks in found:
        n = 0 if chunks is None else len(chunks)
        whole = chunks is not None and (all_here or here[at : at + n].all())
        out.append(Content(chunks, placement, at) if chunks is not None and whole else None)
        at += n
    return out


def pieces(content: Content, start: int, stop: int, raw: Mapping[int, Part]) -> Iterator[memoryview]:
    """The bytes of chunks `start` to `stop` out of decoded blocks, neighbours in a block joined.

    Raises:
        Corrupt: the placement leads beyond a block.
    """
    at = content.first
    if stop - start == 1:  # most small files; they come by the ten thousand, and arrays of one are slow
        place, length = content.placement, int(content.chunks.lengths[start])
        yield _cut(raw[int(place.block[at + start])], int(place.offset[at + start]), length)
        return
    blocks = content.placement.block[at + start : at + stop]
    offsets = content.placement.offset[at + start : at + stop].astype(np.int64)
    lengths = content.chunks.lengths[start:stop].astype(np.int64)
    if not len(blocks):
        return
    follows = (blocks[1:] == blocks[:-1]) & (offsets[1:] == offsets[:-1] + lengths[:-1])
    starts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    ends = np.concatenate([starts[1:], [len(blocks)]])
    total = np.concatenate([[0], np.cumsum(lengths)])
    for a, b in zip(starts.tolist(), ends.tolist(), strict=True):
        yield _cut(raw[int(blocks[a])], int(offsets[a]), int(total[b] - total[a]))


def _cut(part: Part, begin: int, length: int) -> memoryview:
    begin -= part.begin
    if begin < 0 or begin + length > len(part.data):
        raise Corrupt("a chunk reaches beyond its block")
    return memoryview(part.data)[begin : begin + length]
