"""The table of verbs and the scripts of the project hold together."""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import subprocess

from dvk.cli import app
from dvk.cli.grammar import load

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def test_every_verb_loads_and_explains_itself_in_one_line() -> None:
    for row in app.VERBS:
        first = (inspect.getdoc(load(row.home).function) or "").partition("\n")[0]
        assert first.endswith(".") and len(first) < 80, row
        group, nested, _ = row.words.rpartition(" ")
        assert not nested or app.GROUPS[group], row


def test_no_start_makes_a_dataclass() -> None:
    """Each costs half a millisecond (docs/design/015-records.md); records are `msgspec.Struct`s."""
    package = pathlib.Path(ROOT) / "dvk"
    product = [p for p in package.rglob("*.py") if package / "testing" not in p.parents]
    assert len(product) > 200
    assert [str(p) for p in product if re.search(r"^\s*(from|import) dataclasses\b", p.read_text(), re.M)] == []


def test_a_script_is_quiet_when_all_is_well_and_says_everything_when_not() -> None:
    def bash(script: str) -> subprocess.CompletedProcess[str]:
        script = f"set -euo pipefail; . scripts/lib.sh; {script}"
        return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)

    done = bash("quietly check sh -c 'echo chatter; echo more >&2'")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"check: ok, \d+ s\n", done.stdout)
    done = bash("quietly check sh -c 'echo chatter; exit 7'; echo not reached")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "chatter\ncheck: failed (exit code 7)\n"
    done = bash("PATH=/nowhere find_python")
    assert done.returncode == 1 and "hint: install one" in done.stderr
