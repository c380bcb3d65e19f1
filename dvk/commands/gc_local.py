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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dvk.backend.local import LocalBackend
from dvk.commands.kept import everything
from dvk.commands.repo import Repo
from dvk.commands.room import Room, make_room
from dvk.errors import DvkError, Unsafe
from dvk.events import Note, OnEvent, ignore
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


@dataclass(slots=True)
class LocalGcResult:
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
        Unsafe: a repository of the store, or a list of a version, cannot be read; nothing was deleted.
        Busy: others were at work all the time. Refused: there are no locks.
    """
    # What a collection reads is not used for that: by use it is decided what makes room.
    store = Store(LocalBackend(os.fsdecode(repo.workspace.store_dir), unnoticed=True))
    out = LocalGcResult(show(repo.workspace.store_dir), dry_run=dry_run)
    max_size = repo.workspace.config.size("store.max_size")
    out.repositories = [user.top for user in repositories.users(repo.workspace)]
    if store.describe() is None:
        return out
    roots = _roots(repo, on_event)
    marks = mark(store, roots)
    found = survey(store, marks, young_s=young_s, now=_now(repo, clock))
    out.versions, out.packs = len(roots), len(found.packs)
    out.store_bytes = out.left_bytes = store_bytes(store)
    out.young_packs = sum(p.young for p in found.packs)
    out.freeable_packs, out.freeable_bytes = len(found.dead), found.freeable_bytes
    if max_size is not None:
        out.over_bytes = max(0, out.store_bytes - found.freeable_bytes - max_size)
    if dry_run:
        return out
    run = _Run(repo, store, out, marks, frozenset(roots), exclusive=exclusive, on_event=on_event)
    run.delete(found.dead, Copies())
    run.fold(found)
    if max_size is not None and (over := store_bytes(store) - max_size) > 0:
        now_found = survey(store, run.marks, young_s=young_s, now=_now(repo, clock))
        run.evict(make_room(repo, store, run.marks, now_found, run.roots, over, on_event=on_event))
    out.left_bytes = store_bytes(store)
    out.freed_bytes = max(0, out.store_bytes - out.left_bytes)
    return out


def _now(repo: Repo, clock: Clock) -> float:
    """The time by which packs are young: of the store's filesystem where it tells, whose clock may not be ours."""
    try:
        return max(clock(), os.stat(repo.workspace.store_dir).st_mtime)
    except OSError:
        return clock()


def _roots(repo: Repo, on_event: OnEvent) -> list[Root]:
    """What every repository of the store leads to.

    Raises:
        Unsafe: one cannot be opened or read.
    """
    out: dict[Root, None] = {}
    for user in repositories.users(repo.workspace):
        if not user.key and user.top == repo.workspace.top:
            out |= dict.fromkeys(n.root for n in everything(repo, on_event=on_event))
            continue
        try:
            with Repo(os.fsdecode(user.top), environ=repo.environ) as other:
                _check_is(other, user)
                out |= dict.fromkeys(n.root for n in everything(other, on_event=on_event))
        except Unsafe:
            raise
        except DvkError as error:
            raise Unsafe(
                f"a repository that uses this store cannot be read ({error.message}), so nobody knows what it needs; "
                "nothing was deleted",
                subject=show(user.top),
                hint=f"bring it back; if it is gone for good: `dvk gc --forget {show(user.top)}`",
            ) from error
    return list(out)


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
        roots: frozenset[Root],
        *,
        exclusive: bool,
        on_event: OnEvent,
    ) -> None:
        self.repo, self.store, self.out, self.marks, self._roots = repo, store, out, marks, roots
        self._exclusive, self._on_event = exclusive, on_event

    @property
    def roots(self) -> list[Root]:
        """Everything that was needed at the last look."""
        return sorted(self._roots, key=lambda r: (r.kind, r.id))

    def delete(self, packs: Sequence[Pack], copies: Copies) -> int:
        """Ask again what is needed, now that nobody adds, and delete what is safe; how many packs."""
        with self.repo.collecting(exclusive=self._exclusive, timeout_s=_PATIENCE_S):
            now = frozenset(_roots(self.repo, ignore))
            if not now <= self._roots:
                self.marks, self._roots = mark(self.store, [*now | self._roots]), now | self._roots
            if isinstance(backend := self.store.backend, LocalBackend) and not self._exclusive:
                backend.remove_temporaries()
            count, _ = delete(self.store, self.marks, packs, copies, on_event=self._on_event)
        self.out.deleted_packs += count
        return count

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
        self.out.evicted_packs = self.delete(room.packs, Copies(data=room.proven))
        self.out.evicted_bytes = max(0, before - store_bytes(self.store))
