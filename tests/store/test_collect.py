"""Collecting garbage: what is wanted stays whole, what is not goes, and every doubt stops it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from synckit import (
    Before,
    Remote,
    add_file,
    add_folder,
    arrives,
    chunks,
    never_inline,
    new_store,
    send,
    small_packs,
    small_pages,
)

from dvk.backend.contract import Backend, Buffer
from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, Refused, Unsafe
from dvk.store.collect import Collector, CollectPlan, Kept, Limits
from dvk.store.push import Owner, Version
from dvk.store.record import format_mark
from dvk.store.root import Root
from dvk.store.roots import load_record
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)

NOW = 4_000_000_000  # long after every record of these tests, so that all are old
A = {b"a/%d" % i: chunks(("a", i), 3, 300) for i in range(12)}
B = {**A, b"b": chunks("b", 40, 300)}
C = {b"a/1": A[b"a/1"], b"c": chunks("c", 40, 300)}
EAGER = Limits(grace=0, young=0, more_than_half=True)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pages(monkeypatch)
    small_packs(monkeypatch)
    never_inline(monkeypatch)


def collector(
    backend: Backend, state: Path, *, limits: Limits = EAGER, clock: Callable[[], float] = lambda: NOW
) -> Collector:
    return Collector(Store(backend), str(state), limits=limits, clock=clock)


def kept(known: list[Root], *wanted: Root) -> Kept:
    return Kept(frozenset(r.text for r in known), frozenset(r.text for r in wanted))


def collect(backend: Backend, state: Path, what: Kept, **settings: Any) -> CollectPlan:
    with collector(backend, state, **settings) as c:
        plan = c.condemn(what, c.plan(what))
        if plan.packs:
            c.sweep(what)
        return plan


def three_versions(state: Path) -> tuple[Remote, list[Root]]:
    remote, local = Remote(), new_store()
    roots: list[Root] = []
    for tree in (A, B, C):
        roots.append(add_folder(local, tree))
        send(local, remote.store, state, Version(roots[-1], tuple(reversed(roots[:-1]))))
    return remote, roots


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


def refused(remote: Backend, state: Path, what: Kept, words: str, **settings: Any) -> None:
    before = sorted(item.key for item in remote.list("p/"))
    with collector(remote, state, **settings) as c, pytest.raises(Unsafe, match=words):
        c.plan(what)
    assert sorted(item.key for item in remote.list("p/")) == before


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


def test_an_unknown_thing_among_records_or_packs_stops_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    remote.inner.put("j/" + "0" * 64 + ".y", [b""])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "no record lies among")
    remote.inner.delete("j/" + "0" * 64 + ".y")
    remote.inner.put("p/zz", [b""])
    refused(remote.inner, tmp_path, kept(roots, roots[2]), "no pack lies among")


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


# ---------------------------------------------------------------- beside others


def test_intents_of_dead_pushes_go_after_a_while_and_their_packs_too(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    local = new_store()
    dead = add_file(local, chunks("dead", 10, 300))

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    dying = Before(remote.inner, lambda op, key: op == "put" and key.endswith(".ok"), die)
    with pytest.raises(Killed):
        send(local, Store(dying), tmp_path / "dead", dead)
    what = kept(roots, *roots)
    plan = collect(remote.inner, tmp_path, what)
    assert len(plan.give_up) == 1 and plan.packs
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)
    send(local, remote.store, tmp_path / "dead", dead)
    arrives(remote.inner, dead, chunks("dead", 10, 300))


@pytest.mark.parametrize("when", ["g/c-", "j/", "p/"])
def test_a_push_in_the_middle_of_a_collection_is_whole(when: str, tmp_path: Path) -> None:
    """Somebody pushes what is being collected, at each turn of the collection; Git hears of it before the sweep."""
    pusher = new_store()
    again = add_folder(pusher, A)
    moments = 0
    for target in range(1, 12):
        state = tmp_path / f"{when[0]}{target}"
        remote, roots = three_versions(state)
        assert again == roots[0]
        seen = [0]

        def turn(op: str, key: str, seen: list[int] = seen, target: int = target) -> bool:
            if op in ("put", "list") and key.startswith(when):
                seen[0] += 1
            return seen[0] == target

        def push_it(remote: Remote = remote, state: Path = state) -> None:
            send(pusher, remote.store, state / "pusher", again)

        backend = Before(remote.inner, turn, push_it)
        what = kept(roots, roots[2])
        with collector(backend, state) as c:
            try:
                plan = c.condemn(what, c.plan(what))
                now = kept(roots, roots[2], *([roots[0]] if backend.done else []))
                if plan.packs:
                    c.sweep(now)
            except Refused:
                pass  # it noticed; what matters is that nothing is lost
        arrives(remote.inner, roots[2], C)
        if backend.done:
            moments += 1
            arrives(remote.inner, roots[0], A)
    assert moments >= 3


def test_what_git_wants_again_before_the_sweep_stays(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path) as c:
        c.condemn(what, c.plan(what))
        c.sweep(kept(roots, roots[1], roots[2]))
    arrives(remote.inner, roots[1], B)
    arrives(remote.inner, roots[2], C)
    assert not remote.keys("g/c-")
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(kept(roots, roots[1], roots[2])).empty


def test_what_another_clone_retired_and_git_here_wants_is_not_deleted_by_us(tmp_path: Path) -> None:
    """The other one has not heard of the branch; its grace is a week, ours is over at once."""
    remote, roots = three_versions(tmp_path)
    theirs, ours = kept(roots, roots[2]), kept(roots, roots[1], roots[2])
    with collector(remote.inner, tmp_path / "theirs") as c:
        assert c.condemn(theirs, c.plan(theirs)).packs
    with pytest.raises(Unsafe, match="another collection") as caught:
        collect(remote.inner, tmp_path / "ours", ours)
    assert "dvk push" in caught.value.hint
    for i in (1, 2):
        arrives(remote.inner, roots[i], (A, B, C)[i])
    with collector(remote.inner, tmp_path / "theirs") as c:
        c.undo()
    with collector(remote.inner, tmp_path / "ours") as c:
        c.sweep(ours)
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


def test_what_another_clone_retired_before_it_was_killed_is_covered_again_where_git_wants_it(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    theirs, ours = kept(roots, roots[2]), kept(roots, roots[1], roots[2])

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    dying = Before(remote.inner, lambda op, key: op == "put" and key.startswith("g/c-"), die)
    with collector(dying, tmp_path / "theirs") as c, pytest.raises(Killed):
        c.condemn(theirs, c.plan(theirs))
    assert collect(remote.inner, tmp_path / "ours", ours).packs
    arrives(remote.inner, roots[1], B)
    arrives(remote.inner, roots[2], C)
    with collector(remote.inner, tmp_path / "ours") as c:
        assert c.plan(ours).empty


def test_a_list_that_comes_to_light_during_the_last_look_warned_nobody(tmp_path: Path) -> None:
    """The collector was killed while it sent the list, and the server takes it late: between records and lists.

    A push that looks in between sees no list and takes its packs for good; a pack that no record ever named is what it
    finds in its journal.
    """
    remote, roots = three_versions(tmp_path)
    local = new_store()
    file = add_file(local, chunks("resumed", 20, 300))

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    early = Before(remote.inner, lambda op, key: op == "put" and key.startswith("j/"), die)
    with pytest.raises(Killed):
        send(local, Store(early), tmp_path / "pusher", file)
    what = kept(roots, *roots)
    late: dict[str, bytes] = {}

    class Slow(Before):
        def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
            if key.startswith("g/c-"):
                late[key] = b"".join(parts)
                raise Killed
            super().put(key, parts, create_only=create_only)

    with collector(Slow(remote.inner, lambda *_: False, die), tmp_path) as c, pytest.raises(Killed):
        c.condemn(what, c.plan(what))
    assert late

    def push_then_publish() -> None:
        send(local, remote.store, tmp_path / "pusher", file)
        for key, data in late.items():
            remote.inner.put(key, [data])

    between = Before(remote.inner, lambda op, key: op == "list" and key == "p/", push_then_publish)
    with collector(between, tmp_path) as c:
        c.sweep(what)
    assert between.done
    arrives(remote.inner, file, chunks("resumed", 20, 300))


def test_an_intent_on_a_base_that_was_removed_meanwhile_does_not_stop_collections_for_ever(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    local = new_store()
    for tree in (A, B):
        add_folder(local, tree)
    edited = add_folder(local, {**B, b"new": chunks("new", 10, 300)})

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    def collect_all() -> None:
        collect(remote.inner, tmp_path, what)

    collecting = Before(remote.inner, lambda op, key: op == "put" and key.startswith("j/"), collect_all)
    dying = Before(collecting, lambda op, key: op == "list" and key == "g/c-", die)
    with pytest.raises(Killed):
        send(local, Store(dying), tmp_path / "pusher", Version(edited, (roots[1],)))
    assert collecting.done
    (intent,) = [k for k in remote.keys("j/") if "." not in k and f"{k}.ok" not in remote.keys("j/")]
    bases = load_record(remote.inner, bytes.fromhex(intent[2:])).bases
    assert any(f"j/{base}" not in remote.keys("j/") for base in bases)
    plan = collect(remote.inner, tmp_path, what)
    assert plan.give_up
    arrives(remote.inner, roots[2], C)
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(what).empty


def test_a_collector_that_is_killed_anywhere_goes_on_and_loses_nothing(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    for target in range(0, 60, 2):
        state = tmp_path / str(target)
        remote, roots = three_versions(state)
        what = kept(roots, roots[2])
        count = [0]

        class Changes(Before):
            def delete(self, key: str) -> None:
                self._look("delete", key)
                super().delete(key)

        def turn(op: str, key: str, count: list[int] = count, target: int = target) -> bool:
            count[0] += op in ("put", "delete")
            return op in ("put", "delete") and count[0] > target

        backend = Changes(remote.inner, turn, die)
        with collector(backend, state) as c:
            try:
                if c.condemn(what, c.plan(what)).packs:
                    c.sweep(what)
            except Killed:
                pass
        arrives(remote.inner, roots[2], C)
        with collector(remote.inner, state) as c:
            if c.ripe_at is not None:
                c.sweep(what)
        collect(remote.inner, state, what)
        arrives(remote.inner, roots[2], C)
        assert not remote.keys("g/c-")


def test_a_given_up_record_that_was_confirmed_after_all_keeps_its_packs(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    for key in [k for k in remote.keys("j/") if "." not in k]:
        remote.inner.put(key + ".e", [format_mark(bytes.fromhex(key[2:]))])
    with collector(remote.inner, tmp_path) as c:
        assert c.plan(kept(roots, *roots)).empty
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


# ---------------------------------------------------------------- projects, and records that are old


MINE, THEIRS = "a" * 32, "b" * 32


def records(remote: Remote, project: str = "") -> list[Any]:
    found = [remote.record(bytes.fromhex(k[2:])) for k in remote.keys("j/") if "." not in k]
    return [r for r in found if not project or r.project == project]


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


# ---------------------------------------------------------------- crashes that must not block


def test_a_confirmation_that_comes_after_its_packs_were_deleted_blocks_nothing(tmp_path: Path) -> None:
    """The pusher slept between its looks and its confirmation; the collector died before it removed the record."""
    remote, roots = three_versions(tmp_path)
    local = new_store()
    dead = add_file(local, chunks("dead", 10, 300))

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    sleeping = Before(remote.inner, lambda op, key: op == "put" and key.endswith(".ok"), die)
    with pytest.raises(Killed):
        send(local, Store(sleeping), tmp_path / "dead", dead)
    (intent,) = [k for k in remote.keys("j/") if "." not in k and f"{k}.ok" not in remote.keys("j/")]

    class Dying(Before):
        def delete(self, key: str) -> None:
            if key.startswith("j/"):
                raise Killed
            super().delete(key)

    what = kept(roots, *roots)
    with collector(Dying(remote.inner, lambda *_: False, die), tmp_path) as c, pytest.raises(Killed):
        c.condemn(what, c.plan(what))
        c.sweep(what)
    left = set(remote.keys())
    assert any(k not in left for k in remote.record(bytes.fromhex(intent[2:])).packs)
    remote.inner.put(intent + ".ok", [format_mark(bytes.fromhex(intent[2:]))])  # it wakes up
    with collector(remote.inner, tmp_path) as c:
        assert c.ripe_at is not None
        c.sweep(what)
        c.plan(what)
    collect(remote.inner, tmp_path / "another", what)
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


@pytest.mark.parametrize("prefix", ["p/", "m/"])
def test_what_was_lost_and_mended_can_be_taken_back(prefix: str, tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    local = new_store()
    for tree in (A, B, C):
        add_folder(local, tree)
    versions = [Version(root, tuple(reversed(roots[:i]))) for i, root in enumerate(roots)]
    remote.inner.delete(remote.keys(prefix)[0])
    send(local, Store(remote.inner), tmp_path, *versions)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path) as c:
        c.condemn(what, c.plan(what))
        done = c.undo()
        assert not done.lost and set(done.kept) >= {roots[0].text, roots[1].text}
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


def test_undo_names_what_is_gone_and_brings_back_the_rest(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    files = [add_file(local, chunks(i, 10, 300)) for i in range(3)]
    for file in files:
        send(local, remote.store, tmp_path, file)
    what = kept(files, files[2])

    class Killed(Exception):
        pass

    class Dying(Before):
        def delete(self, key: str) -> None:
            super().delete(key)
            raise Killed

    with collector(Dying(remote.inner, lambda *_: False, lambda: None), tmp_path) as c, pytest.raises(Killed):
        c.condemn(what, c.plan(what))
        c.sweep(what)
    with collector(remote.inner, tmp_path) as c:
        done = c.undo()
        assert len(done.lost) >= 1 and set(done.lost) | set(done.kept) == {files[0].text, files[1].text}
        with pytest.raises(Refused):
            c.undo()
    for i in (0, 1):
        if files[i].text in done.kept:
            arrives(remote.inner, files[i], chunks(i, 10, 300))
    arrives(remote.inner, files[2], chunks(2, 10, 300))


def test_a_record_that_this_clone_saw_confirmed_must_be_listed(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    one, two = add_file(local, chunks("one", 5, 300)), add_file(local, chunks("two", 5, 300))
    rid = send(local, remote.store, tmp_path, one).record
    send(local, remote.store, tmp_path, two)
    for mark in ("", ".ok"):
        remote.inner.delete(f"j/{rid.hex()}{mark}")
    again = Collector(remote.store, str(tmp_path / "x"), limits=EAGER, promised=[rid.hex()], clock=lambda: NOW)
    with again as c, pytest.raises(Unsafe, match="at the last look"):
        c.plan(kept([one, two], two))


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
