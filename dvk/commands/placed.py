"""Which version of each tracked path this worktree last had from dvk: what a checkout may take away again.

A file that was part of that version and is unchanged was put there (or recorded) by dvk; any other file in a folder
is the user's own, whatever its name. A checkout that is killed leaves files of two versions, so the one that it was
on its way to is remembered before the first file appears. Losing this record costs nothing but tidiness: without it
nothing is deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from dvk.backend.disk import sync_fd, translate
from dvk.store.names import show
from dvk.workspace import git_moved
from dvk.workspace.pointer import Pointer

_VERSION = 1
_MAX_BEGUN = 4  # runs that were killed one after the other, each on its way to another version


class Placed:
    """Path -> pointer of the version that was last added or checked out, in one small file of the worktree.

    Beside it the versions that were begun since, in the order of their beginning, until one of them is there.
    """

    def __init__(self, state_dir: bytes) -> None:
        self._path = os.path.join(state_dir, b"placed.json")

    def read(self) -> dict[bytes, Pointer]:
        """All that are there; empty when there is no record or it is damaged.

        Raises:
            StorageError: there is one, and the disk does not give it out.
        """
        with translate(show(self._path)):
            return self._read()[0]

    def versions(self) -> dict[bytes, tuple[Pointer, ...]]:
        """Of which versions files may be there: the one that was there last, and those that were begun since.

        Raises:
            StorageError: as `read`.
        """
        with translate(show(self._path)):
            placed, begun = self._read()
        out: dict[bytes, tuple[Pointer, ...]] = {path: (pointer,) for path, pointer in placed.items()}
        for path, pointers in begun.items():
            out[path] = (*out.get(path, ()), *pointers)
        return out

    def begun(self) -> set[bytes]:
        """The paths on which a run was at work that did not come to its end."""
        return set(self._read()[1])

    def begin(self, pointers: Mapping[bytes, Pointer]) -> None:
        """Remember what is about to be put there. A failure to write is not an error: see above."""

        def change(placed: dict[bytes, Pointer], begun: dict[bytes, tuple[Pointer, ...]]) -> None:
            for path, pointer in pointers.items():
                known = begun.get(path, ())
                if (small := bare(pointer)) not in (placed.get(path), *known):
                    begun[path] = (*known, small)[-_MAX_BEGUN:]

        self._change(change)

    def update(self, changes: Mapping[bytes, Pointer | None]) -> None:
        """Remember what is there, or forget (None) paths. A failure to write is not an error: see above."""

        def change(placed: dict[bytes, Pointer], begun: dict[bytes, tuple[Pointer, ...]]) -> None:
            for path, pointer in changes.items():
                begun.pop(path, None)
                if pointer is None:
                    placed.pop(path, None)
                else:
                    placed[path] = bare(pointer)

        self._change(change)

    def _read(self) -> tuple[dict[bytes, Pointer], dict[bytes, tuple[Pointer, ...]]]:
        try:
            with open(self._path, encoding="ascii") as file:
                raw = json.load(file)
            if raw["version"] != _VERSION:
                return {}, {}
            placed = {bytes.fromhex(path): _parse(row) for path, row in raw["paths"].items()}
            begun = {bytes.fromhex(path): tuple(map(_parse, rows)) for path, rows in raw.get("begun", {}).items()}
        except (FileNotFoundError, NotADirectoryError):
            return {}, {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}, {}
        # Any other refusal of the disk is no lost record: what is written on top of it would lose the rest.
        return placed, begun

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the record at the same time, where the filesystem has locks."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        fd = os.open(self._path + b".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _change(self, change: Callable[[dict[bytes, Pointer], dict[bytes, tuple[Pointer, ...]]], None]) -> None:
        try:
            with self._alone():
                placed, begun = self._read()
                before = dict(placed), dict(begun)
                change(placed, begun)
                if (placed, begun) != before:
                    # What hooks found in step is another thing now: see `dvk.workspace.git_moved`.
                    git_moved.forget(os.path.dirname(self._path))
                    self._write(placed, begun)
        except OSError:
            return

    def _write(self, placed: Mapping[bytes, Pointer], begun: Mapping[bytes, tuple[Pointer, ...]]) -> None:
        raw = {
            "version": _VERSION,
            "paths": {p.hex(): _row(x) for p, x in sorted(placed.items())},
            "begun": {p.hex(): [_row(x) for x in xs] for p, xs in sorted(begun.items())},
        }
        temporary = self._path + b"." + secrets.token_hex(8).encode() + b".tmp"
        try:
            with open(temporary, "x", encoding="ascii") as file:
                json.dump(raw, file)
                file.flush()
                # Or a power cut leaves an empty record, and the next checkout leaves files of other versions.
                sync_fd(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def bare(pointer: Pointer) -> Pointer:
    """Without where it came from, which is nobody's business here."""
    return Pointer(pointer.kind, pointer.id, pointer.size, pointer.files, pointer.exec)


def _row(pointer: Pointer) -> tuple[str, str, int, int | None, bool]:
    return pointer.kind, pointer.id.hex(), pointer.size, pointer.files, pointer.exec


def _parse(row: tuple[Literal["file", "dir"], str, int, int | None, bool]) -> Pointer:
    kind, name, size, files, executable = row
    return Pointer(kind, bytes.fromhex(name), size, files=files, exec=executable)
