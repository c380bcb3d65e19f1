"""How a block is encoded: a number on disk, and the functions behind it.

Problem: blocks come from tables, weights and media alike, must be stored small without wasting time on what
does not shrink, and are read back from packs that a stranger may have written.

    codec, payload = encode_block(memoryview(raw))        # (1, b"(\\xb5/\\xfd...") or (0, raw itself)
    assert decode_block(codec, payload, len(raw)) == raw

Choice: a registry with one entry a codec (`_CODECS`); when encoding, the cheapest question first; when
decoding, a size that is known and checked before anything is allocated.

Format and refusals: docs/format/codecs.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import zstandard

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt, FormatError, NewerFormat

RAW: Final = 0
ZSTD: Final = 1

MAX_BLOCK_BYTES: Final = 1 << 20
MAGIC_BYTES: Final = 16  #: how many first bytes of a file `magic_is_incompressible` wants

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SAMPLE_PIECES: Final = 8
_SAMPLE_PIECE_BYTES: Final = 4096


class Hint(Enum):
    """What the caller knows of a block. Right or wrong, it costs time or space, never bytes."""

    UNKNOWN = "unknown"
    INCOMPRESSIBLE = "incompressible"  #: the file says so by its magic: zstd only if the sample shrinks a lot


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to encode a block. `number` and `name` are on disk and never change their meaning."""

    number: int
    name: str
    encode: Callable[[memoryview, int], Buffer]  #: (raw, level) -> payload
    decode: Callable[[Buffer, int], bytes]  #: (payload, raw_bytes) -> raw, or Corrupt


class _Tools(threading.local):
    """The zstd contexts of this thread: made once, since they are large, and not shareable."""

    def __init__(self) -> None:
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_BLOCK_BYTES)

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        """The compressor for `level`."""
        found = self._compressors.get(level)
        if found is None:
            found = self._compressors[level] = zstandard.ZstdCompressor(
                level=level, write_content_size=True, write_checksum=False, write_dict_id=False
            )
        return found


_tools = _Tools()


def _encode_raw(raw: memoryview, _level: int) -> Buffer:
    return raw


def _decode_raw(payload: Buffer, raw_bytes: int) -> bytes:
    if len(payload) != raw_bytes:
        raise Corrupt(f"a raw block of {len(payload):,} bytes where {raw_bytes:,} are stated")
    return bytes(payload)


def _encode_zstd(raw: memoryview, level: int) -> Buffer:
    return _tools.compressor(level).compress(raw)


def _decode_zstd(payload: Buffer, raw_bytes: int) -> bytes:
    # zstd obeys the frame header, which is as hostile as the rest: it must agree with the block before any
    # memory is taken. The magic, because the library reports a skippable frame as one with content.
    if bytes(payload[:4]) != _ZSTD_MAGIC:
        raise Corrupt("a zstd block does not begin with a zstd frame")
    if len(payload) >= raw_bytes:
        raise Corrupt("a zstd block is not smaller than what it encodes")
    try:
        frame = zstandard.get_frame_parameters(payload)
        if payload[4] & 0b11:  # the size of the dictionary id field
            raise Corrupt("a zstd block asks for a dictionary")
        if frame.content_size != raw_bytes:
            raise Corrupt(f"a zstd block does not state its {raw_bytes:,} bytes")
        if frame.window_size > raw_bytes:
            raise Corrupt("a zstd block asks for a window larger than itself")
        return _tools.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise Corrupt(f"a zstd block cannot be decoded: {e}") from e


_CODECS: Final = (
    Codec(RAW, "raw", _encode_raw, _decode_raw),
    Codec(ZSTD, "zstd", _encode_zstd, _decode_zstd),
    # 2-15 are reserved for float planes, 16-31 for differences: docs/format/codecs.md
)
_BY_NUMBER: Final = {c.number: c for c in _CODECS}


def known_codecs() -> tuple[str, ...]:
    """The names of the codecs that this version of dvk reads and writes, by number."""
    return tuple(c.name for c in _CODECS)


def codec_name(number: int) -> str:
    """The name of a codec, as `dvk.json` lists it.

    Raises:
        NewerFormat: no codec of this version has that number.
    """
    return _codec(number).name


def encode_block(raw: memoryview, *, hint: Hint = Hint.UNKNOWN, level: int = 1) -> tuple[int, Buffer]:
    """Encode 1 byte to 1 MiB of contiguous bytes: codec number and payload, never longer than `raw`.

    A raw payload is `raw` itself, so it lives and changes with the caller's buffer. Any number of threads may
    call at once; zstd runs outside the interpreter lock. `level` is zstd's.
    """
    if raw.format != "B":
        raw = raw.cast("B")
    if not 1 <= raw.nbytes <= MAX_BLOCK_BYTES:
        raise ValueError(f"a block holds 1 to {MAX_BLOCK_BYTES} bytes, not {raw.nbytes}")
    if _is_worth_trying(raw, hint):
        packed = _encode_zstd(raw, level)
        if len(packed) * 100 <= raw.nbytes * 97:
            return ZSTD, packed
    return RAW, raw


