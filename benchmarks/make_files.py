"""Folders of many files, and one big file of everything."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np

SEED = 20_260_103
FILES = 50_000
MANY = 1_000_000
MANY_PER_FOLDER = 1000
MIXED_BYTES = 10_000_000_000
SECTION_BYTES = 16 << 20


def files(cache: str, scale: float) -> None:
    """Photographs, as far as a store can tell: 2 to 40 KiB that do not compress, in 256 subfolders.

    The edit changes 1 % of the files, adds 1 % and removes 1 %.
    """
    rng = random.Random(SEED)
    count = max(300, int(FILES * scale))
    paths = [f"{number % 256:02x}/img{number:06d}.jpg" for number in range(count)]
    contents = ((path, rng.randbytes(rng.randint(2048, 40 * 1024))) for path in paths)
    _folder(os.path.join(cache, "files"), contents, paths, rng, new=lambda: rng.randbytes(rng.randint(2048, 40 * 1024)))


def many(cache: str, scale: float) -> None:
    """A million files of 1 KB, 1,000 to a subfolder: every second one a little record, the others random."""
    rng = random.Random(SEED + 1)
    count = max(2 * MANY_PER_FOLDER, int(MANY * scale))
    paths = [f"{number // MANY_PER_FOLDER:04d}/{number % MANY_PER_FOLDER:03d}.rec" for number in range(count)]

    def content(number: int) -> bytes:
        if number % 2:
            return rng.randbytes(1000)
        fields = {f"field_{i}": rng.randint(0, 10**6) for i in range(45)}
        return json.dumps({"record": number, **fields}).encode().ljust(1000)[:1000]

    contents = ((path, content(number)) for number, path in enumerate(paths))
    _folder(os.path.join(cache, "many"), contents, paths, rng, new=lambda: rng.randbytes(1000))


def _folder(
    folder: str,
    contents: Iterable[tuple[str, bytes]],
    paths: Sequence[str],
    rng: random.Random,
    *,
    new: Callable[[], bytes],
) -> None:
    made: set[str] = set()
    for path, content in contents:
        _write(os.path.join(folder, "0", path), content, made)
    some = max(1, len(paths) // 100)
    touched = rng.sample(paths, 2 * some)
    changed, removed = touched[:some], touched[some:]
    added = [os.path.join(os.path.dirname(p), f"new-{n:06d}") for n, p in enumerate(rng.sample(paths, some))]
    for path in (*changed, *added):
        _write(os.path.join(folder, "1", path), new(), made)
    with open(os.path.join(folder, "edit.json"), "w") as f:
        json.dump({"changed": changed, "added": added, "removed": removed}, f)


def _write(path: str, content: bytes, made: set[str]) -> None:
    folder = os.path.dirname(path)
    if folder not in made:
        os.makedirs(folder, exist_ok=True)
        made.add(folder)
    with open(path, "wb") as f:
        f.write(content)


def mixed(cache: str, scale: float) -> None:
    """Sections of text, random bytes, weights, zeros and log lines in turn; the edit rewrites 1 % and appends 1 %."""
    folder = os.path.join(cache, "mixed")
    size = max(5 * SECTION_BYTES, int(MIXED_BYTES * scale))
    with open(os.path.join(folder, "0.bin"), "wb") as f:
        number = 0
        while f.tell() < size:
            f.write(_section(number)[: size - f.tell()])
            number += 1
    rng = random.Random(SEED + 2)
    length = 1 << 16
    step = length * 100
    ranges = [(start + rng.randrange(step - length), length) for start in range(0, size - step, step)]
    with open(os.path.join(folder, "patch.bin"), "wb") as f:
        for _ in ranges:
            f.write(rng.randbytes(length))
        f.write(rng.randbytes(size // 100))
    with open(os.path.join(folder, "patch.json"), "w") as out:
        json.dump([*ranges, (size, size // 100)], out)


def _section(number: int) -> bytes:
    rng = np.random.default_rng([SEED, 4, number])
    kind = number % 5
    if kind == 0:
        cells = rng.integers(0, 10**6, SECTION_BYTES // 6)
        return ",".join(map(str, cells.tolist())).encode().ljust(SECTION_BYTES)[:SECTION_BYTES]
    if kind == 1:
        return bytes(rng.bytes(SECTION_BYTES))
    if kind == 2:
        weights = rng.standard_normal(SECTION_BYTES // 4, dtype=np.float32) * np.float32(0.02)
        return bytes(weights.astype("<f4").tobytes())
    if kind == 3:
        return bytes(SECTION_BYTES)
    codes = rng.choice([200, 200, 200, 301, 404, 500], 400_000).tolist()
    lines = (f"2026-01-01T00:00:00Z GET /items/{i % 977} {code} {number}\n" for i, code in enumerate(codes))
    return "".join(lines).encode().ljust(SECTION_BYTES)[:SECTION_BYTES]
