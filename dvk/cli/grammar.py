"""The command line as a tree of verbs that are loaded when they are named.

`dvk push --json origin` becomes `Call("push", verb, {"remote": "origin"}, ...)`: parsing runs nothing and
prints nothing but help. Only the module of the verb that was named is imported and only its parameters are
turned into options, so a start costs the same with three verbs or thirty. `--json`, `-q`, `--color` and `--timings`
are understood before and after the verb.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, cast

import typer
import typer.core
import typer.main
from msgspec import Struct

from dvk.cli.output import ColorWhen
from dvk.cli.verb import Verb
from dvk.errors import UsageError

#: What typer's own parser raises for a bad command line, by the one public name that leads to it: the module
#: that defines it is private to typer.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]


class Row(Struct, frozen=True):
    """One verb: its words ("remote add"), where it is defined ("module:name"), its part of the help page."""

    words: str
    home: str
    section: str


class Common(Struct, frozen=True):
    """The options that every verb takes."""

    as_json: bool = False
    quiet: bool = False
    color: ColorWhen = ColorWhen.AUTO
    timings: bool = False
    directory: str | None = None


class Call(Struct, frozen=True):
    """A parsed command line."""

    words: str
    verb: Verb
    arguments: Mapping[str, Any]
    common: Common
    after_dashes: tuple[str, ...] | None


Table = Sequence[Row]

_JSON = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, errors too.")]
_QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Errors and answers only.")]
_COLOR = Annotated[
    ColorWhen | None,
    typer.Option("--color", metavar="WHEN", help="auto, always or never.", show_default=False),
]

_TIMINGS = Annotated[bool, typer.Option("--timings", help="Say where the time went, on standard error.")]


class _Group(typer.core.TyperGroup):
    """A group that finds its verbs in a table."""

    table: Table = ()
    about: Mapping[str, str] = {}  # what a nested group is for: {"remote": "Manage remotes."}
    prefix = ""

    def _rows(self) -> dict[str, list[Row]]:
        """The next word of each verb below this group -> its rows, in the order of the table."""
        found: dict[str, list[Row]] = {}
        for row in self.table:
            if row.words.startswith(self.prefix):
                found.setdefault(row.words.removeprefix(self.prefix).split()[0], []).append(row)
        return found

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._rows())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        rows = self._rows().get(cmd_name)
        if not rows:
            return None
        words = f"{self.prefix}{cmd_name}"
        if rows[0].words != words:
            return _group(rows, self.about, prefix=f"{words} ", text=self.about.get(words, ""))
        return command(words, load(rows[0].home))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = list(self._rows())
        if args[0] not in known:
            import difflib

            close = difflib.get_close_matches(args[0], known, n=1)
            called = f"dvk {self.prefix}"
            raise UsageError(
                f"there is no `{called}{args[0]}`",
                hint=f"did you mean `{called}{close[0]}`?" if close else f"`{called}--help` lists what there is",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for word, rows in self._rows().items():
            nested = rows[0].words != f"{self.prefix}{word}"
            about = self.about.get(f"{self.prefix}{word}", "") if nested else _first_line(load(rows[0].home))
            sections.setdefault(rows[0].section, []).append((word, about))
        for section, lines in sections.items():
            with formatter.section(section):
                formatter.write_dl(lines)


def load(home: str) -> Verb:
    """The verb at "module:name"."""
    module, _, name = home.partition(":")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, Verb):
        raise TypeError(f"{home} is no verb")
    return found


def _first_line(verb: Verb) -> str:
    return (inspect.getdoc(verb.function) or "").partition("\n")[0]


def command(words: str, verb: Verb) -> Any:
    """The typer command for one verb: its own parameters and the common ones; calling it returns a `Call`."""

    def parsed(
        ctx: typer.Context,
        dvk_json: bool,
        dvk_quiet: bool,
        dvk_color: ColorWhen | None,
        dvk_timings: bool,
        **arguments: Any,
    ) -> Call:
        above = cast(Common, ctx.obj or Common())
        common = Common(
            as_json=dvk_json or above.as_json,
            quiet=dvk_quiet or above.quiet,
            color=dvk_color or above.color,
            timings=dvk_timings or above.timings,
            directory=above.directory,
        )
        return Call(words, verb, arguments, common, None)

    own = list(inspect.signature(verb.function, eval_str=True).parameters.values())[1:]  # the first is the Run
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", keyword, annotation=typer.Context),
        *(p.replace(kind=keyword) for p in own),
        inspect.Parameter("dvk_json", keyword, default=False, annotation=_JSON),
        inspect.Parameter("dvk_quiet", keyword, default=False, annotation=_QUIET),
        inspect.Parameter("dvk_color", keyword, default=None, annotation=_COLOR),
        inspect.Parameter("dvk_timings", keyword, default=False, annotation=_TIMINGS),
    ]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {p.name: p.annotation for p in parameters}
    app = _typer()
    app.command(words.split()[-1], help=inspect.getdoc(verb.function), cls=_Command)(parsed)
    command = typer.main.get_command(app)
    command.bare = verb.bare  # type: ignore[attr-defined]
    return command


class _Command(typer.core.TyperCommand):
    """A command with options that may stand alone, which the parser does not know by itself."""

    bare: Mapping[str, tuple[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for i in range(end):
            if (known := self.bare.get(args[i])) is not None:
                follows = args[i + 1] if i + 1 < end else ""
                if not re.fullmatch(known[1], follows):
                    args[i] = f"{args[i]}={known[0]}"
        return super().parse_args(ctx, args)


def _typer(**options: Any) -> typer.Typer:
    # Plain help: rich's panels cost 80 ms, and errors have a shape of our own.
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **options,
    )


def _group(table: Table, about: Mapping[str, str], *, prefix: str, text: str) -> Any:
    app = _typer(cls=_Group, help=text)

    def callback() -> None:
        """Options of a nested group: none."""

    app.callback(help=text)(callback)
    return _filled(typer.main.get_command(app), table, about, prefix)


def _filled(group: Any, table: Table, about: Mapping[str, str], prefix: str) -> Any:
    group.table, group.about, group.prefix = table, about, prefix
    return group


def tree(table: Table, about: Mapping[str, str], *, text: str, version: str) -> Any:
    """The whole command, with its global options and shell completion."""
    app = _typer(cls=_Group)
    app._add_completion = True

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"dvk {version}")
            raise typer.Exit

    def callback(
        ctx: typer.Context,
        directory: Annotated[
            str | None,
            typer.Option("-C", metavar="DIR", help="Run as if started in DIR.", show_default=False),
        ] = None,
        as_json: _JSON = False,
        quiet: _QUIET = False,
        color: _COLOR = None,
        timings: _TIMINGS = False,
        version: Annotated[
            bool,
            typer.Option("--version", "-V", callback=show_version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        when = color or ColorWhen.AUTO
        ctx.obj = Common(as_json=as_json, quiet=quiet, color=when, timings=timings, directory=directory)

    # Resolved here, since typer would look for the names of this function's scope in the module.
    callback.__annotations__ = {
        n: p.annotation for n, p in inspect.signature(callback, eval_str=True, locals=locals()).parameters.items()
    }
    app.callback(help=text)(callback)
    return _filled(typer.main.get_command(app), table, about, "")


def parse(command: Any, argv: Sequence[str]) -> Call | int:
    """The call that `argv` asks for, or an exit code when help or a version was asked for and printed.

    Raises:
        UsageError: the command line makes no sense.
    """
    argv = list(argv)
    if argv[:1] == ["help"]:  # `dvk help push`, as in Git
        argv = [*argv[1:], "--help"]
    try:
        context = command.make_context("dvk", argv)
        with context:
            call = command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except _ParserError as problem:
        raise _usage_error(problem) from None
    if not isinstance(call, Call):
        raise TypeError(f"the parser returned {type(call).__name__}")
    after = tuple(argv[argv.index("--") + 1 :]) if "--" in argv else None
    return Call(call.words, call.verb, call.arguments, call.common, after)


def _usage_error(problem: Exception) -> UsageError:
    """Our error for one of the parser's; it knows the verb, so the hint names the right help page."""
    text = cast(Callable[[], str], problem.format_message)().strip()  # type: ignore[attr-defined]
    context = getattr(problem, "ctx", None)
    path = getattr(context, "command_path", "dvk")
    message = text[:1].lower() + text[1:].rstrip(".")
    return UsageError(message, hint=f"`{path} --help` shows how it is used")
