"""Feeds every decoder with damaged and hostile bytes: `python -m dvk.testing.fuzz --decoder all --seconds 60`.

    python -m dvk.testing.fuzz --decoder footer --seconds 600 --seed 7
    python -m dvk.testing.fuzz --decoder locator --replay FILE

Problem: whatever comes from a repository, a remote or a user's table was written by nobody knows whom. So for any input
of up to 1 MiB a decoder either gives a value or raises a `DvkError`, within one second of the processor and 256 MiB.
Nothing else may escape, no `KeyError`, no `MemoryError`, no crash of a library.

Inputs are made from valid ones (`SEEDS`, and what lies in `tests/testing/corpus`): bytes and whole words are altered,
runs are cut, repeated and swapped between inputs, numbers become those at which arithmetic breaks, lines are repeated,
and where a format has checksums half of the inputs get right ones again, since a hostile writer knows how to compute
them. Each decoder runs in a process of its own with a limit on its memory. What fails is printed, made smaller and
written to a file; `--replay` shows it again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from dvk.errors import DvkError
from dvk.testing.command import say, seed_or_new
from dvk.testing.decoders import DECODERS
from dvk.testing.file_decoders import Decoder

MAX_BYTES = 1 << 20
LIMIT_S = 1.0
LIMIT_BYTES = 256 << 20

_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LONG = (0, 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 64, 1 << 62)
_TEXTS = (
    b"-1",
    b"0",
    b"1e309",
    b"99999999999999999999",
    b"9" * 5000,
    b"NaN",
    b"null",
    b"\\u0000",
    b"../../x",
    b".git",
    b"[" * 3000,
    b'{"a":' * 2000,
    b"\x1b[31m",
    b"\xff\xfe",
    b"\r\n",
    b"\0",
    b'"',
    b"=",
    b"%00",
    b"::",
    b"@",
)


class Finding(Exception):
    """An input that a decoder did not take well."""

    def __init__(self, what: str, data: bytes) -> None:
        super().__init__(what)
        self.data = data


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """An input from valid ones."""
    data = bytearray(rng.choice(seeds))
    for _ in range(1 + int(rng.expovariate(0.5))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(12):
            case 0 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[at % len(data)] = rng.randrange(256)
            case 2:
                data[at : at + 4] = struct.pack("<I", rng.choice(_NUMBERS))
            case 3:
                data[at : at + 8] = struct.pack("<Q", rng.choice(_LONG))
            case 4:
                del data[at : at + rng.choice((1, 4, 8, 32, 1000))]
            case 5:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 8, 32)))
            case 6:
                run = data[at : at + rng.choice((1, 8, 64, 4096))]
                data[at:at] = run * rng.choice((1, 2, 50))
            case 7:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                data[at:] = other[start:]
            case 8:
                data[at:at] = rng.choice(_TEXTS)
            case 9:
                del data[at:]
            case 10:
                lines = data.split(b"\n")
                lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
                data = bytearray(b"\n".join(lines))
            case _:
                data[at : at + 2] = struct.pack("<H", rng.choice((0, 1, 2, 0x7FFF, 0xFFFF)))
        if len(data) > MAX_BYTES:
            del data[MAX_BYTES:]
    return bytes(data)


def try_one(decoder: Decoder, data: bytes) -> None:
    """Decode once.

    Raises:
        Finding: anything but a value or an error of ours, or too slowly.
    """
    began = time.process_time()
    try:
        decoder.decode(data)
    except DvkError:
        pass  # what the terminal shows of it, it escapes
    except Exception as error:
        raise Finding(f"{type(error).__name__}: {error}\n{traceback.format_exc()}", data) from error
    took = time.process_time() - began
    if took > LIMIT_S:
        raise Finding(f"took {took:.1f} s", data)


def fuzz(decoder: Decoder, *, seconds: float, seed: int, corpus: Sequence[bytes] = (), inputs: int = 0) -> int:
    """Decode what `mutate` makes for so long, or so many; how many inputs there were.

    Raises:
        Finding
    """
    rng = random.Random(f"{seed} {decoder.name}")
    seeds = [*decoder.seeds(), *corpus]
    for data in seeds:
        try_one(decoder, data)
    until = time.monotonic() + seconds
    done = 0
    while (not inputs or done < inputs) and time.monotonic() < until:
        data = mutate(rng, seeds)
        if decoder.repair is not None and rng.random() < 0.5:
            with contextlib.suppress(Exception):  # what cannot be repaired is tried as it is
                data = decoder.repair(data)
        try_one(decoder, data)
        done += 1
    return done


def smaller(decoder: Decoder, data: bytes, *, seconds: float = 10.0) -> bytes:
    """A part of `data` that fails alike."""
    until = time.monotonic() + seconds
    step = len(data) // 2
    while step and time.monotonic() < until:
        at = 0
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + step :]
            try:
                try_one(decoder, shorter)
            except Finding:
                data = shorter
                continue
            at += step
        step //= 2
    return data


def corpus_of(folder: str, name: str) -> list[bytes]:
    """The inputs for a decoder that lie in a folder."""
    place = os.path.join(folder, name)
    if not os.path.isdir(place):
        return []
    found = []
    for file in sorted(os.listdir(place)):
        with open(os.path.join(place, file), "rb") as f:
            found.append(f.read())
    return found


def limit_memory(more: int) -> None:
    """Let this process take at most `more` bytes beyond what it has."""
    with open("/proc/self/statm", encoding="ascii") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one decoder did."""

    name: str
    inputs: int
    finding: str = ""
    data: bytes = b""


