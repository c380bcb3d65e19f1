"""What a verb is, so that adding one is a short function.

    @verb(render=pushed)
    def push(run: Run, remote: Annotated[str | None, typer.Argument(help="where to")] = None) -> PushResult:
        \"\"\"Send what the remote does not have.\"\"\"
        from dvk.commands.push import push
        return push(run.environ, remote, on_event=run.on_event)

    def pushed(result: PushResult) -> Iterator[Line]:
        yield f"{size(result.sent_bytes)} to {result.remote}, {duration(result.seconds)}, verified"

and a row in `dvk.cli.app.VERBS`. The function gets a `Run`, does its imports in its body, calls one command
and returns its record (or None); it never prints. Parameters after `run` are typer's; `--json`, `-q`,
`--color` and `--timings` are added to every verb. Rendering, JSON, progress, signals, errors and exit codes are
`dvk.cli.app`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from msgspec import Struct, field

from dvk.cli import exit_codes
from dvk.cli.output import Terminal
from dvk.cli.text import Line, plural, printable
from dvk.errors import DvkError, Partial, Refused, UsageError
from dvk.events import OnEvent


class Verb(Struct, frozen=True):
    """One verb: what it does, and how its record reads."""

    function: Callable[..., object]
    render: Callable[[Any], Iterable[Line]]
    is_answer: bool  #: its lines are what was asked for (`ls`, `status`), so `-q` keeps them
    #: options that may stand alone: what they then mean, and which next word is their value
    bare: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def nothing(_record: object) -> Iterable[Line]:
    """The rendering of a verb that has nothing to say."""
    return ()


def verb(
    *,
    render: Callable[[Any], Iterable[Line]] = nothing,
    answer: bool = False,
    bare: Mapping[str, tuple[str, str]] | None = None,
) -> Callable[[Callable[..., object]], Verb]:
    """Make a function a verb.

    Args:
        answer: it was asked something, and `-q` keeps its lines.
        bare: options whose value may be left out: `{"--data": ("100%", r"[0-9]+%")}` makes `--data` `--data=100%`,
            unless the next word looks like a value.
    """

    def wrap(function: Callable[..., object]) -> Verb:
        # The type of a record is for the type checker; the parser would import a library to find out what it is.
        function.__annotations__.pop("return", None)
        return Verb(function, render, answer, bare or {})

    return wrap


class Run(Struct):
    """What one invocation of a verb gets from the terminal layer, and how it reports more than a record."""

    environ: Mapping[str, str]
    on_event: OnEvent
    terminal: Terminal
    stdin: TextIO
    #: what followed `--` on the command line (`checkout REV -- PATH`), None without one; typer's list has
    #: both halves
    after_dashes: tuple[str, ...] | None = None
    exit_code: int = exit_codes.OK
    failure: DvkError | None = None
    lines: Sequence[Line] | None = None

    @property
    def cwd(self) -> bytes:
        """The working directory, raw."""
        return os.getcwdb()

    @property
    def as_json(self) -> bool:
        """Whether a program reads the answer."""
        return self.terminal.as_json

    @property
    def is_interactive(self) -> bool:
        """Whether a person is there to answer questions."""
        return not self.as_json and self.stdin.isatty() and self.terminal.err_is_terminal

    def raw_output(self) -> BinaryIO:
        """Standard output for a verb that writes content there.

        Raises:
            UsageError: with `--json`, which owns standard output.
        """
        if self.as_json:
            raise UsageError("--json needs standard output for itself", hint="write the content to a file with -o OUT")
        return self.terminal.raw

    def differences(self, found: bool) -> None:
        """Let the exit code say whether differences were found (`--exit-code`)."""
        if found:
            self.exit_code = exit_codes.DIFFERENCES

    def partial(self, failures: Sequence[DvkError], *, of: int, noun: str = "path", hint: str = "") -> None:
        """Report that some of `of` things failed; the record is still shown. No failures: nothing happens."""
        if failures:
            message = f"{len(failures)} of {plural(of, noun)} failed"
            self.failure = Partial(message, failures=failures, hint=hint)

    def show(self, lines: Sequence[Line]) -> None:
        """Show these lines instead of the verb's own rendering, where an option changes the form."""
        self.lines = lines

    def confirm(self, question: str, *, option: str) -> None:
        """Ask a person. `option` is the flag that answers yes beforehand.

        Raises:
            Refused: the answer was no, or nobody is there to give one.
        """
        if not self.is_interactive:
            raise Refused(f"this needs a yes: {question}", hint=f"pass {option} to say so beforehand")
        self.terminal.stderr.write(f"{printable(self.terminal.redactor.clean(question))} [y/N] ")
        self.terminal.stderr.flush()
        if self.stdin.readline().strip().lower() not in {"y", "yes"}:
            raise Refused("not confirmed; nothing was changed")
