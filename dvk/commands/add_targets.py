"""What the arguments of `dvk add` mean: which tracked paths, or which parts of tracked folders.

    targets = Targets(repo, rules, on_event=ignore).find([b"data/train.csv", b"images/new.jpg"])

Each thing once, nothing inside another one, and nothing that Git tracks as well. Reads and changes nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

from dvk.commands.placed import Placed, bare
from dvk.commands.repo import Repo
from dvk.commands.tracked import is_changed, join_path, kind_on_disk, look
from dvk.errors import DvkError, NotFound, Refused, one_or_many
from dvk.events import Note, OnEvent
from dvk.store.names import show
from dvk.workspace.ignore import IgnoreRules
from dvk.workspace.pointer import Pointer
from dvk.workspace.repo import Workspace
from dvk.workspace.selection import Selection

_ASK_EACH = 3  # up to here Git is asked for each path alone, and its whole index need not be listed


class Target(Struct, frozen=True):
    """What to add: a tracked path, or a path inside a tracked folder."""

    path: bytes  #: the tracked path
    inner: bytes = b""  #: inside a tracked folder
    pointer: Pointer | None = None


def read_pointer(workspace: Workspace, path: bytes) -> Pointer | None:
    """The pointer of `path`; None when it has none. Raises as `Workspace.read_pointer`."""
    try:
        return workspace.read_pointer(path)
    except NotFound:
        return None


class Targets:
    """Finds out what is meant, in one workspace."""

    def __init__(self, repo: Repo, rules: IgnoreRules, *, on_event: OnEvent) -> None:
        self.repo, self.ws, self.rules, self.on_event = repo, repo.workspace, rules, on_event
        self._placed = Placed(repo.state).read()
        self._selection = Selection.load(repo.state)

    def find(self, paths: Sequence[bytes | str], *, update: bool) -> list[Target]:
        """The tracked paths that the arguments mean, each once, those inside another left out; with `update` besides
        all that changed.

        Raises:
            NotFound, Refused, UsageError: of each path that cannot be added, together.
        """
        found: dict[tuple[bytes, bytes], Target] = {}
        problems: list[DvkError] = []
        for arg in paths:
            try:
                target = self._target(self.ws.locate(arg, cwd=self.repo.cwd))
                found[target.path, target.inner] = target
            except DvkError as error:
                problems.append(error)
        if update:
            for path, pointer in self.ws.worktree_pointers():
                if isinstance(pointer, DvkError):
                    problems.append(pointer)
                elif kind_on_disk(self.repo.root_fd, path) and not self._is_behind(path, pointer):
                    found.setdefault((path, b""), Target(path, b"", pointer))
        if problems:
            raise one_or_many("some paths cannot be added; nothing was recorded", problems)
        out: list[Target] = []
        whole = {path for path, inner in found if not inner}
        for (path, inner), target in sorted(found.items()):
            above = {path} | {path[:i] for i in range(len(path)) if path[i : i + 1] == b"/"}
            if not (inner and path in whole) and not (above - {path}) & whole:
                out.append(target)
        self._check_owners(out)
        return out

    def _is_behind(self, path: bytes, pointer: Pointer) -> bool:
        """Whether Git moved the pointer on and data did not follow: to record that would take the move back."""
        put = self._placed.get(path)
        if put is None or put == bare(pointer):
            return False
        seen = look(self.repo.root_fd, path, self.repo.state, self.rules)
        selected = self._selection.get(path) if put.is_dir else None
        behind = not is_changed(self.repo.store, self.repo.root_fd, seen, put, selected)
        if behind:
            self.on_event(
                Note(
                    "did not follow its pointer, which Git moved, so it is left out",
                    subject=show(path),
                    hint=f"`dvk checkout {show(path)}` brings it in step, `dvk add {show(path)}` records what is there",
                )
            )
        return behind

    def _target(self, path: bytes) -> Target:
        owner = self.ws.owner_of(path)
        if owner is not None and owner[1]:
            return Target(owner[0], owner[1], self.ws.read_pointer(owner[0]))
        pointer = read_pointer(self.ws, path)
        if not kind_on_disk(self.repo.root_fd, path):
            if pointer is not None:
                raise NotFound(
                    "it is tracked and its data is not here",
                    subject=show(path),
                    hint=f"`dvk checkout {show(path)}` brings it back, `dvk rm {show(path)}` stops tracking it",
                )
            raise NotFound("there is no such file or folder", subject=show(path))
        return Target(path, b"", pointer)

    def _check_owners(self, targets: list[Target]) -> None:
        """One path, one owner: data must not be tracked by Git as well, nor pointers lie inside it."""
        git = self.ws.git
        if git is None or not git.has_program:
            return
        problems: list[DvkError] = []
        everything = sorted(git.tracked_under(b"")) if len(targets) > _ASK_EACH else None
        for t in targets:
            where = join_path(t.path, t.inner)
            tracked = git.tracked_under(where) if everything is None else _at_or_below(everything, where)
            if tracked:
                shown = ", ".join(show(p) for p in tracked[:3]) + (", ..." if len(tracked) > 3 else "")
                problems.append(
                    Refused(
                        f"Git tracks {len(tracked):,} of its files ({shown})",
                        subject=show(where),
                        hint=f"`git rm -r --cached {show(where)}` hands it over to dvk, the files stay",
                    )
                )
        if problems:
            raise one_or_many("some paths belong to Git; nothing was recorded", problems)


def _at_or_below(paths: Sequence[bytes], where: bytes) -> list[bytes]:
    """Those of the ascending `paths` that are `where` or lie in it."""
    at = bisect_left(paths, where)
    low, high = bisect_left(paths, where + b"/"), bisect_left(paths, where + b"0")
    return [*paths[at : at + 1 if at < len(paths) and paths[at] == where else at], *paths[low:high]]
