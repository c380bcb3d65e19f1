"""Writes the pages of docs/ that are generated from the code, or with `--check` says which are out of date.

    python scripts/make_reference.py

`commands.md` is what each verb's own help says, `python.md` what the public names of `dvk` promise in their docstrings.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

import dvk
from dvk.cli import exit_codes
from dvk.cli.app import VERBS
from dvk.cli.grammar import Row, load
from dvk.cli.grammar import command as parser_of

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- Generated from the code by `python scripts/make_reference.py`; edit the docstrings there. -->"


def commands() -> str:
    """Every verb: how it is called, what it does, its arguments and options."""
    out = [
        "# Commands",
        "",
        NOTE,
        "",
        "Every verb takes `--json` ([one document](../json.md)), `-q`, `--color WHEN` and `--timings`, before or after",
        "its name; `dvk -C DIR VERB` runs as if started in DIR. How each can end: [exit codes](../exit-codes.md).",
        "",
    ]
    sections: dict[str, list[Row]] = {}
    for row in VERBS:
        sections.setdefault(row.section, []).append(row)
    for section, rows in sections.items():
        links = ", ".join(f"[`{row.words}`](#dvk-{row.words.replace(' ', '-')})" for row in rows)
        out.append(f"- {section}: {links}")
    out.append("")
    for section, rows in sections.items():
        out += [f"## {section}", ""]
        for row in rows:
            out += [*_command(row), ""]
    return "\n".join(out)


def _command(row: Row) -> Iterator[str]:
    verb = load(row.home)
    parser = parser_of(row.words, verb)
    common = {"dvk_json", "dvk_quiet", "dvk_color", "dvk_timings"}
    own = [p for p in parser.params if p.name not in common]
    arguments = [p for p in own if p.param_type_name == "argument"]
    options = [p for p in own if p.param_type_name == "option"]
    usage = " ".join(
        ["dvk", row.words, *(["[OPTIONS]"] if options else []), *(p.make_metavar(None) for p in arguments)]
    )
    yield f"### dvk {row.words}"
    yield ""
    yield f"`{usage}`"
    yield ""
    yield inspect.getdoc(verb.function) or ""
    rows = [(f"`{p.make_metavar(None)}`", getattr(p, "help", "") or "") for p in arguments]
    rows += [(_names(p), p.help or "") for p in options]
    if rows:
        yield ""
        yield "| | |"
        yield "|---|---|"
        for names, text in rows:
            yield f"| {names} | {text.replace('|', chr(92) + '|')} |"


def _names(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    value = "" if option.is_flag else f" {option.metavar or option.type.name.upper()}"
    return ", ".join(f"`{n}{value}`" for n in names)


def python() -> str:
    """The public names of `dvk`: signatures and docstrings, and the records that they return."""
    out = ["# Python", "", NOTE, "", _doctest(inspect.getdoc(dvk) or ""), ""]
    records: dict[str, type[Struct]] = {}
    for name in dvk.__all__:
        out += [*_object(f"dvk.{name}", getattr(dvk, name), records), ""]
    if records:
        out += ["## Records", ""]
    for name in sorted(records):
        out += [*_record(records[name]), ""]
    return "\n".join(out)


def _object(name: str, thing: Any, records: dict[str, type[Struct]]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    if inspect.isclass(thing):
        if not issubclass(thing, Struct):
            yield from _signature(name, thing.__init__, records)
        yield inspect.getdoc(thing) or ""
        for key, member in vars(thing).items():
            if key.startswith("_"):
                continue
            if isinstance(member, property):
                yield ""
                yield f"- `.{key}`: {(inspect.getdoc(member) or '').partition(chr(10))[0]}"
            elif callable(member) and inspect.getdoc(member):
                yield ""
                yield f"- `.{key}{_plain(member)}`: {(inspect.getdoc(member) or '').partition(chr(10))[0]}"
    elif callable(thing):
        yield from _signature(name, thing, records)
        yield _fenced(inspect.getdoc(thing) or "")
    else:
        yield f"`{thing!r}`"


def _signature(name: str, function: Any, records: dict[str, type[Struct]]) -> Iterator[str]:
    yield "```"
    yield f"{name}{_plain(function)}"
    yield "```"
    yield ""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # a name under TYPE_CHECKING, or one that a function of ours has as well
        hints = {}
    returned = hints.get("return")
    if inspect.isclass(returned) and issubclass(returned, Struct) and returned.__name__ not in dvk.__all__:
        records[returned.__name__] = returned


def _plain(function: Any) -> str:
    """A signature as it is written, without `self`."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    text = re.sub(r"<function (\w+) at \w+>", r"\1", str(signature.replace(parameters=parameters)).replace("'", ""))
    return text.removesuffix(" -> None") if function.__name__ == "__init__" else text


def _doctest(doc: str) -> str:
    """A docstring with its example as a block."""
    lines = re.sub(r"(?m)\s*# doctest:.*$", "", doc)
    return re.sub(r"(?m)((?:^(?:>>>|\.\.\.).*\n?)+)", lambda m: f"```\n{m[1]}```\n", lines)


def _fenced(doc: str) -> str:
    """A docstring as Markdown: what is indented under a heading such as `Raises:` becomes a list."""
    out = []
    for line in doc.splitlines():
        stripped = line.strip()
        if line.startswith("    ") and ": " in stripped and not line.startswith("     "):
            out.append(f"- {stripped}")
        else:
            out.append(f"  {stripped}" if line.startswith("     ") else line)
            if line.endswith(":") and not line.startswith(" "):
                out.append("")
    return "\n".join(out)


def _record(kind: type[Struct]) -> Iterator[str]:
    yield f"### {kind.__name__}"
    yield ""
    yield (inspect.getdoc(kind) or "").partition("\n\n")[0]
    yield ""
    written = {name: text for c in reversed(kind.__mro__) for name, text in inspect.get_annotations(c).items()}
    for name in kind.__struct_fields__:
        if not name.startswith("_"):
            yield f"- `{name}: {written[name]}`"


def files() -> dict[str, str]:
    """Path below docs/ -> its text, of all generated pages."""
    return {
        "reference/commands.md": commands(),
        "reference/python.md": python(),
        "exit-codes.md": exit_codes.markdown(),
    }


def main(arguments: list[str]) -> int:
    wrong = 0
    for name, text in files().items():
        path = DOCS / name
        text = text.rstrip("\n") + "\n"
        if arguments == ["--check"]:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"docs/{name} is not what the code says: python scripts/make_reference.py", file=sys.stderr)
                wrong = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
