"""The program: a command line in, lines or one JSON document out, an exit code back.

    argv --grammar--> Call --execute--> record or error --present--> streams, exit code

Everything that can go wrong ends here and in one place: an error of dvk becomes `error:` and `hint:` and its
code, a signal becomes Interrupted, a reader that went away ends the program quietly, and what nobody meant to
raise is reported as a bug, in JSON as well. `VERBS` is the table of contents of the terminal layer; a new
verb is one row and one function (`dvk.cli.verb`).
"""

from __future__ import annotations

import atexit
import errno
import itertools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TextIO

from dvk import __version__
from dvk.cli import exit_codes, signals
from dvk.cli.grammar import Call, Common, Row, Table, parse, tree
from dvk.cli.ledger import Ledger
from dvk.cli.output import Bug, ColorWhen, OutputClosed, Terminal
from dvk.cli.progress import Watcher
from dvk.cli.timings import table as timings_table
from dvk.cli.verb import Run
from dvk.errors import DvkError, NotFound, StorageError, StorageFull
from dvk.timings import Recorder, recording, started

ABOUT = """Versions big files and folders beside the code in Git.

Pointers go into Git, bytes into your own bucket or disk. `dvk help VERB` explains one verb."""

_START, _DAILY, _SHARE, _LOOK, _KEEP = "Start", "Every day", "Share", "Look and take out", "Keep in order"

VERBS: tuple[Row, ...] = (
    Row("init", "dvk.cli.setup:init", _START),
    Row("remote add", "dvk.cli.setup:remote_add", _START),
    Row("remote list", "dvk.cli.setup:remote_list", _START),
    Row("remote remove", "dvk.cli.setup:remote_remove", _START),
    Row("remote rename", "dvk.cli.setup:remote_rename", _START),
    Row("remote check", "dvk.cli.remote_more:check", _START),
    Row("remote upgrade", "dvk.cli.remote_more:upgrade", _START),
    Row("remote trust", "dvk.cli.remote_more:trust", _START),
    Row("config", "dvk.cli.setup:config", _START),
    Row("git-diff", "dvk.cli.diff_git:git_diff", _START),
    Row("hooks install", "dvk.cli.hooks:install", _START),
    Row("hooks remove", "dvk.cli.hooks:remove", _START),
    Row("hooks status", "dvk.cli.hooks:status", _START),
    Row("hooks run", "dvk.cli.hooks:run_hook", _START),
    Row("add", "dvk.cli.tracking:add", _DAILY),
    Row("status", "dvk.cli.tracking:status", _DAILY),
    Row("diff", "dvk.cli.diff:diff", _DAILY),
    Row("checkout", "dvk.cli.work:checkout", _DAILY),
    Row("restore", "dvk.cli.work:restore", _DAILY),
    Row("resolve", "dvk.cli.resolve:resolve", _DAILY),
    Row("rm", "dvk.cli.upkeep:rm", _DAILY),
    Row("mv", "dvk.cli.upkeep:mv", _DAILY),
    Row("push", "dvk.cli.share:push", _SHARE),
    Row("fetch", "dvk.cli.share:fetch", _SHARE),
    Row("pull", "dvk.cli.share:pull", _SHARE),
    Row("log", "dvk.cli.look:log", _LOOK),
    Row("ls", "dvk.cli.look:ls", _LOOK),
    Row("cat", "dvk.cli.look:cat", _LOOK),
    Row("get", "dvk.cli.look:get", _LOOK),
    Row("manifest", "dvk.cli.manifest:manifest", _LOOK),
    Row("import", "dvk.cli.imports:import_", _LOOK),
    Row("update", "dvk.cli.imports:update", _LOOK),
    Row("du", "dvk.cli.upkeep:du", _KEEP),
    Row("gc", "dvk.cli.gc:gc", _KEEP),
    Row("doctor", "dvk.cli.upkeep:doctor", _KEEP),
    Row("verify", "dvk.cli.health:verify", _KEEP),
    Row("repair", "dvk.cli.health:repair", _KEEP),
)

