"""Locators: from the id that a pointer names to byte ranges. docs/format/locator.md is the truth, this is its code.

A bucket has no index that a fresh clone could afford to read. A locator is one object under a key that the clone
knows already (the id), and it leads to sections: a leaf of a list with the placement of everything on that leaf.
It is a hint; what it leads to is verified by hash.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash
from blake3 import blake3
from msgspec import Struct

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt, NewerFormat
from dvk.ids import ID_BYTES
from dvk.store.codec import decode_block
from dvk.store.pack import BLOCK_HEADER, HEADER, MAX_BLOCK_BYTES, MAX_PACK_BYTES, PackKind, iter_blocks
from dvk.store.pages import ListKind, page_length
from dvk.store.placement import Blocks, Placement
from dvk.store.root import FILE

U32 = npt.NDArray[np.uint32]

MAX_BYTES = 64 << 20
INLINE_BYTES = 1 << 20
#: Files of more chunks than this stand on their own and are referred to by a range.
MAX_INLINE_CHUNKS = 64

_HEAD = struct.Struct("<8sHBBIIIQQ32s32s32s16sQ")
_PLACE = struct.Struct("<8sIIIIII16s")
_MAGIC, _PLACE_MAGIC = b"dvkLOC1\0", b"dvkPLC1\0"
_NO_ID = bytes(ID_BYTES)


def locator_key(kind: int, name: bytes) -> str:
    """The key of the locator of a file or folder."""
    digits = name.hex()
    return f"l/{'f' if kind == FILE else 'd'}/{digits[:2]}/{digits}"


def piece_id(data: Buffer) -> bytes:
    """The id under which a piece of a placement or of an external locator stands in a footer."""
    return blake3(data, derive_key_context="dvk v1 placement piece").digest()


class Ref(Struct, frozen=True):
    """A run of whole blocks in a page pack."""

    pack: bytes
    offset: int
    length: int


class Locator(Struct, frozen=True):
    """What stands under `l/`. `sections` has one reference for each leaf; `inline` their bytes, or is empty."""

    kind: int
    id: bytes
    size: int
    files: int
    root: bytes  #: zeros for a file of one chunk
    record: bytes
    profile: str
    pages: bytes  #: the pages above the leaves, root first
    sections: tuple[Ref, ...]
    inline: tuple[bytes, ...] = ()


def format_locator(loc: Locator) -> bytes:
    """The bytes of a locator; sections are put inline when `loc.inline` has them."""
    packs = sorted({r.pack for r in loc.sections})
    number = {p: i for i, p in enumerate(packs)}
    head = _HEAD.pack(
        _MAGIC,
        1,
        loc.kind,
        1 if loc.inline else 0,
        len(packs),
        len(loc.sections),
        len(loc.pages),
        loc.size,
        loc.files,
        loc.id,
        loc.root,
        loc.record,
        profile_field(loc.profile),
        0,
    )
    body = [
        head,
        b"".join(packs),
        np.array([number[r.pack] for r in loc.sections], "<u4").tobytes(),
        np.array([r.offset for r in loc.sections], "<u8").tobytes(),
        np.array([r.length for r in loc.sections], "<u4").tobytes(),
        loc.pages,
        *loc.inline,
    ]
    data = b"".join(body)
    return data + struct.pack("<Q", xxhash.xxh3_64_intdigest(data))


def parse_locator(data: bytes, *, kind: int, wanted: bytes, subject: str) -> Locator:
    """Read the locator of the id `wanted`.

    Raises:
        NewerFormat, Corrupt: also when it is the locator of something else.
    """

    def bad(what: str) -> Corrupt:
        return Corrupt(
            f"the locator {what}",
            subject=subject,
            hint="`dvk push --verify full` by whoever has this version writes it again",
        )

    if not _HEAD.size + 8 <= len(data) <= MAX_BYTES:
        raise bad("is cut short")
    if xxhash.xxh3_64_intdigest(memoryview(data)[:-8]) != int.from_bytes(data[-8:], "little"):
        raise bad("fails its checksum")
    magic, version, kind_, inline, p, s, g, size, files, name, root, record, profile, reserved = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise bad("is something else")
    if version != 1 or reserved or inline > 1:
        raise NewerFormat("this locator was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if kind_ != kind or name != wanted:
        raise bad("belongs to another id")
    at = _HEAD.size
    fixed = p * ID_BYTES + s * 16 + g
    if fixed > len(data) - 8 - at or size >= 1 << 62:
        raise bad("states more than it holds")
    packs = [data[at + 32 * i : at + 32 * i + 32] for i in range(p)]
    if any(a >= b for a, b in itertools.pairwise(packs)):
        raise bad("does not list its packs in order")
    at += ID_BYTES * p
    pack = np.frombuffer(data, "<u4", s, at).tolist()
    offset = np.frombuffer(data, "<u8", s, at + 4 * s).tolist()
    length = np.frombuffer(data, "<u4", s, at + 12 * s).tolist()
    at += 16 * s
    if set(pack) != set(range(p)) or any(not _is_range(o, n) for o, n in zip(offset, length, strict=True)):
        raise bad("leads outside of packs")
    pages = data[at : at + g]
    at += g
    parts: list[bytes] = []
    rest = len(data) - 8 - at
    if inline:
        if sum(length) != rest or not s:
            raise bad("does not hold the sections it states")
        for n in length:
            parts.append(data[at : at + n])
            at += n
    elif rest:
        raise bad("holds more than it states")
    profile_name = parse_profile(profile, subject=subject)
    refs = tuple(Ref(packs[a], b, c) for a, b, c in zip(pack, offset, length, strict=True))
    return Locator(kind_, name, size, files, root, record, profile_name, pages, refs, tuple(parts))


def profile_field(name: str) -> bytes:
    """A profile name as 16 bytes."""
    return name.encode("ascii").ljust(16, b"\0")


def parse_profile(field: bytes, *, subject: str) -> str:
    """The profile name in 16 bytes; empty for zeros."""
    name = field.rstrip(b"\0")
    if b"\0" in name or not name.isascii() or any(b < 33 for b in name):
        raise Corrupt("a profile name that is none", subject=subject)
    return name.decode("ascii")


def _is_range(offset: int, length: int) -> bool:
    return offset >= HEADER.size and length > BLOCK_HEADER.size and offset + length <= MAX_PACK_BYTES


def split_pages(data: bytes, *, subject: str) -> list[bytes]:
    """Pages that stand one after the other."""
    out, view = [], memoryview(data)
    while view:
        n = page_length(view, subject=subject)
        out.append(bytes(view[:n]))
        view = view[n:]
    return out


def decode_blocks(data: Buffer, *, subject: str, limit: int = MAX_BYTES) -> bytes:
    """The decoded and joined blocks of a range; a full leaf with all that belongs to it takes 40 MiB at most."""
    out: list[bytes] = []
    total = 0
    for codec, raw_len, payload in iter_blocks(data, subject=subject):
        total += raw_len
        if total > limit:
            raise Corrupt("a section is larger than allowed", subject=subject)
        out.append(decode_block(codec, payload, raw_len))
    return b"".join(out)


# ---------------------------------------------------------------- sections


class External(Struct, frozen=True):
    """Entry `entry` of a leaf has a locator of its own in that range."""

    entry: int
    ref: Ref


class SectionPlacement(Struct, frozen=True):
    """The placement at the end of a section: chunks in the order of the leaf."""

    placement: Placement
    per_entry: U32  #: chunks of each entry of a listing leaf; empty for a recipe leaf
    externals: tuple[External, ...]
    profile: str = ""  #: of the recipes in the section


class Section(Struct, frozen=True):
    """A decoded section."""

    leaf: bytes  #: empty for a file of one chunk
    recipes: tuple[bytes, ...]
    placed: SectionPlacement


def format_placement(p: SectionPlacement) -> bytes:
    """The bytes of a placement."""
    b = p.placement.blocks
    packs = list(b.packs)
    number = {name: i for i, name in enumerate(packs)}
    for x in p.externals:
        if x.ref.pack not in number:
            number[x.ref.pack] = len(packs)
            packs.append(x.ref.pack)
    counts = (len(packs), len(b), len(p.placement.block), len(p.per_entry), len(p.externals), 0)
    return b"".join(
        [
            _PLACE.pack(_PLACE_MAGIC, *counts, profile_field(p.profile)),
            b"".join(packs),
            b.pack.astype("<u4").tobytes(),
            b.offset.astype("<u8").tobytes(),
            b.packed_len.astype("<u4").tobytes(),
            b.raw_len.astype("<u4").tobytes(),
            b.codec.astype("u1").tobytes(),
            p.placement.block.astype("<u4").tobytes(),
            p.placement.offset.astype("<u4").tobytes(),
            p.per_entry.astype("<u4").tobytes(),
            np.array([x.entry for x in p.externals], "<u4").tobytes(),
            np.array([number[x.ref.pack] for x in p.externals], "<u4").tobytes(),
            np.array([x.ref.offset for x in p.externals], "<u8").tobytes(),
            np.array([x.ref.length for x in p.externals], "<u4").tobytes(),
        ]
    )


def parse_placement(data: bytes, *, subject: str) -> SectionPlacement:
    """Read a placement; every number that leads somewhere is checked.

    Raises:
        Corrupt, NewerFormat
    """

    def bad(what: str) -> Corrupt:
        return Corrupt(f"a placement {what}", subject=subject)

    if len(data) < _PLACE.size:
        raise bad("is cut short")
    magic, p, m, n, e, x, reserved, profile = _PLACE.unpack_from(data)
    if magic != _PLACE_MAGIC:
        raise bad("is something else")
    if reserved:
        raise NewerFormat("this section was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if _PLACE.size + 32 * p + 21 * m + 8 * n + 4 * e + 20 * x != len(data):
        raise bad("states counts that do not fill it")
    at = _PLACE.size
    packs = tuple(data[at + 32 * i : at + 32 * i + 32] for i in range(p))
    if len(set(packs)) != p:
        raise bad("lists a pack twice")
    at += 32 * p

    def column(dtype: str, count: int) -> npt.NDArray[np.integer]:
        nonlocal at
        out = np.frombuffer(data, dtype, count, at)
        at += out.nbytes
        return out

    pack, offset, packed, raw = column("<u4", m), column("<u8", m), column("<u4", m), column("<u4", m)
    codec = column("u1", m)
    block, inside = column("<u4", n), column("<u4", n)
    per_entry = column("<u4", e)
    x_entry, x_pack, x_offset, x_length = (
        column("<u4", x),
        column("<u4", x),
        column("<u8", x),
        column("<u4", x),
    )
    if m and (
        int(pack.max()) >= p
        or int(raw.max()) > MAX_BLOCK_BYTES
        or int(packed.min()) < 1
        or bool((packed > raw).any())
        or int(offset.min()) < HEADER.size
        or int(offset.max()) > MAX_PACK_BYTES
    ):
        raise bad("leads outside of packs")
    if n and (int(block.max()) >= m or bool((inside >= raw[block]).any())):
        raise bad("leads outside of blocks")
    if e and (int(per_entry.max()) > MAX_INLINE_CHUNKS or int(per_entry.sum(dtype=np.uint64)) != n):
        raise bad("counts chunks wrongly")
    rows = zip(x_entry.tolist(), x_pack.tolist(), x_offset.tolist(), x_length.tolist(), strict=True)
    externals = []
    for entry, which, o, length in rows:
        if entry >= e or which >= p or not _is_range(o, length):
            raise bad("leads outside of packs")
        externals.append(External(entry, Ref(packs[which], o, length)))
    blocks = Blocks(
        PackKind.DATA,
        packs,
        pack.astype(np.uint32),
        offset.astype(np.int64),
        packed.astype(np.uint32),
        raw.astype(np.uint32),
        codec.astype(np.uint8),
    )
    placement = Placement(blocks, block.astype(np.uint32), inside.astype(np.uint32))
    return SectionPlacement(
        placement, per_entry.astype(np.uint32), tuple(externals), parse_profile(profile, subject=subject)
    )


def format_section(
    leaf: bytes, recipes: Sequence[bytes], placed: SectionPlacement
) -> list[tuple[ListKind | None, bytes]]:
    """What a section consists of, in order; None marks the placement."""
    pages: list[tuple[ListKind | None, bytes]] = [(None, format_placement(placed))]
    inner: list[tuple[ListKind | None, bytes]] = [(ListKind.RECIPE, r) for r in recipes]
    if leaf:
        kind = ListKind(leaf[5])
        return [(kind, leaf), *inner, *pages]
    return [*inner, *pages]


def parse_section(data: Buffer, *, single: bool, subject: str, limit: int = MAX_BYTES) -> Section:
    """Read a section from its blocks, of at most `limit` bytes. `single`: of a file of one chunk, which has no leaf.

    The pages are taken apart, not yet proven: whoever reads them compares their ids.
    """
    stream = memoryview(decode_blocks(data, subject=subject, limit=limit))
    pages: list[bytes] = []
    while bytes(stream[:8]) != _PLACE_MAGIC:
        n = page_length(stream, subject=subject)
        pages.append(bytes(stream[:n]))
        stream = stream[n:]
    if single == bool(pages):
        raise Corrupt("a section has not the pages it should have", subject=subject)
    placed = parse_placement(bytes(stream), subject=subject)
    return Section(pages[0] if pages else b"", tuple(pages[1:]), placed)


def concat_placements(parts: Sequence[Placement]) -> Placement:
    """Several placements as one; blocks are numbered on."""
    packs: list[bytes] = []
    number: dict[bytes, int] = {}
    columns: list[list[npt.NDArray[np.generic]]] = []
    block: list[U32] = []
    base = 0
    for p in parts:
        for name in p.blocks.packs:
            if name not in number:
                number[name] = len(packs)
                packs.append(name)
        renumber = np.array([number[name] for name in p.blocks.packs], np.uint32)
        pack = renumber[p.blocks.pack] if len(p.blocks) else p.blocks.pack
        columns.append([pack, p.blocks.offset, p.blocks.packed_len, p.blocks.raw_len, p.blocks.codec])
        block.append(p.block + np.uint32(base))
        base += len(p.blocks)
    if not parts:
        return empty_placement()
    joined = [np.concatenate(c) for c in zip(*columns, strict=True)]
    blocks = Blocks(PackKind.DATA, tuple(packs), *joined)
    return Placement(blocks, np.concatenate(block), np.concatenate([p.offset for p in parts]))


def empty_placement() -> Placement:
    """Of no chunks."""
    none = np.zeros(0, np.uint32)
    blocks = Blocks(PackKind.DATA, (), none, np.zeros(0, np.int64), none, none, np.zeros(0, np.uint8))
    return Placement(blocks, none, none)


def compact(placement: Placement) -> Placement:
    """The same placement with only the blocks and packs that it uses, blocks in order of first use."""
    used, first, inverse = np.unique(placement.block, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    used = used[order]
    b = placement.blocks
    packs_used, local = np.unique(b.pack[used], return_inverse=True)
    blocks = Blocks(
        b.kind,
        tuple(b.packs[i] for i in packs_used.tolist()),
        local.astype(np.uint32).reshape(-1),
        b.offset[used],
        b.packed_len[used],
        b.raw_len[used],
        b.codec[used],
    )
    return Placement(blocks, rank[inverse.reshape(-1)], placement.offset)
