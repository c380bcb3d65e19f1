"""Reading the files that a scan found, by handle, and noticing when one changes meanwhile.

A file that a program rewrites while it is being hashed would be stored as bytes that never existed
together. So it is compared with the scan, by size, times and inode, before and after it is read.

    with SourceFiles(root_fd, b"data/images", scan) as source:
        fd = source.open(0)
        ...                                 # pread, never mmap: a truncation would kill the process
        source.recheck(0, fd)
"""

from __future__ import annotations

import os

from dvk.errors import ChangedWhileRead
from dvk.store.names import I64, show
from dvk.workspace.handles import DirHandles, open_and_stat
from dvk.workspace.stats import Scan, signature


class SourceFiles:
    """Opens the files of a scan for reading, and notices when one changes meanwhile. Any thread may call.

    The store reads between `open` and `recheck`; only what passes both was there, unchanged, while it
    was hashed, and its row in `stats` belongs to exactly those bytes.
    """

    def __init__(self, root_fd: int, path: bytes, scan: Scan, index: I64 | None = None) -> None:
        """File i is entry `index[i]` of `scan`, or entry i without `index`."""
        self._path = path
        self._scan = scan
        self._index = index
        self._dirs = DirHandles(root_fd)
        self._names = scan.names.tobytes()

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory handles; descriptors from `open` belong to the caller."""
        self._dirs.close()

    def path(self, i: int) -> bytes:
        """The path of file `i` from the root."""
        offsets = self._scan.names.offsets
        at = self._entry(i)
        name = self._names[offsets.item(at) : offsets.item(at + 1)]
        return self._path + b"/" + name if name and self._path else name or self._path

    def show(self, i: int) -> str:
        """The name of file `i` for messages."""
        return show(self.path(i))

    def _entry(self, i: int) -> int:
        return i if self._index is None else int(self._index.item(i))

    def open(self, i: int) -> int:
        """A descriptor of file `i` for reading, positioned at 0; the caller closes it.

        Raises:
            ChangedWhileRead: it is not what the scan saw.
            Refused, NotFound, StorageError: as `open_regular`.
        """
        fd, now = open_and_stat(self._dirs, self.path(i))
        try:
            self._compare(i, now)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def recheck(self, i: int, fd: int) -> None:
        """Pass if file `i`, open as `fd`, still is what the scan saw.

        Raises:
            ChangedWhileRead: size, mtime, ctime or inode differ; nothing read from it may be kept.
        """
        self._compare(i, os.fstat(fd))

    def _compare(self, i: int, found: os.stat_result) -> None:
        now = signature(found)
        before = self._scan.stats.row(self._entry(i))
        if now != before:
            what = "its size" if now[0] != before[0] else "it"
            raise ChangedWhileRead(
                f"{what} changed while dvk was reading it",
                subject=show(self.path(i)),
                hint="run the command again when nothing writes to it",
            )
