"""dvk in `git diff` and `git log -p`: a pointer shown as what changed in the data it stands for.

`git diff` runs an external program for each pointer and `git log -p` a converter to text (textconv), once a clone has
asked for it (`dvk git-diff on`): a cloned repository cannot make Git run anything. Neither uses the network, writes
anything, or fails: a diff of code must not stop because of data.

- The program says what `dvk diff --stat` says, and compares the rows of tables that are here and small.
- The text is a profile of one version: what the pointer says, and where the data is here the columns of a table and its
  rows, or the tensors of a model. Git shows the difference of two such texts.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

from msgspec import Struct

from dvk.commands.diff import diff_pointers
from dvk.commands.diff_content import file_kind, tables_module
from dvk.commands.diff_result import DiffResult
from dvk.commands.repo import Repo
from dvk.errors import DvkError, NotARepository
from dvk.ids import FileId
from dvk.store.content import StoreContent
from dvk.store.names import show
from dvk.store.opened import Opened
from dvk.table.tensors.files import read_tensors, tensor_format
from dvk.workspace.durable import read_small
from dvk.workspace.ignore import set_own_attributes
from dvk.workspace.pointer import MAX_BYTES, SUFFIX, Pointer, parse

ATTRIBUTES_LINE = b"*.dvk diff=dvk"
_COMMAND, _TEXTCONV = "diff.dvk.command", "diff.dvk.textconv"
#: Tables up to this size are compared row by row, and counted; a `git diff` is to be quick.
_SMALL_BYTES = 64 << 20
_MOST_LINES = 1_000
_OLD_TEMPORARY = re.compile(rb"[A-Za-z0-9]{6}_(.+)")


class GitDiff(Struct, frozen=True):
    """Whether Git shows pointers by dvk in this clone."""

    on: bool
    changed: bool  #: false when it was so already
    places: tuple[bytes, ...]  #: the files that say so


def git_diff(repo: Repo, *, on: bool | None = None) -> GitDiff:
    """Let Git show pointers by dvk in this clone, or no longer, or say whether it does (None).

    Raises:
        NotARepository: this is no Git work tree. StorageError: Git's files cannot be written.
    """
    git = repo.workspace.git
    if git is None:
        raise NotARepository("a plain folder has no Git", subject=show(repo.workspace.top))
    attributes = os.path.join(git.common_dir, b"info", b"attributes")
    before = git.config_get(_COMMAND) is not None and _has_line(attributes)
    places = (os.path.join(git.common_dir, b"config"), attributes)
    if on is None:
        return GitDiff(before, False, places if before else ())
    changed = set_own_attributes(git.common_dir, ATTRIBUTES_LINE, wanted=on)
    for key, option in ((_COMMAND, "--git-driver"), (_TEXTCONV, "--git-textconv")):
        # Git runs it at the top of the work tree, and -P keeps Python from importing what lies there.
        command = shlex.join([sys.executable, "-P", "-m", "dvk", "diff", option])
        if on and git.config_get(key) != command:
            git.config_set(key, command)
            changed = True
        elif not on and git.config_get(key) is not None:
            git.config_unset(key)
            changed = True
    return GitDiff(on, changed, places)


def _has_line(path: bytes) -> bool:
    text = read_small(None, path, max_bytes=1 << 20, subject=show(path), follow=True) or b""
    return any(row.split() == ATTRIBUTES_LINE.split() for row in text.splitlines())


# ---------------------------------------------------------------- git diff


def driver(repo: Repo, path: bytes, old: bytes, new: bytes) -> DiffResult:
    """What `git diff` shows for a pointer.

    Args:
        path: of the pointer, from the top. old, new: files with its two versions; /dev/null for none.

    Raises:
        DvkError: a version is no pointer.
    """
    name = path.removesuffix(SUFFIX)
    a, b = _read(old, path), _read(new, path)
    small = all(p is None or (not p.is_dir and p.size <= _SMALL_BYTES and _is_here(repo, p)) for p in (a, b))
    return diff_pointers(repo, name, a, b, contents=small)


def _read(file: bytes, path: bytes) -> Pointer | None:
    if file == b"/dev/null":
        return None
    data = read_small(None, os.path.abspath(file), max_bytes=MAX_BYTES, subject=show(path), follow=True)
    return None if data is None else parse(data, subject=show(path))


def _is_here(repo: Repo, pointer: Pointer) -> bool:
    return not pointer.size or repo.store.chunks_of(FileId(pointer.id), pointer.size) is not None


# ---------------------------------------------------------------- git log -p


def profile(repo: Repo | None, file: bytes) -> Iterator[str]:
    """One version of a pointer as lines of text, the same for the same version as long as the same data is here.

    Args:
        file: holds the pointer; what it is called is told by its name, which Git keeps.

    Raises:
        DvkError: it is no pointer.
    """
    last = os.path.basename(file)
    found = _OLD_TEMPORARY.fullmatch(last) if os.path.dirname(file).endswith(b"tmp") else None
    name = (found[1] if found else last).removesuffix(SUFFIX)
    pointer = _read(file, last)
    if pointer is None:
        return
    yield f"kind {pointer.kind}"
    yield f"id {pointer.id.hex()}"
    yield f"size {pointer.size:,}"
    if pointer.files is not None:
        yield f"files {pointer.files:,}"
    if pointer.exec:
        yield "exec yes"
    yield from (f"source {key} {value}" for key, value in pointer.source)
    if repo is not None and not pointer.is_dir and pointer.size and _is_here(repo, pointer):
        try:
            yield from _content(repo, pointer, name)
        except DvkError as error:
            yield f"content not read: {error.message}"


def _content(repo: Repo, pointer: Pointer, name: bytes) -> Iterator[str]:
    with ExitStack() as stack:
        source = stack.enter_context(
            Opened(StoreContent(repo.store), pointer.id, pointer.size, label=show(name), name=name)
        )
        kind = file_kind(source)
        lines: Iterator[str] = iter(())
        if kind == "tensors":
            format = tensor_format(source.read_at(0, min(16, source.size)), name)
            found = read_tensors(source, format)
            yield f"format {found.format}"
            lines = (f"tensor {t.name} {t.dtype}{list(t.shape)}" for t in found.tensors.values())
        elif kind == "table":
            table = stack.enter_context(closing(tables_module().open_table(source)))
            yield f"format {table.format}"
            if not table.is_text or pointer.size <= _SMALL_BYTES:
                yield f"rows {table.count_rows():,}"
            lines = (f"column {c.label} {c.type}{'' if c.nullable else ' not null'}" for c in table.columns)
        for n, line in enumerate(lines):
            if n == _MOST_LINES:
                yield "..."
                break
            yield line
