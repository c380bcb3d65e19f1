"""The stat cache saves hashing, and never calls a changed file unchanged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import dvk.workspace.align as align_module
from dvk.store.listing import Kind
from dvk.store.names import Names
from dvk.workspace import statcache
from dvk.workspace.align import align
from dvk.workspace.scan import Scan, Stats, scan_folder
from dvk.workspace.statcache import Clock, StatCache, cache_file, forget, read_clock, sync_and_clear

ROOT_ID = bytes(range(32))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "f").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def state(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "state")


def hash_all(top: Path, scan: Scan) -> np.ndarray:
    ids = np.zeros((len(scan), 32), np.uint8)
    for i, name in enumerate(scan.names):
        if scan.kinds[i] in (Kind.FILE, Kind.EXEC):
            with open(os.fsencode(top) + b"/f/" + name, "rb") as f:
                ids[i] = np.frombuffer(blake3(f.read()).digest(), np.uint8)
    return ids


def later(scan: Scan) -> Clock:
    """A clock that has left every entry of `scan` behind."""
    return Clock(int(scan.stats.ctime_ns.max()) + 10_000_000_000, scan.stats.device)


def filled(tmp_path: Path, root: int) -> tuple[Scan, StatCache]:
    for i in range(10):
        (tmp_path / f"f/{i}").write_bytes(b"%d" % i)
    (tmp_path / "f/empty").mkdir()
    os.symlink("1", tmp_path / "f/link")
    scan = scan_folder(root, b"f")
    return scan, StatCache.of(scan, hash_all(tmp_path, scan), clock=later(scan), root_id=ROOT_ID)


def test_what_was_saved_is_known_again(tmp_path: Path, root: int, state: bytes) -> None:
    _, cache = filled(tmp_path, root)
    assert cache.save(state, b"f")
    loaded = StatCache.load(state, b"f")
    assert loaded is not None and loaded.root_id == ROOT_ID
    match = loaded.match(scan_folder(root, b"f"))
    assert match.known.all() and match.in_step
    assert (match.ids == cache.ids).all()
    assert StatCache.load(state, b"other") is None
    forget(state, b"f")
    assert StatCache.load(state, b"f") is None
    forget(state, b"f")


def test_what_changed_came_or_went_is_not_known(tmp_path: Path, root: int, state: bytes) -> None:
    scan, cache = filled(tmp_path, root)
    (tmp_path / "f/3").write_bytes(b"x")
    os.utime(tmp_path / "f/3", ns=(0, int(scan.stats.mtime_ns[3])))
    os.chmod(tmp_path / "f/4", 0o755)
    match = cache.match(scan_folder(root, b"f"))
    assert np.flatnonzero(~match.known).tolist() == [3, 4] and not match.in_step
    (tmp_path / "f/00").write_bytes(b"new")
    os.unlink(tmp_path / "f/7")
    now = scan_folder(root, b"f")
    match = cache.match(now)
    assert [now.names[i] for i in np.flatnonzero(~match.known)] == [b"00", b"3", b"4"]
    assert not match.in_step
    for i in np.flatnonzero(match.known):
        if now.kinds[i] == Kind.FILE:
            assert match.ids[i].tobytes() == blake3((tmp_path / "f" / os.fsdecode(now.names[i])).read_bytes()).digest()
        else:
            assert not match.ids[i].any()


def test_a_link_that_points_elsewhere_is_out_of_step(tmp_path: Path, root: int) -> None:
    _, cache = filled(tmp_path, root)
    os.unlink(tmp_path / "f/link")
    os.symlink("2", tmp_path / "f/link")
    match = cache.match(scan_folder(root, b"f"))
    assert match.known.all() and not match.in_step


def test_edits_of_the_same_size_within_one_tick_are_never_missed(tmp_path: Path, root: int, state: bytes) -> None:
    """A23/T62: whatever the cache calls known has the content that it says, edit after edit."""
    file = tmp_path / "f/x"
    trusted = 0
    for i in range(400):
        file.write_bytes(b"%04d" % i)
        clock = read_clock(state)
        scan = scan_folder(root, b"f")
        cache = StatCache.of(scan, hash_all(tmp_path, scan), clock=clock)
        file.write_bytes(b"%04d" % (i + 1000))
        match = cache.match(scan_folder(root, b"f"))
        trusted += int(match.known.sum())
        assert not match.known[0] or match.ids[0].tobytes() == blake3(file.read_bytes()).digest()
    assert trusted == 0


def test_an_entry_is_trusted_once_the_clock_has_left_it_behind(tmp_path: Path, root: int, state: bytes) -> None:
    (tmp_path / "f/x").write_bytes(b"1")
    scan = scan_folder(root, b"f")
    made = int(scan.stats.ctime_ns[0])
    ids = hash_all(tmp_path, scan)
    device = scan.stats.device

    def known(clock: Clock) -> bool:
        return bool(StatCache.of(scan, ids, clock=clock).match(scan).known[0])

    assert not known(Clock(made, device))
    assert not known(Clock(made + 5_000_000, device))
    assert known(Clock(made + 30_000_000, device))
    assert not known(Clock(made - 10**12, device))
    # The clock of another filesystem says nothing about this one.
    assert not known(Clock(made + 10**12, device + 1))


def test_whole_second_times_are_taken_for_a_coarse_clock() -> None:
    def trusted(ctime_ns: int, now_ns: int) -> bool:
        one = np.array([ctime_ns], np.int64)
        scan = Scan(Names.of([b"a"]), np.array([1], np.uint8), Stats(one, one, one, one, 1), Names.of([]))
        return bool(StatCache.of(scan, np.zeros((1, 32), np.uint8), clock=Clock(now_ns, 1)).trusted[0])

    second = 10**9
    assert not trusted(5 * second, 6 * second + second // 2)
    assert trusted(5 * second, 8 * second)
    assert trusted(5 * second + 1, 6 * second + second // 2)


def test_a_time_far_in_the_future_does_not_cost_a_read_for_ever(tmp_path: Path, root: int) -> None:
    (tmp_path / "f/x").write_bytes(b"1")
    os.utime(tmp_path / "f/x", ns=(0, 4_000_000_000 * 10**9))
    scan = scan_folder(root, b"f")
    cache = StatCache.of(scan, hash_all(tmp_path, scan), clock=later(scan))
    assert cache.match(scan).known.all()


def test_another_boot_knows_nothing_unless_the_medium_was_synced(
    tmp_path: Path, root: int, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cache = filled(tmp_path, root)
    cache.save(state, b"f")
    monkeypatch.setattr(statcache, "boot_id", lambda: b"another boot")
    assert StatCache.load(state, b"f") is None
    monkeypatch.undo()
    assert sync_and_clear(state, [b"f", b"missing"], folder_fd=root) == 1
    assert sync_and_clear(state, [b"f"], folder_fd=root) == 0
    monkeypatch.setattr(statcache, "boot_id", lambda: b"another boot")
    loaded = StatCache.load(state, b"f")
    assert loaded is not None and loaded.match(scan_folder(root, b"f")).known.all()


def test_without_a_boot_id_only_a_durable_cache_counts(
    tmp_path: Path, root: int, state: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cache = filled(tmp_path, root)
    monkeypatch.setattr(statcache, "boot_id", lambda: b"")
    replace(cache, boot=b"").save(state, b"f")
    assert StatCache.load(state, b"f") is None
    replace(cache, boot=b"", durable=True).save(state, b"f")
    assert StatCache.load(state, b"f") is not None


def test_any_damage_is_no_cache(tmp_path: Path, root: int, state: bytes) -> None:
    _, cache = filled(tmp_path, root)
    cache.save(state, b"f")
    path = cache_file(state, b"f")
    with open(path, "rb") as f:
        good = f.read()
    rng = random.Random(7)
    bad = [b"", good[:100], good[:-1], good + b"\0", bytes(len(good))]
    for at in [*range(0, 256, 5), *(rng.randrange(len(good)) for _ in range(60))]:
        bad.append(good[:at] + bytes([good[at] ^ (1 << rng.randrange(8))]) + good[at + 1 :])
    for data in bad:
        with open(path, "wb") as f:
            f.write(data)
        assert StatCache.load(state, b"f") is None


def test_huge_counts_are_refused_before_anything_is_allocated(tmp_path: Path, root: int, state: bytes) -> None:
    _, cache = filled(tmp_path, root)
    cache.save(state, b"f")
    path = cache_file(state, b"f")
    with open(path, "r+b") as f:
        f.seek(16)
        f.write((1 << 62).to_bytes(8, "little") * 2)
    assert StatCache.load(state, b"f") is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, root: int) -> None:
    _, cache = filled(tmp_path, root)
    (tmp_path / "file").write_bytes(b"")
    assert cache.save(os.fsencode(tmp_path / "file"), b"f") is False


def test_old_temporary_files_go_young_ones_stay(tmp_path: Path, root: int, state: bytes) -> None:
    _, cache = filled(tmp_path, root)
    cache.save(state, b"f")
    folder = os.path.dirname(cache_file(state, b"f"))
    for name in (b"old.tmp", b"young.tmp"):
        with open(os.path.join(folder, name), "wb"):
            pass
    os.utime(os.path.join(folder, b"old.tmp"), (0, 0))
    cache.save(state, b"f")
    assert sorted(os.listdir(folder)) == sorted([os.path.basename(cache_file(state, b"f")), b"young.tmp"])


NAMES = st.lists(st.binary(max_size=4), unique=True, max_size=200).map(sorted)


@given(NAMES, NAMES)
def test_align_finds_what_a_dictionary_finds(a: list[bytes], b: list[bytes]) -> None:
    places = {name: j for j, name in enumerate(b)}
    assert align(Names.of(a), Names.of(b)).tolist() == [places.get(name, -1) for name in a]


@pytest.mark.parametrize("seed", range(4))
def test_align_of_long_lists_and_slices(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    every = [b"d%02d/%05d" % (i // 100, i) for i in range(4000)]
    a = [n for n in every if rng.random() > 0.002]
    b = [n for n in every if rng.random() > (0.002, 0.5, 0.9, 0.002)[seed]]
    if seed == 1:
        monkeypatch.setattr(align_module, "_MAX_RUNS", 10)
    places = {name: j for j, name in enumerate(b)}
    expected = [places.get(name, -1) for name in a]
    assert align(Names.of(a), Names.of(b)).tolist() == expected
    framed = Names.of([b"", *a, b"z"]).slice(1, 1 + len(a))
    assert align(framed, Names.of([b"", *b, b"z"]).slice(1, 1 + len(b))).tolist() == expected
