"""Whether the objects of a store are what they should be, one by one: packs, index, locators, records, marks, lists.

What that means for versions is the business of `wholeness` (a store with an index) and `restorable` (a remote). Nothing
is believed here: what an object says of itself is compared with what it is, and a pack is read to its last bit where
that is asked for.

    found = examine_pack(store, PackKind.DATA, name, size, Level.DATA)
    found.error, found.bad          # what is wrong with it, and which rows of its footer are damaged

| level | data pack | page pack | everything else |
|---|---|---|---|
| quick | its trailer against its size | the same | is there |
| default | its footer, too | read whole | read whole |
| data | read whole: its name, every block, every chunk id | the same | the same |

Damage is what was read and is not what it should be. What cannot be read is tried again, and then is *unread*: nobody
knows what it is, so nobody may act on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
from blake3 import blake3

from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import Corrupt, DvkError, FormatError, NotOurs, Refused, RemoteError, StorageError
from dvk.store.catalog import file_column
from dvk.store.codec import decode_block, known_codecs
from dvk.store.index import Segment, Table, parse_segment, prefixes
from dvk.store.locator import MAX_BYTES as MAX_LOCATOR_BYTES
from dvk.store.locator import parse_locator, piece_id
from dvk.store.names import I64, U8
from dvk.store.pack import (
    BLOCK_HEADER,
    HEADER,
    TRAILER,
    Footer,
    PackKind,
    check_header,
    open_block,
    pack_key,
    parse_footer,
    parse_trailer,
)
from dvk.store.pages import ListKind, page_id
from dvk.store.profiles import known_profiles
from dvk.store.record import MAX_BYTES as MAX_RECORD_BYTES
from dvk.store.record import Record, format_mark
from dvk.store.roots import condemned_lists, load_record
from dvk.store.store import Store

#: Read at a time of one pack; with the number of threads this bounds memory.
_RANGE_BYTES = 8 << 20
_MAX_SEGMENT_BYTES = 1 << 40
_NO_ROWS = np.zeros(0, np.int64)
_CHUNK_IS_WRONG = "a chunk fails its hash"
_PACK_KEY = re.compile(r"([pm])/([0-9a-f]{2})/(\2[0-9a-f]{62})")
_SEGMENT_KEY = re.compile(r"i/(?:([0-9]{1,2})|bad)-[0-9a-f]{32}")
_LOCATOR_KEY = re.compile(r"l/([fd])/([0-9a-f]{2})/(\2[0-9a-f]{62})")
_RECORD_KEY = re.compile(r"j/([0-9a-f]{64})(|\.ok|\.x|\.e)")

Advance = Callable[[int], None]  #: hears of bytes that were read


class Level(IntEnum):
    """How closely to look."""

    QUICK = 0
    NORMAL = 1
    DATA = 2


@dataclass(frozen=True, slots=True)
class Damage:
    """One object that is not what it should be."""

    key: str
    error: DvkError
    bytes: int = 0  #: of data in it that is damaged, decoded; 0 where that is not known
    certain: bool = True  #: False where something that was cut short looks the same

    @property
    def unread(self) -> bool:
        """Whether the object could not be read: then this is no damage that anybody knows of."""
        return isinstance(self.error, StorageError)

    @property
    def kind(self) -> str:
        """What the object is, in a word."""
        first = self.key.partition("/")[0]
        words = {"p": "data pack", "m": "page pack", "i": "index", "l": "locator", "j": "record", "g": "condemned list"}
        return words.get(first, "store")


@dataclass(frozen=True, slots=True)
class Examined:
    """One pack. `footer` is kept only where something is wrong and it could be read.

    Attributes:
        bad: int64[k], rows of the footer whose data is not what their ids say.
        unusable: int64[m], those and all others of a block that fails its checksum: no reader takes them, and `salvage`
            saves them.
        unread: why some of it could not be read; nothing is known of that.
        unread_rows: int64[n], the rows that lie there.
    """

    name: bytes
    kind: PackKind
    size: int
    level: Level
    error: DvkError | None = None
    footer: Footer | None = None
    bad: I64 = field(default_factory=lambda: _NO_ROWS)
    unusable: I64 = field(default_factory=lambda: _NO_ROWS)
    unread: StorageError | None = None
    unread_rows: I64 = field(default_factory=lambda: _NO_ROWS)

    @property
    def trouble(self) -> DvkError | None:
        """What is wrong with it, or why that cannot be told."""
        return self.error or self.unread

    @property
    def unreadable(self) -> bool:
        """Whether nothing in it can be found any more."""
        return self.trouble is not None and self.footer is None

    @property
    def damage(self) -> Damage | None:
        """The same as damage of an object."""
        if self.error is None:
            return None if self.unread is None else Damage(pack_key(self.kind, self.name), self.unread)
        size = 0 if self.footer is None else int(self.footer.chunk_len[self.bad].sum(dtype=np.int64))
        return Damage(pack_key(self.kind, self.name), self.error, size)


# ---------------------------------------------------------------- packs


def list_packs(backend: Backend) -> dict[tuple[PackKind, bytes], int]:
    """All packs with their sizes."""
    out: dict[tuple[PackKind, bytes], int] = {}
    for kind in PackKind:
        for item in backend.list(f"{kind.prefix}/"):
            if match := _PACK_KEY.fullmatch(item.key):
                out[kind, bytes.fromhex(match[3])] = item.size_bytes
    return out


def examine_pack(
    store: Store,
    kind: PackKind,
    name: bytes,
    size: int,
    level: Level,
    *,
    advance: Advance = lambda _n: None,
    look: Callable[[Footer], None] = lambda _f: None,
) -> Examined:
    """Look at one pack.

    Args:
        size: as the medium listed it.
        look: shown the footer, where that is read and right.

    Raises:
        RemoteError: the remote does not answer.
    """
    whole = level is Level.DATA or (level is Level.NORMAL and kind is PackKind.PAGES)
    backend, subject = store.backend, f"{store.name}/{pack_key(kind, name)}"
    try:
        end = _end(backend, kind, name, size, subject)
        if level is Level.QUICK:
            advance(TRAILER.size)
            return Examined(name, kind, size, level)
        trailer = parse_trailer(end, subject=subject)
        data = patiently(lambda: backend.get_range(pack_key(kind, name), trailer.footer_offset, trailer.footer_len))
        footer = parse_footer(data, trailer, subject=subject)
    except RemoteError:
        raise
    except StorageError as failed:
        return Examined(name, kind, size, level, unread=failed)
    except (FormatError, KeyMissing) as error:
        return Examined(name, kind, size, level, error)
    look(footer)
    if not whole:
        advance(len(data) + TRAILER.size)
        return Examined(name, kind, size, level)
    found = _content(store, kind, name, footer, [data, end], subject, advance)
    return replace(found, size=size, level=level, footer=None if found.trouble is None else footer)


def _end(backend: Backend, kind: PackKind, name: bytes, size: int, subject: str) -> bytes:
    """The trailer, which must be that of a pack of this kind and length."""
    if size < TRAILER.size:
        raise Corrupt("a pack is shorter than its trailer", subject=subject)
    end = patiently(lambda: backend.get_range(pack_key(kind, name), size - TRAILER.size, TRAILER.size))
    trailer = parse_trailer(end, subject=subject)
    if trailer.pack_len != size or trailer.kind is not kind:
        raise Corrupt("a pack has not the length or kind it states", subject=subject)
    return end


def _content(
    store: Store, kind: PackKind, name: bytes, footer: Footer, end: list[bytes], subject: str, advance: Advance
) -> Examined:
    """Read a pack from its first to its last byte. What is found has no size, level and footer yet."""
    key, backend = pack_key(kind, name), store.backend
    hasher = blake3()
    error: DvkError | None = None
    unread: StorageError | None = None
    bad, unusable, dark = [_NO_ROWS], [_NO_ROWS], [_NO_ROWS]

    def read(offset: int, length: int) -> memoryview | None:
        """A piece of the pack; empty where the pack ends before it, None where it cannot be read."""
        nonlocal error, unread
        try:
            return memoryview(patiently(lambda: backend.get_range(key, offset, length)))
        except StorageError as failed:
            unread = unread or failed
            return None
        except (FormatError, KeyMissing) as failed:
            error = error or failed
        return memoryview(b"")

    try:
        head = bytes(read(0, HEADER.size) or b"")
        hasher.update(head)
        if head and check_header(head, subject=subject) is not kind:
            error = Corrupt("a pack is of another kind than it states", subject=subject)
    except FormatError as failed:
        error = failed
    for start, stop in _runs(footer):
        first = int(footer.block_offset[start])
        length = int(footer.block_offset[stop - 1]) + BLOCK_HEADER.size + int(footer.packed_len[stop - 1]) - first
        run = read(first, length)
        if run:
            hasher.update(run)
        for b in range(start, stop):
            offset = int(footer.block_offset[b])
            span = BLOCK_HEADER.size + int(footer.packed_len[b])
            piece = run[offset - first : offset - first + span] if run else read(offset, span)
            if piece is None:
                dark.append(np.arange(*block_rows(footer, b), dtype=np.int64))
                continue
            rows, wrong = damaged_rows(footer, b, piece, subject=f"{subject} at {offset:,}")
            bad.append(rows)
            # A checksum that fails speaks for the whole block.
            whole = wrong is not None and wrong.message != _CHUNK_IS_WRONG
            unusable.append(np.arange(*block_rows(footer, b), dtype=np.int64) if whole else rows)
            error = error or wrong
        advance(length)
    for part in end:
        hasher.update(part)
    advance(HEADER.size + sum(map(len, end)))
    if error is None and unread is None and hasher.digest() != name:
        error = Corrupt("a pack fails its hash", subject=subject)
    parts = [np.concatenate(x) for x in (bad, unusable, dark)]
    return Examined(name, kind, 0, Level.DATA, error, None, parts[0], parts[1], unread, parts[2])


def _runs(footer: Footer) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring blocks that are read together."""
    ends = footer.block_offset + footer.packed_len + BLOCK_HEADER.size
    start, n = 0, len(footer.packed_len)
    while start < n:
        limit = int(footer.block_offset[start]) + _RANGE_BYTES
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield start, stop
        start = stop


