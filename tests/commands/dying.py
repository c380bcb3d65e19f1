"""Runs the program and strikes it at one of its changes to the disk: `python dying.py AT SIGNAL ARGV...`.

Each file that is opened for writing, renamed, removed or made counts. With AT 0 nothing happens, and the last line of
standard error is the count. A kill at a moment in time hits the import of libraries most of the time; this never does.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading

at, signum = int(sys.argv[1]), int(sys.argv[2])
count = 0
lock = threading.Lock()
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.utime")


def hook(event: str, args: tuple[object, ...]) -> None:
    global count
    if event == "open":
        if not isinstance(args[2], int) or not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    elif event not in CHANGES:
        return
    with lock:
        count += 1
        now = count
    if now == at:
        os.kill(os.getpid(), signum)


def main() -> None:
    from dvk.__main__ import main as program
    from dvk.cli import app

    app.parse  # noqa: B018  # all that every verb needs is imported before the count begins
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not at:
        atexit.register(lambda: print(count, file=sys.stderr))
    sys.argv = ["dvk", *sys.argv[3:]]
    sys.dont_write_bytecode = True
    sys.addaudithook(hook)
    program()


main()
