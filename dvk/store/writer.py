"""Writing into the local store: only what is new becomes packs, and packs become findable once they are durable.

One `Writer` is one unit of work (an `add`, a `fetch`). Nothing that it takes is promised before `flush` returned; after
a kill at any point the store holds whole packs or nothing, and what was stored without being referred to is found again
by its id.

>>> with Writer(store) as writer:                           # doctest: +SKIP
...     writer.add_chunks(ids, lengths, raw)
...     writer.flush()
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from dvk.backend.contract import Buffer
from dvk.errors import Refused
from dvk.ids import PackId, PageId
from dvk.store.codec import ALL_CODECS, Hint, codec_numbers
from dvk.store.names import U8
from dvk.store.pack import Footer, PackKind, RecipeRow, pack_key
from dvk.store.packwriter import PackWriter, Written
from dvk.store.store import Store, as_column
from dvk.timings import Stage, stage


class Writer:
    """Adds chunks and pages to a store. Its methods may be called from many threads.

    Args:
        dry_run: do all the work and keep nothing; `written` tells what it would have been.
    """

    def __init__(self, store: Store, *, dry_run: bool = False, level: int = 1) -> None:
        self.store = store = store.own  # what others have may be gone tomorrow
        self.dry_run = dry_run
        self._lock = threading.Lock()
        self._pending: set[bytes] = set()  # taken, and not yet in a findable pack
        self._recipes: set[bytes] = set()  # files whose recipe was taken
        # One pack being written while the next one fills keeps a disk busy; a second gains 5 %.
        self._descriptor = store.describe() if dry_run else store.create()
        codecs = ALL_CODECS if self._descriptor is None else codec_numbers(self._descriptor.codecs)
        self._packs = PackWriter(
            self._put,
            self._published,
            level=level,
            in_flight=1,
            codecs=codecs,
            reuse_memory=store.backend.capabilities.releases_parts,
        )

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._packs.__exit__(kind, error, trace)

    @property
    def written(self) -> Written:
        """What was new so far."""
        return self._packs.written

    def _put(self, kind: PackKind, name: PackId, parts: list[Buffer]) -> None:
        if not self.dry_run:
            self.store.backend.put(pack_key(kind, name), parts)

    def _published(self, _kind: PackKind, name: PackId, footer: Footer) -> None:
        if self.dry_run:
            return
        self.store.adopt([(name, footer)])
        blob = footer.ids.tobytes()
        with self._lock:  # findable now, so no longer pending
            self._pending.difference_update(blob[i : i + 32] for i in range(0, len(blob), 32))

    def choose_new(self, ids: Sequence[bytes], column: U8) -> list[int]:
        """Positions of the chunks that neither the store nor this writer has; the caller owes them from now on."""
        # Claimed before the store is asked: asked first, a chunk could become findable in between and be taken as new.
        with self._lock:
            claimed = [i for i, name in enumerate(ids) if not self._claim(name)]
        try:
            known = self.store.has_chunks(column if len(claimed) == len(ids) else column[claimed]).tolist()
        except BaseException:
            self.give_back([ids[i] for i in claimed])
            raise
        if True in known:
            self.give_back([ids[i] for i, here in zip(claimed, known, strict=True) if here])
        return [i for i, here in zip(claimed, known, strict=True) if not here]

    def _claim(self, name: bytes) -> bool:
        """Whether a chunk was pending already; it is from now on."""
        if name in self._pending:
            return True
        self._pending.add(name)
        return False

    def add_chunks(
        self, ids: Sequence[bytes], lengths: Sequence[int], raw: memoryview, *, hints: Sequence[Hint] | None = None
    ) -> int:
        """Store those chunks of `raw` that are new; returns how many bytes were.

        Args:
            ids: n chunk ids, computed from `raw`. lengths: n lengths that cover `raw` from its start.
            hints: what each chunk holds, if anybody knows.
        """
        with stage(Stage.LOOKUP, count=len(ids)):
            new = self.choose_new(ids, as_column(ids))
        return self._packs.add_new(new, ids, lengths, raw, hints=hints) if new else 0

    def add_encoded(
        self, codec: int, payload: Buffer, raw_len: int, *, ids: Sequence[bytes], lengths: Sequence[int]
    ) -> None:
        """Append an encoded block whose chunks were all chosen by `choose_new` and proven by hash."""
        self._packs.add_encoded(codec, payload, raw_len, ids=ids, lengths=lengths)

    def give_back(self, ids: Sequence[bytes]) -> None:
        """Chunks that were chosen and will not come after all."""
        with self._lock:
            self._pending.difference_update(ids)

    def add_owed(self, ids: Sequence[bytes], lengths: Sequence[int], raw: memoryview) -> None:
        """Store chunks that were all chosen by `choose_new`; they cover `raw`."""
        self._packs.add_new(range(len(ids)), ids, lengths, raw)

    def add_page(self, name: PageId, data: bytes) -> None:
        """Store a page unless it is here."""
        self.add_pages([name], [data])

    def add_pages(self, names: Sequence[PageId], data: Sequence[bytes]) -> None:
        """Store those of several pages that are not here; one look-up for all."""
        with stage(Stage.PAGES, bytes_=sum(map(len, data)), count=len(data)):
            for i in self.choose_new(names, as_column(names)):
                self._packs.add_page(names[i], data[i])

    def add_recipe(self, row: RecipeRow) -> None:
        """State which page is the root of a file's recipe, unless the store has one with all its chunks; its pages were
        added before."""
        self.add_recipes([row])

    def add_recipes(self, rows: Sequence[RecipeRow]) -> None:
        """`add_recipe` for several files; one look-up for all."""
        known = self.store.find_recipes(as_column(r.file for r in rows))
        # The same root is whole by now. Another one may be of a writer that was killed before all was stored, or of
        # data that was lost since, and cut by another profile it does not come back.
        other = [r for r, old in zip(rows, known, strict=True) if old is not None and old.root != r.root]
        held = self.store.holds(as_column(r.file for r in other), np.array([r.size for r in other], np.int64))
        done = {r.file for r, here in zip(other, held.tolist(), strict=True) if here}
        for row, old in zip(rows, known, strict=True):
            if row.file in done or (old is not None and old.root == row.root):
                continue
            with self._lock:
                if row.file in self._recipes:
                    continue
                self._recipes.add(row.file)
            self._packs.add_recipe(row)

    def require_profile(self, profile: str) -> None:
        """Refuse to cut by a profile that the store does not list: whoever adds to it has to repeat the cuts.

        Raises:
            Refused: it is not on the list; `upgrade` raises that.
        """
        if self._descriptor is not None and profile not in self._descriptor.profiles:
            raise Refused(
                f"data is to be cut by the profile {profile}, which this store does not take",
                subject=self.store.name,
                hint="`dvk remote upgrade --local` allows it, once every dvk that uses this store knows it",
            )

    def end_of_path(self) -> None:
        """Blocks do not span tracked paths."""
        self._packs.end_of_path()

    def flush(self) -> None:
        """Return only when everything taken so far is durable and findable.

        Raises:
            StorageError, StorageFull: something could not be written; nothing of it was promised.
        """
        self._packs.flush()
        if not self.dry_run:
            self.store.save_index()
