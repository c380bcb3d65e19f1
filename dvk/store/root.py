"""What a pointer names, as the store speaks of it: the least that everything else needs to know.

>>> Root(FILE, bytes(32), 5).text[:6]
'f:0000'
"""

from __future__ import annotations

from msgspec import Struct

FILE, FOLDER = 1, 2  #: the kinds of root; the numbers are on disk (docs/format/locator.md)


class Root(Struct, frozen=True):
    """Something that a pointer names."""

    kind: int  #: FILE or FOLDER of `dvk.store.locator`
    id: bytes
    size: int
    files: int = 0  #: of a folder

    @property
    def text(self) -> str:
        """As records write it."""
        return f"{'f' if self.kind == FILE else 'd'}:{self.id.hex()}"
