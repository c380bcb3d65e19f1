"""Before `git push`: the data of the commits that are about to be published goes to the remote first.

Commits that the other side has already say nothing new, and then nothing is contacted. Otherwise the versions that the
new commits bring must be on the remote afterwards, and whatever else of their history this clone holds and the remote
is not known to have goes along. If that is more than `hooks.push_limit`, the push is refused at once: nobody wants to
find out in a hook that an upload takes the afternoon.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct

from dvk.commands.push import PushResult, at_commit, send
from dvk.commands.repo import Repo
from dvk.commands.tracked import pointer_entries
from dvk.commands.versions import Named, head_history, history, roots_here
from dvk.errors import DvkError, NotFound, Refused, UsageError
from dvk.events import OnEvent, ignore
from dvk.store.listing import Entries
from dvk.store.pages import Chunks
from dvk.store.root import FOLDER, Root
from dvk.workspace.git import GitRepo
from dvk.workspace.pointer import Pointer

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class PrePush(Struct, frozen=True):
    """What was done before a push."""

    versions: int  #: that the new commits bring
    pushed: PushResult | None  #: None: there was nothing to send


def pre_push(repo: Repo, lines: Iterable[str], *, git_remote: str = "", on_event: OnEvent = ignore) -> PrePush:
    """Send the data of what Git is about to push.

    Args:
        lines: what Git says on the hook's standard input: `REF ID REMOTE-REF REMOTE-ID`.
        git_remote: the name of the Git remote.

    Raises:
        Refused: it is more than `hooks.push_limit`.
        NotFound: no remote is configured.
        RemoteError, DataMissing: data could not be sent, so nothing should be pushed.
    """
    git = repo.workspace.need_git("push")
    tips, seen = _refs(git, lines)
    if not tips:
        return PrePush(0, None)
    published = [*seen, *git.remote_tips(git_remote)]
    fresh = {n.root for n in history(repo, [*tips, *(f"^{commit}" for commit in published)])}
    fresh = {root for root in fresh if root.size or root.files}
    if not fresh:
        return PrePush(0, None)
    try:
        config = repo.remote_config()
    except NotFound as error:
        raise NotFound(
            f"{_count(fresh)} would be published without their data: {error.message}",
            hint=f"{error.hint}; `DVK_HOOKS=0 git push` pushes without it",
        ) from error
    named = head_history(repo) if tips == [git.head()] else list(history(repo, tips))
    at_tips = {n.root for tip in tips for n in at_commit(repo, tip)}
    _check_limit(repo, named, config.name)
    done = send(repo, repo.remote(config.name, write=True), named, fresh & at_tips, on_event=on_event)
    return PrePush(len(fresh), done)


def _count(roots: set[Root]) -> str:
    return "1 version" if len(roots) == 1 else f"{len(roots):,} versions"


def _refs(git: GitRepo, lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """The commits that are pushed, and those of the other side that this clone knows."""
    tips: dict[str, None] = {}
    seen: dict[str, None] = {}
    for line in lines:
        words = line.split()
        if not words:
            continue
        if len(words) == 4 and words[0] == words[2] == words[3] == "-":  # from a tool that names a commit alone
            tips[git.resolve(words[1])] = None
            continue
        if len(words) != 4 or not _COMMIT.fullmatch(words[1]) or not _COMMIT.fullmatch(words[3]):
            raise UsageError("this is not what Git says to a pre-push hook", subject=line[:80])
        for word, into in ((words[1], tips), (words[3], seen)):
            if word.strip("0"):
                try:
                    into[git.resolve(word)] = None
                except NotFound:
                    continue  # a tag of a file or tree, or a commit that was never fetched
    return list(tips), list(seen)


def _check_limit(repo: Repo, named: Sequence[Named], remote: str) -> None:
    """Raise if more is new than the hook sends by itself. Offline: what the remote has is what this clone saw there."""
    limit = repo.workspace.config.size("hooks.push_limit") or 0
    confirmed = repo.confirmed([remote])
    waiting = list({n.root: n for n in named if n.root.text not in confirmed}.values())
    held = roots_here(repo.store, [n.root for n in waiting])
    waiting = [n for n, here in zip(waiting, held, strict=True) if here]
    if sum(n.root.size for n in waiting) <= limit:
        return
    paths = {n.path for n in waiting}
    known = list({n.root: n for n in named if n.root.text in confirmed and n.path in paths}.values())
    new = _new_bytes(repo, waiting, known)
    if new > limit:
        raise Refused(
            f"{new:,} bytes of new data go with these commits, more than the {limit:,} that this hook sends by itself",
            subject=remote,
            hint="`dvk push`, then push again; `dvk config hooks.push_limit SIZE` sets the limit, "
            "`DVK_HOOKS=0 git push` pushes without the data",
        )


def _new_bytes(repo: Repo, waiting: Sequence[Named], known: Sequence[Named]) -> int:
    """The bytes of all chunks of `waiting` that nothing in `known` has, each once."""
    there = _files(repo, known)
    files = _files(repo, waiting)
    old = {row.tobytes() for row in there.ids}
    fresh = np.array([i for i, row in enumerate(files.ids) if row.tobytes() not in old], np.intp)
    chunks = _chunks(repo, files.take(fresh))
    chosen, first = np.unique(chunks.ids, axis=0, return_index=True)
    before = {row.tobytes() for row in _chunks(repo, there).ids}
    lengths = chunks.lengths[first].tolist()
    return sum(n for row, n in zip(chosen, lengths, strict=True) if row.tobytes() not in before)


def _files(repo: Repo, versions: Sequence[Named]) -> Entries:
    """All files of versions, as far as their lists are here; not in order."""
    parts = []
    for n in versions:
        is_dir = n.root.kind == FOLDER
        pointer = Pointer("dir" if is_dir else "file", bytes(n.root.id), n.root.size, n.root.files if is_dir else None)
        try:
            entries = pointer_entries(repo.store, pointer)
        except DvkError:
            continue  # an estimate; the push itself says what is missing or damaged
        parts.append(entries.take(np.flatnonzero(entries.is_file)))
    return Entries.join(parts)


def _chunks(repo: Repo, files: Entries) -> Chunks:
    """The chunks of files, as far as they are here."""
    found = repo.store.chunks_of_many(np.ascontiguousarray(files.ids), files.sizes)
    return Chunks.join([c for c in found if c is not None])
