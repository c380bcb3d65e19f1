"""Real pushers and collectors on one remote, one operation at a time in an order that a seed chooses, with crashes.

    python -m dvk.testing.schedules --count 10000 --seed 1        # some 25 ms of processor each
    python -m dvk.testing.schedules --seed 4711 --count 1 --tell  # one again, with every operation

Where `dvk.testing.gc_model` checks the protocol, this checks the code that follows it: `dvk.store.push` and
`dvk.store.collect` as they are, on the linearizable backend in memory. Nothing of them is replaced but their thread
pools, which do their work in the calling thread, in an order that the seed chooses too. Data is tiny.

Each schedule has up to three pushers (of new versions, of versions that are just being collected, of another project,
of what a live record covers), up to two collectors with different views of Git, which condemn and sweep or take it
back, a clone that is the copy of another one, and now and then one whose listings leave things out. Any of them may
die before or after any operation and be started again, and some sleep before a step of the protocol until the others
are done. At the end

- every version that a push acknowledged, and every version that all of Git wants, is whole: each of its chunks lies
  where its locator says, or it is read byte by byte (a tenth is read anyhow);
- a further collection is not stuck: it finds nothing that looks like a loss, and a locator that leads nowhere, which a
  pusher that died has left, does not stop it; `push --verify full` mends that for readers;
- whoever was given half a listing has refused, or has deleted nothing that is needed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from unittest import mock

from blake3 import blake3

from dvk.backend.contract import Backend, Buffer, Capabilities, Listed
from dvk.backend.memory import MemoryBackend
from dvk.errors import DvkError, Refused, Unsafe
from dvk.ids import FileId, PageId
from dvk.store import locator, pack, packwriter, push_sections
from dvk.store.collect import Collector, Kept, Limits
from dvk.store.compact import needs_of_whole
from dvk.store.content import StoreContent
from dvk.store.descriptor import KEY
from dvk.store.fetch import Wanted, fetch
from dvk.store.listing import Entries, Kind
from dvk.store.pages import read_entries
from dvk.store.pagewriter import write_listing
from dvk.store.push import Owner, Version, push
from dvk.store.root import FOLDER, Root
from dvk.store.store import Store
from dvk.store.stream import iter_file
from dvk.store.writer import Writer

_DAY = 86400
#: Operations of one actor in one life; more means that it goes in circles.
_STEPS_AT_MOST = 5000


class Crashed(BaseException):
    """An actor dies here; not an `Exception`, so that nobody recovers from it."""


class Lost(AssertionError):
    """A promise was broken."""


# ---------------------------------------------------------------- one operation at a time


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of the protocol, by the operation that it is; `before` says how the operation begins."""

    before: str
    ends: str = ""

    def is_at(self, what: str) -> bool:
        """Whether an operation is that step."""
        return what.startswith(self.before) and what.endswith(self.ends)


#: What most rules are about lies between two of these: who sleeps or dies there meets them more often than by chance.
MOMENTS = (
    Moment("put j/"),  # P3, or any mark
    Moment("list g/c-"),  # P4, census
    Moment("put l/"),  # between P5 and P6
    Moment("put j/", ".ok"),  # P6
    Moment("put j/", ".e"),  # G0
    Moment("put j/", ".x"),  # G0, G5
    Moment("put g/c-"),  # G2, G3
    Moment("delete p/"),  # G6
    Moment("delete g/"),  # G7
    Moment("delete j/"),
)


@dataclass(frozen=True, slots=True)
class Fate:
    """What is in store for an actor: a step before which it sleeps, one after which it dies for good."""

    sleeps: Moment | None = None
    dies: Moment | None = None


#: What takes more accidents at once than chance gives: fates of actors that belong together.
PLOTS: tuple[dict[str, Fate], ...] = (
    # A record relies on what no other does, between the last look of a collector and its deleting.
    {"pusher0": Fate(sleeps=Moment("put j/")), "collector0": Fate(sleeps=Moment("delete p/"))},
    # A confirmation comes when the packs are gone, and neither side lives to clear away.
    {
        "pusher0": Fate(sleeps=Moment("put j/", ".ok"), dies=Moment("put j/", ".ok")),
        "collector0": Fate(dies=Moment("delete g/")),
    },
    # A clone is copied while it sweeps; the copy takes back, or deletes, what both know to be condemned.
    {
        "pusher0": Fate(sleeps=Moment("put j/")),
        "collector0": Fate(sleeps=Moment("delete p/")),
        "copy": Fate(sleeps=Moment("stat dvk.json")),
    },
)


