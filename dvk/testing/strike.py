"""Runs the program again and again and strikes it at the Nth thing that it asks of the operating system.

    with Program() as program:                               # imports everything once, then forks
        run = program.run(["add", "x"], cwd=top, environ=env)             # undisturbed; run.calls says how many
        program.run(["add", "x"], cwd=top, environ=env, strike=Strike(17, "kill"))
        program.run(["add", "x"], cwd=top, environ=env, strike=Strike(17, "ENOSPC", forever=True))

What counts as a call: everything that Python asks of the filesystem below `cwd`'s parent and of no other place
(opening, reading, writing, syncing, renaming, linking, removing, listing, looking), over all threads and in the order
in which they ask. So "for every N" is a loop that ends. A strike is one of

- `kill`: SIGKILL before the call;
- `torn`: the call is a write, half of it is done, then SIGKILL;
- `short`: the call is a write and writes half, as writes may;
- the name of an error (`EIO`, `ENOSPC`, ...): the call fails with it, once or from then on, together with all calls
  that can fail so (a full disk does not stop a removal).

`strace` (`dvk.testing.matrix --strace`) strikes below Python, at libgit2 and at `git` too; this needs no tool.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

LIMIT_S = 120.0

#: kinds of calls, by what they do
_MAKES = frozenset({"create", "write", "writev", "pwrite", "sync", "rename", "link", "symlink", "mkdir", "truncate"})
_MAKES |= {"clone", "allocate"}
CHANGES = _MAKES | {"unlink", "rmdir", "chmod", "utime"}
_OPENS = frozenset({"open", "create", "scandir"})
_READS = frozenset({"read", "pread", "stat", "scandir", "open"})

#: error -> the kinds of calls that can fail with it
CAN_FAIL: Mapping[str, frozenset[str]] = {
    "EIO": CHANGES | _READS | {"close"},
    "ENOSPC": _MAKES - {"truncate"} | {"close"},
    "EDQUOT": _MAKES - {"truncate"} | {"close"},
    "EMFILE": _OPENS,
    "EROFS": CHANGES - {"write", "writev", "pwrite", "sync", "allocate", "truncate"},
    "ESTALE": CHANGES | _READS,
    "EACCES": _OPENS | {"rename", "link", "symlink", "mkdir", "unlink", "rmdir"},
}
KILLS = ("kill", "torn")
_WRITES = frozenset({"write", "writev", "pwrite"})
#: the same for all faults
CAN_STRIKE: Mapping[str, frozenset[str]] = {"kill": CHANGES, "torn": _WRITES, "short": _WRITES, **CAN_FAIL}
FAULTS = tuple(CAN_STRIKE)


@dataclass(frozen=True, slots=True)
class Strike:
    """What happens, and at which call."""

    at: int  #: from 1, among the calls that the fault can strike
    fault: str
    forever: bool = False

    def __str__(self) -> str:
        return f"{self.fault}{' for ever' if self.forever else ''} at call {self.at}"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the program made."""

    kind: str
    path: str
    place: str  #: the lines of dvk that made it, innermost first


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended."""

    code: int  #: negative: killed by that signal
    said: str  #: both streams
    calls: tuple[Call, ...] = ()  #: of an undisturbed run that was asked to record them
    struck: str = ""  #: the call that was struck; empty: the strike came too late

    @property
    def killed(self) -> bool:
        """Whether the strike was deadly."""
        return self.code == -signal.SIGKILL


class Program:
    """A process that has imported all of dvk and forks a child for each run. One run at a time."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from dvk.testing.strike import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(LIMIT_S)
        self._child.stdout.close()

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str,
        environ: Mapping[str, str],
        scope: str = "",
        strike: Strike | None = None,
        record: bool = False,
        tracer: Sequence[str] = (),
        boot: str = "",
        sync: bool = True,
        clock_s: float = 0.0,
        kill_after_s: float = 0.0,
        entropy: str = "",
        now_s: float = 0.0,
    ) -> Ran:
        """Run `dvk ARGV` in `cwd`.

        Args:
            scope: calls below this folder count; the parent of `cwd` by default.
            strike: what to do at which call.
            record: tell of each call.
            tracer: a command that is started with the child's process number at its end and has to say that it is
                attached before the child goes on (`strace -p`).
            boot: what the machine calls its time since it was started; its own word by default.
            sync: False lets every fsync do nothing.
            clock_s: how far the program's clock is off.
            kill_after_s: SIGKILL after so long, when it is still running.
            entropy: whence its random names come, so that runs with equal words choose equal ones; by default from
                the system.
            now_s: what time it is, all the time, for all that goes by whole seconds; by default what the system says.
        """
        scope = scope or os.path.dirname(cwd)
        request = {
            "argv": list(argv),
            "cwd": cwd,
            "environ": dict(environ),
            "scope": os.path.realpath(scope),
            "strike": None if strike is None else asdict(strike),
            "record": record,
            "tracer": list(tracer),
            "boot": boot,
            "sync": sync,
            "clock_s": clock_s,
            "kill_after_s": kill_after_s,
            "entropy": entropy,
            "now_s": now_s,
        }
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()
        answer = json.loads(self._child.stdout.readline())
        calls = tuple(Call(**c) for c in answer.pop("calls"))
        return Ran(calls=calls, **answer)


