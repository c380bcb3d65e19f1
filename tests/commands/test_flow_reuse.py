"""Checkout and pull of big files: bytes that lie in the workspace are used, and never believed without the hash."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flowkit import Flow, noise
from msgspec.structs import replace

from dvk.commands.tracked import look
from dvk.errors import StorageError
from dvk.store import stream as stream_module
from dvk.workspace.materialize import WorkTree
from dvk.workspace.statcache import Clock, StatCache, read_clock

MIB = 1 << 20
ONE = noise(20 * MIB, 1)
TWO = ONE[: 5 * MIB] + b"a row more\n" + ONE[5 * MIB : 11 * MIB] + noise(50_000, 2) + ONE[11 * MIB + 50_000 :]


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    return Flow(tmp_path / "a", tmp_path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks of big files were decoded, part by part."""
    out: list[int] = []
    real = stream_module.read_blocks

    def counted(backend: Any, blocks: Any, wanted: Any) -> dict[int, bytes]:
        out.append(len(wanted))
        return real(backend, blocks, wanted)

    monkeypatch.setattr(stream_module, "read_blocks", counted)
    return out


def two_versions(flow: Flow) -> tuple[str, str]:
    """The table in two committed versions, the second one in the workspace; a folder with it beside it."""
    one = flow.version({"t.csv": ONE, "d/big": ONE, "d/small": b"1"}, "t.csv", "d")
    two = flow.version({"t.csv": TWO, "d/big": TWO, "d/small": b"2"}, "t.csv", "d")
    return one, two


def test_back_and_forth_decodes_the_difference(flow: Flow, decoded: list[int]) -> None:
    one, two = two_versions(flow)
    for version, content in ((one, ONE), (two, TWO), (one, ONE)):
        decoded.clear()
        done = flow.switch(version)
        assert (flow.read("t.csv"), flow.read("d/big")) == (content, content)
        assert sum(p.written_bytes for p in done.paths) == 2 * len(content) + 1
        assert sum(decoded) <= 8
        assert flow.status().clean


def test_a_file_that_is_not_there_or_was_edited_is_not_used(flow: Flow, decoded: list[int]) -> None:
    one, _ = two_versions(flow)
    flow.remove("t.csv")
    flow.switch(one)
    assert flow.read("t.csv") == ONE and sum(decoded) >= 20


def believe(flow: Flow, path: str, said: bytes) -> None:
    """Make the stat cache hold that the file there, as it is now, has the id of another content."""
    with flow.repo() as repo:
        seen = look(repo.root_fd, os.fsencode(path), repo.state, repo.workspace.ignore_rules())
        now = read_clock(repo.state)
        clock = Clock(now.now_ns + 10**10, now.device)
        ids = seen.ids.copy()
        ids[0] = memoryview(said)
        cache = StatCache.of(seen.scan, ids, clock=clock)
        replace(cache, root_id=said).save(repo.state, os.fsencode(path))


@pytest.mark.parametrize("how", ["other bytes", "a hole"])
def test_a_file_that_was_changed_behind_the_stat_cache(flow: Flow, how: str) -> None:
    """Size, times and inode as dvk remembers them, and other bytes: the version that was asked for arrives."""
    one, _ = two_versions(flow)
    changed = {
        "other bytes": TWO[: 7 * MIB] + b"x" + TWO[7 * MIB + 1 :],
        "a hole": TWO[:MIB] + bytes(MIB) + TWO[2 * MIB :],
    }[how]
    pointer = flow.pointer("t.csv")
    flow.write({"t.csv": changed})
    believe(flow, "t.csv", pointer.id)
    flow.switch(one)
    assert flow.read("t.csv") == ONE
    assert flow.status().clean


@pytest.mark.parametrize("what", ["link", "folder", "fifo", "other file", "nothing", "a shorter file"])
def test_what_takes_the_place_of_the_file_meanwhile(
    flow: Flow, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the copy: it is not read, not followed, and not replaced."""
    one, _ = two_versions(flow)
    aside = tmp_path / "aside"
    aside.write_bytes(TWO)
    real = WorkTree.open_old

    def swapped(self: WorkTree, index: int) -> int | None:
        path = flow.top / "t.csv"
        if what != "a shorter file" and path.is_file() and not path.is_symlink() and path.stat().st_size == len(TWO):
            path.unlink()
            if what == "link":
                path.symlink_to(aside)
            elif what == "folder":
                path.mkdir()
            elif what == "fifo":
                os.mkfifo(path)
            elif what == "other file":
                path.write_bytes(b"mine")
        fd = real(self, index)
        if what == "a shorter file":
            os.truncate(path, MIB)
        return fd

    monkeypatch.setattr(WorkTree, "open_old", swapped)
    flow.git("checkout", "-q", one)
    done = flow.checkout("t.csv", ok=False)
    assert [e.subject for e in done.failures] == ["t.csv"] and done.paths == [] and done.in_step == 0
    assert aside.read_bytes() == TWO
    path = flow.top / "t.csv"
    if what == "link":
        assert path.is_symlink()
    elif what == "other file":
        assert path.read_bytes() == b"mine"
    else:
        assert path.is_dir() == (what == "folder") and path.exists() == (what != "nothing")
    assert [n for n in os.listdir(flow.top) if n.startswith(".dvk-")] == []


KILLED = """
import os, signal, sys
from dvk.store.reuse import Reuse
real, calls, at = Reuse.take, [], int(sys.argv[1])
def take(self, *arguments):
    calls.append(None)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *arguments)
