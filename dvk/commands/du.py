"""`dvk du`: how large the versions are, what of them is here, what deduplication and compression saved, what could go.

Every version counts that something still leads to: branches, tags, stash, the HEAD of every worktree, and the Git index
and pointers of every worktree. A chunk that several versions share is stored once; a path is charged for what no other
path has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from msgspec import Struct, field

from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import join_path, not_here
from dvk.commands.versions import Named, history, staged
from dvk.errors import DataMissing, DvkError, NotFound, one_or_many
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.names import show
from dvk.store.pages import read_entries
from dvk.store.root import FOLDER
from dvk.store.usage import Owned, UsageCounter
from dvk.workspace.pointer import Pointer


class PathUsage(Struct, frozen=True):
    """One path. Sizes are bytes; None where a number is not known for a part of a folder."""

    path: bytes
    kind: str  #: "file" or "dir"
    size: int  #: as tracked now; 0 where only history has it
    files: int
    current: bool = True  #: false: only other revisions have it
    versions: int | None = None
    history_bytes: int | None = None  #: all its versions together, each in full
    here_bytes: int | None = None  #: what of these is in this store
    own_bytes: int | None = None  #: chunks that no other path has, each once
    own_stored_bytes: int | None = None  #: their share of the packs


class DuResult(Struct):
    """What the versions of a repository take. All numbers are bytes but counts.

    `here_bytes` = `stored_bytes` + `saved_by_dedup_bytes` + `saved_by_compression_bytes`.
    """

    paths: list[PathUsage] = field(default_factory=list)
    versions: int = 0
    logical_bytes: int = 0  #: all versions in full
    here_bytes: int = 0  #: what of them is in this store, in full
    saved_by_dedup_bytes: int = 0
    saved_by_compression_bytes: int = 0
    stored_bytes: int = 0  #: what remains: their share of the packs
    store: str = ""  #: where the store is
    store_bytes: int = 0  #: everything in it, lists and index included
    packs: int = 0
    unused_bytes: int = 0  #: chunks that nothing here leads to, before encoding
    reclaimable_bytes: int = 0  #: what a collection would free of the packs: blocks are freed as a whole
    shared_store: bool = False  #: other repositories may use it too, so nothing is known to be unused
    failures: list[DvkError] = field(default_factory=list)


def du(repo: Repo, paths: Sequence[bytes | str] = (), *, on_event: OnEvent = ignore) -> DuResult:
    """Count what the versions of this repository take; `paths` narrow the rows, not the sums. Changes nothing.

    Raises:
        NotFound: a path was never tracked.
    """
    rows = _Rows(repo, paths)
    named = list(dict.fromkeys(Named(n.path, n.root) for n in all_versions(repo)))
    kinds = {n.path: "dir" if n.root.kind == FOLDER else "file" for n in reversed(named)}
    names = sorted(kinds)
    number = {path: i for i, path in enumerate(names)}
    out = DuResult(store=show(repo.workspace.store_dir), versions=len(named))
    out.shared_store = repo.workspace.store_dir != os.path.join(repo.workspace.common_dir, b"store")
    counter = UsageCounter(repo.store, owners=len(names))
    here = [0] * len(names)
    total = [0] * len(names)
    count = [0] * len(names)
    meter = Meter(on_event, "count", total_items=len(named))
    for n in named:
        i = number[n.path]
        count[i] += 1
        total[i] += n.root.size
        try:
            here[i] += counter.add(n.root, i)
        except DataMissing:
            pass  # its list of files was never fetched: nothing of it counts as being here
        except DvkError as error:
            out.failures.append(error)
        meter.advance(items=1)
    owned = counter.owned()
    totals = counter.totals()
    out.logical_bytes, out.here_bytes = sum(total), sum(here)
    out.saved_by_dedup_bytes = out.here_bytes - totals.used_bytes
    out.stored_bytes = totals.used_stored_bytes
    out.saved_by_compression_bytes = totals.used_bytes - totals.used_stored_bytes
    out.store_bytes = totals.stored_bytes + totals.other_bytes
    out.packs = totals.packs
    out.unused_bytes, out.reclaimable_bytes = totals.unused_bytes, totals.reclaimable_bytes
    facts = {path: _Facts(kinds[path], count[i], total[i], here[i], owned[i]) for i, path in enumerate(names)}
    out.paths = rows.build(facts)
    return out


def all_versions(repo: Repo) -> Iterator[Named]:
    """Every version that something in the repository leads to, some of them more than once."""
    ws = repo.workspace
    if ws.git is None or not ws.git.has_program:
        yield from _pointers(repo)
        return
    tips = ws.git.tips()
    if tips:
        yield from history(repo, tips)
    for top in ws.git.worktrees():
        if os.path.realpath(top) == ws.top:
            yield from staged(repo)
            yield from _pointers(repo)
        elif os.path.lexists(os.path.join(top, b".git")):  # one that is not mounted, or was deleted, has nothing to say
            with Repo(os.fsdecode(top), environ=repo.environ) as other:
                yield from staged(other)
                yield from _pointers(other)


def _pointers(repo: Repo) -> Iterator[Named]:
    for path, pointer in repo.workspace.worktree_pointers():
        if isinstance(pointer, Pointer):
            yield Named(path, root_of(pointer))


class _Facts(Struct, frozen=True):
    """What all versions of one path come to; `kind` is that of the newest."""

    kind: str
    versions: int
    total_bytes: int
    here_bytes: int
    owned: Owned


class _Rows:
    """Which rows were asked for, and how they look now."""

    def __init__(self, repo: Repo, paths: Sequence[bytes | str]) -> None:
        self.repo = repo
        self.now = {p: x for p, x in repo.workspace.worktree_pointers() if isinstance(x, Pointer)}
        self.wanted: list[bytes] = []
        self.parts: list[tuple[bytes, bytes]] = []
        for arg in paths:
            path = repo.workspace.locate(arg, cwd=repo.cwd)
            owner = repo.workspace.owner_of(path)
            if owner is not None and owner[1]:
                self.parts.append(owner)
            else:
                self.wanted.append(path)

    def build(self, facts: dict[bytes, _Facts]) -> list[PathUsage]:
        """The rows that were asked for, by path."""
        rows = []
        missed: list[DvkError] = [
            NotFound("no version of this is tracked", subject=show(w), hint="`dvk ls` lists what is tracked")
            for w in self.wanted
            if not any(_is_at(path, w) for path in facts)
        ]
        everything = not self.wanted and not self.parts
        for path, found in facts.items():
            if everything or any(_is_at(path, w) for w in self.wanted):
                rows.append(self._row(path, found))
        for owner, inner in self.parts:
            try:
                rows.append(self._part(owner, inner))
            except DvkError as error:
                missed.append(error)
        if missed:
            raise one_or_many("some paths are not tracked", missed)
        return sorted(rows, key=lambda r: r.path)

    def _row(self, path: bytes, found: _Facts) -> PathUsage:
        now = self.now.get(path)
        return PathUsage(
            path,
            now.kind if now is not None else found.kind,
            now.size if now is not None else 0,
            0 if now is None else (now.files or 0) if now.is_dir else 1,
            now is not None,
            found.versions,
            found.total_bytes,
            found.here_bytes,
            found.owned.raw_bytes,
            found.owned.stored_bytes,
        )

    def _part(self, owner: bytes, inner: bytes) -> PathUsage:
        """Size and files of a part of a folder, as it is tracked now."""
        where = join_path(owner, inner)
        pointer = self.repo.workspace.read_pointer(owner)
        try:
            if not pointer.is_dir:
                raise NotFound("a file is tracked under this name", subject=show(owner))
            entries = read_entries(PageId(pointer.id), self.repo.store.load_page, under=inner)
        except DataMissing as error:
            raise not_here(owner, error) from error
        if not len(entries):
            raise NotFound(
                "there is no such file or folder", subject=show(where), hint=f"`dvk ls {show(owner)}` lists it"
            )
        kind = "file" if len(entries) == 1 and entries.names[0] == inner else "dir"
        return PathUsage(where, kind, entries.total_bytes, entries.files)


def _is_at(path: bytes, wanted: bytes) -> bool:
    return path == wanted or path.startswith(wanted + b"/")
