"""What of a folder is not here was not asked for, and is never taken for deleted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flowkit import Flow, failure_of

from dvk.errors import DataMissing, NotFound, Refused

FILES = {
    f"images/{part}/{i:05d}": b"%s %d" % (part.encode(), i) for part in ("test", "train", "val") for i in range(60)
}


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    out = Flow(tmp_path / "a", tmp_path)
    out.version(FILES, "images")
    out.push()
    return out


@pytest.fixture
def clone(flow: Flow, tmp_path: Path) -> Flow:
    """A clone that pulled one of three parts."""
    out = flow.clone(tmp_path / "b")
    done = out.pull("images/val")
    assert (done.checkout.paths[0].written, done.not_present) == (60, 120)
    return out


def sizes(top: Path, name: str, count: int) -> dict[str | bytes, bytes]:
    return {f"{name}/{i % 100:02d}/{i:05d}": b"%020d" % i for i in range(count)}


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_one_more_file_in_a_large_folder_of_which_a_part_is_here(tmp_path: Path, count: int) -> None:
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version(sizes(tmp_path, "images", count), "images")
    assert flow.pointer("images").files == count
    flow.push()
    clone = flow.clone(tmp_path / "b")
    done = clone.pull("images/07")
    assert done.not_present == count - count // 100
    assert len(clone.data()) == count // 100
    clone.write({"images/07/new": b"one", "images/elsewhere/new": b"two"})
    [added] = clone.add("images/07/new").paths
    assert (added.files, added.added, added.removed, added.modified) == (count + 1, 1, 0, 0)
    if count > 10_000:  # then the list of files has pages that were not fetched
        error = failure_of(lambda: clone.add("images"))
        assert error.subject == "images/elsewhere/new" and "dvk fetch images/elsewhere/new" in error.hint
        clone.fetch("images/elsewhere/new")
    [added] = clone.add("images").paths
    assert (added.files, added.added, added.removed, added.modified) == (count + 2, 1, 0, 0)
    clone.remove("images/07/00007")
    [added] = clone.add("images").paths
    assert (added.files, added.added, added.removed, added.modified) == (count + 1, 0, 1, 0)
    clone.commit()
    clone.push()
    flow.git("pull", "-q", str(clone.top), "main")
    flow.pull()
    assert len(flow.data()) == count + 1
    assert not flow.exists("images/07/00007") and flow.read("images/elsewhere/new") == b"two"


def test_status_counts_what_is_not_present_and_misses_nothing(clone: Flow) -> None:
    one = clone.one("images")
    assert (one.not_present, one.missing, one.modified, one.added, one.clean) == (120, 0, 0, 0, True)
    clone.remove("images/val/00003")
    clone.write({"images/val/00004": b"edited", "images/val/new": b"new"})
    one = clone.one("images")
    assert (one.not_present, one.missing, one.modified, one.added, one.clean) == (120, 1, 1, 1, False)


def test_a_deleted_file_of_the_part_that_is_here_is_one_deletion(clone: Flow) -> None:
    clone.remove("images/val/00003")
    [added] = clone.add("images").paths
    assert (added.files, added.removed, added.added, added.not_present) == (179, 1, 0, 120)
    assert clone.one("images").clean is False  # staged
    clone.commit()
    assert clone.one("images").clean


def test_a_named_path_that_is_gone_is_one_deletion(clone: Flow) -> None:
    clone.remove("images/val/00003")
    [added] = clone.add("images/val/00003").paths
    assert (added.files, added.removed) == (179, 1)


def test_a_new_file_outside_of_the_selected_part_joins_it(clone: Flow) -> None:
    clone.write({"images/train/new": b"new"})
    [added] = clone.add("images").paths
    assert (added.files, added.added, added.removed) == (181, 1, 0)
    assert clone.one("images").missing == 0
    clone.remove("images/train/new")
    assert clone.one("images").missing == 1
    [added] = clone.add("images").paths
    assert (added.files, added.removed) == (180, 1)


def test_a_subfolder_that_was_never_asked_for_can_be_replaced_by_name(clone: Flow) -> None:
    clone.write({"images/train/00001": b"mine"})
    [added] = clone.add("images/train/00001").paths
    assert (added.files, added.modified, added.removed) == (180, 1, 0)
    [added] = clone.add("images").paths
    assert (added.files, added.changed) == (180, False)


class TestNamesThatAreTaken:
    """A name on disk that files which are not here need is refused, and nothing of them is lost."""

    def test_a_file_where_a_directory_is_that_is_not_here(self, clone: Flow) -> None:
        clone.write({"images/train": b"a file"})
        for argument in ("images", "images/train"):
            error = failure_of(lambda argument=argument: clone.add(argument))
            assert isinstance(error, Refused) and error.subject == "images/train" and "images" in error.hint
        assert clone.pointer("images").files == 180

    def test_a_directory_where_a_file_is_that_is_not_here(self, clone: Flow) -> None:
        clone.write({"images/train/00001/x": b"x"})
        for argument in ("images", "images/train", "images/train/00001/x"):
            error = failure_of(lambda argument=argument: clone.add(argument))
            assert isinstance(error, Refused) and error.subject == "images/train/00001/x"
        assert clone.pointer("images").files == 180

    def test_an_empty_directory_is_where_they_would_be(self, clone: Flow) -> None:
        os.makedirs(clone.at("images/train"))
        os.makedirs(clone.at("images/really empty"))
        [added] = clone.add("images").paths
        assert (added.files, added.added, added.removed) == (180, 1, 0)
        [added] = clone.add("images/train").paths
        assert (added.files, added.changed) == (180, False)

    def test_what_was_here_may_change_its_kind(self, clone: Flow) -> None:
        for i in range(60):
            clone.remove(f"images/val/{i:05d}")
        os.rmdir(clone.at("images/val"))
        clone.write({"images/val": b"a file now"})
        [added] = clone.add("images").paths
        assert (added.files, added.added, added.removed) == (121, 1, 60)

    def test_a_subfolder_of_which_a_part_is_here(self, clone: Flow) -> None:
        clone.pull("images/train/00007")
        clone.write({"images/train/00007": b"edited"})
        [added] = clone.add("images/train").paths
        assert (added.files, added.modified, added.removed) == (180, 1, 0)
        error = failure_of(lambda: clone.add("images/train/00009"))
        assert isinstance(error, NotFound) and "dvk rm" in error.hint


class TestAnEditThatWasNotPushed:
    """The folder's new version is on no remote, and the parts that were not asked for yet still are."""

    @pytest.mark.parametrize("committed", [False, True])
    def test_other_parts_can_be_had(self, flow: Flow, clone: Flow, committed: bool) -> None:
        clone.write({"images/val/new": b"new"})
        clone.remove("images/val/00003")
        clone.add("images")
        if committed:
            clone.commit()
        clone.pull("images/train/00007")
        clone.pull("images/test")
        assert clone.read("images/train/00007") == flow.read("images/train/00007")
        clone.pull("images")
        want = flow.data() | {b"images/val/new": clone.data()[b"images/val/new"]}
        del want[b"images/val/00003"]
        assert clone.data() == want

    def test_what_nobody_has_is_still_named(self, flow: Flow, clone: Flow, tmp_path: Path) -> None:
        flow.version({"images/test/new": b"never pushed"}, "images")
        clone.git("pull", "-q")
        [error] = clone.pull("images/test", ok=False).failures
        assert isinstance(error, DataMissing) and error.subject == "images"
        flow.push()
        clone.pull("images/test")
        assert clone.read("images/test/new") == b"never pushed"


