"""`dvk gc` of the local store: what no version of any repository that uses it needs goes, and small packs are folded.

    gc_local(repo, dry_run=True).freeable_bytes
    gc_local(repo).freed_bytes

What is needed is looked up before anybody has to wait, and asked again once the store is held alone, so that nobody is
between storing data and writing the pointer that refers to it. A version that was overwritten and never committed is
what nothing leads to; it is left alone for a day. A kill leaves every pack whole or gone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct, field

from dvk.backend.local import LocalBackend
from dvk.commands.acknowledged import Acknowledged
from dvk.commands.kept import everything
from dvk.commands.repo import Repo
from dvk.commands.room import Room, make_room, without
from dvk.errors import DvkError, StorageError, StorageFull, Unsafe
from dvk.events import Note, OnEvent, ignore
from dvk.store.borrowing import BorrowingStore
from dvk.store.names import show
from dvk.store.reclaim import Copies, Found, Marks, Pack, delete, fold, mark, store_bytes, survey
from dvk.store.root import Root
from dvk.store.store import Store
from dvk.workspace import repositories

Clock = Callable[[], float]

#: What was added lately may not be committed yet.
YOUNG_S = 86400
#: So long others may hold the store.
_PATIENCE_S = 60.0
#: So much is copied before the store is held for deleting: others wait for the latter only.
_FOLDED_AT_ONCE = 256 << 20


class LocalGcResult(Struct):
    """What a collection of the local store freed, or would free.

    Attributes:
        versions: that something leads to, in all repositories.
        freeable_bytes, freeable_packs: what was found: packs that hold nothing needed, and the dead parts of others.
        folded_packs: that were written together; kept_packs: that are younger than the limit and were left alone.
        evicted_bytes: what a remote was seen to hold and made room (`store.max_size`).
    """

    store: str
    repositories: list[bytes] = field(default_factory=list)
    versions: int = 0
    packs: int = 0
    store_bytes: int = 0  #: before
    freeable_packs: int = 0
    freeable_bytes: int = 0
    young_packs: int = 0
    deleted_packs: int = 0
    folded_packs: int = 0
    evicted_packs: int = 0
    evicted_bytes: int = 0
    over_bytes: int = 0  #: by how much the store is larger than store.max_size, before and after what is freeable
    left_bytes: int = 0  #: of the store afterwards
    freed_bytes: int = 0
    disk_full: bool = False  #: there was no room to fold
    dry_run: bool = False
    failures: list[DvkError] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.freeable_packs or self.freeable_bytes or self.over_bytes)


def gc_local(
    repo: Repo,
    *,
    dry_run: bool = False,
    exclusive: bool = False,
    young_s: float = YOUNG_S,
    on_event: OnEvent = ignore,
    clock: Clock = time.time,
) -> LocalGcResult:
    """Free the local store of what nothing leads to; with `store.max_size` also of what a remote was seen to hold.

    Args:
        exclusive: the user promises that nobody else uses the store: needed where the filesystem has no locks.
        young_s: packs that were written later than so many seconds ago stay.

    Raises:
        Unsafe: a repository of the store, or a list of a version, cannot be read, or the store is somebody's remote;
            nothing was deleted.
        Busy: others were at work all the time. Refused: there are no locks.
    """
    # What a collection reads is not used for that: by use it is decided what makes room.
    store = Store(LocalBackend(os.fsdecode(repo.workspace.store_dir), unnoticed=True))
    out = LocalGcResult(show(repo.workspace.store_dir), dry_run=dry_run)
    max_size = repo.workspace.config.size("store.max_size")
    out.repositories = [user.top for user in repositories.users(repo.workspace)]
    if store.describe() is None:
        return out
    _check_no_remote(store)
    needed = _needed(repo, on_event)
    roots = needed.roots
    marks = needed.mark(store)
    found = survey(store, marks, young_s=young_s, now=_now(repo, clock))
    out.versions, out.packs = len(roots), len(found.packs)
    out.store_bytes = out.left_bytes = store_bytes(store)
    out.young_packs = sum(p.young for p in found.packs)
    out.freeable_packs, out.freeable_bytes = len(found.dead), found.freeable_bytes
    if max_size is not None:
        out.over_bytes = max(0, out.store_bytes - found.freeable_bytes - max_size)
    if dry_run:
        return out
    run = _Run(repo, store, out, marks, needed, exclusive=exclusive, on_event=on_event)
    run.delete(found.dead, Copies())
    run.fold(found)
    if max_size is not None and (over := store_bytes(store) - max_size) > 0:
        now_found = survey(store, run.marks, young_s=young_s, now=_now(repo, clock))
        run.evict(make_room(repo, store, run.marks, now_found, run.needed.roots, over, run.stays, on_event=on_event))
    out.left_bytes = store_bytes(store)
    out.freed_bytes = max(0, out.store_bytes - out.left_bytes)
    return out


def _now(repo: Repo, clock: Clock) -> float:
    """The time by which packs are young: of the store's filesystem where it tells, whose clock may not be ours."""
    try:
        return max(clock(), os.stat(repo.workspace.store_dir).st_mtime)
    except OSError:
        return clock()


