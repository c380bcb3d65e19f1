"""Running the git program: which one, with what environment, and what its failures mean.

A repository is written by strangers, and `git` found in it (or through a relative entry of PATH) would be
theirs. So the program is looked up once, in the absolute folders of PATH that lie outside the work tree,
and is always run by that path, without a shell, in the C locale so that its few messages that we look at
stay the same.

>>> program = GitProgram.find({"PATH": "/usr/bin:/bin"}, outside=b"/some/worktree")
>>> program is None or program.run([b"--version"], cwd=b"/").ok
True

Variables that tie git to one repository (GIT_DIR and its kind, as a hook inherits them) are dropped: a
workspace is found from its folder, and `dvk.Repo("/elsewhere")` inside a hook must not land in the hook's
repository.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from msgspec import Struct

from dvk.backend.text import printable, redact
from dvk.errors import Busy, DvkError, NotFound, Refused, StorageError, StorageFull
from dvk.store.names import show
from dvk.timings import Stage, stage
from dvk.workspace.git_moved import find_git

#: what `git rev-parse --local-env-vars` lists, without the configuration that the user gave for this run
_REPOSITORY_VARIABLES = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NAMESPACE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
        # these change what commands print or how they take paths
        "GIT_EXTERNAL_DIFF",
        "GIT_DIFF_OPTS",
        "GIT_GLOB_PATHSPECS",
        "GIT_ICASE_PATHSPECS",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NOGLOB_PATHSPECS",
        "GIT_PAGER",
        "LANGUAGE",
    }
)
_OWNERSHIP = re.compile(rb"^\s*git config --global --add safe\.directory (.+)$", re.MULTILINE)
_LOCK_WAITS_S = (0.02, 0.05, 0.1, 0.2)
_CHUNK = 1 << 16
_INCOMPLETE = (b"promisor", b"unable to read", b"missing", b"could not fetch", b"bad object", b"bad tree")


class GitFailed(DvkError):
    """Git refused something in a way that dvk has no better word for; the message is git's own first line."""

    kind = "git"


class Finished(Struct, frozen=True):
    """What one run of git left behind."""

    code: int
    out: bytes
    err: bytes

    @property
    def ok(self) -> bool:
        """Whether git was content."""
        return self.code == 0


