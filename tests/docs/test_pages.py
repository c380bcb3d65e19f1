"""Every page under docs/, and the README: the commands in it were run, and say what the page says they say.

All `console` blocks of a page are one shell session in an empty folder with a home of its own. A page that speaks of
`s3://BUCKET/...` gets that bucket on the real S3 server of the tests. Times, ids and what an engine may count
differently are compared by shape; `...` stands for any text in a line, and alone in a line for any lines. `python`
blocks that follow a `console` block run in the folder where the session is by then, and what they print is in the
`text` block after them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gitkit
import pytest

TOP = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Step:
    """One command of a page and what the page says it prints."""

    command: str
    says: str | None  #: None: it only has to succeed


def pages() -> list[Path]:
    """The README and everything below docs/."""
    return [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


def name(page: Path) -> str:
    return str(page.relative_to(TOP))


def session(page: Path) -> Iterator[Step]:
    """The steps of a page in order."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    for i, (language, body) in enumerate(blocks):
        if language == "console":
            parts = re.split(r"^\$ (.*<<'EOF'\n(?:.*\n)*?EOF|.*\\\n.*|.*)\n", body, flags=re.MULTILINE)
            assert parts[0] == "", f"{page}: a console block starts with `$ `"
            yield from map(Step, parts[1::2], parts[2::2])
        elif language == "python" and any(kind == "console" for kind, _ in blocks[:i]):
            following = blocks[i + 1] if i + 1 < len(blocks) else ("", "")
            yield Step(f"python - <<'PYTHON'\n{body}PYTHON", following[1] if following[0] == "text" else None)


def shape(text: str) -> str:
    """Without what a clock, a commit's time or another version of an engine may change."""
    text = re.sub(r"\b\d+(\.\d+)? m?s\b", "# s", text)
    text = re.sub(r"\b\d+(\.\d+)? [kMG]?B/s\b", "# B/s", text)
    text = re.sub(r"\b\d+(\.\d+)? [kMG]?B read\b", "# B read", text)  # records hold random names, and are compressed
    text = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,64}\b", "#id", text)
    text = re.sub(r"\b\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?Z?)?", "#date", text)
    text = re.sub(r"\b(just now|\d+ min ago) *", "#ago ", text)
    return re.sub(r"(L\d: read|    read) .*", r"\1 ...", text)


def matches(expected: str, said: str) -> bool:
    """Whether `said` is what the page shows."""
    pattern = re.escape(shape(expected)).replace(re.escape("...\n"), "[^\n]*\n").replace(re.escape("..."), "[^\n]*")
    pattern = re.sub(r"(?m)^\[\^\n\]\*\n", "(?s:.*)", pattern)
    return re.fullmatch(pattern, shape(said)) is not None


RUN = [page for page in pages() if any(True for _ in session(page))]


@pytest.mark.parametrize("page", RUN, ids=name)
def test_a_page_says_what_the_program_does(page: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environ = gitkit.environ(tmp_path / "home")
    (tmp_path / "home").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    steps = list(session(page))
    for module in re.findall(r"^(?:import|from) (torch|datasets)\b", "\n".join(step.command for step in steps), re.M):
        pytest.importorskip(module)  # `scripts/test-readers` brings them
    buckets = {b for step in steps for b in re.findall(r"s3://([a-z0-9-]+)", step.command)}
    if buckets:
        server = request.getfixturevalue("s3")
        environ |= server.env
        for bucket in buckets:
            server.create_bucket(bucket)
    script = "".join(f'{step.command}\necho "@@{n} $?@@"\n' for n, step in enumerate(steps))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    rest = done.stdout
    for n, step in enumerate(steps):
        said, mark, rest = re.split(rf"(@@{n} \d+@@)\n", rest, maxsplit=1)
        what = f"$ {step.command}\nprinted ({mark}):\n{said}\nthe page says:\n{step.says}"
        if step.says is None:
            assert mark == f"@@{n} 0@@", what
        else:
            assert matches(step.says, said), what


def test_links_lead_somewhere() -> None:
    missing = []
    for page in [*pages(), TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md"]:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            path = target.partition("#")[0]
            if path and "://" not in target and not target.startswith("mailto:") and not (page.parent / path).exists():
                missing.append(f"{name(page)}: {target}")
    assert not missing
