"""Sending versions to a remote: what is new in packs of their own, then what leads to it, then the promise.

The order is that of docs/format/record.md (P1 to P7): data packs, page packs, intent record, a look at condemned
lists, a check that everything relied on exists, locators, confirmation, one more look. Each side of a race between
pushers and collectors makes its intention visible first and looks at the other's afterwards, so that no lock, clock
or server is needed.

A push may be repeated after any interruption: packs that were proven to be there are taken from a journal, and a
version that a live record covers needs nothing.

>>> plan = plan_push(local, remote, versions, state)               # doctest: +SKIP
>>> push(plan).moved_bytes                                         # doctest: +SKIP
28114002
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from dvk.backend.contract import Buffer, KeyMissing
from dvk.errors import DataMissing, DvkError, FormatError, NotOurs, RemoteError
from dvk.events import Meter, Note, OnEvent, ignore
from dvk.ids import ID_BYTES, PackId, PageId
from dvk.store import locator as loc
from dvk.store.codec import decode_block
from dvk.store.journal import Journal
from dvk.store.known import KnownChunks, KnownLeaves
from dvk.store.listing import Entries
from dvk.store.locator import FILE, FOLDER, MAX_INLINE_CHUNKS, External, Locator, Ref, SectionPlacement, locator_key
from dvk.store.names import I64, U8
from dvk.store.pack import Footer, PackKind, RecipeRow, pack_key
from dvk.store.packwriter import PackWriter, default_workers
from dvk.store.pages import (
    MIN_ENTRIES,
    Children,
    Chunks,
    ListKind,
    PageRef,
    format_page,
    leaf_refs,
    load_leaf,
    load_page,
    page_id,
    parse_page,
)
from dvk.store.placement import Placement, Range, plan_ranges, read_range
from dvk.store.record import Record, format_mark, format_record, record_id, record_key
from dvk.store.resolve import CONNECTIONS, Resolver, Root
from dvk.store.roots import ConfirmedRoots, condemned, is_live
from dvk.store.sections import SectionWriter
from dvk.store.store import Store, as_column

_IN_FLIGHT = 4
_ATTEMPTS = 5
#: A nested locator must fit a block with what surrounds it.
_NESTED_INLINE_BYTES = 512 << 10
#: Sections of a list of more leaves cannot be inline, so their bytes are not kept.
_LEAVES_KEPT = 16


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


class _Conflict(Exception):
    """Something that was relied on is condemned, gone or retired."""

    def __init__(self, packs: set[bytes], records: set[bytes]) -> None:
        super().__init__()
        self.packs, self.records = packs, records


def plan_push(
    local: Store, remote: Store, versions: Sequence[Version], state: str, *, on_event: OnEvent = ignore
) -> Pushed:
    """Work out what `remote` lacks. Changes nothing. Arguments as `push`."""
    with _Push(local, remote, versions, state, on_event, _Conflict(set(), set())) as run:
        return run.plan()


def push(
    local: Store,
    remote: Store,
    versions: Sequence[Version],
    state: str,
    *,
    on_event: OnEvent = ignore,
    verify_all: bool = False,
) -> Pushed:
    """Send versions. Returns only when an independent clone could restore all of `sent`.

    Args:
        versions: oldest first.
        state: a directory of this clone for what it knows of remotes.
        verify_all: read every pack back whole, not only its end and one block.

    Raises:
        RemoteError: the remote answered wrongly, or nothing could be agreed after several attempts.
    """
    avoid = _Conflict(set(), set())
    for _ in range(_ATTEMPTS):
        with _Push(local, remote, versions, state, on_event, avoid, verify_all=verify_all) as run:
            try:
                run.plan()
                return run.execute()
            except _Conflict as conflict:
                on_event(Note("data that this push relied on is being collected; sending it again"))
                avoid.packs |= conflict.packs
                avoid.records |= conflict.records
    raise RemoteError(
        "what this push relies on was collected under it again and again",
        subject=remote.name,
        hint="wait for the garbage collection of this remote to finish, then push again",
    )


@dataclass(slots=True)
class _File:
    """The chunks of a file with its recipe; root is empty for a file of one chunk."""

    chunks: Chunks
    root: bytes = b""
    profile: str = ""


@dataclass(slots=True)
class _Draft:
    """A file's locator before its sections have references."""

    root: Root
    file: _File
    pages: bytes = b""
    sections: list[int | Ref] = field(default_factory=list)

    def locator(self, writer: SectionWriter, inline_bytes: int) -> Locator:
        refs = tuple(s if isinstance(s, Ref) else writer.ref(s) for s in self.sections)
        mine = [s for s in self.sections if isinstance(s, int) and writer.has_bytes(s)]
        inline: tuple[bytes, ...] = ()
        if len(mine) == len(refs) and sum(r.length for r in refs) <= inline_bytes:
            inline = tuple(writer.encoded(n) for n in mine)
        root = self.file.root or bytes(ID_BYTES)
        r = self.root
        return Locator(FILE, r.id, r.size, 0, root, bytes(ID_BYTES), self.file.profile, self.pages, refs, inline)


