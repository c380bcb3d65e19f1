"""Which version of each tracked path this worktree last had from dvk: what a checkout may take away again.

A file that was part of that version and is unchanged was put there (or recorded) by dvk; any other file in a folder
is the user's own, whatever its name. Losing this record costs nothing but tidiness: without it nothing is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping

from dvk.workspace.pointer import Pointer

_VERSION = 1


class Placed:
    """Path -> pointer of the version that was last added or checked out, in one small file of the worktree."""

    def __init__(self, state_dir: bytes) -> None:
        self._path = os.path.join(state_dir, b"placed.json")

    def read(self) -> dict[bytes, Pointer]:
        """All of them; empty when there is no record or it is damaged."""
        try:
            with open(self._path, encoding="ascii") as file:
                raw = json.load(file)
            if raw["version"] != _VERSION:
                return {}
            return {
                bytes.fromhex(path): Pointer(kind, bytes.fromhex(name), size, files=files, exec=executable)
                for path, (kind, name, size, files, executable) in raw["paths"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def update(self, changes: Mapping[bytes, Pointer | None]) -> None:
        """Remember or forget (None) paths. A failure to write is not an error: see above."""
        try:
            with self._alone():
                self._change(changes)
        except OSError:
            return

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the record at the same time, where the filesystem has locks."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        fd = os.open(self._path + b".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _change(self, changes: Mapping[bytes, Pointer | None]) -> None:
        known = self.read()
        before = dict(known)
        for path, pointer in changes.items():
            if pointer is None:
                known.pop(path, None)
            else:
                known[path] = Pointer(pointer.kind, pointer.id, pointer.size, pointer.files, pointer.exec)
        if known == before:
            return
        rows = {p.hex(): (x.kind, x.id.hex(), x.size, x.files, x.exec) for p, x in sorted(known.items())}
        temporary = self._path + b"." + secrets.token_hex(8).encode() + b".tmp"
        with open(temporary, "x", encoding="ascii") as file:
            json.dump({"version": _VERSION, "paths": rows}, file)
        os.replace(temporary, self._path)
