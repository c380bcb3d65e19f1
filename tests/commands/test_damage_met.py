"""Damage that a checkout meets is noted at once: what stores or brings the data again then does so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flowkit import Flow, noise
from test_verify import change, flip, look, objects, store

from dvk.backend.local import LocalBackend
from dvk.commands import damage_met
from dvk.commands.checkout import checkout
from dvk.errors import Corrupt, StorageError, StorageFull
from dvk.store import examine
from dvk.store.examine import Level


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A file of which one block is damaged here and sound on the remote; its copy in the work tree is gone."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(900_000, 1), "f/1": noise(9_000, 2)}, "a.bin", "f")
    flow.push()
    change(objects(store(flow), "p/*/*")[0], flip(2_000))
    os.unlink(flow.top / "a.bin")
    return flow


def tried(flow: Flow) -> list[str]:
    """What a checkout says of what failed: message and hint."""
    return [f"{e} -> {e.hint}" for e in flow.checkout(ok=False).failures]


def notes(flow: Flow) -> list[Path]:
    return list(store(flow).glob("i/bad-*"))


def test_add_of_a_good_copy_stores_it_again(flow: Flow) -> None:
    (said,) = tried(flow)
    assert "fails its checksum" in said and "`dvk repair`" in said and "`dvk pull a.bin`" in said
    assert len(notes(flow)) == 1
    assert not look(flow).summary.startswith("all"), "verify knows without reading data"
    flow.write({"a.bin": noise(900_000, 1)})
    flow.add("a.bin")
    found = look(flow, level=Level.DATA)
    assert found.whole == found.versions == 2 and not found.affected


def test_pull_brings_it_again(flow: Flow) -> None:
    tried(flow)
    (said,) = tried(flow)
    assert "was here and is damaged or gone" in said and "`dvk pull`" in said
    assert not flow.pull().failures
    assert flow.read("a.bin") == noise(900_000, 1)
    assert look(flow, level=Level.DATA).whole == 2


def test_a_note_that_cannot_be_kept_changes_nothing(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    put = LocalBackend.put

    def full(self: LocalBackend, key: str, *a: object, **k: object) -> None:
        if key.startswith("i/bad-"):
            raise StorageFull("no space left", subject=key)
        put(self, key, *a, **k)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalBackend, "put", full)
    for _ in range(2):
        (said,) = tried(flow)
        assert "fails its checksum" in said and "`dvk pull --no-store a.bin`" in said
    assert not notes(flow)


def test_a_checkout_that_meets_no_damage_notes_none(flow: Flow) -> None:
    flow.checkout("f")
    objects(store(flow), "p/*/*")[0].unlink()
    (said,) = tried(flow)
    assert "not here" in said and not notes(flow)


def test_a_dry_run_writes_no_note(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({f"f/{i}": noise(500, i) for i in range(5)}, "f")
    flow.version({"f/1": b"another"}, "f")
    flow.git("checkout", "-q", "HEAD~1")
    for pack in objects(store(flow), "m/*/*"):
        change(pack, flip(100))
    with flow.repo() as repo:
        (error,) = checkout(repo, dry_run=True).failures
    assert isinstance(error, Corrupt) and "`dvk repair`" in error.hint and not notes(flow)
    assert "`dvk pull f`" in tried(flow)[0] and notes(flow)


def test_a_pack_is_counted_once_for_all_files_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    files = {f"{i}.bin": noise(200_000, i) for i in range(5)}
    flow.version(files, *files)
    flow.version({"other.bin": noise(200_000, 9)}, "other.bin")
    for pack in objects(store(flow), "p/*/*"):
        change(pack, flip(2_000))
        change(pack, flip(pack.stat().st_size // 2))
    monkeypatch.setattr(damage_met, "_MOST_BYTES", 2_000_000)
    flow.remove(*files, "other.bin")
    assert len(tried(flow)) > 2
    assert len(notes(flow)) == 2


def test_what_is_damaged_only_on_its_way_is_not_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside real damage the look that notes it reads a sound block wrongly, once."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(900_000, 1), "b.bin": noise(900_000, 2)}, "a.bin", "b.bin")
    change(objects(store(flow), "p/*/*")[0], flip(2_000))
    flow.remove("a.bin", "b.bin")
    get_range = LocalBackend.get_range
    wrong: list[str] = []

    def once(self: LocalBackend, key: str, offset: int, length: int) -> bytes:
        data = bytearray(get_range(self, key, offset, length))
        if length > 1_500_000 and not wrong:
            wrong.append(key)
            data[1_400_000] ^= 1
        return bytes(data)

    with monkeypatch.context() as patched:
        patched.setattr(LocalBackend, "get_range", once)
        assert len(tried(flow)) == 1
    assert wrong
    for name in ("a.bin", "b.bin"):
        (flow.top / name).unlink(missing_ok=True)
    assert len(tried(flow)) == 1, "the other one is here and sound"


def test_what_cannot_be_read_is_not_said_to_be_noted(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    content = examine._content

    def refused(*arguments: object) -> examine.Examined:
        with monkeypatch.context() as patched:
            patched.setattr(LocalBackend, "get_range", refuse)
            return content(*arguments)  # type: ignore[arg-type]

    def refuse(_self: LocalBackend, key: str, _offset: int, _length: int) -> bytes:
        raise StorageError("input/output error", subject=key)

    monkeypatch.setattr(examine, "_content", refused)
    (said,) = tried(flow)
    assert "`dvk pull --no-store a.bin`" in said and not notes(flow)
