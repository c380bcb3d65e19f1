"""`dvk://[repo:][rev@]path`: versions as a read-only filesystem of fsspec, for pandas, DuckDB, pyarrow and their kind.

>>> pandas.read_csv("dvk://v1.0@data/train.csv.gz")                       # doctest: +SKIP
>>> fs = fsspec.filesystem("dvk", repo="git@host:acme/churn", rev="v1.0")  # doctest: +SKIP
>>> fs.ls("data"), fs.open("data/train.csv")                              # doctest: +SKIP

Problem: libraries look at the end of a URL for the format and the compression, cut and join names, put the protocol
before a name again, and keep filesystems for as long as the process runs. Choice: the revision stands before the path;
what was asked for by URL is answered by URL, so that no name loses its revision on the way; plain names mean the
filesystem's own revision. Which commit a revision is, is found when the filesystem is made (for another one in a URL,
when it is first named) and stays, also in a pickle. No instance is cached: two of them share connections and blocks
(`dvk.commands.where`), and `dvk://main@x` after a pull is the new `main`.

A name with `@` or `:` in it is written with an empty revision: `dvk://:@img@2x.png`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from glob import has_magic
from typing import IO, Any

from blake3 import blake3
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike, stringify_path
from msgspec import Struct
from msgspec.structs import replace

from dvk.commands.read import ReadOnly, VersionFile, copy_to, prove, told, where_is
from dvk.commands.repo import Repo
from dvk.commands.snapshot import Node, Snapshot
from dvk.commands.where import Where
from dvk.errors import Corrupt, NotFound
from dvk.store.names import show

__all__ = ["DvkFileSystem", "join_url", "split_url"]

PROTOCOL = "dvk://"
_REV = r"(?:[^:@/]|@\{[^}]*\})(?:[^:@]|@\{[^}]*\})*"
_WITH_REPO = re.compile(rf"(?P<repo>.*?):(?P<rev>{_REV}|)@(?P<path>.*)", re.DOTALL)
_WITH_REV = re.compile(rf"(?P<rev>{_REV}|)@(?P<path>.*)", re.DOTALL)
_FILES_AT_ONCE = 8

Info = dict[str, Any]


def split_url(url: str) -> tuple[str, str, str]:
    """Repository, revision ("" where they are not named) and path of a URL.

    >>> split_url("dvk://git@host:acme/churn:v1@data/a.csv")
    ('git@host:acme/churn', 'v1', 'data/a.csv')
    >>> split_url("dvk://feature/x@a.csv"), split_url("dvk:///mnt/churn:a.csv"), split_url("dvk://:@a@b:c")
    (('', 'feature/x', 'a.csv'), ('/mnt/churn', '', 'a.csv'), ('', '', 'a@b:c'))
    """
    rest = url.removeprefix(PROTOCOL)
    if match := _WITH_REPO.fullmatch(rest):
        return match["repo"], match["rev"], match["path"].lstrip("/")
    repo, colon, tail = rest.rpartition(":")
    if colon:
        return repo, "", tail.lstrip("/")
    if match := _WITH_REV.fullmatch(rest):
        return "", match["rev"], match["path"].lstrip("/")
    return "", "", rest.lstrip("/")


def join_url(repo: str, rev: str, path: str) -> str:
    """The URL that `split_url` takes apart into these."""
    if ":" in path or ("@" in path and not rev):
        return f"{PROTOCOL}{repo}:{rev}@{path}"
    return f"{PROTOCOL}{repo}{':' if repo else ''}{rev}{'@' if rev else ''}{path}"


class _Place(Struct, frozen=True):
    """What a name that somebody passed in means, and how names are to be answered."""

    where: Where
    path: str
    is_url: bool = False
    repo: str = ""
    rev: str = ""

    @property
    def raw(self) -> bytes:
        return os.fsencode(self.path)

    def name(self, path: bytes | str) -> str:
        """A path of this version as the caller would write it."""
        text = os.fsdecode(path)
        return join_url(self.repo, self.rev, text) if self.is_url else text


class DvkFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """A version of a repository: what Git has there, with tracked data in the place of its pointers.

    Args:
        repo: a folder in the repository, its Git URL, or a `dvk.Repo`; the one around the working folder without it.
        rev: a revision, `HEAD` without one; in a plain folder without Git, what its pointers say.
        remote: the only remote to ask for data that is not here.

    Raises:
        NotFound: there is no such revision, with near names. NotARepository: there is no repository.

    For any number of threads; it may be pickled, and a forked child opens connections of its own.
    """

    protocol = "dvk"
    root_marker = ""
    cachable = False

    def __init__(
        self,
        repo: Repo | str | os.PathLike[str] | None = None,
        rev: str | None = None,
        remote: str | None = None,
        *,
        commit: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        with told():
            self.where = replace(where_is(repo, rev, remote), commit=commit).pinned()
        self._others: dict[tuple[str, str], Where] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.where, self._others)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DvkFileSystem) and self.where == other.where

    def __hash__(self) -> int:
        return hash((type(self), self.where))

    @property
    def rev(self) -> str:
        """The commit that plain names are read at; empty in a plain folder."""
        return self.where.commit

    @property
    def fsid(self) -> str:
        """Tells this version from all others."""
        return f"dvk-{self.where.place}-{self.where.commit}"

    # ------------------------------------------------------------ names

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        text = str(stringify_path(path))
        if text.startswith(PROTOCOL):
            return PROTOCOL + text[len(PROTOCOL) :].rstrip("/")
        return text.strip("/")

    def unstrip_protocol(self, name: str) -> str:
        """A name as a URL that any process understands; a plain one gets repository and commit."""
        if name.startswith(PROTOCOL):
            return name
        return join_url(self.where.place, self.where.commit, name.strip("/"))

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        repo, rev, _ = split_url(path)
        return ({"repo": repo} if repo else {}) | ({"rev": rev} if rev else {})

    @classmethod
    def _parent(cls, path: str) -> str:
        text = cls._strip_protocol(path)
        if not text.startswith(PROTOCOL):
            return str(text.rpartition("/")[0])
        repo, rev, inner = split_url(text)
        return join_url(repo, rev, inner.rpartition("/")[0])

    def _place(self, path: Any) -> _Place:
        text = self._strip_protocol(path)
        if not text.startswith(PROTOCOL):
            return _Place(self.where, text)
        repo, rev, inner = split_url(text)
        with told():
            return _Place(self._where_of(repo, rev), inner, True, repo, rev)

    def _where_of(self, repo: str, rev: str) -> Where:
        """The version that a URL names: what it leaves out is this filesystem's own."""
        mine = self.where
        if not repo and (not rev or rev == mine.rev):
            return mine
        key = repo, rev
        if key not in self._others:
            wanted = where_is(repo, rev, mine.remote) if repo else replace(mine, rev=rev, commit="")
            same = wanted.place == mine.place and wanted.rev in (mine.rev, "")
            self._others[key] = mine if same else wanted.pinned()
        return self._others[key]

    def _view(self, where: Where) -> DvkFileSystem:
        """The filesystem whose plain names are of another version."""
        return self if where == self.where else _rebuilt(type(self), where, {})

    # ------------------------------------------------------------ what there is

    def _node(self, path: Any) -> tuple[_Place, Snapshot, Node]:
        place = self._place(path)
        with told():
            snapshot = place.where.snapshot()
            return place, snapshot, snapshot.node(place.raw)

    def info(self, path: Any, **options: Any) -> Info:
        """Name, size, type ("file", "directory", or "link" for one that leads to no file), and what else is known.

        `id` is the BLAKE3 of a file that dvk tracks, `git` the blob of one that Git has, `etag` one or the other;
        `mtime` is when the version was committed.
        """
        place, snapshot, node = self._node(path)
        return _info(place, snapshot, node)

    def ls(self, path: Any, detail: bool = True, **options: Any) -> list[Any]:
        """What lies directly in a folder; of a file itself."""
        place, snapshot, node = self._node(path)
        with told():
            nodes = snapshot.children(node.path) if node.kind == "dir" else [node]
        if detail:
            return [_info(place, snapshot, child) for child in nodes]
        return [place.name(child.path) for child in nodes]

    def exists(self, path: Any, **options: Any) -> bool:
        """Whether something is there; what cannot be found out is an error."""
        try:
            self._node(path)
        except (FileNotFoundError, NotFound):
            return False
        return True

    def find(
        self, path: Any, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **options: Any
    ) -> Any:
        """Every file below a path; that of a file is itself."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        try:
            place, snapshot, top = self._node(path)
        except FileNotFoundError:
            return {} if detail else []
        found: dict[bytes, Node] = {}
        with told():
            if withdirs and top.kind == "dir" and place.path:
                found[top.path] = top
            if maxdepth is None:
                for node in snapshot.below(top.path):
                    if node.kind != "dir" or withdirs:
                        found[node.path] = node
                    folder = os.path.dirname(node.path) if withdirs else b""
                    while len(folder) > len(top.path) and folder not in found:
                        found[folder] = Node(folder, "dir")
                        folder = os.path.dirname(folder)
            else:
                _within(snapshot, top, maxdepth, withdirs, found)
        names = sorted((place.name(node.path), node) for node in found.values())
        return {name: _info(place, snapshot, node) for name, node in names} if detail else [name for name, _ in names]

    def walk(self, path: Any, maxdepth: int | None = None, topdown: bool = True, **options: Any) -> Iterator[Any]:
        """As `os.walk`."""
        place = self._place(path)
        for root, dirs, files in super(DvkFileSystem, self._view(place.where)).walk(
            place.path, maxdepth=maxdepth, topdown=topdown, **options
        ):
            for found in (dirs, files):
                if place.is_url and isinstance(found, dict):
                    for info in found.values():
                        info["name"] = place.name(info["name"])
            yield place.name(root), dirs, files

    def glob(self, path: Any, maxdepth: int | None = None, **options: Any) -> Any:
        """Names that match a pattern; in a URL the pattern is that of the path."""
        place = self._place(path)
        slash = "/" if str(stringify_path(path)).endswith("/") and has_magic(place.path) else ""
        view = self._view(place.where)
        found = super(DvkFileSystem, view).glob(place.path + slash, maxdepth=maxdepth, **options)
        if not place.is_url:
            return found
        if not isinstance(found, dict):
            return [place.name(name) for name in found]
        return {place.name(name): {**info, "name": place.name(name)} for name, info in found.items()}

    def ukey(self, path: Any) -> str:
        """What tells this content from any other: the id of a file or folder."""
        _, snapshot, node = self._node(path)
        return _etag(node) or f"{snapshot.commit}:{show(node.path)}"

    def checksum(self, path: Any) -> int:
        """A number for `ukey`."""
        return int.from_bytes(blake3(self.ukey(path).encode()).digest()[:8], "big")

    def created(self, path: Any) -> datetime:
        """When the version was committed."""
        return self.modified(path)

    def modified(self, path: Any) -> datetime:
        """When the version was committed, the same for all of it, so that caches of readers hold."""
        _, snapshot, _ = self._node(path)
        return snapshot.time

    # ------------------------------------------------------------ what is in it

    def _open(self, path: Any, mode: str = "rb", **options: Any) -> VersionFile:
        if mode != "rb":
            self._refuse(path)
        place, _, node = self._node(path)
        with told():
            return VersionFile(place.where, node)

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """The bytes of a file, or a slice of them as Python slices; the whole is proven by its id."""
        _, snapshot, node = self._node(path)
        begin, stop, _ = slice(start, end).indices(node.size)
        with told():
            source = snapshot.open(node)
            if isinstance(source, bytes):
                return source[begin:stop]
            data = source.read_at(begin, max(0, stop - begin))
            if (begin, stop) == (0, node.size):
                prove(node, data)
            return data

    def cat_ranges(
        self,
        paths: list[Any],
        starts: int | list[int | None] | None,
        ends: int | list[int | None] | None,
        max_gap: int | None = None,  # blocks that lie close together are one request anyway
        on_error: str = "return",
        **options: Any,
    ) -> list[Any]:
        """The bytes of ranges of files; those of one file are read together."""
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        begins = starts if isinstance(starts, list) else [starts] * len(paths)
        stops = ends if isinstance(ends, list) else [ends] * len(paths)
        if not len(begins) == len(stops) == len(paths):
            raise ValueError("paths, starts and ends are of one length")
        out: list[Any] = [None] * len(paths)
        by_path: dict[str, list[int]] = {}
        for i, path in enumerate(paths):
            by_path.setdefault(self._strip_protocol(path), []).append(i)

        def read(path: str, which: Sequence[int]) -> None:
            try:
                _, snapshot, node = self._node(path)
                with told():
                    source = snapshot.open(node)
                    ranges = [slice(begins[i], stops[i]).indices(node.size) for i in which]
                    parts = [(begin, max(0, stop - begin)) for begin, stop, _ in ranges]
                    if not isinstance(source, bytes):
                        source.expect(parts)
                    for i, (begin, length) in zip(which, parts, strict=True):
                        is_whole = isinstance(source, bytes)
                        out[i] = source[begin : begin + length] if is_whole else source.read_at(begin, length)  # type: ignore[index, union-attr]
            except Exception as error:
                if on_error != "return":
                    raise
                for i in which:
                    out[i] = error

        _together(read, list(by_path.items()))
        return out

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """The content of a file, or of several by name, several at a time."""
        names = self.expand_path(path, recursive=recursive)
        if len(names) == 1 and not isinstance(path, list) and names[0] == self._strip_protocol(path):
            return self.cat_file(names[0], **options)
        out: dict[str, Any] = dict.fromkeys(names)

        def read(name: str) -> None:
            try:
                out[name] = self.cat_file(name, **options)
            except Exception as error:
                if on_error == "raise":
                    raise
                if on_error == "return":
                    out[name] = error
                else:
                    del out[name]

        _together(read, [(name,) for name in names if not self.isdir(name)])
        return {name: data for name, data in out.items() if data is not None}

    def get_file(
        self, rpath: Any, lpath: Any = None, callback: Any = DEFAULT_CALLBACK, outfile: Any = None, **options: Any
    ) -> None:
        """Copy a file to a local one, which appears once its content is proven; of a folder only the folder is made."""
        _, snapshot, node = self._node(rpath)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if outfile is None and node.kind == "dir":
            os.makedirs(lpath, exist_ok=True)
            return
        with told():
            source = snapshot.open(node)
            callback.set_size(node.size)
            if outfile is not None:
                _copy(node, source, outfile, callback)
                return
            target = os.fspath(stringify_path(lpath))
            os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
            temporary = f"{target}.{os.urandom(8).hex()}.tmp"
            try:
                with open(temporary, "xb") as out:
                    _copy(node, source, out, callback)
                os.replace(temporary, target)
            except BaseException:
                if os.path.lexists(temporary):
                    os.unlink(temporary)
                raise

    # ------------------------------------------------------------ what cannot be done

    def _refuse(self, path: Any, *_: Any, **__: Any) -> Any:
        hint = "write to the work tree, then `dvk add`; in Python `dvk.add(repo, paths)`"
        with told():
            raise ReadOnly("versions can only be read", subject=str(path), hint=hint)

    mkdir = makedirs = rmdir = rm_file = _rm = rm = cp_file = copy = mv = touch = pipe_file = pipe = _refuse
    put_file = put = sign = _refuse


def _rebuilt(cls: type[DvkFileSystem], where: Where, others: Mapping[tuple[str, str], Where]) -> DvkFileSystem:
    fs = cls(where.place, where.rev, where.remote, commit=where.commit)
    fs._others.update(others)
    return fs


def _together(work: Any, tasks: list[Any]) -> None:
    """Do tasks in a few threads of this call's own; the first error counts."""
    if len(tasks) == 1:
        work(*tasks[0])
        return
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="dvk-files") as pool:
        list(pool.map(lambda task: work(*task), tasks))