def test_checkout_keeps_to_the_selection(flow: Flow, clone: Flow) -> None:
    flow.version({"images/val/00001": b"edit", "images/train/00001": b"edit"}, "images")
    flow.push()
    clone.git("pull", "-q")
    assert clone.pull().not_present == 120
    assert clone.read("images/val/00001") == b"edit"
    assert len(clone.data()) == 60
    clone.pull("images")
    assert clone.data() == flow.data()
    assert clone.one("images").not_present == 0


@pytest.mark.parametrize("lost", ["selection.json", "the whole state"])
def test_without_the_record_missing_files_are_a_question(clone: Flow, lost: str) -> None:
    state = clone.top / ".git/dvk"
    with clone.repo() as repo:
        state = Path(os.fsdecode(repo.state))
    os.unlink(state / "selection.json")
    before = clone.pointer("images")
    clone.write({"images/val/new": b"new"})
    clone.remove("images/val/00003")
    error = failure_of(lambda: clone.add("images"))
    assert isinstance(error, Refused) and error.subject == "images"
    assert "--keep-missing" in error.hint and "--delete-missing" in error.hint and "121" in error.message
    assert clone.pointer("images") == before
    if lost == "selection.json":
        [added] = clone.add("images", keep_missing=True).paths
        assert (added.files, added.added, added.removed) == (181, 1, 0)
        assert clone.one("images").clean is False
        assert (clone.one("images").missing, clone.one("images").not_present) == (0, 121)
    else:
        [added] = clone.add("images", delete_missing=True).paths
        assert (added.files, added.added, added.removed) == (60, 1, 121)
        assert (clone.one("images").missing, clone.one("images").not_present) == (0, 0)
    assert clone.add("images").paths[0].changed is False


