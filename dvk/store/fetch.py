"""Bringing data from a remote into the local store: only blocks with chunks that are not here, encoded as they are.

A fetch resolves roots to chunks and their places, asks the local index what is missing, reads the missing blocks in coalesced
ranges on many connections, proves every chunk by its id, and appends. Interrupted anywhere, the same call goes on where
it stopped, since what is stored is found by id.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.codec import decode_block
from dvk.store.locator import FOLDER
from dvk.store.pages import Chunks, iter_entries
from dvk.store.placement import Blocks, Range, plan_ranges, read_range
from dvk.store.resolve import CONNECTIONS, Part, Resolver, Root
from dvk.store.store import Store
from dvk.store.writer import Writer

U32 = npt.NDArray[np.uint32]
_RANGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A root, or the parts of a folder at and below `under` (an empty prefix: all of it)."""

    root: Root
    under: tuple[bytes, ...] = (b"",)
    name: str = ""  #: for messages


@dataclass(slots=True)
class Fetched:
    """What a fetch did."""

    roots: int = 0  #: that are now here
    new_bytes: int = 0  #: decoded bytes that were not here before
    moved_bytes: int = 0  #: bytes of data read from the remote
    failures: list[tuple[Wanted, DvkError]] = field(default_factory=list)
    records: dict[str, bytes] = field(default_factory=dict)  #: root text -> the record that its locator names


def is_here(local: Store, wanted: Wanted) -> bool:
    """Whether all pages and chunks of what is wanted are in a store."""
    root = wanted.root
    if root.kind != FOLDER:
        ids = np.frombuffer(root.id, np.uint8).reshape(1, ID_BYTES)
        return bool(local.holds(ids, np.array([root.size], np.int64))[0])
    try:
        for under in wanted.under:
            for entries in iter_entries(PageId(root.id), local.load_page, under=under):
                data = entries.is_file
                if not local.holds(entries.ids[data], entries.sizes[data]).all():
                    return False
    except DataMissing:
        return False
    return True


def fetch(
    remote: Store, local: Store, wanted: Iterable[Wanted], *, on_event: OnEvent = ignore, dry_run: bool = False
) -> Fetched:
    """Copy what is missing from `remote` into `local`. Safe to repeat after any interruption.

    A root that cannot be had is reported in `failures`; the others still arrive.
    """
    out = Fetched()
    missing = [w for w in wanted if not is_here(local, w)]
    with Resolver(remote, on_event=on_event) as resolver, Writer(local, dry_run=dry_run) as writer:
        run = _Fetch(remote, writer, out, on_event)
        try:
            for w in missing:
                try:
                    for under in w.under:
                        for part in resolver.resolve(w.root, under=under):
                            run.take(part)
                    out.roots += 1
                except (DataMissing, FormatError) as error:
                    out.failures.append((w, error))
        finally:
            run.close()
        writer.flush()
        failed = {w.root.text for w, _ in out.failures}
        out.records = {text: rid for text, rid in resolver.records.items() if text not in failed}
        out.new_bytes = writer.written.new_bytes
    return out


class _Fetch:
    def __init__(self, remote: Store, writer: Writer, out: Fetched, on_event: OnEvent) -> None:
        self.remote, self.writer, self.out = remote, writer, out
        self.meter = Meter(on_event, "download", total_bytes=0)
        self._pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-fetch")
        self._lock = threading.Lock()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, part: Part) -> None:
        """Store the missing chunks of a part, then its pages."""
        chunks = [c.chunks for c in part.contents if c is not None]
        if chunks:
            # Contents of one part mostly share a placement; those that do are handled together.
            groups: dict[int, list[int]] = {}
            known = [c for c in part.contents if c is not None]
            for i, c in enumerate(known):
                groups.setdefault(id(c.placement), []).append(i)
            for group in groups.values():
                placement = known[group[0]].placement
                where = np.concatenate([np.arange(known[i].first, known[i].first + len(chunks[i])) for i in group])
                together = Chunks.join([chunks[i] for i in group])
                self._chunks(together, placement.blocks, placement.block[where], placement.offset[where])
        for kind_id, data in part.pages:
            self.writer.add_page(kind_id, data)
        for row in part.recipes:
            self.writer.add_recipe(row)

    def _chunks(self, chunks: Chunks, blocks: Blocks, block: U32, offset: U32) -> None:
        blob = np.ascontiguousarray(chunks.ids).tobytes()
        names = [blob[i : i + ID_BYTES] for i in range(0, len(blob), ID_BYTES)]
        new = np.array(self.writer.choose_new(names, chunks.ids), np.intp)
        if not len(new):
            return
        order = new[np.lexsort((offset[new], block[new]))]
        starts = np.flatnonzero(np.diff(block[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        members: dict[int, list[int]] = {
            int(block[order[a]]): order[a:b].tolist() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        }
        ranges = list(plan_ranges(blocks, members, max_range_bytes=_RANGE_BYTES))
        self.meter.total_bytes = (self.meter.total_bytes or 0) + sum(r.length for r in ranges)
        jobs: deque[Future[None]] = deque()
        try:
            for r in ranges:
                jobs.append(self._pool.submit(self._range, r, blocks, members, chunks, names, offset))
                while len(jobs) > CONNECTIONS + 4:
                    jobs.popleft().result()
            while jobs:
                jobs.popleft().result()
        except BaseException:
            for job in jobs:
                job.cancel()
            # Another root may need the same chunks; what was stored meanwhile is at worst stored twice.
            self.writer.give_back([names[i] for i in new.tolist()])
            raise
        self.writer.end_of_path()

    def _range(
        self,
        r: Range,
        blocks: Blocks,
        members: dict[int, list[int]],
        chunks: Chunks,
        names: Sequence[bytes],
        offset: U32,
    ) -> None:
        """Read one range and store the wanted chunks of its blocks, each proven by its id."""
        for b, encoded in read_range(self.remote.backend, blocks, r):
            raw = memoryview(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
            rows = members[b]
            lengths = chunks.lengths[rows].tolist()
            ids = [names[i] for i in rows]
            pieces = []
            for i, at, length in zip(rows, offset[rows].tolist(), lengths, strict=True):
                piece = raw[at : at + length]
                if blake3(piece).digest() != names[i]:
                    raise Corrupt("a chunk on the remote fails its hash", subject=f"{self.remote.name}/{r.key}")
                pieces.append(piece)
            # A block of which every byte is wanted is kept as it is; encoding is the expensive part.
            ends = np.cumsum(lengths)
            whole = int(ends[-1]) == len(raw) and offset[rows].tolist() == (ends - lengths).tolist()
            if whole:
                self.writer.add_encoded(encoded.codec, encoded.payload, encoded.raw_len, ids=ids, lengths=lengths)
            else:
                self.writer.add_owed(ids, lengths, memoryview(b"".join(pieces)))
        with self._lock:
            self.out.moved_bytes += r.length
        self.meter.advance(bytes_=r.length)
