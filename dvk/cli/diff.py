"""The terminal side of `dvk diff`: what was asked, which form the answer has, and what the exit code says."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import Struct

from dvk.cli.diff_options import delimiter_of, many, records, shown
from dvk.cli.names import Here, show_name
from dvk.cli.text import Line, plain, printable, red
from dvk.cli.verb import Run, verb
from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.diff_gates import Exceeded, Gate
    from dvk.commands.diff_json import Show
    from dvk.commands.diff_result import DiffResult
    from dvk.commands.repo import Repo

_Flag = typer.Option


@verb(answer=True)
def diff(
    run: Run,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[A [B]] [--] PATH...", help="Revisions (A..B, A...B), then paths.")
    ] = None,
    staged: Annotated[bool, _Flag("--staged", "--cached", help="HEAD (or A) with the Git index.")] = False,
    no_index: Annotated[bool, _Flag("--no-index", help="Two plain files or folders; needs no repository.")] = False,
    tables: Annotated[
        bool, _Flag("--tables", help="Compare all tables and models that changed, named or not.")
    ] = False,
    stat: Annotated[bool, _Flag("--stat", help="One line a path.")] = False,
    schema: Annotated[bool, _Flag("--schema", help="Changes of columns.")] = False,
    rows: Annotated[bool, _Flag("--rows", help="Rows (and files of folders) that differ.")] = False,
    stats: Annotated[bool, _Flag("--stats", help="Columns that differ, with distributions before and after.")] = False,
    kind: Annotated[str | None, _Flag("--kind", help="Of added,removed,modified,moved,schema.")] = None,
    full: Annotated[bool, _Flag("--full", help="Unchanged cells of modified rows as well.")] = False,
    limit: Annotated[str | None, _Flag("--limit", metavar="N", help="So many rows (20; csv and jsonl: all).")] = None,
    offset: Annotated[int, _Flag("--offset", metavar="N", help="Pass over so many rows.")] = 0,
    sort: Annotated[str, _Flag("--sort", help="key or position.")] = "key",
    form: Annotated[str, _Flag("--format", help="text, json, jsonl, csv, markdown or html.")] = "text",
    output: Annotated[str | None, _Flag("--output", "-o", metavar="FILE", help="Write the answer there.")] = None,
    max_chars: Annotated[int, _Flag("--max-chars", metavar="N", help="Of markdown; at most 65536.")] = 60_000,
    exit_code: Annotated[bool, _Flag("--exit-code", help="End with 4 when something differs; so does -q.")] = False,
    fail_on: Annotated[
        str | None, _Flag("--fail-on", metavar="GATES", help="End with 4 beyond a bound: modified>0.1%,schema.")
    ] = None,
    key: Annotated[list[str] | None, _Flag("--key", metavar="COL,...", help="Columns that identify a row.")] = None,
    key_strict: Annotated[bool, _Flag("--key-strict", help="Refuse to infer a key or to do without.")] = False,
    verify_key: Annotated[bool, _Flag("--verify-key", help="Check the key over all rows.")] = False,
    on_dup: Annotated[str, _Flag("--on-dup", help="Rows with equal keys: bag, error or first.")] = "bag",
    align: Annotated[str, _Flag("--align", help="Without a key: auto, sequence, position or bag.")] = "auto",
    ignore: Annotated[list[str] | None, _Flag("--ignore", metavar="COL,...", help="Leave these columns out.")] = None,
    only: Annotated[list[str] | None, _Flag("--only", metavar="COL,...", help="Compare these columns only.")] = None,
    where: Annotated[str | None, _Flag("--where", metavar="SQL", help="Compare rows for which this holds.")] = None,
    tol: Annotated[list[str] | None, _Flag("--tol", metavar="COL=N", help="Tolerance of a column: 0.01, 1s.")] = None,
    abs_tol: Annotated[float, _Flag("--abs-tol", metavar="N", help="Tolerance of all numbers.")] = 0.0,
    rel_tol: Annotated[float, _Flag("--rel-tol", metavar="N", help="The same, as a part of the number.")] = 0.0,
    null_values: Annotated[str | None, _Flag("--null-values", metavar="A,B", help="Texts that mean null.")] = None,
    ignore_case: Annotated[bool, _Flag("--ignore-case", help="Of text.")] = False,
    ignore_space: Annotated[bool, _Flag("--ignore-space", help="Of text, at its ends and repeated.")] = False,
    coerce: Annotated[bool, _Flag("--coerce", help="Compare text with numbers and dates by value.")] = False,
    float_bits: Annotated[bool, _Flag("--float-bits", help="Tell -0.0 from 0.0, and NaNs apart.")] = False,
    rename: Annotated[list[str] | None, _Flag("--rename", metavar="OLD=NEW", help="The same column.")] = None,
    encoding: Annotated[str | None, _Flag("--encoding", help="Of text, where it is not UTF-8.")] = None,
    delimiter: Annotated[str | None, _Flag("--delimiter", metavar="C", help="Between fields; `tab`.")] = None,
    quote: Annotated[str | None, _Flag("--quote-char", metavar="C", help="Around fields.")] = None,
    header: Annotated[bool, _Flag("--header/--no-header", help="Whether the first line names columns.")] = True,
    ragged: Annotated[str | None, _Flag("--ragged", help="Rows of another length: error, pad or skip.")] = None,
    input_format: Annotated[str | None, _Flag("--input-format", help="What named files are: csv, jsonl, ...")] = None,
    memory: Annotated[str | None, _Flag("--memory", metavar="SIZE", help="How much to use (half of all).")] = None,
    tmp: Annotated[str | None, _Flag("--tmp", metavar="DIR", help="For what does not fit into memory.")] = None,
    threads: Annotated[int | None, _Flag("--threads", metavar="N", help="How many cores to use.")] = None,
    remote: Annotated[str | None, _Flag("--remote", metavar="NAME", help="Where to read what is not here.")] = None,
    fetch: Annotated[bool, _Flag("--fetch/--no-fetch", help="Whether to read from a remote at all.")] = True,
    git_driver: Annotated[bool, _Flag("--git-driver", hidden=True)] = False,
    git_textconv: Annotated[bool, _Flag("--git-textconv", hidden=True)] = False,
) -> object:
    """Show what changed: paths, files of folders, rows and cells of tables, tensors.

    Without a revision what is not staged yet (the Git index with the workspace); with A what differs from it in the
    workspace; with A and B from one to the other. Contents are compared for files that are named, and for all with
    --tables. What is not here is read from the remote as far as needed, and not kept.
    """
    if git_driver or git_textconv:
        from dvk.cli.diff_git import for_git

        for_git(run, words or [], textconv=git_textconv)
        return None
    show = shown(
        form=form,
        schema=schema,
        rows=rows,
        stats=stats,
        kinds=kind,
        limit=limit,
        offset=offset,
        sort=sort,
        full=full,
    )
    compare, read = records(
        tol=tol,
        abs_tol=abs_tol,
        rel_tol=rel_tol,
        ignore=ignore,
        only=only,
        null_values=null_values,
        rename=rename,
        memory=memory,
        tmp=tmp,
        read={
            "format": input_format,
            "delimiter": delimiter_of(delimiter),
            "quote": quote,
            "encoding": encoding,
            "header": None if header else False,
            "ragged": ragged,
        },
        compare={
            "key_strict": key_strict,
            "verify_key": verify_key,
            "on_dup": "" if on_dup == "bag" else on_dup,
            "align": "" if align == "auto" else align,
            "where": where,
            "ignore_case": ignore_case,
            "ignore_space": ignore_space,
            "coerce": coerce,
            "float_bits": float_bits,
            "profile": stats,
            "threads": threads,
        },
    )
    if run.as_json and form != "text":
        raise UsageError("--json is a form of its own", hint="--format json writes the document without the envelope")
    from dvk.commands.diff_gates import parse_gates

    answer = _Answer(
        run=run,
        show=show,
        gates=parse_gates(fail_on) if fail_on is not None else (),
        form=form,
        output=output,
        max_chars=max_chars,
        stat_only=stat,
        exit_code=exit_code or run.terminal.quiet,
    )
    options: dict[str, Any] = {
        "contents": True,
        "tables": tables,
        "key": many(key),
        "compare": compare,
        "read": read,
        "on_event": run.on_event,
    }
    words = words or []
    if no_index:
        if len(words) != 2 or staged:
            raise UsageError("--no-index compares two files or two folders", hint="dvk diff --no-index OLD NEW")
        from dvk.commands.diff_plain import diff_files

        with diff_files(words[0], words[1], **options) as result:
            return answer.give(result, show_name)

    from dvk.commands.diff import diff as command
    from dvk.commands.repo import Repo

    with Repo(environ=run.environ) as repo:
        revs, paths = _apart(run, repo, words)
        a, b = (*revs, None, None)[:2]
        with command(repo, paths, a=a, b=b, staged=staged, remote=remote, fetch=fetch, **options) as result:
            git = repo.workspace.git
            if not (words or staged) and git is not None and git.has_program and result.equal and git.staged_changes():
                answer.hint = "; `dvk diff --staged` shows what is staged"
            return answer.give(result, Here(repo.workspace.top, run.cwd))


def _apart(run: Run, repo: Repo, words: list[str]) -> tuple[list[str], list[str]]:
    """Revisions and paths, by Git's rules."""
    from dvk.commands.diff_sides import iter_revisions

    if run.after_dashes is not None:
        after = len(run.after_dashes)
        revs = words[: len(words) - after]
        if len(revs) > 2:
            raise UsageError("two revisions at most", subject=" ".join(revs), hint="dvk diff A B -- PATH...")
        return revs, words[len(words) - after :]
    revs = list(iter_revisions(repo, words))
    return revs, words[len(revs) :]


