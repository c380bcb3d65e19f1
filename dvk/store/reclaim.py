"""Freeing a local store of what no version needs: whole packs, and the dead parts of packs that are folded together.

    marks = mark(store, roots)                          # no lock: what is needed, by id
    found = survey(store, marks, young_s=86400, now=t)  # which packs hold nothing of it, which are worth writing anew
    copies = fold(store, marks, found.fold)             # copies what lives in those into new packs
    delete(store, mark(store, again), [*found.dead, *found.fold], copies)    # while nobody adds

One rule decides about every deletion, whoever proposed it: a pack may go when everything in it that is needed was just
read from, or written to, a pack that stays (or, to make room, was proven to lie on a remote). That an index or a footer
names a copy is not enough: the copy may be damaged. The rule is asked again when nobody can add any more, so marking
and folding need no lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import Struct, field

from dvk.backend.contract import Backend, Buffer, KeyMissing
from dvk.backend.local import LocalBackend
from dvk.errors import Busy, FormatError, StorageFull, Unsafe
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import PackId, PageId
from dvk.store.catalog import file_column
from dvk.store.codec import codec_numbers, decode_block
from dvk.store.index import U64, prefixes
from dvk.store.listing import Entries
from dvk.store.names import U8, distinct
from dvk.store.pack import BLOCK_HEADER, Footer, PackKind, pack_key
from dvk.store.packwriter import PackWriter
from dvk.store.pages import Children, Chunks, ListKind, page_id, parse_page
from dvk.store.placement import Blocks, Encoded, read_encoded
from dvk.store.root import FOLDER, Root
from dvk.store.store import Store, as_column

Mask = npt.NDArray[np.bool_]

#: A pack is written anew when so much of it is dead.
_DEAD_PART = 0.3
#: Packs below this size are folded together, once there are as many of a kind.
_SMALL_BYTES = 16 << 20
_SMALL_PACKS = 8
#: Less than this is not worth a new pack.
_WORTH_BYTES = 64 << 10
_PAGES_AT_ONCE = 1024


class _Needed:
    """A set of ids by their first 8 bytes: of two that begin alike one is kept for nothing."""

    def __init__(self) -> None:
        self._parts: list[U64] = []
        self._all: U64 = np.zeros(0, np.uint64)

    def add(self, ids: U8) -> None:
        """Take ids, uint8[n, 32]."""
        if len(ids):
            self._parts.append(prefixes(ids))

    def has(self, ids: U8) -> Mask:
        """bool[n]: which of some ids are in."""
        return self.has_prefixes(prefixes(ids))

    def has_prefixes(self, wanted: U64) -> Mask:
        """bool[n]: the same for the first 8 bytes of ids."""
        if self._parts:
            self._all = distinct(np.concatenate([self._all, *self._parts]))
            self._parts = []
        at = np.searchsorted(self._all, wanted)
        at[at == len(self._all)] = 0
        return np.asarray(self._all[at] == wanted) if len(self._all) else np.zeros(len(wanted), np.bool_)


class Safe:
    """Ids that may be deleted here, since they are elsewhere. Exact: strangers can make ids that begin alike."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.bytes_]] = []

    def add(self, ids: U8) -> None:
        """Take ids, uint8[n, 32]."""
        if len(ids):
            self._parts.append(_whole(ids))

    def has(self, ids: U8) -> Mask:
        """bool[n]: which of some ids are in."""
        if not self._parts:
            return np.zeros(len(ids), np.bool_)
        self._parts = [distinct(np.concatenate(self._parts))]
        return np.isin(_whole(ids), self._parts[0])


def _whole(ids: U8) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(ids).reshape(-1).view("S32")


