"""Which version of which repository, in words that another process understands too, and what this process has open.

    where = Where("/home/me/churn", "v1.0").pinned()   # the commit is found now; a branch that moves changes nothing
    where.snapshot().children(b"data")                 # this process's own; opened again after a fork, or in a worker

Problem: a data loader forks or spawns workers, a notebook runs for days, `fsspec` makes a filesystem for every URL. All
of them shall share connections and caches where they can and must not where they cannot. Choice: what travels is a
record of texts; behind it every process has one table of open repositories, which a fork leaves to the parent.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.access import Access
from dvk.commands.elsewhere import open_elsewhere
from dvk.commands.repo import Repo
from dvk.commands.snapshot import Snapshot
from dvk.errors import NotARepository, NotFound
from dvk.workspace.config import ConfigFiles
from dvk.workspace.git import CommitId
from dvk.workspace.git_mirror import looks_like_git_url

_ACCESSES_KEPT = 4
_SNAPSHOTS_KEPT = 8
_SETTINGS = ("DVK_", "AWS_", "GOOGLE_", "AZURE_", "XDG_", "GIT_", "HOME")


class Where(Struct, frozen=True):
    """A version of a repository.

    Attributes:
        place: an absolute path in the repository, or its Git URL.
        rev: a revision; "" for HEAD, in a plain folder for what its pointers say.
        remote: the only remote to ask.
        commit: what the revision came to; "" until it is `pinned`, and in a plain folder.
    """

    place: str
    rev: str = ""
    remote: str | None = None
    commit: str = ""

    def pinned(self) -> Where:
        """The same with the commit that the revision names now.

        Raises:
            NotFound: there is no such revision (near ones are named), or no commit yet.
            NotARepository: there is no repository. Refused: a revision of a plain folder.
            RemoteUnreachable, RemoteDenied: the Git server of a URL does not answer, or wants a sign-in.
        """
        if self.commit:
            return self
        if looks_like_git_url(self.place):
            with open_elsewhere(self.place, self.rev or "HEAD", environ=os.environ, committed=True) as there:
                return replace(self, commit=there.commit)
        workspace = _opened(self).repo.workspace
        if workspace.git is None:
            if self.rev:
                workspace.resolve(self.rev)  # says that there are none
            return self
        if self.rev:
            return replace(self, commit=workspace.git.resolve(self.rev))
        head = workspace.git.head()
        if head is None:
            raise NotFound("nothing is committed yet", subject=self.place, hint="`git commit` makes the first version")
        return replace(self, commit=head)

    def snapshot(self) -> Snapshot:
        """The version, opened in this process and shared by all who ask for it. Raises as `pinned`."""
        pinned = self.pinned()
        with _lock:
            access = _latest.get(
                (pinned.place, pinned.remote, pinned.commit if looks_like_git_url(pinned.place) else "")
            )
        access = access or _opened(pinned)
        with _lock:
            kept = _snapshots.setdefault(id(access), OrderedDict())
            key = pinned.commit, pinned.rev or ("HEAD" if pinned.commit else "")
            if (found := kept.get(key)) is None:
                found = kept[key] = Snapshot(access, CommitId(pinned.commit), key[1])
                while len(kept) > _SNAPSHOTS_KEPT:
                    kept.popitem(last=False)
            else:
                kept.move_to_end(key)
            return found


_lock = threading.Lock()
_accesses: OrderedDict[tuple[str, str | None, str, object], Access] = OrderedDict()
#: What `pinned` found last for a place, so that whoever reads on need not look at all settings again.
_latest: dict[tuple[str, str | None, str], Access] = {}
_snapshots: dict[int, OrderedDict[tuple[str, str], Snapshot]] = {}  # by access; by commit and what it was called
_inherited: list[object] = []  # of the parent: never closed here, where its threads are not


def _opened(where: Where) -> Access:
    """The repository of `where`, opened once in this process for each state of its settings."""
    url = looks_like_git_url(where.place)
    # Which remotes another repository has depends on the revision.
    short = (where.place, where.remote, where.commit if url else "")
    key = (*short, _state_of_settings(None if url else where.place, os.environ))
    with _lock:
        if (found := _accesses.get(key)) is not None:
            _accesses.move_to_end(key)
            _latest[short] = found
            return found
    access = Access(_open(where, url=url), remote=where.remote)
    with _lock:
        found = _latest[short] = _accesses.setdefault(key, access)
        while len(_accesses) > _ACCESSES_KEPT:
            # Whoever has a file of it open goes on reading; connections end with the last of them.
            gone, old = _accesses.popitem(last=False)
            _snapshots.pop(id(old), None)
            if _latest.get(gone[:3]) is old:
                del _latest[gone[:3]]
        return found


def _open(where: Where, *, url: bool) -> Repo:
    if not url:
        try:
            return Repo(where.place)
        except NotARepository:
            if not os.path.isdir(where.place):
                raise
    return open_elsewhere(where.place, where.commit or where.rev or None, environ=os.environ, committed=True).repo


def _state_of_settings(place: str | None, environ: Mapping[str, str]) -> tuple[object, ...]:
    """Changes when what was open has to be opened anew: a file or variable says otherwise where data is, or there is
    another repository."""
    known = ConfigFiles.of(os.fsencode(place or ""), b"", environ)
    files = [known.user, os.path.join(os.path.dirname(known.user), b"trusted-remotes")]
    repository: tuple[int, int] | None = None  # another one may stand in the place of one that was deleted
    folder = os.fsencode(place) if place is not None else b"/"
    while folder != b"/":
        if os.path.lexists(os.path.join(folder, b".git")) or os.path.lexists(os.path.join(folder, b"dvk.toml")):
            files += [os.path.join(folder, b"dvk.toml"), os.path.join(folder, b".git", b"dvk", b"config.toml")]
            with contextlib.suppress(OSError):
                found = os.stat(os.path.join(folder, b".git"))
                repository = found.st_dev, found.st_ino
            break
        folder = os.path.dirname(folder)
    stats = []
    for path in files:
        try:
            found = os.stat(path)
            stats.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stats.append((0, 0, 0))
    variables = sorted(item for item in environ.items() if item[0].startswith(_SETTINGS))
    return (tuple(stats), repository, tuple(variables))


def close_all() -> None:
    """Close every repository that this process opened for reading versions. Files that are still open fail then."""
    with _lock:
        old = list(_accesses.values())
        _accesses.clear()
        _latest.clear()
        _snapshots.clear()
    for access in old:
        access.close()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _inherited.append((dict(_accesses), dict(_snapshots)))
    _accesses.clear()
    _latest.clear()
    _snapshots.clear()


os.register_at_fork(after_in_child=_after_fork)
