"""Reading a repository through libgit2, where there is no git program (an image, a bare Python environment).

Loaded by `dvk.workspace.git` only then: importing pygit2 costs 66 ms, forty times a run of git. libgit2
cannot open SHA-256 or reftable repositories; the error says that the git program can.

    found = discover(b"/home/me/project/data")
    Pygit2Objects(found.git_dir).resolve("v1.0")
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence

import pygit2
from msgspec import Struct

from dvk.backend.text import redact
from dvk.errors import NotARepository, NotFound
from dvk.store.names import show
from dvk.workspace.git_objects import (
    TREE_MODE,
    CommitId,
    TreeEntry,
    check_rev,
    missing_object,
    not_a_blob,
    too_large,
)
from dvk.workspace.git_program import foreign_owner


class Discovered(Struct, frozen=True):
    """Where a repository lies; `top` is None for a bare one."""

    top: bytes | None
    git_dir: bytes
    common_dir: bytes


def discover(start: bytes) -> Discovered | None:
    """The repository that the folder `start` lies in.

    Raises:
        Refused: it belongs to another user.
        NotARepository: libgit2 cannot read it.
    """
    try:
        git_dir = pygit2.discover_repository(os.fsdecode(start))
    except KeyError:  # what older versions of pygit2 say for None
        git_dir = None
    except pygit2.GitError as e:
        raise _unreadable(e, start) from e
    if git_dir is None:
        return None
    repository = _open(os.fsencode(git_dir))
    found = os.path.realpath(os.fsencode(repository.path))
    common = found
    try:
        with open(os.path.join(found, b"commondir"), "rb") as f:
            common = os.path.realpath(os.path.join(found, f.read(65_536).rstrip(b"\n")))
    except FileNotFoundError:
        common = found  # no linked worktree
    top = repository.workdir
    return Discovered(os.path.realpath(os.fsencode(top)) if top else None, found, common)


class Pygit2Objects:
    """`Objects` by libgit2. One handle a thread, since pygit2 does not promise more."""

    def __init__(self, git_dir: bytes) -> None:
        self._git_dir = git_dir
        self._mine = threading.local()

    @property
    def _repository(self) -> pygit2.Repository:
        found = getattr(self._mine, "repository", None)
        if found is None:
            found = self._mine.repository = _open(self._git_dir)
        return found

    def resolve(self, rev: str) -> CommitId | None:
        check_rev(rev)
        try:
            return CommitId(str(self._repository.revparse_single(rev).peel(pygit2.Commit).id))
        except (KeyError, ValueError, pygit2.GitError):
            return None

    def branch(self) -> str | None:
        """The branch that HEAD is on, also an unborn one; None when detached."""
        head = self._repository.lookup_reference("HEAD").raw_target
        if isinstance(head, pygit2.Oid):
            return None
        name = head if isinstance(head, str) else os.fsdecode(head)
        return name.removeprefix("refs/heads/")

    def config(self, key: str) -> str | None:
        """A value of Git's configuration."""
        try:
            return str(self._repository.config[key])
        except (KeyError, ValueError):
            return None

    def entries(self, commit: CommitId, paths: Sequence[bytes]) -> list[TreeEntry]:
        root = self._tree(commit)
        return [entry for path in paths if (entry := self._find(root, path)) is not None]

    def walk(self, commit: CommitId, under: bytes) -> Iterator[TreeEntry]:
        root = self._tree(commit)
        if not under:
            yield from self._below(root, b"")
            return
        entry = self._find(root, under)
        if entry is None:
            return
        if entry.mode == TREE_MODE:
            yield from self._below(self._subtree(entry.oid), under + b"/")
        else:
            yield entry

    def children(self, commit: CommitId, folder: bytes) -> list[TreeEntry]:
        root = self._tree(commit)
        prefix = folder + b"/" if folder else b""
        if folder:
            entry = self._find(root, folder)
            if entry is None or entry.mode != TREE_MODE:
                return []
            root = self._subtree(entry.oid)
        return [TreeEntry(prefix + _raw_name(c), int(c.filemode), str(c.id)) for c in root]

    def sizes(self, oids: Sequence[str]) -> list[int]:
        found = [self._object(oid) for oid in oids]
        return [blob.size if isinstance(blob, pygit2.Blob) else 0 for blob in found]

    def time_of(self, commit: CommitId) -> int:
        found = self._object(commit)
        if not isinstance(found, pygit2.Commit):
            raise missing_object(commit)
        return int(found.commit_time)

    def _find(self, root: pygit2.Tree, path: bytes) -> TreeEntry | None:
        # One component at a time in raw bytes: pygit2's own look-up by path takes UTF-8 only.
        tree, mode, oid = root, TREE_MODE, ""
        for part in path.split(b"/"):
            if mode != TREE_MODE:
                return None
            for child in tree:
                if _raw_name(child) == part:
                    mode, oid = int(child.filemode), str(child.id)
                    break
            else:
                return None
            if mode == TREE_MODE:
                tree = self._subtree(oid)
        return TreeEntry(path, mode, oid)

    def _below(self, tree: pygit2.Tree, prefix: bytes) -> Iterator[TreeEntry]:
        pending = [(iter(tree), prefix)]  # a stack of our own: a hostile tree may be deeper than Python's
        while pending:
            children, prefix = pending[-1]
            child = next(children, None)
            if child is None:
                pending.pop()
                continue
            path = prefix + _raw_name(child)
            if int(child.filemode) == TREE_MODE:
                pending.append((iter(self._subtree(str(child.id))), path + b"/"))
            else:
                yield TreeEntry(path, int(child.filemode), str(child.id))

    def _tree(self, commit: CommitId) -> pygit2.Tree:
        try:
            return self._object(commit).peel(pygit2.Tree)
        except (KeyError, pygit2.GitError) as e:
            raise missing_object(commit) from e

    def _subtree(self, oid: str) -> pygit2.Tree:
        found = self._object(oid)
        if not isinstance(found, pygit2.Tree):
            raise missing_object(oid)  # a tree that names something else as a tree: damaged
        return found

    def _object(self, oid: str) -> pygit2.Object:
        try:
            return self._repository[oid]
        except (KeyError, ValueError, pygit2.GitError) as e:
            raise missing_object(oid) from e

    def blobs(self, oids: Iterable[str], *, max_bytes: int) -> Iterator[bytes]:
        for oid in oids:
            blob = self._object(oid)
            if not isinstance(blob, pygit2.Blob):
                raise not_a_blob(oid, blob.type_str)
            if blob.size > max_bytes:
                raise too_large(oid, blob.size, max_bytes)
            yield bytes(blob.data)

    def close(self) -> None:
        self._mine = threading.local()


def _raw_name(entry: pygit2.Object) -> bytes:
    name = entry.raw_name
    assert name is not None  # only objects that no tree holds have none
    return name


def _open(git_dir: bytes) -> pygit2.Repository:
    try:
        return pygit2.Repository(os.fsdecode(git_dir))
    except pygit2.GitError as e:
        raise _unreadable(e, git_dir) from e
    except KeyError as e:
        raise NotFound("the repository is gone", subject=show(git_dir)) from e


def _unreadable(error: pygit2.GitError, where: bytes) -> Exception:
    if "not owned by" in str(error):
        return foreign_owner(where)
    return NotARepository(
        f"libgit2 cannot read this repository: {redact(str(error))}",
        subject=show(where),
        hint="install the git program, which reads every kind of repository",
    )