def _section_profile(files: Sequence[_File | None]) -> str:
    return next((f.profile for f in files if f is not None and 1 < len(f.chunks) <= MAX_INLINE_CHUNKS), "")


def _is_external(file: _File, profile: str) -> bool:
    return len(file.chunks) > MAX_INLINE_CHUNKS or (bool(file.root) and file.profile != profile)


def _slices(parts: list[Chunks], size: int = 65536) -> Iterator[Chunks]:
    together = Chunks.join(parts)
    for start in range(0, len(together), size):
        yield together.slice(start, min(start + size, len(together)))


def _inner_pages(kind: ListKind, root: PageId, local: Store) -> bytes:
    """All pages of a list above its leaves, root first, each level in order."""
    out: list[bytes] = []
    level = [root]
    while True:
        pages = [local.load_page(name) for name in level]
        parsed = [parse_page(data, kind, subject=name.hex()[:12]) for name, data in zip(level, pages, strict=True)]
        if parsed[0].level == 0:
            return b"".join(out)
        out += pages
        level = [r.id for page in parsed if isinstance(page.body, Children) for r in page.body.refs]
        if parsed[0].level == 1:
            return b"".join(out)


class _Push:
    def __init__(
        self,
        local: Store,
        remote: Store,
        versions: Sequence[Version],
        state: str,
        on_event: OnEvent,
        avoid: _Conflict,
        *,
        verify_all: bool = False,
    ) -> None:
        self.local, self.remote, self.state = local, remote, state
        self.versions = list({v.root: v for v in versions}.values())  # one path's version may be another's too
        self.avoid, self.verify_all, self.on_event = avoid, verify_all, on_event
        self.out = Pushed()
        self.meter = Meter(on_event, "upload", total_bytes=0)
        self.chunks = KnownChunks(avoid=avoid.packs)
        self.leaves = KnownLeaves()
        self.files: dict[bytes, _File] = {}  # recipes learned from the remote
        self.nested: dict[bytes, tuple[Ref, bytes]] = {}  # file id -> its own locator in a page pack, record
        self.origin: dict[bytes, bytes] = {}  # pack -> live record that covers it
        self.live: dict[bytes, bool] = {}
        self.written: set[str] = set()  # packs of this run
        self.resumed: set[str] = set()  # packs of an earlier run that did not get to its end
        self.used_packs: set[bytes] = set()
        self.used_refs: set[tuple[Ref, bytes]] = set()
        self.own_leaves: dict[bytes, int] = {}  # recipe leaf -> number of its section in this push
        self.adopted: dict[str, bytes] = {}
        self.sending: set[bytes] = set()
        self.taken: set[bytes] = set()
        self._lock = threading.Lock()
        self.pool = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="dvk-push")
        self.resolver = Resolver(self.remote, on_event=on_event)
        found = self.remote.describe()
        self.store_id = ""
        if found is not None:
            found.require("write", subject=self.remote.name)
            self._use_store(found.store)

    def _use_store(self, store: str) -> None:
        self.store_id = store
        self.confirmed = ConfirmedRoots(self.state, store)
        self.journal = Journal(self.state, store)

    def __enter__(self) -> _Push:
        return self

    def __exit__(self, *_: object) -> None:
        self.resolver.close()
        self.pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------ P1: plan

    def plan(self) -> Pushed:
        """What is covered, what to send, what cannot be sent."""
        out = self.out
        if self.store_id:
            self._resume()
        known = self.confirmed.read() if self.store_id else {}
        found = list(self.pool.map(lambda v: self._look(v, known), self.versions))
        rest = []
        for version, (record, locator) in zip(self.versions, found, strict=True):
            if record is None:
                rest.append((version, locator))
            else:
                out.covered.append(version)
        self.adopted = {v.root.text: r for v, (r, _) in zip(self.versions, found, strict=True) if r}
        self.sending = {v.root.id for v, _ in rest}
        taken: set[bytes] = set()
        for version, locator in rest:
            self._learn(version, locator)
            try:
                out.new_bytes += self._count(version, taken)
                out.sent.append(version)
            except DataMissing as error:
                out.absent.append((version, error))
        return out

    def _resume(self) -> None:
        """Packs of an interrupted push that are still there."""
        found = self.journal.read()
        sizes = list(self.pool.map(lambda f: self.remote.backend.stat(pack_key(f.footer.kind, f.name)), found))
        for sent, there in zip(found, sizes, strict=True):
            if there == sent.size_bytes and sent.name not in self.avoid.packs:
                self.chunks.add_pack(sent.name, sent.footer)
                self.resumed.add(pack_key(sent.footer.kind, sent.name))
            else:
                self.journal.forget(sent.name)

    def _look(self, version: Version, known: dict[str, bytes]) -> tuple[bytes | None, Locator | None]:
        """The live record that covers a version, or None; and its locator if that was read."""
        root = version.root
        if root.kind == FILE and root.size == 0:
            return b"", None  # nothing is stored for nothing
        if not self.store_id:
            return None, None
        rid = known.get(root.text)
        if rid and self._live(rid) and self.remote.backend.stat(locator_key(root.kind, root.id)) is not None:
            return rid, None
        locator = self._locator(root)
        if locator is not None and self._live(locator.record):
            return locator.record, locator
        return None, locator

    def _live(self, rid: bytes) -> bool:
        if rid not in self.live:
            self.live[rid] = rid not in self.avoid.records and is_live(self.remote.backend, rid)
        return self.live[rid]

    def _locator(self, root: Root) -> Locator | None:
        try:
            return self.resolver.locator(root)
        except FormatError as error:
            self.on_event(Note(f"{error}; it will be written again"))
            return None

    def _learn(self, version: Version, own: Locator | None) -> None:
        """Take in what the remote says of this version (from an unfinished push) or of the nearest earlier one."""
        if not self.store_id:
            return
        for root in (version.root, *version.previous):
            locator = own if root is version.root else None
            if root is not version.root:
                if root.id in self.sending:
                    return  # its chunks become known in this very push
                locator = self._locator(root) if root.size else None
            if locator is None:
                continue
            try:
                self._absorb(version, root, locator)
                return
            except (FormatError, KeyMissing) as error:
                self.on_event(Note(f"an earlier version on the remote cannot be read, so nothing is reused ({error})"))

    def _absorb(self, version: Version, root: Root, locator: Locator) -> None:
        live = self._live(locator.record)
        if root.kind == FILE:
            leaves = self._recipe_leaves(locator)
        else:
            pages = loc.split_pages(locator.pages, subject=root.text)
            table = {page_id(ListKind.LISTING, data): data for data in pages}
            leaves = (
                [r.id for r in leaf_refs(ListKind.LISTING, PageId(root.id), table.__getitem__)] if table else [root.id]
            )
        if len(leaves) != len(locator.sections):
            raise FormatError("a locator has not a section for each leaf", subject=root.text)
        if live:
            for leaf, ref in zip(leaves, locator.sections, strict=True):
                self.leaves.add(leaf, ref, locator.record)
        wanted = set(self._leaf_ids(version.root)) if version.root.kind == root.kind else set()
        # Sections that the new version shares need no reading, unless their record no longer vouches for them.
        open_ = [i for i, leaf in enumerate(leaves) if not (live and leaf in wanted)]
        sections = self.resolver.sections(locator, open_)
        for i, section in zip(open_, sections, strict=True):
            if live:
                for name in section.placed.placement.blocks.packs:
                    self.origin.setdefault(name, locator.record)
            if root.kind == FILE:
                self.chunks.add(self._recipe_leaf(root, leaves[i], section.leaf), section.placed.placement)
                continue
            entries, contents, rows = self.resolver.leaf_contents(root, leaves[i], section)
            recipe_of = {r.file: r for r in rows}
            for k, content in enumerate(contents):
                name = entries.ids[k].tobytes()
                if isinstance(content, Ref):
                    if live:
                        self.nested[name] = (content, locator.record)
                elif content is not None:
                    part = slice(content.first, content.first + len(content.chunks))
                    placed = content.placement
                    self.chunks.add(
                        content.chunks, type(placed)(placed.blocks, placed.block[part], placed.offset[part])
                    )
                    if name in recipe_of:
                        row = recipe_of[name]
                        self.files[name] = _File(content.chunks, row.root, row.profile)

    def _recipe_leaf(self, root: Root, name: bytes, data: bytes) -> Chunks:
        if not data:
            return Chunks(as_column([root.id]), np.array([root.size], np.uint32))
        page = load_page(ListKind.RECIPE, PageId(name), lambda _: data)
        assert isinstance(page.body, Chunks)
        return page.body

    def _recipe_leaves(self, locator: Locator) -> list[bytes]:
        if not any(locator.root):
            return [locator.id]
        pages = loc.split_pages(locator.pages, subject=locator.id.hex()[:12])
        table = {page_id(ListKind.RECIPE, data): data for data in pages}
        if not table:
            return [locator.root]
        return [r.id for r in leaf_refs(ListKind.RECIPE, PageId(locator.root), table.__getitem__)]

    # ------------------------------------------------------------ what a version consists of

    def _leaf_ids(self, root: Root) -> list[bytes]:
        """The ids of the leaves of a root, as the local store knows them; a file of one chunk is its own leaf."""
        try:
            if root.kind == FOLDER:
                return [r.id for r in leaf_refs(ListKind.LISTING, PageId(root.id), self.local.load_page)]
            file = self._file(root.id, root.size)
            if not file.root:
                return [root.id]
            return [r.id for r in leaf_refs(ListKind.RECIPE, PageId(file.root), self.local.load_page)]
        except DataMissing:
            return []

    def _file(self, name: bytes, size: int) -> _File:
        return self._files(as_column([name]), np.array([size], np.int64))[0]

    def _files(self, ids: U8, sizes: I64) -> list[_File]:
        """The chunks of files, from here or from what was learned.

        Raises:
            DataMissing: neither knows one of them.
        """
        out: list[_File] = []
        found = self.local.chunks_of_many(ids, sizes)
        multi = [i for i, c in enumerate(found) if c is not None and len(c) > 1]
        rows = dict(zip(multi, self.local.find_recipes(ids[multi]), strict=True)) if multi else {}
        for i, chunks in enumerate(found):
            name = ids[i].tobytes()
            row = rows.get(i)
            if chunks is not None and row is not None:
                out.append(_File(chunks, row.root, row.profile))
            elif chunks is not None:
                out.append(_File(chunks))
            elif name in self.files:
                out.append(self.files[name])
            elif int(sizes[i]) <= 1 << 20 and self.chunks.find(ids[i : i + 1])[0] >= 0:
                out.append(_File(Chunks(ids[i : i + 1], sizes[i : i + 1].astype(np.uint32))))
            else:
                raise DataMissing(f"the data of {name.hex()[:12]} is not in this clone", subject=self.local.name)
        return out

    def _open_leaves(self, root: Root) -> Iterator[tuple[PageRef | None, Entries | None, list[_File | None]]]:
        """The leaves that no known section describes: (reference, entries of a listing leaf, files).

        For a file: its single "leaf" stands for all open recipe leaves.
        """
        if root.kind == FILE:
            yield None, None, [self._file(root.id, root.size)]
            return
        for ref in leaf_refs(ListKind.LISTING, PageId(root.id), self.local.load_page):
            if self.leaves.get(ref.id):
                continue
            entries = load_leaf(ListKind.LISTING, ref, self.local.load_page)
            assert isinstance(entries, Entries)
            data = np.flatnonzero(entries.is_file & (entries.sizes > 0))
            # Files with a locator of their own on the remote need not be known here.
            here = [i for i in data.tolist() if entries.ids[i].tobytes() not in self.nested]
            files: list[_File | None] = [None] * len(entries)
            for i, file in zip(here, self._files(entries.ids[here], entries.sizes[here]), strict=True):
                files[i] = file
            yield ref, entries, files

    def _missing(self, chunks: Chunks, taken: set[bytes]) -> Chunks:
        """Chunks that the remote is not known to have, each once; they are taken from now on.

        Raises:
            DataMissing: one is not here either.
        """
        fresh = []
        for i in np.flatnonzero(self.chunks.find(chunks.ids) < 0).tolist():
            name = chunks.ids[i].tobytes()
            if name not in taken:
                taken.add(name)
                fresh.append(i)
        picked = Chunks(chunks.ids[fresh], chunks.lengths[fresh])
        if len(picked):
            lengths = self.local.chunk_lengths(self.local.find_chunks(picked.ids))
            if (lengths != picked.lengths).any():
                raise DataMissing("some of its data is not in this clone", subject=self.local.name)
        return picked

    def _count(self, version: Version, taken: set[bytes]) -> int:
        total = 0
        for _, _, files in self._open_leaves(version.root):
            for chunks in _slices([f.chunks for f in files if f is not None]):
                total += self._missing(chunks, taken).total_bytes
        return total

    # ------------------------------------------------------------ P2: packs

    def execute(self) -> Pushed:
        """Do what was planned; returns after the last look."""
        out = self.out
        if out.sent:
            self._use_store(self.remote.create().store)
            self._send_data()
            rid = self._promise(self._write_sections())
            self.adopted.update(dict.fromkeys((v.root.text for v in out.sent), rid))
            self.journal.clear()
            out.packs, out.record = len(self.written), rid
        if self.adopted:
            self.confirmed.add(self.adopted)
        return out

    def _send_data(self) -> None:
        self.taken.clear()
        workers = default_workers()
        jobs: deque[Future[None]] = deque()
        with (
            PackWriter(self._put_pack, self._published, in_flight=_IN_FLIGHT) as writer,
            ThreadPoolExecutor(workers, thread_name_prefix="dvk-encode") as pool,
        ):
            for version in self.out.sent:
                for _, _, files in self._open_leaves(version.root):
                    for chunks in _slices([f.chunks for f in files if f is not None]):
                        missing = self._missing(chunks, self.taken)
                        if len(missing):
                            self._copy(writer, pool, jobs, missing)
                while jobs:
                    jobs.popleft().result()
                writer.end_of_path()
            writer.flush()

    def _copy(self, writer: PackWriter, pool: ThreadPoolExecutor, jobs: deque[Future[None]], chunks: Chunks) -> None:
        """Blocks of which every chunk is wanted go as they are; of the others the wanted chunks are encoded again."""
        placed = self.local.place(chunks)
        order = np.lexsort((placed.offset, placed.block))
        block = placed.block[order]
        starts = np.flatnonzero(np.diff(block.astype(np.int64), prepend=-1))
        ends = np.append(starts[1:], len(order))
        members = {int(block[a]): order[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)}

        def send(r: Range) -> None:
            for b, encoded in read_range(self.local.backend, placed.blocks, r):
                rows = members[b]
                lengths = chunks.lengths[rows].tolist()
                ids = [chunks.ids[i].tobytes() for i in rows.tolist()]
                if sum(lengths) == encoded.raw_len:
                    writer.add_encoded(encoded.codec, encoded.payload, encoded.raw_len, ids=ids, lengths=lengths)
                    continue
                raw = memoryview(decode_block(encoded.codec, encoded.payload, encoded.raw_len))
                at = placed.offset[rows].tolist()
                parts = b"".join(raw[a : a + n] for a, n in zip(at, lengths, strict=True))
                writer.add_new(range(len(ids)), ids, lengths, memoryview(parts))

        for r in plan_ranges(placed.blocks, members, max_range_bytes=4 << 20):
            jobs.append(pool.submit(send, r))
            while len(jobs) > 4 * _IN_FLIGHT:
                jobs.popleft().result()

    def _published(self, _kind: PackKind, name: PackId, footer: Footer) -> None:
        with self._lock:
            self.chunks.add_pack(name, footer)
            blob = footer.ids.tobytes()
            self.taken.difference_update(blob[i : i + ID_BYTES] for i in range(0, len(blob), ID_BYTES))

    def _put_pack(self, kind: PackKind, name: PackId, parts: list[Buffer]) -> None:
        """Put a pack and make sure that it is there: its end at the expected place, one block, or all of it."""
        key = pack_key(kind, name)
        total = sum(map(len, parts))
        with self._lock:
            self.meter.total_bytes = (self.meter.total_bytes or 0) + total
        backend = self.remote.backend
        backend.put(key, parts)
        subject = f"{self.remote.name}/{key}"
        wrong = RemoteError(
            "the remote does not hold the bytes that were sent",
            subject=subject,
            hint="`dvk remote check` names what is wrong with it; nothing was promised, push again",
        )
        end = bytes(parts[-1])
        if backend.get_range(key, total - len(end), len(end)) != end:
            raise wrong
        if self.verify_all:
            if backend.get(key, max_bytes=total) != b"".join(parts):
                raise wrong
        else:
            i = 1 + 2 * secrets.randbelow((len(parts) - 3) // 2)
            sent = bytes(parts[i]) + bytes(parts[i + 1])
            if backend.get_range(key, sum(map(len, parts[:i])), len(sent)) != sent:
                raise wrong
        if kind is PackKind.DATA:
            self.journal.add(name, bytes(parts[-2]), end)
        with self._lock:
            self.written.add(key)
            self.out.moved_bytes += total
        self.meter.advance(bytes_=total)

    # ------------------------------------------------------------ P2: sections

    def _write_sections(self) -> list[Locator]:
        """Page packs with what leads to the data; the locators that will be written after the intent."""
        writer = SectionWriter(self._put_pack)
        # What refers to a section needs its range, so: recipes of files first, then the locators of files inside
        # folders, then the leaves of folders.
        drafts: dict[bytes, _Draft] = {}
        folders: list[tuple[PageRef, Entries, list[_File | None]]] = []
        nested: list[bytes] = []
        for version in self.out.sent:
            for ref, entries, files in self._open_leaves(version.root):
                if ref is None or entries is None:
                    assert files[0] is not None
                    self._draft(writer, drafts, version.root, files[0])
                    continue
                folders.append((ref, entries, files))
                profile = _section_profile(files)
                for i, file in enumerate(files):
                    if file is not None and _is_external(file, profile):
                        root = Root(FILE, entries.ids[i].tobytes(), int(entries.sizes[i]))
                        nested.append(root.id)
                        self._draft(writer, drafts, root, file)
        if nested:
            writer.finish()
            numbers = {}
            for name in dict.fromkeys(nested):
                data = loc.format_locator(drafts[name].locator(writer, _NESTED_INLINE_BYTES))
                numbers[name] = writer.add([], data, [], keep=False)
            writer.finish()
            for name, number in numbers.items():
                self.nested[name] = (writer.ref(number), b"")
        sections: dict[bytes, int] = {}
        for ref, entries, files in folders:
            if ref.id not in sections:
                sections[ref.id] = self._folder_section(writer, ref, entries, files)
        for version in self.out.sent:
            if version.root.kind == FOLDER:
                self._upper(
                    writer, ListKind.LISTING, _inner_pages(ListKind.LISTING, PageId(version.root.id), self.local)
                )
        writer.finish()
        out = []
        for version in self.out.sent:
            if version.root.kind == FILE:
                out.append(drafts[version.root.id].locator(writer, loc.INLINE_BYTES))
            else:
                out.append(self._folder_locator(writer, version.root, sections))
        return out

    def _draft(self, writer: SectionWriter, drafts: dict[bytes, _Draft], root: Root, file: _File) -> None:
        """Write the sections of a file that no known section serves."""
        if root.id in drafts:
            return
        draft = drafts[root.id] = _Draft(root, file)
        if not file.root:
            placed = SectionPlacement(self._place(file.chunks), np.zeros(0, np.uint32), ())
            draft.sections.append(writer.add([], loc.format_placement(placed), [], keep=True))
            return
        if len(file.chunks) < MIN_ENTRIES:  # one page, which may be known from the remote alone
            leaves = [(file.root, self._recipe_page(file), len(file.chunks))]
        else:
            refs = leaf_refs(ListKind.RECIPE, PageId(file.root), self.local.load_page)
            leaves = [(r.id, b"", r.entries) for r in refs]
            draft.pages = _inner_pages(ListKind.RECIPE, PageId(file.root), self.local)
        row = RecipeRow(root.id, file.root, root.size, file.profile)
        at = 0
        for n, (name, page, count) in enumerate(leaves):
            known = self.leaves.get(name)
            if known is not None:
                self.used_refs.add(known)
                draft.sections.append(known[0])
            elif name in self.own_leaves:
                draft.sections.append(self.own_leaves[name])
            else:
                place = self._place(file.chunks.slice(at, at + count))
                placed = SectionPlacement(place, np.zeros(0, np.uint32), (), file.profile)
                pages = [(bytes(name), page or self.local.load_page(PageId(name)))]
                rows = [] if draft.pages or n else [row]
                keep = len(leaves) <= _LEAVES_KEPT
                number = writer.add(pages, loc.format_placement(placed), rows, keep=keep)
                self.own_leaves[name] = number
                draft.sections.append(number)
            at += count
        if draft.pages:
            self._upper(writer, ListKind.RECIPE, draft.pages, row)

    def _upper(self, writer: SectionWriter, kind: ListKind, pages: bytes, *rows: RecipeRow) -> None:
        """The pages above the leaves stand in a page pack as well as in the locator: a repair starts from packs."""
        if pages:
            upper = loc.split_pages(pages, subject=kind.name)
            writer.add([(page_id(kind, p), p) for p in upper], b"", rows, keep=False)

    def _folder_section(self, writer: SectionWriter, ref: PageRef, entries: Entries, files: list[_File | None]) -> int:
        profile = _section_profile(files)
        per_entry = np.zeros(len(entries), np.uint32)
        externals: list[External] = []
        chunks: list[Chunks] = []
        recipes: dict[bytes, tuple[bytes, RecipeRow]] = {}
        for i, file in enumerate(files):
            name = entries.ids[i].tobytes()
            if file is None or _is_external(file, profile):
                if name in self.nested and int(entries.sizes[i]):
                    found, record = self.nested[name]
                    externals.append(External(i, found))
                    if record:
                        self.used_refs.add((found, record))
                continue
            per_entry[i] = len(file.chunks)
            chunks.append(file.chunks)
            if file.root and name not in recipes:
                page = self._recipe_page(file)
                recipes[name] = (page, RecipeRow(name, file.root, int(entries.sizes[i]), file.profile))
        placed = SectionPlacement(self._place(Chunks.join(chunks)), per_entry, tuple(externals), profile)
        pages = [(bytes(ref.id), self.local.load_page(ref.id))]
        pages += [(row.root, page) for page, row in recipes.values()]
        return writer.add(pages, loc.format_placement(placed), [row for _, row in recipes.values()], keep=True)

    def _recipe_page(self, file: _File) -> bytes:
        page = format_page(ListKind.RECIPE, 0, file.chunks)
        if page_id(ListKind.RECIPE, page) != file.root:
            raise FormatError("a recipe of few chunks is not one page", subject=file.root.hex()[:12])
        return page

    def _folder_locator(self, writer: SectionWriter, root: Root, sections: dict[bytes, int]) -> Locator:
        refs = list(leaf_refs(ListKind.LISTING, PageId(root.id), self.local.load_page))
        where: list[Ref] = []
        mine = [sections[r.id] for r in refs if r.id in sections]
        for ref in refs:
            known = self.leaves.get(ref.id)
            if ref.id in sections:
                where.append(writer.ref(sections[ref.id]))
            else:
                assert known is not None
                self.used_refs.add(known)
                where.append(known[0])
        inline: tuple[bytes, ...] = ()
        small = len(mine) == len(refs) and sum(r.length for r in where) <= loc.INLINE_BYTES
        if small and all(writer.has_bytes(n) for n in mine):
            inline = tuple(writer.encoded(n) for n in mine)
        pages = _inner_pages(ListKind.LISTING, PageId(root.id), self.local)
        return Locator(
            FOLDER, root.id, root.size, root.files, root.id, bytes(ID_BYTES), "", pages, tuple(where), inline
        )

    def _place(self, chunks: Chunks) -> Placement:
        at = self.chunks.find(chunks.ids)
        if (at < 0).any():
            raise DataMissing("a chunk that was just sent is not known", subject=self.remote.name)
        placed = loc.compact(self.chunks.place(at)) if len(chunks) else loc.empty_placement()
        self.used_packs.update(placed.blocks.packs)
        return placed

    # ------------------------------------------------------------ P3 to P7

    def _promise(self, locators: list[Locator]) -> bytes:
        backend = self.remote.backend
        bases = {record for _, record in self.used_refs if record}
        reused: set[str] = set()
        resumed: set[str] = set()
        for name in self.used_packs:
            key = pack_key(PackKind.DATA, name)
            if key in self.written:
                continue
            if key in self.resumed:
                resumed.add(key)
            elif name in self.origin:
                bases.add(self.origin[name])
            else:
                reused.add(key)
        record = Record(
            store=self.store_id,
            roots=tuple(sorted(v.root.text for v in self.out.sent)),
            packs=tuple(sorted(self.written | resumed)),
            reused=tuple(sorted(reused)),
            bases=tuple(sorted(b.hex() for b in bases)),
            time=int(time.time()),
            writer="dvk",
            nonce=secrets.token_hex(16),
        )
        data = format_record(record)
        rid = record_id(data)
        backend.put(record_key(rid), [data])  # P3
        relied = [*record.packs, *record.reused]
        dead = condemned(backend) & set(relied)  # P4
        there = list(self.pool.map(backend.stat, relied))  # P5
        dead |= {key for key, size in zip(relied, there, strict=True) if size is None}
        fallen = {b for b in bases if not is_live(backend, b)}
        if dead or fallen:
            raise _Conflict({bytes.fromhex(k.rsplit("/", 1)[-1]) for k in dead}, fallen)
        list(self.pool.map(lambda locator: self._put_locator(locator, rid), locators))
        again = self.remote.describe_again()
        if again is None or again.store != self.store_id:
            raise NotOurs("the store on this remote was replaced during the push", subject=self.remote.name)
        backend.put(record_key(rid, ".ok"), [format_mark(rid)])  # P6
        if backend.stat(record_key(rid, ".x")) is not None:  # P7
            raise _Conflict(set(), {rid})
        return rid

    def _put_locator(self, locator: Locator, rid: bytes) -> None:
        data = loc.format_locator(replace(locator, record=rid))
        self.remote.backend.put(locator_key(locator.kind, locator.id), [data])
        with self._lock:
            self.out.moved_bytes += len(data)
