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

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace

from blake3 import blake3

from dvk.backend.disk import OPEN_DIR, locked_folder, make_durable_dirs, sync_fd, translate
from dvk.errors import Corrupt, Refused, Unsafe
from dvk.events import Meter, Note, OnEvent, ignore
from dvk.store.census import Census, take_census
from dvk.store.compact import compact, cover, needs
from dvk.store.promise import Conflict
from dvk.store.record import format_mark, record_key
from dvk.store.roots import format_condemned
from dvk.store.store import Store

_CONNECTIONS = 16
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """What Git says, as records write roots: everything its history ever named, and of that what is to stay."""

    known: frozenset[str]
    wanted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are in seconds and leave room for people; safety does not rest on them."""

    retention: int = 30 * 86400  #: a record stays at least this long, whatever Git says
    young: int = 86400  #: packs and intents of pushes that may be under way stay at least this long
    grace: int = 7 * 86400  #: between condemning and deleting
    more_than_half: bool = False  #: allow deleting more than half of all bytes


@dataclass(frozen=True, slots=True)
class CollectPlan:
    """What a collection would do. `digest` names it: the plan that was looked at is the one that is done."""

    store: str
    retire: tuple[str, ...]  #: records of which nothing is wanted any more
    replace: tuple[str, ...]  #: records that one over `keep` takes the place of
    keep: tuple[str, ...]  #: wanted roots of those
    give_up: tuple[str, ...]  #: intents that nobody confirmed for long
    unwanted: tuple[str, ...]  #: roots that go
    packs: tuple[str, ...]  #: that nobody needs then
    bytes: int
    total_packs: int
    total_bytes: int
    young: int  #: packs that no record names yet, too new to judge
    records: int

    @property
    def digest(self) -> str:
        """16 hex digits over everything that is decided."""
        decided = [self.store, self.retire, self.replace, self.keep, self.give_up, self.unwanted, self.packs]
        return blake3(json.dumps(decided).encode()).hexdigest()[:16]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.retire or self.replace or self.give_up or self.packs)


@dataclass(slots=True)
class _State:
    """What this clone remembers of its own collections of one remote."""

    list_key: str = ""
    condemned_at: int = 0
    packs: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)  #: roots of those that were not wanted
    seen: dict[str, int] = field(default_factory=dict)  #: packs that no record names: when we saw them first
    live: list[str] = field(default_factory=list)  #: confirmed records at the last look

    def clear(self) -> None:
        """Nothing is condemned by this clone any more."""
        self.list_key, self.condemned_at = "", 0
        self.packs, self.retired, self.unwanted = [], [], []


class Collector:
    """Collects one remote. One at a time for each clone; any number of clones, and pushers, may be at work."""

    def __init__(
        self,
        remote: Store,
        state: str,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        on_event: OnEvent = ignore,
    ) -> None:
        """`state`: a directory of this clone for what it knows of remotes."""
        self.remote, self._folder, self._clock, self._on_event = remote, state, clock, on_event
        self.limits = limits or Limits()
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dvk-collect")

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------ plan

    def plan(self, kept: Kept) -> CollectPlan:
        """What could go. Changes nothing on the remote; remembers which packs it has seen.

        Raises:
            Unsafe: what is seen cannot be trusted, no version would be left, or more than half would go.
        """
        with self._alone() as state:
            census = take_census(self.remote, self._pool)
            plan = self._plan(kept, census, state)
            self._look(census, state)
            return plan

    def _plan(self, kept: Kept, census: Census, state: _State) -> CollectPlan:
        self._check(census, state)
        now = int(self._clock())
        confirmed = census.live & census.confirmed
        roots = {rid: frozenset(census.records[rid].roots) for rid in confirmed}
        old = {rid for rid in confirmed if census.records[rid].time <= now - self.limits.retention}
        # A version that was pushed again lately stays, whatever Git says here.
        goes = (kept.known - kept.wanted).difference(*(roots[rid] for rid in confirmed - old))
        touched = {rid for rid in confirmed if roots[rid] & goes}
        retire = {rid for rid in touched if roots[rid] <= goes}
        # Whoever relies on a record that goes, or that is gone already, holds all of its packs.
        gone = touched | census.retired
        replaced = (touched - retire) | {rid for rid in confirmed - touched if census.bases(rid) & gone}
        give_up = {
            rid for rid in census.intents - census.expired if census.records[rid].time <= now - self.limits.young
        }
        stay = census.live - give_up - retire
        garbage = census.packs.keys() - census.named(stay)
        keep = {root for rid in replaced for root in roots[rid]} - goes
        if keep and census.named(stay) - census.named(stay - replaced):
            less = census.named(stay - replaced) | needs(self.remote, sorted(keep)).packs
            # A compaction that frees nothing would only cost.
            if census.packs.keys() - less > garbage:
                garbage = census.packs.keys() - less
            else:
                replaced, keep = set(), set()
        else:
            replaced, keep = set(), set()
        unwanted = {root for rid in retire | replaced for root in roots[rid] & goes}
        ever = census.named(census.records)
        young = {k for k in garbage - ever if state.seen.get(k, now) > now - self.limits.young}
        packs = sorted(garbage - young)
        plan = CollectPlan(
            store=census.store,
            retire=tuple(sorted(retire)),
            replace=tuple(sorted(replaced)),
            keep=tuple(sorted(keep)),
            give_up=tuple(sorted(give_up)),
            unwanted=tuple(sorted(unwanted)),
            packs=tuple(packs),
            bytes=sum(census.packs[k] for k in packs),
            total_packs=len(census.packs),
            total_bytes=sum(census.packs.values()),
            young=len(young),
            records=len(census.records),
        )
        self._check_plan(plan, bool(confirmed - retire))
        return plan

    def _check(self, census: Census, state: _State) -> None:
        if not census.live & census.confirmed:
            raise Unsafe(
                "no record on this remote says that anything is needed; nothing was deleted",
                subject=self.remote.name,
                hint="if it is to be emptied, delete it with the tools of the storage",
            )
        marked = {key[2:66] for key in census.leftovers}  # a retirement stays when its record is removed
        for rid in state.live:
            if rid not in census.records and rid not in marked:
                raise Unsafe(
                    f"record {rid[:12]} was here at the last look and nobody retired it; nothing was deleted",
                    subject=self.remote.name,
                    hint="`dvk remote check` says whether listings of this remote can be trusted",
                )

    def _check_plan(self, plan: CollectPlan, something: bool) -> None:
        if not something:
            raise Unsafe(
                "nothing that is wanted would be left; nothing was deleted",
                subject=self.remote.name,
                hint="fetch all branches and tags first; what Git does not know here looks unwanted",
            )
        if plan.bytes * 2 > plan.total_bytes and not self.limits.more_than_half:
            raise Unsafe(
                f"{plan.bytes:,} of {plan.total_bytes:,} bytes would go, more than half; nothing was deleted",
                subject=self.remote.name,
                hint="look at the plan; if it is right, say --more-than-half",
            )

    # ------------------------------------------------------------ condemn

    def condemn(self, kept: Kept, planned: CollectPlan) -> CollectPlan:
        """Do a plan up to the point from which it can still be undone; what was condemned.

        Raises:
            Refused: the remote is not what it was when the plan was made: look at a new one; or an earlier collection
                of this clone waits for its sweep. Unsafe: as `plan`.
        """
        with self._alone() as state:
            if state.list_key:
                raise Refused(
                    f"{len(state.packs):,} packs are condemned already and wait",
                    subject=self.remote.name,
                    hint="sweep them or undo that first",
                )
            census = take_census(self.remote, self._pool)
            plan = self._plan(kept, census, state)
            if plan.digest != planned.digest:
                raise Refused(
                    "the remote or the wanted versions changed since this plan was made",
                    subject=self.remote.name,
                    hint="make a new plan and look at it",
                )
            self._look(census, state)
            if plan.empty:
                return plan
            for rid in plan.give_up:
                self._mark(rid, ".e")
            if plan.keep:
                try:
                    compact(self.remote, plan.keep, pool=self._pool)
                except Conflict as error:
                    raise Unsafe(
                        "another collection got in the way; nothing was deleted",
                        subject=self.remote.name,
                        hint="run it again when that has finished",
                    ) from error
            gone = [*plan.retire, *plan.replace]
            state.retired += gone
            state.unwanted = sorted({*state.unwanted, *plan.unwanted})
            self._save(state)  # before the first mark, so that it can be undone from here on
            for rid in gone:
                self._mark(rid, ".x")
            census = take_census(self.remote, self._pool)
            # Only what was planned, less what somebody came to need meanwhile.
            packs = sorted(set(plan.packs) & census.packs.keys() - census.named(census.live))
            if packs:
                state.list_key = f"g/c-{secrets.token_hex(16)}"
                state.packs, state.condemned_at = packs, int(self._clock())
                self._save(state)  # before it is published: only the owner may remove it, so it must know it
                self.remote.backend.put(state.list_key, [format_condemned(packs, store=plan.store)])
            return replace(plan, packs=tuple(packs), bytes=sum(census.packs[k] for k in packs))

    def _mark(self, rid: str, mark: str) -> None:
        name = bytes.fromhex(rid)
        self.remote.backend.put(record_key(name, mark), [format_mark(name)])

    # ------------------------------------------------------------ sweep

    @property
    def ripe_at(self) -> int | None:
        """When what is condemned may be deleted, in seconds of the clock; None while nothing is."""
        with self._alone() as state:
            return state.condemned_at + self.limits.grace if state.list_key else None

    def sweep(self, kept: Kept) -> tuple[int, int]:
        """Delete what this clone condemned long enough ago and nobody came to need: (packs, bytes).

        Args:
            kept: what Git says now. What it wants again gets a record before anything is deleted.

        Raises:
            Refused: nothing is condemned, or the grace is not over. Unsafe: as `plan`; the condemned stay condemned.
        """
        with self._alone() as state:
            if not state.list_key:
                raise Refused("nothing is condemned", subject=self.remote.name, hint="make a plan first")
            left = state.condemned_at + self.limits.grace - int(self._clock())
            if left > 0:
                raise Refused(
                    f"what is condemned may be deleted in {left / 3600:.0f} hours",
                    subject=self.remote.name,
                    hint="until then it can be undone; --grace 0 does not wait",
                )
            # Asked before the census: a list that comes to light during it warned nobody whom the census misses.
            published = self.remote.backend.stat(state.list_key) is not None
            census = take_census(self.remote, self._pool)
            self._check(census, state)
            if self._revive(census, state, kept) or not published:
                # Nothing may be deleted that pushers were not warned of, so it is published before the last look.
                self.remote.backend.put(state.list_key, [format_condemned(state.packs, store=census.store)])
                census = take_census(self.remote, self._pool)
            doomed = sorted(set(state.packs) & census.packs.keys() - census.named(census.live))
            freed = sum(census.packs[k] for k in doomed)
            meter = Meter(self._on_event, "delete", total_bytes=freed, total_items=len(doomed))

            def delete(key: str) -> None:
                self.remote.backend.delete(key)
                meter.advance(bytes_=census.packs[key], items=1)

            list(self._pool.map(delete, doomed))
            self.remote.backend.delete(state.list_key)
            self._remove_records(census, state)
            state.clear()
            self._look(census, state)
            return len(doomed), freed

    def _revive(self, census: Census, state: _State, kept: Kept) -> bool:
        """Cover what Git wants again; whether the condemned list had to be taken away for that.

        Another clone may have retired it, knowing less of Git than this one.
        """
        held = {root for rid in census.live & census.confirmed for root in census.records[rid].roots}
        doomed = frozenset(state.packs)
        losing = [rid for rid in census.retired if not doomed.isdisjoint(census.named([rid]))]
        unwanted = {*state.unwanted, *(root for rid in losing for root in census.records[rid].roots)}
        again = sorted(unwanted & kept.wanted - held)
        if not again:
            return False
        self._on_event(Note(f"{len(again):,} versions that were condemned are wanted again and stay", self.remote.name))
        if state.list_key:
            self.remote.backend.delete(state.list_key)
        found = needs(self.remote, again)
        try:
            cover(self.remote, again, found, pool=self._pool, writer="dvk gc")
        except Conflict as error:
            raise Unsafe(
                "versions that are wanted again are being deleted by another collection",
                subject=self.remote.name,
                hint="`dvk push` from a clone that holds them",
            ) from error
        # A list of that name was taken away: what is still condemned goes under a new one.
        state.list_key = f"g/c-{secrets.token_hex(16)}"
        state.packs = sorted(set(state.packs) - found.packs)
        state.unwanted = sorted(set(state.unwanted) - set(again))
        self._save(state)
        return True

    def _remove_records(self, census: Census, state: _State) -> None:
        """Records that are dead and that no other names; their marks stay, so that nobody misses them."""
        needed = {base for rid in census.live for base in census.bases(rid)}
        for rid in sorted(census.dead - needed):
            if rid in state.retired or rid not in census.retired:
                name = bytes.fromhex(rid)
                self.remote.backend.delete(record_key(name))
                self.remote.backend.delete(record_key(name, ".ok"))

    # ------------------------------------------------------------ undo

    def undo(self) -> int:
        """Take back what `condemn` did, before the sweep: how many versions are wanted again.

        Raises:
            Refused: nothing is condemned. Unsafe: packs are gone already; the message counts them.
        """
        with self._alone() as state:
            if not state.list_key and not state.retired:
                raise Refused("nothing is condemned", subject=self.remote.name, hint="what was swept cannot come back")
            census = take_census(self.remote, self._pool)
            again = [rid for rid in state.retired if rid in census.records]
            roots = sorted({root for rid in again for root in census.records[rid].roots})
            if lost := census.named(again) - census.packs.keys():
                raise Unsafe(f"{len(lost):,} packs are deleted already", subject=self.remote.name)
            if state.list_key:
                self.remote.backend.delete(state.list_key)
            if roots:
                found = needs(self.remote, roots)
                try:
                    cover(self.remote, roots, found, pool=self._pool, writer="dvk gc --undo")
                except Conflict as error:
                    raise Unsafe("another collection is deleting them", subject=self.remote.name) from error
            state.clear()
            self._save(state)
            return len(roots)

    # ------------------------------------------------------------ what this clone remembers

    def _look(self, census: Census, state: _State) -> None:
        """Remember what was seen, for the next look."""
        now = int(self._clock())
        nobodys = census.packs.keys() - census.named(census.records)
        state.seen = {key: min(state.seen.get(key, now), now) for key in sorted(nobodys)}
        state.live = sorted(census.live & census.confirmed)
        self._save(state)

    @contextmanager
    def _alone(self) -> Iterator[_State]:
        found = self.remote.describe()
        if found is None:
            raise Refused("there is no dvk store here", subject=self.remote.name)
        folder = os.path.join(self._folder, found.store)
        with translate(folder):
            make_durable_dirs(folder)
            fd = os.open(folder, OPEN_DIR)
        try:
            with locked_folder(fd):
                self._path = os.path.join(folder, "collect.json")
                yield self._load()
        finally:
            os.close(fd)

    def _load(self) -> _State:
        try:
            with open(self._path, encoding="ascii") as file:
                raw = json.load(file)
            if raw.pop("format") != _FORMAT:
                raise ValueError("format")
            return _State(**raw)
        except FileNotFoundError:
            return _State()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Corrupt(
                "what this clone remembers of its garbage collection is damaged",
                subject=self._path,
                hint="remove the file; a condemned list that it knew stays and only makes pushes send more",
            ) from error

    def _save(self, state: _State) -> None:
        temporary = f"{self._path}.{secrets.token_hex(8)}.tmp"
        with translate(self._path):
            try:
                with open(temporary, "x", encoding="ascii") as file:
                    json.dump({"format": _FORMAT, **asdict(state)}, file)
                    file.flush()
                    sync_fd(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            fd = os.open(os.path.dirname(self._path), OPEN_DIR)
            try:
                sync_fd(fd)
            finally:
                os.close(fd)
