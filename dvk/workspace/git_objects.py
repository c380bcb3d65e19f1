"""Reading what Git has committed: one contract, and the git program behind it.

`ProgramObjects` asks `git cat-file --batch`, which goes on running; `dvk.workspace.git_pygit2` does the
same through libgit2 where there is no git program. Both pass the same tests.

    objects = ProgramObjects(program, cwd=top)
    commit = objects.resolve("v1.0")
    [entry] = objects.entries(commit, [b"data/train.csv.dvk"])
    [text] = objects.blobs([entry.oid], max_bytes=65536)

Requests to `cat-file` are sent in groups, since a question and an answer each cost a switch between two
processes: 3 µs a blob instead of 47 (docs/design/git-object-reads.md).
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NewType, Protocol

from msgspec import Struct

from dvk.backend.text import printable
from dvk.errors import DataMissing, FormatError, UsageError
from dvk.workspace.git_program import GitFailed, GitProgram, chunked, failure

CommitId = NewType("CommitId", str)  #: 40 or 64 lowercase hexadecimal digits
BlobId = NewType("BlobId", str)  #: the same for a blob

_HEX = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GROUP = 60  # requests on their way at once: with 64 digits and a newline they fit the smallest pipe (4 KiB)

FILE_MODES = frozenset({0o100644, 0o100755, 0o100664})  # the third in very old repositories
TREE_MODE = 0o040000


class TreeEntry(Struct, frozen=True):
    """One name in a commit: a file, link (mode 120000), folder (40000) or submodule (160000)."""

    path: bytes  #: from the top of the work tree
    mode: int
    oid: str

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file; links are not, whatever they lead to."""
        return self.mode in FILE_MODES


class Objects(Protocol):
    """How committed content is read. Safe from many threads."""

    def resolve(self, rev: str) -> CommitId | None:
        """The commit that `rev` names, through tags; None when there is none."""

    def entries(self, commit: CommitId, paths: Sequence[bytes]) -> list[TreeEntry]:
        """What stands at exactly these paths in a commit; paths that do not exist are left out."""

    def walk(self, commit: CommitId, under: bytes) -> Iterator[TreeEntry]:
        """Everything but folders at or below `under` (all with `b""`), in Git's order."""

    def children(self, commit: CommitId, folder: bytes) -> list[TreeEntry]:
        """What stands directly in a folder (at the top with `b""`), folders included; nothing where there is none."""

    def sizes(self, oids: Sequence[str]) -> list[int]:
        """The length of each blob in bytes.

        Raises:
            DataMissing: as `blobs`.
        """

    def time_of(self, commit: CommitId) -> int:
        """When a commit was made: seconds since 1970, by its committer's clock."""

    def blobs(self, oids: Iterable[str], *, max_bytes: int) -> Iterator[bytes]:
        """The content of each blob, in order.

        Raises:
            DataMissing: the clone does not have it (shallow, partial or damaged).
            FormatError: it is larger than `max_bytes`, or no blob.
        """

    def close(self) -> None:
        """Let go of processes and files; the next call opens them again."""


def check_rev(rev: str) -> str:
    """`rev` itself if it can only be read as a revision.

    Raises:
        UsageError: it would be an option, or has characters that no revision has.
    """
    if not rev or rev.startswith("-") or not rev.isprintable():
        raise UsageError("not a revision", subject=printable(rev), hint="name a commit, a branch or a tag")
    return rev


def as_commit(text: str) -> CommitId | None:
    """`text` as a commit id if it is one written in full."""
    return CommitId(text) if _HEX.fullmatch(text) else None


def missing_object(oid: str) -> DataMissing:
    """The error for an object that this clone should have."""
    return DataMissing(
        "Git does not have this object here: the clone is shallow, partial or damaged",
        subject=oid[:12],
        hint="`git fetch --unshallow` (or `git fsck`) tells more",
    )


def too_large(oid: str, size: int, max_bytes: int) -> FormatError:
    """The error for a blob that cannot be what it is taken for."""
    return FormatError(f"a Git blob of {size:,} bytes where at most {max_bytes:,} are allowed", subject=oid[:12])


def not_a_blob(oid: str, kind: str) -> FormatError:
    """The error for an id that names a tree, commit or tag."""
    return FormatError(f"a Git {kind} where a file's content is expected", subject=oid[:12])


