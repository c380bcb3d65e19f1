"""Git's pattern language for paths, on raw bytes and in bounded time.

`.dvkignore` and the path patterns of `dvk.toml` use the grammar that everybody knows from `.gitignore`.
Both come from strangers, so a pattern like `*a*a*a*a*b` must not take minutes, and names are bytes that
need not be UTF-8. A pattern becomes one regular expression over bytes in which each star is settled at its
first match (an atomic group: a later match could only see less of the rest), so that nothing is tried
twice.

>>> bool(Pattern.parse(b"/data/**/*.tmp").matches(b"data/a/b/x.tmp", is_dir=False))
True

That the answers are Git's own is tested against `git check-ignore`.
"""

from __future__ import annotations

import re

from msgspec import Struct

_CLASSES = {
    b"alnum": rb"0-9A-Za-z",
    b"alpha": rb"A-Za-z",
    b"blank": rb"\x20\t",
    b"cntrl": rb"\x00-\x1f\x7f",
    b"digit": rb"0-9",
    b"graph": rb"\x21-\x7e",
    b"lower": rb"a-z",
    b"print": rb"\x20-\x7e",
    b"punct": rb"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    b"space": rb"\x20\t\n\r\x0b\x0c",
    b"upper": rb"A-Z",
    b"xdigit": rb"0-9A-Fa-f",
}


class _Never(Exception):
    """A pattern that Git matches with nothing: an open bracket, a backslash at the end."""


class Pattern(Struct, frozen=True):
    """One line of an ignore file. `anchored`: of the whole path; otherwise of its last component."""

    regex: re.Pattern[bytes]
    anchored: bool
    negated: bool
    dir_only: bool

    @classmethod
    def parse(cls, line: bytes) -> Pattern | None:
        """The pattern in a line without its line end; None for a comment, a blank line or one that matches nothing."""
        if line.startswith(b"#"):
            return None
        text = _trim(line)
        negated = text.startswith(b"!")
        text = text.removeprefix(b"!")
        dir_only = text.endswith(b"/")
        if dir_only:
            text = text[:-1]
        anchored = b"/" in text
        text = text.removeprefix(b"/")
        if not text:
            return None
        try:
            return cls(re.compile(_path(text), re.DOTALL), anchored, negated, dir_only)
        except _Never:
            return None

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether this line speaks about `path` itself; not whether about a folder above it."""
        if self.dir_only and not is_dir:
            return False
        return self.regex.fullmatch(path if self.anchored else path.rpartition(b"/")[2]) is not None


def _trim(line: bytes) -> bytes:
    """`line` without the spaces at its end that no backslash protects."""
    kept = at = 0
    while at < len(line):
        if line[at : at + 1] == b"\\":
            at = kept = min(at + 2, len(line))
        else:
            at += 1
            if line[at - 1 : at] != b" ":
                kept = at
    return line[:kept]


def _path(text: bytes) -> bytes:
    """A regular expression for a pattern: runs of components between `**`."""
    runs: list[list[bytes]] = [[]]
    for part in _components(text):
        if len(part) >= 2 and not part.strip(b"*"):
            if runs[-1] or len(runs) == 1:
                runs.append([])
        else:
            runs[-1].append(part)
    if len(runs) == 1:
        return b"/".join(_component(part) for part in runs[0])
    first, *middle, last = (b"/".join(_component(part) for part in run) for run in runs)
    out = first + b"/" if first else b""
    # The first place where a run fits leaves the most for those after it.
    out += b"".join(b"(?>(?:[^/]+/)*?" + run + b"/)" for run in middle)
    return out + (b"(?:[^/]+/)*" + last if last else b".+")


def _components(text: bytes) -> list[bytes]:
    """`text` cut at its slashes, those in brackets left alone."""
    parts, start, at = [], 0, 0
    while at < len(text):
        c = text[at : at + 1]
        if c == b"\\":
            at += 2
        elif c == b"[":
            at = _bracket(text, at)[1]
        else:
            if c == b"/":
                parts.append(text[start:at])
                start = at + 1
            at += 1
    return [*parts, text[start:]]


def _component(part: bytes) -> bytes:
    pieces: list[bytes] = [b""]  # between stars
    at = 0
    while at < len(part):
        c = part[at : at + 1]
        if c == b"*":
            pieces.append(b"")
            at += 1
        elif c == b"?":
            pieces[-1] += b"[^/]"
            at += 1
        elif c == b"[":
            regex, at = _bracket(part, at)
            pieces[-1] += regex
        else:
            at += c == b"\\"
            if at == len(part):
                raise _Never
            pieces[-1] += re.escape(part[at : at + 1])
            at += 1
    first, *rest = pieces
    if not rest:
        return first
    *middle, last = rest
    return first + b"".join(b"(?>[^/]*?" + m + b")" for m in middle if m) + b"[^/]*" + last


def _bracket(text: bytes, start: int) -> tuple[bytes, int]:
    """The regular expression of the bracket at `start`, and where it ends."""
    at = start + 1
    negated = text[at : at + 1] in (b"!", b"^")
    at += negated
    out = b""
    low: int | None = None  # what a following dash would start a range from
    first = True
    while first or text[at : at + 1] != b"]":
        first = False
        if at >= len(text):
            raise _Never
        if text[at : at + 2] == b"[:" and (end := text.find(b":]", at + 2)) >= 0:
            if text[at + 2 : end] not in _CLASSES:
                raise _Never
            out += _CLASSES[text[at + 2 : end]]
            at, low = end + 2, None
            continue
        if text[at : at + 1] == b"-" and low is not None and text[at + 1 : at + 2] not in (b"]", b""):
            at, high = _literal(text, at + 1)
            if low <= high:
                out += b"\\x%02x-\\x%02x" % (low, high)
            low = None
            continue
        at, low = _literal(text, at)
        out += b"\\x%02x" % low
    if not out:
        return (b"[^/]" if negated else b"(?!)"), at + 1
    return (b"(?!/)[^" if negated else b"(?!/)[") + out + b"]", at + 1


def _literal(text: bytes, at: int) -> tuple[int, int]:
    """Where the byte at `at`, protected or not, ends; and the byte."""
    at += text[at : at + 1] == b"\\"
    if at >= len(text):
        raise _Never
    return at + 1, text[at]
