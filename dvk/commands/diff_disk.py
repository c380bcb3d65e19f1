"""What the workspace has at a tracked path, to be compared with a version: what is on disk, and what nobody asked for.

A clone that pulled `val` has not deleted `train`: entries that nobody asked for here count as the pointer in the work
tree says. Files are read only where name and size leave a doubt; the stat cache answers for most.

    here = look_at(repo, target, before, rules, selection)
    here.entries, here.known          # columns, names as the tracked folder has them
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.diff_folder import Mask
from dvk.commands.folder import plan_part
from dvk.commands.repo import Repo, root_of
from dvk.commands.spec import Target
from dvk.commands.tracked import Look, join_path, look, prefixed_names, read_parts, read_unknown
from dvk.commands.versions import roots_here
from dvk.errors import one_or_many
from dvk.events import OnEvent, ignore
from dvk.ids import ID_BYTES, PageId
from dvk.store.listing import Entries, Kind, merge_entries
from dvk.store.names import I64, show
from dvk.workspace.align import align
from dvk.workspace.ignore import IgnoreRules
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected, Selection
from dvk.workspace.statcache import StatCache, read_clock

#: So many new files are read to find out whether they are old ones under another name.
_MAX_RENAMES_READ = 10_000


class OnDisk(Struct, frozen=True):
    """What the workspace has of a tracked path, or of a part of a tracked folder.

    Attributes:
        kind: `file`, `dir`, or empty when nothing is on disk.
        entries: of a folder, with names as it has them; of a file one without a name. None: exactly what the pointer
            says, found out without reading anything.
        known: bool[n]: ids that are known. Others are of files that differ from the version by their size.
        not_present: files that were never asked for here; they are among `entries`.
        was_here: with an empty `kind`, whether this clone has the data, so that it was removed or never checked out.
    """

    kind: str
    entries: Entries | None
    known: Mask
    not_present: int = 0
    was_here: bool = False


def look_at(
    repo: Repo,
    target: Target,
    before: Callable[[], Entries],
    rules: IgnoreRules,
    selection: Selection,
    *,
    on_event: OnEvent = ignore,
) -> OnDisk:
    """Find out what the workspace has at `target`, a path that the work tree has a pointer for.

    Args:
        before: the entries that it will be compared with; asked for only when needed.

    Raises:
        DataMissing: the listing of a folder of which a part is here is not. Refused: something on disk is no data.
    """
    pointer, where = target.pointer, join_path(target.path, target.inner)
    seen = look(repo.root_fd, where, repo.state, rules, on_event=on_event)
    if seen.scan.problems:
        raise one_or_many(f"{len(seen.scan.problems):,} things in {show(where)} cannot be read", seen.scan.problems)
    nothing = np.zeros(0, np.bool_)
    selected = selection.get(target.path) or Selected(None)
    if not seen.kind:
        asked = not target.inner or selected.covers_one(target.inner)
        if not target.inner and pointer.is_dir and not pointer.files and not pointer.size and not selected.everything:
            return OnDisk("dir", None, nothing)  # an empty folder of which nothing was asked for
        return OnDisk("", None, nothing, was_here=asked and roots_here(repo.store, [root_of(pointer)])[0])
    if not target.inner and seen.kind == pointer.kind and _is_version(seen, pointer):
        return OnDisk(seen.kind, None, nothing)
    if target.inner:
        seen = _with_names_of(repo, target, seen)
    if not target.inner and seen.kind != pointer.kind:
        return OnDisk(seen.kind, seen.entries(), seen.known)
    if not pointer.is_dir:
        return _file(repo, target, seen, before(), on_event)
    return _folder(repo, target, seen, before(), selected, on_event)


def _is_version(seen: Look, pointer: Pointer) -> bool:
    """Whether the stat cache vouches that a whole path is what its pointer says."""
    if seen.kind == "file":
        same_mode = (int(seen.scan.kinds[0]) == Kind.EXEC) is pointer.exec
        return same_mode and bool(seen.known.all()) and seen.ids[0].tobytes() == pointer.id
    return seen.root_id == pointer.id


def _with_names_of(repo: Repo, target: Target, seen: Look) -> Look:
    """The look at a part of a folder, with names as the folder has them and what its stat cache knows."""
    names = seen.scan.names
    if seen.kind == "dir" and not len(seen.scan):
        return seen
    scan = replace(seen.scan, names=prefixed_names(names, target.inner))
    cache = StatCache.load(repo.state, target.path)
    if cache is None:
        return replace(seen, scan=scan)
    match = cache.match(scan)
    return replace(seen, scan=scan, known=match.known, ids=match.ids)


def _file(repo: Repo, target: Target, seen: Look, before: Entries, on_event: OnEvent) -> OnDisk:
    same_size = len(before) == 1 and int(before.sizes[0]) == int(seen.scan.stats.sizes[0])
    seen = _read(repo, target, seen, seen.unknown() if same_size else np.zeros(0, np.int64), on_event)
    return OnDisk("file", seen.entries(), seen.known)


def _folder(repo: Repo, target: Target, seen: Look, before: Entries, selected: Selected, on_event: OnEvent) -> OnDisk:
    names, kinds = seen.scan.names, seen.scan.kinds
    if target.inner and seen.kind == "dir" and not len(seen.scan):
        empty = Entries.of([(target.inner, Kind.EMPTYDIR, 0, bytes(ID_BYTES), b"")])
        return OnDisk("dir", empty, np.ones(1, np.bool_))
    part = plan_part(repo.store, target.path, target.pointer, target.inner, names, kinds, selected)
    seen = _read(repo, target, seen, _doubtful(seen, before), on_event)
    here, known = seen.entries(), seen.known
    if not part.keep.all():
        rows = np.flatnonzero(part.keep)
        here, known = here.take(rows), known[rows]
    if part.selected.everything:
        return OnDisk(seen.kind, here, known)
    recorded = read_parts(repo.store, PageId(target.pointer.id), (target.inner,))
    hidden = recorded.take(np.flatnonzero(align(recorded.names, part.before.names) < 0))
    if not len(hidden):
        return OnDisk(seen.kind, here, known)
    both = merge_entries(hidden, here)
    told = np.ones(len(both), np.bool_)
    told[align(here.names, both.names)] = known
    return OnDisk(seen.kind, both, told, not_present=hidden.files)


def _doubtful(seen: Look, before: Entries) -> I64:
    """Positions of files that must be read to tell: those of an old name and size, and those that may be renamed."""
    unknown = seen.unknown()
    if not len(unknown):
        return unknown
    sizes = seen.scan.stats.sizes[unknown]
    at = align(seen.scan.names.take(unknown), before.names)
    same = at >= 0
    same[same] = sizes[same] == before.sizes[at[same]]
    gone = np.flatnonzero(align(before.names, seen.scan.names) < 0)
    if len(gone):
        maybe = (at < 0) & (sizes > 0) & np.isin(sizes, before.sizes[gone])
        if np.count_nonzero(maybe) <= _MAX_RENAMES_READ:
            same |= maybe
    return unknown[same]


def _read(repo: Repo, target: Target, seen: Look, index: I64, on_event: OnEvent) -> Look:
    """Hash the files at `index`, and let the stat cache of a whole path learn."""
    if not len(index):
        return seen
    if target.inner:
        # The scan goes by the folder's names, and the files lie under the folder.
        return read_unknown(repo.root_fd, replace(seen, path=target.path), index, on_event=on_event)
    try:
        clock = read_clock(repo.state)
    except OSError:
        clock = None  # a read-only repository has no cache to write
    seen = read_unknown(repo.root_fd, seen, index, on_event=on_event)
    if clock is not None:
        StatCache.of(seen.scan, seen.ids, clock=clock, known=seen.known, root_id=bytes(ID_BYTES)).save(
            repo.state, seen.path
        )
    return seen
