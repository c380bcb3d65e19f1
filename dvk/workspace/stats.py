"""What was found on disk, as columns: the records that `scan` makes and everything else compares.

A million files are five arrays and one blob of names instead of a million objects; two scans, or a scan
and the stat cache, are compared column by column.

>>> empty_scan().stats.sizes.tolist()
[]
"""

from __future__ import annotations

import os
import re

import numpy as np
from msgspec import Struct

from dvk.errors import DvkError
from dvk.store.names import I64, U8, Names

TEMP_NAME = re.compile(
    rb"\.dvk-[0-9a-f]{32}\.tmp(?:\xc3\xa9|e\xcc\x81)?"
)  #: names that `materialize` gives what it is at


_LIMIT = (1 << 63) - 1


class Stats(Struct, frozen=True):
    """What the filesystem says of n entries; together it tells an unchanged file from a changed one.

    Attributes:
        sizes: int64[n], bytes; of a link the length of its target, of an empty directory 0.
        mtime_ns, ctime_ns: int64[n], ns since 1970 by the filesystem's clock.
        inodes: int64[n], the 64 bits of the inode number.
        device: of the folder itself; not compared, since some filesystems number it anew at each mount.
    """

    sizes: I64
    mtime_ns: I64
    ctime_ns: I64
    inodes: I64
    device: int

    def __len__(self) -> int:
        return len(self.sizes)

    def row(self, i: int) -> tuple[int, int, int, int]:
        """Size, mtime_ns, ctime_ns and inode of entry `i`."""
        return self.sizes.item(i), self.mtime_ns.item(i), self.ctime_ns.item(i), self.inodes.item(i)


class Scan(Struct, frozen=True):
    """The entries of a folder, ascending by the bytes of the whole path; of a file one entry named b"".

    Attributes:
        names: n paths relative to the folder.
        kinds: uint8[n], values of `Kind`.
        stats: n rows.
        targets: the targets of the links alone, in the order of their entries.
        ignored: how many files and directories the rules left out (one for a whole directory).
        ignored_examples: a few of them.
        leftovers: temporary files of earlier runs of dvk, relative to the folder; not among `names`.
        problems: everything that keeps the folder from being stored, one error each. The entries
            concerned are not among `names`, but for names that may not be stored.
    """

    names: Names
    kinds: U8
    stats: Stats
    targets: Names
    ignored: int = 0
    ignored_examples: tuple[bytes, ...] = ()
    leftovers: tuple[bytes, ...] = ()
    problems: tuple[DvkError, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def signature(st: os.stat_result) -> tuple[int, int, int, int]:
    """The four numbers of `Stats.row` from one stat result."""
    mtime_ns, ctime_ns, inode = st.st_mtime_ns, st.st_ctime_ns, st.st_ino
    if not (-_LIMIT < mtime_ns < _LIMIT and -_LIMIT < ctime_ns < _LIMIT and inode < _LIMIT):
        return st.st_size, _clamp(mtime_ns), _clamp(ctime_ns), _signed(inode)
    return st.st_size, mtime_ns, ctime_ns, inode


def empty_scan() -> Scan:
    """A scan that found nothing, for a path that does not exist yet."""
    none = np.zeros(0, np.int64)
    return Scan(Names.of([]), np.zeros(0, np.uint8), Stats(none, none, none, none, 0), Names.of([]))


def _clamp(ns: int) -> int:
    return max(-(1 << 63), min(ns, (1 << 63) - 1))


def _signed(inode: int) -> int:
    return inode - (1 << 64) if inode >= 1 << 63 else inode
