"""`dvk repair` of the local store. Each step leaves a store that is no worse than before, whenever it is killed:

note what is lost            durably, so that a later look still knows that it was here; else nothing is moved
salvage                      what is good in damaged packs, into new packs, durably
put aside                    the damaged packs: a copy first, the object last
index                        anew from footers; then the old segments go
heal                         from the files on disk, then from `source` and the remotes, each byte proven
look again                   and drop the notes of what is back

What cannot be read is tried again, then named and left alone: of its versions what others have is brought all the same.
"""

from __future__ import annotations

import copy
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from dvk.commands.good_copies import Source, quiet, sources
from dvk.commands.repair_report import Mended, RepairResult, describe, name_what_is_left
from dvk.commands.repo import Repo
from dvk.commands.tracked import look, read_unknown
from dvk.commands.verify import wanted_versions
from dvk.commands.verify_local import LocalCheck
from dvk.commands.verify_report import UNSURE, VerifyResult, Wanted, affected_version
from dvk.errors import DvkError, StorageError
from dvk.events import Note, OnEvent
from dvk.store.descriptor import KEY, Descriptor, format_descriptor
from dvk.store.examine import Level
from dvk.store.fetch import Wanted as Fetchable
from dvk.store.fetch import fetch
from dvk.store.ingest import ingest
from dvk.store.mend import Quarantine, salvage
from dvk.store.names import show
from dvk.store.pack import pack_key
from dvk.store.pagewriter import write_listing
from dvk.store.root import FOLDER, Root
from dvk.store.wholeness import NAMED, Found, State, Wholeness
from dvk.store.writer import Writer
from dvk.workspace.selection import Selection
from dvk.workspace.source import SourceFiles
from dvk.workspace.statcache import forget

#: Lost files of a folder that are asked for one by one.
_ONE_BY_ONE = 64


def repair_local(repo: Repo, *, source: str | None, level: Level, dry_run: bool, on_event: OnEvent) -> RepairResult:
    """As `repair`, of the local store."""
    out = RepairResult(show(repo.workspace.store_dir), dry_run=dry_run)
    wanted = wanted_versions(repo, (), (), everything=True)
    with repo.writing(), sources(repo, source, on_event=on_event) as asked:
        with LocalCheck(repo, wanted, level, on_event=on_event) as check:
            out.before = check.run([])
            held = {(w.path, w.root): found.state for w, found in check.found}
            run = _Local(repo, check, out, on_event)
            if dry_run:
                run.plan(asked)
                out.after = out.before
                return out
            run.objects()
            run.state(out.before)
            run.heal(asked)
        if not out.done:
            out.after = out.before
            return out
        with LocalCheck(repo, wanted, Level.NORMAL, on_event=on_event) as check:
            out.after = check.run([])
            _name_forgotten(out.after, held, check)
        name_what_is_left(out.after, run.quarantine.left, out.before.unread)
    return out


def _name_forgotten(after: VerifyResult, held: Mapping[tuple[bytes, Root], State], check: LocalCheck) -> None:
    """Call lost what was here before and is taken for never fetched now: no repair may end well by forgetting."""
    for w, found in check.found:
        before = held[w.path, w.root]
        if found.state in (State.ABSENT, State.PARTLY) and (
            before is State.WHOLE or (before is not State.ABSENT and found.state is State.ABSENT)
        ):
            state = UNSURE if check.packs.unread else "lost"
            after.affected.append(affected_version(w, found, state, [], "it was here before this repair"))
            after.not_here -= 1


def _not_noted(error: DvkError) -> DvkError:
    """Without a durable note nothing may move: the note is what tells lost from never fetched."""
    out = copy.copy(error)
    out.message = f"damage could not be noted, so nothing was put aside: {error.message}"
    out.args = (out.message,)
    return out