class Turns:
    """Who may do the next operation on the remote. Decides with the random numbers of the schedule alone.

    One thread runs at any time, so a schedule is the same each time it is run.
    """

    def __init__(self, rng: random.Random, *, tell: Callable[[str], object] | None = None) -> None:
        self._rng, self._tell = rng, tell
        self._locks: dict[str, threading.Lock] = {}
        self._alive: list[str] = []
        self._done = threading.Lock()
        # Few changes find most races (a bug needs few of them in the right place), many the others.
        self._stay = rng.choice((0.0, 0.5, 0.9, 0.97))
        self._naps: dict[str, Moment] = {}
        self._asleep: list[str] = []
        self.now = ""

    def sleep_before(self, name: str, moment: Moment) -> None:
        """Let an actor sleep once, before that step, until all others sleep or have come to their ends."""
        self._naps[name] = moment

    def _next(self) -> str:
        awake = [name for name in self._alive if name not in self._asleep]
        if not awake:
            awake = [self._asleep.pop(self._rng.randrange(len(self._asleep)))]
        return self._rng.choice(awake)

    def run(self, actors: dict[str, Callable[[], None]]) -> None:
        """Run all actors to their ends.

        Raises:
            BaseException: what the first of them raised.
        """
        failed: list[BaseException] = []
        self._alive = list(actors)
        self._locks = {name: threading.Lock() for name in actors}
        for lock in (*self._locks.values(), self._done):
            lock.acquire()

        def life(name: str, work: Callable[[], None]) -> None:
            self._locks[name].acquire()
            self.now = name
            try:
                work()
            except BaseException as error:
                failed.append(error)
            self._alive.remove(name)
            if self._alive:
                self._locks[self._next()].release()
            else:
                self._done.release()

        threads = [threading.Thread(target=life, args=actor, daemon=True) for actor in actors.items()]
        for thread in threads:
            thread.start()
        self._locks[self._next()].release()
        self._done.acquire()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def step(self, name: str, what: str) -> None:
        """Before each operation: let others go first, as the schedule says."""
        tired = name in self._naps and self._naps[name].is_at(what)
        if tired:
            del self._naps[name]
            self._asleep.append(name)
        if tired or self._rng.random() >= self._stay:
            following = self._next()
            if following != name:
                self._locks[following].release()
                self._locks[name].acquire()
                self.now = name
        if self._tell is not None:
            self._tell(f"{name:12s}{what}")


class Stepped(Backend):
    """The remote as one actor sees it."""

    capabilities = Capabilities(create_only=True)

    def __init__(self, inner: MemoryBackend, turns: Turns, name: str, rng: random.Random) -> None:
        self.inner, self.name = inner, inner.name
        self._turns, self._actor, self._rng = turns, name, rng
        self.dies_at = -1  #: number of the operation before or after which the actor dies
        self.dies_when: Moment | None = None  #: the same, at the first operation of a kind
        self.doomed: Moment | None = None  #: after that it dies, and nobody starts it again
        self.lies = False  #: whether listings leave something out
        self._count = 0

    def live_again(self) -> None:
        """A new process of the same actor."""
        self.dies_at, self.dies_when, self._count = -1, None, 0

    def _do(self, what: str, work: Callable[[], Any]) -> Any:
        self._count += 1
        if self._count > _STEPS_AT_MOST:
            raise Lost(f"{self._actor} goes in circles")
        if 0 <= self.dies_at < self._count:
            raise Crashed
        if self.dies_when is not None and self.dies_when.is_at(what):
            self.dies_at = self._count
        self._turns.step(self._actor, what)
        if self._count == self.dies_at and self._rng.random() < 0.5:
            raise Crashed
        out = work()
        if self._count == self.dies_at:
            raise Crashed
        if self.doomed is not None and self.doomed.is_at(what):
            raise Crashed
        return out

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        data = [bytes(part) for part in parts]
        self._do(f"put {key[:24]}{key[66:]}", lambda: self.inner.put(key, data, create_only=create_only))

    def get(self, key: str, *, max_bytes: int) -> bytes:
        found: bytes = self._do(f"get {key[:24]}", lambda: self.inner.get(key, max_bytes=max_bytes))
        return found

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        found: bytes = self._do(f"get {key[:24]} at {offset}", lambda: self.inner.get_range(key, offset, length))
        return found

    def stat(self, key: str) -> int | None:
        found: int | None = self._do(f"stat {key[:24]}{key[66:]}", lambda: self.inner.stat(key))
        return found

    def list(self, prefix: str) -> Iterator[Listed]:
        rows: list[Listed] = self._do(f"list {prefix[:24]}", lambda: list(self.inner.list(prefix)))
        if self.lies:
            rows = [row for row in rows if self._rng.random() < 0.5]
        self._rng.shuffle(rows)
        return iter(rows)

    def delete(self, key: str) -> None:
        self._do(f"delete {key[:24]}", lambda: self.inner.delete(key))


