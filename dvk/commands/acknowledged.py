"""Versions whose data an `add` or `import` has stored here: what tells a loss from what was never fetched.

    Acknowledged(repo.workspace.common_dir).add(roots)      # with the pointers, once the data is durable
    Acknowledged(...).keep(needed)                          # a collection, before it deletes the rest

The index and the notes of damage (`catalog`) tell of single packs. Where a pack is lost together with all that spoke of
it, or the whole store is, this list still knows that the version was here. It lies outside of the store, one line a
version, appended without a sync: it costs an `add` some ten microseconds, and a power cut within the next half minute
may take the line, not the data. Format: docs/format/workspace-state.md.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress

from xxhash import xxh3_64_hexdigest

from dvk.backend.disk import OPEN_DIR, sync_fd, translate, write_all

_NAME = b"acknowledged"
_LINE_BYTES = 84
_SMALL = 64 << 10
_LINE = re.compile(rb"([fd]:[0-9a-f]{64}) ([0-9a-f]{16})")


class Acknowledged:
    """The list of one repository; `folder` is dvk's folder of all its worktrees."""

    def __init__(self, folder: bytes) -> None:
        self._path = os.path.join(folder, _NAME)

    def read(self) -> frozenset[str]:
        """The versions, as records write roots; none where there is no list. A damaged line says nothing.

        Raises:
            StorageError: the list is there and cannot be read.
        """
        with translate(os.fsdecode(self._path)):
            try:
                with open(self._path, "rb") as file:
                    lines = file.read().split(b"\n")
            except FileNotFoundError:
                return frozenset()
        found = (_LINE.fullmatch(line) for line in lines)
        return frozenset(m[1].decode() for m in found if m and xxh3_64_hexdigest(m[1]).encode() == m[2])

    def add(self, roots: Iterable[str]) -> None:
        """Remember versions. Several processes may do so at once.

        Raises:
            StorageError, StorageFull: it could not be written.
        """
        data = b"".join(_line(root) for root in roots)
        if data:
            with translate(os.fsdecode(self._path)):
                os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    # A line that a full disk cut short must not spoil the next one.
                    write_all(fd, [b"\n", data])
                finally:
                    os.close(fd)

    def keep(self, roots: Collection[str]) -> None:
        """Forget all versions but these, durably, and what is there twice. While nobody adds.

        Raises:
            StorageError, StorageFull: the list is what it was.
        """
        known = self.read()
        if known <= set(roots) and not self._is_bloated(len(known)):
            return
        temporary = self._path + b"." + secrets.token_hex(8).encode() + b".tmp"
        with translate(os.fsdecode(self._path)):
            try:
                with open(temporary, "xb") as file:
                    file.write(b"".join(_line(root) for root in sorted(known & set(roots))))
                    file.flush()
                    sync_fd(file.fileno())
                os.replace(temporary, self._path)
                fd = os.open(os.path.dirname(self._path), OPEN_DIR)
                try:
                    sync_fd(fd)
                finally:
                    os.close(fd)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise

    def _is_bloated(self, versions: int) -> bool:
        """Whether most of it is repeats: versions that come back again and again are added each time."""
        try:
            return os.stat(self._path).st_size > _SMALL + 2 * versions * _LINE_BYTES
        except FileNotFoundError:
            return False


def _line(root: str) -> bytes:
    return f"{root} {xxh3_64_hexdigest(root.encode())}\n".encode()
