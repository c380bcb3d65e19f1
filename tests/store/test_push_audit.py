"""What a remote promised and lost: noticed by each push where that is cheap, by `--verify full` always, and healed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import synckit as kit
from msgspec.structs import replace
from storekit import keys
from synckit import Around, Heard, Remote, add_file, add_folder, arrives, chunks, new_store, send

from dvk.backend.contract import Backend, Buffer
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.errors import RemoteError
from dvk.store import push_audit
from dvk.store.fetch import Wanted, fetch
from dvk.store.locator import format_locator, locator_key
from dvk.store.push import Version, plan_push, push
from dvk.store.root import Root
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(120)

OLD = {b"%02d" % i: chunks(i, 1 + i % 3) for i in range(30)} | {b"05big": chunks("big", 25)}
NEW = {**OLD, b"03": chunks("new", 5), b"05big": (*chunks("big", 24), b"tail")}
FILE = chunks("file", 12)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.small_packs(monkeypatch, 2500)


@pytest.fixture(params=["inline", "in packs"])
def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Remote, Store, list[Version]]:
    """Three versions on a remote, pushed one after the other; each relies on what was there."""
    if request.param == "in packs":
        kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    old, new, file = add_folder(local, OLD), add_folder(local, NEW), add_file(local, FILE)
    versions = [Version(old), Version(new, (old,)), Version(file)]
    for version in versions:
        send(local, remote.store, tmp_path / "state", version)
    return remote, local, versions


def all_arrive(remote: Backend, versions: list[Version]) -> None:
    for version, what in zip(versions, (OLD, NEW, FILE), strict=True):
        arrives(remote, version.root, what)


def copies(world: Remote, state: Path, prefix: str, place: Path) -> Iterator[tuple[str, Remote, str]]:
    """For each object under a prefix: its key, a remote of its own, and a state directory of its own."""
    for n, victim in enumerate(world.keys(prefix)):
        inner = MemoryBackend("remote")
        for key, data in world.objects().items():
            inner.put(key, [data])
        mine = place / f"{n}"
        if state.exists():
            shutil.copytree(state, mine)
        yield victim, Remote(inner), str(mine)


def flip(backend: Backend, key: str, at: int) -> None:
    data = bytearray(backend.get(key, max_bytes=1 << 30))
    data[at] ^= 1
    backend.put(key, [bytes(data)])


# ---------------------------------------------------------------- gone


@pytest.mark.parametrize("asked", [0, 1000], ids=["by a listing", "one by one"])
@pytest.mark.parametrize("state", ["state", "another"])
@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_a_plain_push_notices_each_pack_that_is_gone_and_sends_it_again(
    prefix: str,
    state: str,
    asked: int,
    world: tuple[Remote, Store, list[Version]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether this clone remembers its pushes or not; only what is missing goes, and what relies on it is mended."""
    monkeypatch.setattr(push_audit, "ASKED_ONE_BY_ONE", asked)
    before, local, versions = world
    for key, remote, mine in copies(before, tmp_path / state, prefix, tmp_path / "copies"):
        data = remote.inner.get(key, max_bytes=1 << 30)
        remote.inner.delete(key)
        heard = Heard()
        planned = plan_push(local, remote.store, versions, mine)
        done = push(local, remote.store, versions, mine, on_event=heard)
        assert done.sent and done.lost == (key,) and key in str(heard.notes[0])
        assert [v.root for v in planned.sent] == [v.root for v in done.sent]
        assert done.new_bytes <= (200 if prefix == "m/" else 2 * len(data))
        all_arrive(remote.inner, versions)
        again = push(local, remote.store, versions, mine)
        assert not again.sent and not again.lost