class GitProgram(Struct, frozen=True):
    """The git program at `path`, run with `environ`. Safe from many threads."""

    path: str
    environ: Mapping[str, str]

    def __repr__(self) -> str:
        return f"GitProgram({self.path!r})"  # what the environment holds is nobody's business

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("path", self.path)]

    @classmethod
    def find(cls, environ: Mapping[str, str], *, outside: bytes | None) -> GitProgram | None:
        """The first git on PATH whose folder is absolute and not in the work tree `outside`, or None."""
        kept = {k: v for k, v in environ.items() if k not in _REPOSITORY_VARIABLES}
        # Hooks of ours have nothing to do for what we ask git for, and would wait for our own locks.
        kept |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "DVK_HOOKS": "0"}
        found = find_git(environ.get("PATH", os.defpath), outside)
        return cls(found, kept) if found else None

    def bound_to(self, git_dir: bytes, top: bytes) -> GitProgram:
        """The same program for a work tree that does not lead to its Git folder by itself (core.worktree)."""
        variables = {"GIT_DIR": os.fsdecode(git_dir), "GIT_WORK_TREE": os.fsdecode(top)}
        return GitProgram(self.path, {**self.environ, **variables})

    def without_replacements(self) -> GitProgram:
        """The same program, for history as it was made: without `git replace` and without grafts."""
        variables = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": os.devnull}
        return GitProgram(self.path, {**self.environ, **variables})

    def run(self, arguments: Sequence[bytes | str], *, cwd: bytes, stdin: bytes = b"") -> Finished:
        """Run git to its end and return what it said, whatever that is."""
        with stage(Stage.GIT, count=0), self._start(arguments, cwd) as process:
            out, err = process.communicate(stdin)
        return Finished(process.returncode, out, err)

    def check(self, arguments: Sequence[bytes | str], *, cwd: bytes, stdin: bytes = b"") -> bytes:
        """Run git and return its output.

        A lock that another git holds is waited for, some 0.4 s in all.

        Raises:
            Busy: the lock is still held.
            DvkError: whatever else git failed for, see `failure`.
        """
        for wait_s in (*_LOCK_WAITS_S, None):
            done = self.run(arguments, cwd=cwd, stdin=stdin)
            if done.ok:
                return done.out
            error = failure(done, cwd)
            if wait_s is None or not isinstance(error, Busy):
                raise error
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def fields(self, arguments: Sequence[bytes | str], *, cwd: bytes, stdin: bytes = b"") -> Iterator[bytes]:
        """The NUL-terminated fields of git's output, while it is still running.

        Raises:
            DvkError: git failed, after the fields that it wrote before; see `failure`.
        """
        with self._start(arguments, cwd) as process:
            assert process.stdout and process.stderr
            err: list[bytes] = []
            # Both other pipes need somebody at them, or git and we wait for each other.
            helpers = [
                threading.Thread(target=_feed, args=(process, stdin), daemon=True),
                threading.Thread(target=_drain, args=(process.stderr, err), daemon=True),
            ]
            for helper in helpers:
                helper.start()
            ended = False
            try:
                rest = b""
                while chunk := _read_some(process.stdout.fileno()):
                    *whole, rest = (rest + chunk).split(b"\0")
                    yield from whole
                if rest.strip():
                    yield rest
                ended = True
            finally:
                if not ended:  # the caller has seen enough
                    process.kill()
                process.wait()
                for helper in helpers:
                    helper.join()
        if process.returncode:
            raise failure(Finished(process.returncode, b"", b"".join(err)), cwd)

    def open(self, arguments: Sequence[bytes | str], *, cwd: bytes) -> subprocess.Popen[bytes]:
        """A git that goes on running and answers on its pipes; its messages are dropped."""
        return self._start(arguments, cwd, stderr=subprocess.DEVNULL)

    def _start(
        self, arguments: Sequence[bytes | str], cwd: bytes, *, stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        try:
            with stage(Stage.GIT):
                return subprocess.Popen(
                    [self.path, *arguments],
                    cwd=cwd,
                    env=self.environ,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                )
        except FileNotFoundError as e:
            raise NotFound("the folder (or the git program) is gone", subject=show(cwd)) from e
        except OSError as e:
            raise StorageError(f"cannot run git: {os.strerror(e.errno or 0)}", subject=self.path) from e


def _read_some(fd: int) -> bytes:
    with stage(Stage.GIT, count=0):
        return os.read(fd, _CHUNK)


def _feed(process: subprocess.Popen[bytes], stdin: bytes) -> None:
    assert process.stdin
    try:
        process.stdin.write(stdin)
        process.stdin.close()
    except BrokenPipeError:
        return  # git ended before it had read all; its exit code tells why


def _drain(pipe: IO[bytes], into: list[bytes]) -> None:
    into.append(pipe.read())


def failure(done: Finished, where: bytes) -> DvkError:
    """The dvk error behind a failed run of git in the folder `where`."""
    err = done.err
    if b"dubious ownership" in err:
        return foreign_owner(where, err)
    if b".lock': File exists" in err:
        return Busy(
            "another git process holds the lock",
            subject=_quoted(err) or show(where),
            hint="run the same command again; if no git is running, remove that file",
        )
    if b"No space left on device" in err or b"Disk quota exceeded" in err:
        return StorageFull("git found no space left", subject=show(where), hint="free some space and try again")
    if b"Permission denied" in err or b"Read-only file system" in err:
        return StorageError(f"git: {_first_line(err)}", subject=show(where), hint="check owner and permissions")
    hint = "run `git fsck` to see what is wrong with the repository"
    if any(word in err.lower() for word in _INCOMPLETE):
        hint = (
            "this clone may be shallow or partial: `git fetch --unshallow` or "
            "`git fetch --refetch --no-filter` completes it; else `git fsck` tells more"
        )
    return GitFailed(f"git failed: {_first_line(err) or f'exit code {done.code}'}", subject=show(where), hint=hint)


def foreign_owner(where: bytes, err: bytes = b"") -> Refused:
    """Git's rule against a repository of somebody else, with git's own way to accept it."""
    told = _OWNERSHIP.search(err)
    argument = printable(os.fsdecode(told[1])) if told else show(where)
    return Refused(
        "the repository belongs to another user",
        subject=show(where),
        hint=f"if you trust it: git config --global --add safe.directory {argument}",
    )


def needs_git(what: str) -> NotFound:
    """The error for what cannot be done without the git program."""
    return NotFound(
        f"the git program was not found, and {what} needs it",
        hint="install git; it must be in an absolute folder of PATH outside the work tree",
    )


def chunked(items: Iterable[bytes], *, max_bytes: int = 60_000) -> Iterator[list[bytes]]:
    """Arguments in groups that fit a command line everywhere."""
    group: list[bytes] = []
    size = 0
    for item in items:
        if group and size + len(item) + 9 > max_bytes:
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item) + 9
    if group:
        yield group


def _quoted(err: bytes) -> str:
    found = re.search(rb"'([^']*\.lock)'", err)
    return printable(os.fsdecode(found[1])) if found else ""


def _first_line(err: bytes) -> str:
    for line in err.decode("utf-8", "replace").splitlines():
        if line.strip():
            return redact(line.removeprefix("fatal: ").removeprefix("error: "))
    return ""
