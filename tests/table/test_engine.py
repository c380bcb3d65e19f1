"""The engine of a comparison: bounded, alone in its folder, and its failures are ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dvk.errors import StorageError, StorageFull, TableError
from dvk.table.engine import Engine

MEMORY = 128 << 20


def test_the_folder_goes_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Engine(memory_bytes=MEMORY, temp_dir=os.fsencode(tmp_path), threads=1):
        assert os.listdir(tmp_path)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_swept_and_a_living_one_is_not(tmp_path: Path) -> None:
    child = (
        "import os, sys, time; from dvk.table.engine import Engine;"
        f"e = Engine(memory_bytes={MEMORY}, temp_dir=os.fsencode(sys.argv[1]), threads=1);"
        "print(1, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", child, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        (theirs,) = os.listdir(tmp_path)
        with Engine(memory_bytes=MEMORY, temp_dir=os.fsencode(tmp_path), threads=1):
            assert theirs in os.listdir(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.listdir(tmp_path) == [theirs]
    with Engine(memory_bytes=MEMORY, temp_dir=os.fsencode(tmp_path), threads=1):
        assert theirs not in os.listdir(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder for temporary files") as caught:
        Engine(memory_bytes=MEMORY, temp_dir=os.fsencode(tmp_path / "none"), threads=1)
    assert "none" in caught.value.subject


def test_no_files_no_settings() -> None:
    with Engine(memory_bytes=MEMORY, temp_dir=None, threads=1) as engine:
        for sql in (
            "select * from read_text('/etc/passwd')",
            "copy (select 1) to '/tmp/never'",
            "attach '/tmp/never.db'",
            "install httpfs",
            "set memory_limit = '100GB'",
            "set enable_external_access = true",
        ):
            with pytest.raises((TableError, StorageError)):
                engine.run(sql)
    assert not os.path.exists("/tmp/never") and not os.path.exists("/tmp/never.db")


def test_more_than_memory_goes_to_the_folder_and_comes_back(tmp_path: Path) -> None:
    with Engine(memory_bytes=64 << 20, temp_dir=os.fsencode(tmp_path), threads=2) as engine:
        engine.run("create table t as select range r, md5(range::varchar) s from range(3000000)")
        assert engine.one("select count(distinct s) from t") == 3_000_000
        total = sum(b.num_rows for b in engine.batches("select r from t order by s"))
        assert total == 3_000_000


def test_too_little_memory_says_which_setting_to_change() -> None:
    with Engine(memory_bytes=20 << 20, temp_dir=None, threads=1) as engine:
        with pytest.raises(TableError, match="20 MiB of memory") as caught:
            engine.rows("select list(range) from range(9000000)")
        assert "memory" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size are sent as a signal elsewhere")
def test_a_full_folder_is_storage_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own words for a full disk, whichever exception brings them."""
    import duckdb

    with Engine(memory_bytes=MEMORY, temp_dir=None, threads=1) as engine:
        for raised in (
            duckdb.IOException("IO Error: Could not write file: No space left on device"),
            duckdb.OutOfMemoryException("failed to offload data block (max_temp_directory_size)"),
            OSError(28, "No space left on device"),
        ):
            with pytest.raises(StorageFull) as caught, engine._ours():
                raise raised
            assert "another disk" in caught.value.hint


def test_answers_may_be_streamed_while_other_questions_are_asked() -> None:
    with Engine(memory_bytes=MEMORY, temp_dir=None, threads=1) as engine:
        engine.run("create table t as select range r from range(100000)")
        seen = 0
        for batch in engine.batches("select r from t order by r", rows=5000):
            seen += batch.num_rows
            engine.put("insert into t select r from feed", pa.table({"r": [-1]}))
        assert seen == 100_000


def test_nothing_is_written_on_standard_output() -> None:
    child = (
        "from dvk.table.engine import Engine; e = Engine(memory_bytes=1 << 28, temp_dir=None, threads=1);"
        "e.run('create table t as select range r, md5(range::varchar) s from range(6000000)')"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, check=True)
    assert done.stdout == b"" == done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_engine_works_is_an_interrupt(tmp_path: Path, signum: signal.Signals) -> None:
    child = """
import os, sys, threading
from dvk.cli import signals
from dvk.table.engine import Engine
signals.install()
try:
    with Engine(memory_bytes=1 << 28, temp_dir=os.fsencode(sys.argv[1]), threads=1) as engine:
        threading.Timer(0.5, os.kill, (os.getpid(), int(sys.argv[2]))).start()
        engine.rows("select count(*) from range(1000000) a, range(1000000) b where hash(a.range, b.range) = 1")
except KeyboardInterrupt as stop:
    print(signals.as_error(stop).kind, os.listdir(sys.argv[1]))
"""
    command = [sys.executable, "-c", child, str(tmp_path), str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(" []\n") and done.stdout.split()[0] in ("interrupted", "terminated"), done


def test_a_digest_depends_on_the_run() -> None:
    found = []
    for _ in range(2):
        with Engine(memory_bytes=MEMORY, temp_dir=None, threads=1) as engine:
            sql = f"select {engine.digest('x')}, {engine.digest('y')} from (select 'p'::blob x, 'q'::blob y)"
            found.append(engine.rows(sql)[0])
    assert found[0] != found[1] and found[0][0] != found[0][1]
