"""Keeping data out of Git, and clutter out of data.

Three files have a say. Git's `info/exclude` gets a block that hides tracked data from Git. It lies in the
Git common directory, so it is right at every revision and in every worktree, where a `.gitignore` in the
tree would be missing at all commits before a path was tracked, and `git add -A` would take 40 GB:

    # >>> dvk: data kept outside Git; written by dvk
    .dvk-????????????????????????????????.tmp
    /data/train.csv
    /models
    # <<< dvk

`.gitattributes` gets the line that keeps Git's hands off pointers. `.dvkignore` is the user's: what a
tracked folder leaves out.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from dvk.backend.disk import OPEN_DIR, storage_error
from dvk.errors import FormatError
from dvk.store.names import show
from dvk.workspace.durable import read_small, replace_file
from dvk.workspace.gitignore import Pattern

ATTRIBUTES_LINE = b"*.dvk -text merge=dvk"
MAX_BYTES = 16 << 20  # of exclude: a hundred thousand tracked paths
MAX_IGNORE_BYTES = 1 << 20
MAX_PATTERNS = 10_000

_BEGIN = b"# >>> dvk: data kept outside Git; written by dvk"
_END = b"# <<< dvk"
_TEMPORARY = b".dvk-" + b"?" * 32 + b".tmp"  # files that a killed run left beside their target, see `stats.TEMP_NAME`
_CLUTTER = frozenset({b".DS_Store", b"Thumbs.db", b"desktop.ini"})
_APPLE_DOUBLE, _AFTER_APPLE_DOUBLE = b"._", b".`"


def exclude_pattern(path: bytes) -> bytes:
    """The line that hides exactly `path` (from the top of the work tree), file or folder.

    A newline cannot be written in Git's grammar: `?` stands for it, and so hides names that differ in that
    byte too.
    """
    escaped = re.sub(rb"[\\*?\[]", rb"\\\g<0>", path).replace(b"\n", b"?")
    if escaped.endswith(b"\r"):
        # Before the line end it would be taken for a part of it, and a backslash does not help.
        escaped = escaped[:-1] + b"?"
    if escaped.endswith(b" "):
        escaped = escaped[:-1] + b"\\ "
    return b"/" + escaped


def update_exclude(common_git_dir: bytes, *, add: Iterable[bytes] = (), remove: Iterable[bytes] = ()) -> bool:
    """Hide the paths in `add` from Git and show those in `remove` again; whether anything had to be written.

    Read, change, replace: the caller holds the repository's lock. Lines outside the block stay byte for byte.

    Raises:
        StorageError: the file cannot be written.
        FormatError: it is too large to be an exclude file.
    """
    gone = {exclude_pattern(path) for path in remove}
    new = {exclude_pattern(path) for path in add}

    def change(text: bytes) -> bytes:
        before, block, after = _split(text)
        kept = (block - gone) | new
        if kept == block and (block or not text.count(_BEGIN)):
            return text
        lines = [_BEGIN, _TEMPORARY, *sorted(kept), _END] if kept else []
        if lines and before and not before.endswith(b"\n"):
            before += b"\n"
        return before + b"".join(line + b"\n" for line in lines) + after

    folder = os.path.join(common_git_dir, b"info")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise storage_error(e, show(folder)) from e
    return _edit(folder, b"exclude", change, follow=True)


def excluded(common_git_dir: bytes) -> frozenset[bytes]:
    """The lines that dvk's block has now; compare with `exclude_pattern`."""
    path = os.path.join(common_git_dir, b"info", b"exclude")
    return frozenset(_split(read_small(None, path, max_bytes=MAX_BYTES, subject=show(path), follow=True) or b"")[1])


def excluded_paths(common_git_dir: bytes) -> list[bytes]:
    """The paths that dvk's block hides; one with a newline comes back as it was, see `exclude_pattern`."""
    out = []
    for line in sorted(excluded(common_git_dir)):
        escaped = line.removeprefix(b"/").replace(b"\\ ", b" ")
        # Only an escaped question mark is one; a bare one stands for the newline.
        parts = re.split(rb"(\\.)", escaped, flags=re.DOTALL)
        out.append(b"".join(p[1:] if p.startswith(b"\\") else p.replace(b"?", b"\n") for p in parts))
    return out


def ensure_attributes(top: bytes) -> bool:
    """Give `.gitattributes` at the top the line for pointers; False when it has it.

    Raises:
        Refused: `.gitattributes` is a link.
        StorageError: it cannot be written.
    """

    def change(text: bytes) -> bytes:
        if any(line.split() == ATTRIBUTES_LINE.split() for line in text.splitlines()):
            return text
        if text and not text.endswith(b"\n"):
            text += b"\n"
        return text + ATTRIBUTES_LINE + b"\n"

    return _edit(top, b".gitattributes", change)


