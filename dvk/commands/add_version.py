"""The new version of one path: what is on disk goes into the store, what is not here stays as it was.

A file is cut and stored when the stat cache does not know it, or when neither the store nor a remote is known to hold
it. Of a folder only what changed is read; files outside of what this worktree asked for keep their entries, and a path
inside a folder needs only the pages around it. The pointer that comes of it is written by `dvk.commands.add`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.commands.add_targets import Target, read_pointer
from dvk.commands.folder import Part, changed_entries, compare, gone_names, plan_part
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import (
    Look,
    folder_pointer,
    in_the_way,
    join_path,
    look,
    not_here,
    pointer_entries,
    prefixed,
    prefixed_names,
    read_parts,
)
from dvk.errors import DataMissing, NotFound, Refused, one_or_many
from dvk.events import Note, OnEvent
from dvk.ids import ID_BYTES, PageId
from dvk.store.ingest import ingest
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, Names, same_rows, show, windows
from dvk.store.pages import PageRef
from dvk.store.pagewriter import edit_listing, write_listing
from dvk.store.writer import Writer
from dvk.workspace.align import align
from dvk.workspace.ignore import IgnoreRules
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected, Selection, normal_prefixes
from dvk.workspace.source import SourceFiles
from dvk.workspace.statcache import Clock, StatCache


class Added(Struct, frozen=True):
    """One tracked path after an add."""

    path: bytes
    kind: str  #: "file" or "dir"
    size: int  #: bytes of content, of a folder all its files together
    files: int
    changed: bool  #: whether the pointer is another one now
    stored_bytes: int  #: what the store grew by, encoded
    new_bytes: int  #: the same before encoding
    added: int = 0  #: files, of a folder
    modified: int = 0
    removed: int = 0
    not_present: int = 0  #: files outside of what this worktree asked for; they stay in the folder
    ignored: int = 0  #: left out by .dvkignore


class NewVersion(Struct, frozen=True):
    """A tracked path whose data is on its way; the pointer is not written yet."""

    target: Target
    pointer: Pointer
    added: Added
    cache: StatCache | None
    select: Selected | None = None  #: what of the folder is asked for from now on, where that is news


class Versions:
    """Makes new versions; what they need is written through `writer`, which the caller flushes.

    Args:
        keep, delete: what to do about files of a folder that are not here when it is not known whether they were ever
            asked for; neither: refuse.
    """

    def __init__(
        self,
        repo: Repo,
        writer: Writer,
        rules: IgnoreRules,
        clock: Clock,
        *,
        keep: bool,
        delete: bool,
        on_event: OnEvent,
    ) -> None:
        self.repo, self.ws, self.writer, self.rules, self.clock = repo, repo.workspace, writer, rules, clock
        self.keep, self.delete, self.on_event = keep, delete, on_event
        self.selection = Selection.load(repo.state)
        self._listless: set[bytes] = set()  # folders of which the list of the recorded version is not here

    def make(self, t: Target) -> NewVersion:
        """Store what is on disk at `t` and say what its pointer has to be.

        Raises:
            Refused, NotFound, DataMissing: it cannot be a version.
            StorageError, StorageFull, ChangedWhileRead: of a file or of the store.
        """
        return self._version(t, self._look(t))  # held by nobody else, so that it can go

    def _look(self, t: Target) -> Look:
        where = join_path(t.path, t.inner)
        seen = look(self.repo.root_fd, where, self.repo.state, self.rules, inside=t.inner, on_event=self.on_event)
        if seen.scan.problems:
            raise one_or_many(
                f"{len(seen.scan.problems):,} things in {show(where)} cannot be stored; nothing was recorded",
                seen.scan.problems,
            )
        return seen

    def _version(self, t: Target, seen: Look) -> NewVersion:
        if t.pointer is not None and not t.inner and seen.kind and seen.kind != t.pointer.kind:
            raise in_the_way(t.path, "folder" if seen.kind == "dir" else "file")
        if t.inner:
            return self._inside(t, seen)
        if seen.kind == "file":
            return self._file(t, seen)
        return self._folder(t, seen)

    def _take(self, path: bytes, seen: Look, trusted: Entries | None) -> tuple[Look, int, int]:
        """Store what is not stored: files whose id is unknown, and known ones that no version vouches for."""
        before = (self.writer.written.encoded_bytes, self.writer.written.new_bytes)
        unsure = np.flatnonzero(seen.is_file & seen.known)
        if trusted is not None and len(unsure) and self._on_a_remote(path):
            at = align(seen.scan.names, trusted.names)[unsure]
            same = at >= 0
            same[same] = same_rows(trusted.ids, at[same], seen.ids, unsure[same])
            unsure = unsure[~same]
        index = np.sort(np.concatenate([seen.unknown(), self._not_held(seen, unsure)]))
        if len(index):
            seen = self._ingest(path, seen, index)
        after = self.writer.written
        return seen, after.encoded_bytes - before[0], after.new_bytes - before[1]

    def _not_held(self, seen: Look, rows: I64) -> I64:
        """Those of `rows` whose content is not in the store."""
        holds, sizes = self.repo.store.own.holds, seen.scan.stats.sizes
        runs = [rows[run] for run in windows(len(rows))]
        return np.concatenate([rows[:0], *(some[~holds(seen.ids[some], sizes[some])] for some in runs)])

    def _on_a_remote(self, path: bytes) -> bool:
        """Whether a remote is known to hold the version that the pointer names, so that the store need not."""
        pointer = read_pointer(self.ws, path)
        return pointer is not None and root_of(pointer).text in self.repo.confirmed(self.ws.config.remotes())

    def _ingest(self, path: bytes, seen: Look, index: I64) -> Look:
        with SourceFiles(self.repo.root_fd, seen.path, seen.scan, index) as source:
            ids = ingest(
                self.writer,
                source,
                seen.scan.stats.sizes[index],
                profile=self.ws.config.profile_for(path),
                on_event=self.on_event,
            )
        return seen.with_ids(index, ids)

    def _file(self, t: Target, seen: Look) -> NewVersion:
        trusted = pointer_entries(self.repo.store, t.pointer) if t.pointer else None
        seen, stored, new = self._take(t.path, seen, trusted)
        size = int(seen.scan.stats.sizes[0])
        source = t.pointer.source if t.pointer and t.pointer.id == seen.ids[0].tobytes() else ()
        executable = int(seen.scan.kinds[0]) == Kind.EXEC
        pointer = Pointer("file", seen.ids[0].tobytes(), size, exec=executable, source=source)
        added = Added(t.path, "file", size, 1, pointer != t.pointer, stored, new)
        cache = StatCache.of(seen.scan, seen.ids, clock=self.clock, root_id=pointer.id)
        return NewVersion(t, pointer, added, cache)

    def _folder(self, t: Target, seen: Look) -> NewVersion:
        selected = self._selected(t, seen)
        unchanged = selected.everything and _in_step(seen, t.pointer)
        part = Part(Entries.empty(), _all(seen), selected) if unchanged else self._part(t, seen, selected)
        seen, stored, new = self._take(t.path, seen, seen.entries() if unchanged else part.before)
        entries = _on_disk(seen, b"", part)
        before = entries if unchanged else part.before
        whole = part.selected.everything
        root = write_listing(entries, self.writer.add_page) if whole else self._edit(t, part, entries)
        pointer = folder_pointer(root, t.pointer)
        rebuilt = t.path in self._listless and self._check_rebuilt(t, pointer)
        added = Added(
            t.path,
            "dir",
            root.total_bytes,
            root.files,
            t.pointer is None or pointer.id != t.pointer.id,
            stored,
            new,
            *compare(entries if rebuilt else before, entries),
            not_present=root.files - entries.files,
            ignored=seen.scan.ignored,
        )
        cache = StatCache.of(
            seen.scan, seen.ids, clock=self.clock, root_id=bytes(root.id) if whole else bytes(ID_BYTES)
        )
        return NewVersion(t, pointer, added, cache, select=part.selected)

    def _inside(self, t: Target, seen: Look) -> NewVersion:
        """One file or subfolder of a tracked folder: only the pages around it are needed."""
        assert t.pointer is not None
        if not t.pointer.is_dir:
            raise Refused(
                "a file is tracked under this name, so nothing can lie inside it",
                subject=show(join_path(t.path, t.inner)),
            )
        selected = self._selected(t, seen)
        part = self._part(t, seen, selected)
        if not seen.kind and not len(part.before):
            raise self._nothing(t)
        seen, stored, new = self._take(t.path, seen, None)
        entries = _on_disk(seen, t.inner, part)
        root = self._edit(t, part, entries)
        pointer = folder_pointer(root, t.pointer)
        added = Added(
            t.path,
            "dir",
            root.total_bytes,
            root.files,
            pointer.id != t.pointer.id,
            stored,
            new,
            *compare(part.before, entries),
            ignored=seen.scan.ignored,
        )
        recorded = self.selection.get(t.path) is not None
        return NewVersion(t, pointer, added, None, select=part.selected if recorded else None)

    def _selected(self, t: Target, seen: Look) -> Selected:
        """What of the folder this worktree asked for; decides whether a file that is not here was deleted."""
        recorded = self.selection.get(t.path)
        if t.pointer is None or self.delete:
            return Selected(None)
        if recorded is not None:
            return recorded
        if not t.inner and _in_step(seen, t.pointer):
            return Selected(None)
        try:
            known = read_parts(self.repo.store, PageId(t.pointer.id), (t.inner,)).names
        except DataMissing as error:
            if not t.inner:
                self._listless.add(t.path)
                return Selected(None)
            raise not_here(join_path(t.path, t.inner), error) from error
        here = _names_on_disk(seen, t.inner)
        missing = np.flatnonzero(align(known, here) < 0)
        if not len(missing) or (t.inner and not seen.kind):
            return Selected(None)
        if self.keep:
            return Selected(normal_prefixes(here))
        raise Refused(
            f"{len(missing):,} of its files are not here ({show(known[int(missing[0])])}, ...), and it is not recorded "
            "whether they were ever asked for",
            subject=show(join_path(t.path, t.inner)),
            hint="--keep-missing leaves them in the folder, --delete-missing takes them out of it",
        )

    def _part(self, t: Target, seen: Look, selected: Selected) -> Part:
        """The entries of the version that the pointer stands for, as far as they were asked for."""
        names, kinds = _names_on_disk(seen, t.inner), seen.scan.kinds
        if _is_empty_dir(seen):
            kinds = np.array([Kind.EMPTYDIR], np.uint8)
        if t.pointer is None:
            return Part(Entries.empty(), _all(seen), selected)
        try:
            if t.path in self._listless:
                raise DataMissing("the list of its files is not here")
            return plan_part(self.repo.store, t.path, t.pointer, t.inner, names, kinds, selected)
        except DataMissing as error:
            if not t.inner and selected.everything:
                self._listless.add(t.path)
                return Part(Entries.empty(), _all(seen), selected)
            raise error if error.hint else not_here(join_path(t.path, t.inner), error) from error

    def _check_rebuilt(self, t: Target, pointer: Pointer) -> bool:
        """Whether a folder whose list was not here is on disk as it was recorded.

        Raises:
            DataMissing: it is not, and nobody asked for all of it: what is not on disk may not have been deleted.
        """
        if t.pointer is not None and pointer.id == t.pointer.id:
            return True
        recorded = self.selection.get(t.path)
        if not self.delete and (recorded is None or not recorded.everything):
            lost = DataMissing("the list of its files is not here, and on disk is another version")
            raise not_here(t.path, lost) from lost
        what = "the list of its last version is not here, so what was changed cannot be counted"
        self.on_event(Note(what, subject=show(t.path)))
        return False

    def _edit(self, t: Target, part: Part, entries: Entries) -> PageRef:
        """A new version of a folder of which only a part is here, or only a part is meant."""
        assert t.pointer is not None
        try:
            return edit_listing(
                PageId(t.pointer.id),
                self.repo.store.load_page,
                self.writer.add_page,
                put=entries.take(changed_entries(part.before, entries)),
                remove=list(gone_names(part.before, entries)),
            )
        except DataMissing as error:
            raise not_here(join_path(t.path, t.inner), error) from error

    def _nothing(self, t: Target) -> NotFound:
        """The error for a path in a folder where nothing is on disk, and nothing that was deleted either."""
        assert t.pointer is not None
        path = show(join_path(t.path, t.inner))
        if len(read_parts(self.repo.store, PageId(t.pointer.id), (t.inner,))):
            return NotFound(
                "it is in the folder and was never asked for here, so that nothing says it was deleted",
                subject=path,
                hint=f"`dvk rm {path}` takes it out of the folder, `dvk pull {path}` brings it",
            )
        return NotFound("there is no such file or folder", subject=path)


def _in_step(seen: Look, pointer: Pointer | None) -> bool:
    """Whether the stat cache knows that the whole folder is what the pointer says."""
    return pointer is not None and seen.root_id == pointer.id


def _all(seen: Look) -> npt.NDArray[np.bool_]:
    return np.ones(len(_names_on_disk(seen, b"")), np.bool_)


def _is_empty_dir(seen: Look) -> bool:
    return seen.kind == "dir" and not len(seen.scan)


def _names_on_disk(seen: Look, inner: bytes) -> Names:
    """What is on disk, with names as the tracked folder has them; an empty part of a folder is an entry itself."""
    if not inner:
        return seen.scan.names
    return Names.of([inner]) if _is_empty_dir(seen) else prefixed_names(seen.scan.names, inner)


def _on_disk(seen: Look, inner: bytes, part: Part) -> Entries:
    """The entries that are on disk, with names as the tracked folder has them."""
    if inner and _is_empty_dir(seen):
        entries = Entries.of([(inner, Kind.EMPTYDIR, 0, bytes(ID_BYTES), b"")])
    else:
        entries = prefixed(seen.entries(), inner) if inner else seen.entries()
    return entries if part.keep.all() else entries.take(np.flatnonzero(part.keep))
