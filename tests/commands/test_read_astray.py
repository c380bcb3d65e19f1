"""`get` and `cat` where locators lead to packs that are not there any more: what other packs hold is found."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from flowkit import Flow, csv, noise

from dvk.backend.local import LocalBackend
from dvk.commands.get import cat, get
from dvk.commands.pull import pull
from dvk.errors import Corrupt, DataMissing

FILES: dict[str | bytes, bytes] = {f"d/{i}": noise(3000 + i, i) for i in range(20)} | {"t.csv": csv(40_000)}


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A remote whose packs were written anew and whose locators were not; `clone` holds nothing."""
    flow = Flow(tmp_path / "a", tmp_path)
    flow.version(FILES, "d", "t.csv")
    flow.push()
    packs = set(keys(flow))
    with flow.repo() as repo:  # the same data in packs of the local store
        for key in keys(flow, repo.store.backend):
            flow_remote(flow).put(key, [repo.store.backend.get(key, max_bytes=1 << 30)])
    for key in packs:
        flow_remote(flow).delete(key)
    return flow.clone(tmp_path / "b")


def flow_remote(flow: Flow) -> LocalBackend:
    return LocalBackend(str(flow.remote_dir))


def keys(flow: Flow, backend: object = None) -> list[str]:
    where = backend or flow_remote(flow)
    return [item.key for prefix in ("p/", "m/") for item in where.list(prefix)]  # type: ignore[attr-defined]


def test_a_folder_and_a_file_are_had_all_the_same(flow: Flow, tmp_path: Path) -> None:
    for spec in ("d", "t.csv"):
        with flow.repo() as repo:
            got = get(repo, spec, str(tmp_path / f"out {spec}"), on_event=flow._listen)
        assert not got.failures and got.remote == "origin"
    assert any("footers" in note.hint for note in flow.notes)
    for name, data in FILES.items():
        assert isinstance(name, str)
        whole = tmp_path / f"out {name}" if name == "t.csv" else tmp_path / "out d" / name[2:]
        assert whole.read_bytes() == data


@pytest.mark.parametrize("spec", ["d/7", "t.csv"])
def test_cat_writes_each_byte_once(spec: str, flow: Flow) -> None:
    out = io.BytesIO()
    with flow.repo() as repo:
        cat(repo, spec, out)
    assert out.getvalue() == FILES[spec]


@pytest.mark.parametrize("how", [DataMissing, Corrupt])
def test_what_is_nowhere_is_named(how: type[Exception], flow: Flow, tmp_path: Path) -> None:
    remote = flow_remote(flow)
    for key in keys(flow):
        if how is DataMissing:
            remote.delete(key)
        else:
            data = bytearray(remote.get(key, max_bytes=1 << 30))
            data[len(data) // 2] ^= 1
            data[-5] ^= 1
            remote.put(key, [bytes(data)])
    with flow.repo() as repo, pytest.raises(how) as caught:
        cat(repo, "t.csv", io.BytesIO())
    assert "push" in caught.value.hint  # type: ignore[attr-defined]
    with flow.repo() as repo, pytest.raises(how):
        get(repo, "t.csv", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_pull_that_keeps_nothing_finds_them_too(flow: Flow) -> None:
    with flow.repo() as repo:
        done = pull(repo, store=False, on_event=flow._listen)
    assert not done.failures and any("footers" in note.hint for note in flow.notes)
    for name, data in FILES.items():
        assert flow.read(name) == data


def test_a_pull_that_keeps_nothing_names_what_is_nowhere(flow: Flow) -> None:
    for key in keys(flow):
        if key.startswith("p/"):
            flow_remote(flow).delete(key)
    with flow.repo() as repo:
        done = pull(repo, store=False)
    assert done.failures and not flow.exists("t.csv")
