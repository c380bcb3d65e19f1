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

from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Final

from msgspec import Struct

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt, FormatError, NewerFormat
from dvk.store.frames import ZSTD_MAGIC, compress, compress_entropy, decode_frame
from dvk.store.planes import WIDTHS, decode_planes, encode_planes
from dvk.store.probe import SAMPLE_BYTES, find_words, take_sample
from dvk.timings import Stage, stage

RAW: Final = 0
ZSTD: Final = 1
PLANES: Final = {2: 2, 4: 3, 8: 4}  #: word width in bytes -> codec number

MAX_BLOCK_BYTES: Final = 1 << 20
MAGIC_BYTES: Final = 16  #: how many first bytes of a file `magic_is_incompressible` wants

_SAMPLE_PIECES: Final = 8
_SAMPLE_PIECE_BYTES: Final = 4096
#: What planes must gain on plain zstd where nobody said that a block holds words.
_GUESS_GAIN: Final = 0.03
#: And where somebody did: at equal size they are two to three times as fast to encode.
_KNOWN_GAIN: Final = -0.05


class Hint(Enum):
    """What the caller knows of a block. Right or wrong, it costs time or space, never bytes."""

    UNKNOWN = "unknown"
    INCOMPRESSIBLE = "incompressible"  #: the file says so by its magic: zstd only if the sample shrinks a lot
    BYTES = "bytes"  #: numbers of one byte, or packed ones
    WORDS_2 = "2-byte words"  #: numbers, the first of them at the start of the block
    WORDS_4 = "4-byte words"
    WORDS_8 = "8-byte words"


WORDS: Final = {2: Hint.WORDS_2, 4: Hint.WORDS_4, 8: Hint.WORDS_8}  #: word width in bytes -> hint
_WIDTHS: Final = {Hint.UNKNOWN: WIDTHS, **{hint: (width,) for width, hint in WORDS.items()}}


class Codec(Struct, frozen=True):
    """One way to encode a block. `number` and `name` are on disk and never change their meaning."""

    number: int
    name: str
    decode: Callable[[Buffer, int], bytes]  #: (payload, raw_bytes) -> raw, or Corrupt


def _decode_raw(payload: Buffer, raw_bytes: int) -> bytes:
    if len(payload) != raw_bytes:
        raise Corrupt(f"a raw block of {len(payload):,} bytes where {raw_bytes:,} are stated")
    return bytes(payload)


def _decode_planes(width: int, payload: Buffer, raw_bytes: int) -> bytes:
    return decode_planes(payload, width, raw_bytes)


_CODECS: Final = (
    Codec(RAW, "raw", _decode_raw),
    Codec(ZSTD, "zstd", decode_frame),
    *(Codec(PLANES[w], f"planes-{w}", partial(_decode_planes, w)) for w in WIDTHS),
    # 5-15 are reserved for other planes, 16-31 for differences: docs/format/codecs.md
)
_BY_NUMBER: Final = {c.number: c for c in _CODECS}
ALL_CODECS: Final = frozenset(_BY_NUMBER)  #: what this version of dvk reads and writes


def known_codecs() -> tuple[str, ...]:
    """The names of the codecs that this version of dvk reads and writes, by number."""
    return tuple(c.name for c in _CODECS)


def codec_name(number: int) -> str:
    """The name of a codec, as `dvk.json` lists it.

    Raises:
        NewerFormat: no codec of this version has that number.
    """
    return _codec(number).name


def codec_numbers(names: Iterable[str]) -> frozenset[int]:
    """The codecs of a store's list that this version knows; raw is always one of them."""
    return frozenset({RAW, *(c.number for c in _CODECS if c.name in set(names))})


