"""When each pack was last read whole: what `verify --data=10%` reads next, so that ten runs read everything.

A text file: a header, a line `<pack id> <Unix seconds>` for each pack, and a checksum. Losing it costs that packs are
read again sooner; a damaged one counts as lost.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TypeVar

import xxhash

_HEADER = "dvk checked packs 1"
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9]{1,18})")
_K = TypeVar("_K")


class CheckedPacks:
    """The times of one store's packs, in the file at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> dict[bytes, int]:
        """Pack id -> when it was read whole, in Unix seconds of this machine's clock."""
        try:
            with open(self._path, encoding="ascii") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError):
            return {}
        body, _, check = text.removesuffix("\n").rpartition("\n")
        if not body.startswith(_HEADER) or check != xxhash.xxh3_64_hexdigest(body.encode("ascii")):
            return {}
        found = (_LINE.fullmatch(line) for line in body.splitlines()[1:])
        return {bytes.fromhex(m[1]): int(m[2]) for m in found if m}

    def update(self, read: Iterable[bytes], now: int, *, there: Iterable[bytes]) -> None:
        """Note that packs were read; forget those that are not there any more. A failure to write is no error."""
        known = self.read()
        times = {name: known[name] for name in there if name in known} | dict.fromkeys(read, now)
        body = "\n".join([_HEADER, *(f"{name.hex()} {when}" for name, when in sorted(times.items()))])
        temporary = f"{self._path}.{secrets.token_hex(8)}.tmp"
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            with open(temporary, "x", encoding="ascii") as file:
                file.write(f"{body}\n{xxhash.xxh3_64_hexdigest(body.encode('ascii'))}\n")
            os.replace(temporary, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)


def choose(sizes: Mapping[_K, int], last: Mapping[_K, int], percent: float) -> list[_K]:
    """The packs that are read: those read longest ago, until they make up `percent` of all bytes."""
    order = sorted(sizes, key=lambda k: (last.get(k, -1), str(k)))
    goal, total, out = sum(sizes.values()) * percent / 100, 0, []
    for key in order:
        if total >= goal:
            break
        out.append(key)
        total += sizes[key]
    return out