def _check_no_remote(store: Store) -> None:
    """See that nobody pushes to this folder: records promise packs to people of whom no list of repositories knows.

    Raises:
        Unsafe: somebody did.
    """
    if next(iter(store.backend.list("j/")), None) is not None:
        raise Unsafe(
            "this local store is a remote, too: what was pushed there belongs to others; nothing was deleted",
            subject=store.name,
            hint="give the local store a folder of its own (DVK_STORE, store.path); --remote collects remotes",
        )


class _Needed(Struct, frozen=True):
    """What the repositories of a store lead to."""

    roots: frozenset[Root]
    #: Of these what a repository of another project needs. No remote of this one promises it anything.
    of_others: frozenset[Root]
    #: dvk's folders of all repositories.
    folders: frozenset[bytes]
    #: The stores of repositories that these borrow from.
    lenders: frozenset[bytes]

    def __or__(self, other: _Needed) -> _Needed:
        return _Needed(
            self.roots | other.roots,
            self.of_others | other.of_others,
            self.folders | other.folders,
            self.lenders | other.lenders,
        )

    def mark(self, store: Store, roots: frozenset[Root] | None = None) -> Marks:
        """What of a store these versions (or all) need. Raises as `reclaim.mark`."""
        others = [Store(LocalBackend(os.fsdecode(folder), unnoticed=True)) for folder in sorted(self.lenders)]
        lists = BorrowingStore(store, others) if others else store
        return mark(store, self.roots if roots is None else roots, lists=lists)


def _needed(repo: Repo, on_event: OnEvent) -> _Needed:
    """What every repository of the store leads to.

    Raises:
        Unsafe: one cannot be opened or read.
    """
    roots: set[Root] = set()
    of_others: set[Root] = set()
    folders = {repo.workspace.common_dir}
    lenders = set(_lenders(repo))
    for user in repositories.users(repo.workspace):
        if not user.key and user.top == repo.workspace.top:
            roots |= {n.root for n in everything(repo, on_event=on_event)}
            continue
        try:
            with Repo(os.fsdecode(user.top), environ=repo.environ) as other:
                _check_is(other, user)
                folders.add(other.workspace.common_dir)
                lenders.update(_lenders(other))
                found = {n.root for n in everything(other, on_event=on_event)}
                roots |= found
                if not repo.project or other.project != repo.project:
                    of_others |= found
        except Unsafe:
            raise
        except DvkError as error:
            raise Unsafe(
                f"a repository that uses this store cannot be read ({error.message}), so nobody knows what it needs; "
                "nothing was deleted",
                subject=show(user.top),
                hint=f"bring it back; if it is gone for good: `dvk gc --forget {show(user.top)}`",
            ) from error
    return _Needed(
        frozenset(roots), frozenset(of_others), frozenset(folders), frozenset(lenders - {repo.workspace.store_dir})
    )


