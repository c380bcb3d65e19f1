"""What is known about records on a remote: which are live, and which roots this clone saw confirmed.

A push asks the remote; `status` only reads the list of confirmed roots that this clone keeps, since it never uses the
network.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TypeVar

from dvk.backend.contract import Backend, KeyMissing
from dvk.backend.disk import OPEN_DIR, locked_folder, make_durable_dirs, storage_error, sync_fd, translate
from dvk.errors import Corrupt, FormatError
from dvk.store.record import MAX_BYTES, Record, parse_record, record_id, record_key

_T = TypeVar("_T")

_LINE = re.compile(r"([fd]:[0-9a-f]{64}) ([0-9a-f]{64})")
_RECORD_KEY = re.compile(r"j/([0-9a-f]{64})")
#: One question after another leads through the bases of bases.
_BASES_AT_MOST = 64
#: Likewise. After so many steps one by one, a listing shows all records, and so many are read in parallel.
_STEPS_AT_MOST = 256
_STEPS_ONE_BY_ONE = 8
_READ_AHEAD_AT_MOST = 2000
_HEADER = "dvk confirmed roots 1"


def is_live(remote: Backend, rid: bytes) -> bool:
    """Whether a record can be relied on: it exists, is confirmed, not retired and never given up. One listing."""
    return _look(remote, rid)[0]


def _look(remote: Backend, rid: bytes) -> tuple[bool, float | None]:
    """Whether a record is live, and when the storage says that it came, where it does."""
    key = record_key(rid)
    seen = {item.key: item.modified_s for item in remote.list(key)}
    return key in seen and key + ".ok" in seen and not {key + ".x", key + ".e"} & seen.keys(), seen.get(key)


def load_record(remote: Backend, rid: bytes) -> Record:
    """The record of an id, proven by it.

    Raises:
        KeyMissing: there is none. Corrupt, NewerFormat: it is not what it should be.
    """
    key = record_key(rid)
    subject = f"{remote.name}/{key}"
    data = remote.get(key, max_bytes=MAX_BYTES)
    if record_id(data) != rid:
        raise Corrupt("this record fails its hash", subject=subject)
    return parse_record(data, subject=subject)


class Records:
    """What a remote says of records, each asked for once, whichever thread comes first; the others wait for its answer.

    Args:
        avoid: records that were seen to be retired, whatever the remote says.
    """

    def __init__(self, remote: Backend, *, avoid: Container[bytes] = ()) -> None:
        self._remote, self._avoid = remote, avoid
        self._lock = threading.Lock()
        self._live: dict[bytes, Future[tuple[bool, float | None]]] = {}
        self._records: dict[bytes, Future[tuple[Record, frozenset[str]] | None]] = {}

    def is_live(self, rid: bytes) -> bool:
        """Whether a record is confirmed and not retired."""
        return rid not in self._avoid and self._once(self._live, rid, lambda: _look(self._remote, rid))[0]

    def time(self, rid: bytes, record: Record) -> float:
        """When a live record came, in Unix seconds: of the storage's clock where that tells, else of its writer's."""
        told = self._once(self._live, rid, lambda: _look(self._remote, rid))[1]
        return record.time if told is None else told

    def covering(self, rid: bytes, root: str, *, store: str) -> Record | None:
        """The record, if it is live and names a root: what a locator or a list of ours says of it is only a hint."""
        if not self.is_live(rid):
            return None
        found = self._load(rid)
        return found[0] if found is not None and found[0].store == store and root in found[1] else None

    def packs(self, rid: bytes) -> frozenset[str]:
        """The keys of the packs that a record names, without those of its bases; none where it is not there."""
        found = self._load(rid)
        return frozenset() if found is None else frozenset((*found[0].packs, *found[0].reused))

    def bases(self, rid: bytes) -> frozenset[bytes]:
        """The records whose packs a record relies on, too; none where it is not there."""
        found = self._load(rid)
        return frozenset() if found is None else frozenset(bytes.fromhex(b) for b in found[0].bases)

    def with_bases(self, rid: bytes) -> list[bytes]:
        """A record and those that it relies on, and they on, nearest first; of a long history the nearest."""
        out = [rid]
        for known in out:
            out += sorted(self.bases(known) - set(out))
            if len(out) > _BASES_AT_MOST:
                break
        return out

    def with_all_bases(self, rids: Collection[bytes], pool: Executor) -> set[bytes]:
        """Records and those that they rely on, and they on, `_STEPS_AT_MOST` steps back."""
        out, step = set(rids), set(rids)
        for number in range(_STEPS_AT_MOST):
            if number == _STEPS_ONE_BY_ONE:
                found = (m[1] for item in self._remote.list("j/") if (m := _RECORD_KEY.fullmatch(item.key)))
                list(pool.map(self._load, map(bytes.fromhex, islice(found, _READ_AHEAD_AT_MOST))))
            step = set().union(*pool.map(self.bases, step)) - out
            if not step:
                break
            out |= step
        return out

    def _load(self, rid: bytes) -> tuple[Record, frozenset[str]] | None:
        """A record with its roots; None where it is not there or damaged: nothing may be skipped because of it."""

        def ask() -> tuple[Record, frozenset[str]] | None:
            try:
                record = load_record(self._remote, rid)
            except (KeyMissing, FormatError):
                return None
            return record, frozenset(record.roots)

        return self._once(self._records, rid, ask)

    def _once(self, table: dict[bytes, Future[_T]], key: bytes, ask: Callable[[], _T]) -> _T:
        with self._lock:
            answer = table.get(key)
            first = answer is None
            if answer is None:
                answer = table[key] = Future()
        if first:
            try:
                answer.set_result(ask())
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()


class ConfirmedRoots:
    """Roots that this clone has seen confirmed on one remote store: a text file, one `root record` a line.

    A hint for people and for planning; `push` never skips on it alone. Replaced as a whole and durably, so that a kill
    or a power cut leaves the old list or the new one. Processes that change it at once take turns; where locks do not
    work, one of two may lose its lines, which costs a question to the remote.
    """

    def __init__(self, folder: str, store: str) -> None:
        self._folder = os.path.join(folder, store)
        self._path = os.path.join(self._folder, "confirmed")

    def read(self) -> dict[str, bytes]:
        """Root text -> record id; empty when there is none or it is damaged.

        Raises:
            StorageError: it is there and the system does not let us read it.
        """
        try:
            with open(self._path, encoding="ascii") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return {}
        except OSError as error:
            raise storage_error(error, self._path) from error
        if not lines or lines[0] != _HEADER:
            return {}
        found = (_LINE.fullmatch(line) for line in lines[1:])
        return {m[1]: bytes.fromhex(m[2]) for m in found if m}

    def add(self, roots: Mapping[str, bytes]) -> None:
        """Remember roots with the records that cover them.

        Raises:
            StorageError, StorageFull: the list is what it was.
        """
        with self._alone():
            known = self.read()
            if any(known.get(root) != rid for root, rid in roots.items()):
                self._write({**known, **roots})

    def forget(self, roots: Iterable[str]) -> None:
        """Roots that turned out not to be confirmed after all. Raises as `add`."""
        gone = set(roots)
        if not gone:
            return
        with self._alone():
            known = self.read()
            if gone & known.keys():
                self._write({k: v for k, v in known.items() if k not in gone})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with translate(self._folder):
            make_durable_dirs(self._folder)
            fd = os.open(self._folder, OPEN_DIR)
        try:
            with locked_folder(fd):
                yield
        finally:
            os.close(fd)

    def _write(self, known: Mapping[str, bytes]) -> None:
        text = "\n".join([_HEADER, *(f"{k} {v.hex()}" for k, v in sorted(known.items()))]) + "\n"
        temporary = f"{self._path}.{secrets.token_hex(8)}.tmp"
        with translate(self._path):
            self._remove_leftovers()
            try:
                with open(temporary, "x", encoding="ascii") as file:
                    file.write(text)
                    file.flush()
                    sync_fd(file.fileno())
                os.replace(temporary, self._path)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            fd = os.open(self._folder, OPEN_DIR)
            try:
                sync_fd(fd)
            finally:
                os.close(fd)

    def _remove_leftovers(self) -> None:
        """Temporary files of writers that were killed; we hold the lock, so nobody is writing one."""
        for name in os.listdir(self._folder):
            if name.startswith("confirmed.") and name.endswith(".tmp"):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, name))
