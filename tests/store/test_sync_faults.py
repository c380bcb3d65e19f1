"""Faults: whatever fails and whenever, what was told done stays restorable, nothing false is claimed, a re-run works.

"For every N: fail the Nth operation, once and from then on, with and without its effect" (reliability.md 3.4, T15).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import synckit as kit
from storekit import keys
from synckit import Remote, add_file, add_folder, arrives, check_honest, chunks, dvk_error, new_store, send

from dvk.backend.contract import Backend
from dvk.backend.memory import MemoryBackend
from dvk.errors import DvkError, RemoteUnreachable, StorageError, StorageFull
from dvk.store.fetch import Wanted, fetch
from dvk.store.push import Version, push
from dvk.store.root import Root
from dvk.store.roots import ConfirmedRoots
from dvk.store.store import Store
from dvk.testing.faults import FaultBackend

pytestmark = pytest.mark.timeout(120)

OLD = {b"%02d" % i: chunks(i, 1 + i % 3) for i in range(14)} | {b"big": chunks("big", 9)}
NEW = {**OLD, b"03": chunks("new", 5), b"big": (*chunks("big", 8), b"tail")}
FILE = chunks("file", 12)


def copy_of(backend: Backend) -> MemoryBackend:
    out = MemoryBackend(backend.name)
    for key in keys(backend):
        out.put(key, [backend.get(key, max_bytes=1 << 30)])
    return out


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Store:
    kit.small_pages(monkeypatch)
    kit.small_packs(monkeypatch, 8000)
    kit.never_inline(monkeypatch)
    return new_store()


@pytest.fixture
def tiny_packs(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push needs several data packs."""
    kit.small_packs(monkeypatch, 1000)


Roots = tuple[Root, Root, Root]


@pytest.fixture
def roots(local: Store) -> Roots:
    return add_folder(local, OLD), add_folder(local, NEW), add_file(local, FILE)


def operations(work: Callable[[FaultBackend], object], inner: Backend) -> int:
    """How many operations `work` needs on a copy of a medium."""
    counting = FaultBackend(copy_of(inner))
    work(counting)
    return counting.operations


MODES = [
    pytest.param(forever, lost, id=("from then on" if forever else "once") + (", reply lost" if lost else ""))
    for forever in (False, True)
    for lost in (False, True)
]


@pytest.fixture(params=[2, pytest.param(1, marks=pytest.mark.slow)], ids=["every other", "every"])
def each(request: pytest.FixtureRequest) -> Callable[[int], range]:
    """The operations at which to fail, of so many: every other one from a first that chance picks, or (slow) all."""
    step: int = request.param
    first = random.randint(1, step)
    print(f"every {step} from {first}")
    return lambda total: range(first, total + 1, step)


def cut() -> DvkError:
    return RemoteUnreachable("cut", subject="remote")


@pytest.mark.parametrize(("forever", "lost"), MODES)
def test_a_push_survives_a_remote_that_fails_anywhere(
    forever: bool, lost: bool, local: Store, roots: Roots, each: Callable[[int], range], tmp_path: Path
) -> None:
    old, new, file = roots
    before = Remote()
    send(local, before.store, tmp_path / "before", old)
    versions = [Version(new, (old,)), Version(file)]

    def work(remote: Backend, state: Path = tmp_path / "count") -> object:
        return push(local, Store(remote), versions, str(state))

    total = operations(work, before.inner)
    assert total > 25
    unnoticed = 0
    for n in each(total):
        inner, state = copy_of(before.inner), tmp_path / f"state{n}"
        remote = FaultBackend(inner)
        remote.fail("any", at=n, error=cut, forever=forever, lost_reply=lost)
        error = dvk_error(lambda remote=remote, state=state: work(remote, state))
        unnoticed += error is None
        arrives(inner, old, OLD)
        store = before.store.describe()
        assert store is not None
        told = ConfirmedRoots(str(state), store.store).read()
        if error is None or told:
            assert error is None and set(told) == {new.text, file.text}
            arrives(inner, new, NEW)
        remote.heal()
        assert len(push(local, Store(remote), versions, str(state)).absent) == 0
        arrives(inner, new, NEW)
        arrives(inner, file, FILE)
    # dvk.json may be read twice, and a condemned list or locator that is not there has no reply to lose.
    assert unnoticed <= (4 if lost else 0)


