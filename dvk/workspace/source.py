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
import stat

from dvk.errors import ChangedWhileRead, DvkError
from dvk.store.names import I64, show
from dvk.workspace.handles import REGULAR, DirHandles, open_and_stat
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

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory handles; descriptors from `open` belong to the caller."""
        self._dirs.close()

    def path(self, i: int) -> bytes:
        """The path of file `i` from the root."""
        name = self._scan.names[self._entry(i)]
        return self._path + b"/" + name if name and self._path else name or self._path

    def _folder_of(self, name: bytes) -> bytes:
        """The path from the root of the folder in which an entry lies."""
        path = self._path + b"/" + name if name and self._path else name or self._path
        return path.rpartition(b"/")[0]

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

    def read_run(self, files: I64, into: memoryview) -> int:
        """Read files (ascending) one after the other into `into`, as far as all goes well; how many (`ingest.Source`).

        Four system calls a file. One look at its times is enough: they are compared with those of the scan after it
        was read, and none of them goes back to what it was.
        """
        rows = files if self._index is None else self._index[files]
        names, stats = self._scan.names, self._scan.stats
        done = at = 0
        first = int(names.offsets[rows[0]])
        blob = names.blob[first : int(names.offsets[rows[-1] + 1])].tobytes()  # in a folder, files ascend as names do
        columns = (names.offsets[rows] - first, names.offsets[rows + 1] - first, stats.sizes[rows])
        times = (stats.mtime_ns[rows], stats.ctime_ns[rows], stats.inodes[rows])
        folder: bytes | None = None
        where, dir_fd = b"", -1
        try:
            for start, stop, size, mtime, ctime, inode in zip(*(c.tolist() for c in columns + times), strict=True):
                cut = blob.rfind(b"/", start, stop)
                above = blob[start : max(cut, start)]
                if above != folder:
                    if folder is not None:
                        self._dirs.release(where)
                        folder = None
                    where = self._folder_of(blob[start:stop])
                    dir_fd = self._dirs.acquire(where)
                    folder = above
                name = blob[max(cut + 1, start) : stop] or self._path.rpartition(b"/")[2]
                fd = os.open(name, REGULAR, dir_fd=dir_fd)
                try:
                    # One byte of room more than expected: a file that grew shows itself.
                    got = os.preadv(fd, (into[at : at + size + 1],), 0)
                    st = os.fstat(fd)
                finally:
                    os.close(fd)
                if (
                    got != size
                    or st.st_size != size
                    or st.st_mtime_ns != mtime
                    or st.st_ctime_ns != ctime
                    or st.st_ino != inode
                    or not stat.S_ISREG(st.st_mode)
                ):
                    break
                at += size
                done += 1
        except (OSError, DvkError):
            pass  # the closer look at this one says why
        finally:
            if folder is not None:
                self._dirs.release(where)
        return done

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
