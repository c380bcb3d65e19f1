"""What every verb works on: a workspace, its local store and its remotes.

>>> repo = Repo("path/in/a/worktree")                     # doctest: +SKIP
>>> repo.store, repo.remote("origin", write=False).store   # doctest: +SKIP

Nothing is opened before it is needed: a status in an empty repository touches neither store nor network.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType

from msgspec import Struct

from dvk.backend.contract import Backend
from dvk.backend.disk import storage_error, translate
from dvk.backend.local import LocalBackend
from dvk.backend.locate import open_backend, parse_remote_url
from dvk.backend.wrappers import CountingBackend, RetryBackend
from dvk.commands.remote_place import KnownStore, check_place
from dvk.errors import Busy, DvkError, NotFound, Refused, StorageError
from dvk.ids import PageId
from dvk.store.borrowing import BorrowingStore
from dvk.store.names import show
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.roots import ConfirmedRoots
from dvk.store.store import Store
from dvk.timings import started
from dvk.workspace import repositories
from dvk.workspace.config import RemoteConfig
from dvk.workspace.places import Places, check_ownership, exclusive
from dvk.workspace.pointer import Pointer
from dvk.workspace.repo import Workspace
from dvk.workspace.trust import VARIABLE, is_trusted, why_ask

_WORKTREE_TIMEOUT_S = 600.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class Remote(Struct, frozen=True):
    """A remote that has been opened; nothing was contacted yet."""

    name: str
    url: str
    store: Store

    @property
    def requests(self) -> int:
        """How often the medium was asked so far. What is asked again after a failure counts once."""
        backend = self.store.backend
        return backend.counts.requests if isinstance(backend, CountingBackend) else 0


class Borrowed(Struct, frozen=True):
    """Stores of other repositories on this machine that are read as well."""

    stores: tuple[bytes, ...]
    problems: tuple[DvkError, ...]  #: of those that are not


class Repo:
    """A workspace with its store and remotes.

    Args:
        path: any folder of the work tree.
        environ: the environment that settings and credentials are looked up in; the process's own by default.

    Raises:
        NotARepository: there is neither a Git work tree nor a plain folder with a dvk.toml.
    """

    def __init__(self, path: str | os.PathLike[str] = ".", *, environ: Mapping[str, str] | None = None) -> None:
        started()  # a verb opens its repository once it has imported what it needs
        self.environ: Mapping[str, str] = os.environ if environ is None else environ
        self.cwd = os.fsencode(os.path.abspath(os.fspath(path)))
        self.workspace = Workspace.discover(os.fsdecode(self.cwd), environ=self.environ)

    elsewhere = ""  #: its URL, where it is another repository than the one in which the user works

    @classmethod
    def over(cls, workspace: Workspace, *, cwd: bytes, environ: Mapping[str, str], store: Store | None = None) -> Repo:
        """A repository whose workspace is known already, and maybe a store of somebody else who closes it."""
        repo = cls.__new__(cls)
        repo.environ, repo.cwd, repo.workspace = environ, cwd, workspace
        if store is not None:
            repo.__dict__["store"] = store
        return repo

    def __enter__(self) -> Repo:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of handles and processes."""
        if "root_fd" in self.__dict__:
            os.close(self.__dict__.pop("root_fd"))
        if "store" in self.__dict__:
            self.__dict__.pop("store").close()
        if self.workspace.git is not None:
            self.workspace.git.close()

    @cached_property
    def root_fd(self) -> int:
        """A handle on the top of the work tree; everything below is opened from it without following links."""
        return self.workspace.open_top()

    @cached_property
    def store(self) -> Store:
        """The local store, which may not exist yet, and behind it those of repositories that Git borrows from."""
        own = Store(LocalBackend(os.fsdecode(self.workspace.store_dir)))
        others = [Store(LocalBackend(os.fsdecode(folder))) for folder in self.borrowed.stores]
        return BorrowingStore(own, others) if others else own

    @cached_property
    def borrowed(self) -> Borrowed:
        """The stores of repositories that this clone borrows objects from, and those that are not to be trusted."""
        git = self.workspace.git
        if git is None:
            return Borrowed((), ())
        found = git.alternates()
        stores: list[bytes] = []
        problems = list(found.problems)
        for folder in found.common_dirs:
            places = Places.in_git(folder, folder)
            if places.store_dir == self.workspace.store_dir or not os.path.isdir(places.store_dir):
                continue
            try:
                for part in (places.common_dir, places.store_dir):
                    check_ownership(part, accepted_uid=os.stat(folder).st_uid, environ=self.environ)
            except (DvkError, OSError) as error:
                problems.append(error if isinstance(error, DvkError) else storage_error(error, show(folder)))
            else:
                stores.append(places.store_dir)
        return Borrowed(tuple(stores), tuple(problems))

    @property
    def project(self) -> str:
        """Which project this repository is, for records on remotes; empty where `dvk init` did not say."""
        return self.workspace.config.text("project.id") or ""

    @property
    def state(self) -> bytes:
        """Where this worktree keeps what it knows of itself."""
        return self.workspace.state_dir

    @property
    def remotes_state(self) -> str:
        """Where this clone keeps what it knows of remotes."""
        return os.path.join(os.fsdecode(self.workspace.common_dir), "remotes")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store's shared lock, from the first lookup until what refers to the data is written.

        Adding needs no lock to be correct; this one tells a local collection of garbage to wait. Where the filesystem
        has no locks, that collection runs only when nobody else does. A store that others may use, too, notes that this
        repository does.
        """
        with self._store_lock() as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise self._unlockable(error) from error
            repositories.register(self.workspace)
            yield

    @contextmanager
    def collecting(self, *, exclusive: bool, timeout_s: float) -> Iterator[None]:
        """Hold the store alone: nobody is between a look-up and the pointer that refers to what was found.

        Args:
            exclusive: the user promises that nobody else is at work, so that where there are no locks none are needed.

        Raises:
            Refused: the filesystem has no locks and nobody promised. Busy: others were at work all the time.
        """
        with self._store_lock() as fd:
            deadline = time.monotonic() + timeout_s
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno in _NO_LOCKS and exclusive:
                        break
                    if error.errno in _NO_LOCKS:
                        raise Refused(
                            "the filesystem of this store has no locks, so dvk cannot know that nobody is adding",
                            subject=show(self.workspace.store_dir),
                            hint="stop all other work in it and say --exclusive",
                        ) from error
                    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                        raise self._unlockable(error) from error
                if time.monotonic() > deadline:
                    raise Busy(
                        "others are adding to this store or reading from it",
                        subject=show(self.workspace.store_dir),
                        hint="wait for them to end and run the same command again",
                    )
                time.sleep(0.05)
            yield

    @contextmanager
    def _store_lock(self) -> Iterator[int]:
        folder = self.workspace.store_dir
        with translate(show(folder)):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            fd = os.open(os.path.join(folder, b"lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)

    def _unlockable(self, error: OSError) -> StorageError:
        return StorageError(f"cannot be locked ({error.strerror})", subject=show(self.workspace.store_dir))

    @contextmanager
    def changing_files(self) -> Iterator[None]:
        """Be the only one that changes data in this worktree, so that two checkouts do not meet on the same file.

        Raises:
            Busy: another one has been at it for ten minutes.
        """
        with exclusive(os.path.join(self.state, b"worktree.lock"), timeout_s=_WORKTREE_TIMEOUT_S):
            yield

    # ------------------------------------------------------------ remotes

    def remote_config(self, name: str | None = None) -> RemoteConfig:
        """The settings of a remote, of the default one without a name.

        Raises:
            NotFound: there is no such remote, or none at all; the hint says how to add one.
        """
        remotes = self.workspace.config.remotes()
        wanted = name or self.workspace.config.default_remote()
        if wanted is None:
            if not remotes:
                raise NotFound(
                    "no remote is configured",
                    hint="`dvk remote add origin s3://BUCKET/PREFIX` (or a path) says where data goes",
                )
            raise NotFound(
                f"there are several remotes ({', '.join(sorted(remotes))}) and none is the default",
                hint="name one with --remote, or `dvk config core.remote NAME`",
            )
        if wanted not in remotes:
            known = ", ".join(sorted(remotes)) or "none"
            raise NotFound(
                "no remote has this name", subject=wanted, hint=f"known remotes: {known}; see `dvk remote add`"
            )
        return remotes[wanted]

    def remote(self, name: str | None = None, *, write: bool, deadline_s: float | None = None) -> Remote:
        """A remote, opened; nothing is contacted before the first operation.

        The one door to the network: a URL that a tracked file chose gets through only where `dvk.workspace.trust` says.

        Args:
            write: whether it will be written to, or only read.
            deadline_s: repeat an operation that fails for the moment no longer than this, whatever is configured.

        Raises:
            NotFound: as `remote_config`. UsageError: its URL or settings make no sense.
            Refused: the user has to trust its URL first, or it is to be written and can only be read, or it lies in
            what this workspace tracks. Its store refuses likewise when it is not the one that was there before.
        """
        config = self.remote_config(name)
        self._check_trust(config, write=write)
        check_place(self.workspace, config.url)
        if write and parse_remote_url(config.url).read_only:
            raise Refused("this remote can only be read", subject=config.url, hint="`dvk remote list` shows the others")
        counted = CountingBackend(self._backend(config, deadline_s))
        expected = self._known_stores().get(config.url, "")
        store = KnownStore(counted, expected=expected, name=config.name, url=config.url)
        return Remote(config.name, config.url, store)

    def _check_trust(self, config: RemoteConfig, *, write: bool) -> None:
        url = parse_remote_url(config.url)
        why = why_ask(url, config.origin, write=write)
        if why and not is_trusted(url, self.environ):
            raise Refused(
                f"{why}; the URL comes from {config.origin.place}, which came with the repository",
                subject=str(url),
                hint=f"if it is the right place: `dvk remote trust {url if self.elsewhere else config.name}`, once; "
                f"in an automatic job: {VARIABLE}={shlex.quote(str(url))}",
            )

    def known_store_id(self, name: str) -> str:
        """The store that this clone last saw under a remote's URL; empty when it never did. Offline."""
        try:
            url = self.remote_config(name).url
        except NotFound:
            return ""
        return self._known_stores().get(url, "")

    def remember_store(self, remote: Remote) -> None:
        """Note which store a remote's URL led to."""
        found = remote.store.describe()
        known = self._known_stores()
        if found is None or known.get(remote.url) == found.store:
            return
        self._write_known_stores({**known, remote.url: found.store})

    def forget_store(self, url: str) -> str:
        """Take whatever store is behind a URL from now on; the id of the one that was expected, or nothing."""
        known = self._known_stores()
        before = known.pop(url, "")
        if before:
            self._write_known_stores(known)
        return before

    def _write_known_stores(self, known: Mapping[str, str]) -> None:
        os.makedirs(self.remotes_state, mode=0o700, exist_ok=True)
        temporary = os.path.join(self.remotes_state, f"{secrets.token_hex(8)}.tmp")
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(temporary, os.path.join(self.remotes_state, "stores.json"))

    def confirmed(self, names: Iterable[str]) -> set[str]:
        """The roots, as text, that this clone has seen confirmed on any of these remotes. Offline."""
        stores = {store for name in names if (store := self.known_store_id(name))}
        return {root for store in stores for root in ConfirmedRoots(self.remotes_state, store).read()}

    def _known_stores(self) -> dict[str, str]:
        try:
            with open(os.path.join(self.remotes_state, "stores.json"), encoding="utf-8") as file:
                raw = json.load(file)
        except (OSError, ValueError):
            return {}
        if not isinstance(raw, dict):
            return {}
        return {k: v for k, v in raw.items() if isinstance(v, str) and re.fullmatch(r"[0-9a-f]{32}", v)}

    def _backend(self, config: RemoteConfig, deadline_s: float | None) -> Backend:
        """The medium of a remote, with retries where there is a network between."""
        url = parse_remote_url(config.url)
        backend = open_backend(url, settings=config.settings, environ=self.environ)
        if url.is_local:
            return backend
        return RetryBackend(backend, deadline_s=min(config.settings.deadline_s, deadline_s or math.inf))


def root_of(pointer: Pointer) -> Root:
    """What a pointer names, as the store speaks of it."""
    if pointer.is_dir:
        return Root(FOLDER, PageId(pointer.id), pointer.size, pointer.files or 0)
    return Root(FILE, pointer.id, pointer.size)
