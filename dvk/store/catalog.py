"""Which packs a store has, and in which of them an id stands: index segments, footers, and what to do when they fail.

Other processes add packs, merge segments and collect garbage at any time, and a disk may damage an index, so nothing
here is believed for good: packs that no segment covers are read from their footers, a damaged segment counts as none,
what vanished is looked for again, and a hit counts only once the footer says so too.

>>> catalog = Catalog(MemoryBackend())                     # doctest: +SKIP
>>> for hit in catalog.hits(ids): ...                      # doctest: +SKIP
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Iterator, Sequence, Set

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.backend.contract import Backend, Buffer, KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError, StorageError, StorageFull
from dvk.ids import ID_BYTES
from dvk.store import pack as packs
from dvk.store.damage import DamageNotes, join, note_of, note_of_segment, stands_in
from dvk.store.index import MERGE_FAN_IN, U64, Segment, Table, format_segment, is_checked, parse_segment, prefixes
from dvk.store.names import I64, U8, distinct
from dvk.store.pack import TRAILER, Footer, PackKind, pack_key
from dvk.timings import Stage, stage

Index = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]

_FOOTER_CACHE_BYTES = 64 << 20
_MAX_SEGMENT_BYTES = 1 << 40
_SEGMENT_KEY = re.compile(r"i/[0-9]{1,2}-[0-9a-f]{32}")
_NOTE_KEY = re.compile(r"i/bad-[0-9a-f]{32}")
_PACK_KEY = re.compile(r"[pm]/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class Hit(Struct, frozen=True):
    """Ids that stand in one pack: `which` int[k] of those asked for, `rows` int64[k] of the footer."""

    name: bytes
    kind: PackKind
    footer: Footer
    which: Index
    rows: I64


#: Says which rows of a footer will do: (kind, footer, which, rows) -> bool[k].
Accept = Callable[[PackKind, Footer, Index, I64], Mask]


class Catalog:
    """The packs of one backend. Safe to use from many threads; other processes may change the store at any time."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self._lock = threading.RLock()
        self._segments: list[tuple[str, Segment]] = []  # key ("" while not written) and segment
        self._covered: set[bytes] = set()  # packs in `_segments`
        self._footers: OrderedDict[bytes, Footer] = OrderedDict()
        self._footer_bytes = 0
        self._unverified: set[str] = set()  # segments too big for their checksum to be verified on every start
        self._bad_segments: set[str] = set()
        self._damaged: dict[bytes, DvkError] = {}
        self._notes = DamageNotes()
        self._vanished: list[Segment] = []  # what segments say of packs that are not there
        self._narrowed: dict[str, Segment] = {}  # as they are written: segments that name packs that are not there
        self._loaded = False
        self._tolerant = False

    @property
    def damaged(self) -> tuple[DvkError, ...]:
        """What is wrong with packs that could not be read; their chunks count as not here, so that adding heals."""
        with self._lock:
            return tuple(self._damaged.values())

    def tolerate_unreadable(self) -> None:
        """From now on a pack that the medium refuses to read counts as damaged, for who judges a store.

        Otherwise the error ends whatever looks for something in it.
        """
        self._tolerant = True

    # ------------------------------------------------------------ what is there

    def refresh(self) -> None:
        """Look again which packs and segments there are. Cheap when nothing changed."""
        with stage(Stage.INDEX), self._lock:
            for _ in range(5):
                try:
                    self._load()
                    return
                except KeyMissing:
                    continue  # a merge deleted it between listing and reading
            raise DataMissing("the index changes faster than it can be read", subject=self.name)

    def look_again(self) -> None:
        """`refresh`, and verify what was believed without its checksum: for when something is not found."""
        with self._lock:
            for key in list(self._unverified):
                try:
                    data = self.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES)
                    parse_segment(data, subject=f"{self.name}/{key}", check=True)
                except FormatError:
                    self._bad_segments.add(key)
                except KeyMissing:
                    pass  # merged since; `refresh` will see
                self._unverified.discard(key)
            self._damaged.clear()  # a medium may have answered wrongly once
            self.refresh()

    def _load(self) -> None:
        # As they are written, or what is not there would be forgotten when one looks again.
        old = {key: self._narrowed.get(key, s) for key, s in self._segments if key}
        segments: list[tuple[str, Segment]] = []
        unverified: set[str] = set()
        notes: dict[str, Segment] = {key: s for key, s in self._notes.segments.items() if key.startswith("i/unkept-")}
        for item in patiently(lambda: list(self.backend.list("i/"))):
            key = item.key
            if _NOTE_KEY.fullmatch(key):
                self._load_note(key, notes)
                continue
            if key in self._bad_segments or not _SEGMENT_KEY.fullmatch(key):
                continue
            if key in old:
                segments.append((key, old[key]))
                continue
            try:
                data = self._view(key)
                segments.append((key, parse_segment(data, subject=f"{self.name}/{key}")))
            except FormatError:  # one bit may make it a newer version's, and footers tell all that it could
                self._bad_segments.add(key)  # what it covered is read from footers until the next `save_index`
                continue
            if not is_checked(data):
                unverified.add(key)
        present = self.list_packs()
        covered = {p for _, s in segments for p in s.packs}
        gone = covered - present.keys()
        self._notes.replace(notes)
        self._narrowed = {key: s for key, s in segments if not gone.isdisjoint(s.packs)}
        self._vanished = [note_of_segment(s, gone) for s in self._narrowed.values()]
        if gone:
            segments = [(k, s if gone.isdisjoint(s.packs) else s.without(gone)) for k, s in segments]
        new = [(name, kind) for name, kind in present.items() if name not in covered]
        found = [(name, self._readable(name, kind, vanished=True)) for name, kind in new]
        loose = [(name, footer) for name, footer in found if footer is not None]
        if loose:
            segments.append(("", Segment.build(loose)))
        self._segments = segments
        self._covered = (covered - gone).union(name for name, _ in loose)
        self._unverified = {k for k in self._unverified if k in old} | unverified
        self._loaded = True

    def _load_note(self, key: str, notes: dict[str, Segment]) -> None:
        if (known := self._notes.segments.get(key)) is not None:
            notes[key] = known
            return
        try:
            data = self._view(key)
            notes[key] = parse_segment(data, subject=f"{self.name}/{key}", check=True)
        except FormatError:
            return  # what it warned of is found again by whoever reads it; `verify` names it
        except KeyMissing:
            return  # what it spoke of has been healed

    def _view(self, key: str) -> Buffer:
        return patiently(lambda: self.backend.view(key, max_bytes=_MAX_SEGMENT_BYTES))

    def list_packs(self) -> dict[bytes, PackKind]:
        """All packs that are there now."""
        out: dict[bytes, PackKind] = {}
        for kind in PackKind:
            for item in self.backend.list(f"{kind.prefix}/"):
                if match := _PACK_KEY.fullmatch(item.key):
                    out[bytes.fromhex(match[2])] = kind
        return out

    def segments(self) -> list[Segment]:
        """The index as it is known now."""
        with self._lock:
            if not self._loaded:
                self.refresh()
            return [s for _, s in self._segments]

    # ------------------------------------------------------------ what is damaged

    @property
    def notes(self) -> dict[str, Segment]:
        """The damage that was noted: key -> rows (docs/format/index.md)."""
        with self._lock:
            if not self._loaded:
                self.refresh()
            return dict(self._notes.segments)

    def noted(self) -> Iterator[tuple[bytes, PackKind, int, npt.NDArray[np.uint64]]]:
        """What kept notes say of packs: name, kind, how many rows are not to be relied on, prefixes of all named."""
        for note in (note for key, note in self.notes.items() if _NOTE_KEY.fullmatch(key)):
            for p, (name, kind) in enumerate(zip(note.packs, note.kinds, strict=True)):
                mine = [t.prefix[t.pack == p] for t in (note.chunks, note.recipes)]
                yield name, kind, len(self._notes.rows(name, recipes=False)), np.concatenate(mine)

    @property
    def vanished(self) -> dict[bytes, PackKind]:
        """Packs that the index covers and that are not there."""
        with self._lock:
            return {p: kind for s in self._vanished for p, kind in zip(s.packs, s.kinds, strict=True)}

    def index_rows(self) -> Iterator[tuple[bytes, PackKind, npt.NDArray[np.uint64]]]:
        """What the index says of each pack that is damaged or not there: prefixes of chunks, pages and recipes."""
        with self._lock:
            parts = [(s, self._damaged.keys() & set(s.packs)) for s in self.segments()]
            parts += [(s, set(s.packs)) for s in self._vanished]
        for segment, names in parts:
            number = {name: i for i, name in enumerate(segment.packs)}
            for name in sorted(names):
                p = number[name]
                mine = [t.prefix[t.pack == p] for t in (segment.chunks, segment.recipes)]
                yield name, segment.kinds[p], np.concatenate(mine)

    def note_damage(self, name: bytes, footer: Footer, rows: I64, *, keep: bool) -> None:
        """Count rows of a pack as not here from now on; `keep`: for other processes, too.

        Raises:
            StorageError: it could not be kept; this process knows all the same.
        """
        known = self._notes.rows(name, recipes=False)
        if np.isin(rows, known).all():
            return
        self._add_note(note_of(name, footer, rows), keep=keep)

    def distrust(self, name: bytes, error: DvkError) -> None:
        """Count a pack as unreadable in this process."""
        with self._lock:
            self._damaged[name] = error
            if (footer := self._footers.pop(name, None)) is not None:
                self._footer_bytes -= _weight(footer)

    def note_losses(self, packs: Container[bytes]) -> None:
        """Remember what index segments say of packs that are lost or cannot be read, for when the index is rebuilt.

        Raises:
            StorageError: it could not be kept.
        """
        with self._lock:
            segments = [*self.segments(), *self._vanished]
            lost = [note_of_segment(s, [p for p in s.packs if p in packs]) for s in segments]
            lost = [s for s in lost if s.packs]
            if lost:
                self._add_note(join(lost), keep=True)

    def _add_note(self, note: Segment, *, keep: bool) -> None:
        with self._lock:
            name, kept = secrets.token_hex(16), False
            try:
                if keep:
                    self.backend.put(f"i/bad-{name}", [format_segment(note)])
                    kept = True
            finally:
                key = f"i/{'bad' if kept else 'unkept'}-{name}"
                self._notes.replace({**self._notes.segments, key: note})

    def prune_notes(self, proven: Set[bytes] = frozenset()) -> int:
        """Forget damage that is no more: what a note names and some pack can give again. How many notes are left.

        What is said of a pack stands as long as the pack is there, unless it is among `proven`: read whole, and right.

        Raises:
            StorageError: a note could not be replaced; the old one stands.
        """
        with self._lock:
            for key, note in self.notes.items():
                if not _NOTE_KEY.fullmatch(key):
                    continue
                left = (self._lacking(note, proven, recipes=False), self._lacking(note, proven, recipes=True))
                rest = Segment(note.level, note.packs, note.kinds, *left)
                if len(left[0].row) + len(left[1].row) == len(note.chunks.row) + len(note.recipes.row):
                    continue
                if len(left[0].row) or len(left[1].row):
                    used = {note.packs[p] for t in left for p in distinct(t.pack).tolist()}
                    self._add_note(note_of_segment(rest, used), keep=True)
                self.backend.delete(key)
                self._notes.replace({k: s for k, s in self._notes.segments.items() if k != key})
            return len(self._notes.segments)

    def _lacking(self, note: Segment, proven: Set[bytes], *, recipes: bool) -> Table:
        """The rows of a note of which no sound pack has the like, or whose damaged pack is still there."""
        table = note.recipes if recipes else note.chunks
        found = np.zeros(len(table.prefix), np.bool_)
        for segment in self.segments():
            theirs = segment.recipes if recipes else segment.chunks
            which, at = theirs.find(table.prefix)
            if not len(which):
                continue
            for p, members in groups(theirs.pack[at]):
                name = segment.packs[p]
                if name in self._damaged:
                    continue
                rows = theirs.row[at[members]].astype(np.int64)
                sound = ~np.isin(rows, self._notes.rows(name, recipes=recipes)) | (name in proven)
                found[which[members][sound]] = True
        there = (self._covered | self._damaged.keys()) - proven
        found &= ~np.array([name in there for name in note.packs], np.bool_)[table.pack]
        return Table(table.prefix[~found], table.pack[~found], table.row[~found])

    def knew(self, ids: U8, *, recipes: bool = False) -> Mask:
        """bool[n]: ids that notes or the index speak of: of those not found, the ones that were here once."""
        with self._lock:
            known = [*self.segments(), *self._vanished, *self._notes.segments.values()]
        return stands_in((s.recipes if recipes else s.chunks for s in known), ids)

    def known_recipes(self) -> list[U64]:
        """uint64[n] each: of which files notes or the index say that a recipe is or was here; the first 8 bytes."""
        with self._lock:
            known = [*self.segments(), *self._vanished, *self._notes.segments.values()]
        return [s.recipes.prefix for s in known]

    def rebuild_index(self, *, keep: Set[bytes] = frozenset()) -> list[str]:
        """Write the index anew from footers, and return the keys of the segments that it replaces.

        The old ones still stand: what they say of packs is not believed by this process any more.

        Args:
            keep: packs that cannot be read now; what the index says of them is taken over.

        Raises:
            StorageError: nothing was replaced; a footer of another pack could not be read, say.
        """
        with self._lock:
            said = [note_of_segment(s, keep & set(s.packs)) for s in self.segments()]
            old = [item.key for item in self.backend.list("i/") if not _NOTE_KEY.fullmatch(item.key)]
            self._segments, self._covered, self._bad_segments = [], set(), {*self._bad_segments, *old}
            self._footers.clear()
            self._footer_bytes = 0
            self._damaged.clear()
            self.refresh()
            unread = {name: e for name, e in self._damaged.items() if isinstance(e, StorageError)}
            for name, error in unread.items():
                if name not in keep:
                    raise error
            loose = [s for key, s in self._segments if not key and s.packs]
            loose += [s for s in (note_of_segment(s, keep & unread.keys() & set(s.packs)) for s in said) if s.packs]
            if loose:
                self._replace([item for item in self._segments if not item[0]], Segment.merge(loose), level=0)
            return old

    # ------------------------------------------------------------ what is added

    def adopt(self, new: Sequence[tuple[bytes, Footer]]) -> None:
        """Make packs findable in this process that it has just made durable."""
        with self._lock:
            # Their footers are not kept: most of what is new is never asked for again, and it is there to be read.
            fresh = [(name, footer) for name, footer in new if name not in self._covered]
            if not fresh:
                return
            with stage(Stage.INDEX):
                self._segments.append(("", Segment.build(fresh)))
            self._covered.update(name for name, _ in fresh)
            # Merged as they would be on disk, or an `add` of a terabyte would search a segment for each of its packs.
            while group := self._full_level(written=False):
                merged = Segment.merge([s for _, s in group])
                self._segments = [x for x in self._segments if not any(x is g for g in group)] + [("", merged)]

    def save_index(self) -> None:
        """Write what is indexed only in memory as a segment, and merge levels that are full."""
        with stage(Stage.INDEX), self._lock:
            loose = [item for item in self._segments if not item[0]]
            kept = [s for _, s in loose if s.packs]
            if not kept:
                return
            level = max(s.level for s in kept)
            self._replace(loose, kept[0] if len(kept) == 1 else Segment.merge(kept), level=level)
            while group := self._full_level(written=True):
                level = group[0][1].level + 1
                self._replace(group, Segment.merge([s for _, s in group]), level=level)
            for key in self._bad_segments:  # what they covered has just been written
                self.backend.delete(key)
            self._bad_segments.clear()

    def drop_from_index(self, names: Collection[bytes]) -> None:
        """Take packs out of the index on the medium, durably: before they are deleted.

        Where there is no room for the index without them, its segments are deleted; footers say what they said.
        """
        with self._lock:
            self.refresh()
            for key, segment in [x for x in self._segments if not set(names).isdisjoint(x[1].packs)]:
                rest = segment.without(names)
                if key and rest.packs:
                    try:
                        self._replace([(key, segment)], rest, level=rest.level)
                        continue
                    except StorageFull:
                        pass  # an index can be made again at any time
                self._segments = [x for x in self._segments if x[0] != key or x[1] is not segment]
                if key:
                    self.backend.delete(key)
                if rest.packs:
                    self._segments.append(("", rest))

    def _full_level(self, *, written: bool) -> list[tuple[str, Segment]]:
        """The segments of a level that has as many as are merged; empty when there is none."""
        levels: dict[int, list[tuple[str, Segment]]] = {}
        for item in self._segments:
            if bool(item[0]) == written and item[1].level < 15:
                levels.setdefault(item[1].level, []).append(item)
        return next((g for _, g in sorted(levels.items()) if len(g) >= MERGE_FAN_IN), [])

    def _replace(self, old: list[tuple[str, Segment]], new: Segment, *, level: int) -> None:
        new = Segment(level, new.packs, new.kinds, new.chunks, new.recipes)
        key = f"i/{level}-{secrets.token_hex(16)}"
        self.backend.put(key, [format_segment(new)])
        keys = {k for k, _ in old}
        self._segments = [item for item in self._segments if item[0] not in keys] + [(key, new)]
        for k in keys - {""}:
            self.backend.delete(k)
            self._unverified.discard(k)

    # ------------------------------------------------------------ footers

    def footer(self, name: bytes, kind: PackKind) -> Footer:
        """The footer of a pack; some 64 MiB of them are kept.

        Raises:
            KeyMissing, Corrupt, NewerFormat
        """
        with self._lock:
            if (found := self._footers.get(name)) is not None:
                self._footers.move_to_end(name)
                return found
        key = pack_key(kind, name)
        subject = f"{self.name}/{key}"
        size = self.backend.stat(key)
        if size is None:
            raise KeyMissing("a pack is gone", subject=subject)
        if size < TRAILER.size:
            raise Corrupt("a pack is shorter than its trailer", subject=subject)
        trailer = packs.parse_trailer(self.backend.get_range(key, size - TRAILER.size, TRAILER.size), subject=subject)
        if trailer.pack_len != size or trailer.kind is not kind:
            raise Corrupt("a pack has not the length or kind it states", subject=subject)
        data = self.backend.get_range(key, trailer.footer_offset, trailer.footer_len)
        found = packs.parse_footer(data, trailer, subject=subject)
        with self._lock:
            self._keep_footer(name, found)
        return found

    def _readable(self, name: bytes, kind: PackKind, *, vanished: bool = False) -> Footer | None:
        """The footer, or None for a pack that is damaged or gone; `vanished` makes the latter an error."""
        with self._lock:
            if name in self._damaged:
                return None
        try:
            return patiently(lambda: self.footer(name, kind))
        except KeyMissing:
            if vanished:
                raise
            return None  # collected since; another copy, or a refresh, will tell
        except (Corrupt, StorageError) as error:
            if isinstance(error, StorageError) and not self._tolerant:
                raise  # "not here" would be a lie: a push would leave it out and say that all was sent
            with self._lock:
                self._damaged[name] = error
            return None

    def _keep_footer(self, name: bytes, footer: Footer) -> None:
        if name in self._footers:
            return
        self._footers[name] = footer
        self._footer_bytes += _weight(footer)
        while self._footer_bytes > _FOOTER_CACHE_BYTES and len(self._footers) > 1:
            self._footer_bytes -= _weight(self._footers.popitem(last=False)[1])

    # ------------------------------------------------------------ looking up

    def hits(self, ids: U8, *, recipes: bool = False, accept: Accept | None = None) -> Iterator[Hit]:
        """Where each of n ids stands (chunks and pages, or files with `recipes`), pack by pack; each id at most once.

        One vectorised search for each segment, confirmed by the footers. What `accept` refuses is looked for elsewhere.
        """
        wanted = prefixes(ids)
        waiting = np.ones(len(ids), np.bool_)
        for segment in self.segments():
            open_ = np.flatnonzero(waiting)
            if not len(open_):
                return
            table: Table = segment.recipes if recipes else segment.chunks
            which, at = table.find(wanted[open_])
            if not len(which):
                continue
            which = open_[which]
            for p, members in groups(table.pack[at]):
                name, kind = segment.packs[p], segment.kinds[p]
                footer = self._readable(name, kind)
                if footer is None:
                    continue
                stated = file_column(footer) if recipes else footer.ids
                candidates, rows = which[members], table.row[at[members]].astype(np.int64)
                good = waiting[candidates] & (rows < len(stated))
                candidates, rows = candidates[good], rows[good]
                good = (stated[rows] == ids[candidates]).all(axis=1)
                if len(bad := self._notes.rows(name, recipes=recipes)):
                    good &= ~np.isin(rows, bad)
                if accept is not None:
                    candidates, rows = candidates[good], rows[good]
                    good = accept(kind, footer, candidates, rows)
                candidates, rows = candidates[good], rows[good]
                # A pack may state an id twice; any of its rows will do.
                candidates, first = np.unique(candidates, return_index=True)
                if len(candidates):
                    waiting[candidates] = False
                    yield Hit(name, kind, footer, candidates, rows[first])


def groups(values: npt.NDArray[np.integer]) -> Iterator[tuple[int, Index]]:
    """Each different value with its positions, ascending; one sort, whatever the number of values."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, [len(values)]])
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(ordered[a]), order[a:b]


def file_column(footer: Footer) -> U8:
    """uint8[r, 32]: the file ids of the recipes in a footer."""
    column = np.ascontiguousarray(footer.recipes["file"]).tobytes()
    return np.frombuffer(column, np.uint8).reshape(-1, ID_BYTES)


def _weight(footer: Footer) -> int:
    """Bytes of memory that a footer takes, with what is computed of it."""
    return len(footer.ids) * 44 + len(footer.raw_len) * 21 + footer.recipes.nbytes + 1024
