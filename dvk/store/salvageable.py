"""What is sound in damaged packs: no reader takes it, and `mend.salvage` saves it.

A block that fails its checksum may hold chunks that are right all the same, and a pack that lies under the name of
another one is right throughout. What a version lacks is not lost while it is here; `wholeness` follows it to its end,
since a list that can be saved says nothing of the chunks that it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dvk.backend.contract import KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import FormatError, StorageError
from dvk.store.catalog import Mask
from dvk.store.codec import decode_block
from dvk.store.examine import Examined
from dvk.store.index import prefixes
from dvk.store.names import U8, distinct
from dvk.store.pack import BLOCK_HEADER, PackKind, RecipeRow, pack_key
from dvk.store.store import Store


class Salvageable:
    """Of some packs that were examined, the sound rows of those that are damaged."""

    def __init__(self, store: Store, examined: Iterable[Examined] = ()) -> None:
        self._store = store
        self._pages: dict[bytes, tuple[Examined, int]] = {}
        self._recipes: dict[bytes, list[RecipeRow]] = {}
        chunks = [np.zeros(0, np.uint64)]
        for x in examined:
            if x.error is None or x.footer is None:
                continue
            sound = np.setdiff1d(np.arange(len(x.footer.ids)), np.concatenate([x.bad, x.unread_rows]))
            if x.kind is PackKind.DATA:
                chunks.append(prefixes(x.footer.ids[sound]))
                continue
            self._pages |= {x.footer.ids[i].tobytes(): (x, i) for i in sound.tolist()}
            for i in range(len(x.footer.recipes)):
                row = x.footer.recipe(i)
                self._recipes.setdefault(row.file, []).append(row)
        self._chunks = distinct(np.concatenate(chunks))

    def holds(self, ids: U8) -> Mask:
        """bool[n]: which of some chunks can be saved."""
        return np.isin(prefixes(ids), self._chunks)

    def recipes(self, file: bytes) -> Sequence[RecipeRow]:
        """What damaged packs say of the chunks of a file."""
        return self._recipes.get(file, ())

    def find_page(self, name: bytes) -> bytes | None:
        """A page that can be saved, proven when its pack was examined."""
        if name not in self._pages:
            return None
        x, row = self._pages[name]
        footer = x.footer
        assert footer is not None
        b = int(footer.chunk_block[row])
        start, length = int(footer.block_offset[b]) + BLOCK_HEADER.size, int(footer.packed_len[b])
        try:
            data = patiently(lambda: self._store.backend.get_range(pack_key(x.kind, x.name), start, length))
            raw = decode_block(int(footer.codec[b]), data, int(footer.raw_len[b]))
        except (KeyMissing, FormatError, StorageError):
            return None  # it was there a moment ago; whoever mends it will say so
        at = int(footer.chunk_offset[row])
        return bytes(raw[at : at + int(footer.chunk_len[row])])
