"""Collecting garbage on a remote: what no version needs any more goes, and nothing else, whoever pushes meanwhile.

    plan = collector.plan(kept)         # looks, changes nothing
    collector.condemn(kept, plan)       # retires records, condemns packs; they can still be read, and it can be undone
    collector.sweep(kept)               # after the grace: deletes what is condemned and still named by nobody

Roots live on the remote and Git only retires them: what this repository's history never named is somebody else's and
stays. A record is retired when nothing that it brought is wanted; where other records rely on it, one new record over
what is wanted takes their place first (`compact`). The order of steps is that of docs/format/gc.md, checked by
`dvk.testing.gc_model`; no clock decides about safety, times only leave people room to change their mind.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import Refused, Unsafe
from dvk.events import Meter, Note, OnEvent, ignore
from dvk.store.census import Census, take_census
from dvk.store.clock import PREFIX as CLOCK_PREFIX
from dvk.store.clock import ahead_of_ours
from dvk.store.collect_plan import CollectPlan, Kept, Limits, decide, ours, roots_that_go
from dvk.store.collect_state import Memory, State, open_state
from dvk.store.compact import Needs, cover, needs, needs_of_whole, needs_somehow, root_of_text
from dvk.store.condemned import condemned_key, format_condemned
from dvk.store.promise import Conflict
from dvk.store.record import Record, format_mark, record_key
from dvk.store.repack import find_sparse, resend, send_again
from dvk.store.store import Store

__all__ = ["CollectPlan", "Collector", "Kept", "Limits", "Swept", "Undone"]

_CONNECTIONS = 16
_WRITER = "dvk gc"
_STRANGERS_TOLD = 5
_LOCATOR = re.compile(r"l/([fd])/[0-9a-f]{2}/([0-9a-f]{64})")


class Swept(Struct, frozen=True):
    """What a sweep deleted."""

    packs: int
    bytes: int
    spared: int  #: packs that were condemned and that somebody came to need


class Undone(Struct, frozen=True):
    """What an undo brought back: roots, as records write them."""

    kept: tuple[str, ...]
    lost: tuple[str, ...]  #: those of which something is gone


class Collector:
    """Collects one remote. One at a time for each clone; any number of clones, and pushers, may be at work.

    Args:
        state: a directory of this clone for what it knows of remotes.
        project: whose records may be retired.
        promised: ids of records (hex) that this clone saw confirmed: none may be missing from a listing.
        local: the store of this clone: through it locators that lead nowhere are mended, and sparse packs written anew
            when `limits` say that it is alone.
    """

    def __init__(
        self,
        remote: Store,
        state: str,
        *,
        limits: Limits | None = None,
        project: str = "",
        promised: Collection[str] = (),
        local: Store | None = None,
        clock: Callable[[], float] = time.time,
        on_event: OnEvent = ignore,
    ) -> None:
        self.remote, self._folder, self._clock, self._on_event = remote, state, clock, on_event
        self.project, self._promised = project, frozenset(promised)
        self.limits, self.local = limits or Limits(), local
        self._records: dict[str, Record] = {}
        self._ahead_s: float | None = None
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dvk-collect")

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def _alone(self) -> Iterator[Memory]:
        found = self.remote.describe()
        if found is None:
            raise Refused("there is no dvk store here", subject=self.remote.name)
        with open_state(self._folder, found.store) as memory:
            yield memory

    def _census(self) -> Census:
        return take_census(self.remote, self._pool, known=self._records, alone=self.limits.exclusive)

    def _remove_damaged_lists(self, census: Census) -> None:
        """Alone: they warn of nothing, and no push gets past them."""
        for key in census.damaged_lists:
            self.remote.backend.delete(key)
            self._on_event(Note("a condemned list that was damaged is removed", f"{self.remote.name}/{key}"))

    def _tell_strangers(self, census: Census) -> None:
        for what in census.strangers[:_STRANGERS_TOLD]:
            note = f"this lies among the packs and is none; it stays: {what}"
            self._on_event(Note(note, self.remote.name, hint="move it elsewhere, if nobody knows it"))
        if (more := len(census.strangers) - _STRANGERS_TOLD) > 0:
            self._on_event(Note(f"and {more:,} more of these", self.remote.name))

    def _now(self) -> int:
        """Now, by the clock that wrote the times that ages are reckoned from: that of the storage, where it tells."""
        if self._ahead_s is None:
            self._ahead_s = ahead_of_ours(self.remote.backend, on_event=self._on_event)
        return int(self._clock() + self._ahead_s)

    # ------------------------------------------------------------ plan

    def plan(self, kept: Kept) -> CollectPlan:
        """What could go. Changes nothing on the remote; remembers which packs it has seen.

        Raises:
            Unsafe: what is seen cannot be trusted, no version would be left, or more than half would go.
        """
        with self._alone() as memory:
            census = self._census()
            self._tell_strangers(census)
            self._check(census, memory.state)
            # Seen before it is judged, so that a plan that is refused counts as a look, too.
            self._look(census, memory)
            return self._decide(kept, census, memory.state, self._now())

    def _sparse(self, kept: Kept, census: Census, plan: CollectPlan) -> dict[str, list[str]]:
        """Packs that are worth being written anew, when nobody else is there: key -> roots that use it."""
        if not self.limits.exclusive or self.local is None:
            return {}
        goes = roots_that_go(census, kept, self.limits, project=self.project, now=plan.made_at)
        rest = replace(_without(census, goes), dead=census.dead | {*plan.retire, *plan.give_up})
        found = find_sparse(self.remote, rest, ours(census, self.limits, self.project))
        return {key: users for key, users in found.items() if key not in plan.packs}

    def _decide(self, kept: Kept, census: Census, state: State, now: int) -> CollectPlan:
        plan = self._decide_with(kept, census, state, now, ())
        return replace(plan, repack=tuple(sorted(self._sparse(kept, census, plan))))

    def _decide_with(self, kept: Kept, census: Census, state: State, now: int, free: Collection[str]) -> CollectPlan:
        return decide(
            census,
            kept,
            self.limits,
            project=self.project,
            now=now,
            seen=state.seen,
            needs=lambda roots: needs_somehow(self.remote, roots, kept.roots)[0],
            subject=self.remote.name,
            free=free,
        )

    def _check(self, census: Census, state: State) -> None:
        if not census.live & census.confirmed:
            raise Unsafe(
                "no record on this remote says that anything is needed; nothing was deleted",
                subject=self.remote.name,
                hint="if it is to be emptied, delete it with the tools of the storage",
            )
        marked = {key[2:66] for key in census.leftovers}  # a retirement stays when its record is removed
        for rid in sorted({*state.live, *self._promised} - census.records.keys() - marked):
            raise Unsafe(
                f"record {rid[:12]} was here at the last look and nobody retired it; nothing was deleted",
                subject=self.remote.name,
                hint="`dvk remote check` says whether listings of this remote can be trusted",
            )

    # ------------------------------------------------------------ condemn

    def condemn(self, kept: Kept, planned: CollectPlan, *, policy: dict[str, object] | None = None) -> CollectPlan:
        """Do a plan up to the point from which it can still be undone; what was condemned.

        Args:
            policy: remembered until the sweep.

        Raises:
            Refused: the remote is not what it was when the plan was made: look at a new one; or an earlier collection
                of this clone waits for its sweep. Unsafe: as `plan`.
        """
        with self._alone() as memory:
            state = memory.state
            if state.list_key:
                raise Refused(
                    f"{len(state.packs):,} packs are condemned already and wait",
                    subject=self.remote.name,
                    hint="--sweep deletes them, --undo takes that back",
                )
            census = self._census()
            self._check(census, state)
            # Judged by the clock of the plan, so that nothing comes of age between looking and doing.
            plan = self._decide(kept, census, state, min(planned.made_at, self._now()))
            if plan.digest != planned.digest:
                raise Refused(
                    "the remote or the wanted versions changed since this plan was made",
                    subject=self.remote.name,
                    hint="make a new plan and look at it",
                )
            self._look(census, memory)
            self._remove_damaged_lists(census)
            if plan.empty:
                return plan
            if plan.repack:
                census, plan = self._repack(kept, census, plan, state)
            for rid in plan.give_up:
                self._mark(rid, ".e")
            self._compact(census, plan, kept)
            gone = [*plan.retire, *plan.replace]
            state.retired += gone
            state.unwanted = sorted({*state.unwanted, *plan.unwanted})
            state.policy = dict(policy or {})
            memory.save()  # before the first mark, so that it can be undone from here on
            for rid in gone:
                self._mark(rid, ".x")
            census = self._census()
            # Only what was planned, less what somebody came to need meanwhile.
            packs = sorted(set(plan.packs) & census.packs.keys() - census.named(census.live))
            if packs:
                data = format_condemned(packs, store=plan.store)
                state.list_key = condemned_key(data)
                state.packs, state.condemned_at = packs, self._now()
                memory.save()  # before it is published: nobody else will remove it
                self.remote.backend.put(state.list_key, [data])
            return replace(plan, packs=tuple(packs), bytes=sum(census.packs[k] for k in packs))

    def _repack(self, kept: Kept, census: Census, plan: CollectPlan, state: State) -> tuple[Census, CollectPlan]:
        """Send what lives in sparse packs again, and plan to let those go, too."""
        assert self.local is not None
        users = self._sparse(kept, census, plan)
        roots = sorted({root for key in plan.repack for root in users[key]})
        resend(
            self.local,
            self.remote,
            roots,
            plan.repack,
            census,
            state=self._folder,
            project=self.project,
            on_event=self._on_event,
        )
        census = self._census()
        self._check(census, state)
        again = self._decide_with(kept, census, state, plan.made_at, plan.repack)
        return census, replace(again, repack=plan.repack)

    def _needs(self, roots: Sequence[str], kept: Kept) -> Needs:
        """As `needs`. Locators that lead nowhere are written again first, by a push of this clone: a pusher with an old
        view may have died between writing one and confirming its record."""
        try:
            return needs(self.remote, roots)
        except Unsafe:
            if self.local is None:
                raise
        _, astray = needs_somehow(self.remote, roots, kept.roots)
        found = [kept.roots[t] if t in kept.roots else root_of_text(self.remote, t) for t in astray]
        send_again(self.local, self.remote, found, state=self._folder, project=self.project, on_event=self._on_event)
        self._on_event(Note(f"{len(astray):,} locators that led nowhere were written again", self.remote.name))
        return needs(self.remote, roots)

    def _compact(self, census: Census, plan: CollectPlan, kept: Kept) -> None:
        """Records over what the replaced ones held and is wanted, each of the project whose they were."""
        keep = set(plan.keep)
        for project in sorted({census.records[rid].project for rid in plan.replace}):
            theirs = {
                root
                for rid in plan.replace
                if census.records[rid].project == project
                for root in census.records[rid].roots
            }
            if not theirs & keep:
                continue
            try:
                wanted = sorted(theirs & keep)
                self._cover(wanted, self._needs(wanted, kept), _WRITER, project)
            except Conflict as error:
                raise Unsafe(
                    "another collection got in the way; nothing was deleted",
                    subject=self.remote.name,
                    hint="run it again when that has finished",
                ) from error

    def _mark(self, rid: str, mark: str) -> None:
        name = bytes.fromhex(rid)
        self.remote.backend.put(record_key(name, mark), [format_mark(name)])

    # ------------------------------------------------------------ sweep

    @property
    def condemned(self) -> State:
        """What this clone has condemned and not swept; `list_key` is empty when that is nothing."""
        with self._alone() as memory:
            return memory.state

    @property
    def ripe_at(self) -> int | None:
        """When what is condemned may be deleted, in seconds of the clock; None while nothing is."""
        state = self.condemned
        return state.condemned_at + self.limits.grace if state.list_key else None

    def sweep(self, kept: Kept) -> Swept:
        """Delete what this clone condemned long enough ago and nobody came to need.

        Args:
            kept: what Git says now. What it wants again gets a record before anything is deleted.

        Alone, with nothing condemned, it only clears away what others left.

        Raises:
            Refused: nothing is condemned, or the grace is not over. Unsafe: as `plan`; the condemned stay condemned.
        """
        with self._alone() as memory:
            state = memory.state
            if not state.list_key:
                if not self.limits.exclusive:
                    raise Refused("nothing is condemned", subject=self.remote.name, hint="make a plan first")
                census = self._census()
                self._check(census, state)
                self._remove_damaged_lists(census)
                self._bury(census)
                self._remove_records(census, state)
                self._tidy(census)
                return Swept(0, 0, 0)
            left = state.condemned_at + self.limits.grace - self._now()
            if left > 0:
                if self.limits.exclusive:  # no push gets past those, and they are no part of what waits
                    self._remove_damaged_lists(self._census())
                raise Refused(
                    f"what is condemned may be deleted in {left / 3600:.0f} hours",
                    subject=self.remote.name,
                    hint="until then it can be undone; --grace 0 does not wait",
                )
            # Pushers must be warned, by a list that is there from before the last look until after the last deletion.
            # The list of `condemn` does not do for that: where a clone was copied, the copy may remove it meanwhile.
            self._publish(memory)
            census = self._census()
            self._check(census, state)
            self._remove_damaged_lists(census)
            if self._revive(census, memory, kept):
                self._publish(memory)
                census = self._census()
                self._check(census, state)
            self._bury(census)
            condemned = set(state.packs)
            doomed = sorted(condemned & census.packs.keys() - census.named(census.live))
            freed = self._delete(doomed, census)
            self._withdraw(memory)
            self._remove_records(census, state)
            if self.limits.exclusive:
                self._tidy(census)
            state.clear()
            self._look(census, memory)
            return Swept(len(doomed), freed, len(condemned & census.packs.keys()) - len(doomed))

    def _bury(self, census: Census) -> None:
        """Give up for good: a confirmation that comes late must not bring back a name of packs that are gone (G5)."""
        for rid in sorted(census.dead - census.retired):
            self._mark(rid, ".x")

    def _publish(self, memory: Memory) -> None:
        """Condemn under a name that was never used, then remove the lists of our sweeps that were cut short."""
        found = self.remote.describe()
        assert found is not None
        data = format_condemned(memory.state.packs, store=found.store)
        before, memory.state.runs = memory.state.runs, [*memory.state.runs, condemned_key(data)]
        memory.save()
        self.remote.backend.put(condemned_key(data), [data])
        for key in before:
            self.remote.backend.delete(key)
        memory.state.runs = [condemned_key(data)]
        memory.save()

    def _withdraw(self, memory: Memory) -> None:
        """Remove our lists. Nothing is being deleted under them any more."""
        for key in (*memory.state.runs, memory.state.list_key):
            if key:
                self.remote.backend.delete(key)

    def _delete(self, doomed: Collection[str], census: Census) -> int:
        freed = sum(census.packs[k] for k in doomed)
        meter = Meter(self._on_event, "delete", total_bytes=freed, total_items=len(doomed))

        def delete(key: str) -> None:
            self.remote.backend.delete(key)
            meter.advance(bytes_=census.packs[key], items=1)

        jobs = [self._pool.submit(delete, key) for key in doomed]
        try:
            for job in jobs:
                job.result()
        finally:
            # Whoever comes next in this place takes our list away: not while a deletion is still under way.
            for job in jobs:
                job.cancel()
            wait(jobs)
        return freed

    def _revive(self, census: Census, memory: Memory, kept: Kept) -> bool:
        """Cover what Git wants again; whether the condemned list had to be taken away for that.

        Another clone may have retired it, knowing less of Git than this one.
        """
        state = memory.state
        held = self._held(census)
        doomed = frozenset(state.packs)
        naming = {
            rid for rid, record in census.records.items() if not doomed.isdisjoint((*record.packs, *record.reused))
        }
        losing = census.retired & (naming | census.relying(naming))
        unwanted = {*state.unwanted, *(root for rid in losing for root in census.records[rid].roots)}
        again = sorted(unwanted & kept.wanted - held)
        if not again:
            return False
        self._on_event(Note(f"{len(again):,} versions that were condemned are wanted again and stay", self.remote.name))
        self._withdraw(memory)
        found = self._needs(again, kept)
        try:
            self._cover(again, found, _WRITER, self.project)
        except Conflict as error:
            raise Unsafe(
                "versions that are wanted again are being deleted by another collection",
                subject=self.remote.name,
                hint="`dvk push` from a clone that holds them",
            ) from error
        state.packs = sorted(set(state.packs) - found.packs)
        state.unwanted = sorted(set(state.unwanted) - set(again))
        memory.save()
        return True

    def _held(self, census: Census) -> set[str]:
        """Roots that a live record of this project covers."""
        ours = (rid for rid in census.live & census.confirmed if census.records[rid].project == self.project)
        return {root for rid in ours for root in census.records[rid].roots}

    def _cover(self, roots: Iterable[str], found: Needs, writer: str, project: str) -> None:
        cover(self.remote, sorted(roots), found, pool=self._pool, writer=writer, project=project)

    def _remove_records(self, census: Census, state: State) -> None:
        """Records that are dead and that no other names; their marks stay, so that nobody misses them."""
        needed = census.reach(census.live) - census.live
        for rid in sorted(census.dead - needed):
            # What another clone retired is there for its undo.
            given_up = rid in census.expired and rid not in census.confirmed
            if rid in state.retired or given_up or self.limits.exclusive:
                name = bytes.fromhex(rid)
                self.remote.backend.delete(record_key(name))
                self.remote.backend.delete(record_key(name, ".ok"))

    def _tidy(self, census: Census) -> None:
        """Remove what only somebody who is alone may: lists that others left, and locators of what nobody keeps."""
        held = {root for rid in census.live for root in census.records[rid].roots}
        gone = [*census.lists, *(item.key for item in self.remote.backend.list(CLOCK_PREFIX))]
        for item in self.remote.backend.list("l/"):
            match = _LOCATOR.fullmatch(item.key)
            if match is not None and f"{match[1]}:{match[2]}" not in held:
                gone.append(item.key)
        list(self._pool.map(self.remote.backend.delete, gone))

    # ------------------------------------------------------------ undo

    def undo(self) -> Undone:
        """Take back what `condemn` did, before the sweep. What is gone already is named; the rest is whole again.

        Whether a version is whole is asked of its locator and packs and not of its record: what was lost and sent again
        lies under other names than the record says.

        Raises:
            Refused: nothing is condemned. Unsafe: another collection deletes the same; nothing was taken back.
        """
        with self._alone() as memory:
            state = memory.state
            if not state.list_key and not state.retired:
                raise Refused("nothing is condemned", subject=self.remote.name, hint="what was swept cannot come back")
            # First, since our own list may be the one that cannot be read. Without it nobody deletes what it names.
            self._withdraw(memory)
            census = self._census()
            again = [rid for rid in state.retired if rid in census.records]
            roots = {root for rid in again for root in census.records[rid].roots}
            gone = {root for root in state.unwanted if root not in roots} - self._held(census)
            found, lost = needs_of_whole(self.remote, sorted(roots))
            if whole := roots - lost:
                try:
                    self._cover(whole, found, "dvk gc --undo", self.project)
                except Conflict as error:
                    raise Unsafe("another collection is deleting them", subject=self.remote.name) from error
            state.clear()
            memory.save()
            return Undone(tuple(sorted(whole)), tuple(sorted(lost | gone)))

    # ------------------------------------------------------------ what this clone remembers

    def _look(self, census: Census, memory: Memory) -> None:
        """Remember what was seen, for the next look."""
        now = self._now()
        state = memory.state
        nobodys = census.packs.keys() - census.named(census.records)
        state.seen = {key: min(state.seen.get(key, now), now) for key in sorted(nobodys)}
        state.live = sorted(census.live & census.confirmed)
        memory.save()


def _without(census: Census, roots: frozenset[str]) -> Census:
    """The census as if records did not name some roots."""
    records = {rid: replace(r, roots=tuple(t for t in r.roots if t not in roots)) for rid, r in census.records.items()}
    return replace(census, records=records)
