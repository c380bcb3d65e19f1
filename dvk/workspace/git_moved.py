"""Whether pointers moved since data last followed them: the question that most runs of a hook end with.

Git runs a hook after each checkout, merge and write of its index, and as a rule no pointer changed. So this module
imports nothing but the standard library's smallest parts, and asks git for one list: the pointers in the index. It is
kept in the worktree's state (`in-step`) when a hook has come to its end; equal means nothing to do. What an earlier
hook skipped, was killed in, or never heard of (`git reset` with other hooks) makes it differ, so the next hook goes on
there. The file is in docs/format/workspace-state.md.

>>> nothing_to_do("post-checkout", ["0" * 40, "1" * 40, "0"], {}, b"/")     # files, not a branch
True
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

IN_STEP, BEFORE = b"in-step", b"in-step.before"
_HEADER, _END = b"dvk in-step 1\n", b"\nend\n"
#: Those that make data follow, each with what says that there is no need: which argument has to be "1".
FOLLOWING = {"post-checkout": 2, "post-index-change": 0, "post-merge": None, "post-rewrite": None}
_DONE = (b"", b"#")


def find_git(path: str, outside: bytes | None) -> str | None:
    """The first git in the absolute folders of `path` (as in PATH) that does not lie in the folder `outside`."""
    top = None if outside is None else os.path.realpath(os.fsdecode(outside))
    for folder in path.split(os.pathsep):
        found = os.path.join(folder, "git")
        if not os.path.isabs(folder) or not os.path.isfile(found) or not os.access(found, os.X_OK):
            continue
        if top is None or not any(_is_inside(p, top) for p in (folder, found)):
            return found
    return None


def _is_inside(path: str, top: str) -> bool:
    real = os.path.realpath(path)
    return real == top or real.startswith(top.rstrip("/") + "/")


def nothing_to_do(name: str, arguments: Sequence[str], environ: Mapping[str, str], cwd: bytes) -> bool:
    """Whether the hook `name`, which Git runs in `cwd`, can end at once. In doubt it cannot."""
    if environ.get("DVK_HOOKS") == "0":
        return True
    if name not in FOLLOWING:
        return False
    if not concerns_files(name, arguments, environ):
        return True
    git_dir = _git_dir(environ, cwd)
    if git_dir is None:
        return False
    if name != "post-rewrite" and is_rebasing(git_dir):
        return True
    git = find_git(environ.get("PATH", os.defpath), cwd)
    if git is None:
        return False
    kept = {k: v for k, v in environ.items() if k not in ("GIT_INDEX_FILE", "GIT_LITERAL_PATHSPECS")}
    done = subprocess.run(
        [git, "ls-files", "-s", "-z", "--", ":(top,glob)**/*.dvk"], cwd=cwd, env=kept, capture_output=True, check=False
    )
    return done.returncode == 0 and done.stdout == read(os.path.join(git_dir, b"dvk"))


def concerns_files(name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether a run of a following hook is about the work tree as a whole, as far as its arguments tell.

    Tools that run hooks may leave them out, and the pre-commit framework has a variable instead.
    """
    at = FOLLOWING[name]
    given = list(arguments[at : at + 1]) if at is not None else []
    if name == "post-checkout" and not given and "PRE_COMMIT_CHECKOUT_TYPE" in environ:
        given = [environ["PRE_COMMIT_CHECKOUT_TYPE"]]
    return given in ([], ["1"])


def _git_dir(environ: Mapping[str, str], cwd: bytes) -> bytes | None:
    """The Git folder of the worktree at `cwd`, without running anything; None where it is not plain to see."""
    named = environ.get("GIT_DIR")
    if named:
        return os.path.join(cwd, os.fsencode(named))
    path = os.path.join(cwd, b".git")
    if os.path.isdir(path):
        return path
    try:
        with open(path, "rb") as file:
            text = file.read(4096)
    except OSError:
        return None
    if not text.startswith(b"gitdir: ") or not text.endswith(b"\n"):
        return None
    return os.path.join(cwd, text[8:-1])


def is_rebasing(git_dir: bytes) -> bool:
    """Whether a rebase is on its way and has steps left: then pointers move on at once, and data waits for the end."""
    if os.path.exists(os.path.join(git_dir, b"rebase-apply", b"rebasing")):
        return True
    try:
        with open(os.path.join(git_dir, b"rebase-merge", b"git-rebase-todo"), "rb") as file:
            return any(line[:1] not in _DONE for line in file.read().splitlines())
    except OSError:
        return False


def read(state_dir: bytes, name: bytes = IN_STEP) -> bytes | None:
    """The list of pointers that data followed last, as `git ls-files -s -z` has it; None when that is not known.

    Args:
        name: BEFORE for the one before a run that has not come to its end.
    """
    try:
        with open(os.path.join(state_dir, name), "rb") as file:
            text = file.read()
    except OSError:
        return None
    return text[len(_HEADER) : -len(_END)] if text.startswith(_HEADER) and text.endswith(_END) else None


def forget(state_dir: bytes) -> None:
    """Before data is touched: from now on it is not known to be in step with anything."""
    try:
        os.replace(os.path.join(state_dir, IN_STEP), os.path.join(state_dir, BEFORE))
    except FileNotFoundError:
        return


def remember(state_dir: bytes, pointers: bytes) -> None:
    """Data has followed this list of pointers. Not synced: without it the next hook looks again."""
    temporary = os.path.join(state_dir, IN_STEP + b".%d.tmp" % os.getpid())
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    with open(temporary, "wb") as file:
        file.write(_HEADER + pointers + _END)
    os.replace(temporary, os.path.join(state_dir, IN_STEP))