#: What the nested groups are for.
GROUPS: Mapping[str, str] = {"remote": "Say where data goes.", "hooks": "Let data follow what Git does."}


def main() -> None:
    """Run the program on the process's own arguments and streams, and exit. Entry point of `dvk`."""
    _open_standard_streams()
    signals.install()
    terminal = _fallback_terminal(sys.argv[1:], os.environ, sys.stdout, sys.stderr)
    _quiet_libraries(terminal)
    if "_DVK_COMPLETE" in os.environ:  # a shell asks for completions; typer answers and exits
        tree(VERBS, GROUPS, text=ABOUT, version=__version__)(prog_name="dvk")
    code = run(
        sys.argv[1:],
        environ=os.environ,
        stdin=sys.stdin,
        stdout=sys.stdout,
        stderr=sys.stderr,
        table=VERBS,
        groups=GROUPS,
    )
    if code == exit_codes.OUTPUT_CLOSED:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at exit
    _leave(code)


def _leave(code: int) -> None:
    """End the process; all output is out."""
    busy = any(t is not threading.main_thread() and not t.daemon for t in threading.enumerate())
    if busy and code <= 128:
        sys.exit(code)  # which waits for them
    if not busy:
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            sys.exit(code)
    # After a signal a worker in a network call would hold up the exit for up to a minute; and to take apart an
    # interpreter with numpy in it takes 20 ms, a tenth of a `dvk status`.
    os._exit(code)


def run(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    stdin: TextIO,
    stdout: TextIO,
    stderr: TextIO,
    table: Table,
    groups: Mapping[str, str],
) -> int:
    """Do what `argv` says and return the exit code. Never raises, except SystemExit out of a library."""
    terminal = _fallback_terminal(argv, environ, stdout, stderr)
    words = ""
    try:
        if not argv:
            argv = ["--help"]
            parse(tree(table, groups, text=ABOUT, version=__version__), argv)
            return 2
        call = parse(tree(table, groups, text=ABOUT, version=__version__), argv)
        if isinstance(call, int):
            return call
        words = call.words
        terminal = _terminal(call.common, environ, stdout, stderr)
        if call.common.timings or environ.get("DVK_TIMINGS"):
            with recording() as recorder:
                started()
                return _execute(call, terminal, environ, stdin, recorder)
        return _execute(call, terminal, environ, stdin)
    except (Exception, KeyboardInterrupt) as problem:
        return _last_words(problem, words, terminal)


def _execute(
    call: Call, terminal: Terminal, environ: Mapping[str, str], stdin: TextIO, recorder: Recorder | None = None
) -> int:
    """Call the verb, then present its record and its errors. Raises what presenting raises."""
    result: object = None
    with Watcher(terminal) as watcher:
        ledger = Ledger(watcher, environ)
        work = Run(environ=environ, on_event=ledger, terminal=terminal, stdin=stdin, after_dashes=call.after_dashes)
        try:
            if call.common.directory is not None:
                _enter(call.common.directory)
            result = call.verb.function(work, **call.arguments)
            error = work.failure
            ledger.write()
        except (Exception, KeyboardInterrupt) as problem:
            if _output_closed(problem, terminal):
                raise OutputClosed from problem
            error = as_error(problem)
            if error is not problem:
                error.__cause__ = problem
    timings = None if recorder is None else recorder.report()
    if terminal.as_json:
        terminal.document(call.words, result=result, error=error, notes=watcher.notes, timings=timings)
        if error is not None and terminal.debug:
            terminal.trace(error)
    else:
        if error is None or result is not None:
            lines = work.lines if work.lines is not None else call.verb.render(result)
            if call.verb.is_answer or not terminal.quiet:
                terminal.answer(lines)
        if error is not None:
            terminal.error(error)
        if timings is not None:
            for line in timings_table(timings):
                terminal.say(line)
    terminal.flush()
    return work.exit_code if error is None else exit_codes.for_error(error)


