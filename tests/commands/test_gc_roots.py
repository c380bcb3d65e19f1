"""Whatever Git still leads to, by however odd a way, keeps its data when the local store is collected."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from projects import Project, noise

from dvk.commands import gc_local as gc_module
from dvk.commands.add import add
from dvk.commands.gc_local import LocalGcResult, gc_local
from dvk.commands.room import make_room
from dvk.errors import StorageError, Unsafe
from dvk.store.reclaim import Copies, Marks, Pack, delete, fold, survey
from dvk.store.store import Store, as_column
from dvk.workspace import repo as workspace_module


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.version({"a": noise(50_000, 0)}, "a")
    return made


def collect(project: Project) -> LocalGcResult:
    with project.repo() as repo:
        return gc_local(repo, young_s=0, clock=lambda: time.time() + 10)


def holds(project: Project, *contents: bytes) -> list[bool]:
    with project.repo() as repo:
        ids = as_column(blake3(data).digest() for data in contents)
        found: list[bool] = repo.store.own.holds(ids, np.array([len(data) for data in contents], np.int64)).tolist()
    return found


def stage(project: Project, seed: int) -> bytes:
    data = noise(50_000, seed)
    project.write({"a": data})
    with project.repo() as repo:
        add(repo, ["a"])
    return data


@pytest.mark.parametrize("verb", ["rebase", "merge"])
def test_what_git_put_aside_until_an_operation_ends_stays(project: Project, verb: str) -> None:
    """`--autostash` keeps changes that were not committed in a commit that no ref and no reflog names."""
    project.git_repo.write({"text": b"1\n"})
    project.git("add", "text")
    project.git("commit", "-q", "-m", "text")
    project.git("checkout", "-q", "-b", "side")
    project.git_repo.write({"text": b"side\n"})
    project.git("commit", "-q", "-a", "-m", "side")
    project.git("checkout", "-q", "main")
    project.git_repo.write({"text": b"main\n"})
    project.git("commit", "-q", "-a", "-m", "main")
    data = stage(project, 1)
    project.git_repo.git(verb, "--autostash", "side", ok=False)
    collect(project)
    assert holds(project, data) == [True]


def test_the_work_tree_of_a_git_folder_elsewhere_counts(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", tmp_path / "home")
    project.version({"a": noise(50_000, 0)}, "a")
    project.git("init", "-q", "--separate-git-dir", str(tmp_path / "elsewhere"))
    data = stage(project, 1)
    collect(project)
    assert holds(project, data) == [True]


def test_the_work_tree_of_a_submodule_counts(project: Project, tmp_path: Path) -> None:
    outer = Project(tmp_path / "outer", tmp_path / "home")
    outer.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(project.top), "sub")
    inner = Project(outer.top / "sub", tmp_path / "home", init=False)
    data = stage(inner, 1)
    collect(inner)
    assert holds(inner, data) == [True]


def test_a_worktree_whose_disk_is_not_mounted_stops_it(project: Project, tmp_path: Path) -> None:
    """The folder that it is mounted on stays behind, empty."""
    project.git("worktree", "add", "-q", str(tmp_path / "w"), "--detach")
    tree = Project(tmp_path / "w", tmp_path / "home", init=False)
    data = stage(tree, 1)
    (tmp_path / "w").rename(tmp_path / "disk")
    (tmp_path / "w").mkdir()
    with pytest.raises(Unsafe):
        collect(project)
    assert holds(project, data) == [True]


def test_replaced_history_stays(project: Project) -> None:
    """`git replace` hides commits; `git replace -d` brings them back."""
    old = noise(50_000, 1)
    project.version({"a": old}, "a")
    project.version({"a": noise(50_000, 2)}, "a")
    project.version({"a": noise(50_000, 3)}, "a")
    project.git("replace", "--graft", "HEAD")
    project.git("reflog", "expire", "--expire=now", "--all")
    collect(project)
    assert holds(project, old) == [True]


def test_a_tag_of_a_tree_leads_to_data(project: Project) -> None:
    data = stage(project, 1)
    tree = project.git("write-tree").strip()
    project.git("tag", "only-a-tree", tree)
    project.git("tag", "-a", "-m", "x", "annotated", tree)
    project.git("reset", "-q", "--hard")
    collect(project)
    assert holds(project, data) == [True]


def test_a_folder_that_cannot_be_read_stops_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.top / "f").mkdir()
    data = noise(50_000, 1)
    project.write({"f/b": data, ".gitignore": b"*.dvk\n"})
    with project.repo() as repo:
        add(repo, ["f/b"], stage=False)
    real = workspace_module._list

    def fails(dirs: object, folder: bytes) -> object:
        if folder == b"f":
            raise StorageError("cannot be read (Input/output error)", subject="f")
        return real(dirs, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(workspace_module, "_list", fails)
    with pytest.raises(Unsafe):
        collect(project)
    assert holds(project, data) == [True]


def test_a_local_store_in_the_folder_of_a_remote_is_not_collected(project: Project, tmp_path: Path) -> None:
    """What was pushed there is needed by clones that no list of repositories knows."""
    data = noise(50_000, 0)
    remote = tmp_path / "remote"
    project.push(remote)
    other = Project(tmp_path / "other", tmp_path / "home", environ={"DVK_STORE": str(remote)})
    other.version({"b": noise(50_000, 1)}, "b")
    with pytest.raises(Unsafe, match="is a remote"):
        collect(other)
    third = project.clone(tmp_path / "third")
    assert third.dvk("pull", environ={"DVK_TRUST_REMOTES": str(remote)}).code == 0
    assert third.read("a") == data


def test_two_collections_do_not_each_take_the_copy_that_the_other_counts_on(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has copied what it will delete; before it holds the store, another finds both and deletes the new one."""
    contents = [noise(50_000, 0), *(stage(project, seed) for seed in range(1, 10))]
    project.git("tag", "last", project.version({"a": noise(50_000, 10)}, "a"))
    for i, data in enumerate(contents):
        project.version({f"b{i}": data}, f"b{i}")
    took = []

    def folds(store: Store, marks: Marks, packs: list[Pack], **settings: object) -> Copies:
        before = set(store.list_packs())
        out = fold(store, marks, packs, **settings)  # type: ignore[arg-type]
        with project.repo() as repo:
            second = repo.store.own
            new = [p for p in survey(second, marks, young_s=0, now=time.time() + 10).packs if p.name not in before]
            took.append(delete(second, marks, new, fold(second, marks, new))[0])
        return out

    monkeypatch.setattr(gc_module, "fold", folds)
    collect(project)
    assert sum(took) > 0, "the other one deleted the copies"
    assert all(holds(project, *contents))
    monkeypatch.undo()
    assert collect(project).folded_packs > 0 and all(holds(project, *contents))


