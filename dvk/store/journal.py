"""Packs that a push has sent and proven, so that a push that was cut goes on where it stopped.

One small file a pack, with its footer and trailer: enough to know which chunks lie where. It is only knowledge: the
next push asks the remote whether the pack is there, and a file that is missing or damaged means that its chunks are
sent again. So nothing here is synced, and a disk that refuses costs time, never the push.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress

from msgspec import Struct

from dvk.errors import FormatError
from dvk.ids import ID_BYTES
from dvk.store.pack import MAX_FOOTER_BYTES, TRAILER, Footer, PackKind, parse_footer, parse_trailer

_TEMPORARY = ".tmp"


class Sent(Struct, frozen=True):
    """A data pack that was sent."""

    name: bytes
    footer: Footer
    size_bytes: int


class Journal:
    """The packs sent to one remote store since the last push that came to its end.

    Several pushes of one clone may use it at once: each entry is a file that appears whole.
    """

    def __init__(self, folder: str, store: str) -> None:
        self._folder = os.path.join(folder, store, "sent")

    def add(self, name: bytes, footer: bytes, trailer: bytes) -> None:
        """Remember a pack whose bytes were read back, if the disk lets us."""
        temporary = os.path.join(self._folder, secrets.token_hex(8) + _TEMPORARY)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            try:
                with open(temporary, "xb") as file:
                    file.write(footer)
                    file.write(trailer)
                os.replace(temporary, os.path.join(self._folder, name.hex()))
            except OSError:
                os.unlink(temporary)
        except OSError:
            return  # a pack that is not remembered is sent again by a push that has to go on from here

    def read(self) -> Iterator[Sent]:
        """All that is remembered; entries that cannot be read count as missing. Changes nothing."""
        for file in self._files():
            path = os.path.join(self._folder, file)
            try:
                name = bytes.fromhex(file)
                with open(path, "rb") as handle:
                    data = handle.read(MAX_FOOTER_BYTES + TRAILER.size + 1)
                trailer = parse_trailer(data[-TRAILER.size :], subject=path)
                footer = parse_footer(data[: -TRAILER.size], trailer, subject=path)
            except (ValueError, FormatError, OSError):
                continue
            if len(name) == ID_BYTES and trailer.kind is PackKind.DATA:
                yield Sent(name, footer, trailer.pack_len)

    def forget(self, name: bytes) -> None:
        """A pack that is not there after all."""
        self._unlink(name.hex())

    def clear(self) -> None:
        """The push came to its end; a record names its packs now. Removes what a kill left behind, too."""
        for file in self._files():
            self._unlink(file)

    def _files(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except OSError:
            return []

    def _unlink(self, file: str) -> None:
        with suppress(OSError):  # another push of this clone was faster, or the disk refuses: see above
            os.unlink(os.path.join(self._folder, file))
