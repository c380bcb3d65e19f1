"""Ages are judged by the clock of the storage: those of pushers and collectors may be off by years."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from collectkit import A, B, C, everything_small, kept
from synckit import Before, Remote, add_file, add_folder, arrives, chunks, new_store, send

from dvk.backend.contract import Buffer, Listed
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.backend.memory import MemoryBackend
from dvk.errors import RemoteDenied
from dvk.events import Note
from dvk.store.clock import ahead_of_ours
from dvk.store.collect import Collector, Limits
from dvk.store.push import Owner, Version, push
from dvk.store.root import Root
from dvk.store.store import Store

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address

pytestmark = pytest.mark.timeout(60)

DAY = 86400.0
TEN_YEARS = 10 * 365.25 * DAY
OFF = [-TEN_YEARS, 0.0, TEN_YEARS]


class Server(MemoryBackend):
    """A storage with a clock of its own, that says in listings when objects were written."""

    def __init__(self) -> None:
        super().__init__("remote")
        self.now = time.time()
        self.written: dict[str, float] = {}

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        super().put(key, parts, create_only=create_only)
        self.written[key] = self.now

    def list(self, prefix: str) -> Iterator[Listed]:
        return iter([Listed(row.key, row.size_bytes, self.written[row.key]) for row in super().list(prefix)])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_small(monkeypatch)


def machine(server: Server, off_s: float) -> mock._patch[Callable[[], float]]:
    """A machine whose clock is off from the server's."""
    return mock.patch("time.time", lambda: server.now + off_s)


def three_versions(server: Server, state: Path, off_s: float) -> list[Root]:
    """Pushed 100 days ago, 2 days ago, and now."""
    remote, local = Remote(server), new_store()
    roots: list[Root] = []
    for tree, days in ((A, 98), (B, 2), (C, 0)):
        roots.append(add_folder(local, tree))
        with machine(server, off_s):
            send(local, remote.store, state, Version(roots[-1], tuple(reversed(roots[:-1]))))
        server.now += days * DAY
    return roots


@pytest.mark.parametrize("collector_off_s", OFF)
@pytest.mark.parametrize("pusher_off_s", OFF)
def test_the_retention_goes_by_the_clock_of_the_storage(
    pusher_off_s: float, collector_off_s: float, tmp_path: Path
) -> None:
    """Nothing is wanted but the last: what was pushed two days ago stays, what was pushed long ago goes."""
    server = Server()
    roots = three_versions(server, tmp_path, pusher_off_s)
    what = kept(roots, roots[2])
    with machine(server, collector_off_s):
        with Collector(Store(server), str(tmp_path / "gc"), clock=lambda: time.time(), limits=Limits(grace=0)) as c:
            plan = c.plan(what)
        assert plan.unwanted == (roots[0].text,)
        assert not list(server.list("g/")), "asking for the time leaves nothing"


@pytest.mark.parametrize("collector_off_s", OFF)
def test_an_intent_of_a_push_under_way_is_left_alone(collector_off_s: float, tmp_path: Path) -> None:
    server = Server()
    roots = three_versions(server, tmp_path, 0)
    local = new_store()
    file = add_file(local, chunks("under way", 20, 300))

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    dying = Before(server, lambda op, key: op == "put" and key.endswith(".ok"), die)
    with machine(server, -TEN_YEARS), pytest.raises(Killed):
        send(local, Store(dying), tmp_path / "pusher", file)
    for later_s, given_up in ((3600, 0), (2 * DAY, 1)):
        server.now += later_s
        collector = Collector(Store(server), str(tmp_path / "gc"), clock=lambda: time.time())
        with machine(server, collector_off_s), collector as c:
            assert len(c.plan(kept(roots, *roots)).give_up) == given_up


@pytest.mark.parametrize("sweeper_off_s", OFF)
@pytest.mark.parametrize("collector_off_s", OFF)
def test_the_grace_is_a_week_of_the_storage(collector_off_s: float, sweeper_off_s: float, tmp_path: Path) -> None:
    """Whoever sets his clock right, or wrong, between condemning and sweeping."""
    server = Server()
    roots = three_versions(server, tmp_path, 0)
    what = kept(roots, roots[1], roots[2])
    limits = Limits(retention=0, young=0, more_than_half=True)
    late = {"p/ab/ab" + "0" * 62: b"of a push that died"}
    for key, data in late.items():
        server.put(key, [data])

    def collector(off_s: float) -> Collector:
        return Collector(Store(server), str(tmp_path / "gc"), clock=lambda: server.now + off_s, limits=limits)

    with machine(server, collector_off_s), collector(collector_off_s) as c:
        assert c.condemn(what, c.plan(what)).packs
    server.now += 6.9 * DAY
    with machine(server, sweeper_off_s), collector(sweeper_off_s) as c, pytest.raises(Exception, match="hours"):
        c.sweep(what)
    server.now += 0.2 * DAY
    with machine(server, sweeper_off_s), collector(sweeper_off_s) as c:
        assert c.sweep(what).packs
    arrives(server, roots[2], C)


@pytest.mark.parametrize("off_s", OFF)
def test_a_record_that_is_old_is_written_again_whatever_the_clock_of_the_pusher_says(
    off_s: float, tmp_path: Path
) -> None:
    server, local = Server(), new_store()
    root = add_folder(local, A)

    def records() -> int:
        with machine(server, off_s):
            push(local, Store(server), [Version(root)], str(tmp_path), owner=Owner("", lambda: {root.text}))
        return len([item for item in server.list("j/") if "." not in item.key])

    first = records()
    server.now += 20 * DAY
    assert records() == first + 1
    if off_s == 0:
        assert records() == first + 1, "it is young now"


def test_without_the_right_to_write_a_plan_goes_by_our_clock_and_says_so(tmp_path: Path) -> None:
    server = Server()
    roots = three_versions(server, tmp_path, 0)

    class ReadOnly(Server):
        def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
            raise RemoteDenied("no right to write", subject=key)

    frozen = ReadOnly()
    frozen._objects, frozen.written, frozen.now = server._objects, server.written, server.now
    told: list[str] = []
    with (
        machine(server, 0),
        Collector(
            Store(frozen),
            str(tmp_path / "gc"),
            on_event=lambda e: told.append(e.message) if isinstance(e, Note) else None,
        ) as c,
    ):
        assert c.plan(kept(roots, *roots)).empty
    assert any("by the clock of this machine" in line for line in told)


def test_without_the_right_to_delete_the_time_is_learned_all_the_same() -> None:
    class Keeps(Server):
        def delete(self, key: str) -> None:
            raise RemoteDenied("no right to delete", subject=key)

    server = Keeps()
    Store(server).create()
    told: list[str] = []
    with machine(server, TEN_YEARS):
        ahead_s = ahead_of_ours(server, on_event=lambda e: told.append(e.message) if isinstance(e, Note) else None)
    assert abs(ahead_s + TEN_YEARS) < 60
    assert any("cannot be removed" in line for line in told)


@pytest.mark.parametrize("off_s", OFF)
def test_a_server_is_asked_for_the_time(off_s: float, s3: S3Address, new_bucket: Callable[[], str]) -> None:
    backend = open_backend(f"s3://{new_bucket()}/team", settings=RemoteSettings(), environ=s3.env)
    Store(backend).create()
    right = time.time
    with mock.patch("dvk.store.clock.time.time", lambda: right() + off_s):
        ahead_s = ahead_of_ours(backend)
    assert abs(ahead_s + off_s) < 60
    assert [row.key for row in backend.list("")] == ["dvk.json"]
    backend.close()
