"""Bad input: what lies, is cut short or does not compress costs little more than cutting it plainly.

    python -m benchmarks badinput              # 64 MB a case, best of five

Each case is stored twice, by the profile that looks for formats and by the one that cuts by content alone. The first
may take half as much processor time again, and neither may store more than 1 % above the input. Whoever finds a file
that breaks this has found a way to slow everybody's `dvk add` down, so it becomes a case.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from dvk.backend.memory import MemoryBackend
from dvk.store.ingest import ingest
from dvk.store.store import Store
from dvk.store.writer import Writer

SPLITTING, PLAIN = "auto-64k", "cdc-64k"
MAX_TIME_RATIO = 1.5
#: Beside the ratio: the look at a header costs a few milliseconds, however small the file.
TIME_FLOOR_S = 0.01
MAX_SIZE_RATIO = 1.01
SIZE_FLOOR_BYTES = 16 << 10


@dataclass(frozen=True)
class Cost:
    """Of one case: processor seconds by each profile, bytes of the file and of the packs."""

    name: str
    size: int
    stored: int
    splitting_s: float
    plain_s: float

    @property
    def ok(self) -> bool:
        """Whether it stays within the promise."""
        in_time = self.splitting_s <= MAX_TIME_RATIO * self.plain_s + TIME_FLOOR_S
        return in_time and self.stored <= MAX_SIZE_RATIO * self.size + SIZE_FLOOR_BYTES


def check(*, size_bytes: int, rounds: int, say: Callable[[str], None]) -> int:
    """Store each case; 0 when all stay within the promise."""
    bad = 0
    say(f"{'case':34} {'MB':>5} {'stored':>8} {'plain s':>8} {'split s':>8} {'ratio':>6}")
    for name, make in CASES.items():
        cost = measure(name, make(size_bytes), rounds=rounds)
        bad += not cost.ok
        say(
            f"{name:34} {cost.size / 1e6:5.0f} {100 * cost.stored / cost.size:6.1f} % {cost.plain_s:8.3f}"
            f" {cost.splitting_s:8.3f} {cost.splitting_s / cost.plain_s:6.2f}{'' if cost.ok else '  TOO MUCH'}"
        )
    return 1 if bad else 0


def measure(name: str, data: bytes, *, rounds: int) -> Cost:
    """Store `data` by both profiles in turn; of each the best round."""
    seconds = {SPLITTING: float("inf"), PLAIN: float("inf")}
    stored = 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "case")
        with open(path, "wb") as file:
            file.write(data)
        for i in range(rounds):
            for profile in (SPLITTING, PLAIN)[:: 1 if i % 2 else -1]:
                began = time.process_time()
                size = _store(path, len(data), profile)
                seconds[profile] = min(seconds[profile], time.process_time() - began)
                stored = max(stored, size)
    return Cost(name, len(data), stored, seconds[SPLITTING], seconds[PLAIN])


def _store(path: str, size: int, profile: str) -> int:
    """Store a file, in memory; the bytes of its packs."""
    with Writer(Store(MemoryBackend())) as writer:
        ingest(writer, _OneFile(path), np.array([size], np.int64), profile=profile)
        writer.flush()
        return writer.written.stored_bytes


class _OneFile:
    """A source of one file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, _i: int) -> int:
        return os.open(self._path, os.O_RDONLY)

    def recheck(self, _i: int, _fd: int) -> None:
        return

    def read_run(self, files: npt.NDArray[np.int64], into: memoryview) -> int:
        with open(self._path, "rb", buffering=0) as file:
            for _ in files:
                file.readinto(into)
        return len(files)

    def show(self, _i: int) -> str:
        return self._path


# ---------------------------------------------------------------- the cases


def noise(size: int) -> bytes:
    """Bytes that do not compress, the same on every machine."""
    return blake3(b"bad input").digest(size)


