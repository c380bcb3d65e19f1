"""The scripts for CI, and the steps of the GitHub Action, on the checkouts that CI systems make."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gitkit
import pytest
import yaml
from gitdaemon import GitDaemon
from projects import Project, files_below, noise

from dvk.testing import dying

TOP = Path(__file__).parents[1]
PULL, COMMENT = str(TOP / "scripts/ci-pull"), str(TOP / "scripts/ci-comment")
CSV = b"id,name,price\n" + b"".join(b"%d,n%d,%d\n" % (i, i, i * 3) for i in range(500))


@pytest.fixture
def origin(tmp_path: Path) -> Project:
    """Three commits of data, pushed to a folder that jobs trust by their environment."""
    made = Project(tmp_path / "origin", tmp_path / "home")
    made.version({"t.csv": CSV, "im/a/1": b"one", "im/b": noise(70_000, 2)}, "t.csv", "im")
    made.version({"t.csv": CSV.replace(b"\n7,n7,21\n", b"\n7,n7,22\n")}, "t.csv")
    made.push(tmp_path / "bucket")
    made.version({"im/c": b"three"}, "im")
    assert made.dvk("push").code == 0
    return made


def job(origin: Project, tmp_path: Path, **more: str) -> dict[str, str]:
    """What a CI job has in its environment: another home, its own store, and the bucket."""
    kept = {k: v for k, v in origin.environ.items() if k != "GIT_ALLOW_PROTOCOL"}
    scripts = os.path.dirname(sys.executable)
    return {
        **kept,
        "HOME": str(tmp_path / "runner"),
        "PATH": f"{scripts}:{kept['PATH']}",
        "DVK_STORE": str(tmp_path / "store"),
        "DVK_TRUST_REMOTES": f"file://{tmp_path}/bucket",
        **more,
    }


def run(cwd: Path, environ: Mapping[str, str], *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def data(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files_below(folder).items()
        if not name.startswith(".git") and not name.endswith((".dvk", ".toml"))
    }


@pytest.mark.parametrize("kind", ["depth-1", "treeless", "submodule"])
def test_the_data_arrives_in_every_kind_of_checkout(origin: Project, tmp_path: Path, kind: str) -> None:
    verify = "yes" if kind != "submodule" else ""
    environ = job(origin, tmp_path, DVK_CI_VERIFY=verify, DVK_CI_MANIFEST=str(tmp_path / "manifest.json"))
    if kind == "depth-1":
        environ["DVK_CI_REMOTE"] = "origin"
    place, wanted = tmp_path / "work", data(origin.top)
    git = ["git", "-c", "protocol.file.allow=always"]
    if kind == "treeless":
        with GitDaemon(tmp_path, environ) as daemon:
            run(tmp_path, environ, *git, "clone", "-q", "--filter=tree:0", daemon.url("origin/.git"), str(place))
            run(place, environ, PULL)
    else:
        if kind == "submodule":
            parent = gitkit.Repo(tmp_path / "parent", tmp_path / "home")
            parent.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(origin.top), "sub")
            parent.git("commit", "-qm", "sub")
            run(tmp_path, environ, *git, "clone", "-q", "--recurse-submodules", str(parent.top), str(place))
            place = place / "sub"
        else:
            run(tmp_path, environ, *git, "clone", "-q", "--depth=1", f"file://{origin.top}", str(place))
            run(place, environ, "git", "checkout", "-q", "--detach")
        run(place, environ, PULL)
    assert data(place) == wanted
    assert (tmp_path / "store").exists(), "the store is where the job says"
    held = json.loads((tmp_path / "manifest.json").read_text())
    assert [p["path"] for p in held["paths"]] == ["im", "t.csv"]


def test_only_the_paths_that_are_named_come_and_the_key_is_theirs(origin: Project, tmp_path: Path) -> None:
    place = origin.clone(tmp_path / "work").top
    environ = job(origin, tmp_path, DVK_CI_PATHS="  \nim/a\r\n\n", GITHUB_OUTPUT=str(tmp_path / "output"))
    first = run(place, environ, PULL, "key").stdout
    assert (tmp_path / "output").read_text() == f"key={first}"
    run(place, environ, PULL)
    assert data(place) == {"im/a/1": b"one"}
    run(place, environ, "git", "checkout", "-q", "HEAD~1")
    assert run(place, environ, PULL, "key").stdout == first, "im/a is the same in both"
    everything = {k: v for k, v in environ.items() if k != "DVK_CI_PATHS"}
    assert run(place, everything, PULL, "key").stdout != first
    run(place, {**environ, "DVK_CI_PATHS": "-x; touch $HOME/owned `touch owned`"}, PULL, code=6)
    assert not (tmp_path / "runner/owned").exists() and not (place / "owned").exists()
    run(place, environ, PULL, "what", code=2)


def test_a_job_without_a_store_keeps_none(origin: Project, tmp_path: Path) -> None:
    place = origin.clone(tmp_path / "work").top
    run(place, job(origin, tmp_path, DVK_CI_STORE="no"), PULL)
    assert data(place) == data(origin.top)
    packs = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and "/p/" in str(p)]
    assert not packs, "only lists of files are kept"


def test_a_terminated_pull_goes_on_when_it_is_run_again(origin: Project, tmp_path: Path) -> None:
    for at in (9,):
        place = origin.clone(tmp_path / f"work{at}").top
        program = tmp_path / f"dvk-that-stops-{at}"
        stops = f'"{sys.executable}" "{dying.__file__}" {at} {int(signal.SIGTERM)} "$@"'
        program.write_text(f'#!/bin/sh\n[ "$1" = pull ] || exec dvk "$@"\nexec {stops}\n')
        program.chmod(0o755)
        environ = job(origin, tmp_path, DVK_STORE=str(tmp_path / f"store{at}"))
        done = subprocess.run([PULL], cwd=place, env={**environ, "DVK_CI_PROGRAM": str(program)}, capture_output=True)
        assert done.returncode in (143, -signal.SIGTERM), (at, done)
        run(place, environ, PULL)
        assert data(place) == data(origin.top)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_checkout_of_another_user_is_named_with_the_way_out(origin: Project, tmp_path: Path) -> None:
    place = origin.clone(tmp_path / "work").top
    for path in (place, *place.rglob("*")):
        os.chown(path, 65_534, 65_534, follow_symlinks=False)
    environ = job(origin, tmp_path)
    done = run(place, environ, PULL, code=5)
    assert f"git config --global --add safe.directory {place}" in done.stderr
    run(place, {**environ, "DVK_CI_SAFE": "yes"}, PULL)
    assert data(place) == data(origin.top)
    assert not (tmp_path / "runner/.gitconfig").exists()


def test_what_nobody_pushed_fails_the_job_before_it_pulls(origin: Project, tmp_path: Path) -> None:
    origin.version({"t.csv": b"never pushed"}, "t.csv")
    place = origin.clone(tmp_path / "work").top
    done = run(place, job(origin, tmp_path, DVK_CI_VERIFY="yes"), PULL, code=7)
    assert "t.csv" in done.stdout + done.stderr and data(place) == {}


# ------------------------------------------------------------ the comment


def test_a_comment_says_what_changed_in_the_data(origin: Project, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    place = origin.clone(tmp_path / "work").top
    out = tmp_path / "comment.md"
    run(place, job(origin, tmp_path), COMMENT, "HEAD~3", "HEAD", str(out))
    text = out.read_text()
    assert text.startswith("<!-- dvk-data-diff -->\n") and "t.csv" in text
    assert "<code>c</code>" in text and "22" in text and len(text) < 65_536
    assert [p for p in os.listdir(tmp_path) if p.startswith("comment.md")] == ["comment.md"]
    run(place, job(origin, tmp_path), COMMENT, "HEAD", "HEAD", str(out))
    assert "0 paths of 2 differ" in out.read_text()
    run(place, job(origin, tmp_path), COMMENT, "HEAD~3", "HEAD", str(out), "im")
    assert "t.csv" not in out.read_text()


def test_a_comment_from_a_shallow_clone_says_what_it_compares_with(origin: Project, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    place, out, environ = tmp_path / "work", tmp_path / "comment.md", job(origin, tmp_path)
    origin.git("branch", "base", "HEAD~1")
    run(tmp_path, environ, "git", "clone", "-q", "--depth=1", f"file://{origin.top}", str(place))
    done = run(place, environ, COMMENT, "origin/base", "HEAD", str(out), code=6)
    assert "git fetch --depth=1 origin" in done.stderr
    run(place, environ, "git", "fetch", "-q", "--depth=1", "origin", "base:refs/remotes/origin/base")
    run(place, environ, COMMENT, "origin/base", "HEAD", str(out))
    assert "<code>c</code>" in out.read_text() and "does not know where the branches parted" in out.read_text()
    run(place, environ, COMMENT, "--output=x", "HEAD", str(out), code=2)
    run(place, environ, COMMENT, "HEAD", code=2)


# ------------------------------------------------------------ the action


def expression(text: str, known: Mapping[str, str]) -> str:
    """What GitHub makes of `${{ ... }}` in the few forms that the action has."""

    def value(match: re.Match[str]) -> str:
        inner = match[1].strip()
        test = re.fullmatch(r"(\S+) == 'true' && 'yes' \|\| ''", inner)
        return ("yes" if known[test[1]] == "true" else "") if test else known[inner]

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def test_the_steps_of_the_action_bring_the_data(origin: Project, tmp_path: Path) -> None:
    """The cache step is GitHub's own; the others run here as they are written."""
    action = yaml.safe_load((TOP / "action.yml").read_text())
    place, environ = origin.clone(tmp_path / "work").top, job(origin, tmp_path)
    chosen = {"install": "none", "trust-remotes": environ["DVK_TRUST_REMOTES"], "verify": "true"}
    known = {f"inputs.{name}": str(chosen.get(name, spec["default"])) for name, spec in action["inputs"].items()}
    known |= {"github.action_path": str(TOP), "runner.temp": str(tmp_path / "temp")}
    (tmp_path / "temp").mkdir()
    for number, step in enumerate(action["runs"]["steps"]):
        if "uses" in step:
            assert re.fullmatch(r"actions/cache@v\d+", step["uses"])
            for text in step["with"].values():
                expression(text, known)
            continue
        assert "${{" not in step["run"], "a value in a script could be a command"
        output = tmp_path / f"output{number}"
        output.touch()
        more = {k: expression(v, known) for k, v in step.get("env", {}).items()}
        plain = {k: v for k, v in environ.items() if not k.startswith("DVK_")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=place,
            env={**plain, **more, "GITHUB_OUTPUT": str(output), "RUNNER_TEMP": str(tmp_path / "temp")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (step["name"], done.stdout, done.stderr)
        for line in output.read_text().splitlines():
            name, _, text = line.partition("=")
            known[f"steps.{step['id']}.outputs.{name}"] = text
    assert data(place) == data(origin.top)
    assert (tmp_path / "temp/dvk-store").is_dir() and not (place / ".git/dvk/store").exists()
    outputs = {name: expression(spec["value"], known) for name, spec in action["outputs"].items()}
    assert json.loads(Path(outputs["manifest"]).read_text())["key"] == outputs["key"]
