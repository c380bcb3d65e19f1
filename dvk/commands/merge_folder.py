"""Three versions of a folder become one, file by file: what each side did to the common ancestor, applied together.

    done = merge_folders(base, ours, theirs, load=store.load_page, emit=writer.add_page)
    done.root, done.conflicts

Only pages that differ are read, columns are compared as columns, and a file is looked at by itself only when both sides
did something to its name. What cannot be both is a conflict:

- both changed a file differently, or one deleted what the other changed;
- a file on one side has the name of a directory of the other.

The executable bit and the content of a file are two things: one side may change one, the other the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from msgspec import Struct, field

from dvk.commands.diff_folder import compare_listings
from dvk.commands.pathwork import above
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names, show
from dvk.store.pages import Emit, Load, PageRef
from dvk.store.pagewriter import edit_listing

Side = Literal["ours", "theirs"]

#: kind, size, id, target of a link; None: no such entry
_Entry = tuple[int, int, bytes, bytes] | None


class EntryConflict(Struct, frozen=True):
    """A name in a folder for which a side has to be chosen; as the folder has it."""

    path: bytes
    why: str


class MergedFolder(Struct):
    """The new list, where nothing is left to choose (else `root` is None)."""

    root: PageRef | None
    conflicts: list[EntryConflict] = field(default_factory=list)
    taken: int = 0  #: names that theirs changed and that are now as theirs has them


def merge_folders(
    base: PageId | None, ours: PageId, theirs: PageId, *, load: Load, emit: Emit, favour: Side | None = None
) -> MergedFolder:
    """Merge two versions of a folder that come from `base` (None: from nothing).

    Args:
        favour: where both sides did something to a name, take what this one did.

    Raises:
        DataMissing: from `load`, for a page that differs and is not there.
    """
    start = None if base is None else (base, load)
    mine, other = _changes(start, (ours, load)), _changes(start, (theirs, load))
    run = _Merge(mine, other, favour)
    run.same_names()
    run.files_and_directories()
    if run.conflicts:
        return MergedFolder(None, sorted(run.conflicts, key=lambda c: c.path))
    put, remove = run.edits()
    root = edit_listing(ours, load, emit, put=put, remove=remove)
    return MergedFolder(root, taken=len(put) + len(remove))


class _Changes(Struct):
    """What one side did."""

    before: Entries  #: entries of the ancestor among which all that changed are
    put: Entries  #: set, ascending
    gone: Names  #: taken out, ascending

    def names(self) -> Iterator[bytes]:
        yield from self.put.names
        yield from self.gone


def _changes(base: tuple[PageId, Load] | None, side: tuple[PageId, Load]) -> _Changes:
    found = compare_listings(base, side)
    put = np.sort(np.concatenate([found.added, found.modified[:, 1], found.renamed[:, 1]]))
    gone = np.sort(np.concatenate([found.removed, found.renamed[:, 0]]))
    return _Changes(found.a, found.b.take(put), found.a.names.take(gone))


def _entry(entries: Entries, name: bytes) -> _Entry:
    at = entries.names.find(name)
    if at >= len(entries) or entries.names[at] != name:
        return None
    kind = int(entries.kinds[at])
    target = entries.targets[int(np.count_nonzero(entries.kinds[:at] == Kind.LINK))] if kind == Kind.LINK else b""
    return kind, int(entries.sizes[at]), entries.ids[at].tobytes(), target


def _is_file(entry: _Entry) -> bool:
    return entry is not None and entry[0] in (Kind.FILE, Kind.EXEC)


class _Merge:
    def __init__(self, mine: _Changes, other: _Changes, favour: Side | None) -> None:
        self.mine, self.other, self.favour = mine, other, favour
        self.conflicts: list[EntryConflict] = []
        self._leave: set[bytes] = set()  # of theirs: stays as ours has it
        self._set: dict[bytes, _Entry] = {}  # decided one by one
        self._clear: set[bytes] = set()  # of ours: gives way with everything below

    def same_names(self) -> None:
        """Decide about names to which both sides did something."""
        for name in sorted(set(self.mine.names()) & set(self.other.names())):
            ours, theirs = _entry(self.mine.put, name), _entry(self.other.put, name)
            if ours == theirs:
                self._leave.add(name)
                continue
            both = _combined(_entry(self.mine.before, name), ours, theirs)
            if both is not None:
                self._set[name] = both
            elif not self._favoured(name):
                self._conflict(name, _why(ours, theirs))

    def files_and_directories(self) -> None:
        """See that no file of one side has the name of a directory of the other."""
        ours_above = {d for name in self.mine.put.names for d in above(name)}
        theirs_above = {d for name in self.other.put.names for d in above(name)}
        for name, kind in zip(self.other.put.names, self.other.put.kinds.tolist(), strict=True):
            if name not in ours_above or name in self._leave:
                continue
            if kind == Kind.EMPTYDIR:
                self._leave.add(name)  # it is not empty on our side
            elif self._favoured(name):
                if name not in self._leave:
                    self._clear.add(name)
            else:
                self._conflict(name, "a file on their side and a folder on ours")
        for name, kind in zip(self.mine.put.names, self.mine.put.kinds.tolist(), strict=True):
            if kind == Kind.EMPTYDIR or name not in theirs_above or any(c.path == name for c in self.conflicts):
                continue
            if self.favour == "theirs":
                self._clear.add(name)
            elif self.favour == "ours":
                self._leave |= {n for n in self.other.put.names if n.startswith(name + b"/")}
            else:
                self._conflict(name, "a file on our side and a folder on theirs")

    def edits(self) -> tuple[Entries, list[bytes]]:
        """What to set in our list and what to take out of it."""
        names = self.other.put.names
        keep = [i for i, n in enumerate(names) if n not in self._leave and n not in self._set]
        put = self.other.put.take(np.array(keep, np.intp))
        rows = [(n, Kind(e[0]), e[1], e[2], e[3]) for n, e in self._set.items() if e is not None]
        if rows:
            put = _join(put, Entries.of(rows))
        gone = [n for n in self.other.gone if n not in self._leave and n not in self._set]
        return put, [*gone, *self._clear]

    def _favoured(self, name: bytes) -> bool:
        """Whether there is somebody to favour; if it is us, theirs is left out."""
        if self.favour == "ours":
            self._leave.add(name)
        return self.favour is not None

    def _conflict(self, name: bytes, why: str) -> None:
        self._leave.add(name)
        self.conflicts.append(EntryConflict(name, why))


def _combined(base: _Entry, ours: _Entry, theirs: _Entry) -> _Entry:
    """A file of which one side changed the content and the other the executable bit; None where it is not that."""
    if base is None or ours is None or theirs is None or not all(map(_is_file, (base, ours, theirs))):
        return None
    kind = theirs[0] if ours[0] == base[0] else ours[0]
    if ours[1:] == base[1:]:
        return kind, *theirs[1:]
    if theirs[1:] == base[1:]:
        return kind, *ours[1:]
    if ours[1:] == theirs[1:]:
        return kind, *ours[1:]
    return None


def _why(ours: _Entry, theirs: _Entry) -> str:
    if ours is None:
        return "deleted on our side and changed on theirs"
    if theirs is None:
        return "changed on our side and deleted on theirs"
    return "changed on both sides"


def _join(a: Entries, b: Entries) -> Entries:
    """Two sets of entries without a common name, in order."""

    def rows(entries: Entries) -> Iterator[tuple[bytes, Kind, int, bytes, bytes]]:
        targets = iter(entries.targets)
        for i, name in enumerate(entries.names):
            kind = Kind(int(entries.kinds[i]))
            target = next(targets) if kind is Kind.LINK else b""
            yield name, kind, int(entries.sizes[i]), entries.ids[i].tobytes(), target

    return Entries.of([*rows(a), *rows(b)])


def told(conflict: EntryConflict, folder: bytes) -> str:
    """A conflict in words, from the top of the work tree."""
    return f"{show(folder + b'/' + conflict.path)}: {conflict.why}"
