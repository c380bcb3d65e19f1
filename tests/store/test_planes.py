"""Float planes: every bit comes back, weights shrink as published, and hostile payloads are refused within bounds."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.errors import Corrupt, FormatError, NewerFormat
from dvk.store.codec import (
    MAX_BLOCK_BYTES,
    PLANES,
    RAW,
    WORDS,
    ZSTD,
    Hint,
    decode_block,
    encode_block,
    encode_checked,
)
from dvk.store.planes import WIDTHS, decode_planes, encode_planes
from dvk.store.probe import Words, find_words

VECTORS = Path(__file__).parents[2] / "docs" / "format" / "vectors" / "codecs" / "vectors.json"
MIB = MAX_BLOCK_BYTES
SPECIAL = {
    2: [0x0000, 0x8000, 0x7C00, 0xFC00, 0x7C01, 0x7E37, 0x0001, 0x8001, 0x3C00, 0xFFFF, 0x7F80, 0x7F81],
    4: [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 1, 0x80000001, 0x3F800000, 0xFFFFFFFF],
    8: [0, 1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF0_0000_0000_0001, 0xFFF8_1234_5678_9ABC, 1, 0x3FF << 52, 2**64 - 1],
}
_RNG = np.random.Generator(np.random.PCG64(20))
_NORMAL = _RNG.standard_normal(MIB // 2)


def noise(label: str, size: int) -> bytes:
    return blake3(label.encode()).digest(size)


def gaussian(kind: str) -> bytes:
    """1 MiB of weights, mean 0, deviation 0.02."""
    values = _NORMAL * 0.02
    match kind:
        case "BF16":
            return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        case "FP16":
            return values.astype("<f2").tobytes()
        case "FP32":
            return values[: MIB // 4].astype("<f4").tobytes()
        case "FP64":
            return values[: MIB // 8].astype("<f8").tobytes()
        case "BF16 in FP32":
            return (values[: MIB // 4].astype("<f4").view("<u4") & 0xFFFF0000).astype("<u4").tobytes()
    raise AssertionError(kind)


def decode_by_the_page(payload: bytes, width: int, raw_len: int) -> bytes:
    """docs/format/codecs.md, section planes, word for word, in plain integers."""
    phase, kinds = payload[0], payload[1 : 1 + width]
    n = (raw_len - phase) // width
    at = 1 + width
    lengths = []
    for kind in kinds:
        if kind == 1:
            lengths.append(struct.unpack_from("<I", payload, at)[0])
            at += 4
    head = payload[at : at + phase]
    at += phase
    tail_len = raw_len - phase - n * width
    tail = payload[at : at + tail_len]
    at += tail_len
    planes = []
    for kind in kinds:
        size = lengths.pop(0) if kind == 1 else (n, 0, 1)[kind]
        body = payload[at : at + size]
        at += size
        planes.append((body, zstandard.ZstdDecompressor().decompress(body) if kind == 1 else b"", body * n)[kind])
    assert at == len(payload)
    bits = 8 * width
    words = []
    for i in range(n):
        rotated = sum(plane[i] << 8 * k for k, plane in enumerate(planes))
        words.append((rotated >> 1 | rotated << (bits - 1)) & (1 << bits) - 1)
    return head + b"".join(w.to_bytes(width, "little") for w in words) + tail


def check(raw: bytes, width: int, phase: int = 0) -> bytes | None:
    payload = encode_planes(memoryview(raw), width, phase=phase)
    if payload is not None:
        assert len(payload) <= 0.97 * len(raw)
        assert decode_planes(payload, width, len(raw)) == raw
    return payload


@st.composite
def word_blocks(draw: st.DrawFn) -> tuple[int, bytes]:
    """A width, and bytes of words of it: random bits, values with a meaning of their own, runs, odd ends."""
    width = draw(st.sampled_from(WIDTHS))
    special = st.sampled_from(SPECIAL[width])
    words = draw(st.lists(special | st.integers(0, 256**width - 1), min_size=1, max_size=12))
    tile = b"".join(w.to_bytes(width, "little") for w in words)
    repeated = tile * draw(st.integers(1, 300))
    return width, repeated + draw(st.binary(max_size=9))


class TestEveryBitComesBack:
    @settings(max_examples=250, deadline=None)
    @given(word_blocks(), st.integers(0, 7))
    def test_of_any_words_at_any_phase(self, block: tuple[int, bytes], phase: int) -> None:
        width, raw = block
        payload = check(raw, width, phase % width)
        if payload is not None and len(raw) < 4000:
            assert decode_by_the_page(payload, width, len(raw)) == raw
        for hint in (WORDS[width], Hint.UNKNOWN, Hint.BYTES):
            number, data = encode_checked(memoryview(raw), hint=hint)
            assert decode_block(number, data, len(raw)) == raw

    @pytest.mark.parametrize("width", WIDTHS)
    def test_at_every_length(self, width: int) -> None:
        """1 to 200 bytes, then around a block, with and without something to gain."""
        source = np.tile(np.frombuffer(gaussian("FP32"), np.uint8), 1).tobytes()
        for size in [*range(1, 201), MIB - width - 1, MIB - 1, MIB]:
            for raw in (source[:size], bytes(size), b"\xff" * size, noise("n", size), bytes(size - 1) + b"\x80"):
                number, payload = encode_checked(memoryview(raw), hint=WORDS[width])
                assert decode_block(number, payload, size) == raw
                assert len(payload) <= size

    @pytest.mark.parametrize("kind", ["BF16", "FP16", "FP32", "FP64", "BF16 in FP32"])
    @pytest.mark.parametrize("phase", [0, 1, 3, 7])
    def test_of_words_that_start_anywhere(self, kind: str, phase: int) -> None:
        raw = (noise("head", phase) + gaussian(kind))[: MIB - 3]
        for width in WIDTHS:
            check(raw, width, phase % width)

    def test_of_random_bits_in_every_kind_of_plane(self) -> None:
        """Planes of noise, of one value, of few values and of repetition, side by side in every order."""
        n = 20_000
        kinds = {
            "noise": np.frombuffer(noise("plane", n), np.uint8),
            "constant": np.full(n, 0xA5, np.uint8),
            "zero": np.zeros(n, np.uint8),
            "few": np.frombuffer(noise("few", n), np.uint8) & 3,
            "repeats": np.resize(np.frombuffer(noise("period", 300), np.uint8), n),
        }
        names = list(kinds)
        for start in range(len(names)):
            for width in WIDTHS:
                lanes = [kinds[names[(start + k) % len(names)]] for k in range(width)]
                check(np.stack(lanes, axis=1).tobytes(), width)

    def test_in_many_threads_at_once(self) -> None:
        """The arrays are kept per thread."""
        jobs = [
            (gaussian(k)[i * 4096 : 600_000 + i * 4096], w) for i in range(8) for k, w in (("BF16", 2), ("FP32", 4))
        ]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda job: check(*job) is not None, jobs))

    def test_a_result_is_not_touched_by_the_next_call(self) -> None:
        a, b = gaussian("BF16"), gaussian("FP16")
        pa = check(a, 2)
        assert pa is not None
        back = decode_planes(pa, 2, MIB)
        check(b, 2)
        assert back == a and decode_planes(pa, 2, MIB) == a


class TestWeightsShrink:
    @pytest.mark.parametrize(
        ("kind", "width", "mark"),
        [("BF16", 2, 0.67), ("FP16", 2, 0.86), ("FP32", 4, 0.84), ("FP64", 8, 0.90), ("BF16 in FP32", 4, 0.355)],
    )
    def test_to_the_marks_with_and_without_a_hint(self, kind: str, width: int, mark: float) -> None:
        raw = gaussian(kind)
        for hint in (WORDS[width], Hint.UNKNOWN):
            number, payload = encode_block(memoryview(raw), hint=hint)
            assert number == PLANES[width]
            assert len(payload) <= mark * len(raw)

    @pytest.mark.parametrize(("kind", "width"), [("BF16", 2), ("FP32", 4), ("FP64", 8)])
    def test_wherever_the_first_word_starts(self, kind: str, width: int) -> None:
        raw = gaussian(kind)
        best = len(encode_block(memoryview(raw))[1])
        for phase in range(width):
            shifted = memoryview(noise("head", phase) + raw[: MIB - width])
            assert find_words(shifted, WIDTHS, needed_gain=0.03) == Words(width, phase)
            assert len(encode_block(shifted)[1]) <= best + 3 * width

    def test_in_small_blocks_too(self) -> None:
        for size in (2000, 8192, 65536):
            number, payload = encode_block(memoryview(gaussian("BF16")[:size]), hint=Hint.WORDS_2)
            assert number == PLANES[2] and len(payload) <= 0.71 * size

    def test_numbers_of_one_byte_by_their_frequency(self) -> None:
        raw = np.clip(_NORMAL[: MIB // 2] * 20, -127, 127).astype(np.int8).tobytes()
        number, payload = encode_block(memoryview(raw), hint=Hint.BYTES)
        assert number == ZSTD and len(payload) <= 0.82 * len(raw)

    def test_a_wrong_hint_costs_little(self) -> None:
        """Weights that are mostly zero, and text, stay with zstd; noise stays raw."""
        sparse = np.frombuffer(gaussian("FP32"), "<u4").copy()
        sparse[_RNG.random(len(sparse)) < 0.9] = 0
        text = b"".join(b"%d,%d,name-%d\n" % (i, i * 7919 % 1000, i % 13) for i in range(60_000))[:MIB]
        for raw in (sparse.tobytes(), text):
            plain = len(zstandard.compress(raw, 1))
            for hint in Hint:
                assert len(encode_block(memoryview(raw), hint=hint)[1]) <= 1.06 * plain
        for hint in Hint:
            assert encode_block(memoryview(noise("noise", MIB)), hint=hint)[0] == RAW

    def test_text_is_never_taken_for_words(self) -> None:
        text = b"".join(b"%08d,%06d,%d\n" % (i, i * 7919 % 100_000, i % 13) for i in range(60_000))
        for size in (20_000, 100_000, MIB):
            number, payload = encode_block(memoryview(text[:size]))
            assert number == ZSTD
            assert len(payload) <= len(zstandard.compress(text[:size], 1))


def hostile() -> dict[str, tuple[bytes, int]]:
    """Name -> payload of `planes-2` and the raw size that the block states."""
    n = 1000
    raw = (np.arange(n, dtype="<u2") % 7 << 9).tobytes()
    good = encode_planes(memoryview(raw), 2)
    assert good is not None and good[:3] == b"\0\x02\x01"
    frame = good[8:]

    def made(phase: int, kinds: bytes, lengths: list[int], rest: bytes) -> bytes:
        return bytes([phase]) + kinds + b"".join(struct.pack("<I", x) for x in lengths) + rest

    size = 2 * n
    other = zstandard.compress(bytes(n + 1), 1)
    unstated = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(n))
    bomb = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1 << 31) + b"\x02\0\x10z" * 300
    return {
        "nothing": (b"", size),
        "half a header": (b"\0\2", size),
        "only a header": (b"\0\2\2", size),
        "a phase of a whole word": (b"\2" + good[1:], size),
        "a phase of 255": (b"\xff" + good[1:], size),
        "no whole word": (b"\1\2\2xyz"[:3], 2),
        "an unknown kind": (made(0, b"\2\3", [], b"ab"), size),
        "kind 255": (made(0, b"\2\xff", [], b"ab"), size),
        "one byte too many": (good + b"\0", size),
        "one byte too few": (good[:-1], size),
        "another size of block": (good, size + 2),
        "a tail that is not there": (good, size + 1),
        "a longer frame than there is": (made(0, b"\2\1", [len(frame) + 1], b"\0" + frame), size),
        "a frame of 4 GiB": (made(0, b"\2\1", [2**32 - 1], b"\0" + frame), size),
        "a frame of no bytes": (made(0, b"\2\1", [0], b"\0"), size),
        "lengths that sum beyond the payload": (made(0, b"\1\1", [2**32 - 1] * 2, frame), size),
        "a frame of another plane length": (made(0, b"\2\1", [len(other)], b"\0" + other), size),
        "a frame without its size": (made(0, b"\2\1", [len(unstated)], b"\0" + unstated), size),
        "a frame that unfolds to 2 GiB": (made(0, b"\2\1", [len(bomb)], b"\0" + bomb), MIB),
        "raw planes, no smaller than the block": (made(0, b"\0\0", [], bytes(size)), size),
        "a raw plane cut short": (made(0, b"\0\2", [], bytes(n)), size),
        "a plane of text for a frame": (made(0, b"\2\1", [50], b"\0" + b"x" * 50), size),
    }


HOSTILE = hostile()


class TestHostilePayloads:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_each_is_refused_as_corrupt(self, name: str) -> None:
        payload, raw_bytes = HOSTILE[name]
        with pytest.raises(Corrupt):
            decode_block(PLANES[2], payload, raw_bytes)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_a_damaged_payload_gives_the_stated_size_or_an_error_of_ours(self, data: st.DataObject) -> None:
        width = data.draw(st.sampled_from(WIDTHS))
        size = data.draw(st.sampled_from([64, 500, 5003, 40_001]))
        raw = (noise("head", width - 1) + gaussian({2: "BF16", 4: "FP32", 8: "FP64"}[width]))[:size]
        encoded = encode_planes(memoryview(raw), width, phase=data.draw(st.integers(0, width - 1)))
        payload = bytearray(encoded or bytes(20))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(payload) - 1) | st.integers(0, min(24, len(payload) - 1)))
            match data.draw(st.sampled_from(["set", "insert", "delete"])):
                case "set":
                    payload[at] = data.draw(st.integers(0, 255))
                case "insert":
                    payload[at:at] = data.draw(st.binary(min_size=1, max_size=20))
                case "delete" if len(payload) > 25:
                    del payload[at : at + data.draw(st.integers(1, 20))]
        stated = data.draw(st.sampled_from([size, size + 1, size - 1, MIB]))
        try:
            assert len(decode_block(PLANES[width], bytes(payload), stated)) == stated
        except Corrupt:
            pass

    @settings(max_examples=200, deadline=None)
    @given(st.sampled_from([2, 3, 4]), st.binary(max_size=100), st.integers(-(2**63), 2**64) | st.integers(1, 300))
    def test_any_arguments_give_bytes_or_an_error_of_ours(self, number: int, tail: bytes, raw_bytes: int) -> None:
        for payload in (tail, b"\0" + bytes([2] * 2 ** (number - 1)) + tail):
            try:
                assert len(decode_block(number, payload, raw_bytes)) == raw_bytes
            except FormatError as error:
                assert not isinstance(error, NewerFormat)


@pytest.mark.parametrize("hint", list(Hint))
def test_a_codec_that_a_store_cannot_hold_is_never_a_surprise(hint: Hint) -> None:
    """Every number that an encoder may answer is one that the registry knows."""
    for raw in (gaussian("BF16"), gaussian("FP32"), gaussian("FP64"), noise("x", 5000), bytes(5000)):
        number, _ = encode_block(memoryview(raw), hint=hint)
        assert number in {RAW, ZSTD, *PLANES.values()}


def test_vectors_hold_every_kind_of_plane() -> None:
    """The published payloads of docs/format/vectors/codecs decode here and by the page alike."""
    seen: set[int] = set()
    vectors: list[dict[str, Any]] = json.loads(VECTORS.read_text())["accept"]
    width_of = {number: width for width, number in PLANES.items()}
    for vector in vectors:
        width = width_of.get(vector["codec"])
        if width is None:
            continue
        payload = bytes.fromhex(vector["payload"])
        raw = decode_by_the_page(payload, width, vector["raw_len"])
        assert raw == decode_planes(payload, width, vector["raw_len"])
        assert blake3(raw).hexdigest() == vector["raw_b3"]
        seen |= {(width << 8) + kind for kind in payload[1 : 1 + width]}
    assert seen == {(width << 8) + kind for width in WIDTHS for kind in (0, 1, 2)}
