"""What is committed can be had again, everywhere and at every commit; what is pushed is what history names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.errors import DataMissing, UsageError


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


def test_one_plain_push_sends_every_version_of_history(flow: Flow, tmp_path: Path) -> None:
    one = flow.version({"t.csv": csv(3000)}, "t.csv")
    first = flow.data()
    two = flow.version({"t.csv": csv(4000)}, "t.csv")
    second = flow.data()
    assert len(flow.push().sent) == 2
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    assert clone.data() == second
    clone.git("checkout", "-q", one)
    clone.pull()
    assert clone.data() == first
    assert clone.switch(two).removed == []
    assert clone.data() == second
    assert clone.status().clean and clone.status().not_pushed == 0


def test_before_a_path_was_tracked_git_sees_no_data(flow: Flow, tmp_path: Path) -> None:
    before = flow.commit("before")
    flow.version({"t.csv": csv(50), "images/1": b"1", "images/2/3": b"23"}, "t.csv", "images")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    for tree in (flow, clone):
        tree.git("checkout", "-q", before)
        assert tree.exists("t.csv") and tree.exists("images/2/3")
        assert tree.git("status", "--porcelain") == ""
        tree.git("add", "-A")
        assert tree.git("diff", "--cached", "--name-only") == ""
        assert tree.status().left_behind == [b"images", b"t.csv"]
        assert sorted(tree.checkout().removed) == [b"images", b"t.csv"]
        assert tree.data() == {}
        assert tree.status().left_behind == []


def test_checkout_of_one_path_at_a_revision_writes_and_stages_its_pointer(flow: Flow) -> None:
    one = flow.version({"t.csv": csv(50), "images/1": b"1", "images/2": b"2"}, "t.csv", "images")
    flow.version({"t.csv": csv(60), "images/1": b"one", "images/3": b"3"}, "t.csv", "images")
    now = flow.data()
    done = flow.checkout("t.csv", rev=one)
    assert done.staged == 1
    assert flow.read("t.csv") == csv(50)
    assert flow.git("diff", "--cached", "--name-only").split() == ["t.csv.dvk"]
    flow.checkout("images", rev=one)
    assert sorted(flow.data(b"images")) == [b"images/1", b"images/2"]
    flow.checkout("t.csv", "images", rev="HEAD")
    assert flow.data() == now
    assert flow.git("status", "--porcelain") == ""
    flow.checkout("images/1", rev=one)
    assert (flow.read("images/1"), flow.read("images/3")) == (b"1", b"3")
    assert flow.one("images").staged == "modified" and flow.one("images").modified == 0
    assert flow.status().clean is False
    assert os.path.getsize(flow.at("images.dvk")) < 500


class TestPushScope:
    def test_the_index_goes_along(self, flow: Flow) -> None:
        flow.write({"t.csv": csv(50)})
        flow.add("t.csv")
        assert flow.status().not_pushed == 1
        assert [v.path for v in flow.push().sent] == [b"t.csv"]
        assert flow.status().not_pushed == 0

    def test_only_head(self, flow: Flow, tmp_path: Path) -> None:
        one = flow.version({"t.csv": csv(5000)}, "t.csv")
        flow.version({"t.csv": csv(50, 1)}, "t.csv")
        assert len(flow.push(only_head=True).sent) == 1
        assert flow.status().not_pushed == 1
        clone = flow.clone(tmp_path / "b")
        clone.pull()
        assert clone.read("t.csv") == csv(50, 1)
        clone.git("checkout", "-q", one)
        [error] = clone.pull(ok=False, force=True).failures
        assert isinstance(error, DataMissing) and error.subject == "t.csv"
        assert one[:9] in str(error) and "dvk push" in error.hint

    def test_all_branches(self, flow: Flow, tmp_path: Path) -> None:
        flow.git("checkout", "-q", "-b", "side")
        flow.version({"s.csv": csv(50)}, "s.csv")
        flow.switch("main")
        flow.version({"t.csv": csv(60)}, "t.csv")
        assert [v.path for v in flow.push().sent] == [b"t.csv"]
        assert [v.path for v in flow.push(all_branches=True).sent] == [b"s.csv"]
        clone = flow.clone(tmp_path / "b")
        clone.git("checkout", "-q", "side")
        clone.pull()
        assert clone.read("s.csv") == csv(50)

    def test_revisions(self, flow: Flow) -> None:
        commits = [flow.version({"t.csv": csv(50 + i, i)}, "t.csv") for i in range(4)]
        ids = []
        for c in commits:
            flow.switch(c)
            ids.append(flow.pointer("t.csv").id)
        assert {v.id for v in flow.push(revs=[f"{commits[0]}..{commits[2]}"]).sent} == {ids[1], ids[2]}
        assert {v.id for v in flow.push(revs=[commits[0]]).sent} == {ids[0]}
        flow.git("checkout", "-q", "main")
        assert {v.id for v in flow.push().sent} == {ids[3]}
        assert flow.push().sent == []

    def test_paths(self, flow: Flow) -> None:
        flow.version({"a.csv": csv(50), "d/b.csv": csv(51), "d/c/1": b"1"}, "a.csv", "d/b.csv", "d/c")
        assert sorted(v.path for v in flow.push("d").sent) == [b"d/b.csv", b"d/c"]
        assert [v.path for v in flow.push("a.csv").sent] == [b"a.csv"]

    def test_two_ways_to_say_it_are_refused(self, flow: Flow) -> None:
        flow.version({"a.csv": csv(50)}, "a.csv")
        with pytest.raises(UsageError):
            flow.push(only_head=True, all_branches=True)

    def test_a_dry_run_sends_nothing(self, flow: Flow) -> None:
        flow.version({"a.csv": csv(50)}, "a.csv")
        assert len(flow.push(dry_run=True).sent) == 1
        assert not flow.remote_dir.exists()
        assert flow.status().not_pushed == 1

    def test_a_clone_that_never_pulled_pushes_its_edit_of_a_partly_pulled_folder(
        self, flow: Flow, tmp_path: Path
    ) -> None:
        files = {f"images/{part}/{i}": noise(100, i) for part in ("train", "val") for i in range(300)}
        flow.version(files, "images")
        flow.push()
        clone = flow.clone(tmp_path / "b")
        clone.pull("images/val")
        assert sorted(clone.data()) == sorted(os.fsencode(f) for f in files if "/val/" in f)
        clone.version({"images/val/new": b"new"}, "images")
        assert clone.pointer("images").files == 601
        assert clone.status().not_pushed == 1
        clone.push()
        assert clone.status().not_pushed == 0
        flow.git("pull", "-q", str(clone.top), "main")
        assert flow.status().clean is False
        flow.pull()
        assert flow.read("images/val/new") == b"new" and len(flow.data()) == 601
        third = clone.clone(tmp_path / "c")
        third.pull()
        assert third.data() == flow.data()


def test_without_a_store_the_next_version_replaces_the_last_one(flow: Flow, tmp_path: Path) -> None:
    """`pull --no-store` keeps no copy, and knows all the same what came from the remote and what is the user's."""
    one = flow.version({"t.csv": csv(1000), "d/1": b"1", "d/2": b"2", "d/x/3": b"3"}, "t.csv", "d")
    flow.write({"t.csv": csv(1001), "d/1": b"one"})
    flow.remove("d/2")
    flow.add(update=True)
    two = flow.commit()
    now = flow.data()
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.git("checkout", "-q", one)
    clone.pull("d/x", store=False)
    clone.pull("d/1", store=False)
    assert sorted(clone.data()) == [b"d/1", b"d/x/3"]
    clone.pull("d", "t.csv", store=False)
    clone.git("checkout", "-q", two)
    clone.pull(store=False)
    assert clone.data() == now
    clone.write({"d/1": b"mine"})
    clone.git("checkout", "-q", one)
    assert [e.subject for e in clone.pull(store=False, ok=False).failures] == ["d/1"]
    assert clone.read("d/1") == b"mine"
    clone.write({"d/1": b"one"})
    clone.git("checkout", "-q", two)
    clone.pull()
    assert clone.data() == now and clone.status().clean
