"""The Git index and the work tree, as far as pointers are concerned: what is staged, conflicting, ignored, new.

    index.known_pointers()            what Git tracks and what it does not, by one run of git
    index.stage([b"data/x.csv.dvk"])  as it is in the work tree

`dvk.workspace.git.GitRepo` is one. Each call is one run of git, so ask for many paths at once; all need the program.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from msgspec import Struct

from dvk.store.names import show
from dvk.workspace.git_objects import FILE_MODES, BlobId, CommitId
from dvk.workspace.git_program import GitProgram, chunked, failure, needs_git
from dvk.workspace.pointer import SUFFIX, is_pointer_name

ALL_POINTERS = b":(top,glob)**/*.dvk"


class IndexEntry(Struct, frozen=True):
    """One row of the Git index. Stage 0 is staged; 1, 2, 3 are base, ours and theirs of a conflict."""

    path: bytes
    stage: int
    oid: BlobId


class StagedChange(Struct, frozen=True):
    """A pointer whose index differs from HEAD; None on the side that does not have it."""

    path: bytes
    head: BlobId | None
    index: BlobId | None


class GitIndex(ABC):
    """The index of the work tree at `top`. Safe from many threads."""

    def __init__(self, top: bytes, program: GitProgram | None) -> None:
        self.top = top
        self._program = program

    @property
    def has_program(self) -> bool:
        """Whether the git program was found, so that index, history and staging work."""
        return self._program is not None

    @abstractmethod
    def head(self) -> CommitId | None:
        """The commit that is checked out; None before the first one."""

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
        command: list[bytes | str] = ["ls-files", "-z", "-t", "-s", *others, "--", *pathspecs(under)]
        wanted = frozenset(under)
        tracked: list[IndexEntry] = []
        new: list[bytes] = []
        for field in self._need("the Git index").fields(command, cwd=self.top):
            tag, rest = field[:1], field[2:]
            if tag == b"?":
                if is_pointer_name(rest) and covers(wanted, rest):
                    new.append(rest)
                continue
            meta, _, path = rest.partition(b"\t")
            mode, oid, stage = meta.split(b" ")
            if int(mode, 8) in FILE_MODES and is_pointer_name(path) and covers(wanted, path):
                tracked.append(IndexEntry(path, int(stage), BlobId(oid.decode("ascii"))))
        return tracked, new

    def conflicts(self, under: Sequence[bytes] = ()) -> dict[bytes, dict[int, BlobId]]:
        """Pointers that a merge left undecided: of each the blobs of ancestor (1), ours (2), theirs (3), as there are.

        `under` narrows as in `known_pointers`.
        """
        found: dict[bytes, dict[int, BlobId]] = {}
        for entry in self.index_pointers(under):
            if entry.stage:
                found.setdefault(entry.path, {})[entry.stage] = entry.oid
        return found

    def list_pointers(self) -> bytes:
        """What `git ls-files -s -z` says of all pointers: modes, blobs, stages, paths."""
        return self._need("the Git index").check(["ls-files", "-s", "-z", "--", ALL_POINTERS], cwd=self.top)

    def staged_changes(self) -> list[StagedChange]:
        """The pointers whose index differs from HEAD; conflicts are left out."""
        if self.head() is None:
            return [StagedChange(e.path, None, e.oid) for e in self.index_pointers() if e.stage == 0]
        command = ["diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff"]
        fields = self._need("the Git index").fields(
            ["-c", "diff.relative=false", *command, "HEAD", "--", ALL_POINTERS], cwd=self.top
        )
        found = []
        for field in fields:
            path = next(fields)
            old_mode, new_mode, old, new, status = field.lstrip(b":").split(b" ")
            if status[:1] != b"U" and is_pointer_name(path):
                found.append(StagedChange(path, _blob(old_mode, old), _blob(new_mode, new)))
        return found

    def other_files(self) -> tuple[list[bytes], list[bytes]]:
        """Files for Git itself: those that the index has and HEAD has not, and those that Git does not know at all."""
        program = self._need("the Git index")
        settings = ["-c", "diff.relative=false"]
        if self.head() is None:
            staged = program.fields(["ls-files", "-z"], cwd=self.top)
        else:
            command = ["diff-index", "--cached", "--name-only", "-z", "--no-renames", "--diff-filter=AM", "HEAD", "--"]
            staged = program.fields([*settings, *command], cwd=self.top)
        new = program.fields(["ls-files", "-z", "-o", "--exclude-standard"], cwd=self.top)
        return [f for f in staged if not is_pointer_name(f)], [f for f in new if not is_pointer_name(f)]

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

    def _need(self, what: str) -> GitProgram:
        if self._program is None:
            raise needs_git(what)
        return self._program


def _nul(paths: Sequence[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def _blob(mode: bytes, oid: bytes) -> BlobId | None:
    return BlobId(oid.decode("ascii")) if int(mode, 8) in FILE_MODES else None


def pathspecs(paths: Sequence[bytes]) -> list[bytes]:
    """Pathspecs for the pointers of `paths` and below them, or for all when they are too many."""
    specs: list[bytes] = []
    for path in paths:
        escaped = b"".join(b"\\" + c if c in b"*?[\\" else c for c in (bytes([b]) for b in path))
        specs += [b":(top,literal)" + path + SUFFIX, b":(top,glob)" + escaped + b"/**/*.dvk"]
    if not specs or b"" in paths or len(list(chunked(specs))) > 1:
        return [ALL_POINTERS]
    return specs


def covers(wanted: frozenset[bytes], pointer: bytes) -> bool:
    """Whether the data of `pointer` is one of `wanted` or below one; everything is below nothing."""
    if not wanted or b"" in wanted:
        return True
    path = pointer[: -len(SUFFIX)]
    while path not in wanted:
        path, slash, _ = path.rpartition(b"/")
        if not slash:
            return False
    return True
