"""What reading versions at random access needs of one repository: who has a file's bytes, and all that is kept open.

`Reader` brings what a verb asked for and ends. A notebook or a training job opens files by the thousand, from many
threads, over hours. So here the repository, its remotes, decoded blocks, pages of folders and recipes of files are kept
for the next file, each within a bound:

    access = Access(Repo("."))
    access.folder(target).find(b"val/7.jpg")
    access.file(target, file_id, size, label="images/val/7.jpg at v1").readinto(0, buffer)

The local store is asked first, then the remotes in their order, straight by range requests; nothing is written. For any
number of threads of one process: after a fork `dvk.commands.where` makes a new one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from dvk.backend.contract import Backend, Buffer, KeyMissing
from dvk.commands.reader import Reader
from dvk.commands.repo import Repo, root_of
from dvk.commands.spec import Target
from dvk.errors import DataMissing, DvkError, FormatError
from dvk.ids import PageId
from dvk.store.block_reader import BlockCache
from dvk.store.content import Content, ContentSource, StoreContent
from dvk.store.folder import Folder, RemoteFolder
from dvk.store.names import I64, U8
from dvk.store.opened import CACHE_BYTES, Opened
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.root import Root
from dvk.store.store import as_column

_T = TypeVar("_T")

_KEPT = 1 << 20  #: what files that were opened lately may weigh; a unit is some 70 bytes
_FILE_WEIGHT = 50
_FOLDERS_KEPT = 32
#: Readers of columns take pieces from all over a file, several at a time; what lies between is not worth a round trip.
_GAP_BYTES = 64 << 10
#: How long the local store is believed not to have something; to look again takes a millisecond.
_BELIEVED_S = 0.05


class Access:
    """Reads versions of one repository. Changes nothing. Safe to use from many threads."""

    def __init__(self, repo: Repo, *, remote: str | None = None) -> None:
        """`remote`: the one to ask for what is not here; without a name the default one, then the others."""
        self.repo = repo
        self._reader = Reader(repo, remote=remote)
        self._asking = threading.RLock()  # around the reader
        self._lock = threading.Lock()
        self._caches: dict[int, tuple[Backend, BlockCache]] = {}
        self._folders: OrderedDict[bytes, TrackedFolder] = OrderedDict()
        #: By id and size, since a pointer may be wrong about the size.
        self._opened: OrderedDict[tuple[bytes, int], Opened] = OrderedDict()
        self._weight = 0
        self._local = StoreContent(repo.store)
        self._looked = time.monotonic()

    def close(self) -> None:
        """Let go of connections, threads and processes. Files that are still open fail from then on."""
        with self._lock:
            caches, self._caches = list(self._caches.values()), {}
            self._opened.clear()
            self._folders.clear()
        for _, cache in caches:
            cache.close()
        self._reader.close()
        self.repo.close()

    # ------------------------------------------------------------ folders and files

    def folder(self, target: Target) -> TrackedFolder:
        """The tracked folder of a target as a whole, for looking things up in it."""
        name = target.pointer.id
        with self._lock:
            if (found := self._folders.get(name)) is not None:
                self._folders.move_to_end(name)
                return found
        found = TrackedFolder(self, target)
        with self._lock:
            found = self._folders.setdefault(name, found)
            while len(self._folders) > _FOLDERS_KEPT:
                self._folders.popitem(last=False)
        return found

    def file(self, target: Target, file_id: bytes, size: int, *, label: str) -> TrackedFile:
        """A file, which is `target` itself or lies in it.

        Raises:
            DataMissing: it is neither here nor on a remote. Corrupt: what is there of it is damaged.
            RemoteError, Refused, NotFound: no remote can be asked.
        """
        return TrackedFile(self, target, file_id, size, label)

    def opened(self, target: Target, file_id: bytes, size: int, label: str) -> Opened:
        """The content of a file, shared with everybody who reads it. Raises as `file`."""
        with self._lock:
            if (found := self._opened.get((file_id, size))) is not None:
                self._opened.move_to_end((file_id, size))
                return found
        return self._keep(self._open(target, file_id, size, label))

    def _here(self) -> StoreContent:
        """The local store, which looks again for what it lacks: other processes add versions while this one reads."""
        if time.monotonic() - self._looked > _BELIEVED_S:
            self._looked = time.monotonic()
            self._local = StoreContent(self.repo.store)
        return self._local

    def _open(self, target: Target, file_id: bytes, size: int, label: str) -> Opened:
        try:
            return self._open_from(self._here(), file_id, size, label)
        except (DataMissing, KeyMissing, FormatError) as error:
            here = error
        try:
            source: ContentSource
            if target.inner or target.pointer.is_dir:
                source = self.folder(target).content(target.inner)
            else:
                source = self.first_with(target, lambda resolver: _resolved(resolver, target))
        except DvkError as error:
            try:  # another process may have added it meanwhile
                return self._open_from(StoreContent(self.repo.store), file_id, size, label)
            except (DataMissing, KeyMissing, FormatError):
                pass
            if isinstance(error, DataMissing) and isinstance(here, FormatError):
                raise here from None  # damaged here and nowhere else: that is the news
            raise
        return self._open_from(source, file_id, size, label)

    def _open_from(self, source: ContentSource, file_id: bytes, size: int, label: str) -> Opened:
        return Opened(source, file_id, size, label=label, cache=self._cache_of(source.backend))

    def moved(self, before: Opened) -> Opened | None:
        """The same file where the local store has it now, if `dvk gc` put it into another pack."""
        if before.backend is not self._local.backend:
            return None
        self.repo.store.look_again()
        try:
            again = self._open_from(StoreContent(self.repo.store), before.id, before.size, before.label)
        except (DataMissing, KeyMissing, FormatError):
            return None
        if again.packs() == before.packs():
            return None
        self._forget(before)
        return self._keep(again)

    def open_again(self, target: Target, before: Opened, why: DvkError) -> Opened | None:
        """The same file once what is known of where it lies turned out wrong; None where there is no other way.

        From the local store to the remotes, from a remote's locator to a search by the footers of its packs.
        """
        self._forget(before)
        resolver = next((r for r in self._reader.connected if r.remote.backend is before.backend), None)
        try:
            if resolver is None:
                source: ContentSource = (
                    self.folder(target).content(target.inner)
                    if target.pointer.is_dir
                    else self.first_with(target, lambda resolver: _resolved(resolver, target))
                )
            else:
                found = RemoteContent(resolver.remote)
                for part in resolver.search(root_of(target.pointer), under=target.inner, why=why):
                    found.add(part)
                source = found
            again = self._open_from(source, before.id, before.size, before.label)
        except (DataMissing, FormatError):
            return None
        return self._keep(again)

    def _forget(self, opened: Opened) -> None:
        key = opened.id, opened.size
        with self._lock:
            if self._opened.get(key) is opened:
                self._weight -= _weight(self._opened.pop(key))

    def _keep(self, opened: Opened) -> Opened:
        key = opened.id, opened.size
        with self._lock:
            if (other := self._opened.get(key)) is not None:
                return other
            self._opened[key] = opened
            self._weight += _weight(opened)
            while self._weight > _KEPT and len(self._opened) > 1:
                self._weight -= _weight(self._opened.popitem(last=False)[1])
        return opened

    def _cache_of(self, backend: Backend) -> BlockCache:
        with self._lock:
            if id(backend) not in self._caches:
                self._caches[id(backend)] = backend, BlockCache(CACHE_BYTES, max_gap_bytes=_GAP_BYTES)
            return self._caches[id(backend)][1]

    # ------------------------------------------------------------ remotes

    def first_with(self, target: Target, ask: Callable[[Resolver], _T]) -> _T:
        """What the first remote answers that has it; as `Reader.first_with`, for many threads at once."""
        for resolver in self._reader.connected:
            try:
                return ask(resolver)
            except DvkError:
                break  # said properly below
        with self._asking:
            return self._reader.first_with(target, lambda resolver, _: ask(resolver))


def _weight(opened: Opened) -> int:
    return _FILE_WEIGHT + len(opened.chunks())


class TrackedFile:
    """A file of a version for reading at random access; a way to it that fails is left for another, once.

    That the local store has packed it anew since is no failure.
    """

    def __init__(self, access: Access, target: Target, file_id: bytes, size: int, label: str) -> None:
        self._access, self._target = access, target
        self._opened = access.opened(target, file_id, size, label)
        self._turned = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self._opened.size

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """As of `Opened`."""
        self._opened.expect(ranges)

    def end_of_block(self, offset: int) -> int:
        """As of `Opened`."""
        return self._opened.end_of_block(offset)

    def readinto(self, offset: int, buffer: Buffer) -> int:
        """As of `Opened`."""
        return self._by_any_way(lambda opened: opened.readinto(offset, buffer))

    def read_at(self, offset: int, length: int) -> bytes:
        """As of `Opened`."""
        return self._by_any_way(lambda opened: opened.read_at(offset, length))

    def _by_any_way(self, read: Callable[[Opened], _T]) -> _T:
        while True:
            try:
                return read(self._opened)
            except (DataMissing, FormatError) as error:
                if not self._other_way(error):
                    raise

    def _other_way(self, why: DvkError) -> bool:
        again = self._access.moved(self._opened)
        if again is None and not self._turned:
            self._turned = True
            again = self._access.open_again(self._target, self._opened, why)
        if again is not None:
            self._opened = again
        return again is not None


class TrackedFolder(Folder):
    """A tracked folder: pages from the local store, those that are not there from the first remote that has them."""

    def __init__(self, access: Access, target: Target) -> None:
        self._access = access
        self._whole = Target(target.path, b"", target.pointer, target.rev, target.commit)
        self._far: _Far | None = None
        self._connecting = threading.Lock()
        super().__init__(PageId(target.pointer.id), self._page)

    def _page(self, name: PageId) -> bytes:
        try:
            return self._access.repo.store.load_page(name)
        except (DataMissing, FormatError) as error:
            try:
                return self._remote().ask(lambda known: known.page(name))
            except DataMissing:
                if isinstance(error, FormatError):
                    raise error from None
                raise

    def content(self, path: bytes) -> ContentSource:
        """What the file at `path` consists of on a remote.

        Raises:
            DataMissing: no remote has it.
        """
        far = self._remote()
        found = far.ask(lambda known: known.content(path))
        if found is None:
            raise DataMissing("its data is not on the remote", subject=f"{self._whole.shown}")
        return _One(far.backend, found)

    def _remote(self) -> _Far:
        with self._connecting:
            if self._far is None:
                root = root_of(self._whole.pointer)
                self._far = self._access.first_with(self._whole, lambda resolver: _Far(resolver, root))
            return self._far


class _One:
    """A source that has one file."""

    def __init__(self, backend: Backend, content: Content) -> None:
        self._backend, self._content = backend, content

    @property
    def backend(self) -> Backend:
        return self._backend

    def contents(self, _ids: U8, _sizes: I64) -> list[Content | None]:
        return [self._content]


class _Searched:
    """What a remote has of a folder by the footers of its packs, where its locator is of no use."""

    def __init__(self, resolver: Resolver, root: Root, why: DvkError | None) -> None:
        self._pages: dict[PageId, bytes] = {}
        self._contents: dict[bytes, Content] = {}
        for part in resolver.search(root, why=why):
            self._pages.update(part.pages)
            for i, content in enumerate(part.contents):
                if content is not None:
                    self._contents[part.entries.names[i]] = content

    def page(self, name: PageId) -> bytes:
        if name not in self._pages:
            raise DataMissing(f"page {name.hex()[:12]} is not on the remote")
        return self._pages[name]

    def content(self, path: bytes) -> Content | None:
        return self._contents.get(path)


class _Far:
    """A folder on one remote: by its locator, or, once that turned out wrong, by a search."""

    def __init__(self, resolver: Resolver, root: Root) -> None:
        """Raises: DataMissing: the remote does not know it."""
        self._resolver, self._root = resolver, root
        self._lock = threading.Lock()
        self._known: RemoteFolder | _Searched
        try:
            found = resolver.reader.locator(root)
            self._known = RemoteFolder(resolver, root, found) if found else _Searched(resolver, root, None)
        except (KeyMissing, FormatError) as error:
            self._known = _Searched(resolver, root, error)

    @property
    def backend(self) -> Backend:
        return self._resolver.remote.backend

    def ask(self, question: Callable[[RemoteFolder | _Searched], _T]) -> _T:
        """What it knows; where its locator leads nowhere, after a search.

        Raises:
            DataMissing, NotWhole: the search did not find it either.
        """
        known = self._known
        try:
            return question(known)
        except (KeyMissing, FormatError) as error:
            if isinstance(known, _Searched):
                raise
            with self._lock:
                if self._known is known:
                    self._known = _Searched(self._resolver, self._root, error)
        return question(self._known)


def _resolved(resolver: Resolver, target: Target) -> ContentSource:
    """What a tracked file consists of on a remote. Raises DataMissing, FormatError."""
    (part,) = resolver.resolve(root_of(target.pointer))
    (content,) = part.contents
    if content is None:
        found = RemoteContent(resolver.remote)
        ids, sizes = as_column([target.pointer.id]), np.array([target.pointer.size], np.int64)
        content = found.contents(ids, sizes)[0]
        assert content is not None  # the empty file, which is nowhere
    return _One(resolver.remote.backend, content)
