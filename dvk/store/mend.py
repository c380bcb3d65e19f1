"""Keeping what is good of damaged packs, and putting the rest aside: what `repair` does to objects of a store.

    salvage(store, writer, examined)             # every chunk and page of it that is right goes into new packs
    writer.flush()
    Quarantine(store.backend).take(key)          # only then; a copy under quarantine/ first, the object itself last

Nothing is deleted that is not under another key by then, so that a kill at any moment leaves all of it: at worst twice.
"""

from __future__ import annotations

import secrets

import numpy as np

from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import FormatError, StorageError
from dvk.ids import PageId
from dvk.store.codec import decode_block
from dvk.store.examine import Examined, block_rows
from dvk.store.pack import BLOCK_HEADER, MAX_PACK_BYTES, PackKind, pack_key
from dvk.store.store import Store
from dvk.store.writer import Writer


class Quarantine:
    """Puts objects of one store aside, all of one repair under one prefix."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.prefix = f"quarantine/{secrets.token_hex(16)}"
        self.taken: list[str] = []  #: keys that were put aside
        self.left: dict[str, str] = {}  #: keys that could not be, and why

    def take(self, key: str) -> bool:
        """Put an object aside; whether that was done. One that cannot be read, or copied, stays where it is."""
        try:
            data = patiently(lambda: self._backend.get(key, max_bytes=MAX_PACK_BYTES))
            self._backend.put(f"{self.prefix}/{key}", [data])
            self._backend.delete(key)
        except KeyMissing:
            return False
        except (StorageError, FormatError) as error:
            self.left[key] = error.message
            return False
        self.taken.append(key)
        return True


def salvage(store: Store, writer: Writer, found: Examined) -> int:
    """Store what is right in a damaged pack once more; how many bytes, decoded. Nothing before `writer.flush()`.

    `store` must not count on the pack any more (`Catalog.distrust`), or it would find everything there.
    """
    footer = found.footer
    if footer is None:
        return 0
    before = writer.written.new_bytes
    good = np.ones(len(footer.ids), np.bool_)
    good[found.bad] = False
    key = pack_key(found.kind, found.name)
    for b in range(len(footer.packed_len)):
        low, high = block_rows(footer, b)
        rows = np.flatnonzero(good[low:high]) + low
        if not len(rows):
            continue
        start = int(footer.block_offset[b]) + BLOCK_HEADER.size
        codec, raw_len = int(footer.codec[b]), int(footer.raw_len[b])
        payload = patiently(lambda at=start, n=int(footer.packed_len[b]): store.backend.get_range(key, at, n))  # type: ignore[misc]
        raw = memoryview(decode_block(codec, payload, raw_len))
        ids = [footer.ids[i].tobytes() for i in rows.tolist()]
        lengths = footer.chunk_len[rows].tolist()
        pieces = [raw[at : at + n] for at, n in zip(footer.chunk_offset[rows].tolist(), lengths, strict=True)]
        if found.kind is PackKind.PAGES:
            writer.add_pages([PageId(name) for name in ids], [bytes(piece) for piece in pieces])
            continue
        new = writer.choose_new(ids, footer.ids[rows])
        if len(new) == high - low:
            writer.add_encoded(codec, payload, raw_len, ids=ids, lengths=lengths)
        elif new:
            some = memoryview(b"".join(pieces[i] for i in new))
            writer.add_owed([ids[i] for i in new], [lengths[i] for i in new], some)
    writer.end_of_path()
    writer.add_recipes([footer.recipe(i) for i in range(len(footer.recipes))])
    return writer.written.new_bytes - before
