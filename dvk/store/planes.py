"""Floating-point words as byte planes: what repeats in weights is their exponents, and they lie between noise.

    payload = encode_planes(memoryview(weights), 4)      # FP32: about 83 % of raw; None when it saves too little
    assert decode_planes(payload, 4, len(weights)) == weights

Choice: rotate each word left by one, so that the sign goes to the bottom and the exponent fills the top byte (of BF16
and FP32; of FP16 and FP64 the top byte holds most of it), then store each byte of the word as a plane of its own:
exponents through zstd without matches (`compress_entropy`), mantissas as they are, a plane of one value as that value.
A decoder needs plain zstd and array arithmetic.

Whole-word shifts and narrowing casts run at memory speed in numpy; copying every nth byte takes four times as long. The
arrays are kept per thread: fresh ones of 1 MiB cost more in page faults than the arithmetic.

Format: docs/format/codecs.md, section "planes".
"""

from __future__ import annotations

import struct
import threading
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dvk.backend.contract import Buffer
from dvk.errors import Corrupt
from dvk.store.frames import MAX_FRAME_RAW_BYTES, compress, compress_entropy, decode_frame
from dvk.store.gear import U8

#: Of unsigned little-endian words. Their type is not fixed: words of 2, 4 or 8 bytes.
Words = npt.NDArray[Any]

WIDTHS: Final = (2, 4, 8)
_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype(np.uint8),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}
_LENGTH: Final = struct.Struct("<I")

# How a plane is stored.
_RAW, _FRAME, _CONSTANT = 0, 1, 2

_SAMPLE_PIECES: Final = 4
_SAMPLE_PIECE_BYTES: Final = 1024


