"""The bytes of one side of a diff at random access: a version from the store or a remote, or a file of the workspace.

A file that was edited is compared with its last version all the time, and no store knows it yet. So it is cut and
hashed here as `dvk add` would do it (two gigabytes a second, nothing is kept), and then what it shares with the version
is known without parsing either.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from blake3 import blake3

from dvk.commands.reader import Reader, from_here
from dvk.commands.repo import Repo
from dvk.commands.spec import Target
from dvk.commands.tracked import file_entries
from dvk.errors import DataMissing, NotFound
from dvk.ids import ID_BYTES, PageId
from dvk.store.chunker import Cutter
from dvk.store.content import ContentSource, StoreContent
from dvk.store.listing import Entries, Kind
from dvk.store.names import U8, show
from dvk.store.opened import Opened
from dvk.store.pages import Chunks, read_entries
from dvk.store.store import as_column
from dvk.store.threads import brisk
from dvk.table.source import FileSource

_STEP_BYTES = 8 << 20


class WorkFile(FileSource):
    """A file of the workspace, with the chunks that `dvk add` would make of it."""

    def __init__(self, path: bytes, *, label: str, profile: str) -> None:
        """As `FileSource`; `profile`: how it is cut."""
        super().__init__(path, label=label)
        self._profile = profile
        self._chunks: Chunks | None = None

    def chunks(self) -> Chunks:
        """The recipe; the first call reads the file once.

        Raises:
            ChangedWhileRead, StorageError: as `read_at`. NewerFormat: its profile is not known here.
        """
        if self._chunks is None:
            self._chunks = self._cut()
        return self._chunks

    def _cut(self) -> Chunks:
        size = self.size
        cutter = Cutter(self._profile).for_file(lambda at, n: self.read_at(at, max(0, min(n, size - at))), size)
        hashed: list[Future[U8]] = []
        lengths = []
        carry = b""
        with brisk(), ThreadPoolExecutor(1, thread_name_prefix="dvk-hash") as pool:
            for at in range(0, size, _STEP_BYTES):
                step = min(_STEP_BYTES, size - at)
                data = carry + self.read_at(at, step)
                cut = cutter.feed(memoryview(data), final=at + step == size)
                hashed.append(pool.submit(_ids, data, cut.lengths.tolist()))
                lengths.append(cut.lengths.astype(np.uint32))
                carry = data[int(cut.lengths.sum()) :]
                if len(hashed) > 4:
                    hashed[-4].result()  # what waits is held in memory
        if not lengths:
            return Chunks.join([])
        return Chunks(np.concatenate([f.result() for f in hashed]), np.concatenate(lengths))


def _ids(data: bytes, lengths: Sequence[int]) -> U8:
    view, at, names = memoryview(data), 0, []
    for length in lengths:
        names.append(blake3(view[at : at + length]).digest())
        at += length
    return as_column(names) if names else np.zeros((0, ID_BYTES), np.uint8)


class Opener:
    """Opens files of versions and of the workspace. What it opened is closed by whoever uses it."""

    def __init__(self, repo: Repo, reader: Reader, *, fetch: bool) -> None:
        """`fetch`: whether a remote may be asked for what is not here."""
        self._repo, self._reader, self._fetch = repo, reader, fetch

    def version(self, target: Target) -> Opened:
        """The file at `target`, which must be one.

        Raises:
            DataMissing: it is neither here nor on a remote, or must not be asked for.
            NotFound: there is no such file in the folder.
        """
        entries = file_entries(target.pointer)
        if target.pointer.is_dir:
            entries = from_here(self.entries(target), target.inner)
        if len(entries) != 1 or entries.names[0] or entries.kinds[0] not in (Kind.FILE, Kind.EXEC):
            raise NotFound("is no file in this version", subject=target.shown)
        name, size = entries.ids[0].tobytes(), int(entries.sizes[0])
        return Opened(
            self._content(target, entries), name, size, label=label(target), name=os.path.basename(target.full)
        )

    def _content(self, target: Target, entries: Entries) -> ContentSource:
        if self._repo.store.holds(entries.ids, entries.sizes)[0]:
            return StoreContent(self._repo.store)
        self._may_fetch(target)
        for source, which in self._reader.sources(target, entries):
            if len(which):
                return source
        raise AssertionError("a file is with somebody, or that is an error")

    def entries(self, target: Target) -> Entries:
        """What a target consists of, named from the tracked path.

        Raises:
            DataMissing: as `version`. NotFound: nothing lies there.
        """
        if self._fetch:
            return self._reader.entries(target)
        try:
            found = read_entries(PageId(target.pointer.id), self._repo.store.load_page, under=target.inner)
        except DataMissing:
            self._may_fetch(target)
            raise
        if target.inner and not len(found):
            raise NotFound("the folder has no such file or folder in this version", subject=target.shown)
        return found

    def _may_fetch(self, target: Target) -> None:
        if not self._fetch:
            raise DataMissing(
                "this version is not in the local store, and nothing may be fetched",
                subject=target.shown,
                hint="leave out --no-fetch, or `dvk fetch` it first",
            )

    def disk(self, path: bytes, *, known: tuple[bytes, int] | None) -> Opened | WorkFile:
        """The file at `path` of the workspace; `known`: id and size if these are known to be what is on disk."""
        words = f"{show(path)} in the workspace"
        if known is not None:
            ids, sizes = as_column([known[0]]), np.array([known[1]], np.int64)
            if self._repo.store.holds(ids, sizes)[0]:
                return Opened(StoreContent(self._repo.store), *known, label=words, name=os.path.basename(path))
        full = os.path.join(self._repo.workspace.top, path)
        return WorkFile(full, label=words, profile=self._repo.workspace.config.profile_for(path))


def label(target: Target) -> str:
    """How messages call a version: `data.csv at v1.0`, `data.csv in the Git index`."""
    if target.rev is None:
        return f"{show(target.full)} in the workspace"
    return f"{show(target.full)} at {target.rev}" if target.rev else f"{show(target.full)} in the Git index"
