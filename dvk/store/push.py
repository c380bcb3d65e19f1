"""Sending versions to a remote: what is new in packs of their own, then what leads to it, then the promise.

The order is that of docs/format/record.md (P1 to P7): plan (`push_plan`), data packs (`push_data`), page packs
(`push_sections`), and here the intent record, a look at condemned lists, a check that everything relied on exists,
locators, confirmation, one more look. Each side of a race between pushers and collectors makes its intention visible
first and looks at the other's afterwards, so that no lock, clock or server is needed.

A push may be repeated after any interruption: packs that were proven to be there are taken from a journal, and a
version that a live record covers needs nothing.

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
from dataclasses import replace

from dvk import __version__
from dvk.errors import NotOurs, RemoteError, StorageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.locator import Locator, format_locator, locator_key
from dvk.store.pack import PackKind, pack_key
from dvk.store.push_data import Uploader, Vanished, send_data
from dvk.store.push_plan import Avoid, Plan, Pushed, Version
from dvk.store.push_sections import Sections
from dvk.store.record import Record, format_mark, format_record, record_id, record_key
from dvk.store.roots import condemned, is_live
from dvk.store.store import Store

__all__ = ["Pushed", "Version", "plan_push", "push"]

_ATTEMPTS = 5


class _Conflict(Exception):
    """Something that was relied on is condemned, gone or retired."""

    def __init__(self, packs: set[bytes], records: set[bytes]) -> None:
        super().__init__()
        self.packs, self.records = packs, records


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
) -> Pushed:
    """Send versions. Returns only when an independent clone could restore all of `sent`.

    Args:
        versions: oldest first.
        state: a directory of this clone for what it knows of remotes.
        verify_all: read every pack back whole, not only its end and one block.

    Raises:
        RemoteError: the remote answered wrongly, or nothing could be agreed after several attempts.
        Corrupt, DataMissing: a block of the local store is damaged or gone. Refused: the remote takes no such data.
    """
    avoid = Avoid()
    moved = 0
    vanished: Vanished | None = None
    for _ in range(_ATTEMPTS):
        plan = Plan(local, remote, versions, state, avoid=avoid, on_event=on_event, read_resumed=verify_all)
        with closing(plan):
            plan.make()
            run = _Push(plan, verify_all=verify_all)
            try:
                done = run.execute()
                done.moved_bytes += moved
                return done
            except _Conflict as conflict:
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
        if out.sent:
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
            confirmed.update((v.root.text, out.record) for v in out.sent)
            plan.journal.clear()
            out.packs, out.moved_bytes = len(uploader.written), uploader.moved_bytes
        self._remember(confirmed)
        return out

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
        plan, backend = self.plan, self.backend
        record = self._record(uploader, sections)
        data = format_record(record)
        rid = record_id(data)
        backend.put(record_key(rid), [data])  # P3
        dead = condemned(backend) & {*record.packs, *record.reused}  # P4
        self._check(record, dead, uploader, sections)  # P5
        list(plan.pool.map(lambda found: self._put_locator(found, rid, uploader), locators))
        again = self.remote.describe_again()
        if again is None or plan.store is None or again.store != plan.store.store:
            raise NotOurs(
                "the store on this remote was replaced during the push",
                subject=self.remote.name,
                hint="nothing was promised; if that is what it should be now, push again",
            )
        again.require("write", subject=self.remote.name)
        key = record_key(rid)
        backend.put(key + ".ok", [format_mark(rid)])  # P6
        seen = {item.key: item.size_bytes for item in backend.list(key)}  # P7
        if key + ".x" in seen or key + ".e" in seen:
            raise _Conflict(set(), {rid})
        # Everything hangs on the record, so that the remote took it is worth a look, too.
        if seen.get(key) != len(data) or key + ".ok" not in seen:
            raise RemoteError(
                "the record of this push is not on the remote, though that took it",
                subject=f"{self.remote.name}/{key}",
                hint="`dvk remote check` names what is wrong with this remote; nothing was promised, push again",
            )
        return rid

    def _record(self, uploader: Uploader, sections: Sections) -> Record:
        """Everything that the new locators lead to: our packs, old packs by name, or through the records of others."""
        plan = self.plan
        bases = {record for _, record in sections.used_refs}
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
            roots=tuple(sorted(v.root.text for v in plan.out.sent)),
            packs=tuple(sorted(packs)),
            reused=tuple(sorted(reused)),
            bases=tuple(sorted(b.hex() for b in bases)),
            time=int(time.time()),
            writer=f"dvk {__version__}",
            nonce=secrets.token_hex(16),
        )

    def _check(self, record: Record, dead: set[str], uploader: Uploader, sections: Sections) -> None:
        """P5: what is relied on exists, whole, and nobody retired a base."""
        plan = self.plan
        sizes = {**uploader.written, **plan.resumed}
        named = {*record.packs, *record.reused}
        # A live base answers for its packs. That they exist is asked all the same, for a remote that lost some.
        covered = {pack_key(PackKind.DATA, name): plan.known.origin.get(name, b"") for name in sections.used_packs}
        covered |= {pack_key(PackKind.PAGES, ref.pack): base for ref, base in sections.used_refs}
        asked = sorted(named | covered.keys())
        there = dict(zip(asked, plan.pool.map(self.backend.stat, asked), strict=True))
        bases = [bytes.fromhex(b) for b in record.bases]
        live = plan.pool.map(lambda b: is_live(self.backend, b), bases)
        fallen = {b for b, alive in zip(bases, live, strict=True) if not alive}
        for key, size in there.items():
            if size is None:
                dead.add(key)
                if base := covered.get(key, b""):
                    fallen.add(base)
            elif size != sizes.get(key, size):
                raise RemoteError(
                    f"a pack that was sent with {sizes[key]:,} bytes has {size:,} now",
                    subject=f"{self.remote.name}/{key}",
                    hint="`dvk remote check` names what is wrong with this remote; nothing was promised, push again",
                )
        if dead or fallen:
            raise _Conflict({bytes.fromhex(k.rsplit("/", 1)[-1]) for k in dead}, fallen)

    def _put_locator(self, locator: Locator, rid: bytes, uploader: Uploader) -> None:
        data = format_locator(replace(locator, record=rid))
        self.backend.put(locator_key(locator.kind, locator.id), [data])
        uploader.count(len(data))
