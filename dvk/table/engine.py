"""A DuckDB of one comparison: bounded memory, a folder of its own for what does not fit, and no other files.

    with Engine(memory_bytes=1 << 30, temp_dir=None, threads=2) as engine:
        engine.put("insert into a select c0, r from feed", batch)
        engine.rows("select count(*) from a")

The SQL that runs here is ours, but values, and one expression of the user's, come from outside: after it is set up, the
engine reads and writes no file but its own temporary ones, loads no extension and accepts no further settings. It works
in memory and spills into a folder made for it, which goes with it on every exit; a folder that a killed process left
behind is removed by the next comparison that uses the same place.

The engine's errors become ours here, and nowhere else: out of memory, a full disk, and anything unexpected end the
comparison with an error that names the setting to change. Nothing that was counted so far is shown.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from dvk.errors import StorageError, StorageFull, TableError
from dvk.store.names import show

T = TypeVar("T")

_PREFIX = b"dvk-table-"
_OWNER = b"owner"
_MORE_MEMORY = "give it more memory, or compare fewer columns with `only`"

#: A salt for row digests: two rows of different content collide by chance only, also when somebody chose the rows.
_SALT_BYTES = 16


class Engine:
    """One connection and its folder. For one thread at a time; `close` may be called twice."""

    def __init__(self, *, memory_bytes: int, temp_dir: bytes | None, threads: int | None) -> None:
        self.memory_bytes = memory_bytes
        self.folder, owner = _make_folder(temp_dir)
        self._remove = weakref.finalize(self, _remove_folder, self.folder, owner)
        self._salt = secrets.token_bytes(_SALT_BYTES)
        self._worker = ThreadPoolExecutor(1, "dvk-table-engine")
        try:
            self._connection = _connect(self.folder, memory_bytes, threads or os.cpu_count() or 1)
        except BaseException:
            self._worker.shutdown()
            self._remove()
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and remove its folder."""
        self._worker.shutdown()
        self._connection.close()
        self._remove()

    def run(self, sql: str, parameters: list[Any] | None = None) -> None:
        """Do something without an answer."""
        self._do(self._connection, lambda: self._connection.execute(sql, parameters))

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        """All rows of a small answer."""
        return self._do(self._connection, lambda: list(self._connection.execute(sql, parameters).fetchall()))

    def one(self, sql: str, parameters: list[Any] | None = None) -> Any:
        """The only value of the only row."""
        return self.rows(sql, parameters)[0][0]

    def table(self, sql: str, parameters: list[Any] | None = None) -> pa.Table:
        """An answer that fits in memory, as Arrow."""
        return self._do(self._connection, lambda: self._connection.sql(sql, params=parameters).to_arrow_table())

    def batches(
        self, sql: str, parameters: list[Any] | None = None, *, rows: int = 1 << 16
    ) -> Iterator[pa.RecordBatch]:
        """An answer of any size, in batches. Other questions may be asked in between."""
        cursor = self._connection.cursor()
        try:
            reader = self._do(cursor, lambda: cursor.sql(sql, params=parameters).to_arrow_reader(rows))
            while (batch := self._do(cursor, lambda: next(reader, None))) is not None:
                if batch.num_rows:
                    yield batch
        finally:
            cursor.close()

    def put(self, sql: str, data: pa.Table | pa.RecordBatch | pa.RecordBatchReader) -> None:
        """Run a statement that reads `data` under the name `feed`."""
        if isinstance(data, pa.RecordBatch):
            data = pa.Table.from_batches([data])

        def work() -> None:
            self._connection.register("feed", data)
            try:
                self._connection.execute(sql)
            finally:
                self._connection.unregister("feed")

        self._do(self._connection, work)

    def feed(self, sql: str, data: pa.Table) -> pa.Table:
        """The answer, in the order of `data`, to a question about it under the name `feed`; from any thread."""
        with self._ours():
            cursor = self._connection.cursor()
            try:
                cursor.register("feed", data)
                return cursor.sql(sql).to_arrow_table()
            finally:
                cursor.close()

    def _do(self, connection: Any, work: Callable[[], T]) -> T:
        """Let the engine work, on its own thread so that a signal is heard here at once and can stop it."""
        with self._ours():
            doing = self._worker.submit(work)
            try:
                return doing.result()
            except BaseException:
                if not doing.done():
                    connection.interrupt()
                    wait([doing])
                raise

    def digest(self, column: str) -> str:
        """SQL for a digest of 128 bits of a column of bytes, different in each run."""
        salt = "".join(f"\\x{byte:02X}" for byte in self._salt)
        return f"md5_number('{salt}'::blob || {column})"

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Turn errors of the engine into ours."""
        try:
            yield
        except duckdb.OutOfMemoryException as problem:
            if "max_temp_directory_size" in str(problem) or "No space left" in str(problem):
                raise self._full(problem) from problem
            raise TableError(
                f"the comparison needs more than the {self.memory_bytes >> 20} MiB of memory it was given",
                hint=_MORE_MEMORY,
            ) from problem
        except (duckdb.Error, pa.ArrowInvalid, pa.ArrowException, OSError) as problem:
            if "No space left" in str(problem) or "max_temp_directory_size" in str(problem):
                raise self._full(problem) from problem
            if isinstance(problem, (duckdb.IOException, OSError)):
                text = f"temporary files cannot be used: {_first_line(problem)}"
                raise StorageError(text, subject=show(self.folder)) from problem
            raise TableError(f"the comparison failed: {_first_line(problem)}", hint="please report this") from problem

    def _full(self, problem: Exception) -> StorageFull:
        return StorageFull(
            f"no space left for temporary files of the comparison ({_first_line(problem)})",
            subject=show(self.folder),
            hint="choose a folder on another disk, or give it more memory so that less is written",
        )


def _connect(folder: bytes, memory_bytes: int, threads: int) -> Any:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": os.fsdecode(folder),
        "threads": threads,
        "preserve_insertion_order": False,
        "autoload_known_extensions": False,
        "autoinstall_known_extensions": False,
        "allow_community_extensions": False,
    }
    try:
        connection = duckdb.connect(":memory:", config=config)
        # A filter made from the first part of a join that spills has dropped rows (duckdb issue 25702).
        connection.execute("set disabled_optimizers = 'join_filter_pushdown'")
        connection.execute("set enable_progress_bar = false")  # it would write on standard output
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
    except (duckdb.Error, UnicodeError) as problem:
        raise StorageError(f"no engine for the comparison: {_first_line(problem)}", subject=show(folder)) from problem
    return connection


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def _make_folder(parent: bytes | None) -> tuple[bytes, int]:
    """A new folder in `parent` and a descriptor that holds the lock on it."""
    parent = os.path.abspath(parent or os.fsencode(tempfile.gettempdir()))
    try:
        _sweep(parent)
        folder = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        fresh = os.path.join(folder, _OWNER + b".new")
        owner = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        _locked(owner)
        os.rename(fresh, os.path.join(folder, _OWNER))  # nobody sees it before it is locked
    except OSError as problem:
        kind = StorageFull if problem.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"no folder for temporary files: {problem.strerror}", subject=show(parent)) from problem
    return folder, owner


def _remove_folder(folder: bytes, owner: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(owner)


def _sweep(parent: bytes) -> None:
    """Remove folders whose makers are gone: nobody holds their locks any more."""
    with os.scandir(parent) as entries:
        ours = [e.path for e in entries if e.name.startswith(_PREFIX) and e.is_dir(follow_symlinks=False)]
    for folder in ours:
        try:
            owner = os.open(os.path.join(folder, _OWNER), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or being made right now
        if _locked(owner):
            shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _locked(owner: int) -> bool:
    """Take the lock if it is free; False where it is held, or where the filesystem has none."""
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
