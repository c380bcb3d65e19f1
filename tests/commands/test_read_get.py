"""`cat` and `get` bring the exact bytes of any version, and touch nothing else."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from projects import Project, files_below, noise

from dvk.commands.get import cat, get
from dvk.errors import Corrupt, DataMissing, DvkError, NotFound, NotOurs, Refused


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version(
        {"data/t.bin": noise(300_000, 1), "im/a/1": b"one", "im/2": b"", "im/b": noise(70_000, 2)}, "data/t.bin", "im"
    )
    made.git("tag", "v1")
    os.unlink(made.top / "im/2")
    made.version({"data/t.bin": noise(300_000, 3), "im/a/1": b"uno"}, "data/t.bin", "im")
    return made


def content(project: Project, spec: str, folder: str = "") -> bytes:
    out = io.BytesIO()
    with project.repo(folder) as repo:
        cat(repo, spec, out)
    return out.getvalue()


def test_cat_writes_the_bytes_of_any_version(project: Project) -> None:
    assert content(project, "v1:data/t.bin") == noise(300_000, 1)
    assert content(project, "data/t.bin") == content(project, ":data/t.bin") == noise(300_000, 3)
    assert content(project, "v1:im/a/1") == b"one"
    assert content(project, "HEAD:./1", "im/a") == b"uno"
    assert content(project, "v1:im/2") == b""


def test_what_is_no_file_is_refused(project: Project) -> None:
    os.symlink("a/1", project.top / "im/link")
    project.version({}, "im")
    for spec, words in (("im", "is a folder"), ("im/a", "is a folder"), ("im/link", "is a link to a/1")):
        with pytest.raises(Refused, match=words):
            content(project, spec)
    with pytest.raises(NotFound):
        content(project, "HEAD:im/2")


def test_get_writes_a_file_under_its_name_or_another(project: Project, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    with project.repo() as repo:
        got = get(repo, "v1:data/t.bin")
        assert (got.out, got.kind, got.files, got.written_bytes) == (
            os.fsencode(project.top / "t.bin"),
            "file",
            1,
            300_000,
        )
        get(repo, "v1:data/t.bin", str(outside))
        get(repo, "v1:im/a/1", str(outside / "new name"))
    assert project.read("t.bin") == noise(300_000, 1)
    assert project.read("data/t.bin") == noise(300_000, 3)
    assert files_below(outside) == {"t.bin": noise(300_000, 1), "new name": b"one"}


def test_get_writes_a_folder_or_a_part_of_one(project: Project, tmp_path: Path) -> None:
    os.chmod(project.top / "im/a/1", 0o755)
    os.symlink("a/1", project.top / "im/link")
    os.mkdir(project.top / "im/void")
    project.version({}, "im")
    with project.repo() as repo:
        got = get(repo, "im", str(tmp_path / "out"))
        get(repo, "v1:im/a", str(tmp_path / "part"))
        get(repo, "im/void", str(tmp_path / "void"))
    assert (got.kind, got.files, got.failures) == ("dir", 2, [])
    assert files_below(tmp_path / "out") == {"a/1": b"uno", "b": noise(70_000, 2), "link": b"uno"}
    assert os.readlink(tmp_path / "out/link") == "a/1" and (tmp_path / "out/void").is_dir()
    assert os.access(tmp_path / "out/a/1", os.X_OK) and not os.access(tmp_path / "out/b", os.X_OK)
    assert files_below(tmp_path / "part") == {"1": b"one"}
    assert os.listdir(tmp_path / "void") == []


def test_what_is_there_stays_without_force(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").mkdir()
    (out / "a/1").write_bytes(b"mine")
    (out / "other").write_bytes(b"also mine")
    with project.repo() as repo:
        for spec, place in (("im", out), ("im/a/1", out / "a"), ("data/t.bin", out / "other")):
            with pytest.raises(Refused) as caught:
                get(repo, spec, str(place))
            assert "--force" in caught.value.hint
        assert files_below(out) == {"a/1": b"mine", "other": b"also mine"}
        got = get(repo, "im", str(out), force=True)
        assert (got.files, got.unchanged) == (2, 0)
        assert files_below(out) == {"a/1": b"uno", "b": noise(70_000, 2), "other": b"also mine"}
        before = os.stat(out / "b").st_ino
        got = get(repo, "im", str(out), force=True)
        assert (got.files, got.unchanged) == (0, 2) and os.stat(out / "b").st_ino == before


def test_links_are_neither_followed_nor_replaced(project: Project, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "1").write_bytes(b"precious")
    out = tmp_path / "out"
    out.mkdir()
    os.symlink(victim, out / "a")
    os.symlink(victim / "1", tmp_path / "file")
    with project.repo() as repo:
        with pytest.raises(Refused, match="link is in the way"):
            get(repo, "im/a/1", str(tmp_path / "file"), force=True)
        got = get(repo, "im", str(out), force=True)
    assert (victim / "1").read_bytes() == b"precious"
    assert [type(e) for e in got.failures] == [Refused] and "symbolic link" in str(got.failures[0])
    assert (out / "b").read_bytes() == noise(70_000, 2) and os.path.islink(out / "a")


def test_a_place_that_cannot_be(project: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with project.repo() as repo:
        for place, kind in (("no/such/x", NotFound), ("nofolder/", NotFound), ("file", Refused), ("file/x", DvkError)):
            with pytest.raises(kind):
                get(repo, "im" if place == "file" else "data/t.bin", f"{tmp_path}/{place}")


def test_a_fresh_clone_reads_from_the_remote_and_keeps_nothing(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "store")
    clone = project.clone(tmp_path / "clone")
    assert content(clone, "v1:data/t.bin") == noise(300_000, 1)
    assert content(clone, "v1:im/a/1") == b"one"
    with clone.repo() as repo:
        assert get(repo, "v1:im", str(tmp_path / "out")).remote == "origin"
        assert get(repo, "im/a", str(tmp_path / "part")).failures == []
        assert not os.path.exists(repo.workspace.store_dir)
    assert files_below(tmp_path / "out") == {"a/1": b"one", "2": b"", "b": noise(70_000, 2)}
    assert files_below(tmp_path / "part") == {"1": b"uno"}


def test_a_plain_folder_without_git_reads_too(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "store")
    shutil.copytree(project.clone(tmp_path / "clone").top, tmp_path / "image", ignore=lambda *_: [".git"])
    image = Project(tmp_path / "image", tmp_path / "home", init=False)
    trusted = {"DVK_TRUST_REMOTES": f"file://{tmp_path}/store"}
    image.environ = {"HOME": "/nonexistent", "PATH": "/nonexistent", **trusted}
    assert content(image, "data/t.bin") == noise(300_000, 3)
    with image.repo() as repo:
        get(repo, "im", str(tmp_path / "out"))
        with pytest.raises(Refused, match="no Git history"):
            cat(repo, "v1:data/t.bin", io.BytesIO())
    assert files_below(tmp_path / "out") == {"a/1": b"uno", "b": noise(70_000, 2)}


def test_data_that_is_nowhere_names_the_commit_that_brought_it(project: Project, tmp_path: Path) -> None:
    clone = project.clone(tmp_path / "clone")
    brought = project.git("rev-parse", "v1").strip()[:9]
    with clone.repo() as repo:
        with pytest.raises(DataMissing) as caught:
            get(repo, "v1:data/t.bin", str(tmp_path / "x"))
        assert f"commit {brought} by Ada" in str(caught.value) and "300 kB" in str(caught.value)
    project.push(tmp_path / "store")
    clone.git("pull", "-q")
    shutil.rmtree(tmp_path / "store")
    with clone.repo() as repo, pytest.raises(NotOurs, match="no dvk store"):
        get(repo, "v1:data/t.bin", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_a_version_that_was_not_pushed_leaves_nothing_behind(project: Project, tmp_path: Path) -> None:
    project.push(tmp_path / "store")
    project.version({"im/new": b"new"}, "im")
    clone = project.clone(tmp_path / "clone")
    with clone.repo() as repo, pytest.raises(DataMissing) as caught:
        get(repo, "im", str(tmp_path / "out"))
    assert "dvk push --rev" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_damaged_data_never_gets_its_name(project: Project, tmp_path: Path) -> None:
    with project.repo() as repo:
        folder = os.path.join(os.fsdecode(repo.workspace.store_dir), "p")
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            data = bytearray(path.read_bytes())
            data[200:260] = bytes(60)
            os.chmod(path, 0o644)
            path.write_bytes(data)
    with project.repo() as repo:
        with pytest.raises(DvkError) as caught:
            get(repo, "v1:data/t.bin", str(tmp_path / "x"))
        assert isinstance(caught.value, Corrupt | DataMissing)
        with pytest.raises(DvkError):
            cat(repo, "v1:data/t.bin", io.BytesIO())
    assert not [n for n in os.listdir(tmp_path) if n == "x" or n.startswith(".dvk-")]


def test_names_of_any_bytes_arrive(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", tmp_path / "home")
    odd = [b"-rf", b"with space", b"new\nline", b"caf\xe9", b"n" * 255]
    project.version({b"d/" + name: name for name in odd}, "d")
    with project.repo() as repo:
        get(repo, "HEAD:d", str(tmp_path / "out"))
        for name in odd:
            out = io.BytesIO()
            cat(repo, b"HEAD:d/" + name, out)
            assert out.getvalue() == name
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == sorted(odd)