@pytest.mark.parametrize("ids", [True, False])
def test_no_room_is_made_of_what_another_project_needs(tmp_path: Path, ids: bool) -> None:
    """The remote of one project promises nothing to another one that has the same data and shares the store."""
    environ = {"DVK_STORE": str(tmp_path / "store")}
    one, two = (Project(tmp_path / name, tmp_path / "home", environ=environ) for name in ("one", "two"))
    if ids:
        one.dvk("init", "--no-hooks")
        two.dvk("init", "--no-hooks")
    common, mine = noise(200_000, 1), noise(200_000, 2)
    one.version({"a": common}, "a")
    one.version({"b": mine}, "b")
    one.push(tmp_path / "remote")
    two.version({"a": common}, "a")
    one.dvk("config", "store.max_size", "1 kB")
    assert collect(one).evicted_packs == 1
    assert holds(two, common, mine) == [True, False]


@pytest.mark.parametrize("same", [True, False])
def test_no_room_is_made_of_what_another_project_comes_to_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Added by somebody else between the look at the remote and the moment of deleting."""
    environ = {"DVK_STORE": str(tmp_path / "store")}
    one = Project(tmp_path / "one", tmp_path / "home", environ=environ)
    one.dvk("init", "--no-hooks")
    one.git("commit", "-q", "-m", "init")
    data = noise(200_000, 1)
    one.version({"a": data}, "a")
    one.push(tmp_path / "remote")
    two = Project(tmp_path / "two", tmp_path / "home", environ=environ)
    if same:
        two.write({"dvk.toml": (one.top / "dvk.toml").read_bytes()})
    one.dvk("config", "store.max_size", "1 kB")

    def adds(*arguments: object, **settings: object) -> object:
        out = make_room(*arguments, **settings)  # type: ignore[arg-type]
        two.version({"a": data}, "a")
        return out

    monkeypatch.setattr(gc_module, "make_room", adds)
    assert collect(one).evicted_packs == int(same)
    assert holds(two, data) == [not same]


@pytest.mark.parametrize("how", ["gone", "cut"])
def test_chunks_of_a_file_whose_recipe_is_lost_stay(project: Project, how: str) -> None:
    """A clone may have the recipe; the data may be here only."""
    project.version({"big": noise(3_000_000, 1)}, "big")
    store = project.top / ".git/dvk/store"
    newest = max((p for p in (store / "m").rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    before = {p.name for p in (store / "p").rglob("*")}
    if how == "gone":
        newest.unlink()
    else:
        data = newest.read_bytes()
        newest.chmod(0o644)
        newest.write_bytes(data[:-100] + bytes(100))
    with pytest.raises(Unsafe):
        collect(project)
    assert {p.name for p in (store / "p").rglob("*")} == before