def _table(size: int) -> bytes:
    line = b"%d,%d,row-%d,%.3f\n"
    lines = [line % (i, i * 7919 % 100_003, i % 13, i / 7) for i in range(size // 24)]
    return b"".join(lines)[:size]


def _safetensors(header: object, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _tensors(spans: npt.NDArray[np.int64], dtype: str = "F32") -> dict[str, object]:
    return {f"t{i}": {"dtype": dtype, "shape": [1], "data_offsets": [a, b]} for i, (a, b) in enumerate(spans.tolist())}


def _many_tensors(size: int) -> bytes:
    """As many as a header may name, each just long enough to stand alone."""
    starts = np.arange(0, size - (40 << 10), 33 << 10)
    return _safetensors(_tensors(np.stack([starts, starts + (33 << 10)], 1)), noise(size))


def _tiny_tensors(size: int) -> bytes:
    count = size // 64 // 80
    starts = np.arange(count) * 16
    return _safetensors(_tensors(np.stack([starts, starts + 16], 1)), noise(size))


def _million_tensors(size: int) -> bytes:
    starts = np.arange(min(1_000_000, size // 8)) * 8  # a million at the size that is measured
    return _safetensors(_tensors(np.stack([starts, starts + 8], 1)), noise(size))


def _overlapping_tensors(size: int) -> bytes:
    count = size // 64 // 80
    starts = np.arange(count) * 1000
    return _safetensors(_tensors(np.stack([starts, starts + 5000], 1)), noise(size))


def _wrong_dtype(size: int) -> bytes:
    """A table that claims to be weights."""
    return _safetensors(_tensors(np.array([[0, size]]), "BF16"), _table(size))


def _gguf_strings(size: int) -> bytes:
    """A vocabulary of empty words that fills the budget, and then lies."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1)
    key = struct.pack("<Q", 6) + b"tokens" + struct.pack("<IIQ", 9, 8, size // 1024 * 3)
    return head + key + bytes(size // 1024 * 24) + noise(size)


def _zip_members(size: int) -> bytes:
    """Stored members just long enough to stand alone."""
    out = io.BytesIO()
    piece = noise(33 << 10)
    with zipfile.ZipFile(out, "w") as archive:
        for i in range(size // len(piece)):
            archive.writestr(f"member-{i}", struct.pack("<Q", i) + piece)
    return out.getvalue()


def _zip_lies(size: int) -> bytes:
    """A directory of entries that all mean the same member."""
    body = noise(size)
    count = min(size // 5000, 60_000)
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 40_000, 40_000, 1, 0, 0, 0, 0, 0, 0)
    directory = (entry + b"a") * count
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return b"PK\3\4" + body[4:] + directory + end


def _tar(size: int, member: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for i in range(max(1, size // (len(member) + 1024))):
            info = tarfile.TarInfo(f"dir/member-{i}")
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return out.getvalue()


def _parquet(size: int, length: int) -> bytes:
    return b"PAR1" + noise(size - 12) + struct.pack("<I", length) + b"PAR1"


def _parquet_lists(size: int) -> bytes:
    """A footer of lists of a byte each, as deep and as many as the budget allows."""
    footer = b"\x19\xf3\xff\xff\x07" + b"\x11" * ((16 << 10) + size // 300)
    return b"PAR1" + noise(size) + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _mixed(size: int) -> bytes:
    """Noise and text in turn, a run of each a little longer than a piece of the sample."""
    run = 5000
    text, rough = _table(size // 2 + run), noise(size // 2 + run)
    turns = range(0, size // 2, run)
    return b"".join(x for at in turns for x in (rough[at : at + run], text[at : at + run]))[:size]


CASES: dict[str, Callable[[int], bytes]] = {
    "noise": noise,
    "one repeated byte": lambda n: b"\x7f" * n,
    "zeros": lambda n: bytes(n),
    "JPEG magic, noise": lambda n: b"\xff\xd8\xff\xe0" + noise(n - 4),
    "JPEG magic, table": lambda n: b"\xff\xd8\xff\xe0" + _table(n - 4),
    "MP4 magic, noise": lambda n: b"\0\0\0\x20ftypisom" + noise(n - 12),
    "noise and text in turn": _mixed,
    "safetensors, offsets outside": lambda n: _safetensors(_tensors(np.array([[0, 1 << 62]])), noise(n)),
    "safetensors, overlapping": _overlapping_tensors,
    "safetensors, many tensors": _many_tensors,
    "safetensors, tiny tensors": _tiny_tensors,
    "safetensors, a million tensors": _million_tensors,
    "safetensors, table as weights": _wrong_dtype,
    "safetensors, header of 2^63 bytes": lambda n: struct.pack("<Q", 1 << 63) + b"{" + noise(n - 9),
    "safetensors, brackets without end": lambda n: struct.pack("<Q", n // 64) + b'{"a":' + b"[" * (n // 64) + noise(n),
    "GGUF, 2^63 tensors": lambda n: b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0) + noise(n - 24),
    "GGUF, words without end": _gguf_strings,
    "npy, header of 4 GB": lambda n: b"\x93NUMPY\2\0" + struct.pack("<I", 0xFFFFFFFF) + noise(n - 12),
    "zip, many members": _zip_members,
    "zip, cut short": lambda n: _zip_members(n)[: n - (200 << 10)],
    "zip, one member named often": _zip_lies,
    "tar, tiny members": lambda n: _tar(n, b"x"),
    "tar, many members": lambda n: _tar(n, noise(33 << 10)),
    "tar, cut short": lambda n: _tar(n, noise(3 << 20))[: n // 3 * 2 - 777],
    "Parquet, footer outside": lambda n: _parquet(n, 0xFFFFFFF0),
    "Parquet, footer of noise": lambda n: _parquet(n, 10_000),
    "Parquet, lists without end": _parquet_lists,
}
