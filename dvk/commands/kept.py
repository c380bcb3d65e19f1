"""Which versions are to stay, as Git says: everything that something leads to, less what a policy lets go.

    everything(repo)                              # branches, tags, stash, reflogs, index and pointers of every worktree
    kept(repo, Policy(keep_since=...), ...)       # of that what is to stay on a remote

Here nothing is passed over in silence, unlike in `versions`: a pointer that a newer dvk wrote, a worktree that is not
there, history that ends early may each hide what is needed, and stop the collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from dvk.commands.repo import Repo, root_of
from dvk.commands.versions import Named, history, staged
from dvk.errors import DataMissing, DvkError, NewerFormat, NotFound, StorageError, Unsafe
from dvk.events import Note, OnEvent
from dvk.store.collect_plan import Kept
from dvk.store.names import show
from dvk.workspace.git_kept import Heard
from dvk.workspace.git_objects import CommitId
from dvk.workspace.pointer import Pointer
from dvk.workspace.repo import Found


class Policy(Struct, frozen=True):
    """What a remote is to keep. A version stays when any rule that speaks of its path keeps it, or none speaks of it.

    Whatever is said, that stays to which a branch, HEAD, the index, a worktree, the stash or, alone, a reflog leads.
    """

    keep_since: int | None = None  #: Unix seconds; speaks of all paths: versions that were current then or later stay
    keep_tags: bool = False  #: what tags name stays, too
    keep_last: int | None = None  #: so many versions of each of `paths` and of what lies below
    paths: tuple[str, ...] = ()  #: hex of raw paths from the top

    @property
    def lets_go(self) -> bool:
        """Whether anything that history leads to may go."""
        return self.keep_since is not None or self.keep_last is not None

    def as_json(self) -> dict[str, Any]:
        """For a plan file."""
        return {**asdict(self), "paths": list(self.paths)}

    @classmethod
    def of_json(cls, raw: dict[str, Any]) -> Policy:
        """From a plan file.

        Raises:
            ValueError, TypeError, KeyError: it is none.
        """
        since, last = raw["keep_since"], raw["keep_last"]
        paths = tuple(raw["paths"])
        if not all(n is None or type(n) is int for n in (since, last)) or type(raw["keep_tags"]) is not bool:
            raise ValueError("policy")
        [bytes.fromhex(p) for p in paths]
        return cls(since, raw["keep_tags"], last, paths)


def everything(repo: Repo, *, on_event: OnEvent, more: Sequence[CommitId] = ()) -> list[Named]:
    """Every version that something in the repository leads to, newest first; some more than once.

    Args:
        more: commits that count besides.

    Raises:
        Unsafe: something that may lead to more cannot be read.
    """
    strict = _Strict(on_event)
    git = repo.workspace.git
    if git is None:
        return list(_named(repo.workspace.every_pointer(), strict))
    if not git.has_program:
        raise NotFound("the git program was not found, and collecting garbage needs it", hint="install git")
    with strict.reading(repo):
        found = [n for worktree in _worktrees(repo) for n in _of_worktree(worktree, strict)]
        tips = list(dict.fromkeys([*git.tips(), *git.reflog_tips(), *more]))
        if tips:
            # What replaces a commit is named by a ref itself, so that this walk finds both.
            found += history(repo, tips, original=True, on_bad=strict)
        for tree in git.tree_tips():
            found += _named(repo.workspace.pointers_at(tree), strict)
    strict.tell(repo)
    return found


class _Strict:
    """Hears of pointers that cannot be read: what a newer dvk wrote stops everything, the rest is counted."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._bad: list[DvkError] = []

    def __call__(self, error: DvkError) -> None:
        if isinstance(error, NewerFormat | DataMissing | StorageError):
            raise Unsafe(
                f"nobody here knows what this pointer needs: {error.message}; nothing was deleted",
                subject=error.subject,
                hint=error.hint,
            ) from error
        self._bad.append(error)

    def reading(self, repo: Repo) -> _Reading:
        """Turns what Git cannot read into a reason to stop."""
        return _Reading(repo)

    def tell(self, repo: Repo) -> None:
        if self._bad:
            first = self._bad[0]
            note = f"{len(self._bad):,} pointers in history are damaged and lead to nothing; the first: {first.subject}"
            self._on_event(Note(note, subject=show(repo.workspace.top)))


class _Reading:
    def __init__(self, repo: Repo) -> None:
        self._repo = repo

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DvkError) and not isinstance(error, Unsafe):
            raise Unsafe(
                f"not all that Git has here can be read ({error.message}); nothing was deleted",
                subject=error.subject or show(self._repo.workspace.top),
                hint=error.hint,
            ) from error