Reuse.take = take
sys.argv = ["dvk", "checkout"]
from dvk.__main__ import main
main()
"""


@pytest.mark.parametrize("at", [1, 4, 9])
def test_killed_while_copying(flow: Flow, at: int) -> None:
    """Every file is its old self or its new one, and the same command finishes."""
    one, two = two_versions(flow)
    flow.git("checkout", "-q", one)
    done = subprocess.run([sys.executable, "-c", KILLED, str(at)], cwd=flow.top, env=flow.environ)
    assert done.returncode == -signal.SIGKILL
    assert flow.read("t.csv") in (ONE, TWO) and flow.read("d/big") in (ONE, TWO)
    flow.checkout()
    assert (flow.read("t.csv"), flow.read("d/big"), flow.read("d/small")) == (ONE, ONE, b"1")
    flow.switch(two)
    assert (flow.read("t.csv"), flow.read("d/big"), flow.read("d/small")) == (TWO, TWO, b"2")
    assert flow.status().clean


# ---------------------------------------------------------------- what a run did, and what a killed one did


def test_files_that_could_not_be_written_do_not_count(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    files: dict[str | bytes, bytes] = {f"d/{i}": noise(1000 + i, i) for i in range(9)}
    flow.version(files, "d")
    shutil.rmtree(flow.top / "d")
    real = WorkTree.finish

    def finish(self: WorkTree, index: int, fd: int) -> None:
        if index in (2, 5):
            self.discard(index, fd)
            raise StorageError("no", subject=self.shown()[index])
        real(self, index, fd)

    monkeypatch.setattr(WorkTree, "finish", finish)
    done = flow.checkout(ok=False)
    (path,) = done.paths
    sizes = [1000 + i for i in range(9) if i not in (2, 5)]
    assert (path.written, path.written_bytes) == (7, sum(sizes))
    assert sorted(e.subject for e in done.failures) == ["d/2", "d/5"]


def test_a_killed_checkout_leaves_nothing_that_a_switch_takes_for_the_users_own(flow: Flow) -> None:
    """Versions of one folder with names of their own; the run to the second is killed in the middle."""
    versions = []
    for n, label in enumerate(("one", "two", "three")):
        shutil.rmtree(flow.top / "d", ignore_errors=True)
        files: dict[str | bytes, bytes] = {f"d/{label}-{i}": noise(3000, 100 * n + i) for i in range(50)}
        versions.append((flow.version(files, "d"), flow.data()))
    flow.switch(versions[0][0])
    flow.git("checkout", "-q", versions[1][0])
    argv = [sys.executable, "-m", "dvk.testing.dying", "100", str(int(signal.SIGKILL)), "checkout"]
    done = subprocess.run(argv, cwd=flow.top, env=flow.environ, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert any(b"two" in path for path in flow.data())
    flow.write({"d/mine": b"the user's own"})
    flow.switch(versions[2][0])
    left = {path for path in flow.data() if b".dvk-" not in path}
    assert left == {*versions[2][1], b"d/mine"}


def test_what_a_killed_run_left_beside_a_file_goes_with_the_next_one(flow: Flow) -> None:
    """Git does not show it, so nobody else would; what may belong to a run that is under way stays."""
    files: dict[str | bytes, bytes] = {"t.bin": b"1", "data/u.bin": b"1"}
    one = flow.version(files, "t.bin", "data/u.bin")
    flow.version({"t.bin": b"2", "data/u.bin": b"2"}, "t.bin", "data/u.bin")
    old, young = b".dvk-" + b"0" * 32 + b".tmp", b".dvk-" + b"1" * 32 + b".tmp"
    for folder in (b"", b"data/"):
        flow.write({folder + old: b"x", folder + young: b"x"})
        os.utime(flow.at(folder + old), (1, 1))
    flow.switch(one)
    for folder in (b"", b"data/"):
        assert not flow.exists(folder + old) and flow.exists(folder + young)


# ---------------------------------------------------------------- pull


def test_a_pull_reads_a_big_file_once_from_the_store(flow: Flow, tmp_path: Path, decoded: list[int]) -> None:
    """What the checkout reads and proves is not read before to be proven."""
    flow.version({"t.csv": ONE}, "t.csv")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    assert clone.read("t.csv") == ONE
    assert 20 <= sum(decoded) <= 24
    decoded.clear()
    two = flow.version({"t.csv": TWO}, "t.csv")
    flow.push()
    clone.git("pull", "-q")
    clone.pull()
    assert clone.read("t.csv") == TWO and sum(decoded) <= 4
    shutil.rmtree(flow.remote_dir)
    clone.remove("t.csv")
    clone.switch(two)
    assert clone.read("t.csv") == TWO, "the recipe was kept"


def test_what_a_pull_does_not_write_is_proven_and_kept_all_the_same(flow: Flow, tmp_path: Path) -> None:
    """A file that is in step already, and one that is the user's own."""
    flow.version({"same.bin": ONE, "other.bin": TWO}, "same.bin", "other.bin")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.write({"same.bin": ONE, "other.bin": b"mine"})
    done = clone.pull(ok=False)
    assert [e.subject for e in done.failures] == ["other.bin"]
    assert (clone.read("same.bin"), clone.read("other.bin")) == (ONE, b"mine")
    shutil.rmtree(flow.remote_dir)
    clone.remove("same.bin", "other.bin")
    clone.checkout()
    assert (clone.read("same.bin"), clone.read("other.bin")) == (ONE, TWO)


