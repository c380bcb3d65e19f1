"""Runs the program and strikes it at one of its changes to the disk: `python -m dvk.testing.dying AT SIGNAL ARGV...`.

Each file that is opened for writing, renamed, removed or made counts. With AT 0 nothing happens, and the last line of
standard error is the count. A kill at a moment in time hits the import of libraries most of the time; this never does.
The line `ready` on standard error says that all is imported, for those who strike from outside.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.utime")


class _Striker:
    """An audit hook that counts changes to the disk and sends this process a signal at one of them."""

    def __init__(self, at: int, signum: int) -> None:
        self.at, self.signum, self.count = at, signum, 0
        self._lock = threading.Lock()

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open":
            flags = args[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _CHANGES:
            return
        with self._lock:
            self.count += 1
            now = self.count
        if now == self.at:
            os.kill(os.getpid(), self.signum)


def main(argv: list[str]) -> None:
    """Run `dvk` with the arguments from the third on."""
    from dvk.__main__ import main as program

    importlib.import_module("dvk.cli.app")  # all that every verb needs is imported before the count begins
    signal.signal(signal.SIGINT, signal.default_int_handler)
    striker = _Striker(int(argv[0]), int(argv[1]))
    if not striker.at:
        atexit.register(lambda: _say(str(striker.count)))
    sys.argv = ["dvk", *argv[2:]]
    sys.dont_write_bytecode = True
    _say("ready")
    sys.addaudithook(striker)
    program()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