def _lenders(repo: Repo) -> tuple[bytes, ...]:
    """The stores that a repository borrows from: lists may lie there alone whose data is here.

    Raises:
        Unsafe: one of them is not read.
    """
    if repo.borrowed.problems:
        error = repo.borrowed.problems[0]
        raise Unsafe(
            f"a repository that this one borrows from is not read ({error}), so nobody knows what of the data here its "
            "lists name; nothing was deleted",
            subject=show(repo.workspace.top),
            hint=error.hint or "bring it back, or take it out of .git/objects/info/alternates",
        )
    return repo.borrowed.stores


def _check_is(other: Repo, user: repositories.User) -> None:
    if not repositories.is_user(other.workspace, user):
        raise Unsafe(
            "another repository lies where one that uses this store did; nothing was deleted",
            subject=show(user.top),
            hint=f"if the old one is gone for good: `dvk gc --forget {show(user.path)}`",
        )


class _Run:
    """One collection: what is done while the store is held alone, and what before."""

    def __init__(
        self,
        repo: Repo,
        store: Store,
        out: LocalGcResult,
        marks: Marks,
        needed: _Needed,
        *,
        exclusive: bool,
        on_event: OnEvent,
    ) -> None:
        self.repo, self.store, self.out, self.marks, self.needed = repo, store, out, marks, needed
        self._exclusive, self._on_event = exclusive, on_event

    @property
    def stays(self) -> Marks:
        """What must not make room, whatever a remote holds, as of the last look."""
        return self.needed.mark(self.store, self.needed.of_others)

    def delete(self, packs: Sequence[Pack], copies: Copies, *, room: Room | None = None) -> int:
        """Ask again what is needed, now that nobody adds, and delete what is safe; how many packs.

        Args:
            room: where something that is needed goes, too, what that is.
        """
        with self.repo.collecting(exclusive=self._exclusive, timeout_s=_PATIENCE_S):
            _check_no_remote(self.store)
            known, self.needed = self.needed, self.needed | _needed(self.repo, ignore)
            if self.needed.roots != known.roots:
                self.marks = self.needed.mark(self.store)
            if room is not None and self.needed.of_others != known.of_others:
                packs = without(self.store, packs, self.stays)
            if isinstance(backend := self.store.backend, LocalBackend) and not self._exclusive:
                backend.remove_temporaries()
            leaving: frozenset[str] = frozenset() if room is None else room.leaving
            full = False
            try:
                self._let_go(leaving)
            except StorageFull:  # deleting makes the room for that
                full = True
            count, _ = delete(self.store, self.marks, packs, copies, on_event=self._on_event)
            if full:
                self._let_go(leaving)
        self.out.deleted_packs += count
        return count

    def _let_go(self, leaving: Collection[str]) -> None:
        """What goes is not lost, should anything lead to it again."""
        stay = {r.text for r in self.needed.roots}.difference(leaving)
        for folder in sorted(self.needed.folders):
            try:
                Acknowledged(folder).keep(stay)
            except StorageFull:
                raise
            except StorageError as error:
                if folder == self.repo.workspace.common_dir:
                    raise
                note = f"its list of what was added cannot be shortened ({error.message})"
                hint = "`dvk verify` there may call lost what was let go here, should anything lead to it again"
                self._on_event(Note(note, subject=show(folder), hint=hint))

    def fold(self, found: Found) -> None:
        """Write what is needed of packs anew, some at a time, and delete those."""
        groups: list[list[Pack]] = []
        for pack in found.fold:
            if not groups or sum(p.live for p in groups[-1]) + pack.live > _FOLDED_AT_ONCE:
                groups.append([])
            groups[-1].append(pack)
        for group in groups:
            # A writer like any other, so that nobody else collects what was just copied.
            with self.repo.writing():
                copies = fold(self.store, self.marks, group, on_event=self._on_event)
            self.out.folded_packs += self.delete(group, copies)
            self.out.failures += copies.damaged
            if copies.full:
                self.out.disk_full = True
                note = "the disk is full: small packs were not folded, as far as that needs room"
                self._on_event(Note(note, subject=self.out.store))
                return

    def evict(self, room: Room) -> None:
        """Delete what a remote was seen to hold."""
        before = store_bytes(self.store)
        self.out.evicted_packs = self.delete(room.packs, Copies(data=room.proven), room=room)
        self.out.evicted_bytes = max(0, before - store_bytes(self.store))
