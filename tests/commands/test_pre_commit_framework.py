"""The hooks of `.pre-commit-hooks.yaml` under the real pre-commit, from a repository on this disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flowkit import Flow

from dvk.commands.hooks import install_hooks

ROOT = Path(__file__).parents[2]
TYPES = ("pre-commit", "pre-push", "post-checkout", "post-merge", "post-rewrite")


def test_pre_commit_runs_dvk_and_dvk_leaves_its_files_alone(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    program = Path(sys.executable).parent
    environ = flow.environ | {
        "PATH": f"{program}:{flow.environ['PATH']}",
        "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "DVK_HOOKS_LARGE_FILE": "1 kB",
    }

    def run(*argv: str) -> str:
        done = subprocess.run(argv, cwd=flow.top, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout + done.stderr

    tool = tmp_path / "tool"
    tool.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", tool)
    for argv in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "hooks"]):
        subprocess.run(["git", *argv], cwd=tool, env=environ, check=True)
    rev = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tool, env=environ, capture_output=True, text=True).stdout
    ids = "".join(f"  - id: dvk-{name}\n" for name in ("check", "push", "post-checkout", "post-merge", "post-rewrite"))
    config = f"default_install_hook_types: [{', '.join(TYPES)}]\nrepos:\n- repo: {tool}\n  rev: {rev}  hooks:\n{ids}"
    flow.write({".pre-commit-config.yaml": config.encode()})
    run("pre-commit", "install")
    with flow.repo() as repo:
        found = {h.name: (h.place, h.owner) for h in install_hooks(repo).hooks}
    assert found == dict.fromkeys(TYPES, ("none", "pre-commit")) | {"post-index-change": ("file", "")}

    flow.write({"a": b"1", "big": bytes(2000)})
    flow.add("a")
    run("git", "add", ".pre-commit-config.yaml", "a.dvk")
    assert "big (2 kB) is not tracked" in run("git", "commit", "-m", "one")
    os.unlink(flow.top / "big")
    run("git", "checkout", "-q", "-b", "side")
    flow.write({"a": b"22"})
    flow.add("a")
    run("git", "commit", "-q", "-m", "two")
    os.unlink(flow.top / ".git/hooks/post-index-change")  # the framework alone
    assert "1 path updated" in run("git", "checkout", "main") and flow.read("a") == b"1"
    assert "1 path updated" in run("git", "merge", "side") and flow.read("a") == b"22"
    bare = tmp_path / "bare"
    subprocess.run(["git", "init", "-q", "--bare", str(bare)], env=environ, check=True)
    assert "2 versions" in run("git", "push", str(bare), "main")
    clone = flow.clone(tmp_path / "clone")
    assert clone.pull().failures == [] and clone.read("a") == b"22"


def test_it_is_the_real_one() -> None:
    """Were it not installed, the test above would only say that a program is missing."""
    assert shutil.which("pre-commit", path=str(Path(sys.executable).parent)), "pip install -e '.[dev]'"
    assert pytest.importorskip("pre_commit") is not None
