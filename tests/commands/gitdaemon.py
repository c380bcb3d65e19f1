"""A Git server on the loopback that knows filters, for tests of repositories elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType


class GitDaemon:
    """Serves the repositories below `base` as git://127.0.0.1:PORT/NAME while the `with` lasts."""

    def __init__(self, base: Path, environ: dict[str, str]) -> None:
        self.base, self._environ = base, environ
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = base / "daemon.log"

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> GitDaemon:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("git", "-c", "uploadpack.allowFilter=true", "-c", "uploadpack.allowAnySHA1InWant=true"),
                    *("daemon", "--verbose", "--export-all", "--listen=127.0.0.1", f"--port={self.port}"),
                    *(f"--base-path={self.base}", str(self.base)),
                ],
                env={**self._environ, "LC_ALL": "C"},
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.02)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait()

    @property
    def requests(self) -> int:
        """How often a repository was asked for so far."""
        return self._log.read_bytes().count(b"Request upload-pack")
