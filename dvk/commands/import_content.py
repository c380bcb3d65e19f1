"""Bringing data of elsewhere into our store, for `import` and `update`: content, proven, and the pointer for it.

    content = Content(repo, on_event)
    made = content.from_url(b"data/iris.csv", url)              # nothing of the workspace is touched
    made = content.from_repo(b"best.pt", there, target, source)

From the remote of another repository blocks are taken as they are. What has to be taken apart first (a part of a
folder, what only the other clone's own store has, a download) goes through a scratch folder and is cut as ours is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dvk.backend.locate import RemoteSettings, RemoteUrl, open_origin, parse_remote_url
from dvk.commands.elsewhere import Elsewhere
from dvk.commands.get import get
from dvk.commands.pull import FetchResult, fetch_targets
from dvk.commands.reader import Reader, from_here, own_pointer
from dvk.commands.repo import Repo, root_of
from dvk.commands.spec import Target
from dvk.commands.tracked import Look
from dvk.errors import Corrupt, one_or_many
from dvk.events import OnEvent
from dvk.ids import ID_BYTES
from dvk.store.fetch import Wanted, is_here
from dvk.store.ingest import ingest
from dvk.store.listing import Kind
from dvk.store.names import show
from dvk.store.pagewriter import write_listing
from dvk.store.writer import Writer
from dvk.workspace.pointer import Pointer
from dvk.workspace.provenance import FromRepo, FromUrl, provenance_of
from dvk.workspace.scan import scan_file, scan_folder
from dvk.workspace.source import SourceFiles

_PREFIX = b"import-"


class Imported(Struct, frozen=True):
    """One path, and what became of it."""

    path: bytes
    source: str  #: for people: the URL, or repository and REV:PATH
    state: str  #: "imported", "updated", "unchanged", "recorded" (same content, other source), "changed" (dry run)
    kind: str = ""  #: "file" or "dir"; empty while it is not known
    size: int | None = None
    files: int | None = None
    id: bytes | None = None
    version: str = ""  #: the commit there, or what the server calls this version
    new_bytes: int = 0  #: content that the local store did not have
    requests: int = 0  #: how often the place was asked, for a URL


class Made(Struct, frozen=True):
    """A path whose content is in the store; `pointer` None: nothing to write."""

    told: Imported
    pointer: Pointer | None = None
    old: Pointer | None = None


class Content:
    """Gets content into the store of `repo`. Changes nothing else."""

    def __init__(self, repo: Repo, on_event: OnEvent) -> None:
        self.repo, self.ws, self.on_event = repo, repo.workspace, on_event

    def from_repo(
        self,
        path: bytes,
        there: Elsewhere,
        target: Target,
        source: FromRepo,
        *,
        old: Pointer | None = None,
        dry_run: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> Made:
        """The content of a target of another repository, in our store, and the pointer for it.

        Args:
            old: the pointer that is here; what did not change is not brought.
            ready: called before content is brought; may raise.
        """
        with Reader(there.repo, on_event=self.on_event) as reader:
            entries = from_here(reader.entries(target), target.inner) if target.inner else None
        pointer = replace(target.pointer, source=()) if entries is None else own_pointer(target, entries)
        if old is not None and old.id == pointer.id and old.exec == pointer.exec:
            then = provenance_of(old, subject=show(path))
            same = isinstance(then, FromRepo) and (then.repo, then.path, then.rev) == (
                source.repo,
                source.path,
                source.rev,
            )
            state = "unchanged" if same else "recorded"
            row = told(path, str(source), state, pointer, source.commit)
            return Made(row, None if same else replace(pointer, source=source.lines), old)
        new = replace(pointer, source=source.lines)
        if dry_run:
            return Made(told(path, str(source), "changed", new, source.commit))
        ready()
        gained = self._bring(there, target, path, pointer)
        state = "imported" if old is None else "updated"
        return Made(told(path, str(source), state, new, source.commit, new_bytes=gained), new, old)

    def _bring(self, there: Elsewhere, target: Target, path: bytes, pointer: Pointer) -> int:
        """Get content into our store; how much was new in it.

        Raises:
            DataMissing: it is nowhere. Corrupt: something else came.
        """
        if is_here(self.repo.store, Wanted(root_of(pointer), (b"",), show(path))):
            return 0
        whole = Wanted(root_of(target.pointer), (b"",), target.shown)
        theirs = there.repo.workspace.store_dir != self.ws.store_dir and is_here(there.repo.store, whole)
        if not target.inner and not theirs:
            # Straight into our store, as it is on their remote: nothing is decoded twice.
            ours = Repo.over(
                replace(there.repo.workspace, store_dir=self.ws.store_dir),
                cwd=there.repo.cwd,
                environ=self.repo.environ,
                store=self.repo.store,
            )
            ours.elsewhere = there.url
            out = FetchResult()
            fetch_targets(ours, [(target.path, (), target.pointer)], out, None, self.on_event)
            if out.failures:
                raise out.failures[0]
            return out.new_bytes
        with _scratch(self.repo) as folder:
            get(there.repo, there.spec(target.full), os.path.join(folder, b"data"), on_event=self.on_event)
            found, gained = self._store(folder, path, self.on_event)
        if (found.kind, found.id, found.size) != (pointer.kind, pointer.id, pointer.size):
            raise Corrupt("is not what its pointer says", subject=target.shown, hint="`dvk verify` in that repository")
        return gained

    def from_url(
        self,
        path: bytes,
        url: RemoteUrl,
        *,
        old: Pointer | None = None,
        dry_run: bool = False,
        ready: Callable[[], None] = lambda: None,
    ) -> Made:
        """The content at a URL, in our store, and the pointer for it. Arguments as `from_repo`."""
        origin = open_origin(url, settings=self._settings(url), environ=self.repo.environ)
        try:
            if old is not None or dry_run:
                mark = origin.look()
                version = _version(FromUrl(str(url), mark))
                then = provenance_of(old, subject=show(path)) if old is not None else None
                if old is not None and isinstance(then, FromUrl) and then.mark.same(mark):
                    row = told(path, str(url), "unchanged", old, version)
                    return Made(replace(row, requests=origin.requests))
                if dry_run:
                    asked = origin.requests
                    return Made(Imported(path, str(url), "changed", size=mark.size, version=version, requests=asked))
            ready()
            with _scratch(self.repo) as folder:
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    mark = origin.take(fd, b"data", on_event=self.on_event)
                finally:
                    os.close(fd)
                pointer, gained = self._store(folder, path, self.on_event)
        finally:
            origin.close()
        source = FromUrl(str(url), mark)
        new = replace(pointer, source=source.lines)
        state = "imported" if old is None else "recorded" if old.id == new.id else "updated"
        row = told(path, str(url), state, new, _version(source), new_bytes=gained, requests=origin.requests)
        return Made(row, new, old)

    def _settings(self, url: RemoteUrl) -> RemoteSettings:
        """How to reach a bucket: as the remote of ours that lies in it."""
        for remote in self.ws.config.remotes().values():
            known = parse_remote_url(remote.url)
            if (known.scheme, known.authority) == (url.scheme, url.authority):
                return remote.settings
        return RemoteSettings()

    def _store(self, folder: bytes, path: bytes, on_event: OnEvent) -> tuple[Pointer, int]:
        """Store what is `data` in a folder of ours; its pointer, and how much was new."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            is_dir = os.path.isdir(os.path.join(folder, b"data"))
            scan = scan_folder(fd, b"data") if is_dir else scan_file(fd, b"data")
            if scan.problems:
                raise one_or_many("some of it cannot be stored; nothing was recorded", scan.problems)
            n = len(scan)
            seen = Look(
                b"data",
                "dir" if is_dir else "file",
                scan,
                np.zeros(n, np.bool_),
                np.zeros((n, ID_BYTES), np.uint8),
            )
            index = seen.unknown()
            with Writer(self.repo.store) as writer:
                with SourceFiles(fd, b"data", scan, index) as source:
                    profile = self.ws.config.profile_for(path)
                    ids = ingest(writer, source, scan.stats.sizes[index], profile=profile, on_event=on_event)
                entries = seen.with_ids(index, ids).entries()
                if is_dir:
                    root = write_listing(entries, writer.add_page)
                    pointer = Pointer("dir", bytes(root.id), root.total_bytes, files=root.files)
                else:
                    executable = int(entries.kinds[0]) == Kind.EXEC
                    pointer = Pointer("file", entries.ids[0].tobytes(), int(entries.sizes[0]), exec=executable)
                writer.flush()
                return pointer, writer.written.new_bytes
        finally:
            os.close(fd)