def test_a_pull_that_is_killed_before_it_keeps_the_recipe(flow: Flow, tmp_path: Path) -> None:
    """The file is in the workspace, and the store does not know it yet: the same command finishes, and so does the
    way to another version."""
    one = flow.version({"t.csv": ONE}, "t.csv")
    two = flow.version({"t.csv": TWO}, "t.csv")
    flow.push()
    script = """
import os, signal, sys
from dvk.store.unproven import Unproven
Unproven.settle = lambda self, writer: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["dvk", "pull"]
from dvk.__main__ import main
main()
"""
    for follow in ("again", "another"):
        clone = flow.clone(tmp_path / follow)
        done = subprocess.run([sys.executable, "-c", script], cwd=clone.top, env=clone.environ)
        assert done.returncode == -signal.SIGKILL and clone.read("t.csv") == TWO
        if follow == "another":
            clone.git("checkout", "-q", one)
        clone.pull()
        assert clone.read("t.csv") == (TWO if follow == "again" else ONE)
        assert clone.status().clean
        clone.git("checkout", "-q", two)
        clone.pull()
        assert clone.read("t.csv") == TWO


def test_a_recipe_that_lies_is_named_and_not_kept_and_the_next_remote_is_asked(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All chunks are what they say; together they are another file. Nothing of it gets a name."""
    from dvk.store import fetch as fetch_module
    from dvk.store.pack import RecipeRow
    from dvk.store.pages import Chunks, ListKind, format_page, page_id, read_recipe
    from dvk.store.resolve import Part

    flow.version({"t.csv": ONE, "u.csv": TWO}, "t.csv", "u.csv")
    flow.push()
    lied: list[bytes] = []
    real = fetch_module._Fetch._take

    def take(self: Any, wanted: Any, part: Part) -> None:
        """As a pusher that swapped two chunks in the recipe of t.csv."""
        if wanted.name == "t.csv" and len(lied) < times:
            pages = dict(part.pages)
            (row,) = part.recipes
            chunks = read_recipe(row.root, pages.__getitem__)  # type: ignore[arg-type]
            order = [1, 0, *range(2, len(chunks))]
            page = format_page(ListKind.RECIPE, 0, Chunks(chunks.ids[order], chunks.lengths[order]))
            root = page_id(ListKind.RECIPE, page)
            lied.append(row.file)
            part = replace(
                part,
                pages=[(root, page)],
                recipes=[RecipeRow(row.file, root, row.size, row.profile)],
            )
        real(self, wanted, part)

    monkeypatch.setattr(fetch_module._Fetch, "_take", take)
    times = 100
    clone = flow.clone(tmp_path / "b")
    done = clone.pull(ok=False)
    assert [(e.subject, e.kind) for e in done.failures] == [("t.csv", "corrupt")]
    assert "another content" in done.failures[0].message and len(lied) == 2
    with clone.repo() as repo:
        told = repo.confirmed(["origin"])
    assert [f"f:{clone.pointer(p).id.hex()}" in told for p in ("t.csv", "u.csv")] == [False, True]
    assert not clone.exists("t.csv") and clone.read("u.csv") == TWO
    times = 0
    clone.pull()
    assert clone.read("t.csv") == ONE

    lied.clear()
    times = 1  # as of two remotes of which the first one lies
    clone = flow.clone(tmp_path / "c")
    done = clone.pull()
    assert len(lied) == 1 and clone.read("t.csv") == ONE and clone.read("u.csv") == TWO
    assert done.fetch.fetched == 2
    assert [n for n in os.listdir(clone.top) if n.startswith(".dvk-")] == []


def test_bytes_of_the_old_file_prove_no_recipe_that_names_other_chunks(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe with two chunks swapped, and an old file that has them swapped behind the stat cache: the copy would be
    right, and the store would keep a recipe that makes something else."""
    from dvk.store import fetch as fetch_module
    from dvk.store.pack import RecipeRow
    from dvk.store.pages import Chunks, ListKind, format_page, page_id, read_recipe
    from dvk.store.resolve import Part

    flow.version({"t.csv": ONE}, "t.csv")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    one = clone.pointer("t.csv").id
    two = flow.version({"t.csv": TWO}, "t.csv")
    flow.push()
    clone.git("pull", "-q")
    real = fetch_module._Fetch._take
    lied: list[bytes] = []

    def take(self: Any, wanted: Any, part: Part) -> None:
        pages = dict(part.pages)
        (row,) = part.recipes
        chunks = read_recipe(row.root, pages.__getitem__)  # type: ignore[arg-type]
        a, b = (int(n) for n in chunks.lengths[:2])
        if not lied:
            clone.write({"t.csv": ONE[b : a + b] + ONE[:b] + ONE[a + b :]})
            believe(clone, "t.csv", one)
        lied.append(row.file)
        order = [1, 0, *range(2, len(chunks))]
        page = format_page(ListKind.RECIPE, 0, Chunks(chunks.ids[order], chunks.lengths[order]))
        root = page_id(ListKind.RECIPE, page)
        recipes = [RecipeRow(row.file, root, row.size, row.profile)]
        real(self, wanted, replace(part, pages=[(root, page)], recipes=recipes))

    monkeypatch.setattr(fetch_module._Fetch, "_take", take)
    done = clone.pull(ok=False)
    assert [(e.subject, e.kind) for e in done.failures] == [("t.csv", "corrupt")] and lied
    monkeypatch.setattr(fetch_module._Fetch, "_take", real)
    clone.pull(force=True)
    assert clone.read("t.csv") == TWO
    shutil.rmtree(flow.remote_dir)
    clone.remove("t.csv")
    clone.switch(two)
    assert clone.read("t.csv") == TWO


def test_a_pull_names_a_file_that_lies_damaged_in_the_store(flow: Flow, tmp_path: Path) -> None:
    """The remote speaks of it as well, as a part of a folder of which another file is new."""
    files: dict[str | bytes, bytes] = {f"d/{i}": noise(400_000, i) for i in range(4)}
    flow.version(files, "d")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    (pack,) = (p for p in (clone.top / ".git/dvk/store/p").rglob("*") if p.is_file())
    data = bytearray(pack.read_bytes())
    data[data.index(files["d/2"][100_000:100_100])] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    clone.remove("d/2")
    flow.version({"d/0": noise(400_000, 99)}, "d")
    flow.push()
    clone.git("pull", "-q")
    done = clone.pull(ok=False)
    assert [(e.subject, e.kind) for e in done.failures] == [("d/2", "corrupt")]
    assert clone.read("d/0") == flow.read("d/0") and not clone.exists("d/2")


def test_a_pull_blames_no_remote_for_what_lies_damaged_here(flow: Flow, tmp_path: Path) -> None:
    """A new version needs a chunk that was here before, in a block that is damaged; the remote has it as it should."""
    flow.version({"t.csv": ONE}, "t.csv")
    flow.push()
    clone = flow.clone(tmp_path / "b")
    clone.pull()
    for pack in [p for p in (clone.top / ".git/dvk/store/p").rglob("*") if p.is_file()]:
        data = bytearray(pack.read_bytes())
        if (at := data.find(ONE[3 * MIB : 3 * MIB + 64])) >= 0:
            data[at] ^= 1
            pack.chmod(0o600)
            pack.write_bytes(data)
    flow.version({"t.csv": TWO}, "t.csv")
    flow.push()
    clone.git("pull", "-q")
    clone.remove("t.csv")
    done = clone.pull(ok=False)
    assert [(e.subject, e.kind) for e in done.failures] == [("t.csv", "corrupt")]
    assert "damaged" in done.failures[0].message and "the remote" not in done.failures[0].message
    assert "--no-store" in done.failures[0].hint and not clone.exists("t.csv")
    clone.pull(store=False)
    assert clone.read("t.csv") == TWO
