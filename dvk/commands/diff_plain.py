"""`dvk diff --no-index A B`: two plain files, or two folders, that no repository has to know.

    with diff_files("old.parquet", "new.parquet", key=["id"]) as result:
        result.paths[0].table.rows

So that anybody can try it, and for files that come from elsewhere. Without a store nothing is known of what both have
in common, so tables are read as a whole; of two folders only files of the same size are read, to compare them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dvk.commands.diff_content import Contents, compare_files
from dvk.commands.diff_folder import FileChange, FileEntry, FolderChanges, Mask, compare_entries
from dvk.commands.diff_result import DiffResult, Item, PathDiff
from dvk.commands.tracked import Look, read_unknown
from dvk.errors import DvkError, NotFound, Refused, StorageError, one_or_many
from dvk.events import OnEvent, ignore
from dvk.ids import ID_BYTES
from dvk.store.listing import Kind
from dvk.store.names import show
from dvk.table.source import FileSource
from dvk.workspace.align import align
from dvk.workspace.scan import scan_folder

if TYPE_CHECKING:
    from dvk.table.contract import ReadOptions
    from dvk.table.options import CompareOptions

_STEP_BYTES = 8 << 20


def diff_files(
    a: bytes | str,
    b: bytes | str,
    *,
    contents: bool = True,
    tables: bool = False,
    key: Sequence[str] = (),
    compare: CompareOptions | None = None,
    read: ReadOptions | None = None,
    on_event: OnEvent = ignore,
) -> DiffResult:
    """Compare two files, or two folders. Nothing is written. Arguments as of `dvk.commands.diff.diff`.

    Raises:
        NotFound: one does not exist. Refused: one is a folder and the other a file, or something else altogether.
        TableError: two files that are tables by name cannot be compared.
    """
    left, right = os.fsencode(a), os.fsencode(b)
    how = Contents(wanted=contents, tables=tables, key=tuple(key), compare=compare, read=read)
    kinds = [_kind(path) for path in (left, right)]
    if kinds[0] != kinds[1]:
        raise Refused(
            f"is a {kinds[1]}, and {show(left)} is a {kinds[0]}",
            subject=show(right),
            hint="name two files or two folders",
        )
    out = DiffResult(show(left), show(right))
    try:
        if kinds[0] == "file":
            out.paths.append(_files(left, right, how))
        else:
            _folders(out, left, right, how, on_event)
    except BaseException:
        out.close()
        raise
    return out


def _kind(path: bytes) -> str:
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise NotFound("there is no such file or folder", subject=show(path)) from error
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", subject=show(path)) from error
    if stat.S_ISDIR(found.st_mode):
        return "folder"
    if not stat.S_ISREG(found.st_mode):
        raise Refused("is neither a file nor a folder", subject=show(path))
    return "file"


def _files(left: bytes, right: bytes, how: Contents) -> PathDiff:
    a = FileSource(left)
    try:
        b = FileSource(right)
    except BaseException:
        a.close()
        raise
    out = PathDiff(right, "changed", Item("file", a.size, 1), Item("file", b.size, 1))
    try:
        if _same_bytes(a, b):
            out.status, out.new_bytes = "unchanged", 0
        elif how.wanted:
            compare_files(out, a, b, how, declared=(), named=True)
    finally:
        if out.table is None:
            a.close()
            b.close()
    return out


def _same_bytes(a: FileSource, b: FileSource) -> bool:
    if a.size != b.size:
        return False
    steps = ((at, min(_STEP_BYTES, a.size - at)) for at in range(0, a.size, _STEP_BYTES))
    return all(a.read_at(at, n) == b.read_at(at, n) for at, n in steps)


def _folders(out: DiffResult, left: bytes, right: bytes, how: Contents, on_event: OnEvent) -> None:
    changes, totals = _compare_folders(left, right, on_event)
    path = PathDiff(right, "changed" if len(changes) else "unchanged", *totals, new_bytes=changes.new_bytes)
    path.files, path.base = changes, right
    out.paths.append(path)
    if not (how.wanted and how.tables):
        return
    for row in changes.rows():
        try:
            inside = _inside(left, right, row, how)
        except DvkError as error:
            if error.kind in ("interrupted", "usage"):
                raise
            out.failures.append(error)
            continue
        if inside is not None:
            path.inside.append(inside)


def _inside(left: bytes, right: bytes, row: FileChange, how: Contents) -> PathDiff | None:
    a, b = _item(row.a), _item(row.b)
    if row.change == "renamed" or (a is None and b is None):
        return None
    status = "added" if a is None else "removed" if b is None else "changed"
    found = PathDiff(os.path.join(right, row.path), status, a, b)
    opened: list[FileSource | None] = []
    try:
        for top, item in zip((left, right), (a, b), strict=True):
            opened.append(FileSource(os.path.join(top, row.path)) if item is not None else None)
        compare_files(found, opened[0], opened[1], how, declared=(), named=False)
    finally:
        if found.table is None:
            for source in opened:
                if source is not None:
                    source.close()
    return found if found.table is not None or found.tensors is not None else None


def _item(entry: FileEntry | None) -> Item | None:
    if entry is None or entry.kind not in ("file", "exec"):
        return None
    return Item("file", entry.size, 1, entry.id, exec=entry.kind == "exec")


def _compare_folders(left: bytes, right: bytes, on_event: OnEvent) -> tuple[FolderChanges, tuple[Item, Item]]:
    looks, handles = [], []
    try:
        for path in (left, right):
            parent, name = os.path.split(os.path.realpath(path))
            handles.append(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            looks.append(_look(handles[-1], name, on_event))
        doubtful = _doubtful(*looks), _doubtful(looks[1], looks[0])
        looks = [
            read_unknown(fd, look, np.flatnonzero(index), on_event=on_event)
            for fd, look, index in zip(handles, looks, doubtful, strict=True)
        ]
    finally:
        for fd in handles:
            os.close(fd)
    entries = [look.entries() for look in looks]
    totals = [Item("dir", e.total_bytes, e.files) for e in entries]
    return compare_entries(entries[0], entries[1], known=looks[1].known), (totals[0], totals[1])


def _look(fd: int, name: bytes, on_event: OnEvent) -> Look:
    scan = scan_folder(fd, name, on_event=on_event)
    if scan.problems:
        raise one_or_many(f"{len(scan.problems):,} things in {show(name)} cannot be read", scan.problems)
    bare = (scan.kinds == Kind.LINK) | (scan.kinds == Kind.EMPTYDIR)
    return Look(name, "dir", scan, bare, np.zeros((len(scan), ID_BYTES), np.uint8))


def _doubtful(one: Look, other: Look) -> Mask:
    """bool[n]: files of `one` whose content decides: the same name and size on both sides, or maybe a renamed one."""
    at = align(one.scan.names, other.scan.names)
    there = at >= 0
    same = there.copy()
    same[there] = one.scan.stats.sizes[there] == other.scan.stats.sizes[at[there]]
    alone = align(other.scan.names, one.scan.names) < 0
    same |= ~there & (one.scan.stats.sizes > 0) & np.isin(one.scan.stats.sizes, other.scan.stats.sizes[alone])
    return np.asarray(same & one.is_file)
