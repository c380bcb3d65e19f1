"""Where the time of one run goes: seconds, bytes and counts of each stage, for `--timings` and for bug reports.

Problem: work runs on several threads in native code, so that neither a profiler nor a look at the clock tells a user
whether disk, codec, Git or network is what dvk waits for.

    with recording() as recorder:
        with stage(Stage.ENCODE, bytes_=len(block)):
            codec, payload = encode_block(block)
    recorder.report().stages[0]     # Row("encode", wall_seconds=0.002, cpu_seconds=0.002, size=1048576, count=1)

Choice: code of every layer says what stage it is in, around batches and blocks, never around single chunks, rows or
files. Nobody passes a recorder around: it is one for the process, and while there is none a stage costs the
comparison that finds this out (0.3 us). A stage inside another one counts for itself only, so that the processor
seconds of all stages add up to at most those of the process. Stages run at the same time on several threads, so their
wall seconds do not add up to anything.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import TracebackType

from msgspec import Struct
from msgspec.structs import replace


class Stage(StrEnum):
    """The stages, in the order of the table; what they mean to a reader is in docs/timings.md."""

    START = "start-up"
    GIT = "git"
    SCAN = "scan"
    STAT_CACHE = "stat cache"
    READ = "read"
    CUT = "cut"
    HASH = "hash"
    LOOKUP = "look-up"
    REQUEST = "request"
    DECODE = "decode"
    ENCODE = "encode"
    VERIFY = "verify"
    PACK = "pack"
    WRITE = "write"
    COPY = "copy"
    SYNC = "fsync"
    INDEX = "index"
    PAGES = "pages"
    POINTER = "pointer"
    WAIT = "wait"


class Row(Struct, frozen=True):
    """One stage: seconds that threads spent in it (waiting included), of the processor, bytes and how often."""

    stage: str
    wall_seconds: float
    cpu_seconds: float
    size: int
    count: int


class Timings(Struct, frozen=True):
    """A whole run, from the start of the process; what Git worked for us is in `cpu_seconds`."""

    wall_seconds: float
    cpu_seconds: float
    rest_cpu_seconds: float  #: of the processor, in none of the stages: Python between them, late imports
    stages: tuple[Row, ...]


class Span:
    """One stretch of one stage on one thread; a context that `stage` gives."""

    __slots__ = ("_began_cpu", "_began_wall", "_bytes", "_count", "_inner_cpu", "_inner_wall", "_outer", "_to", "_what")

    def __init__(self, to: Recorder, what: Stage, bytes_: int, count: int) -> None:
        self._to, self._what, self._bytes, self._count = to, what, bytes_, count
        self._inner_wall = self._inner_cpu = 0

    def add(self, *, bytes_: int = 0, count: int = 0) -> None:
        """Count what was not known when the stage began."""
        self._bytes += bytes_
        self._count += count

    def __enter__(self) -> Span:
        self._outer, _here.span = _here.span, self
        self._began_wall, self._began_cpu = time.perf_counter_ns(), time.thread_time_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        cpu, wall = time.thread_time_ns() - self._began_cpu, time.perf_counter_ns() - self._began_wall
        outer = _here.span = self._outer
        if outer is not None:
            outer._inner_wall += wall
            outer._inner_cpu += cpu
        self._to.add(self._what, wall - self._inner_wall, cpu - self._inner_cpu, self._bytes, self._count)


class _Off:
    """The span of a run that is not recorded."""

    __slots__ = ()

    def add(self, **_counts: int) -> None:
        return

    def __enter__(self) -> _Off:
        return self

    def __exit__(self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        return


class _Here(threading.local):
    span: Span | None = None  #: the innermost one of this thread


_here = _Here()
_off = _Off()
_recorder: Recorder | None = None


class Recorder:
    """Adds up what all threads spend in which stage."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[Stage, list[int]] = {}  # wall ns, cpu ns, bytes, count
        self._start: tuple[float, float] = (0.0, 0.0)
        self._born = time.perf_counter() - _age_s()

    def add(self, what: Stage, wall_ns: int, cpu_ns: int, bytes_: int, count: int) -> None:
        """Add to a stage, from any thread."""
        with self._lock:
            sums = self._sums.setdefault(what, [0, 0, 0, 0])
            sums[0] += wall_ns
            sums[1] += cpu_ns
            sums[2] += bytes_
            sums[3] += count

    def started(self) -> None:
        """Call everything up to now the start. May be called again, as long as no stage was."""
        with self._lock:
            if not self._sums:
                self._start = (time.perf_counter() - self._born, time.process_time())

    def report(self) -> Timings:
        """What was recorded so far."""
        times = os.times()
        others_s = times.children_user + times.children_system
        with self._lock:
            rows = {s: Row(s.value, wall / 1e9, cpu / 1e9, n, k) for s, (wall, cpu, n, k) in self._sums.items()}
            if self._start[0]:
                rows[Stage.START] = Row(Stage.START.value, *self._start, 0, 1)
        own_s = time.process_time()
        rest_s = max(own_s - sum(r.cpu_seconds for r in rows.values()), 0.0)
        if git := rows.get(Stage.GIT):  # dvk runs no other program
            rows[Stage.GIT] = replace(git, cpu_seconds=git.cpu_seconds + others_s)
        return Timings(
            wall_seconds=time.perf_counter() - self._born,
            cpu_seconds=own_s + others_s,
            rest_cpu_seconds=rest_s,
            stages=tuple(rows[s] for s in Stage if s in rows),
        )


def stage(what: Stage, *, bytes_: int = 0, count: int = 1) -> Span | _Off:
    """A context in which this thread is in a stage. Not around a `yield`: the stretch must begin and end in turn."""
    return _off if _recorder is None else Span(_recorder, what, bytes_, count)


def started() -> None:
    """Say that all until now was the start of the program: its interpreter, imports, the command line."""
    if _recorder is not None:
        _recorder.started()


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record what this process does while the block runs, on all threads. One at a time."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("this process is being recorded already")
    _recorder = Recorder()
    try:
        yield _recorder
    finally:
        _recorder = None


def _age_s() -> float:
    """For how long this process has been running, to 10 ms; where the system does not say, its processor time."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        born_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - born_s, time.process_time())
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()
