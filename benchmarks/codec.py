"""What one core makes of a block: `python -m benchmarks.codec [--json]`.

For each kind of content: the codec that was chosen, with and without a hint, its size in per cent of raw, and GB/s of
raw bytes for encoding, encoding with the check that every block gets, and decoding. Blocks of 1 MiB, the best of
several runs, everything in cache: what a core can do, not what a disk allows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import zstandard

from dvk.store.codec import (
    MAX_BLOCK_BYTES,
    WORDS,
    Hint,
    codec_name,
    decode_block,
    encode_block,
    encode_checked,
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    content: str
    hint: str
    codec: str
    percent: float
    zstd1_percent: float
    encode_gb_s: float
    checked_gb_s: float
    decode_gb_s: float


def contents(seed: int = 7) -> Iterator[tuple[str, bytes, Hint]]:
    """Name, 1 MiB, and what a file format would say of it."""
    random = np.random.Generator(np.random.PCG64(seed))
    normal = random.standard_normal(MAX_BLOCK_BYTES // 2) * 0.02
    fp32 = normal[: MAX_BLOCK_BYTES // 4].astype("<f4")
    yield "BF16", (normal.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(), WORDS[2]
    yield "FP16", normal.astype("<f2").tobytes(), WORDS[2]
    yield "FP32", fp32.tobytes(), WORDS[4]
    yield "FP64", normal[: MAX_BLOCK_BYTES // 8].astype("<f8").tobytes(), WORDS[8]
    yield "BF16 in FP32", (fp32.view("<u4") & 0xFFFF0000).astype("<u4").tobytes(), WORDS[4]
    sparse = np.where(random.random(len(fp32)) < 0.9, np.float32(0), fp32)
    yield "FP32, 90 % zero", sparse.astype("<f4").tobytes(), WORDS[4]
    yield "INT8", np.clip(random.standard_normal(MAX_BLOCK_BYTES) * 30, -127, 127).astype(np.int8).tobytes(), Hint.BYTES
    yield "INT64 tokens", random.integers(0, 50_000, MAX_BLOCK_BYTES // 8).astype("<i8").tobytes(), WORDS[8]
    numbers = random.integers(0, 10**6, 40_000).tolist()
    rows = "".join(f"{i},{n},{n / 7919:.4f},2024-01-{n % 28 + 1:02d}\n" for i, n in enumerate(numbers))
    yield "CSV", rows.encode()[:MAX_BLOCK_BYTES], Hint.UNKNOWN
    yield "noise", random.bytes(MAX_BLOCK_BYTES), Hint.UNKNOWN
    yield "zeros", bytes(MAX_BLOCK_BYTES), Hint.UNKNOWN


def best_s(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def measure(repeats: int = 25) -> list[Row]:
    """All rows of the table."""
    out: list[Row] = []
    for name, raw, told in contents():
        view, size = memoryview(raw), len(raw)
        zstd1 = len(zstandard.compress(raw, 1)) / size
        for hint in dict.fromkeys((told, Hint.UNKNOWN)):
            number, payload = encode_block(view, hint=hint)
            assert decode_block(number, payload, size) == raw
            encode = best_s(lambda view=view, hint=hint: encode_block(view, hint=hint), repeats)  # type: ignore[misc]
            checked = best_s(lambda view=view, hint=hint: encode_checked(view, hint=hint), repeats)  # type: ignore[misc]
            decode = best_s(lambda n=number, p=payload, size=size: decode_block(n, p, size), repeats)  # type: ignore[misc]
            speeds = (size / s / 1e9 for s in (encode, checked, decode))
            out.append(Row(name, hint.value, codec_name(number), 100 * len(payload) / size, 100 * zstd1, *speeds))
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    parser.add_argument("--repeats", type=int, default=25, metavar="N")
    options = parser.parse_args()
    rows = measure(options.repeats)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print("| content | hint | codec | % of raw | zstd -1 | encode GB/s | checked | decode |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        sizes = f"{r.percent:.1f} | {r.zstd1_percent:.1f}"
        speeds = f"{r.encode_gb_s:.2f} | {r.checked_gb_s:.2f} | {r.decode_gb_s:.2f}"
        print(f"| {r.content} | {r.hint} | {r.codec} | {sizes} | {speeds} |")


if __name__ == "__main__":
    main()
