"""Where the content of a version comes from: the local store, else straight from a remote, without being kept.

`dvk cat v1.0:models/best.pt` in a fresh clone must not fetch a version into the store that nobody will check out. Pages
and blocks are read from the remote as they are needed, and every byte is proven as ever.

    with Reader(repo, remote=None) as reader:
        entries = reader.entries(target)
        for source, which in reader.sources(target, entries):
            restore(source, entries.ids[which], entries.sizes[which], ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

import numpy as np

from dvk.commands.pull import nowhere
from dvk.commands.repo import Remote, Repo, root_of
from dvk.commands.sources import Sources
from dvk.commands.spec import Target
from dvk.commands.tracked import file_entries
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, Refused
from dvk.events import Note, OnEvent, ignore
from dvk.ids import PageId
from dvk.store.content import ContentSource, StoreContent
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, Names, show
from dvk.store.pages import read_entries
from dvk.store.pagewriter import write_listing
from dvk.store.resolve import NotWhole, RemoteContent, Resolver
from dvk.workspace.pointer import Pointer

_T = TypeVar("_T")


class Reader:
    """Reads versions from wherever they are. Changes nothing. Not for several threads at once."""

    def __init__(self, repo: Repo, *, remote: str | None = None, on_event: OnEvent = ignore) -> None:
        """`remote`: the one to ask for what is not here; without a name the default one, then the others."""
        self.repo, self._wanted, self._on_event = repo, remote, on_event
        self._sources: Sources | None = None
        self._open: list[tuple[Remote, Resolver, RemoteContent]] = []
        self._used: dict[str, None] = {}  # names of remotes that had something
        self._resolved: dict[tuple[bytes, bytes], tuple[Entries, RemoteContent]] = {}
        self._by: dict[int, Resolver] = {}  # of each content, who found it

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the remotes."""
        for _, resolver, _ in self._open:
            resolver.close()
        if self._sources is not None:
            self._sources.close()

    @property
    def remote_name(self) -> str:
        """The remote that had what is not here (several, with commas between); empty while everything was here."""
        return ", ".join(self._used)

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
            yield self._resolve(target)[1], files[~held]

    def look_again(self, target: Target, source: ContentSource, why: DvkError) -> ContentSource | None:
        """What the remote of `source` has of a target by the footers of its packs, once its locator led to `why`.

        None where that is no help: it is the local store, or the remote was searched already.

        Raises:
            DataMissing, Corrupt: nothing of it is found. RemoteError: the remote does not answer.
        """
        resolver = self._by.get(id(source))
        if resolver is None or not isinstance(source, RemoteContent):
            return None
        found = RemoteContent(source.remote)
        try:
            for part in resolver.search(root_of(target.pointer), under=target.inner, why=why):
                found.add(part)
        except DataMissing as error:
            if not len(found):
                raise self._nowhere(target) from error
        except NotWhole:
            if not len(found):
                raise
        return found

    def from_remote(self, target: Target) -> Entries:
        """As `entries`, from a remote."""
        return self._resolve(target)[0]

    def _resolve(self, target: Target) -> tuple[Entries, RemoteContent]:
        """What a target consists of, by the first remote that knows it, and the content of its files there."""
        key = (target.pointer.id, target.inner)
        if key in self._resolved:
            return self._resolved[key]

        def ask(resolver: Resolver, content: RemoteContent) -> tuple[Entries, RemoteContent]:
            parts = []
            for part in resolver.resolve(root_of(target.pointer), under=target.inner):
                content.add(part)
                parts.append(part.entries)
            self._by[id(content)] = resolver
            return Entries.join(parts) if target.pointer.is_dir else file_entries(target.pointer), content

        self._resolved[key] = found = self.first_with(target, ask)
        return found

    @property
    def connected(self) -> list[Resolver]:
        """Of the remotes that were opened so far, in the order in which they are asked."""
        return [resolver for _, resolver, _ in list(self._open)]

    def first_with(self, target: Target, ask: Callable[[Resolver, RemoteContent], _T]) -> _T:
        """What `ask` says of the first remote of which it raises neither DataMissing nor FormatError.

        Raises:
            DataMissing: none has it, named by who could bring it. FormatError: what one has is damaged, and none else
            has it. RemoteError, Refused, NotFound: no remote can be asked.
        """
        broken: DvkError | None = None
        sources = self._connect(target)
        for remote, resolver, content in self._remotes(sources, target):
            with sources.asking(remote):
                try:
                    found = ask(resolver, content)
                except DataMissing:
                    continue
                except FormatError as error:
                    broken = broken or error
                    continue
                self._used[remote.name] = None
                return found
        sources.check()
        if broken is not None:
            raise broken
        raise self._nowhere(target)

    def _remotes(self, sources: Sources, target: Target) -> Iterator[tuple[Remote, Resolver, RemoteContent]]:
        """Those that were opened before, then the others."""
        yield from [row for row in self._open if row[0].name in sources.asked]
        for remote in sources:
            self._on_event(Note(f"not in the local store, so it is read from {remote.name}", subject=target.shown))
            row = (remote, Resolver(remote.store, on_event=self._on_event), RemoteContent(remote.store))
            self._open.append(row)
            yield row

    def _connect(self, target: Target) -> Sources:
        if self._sources is None:
            try:
                self._sources = Sources(self.repo, self._wanted, on_event=self._on_event)
            except NotFound as error:
                if self._wanted:
                    raise
                missing = self._nowhere(target)
                raise DataMissing(
                    f"{missing.message}; {error.message}", subject=missing.subject, hint=error.hint
                ) from error
        return self._sources

    def _nowhere(self, target: Target) -> DvkError:
        asked, apology = (self._sources.asked, self._sources.apology) if self._sources is not None else ([], "")
        rev = target.commit or "HEAD"
        return nowhere(self.repo, target.path, target.pointer, asked, rev=rev, apology=apology)


def from_here(entries: Entries, inner: bytes) -> Entries:
    """The same entries as they are called from `inner` on; the one of exactly that name has none left."""
    names = Names.of(name[len(inner) + 1 :] for name in entries.names) if inner else entries.names
    return Entries(names, entries.kinds, entries.sizes, entries.ids, entries.targets)


def own_pointer(target: Target, entries: Entries) -> Pointer:
    """The pointer that a target would have as a tracked path of its own, from what `from_here` says. Reads no content.

    Raises:
        Refused: it is a link.
    """
    if len(entries) == 1 and not entries.names[0] and int(entries.kinds[0]) != Kind.EMPTYDIR:
        if int(entries.kinds[0]) == Kind.LINK:
            raise Refused(
                f"is a link to {show(entries.targets[0])}", subject=target.shown, hint="name what it leads to"
            )
        executable = int(entries.kinds[0]) == Kind.EXEC
        return Pointer("file", entries.ids[0].tobytes(), int(entries.sizes[0]), exec=executable)
    if len(entries) == 1 and not entries.names[0]:
        entries = Entries.empty()
    root = write_listing(entries, lambda _name, _page: None)
    return Pointer("dir", bytes(root.id), root.total_bytes, files=root.files)


def _folder(target: Target) -> str:
    rev = "" if target.rev is None else f"{target.rev}:"
    return f"{rev}{show(target.path)}"
