"""What leaves the process: lines for people, one JSON document for programs, errors for both.

    error: models/best.pt: 2 GB needed, 1.2 GB free
    hint: `dvk du` shows what can be reclaimed

    {"dvk": 1, "command": "push", "ok": false, "error": {"kind": "storage-full", ...}, "notes": []}

Answers go to standard output, everything else to standard error. In JSON mode standard output holds exactly
one document whatever happens, errors and bugs included. All text passes the redactor; all of it is escaped
before colour is added, so neither a file name nor a server can talk to the terminal. Colour is eight plain
SGR codes written here: rich is imported for the progress display only, which keeps `dvk status` quick.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import BinaryIO, TextIO

from dvk.cli import exit_codes
from dvk.cli.records import Json, to_json
from dvk.cli.redact import Redactor
from dvk.cli.text import Line, Piece, pieces, plain, printable, styled
from dvk.errors import DvkError, StorageError, StorageFull
from dvk.events import Note
from dvk.timings import Timings

ENVELOPE_VERSION = 1


class ColorWhen(StrEnum):
    """The values of `--color`."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Bug(DvkError):
    """An exception that no layer meant to raise."""

    kind = "bug"


class OutputClosed(Exception):
    """Whoever read standard output went away; there is nobody left to tell."""


def wants_color(when: ColorWhen, environ: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether a stream gets colour: by the flag, else NO_COLOR, else FORCE_COLOR, else on a terminal."""
    if when is not ColorWhen.AUTO:
        return when is ColorWhen.ALWAYS
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal and environ.get("TERM") != "dumb"


class Terminal:
    """The two output streams of one run. One thread at a time; the progress display has a lock of its own."""

    def __init__(
        self,
        stdout: TextIO,
        stderr: TextIO,
        *,
        environ: Mapping[str, str],
        color: ColorWhen = ColorWhen.AUTO,
        as_json: bool = False,
        quiet: bool = False,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.as_json = as_json
        self.quiet = quiet
        self.debug = bool(environ.get("DVK_DEBUG"))
        self.out_is_terminal = stdout.isatty()
        self.err_is_terminal = stderr.isatty() and environ.get("TERM") != "dumb"
        self.color_out = wants_color(color, environ, is_terminal=self.out_is_terminal)
        self.color_err = wants_color(color, environ, is_terminal=self.err_is_terminal)
        self.redactor = Redactor(environ)
        self._columns = environ.get("COLUMNS", "")
        self.has_answered = False  #: something may have reached standard output: no second document after that

    @property
    def columns(self) -> int | None:
        """How wide the terminal is that standard output goes to; None when it goes elsewhere."""
        if not self.out_is_terminal:
            return None
        if self._columns.isdecimal() and int(self._columns) > 0:
            return int(self._columns)
        try:
            return os.get_terminal_size(self.stdout.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    @property
    def raw(self) -> BinaryIO:
        """Standard output for bytes that must arrive as they are (`cat`, `-o -`)."""
        return self.stdout.buffer

    def answer(self, lines: Iterable[Line]) -> None:
        """Write lines to standard output.

        Raises:
            OutputClosed: the reader went away.
            StorageError, StorageFull: standard output is a file that cannot be written.
        """
        render = styled if self.color_out else plain
        clean = self.redactor.clean
        self._write_out("".join(f"{render(_cleaned(line, clean))}\n" for line in lines))

    def say(self, line: Line) -> None:
        """Write one line to standard error. A closed standard error is nobody's problem."""
        try:
            self.stdout.flush()
            self.stderr.write(self.for_stderr(line) + "\n")
            self.stderr.flush()
        except (OSError, ValueError):
            return

    def for_stderr(self, line: Line) -> str:
        """`line` redacted and escaped, with colour when standard error has it."""
        render = styled if self.color_err else plain
        return render(_cleaned(line, self.redactor.clean))

    def document(
        self,
        command: str,
        *,
        result: object = None,
        error: DvkError | None = None,
        notes: Sequence[Note] = (),
        timings: Timings | None = None,
    ) -> None:
        """Write the one JSON document.

        Raises:
            TypeError: the record has no JSON form; nothing was written.
            OutputClosed, StorageError, StorageFull: as for `answer`.
        """
        clean = self.redactor.clean
        envelope: dict[str, Json] = {"dvk": ENVELOPE_VERSION, "command": command, "ok": error is None}
        if error is None or result is not None:
            envelope["result"] = to_json(result, clean=clean)
        if error is not None:
            envelope["error"] = self._error_object(error)
        envelope["notes"] = [
            {"message": clean(n.message), "subject": clean(n.subject), "hint": clean(n.hint)} for n in notes
        ]
        if timings is not None:
            envelope["timings"] = to_json(timings)
        indent = 2 if self.out_is_terminal else None
        # ASCII only: whatever encoding the reader assumes, it sees the same text, and no escape sequence is
        # left.
        self._write_out(json.dumps(envelope, indent=indent, allow_nan=False) + "\n")

    def _error_object(self, error: DvkError) -> dict[str, Json]:
        clean = self.redactor.clean
        return {
            "kind": error.kind,
            "message": _valid(clean(error.message)),
            "subject": _valid(clean(error.subject)),
            "hint": _valid(clean(error.hint)),
            "exit_code": exit_codes.for_error(error),
            "failures": [self._error_object(e) for e in error.failures],
        }

    def error(self, error: DvkError) -> None:
        """Say what happened, to which object, and what to do next; each failure first, the sum last."""
        order = list(_with_failures(error))
        for this, following in itertools.zip_longest(order, order[1:]):
            # A hundred files with one cure: the cure once, after the last of them.
            hint = this.hint if following is None or following.hint != this.hint else ""
            for line in message_lines("error", str(this), hint):
                self.say(line)
        if self.debug:
            self.trace(error)

    def note(self, note: Note) -> list[Line]:
        """The lines of a note, for whoever can print them without disturbing the progress display."""
        text = f"{note.subject}: {note.message}" if note.subject else note.message
        return message_lines("note", text, note.hint)

    def trace(self, error: BaseException) -> None:
        """The traceback with its causes, escaped and redacted, for DVK_DEBUG=1."""
        for line in "".join(traceback.format_exception(error)).splitlines():
            self.say(line)

    def flush(self) -> None:
        """Bring everything out. Raises as `answer` does."""
        self._write_out("")

    def _write_out(self, text: str) -> None:
        encoding = "ascii" if self.as_json else (self.stdout.encoding or "utf-8")
        try:
            self.stdout.flush()
            self.has_answered = self.has_answered or bool(text)
            view = memoryview(text.encode(encoding, "backslashreplace"))
            while view:
                view = view[self.stdout.buffer.write(view) or 0 :]
            self.stdout.buffer.flush()
        except OSError as problem:
            raise self.output_problem(problem) from problem

    def output_problem(self, problem: OSError) -> Exception:
        """What a failed write to standard output means."""
        if problem.errno == errno.EPIPE:
            return OutputClosed()
        kind = StorageFull if problem.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        return kind(problem.strerror or str(problem), subject="standard output")

    def reader_is_gone(self) -> bool:
        """Whether standard output is a pipe that nobody reads any more."""
        try:
            poll = select.poll()
            poll.register(self.stdout.fileno(), 0)
            return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        except (OSError, ValueError):
            return False


def _with_failures(error: DvkError) -> Iterator[DvkError]:
    for failure in error.failures:
        yield from _with_failures(failure)
    yield error


def message_lines(label: str, text: str, hint: str) -> list[Line]:
    """`error: ...` and `hint: ...`; further lines are indented, so that none can pass for a line of ours."""
    lines: list[Line] = []
    for name, body in ((label, text), ("hint", hint)):
        first, *rest = body.splitlines() or [""]
        if first or name == label:
            lines.append((Piece(f"{name}:", name), f" {first}"))
            lines.extend(" " * (len(name) + 2) + more for more in rest)
    return lines


def _cleaned(line: Line, clean: Callable[[str], str]) -> Line:
    return tuple(clean(p) if isinstance(p, str) else Piece(clean(p.text), p.style) for p in pieces(line))


def _valid(text: str) -> str:
    """Text that any JSON reader takes: lone surrogates escaped, everything else as it is."""
    return text if text.isascii() else "".join(printable(c) if "\ud800" <= c <= "\udfff" else c for c in text)