def test_a_fresh_clone_that_pulled_nothing_is_asked_too(flow: Flow, tmp_path: Path) -> None:
    clone = flow.clone(tmp_path / "c")
    clone.write({"images/val/mine": b"mine"})
    error = failure_of(lambda: clone.add("images"))
    assert error.subject == "images" and error.hint
    assert clone.pointer("images").files == 180
    clone.fetch("images/val")
    [added] = clone.add("images", keep_missing=True).paths
    assert (added.files, added.added) == (181, 1)
    assert clone.add("images/val/mine").paths[0].files == 181


def test_one_file_of_a_folder_can_be_pulled_and_edited(flow: Flow, tmp_path: Path) -> None:
    clone = flow.clone(tmp_path / "c")
    clone.pull("images/val/00007")
    assert sorted(clone.data()) == [b"images/val/00007"]
    clone.write({"images/val/00007": b"edited"})
    [added] = clone.add(update=True).paths
    assert (added.files, added.modified, added.removed) == (180, 1, 0)
    clone.remove("images/val/00007")
    assert clone.add("images").paths[0].files == 179
    assert clone.pull(ok=True).not_present == 179


def test_a_part_of_another_version_does_not_make_the_rest_the_users_own(tmp_path: Path) -> None:
    """What is left of the version before, outside of that part, still goes with the checkout of the rest."""
    flow = Flow(tmp_path / "work", tmp_path)
    first = {"f/a": b"1", "f/gone": b"2", "f/into/folder": b"3", "f/link/x": b"4"}
    flow.version(first, "f")
    flow.remove(*first)
    for name in ("into", "link"):
        os.rmdir(flow.top / "f" / name)
    flow.version({"f/a": b"5", "f/into": b"6"}, "f")
    flow.switch("HEAD~1")
    assert flow.data("f").keys() == {name.encode() for name in first}
    flow.git("checkout", "-q", "-")
    flow.checkout("f/a")
    assert flow.read("f/a") == b"5" and flow.read("f/gone") == b"2"
    flow.checkout()
    assert flow.data("f").keys() == {b"f/a", b"f/into"}
    assert not flow.add("f").paths[0].changed


def test_a_link_from_a_part_to_the_rest_of_the_folder(tmp_path: Path) -> None:
    """What `add` of a folder takes `add` of a part of it takes, too, and no more."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"f/a": b"1", "f/part/b": b"2", "f/part/deep/c": b"3"}, "f")
    before = flow.pointer("f")
    os.symlink("../a", flow.top / "f/part/link")
    os.symlink("../../a", flow.top / "f/part/deep/link")
    flow.add("f/part")
    by_part = flow.pointer("f")
    flow.add("f")
    assert flow.pointer("f") == by_part != before
    os.symlink("../../x", flow.top / "f/part/out")
    assert isinstance(failure_of(lambda: flow.add("f/part")), Refused)
    assert flow.pointer("f") == by_part