def _worktrees(repo: Repo) -> Iterator[Repo]:
    """This worktree and all others.

    Raises:
        Unsafe: one is not there.
    """
    git = repo.workspace.git
    assert git is not None
    yield repo
    for top in git.worktrees():
        if os.path.realpath(top) == repo.workspace.top:
            continue
        # The folder that a disk is mounted on is there without the disk, too.
        if not os.path.lexists(os.path.join(top, b".git")):
            elsewhere = os.path.realpath(top) == git.common_dir
            raise Unsafe(
                "a worktree of this repository is not there, and its index may need data; nothing was deleted",
                subject=show(top),
                hint="its Git folder does not say where it is: run this in the main worktree"
                if elsewhere
                else "bring its disk back; if it is gone for good: `git worktree prune`",
            )
        with Repo(os.fsdecode(top), environ=repo.environ) as other:
            if other.workspace.git is None or other.workspace.git.common_dir != git.common_dir:
                raise Unsafe(
                    "another repository lies where a worktree of this one did; nothing was deleted",
                    subject=show(top),
                    hint="bring it back; if it is gone for good: `git worktree prune`",
                )
            yield other


def _of_worktree(repo: Repo, strict: _Strict) -> Iterator[Named]:
    yield from staged(repo, conflicts=True, on_bad=strict)
    yield from _named(repo.workspace.every_pointer(), strict)


def _named(found: Iterable[Found], strict: Callable[[DvkError], None]) -> Iterator[Named]:
    for path, pointer in found:
        if isinstance(pointer, Pointer):
            yield Named(path, root_of(pointer))
        else:
            strict(pointer)


# ------------------------------------------------------------ for a remote


def check_complete(repo: Repo, *, offline: bool) -> Heard:
    """See that this clone knows what the others have pushed to Git: the branches and tags of its remotes.

    Raises:
        Unsafe: history is cut short here, a branch was not fetched, or a remote cannot be asked.
    """
    git = repo.workspace.need_git("gc of a remote")
    if git.is_shallow:
        raise Unsafe(
            "this clone is shallow, so it does not know what older commits need; nothing was deleted",
            subject=show(repo.workspace.top),
            hint="`git fetch --unshallow`, or collect from a full clone",
        )
    if offline:
        return Heard()
    heard = git.heard()
    if heard.missing:
        more = f" and {len(heard.missing) - 1:,} more" if len(heard.missing) > 1 else ""
        raise Unsafe(
            f"others have pushed what this clone has not fetched ({heard.missing[0]}{more}); nothing was deleted",
            subject=show(repo.workspace.top),
            hint="`git fetch --all --tags`, then run it again",
        )
    return heard


def kept(repo: Repo, policy: Policy, *, confirmed: Iterable[str], heard: Heard, on_event: OnEvent) -> Kept:
    """What is known and what is wanted, as records write roots.

    Args:
        confirmed: roots that this clone has seen on the remote, whatever Git has forgotten since.
        heard: what Git's remotes have now (`check_complete`).

    Raises:
        Unsafe: as `everything`.
    """
    found = everything(repo, on_event=on_event, more=[*heard.branches, *heard.tags])
    roots = {n.root.text: n.root for n in found}
    known = frozenset(roots)
    wanted = known if not policy.lets_go else _wanted(repo, policy, found, heard)
    return Kept(known | frozenset(confirmed), wanted, roots)


def _wanted(repo: Repo, policy: Policy, found: Sequence[Named], heard: Heard) -> frozenset[str]:
    git = repo.workspace.need_git("gc of a remote")
    everywhere = [*git.tips(stash=False), *heard.branches, *heard.tags]
    reachable = {c: (time, parents) for c, time, parents in git.commits(everywhere)}
    heads = everywhere if policy.keep_tags else [*git.tips(tags=False, stash=False), *heard.branches]
    logged = [t for t in git.reflog_tips() if t not in reachable]
    trees = {CommitId(head) for head in heads} | set(logged)
    out = {n.root.text for n in found if not n.commit or n.commit not in reachable}
    since = policy.keep_since
    if since is not None:
        young = {c for c, (time, _) in reachable.items() if time >= since}
        out |= {n.root.text for n in found if n.commit in young}
        # What was current then came with an older commit.
        trees |= {p for c in young for p in reachable[c][1] if p not in young}
    spoken = [bytes.fromhex(p) for p in policy.paths]
    last: dict[bytes, dict[str, None]] = {}
    for n in found:
        if any(n.path == p or n.path.startswith(p + b"/") for p in spoken):
            if n.commit:
                newest = last.setdefault(n.path, {})
                if len(newest) < (policy.keep_last or 0):
                    newest[n.root.text] = None
        elif since is None:
            out.add(n.root.text)
    out |= {root for newest in last.values() for root in newest}
    for commit in trees:
        strict = _Strict(lambda _: None)
        out |= {n.root.text for n in _named(repo.workspace.pointers_at(commit), strict)}
    return frozenset(out)
