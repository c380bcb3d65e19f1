"""The program as a process: signals, pipes, full disks, closed descriptors, a real terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py")
COMMAND = [sys.executable, PROGRAM]


@contextlib.contextmanager
def waiting(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """`dvk wait` once it is ready for a signal."""
    started = subprocess.Popen(
        [*COMMAND, "wait", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0
    )
    try:
        assert started.stderr is not None and started.stderr.readline() == "ready\n"
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize(
    ("signum", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_unwinds_and_names_the_next_step(signum: int, code: int, word: str) -> None:
    with waiting() as process:
        process.send_signal(signum)
        _, err = process.communicate(timeout=10)
        assert process.returncode == code
        assert err.startswith(f"error: {word}\nhint: ") and "the same command continues" in err
    with waiting("--json") as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=10)
        error = json.loads(out)["error"]
        assert (process.returncode, error["exit_code"], error["kind"], err) == (code, code, word, "")


def test_a_second_signal_ends_at_once() -> None:
    with waiting("--stubborn") as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None and process.stderr.readline() == "unwinding\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert time.monotonic() - began < 5


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    """`nohup`-like parents and shells without job control start background commands that way."""
    script = f"trap '' INT; exec {sys.executable} {PROGRAM} ignored"
    assert subprocess.run(["sh", "-c", script], capture_output=True, check=False).returncode == 5


def test_a_reader_that_went_away_ends_the_program_quietly() -> None:
    for options in ([], ["--json"]):
        process = subprocess.Popen(
            [*COMMAND, "count", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(timeout=10) == 141 or options  # the JSON of a number fits into the pipe


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_an_error() -> None:
    for options in ([], ["--json"]):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, "count", "5", *options],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 17
        assert done.stderr.startswith("error: standard output: ")
        assert "Exception ignored" not in done.stderr


def test_closed_descriptors_are_no_trap() -> None:
    script = f"exec {sys.executable} {PROGRAM} send <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], check=False).returncode == 0


def test_away_from_a_terminal_short_work_leaves_no_trace() -> None:
    done = subprocess.run([*COMMAND, "work", "--seconds", "0.1"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "note: nearly there\n")


def on_a_terminal(*argv: str) -> tuple[int, str]:
    """Exit code and everything that arrived on the terminal."""
    mine, theirs = pty.openpty()
    environ = {k: v for k, v in os.environ.items() if k not in {"NO_COLOR", "FORCE_COLOR", "CI"}}
    process = subprocess.Popen(
        [*COMMAND, *argv], stdin=theirs, stdout=theirs, stderr=theirs, env={**environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ready, _, _ = select.select([mine], [], [], 1)
        if not ready:
            continue
        try:
            more = os.read(mine, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            break
        if not more:
            break
        seen += more
    os.close(mine)
    return process.wait(timeout=10), seen.decode()


def test_on_a_terminal_long_work_shows_itself_and_leaves_no_trace() -> None:
    """Bytes, rate and time left after half a second; the cursor is back at the end."""
    code, seen = on_a_terminal("work", "--seconds", "1.5")
    assert code == 0
    assert "upload" in seen and " of 1 kB" in seen and "B/s" in seen and " left" in seen
    assert "nearly there" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    code, seen = on_a_terminal("work", "--seconds", "0.1")
    assert (code, re.sub("\x1b\\[[0-9;]*m", "", seen)) == (0, "note: nearly there\r\n")


def test_what_libraries_log_is_silent_unless_asked_for_and_then_redacted() -> None:
    command = [*COMMAND, "fail", "log", "GET http://u:pw@h/ \x1b[2J"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("error: dvk ran into a bug: ZeroDivisionError") and "GET" not in done.stderr
    debug = {**os.environ, "DVK_DEBUG": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=debug)
    assert "botocore: GET http://***@h/ \\x1b[2J" in done.stderr and "Traceback" in done.stderr


def test_completion_lists_verbs_and_options() -> None:
    environ = {**os.environ, "_DVK_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, env={**environ, "COMP_WORDS": "dvk se"}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["send"]
    environ["COMP_CWORD"] = "2"
    done = subprocess.run(
        COMMAND, env={**environ, "COMP_WORDS": "dvk send --re"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["--remote"]