class _Answer(Struct):
    """How a result is given: in which form, where to, and what the exit code says."""

    run: Run
    show: Show
    gates: Sequence[Gate]
    form: str
    output: str | None
    max_chars: int
    stat_only: bool
    exit_code: bool
    hint: str = ""

    def give(self, result: DiffResult, name: Callable[..., str]) -> object:
        """Write the answer, or return what `--json` presents."""
        from dvk.commands.diff_gates import exceeded

        over = exceeded(result, self.gates)
        self.run.differences(bool(over) or (self.exit_code and not result.equal))
        self.run.show([])
        if self.run.as_json:
            return self._document(result, over)
        if self.form == "text":
            lines = self._lines(result, over, name)
            if self.output is not None:
                self._write(f"{plain(line)}\n" for line in lines)
            elif not self.run.terminal.quiet:
                self.run.show(lines)
        elif self.output is not None or not self.run.terminal.quiet:
            self._write(self._pieces(result, over))
        self._failed(result)
        return result

    def _failed(self, result: DiffResult) -> None:
        """Say what could not be compared: a single path by its own error, some of several as such."""
        if len(result.failures) == 1 and len(result.paths) <= 1:
            self.run.failure = result.failures[0]
        else:
            self.run.partial(result.failures, of=max(len(result.paths), len(result.failures)))

    def _document(self, result: DiffResult, over: Sequence[Exceeded]) -> dict[str, Any]:
        from dvk.commands.diff_json import document

        found: dict[str, Any] = document(result, self.show, over=over)
        self._failed(result)
        return found

    def _lines(self, result: DiffResult, over: Sequence[Exceeded], name: Callable[..., str]) -> list[Line]:
        from dvk.cli.diff_text import diff_lines

        width = self.run.terminal.columns if self.output is None else None
        lines = list(diff_lines(result, self.show, name, stat_only=self.stat_only, hint=self.hint, limit=width))
        return lines + [(red("exceeded"), f"  {name(e.path)}: {e.gate} (found {e.found:g})") for e in over]

    def _pieces(self, result: DiffResult, over: Sequence[Exceeded]) -> Iterator[str]:
        if self.form == "json":
            from dvk.commands.diff_json import failure_json

            found = {**self._document(result, over), "failures": [failure_json(e) for e in result.failures]}
            yield json.dumps(found, indent=2, allow_nan=False) + "\n"
        elif self.form == "jsonl":
            from dvk.commands.diff_json import lines

            yield from (json.dumps(line, allow_nan=False) + "\n" for line in lines(result, self.show))
        elif self.form == "csv":
            from dvk.commands.diff_csv import csv_lines

            yield from csv_lines(result, self.show)
        elif self.form == "markdown":
            from dvk.commands.diff_markdown import markdown

            yield markdown(result, self.show, max_chars=self.max_chars)
        else:
            from dvk.commands.diff_html import html_page

            yield from html_page(result, self.show)

    def _write(self, parts: Iterable[str]) -> None:
        """Write text to the file that was named, as a whole or not at all, or to standard output as it comes."""
        if self.output is None or self.output == "-":
            out, on_terminal = self.run.raw_output(), self.run.terminal.out_is_terminal
            self.run.terminal.stdout.flush()
            for part in parts:
                # What a cell holds must not talk to the terminal; in a file or a pipe it is as it is.
                text = "\n".join(map(printable, part.splitlines())) + "\n" if on_terminal else part
                out.write(text.encode("utf-8", "backslashreplace"))
            out.flush()
            return
        temporary = f"{self.output}.{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "x", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.writelines(parts)
            os.replace(temporary, self.output)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
