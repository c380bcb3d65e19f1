"""What is wrong with the work tree's own side: pointers, the selection, caches, and files that rot where they lie.

Git proves the pointers that are committed; what is looked at here is what lies on this disk and nobody else has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dvk.backend.disk import is_passing, patiently, storage_error
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import look, read_ids
from dvk.commands.verify_report import READ_AGAIN, WorkspaceProblem
from dvk.commands.versions import staged
from dvk.errors import DvkError, StorageError
from dvk.events import OnEvent
from dvk.store.names import show
from dvk.store.root import Root
from dvk.workspace.pointer import Pointer
from dvk.workspace.selection import Selection
from dvk.workspace.statcache import is_damaged

#: JSON files of state that may be lost at no cost but time, and what losing them costs.
_STATE = (
    (b"placed.json", "which version lies here is not known, so `checkout` takes nothing away by itself"),
    (b"history.json", "history is read from Git again"),
)


def workspace_problems(
    repo: Repo, under: Sequence[bytes], *, strange: Callable[[bytes, Root], bool], read: bool, on_event: OnEvent
) -> Iterator[WorkspaceProblem]:
    """Look at the work tree.

    Args:
        strange: whether a version is neither in the store nor in any commit.
        read: also whether files that look unchanged are.
    """
    index = {n.root for n in staged(repo, conflicts=True)}
    tracked: list[tuple[bytes, Pointer]] = []
    for path, found in repo.workspace.worktree_pointers(under=under):
        pointer = _once_more(repo, path, found)
        if isinstance(pointer, Pointer):
            tracked.append((path, pointer))
            root = root_of(pointer)
            if root not in index and strange(path, root):
                what = "it names a version that is neither in this store nor in any commit or the index"
                yield WorkspaceProblem(path, "pointer", what, f"`git checkout -- {show(path)}.dvk`, or `dvk add` again")
        else:
            yield _named(path, "pointer", pointer, f"`git checkout -- {show(path)}.dvk` brings back the committed one")
    try:
        patiently(lambda: Selection.load(repo.state))
    except DvkError as error:
        yield _named(b"selection.json", "selection", error)
    for path, _ in tracked:
        if patiently(lambda path=path: is_damaged(repo.state, path)):  # type: ignore[misc]
            what = "what is remembered of its files is damaged; they are read again"
            yield WorkspaceProblem(path, "stat cache", what, "`dvk repair` drops it; nothing is lost")
    for name, cost in _STATE:
        if patiently(lambda name=name: _is_broken(os.path.join(repo.state, name))):  # type: ignore[misc]
            yield WorkspaceProblem(name, "state", f"is damaged: {cost}", "`dvk repair` drops it; nothing is lost")
    if read:
        for path, _ in tracked:
            yield from _rotten(repo, path, on_event)


def _is_broken(path: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            json.load(file)
    except FileNotFoundError:
        return False
    except OSError as error:
        if is_passing(error):
            raise storage_error(error, show(path)) from error
        return True
    except (ValueError, RecursionError):
        return True
    return False


def _once_more(repo: Repo, path: bytes, found: Pointer | DvkError) -> Pointer | DvkError:
    """A pointer that the disk did not give out is asked for again."""
    if isinstance(found, DvkError) and is_passing(found.__cause__):
        try:
            return patiently(lambda: repo.workspace.read_pointer(path))
        except DvkError as error:
            return error
    return found


def _named(path: bytes, kind: str, error: DvkError, hint: str = "") -> WorkspaceProblem:
    """What is wrong with `path`; where the disk did not give it out, that nobody can tell."""
    unread = is_passing(error.__cause__)
    return WorkspaceProblem(path, kind, error.message, READ_AGAIN if unread else error.hint or hint, unread)


def _rotten(repo: Repo, path: bytes, on_event: OnEvent) -> Iterator[WorkspaceProblem]:
    """Files whose times say that nobody wrote to them, and whose content is not what it was, or cannot be read."""
    seen = look(repo.root_fd, path, repo.state, repo.workspace.ignore_rules(), on_event=on_event)
    index = np.flatnonzero(seen.is_file & seen.known)
    if not len(index):
        return
    ids, problems = read_ids(repo.root_fd, seen, index, on_event=on_event)
    if passing := [n for n, error in problems if is_passing(error.__cause__)]:
        ids[passing], again = read_ids(repo.root_fd, seen, index[passing], on_event=on_event)
        problems = [(n, e) for n, e in problems if n not in set(passing)] + [(passing[k], e) for k, e in again]
    wrong = (ids != seen.ids[index]).any(axis=1)
    wrong[[n for n, _ in problems]] = False

    def where(n: int) -> bytes:
        name = seen.scan.names[int(index[n])]
        return path + b"/" + name if name else path

    for n in np.flatnonzero(wrong).tolist():
        yield WorkspaceProblem(
            where(n),
            "data",
            "its content changed though its times did not: the disk, or a program that sets times back",
            f"`dvk checkout --force {show(where(n))}` puts back what was there",
        )
    for n, error in problems:  # of others somebody writes to them now, or they went away: that is no damage
        if isinstance(error, StorageError):
            yield WorkspaceProblem(where(n), "data", error.message, READ_AGAIN, unread=True)
