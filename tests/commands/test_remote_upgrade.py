"""`dvk remote upgrade` through the command and the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from workbench import Bench

from dvk.backend.local import LocalBackend
from dvk.cli import app
from dvk.commands.push import push
from dvk.commands.remotes import remote_add
from dvk.commands.upgrade import upgrade
from dvk.errors import NotFound, Refused
from dvk.store.descriptor import KEY, Descriptor, format_descriptor
from dvk.store.store import Store


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "work", tmp_path / "home")
    bench.add_commit({"a.csv": b"x,y\n1,2\n" * 500}, "a.csv")
    with bench.open() as repo:
        remote_add(repo, "origin", str(tmp_path / "remote"))
    return bench


def make_old(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    data = format_descriptor(Descriptor("5" * 32, ("raw", "zstd"), ("cdc-64k",)))
    LocalBackend(str(folder)).put(KEY, [data])


def test_a_remote_is_raised_once_and_says_what_everybody_needs(bench: Bench, tmp_path: Path) -> None:
    make_old(tmp_path / "remote")
    with bench.open() as repo:
        plan = upgrade(repo, dry_run=True)
        assert plan.upgrade.changes and plan.upgrade.needs
        assert Store(LocalBackend(str(tmp_path / "remote"))).create().codecs == ("raw", "zstd")
        assert upgrade(repo).upgrade == plan.upgrade
        assert not upgrade(repo, "origin").upgrade.changes


def test_there_is_nothing_to_raise_before_the_first_push(bench: Bench) -> None:
    with bench.open() as repo, pytest.raises(NotFound):
        upgrade(repo)
    with bench.open() as repo:
        push(repo)
        assert not upgrade(repo).upgrade.changes
        assert not upgrade(repo, local=True).upgrade.changes


def test_raising_needs_trust_and_looking_at_a_folder_too(bench: Bench, tmp_path: Path) -> None:
    make_old(tmp_path / "other")
    bench.put({"dvk.toml": f'format = 1\n[remote.origin]\nurl = "{tmp_path}/other"\n'.encode()})
    for dry_run in (True, False):
        with bench.open() as repo, pytest.raises(Refused):
            upgrade(repo, dry_run=dry_run)


def terminal(bench: Bench, *argv: str) -> tuple[int, dict[str, object]]:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    code = app.run(
        ["-C", str(bench.top), "--json", *argv],
        environ=bench.environ,
        stdin=io.StringIO(),
        stdout=out,
        stderr=err,
        table=app.VERBS,
        groups=app.GROUPS,
    )
    return code, json.loads(out.buffer.getvalue())  # type: ignore[attr-defined]


def test_nobody_to_ask_is_no(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_old(tmp_path / "remote")
    code, document = terminal(bench, "remote", "upgrade")
    assert code == 5 and document["error"]["kind"] == "refused"  # type: ignore[index]
    code, document = terminal(bench, "remote", "upgrade", "--yes")
    assert code == 0 and "planes-4" in document["result"]["upgrade"]["codecs"]  # type: ignore[index]
    code, document = terminal(bench, "remote", "check")
    assert code == 0 and document["result"]["fit"] is True  # type: ignore[index]
    code, document = terminal(bench, "remote", "trust", "--list")
    assert code == 0 and document["result"]["urls"] == [f"file://{tmp_path}/remote"]  # type: ignore[index]