def _within(snapshot: Snapshot, top: Node, depth: int, withdirs: bool, found: dict[bytes, Node]) -> None:
    """Add what lies at most `depth` levels below `top`."""
    if top.kind != "dir":
        found[top.path] = top
        return
    for child in snapshot.children(top.path):
        if child.kind != "dir" or withdirs:
            found[child.path] = child
        if child.kind == "dir" and depth > 1:
            _within(snapshot, child, depth - 1, withdirs, found)


def _copy(node: Node, source: Any, out: IO[bytes], callback: Any) -> None:
    hasher = blake3()

    def write(piece: memoryview | bytes) -> None:
        hasher.update(piece)
        out.write(piece)
        callback.relative_update(len(piece))

    if isinstance(source, bytes):
        write(source)
        return
    copy_to(source, write)
    if hasher.digest() != node.id:
        raise Corrupt("its stored bytes fail their hash", subject=show(node.path))


def _etag(node: Node) -> str:
    if node.id is not None:
        return node.id.hex()
    if node.blob is not None:
        return str(node.blob)
    whole = node.target is not None and node.target.path == node.path
    return node.target.pointer.id.hex() if node.target is not None and whole else ""


def _info(place: _Place, snapshot: Snapshot, node: Node) -> Info:
    info: Info = {
        "name": place.name(node.path),
        "size": node.size if node.kind != "dir" else 0,
        "type": "directory" if node.kind == "dir" else node.kind,
        "tracked": "dvk" if node.tracked else "git",
        "mtime": snapshot.time.timestamp(),
    }
    if node.id is not None:
        info["id"] = node.id.hex()
    if node.blob is not None:
        info["git"] = str(node.blob)
    if etag := _etag(node):
        info["etag"] = etag
    if node.exec:
        info["exec"] = True
    if node.link is not None:
        info |= {"islink": True, "destination": os.fsdecode(node.link)}
    return info
