"""`dvk verify`: whether what versions point to can be had, from this clone's store or from a remote, and if not, what.

    verify(repo)                                     # the local store and the work tree
    verify(repo, ["HEAD"], remote="")                # the default remote: can a fresh clone restore this commit?
    verify(repo, level=Level.DATA, percent=10)       # reads the tenth that was read longest ago

Nothing is changed but what is remembered: damage that was found is noted in the local store, so that nobody counts it
as held any more, and when each pack was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from dvk.commands.du import all_versions
from dvk.commands.repo import Repo, root_of
from dvk.commands.verify_local import LocalCheck
from dvk.commands.verify_remote import RemoteCheck
from dvk.commands.verify_report import WORK_TREE, VerifyResult, Wanted
from dvk.commands.versions import Named, head_history, history, staged
from dvk.errors import StorageError
from dvk.events import OnEvent, ignore
from dvk.store.examine import Level
from dvk.store.root import Root
from dvk.workspace.pointer import Pointer

__all__ = ["Level", "VerifyResult", "verify", "wanted_versions"]


def verify(
    repo: Repo,
    revs: Sequence[str] = (),
    paths: Sequence[bytes | str] = (),
    *,
    remote: str | None = None,
    level: Level = Level.NORMAL,
    percent: float = 100,
    on_event: OnEvent = ignore,
) -> VerifyResult:
    """Look whether versions are whole. Raises nothing for damage: that is the answer.

    Args:
        revs: what these revisions point to (`HEAD`, `v1.0`), or ranges brought (`A..B`); everything by default.
        paths: only these, or parts of tracked folders.
        remote: the name of a remote to look at instead of the local store and the work tree; "" for the default one.
        percent: with `Level.DATA`, the share of bytes to read, those first that were read longest ago.

    Raises:
        NotFound, UsageError: a revision, path or remote that does not exist.
        RemoteError: the remote does not answer, or there is no dvk store at its URL.
    """
    wanted = wanted_versions(repo, revs, paths, everything=remote is None)
    narrow = bool(revs or paths)
    if remote is not None:
        target = repo.remote(remote or None, write=False)
        return RemoteCheck(repo, target, wanted, level, narrow=narrow, percent=percent, on_event=on_event).run()
    with (
        _uncollected(repo),
        LocalCheck(repo, wanted, level, narrow=narrow, percent=percent, on_event=on_event) as check,
    ):
        under = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
        return check.run(None if revs else under)


@contextmanager
def _uncollected(repo: Repo) -> Iterator[None]:
    """Keep a collection of garbage from taking packs away meanwhile, where this user may write to the store."""
    with ExitStack() as stack:
        if os.path.isdir(repo.workspace.store_dir):
            with suppress(OSError, StorageError):
                stack.enter_context(repo.writing())
        yield


# ---------------------------------------------------------------- which versions


def wanted_versions(repo: Repo, revs: Sequence[str], paths: Sequence[bytes | str], *, everything: bool) -> list[Wanted]:
    """The versions that are meant, each once.

    Args:
        everything: without `revs`, what anything in the repository leads to; else what a push would send.
    """
    located = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    owners = [repo.workspace.owner_of(p) or (p, b"") for p in located]
    out: dict[tuple[bytes, Root, bytes], Wanted] = {}
    for named, revision in _named(repo, revs, everything=everything):
        for path, under in owners or [(b"", b"")]:
            if path and named.path != path and not named.path.startswith(path + b"/"):
                continue
            inside = under if named.path == path else b""
            found = out.setdefault((named.path, named.root, inside), Wanted(named.path, named.root, inside))
            if revision and revision not in found.revisions:
                found.revisions.append(revision)
    for found in out.values():
        found.revisions.sort(key=lambda r: r == WORK_TREE)
    return list(out.values())


def _named(repo: Repo, revs: Sequence[str], *, everything: bool) -> Iterator[tuple[Named, str]]:
    if not revs:
        versions = all_versions(repo) if everything else iter(_as_pushed(repo))
        for named in versions:
            yield named, named.commit or WORK_TREE
        return
    repo.workspace.need_git("verify")
    for rev in revs:
        if ".." in rev:
            for named in history(repo, [rev]):
                yield named, named.commit
            continue
        commit = repo.workspace.resolve(rev)
        brought = {(n.path, n.root): n.commit for n in reversed(list(history(repo, [commit])))}
        for path, pointer in repo.workspace.pointers_at(commit):
            if isinstance(pointer, Pointer):
                named = Named(path, root_of(pointer), commit)
                yield named, brought.get((path, named.root), commit)
            else:
                raise pointer


def _as_pushed(repo: Repo) -> list[Named]:
    found = [*staged(repo), *head_history(repo)]
    return found or [Named(p, root_of(x)) for p, x in repo.workspace.worktree_pointers() if isinstance(x, Pointer)]