class Inline:
    """A thread pool that works in the calling thread, in an order of its own."""

    rng = random.Random(0)

    def __init__(self, *_: object, **__: object) -> None:
        return

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Do it now."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
        """Do all of it now."""
        rows = list(zip(*columns, strict=False))
        order = list(range(len(rows)))
        self.rng.shuffle(order)
        futures = {i: self.submit(work, *rows[i]) for i in order}
        return iter([futures[i].result() for i in range(len(rows))])

    def shutdown(self, **_: object) -> None:
        """Nothing runs."""

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        return


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Packs of a kilobyte, lists that lie in packs, and no thread of the store's own."""
    changes: list[tuple[ModuleType, str, object]] = [
        (module, "ThreadPoolExecutor", Inline)
        for name, module in list(sys.modules.items())
        if name.startswith("dvk.store.") and hasattr(module, "ThreadPoolExecutor")
    ]
    changes += [
        (pack, "TARGET_PACK_BYTES", 1024),
        (packwriter, "MAX_BLOCK_BYTES", 700),
        (packwriter, "_SMALL_BLOCK_BYTES", 200),
        (locator, "INLINE_BYTES", 0),
        (push_sections, "_NESTED_INLINE_BYTES", 0),
    ]
    with ExitStack() as stack:
        for module, name, value in changes:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


# ---------------------------------------------------------------- the data


def _noise(label: object, size: int) -> bytes:
    return random.Random(str(label)).randbytes(size)


@dataclass(frozen=True, slots=True)
class Data:
    """One version: a folder of tiny files."""

    root: Root
    files: dict[bytes, bytes] = field(hash=False)


def add_folder(store: Store, files: dict[bytes, bytes]) -> Root:
    """A folder of files of one chunk each."""
    rows = []
    with Writer(store) as writer:
        for name, data in sorted(files.items()):
            file = blake3(data).digest()
            writer.add_chunks([file], [len(data)], memoryview(data))
            rows.append((name, Kind.FILE, len(data), file, b""))
        ref = write_listing(Entries.of(rows), writer.add_page)
        writer.flush()
    return Root(FOLDER, ref.id, ref.total_bytes, ref.files)


def content(store: Store, root: Root) -> dict[bytes, bytes]:
    """What a store gives back, proven."""
    entries = read_entries(PageId(root.id), store.load_page)
    out = {}
    for i, name in enumerate(entries.names):
        file = entries.ids[i].tobytes()
        pieces = iter_file(StoreContent(store), FileId(file), int(entries.sizes[i]), subject="")
        out[name] = b"".join(bytes(piece) for piece in pieces)
        if blake3(out[name]).digest() != file:
            raise Lost("a file came back wrong")
    return out


