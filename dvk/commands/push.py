"""`dvk push`: versions that this clone holds and a remote is not known to have go there, verified.

Which versions: those reachable from HEAD and the Git index, or as asked. Only data goes; Git's own push is the user's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from msgspec import Struct, field

from dvk.backend.check import check_light
from dvk.commands.repo import Remote, Repo, root_of
from dvk.commands.versions import Named, head_history, history, roots_here, staged
from dvk.errors import DataMissing, DvkError, UsageError
from dvk.events import Note, OnEvent, ignore
from dvk.store.names import show
from dvk.store.push import Owner, Pushed, Version, plan_push
from dvk.store.push import push as push_versions
from dvk.store.root import Root
from dvk.workspace.pointer import Pointer


class PushedVersion(Struct, frozen=True):
    """A version that was sent (or would be)."""

    path: bytes
    id: bytes
    size: int


class PushResult(Struct):
    """What a push did."""

    remote: str
    url: str
    sent: list[PushedVersion] = field(default_factory=list)
    already_there: int = 0
    not_here: int = 0  #: versions of history that this clone does not hold, so somebody else pushes them
    new_bytes: int = 0  #: decoded bytes that the remote was not known to have
    moved_bytes: int = 0  #: bytes sent
    packs: int = 0
    requests: int = 0  #: how often the remote was asked for anything
    verified: str = ""  #: "packs" (end and a piece of each), "full", or empty when nothing was sent or read back
    read_back_bytes: int = 0  #: of what was there before, where everything was to be read back
    lost_packs: int = 0  #: packs that the remote had promised and that were gone or damaged
    failures: list[DvkError] = field(default_factory=list)
    dry_run: bool = False


def push(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    remote: str | None = None,
    only_head: bool = False,
    all_branches: bool = False,
    revs: Sequence[str] = (),
    dry_run: bool = False,
    verify_full: bool = False,
    on_event: OnEvent = ignore,
) -> PushResult:
    """Send what the remote does not have. Returns only when an independent clone could restore it.

    Args:
        only_head: only the versions that HEAD and the index name, not those before.
        all_branches: of all local branches as well.
        revs: instead of HEAD: `v1.0`, `A..B`.
        verify_full: read back everything that is sent, and everything that these versions rely on and the remote has
            already. What is gone or damaged there is sent again, as far as this clone holds it.

    Raises:
        UsageError, NotFound: arguments. RemoteError: the remote; nothing that was not finished is promised.
    """
    target = repo.remote(remote, write=not dry_run)
    named = _named(repo, paths, only_head=only_head, all_branches=all_branches, revs=revs)
    # What was asked for, or is checked out now, must be there afterwards even if this clone does not hold it;
    # older versions that it never had are somebody else's to push.
    needed = {n.root for n in (named if revs or paths else [*staged(repo), *at_commit(repo, "HEAD")])}
    return send(repo, target, named, needed, dry_run=dry_run, verify_full=verify_full, on_event=on_event)


def send(
    repo: Repo,
    target: Remote,
    named: Sequence[Named],
    needed: set[Root],
    *,
    dry_run: bool = False,
    verify_full: bool = False,
    on_event: OnEvent = ignore,
) -> PushResult:
    """Send those of the versions `named` (newest first) that are here, and see that the `needed` ones are there.

    Raises:
        RemoteError: the remote; nothing that was not finished is promised.
    """
    out = PushResult(target.name, target.url, dry_run=dry_run)
    # Packs of the store must not be collected while they are being read.
    with repo.writing():
        held = roots_here(repo.store, [n.root for n in named])
        out.not_here = len({n.root for n, here in zip(named, held, strict=True) if not here})
        versions = as_push_versions([n for n, here in zip(named, held, strict=True) if here or n.root in needed])
        done: Pushed
        if dry_run:
            done = plan_push(repo.store, target.store, versions, repo.remotes_state, on_event=on_event)
        else:
            if versions and target.store.describe() is None:
                check_light(target.store.backend)
            done = push_versions(
                repo.store,
                target.store,
                versions,
                repo.remotes_state,
                on_event=on_event,
                verify_all=verify_full,
                owner=owner_of(repo),
            )
            repo.remember_store(target)
    by_root = {n.root: n for n in reversed(named)}
    out.sent = [PushedVersion(by_root[v.root].path, v.root.id, v.root.size) for v in done.sent]
    out.already_there = len(done.covered)
    out.new_bytes, out.moved_bytes, out.packs = done.new_bytes, done.moved_bytes, done.packs
    if not dry_run and (done.sent or (verify_full and done.covered)):
        out.verified = "full" if verify_full else "packs"
    out.requests = target.requests
    out.read_back_bytes, out.lost_packs = done.read_back_bytes, len(done.lost)
    for version, error in done.absent:
        _absent(out, by_root[version.root], error, asked=version.root in needed, on_event=on_event)
    return out


def _named(
    repo: Repo, paths: Sequence[bytes | str], *, only_head: bool, all_branches: bool, revs: Sequence[str]
) -> list[Named]:
    """The versions meant, newest first."""
    if sum((only_head, all_branches, bool(revs))) > 1:
        raise UsageError("--only-head, --all-branches and --rev say different things", hint="use one of them")
    git = repo.workspace.need_git("push")
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    if revs:
        found = list(history(repo, revs, paths=wanted))
    elif all_branches:
        branches = [commit for _, commit in git.local_branches()]
        found = [*staged(repo), *history(repo, [*branches, *(["HEAD"] if git.head() else [])], paths=wanted)]
    elif only_head:
        found = [*staged(repo), *at_commit(repo, "HEAD")]
    else:
        found = [*staged(repo), *head_history(repo)]
    if wanted:
        owners = {(repo.workspace.owner_of(w) or (w, b""))[0] for w in wanted}
        found = [n for n in found if any(n.path == o or n.path.startswith(o + b"/") for o in owners)]
    return found


def owner_of(repo: Repo) -> Owner:
    """Whose the records of this repository are."""
    return Owner(repo.project, lambda: _unheard(repo))


def _unheard(repo: Repo) -> set[str]:
    """Roots that Git may not have told others of: of HEAD, of the index, of commits that no remote branch has."""
    git = repo.workspace.need_git("push")
    found = [*staged(repo), *at_commit(repo, "HEAD")]
    # Where there is no other repository, nobody else collects; all of history would stay young for ever.
    if there := git.remote_tips():
        tips = [commit for _, commit in git.local_branches()]
        head = git.head()
        found += history(repo, [*tips, *([head] if head else []), *(f"^{oid}" for oid in there)])
    return {n.root.text for n in found}


def at_commit(repo: Repo, rev: str) -> list[Named]:
    """The versions that a commit has; none before the first one."""
    git = repo.workspace.need_git("push")
    commit = git.head() if rev == "HEAD" else git.resolve(rev)
    if commit is None:
        return []
    return [
        Named(path, root_of(pointer), commit)
        for path, pointer in repo.workspace.pointers_at(commit)
        if isinstance(pointer, Pointer)
    ]


def _absent(out: PushResult, version: Named, error: DvkError, *, asked: bool, on_event: OnEvent) -> None:
    """A version of which only a part is here and that the remote does not have."""
    what = (
        f"a version of it ({version.root.id.hex()[:12]}) is not, or only partly, in this clone and not on {out.remote}"
    )
    hint = f"whoever committed it ({version.commit[:9] or 'staged here'}) can `dvk push` it"
    if asked:
        out.failures.append(DataMissing(what, subject=show(version.path), hint=hint))
    else:
        on_event(Note(f"{what}; it was left out ({error.message})", subject=show(version.path), hint=hint))


def as_push_versions(named: Sequence[Named]) -> list[Version]:
    """Versions for a push, oldest first, each with the earlier ones of its path (nearest first, at most three).

    Args:
        named: newest first.
    """
    earlier: dict[bytes, list[Root]] = {}
    out: list[Version] = []
    seen: set[Root] = set()
    for n in reversed(named):
        before = earlier.setdefault(n.path, [])
        if n.root not in seen:
            seen.add(n.root)
            previous = tuple(r for r in reversed(before[-3:]) if r.kind == n.root.kind)
            out.append(Version(n.root, previous, os.fsdecode(n.path)))
        if n.root not in before:
            before.append(n.root)
    return out
