"""The two sides of a diff, in Git's words, and what of the tracked paths each of them has.

    dvk diff                 index      workspace      what is not staged
    dvk diff --staged        HEAD       index          what the next commit brings
    dvk diff REV             REV        workspace
    dvk diff A B, A..B       A          B
    dvk diff A...B           merge base B              what B did since it left A

The index and not HEAD without a revision, since that is what `git diff` does, and `dvk add` stages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from msgspec import Struct

from dvk.commands.repo import Repo
from dvk.commands.spec import Spec, Target, Version, not_tracked, place
from dvk.errors import DvkError, NotFound, UsageError
from dvk.workspace.pointer import SUFFIX, Pointer

WORKSPACE = "workspace"
INDEX = "index"


class Sides(Struct, frozen=True):
    """What is compared. `b_is_disk`: the second is what lies in the workspace; `a` None: before the first commit."""

    a: Version | None
    b: Version
    a_label: str
    b_label: str
    b_is_disk: bool


class Unit(Struct, frozen=True):
    """One path with what each side tracks there; None for nothing. `named`: the user asked for exactly this one."""

    path: bytes
    a: Target | None
    b: Target | None
    named: bool


def split_range(text: str) -> tuple[str, str, bool] | None:
    """The ends of `A..B` or `A...B` (then True); HEAD where one is left out. None when it is no range.

    >>> split_range("v1..."), split_range("HEAD@{1..2}")
    (('v1', 'HEAD', True), None)
    """
    depth = 0
    for i, ch in enumerate(text):
        depth += {"{": 1, "}": -1}.get(ch, 0)
        if not depth and text.startswith("..", i):
            dots = 3 if text.startswith("...", i) else 2
            return text[:i] or "HEAD", text[i + dots :] or "HEAD", dots == 3
    return None


def choose_sides(repo: Repo, a: str | None, b: str | None, *, staged: bool) -> Sides:
    """The two sides that the revisions mean.

    Raises:
        UsageError: they make no sense together. NotFound: there is no such revision, or no common ancestor.
        Refused: a revision in a plain folder.
    """
    if staged and b is not None:
        raise UsageError("--staged compares one revision with the index", hint="leave out the second one")
    ends = split_range(a) if a is not None and b is None else None
    if ends is not None:
        if staged:
            raise UsageError("--staged compares one revision with the index", hint="leave out the range")
        left, right, since = ends
        if since:
            base = repo.workspace.need_git("revisions").merge_base(left, right)
            if base is None:
                raise NotFound("these two have no commit in common", subject=f"{left}...{right}")
            return Sides(Version(repo, base), Version(repo, right), f"merge base {base[:12]}", right, False)
        return Sides(Version(repo, left), Version(repo, right), left, right, False)
    if b is not None:
        return Sides(Version(repo, a), Version(repo, b), a or INDEX, b, False)
    git = repo.workspace.git
    if staged:
        if a is None and repo.workspace.need_git("the Git index").head() is None:
            return Sides(None, Version(repo, ""), "nothing", INDEX, False)
        return Sides(Version(repo, a or "HEAD"), Version(repo, ""), a or "HEAD", INDEX, False)
    here = Version(repo, None)
    if a is not None:
        return Sides(Version(repo, a), here, a, WORKSPACE, True)
    if git is None or not git.has_program:
        return Sides(Version(repo, None), here, "pointers", WORKSPACE, True)
    return Sides(Version(repo, ""), here, INDEX, WORKSPACE, True)


def find_units(repo: Repo, sides: Sides, paths: Sequence[bytes | str]) -> tuple[list[Unit], list[DvkError]]:
    """What to compare: the named paths, or everything that either side tracks; and pointers that cannot be read.

    Raises:
        NotFound: neither side tracks a path that was named. UsageError: it cannot be a path of data.
    """
    failures: list[DvkError] = []
    found: dict[bytes, Unit] = {}
    if not paths:
        found.update(_below(sides, b"", failures))
    for text in paths:
        path = place(repo, Spec(os.fsdecode(text), None, os.fsencode(text)))
        if not path:
            found.update(_below(sides, b"", failures))
            continue
        a, b = _target(sides.a, path), _target(sides.b, path)
        inside = _below(sides, path, failures) if a is None or b is None else {}
        inside.pop(path, None)
        if a is not None or b is not None:
            found[path] = Unit(path, a, b, True)
        elif not inside:
            raise not_tracked(sides.b, path)
        found.update(inside)
    return [found[path] for path in sorted(found)], failures


def _target(version: Version | None, path: bytes) -> Target | None:
    owner = version.owner(path) if version is not None else None
    if owner is None or version is None:
        return None
    tracked, inner, pointer = owner
    if inner and not pointer.is_dir:
        return None
    return Target(tracked, inner, pointer, version.rev, version.commit)


def _below(sides: Sides, path: bytes, failures: list[DvkError]) -> dict[bytes, Unit]:
    """Every tracked path at or below `path` on either side."""
    a, b = _pointers(sides.a, path, failures), _pointers(sides.b, path, failures)
    return {
        name: Unit(name, _whole(sides.a, name, a), _whole(sides.b, name, b), False)
        for name in {*a, *b}
        if not (isinstance(a.get(name), DvkError) or isinstance(b.get(name), DvkError))
    }


def _pointers(version: Version | None, path: bytes, failures: list[DvkError]) -> dict[bytes, Pointer | DvkError]:
    if version is None:
        return {}
    found = dict(version.below(path))
    failures += [p for p in found.values() if isinstance(p, DvkError)]
    return found


def _whole(version: Version | None, path: bytes, pointers: dict[bytes, Pointer | DvkError]) -> Target | None:
    pointer = pointers.get(path)
    if version is None or not isinstance(pointer, Pointer):
        return None
    return Target(path, b"", pointer, version.rev, version.commit)


def iter_revisions(repo: Repo, words: Sequence[str]) -> Iterator[str]:
    """The leading ones of `words` that name revisions, by Git's rule for a command line without `--`.

    Raises:
        UsageError: one names a revision and also something on disk.
        NotFound: a range that is no path has an end that is no revision.
    """
    git = repo.workspace.git
    if git is None:
        return
    for word in words[:2]:
        is_range = split_range(word) is not None
        ends = split_range(word) or (word, "HEAD", False)
        if not all(_is_revision(repo, end) for end in ends[:2]):
            if is_range and word is words[0] and not _is_path(repo, word) and not _leads_up(word):
                for end in ends[:2]:
                    repo.workspace.resolve(end)
            return
        if not is_range and _is_path(repo, word):
            raise UsageError(
                "names a revision and a path",
                subject=word,
                hint=f"`dvk diff {word} --` for the revision, `dvk diff -- {word}` for the path",
            )
        yield word


def _is_revision(repo: Repo, word: str) -> bool:
    try:
        repo.workspace.resolve(word)
    except (NotFound, UsageError):
        return False
    return True


def _leads_up(word: str) -> bool:
    """Whether the dots of what may be a range are those of a path: `../x`."""
    return ".." in word.split("/")


def _is_path(repo: Repo, word: str) -> bool:
    there = os.path.join(repo.cwd, os.fsencode(word))
    return os.path.lexists(there) or os.path.lexists(there + SUFFIX)
