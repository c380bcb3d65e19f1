"""What a `dvk mv` means, worked out and checked before anything is renamed.

Two kinds of move exist: a tracked path gets another name, or entries of one tracked folder do. Everything that would
cross the border between the two is refused, since a folder is one version as a whole. What a killed run left is
recognised here: two pointers that say the same, or data that lies at its new name already.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.pathwork import above, staged_pointer
from dvk.commands.repo import Repo
from dvk.commands.tracked import file_entries, join_path, kind_on_disk, look, not_here, read_unknown
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, Refused, UsageError, one_or_many
from dvk.events import OnEvent
from dvk.ids import PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names, show
from dvk.store.pages import read_entries
from dvk.workspace.handles import stat_at
from dvk.workspace.pointer import Pointer, pointer_name


class Moved(Struct, frozen=True):
    """One path under its new name."""

    source: bytes
    destination: bytes
    kind: str  #: "file" or "dir"
    inside: bytes = b""  #: the tracked folder that both lie in; empty for a tracked path of its own
    files: int = 0
    on_disk: bool = False  #: whether data was here to move


class Step(Struct, frozen=True):
    """One rename to carry out.

    Attributes:
        pointer: of the tracked path, or of the folder; None when only the Git index is left to do.
        resumed: an earlier run wrote the pointer at the new place.
    """

    moved: Moved
    pointer: Pointer | None
    resumed: bool = False

    @property
    def pointers(self) -> list[bytes]:
        """The data paths whose pointers change."""
        return [self.moved.inside] if self.moved.inside else [self.moved.source, self.moved.destination]


def plan_move(repo: Repo, sources: Sequence[bytes | str], destination: bytes | str, *, on_event: OnEvent) -> list[Step]:
    """Every rename that moving `sources` to `destination` means. Changes nothing; raises as `move` does."""
    return _Planner(repo, on_event).plan(sources, destination)


class _Planner:
    def __init__(self, repo: Repo, on_event: OnEvent) -> None:
        self.repo, self.ws, self.store, self.on_event = repo, repo.workspace, repo.store, on_event
        self.rules = repo.workspace.ignore_rules()
        self._listings: dict[bytes, Entries] = {}

    def plan(self, sources: Sequence[bytes | str], destination: bytes | str) -> list[Step]:
        """Every rename, checked; changes nothing."""
        into = self._folder(destination)
        if into is None and len(sources) > 1:
            raise UsageError(
                "several paths can only be moved into a folder that exists", subject=show(_raw(destination))
            )
        if into and len(sources) == 1 and self._begun(self.ws.locate(sources[0], cwd=self.repo.cwd), into):
            into = None
        steps: list[Step] = []
        problems: list[DvkError] = []
        taken: set[bytes] = set()
        for arg in sources:
            try:
                source = self.ws.locate(arg, cwd=self.repo.cwd)
                if into is None:
                    target = self.ws.locate(destination, cwd=self.repo.cwd)
                else:
                    target = join_path(into, source.rpartition(b"/")[2]) if into else source.rpartition(b"/")[2]
                if target in taken:
                    raise UsageError("two paths would get this name", subject=show(target))
                taken.add(target)
                steps.append(self._step(source, target))
            except DvkError as error:
                problems.append(error)
        if problems:
            raise one_or_many("some paths cannot be moved; nothing was changed", problems)
        return steps

    def _folder(self, destination: bytes | str) -> bytes | None:
        """The folder that `destination` is, b"" for the top; None if it is none."""
        raw = _raw(destination)
        if os.path.realpath(os.path.join(self.repo.cwd, raw)) == self.ws.top:
            return b""
        path = self.ws.locate(destination, cwd=self.repo.cwd)
        if self._on_disk(path) == "dir":
            return path
        owner = self.ws.owner_of(path)
        if owner is not None and (owner[1] or self.ws.read_pointer(path).is_dir) and self._is_dir(*owner):
            return path
        if raw.endswith(b"/"):
            raise NotFound("there is no such folder", subject=show(raw), hint=f"`mkdir -p {show(raw)}` makes it")
        return None

    def _begun(self, source: bytes, target: bytes) -> bool:
        """Whether the folder `target` is what a killed move of `source` made, and not one to move into."""
        owner, there = self.ws.owner_of(source), self.ws.owner_of(target)
        if there is None or (owner is not None and bool(owner[1]) != bool(there[1])):
            return False
        try:
            if owner is None:
                return bool(self._finished(source, target))
            if not owner[1]:
                same = self.ws.read_pointer(source) == self.ws.read_pointer(target)
                return same and not (self._on_disk(source) and self._on_disk(target))
            if owner[0] != there[0] or self._on_disk(source):
                return False
            if self._is_dir(*there):
                return self._renamed_already(owner[0], owner[1], there[1])
            entries = self._entries(owner[0]).under(owner[1])
            return self._is_at(target, renamed(entries, owner[1], b""))
        except DvkError:
            return False

    def _on_disk(self, path: bytes) -> str:
        return kind_on_disk(self.repo.root_fd, path)

    def _is_dir(self, owner: bytes, inner: bytes) -> bool:
        """Whether `inner` is a directory of a tracked folder, on disk or not."""
        if not inner:
            return True
        if not self.ws.read_pointer(owner).is_dir:
            return False
        names = self._entries(owner).names
        low, high = names.under(inner)
        at = names.find(inner)
        return low < high or (at < len(names) and names[at] == inner and self._kind(owner, inner) == Kind.EMPTYDIR)

    def _entries(self, owner: bytes) -> Entries:
        """All entries of a tracked folder, by its pointer.

        Raises:
            DataMissing: the pages are not here.
        """
        if owner not in self._listings:
            try:
                self._listings[owner] = read_entries(PageId(self.ws.read_pointer(owner).id), self.store.load_page)
            except DataMissing as error:
                raise not_here(owner, error) from error
        return self._listings[owner]

    def _kind(self, owner: bytes, inner: bytes) -> int:
        """The kind of one entry of a folder, 0 if there is none of exactly this name."""
        entries = self._entries(owner)
        at = entries.names.find(inner)
        return int(entries.kinds[at]) if at < len(entries) and entries.names[at] == inner else 0

    def _step(self, source: bytes, target: bytes) -> Step:
        if source == target:
            raise UsageError("is its name already", subject=show(target))
        if target.startswith(source + b"/"):
            raise UsageError("cannot be moved into itself", subject=show(source))
        owner = self.ws.owner_of(source)
        there = self.ws.owner_of(target)
        if owner is None:
            return self._finished(source, target)
        if not owner[1] and (there is None or not there[1]):
            return self._whole(source, target, exists=there is not None)
        if there is None or owner[0] != there[0] or not owner[1]:
            raise self._across(source, target, owner, there)
        return self._inside(owner[0], owner[1], there[1])

    def _finished(self, source: bytes, target: bytes) -> Step:
        """A source that is not tracked: what a killed run did not stage, or a mistake."""
        below = [p for p, _ in self.ws.worktree_pointers(under=[source])]
        if below:
            names = " ".join(show(p) for p in below[:3]) + (" ..." if len(below) > 3 else "")
            raise Refused(
                f"is not tracked itself; {len(below):,} tracked paths lie in it",
                subject=show(source),
                hint=f"move these: `dvk mv {names} {show(target)}`",
            )
        old = staged_pointer(self.repo, source)
        if old is not None:
            try:
                if self.ws.read_pointer(target) == old:
                    return Step(Moved(source, target, old.kind, files=_files(old)), None)
            except (NotFound, FormatError):
                pass  # then it was something else
        raise NotFound("dvk does not track this", subject=show(source), hint="`dvk ls` lists what it tracks")

    def _across(
        self, source: bytes, target: bytes, owner: tuple[bytes, bytes], there: tuple[bytes, bytes] | None
    ) -> Refused:
        if owner[1]:
            what = f"is a part of {show(owner[0])}, which is one version as a whole"
            hint = f"`cp` it, `dvk add {show(target)}`, then `dvk rm {show(source)}`"
        else:
            assert there is not None
            what = f"would become a part of {show(there[0])}, which has versions of its own"
            hint = f"`dvk rm --cached {show(source)}`, `mv` it, then `dvk add {show(there[0])}`"
        return Refused(what, subject=show(source), hint=hint)

    def _whole(self, source: bytes, target: bytes, *, exists: bool) -> Step:
        pointer = self.ws.read_pointer(source)
        pointer_name(target)  # or it is no name that can be tracked
        here, there = self._on_disk(source), self._on_disk(target)
        parent = target.rpartition(b"/")[0]
        if parent and self._on_disk(parent) != "dir":
            raise NotFound("there is no such folder", subject=show(parent), hint=f"`mkdir -p {show(parent)}` makes it")
        if exists:
            # A killed run leaves two pointers that say the same, and data at one of the two places.
            if self.ws.read_pointer(target) != pointer or (here and there):
                raise _taken(target, "another tracked path")
        elif there and (here or not self._is_content(target, pointer)):
            raise _taken(target, f"a {'folder' if there == 'dir' else 'file'}")
        self._check_one_filesystem(source, parent)
        return Step(
            Moved(source, target, pointer.kind, files=_files(pointer), on_disk=bool(here)), pointer, resumed=exists
        )

    def _is_content(self, path: bytes, pointer: Pointer) -> bool:
        """Whether what is at `path` is what `pointer` says: then it was moved there already."""
        if self._on_disk(path) != pointer.kind:
            return False
        if not pointer.is_dir:
            return self._is_at(path, file_entries(pointer))
        try:
            return self._is_at(path, read_entries(PageId(pointer.id), self.store.load_page))
        except DataMissing:
            return False

    def _is_at(self, path: bytes, entries: Entries) -> bool:
        """Whether exactly these entries are on disk; reads what is there when names and sizes agree."""
        seen = look(self.repo.root_fd, path, self.repo.state, self.rules, on_event=self.on_event)
        if seen.scan.problems or seen.scan.names != entries.names:
            return False
        if not np.array_equal(seen.scan.stats.sizes[seen.is_file], entries.sizes[entries.is_file]):
            return False
        now = read_unknown(self.repo.root_fd, seen, seen.unknown(), on_event=self.on_event).entries()
        same = np.array_equal(now.kinds, entries.kinds) and np.array_equal(now.ids, entries.ids)
        return bool(same) and now.targets == entries.targets

    def _inside(self, owner: bytes, source: bytes, target: bytes) -> Step:
        pointer = self.ws.read_pointer(owner)
        if not pointer.is_dir:
            raise Refused("a file is tracked under this name", subject=show(owner))
        from_path, to_path = join_path(owner, source), join_path(owner, target)
        entries = self._entries(owner).under(source)
        if not len(entries):
            where = show(from_path)
            if self._renamed_already(owner, source, target):
                kind = "dir" if self._is_dir(owner, target) else "file"
                return Step(Moved(from_path, to_path, kind, owner), None)
            if self._on_disk(from_path):
                raise Refused(
                    f"it was never added to {show(owner)}", subject=where, hint=f"plain `mv {where} ...` moves it"
                )
            raise NotFound("there is no such file or folder", subject=where, hint=f"`dvk ls {show(owner)}` lists it")
        if self._kind(owner, target) or self._is_dir(owner, target):
            raise _taken(to_path, "another entry of this folder")
        for folder in sorted(above(target)):
            if self._kind(owner, folder) not in (0, Kind.EMPTYDIR):
                raise Refused("is a file, so nothing can lie in it", subject=show(join_path(owner, folder)))
        parent = target.rpartition(b"/")[0]
        if parent and not self._is_dir(owner, parent) and self._on_disk(_parent(to_path)) != "dir":
            missing = show(_parent(to_path))
            raise NotFound("there is no such folder", subject=missing, hint=f"`mkdir -p {missing}` makes it")
        here, there = self._on_disk(from_path), self._on_disk(to_path)
        if there and (here or not self._is_at(to_path, renamed(entries, source, b""))):
            raise _taken(to_path, f"a {'folder' if there == 'dir' else 'file'}")
        self._check_one_filesystem(from_path, _parent(to_path))
        kind = "dir" if self._is_dir(owner, source) else "file"
        return Step(Moved(from_path, to_path, kind, owner, entries.files, bool(here)), pointer)

    def _renamed_already(self, owner: bytes, source: bytes, target: bytes) -> bool:
        """Whether the pointer has the new name, and the Git index still the old one: a run was killed in between."""
        before = staged_pointer(self.repo, owner)
        if before is None or not before.is_dir or len(self._entries(owner).under(source)):
            return False
        try:
            old = read_entries(PageId(before.id), self.store.load_page, under=source)
        except DataMissing:
            return False
        now = self._entries(owner).under(target)
        same = renamed(old, source, target).names == now.names and np.array_equal(old.ids, now.ids)
        return len(now) > 0 and bool(same)

    def _check_one_filesystem(self, source: bytes, folder: bytes) -> None:
        now = stat_at(self.repo.root_fd, source)
        into = stat_at(self.repo.root_fd, folder)
        if now is not None and into is not None and now.st_dev != into.st_dev:
            raise Refused(
                "lies on another filesystem than where it would go, so it cannot be renamed",
                subject=show(source),
                hint="copy it there, `dvk add` the copy, then `dvk rm` this one",
            )


def renamed(entries: Entries, source: bytes, target: bytes) -> Entries:
    """Entries at and below `source` as they are called at and below `target`; b"" stands for the place itself."""
    names = []
    for name in entries.names:
        rest = name[len(source) :].lstrip(b"/")
        names.append(join_path(target, rest) if target else rest)
    return replace(entries, names=Names.of(names))


def _taken(path: bytes, what: str) -> Refused:
    return Refused(
        f"{what} has this name already", subject=show(path), hint="move that away first; dvk overwrites nothing"
    )


def _raw(path: bytes | str) -> bytes:
    return os.fsencode(path)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _files(pointer: Pointer) -> int:
    return pointer.files or 0 if pointer.is_dir else 1