class Marks(Struct):
    """What versions need. `missing` are the ids of pages that are not here."""

    chunks: _Needed = field(default_factory=_Needed)
    pages: _Needed = field(default_factory=_Needed)
    files: _Needed = field(default_factory=_Needed)
    missing: list[bytes] = field(default_factory=list)

    def rows(self, footer: Footer) -> Mask:
        """bool[n]: which chunks or pages of a pack are needed."""
        return (self.chunks if footer.kind is PackKind.DATA else self.pages).has(footer.ids)

    def recipes(self, footer: Footer) -> Mask:
        """bool[r]: which recipes of a page pack are of files that are needed."""
        return self.files.has(file_column(footer))


def mark(store: Store, roots: Collection[Root], *, lists: Store | None = None) -> Marks:
    """Everything here that these versions need; what was never fetched is passed over.

    Args:
        lists: the store, and those that its users borrow from: a list of files may lie there, and the data here.

    Raises:
        Unsafe: pages or recipes are damaged or gone, so nobody knows what they need.
        Busy: another collection deletes them right now.
    """
    lists = store if lists is None else lists
    lists.look_again()
    marks = Marks()
    folders = [r.id for r in roots if r.kind == FOLDER]
    plain = as_column(r.id for r in roots if r.kind != FOLDER)
    marks.files.add(plain)
    _walk(lists, ListKind.LISTING, folders, marks)
    # Every recipe of a file that is needed: where there are several, nobody says here which one is whole.
    recipes: list[bytes] = []
    here = _Needed()
    packs = ((part, name, kind) for part in lists.parts for name, kind in part.list_packs().items())
    for part, name, kind in packs:
        if kind is not PackKind.PAGES:
            continue
        try:
            footer = part.footer(name, kind)
        except KeyMissing as error:
            raise Busy(
                "another collection took a pack away meanwhile; nothing was deleted",
                subject=store.name,
                hint="run it again when that has ended",
            ) from error
        except FormatError as error:
            raise _unreadable(part, error) from error  # nobody knows what recipes it has
        if len(footer.recipes):
            here.add(file_column(footer))
            recipes += [bytes(root) for root in footer.recipes["root"][marks.recipes(footer)].tolist()]
    # What the index or a note says of recipes that no pack has any more.
    gone = sum(int((marks.files.has_prefixes(p) & ~here.has_prefixes(p)).sum()) for p in store.known_recipes())
    _walk(lists, ListKind.RECIPE, recipes, marks)
    # A file of one chunk is its chunk.
    marks.chunks.add(plain)
    lost = gone + int(np.count_nonzero(store.knew(as_column(marks.missing))))
    if lost or (marks.missing and store.damaged):
        raise Unsafe(
            f"{max(lost, 1):,} lists of versions were here and are damaged or lost, so nobody knows what they need; "
            "nothing was deleted",
            subject=store.name,
            hint="`dvk verify` says what is affected, `dvk repair` brings back what can be",
        )
    return marks


def _walk(store: Store, kind: ListKind, roots: Sequence[bytes], marks: Marks) -> None:
    """Mark lists from their roots down, each page once."""
    seen: set[bytes] = set()
    todo = list(dict.fromkeys(roots))
    while todo:
        group, todo = todo[:_PAGES_AT_ONCE], todo[_PAGES_AT_ONCE:]
        seen.update(group)
        marks.pages.add(as_column(group))
        try:
            found = store.load_pages([PageId(name) for name in group])
        except FormatError as error:
            raise _unreadable(store, error) from error
        marks.missing += [name for name in group if name not in found]
        below: list[bytes] = []
        for name, data in found.items():
            below += _read(store, kind, name, data, marks)
        todo += [name for name in dict.fromkeys(below) if name not in seen]


def _read(store: Store, kind: ListKind, name: PageId, data: bytes, marks: Marks) -> list[bytes]:
    """Mark what a page names; the pages below it."""
    try:
        if page_id(kind, data) != name:
            raise FormatError("a page fails its hash")
        body = parse_page(data, kind, subject=f"page {name.hex()[:12]}").body
    except FormatError as error:
        raise _unreadable(store, error) from error
    if isinstance(body, Children):
        return [ref.id for ref in body.refs]
    if isinstance(body, Entries):
        files = body.ids[body.is_file & (body.sizes > 0)]
        marks.files.add(files)
        marks.chunks.add(files)
    else:
        assert isinstance(body, Chunks)
        marks.chunks.add(body.ids)
    return []


