"""Making room in the local store: what was used least lately goes, and only what a remote was just seen to hold.

    room = make_room(repo, store, marks, found, roots, over_bytes)
    room.packs, room.proven

The rule is git-annex's: a copy is dropped after another one was verified, now, not because something was once told to
be there. So every byte that is to go is read back from a remote that promises to keep it, by a record of this project,
and proven by its hash.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
from msgspec import Struct, field

from dvk.commands.repo import Remote, Repo, root_of
from dvk.commands.versions import staged
from dvk.errors import DvkError, FormatError
from dvk.events import Note, OnEvent
from dvk.store.names import U8
from dvk.store.pack import PackKind
from dvk.store.push_audit import Audit
from dvk.store.reclaim import Found, Marks, Pack, Safe, mark
from dvk.store.root import FILE, Root
from dvk.store.roots import Records
from dvk.store.store import Store
from dvk.workspace.pointer import Pointer


class Room(Struct):
    """Packs that may go, and the chunks of them that were proven on a remote."""

    packs: list[Pack] = field(default_factory=list)
    proven: Safe = field(default_factory=Safe)
    leaving: frozenset[str] = frozenset()  #: versions, as records write roots, that have chunks in these packs


def make_room(
    repo: Repo,
    store: Store,
    marks: Marks,
    found: Found,
    roots: Collection[Root],
    over_bytes: int,
    stays: Marks,
    *,
    on_event: OnEvent,
) -> Room:
    """Choose packs of at least `over_bytes`, as far as all that is needed of them is on a remote. Deletes nothing.

    Args:
        store: the local one, opened so that reading does not count as use.
        roots: all versions that are needed.
        stays: what is needed by somebody to whom no remote of this repository promises anything.
    """
    room = Room()
    wanted = _Wanted(store, marks)
    left = over_bytes
    for pack in without(store, _least_used_first(repo, store, found), stays):
        if left <= 0:
            break
        wanted.add(pack)
        left -= pack.size
    for remote in _remotes(repo, on_event):
        if wanted.open:
            _prove(repo, remote, roots, wanted, room.proven, on_event)
    room.packs = [p for p in wanted.packs if room.proven.has(wanted.ids_of(p)).all()]
    going = [wanted.ids_of(p) for p in room.packs]
    room.leaving = frozenset(r.text for r in roots if going and _has_any(mark(store, [r]), going))
    held = len(wanted.packs) - len(room.packs)
    if held:
        note = f"{held:,} packs stay: not all of what is needed of them was seen on a remote"
        on_event(Note(note, subject=store.name, hint="`dvk push` sends it; then run this again"))
    return room


def without(store: Store, packs: Sequence[Pack], stays: Marks) -> list[Pack]:
    """The packs that hold nothing of what is to stay."""
    return [p for p in packs if not stays.rows(store.footer(p.name, p.kind)).any()]


def _least_used_first(repo: Repo, store: Store, found: Found) -> list[Pack]:
    """Data packs, those of what is checked out last: they would come back with the next `dvk pull`."""
    current = {n.root for n in staged(repo)}
    current |= {root_of(p) for _, p in repo.workspace.worktree_pointers() if isinstance(p, Pointer)}
    marks = mark(store, list(current))
    packs = [p for p in found.packs if p.kind is PackKind.DATA and not p.young]

    def in_use(pack: Pack) -> bool:
        return bool(marks.rows(store.footer(pack.name, pack.kind)).any())

    return sorted(packs, key=lambda p: (in_use(p), p.used_at, p.name))


class _Wanted:
    """Chunks that have to be seen on a remote before their packs may go."""

    def __init__(self, store: Store, marks: Marks) -> None:
        self._store, self._marks = store, marks
        self.packs: list[Pack] = []
        self._ids: dict[bytes, U8] = {}
        self._all = Safe()

    def add(self, pack: Pack) -> None:
        footer = self._store.footer(pack.name, pack.kind)
        self._ids[pack.name] = footer.ids[self._marks.rows(footer)]
        self._all.add(self._ids[pack.name])
        self.packs.append(pack)

    def ids_of(self, pack: Pack) -> U8:
        return self._ids[pack.name]

    @property
    def open(self) -> bool:
        return bool(self.packs)

    def has(self, ids: U8) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return self._all.has(ids)

    def of(self, root: Root) -> bool:
        """Whether a version has chunks in these packs."""
        return _has_any(mark(self._store, [root]), self._ids.values())


def _has_any(marks: Marks, ids: Iterable[U8]) -> bool:
    """Whether any of some chunks is needed."""
    return any(marks.chunks.has(some).any() for some in ids)


def _remotes(repo: Repo, on_event: OnEvent) -> Iterator[Remote]:
    for name in repo.workspace.config.remote_order():
        try:
            yield repo.remote(name, write=False)
        except DvkError as error:
            on_event(Note(f"not asked: {error.message}", subject=name, hint=error.hint))


def _prove(
    repo: Repo, remote: Remote, roots: Collection[Root], wanted: _Wanted, proven: Safe, on_event: OnEvent
) -> None:
    try:
        described = remote.store.describe()
        if described is None:
            return
        records = Records(remote.store.backend)
        with closing(Audit(remote.store, on_event=on_event, only=wanted.has, on_proven=proven.add)) as audit:
            for root in roots:
                if (root.kind == FILE and not root.size) or not wanted.of(root):
                    continue
                record = _record_of(audit, records, root, described.store)
                if record == repo.project:
                    audit.look(root)
    except DvkError as error:
        on_event(Note(f"cannot be read: {error.message}", subject=remote.name, hint=error.hint))


def _record_of(audit: Audit, records: Records, root: Root, store: str) -> str | None:
    """The project of the live record that covers a version; None where none does."""
    try:
        locator = audit.locator(root)
    except FormatError:
        return None
    found = records.covering(locator.record, root.text, store=store) if locator is not None else None
    return None if found is None else found.project
