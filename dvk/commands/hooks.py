"""`dvk hooks`: Git calls dvk, so that data follows what Git does. What the hooks themselves do is in `follow`,
`pre_push` and `pre_commit`; where they lie is `dvk.workspace.git_hooks`'s.

Whether a clone has them is remembered in `hooks.json` of its state, so that a clone without them is told once.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct, field

from dvk.commands.repo import Repo
from dvk.errors import NotARepository, NotFound, UsageError
from dvk.events import Note
from dvk.store.names import show
from dvk.workspace import git_moved
from dvk.workspace.git import GitRepo
from dvk.workspace.git_hooks import DRIVER, DRIVER_COMMAND, DRIVER_NAME, NAMES, PROGRAM, Hook, Hooks

_RECORD = b"hooks.json"
_VERSION = 1

Choice = Literal["installed", "declined", "told"]


class HooksResult(Struct):
    """The hooks of a clone, and what was done to them."""

    hooks: list[Hook] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    program: str = ""  #: which dvk they run
    driver: bool = False  #: whether Git merges pointers by dvk
    dry_run: bool = False

    @property
    def left_out(self) -> list[Hook]:
        """Those that somebody has to add by hand."""
        return [hook for hook in self.hooks if hook.obstacle]


def hooks_status(repo: Repo) -> HooksResult:
    """Where the hooks are. Changes nothing."""
    git = _git(repo)
    hooks = Hooks(git)
    return HooksResult(
        [hooks.find(name) for name in NAMES],
        program=git.config_get(PROGRAM) or "",
        driver=git.config_get(DRIVER) is not None,
    )


def install_hooks(repo: Repo, names: Sequence[str] = (), *, dry_run: bool = False) -> HooksResult:
    """Install the hooks (all, or some), bring old ones up to date, and let Git merge pointers by dvk. Safe to repeat.

    Raises:
        NotFound: the program that they have to run is not to be found. StorageError: Git's files cannot be written.
    """
    git = _git(repo)
    hooks = Hooks(git)
    wanted = check_names(names)
    if dry_run:
        found = [hooks.find(name) for name in wanted]
        new = [h.name for h in found if not h.obstacle and (h.place == "none" or not h.current)]
        return HooksResult(found, new, git.config_get(PROGRAM) or "", git.config_get(DRIVER) is not None, True)
    out = HooksResult(program=find_program(repo.environ))
    with repo.workspace.lock():
        for key, value in ((PROGRAM, out.program), (DRIVER, DRIVER_COMMAND), (DRIVER_NAME, "pointers of dvk")):
            if git.config_get(key) != value:
                git.config_set(key, value)
                out.changed.append(key)
        for name in wanted:
            before = hooks.find(name)
            out.hooks.append(hooks.install(name))
            if out.hooks[-1] != before:
                out.changed.append(name)
    out.driver = True
    if git_moved.read(repo.state) is None:
        git_moved.remember(repo.state, git.list_pointers())  # hooks answer for what Git does from now on
    _remember(repo, "installed")
    return out


def remove_hooks(repo: Repo, names: Sequence[str] = (), *, dry_run: bool = False) -> HooksResult:
    """Take the hooks out again (all, or some); without them the merge driver as well. Other people's lines stay."""
    git = _git(repo)
    hooks = Hooks(git)
    out = HooksResult(dry_run=dry_run)
    with repo.workspace.lock():
        for name in check_names(names):
            if dry_run:
                if hooks.find(name).place != "none":
                    out.changed.append(name)
            elif hooks.remove(name):
                out.changed.append(name)
        for key in () if names or dry_run else (DRIVER, DRIVER_NAME, PROGRAM):
            if git.config_get(key) is not None:
                git.config_unset(key)
                out.changed.append(key)
    out.hooks = [hooks.find(name) for name in NAMES]
    out.program, out.driver = git.config_get(PROGRAM) or "", git.config_get(DRIVER) is not None
    if not dry_run and not names:
        _remember(repo, "declined")
    return out


def decline_hooks(repo: Repo) -> None:
    """Remember that this clone is to have no hooks, so that nobody asks."""
    _remember(repo, "declined")


def remind(repo: Repo) -> Note | None:
    """Once for each clone that nobody decided about: that it has no hooks. None from then on."""
    git = repo.workspace.git
    if git is None or not git.has_program or _choice(repo) is not None:
        return None
    if any(hook.place != "none" for hook in hooks_status(repo).hooks):
        _remember(repo, "installed")
        return None
    if not _remember(repo, "told"):
        return None  # a repository that cannot be written would hear of it each time
    return Note(
        "this clone has no hooks, so data does not follow `git checkout` and `git push` by itself",
        hint="`dvk hooks install` (told once)",
    )


def check_names(names: Sequence[str]) -> list[str]:
    """The hooks that are meant; all without names.

    Raises:
        UsageError: one is not of ours.
    """
    for name in names:
        if name not in NAMES:
            raise UsageError("not a hook that dvk has", subject=name, hint=f"there are {', '.join(NAMES)}")
    return list(dict.fromkeys(names)) if names else list(NAMES)


def find_program(environ: Mapping[str, str]) -> str:
    """The `dvk` that hooks should run: beside this Python, else on PATH.

    Raises:
        NotFound: there is none.
    """
    beside = os.path.join(os.path.dirname(sys.executable), "dvk")
    if os.access(beside, os.X_OK):
        return os.path.abspath(beside)
    for folder in environ.get("PATH", "").split(os.pathsep):
        found = shutil.which("dvk", path=folder) if os.path.isabs(folder) else None
        if found:
            return found
    raise NotFound(
        "the program `dvk` is neither beside this Python nor on PATH, so hooks could not run it",
        subject=sys.executable,
        hint="install it with `pip install dvk` (or pipx, uv tool)",
    )


def _git(repo: Repo) -> GitRepo:
    git = repo.workspace.git
    if git is None:
        raise NotARepository("a plain folder has no Git, so no hooks", subject=show(repo.workspace.top))
    return git


def _choice(repo: Repo) -> str | None:
    try:
        with open(os.path.join(repo.workspace.common_dir, _RECORD), encoding="ascii") as file:
            raw = json.load(file)
        return str(raw["choice"]) if raw["version"] == _VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(repo: Repo, choice: Choice) -> bool:
    folder = repo.workspace.common_dir
    temporary = os.path.join(folder, _RECORD + b"." + secrets.token_hex(8).encode() + b".tmp")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        with open(temporary, "x", encoding="ascii") as file:
            json.dump({"version": _VERSION, "choice": choice}, file)
        os.replace(temporary, os.path.join(folder, _RECORD))
    except OSError:
        return False
    return True
