"""docs/diff.md: every command in it was run, and says what it says there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gitkit

DOC = Path(__file__).parents[2] / "docs/diff.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """Command and output, in order."""
    parts = re.split(r"^\$ (.*)\n", "".join(blocks("console")), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def normal(text: str) -> str:
    """Without what a clock or another version of an engine may change."""
    return re.sub(r"(L\d: read|    read) .*", r"\1 ...", text)


def test_the_document_says_what_the_program_does(tmp_path: Path) -> None:
    environ = gitkit.environ(tmp_path)
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    script, marks = "", []
    for n, (command, _) in enumerate(steps()):
        script += f"{command}\necho '@@{n}@@'\n"
        marks.append(f"@@{n}@@\n")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    rest = done.stdout
    for mark, (command, expected) in zip(marks, steps(), strict=True):
        said, _, rest = rest.partition(mark)
        pattern = re.escape(normal(expected)).replace(
            re.escape("...\n") if expected.endswith("...\n") else "\0", "(?s:.*)"
        )
        assert re.fullmatch(pattern, normal(said)), f"{command}\n{said}\n{done.stderr}"

    code = blocks("python")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "shop", env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("1 1 1\n") and "'price__b': '8'" in done.stdout
