"""Pushers against pushers and collectors: whoever was told "done" never loses a pack (reliability.md 4.3, T51).

Each actor's operations on a linearizable remote happen one at a time, in an order that hypothesis chooses. The
collector, the one that gives up records of dead pushers and the one that retires an old base are models of what
docs/format/gc.md asks of them; the pushers are the real code.
"""

from __future__ import annotations

import json
import random
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import synckit as kit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from storekit import keys
from synckit import Around, Before, Remote, add_file, add_folder, arrives, chunks, dvk_error, new_store, send

from dvk.backend.contract import Backend, Buffer, KeyMissing, Listed
from dvk.backend.local import LocalBackend
from dvk.backend.memory import MemoryBackend
from dvk.errors import DvkError, RemoteError
from dvk.store import promise as promise_module
from dvk.store import push_data, push_plan, section_reader
from dvk.store.descriptor import KEY
from dvk.store.fetch import Wanted, fetch
from dvk.store.push import Version, push
from dvk.store.record import format_mark, parse_record
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(120)


# ---------------------------------------------------------------- one operation at a time


class Turns:
    """Lets one operation of one actor happen at a time, in the order of a schedule."""

    def __init__(self, schedule: Sequence[int]) -> None:
        self._schedule = list(schedule)
        self._changed = threading.Condition()
        self._waiting: dict[str, list[tuple[str, str]]] = {}
        self._granted: tuple[str, tuple[str, str]] | None = None
        self._alive: list[str] = []
        self._failed: list[BaseException] = []

    def operation(self, actor: str, what: tuple[str, str], work: Callable[[], Any]) -> Any:
        """Do `work` when it is this actor's turn."""
        with self._changed:
            self._waiting[actor].append(what)
            self._changed.notify_all()
            while self._granted != (actor, what):
                assert self._changed.wait(20), "a schedule that never gets there"
            try:
                return work()
            finally:
                self._waiting[actor].remove(what)
                self._granted = None
                self._changed.notify_all()

    def run(self, actors: dict[str, Callable[[Backend], None]], remote: Backend) -> None:
        """Run all actors to their ends."""
        threads = []
        for name, work in actors.items():
            self._waiting[name] = []
            self._alive.append(name)
            threads.append(threading.Thread(target=self._act, args=(name, work, Stepped(remote, self, name))))
        for thread in threads:
            thread.start()
        self._conduct()
        for thread in threads:
            thread.join(20)
        for error in self._failed:
            raise error

    def _act(self, name: str, work: Callable[[Backend], None], backend: Backend) -> None:
        try:
            work(backend)
        except BaseException as error:
            self._failed.append(error)
        finally:
            with self._changed:
                self._alive.remove(name)
                self._changed.notify_all()

    def _conduct(self) -> None:
        for n in self._endless():
            with self._changed:
                if not self._alive:
                    return
                actor = self._alive[n % len(self._alive)]
                while actor in self._alive and not self._waiting[actor]:
                    assert self._changed.wait(20), "an actor that does nothing"
                if actor not in self._alive:
                    continue
                self._granted = (actor, min(self._waiting[actor]))
                self._changed.notify_all()
                while self._granted is not None:
                    assert self._changed.wait(20), "an operation that does not end"

    def _endless(self) -> Iterator[int]:
        yield from self._schedule
        n = 0
        while True:
            yield n
            n += 1


class Stepped(Around):
    """A remote as one actor sees it."""

    def __init__(self, inner: Backend, turns: Turns, actor: str) -> None:
        super().__init__(inner)
        self._turns, self._actor = turns, actor

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        self._turns.operation(self._actor, ("put", key), lambda: self.inner.put(key, parts, create_only=create_only))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        return self._turns.operation(self._actor, ("get", key), lambda: self.inner.get(key, max_bytes=max_bytes))

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        what = ("get_range", f"{key} {offset} {length}")
        return self._turns.operation(self._actor, what, lambda: self.inner.get_range(key, offset, length))

    def stat(self, key: str) -> int | None:
        return self._turns.operation(self._actor, ("stat", key), lambda: self.inner.stat(key))

    def list(self, prefix: str) -> Iterator[Listed]:
        return iter(self._turns.operation(self._actor, ("list", prefix), lambda: list(self.inner.list(prefix))))

    def delete(self, key: str) -> None:
        self._turns.operation(self._actor, ("delete", key), lambda: self.inner.delete(key))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Pushers whose own threads take turns, so that a schedule says all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(push_plan, "CONNECTIONS", 1)
        patch.setattr(section_reader, "CONNECTIONS", 1)
        patch.setattr(push_data, "_IN_FLIGHT", 1)
        patch.setattr(push_data, "default_workers", lambda: 1)
        kit.small_pages(patch)
        kit.small_packs(patch, 2500)
        yield


# ---------------------------------------------------------------- the others at the remote


def records(remote: Backend) -> dict[str, set[str]]:
    """Each record that is there, and the packs that it relies on by name."""
    listed = {item.key for item in remote.list("j/")}
    out: dict[str, set[str]] = {}
    for key in listed:
        if "." not in key:
            try:
                data = remote.get(key, max_bytes=1 << 30)
            except KeyMissing:
                continue
            record = parse_record(data, subject=key)
            out[key] = {*record.packs, *record.reused, *(f"j/{b}" for b in record.bases)}
    return out


