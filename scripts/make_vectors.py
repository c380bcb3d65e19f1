#!/usr/bin/env python
"""Writes the test vectors of the store's formats to docs/format/vectors.

    python scripts/make_vectors.py            # write them
    python scripts/make_vectors.py --check    # exit 1 when what lies there is not what this code writes

Everything is made from fixed bytes, nonces and an encoded block that is spelled out, so that any machine writes the
same. A vector that has been released is never changed: what an old dvk wrote must be readable, and written alike, for
ever.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from blake3 import blake3
from msgspec.structs import replace

from dvk.ids import EMPTY_FILE, PageId
from dvk.store import pack as packs
from dvk.store.codec import RAW, ZSTD, decode_block
from dvk.store.condemned import condemned_key, format_condemned
from dvk.store.descriptor import Descriptor, format_descriptor
from dvk.store.index import Segment, format_segment
from dvk.store.listing import Entries, Kind
from dvk.store.locator import (
    External,
    Locator,
    Ref,
    SectionPlacement,
    format_locator,
    format_placement,
    piece_id,
)
from dvk.store.pack import PackBuilder, PackKind, RecipeRow, block_header, pack_key, parse_footer_of
from dvk.store.pages import Children, Chunks, ListKind, PageRef, format_page, page_id
from dvk.store.placement import Blocks, Placement
from dvk.store.record import Record, format_mark, format_record, record_id
from dvk.store.root import FILE, FOLDER

HERE = Path(__file__).parents[1] / "docs" / "format" / "vectors"
PROFILE = "cdc-64k"

NUMBERS = b"".join(b"%d,%d\n" % (i, i * i) for i in range(100))
#: NUMBERS by zstd 1.5, level 1; spelled out, because another release of zstd may encode it otherwise.
NUMBERS_ZSTD = bytes.fromhex(
    "28b52ffd60e801050b00862e5709b03bc46458ac5177745200540052000c5b4f68ab9af0a45ac2d77b21c94bc217d5c213ea086dae08c36e"
    "08015c10c6a717b44c2d7826ade049fa20899482bfa883f7e804eda80443a21104884230ac47bfc6738b9f9e24253e6a5e87ae301a8442d2"
    "211a4a2ac4804b830840522006587aa661a4661e88b4cc47486f928094cccf456d9e2d3aa65f5131c31e0d13e0513043287a43db511bde27"
    "5ac39f443f2491280d4f11f5f00ca233b4405486f16b0c01ae300155d417494ea5e2cb54174f863a455b50a518066a1401ce8562bcdc3b2d"
    "77ed3cb35be769dc9f24e2d2f903d7e7fda673da369533a4a671027c0a6798a747f4676ac4b34c8bf889e989243025e2e3a4261e580cb0eb"
    "1d0dbfdaf1c0d73a3ee4fa23095ce9f831ab8fe75be7e8db2ac730b1c61120ac700cb9ea19edaa9af14ed532fea67a238954c97882aa8d67"
    "f68ed152af18e3f48611c02f18c3f25ed106af154f8e5ac50700"
)
HELLO = b"hello, world\n"
FIRST, SECOND = (blake3(b"part %d" % i).digest(length) for i, length in ((1, 300), (2, 200)))
TWO = FIRST + SECOND

#: The folder of the golden store: path -> (kind, content or target).
FOLDER_CONTENT: dict[bytes, tuple[Kind, bytes]] = {
    b"bin/run": (Kind.EXEC, HELLO),
    b"empty": (Kind.FILE, b""),
    b"hello.txt": (Kind.FILE, HELLO),
    b"link": (Kind.LINK, b"bin/run"),
    b"not utf-8 \xff": (Kind.FILE, TWO),
    b"numbers.csv": (Kind.FILE, NUMBERS),
    b"n\xc3\xb6thing/here": (Kind.EMPTYDIR, b""),
}


def b3(data: bytes) -> bytes:
    return blake3(data).digest()


def ids(*names: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, 32)


def u32(*values: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


def resealed(data: bytes) -> bytes:
    """`data` with the XXH3-64 in its last 8 bytes made right again, so that what was changed is all that is wrong."""
    return data[:-8] + struct.pack("<Q", xxhash.xxh3_64_intdigest(data[:-8]))


def patched(data: bytes, at: int, new: bytes) -> bytes:
    at = at if at >= 0 else len(data) + at
    return data[:at] + new + data[at + len(new) :]


def accept(name: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"name": name, "hex": data.hex(), **more}


def refuse(name: str, kind: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "hex": data.hex(), **more}


def document(accepted: list[dict[str, Any]], refused: list[dict[str, Any]]) -> bytes:
    rows = [f'"{key}": [\n{_rows(part)}\n]' for key, part in (("accept", accepted), ("refuse", refused))]
    return ("{\n" + ",\n".join(rows) + "\n}\n").encode("ascii")


def _rows(part: list[dict[str, Any]]) -> str:
    return ",\n".join("  " + json.dumps(row) for row in part)


# ---------------------------------------------------------------- packs


def data_pack() -> tuple[bytes, bytes]:
    """Name and bytes of a data pack with a raw and a zstd block."""
    builder = PackBuilder(PackKind.DATA, nonce=bytes(range(16)))
    builder.add_block(
        RAW,
        HELLO + FIRST + SECOND,
        len(HELLO + TWO),
        ids=b3(HELLO) + b3(FIRST) + b3(SECOND),
        lengths=u32(len(HELLO), len(FIRST), len(SECOND)),
    )
    assert decode_block(ZSTD, NUMBERS_ZSTD, len(NUMBERS)) == NUMBERS
    builder.add_block(ZSTD, NUMBERS_ZSTD, len(NUMBERS), ids=b3(NUMBERS), lengths=u32(len(NUMBERS)))
    name, parts = builder.finish()
    return name, b"".join(parts)


def recipe_page() -> bytes:
    return format_page(ListKind.RECIPE, 0, Chunks(ids(b3(FIRST), b3(SECOND)), u32(len(FIRST), len(SECOND))))


def folder_entries() -> Entries:
    rows = []
    for path, (kind, content) in FOLDER_CONTENT.items():
        is_file = kind in (Kind.FILE, Kind.EXEC)
        size = len(content)
        name = (b3(content) if content else EMPTY_FILE) if is_file else bytes(32)
        rows.append((path, kind, size, name, content if kind is Kind.LINK else b""))
    return Entries.of(rows)


def listing_page() -> bytes:
    return format_page(ListKind.LISTING, 0, folder_entries())


def page_pack() -> tuple[bytes, bytes]:
    """Name and bytes of a page pack with a listing, a recipe and the row that names it."""
    builder = PackBuilder(PackKind.PAGES, nonce=bytes(range(16, 32)))
    pages = [(ListKind.LISTING, listing_page()), (ListKind.RECIPE, recipe_page())]
    raw = b"".join(data for _, data in pages)
    builder.add_block(
        RAW,
        raw,
        len(raw),
        ids=b"".join(page_id(kind, data) for kind, data in pages),
        lengths=u32(*(len(data) for _, data in pages)),
    )
    builder.add_recipe(RecipeRow(b3(TWO), page_id(ListKind.RECIPE, recipe_page()), len(TWO), PROFILE))
    name, parts = builder.finish()
    return name, b"".join(parts)


def refooted(pack: bytes, footer: bytes) -> bytes:
    """The pack with another footer, hashed and sealed."""
    trailer = packs.parse_trailer(pack[-64:], subject="here")
    total = trailer.footer_offset + len(footer) + 64
    fields = (trailer.kind, 1, 0, trailer.footer_offset, len(footer), total, blake3(footer).digest()[:16], 0)
    return pack[: trailer.footer_offset] + footer + resealed(packs.TRAILER.pack(b"dvkEND1\0", *fields))


def retrailed(pack: bytes) -> bytes:
    """The pack with the checksum of its trailer made right again."""
    return pack[:-64] + resealed(pack[-64:])


def pack_vectors() -> dict[str, bytes]:
    name, data = data_pack()
    pages_name, pages = page_pack()
    trailer = packs.parse_trailer(data[-64:], subject="here")
    footer = data[trailer.footer_offset : -64]
    pages_trailer = packs.parse_trailer(pages[-64:], subject="here")
    pages_footer = pages[pages_trailer.footer_offset : -64]
    empty, parts = PackBuilder(PackKind.DATA, nonce=b"n" * 16).finish()
    wide = np.frombuffer(footer, "<u4", 2, 32 + 16)
    accepted = [
        accept("data", data, id=name.hex(), file_name=pack_key(PackKind.DATA, name)),
        accept("pages", pages, id=pages_name.hex(), file_name=pack_key(PackKind.PAGES, pages_name)),
        accept("no blocks", b"".join(parts), id=empty.hex(), file_name=pack_key(PackKind.DATA, empty)),
    ]
    refused = [
        refuse("empty", "corrupt", b""),
        refuse("another magic", "malformed", b"PACK" + data[4:]),
        refuse("header of version 2", "newer-format", patched(data, 8, b"\2")),
        refuse("header with flags", "newer-format", patched(data, 12, b"\1")),
        refuse("cut at the end", "corrupt", data[:-1]),
        refuse("cut in the middle", "corrupt", data[: len(data) // 2]),
        refuse("extended", "corrupt", data + b"\0"),
        refuse("trailer of version 2", "newer-format", retrailed(patched(data, -64 + 10, b"\2"))),
        refuse("trailer with an unknown kind", "newer-format", retrailed(patched(data, -64 + 8, b"\3"))),
        refuse("trailer of the other kind", "corrupt", retrailed(patched(data, -64 + 8, b"\2"))),
        refuse("trailer with a reserved field", "newer-format", retrailed(patched(data, -64 + 12, b"\1"))),
        refuse(
            "trailer with a footer of 2^40 bytes",
            "corrupt",
            retrailed(patched(data, -64 + 24, (1 << 40).to_bytes(8, "little"))),
        ),
        refuse("trailer with a wrong checksum", "corrupt", patched(data, -1, bytes([data[-1] ^ 1]))),
        refuse("footer changed", "corrupt", patched(data, trailer.footer_offset + 40, b"\xff")),
        refuse("footer with 2^32 - 1 blocks", "corrupt", refooted(data, patched(footer, 8, b"\xff" * 4))),
        refuse("footer with 2^32 - 1 chunks", "corrupt", refooted(data, patched(footer, 12, b"\xff" * 4))),
        refuse("footer with bases", "newer-format", refooted(data, patched(footer, 20, b"\1"))),
        refuse("footer of another magic", "corrupt", refooted(data, patched(footer, 0, b"dvkFOOL"))),
        refuse("footer with a byte more", "corrupt", refooted(data, footer + b"\0")),
        refuse("footer cut in its header", "corrupt", refooted(data, footer[:31])),
        refuse(
            "block without chunks",
            "corrupt",
            refooted(data, patched(footer, 48, struct.pack("<2I", 0, int(wide.sum())))),
        ),
        refuse(
            "chunk counts that wrap to the right sum",
            "corrupt",
            refooted(data, patched(footer, 48, struct.pack("<2I", 0xFFFFFFFF, 5))),
        ),
        refuse(
            "raw length over 1 MiB", "corrupt", refooted(data, patched(footer, 40, struct.pack("<I", (1 << 20) + 1)))
        ),
        refuse("packed longer than raw", "corrupt", refooted(data, patched(footer, 32, struct.pack("<2I", 600, 700)))),
        refuse(
            "packed lengths that miss the footer",
            "corrupt",
            refooted(data, patched(footer, 32, struct.pack("<I", 512))),
        ),
        refuse("a chunk of nothing", "corrupt", refooted(data, patched(footer, 58, struct.pack("<2I", 0, 313)))),
        refuse(
            "chunk lengths that miss their block", "corrupt", refooted(data, patched(footer, 58, struct.pack("<I", 14)))
        ),
        refuse("a profile with a space", "corrupt", refooted(pages, patched(pages_footer, -16, b"cdc 64k"))),
        refuse("a profile that is not ASCII", "corrupt", refooted(pages, patched(pages_footer, -16, b"\xff"))),
        refuse("a profile of nothing", "corrupt", refooted(pages, patched(pages_footer, -16, bytes(16)))),
    ]
    return {"pack/vectors.json": document(accepted, refused), "pack/data.pack": data, "pack/pages.pack": pages}


# ---------------------------------------------------------------- pages


def page_vectors() -> dict[str, bytes]:
    leaf, recipe = listing_page(), recipe_page()
    listing, recipe_kind = ListKind.LISTING, ListKind.RECIPE
    entries = folder_entries()
    many = [PageRef(PageId(bytes([i]) * 32), 10 * i, 9 * i, 1000 * i, b"dir/%d" % i) for i in (1, 2, 3)]
    inner = format_page(listing, 1, Children(tuple(many)))
    inner_recipe = format_page(
        recipe_kind, 2, Children(tuple(PageRef(r.id, r.entries, 0, r.total_bytes, b"") for r in many))
    )
    empty = format_page(listing, 0, Entries.empty())
    no_chunks = format_page(recipe_kind, 0, Chunks.join([]))

    def named(*names: bytes) -> bytes:
        return format_page(listing, 0, _unsorted([(n, Kind.FILE, 1, b3(n), b"") for n in names]))

    def linked(path: bytes, target: bytes) -> bytes:
        return format_page(listing, 0, Entries.of([(path, Kind.LINK, len(target), bytes(32), target)]))

    def chunk(length: int) -> bytes:
        return format_page(recipe_kind, 0, Chunks(ids(b"c" * 32), u32(length)))

    huge = Entries(
        entries.names.slice(2, 4),
        entries.kinds[:2] * 0 + 1,
        np.array([1 << 62, 5]),
        entries.ids[:2],
        entries.targets.slice(0, 0),
    )
    accepted = [
        accept("listing leaf", leaf, of="listing", id=page_id(listing, leaf).hex()),
        accept("empty listing", empty, of="listing", id=page_id(listing, empty).hex()),
        accept("listing, level 1", inner, of="listing", id=page_id(listing, inner).hex()),
        accept("recipe leaf", recipe, of="recipe", id=page_id(recipe_kind, recipe).hex()),
        accept("empty recipe", no_chunks, of="recipe", id=page_id(recipe_kind, no_chunks).hex()),
        accept("recipe, level 2", inner_recipe, of="recipe", id=page_id(recipe_kind, inner_recipe).hex()),
    ]
    refused = [
        refuse("empty", "corrupt", b"", of="listing"),
        refuse("the other kind", "corrupt", recipe, of="listing"),
        refuse("version 2", "newer-format", patched(leaf, 4, b"\2"), of="listing"),
        refuse("level 9", "newer-format", patched(inner, 6, b"\x09"), of="listing"),
        refuse("a reserved byte", "newer-format", patched(leaf, 7, b"\1"), of="listing"),
        refuse("cut", "corrupt", leaf[:-1], of="listing"),
        refuse("extended", "corrupt", leaf + b"\0", of="listing"),
        refuse(
            "extended, and says so", "corrupt", patched(leaf + b"\0", 8, struct.pack("<I", len(leaf) + 1)), of="listing"
        ),
        refuse("2^32 - 1 entries", "corrupt", patched(leaf, 12, b"\xff" * 4), of="listing"),
        refuse("one entry more than there is", "corrupt", patched(leaf, 12, b"\x08"), of="listing"),
        refuse("total of entries wrong", "corrupt", patched(leaf, 16, b"\x09"), of="listing"),
        refuse("total of files wrong", "corrupt", patched(leaf, 24, b"\x04"), of="listing"),
        refuse("total of bytes wrong", "corrupt", patched(leaf, 32, b"\0"), of="listing"),
        refuse("an unknown kind of entry", "newer-format", patched(leaf, 40, b"\5"), of="listing"),
        refuse("a size of 2^62", "corrupt", format_page(listing, 0, huge), of="listing"),
        refuse("an empty directory with a size", "corrupt", _emptydir(1, bytes(32)), of="listing"),
        refuse("an empty directory with an id", "corrupt", _emptydir(0, b"x" * 32), of="listing"),
        refuse("names out of order", "malformed", named(b"b", b"a"), of="listing"),
        refuse("a name twice", "malformed", named(b"a", b"a"), of="listing"),
        refuse("a file that is a directory", "malformed", named(b"a", b"a-", b"a/b"), of="listing"),
        *(refuse(f"the name {n!r}", "malformed", named(n), of="listing") for n in BAD_NAMES),
        *(refuse(f"a link to {t!r}", "malformed", linked(b"d/link", t), of="listing") for t in BAD_TARGETS),
        refuse("a chunk of nothing", "corrupt", chunk(0), of="recipe"),
        refuse("a chunk over 1 MiB", "corrupt", chunk((1 << 20) + 1), of="recipe"),
        refuse("level 1 without children", "corrupt", format_page(listing, 1, Children(())), of="listing"),
        refuse("children out of order", "corrupt", format_page(listing, 1, Children(tuple(many[::-1]))), of="listing"),
        refuse("a child that starts nowhere", "corrupt", _children(first=b""), of="listing"),
        refuse("a child without entries", "corrupt", _children(entries=0), of="listing"),
    ]
    return {"pages/vectors.json": document(accepted, refused)}


BAD_NAMES = (
    b"",
    b"/a",
    b"a/",
    b"a//b",
    b".",
    b"..",
    b"a/../b",
    b"a\0b",
    b".git/config",
    b"x/.GIT",
    b"GIT~1",
    b".dvk",
    b"n" * 256,
)
BAD_TARGETS = (b"/etc/passwd", b"../../x", b"a/../../x", b"a\0", b"../..")


def _unsorted(rows: list[tuple[bytes, Kind, int, bytes, bytes]]) -> Entries:
    return Entries.join([Entries.of([row]) for row in rows])


def _emptydir(size: int, name: bytes) -> bytes:
    return format_page(ListKind.LISTING, 0, Entries.of([(b"d", Kind.EMPTYDIR, size, name, b"")]))


def _children(*, entries: int = 1, first: bytes = b"a") -> bytes:
    return format_page(ListKind.LISTING, 1, Children((PageRef(PageId(b"i" * 32), entries, 0, 0, first),)))


# ---------------------------------------------------------------- index


def segment() -> Segment:
    name, data = data_pack()
    pages_name, pages = page_pack()
    return Segment.build([(name, parse_footer_of(data)), (pages_name, parse_footer_of(pages))])


def index_vectors() -> dict[str, bytes]:
    data = format_segment(segment())

    def sealed(changed: bytes) -> bytes:
        return patched(changed, 32, struct.pack("<Q", xxhash.xxh3_64_intdigest(changed[64:])))

    body = 64 + 2 * 33 + 6
    none = format_segment(Segment.build([]))
    accepted = [accept("two packs", data), accept("nothing", none)]
    refused = [
        refuse("empty", "corrupt", b""),
        refuse("another magic", "corrupt", patched(data, 0, b"DVK")),
        refuse("version 2", "newer-format", patched(data, 8, b"\2")),
        refuse("level 16", "newer-format", patched(data, 10, b"\x10")),
        refuse("a reserved byte", "newer-format", patched(data, 63, b"\1")),
        refuse("cut", "corrupt", data[:-1]),
        refuse("extended", "corrupt", data + b"\0"),
        refuse("2^64 - 1 chunks", "corrupt", patched(data, 16, b"\xff" * 8)),
        refuse("2^32 - 1 packs", "corrupt", patched(data, 12, b"\xff" * 4)),
        refuse("a wrong checksum", "corrupt", patched(data, 32, b"\0\0\0\0")),
        refuse("a changed column", "corrupt", patched(data, -1, b"\x55")),
        refuse("a pack of unknown kind", "corrupt", sealed(patched(data, 64 + 64, b"\3"))),
        refuse("a pack that is not listed", "corrupt", sealed(patched(data, body + 8 * 6, b"\2"))),
    ]
    return {"index/vectors.json": document(accepted, refused)}


# ---------------------------------------------------------------- locators


def placement() -> SectionPlacement:
    """The placement of the golden folder's leaf."""
    name, data = data_pack()
    footer = parse_footer_of(data)
    blocks = Blocks(
        PackKind.DATA, (name,), u32(0, 0), footer.block_offset, footer.packed_len, footer.raw_len, footer.codec
    )
    # bin/run, hello.txt: the first chunk; then the two of the long file, then the numbers.
    return SectionPlacement(
        Placement(blocks, u32(0, 0, 0, 0, 1), u32(0, 0, len(HELLO), len(HELLO + FIRST), 0)),
        u32(1, 0, 1, 0, 2, 1, 0),
        (),
        PROFILE,
    )


