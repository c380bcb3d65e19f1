"""The Git repository that a workspace lies in: where it is, what it has committed, what it has staged.

Everything that dvk knows of Git is here and in the modules `git_*` beside it; callers see paths from the
top (raw bytes), ids and records. Two programs do the work. The git program is asked where there is one: it
reads every kind of repository, and a run costs 2 ms. Without it (an image, a bare Python environment)
libgit2 reads commits, and what needs an index or history says that git is missing.

>>> repo = GitRepo.find(".", os.environ)
>>> repo is None or os.path.isabs(repo.top)
True

Calls that read the index or the work tree are one run of git each, so ask for many paths at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING

from dvk.backend.text import printable
from dvk.errors import NotARepository, NotFound
from dvk.store.names import show
from dvk.workspace.git_log import Commit, PointerVersion, path_history, pointer_versions
from dvk.workspace.git_objects import (
    FILE_MODES,
    BlobId,
    CommitId,
    Objects,
    ProgramObjects,
    TreeEntry,
    check_rev,
)
from dvk.workspace.git_program import GitProgram, chunked, failure, needs_git
from dvk.workspace.pointer import SUFFIX, is_pointer_name

if TYPE_CHECKING:
    from dvk.workspace.git_pygit2 import Discovered, Pygit2Objects

__all__ = [
    "BlobId",
    "Commit",
    "CommitId",
    "GitRepo",
    "IndexEntry",
    "PointerVersion",
    "StagedChange",
    "TreeEntry",
]

_ALL_POINTERS = b":(top,glob)**/*.dvk"
_MAX_BLOB_BYTES = 1 << 20
_MAX_NAMES = 2000  # of branches and tags that a wrong name is compared with
_DISCOVERY = (
    *("--is-bare-repository", "--is-inside-work-tree", "--show-object-format"),
    *("--absolute-git-dir", "--git-common-dir", "--show-toplevel"),
)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One row of the Git index. Stage 0 is staged; 1, 2, 3 are base, ours and theirs of a conflict."""

    path: bytes
    stage: int
    oid: BlobId


@dataclass(frozen=True, slots=True)
class StagedChange:
    """A pointer whose index differs from HEAD; None on the side that does not have it."""

    path: bytes
    head: BlobId | None
    index: BlobId | None