def closure(found: dict[str, set[str]], start: Sequence[str]) -> set[str]:
    """The packs of records and of their bases, and theirs."""
    out: set[str] = set()
    waiting = list(start)
    while waiting:
        for name in found.get(waiting.pop(), set()) - out:
            out.add(name)
            if name.startswith("j/"):
                waiting.append(name)
    return {name for name in out if not name.startswith("j/")}


def collector(remote: Backend) -> None:
    """G1 to G7: packs that no record relies on are condemned, looked at again, deleted."""
    store = json.loads(remote.get(KEY, max_bytes=1 << 16))["store"]
    before = records(remote)  # G1
    packs = {item.key for prefix in ("p/", "m/") for item in remote.list(prefix)}
    dead = packs - closure(before, list(before))
    key = f"g/c-{secrets.token_hex(16)}"
    body = json.dumps({"format": 1, "packs": sorted(dead), "store": store}, sort_keys=True, separators=(",", ":"))
    remote.put(key, [body.encode() + b"\n"])  # G2
    now = records(remote)  # G3
    dead -= closure({**before, **now}, [r for r in now if r not in before])
    others: set[str] = set()
    for item in remote.list("g/c-"):  # G4
        if item.key != key:
            try:
                others |= set(json.loads(remote.get(item.key, max_bytes=1 << 30))["packs"])
            except KeyMissing:
                continue  # it has finished
    there = {item.key for prefix in ("p/", "m/") for item in remote.list(prefix)}  # G5
    live = closure({**before, **now}, [*before, *now])
    if not live & packs <= there - others:
        dead = set()
    for pack in sorted(dead):  # G6
        remote.delete(pack)
    remote.delete(key)  # G7


def undertaker(remote: Backend) -> None:
    """Gives up the record of a pusher that looks dead: mark it, look for its confirmation again, only then drop it."""
    for key in sorted(records(remote)):
        if remote.stat(key + ".ok") is not None:
            continue
        remote.put(key + ".x", [format_mark(bytes.fromhex(key[2:]))])
        if remote.stat(key + ".ok") is None:
            remote.delete(key)


def retirer(base: bytes) -> Callable[[Backend], None]:
    """Retires a record that nobody wants any more: mark it, look who relies on it, only then drop it."""

    def work(remote: Backend) -> None:
        key = f"j/{base.hex()}"
        remote.put(key + ".x", [format_mark(base)])
        if not any(key in names for names in records(remote).values()):
            remote.delete(key)

    return work


# ---------------------------------------------------------------- scenes

TREE = {b"%02d" % i: chunks(i, 2) for i in range(12)}
EDIT = {**TREE, b"03": (b"edit",)}
FILE = chunks("file", 3)


@dataclass
class Pusher:
    """A clone of its own that pushes some versions; may give up with a clear error."""

    local: Store
    versions: list[Version]
    told: bool = False
    errors: list[DvkError] = field(default_factory=list)

    def __call__(self, remote: Backend) -> None:
        with tempfile.TemporaryDirectory() as state:
            error = dvk_error(lambda: push(self.local, Store(remote), self.versions, state))
        if error is None:
            self.told = True
        else:
            assert isinstance(error, RemoteError), error
            self.errors.append(error)


Scene = Callable[[], tuple[MemoryBackend, dict[str, Callable[[Backend], None]], list[tuple[Any, Any]]]]


def dies_before(when: Callable[[str, str], bool], remote: Backend, local: Store, version: Version) -> None:
    def dead() -> None:
        raise RemoteError("gone")

    with tempfile.TemporaryDirectory() as state:
        assert dvk_error(lambda: push(local, Store(Before(remote, when, dead)), [version], state)) is not None


def leftovers() -> tuple[MemoryBackend, dict[str, Any], list[tuple[Any, Any]]]:
    """Somebody died before confirming; a pusher takes up what is there while it is being cleaned away."""
    remote, local = MemoryBackend("remote"), new_store()
    root = add_folder(local, TREE)
    dies_before(lambda op, key: op == "put" and key.endswith(".ok"), remote, local, Version(root))
    pusher = Pusher(local, [Version(root)])
    return remote, {"push": pusher, "gc": collector, "undertaker": undertaker}, [(pusher, (root, TREE))]


def the_same_twice() -> tuple[MemoryBackend, dict[str, Any], list[tuple[Any, Any]]]:
    """Two clones push the same, the store itself included."""
    remote, one, two = MemoryBackend("remote"), new_store(), new_store()
    root = add_file(one, FILE)
    add_file(two, FILE)
    a, b = Pusher(one, [Version(root)]), Pusher(two, [Version(root)])
    return remote, {"a": a, "b": b}, [(a, (root, FILE)), (b, (root, FILE))]


