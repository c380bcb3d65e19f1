"""A checkout touches what differs and nothing that only the user has."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from flowkit import Flow, csv, failure_of, noise

from dvk.commands import placed
from dvk.commands.tracked import look
from dvk.errors import DataMissing, DvkError, NotFound, Refused, StorageError, UsageError
from dvk.workspace.materialize import WorkTree


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def marks(flow: Flow) -> dict[bytes, tuple[int, int, int]]:
    """Inode, mtime and ctime of every file."""
    found = {path: os.lstat(flow.at(path)) for path in flow.data()}
    return {path: (st.st_ino, st.st_mtime_ns, st.st_ctime_ns) for path, st in found.items()}


class TestSwitchingBranches:
    def test_only_what_changed_is_touched(self, flow: Flow) -> None:
        flow.version({f"d/{i}": noise(500, i) for i in range(30)} | {"t.csv": csv(100), "u.csv": csv(90)}, "d", "t.csv")
        flow.add("u.csv")
        flow.commit()
        flow.git("checkout", "-q", "-b", "side")
        flow.write({"d/3": b"three", "d/new": b"new", "u.csv": csv(91)})
        flow.remove("d/4")
        flow.add(update=True)
        flow.commit()
        side = flow.data()
        before = marks(flow)
        flow.switch("main")
        now = marks(flow)
        changed = {path for path in before | now if before.get(path) != now.get(path)}
        assert changed == {b"d/3", b"d/4", b"d/new", b"u.csv"}
        flow.switch("side")
        assert flow.data() == side
        still = marks(flow)
        assert {p for p in now if p in still and now[p] != still[p]} == {b"d/3", b"u.csv"}

    def test_a_checkout_with_nothing_to_do_touches_nothing(self, flow: Flow) -> None:
        flow.version({f"d/{i}": noise(500, i) for i in range(30)}, "d")
        before = marks(flow)
        done = flow.checkout()
        assert (done.paths, done.in_step) == ([], 1)
        assert marks(flow) == before

    def test_a_file_that_became_a_folder_and_back(self, flow: Flow) -> None:
        one = flow.version({"x": csv(100)}, "x")
        flow.remove("x")
        flow.git("rm", "-q", "--cached", "x.dvk")
        flow.remove("x.dvk")
        flow.write({"x/1": b"1", "x/2": b"2"})
        flow.add("x")
        two = flow.commit()
        data = flow.data()
        flow.switch(one)
        assert flow.read("x") == csv(100)
        flow.switch(two)
        assert flow.data() == data

    def test_a_path_that_moved_into_a_folder_and_back(self, flow: Flow) -> None:
        one = flow.version({"x": csv(100)}, "x")
        flow.remove("x", "x.dvk")
        flow.write({"y/x": csv(100)})
        flow.add("y/x")
        flow.git("add", "-u")
        two = flow.commit()
        flow.switch(one)
        assert sorted(flow.data()) == [b"x"]
        flow.switch(two)
        assert sorted(flow.data()) == [b"y/x"]


class TestLocalChanges:
    @pytest.fixture
    def two(self, flow: Flow) -> Flow:
        flow.version({"t.csv": csv(100), "d/1": b"1", "d/2": b"2"}, "t.csv", "d")
        flow.version({"t.csv": csv(101), "d/1": b"one", "d/3": b"3"}, "t.csv", "d")
        return flow

    def test_what_no_store_holds_is_never_overwritten_without_force(self, two: Flow) -> None:
        two.write({"t.csv": b"mine", "d/1": b"mine"})
        two.git("checkout", "-q", "HEAD~1")
        done = two.checkout(ok=False)
        assert sorted(e.subject for e in done.failures) == ["d/1", "t.csv"]
        assert all(isinstance(e, Refused) and "--force" in e.hint for e in done.failures)
        assert (two.read("t.csv"), two.read("d/1")) == (b"mine", b"mine")
        assert not two.exists("d/3")  # the others arrive
        two.checkout(force=True)
        assert (two.read("t.csv"), two.read("d/1")) == (csv(100), b"1")
        assert two.status().clean

    def test_what_a_store_holds_is_replaced(self, two: Flow) -> None:
        """A content that some version has can be had again."""
        two.write({"d/1": b"1", "t.csv": csv(100)})
        two.checkout()
        assert (two.read("t.csv"), two.read("d/1")) == (csv(101), b"one")

    def test_a_deleted_file_comes_back(self, two: Flow) -> None:
        two.remove("t.csv", "d/1")
        two.checkout()
        assert (two.read("t.csv"), two.read("d/1")) == (csv(101), b"one")

    def test_untracked_files_of_the_users_own_stay(self, two: Flow) -> None:
        two.write({"d/mine": b"mine", "d/deep/mine": b"mine"})
        two.switch("HEAD~1")
        two.switch("main")
        assert two.read("d/mine") == b"mine" and two.read("d/deep/mine") == b"mine"

    def test_a_file_that_left_the_folder_and_was_edited_stays(self, two: Flow) -> None:
        two.write({"d/3": b"edited"})
        two.git("checkout", "-q", "HEAD~1")
        [error] = two.checkout(ok=False).failures
        assert error.subject == "d/3"
        assert two.read("d/3") == b"edited"

    def test_a_conflict_is_named_again_the_next_time(self, two: Flow) -> None:
        two.write({"d/1": b"mine"})
        two.git("checkout", "-q", "HEAD~1")
        for _ in range(2):
            assert [e.subject for e in two.checkout(ok=False).failures] == ["d/1"]
        two.git("checkout", "-q", "main")
        assert two.checkout("d", ok=False).failures[0].subject == "d/1"
        assert two.read("d/1") == b"mine"

    def test_after_an_add_the_edit_is_a_version_and_may_go(self, two: Flow) -> None:
        two.write({"d/1": b"mine"})
        two.add("d")
        two.commit()
        two.switch("HEAD~2")
        assert two.read("d/1") == b"1"
        two.switch("main")
        assert two.read("d/1") == b"mine"

    def test_the_users_own_file_where_a_new_version_has_one(self, two: Flow) -> None:
        two.switch("HEAD~1")
        two.write({"d/3": b"my own three"})
        two.git("checkout", "-q", "main")
        assert [e.subject for e in two.checkout(ok=False).failures] == ["d/3"]
        assert two.read("d/3") == b"my own three"


class TestGonePointers:
    def test_clean_data_goes_with_its_pointer_and_comes_back(self, flow: Flow) -> None:
        before = flow.head()
        flow.version({"data/t.csv": csv(100), "data/d/1": b"1"}, "data/t.csv", "data/d")
        data = flow.data()
        assert sorted(flow.switch(before).removed) == [b"data/d", b"data/t.csv"]
        assert not flow.exists("data")
        flow.switch("main")
        assert flow.data() == data

    @pytest.mark.parametrize("edit", [{"d/1": b"edited"}, {"d/mine": b"mine"}])
    def test_a_folder_with_anything_else_in_it_stays_whole(self, flow: Flow, edit: dict[str | bytes, bytes]) -> None:
        before = flow.head()
        flow.version({"d/1": b"1", "d/2": b"2"}, "d")
        flow.write(edit)
        data = flow.data()
        assert flow.switch(before).removed == []
        assert flow.data() == data
        assert [n.subject for n in flow.notes] == ["d"] and "dvk add d" in flow.notes[0].hint
        assert flow.status().left_behind == [b"d"]
        assert flow.git("status", "--porcelain") == ""

    def test_an_edited_file_stays_and_is_named(self, flow: Flow) -> None:
        before = flow.head()
        flow.version({"t.csv": csv(100)}, "t.csv")
        flow.write({"t.csv": b"mine"})
        assert flow.switch(before).removed == []
        assert flow.read("t.csv") == b"mine"
        assert [n.subject for n in flow.notes] == ["t.csv"]

    def test_data_that_dvk_did_not_put_there_stays(self, flow: Flow, tmp_path: Path) -> None:
        before = flow.head()
        flow.version({"t.csv": csv(100)}, "t.csv")
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        clone.switch(before)
        clone.write({"t.csv": csv(100)})  # the same content, from somewhere else
        assert clone.checkout().removed == []
        assert clone.read("t.csv") == csv(100)

    def test_a_broken_pointer_is_no_gone_pointer(self, flow: Flow) -> None:
        flow.version({"t.csv": csv(100)}, "t.csv")
        flow.write({"t.csv.dvk": b"<<<<<<< HEAD\n"})
        assert flow.checkout(ok=False).removed == []
        assert flow.exists("t.csv")


class TestPlantedLinks:
    """A repository can hold any link; neither reading nor writing goes through one."""

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        out = tmp_path / "outside"
        (out / "sub").mkdir(parents=True)
        (out / "1").write_bytes(b"canary")
        (out / "sub/1").write_bytes(b"canary")
        return out

    def check(self, flow: Flow, outside: Path, subject: str) -> None:
        for force in (False, True):
            done = flow.checkout(ok=False, force=force)
            assert subject in [e.subject for e in done.failures], [str(e) for e in done.failures]
            assert {p.relative_to(outside).as_posix(): p.read_bytes() for p in outside.rglob("1")} == {
                "1": b"canary",
                "sub/1": b"canary",
            }
            assert sorted(p.name for p in outside.iterdir()) == ["1", "sub"]

    def test_in_place_of_the_folder(self, flow: Flow, outside: Path) -> None:
        flow.version({"d/1": b"1", "d/sub/1": b"2"}, "d")
        os.rename(flow.at("d"), flow.at("moved"))
        os.symlink(outside, flow.at("d"))
        self.check(flow, outside, "d")

    def test_in_place_of_a_directory_in_it(self, flow: Flow, outside: Path) -> None:
        flow.version({"d/1": b"1", "d/sub/1": b"2"}, "d")
        os.rename(flow.at("d/sub"), flow.at("moved"))
        os.symlink(outside / "sub", flow.at("d/sub"))
        done = flow.checkout(ok=False)
        assert done.failures and all(e.subject.startswith("d/sub") for e in done.failures)
        assert (outside / "sub/1").read_bytes() == b"canary"

    def test_above_the_pointer(self, flow: Flow, outside: Path) -> None:
        flow.version({"a/d/1": b"1"}, "a/d")
        os.rename(flow.at("a"), flow.at("moved"))
        os.symlink(outside, flow.at("a"))
        flow.checkout(ok=False)
        assert sorted(p.name for p in outside.iterdir()) == ["1", "sub"]

    def test_in_place_of_a_file(self, flow: Flow, outside: Path) -> None:
        flow.version({"t.csv": csv(100)}, "t.csv")
        flow.remove("t.csv")
        os.symlink(outside / "1", flow.at("t.csv"))
        done = flow.checkout(ok=False)
        assert [e.subject for e in done.failures] == ["t.csv"]
        assert (outside / "1").read_bytes() == b"canary" and os.path.islink(flow.at("t.csv"))


class TestArguments:
    def test_what_is_not_tracked(self, flow: Flow) -> None:
        flow.version({"t.csv": csv(100)}, "t.csv")
        with pytest.raises(NotFound, match="nothing"):
            flow.checkout("u.csv")
        with pytest.raises(Refused, match="is a file"):
            flow.checkout("t.csv/1")

    def test_a_revision_needs_to_know_the_path(self, flow: Flow) -> None:
        before = flow.head()
        flow.version({"t.csv": csv(100)}, "t.csv")
        error = failure_of(lambda: flow.checkout("t.csv", rev=before))
        assert isinstance(error, NotFound) and error.subject == "t.csv" and "dvk log" in error.hint
        with pytest.raises(NotFound):
            flow.checkout("t.csv", rev="nowhere")

    def test_a_revision_without_paths(self, flow: Flow) -> None:
        one = flow.version({"t.csv": csv(100)}, "t.csv")
        flow.version({"t.csv": csv(101)}, "t.csv")
        with pytest.raises(UsageError):
            flow.checkout(rev=one)

    def test_data_that_is_not_here_is_one_failure_and_the_pointer_stays_as_it_was(
        self, flow: Flow, tmp_path: Path
    ) -> None:
        one = flow.version({"t.csv": csv(5000)}, "t.csv")
        flow.version({"t.csv": csv(50, 3)}, "t.csv")
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        [error] = clone.checkout("t.csv", rev=one, ok=False).failures
        assert isinstance(error, DataMissing) and error.subject == "t.csv" and error.hint
        assert clone.read("t.csv") == csv(50, 3)
        clone.fetch("t.csv", rev=one)
        clone.checkout("t.csv", rev=one)
        assert clone.read("t.csv") == csv(5000)

    def test_parts_of_a_folder(self, flow: Flow, tmp_path: Path) -> None:
        flow.version({"d/a/1": b"1", "d/b/2": b"2"}, "d")
        flow.write({"d/a/1": b"mine"})
        flow.remove("d/b/2")
        flow.checkout("d/b")
        assert flow.read("d/b/2") == b"2" and flow.read("d/a/1") == b"mine"
        one = flow.one("d")
        assert (one.modified, one.missing) == (1, 0)
        [error] = flow.checkout("d/nothing", ok=False).failures
        assert isinstance(error, NotFound) and error.subject == "d/nothing"

    def test_a_part_of_a_folder_leaves_the_cache_of_the_rest(self, flow: Flow) -> None:
        """Nothing is read again because one file of a thousand was brought back."""
        flow.version({f"d/{i}": b"%d" % i for i in range(10)}, "d")
        for i in range(10):
            os.utime(flow.at(f"d/{i}"), ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
        flow.add("d")
        time.sleep(0.05)
        flow.status()
        flow.remove("d/7")
        flow.checkout("d/7")
        with flow.repo() as repo:
            seen = look(repo.root_fd, b"d", repo.state, repo.workspace.ignore_rules())
        assert seen.known.all()


@pytest.mark.parametrize("folder_stays", [True, False])
def test_what_could_not_be_deleted_is_still_known_for_dvks(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, folder_stays: bool
) -> None:
    """A file of the version before is left by a run that failed: the next run removes it, and does not take it for
    the user's own, which `dvk add -u` would record again."""
    if not folder_stays:
        flow.commit("nothing")
        nothing = flow.head()
    flow.version({"d/s/a": b"1", "d/s/b": b"b"}, "d")
    one = flow.head()
    flow.remove("d/s/b")
    two = flow.version({"d/s/a": b"2"}, "d")
    flow.switch(one)
    real = WorkTree.delete

    def delete(self: WorkTree) -> list[DvkError]:
        return [StorageError("cannot be deleted", subject="d/s/b")]

    monkeypatch.setattr(WorkTree, "delete", delete)
    flow.git("checkout", "-q", two if folder_stays else nothing)
    done = flow.checkout(ok=False)
    assert [e.subject for e in done.failures] == ["d/s/b"] and flow.exists("d/s/b")
    monkeypatch.setattr(WorkTree, "delete", real)
    flow.checkout()
    assert sorted(flow.data()) == ([b"d/s/a"] if folder_stays else [])
    assert flow.status().clean


