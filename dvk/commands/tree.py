"""What a version holds apart from the contents of tracked folders: names and pointers of a commit or a plain folder.

tree = GitTree(repo, git, commit)
tree.children(b"data")[b"train.csv.dvk"]      # one run of git a folder, remembered
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from dvk.commands.repo import Repo
from dvk.errors import DvkError
from dvk.workspace.git import BlobId, CommitId, GitRepo, TreeEntry
from dvk.workspace.git_objects import TREE_MODE
from dvk.workspace.pointer import SUFFIX, Pointer

_DIRS_KEPT = 10_000


class Tree(Protocol):
    """What is in a version apart from the contents of tracked folders."""

    def children(self, folder: bytes) -> Mapping[bytes, TreeEntry]:
        """By name what stands directly in a folder, pointers as they are."""

    def fill(self, folder: bytes) -> None:
        """Everything below a folder is going to be asked for."""

    def pointers(self, rows: Sequence[tuple[bytes, TreeEntry]]) -> list[Pointer | DvkError]:
        """Pointers, or what is wrong with them, from their paths and entries."""


class GitTree:
    def __init__(self, repo: Repo, git: GitRepo, commit: CommitId) -> None:
        self._repo, self._git, self._commit = repo, git, commit
        self._dirs: OrderedDict[bytes, dict[bytes, TreeEntry]] = OrderedDict()
        self._parsed: OrderedDict[str, Pointer | DvkError] = OrderedDict()
        self._lock = threading.Lock()
        self._absent: set[str] | None = None  # objects that a partial clone lacks, once somebody asks for several

    def bring(self, oids: Sequence[str]) -> None:
        """Have blobs that are about to be read fetched together, in a clone that has no contents."""
        if len(oids) < 2:
            return
        promisor = self._git.promisor() if self._absent is None or self._absent else None
        with self._lock:
            if self._absent is None:
                self._absent = self._git.missing_at(self._commit) if promisor else set()
            wanted = [oid for oid in oids if oid in self._absent]
            self._absent.difference_update(wanted)
        if promisor and len(wanted) > 1:
            self._git.bring(promisor, wanted)

    def children(self, folder: bytes) -> Mapping[bytes, TreeEntry]:
        with self._lock:
            if (found := self._dirs.get(folder)) is not None:
                return found
        rows = self._git.children_at(self._commit, folder)
        found = {row.path.rpartition(b"/")[2]: row for row in rows}
        with self._lock:
            self._dirs[folder] = found
            while len(self._dirs) > _DIRS_KEPT:
                self._dirs.popitem(last=False)
        return found

    def fill(self, folder: bytes) -> None:
        dirs: dict[bytes, dict[bytes, TreeEntry]] = {}
        for row in self._git.files_at(self._commit, folder):
            parent, _, name = row.path.rpartition(b"/")
            dirs.setdefault(parent, {})[name] = row
            while len(parent) > len(folder):
                path = parent
                parent, _, name = path.rpartition(b"/")
                above = dirs.setdefault(parent, {})
                if name in above:
                    break
                above[name] = TreeEntry(path, TREE_MODE, "")
        with self._lock:
            if len(dirs) <= _DIRS_KEPT:
                self._dirs.update(dirs)

    def pointers(self, rows: Sequence[tuple[bytes, TreeEntry]]) -> list[Pointer | DvkError]:
        with self._lock:
            known = {entry.oid: self._parsed[entry.oid] for _, entry in rows if entry.oid in self._parsed}
        asked = [(path, BlobId(entry.oid)) for path, entry in rows if entry.oid not in known]
        if asked:
            self.bring([oid for _, oid in asked])
            read = self._repo.workspace.read_committed(asked)
            known |= {oid: pointer for (_, oid), (_, pointer) in zip(asked, read, strict=True)}
            with self._lock:
                self._parsed |= known
                while len(self._parsed) > _DIRS_KEPT:
                    self._parsed.popitem(last=False)
        return [known[entry.oid] for _, entry in rows]


class PlainTree:
    """The pointers of a plain folder, as they were when it was opened."""

    def __init__(self, repo: Repo) -> None:
        self._found: dict[bytes, Pointer | DvkError] = {}
        self._dirs: dict[bytes, dict[bytes, TreeEntry]] = {b"": {}}
        self.newest = 0.0
        for path, pointer in repo.workspace.worktree_pointers():
            full = path + SUFFIX
            self._found[full] = pointer
            self.newest = max(self.newest, os.lstat(os.path.join(repo.workspace.top, full)).st_mtime)
            entry = TreeEntry(full, 0o100644, "")
            while True:
                parent, _, name = entry.path.rpartition(b"/")
                above = self._dirs.setdefault(parent, {})
                if name in above:
                    break
                above[name] = entry
                if not parent:
                    break
                entry = TreeEntry(parent, TREE_MODE, "")

    def children(self, folder: bytes) -> Mapping[bytes, TreeEntry]:
        return self._dirs.get(folder, {})

    def fill(self, folder: bytes) -> None:
        """It is all here."""

    def pointers(self, rows: Sequence[tuple[bytes, TreeEntry]]) -> list[Pointer | DvkError]:
        return [self._found[path] for path, _ in rows]