def section() -> tuple[bytes, bytes]:
    """Name of its pack, and the bytes of the golden folder's only section."""
    tail = format_placement(placement())
    raw = listing_page() + recipe_page() + tail
    return b3(b"section pack"), block_header(RAW, len(raw), raw) + raw


def locator_vectors() -> dict[str, bytes]:
    pack, data = section()
    root = page_id(ListKind.LISTING, listing_page())
    entries = folder_entries()
    folder = Locator(
        FOLDER, root, entries.total_bytes, entries.files, root, b"r" * 32, "", b"", (Ref(pack, 32, len(data)),), (data,)
    )
    tail = format_placement(SectionPlacement(Placement(placement().placement.blocks, u32(0), u32(0)), u32(), ()))
    one = block_header(RAW, len(tail), tail) + tail
    single = Locator(FILE, b3(HELLO), len(HELLO), 0, bytes(32), bytes(32), "", b"", (Ref(pack, 500, len(one)),), (one,))
    inner = format_page(
        ListKind.RECIPE, 1, Children(tuple(PageRef(PageId(bytes([i]) * 32), 4000, 0, 1 << 28, b"") for i in (1, 2)))
    )
    ranges = (Ref(b"\2" * 32, 32, 4096), Ref(b"\1" * 32, 9000, 100))
    long = Locator(FILE, b"f" * 32, 1 << 29, 0, page_id(ListKind.RECIPE, inner), bytes(32), PROFILE, inner, ranges)
    good, far = format_locator(folder), format_locator(long)
    where = {"of": "locator"}
    accepted = [
        accept("folder, inline", good, **where, locator_kind=FOLDER, id=root.hex()),
        accept("file of one chunk", format_locator(single), **where, locator_kind=FILE, id=b3(HELLO).hex()),
        accept("file, by ranges", far, **where, locator_kind=FILE, id=(b"f" * 32).hex()),
    ]
    me: dict[str, Any] = {**where, "locator_kind": FOLDER, "id": root.hex()}
    other: dict[str, Any] = {**where, "locator_kind": FILE, "id": (b"f" * 32).hex()}
    swapped = patched(far, 160, b"\2" * 32 + b"\1" * 32)
    refused = [
        refuse("empty", "corrupt", b"", **me),
        refuse("another magic", "corrupt", resealed(patched(good, 0, b"DVK")), **me),
        refuse("version 2", "newer-format", resealed(patched(good, 8, b"\2")), **me),
        refuse("a reserved field", "newer-format", resealed(patched(good, 152, b"\1")), **me),
        refuse("the locator of another id", "corrupt", good, **{**me, "id": "ab" * 32}),
        refuse("the locator of the other kind", "corrupt", good, **{**me, "locator_kind": FILE}),
        refuse("cut", "corrupt", good[:-1], **me),
        refuse("cut and sealed", "corrupt", resealed(good[:-1]), **me),
        refuse("extended and sealed", "corrupt", resealed(good + b"\0"), **me),
        refuse("a wrong checksum", "corrupt", patched(good, -1, bytes([good[-1] ^ 1])), **me),
        refuse("2^32 - 1 packs", "corrupt", resealed(patched(good, 12, b"\xff" * 4)), **me),
        refuse("2^32 - 1 sections", "corrupt", resealed(patched(good, 16, b"\xff" * 4)), **me),
        refuse("2^32 - 1 bytes of pages", "corrupt", resealed(patched(good, 20, b"\xff" * 4)), **me),
        refuse("a size of 2^62", "corrupt", resealed(patched(good, 31, b"\x40")), **me),
        refuse("a section in a pack that is not listed", "corrupt", resealed(patched(good, 192, b"\1")), **me),
        refuse("a section in the header of a pack", "corrupt", resealed(patched(good, 196, b"\0")), **me),
        refuse("inline bytes that do not fit", "corrupt", resealed(patched(good, 204, b"\1\1")), **me),
        refuse("packs out of order", "corrupt", resealed(swapped), **other),
        refuse("a pack that is not used", "corrupt", resealed(patched(far, 224, struct.pack("<2I", 0, 0))), **other),
        refuse("a range that leaves the largest pack", "corrupt", resealed(patched(far, 236, b"\xff")), **other),
        refuse("a profile with a space", "corrupt", resealed(patched(far, 136, b"cdc 64k")), **other),
    ]
    plain = format_placement(placement())
    outside = External(5, Ref(b"x" * 32, 32, 1000))
    p = placement()
    external = format_placement(
        SectionPlacement(
            Placement(p.placement.blocks, p.placement.block[:4], p.placement.offset[:4]),
            u32(1, 0, 1, 0, 2, 0, 0),
            (outside,),
            PROFILE,
        )
    )
    it = {"of": "placement"}
    accepted += [
        accept("placement of a leaf", plain, **it, piece=piece_id(plain).hex()),
        accept("placement with an external file", external, **it, piece=piece_id(external).hex()),
        accept("section of a folder", data, of="section"),
    ]
    at = 48 + 32  # the columns of blocks: pack, offset, packed_len, raw_len, codec
    refused += [
        refuse("placement: empty", "corrupt", b"", **it),
        refuse("placement: another magic", "corrupt", patched(plain, 0, b"DVK"), **it),
        refuse("placement: a reserved field", "newer-format", patched(plain, 28, b"\1"), **it),
        refuse("placement: 2^32 - 1 blocks", "corrupt", patched(plain, 12, b"\xff" * 4), **it),
        refuse("placement: 2^32 - 1 externals", "corrupt", patched(plain, 24, b"\xff" * 4), **it),
        refuse("placement: cut", "corrupt", plain[:-1], **it),
        refuse("placement: a block in no pack", "corrupt", patched(plain, at, b"\1"), **it),
        refuse("placement: a block in the header of its pack", "corrupt", patched(plain, at + 8, b"\0"), **it),
        refuse("placement: a block at 2^56", "corrupt", patched(plain, at + 15, b"\1"), **it),
        refuse("placement: a block of nothing", "corrupt", patched(plain, at + 24, bytes(4)), **it),
        refuse("placement: a block over 1 MiB", "corrupt", patched(plain, at + 34, b"\xff"), **it),
        refuse("placement: a chunk in no block", "corrupt", patched(plain, at + 42, b"\2"), **it),
        refuse("placement: a chunk behind its block", "corrupt", patched(plain, at + 42 + 20, b"\xff\xff"), **it),
        refuse("placement: counts that are not those of the chunks", "corrupt", patched(plain, -4, b"\2"), **it),
        refuse("placement: an external of no entry", "corrupt", patched(external, -20, b"\7"), **it),
        refuse("placement: an external in no pack", "corrupt", patched(external, -16, b"\2"), **it),
        refuse("placement: an external of nothing", "corrupt", patched(external, -4, bytes(4)), **it),
        refuse("placement: a pack twice", "corrupt", external[:80] + external[48:80] + external[112:], **it),
        refuse("section: a damaged block", "corrupt", patched(data, 30, b"\xff"), of="section"),
        refuse("section: cut", "corrupt", data[:-1], of="section"),
        refuse("section: only a placement", "corrupt", one, of="section"),
        refuse("section: without its placement", "corrupt", _raw(listing_page()), of="section"),
    ]
    return {"locator/vectors.json": document(accepted, refused)}