def overlapping() -> tuple[MemoryBackend, dict[str, Any], list[tuple[Any, Any]]]:
    """Two clones push versions that share most, on one base, and somebody collects."""
    remote, local = MemoryBackend("remote"), new_store()
    old, new = add_folder(local, TREE), add_folder(local, EDIT)
    other = {**EDIT, b"09": chunks("file", 3)}
    newer = add_folder(local, other)
    with tempfile.TemporaryDirectory() as state:
        push(local, Store(remote), [Version(old)], state)
    a, b = Pusher(local, [Version(new, (old,))]), Pusher(local, [Version(newer, (new, old))])
    return remote, {"a": a, "b": b, "gc": collector, "u": undertaker}, [(a, (new, EDIT)), (b, (newer, other))]


def a_base_goes() -> tuple[MemoryBackend, dict[str, Any], list[tuple[Any, Any]]]:
    """The base of a push is retired and collected under it."""
    remote, local = MemoryBackend("remote"), new_store()
    old, new = add_folder(local, TREE), add_folder(local, EDIT)
    with tempfile.TemporaryDirectory() as state:
        base = push(local, Store(remote), [Version(old)], state).record
    pusher = Pusher(local, [Version(new, (old,))])
    return remote, {"push": pusher, "retire": retirer(base), "gc": collector}, [(pusher, (new, EDIT))]


def two_collectors() -> tuple[MemoryBackend, dict[str, Any], list[tuple[Any, Any]]]:
    """As the first, with two collectors."""
    remote, actors, promises = leftovers()
    return remote, {**actors, "gc2": collector}, promises


SCENES: dict[str, Any] = {f.__name__: f for f in (leftovers, the_same_twice, overlapping, a_base_goes, two_collectors)}


def play(scene: Any, schedule: Sequence[int]) -> tuple[MemoryBackend, list[tuple[Pusher, Any, Any]]]:
    """Run a scene; the remote, and what each pusher was to bring there."""
    with one_thread_each():
        remote, actors, promises = scene()
        Turns(schedule).run(actors, remote)
    return remote, [(pusher, root, what) for pusher, (root, what) in promises]


def check(scene: Any, schedule: Sequence[int]) -> None:
    """What was told done is there, and an undisturbed re-run always succeeds."""
    remote, promises = play(scene, schedule)
    with one_thread_each():
        for pusher, root, what in promises:
            if pusher.told:
                arrives(remote, root, what)
        for pusher, root, what in promises:
            pusher(remote)
            assert not pusher.errors[1:]
            arrives(remote, root, what)


@pytest.mark.parametrize("name", SCENES)
def test_no_schedule_loses_what_was_told_done(name: str) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.lists(st.integers(0, 11), max_size=120))
    def run(schedule: list[int]) -> None:
        check(SCENES[name], schedule)

    run()


@pytest.mark.parametrize("name", SCENES)
def test_runs_of_one_actor_lose_nothing_either(name: str) -> None:
    """Long runs of one actor, then another: what random orders rarely do."""
    rng = random.Random(name)
    for _ in range(8):
        check(SCENES[name], [a for _ in range(8) for a in [rng.randrange(12)] * rng.randrange(1, 30)])


def test_the_scenes_find_a_pusher_that_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the tests above: without P4 and P5 some schedule loses data."""
    monkeypatch.setattr(promise_module, "condemned", lambda backend: set())
    monkeypatch.setattr(promise_module, "_check", lambda *args: None)
    rng = random.Random(5)

    def loses() -> bool:
        remote, promises = play(leftovers, [a for _ in range(8) for a in [rng.randrange(12)] * rng.randrange(1, 30)])
        other = new_store()
        lost = [fetch(Store(remote), other, [Wanted(root)]).failures for p, root, _ in promises if p.told]
        return any(lost)

    assert any(loses() for _ in range(150))


# ---------------------------------------------------------------- real threads


@pytest.mark.parametrize("medium", ["memory", "local"])
def test_many_pushers_at_once(medium: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same and overlapping data, a first push, one state directory for some: all succeed, everything is there."""
    kit.small_pages(monkeypatch)
    kit.small_packs(monkeypatch, 2500)
    inner: Backend = MemoryBackend() if medium == "memory" else LocalBackend(str(tmp_path / "remote"))
    local = new_store()
    trees = [{**TREE, b"%02d" % i: chunks(("t", i // 2), 3)} for i in range(6)]
    roots = [add_folder(local, t) for t in trees]
    start, errors = threading.Barrier(len(roots)), []

    def work(i: int) -> None:
        start.wait(20)
        try:
            send(local, Store(inner), tmp_path / f"state{i % 3}", *roots[: i + 1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(roots))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors
    for root, tree in zip(roots, trees, strict=True):
        arrives(inner, root, tree)
    assert not [k for k in keys(inner) if "tmp" in k]


def test_many_fetches_into_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local, other = Remote(), new_store(), Store(LocalBackend(str(tmp_path / "other")))
    roots = [add_folder(local, {**TREE, b"x": chunks(i, 2)}) for i in range(4)]
    send(local, remote.store, tmp_path / "s", *roots)
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            arrives(remote.inner, roots[i % 4], {**TREE, b"x": chunks(i % 4, 2)}, into=other)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not errors
