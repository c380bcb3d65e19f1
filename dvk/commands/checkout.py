"""`dvk checkout`: the workspace in step with its pointers, or one path at another revision. Works from the local store.

Only what differs is written. Whatever is replaced or deleted is content that the store holds; anything else stays, is
named, and the other paths still arrive. Each file is its old self or its new one; a killed run is finished by the
same command.
"""

from __future__ import annotations

from collections.abc import Sequence

from dvk.commands.materializer import CheckoutResult, Materializer, Target
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import folder_pointer, join_path, not_here
from dvk.errors import Busy, DataMissing, DvkError, NotFound, UsageError, one_or_many
from dvk.events import OnEvent, ignore
from dvk.ids import PageId
from dvk.store.fetch import Wanted, is_here
from dvk.store.names import show
from dvk.store.pages import read_entries
from dvk.store.pagewriter import edit_listing
from dvk.store.writer import Writer
from dvk.workspace.git import CommitId
from dvk.workspace.pointer import Pointer, pointer_name
from dvk.workspace.selection import Selected, normal_prefixes


def checkout(
    repo: Repo,
    paths: Sequence[bytes | str] = (),
    *,
    rev: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    stage: bool = True,
    on_event: OnEvent = ignore,
) -> CheckoutResult:
    """Bring data in step with pointers; with `rev`, take the pointers of `paths` from there first, and stage them.

    Args:
        paths: data paths or folders above them; all tracked paths by default. May lie inside a tracked folder.
        force: replace and delete content that the store does not hold as well.

    Raises:
        NotFound: a path is not tracked (at that revision). UsageError: a revision without paths.
        StorageFull: there is no room; what was not finished is as it was.
    """
    if rev is not None and not paths:
        raise UsageError(
            "no path is named",
            subject=rev,
            hint=f"`dvk checkout {rev} -- PATH`; for all of it `git checkout {rev}`, then `dvk checkout`",
        )
    wanted = [repo.workspace.locate(p, cwd=repo.cwd) for p in paths]
    with repo.writing(), repo.changing_files():
        run = Materializer(repo, force=force, dry_run=dry_run, on_event=on_event)
        if rev is not None:
            _from_revision(run, rev, wanted, stage=stage)
        else:
            targets = tracked(repo, wanted, run.result.failures)
            run.begin(targets)
            for path, under, pointer in targets:
                run.one(path, pointer, under)
            if not wanted:
                run.remove_left_behind()
        return run.finish()


def tracked(repo: Repo, wanted: Sequence[bytes], failures: list[DvkError]) -> list[Target]:
    """What the arguments mean.

    Pointers that cannot be read go to `failures`.

    Raises:
        NotFound: an argument means nothing tracked.
    """
    ws = repo.workspace
    inside: dict[bytes, list[bytes]] = {}
    direct: list[bytes] = []
    for path in wanted:
        owner = ws.owner_of(path)
        if owner is not None and owner[1]:
            inside.setdefault(owner[0], []).append(owner[1])
        else:
            direct.append(path)
    found: dict[bytes, tuple[tuple[bytes, ...], Pointer]] = {}
    hits: set[bytes] = set()
    if direct or not wanted:
        for path, pointer in ws.worktree_pointers(under=direct):
            hits.update(d for d in direct if path == d or path.startswith(d + b"/"))
            if isinstance(pointer, DvkError):
                failures.append(pointer)
            else:
                found[path] = ((), pointer)
    for d in direct:
        if d not in hits:
            raise NotFound("dvk tracks nothing there", subject=show(d), hint="`dvk ls` lists what it tracks")
    for path, parts in inside.items():
        if path in found and not found[path][0]:
            continue  # asked for as a whole as well
        pointer = ws.read_pointer(path)
        if not pointer.is_dir:
            raise NotFound("a file is tracked under this name", subject=show(join_path(path, parts[0])))
        found[path] = (normal_prefixes(parts), pointer)
    return [(path, parts, pointer) for path, (parts, pointer) in sorted(found.items())]


def _from_revision(run: Materializer, rev: str, wanted: Sequence[bytes], *, stage: bool) -> None:
    """Take the pointers of `wanted` from a revision, write and stage them, and bring their data in step.

    Raises:
        NotFound: the revision does not have one of them; nothing was changed.
    """
    commit = run.ws.resolve(rev)
    plan: list[Target] = []
    missing: list[DvkError] = []
    for path in wanted:
        found = _at(run, commit, path)
        if not found:
            missing.append(
                NotFound(
                    f"is not tracked at {rev}",
                    subject=show(path),
                    hint=f"`dvk log {show(path)}` lists its versions",
                )
            )
        plan += found
    if missing:
        raise one_or_many(f"some paths are not tracked at {rev}; nothing was changed", missing)
    pointers = []
    for path, under, pointer in plan:
        selected = run.selection.get(path) if pointer.is_dir else None
        parts = under or (selected.prefixes if selected and selected.prefixes is not None else (b"",))
        if not is_here(run.store, Wanted(root_of(pointer), parts)):
            # The pointer must not move to a version that its data cannot follow.
            run.result.failures.append(
                DataMissing(
                    f"its data at {rev} is not in this clone",
                    subject=show(path),
                    hint=f"`dvk fetch --rev {rev} {show(path)}` brings it",
                )
            )
            continue
        if run.result.dry_run:
            run.one(path, pointer, under)
            continue
        run.ws.write_pointer(path, pointer)
        run.begin([(path, under, pointer)])
        pointers.append(pointer_name(path))
        run.one(path, pointer, under)
    if stage and pointers and run.ws.git is not None:
        try:
            run.ws.git.stage(pointers)
            run.result.staged = len(pointers)
        except Busy as error:
            run.result.not_staged = error.message


def _at(run: Materializer, commit: str, path: bytes) -> list[Target]:
    """What `path` means at a commit: a tracked path, the tracked paths below it, or a part of a folder."""
    found = []
    for name, pointer in run.ws.pointers_at(CommitId(commit), under=[path]):
        if isinstance(pointer, DvkError):
            raise pointer
        found.append((name, (), pointer))
    if found:
        return list(found)
    owner = path
    while b"/" in owner:
        owner = owner.rpartition(b"/")[0]
        for name, pointer in run.ws.pointers_at(CommitId(commit), under=[owner]):
            if name == owner and isinstance(pointer, Pointer) and pointer.is_dir:
                return [_graft(run, owner, pointer, path[len(owner) + 1 :])]
    return []


def _graft(run: Materializer, path: bytes, then: Pointer, part: bytes) -> Target:
    """Today's folder with one part of it as it was then."""
    try:
        now = run.ws.read_pointer(path)
    except NotFound:
        return path, (part,), then
    try:
        old = read_entries(PageId(then.id), run.store.load_page, under=part)
        if not len(old):
            raise NotFound("was not in the folder then", subject=show(join_path(path, part)))
        with Writer(run.store, dry_run=run.result.dry_run) as writer:
            root = edit_listing(PageId(now.id), run.store.load_page, writer.add_page, put=old, remove=[part])
            writer.flush()
    except DataMissing as error:
        raise not_here(path, error) from error
    pointer = folder_pointer(root, now)
    return path, (part,) if run.selection.get(path) != Selected(None) else (), pointer
