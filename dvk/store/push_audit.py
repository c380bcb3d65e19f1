"""Whether a remote still has what it promised: what versions rely on that a live record covers.

A record says what a push relied on, and a push that finds one sends nothing. If packs vanished from the bucket since,
or rot there, everybody would go on believing in them until somebody needs the data. So

    vanished(backend, keys, pool)      # each push: do the packs exist? A question for each, or one listing for many
    Audit(remote).look(root)           # `--verify full`: reads it all back, as a clone would, and keeps nothing

The first costs one small request for each pack (64 MiB) that the records of these versions name, and the records that
they rely on, at most `ASKED_ONE_BY_ONE` of them; beyond that, a listing of all packs takes one request for each
thousand. A clone that pushes its whole history has all those records anyway; one that pushes a single version of a
long one reads them step by step.

The second reads each block that is relied on once, proves each chunk in it by its id, the page packs by their names and
the footers by their checksums. What is found to be bad is sent again by the push that asked, as far as this clone holds
it (`push_plan`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import Corrupt, DvkError, FormatError
from dvk.events import Meter, OnEvent, ignore
from dvk.store.codec import decode_block
from dvk.store.content import Content
from dvk.store.index import prefixes
from dvk.store.known import U64, SeenOnce
from dvk.store.locator import Locator
from dvk.store.names import U8, distinct
from dvk.store.pack import PackKind, pack_key
from dvk.store.pages import Chunks
from dvk.store.placement import Blocks, Range, plan_ranges, read_range
from dvk.store.resolve import Resolver
from dvk.store.root import FILE, Root
from dvk.store.store import Store, as_column

#: More packs than this are looked up in a listing of all.
ASKED_ONE_BY_ONE = 256
_RANGE_BYTES = 8 << 20
_IN_FLIGHT = 4


def vanished(backend: Backend, keys: Collection[str], pool: ThreadPoolExecutor) -> set[str]:
    """Those of some pack keys that are not there, or empty, as a sync or a full disk leaves objects behind."""
    asked = sorted(keys)
    if len(asked) > ASKED_ONE_BY_ONE:
        there = {item.key for kind in PackKind for item in backend.list(f"{kind.prefix}/") if item.size_bytes}
        # A key that is not listed is asked for, too: nothing is sent again on the word of one listing.
        asked = [key for key in asked if key not in there]
    return {key for key, size in zip(asked, pool.map(backend.stat, asked), strict=True) if not size}


class Audit:
    """Reads versions back from a remote. Changes nothing. Not for several threads at once.

    Args:
        only: which of some chunks (uint8[n, 32]) are to be read; all by default.
        on_proven: hears of chunks that were read and are what their ids say; from several threads, one at a time.
    """

    def __init__(
        self,
        remote: Store,
        *,
        on_event: OnEvent = ignore,
        only: Callable[[U8], npt.NDArray[np.bool_]] | None = None,
        on_proven: Callable[[U8], None] | None = None,
    ) -> None:
        self.remote = remote
        self._only, self._on_proven = only, on_proven
        self._telling = threading.Lock()
        self.bad: dict[str, DvkError] = {}  #: pack key -> what is wrong with it
        self._resolver = Resolver(remote, on_event=on_event)
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="dvk-audit")
        self._meter = Meter(on_event, "verify", total_bytes=0)
        self._looked_at: set[str] = set()  # packs whose pages or footer were read
        self._keys: set[str] = set()  # of the root at hand
        self._proven = SeenOnce()

    @property
    def read_bytes(self) -> int:
        """Bytes that were read back so far."""
        return self._meter.done_bytes

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self._resolver.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def locator(self, root: Root) -> Locator | None:
        """What leads to a root; None when nothing does. Raises FormatError."""
        return self._resolver.reader.locator(root)

    def look(self, root: Root) -> dict[str, str] | None:
        """Read back all that a clone would need of a root: the packs that are bad, with what is wrong with each.

        None when its locator is not there or of no use, though no pack that it leads to is bad.

        Raises:
            RemoteError: the remote does not answer.
        """
        if root.kind == FILE and not root.size:
            return {}
        self._keys = set()
        reader = self._resolver.reader
        useful = False
        try:
            found = reader.locator(root)
            if found is not None:
                for part in self._resolver.by_locator(root, found):
                    self._part([c for c in part.contents if c is not None and len(c.chunks)])
                useful = True
        except (KeyMissing, FormatError):
            pass  # a page pack may be why
        # Even where a locator holds its sections itself, the page packs must be there: a search starts from them.
        self._page_packs(reader.take_used())
        bad = {key: self.bad[key].message for key in sorted(self._keys) if key in self.bad}
        return bad if bad or useful else None

    # ------------------------------------------------------------ packs

    def _page_packs(self, names: Collection[bytes]) -> None:
        self._each_once(PackKind.PAGES, names, self._page_pack)

    def _each_once(self, kind: PackKind, names: Collection[bytes], look: Callable[[bytes], None]) -> None:
        """Look at those packs that no version before had; what is wrong with one goes into `bad`."""
        keys = {pack_key(kind, name): name for name in sorted(names)}
        fresh = keys.keys() - self._looked_at
        self._keys |= keys.keys()
        self._looked_at |= fresh

        def try_(key: str) -> None:
            try:
                look(keys[key])
            except (KeyMissing, FormatError) as error:
                self.bad[key] = error

        list(self._pool.map(try_, sorted(fresh)))

    def _page_pack(self, name: bytes) -> None:
        """Read a page pack whole; its name is the hash of its bytes."""
        backend, key = self.remote.backend, pack_key(PackKind.PAGES, name)
        subject = f"{self.remote.name}/{key}"
        size = backend.stat(key)
        if size is None:
            raise KeyMissing("a pack is gone", subject=subject)
        self._meter.total_bytes = (self._meter.total_bytes or 0) + size
        hasher = blake3()
        for at in range(0, size, _RANGE_BYTES):
            piece = backend.get_range(key, at, min(_RANGE_BYTES, size - at))
            hasher.update(piece)
            self._meter.advance(bytes_=len(piece))
        if hasher.digest() != name:
            raise Corrupt("a pack fails its hash", subject=subject)

    def _footer(self, name: bytes) -> None:
        self.remote.footer(name, PackKind.DATA)

    # ------------------------------------------------------------ data

    def _part(self, contents: list[Content]) -> None:
        # Contents of one part mostly share a placement; those that do are handled together.
        groups: dict[int, list[Content]] = {}
        for c in contents:
            groups.setdefault(id(c.placement), []).append(c)
        for group in groups.values():
            self._contents(group)

    def _contents(self, group: list[Content]) -> None:
        """Prove the chunks of contents with one placement, as far as no other version had them in the same place."""
        p = group[0].placement
        where = np.concatenate([np.arange(c.first, c.first + len(c.chunks)) for c in group])
        chunks = Chunks.join([c.chunks for c in group])
        if self._only is not None:
            mine = np.flatnonzero(self._only(chunks.ids))
            where, chunks = where[mine], Chunks(chunks.ids[mine], chunks.lengths[mine])
        block, offset = p.block[where], p.offset[where]
        used = {p.blocks.packs[i] for i in distinct(p.blocks.pack[block]).tolist()}
        self._each_once(PackKind.DATA, used, self._footer)
        new = self._proven.first_of(_places(chunks.ids, p.blocks, block, offset))
        order = new[np.lexsort((offset[new], block[new]))]
        if len(order):
            starts = np.flatnonzero(np.diff(block[order].astype(np.int64), prepend=-1))
            ends = np.append(starts[1:], len(order))
            members = {int(block[order[a]]): order[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)}
            ranges = list(plan_ranges(p.blocks, members, max_range_bytes=_RANGE_BYTES))
            self._meter.total_bytes = (self._meter.total_bytes or 0) + sum(r.length for r in ranges)
            list(self._pool.map(lambda r: self._range(r, p.blocks, members, chunks, offset), ranges))

    def _range(
        self,
        r: Range,
        blocks: Blocks,
        members: dict[int, npt.NDArray[np.intp]],
        chunks: Chunks,
        offset: npt.NDArray[np.uint32],
    ) -> None:
        if r.key in self.bad:
            return
        try:
            for b, encoded in read_range(self.remote.backend, blocks, r):
                raw = memoryview(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
                for i in members[b].tolist():
                    at, length = int(offset[i]), int(chunks.lengths[i])
                    if blake3(raw[at : at + length]).digest() != chunks.ids[i].tobytes():
                        raise Corrupt("a chunk fails its hash", subject=f"{self.remote.name}/{r.key}")
                if self._on_proven is not None:
                    with self._telling:
                        self._on_proven(chunks.ids[members[b]])
        except (KeyMissing, FormatError) as error:
            self.bad[r.key] = error
        self._meter.advance(bytes_=r.length)


def _places(ids: U8, blocks: Blocks, block: npt.NDArray[np.uint32], offset: npt.NDArray[np.uint32]) -> U64:
    """uint64[n]: a number for each chunk in its place, the same for no two others that anybody will meet."""
    pack = prefixes(as_column(blocks.packs))[blocks.pack[block]]
    at = (blocks.offset[block].astype(np.uint64) << np.uint64(20)) + offset
    mixed: U64 = prefixes(ids) ^ pack ^ (at * np.uint64(0x9E3779B97F4A7C15))
    return mixed
