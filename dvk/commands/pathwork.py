"""What `rm` and `mv` both need around a tracked path: staging, names above it, directories that a change emptied."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dvk.commands.repo import Repo
from dvk.errors import Busy, DvkError, NotFound, Refused
from dvk.store.names import show
from dvk.workspace.handles import STAYS, open_dir, os_error
from dvk.workspace.pointer import Pointer, parse, pointer_name


def above(path: bytes) -> set[bytes]:
    """The directories that a path lies in.

    >>> sorted(above(b"a/b/c"))
    [b'a', b'a/b']
    """
    return {path[:i] for i in range(len(path)) if path[i : i + 1] == b"/"}


def stage_pointers(repo: Repo, paths: Sequence[bytes]) -> tuple[int, str]:
    """Bring the pointers of `paths` in the Git index to what the work tree has, also where that is nothing.

    Returns how many, and why not if it could not be done: a busy index never fails what the work tree shows already.
    """
    git = repo.workspace.git
    if git is None:
        return 0, "this is no Git repository"
    if not git.has_program:
        return 0, "the git program is missing"
    try:
        git.stage([pointer_name(path) for path in paths])
    except Busy as error:
        return 0, error.message
    return len(paths), ""


def staged_pointer(repo: Repo, path: bytes) -> Pointer | None:
    """What the Git index has for a tracked path; None where it has nothing that can be read."""
    git = repo.workspace.git
    if git is None or not git.has_program:
        return None
    name = pointer_name(path)
    for entry in git.index_pointers(under=[path]):
        if entry.path == name and entry.stage == 0:
            try:
                return parse(git.read_blob(entry.oid), subject=show(name))
            except DvkError:
                return None
    return None


def in_other_worktree(repo: Repo, path: bytes) -> bool:
    """Whether another worktree has something at `path`: the ignore rule is one for all of them."""
    git = repo.workspace.git
    if git is None or not git.has_program:
        return False
    tops = [top for top in git.worktrees() if os.path.realpath(top) != repo.workspace.top]
    return any(os.path.lexists(os.path.join(top, path)) for top in tops)


def remove_empty_dirs(root_fd: int, path: bytes, *, top: bytes) -> None:
    """Remove `path` if it is an empty directory, then the directories over it that become empty, up to `top`.

    With `top` equal to `path` only that one directory is looked at; else `top` itself stays.

    Raises:
        StorageError: the system refused; a directory that is left empty would be taken for the user's.
    """
    while path:
        parent, _, name = path.rpartition(b"/")
        try:
            fd = open_dir(root_fd, parent)
        except (NotFound, Refused):
            return
        try:
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            pass  # a file, which is gone: its directory may be empty now
        except OSError as error:
            if error.errno in STAYS:
                return  # it holds something, or is a file that stays
            raise os_error(error, path, "deleted") from error
        finally:
            os.close(fd)
        if path == top or parent == top:
            return
        path = parent