def _unreadable(store: Store, error: FormatError) -> Unsafe:
    return Unsafe(
        f"a list of a version is damaged ({error.message}), so nobody knows what it needs; nothing was deleted",
        subject=error.subject or store.name,
        hint="`dvk verify` says what is affected, `dvk repair` brings back what can be",
    )


def _footer(store: Store, name: bytes, kind: PackKind) -> Footer | None:
    """The footer of a pack; None when it is damaged or gone: then it stays as it is."""
    try:
        return store.footer(name, kind)
    except (KeyMissing, FormatError):
        return None


# ------------------------------------------------------------ what could go


class Pack(Struct, frozen=True):
    """One pack of the store."""

    name: bytes
    kind: PackKind
    size: int
    live: int  #: bytes, as they are stored, of what is needed and in no pack before it
    dead: bool  #: nothing of it is needed
    used_at: float  #: when it was written or last read, as far as the medium tells
    young: bool


class Found(Struct, frozen=True):
    """What a store holds, and what of it is worth touching."""

    packs: tuple[Pack, ...]
    dead: tuple[Pack, ...]
    fold: tuple[Pack, ...]

    @property
    def total_bytes(self) -> int:
        """Of all packs."""
        return sum(p.size for p in self.packs)

    @property
    def freeable_bytes(self) -> int:
        """What deleting and folding would free."""
        return sum(p.size for p in self.dead) + sum(p.size - p.live for p in self.fold)


def survey(store: Store, marks: Marks, *, young_s: float, now: float) -> Found:
    """Weigh every pack. Packs younger than `young_s` are left alone: what was just added may not be committed yet."""
    backend = store.backend
    seen: list[tuple[bytes, PackKind, Footer, int, float, float]] = []
    for name, kind in sorted(store.list_packs().items()):
        footer, size = _footer(store, name, kind), backend.stat(pack_key(kind, name))
        if footer is not None and size is not None:
            written, used = _times(backend, pack_key(kind, name))
            seen.append((name, kind, footer, size, written, used))
    # Of copies that of a pack which stays anyway counts, or of the larger one.
    seen.sort(key=lambda x: (x[4] <= now - young_s, -x[3], x[0]))
    packs: list[Pack] = []
    claimed = {PackKind.DATA: _Needed(), PackKind.PAGES: _Needed()}
    for name, kind, footer, size, written, used in seen:
        rows = marks.rows(footer)
        dead = not rows.any() and not (len(footer.recipes) and marks.recipes(footer).any())
        counted = rows & ~claimed[kind].has(footer.ids)
        claimed[kind].add(footer.ids[rows])
        # A share of each block, as its chunks have it.
        ratio = (footer.packed_len + BLOCK_HEADER.size) / np.maximum(footer.raw_len, 1)
        live = int((footer.chunk_len[counted] * ratio[footer.chunk_block[counted]]).sum())
        packs.append(Pack(name, kind, size, min(live, size), dead, used, written > now - young_s))
    old = [p for p in packs if not p.young]
    folded: list[Pack] = []
    for kind in PackKind:
        alive = [p for p in old if p.kind is kind and not p.dead]
        small = [p for p in alive if p.size < _SMALL_BYTES]
        if len(small) < _SMALL_PACKS:
            small = []
        wasted = [p for p in alive if p.size - p.live > max(_DEAD_PART * p.size, _WORTH_BYTES)]
        # What frees most for what it costs first, so that a full disk gains room for the rest.
        folded += sorted({*small, *wasted}, key=lambda p: (p.live / max(p.size, 1), p.name))
    return Found(tuple(packs), tuple(p for p in old if p.dead), tuple(folded))


def _times(backend: Backend, key: str) -> tuple[float, float]:
    found = backend.times(key) if isinstance(backend, LocalBackend) else None
    return found or (0.0, 0.0)


# ------------------------------------------------------------ fold


