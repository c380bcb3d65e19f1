"""`dvk resolve`: choose among the versions of a conflict, or merge a folder file by file, and bring the data in step.

Conflicts are read from Git's index, which has the ancestor, ours and theirs whatever lies in the work tree: it does not
matter whether a merge driver ran. The pointer is written, data follows from the local store, and then the pointer is
staged, which ends the conflict for Git: so a run that is killed, or whose disk fails, is simply repeated. Lists of
folders that are not here are fetched, data is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field

from dvk.commands.materializer import CheckoutResult, Materializer
from dvk.commands.merge import Merged, explain, merge_pointers, version
from dvk.commands.merge_folder import Side
from dvk.commands.pull import fetch_lists
from dvk.commands.repo import Repo, root_of
from dvk.errors import DataMissing, DvkError, NotFound, Refused, StorageError, UsageError
from dvk.events import OnEvent, ignore
from dvk.store.fetch import Wanted, is_here
from dvk.store.names import show
from dvk.workspace.git import BlobId
from dvk.workspace.pointer import MAX_BYTES, Pointer, data_name, parse, pointer_name
from dvk.workspace.selection import Selection

Outcome = Literal["ours", "theirs", "merged", "deleted"]


class Resolved(Struct, frozen=True):
    """One conflict that was decided."""

    path: bytes
    outcome: Outcome
    version: str  #: for people; empty when the path is gone
    behind: int | None = None  #: bytes of the version that are not here; None: data is in step


class ResolveResult(Struct):
    """What was decided, and what could not be."""

    paths: list[Resolved] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)  #: with `merge`: what is left to decide, in words
    checkout: CheckoutResult = field(default_factory=CheckoutResult)
    failures: list[DvkError] = field(default_factory=list)
    dry_run: bool = False


def resolve(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    side: Side | None = None,
    merge: bool = False,
    remote: str | None = None,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
) -> ResolveResult:
    """End the conflicts of `paths` (all by default).

    Args:
        side: take this side's whole version; with `merge` only for the files that both sides changed.
        merge: merge file by file.
        remote: where to fetch lists of folders that are not here.

    Raises:
        UsageError: neither a side nor `merge`. NotFound: a path has no conflict. Busy: another git holds the index.
    """
    if side is None and not merge:
        raise UsageError("say how", hint="--ours, --theirs, or --merge for folders (with --ours or --theirs as well)")
    git = repo.workspace.need_git("conflicts")
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    found = {data_name(name): stages for name, stages in git.conflicts(wanted).items()}
    for path in wanted:
        if not any(name == path or name.startswith(path + b"/") for name in found):
            raise NotFound(
                "has no conflict in the Git index",
                subject=show(path),
                hint="`git status` lists what has one",
            )
    out = ResolveResult(dry_run=dry_run)
    decided: list[tuple[bytes, Outcome, Pointer | None]] = []
    with repo.writing(), repo.changing_files():
        for path, stages in sorted(found.items()):
            try:
                chosen = _decide(repo, path, stages, side, merge, remote, out, on_event)
            except DvkError as error:
                if error.kind == "interrupted":
                    raise
                out.failures.append(error)
                continue
            if chosen is not None:
                decided.append((path, *chosen))
        if not dry_run:
            _write(repo, decided)
        failed = _follow(repo, decided, out, on_event)
        if not dry_run:
            _stage(repo, [(path, pointer) for path, _, pointer in decided if path not in failed])
    out.failures += out.checkout.failures
    return out


def _decide(
    repo: Repo,
    path: bytes,
    stages: dict[int, BlobId],
    side: Side | None,
    merge: bool,
    remote: str | None,
    out: ResolveResult,
    on_event: OnEvent,
) -> tuple[Outcome, Pointer | None] | None:
    """What becomes of one conflict; None where a side is left to choose, which `out.conflicts` has in words."""
    if not merge:
        assert side is not None
        pointer = _at(repo, path, stages.get(2 if side == "ours" else 3), side)
        return ("deleted", None) if pointer is None else (side, pointer)
    names = {1: "the ancestor", 2: "ours", 3: "theirs"}
    base, ours, theirs = (_at(repo, path, stages.get(n), what) for n, what in names.items())
    if ours is None or theirs is None:
        who, other = ("our side", "theirs") if ours is None else ("their side", "ours")
        kept = theirs if ours is None else ours
        there = f" ({version(kept)})" if kept is not None else ""
        raise Refused(
            f"{who} deleted it and the other changed it{there}, which cannot be both",
            subject=show(path),
            hint=f"--{other} keeps it, --{'ours' if other == 'theirs' else 'theirs'} deletes it",
        )
    try:
        merged = merge_pointers(repo.store, base, ours, theirs, favour=side)
    except DataMissing:
        lists = [p for p in (base, ours, theirs) if p is not None and p.is_dir]
        fetch_lists(repo, path, lists, remote, on_event=on_event)
        merged = merge_pointers(repo.store, base, ours, theirs, favour=side)
    if merged.pointer is None:
        if side is not None:  # no folder on both sides, so there is nothing to merge but to choose
            return side, ours if side == "ours" else theirs
        out.conflicts += explain(path, merged, ours, theirs)
        raise _undecided(path, merged)
    return "merged", merged.pointer


def _undecided(path: bytes, merged: Merged) -> Refused:
    n = len(merged.conflicts)
    what = f"{n:,} {'file was' if n == 1 else 'files were'} changed on both sides" if n else merged.why
    again = "--merge --ours (or --theirs) decides these, " if n else ""
    return Refused(what, subject=show(path), hint=f"{again}--ours or --theirs takes a whole version")


def _at(repo: Repo, path: bytes, blob: BlobId | None, what: str) -> Pointer | None:
    if blob is None:
        return None
    text = repo.workspace.need_git("conflicts").read_blob(blob, max_bytes=MAX_BYTES)
    return parse(text, subject=f"{show(path)}.dvk ({what})")


def _write(repo: Repo, decided: Sequence[tuple[bytes, Outcome, Pointer | None]]) -> None:
    for path, _, pointer in decided:
        if pointer is None:
            repo.workspace.remove_pointer(path)
        else:
            repo.workspace.write_pointer(path, pointer)


def _stage(repo: Repo, decided: Sequence[tuple[bytes, Pointer | None]]) -> None:
    """Stage what was decided; from then on Git has no conflict there."""
    git = repo.workspace.need_git("conflicts")
    with repo.workspace.lock():
        git.stage([pointer_name(path) for path, pointer in decided if pointer is not None])
        git.unstage_removed([pointer_name(path) for path, pointer in decided if pointer is None])


def _follow(
    repo: Repo, decided: Sequence[tuple[bytes, Outcome, Pointer | None]], out: ResolveResult, on_event: OnEvent
) -> set[bytes]:
    """Bring data in step with what was decided, as far as it is here; where the disk failed, and the same run may not.

    What a person has to settle, as an edit in the way, is no reason to keep the conflict.
    """
    run = Materializer(repo, dry_run=out.dry_run, on_event=on_event)
    selection = Selection.load(repo.state)
    targets = []
    for path, outcome, pointer in decided:
        if pointer is None:
            out.paths.append(Resolved(path, outcome, ""))
            continue
        selected = selection.get(path) if pointer.is_dir else None
        parts = (b"",) if selected is None or selected.prefixes is None else selected.prefixes
        if is_here(repo.store, Wanted(root_of(pointer), parts)):
            targets.append((path, (), pointer))
            out.paths.append(Resolved(path, outcome, version(pointer)))
        else:
            out.paths.append(Resolved(path, outcome, version(pointer), behind=pointer.size))
    run.begin(targets)
    failed = set()
    for path, under, pointer in targets:
        before = len(run.result.failures)
        run.one(path, pointer, under)
        if path in run.unread or _disk_failed(run.result.failures[before:]):
            failed.add(path)
    deleted = [path for path, _, pointer in decided if pointer is None]
    if deleted and not out.dry_run:
        before = len(run.result.failures)
        run.remove_left_behind()
        if _disk_failed(run.result.failures[before:]):
            failed.update(deleted)
    out.checkout = run.finish()
    out.paths = [row for row in out.paths if row.path not in failed]
    return failed


def _disk_failed(errors: Sequence[DvkError]) -> bool:
    return any(isinstance(error, StorageError) for error in errors)
