"""`dvk gc` of the local store: what Git leads to stays whole, what nothing leads to goes, at any moment of a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from projects import Project, noise

from dvk.backend import local as local_backend
from dvk.commands import gc_local as gc_module
from dvk.commands import repo as repo_module
from dvk.commands.acknowledged import Acknowledged
from dvk.commands.add import add
from dvk.commands.checkout import checkout
from dvk.commands.gc_local import LocalGcResult, gc_local
from dvk.commands.get import get
from dvk.commands.repo import Repo
from dvk.commands.verify import verify
from dvk.errors import Busy, DvkError, Refused, StorageFull, Unsafe
from dvk.events import Note
from dvk.store.store import as_column


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "p", tmp_path / "home")
    made.dvk("init", "--no-hooks")
    made.git("commit", "-q", "-m", "init")
    return made


def collect(project: Project, **settings: object) -> LocalGcResult:
    with project.repo() as repo:
        return gc_local(repo, young_s=0, clock=lambda: time.time() + 10, **settings)  # type: ignore[arg-type]


def restores(project: Project, rev: str, files: dict[str, bytes]) -> None:
    """Everything of a revision comes out of the store alone."""
    project.git("checkout", "-q", "-f", rev)
    for name in files:
        (project.top / name).unlink(missing_ok=True)
    with project.repo() as repo:
        done = checkout(repo, force=True)
    assert not done.failures
    assert {name: project.read(name) for name in files} == files


def packs(project: Project) -> dict[str, int]:
    store = project.top / ".git/dvk/store"
    return {p.name: p.stat().st_size for tree in "pm" for p in (store / tree).rglob("*") if p.is_file()}


def test_what_was_overwritten_and_never_committed_goes(project: Project) -> None:
    first = {"a": noise(300_000, 1), "d/x": noise(1000, 2), "d/y": noise(200_000, 3)}
    one = project.version(first, "a", "d")
    project.write({"a": noise(300_000, 4)})
    project.dvk("add", "a")
    project.write({"a": noise(300_000, 5)})
    project.dvk("add", "a")
    found = collect(project, dry_run=True)
    assert 300_000 <= found.freeable_bytes < 330_000 and found.freed_bytes == 0
    assert sum(packs(project).values()) == sum(packs(project).values())
    done = collect(project)
    assert 290_000 <= done.freed_bytes < 330_000
    assert collect(project).freed_bytes == 0
    with project.repo() as repo:
        (project.top / "a").unlink()
        checkout(repo, force=True)
    assert project.read("a") == noise(300_000, 5), "what is staged and not committed is wanted"
    restores(project, one, first)


def test_what_was_stored_lately_is_left_alone(project: Project) -> None:
    for i in range(2):
        project.write({"a": noise(100_000, i)})
        project.dvk("add", "a")
    with project.repo() as repo:
        found = gc_local(repo)
    assert (found.freed_bytes, found.freeable_bytes) == (0, 0) and found.young_packs == found.packs > 0


def test_everything_that_git_leads_to_stays(project: Project, tmp_path: Path) -> None:
    """Branches, tags, the stash, reflogs, other worktrees, an index with a conflict, a pointer that Git ignores."""
    contents = {}

    def add_data(where: Project, seed: int, *, stage: bool = True) -> None:
        contents[seed] = noise(50_000, seed)
        where.write({"a": contents[seed]})
        with where.repo() as repo:
            add(repo, ["a"], stage=stage)

    def commit(seed: int) -> str:
        add_data(project, seed)
        project.git("add", "-A")
        project.git("commit", "-q", "-m", str(seed))
        return project.git("rev-parse", "HEAD").strip()

    base = commit(1)
    project.git("tag", "-a", "v2", "-m", "x", commit(2))
    project.git("reset", "-q", "--hard", base)
    commit(3)
    project.git("reset", "-q", "--hard", base)  # only the reflog has it now
    project.git("checkout", "-q", "-b", "side")
    commit(4)
    project.git("checkout", "-q", "main")
    add_data(project, 5)
    project.git("stash", "-q")
    project.git("worktree", "add", "-q", str(tmp_path / "w"), "main~0", "--detach")
    tree = Project(tmp_path / "w", tmp_path / "home", init=False)
    add_data(tree, 6)
    commit(7)
    project.git_repo.git("merge", "-q", "side", ok=False)
    (project.top / ".gitignore").write_text("b.dvk\n")
    project.write({"b": noise(50_000, 8)})
    with project.repo() as repo:
        add(repo, ["b"], stage=False)
    before = packs(project)
    collect(project)
    contents[8] = noise(50_000, 8)
    with project.repo() as repo:
        ids = as_column(blake3(data).digest() for data in contents.values())
        held = repo.store.holds(ids, np.array([len(data) for data in contents.values()], np.int64))
    assert dict(zip(contents, held.tolist(), strict=True)) == dict.fromkeys(range(1, 9), True)
    assert sum(packs(project).values()) <= sum(before.values())


def test_small_packs_are_folded_and_dead_parts_go_with_them(project: Project) -> None:
    files, revs = {}, []
    for i in range(12):
        files[f"f{i}"] = noise(30_000, i)
        project.write({f"f{i}": files[f"f{i}"], "over": noise(20_000, 100 + i)})
        project.dvk("add", f"f{i}", "over")
        project.git("add", "-A")
        project.git("commit", "-q", "-m", "x")
        revs.append(project.git("rev-parse", "HEAD").strip())
    folder = {f"many/{i}": noise(300, 1000 + i) for i in range(300)}
    revs.append(project.version({**folder}, "many"))
    before = packs(project)
    done = collect(project)
    assert done.folded_packs > 10 and len(packs(project)) <= 4 < len(before)
    restores(project, revs[-1], {**files, **folder})
    restores(project, revs[3], {"f3": files["f3"], "over": noise(20_000, 103)})
    assert collect(project).folded_packs == 0
    fresh = project.dvk("add", "-u")
    assert fresh.code == 0


def test_what_is_dead_in_a_big_pack_is_cut_out(project: Project) -> None:
    keep, drop = {"keep": noise(400_000, 1)}, {"drop": noise(900_000, 2)}
    project.write({**keep, **drop})
    project.dvk("add", "keep", "drop")
    project.git("rm", "-q", "--cached", "drop.dvk")
    (project.top / "drop.dvk").unlink()
    project.git("commit", "-q", "-m", "x")
    done = collect(project)
    assert 850_000 < done.freed_bytes < 950_000
    restores(project, "HEAD", keep)


# ---------------------------------------------------------------- a store of several repositories


def shared(tmp_path: Path) -> tuple[Project, Project]:
    environ = {"DVK_STORE": str(tmp_path / "store")}
    return (
        Project(tmp_path / "one", tmp_path / "home", environ=environ),
        Project(tmp_path / "two", tmp_path / "home", environ=environ),
    )


def test_a_shared_store_keeps_what_any_of_its_repositories_needs(tmp_path: Path) -> None:
    one, two = shared(tmp_path)
    mine, theirs = {"m": noise(90_000, 1)}, {"t": noise(90_000, 2)}
    a, b = one.version(mine, "m"), two.version(theirs, "t")
    two.write({"t": noise(90_000, 3)})
    two.dvk("add", "t")
    two.git("reset", "-q", "--hard")
    done = collect(one)
    assert len(done.repositories) == 2 and 80_000 < done.freed_bytes < 100_000
    restores(one, a, mine)
    restores(two, b, theirs)


def test_a_list_of_another_repository_that_cannot_be_written_is_told_and_stops_nothing(tmp_path: Path) -> None:
    one, two = shared(tmp_path)
    for project, name in ((one, "one"), (two, "second")):
        project.write({name: noise(90_000, len(name))})
        project.dvk("add", name)
        project.git("reset", "-q", "--hard")
    theirs = two.top / ".git/dvk/acknowledged"
    theirs.unlink()
    theirs.mkdir()
    told: list[str] = []
    with one.repo() as repo:
        done = gc_local(repo, young_s=0, on_event=lambda e: told.append(e.message) if isinstance(e, Note) else None)
    assert done.deleted_packs and any("cannot be shortened" in line for line in told)
    assert Acknowledged(os.fsencode(one.top / ".git/dvk")).read() == frozenset()


def test_a_repository_that_cannot_be_reached_stops_it_until_it_is_forgotten(tmp_path: Path) -> None:
    one, two = shared(tmp_path)
    mine = {"m": noise(90_000, 1)}
    rev = one.version(mine, "m")
    two.version({"t": noise(90_000, 2)}, "t")
    (tmp_path / "two").rename(tmp_path / "moved")
    done = one.dvk("gc", "--yes", "--young", "0")
    assert done.code == 22 and f"dvk gc --forget {tmp_path / 'two'}" in done.err
    Project(tmp_path / "two", tmp_path / "home")  # another repository in its place
    assert one.dvk("gc", "--yes", "--young", "0").code == 22
    assert one.dvk("gc", "--forget", str(tmp_path / "nowhere"), "--yes").code == 6
    time.sleep(0.01)
    done = one.dvk("gc", "--forget", str(tmp_path / "two"), "--yes", "--young", "0")
    assert done.code == 0 and "freed" in done.out
    restores(one, rev, mine)


def test_the_repository_that_a_store_lies_in_counts_without_a_word(project: Project, tmp_path: Path) -> None:
    data = {"a": noise(60_000, 1)}
    rev = project.version(data, "a")
    other = Project(tmp_path / "o", tmp_path / "home", environ={"DVK_STORE": str(project.top / ".git/dvk/store")})
    other.version({"b": noise(60_000, 2)}, "b")
    assert collect(other).freed_bytes == 0
    assert len(collect(project).repositories) == 2
    restores(project, rev, data)


def test_a_disk_that_does_not_tell_whose_folder_a_store_lies_in_stops_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for a no, and nothing that this repository needs was kept."""
    rev = project.version({"a": noise(60_000, 1)}, "a")
    other = Project(tmp_path / "o", tmp_path / "home", environ={"DVK_STORE": str(project.top / ".git/dvk/store")})
    head = os.fsencode(project.top / ".git/HEAD")

    def failing(real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def call(path: str | bytes | int, **options: object) -> os.stat_result:
            if path == head:
                raise OSError(errno.EIO, "Input/output error")
            return real(path, **options)

        return call

    with monkeypatch.context() as broken:
        broken.setattr(os, "lstat", failing(os.lstat))
        broken.setattr(os, "stat", failing(os.stat))
        with pytest.raises(DvkError, match=r"(?i)input/output"):
            collect(other)
    restores(project, rev, {"a": noise(60_000, 1)})


def test_plain_folders_are_repositories_too(tmp_path: Path) -> None:
    project = Project(tmp_path / "p", tmp_path / "home")
    rev = project.version({"a": noise(60_000, 1)}, "a")
    project.push(tmp_path / "remote")
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("dvk.toml", "a.dvk"):
        (plain / name).write_bytes(project.read(name))
    folder = Project(plain, tmp_path / "home", init=False, environ={"DVK_TRUST_REMOTES": str(tmp_path / "remote")})
    assert folder.dvk("pull").code == 0
    assert collect(folder).freeable_bytes == 0
    (plain / "a.dvk").unlink()
    assert collect(folder).freed_bytes > 50_000
    del rev


# ---------------------------------------------------------------- doubts


def test_a_damaged_list_stops_it(project: Project) -> None:
    project.version({f"d/{i}": noise(200, i) for i in range(50)}, "d")
    for pack in (project.top / ".git/dvk/store/m").rglob("*"):
        if pack.is_file():
            data = bytearray(pack.read_bytes())
            data[100] ^= 1
            pack.chmod(0o644)
            pack.write_bytes(data)
    before = packs(project)
    with pytest.raises(Unsafe, match="damaged"):
        collect(project)
    assert packs(project) == before


def test_a_list_that_was_lost_stops_it(project: Project) -> None:
    project.version({f"d/{i}": noise(200, i) for i in range(50)}, "d")
    for pack in (project.top / ".git/dvk/store/m").rglob("*"):
        if pack.is_file():
            pack.unlink()
    before = packs(project)
    with pytest.raises(Unsafe, match="lost"):
        collect(project)
    assert packs(project) == before


def test_a_pointer_of_a_newer_dvk_stops_it(project: Project) -> None:
    project.version({"a": noise(5000, 1)}, "a")
    text = (project.top / "a.dvk").read_bytes()
    (project.top / "b.dvk").write_bytes(text.replace(b"dvk pointer 1", b"dvk pointer 2"))
    project.git("add", "-f", "b.dvk")
    project.git("commit", "-q", "-m", "from the future")
    project.git("rm", "-q", "b.dvk")
    with pytest.raises(Unsafe, match="newer"):
        collect(project)


def test_a_damaged_copy_does_not_count_as_a_copy(project: Project) -> None:
    """Two packs hold the same chunk; the larger one is rotten where it lies. The good one must stay."""
    data = noise(60_000, 1)
    rev = project.version({"a": data}, "a")
    store = project.top / ".git/dvk/store"
    (good,) = [p for p in (store / "p").rglob("*") if p.is_file()]
    kept = good.read_bytes()
    good.unlink()
    for index in (store / "i").iterdir():
        index.unlink()
    (project.top / "a").write_bytes(data)
    project.write({"z": noise(200_000, 2)})
    project.dvk("add", "a", "z")
    (second,) = [p for p in (store / "p").rglob("*") if p.is_file()]
    rotten = bytearray(second.read_bytes())
    rotten[2000] ^= 1
    second.chmod(0o644)
    second.write_bytes(rotten)
    good.write_bytes(kept)
    project.git("add", "-A")
    project.git("commit", "-q", "-m", "z")
    for seed in range(9):  # small packs enough for folding
        project.write({"s": noise(9000, 50 + seed)})
        project.dvk("add", "s")
        project.git("add", "-A")
        project.git("commit", "-q", "-m", "s")
    collect(project)
    second.unlink(missing_ok=True)
    for index in (store / "i").iterdir():
        index.unlink()
    restores(project, rev, {"a": data})


def test_a_pack_of_which_a_part_is_damaged_stays_and_is_named(project: Project) -> None:
    for seed in range(9):
        project.version({f"s{seed}": noise(9000, 50 + seed)}, f"s{seed}")
    pack = next(p for p in (project.top / ".git/dvk/store/p").rglob("*") if p.is_file())
    data = bytearray(pack.read_bytes())
    data[2000] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(data)
    done = project.dvk("gc", "--yes", "--young", "0")
    assert done.code == 3 and "checksum" in done.err and pack.read_bytes() == data
    assert len(packs(project)) < 18


def test_where_there_are_no_locks_it_needs_a_promise(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    rev = project.version({"a": noise(5000, 1)}, "a")
    project.write({"a": noise(50_000, 2)})
    project.dvk("add", "a")
    project.git("reset", "-q", "--hard")

    def no_locks(_fd: int, _how: int) -> None:
        raise OSError(repo_module.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(repo_module.fcntl, "flock", no_locks)
    with pytest.raises(Refused, match="no locks"):
        collect(project)
    assert collect(project, exclusive=True).freed_bytes > 40_000
    monkeypatch.undo()
    restores(project, rev, {"a": noise(5000, 1)})


def test_it_waits_for_writers_and_says_so_in_the_end(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.version({"a": noise(5000, 1)}, "a")
    project.write({"a": noise(50_000, 2)})
    project.dvk("add", "a")
    project.git("reset", "-q", "--hard")
    monkeypatch.setattr(gc_module, "_PATIENCE_S", 0.2)
    before = packs(project)
    with open(project.top / ".git/dvk/store/lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(Busy):
            collect(project)
    assert packs(project) == before
    assert collect(project).freed_bytes > 0


def test_a_full_disk_is_freed_all_the_same(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for i in range(10):
        files[f"f{i}"] = noise(30_000, i)
        project.version({f"f{i}": files[f"f{i}"]}, f"f{i}")
    project.write({"f0": noise(80_000, 99)})
    project.dvk("add", "f0")
    project.git("reset", "-q", "--hard")

    def full(*_: object, **__: object) -> None:
        raise StorageFull("no space left")

    monkeypatch.setattr(local_backend.LocalBackend, "put", full)
    done = collect(project)
    assert done.freed_bytes > 70_000 and done.disk_full and not done.failures
    monkeypatch.undo()
    restores(project, "HEAD", files)
    assert collect(project).folded_packs > 5
    restores(project, "HEAD", files)


# ---------------------------------------------------------------- beside others, and kills

_GC = """
import os, sys, time
from dvk.commands.gc_local import gc_local
from dvk.commands.repo import Repo
with Repo(sys.argv[1]) as repo:
    print("go", flush=True)
    for _ in range(int(sys.argv[2])):
        gc_local(repo, young_s=0, clock=lambda: time.time() + 10)
"""


def start_gc(project: Project, rounds: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _GC, str(project.top), str(rounds)]
    process = subprocess.Popen(command, env=project.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"go\n"
    return process


def test_adding_beside_collections_loses_nothing(project: Project) -> None:
    """Another process collects all the time, while versions are added that reuse what it is just deleting."""
    shuffled = random.Random(7)
    revs = []
    process = start_gc(project, 40)
    try:
        for i in range(12):
            # Data that was stored, dropped, and comes back: dead in one moment, needed in the next.
            files = {"a": noise(40_000, shuffled.randrange(4)), f"d/{i % 3}": noise(3000, shuffled.randrange(5))}
            project.write(files)
            with project.repo() as repo:
                add(repo, ["a", "d"])
            if shuffled.random() < 0.4:
                project.git("reset", "-q", "--hard")
                continue
            project.git("add", "-A")
            project.git("commit", "-q", "--allow-empty", "-m", "x")
            revs.append((project.git("rev-parse", "HEAD").strip(), files))
    finally:
        process.kill()
        _, err = process.communicate()
    assert b"Error" not in err, err.decode()
    assert revs
    for rev, files in revs:
        restores(project, rev, files)
    assert collect(project).failures == []


def test_a_kill_at_any_moment_loses_nothing(project: Project) -> None:
    shuffled = random.Random(11)
    files = {f"f{i}": noise(20_000, i) for i in range(8)}
    for name, data in files.items():
        project.version({name: data, "over": noise(15_000, hash_of(name))}, name, "over")
    rev = project.git("rev-parse", "HEAD").strip()
    for round_ in range(4):
        project.write({"t": noise(50_000, 300 + round_)})
        project.dvk("add", "t", "--no-stage")
        (project.top / "t.dvk").unlink()
        process = start_gc(project, 5)
        time.sleep(shuffled.uniform(0.0, 0.25))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        restores(project, rev, files)
    collect(project)
    assert collect(project).freeable_bytes < 70_000
    restores(project, rev, files)
    assert not [p for p in (project.top / ".git/dvk/store/tmp").iterdir() if p.is_file()]


def hash_of(name: str) -> int:
    return sum(name.encode())


@pytest.mark.parametrize("step", range(12))
def test_a_kill_after_any_change_of_the_store_loses_nothing(
    project: Project, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"f{i}": noise(8000, i) for i in range(9)}
    for name, data in files.items():
        project.version({name: data}, name)
    project.write({"f0": noise(8000, 99)})
    project.dvk("add", "f0")
    project.git("reset", "-q", "--hard")

    class Killed(BaseException):
        pass

    count = [0]
    backend = local_backend.LocalBackend
    put, remove = backend.put, backend.delete

    def after(change: object, *arguments: object, **settings: object) -> None:
        if count[0] > step:
            raise Killed
        change(*arguments, **settings)  # type: ignore[operator]
        count[0] += 1
        if count[0] > step:
            raise Killed

    monkeypatch.setattr(backend, "put", lambda *a, **k: after(put, *a, **k))
    monkeypatch.setattr(backend, "delete", lambda *a, **k: after(remove, *a, **k))
    try:
        collect(project)
    except Killed:
        pass
    monkeypatch.undo()
    restores(project, "HEAD", files)
    done = collect(project)
    assert not done.failures
    restores(project, "HEAD", files)
    assert collect(project).nothing


def test_the_verb_asks_and_tells(project: Project) -> None:
    project.version({"a": noise(5000, 1)}, "a")
    project.write({"a": noise(50_000, 2)})
    project.dvk("add", "a")
    project.git("reset", "-q", "--hard")
    done = project.dvk("gc")
    assert done.code == 0 and "left alone" in done.out
    done = project.dvk("gc", "--young", "0", "--dry-run")
    assert done.code == 0 and "could be freed" in done.out
    done = project.dvk("gc", "--young", "0")
    assert done.code == 5 and "pass --yes" in done.err and "Free 50" in done.err
    done = project.dvk("gc", "--young", "0", "--yes", "--json")
    result = json.loads(done.out)["result"]
    assert done.code == 0 and result["freed_bytes"] > 40_000 and result["repositories"] == [str(project.top)]
    done = project.dvk("gc", "--young", "0")
    assert done.code == 0 and done.out.startswith("nothing to free")
    empty = Project(project.top.parent / "empty", project.home)
    assert empty.dvk("gc").code == 0


def test_who_reads_meanwhile_gets_the_right_bytes_or_an_error(project: Project) -> None:
    files = {f"f{i}": noise(20_000, i) for i in range(10)}
    for name, data in files.items():
        project.version({name: data}, name)
    process = start_gc(project, 3)
    wrong, right = [], 0
    try:
        while process.poll() is None:
            with project.repo() as repo:
                for name, data in files.items():
                    try:
                        opened = open_version(repo, name)
                    except DvkError:
                        continue
                    wrong += [name] if opened != data else []
                    right += opened == data
    finally:
        process.communicate()
    assert not wrong and right


def open_version(repo: Repo, name: str) -> bytes:
    out = os.fsdecode(repo.workspace.top) + "/out"
    get(repo, f"HEAD:{name}", out, force=True)
    return Path(out).read_bytes()


# ---------------------------------------------------------------- store.max_size


def sized(project: Project, tmp_path: Path) -> dict[int, bytes]:
    """Six versions of 100 kB, four of them pushed."""
    contents = {}
    for i in range(6):
        if i == 4:
            project.dvk("remote", "add", "origin", str(tmp_path / "remote"), "--local")
            assert project.dvk("push").code == 0
        contents[i] = noise(100_000, i)
        project.version({"a": contents[i]}, "a")
    return contents


def held(project: Project, contents: dict[int, bytes]) -> list[int]:
    with project.repo() as repo:
        ids = as_column(blake3(data).digest() for data in contents.values())
        found = repo.store.holds(ids, np.array([len(data) for data in contents.values()], np.int64))
    return [i for i, here in zip(contents, found.tolist(), strict=True) if here]


def use(project: Project, ago_s: dict[int, int]) -> None:
    """Set when packs of data were used last; they are told apart by when they were written."""
    files = [p for p in (project.top / ".git/dvk/store/p").rglob("*") if p.is_file()]
    for number, pack in enumerate(sorted(files, key=lambda p: p.stat().st_mtime_ns)):
        at = time.time() - ago_s[number]
        os.utime(pack, (at, min(at, time.time() - 50 * 86400)))


def test_what_was_used_least_lately_makes_room_and_only_what_a_remote_holds(project: Project, tmp_path: Path) -> None:
    contents = sized(project, tmp_path)
    use(project, {0: 5 * 86400, 1: 40 * 86400, 2: 30 * 86400, 3: 6 * 86400, 4: 45 * 86400, 5: 46 * 86400})
    project.dvk("config", "store.max_size", "430 kB")
    done = collect(project)
    # 4 and 5 are older, and nowhere else; so they stay, though that leaves less room than was asked for.
    assert held(project, contents) == [0, 2, 3, 4, 5]
    assert done.evicted_packs and done.evicted_bytes > 90_000
    with project.repo() as repo:
        found = verify(repo)
    assert not found.affected and found.not_here == 1, "what was let go is not lost"
    project.dvk("push")
    project.dvk("config", "store.max_size", "250 kB")
    collect(project)
    left = held(project, contents)
    assert 5 in left and len(left) <= 2, "what is checked out goes last"
    for i in range(6):
        project.git("checkout", "-q", "-f", f"HEAD~{5 - i}" if i < 5 else "HEAD")
        (project.top / "a").unlink(missing_ok=True)
        assert project.dvk("pull").code == 0 and project.read("a") == contents[i]
        project.git("checkout", "-q", "-f", "main")


@pytest.mark.parametrize("damage", ["flip", "missing", "retired", "unreachable"])
def test_what_is_not_seen_whole_on_a_remote_stays(project: Project, tmp_path: Path, damage: str) -> None:
    contents = sized(project, tmp_path)
    project.dvk("push")
    remote = tmp_path / "remote"
    for pack in [p for p in (remote / "p").rglob("*") if p.is_file()]:
        pack.chmod(0o644)
        if damage == "flip":
            data = bytearray(pack.read_bytes())
            for at in range(1000, len(data) - 2000, 40_000):
                data[at] ^= 1
            pack.write_bytes(data)
        elif damage == "missing":
            pack.unlink()
    if damage == "retired":
        for record in [p for p in (remote / "j").iterdir() if p.suffix == ""]:
            record.with_suffix(".x").write_bytes(b"{}")
    if damage == "unreachable":
        remote.rename(tmp_path / "away")
    project.dvk("config", "store.max_size", "1 kB")
    done = collect(project)
    assert done.evicted_packs == 0 and held(project, contents) == list(range(6))