class Copies(Struct):
    """What `fold` has read from or written to packs that stay."""

    data: Safe = field(default_factory=Safe)
    pages: Safe = field(default_factory=Safe)
    recipes: Safe = field(default_factory=Safe)
    packs: set[str] = field(default_factory=set)  #: keys of the packs that hold them
    stored_bytes: int = 0
    full: bool = False  #: the disk had no room for more
    damaged: list[FormatError] = field(default_factory=list)  #: packs that stay since a part cannot be read

    def of(self, kind: PackKind) -> Safe:
        """Those of one kind."""
        return self.data if kind is PackKind.DATA else self.pages


def fold(store: Store, marks: Marks, packs: Sequence[Pack], *, on_event: OnEvent = ignore) -> Copies:
    """Copy what is needed of some packs into new ones, durable and findable. Ends early where the disk is full.

    What a pack that is not among them holds, too, is read there in place of a copy.

    Raises:
        StorageError: what was copied so far is not used yet; nothing was deleted.
    """
    out = Copies()
    meter = Meter(on_event, "fold", total_bytes=sum(p.live for p in packs), total_items=len(packs))
    made: list[tuple[PackId, Footer]] = []

    def put(kind: PackKind, name: PackId, parts: list[Buffer]) -> None:
        store.backend.put(pack_key(kind, name), parts)

    def published(kind: PackKind, name: PackId, footer: Footer) -> None:
        made.append((name, footer))
        out.packs.add(pack_key(kind, name))
        out.of(kind).add(footer.ids)
        out.recipes.add(_recipe_ids(footer))

    try:
        descriptor = store.create()
        _prove_copies(store, marks, packs, out)
        with PackWriter(put, published, in_flight=1, codecs=codec_numbers(descriptor.codecs)) as writer:
            taken: set[bytes] = set()
            for pack in packs:
                try:
                    _copy(store, pack, marks, writer, taken, out)
                except FormatError as error:
                    out.damaged.append(error)
                meter.advance(bytes_=pack.live, items=1)
            writer.flush()
    except StorageFull:
        out.full = True
    out.stored_bytes = sum(store.backend.stat(pack_key(f.kind, name)) or 0 for name, f in made)
    store.adopt(made)
    try:
        store.save_index()
    except StorageFull:
        out.full = True  # found from their footers then
    return out


def _prove_copies(store: Store, marks: Marks, packs: Sequence[Pack], out: Copies) -> None:
    """Read what is needed of some packs in others that hold it, too."""
    mine = {p.name for p in packs}
    for kind in PackKind:
        needed = _Needed()
        for pack in packs:
            if pack.kind is kind and (footer := _footer(store, pack.name, kind)) is not None:
                needed.add(footer.ids[marks.rows(footer)])
        for name, other in store.list_packs().items():
            if other is not kind or name in mine or (footer := _footer(store, name, kind)) is None:
                continue
            rows = needed.has(footer.ids)
            try:
                for number, encoded in _blocks(store, kind, name, footer, rows):
                    decode_block(encoded.codec, encoded.payload, encoded.raw_len)
                    out.of(kind).add(footer.ids[(footer.chunk_block == number) & rows])
                    out.packs.add(pack_key(kind, name))
            except (KeyMissing, FormatError):
                continue  # what could not be read there is copied


