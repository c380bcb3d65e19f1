"""Where the content of a version comes from: the local store, else straight from a remote, without being kept.

`dvk cat v1.0:models/best.pt` in a fresh clone must not fetch a version into the store that nobody will check out. Pages
and blocks are read from the remote as they are needed, and every byte is proven as ever.

    with Reader(repo, remote=None) as reader:
        entries = reader.entries(target)
        for source, which in reader.sources(target, entries):
            restore(source, entries.ids[which], entries.sizes[which], ...)
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import numpy as np

from dvk.commands.pull import expect_store, nowhere
from dvk.commands.repo import Remote, Repo, root_of
from dvk.commands.spec import Target
from dvk.commands.tracked import file_entries
from dvk.errors import DataMissing, DvkError, NotFound
from dvk.events import Note, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.listing import Entries
from dvk.store.names import I64, Names, show
from dvk.store.pages import read_entries
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.restore import ContentSource, StoreContent


class Reader:
    """Reads versions from wherever they are. Changes nothing. Not for several threads at once."""

    def __init__(self, repo: Repo, *, remote: str | None = None, on_event: OnEvent = ignore) -> None:
        """`remote`: the one to ask for what is not here; the default one without a name."""
        self.repo, self._wanted, self._on_event = repo, remote, on_event
        self._remote: Remote | None = None
        self._resolver: Resolver | None = None
        self._content: RemoteContent | None = None
        self._resolved: dict[tuple[bytes, bytes], Entries] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._resolver is not None:
            self._resolver.close()
        if self._remote is not None:
            self._remote.store.close()

    @property
    def remote_name(self) -> str:
        """The remote that was asked; empty while everything was here."""
        return self._remote.name if self._remote is not None else ""

    def entries(self, target: Target) -> Entries:
        """What a target consists of, named from the tracked path (a tracked file: one entry without a name).

        Raises:
            DataMissing: the listing of a folder is neither here nor on the remote.
            NotFound: nothing lies there in the folder.
        """
        if not target.pointer.is_dir:
            return file_entries(target.pointer)
        try:
            found = read_entries(PageId(target.pointer.id), self.repo.store.load_page, under=target.inner)
        except DataMissing:
            found = self.from_remote(target)
        if target.inner and not len(found):
            raise NotFound(
                f"the folder {show(target.path)} has no such file or folder in this version",
                subject=target.shown,
                hint=f"`dvk ls {_folder(target)}` lists what it has",
            )
        return found

    def sources(self, target: Target, entries: Entries) -> Iterator[tuple[ContentSource, I64]]:
        """Who has the content of which files among `entries`: positions, each file once.

        Raises:
            DataMissing: the remote knows nothing of it either.
        """
        files = np.flatnonzero(entries.is_file)
        held = self.repo.store.holds(entries.ids[files], entries.sizes[files])
        if held.any() or not len(files):
            yield StoreContent(self.repo.store), files[held]
        if not held.all():
            self.from_remote(target)
            assert self._content is not None
            yield self._content, files[~held]

    def from_remote(self, target: Target) -> Entries:
        """As `entries`, from the remote; also makes the content of the files readable there."""
        key = (target.pointer.id, target.inner)
        if key in self._resolved:
            return self._resolved[key]
        resolver, content = self._connect(target)
        parts = []
        try:
            for part in resolver.resolve(root_of(target.pointer), under=target.inner):
                content.add(part)
                parts.append(part.entries)
        except DataMissing as error:
            raise self._nowhere(target) from error
        found = Entries.join(parts)
        self._resolved[key] = found if target.pointer.is_dir else file_entries(target.pointer)
        return self._resolved[key]

    def _connect(self, target: Target) -> tuple[Resolver, RemoteContent]:
        if self._resolver is None or self._content is None:
            try:
                remote = self.repo.remote(self._wanted, write=False)
            except NotFound as error:
                if self._wanted:
                    raise
                missing = self._nowhere(target)
                raise DataMissing(
                    f"{missing.message}; {error.message}", subject=missing.subject, hint=error.hint
                ) from error
            self._remote = remote
            expect_store(remote)
            self._on_event(Note(f"not in the local store, so it is read from {remote.name}", subject=target.shown))
            self._resolver = Resolver(remote.store, on_event=self._on_event)
            self._content = RemoteContent(remote.store)
        return self._resolver, self._content

    def _nowhere(self, target: Target) -> DvkError:
        remotes = [self.remote_name] if self.remote_name else []
        return nowhere(self.repo, target.path, target.pointer, remotes, rev=target.commit or "HEAD")


def from_here(entries: Entries, inner: bytes) -> Entries:
    """The same entries as they are called from `inner` on; the one of exactly that name has none left."""
    names = Names.of(name[len(inner) + 1 :] for name in entries.names) if inner else entries.names
    return Entries(names, entries.kinds, entries.sizes, entries.ids, entries.targets)


def _folder(target: Target) -> str:
    rev = "" if target.rev is None else f"{target.rev}:"
    return f"{rev}{show(target.path)}"
