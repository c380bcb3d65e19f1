"""The pointer: the small text file in Git that stands for a file or folder of data.

Git merges, converts line ends and hands over what strangers wrote, and a pointer that is read wrongly
becomes wrong data. So the grammar has one spelling for one meaning, checked line by line, and nothing is
repaired:

>>> text = format_pointer(Pointer("file", bytes([7]) * 32, 12))
>>> parse(text, subject="x.dvk").size
12

The bytes are specified in `docs/format/pointer.md`. A pointer has no path in it: `data_name` of the file's
own name is the only place that it can speak about.
"""

from __future__ import annotations

import re
from typing import Literal, NoReturn

from msgspec import Struct

from dvk.errors import FormatError, NewerFormat, UsageError
from dvk.ids import EMPTY_FILE, parse_hex
from dvk.store.names import show

SUFFIX = b".dvk"
MAX_BYTES = 65_536
MAX_NUMBER = 2**63 - 1
MAX_SOURCES = 64
MAX_NAME_BYTES = 255 - len(SUFFIX)  #: of data that has a pointer beside it

_HEADER = "dvk pointer 1 (data kept outside Git, see https://pypi.org/project/dvk)"
_VERSION = re.compile(rb"dvk pointer ([1-9][0-9]{0,8})(?: .*)?")
_CONFLICT = re.compile(rb"^(?:<<<<<<< |>>>>>>> |\|\|\|\|\|\|\| |=======$)", re.MULTILINE)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_SOURCE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_RESTORE = "take it as it was committed (`git checkout HEAD -- FILE.dvk`), or `dvk add` the data again"


class Pointer(Struct, frozen=True):
    """What a pointer says. `id` is a FileId or, for a folder, the PageId of its listing's root."""

    kind: Literal["file", "dir"]
    id: bytes
    size: int  #: bytes of content, of a folder all its files together
    files: int | None = None  #: how many files, for a folder only
    exec: bool = False  #: the file is executable; never for a folder
    source: tuple[tuple[str, str], ...] = ()  #: where imported data came from, names ascending

    @property
    def is_dir(self) -> bool:
        """Whether it stands for a folder."""
        return self.kind == "dir"


