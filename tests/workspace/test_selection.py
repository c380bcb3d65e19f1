"""What a worktree asked for is kept, durably, and a lost record is not an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.errors import FormatError, NewerFormat, StorageError
from dvk.store.names import Names
from dvk.store.paths import why_bad
from dvk.workspace.selection import Selected, Selection, edit


@pytest.fixture
def state(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "state")


def test_no_record_everything_and_nothing_are_three_things(state: bytes) -> None:
    selection = Selection.load(state)
    assert selection.get(b"f") is None
    with edit(state) as selection:
        selection.set_all(b"all")
        selection.folders[b"none"] = Selected(())
        selection.add(b"some", b"val")
    selection = Selection.load(state)
    names = Names.of([b"train/1", b"val", b"val.txt", b"val/1", b"val/2"])
    assert selection.get(b"f") is None
    assert selection.covers(b"f", names).tolist() == [False] * 5
    assert selection.covers(b"none", names).tolist() == [False] * 5
    assert selection.covers(b"all", names).tolist() == [True] * 5
    assert selection.covers(b"some", names).tolist() == [False, True, False, True, True]


def test_prefixes_are_normalised(state: bytes) -> None:
    selection = Selection()
    for prefix in (b"a/b", b"c", b"a/b/c", b"a-b", b"c"):
        selection.add(b"f", prefix)
    assert selection.folders[b"f"].prefixes == (b"a-b", b"a/b", b"c")
    selection.add(b"f", b"a")
    assert selection.folders[b"f"].prefixes == (b"a", b"a-b", b"c")
    selection.add(b"f", b"")
    assert selection.folders[b"f"].everything
    selection.add(b"f", b"a")
    assert selection.folders[b"f"].everything
    selection.rename(b"f", b"g")
    assert selection.get(b"f") is None and selection.folders[b"g"].everything
    selection.remove(b"g")
    selection.remove(b"g")
    assert selection.folders == {}


PART = st.one_of(st.binary(min_size=1, max_size=3), st.sampled_from([b"a", b"b", b"a-", b"\xff"]))
PATH = st.lists(PART, min_size=1, max_size=3).map(b"/".join).filter(lambda p: not why_bad(p))


@given(st.lists(PATH, max_size=5), st.lists(PATH, max_size=12))
def test_covers_is_what_lies_at_or_below_a_prefix(prefixes: list[bytes], paths: list[bytes]) -> None:
    selection = Selection({b"f": Selected(())})
    for prefix in prefixes:
        selection.add(b"f", prefix)
    names = Names.of(sorted(set(paths)))
    expected = [any(n == p or n.startswith(p + b"/") for p in prefixes) for n in names]
    assert selection.covers(b"f", names).tolist() == expected
    assert [selection.folders[b"f"].covers_one(n) for n in names] == expected


@given(st.dictionaries(PATH, st.one_of(st.none(), st.lists(PATH, max_size=4)), max_size=4))
def test_any_bytes_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, folders: dict[bytes, list[bytes]]
) -> None:
    state = os.fsencode(tmp_path_factory.mktemp("s"))
    selection = Selection({b"x": Selected(())})
    for folder, prefixes in folders.items():
        selection.folders[folder] = Selected(())
        for prefix in prefixes if prefixes is not None else [b""]:
            selection.add(folder, prefix)
    selection.save(state)
    assert Selection.load(state).folders == selection.folders


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": "1", "folders": {}}',
        b'{"version": 1}',
        b'{"version": 1, "folders": []}',
        b'{"version": 1, "folders": {}, "more": 1}',
        b'{"version": 1, "folders": {"f": "some"}}',
        b'{"version": 1, "folders": {"f": [1]}}',
        b'{"version": 1, "folders": {"f": ["../x"]}}',
        b'{"version": 1, "folders": {"/f": "all"}}',
        b'{"version": 1, "folders": {"\\ud800": "all"}}',
        b'{"version": 1, "folders": {"f": ' + b"[" * 100_000,
    ],
    ids=range(13),
)
def test_a_damaged_record_is_an_error_that_says_what_to_do(state: bytes, data: bytes) -> None:
    os.makedirs(state)
    with open(os.path.join(state, b"selection.json"), "wb") as f:
        f.write(data)
    with pytest.raises(FormatError) as caught:
        Selection.load(state)
    assert "--keep-missing" in caught.value.hint and "--delete-missing" in caught.value.hint
    assert caught.value.subject.endswith("selection.json")


def test_a_record_of_a_newer_dvk_is_left_alone(state: bytes) -> None:
    os.makedirs(state)
    path = os.path.join(state, b"selection.json")
    with open(path, "wb") as f:
        f.write(b'{"version": 3, "whatever": {}}')
    with pytest.raises(NewerFormat), edit(state) as selection:
        selection.set_all(b"f")
    with open(path, "rb") as f:
        assert f.read() == b'{"version": 3, "whatever": {}}'


def test_an_edit_that_fails_changes_nothing(state: bytes) -> None:
    with edit(state) as selection:
        selection.set_all(b"f")
    with pytest.raises(RuntimeError), edit(state) as selection:
        selection.remove(b"f")
        raise RuntimeError
    assert Selection.load(state).folders == {b"f": Selected(None)}
    assert sorted(os.listdir(state)) == [b"selection.json", b"selection.lock"]


def test_a_state_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        Selection({b"f": Selected(None)}).save(os.fsencode(tmp_path / "file"))


def test_edits_of_several_processes_are_all_kept(state: bytes) -> None:
    code = (
        "import sys; from dvk.workspace.selection import edit\n"
        "for i in range(10):\n"
        "    with edit(sys.argv[1].encode()) as s: s.add(b'f', b'%s-%d' % (sys.argv[2].encode(), i))\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, os.fsdecode(state), str(k)]) for k in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    prefixes = Selection.load(state).folders[b"f"].prefixes
    assert prefixes is not None and len(prefixes) == 30
