"""Every decoder of bytes that others wrote, as `dvk.testing.fuzz` feeds them: its name, valid inputs, checksums.

`decode` gives a value or raises a `DvkError`; `seeds` are valid inputs, taken from a small project that is made once in
a process; `repair` puts right checksums into altered bytes, as a hostile writer would. Those of users' files stand in
`file_decoders`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xxhash
from blake3 import blake3

from dvk.backend.locate import parse_remote_url
from dvk.backend.memory import MemoryBackend
from dvk.commands.spec import parse_spec
from dvk.errors import DvkError, FormatError
from dvk.store.codec import decode_block
from dvk.store.condemned import condemned_key, condemned_lists, format_condemned
from dvk.store.descriptor import parse_descriptor
from dvk.store.index import HEADER as INDEX_HEADER
from dvk.store.index import parse_segment
from dvk.store.locator import decode_blocks, parse_locator, parse_section
from dvk.store.names import U8, Names
from dvk.store.pack import BLOCK_HEADER, FOOTER_HEADER, TRAILER, check_header, open_block, parse_footer_of
from dvk.store.pages import ListKind, parse_page
from dvk.store.paths import check_link, check_names, find_collisions, why_bad
from dvk.store.record import parse_record
from dvk.testing.file_decoders import FILES, SUBJECT, Decoder
from dvk.testing.stages import build
from dvk.workspace import selection, statcache, trust
from dvk.workspace.config import Layer
from dvk.workspace.git_mirror import parse_git_url
from dvk.workspace.ignore import IgnoreRules
from dvk.workspace.pointer import parse as parse_pointer

# ---------------------------------------------------------------- valid inputs


@functools.cache
def samples() -> Mapping[str, tuple[bytes, ...]]:
    """Objects of a small project by the first part of their key, and its pointers and state."""
    place = tempfile.mkdtemp(prefix="dvk-samples-")
    found: dict[str, list[bytes]] = {}
    try:
        stage = build("push", os.path.join(place, "stage"))
        stage.dvk("push")
        for store in (stage.store, stage.remote):
            for folder, _, names in os.walk(store):
                for name in names:
                    with open(os.path.join(folder, name), "rb") as f:
                        kind = os.path.relpath(os.path.join(folder, name), store).partition("/")[0]
                        if name.endswith((".ok", ".x", ".e")):
                            kind = "mark"
                        found.setdefault(kind, []).append(f.read())
        state = os.path.join(stage.top, ".git", "dvk")
        for kind, path in [("selection", os.path.join(state, "selection.json"))]:
            with open(path, "rb") as f:
                found.setdefault(kind, []).append(f.read())
        for folder, _, names in os.walk(os.path.join(state, "stat")):
            for name in names:
                with open(os.path.join(folder, name), "rb") as f:
                    found.setdefault("stat", []).append(f.read())
        for name in os.listdir(stage.top):
            if name.endswith(".dvk"):
                with open(os.path.join(stage.top, name), "rb") as f:
                    found.setdefault("pointer", []).append(f.read())
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {kind: tuple(sorted(set(objects))) for kind, objects in found.items()}


def _sample(kind: str) -> Callable[[], Sequence[bytes]]:
    return lambda: samples()[kind]


def _packs() -> list[bytes]:
    """Short packs, so that a change hits the footer."""
    return [p for p in samples()["p"] + samples()["m"] if len(p) < 1 << 18]


def _footers() -> list[bytes]:
    return [p[:32] + p[_footer_at(p) :] for p in _packs()]


def _footer_at(pack: bytes) -> int:
    return int.from_bytes(pack[-48:-40], "little")


def _blocks() -> list[bytes]:
    """Codec number, length of the content, payload."""
    found = []
    for pack in _packs():
        at, end = 32, _footer_at(pack)
        while at < end:
            codec, raw, payload = open_block(memoryview(pack)[at:], subject=SUBJECT)
            found.append(struct.pack("<BI", codec, raw) + bytes(payload))
            at += BLOCK_HEADER.size + len(payload)
    for codec, width in ((2, 2), (3, 4), (4, 8)):
        found.append(struct.pack("<BI", codec, 64 * width) + bytes(80 * width))
    return found


def _raw_blocks() -> list[bytes]:
    found = []
    for pack in _packs():
        found.append(pack[32 : _footer_at(pack)])
    return found


def _pages(kind: ListKind) -> Callable[[], Sequence[bytes]]:
    def find() -> list[bytes]:
        found = []
        for pack in samples()["m"]:
            at, end = 32, _footer_at(pack)
            while at < end:
                codec, raw, payload = open_block(memoryview(pack)[at:], subject=SUBJECT)
                at += BLOCK_HEADER.size + len(payload)
                data = decode_block(codec, payload, raw)
                while data:
                    length = int.from_bytes(data[8:12], "little")
                    if data[5] == kind or data[6] == kind:
                        found.append(data[:length])
                    data = data[length:]
        return found

    return find


# ---------------------------------------------------------------- decoding


def _trailing_sum(data: bytes) -> bytes:
    return data[:-8] + xxhash.xxh3_64_intdigest(data[:-8]).to_bytes(8, "little")


def _pack_of(footer: bytes) -> bytes:
    """A footer behind a header, as a pack without its blocks that states lengths and hashes which are right."""
    if len(footer) < 32 + FOOTER_HEADER.size + TRAILER.size:
        return footer
    body, trailer = footer[32 : -TRAILER.size], bytearray(footer[-TRAILER.size :])
    offset = int.from_bytes(trailer[16:24], "little")
    trailer[24:32] = len(body).to_bytes(8, "little")
    trailer[32:40] = ((offset + len(body) + TRAILER.size) % (1 << 64)).to_bytes(8, "little")
    trailer[40:56] = blake3(body).digest()[:16]
    return footer[:32] + body + _trailing_sum(bytes(trailer))


def _decode_footer(data: bytes) -> object:
    """The footer of a pack whose blocks are left out: `parse_footer` gets what its trailer says."""
    from dvk.store.pack import parse_footer, parse_trailer

    trailer = parse_trailer(data[-TRAILER.size :], subject=SUBJECT)
    footer = parse_footer(data[32 : -TRAILER.size], trailer, subject=SUBJECT)
    return (
        footer.chunk_offset,
        footer.block_offset,
        footer.chunk_block,
        [footer.recipe(i) for i in range(len(footer.recipes))],
    )


def _decode_block(data: bytes) -> object:
    if len(data) < 5:
        return None
    codec, raw = struct.unpack_from("<BI", data)
    return decode_block(codec, data[5:], raw)


def _decode_raw_blocks(data: bytes) -> object:
    view, seen = memoryview(data), 0
    while view:
        codec, raw, payload = open_block(view, subject=SUBJECT)
        decode_block(codec, payload, raw)
        view = view[BLOCK_HEADER.size + len(payload) :]
        seen += 1
    return seen


def _right_block(data: bytes) -> bytes:
    if len(data) < BLOCK_HEADER.size:
        return data
    magic, codec, reserved, raw, packed, _ = BLOCK_HEADER.unpack_from(data)
    payload = data[BLOCK_HEADER.size : BLOCK_HEADER.size + packed]
    return BLOCK_HEADER.pack(magic, codec, reserved, raw, packed, xxhash.xxh3_64_intdigest(payload)) + payload


def _decode_page(kind: ListKind) -> Callable[[bytes], object]:
    return lambda data: parse_page(data, kind, subject=SUBJECT)


def _decode_locator(data: bytes) -> object:
    kind, wanted = (data[12] if len(data) > 12 else 1), data[56:88]
    found = []
    for k in {1, 2, kind}:
        try:
            locator = parse_locator(data, kind=k, wanted=wanted, subject=SUBJECT)
        except FormatError:
            continue
        for part in locator.inline:
            for single in (False, True):
                try:
                    found.append(parse_section(part, single=single, subject=SUBJECT))
                except FormatError:
                    continue
    return found


def _decode_record(data: bytes) -> object:
    return parse_record(data, subject=SUBJECT)


def _decode_condemned(data: bytes) -> object:
    """As both formats: hostile bytes may have a name that fits."""
    remote = MemoryBackend()
    remote.put(condemned_key(data) if b'"nonce"' in data else "g/c-" + "0" * 32, [data])
    return condemned_lists(remote)


def _condemned() -> list[bytes]:
    packs = [f"p/{i:02x}/{i:02x}" + "ab" * 31 for i in range(3)]
    old = {"format": 1, "packs": packs, "store": "0" * 32}
    return [
        format_condemned(packs, store="0" * 32, nonce="1" * 32),
        format_condemned([], store="0" * 32, nonce="2" * 32),
        (json.dumps(old, separators=(",", ":")) + "\n").encode(),
    ]


def _right_segment(data: bytes) -> bytes:
    if len(data) < INDEX_HEADER.size:
        return data
    head = bytearray(data[: INDEX_HEADER.size])
    body = data[INDEX_HEADER.size :]
    head[40:48] = xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    return bytes(head) + body


def _decode_segment(data: bytes) -> object:
    segment = parse_segment(data, subject=SUBJECT)
    return [table.find(np.zeros(2, np.uint64)) for table in (segment.chunks, segment.recipes)]


def _decode_stat(data: bytes) -> object:
    def take(source: io.BytesIO, count: int) -> U8:
        return np.frombuffer(source.read(count), np.uint8)

    return [statcache._parse(functools.partial(take, io.BytesIO(data)), len(data), path) for path in (b"t.csv", b"d")]


def _right_stat(data: bytes) -> bytes:
    return data[:-16] + xxhash.xxh3_128_digest(data[:-16])


def _decode_config(data: bytes) -> object:
    layers = [Layer.parse(data, scope, place="dvk.toml") for scope in ("repo", "user")]
    return layers


def _configs() -> list[bytes]:
    return [
        b'format = 1\n[core]\nremote = "origin"\n[remote.origin]\nurl = "s3://acme/churn"\n',
        b'format = 1\n[store]\nprofile = "auto-64k"\n[[table]]\npath = "data/*.csv"\nkey = ["id", "day"]\n',
        b'[remote."a b"]\nurl = "/mnt/x"\nendpoint_url = "https://x.example"\n',
    ]


def _text(decode: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: decode(data.decode("utf-8", "surrogateescape"))


def _urls() -> list[bytes]:
    found = [
        "s3://b/p",
        "file:///mnt/x",
        "/mnt/y",
        "gs://b/p",
        "https://h/x",
        "s3://u:p@h/b",
        "memory://x",
        "ssh://h/p",
    ]
    return [u.encode() for u in found]


def _git_urls() -> list[bytes]:
    return [
        b"git@host:acme/churn",
        b"https://host/x.git",
        b"ssh://git@host:22/x",
        b"../x",
        b"file:///x",
        b"ext::sh -c x",
    ]


def _decode_names(data: bytes) -> object:
    names = sorted({n[:300] for n in data.split(b"\0") if n})
    for name in names[:50]:
        why_bad(name)
    find_collisions(names)
    with contextlib.suppress(DvkError):
        check_link(b"a/b", data[:4000], subject=SUBJECT)
    check_names(Names.of(names), subject=SUBJECT)
    return names


def _decode_ignore(data: bytes) -> object:
    rules = IgnoreRules.parse(data)
    return [rules.match(path, is_dir) for path in (b"a" * 200, b"a/" * 60 + b"b", b"x.csv") for is_dir in (False, True)]


def _decode_trust(data: bytes) -> object:
    return trust._parse(data, SUBJECT)


def _decode_selection(data: bytes) -> object:
    return selection._parse(data, subject=SUBJECT)


_ALL = (
    Decoder("pointer", lambda data: parse_pointer(data, subject=SUBJECT), _sample("pointer")),
    Decoder("config", _decode_config, _configs),
    Decoder("descriptor", lambda data: parse_descriptor(data, subject=SUBJECT), _sample("dvk.json")),
    Decoder("header", lambda data: check_header(data, subject=SUBJECT), lambda: [p[:32] for p in _packs()]),
    Decoder("footer", _decode_footer, _footers, _pack_of),
    Decoder("pack", lambda data: parse_footer_of(data, subject=SUBJECT), _packs),
    Decoder("blocks", _decode_raw_blocks, _raw_blocks, _right_block),
    Decoder("section-blocks", lambda data: decode_blocks(data, subject=SUBJECT), _raw_blocks, _right_block),
    Decoder("codec", _decode_block, _blocks),
    Decoder("listing-page", _decode_page(ListKind.LISTING), _pages(ListKind.LISTING)),
    Decoder("recipe-page", _decode_page(ListKind.RECIPE), _pages(ListKind.RECIPE)),
    Decoder("locator", _decode_locator, _sample("l"), _trailing_sum),
    Decoder("record", _decode_record, _sample("j")),
    Decoder("condemned", _decode_condemned, _condemned),
    Decoder("index", _decode_segment, _sample("i"), _right_segment),
    Decoder("stat-cache", _decode_stat, _sample("stat"), _right_stat),
    Decoder("selection", _decode_selection, _sample("selection")),
    Decoder("trust", _decode_trust, lambda: [f"{trust._HEADER}\ns3://acme/x\n".encode()]),
    Decoder("url", _text(parse_remote_url), _urls),
    Decoder("git-url", _text(parse_git_url), _git_urls),
    Decoder("spec", parse_spec, lambda: [b"HEAD:a/b", b"v1.0:./x", b"a..b", b":0:x"]),
    Decoder(
        "names", _decode_names, lambda: [b"a\0b/c\0B\0.git\0x" * 3, "é\0e\u0301\0".encode() + b"git~1\0..\0a/../b"]
    ),
    Decoder("ignore", _decode_ignore, lambda: [b"*.csv\n!x\n/a/**/b\n[a-z]?\n\\#\n", b"*a*a*b\n**/**/c\n[[:alpha:]]"]),
    *FILES,
)
DECODERS: Mapping[str, Decoder] = {d.name: d for d in _ALL}
