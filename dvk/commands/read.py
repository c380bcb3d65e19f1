"""`dvk.open`, `dvk.read_bytes`, `dvk.local_path`: a file of any version, without a checkout.

>>> with dvk.open("data/train.csv", rev="v1.0") as file:      # doctest: +SKIP
...     file.seek(-1000, 2)
...     tail = file.read()

Only the blocks that are touched are read, from the local store or straight from the remote, and each chunk is proven by
its hash; a read of the whole file proves the file. Libraries that take nothing but a path get one from `local_path`: a
read-only file in a bounded cache that all repositories of this user share.

Paths count from the top of the repository; `./x`, `../x` and absolute paths from the working folder, as elsewhere.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import Literal, overload

from blake3 import blake3

from dvk.backend.contract import Buffer
from dvk.commands.access import TrackedFile
from dvk.commands.file_cache import FileCache
from dvk.commands.repo import Repo
from dvk.commands.snapshot import IsFolder, Node
from dvk.commands.where import Where
from dvk.errors import Corrupt, DvkError, Refused, UsageError
from dvk.store.names import show
from dvk.workspace.git_mirror import looks_like_git_url

BUFFER_BYTES = 64 << 10
_STEP_BYTES = 8 << 20


class ReadOnly(Refused, NotImplementedError):
    """Versions do not change."""


class VersionFile(io.BufferedIOBase):
    """A file of a version as a binary file: seekable, buffered, fit for threads, a fork and a pickle.

    Where threads share it, a read begins where the same thread has sought to just before (DuckDB seeks and reads from
    several threads at once); without that, where the last read of any thread ended, as with other files.

    Attributes:
        size: bytes.
        where, node: which version it is of, and what it is there.
    """

    def __init__(self, where: Where, node: Node) -> None:
        """`where` is pinned. Raises as `Snapshot.open`."""
        super().__init__()
        self.where, self.node, self.size = where, node, node.size
        self.name, self.mode = show(node.path), "rb"
        self._start(_Raw(where, node), 0)

    def _start(self, raw: _Raw, position: int) -> None:
        self._buffered = io.BufferedReader(raw, BUFFER_BYTES)
        self._buffered.seek(position)
        self._sought: dict[int, int] = {}  # by thread
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def _mine(self) -> io.BufferedReader[_Raw]:
        """The buffered bytes, at the position where this thread wants to read; call it with the lock held."""
        position = self._sought.pop(threading.get_ident(), None)
        if position is not None:
            self._buffered.seek(position)
        return self._buffered

    @property
    def _taken(self) -> threading.RLock:
        """The lock; in a forked child a new one, since a thread of the parent may have held it."""
        if self._pid != os.getpid() and not self.closed:
            with _restarting:
                if self._pid != os.getpid():
                    _left.append(self._buffered)
                    self._start(_Raw(self.where, self.node), self._buffered.tell())
        return self._lock

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        with self._taken:
            return self._sought.get(threading.get_ident(), self._buffered.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"unknown whence {whence}")
        at = offset + (0 if whence == io.SEEK_SET else self.size if whence == io.SEEK_END else self.tell())
        if at < 0:
            raise ValueError("a position before the start")
        with self._taken:
            self._buffered.seek(at)
            self._sought[threading.get_ident()] = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        with self._taken:
            return self._mine().read(size)

    def read1(self, size: int = -1) -> bytes:
        with self._taken:
            return self._mine().read1(size)

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        with self._taken:
            return self._mine().readinto(buffer)

    def readinto1(self, buffer: Buffer) -> int:  # type: ignore[override]
        with self._taken:
            return self._mine().readinto1(buffer)

    def peek(self, size: int = 0) -> bytes:
        """Bytes that follow, without moving on."""
        with self._taken:
            return self._mine().peek(size)

    def readline(self, size: int | None = -1) -> bytes:
        with self._taken:
            return self._mine().readline(size)

    def __next__(self) -> bytes:
        with self._taken:
            return next(self._mine())

    def close(self) -> None:
        buffered = getattr(self, "_buffered", None)  # none where it could not be opened
        if buffered is not None and not self.closed:
            if self._pid == os.getpid():
                buffered.close()
            else:
                _left.append(buffered)
        super().close()

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.where, self.node, self.tell())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {show(self.node.path)} at {self.where.rev or self.where.commit or 'HEAD'}>"


_restarting = threading.Lock()
#: In a forked child the buffers of its parent: a thread there may have been reading, and then closing one, which also
#: its last reference does, would wait forever.
_left: list[object] = []


def _after_fork() -> None:
    global _restarting
    _restarting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _again(where: Where, node: Node, position: int) -> VersionFile:
    file = VersionFile(where, node)
    file.seek(position)
    return file


class _Raw(io.RawIOBase):
    """The bytes behind a `VersionFile`."""

    def __init__(self, where: Where, node: Node) -> None:
        super().__init__()
        self._node = node
        self._source = where.snapshot().open(node)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence not in (io.SEEK_SET, io.SEEK_CUR, io.SEEK_END):
            raise ValueError(f"unknown whence {whence}")
        at = offset + (0, self._at, self._node.size)[whence]
        if at < 0:
            raise ValueError("a position before the start")
        self._at = at
        return at

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        source, view = self._source, memoryview(buffer).cast("B")
        left = max(0, self._node.size - self._at)
        length = min(len(view), left)
        if isinstance(source, bytes):
            view[:length] = source[self._at : self._at + length]
        elif length:
            if length <= BUFFER_BYTES:
                # A buffer is filled for the few bytes that somebody wants: not worth a block of its own.
                length = min(length, source.end_of_block(self._at) - self._at)
            length = source.readinto(self._at, view[:length])
        self._at += length
        return length

    def readall(self) -> bytes:
        source, start = self._source, self._at
        left = max(0, self._node.size - start)
        if isinstance(source, bytes):
            data = source[start:]
        else:
            data = source.read_at(start, left) if left else b""
        self._at += left
        if not start:
            prove(self._node, data)
        return data


def prove(node: Node, data: bytes) -> None:
    """See that the whole content of a file is what its id says.

    Raises:
        Corrupt: it is not.
    """
    if node.id is not None and blake3(data).digest() != node.id:
        raise Corrupt("its stored bytes fail their hash", subject=show(node.path))


# ---------------------------------------------------------------- for people


@overload
def open(
    path: str | os.PathLike[str],
    mode: Literal["rb"] = "rb",
    *,
    rev: str | None = None,
    repo: Repo | str | os.PathLike[str] | None = None,
    remote: str | None = None,
) -> VersionFile: ...


@overload
def open(
    path: str | os.PathLike[str],
    mode: Literal["r", "rt"],
    *,
    rev: str | None = None,
    repo: Repo | str | os.PathLike[str] | None = None,
    remote: str | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> io.TextIOWrapper[VersionFile]: ...


def open(
    path: str | os.PathLike[str],
    mode: str = "rb",
    *,
    rev: str | None = None,
    repo: Repo | str | os.PathLike[str] | None = None,
    remote: str | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> VersionFile | io.TextIOWrapper[VersionFile]:
    """Open a file as it is in a version: what dvk tracks, what lies in a tracked folder, or what Git has.

    Args:
        path: from the top of the repository; `./x`, `../x` and absolute paths from the working folder.
        mode: "rb" (binary, seekable) or "r" (text, with `encoding`, `errors` and `newline` as the built-in `open`).
        rev: any revision of Git, `HEAD` without one; in a plain folder without Git, what its pointers say.
        repo: a folder in another repository, or its Git URL; the one around the working folder without it.
        remote: the only remote to ask for data that is not here; the default one, then the others, without it.

    Raises:
        NotFound: there is no such revision (FileNotFoundError: no such path in it), with near names.
        IsADirectoryError: it is a folder. DataMissing: its data is neither here nor on a remote.
        Refused: a remote has to be trusted first (`dvk remote trust`). NotImplementedError: a mode that writes.
        RemoteUnreachable, RemoteDenied: from a remote. Corrupt: what is stored of it is damaged.
    """
    text = "b" not in mode
    if mode not in ("r", "rt", "rb", "br", "tr"):
        _refuse_mode(mode)
    if not text and (encoding or errors or newline is not None):
        raise ValueError("binary mode takes no encoding, errors or newline")
    with told():
        where, node = _locate(path, rev, repo, remote)
        file = VersionFile(where, node)
        return io.TextIOWrapper(file, encoding, errors, newline) if text else file


def read_bytes(
    path: str | os.PathLike[str],
    *,
    rev: str | None = None,
    repo: Repo | str | os.PathLike[str] | None = None,
    remote: str | None = None,
) -> bytes:
    """The whole content of a file in a version, proven by its hash. Arguments and errors as `open`."""
    with open(path, rev=rev, repo=repo, remote=remote) as file, told():
        return file.read()


def local_path(
    path: str | os.PathLike[str],
    *,
    rev: str | None = None,
    repo: Repo | str | os.PathLike[str] | None = None,
    remote: str | None = None,
) -> str:
    """A read-only file on this machine with the content of a file in a version, for libraries that want a path.

    It lies in a cache that all repositories of this user share, under its id and its own name, so that asking again
    costs nothing; `cache.max_size` bounds it. The file stays at least as long as this process runs, up to some hundred
    files, and for an hour after it was last asked for. Where the work tree has the same content and the filesystem can
    share it, it takes no space. Do not write to it. Arguments and errors as `open`.
    """
    with told():
        where, node = _locate(path, rev, repo, remote)
        snapshot = where.snapshot()
        source = snapshot.open(node)
        repository = snapshot.access.repo
        cache = FileCache.of(repository.environ, repository.workspace.config.size("cache.max_size"))
        name = node.path.rpartition(b"/")[2]
        if isinstance(source, bytes):
            return os.fsdecode(cache.get(blake3(source).digest(), len(source), name, lambda out: out(source)))
        assert node.id is not None
        alike = os.path.join(repository.workspace.top, node.path) if not repository.elsewhere else None
        return os.fsdecode(cache.get(node.id, node.size, name, lambda out: copy_to(source, out), alike=alike))


def copy_to(source: TrackedFile, out: Callable[[memoryview], object]) -> None:
    """All of a file, in order, in pieces; the buffer of a piece is used again."""
    buffer = memoryview(bytearray(min(_STEP_BYTES, max(1, source.size))))
    at = 0
    while at < source.size:
        count = source.readinto(at, buffer)
        out(buffer[:count])
        at += count


def where_is(repo: Repo | str | os.PathLike[str] | None, rev: str | None, remote: str | None) -> Where:
    """The version that arguments of `open` name, not yet pinned."""
    if isinstance(repo, Repo):
        place = os.fsdecode(repo.workspace.top)
    else:
        text = os.fspath(repo) if repo is not None else "."
        # Never by what is on disk: a folder `git@host:path` in a stranger's repository is not the place that was meant.
        place = text if looks_like_git_url(text) else os.path.abspath(text)
    return Where(place, rev or "", remote)


def _locate(
    path: str | os.PathLike[str], rev: str | None, repo: Repo | str | os.PathLike[str] | None, remote: str | None
) -> tuple[Where, Node]:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise UsageError("not a path", subject=text)
    absolute = os.path.isabs(text)
    if repo is None and absolute:
        repo = _nearest_folder(text)
    where = where_is(repo, rev, remote).pinned()
    snapshot = where.snapshot()
    wanted = os.fsencode(text).rstrip(b"/")
    if absolute or text.startswith(("./", "../")):
        workspace = snapshot.access.repo.workspace
        wanted = workspace.locate(wanted, cwd=os.getcwdb())
    node = snapshot.node(wanted)
    if node.kind == "dir":
        raise IsFolder("is a folder", subject=text, hint="name a file in it, or `dvk get` takes all of it out")
    return where, node


def _nearest_folder(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _refuse_mode(mode: str) -> None:
    if set(mode) & set("wax+"):
        raise ReadOnly(
            "versions can only be read", subject=f"mode {mode!r}", hint="write to the work tree, then `dvk add`"
        )
    raise ValueError(f"invalid mode: {mode!r}")


class told:
    """Around what people call from Python: an error carries its hint into the traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DvkError) and error.hint and not getattr(error, "__notes__", None):
            error.add_note(f"hint: {error.hint}")
