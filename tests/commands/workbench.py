"""A real repository with dvk in it, for tests of verbs that change what is tracked."""

from __future__ import annotations

import os
from pathlib import Path

import gitkit

from dvk.commands.add import add
from dvk.commands.repo import Repo
from dvk.workspace.ignore import excluded_paths


class Bench:
    """A work tree at `top`; its data, its Git and its dvk."""

    def __init__(self, top: Path, home: Path) -> None:
        home.mkdir(exist_ok=True)
        self.git_repo = gitkit.Repo(top, home)
        self.top = top
        self.environ = self.git_repo.environ

    def git(self, *arguments: str | bytes) -> str:
        """The output of git."""
        return self.git_repo.git(*arguments)

    def put(self, files: dict[str | bytes, bytes]) -> None:
        """Write files, making folders."""
        self.git_repo.write(files)

    def open(self, folder: str = "") -> Repo:
        """The repository, as a verb started in `folder` sees it."""
        return Repo(self.top / folder, environ=self.environ)

    def add(self, *paths: str | bytes) -> None:
        """`dvk add`."""
        with self.open() as repo:
            add(repo, paths)

    def commit(self, message: str = "a commit") -> None:
        """Commit what is staged."""
        self.git("commit", "-q", "-m", message)

    def add_commit(self, files: dict[str | bytes, bytes], *paths: str | bytes) -> None:
        """Write data, track it, commit its pointers."""
        self.put(files)
        self.add(*paths)
        self.commit()

    def read(self, path: str | bytes) -> bytes | None:
        """The content of a file, None where there is none."""
        try:
            with open(os.path.join(os.fsencode(self.top), os.fsencode(path)), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return os.path.lexists(self.top / path)

    def files(self) -> dict[str, bytes]:
        """Every file of the work tree outside of .git."""
        found = {}
        for folder, folders, names in os.walk(self.top):
            if ".git" in folders:
                folders.remove(".git")
            for name in names:
                path = Path(folder, name)
                found[str(path.relative_to(self.top))] = path.read_bytes()
        return found

    def staged(self) -> list[str]:
        """Rows of what is staged: "D  a.csv.dvk"."""
        return [row for row in self.git("status", "--porcelain", "--no-renames").splitlines() if row[0] not in " ?"]

    def seen_by_git(self) -> list[str]:
        """What Git sees and does not track."""
        rows = self.git("status", "--porcelain", "--no-renames").splitlines()
        return [row[3:] for row in rows if row.startswith("??")]

    def hidden(self) -> list[bytes]:
        """The paths that dvk keeps out of Git."""
        return excluded_paths(os.fsencode(self.top / ".git"))
