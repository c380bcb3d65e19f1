"""`dvk diff`: what changed between two versions, or between one and the workspace.

    with diff(repo, ["data/train.csv"], a="v1.0") as result:
        path = result.paths[0]
        path.status, path.new_bytes
        path.table.rows.modified                       # a table that was named is compared row by row

Sides are Git's (`dvk.commands.diff_sides`). Paths are compared by their ids and sizes, folders page by page of their
listings, without reading data. Contents are compared where that was asked for: tables by rows and cells, files of
tensors by numbers; of what is not here, only the ranges that are needed come from the remote, and are not kept. What
fails for one path does not keep the others from being compared.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dvk.commands.diff_content import Contents, compare_files
from dvk.commands.diff_disk import OnDisk, look_at
from dvk.commands.diff_folder import FileChange, FileEntry, FolderChanges, compare_entries, compare_listings
from dvk.commands.diff_result import DiffResult, Item, PathDiff
from dvk.commands.diff_sides import Sides, Unit, choose_sides, find_units
from dvk.commands.diff_source import Opener
from dvk.commands.reader import Reader, from_here
from dvk.commands.repo import Repo
from dvk.commands.spec import Target, Version, not_tracked
from dvk.commands.tracked import file_entries
from dvk.errors import DataMissing, DvkError, NotFound
from dvk.events import OnEvent, ignore
from dvk.ids import FileId, PageId
from dvk.store.listing import Entries, Kind
from dvk.store.pages import Chunks, Load
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selection

if TYPE_CHECKING:
    from dvk.table.contract import ReadOptions, Source
    from dvk.table.options import CompareOptions


def diff(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    a: str | None = None,
    b: str | None = None,
    staged: bool = False,
    contents: bool = True,
    tables: bool = False,
    key: Sequence[str] = (),
    compare: CompareOptions | None = None,
    read: ReadOptions | None = None,
    remote: str | None = None,
    fetch: bool = True,
    on_event: OnEvent = ignore,
) -> DiffResult:
    """Compare two versions: `a` and `b`, `a` and the workspace, or the Git index and the workspace.

    The repository must stay open as long as rows are read from the result.

    Args:
        paths: tracked paths, parts of tracked folders, folders above them; everything by default.
        a, b: revisions; `a` alone may be a range `A..B` or `A...B`.
        staged: `a` (HEAD by default) with the Git index.
        contents: compare the content of files that are named, where they are tables or hold tensors.
        tables: compare the content of all changed tables and files of tensors, named or not, in folders too.
        key: the columns that identify a row; by default what `compare` or dvk.toml says.
        compare, read: everything else about tables.
        remote: where to read what is not here; without a name the default one, then the others.
        fetch: False: use no network.

    Raises:
        NotFound: no such revision, or a named path that neither side tracks. UsageError: it makes no sense as asked.
        DvkError: tables are to be compared and `dvk[table]` is not installed.
    """
    how = Contents(
        wanted=contents,
        tables=tables,
        key=tuple(key),
        compare=compare,
        read=read,
        cache=repo.workspace.common_dir,
    )
    sides = choose_sides(repo, a, b, staged=staged)
    units, failures = find_units(repo, sides, paths)
    out = DiffResult(sides.a_label, sides.b_label, failures=failures)
    try:
        reader = out._held.enter_context(Reader(repo, remote=remote, on_event=on_event))
        work = _Diff(repo, sides, Opener(repo, reader, fetch=fetch), how, out.failures, on_event)
        for unit in units:
            try:
                out.paths.append(work.one(unit))
            except DvkError as error:
                if error.kind in ("interrupted", "usage"):
                    raise
                out.failures.append(error)
        out.remote = reader.remote_name
    except BaseException:
        out.close()
        raise
    return out


def diff_pointers(
    repo: Repo,
    path: bytes,
    a: Pointer | None,
    b: Pointer | None,
    *,
    contents: bool,
    inner: bytes = b"",
    on_event: OnEvent = ignore,
) -> DiffResult:
    """Compare what two pointers of `path` stand for, from the local store alone; nothing is fetched.

    Args:
        inner: only this part of a folder.
        contents: compare tables and files of tensors too.
    """
    how = Contents(wanted=contents, tables=False, cache=repo.workspace.common_dir)
    out = DiffResult("old", "new")
    try:
        reader = out._held.enter_context(Reader(repo, on_event=on_event))
        sides = Sides(None, Version(repo, None), "old", "new", False)
        work = _Diff(repo, sides, Opener(repo, reader, fetch=False), how, out.failures, on_event)
        ends = [Target(path, inner, p, None) if p is not None else None for p in (a, b)]
        out.paths.append(work.one(Unit(path + b"/" + inner if inner else path, ends[0], ends[1], True)))
    except BaseException:
        out.close()
        raise
    return out


class _Diff:
    def __init__(
        self,
        repo: Repo,
        sides: Sides,
        opener: Opener,
        how: Contents,
        failures: list[DvkError],
        on_event: OnEvent,
    ) -> None:
        self.repo, self.sides, self.opener, self.how = repo, sides, opener, how
        self.failures, self.on_event = failures, on_event
        self.rules = repo.workspace.ignore_rules()
        self.selection = Selection.load(repo.state)

    def one(self, unit: Unit) -> PathDiff:
        """Compare one path."""
        a, b = unit.a, unit.b
        if a is not None and a.inner and not self._has(a):
            a = None
        if self.sides.b_is_disk and b is not None:
            return self._with_disk(unit, a, b)
        if b is not None and b.inner and not self._has(b):
            b = None
        if a is None and b is None:
            raise not_tracked(self.sides.b, unit.path)
        return self._versions(unit, a, b)

    # ------------------------------------------------------------ two versions

    def _has(self, target: Target) -> bool:
        try:
            return bool(len(self.opener.entries(target)))
        except NotFound:
            return False

    def _item(self, target: Target | None) -> Item | None:
        if target is None:
            return None
        pointer = target.pointer
        if not target.inner:
            files = pointer.files or 0 if pointer.is_dir else 1
            return Item(pointer.kind, pointer.size, files, pointer.id, pointer.exec)
        return _item_of(from_here(self.opener.entries(target), target.inner))

    def _versions(self, unit: Unit, a: Target | None, b: Target | None, *, on_disk: bool = False) -> PathDiff:
        out = PathDiff(unit.path, "changed", self._item(a), self._item(b))
        if out.a is None or out.b is None:
            out.status = "added" if out.a is None else "removed"
        elif out.a.kind != out.b.kind:
            out.status = "kind-changed"
        elif out.a.kind == "dir":
            out.files = self._folders_or_none(out, a, b)
            same = out.a.id is not None and out.a.id == out.b.id if out.files is None else not len(out.files)
            out.status = "unchanged" if same else "changed"
        elif out.a.kind == "link":
            out.status = "unchanged" if self._links_agree(a, b) else "changed"
        elif (out.a.id, out.a.exec, out.a.size) == (out.b.id, out.b.exec, out.b.size) and out.a.id is not None:
            out.status = "unchanged"
        if out.status != "changed" and self.how.tables and "dir" in (_kind(out.a), _kind(out.b)):
            out.files = self._folders(out, a if _kind(out.a) == "dir" else None, b if _kind(out.b) == "dir" else None)
        out.new_bytes = self._new_bytes(out, b)
        self._contents(unit, out, a, b, on_disk=on_disk)
        return out

    def _folders(self, out: PathDiff, a: Target | None, b: Target | None) -> FolderChanges:
        """What differs between the folders on both sides, one of which may be none."""
        if a is not None and b is not None and a.path == b.path:
            out.base = a.path
            if a.pointer.id == b.pointer.id:
                return compare_entries(Entries.empty(), Entries.empty())
            load: Load = self.repo.store.load_page
            try:
                return compare_listings((PageId(a.pointer.id), load), (PageId(b.pointer.id), load), under=a.inner)
            except DataMissing:
                return compare_entries(self.opener.entries(a), self.opener.entries(b))  # from wherever they are
        # What is tracked in a folder on one side may be tracked by itself on the other.
        out.base = out.path
        sides = [from_here(self.opener.entries(t), t.inner) if t is not None else Entries.empty() for t in (a, b)]
        return compare_entries(*sides)

    def _folders_or_none(self, out: PathDiff, a: Target | None, b: Target | None) -> FolderChanges | None:
        """The same; None where the lists are not to be had, and what the pointers say has to do."""
        try:
            return self._folders(out, a, b)
        except DataMissing as error:
            self.failures.append(error)
            return None

    def _links_agree(self, a: Target | None, b: Target | None) -> bool:
        assert a is not None and b is not None
        return self.opener.entries(a).targets == self.opener.entries(b).targets

    def _new_bytes(self, out: PathDiff, b: Target | None) -> int | None:
        if out.status in ("unchanged", "removed") or out.b is None:
            return 0
        if out.files is not None:
            return out.files.new_bytes
        if b is None or out.a is None or out.a.kind != out.b.kind:
            return out.b.size  # all of it
        if out.b.kind != "file" or out.b.id is None:
            return None
        now = self.repo.store.chunks_of(FileId(out.b.id), out.b.size)
        then = self.repo.store.chunks_of(FileId(out.a.id), out.a.size) if out.a.id else None
        return None if now is None or then is None else new_bytes(then, now)

    # ------------------------------------------------------------ a version and the workspace

    def _with_disk(self, unit: Unit, a: Target | None, b: Target) -> PathDiff:
        here = look_at(
            self.repo,
            b,
            lambda: self._before(a),
            self.rules,
            self.selection,
            on_event=self.on_event,
        )
        if here.entries is None or not here.kind:
            there = b if not b.inner or self._has(b) else None
            out = self._versions(unit, a, there, on_disk=bool(here.kind))
            if not here.kind and out.status == "unchanged":
                out.status = "missing" if here.was_here else "not-present"
            return out
        return self._disk(unit, a, b, here)

    def _before(self, a: Target | None) -> Entries:
        if a is None:
            return Entries.empty()
        return self.opener.entries(a) if a.pointer.is_dir else file_entries(a.pointer)

    def _disk(self, unit: Unit, a: Target | None, b: Target, here: OnDisk) -> PathDiff:
        entries = here.entries
        assert entries is not None
        out = PathDiff(unit.path, "changed", self._item(a), not_present=here.not_present)
        inner = b.inner if b.pointer.is_dir else b""
        own = from_here(entries, inner) if inner else entries
        out.b = _item_of(own)
        known = bool(here.known.all())
        if out.b is not None and out.b.kind == "file" and not known:
            out.b = Item("file", out.b.size, 1, None, out.b.exec)
        if out.b is None or out.a is None:
            out.status = "removed" if out.b is None else "added"
            out.new_bytes = 0 if out.b is None else out.b.size
        elif out.a.kind != out.b.kind:
            out.status = "kind-changed"
        elif out.b.kind == "dir":
            assert a is not None
            if a.path == b.path:
                out.base = b.path
                out.files = compare_entries(self._before(a), entries, known=here.known)
            else:
                out.base = out.path
                out.files = compare_entries(from_here(self._before(a), a.inner), own, known=here.known)
            out.status = "changed" if len(out.files) else "unchanged"
            out.new_bytes = out.files.new_bytes
        elif out.a.id is not None and (out.a.id, out.a.exec) == (out.b.id, out.b.exec):
            out.status, out.new_bytes = "unchanged", 0
        self._contents(unit, out, a, b, on_disk=True)
        return out

    # ------------------------------------------------------------ contents

    def _contents(
        self, unit: Unit, out: PathDiff, a: Target | None, b: Target | None, *, on_disk: bool = False
    ) -> None:
        """Compare what files hold, where that was asked for; a failure is noted, and the sizes stand."""
        if not self.how.wanted or out.status in ("unchanged", "missing", "not-present"):
            return
        if "file" in (_kind(out.a), _kind(out.b)) and (unit.named or self.how.tables):
            self._file(out, a, b, on_disk=on_disk, named=unit.named)
        if out.files is not None and self.how.tables:
            for row in out.files.rows():
                inside = self._inside(out, row, a, b, on_disk=on_disk)
                if inside is not None:
                    out.inside.append(inside)

    def _file(self, out: PathDiff, a: Target | None, b: Target | None, *, on_disk: bool, named: bool) -> None:
        opened: list[Source] = []
        try:
            for item, target, disk in ((out.a, a, False), (out.b, b, on_disk)):
                if item is not None and item.kind == "file" and target is not None:
                    opened.append(self._open(target, item, on_disk=disk))
            sides = (
                opened[0] if _kind(out.a) == "file" else None,
                opened[-1] if _kind(out.b) == "file" else None,
            )
            declared = self.repo.workspace.config.table_key(out.path) or ()
            compare_files(out, sides[0], sides[1], self.how, declared=declared, named=named)
            if out.new_bytes is None and sides[0] is not None and sides[1] is not None:
                then, now = sides[0].chunks(), sides[1].chunks()
                out.new_bytes = None if then is None or now is None else new_bytes(then, now)
        except DvkError as error:
            if error.kind in ("interrupted", "usage"):
                raise
            self.failures.append(error)
        finally:
            if out.table is None:  # a table that was compared closes its sources
                for source in opened:
                    source.close()

    def _open(self, target: Target, item: Item, *, on_disk: bool) -> Source:
        # What was never asked for here is in the folder and not on disk.
        if on_disk and os.path.lexists(os.path.join(self.repo.workspace.top, target.full)):
            return self.opener.disk(target.full, known=(item.id, item.size) if item.id is not None else None)
        return self.opener.version(target)

    def _inside(
        self, out: PathDiff, row: FileChange, a: Target | None, b: Target | None, *, on_disk: bool
    ) -> PathDiff | None:
        """The contents of one file of a folder; None where they are not of a kind that is compared."""
        item_a, item_b = _file_item(row.a), _file_item(row.b)
        if row.change == "renamed" or (item_a is None and item_b is None):
            return None
        status = "added" if item_a is None else "removed" if item_b is None else "changed"
        found = PathDiff(out.base + b"/" + row.path, status, item_a, item_b)
        self._file(found, _part(a, found.path), _part(b, found.path), on_disk=on_disk, named=False)
        return found if found.table is not None or found.tensors is not None else None


def _part(folder: Target | None, path: bytes) -> Target | None:
    """What a tracked folder has at `path`, from the top."""
    if folder is None:
        return None
    return Target(folder.path, path[len(folder.path) + 1 :], folder.pointer, folder.rev, folder.commit)


def _file_item(entry: FileEntry | None) -> Item | None:
    if entry is None or entry.kind not in ("file", "exec"):
        return None
    return Item("file", entry.size, 1, entry.id, exec=entry.kind == "exec")


def new_bytes(then: Chunks, now: Chunks) -> int:
    """The bytes of chunks that only the second recipe has, each once."""
    known = {row.tobytes() for row in then.ids}
    fresh = {row.tobytes(): int(n) for row, n in zip(now.ids, now.lengths.tolist(), strict=True)}
    return sum(n for name, n in fresh.items() if name not in known)


def _kind(item: Item | None) -> str:
    return "" if item is None else item.kind


def _item_of(entries: Entries) -> Item | None:
    """What entries that are named from here on amount to."""
    if not len(entries):
        return None
    if len(entries) > 1 or entries.names[0]:
        return Item("dir", entries.total_bytes, entries.files)
    kind = Kind(int(entries.kinds[0]))
    if kind is Kind.EMPTYDIR:
        return Item("dir", 0, 0)
    size = int(entries.sizes[0])
    if kind is Kind.LINK:
        return Item("link", size, 0, None)
    return Item("file", size, 1, entries.ids[0].tobytes(), exec=kind is Kind.EXEC)
