"""Packs that a push has sent and proven, so that a push that was cut goes on where it stopped.

One small file a pack, with its footer and trailer: enough to know which chunks lie where. It is only knowledge: the
next push asks the remote whether the pack is there, and a file that is missing or damaged means that its chunks are
sent again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from dvk.errors import FormatError
from dvk.store.pack import TRAILER, Footer, parse_footer, parse_trailer


@dataclass(frozen=True, slots=True)
class Sent:
    """A pack that was sent."""

    name: bytes
    footer: Footer
    size_bytes: int


class Journal:
    """The packs sent to one remote store since the last push that came to its end."""

    def __init__(self, folder: str, store: str) -> None:
        self._folder = os.path.join(folder, store, "sent")

    def add(self, name: bytes, footer: bytes, trailer: bytes) -> None:
        """Remember a pack whose bytes were read back."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        temporary = os.path.join(self._folder, f"{secrets.token_hex(8)}.tmp")
        with open(temporary, "xb") as file:
            file.write(footer)
            file.write(trailer)
        os.replace(temporary, os.path.join(self._folder, name.hex()))

    def read(self) -> list[Sent]:
        """All that is remembered; damaged files are removed."""
        return list(self._read())

    def _read(self) -> Iterator[Sent]:
        try:
            files = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for file in files:
            path = os.path.join(self._folder, file)
            try:
                name = bytes.fromhex(file)
                with open(path, "rb") as handle:
                    data = handle.read()
                trailer = parse_trailer(data[-TRAILER.size :], subject=path)
                yield Sent(name, parse_footer(data[: -TRAILER.size], trailer, subject=path), trailer.pack_len)
            except (ValueError, FormatError):
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def forget(self, name: bytes) -> None:
        """A pack that is not there after all."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, name.hex()))

    def clear(self) -> None:
        """The push came to its end; a record names its packs now."""
        for sent in self.read():
            self.forget(sent.name)