def block_rows(footer: Footer, block: int) -> tuple[int, int]:
    """The rows of a block: first and one after the last."""
    low, high = np.searchsorted(footer.chunk_block, [block, block + 1])
    return int(low), int(high)


def damaged_rows(footer: Footer, block: int, piece: memoryview, *, subject: str) -> tuple[I64, DvkError | None]:
    """The rows of a block (as it lies in the pack) that are not what their ids say, and why."""
    low, high = block_rows(footer, block)
    everything = np.arange(low, high, dtype=np.int64)
    error: DvkError | None = None
    stated = (int(footer.codec[block]), int(footer.raw_len[block]), int(footer.packed_len[block]))
    try:
        codec, raw_len, payload = open_block(piece, subject=subject)
        if (codec, raw_len, len(payload)) != stated:
            raise Corrupt("a block is not what the footer says", subject=subject)
    except FormatError as failed:
        error, payload = failed, piece[BLOCK_HEADER.size :]
        if len(payload) != stated[2]:
            return everything, error
    try:
        raw = memoryview(decode_block(stated[0], payload, stated[1]))
    except FormatError as failed:
        return everything, error or type(failed)(failed.message, subject=subject, hint=failed.hint)
    # Of an uncompressed block most may be right: what its id proves is good, whatever the checksum says.
    bad = [i for i in range(low, high) if not _is_right(footer, i, raw)]
    if bad and error is None:
        error = Corrupt(_CHUNK_IS_WRONG, subject=subject)
    return np.array(bad, np.int64), error