class ProgramObjects:
    """`Objects` by the git program, run in the folder `cwd`."""

    def __init__(self, program: GitProgram, cwd: bytes) -> None:
        self._program = program
        self._cwd = cwd
        self._lock = threading.Lock()
        self._batch: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._stop: weakref.finalize[..., ProgramObjects] | None = None

    def resolve(self, rev: str) -> CommitId | None:
        check_rev(rev)
        # `:/text` takes everything after it as the text, and finds commits only.
        name = rev if rev.startswith(":/") else f"{rev}^{{commit}}"
        done = self._program.run(["rev-parse", "--verify", "--quiet", name], cwd=self._cwd)
        if done.err and not done.ok and b"fatal" in done.err and b"Needed a single revision" not in done.err:
            raise failure(done, self._cwd)
        return as_commit(done.out.decode("ascii", "replace").strip()) if done.ok else None

    def entries(self, commit: CommitId, paths: Sequence[bytes]) -> list[TreeEntry]:
        found = []
        for group in chunked(paths):
            wanted = set(group)
            rows = self._tree([commit, b"--", *group])
            # `ls-tree a/b a` may show both; a path that is a folder's is shown as that folder.
            found += [row for row in rows if row.path in wanted]
        return found

    def walk(self, commit: CommitId, under: bytes) -> Iterator[TreeEntry]:
        yield from self._tree(["-r", commit, b"--", *([under] if under else [])])

    def children(self, commit: CommitId, folder: bytes) -> list[TreeEntry]:
        return list(self._tree([commit, *([b"--", folder + b"/"] if folder else [])]))

    def sizes(self, oids: Sequence[str]) -> list[int]:
        if not oids:
            return []
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        rows = self._program.check(["cat-file", "--batch-check"], cwd=self._cwd, stdin=asked).splitlines()
        out = []
        for oid, row in zip(oids, rows, strict=True):
            parts = row.split()
            if parts[-1:] == [b"missing"]:
                raise missing_object(oid)
            out.append(int(parts[2]))
        return out

    def time_of(self, commit: CommitId) -> int:
        out = self._program.check(["show", "-s", "--no-show-signature", "--format=%ct", commit, "--"], cwd=self._cwd)
        return int(out.split()[-1])

    def _tree(self, arguments: Sequence[bytes | str]) -> Iterator[TreeEntry]:
        command = ["--literal-pathspecs", "ls-tree", "-z", "--full-tree", *arguments]
        for field in self._program.fields(command, cwd=self._cwd):
            meta, _, path = field.partition(b"\t")
            mode, _, oid = meta.split(b" ")
            yield TreeEntry(path, int(mode, 8), oid.decode("ascii"))

    def blobs(self, oids: Iterable[str], *, max_bytes: int) -> Iterator[bytes]:
        pending = iter(oids)
        while group := list(islice(pending, _GROUP)):
            with self._lock:
                answers = self._read_group(group, max_bytes)
            yield from answers

    def _read_group(self, oids: list[str], max_bytes: int) -> list[bytes]:
        if any(not _HEX.fullmatch(oid) for oid in oids):
            raise ValueError("blobs are asked for by their full ids")
        process = self._running()
        assert process.stdin and process.stdout
        complete = False
        try:
            process.stdin.write("".join(f"{oid}\n" for oid in oids).encode())
            process.stdin.flush()
            answers = [self._read_one(process, oid, max_bytes) for oid in oids]
            complete = True
            return answers
        except BrokenPipeError as e:
            raise _ended(oids[0]) from e
        finally:
            if not complete:  # answers still to come would be taken for those of the next question
                self._end()

    def _read_one(self, process: subprocess.Popen[bytes], oid: str, max_bytes: int) -> bytes:
        assert process.stdout
        header = process.stdout.readline().split()
        if header and header[-1] == b"missing":
            raise missing_object(oid)
        if len(header) != 3 or header[0].decode("ascii", "replace") != oid:
            raise _ended(oid)
        if header[1] != b"blob":
            raise not_a_blob(oid, header[1].decode("ascii", "replace"))
        size = int(header[2])
        if size > max_bytes:
            raise too_large(oid, size, max_bytes)
        data = process.stdout.read(size + 1)
        if len(data) != size + 1:
            raise _ended(oid)
        return data[:-1]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._batch is None or self._pid != os.getpid() or self._batch.poll() is not None:
            self._end()
            self._batch = self._program.open(["cat-file", "--batch"], cwd=self._cwd)
            self._pid = os.getpid()
            self._stop = weakref.finalize(self, _stop, self._batch, self._pid)
        return self._batch

    def _end(self) -> None:
        if self._stop is not None:
            self._stop()
        self._batch = self._stop = None

    def close(self) -> None:
        with self._lock:
            self._end()


def _ended(oid: str) -> GitFailed:
    return GitFailed(
        "git gave up while reading objects",
        subject=oid[:12],
        hint="a partial clone needs its remote for this; else `git fsck` tells what is damaged",
    )


def _stop(process: subprocess.Popen[bytes], pid: int) -> None:
    if pid != os.getpid():
        return  # we are a fork: the process, and the answers in its pipes, belong to our parent
    process.kill()  # it only reads
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()