class _Local:
    def __init__(self, repo: Repo, check: LocalCheck, out: RepairResult, on_event: OnEvent) -> None:
        self.repo, self.store, self.check, self.out, self.on_event = repo, repo.store, check, out, on_event
        self.quarantine = Quarantine(self.store.backend)

    def _say(self, what: str, subject: str, detail: str = "") -> None:
        self.out.done.append(Mended(what, subject, detail))

    def plan(self, asked: Sequence[Source]) -> None:
        """Say what would be done."""
        for o in self.out.before.objects:
            if o.certain:
                self._say("quarantine" if o.kind != "index" else "index", o.key, o.message)
        names = [s.name for s in asked]
        for w, found in self.check.found:
            if found.state is State.LOST:
                known = [x for x in self.check.elsewhere(w, found) if x not in names]
                self._say(
                    "healed", describe(w), f"would be looked for: {', '.join([*known, *names]) or 'nowhere is known'}"
                )

    # ------------------------------------------------------------ objects

    def objects(self) -> None:
        """Salvage what is good, put aside what is not, and index what is there then."""
        store, check = self.store, self.check
        if check.packs.problems:
            raise _not_noted(check.packs.problems[0])
        if check.damage:
            self._descriptor()
        unread = {name for _, name in check.packs.unread}
        damaged = [x for x in check.packs.found.values() if x.error is not None and x.name not in unread]
        # A pack that another one was written over has a footer, and what the index says of it is gone all the same.
        lost = {x.name for x in damaged} | set(check.vanished)
        if lost:
            try:
                store.note_losses(lost)
            except StorageError as error:
                raise _not_noted(error) from error
        segments = {d.key for d in check.index_damage() if not d.unread}
        if not damaged and not lost and not segments:
            return
        for x in damaged:
            assert x.error is not None
            store.distrust(x.name, x.error)
        with Writer(store) as writer:
            for x in damaged:
                saved = salvage(store, writer, x)
                if saved:
                    self._say("salvaged", pack_key(x.kind, x.name), f"{saved:,} bytes")
            writer.flush()
        for x in damaged:
            self._aside(pack_key(x.kind, x.name), str(x.error))
        # Whatever the index says of packs that are gone now, or wrongly, goes with it.
        old = store.rebuild_index(keep=unread)
        for key in old:
            if key in segments:
                self._aside(key, "the index was written anew from footers")
            else:
                store.backend.delete(key)
        for key in segments - set(old):  # notes that cannot be read
            self._aside(key, "what it said is found again by whoever reads it")
        store.refresh()
        self._say("index", "i/", "written anew from the footers of all packs")

    def _aside(self, key: str, why: str) -> None:
        if self.quarantine.take(key):
            self.out.quarantine = self.quarantine.prefix
            self._say("quarantine", key, why)

    def _descriptor(self) -> None:
        """Write dvk.json anew; the id of a local store means nothing to anybody."""
        self._aside(KEY, self.check.damage[0].error.message)
        fresh = Descriptor.new()
        self.store.backend.put(KEY, [format_descriptor(fresh)])
        self.store.assume(fresh)
        self._say("store", KEY, "written anew")

    # ------------------------------------------------------------ state of the worktree

    def state(self, before: VerifyResult) -> None:
        """Drop caches that are damaged; what cannot be made again is left to the user."""
        for problem in before.workspace:
            if problem.kind == "stat cache":
                forget(self.repo.state, problem.path)
                self._say("state", show(problem.path), "its stat cache was dropped")
            elif problem.kind == "state":
                path = os.path.join(self.repo.state, problem.path)
                with suppress(OSError):
                    os.rename(path, path + b".damaged-" + secrets.token_hex(8).encode())
                    self._say("state", show(problem.path), "put aside")

    # ------------------------------------------------------------ versions

    def heal(self, asked: Sequence[Source]) -> None:
        """Bring back what was lost, from the disk and from other stores."""
        left = self._look([(w, f) for w, f in self.check.found if f.state is State.LOST], "damaged packs")
        for path in sorted({w.path for w, _ in left if self.check.is_on_disk(w)}):
            self._from_disk(path)
        left = self._look(left, "the work tree")
        for source in asked:
            if not left:
                break
            # A thousand files are named at a time, so it goes on as long as that helps.
            while left:
                before = sum(found.lost_files for _, found in left)
                try:
                    done = fetch(
                        source.store,
                        self.store,
                        [self._fetchable(w, found) for w, found in left],
                        on_event=quiet(self.on_event),
                    )
                except DvkError as error:
                    self.on_event(Note(f"cannot be asked ({error.message})", subject=source.name))
                    break
                left = self._look(left, source.name)
                more = any(found.lost_files >= NAMED for _, found in left)
                if not done.new_bytes or not more or sum(f.lost_files for _, f in left) >= before:
                    break
        self.store.prune_notes(self.check.proven)

    def _look(self, left: Sequence[tuple[Wanted, Found]], source: str) -> list[tuple[Wanted, Found]]:
        """Look again at what was lost, and say what came back."""
        check = Wholeness(self.store, was_here=self.check.was_here)
        out = []
        for w, _ in left:
            now = check.look(w.root, w.under)
            if now.state is State.LOST:
                out.append((w, now))
            else:
                self._say("healed", describe(w), f"from {source}")
        return out

    def _fetchable(self, w: Wanted, found: Found) -> Fetchable:
        """What to fetch of a version: what was lost of it, not what was never asked for."""
        if w.root.kind != FOLDER:
            return Fetchable(w.root, name=show(w.path))
        lost = [m for m in found.missing if m.lost]
        if len(lost) > _ONE_BY_ONE and found.lost_files == found.missing_files:
            return Fetchable(w.root, name=show(w.path))
        if len(lost) > _ONE_BY_ONE or any(
            m.files > 1 or not m.name for m in lost
        ):  # a page of its list, so nobody knows which files
            selected = Selection.load(self.repo.state).get(w.path)
            under = selected.prefixes if selected is not None and selected.prefixes is not None else (b"",)
            return Fetchable(w.root, under, show(w.path))
        return Fetchable(w.root, tuple(m.name for m in lost), show(w.path))

    def _from_disk(self, path: bytes) -> None:
        """Store what lies at a tracked path; whatever it is, it goes under its own ids."""
        repo = self.repo
        try:
            pointer = repo.workspace.read_pointer(path)
            seen = look(repo.root_fd, path, repo.state, repo.workspace.ignore_rules())
            seen = read_unknown(repo.root_fd, seen, seen.unknown(), on_event=self.on_event)
            which = np.flatnonzero(seen.is_file)
            which = which[~self.store.holds(seen.ids[which], seen.scan.stats.sizes[which])]
            with Writer(self.store) as writer:
                with SourceFiles(repo.root_fd, path, seen.scan, which) as files:
                    sizes = seen.scan.stats.sizes[which]
                    profile = repo.workspace.config.profile_for(path)
                    ingest(writer, files, sizes, profile=profile, on_event=self.on_event)
                if pointer.is_dir:
                    write_listing(seen.entries(), writer.add_page)
                writer.flush()
        except DvkError as error:
            self.on_event(Note(f"could not be stored again from the work tree ({error})", subject=show(path)))