@pytest.mark.parametrize(("forever", "lost"), MODES)
def test_a_first_push_survives_a_remote_that_fails_anywhere(
    forever: bool, lost: bool, local: Store, roots: Roots, tmp_path: Path
) -> None:
    """As above, with the store itself still to be made."""
    _, _, file = roots

    def work(remote: Backend, state: Path = tmp_path / "count") -> object:
        return push(local, Store(remote), [Version(file)], str(state))

    for n in range(1, operations(work, MemoryBackend()) + 1):
        inner = MemoryBackend("remote")
        remote = FaultBackend(inner)
        remote.fail("any", at=n, error=cut, forever=forever, lost_reply=lost)
        if dvk_error(lambda remote=remote, n=n: work(remote, tmp_path / str(n))) is None:
            arrives(inner, file, FILE)
        remote.heal()
        work(remote, tmp_path / str(n))
        arrives(inner, file, FILE)


@pytest.mark.parametrize("forever", [False, True])
def test_a_push_notices_short_answers(
    forever: bool, local: Store, roots: Roots, each: Callable[[int], range], tmp_path: Path
) -> None:
    """A medium that breaks its contract and answers with half the bytes never leads to a false promise."""
    old, new, _ = roots
    before = Remote()
    send(local, before.store, tmp_path / "before", old)
    versions = [Version(new, (old,))]
    reads = operations(lambda b: push(local, Store(b), versions, str(tmp_path / "count")), before.inner)
    for n in each(reads):
        inner = copy_of(before.inner)
        remote = FaultBackend(inner)
        remote.short_reads(at=n, forever=forever)
        error = dvk_error(lambda remote=remote, n=n: push(local, Store(remote), versions, str(tmp_path / str(n))))
        if error is None:
            arrives(inner, new, NEW)
        remote.heal()
        push(local, Store(remote), versions, str(tmp_path / str(n)))
        arrives(inner, new, NEW)


@pytest.mark.parametrize("forever", [False, True])
def test_a_push_survives_a_local_store_that_fails_anywhere(
    forever: bool, local: Store, roots: Roots, tmp_path: Path
) -> None:
    _, new, _ = roots

    def work(medium: Backend, remote: Remote, state: str) -> object:
        return push(Store(medium), remote.store, [Version(new)], str(tmp_path / state))

    total = operations(lambda b: work(b, Remote(), "count"), local.backend)
    for n in range(1, total + 1):
        remote, medium = Remote(), FaultBackend(local.backend)
        medium.fail("any", at=n, error=lambda: StorageError("input/output error", subject="disk"), forever=forever)
        error = dvk_error(lambda medium=medium, remote=remote, n=n: work(medium, remote, str(n)))
        if error is None:  # a page that could not be read at first may have been read again
            arrives(remote.inner, new, NEW)
        medium.heal()
        work(medium, remote, str(n))
        arrives(remote.inner, new, NEW)


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("fault", ["error", "short"])
def test_a_fetch_survives_a_remote_that_fails_anywhere(
    fault: str, forever: bool, local: Store, roots: Roots, tmp_path: Path
) -> None:
    """Either the data or a clear error; the local store never claims what it cannot give back."""
    _, new, file = roots
    before = Remote()
    send(local, before.store, tmp_path, new, file)
    wanted = [Wanted(new), Wanted(file)]
    total = operations(lambda b: fetch(Store(b), new_store(), wanted), before.inner)
    assert total > 6
    for n in range(1, total + 1):
        remote, other = FaultBackend(before.inner), new_store()
        if fault == "short":
            remote.short_reads(at=n, forever=forever)
        else:
            remote.fail("any", at=n, error=cut, forever=forever)
        failures: list[tuple[Wanted, DvkError]] = []
        error = dvk_error(lambda r=remote, o=other, f=failures: f.extend(fetch(Store(r), o, wanted).failures))
        held = [check_honest(Store(other.backend), new, NEW), check_honest(Store(other.backend), file, FILE)]
        if error is None:
            assert held == [w not in [x for x, _ in failures] for w in wanted]
        if fault == "error":
            assert error is not None
        remote.heal()
        again = fetch(Store(remote), Store(other.backend), wanted)
        assert not again.failures
        other = Store(other.backend)
        assert check_honest(other, new, NEW) and check_honest(other, file, FILE)


