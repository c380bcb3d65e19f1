"""How often a remote is asked: a reader never lists, a writer asks only for what it relies on."""

from __future__ import annotations

from pathlib import Path

import pytest
import synckit as kit
from synckit import Remote, add_folder, arrives, chunks, new_store, send

from dvk.store.fetch import Wanted, fetch
from dvk.store.push import Version
from dvk.store.record import record_key
from dvk.store.root import Root

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Remote, list[Root], Root]:
    """A remote with a thousand files and a folder, of three pushes."""
    remote, local = Remote(), new_store()
    files = kit.add_files(local, [chunks(i, 1 + i % 3) for i in range(1000)])
    folder = add_folder(local, {b"%03d" % i: chunks(("in", i), 1 + i % 70) for i in range(60)})
    state = tmp_path_factory.mktemp("state")
    send(local, remote.store, state, *files[:500])
    send(local, remote.store, state, *files[500:], folder)
    return remote, files, folder


def before_data(calls: list[tuple[str, str]]) -> list[tuple[str, str]]:
    first = next(i for i, (_, key) in enumerate(calls) if key.startswith("p/"))
    return calls[:first]


def test_one_file_of_a_thousand_takes_a_locator_and_a_range(crowd: tuple[Remote, list[Root], Root]) -> None:
    remote, files, _ = crowd
    remote.counting.reset()
    arrives(remote.counting, files[700], chunks(700, 2))
    calls = remote.counting.counts.calls
    assert [op for op, _ in before_data(calls)] == ["get"]
    assert [op for op, _ in calls] == ["get", "get_range"]


def test_a_folder_takes_a_locator_and_its_ranges(
    crowd: tuple[Remote, list[Root], Root], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Big files in it have locators of their own, which lie together."""
    remote, _, folder = crowd
    remote.counting.reset()
    arrives(remote.counting, folder, {b"%03d" % i: chunks(("in", i), 1 + i % 70) for i in range(60)})
    calls = remote.counting.counts.calls
    assert not [c for c in calls if c[0] == "list"]
    assert len(before_data(calls)) <= 3 and len(calls) <= 5


def test_a_long_folder_takes_its_sections_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%03d" % i: chunks(i, 1 + i % 4) for i in range(100)}
    root = add_folder(local, tree)
    send(local, remote.store, tmp_path, root)
    remote.counting.reset()
    arrives(remote.counting, root, tree)
    calls = remote.counting.counts.calls
    assert before_data(calls)[0][1].startswith("l/d/") and len(before_data(calls)) <= 3
    assert not [c for c in calls if c[0] in ("list", "put", "delete")]


def test_many_files_are_asked_for_once_each(crowd: tuple[Remote, list[Root], Root]) -> None:
    remote, files, _ = crowd
    remote.counting.reset()
    other = new_store()
    done = fetch(remote.store, other, [Wanted(f) for f in files[:200]])
    assert done.roots == 200 and not done.failures
    counts = remote.counting.counts
    assert (counts.get, counts.list, counts.stat) == (200, 0, 0) and counts.get_range <= 200


def test_nothing_is_asked_for_what_is_here(crowd: tuple[Remote, list[Root], Root]) -> None:
    remote, files, folder = crowd
    other = new_store()
    wanted = [Wanted(files[0]), Wanted(folder)]
    fetch(remote.store, other, wanted)
    remote.counting.reset()
    assert fetch(remote.store, other, wanted).roots == 0
    assert remote.counting.counts.requests == 0


def test_a_push_again_sends_nothing_and_asks_little(tmp_path: Path) -> None:
    """dvk.json, the record once, for each root whether its locator is still there, for each pack whether it is."""
    remote, local = Remote(), new_store()
    roots = kit.add_files(local, [chunks(i, 2) for i in range(30)])
    done = send(local, remote.store, tmp_path / "1", *roots)
    before = remote.objects()
    remote.counting.reset()
    again = send(local, remote.store, tmp_path / "1", *roots)
    assert (len(again.covered), again.sent, again.moved_bytes) == (30, [], 0)
    counts = remote.counting.counts
    assert (counts.put, counts.list, counts.get, counts.stat, counts.get_range) == (0, 1, 2, 32, 0)
    # A clone that knows nothing reads the locators instead.
    remote.counting.reset()
    again = send(local, remote.store, tmp_path / "2", *roots)
    counts = remote.counting.counts
    assert (len(again.covered), counts.put, counts.list, counts.get, counts.stat) == (30, 0, 1, 32, 2)
    assert remote.objects() == before
    rid = record_key(done.record)
    assert {key for op, key in counts.calls if op == "list"} == {rid}


def test_a_push_lists_only_records_and_condemned_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%03d" % i: chunks(i, 1 + i % 4) for i in range(100)}
    v1 = add_folder(local, tree)
    send(local, remote.store, tmp_path, v1)
    v2 = add_folder(local, {**tree, b"050": (b"edit",)})
    remote.counting.reset()
    send(local, remote.store, tmp_path, Version(v2, (v1,)))
    counts = remote.counting.counts
    assert {key.split("/")[0] + "/" for op, key in counts.calls if op == "list"} == {"j/", "g/"}
    assert all(len(key) > 60 for op, key in counts.calls if op == "list" and key.startswith("j/"))
    assert counts.requests <= 30
    assert not [c for c in counts.calls if c[0] == "delete"]


def test_a_new_version_reads_of_the_old_one_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%04d" % i: chunks(i, 1) for i in range(600)}
    v1 = add_folder(local, tree)
    send(local, remote.store, tmp_path, v1)
    v2 = add_folder(local, {**tree, b"0300": (b"edit",)})
    remote.counting.reset()
    send(local, remote.store, tmp_path, Version(v2, (v1,)))
    sections = remote.locator(v1).sections
    mine = {"m/" + r.pack.hex()[:2] + "/" + r.pack.hex() for r in sections}
    old = [c for c in remote.counting.counts.calls if c[0] == "get_range" and c[1] in mine]
    assert len(sections) > 30 and len(old) == 1
    counts, read_back = remote.counting.counts, remote.counting.counts.bytes_out  # at most all that it wrote
    assert counts.bytes_in - read_back < len(remote.objects("l/")[kit.locator_key(v1.kind, v1.id)]) * 2
