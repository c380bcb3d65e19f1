"""What a push has to send: which versions a live record covers, and what the remote is known to have of the others.

Nothing is listed. A version is known by its locator, and what it shares with earlier versions by theirs: a leaf of the
list that did not change needs no look at all, the others tell where each chunk lies. A clone need not hold the old data
for that; whatever it lacks and the remote has is referred to where it is.

>>> plan = Plan(local, remote, versions, state, avoid=Avoid())     # doctest: +SKIP
>>> plan.make().new_bytes                                           # doctest: +SKIP
28114002
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from dvk.backend.contract import KeyMissing
from dvk.errors import DataMissing, DvkError, FormatError
from dvk.events import Note, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.descriptor import Descriptor
from dvk.store.journal import Journal
from dvk.store.known import KnownChunks, KnownLeaves, SeenOnce
from dvk.store.listing import Entries
from dvk.store.locator import Locator, Ref, locator_key
from dvk.store.names import I64, U8
from dvk.store.pack import MAX_BLOCK_BYTES, MAX_PACK_BYTES, PackKind, pack_key
from dvk.store.pages import MIN_ENTRIES, Chunks, ListKind, PageRef, leaf_refs, load_leaf
from dvk.store.placement import Placement
from dvk.store.resolve import CONNECTIONS, Resolver
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.roots import ConfirmedRoots, is_live, load_record
from dvk.store.store import Store, as_column

_T = TypeVar("_T")

#: Chunks that are looked up together.
_CHUNKS_AT_ONCE = 65536


@dataclass(frozen=True, slots=True)
class Version:
    """A root to send, and earlier versions of the same path, nearest first, that the remote may know."""

    root: Root
    previous: tuple[Root, ...] = ()
    name: str = ""


@dataclass(slots=True)
class Pushed:
    """What a push did, or would do when it was only planned."""

    covered: list[Version] = field(default_factory=list)  #: a live record holds them already
    sent: list[Version] = field(default_factory=list)
    absent: list[tuple[Version, DvkError]] = field(default_factory=list)  #: neither here nor there
    new_bytes: int = 0  #: decoded bytes of chunks that the remote was not known to have
    moved_bytes: int = 0  #: of packs and locators
    packs: int = 0
    record: bytes = b""


@dataclass(slots=True)
class Avoid:
    """What must not be relied on, since it was condemned, gone or retired when an attempt of this push looked."""

    packs: set[bytes] = field(default_factory=set)
    records: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class File:
    """The chunks of a file with its recipe; `root` is empty for a file of one chunk."""

    chunks: Chunks
    root: bytes = b""
    profile: str = ""


@dataclass(frozen=True, slots=True)
class OpenLeaf:
    """A leaf of a listing that no known section describes; for each entry its file, None where that is not needed."""

    ref: PageRef
    entries: Entries
    files: list[File | None]


class Plan:
    """What one attempt to push knows. `make` fills it; sending adds the packs it has put to `chunks`."""

    def __init__(
        self,
        local: Store,
        remote: Store,
        versions: Sequence[Version],
        state: str,
        *,
        avoid: Avoid,
        on_event: OnEvent = ignore,
        read_resumed: bool = False,
    ) -> None:
        self.local, self.remote, self.state = local, remote, state
        self.avoid, self.on_event = avoid, on_event
        self.read_resumed = read_resumed
        self.versions = list({v.root: v for v in versions}.values())  # one path's version may be another's too
        self.out = Pushed()
        self.adopted: dict[str, bytes] = {}  #: covered root -> the record that covers it
        self.refuted: list[str] = []  #: roots that this clone believed to be confirmed
        self.chunks = KnownChunks(avoid=avoid.packs)
        self.leaves = KnownLeaves()
        self.nested: dict[bytes, tuple[Ref, bytes]] = {}  #: file id -> its own locator in a page pack, live record
        self.origin: dict[bytes, bytes] = {}  #: data pack -> live record that covers it
        self.resumed: dict[str, int] = {}  #: packs of an earlier push that did not get to its end -> size
        self.stale: list[bytes] = []  #: packs in the journal that are not there
        self._files: dict[bytes, File] = {}  # recipes learned from the remote
        self._pages: dict[PageId, bytes] = {}  # pages of those recipes
        self._sending: dict[Root, Version] = {}
        self._earlier: dict[Root, Locator | None] = {}
        self._read: dict[Root, set[int]] = {}  # sections that were taken in
        self._live: dict[bytes, Future[bool]] = {}
        self._roots_of: dict[bytes, Future[frozenset[str]]] = {}
        self._taken: set[bytes] = set()
        self._lock = threading.Lock()
        self.store: Descriptor | None = None
        self.pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-push")
        self.resolver = Resolver(remote, on_event=on_event)

    def close(self) -> None:
        """Stop the threads; waits for requests that are under way."""
        self.resolver.close()
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

    def _resume(self) -> None:
        """Take in packs of an interrupted push that are still there."""
        for sent, there in self.pool.map(lambda s: (s, self._is_there(s.name, s.size_bytes)), self.journal.read()):
            if there:
                self.chunks.add_pack(sent.name, sent.footer)
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
        return not self.read_resumed or (
            blake3(self.remote.backend.get(key, max_bytes=MAX_PACK_BYTES)).digest() == name
        )

    def _look(self, root: Root, known: dict[str, bytes]) -> tuple[bytes | None, Locator | None]:
        """The live record that covers a root, or None; and the root's locator if that was read."""
        if root.kind == FILE and root.size == 0:
            return b"", None  # nothing is stored for nothing
        if self.store is None:
            return None, None
        rid = known.get(root.text)
        if rid and self._covers(rid, root) and self.remote.backend.stat(locator_key(root.kind, root.id)) is not None:
            return rid, None
        locator = self._locator(root)
        if locator is not None and self._covers(locator.record, root):
            return locator.record, locator
        return None, locator

    def is_live(self, rid: bytes) -> bool:
        """Whether a record is confirmed and not retired, asked once."""
        live = rid not in self.avoid.records
        return live and self._once(self._live, rid, lambda: is_live(self.remote.backend, rid))

    def _covers(self, rid: bytes, root: Root) -> bool:
        """Whether a record is live and names a root. What a locator or a list of ours says of it is only a hint."""
        return self.is_live(rid) and root.text in self._once(self._roots_of, rid, lambda: self._load_roots(rid))

    def _load_roots(self, rid: bytes) -> frozenset[str]:
        try:
            record = load_record(self.remote.backend, rid)
        except (KeyMissing, FormatError):
            return frozenset()  # nothing may be skipped because of it
        return frozenset(record.roots) if record.store == self._store().store else frozenset()

    def _once(self, table: dict[bytes, Future[_T]], key: bytes, ask: Callable[[], _T]) -> _T:
        """Ask the remote once, whichever thread comes first; the others wait for its answer."""
        with self._lock:
            answer = table.get(key)
            first = answer is None
            if answer is None:
                answer = table[key] = Future()
        if first:
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def _locator(self, root: Root) -> Locator | None:
        try:
            return self.resolver.locator(root)
        except FormatError as error:
            self.on_event(Note(f"{error}; it will be written again"))
            return None

    # ------------------------------------------------------------ what the remote says of earlier versions

    def _learn(self, version: Version, own: Locator | None) -> None:
        """Take in what the remote says of this version (from an unfinished push) or of the nearest earlier one."""
        if self.store is None:
            return
        if own is not None and self._take_in(version, version.root, own):
            return
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
            if locator is not None and self._take_in(version, root, locator):
                return

    def _take_in(self, version: Version, root: Root, locator: Locator) -> bool:
        try:
            if root.kind == FOLDER:
                self._absorb_folder(version.root, root, locator)
            else:
                self._absorb_file(version.root, root, locator, locator.record, keep=False)
            return True
        except (FormatError, KeyMissing) as error:
            self.on_event(
                Note(
                    f"what it says of {root.text[:14]} cannot be read, so that is not reused ({error})",
                    subject=self.remote.name,
                )
            )
            return False

    def _open(self, root: Root, leaves: Sequence[bytes], shared: Collection[bytes]) -> list[int]:
        """Sections that are neither shared nor taken in already."""
        read = self._read.get(root, set())
        return [i for i, leaf in enumerate(leaves) if i not in read and leaf not in shared]

    def _absorb_folder(self, new: Root, root: Root, locator: Locator) -> None:
        """Take in an earlier folder: whole sections that the new one shares, and of the others what is on them."""
        live = self.is_live(locator.record)
        leaves = self.resolver.leaves(root, locator)
        # Sections that are shared need no reading, unless their record no longer vouches for them.
        shared = self._leaf_ids(new) if live else frozenset()
        which = self._open(root, leaves, shared)
        sections = self.resolver.sections(locator, which)
        read = [self.resolver.leaf_contents(root, leaves[i], s) for i, s in zip(which, sections, strict=True)]
        # Everything could be read; from here on it is believed.
        external: dict[bytes, tuple[Root, Ref]] = {}
        for section, (entries, contents, rows) in zip(sections, read, strict=True):
            self._vouch(section.placed.placement, locator.record)
            recipe_of = {r.file: r for r in rows}
            for k, content in enumerate(contents):
                name = entries.ids[k].tobytes()
                if isinstance(content, Ref):
                    external[entries.names[k]] = (Root(FILE, name, int(entries.sizes[k])), content)
                    if live:
                        self.nested.setdefault(name, (content, locator.record))
                elif content is not None:
                    part = slice(content.first, content.first + len(content.chunks))
                    p = content.placement
                    self.chunks.add(content.chunks, Placement(p.blocks, p.block[part], p.offset[part]))
                    if name in recipe_of:
                        row = recipe_of[name]
                        self._files[name] = File(content.chunks, row.root, row.profile)
        if live:
            for leaf, ref in zip(leaves, locator.sections, strict=True):
                self.leaves.add(leaf, ref, locator.record)
        self._read.setdefault(root, set()).update(which)
        self._absorb_externals(new, external, locator.record)

    def _absorb_externals(self, new: Root, external: dict[bytes, tuple[Root, Ref]], record: bytes) -> None:
        """Take in big files of an earlier folder that the new one changed, or that nobody vouches for."""
        live = self.is_live(record)
        pairs: list[tuple[Root, Root, Ref]] = []
        for name, now in self._entries_named(new, sorted(external)):
            old, ref = external[name]
            if now != old or not live:
                pairs.append((now, old, ref))
        inner = self.resolver.nested([(old, ref) for _, old, ref in pairs])
        for (now, old, _), found in zip(pairs, inner, strict=True):
            self._absorb_file(now, old, found, record, keep=not live)

    def _entries_named(self, folder: Root, names: Sequence[bytes]) -> Iterator[tuple[bytes, Root]]:
        """Those files of a folder that have one of these names (ascending) and stand on a leaf that is not known."""
        for entries in self._unknown_leaves(folder) if names else ():
            for name in names:
                at = entries[1].names.find(name)
                if at < len(entries[1]) and entries[1].names[at] == name and entries[1].is_file[at]:
                    yield name, Root(FILE, entries[1].ids[at].tobytes(), int(entries[1].sizes[at]))

    def _absorb_file(self, new: Root, root: Root, locator: Locator, record: bytes, *, keep: bool) -> None:
        """Take in an earlier file. `keep` its recipe, too, since this clone may lack it."""
        live = self.is_live(record)
        leaves = self.resolver.leaves(root, locator)
        which = self._open(root, leaves, self._leaf_ids(new) if live else frozenset())
        sections = self.resolver.sections(locator, which)
        read = [self.resolver.recipe_leaf(root, leaves[i], s) for i, s in zip(which, sections, strict=True)]
        if any(len(c) != len(s.placed.placement.block) for c, s in zip(read, sections, strict=True)):
            raise FormatError("a placement does not fit its recipe", subject=root.text)
        for section, chunks in zip(sections, read, strict=True):
            self._vouch(section.placed.placement, record)
            self.chunks.add(chunks, section.placed.placement)
        if live:
            for leaf, ref in zip(leaves, locator.sections, strict=True):
                self.leaves.add(leaf, ref, record)
        self._read.setdefault(root, set()).update(which)
        if keep and any(locator.root) and len(which) == len(leaves):
            self._files[root.id] = File(Chunks.join(read), locator.root, locator.profile)
            self._pages.update(self.resolver.pages_of(locator))
            self._pages.update((leaves[i], s.leaf) for i, s in zip(which, sections, strict=True))

    def _vouch(self, placement: Placement, record: bytes) -> None:
        if self.is_live(record):
            for name in placement.blocks.packs:
                self.origin.setdefault(name, record)

    # ------------------------------------------------------------ what a version consists of

    def load_page(self, name: PageId) -> bytes:
        """A page from here, or one that was learned. Raises DataMissing."""
        return self._pages.get(name) or self.local.load_page(name)

    def leaf_refs(self, kind: ListKind, root: bytes) -> list[PageRef]:
        """The leaves of a list. Raises DataMissing."""
        return list(leaf_refs(kind, PageId(root), self.load_page))

    def _leaf_ids(self, root: Root) -> Collection[bytes]:
        """The ids of the leaves of a root as far as they are known; a file of one chunk is its own leaf."""
        try:
            if root.kind == FOLDER:
                return {r.id for r in self.leaf_refs(ListKind.LISTING, root.id)}
            file = self.file(root)
            return {r.id for r in self.leaf_refs(ListKind.RECIPE, file.root)} if file.root else {root.id}
        except DataMissing:
            return frozenset()

    def file(self, root: Root) -> File:
        """The chunks of a file. Raises DataMissing."""
        return self.files(as_column([root.id]), np.array([root.size], np.int64))[0]

    def files(self, ids: U8, sizes: I64) -> list[File]:
        """The chunks of files, from here or as the remote says.

        Raises:
            DataMissing: neither knows one of them.
        """
        out: list[File] = []
        found = self.local.chunks_of_many(ids, sizes)
        multi = [i for i, c in enumerate(found) if c is not None and len(c) > 1]
        rows = dict(zip(multi, self.local.find_recipes(ids[multi]), strict=True)) if multi else {}
        unknown = [i for i, c in enumerate(found) if c is None]
        there = dict(zip(unknown, self.chunks.holds(ids[unknown]).tolist(), strict=True)) if unknown else {}
        for i, chunks in enumerate(found):
            name = ids[i].tobytes()
            row = rows.get(i)
            if chunks is not None:
                out.append(File(chunks, row.root, row.profile) if row is not None else File(chunks))
            elif name in self._files:
                out.append(self._files[name])
            elif there[i] and int(sizes[i]) <= MAX_BLOCK_BYTES:
                out.append(File(Chunks(ids[i : i + 1], sizes[i : i + 1].astype(np.uint32))))
            else:
                raise DataMissing(f"the data of {name.hex()[:12]} is not in this clone", subject=self.local.name)
        return out

    def _unknown_leaves(self, folder: Root) -> Iterator[tuple[PageRef, Entries]]:
        for ref in self.leaf_refs(ListKind.LISTING, folder.id):
            if self.leaves.get(ref.id) is None:
                entries = load_leaf(ListKind.LISTING, ref, self.load_page)
                assert isinstance(entries, Entries)
                yield ref, entries

    def open_leaves(self, folder: Root) -> Iterator[OpenLeaf]:
        """The leaves of a folder that need a new section. Raises DataMissing."""
        for ref, entries in self._unknown_leaves(folder):
            data = np.flatnonzero(entries.is_file & (entries.sizes > 0)).tolist()
            # Files with a locator of their own on the remote need not be known here.
            here = [i for i in data if entries.ids[i].tobytes() not in self.nested]
            files: list[File | None] = [None] * len(entries)
            for i, file in zip(here, self.files(entries.ids[here], entries.sizes[here]), strict=True):
                files[i] = file
            yield OpenLeaf(ref, entries, files)

    def recipe_leaves(self, file: File) -> list[tuple[bytes, int]]:
        """The leaves of a recipe: page id and number of chunks. A recipe of few chunks is one page."""
        if len(file.chunks) < MIN_ENTRIES:
            return [(file.root, len(file.chunks))]
        return [(r.id, r.entries) for r in self.leaf_refs(ListKind.RECIPE, file.root)]

    def _open_chunks(self, file: File) -> Iterator[Chunks]:
        """Chunks of a file whose places no known section states."""
        if not file.root:
            yield file.chunks
            return
        at = 0
        for leaf, count in self.recipe_leaves(file):
            if self.leaves.get(leaf) is None:
                yield file.chunks.slice(at, at + count)
            at += count

    def chunks_to_place(self, root: Root) -> Iterator[Chunks]:
        """All chunks that new sections will place, some ten thousand at a time. Raises DataMissing."""
        if root.kind == FILE:
            yield from _regroup(self._open_chunks(self.file(root)))
            return
        for leaf in self.open_leaves(root):
            yield from _regroup(c for f in leaf.files if f is not None for c in self._open_chunks(f))

    # ------------------------------------------------------------ which chunks are new

    def _count(self, root: Root, seen: SeenOnce) -> int:
        total = 0
        for chunks in self.chunks_to_place(root):
            new = _pick(chunks, np.flatnonzero(~self.chunks.holds(chunks.ids)))
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
            for i in np.flatnonzero(~self.chunks.holds(chunks.ids)).tolist():
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


def _regroup(parts: Iterator[Chunks]) -> Iterator[Chunks]:
    waiting: list[Chunks] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= _CHUNKS_AT_ONCE:
            yield Chunks.join(waiting)
            waiting, count = [], 0
    if waiting:
        yield Chunks.join(waiting)
