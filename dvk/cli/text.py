"""Words and numbers for people: sizes, durations, counts, aligned columns, and what may reach a terminal.

A file name or an error of a server may hold escape sequences, newlines that fake a line of ours, or
characters that turn the reading direction (CVE-2024-50349 is one of many). So no verb prints: it returns
lines made of plain text and pieces with a style, and `Terminal` escapes every character that is not printable
before it adds colour.

>>> size(1_020_000_000), size(28_000_000), size(0)
('1.02 GB', '28 MB', '0 B')
>>> plural(48_800, "file"), duration(1.234), duration(125)
('48,800 files', '1.2 s', '2 min 5 s')
>>> printable("a\\x1b[31m\\n")
'a\\\\x1b[31m\\\\n'
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from msgspec import Struct

_SIZE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

#: Select Graphic Rendition codes of the few styles in use; eight colours that every theme defines.
_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
    "error": "1;31",
    "hint": "36",
    "note": "1;33",
}


class Piece(Struct, frozen=True):
    """A run of text in one style, a key of `_SGR`."""

    text: str
    style: str


#: One line of output: text, or text and styled pieces side by side. Never contains escape sequences itself.
Line = str | Piece | Sequence[str | Piece]


def bold(text: str) -> Piece:
    """`text` in bold."""
    return Piece(text, "bold")


def dim(text: str) -> Piece:
    """`text` that matters less."""
    return Piece(text, "dim")


def red(text: str) -> Piece:
    """`text` in red: gone, missing, wrong."""
    return Piece(text, "red")


def green(text: str) -> Piece:
    """`text` in green: new, staged, well."""
    return Piece(text, "green")


def yellow(text: str) -> Piece:
    """`text` in yellow: changed, waiting."""
    return Piece(text, "yellow")


def cyan(text: str) -> Piece:
    """`text` in cyan: a name or a command to copy."""
    return Piece(text, "cyan")


def pieces(line: Line) -> tuple[str | Piece, ...]:
    """The parts of a line, whichever way it was written."""
    return (line,) if isinstance(line, str | Piece) else tuple(line)


def plain(line: Line) -> str:
    """The text of a line without style, escaped for a terminal."""
    return "".join(printable(p if isinstance(p, str) else p.text) for p in pieces(line))


def styled(line: Line) -> str:
    """The text of a line with SGR sequences of our own, everything else escaped."""
    out = []
    for p in pieces(line):
        if isinstance(p, str):
            out.append(printable(p))
        else:
            out.append(f"\x1b[{_SGR[p.style]}m{printable(p.text)}\x1b[0m")
    return "".join(out)


def printable(text: str) -> str:
    """`text` with each unprintable character escaped: C0, C1, bidi, line separators, lone surrogates.

    Backslashes stay as they are, since names have been through `dvk.store.names.show`, which doubles them.
    """
    if text.isprintable():
        return text
    return "".join(ch if ch.isprintable() else _escaped(ch) for ch in text)


def _escaped(ch: str) -> str:
    code = ord(ch)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, by surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return ch.encode("unicode_escape").decode("ascii")


def size(size_bytes: int | float) -> str:
    """A size in decimal units with three digits, trailing zeros dropped: "1.02 GB", "385 MB", "12 B"."""
    sign = "-" if size_bytes < 0 else ""
    value = abs(size_bytes)
    unit = 0
    # 999.5 of a unit would round to "1000": that is "1" of the next one. Bytes are whole and never round.
    while value >= (999.5 if unit else 1000) and unit < len(_SIZE_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{sign}{_three_digits(value) if unit else str(int(value))} {_SIZE_UNITS[unit]}"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def rate(bytes_per_second: float) -> str:
    """A speed: "112 MB/s"."""
    return f"{size(bytes_per_second)}/s"


def count(n: int) -> str:
    """A whole number with groups of three: "48,800"."""
    return f"{n:,}"


def plural(n: int, one: str, many: str = "") -> str:
    """A counted noun: "1 file", "48,800 files"; `many` for nouns that do not just add an s."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def percent(part: float, whole: float) -> str:
    """A share without false precision: "0.3 %", "42 %"; nothing is "100 %" before it is all."""
    if whole <= 0:
        return "100 %"
    share = 100 * part / whole
    if share < 1 and part > 0:
        return f"{max(share, 0.1):.1f} %"
    return f"{int(share) if part < whole else round(share)} %"


def duration(seconds: float) -> str:
    """A length of time with two units at most: "50 ms", "1.2 s", "2 min 5 s", "1 h 3 min", "2 days 3 h"."""
    if seconds < 0.0995:
        return f"{round(max(seconds, 0) * 1000)} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole, 60, "min", 1, "s")
    if whole < 86_400:
        return _two(whole, 3600, "h", 60, "min")
    days = whole // 86_400
    return _two(whole, 86_400, "day" if days == 1 else "days", 3600, "h")


def _two(whole: int, big: int, big_unit: str, small: int, small_unit: str) -> str:
    head, rest = divmod(whole, big)
    tail = rest // small
    return f"{head} {big_unit} {tail} {small_unit}" if tail else f"{head} {big_unit}"


def ago(seconds: float) -> str:
    """An age with one unit: "just now", "5 min ago", "2 days ago"."""
    for span, one, many in (
        (31_557_600, "year", "years"),
        (2_629_800, "month", "months"),
        (86_400, "day", "days"),
        (3600, "h", "h"),
        (60, "min", "min"),
    ):
        if seconds >= span:
            n = int(seconds // span)
            return f"{n} {one if n == 1 else many} ago"
    return "just now"


def width(text: str) -> int:
    """The terminal cells of a printable text: two for wide East Asian characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(ch) else 2 if unicodedata.east_asian_width(ch) in "WF" else 1 for ch in text)


def columns(rows: Iterable[Sequence[str | Piece]], *, right: Iterable[int] = (), gap: int = 2) -> list[Line]:
    """Rows as lines with aligned cells; the columns numbered in `right` align right."""
    table = [list(row) for row in rows]
    flush_right = frozenset(right)
    cells = max((len(row) for row in table), default=0)
    sizes = [max((width(plain(row[c])) for row in table if c < len(row)), default=0) for c in range(cells)]
    lines: list[Line] = []
    for row in table:
        line: list[str | Piece] = []
        for c, cell in enumerate(row):
            pad = " " * (sizes[c] - width(plain(cell)))
            last = c == len(row) - 1
            if c in flush_right:
                line += [pad, cell]
            else:
                line += [cell] if last else [cell, pad]
            if not last:
                line.append(" " * gap)
        lines.append(tuple(x for x in line if x))
    return lines
