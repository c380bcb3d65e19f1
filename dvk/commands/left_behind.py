"""Data whose pointer is gone at this revision: hidden from Git, there on disk, and nobody's any more.

    removed, failures = remove_left_behind(repo, takes, selection, rules, dry_run=False, on_event=ignore)

It is removed when dvk put it there, it is clean, the store holds it and a commit leads back to it; anything else stays
and is named.
"""

from __future__ import annotations

from collections.abc import Iterator

from dvk.commands.pathwork import in_other_worktree
from dvk.commands.replaceable import Replaceable
from dvk.commands.repo import Repo
from dvk.commands.tracked import Look, is_there, look
from dvk.errors import DvkError, NotFound
from dvk.events import Note, OnEvent
from dvk.store.names import show
from dvk.workspace.ignore import IgnoreRules, excluded_paths
from dvk.workspace.plan import CheckoutPlan
from dvk.workspace.selection import Selected, Selection


def remove_left_behind(
    repo: Repo,
    takes: Replaceable,
    selection: Selection,
    rules: IgnoreRules,
    *,
    dry_run: bool,
    on_event: OnEvent,
) -> tuple[list[bytes], list[DvkError]]:
    """Remove what may go; the paths that are gone now (or would be), and what went wrong."""
    removed: list[bytes] = []
    failures: list[DvkError] = []
    for path in _left_behind(repo, dry_run=dry_run):
        try:
            seen = look(repo.root_fd, path, repo.state, rules, on_event=on_event)
            plan = _plan(takes, path, seen, selection.get(path) or Selected(None))
            if isinstance(plan, Note):
                on_event(plan)
                continue
            problems = [] if dry_run else takes.carry_out_removal(path, plan)
        except DvkError as error:
            failures.append(error)
            continue
        failures += problems
        if not problems:
            removed.append(path)
    return removed, failures


def _left_behind(repo: Repo, *, dry_run: bool) -> Iterator[bytes]:
    """Paths that dvk hides from Git and that are there without a pointer."""
    git = repo.workspace.git
    if git is None:
        return
    hidden = excluded_paths(git.common_dir)
    owned = git.tracked_among(hidden) if git.has_program else set()
    # What Git tracks is Git's, and no rule of ours hides it; but the rules are one for all worktrees.
    shown = [path for path in owned if not in_other_worktree(repo, path)]
    if shown and not dry_run:
        with repo.workspace.lock():
            repo.workspace.hide(remove=shown)
    for path in hidden:
        if path in owned or not is_there(repo.root_fd, path):
            continue
        try:
            repo.workspace.read_pointer(path)
        except NotFound:
            yield path
        except DvkError:
            continue  # it is there and broken; `status` names it


def _plan(takes: Replaceable, path: bytes, seen: Look, selected: Selected) -> CheckoutPlan | Note:
    """How to remove it, or why it stays."""
    plan = takes.plan_removal(path, seen, selected)
    if plan is None:
        return Note(
            "has no pointer at this revision and stays, since dvk did not put it there",
            subject=show(path),
            hint=f"`dvk add {show(path)}` tracks it, or remove it yourself",
        )
    if plan.conflicts or len(plan.deletes) < len(seen.scan):
        return Note(
            "has no pointer at this revision and stays, since it differs from what the store holds",
            subject=show(path),
            hint=f"`dvk add {show(path)}` keeps it, --force removes it",
        )
    if not takes.force and not takes.leads_back(path):
        return Note(
            "has no pointer at this revision and stays, since no commit leads back to it",
            subject=show(path),
            hint=f"`dvk add {show(path)}` and a commit keep it, --force removes it",
        )
    return plan