def _is_right(footer: Footer, row: int, raw: memoryview) -> bool:
    at = int(footer.chunk_offset[row])
    data, wanted = raw[at : at + int(footer.chunk_len[row])], footer.ids[row].tobytes()
    if footer.kind is PackKind.DATA:
        return bool(blake3(data).digest() == wanted)
    # What begins like a page is one, unless it is a piece of a placement that happens to.
    return any(page_id(kind, data) == wanted for kind in ListKind) or piece_id(data) == wanted


# ---------------------------------------------------------------- the index


class IndexCheck:
    """Whether segments say what the footers say. `pack` may be called from several threads."""

    def __init__(self, store: Store) -> None:
        self.damage: list[Damage] = []
        self._disagree: list[tuple[bytes, Damage]] = []
        self._segments: list[tuple[str, Segment, dict[bytes, int], tuple[I64, I64]]] = []
        for item in store.backend.list("i/"):
            match = _SEGMENT_KEY.fullmatch(item.key)
            if match is None:
                continue
            subject = f"{store.name}/{item.key}"
            try:
                data = patiently(lambda key=item.key: store.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES))  # type: ignore[misc]
                segment = parse_segment(data, subject=subject, check=True)
                if int(match[1] or 0) != segment.level:
                    raise Corrupt("an index segment is of another level than its name says", subject=subject)
                if any(bool((t.prefix[1:] < t.prefix[:-1]).any()) for t in (segment.chunks, segment.recipes)):
                    raise Corrupt("an index segment is not in order", subject=subject)
            except KeyMissing:
                continue  # merged meanwhile
            except (FormatError, StorageError) as error:
                self.damage.append(Damage(item.key, error))
                continue
            if match[1] is not None:
                number = {name: i for i, name in enumerate(segment.packs)}
                counts = (_counts(segment.chunks, len(number)), _counts(segment.recipes, len(number)))
                self._segments.append((item.key, segment, number, counts))

    def pack(self, name: bytes, footer: Footer, *, subject: str) -> None:
        """Compare what is said of one pack."""
        for key, segment, number, (chunks, recipes) in self._segments:
            p = number.get(name)
            if p is None:
                continue
            right = _says(segment.chunks, p, footer.ids, int(chunks[p]))
            if not right or not _says(segment.recipes, p, file_column(footer), int(recipes[p])):
                error = Corrupt(f"the index says of pack {name.hex()[:12]} what its footer does not", subject=subject)
                self._disagree.append((name, Damage(key, error)))

    def all_damage(self, *, but: Container[bytes]) -> list[Damage]:
        """What is wrong with segments; what they say of some packs, which are damaged themselves, does not count."""
        return [*self.damage, *(d for name, d in self._disagree if name not in but)]


