"""Every verb with `--json`: one document on standard output whatever happens, with the fields of docs/json.md."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitkit
import pytest
from helpers_cli import Done
from projects import Project, noise

from dvk.cli.app import VERBS

DOC = Path(__file__).parents[2] / "docs" / "json.md"


def fields(value: Any, at: str = "") -> Iterator[str]:
    """The places in a document: `paths[].size`. What stands under names of the user's own is `*`."""
    if isinstance(value, dict) and set(value) != {"bytes_b64"}:
        for key, inner in value.items():
            where = f"{at}.{key}".lstrip(".")
            yield where
            if not where.endswith("settings") and where not in ("before", "after"):  # of `repair`: as `verify`
                yield from fields(inner, where)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, f"{at}[]")


def documented() -> dict[str, set[str]]:
    """Verb -> the fields that its section of the document lists."""
    text = DOC.read_text(encoding="utf-8").split("\n## Verbs\n")[1]
    found: dict[str, set[str]] = {}
    for section in text.split("\n### ")[1:]:
        head, _, body = section.partition("\n")
        rows = {
            name for row in re.findall(r"^\| (`[^|]*) \|", body, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
        }
        for verb in re.findall(r"`(.+?)`", head):
            found[verb] = rows
    for verb, parts in {"pull": ("fetch", "checkout"), "resolve": ("checkout",)}.items():  # one document in another
        for part in parts:
            found[verb] |= {part, *(f"{part}.{name}" for name in found[part])}
    found["init"] |= {f"hooks.{name}" for name in found["hooks install"]}
    found["hooks run"] |= {f"pushed.{name}" for name in found["push"]}
    found["hooks run"] |= {name.replace("paths[]", "updated[]") for name in found["checkout"] if "paths[]" in name}
    return found


class Recorder:
    """Runs verbs with `--json` and keeps what came out."""

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {}

    def __call__(self, project: Project, *argv: str, code: int = 0, folder: str = "") -> Any:
        done = project.dvk("--json", *argv, folder=folder)
        return self.check(done, argv, code)

    def check(self, done: Done, argv: tuple[str, ...], code: int) -> Any:
        assert done.code == code, (argv, done)
        assert done.out.endswith("\n") and done.out.count("\n") == 1 and done.out.isascii()
        document, end = json.JSONDecoder().raw_decode(done.out)
        assert done.out[end:] == "\n"
        assert document["dvk"] == 1 and isinstance(document["notes"], list)
        assert document["ok"] is ("error" not in document)
        if document["ok"]:
            verb = document["command"]
            assert done.err == "", "nothing but progress may stand beside the document"
            self.seen.setdefault(verb, set()).update(fields(document["result"]))
        else:
            assert document["error"]["exit_code"] == code
            if "result" in document and code == 23 and argv[0] in ("verify", "repair"):
                self.seen.setdefault(document["command"], set()).update(fields(document["result"]))
        return document


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "p", tmp_path / "home")


def live(project: Project, tmp_path: Path) -> Recorder:
    """A day with dvk, in which each verb has something to say."""
    run = Recorder()
    run(project, "init", "--no-hooks")
    run(project, "hooks", "install")
    run(project, "init")
    run(project, "hooks", "status")
    run(project, "hooks", "remove")
    run(project, "remote", "add", "origin", str(tmp_path / "remote"))
    run(project, "remote", "add", "other", "s3://bucket/x", "--region", "eu")
    run(project, "remote", "rename", "other", "more")
    run(project, "remote", "list")
    run(project, "remote", "trust")
    run(project, "remote", "trust", "--list")
    run(project, "remote", "remove", "more")
    run(project, "remote", "check")
    run(project, "config", "--list")
    run(project, "config", "core.remote")
    run(project, "config", "store.max_size", "1 GB")
    project.write({"t.csv": noise(5000, 1), "im/a/1": b"1", "im/a/2": b"22", "im/b": b"b", b"caf\xe9": b"odd"})
    run(project, "add", "t.csv", "im", "café".encode("latin-1").decode("utf-8", "surrogateescape"))
    project.git("commit", "-q", "-m", "one")
    project.write({"t.csv": noise(6000, 2), "im/new": b"new"})
    (project.top / "im/b").unlink()
    run(project, "status")
    run(project, "diff", "--fail-on", "any", code=4)
    run(project, "git-diff", "on")
    run(project, "add", "-u", "--dry-run")
    run(project, "add", "-u")
    project.git("commit", "-q", "-m", "two")
    run(project, "push", "--dry-run")
    run(project, "push")
    run(project, "remote", "upgrade", "--dry-run")
    project.git("tag", "v1")
    run(project, "log", "t.csv")
    run(project, "log", "--tags", "--diffstat", "t.csv")
    run(project, "ls")
    run(project, "ls", "-r", "im")
    run(project, "get", "HEAD~1:t.csv", "-o", str(tmp_path / "old.csv"))
    run(project, "checkout", "HEAD~1", "--", "t.csv")
    run(project, "restore", "--source", "HEAD", "t.csv")
    run(project, "du")
    run(project, "mv", "t.csv", "u.csv", "--dry-run")
    run(project, "mv", "t.csv", "u.csv")
    run(project, "rm", "im/a/1")
    run(project, "rm", "im/a", "--cached")
    (tmp_path / "raw.csv").write_bytes(b"raw")
    run(project, "import", str(tmp_path / "raw.csv"), "-o", "raw.csv")
    run(project, "update")
    run(project, "manifest", "HEAD")
    run(project, "doctor")
    run(project, "gc", "--dry-run")
    run(project, "gc", "--remote", "origin")
    clone = project.clone(tmp_path / "clone")
    run(clone, "remote", "trust")
    run(clone, "fetch")
    run(clone, "pull", "im/a")
    run(clone, "pull")
    clone.git("checkout", "-q", "HEAD~1", "--", "im.dvk")
    run(clone, "fetch")
    run(clone, "verify", "--remote", "HEAD")
    for pack in (clone.top / ".git/dvk/store/p").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(pack.read_bytes()[:-1])
    (clone.top / "other.dvk").write_bytes(b"<<<<<<< ours\n")
    run(clone, "verify", code=23)
    run(clone, "repair", code=23)
    (clone.top / "other.dvk").unlink()
    run(clone, "repair")
    clone.git("rm", "-q", "--cached", "t.csv.dvk")
    (clone.top / "t.csv.dvk").unlink()
    run(clone, "checkout")
    hooks(run, project, tmp_path)
    return run


