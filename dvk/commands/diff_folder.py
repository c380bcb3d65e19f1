"""What differs between two listings of a folder: files that came, went, changed, or only have another name.

    changes = compare_listings(root_a, root_b, load_a, load_b)
    len(changes.added), len(changes.modified), changes.new_bytes
    for row in changes.rows(): ...

Two versions share the pages of their listings, so only pages that differ are read: one changed file in a million costs
two pages. No data is read. Entries stay columns; a row is made only when somebody looks at it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.commands.folder import changed_entries
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8
from dvk.store.pages import ListKind, Load, PageRef, leaf_refs, leaves_under, load_leaf
from dvk.workspace.align import align

Mask = npt.NDArray[np.bool_]

_KINDS = {Kind.FILE: "file", Kind.EXEC: "exec", Kind.EMPTYDIR: "dir", Kind.LINK: "link"}


class FileEntry(Struct, frozen=True):
    """An entry of a folder as one side has it."""

    kind: str  #: `file`, `exec`, `link`, or `dir` for an empty folder
    size: int
    id: bytes | None  #: None for what has no content, and for a file on disk that was not read
    target: bytes | None = None  #: of a link


class FileChange(Struct, frozen=True):
    """One file of a folder that is not the same on both sides. Paths as the folder has them."""

    path: bytes
    change: str  #: `added`, `removed`, `modified` or `renamed`
    a: FileEntry | None
    b: FileEntry | None
    old_path: bytes | None = None  #: of a renamed one


class FolderChanges(Struct, frozen=True):
    """What differs between two folders, as columns.

    Attributes:
        a, b: entries in which all differences lie; other entries may be among them.
        added, removed: positions in `b` and in `a`.
        modified, renamed: int64[n, 2], positions in `a` and in `b`. Of files with the same content under new names,
            the first by name belongs to the first.
        known: bool[len(b)], whether the id of an entry of `b` is known; a file on disk is read only where its size
            leaves a doubt.
    """

    a: Entries
    b: Entries
    added: I64
    removed: I64
    modified: I64
    renamed: I64
    known: Mask

    def __len__(self) -> int:
        return len(self.added) + len(self.removed) + len(self.modified) + len(self.renamed)

    @property
    def new_bytes(self) -> int:
        """Bytes of files in B whose content no file has that is gone or changed; each content once."""
        fresh = np.concatenate([self.added, self.modified[:, 1]])
        fresh = fresh[self.b.is_file[fresh]]
        old = set(_ids(self.a.ids[np.concatenate([self.removed, self.modified[:, 0]])]))
        known = self.known[fresh].tolist()
        seen: dict[bytes | int, int] = {}
        for i, name, size, told in zip(
            fresh.tolist(), _ids(self.b.ids[fresh]), self.b.sizes[fresh].tolist(), known, strict=True
        ):
            if not told:
                seen[i] = size
            elif name not in old:
                seen[name] = size
        return sum(seen.values())

    def rows(self) -> Iterator[FileChange]:
        """The changes by path, made one by one; a renamed file stands at its new one."""
        a, b = self.a.names, self.b.names
        # Four ascending streams, so the first rows of a million cost nothing.
        streams = (
            ((b[i], "added", -1, i) for i in self.added.tolist()),
            ((a[i], "removed", i, -1) for i in self.removed.tolist()),
            ((b[j], "modified", i, j) for i, j in self.modified.tolist()),
            ((b[j], "renamed", i, j) for i, j in self.renamed.tolist()),
        )
        links_a, links_b = np.cumsum(self.a.kinds == Kind.LINK) - 1, np.cumsum(self.b.kinds == Kind.LINK) - 1
        for path, change, i, j in heapq.merge(*streams):
            before = _entry(self.a, i, True, links_a) if i >= 0 else None
            after = _entry(self.b, j, bool(self.known[j]), links_b) if j >= 0 else None
            yield FileChange(path, change, before, after, a[i] if change == "renamed" else None)


def _entry(entries: Entries, i: int, known: bool, links: I64) -> FileEntry:
    """Entry `i`; `links[i]`: how many links are before it."""
    kind = Kind(int(entries.kinds[i]))
    target = entries.targets[int(links[i])] if kind is Kind.LINK else None
    is_file = kind in (Kind.FILE, Kind.EXEC)
    name = entries.ids[i].tobytes() if is_file and known else None
    return FileEntry(_KINDS[kind], int(entries.sizes[i]), name, target)


def _ids(ids: U8) -> list[bytes]:
    blob = np.ascontiguousarray(ids).tobytes()
    return [blob[i : i + 32] for i in range(0, len(blob), 32)]


def compare_listings(
    a: tuple[PageId, Load] | None, b: tuple[PageId, Load] | None, *, under: bytes = b""
) -> FolderChanges:
    """What differs between two folders, or what lies at `under` in them; None for a folder that is not there.

    Raises:
        DataMissing: pages that differ are not where `load` looks. Corrupt: one is not what its id says.
    """
    refs_a, refs_b = _leaves(a, under), _leaves(b, under)
    common = {r.id for r in refs_a} & {r.id for r in refs_b}
    return compare_entries(_unshared(a, refs_a, common, under), _unshared(b, refs_b, common, under))


def _leaves(side: tuple[PageId, Load] | None, under: bytes) -> list[PageRef]:
    if side is None:
        return []
    return leaves_under(list(leaf_refs(ListKind.LISTING, side[0], side[1])), under)


def _unshared(side: tuple[PageId, Load] | None, refs: list[PageRef], common: set[PageId], under: bytes) -> Entries:
    parts = []
    for ref in refs:
        if side is not None and ref.id not in common:
            entries = load_leaf(ListKind.LISTING, ref, side[1])
            assert isinstance(entries, Entries)
            parts.append(entries.under(under) if under else entries)
    return Entries.join(parts)


def compare_entries(a: Entries, b: Entries, *, known: Mask | None = None) -> FolderChanges:
    """What differs between two sets of entries, both ascending by path.

    Args:
        known: bool[len(b)], see `FolderChanges`; all by default. An unknown id differs from any other.
    """
    changed = changed_entries(a, b)
    was_at = align(b.names.take(changed), a.names)
    old, new = was_at[was_at >= 0], changed[was_at >= 0]
    added = changed[was_at < 0]
    removed = np.flatnonzero(align(a.names, b.names) < 0)
    told = np.ones(len(b), np.bool_) if known is None else known
    renamed = _renamed(a, b, added, removed, told)
    if len(renamed):
        removed = removed[~np.isin(removed, renamed[:, 0])]
        added = added[~np.isin(added, renamed[:, 1])]
    return FolderChanges(a, b, added, removed, np.stack([old, new], axis=1), renamed, told)


def _renamed(a: Entries, b: Entries, added: I64, removed: I64, known: Mask) -> I64:
    """Pairs of removed and added files with the same content. Empty files are all alike, which says nothing."""
    gone = removed[a.is_file[removed] & (a.sizes[removed] > 0)]
    came = added[b.is_file[added] & (b.sizes[added] > 0) & known[added]]
    if not len(gone) or not len(came):
        return np.zeros((0, 2), np.int64)
    where: dict[bytes, list[int]] = {}
    for i, name in zip(gone.tolist()[::-1], _ids(a.ids[gone])[::-1], strict=True):
        where.setdefault(name, []).append(i)
    pairs = [
        (where[name].pop(), j) for j, name in zip(came.tolist(), _ids(b.ids[came]), strict=True) if where.get(name)
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)