class GitRepo:
    """One Git work tree. Safe from many threads.

    `top`, `git_dir` and `common_dir` are absolute and without links; the last two differ in a linked
    worktree.
    """

    def __init__(
        self,
        top: bytes,
        git_dir: bytes,
        common_dir: bytes,
        *,
        program: GitProgram | None,
        objects: Objects,
        library: Pygit2Objects | None = None,
        object_format: str = "sha1",
    ) -> None:
        self.top = top
        self.git_dir = git_dir
        self.common_dir = common_dir
        self.object_format = object_format
        self._program = program
        self._objects = objects
        self._library = library

    @classmethod
    def find(cls, start: str, environ: Mapping[str, str]) -> GitRepo | None:
        """The repository whose work tree the folder `start` lies in; None when there is none.

        Raises:
            NotARepository: it is bare, or `start` lies in the `.git` folder.
            Refused: it belongs to another user (git's safe.directory rule).
            NotFound: `start` is no folder.
        """
        folder = os.fsencode(os.path.realpath(start))
        if not os.path.isdir(folder):
            raise NotFound("not a folder", subject=show(folder))
        program = GitProgram.find(environ, outside=_nearest_git(folder))
        if program is None:
            return cls._find_by_library(folder)
        found = cls._find_by_program(folder, program)
        if found is None and environ.get("GIT_DIR"):
            # Nothing above this folder, but the user named a repository for it, as `git --git-dir` does.
            named = {k: environ[k] for k in ("GIT_DIR", "GIT_WORK_TREE") if environ.get(k)}
            found = cls._find_by_program(folder, GitProgram(program.path, {**program.environ, **named}))
        return found

    @classmethod
    def _find_by_program(cls, folder: bytes, program: GitProgram) -> GitRepo | None:
        done = program.run(["rev-parse", *_DISCOVERY], cwd=folder)
        if b"not a git repository" in done.err and not done.out:
            return None
        lines = done.out.split(b"\n")[:-1]
        if lines[:1] == [b"true"]:
            raise _bare(folder)
        if lines[1:2] == [b"false"]:
            raise NotARepository(
                "this is inside a Git folder, not in a work tree",
                subject=show(folder),
                hint="go to the work tree",
            )
        if not done.ok:
            raise failure(done, folder)
        if len(lines) != len(_DISCOVERY):
            # A path with a newline in it: ask for each alone, where only the last newline is git's.
            paths = [program.check(["rev-parse", o], cwd=folder)[:-1] for o in _DISCOVERY[3:]]
            lines = [*lines[:3], *paths]
        git_dir, common, top = (os.path.realpath(os.path.join(folder, path)) for path in lines[3:])
        if "GIT_DIR" in program.environ or not os.path.lexists(os.path.join(top, b".git")):
            program = program.bound_to(git_dir, top)
        return cls(
            top,
            git_dir,
            common,
            program=program,
            objects=ProgramObjects(program, top),
            object_format="sha256" if lines[2] == b"sha256" else "sha1",
        )

    @classmethod
    def _find_by_library(cls, folder: bytes) -> GitRepo | None:
        # The one gate to libgit2: its import costs 66 ms, which `dvk status` must not pay where git does
        # the work, and a machine without git must be able to load this module all the same.
        library = importlib.import_module("dvk.workspace.git_pygit2")
        found: Discovered | None = library.discover(folder)
        if found is None:
            return None
        if found.top is None:
            raise _bare(folder)
        objects: Pygit2Objects = library.Pygit2Objects(found.git_dir)
        return cls(found.top, found.git_dir, found.common_dir, program=None, objects=objects, library=objects)

    def __enter__(self) -> GitRepo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes behind object reads; the next read starts them again."""
        self._objects.close()

    @property
    def has_program(self) -> bool:
        """Whether the git program was found, so that index, history and staging work."""
        return self._program is not None

    # -- revisions and committed content ---------------------------------------------------------

    def resolve(self, rev: str) -> CommitId:
        """The commit that `rev` names.

        Raises:
            NotFound: there is none.
            UsageError: it cannot be a revision (an option, control characters).
        """
        found = self._objects.resolve(check_rev(rev))
        if found is None:
            raise NotFound("no such revision", subject=printable(rev), hint=self._like(rev))
        return found

    def _like(self, rev: str) -> str:
        """A hint for a revision that does not exist: branches and tags that have nearly this name."""
        names = self.ref_names() if self.has_program else []
        close = difflib.get_close_matches(rev, names[:_MAX_NAMES], n=3, cutoff=0.5)
        if close:
            return f"did you mean {printable(' or '.join(close))}?"
        return "`git log --all --oneline` and `git tag` list what exists"

    def ref_names(self) -> list[str]:
        """Names of branches and tags, as a person writes them, newest commits first."""
        command = ["for-each-ref", "--sort=-creatordate", "--format=%(refname:short)"]
        out = self._need("branches and tags").check(
            [*command, "refs/heads/", "refs/tags/", "refs/remotes/"], cwd=self.top
        )
        return [os.fsdecode(line) for line in out.splitlines()]

    def head(self) -> CommitId | None:
        """The commit that is checked out; None before the first one."""
        return self._objects.resolve("HEAD")

    def merge_base(self, a: str, b: str) -> CommitId | None:
        """The best common ancestor of two revisions; None when their histories share nothing.

        Raises:
            NotFound, UsageError: as `resolve`.
        """
        ends = [self.resolve(a), self.resolve(b)]
        done = self._need("history").run(["merge-base", *ends], cwd=self.top)
        if done.code not in (0, 1):
            raise failure(done, self.top)
        return CommitId(os.fsdecode(done.out.split(b"\n")[0])) if done.ok else None

    def branch(self) -> str | None:
        """The branch that is checked out, also before its first commit; None when HEAD is detached."""
        if self._library is not None:
            return self._library.branch()
        done = self._need("the branch").run(["symbolic-ref", "--quiet", "--short", "HEAD"], cwd=self.top)
        return os.fsdecode(done.out[:-1]) if done.ok else None

    def local_branches(self) -> list[tuple[str, CommitId]]:
        """Name and commit of each local branch."""
        out = self._need("branches").check(
            ["for-each-ref", "--format=%(objectname) %(refname:lstrip=2)", "refs/heads/"], cwd=self.top
        )
        rows = (line.partition(b" ") for line in out.splitlines())
        return [(os.fsdecode(name), CommitId(oid.decode("ascii"))) for oid, _, name in rows]

    def tips(self) -> list[str]:
        """What keeps commits alive, each once: branches, tags, remote branches, stash, the HEAD of every worktree."""
        program = self._need("branches and tags")
        found = program.check(["for-each-ref", "--format=%(objectname)"], cwd=self.top).split()
        for line in program.check(["worktree", "list", "--porcelain"], cwd=self.top).splitlines():
            word, _, oid = line.partition(b" ")
            if word == b"HEAD" and oid.strip(b"0"):  # all zeros before the first commit
                found.append(oid)
        return list(dict.fromkeys(oid.decode("ascii") for oid in found))

    def read_blob(self, oid: str, *, max_bytes: int = _MAX_BLOB_BYTES) -> bytes:
        """The content of one blob; see `read_blobs`."""
        return next(iter(self._objects.blobs([oid], max_bytes=max_bytes)))

    def read_blobs(self, oids: Iterable[str], *, max_bytes: int = _MAX_BLOB_BYTES) -> Iterator[bytes]:
        """The content of many blobs, in order, read ahead in groups.

        Raises:
            DataMissing: this clone does not have one (shallow, partial, damaged).
            FormatError: one is larger than `max_bytes` or not a blob.
        """
        return self._objects.blobs(oids, max_bytes=max_bytes)

    def entry_at(self, commit: CommitId, path: bytes) -> TreeEntry | None:
        """What a commit has at `path`: a file, folder, link or submodule; None for nothing."""
        return next(iter(self._objects.entries(commit, [path])), None)

    def blob_at(self, commit: CommitId, path: bytes, *, max_bytes: int = _MAX_BLOB_BYTES) -> bytes | None:
        """The content of the plain file `path` in a commit; None when there is none."""
        entry = self.entry_at(commit, path)
        return self.read_blob(entry.oid, max_bytes=max_bytes) if entry and entry.is_file else None

    def children_at(self, commit: CommitId, folder: bytes) -> list[TreeEntry]:
        """What a commit has directly in a folder (at the top with `b""`), folders included."""
        return self._objects.children(commit, folder)

    def files_at(self, commit: CommitId, under: bytes = b"") -> Iterator[TreeEntry]:
        """Everything but folders that a commit has at or below `under`."""
        return self._objects.walk(commit, under)

    def blob_sizes(self, oids: Sequence[str]) -> list[int]:
        """The lengths of blobs in bytes, without reading them. Raises DataMissing as `read_blobs`."""
        return self._objects.sizes(oids)

    def commit_time(self, commit: CommitId) -> datetime:
        """When a commit was made, in UTC; 1970 where it states an impossible time."""
        try:
            return datetime.fromtimestamp(self._objects.time_of(commit), UTC)
        except (OverflowError, ValueError, OSError):
            return datetime.fromtimestamp(0, UTC)

    def pointers_at(self, commit: CommitId, under: bytes = b"") -> Iterator[tuple[bytes, BlobId]]:
        """Path and blob of each pointer file in a commit, below the folder `under` if given."""
        for entry in self._objects.walk(commit, under):
            if entry.is_file and is_pointer_name(entry.path):
                yield entry.path, BlobId(entry.oid)

    def head_pointers(self) -> dict[bytes, BlobId]:
        """Path and blob of each pointer in HEAD; empty before the first commit."""
        head = self.head()
        return dict(self.pointers_at(head)) if head else {}

    # -- history ---------------------------------------------------------------------------------

    def pointer_versions(self, revs: Sequence[str], *, paths: Sequence[bytes] = ()) -> Iterator[PointerVersion]:
        """Every version of a pointer that a commit reachable from `revs` brought, newest first.

        `revs` takes `HEAD`, `A..B`, `^origin/main`. `paths` (of data, or of folders above it) narrow it.

        Raises:
            NotFound: a revision does not exist.
            UsageError: one would be an option.
            DvkError: history is not all here.
        """
        program = self._need("history")
        wanted = [check_rev(rev) for rev in revs]
        if not wanted:
            return
        for version in pointer_versions(program, self.top, wanted, _pathspecs(paths)):
            if is_pointer_name(version.path) and _covers(frozenset(paths), version.path):
                yield version

    def history(self, path: bytes, rev: str = "HEAD") -> Iterator[Commit]:
        """The commits that changed the file `path` (as a rule, of a pointer), newest first.

        Raises:
            NotFound: the revision does not exist.
        """
        return path_history(self._need("history"), self.top, path, self.resolve(rev))

    # -- index and work tree ---------------------------------------------------------------------

    def index_pointers(self, under: Sequence[bytes] = ()) -> Iterator[IndexEntry]:
        """The pointers in the Git index, conflicts with one entry a stage."""
        return iter(self.known_pointers(under, untracked=False)[0])

    def untracked_pointers(self, under: Sequence[bytes] = ()) -> list[bytes]:
        """Pointers in the work tree that Git neither tracks nor ignores."""
        return self.known_pointers(under)[1]

    def known_pointers(
        self, under: Sequence[bytes] = (), *, untracked: bool = True
    ) -> tuple[list[IndexEntry], list[bytes]]:
        """`index_pointers` and `untracked_pointers` together, by one run of git.

        `under` narrows to the pointers of these data paths and those below these folders.
        """
        others = ["-o", "--exclude-standard"] if untracked else []
        command: list[bytes | str] = ["ls-files", "-z", "-t", "-s", *others, "--", *_pathspecs(under)]
        wanted = frozenset(under)
        tracked: list[IndexEntry] = []
        new: list[bytes] = []
        for field in self._need("the Git index").fields(command, cwd=self.top):
            tag, rest = field[:1], field[2:]
            if tag == b"?":
                if is_pointer_name(rest) and _covers(wanted, rest):
                    new.append(rest)
                continue
            meta, _, path = rest.partition(b"\t")
            mode, oid, stage = meta.split(b" ")
            if int(mode, 8) in FILE_MODES and is_pointer_name(path) and _covers(wanted, path):
                tracked.append(IndexEntry(path, int(stage), BlobId(oid.decode("ascii"))))
        return tracked, new

    def staged_changes(self) -> list[StagedChange]:
        """The pointers whose index differs from HEAD; conflicts are left out."""
        if self.head() is None:
            return [StagedChange(e.path, None, e.oid) for e in self.index_pointers() if e.stage == 0]
        command = ["diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff"]
        fields = self._need("the Git index").fields(
            ["-c", "diff.relative=false", *command, "HEAD", "--", _ALL_POINTERS], cwd=self.top
        )
        found = []
        for field in fields:
            path = next(fields)
            old_mode, new_mode, old, new, status = field.lstrip(b":").split(b" ")
            if status[:1] != b"U" and is_pointer_name(path):
                found.append(StagedChange(path, _blob(old_mode, old), _blob(new_mode, new)))
        return found

    def tracked_under(self, path: bytes) -> list[bytes]:
        """What Git itself tracks at or below `path`, pointers left out (all of the repository with `b""`)."""
        pathspec = [path] if path else []
        command: list[bytes | str] = ["--literal-pathspecs", "ls-files", "-z", "--", *pathspec]
        files = self._need("the Git index").fields(command, cwd=self.top)
        return [file for file in files if not is_pointer_name(file)]

    def tracked_among(self, paths: Sequence[bytes]) -> set[bytes]:
        """Those of `paths` at or below which Git itself tracks something (other than a pointer); one run for many."""
        wanted = set(paths)
        found: set[bytes] = set()
        for group in chunked(paths):
            command: list[bytes | str] = ["--literal-pathspecs", "ls-files", "-z", "--", *group]
            for file in self._need("the Git index").fields(command, cwd=self.top):
                if is_pointer_name(file):
                    continue
                while file:
                    if file in wanted:
                        found.add(file)
                    file = file.rpartition(b"/")[0]
        return found

    def is_ignored(self, paths: Sequence[bytes], *, tracked_too: bool = True) -> dict[bytes, str]:
        """Which paths an ignore rule matches, and which rule (`.gitignore:3: *.dvk`).

        Git's rules do not apply to what it already tracks; with `tracked_too` they are asked all the same.
        """
        if not paths:
            return {}
        options = ["--no-index"] if tracked_too else []
        # `./` keeps a name that starts with `:` from being taken for a pathspec.
        done = self._need("ignore rules").run(
            ["check-ignore", "-v", "-z", "--stdin", *options],
            cwd=self.top,
            stdin=b"".join(b"./" + path + b"\0" for path in paths),
        )
        if done.code not in (0, 1):
            raise failure(done, self.top)
        fields = done.out.split(b"\0")[:-1]
        rows = zip(fields[::4], fields[1::4], fields[2::4], fields[3::4], strict=True)
        return {
            path[2:]: f"{show(source)}:{line.decode()}: {show(pattern)}"
            for source, line, pattern, path in rows
            if not pattern.startswith(b"!")
        }

    def stage(self, paths: Sequence[bytes]) -> dict[bytes, str]:
        """Put pointers (or other files) into the Git index as they are in the work tree, or take them out.

        Ignore rules do not hold a pointer back; the answer names the rules that would have.

        Raises:
            Busy: another git holds the index.
        """
        if not paths:
            return {}
        overruled = self.is_ignored(paths, tracked_too=False)
        self._need("staging").check(
            ["update-index", "--add", "--remove", "-z", "--stdin"], cwd=self.top, stdin=_nul(paths)
        )
        return overruled

    def unstage_removed(self, paths: Sequence[bytes]) -> None:
        """Take files out of the Git index, whether they still exist or not; the work tree is not touched.

        Raises:
            Busy: another git holds the index.
        """
        if paths:
            self._need("staging").check(
                ["update-index", "--force-remove", "-z", "--stdin"], cwd=self.top, stdin=_nul(paths)
            )

    # -- the repository --------------------------------------------------------------------------

    def worktrees(self) -> list[bytes]:
        """The tops of all worktrees that share this repository, the main one first."""
        program = self._need("worktrees")
        done = program.run(["worktree", "list", "--porcelain", "-z"], cwd=self.top)
        separator = b"\0"
        if done.code == 129:  # git before 2.36 has no -z; then a newline in a path is beyond us
            done, separator = program.run(["worktree", "list", "--porcelain"], cwd=self.top), b"\n"
        if not done.ok:
            raise failure(done, self.top)
        rows = done.out.split(separator)
        return [row.removeprefix(b"worktree ") for row in rows if row.startswith(b"worktree ")]

    def git_path(self, name: str) -> bytes:
        """Where Git keeps `name` ("hooks", "info/exclude"), with the user's settings taken into account."""
        out = self._need(name).check(["rev-parse", "--git-path", name], cwd=self.top)
        return os.path.normpath(os.path.join(self.top, out[:-1]))

    def config_get(self, key: str) -> str | None:
        """A value of Git's own configuration; None when it is not set."""
        if self._library is not None:
            return self._library.config(key)
        done = self._need("configuration").run(["config", "--get", "-z", key], cwd=self.top)
        if done.code not in (0, 1):
            raise failure(done, self.top)
        return os.fsdecode(done.out[:-1]) if done.ok else None

    def config_set(self, key: str, value: str) -> None:
        """Set a value in the repository's own Git configuration (merge drivers of `dvk init`)."""
        self._need("configuration").check(["config", "--local", key, value], cwd=self.top)

    def config_unset(self, key: str) -> None:
        """Remove a value from the repository's own Git configuration; it need not be there."""
        done = self._need("configuration").run(["config", "--local", "--unset-all", key], cwd=self.top)
        if done.code not in (0, 5):  # 5: it was not there
            raise failure(done, self.top)

    def _need(self, what: str) -> GitProgram:
        if self._program is None:
            raise needs_git(what)
        return self._program