class World:
    """What every schedule starts from: a local store with all data, and a remote with three old versions.

    v1 was pushed after v0 and relies on it, v2 after v1; an intent of a pusher that died lies there, too.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.local = Store(MemoryBackend("local"))
        old, older = _noise("old", 300), _noise("older", 400)
        trees = [
            {b"a": older, b"s": old},
            {b"b": _noise("b", 300), b"s": old},
            {b"c": _noise("c", 500), b"s": old},
            {b"a": older, b"n": _noise("n", 300)},  # new, of what is old
            {b"b": _noise("b", 300), b"x": _noise("x", 400)},
            {b"z": _noise("z", 600)},
        ]
        self.data = [Data(add_folder(self.local, tree), tree) for tree in trees]
        remote = MemoryBackend("remote")
        long_ago = time.time() - 60 * _DAY
        with mock.patch("dvk.store.push.time.time", lambda: long_ago):
            for i in range(3):
                push(self.local, Store(remote), [self.version(i)], f"{folder}/base", owner=Owner("a" * 32))
        self.objects = {row.key: remote.get(row.key, max_bytes=1 << 20) for row in remote.list("")}

    def version(self, i: int) -> Version:
        """A version with the earlier ones of its path."""
        return Version(self.data[i].root, tuple(self.data[j].root for j in range(min(i, 3) - 1, -1, -1)))

    def remote(self) -> MemoryBackend:
        """A remote as it was left 60 days ago."""
        out = MemoryBackend("remote")
        for key, data in self.objects.items():
            out.put(key, [data])
        return out


# ---------------------------------------------------------------- one schedule


@dataclass(slots=True)
class Counts:
    """What schedules came to."""

    schedules: int = 0
    operations: int = 0
    acknowledged: int = 0
    pushes_failed: int = 0
    crashes: int = 0
    condemned: int = 0  #: packs
    deleted: int = 0
    undone: int = 0
    refused: int = 0  #: collections that a gate stopped
    read_back: int = 0  #: versions of which every byte was read; of the others every chunk was found
    mended: int = 0  #: remotes on which a locator led nowhere in the end, and `push --verify full` mended that
    lies: int = 0  #: collections that were given listings with holes
    lies_refused: int = 0

    def add(self, other: Counts) -> None:
        """Sum up."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


def _now() -> float:
    """The time of the schedule, whenever it was imported."""
    return time.time()