def in_process(name: str, *, seconds: float, seed: int, corpus: str = "", inputs: int = 0) -> Outcome:
    """Fuzz a decoder, or several ("a,b"), in a process of its own, so that a crash is a finding too."""
    with tempfile.TemporaryDirectory(prefix="dvk-fuzz-") as folder:
        result = os.path.join(folder, "input")
        argv = [sys.executable, "-m", "dvk.testing.fuzz", "--child", result, "--decoder", name]
        argv += ["--seconds", str(seconds), "--seed", str(seed), "--corpus", corpus, "--inputs", str(inputs)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        data = b""
        if os.path.exists(result):
            with open(result, "rb") as found:
                data = found.read()
    if done.returncode == 0:
        return Outcome(name, int(done.stdout))
    return Outcome(name, 0, f"exit code {done.returncode}: {done.stderr.strip()}", data)


def _child(given: argparse.Namespace) -> int:
    """In a process of its own: the inputs are counted on standard output; a bad one is left in a file."""
    decoders = [DECODERS[name] for name in given.decoder.split(",")]
    for decoder in decoders:
        for data in decoder.seeds():  # imports and caches are not the input's fault
            try_one(decoder, data)
    limit_memory(LIMIT_BYTES)
    # An input that never ends, in a library that hears no signal, is ended by the alarm and shows as a crash.
    signal.alarm(int(given.seconds) * len(decoders) + 60)
    total = 0
    for decoder in decoders:
        corpus = corpus_of(given.corpus, decoder.name) if given.corpus else []
        try:
            total += fuzz(decoder, seconds=given.seconds, seed=given.seed, corpus=corpus, inputs=given.inputs)
        except Finding as finding:
            with open(given.child, "wb") as f:
                f.write(smaller(decoder, finding.data))
            sys.stderr.write(f"{decoder.name}: {finding}\n")
            return 1
    sys.stdout.write(f"{total}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--decoder", default="all", help=f"all, or one of {', '.join(DECODERS)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each decoder; default: %(default)s")
    parser.add_argument("--inputs", type=int, default=0, help="at most so many; 0: as many as there is time for")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to replay it")
    parser.add_argument("--corpus", default="", help="a folder with inputs for each decoder, as tests/testing/corpus")
    parser.add_argument("--replay", metavar="FILE", help="decode this file once and show what happens")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    names = list(DECODERS) if given.decoder == "all" else given.decoder.split(",")
    if unknown := [name for name in names if name not in DECODERS]:
        parser.error(f"there is no decoder {unknown[0]!r}")
    if given.child:
        return _child(given)
    if given.replay:
        with open(given.replay, "rb") as f:
            try_one(DECODERS[given.decoder], f.read())
        return 0
    seed = seed_or_new(given.seed)
    say(f"seed {seed}")
    total, bad = 0, 0
    for name in names:
        out = in_process(name, seconds=given.seconds, seed=seed, corpus=given.corpus, inputs=given.inputs)
        total += out.inputs
        if not out.finding:
            say(f"{name}: {out.inputs:,} inputs, nothing found")
            continue
        bad += 1
        fd, path = tempfile.mkstemp(prefix=f"dvk-fuzz-{name}-")
        with os.fdopen(fd, "wb") as kept:
            kept.write(out.data)
        say(f"{name}: FOUND {out.finding}\n  {len(out.data)} bytes in {path}: --decoder {name} --replay {path}")
    say(f"{total:,} inputs to {len(names)} decoders, {bad} findings")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