def test_what_could_not_be_read_is_still_known_for_dvks(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no part of the version any more stays while the disk does not give it out: nobody can say whose
    it is. The next run, which can read it, removes it."""
    flow.version({"d/a": b"1", "d/b": b"b"}, "d")
    one = flow.head()
    flow.remove("d/b")
    two = flow.version({"d/a": b"2"}, "d")
    flow.switch(one)
    os.utime(flow.top / "d/b")
    real, inode = os.read, os.stat(flow.top / "d/b").st_ino

    def read(fd: int, count: int) -> bytes:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count)

    flow.git("checkout", "-q", two)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        done = flow.checkout(ok=False)
    assert [e.subject for e in done.failures] == ["d/b"] and "was not read" in done.failures[0].message
    assert flow.exists("d/b")
    flow.checkout()
    assert sorted(flow.data()) == [b"d/a"]
    assert flow.status().clean


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_record_of_what_was_placed_that_cannot_be_read_is_not_taken_for_none(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Or files of the version before would stay, and be the user's from then on."""
    flow.version({"d/a": b"1", "d/b": b"b"}, "d")
    one = flow.head()
    flow.remove("d/b")
    two = flow.version({"d/a": b"2"}, "d")
    flow.switch(one)
    flow.git("checkout", "-q", two)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(placed, "open", refuse, raising=False)
        with pytest.raises(StorageError, match=r"placed\.json"):
            flow.checkout()
    assert sorted(flow.data()) == [b"d/a", b"d/b"]
    flow.checkout()
    assert sorted(flow.data()) == [b"d/a"]


def test_another_name_of_a_file_keeps_its_mode(tmp_path: Path) -> None:
    """A hard link that somebody made outside of the folder is theirs: the mode is changed on a copy of its own."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version({"d/run": b"#!/bin/sh\n", "d/big": noise(3 << 20, 1)}, "d")
    for name in ("d/run", "d/big"):
        os.chmod(flow.at(name), 0o755)
    flow.add("d")
    flow.commit()
    os.link(flow.at("d/big"), tmp_path / "kept")
    before = os.stat(tmp_path / "kept")
    flow.switch("HEAD~1")
    assert flow.read("d/big") == noise(3 << 20, 1) and flow.status().clean
    assert not os.stat(flow.at("d/big")).st_mode & 0o111 and not os.stat(flow.at("d/run")).st_mode & 0o111
    now = os.stat(tmp_path / "kept")
    assert (now.st_mode, now.st_ino, now.st_nlink) == (before.st_mode, before.st_ino, 1)
