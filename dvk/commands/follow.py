"""Data follows pointers that Git moved: what the hooks after a checkout, a merge, a rebase, a stash do.

Only paths whose pointer is another one than the version that dvk put there last are looked at, and those that came with
the step and are not there. Of these, a path is
brought in step when its data is in the local store and what it replaces can be had again: it is what dvk put there
last, and a commit leads back to it. Anything else stays and is named; what is not here is named with its size, and
nothing is fetched. A killed run is finished by the next one, whatever Git did in between.
"""

from __future__ import annotations

import os

from msgspec import Struct, field

from dvk.commands.materializer import CheckedOut, Materializer, Target
from dvk.commands.pathwork import above
from dvk.commands.placed import Placed, bare
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import is_there
from dvk.errors import DvkError, StorageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.fetch import Wanted, is_here
from dvk.store.names import show
from dvk.workspace import git_moved
from dvk.workspace.pointer import SUFFIX, Pointer, data_name
from dvk.workspace.selection import Selection


class Behind(Struct, frozen=True):
    """A path whose data of this version is not here."""

    path: bytes
    size: int


class Followed(Struct):
    """What a run of a hook did."""

    hook: str
    updated: list[CheckedOut] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)
    behind: list[Behind] = field(default_factory=list)
    kept: list[Note] = field(default_factory=list)  #: what stays as it is, and why
    quiet: bool = False  #: on the way of a bisection, where only what is missing is worth a line


def follow(repo: Repo, hook: str, *, on_event: OnEvent = ignore) -> Followed:
    """Bring data in step with pointers, as far as it can be done from here without losing anything.

    Raises:
        StorageFull: there is no room. Busy: another process changes data here for ten minutes already.
    """
    git = repo.workspace.need_git("hooks")
    out = Followed(hook, quiet=os.path.exists(os.path.join(git.git_dir, b"BISECT_LOG")))
    if hook != "post-rewrite" and git_moved.is_rebasing(git.git_dir):
        return out
    with repo.writing(), repo.changing_files():
        seen = git.list_pointers()
        before = git_moved.read(repo.state)
        if before == seen:
            return out
        if before is None:  # no list at all, which is something else than a list without pointers
            before = git_moved.read(repo.state, git_moved.BEFORE)
        git_moved.forget(repo.state)
        run = Materializer(repo, only_replaceable=True, on_event=on_event)
        failures: list[DvkError] = []
        targets = _targets(repo, run, _came(before, seen), out, failures)
        run.begin(targets)
        for path, parts, pointer in targets:
            run.one(path, pointer, parts)
        run.remove_left_behind()
        result = run.finish()
        # What the disk did not give out now is for the next hook to try again.
        if not run.unread and not any(isinstance(error, StorageError) for error in failures + result.failures):
            git_moved.remember(repo.state, seen)
    out.updated, out.removed = result.paths, result.removed
    out.kept += map(as_note, failures + result.failures)
    return out


def as_note(error: DvkError) -> Note:
    """What would end another verb, where a hook only says it."""
    return Note(error.message, subject=error.subject, hint=error.hint)


def _came(before: bytes | None, seen: bytes) -> set[bytes]:
    """The data paths of pointers that are new or other ones since the last list; all where there is none."""
    rows = set(seen.split(b"\0")) - set((before or b"").split(b"\0"))
    return {row.partition(b"\t")[2].removesuffix(SUFFIX) for row in rows}


def _targets(repo: Repo, run: Materializer, came: set[bytes], out: Followed, failures: list[DvkError]) -> list[Target]:
    """Paths to bring in step; those whose data is not here go to `out.behind`, what cannot be read to `failures`."""
    placed = Placed(repo.state)
    there, begun = placed.read(), placed.begun()
    selection = Selection.load(repo.state)
    # What a merge left undecided was told by the merge, and data waits for the decision.
    undecided = {data_name(name) for name in repo.workspace.need_git("hooks").conflicts()}
    targets: list[Target] = []
    pointers = list(repo.workspace.worktree_pointers())
    folders = {path for path, pointer in pointers if isinstance(pointer, Pointer) and pointer.is_dir}
    for path, pointer in pointers:
        if path in undecided:
            continue
        if isinstance(pointer, DvkError):
            failures.append(pointer)
            continue
        if owner := folders & above(path):
            # Git merges a folder of one side and a path in it of the other, and has nothing to say about that.
            why = f"its pointer lies in {show(min(owner))}, which is tracked as a whole"
            hint = f"one path has one owner: `dvk rm --cached {show(path)}`, then `dvk add {show(path)}` puts it there"
            out.kept.append(Note(why, subject=show(path), hint=hint))
        # Data that somebody deleted stays away, but not beyond a version that did not have it.
        stays = path not in came or is_there(repo.root_fd, path)
        if stays and there.get(path) == bare(pointer) and path not in begun:
            continue
        selected = selection.get(path) if pointer.is_dir else None
        parts = (b"",) if selected is None or selected.prefixes is None else selected.prefixes
        try:
            here = is_here(run.store, Wanted(root_of(pointer), parts))
        except DvkError as error:
            failures.append(error)
            continue
        if here:
            targets.append((path, (), pointer))
        elif there:  # a clone that never had any data does not want to hear of it at each checkout
            out.behind.append(Behind(path, pointer.size))
    return targets
