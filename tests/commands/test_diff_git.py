"""Real git shows what changed behind pointers: never from the network, and never failing."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from flowkit import Flow

from dvk.commands.diff_git import git_diff, profile
from dvk.errors import NotARepository
from dvk.workspace.pointer import Pointer, format_pointer


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def switch(flow: Flow, on: bool | None) -> tuple[bool, bool]:
    with flow.repo() as repo:
        found = git_diff(repo, on=on)
    return found.on, found.changed


def npy(*values: float) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


def test_it_is_off_until_asked_for_and_goes_without_a_trace(flow: Flow) -> None:
    flow.write({".git/info/attributes": b"*.png binary"})
    flow.version({"a": b"1"}, "a")
    before = (flow.read(".git/config"), flow.read(".git/info/attributes"))
    assert switch(flow, None) == (False, False) and switch(flow, False) == (False, False)
    assert switch(flow, True) == (True, True) and switch(flow, True) == (True, False) and switch(flow, None)[0]
    assert flow.read(".git/info/attributes") == b"*.png binary\n*.dvk diff=dvk\n"
    assert flow.git("status", "--porcelain") == "", "nothing tracked is touched"
    assert switch(flow, False) == (False, True)
    assert flow.read(".git/info/attributes") == before[1] + b"\n"
    assert b"--git-driver" not in flow.read(".git/config")


def test_git_diff_tells_what_changed_in_the_data(flow: Flow) -> None:
    flow.version({"t.csv": b"id,x\n1,a\n2,b\n", "im/a": b"1", "m.npy": npy(1, 2)}, "t.csv", "im", "m.npy")
    switch(flow, True)
    flow.write({"t.csv": b"id,x\n1,a\n2,B\n3,c\n", "im/b": b"22", "m.npy": npy(1, 4)})
    flow.remove("im/a")
    flow.add("t.csv", "im", "m.npy")
    said = flow.git("diff", "--cached")
    assert "diff --dvk a/t.csv.dvk b/t.csv.dvk\nchanged  t.csv" in said and "+1 ~1 rows, 1 cell in 1 column" in said
    assert "changed  im/  +1 -1 files; 1 file, 1 B -> 1 file, 2 B, 2 B new" in said
    assert "the array is changed" in said
    flow.commit()
    flow.git("rm", "-q", "im.dvk")
    assert "removed  im/  1 file, 2 B" in flow.git("diff", "--cached")
    assert "added  im/  1 file, 2 B" in flow.git("diff", "--cached", "-R")
    assert "+1 ~1 rows" in flow.git("diff", "HEAD~1", "HEAD", "--", "t.csv.dvk")
    assert "dvk" not in flow.git("diff", "--no-ext-diff", "--no-textconv", "HEAD~1", "--stat").replace(".dvk", "")


def test_git_log_shows_a_profile_of_each_version(flow: Flow) -> None:
    flow.version({"t.csv": b"id,x\n1,a\n", "im/a": b"1", "m.npy": npy(1, 2)}, "t.csv", "im", "m.npy")
    switch(flow, True)
    flow.version({"t.csv": b"id,x,new\n1,a,\n2,b,\n", "m.npy": npy(1, 2, 3)}, "t.csv", "m.npy")
    said = flow.git("log", "-p", "-1", "-U9")
    assert " format csv\n-rows 1\n+rows 2\n column id string\n column x string\n+column new string" in said
    assert "-tensor  <i8[2]\n+tensor  <i8[3]" in said and {"-size 144", "+size 152"} <= set(said.splitlines())


def test_data_that_is_not_here_is_told_by_its_size_and_nothing_is_fetched(flow: Flow, tmp_path: Path) -> None:
    flow.version({"t.csv": b"id\n1\n", "im/a": b"1"}, "t.csv", "im")
    flow.version({"t.csv": b"id\n1\n2\n", "im/a": b"11"}, "t.csv", "im")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    switch(clone, True)
    flow.remote_dir.rename(tmp_path / "away")
    said = clone.git("diff", "HEAD~1")
    assert "changed  t.csv  5 B -> 7 B" in said and "rows" not in said
    assert "changed  im/  1 file, 1 B -> 1 file, 2 B\nnot compared: im: " in said
    assert {"-size 5", "+size 7", "-size 1", "+size 2"} <= set(clone.git("log", "-p", "-1").splitlines())


def test_nothing_ends_a_diff_of_code(flow: Flow) -> None:
    flow.version({"a": b"1"}, "a")
    switch(flow, True)
    flow.write({"a.dvk": b"<<<<<<< ours\nx\n=======\ny\n>>>>>>> theirs\n", "code.py": b"print()\n"})
    flow.git("add", "-N", "code.py")
    said = flow.git("diff")
    assert "unresolved merge conflict" in said and "+print()" in said
    flow.git("add", "a.dvk")
    flow.commit()
    assert "unresolved merge conflict" in flow.git("log", "-p", "-1")
    flow.git("commit", "-q", "-m", "code", "--", "code.py")
    flow.git("checkout", "-q", "-b", "side", "HEAD~2")
    flow.version({"a": b"2"}, "a")
    flow.git("merge", "main", ok=False)
    assert "a.dvk" in flow.git("diff") and "* unmerged a.dvk" in flow.dvk("diff", "--git-driver", "a.dvk")[1]


def test_a_path_with_spaces_quotes_and_a_rename(flow: Flow) -> None:
    name = 'it\'s a "t".bin'
    flow.version({name: b"1"}, name)
    switch(flow, True)
    flow.git("mv", name + ".dvk", "new.bin.dvk")
    assert "b/new.bin.dvk" in flow.git("diff", "--cached", "-M")
    flow.git("mv", "new.bin.dvk", name + ".dvk")
    flow.write({name: b"22"})
    flow.add(name)
    assert 'changed  it\'s a "t".bin  1 B -> 2 B' in flow.git("diff", "--cached")


def test_from_a_subfolder_and_a_linked_worktree(flow: Flow, tmp_path: Path) -> None:
    flow.version({"d/a.bin": b"1"}, "d/a.bin")
    switch(flow, True)
    flow.version({"d/a.bin": b"22"}, "d/a.bin")
    here = flow.git_repo.git("diff", "HEAD~1", cwd=flow.top / "d")
    assert "changed  d/a.bin  1 B -> 2 B" in here
    tree = flow.worktree(tmp_path / "tree", "side")
    assert "changed  d/a.bin  1 B -> 2 B" in tree.git("diff", "HEAD~1")


def test_a_profile_outside_of_a_repository_says_what_the_pointer_says(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.dvk"
    path.write_bytes(format_pointer(Pointer("dir", b"\x01" * 32, 1234, files=5)))
    assert list(profile(None, os.fsencode(path))) == ["kind dir", f"id {'01' * 32}", "size 1,234", "files 5"]


def test_a_plain_folder_has_no_git(flow: Flow, tmp_path: Path) -> None:
    plain = Flow(tmp_path / "plain", tmp_path, init=False)
    plain.top.mkdir()
    plain.write({"dvk.toml": b"format = 1\n"})
    with plain.repo() as repo, pytest.raises(NotARepository):
        git_diff(repo, on=True)