class _Scratch(threading.local):
    """Arrays of this thread, enough for one block: 4 MiB."""

    def __init__(self) -> None:
        # Of the largest word, so that every view is aligned.
        self._arrays = [np.empty(MAX_FRAME_RAW_BYTES // 8, np.uint64) for _ in range(4)]

    def words(self, i: int, width: int, count: int) -> Words:
        """Array `i` (0-3) as `count` words of `width` bytes, content undefined."""
        return self._arrays[i].view(_DTYPES[width])[:count]


_scratch = _Scratch()


def encode_planes(raw: memoryview, width: int, *, phase: int = 0, level: int = 1) -> bytes | None:
    """Encode up to 1 MiB as planes; None when that takes more than 97 % of it.

    Args:
        width: bytes in a word: 2, 4 or 8.
        phase: how many bytes lie before the first word, fewer than `width`.
        level: of zstd, for a plane in which something does repeat.
    """
    size = raw.nbytes
    count = (size - phase) // width
    if count < 1:
        return None
    kinds: list[int] = []
    payloads: list[Buffer] = []
    for plane in _split(raw, width, phase, count):
        kind, payload = _encode_plane(plane, level)
        kinds.append(kind)
        payloads.append(payload)
    lengths = [len(p) for k, p in zip(kinds, payloads, strict=True) if k == _FRAME]
    end = phase + count * width
    parts = [bytes([phase, *kinds]), *map(_LENGTH.pack, lengths), raw[:phase], raw[end:], *payloads]
    if sum(map(len, parts)) * 100 > size * 97:
        return None
    return b"".join(parts)


def decode_planes(payload: Buffer, width: int, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes (1 to 1 MiB) that `payload` encodes in words of `width` bytes.

    Raises:
        Corrupt: the payload is not what docs/format/codecs.md describes.
    """
    view = memoryview(payload)
    if len(view) >= raw_bytes:
        raise Corrupt("a block of planes is not smaller than what it encodes")
    if len(view) < 1 + width:
        raise Corrupt("a block of planes is cut short")
    phase, kinds = view[0], view[1 : 1 + width]
    if phase >= width or raw_bytes < phase + width:
        raise Corrupt("a block of planes states an impossible phase")
    if any(kind > _CONSTANT for kind in kinds):
        raise Corrupt("a block of planes has a plane of unknown kind")
    count = (raw_bytes - phase) // width
    tail_bytes = raw_bytes - phase - count * width
    frames = bytes(kinds).count(_FRAME)
    at = 1 + width + _LENGTH.size * frames
    if len(view) < at + phase + tail_bytes:
        raise Corrupt("a block of planes is cut short")
    lengths = iter(struct.unpack_from(f"<{frames}I", view, 1 + width))
    sizes = [next(lengths) if kind == _FRAME else 1 if kind == _CONSTANT else count for kind in kinds]
    head, tail = view[at : at + phase], view[at + phase : at + phase + tail_bytes]
    at += phase + tail_bytes
    if at + sum(sizes) != len(view):
        raise Corrupt("the planes of a block do not fill it")
    planes: list[U8 | int] = []
    for kind, size in zip(kinds, sizes, strict=True):
        body = view[at : at + size]
        at += size
        if kind == _CONSTANT:
            planes.append(body[0])
        else:
            planes.append(np.frombuffer(body if kind == _RAW else decode_frame(body, count), np.uint8))
    words = _merge(planes, width, count)
    if not phase and not tail_bytes:
        return words.tobytes()
    return b"".join((head, words.data, tail))


def _split(raw: memoryview, width: int, phase: int, count: int) -> list[U8]:
    """The planes of the rotated words, lowest byte first. They last until the next call in this thread."""
    words = np.frombuffer(raw, _DTYPES[width], count, phase)
    rotated, spare = _scratch.words(0, width, count), _scratch.words(1, width, count)
    if not words.flags.aligned:
        np.copyto(rotated, words)
        words = rotated
    np.right_shift(words, 8 * width - 1, out=spare)
    np.left_shift(words, 1, out=rotated)
    np.bitwise_or(rotated, spare, out=rotated)
    room = _scratch.words(2, 1, count * width)
    planes = [room[k * count : (k + 1) * count] for k in range(width)]
    np.copyto(planes[0], rotated, casting="unsafe")
    for k in range(1, width):
        np.right_shift(rotated, 8 * k, out=planes[k], casting="unsafe")
    return planes


def _merge(planes: list[U8 | int], width: int, count: int) -> Words:
    """The words, rotated back. They last until the next call in this thread."""
    words, spare = _scratch.words(0, width, count), _scratch.words(1, width, count)
    top = planes[-1]
    if isinstance(top, int):
        words.fill(top)
    else:
        np.copyto(words, top)
    for plane in reversed(planes[:-1]):
        np.left_shift(words, 8, out=words)
        if not isinstance(plane, int) or plane:
            np.bitwise_or(words, plane, out=words)
    np.right_shift(words, 1, out=spare)
    np.left_shift(words, 8 * width - 1, out=words)
    np.bitwise_or(words, spare, out=words)
    return words


def _encode_plane(plane: U8, level: int) -> tuple[int, Buffer]:
    """Kind and payload of a plane, the cheapest question first."""
    count = len(plane)
    if plane[0] == plane[-1] and plane.min() == plane.max():
        return _CONSTANT, plane[:1].tobytes()
    if count > 2 * _SAMPLE_PIECES * _SAMPLE_PIECE_BYTES:
        spread = count - _SAMPLE_PIECE_BYTES
        starts = [spread * i // (_SAMPLE_PIECES - 1) for i in range(_SAMPLE_PIECES)]
        sample: Buffer = b"".join(plane[s : s + _SAMPLE_PIECE_BYTES].data for s in starts)
    else:
        sample = plane.data
    entropy = len(compress_entropy(sample))
    repeats = len(compress(sample, level))
    # Noise is left as it is. A sample of 4 KiB pays 1 % or 2 % for its table, which a plane would not.
    if min(entropy, repeats) > 0.985 * len(sample):
        return _RAW, plane.data
    packed = compress(plane.data, level) if repeats < 0.96 * entropy else compress_entropy(plane.data)
    if len(packed) > 0.98 * count:
        return _RAW, plane.data
    return _FRAME, packed
