"""Damage that a checkout meets is noted at once: what stores or brings the data again then does so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flowkit import Flow, noise
from test_verify import change, flip, look, objects, store

from dvk.backend.local import LocalBackend
from dvk.errors import StorageFull
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