def hooks(run: Recorder, project: Project, tmp_path: Path) -> None:
    """Each hook with something to say, and a conflict of which one part can be decided."""
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "three")
    run(project, "hooks", "run", "post-merge", "0")
    ids = "refs/heads/main", project.git("rev-parse", "HEAD").strip(), "refs/heads/main", "0" * 40
    done = project.dvk("--json", "hooks", "run", "pre-push", "origin", "url", stdin=" ".join(ids) + "\n")
    assert run.check(done, ("hooks", "run", "pre-push"), 0)["result"]["pushed"]["remote"] == "origin"
    for name, seed in (("one", 10), ("two", 20)):
        project.git("checkout", "-q", "-b", name, "main")
        project.write({"u.csv": noise(3000, seed), "im/new": noise(50, seed)})
        run(project, "add", "-u")
        project.git("commit", "-q", "-m", name)
    project.git("checkout", "-q", "main")
    project.write({"u.csv": b"an edit", "z.bin.dvk": gitkit.pointer(5)})
    project.git("add", "z.bin.dvk")
    run(project, "hooks", "run", "post-checkout", "a", "b", "1")
    run(project, "checkout", "--force", "u.csv")
    project.git("rm", "-q", "-f", "z.bin.dvk")
    project.git("checkout", "-q", "two")
    run(project, "checkout")
    project.git_repo.git("merge", "-q", "one", ok=False)
    run(project, "status")
    project.write({"big": bytes(100), "im/x": b"x", "w.dvk": b"broken"})
    run(project, "config", "hooks.large_file", "100")
    run(project, "hooks", "run", "pre-commit")
    run(project, "resolve", "u.csv", "--theirs")
    run(project, "resolve", "im", "--merge", code=3)
    run(project, "resolve", "im", "--merge", "--ours", "--dry-run")


def test_every_verb_answers_in_one_document_with_the_fields_that_are_documented(
    project: Project, tmp_path: Path
) -> None:
    seen = live(project, tmp_path).seen
    seen.setdefault("cat", set())  # its answer is content, so it has no document of its own
    assert set(seen) == {row.words for row in VERBS}
    assert seen == documented()


def test_errors_are_documents_too(project: Project, tmp_path: Path) -> None:
    run = Recorder()
    run(project, "add", "nothing", code=6)
    run(project, "rm", code=2)
    run(project, "mv", "a", "b", code=6)
    run(project, "du", "x", code=6)
    run(project, "cat", "x", code=2)
    run(project, "push", code=6)
    run(project, "nosuchverb", code=2)
    run(project, "pull", "--nosuchoption", code=2)
    project.top = tmp_path
    assert run(project, "doctor", code=1)["result"]["checks"][-1]["state"] == "fail"
    for verb in ("status", "pull", "checkout", "du", "ls"):
        run(project, verb, code=10)


def test_a_part_that_failed_stands_beside_the_part_that_did_not(project: Project, tmp_path: Path) -> None:
    run = Recorder()
    project.version({"a": noise(3000, 1), "b": noise(4000, 2)}, "a", "b")
    clone = project.clone(tmp_path / "clone")
    shutil.copytree(project.top / ".git/dvk/store", clone.top / ".git/dvk/store")
    clone.write({"b.dvk": b"<<<<<<< ours\n"})
    document = run(clone, "checkout", code=3)
    assert [p["path"] for p in document["result"]["paths"]] == ["a"]
    assert [e["kind"] for e in document["error"]["failures"]] == ["malformed"]