def decode_block(codec: int, payload: Buffer, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes (1 to 1 MiB) that `payload` encodes; whatever it holds, no more is allocated.

    Raises:
        NewerFormat: `codec` is not known here.
        FormatError: `raw_bytes` is not a size a block can have.
        Corrupt: `payload` is not what the codec writes, or does not decode to exactly `raw_bytes`.
    """
    found = _codec(codec)
    if not 1 <= raw_bytes <= MAX_BLOCK_BYTES:
        raise FormatError(f"a block holds 1 to {MAX_BLOCK_BYTES:,} bytes, not {raw_bytes:,}")
    raw = found.decode(payload, raw_bytes)
    if len(raw) != raw_bytes:
        raise Corrupt(f"a {found.name} block holds {len(raw):,} bytes where {raw_bytes:,} are stated")
    return raw


def encode_checked(raw: memoryview, *, hint: Hint = Hint.UNKNOWN, level: int = 1) -> tuple[int, Buffer]:
    """`encode_block`, proven to decode to `raw` again before anybody relies on it.

    Raises:
        Corrupt: it does not, so memory or a library is faulty, or another thread changed `raw`.
    """
    codec, payload = encode_block(raw, hint=hint, level=level)
    # `startswith` of equal lengths is a memcmp; `==` between bytes and memoryview goes item by item.
    if codec != RAW and not decode_block(codec, payload, raw.nbytes).startswith(raw):
        raise Corrupt(
            f"a block encoded as {codec_name(codec)} did not decode to what went in; it was not stored",
            hint="run the command again; if this comes back, test the memory of this machine",
        )
    return codec, payload


def magic_is_incompressible(first_bytes: bytes) -> bool:
    """Whether a file that begins so (`MAGIC_BYTES` of it) is compressed media or a compressed container.

    Says no when in doubt: the sample in `encode_block` finds the rest. Formats that may hold plain data
    (Parquet, PDF, TIFF, tar, WAV) are never named, nor is a bare MP3 frame: its two bytes occur anywhere.
    """
    head = first_bytes[:MAGIC_BYTES]
    if head.startswith(_COMPRESSED_MAGICS):
        return True
    if head.startswith(b"PK\x03\x04"):  # zip; .npz and .pt store their members: look at the first one
        return len(head) >= 10 and head[8:10] != b"\0\0"
    if head.startswith(b"RIFF"):
        return head[8:12] == b"WEBP"
    # An ISO media file is a list of boxes: big-endian size, then a type.
    return head[:2] == b"\0\0" and head[4:8] in (b"ftyp", b"moov", b"wide")


_COMPRESSED_MAGICS: Final = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"ID3\x02",  # MP3 with a tag, of any version
    b"ID3\x03",
    b"ID3\x04",
    b"OggS\0",
    b"fLaC\0\0\0\x22",
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x1f\x8b\x08",  # gzip
    _ZSTD_MAGIC,
    b"\xfd7zXZ\0",
    *(b"BZh%d1AY&SY" % level for level in range(1, 10)),  # bzip2
    b"\x04\x22\x4d\x18",  # LZ4 frame
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\x07",
)


def _codec(number: int) -> Codec:
    found = _BY_NUMBER.get(number)
    if found is None:
        raise NewerFormat(
            f"codec {number} of a block was written by a newer dvk; known are {', '.join(known_codecs())}",
            hint="upgrade dvk on this machine",
        )
    return found


def _is_worth_trying(raw: memoryview, hint: Hint) -> bool:
    """Whether zstd may shorten `raw`, by the hint and a sample.

    The pieces are tried one by one: the first that shrinks answers, and after a long run of noise zstd would
    step over the text that follows it. Random bytes that repeat further apart than a piece are missed; where
    whole chunks repeat, dedup has found them before.
    """
    if raw.nbytes > 2 * _SAMPLE_PIECES * _SAMPLE_PIECE_BYTES:
        spread = raw.nbytes - _SAMPLE_PIECE_BYTES
        starts = [spread * i // (_SAMPLE_PIECES - 1) for i in range(_SAMPLE_PIECES)]
        pieces = [raw[s : s + _SAMPLE_PIECE_BYTES] for s in starts]
    elif hint is Hint.UNKNOWN:
        return True  # the attempt costs little more than the sample
    else:
        pieces = [raw]
    compress = _tools.compressor(1).compress
    packed_bytes = (len(compress(p)) for p in pieces)
    if (
        hint is Hint.INCOMPRESSIBLE
    ):  # a header or thumbnail that shrinks says nothing about the rest: weigh all
        return sum(packed_bytes) * 10 <= sum(len(p) for p in pieces) * 9
    return any(n < _SAMPLE_PIECE_BYTES for n in packed_bytes)
