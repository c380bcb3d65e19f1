"""The workspace: found from anywhere in it, closed to what lies outside, whole after a kill."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gitkit import Repo, environ, pointer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dvk.errors import (
    Busy,
    DataMissing,
    DvkError,
    FormatError,
    NewerFormat,
    NotARepository,
    NotFound,
    Refused,
    StorageError,
    UsageError,
)
from dvk.workspace.places import exclusive
from dvk.workspace.pointer import Pointer, format_pointer, parse
from dvk.workspace.repo import Workspace

P1 = parse(pointer(1), subject="1")
P2 = parse(pointer(2), subject="2")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "r", tmp_path)


@pytest.fixture(params=["git", "no git program", "plain folder"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def discover(repo: Repo, *, start: Path | None = None, **more: str) -> Workspace:
    return Workspace.discover(str(start or repo.top), environ=repo.environ | more)


def workspace_of(kind: str, tmp_path: Path) -> Workspace:
    """The same, empty work tree as each kind of workspace."""
    if kind == "plain folder":
        top = tmp_path / "r"
        top.mkdir()
        (top / "dvk.toml").write_text("format = 1\n")
        return Workspace.discover(str(top), environ=environ(tmp_path, PATH="/nonexistent"))
    repo = Repo(tmp_path / "r", tmp_path)
    return discover(repo) if kind == "git" else discover(repo, PATH="/nonexistent")


def put(top: bytes | Path, files: dict[str | bytes, bytes]) -> None:
    for name, data in files.items():
        path = os.path.join(os.fsencode(top), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(data)


# -- discovery -----------------------------------------------------------------------------------


def test_a_work_tree_and_its_places(repo: Repo) -> None:
    (repo.top / "a/b").mkdir(parents=True)
    for start in (repo.top, repo.top / "a/b"):
        found = discover(repo, start=start)
        top = os.fsencode(os.path.realpath(repo.top))
        assert found.top == top
        assert found.state_dir == found.common_dir == top + b"/.git/dvk"
        assert found.store_dir == top + b"/.git/dvk/store"
    assert not (repo.top / ".git/dvk").exists(), "looking writes nothing"


def test_linked_worktrees_share_all_but_their_state(repo: Repo, tmp_path: Path) -> None:
    repo.commit({"x": b"1"})
    repo.git("worktree", "add", "-q", str(tmp_path / "other"))
    main, other = discover(repo), discover(repo, start=tmp_path / "other")
    assert (main.common_dir, main.store_dir) == (other.common_dir, other.store_dir)
    assert main.state_dir != other.state_dir
    assert other.state_dir.endswith(b"/.git/worktrees/other/dvk")


def test_the_store_is_where_the_strongest_setting_says(repo: Repo, tmp_path: Path) -> None:
    put(repo.top, {".git/dvk/config.toml": b'[store]\npath = "~/mine"\n'})
    assert discover(repo).store_dir == os.fsencode(tmp_path / "mine")
    assert discover(repo, DVK_STORE="/data/store").store_dir == b"/data/store"
    chosen = Workspace.discover(str(repo.top), environ=repo.environ, store="/given")
    assert chosen.store_dir == b"/given"


def test_a_plain_folder_is_found_by_its_settings_file(tmp_path: Path) -> None:
    top = tmp_path / "image"
    put(top, {"dvk.toml": b"format = 1\n", "x.dvk": pointer(1), "d/y.dvk": pointer(2)})
    env = environ(tmp_path, PATH="/nonexistent")
    found = Workspace.discover(str(top / "d"), environ=env)
    assert found.top == os.fsencode(os.path.realpath(top))
    assert found.git is None
    assert found.state_dir.startswith(os.fsencode(tmp_path))
    assert found.store_dir == Workspace.discover(str(top), environ=env).store_dir
    assert dict(found.worktree_pointers()) == {b"x": P1, b"d/y": P2}
    with pytest.raises(Refused) as caught:
        found.resolve("v1.0")
    assert caught.value.subject == "revision v1.0"
    assert not found.hide(add=[b"x"])


def test_without_a_home_that_can_be_written_state_goes_to_a_private_folder(tmp_path: Path) -> None:
    put(tmp_path, {"image/dvk.toml": b"format = 1\n", "file": b""})
    shared = tmp_path / "tmp"
    shared.mkdir()
    env = environ(tmp_path, HOME=str(tmp_path / "file"), TMPDIR=str(shared), PATH="/nonexistent")
    found = Workspace.discover(str(tmp_path / "image"), environ=env)
    [private] = shared.iterdir()
    assert found.store_dir == os.fsencode(private / "store")
    assert private.stat().st_mode & 0o777 == 0o700
    private.chmod(0o777)
    with pytest.raises(Refused, match="not private"):
        Workspace.discover(str(tmp_path / "image"), environ=env)
    moved = Workspace.discover(str(tmp_path / "image"), environ=env | {"DVK_CACHE_HOME": str(tmp_path / "c")})
    assert moved.store_dir == os.fsencode(tmp_path / "c/store")


def test_neither_repository_nor_plain_folder(tmp_path: Path) -> None:
    env = environ(tmp_path, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    with pytest.raises(NotARepository) as caught:
        Workspace.discover(str(tmp_path), environ=env)
    assert caught.value.hint


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_state_of_another_user_is_refused(repo: Repo, tmp_path: Path) -> None:
    folder = repo.top / ".git/dvk"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(Refused, match="another user"):
        discover(repo)
    discover(repo, SUDO_UID="12345")
    os.chown(folder, 0, 0)
    folder.chmod(0o777)
    with pytest.raises(Refused, match="everybody"):
        discover(repo)
    folder.chmod(0o755)
    store = tmp_path / "store"
    store.mkdir()
    store.chmod(0o777)
    with pytest.raises(Refused, match="everybody"):
        discover(repo, DVK_STORE=str(store))


def test_a_link_in_place_of_the_state_folder_is_refused(repo: Repo, tmp_path: Path) -> None:
    (repo.top / ".git/dvk").symlink_to(tmp_path)
    with pytest.raises(Refused, match="no folder"):
        discover(repo)


# -- locate --------------------------------------------------------------------------------------


def test_all_ways_to_name_a_path_mean_the_same(repo: Repo, tmp_path: Path) -> None:
    put(repo.top, {"d/x.csv": b"", "d/e/y": b""})
    workspace = discover(repo)
    top = workspace.top
    (tmp_path / "way in").symlink_to(repo.top / "d")
    for arg, cwd in [
        ("x.csv", b"d"),
        ("x.csv.dvk", b"d"),
        ("./x.csv", b"d"),
        ("d/x.csv", b""),
        ("d//x.csv", b""),
        ("d/x.csv/", b""),
        ("d/x.csv.dvk//", b""),
        ("../d/./x.csv", b"d"),
        ("../x.csv", b"d/e"),
        ("e/../x.csv", b"d"),
        (os.fsdecode(top) + "/d/x.csv", b"d/e"),
        (str(tmp_path / "way in" / "x.csv"), b""),
        (b"d/x.csv", b""),
    ]:
        assert workspace.locate(arg, cwd=os.path.join(top, cwd)) == b"d/x.csv", (arg, cwd)
    assert workspace.locate("x.csv", cwd=os.fsencode(tmp_path / "way in")) == b"d/x.csv"
    assert workspace.locate("..", cwd=top + b"/d/e") == b"d"
    assert workspace.locate(".", cwd=top + b"/d/e") == b"d/e"
    assert workspace.locate("new/deep/file", cwd=top) == b"new/deep/file"


@pytest.mark.parametrize(
    ("arg", "says"),
    [
        ("", "not a path"),
        (".", "whole work tree"),
        ("d/..", "whole work tree"),
        ("./", "whole work tree"),
        ("..", "outside"),
        ("../other", "outside"),
        ("/etc/passwd", "outside"),
        ("/", "outside"),
        ("out/x", "outside"),
        ("../r2/x", "outside"),
        (".git/config", "git"),
        (".GIT", "git"),
        ("d/.git/x", "git"),
        (".dvk", "dvk"),
        ("d/x.dvk.dvk", "ends in .dvk"),
        ("n" * 256, "255 bytes"),
        ("sub/x", "another repository"),
        (b"a\0b", "not a path"),
    ],
)
def test_a_path_that_cannot_be_tracked_is_refused_by_name(repo: Repo, arg: str | bytes, says: str) -> None:
    put(repo.top, {"d/x": b"", "sub/.git": b"gitdir: elsewhere\n"})
    (repo.top / "out").symlink_to("/etc")
    workspace = discover(repo)
    with pytest.raises(UsageError, match=says) as caught:
        workspace.locate(arg, cwd=workspace.top)
    assert caught.value.subject or not arg


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    base = tmp_path_factory.mktemp("shared")
    return discover(Repo(base / "r", base))


_names = st.binary(min_size=1, max_size=40).filter(lambda n: b"/" not in n and b"\0" not in n)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(_names | st.sampled_from([b"..", b".", b".git", b"git~1"]), min_size=1, max_size=4))
@example(parts=[b"-rf", b"new\nline", b"\xff"])
def test_any_bytes_give_a_path_inside_or_a_clear_refusal(shared: Workspace, parts: list[bytes]) -> None:
    try:
        path = shared.locate(b"/".join(parts), cwd=shared.top)
    except UsageError:
        return
    assert os.path.normpath(path) == path
    assert not path.startswith((b"/", b".."))
    assert b".git" not in path.split(b"/")
    if b".." not in parts:
        plain = b"/".join(p for p in parts if p != b".")
        assert path in (plain, plain.removesuffix(b".dvk"))


# -- pointers in the work tree -------------------------------------------------------------------


def test_pointers_are_written_read_listed_and_removed_in_each_kind(kind: str, tmp_path: Path) -> None:
    workspace = workspace_of(kind, tmp_path)
    names = [b"x", b"d/e/y", b"new\nline", b"-dash", b"\xff\xfe", b"a b", b"n" * 251, b"w[i]ld*"]
    if sys.platform == "darwin":  # its filesystems take UTF-8 only
        names.remove(b"\xff\xfe")
    expected = {}
    for i, name in enumerate(names):
        expected[name] = Pointer("file", bytes([i + 1]) * 32, i + 1)
        workspace.write_pointer(name, expected[name])
        assert workspace.read_pointer(name) == expected[name]
    assert list(workspace.worktree_pointers()) == sorted(expected.items())
    assert [p for p, _ in workspace.worktree_pointers([b"d"])] == [b"d/e/y"]
    assert [p for p, _ in workspace.worktree_pointers([b"x", b"w[i]ld*"])] == [b"w[i]ld*", b"x"]
    assert list(workspace.worktree_pointers([b"nothing"])) == []
    assert workspace.remove_pointer(b"x")
    assert not workspace.remove_pointer(b"x")
    assert not workspace.remove_pointer(b"no/such/folder")
    with pytest.raises(NotFound):
        workspace.read_pointer(b"x")
    assert b"x" not in dict(workspace.worktree_pointers())


def test_a_pointer_that_cannot_be_read_is_reported_beside_the_others(kind: str, tmp_path: Path) -> None:
    workspace = workspace_of(kind, tmp_path)
    top = workspace.top
    put(
        top,
        {
            "good.dvk": pointer(1),
            "crlf.dvk": pointer(1).replace(b"\n", b"\r\n"),
            "newer.dvk": b"dvk pointer 7\n",
            "conflict.dvk": b"<<<<<<< a\n=======\n>>>>>>> b\n",
            "huge.dvk": bytes(70_000),
            "x.dvk.dvk": pointer(1),
            "git~1.dvk": pointer(1),
            "GIT~2/x.dvk": pointer(1),
        },
    )
    os.symlink("good.dvk", os.path.join(top, b"link.dvk"))
    os.mkfifo(os.path.join(top, b"fifo.dvk"))
    os.mkdir(os.path.join(top, b"folder.dvk"))
    found = dict(workspace.worktree_pointers())
    assert found.pop(b"good") == P1
    # What is no file is no pointer to git; a walk sees and names it.
    by_kind = {path: type(error) for path, error in found.items()}
    expected = {
        b"crlf": FormatError,
        b"newer": NewerFormat,
        b"conflict": FormatError,
        b"huge": FormatError,
        b"link": Refused,
        b"x.dvk": UsageError,
        b"git~1": FormatError,
        b"GIT~2/x": FormatError,
    }
    assert expected.items() <= by_kind.items()
    assert set(by_kind) - set(expected) <= {b"fifo"}
    for path, error in found.items():
        assert isinstance(error, DvkError)
        assert os.fsdecode(path) in error.subject
    with pytest.raises(Refused):
        workspace.read_pointer(b"fifo")


def test_links_on_the_way_lead_neither_reads_nor_writes_elsewhere(kind: str, tmp_path: Path) -> None:
    """A2: a cloned link must not let a pointer appear, change or vanish outside."""
    workspace = workspace_of(kind, tmp_path)
    outside = tmp_path / "outside"
    put(outside, {"x.dvk": pointer(1)})
    os.symlink(outside, os.path.join(workspace.top, b"link"))
    os.symlink(outside / "x.dvk", os.path.join(workspace.top, b"direct.dvk"))
    for act in (
        lambda: workspace.read_pointer(b"link/x"),
        lambda: workspace.write_pointer(b"link/x", P2),
        lambda: workspace.write_pointer(b"link/deeper/x", P2),
        lambda: workspace.remove_pointer(b"link/x"),
        lambda: workspace.owner_of(b"link/x"),
        lambda: workspace.read_pointer(b"direct"),
    ):
        with pytest.raises(Refused, match="symbolic link"):
            act()
    workspace.write_pointer(b"direct", P2)  # the link itself is replaced
    assert workspace.read_pointer(b"direct") == P2
    assert sorted(os.listdir(outside)) == ["x.dvk"]
    assert (outside / "x.dvk").read_bytes() == pointer(1)


@pytest.mark.parametrize("path", [b"../x", b"/x", b"a/../../x", b".git/hooks/x", b"a//b", b"", b".GIT/x", b"a\0b"])
def test_a_path_that_leaves_the_work_tree_is_never_written(repo: Repo, path: bytes) -> None:
    workspace = discover(repo)
    with pytest.raises(DvkError):
        workspace.write_pointer(path, P1)
    with pytest.raises(DvkError):
        workspace.read_pointer(path)


def test_the_nearest_pointer_owns_a_path(kind: str, tmp_path: Path) -> None:
    workspace = workspace_of(kind, tmp_path)
    put(workspace.top, {"images.dvk": pointer(1), "d/x.csv.dvk": pointer(2), "images/val/7.jpg": b""})
    assert workspace.owner_of(b"images/val/7.jpg") == (b"images", b"val/7.jpg")
    assert workspace.owner_of(b"images/not/there") == (b"images", b"not/there")
    assert workspace.owner_of(b"images") == (b"images", b"")
    assert workspace.owner_of(b"d/x.csv") == (b"d/x.csv", b"")
    assert workspace.owner_of(b"d") is None
    assert workspace.owner_of(b"d/" + b"n" * 255) is None
    assert workspace.owner_of(b"images/" + b"n" * 255) == (b"images", b"n" * 255)


def test_a_walk_does_not_enter_data_or_other_repositories(tmp_path: Path) -> None:
    workspace = workspace_of("plain folder", tmp_path)
    put(
        workspace.top,
        {
            "images.dvk": pointer(1),
            "images/in-data.dvk": pointer(2),
            "code/y.dvk": pointer(3),
            "other/.git/x.dvk": pointer(4),
            "other/z.dvk": pointer(5),
            ".git.dvk": pointer(6),
        },
    )
    found = dict(workspace.worktree_pointers())
    assert isinstance(found.pop(b".git"), FormatError), "data can never have that name"
    assert list(found) == [b"code/y", b"images"]


def test_a_pointer_that_git_knows_and_the_work_tree_lacks_is_not_listed(repo: Repo) -> None:
    repo.commit({"x.dvk": pointer(1), "gone.dvk": pointer(2)})
    (repo.top / "gone.dvk").unlink()
    assert [p for p, _ in discover(repo).worktree_pointers()] == [b"x"]


def test_writing_keeps_permissions_and_obeys_the_umask(repo: Repo) -> None:
    workspace = discover(repo)
    old = os.umask(0o027)
    try:
        workspace.write_pointer(b"d/x", P1)
    finally:
        os.umask(old)
    path = repo.top / "d/x.dvk"
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o664)
    workspace.write_pointer(b"d/x", P2)
    assert path.stat().st_mode & 0o777 == 0o664
    assert os.listdir(repo.top / "d") == ["x.dvk"]


def test_a_failed_write_leaves_the_old_pointer_and_nothing_else(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = discover(repo)
    workspace.write_pointer(b"d/x", P1)

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="no space"):
        patch.setattr("dvk.workspace.durable.sync_fd", fail)
        workspace.write_pointer(b"d/x", P2)
    assert workspace.read_pointer(b"d/x") == P1
    assert os.listdir(repo.top / "d") == ["x.dvk"]
    os.mkdir(repo.top / "d/y.dvk")
    with pytest.raises(Refused, match="folder"):
        workspace.write_pointer(b"d/y", P2)


def test_a_kill_at_any_moment_leaves_one_of_the_two_pointers(repo: Repo) -> None:
    workspace = discover(repo)
    workspace.write_pointer(b"x", P1)
    code = (
        "import os, sys\n"
        "from dvk.workspace.repo import Workspace\n"
        "from dvk.workspace.pointer import Pointer\n"
        "w = Workspace.discover(sys.argv[1], environ=os.environ)\n"
        "print('go', flush=True)\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    w.write_pointer(b'x', Pointer('file', bytes([i % 255 + 1]) * 32, i))\n"
    )
    for delay_s in (0.0, random.Random(1).random() / 50, 0.03):
        writer = subprocess.Popen([sys.executable, "-c", code, repo.top], env=repo.environ, stdout=subprocess.PIPE)
        assert writer.stdout
        assert writer.stdout.readline() == b"go\n"
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        text = (repo.top / "x.dvk").read_bytes()
        assert format_pointer(parse(text, subject="x")) == text


# -- revisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/nonexistent"])
def test_pointers_of_a_commit_with_what_is_wrong_with_them(repo: Repo, path: str) -> None:
    repo.write({"bad.dvk": b"nonsense", "huge.dvk": bytes(70_000), "d/y.dvk": pointer(2), "z": b"no pointer"})
    commit = repo.commit({"x.dvk": pointer(1)})
    workspace = discover(repo, **({"PATH": path} if path else {}))
    assert workspace.resolve("HEAD") == commit
    found = dict(workspace.pointers_at(workspace.resolve("HEAD")))
    assert (found.pop(b"x"), found.pop(b"d/y")) == (P1, P2)
    assert {p: (type(e), e.subject) for p, e in found.items()} == {  # type: ignore[union-attr]
        b"bad": (FormatError, "bad.dvk"),
        b"huge": (FormatError, "huge.dvk"),
    }
    assert dict(workspace.pointers_at(workspace.resolve("HEAD"), [b"d"])) == {b"d/y": P2}
    [(path_found, missing)] = workspace.read_committed([(b"m.dvk", "12" * 20)])  # type: ignore[list-item]
    assert (path_found, type(missing)) == (b"m", DataMissing)


# -- lock and exclude ----------------------------------------------------------------------------


def test_the_lock_keeps_others_out_and_names_its_holder(repo: Repo) -> None:
    workspace = discover(repo)
    with (
        workspace.lock(),
        pytest.raises(Busy, match=f"process {os.getpid()}"),
        workspace.lock(timeout_s=0.05),
    ):
        pass
    with workspace.lock(timeout_s=0):
        pass


def test_the_lock_makes_read_modify_write_safe_between_processes_and_threads(repo: Repo) -> None:
    """Nothing that anybody hides gets lost when many write the exclude file at once."""
    code = (
        "import os, sys\n"
        "from dvk.workspace.repo import Workspace\n"
        "w = Workspace.discover(sys.argv[1], environ=os.environ)\n"
        "for i in range(10):\n"
        "    with w.lock():\n"
        "        w.hide(add=[f'{sys.argv[2]}-{i}'.encode()])\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, repo.top, f"p{n}"], env=repo.environ) for n in range(2)]
    workspace = discover(repo)

    def work(n: int) -> None:
        for i in range(10):
            with workspace.lock():
                workspace.hide(add=[f"t{n}-{i}".encode()])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for waiting in (*threads, *processes):
        waiting.join() if isinstance(waiting, threading.Thread) else waiting.wait()
    lines = (repo.top / ".git/info/exclude").read_text().splitlines()
    assert {line for line in lines if line.startswith("/")} == {
        f"/{who}-{i}" for who in ("p0", "p1", "t0", "t1") for i in range(10)
    }


def test_a_killed_holder_leaves_the_lock_free(repo: Repo) -> None:
    code = (
        "import os, sys, time\n"
        "from dvk.workspace.places import exclusive\n"
        "with exclusive(os.fsencode(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    path = repo.top / ".git/dvk/lock"
    holder = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Busy, match=f"process {holder.pid}"), exclusive(os.fsencode(path), timeout_s=0.02):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with exclusive(os.fsencode(path), timeout_s=5):
        pass


def test_a_filesystem_without_locks_does_not_stop_work(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with discover(repo).lock(timeout_s=0):
        pass