def set_own_attributes(common_git_dir: bytes, line: bytes, *, wanted: bool) -> bool:
    """Put `line` into the attributes of this clone alone (`info/attributes`), or take it out; whether that was news.

    Raises:
        StorageError: the file cannot be written.
    """

    def change(text: bytes) -> bytes:
        lines = _lines(text)
        kept = [row for row in lines if row.split() != line.split()]
        if not wanted:
            return b"".join(kept)
        if len(kept) < len(lines):
            return text
        return text + (b"\n" if text and not text.endswith(b"\n") else b"") + line + b"\n"

    folder = os.path.join(common_git_dir, b"info")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise storage_error(e, show(folder)) from e
    return _edit(folder, b"attributes", change, follow=True)


def _edit(folder: bytes, name: bytes, change: Callable[[bytes], bytes], *, follow: bool = False) -> bool:
    path = os.path.join(folder, name)
    if follow:
        # The user's own file: one that is kept elsewhere is changed there and stays a link.
        folder, name = os.path.split(os.path.realpath(path))
    subject = show(path)
    try:
        dir_fd = os.open(folder, OPEN_DIR)
    except OSError as e:
        raise storage_error(e, subject) from e
    try:
        old = read_small(dir_fd, name, max_bytes=MAX_BYTES, subject=subject)
        new = change(old or b"")
        if new == (old or b""):
            return False
        replace_file(dir_fd, name, new, subject=subject)
        return True
    finally:
        os.close(dir_fd)


def _split(text: bytes) -> tuple[bytes, set[bytes], bytes]:
    """What is before our block, the lines in it, what is after it.

    A block that somebody cut off has all the lines up to the first that is no pattern of ours.
    """
    lines = _lines(text)
    starts = [i for i, line in enumerate(lines) if line.rstrip(b"\r\n") == _BEGIN]
    if not starts:
        return text, set(), b""
    start = stop = starts[0]
    stop += 1
    block = set()
    while stop < len(lines) and (lines[stop].startswith(b"/") or lines[stop].rstrip(b"\r\n") == _TEMPORARY):
        if lines[stop].startswith(b"/"):
            block.add(lines[stop].removesuffix(b"\n"))
        stop += 1
    if stop < len(lines) and lines[stop].rstrip(b"\r\n") == _END:
        stop += 1
    rest = b"".join(lines[stop:])
    if _BEGIN in rest:  # two blocks, as a careless copy leaves them: one again
        before, more, after = _split(rest)
        return b"".join(lines[:start]) + before, block | more, after
    return b"".join(lines[:start]), block, rest


def _lines(text: bytes) -> list[bytes]:
    """`text` cut after each LF and nowhere else."""
    parts = text.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


class IgnoreRules(Struct, frozen=True):
    """What tracked folders leave out: `.dvkignore` over a small built-in list. The last line that matches decides."""

    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def parse(cls, text: bytes, *, subject: str = ".dvkignore") -> IgnoreRules:
        """The rules in the text of a `.dvkignore`.

        Raises:
            FormatError: it has more than 10,000 patterns.
        """
        lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        found = tuple(p for line in lines if (p := Pattern.parse(line.removesuffix(b"\r"))) is not None)
        if len(found) > MAX_PATTERNS:
            raise FormatError(f"more than {MAX_PATTERNS:,} patterns", subject=subject)
        return cls(found)

    @classmethod
    def load(cls, top: bytes) -> IgnoreRules:
        """The rules of the work tree at `top`: its `.dvkignore`, and the built-in list.

        Raises:
            Refused: `.dvkignore` is a link.
            FormatError, StorageError: it is too large, or cannot be read.
        """
        path = os.path.join(top, b".dvkignore")
        text = read_small(None, path, max_bytes=MAX_IGNORE_BYTES, subject=".dvkignore")
        return cls.parse(text) if text else cls()

    def ignored(self, base: bytes, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the entries of one folder that are left out, in order; as `match`, for many at a time.

        Args:
            base: what stands before each entry: the folder, from the top of the work tree, and its slash.
            keys: sorted; directories end with a slash.
        """
        if self.patterns:
            return [k for k in keys if self.match(base + k.rstrip(b"/"), k.endswith(b"/"))]
        # In a sorted list clutter is found without looking at the others.
        first, stop = bisect_left(keys, _APPLE_DOUBLE), bisect_left(keys, _AFTER_APPLE_DOUBLE)
        found = [k for k in keys[first:stop] if not k.endswith(b"/")]
        for name in _CLUTTER:
            i = bisect_left(keys, name)
            if i < len(keys) and keys[i] == name:
                found.append(name)
        return sorted(found)

    def match(self, path: bytes, is_dir: bool) -> bool:
        """Whether `path`, from the top of the work tree, is left out. Ask for a folder before what is in it."""
        for pattern in reversed(self.patterns):
            if pattern.matches(path, is_dir=is_dir):
                return not pattern.negated
        name = path[path.rfind(b"/") + 1 :]
        return not is_dir and (name in _CLUTTER or name.startswith(_APPLE_DOUBLE))