def _raw(data: bytes) -> bytes:
    return block_header(RAW, len(data), data) + data


# ---------------------------------------------------------------- records, stores


def record_vectors() -> dict[str, bytes]:
    record = Record(
        store="0123456789abcdef" * 2,
        roots=("d:" + "1" * 64, "f:" + "2" * 64),
        packs=("m/aa/" + "a" * 64, "p/bb/" + "b" * 64),
        reused=("p/cc/" + "c" * 64,),
        bases=("d" * 64,),
        time=1_700_000_000,
        writer="dvk 0.1.0",
        nonce="fedcba9876543210" * 2,
    )
    good = format_record(record)
    owned = format_record(replace(record, project="76543210" * 4))
    bare = format_record(Record("0" * 32, (), (), (), (), 0, "dvk", "0" * 32))

    def changed(old: bytes, new: bytes) -> bytes:
        assert good.count(old) == 1
        return good.replace(old, new)

    rid = record_id(good)
    accepted = [
        accept("full", good, id=rid.hex(), mark=format_mark(rid).decode()),
        accept("bare", bare, id=record_id(bare).hex()),
        accept("of a project", owned, id=record_id(owned).hex()),
    ]
    refused = [
        refuse("empty", "corrupt", b""),
        refuse("no JSON", "corrupt", good[:-2]),
        refuse("a list", "corrupt", b"[]\n"),
        refuse("deep", "corrupt", b"[" * 2000),
        refuse("format 3", "newer-format", changed(b'"format":1', b'"format":3')),
        refuse("format 2 without a project", "corrupt", changed(b'"format":1', b'"format":2')),
        refuse("format 1 with a project", "corrupt", owned.replace(b'"format":2', b'"format":1')),
        refuse("a project that is text", "corrupt", owned.replace(b"76543210" * 4, b"churn")),
        refuse("without its newline", "corrupt", good[:-1]),
        refuse("with a space", "corrupt", good.replace(b",", b", ", 1)),
        refuse("with a key more", "corrupt", changed(b'"writer"', b'"what":1,"writer"')),
        refuse("with a key twice", "corrupt", changed(b'"writer"', b'"time":1700000000,"writer"')),
        refuse("without a key", "corrupt", changed(b'"bases":["' + b"d" * 64 + b'"],', b"")),
        refuse("roots out of order", "corrupt", changed(b"d:" + b"1" * 64, b"f:" + b"3" * 64)),
        refuse("a root twice", "corrupt", changed(b"f:" + b"2" * 64, b"d:" + b"1" * 64)),
        refuse("a root of unknown kind", "corrupt", changed(b"f:", b"g:")),
        refuse("a pack in the wrong place", "corrupt", changed(b"m/aa/", b"m/ab/")),
        refuse("a pack that climbs", "corrupt", changed(b"m/aa/" + b"a" * 64, b"m/../../x")),
        refuse("a list that is text", "corrupt", changed(b'["' + b"d" * 64 + b'"]', b'"' + b"d" * 64 + b'"')),
        refuse("a time that is true", "corrupt", changed(b"1700000000", b"true")),
        refuse("a time before time", "corrupt", changed(b"1700000000", b"-1")),
        refuse("a writer with an escape", "corrupt", changed(b"dvk 0.1.0", b"\\u001b[31m")),
        refuse("a short nonce", "corrupt", changed(b"fedcba9876543210" * 2, b"fedc")),
        refuse("not ASCII", "corrupt", changed(b"dvk 0.1.0", b"\xff")),
    ]
    return {"record/vectors.json": document(accepted, refused)}