def told(
    path: bytes, source: str, state: str, pointer: Pointer, version: str, *, new_bytes: int = 0, requests: int = 0
) -> Imported:
    """The row of a path whose pointer is known."""
    return Imported(
        path, source, state, pointer.kind, pointer.size, pointer.files, pointer.id, version, new_bytes, requests
    )


def _version(source: FromUrl) -> str:
    mark = source.mark
    return mark.version or mark.etag or mark.modified


@contextlib.contextmanager
def _scratch(repo: Repo) -> Iterator[bytes]:
    """A folder of our own for content on its way; what a killed run left is removed."""
    base = repo.state
    os.makedirs(base, mode=0o755, exist_ok=True)
    with os.scandir(base) as rows:
        for row in rows:
            if row.name.startswith(_PREFIX):
                with contextlib.suppress(OSError), _locked(os.path.join(base, row.name)):
                    shutil.rmtree(os.path.join(base, row.name))
    with contextlib.ExitStack() as held:
        folder = _new_folder(base, held)
        held.callback(_remove, folder)
        yield folder


def _remove(folder: bytes) -> None:
    with contextlib.suppress(OSError):  # older ones of Python close a handle again whose close failed
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder(base: bytes, held: contextlib.ExitStack) -> bytes:
    """A new folder, locked for as long as `held` is."""
    while True:
        folder = os.path.join(base, _PREFIX + secrets.token_hex(8).encode())
        os.mkdir(folder, 0o700)
        try:
            held.enter_context(_locked(folder))
            os.stat(folder)
            return folder
        except (FileNotFoundError, BlockingIOError):
            held.close()  # another import, which begins just now, took it for a leftover before it was locked


@contextlib.contextmanager
def _locked(folder: bytes) -> Iterator[None]:
    """Hold a folder, so that nobody takes it for a leftover; BlockingIOError when somebody does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
