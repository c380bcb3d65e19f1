"""The repositories whose objects a clone borrows (`git clone --shared`, `--reference`), if they are to be trusted.

`objects/info/alternates` is a file of the clone's own, but what it leads to may belong to anybody by now. So git is
asked in each place: it refuses a repository of somebody else by its own rule (safe.directory), and so do we.
"""

from __future__ import annotations

import ast
import os

from msgspec import Struct, field

from dvk.errors import DvkError
from dvk.store.names import show
from dvk.workspace.durable import read_small
from dvk.workspace.git_program import GitProgram, failure

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 5  # as in Git
_OWN = ("GIT_DIR", "GIT_WORK_TREE")


class Alternates(Struct):
    """Git common directories, the nearest first, and what is wrong with others."""

    common_dirs: list[bytes] = field(default_factory=list)
    problems: list[DvkError] = field(default_factory=list)


def find_alternates(program: GitProgram, common_dir: bytes) -> Alternates:
    """The repositories that the one at `common_dir` borrows from, and those that these borrow from."""
    out = Alternates()
    asking = GitProgram(program.path, {k: v for k, v in program.environ.items() if k not in _OWN})
    pending = [(os.path.join(common_dir, b"objects"), 0)]
    seen = {os.path.realpath(common_dir)}
    # The common case costs one look at a file that is not there.
    while pending:
        objects, depth = pending.pop(0)
        for folder in _listed(objects, out.problems):
            # Git objects may lie anywhere; dvk's data lies only in a Git folder.
            if not os.path.isdir(folder):
                continue
            done = asking.run(["rev-parse", "--git-common-dir"], cwd=os.path.dirname(folder))
            if b"not a git repository" in done.err:
                continue
            if not done.ok:
                out.problems.append(failure(done, os.path.dirname(folder)))
                continue
            found = os.path.realpath(os.path.join(os.path.dirname(folder), done.out[:-1]))
            if found not in seen and os.path.realpath(os.path.join(found, b"objects")) == os.path.realpath(folder):
                seen.add(found)
                out.common_dirs.append(found)
                if depth < _MAX_DEPTH:
                    pending.append((folder, depth + 1))
    return out


def _listed(objects: bytes, problems: list[DvkError]) -> list[bytes]:
    path = os.path.join(objects, b"info", b"alternates")
    try:
        text = read_small(None, path, max_bytes=_MAX_BYTES, subject=show(path), follow=True) or b""
    except DvkError as error:
        problems.append(error)
        return []
    lines = [_unquoted(line) for line in text.split(b"\n") if line and not line.startswith(b"#")]
    return [os.path.normpath(os.path.join(objects, line)) for line in lines]


def _unquoted(line: bytes) -> bytes:
    """A path as Git writes it: with a quote before and escapes as in C where it has to."""
    if not (line.startswith(b'"') and line.endswith(b'"')):
        return line
    try:
        found = ast.literal_eval(f"b{line.decode('latin-1')}")
    except (ValueError, SyntaxError):
        return line
    return found if isinstance(found, bytes) else line
