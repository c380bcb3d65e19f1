"""Writing sections: page packs of a push, whose ranges locators lead to (docs/format/locator.md).

A section is known by its range, and a range by the name of its pack, which is known when the pack is finished. So
sections are added under a number, and `finish` turns numbers into references.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dvk.backend.contract import Buffer
from dvk.ids import PackId
from dvk.store.codec import ALL_CODECS, encode_checked
from dvk.store.locator import INLINE_BYTES, Ref, piece_id
from dvk.store.pack import MAX_BLOCK_BYTES, PackBuilder, PackKind, RecipeRow, block_header

#: Puts a finished page pack.
Put = Callable[[PackKind, PackId, list[Buffer]], None]


class SectionWriter:
    """Fills page packs with sections; each is a run of whole blocks. Not for use by several threads at once.

    `codecs` are those that the store takes.
    """

    def __init__(self, put: Put, *, codecs: frozenset[int] = ALL_CODECS) -> None:
        self._put, self._codecs = put, codecs
        self._builder = PackBuilder(PackKind.PAGES)
        self._open: list[tuple[int, int, int]] = []  # number, offset, length in the open pack
        self._refs: dict[int, Ref] = {}
        self._bytes: dict[int, bytes] = {}
        self._count = 0
        self.stored_bytes = 0

    def add(
        self, pages: Sequence[tuple[bytes, bytes]], tail: bytes, recipes: Sequence[RecipeRow], *, keep: bool
    ) -> int:
        """Append a section: pages as (id, bytes), then a placement or locator. Returns its number.

        Args:
            keep: hold its bytes for `encoded`, because they may go inline.
        """
        pieces = [tail[i : i + MAX_BLOCK_BYTES] for i in range(0, len(tail), MAX_BLOCK_BYTES)]
        rows = [*pages, *((piece_id(p), p) for p in pieces)]
        start = self._builder.size_bytes
        encoded: list[Buffer] = []
        group: list[tuple[bytes, bytes]] = []
        size = 0
        for row in [*rows, None]:
            if group and (row is None or size + len(row[1]) > MAX_BLOCK_BYTES):
                encoded += self._block(group)
                group, size = [], 0
            if row is not None:
                group.append(row)
                size += len(row[1])
        for recipe in recipes:
            self._builder.add_recipe(recipe)
        number = self._count
        self._count += 1
        self._open.append((number, start, self._builder.size_bytes - start))
        if keep and self._builder.size_bytes - start <= INLINE_BYTES:
            self._bytes[number] = b"".join(encoded)
        if self._builder.full:
            self.finish()
        return number

    def _block(self, group: list[tuple[bytes, bytes]]) -> list[Buffer]:
        raw = b"".join(data for _, data in group)
        codec, payload = encode_checked(memoryview(raw), level=3, codecs=self._codecs)
        payload = bytes(payload)
        lengths = np.array([len(data) for _, data in group], np.uint32)
        self._builder.add_block(codec, payload, len(raw), ids=b"".join(i for i, _ in group), lengths=lengths)
        return [block_header(codec, len(raw), payload), payload]

    def finish(self) -> None:
        """Put what is open, so that all numbers given so far have references."""
        if not self._open:
            return
        name, parts = self._builder.finish()
        self._put(PackKind.PAGES, name, parts)
        self.stored_bytes += sum(map(len, parts))
        for number, offset, length in self._open:
            self._refs[number] = Ref(name, offset, length)
        self._builder = PackBuilder(PackKind.PAGES)
        self._open = []

    def ref(self, number: int) -> Ref:
        """Where a section lies; after `finish`."""
        return self._refs[number]

    def has_bytes(self, number: int) -> bool:
        """Whether the bytes of a section were kept: it was asked for and they are not too long to go inline."""
        return number in self._bytes

    def encoded(self, number: int) -> bytes:
        """The bytes of a section that was added with `keep`."""
        return self._bytes[number]
