"""A Git repository with data in it, its clones, and the program run on them in this process."""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Mapping
from pathlib import Path

import gitkit
from helpers_cli import Done, Stream

from dvk.cli import app
from dvk.commands.add import add
from dvk.commands.push import push
from dvk.commands.repo import Repo


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress; equal seeds give equal bytes."""
    return random.Random(seed).randbytes(size)


class Project:
    """A work tree at `top`."""

    def __init__(self, top: Path, home: Path, *, init: bool = True, environ: Mapping[str, str] | None = None) -> None:
        home.mkdir(exist_ok=True)
        self.top, self.home = top, home
        self.git_repo = gitkit.Repo(top, home, init=init)
        self.environ = {**self.git_repo.environ, **(environ or {})}

    def git(self, *arguments: str | bytes) -> str:
        return self.git_repo.git(*arguments)

    def write(self, files: Mapping[str | bytes, bytes]) -> None:
        self.git_repo.write(dict(files))

    def read(self, path: str) -> bytes:
        return (self.top / path).read_bytes()

    def repo(self, folder: str = "") -> Repo:
        """As a command that runs in `folder` sees it."""
        return Repo(self.top / folder, environ=self.environ)

    def version(self, files: Mapping[str | bytes, bytes], *paths: str | bytes, message: str = "a version") -> str:
        """Write files, `dvk add` the paths, commit; the commit's id."""
        self.write(files)
        with self.repo() as repo:
            add(repo, paths)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def push(self, to: Path) -> None:
        """Make a folder the remote `origin`, commit that, and send everything there."""
        done = self.dvk("remote", "add", "origin", str(to))
        assert done.code == 0, done.err
        self.git("commit", "-q", "-m", "a remote", "--", "dvk.toml")
        with self.repo() as repo:
            push(repo)

    def clone(self, top: Path) -> Project:
        """A fresh clone, which holds pointers and no data."""
        self.git("clone", "-q", str(self.top), str(top))
        return Project(top, self.home, init=False)

    def dvk(self, *argv: str, folder: str = "", environ: Mapping[str, str] | None = None, stdin: str = "") -> Done:
        """Run the program in `folder`."""
        out, err = Stream(), Stream()
        with contextlib.chdir(self.top / folder):
            code = app.run(
                argv,
                environ={**self.environ, **(environ or {})},
                stdin=io.TextIOWrapper(io.BytesIO(stdin.encode())) if stdin else Stream(),
                stdout=out,
                stderr=err,
                table=app.VERBS,
                groups=app.GROUPS,
            )
        return Done(code, out.raw_bytes.decode("utf-8", "surrogateescape"), err.raw_bytes.decode())


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file, by its path."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
