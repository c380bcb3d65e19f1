"""A whole life of data for a test: a Git repository, its dvk, its remotes, its clones, and children that die.

flow = Flow(tmp_path / "a", tmp_path)                  # a work tree, with a remote `origin` in a folder beside it
flow.version({"train.csv": b"1,2"}, "train.csv")        # write, add, commit
flow.push()
clone = flow.clone(tmp_path / "b"); clone.pull()
assert clone.data() == flow.data()
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import gitkit
from blake3 import blake3

from dvk.commands.add import AddResult, add
from dvk.commands.checkout import checkout
from dvk.commands.materializer import CheckoutResult
from dvk.commands.pull import FetchResult, PullResult, fetch, pull
from dvk.commands.push import PushResult, push
from dvk.commands.repo import Repo
from dvk.commands.status import PathStatus, Status, status
from dvk.errors import DvkError
from dvk.events import Note, OnEvent, ignore
from dvk.workspace.pointer import Pointer

Files = Mapping[str | bytes, bytes]
Paths = str | bytes


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress; equal seeds give equal bytes."""
    return random.Random(seed).randbytes(size)


def csv(rows: int, seed: int = 0) -> bytes:
    """A table of `rows` lines; tables of one seed start alike."""
    source = random.Random(seed)
    return b"id,price,note\n" + b"".join(b"%d,%.4f,n%d\n" % (i, source.random(), i % 17) for i in range(rows))


