"""What is known about records on a remote: which are live, which packs are condemned, which roots this clone saw confirmed.

A push asks the remote; `status` only reads the list of confirmed roots that this clone keeps, since it never uses the
network.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import FormatError
from dvk.store.record import record_key

_LINE = re.compile(r"([fd]:[0-9a-f]{64}) ([0-9a-f]{64})")
_MAX_LIST_BYTES = 64 << 20
_HEADER = "dvk confirmed roots 1"


def is_live(remote: Backend, rid: bytes) -> bool:
    """Whether a record exists, is confirmed and is not retired: one listing."""
    key = record_key(rid)
    seen = {item.key for item in remote.list(key)}
    return key in seen and key + ".ok" in seen and key + ".x" not in seen


def condemned(remote: Backend) -> set[str]:
    """The pack keys in all condemned lists (docs/format/gc.md).

    Raises:
        FormatError: a list that cannot be read might condemn anything.
    """
    out: set[str] = set()
    for item in remote.list("g/c-"):
        try:
            data = remote.get(item.key, max_bytes=_MAX_LIST_BYTES)
        except KeyMissing:
            continue  # its collector has finished and removed it
        subject = f"{remote.name}/{item.key}"
        try:
            raw = json.loads(data)
            if raw["format"] != 1 or not all(isinstance(p, str) for p in raw["packs"]):
                raise ValueError("not a list of this version")
            out.update(raw["packs"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(
                "a condemned list cannot be read, so nothing on this remote can be relied on",
                subject=subject,
                hint="upgrade dvk, or ask whoever collects garbage there to finish with `dvk gc --exclusive`",
            ) from error
    return out


class ConfirmedRoots:
    """Roots that this clone has seen confirmed on one remote store: a text file, one `root record` a line.

    A hint for people and for planning; `push` never skips on it alone.
    """

    def __init__(self, folder: str, store: str) -> None:
        self._path = os.path.join(folder, store, "confirmed")

    def read(self) -> dict[str, bytes]:
        """Root text -> record id; empty when there is none or it is damaged."""
        try:
            with open(self._path, encoding="ascii") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return {}
        if not lines or lines[0] != _HEADER:
            return {}
        found = (_LINE.fullmatch(line) for line in lines[1:])
        return {m[1]: bytes.fromhex(m[2]) for m in found if m}

    def add(self, roots: dict[str, bytes]) -> None:
        """Remember roots; replaced as a whole, so that a kill leaves the old list or the new one."""
        self.write({**self.read(), **{root: rid for root, rid in roots.items() if rid}})

    def forget(self, roots: Iterable[str]) -> None:
        """Roots that turned out not to be confirmed after all."""
        gone = set(roots)
        known = self.read()
        if gone & known.keys():
            self.write({k: v for k, v in known.items() if k not in gone})

    def write(self, known: dict[str, bytes]) -> None:
        """Replace the list."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        temporary = f"{self._path}.{secrets.token_hex(8)}.tmp"
        with open(temporary, "x", encoding="ascii") as file:
            file.write("\n".join([_HEADER, *(f"{k} {v.hex()}" for k, v in sorted(known.items()))]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
