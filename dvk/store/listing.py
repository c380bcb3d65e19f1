"""A folder's content as columns: relative path -> kind, size, id. docs/format/pages.md says how they lie on disk.

>>> a = Entries.of([(b"x/1", Kind.FILE, 3, bytes(32), b""), (b"ln", Kind.LINK, 3, bytes(32), b"x/1")])
>>> [a.names[i] for i in range(len(a))]
[b'ln', b'x/1']
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from itertools import chain

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.ids import ID_BYTES
from dvk.store.names import I64, U8, Names


class Kind(IntEnum):
    """What an entry of a folder is; the numbers are on disk (docs/format/pages.md)."""

    FILE = 1
    EXEC = 2  #: a file with the executable bit
    EMPTYDIR = 3  #: a directory that holds nothing; others exist by their entries
    LINK = 4  #: a symbolic link whose relative target stays inside the folder


class Entries(Struct, frozen=True):
    """Entries of a folder, sorted by the bytes of the whole relative path.

    Attributes:
        names: n relative paths, `/`-separated raw bytes.
        kinds: uint8[n], values of `Kind`.
        sizes: int64[n], bytes; for a link the length of its target, for an empty directory 0.
        ids: uint8[n, 32]; the FileId of a file; zeros for links and empty directories.
        targets: the targets of the links alone, in the order of their entries.
    """

    names: Names
    kinds: U8
    sizes: I64
    ids: U8
    targets: Names

    @classmethod
    def of(cls, rows: Iterable[tuple[bytes, Kind, int, bytes, bytes]]) -> Entries:
        """Entries from rows of (name, kind, size, id, link target), in any order."""
        kept = sorted(rows)
        return cls(
            names=Names.of(r[0] for r in kept),
            kinds=np.array([r[1] for r in kept], np.uint8),
            sizes=np.array([r[2] for r in kept], np.int64),
            ids=np.frombuffer(b"".join(r[3] for r in kept), np.uint8).reshape(-1, ID_BYTES),
            targets=Names.of(r[4] for r in kept if r[1] == Kind.LINK),
        )

    @classmethod
    def empty(cls) -> Entries:
        return cls.of([])

    @classmethod
    def join(cls, parts: Iterable[Entries]) -> Entries:
        """The concatenation of parts that follow one another in order.

        They may be made one by one: each can go once the next is asked for, so that a million entries are there once.
        """
        rest = iter(parts)
        first = next(rest, None)
        second = next(rest, None)
        if first is None or second is None:
            return cls.empty() if first is None else first
        blob, lengths, kinds, sizes, ids = (bytearray() for _ in range(5))
        targets: list[Names] = []
        for part in chain((first, second), rest):
            names = part.names
            blob += names.blob[int(names.offsets[0]) : int(names.offsets[-1])].data
            lengths += names.lengths.data
            kinds += np.ascontiguousarray(part.kinds, np.uint8).data
            sizes += np.ascontiguousarray(part.sizes, np.int64).data
            ids += np.ascontiguousarray(part.ids).data
            if len(part.targets):
                targets.append(part.targets)
        return cls(
            names=Names.cut(np.frombuffer(blob, np.uint8), np.frombuffer(lengths, np.int64)),
            kinds=np.frombuffer(kinds, np.uint8),
            sizes=np.frombuffer(sizes, np.int64),
            ids=np.frombuffer(ids, np.uint8).reshape(-1, ID_BYTES),
            targets=Names.join(targets),
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_file(self) -> npt.NDArray[np.bool_]:
        """bool[n]: a file, executable or not."""
        return np.asarray((self.kinds == Kind.FILE) | (self.kinds == Kind.EXEC))

    @property
    def files(self) -> int:
        """How many files."""
        return int(np.count_nonzero(self.is_file))

    @property
    def total_bytes(self) -> int:
        """The sum of the sizes of files, in integers that cannot wrap."""
        sizes = self.sizes[self.is_file]
        return (int((sizes >> 32).sum()) << 32) + int((sizes & 0xFFFF_FFFF).sum())

    def slice(self, start: int, stop: int) -> Entries:
        """Entries `start` to `stop`; shares memory."""
        links = self.kinds == Kind.LINK
        before, inside = int(np.count_nonzero(links[:start])), int(np.count_nonzero(links[start:stop]))
        return Entries(
            self.names.slice(start, stop),
            self.kinds[start:stop],
            self.sizes[start:stop],
            self.ids[start:stop],
            self.targets.slice(before, before + inside),
        )

    def take(self, index: npt.NDArray[np.intp]) -> Entries:
        """The entries at `index` (ascending int array)."""
        link_rank = np.cumsum(self.kinds == Kind.LINK) - 1
        chosen = index[self.kinds[index] == Kind.LINK]
        return Entries(
            self.names.take(index),
            self.kinds[index],
            self.sizes[index],
            self.ids[index],
            self.targets.take(link_rank[chosen]),
        )

    def under(self, prefix: bytes) -> Entries:
        """What lies below the directory `prefix`, and the entry of that very name."""
        low, high = self.names.under(prefix)
        at = self.names.find(prefix)
        if prefix and at < len(self) and self.names[at] == prefix:
            return self.slice(at, at + 1)
        return self.slice(low, high)


def merge_entries(old: Entries, new: Entries, *, removed: Iterable[bytes] = ()) -> Entries:
    """`old` with the entries of `new` put in or replaced, and `removed` taken out. Costs a sort of names."""
    gone = set(removed) | set(new.names)
    keep = np.array([i for i, name in enumerate(old.names) if name not in gone], np.intp)
    rest = old.take(keep)
    both = Entries.join([rest, new])
    names = list(both.names)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.intp)
    targets = list(both.targets)
    rank = (np.cumsum(both.kinds == Kind.LINK) - 1).tolist()
    return Entries(
        both.names.take(order),
        both.kinds[order],
        both.sizes[order],
        both.ids[order],
        Names.of(targets[rank[i]] for i in order.tolist() if both.kinds[i] == Kind.LINK),
    )
