"""A clone that borrows Git's objects reads the data of where they came from too, and keeps what is its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flowkit import Flow, noise

from dvk.commands.gc_local import gc_local
from dvk.errors import Refused, Unsafe


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    made = Flow(tmp_path / "a", tmp_path)
    made.version({"a": noise(70_000, 1), "im/1": noise(400, 2)}, "a", "im")
    return made


def clone(flow: Flow, top: Path, *options: str) -> Flow:
    flow.git("clone", "-q", *options, str(flow.top), str(top))
    out = Flow(top, flow.home, init=False)
    out.environ = flow.environ
    return out


def packs(flow: Flow) -> list[Path]:
    return [p for p in (flow.top / ".git/dvk/store").rglob("p/*/*") if p.is_file()]


@pytest.mark.parametrize("options", [["--shared"], ["--reference", "SOURCE"]])
def test_data_is_there_at_once_and_nothing_is_copied(flow: Flow, tmp_path: Path, options: list[str]) -> None:
    other = clone(flow, tmp_path / "b", *(str(flow.top) if o == "SOURCE" else o for o in options))
    assert not any(p.not_fetched for p in other.status().paths)
    other.checkout()
    assert other.data() == flow.data() and other.status().clean and packs(other) == []
    flow.version({"a": noise(70_000, 3)}, "a")
    other.git("pull", "-q")
    other.checkout()
    assert other.read("a") == noise(70_000, 3)
    assert other.pull().fetch.remote == "", "no remote is asked"


def test_what_is_added_is_its_own_whatever_the_source_has(flow: Flow, tmp_path: Path) -> None:
    other = clone(flow, tmp_path / "b", "--shared")
    other.write({"copy": noise(70_000, 1)})
    other.add("copy")
    assert sum(p.stat().st_size for p in packs(other)) > 70_000
    before = sorted((flow.top / ".git/dvk").rglob("*"))
    other.commit()
    other.checkout()
    other.version({"im/2": b"2"}, "im")
    assert sorted((flow.top / ".git/dvk").rglob("*")) == before, "the source is only read"
    other.push()
    third = other.clone(tmp_path / "c")
    third.pull()
    assert third.data() == other.data(), "a push sends what was borrowed as well"
    shutil.rmtree(flow.top / ".git/dvk")
    os.unlink(other.top / "copy")
    other.checkout("copy")
    assert other.read("copy") == noise(70_000, 1)


def test_a_source_that_is_gone_is_data_that_is_not_here(flow: Flow, tmp_path: Path) -> None:
    flow.push()
    other = clone(flow, tmp_path / "b", "--shared")
    shutil.rmtree(flow.top / ".git/dvk")
    assert all(p.not_fetched for p in other.status().paths)
    other.pull()
    assert other.status().clean and packs(other)


def test_a_chain_of_clones_and_a_path_with_odd_bytes(flow: Flow, tmp_path: Path) -> None:
    second = clone(flow, tmp_path / 'b "quoted" \u00e9', "--shared")
    third = clone(second, tmp_path / "c", "--shared")
    third.checkout()
    assert third.data() == flow.data()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to become somebody else")
def test_a_source_of_somebody_else_is_not_read(flow: Flow, tmp_path: Path) -> None:
    other = clone(flow, tmp_path / "b", "--shared")
    other.version({"mine": noise(9_000, 5)}, "mine")
    subprocess.run(["chown", "-R", "65534:65534", str(flow.top)], check=True)
    with other.repo() as repo:
        assert repo.borrowed.stores == () and [type(e) for e in repo.borrowed.problems] == [Refused]
        assert "safe.directory" in repo.borrowed.problems[0].hint
    assert "not read" in other.dvk("doctor")[1]
    with other.repo() as repo, pytest.raises(Unsafe, match=r"borrows from is not read .*nothing was deleted"):
        gc_local(repo)
    subprocess.run(["chown", "-R", "0:0", str(flow.top)], check=True)
    (flow.top / ".git/dvk/store").chmod(0o777)
    with other.repo() as repo:
        assert repo.borrowed.stores == () and "everybody" in str(repo.borrowed.problems[0])


def test_verify_counts_what_is_borrowed_and_damage_of_the_source_is_not_written_there(
    flow: Flow, tmp_path: Path
) -> None:
    flow.push()
    other = clone(flow, tmp_path / "b", "--shared")
    other.version({"own": noise(50_000, 9)}, "own")
    code, said = other.dvk("verify")
    assert code == 0, said
    pack = packs(flow)[0]
    pack.chmod(0o644)
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 3] ^= 1
    pack.write_bytes(raw)
    before = sorted((flow.top / ".git/dvk").rglob("*"))
    code, said = other.dvk("checkout")
    assert code != 0 or other.data().items() >= flow.data().items(), said
    assert sorted((flow.top / ".git/dvk").rglob("*")) == before
    assert all("--no-store" in e.hint for e in other.pull(ok=False).failures), "as with a damaged store of its own"
    other.pull("a", store=False)
    assert other.one("a").clean and other.read("a") == noise(70_000, 1)


def test_a_collection_follows_lists_into_the_stores_that_are_borrowed_from(flow: Flow, tmp_path: Path) -> None:
    """The list of a folder lies there; the data of one of its files only here, where it was added as another file."""
    flow.version({f"im/{i}": noise(3_000, i) for i in range(5)}, "im")
    flow.push()
    there = flow.clone(tmp_path / "there")
    there.pull("im/1")
    here = clone(there, tmp_path / "here", "--shared")
    here.write({"copy": noise(3_000, 3)})
    here.add("copy")
    here.git("reset", "-q", "--hard")
    here.remove("copy")
    own = here.top / ".git/dvk/store"
    assert packs(here) and not [p for p in own.rglob("m/*/*") if p.is_file()], "data is here, the list is there"
    with here.repo() as repo:
        gc_local(repo, young_s=0)
    assert packs(here)
