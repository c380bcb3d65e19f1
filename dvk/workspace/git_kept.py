"""What keeps commits alive beside branches, and what other repositories have: the questions of a collector of garbage.

A branch that was deleted, a commit that was amended, a merge that is under way: Git still leads back to them for weeks,
through reflogs and the files beside HEAD. So data of theirs is wanted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from dvk.backend.text import printable
from dvk.errors import Unsafe
from dvk.workspace.git_objects import CommitId
from dvk.workspace.git_program import GitProgram, failure

_UNDER_WAY = (
    *("HEAD", "ORIG_HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "REBASE_HEAD", "BISECT_HEAD"),
    "MERGE_AUTOSTASH",
)
#: Files of an operation that stopped for the user: what it put aside, where it came from, what it is to do yet.
_STOPPED = (
    *("rebase-merge/autostash", "rebase-merge/orig-head", "rebase-merge/onto", "rebase-merge/git-rebase-todo"),
    *("rebase-merge/done", "rebase-merge/stopped-sha", "rebase-merge/amend", "rebase-merge/rewritten-list"),
    *("rebase-apply/autostash", "rebase-apply/orig-head", "rebase-apply/onto", "rebase-apply/abort-safety"),
    *("sequencer/head", "sequencer/todo", "sequencer/abort-safety"),
)
_NAMED = re.compile(rb"(?<![0-9A-Za-z_./-])[0-9a-f]{7,64}(?![0-9A-Za-z_./-])")
_OID = re.compile(rb"^[0-9a-f]{40}(?:[0-9a-f]{24})?(?=\s)", re.MULTILINE)


def kept_tips(program: GitProgram, top: bytes, common_dir: bytes) -> list[CommitId]:
    """Commits in the reflogs of all worktrees, and those of operations under way in each.

    Entries whose commit is gone are passed over, as by git itself.

    Raises:
        DvkError: git failed.
    """
    found = program.check(["rev-list", "--all", "--reflog", "--no-walk=unsorted"], cwd=top).split()
    names: list[str] = []
    for git_dir, prefix in _worktree_dirs(common_dir):
        names += [f"{prefix}{name}" for name in _UNDER_WAY]
        found += _fetched(git_dir)
        names += _stopped(git_dir)
    return _commits_among(program, top, [*names, *(oid.decode("ascii") for oid in dict.fromkeys(found))])


def _worktree_dirs(common_dir: bytes) -> Iterator[tuple[bytes, str]]:
    """The Git folder of each worktree, with what precedes its own refs when another one names them."""
    yield common_dir, "main-worktree/"
    try:
        names = sorted(os.listdir(os.path.join(common_dir, b"worktrees")))
    except FileNotFoundError:
        return
    for name in names:
        yield os.path.join(common_dir, b"worktrees", name), f"worktrees/{os.fsdecode(name)}/"


def _fetched(git_dir: bytes) -> list[bytes]:
    try:
        with open(os.path.join(git_dir, b"FETCH_HEAD"), "rb") as file:
            return _OID.findall(file.read())
    except FileNotFoundError:
        return []


def _stopped(git_dir: bytes) -> Iterator[str]:
    """Whatever looks like the name of a commit, short ones too, in the files of an operation under way."""
    for name in _STOPPED:
        try:
            with open(os.path.join(git_dir, os.fsencode(name)), "rb") as file:
                yield from (found.decode("ascii") for found in _NAMED.findall(file.read()))
        except (FileNotFoundError, NotADirectoryError):
            continue


def _commits_among(program: GitProgram, top: bytes, names: Iterable[str]) -> list[CommitId]:
    """The commits that names lead to, each once; what leads to none, or to nothing, is left out."""
    asked = "".join(f"{name}^{{commit}}\n" for name in names)
    if not asked:
        return []
    lines = program.check(
        ["cat-file", "--batch-check=%(objectname) %(objecttype)"], cwd=top, stdin=os.fsencode(asked)
    ).splitlines()
    return list(dict.fromkeys(CommitId(line[:-7].decode("ascii")) for line in lines if line.endswith(b" commit")))


def commits(program: GitProgram, top: bytes, revs: Sequence[str]) -> Iterator[tuple[CommitId, int, list[CommitId]]]:
    """Each commit reachable from `revs` with its time and parents, newest first.

    Raises:
        DvkError: history is not all here, or git failed.
    """
    asked = "".join(f"{rev}\n" for rev in revs).encode("utf-8", "surrogateescape")
    out = program.check(["rev-list", "--timestamp", "--parents", "--stdin"], cwd=top, stdin=asked)
    for line in out.splitlines():
        time, commit, *parents = line.decode("ascii").split(" ")
        yield CommitId(commit), int(time), [CommitId(p) for p in parents]


class Heard(Struct, frozen=True):
    """What Git's remotes have now: of what is here the commits or tags, of the rest the names."""

    branches: tuple[CommitId, ...] = ()
    tags: tuple[CommitId, ...] = ()
    missing: tuple[str, ...] = ()


def heard(program: GitProgram, top: bytes) -> Heard:
    """Ask every remote of Git for its branches and tags.

    Raises:
        Unsafe: one does not answer.
    """
    found: dict[bool, dict[CommitId, None]] = {False: {}, True: {}}
    missing: list[str] = []
    for remote in program.check(["remote"], cwd=top).splitlines():
        done = program.run(["ls-remote", "--quiet", "--heads", "--tags", remote], cwd=top)
        if not done.ok:
            raise Unsafe(
                f"Git's remote cannot be asked which branches it has ({failure(done, top).message})",
                subject=printable(os.fsdecode(remote)),
                hint="--offline goes by the branches that were fetched last",
            )
        rows = [line.partition(b"\t")[::2] for line in done.out.splitlines()]
        rows = [(oid, name) for oid, name in rows if not name.endswith(b"^{}")]
        asked = b"".join(oid + b"\n" for oid, _ in rows)
        answers = program.check(["cat-file", "--batch-check=%(objecttype)"], cwd=top, stdin=asked).splitlines()
        for (oid, name), answer in zip(rows, answers, strict=True):
            if answer.endswith(b" missing"):
                missing.append(printable(f"{os.fsdecode(remote)}: {os.fsdecode(name)}"))
            else:
                found[name.startswith(b"refs/tags/")][CommitId(oid.decode("ascii"))] = None
    return Heard(tuple(found[False]), tuple(found[True]), tuple(missing))
