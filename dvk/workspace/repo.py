"""The workspace: a work tree (or plain folder), its pointers, and where dvk keeps what belongs to it.

    workspace = Workspace.discover(".", environ=os.environ)
    path = workspace.locate("models/best.pt.dvk", cwd=os.getcwdb())     # b"models/best.pt"
    for path, pointer in workspace.worktree_pointers():
        ...

Paths are raw bytes from the top, of the data and not of its pointer, and go through `locate` when a person
gave them. Pointers are reached by directory handle: a link in a cloned repository must lead neither reads
nor writes elsewhere.

A plain folder is one with a `dvk.toml` and pointers but no Git, as in an image or an archive. It has no
revisions; what needs them is refused by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from msgspec import Struct

from dvk.backend.disk import OPEN_DIR, storage_error
from dvk.errors import DvkError, NotARepository, NotFound, Refused, StorageError, UsageError
from dvk.store.names import show
from dvk.store.paths import check_path, why_bad
from dvk.timings import Stage, stage
from dvk.workspace import ignore
from dvk.workspace.config import FILE_NAME, Config, ConfigFiles, home_dir
from dvk.workspace.durable import read_small, remove_file, replace_file
from dvk.workspace.git import BlobId, CommitId, GitRepo
from dvk.workspace.handles import DirHandles, make_dirs, open_dir
from dvk.workspace.places import LOCK_TIMEOUT_S, Places, check_ownership, check_store, exclusive
from dvk.workspace.pointer import (
    MAX_BYTES,
    MAX_NAME_BYTES,
    SUFFIX,
    Pointer,
    data_name,
    format_pointer,
    is_pointer_name,
    parse,
    pointer_name,
)

_GROUP = 500

Found = tuple[bytes, Pointer | DvkError]


class Workspace(Struct, frozen=True):
    """One work tree or plain folder. Safe to use from many threads; `lock` is what keeps writers apart."""

    top: bytes  #: absolute, without links
    git: GitRepo | None  #: None in a plain folder
    state_dir: bytes  #: dvk's folder of this worktree
    common_dir: bytes  #: dvk's folder of all worktrees of the repository
    store_dir: bytes  #: the local store
    config: Config
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Workspace({self.top!r})"  # what the environment holds is nobody's business

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("top", self.top)]

    @classmethod
    def discover(cls, start: str, *, environ: Mapping[str, str], store: str | None = None) -> Workspace:
        """The workspace that the folder `start` lies in; `store` outranks every setting of where the store is.

        Nothing is written.

        Raises:
            NotARepository: there is none, or only a bare repository.
            Refused: the repository or dvk's folder in it belongs to another user.
            FormatError: a file of settings cannot be read.
        """
        git = GitRepo.find(start, environ)
        if git is not None:
            top = git.top
            places = Places.in_git(git.git_dir, git.common_dir)
            accepted = os.stat(git.common_dir).st_uid
        else:
            top = _plain_top(start)
            places = Places.in_cache(top, environ)
            accepted = None
        for folder in {places.state_dir, places.common_dir, places.store_dir}:
            check_ownership(folder, accepted_uid=accepted, environ=environ)
        config = Config.load(ConfigFiles.of(top, places.common_dir, environ), environ)
        chosen = store or config.text("store.path")
        store_dir = places.store_dir if chosen is None else _absolute(chosen, environ)
        if chosen is not None:
            check_store(store_dir)
        return cls(top, git, places.state_dir, places.common_dir, store_dir, config, environ)

    # -- paths that a person gave ----------------------------------------------------------------

    def locate(self, arg: bytes | str, *, cwd: bytes) -> bytes:
        """The path of data from the top that `arg`, given in the folder `cwd`, means. `x` and `x.dvk` are the same.

        It need not exist. Links in the folders above it are followed here, once; the last name is not.

        Raises:
            UsageError: it is the top itself, outside, in `.git` or in another repository, or no name for
            data.
        """
        given = os.fsencode(arg)
        if not given or b"\0" in given:
            raise UsageError("not a path", subject=show(given))
        full = os.path.join(cwd, given).rstrip(b"/") or b"/"
        parent, name = os.path.split(full)
        real = os.path.join(os.path.realpath(parent), name)
        if name in (b".", b".."):
            real = os.path.realpath(full)
        if real == self.top:
            raise UsageError("is the whole work tree", subject=show(given), hint="name the files and folders to track")
        prefix = self.top.rstrip(b"/") + b"/"
        if not real.startswith(prefix):
            raise UsageError(f"lies outside {show(self.top)}", subject=show(given))
        path = real[len(prefix) :]
        reason = why_bad(path)
        if reason:
            raise UsageError(reason, subject=show(given))
        self._check_one_repository(path, given)
        if is_pointer_name(path):
            path = path[: -len(SUFFIX)]
        if path.endswith(SUFFIX):
            raise UsageError("data whose name ends in .dvk cannot be tracked", subject=show(given), hint="rename it")
        return path

    def _check_one_repository(self, path: bytes, given: bytes) -> None:
        folder = self.top
        for part in path.split(b"/")[:-1]:
            folder = os.path.join(folder, part)
            if os.path.lexists(os.path.join(folder, b".git")):
                raise UsageError(
                    f"lies in another repository, {show(folder)}",
                    subject=show(given),
                    hint="run dvk in that repository",
                )

    # -- pointers in the work tree ---------------------------------------------------------------

    def read_pointer(self, path: bytes) -> Pointer:
        """The pointer of the data at `path`, as it is in the work tree.

        Raises:
            NotFound: there is none.
            FormatError: it is malformed; NewerFormat: a newer dvk wrote it.
            Refused: it, or a folder on the way, is a link or something else that is no file.
        """
        with self._open_top() as top_fd, DirHandles(top_fd) as dirs:
            return _read(dirs, path)

    def worktree_pointers(self, under: Sequence[bytes] = ()) -> Iterator[Found]:
        """Data path and pointer (or what is wrong with it) of each pointer in the work tree, by path.

        `under` narrows to these data paths and to what lies in these folders. Pointers that Git does not
        track yet are included, those that it ignores are not.
        """
        if self.git is not None and self.git.has_program:
            tracked, new = self.git.known_pointers(under)
            names: Iterable[bytes] = sorted({entry.path for entry in tracked} | set(new))
        else:
            names = self._walk(under)
        with self._open_top() as top_fd, DirHandles(top_fd) as dirs:
            for name in names:
                found = _read_named(dirs, name)
                # Git may know a pointer that the work tree lacks: removed, or not in a sparse checkout.
                if not isinstance(found[1], NotFound):
                    yield found

    def every_pointer(self) -> Iterator[Found]:
        """As `worktree_pointers`, by looking everywhere: also those that Git ignores.

        A folder of this user's that cannot be read stands for the pointers in it, with what is wrong.
        """
        unread: list[Found] = []
        names = self._walk((), unread)
        yield from unread
        with self._open_top() as top_fd, DirHandles(top_fd) as dirs:
            for name in names:
                found = _read_named(dirs, name)
                if not isinstance(found[1], NotFound):
                    yield found

    def _walk(self, under: Sequence[bytes], unread: list[Found] | None = None) -> list[bytes]:
        """Names of pointers by looking everywhere, where git cannot be asked; links are not followed."""
        found: list[bytes] = []
        with self._open_top() as top_fd, DirHandles(top_fd) as dirs:
            pending = [b""]
            while pending:
                folder = pending.pop()
                try:
                    entries = _list(dirs, folder)
                except DvkError as error:
                    if not folder:
                        raise
                    # Gone, or not ours to read: then no pointer in it is ours either.
                    if unread is not None and isinstance(error, StorageError) and self._is_ours(folder):
                        unread.append((folder, error))
                    continue
                if folder and b".git" in entries:
                    continue
                prefix = folder + b"/" if folder else b""
                for name, is_dir in entries.items():
                    if not is_dir and is_pointer_name(name):
                        found.append(prefix + name)
                    # A folder with a pointer beside it is data, which may be a million files.
                    elif is_dir and name != b".git" and name + SUFFIX not in entries:
                        pending.append(prefix + name)
        return sorted(name for name in found if _is_under(name[: -len(SUFFIX)], under))

    def _is_ours(self, folder: bytes) -> bool:
        try:
            return os.lstat(os.path.join(self.top, folder)).st_uid == os.geteuid()
        except FileNotFoundError:
            return False
        except OSError:
            return True  # it cannot even be asked

    def owner_of(self, path: bytes) -> tuple[bytes, bytes] | None:
        """Who tracks `path`: the data path whose pointer is nearest, and the rest (`b""` for the data itself).

        >>> workspace.owner_of(b"images/val/7.jpg")  # doctest: +SKIP
        (b'images', b'val/7.jpg')

        Raises:
            Refused: a folder on the way is a link.
        """
        with self._open_top() as top_fd, DirHandles(top_fd) as dirs:
            owner, inner = path, b""
            while owner:
                if _has_pointer(dirs, owner):
                    return owner, inner
                owner, _, name = owner.rpartition(b"/")
                inner = name + b"/" + inner if inner else name
        return None

    def write_pointer(self, path: bytes, pointer: Pointer) -> None:
        """Make the pointer of the data at `path` say `pointer`, durably; missing folders are made.

        Raises:
            Refused: a folder on the way is a link.
            StorageError: it cannot be written; what was there stays.
        """
        name = pointer_name(path)
        check_path(path, subject=show(name))
        data = format_pointer(pointer)
        folder, _, last = name.rpartition(b"/")
        with (
            stage(Stage.POINTER, bytes_=len(data)),
            self._open_top() as top_fd,
            _folder(make_dirs(top_fd, folder)) as dir_fd,
        ):
            replace_file(dir_fd, last, data, subject=show(name))

    def remove_pointer(self, path: bytes) -> bool:
        """Remove the pointer of the data at `path`, durably; False when there was none.

        Raises:
            Refused: a folder on the way is a link.
        """
        name = pointer_name(path)
        folder, _, last = name.rpartition(b"/")
        try:
            with self._open_top() as top_fd, _folder(open_dir(top_fd, folder)) as dir_fd:
                return remove_file(dir_fd, last, subject=show(name))
        except NotFound:
            return False

    # -- revisions -------------------------------------------------------------------------------

    def need_git(self, what: str) -> GitRepo:
        """The Git side, for what a plain folder does not have.

        Raises:
            Refused: this is a plain folder; `what` ("revision v1.0") is named.
        """
        if self.git is None:
            raise Refused(
                "a plain folder has no Git history",
                subject=what,
                hint="run this in a clone of the repository",
            )
        return self.git

    def resolve(self, rev: str) -> CommitId:
        """The commit that `rev` names.

        Raises:
            Refused: this is a plain folder.
            NotFound, UsageError: there is no such revision, or it cannot be one.
        """
        return self.need_git(f"revision {show(os.fsencode(rev))}").resolve(rev)

    def pointers_at(self, commit: CommitId, under: Sequence[bytes] = ()) -> Iterator[Found]:
        """Data path and pointer (or what is wrong with it) of each pointer in a commit, in Git's order."""
        git = self.need_git(commit)
        rows = (row for row in git.pointers_at(commit) if _is_under(row[0][: -len(SUFFIX)], under))
        while group := list(islice(rows, _GROUP)):
            yield from self.read_committed(group)

    def read_committed(self, rows: Sequence[tuple[bytes, BlobId]]) -> list[Found]:
        """Data path and pointer (or what is wrong with it) for paths of pointers and their blobs."""
        git = self.need_git("committed pointers")
        texts: list[bytes | DvkError]
        try:
            texts = list(git.read_blobs([oid for _, oid in rows], max_bytes=MAX_BYTES))
        except DvkError:
            # One that is missing or too large: ask for each alone, so that the others still arrive.
            texts = [_attempt(git, oid) for _, oid in rows]
        return [_parse_named(name, text) for (name, _), text in zip(rows, texts, strict=True)]

    # -- beside the data -------------------------------------------------------------------------

    def lock(self, *, timeout_s: float = LOCK_TIMEOUT_S) -> AbstractContextManager[None]:
        """The short lock over read-modify-write of a folder's pointer, the exclude file and the Git index.

        Not reentrant. Raises as `places.exclusive`.
        """
        return exclusive(os.path.join(self.common_dir, b"lock"), timeout_s=timeout_s)

    def hide(self, *, add: Iterable[bytes] = (), remove: Iterable[bytes] = ()) -> bool:
        """Keep the data at the paths in `add` out of Git and no longer those in `remove`; whether that was news.

        The caller holds `lock`. In a plain folder there is nothing to do.
        """
        return self.git is not None and ignore.update_exclude(self.git.common_dir, add=add, remove=remove)

    def ignore_rules(self) -> ignore.IgnoreRules:
        """What tracked folders leave out: `.dvkignore` at the top and the built-in list."""
        return ignore.IgnoreRules.load(self.top)

    def open_top(self) -> int:
        """A new handle of the top folder, for walking below it. The caller closes it."""
        try:
            return os.open(self.top, OPEN_DIR | os.O_NOFOLLOW)
        except OSError as e:
            raise storage_error(e, show(self.top)) from e

    def _open_top(self) -> AbstractContextManager[int]:
        return _folder(self.open_top())


