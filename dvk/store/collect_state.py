"""What a clone remembers of its own collections of one remote: a small file, replaced durably, one process at a time.

with open_state(folder, store_id) as memory:
    memory.state.packs, memory.save()
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from dvk.backend.disk import OPEN_DIR, locked_folder, make_durable_dirs, sync_fd, translate
from dvk.errors import Corrupt

_FORMAT = 2
_READ = (1, 2)  # 1 had neither `runs` nor `home`


class State(Struct):
    """Everything that is remembered. `list_key` is empty while nothing is condemned."""

    list_key: str = ""
    condemned_at: int = 0
    packs: list[str] = field(default_factory=list)
    retired: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)  #: roots of those that were not wanted
    policy: dict[str, Any] = field(default_factory=dict)  #: what the collection was asked for
    seen: dict[str, int] = field(default_factory=dict)  #: packs that no record names: when we saw them first
    live: list[str] = field(default_factory=list)  #: confirmed records at the last look
    runs: list[str] = field(default_factory=list)  #: lists that sweeps published for themselves and did not remove
    home: str = ""  #: where those sweeps ran

    def clear(self) -> None:
        """Nothing is condemned by this clone any more."""
        self.list_key, self.condemned_at = "", 0
        self.packs, self.retired, self.unwanted, self.policy, self.runs = [], [], [], {}, []


class Memory(Struct):
    """The state, and where it is kept."""

    path: str
    state: State

    def save(self) -> None:
        """Replace the file.

        Raises:
            StorageError, StorageFull: it is what it was.
        """
        temporary = f"{self.path}.{secrets.token_hex(8)}.tmp"
        with translate(self.path):
            try:
                with open(temporary, "x", encoding="ascii") as file:
                    json.dump({"format": _FORMAT, **asdict(self.state)}, file)
                    file.flush()
                    sync_fd(file.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            fd = os.open(os.path.dirname(self.path), OPEN_DIR)
            try:
                sync_fd(fd)
            finally:
                os.close(fd)


@contextmanager
def open_state(folder: str, store: str) -> Iterator[Memory]:
    """The memory of one remote store, held alone.

    Raises:
        Corrupt: the file is damaged. StorageError: it cannot be read or locked.
    """
    place = os.path.join(folder, store)
    with translate(place):
        make_durable_dirs(place)
        # Not the folder itself: the list of confirmed roots beside it has that lock, and repacking pushes.
        fd = os.open(os.path.join(place, "collect.lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with locked_folder(fd):
            path = os.path.join(place, "collect.json")
            memory = Memory(path, _load(path))
            # A clone that was copied has a copy of this file. A sweep of the original may be under way with its list
            # up; only where that sweep ran, the lock says that it is over. What it left is no business of a copy.
            place_now = os.fstat(fd)
            home = f"{place_now.st_dev}:{place_now.st_ino}"
            if memory.state.home != home:
                memory.state.home, memory.state.runs = home, []
            yield memory
    finally:
        os.close(fd)


def _load(path: str) -> State:
    try:
        with open(path, encoding="ascii") as file:
            raw = json.load(file)
        if raw.pop("format") not in _READ:
            raise ValueError("format")
        return State(**raw)
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Corrupt(
            "what this clone remembers of its garbage collection is damaged",
            subject=path,
            hint="remove the file; a condemned list that it knew stays and only makes pushes send more",
        ) from error