def _copy(store: Store, pack: Pack, marks: Marks, writer: PackWriter, taken: set[bytes], out: Copies) -> None:
    footer = store.footer(pack.name, pack.kind)
    rows = marks.rows(footer)
    rows &= ~out.of(pack.kind).has(footer.ids)
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(rows).tolist():
        if footer.ids[i].tobytes() not in taken:
            members.setdefault(int(footer.chunk_block[i]), []).append(i)
    wanted = np.zeros(len(footer.ids), np.bool_)
    wanted[[i for group in members.values() for i in group]] = True
    for number, encoded in _blocks(store, pack.kind, pack.name, footer, wanted):
        group = members[number]
        ids = [footer.ids[i].tobytes() for i in group]
        lengths = footer.chunk_len[group].tolist()
        if pack.kind is PackKind.DATA and len(group) == int(footer.chunk_count[number]):
            # Decoded to see that it is whole; stored as it is.
            decode_block(encoded.codec, encoded.payload, encoded.raw_len)
            writer.add_encoded(encoded.codec, encoded.payload, encoded.raw_len, ids=ids, lengths=lengths)
        else:
            raw = decode_block(encoded.codec, encoded.payload, encoded.raw_len)
            starts = footer.chunk_offset[group].tolist()
            pieces = [raw[a : a + n] for a, n in zip(starts, lengths, strict=True)]
            if pack.kind is PackKind.DATA:
                writer.add_new(range(len(ids)), ids, lengths, memoryview(b"".join(pieces)))
            else:
                for name, piece in zip(ids, pieces, strict=True):
                    writer.add_page(PageId(name), piece)
        taken.update(ids)
    if pack.kind is PackKind.PAGES and len(footer.recipes):
        names = _recipe_ids(footer)
        for i in np.flatnonzero(marks.recipes(footer) & ~out.recipes.has(names)).tolist():
            if (name := names[i].tobytes()) not in taken:
                taken.add(name)
                writer.add_recipe(footer.recipe(i))
    writer.end_of_path()


def _blocks(store: Store, kind: PackKind, name: bytes, footer: Footer, rows: Mask) -> Iterator[tuple[int, Encoded]]:
    """The blocks of a pack that hold some rows, checked."""
    wanted = distinct(footer.chunk_block[rows]).tolist()
    where = (footer.block_offset, footer.packed_len, footer.raw_len, footer.codec)
    blocks = Blocks(kind, (name,), np.zeros(len(footer.raw_len), np.uint32), *where)
    yield from read_encoded(store.backend, blocks, wanted)


# ------------------------------------------------------------ delete


def delete(
    store: Store,
    marks: Marks,
    candidates: Sequence[Pack],
    copies: Copies,
    *,
    on_event: OnEvent = ignore,
) -> tuple[int, int]:
    """Delete those of some packs of which everything needed is safe elsewhere: (packs, bytes).

    The caller sees to it that nobody adds to the store meanwhile. A kill leaves each pack whole or gone.

    Args:
        marks: what is needed now.
    """
    if any(store.backend.stat(key) is None for key in copies.packs):
        # Another collection took one of two copies for the spare one, as this one does with the other.
        return 0, 0
    doomed: list[Pack] = []
    for pack in candidates:
        footer = _footer(store, pack.name, pack.kind)
        if footer is None:
            continue
        safe = copies.of(pack.kind).has(footer.ids[marks.rows(footer)]).all()
        if safe and len(footer.recipes):
            safe = copies.recipes.has(_recipe_ids(footer)[marks.recipes(footer)]).all()
        if safe:
            doomed.append(pack)
    if not doomed:
        return 0, 0
    # First the index, so that what it names and is not there was lost and not collected.
    store.drop_from_index({p.name for p in doomed})
    freed = sum(p.size for p in doomed)
    meter = Meter(on_event, "delete", total_bytes=freed, total_items=len(doomed))
    for pack in doomed:
        store.backend.delete(pack_key(pack.kind, pack.name))
        meter.advance(bytes_=pack.size, items=1)
    store.refresh()
    return len(doomed), freed


def _recipe_ids(footer: Footer) -> U8:
    """uint8[r, 32]: a name for each recipe, of its file and root together."""
    if not len(footer.recipes):
        return np.zeros((0, 32), np.uint8)
    rows = zip(footer.recipes["file"].tolist(), footer.recipes["root"].tolist(), strict=True)
    return as_column(blake3(bytes(file) + bytes(root)).digest() for file, root in rows)


def store_bytes(store: Store) -> int:
    """Of everything that grows with what is stored."""
    return sum(item.size_bytes for prefix in ("p/", "m/", "i/") for item in store.backend.list(prefix))
