"""What the tests of sync share: stores filled with tiny chunks, what a store gives back, remotes that can be watched.

Chunks are given as they are, not cut from files, so that a file of many leaves takes kilobytes; `small_pages` shrinks
the limits of lists in the same way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from storekit import PROFILE, b3, noise

from dvk.backend.contract import Backend, Buffer, Listed
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.errors import DvkError
from dvk.events import Event, Note
from dvk.ids import FileId, PageId
from dvk.store import locator, pack, packwriter, pages, pagewriter, push_known, push_sections
from dvk.store.content import StoreContent
from dvk.store.fetch import Wanted, fetch, is_here
from dvk.store.listing import Entries, Kind
from dvk.store.locator import locator_key
from dvk.store.pack import RecipeRow
from dvk.store.pages import Chunks, ListKind, read_entries
from dvk.store.pagewriter import ListWriter, write_listing
from dvk.store.push import Pushed, Version, push
from dvk.store.record import Record, parse_record, record_key
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.roots import is_live
from dvk.store.store import Store, as_column
from dvk.store.stream import iter_file
from dvk.store.writer import Writer

EMPTY = object()  #: an empty directory


@dataclass(frozen=True)
class Link:
    target: bytes


@dataclass(frozen=True)
class Exec:
    pieces: tuple[bytes, ...]


@dataclass(frozen=True)
class Cut:
    """A file under a profile of its own."""

    pieces: tuple[bytes, ...]
    profile: str


Tree = Mapping[bytes, Any]  #: path -> chunks of a file, Exec, Cut, Link or EMPTY


def chunks(label: object, count: int, size: int = 60) -> tuple[bytes, ...]:
    """`count` different chunks of about `size` bytes."""
    return tuple(noise((label, i), size + i % 7) for i in range(count))


def small_pages(monkeypatch: pytest.MonkeyPatch, *, inline_chunks: int = 6) -> None:
    """Lists end pages after 8 to 16 entries, and files of more than `inline_chunks` stand on their own."""
    monkeypatch.setattr(pages, "MIN_ENTRIES", 8)
    monkeypatch.setattr(pages, "MAX_ENTRIES", 16)
    monkeypatch.setattr(pagewriter, "MIN_ENTRIES", 8)
    monkeypatch.setattr(pagewriter, "MAX_ENTRIES", 16)
    monkeypatch.setattr(pagewriter, "_CUT_BELOW", (1 << 64) // 6)
    monkeypatch.setattr(push_known, "MIN_ENTRIES", 8)
    monkeypatch.setattr(push_sections, "MAX_INLINE_CHUNKS", inline_chunks)
    monkeypatch.setattr(locator, "MAX_INLINE_CHUNKS", inline_chunks)


def small_packs(monkeypatch: pytest.MonkeyPatch, size: int = 4096) -> None:
    """Packs are full after `size` bytes, and blocks after a tenth of that."""
    monkeypatch.setattr(pack, "TARGET_PACK_BYTES", size)
    monkeypatch.setattr(packwriter, "MAX_BLOCK_BYTES", max(200, size // 10))
    monkeypatch.setattr(packwriter, "_SMALL_BLOCK_BYTES", max(100, size // 20))


def never_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections stay in page packs, as those of big lists do."""
    monkeypatch.setattr(locator, "INLINE_BYTES", 0)
    monkeypatch.setattr(push_sections, "_NESTED_INLINE_BYTES", 0)


# ---------------------------------------------------------------- in and out


def add_file(store: Store, pieces: Sequence[bytes], *, profile: str = PROFILE) -> Root:
    """A file of these chunks, as `ingest` would leave it."""
    with Writer(store) as writer:
        root = _write_file(writer, pieces, profile)
        writer.flush()
    return root


def add_files(store: Store, files: Sequence[Sequence[bytes]]) -> list[Root]:
    """Several files, written together."""
    with Writer(store) as writer:
        roots = [_write_file(writer, pieces, PROFILE) for pieces in files]
        writer.flush()
    return roots


def _write_file(writer: Writer, pieces: Sequence[bytes], profile: str) -> Root:
    data = b"".join(pieces)
    root = Root(FILE, b3(data), len(data))
    if pieces:
        writer.add_chunks([b3(p) for p in pieces], [len(p) for p in pieces], memoryview(data))
    if len(pieces) > 1:
        recipe = ListWriter(ListKind.RECIPE, writer.add_page)
        recipe.add(Chunks(as_column(map(b3, pieces)), np.array([len(p) for p in pieces], np.uint32)))
        writer.add_recipe(RecipeRow(root.id, recipe.finish().id, root.size, profile))
    return root


def add_folder(store: Store, tree: Tree) -> Root:
    """A folder of these entries."""
    with Writer(store) as writer:
        root = _write_folder(writer, tree)
        writer.flush()
    return root


def _write_folder(writer: Writer, tree: Tree) -> Root:
    rows: list[tuple[bytes, Kind, int, bytes, bytes]] = []
    for name, what in tree.items():
        if isinstance(what, Link):
            rows.append((name, Kind.LINK, len(what.target), bytes(32), what.target))
        elif what is EMPTY:
            rows.append((name, Kind.EMPTYDIR, 0, bytes(32), b""))
        else:
            profile = what.profile if isinstance(what, Cut) else PROFILE
            pieces = what if isinstance(what, tuple) else what.pieces
            file = _write_file(writer, pieces, profile)
            rows.append((name, Kind.EXEC if isinstance(what, Exec) else Kind.FILE, file.size, file.id, b""))
    ref = write_listing(Entries.of(rows), writer.add_page)
    return Root(FOLDER, ref.id, ref.total_bytes, ref.files)