class Schedule:
    """One run of some actors. `seed` makes it what it is."""

    def __init__(self, world: World, seed: int, *, tell: Callable[[str], object] | None = None) -> None:
        self.world, self.rng = world, random.Random(seed)
        self.counts = Counts(schedules=1)
        self.state = tempfile.mkdtemp(dir=world.folder)
        self.remote = world.remote()
        self.turns = Turns(self.rng, tell=tell)
        self.backends: dict[str, Stepped] = {}
        self.promised: set[int] = {2}  # of all versions the one that every Git leads to
        self.tell = tell

    def run(self) -> None:
        """Run it.

        Raises:
            Lost: a promise was broken.
        """
        rng = self.rng
        Inline.rng = rng
        actors: dict[str, Callable[[], None]] = {}
        for i in range(rng.choice((1, 1, 1, 2, 2, 3))):
            actors[f"pusher{i}"] = self._pusher(f"pusher{i}")
        for i in range(rng.choice((1, 1, 2))):
            actors[f"collector{i}"] = self._collector(f"collector{i}", lies=False)
        if rng.random() < 0.1:
            actors["misled"] = self._collector("misled", lies=True)
        for name in actors:
            if rng.random() < 0.4:
                self.turns.sleep_before(name, rng.choice(MOMENTS))
        if rng.random() < 0.2:
            plot = rng.choice(PLOTS)
            if "copy" in plot:
                actors["copy"] = self._copy("copy", of="collector0")
            for name, fate in plot.items():
                if fate.sleeps is not None:
                    self.turns.sleep_before(name, fate.sleeps)
                self.backends[name].doomed = fate.dies
        try:
            self.turns.run(actors)
            self._check()
        finally:
            shutil.rmtree(self.state, ignore_errors=True)

    def _backend(self, name: str) -> Stepped:
        self.backends[name] = Stepped(self.remote, self.turns, name, self.rng)
        return self.backends[name]

    def _lives(self, backend: Stepped, life: Callable[[], None], longest: int) -> None:
        """Lives of one actor until one ends by itself."""
        for _ in range(3):
            backend.live_again()
            if self.rng.random() < 0.25:
                backend.dies_at = self.rng.randrange(1, longest)
            elif self.rng.random() < 0.25:
                backend.dies_when = self.rng.choice(MOMENTS)
            try:
                life()
                break
            except Crashed:
                self.counts.crashes += 1
                if backend.doomed is not None or self.rng.random() < 0.5:
                    break  # nobody starts it again
        self.counts.operations += backend._count

    def _pusher(self, name: str) -> Callable[[], None]:
        rng, world = self.rng, self.world
        backend = self._backend(name)
        project = "b" * 32 if rng.random() < 0.25 else "a" * 32
        which = rng.sample(range(len(world.data)), rng.choice((1, 1, 2)))
        versions = [world.version(i) for i in sorted(which)]

        def life() -> None:
            owner = Owner(project, lambda: {v.root.text for v in versions})
            try:
                done = push(world.local, Store(backend), versions, f"{self.state}/{name}", owner=owner)
            except DvkError as error:
                self.counts.pushes_failed += 1
                if self.tell is not None:
                    self.tell(f"{name:12s}failed: {error}")
                return
            if done.absent:
                raise Lost("what is here was not sent")
            self.promised.update(which)
            self.counts.acknowledged += len(which)
            if self.tell is not None:
                self.tell(f"{name:12s}acknowledged {which}")

        return lambda: self._lives(backend, life, 40)

    def _collector(self, name: str, *, lies: bool) -> Callable[[], None]:
        rng, world = self.rng, self.world
        backend = self._backend(name)
        known = frozenset(world.data[i].root.text for i in range(rng.choice((3, 3, 6))))
        wanted = frozenset(world.data[i].root.text for i in ({2}, {1, 2}, {0, 2})[rng.randrange(3)])
        # Who knows of what is being pushed has heard of it from Git.
        kept = Kept(known, wanted, {data.root.text: data.root for data in world.data})
        limits = Limits(grace=0, young=_DAY if lies else 0, more_than_half=True)
        project = "a" * 32
        mends = rng.random() < 0.5  # locators that lead nowhere

        def life() -> None:
            backend.lies = lies
            # What this clone saw when it pushed: without that nobody could tell half a remote from a small one.
            promised = [k[2:66] for k in world.objects if k.startswith("j/")] if lies else ()
            with Collector(
                Store(backend),
                f"{self.state}/{name}",
                limits=limits,
                project=project,
                promised=promised,
                local=world.local if mends else None,
                clock=_now,
            ) as collector:
                for _ in range(rng.choice((1, 1, 2))):
                    try:
                        self._collect(collector, kept)
                    except DvkError as error:
                        self.counts.refused += 1
                        self.counts.lies_refused += lies
                        if self.tell is not None:
                            self.tell(f"{name:12s}refused: {error}")
                    self.counts.lies += lies

        return lambda: self._lives(backend, life, 60)

    def _copy(self, name: str, *, of: str) -> Callable[[], None]:
        """Somebody whose clone is a copy of another one: knows what that has condemned, and ends it in his way."""
        rng, world = self.rng, self.world
        backend = self._backend(name)
        roots = {data.root.text: data.root for data in world.data}
        kept = Kept(frozenset(roots), frozenset([world.data[2].root.text]), roots)
        limits = Limits(grace=0, young=0, more_than_half=True)
        takes_back = rng.random() < 0.7

        def life() -> None:
            backend.stat(KEY)
            theirs, mine = os.path.join(self.state, of), os.path.join(self.state, name)
            if os.path.exists(theirs) and not os.path.exists(mine):
                shutil.copytree(theirs, mine)
            with Collector(Store(backend), mine, limits=limits, project="a" * 32, clock=_now) as collector:
                try:
                    if takes_back:
                        collector.undo()
                        self.counts.undone += 1
                    else:
                        self.counts.deleted += collector.sweep(kept).packs
                except DvkError as error:
                    self.counts.refused += 1
                    if self.tell is not None:
                        self.tell(f"{name:12s}refused: {error}")

        return lambda: self._lives(backend, life, 40)

    def _collect(self, collector: Collector, kept: Kept) -> None:
        if not collector.condemned.list_key:
            for last in (False, False, True):
                try:
                    plan = collector.condemn(kept, collector.plan(kept))
                    break
                except Refused as error:  # somebody pushed in between
                    if last or isinstance(error, Unsafe):
                        raise
            self.counts.condemned += len(plan.packs)
            if not plan.packs:
                return
        if self.rng.random() < 0.2:
            collector.undo()
            self.counts.undone += 1
        else:
            self.counts.deleted += collector.sweep(kept).packs

    def _check(self) -> None:
        """The promises, on the bare remote."""
        # That every pack is there whole is seen by its locator; that the bytes are right by reading them, of some.
        roots = {self.world.data[i].root.text: i for i in self.promised}
        _, astray = needs_of_whole(Store(self.remote), sorted(roots))
        read = {roots[text] for text in astray} | set(self.promised if self.rng.random() < 0.1 else ())
        self.counts.read_back += len(read)
        for i in sorted(read):
            data = self.world.data[i]
            fresh = Store(MemoryBackend("fresh"))
            done = fetch(Store(self.remote), fresh, [Wanted(data.root)])
            if done.failures:
                raise Lost(f"version {i} cannot be had: {done.failures[0][1]}")
            if content(fresh, data.root) != data.files:
                raise Lost(f"version {i} came back wrong")
        self._plan_once_more()
        if astray:
            # A pusher that died had written the locator of what another one had acknowledged. It is a hint, and the
            # data is there; what readers are told to do has to mend it.
            versions = [self.world.version(roots[text]) for text in sorted(astray)]
            push(self.world.local, Store(self.remote), versions, f"{self.state}/mend", verify_all=True)
            if needs_of_whole(Store(self.remote), sorted(astray))[1]:
                raise Lost("a locator leads nowhere after `push --verify full`")
            self.counts.mended += 1

    def _plan_once_more(self) -> None:
        known = frozenset(d.root.text for d in self.world.data)
        limits = Limits(grace=0, young=0, more_than_half=True, retention=10 * 365 * _DAY)
        with Collector(
            Store(self.remote), f"{self.state}/last", limits=limits, project="a" * 32, clock=_now
        ) as collector:
            collector.plan(Kept(known, known, {d.root.text: d.root for d in self.world.data}))