@pytest.mark.parametrize("asked", [0, 1000], ids=["by a listing", "one by one"])
def test_a_pack_without_bytes_is_as_good_as_gone(
    asked: int, world: tuple[Remote, Store, list[Version]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_audit, "ASKED_ONE_BY_ONE", asked)
    remote, local, versions = world
    victims = [remote.keys(prefix)[0] for prefix in ("p/", "m/")]
    for key in victims:
        remote.inner.put(key, [b""])
    done = push(local, remote.store, versions, str(tmp_path / "state"))
    assert set(done.lost) == set(victims) and not done.absent
    all_arrive(remote.inner, versions)


def test_what_is_gone_and_not_here_either_is_named(world: tuple[Remote, Store, list[Version]], tmp_path: Path) -> None:
    remote, local, versions = world
    other = new_store()
    fetch(remote.store, other, [Wanted(versions[2].root)])
    for key in remote.keys("p/"):
        remote.inner.delete(key)
    done = push(other, remote.store, versions, str(tmp_path / "other"))
    assert [v.root for v in done.sent] == [versions[2].root]
    assert [v.root for v, _ in done.absent] == [v.root for v in versions[:2]]
    assert all(e.kind == "data-missing" for _, e in done.absent)
    arrives(remote.inner, versions[2].root, FILE)
    assert not push(local, remote.store, versions, str(tmp_path / "state")).absent
    all_arrive(remote.inner, versions)


@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_a_push_of_the_newest_version_alone_asks_for_what_earlier_ones_brought(
    prefix: str, world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    """Its record names only what its own push sent; the rest is named by records of versions that nobody asks for."""
    before, local, versions = world
    newest = Version(versions[1].root)
    for key, remote, mine in copies(before, tmp_path / "state", prefix, tmp_path / "copies"):
        remote.inner.delete(key)
        done = push(local, remote.store, [newest], mine)
        assert not done.absent
        arrives(remote.inner, newest.root, NEW)


def test_a_long_history_is_not_followed_one_request_after_the_other(tmp_path: Path) -> None:
    """Forty pushes, each on top of the one before; the oldest pack is gone, and only the newest version is pushed."""
    remote, local = Remote(), new_store()
    tree = dict(OLD)
    roots: list[Root] = []
    for n in range(40):
        tree[b"%02d" % (n % 20)] = chunks(("edit", n), 2)
        roots.append(add_folder(local, tree))
        send(local, remote.store, tmp_path / "state", Version(roots[-1], tuple(reversed(roots[:-1]))[:3]))
    rid = remote.locator(roots[0]).record
    victim = next(p for p in remote.record(rid).packs if p.startswith("p/"))
    watched = CountingBackend(remote.inner, keep_calls=True)
    assert push(local, Store(watched), [Version(roots[-1])], str(tmp_path / "fresh")).covered
    calls = watched.counts.calls
    assert calls.count(("list", "j/")) == 1 and calls.index(("list", "j/")) < 20
    remote.inner.delete(victim)
    done = push(local, remote.store, [Version(roots[-1])], str(tmp_path / "other"))
    assert victim in done.lost and not done.absent
    arrives(remote.inner, roots[-1], tree)


@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_an_edit_does_not_rely_on_what_is_gone_without_a_look(
    prefix: str, world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    """Sections that did not change are not read, so the packs that they lead to are asked for by their record."""
    before, local, versions = world
    tree = {**NEW, b"28": chunks("edit", 4)}
    edited = add_folder(local, tree)
    for key, remote, mine in copies(before, tmp_path / "another", prefix, tmp_path / "copies"):
        remote.inner.delete(key)
        done = push(local, remote.store, [Version(edited, (versions[1].root,))], mine)
        assert not done.absent
        arrives(remote.inner, edited, tree)


# ---------------------------------------------------------------- damaged


@pytest.mark.parametrize(("where", "state"), [("block", "another"), ("footer", "state"), ("end", "state")])
@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_reading_all_back_finds_each_damaged_pack_and_heals_it(
    prefix: str, where: str, state: str, world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    before, local, versions = world
    for key, remote, mine in copies(before, tmp_path / state, prefix, tmp_path / "copies"):
        size = remote.inner.stat(key)
        assert size
        flip(remote.inner, key, {"block": 60, "footer": size - 120, "end": size - 9}[where])
        done = push(local, remote.store, versions, mine, verify_all=True)
        assert key in done.lost and done.sent and not done.absent and done.read_back_bytes > 0
        all_arrive(remote.inner, versions)
        again = push(local, remote.store, versions, mine, verify_all=True)
        assert not again.sent and not again.lost and again.read_back_bytes


def test_reading_all_back_of_a_whole_remote_sends_nothing_and_reads_each_block_once(
    world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    remote, local, versions = world
    before = remote.objects()
    done = push(local, remote.store, versions, str(tmp_path / "state"), verify_all=True)
    assert len(done.covered) == 3 and not done.sent and not done.lost
    assert remote.objects() == before
    stored = sum(len(data) for key, data in before.items() if key[:2] in ("p/", "m/"))
    assert 0.5 * stored < done.read_back_bytes <= stored


def damaged_locator(good: bytes) -> bytes:
    return good[:-1] + bytes([good[-1] ^ 1])


@pytest.mark.parametrize("which", [0, 1, 2], ids=["old", "new", "file"])
@pytest.mark.parametrize("how", ["damaged", "gone", "of the other folder", "leads nowhere"])
def test_reading_all_back_writes_a_bad_locator_again_and_sends_no_data(
    how: str, which: int, world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    remote, local, versions = world
    root = versions[which].root
    key = locator_key(root.kind, root.id)
    good = remote.inner.get(key, max_bytes=1 << 30)
    if how == "gone":
        remote.inner.delete(key)
    elif how == "damaged":
        remote.inner.put(key, [damaged_locator(good)])
    elif how == "of the other folder":
        other = versions[1 - min(which, 1)].root
        remote.inner.put(key, [remote.inner.get(locator_key(other.kind, other.id), max_bytes=1 << 30)])
    else:
        found = remote.locator(root)
        away = tuple(replace(r, offset=r.offset + 8) for r in found.sections)
        remote.inner.put(key, [format_locator(replace(found, sections=away, inline=()))])
    packs = remote.keys("p/")
    heard = Heard()
    done = push(local, remote.store, versions, str(tmp_path / "state"), verify_all=True, on_event=heard)
    assert [v.root for v in done.sent] == [root] and not done.lost
    assert bool(heard.notes) == (how != "gone") and all("written again" in n.message for n in heard.notes)
    assert remote.keys("p/") == packs and done.new_bytes == 0
    all_arrive(remote.inner, versions)


def test_a_clone_that_knows_that_it_pushed_mends_a_locator_that_is_gone_without_sending_data(
    world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    """A plain push: the record is live and leads to the packs."""
    remote, local, versions = world
    packs = remote.keys("p/")
    for key in remote.keys("l/"):
        remote.inner.delete(key)
    done = push(local, remote.store, versions, str(tmp_path / "state"))
    assert len(done.sent) == 3 and done.new_bytes == 0 and remote.keys("p/") == packs
    all_arrive(remote.inner, versions)


def test_a_remote_that_swaps_two_packs_is_found_out(world: tuple[Remote, Store, list[Version]], tmp_path: Path) -> None:
    remote, local, versions = world
    a, b, *_ = remote.keys("p/")
    one, two = (remote.inner.get(key, max_bytes=1 << 30) for key in (a, b))
    remote.inner.put(a, [two])
    remote.inner.put(b, [one])
    done = push(local, remote.store, versions, str(tmp_path / "state"), verify_all=True)
    assert {a, b} <= set(done.lost)
    all_arrive(remote.inner, versions)


def test_a_clone_that_holds_nothing_else_can_read_back_too(
    world: tuple[Remote, Store, list[Version]], tmp_path: Path
) -> None:
    """Who asks need not hold the data for it; only what is bad cannot be healed then, and is named."""
    remote, local, versions = world
    empty = new_store()
    done = push(empty, remote.store, versions, str(tmp_path / "other"), verify_all=True)
    assert len(done.covered) == 3 and done.read_back_bytes
    victim = next(iter(keys(remote.inner, "p/")))
    flip(remote.inner, victim, 60)
    done = push(empty, remote.store, versions, str(tmp_path / "other"), verify_all=True)
    assert victim in done.lost and done.absent
    assert not push(local, remote.store, versions, str(tmp_path / "state"), verify_all=True).absent
    all_arrive(remote.inner, versions)


# ---------------------------------------------------------------- locators are looked at when they were written


class Locators(Around):
    """Does something else than to put a locator."""

    def __init__(self, inner: Backend, instead: Callable[[str, bytes], None]) -> None:
        super().__init__(inner)
        self._instead = instead

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        if key.startswith("l/"):
            self._instead(key, b"".join(parts))
        else:
            super().put(key, parts, create_only=create_only)


@pytest.mark.parametrize("verify_all", [False, True])
@pytest.mark.parametrize("fault", ["not kept", "cut", "spoilt", "the one before"])
def test_a_locator_that_the_remote_does_not_hold_as_it_was_sent_is_no_success(
    fault: str, verify_all: bool, tmp_path: Path
) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, OLD)
    if fault == "the one before":
        send(local, remote.store, tmp_path / "1", root)
        for key in remote.keys("p/"):
            remote.inner.delete(key)  # so that it has to be sent again, with other packs
    before = set(remote.keys("j/"))

    def instead(key: str, data: bytes) -> None:
        if fault == "cut":
            remote.inner.put(key, [data[:-1]])
        elif fault == "spoilt":
            remote.inner.put(key, [data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]])

    with pytest.raises(RemoteError, match="locator") as caught:
        push(local, Store(Locators(remote.inner, instead)), [Version(root)], str(tmp_path / "2"), verify_all=verify_all)
    assert "remote check" in caught.value.hint
    assert not [k for k in set(remote.keys("j/")) - before if k.endswith(".ok")]
    send(local, remote.store, tmp_path / "2", root)
    arrives(remote.inner, root, OLD)


def test_a_locator_that_somebody_else_wrote_right_after_ours_is_as_good(tmp_path: Path) -> None:
    remote, one, two = Remote(), new_store(), new_store()
    root = add_folder(one, OLD)
    add_folder(two, OLD)

    def instead(key: str, data: bytes) -> None:
        remote.inner.put(key, [data])
        push(two, remote.store, [Version(root)], str(tmp_path / "2"))

    send(one, Store(Locators(remote.inner, instead)), tmp_path / "1", root)
    arrives(remote.inner, root, OLD)