class Flow:
    """A work tree at `top`, with `origin` as its default remote."""

    def __init__(
        self,
        top: Path,
        home: Path,
        *,
        remote: str | None = None,
        init: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.top, self.home = top, home
        self.git_repo = gitkit.Repo(top, home, init=init)
        self.remote_dir = home / "remote"
        url = remote or f"file://{self.remote_dir}"
        self.environ = {**self.git_repo.environ, "DVK_TRUST_REMOTES": url, **(environ or {})}
        self.notes: list[Note] = []
        if init:
            self.write({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{url}"\n'.encode()})
            self.git("add", "dvk.toml")
            self.git("commit", "-q", "-m", "a remote")

    # ------------------------------------------------------------ the work tree

    def git(self, *arguments: str | bytes, ok: bool = True) -> str:
        return self.git_repo.git(*arguments, ok=ok)

    def at(self, path: Paths) -> bytes:
        """The whole path of something in the work tree."""
        return os.path.join(os.fsencode(self.top), os.fsencode(path))

    def write(self, files: Files) -> None:
        self.git_repo.write(dict(files))

    def read(self, path: Paths) -> bytes:
        with open(self.at(path), "rb") as file:
            return file.read()

    def exists(self, path: Paths) -> bool:
        return os.path.lexists(self.at(path))

    def remove(self, *paths: Paths) -> None:
        for path in paths:
            os.unlink(self.at(path))

    def data(self, folder: Paths = b"") -> dict[bytes, bytes]:
        """What lies in the work tree and is neither Git's nor a pointer: path -> hash, or what a link says.

        An empty directory is b"dir"; an executable file has a b"x" before its hash.
        """
        out: dict[bytes, bytes] = {}
        base = os.path.join(os.fsencode(self.top), os.fsencode(folder)).rstrip(b"/")
        skip = {b".git"} if not folder else set()
        for root, folders, names in os.walk(base):
            if root == base:
                folders[:] = [f for f in folders if f not in skip]
            for name in [*names, *(f for f in folders if os.path.islink(os.path.join(root, f)))]:
                whole = os.path.join(root, name)
                inside = whole[len(os.fsencode(self.top)) + 1 :]
                if os.path.islink(whole):
                    out[inside] = b"-> " + os.readlink(whole)
                elif not os.path.isfile(whole):
                    out[inside] = b"special"
                elif not name.endswith(b".dvk") and inside not in (b"dvk.toml", b".gitattributes", b".git"):
                    with open(whole, "rb") as file:
                        found = blake3(file.read()).hexdigest().encode()
                    out[inside] = b"x" + found if os.stat(whole).st_mode & 0o100 else found
            if not names and not folders:
                out[root[len(os.fsencode(self.top)) + 1 :]] = b"dir"
        return out

    def commit(self, message: str = "a version") -> str:
        """Commit what is in the index, and nothing else; the commit's id."""
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.head()

    def head(self) -> str:
        return self.git("rev-parse", "HEAD").strip()

    def version(self, files: Files, *paths: Paths) -> str:
        """Write, `dvk add`, commit; the commit's id."""
        self.write(files)
        self.add(*paths)
        return self.commit()

    def clone(self, top: Path, *, environ: Mapping[str, str] | None = None) -> Flow:
        """A fresh clone, which holds pointers and no data."""
        self.git("clone", "-q", str(self.top), str(top))
        out = Flow(top, self.home, init=False)
        out.environ = {**self.environ, **(environ or {})}
        return out

    def worktree(self, top: Path, branch: str) -> Flow:
        """A linked worktree on a new branch."""
        self.git("worktree", "add", "-q", "-b", branch, str(top))
        out = Flow(top, self.home, init=False)
        out.environ = dict(self.environ)
        return out

    # ------------------------------------------------------------ verbs, as the library has them

    def repo(self, folder: str = "") -> Repo:
        """As a command that runs in `folder` sees it."""
        return Repo(self.top / folder, environ=self.environ)

    def _listen(self, event: object) -> None:
        if isinstance(event, Note):
            self.notes.append(event)

    def add(self, *paths: Paths, **options: bool) -> AddResult:
        with self.repo() as repo:
            return add(repo, paths, on_event=self._listen, **options)

    def status(self, *paths: Paths) -> Status:
        """The status, of a workspace where nothing is broken."""
        with self.repo() as repo:
            out, problems = status(repo, paths, on_event=self._listen)
        assert problems == [], [str(p) for p in problems]
        return out

    def one(self, path: str) -> PathStatus:
        """The status of one tracked path."""
        return {p.path: p for p in self.status().paths}[os.fsencode(path)]

    def checkout(self, *paths: Paths, rev: str | None = None, force: bool = False, ok: bool = True) -> CheckoutResult:
        with self.repo() as repo:
            done = checkout(repo, paths, rev=rev, force=force, on_event=self._listen)
        assert not ok or done.failures == [], [str(e) for e in done.failures]
        return done

    def switch(self, rev: str) -> CheckoutResult:
        """`git checkout REV`, then `dvk checkout`."""
        self.git("checkout", "-q", rev)
        return self.checkout()

    def push(
        self,
        *paths: Paths,
        remote: str | None = None,
        revs: Sequence[str] = (),
        ok: bool = True,
        on_event: OnEvent = ignore,
        **options: bool,
    ) -> PushResult:
        with self.repo() as repo:
            done = push(repo, paths, remote=remote, revs=revs, on_event=on_event, **options)
        assert not ok or done.failures == [], [str(e) for e in done.failures]
        return done

    def fetch(self, *paths: Paths, rev: str | None = None, ok: bool = True) -> FetchResult:
        with self.repo() as repo:
            done = fetch(repo, paths, rev=rev, on_event=self._listen)
        assert not ok or done.failures == [], [str(e) for e in done.failures]
        return done

    def pull(self, *paths: Paths, store: bool = True, force: bool = False, ok: bool = True) -> PullResult:
        with self.repo() as repo:
            done = pull(repo, paths, store=store, force=force, on_event=self._listen)
        assert not ok or done.failures == [], [str(e) for e in done.failures]
        return done

    def pointer(self, path: Paths) -> Pointer:
        with self.repo() as repo:
            return repo.workspace.read_pointer(os.fsencode(path))

    # ------------------------------------------------------------ verbs, in a process of their own

    def start(self, *argv: Paths, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """The real program in a process of its own. The caller waits for it or kills it."""
        return subprocess.Popen(
            [sys.executable, "-m", "dvk", *argv],
            cwd=self.top,
            env={**self.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def dvk(self, *argv: Paths, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Run the real program; exit code and what it said."""
        child = self.start(*argv, environ=environ)
        out, err = child.communicate(timeout=120)
        return child.returncode, (out + err).decode("utf-8", "replace")

    def hit(self, *argv: Paths, after_s: float, signum: int = signal.SIGKILL) -> int:
        """Start the program, send it a signal after a while, and return its exit code (negative: by a signal)."""
        child = self.start(*argv)
        try:
            time.sleep(after_s)
            child.send_signal(signum)
            child.communicate(timeout=60)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        return child.returncode


def failure_of(call: object) -> DvkError:
    """The error that a call without arguments raises."""
    try:
        call()  # type: ignore[operator]
    except DvkError as error:
        return error
    raise AssertionError("no error was raised")
