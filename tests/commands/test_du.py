"""`dvk du`: the sums add up, nothing reachable is called reclaimable, and what is shared is charged to nobody."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from workbench import Bench

from dvk.commands.add import add
from dvk.commands.du import DuResult, du
from dvk.errors import NotFound


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "work", tmp_path / "home")


def noise(n: int, seed: int = 0) -> bytes:
    """Bytes that no codec makes smaller."""
    return random.Random(seed).randbytes(n)


def usage(bench: Bench, *paths: str) -> DuResult:
    with bench.open() as repo:
        return du(repo, paths)


def check_sums(found: DuResult) -> None:
    assert found.here_bytes == found.stored_bytes + found.saved_by_dedup_bytes + found.saved_by_compression_bytes
    assert found.logical_bytes >= found.here_bytes
    assert found.store_bytes >= found.stored_bytes + found.reclaimable_bytes
    assert found.failures == []


def test_an_empty_repository_takes_nothing(bench: Bench) -> None:
    found = usage(bench)
    assert (found.paths, found.versions, found.store_bytes, found.reclaimable_bytes) == ([], 0, 0, 0)


def test_two_versions_share_what_did_not_change(bench: Bench) -> None:
    data = noise(1_000_000)
    bench.add_commit({"a.bin": data}, "a.bin")
    bench.add_commit({"a.bin": data + noise(100_000, 1)}, "a.bin")
    found = usage(bench)
    check_sums(found)
    (row,) = found.paths
    assert (row.size, row.files, row.versions, row.history_bytes) == (1_100_000, 1, 2, 2_100_000)
    assert found.here_bytes == found.logical_bytes == 2_100_000
    assert 700_000 < found.saved_by_dedup_bytes < 1_000_000
    assert row.own_bytes == found.here_bytes - found.saved_by_dedup_bytes
    assert (found.unused_bytes, found.reclaimable_bytes, found.shared_store) == (0, 0, False)


def test_compression_is_told_apart_from_deduplication(bench: Bench) -> None:
    bench.add_commit({"text.csv": b"1,2,3,4\n" * 100_000, "noise": noise(300_000)}, "text.csv", "noise")
    found = usage(bench)
    check_sums(found)
    assert found.saved_by_compression_bytes > 0


def test_what_two_paths_share_is_charged_to_none_of_them(bench: Bench) -> None:
    data, more = noise(500_000), noise(200_000, 1)
    bench.add_commit({"a": data, "b": data, "c": more}, "a", "b", "c")
    a, b, c = usage(bench).paths
    assert (a.own_bytes, b.own_bytes, c.own_bytes) == (0, 0, 200_000)
    assert c.own_stored_bytes is not None and 200_000 <= c.own_stored_bytes < 201_000


def test_files_in_folders_and_a_folder_with_the_same_files(bench: Bench) -> None:
    files = {f"{i}": noise(5_000, i) for i in range(20)}
    bench.put({f"x/{n}": d for n, d in files.items()} | {f"y/{n}": d for n, d in files.items()} | {"y/own": noise(99)})
    bench.add("x", "y")
    bench.commit()
    bench.put({"x/0": noise(7_000, 99)})
    bench.add("x")
    found = usage(bench)
    check_sums(found)
    x, y = found.paths
    assert (x.size, x.files, x.versions) == (102_000, 20, 2)
    assert (x.own_bytes, y.own_bytes) == (7_000, 99)
    assert found.saved_by_dedup_bytes == 20 * 5_000 + 19 * 5_000


def test_only_what_nothing_leads_to_is_reclaimable(bench: Bench) -> None:
    """Branches, tags, the index, a pointer in the work tree and a second worktree each keep a version."""
    bench.add_commit({"a": noise(200_000)}, "a")
    for i, keep in enumerate(["branch", "tag", "worktree", "index", "pointer"], start=1):
        bench.git("checkout", "-q", "-B", "main", "main")
        bench.put({"a": noise(200_000, i)})
        with bench.open() as repo:
            add(repo, ["a"], stage=keep != "pointer")
        if keep in ("branch", "tag", "worktree"):
            bench.commit()
            if keep == "worktree":
                bench.git("worktree", "add", "-q", "--detach", str(bench.top.parent / "second"))
            else:
                bench.git(keep, f"kept-{keep}")
            bench.git("reset", "-q", "--hard", "HEAD~1")
    found = usage(bench)
    check_sums(found)
    assert found.versions == 6 and found.reclaimable_bytes == 0 == found.unused_bytes
    bench.git("tag", "-d", "kept-tag")
    bench.git("reset", "-q", "--hard")
    after = usage(bench)
    check_sums(after)
    assert after.versions == 3 and after.unused_bytes == 600_000
    assert 600_000 <= after.reclaimable_bytes < 602_000


def test_a_block_with_anything_in_use_is_not_reclaimable(bench: Bench) -> None:
    """Two small files lie in one block; dropping one of them frees nothing."""
    bench.put({"x/a": noise(5_000), "x/b": noise(5_000, 1)})
    bench.add("x")
    bench.git("reset", "-q")
    (bench.top / "x.dvk").unlink()
    (bench.top / "x/a").unlink()
    bench.add_commit({}, "x")
    found = usage(bench)
    check_sums(found)
    assert (found.unused_bytes, found.reclaimable_bytes) == (5_000, 0)


def test_versions_that_were_never_fetched_count_in_full_and_are_not_here(bench: Bench, tmp_path: Path) -> None:
    bench.add_commit({"a": noise(50_000), "x/1": noise(3_000), "x/2": noise(4_000)}, "a", "x")
    bench.git("clone", "-q", str(bench.top), str(tmp_path / "clone"))
    clone = Bench(tmp_path / "clone", tmp_path / "home")
    found = usage(clone)
    check_sums(found)
    assert (found.logical_bytes, found.here_bytes, found.store_bytes) == (57_000, 0, 0)
    assert [r.here_bytes for r in found.paths] == [0, 0]


def test_rows_may_be_narrowed_also_to_a_part_of_a_folder(bench: Bench) -> None:
    bench.add_commit({"a": b"1", "d/b": b"22", "d/x/1": b"333", "d/x/y/2": b"4444"}, "a", "d/b", "d/x")
    assert [r.path for r in usage(bench, "d").paths] == [b"d/b", b"d/x"]
    (part,) = usage(bench, "d/x/y").paths
    assert (part.path, part.kind, part.size, part.files, part.own_bytes) == (b"d/x/y", "dir", 4, 1, None)
    with pytest.raises(NotFound, match="nothing"):
        usage(bench, "nothing")
    with pytest.raises(NotFound, match="d/x/none"):
        usage(bench, "d/x/none")


def test_a_path_that_only_history_has_is_shown_as_such(bench: Bench) -> None:
    bench.add_commit({"d/a": noise(1000)}, "d")
    bench.git("rm", "-q", "d.dvk")
    bench.commit("gone")
    (row,) = usage(bench).paths
    assert (row.current, row.kind, row.size, row.versions, row.own_bytes) == (False, "dir", 0, 1, 1000)


def test_tags_of_things_that_are_no_commits_do_no_harm(bench: Bench) -> None:
    bench.add_commit({"a": b"1"}, "a")
    bench.git("tag", "blob", "HEAD:a.dvk")
    bench.git("tag", "tree", "HEAD^{tree}")
    bench.git("tag", "-a", "-m", "annotated", "v1")
    assert usage(bench).versions == 1


def test_a_store_that_others_may_share_says_so(bench: Bench, tmp_path: Path) -> None:
    bench.environ["DVK_STORE"] = str(tmp_path / "shared")
    bench.add_commit({"a": b"1"}, "a")
    found = usage(bench)
    assert found.shared_store and found.store == str(tmp_path / "shared")