def parse(data: bytes, *, subject: str) -> Pointer:
    """The pointer in `data`; `subject` names the file in errors.

    Raises:
        NewerFormat: a newer dvk wrote it.
        FormatError: it is not exactly what `format_pointer` writes; the message says at which line.
    """
    if len(data) > MAX_BYTES:
        raise FormatError(
            f"a pointer has at most {MAX_BYTES:,} bytes, this file has more",
            subject=subject,
            hint="is it data that was named .dvk by mistake? Rename it",
        )
    if _CONFLICT.search(data):
        raise FormatError(
            "has unresolved merge conflict markers",
            subject=subject,
            hint="`dvk resolve PATH --ours` (or --theirs, or --merge for a folder) ends the conflict",
        )
    if b"\r" in data:
        raise FormatError(
            "has CRLF line ends",
            subject=subject,
            hint="`*.dvk -text` in .gitattributes keeps Git from converting it (`dvk init` writes that "
            "line); then `git checkout HEAD -- FILE.dvk`",
        )
    first = data.split(b"\n", 1)[0]
    if first != _HEADER.encode():
        version = _VERSION.fullmatch(first)
        if version and int(version[1]) > 1:
            raise NewerFormat(
                f"written by a newer dvk (pointer format {int(version[1])}, this dvk reads 1)",
                subject=subject,
                hint="upgrade dvk: `pip install --upgrade dvk`",
            )
        raise FormatError(
            "not a dvk pointer",
            subject=subject,
            hint="a pointer starts with `dvk pointer 1`; rename the file if it is something else",
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        _malformed(subject, "is not UTF-8 text")
    if not text.endswith("\n"):
        _malformed(subject, "ends in the middle of a line")
    return _Lines(text, subject).pointer()


def format_pointer(pointer: Pointer) -> bytes:
    """The one spelling of `pointer`.

    Raises:
        FormatError: the record says something that no pointer can say.
    """
    lines = [_HEADER, f"kind {pointer.kind}", f"id {pointer.id.hex()}", f"size {pointer.size}"]
    if pointer.files is not None:
        lines.append(f"files {pointer.files}")
    if pointer.exec:
        lines.append("exec yes")
    lines += [f"source {name} {value}" for name, value in pointer.source]
    try:
        data = ("\n".join(lines) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        _malformed("new pointer", "has a source that is not UTF-8 text")
    # Reading it back is what keeps a bug in a caller from becoming a commit that nobody can read.
    if parse(data, subject="new pointer") != pointer:
        _malformed("new pointer", "would not read back as it was given")
    return data


def is_pointer_name(path: bytes) -> bool:
    """Whether the last component of `path` is that of a pointer."""
    return path.endswith(SUFFIX) and path.rpartition(b"/")[2] != SUFFIX


def pointer_name(path: bytes) -> bytes:
    """The path of the pointer that stands for the data at `path`.

    Raises:
        UsageError: the name of the data ends in `.dvk` itself, so `x` and `x.dvk` could not mean the same;
        or it
            is too long for a pointer beside it.
    """
    if path.endswith(SUFFIX):
        raise UsageError("data whose name ends in .dvk cannot be tracked", subject=show(path), hint="rename it first")
    if len(path) - path.rfind(b"/") - 1 > MAX_NAME_BYTES:
        raise UsageError(
            f"a name of more than {MAX_NAME_BYTES} bytes leaves no room for `.dvk`",
            subject=show(path),
            hint="track the folder that it lies in, or rename it",
        )
    return path + SUFFIX


def data_name(pointer_path: bytes) -> bytes:
    """The path of the data that the pointer at `pointer_path` stands for.

    Raises:
        UsageError: it is not the name of a pointer.
    """
    if not is_pointer_name(pointer_path) or pointer_path[: -len(SUFFIX)].endswith(SUFFIX):
        raise UsageError("not the name of a pointer", subject=show(pointer_path))
    return pointer_path[: -len(SUFFIX)]


def _malformed(subject: str, what: str, *, line: int = 0) -> NoReturn:
    where = f"line {line} " if line else ""
    raise FormatError(f"malformed pointer: {where}{what}", subject=subject, hint=_RESTORE)


class _Lines:
    """The lines below the first, taken strictly in order."""

    def __init__(self, text: str, subject: str) -> None:
        self._lines = text.split("\n")[1:-1]
        self._at = 0
        self._subject = subject

    def pointer(self) -> Pointer:
        kind = self._need("kind")
        if kind not in ("file", "dir"):
            self._fail(f"has kind {kind[:40]!r}, not file or dir")
        try:
            an_id = parse_hex(self._need("id"))
        except FormatError:
            self._fail("has an id that is not 64 lowercase hexadecimal digits")
        size = self._number("size")
        files = self._number("files") if kind == "dir" else None
        executable = kind == "file" and self._next_is("exec")
        if executable and self._need("exec") != "yes":
            self._fail("may only say `exec yes`")
        sources = self._sources()
        if self._at < len(self._lines):
            self._at += 1
            self._fail(f"is unknown, repeated or out of order: {self._lines[self._at - 1][:40]!r}")
        if kind == "file" and (size == 0) != (an_id == EMPTY_FILE):
            _malformed(self._subject, "size 0 belongs to the id of an empty file, and only to it")
        if files == 0 and size:
            _malformed(self._subject, "a folder without files has a size")
        return Pointer("dir" if kind == "dir" else "file", an_id, size, files, executable, sources)

    def _sources(self) -> tuple[tuple[str, str], ...]:
        found: list[tuple[str, str]] = []
        while self._next_is("source"):
            name, space, value = self._need("source").partition(" ")
            if len(found) == MAX_SOURCES:
                self._fail(f"is one source more than the {MAX_SOURCES} allowed")
            if not space or not _SOURCE_NAME.fullmatch(name):
                self._fail("has a malformed source name")
            if not 1 <= len(value.encode()) <= 4096 or value != value.strip(" ") or _CONTROL.search(value):
                self._fail(f"has a malformed text for source {name}")
            if found and name <= found[-1][0]:
                self._fail(f"repeats source {name} or has it out of order")
            found.append((name, value))
        return tuple(found)

    def _next_is(self, key: str) -> bool:
        return self._at < len(self._lines) and self._lines[self._at].startswith(key + " ")

    def _need(self, key: str) -> str:
        """The value of the next line, which must have this key."""
        if self._at == len(self._lines):
            _malformed(self._subject, f"the line `{key}` is missing")
        line = self._lines[self._at]
        self._at += 1
        if not line.startswith(key + " "):
            self._fail(f"should be `{key}` and is {line[:40]!r}")
        return line[len(key) + 1 :]

    def _number(self, key: str) -> int:
        text = self._need(key)
        if not _NUMBER.fullmatch(text) or int(text) > MAX_NUMBER:
            self._fail(f"has a {key} that is not a decimal number up to {MAX_NUMBER}")
        return int(text)

    def _fail(self, what: str) -> NoReturn:
        _malformed(self._subject, what, line=self._at + 1)
