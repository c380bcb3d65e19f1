"""Which names dvk will store and write, decided once for `add` and for `checkout`.

Names come from strangers: a listing on a remote can hold `../../.ssh/authorized_keys`, `.GIT/hooks/x`,
or `a` beside `a/b`. A name that passes here is a relative path of plain components that no filesystem
that we know of folds into `.git` or `.dvk`; that nothing on the way is a symbolic link is for
`dvk.workspace.handles` to see to, since no check of a string can.

>>> check_path(b"images/cat.jpg", subject="images.dvk")
>>> why_bad(b"a/.Git /config")
'holds a part that some systems read as .git'

A million names are checked together: a few scans over their blob find what could be wrong, and only
such names are looked at one by one.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice
from operator import ge

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from dvk.errors import FormatError
from dvk.store.names import Names, show, windows

MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255

_SLASH = ord("/")
_DOT = ord(".")

# What HFS+ leaves out when it compares names (the list of CVE-2014-9390): U+200C-200F, U+202A-202E,
# U+206A-206F, U+FEFF. As UTF-8, since names are bytes.
_IGNORABLE = re.compile(rb"\xe2\x80[\x8c-\x8f\xaa-\xae]|\xe2\x81[\xaa-\xaf]|\xef\xbb\xbf")
_IGNORABLE_STARTS = (b"\xe2\x80", b"\xe2\x81", b"\xef\xbb\xbf")
_LEADS = b".gGdD\xe2\xef"  # what a component begins with that could fold into something of ours
_SHORT_NAME = re.compile(r"(?:git|dvk)~[0-9]+")


def why_bad_component(part: bytes) -> str:
    """Why `part` may not be one component of a stored name; empty if it may."""
    if not part:
        return "has an empty part"
    if len(part) > MAX_COMPONENT_BYTES:
        return f"has a part of more than {MAX_COMPONENT_BYTES} bytes"
    if part in (b".", b".."):
        return "has a part that is . or .."
    if b"/" in part:
        return "has a part with a slash"
    if b"\0" in part:
        return "has a NUL byte"
    # No character folds or normalises to a dot, g or d other than themselves and G, D.
    if part[0] not in _LEADS or (part[0] in b"gGdD" and b"~" not in part):
        return ""
    plain = part.partition(b":")[0]
    if not plain.isascii():
        plain = _IGNORABLE.sub(b"", plain)
    folded = unicodedata.normalize("NFC", plain.decode("utf-8", "surrogateescape")).casefold().rstrip(". ")
    if folded in (".git", ".dvk"):
        return f"holds a part that some systems read as {folded}"
    if _SHORT_NAME.fullmatch(folded):
        return f"holds a part that some systems read as .{folded[:3]}"
    return ""


def why_bad(path: bytes) -> str:
    """Why `path` may not be stored or written; empty if it may."""
    if not path:
        return "is empty"
    if len(path) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if path.startswith(b"/") or path.endswith(b"/"):
        return "begins or ends with a slash"
    for part in path.split(b"/"):
        reason = why_bad_component(part)
        if reason:
            return reason
    return ""


def check_path(path: bytes, *, subject: str) -> None:
    """Pass if `path` is a safe relative path.

    Raises:
        FormatError: naming the path and what is wrong with it; `subject` is where it was found.
    """
    reason = why_bad(path)
    if reason:
        raise FormatError(f'the name "{show(path)}" {reason}', subject=subject)


def bad_names(names: Names) -> list[tuple[int, str]]:
    """The positions of all names that `why_bad` objects to, with its reason, ascending.

    Looks at names alone, not at their order (`check_names` does). `names` must have sane offsets, as
    every `Names` built by this program has.
    """
    return [
        (run.start + i, reason)
        for run in windows(len(names))
        for i, reason in _bad_names(names.slice(run.start, run.stop))
    ]


def _bad_names(names: Names) -> list[tuple[int, str]]:
    first, last = int(names.offsets[0]), int(names.offsets[-1])
    blob = names.blob[first:last]
    starts = names.offsets[:-1] - first
    ends = names.offsets[1:] - first
    lengths = ends - starts
    suspect = (lengths == 0) | (lengths > MAX_COMPONENT_BYTES)
    full = np.flatnonzero(lengths > 0)
    suspect[full] |= np.isin(blob[starts[full]], (_SLASH, _DOT)) | (blob[ends[full] - 1] == _SLASH)

    data = blob.tobytes()
    # Each pattern is as long as it can be and still be looked for with one memmem over the blob. A hit
    # that spans two names only makes a suspect of a good one.
    patterns = [b"\0", b"//", b"/."]
    if b"~" in data:
        patterns += [b"~%d" % digit for digit in range(10)]
    if not data.isascii():
        patterns += _IGNORABLE_STARTS
    for pattern in patterns:
        at = _occurrences(data, blob, pattern)
        if len(at):
            suspect[np.searchsorted(ends, at, side="right")] = True

    index = np.flatnonzero(suspect)
    if not len(index):
        return []
    # A million names below one odd directory, say `.cache`, have few parts that differ: judge those.
    each = list(names)
    odd = [each[i] for i in index.tolist()]
    parts = {part: reason for part in set(b"/".join(odd).split(b"/")) if (reason := why_bad_component(part))}
    if not parts and int(lengths.max()) <= MAX_PATH_BYTES:
        return []
    return [(i, reason) for i, name in zip(index.tolist(), odd, strict=True) if (reason := why_bad(name))]


def _occurrences(data: bytes, blob: npt.NDArray[np.uint8], pattern: bytes) -> npt.NDArray[np.int64]:
    """Where `pattern` begins in `data`; free when it does not occur."""
    if pattern not in data:
        return np.zeros(0, np.int64)
    hit = blob[: len(blob) - len(pattern) + 1] == pattern[0]
    for k in range(1, len(pattern)):
        hit &= blob[k : len(blob) - len(pattern) + 1 + k] == pattern[k]
    return np.flatnonzero(hit)


def check_names(names: Names, *, subject: str) -> None:
    """Pass if `names` is what a listing may hold: safe, strictly ascending, and none inside another.

    Raises:
        FormatError: naming the first offender; `subject` is where the names were found.
    """
    offsets = names.offsets
    if (
        len(offsets) < 1
        or int(offsets[0]) < 0
        or int(offsets[-1]) > len(names.blob)
        or bool((np.diff(offsets) < 0).any())
    ):
        raise FormatError("its names are cut at places that make no sense", subject=subject)
    for i, reason in bad_names(names):
        raise FormatError(f'the name "{show(names[i])}" {reason}', subject=subject)
    each = list(names)
    if any(map(ge, each, islice(each, 1, None))):
        i = next(i for i in range(len(each) - 1) if each[i] >= each[i + 1])
        what = "appears twice" if each[i] == each[i + 1] else f'comes before "{show(each[i + 1])}"'
        raise FormatError(f'its names are not in order: "{show(each[i])}" {what}', subject=subject)
    inside = _first_inside(each)
    if inside is not None:
        raise FormatError(
            f'"{show(each[inside[0]])}" is a file and also a directory of "{show(each[inside[1]])}"',
            subject=subject,
        )


def _first_inside(each: Sequence[bytes]) -> tuple[int, int] | None:
    """The first name that is a directory on the way to another, in an ascending sequence."""
    # Whatever sorts between `a` and `a/b` begins with `a`, so only a name whose successor begins with
    # it can have something below it.
    if not any(map(bytes.startswith, islice(each, 1, None), each)):
        return None
    for i in range(len(each) - 1):
        if each[i + 1].startswith(each[i]):
            below = each[i] + b"/"
            j = bisect_left(each, below, i + 1)
            if j < len(each) and each[j].startswith(below):
                return i, j
    return None


def fold(path: bytes, *, case: bool = True, forms: bool = True) -> str:
    """`path` as a filesystem sees it that ignores `case` and Unicode normal `forms`."""
    text = path.decode("utf-8", "surrogateescape")
    if forms:
        text = unicodedata.normalize("NFC", text)
    if case:
        text = text.casefold()
        if forms:
            text = unicodedata.normalize("NFC", text)
    return text


def find_collisions(names: Iterable[bytes], *, case: bool = True, forms: bool = True) -> list[tuple[bytes, bytes]]:
    """Pairs of different names, or directories of names, that a folding filesystem takes for one.

    A pair names the paths as far as they collide: for `A/x` and `a/y` it is (`A`, `a`). Each path is in
    at most one pair as the second member.
    """
    names = names if isinstance(names, Names) else Names.of(names)
    if not _may_fold(names, case=case):
        return []
    directories: set[bytes] = set()
    for name in names:
        directory = name.rpartition(b"/")[0]
        while directory and directory not in directories:
            directories.add(directory)
            directory = directory.rpartition(b"/")[0]

    def paths() -> Iterator[bytes]:
        return chain(sorted(directories), names)

    # Numbers first, and texts only of those that share one: a million texts would be hundreds of megabytes.
    folded = (fold(path, case=case, forms=forms).encode("utf-8", "surrogateescape") for path in paths())
    numbers = np.fromiter(map(xxh3_64_intdigest, folded), np.uint64, len(directories) + len(names))
    ordered = np.sort(numbers)
    doubtful = np.isin(numbers, ordered[1:][ordered[1:] == ordered[:-1]])
    del numbers, ordered
    seen: dict[str, bytes] = {}
    pairs: list[tuple[bytes, bytes]] = []
    for path in compress(paths(), doubtful.tolist()):
        first = seen.setdefault(fold(path, case=case, forms=forms), path)
        if first != path and first.count(b"/") == path.count(b"/"):
            parent, other = first.rpartition(b"/")[0], path.rpartition(b"/")[0]
            # Where the parents already collide, that pair says it all.
            if parent == other:
                pairs.append((first, path))
    return pairs


def _may_fold(names: Names, *, case: bool) -> bool:
    """Whether some name has a letter that a folding filesystem may take for another."""
    for run in windows(len(names)):
        text = names.blob[int(names.offsets[run.start]) : int(names.offsets[run.stop])].tobytes()
        if not text.isascii() or (case and text != text.lower()):
            return True
    return False


def check_link(path: bytes, target: bytes, *, subject: str = "") -> None:
    """Pass if the link `path` of a folder points to something inside the folder, whatever else is there.

    The target is relative, and `..` stands at its start only: the directory of a link is a real one, so
    such steps are exact, and every link met later obeys the same rule. With `..` after a name, a
    chain of links could climb out although the text stays inside (`d -> .`, `x -> d/d/../../..`).

    Raises:
        FormatError: naming the link, its target and what is wrong.
    """

    def refuse(reason: str) -> FormatError:
        return FormatError(
            f'the link "{show(path)}" -> "{show(target[:200])}" {reason}',
            subject=subject,
            hint="dvk keeps relative links that stay inside their folder; put what it points to in its place",
        )

    if not target or len(target) > MAX_PATH_BYTES or b"\0" in target:
        raise refuse("has a target that is empty, too long or holds NUL")
    if target.startswith(b"/"):
        raise refuse("is absolute")
    up, named = 0, False
    for part in target.split(b"/"):
        if part == b"..":
            if named:
                raise refuse("has .. after a name in its target")
            up += 1
        elif part not in (b"", b"."):
            named = True
    if up > path.count(b"/"):
        raise refuse("leaves its folder")
