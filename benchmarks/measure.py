"""What a command costs, what a folder holds, how fast the disk takes bytes for good.

cost = run(Command(("dvk", "add", "images"), cwd=repo, env=env), scratch=folder)
cost.wall_s, cost.rss_bytes
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
DEFAULT_LIMIT_S = 3 * 3600.0
_TAIL_BYTES = 1500


class StepFailed(Exception):
    """A command ended with an error, took too long, or left wrong bytes. The message says which and why."""


@dataclass(frozen=True)
class Command:
    """A whole process to run: nothing of this program's own environment reaches it but `env`."""

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a command took."""

    wall_s: float
    user_s: float
    system_s: float
    rss_bytes: int  #: of the largest process among the command and the children it waited for
    stdout: str


def run(command: Command, *, scratch: str, limit_s: float = DEFAULT_LIMIT_S) -> Cost:
    """Run a command, measured from outside. `scratch` is a folder for its output.

    Raises:
        StepFailed: it ended with another code than 0, could not be started or took longer than `limit_s`.
    """
    out, stdout, stderr = (os.path.join(scratch, name) for name in ("cost.json", "stdout", "stderr"))
    for old in (out, stdout, stderr):
        if os.path.exists(old):
            os.unlink(old)
    launch = [sys.executable, "-S", "-I", LAUNCHER, out, command.cwd, stdout, stderr, *command.argv]
    process = subprocess.Popen(launch, env=dict(command.env), stderr=subprocess.PIPE)
    shown = " ".join(command.argv)
    try:
        _, trouble = process.communicate(timeout=limit_s)
    except BaseException as reason:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if isinstance(reason, subprocess.TimeoutExpired):
            raise StepFailed(f"{shown}: not done after {limit_s:.0f} s") from reason
        raise
    if process.returncode:
        raise StepFailed(f"{shown}: not started: {trouble.decode(errors='replace').strip().splitlines()[-1:]}")
    with open(out) as f:
        said = json.load(f)
    if code := said.pop("exit_code"):
        raise StepFailed(f"{shown}: exit code {code}: {_tail(stderr) or _tail(stdout)}")
    with open(stdout, encoding="utf-8", errors="replace") as f:
        return Cost(stdout=f.read(), **said)


def quietly(command: Command, *, scratch: str) -> str:
    """Run a command that is not measured and return its standard output. Raises as `run`."""
    return run(command, scratch=scratch).stdout


def _tail(path: str) -> str:
    with open(path, "rb") as f:
        f.seek(max(0, os.stat(path).st_size - _TAIL_BYTES))
        return f.read().decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class Holding:
    """What lies below some folders: apparent bytes, each inode once, and files."""

    size_bytes: int = 0
    files: int = 0

    def __sub__(self, other: Holding) -> Holding:
        return Holding(self.size_bytes - other.size_bytes, self.files - other.files)


def holding(*folders: str) -> Holding:
    """Count files and their apparent bytes below `folders`; one that does not exist holds nothing."""
    size = files = 0
    seen: set[tuple[int, int]] = set()
    stack = [f for f in folders if os.path.isdir(f)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                    continue
                info = entry.stat(follow_symlinks=False)
                if info.st_nlink > 1:
                    if (info.st_dev, info.st_ino) in seen:
                        continue
                    seen.add((info.st_dev, info.st_ino))
                size += info.st_size
                files += 1
    return Holding(size, files)


def synced_write_rate(folder: str, *, size_bytes: int) -> float:
    """Bytes a second at which the disk under `folder` takes new data for good: write, fsync, fsync the folder.

    Under the marks this is the floor: an `add` that has synced what it stored cannot be faster.
    """
    block = os.urandom(8 << 20)
    path = os.path.join(folder, "write-rate")
    os.sync()
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        written = 0
        while written < size_bytes:
            written += os.write(fd, block[: size_bytes - written])
        os.fsync(fd)
    finally:
        os.close(fd)
    above = os.open(folder, os.O_RDONLY)
    os.fsync(above)
    os.close(above)
    rate = size_bytes / (time.perf_counter() - started)
    os.unlink(path)
    return rate


def filesystem(folder: str) -> str:
    """The type of the filesystem that holds `folder`, as the mount table says it; empty where there is none."""
    best, kind = "", ""
    try:
        with open("/proc/mounts") as f:
            mounts = [line.split()[1:3] for line in f]
    except FileNotFoundError:
        return ""
    real = os.path.realpath(folder)
    for point, name in mounts:
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, name
    return kind
