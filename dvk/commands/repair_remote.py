"""`dvk repair` of a remote: from this clone's good copies, into new packs under a new record, as a push does.

    fetch        what this clone lacks, from `source`, other remotes, or this one where only the way to it is broken
    put aside    locators that are damaged or lead nowhere: without one a fetch still finds everything, slowly
    push         what relied on damaged or lost packs, in new packs; new locators; a record over it
    put aside    damaged packs that no record needs alone any more

What this clone cannot send again stays as it is, and is named: it may be all that is left of somebody's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dvk.commands.good_copies import Source, quiet, sources
from dvk.commands.push import as_push_versions, owner_of
from dvk.commands.repair_report import Mended, RepairResult, describe, name_what_is_left
from dvk.commands.repo import Remote, Repo
from dvk.commands.verify import wanted_versions
from dvk.commands.verify_remote import RemoteCheck
from dvk.commands.verify_report import Wanted
from dvk.commands.versions import Named
from dvk.errors import DvkError
from dvk.events import Note, OnEvent
from dvk.store.descriptor import KEY, format_descriptor
from dvk.store.examine import Level, list_packs
from dvk.store.examine_records import Records, examine_records
from dvk.store.fetch import Wanted as Fetchable
from dvk.store.fetch import fetch
from dvk.store.locator import locator_key
from dvk.store.mend import Quarantine
from dvk.store.names import show
from dvk.store.pack import pack_key
from dvk.store.push import push
from dvk.store.push_plan import Avoid
from dvk.store.record import format_mark
from dvk.store.restorable import Seen
from dvk.store.wholeness import State, Wholeness

_CONNECTIONS = 8


def repair_remote(
    repo: Repo,
    target: Remote,
    *,
    source: str | None,
    level: Level,
    drop_records: bool,
    dry_run: bool,
    on_event: OnEvent,
) -> RepairResult:
    """As `repair`, of a remote."""
    out = RepairResult(target.url, target.name, dry_run=dry_run)
    wanted = wanted_versions(repo, (), (), everything=False)
    with repo.writing(), sources(repo, source, but=target.name, on_event=on_event) as asked:
        check = RemoteCheck(repo, target, wanted, level, narrow=False, on_event=on_event)
        out.before = check.run()
        run = _Remote(repo, target, check, out, on_event)
        if dry_run:
            run.plan()
            out.after = out.before
            return out
        run.mend(asked, drop_records=drop_records)
    if not out.done:
        out.after = out.before
        return out
    again = repo.remote(target.name, write=False)
    out.after = RemoteCheck(repo, again, wanted, min(level, Level.NORMAL), narrow=False, on_event=on_event).run()
    name_what_is_left(out.after, run.quarantine.left, out.before.unread)
    return out


class _Remote:
    def __init__(self, repo: Repo, target: Remote, check: RemoteCheck, out: RepairResult, on_event: OnEvent) -> None:
        self.repo, self.target, self.check, self.out, self.on_event = repo, target, check, out, on_event
        self.store, self.backend = target.store, target.store.backend
        self.quarantine = Quarantine(self.backend)
        records = check.records
        assert records is not None
        self.records: Records = records
        self.bad = {
            pack_key(*key): str(x.error)
            for key, x in check.packs.found.items()
            if x.error is not None and x.unread is None
        }
        self.unread = {o.key for o in out.before.unread}
        self.bad |= dict.fromkeys(check.lost, "a record promises it and it is not there")

    def _say(self, what: str, subject: str, detail: str = "") -> None:
        self.out.done.append(Mended(what, subject, detail))

    def _aside(self, key: str, why: str) -> None:
        if key in self.unread:
            return
        if self.quarantine.take(key):
            self.out.quarantine = self.quarantine.prefix
            self._say("quarantine", key, why)

    # ------------------------------------------------------------ what is to be done

    def _to_send(self) -> list[tuple[Wanted, Seen]]:
        """The versions that have to be sent again: those that cannot be had, and those that count on damaged packs."""
        shaken = {root for key in self.bad for root in self.records_need(key)}
        shaken |= {root for rid in self.records.shaky() for root in self.records.all[rid].roots}
        promised = self.check.records.roots() if self.check.records is not None else {}
        out = []
        for w, seen in self.check.found:
            if w.root.text in promised:
                if seen.state is not State.WHOLE or seen.unreachable or w.root.text in shaken:
                    out.append((w, seen))
            elif (self.records.bad or self.check.unconfirmed) and (w.root.size or w.root.files):
                out.append((w, seen))  # a record that cannot be read may have promised it
        return out

    def records_need(self, key: str) -> set[str]:
        """The roots of live records that rely on a pack and that no record without it names."""
        without = self.records.roots(without={key})
        return {root for root in self.records.roots() if root not in without}

    def plan(self) -> None:
        """Say what would be done."""
        local = Wholeness(self.repo.store)
        for w, _ in self._to_send():
            here = local.look(w.root).state is State.WHOLE
            self._say("sent", describe(w), "from this clone" if here else "would be fetched first, if a source has it")
        for key, why in sorted(self.bad.items()):
            self._say("quarantine", key, why)

    # ------------------------------------------------------------ doing it

    def mend(self, asked: Sequence[Source], *, drop_records: bool) -> None:
        """Do all that can be done."""
        if any(d.key == KEY for d in self.check.damage):
            self._descriptor()
        self._marks()
        again = self._to_send()
        self._fetch(again, asked)
        for w, seen in again:
            if seen.unreachable or (seen.state is not State.WHOLE and not self.unread):
                self._locator(w, seen)
        for root, damage in self.check.locators.items():
            if damage is not None and root not in {w.root.text for w, _ in again}:
                self._aside(damage.key, damage.error.message)  # of somebody else's version; a search finds that
        self._push(again)
        self._packs()
        if drop_records:
            self._drop_records()

    def _descriptor(self) -> None:
        found = self.store.describe()
        assert found is not None  # what the records say
        self._aside(KEY, "damaged")
        self.backend.put(KEY, [format_descriptor(found)])
        self._say("store", KEY, f"written anew for the store {found.store[:12]} that its records name")

    def _marks(self) -> None:
        for d in self.check.damage:
            name, _, mark = d.key.removeprefix("j/").partition(".")
            # A confirmation that is gone is not given again: its record is, by another one over what it promised.
            if (
                d.key.startswith("j/")
                and not d.unread
                and mark in ("ok", "x", "e")
                and name not in self.check.unconfirmed
            ):
                self.backend.put(d.key, [format_mark(bytes.fromhex(name))])
                self._say("mark", d.key, "written again as it was")

    def _fetch(self, again: Iterable[tuple[Wanted, Seen]], asked: Sequence[Source]) -> None:
        """Bring what this clone lacks into it."""
        local = Wholeness(self.repo.store)
        lacking = [(w, seen) for w, seen in again if local.look(w.root).state is not State.WHOLE]
        own = [Source(self.target.name, self.store)] if any(seen.unreachable for _, seen in lacking) else []
        for source in [*asked, *own]:
            if not lacking:
                return
            wanted = [Fetchable(w.root, name=show(w.path)) for w, _ in lacking]
            try:
                fetch(source.store, self.repo.store, wanted, on_event=quiet(self.on_event))
            except DvkError as error:
                self.on_event(Note(f"cannot be asked ({error.message})", subject=source.name))
                continue
            local = Wholeness(self.repo.store)
            for w, _ in lacking:
                if local.look(w.root).state is State.WHOLE:
                    self._say("healed", describe(w), f"fetched from {source.name}")
            lacking = [(w, seen) for w, seen in lacking if local.look(w.root).state is not State.WHOLE]

    def _locator(self, w: Wanted, seen: Seen) -> None:
        """Put a locator aside that leads nowhere, if what it should lead to can be sent again."""
        key = locator_key(w.root.kind, w.root.id)
        if Wholeness(self.repo.store).look(w.root).state is State.WHOLE and self.backend.stat(key) is not None:
            self._aside(key, str(seen.error or "it leads to what is damaged or gone"))

    def _push(self, again: Sequence[tuple[Wanted, Seen]]) -> None:
        local = Wholeness(self.repo.store)
        held = [w for w, _ in again if local.look(w.root).state is State.WHOLE]
        if not held:
            return
        avoid = Avoid(
            packs={bytes.fromhex(key.rsplit("/", 1)[-1]) for key in self.bad},
            records={bytes.fromhex(r) for r in self.records.live if self.records.named(r) & self.bad.keys()}
            | {bytes.fromhex(r) for r in self.records.bad | self.records.shaky()},
            lost=dict(self.bad),
        )
        versions = as_push_versions([Named(w.path, w.root) for w in held])
        done = push(
            self.repo.store,
            self.store,
            versions,
            self.repo.remotes_state,
            on_event=quiet(self.on_event),
            owner=owner_of(self.repo),
            avoid=avoid,
        )
        names = {w.root: w for w in held}
        for version in done.sent:
            self._say("sent", describe(names[version.root]), "from this clone")

    def _packs(self) -> None:
        """Put damaged packs aside that nothing counts on alone any more; the others may be all that is left."""
        there = {pack_key(*key) for key in list_packs(self.backend)}
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="dvk-repair") as pool:
            self.records = examine_records(self.store, pool, packs=there)
        for key in sorted(self.bad.keys() & there):
            if not self.records_need(key):
                self._aside(key, self.bad[key])

    def _drop_records(self) -> None:
        """Put aside records that cannot be read, with their marks; retire those that relied on one and are replaced."""
        records = self.records
        unread = [d.key for d in records.damage if d.unread]
        if unread:
            self.on_event(Note("cannot be read now, so no record was put aside", subject=unread[0]))
            return
        shaky = records.shaky()
        sound = {root for rid in records.live - shaky for root in records.all[rid].roots}
        replaced = {rid for rid in shaky if sound.issuperset(records.all[rid].roots)}
        for rid in sorted(replaced):
            self.backend.put(f"j/{rid}.x", [format_mark(bytes.fromhex(rid))])
            self._say("mark", f"j/{rid}.x", "retired: other records name its versions, and it relied on a lost one")
        if shaky == replaced:
            for rid in sorted(records.bad):
                for key in (f"j/{rid}.ok", f"j/{rid}"):
                    self._aside(key, "a record that cannot be read")
