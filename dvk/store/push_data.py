"""The data of a push: chunks that are new to the remote, from the local store's blocks into packs of their own.

A block of which every chunk is new is sent as it is, if the remote takes its codec; of the others the new chunks are
encoded again, so that nothing leaves this machine that nobody asked for. Each chunk is proven by its id before it is
sent, and each pack is read back, at least its end and a piece of it, before anything relies on it.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from blake3 import blake3

from dvk.backend.contract import Buffer, KeyMissing
from dvk.errors import Corrupt, FormatError, RemoteError
from dvk.events import Meter, OnEvent
from dvk.ids import PackId
from dvk.store.codec import decode_block
from dvk.store.journal import Journal
from dvk.store.pack import Footer, PackKind, pack_key
from dvk.store.packwriter import PackWriter
from dvk.store.pages import Chunks
from dvk.store.placement import Range, plan_ranges, read_range
from dvk.store.push_plan import Plan
from dvk.store.store import Store
from dvk.store.threads import brisk, default_workers

_IN_FLIGHT = 2
_RANGE_BYTES = 4 << 20
_LOOK_BYTES = 1 << 20  # of each pack that was sent, at any place


class Vanished(RemoteError):
    """A pack that was just put is gone: a collector took it before any record named it, or the remote dropped it."""

    kind = "remote-vanished"


class Uploader:
    """Puts packs on a remote and makes sure that they are there. Its methods may be called from many threads."""

    def __init__(self, remote: Store, journal: Journal, on_event: OnEvent, *, verify_all: bool) -> None:
        self.remote, self.journal, self.verify_all = remote, journal, verify_all
        self.written: dict[str, int] = {}  #: key -> size, of packs that were proven
        self.moved_bytes = 0
        self._lock = threading.Lock()
        self._meter = Meter(on_event, "upload", total_bytes=0)

    def put(self, kind: PackKind, name: PackId, parts: list[Buffer]) -> None:
        """Put a pack and prove that it is there: its end at the expected place and a piece of it, or all of it.

        That nothing follows the end is left to the look at all sizes before the push is confirmed (P5).

        Raises:
            Vanished: it is not there any more. RemoteError: the remote refused, or answers other bytes than were sent.
        """
        key = pack_key(kind, name)
        total = sum(map(len, parts))
        self._add_total(total)
        self.remote.backend.put(key, parts)
        if not self._is_stored(key, parts, total):
            raise RemoteError(
                "the remote does not hold the bytes that were sent",
                subject=f"{self.remote.name}/{key}",
                hint="`dvk remote check` names what is wrong with it; nothing was promised, push again",
            )
        if kind is PackKind.DATA:
            self.journal.add(name, bytes(parts[-2]), bytes(parts[-1]))
        with self._lock:
            self.written[key] = total
        self.count(total)

    def count(self, size: int) -> None:
        """Bytes that were sent."""
        with self._lock:
            self.moved_bytes += size
        self._meter.advance(bytes_=size)

    def _add_total(self, size: int) -> None:
        with self._lock:
            self._meter.total_bytes = (self._meter.total_bytes or 0) + size

    def _is_stored(self, key: str, parts: list[Buffer], total: int) -> bool:
        backend = self.remote.backend
        try:
            if self.verify_all:
                return backend.get(key, max_bytes=total) == b"".join(parts)
            end = bytes(parts[-1])
            if backend.get_range(key, total - len(end), len(end)) != end:
                return False
            size = min(_LOOK_BYTES, total - len(end))
            start = secrets.randbelow(total - len(end) - size + 1)
            return backend.get_range(key, start, size) == _cut(parts, start, size)
        except FormatError:
            return False  # longer or shorter than what was sent
        except KeyMissing as error:
            raise Vanished(
                "a pack that was just sent is not there",
                subject=f"{self.remote.name}/{key}",
                hint="`dvk remote check` names what is wrong with it; nothing was promised, push again",
            ) from error


def _cut(parts: list[Buffer], start: int, size: int) -> bytes:
    """`size` bytes from `start` on of what lies in `parts`, one after the other."""
    out: list[Buffer] = []
    for part in parts:
        piece = memoryview(part)[max(start, 0) : max(start + size, 0)]
        start -= len(part)
        out.append(piece)
    return b"".join(out)


def send_data(plan: Plan, uploader: Uploader) -> None:
    """Send all chunks that the remote is not known to have; they are known when this returns.

    Raises:
        RemoteError: the remote. Corrupt, DataMissing: a local block fails its hash, or is gone.
    """
    jobs: deque[Future[None]] = deque()

    def published(_kind: PackKind, name: PackId, footer: Footer) -> None:
        plan.published(footer.ids, lambda: plan.known.chunks.add_pack(name, footer))

    with (
        brisk(),
        PackWriter(uploader.put, published, in_flight=_IN_FLIGHT, codecs=plan.codecs) as writer,
        ThreadPoolExecutor(default_workers(), thread_name_prefix="dvk-encode") as pool,
    ):
        try:
            for version in plan.out.sent:
                for chunks in plan.known.chunks_to_place(version.root):
                    new = plan.take_new(chunks)
                    if len(new):
                        _copy(plan, writer, pool, jobs, new)
                while jobs:
                    jobs.popleft().result()
                writer.end_of_path()
            writer.flush()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # what is queued would be sent for nothing
            raise


def _copy(plan: Plan, writer: PackWriter, pool: ThreadPoolExecutor, jobs: deque[Future[None]], chunks: Chunks) -> None:
    local = plan.known.local
    placed = local.place(chunks)
    order = np.lexsort((placed.offset, placed.block))
    block = placed.block[order]
    starts = np.flatnonzero(np.diff(block.astype(np.int64), prepend=-1))
    ends = np.append(starts[1:], len(order))
    members = {int(block[a]): order[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)}

    def send(r: Range) -> None:
        for b, encoded in read_range(local.backend, placed.blocks, r):
            rows = members[b]
            lengths = chunks.lengths[rows].tolist()
            ids = [chunks.ids[i].tobytes() for i in rows.tolist()]
            raw = memoryview(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
            pieces = [raw[a : a + n] for a, n in zip(placed.offset[rows].tolist(), lengths, strict=True)]
            if any(blake3(piece).digest() != name for piece, name in zip(pieces, ids, strict=True)):
                raise Corrupt(
                    "a chunk in the local store fails its hash; it was not sent",
                    subject=f"{local.name}/{r.key}",
                    hint="push from another clone that holds it; nothing of it was promised",
                )
            if sum(lengths) == encoded.raw_len:
                writer.add_encoded(encoded.codec, encoded.payload, encoded.raw_len, ids=ids, lengths=lengths)
            else:
                writer.add_new(range(len(ids)), ids, lengths, memoryview(b"".join(pieces)))

    gap = local.backend.capabilities.gap_bytes
    for r in plan_ranges(placed.blocks, members, max_range_bytes=_RANGE_BYTES, max_gap_bytes=gap):
        jobs.append(pool.submit(send, r))
        while len(jobs) > 4 * _IN_FLIGHT:
            jobs.popleft().result()
