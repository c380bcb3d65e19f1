"""Recipes that came from a remote: nobody knows yet that the chunks that they name are the file that they speak of.

    unproven = Unproven(store)
    unproven.add(row, wanted)                    # by `fetch`, once all chunks are here
    restore(unproven, ids, sizes, sink)          # a whole read: what arrives is proven
    unproven.proven(ids)
    failures = unproven.settle(writer)           # keeps the proven recipes, and reads what is left

Nothing but a whole read can tell: a recipe is the word of whoever pushed it, and the first one that a store keeps wins
over what an `add` of the real file would build later. So none is kept before. `fetch` reads everything for that;
`pull` writes most files to the workspace anyway, and restoring a file is such a read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from dvk.errors import Corrupt, DataMissing, DvkError, FormatError
from dvk.ids import PageId
from dvk.store.content import Content, StoreContent, place_all
from dvk.store.names import I64, U8
from dvk.store.pack import RecipeRow
from dvk.store.pages import Chunks, read_recipe
from dvk.store.restore import Nowhere, restore
from dvk.store.store import Store, as_column
from dvk.store.writer import Writer

C = TypeVar("C")


class Unproven(StoreContent, Generic[C]):
    """The files of a store together with those that unproven recipes would make of its chunks.

    `C` is what a recipe was asked for by, for whoever has to be told. Any thread may call `add`.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._rows: dict[bytes, RecipeRow] = {}
        self._claims: dict[bytes, list[C]] = {}
        self._proven: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, file_id: bytes) -> bool:
        return file_id in self._rows

    def add(self, row: RecipeRow, claim: C) -> None:
        """Take a recipe, unless there is one for this file; its pages and chunks are in the store, or on their way."""
        with self._lock:
            self._rows.setdefault(row.file, row)
            self._claims.setdefault(row.file, []).append(claim)

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:
        """What the store knows, and for the others what they would consist of; None where that is not all here."""
        out = super().contents(ids, sizes)
        left = [i for i, content in enumerate(out) if content is None and ids[i].tobytes() in self._rows]
        proposed = place_all(self.store, [_chunks(self.store, self._rows[ids[i].tobytes()]) for i in left])
        for i, content in zip(left, proposed, strict=True):
            out[i] = content if content is not None and content.chunks.total_bytes == sizes[i] else None
        return out

    def proven(self, ids: U8) -> None:
        """Whole reads of these files, out of `contents`, were what their ids say."""
        self._proven.update(name for row in ids if (name := row.tobytes()) in self._rows)

    def settle(self, writer: Writer) -> list[tuple[C, DvkError]]:
        """Keep the recipes that are proven, durably, after reading what nobody has read; nothing is unproven then.

        Returns everybody who asked for a file that a recipe does not make, with the reason.

        Raises:
            StorageError: the store cannot be read or written; no recipe is kept that was not proven.
        """
        writer.flush()
        rows, claims, proven = list(self._rows.values()), self._claims, self._proven
        self._rows, self._claims, self._proven = {}, {}, set()
        if not rows or writer.dry_run:
            return []
        known = self.store.holds(as_column(r.file for r in rows), np.array([r.size for r in rows], np.int64))
        rows = [row for row, here in zip(rows, known.tolist(), strict=True) if not here]
        failed = dict(_disproven(self.store, [row for row in rows if row.file not in proven]))
        writer.add_recipes([row for row in rows if row.file not in failed])
        writer.flush()
        return [(claim, error) for name, error in failed.items() for claim in claims[name]]


class _Proposed:
    """Files as recipes have them, whatever the store thinks of these."""

    def __init__(self, store: Store, rows: Iterable[RecipeRow]) -> None:
        self._store = store
        self.backend = store.backend
        self._rows = {r.file: r for r in rows}

    def contents(self, ids: U8, sizes: I64) -> list[Content | None]:  # noqa: ARG002
        return place_all(self._store, [_chunks(self._store, self._rows[name.tobytes()]) for name in ids])


def _chunks(store: Store, row: RecipeRow) -> Chunks | None:
    try:
        chunks = read_recipe(PageId(row.root), store.load_page)
    except DataMissing:
        return None
    return chunks if chunks.total_bytes == row.size else None


def _disproven(store: Store, rows: Sequence[RecipeRow]) -> Iterator[tuple[bytes, DvkError]]:
    """The files of recipes that do not make them up, each with the reason."""
    if not rows:
        return
    sizes = np.array([r.size for r in rows], np.int64)
    for i, error in restore(_Proposed(store, rows), as_column(r.file for r in rows), sizes, Nowhere()):
        name = rows[i].file
        if isinstance(error, DataMissing):
            yield (
                name,
                DataMissing(f"some chunks of {name.hex()[:12]} did not come", hint="run the same command again"),
            )
        elif not isinstance(error, FormatError):
            raise error  # the local store cannot be read: nothing is known of the recipe
        elif isinstance(error.__cause__, FormatError):  # a block of what was here before, and no word of the remote's
            yield (
                name,
                Corrupt(
                    f"a part of {name.hex()[:12]} that was in the local store before is damaged there: {error.message}",
                    hint="`dvk repair` mends the store; `dvk pull --no-store` brings it past the store",
                ),
            )
        else:
            yield (
                name,
                Corrupt(
                    f"what the remote has for {name.hex()[:12]} is another content ({error.message}); it was not kept",
                    hint="whoever has this version can `dvk push` it",
                ),
            )
