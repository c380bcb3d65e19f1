"""Bringing data from a remote into the local store: only blocks with chunks that are not here, encoded as they are.

A fetch resolves roots to chunks and their places, asks the local index what is missing, reads the missing blocks in
coalesced ranges on many connections, proves every chunk by its id, and appends. That the chunks of a recipe make up
the file is proven before the recipe is kept (see `dvk.store.unproven`): the local store never knows a file that it
could not restore.
Interrupted anywhere, the same call goes on where it stopped, since what is stored is found by id.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import Struct, field

from dvk.backend.contract import KeyMissing
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError, RemoteError
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.codec import decode_block
from dvk.store.content import Content
from dvk.store.locator import Locator
from dvk.store.pages import Chunks, iter_entries
from dvk.store.placement import Blocks, Range, plan_ranges, read_range
from dvk.store.resolve import NotWhole, Part, Resolver
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.store import Store
from dvk.store.threads import brisk
from dvk.store.unproven import Unproven
from dvk.store.writer import Writer
from dvk.timings import Stage, stage

U32 = npt.NDArray[np.uint32]
_RANGE_BYTES = 8 << 20
#: Ranges that are read or being taken apart at a time; bounds memory together with the length of one.
_IN_FLIGHT = 5
#: Roots whose locators are read together.
_ROOTS_AT_ONCE = 16
#: Files up to this size are fetched side by side; a longer one keeps all connections busy by itself.
_SMALL_FILE_BYTES = 16 << 20
#: Chunks of a big file that are looked up and ordered together.
_CHUNKS_AT_ONCE = 65536
#: Recipes that are proven together.
_RECIPES_AT_ONCE = 16384


class Wanted(Struct, frozen=True):
    """A root, or the parts of a folder at and below `under` (an empty prefix: all of it)."""

    root: Root
    under: tuple[bytes, ...] = (b"",)
    name: str = ""  #: for messages


class Fetched(Struct):
    """What a fetch did."""

    roots: int = 0  #: that are now here
    new_bytes: int = 0  #: decoded bytes that were not here before
    moved_bytes: int = 0  #: bytes of data read from the remote
    failures: list[tuple[Wanted, DvkError]] = field(default_factory=list)
    records: dict[str, bytes] = field(default_factory=dict)  #: root text -> the record that its locator names


def is_here(local: Store, wanted: Wanted) -> bool:
    """Whether all pages and chunks of what is wanted are in a store.

    Raises:
        Corrupt: a page of it is damaged there.
    """
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
    remote: Store,
    local: Store,
    wanted: Iterable[Wanted],
    *,
    unproven: Unproven[Wanted] | None = None,
    on_event: OnEvent = ignore,
    dry_run: bool = False,
) -> Fetched:
    """Copy what is missing from `remote` into `local`. Safe to repeat after any interruption.

    A root that cannot be had is reported in `failures`; the others still arrive.

    Args:
        unproven: takes the recipes that came, up to some thousands; whoever gives it settles them. Without it they are
            proven here, and `failures` has what they say of other files than their own.
        dry_run: only look what is missing; `moved_bytes` and `new_bytes` say what it would be.

    Raises:
        RemoteError: the remote does not answer; what came before is kept.
        StorageError, StorageFull: the local store cannot be written.
    """
    out = Fetched()
    missing: list[Wanted] = []
    for w in wanted:
        try:
            if not is_here(local, w):
                missing.append(w)
        except FormatError as error:  # a page of it is damaged here: that is for `repair`, and no reason to stop
            out.failures.append((w, error))
    damaged = len(out.failures)
    with brisk(), Resolver(remote, on_event=on_event) as resolver, Writer(local, dry_run=dry_run) as writer:
        run = _Fetch(remote, resolver, writer, Unproven(local) if unproven is None else unproven, out, on_event)
        try:
            for start in range(0, len(missing), _ROOTS_AT_ONCE):
                run.group(missing[start : start + _ROOTS_AT_ONCE])
        except RemoteError:
            run.close()
            writer.flush()  # a remote that stopped answering is no reason to ask it again for what it gave
            raise
        finally:
            run.close()
        if unproven is None:
            run.prove()
        else:
            writer.flush()
        failed = {w.root.text for w, _ in out.failures}
        out.roots = len(missing) - (len(out.failures) - damaged)
        out.records = {text: rid for text, rid in resolver.records.items() if text not in failed}
        if not dry_run:
            out.new_bytes = writer.written.new_bytes
    return out


class _Fetch:
    def __init__(
        self,
        remote: Store,
        resolver: Resolver,
        writer: Writer,
        unproven: Unproven[Wanted],
        out: Fetched,
        on_event: OnEvent,
    ) -> None:
        self.remote, self.resolver, self.writer, self.unproven, self.out = remote, resolver, writer, unproven, out
        self.meter = Meter(on_event, "download", total_bytes=0)
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="dvk-fetch")
        self._roots = ThreadPoolExecutor(_ROOTS_AT_ONCE, thread_name_prefix="dvk-roots")
        self._lock = threading.Lock()

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self._roots.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------ roots

    def group(self, wanted: Sequence[Wanted]) -> None:
        """Fetch a few roots: their locators together, then small files side by side, the others one by one."""
        locators = self.resolver.locators([w.root for w in wanted])
        small = [w.root.kind == FILE and w.root.size <= _SMALL_FILE_BYTES for w in wanted]
        jobs = [
            (w, self._roots.submit(self._one, w, found))
            for w, found, side_by_side in zip(wanted, locators, small, strict=True)
            if side_by_side
        ]
        failed = len(self.out.failures)
        try:
            together = [w for w, job in jobs if self._arrived(w, job.result)]
        except BaseException:
            for _, job in jobs:
                job.cancel()
            raise
        if len(self.out.failures) > failed:
            # One may have counted on a chunk that another one was about to bring, and did not.
            for w in together:
                self._arrived(w, lambda w=w: self._one(w, None))  # type: ignore[misc]
        for w, found, side_by_side in zip(wanted, locators, small, strict=True):
            if not side_by_side:
                self._arrived(w, lambda w=w, found=found: self._one(w, found))  # type: ignore[misc]
        if len(self.unproven) >= _RECIPES_AT_ONCE:
            self.prove()

    def _arrived(self, w: Wanted, work: Callable[[], None]) -> bool:
        try:
            work()
            return True
        except (DataMissing, FormatError, KeyMissing) as error:
            self.out.failures.append((w, error))
            return False

    def _one(self, w: Wanted, found: Locator | None) -> None:
        """Take everything of one root; what its locator promised and did not hold is searched for."""
        for under in w.under:
            try:
                for part in self.resolver.resolve(w.root, under=under, found=found):
                    self._take(w, part)
            except NotWhole:
                raise  # the search is over
            except (KeyMissing, FormatError) as error:
                self._search(w, under, error)

    def _search(self, w: Wanted, under: bytes, why: DvkError) -> None:
        try:
            for part in self.resolver.search(w.root, under=under, why=why):
                self._take(w, part)
        except KeyMissing as error:
            raise DataMissing(
                "some of its data is gone from this remote",
                subject=error.subject,
                hint="whoever has this version can `dvk push` it",
            ) from error

    def _take(self, w: Wanted, part: Part) -> None:
        """Store the missing chunks of a part, then its pages."""
        # Contents of one part mostly share a placement; those that do are handled together.
        groups: dict[int, list[Content]] = {}
        for content in part.contents:
            if content is not None and len(content.chunks):
                groups.setdefault(id(content.placement), []).append(content)
        for group in groups.values():
            p = group[0].placement
            where = np.concatenate([np.arange(c.first, c.first + len(c.chunks)) for c in group])
            together = Chunks.join([c.chunks for c in group])
            for start in range(0, len(together), _CHUNKS_AT_ONCE):
                stop = min(start + _CHUNKS_AT_ONCE, len(together))
                at = where[start:stop]
                self._chunks(together.slice(start, stop), p.blocks, p.block[at], p.offset[at])
        self.writer.end_of_path()
        self.writer.add_pages([name for name, _ in part.pages], [data for _, data in part.pages])
        for row in part.recipes:
            self.unproven.add(row, w)

    # ------------------------------------------------------------ recipes

    def prove(self) -> None:
        """Make everything durable, and keep those recipes whose chunks together are their file."""
        told = {id(w) for w, _ in self.out.failures}
        for w, error in self.unproven.settle(self.writer):
            if id(w) not in told:
                told.add(id(w))
                self.out.failures.append((w, error))

    # ------------------------------------------------------------ chunks

    def _chunks(self, chunks: Chunks, blocks: Blocks, block: U32, offset: U32) -> None:
        blob = np.ascontiguousarray(chunks.ids).tobytes()
        names = [blob[i : i + ID_BYTES] for i in range(0, len(blob), ID_BYTES)]
        new = np.array(self.writer.choose_new(names, chunks.ids), np.intp)
        if not len(new):
            return
        order = new[np.lexsort((offset[new], block[new]))]
        starts = np.flatnonzero(np.diff(block[order].astype(np.int64), prepend=-1))
        ends = np.append(starts[1:], len(order))
        members: dict[int, list[int]] = {
            int(block[order[a]]): order[a:b].tolist() for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
        }
        ranges = list(plan_ranges(blocks, members, max_range_bytes=_RANGE_BYTES))
        with self._lock:
            self.meter.total_bytes = (self.meter.total_bytes or 0) + sum(r.length for r in ranges)
            if self.writer.dry_run:
                self.out.moved_bytes += sum(r.length for r in ranges)
                self.out.new_bytes += int(chunks.lengths[new].sum(dtype=np.uint64))
                return
        jobs: deque[Future[None]] = deque()
        try:
            for r in ranges:
                jobs.append(self._pool.submit(self._range, r, blocks, members, chunks, names, offset))
                while len(jobs) > _IN_FLIGHT:
                    jobs.popleft().result()
            while jobs:
                jobs.popleft().result()
        except BaseException:
            for job in jobs:
                job.cancel()
            # Another root may need the same chunks; what was stored meanwhile is at worst stored twice.
            self.writer.give_back([names[i] for i in new.tolist()])
            raise

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
            with stage(Stage.HASH, bytes_=sum(lengths), count=len(lengths)):
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
