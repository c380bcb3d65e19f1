"""Whether versions can be had from a remote: by their locators, as a clone would, or only by a search, or not at all.

    packs = Packs(remote, Level.NORMAL, pool)
    check = Restorable(remote, packs)
    found = check.look(root)               # `Seen`: found.state, found.missing as in `wholeness`

The way of a clone is gone to its end: locator, pages, placements; each place that a placement names is compared with
the footer of the pack that lies there (or, where everything is read, with what the block really holds). A version whose
locator is of no use, and that the footers of all packs still lead to, is UNREACHABLE: nothing of it is lost, a fetch
finds it slowly, and `repair` writes the locator again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import field

from dvk.backend.contract import KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import DvkError, FormatError, StorageError
from dvk.events import Meter
from dvk.store.content import Content
from dvk.store.examine import Damage, Examined, Level, examine_pack, list_packs
from dvk.store.locator import Ref
from dvk.store.names import U8, distinct
from dvk.store.pack import BLOCK_HEADER, MAX_BLOCK_BYTES, Footer, PackKind, pack_key
from dvk.store.pages import Chunks
from dvk.store.placement import Blocks, read_blocks
from dvk.store.resolve import Part, Resolver
from dvk.store.root import FILE, Root
from dvk.store.salvageable import Salvageable
from dvk.store.store import Store
from dvk.store.wholeness import Found, Missing, State, Wholeness, is_at

Mask = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]
Key = tuple[PackKind, bytes]


class Packs:
    """The packs of a store, each examined at most once."""

    def __init__(
        self,
        store: Store,
        level: Level,
        pool: Executor,
        meter: Meter,
        *,
        keep_notes: bool = False,
        look: Callable[[bytes, Footer], None] = lambda _name, _footer: None,
    ) -> None:
        """`keep_notes`: tell other processes of damage, too. `look`: shown each footer that is right."""
        self.store, self.level, self._pool, self._meter = store, level, pool, meter
        self._keep, self._look = keep_notes, look
        self.problems: list[DvkError] = []  #: damage that could not be noted
        self.sizes = list_packs(store.backend)
        self.found: dict[Key, Examined] = {}

    def salvageable(self) -> Salvageable:
        """What no reader takes and `mend.salvage` saves."""
        return Salvageable(self.store, self.found.values())

    @property
    def damage(self) -> list[Damage]:
        """What is wrong with those that were examined."""
        return [d for x in self.found.values() if (d := x.damage) is not None]

    @property
    def unread(self) -> dict[Key, StorageError]:
        """Those of which something could not be read, and why."""
        return {key: x.unread for key, x in self.found.items() if x.unread is not None}

    def examine(self, keys: Iterable[Key], level: Level | None = None) -> None:
        """Look at those of some packs that nobody looked at so closely."""
        level = self.level if level is None else level
        fresh = [k for k in dict.fromkeys(keys) if k in self.sizes and self._is_news(k, level)]
        whole = [k for k in fresh if level is Level.DATA or (level is Level.NORMAL and k[0] is PackKind.PAGES)]
        self._meter.total_bytes = (self._meter.total_bytes or 0) + sum(self.sizes[k] for k in whole)

        def look(key: Key) -> Examined:
            show = lambda footer: self._look(key[1], footer)  # noqa: E731
            return examine_pack(self.store, *key, self.sizes[key], level, advance=self._advance, look=show)

        for key, found in zip(fresh, self._pool.map(look, fresh), strict=True):
            if isinstance(found.error, KeyMissing):  # collected since it was listed; who needs it will miss it
                del self.sizes[key]
                continue
            self.found[key] = found
            if found.footer is not None and len(found.unusable):
                try:
                    self.store.note_damage(key[1], found.footer, found.unusable, keep=self._keep)
                except StorageError as error:
                    self.problems.append(error)
            if found.footer is not None and len(found.unread_rows):  # not here for now; that is no damage to be noted
                self.store.note_damage(key[1], found.footer, found.unread_rows, keep=False)
            if found.trouble is not None and found.footer is None:
                self.store.distrust(key[1], found.trouble)

    def _is_news(self, key: Key, level: Level) -> bool:
        known = self.found.get(key)
        return known is None or (known.level < level and known.trouble is None)

    def _advance(self, size: int) -> None:
        self._meter.advance(bytes_=size)


class Seen(Found):
    """`Found`, of a remote: ABSENT only means that no record promises it. `unreachable`: only a search finds it."""

    unreachable: bool = False
    record: bytes = b""  #: that its locator names
    packs: set[Key] = field(default_factory=set)  #: that it was found to rely on


class Restorable:
    """Looks at versions on one remote, one after the other. Changes nothing."""

    def __init__(self, remote: Store, packs: Packs) -> None:
        self.remote, self.packs = remote, packs
        self._resolver = Resolver(remote)
        self._leaves: dict[tuple[bytes, Ref], tuple[Missing, ...]] = {}
        self._used: dict[tuple[bytes, Ref], set[Key]] = {}
        self._by_footers: Wholeness | None = None
        self.blamed: set[Key] = set()  #: packs that do not hold what a version needs of them

    def close(self) -> None:
        """Stop the threads."""
        self._resolver.close()

    def look(self, root: Root, under: bytes = b"") -> Seen:
        """What the remote has of a version, or of the part of a folder at and below `under`.

        Raises:
            RemoteError: the remote does not answer.
        """
        out = Seen()
        if root.kind == FILE and not root.size:
            return out
        error: DvkError | None = None
        try:
            error = self._by_locator(root, out, under)
        except (KeyMissing, FormatError) as failed:
            error = failed
            self.blamed |= {(PackKind.PAGES, name) for name in self._resolver.reader.take_used()}
        if error is None and not out.missing_files:
            return out
        # What it says is lost may be elsewhere; a locator is a hint.
        whole = self._search(root, under)
        out.missing, out.missing_files, out.missing_bytes = whole.missing, whole.missing_files, whole.missing_bytes
        out.lost_files, out.lost_bytes, out.state = whole.missing_files, whole.missing_bytes, whole.state
        out.error = error or whole.error
        out.unreachable = whole.state is State.WHOLE
        if whole.state is not State.WHOLE:
            out.state = State.LOST
        return out

    # ------------------------------------------------------------ as a clone would

    def _by_locator(self, root: Root, out: Seen, under: bytes) -> DvkError | None:
        reader = self._resolver.reader
        reader.take_used()
        found = reader.locator(root)
        if found is None:
            return KeyMissing("it has no locator", subject=f"{self.remote.name}/l/{root.text[0]}/{root.id.hex()[:12]}")
        out.record = found.record
        known: list[tuple[bytes, Ref]] = []

        def skip(leaf: bytes, ref: Ref) -> bool:
            known.append((leaf, ref))
            return (leaf, ref) in self._leaves

        if root.kind == FILE:
            for part in self._resolver.by_locator(root, found):
                out.add(self._part(part, out.packs))
        else:
            waiting: list[tuple[bytes, Ref]] = []
            parts = self._resolver.by_locator(root, found, skip=skip)
            for part in parts:
                waiting = waiting or [k for k in dict.fromkeys(known) if k not in self._leaves]
                if not waiting:
                    break  # only pages above the leaves
                key = waiting.pop(0)
                used: set[Key] = set()
                self._leaves[key] = tuple(self._part(part, used))
                self._used[key] = used
                if not waiting:
                    break
            for key in known:
                out.add(m for m in self._leaves.get(key, ()) if not under or is_at(m.name, under))
                out.packs |= self._used.get(key, set())
        pages = {(PackKind.PAGES, name) for name in reader.take_used()}
        out.packs |= pages
        # Also where a locator holds its sections itself: a search starts from page packs.
        self.packs.examine(pages)
        if not found.inline:
            for pack in sorted(pages):
                if pack not in self.packs.sizes:
                    return KeyMissing("a page pack is gone", subject=f"{self.remote.name}/{pack_key(*pack)}")
        return None

    def _part(self, part: Part, used: set[Key]) -> list[Missing]:
        groups: dict[int, list[tuple[int, Content]]] = {}
        for i, content in enumerate(part.contents):
            if content is not None and len(content.chunks):
                groups.setdefault(id(content.placement), []).append((i, content))
        out = []
        for group in groups.values():
            for i in self._wrong(group, used):
                out.append(
                    Missing(part.entries.names[i], int(part.entries.sizes[i]), why="chunks of it are damaged or gone")
                )
        return out

    def _wrong(self, group: list[tuple[int, Content]], used: set[Key]) -> list[int]:
        """Of contents that share a placement those that do not lie where it says."""
        p = group[0][1].placement
        where = np.concatenate([np.arange(c.first, c.first + len(c.chunks)) for _, c in group])
        owner = np.repeat(np.arange(len(group)), [len(c.chunks) for _, c in group])
        chunks = Chunks.join([c.chunks for _, c in group])
        block, offset = p.block[where], p.offset[where]
        pack = p.blocks.pack[block]
        numbers = distinct(pack).tolist()
        keys = [(PackKind.DATA, p.blocks.packs[n]) for n in numbers]
        used.update(keys)
        self.packs.examine(keys)
        good = np.zeros(len(where), np.bool_)
        for n, key in zip(numbers, keys, strict=True):
            mine = np.flatnonzero(pack == n)
            good[mine] = self._lies(key, p.blocks, block[mine], offset[mine], chunks.ids[mine], chunks.lengths[mine])
            if not good[mine].all():
                self.blamed.add(key)
        return [group[g][0] for g in distinct(owner[~good]).tolist()]

    def _lies(self, key: Key, blocks: Blocks, block: U32, offset: U32, ids: U8, lengths: U32) -> Mask:
        """bool[n]: chunks that lie in a pack where a placement says."""
        none = np.zeros(len(block), np.bool_)
        found = self.packs.found.get(key)
        if found is None:
            return none
        if found.unreadable:  # a reader that follows a locator needs no footer
            return self._proven(blocks, block, offset, ids, lengths)
        start = blocks.offset[block]
        if found.level is Level.QUICK:
            return np.asarray(start + BLOCK_HEADER.size + blocks.packed_len[block] <= found.size)
        try:
            footer = found.footer or self.remote.footer(key[1], key[0])
        except (KeyMissing, FormatError):
            return none
        if not len(footer.packed_len) or not len(footer.ids):
            return none
        at = np.minimum(np.searchsorted(footer.block_offset, start), len(footer.packed_len) - 1)
        good = footer.block_offset[at] == start
        for ours, theirs in (
            (footer.packed_len, blocks.packed_len),
            (footer.raw_len, blocks.raw_len),
            (footer.codec, blocks.codec),
        ):
            good &= ours[at] == theirs[block]
        places = footer.chunk_block.astype(np.int64) * MAX_BLOCK_BYTES + footer.chunk_offset
        row = np.minimum(np.searchsorted(places, at * MAX_BLOCK_BYTES + offset), len(places) - 1)
        good &= (places[row] == at * MAX_BLOCK_BYTES + offset) & (footer.chunk_len[row] == lengths)
        good &= (footer.ids[row] == ids).all(axis=1)
        if len(found.unusable):
            good &= ~np.isin(row, found.unusable)
        return np.asarray(good)

    def _proven(self, blocks: Blocks, block: U32, offset: U32, ids: U8, lengths: U32) -> Mask:
        """bool[n]: chunks that are read where a placement says, and are what their ids say."""
        out = np.zeros(len(block), np.bool_)
        for b in distinct(block).tolist():
            try:
                raw = memoryview(patiently(lambda b=b: read_blocks(self.remote.backend, blocks, [b]))[b])  # type: ignore[misc]
            except (KeyMissing, FormatError, StorageError):
                continue
            for i in np.flatnonzero(block == b).tolist():
                piece = raw[int(offset[i]) : int(offset[i]) + int(lengths[i])]
                out[i] = blake3(piece).digest() == ids[i].tobytes()
        return out

    # ------------------------------------------------------------ by the footers of all packs

    def _search(self, root: Root, under: bytes) -> Found:
        if self._by_footers is None:
            self.packs.examine(sorted(self.packs.sizes), max(self.packs.level, Level.NORMAL))
            self._by_footers = Wholeness(self.remote)
        return self._by_footers.look(root, under)
