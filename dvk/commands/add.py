"""`dvk add`: data on disk becomes chunks in the store and a pointer in the work tree, staged for Git.

The user's files are only read. Order: data durable, then pages, then the pointer, then Git: a kill leaves at most
data that nothing refers to. A folder is scanned whole and compared with the stat cache; only what changed is read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dvk.commands.folder import Part, changed_entries, compare, gone_names, plan_part
from dvk.commands.placed import Placed, bare
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import (
    Look,
    folder_pointer,
    in_the_way,
    is_changed,
    join_path,
    kind_on_disk,
    look,
    not_here,
    pointer_entries,
    prefixed,
    prefixed_names,
    read_parts,
)
from dvk.errors import Busy, DataMissing, DvkError, NotFound, Refused, UsageError, one_or_many
from dvk.events import Note, OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.ingest import ingest
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, Names, show
from dvk.store.pages import PageRef
from dvk.store.pagewriter import edit_listing, write_listing
from dvk.store.writer import Writer
from dvk.workspace.align import align
from dvk.workspace.pointer import Pointer, pointer_name
from dvk.workspace.selection import Selected, Selection, edit, normal_prefixes
from dvk.workspace.source import SourceFiles
from dvk.workspace.statcache import Clock, StatCache, read_clock

_RETRIES = 5
_ASK_EACH = 3  # up to here Git is asked for each path alone, and its whole index need not be listed


@dataclass(frozen=True, slots=True)
class Added:
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


@dataclass(slots=True)
class AddResult:
    """What an add did."""

    paths: list[Added] = field(default_factory=list)
    staged: int = 0  #: pointers that were put into the Git index
    not_staged: str = ""  #: why staging did not happen although the pointers are written
    overruled: dict[bytes, str] = field(default_factory=dict)  #: pointers that a Git ignore rule would have kept out
    dry_run: bool = False


def add(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    update: bool = False,
    dry_run: bool = False,
    stage: bool = True,
    keep_missing: bool = False,
    delete_missing: bool = False,
    on_event: OnEvent = ignore,
) -> AddResult:
    """Record what is on disk at `paths`; with `update`, at all tracked paths that changed.

    Args:
        dry_run: do all the work and keep nothing.
        stage: put the pointers into the Git index.
        keep_missing, delete_missing: what to do about files of a folder that are not here when it is not known
            whether they were ever asked for.

    Raises:
        NotFound, Refused, UsageError: a path that cannot be added; nothing was recorded.
        StorageError, StorageFull, ChangedWhileRead: of a file or of the store; nothing was recorded.
    """
    if bool(paths) == update and not (paths and update):
        raise UsageError("nothing to add", hint="name a file or folder, or use -u for all tracked paths that changed")
    with _Add(repo, dry_run, keep_missing, delete_missing, on_event) as run:
        targets = run.targets(paths, update=update)
        with repo.writing():
            return run.run(targets, stage=stage)


@dataclass(slots=True)
class _Target:
    """What to add: a tracked path, or a path inside a tracked folder."""

    path: bytes  #: the tracked path
    inner: bytes = b""  #: inside a tracked folder
    pointer: Pointer | None = None


@dataclass(slots=True)
class _Done:
    """A tracked path whose data is on its way; the pointer is not written yet."""

    target: _Target
    pointer: Pointer
    added: Added
    cache: StatCache | None
    select: Selected | None = None  #: what of the folder is asked for from now on, where that is news
    old: Pointer | None = None  #: what this one was made from


class _Add:
    def __init__(self, repo: Repo, dry_run: bool, keep: bool, delete: bool, on_event: OnEvent) -> None:
        self.repo, self.dry_run, self.keep, self.delete = repo, dry_run, keep, delete
        self.on_event = on_event
        self.ws = repo.workspace
        self.rules = self.ws.ignore_rules()
        self.selection = Selection.load(repo.state)
        self._placed = Placed(repo.state).read()
        self.writer: Writer
        self._listless: set[bytes] = set()  # folders of which the list of the recorded version is not here

    def __enter__(self) -> _Add:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    # ------------------------------------------------------------ what to add

    def targets(self, paths: Sequence[bytes | str], *, update: bool) -> list[_Target]:
        """The tracked paths that the arguments mean, each once, those inside another left out."""
        found: dict[tuple[bytes, bytes], _Target] = {}
        problems: list[DvkError] = []
        for arg in paths:
            try:
                target = self._target(self.ws.locate(arg, cwd=self.repo.cwd))
                found[target.path, target.inner] = target
            except DvkError as error:
                problems.append(error)
        if update:
            for path, pointer in self.ws.worktree_pointers():
                if isinstance(pointer, DvkError):
                    problems.append(pointer)
                elif kind_on_disk(self.repo.root_fd, path) and not self._is_behind(path, pointer):
                    found.setdefault((path, b""), _Target(path, b"", pointer))
        if problems:
            raise one_or_many("some paths cannot be added; nothing was recorded", problems)
        out: list[_Target] = []
        whole = {path for path, inner in found if not inner}
        for (path, inner), target in sorted(found.items()):
            above = {path} | {path[:i] for i in range(len(path)) if path[i : i + 1] == b"/"}
            if not (inner and path in whole) and not (above - {path}) & whole:
                out.append(target)
        self._check_owners(out)
        return out

    def _is_behind(self, path: bytes, pointer: Pointer) -> bool:
        """Whether Git moved the pointer on and data did not follow: to record that would take the move back."""
        put = self._placed.get(path)
        if put is None or put == bare(pointer):
            return False
        seen = look(self.repo.root_fd, path, self.repo.state, self.rules)
        selected = self.selection.get(path) if put.is_dir else None
        behind = not is_changed(self.repo.store, self.repo.root_fd, seen, put, selected)
        if behind:
            self.on_event(
                Note(
                    "did not follow its pointer, which Git moved, so it is left out",
                    subject=show(path),
                    hint=f"`dvk checkout {show(path)}` brings it in step, `dvk add {show(path)}` records what is there",
                )
            )
        return behind

    def _target(self, path: bytes) -> _Target:
        owner = self.ws.owner_of(path)
        if owner is not None and owner[1]:
            return _Target(owner[0], owner[1], self.ws.read_pointer(owner[0]))
        pointer = self._pointer(path)
        if not kind_on_disk(self.repo.root_fd, path):
            if pointer is not None:
                raise NotFound(
                    "it is tracked and its data is not here",
                    subject=show(path),
                    hint=f"`dvk checkout {show(path)}` brings it back, `dvk rm {show(path)}` stops tracking it",
                )
            raise NotFound("there is no such file or folder", subject=show(path))
        return _Target(path, b"", pointer)

    def _check_owners(self, targets: list[_Target]) -> None:
        """One path, one owner: data must not be tracked by Git as well, nor pointers lie inside it."""
        git = self.ws.git
        if git is None or not git.has_program:
            return
        problems: list[DvkError] = []
        everything = sorted(git.tracked_under(b"")) if len(targets) > _ASK_EACH else None
        for t in targets:
            where = join_path(t.path, t.inner)
            tracked = git.tracked_under(where) if everything is None else _at_or_below(everything, where)
            if tracked:
                shown = ", ".join(show(p) for p in tracked[:3]) + (", ..." if len(tracked) > 3 else "")
                problems.append(
                    Refused(
                        f"Git tracks {len(tracked):,} of its files ({shown})",
                        subject=show(where),
                        hint=f"`git rm -r --cached {show(where)}` hands it over to dvk, the files stay",
                    )
                )
        if problems:
            raise one_or_many("some paths belong to Git; nothing was recorded", problems)

    # ------------------------------------------------------------ doing it

    def run(self, targets: list[_Target], *, stage: bool) -> AddResult:
        """Data first, then pointers, then Git."""
        result = AddResult(dry_run=self.dry_run)
        clock = self._clock()
        with Writer(self.repo.store, dry_run=self.dry_run) as self.writer:
            done = [self._one(t, clock) for t in targets]
            self.writer.flush()
            if self.dry_run:
                result.paths = [d.added for d in done]
                return result
            with self.ws.lock():
                if not self.delete:
                    self._select(done)
                # Before its pointer tells Git's users that the data is dvk's: a kill must not leave it to `git add -A`.
                self.ws.hide(add=[d.target.path for d in done])
                for i, d in enumerate(done):
                    done[i] = self._write_pointer(d, clock)
                if self.delete:
                    self._select(done)
        for d in done:
            if d.cache is not None:
                d.cache.save(self.repo.state, d.target.path)
        Placed(self.repo.state).update({d.target.path: d.pointer for d in done})
        result.paths = [d.added for d in done]
        if stage:
            self._stage(result, [pointer_name(d.target.path) for d in done])
        return result

    def _clock(self) -> Clock:
        return read_clock(self.repo.state)

    def _select(self, done: Sequence[_Done]) -> None:
        """Record what is asked for, before the pointer says so: a kill must not make a deletion of what is not here.

        With --delete-missing after it: a kill must not turn a question into an answer.
        """
        news = [(d.target.path, d.select) for d in done if d.select and d.select != self.selection.get(d.target.path)]
        if news:
            with edit(self.repo.state) as selection:
                for path, selected in news:
                    for prefix in (b"",) if selected.prefixes is None else selected.prefixes:
                        selection.add(path, prefix)

    def _write_pointer(self, d: _Done, clock: Clock) -> _Done:
        """Write the pointer, unless another process changed it since it was read: then start over from that."""
        for _ in range(_RETRIES):
            now = self._pointer(d.target.path)
            if now == d.old:
                if d.pointer != now:
                    self.ws.write_pointer(d.target.path, d.pointer)
                return d
            d = self._one(_Target(d.target.path, d.target.inner, now), clock)
            self.writer.flush()
        raise Busy(
            "other processes keep changing this pointer", subject=show(d.target.path), hint="run the command again"
        )

    def _pointer(self, path: bytes) -> Pointer | None:
        try:
            return self.ws.read_pointer(path)
        except NotFound:
            return None

    def _stage(self, result: AddResult, pointers: list[bytes]) -> None:
        if self.ws.git is None:
            result.not_staged = "this is no Git repository"
            return
        try:
            result.overruled = self.ws.git.stage(pointers)
            result.staged = len(pointers)
        except Busy as error:
            result.not_staged = error.message
        for path, rule in result.overruled.items():
            self.on_event(
                Note(
                    f"a Git ignore rule would have kept this pointer out ({rule}); it was staged by force",
                    subject=show(path),
                )
            )

    def _one(self, t: _Target, clock: Clock) -> _Done:
        old = t.pointer
        where = join_path(t.path, t.inner)
        seen = look(self.repo.root_fd, where, self.repo.state, self.rules, on_event=self.on_event)
        if seen.scan.problems:
            raise one_or_many(
                f"{len(seen.scan.problems):,} things in {show(where)} cannot be stored; nothing was recorded",
                seen.scan.problems,
            )
        if t.pointer is not None and not t.inner and seen.kind and seen.kind != t.pointer.kind:
            raise in_the_way(t.path, "folder" if seen.kind == "dir" else "file")
        if t.inner:
            return self._inside(t, seen, old)
        if seen.kind == "file":
            return self._file(t, seen, clock, old)
        return self._folder(t, seen, clock, old)

    def _take(self, path: bytes, seen: Look, trusted: Entries | None) -> tuple[Look, int, int]:
        """Store what is not stored: files whose id is unknown, and known ones that no version vouches for."""
        before = (self.writer.written.encoded_bytes, self.writer.written.new_bytes)
        unsure = np.flatnonzero(seen.is_file & seen.known)
        if trusted is not None and len(unsure) and self._on_a_remote(path):
            at = align(seen.scan.names.take(unsure), trusted.names)
            same = at >= 0
            same[same] = (trusted.ids[at[same]] == seen.ids[unsure[same]]).all(axis=1)
            unsure = unsure[~same]
        if len(unsure):
            unsure = unsure[~self.repo.store.own.holds(seen.ids[unsure], seen.scan.stats.sizes[unsure])]
        index = np.sort(np.concatenate([seen.unknown(), unsure]))
        if len(index):
            seen = self._ingest(path, seen, index)
        after = self.writer.written
        return seen, after.encoded_bytes - before[0], after.new_bytes - before[1]

    def _on_a_remote(self, path: bytes) -> bool:
        """Whether a remote is known to hold the version that the pointer names, so that the store need not."""
        pointer = self._pointer(path)
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

    def _file(self, t: _Target, seen: Look, clock: Clock, old: Pointer | None) -> _Done:
        trusted = pointer_entries(self.repo.store, t.pointer) if t.pointer else None
        seen, stored, new = self._take(t.path, seen, trusted)
        size = int(seen.scan.stats.sizes[0])
        source = t.pointer.source if t.pointer and t.pointer.id == seen.ids[0].tobytes() else ()
        executable = int(seen.scan.kinds[0]) == Kind.EXEC
        pointer = Pointer("file", seen.ids[0].tobytes(), size, exec=executable, source=source)
        added = Added(t.path, "file", size, 1, pointer != t.pointer, stored, new)
        cache = StatCache.of(seen.scan, seen.ids, clock=clock, root_id=pointer.id)
        return _Done(t, pointer, added, cache, old=old)

    def _folder(self, t: _Target, seen: Look, clock: Clock, old: Pointer | None) -> _Done:
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
        cache = StatCache.of(seen.scan, seen.ids, clock=clock, root_id=bytes(root.id) if whole else bytes(ID_BYTES))
        return _Done(t, pointer, added, cache, select=part.selected, old=old)

    def _inside(self, t: _Target, seen: Look, old: Pointer | None) -> _Done:
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
        return _Done(t, pointer, added, None, select=part.selected if recorded else None, old=old)

    def _selected(self, t: _Target, seen: Look) -> Selected:
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

    def _part(self, t: _Target, seen: Look, selected: Selected) -> Part:
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

    def _check_rebuilt(self, t: _Target, pointer: Pointer) -> bool:
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

    def _edit(self, t: _Target, part: Part, entries: Entries) -> PageRef:
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

    def _nothing(self, t: _Target) -> NotFound:
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


def _at_or_below(paths: Sequence[bytes], where: bytes) -> list[bytes]:
    """Those of the ascending `paths` that are `where` or lie in it."""
    at = bisect_left(paths, where)
    low, high = bisect_left(paths, where + b"/"), bisect_left(paths, where + b"0")
    return [*paths[at : at + 1 if at < len(paths) and paths[at] == where else at], *paths[low:high]]


def _in_step(seen: Look, pointer: Pointer | None) -> bool:
    """Whether the stat cache knows that the whole folder is what the pointer says."""
    return pointer is not None and seen.in_step and seen.cache is not None and seen.cache.root_id == pointer.id


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