def encode_block(
    raw: memoryview, *, hint: Hint = Hint.UNKNOWN, level: int = 1, codecs: frozenset[int] = ALL_CODECS
) -> tuple[int, Buffer]:
    """Encode 1 byte to 1 MiB of contiguous bytes: codec number and payload, never longer than `raw`.

    A raw payload is `raw` itself, so it lives and changes with the caller's buffer. Any number of threads may
    call at once; zstd runs outside the interpreter lock. `level` is zstd's, `codecs` are those that the store takes.
    """
    if raw.format != "B":
        raw = raw.cast("B")
    if not 1 <= raw.nbytes <= MAX_BLOCK_BYTES:
        raise ValueError(f"a block holds 1 to {MAX_BLOCK_BYTES} bytes, not {raw.nbytes}")
    planes = _try_planes(raw, hint, level, codecs)
    if planes is not None:
        return planes
    if ZSTD in codecs and _is_worth_trying(raw, hint):
        packed = compress_entropy(raw) if _is_uneven(raw, hint, level) else compress(raw, level)
        if len(packed) * 100 <= raw.nbytes * 97:
            # The library's answer keeps the room that the worst case would have taken, up to a whole block, and a
            # pack full of short answers would keep gigabytes: so a copy, which costs 1 % of making it.
            return ZSTD, bytes(memoryview(packed))
    return RAW, raw


def _try_planes(raw: memoryview, hint: Hint, level: int, codecs: frozenset[int]) -> tuple[int, Buffer] | None:
    """Number and payload where `raw` holds words, by its hint or by its looks, and planes are the best for them."""
    widths = tuple(w for w in _WIDTHS.get(hint, ()) if PLANES[w] in codecs)
    if not widths:
        return None
    if raw.nbytes >= SAMPLE_BYTES:
        words = find_words(raw, widths, needed_gain=_GUESS_GAIN if hint is Hint.UNKNOWN else _KNOWN_GAIN)
        packed = encode_planes(raw, words.width, phase=words.phase, level=level) if words is not None else None
    elif len(widths) == 1:
        words, packed = None, encode_planes(raw, *widths, level=level)
        if packed is not None and len(compress(raw, level)) < len(packed):  # short enough to try both
            packed = None
    else:
        return None
    return None if packed is None else (PLANES[words.width if words is not None else widths[0]], packed)


def decode_block(codec: int, payload: Buffer, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes (1 to 1 MiB) that `payload` encodes; whatever it holds, no more is allocated.

    Raises:
        NewerFormat: `codec` is not known here.
        FormatError: `raw_bytes` is not a size a block can have.
        Corrupt: `payload` is not what the codec writes, or does not decode to exactly `raw_bytes`.
    """
    with stage(Stage.DECODE, bytes_=raw_bytes):
        return _decode(codec, payload, raw_bytes)


def _decode(codec: int, payload: Buffer, raw_bytes: int) -> bytes:
    found = _codec(codec)
    if not 1 <= raw_bytes <= MAX_BLOCK_BYTES:
        raise FormatError(f"a block holds 1 to {MAX_BLOCK_BYTES:,} bytes, not {raw_bytes:,}")
    raw = found.decode(payload, raw_bytes)
    if len(raw) != raw_bytes:
        raise Corrupt(f"a {found.name} block holds {len(raw):,} bytes where {raw_bytes:,} are stated")
    return raw


def encode_checked(
    raw: memoryview, *, hint: Hint = Hint.UNKNOWN, level: int = 1, codecs: frozenset[int] = ALL_CODECS
) -> tuple[int, Buffer]:
    """`encode_block`, proven to decode to `raw` again before anybody relies on it.

    Raises:
        Corrupt: it does not, so memory or a library is faulty, or another thread changed `raw`.
    """
    with stage(Stage.ENCODE, bytes_=raw.nbytes):
        codec, payload = encode_block(raw, hint=hint, level=level, codecs=codecs)
    if codec == RAW:
        return codec, payload
    with stage(Stage.VERIFY, bytes_=raw.nbytes):
        # `startswith` of equal lengths is a memcmp; `==` between bytes and memoryview goes item by item.
        if not _decode(codec, payload, raw.nbytes).startswith(raw):
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
    ZSTD_MAGIC,
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
    packed_bytes = (len(compress(p)) for p in pieces)
    if hint is Hint.INCOMPRESSIBLE:  # a header or thumbnail that shrinks says nothing about the rest: weigh all
        return sum(packed_bytes) * 10 <= sum(len(p) for p in pieces) * 9
    return any(n < _SAMPLE_PIECE_BYTES for n in packed_bytes)


def _is_uneven(raw: memoryview, hint: Hint, level: int) -> bool:
    """Whether numbers of one byte are better encoded by their frequency than by what repeats."""
    if hint is not Hint.BYTES:
        return False
    sample = take_sample(raw) if raw.nbytes >= SAMPLE_BYTES else raw
    return len(compress_entropy(sample)) < len(compress(sample, level))
