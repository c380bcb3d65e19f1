"""What a store knows to be damaged or lost, so that nobody counts it as held. docs/format/index.md says how it is kept.

A disk turns a bit over in a block. Whoever reads that block is refused, but the footer still names its chunks, so an
`add` of the same data would find them "here" and store nothing. So who finds damage notes it down: rows of packs, in
the form of an index segment. Rows that are noted are no hits any more; data that comes again is stored again. When the
pack has gone into quarantine the note still remembers, by prefix, what was here once and is missing now.

>>> notes = DamageNotes()
>>> notes.rows(bytes(32), recipes=False)
array([], dtype=int64)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from dvk.store.index import Segment, Table, prefixes
from dvk.store.names import I64, U8, distinct
from dvk.store.pack import Footer, PackKind

Mask = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]

_NONE = np.zeros(0, np.int64)


class DamageNotes:
    """The notes of one store: key -> segment. Not for several threads at once; the catalog holds its lock."""

    def __init__(self) -> None:
        self.segments: dict[str, Segment] = {}
        self._rows: dict[tuple[bytes, bool], I64] = {}

    def replace(self, segments: Mapping[str, Segment]) -> None:
        """Take these notes instead of those there were."""
        if segments.keys() == self.segments.keys():
            return
        self.segments = dict(segments)
        found: dict[tuple[bytes, bool], list[U32]] = {}
        for segment in self.segments.values():
            for recipes, table in ((False, segment.chunks), (True, segment.recipes)):
                for p in distinct(table.pack).tolist():
                    found.setdefault((segment.packs[p], recipes), []).append(table.row[table.pack == p])
        self._rows = {key: distinct(np.concatenate(rows)).astype(np.int64) for key, rows in found.items()}

    def rows(self, pack: bytes, *, recipes: bool) -> I64:
        """int64[k]: the rows of a pack's footer that must not be relied on, ascending."""
        return self._rows.get((pack, recipes), _NONE)

    def packs(self) -> Set[bytes]:
        """Packs that notes speak of, whether they are there or not."""
        return {pack for segment in self.segments.values() for pack in segment.packs}


def note_of(name: bytes, footer: Footer, rows: I64) -> Segment:
    """A note that some chunks (or pages) of a pack are damaged. `rows`: int64[k] of its footer, ascending."""
    t = Table.of([(0, footer.ids[rows])])
    chunks = Table(t.prefix, t.pack, rows[t.row].astype(np.uint32))
    return Segment(0, (name,), (footer.kind,), chunks, Table.of([]))


def note_of_segment(segment: Segment, gone: Iterable[bytes]) -> Segment:
    """A note that some packs of an index segment are lost with all that they held."""
    lost = set(gone)
    return segment.without({p for p in segment.packs if p not in lost})


def join(notes: Sequence[Segment]) -> Segment:
    """Several notes as one."""
    kinds: dict[bytes, PackKind] = {}
    for note in notes:
        kinds |= dict(zip(note.packs, note.kinds, strict=True))
    packs = sorted(kinds)
    number = {name: i for i, name in enumerate(packs)}

    def table(parts: Sequence[tuple[Segment, Table]]) -> Table:
        rows = [
            np.stack([t.prefix, np.array([number[p] for p in s.packs], np.uint64)[t.pack], t.row.astype(np.uint64)], 1)
            for s, t in parts
            if len(t.row)
        ]
        if not rows:
            return Table.of([])
        unique = np.unique(np.concatenate(rows), axis=0)
        return Table(unique[:, 0].copy(), unique[:, 1].astype(np.uint32), unique[:, 2].astype(np.uint32))

    return Segment(
        0,
        tuple(packs),
        tuple(kinds[p] for p in packs),
        table([(s, s.chunks) for s in notes]),
        table([(s, s.recipes) for s in notes]),
    )


def stands_in(tables: Iterable[Table], ids: U8) -> Mask:
    """bool[n]: which ids some table speaks of, by prefix."""
    wanted = prefixes(ids)
    out = np.zeros(len(ids), np.bool_)
    for table in tables:
        if len(table.prefix):
            at = np.minimum(np.searchsorted(table.prefix, wanted), len(table.prefix) - 1)
            out |= table.prefix[at] == wanted
    return out
