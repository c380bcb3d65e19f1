"""Collecting beside pushes and other collectors, and after any of them died: nothing is lost or blocks for ever."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from collectkit import EAGER, NOW, A, B, C, collect, collector, everything_small, kept, three_versions
from msgspec.structs import replace
from synckit import (
    Around,
    Before,
    Remote,
    add_file,
    add_folder,
    arrives,
    chunks,
    new_store,
    send,
)

from dvk.backend.contract import Buffer
from dvk.errors import Refused, Unsafe
from dvk.store.collect import Collector
from dvk.store.compact import needs_of_whole
from dvk.store.locator import locator_key
from dvk.store.push import Version, push
from dvk.store.push_plan import Avoid
from dvk.store.record import format_mark
from dvk.store.root import Root
from dvk.store.roots import load_record
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    everything_small(monkeypatch)


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


@pytest.mark.parametrize("what_the_copy_does", ["undo", "sweep"])
def test_a_copy_of_a_clone_does_not_take_the_warning_from_a_sweep_under_way(
    what_the_copy_does: str, tmp_path: Path
) -> None:
    """Both know what was condemned before the copy was made; a push comes between the last look and the deleting."""
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
    with collector(remote.inner, tmp_path / "clone") as c:
        assert c.condemn(what, c.plan(what)).packs
    shutil.copytree(tmp_path / "clone", tmp_path / "copy")

    def meanwhile() -> None:
        with collector(remote.inner, tmp_path / "copy") as copy:
            if what_the_copy_does == "undo":
                copy.undo()
            else:
                copy.sweep(what)
        send(local, remote.store, tmp_path / "pusher", file)

    class Deleting(Before):
        def delete(self, key: str) -> None:
            self._look("delete", key)
            super().delete(key)

    between = Deleting(remote.inner, lambda op, key: op == "delete" and key.startswith(("p/", "m/")), meanwhile)
    with collector(between, tmp_path / "clone") as c:
        c.sweep(what)
    assert between.done
    arrives(remote.inner, file, chunks("resumed", 20, 300))
    assert not remote.keys("g/c-")


def test_a_copy_of_a_clone_leaves_the_list_of_a_sweep_that_was_cut_short_and_its_owner_removes_it(
    tmp_path: Path,
) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])

    class Killed(Exception):
        pass

    class Dying(Before):
        def delete(self, key: str) -> None:
            raise Killed

    with collector(remote.inner, tmp_path / "clone") as c:
        c.condemn(what, c.plan(what))
    dying = Dying(remote.inner, lambda *_: False, lambda: None)
    with collector(dying, tmp_path / "clone") as c, pytest.raises(Killed):
        c.sweep(what)
    assert len(remote.keys("g/c-")) == 2
    shutil.copytree(tmp_path / "clone", tmp_path / "copy")
    with collector(remote.inner, tmp_path / "copy") as c:
        c.sweep(what)
    assert len(remote.keys("g/c-")) == 1, "it might still be at work under it, for all that the copy knows"
    with collector(remote.inner, tmp_path / "clone") as c:
        c.sweep(what)
    assert not remote.keys("g/c-")
    arrives(remote.inner, roots[2], C)


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


def leads_nowhere(remote: Remote, state: Path, roots: list[Root]) -> Store:
    """A pusher that knew nothing of the remote wrote the locator of the third version and died; its packs went.

    A store that holds all versions.
    """

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    local = new_store()
    for tree in (A, B, C):
        add_folder(local, tree)
    packs, records = set(remote.keys("p/") + remote.keys("m/")), {k for k in remote.keys("j/") if "." not in k}
    avoid = Avoid({bytes.fromhex(k[5:]) for k in packs}, {bytes.fromhex(k[2:]) for k in records})
    dying = Before(remote.inner, lambda op, key: op == "put" and key.endswith(".ok"), die)
    with pytest.raises(Killed):
        push(local, Store(dying), [Version(roots[2])], str(state / "dead"), avoid=avoid)
    assert needs_of_whole(remote.store, [roots[2].text])[1] == set(), "it leads to the packs of the dead push"
    collect(remote.inner, state / "other", kept(roots, *roots))
    assert needs_of_whole(remote.store, [roots[2].text])[1] == {roots[2].text}
    return local


@pytest.mark.parametrize("gone", [False, True])
def test_a_locator_that_leads_nowhere_is_mended_where_a_compaction_needs_it(gone: bool, tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    local = leads_nowhere(remote, tmp_path, roots)
    if gone:
        remote.inner.delete(locator_key(roots[2].kind, roots[2].id))
    what = replace(kept(roots, roots[2]), roots={r.text: r for r in roots})
    before = sum(len(x) for x in remote.objects("p/").values())
    for _ in range(3):
        with Collector(Store(remote.inner), str(tmp_path / "gc"), limits=EAGER, clock=lambda: NOW, local=local) as c:
            plan = c.condemn(what, c.plan(what))
            if plan.packs:
                c.sweep(what)
    assert plan.empty, "there is an end to it"
    assert needs_of_whole(remote.store, [roots[2].text])[1] == set()
    arrives(remote.inner, roots[2], C)
    assert sum(len(x) for x in remote.objects("p/").values()) < before


def test_who_cannot_mend_a_locator_deletes_nothing(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    leads_nowhere(remote, tmp_path, roots)
    what = replace(kept(roots, roots[2]), roots={r.text: r for r in roots})
    before = set(remote.keys("p/") + remote.keys("m/"))
    with collector(remote.inner, tmp_path / "gc") as c, pytest.raises(Unsafe, match="cannot be followed"):
        c.condemn(what, c.plan(what))
    assert before <= set(remote.keys("p/") + remote.keys("m/"))


def test_a_sweep_that_fails_lets_go_of_its_place_after_its_last_deletion(tmp_path: Path) -> None:
    """Else an undo takes the list away, relies on a pack that is there, and the deletion arrives."""
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    second_began, ended = threading.Event(), threading.Event()

    class Killed(Exception):
        pass

    class Slow(Around):
        begun = 0

        def delete(self, key: str) -> None:
            if not key.startswith(("p/", "m/")):
                return super().delete(key)
            with self.lock:
                self.begun += 1
                mine = self.begun
            if mine == 1:
                assert second_began.wait(10)
                raise Killed
            if mine == 2:
                second_began.set()
                time.sleep(0.3)
            super().delete(key)
            if mine == 2:
                ended.set()

    with collector(remote.inner, tmp_path / "gc") as c:
        assert len(c.condemn(what, c.plan(what)).packs) > 1
    with collector(Slow(remote.inner), tmp_path / "gc") as c:
        with pytest.raises(Killed):
            c.sweep(what)
        assert ended.is_set(), "another collector may be in this place now"
    arrives(remote.inner, roots[2], C)


def test_a_collection_whose_own_list_is_damaged_can_be_taken_back(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    with collector(remote.inner, tmp_path / "gc") as c:
        c.condemn(what, c.plan(what))
    (key,) = remote.keys("g/c-")
    data = bytearray(remote.inner.get(key, max_bytes=1 << 20))
    data[20] ^= 1
    remote.inner.put(key, [bytes(data)])
    with collector(remote.inner, tmp_path / "gc") as c:
        assert len(c.undo().kept) >= 2
    assert not remote.keys("g/")
    for root, tree in zip(roots, (A, B, C), strict=True):
        arrives(remote.inner, root, tree)


def test_a_damaged_list_does_not_stop_pushes_until_the_grace_is_over(tmp_path: Path) -> None:
    remote, roots = three_versions(tmp_path)
    what = kept(roots, roots[2])
    limits = replace(EAGER, grace=1000, exclusive=True)
    with collector(remote.inner, tmp_path / "gc", limits=limits) as c:
        c.condemn(what, c.plan(what))
        good = remote.keys("g/c-")
        remote.inner.put("g/c-" + "0" * 64, [b"a list once"])
        packs = remote.keys("p/")
        with pytest.raises(Refused, match="hours"):
            c.sweep(what)
    assert remote.keys("g/c-") == good and remote.keys("p/") == packs
    local = new_store()
    send(local, remote.store, tmp_path / "pusher", add_folder(local, {b"new": chunks("new", 3, 300)}))
