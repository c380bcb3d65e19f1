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
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING

from dvk.backend.text import printable
from dvk.errors import NotARepository, NotFound
from dvk.store.names import show
from dvk.workspace.durable import exists
from dvk.workspace.git_alternates import Alternates, find_alternates
from dvk.workspace.git_index import GitIndex, IndexEntry, StagedChange, covers, pathspecs
from dvk.workspace.git_kept import Heard, commits, heard, kept_tips
from dvk.workspace.git_log import Commit, PointerVersion, Tagged, path_history, pointer_versions, tagged_versions
from dvk.workspace.git_objects import (
    BlobId,
    CommitId,
    Objects,
    ProgramObjects,
    TreeEntry,
    check_rev,
)
from dvk.workspace.git_program import GitProgram, failure
from dvk.workspace.pointer import is_pointer_name

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

_MAX_BLOB_BYTES = 1 << 20
_MAX_NAMES = 2000  # of branches and tags that a wrong name is compared with
_DISCOVERY = (
    *("--is-bare-repository", "--is-inside-work-tree", "--show-object-format"),
    *("--absolute-git-dir", "--git-common-dir", "--show-toplevel"),
)


class GitRepo(GitIndex):
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
        super().__init__(top, program)
        self.git_dir = git_dir
        self.common_dir = common_dir
        self.object_format = object_format
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

    def remote_tips(self, remote: str | None = None) -> list[CommitId]:
        """The commits that this clone last saw as branches of a Git remote, or of all.

        None for a URL or a name of no remote.
        """
        if remote is not None and not re.fullmatch(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*", remote):
            return []
        out = self._need("branches").check(
            ["for-each-ref", "--format=%(objectname)", f"refs/remotes/{f'{remote}/' if remote else ''}"], cwd=self.top
        )
        return [CommitId(oid) for oid in dict.fromkeys(out.decode("ascii").split())]

    def tips(self, *, tags: bool = True, stash: bool = True) -> list[str]:
        """What keeps commits alive, each once: branches, tags, remote branches, stash, the HEAD of every worktree."""
        program = self._need("branches and tags")
        rows = program.check(["for-each-ref", "--format=%(objectname) %(refname)"], cwd=self.top).splitlines()
        left_out = tuple(p for p, keep in ((b"refs/tags/", tags), (b"refs/stash", stash)) if not keep)
        found = [oid for oid, _, name in (row.partition(b" ") for row in rows) if not name.startswith(left_out)]
        for line in program.check(["worktree", "list", "--porcelain"], cwd=self.top).splitlines():
            word, _, oid = line.partition(b" ")
            if word == b"HEAD" and oid.strip(b"0"):  # all zeros before the first commit
                found.append(oid)
        return list(dict.fromkeys(oid.decode("ascii") for oid in found))

    def tree_tips(self) -> list[CommitId]:
        """What tags and other refs name that is a tree and no commit; `pointers_at` takes them like commits."""
        form = "--format=%(objecttype) %(objectname)%0a%(*objecttype) %(*objectname)"
        rows = self._need("tags").check(["for-each-ref", form], cwd=self.top).splitlines()
        return [CommitId(o) for o in dict.fromkeys(r[5:].decode("ascii") for r in rows if r.startswith(b"tree "))]

    def reflog_tips(self) -> list[CommitId]:
        """What reflogs (the stash is one) and operations under way lead to, of every worktree: each commit once."""
        return kept_tips(self._need("reflogs"), self.top, self.common_dir)

    def commits(self, revs: Sequence[str]) -> Iterator[tuple[CommitId, int, list[CommitId]]]:
        """Each commit reachable from `revs` with its time (Unix seconds) and parents, newest first."""
        return commits(self._need("history"), self.top, revs)

    @property
    def is_shallow(self) -> bool:
        """Whether history ends early here. StorageError: the disk does not tell."""
        return exists(os.path.join(self.common_dir, b"shallow"))

    def heard(self) -> Heard:
        """What other repositories have as branches and tags now. Asks every Git remote over its network.

        Raises:
            Unsafe: one does not answer.
        """
        return heard(self._need("remote branches"), self.top)

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

    def promisor(self) -> str | None:
        """The remote from which this clone fetches what it lacks when it is asked for; None where it has everything."""
        return self.config_get("extensions.partialClone") if self.has_program else None

    def missing_at(self, commit: CommitId) -> set[str]:
        """The objects of a commit's tree that this clone does not have. Fetches nothing."""
        command = ["rev-list", "--objects", "--no-walk", "--missing=print", commit]
        out = self._need("a partial clone").check(command, cwd=self.top)
        return {line[1:].decode("ascii") for line in out.splitlines() if line.startswith(b"?")}

    def bring(self, promisor: str, oids: Sequence[str]) -> None:
        """Fetch several blobs at once, which Git would fetch one by one when they are read.

        What cannot be had is left out; whoever reads it is told.
        """
        fixed = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--filter=blob:none")
        command = ["-c", "fetch.negotiationAlgorithm=noop", "fetch", *fixed, "--stdin", promisor]
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        self._need("a partial clone").run(command, cwd=self.top, stdin=asked)

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

    def pointer_versions(
        self, revs: Sequence[str], *, paths: Sequence[bytes] = (), original: bool = False
    ) -> Iterator[PointerVersion]:
        """Every version of a pointer that a commit reachable from `revs` brought, newest first.

        `revs` takes `HEAD`, `A..B`, `^origin/main`. `paths` (of data, or of folders above it) narrow it. `original`
        passes over `git replace` and grafts, which hide commits for as long as they stand.

        Raises:
            NotFound: a revision does not exist.
            UsageError: one would be an option.
            DvkError: history is not all here.
        """
        program = self._need("history")
        if original:
            program = program.without_replacements()
        wanted = [check_rev(rev) for rev in revs]
        if not wanted:
            return
        for version in pointer_versions(program, self.top, wanted, pathspecs(paths)):
            if is_pointer_name(version.path) and covers(frozenset(paths), version.path):
                yield version

    def history(self, path: bytes, rev: str = "HEAD") -> Iterator[Commit]:
        """The commits that changed the file `path` (as a rule, of a pointer), newest first.

        Raises:
            NotFound: the revision does not exist.
        """
        return path_history(self._need("history"), self.top, path, self.resolve(rev))

    def tagged(self, path: bytes) -> list[Tagged]:
        """What the file `path` (as a rule, a pointer) was at every tagged commit that has it, the newest tag first."""
        return tagged_versions(self._need("tags"), self.top, path)

    # -- the repository --------------------------------------------------------------------------

    def worktrees(self) -> list[bytes]:
        """The tops of all worktrees that share this repository, the main one first.

        Of a main one whose Git folder lies elsewhere (a submodule, `--separate-git-dir`) git names that folder. Its top
        is known if it is this one or if the settings say so, else the Git folder stands for it.
        """
        program = self._need("worktrees")
        done = program.run(["worktree", "list", "--porcelain", "-z"], cwd=self.top)
        separator = b"\0"
        if done.code == 129:  # git before 2.36 has no -z; then a newline in a path is beyond us
            done, separator = program.run(["worktree", "list", "--porcelain"], cwd=self.top), b"\n"
        if not done.ok:
            raise failure(done, self.top)
        tops: list[bytes] = []
        for row in done.out.split(separator):
            if row.startswith(b"worktree "):
                tops.append(self._main_top(row[9:]) if not tops else row[9:])
            elif row == b"bare":
                tops.pop()
        return tops

    def _main_top(self, listed: bytes) -> bytes:
        if os.path.realpath(self.git_dir) == os.path.realpath(self.common_dir):
            return self.top
        if os.path.realpath(listed) != os.path.realpath(self.common_dir):
            return listed
        done = self._need("worktrees").run(["config", "--file", "config", "core.worktree"], cwd=self.common_dir)
        return os.path.normpath(os.path.join(self.common_dir, done.out[:-1])) if done.ok else listed

    def alternates(self) -> Alternates:
        """The repositories whose objects this one borrows; none without the git program."""
        return Alternates() if self._program is None else find_alternates(self._program, self.common_dir)

    def git_path(self, name: str) -> bytes:
        """Where Git keeps `name` ("hooks", "info/exclude"), with the user's settings taken into account."""
        out = self._need(name).check(["rev-parse", "--git-path", name], cwd=self.top)
        return os.path.normpath(os.path.join(self.top, out[:-1]))

    def version(self) -> tuple[int, ...]:
        """Of the git program: (2, 54, 1)."""
        words = self._need("its version").check(["version"], cwd=self.top).split()
        found = words[2].split(b".") if len(words) > 2 else []
        return tuple(int(part) for part in found[:3] if part.isdigit())

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
