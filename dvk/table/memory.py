"""How much memory a comparison may use, and for what.

The limit that a user gives is one for the process. The engine gets less than half of it: besides it there are batches
on their way from two readers, windows of both sides, rows that are kept, and what allocators do not give back.
"""

from __future__ import annotations

import os

from msgspec import Struct

_FALLBACK_BYTES = 2 << 30  # where the system does not say
_BASE_BYTES = 240 << 20  # of a process that has loaded all it needs
_LEAST_ENGINE_BYTES = 64 << 20
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Limits(Struct, frozen=True):
    """In bytes: `engine` its own limit, `look_ahead` windows of both sides together, `kept` rows of one side."""

    engine: int
    look_ahead: int
    kept: int


def split(memory_bytes: int | None) -> Limits:
    """Share out a limit; None: half of what the machine or its container has."""
    total = memory_bytes if memory_bytes is not None else available() // 2
    return Limits(
        engine=max(_LEAST_ENGINE_BYTES, int((total - _BASE_BYTES) * 0.45)),
        look_ahead=min(256 << 20, total // 16),
        kept=min(64 << 20, total // 32),
    )


def available() -> int:
    """Bytes of memory of the machine, or of the container it pretends to be."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        physical = _FALLBACK_BYTES
    limits = [physical]
    for path in _CGROUPS:
        try:
            with open(path) as f:
                text = f.read().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return min(limits)
