"""`dvk init`: a repository says for everybody how its data is cut, which project it is, and that pointers are not to be
converted.

Two tracked files: `dvk.toml`, with the chunking profile and the project's id pinned, and the line for pointers in
`.gitattributes`. In this clone alone, hooks that keep data in step with Git, and the merge of pointers
(`dvk.commands.hooks`). Every verb works without any of them; a second run changes nothing.
"""

from __future__ import annotations

import os
import secrets

from msgspec import Struct, field

from dvk.commands.hooks import HooksResult, decline_hooks, install_hooks
from dvk.commands.repo import Repo
from dvk.errors import Busy, NotARepository, NotFound, StorageError
from dvk.store.names import show
from dvk.workspace.config import FILE_NAME
from dvk.workspace.config_edit import set_value
from dvk.workspace.durable import exists, replace_file
from dvk.workspace.ignore import ensure_attributes
from dvk.workspace.keys import DEFAULT_PROFILE

_ATTRIBUTES = b".gitattributes"
_TEMPLATE = """\
# Settings of dvk for everybody who works on this repository. `dvk config --list` shows all, with where each comes from.
format = 1

[project]
# Random, and never to be changed: on a remote that serves several projects, `dvk gc` touches what this one pushed.
id = "{project}"

[profile]
# How files are cut into chunks. Pinned: two people who cut alike store what they have in common once.
default = "{profile}"

# Where data goes: `dvk remote add origin s3://BUCKET/PREFIX` (or a path) adds a section here.

# The key columns by which `dvk diff` compares tables:
# [[table]]
# path = "data/*.csv"
# key = ["customer_id"]
"""


class InitResult(Struct):
    """What an init did."""

    top: bytes  #: the top of the work tree
    wrote: list[bytes] = field(default_factory=list)  #: files that were made or changed
    staged: list[bytes] = field(default_factory=list)
    not_staged: str = ""  #: why staging did not happen although the files are written
    hooks: HooksResult | None = None  #: None: they were not wanted, or could not be installed
    no_hooks: str = ""  #: why they could not


def init(repo: Repo, *, stage: bool = True, hooks: bool = True) -> InitResult:
    """Write `dvk.toml` and the line in `.gitattributes`, where they are not there yet, and stage them.

    Args:
        hooks: install hooks and the merge of pointers in this clone.

    Raises:
        NotARepository: this is no Git work tree.
        Refused, StorageError: a file cannot be written.
    """
    ws = repo.workspace
    if ws.git is None:
        raise NotARepository(
            "a plain folder with a dvk.toml, not a Git repository",
            subject=show(ws.top),
            hint="`git init` makes one",
        )
    out = InitResult(ws.top)
    with ws.lock():
        if not exists(os.path.join(ws.top, FILE_NAME)):
            with_fd = ws.open_top()
            try:
                text = _TEMPLATE.format(project=secrets.token_hex(16), profile=DEFAULT_PROFILE)
                replace_file(with_fd, FILE_NAME, text.encode(), subject=show(FILE_NAME))
            finally:
                os.close(with_fd)
            out.wrote.append(FILE_NAME)
        else:
            missing = _unpinned(repo)
            for key, value in missing.items():
                set_value(ws.config.files, "repo", key, value)
            if missing:
                out.wrote.append(FILE_NAME)
        if ensure_attributes(ws.top):
            out.wrote.append(_ATTRIBUTES)
    if stage and ws.git.has_program:
        names = [n for n in (FILE_NAME, _ATTRIBUTES) if n in out.wrote or not ws.git.tracked_under(n)]
        out.staged, out.not_staged = stage_files(repo, names)
    if hooks and ws.git.has_program:
        try:
            out.hooks = install_hooks(repo)
        except (StorageError, NotFound, Busy) as error:  # every verb works without them
            out.no_hooks = str(error)
    elif not hooks:
        decline_hooks(repo)
    return out


def _unpinned(repo: Repo) -> dict[str, str]:
    """What a dvk.toml that is there does not say yet, and what it is to say."""
    pinned = {"profile.default": DEFAULT_PROFILE, "project.id": secrets.token_hex(16)}
    found = {key: repo.workspace.config.get(key) for key in pinned}
    return {key: pinned[key] for key, value in found.items() if value is None or value.origin.scope == "default"}


def stage_files(repo: Repo, names: list[bytes]) -> tuple[list[bytes], str]:
    """Put files at the top into the Git index: those that were, and why they were not."""
    git = repo.workspace.git
    if git is None or not git.has_program or not names:
        return [], ""
    try:
        git.stage(names)
    except Busy as error:
        return [], error.message
    return names, ""
