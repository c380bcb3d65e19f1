"""`dvk rm`: what it takes away, what it refuses to take, and what a kill in the middle leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workbench import Bench

from dvk.backend.local import LocalBackend
from dvk.commands.add import add
from dvk.commands.checkout import checkout
from dvk.commands.move import move
from dvk.commands.push import push
from dvk.commands.remove import Removed, RemoveResult, remove
from dvk.commands.status import status
from dvk.errors import DvkError, FormatError, NotFound, Refused, StorageError, UsageError
from dvk.events import Event, Note
from dvk.workspace.repo import Workspace
from dvk.workspace.selection import Selection

IMAGES: dict[str | bytes, bytes] = {f"images/{d}/{i}.jpg": f"{d}{i}".encode() * 50 for d in "ab" for i in range(3)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work", tmp_path / "home")


def rm(bench: Bench, *paths: str | bytes, notes: list[Event] | None = None, **options: bool) -> RemoveResult:
    with bench.open() as repo:
        return remove(repo, paths, on_event=notes.append if notes is not None else lambda _: None, **options)


def test_a_folder_that_the_disk_does_not_list_stops_it_and_one_that_stays_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add_commit(IMAGES, "images")
    inner, real = os.stat(bench.top / "images/a").st_ino, os.scandir

    def hides(fd: int) -> Iterator[os.DirEntry[str]]:
        if os.stat(fd).st_ino == inner:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd)

    def fails(*_args: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "scandir", hides)
        with pytest.raises(StorageError, match="read"):
            rm(bench, "images")
    assert bench.read("images.dvk") and bench.read("images/b/0.jpg")
    with monkeypatch.context() as broken:
        broken.setattr(os, "rmdir", fails)
        assert [type(e) for e in rm(bench, "images/a", recursive=True).failures] == [StorageError]
    assert rm(bench, "images/a", recursive=True).failures == [] and not (bench.top / "images/a").exists()
    with bench.open() as repo:
        assert not any(p.added or p.missing for p in status(repo)[0].paths)


def test_a_file_goes_with_pointer_rule_and_data_and_is_staged_as_deleted(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1,2\n"}, "a.csv")
    found = rm(bench, "a.csv")
    assert found.paths == [Removed(b"a.csv", "file", files=1, size=4, deleted=1)]
    assert (found.staged, found.not_staged, found.failures) == (1, "", [])
    assert not bench.exists("a.csv") and not bench.exists("a.csv.dvk")
    assert bench.staged() == ["D  a.csv.dvk"] and bench.hidden() == []


def test_the_pointer_names_the_data_too(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    assert rm(bench, "a.csv.dvk").paths[0].path == b"a.csv"
    assert not bench.exists("a.csv")


def test_what_was_removed_comes_back_from_history(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1,2\n"}, "a.csv")
    rm(bench, "a.csv")
    bench.commit("gone")
    with bench.open() as repo:
        checkout(repo, ["a.csv"], rev="HEAD~1")
    assert bench.read("a.csv") == b"1,2\n"
    assert bench.hidden() == [b"a.csv"]


def test_a_folder_goes_with_all_its_files_and_is_forgotten(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    found = rm(bench, "images")
    assert (found.paths[0].files, found.paths[0].deleted, found.paths[0].kept) == (6, 6, 0)
    assert bench.files() == {} and not bench.exists("images")
    with bench.open() as repo:
        assert Selection.load(repo.state).get(b"images") is None
        assert not list((bench.top / ".git/dvk/stat").iterdir())


@pytest.mark.parametrize("change", ["a.csv", "images/a/1.jpg"])
def test_data_that_was_changed_is_refused_and_everything_stays(bench: Bench, change: str) -> None:
    bench.add_commit({"a.csv": b"1,2\n", **IMAGES}, "a.csv", "images")
    bench.put({change: b"changed and never added"})
    before = bench.files()
    with pytest.raises(Refused, match=r"changed|brought back") as caught:
        rm(bench, "a.csv", "images")
    assert change.split("/")[0] in str(caught.value) and "--force" in caught.value.hint
    assert bench.files() == before and bench.staged() == []


def test_force_deletes_what_was_changed(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1,2\n", **IMAGES}, "a.csv", "images")
    bench.put({"a.csv": b"changed", "images/a/1.jpg": b"changed"})
    assert [p.deleted for p in rm(bench, "a.csv", "images", force=True).paths] == [1, 6]
    assert bench.files() == {}


def test_a_version_that_no_commit_has_is_refused(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    bench.put({"a.csv": b"2"})
    bench.add("a.csv")
    with pytest.raises(Refused, match="no commit has this version"):
        rm(bench, "a.csv")
    assert rm(bench, "a.csv", cached=True).paths[0].kept == 1
    assert bench.read("a.csv") == b"2"


def test_cached_leaves_the_data_and_says_that_git_sees_it(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", **IMAGES}, "a.csv", "images")
    notes: list[Event] = []
    found = rm(bench, "a.csv", "images", cached=True, notes=notes)
    assert [(p.deleted, p.kept) for p in found.paths] == [(0, 1), (0, 6)]
    assert bench.read("a.csv") == b"1" and bench.read("images/a/1.jpg") == IMAGES["images/a/1.jpg"]
    assert bench.seen_by_git() == ["a.csv", "images/"]
    said = [n for n in notes if isinstance(n, Note)]
    assert [n.subject for n in said] == ["a.csv", "images"] and all("Git sees it" in n.message for n in said)


def test_files_that_were_never_added_stay(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    bench.put({"images/a/new.jpg": b"never added", "images/.DS_Store": b"clutter"})
    found = rm(bench, "images")
    assert (found.paths[0].deleted, found.paths[0].kept) == (6, 1)
    assert bench.files() == {"images/a/new.jpg": b"never added", "images/.DS_Store": b"clutter"}


def test_missing_data_and_a_folder_of_which_only_a_part_is_here_are_no_obstacle(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", **IMAGES}, "a.csv", "images")
    (bench.top / "a.csv").unlink()
    (bench.top / "images/a/1.jpg").unlink()
    found = rm(bench, "a.csv", "images")
    assert [p.deleted for p in found.paths] == [0, 5]
    assert bench.files() == {}


def test_without_the_list_of_files_a_folder_on_disk_is_refused(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    store = bench.top / ".git/dvk/store"
    for pack in [*store.glob("m/*/*"), *store.glob("p/*/*"), *store.glob("i/*")]:
        pack.unlink()
    bench.put({"images/a/1.jpg": b"changed"})
    with pytest.raises(DvkError, match="not in this clone"):
        rm(bench, "images")
    rm(bench, "images", cached=True)
    assert bench.read("images/a/1.jpg") == b"changed"


def test_data_that_only_a_remote_holds_may_go(bench: Bench, tmp_path: Path) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    (bench.top / "dvk.toml").write_text(
        f'format = 1\n[core]\nremote = "origin"\n[remote.origin]\nurl = "{tmp_path / "remote"}"\n'
    )
    bench.environ["DVK_TRUST_REMOTES"] = f"file://{tmp_path}"
    with bench.open() as repo:
        push(repo)
    store = LocalBackend(str(bench.top / ".git/dvk/store"))
    for item in list(store.list("p/")):
        store.delete(item.key)
    assert rm(bench, "a.csv").paths[0].deleted == 1


def test_data_that_the_store_lost_is_refused(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    store = LocalBackend(str(bench.top / ".git/dvk/store"))
    for item in list(store.list("p/")):
        store.delete(item.key)
    with pytest.raises(Refused):
        rm(bench, "a.csv")
    assert bench.read("a.csv") == b"1"


# ---------------------------------------------------------------- inside a folder


def test_one_file_of_a_folder_goes_and_the_folder_has_a_new_version(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    found = rm(bench, "images/a/1.jpg", "images/b/2.jpg")
    assert [(p.path, p.inside, p.deleted) for p in found.paths] == [
        (b"images/a/1.jpg", b"images", 1),
        (b"images/b/2.jpg", b"images", 1),
    ]
    with bench.open() as repo:
        assert repo.workspace.read_pointer(b"images").files == 4
        (state,), problems = (lambda s, p: (s.paths, p))(*status(repo))
        assert (state.staged, state.modified, state.missing, state.added, problems) == ("modified", 0, 0, 0, [])
    assert bench.staged() == ["M  images.dvk"] and bench.hidden() == [b"images"]


def test_a_directory_of_a_folder_goes_and_so_do_directories_that_become_empty(bench: Bench) -> None:
    bench.add_commit({**IMAGES, "images/deep/er/x": b"x"}, "images")
    rm(bench, "images/a", "images/deep/er/x")
    assert not bench.exists("images/a") and not bench.exists("images/deep")
    with bench.open() as repo:
        found, _ = status(repo)
        assert (found.paths[0].added, found.paths[0].missing, found.paths[0].files) == (0, 0, 3)


def test_two_removals_from_one_folder_need_no_commit_in_between(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    rm(bench, "images/a/1.jpg")
    rm(bench, "images/a/2.jpg")
    assert rm(bench, "images", dry_run=True).paths[0].deleted == 4
    assert sorted(bench.files()) == ["images.dvk", "images/a/0.jpg", *(f"images/b/{i}.jpg" for i in range(3))]


def test_a_folder_that_was_only_renamed_can_be_removed_without_a_commit(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    with bench.open() as repo:
        move(repo, ["images"], "pictures")
        move(repo, ["pictures/a"], "pictures/c")
    assert rm(bench, "pictures/c/1.jpg").paths[0].deleted == 1
    assert rm(bench, "pictures").paths[0].deleted == 5


def test_an_uncommitted_file_of_a_folder_is_refused(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    bench.put({"images/new.jpg": b"new"})
    bench.add("images/new.jpg")
    with pytest.raises(Refused, match="no commit"):
        rm(bench, "images/new.jpg")


def test_cached_inside_a_folder_survives_the_next_checkout(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    notes: list[Event] = []
    rm(bench, "images/a/1.jpg", cached=True, notes=notes)
    assert any(isinstance(n, Note) and "takes it in again" in n.message for n in notes)
    with bench.open() as repo:
        checkout(repo)
    assert bench.read("images/a/1.jpg") == IMAGES["images/a/1.jpg"]


def test_a_folder_and_a_part_of_it_are_one_removal(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    assert [p.path for p in rm(bench, "images/a/1.jpg", "images").paths] == [b"images"]


def test_a_part_that_is_not_there_is_named(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    with pytest.raises(NotFound, match="images/none"):
        rm(bench, "images/none")
    bench.put({"images/new": b""})
    with pytest.raises(Refused, match="never added"):
        rm(bench, "images/new")


# ---------------------------------------------------------------- arguments


def test_nothing_and_unknown_paths(bench: Bench) -> None:
    bench.put({"plain.txt": b""})
    with pytest.raises(UsageError):
        rm(bench)
    with pytest.raises(NotFound, match=r"plain\.txt"):
        rm(bench, "plain.txt")


def test_one_bad_path_keeps_all_others_from_being_removed(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    with pytest.raises(NotFound):
        rm(bench, "a.csv", "nothing")
    assert bench.exists("a.csv") and bench.exists("a.csv.dvk")


def test_a_folder_of_git_stands_for_its_tracked_paths_when_recursive(bench: Bench) -> None:
    bench.add_commit({"data/a.csv": b"1", "data/b.csv": b"2"}, "data/a.csv", "data/b.csv")
    with pytest.raises(Refused, match="2 tracked paths"):
        rm(bench, "data")
    assert [p.path for p in rm(bench, "data", recursive=True).paths] == [b"data/a.csv", b"data/b.csv"]


def test_dry_run_tells_and_changes_nothing(bench: Bench) -> None:
    bench.add_commit(IMAGES, "images")
    before = bench.files()
    found = rm(bench, "images", dry_run=True)
    assert found.dry_run and found.paths[0].deleted == 6
    assert bench.files() == before and bench.staged() == [] and bench.hidden() == [b"images"]


def test_a_pointer_that_cannot_be_read_goes_with_cached(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    bench.put({"a.csv.dvk": b"<<<<<<< ours\n"})
    with pytest.raises(FormatError):
        rm(bench, "a.csv")
    rm(bench, "a.csv", cached=True)
    assert bench.read("a.csv") == b"1" and not bench.exists("a.csv.dvk")


def test_odd_names(bench: Bench) -> None:
    names: list[str | bytes] = [b"caf\xe9", "-rf", "new\nline", " sp ace"]
    bench.add_commit({n: b"x%d" % i for i, n in enumerate(names)}, *names)
    assert len(rm(bench, *names).paths) == 4
    assert bench.files() == {} and bench.hidden() == []


def test_the_rule_stays_while_another_worktree_has_the_data(bench: Bench, tmp_path: Path) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    bench.git("worktree", "add", "-q", str(tmp_path / "second"))
    (tmp_path / "second/a.csv").write_bytes(b"1")
    rm(bench, "a.csv")
    assert bench.hidden() == [b"a.csv"]


# ---------------------------------------------------------------- kills


STEPS: list[tuple[type, str]] = [
    (Workspace, "remove_pointer"),
    (Workspace, "hide"),
]


@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_a_killed_removal_is_finished_by_the_same_command(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    real: Callable[..., object] = getattr(owner, name)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, killed)
    with pytest.raises(KeyboardInterrupt):
        rm(bench, "a.csv")
    monkeypatch.setattr(owner, name, real)
    if name == "remove_pointer":
        rm(bench, "a.csv")
    assert bench.files() == {} and bench.staged() == ["D  a.csv.dvk"] and bench.seen_by_git() == []


def test_a_pointer_removed_by_hand_is_staged(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    (bench.top / "a.csv.dvk").unlink()
    rm(bench, "a.csv", cached=True)
    assert bench.staged() == ["D  a.csv.dvk"]


def test_a_busy_index_is_told_and_the_removal_stands(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1"}, "a.csv")
    (bench.top / ".git/index.lock").touch()
    found = rm(bench, "a.csv")
    assert found.staged == 0 and found.not_staged
    assert not bench.exists("a.csv.dvk")


def test_in_a_plain_folder_nothing_leads_back(bench: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "dvk.toml").write_text("format = 1\n")
    (plain / "a.csv").write_bytes(b"1")
    from dvk.commands.repo import Repo

    with Repo(plain, environ=bench.environ) as repo:
        add(repo, ["a.csv"])
        with pytest.raises(Refused, match="no commit"):
            remove(repo, ["a.csv"])
        assert remove(repo, ["a.csv"], force=True).not_staged
    assert sorted(p.name for p in plain.iterdir()) == ["dvk.toml"]