def condemned_vectors() -> dict[str, bytes]:
    packs = ("m/aa/" + "a" * 64, "p/bb/" + "b" * 64)
    store, nonce = "0123456789abcdef" * 2, "fedcba9876543210" * 2
    good, empty = (format_condemned(p, store=store, nonce=nonce) for p in (packs, ()))
    old = (json.dumps({"format": 1, "packs": packs, "store": store}, separators=(",", ":")) + "\n").encode()
    old_key = "g/c-" + "0" * 32

    def named(name: str, data: bytes) -> dict[str, Any]:
        return refuse(name, "malformed", data, key=condemned_key(data))

    accepted = [
        accept("two packs", good, key=condemned_key(good), packs=packs),
        accept("no pack", empty, key=condemned_key(empty), packs=()),
        accept("version 1", old, key=old_key, packs=packs),
    ]
    refused = [
        refuse("empty", "corrupt", b"", key=condemned_key(good)),
        refuse("a bit turned over", "corrupt", good.replace(b"aaa", b"aac", 1), key=condemned_key(good)),
        refuse("under the name of another list", "corrupt", good, key=condemned_key(empty)),
        refuse("version 2 without a hash", "malformed", good, key=old_key),
        refuse("version 1 as version 2", "malformed", old, key=condemned_key(old)),
        refuse("version 1, empty", "malformed", b"", key=old_key),
        refuse("version 3", "newer-format", (new := good.replace(b":2,", b":3,", 1)), key=condemned_key(new)),
        refuse("another kind of name", "newer-format", good, key="g/c-" + "0" * 40),
        named("no JSON", good[:-3]),
        named("a list", b"[]\n"),
        named("deep", b"[" * 100_000),
        named("without its newline", good[:-1]),
        named("with a space", good.replace(b",", b", ", 1)),
        named("with a key more", good.replace(b'"packs"', b'"more":1,"packs"')),
        named("without a nonce", good.replace(b'"nonce":"' + nonce.encode() + b'",', b"")),
        named("a nonce that is text", good.replace(nonce.encode(), b"once")),
        named("packs out of order", good.replace(packs[0].encode(), b"p/cc/" + b"c" * 64)),
        named("a pack twice", good.replace(packs[0].encode(), packs[1].encode())),
        named("a pack in capitals", good.replace(b"p/bb/" + b"b" * 64, b"p/BB/" + b"B" * 64)),
        named("a pack in another folder", good.replace(b"p/bb/", b"p/cc/")),
        named("a number for a pack", good.replace(b'"' + packs[0].encode() + b'"', b"7")),
    ]
    return {"condemned/vectors.json": document(accepted, refused)}


