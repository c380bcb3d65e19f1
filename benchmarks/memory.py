"""The memory promise: adding and checking out a big file stays below a limit, whatever the file.

    python -m benchmarks memory                # 4 GB, 400 MB

The file is made on the fly and written in full (no holes): text that compresses, random bytes that do not, weights
in between, so that all codecs take part. What counts is the peak of resident memory of the whole process, as the
system kept it, not samples that could miss a peak.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct

from benchmarks.measure import Command, run
from benchmarks.tools import Dvk, new_place, with_dvk

SECTION_BYTES = 8 << 20
SEED = 20_260_104
#: Maps a random byte to one of the few sign and exponent bytes that Gaussian floats have.
_EXPONENTS = bytes((0x3C, 0xBC, 0x3C, 0xBB, 0x3D)[b % 5] for b in range(256))


def check(work: str, *, size_bytes: int, limit_bytes: int) -> int:
    """Add, remove and check out a file; 0 when memory stayed below the limit and the bytes came back."""

    def measured(folder: str, program: tuple[str, ...]) -> int:
        tool = Dvk(program, "")
        place = new_place(os.path.join(folder, "place"), "big.bin", extra_env={})
        tool.prepare(place)
        wanted = _make(place.target, size_bytes)
        bad = False
        back = Command((*program, "-q", "checkout"), place.repo, place.env)
        for verb, command in (("add", tool.add(place, 0)), ("checkout", back)):
            if verb == "checkout":
                os.unlink(place.target)
            cost = run(command, scratch=place.scratch)
            over = cost.rss_bytes > limit_bytes
            bad |= over
            print(
                f"{verb:8} {size_bytes / 1e9:.2f} GB: {cost.rss_bytes / 1e6:.0f} MB of memory"
                f" ({'OVER' if over else 'within'} {limit_bytes / 1e6:.0f} MB), {cost.wall_s:.1f} s"
            )
        if _digest(place.target) != wanted:
            print("checkout brought other bytes")
            bad = True
        return 1 if bad else 0

    return with_dvk(work, "memory", measured, say=print)


def _make(path: str, size_bytes: int) -> bytes:
    rng = random.Random(SEED)
    digest = hashlib.sha256()
    with open(path, "wb") as f:
        number, left = 0, size_bytes
        while left:
            section = _section(rng, number)[:left]
            f.write(section)
            digest.update(section)
            left -= len(section)
            number += 1
    return digest.digest()


def _section(rng: random.Random, number: int) -> bytes:
    if number % 3 == 0:
        return rng.randbytes(SECTION_BYTES)
    if number % 3 == 1:
        line = "%08d,%s,%d\n"
        words = ("alpha", "beta", "gamma", "delta")
        lines = [line % (number * 400_000 + i, words[i * number % 4], i * 7919 % 100_003) for i in range(400_000)]
        return "".join(lines).encode()[:SECTION_BYTES]
    # Weights: random mantissas under few exponents, what Gaussian floats look like to a codec.
    noise = bytearray(rng.randbytes(SECTION_BYTES))
    noise[3::4] = noise[3::4].translate(_EXPONENTS)
    return struct.pack("<Q", number) + bytes(noise[8:])


def _digest(path: str) -> bytes:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").digest()
