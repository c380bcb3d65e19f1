"""A folder's content as columns: relative path -> kind, size, id."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dvk.store.names import I64, U8, Names


class Kind(IntEnum):
    """What an entry of a folder is; the numbers are on disk (docs/format/pages.md)."""

    FILE = 1
    EXEC = 2  #: a file with the executable bit
    EMPTYDIR = 3  #: a directory that holds nothing; others exist by their entries
    LINK = 4  #: a symbolic link whose relative target stays inside the folder


@dataclass(frozen=True, slots=True)
class Entries:
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

    def __len__(self) -> int:
        return len(self.names)