# ---------------------------------------------------------------- the forking process


def serve() -> None:
    """Answer requests until standard input ends."""
    setattr(time, "time", lambda: _time())  # noqa: B010 - before `clock=time.time` takes hold of the real one
    _import_everything()
    gc.collect()
    gc.freeze()  # a collection in a child would copy all of it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_run(json.loads(line))).encode() + b"\n")
        answers.flush()


#: what no verb of a matrix needs: with pyarrow, duckdb and botocore a fork costs twice as much
_HEAVY = ("dvk.testing", "dvk.table", "dvk.__main__", "dvk.commands.diff_tables", "dvk.backend.s3")


def _import_everything() -> None:
    import dvk

    for module in pkgutil.walk_packages(dvk.__path__, "dvk."):
        if not module.name.startswith(_HEAVY):
            importlib.import_module(module.name)
    importlib.import_module("numpy.ma")  # numpy.unique does so when it is first called
    from dvk.cli import app
    from dvk.cli.grammar import tree
    from dvk.store.chunker import Cutter
    from dvk.store.profiles import PROFILES

    for profile in PROFILES:
        Cutter(profile)  # each looks once whether the native engine makes its cuts

    parser = tree(app.VERBS, app.GROUPS, text=app.ABOUT, version=dvk.__version__)
    setattr(app, "tree", lambda *_what, **_how: parser)  # noqa: B010 - made once and not in each child


def _run(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as notes:
        go_r, go_w = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_w)
            os.read(go_r, 1)
            os.close(go_r)
            _child(request, said.fileno(), notes.fileno())
        os.close(go_r)
        tracer = None
        if request["tracer"]:
            tracer = subprocess.Popen([*request["tracer"], "-p", str(pid)], stderr=subprocess.PIPE)
            assert tracer.stderr is not None
            tracer.stderr.readline()  # attached
        os.write(go_w, b"x")
        os.close(go_w)
        after_s = request["kill_after_s"]
        how = (after_s, signal.SIGKILL) if after_s else (LIMIT_S, signal.SIGABRT)
        watch = threading.Timer(how[0], os.kill, (pid, how[1]))
        watch.start()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        watch.cancel()
        watch.join()
        if tracer is not None:
            tracer.communicate()
        said.seek(0)
        notes.seek(0)
        calls, struck = [], ""
        for line in notes:
            note = json.loads(line)
            if note.pop("struck"):
                struck = f"{note['kind']} {note['path']} in {note['place']}"
            else:
                calls.append(note)
        return {"code": code, "said": said.read().decode("utf-8", "replace"), "calls": calls, "struck": struck}