def _last_words(problem: BaseException, words: str, terminal: Terminal) -> int:
    """Report what went wrong outside of a verb: while parsing, presenting or writing the answer."""
    if isinstance(problem, OutputClosed) or _output_closed(problem, terminal):
        return exit_codes.OUTPUT_CLOSED
    error = as_error(problem)
    if error is not problem:
        error.__cause__ = problem
    if terminal.as_json and not terminal.has_answered:
        try:
            terminal.document(words, error=error)
        except (DvkError, OutputClosed) as lost:
            if isinstance(lost, DvkError):
                terminal.error(lost)
    else:
        terminal.error(error)
    return exit_codes.for_error(error)


def as_error(problem: BaseException) -> DvkError:
    """The error of ours for anything that reached the edge.

    Layers translate what their libraries raise. This is the net below: an operating system's refusal that
    slipped through still gets its category, and the rest is a bug and says so.
    """
    if isinstance(problem, DvkError):
        return problem
    if isinstance(problem, KeyboardInterrupt):
        return signals.as_error(problem)
    if isinstance(problem, OSError) and problem.errno is not None:
        kind = StorageFull if problem.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        name = problem.filename
        subject = os.fsdecode(name) if isinstance(name, bytes | str) else ""
        return kind(problem.strerror or os.strerror(problem.errno), subject=subject)
    if isinstance(problem, MemoryError):
        return DvkError("out of memory", hint="close other programs, or work on fewer paths at once")
    text = str(problem)
    return Bug(
        f"dvk ran into a bug: {type(problem).__name__}" + (f": {text}" if text else ""),
        hint="please report this with what the same command says under DVK_DEBUG=1",
    )


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as problem:
        raise NotFound(problem.strerror or "cannot enter", subject=directory, hint="-C takes a directory") from problem


def _output_closed(problem: BaseException, terminal: Terminal) -> bool:
    """Whether `problem` only says that the reader of standard output went away; other pipes break too."""
    return isinstance(problem, OutputClosed) or (isinstance(problem, BrokenPipeError) and terminal.reader_is_gone())


def _terminal(common: Common, environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> Terminal:
    return Terminal(stdout, stderr, environ=environ, color=common.color, as_json=common.as_json, quiet=common.quiet)


def _fallback_terminal(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> Terminal:
    """The terminal for a command line that could not be parsed: who asked for JSON gets JSON even then."""
    options = list(argv[: argv.index("--")] if "--" in argv else argv)
    color = ColorWhen.AUTO
    for when in ColorWhen:
        if f"--color={when}" in options or ("--color", str(when)) in itertools.pairwise(options):
            color = when
    return _terminal(Common(as_json="--json" in options, color=color), environ, stdout, stderr)


def _open_standard_streams() -> None:
    """Give descriptors 0 to 2 to /dev/null where the parent closed them.

    Otherwise the first file that dvk opens becomes descriptor 1 or 2, and a message lands in the middle of a
    pack.
    """
    for fd, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            setattr(sys, ("stdin", "stdout", "stderr")[fd], open(fd, mode, closefd=False))  # noqa: SIM115


def _quiet_libraries(terminal: Terminal) -> None:
    """Send what libraries print on their own (warnings, logs, crashed threads) to the redactor or nowhere."""
    if not terminal.debug and not sys.warnoptions:
        warnings.simplefilter("ignore")

    def show(kind: type[BaseException], value: BaseException | None, where: TracebackType | None) -> None:
        problem = value if value is not None else kind()
        if isinstance(problem, SystemExit | KeyboardInterrupt):
            return
        if terminal.debug:
            terminal.trace(problem.with_traceback(where))
        else:
            terminal.error(as_error(problem))

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if terminal.debug:  # an exception in a finalizer at exit: noise for everybody else
            show(args.exc_type, args.exc_value, args.exc_traceback)

    class Edge(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if terminal.debug:
                for line in f"{record.name}: {record.getMessage()}".splitlines():
                    terminal.say(line)

    logging.getLogger().addHandler(Edge(logging.WARNING))
    threading.excepthook = lambda args: show(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = unraisable
