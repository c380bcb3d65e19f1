"""Bad input: a clear category, a message that names the object, what to do next, and nothing lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flowkit import Flow, csv, failure_of, noise

from dvk.commands.add import add
from dvk.commands.repo import Repo
from dvk.errors import (
    ChangedWhileRead,
    DataMissing,
    DvkError,
    FormatError,
    NewerFormat,
    NotARepository,
    NotFound,
    Refused,
    UsageError,
)


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def refused(flow: Flow, *paths: str | bytes, kind: type[DvkError], subject: str) -> DvkError:
    """`add` says no, naming the object; no pointer was written and nothing was staged."""
    before = flow.git("status", "--porcelain", "--ignored")
    data = flow.data()
    error = failure_of(lambda: flow.add(*paths))
    named = [e.subject for e in (error.failures or (error,))]
    assert isinstance(error, kind), repr(error)
    assert any(subject in name for name in named), named
    assert flow.git("status", "--porcelain", "--ignored") == before
    assert flow.data() == data
    return error


class TestWhere:
    def test_no_repository(self, tmp_path: Path, flow: Flow) -> None:
        error = failure_of(lambda: Repo(tmp_path, environ=flow.environ))
        assert isinstance(error, NotARepository) and str(tmp_path) in error.subject and "git init" in error.hint

    def test_a_bare_repository(self, tmp_path: Path, flow: Flow) -> None:
        flow.git("init", "-q", "--bare", str(tmp_path / "bare"))
        error = failure_of(lambda: Repo(tmp_path / "bare", environ=flow.environ))
        assert isinstance(error, NotARepository) and "bare" in str(error) and error.hint

    def test_outside(self, flow: Flow, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"x")
        refused(flow, str(tmp_path / "x"), kind=UsageError, subject="x")
        refused(flow, "../x", kind=UsageError, subject="../x")

    def test_missing(self, flow: Flow) -> None:
        refused(flow, "nothing", kind=NotFound, subject="nothing")

    def test_one_that_is_missing_keeps_the_others_from_being_recorded(self, flow: Flow) -> None:
        flow.write({"t.csv": csv(10)})
        refused(flow, "t.csv", "nothing", "nor this", kind=NotFound, subject="nor this")

    def test_the_top(self, flow: Flow) -> None:
        error = refused(flow, ".", kind=UsageError, subject=".")
        assert error.hint

    def test_nothing_at_all(self, flow: Flow) -> None:
        with pytest.raises(UsageError):
            flow.add()

    def test_inside_git(self, flow: Flow) -> None:
        refused(flow, ".git/config", kind=UsageError, subject=".git/config")


class TestOwners:
    def test_a_file_that_git_tracks(self, flow: Flow) -> None:
        flow.write({"t.csv": csv(10)})
        flow.git("add", "t.csv")
        assert "git rm" in refused(flow, "t.csv", kind=Refused, subject="t.csv").hint
        flow.git("commit", "-q", "-m", "by git")
        refused(flow, "t.csv", kind=Refused, subject="t.csv")

    def test_a_folder_with_files_that_git_tracks(self, flow: Flow) -> None:
        flow.write({"d/1": b"1", "d/readme.md": b"2"})
        flow.git("add", "d/readme.md")
        error = refused(flow, "d", kind=Refused, subject="d")
        assert "d/readme.md" in str(error) and "git rm" in error.hint

    def test_git_took_over_files_of_a_tracked_folder(self, flow: Flow) -> None:
        flow.version({"d/1": b"1", "d/2": b"2"}, "d")
        flow.git("add", "-f", "d/2")
        refused(flow, "d", kind=Refused, subject="d")

    def test_a_folder_with_a_pointer_in_it(self, flow: Flow) -> None:
        flow.version({"d/t.csv": csv(10)}, "d/t.csv")
        error = refused(flow, "d", kind=Refused, subject="d")
        assert "d/t.csv" in str(error) and error.hint

    def test_a_pointer_that_is_not_in_git_yet(self, flow: Flow) -> None:
        flow.write({"d/t.csv": csv(10)})
        flow.add("d/t.csv", stage=False)
        refused(flow, "d", kind=Refused, subject="d")

    def test_a_repository_in_the_folder(self, flow: Flow) -> None:
        flow.write({"d/1": b"1", "d/sub/1": b"1"})
        flow.git("init", "-q", str(flow.top / "d/sub"))
        error = refused(flow, "d", kind=Refused, subject="d/sub")
        assert "Git repository" in str(error) and error.hint

    def test_a_file_inside_another_repository(self, flow: Flow) -> None:
        flow.write({"sub/1": b"1"})
        flow.git("init", "-q", str(flow.top / "sub"))
        refused(flow, "sub/1", kind=UsageError, subject="sub/1")

    def test_a_path_below_a_tracked_file(self, flow: Flow) -> None:
        flow.version({"x": b"1"}, "x")
        flow.remove("x")
        flow.write({"x/1": b"1"})
        refused(flow, "x/1", kind=Refused, subject="x")

    def test_another_kind_than_is_tracked(self, flow: Flow) -> None:
        flow.version({"x": b"1"}, "x")
        flow.remove("x")
        flow.write({"x/1": b"1"})
        assert "dvk rm" in refused(flow, "x", kind=Refused, subject="x").hint


class TestSpecialFiles:
    def make(self, flow: Flow, kind: str, path: str) -> None:
        os.makedirs(os.path.dirname(flow.at(path)), exist_ok=True)
        if kind == "FIFO":
            os.mkfifo(flow.at(path))
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(os.path.dirname(flow.at(path)))  # the path of a socket is short
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.bind(os.path.basename(path))
            finally:
                os.chdir(here)
        elif kind == "device":
            if os.geteuid() or sys.platform != "linux":
                pytest.skip("needs root to make a device")
            os.mknod(flow.at(path), 0o20600, os.makedev(1, 3))
        elif kind == "link":
            os.symlink("/etc/passwd", flow.at(path))

    @pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "link"])
    def test_alone(self, flow: Flow, kind: str) -> None:
        self.make(flow, kind, "x")
        refused(flow, "x", kind=Refused, subject="x")

    @pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "link"])
    def test_in_a_folder(self, flow: Flow, kind: str) -> None:
        flow.write({"d/1": b"1"})
        self.make(flow, kind, "d/x")
        refused(flow, "d", kind=Refused, subject="d/x")

    def test_all_are_named(self, flow: Flow) -> None:
        flow.write({"d/1": b"1"})
        self.make(flow, "FIFO", "d/a")
        self.make(flow, "link", "d/b")
        os.symlink("../../outside", flow.at("d/c"))
        error = refused(flow, "d", kind=Refused, subject="d/c")
        assert sorted(e.subject for e in error.failures) == ["d/a", "d/b", "d/c"]

    def test_a_link_on_the_way(self, flow: Flow, tmp_path: Path) -> None:
        """A link inside the work tree is followed to where it leads, which has to be inside."""
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/1").write_bytes(b"1")
        os.symlink(tmp_path / "outside", flow.at("way"))
        refused(flow, "way/1", kind=UsageError, subject="way/1")


class TestFilesThatMove:
    def test_a_file_that_changes_while_it_is_read(self, flow: Flow) -> None:
        """What is recorded is one state of the file, or nothing."""
        flow.write({"t.bin": noise(6_000_000, 1)})
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                with open(flow.at("t.bin"), "r+b") as file:
                    file.seek(-8, os.SEEK_END)
                    file.write(b"%08d" % n)
                n += 1

        writer = threading.Thread(target=write)
        writer.start()
        recorded = b""
        try:
            for _ in range(100):
                try:
                    flow.add("t.bin")
                except ChangedWhileRead as found:
                    error = found
                    break
                recorded = flow.read("t.bin.dvk")  # on a busy machine the writer may have had no turn meanwhile
        finally:
            stop.set()
            writer.join()
        assert error.subject == "t.bin"
        assert (flow.read("t.bin.dvk") if flow.exists("t.bin.dvk") else b"") == recorded
        flow.add("t.bin")
        flow.commit()
        assert flow.status().clean

    def test_a_folder_where_files_come_and_go(self, flow: Flow, tmp_path: Path) -> None:
        flow.write({f"d/{i}": noise(2000, i) for i in range(200)})
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                with open(flow.at(f"d/moving{n % 5}"), "wb") as file:
                    file.write(b"%d" % n * 500)
                if n % 3 == 0:
                    os.unlink(flow.at(f"d/moving{n % 5}"))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(3):
                try:
                    flow.add("d")
                except (ChangedWhileRead, NotFound) as error:
                    assert "d/moving" in error.subject or error.failures
        finally:
            stop.set()
            writer.join()
        flow.add("d")
        flow.commit()
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        assert clone.data() == flow.data()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to become somebody else")
def test_unreadable_files_are_all_named_and_nothing_is_recorded(flow: Flow) -> None:
    flow.write({f"d/{i}": b"%d" % i for i in range(6)} | {"e/1": b"1"})
    for name in ("d/2", "d/4"):
        os.chmod(flow.at(name), 0)
    for folder in [flow.home, *flow.home.parents]:
        if folder.stat().st_mode & 0o005 != 0o005 and folder != Path("/"):
            os.chmod(folder, folder.stat().st_mode | 0o005)
    subprocess.run(["chown", "-R", "65534:65534", str(flow.top)], check=True)
    child = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "dvk", "add", "e", "d"],
        cwd=flow.top,
        env=flow.environ,
        capture_output=True,
        text=True,
    )
    assert child.returncode != 0
    assert "d/2" in child.stderr and "d/4" in child.stderr and "d/1" not in child.stderr
    assert not flow.exists("d.dvk") and not flow.exists("e.dvk")


class TestPointers:
    GOOD = "dvk 1"

    @pytest.fixture
    def two(self, flow: Flow) -> Flow:
        flow.version({"t.csv": csv(10), "u.csv": csv(20)}, "t.csv", "u.csv")
        flow.push()
        return flow

    @pytest.mark.parametrize(
        ("damage", "kind", "word"),
        [
            (lambda old: b"not a pointer\n", FormatError, ""),
            (lambda old: b"", FormatError, ""),
            (lambda old: old + b"path ../../etc/passwd\n", FormatError, "path"),
            (lambda old: old.replace(b"\n", b"\r\n"), FormatError, "line end"),
            (lambda old: b"<<<<<<< HEAD\n" + old + b"=======\n" + old + b">>>>>>> b\n", FormatError, "conflict"),
            (lambda old: old.replace(b"1", b"99", 1), NewerFormat, "newer"),
            (lambda old: old + b"x" * 70_000, FormatError, ""),
        ],
        ids=["nonsense", "empty", "another key", "CRLF", "conflicted", "newer", "huge"],
    )
    def test_a_pointer_that_cannot_be_read(
        self, two: Flow, tmp_path: Path, damage: object, kind: type[DvkError], word: str
    ) -> None:
        bad = damage(two.read("t.csv.dvk"))  # type: ignore[operator]
        two.write({"t.csv.dvk": bad})
        [error] = two.checkout(ok=False).failures
        assert isinstance(error, kind) and "t.csv.dvk" in error.subject, repr(error)
        assert word in f"{error} {error.hint}".lower(), f"{error} {error.hint}"
        error = failure_of(lambda: two.add("t.csv"))
        assert isinstance(error, kind)
        assert two.read("t.csv.dvk") == bad and two.read("t.csv") == csv(10)
        with two.repo() as repo:
            from dvk.commands.status import status

            out, problems = status(repo)
        assert [type(p) for p in problems] == [type(error)] and [p.path for p in out.paths] == [b"u.csv"]
        two.git("commit", "-q", "-a", "-m", "broken")
        clone = two.clone(tmp_path / "b")
        [error] = clone.pull(ok=False).failures
        assert isinstance(error, kind)
        assert clone.read("u.csv") == csv(20)

    def test_a_pointer_that_is_a_link(self, two: Flow, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").write_bytes(two.read("t.csv.dvk"))
        two.remove("t.csv.dvk")
        os.symlink(tmp_path / "elsewhere", two.at("t.csv.dvk"))
        [error] = two.checkout(ok=False).failures
        assert isinstance(error, Refused) and "t.csv.dvk" in error.subject
        assert isinstance(failure_of(lambda: two.add("t.csv")), Refused)

    def test_data_that_exists_nowhere_and_the_others_arrive(self, two: Flow, tmp_path: Path) -> None:
        commit = two.version({"lost.csv": csv(5000, 5), "d/1": noise(100_000, 6)}, "lost.csv", "d")
        clone = two.clone(tmp_path / "b")
        done = clone.pull(ok=False)
        assert sorted(e.subject for e in done.failures) == ["d", "lost.csv"]
        for error in done.failures:
            assert isinstance(error, DataMissing)
            assert "origin" in str(error) and commit[:9] in str(error) and "dvk push" in error.hint
        assert (clone.read("t.csv"), clone.read("u.csv")) == (csv(10), csv(20))
        assert not clone.exists("lost.csv") and not clone.exists("d")
        assert clone.one("lost.csv").not_fetched and clone.one("d").not_fetched
        code, said = clone.dvk("pull")
        assert code != 0 and "lost.csv" in said
        two.push()
        clone.pull()
        assert clone.data() == two.data()

    def test_data_that_left_the_local_store(self, two: Flow) -> None:
        with two.repo() as repo:
            store = Path(os.fsdecode(repo.workspace.store_dir))
        for pack in (store / "p").rglob("*"):
            if pack.is_file():
                pack.unlink()
        two.remove("t.csv")
        [error] = two.checkout(ok=False).failures
        assert isinstance(error, DataMissing) and error.subject == "t.csv" and "dvk pull" in error.hint
        two.pull()
        assert two.read("t.csv") == csv(10)


NAMES = [
    b"with space",
    b"line\nfeed",
    b"tab\there",
    b"-rf",
    b"--force",
    b"\xff\xfe no utf-8",
    "größe ünïcode".encode(),
    b"e\xcc\x81",
    b"quote\"'`$",
    b"back\\slash",
    b":colon",
    b"*?[a]",
    b"trailing ",
    b"#hash",
    b"!bang",
    b"CON",
]


class TestOddNames:
    @pytest.mark.parametrize("name", NAMES, ids=lambda n: repr(n)[2:-1])
    def test_a_file(self, flow: Flow, tmp_path: Path, name: bytes) -> None:
        flow.version({name: b"content of " + name}, name if not name.startswith(b"-") else b"./" + name)
        assert flow.git("status", "--porcelain") == ""
        assert flow.status().clean
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        assert clone.data() == flow.data() and clone.status().clean
        clone.remove(name)
        clone.checkout(name)
        assert clone.read(name) == b"content of " + name

    def test_in_a_folder(self, flow: Flow, tmp_path: Path) -> None:
        long = [b"x" * 255, "ü".encode() * 127 + b"x"]
        files = {b"d/" + n + tail: n for n in [*NAMES, *long] for tail in (b"", b"2/" + n) if len(n + tail) < 500}
        files = {n: c for n, c in files.items() if max(map(len, n.split(b"/"))) <= 255}
        assert any(len(n) > 250 for n in files)
        flow.version(files, "d")
        assert flow.git("status", "--porcelain") == "" and flow.status().clean
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull(b"d/line\nfeed", b"d/-rf")
        assert sorted(clone.data()) == [b"d/-rf", b"d/line\nfeed"]
        clone.pull("d")
        assert clone.data() == flow.data() and clone.status().clean

    def test_from_the_command_line(self, flow: Flow) -> None:
        flow.write({b"-x": b"1", b"a\xffb": b"2", b"two words": b"3"})
        code, said = flow.dvk("add", "--", b"-x", b"a\xffb", b"two words")
        assert code == 0, said
        flow.commit()
        assert len(flow.status().paths) == 3 and flow.status().clean


class TestEmptyThings:
    def test_files_and_folders(self, flow: Flow, tmp_path: Path) -> None:
        flow.write({"empty": b"", "d/empty": b"", "d/x/empty": b""})
        os.makedirs(flow.at("d/nothing/in here"))
        os.makedirs(flow.at("bare"))
        flow.add("empty", "d", "bare")
        flow.commit()
        assert flow.status().clean
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        assert clone.data() == flow.data()
        assert clone.status().clean and clone.status().not_pushed == 0
        clone.write({"bare/1": b"1"})
        clone.add("bare")
        assert clone.pointer("bare").files == 1

    def test_a_folder_becomes_empty(self, flow: Flow) -> None:
        one = flow.version({"d/1": b"1"}, "d")
        data = flow.data()
        flow.remove("d/1")
        flow.add("d")
        two = flow.commit()
        assert flow.pointer("d").files == 0 and flow.status().clean
        flow.switch(one)
        assert flow.data() == data
        flow.switch(two)
        assert flow.data() == {b"d": b"dir"} and flow.status().clean


def test_a_busy_index_does_not_fail_an_add(flow: Flow) -> None:
    flow.write({"t.csv": csv(10), ".git/index.lock": b""})
    done = flow.add("t.csv")
    assert done.staged == 0 and "lock" in done.not_staged
    assert flow.exists("t.csv.dvk")
    flow.remove(".git/index.lock")
    assert flow.add("t.csv").staged == 1


def test_two_arguments_for_one_thing(flow: Flow) -> None:
    flow.write({"d/1": b"1", "d/2": b"2"})
    flow.add("d")
    done = flow.add("d", "d/1", "d.dvk", "./d/")
    assert len(done.paths) == 1
    flow.write({"d/1": b"one", "d/2": b"two"})
    done = flow.add("d/1", "d/2")
    assert flow.pointer("d").files == 2
    flow.commit()
    assert flow.status().clean
    with flow.repo("d") as repo:
        assert add(repo, ["1"]).paths[0].path == b"d"