def store_vectors() -> dict[str, bytes]:
    good = format_descriptor(Descriptor("0123456789abcdef" * 2, ("raw", "zstd"), (PROFILE,)))
    later = format_descriptor(
        Descriptor("f" * 32, ("float-planes", "raw", "zstd"), (PROFILE, "regions-1"), (), ("float-planes",), ("gc-2",))
    )

    def changed(old: bytes, new: bytes) -> bytes:
        assert good.count(old) == 1
        return good.replace(old, new)

    accepted = [
        accept("version 1", good, needs_newer=[]),
        accept("of a later program: readable only", later, needs_newer=["write", "gc"]),
    ]
    refused = [
        refuse("empty", "not-ours", b""),
        refuse("no JSON", "not-ours", b"hello"),
        refuse("deep", "not-ours", b"[" * 2000),
        refuse("of something else", "not-ours", b'{"kind": "other"}\n'),
        refuse("format 2", "newer-format", changed(b'"format": 1', b'"format": 2')),
        refuse("without its newline", "malformed", good[:-1]),
        refuse("with a key more", "malformed", changed(b'"kind"', b'"also": 1,\n  "kind"')),
        refuse("without profiles", "malformed", changed(b'"profiles"', b'"profile"')),
        refuse("a store id that is none", "malformed", changed(b"0123456789abcdef" * 2, b"x" * 32)),
        refuse("a codec that is a number", "malformed", changed(b'"raw"', b"1")),
        refuse("a codec with an escape", "malformed", changed(b'"raw"', b'"\\u001b[31m"')),
        refuse("codecs that are text", "malformed", good.replace(b'[\n    "raw",\n    "zstd"\n  ]', b'"raw"')),
    ]
    out = {"store/vectors.json": document(accepted, refused)}
    # A whole store: the page pack is not in the index, as after a kill before the index was written.
    name, data = data_pack()
    pages_name, pages = page_pack()
    out["store/golden/dvk.json"] = good
    out[f"store/golden/{pack_key(PackKind.DATA, name)}"] = data
    out[f"store/golden/{pack_key(PackKind.PAGES, pages_name)}"] = pages
    out["store/golden/i/0-" + "5" * 32] = format_segment(Segment.build([(name, parse_footer_of(data))]))
    entries = folder_entries()
    folder = {
        "id": page_id(ListKind.LISTING, listing_page()).hex(),
        "size": entries.total_bytes,
        "files": entries.files,
        "entries": [
            {"path": path.hex(), "kind": kind.name.lower(), "content": content.hex()}
            for path, (kind, content) in FOLDER_CONTENT.items()
        ],
    }
    out["store/golden.json"] = (json.dumps(folder, indent=1) + "\n").encode("ascii")
    return out


def files() -> dict[str, bytes]:
    """Path below docs/format/vectors -> bytes, of all files that this script owns."""
    out: dict[str, bytes] = {}
    for make in (
        pack_vectors,
        page_vectors,
        index_vectors,
        locator_vectors,
        record_vectors,
        condemned_vectors,
        store_vectors,
    ):
        out |= make()
    return out


def main(arguments: list[str]) -> int:
    wrong = []
    for name, data in files().items():
        path = HERE / name
        if arguments == ["--check"]:
            if not path.is_file() or path.read_bytes() != data:
                wrong.append(name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for name in wrong:
        print(f"{name} is not what this code writes", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
