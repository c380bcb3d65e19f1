"""Ctrl-C and SIGTERM: unwind once, leave at once when asked twice.

The first signal raises in the main thread, so that `finally` blocks remove temporary files and release locks.
What is raised descends from KeyboardInterrupt and not from Exception: code that collects the errors of single
paths must not take it for one of them. A second signal means that unwinding takes too long (a thread may sit
in a network call for a minute); the process then ends where it stands, which every write of dvk survives by
design.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from dvk.errors import Interrupted

_SHOW_CURSOR = "\x1b[?25h"  # a progress display may have hidden it


class Terminated(Interrupted):
    """SIGTERM; the same command continues."""

    kind = "terminated"


class Stop(KeyboardInterrupt):
    """Raised in the main thread by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum}")
        self.signum = signum


def install() -> None:
    """Turn SIGINT and SIGTERM into `Stop`. A signal that the parent told us to ignore stays ignored."""
    seen = False

    def handle(signum: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            if sys.stderr is not None and sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR.encode())
            os._exit(128 + signum)
        seen = True
        raise Stop(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handle)


def as_error(stop: KeyboardInterrupt) -> Interrupted:
    """The error that tells a person, or a program, what happened."""
    terminated = isinstance(stop, Stop) and stop.signum == signal.SIGTERM
    kind = Terminated if terminated else Interrupted
    return kind(
        "terminated" if terminated else "interrupted",
        hint="nothing is lost; the same command continues where this one stopped",
    )
