"""A real Git repository for a test, cut off from the machine's own configuration."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from dvk.ids import EMPTY_FILE
from dvk.workspace.pointer import Pointer, format_pointer

GIT_ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_ALLOW_PROTOCOL": "file",
}


def environ(home: Path, **more: str) -> dict[str, str]:
    """The environment of the machine without its Git settings, with a home of the test's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "DVK_", "XDG_"))}
    return kept | GIT_ENV | {"HOME": str(home)} | more


def pointer(number: int, *, source: str = "") -> bytes:
    """The bytes of some pointer; equal numbers give equal bytes."""
    sources = (("note", source),) if source else ()
    an_id = bytes([number % 256, number // 256 % 256]) * 16
    assert an_id != EMPTY_FILE
    return format_pointer(Pointer("file", an_id, number + 1, source=sources))


class Repo:
    """A work tree at `top` with a clock of its own, so that ids of commits are the same in each run."""

    def __init__(self, top: Path, home: Path, *, init: bool = True, object_format: str = "sha1") -> None:
        self.top = top
        self.environ = environ(home)
        self._seconds = 1_700_000_000
        if init:
            top.mkdir(parents=True, exist_ok=True)
            self.git("init", "-q", "-b", "main", f"--object-format={object_format}")

    def git(self, *arguments: str | bytes, ok: bool = True, cwd: Path | None = None) -> str:
        """Run git and return its output as text."""
        self._seconds += 60
        when = f"{self._seconds} +0200"
        env = self.environ | {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
        done = subprocess.run(["git", *arguments], cwd=cwd or self.top, env=env, capture_output=True)
        assert not ok or done.returncode == 0, (arguments, done.stdout, done.stderr)
        return os.fsdecode(done.stdout)

    def write(self, files: dict[str | bytes, bytes]) -> None:
        """Write files, making folders."""
        for name, data in files.items():
            path = os.path.join(os.fsencode(self.top), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(data)

    def commit(self, files: dict[str | bytes, bytes], message: str = "a commit") -> str:
        """Write and commit files, and return the commit's id."""
        self.write(files)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()
