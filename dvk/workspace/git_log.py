"""The versions of pointers that history holds, out of one run of `git log`.

A push must send every version that somebody can still check out. The traps: plain `git log -- path` leaves
out whole side branches when a merge kept nothing of them, and a merge may hold a version that neither side
had. So history is walked in full (`--full-history`) and merges are compared with all their parents at once
(`-c`). That finds each version: what a merge has in common with a parent was brought by that parent, and
the rest is shown with the merge.

    for version in pointer_versions(program, top, ["HEAD"], [b":(top,glob)**/*.dvk"]):
        version.commit, version.path, version.oid
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from msgspec import Struct

from dvk.errors import NotFound, UsageError
from dvk.store.names import show
from dvk.workspace.git_objects import FILE_MODES, BlobId, CommitId
from dvk.workspace.git_program import GitFailed, GitProgram

_COMMIT = b"\x01"  # opens a commit in our format; rows of `--raw` open with a colon
_OPTIONS = (
    *("--raw", "-c", "-z", "--no-abbrev", "--no-renames", "--no-color", "--no-notes", "--no-mailmap"),
    *("--encoding=UTF-8", "--no-ext-diff", "--no-textconv", "--no-show-signature", "-O/dev/null"),
)
# Settings of the user that would change which commits or rows are shown.
_SETTINGS = ("-c", "log.showRoot=true", "-c", "log.follow=false", "-c", "diff.relative=false")
_UNKNOWN_REV = re.compile(r"unknown revision|bad revision|Invalid (?:symmetric difference )?revision|bad object")


class PointerVersion(Struct, frozen=True):
    """`path` has content `oid` since `commit`; None: the commit removed it."""

    commit: CommitId
    path: bytes
    oid: BlobId | None


class Commit(Struct, frozen=True):
    """One step in the history of a path. `date` is None where the commit has an impossible one."""

    id: CommitId
    author: str
    email: str
    date: datetime | None
    subject: str
    oid: BlobId | None  #: the content of the path since then; None: removed


def pointer_versions(
    program: GitProgram, top: bytes, revs: Sequence[str], pathspecs: Sequence[bytes]
) -> Iterator[PointerVersion]:
    """Every version that matches `pathspecs` and came with a commit reachable from `revs`, newest first.

    `revs` is Git's grammar for sets of commits (`HEAD`, `A..B`, `^origin/main`, `--all` is not). In a
    shallow clone, everything at its edge counts as new there.

    Raises:
        NotFound: a revision does not exist.
        DvkError: history is not all here, or git failed otherwise.
    """
    for header, rows in _log(program, top, revs, pathspecs, fields=0, options=["--full-history"]):
        for oid, path in rows:
            yield PointerVersion(CommitId(header[0]), path, oid)


def path_history(program: GitProgram, top: bytes, path: bytes, rev: str) -> Iterator[Commit]:
    """The commits that changed `path`, newest first, as `git log REV -- PATH` lists them."""
    options = ["--date-order"]
    for header, rows in _log(program, top, [rev], [b":(top,literal)" + path], fields=4, options=options):
        commit, author, email, date, subject = header
        for oid, name in rows:
            if name == path:
                yield Commit(CommitId(commit), author, email, _date(date), subject, oid)


class Tagged(Struct, frozen=True):
    """What a path was at a commit that tags name; the newest of these tags first."""

    names: tuple[str, ...]
    commit: Commit


def tagged_versions(program: GitProgram, top: bytes, path: bytes) -> list[Tagged]:
    """What the file `path` was at every tagged commit that has it, the newest tag first.

    Raises:
        DvkError: git failed, or tags lead to commits that are not all here.
    """
    form = "--format=%(objecttype)%00%(objectname)%00%(*objecttype)%00%(*objectname)%00%(refname:lstrip=2)"
    names: dict[CommitId, list[str]] = {}
    for line in program.check(["for-each-ref", "--sort=-creatordate", form, "refs/tags/"], cwd=top).splitlines():
        kind, oid, inner_kind, inner, name = line.split(b"\0", 4)
        if inner_kind == b"tag":  # a tag of a tag, which git before 2.45 opens once only
            done = program.run(["rev-parse", "--verify", "--quiet", inner + b"^{commit}"], cwd=top)
            inner_kind, inner = (b"commit", done.out.strip()) if done.ok else (b"", b"")
        if b"commit" in (kind, inner_kind):  # others name a file or folder
            names.setdefault(CommitId((inner or oid).decode("ascii")), []).append(os.fsdecode(name))
    found = dict(zip(names, _blobs(program, top, path, list(names)), strict=True))
    commits = _commits(program, top, [commit for commit, oid in found.items() if oid is not None])
    return [
        Tagged(tuple(names[commit]), Commit(commit, *commits[commit], oid))
        for commit, oid in found.items()
        if oid is not None
    ]


def _blobs(program: GitProgram, top: bytes, path: bytes, commits: Sequence[CommitId]) -> list[BlobId | None]:
    """What commits have at a path, in one run."""
    if not commits:
        return []
    if b"\n" in path:
        raise UsageError("a path with a line break cannot be looked up at tags", subject=show(path))
    asked = b"".join(commit.encode() + b":" + path + b"\n" for commit in commits)
    answers = program.check(["cat-file", "--batch-check=%(objecttype) %(objectname)"], cwd=top, stdin=asked)
    rows = [line for line in answers.split(b"\n") if line][: len(commits)]
    return [BlobId(row[5:].decode("ascii")) if row.startswith(b"blob ") else None for row in rows]


def _commits(
    program: GitProgram, top: bytes, commits: Sequence[CommitId]
) -> dict[CommitId, tuple[str, str, datetime | None, str]]:
    """Author, email, date and subject of commits."""
    if not commits:
        return {}
    form = "--format=tformat:%H%x00%an%x00%ae%x00%aI%x00%s%x00"
    command = ["log", "--stdin", "--no-walk=unsorted", "--no-color", "--no-notes", "--no-mailmap", "--encoding=UTF-8"]
    command += ["--no-show-signature", form]
    out = program.check(command, cwd=top, stdin="".join(f"{c}\n" for c in commits).encode())
    fields = [field.decode("utf-8", "replace") for field in out.split(b"\0")]
    return {
        CommitId(fields[i].lstrip("\n")): (fields[i + 1], fields[i + 2], _date(fields[i + 3]), fields[i + 4])
        for i in range(0, len(fields) - 1, 5)
    }


def _log(
    program: GitProgram,
    top: bytes,
    revs: Sequence[str],
    pathspecs: Sequence[bytes],
    *,
    fields: int,
    options: list[str],
) -> Iterator[tuple[list[str], list[tuple[BlobId | None, bytes]]]]:
    form = "--format=tformat:%x01%H%x00" + "".join(f"{f}%x00" for f in ("%an", "%ae", "%aI", "%s")[:fields])
    command: list[bytes | str] = [*_SETTINGS, "log", "--stdin", *_OPTIONS, *options, form, b"--", *pathspecs]
    stream = program.fields(command, cwd=top, stdin="".join(f"{r}\n" for r in revs).encode("utf-8", "surrogateescape"))
    header: list[str] = []
    rows: list[tuple[BlobId | None, bytes]] = []
    try:
        for raw in stream:
            field = raw.lstrip(b"\n")
            if field.startswith(_COMMIT):
                if header:
                    yield header, rows
                texts = [field[1:], *(next(stream) for _ in range(fields))]
                header, rows = [t.decode("utf-8", "replace") for t in texts], []
            elif field.startswith(b":"):
                path = next(stream)
                mode, oid = _row(field)
                if mode == 0:
                    rows.append((None, path))
                elif mode in FILE_MODES:
                    rows.append((oid, path))
    except GitFailed as e:
        if _UNKNOWN_REV.search(e.message):
            raise NotFound(
                "no such revision",
                subject=", ".join(revs)[:200],
                hint="`git log --all --oneline` lists what exists",
            ) from e
        raise
    if header:
        yield header, rows


def _row(field: bytes) -> tuple[int, BlobId]:
    """Mode and blob after the commit, of a row of `--raw`; it opens with a colon for each parent."""
    parents = len(field) - len(field.lstrip(b":"))
    words = field[parents:].split(b" ")
    return int(words[parents], 8), BlobId(words[2 * parents + 1].decode("ascii"))


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
