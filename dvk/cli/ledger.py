"""`DVK_MANIFEST=FILE`: each verb of a job notes there what data it handed out, one JSON object a line.

Lines are appended in one write when a verb ends, so the commands of a job, also those that run at the same time, share
one file; `dvk manifest --read FILE` makes a manifest of it. A line that cannot be written is an error of the verb: a
job that keeps a record must not go on without one.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping

from dvk.cli.records import to_json
from dvk.errors import StorageError
from dvk.events import Event, OnEvent, Used

VARIABLE = "DVK_MANIFEST"


class Ledger:
    """Passes events on to `listener`, and keeps those that say what was handed out."""

    def __init__(self, listener: OnEvent, environ: Mapping[str, str]) -> None:
        self._listener = listener
        self._file = environ.get(VARIABLE, "")
        self._lock = threading.Lock()
        self._used: list[Used] = []

    def __call__(self, event: Event) -> None:
        """Take one event, from any thread."""
        if not isinstance(event, Used):
            self._listener(event)
        elif self._file:
            with self._lock:
                self._used.append(event)

    def write(self) -> None:
        """Append what was handed out.

        Raises:
            StorageError: the file cannot be written.
        """
        if not self._used:
            return
        text = "".join(f"{json.dumps(to_json(used))}\n" for used in self._used)
        try:
            fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                data = memoryview(text.encode("ascii"))
                while data:
                    written = os.write(fd, data)
                    if not written:
                        raise OSError(errno.EIO, "the write made no progress")
                    data = data[written:]
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(
                f"cannot note what was read ({error.strerror})", subject=self._file, hint=f"{VARIABLE} names the file"
            ) from error
