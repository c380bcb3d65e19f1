"""Sending versions to a remote: what is new in packs of their own, then what leads to it, then the promise.

The order is that of docs/format/record.md (P1 to P7): plan (`push_plan`), data packs (`push_data`), page packs
(`push_sections`), and here the intent record, a look at condemned lists, a check that everything relied on exists,
locators, confirmation, one more look. Each side of a race between pushers and collectors makes its intention visible
first and looks at the other's afterwards, so that no lock, clock or server is needed.

A push may be repeated after any interruption: packs that were proven to be there are taken from a journal, and a
version that a live record covers needs nothing, or a record alone (`push_plan`).

>>> plan_push(local, remote, versions, state).new_bytes            # doctest: +SKIP
28114002
>>> push(local, remote, versions, state).moved_bytes               # doctest: +SKIP
9120416
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import closing

from msgspec.structs import replace

from dvk import __version__
from dvk.backend.contract import KeyMissing
from dvk.errors import FormatError, RemoteError, StorageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.locator import MAX_BYTES, Locator, format_locator, locator_key, parse_locator
from dvk.store.pack import PackKind, pack_key
from dvk.store.promise import Conflict, promise
from dvk.store.push_audit import Audit
from dvk.store.push_data import Uploader, Vanished, send_data
from dvk.store.push_plan import Avoid, Owner, Plan, Pushed, Version
from dvk.store.push_sections import Sections
from dvk.store.record import Record
from dvk.store.store import Store

__all__ = ["Owner", "Pushed", "Version", "plan_push", "push"]

_ATTEMPTS = 5
_LOCATOR_END_BYTES = 64


def plan_push(
    local: Store, remote: Store, versions: Sequence[Version], state: str, *, on_event: OnEvent = ignore
) -> Pushed:
    """Work out what `remote` lacks. Changes nothing. Arguments as `push`."""
    with closing(Plan(local, remote, versions, state, avoid=Avoid(), on_event=on_event)) as plan:
        return plan.make()


def push(
    local: Store,
    remote: Store,
    versions: Sequence[Version],
    state: str,
    *,
    on_event: OnEvent = ignore,
    verify_all: bool = False,
    owner: Owner | None = None,
    avoid: Avoid | None = None,
) -> Pushed:
    """Send versions. Returns only when an independent clone could restore all of `sent`.

    Args:
        versions: oldest first.
        state: a directory of this clone for what it knows of remotes.
        verify_all: read every pack back whole, not only its end and one block, and all that the versions rely on that
            are there already. What is gone or damaged of that is sent again, as far as it is here.
        owner: whose the records are; nobody's by default.
        avoid: what must not be relied on, though it is there.
        avoid: packs and records that must not be relied on, as far as that is known already.

    Raises:
        RemoteError: the remote answered wrongly, or nothing could be agreed after several attempts.
        Corrupt, DataMissing: a block of the local store is damaged or gone. Refused: the remote takes no such data.
    """
    avoid = Avoid() if avoid is None else avoid
    if not verify_all:
        return _push(local, remote, versions, state, None, avoid, owner, on_event)
    with closing(Audit(remote, on_event=on_event)) as audit:
        return _push(local, remote, versions, state, audit, avoid, owner, on_event)


def _push(
    local: Store,
    remote: Store,
    versions: Sequence[Version],
    state: str,
    audit: Audit | None,
    avoid: Avoid,
    owner: Owner | None,
    on_event: OnEvent,
) -> Pushed:
    moved = 0
    vanished: Vanished | None = None
    for _ in range(_ATTEMPTS):
        plan = Plan(local, remote, versions, state, avoid=avoid, on_event=on_event, audit=audit, owner=owner)
        with closing(plan):
            plan.make()
            run = _Push(plan, verify_all=audit is not None)
            try:
                done = run.execute()
                done.moved_bytes += moved
                done.lost = tuple(sorted(avoid.lost))
                done.read_back_bytes = audit.read_bytes if audit is not None else 0
                return done
            except Conflict as conflict:
                avoid.packs |= conflict.packs
                avoid.records |= conflict.records
            except Vanished as error:
                vanished = error
            on_event(Note("data that this push relied on is being collected; sending it again", remote.name))
            moved += run.moved_bytes
    raise RemoteError(
        "what this push relies on vanished or was condemned under it again and again",
        subject=vanished.subject if vanished else remote.name,
        hint="let the garbage collection of this remote finish and push again; if there is none, `dvk remote check`",
    )


class _Push:
    """One attempt: does what was planned, in the order of the protocol."""

    def __init__(self, plan: Plan, *, verify_all: bool) -> None:
        self.plan, self.remote, self.backend = plan, plan.remote, plan.remote.backend
        self.verify_all = verify_all
        self.moved_bytes = 0

    def execute(self) -> Pushed:
        """Do what was planned; returns after the last look."""
        plan, out = self.plan, self.plan.out
        confirmed = dict(plan.adopted)
        if out.sent or plan.alone:
            plan.store = self.remote.create()
            for name in plan.stale:
                plan.journal.forget(name)
            uploader = Uploader(self.remote, plan.journal, plan.on_event, verify_all=self.verify_all)
            try:
                send_data(plan, uploader)
                sections = Sections(plan, uploader)
                locators = sections.write()
                out.record = self._promise(uploader, sections, locators)
            finally:
                self.moved_bytes = uploader.moved_bytes
            confirmed.update((root, out.record) for root in self._roots())
            if out.sent:
                plan.journal.clear()
            out.packs, out.moved_bytes = len(uploader.written), uploader.moved_bytes
        self._remember(confirmed)
        return out

    def _roots(self) -> list[str]:
        """What the record of this push is over."""
        return sorted({v.root.text for v in self.plan.out.sent} | self.plan.alone.keys())

    def _remember(self, confirmed: dict[str, bytes]) -> None:
        """Keep for `status` what is confirmed, and drop what turned out not to be."""
        if self.plan.store is None:
            return
        try:
            self.plan.confirmed.forget(t for t in self.plan.refuted if t not in confirmed)
            if confirmed:
                self.plan.confirmed.add(confirmed)
        except StorageError as error:
            self.plan.on_event(Note(f"everything is on the remote, but this clone cannot note it down ({error})"))

    # ------------------------------------------------------------ P3 to P7

    def _promise(self, uploader: Uploader, sections: Sections, locators: list[Locator]) -> bytes:
        plan = self.plan
        assert plan.store is not None
        covered = {pack_key(PackKind.DATA, name): plan.known.origin.get(name, b"") for name in sections.used_packs}
        covered |= {pack_key(PackKind.PAGES, ref.pack): base for ref, base in sections.used_refs}
        return promise(
            self.remote,
            self._record(uploader, sections),
            store=plan.store,
            pool=plan.pool,
            sizes={**uploader.written, **plan.resumed},
            covered=covered,
            put_locators=lambda rid: list(plan.pool.map(lambda x: self._put_locator(x, rid, uploader), locators)),
        )

    def _record(self, uploader: Uploader, sections: Sections) -> Record:
        """Everything that the new locators lead to: our packs, old packs by name, or through the records of others."""
        plan = self.plan
        bases = {*plan.alone.values(), *(record for _, record in sections.used_refs)}
        packs, reused = set(uploader.written), set()
        for name in sections.used_packs:
            key = pack_key(PackKind.DATA, name)
            if key in plan.resumed:
                packs.add(key)
            elif key not in packs and name in plan.known.origin:
                bases.add(plan.known.origin[name])
            elif key not in packs:
                reused.add(key)
        assert plan.store is not None
        return Record(
            store=plan.store.store,
            roots=tuple(self._roots()),
            packs=tuple(sorted(packs)),
            reused=tuple(sorted(reused)),
            bases=tuple(sorted(b.hex() for b in bases)),
            time=int(time.time()),
            writer=f"dvk {__version__}",
            nonce=secrets.token_hex(16),
            project=plan.owner.project,
        )

    def _put_locator(self, locator: Locator, rid: bytes, uploader: Uploader) -> None:
        """Put a locator and look at its end, which has the checksum of all of it."""
        key = locator_key(locator.kind, locator.id)
        data = format_locator(replace(locator, record=rid))
        self.backend.put(key, [data])
        if not self._is_ours(key, data) and not self._is_theirs(key, locator):
            raise RemoteError(
                "the remote does not hold the locator that was sent",
                subject=f"{self.remote.name}/{key}",
                hint="`dvk remote check` names what is wrong with it; nothing was promised, push again",
            )
        uploader.count(len(data))

    def _is_ours(self, key: str, data: bytes) -> bool:
        try:
            if self.verify_all:
                return self.backend.get(key, max_bytes=len(data)) == data
            end = data[-_LOCATOR_END_BYTES:]
            return self.backend.get_range(key, len(data) - len(end), len(end)) == end
        except (KeyMissing, FormatError):
            return False  # another one that is shorter or longer, or none

    def _is_theirs(self, key: str, locator: Locator) -> bool:
        """Whether somebody who pushes the same has written it after us; one that we found wanting does not count."""
        try:
            data = self.backend.get(key, max_bytes=MAX_BYTES)
            found = parse_locator(data, kind=locator.kind, wanted=locator.id, subject=f"{self.remote.name}/{key}")
        except (KeyMissing, FormatError):
            return False
        avoid = self.plan.avoid
        stale = found.record in avoid.records or any(r.pack in avoid.packs for r in found.sections)
        return not stale and (found.size, found.files) == (locator.size, locator.files)