def _counts(table: Table, packs: int) -> I64:
    return np.bincount(table.pack, minlength=packs).astype(np.int64)


def _says(table: Table, pack: int, ids: U8, count: int) -> bool:
    """Whether a table names each of a pack's ids with its row, and no other row of it."""
    if count != len(ids):
        return False
    which, at = table.find(prefixes(ids))
    mine = (table.pack[at] == pack) & (table.row[at] == which)
    return len(np.unique(which[mine])) == len(ids)


# ---------------------------------------------------------------- what only a remote has


@dataclass(slots=True)
class Records:
    """The records of a remote, by their ids in hex."""

    damage: list[Damage] = field(default_factory=list)
    all: dict[str, Record] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)  #: confirmed and not retired
    bad: set[str] = field(default_factory=set)  #: that cannot be read, or are confirmed and not there
    ended: set[str] = field(default_factory=set)  #: that were retired or given up, whether they are there or not

    def named(self, rid: str) -> set[str]:
        """The packs that a record relies on, its bases' included."""
        return {key for r in self.with_bases(rid) for key in (*self.all[r].packs, *self.all[r].reused)}

    def with_bases(self, rid: str) -> set[str]:
        """A record with those that it relies on, and they on, as far as they can be read."""
        seen, todo = set(), [rid]
        while todo:
            one = todo.pop()
            if one in self.all and one not in seen:
                seen.add(one)
                todo += self.all[one].bases
        return seen

    def shaky(self) -> set[str]:
        """Live records that rely on one that cannot be read, so that nobody knows all that they need."""
        return {rid for rid in self.live if any(self.bad.intersection(self.all[r].bases) for r in self.with_bases(rid))}

    def roots(self, *, without: Container[str] = ()) -> dict[str, str]:
        """Root -> a live record that names it and none of some packs."""
        out: dict[str, str] = {}
        for rid in sorted(self.live):
            if not any(key in without for key in self.named(rid)):
                out.update(dict.fromkeys(self.all[rid].roots, rid))
        return out

    def lost(self, packs: Container[str]) -> dict[str, set[str]]:
        """Packs that are not among `packs` and that a live record needs: key -> roots that only such records name.

        Who mends a loss sends the data under another record, and the old one stays: it needs nothing any more.
        """
        broken = {rid: {k for k in self.named(rid) if k not in packs} for rid in self.live}
        whole = {root for rid, gone in broken.items() if not gone for root in self.all[rid].roots}
        out: dict[str, set[str]] = {}
        for rid, gone in broken.items():
            roots = set(self.all[rid].roots) - whole
            for key in gone if roots else ():
                out.setdefault(key, set()).update(roots)
        return out


def examine_store(store: Store) -> list[Damage]:
    """What is wrong with `dvk.json`.

    Raises:
        RemoteError: the remote does not answer. StorageError: it cannot be read, so nobody knows.
    """
    try:
        found = patiently(store.describe_again)
    except (FormatError, NotOurs, Refused) as error:
        return [Damage("dvk.json", error)]
    if found is None:
        return [Damage("dvk.json", Corrupt("there is none", subject=f"{store.name}/dvk.json"))]
    strange = sorted(({*found.codecs} - {*known_codecs()}) | ({*found.profiles} - {*known_profiles()}))
    if strange:
        what = f"it names what this dvk does not know: {', '.join(strange)}"
        return [Damage("dvk.json", Corrupt(what, subject=f"{store.name}/dvk.json", hint="upgrade dvk, if that is why"))]
    return []


