"""`dvk mv`: data, pointer and what is known of them move together, never over anything; kills leave no loose end."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from workbench import Bench

from dvk.commands.checkout import checkout
from dvk.commands.move import MoveResult, move
from dvk.commands.move_plan import Moved
from dvk.commands.status import status
from dvk.errors import DvkError, NotFound, Refused, StorageError, UsageError
from dvk.workspace import handles
from dvk.workspace.repo import Workspace
from dvk.workspace.selection import Selected, Selection, edit
from dvk.workspace.statcache import StatCache

IMAGES: dict[str | bytes, bytes] = {f"images/{d}/{i}.jpg": f"{d}{i}".encode() * 50 for d in "ab" for i in range(3)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work", tmp_path / "home")


def mv(bench: Bench, *paths: str | bytes, cwd: str = "", dry_run: bool = False) -> MoveResult:
    *sources, destination = paths
    with bench.open(cwd) as repo:
        return move(repo, sources, destination, dry_run=dry_run)


def clean(bench: Bench) -> bool:
    """Whether data and pointers agree everywhere and Git sees no data."""
    with bench.open() as repo:
        found, problems = status(repo)
    assert problems == [] and found.left_behind == []
    differs = [p for p in found.paths if p.modified or p.added or p.missing or p.unstaged or p.not_fetched]
    return not differs and bench.seen_by_git() == []


def test_a_rename_that_was_done_and_is_not_durable_is_finished_by_the_same_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to take back the new pointer and leave the data there, and the second run moved `images` into it."""
    bench.add_commit(IMAGES, "images")

    def fails(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("dvk.commands.move.sync_fd", fails)
        with pytest.raises(StorageError):
            mv(bench, "images", "pictures")
    mv(bench, "images", "pictures")
    assert clean(bench) and bench.read("pictures/a/0.jpg") == IMAGES["images/a/0.jpg"]
    assert not (bench.top / "images.dvk").exists() and not (bench.top / "pictures/images.dvk").exists()


def test_a_file_and_its_pointer_get_a_new_name(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1,2\n"}, "a.csv")
    pointer = bench.read("a.csv.dvk")
    found = mv(bench, "a.csv", "b.csv")
    assert found.paths == [Moved(b"a.csv", b"b.csv", "file", files=1, on_disk=True)]
    assert bench.files() == {"b.csv": b"1,2\n", "b.csv.dvk": pointer}
    assert bench.staged() == ["D  a.csv.dvk", "A  b.csv.dvk"] and bench.hidden() == [b"b.csv"]
    assert clean(bench)


def test_pointer_names_mean_the_data(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    mv(bench, "a.csv.dvk", "b.csv.dvk")
    assert sorted(bench.files()) == ["b.csv", "b.csv.dvk"]


def test_a_folder_moves_with_its_selection_and_its_stat_cache(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    mv(bench, "images", "pictures")
    with bench.open() as repo:
        selection = Selection.load(repo.state)
        assert selection.folders == {b"pictures": Selected(None)}
        assert StatCache.load(repo.state, b"pictures") is not None
        assert StatCache.load(repo.state, b"images") is None
    assert bench.read("pictures/a/1.jpg") == IMAGES["images/a/1.jpg"] and not bench.exists("images")
    assert clean(bench)


def test_changes_that_were_not_added_move_along(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    bench.put({"a.csv": b"changed"})
    mv(bench, "a.csv", "b.csv")
    assert bench.read("b.csv") == b"changed"


def test_several_paths_into_a_folder(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", "b.csv": b"2", "archive/keep": b""}, "a.csv", "b.csv")
    mv(bench, "a.csv", "b.csv", "archive")
    assert {"archive/a.csv", "archive/a.csv.dvk", "archive/b.csv", "archive/b.csv.dvk"} <= set(bench.files())


def test_into_the_top_from_a_subfolder(bench: Bench) -> None:
    bench.add_commit({"sub/a.csv": b"1"}, "sub/a.csv")
    mv(bench, "a.csv", "..", cwd="sub")
    assert sorted(bench.files()) == ["a.csv", "a.csv.dvk"] and clean(bench)


def test_data_that_is_not_here_moves_as_a_pointer(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    (bench.top / "a.csv").unlink()
    assert mv(bench, "a.csv", "b.csv").paths[0].on_disk is False
    with bench.open() as repo:
        checkout(repo)
    assert bench.read("b.csv") == b"1"


@pytest.mark.parametrize("there", ["b.csv", "images", "images.dvk"])
def test_nothing_is_overwritten(bench: Bench, there: str) -> None:
    bench.add_commit({"a.csv": b"1", **IMAGES}, "a.csv", "images")
    bench.put({"b.csv": b"somebody's"})
    if there == "images.dvk":
        shutil.rmtree(bench.top / "images")
    before = bench.files()
    with pytest.raises(Refused):
        mv(bench, "a.csv", there)
    assert bench.files() == before and bench.staged() == []


def test_the_same_folder_twice_and_a_folder_into_itself(bench: Bench) -> None:
    bench.add_commit({"x/a.csv": b"1", "y/a.csv": b"2", "z/keep": b"", **IMAGES}, "x/a.csv", "y/a.csv", "images")
    with pytest.raises(UsageError, match="two paths"):
        mv(bench, "x/a.csv", "y/a.csv", "z")
    with pytest.raises(UsageError, match="already"):
        mv(bench, "x/a.csv", "x/a.csv")
    with pytest.raises(UsageError, match="into itself"):
        mv(bench, "images", "images")


def test_what_is_wrong_is_named_with_the_way_out(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", "data/b.csv": b"2", **IMAGES, "plain": b""}, "a.csv", "data/b.csv", "images")
    for sources, kind, hint in [
        (("plain", "other"), NotFound, "dvk ls"),
        (("data", "other"), Refused, "dvk mv data/b.csv other"),
        (("a.csv", "none/a.csv"), NotFound, "mkdir -p none"),
        (("a.csv", "none/"), NotFound, "mkdir -p none"),
        (("a.csv", "images/a.csv"), Refused, "dvk rm --cached a.csv"),
        (("a.csv", "images"), Refused, "dvk rm --cached a.csv"),
        (("images/a/1.jpg", "1.jpg"), Refused, "dvk add 1.jpg"),
        (("images/none", "images/x"), NotFound, "dvk ls images"),
        (("images/a", "images/b/0.jpg/x"), Refused, ""),
    ]:
        with pytest.raises(kind) as caught:
            mv(bench, *sources)
        assert hint in caught.value.hint, (sources, caught.value.hint)
    assert bench.staged() == []


def test_one_bad_source_keeps_all_from_moving(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", "archive/keep": b""}, "a.csv")
    with pytest.raises(NotFound):
        mv(bench, "a.csv", "nothing", "archive")
    assert bench.exists("a.csv")


def test_dry_run_changes_nothing(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    before = bench.files()
    assert mv(bench, "a.csv", "b.csv", dry_run=True).dry_run
    assert bench.files() == before and bench.hidden() == [b"a.csv"]


def test_odd_names(bench: Bench) -> None:
    bench.add_commit({b"caf\xe9": b"1", "-x": b"2"}, b"caf\xe9", "-x")
    mv(bench, b"caf\xe9", b"new\nli\xffne")
    mv(bench, "-x", "--y")
    assert bench.read(b"new\nli\xffne") == b"1" and bench.read("--y") == b"2"


# ---------------------------------------------------------------- inside a folder


def test_a_file_inside_a_folder(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    found = mv(bench, "images/a/1.jpg", "images/b/new.jpg")
    assert found.paths == [Moved(b"images/a/1.jpg", b"images/b/new.jpg", "file", b"images", 1, True)]
    assert bench.read("images/b/new.jpg") == IMAGES["images/a/1.jpg"] and not bench.exists("images/a/1.jpg")
    assert bench.staged() == ["M  images.dvk"] and clean(bench)


def test_directories_inside_a_folder_and_several_moves_at_once(bench: Bench) -> None:
    bench.add_commit({**IMAGES, "images/c/x": b"x"}, "images")
    mv(bench, "images/a", "images/b", "images/c")
    expected = {f"images/c/{d}/{i}.jpg" for d in "ab" for i in range(3)} | {"images/c/x", "images.dvk"}
    assert set(bench.files()) == expected
    assert not bench.exists("images/a") and clean(bench)


def test_moving_the_last_file_out_of_a_directory_removes_it(bench: Bench) -> None:
    bench.add_commit({"images/deep/er/x": b"x", "images/y": b"y"}, "images")
    mv(bench, "images/deep/er/x", "images/x")
    assert sorted(bench.files()) == ["images.dvk", "images/x", "images/y"] and not bench.exists("images/deep")
    assert clean(bench)


def test_entries_that_are_not_here_move_and_stay_not_here(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    with bench.open() as repo, edit(repo.state) as selection:
        selection.folders[b"images"] = Selected((b"a",))
    shutil.rmtree(bench.top / "images/b")
    mv(bench, "images/b", "images/z")
    mv(bench, "images/a/1.jpg", "images/one.jpg")
    with bench.open() as repo:
        assert Selection.load(repo.state).get(b"images") == Selected((b"a", b"one.jpg"))
        assert repo.workspace.read_pointer(b"images").files == 6
    assert not bench.exists("images/z") and clean(bench)


def test_entries_are_not_overwritten_even_when_they_are_not_here(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    (bench.top / "images/b/1.jpg").unlink()
    with pytest.raises(Refused, match="already"):
        mv(bench, "images/a/1.jpg", "images/b/1.jpg")
    bench.put({"images/new": b"not added"})
    with pytest.raises(Refused, match="already"):
        mv(bench, "images/a/1.jpg", "images/new")


def test_a_plain_mv_is_taken_from_there(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", **IMAGES}, "a.csv", "images")
    (bench.top / "a.csv").rename(bench.top / "b.csv")
    (bench.top / "images/a").rename(bench.top / "images/z")
    mv(bench, "a.csv", "b.csv")
    mv(bench, "images/a", "images/z")
    assert clean(bench)


# ---------------------------------------------------------------- kills

STEPS: list[tuple[Any, str]] = [
    (Workspace, "write_pointer"),
    (Workspace, "remove_pointer"),
    ("dvk.commands.move.rename_new", ""),
    ("dvk.commands.move.stage_pointers", ""),
    ("dvk.commands.move.in_other_worktree", ""),
]


@pytest.mark.parametrize(("owner", "name"), STEPS)
@pytest.mark.parametrize(("source", "target"), [("a.csv", "b.csv"), ("images", "pictures"), ("images/a", "images/z")])
def test_a_killed_move_is_finished_by_the_same_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, source: str, target: str
) -> None:
    """Whatever step the process dies at, Git sees no data, and a second run ends where an undisturbed one would."""
    bench.add_commit({"a.csv": b"1", **IMAGES}, "a.csv", "images")
    bench.put({"images/a/1.jpg": b"changed and never added"})

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if name:
            patch.setattr(owner, name, killed)
        else:
            patch.setattr(owner, killed)
        if name == "remove_pointer":  # the last thing before the kill: nothing may be tidied up afterwards
            patch.setattr("dvk.commands.move.stage_pointers", killed)
        try:
            mv(bench, source, target)
        except Killed:
            pass
    assert not [p for p in bench.seen_by_git() if not p.endswith(".dvk")]
    try:
        mv(bench, source, target)
    except NotFound:
        pass  # it was done but for what is only tidiness
    except Refused:
        # Changed data at its new place cannot be told from somebody else's: `dvk add` records it.
        assert "/" in source
        bench.add(source.split("/")[0])
    files = bench.files()
    assert files.get("b.csv" if source == "a.csv" else "a.csv") == b"1"
    assert b"changed and never added" in files.values()
    assert not bench.exists(source)
    assert bench.seen_by_git() == []


def test_a_rename_that_fails_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    before = bench.files()

    def fails(*_: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dvk.commands.move.rename_new", fails)
    with pytest.raises(StorageError):
        mv(bench, "a.csv", "b.csv")
    assert bench.files() == before and bench.staged() == []


def test_where_a_rename_cannot_refuse_to_replace_it_looks_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    monkeypatch.setattr("dvk.commands.move.rename_new", lambda *_: False)
    mv(bench, "a.csv", "b.csv")
    assert bench.read("b.csv") == b"1" and clean(bench)


def test_a_link_on_the_way_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    (tmp_path / "outside").mkdir()
    (bench.top / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(DvkError):
        mv(bench, "a.csv", "link/a.csv")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_moved_file_needs_no_reading(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stat cache follows a rename although it changes the ctime."""
    import os
    import time

    bench.put({"a.csv": b"1"})
    old = time.time() - 100
    os.utime(bench.top / "a.csv", (old, old))
    time.sleep(0.05)
    bench.add("a.csv")
    bench.commit()
    mv(bench, "a.csv", "b.csv")
    opened: list[bytes] = []
    real: Callable[..., int] = handles.open_regular

    def counted(dirs: Any, path: bytes) -> int:
        opened.append(path)
        return real(dirs, path)

    monkeypatch.setattr("dvk.workspace.source.open_regular", counted, raising=False)
    assert clean(bench) and opened == []
