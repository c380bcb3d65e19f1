"""Damage that a reader meets in the local store is noted there, so that the next `add` or `pull` stores the data again.

    met = DamageMet(repo.store, on_event)
    met.files(ids, sizes)       # of which something was read and is not what it should be
    met.note()                  # at the end, since what is noted no reader takes any more

Without the note the index would go on to call the data held: `add` of a good copy would store nothing, `pull` would
fetch nothing. What is noted is what `verify --data` finds in the packs that the files lie in
(docs/design/014-damage.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from dvk.errors import DvkError
from dvk.events import Meter, OnEvent
from dvk.store.examine import Level
from dvk.store.names import I64, U8
from dvk.store.pack import PackKind
from dvk.store.pages import Chunks
from dvk.store.restorable import Key, Packs
from dvk.store.store import Store
from dvk.store.threads import default_workers

#: Packs that are read to the last byte, in all. A disk that goes is a matter for `verify --data`, and no footnote.
_MOST_BYTES = 1 << 30


class DamageMet:
    """What one command met. Nothing is looked at before `note`."""

    def __init__(self, store: Store, on_event: OnEvent) -> None:
        self._store, self._on_event = store, on_event
        self._files: list[tuple[U8, I64]] = []
        self._list = False

    def files(self, ids: U8, sizes: I64) -> None:
        """Of these n files something is damaged. Shapes: uint8[n, 32], int64[n]."""
        if len(sizes):
            self._files.append((ids, sizes))

    def folder_list(self) -> None:
        """The list of some folder is damaged."""
        self._list = True

    def note(self) -> bool:
        """Look at the packs that are concerned and note what is damaged; whether anything is noted for others, too.

        What cannot be looked at or noted stays as it was: the command has named it.
        """
        if not self._files and not self._list:
            return False
        store = self._store.own  # what others own is theirs to write down
        try:
            with ThreadPoolExecutor(default_workers(), thread_name_prefix="dvk-damage") as pool:
                packs = Packs(
                    store, Level.NORMAL, pool, Meter(self._on_event, "verify", total_bytes=0), keep_notes=True
                )
                packs.examine(self._data_packs(store, packs), Level.DATA)
                packs.examine(key for key in packs.sizes if key[0] is PackKind.PAGES)  # few, and read whole
        except DvkError:
            return False
        return any(not d.unread for d in packs.damage) and not packs.problems

    def _data_packs(self, store: Store, packs: Packs) -> Iterator[Key]:
        left = _MOST_BYTES
        seen: set[Key] = set()
        for ids, sizes in self._files:
            chunks = Chunks.join([c for c in store.chunks_of_many(ids, sizes) if c is not None])
            blocks = store.place_some(chunks)[0].blocks
            for key in ((blocks.kind, name) for name in blocks.packs):
                if key in seen:
                    continue
                seen.add(key)
                left -= packs.sizes.get(key, 0)
                if left < 0:
                    return
                yield key
