"""`diff` as a person types it: which words are revisions, where the answer goes, what the exit code says."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffkit import FakeDiff, fake, modified, typical
from helpers_cli import Done, Stream
from projects import Project, noise

from dvk.cli import app
from dvk.cli.diff_options import limit_of, names, pairs, seconds_or_number, shown, size_of
from dvk.commands import diff as command
from dvk.commands import diff_plain
from dvk.errors import TableError, UsageError


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version({"data/t.bin": noise(50_000, 1), "im/a": b"1", "im/b": b"22"}, "data/t.bin", "im")
    made.git("tag", "v1")
    made.version({"data/t.bin": noise(50_000, 1) + b"end", "im/b": b"333"}, "data/t.bin", "im")
    return made


def fake_tables(monkeypatch: pytest.MonkeyPatch, table: FakeDiff | Exception) -> None:
    """Let every file be a table that differs in this way."""

    def compare(out: Any, *_sides: Any, **_more: Any) -> None:
        if isinstance(table, Exception):
            raise table
        out.table = copy.copy(table)

    monkeypatch.setattr(command, "compare_files", compare)
    monkeypatch.setattr(diff_plain, "compare_files", compare)


def on_terminal(project: Project, *argv: str, columns: int, color: bool = False) -> Done:
    out, err = Stream(terminal=True), Stream(terminal=True)
    environ = {**project.environ, "COLUMNS": str(columns), **({} if color else {"NO_COLOR": "1"})}
    with contextlib.chdir(project.top):
        code = app.run(
            argv, environ=environ, stdin=Stream(), stdout=out, stderr=err, table=app.VERBS, groups=app.GROUPS
        )
    return Done(code, out.raw_bytes.decode(), err.raw_bytes.decode())


# ---------------------------------------------------------------- words


def test_words_before_paths_are_revisions_as_in_git(project: Project) -> None:
    assert project.dvk("diff").out == "nothing differs between index and workspace\n"
    want = (
        "changed  data/t.bin  50 kB, 22.3 kB new\n"
        "changed  im/  ~1 files; 2 files, 3 B -> 2 files, 4 B, 3 B new\n"
        "    ~  b  2 B -> 3 B\n"
        "2 paths of 2 differ\n"
    )
    got = project.dvk("diff", "v1", "HEAD").out
    assert [line.split()[:2] for line in got.splitlines()] == [line.split()[:2] for line in want.splitlines()]
    for words in (("v1",), ("v1..",), ("v1..HEAD",), ("v1...HEAD",), ("v1", "HEAD", "--"), ("v1", "--", "im", "data")):
        assert [line.split()[:2] for line in project.dvk("diff", *words).out.splitlines()] == [
            line.split()[:2] for line in want.splitlines()
        ], words
    assert project.dvk("diff", "v1", "im").out.splitlines()[0].startswith("changed  im/")
    assert project.dvk("diff", "v1", "b", folder="im").out.splitlines()[0].startswith("changed  b  2 B -> 3 B")
    done = project.dvk("diff", "nope", "HEAD")
    assert done.code == 6 and "nope: dvk does not track it" in done.err
    for words in ("v9..HEAD", "HEAD...v9"):
        done = project.dvk("diff", words)
        assert done.code == 6 and "v9: no such revision" in done.err and "did you mean v1" in done.err
    assert ": nope: dvk does not track it" in project.dvk("diff", "../nope", folder="im").err
    assert project.dvk("diff", "v1", "HEAD", "HEAD", "--").code == 2


def test_a_word_that_is_both_must_be_told(project: Project) -> None:
    project.git("branch", "im")
    done = project.dvk("diff", "im")
    assert done.code == 2 and "`dvk diff im --`" in done.err
    assert project.dvk("diff", "im", "--").code == project.dvk("diff", "--", "im").code == 0


def test_what_is_staged_is_hinted_at(project: Project) -> None:
    project.write({"im/a": b"11"})
    assert project.dvk("add", "im").code == 0
    assert project.dvk("diff").out == (
        "nothing differs between index and workspace; `dvk diff --staged` shows what is staged\n"
    )
    assert "~  a  1 B -> 2 B" in project.dvk("diff", "--staged").out == project.dvk("diff", "--cached").out


# ---------------------------------------------------------------- exit codes


def test_the_exit_code_tells_of_differences_only_when_asked(project: Project) -> None:
    assert project.dvk("diff", "v1").code == 0
    assert project.dvk("diff", "v1", "--exit-code").code == 4
    assert project.dvk("diff", "--exit-code").code == 0
    quiet = project.dvk("diff", "-q", "v1")
    assert (quiet.code, quiet.out, quiet.err) == (4, "", "")
    assert project.dvk("-q", "diff").code == 0


def test_gates_end_with_4_and_say_which(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tables(monkeypatch, typical())
    done = project.dvk("diff", "v1", "--fail-on", "modified>1%,added>5", "--", "data/t.bin")
    assert done.code == 4 and "exceeded  data/t.bin: modified>1% (found 2)" in done.out
    assert project.dvk("diff", "v1", "--fail-on", "modified>2%,removed>1", "--", "data/t.bin").code == 0
    assert project.dvk("diff", "--fail-on", "speed>3").code == 2


def test_a_table_that_was_written_anew_does_not_differ(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tables(monkeypatch, fake())
    done = project.dvk("diff", "v1", "--exit-code", "data/t.bin")
    assert done.code == 0 and "other bytes, the same content" in done.out


def test_one_path_fails_with_its_own_code_and_several_in_part(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tables(monkeypatch, TableError("row 3 has 4 fields, the header 3", subject="t.bin at v1", hint="--ragged pad"))
    done = project.dvk("diff", "v1", "--", "data/t.bin")
    assert (done.code, done.out.splitlines()[0].split()[0]) == (21, "changed")
    assert "error: t.bin at v1: row 3" in done.err and "hint: --ragged pad" in done.err
    both = project.dvk("diff", "v1", "--tables")
    assert both.code == 3 and "2 of 2 paths failed" in both.err and "im/" in both.out


def test_tables_without_the_extra_are_told_how_to_get_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name == "dvk.commands.diff_tables":
            raise ModuleNotFoundError("No module named 'duckdb'", name="duckdb")
        return real(name, package)

    project.version({"t.csv": b"a\n1\n"}, "t.csv")
    project.write({"t.csv": b"a\n2\n"})
    monkeypatch.setattr(importlib, "import_module", missing)
    done = project.dvk("diff", "t.csv")
    assert done.code == 1 and "changed  t.csv  4 B" in done.out
    assert (
        "comparing tables needs duckdb, which is not installed" in done.err and "pip install 'dvk[table]'" in done.err
    )
    assert project.dvk("diff").code == 0


def test_sizes_and_models_need_neither_pyarrow_nor_duckdb(project: Project) -> None:
    """In a process of its own, where neither can be imported."""
    project.version({"m.bin": b""}, "m.bin")
    np.save(project.top / "m.npy", np.arange(3.0))
    project.version({}, "m.npy")
    np.save(project.top / "m.npy", np.array([0.0, 1.0, 4.0]))
    script = (
        "import sys; sys.modules['pyarrow'] = sys.modules['duckdb'] = None; sys.argv[0] = 'dvk'\n"
        "from dvk.cli.app import main; main()"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", script, "diff", "m.npy", "im"],
        cwd=project.top,
        env=project.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "max |d| 2" in done.stdout


# ---------------------------------------------------------------- forms and where they go


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "markdown", "html"])
def test_every_form_goes_to_standard_output_or_a_file(
    project: Project, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_tables(monkeypatch, typical())
    out = tmp_path / "out"
    done = project.dvk("diff", "v1", "--format", form, "data/t.bin")
    assert done.code == 0 and "1.20" in done.out and done.err == ""
    again = project.dvk("diff", "v1", "--format", form, "-o", str(out), "data/t.bin")
    assert (again.code, again.out) == (0, "") and out.read_bytes().decode() == done.out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out"]


def test_text_to_a_file_has_no_colour_and_no_width(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_tables(monkeypatch, typical())
    out = str(tmp_path / "out")
    done = on_terminal(project, "diff", "v1", "-o", out, "data/t.bin", columns=20, color=True)
    assert (done.code, done.out) == (0, "") and "price: 1.10 -> 1.20" in Path(out).read_text(encoding="utf-8")


def test_a_narrow_terminal_and_colour(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tables(monkeypatch, fake(modified({"id": "\x1b[31m"}, {"x\x07": ("a" * 200, "\u202eb")})))
    plain = on_terminal(project, "diff", "v1", "data/t.bin", columns=30)
    assert all(len(line) <= 30 for line in plain.out.splitlines())
    assert plain.out.replace("\n", "").isprintable()
    colored = on_terminal(project, "diff", "v1", "data/t.bin", columns=300, color=True)
    assert "\x1b[33m~\x1b[0m" in colored.out and "\\x1b[31m" in colored.out and "\x1b[31m\x1b" not in colored.out
    for form in ("csv", "jsonl", "markdown", "html"):
        shown_ = on_terminal(project, "diff", "v1", "--format", form, "data/t.bin", columns=30).out
        assert shown_.replace("\n", "").isprintable(), form


def test_json_of_the_envelope_and_without_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tables(monkeypatch, typical())
    envelope = project.dvk("--json", "diff", "v1", "--limit", "1", "data/t.bin").document
    bare = json.loads(project.dvk("diff", "v1", "--limit", "1", "--format", "json", "data/t.bin").out)
    assert bare.pop("failures") == [] and envelope["result"] == bare
    assert len(bare["paths"][0]["table"]["changes"]) == 1 and bare["paths"][0]["table"]["rows"]["modified"] == 2
    assert project.dvk("--json", "diff", "--format", "csv").code == 2
    fake_tables(monkeypatch, TableError("ragged", subject="t"))
    broken = project.dvk("--json", "diff", "v1", "data/t.bin").document
    assert (broken["error"]["kind"], broken["result"]["complete"]) == ("table", False)


def test_the_rest_of_an_output_that_cannot_be_written_is_removed(project: Project, tmp_path: Path) -> None:
    done = project.dvk("diff", "v1", "--format", "json", "-o", str(tmp_path / "no" / "out"))
    assert done.code == 16 and not (tmp_path / "no").exists()
    (tmp_path / "dir").mkdir()
    assert project.dvk("diff", "v1", "--format", "json", "-o", str(tmp_path / "dir")).code == 16
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_no_index_needs_no_repository(tmp_path: Path) -> None:
    outside = Project(tmp_path / "x", tmp_path / "home", init=False)
    outside.top.mkdir()
    outside.write({"a/1": b"1", "b/1": b"2", "f": b"1", "g": b"2"})
    assert "~  1  1 B" in outside.dvk("diff", "--no-index", "a", "b").out
    assert outside.dvk("diff", "--no-index", "--exit-code", "f", "g").code == 4
    assert outside.dvk("diff", "--no-index", "f").code == 2
    assert outside.dvk("diff", "f", "g").code == 10


# ---------------------------------------------------------------- options


def test_names_pairs_sizes_and_tolerances() -> None:
    assert names("a, b,,c") == ("a", "b,c") and pairs(["a=b=c"], "--x") == (("a", "b=c"),)
    assert [size_of(t, "--memory") for t in ("2G", "1.5 MB", "2GiB", "7", "1K")] == [
        2 * 10**9,
        1_500_000,
        2**31,
        7,
        1000,
    ]
    assert [seconds_or_number(t, "--tol") for t in ("0.5", "1s", "250ms", "2min", "1e-3")] == [
        0.5,
        1.0,
        0.25,
        120.0,
        0.001,
    ]
    assert (limit_of(None, "text"), limit_of(None, "csv"), limit_of("all", "text"), limit_of("0", "csv")) == (
        20,
        None,
        None,
        0,
    )
    for wrong in (
        lambda: pairs(["a"], "--rename"),
        lambda: size_of("many", "--memory"),
        lambda: seconds_or_number("1 parsec", "--tol"),
        lambda: seconds_or_number(".", "--tol"),
        lambda: limit_of("-1", "text"),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_parts_are_chosen_by_name() -> None:
    def parts(*flags: str, **more: Any) -> tuple[bool, bool, bool]:
        found = shown(
            form="text", schema="schema" in flags, rows="rows" in flags, stats="stats" in flags,
            kinds=more.get("kinds"), limit=None, offset=0, sort="key", full=False,
        )  # fmt: skip
        return found.schema, found.columns, found.rows

    assert parts() == (True, True, True) and parts("schema") == (True, False, False)
    assert parts("rows", "stats") == (False, True, True) and parts(kinds="added") == (False, True, True)
    for options in ({"form": "xml"}, {"sort": "size"}, {"offset": -1}, {"kinds": "all"}):
        base: dict[str, Any] = {
            "form": "text", "schema": False, "rows": False, "stats": False, "kinds": None, "limit": None, "offset": 0,
            "sort": "key", "full": False,
        }  # fmt: skip
        with pytest.raises(UsageError):
            shown(**{**base, **options})


def test_options_reach_the_comparison(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def compare(_out: Any, _a: Any, _b: Any, how: Any, *, declared: Sequence[str], named: bool) -> None:
        seen.append((how, tuple(declared), named))

    monkeypatch.setattr(command, "compare_files", compare)
    project.write({"dvk.toml": b'format = 1\n[[table]]\npath = "data/*.bin"\nkey = ["k1", "k2"]\n'})
    done = project.dvk(
        "diff", "v1", "--key", "a,b", "--ignore", "x_*", "--ignore", "y", "--tol", "price=0.01", "--tol", "ts=1s",
        "--abs-tol", "0.5", "--rename", "old=new", "--where", "a > 1", "--null-values", "NA,", "--align", "bag",
        "--on-dup", "error", "--memory", "2G", "--tmp", "/tmp", "--delimiter", "tab", "--no-header", "--stats",
        "--", "data/t.bin",
    )  # fmt: skip
    assert done.code == 0, done.err
    how, declared, named = seen[0]
    assert (how.key, declared, named) == (("a", "b"), ("k1", "k2"), True)
    o = how.compare
    assert (o.ignore, o.tolerance.columns, o.tolerance.absolute) == (("x_*", "y"), {"price": 0.01, "ts": 1.0}, 0.5)
    assert (o.rename, o.where, o.null_values, o.align, o.on_dup) == (
        (("old", "new"),),
        "a > 1",
        ("NA", ""),
        "bag",
        "error",
    )
    assert (o.memory_bytes, o.temp_dir, o.profile) == (2_000_000_000, b"/tmp", True)
    assert (how.read.delimiter, how.read.header) == ("\t", False)
    assert project.dvk("diff", "v1", "data/t.bin").code == 0 and seen[1][0].compare is None
    assert project.dvk("diff", "v1", "--align", "best", "data/t.bin").code == 2
    assert os.path.exists(project.top / "dvk.toml")