def examine_records(store: Store, pool: Executor, *, packs: set[str], any_store: bool = False) -> Records:
    """Read every record, mark and condemned list of a remote.

    Args:
        packs: keys of the packs that are there.
        any_store: it is not known which store this is.

    Raises:
        RemoteError: the remote does not answer.
    """
    out = Records()
    backend = store.backend
    found = store.describe()
    keys = {m[0]: (m[1], m[2]) for item in backend.list("j/") if (m := _RECORD_KEY.fullmatch(item.key))}

    def record(rid: str) -> None:
        loaded = load_record(backend, bytes.fromhex(rid))
        if found is not None and loaded.store != found.store and not any_store:
            raise Corrupt("a record is of another store than dvk.json says", subject=f"{store.name}/j/{rid}")
        out.all[rid] = loaded
        if f"j/{rid}.ok" in keys and f"j/{rid}.x" not in keys:
            out.live.add(rid)

    def mark(key: str) -> None:
        wanted = format_mark(bytes.fromhex(keys[key][0]))
        if backend.get(key, max_bytes=len(wanted)) != wanted:
            raise Corrupt("this mark is damaged; that it is there is what counts", subject=f"{store.name}/{key}")

    def look(key: str) -> Damage | None:
        rid, mark_ = keys[key]
        try:
            patiently(lambda: mark(key) if mark_ else record(rid))
        except (FormatError, StorageError, KeyMissing) as error:
            if not mark_:
                out.bad.add(rid)
            return Damage(key, error)
        return None

    out.damage += [d for d in pool.map(look, sorted(keys)) if d is not None]
    out.ended = {rid for rid, mark_ in keys.values() if mark_ in (".x", ".e")}
    for rid, mark_ in keys.values():
        if mark_ == ".ok" and f"j/{rid}" not in keys and rid not in out.ended:
            lost = Corrupt("a record is confirmed and not there", subject=f"{store.name}/j/{rid}")
            out.damage.append(Damage(f"j/{rid}", lost))
            out.bad.add(rid)
    for rid in sorted(out.live):
        for base in sorted(set(out.all[rid].bases) - out.all.keys() - out.bad):
            lost = Corrupt(f"record {rid[:12]} relies on it and it is not there", subject=f"{store.name}/j/{base}")
            out.damage.append(Damage(f"j/{base}", lost))
            out.bad.add(base)
    out.damage += _lists(store, found.store if found is not None else "", packs)
    return out


def _lists(store: Store, store_id: str, packs: set[str]) -> list[Damage]:
    try:
        lists = condemned_lists(store.backend)
    except RemoteError:
        raise
    except DvkError as error:
        return [Damage(error.subject.rpartition(f"{store.name}/")[2] or "g/", error)]
    out = []
    for key, named in lists.items():
        subject = f"{store.name}/{key}"
        if json.loads(store.backend.get(key, max_bytes=MAX_RECORD_BYTES))["store"] != store_id:
            out.append(Damage(key, Corrupt("a condemned list is of another store", subject=subject)))
        # No checksum tells, but a list names packs that are there, until its owner deletes them one by one.
        elif gone := sorted(set(named) - packs):
            what = f"it condemns {gone[0][:17]}, which is not there: a collection was cut short, or the list is damaged"
            out.append(Damage(key, Corrupt(what, subject=subject, hint="`dvk gc` of its owner ends it"), certain=False))
    return out


def examine_locators(store: Store, pool: Executor) -> dict[str, Damage | None]:
    """Read every locator of a remote: root -> what is wrong with it.

    Raises:
        RemoteError: the remote does not answer.
    """

    def look(key: str) -> Damage | None:
        match = _LOCATOR_KEY.fullmatch(key)
        assert match is not None
        subject = f"{store.name}/{key}"
        try:
            data = patiently(lambda: store.backend.get(key, max_bytes=MAX_LOCATOR_BYTES))
            parse_locator(data, kind=1 if match[1] == "f" else 2, wanted=bytes.fromhex(match[3]), subject=subject)
        except (FormatError, StorageError) as error:
            return Damage(key, error)
        except KeyMissing:
            return None
        return None

    keys = sorted(item.key for item in store.backend.list("l/") if _LOCATOR_KEY.fullmatch(item.key))
    return {f"{k[2]}:{k.rsplit('/', 1)[-1]}": d for k, d in zip(keys, pool.map(look, keys), strict=True)}