@pytest.mark.parametrize(("forever", "lost"), MODES)
def test_a_fetch_survives_a_local_store_that_fails_anywhere(
    forever: bool, lost: bool, local: Store, roots: Roots, tmp_path: Path
) -> None:
    _, new, file = roots
    remote = Remote()
    send(local, remote.store, tmp_path, new, file)
    wanted = [Wanted(new), Wanted(file)]
    total = operations(lambda b: fetch(remote.store, Store(b), wanted), MemoryBackend())
    for n in range(1, total + 1):
        inner = MemoryBackend("disk")
        medium = FaultBackend(inner)
        full = lambda: StorageFull("no space left", subject="disk")  # noqa: E731
        medium.fail("any", at=n, error=full, forever=forever, lost_reply=lost)
        error = dvk_error(lambda m=medium: fetch(remote.store, Store(m), wanted))
        held = [check_honest(Store(inner), new, NEW), check_honest(Store(inner), file, FILE)]
        # Reading back what came is tried again, block by block.
        assert isinstance(error, StorageFull) or (error is None and not forever and all(held))
        medium.heal()
        assert not fetch(remote.store, Store(medium), wanted).failures
        assert check_honest(Store(inner), new, NEW) and check_honest(Store(inner), file, FILE)


def test_a_cut_push_goes_on_where_it_stopped(tiny_packs: None, local: Store, roots: Roots, tmp_path: Path) -> None:
    """Data packs that were proven are not sent again, and the record names them."""
    _, new, _ = roots
    remote = Remote()
    faults = FaultBackend(remote.counting)
    faults.fail("put", prefix="m/", error=cut, forever=True)
    assert dvk_error(lambda: push(local, Store(faults), [Version(new)], str(tmp_path))) is not None
    packs = remote.keys("p/")
    remote.counting.reset()
    assert len(packs) >= 3
    faults.heal()
    done = push(local, Store(faults), [Version(new)], str(tmp_path))
    assert remote.keys("p/") == packs
    assert not [key for op, key in remote.counting.counts.calls if op == "put" and key.startswith("p/")]
    assert done.new_bytes == 0
    assert [k for k in remote.record(done.record).packs if k.startswith("p/")] == packs
    arrives(remote.inner, new, NEW)


def test_a_push_cut_in_the_middle_of_its_data_sends_only_the_rest(
    tiny_packs: None, local: Store, roots: Roots, tmp_path: Path
) -> None:
    _, new, _ = roots
    remote = Remote()
    faults = FaultBackend(remote.counting)
    faults.fail("put", prefix="p/", at=3, error=cut, forever=True)
    assert dvk_error(lambda: push(local, Store(faults), [Version(new)], str(tmp_path))) is not None
    packs = set(remote.keys("p/"))
    assert len(packs) == 2
    faults.heal()
    send(local, Store(faults), tmp_path, new)
    puts = [key for op, key in remote.counting.counts.calls if op == "put" and key.startswith("p/")]
    assert len(puts) == len(set(puts)) and packs < set(remote.keys("p/"))
    assert sum(key in packs for key in puts) == 2  # each once
    arrives(remote.inner, new, NEW)


