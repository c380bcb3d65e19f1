"""A store that also reads what other stores on this machine have, and writes to its own alone.

For clones made with `git clone --shared` or `--reference`: Git finds objects of the repository they came from, and dvk
its data. What is added here is stored here, whatever the others have: nobody who collects garbage there knows of it.

>>> store = BorrowingStore(Store(own), [Store(other)])       # doctest: +SKIP
>>> store.holds(ids, sizes), store.own.holds(ids, sizes)     # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt

from dvk.backend.first_of import FirstOf
from dvk.errors import DvkError
from dvk.store.catalog import Accept, Hit, Index, Mask
from dvk.store.descriptor import Descriptor
from dvk.store.index import Segment
from dvk.store.names import I64, U8
from dvk.store.pack import Footer, PackKind, pack_key
from dvk.store.store import Store


class BorrowingStore(Store):
    """`own`, and behind it `others`, which are only read. Safe to use from many threads."""

    def __init__(self, own: Store, others: Sequence[Store]) -> None:
        super().__init__(FirstOf([own.backend, *(o.backend for o in others)]))
        self._mine = own
        self._stores = (own, *others)

    @property
    def own(self) -> Store:
        return self._mine

    @property
    def parts(self) -> tuple[Store, ...]:
        return self._stores

    @property
    def damaged(self) -> tuple[DvkError, ...]:
        return tuple(error for store in self._stores for error in store.damaged)

    def describe(self) -> Descriptor | None:
        return self._mine.describe()

    def describe_again(self) -> Descriptor | None:
        return self._mine.describe_again()

    def create(self) -> Descriptor:
        return self._mine.create()

    def tolerate_unreadable(self) -> None:
        for store in self._stores:
            store.tolerate_unreadable()

    def refresh(self) -> None:
        for store in self._stores:
            store.refresh()

    def look_again(self) -> None:
        for store in self._stores:
            store.look_again()

    def segments(self) -> list[Segment]:
        return self._mine.segments()

    def adopt(self, new: Sequence[tuple[bytes, Footer]]) -> None:
        self._mine.adopt(new)

    def save_index(self) -> None:
        self._mine.save_index()

    # What is damaged, and where it is noted: damage of others is known to this process, and theirs to write down.

    @property
    def notes(self) -> dict[str, Segment]:
        return self._mine.notes

    def noted(self) -> Iterator[tuple[bytes, PackKind, int, npt.NDArray[np.uint64]]]:
        return self._mine.noted()

    @property
    def vanished(self) -> dict[bytes, PackKind]:
        return self._mine.vanished

    def index_rows(self) -> Iterator[tuple[bytes, PackKind, npt.NDArray[np.uint64]]]:
        return self._mine.index_rows()

    def note_damage(self, name: bytes, footer: Footer, rows: I64, *, keep: bool) -> None:
        mine = any(self._mine.backend.stat(pack_key(kind, name)) is not None for kind in PackKind)
        for store in self._stores[:1] if mine else self._stores[1:]:
            store.note_damage(name, footer, rows, keep=keep and mine)

    def distrust(self, name: bytes, error: DvkError) -> None:
        for store in self._stores:
            store.distrust(name, error)

    def note_losses(self, packs: Container[bytes]) -> None:
        self._mine.note_losses(packs)

    def prune_notes(self, proven: Set[bytes] = frozenset()) -> int:
        return self._mine.prune_notes(proven)

    def knew(self, ids: U8, *, recipes: bool = False) -> Mask:
        return self._mine.knew(ids, recipes=recipes)

    def known_recipes(self) -> list[npt.NDArray[np.uint64]]:
        return self._mine.known_recipes()

    def rebuild_index(self, *, keep: Set[bytes] = frozenset()) -> list[str]:
        return self._mine.rebuild_index(keep=keep)

    def drop_from_index(self, names: Collection[bytes]) -> None:
        self._mine.drop_from_index(names)

    def assume(self, descriptor: Descriptor) -> None:
        self._mine.assume(descriptor)

    def hits(self, ids: U8, *, recipes: bool = False, accept: Accept | None = None) -> Iterator[Hit]:
        waiting = np.ones(len(ids), np.bool_)
        for store in self._stores:
            asked = np.flatnonzero(waiting)
            if not len(asked):
                return
            for hit in store.hits(ids[asked], recipes=recipes, accept=_as_asked(accept, asked)):
                which = asked[hit.which]
                waiting[which] = False
                yield Hit(hit.name, hit.kind, hit.footer, which, hit.rows)


def _as_asked(accept: Accept | None, asked: Index) -> Accept | None:
    """`accept` for a part of the ids: what it hears of are positions among all."""
    if accept is None:
        return None

    def one(kind: PackKind, footer: Footer, which: Index, rows: I64) -> Mask:
        return accept(kind, footer, asked[which], rows)

    return one
