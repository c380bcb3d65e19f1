"""Where dvk keeps what it remembers, whose folder that is, and the one lock over it.

In a Git repository everything lies in `.git/dvk`: what belongs to one worktree in that worktree's Git
folder, the rest in the common one. A plain folder has no such place; its state goes to the user's cache, in
a folder named by its path, and where a container has no home that can be written, to a private folder among
the temporary files.

    with exclusive(b"/r/.git/dvk/lock"):
        ...  # read, change and write the exclude file, a folder's pointer, the Git index
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping

from blake3 import blake3
from msgspec import Struct

from dvk.backend.disk import storage_error
from dvk.errors import Busy, Refused
from dvk.store.names import show
from dvk.workspace.config import user_cache_dir

LOCK_TIMEOUT_S = 60.0

NO_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL})  #: of a filesystem
_MAX_WAIT_S = 0.1


class Places(Struct, frozen=True):
    """Folders of one workspace; they need not exist yet."""

    state_dir: bytes  #: of this worktree: stat cache, selection
    common_dir: bytes  #: of all its worktrees: local settings, the lock
    store_dir: bytes  #: the local store, unless the user moved it

    @classmethod
    def in_git(cls, git_dir: bytes, common_git_dir: bytes) -> Places:
        """The places of a work tree."""
        common = os.path.join(common_git_dir, b"dvk")
        return cls(os.path.join(git_dir, b"dvk"), common, os.path.join(common, b"store"))

    @classmethod
    def in_cache(cls, top: bytes, environ: Mapping[str, str]) -> Places:
        """The places of a plain folder at `top`. All plain folders of a user share one store.

        Raises:
            Refused: nothing of the user's own can be written, and somebody else took our temporary folder.
        """
        cache = writable_cache(environ)
        mine = os.path.join(cache, b"folders", blake3(top).hexdigest()[:32].encode())
        return cls(mine, mine, os.path.join(cache, b"store"))


def check_ownership(folder: bytes, *, accepted_uid: int | None, environ: Mapping[str, str]) -> None:
    """Pass if the folder of dvk's own state is the user's, or does not exist yet.

    Git's safe.directory rule for what Git does not know of: state that another user wrote would speak for
    our data. `accepted_uid` is an owner that Git has accepted already (of the Git folder around it).

    Raises:
        Refused: it belongs to somebody else, anybody may write to it, or it is no folder.
    """
    try:
        info = os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # made, or refused, by whoever writes there first
    if not stat.S_ISDIR(info.st_mode):
        raise Refused("dvk's own folder is no folder", subject=show(folder), hint="move it out of the way")
    _check_not_world_writable(folder, info)
    if info.st_uid not in {*_own_uids(environ), accepted_uid}:
        raise Refused(
            "dvk's own folder belongs to another user",
            subject=show(folder),
            hint=f"if it should be yours: chown -R {os.geteuid()} {show(folder)}",
        )


def check_store(folder: bytes) -> None:
    """Pass if a store that the user chose (which a group may share) cannot be written by just anybody.

    Raises:
        Refused: it can.
    """
    try:
        info = os.stat(folder)
    except OSError:
        return  # made, or refused, by the store itself
    _check_not_world_writable(folder, info)


def _check_not_world_writable(folder: bytes, info: os.stat_result) -> None:
    if info.st_mode & stat.S_IWOTH:
        raise Refused(
            "everybody on this machine may write to dvk's folder",
            subject=show(folder),
            hint=f"chmod o-w {show(folder)}",
        )


def _own_uids(environ: Mapping[str, str]) -> set[int]:
    """Whom we count as ourselves: under sudo also the user who called it, as git does."""
    mine = {os.geteuid()}
    with contextlib.suppress(KeyError, ValueError):
        if os.geteuid() == 0:
            mine.add(int(environ["SUDO_UID"]))
    return mine


def writable_cache(environ: Mapping[str, str]) -> bytes:
    """The user's cache folder, or a private one among the temporary files where that cannot be written.

    Raises:
        Refused: somebody else took the temporary one.
    """
    cache = user_cache_dir(environ)
    if environ.get("DVK_CACHE_HOME") or _could_write(cache):
        return cache
    base = environ.get("TMPDIR") or "/tmp"
    private = os.fsencode(os.path.join(base, f"dvk-{os.geteuid()}"))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(private, 0o700)
        info = os.lstat(private)
    except OSError:
        return cache  # nowhere to write: reading still works, and a writer gets the error of the cache
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        # A28: another user may have been there first, and what lies there would be theirs.
        raise Refused(
            "dvk's temporary folder is not private to you",
            subject=show(private),
            hint="set DVK_CACHE_HOME to a folder of your own",
        )
    return private


def _could_write(folder: bytes) -> bool:
    """Whether `folder` is writable, or could be made."""
    while not os.path.lexists(folder):
        parent = os.path.dirname(folder)
        if parent == folder:
            return False
        folder = parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


@contextlib.contextmanager
def exclusive(path: bytes, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock file `path`, waiting for another holder (also a thread of ours) up to `timeout_s`.

    The lock goes with the process, so a kill leaves nothing behind. Where the filesystem has no flock,
    nothing is held.

    Raises:
        Busy: another process held it all the time; named where known.
        StorageError: the file cannot be made.
    """
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise storage_error(e, show(path)) from e
    try:
        if _acquire(fd, path, timeout_s):
            # For the message of whoever waits in vain; nothing depends on it, so a full disk may do without.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)  # lets go of the lock


def _acquire(fd: int, path: bytes, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    wait_s = 0.002
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as e:
            if e.errno in NO_LOCKS:
                return False
            if e.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                raise storage_error(e, show(path)) from e
        left = deadline - time.monotonic()
        if left <= 0:
            holder = os.pread(fd, 20, 0).strip()
            who = f"process {holder.decode()}" if holder.isdigit() else "another process"
            raise Busy(
                f"{who} is changing this repository's dvk state",
                subject=show(path),
                hint="wait for it to end and run the same command again",
            )
        time.sleep(min(wait_s, left))
        wait_s = min(2 * wait_s, _MAX_WAIT_S)
