"""Brings tracked paths in step with versions: what `checkout` and `pull` both do once they know which version.

    run = Materializer(repo, on_event=on_event)
    run.begin([(path, (), pointer)])       # out of Git's sight before it appears, and known as dvk's
    run.one(path, pointer)                 # any number of these
    run.remove_left_behind()
    result = run.finish()

Only what differs is written. Whatever is replaced or deleted is content that the store (or a remote) holds; anything
else stays and is named, and the other paths still arrive.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from dvk.commands.left_behind import remove_left_behind
from dvk.commands.placed import Placed, bare
from dvk.commands.replaceable import Replaceable
from dvk.commands.repo import Repo
from dvk.commands.tracked import (
    Look,
    join_path,
    look,
    not_here,
    pointer_entries,
    read_unknown,
)
from dvk.errors import Corrupt, DataMissing, DvkError, FormatError, NotFound, Refused
from dvk.events import OnEvent, Used, ignore
from dvk.ids import FileId
from dvk.store.content import ContentSource, StoreContent
from dvk.store.fetch import Wanted
from dvk.store.listing import Entries
from dvk.store.names import show
from dvk.store.restore import SomeFiles, restore
from dvk.store.reuse import Old
from dvk.store.unproven import Unproven
from dvk.workspace.handles import make_dirs
from dvk.workspace.ignore import exclude_pattern, excluded
from dvk.workspace.materialize import Tally, WorkTree
from dvk.workspace.plan import CheckoutPlan, content_needed, plan_checkout
from dvk.workspace.pointer import Pointer
from dvk.workspace.probe import clean_leftovers, find_folded, leftovers_in
from dvk.workspace.selection import Selected, Selection, edit
from dvk.workspace.statcache import Clock, StatCache, read_clock

if TYPE_CHECKING:
    from dvk.commands.damage_met import DamageMet

#: A tracked path, parts inside it (none: as selected) and its pointer.
Target = tuple[bytes, tuple[bytes, ...], Pointer]


class CheckedOut(Struct, frozen=True):
    """One tracked path after a checkout; counts are of files."""

    path: bytes
    kind: str
    written: int = 0
    written_bytes: int = 0
    deleted: int = 0
    unchanged: int = 0
    not_present: int = 0  #: outside of what this worktree asked for


class CheckoutResult(Struct):
    """What a checkout did. Paths where nothing had to be done are only counted."""

    paths: list[CheckedOut] = field(default_factory=list)
    in_step: int = 0
    not_present: int = 0  #: files of all these folders that were never asked for here
    removed: list[bytes] = field(default_factory=list)  #: data whose pointer is gone
    staged: int = 0
    not_staged: str = ""
    failures: list[DvkError] = field(default_factory=list)
    dry_run: bool = False


#: Where else the content of a path may be, once its source lacked something; None: nowhere.
LookAgain = Callable[[bytes, DvkError], ContentSource | None]


class Materializer:
    """Writes versions into the work tree, from the local store or from another source of content."""

    def __init__(
        self,
        repo: Repo,
        *,
        force: bool = False,
        dry_run: bool = False,
        only_replaceable: bool = False,
        on_event: OnEvent = ignore,
        entries_of: Callable[[bytes, Pointer, Selected], Entries] | None = None,
        contents: Mapping[bytes, ContentSource] | None = None,
        unproven: Unproven[Wanted] | None = None,
        look_again: LookAgain = lambda _path, _why: None,
    ) -> None:
        """`only_replaceable`: take nothing away but what dvk put there last and a commit leads back to (for hooks)."""
        self.repo, self.ws, self.store = repo, repo.workspace, repo.store
        self.force, self.on_event = force, on_event
        self._only_replaceable = only_replaceable
        self.rules = repo.workspace.ignore_rules()
        self.selection = Selection.load(repo.state)
        self.placed = Placed(repo.state)
        self._before = self.placed.versions()
        self._takes = Replaceable(repo, self._before, force=force, only_placed=only_replaceable)
        self._now: dict[bytes, Pointer | None] = {}
        self._owned_by_git: set[bytes] = set()
        self._not_present: dict[bytes, int] = {}
        self._swept: set[bytes] = set()  # directories of files, looked through for what killed runs left
        self._withheld: dict[bytes, list[DvkError]] = {}  # by path: see `_tell`
        self._met: DamageMet | None = None
        self._damaged: list[tuple[bytes, DvkError]] = []  # what that is about: paths and what was said of them
        self.result = CheckoutResult(dry_run=dry_run)
        self.unread: set[bytes] = set()  #: paths of which a file that is to go could not be read, so that it stays
        self._entries_of = entries_of or (lambda _, p, s: pointer_entries(self.store, p, s))
        self._contents = contents or {}
        self._unproven = unproven
        self._look_again = look_again
        self._here = StoreContent(self.store) if unproven is None else unproven

    # ------------------------------------------------------------ one path

    def begin(self, targets: Sequence[Target]) -> None:
        """Before data appears keep it out of Git's sight, and remember that it is dvk's, should this run be killed."""
        self._hide([path for path, _, _ in targets])
        if not self.result.dry_run:
            self.placed.begin({path: pointer for path, _, pointer in targets})

    def _hide(self, paths: Sequence[bytes]) -> None:
        git = self.ws.git
        if git is None:
            return
        if git.has_program:
            self._owned_by_git = git.tracked_among(paths)
        if self.result.dry_run:
            return
        known = excluded(git.common_dir)
        new = [p for p in paths if exclude_pattern(p) not in known and p not in self._owned_by_git]
        if new:
            with self.ws.lock():
                self.ws.hide(add=new)

    def begin_again(self, paths: Sequence[bytes]) -> None:
        """Of these paths, which another `one` or an error follows, forget what was wrong with unproven files."""
        for path in paths:
            self._withheld.pop(path, None)

    def finish(self) -> CheckoutResult:
        """Remember what was placed; the answer."""
        self.placed.update(self._now)
        for path, errors in self._withheld.items():
            self.result.failures += [self._with_a_way_out(path, error) for error in errors]
        self._withheld.clear()
        if not self.result.dry_run and self._met is not None and self._met.note():
            for path, error in self._damaged:
                error.hint = f"`dvk repair` mends the store, or `dvk pull {show(path)}` brings it again"
        self.result.not_present = sum(self._not_present.values())
        return self.result

    def one(self, path: bytes, pointer: Pointer, under: tuple[bytes, ...] = ()) -> None:
        """Bring one tracked path in step; what goes wrong is in `result.failures`.

        Args:
            under: parts of the folder to look at; they become selected. Empty: what is selected.
        """
        failed = len(self.result.failures)
        try:
            done = self._one(path, pointer, under)
        except DataMissing as error:
            self.result.failures.append(not_here(path, error))
            return
        except DvkError as error:
            if error.kind in ("storage-full", "interrupted"):
                raise
            if isinstance(error, Corrupt):
                self._damage_met().folder_list()
            self.result.failures.append(self._with_a_way_out(path, error))
            return
        if not self.result.dry_run and len(self.result.failures) == failed:
            parts = tuple(p for p in under if p)
            self.on_event(Used(path, pointer.kind, pointer.id, pointer.size, pointer.files, parts))
        self._not_present[path] = done.not_present
        if done.written or done.deleted:
            self.result.paths.append(done)
        elif len(self.result.failures) == failed and not self._withheld.get(path):
            self.result.in_step += 1

    def _one(self, path: bytes, pointer: Pointer, under: tuple[bytes, ...]) -> CheckedOut:
        if path in self._owned_by_git:
            raise Refused(
                "Git tracks files there as well, and what Git tracks is not dvk's to write",
                subject=show(path),
                hint=f"`git rm -r --cached {show(path)}` hands it over to dvk, or remove {show(path)}.dvk",
            )
        recorded = self.selection.get(path)
        selected = scope = recorded or Selected(None)
        if under:
            selected, scope = recorded or Selected(()), Selected(())
            for part in under:
                selected, scope = selected.plus(part), scope.plus(part)
        clock = self._clock()
        seen = look(self.repo.root_fd, path, self.repo.state, self.rules, on_event=self.on_event)
        files = pointer.files or 0 if pointer.is_dir else 1
        if selected.everything and seen.root_id == pointer.id:
            self._select(path, pointer, selected)
            if not self.result.dry_run:
                self._now[path] = pointer  # a run that was killed at its end did not get to remember it
            return CheckedOut(path, pointer.kind, unchanged=files)
        target = self._entries_of(path, pointer, scope)
        for part in under:
            if part and not len(target.under(part)):
                raise NotFound(
                    "there is no such file in the folder",
                    subject=show(join_path(path, part)),
                    hint=f"`dvk ls {show(path)}` lists what there is",
                )
        cleared = 0
        if seen.kind and seen.kind != pointer.kind:
            cleared = self._clear(path, seen)
            seen = Look.nothing(path)
        previous = self._takes.previous(seen, scope)
        versions = [entries for _, entries in previous]
        needed = content_needed(target, seen.scan, seen.known, previous=versions)
        seen = read_unknown(self.repo.root_fd, seen, needed, on_event=self.on_event)
        self.result.failures += seen.hidden
        if unread := bool(seen.hidden) or not seen.known[needed].all():
            self.unread.add(path)
        plan = plan_checkout(
            target,
            seen.scan,
            known=seen.known,
            ids=seen.ids,
            holds=self._takes.holder(previous),
            previous=versions,
            selected=None,
            collisions=find_folded(self.repo.root_fd, path, target.names) if pointer.is_dir else (),
            force=self.force,
            subject=path,
        )
        done = CheckedOut(
            path,
            pointer.kind,
            written=len(plan.write) + len(plan.links),
            written_bytes=int(plan.sizes.sum()),
            deleted=len(plan.deletes) + cleared,
            unchanged=int(np.count_nonzero(plan.stay)),
            not_present=files - self._count(pointer, selected, scope, target),
        )
        self.result.failures += plan.conflicts
        if self.result.dry_run:
            return done
        if self._only_replaceable and (len(plan.deletes) or bool((plan.expected >= 0).any())):
            self._check_way_back(path)
        self._select(path, pointer, selected)
        del previous, versions, seen  # of a million files each is as much as the target
        tally, problems = self._carry_out(path, pointer, plan, clock, whole=scope.everything)
        self.result.failures += problems
        # Else files of the version before may be left, which the next run has to know for dvk's.
        all_of_it = not under or scope.everything or scope == recorded
        if not problems and not unread and (all_of_it or not self._others_before(path, pointer)):
            self._now[path] = pointer
        return replace(done, written=tally.written, written_bytes=tally.written_bytes, deleted=tally.deleted + cleared)

    def _others_before(self, path: bytes, pointer: Pointer) -> bool:
        """Whether some of what lies there may be of another version."""
        return any(version != bare(pointer) for version in self._before.get(path, ()))

    def _check_way_back(self, path: bytes) -> None:
        """Pass if what stands at a path can be had again from a commit.

        Raises:
            Refused: it cannot.
        """
        if not self._takes.leads_back(path):
            raise Refused(
                "stays as it is, since no commit leads back to what is there",
                subject=show(path),
                hint=f"`dvk checkout {show(path)}` replaces it, `dvk add {show(path)}` and a commit keep it",
            )

    def _count(self, pointer: Pointer, selected: Selected, scope: Selected, target: Entries) -> int:
        """How many files are asked for, of which `target` may be a part."""
        if selected == scope:
            return target.files
        try:
            return pointer_entries(self.store, pointer, selected).files
        except DataMissing:
            return target.files  # pulled without a store, so that the rest of the list is not known here

    def _clear(self, path: bytes, seen: Look) -> int:
        """Remove a folder that stands where a file is tracked now, or the other way round; how many files it had."""
        plan = self._takes.plan_removal(path, seen, self.selection.get(path) or Selected(None))
        if plan is None or len(plan.deletes) < len(seen.scan):
            was, now = ("folder", "file") if seen.kind == "dir" else ("file", "folder")
            raise Refused(
                f"a {was} stands where a {now} is tracked, and it is not what dvk put there",
                subject=show(path),
                hint="move it away, then run the command again",
            )
        if self._only_replaceable:
            self._check_way_back(path)
        if not self.result.dry_run:
            problems = self._takes.carry_out_removal(path, plan)
            if problems:
                raise problems[0]
        return len(plan.deletes)

    def _clock(self) -> Clock | None:
        try:
            return read_clock(self.repo.state)
        except OSError:
            return None

    def _select(self, path: bytes, pointer: Pointer, selected: Selected) -> None:
        """Record what was asked for before it is acted upon: a kill must not make it look deleted."""
        if self.result.dry_run or not pointer.is_dir or self.selection.get(path) == selected:
            return
        with edit(self.repo.state) as selection:
            if selected.prefixes is None:
                selection.set_all(path)
            else:
                for prefix in selected.prefixes:
                    selection.add(path, prefix)
        self.selection = Selection.load(self.repo.state)

    def _carry_out(
        self, path: bytes, pointer: Pointer, plan: CheckoutPlan, clock: Clock | None, *, whole: bool
    ) -> tuple[Tally, list[DvkError]]:
        self._sweep(path, pointer, plan.scan.leftovers)
        with WorkTree(self.repo.root_fd, path, plan) as tree:
            tree.check_space()
            if pointer.is_dir and whole:
                os.close(make_dirs(self.repo.root_fd, path))  # nothing else would, if it is to be empty
            problems = tree.delete()
            problems += tree.make_dirs()
            content = self._contents.get(path, self._here)
            failed = restore(
                content,
                plan.ids,
                plan.sizes,
                tree,
                names=tree.shown(),
                find_old=lambda i: self._old(tree, plan, i),
                on_event=self.on_event,
            )
            failed = self._once_more(path, plan, tree, failed)
            lost = self._tell(path, plan, failed)
            rotten = [i for i, error in failed if isinstance(error, Corrupt)]
            if rotten and content is self._here:
                self._damage_met().files(plan.ids[rotten], plan.sizes[rotten])
            problems += [self._with_a_way_out(path, error) for error in lost]
            problems += tree.link()
            problems += tree.set_modes()
            written = tree.entries()
            tally = tree.tally()
        if clock is not None:
            cache = StatCache.of(written.scan, written.ids, clock=clock, settled=written.settled)
            if whole and not failed and not problems and not plan.conflicts and len(written.scan) == len(plan.target):
                cache = replace(cache, root_id=pointer.id)
            elif (older := StatCache.load(self.repo.state, path)) is not None:
                cache = cache.joined(older, without=plan.scan.names.take(plan.deletes))
            cache.save(self.repo.state, path)
        return tally, problems

    def _once_more(
        self, path: bytes, plan: CheckoutPlan, tree: WorkTree, failed: list[tuple[int, DvkError]]
    ) -> list[tuple[int, DvkError]]:
        """Write from another source what the first did not have; what failed after that."""
        astray = [i for i, error in failed if isinstance(error, DataMissing | FormatError)]
        other = self._look_again(path, next(e for i, e in failed if i == astray[0])) if astray else None
        if other is None:
            return failed
        names, sink = tree.shown(), SomeFiles(tree, astray)
        shown = [names[i] for i in astray]
        rest = restore(other, plan.ids[astray], plan.sizes[astray], sink, names=shown, on_event=self.on_event)
        return [(i, e) for i, e in failed if i not in set(astray)] + [(astray[n], e) for n, e in rest]

    def _sweep(self, path: bytes, pointer: Pointer, found: Sequence[bytes]) -> None:
        """Remove temporary files of killed runs: those `found` in a folder, or beside a file."""
        folder = path
        if not pointer.is_dir:
            folder, found = path.rpartition(b"/")[0], ()
            if folder not in self._swept:
                self._swept.add(folder)
                with contextlib.suppress(DvkError):  # not there yet, or no directory, which writing will name
                    found = leftovers_in(self.repo.root_fd, folder)
        if found:
            clean_leftovers(self.repo.root_fd, folder, found)

    def _tell(self, path: bytes, plan: CheckoutPlan, failed: Sequence[tuple[int, DvkError]]) -> list[DvkError]:
        """Pass on what was proven by being written; the errors that are no matter of proof."""
        unproven = self._unproven
        if unproven is None:
            return [error for _, error in failed]
        done = np.ones(len(plan.write), np.bool_)
        done[[i for i, _ in failed]] = False
        unproven.proven(plan.ids[done])
        # Where what a remote says of a file is not true, whoever settles that names the remote, and we begin again.
        # But the store may know a file that the remote spoke of as well, and hold it in a damaged block.
        disproven = [isinstance(e, Corrupt) and plan.ids[i].tobytes() in unproven for i, e in failed]
        self._withheld[path] = [e for (_, e), d in zip(failed, disproven, strict=True) if d]
        return [e for (_, e), d in zip(failed, disproven, strict=True) if not d]

    def _old(self, tree: WorkTree, plan: CheckoutPlan, i: int) -> Old | None:
        """What stands in the place of file i and is a version that the store knows, to take bytes from."""
        if not plan.replaced_ids[i].any():
            return None
        try:
            size = plan.scan.stats.sizes.item(plan.expected.item(i))
            chunks = self.store.chunks_of(FileId(plan.replaced_ids[i].tobytes()), size)
        except DvkError:
            return None  # a damaged store cannot tell; what the new file needs of it is another question
        fd = tree.open_old(i) if chunks is not None else None
        if chunks is None or fd is None:
            return None
        return Old(fd, chunks, prove_chunks=self._unproven is not None and plan.ids[i].tobytes() in self._unproven)

    def _damage_met(self) -> DamageMet:
        if self._met is None:
            from dvk.commands.damage_met import DamageMet  # what it imports would be a thirtieth of each checkout

            self._met = DamageMet(self.store, self.on_event)
        return self._met

    def _with_a_way_out(self, path: bytes, error: DvkError) -> DvkError:
        """An error about data that is not in the store, or damaged there, with what brings it."""
        if isinstance(error, DataMissing) and not error.hint:
            error.hint = f"`dvk pull {show(path)}` brings it"
        elif isinstance(error, Corrupt) and not error.hint:
            error.hint = f"`dvk repair` mends the store; `dvk pull --no-store {show(path)}` brings it past that"
            self._damaged.append((path, error))
        return error

    def remove_left_behind(self) -> None:
        """Remove data that dvk put there and whose pointer is gone, if it is clean and the store holds it."""
        dry_run = self.result.dry_run
        removed, failures = remove_left_behind(
            self.repo, self._takes, self.selection, self.rules, dry_run=dry_run, on_event=self.on_event
        )
        self.result.removed += removed
        self.result.failures += failures
        if not dry_run:
            self._now.update(dict.fromkeys(removed))
