"""Whose records are whose, how old they may be, and what somebody may do who is alone on the remote."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from collectkit import EAGER, NOW, A, B, C, collect, collector, everything_small, kept, records, three_versions
from msgspec.structs import replace
from synckit import (
    Remote,
    add_file,
    add_folder,
    arrives,
    chunks,
    new_store,
    send,
    small_packs,
)

from dvk.errors import Corrupt, Refused, Unsafe
from dvk.store.collect import Collector, CollectPlan, Kept, Limits
from dvk.store.push import Owner, Version
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_small(monkeypatch)


MINE, THEIRS = "a" * 32, "b" * 32


def test_what_another_projects_record_covers_gets_a_record_alone_and_no_data(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, A)
    send(local, remote.store, tmp_path / "one", root, owner=Owner(MINE))
    packs = remote.keys("p/") + remote.keys("m/")
    done = send(local, remote.store, tmp_path / "two", root, owner=Owner(THEIRS))
    assert [v.root for v in done.covered] == [root] and not done.sent
    assert remote.keys("p/") + remote.keys("m/") == packs
    (alone,) = records(remote, THEIRS)
    (first,) = [
        k[2:] for k in remote.keys("j/") if "." not in k and remote.record(bytes.fromhex(k[2:])).project == MINE
    ]
    assert (alone.roots, alone.packs, alone.reused, alone.bases) == ((root.text,), (), (), (first,))
    count = len(remote.keys("j/"))
    send(local, remote.store, tmp_path / "two", root, owner=Owner(THEIRS))
    assert len(remote.keys("j/")) == count, "one is enough"


def test_a_project_retires_its_own_records_only(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    roots = [add_folder(local, tree) for tree in (A, B, C)]
    for root in roots:
        send(local, remote.store, tmp_path / "one", root, owner=Owner(MINE))
    send(local, remote.store, tmp_path / "two", roots[0], owner=Owner(THEIRS))
    what = kept(roots, roots[2])
    with Collector(remote.store, str(tmp_path / "one"), limits=EAGER, project=MINE, clock=lambda: NOW) as c:
        done = c.condemn(what, c.plan(what))
        if done.packs:
            c.sweep(what)
    arrives(remote.inner, roots[0], A)
    arrives(remote.inner, roots[2], C)
    with Collector(remote.store, str(tmp_path / "two"), limits=EAGER, project=THEIRS, clock=lambda: NOW) as c:
        plan = c.plan(kept([roots[0]]))
        assert len(plan.retire) == 1 and plan.unwanted == (roots[0].text,)


def test_records_of_nobody_are_retired_by_nobody_but_alone(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)  # pushed before `dvk init`
    what = kept(roots, roots[2])
    with Collector(remote.store, str(tmp_path), limits=EAGER, project=MINE, clock=lambda: NOW) as c:
        assert c.plan(what).empty
    alone = Limits(grace=0, young=0, more_than_half=True, exclusive=True)
    with Collector(remote.store, str(tmp_path), limits=alone, project=MINE, clock=lambda: NOW) as c:
        assert c.plan(what).retire


def test_an_old_record_is_written_again_for_what_git_may_not_have_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, local = Remote(), new_store()
    roots = [add_folder(local, A), add_folder(local, C)]
    then = time.time() - 16 * 86400
    with monkeypatch.context() as patch:
        patch.setattr("dvk.store.push.time.time", lambda: then)
        send(local, remote.store, tmp_path, *roots, owner=Owner(MINE))
    asked: list[int] = []

    def unheard() -> set[str]:
        asked.append(1)
        return {roots[0].text}

    before = len(records(remote))
    send(local, remote.store, tmp_path, *roots, owner=Owner(MINE, unheard))
    assert len(records(remote)) == before + 1 and asked == [1]
    young = max(records(remote), key=lambda r: r.time)
    assert young.roots == (roots[0].text,) and young.packs == ()
    send(local, remote.store, tmp_path, *roots, owner=Owner(MINE, unheard))
    assert len(records(remote)) == before + 1
    in_a_month = Limits(grace=0, young=0, more_than_half=True, retention=20 * 86400)
    with Collector(
        remote.store, str(tmp_path), limits=in_a_month, project=MINE, clock=lambda: time.time() + 10 * 86400
    ) as c:
        what = kept(roots)
        if c.condemn(what, c.plan(what)).packs:
            c.sweep(what)
    arrives(remote.inner, roots[0], A)


def test_a_young_record_needs_no_look_at_git(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, A)

    def never() -> set[str]:
        raise AssertionError("Git is asked only where it matters")

    for _ in range(2):
        send(local, remote.store, tmp_path, root, owner=Owner(MINE, never))
    assert len(records(remote)) == 1


# ---------------------------------------------------------------- alone


def alone(remote: Remote, state: Path, local: Store, what: Kept) -> CollectPlan:
    limits = Limits(grace=0, young=0, more_than_half=True, exclusive=True)
    with Collector(Store(remote.inner), str(state), limits=limits, local=local, clock=lambda: NOW) as c:
        plan = c.condemn(what, c.plan(what))
        if plan.packs:
            c.sweep(what)
        return plan


def test_who_is_alone_packs_anew_what_little_lives_in_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch, 64_000)
    remote, local = Remote(), new_store()
    shared = {b"s/%d" % i: chunks(("s", i), 2, 300) for i in range(4)}
    old = {**shared, b"big": chunks("big", 60, 300)}
    new = {**shared, b"n": chunks("n", 3, 300)}
    roots = [add_folder(local, old), add_folder(local, new)]
    send(local, remote.store, tmp_path, roots[0])
    send(local, remote.store, tmp_path, Version(roots[1], (roots[0],)))
    what = kept(roots, roots[1])
    collect(remote.inner, tmp_path, what)
    before = sum(len(x) for x in remote.objects("p/").values())
    assert before > 15_000, "a pack with anything live is live"
    fresh = new_store()
    plan = alone(remote, tmp_path, fresh, what)
    assert plan.repack and sum(len(x) for x in remote.objects("p/").values()) < before / 3
    arrives(remote.inner, roots[1], new)
    assert not remote.keys("g/")
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(what).empty
    edited = {**new, b"more": chunks("more", 2, 300)}
    send(fresh, remote.store, tmp_path / "later", Version(add_folder(fresh, edited), (roots[1],)))
    arrives(remote.inner, add_folder(new_store(), edited), edited)


def test_what_one_push_sent_together_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a part of what a single record and a single pack hold is wanted any more."""
    small_packs(monkeypatch, 64_000)
    remote, local = Remote(), new_store()
    keep, drop = add_file(local, chunks("keep", 5, 300)), add_file(local, chunks("drop", 60, 300))
    send(local, remote.store, tmp_path, keep, drop)
    what = kept([keep, drop], keep)
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(what).empty
    before = sum(len(x) for x in remote.objects("p/").values())
    assert alone(remote, tmp_path, new_store(), what).repack
    assert sum(len(x) for x in remote.objects("p/").values()) < before / 3
    arrives(remote.inner, keep, chunks("keep", 5, 300))


