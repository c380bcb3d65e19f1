"""`dvk verify --remote`: whether what revisions point to can be restored from a remote by a clone that has nothing.

With revisions or paths only what these rely on is looked at, so that a check of one commit costs what one commit has;
without, every object of the remote is, whoever it belongs to. Nothing is written there.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec.structs import replace

from dvk.commands.du import all_versions
from dvk.commands.repo import Remote, Repo
from dvk.commands.sources import expect_store
from dvk.commands.verify_local import WORDS
from dvk.commands.verify_report import (
    READ_AGAIN,
    UNSURE,
    WORK_TREE,
    DamagedObject,
    VerifyResult,
    Wanted,
    affected_version,
    damaged_object,
    summarize,
    who_to_ask,
)
from dvk.errors import Corrupt
from dvk.events import Meter, OnEvent
from dvk.store.checked import CheckedPacks, choose
from dvk.store.descriptor import Descriptor
from dvk.store.examine import Damage, Level, examine_store
from dvk.store.examine_records import Records, examine_locators, examine_records
from dvk.store.pack import pack_key
from dvk.store.restorable import Packs, Restorable, Seen
from dvk.store.root import FILE, Root
from dvk.store.roots import ConfirmedRoots
from dvk.store.roots import Records as LiveRecords
from dvk.store.wholeness import State, Wholeness

_CONNECTIONS = 8


class RemoteCheck:
    """One look at a remote. After `run` its parts say more than the report; `dvk repair` starts from them."""

    def __init__(
        self,
        repo: Repo,
        remote: Remote,
        wanted: Sequence[Wanted],
        level: Level,
        *,
        narrow: bool,
        percent: float = 100,
        on_event: OnEvent,
    ) -> None:
        self.repo, self.remote, self.store, self.wanted = repo, remote, remote.store, wanted
        self.level, self.narrow, self.percent, self.on_event = level, narrow, percent, on_event
        self.damage: list[Damage] = []
        self.found: list[tuple[Wanted, Seen]] = []
        self.records: Records | None = None  #: all of them, once somebody needs them
        self.locators: dict[str, Damage | None] = {}
        self.lost: dict[str, set[str]] = {}  #: packs that records promise and that are gone -> roots
        self.unconfirmed: set[str] = set()  #: records whose confirmation is lost
        self.blamed: set[str] = set()  #: keys of packs that do not hold what a version needs of them
        self._meter = Meter(on_event, "verify", total_bytes=0)

    def run(self) -> VerifyResult:
        """Look at everything that is meant.

        Raises:
            RemoteError: the remote does not answer. NotOurs: no dvk store is there.
        """
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dvk-verify") as self._pool:
            self.damage = examine_store(self.store)
            self.packs = Packs(self.store, min(self.level, Level.NORMAL), self._pool, self._meter)
            if self.damage:
                self._go_on_without_descriptor()
            if not self.narrow:
                self._objects()
            self._versions()
            if self.level is Level.DATA and self._read():
                self._versions()
            out = VerifyResult(self.remote.url, self.remote.name, WORDS[self.level])
            self._report(out)
        return out

    def _go_on_without_descriptor(self) -> None:
        """Take the store for what its records say it is; where nothing says so it is no store, or another one."""
        if not self.packs.sizes:
            expect_store(self.remote)
        self.store.assume(Descriptor.new())
        records = examine_records(self.store, self._pool, packs=set(), any_store=True)
        ids = Counter(record.store for record in records.all.values())
        expected = self.repo.known_store_id(self.remote.name)
        if not ids or (expected and expected not in ids):
            raise self.damage[0].error
        self.store.assume(replace(Descriptor.new(), store=expected or ids.most_common(1)[0][0]))

    # ------------------------------------------------------------ objects

    def all_records(self) -> Records:
        """Every record, read once."""
        if self.records is None:
            keys = {pack_key(*key) for key in self.packs.sizes}
            self.records = examine_records(self.store, self._pool, packs=keys)
        return self.records

    def _objects(self) -> None:
        records = self.all_records()
        self.damage += records.damage + self._forgotten(records)
        self.lost = records.lost({pack_key(*key) for key in self.packs.sizes})
        if self.level > Level.QUICK:
            self.locators = examine_locators(self.store, self._pool)
            self.damage += [d for d in self.locators.values() if d is not None]
            self.packs.examine(sorted(self.packs.sizes))

    def _forgotten(self, records: Records) -> list[Damage]:
        """Records that this clone saw confirmed and that are gone without having been retired."""
        found = self.store.describe()
        seen = ConfirmedRoots(self.repo.remotes_state, found.store).read() if found is not None else {}
        there = {rid.hex() for rid in seen.values()} - records.live - records.bad - records.ended
        gone = there - records.all.keys()
        records.bad |= gone
        self.unconfirmed = there - gone
        lost = {f"j/{rid}": "nobody retired it, and it is gone" for rid in gone}
        lost |= {f"j/{rid}.ok": "its confirmation is gone" for rid in self.unconfirmed}
        return [
            Damage(key, Corrupt(f"this clone saw this record confirmed; {what}", subject=f"{self.store.name}/{key}"))
            for key, what in sorted(lost.items())
        ]

    def _read(self) -> bool:
        """Read packs to the last byte; whether that brought damage to light."""
        used = {key for _, seen in self.found for key in seen.packs if key in self.packs.sizes}
        sizes = {key: self.packs.sizes[key] for key in (used if self.narrow else self.packs.sizes)}
        found = self.store.describe()
        name = found.store if found is not None else "unknown"
        checked = CheckedPacks(os.path.join(self.repo.remotes_state, f"checked-{name}"))
        last = checked.read()
        chosen = choose(sizes, {key: last[key[1]] for key in sizes if key[1] in last}, self.percent)
        before = {key for key, x in self.packs.found.items() if x.trouble is not None}
        self.packs.examine(chosen, Level.DATA)
        read = (key[1] for key in chosen if key not in self.packs.unread)
        checked.update(read, int(time.time()), there=(name for _, name in self.packs.sizes))
        return any(x.trouble is not None for key, x in self.packs.found.items() if key not in before)

    # ------------------------------------------------------------ versions

    def _versions(self) -> None:
        look = Restorable(self.store, self.packs)
        meter = Meter(self.on_event, "look", total_items=len(self.wanted))
        try:
            known: dict[tuple[Root, bytes], Seen] = {}
            for w in self.wanted:
                if (w.root, w.under) not in known:
                    known[w.root, w.under] = look.look(w.root, w.under)
                meter.advance(items=1)
        finally:
            look.close()
        self.blamed = {pack_key(*key) for key in look.blamed}
        self.found = [(w, known[w.root, w.under]) for w in self.wanted]

    def promised(self, seen: Sequence[tuple[Wanted, Seen]]) -> set[str]:
        """The roots that a live record names: what nobody promised may be collected any day."""
        found = self.store.describe()
        out: set[str] = set()
        if found is not None and self.records is None:
            # Where a record is named by who wrote the locator, or was seen before, the others need not be read.
            known = ConfirmedRoots(self.repo.remotes_state, found.store).read()
            live = LiveRecords(self.store.backend)
            for w, s in seen:
                hints = {s.record, known.get(w.root.text, b"")} - {b""}
                if any(live.covering(rid, w.root.text, store=found.store) for rid in hints):
                    out.add(w.root.text)
        if any(w.root.text not in out for w, _ in seen):
            out |= self.all_records().roots().keys()
        return out

    # ------------------------------------------------------------ the report

    def _report(self, out: VerifyResult) -> None:
        something = [(w, s) for w, s in self.found if w.root.size or w.root.kind != FILE]
        promised = self.promised(something)
        here = Wholeness(self.repo.store)
        out.versions = len(self.found)
        for w, seen in self.found:
            named = w.root.text in promised or not (w.root.size or w.root.kind != FILE)
            if seen.state is State.WHOLE and not seen.unreachable and named:
                out.whole += 1
                continue
            held = here.look(w.root).state is State.WHOLE
            elsewhere = (["this clone"] if held else []) + self._other_remotes(w.root)
            state, hint = self._judge(seen, named, elsewhere, w)
            out.affected.append(affected_version(w, seen, state, elsewhere, hint))
        out.affected.sort(key=lambda v: (v.state, v.path))
        out.packs = len(self.packs.sizes)
        out.packs_read = sum(x.level is Level.DATA for x in self.packs.found.values())
        out.read_bytes = self._meter.done_bytes
        out.objects = self._damaged_objects()
        out.summary = summarize(out)

    def _judge(self, seen: Seen, named: bool, elsewhere: Sequence[str], w: Wanted) -> tuple[str, str]:
        name = self.remote.name
        if named and seen.state is not State.WHOLE and self.packs.unread:
            return UNSURE, READ_AGAIN
        commit = next((r for r in w.revisions if r != WORK_TREE), "")
        push = f"`dvk push --remote {name}" + (f" --rev {commit[:9]}`" if commit else "`")
        mend = f"`dvk repair --remote {name}`"
        if seen.state is State.WHOLE and named:
            return "unreachable", f"{mend} writes its locator again; until then a fetch is slow"
        if seen.state is State.WHOLE:
            return "unprotected", f"{push} of a clone that has it"
        if not named:
            return "not-pushed", push if "this clone" in elsewhere else who_to_ask(w)
        if "this clone" in elsewhere:
            return "unreachable", f"{mend} sends it again from this clone"
        if elsewhere:
            return "unreachable", f"{mend[:-1]} --from {elsewhere[0]}` brings it from there"
        return "lost", who_to_ask(w).replace("--from` a clone", f"--remote {name} --from` a clone")

    def _other_remotes(self, root: Root) -> list[str]:
        others = [name for name in self.repo.workspace.config.remotes() if name != self.remote.name]
        return [name for name in others if root.text in self.repo.confirmed([name])]

    def _damaged_objects(self) -> list[DamagedObject]:
        rows = {d.key: d for d in self.damage}
        rows |= {d.key: d for d in self.packs.damage}
        for key in sorted(self.lost):
            gone = Corrupt("a record promises this pack and it is not there", subject=f"{self.store.name}/{key}")
            rows.setdefault(key, Damage(key, gone))
        if not rows:
            return []
        known = {n.root.text for n in all_versions(self.repo)} | {w.root.text for w in self.wanted}
        affected = {w.root.text for w, s in self.found if s.state is not State.WHOLE or s.unreachable}
        hint = f"`dvk repair --remote {self.remote.name}` mends it where a good copy is"
        out = []
        for key, d in sorted(rows.items()):
            others = sorted(self._roots_of(key) - known)
            needed = key in self.blamed or (key[0] == "l" and f"{key[2]}:{key.rsplit('/', 1)[-1]}" in affected)
            out.append(damaged_object(d, hint=hint, needed=needed, others=others[:100]))
        return out

    def _roots_of(self, key: str) -> set[str]:
        """The versions that need an object, by what records say."""
        if key[:2] == "l/":
            return {f"{key[2]}:{key.rsplit('/', 1)[-1]}"}
        if self.records is None or key[:2] not in ("p/", "m/"):
            return set()
        if key in self.lost:
            return self.lost[key]
        without = self.records.roots(without={key})
        return {root for root in self.records.roots() if root not in without}
