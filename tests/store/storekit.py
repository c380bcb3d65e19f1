"""What the tests of the store share: vectors, mutations, sources of files, sinks for files, and small stores."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from dvk.backend.contract import Backend
from dvk.errors import ChangedWhileRead, DvkError, NotFound, StorageError
from dvk.store.content import StoreContent
from dvk.store.ingest import ingest
from dvk.store.pack import PackBuilder, PackKind, pack_key, parse_footer_of
from dvk.store.restore import restore
from dvk.store.store import Store
from dvk.store.writer import Writer

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "docs" / "format" / "vectors"
PROFILE = "cdc-64k"


def b3(data: bytes) -> bytes:
    return blake3(data).digest()


def noise(label: object, size: int) -> bytes:
    """Bytes that no codec shrinks, the same for the same label."""
    return blake3(repr(label).encode()).digest(size)


def words(label: object, size: int) -> bytes:
    """Bytes that zstd shrinks, with content all along."""
    lines = b"".join(b"%d,%s\n" % (i, noise((label, i), 4).hex().encode()) for i in range(size // 12 + 1))
    return lines[:size]


# ---------------------------------------------------------------- vectors


@functools.cache
def script() -> ModuleType:
    """scripts/make_vectors.py as a module."""
    spec = importlib.util.spec_from_file_location("make_vectors", ROOT / "scripts" / "make_vectors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vectors(name: str, of: str = "") -> tuple[list[Any], list[Any]]:
    """The (accepted, refused) vectors of a format, as pytest parameters."""
    document = json.loads((VECTORS / name / "vectors.json").read_text())

    def some(rows: list[dict[str, Any]]) -> list[Any]:
        return [pytest.param(r, id=r["name"]) for r in rows if not of or r["of"] == of]

    return some(document["accept"]), some(document["refuse"])


def flips(data: bytes) -> Iterator[bytes]:
    """`data` with each of its bits turned over, one at a time."""
    for i in range(len(data)):
        for bit in range(8):
            yield data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :]


def mutate(data: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Cut out and put in at some places: (place, bytes to cut, bytes to put in), places taken modulo the length."""
    for place, cut, new in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + cut :]
    return data


def only_dvk_errors(read: Callable[[], object]) -> object | None:
    """The result of `read`, or None for an error of ours; anything else escapes and fails the test."""
    try:
        return read()
    except DvkError:
        return None


# ---------------------------------------------------------------- files in and out


class Bytes:
    """A source of files that are given as bytes, through real descriptors."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents = contents

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([len(c) for c in self.contents], np.int64)

    def open(self, i: int) -> int:
        fd = os.memfd_create("file") if hasattr(os, "memfd_create") else _unlinked()
        view = memoryview(self.contents[i])
        while view:
            view = view[os.write(fd, view) :]
        return fd

    def recheck(self, i: int, fd: int) -> None:
        pass

    def read_run(self, files: np.ndarray[Any, np.dtype[np.int64]], into: memoryview) -> int:
        """All up to the next file whose number divides by three: those are looked at by themselves."""
        if type(self) is not Bytes:
            return 0  # who changes how a file is opened means that
        at = 0
        for done, i in enumerate(files.tolist()):
            if i % 3 == 0:
                return done
            into[at : at + len(self.contents[i])] = self.contents[i]
            at += len(self.contents[i])
        return len(files)

    def show(self, i: int) -> str:
        return f"file-{i}"


def _unlinked() -> int:
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Paths:
    """A source of files on disk that compares them before and after, as the workspace does."""

    def __init__(self, paths: Sequence[Path], *, on_open: Callable[[int, Path], None] = lambda i, p: None) -> None:
        self.paths = paths
        self.on_open = on_open
        self._seen = [self._stat(os.stat(p)) for p in paths]

    @property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([s[0] for s in self._seen], np.int64)

    @staticmethod
    def _stat(s: os.stat_result) -> tuple[int, int, int, int]:
        return s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino

    def open(self, i: int) -> int:
        try:
            fd = os.open(self.paths[i], os.O_RDONLY)
        except FileNotFoundError as e:
            raise NotFound("vanished", subject=self.show(i)) from e
        except OSError as e:
            raise StorageError(f"cannot be read ({e.strerror})", subject=self.show(i)) from e
        self.on_open(i, self.paths[i])
        return fd

    def recheck(self, i: int, fd: int) -> None:
        if self._stat(os.fstat(fd)) != self._seen[i]:
            raise ChangedWhileRead("it changed while it was read", subject=self.show(i))

    def read_run(self, files: np.ndarray[Any, np.dtype[np.int64]], into: memoryview) -> int:
        return 0  # `on_open` is to hear of each

    def show(self, i: int) -> str:
        return self.paths[i].name


class Folder:
    """A sink that writes to a folder; what is not finished is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(exist_ok=True)
        self.created = self.finished = self.discarded = 0
        self._lock = threading.Lock()

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    def create(self, index: int) -> int:
        self._count("created")
        return os.open(self.path / f"{index}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def finish(self, index: int, fd: int) -> None:
        self._count("finished")
        os.close(fd)
        os.rename(self.path / f"{index}.tmp", self.path / str(index))

    def discard(self, index: int, fd: int) -> None:
        self._count("discarded")
        os.close(fd)
        os.unlink(self.path / f"{index}.tmp")

    def read(self) -> dict[int, bytes]:
        """All that is there; fails on a temporary file."""
        return {int(p.name): p.read_bytes() for p in self.path.iterdir()}


# ---------------------------------------------------------------- stores


def add(store: Store, contents: Sequence[bytes], **settings: Any) -> tuple[Any, Any]:
    """Ingest and flush; ids and what was written."""
    source = Bytes(contents)
    with Writer(store) as writer:
        ids = ingest(writer, source, source.sizes, profile=PROFILE, **settings)
        writer.flush()
    return ids, writer.written


def get(
    store: Store, ids: Any, sizes: Any, folder: Path, **settings: Any
) -> tuple[dict[int, bytes], dict[int, DvkError]]:
    """Restore; what arrived, and the errors of the rest."""
    sink = Folder(folder)
    failed = restore(StoreContent(store), ids, sizes, sink, **settings)
    return sink.read(), dict(failed)


def make_pack(chunks: Sequence[bytes], *, label: int = 0, per_block: int = 3) -> tuple[bytes, bytes]:
    """Name and bytes of a data pack."""
    builder = PackBuilder(PackKind.DATA, nonce=noise(("nonce", label), 16))
    for i in range(0, len(chunks), per_block):
        group = chunks[i : i + per_block]
        raw = b"".join(group)
        lengths = np.array([len(c) for c in group], np.uint32)
        builder.add_block(0, raw, len(raw), ids=b"".join(map(b3, group)), lengths=lengths)
    name, parts = builder.finish()
    return name, b"".join(parts)


def put_pack(store: Store, name: bytes, data: bytes) -> None:
    """What a writer does once a pack is full."""
    footer = parse_footer_of(data)
    store.backend.put(pack_key(footer.kind, name), [data])
    store.adopt([(name, footer)])


def column(chunks: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(map(b3, chunks)), np.uint8).reshape(-1, 32)


def keys(backend: Backend, prefix: str = "") -> list[str]:
    return sorted(item.key for item in backend.list(prefix))