def run_schedules(
    seeds: Iterable[int], *, folder: str | None = None, tell: Callable[[str], object] | None = None
) -> Counts:
    """Run a schedule for each seed.

    Raises:
        Lost: with the seed and what was lost. Anything else that came out is a bug, named by its seed too.
    """
    total = Counts()
    place = tempfile.mkdtemp(dir=folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        # Names and times are those of the seed, too: in what order records come depends on their names.
        chance = random.Random(11)
        with (
            in_one_thread(),
            mock.patch("os.fsync", lambda _fd: None),
            mock.patch("os.urandom", chance.randbytes),
            mock.patch("random._urandom", chance.randbytes),
            mock.patch("time.time", lambda: 1_790_000_000.0),
        ):
            world = World(place)
            for seed in seeds:
                chance.seed(seed)
                schedule = Schedule(world, seed, tell=tell)
                try:
                    schedule.run()
                except BaseException as error:
                    error.add_note(f"python -m dvk.testing.schedules --seed {seed} --count 1 --tell")
                    raise
                total.add(schedule.counts)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return total


def main(argv: Sequence[str] | None = None, *, say: Callable[[str], object] = print) -> int:
    """Run `--count` schedules from `--seed` on; 1 when one broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.schedules", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tell", action="store_true", help="every operation")
    asked = parser.parse_args(argv)
    begun = time.perf_counter()
    total = Counts()
    at = asked.seed
    while at < asked.seed + asked.count:
        group = range(at, min(at + 1000, asked.seed + asked.count))
        try:
            total.add(run_schedules(group, tell=say if asked.tell else None))
        except BaseException as error:
            say(f"{type(error).__name__}: {error}; {', '.join(getattr(error, '__notes__', []))}")
            if not isinstance(error, Lost) or asked.tell:
                raise
            return 1
        at = group.stop
        seconds = time.perf_counter() - begun
        say(f"{total.schedules:,} schedules, {total.operations:,} operations, {seconds:.0f} s: nothing lost")
    for name in total.__slots__:
        say(f"  {name.replace('_', ' '):16s}{getattr(total, name):12,d}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