def meant(what: Any) -> Any:
    """What `content` gives back for a tree or a file's chunks."""
    if isinstance(what, Mapping):
        return {name: meant(x) if not isinstance(x, Exec) else (meant(x.pieces),) for name, x in what.items()}
    if isinstance(what, Link) or what is EMPTY:
        return what
    return b"".join(what.pieces if isinstance(what, Cut) else what)


def content(store: Store, root: Root, under: bytes = b"") -> Any:
    """All of a root as a store gives it back, proven: bytes of a file, or path -> bytes, (bytes,), Link, EMPTY."""
    if root.kind == FILE:
        return _read(store, root.id, root.size)
    entries = read_entries(PageId(root.id), store.load_page, under=under)
    targets = iter(entries.targets)
    out: dict[bytes, Any] = {}
    for i, name in enumerate(entries.names):
        kind = Kind(int(entries.kinds[i]))
        if kind is Kind.LINK:
            out[name] = Link(next(targets))
        elif kind is Kind.EMPTYDIR:
            out[name] = EMPTY
        else:
            data = _read(store, entries.ids[i].tobytes(), int(entries.sizes[i]))
            out[name] = (data,) if kind is Kind.EXEC else data
    return out


def _read(store: Store, name: bytes, size: int) -> bytes:
    data = b"".join(bytes(x) for x in iter_file(StoreContent(store), FileId(name), size, subject=name.hex()[:8]))
    assert b3(data) == name and len(data) == size
    return data


# ---------------------------------------------------------------- sync


@dataclass
class Remote:
    """A remote in memory, with its backend bare and as a store that counts."""

    inner: Backend = field(default_factory=lambda: MemoryBackend("remote"))

    def __post_init__(self) -> None:
        self.counting = CountingBackend(self.inner, keep_calls=True)

    @property
    def store(self) -> Store:
        """A store as a new process would open it."""
        return Store(self.counting)

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(item.key for item in self.inner.list(prefix))

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        return {key: self.inner.get(key, max_bytes=1 << 30) for key in self.keys(prefix)}

    def record(self, rid: bytes) -> Record:
        return parse_record(self.inner.get(record_key(rid), max_bytes=1 << 30), subject="")

    def locator(self, root: Root) -> locator.Locator:
        data = self.inner.get(locator_key(root.kind, root.id), max_bytes=1 << 30)
        return locator.parse_locator(data, kind=root.kind, wanted=root.id, subject="")

    def is_live(self, rid: bytes) -> bool:
        return is_live(self.inner, rid)


def new_store() -> Store:
    return Store(MemoryBackend("local"))


def send(local: Store, remote: Store, state: Any, *versions: Version | Root, **settings: Any) -> Pushed:
    """Push and expect that everything went."""
    done = push(local, remote, [v if isinstance(v, Version) else Version(v) for v in versions], str(state), **settings)
    assert not done.absent, done.absent
    return done


def arrives(remote: Backend, root: Root, what: Any, *, into: Store | None = None, under: bytes = b"") -> Store:
    """Fetch a root into a store (an empty one), and expect it whole, without notes and equal to `what`."""
    local = into or new_store()
    wanted = Wanted(root, (under,))
    heard = Heard()
    done = fetch(Store(remote), local, [wanted], on_event=heard)
    assert not done.failures, done.failures
    assert not heard.notes, heard.notes
    assert is_here(local, wanted)
    assert content(local, root, under) == meant(what)
    return local


def check_honest(local: Store, root: Root, what: Any) -> bool:
    """Whether a store says that it holds a root; fails if it says so and cannot give it back."""
    here = is_here(local, Wanted(root))
    if here:
        assert content(local, root) == meant(what)
    return here


class Heard:
    """Keeps the notes that work emits."""

    def __init__(self) -> None:
        self.notes: list[Note] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event)


class Around(Backend):
    """A backend around another one; subclasses change what they are about."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.name = inner, inner.name
        self.lock = threading.RLock()

    @property
    def capabilities(self) -> Any:  # type: ignore[override]
        return self.inner.capabilities

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self.inner.put(key, parts, create_only=create_only)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self.inner.get(key, max_bytes=max_bytes)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        return self.inner.get_range(key, offset, length)

    def stat(self, key: str) -> int | None:
        return self.inner.stat(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self.inner.delete(key)


class Before(Around):
    """Does something once, right before the first operation that a test names."""

    def __init__(self, inner: Backend, when: Callable[[str, str], bool], do: Callable[[], None]) -> None:
        super().__init__(inner)
        self._when, self._do, self.done = when, do, False

    def _look(self, operation: str, key: str) -> None:
        with self.lock:
            if not self.done and self._when(operation, key):
                self.done = True
                self._do()

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self._look("put", key)
        super().put(key, parts, create_only=create_only)

    def get(self, key: str, *, max_bytes: int) -> bytes:
        self._look("get", key)
        return super().get(key, max_bytes=max_bytes)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        self._look("get_range", key)
        return super().get_range(key, offset, length)

    def stat(self, key: str) -> int | None:
        self._look("stat", key)
        return super().stat(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        self._look("list", prefix)
        return super().list(prefix)


def dvk_error(work: Callable[[], Any]) -> DvkError | None:
    """The error of `work`, which must be one that dvk raises on purpose and that says what it is about."""
    try:
        work()
    except DvkError as error:
        assert error.message
        return error
    return None


def leaves_of(store: Store, root: Root) -> list[bytes]:
    return [r.id for r in pages.leaf_refs(ListKind.LISTING, PageId(root.id), store.load_page)]
