"""What a push has to send: which versions a live record covers, and what is new in the others (P1).

A version is covered when a record that is live now names it and its locator is there; what this clone remembers and
what a locator claims is only where to look. Where that record is of another project, or about to be so old that a
collector may ask whether anybody wants it, a record alone says that this project does. Of the rest, everything is new
that neither an earlier version on the remote nor the journal of an interrupted push has.

>>> plan = Plan(local, remote, versions, state, avoid=Avoid())     # doctest: +SKIP
>>> plan.make().new_bytes                                           # doctest: +SKIP
28114002
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import Struct, field

from dvk.backend.contract import KeyMissing
from dvk.errors import DataMissing, DvkError, FormatError
from dvk.events import Note, OnEvent, ignore
from dvk.store.codec import codec_numbers
from dvk.store.descriptor import Descriptor
from dvk.store.journal import Journal
from dvk.store.known import SeenOnce
from dvk.store.locator import Locator, locator_key
from dvk.store.names import U8
from dvk.store.pack import MAX_PACK_BYTES, PackKind, pack_key
from dvk.store.pages import Chunks
from dvk.store.push_audit import Audit, vanished
from dvk.store.push_known import Known
from dvk.store.root import FILE, Root
from dvk.store.roots import ConfirmedRoots, Records
from dvk.store.section_reader import CONNECTIONS, SectionReader
from dvk.store.store import Store

#: A covering record that is older is written again for what Git may not have told others of: half of the time that
#: collectors leave every record by default.
RENEW_AFTER_S = 15 * 86400
#: Clocks that are further apart are not both right.
_CLOCKS_DIFFER_S = 86400


class Owner(Struct, frozen=True):
    """For whom a push is.

    `unheard`: root texts that Git may not have told others of; asked only where a record is old.
    """

    project: str = ""
    unheard: Callable[[], Collection[str]] = tuple


class Version(Struct, frozen=True):
    """A root to send, and earlier versions of the same path, nearest first, that the remote may know."""

    root: Root
    previous: tuple[Root, ...] = ()
    name: str = ""


class Pushed(Struct):
    """What a push did, or would do when it was only planned."""

    covered: list[Version] = field(default_factory=list)  #: a live record holds them already
    sent: list[Version] = field(default_factory=list)
    absent: list[tuple[Version, DvkError]] = field(default_factory=list)  #: neither here nor there
    new_bytes: int = 0  #: decoded bytes of chunks that the remote was not known to have
    moved_bytes: int = 0  #: of packs and locators
    packs: int = 0
    record: bytes = b""
    lost: tuple[str, ...] = ()  #: keys of packs that live records promised and that were gone or damaged
    read_back_bytes: int = 0  #: of what was there before, where everything was to be read back


class Avoid(Struct):
    """What must not be relied on, since it was condemned, gone or retired when an attempt of this push looked."""

    packs: set[bytes] = field(default_factory=set)
    records: set[bytes] = field(default_factory=set)
    lost: dict[str, str] = field(default_factory=dict)  #: packs that live records promised: key -> what is wrong


class Plan:
    """What one attempt to push is about. `make` fills it; sending adds the packs that it has put to `known.chunks`."""

    def __init__(
        self,
        local: Store,
        remote: Store,
        versions: Sequence[Version],
        state: str,
        *,
        avoid: Avoid,
        on_event: OnEvent = ignore,
        audit: Audit | None = None,
        owner: Owner | None = None,
    ) -> None:
        self.local, self.remote, self.state = local, remote, state
        self.owner = owner or Owner()
        self.avoid, self.on_event = avoid, on_event
        self.audit = audit  #: reads back what is covered, and what an earlier run sent
        self.versions = list({v.root: v for v in versions}.values())  # one path's version may be another's too
        self.out = Pushed()
        self.adopted: dict[str, bytes] = {}  #: covered root -> the record that covers it
        self.alone: dict[str, bytes] = {}  #: covered root that needs a record of its own -> the one to rely on
        self.refuted: list[str] = []  #: roots that this clone believed to be confirmed
        self.resumed: dict[str, int] = {}  #: packs of an earlier push that did not get to its end -> size
        self.stale: list[bytes] = []  #: packs in the journal that are not there
        self._sending: dict[Root, Version] = {}
        self._earlier: dict[Root, Locator | None] = {}
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()
        self.store: Descriptor | None = None
        self.pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-push")
        self.reader = SectionReader(remote)
        self._records = Records(remote.backend, avoid=avoid.records)
        self._misled: dict[Root, bytes] = {}  # roots whose locator is of no use, though their record is live
        self._asked: set[bytes] = set()  # records whose packs were asked for
        self._gone: set[str] = set()  # those of them that are not there
        self.known = Known(local, self.reader, self._records.is_live, avoid=avoid.packs)

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self.reader.close()
        self.pool.shutdown(wait=True, cancel_futures=True)

    @property
    def confirmed(self) -> ConfirmedRoots:
        """The roots that this clone saw confirmed on the remote; only once there is a store."""
        return ConfirmedRoots(self.state, self._store().store)

    @property
    def journal(self) -> Journal:
        """The packs sent to the remote by a push that was cut; only once there is a store."""
        return Journal(self.state, self._store().store)

    def _store(self) -> Descriptor:
        assert self.store is not None
        return self.store

    @property
    def codecs(self) -> frozenset[int]:
        """The codecs that the remote store takes; once it exists."""
        assert self.store is not None
        return codec_numbers(self.store.codecs)

    # ------------------------------------------------------------ P1

    def make(self) -> Pushed:
        """Work out what is covered, what to send, what cannot be sent. Changes nothing, here or there."""
        out = self.out
        self.store = self.remote.describe()
        known: dict[str, bytes] = {}
        if self.store is not None:
            self.store.require("write", subject=self.remote.name)
            self._resume()
            known = self.confirmed.read()
        found = list(self.pool.map(lambda v: self._look(v.root, known), self.versions))
        while self._distrust([(v.root, rid) for v, (rid, _) in zip(self.versions, found, strict=True) if rid]):
            found = list(self.pool.map(lambda v: self._look(v.root, known), self.versions))
        rest: list[tuple[Version, Locator | None]] = []
        for version, (record, locator) in zip(self.versions, found, strict=True):
            if record is None:
                rest.append((version, locator))
                if version.root.text in known:
                    self.refuted.append(version.root.text)
            else:
                out.covered.append(version)
                if record:
                    self.adopted[version.root.text] = record
        self._find_alone()
        self._sending = {v.root: v for v, _ in rest}
        seen = SeenOnce()
        for version, locator in rest:
            try:
                self._learn(version, locator)
                out.new_bytes += self._count(version.root, seen)
                out.sent.append(version)
            except DataMissing as error:
                out.absent.append((version, error))
        return out

    def _find_alone(self) -> None:
        """Which covered roots need a record of this project, or a younger one."""
        old: dict[str, bytes] = {}
        now = int(time.time())
        for root, rid in self.adopted.items():
            record = self._records.covering(rid, root, store=self._store().store)
            if record is None or record.project != self.owner.project:
                self.alone[root] = rid
            # A time that is yet to come tells of a clock that is wrong, ours or theirs: nothing is known of the age.
            elif not now - RENEW_AFTER_S < self._records.time(rid, record) <= now + _CLOCKS_DIFFER_S:
                old[root] = rid
        if old:
            unheard = frozenset(self.owner.unheard())
            self.alone |= {root: rid for root, rid in old.items() if root in unheard}

    def _resume(self) -> None:
        """Take in packs of an interrupted push that are still there."""
        for sent, there in self.pool.map(lambda s: (s, self._is_there(s.name, s.size_bytes)), self.journal.read()):
            if there:
                self.known.chunks.add_pack(sent.name, sent.footer)
                self.resumed[pack_key(PackKind.DATA, sent.name)] = sent.size_bytes
            else:
                self.stale.append(sent.name)

    def _is_there(self, name: bytes, size: int) -> bool:
        if name in self.avoid.packs:
            return False
        key = pack_key(PackKind.DATA, name)
        if self.remote.backend.stat(key) != size:
            return False
        # Whoever wants everything read back means what an earlier run sent, too.
        return self.audit is None or (blake3(self.remote.backend.get(key, max_bytes=MAX_PACK_BYTES)).digest() == name)

    def _distrust(self, covered: Sequence[tuple[Root, bytes]]) -> bool:
        """Look whether what covered versions rely on is there, or whole; False when it is.

        What is not is avoided from now on, with the records that promised it, so that it is sent again.
        """
        bad = self._vanished({rid for _, rid in covered})
        misled = False
        if self.audit is not None and not bad:
            for root, rid in covered:
                found = self.audit.look(root)
                if found is None:
                    misled = True
                    self._misled[root] = rid
                    self.on_event(Note(f"the locator of {root.text[:14]} is of no use; it will be written again"))
                elif found:
                    bad |= found
                    self.avoid.records.add(rid)
        self._give_up(bad)
        return bool(bad) or misled

    def _give_up(self, bad: Mapping[str, str]) -> None:
        for key, why in bad.items():
            if key in self.avoid.lost:
                continue
            self.on_event(Note(f"{why}; what it held is sent again", subject=f"{self.remote.name}/{key}"))
        self.avoid.lost |= bad
        self.avoid.packs |= {bytes.fromhex(key.rsplit("/", 1)[-1]) for key in bad}

    def _vanished(self, rids: set[bytes]) -> dict[str, str]:
        """The packs that these records rely on and that are not there; all records that rely on one are avoided."""
        rids = self._records.with_all_bases(rids, self.pool)
        packs = {rid: self._records.packs(rid) for rid in rids}
        fresh = rids - self._asked
        self._asked |= fresh
        self._gone |= vanished(self.remote.backend, frozenset().union(*(packs[rid] for rid in fresh)), self.pool)
        gone = self._gone & frozenset().union(*packs.values())
        if not gone:
            return {}
        fallen = {rid for rid in rids if not gone.isdisjoint(packs[rid])}
        while more := {rid for rid in rids - fallen if not fallen.isdisjoint(self._records.bases(rid))}:
            fallen |= more
        self.avoid.records |= fallen
        return dict.fromkeys(sorted(gone), "a pack that was there is gone")

    def _look(self, root: Root, known: dict[str, bytes]) -> tuple[bytes | None, Locator | None]:
        """The live record that covers a root, or None; and the root's locator if that was read."""
        if root.kind == FILE and root.size == 0:
            return b"", None  # nothing is stored for nothing
        if self.store is None or root in self._misled:
            return None, None
        rid = known.get(root.text)
        covered = rid is not None and self._records.covering(rid, root.text, store=self.store.store) is not None
        if covered and self.remote.backend.stat(locator_key(root.kind, root.id)) is not None:
            return rid, None
        locator = self._locator(root)
        if covered and locator is None and rid is not None:
            self._misled[root] = rid
        if locator is not None and self._records.covering(locator.record, root.text, store=self.store.store):
            return locator.record, locator
        return None, locator

    def _locator(self, root: Root) -> Locator | None:
        try:
            return self.reader.locator(root)
        except FormatError as error:
            self.on_event(Note(f"{error}; it will be written again"))
            return None

    # ------------------------------------------------------------ what the remote says of earlier versions

    def _learn(self, version: Version, own: Locator | None) -> None:
        """Take in what the remote says of this version (from an unfinished push) or of the nearest earlier one."""
        if self.store is None:
            return
        if own is not None and self._take_in(version.root, version.root, own):
            return
        record = own.record if own is not None else self._misled.get(version.root)
        if record is not None:
            self._take_in_record(record)
        waiting, seen = deque(version.previous), {version.root}
        while waiting:
            root = waiting.popleft()
            if root in seen or (root.kind == FILE and not root.size):
                continue
            seen.add(root)
            if root in self._sending:
                # What it adds becomes known in this very push; for the rest its own earlier versions are ours, too.
                waiting.extend(self._sending[root].previous)
                continue
            if root not in self._earlier:
                self._earlier[root] = self._locator(root)
            locator = self._earlier[root]
            if locator is not None and self._take_in(version.root, root, locator):
                return

    def _take_in(self, new: Root, root: Root, locator: Locator) -> bool:
        if self._records.is_live(locator.record):
            # What its record covers is relied on without a look at each place.
            self._give_up(self._vanished({locator.record}))
        try:
            self.known.take_in(new, root, locator)
            return True
        except (FormatError, KeyMissing) as error:
            what = f"what it says of {root.text[:14]} cannot be read, so that is not reused ({error})"
            self.on_event(Note(what, subject=self.remote.name))
            return False

    def _take_in_record(self, rid: bytes) -> None:
        """Learn what lies in the packs that a record and its bases name, where no locator tells."""
        prefix = f"{PackKind.DATA.prefix}/"
        owner: dict[bytes, bytes] = {}
        for record in self._records.with_bases(rid):
            for key in sorted(self._records.packs(record)):
                name = bytes.fromhex(key.rsplit("/", 1)[-1])
                if key.startswith(prefix) and name not in self.avoid.packs:
                    owner.setdefault(name, record)

        def learn(name: bytes) -> None:
            try:
                self.known.chunks.add_pack(name, self.remote.footer(name, PackKind.DATA))
            except (FormatError, KeyMissing):
                return  # what it holds is sent again
            if self._records.is_live(owner[name]):
                self.known.origin.setdefault(name, owner[name])

        list(self.pool.map(learn, owner))

    # ------------------------------------------------------------ which chunks are new

    def _count(self, root: Root, seen: SeenOnce) -> int:
        total = 0
        for chunks in self.known.chunks_to_place(root):
            new = _pick(chunks, np.flatnonzero(~self.known.chunks.holds(chunks.ids)))
            self._must_be_here(new)
            total += _pick(new, seen.first(new.ids)).total_bytes
        return total

    def take_new(self, chunks: Chunks) -> Chunks:
        """Of some chunks those that the remote is not known to have and nobody took; the caller sends them.

        Raises:
            DataMissing: one is not here either.
        """
        with self._lock:  # a pack that is published meanwhile must not be seen in only one of two places
            fresh = []
            for i in np.flatnonzero(~self.known.chunks.holds(chunks.ids)).tolist():
                name = chunks.ids[i].tobytes()
                if name not in self._taken:
                    self._taken.add(name)
                    fresh.append(i)
        new = _pick(chunks, np.array(fresh, np.intp))
        self._must_be_here(new)
        return new

    def published(self, ids: U8, add: Callable[[], None]) -> None:
        """A pack with chunks that were taken is on the remote; `add` makes it known."""
        blob = ids.tobytes()
        with self._lock:
            add()
            self._taken.difference_update(blob[i : i + 32] for i in range(0, len(blob), 32))

    def _must_be_here(self, chunks: Chunks) -> None:
        if not len(chunks):
            return
        lengths = self.local.chunk_lengths(self.local.find_chunks(chunks.ids))
        gone = lengths != chunks.lengths
        if gone.any():
            what = f"{int(gone.sum()):,} chunks ({_pick(chunks, np.flatnonzero(gone)).total_bytes:,} bytes)"
            raise DataMissing(f"{what} of it are neither in this clone nor on the remote", subject=self.local.name)


def _pick(chunks: Chunks, which: npt.NDArray[np.intp]) -> Chunks:
    return Chunks(chunks.ids[which], chunks.lengths[which])