def test_who_is_alone_clears_away_what_others_left(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path / "another") as c:
        c.condemn(what, c.plan(what))  # and never came back
    (abandoned,) = remote.keys("g/c-")
    remote.inner.put("p/ab/ab" + "0" * 62, [b"of a push that died"])
    plan = alone(remote, tmp_path, new_store(), what)
    assert plan.packs and abandoned not in remote.keys("g/")
    assert remote.keys("l/") == [f"l/d/{roots[2].id.hex()[:2]}/{roots[2].id.hex()}"]
    assert all(r.roots == (roots[2].text,) for r in records(remote)), "those of what is gone are removed"
    arrives(remote.inner, roots[2], C)


def test_a_damaged_list_stops_everybody_until_somebody_who_is_alone_removes_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, *roots)
    with collector(remote.inner, tmp_path / "another") as c:
        c.condemn(kept(roots, roots[2]), c.plan(kept(roots, roots[2])))
        c.undo()
    bad = "g/c-" + "0" * 64
    remote.inner.put(bad, [b"a list once"])
    remote.inner.put("g/t-" + "0" * 32, [b"of somebody who was killed while he asked for the time"])
    local = new_store()
    new = add_folder(local, {b"new": chunks("new", 3, 300)})
    with pytest.raises(Corrupt) as caught:
        send(local, remote.store, tmp_path / "pusher", new)
    assert "--sweep --exclusive" in caught.value.hint
    with collector(remote.inner, tmp_path / "gc") as c, pytest.raises(Unsafe) as refused:
        c.plan(what)
    assert "--sweep --exclusive" in refused.value.hint and bad in remote.keys("g/")
    with collector(remote.inner, tmp_path / "gc") as c, pytest.raises(Refused, match="nothing is condemned"):
        c.sweep(what)
    before = set(remote.keys("p/") + remote.keys("m/"))
    with collector(remote.inner, tmp_path / "gc", limits=replace(EAGER, exclusive=True)) as c:
        assert c.sweep(what).packs == 0
    assert not remote.keys("g/") and before == set(remote.keys("p/") + remote.keys("m/"))
    send(local, remote.store, tmp_path / "pusher", new)
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)
