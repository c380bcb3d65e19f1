"""A container's plain folder: dvk.toml and pointers, no .git, no git program, a home that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="needs root to become somebody else"
)


class Container:
    """A folder with what an image would have, and a user that owns nothing but the folder."""

    def __init__(self, flow: Flow, top: Path, *, git: bool, owned: bool) -> None:
        self.top = top
        top.mkdir()
        for name in flow.git("ls-files", "-z").split("\0")[:-1]:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(flow.top / name, top / name)
        self.home = top.parent / "home"
        self.home.mkdir(mode=0o755, exist_ok=True)
        self.empty = top.parent / "no programs"
        self.empty.mkdir(exist_ok=True)
        self.scratch = top.parent / "scratch"
        self.scratch.mkdir(exist_ok=True)
        os.chmod(self.scratch, 0o1777)
        self.environ = (
            flow.environ
            | {"HOME": str(self.home), "TMPDIR": str(self.scratch)}
            | ({} if git else {"PATH": str(self.empty)})
        )
        # The folders of a test are its user's own; the one that we become has to get through.
        for folder in [top, *top.parents]:
            if folder != Path("/") and folder.stat().st_mode & 0o005 != 0o005:
                os.chmod(folder, folder.stat().st_mode | 0o005)
        subprocess.run(["chmod", "-R", "a+rX", str(flow.remote_dir)], check=True)
        if owned:
            subprocess.run(["chown", "-R", "65534:65534", str(top)], check=True)

    def dvk(self, *argv: str) -> tuple[int, str, str]:
        """Run the program as nobody; exit code, output, messages."""
        setpriv = shutil.which("setpriv")
        assert setpriv
        done = subprocess.run(
            [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "dvk", *argv],
            cwd=self.top,
            env=self.environ,
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    out = Flow(tmp_path / "a", tmp_path)
    out.version({"t.csv": csv(3000), "d/a/1": b"1", "d/a/2": noise(50_000, 1), "d/b/3": b"3"}, "t.csv", "d")
    out.push()
    return out


@pytest.mark.parametrize("git", [True, False], ids=["with git", "without git"])
def test_pull_get_and_ls(flow: Flow, tmp_path: Path, git: bool) -> None:
    box = Container(flow, tmp_path / "app", git=git, owned=True)
    code, out, err = box.dvk("ls")
    assert code == 0 and "t.csv" in out and "d" in out, err
    code, out, err = box.dvk("pull", "--no-store", "t.csv")
    assert code == 0, err
    assert (box.top / "t.csv").read_bytes() == csv(3000) and not (box.top / "d").exists()
    code, out, err = box.dvk("ls", "d/a")
    assert code == 0 and "2" in out, err
    code, out, err = box.dvk("pull", "--no-store")
    assert code == 0, err
    assert (box.top / "d/a/2").read_bytes() == noise(50_000, 1)
    code, out, err = box.dvk("get", "d/a", "-o", "copy")
    assert code == 0, err
    assert (box.top / "copy/1").read_bytes() == b"1"
    code, out, err = box.dvk("cat", "d/b/3")
    assert (code, out) == (0, "3"), err
    code, out, err = box.dvk("pull", "--no-store")
    assert code == 0, err
    assert os.listdir(box.home) == []


def test_the_store_is_among_temporary_files_or_where_it_is_told(flow: Flow, tmp_path: Path) -> None:
    box = Container(flow, tmp_path / "app", git=False, owned=True)
    code, _, err = box.dvk("pull")
    assert code == 0, err
    assert (box.top / "d/b/3").read_bytes() == b"3"
    [private] = box.scratch.iterdir()
    assert private.stat().st_mode & 0o077 == 0
    box.environ["DVK_STORE"] = str(box.top / "store")
    code, _, err = box.dvk("fetch")
    assert code == 0, err
    assert any((box.top / "store/p").iterdir())


def test_a_folder_that_cannot_be_written_stays_as_it_is(flow: Flow, tmp_path: Path) -> None:
    box = Container(flow, tmp_path / "app", git=False, owned=False)
    before = sorted(os.walk(box.top))
    code, _, err = box.dvk("pull", "--no-store")
    assert code != 0 and "t.csv" in err and "Traceback" not in err, err
    assert sorted(os.walk(box.top)) == before
    code, out, err = box.dvk("cat", "d/b/3")
    assert (code, out) == (0, "3"), err
    code, _, err = box.dvk("status")
    assert code == 0, err


def test_what_needs_history_is_refused_by_name(flow: Flow, tmp_path: Path) -> None:
    box = Container(flow, tmp_path / "app", git=True, owned=True)
    for argv in (["push"], ["log", "t.csv"], ["checkout", "v1", "--", "t.csv"], ["cat", "HEAD:t.csv"]):
        code, _, err = box.dvk(*argv)
        assert code != 0 and "plain folder" in err, (argv, err)


def test_a_clone_without_the_git_program(flow: Flow, tmp_path: Path) -> None:
    """Reading works in a real clone where nobody installed git."""
    clone = flow.clone(tmp_path / "b")
    environ = {**clone.environ, "PATH": str(tmp_path / "nowhere")}
    code, said = clone.dvk("pull", environ=environ)
    assert code == 0, said
    assert clone.data() == flow.data()
    code, said = clone.dvk("ls", "HEAD:d", environ=environ)
    assert code == 0 and "a" in said, said
    code, said = clone.dvk("cat", "HEAD:d/b/3", environ=environ)
    assert (code, said) == (0, "3")
    # git, once it is there, sees no data.
    assert clone.git("status", "--porcelain") == ""
