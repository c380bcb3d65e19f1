"""One version of a repository as a tree of files: what Git has there, and what dvk tracks, at random access.

    snapshot = Where("/home/me/churn", "v1.0").snapshot()
    snapshot.children(b"data")                # data in the place of its pointers, beside what Git has
    snapshot.open(snapshot.node(b"data/train.csv")).read_at(0, 4096)

A plain folder without Git has one version, that of its pointers. Links, in tracked folders and in Git, are followed to
files of the same version, never out of it.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.access import Access, TrackedFile
from dvk.commands.spec import Target
from dvk.commands.tree import GitTree, PlainTree, Tree
from dvk.errors import DvkError, NotFound, Refused
from dvk.store.folder import Item, entry_item
from dvk.store.listing import Kind
from dvk.store.names import show
from dvk.store.paths import why_bad
from dvk.workspace.git import BlobId, CommitId, GitRepo, TreeEntry
from dvk.workspace.git_objects import TREE_MODE
from dvk.workspace.pointer import MAX_NAME_BYTES, SUFFIX, data_name, is_pointer_name

_LINK_MODE = 0o120000
_MAX_LINKS = 40
_MAX_TARGET_BYTES = 4096
_MAX_BLOB_BYTES = 1 << 31
_NEAR_AMONG = 5000


class NoSuchPath(NotFound, FileNotFoundError):
    """Nothing is at a path in this version."""


class IsFolder(Refused, IsADirectoryError):
    """A folder where a file is needed."""


class NotFolder(NotFound, NotADirectoryError):
    """A file where a folder is needed."""


class Node(Struct, frozen=True):
    """Something in a version.

    Attributes:
        path: from the top; `b""` is the top itself.
        kind: "link" is one that leads to no file of this version.
        size: bytes; of a folder 0.
        tracked: whether dvk tracks it, or the folder that it lies in, as opposed to Git.
        id: of a file that dvk tracks, 32 bytes.
        blob: of a file that Git has.
        link: where it leads, if it is a link; `size` and `id` are then those of the file there.
        target: the tracked path that it is, or lies in, as a whole.
        real: of a link that leads to a file, the path of that.
    """

    path: bytes
    kind: Literal["file", "dir", "link"]
    size: int = 0
    tracked: bool = False
    id: bytes | None = None
    blob: BlobId | None = None
    exec: bool = False
    link: bytes | None = None
    target: Target | None = None
    real: bytes | None = None


class Snapshot:
    """A version of a repository. Safe to use from many threads; see `Where` for how to come by one."""

    def __init__(self, access: Access, commit: CommitId, words: str) -> None:
        """`words`: how messages call the version."""
        self.access, self.commit, self.words = access, commit, words
        self._repo = access.repo
        git = access.repo.workspace.git
        self._tree: Tree = PlainTree(access.repo) if git is None else GitTree(access.repo, git, commit)
        self._time: datetime | None = None

    @property
    def time(self) -> datetime:
        """When this version was committed, in UTC; of a plain folder, when the newest pointer was written."""
        if self._time is None:
            if isinstance(self._tree, PlainTree):
                self._time = datetime.fromtimestamp(self._tree.newest, UTC)
            else:
                self._time = self._git().commit_time(self.commit)
        return self._time

    def _git(self) -> GitRepo:
        return self._repo.workspace.need_git("a revision")

    # ------------------------------------------------------------ what there is

    def node(self, path: bytes) -> Node:
        """What is at `path`.

        Raises:
            NoSuchPath: nothing; near names are given. FormatError: its pointer cannot be read.
            DataMissing: the list of a folder is neither here nor on a remote.
        """
        found = self._find(path)
        if found is None:
            raise self._nothing(path)
        return self._followed(found)

    def _find(self, path: bytes) -> Node | None:
        """What is at `path`, links as they are."""
        if not path:
            return Node(b"", "dir")
        if why_bad(path):
            return None
        parts = path.split(b"/")
        folder: bytes = b""
        entry: TreeEntry | None = None
        owner: tuple[bytes, TreeEntry] | None = None
        for i, part in enumerate(parts):
            here = self._tree.children(folder)
            pointer = here.get(part + SUFFIX) if len(part) <= MAX_NAME_BYTES else None
            folder = b"/".join(parts[: i + 1])
            if pointer is not None and pointer.is_file:
                owner = folder, pointer
            entry = here.get(part)
            if entry is None or (entry.mode != TREE_MODE and i + 1 < len(parts)):
                entry = None
                break
        if owner is not None:
            return self._in_tracked(owner[0], owner[1], path[len(owner[0]) + 1 :])
        if entry is None or (entry.is_file and is_pointer_name(entry.path)):
            return None
        return next(iter(self._of_git([entry])))

    def _in_tracked(self, owner: bytes, entry: TreeEntry, inner: bytes) -> Node | None:
        target = self._target(owner, entry)
        if not inner:
            return _whole(target)
        if not target.pointer.is_dir:
            return None
        folder = self.access.folder(target)
        found = folder.find(inner)
        if found is not None:
            return _inside(target, entry_item(*found))
        if folder.holds_below(inner):
            return Node(owner + b"/" + inner, "dir", tracked=True, target=target)
        return None

    def _target(self, owner: bytes, entry: TreeEntry) -> Target:
        (pointer,) = self._tree.pointers([(owner + SUFFIX, entry)])
        if isinstance(pointer, DvkError):
            raise pointer
        return Target(owner, b"", pointer, self.words or None, self.commit)

    def _of_git(self, entries: list[TreeEntry]) -> Iterator[Node]:
        """What Git has; the sizes of many by one question."""
        files = [e.oid for e in entries if e.is_file]
        if isinstance(self._tree, GitTree):
            self._tree.bring([e.oid for e in entries if e.is_file or e.mode == _LINK_MODE])
        sizes = dict(zip(files, self._git().blob_sizes(files), strict=True)) if files else {}
        for e in entries:
            if e.is_file:
                yield Node(e.path, "file", sizes[e.oid], blob=BlobId(e.oid), exec=bool(e.mode & stat.S_IXUSR))
            elif e.mode == _LINK_MODE:
                target = self._git().read_blob(e.oid, max_bytes=_MAX_TARGET_BYTES)
                yield Node(e.path, "link", len(target), link=target)
            else:  # a folder, or a submodule, of which nothing is known here
                yield Node(e.path, "dir")

    def _followed(self, node: Node) -> Node:
        """A link as the file that it leads to, where that is a file of this version."""
        at = node
        for _ in range(_MAX_LINKS):
            if at.kind != "link" or at.link is None:
                break
            path = os.path.normpath(os.path.join(os.path.dirname(at.path), at.link))
            if at.link.startswith(b"/") or path.split(b"/")[0] in (b"..", b"."):
                return node
            found = self._find(path)
            if found is None:
                return node
            at = found
        if at is node or at.kind != "file":
            return node
        return replace(at, path=node.path, link=node.link, real=at.path)

    def children(self, path: bytes) -> list[Node]:
        """What lies directly in the folder `path`, by name.

        Raises:
            NoSuchPath: nothing is there. NotFolder: it is a file. Otherwise as `node`.
        """
        node = self.node(path)
        if node.kind != "dir":
            raise NotFolder(f"is a {node.kind} and no folder{self._at}", subject=show(path))
        if node.target is not None:
            inner = path[len(node.target.path) + 1 :]
            items = self.access.folder(node.target).children(inner)
            found = [_inside(node.target, item) for item in items if item.name != inner]
        else:
            found = list(self._in_git(path))
        return [self._followed(child) for child in sorted(found, key=lambda child: child.path)]

    def _in_git(self, path: bytes) -> Iterator[Node]:
        here = self._tree.children(path)
        rows = [(e.path, e) for e in here.values() if e.is_file and is_pointer_name(e.path)]
        tracked = {data_name(name) for name, _ in rows}
        for (name, entry), pointer in zip(rows, self._tree.pointers(rows), strict=True):
            if isinstance(pointer, DvkError):
                # Named when somebody asks for it; the rest of the folder is all right.
                yield Node(data_name(name), "link", 0, tracked=True)
            else:
                yield _whole(self._target(data_name(name), entry))
        pointers = {name for name, _ in rows}
        yield from self._of_git([e for e in here.values() if e.path not in pointers and e.path not in tracked])

    def below(self, path: bytes) -> Iterator[Node]:
        """Every file, link and empty folder below the folder `path`, and that path itself where it is a file.

        Raises:
            NoSuchPath: nothing is there. Otherwise as `node`.
        """
        node = self.node(path)
        if node.kind != "dir":
            yield node
            return
        if node.target is None:
            self._tree.fill(path)
        yield from self._below(node)

    def _below(self, node: Node) -> Iterator[Node]:
        if node.target is not None:
            target = node.target
            inner = node.path[len(target.path) + 1 :]
            for entries in self.access.folder(target).below(inner):
                for i in range(len(entries)):
                    yield self._followed(_inside(target, entry_item(entries, i)))
            return
        for child in self.children(node.path):
            if child.kind == "dir":
                yield from self._below(child)
            else:
                yield child

    # ------------------------------------------------------------ what is in it

    def open(self, node: Node) -> TrackedFile | bytes:
        """The content of a file: at random access where dvk tracks it, whole where Git has it.

        Raises:
            IsFolder, Refused: it is a folder, or a link that leads to no file. DataMissing: it is neither here nor on a
                remote. Otherwise as `Access.file`.
        """
        if node.kind == "dir":
            raise IsFolder(f"is a folder{self._at}", subject=show(node.path), hint="name a file in it")
        if node.kind == "link":
            where = (
                f"is a link to {show(node.link)}, which is no file"
                if node.link
                else "has a pointer that cannot be read"
            )
            raise Refused(f"{where}{self._at}", subject=show(node.path))
        if node.blob is not None:
            return self._git().read_blob(node.blob, max_bytes=_MAX_BLOB_BYTES)
        assert node.target is not None and node.id is not None
        label = f"{show(node.path)}{self._at}"
        target = replace(node.target, inner=(node.real or node.path)[len(node.target.path) + 1 :])
        return self.access.file(target, node.id, node.size, label=label)

    # ------------------------------------------------------------ words

    @property
    def _at(self) -> str:
        return f" at {self.words}" if self.words else ""

    def _nothing(self, path: bytes) -> NoSuchPath:
        """The error for a path that is not there, with what the user may have meant."""
        near = self._near(path)
        words = f"; did you mean {' or '.join(show(name) for name in near)}?" if near else ""
        hint = "`dvk ls` lists what is tracked"
        if path.endswith(SUFFIX) and self._find(path[: -len(SUFFIX)]) is not None:
            words, hint = f"; {show(path[: -len(SUFFIX)])} is, and this is its pointer", ""
        elif self.commit and not near:
            hint = f"`git log --all -- {show(path)}.dvk` lists the commits that have it"
        return NoSuchPath(f"no such file or folder{self._at}{words}", subject=show(path) or ".", hint=hint)

    def _near(self, path: bytes) -> list[bytes]:
        """Names that are there and look like `path`, compared in the first folder that has no such name."""
        parts = path.split(b"/")
        folder = b""
        for i, part in enumerate(parts):
            try:
                names = [child.path for child in self.children(folder)[:_NEAR_AMONG]]
            except DvkError:
                return []
            there = b"/".join(parts[: i + 1])
            if there not in names:
                rest = b"/".join(parts[i + 1 :])
                by_name = {os.fsdecode(name.rpartition(b"/")[2]): name for name in names}
                close = difflib.get_close_matches(os.fsdecode(part), by_name, n=2, cutoff=0.6)
                found = [by_name[name] + (b"/" + rest if rest else b"") for name in close]
                return [name for name in found if self._find(name) is not None] or ([] if rest else found)
            folder = there
        return []


def _whole(target: Target) -> Node:
    p = target.pointer
    if p.is_dir:
        return Node(target.path, "dir", tracked=True, target=target)
    return Node(target.path, "file", p.size, tracked=True, id=p.id, exec=p.exec, target=target)


def _inside(target: Target, item: Item) -> Node:
    path = target.path + b"/" + item.name
    if item.kind is None or item.kind == Kind.EMPTYDIR:
        return Node(path, "dir", tracked=True, target=target)
    if item.kind == Kind.LINK:
        return Node(path, "link", item.size, tracked=True, link=item.target, target=target)
    return Node(path, "file", item.size, True, item.id, exec=item.kind == Kind.EXEC, target=target)