def _child(request: dict[str, Any], said: int, notes: int) -> None:
    """Become the program. Never returns."""
    try:
        devnull = os.open(os.devnull, os.O_RDONLY)
        os.dup2(devnull, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        tempfile.tempdir = None  # looked for anew, in this environment
        sys.argv = ["dvk", *request["argv"]]
        strike = None if request["strike"] is None else Strike(**request["strike"])
        if strike or request["record"]:
            Striker(request["scope"], strike, notes, record=request["record"]).install()
        from dvk.__main__ import main
        from dvk.workspace import statcache

        if request["boot"]:
            setattr(statcache, "boot_id", request["boot"].encode)  # noqa: B010
        if request["entropy"]:
            _draw_from(request["entropy"])
        if request["now_s"]:
            _stop_clock(request["now_s"])
        if request["clock_s"]:
            _shift_clock(request["clock_s"])
        if not request["sync"]:
            for name in ("fsync", "fdatasync"):
                setattr(os, name, lambda _fd: None)
        main()
        os._exit(0)
    except SystemExit as e:
        os._exit(e.code if isinstance(e.code, int) else 1)
    except BaseException:
        os.write(said, traceback.format_exc().encode())
        os._exit(1)


def _draw_from(entropy: str) -> None:
    """Let the random bytes of this process follow from `entropy`."""
    source = random.Random(entropy)
    for module, name in ((os, "urandom"), (random, "_urandom")):  # the latter is what `secrets` draws from
        setattr(module, name, source.randbytes)


_time = time.time  #: what `time.time` says in the program


def _set_clock(now: Callable[[], float]) -> None:
    global _time
    _time = now


def _stop_clock(now: float) -> None:
    gmtime = time.gmtime
    _set_clock(lambda: now)
    setattr(time, "gmtime", lambda seconds=now: gmtime(seconds))  # noqa: B010


def _shift_clock(seconds: float) -> None:
    now, now_ns = _time, time.time_ns
    _set_clock(lambda: now() + seconds)
    setattr(time, "time_ns", lambda: now_ns() + int(seconds * 1e9))  # noqa: B010


class Striker:
    """Counts this process's calls, and strikes at one of them."""

    def __init__(self, scope: str, strike: Strike | None, notes: int, *, record: bool) -> None:
        self._scope, self._strike, self._notes, self._record = scope, strike, notes, record
        self._count = 0
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._real: dict[str, Callable[..., Any]] = {}
        self._failed_sync: set[tuple[int, int]] = set()

    def install(self) -> None:
        """Stand between this process and its operating system, for good."""
        by_fd = {"read": "read", "readv": "read", "pread": "pread", "preadv": "pread", "fsync": "sync"}
        by_fd |= {"fdatasync": "sync", "ftruncate": "truncate", "fstat": "stat", "fchmod": "chmod"}
        by_fd |= {"write": "write", "writev": "writev", "pwrite": "pwrite", "posix_fallocate": "allocate"}
        by_path = {"rename": "rename", "replace": "rename", "unlink": "unlink", "remove": "unlink", "mkdir": "mkdir"}
        by_path |= {"rmdir": "rmdir", "link": "link", "symlink": "symlink", "stat": "stat", "lstat": "stat"}
        by_path |= {"scandir": "scandir", "listdir": "scandir", "chmod": "chmod", "utime": "utime"}
        for name in (*by_fd, *by_path):
            self._real[name] = getattr(os, name)
        self._real["close"] = os.close
        for name, kind in by_fd.items():
            setattr(os, name, self._around(name, kind))
        for name, kind in by_path.items():
            setattr(os, name, self._around(name, kind))
        os.close = self._close
        import fcntl

        self._real["ioctl"] = fcntl.ioctl
        fcntl.ioctl = self._around("ioctl", "clone")
        sys.addaudithook(self._opened)

    def _opened(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or getattr(self._mine, "busy", False) or self._is_over(""):
            return
        path, _mode, flags = args
        if isinstance(path, int) or path is None or not isinstance(flags, int):
            return
        kind = "create" if flags & os.O_CREAT and not flags & os.O_DIRECTORY else "open"
        self._call(kind, os.fsdecode(path))

    def _around(self, name: str, kind: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*args: Any, **options: Any) -> Any:
            if getattr(self._mine, "busy", False) or self._is_over(kind):
                return real(*args, **options)
            target = args[0] if args else options.get("path", ".")
            if not isinstance(target, int | str | bytes):
                target = os.fspath(target)
            fault = self._call(kind, self._path_of(target) if isinstance(target, int) else os.fsdecode(target))
            if fault in ("torn", "short"):
                self._half(name, args)
                return self._half_length(name, args)
            return real(*args, **options)

        return call

    def _close(self, fd: int) -> None:
        if getattr(self._mine, "busy", False) or self._is_over("close"):
            self._real["close"](fd)
            return
        path = self._path_of(fd)
        try:
            self._call("close", path)
        finally:
            self._real["close"](fd)

    def _is_over(self, kind: str) -> bool:
        """Whether a call of this kind is not worth a look: nothing is noted, and it cannot be struck (any more)."""
        strike = self._strike
        if self._record:
            return False
        if strike is None or (kind and kind not in CAN_STRIKE[strike.fault]):
            return True
        return self._count >= strike.at and not strike.forever

    def _path_of(self, fd: int) -> str:
        self._mine.busy = True
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            return path if path.startswith("/") else "/dev/pipe"
        except OSError:
            return "/dev/pipe"
        finally:
            self._mine.busy = False

    def _half(self, name: str, args: tuple[Any, ...]) -> None:
        """Do half of a write, and die if the strike says so."""
        assert self._strike is not None
        data = b"".join(bytes(memoryview(part).cast("B")) for part in (args[1] if name == "writev" else [args[1]]))
        half = data[: (len(data) + 1) // 2]
        if half:
            if name == "pwrite":
                self._real["pwrite"](args[0], half, args[2])
            else:
                self._real["write"](args[0], half)
        if self._strike.fault == "torn":
            os.kill(os.getpid(), signal.SIGKILL)

    def _half_length(self, name: str, args: tuple[Any, ...]) -> int:
        parts = args[1] if name == "writev" else [args[1]]
        return (sum(memoryview(part).nbytes for part in parts) + 1) // 2

    def _call(self, kind: str, path: str) -> str:
        """Count a call; strike when it is its turn. "torn" or "short" is the caller's to do.

        Raises:
            OSError: the fault.
        """
        if path.startswith("/") and path != self._scope and not path.startswith(self._scope + "/"):
            return ""
        if self._record:
            self._note(kind, path, struck=False)
        strike = self._strike
        if strike is None or kind not in CAN_STRIKE[strike.fault]:
            return ""
        with self._lock:
            self._count += 1
            now = self._count
        if now < strike.at or (now > strike.at and not strike.forever):
            return ""
        if now == strike.at:
            self._note(kind, path, struck=True)
        if strike.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if strike.fault in ("torn", "short"):
            return strike.fault
        number = getattr(errno, strike.fault)
        raise OSError(number, os.strerror(number), path)

    def _note(self, kind: str, path: str, *, struck: bool) -> None:
        self._mine.busy = True
        try:
            place: list[str] = []
            frame = sys._getframe(2)
            while frame is not None and len(place) < 4:
                code = frame.f_code
                if "/dvk/" in code.co_filename and "/testing/" not in code.co_filename:
                    place.append(f"{code.co_filename.rpartition('/dvk/')[2]}:{frame.f_lineno}")
                frame = frame.f_back  # type: ignore[assignment]
            note = {"kind": kind, "path": path, "place": " < ".join(place), "struck": struck}
            self._real["write"](self._notes, json.dumps(note).encode() + b"\n")
        finally:
            self._mine.busy = False
