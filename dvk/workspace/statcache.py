"""Remembers the id of each file together with its size, times and inode, so that it is hashed once.

`status` of 50,000 unchanged files compares columns instead of reading 1 GB. The cache may be lost at any
time; what it may never do is call a changed file unchanged. Two traps are built in (both are tests):

- *The same tick.* A file hashed and then changed within one tick of the filesystem's clock shows the
  same size and times before and after. So an entry is trusted only if the filesystem's own clock, read
  before the content was, had left the tick of the entry's ctime and mtime behind.
- *The power cut.* A file written shortly before it may come back empty or zeroed under its old size and
  times. So a cache counts only during the boot that wrote it, unless the filesystem was synced since.

    clock = read_clock(state_dir)             # before reading any content
    ...                                       # scan, hash
    StatCache.of(scan, ids, clock=clock).save(state_dir, b"data/images")
    cache = StatCache.load(state_dir, b"data/images")
    match = cache.match(scan_folder(...))     # match.known, match.ids

One file a tracked path, columns, no parsing: docs/format/workspace-state.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import time
from collections.abc import Callable
from io import FileIO
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace
from xxhash import xxh3_128

from dvk.backend.disk import is_passing, storage_error
from dvk.ids import ID_BYTES
from dvk.store.listing import Kind
from dvk.store.names import I64, U8, Names, merge_order, show, windows
from dvk.timings import Stage, stage
from dvk.workspace.align import align
from dvk.workspace.host import boot_id, sync_filesystem
from dvk.workspace.stats import Scan, Stats

Mask = npt.NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)

_MAGIC = b"dvkstat\n"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQqQB64s32s32s79x")
_DURABLE = 1
_SUM_BYTES = 16
_ROW_BYTES = 4 * 8 + 4 + ID_BYTES + 1 + 1
assert _HEADER.size == 256

_FINE_NS = 20_000_000  # twice the slowest kernel tick: times are stamped with the last tick, 1 to 10 ms
_COARSE_NS = 2_000_000_000  # filesystems that keep whole seconds, or every other
_SECOND_NS = 1_000_000_000
_STALE_TEMP_S = 3600


class Clock(Struct, frozen=True):
    """The time by a filesystem's own clock, and the filesystem (`st_dev`) that was asked."""

    now_ns: int
    device: int


class Match(Struct, frozen=True):
    """What a cache knows about a scan.

    Attributes:
        known: bool[n], whether the id is known. Always so for links and empty directories, which have none.
        ids: uint8[n, 32], zeros where unknown and for links and empty directories.
        in_step: no entry came, went or changed since the cache was written: what held then (`root_id`) holds.
    """

    known: Mask
    ids: U8
    in_step: bool


def read_clock(state_dir: bytes) -> Clock:
    """What time it is for the filesystem that holds `state_dir`. Read it before reading content.

    The wall clock of the process will not do: a filesystem stamps with the last tick, a server with its own.

    Raises:
        OSError: the directory cannot be written; then nothing can be cached either.
    """
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    path = os.path.join(state_dir, b"clock-" + secrets.token_hex(16).encode() + b".tmp")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        st = os.fstat(fd)
    finally:
        os.close(fd)
        os.unlink(path)
    return Clock(st.st_mtime_ns, st.st_dev)


def cache_file(state_dir: bytes, path: bytes) -> bytes:
    """Where the cache of the tracked `path` lies."""
    return os.path.join(state_dir, b"stat", blake3(path).hexdigest().encode())


