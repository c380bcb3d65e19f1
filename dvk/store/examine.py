"""Whether the objects of a store are what they should be, one by one: what damage is, packs, and `dvk.json`.

The index is looked at by `examine_index`, records and locators by `examine_records`. What damage means for versions is
the business of `wholeness` (a store with an index) and `restorable` (a remote). Nothing is believed here: what an
object says of itself is compared with what it is, and a pack is read to its last bit where that is asked for.

    found = examine_pack(store, PackKind.DATA, name, size, Level.DATA)
    found.error, found.bad          # what is wrong with it, and which rows of its footer are damaged

| level | data pack | page pack | everything else |
|---|---|---|---|
| quick | its trailer against its size | the same | is there |
| default | its footer, too | read whole | read whole |
| data | read whole: its name, every block, every chunk id | the same | the same |

Damage is what was read twice and is not what it should be. What cannot be read is tried again, and then is *unread*:
nobody knows what it is, so nobody may act on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from enum import IntEnum

import numpy as np
from blake3 import blake3
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import Corrupt, DvkError, FormatError, NotOurs, Refused, RemoteError, StorageError
from dvk.store.codec import decode_block, known_codecs
from dvk.store.locator import piece_id
from dvk.store.names import I64
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
from dvk.store.store import Store

#: Read at a time of one pack; with the number of threads this bounds memory.
_RANGE_BYTES = 8 << 20
_NO_ROWS = np.zeros(0, np.int64)
_CHUNK_IS_WRONG = "a chunk fails its hash"
_PACK_KEY = re.compile(r"([pm])/([0-9a-f]{2})/(\2[0-9a-f]{62})")

Advance = Callable[[int], None]  #: hears of bytes that were read


class Level(IntEnum):
    """How closely to look."""

    QUICK = 0
    NORMAL = 1
    DATA = 2


class Damage(Struct, frozen=True):
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


class Examined(Struct, frozen=True):
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
    if found.error is not None:
        found = _twice(found, _content(store, kind, name, footer, [data, end], subject, lambda _n: None))
    return replace(found, size=size, level=level, footer=None if found.trouble is None else footer)


def _twice(first: Examined, second: Examined) -> Examined:
    """What two looks at one pack agree on: a block may be damaged only on its way, and what it holds is no loss."""
    if second.error is None or isinstance(second.error, KeyMissing):
        return second
    both = np.intersect1d(first.bad, second.bad), np.intersect1d(first.unusable, second.unusable)
    return replace(second, bad=both[0], unusable=both[1])


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


# ---------------------------------------------------------------- the descriptor


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