def test_a_cut_push_is_not_believed_where_the_remote_lost_its_packs(
    tiny_packs: None, local: Store, roots: Roots, tmp_path: Path
) -> None:
    _, new, _ = roots
    remote = Remote()
    faults = FaultBackend(remote.inner)
    faults.fail("put", prefix="m/", error=cut, forever=True)
    assert dvk_error(lambda: push(local, Store(faults), [Version(new)], str(tmp_path))) is not None
    gone, shortened, *_ = remote.keys("p/")
    remote.inner.delete(gone)
    remote.inner.put(shortened, [b"short"])
    faults.heal()
    done = send(local, Store(faults), tmp_path, new)
    assert not {gone, shortened} & set(remote.record(done.record).packs)
    arrives(remote.inner, new, NEW)


def test_a_cut_fetch_keeps_what_came(tiny_packs: None, local: Store, roots: Roots, tmp_path: Path) -> None:
    """What arrived before the remote stopped answering is not asked for again."""
    _, new, _ = roots
    remote = Remote()
    send(local, remote.store, tmp_path, new)
    faults, other = FaultBackend(remote.inner), new_store()
    faults.fail("get_range", prefix="p/", at=3, error=cut, forever=True)
    assert dvk_error(lambda: fetch(Store(faults), other, [Wanted(new)])) is not None
    done = fetch(remote.store, other, [Wanted(new)])
    assert 0 < done.new_bytes < sum(len(c) for c in {c for x in NEW.values() for c in x})
    assert check_honest(other, new, NEW)


def test_one_root_that_fails_does_not_keep_the_others(local: Store, roots: Roots, tmp_path: Path) -> None:
    old, new, file = roots
    remote = Remote()
    send(local, remote.store, tmp_path, new, file)
    other, nowhere = new_store(), Root(1, bytes(32), 7)
    done = fetch(remote.store, other, [Wanted(nowhere, name="x"), Wanted(new), Wanted(old), Wanted(file)])
    assert [w.root for w, _ in done.failures] == [nowhere, old] and done.roots == 2
    assert all(e.kind == "data-missing" and e.hint for _, e in done.failures)
    assert check_honest(other, new, NEW) and check_honest(other, file, FILE)


def test_small_files_side_by_side_do_not_count_on_one_that_fails(tmp_path: Path) -> None:
    """Two files share a chunk; one of them has lost another chunk. The shared one still arrives."""
    remote, local = Remote(), new_store()
    shared = chunks("shared", 1)
    good = [add_file(local, (*shared, *chunks(i, 1))) for i in range(6)]
    send(local, remote.store, tmp_path, *good)
    bad = add_file(local, (*shared, *chunks("lost", 1)))
    done = send(local, remote.store, tmp_path, bad)
    for key in remote.record(done.record).packs:
        if key.startswith("p/"):
            remote.inner.delete(key)
    other = new_store()
    result = fetch(remote.store, other, [Wanted(bad), *(Wanted(g) for g in good)])
    assert [w.root for w, _ in result.failures] == [bad]
    for i, g in enumerate(good):
        assert check_honest(other, g, (*shared, *chunks(i, 1)))


def test_a_damaged_page_here_does_not_keep_the_others(local: Store, roots: Roots, tmp_path: Path) -> None:
    """The store holds a listing whose block fails its checksum: that folder is named, everything else arrives."""
    old, new, file = roots
    remote = Remote()
    send(local, remote.store, tmp_path, old, file)
    other = arrives(remote.inner, old, OLD)
    for key in keys(other.backend, "m/"):
        data = bytearray(other.backend.get(key, max_bytes=1 << 30))
        data[40] ^= 1
        other.backend.put(key, [bytes(data)])
    other = Store(other.backend)
    done = fetch(remote.store, other, [Wanted(old), Wanted(file)])
    assert [(w.root, e.kind) for w, e in done.failures] == [(old, "corrupt")] and done.roots == 1
    assert check_honest(other, file, FILE) and new.files