class StatCache(Struct, frozen=True):
    """The entries of one tracked path when they were last read.

    Attributes:
        names: n names as in `Scan`, ascending.
        kinds: uint8[n].
        stats: n rows.
        ids: uint8[n, 32]; zeros for links and empty directories.
        trusted: bool[n]; a row that is not trusted never matches.
        root_id: the id of the folder (or file) that consisted of exactly these entries; zeros if it was not
            known, or only a part of it was there.
        boot: the boot that wrote it.
        durable: the filesystem was synced since, so that another boot may trust it too.
    """

    names: Names
    kinds: U8
    stats: Stats
    ids: U8
    trusted: Mask
    root_id: bytes
    boot: bytes
    durable: bool = False

    @classmethod
    def of(
        cls,
        scan: Scan,
        ids: U8,
        *,
        clock: Clock,
        known: Mask | None = None,
        settled: Mask | None = None,
        root_id: bytes = bytes(ID_BYTES),
    ) -> StatCache:
        """A cache of `scan`, whose contents have `ids`.

        Args:
            ids: uint8[n, 32] in the order of the scan.
            clock: read before the first byte of the content was, and before the scan.
            known: bool[n], false where `ids` holds nothing; all are known by default.
            settled: bool[n], rows safe without the clock, since their mtime lies in the past on purpose and
                so any later write must change it (`materialize` sees to that).
            root_id: see the class.
        """
        stats = scan.stats
        now = clock.now_ns
        if clock.device != stats.device and len(stats):
            # A filesystem with a clock that we did not ask: all we know is that it has come this far.
            now = min(now, int(stats.ctime_ns.max()))
        calm = np.empty(len(scan), np.bool_)
        for run in windows(len(scan)):
            changed, modified = stats.ctime_ns[run], stats.mtime_ns[run]
            grain = np.where(changed % _SECOND_NS == 0, _COARSE_NS, _FINE_NS)
            old = changed < now - grain
            # A time ahead of the clock is as good as an old one: a write now would not bring it about.
            trusted = old & ((modified < now - grain) | (modified > now + grain))
            if settled is not None:
                trusted |= settled[run]
            if known is not None:
                trusted &= known[run]
            calm[run] = trusted | ((scan.kinds[run] == Kind.LINK) & old)
        return cls(scan.names, scan.kinds, stats, ids, calm, root_id, boot_id())

    def joined(self, older: StatCache, *, without: Names) -> StatCache:
        """These entries, and those of `older` that these do not replace. What `older` trusted stays trusted.

        Args:
            without: names that are no longer there, ascending.
        """
        if older.stats.device != self.stats.device and len(self.names):
            return self
        rest = np.flatnonzero((align(older.names, self.names) < 0) & (align(older.names, without) < 0))
        if not len(rest):
            return self
        names = Names.join([self.names, older.names.take(rest)])
        order = merge_order(names, len(self.names))

        def both(ours: npt.NDArray[_T], theirs: npt.NDArray[_T]) -> npt.NDArray[_T]:
            return np.concatenate([ours, theirs[rest]])[order]

        stats = Stats(
            both(self.stats.sizes, older.stats.sizes),
            both(self.stats.mtime_ns, older.stats.mtime_ns),
            both(self.stats.ctime_ns, older.stats.ctime_ns),
            both(self.stats.inodes, older.stats.inodes),
            older.stats.device,
        )
        return StatCache(
            names.take(order),
            both(self.kinds, older.kinds),
            stats,
            both(self.ids, older.ids),
            both(self.trusted, older.trusted),
            bytes(ID_BYTES),
            self.boot,
        )

    @classmethod
    def load(cls, state_dir: bytes, path: bytes) -> StatCache | None:
        """The cache of the tracked `path`, if there is one that can be trusted; never an error.

        None when it is missing, damaged, of another format version or tracked path, or of an earlier boot
        without having been made durable.
        """
        with stage(Stage.STAT_CACHE) as loading:
            try:
                fd = os.open(cache_file(state_dir, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                return None
            try:
                with open(fd, "rb", buffering=0) as file:
                    cache = _read(file, path)
                    loading.add(bytes_=file.tell())
            except OSError:
                return None
        if cache is None or not (cache.durable or (cache.boot and cache.boot == boot_id())):
            return None
        return cache

    def save(self, state_dir: bytes, path: bytes) -> bool:
        """Replace the cache of the tracked `path` in one step; False if it could not be written.

        A failure costs time later and nothing else, so it does not raise. Not synced: damage is noticed.
        """
        with stage(Stage.STAT_CACHE) as saving:
            parts = _encode(self, path)
            saving.add(bytes_=sum(part.nbytes for part in parts))
            return self._replace(cache_file(state_dir, path), parts)

    @staticmethod
    def _replace(target: bytes, parts: list[memoryview]) -> bool:
        folder = os.path.dirname(target)
        temp = os.path.join(folder, secrets.token_hex(16).encode() + b".tmp")
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            _clean(folder)
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                for part in parts:
                    file.write(part)
            os.rename(temp, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temp)
            return False
        return True

    def match(self, scan: Scan) -> Match:
        """What is known of the entries of `scan`, in its order."""
        with stage(Stage.STAT_CACHE, count=0):
            return self._match(scan)

    def _match(self, scan: Scan) -> Match:
        n = len(scan)
        bare = (scan.kinds == Kind.LINK) | (scan.kinds == Kind.EMPTYDIR)
        if scan.names == self.names:
            same = self._same(scan, slice(None))
            whole = bool(same.all()) and not bare.any()
            ids = self.ids if whole else np.where((same & ~bare)[:, None], self.ids, np.uint8(0))
            in_step = bool((same | (bare & (self.kinds == Kind.EMPTYDIR) & (scan.kinds == self.kinds))).all())
            return Match(same | bare, ids, in_step)
        place = align(scan.names, self.names)
        known = place >= 0
        known[known] = self._same(scan, place, known)
        ids = np.zeros((n, ID_BYTES), np.uint8)
        with_id = np.flatnonzero(known & ~bare)
        ids[with_id] = self.ids[place[with_id]]
        return Match(known | bare, ids, False)

    def _same(self, scan: Scan, place: I64 | slice, rows: Mask | None = None) -> Mask:
        theirs, ours = scan.stats, self.stats
        if rows is None or isinstance(place, slice):
            pick_scan: Mask | slice = slice(None)
            pick: I64 | slice = slice(None)
        else:
            pick_scan, pick = rows, place[rows]
        same: Mask = self.trusted[pick] & (theirs.sizes[pick_scan] == ours.sizes[pick])
        same &= theirs.mtime_ns[pick_scan] == ours.mtime_ns[pick]
        same &= theirs.ctime_ns[pick_scan] == ours.ctime_ns[pick]
        same &= theirs.inodes[pick_scan] == ours.inodes[pick]
        same &= scan.kinds[pick_scan] == self.kinds[pick]
        return same


def sync_and_clear(state_dir: bytes, paths: list[bytes], *, folder_fd: int) -> int:
    """Sync the filesystem of `folder_fd`, then let the caches of `paths` outlive this boot.

    Returns how many were marked. What was cached before the sync is on the medium after it, and what
    changes later shows in its times. 0 where the system cannot prove the sync.
    """
    caches = [(path, cache) for path in paths if (cache := StatCache.load(state_dir, path)) is not None]
    pending = [(path, cache) for path, cache in caches if not cache.durable]
    if not pending or not sync_filesystem(folder_fd):
        return 0
    return sum(replace(cache, durable=True).save(state_dir, path) for path, cache in pending)


def is_damaged(state_dir: bytes, path: bytes) -> bool:
    """Whether the tracked `path` has a cache that is not what was written.

    Raises:
        StorageError: the disk does not give it out.
    """
    try:
        with open(cache_file(state_dir, path), "rb", buffering=0) as file:
            return _read(file, path) is None
    except FileNotFoundError:
        return False
    except OSError as error:
        if is_passing(error):
            raise storage_error(error, show(path)) from error
        return True


def forget(state_dir: bytes, path: bytes) -> None:
    """Drop the cache of the tracked `path`, if there is one."""
    with contextlib.suppress(OSError):
        os.unlink(cache_file(state_dir, path))


def _encode(cache: StatCache, path: bytes) -> list[memoryview]:
    """The bytes of a cache in parts, since a second copy of a million rows would be most of the memory of an `add`."""
    names, stats = cache.names, cache.stats
    first, last = int(names.offsets[0]), int(names.offsets[-1])
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        _DURABLE if cache.durable else 0,
        len(names),
        last - first,
        time.time_ns(),
        stats.device & (1 << 64) - 1,
        len(cache.boot),
        cache.boot,
        cache.root_id,
        blake3(path).digest(),
    )
    columns = (
        *(c.astype("<i8", copy=False) for c in (stats.sizes, stats.mtime_ns, stats.ctime_ns, stats.inodes)),
        names.lengths.astype("<u4"),
        cache.ids,
        cache.kinds,
        cache.trusted.view(np.uint8),
        names.blob[first:last],
    )
    parts = [memoryview(header), *(np.ascontiguousarray(c).reshape(-1).view(np.uint8).data for c in columns)]
    digest = xxh3_128()
    for part in parts:
        digest.update(part)
    return [*parts, memoryview(digest.digest())]


def _read(file: FileIO, path: bytes) -> StatCache | None:
    def take(count: int) -> U8:
        return np.fromfile(file, np.uint8, count)

    return _parse(take, os.fstat(file.fileno()).st_size, path)


def _parse(take: Callable[[int], U8], size: int, path: bytes) -> StatCache | None:
    """The cache in `size` bytes, or None for anything but a whole, undamaged one of `path`.

    Args:
        take: gives the next so many bytes. Each column is a piece, so that who keeps one does not keep them all.
    """
    if size < _HEADER.size + _SUM_BYTES:
        return None
    digest = xxh3_128()
    cut_short = False

    def column(item: str, count: int) -> npt.NDArray[np.generic]:
        nonlocal cut_short
        part = take(np.dtype(item).itemsize * count)
        digest.update(part.data)
        if len(part) != np.dtype(item).itemsize * count:  # somebody cuts the file at this moment
            cut_short = True
            return np.zeros(count, item)
        return part.view(item)

    header = _HEADER.unpack(column("u1", _HEADER.size).tobytes())
    magic, version, flags, n, blob_bytes, _written_ns, device, boot_bytes, boot, root_id, path_id = header
    if magic != _MAGIC or version != _VERSION or path_id != blake3(path).digest() or boot_bytes > len(boot):
        return None
    # In Python numbers, which do not wrap, and before anything is allocated.
    if size != _HEADER.size + n * _ROW_BYTES + blob_bytes + _SUM_BYTES:
        return None
    sizes, mtime_ns, ctime_ns, inodes = (column("<i8", n).astype(np.int64, copy=False) for _ in range(4))
    lengths = column("<u4", n).astype(np.uint32, copy=False)
    ids = column("u1", n * ID_BYTES).astype(np.uint8, copy=False).reshape(n, ID_BYTES)
    kinds = column("u1", n).astype(np.uint8, copy=False)
    trusted = column("u1", n).astype(np.bool_)
    blob = column("u1", blob_bytes).astype(np.uint8, copy=False)
    if cut_short or take(_SUM_BYTES).tobytes() != digest.digest() or int(lengths.sum(dtype=np.uint64)) != blob_bytes:
        return None
    stats = Stats(sizes, mtime_ns, ctime_ns, inodes, device)
    names = Names.cut(blob, lengths)
    return StatCache(names, kinds, stats, ids, trusted, root_id, boot[:boot_bytes], bool(flags & _DURABLE))


def _clean(folder: bytes) -> None:
    """Remove what a killed `save` left behind long ago."""
    limit = time.time() - _STALE_TEMP_S
    with os.scandir(folder) as listing:
        stale = [e.path for e in listing if e.name.endswith(b".tmp") and e.stat().st_mtime < limit]
    for path in stale:
        with contextlib.suppress(OSError):
            os.unlink(path)
