"""One tracked path as it is now: what its pointer says, what is on disk, and what is known of the difference.

`add`, `status` and `checkout` all start from the same look. A file is a folder of one entry without a name, so that
one piece of code compares both.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import DataMissing, DvkError, NotFound, Refused, StorageError
from dvk.events import OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8, Names, show, windows
from dvk.store.pages import ListKind, PageRef, leaf_refs, load_leaf, read_entries
from dvk.store.paths import check_names
from dvk.store.store import Store
from dvk.workspace.align import align
from dvk.workspace.handles import stat_at
from dvk.workspace.hashing import hash_files
from dvk.workspace.ignore import IgnoreRules
from dvk.workspace.pointer import Pointer
from dvk.workspace.scan import scan_file, scan_folder
from dvk.workspace.selection import Selected
from dvk.workspace.source import SourceFiles
from dvk.workspace.statcache import StatCache
from dvk.workspace.stats import Scan, empty_scan

Mask = npt.NDArray[np.bool_]


class Look(Struct, frozen=True):
    """What is on disk at one path, with the ids that are known without reading anything.

    Attributes:
        kind: "file", "dir", or "" when nothing is there.
        known, ids: bool[n], uint8[n, 32], in the order of the scan.
        root_id: the id of the folder (or file) that consists of exactly these entries, as far as the stat cache knows;
            else empty. The cache itself is as big as the scan, and is not kept.
    """

    path: bytes
    kind: str
    scan: Scan
    known: Mask
    ids: U8
    root_id: bytes = b""

    @classmethod
    def nothing(cls, path: bytes) -> Look:
        """That there is nothing."""
        return cls(path, "", empty_scan(), np.zeros(0, np.bool_), np.zeros((0, ID_BYTES), np.uint8))

    @property
    def hidden(self) -> list[StorageError]:
        """Folders that the disk does not give out. What is in them is neither seen nor gone."""
        return [error for error in self.scan.problems if isinstance(error, StorageError)]

    @property
    def is_file(self) -> Mask:
        """bool[n]: entries with content."""
        return np.asarray((self.scan.kinds == Kind.FILE) | (self.scan.kinds == Kind.EXEC))

    def unknown(self) -> I64:
        """Positions of files whose content has to be read to be known."""
        return np.flatnonzero(self.is_file & ~self.known)

    def with_ids(self, index: I64, ids: U8) -> Look:
        """The same look once the files at `index` (ascending) were read."""
        if len(index) == len(self.known):
            return replace(self, ids=ids, known=np.ones(len(index), np.bool_))
        all_ids, known = self.ids.copy(), self.known.copy()
        all_ids[index] = ids
        known[index] = True
        return replace(self, ids=all_ids, known=known)

    def entries(self) -> Entries:
        """What is on disk as entries of a listing; meaningful once everything is known."""
        scan, ids, sizes = self.scan, self.ids, self.scan.stats.sizes
        bare = np.flatnonzero(~self.is_file)
        if len(bare):
            right = np.zeros(len(bare), np.int64)
            right[scan.kinds[bare] == Kind.LINK] = scan.targets.lengths
            if ids[bare].any():
                ids = ids.copy()
                ids[bare] = 0
            if not np.array_equal(sizes[bare], right):
                sizes = sizes.copy()
                sizes[bare] = right
        return Entries(scan.names, scan.kinds, sizes, ids, scan.targets)


def kind_on_disk(root_fd: int, path: bytes) -> str:
    """ "file", "dir", or "" for nothing; anything else is refused by kind when it is scanned."""
    found = stat_at(root_fd, path)
    if found is None:
        return ""
    return "dir" if stat.S_ISDIR(found.st_mode) else "file"


def is_there(root_fd: int, path: bytes) -> bool:
    """Whether something is at `path`; what lies behind a link, or below a file, is not at any path of ours."""
    try:
        return bool(kind_on_disk(root_fd, path))
    except Refused:
        return False


def look(
    root_fd: int, path: bytes, state: bytes, rules: IgnoreRules, *, inside: bytes = b"", on_event: OnEvent = ignore
) -> Look:
    """Scan one path and compare it with the stat cache. Reads no content.

    Args:
        inside: where the path lies in a tracked folder, if it is a part of one.

    Raises:
        Refused: it is neither a file nor a folder. What is wrong inside a folder is in `scan.problems`.
    """
    kind = kind_on_disk(root_fd, path)
    scan = empty_scan()
    try:
        if kind == "dir":
            scan = scan_folder(root_fd, path, rules, inside=inside, on_event=on_event)
        elif kind == "file":
            scan = scan_file(root_fd, path)
    except NotFound:
        kind = ""  # it went away between the two looks
    cache = StatCache.load(state, path) if kind else None
    if cache is None:
        bare = (scan.kinds == Kind.LINK) | (scan.kinds == Kind.EMPTYDIR)
        return Look(path, kind, scan, bare, np.zeros((len(scan), ID_BYTES), np.uint8))
    match = cache.match(scan)
    root_id = cache.root_id if match.in_step and any(cache.root_id) else b""
    return Look(path, kind, scan, match.known, match.ids, root_id)


def read_ids(
    root_fd: int, seen: Look, index: I64, *, on_event: OnEvent = ignore
) -> tuple[U8, list[tuple[int, DvkError]]]:
    """Hash the files at `index`: ids uint8[n, 32], and the number in `index` and error of each that cannot be read."""
    with SourceFiles(root_fd, seen.path, seen.scan, index) as source:
        return hash_files(source, seen.scan.stats.sizes[index], on_event=on_event)


def read_unknown(root_fd: int, seen: Look, index: I64, *, on_event: OnEvent = ignore) -> Look:
    """Hash the files at `index`; those that cannot be read stay unknown."""
    if not len(index):
        return seen
    ids, problems = read_ids(root_fd, seen, index, on_event=on_event)
    good = np.ones(len(index), np.bool_)
    good[[i for i, _ in problems]] = False
    return seen.with_ids(index[good], ids[good])


def read_where_it_could_be(root_fd: int, seen: Look, before: Entries, *, on_event: OnEvent = ignore) -> Look:
    """Hash what could still be what `before` says: same name and size, and not vouched for."""
    unknown = seen.unknown()
    at = align(seen.scan.names.take(unknown), before.names)
    same = at >= 0
    same[same] = seen.scan.stats.sizes[unknown[same]] == before.sizes[at[same]]
    return read_unknown(root_fd, seen, unknown[same], on_event=on_event)


def is_changed(
    store: Store, root_fd: int, seen: Look, pointer: Pointer, selected: Selected | None, *, on_event: OnEvent = ignore
) -> bool:
    """Whether what is on disk is not exactly a version, of a folder the selected part; also where that is not known."""
    if pointer.kind != seen.kind:
        return True
    try:
        before = pointer_entries(store, pointer, selected if pointer.is_dir else None)
    except DataMissing:
        return True
    now = read_where_it_could_be(root_fd, seen, before, on_event=on_event).entries()
    if len(now) != len(before):
        return True
    same = bool((align(now.names, before.names) >= 0).all()) and bool((now.kinds == before.kinds).all())
    same = same and bool((now.ids == before.ids).all()) and bool((now.sizes == before.sizes).all())
    return not same or list(now.targets) != list(before.targets)


def pointer_entries(store: Store, pointer: Pointer, selected: Selected | None = None) -> Entries:
    """The entries that a pointer stands for, of a folder those that were asked for.

    Raises:
        DataMissing: pages of the folder's listing are not in the local store.
    """
    if not pointer.is_dir:
        return file_entries(pointer)
    if selected is None or selected.prefixes is None:
        return read_entries(PageId(pointer.id), store.load_page)
    return read_parts(store, PageId(pointer.id), selected.prefixes)


def read_parts(store: Store, root: PageId, prefixes: Sequence[bytes]) -> Entries:
    """The entries of a folder at and below some paths in it, reading each page that may hold one of them once.

    Args:
        prefixes: ascending, none below another; b"" alone stands for everything.

    Raises:
        DataMissing: pages are not in the store.
    """
    if len(prefixes) <= 1:
        return read_entries(root, store.load_page, under=prefixes[0]) if prefixes else Entries.empty()
    refs = list(leaf_refs(ListKind.LISTING, root, store.load_page))
    firsts = [ref.first for ref in refs]
    parts: list[Entries] = []
    at, leaf = -1, Entries.empty()
    for prefix in prefixes:
        # What lies below begins with a slash after the name, and b"0" is the byte after that.
        start = max(bisect_right(firsts, prefix) - 1, 0)
        for i in range(start, max(bisect_left(firsts, prefix + b"0"), start + 1)):
            if i != at:
                entries = load_leaf(ListKind.LISTING, refs[i], store.load_page)
                assert isinstance(entries, Entries)
                at, leaf = i, entries
            found = leaf.under(prefix)
            if len(found):
                parts.append(found)
    out = Entries.join(parts)
    check_names(out.names, subject=f"folder {root.hex()[:12]}")
    return out


def file_entries(pointer: Pointer) -> Entries:
    """A file pointer as a listing of one entry without a name."""
    kind = Kind.EXEC if pointer.exec else Kind.FILE
    return Entries(
        Names.of([b""]),
        np.array([kind], np.uint8),
        np.array([pointer.size], np.int64),
        np.frombuffer(pointer.id, np.uint8).reshape(1, ID_BYTES),
        Names.of([]),
    )


def folder_pointer(root: PageRef, before: Pointer | None) -> Pointer:
    """The pointer of a folder. Where it was imported from holds as long as its content does."""
    same = before is not None and before.id == bytes(root.id)
    source = before.source if before is not None and same else ()
    return Pointer("dir", bytes(root.id), root.total_bytes, files=root.files, source=source)


def prefixed(entries: Entries, prefix: bytes) -> Entries:
    """The same entries as they are called inside a folder where they lie at `prefix`."""
    return Entries(prefixed_names(entries.names, prefix), entries.kinds, entries.sizes, entries.ids, entries.targets)


def prefixed_names(names: Names, prefix: bytes) -> Names:
    """The names of what lies at `prefix` inside a folder, as that folder has them."""
    runs = (names.slice(run.start, run.stop) for run in windows(len(names)))
    return Names.join(Names.of(prefix + b"/" + name if name else prefix for name in run) for run in runs)


def not_here(path: bytes, error: DataMissing) -> DataMissing:
    """A listing that is not in the local store, said of the path that needs it."""
    return DataMissing(
        f"its contents are not in this clone ({error.message})",
        subject=show(path),
        hint=f"`dvk fetch {show(path)}` brings the list of files, `dvk pull` the files as well",
    )


def in_the_way(path: bytes, what: str) -> Refused:
    """A tracked path that something else stands at."""
    return Refused(
        f"a {what} stands where dvk tracks something else",
        subject=show(path),
        hint=f"move it away, or untrack the path with `dvk rm --cached {show(path)}`",
    )


def join_path(folder: bytes, name: bytes) -> bytes:
    """A path inside a tracked folder, from the top."""
    return os.path.join(folder, name) if name else folder
