"""Before a commit: a word on what would probably not be meant. It never stops one.

- a big file that is about to go into Git, or lies around to be added by the next `git add -A`;
- data that was changed since its pointer was written, so that the commit would not have it;
- a pointer that nobody can read, as a merge leaves it.
"""

from __future__ import annotations

import os
import stat

from msgspec import Struct, field

from dvk.commands.follow import as_note
from dvk.commands.repo import Repo
from dvk.commands.status import status
from dvk.events import Note, OnEvent, ignore


class LargeFile(Struct, frozen=True):
    """A file that dvk should have rather than Git."""

    path: bytes
    size: int
    staged: bool  #: whether this commit takes it


class PreCommit(Struct):
    """What is worth a warning. Empty as a rule."""

    large: list[LargeFile] = field(default_factory=list)
    stale: list[bytes] = field(default_factory=list)  #: data that differs from its pointer
    behind: list[bytes] = field(default_factory=list)  #: data that did not follow its pointer
    broken: list[Note] = field(default_factory=list)  #: pointers that cannot be read


def pre_commit(repo: Repo, *, on_event: OnEvent = ignore) -> PreCommit:
    """What would be committed against expectation. Reads data only where sizes and times leave a doubt."""
    git = repo.workspace.need_git("hooks")
    out = PreCommit()
    limit = repo.workspace.config.size("hooks.large_file") or 0
    staged, new = git.other_files()
    for path in staged:
        _large(repo, path, limit, True, out)
    for path in new:
        _large(repo, path, limit, False, out)
    found, problems = status(repo, on_event=on_event)
    out.broken = [as_note(p) for p in problems]
    for p in found.paths:
        if p.behind:
            out.behind.append(p.path)
        elif p.modified or p.added or (p.missing and p.missing < p.files - p.not_present):
            out.stale.append(p.path)
    return out


def _large(repo: Repo, path: bytes, limit: int, staged: bool, out: PreCommit) -> None:
    try:
        info = os.lstat(os.path.join(repo.workspace.top, path))
    except OSError:
        return  # gone since git listed it
    if stat.S_ISREG(info.st_mode) and info.st_size >= limit > 0:
        out.large.append(LargeFile(path, info.st_size, staged))
