"""What of the work tree may be replaced or taken away: what dvk put there, and can bring back.

    takes = Replaceable(repo, placed.versions(), force=False)
    previous = takes.previous(look(...), selected)       # the versions that dvk put there last, with their entries
    plan = plan_checkout(..., holds=takes.holder(previous), ...)
    plan = takes.plan_removal(path, look(...), selected)     # None: it is not known to be dvk's

Content may go when the store holds it, or a remote does and the version before had it. `checkout` and the hooks ask
here, so that both take away the same things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from dvk.commands.pathwork import remove_empty_dirs
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import Look, pointer_entries, read_unknown
from dvk.commands.versions import history
from dvk.errors import DataMissing, DvkError, StorageError
from dvk.store.listing import Entries
from dvk.store.names import I64, U8, rows_among
from dvk.store.root import Root
from dvk.workspace.materialize import WorkTree
from dvk.workspace.plan import CheckoutPlan, Holds, Mask, content_needed, plan_checkout
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selected
from dvk.workspace.statcache import forget


class Replaceable:
    """Knows what may be taken away.

    Args:
        versions: by path, what dvk put there last (`Placed.versions`).
        force: take away as well what nothing holds.
        only_placed: take nothing away but what those versions have (for hooks).
    """

    def __init__(
        self,
        repo: Repo,
        versions: Mapping[bytes, Sequence[Pointer]],
        *,
        force: bool = False,
        only_placed: bool = False,
    ) -> None:
        self.repo, self._versions = repo, versions
        self.force, self._only_placed = force, only_placed

    def previous(self, seen: Look, selected: Selected) -> list[tuple[Pointer, Entries]]:
        """The versions that dvk put there last; none when they are not known, and then nothing is taken away."""
        out = []
        for pointer in self._versions.get(seen.path, ()):
            if selected.everything and pointer.is_dir and pointer.id == seen.root_id:
                out.append((pointer, seen.entries()))  # what is there is that, and need not be there twice
                continue
            try:
                out.append((pointer, pointer_entries(self.repo.store, pointer, selected)))
            except DataMissing:
                continue
        return out

    @cached_property
    def _on_remotes(self) -> set[str]:
        return self.repo.confirmed(self.repo.workspace.config.remotes())

    def holder(self, previous: Sequence[tuple[Pointer, Entries]]) -> Holds:
        """Which contents could be brought back: from the store, and those of a version that a remote holds.

        The latter is all there is after a pull that kept nothing in the store.
        """
        pushed = [entries.ids for pointer, entries in previous if root_of(pointer).text in self._on_remotes]
        ours = [entries.ids for _, entries in previous]

        def holds(ids: U8, sizes: I64) -> Mask:
            found = self.repo.store.holds(ids, sizes)
            if pushed and not found.all():
                found |= rows_among(ids, pushed)
            if self._only_placed and found.any():
                found &= rows_among(ids, ours)
            return found

        return holds

    def leads_back(self, path: bytes) -> bool:
        """Whether commits of branches or tags have the versions that were put here last, so that they can come back."""
        versions = self._versions.get(path, ())
        return bool(versions) and all(root_of(pointer) in self._committed for pointer in versions)

    @cached_property
    def _committed(self) -> set[Root]:
        git = self.repo.workspace.git
        tips = git.tips() if git is not None and git.has_program else []
        try:
            return {version.root for version in history(self.repo, tips)} if tips else set()
        except DvkError:
            return set()  # history is not all here; then nothing is known to lead back

    def plan_removal(self, path: bytes, seen: Look, selected: Selected) -> CheckoutPlan | None:
        """What would have to be deleted for nothing to be left; None when it is not known to be dvk's.

        Raises:
            StorageError: not all that is there can be seen.
        """
        if seen.hidden:
            raise seen.hidden[0]
        previous = self.previous(seen, selected)
        if not previous:
            return None
        versions = [entries for _, entries in previous]
        needed = content_needed(Entries.empty(), seen.scan, seen.known, previous=versions)
        seen = read_unknown(self.repo.root_fd, seen, needed)
        return plan_checkout(
            Entries.empty(),
            seen.scan,
            known=seen.known,
            ids=seen.ids,
            holds=self.holder(previous),
            previous=versions,
            force=self.force,
            subject=path,
        )

    def carry_out_removal(self, path: bytes, plan: CheckoutPlan) -> list[DvkError]:
        with WorkTree(self.repo.root_fd, path, plan) as tree:
            problems = tree.delete()
        try:
            remove_empty_dirs(self.repo.root_fd, path, top=b"")
        except StorageError as error:
            problems.append(error)
        if not problems:
            forget(self.repo.state, path)
        return problems
