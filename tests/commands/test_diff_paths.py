"""`diff` of paths and folders: every kind of change between any two sides, told without reading data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flowkit import Flow, noise

from dvk.commands.diff import diff
from dvk.commands.diff_plain import diff_files
from dvk.commands.diff_result import DiffResult, PathDiff
from dvk.errors import DvkError, NotFound, Refused, UsageError


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


@contextmanager
def compared(flow: Flow, *paths: str, folder: str = "", **options: Any) -> Iterator[DiffResult]:
    options.setdefault("contents", False)
    with flow.repo(folder) as repo, diff(repo, paths, **options) as result:
        yield result


def statuses(flow: Flow, *paths: str, **options: Any) -> dict[str, str]:
    with compared(flow, *paths, **options) as result:
        assert result.failures == [], [str(e) for e in result.failures]
        return {os.fsdecode(p.path): p.status for p in result.paths}


def one(flow: Flow, *paths: str, **options: Any) -> PathDiff:
    with compared(flow, *paths, **options) as result:
        assert result.failures == [] and len(result.paths) == 1, result
        return result.paths[0]


def files(path: PathDiff) -> list[str]:
    """`+new -gone ~changed old>new` by path."""
    signs = {"added": "+", "removed": "-", "modified": "~"}
    assert path.files is not None
    return [
        f"{os.fsdecode(r.old_path)}>{os.fsdecode(r.path)}" if r.old_path else signs[r.change] + os.fsdecode(r.path)
        for r in path.files.rows()
    ]


# ---------------------------------------------------------------- sides


def test_without_a_revision_it_is_what_is_not_staged_as_in_git(flow: Flow) -> None:
    flow.version({"a": b"1", "b": b"2"}, "a", "b")
    flow.write({"a": b"11"})
    assert statuses(flow) == {"a": "changed", "b": "unchanged"}
    flow.add("a")
    assert statuses(flow) == {"a": "unchanged", "b": "unchanged"}
    assert statuses(flow, staged=True)["a"] == statuses(flow, a="HEAD")["a"] == "changed"
    flow.commit()
    assert statuses(flow, staged=True)["a"] == "unchanged"


def test_before_the_first_commit_all_that_is_staged_is_new(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "x", tmp_path, init=False)
    flow.top.mkdir()
    flow.git("init", "-q")
    flow.write({"a": b"1"})
    flow.add("a")
    assert statuses(flow, staged=True) == {"a": "added"} and statuses(flow) == {"a": "unchanged"}


def test_two_revisions_a_range_and_what_a_branch_did_since_it_left(flow: Flow) -> None:
    first = flow.version({"a": b"1", "gone": b"g"}, "a", "gone")
    flow.git("checkout", "-q", "-b", "side")
    flow.write({"a": b"22"})
    flow.remove("gone", "gone.dvk")
    flow.add("a")
    flow.git("add", "-A")
    flow.commit()
    flow.git("checkout", "-q", "main")
    flow.version({"new": b"n"}, "new")
    want = {"a": "changed", "gone": "removed", "new": "removed"}
    assert statuses(flow, a="main", b="side") == statuses(flow, a="main..side") == want
    assert statuses(flow, a="main...side") == {"a": "changed", "gone": "removed"}
    assert statuses(flow, a=f"{first}..") == {"a": "unchanged", "gone": "unchanged", "new": "added"}
    with compared(flow, a="main...side") as result:
        base = flow.git("merge-base", "main", "side")[:12]
        assert (result.a, result.b) == (f"merge base {base}", "side"), "not A...B, which would read as A...B against B"


def test_revisions_that_make_no_sense_are_refused(flow: Flow) -> None:
    flow.version({"a": b"1"}, "a")
    for options, error in (
        ({"a": "nope"}, NotFound),
        ({"a": "HEAD", "b": "HEAD", "staged": True}, UsageError),
        ({"a": "HEAD..HEAD", "staged": True}, UsageError),
        ({"a": "--output=x"}, UsageError),
    ):
        with flow.repo() as repo, pytest.raises(error):
            diff(repo, **options)  # type: ignore[arg-type]
    flow.git("checkout", "-q", "--orphan", "other")
    flow.git("commit", "-q", "--allow-empty", "-m", "alone")
    with flow.repo() as repo, pytest.raises(NotFound, match="no commit in common"):
        diff(repo, a="main...other")


def test_a_path_that_nobody_tracks_is_named_with_what_to_do(flow: Flow) -> None:
    flow.version({"a": b"1", "plain": b"x"}, "a")
    for path in ("nope", "plain", "a/b"):
        with flow.repo() as repo, pytest.raises(NotFound):
            diff(repo, [path])


# ---------------------------------------------------------------- files


def test_files_are_told_by_size_and_new_bytes(flow: Flow) -> None:
    body = noise(2_000_000, 1)
    flow.version({"t.bin": body}, "t.bin")
    flow.version({"t.bin": body + noise(1000, 2)}, "t.bin")
    found = one(flow, a="HEAD~1", b="HEAD")
    assert found.a is not None and found.b is not None and found.new_bytes is not None
    assert (found.a.size, found.b.size) == (2_000_000, 2_001_000) and 1000 <= found.new_bytes < 200_000
    flow.write({"t.bin": b"x" + body + noise(1000, 2)})
    assert one(flow).new_bytes is None, "a file that was not named is not read"
    named = one(flow, "t.bin", contents=True)
    assert named.new_bytes is not None and 0 < named.new_bytes < 200_000, "its chunks are made as add would make them"


def test_a_mode_is_a_difference_and_a_touched_file_is_none(flow: Flow) -> None:
    flow.version({"a": b"1"}, "a")
    os.utime(flow.at("a"), (1, 1))
    assert statuses(flow) == {"a": "unchanged"}
    os.chmod(flow.at("a"), 0o755)
    assert statuses(flow) == {"a": "changed"}


def test_a_file_that_became_a_folder(flow: Flow) -> None:
    flow.version({"x": b"1"}, "x")
    flow.remove("x")
    flow.write({"x/a": b"1", "x/b": b"22"})
    found = one(flow)
    assert (found.status, found.a and found.a.kind, found.b and found.b.kind) == ("kind-changed", "file", "dir")
    assert found.b is not None and (found.b.files, found.b.size) == (2, 3)


def test_data_that_is_not_on_disk_is_missing_or_was_never_here(flow: Flow, tmp_path: Path) -> None:
    flow.version({"a": b"1", "im/1": b"1", "im/2": b"2"}, "a", "im")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    with compared(clone) as result:
        assert {p.status for p in result.paths} == {"not-present"} and result.equal
    clone.pull("a")
    clone.remove("a")
    with compared(clone) as result:
        assert {p.path: p.status for p in result.paths} == {b"a": "missing", b"im": "not-present"}
        assert [p.path for p in result.differing] == [b"a"]


# ---------------------------------------------------------------- folders


def test_files_of_a_folder_added_removed_changed_and_renamed(flow: Flow) -> None:
    flow.version({f"im/{i}": b"%d" % i * (i + 1) for i in range(9)}, "im")
    flow.write({"im/2": b"other", "im/sub/new": b"n", "im/moved": b"4" * 5})
    flow.remove("im/4", "im/7")
    want = ["~2", "-7", "4>moved", "+sub/new"]
    disk = one(flow)
    flow.version({}, "im")
    stored = one(flow, a="HEAD~1", b="HEAD")
    assert files(disk) == files(stored) == want
    assert disk.new_bytes == stored.new_bytes == 6
    assert stored.b is not None and stored.b.files == 9


def test_links_empty_folders_and_modes_inside(flow: Flow) -> None:
    flow.write({"im/a": b"1", "im/b": b"2"})
    os.symlink("a", flow.at("im/l"))
    flow.version({}, "im")
    os.unlink(flow.at("im/l"))
    os.symlink("b", flow.at("im/l"))
    os.mkdir(flow.at("im/empty"))
    os.chmod(flow.at("im/a"), 0o755)
    assert files(one(flow)) == ["~a", "+empty", "~l"]
    flow.version({}, "im")
    assert files(one(flow, a="HEAD~1", b="HEAD")) == ["~a", "+empty", "~l"]
    assert one(flow, "im/l", a="HEAD~1", b="HEAD").status == "changed"
    assert one(flow, "im/b", a="HEAD~1", b="HEAD").status == "unchanged"


def test_a_part_of_a_folder(flow: Flow) -> None:
    flow.version({"im/a/1": b"1", "im/a/2": b"2", "im/b": b"b"}, "im")
    flow.write({"im/a/1": b"x", "im/b": b"bb"})
    for when in ({}, {"a": "HEAD"}):
        assert files(one(flow, "im/a", **when)) == ["~a/1"]
        assert one(flow, "im/b", **when).status == "changed"
        assert one(flow, "im/a/2", **when).status == "unchanged"
    assert files(one(flow, "a", folder="im")) == ["~a/1"]
    flow.version({}, "im")
    part = one(flow, "im/a", a="HEAD~1", b="HEAD")
    assert (files(part), part.status, part.base) == (["~a/1"], "changed", b"im")
    flow.write({"im/c": b"c"})
    assert one(flow, "im/c").status == "added"
    flow.remove("im/b")
    assert one(flow, "im/b", a="HEAD").status in ("missing", "removed")


def test_what_nobody_asked_for_here_is_not_deleted(flow: Flow, tmp_path: Path) -> None:
    flow.version({f"im/{part}/{i}": b"%d" % i for part in ("train", "val") for i in range(5)}, "im")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    clone.pull("im/val")
    found = one(clone)
    assert (found.status, found.not_present) == ("unchanged", 5)
    clone.write({"im/val/1": b"one"})
    clone.remove("im/val/2")
    found = one(clone)
    assert (files(found), found.not_present) == (["~val/1", "-val/2"], 5)


def test_a_tracked_folder_and_a_file_tracked_by_itself_meet_under_one_name(flow: Flow) -> None:
    flow.version({"d/x": b"1", "d/y": b"2"}, "d")
    flow.git("rm", "-q", "--cached", "d.dvk")
    flow.remove("d.dvk")
    flow.version({"d/x": b"11"}, "d/x")
    assert one(flow, "d/x", a="HEAD~1", b="HEAD").status == "changed"
    assert statuses(flow, a="HEAD~1", b="HEAD") == {"d": "removed", "d/x": "added"}


def test_only_pages_that_differ_are_read(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    flow.version({f"im/{i:05d}": b"" for i in range(9000)}, "im")
    flow.version({"im/04000": b"x"}, "im")
    with flow.repo() as repo:
        loaded = []
        real = repo.store.load_page
        monkeypatch.setattr(repo.store, "load_page", lambda name: loaded.append(name) or real(name))
        with diff(repo, a="HEAD~1", b="HEAD", contents=False) as result:
            assert files(result.paths[0]) == ["~04000"]
        assert len(loaded) == 4, "two roots and two leaves"


def test_names_that_are_not_utf8(flow: Flow) -> None:
    flow.write({b"im/caf\xe9": b"1"})
    flow.version({}, "im")
    flow.write({b"im/caf\xe9": b"2"})
    assert [r.path for r in one(flow).files.rows()] == [b"caf\xe9"]  # type: ignore[union-attr]


# ---------------------------------------------------------------- remotes, failures


def test_a_fresh_clone_compares_versions_by_lists_from_the_remote(flow: Flow, tmp_path: Path) -> None:
    flow.version({"im/a": b"1", "im/b": b"2", "t": b"t"}, "im", "t")
    flow.version({"im/b": b"22"}, "im")
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    with compared(clone, a="HEAD~1", b="HEAD") as result:
        assert {p.path: p.status for p in result.paths} == {b"im": "changed", b"t": "unchanged"}
        assert files(result.paths[0]) == ["~b"] and result.remote == "origin"
    with compared(clone, a="HEAD~1", b="HEAD", fetch=False) as result:
        assert {p.path: p.status for p in result.paths} == {b"im": "changed", b"t": "unchanged"}
        assert result.paths[0].files is None and result.paths[0].b is not None and result.paths[0].b.size == 3
        assert [e.kind for e in result.failures] == ["data-missing"]
        assert "--no-fetch" in result.failures[0].hint


def test_a_broken_pointer_does_not_keep_the_others_from_being_compared(flow: Flow) -> None:
    flow.version({"a": b"1", "b": b"2"}, "a", "b")
    flow.write({"a": b"11", "b.dvk": b"<<<<<<< ours\n"})
    with compared(flow) as result:
        assert {p.path: p.status for p in result.paths} == {b"a": "changed"}
        assert [e.kind for e in result.failures] == ["malformed"]


def test_a_plain_folder_is_compared_with_its_pointers(flow: Flow, tmp_path: Path) -> None:
    flow.version({"a": b"1", "b": b"2"}, "a", "b")
    plain = Flow(tmp_path / "plain", tmp_path, init=False)
    plain.top.mkdir()
    plain.write({name: flow.read(name) for name in ("a", "a.dvk", "b", "b.dvk", "dvk.toml")})
    assert statuses(plain) == {"a": "unchanged", "b": "unchanged"}
    plain.write({"a": b"111"})
    assert statuses(plain) == {"a": "changed", "b": "unchanged"}
    with plain.repo() as repo, pytest.raises(DvkError):
        diff(repo, a="HEAD")


# ---------------------------------------------------------------- without a repository


def test_two_plain_folders(tmp_path: Path) -> None:
    for name, data in {
        "a/same": b"1", "a/changed": b"1", "a/size": b"1", "a/gone": b"g", "a/old": b"moved",
        "b/same": b"1", "b/changed": b"2", "b/size": b"11", "b/new": b"n", "b/sub/fresh": b"moved",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with diff_files(str(tmp_path / "a"), str(tmp_path / "b")) as result:
        assert files(result.paths[0]) == ["~changed", "-gone", "+new", "~size", "old>sub/fresh"]
    with diff_files(str(tmp_path / "a"), str(tmp_path / "a")) as result:
        assert result.equal


def test_plain_files_and_what_cannot_be_compared(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "pipe")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with diff_files(a, b) as result:
        assert result.paths[0].status == "changed" and not result.equal
    with diff_files(a, a) as result:
        assert result.equal
    for other, error in (("d", Refused), ("pipe", Refused), ("nope", NotFound)):
        with pytest.raises(error):
            diff_files(a, str(tmp_path / other))
