"""Collecting garbage: what is wanted stays whole, what is not goes, and every doubt stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collectkit import EAGER, NOW, A, B, C, collect, collector, everything_small, kept, refused, three_versions
from synckit import (
    Remote,
    add_file,
    add_folder,
    arrives,
    chunks,
    new_store,
    send,
)

from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, Refused
from dvk.events import Note
from dvk.store.collect import Collector, Limits
from dvk.store.push import Version
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_small(monkeypatch)


def test_what_is_wanted_stays_whole_and_the_rest_goes(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    before = sum(len(x) for x in remote.objects("p/").values())
    plan = collect(remote.inner, tmp_path, kept(roots, roots[2]))
    arrives(remote.inner, roots[2], C)
    after = sum(len(x) for x in remote.objects("p/").values())
    assert plan.packs and after < before - plan.bytes / 2
    assert not remote.keys("g/")
    unwanted = Remote(remote.inner)
    assert not set(plan.packs) & set(unwanted.keys())


@pytest.mark.parametrize("wanted", [[0], [1], [0, 2], [1, 2], [0, 1, 2]])
def test_any_choice_of_versions_stays_whole(wanted: list[int], tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    collect(remote.inner, tmp_path, kept(roots, *(roots[i] for i in wanted)))
    for i in wanted:
        arrives(remote.inner, roots[i], (A, B, C)[i])
    collect(remote.inner, tmp_path, kept(roots, *(roots[i] for i in wanted)))
    for i in wanted:
        arrives(remote.inner, roots[i], (A, B, C)[i])


def test_a_second_collection_finds_nothing_more(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    collect(remote.inner, tmp_path, what)
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(what).empty


def test_what_git_here_never_named_is_somebody_elses_and_stays(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    stranger = new_store()
    theirs = add_file(stranger, chunks("theirs", 30, 300))
    send(stranger, remote.store, tmp_path / "other", theirs)
    collect(remote.inner, tmp_path, kept(roots, roots[2]))
    arrives(remote.inner, theirs, chunks("theirs", 30, 300))


def test_after_a_collection_a_push_sends_only_what_is_new(tmp_path: Path) -> None:
    """A compaction puts the locators again, so that pushers know what the remote has."""
    remote, roots = three_versions(tmp_path)
    collect(remote.inner, tmp_path, kept(roots, roots[2]))
    local = arrives(remote.inner, roots[2], C)
    packs = set(remote.keys("p/"))
    send(local, remote.store, tmp_path / "clone", roots[2])
    assert set(remote.keys("p/")) == packs
    edited = {**C, b"new": chunks("new", 5, 300)}
    send(local, remote.store, tmp_path / "clone", Version(add_folder(local, edited), (roots[2],)))
    sent = sum(remote.inner.stat(k) or 0 for k in set(remote.keys("p/")) - packs)
    assert sent < 10 * 400, "the new chunks and a footer"


def test_what_was_collected_can_be_pushed_again(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    v1, v2 = add_folder(local, A), add_folder(local, C)
    send(local, remote.store, tmp_path, v1, v2)
    collect(remote.inner, tmp_path, kept([v1, v2], v2))
    send(local, remote.store, tmp_path, v1)
    arrives(remote.inner, v1, A)
    arrives(remote.inner, v2, C)


def test_condemned_data_can_be_taken_back_until_it_is_swept(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path) as c:
        c.condemn(what, c.plan(what))
        assert remote.keys("g/c-")
        assert len(c.undo().kept) >= 2
        assert not remote.keys("g/c-")
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)
    collect(remote.inner, tmp_path, kept(roots, *roots))
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


def test_the_grace_is_kept(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    limits = Limits(young=0, more_than_half=True, grace=1000)
    with collector(remote.inner, tmp_path, limits=limits) as c:
        plan = c.condemn(what, c.plan(what))
        with pytest.raises(Refused, match="hours"):
            c.sweep(what)
        with pytest.raises(Refused, match="condemned already"):
            c.condemn(what, plan)
    with collector(remote.inner, tmp_path, limits=limits, clock=lambda: NOW + 1001) as c:
        assert c.ripe_at == NOW + 1000
        assert c.sweep(what).packs == len(plan.packs)
    arrives(remote.inner, roots[2], C)


def test_records_younger_than_the_retention_stay(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    now = remote.record(bytes.fromhex(next(k for k in remote.keys("j/") if k.endswith(".ok"))[2:-3])).time
    with collector(remote.inner, tmp_path, clock=lambda: now + 86400) as c:
        assert c.plan(kept(roots, roots[2])).empty


def test_packs_that_no_record_ever_named_are_not_judged_at_first_sight(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    remote.inner.put("p/ab/ab" + "0" * 62, [b"of a push that is under way"])
    what = kept(roots, *roots)
    limits = Limits(grace=0, more_than_half=True)
    with collector(remote.inner, tmp_path, limits=limits) as c:
        plan = c.plan(what)
        assert plan.empty and plan.young == 1
    with collector(remote.inner, tmp_path, limits=limits, clock=lambda: NOW + 86401) as c:
        assert c.plan(what).packs == ("p/ab/ab" + "0" * 62,)


def test_a_plan_that_was_looked_at_is_the_one_that_is_done(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path) as c:
        plan = c.plan(what)
        with pytest.raises(Refused, match="changed since"):
            c.condemn(kept(roots, *roots), plan)
    assert not remote.keys("g/")


# ---------------------------------------------------------------- gates


def test_more_than_half_is_refused_unless_it_is_said(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    big, small = add_file(local, chunks("big", 60, 300)), add_file(local, chunks("small", 5, 300))
    send(local, remote.store, tmp_path, big)
    send(local, remote.store, tmp_path, small)
    what = kept([big, small], small)
    refused(remote.inner, tmp_path, what, "more than half", limits=Limits(grace=0, young=0))
    assert collect(remote.inner, tmp_path, what).packs
    arrives(remote.inner, small, chunks("small", 5, 300))


def test_a_collection_that_would_leave_nothing_is_refused(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    refused(remote.inner, tmp_path, kept(roots), "nothing that is wanted")


def test_a_remote_without_a_record_is_refused(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    for key in remote.keys("j/"):
        remote.inner.delete(key)
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "no record")


@pytest.mark.parametrize("damage", ["flip", "cut", "other"])
def test_a_record_that_cannot_be_read_stops_it(damage: str, tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    key = next(k for k in remote.keys("j/") if "." not in k)
    data = remote.inner.get(key, max_bytes=1 << 20)
    bad = {"flip": data.replace(b'"format":1', b'"format":2'), "cut": data[:-5], "other": b"{}"}[damage]
    remote.inner.put(key, [bad])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "cannot be read")


def test_an_unknown_thing_among_records_stops_it_and_is_described(tmp_path: Path) -> None:
    """It may say what is needed."""
    remote, roots = three_versions(tmp_path)
    remote.inner.put("j/" + "0" * 64 + ".y", [b"seven b"])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "no record lies among the records .7 bytes")


def test_an_unknown_thing_among_packs_stops_nothing_is_told_and_stays(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    strange = ["p/zz", "m/ab/ab" + "0" * 62 + ".part", *(f"p/notes-{i}.txt" for i in range(9))]
    for key in strange:
        remote.inner.put(key, [b"mine"])
    told: list[str] = []
    what = kept(roots, roots[2])
    with Collector(
        Store(remote.inner),
        str(tmp_path),
        limits=EAGER,
        clock=lambda: NOW,
        on_event=lambda e: told.append(e.message) if isinstance(e, Note) else None,
    ) as c:
        assert c.condemn(what, c.plan(what)).packs
        c.sweep(what)
    assert set(strange) <= set(remote.keys(""))
    assert any("p/zz (4 bytes)" in line or "p/notes" in line for line in told) and "and 6 more of these" in told
    arrives(remote.inner, roots[2], C)


def test_a_hole_in_a_listing_stops_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path) as c:
        c.plan(what)
    bare = [k for k in remote.keys("j/") if "." not in k]
    for key in bare:
        data, ok = remote.inner.get(key, max_bytes=1 << 20), remote.inner.get(key + ".ok", max_bytes=1 << 20)
        remote.inner.delete(key)
        refused(remote.inner, tmp_path, what, "hole|relies on a record")
        remote.inner.delete(key + ".ok")
        refused(remote.inner, tmp_path, what, "at the last look|relies on a record")
        remote.inner.put(key, [data])
        remote.inner.put(key + ".ok", [ok])


def test_a_pack_that_is_relied_on_and_gone_stops_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    remote.inner.delete(remote.keys("p/")[0])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "relies on this pack")


@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_a_loss_that_was_mended_stops_nothing(prefix: str, tmp_path: Path) -> None:
    """What is sent again has another name, and the record that named what is lost stays there."""
    local = new_store()
    roots = [add_folder(local, tree) for tree in (A, B, C)]
    versions = [Version(root, tuple(reversed(roots[:i]))) for i, root in enumerate(roots)]
    before = three_versions(tmp_path / "before")[0]
    for n, victim in enumerate(before.keys(prefix)):
        inner = MemoryBackend("remote")
        for key, data in before.objects().items():
            inner.put(key, [data])
        inner.delete(victim)
        what = kept(roots, roots[2])
        refused(inner, tmp_path / f"{n}", what, "relies on this pack")
        send(local, Store(inner), tmp_path / f"{n}", *versions)
        collect(inner, tmp_path / f"{n}", what)
        arrives(inner, roots[2], C)


def test_a_wanted_version_whose_locator_is_gone_stops_a_compaction(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    remote.inner.delete(f"l/d/{roots[2].id.hex()[:2]}/{roots[2].id.hex()}")
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "cannot be followed")


def test_a_condemned_list_that_cannot_be_read_stops_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    remote.inner.put("g/c-" + "0" * 32, [b"{}"])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "condemned list")


def test_a_feature_that_this_dvk_does_not_know_stops_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    raw = json.loads(remote.inner.get("dvk.json", max_bytes=1 << 20))
    raw["features"]["gc"] = ["later"]
    remote.inner.put("dvk.json", [(json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()])
    with collector(remote.inner, tmp_path) as c, pytest.raises(Exception, match="later"):
        c.plan(kept(roots, roots[2]))


def test_what_this_clone_remembers_is_checked(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    with collector(remote.inner, tmp_path) as c:
        c.plan(kept(roots, roots[2]))
    next(tmp_path.glob("*/collect.json")).write_text("{")
    with collector(remote.inner, tmp_path) as c, pytest.raises(Corrupt, match="remembers"):
        c.plan(kept(roots, roots[2]))