def _bare(folder: bytes) -> NotARepository:
    return NotARepository(
        "a bare repository has no work tree for data", subject=show(folder), hint="use dvk in a clone of it"
    )


def _nearest_git(folder: bytes) -> bytes | None:
    """The nearest folder upwards with a `.git`: a guess, good enough to keep away from programs in it."""
    while not os.path.lexists(os.path.join(folder, b".git")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return folder


def _nul(paths: Sequence[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def _blob(mode: bytes, oid: bytes) -> BlobId | None:
    return BlobId(oid.decode("ascii")) if int(mode, 8) in FILE_MODES else None


def _pathspecs(paths: Sequence[bytes]) -> list[bytes]:
    """Pathspecs for the pointers of `paths` and below them, or for all when they are too many."""
    specs: list[bytes] = []
    for path in paths:
        escaped = b"".join(b"\\" + c if c in b"*?[\\" else c for c in (bytes([b]) for b in path))
        specs += [b":(top,literal)" + path + SUFFIX, b":(top,glob)" + escaped + b"/**/*.dvk"]
    if not specs or b"" in paths or len(list(chunked(specs))) > 1:
        return [_ALL_POINTERS]
    return specs


def _covers(wanted: frozenset[bytes], pointer: bytes) -> bool:
    """Whether the data of `pointer` is one of `wanted` or below one; everything is below nothing."""
    if not wanted or b"" in wanted:
        return True
    path = pointer[: -len(SUFFIX)]
    while path not in wanted:
        path, slash, _ = path.rpartition(b"/")
        if not slash:
            return False
    return True