@contextlib.contextmanager
def _folder(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _plain_top(start: str) -> bytes:
    folder = os.fsencode(os.path.realpath(start))
    while not os.path.isfile(os.path.join(folder, FILE_NAME)):
        parent = os.path.dirname(folder)
        if parent == folder:
            raise NotARepository(
                "no Git repository here, and no folder above with a dvk.toml",
                subject=show(os.fsencode(os.path.abspath(start))),
                hint="`git init` makes a repository; dvk versions data beside what Git tracks",
            )
        folder = parent
    return folder


def _absolute(chosen: str, environ: Mapping[str, str]) -> bytes:
    if chosen.startswith("~/"):
        chosen = os.path.join(home_dir(environ), chosen[2:])
    return os.fsencode(os.path.abspath(chosen))


def _is_under(path: bytes, wanted: Sequence[bytes]) -> bool:
    return not wanted or any(not w or path == w or path.startswith(w + b"/") for w in wanted)


def _list(dirs: DirHandles, folder: bytes) -> dict[bytes, bool]:
    """The names in a folder, and whether each is a folder itself."""
    fd = dirs.acquire(folder)
    try:
        with os.scandir(fd) as entries:
            return {os.fsencode(e.name): e.is_dir(follow_symlinks=False) for e in entries}
    except OSError as e:
        raise storage_error(e, show(folder)) from e
    finally:
        dirs.release(folder)


def _has_pointer(dirs: DirHandles, path: bytes) -> bool:
    folder, _, name = path.rpartition(b"/")
    if len(name) > MAX_NAME_BYTES:
        return False
    try:
        fd = dirs.acquire(folder)
    except NotFound:
        return False
    try:
        os.stat(name + SUFFIX, dir_fd=fd, follow_symlinks=False)
        return True
    except FileNotFoundError:
        return False
    except OSError as e:
        raise storage_error(e, show(path)) from e
    finally:
        dirs.release(folder)


def _read(dirs: DirHandles, path: bytes) -> Pointer:
    name = pointer_name(path)
    check_path(path, subject=show(name))
    folder, _, last = name.rpartition(b"/")
    fd = dirs.acquire(folder)
    try:
        text = read_small(fd, last, max_bytes=MAX_BYTES, subject=show(name))
    finally:
        dirs.release(folder)
    if text is None:
        raise NotFound("no pointer here", subject=show(name), hint="`dvk status` lists what is tracked")
    return parse(text, subject=show(name))


def _read_named(dirs: DirHandles, name: bytes) -> Found:
    try:
        return data_name(name), _read(dirs, name[: -len(SUFFIX)])
    except DvkError as e:
        return name[: -len(SUFFIX)], e


def _parse_named(name: bytes, text: bytes | DvkError) -> Found:
    path = name[: -len(SUFFIX)]
    if isinstance(text, DvkError):
        return path, type(text)(text.message, subject=show(name), hint=text.hint)
    try:
        check_path(path, subject=show(name))
        return data_name(name), parse(text, subject=show(name))
    except DvkError as e:
        return path, e


def _attempt(git: GitRepo, oid: BlobId) -> bytes | DvkError:
    try:
        return git.read_blob(oid, max_bytes=MAX_BYTES)
    except DvkError as e:
        return e
