"""The promise of a push: a record of exactly what it relies on, made visible before it looks, and looked at again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synckit as kit
from msgspec.structs import replace
from storekit import b3, keys, put_pack
from synckit import Around, Before, Remote, add_file, add_folder, arrives, chunks, dvk_error, new_store, send

from dvk.backend.contract import Backend, Buffer
from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, FormatError, NotOurs, Refused, RemoteError
from dvk.store import locator as loc
from dvk.store.descriptor import KEY, Descriptor, format_descriptor
from dvk.store.pack import PackBuilder, PackKind, pack_key
from dvk.store.push import Version, push
from dvk.store.record import format_mark
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.roots import ConfirmedRoots
from dvk.store.section_reader import SectionReader
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)

TREE = {b"%02d" % i: chunks(i, 1 + i % 4) for i in range(40)} | {b"05big": chunks("big", 30)}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.small_packs(monkeypatch, 2500)
    kit.never_inline(monkeypatch)


# ---------------------------------------------------------------- what a record says


def relied_on(remote: Remote, root: Root) -> set[str]:
    """All packs that a reader of this root opens."""
    out: set[str] = set()
    with SectionReader(Store(remote.inner)) as resolver:

        def take(found: loc.Locator) -> None:
            out.update(pack_key(PackKind.PAGES, r.pack) for r in found.sections)
            for section in resolver.sections(found, range(len(found.sections))):
                placed = section.placed
                out.update(
                    pack_key(PackKind.DATA, placed.placement.blocks.packs[i])
                    for i in set(placed.placement.blocks.pack.tolist())
                )
                for x in placed.externals:
                    out.add(pack_key(PackKind.PAGES, x.ref.pack))
                    raw = loc.decode_blocks(resolver.ranges([x.ref])[0], subject="")
                    name = raw[40:72]
                    take(loc.parse_locator(raw, kind=FILE, wanted=name, subject=""))

        take(remote.locator(root))
    return out


def covered_by(remote: Remote, rid: bytes) -> set[str]:
    """All packs that a record keeps alive, through its bases, too."""
    record = remote.record(rid)
    out = {*record.packs, *record.reused}
    for base in record.bases:
        out |= covered_by(remote, bytes.fromhex(base))
    return out


def test_a_record_covers_what_its_roots_lead_to_and_names_nothing_else(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    roots = [add_folder(local, TREE)]
    file = add_file(local, chunks("f", 40))
    done = send(local, remote.store, tmp_path, roots[0], file)
    record = remote.record(done.record)
    assert set(record.packs) == set(remote.keys("p/") + remote.keys("m/"))
    assert not record.bases and not record.reused
    assert record.roots == tuple(sorted((roots[0].text, file.text)))
    rids = [done.record]
    for n in range(3):  # each on the shoulders of the one before
        tree = {**TREE, b"%02d" % (7 * n): (b"edit%d" % n,), b"05big": (*chunks("big", 29 - n), b"tail%d" % n)}
        roots.append(add_folder(local, tree))
        before = set(remote.keys("p/") + remote.keys("m/"))
        done = send(local, remote.store, tmp_path, Version(roots[-1], (roots[-2],)))
        record = remote.record(done.record)
        assert set(record.packs) == set(remote.keys("p/") + remote.keys("m/")) - before
        assert record.bases == (rids[-1].hex(),) and not record.reused
        rids.append(done.record)
    for root, rid in zip(roots, rids, strict=True):
        assert relied_on(remote, root) <= covered_by(remote, rid)
        assert remote.locator(root).record == rid


def test_packs_of_nobody_are_named_one_by_one(tmp_path: Path) -> None:
    """What an unfinished push of somebody else left is reused, and this record names it."""
    remote, local = Remote(), new_store()
    v1, v2 = add_folder(local, TREE), add_folder(local, {**TREE, b"20": (b"edit",)})
    crash = Before(remote.inner, lambda op, key: op == "put" and key.endswith(".ok"), _crash)
    assert dvk_error(lambda: push(local, Store(crash), [Version(v1)], str(tmp_path / "other"))) is not None
    left = set(remote.keys("p/"))
    done = send(local, remote.store, tmp_path / "me", Version(v2, (v1,)))
    record = remote.record(done.record)
    assert done.new_bytes == 4 and not record.bases
    assert set(record.reused) <= left and len(record.reused) >= len(left) - 1
    assert relied_on(remote, v2) <= covered_by(remote, done.record)
    arrives(remote.inner, v2, {**TREE, b"20": (b"edit",)})


def _crash() -> None:
    raise RemoteError("the line went dead")


def test_a_locator_of_another_record_covers_nothing(tmp_path: Path) -> None:
    """A record that is live and does not name the root is no reason to skip it."""
    remote, local = Remote(), new_store()
    f, g = add_file(local, chunks("f", 2)), add_file(local, chunks("g", 2))
    other = send(local, remote.store, tmp_path / "1", g)
    crash = Before(remote.inner, lambda op, key: op == "put" and key.endswith(".ok"), _crash)
    assert dvk_error(lambda: push(local, Store(crash), [Version(f)], str(tmp_path / "2"))) is not None
    forged = loc.format_locator(replace(remote.locator(f), record=other.record))
    remote.inner.put(loc.locator_key(f.kind, f.id), [forged])
    store = Store(remote.inner).describe()
    assert store is not None
    ConfirmedRoots(str(tmp_path / "3"), store.store).add({f.text: other.record})
    done = send(local, remote.store, tmp_path / "3", f)
    assert [v.root for v in done.sent] == [f] and f.text in remote.record(done.record).roots


def test_the_order_of_a_push(tmp_path: Path) -> None:
    """Data, pages, intent, look at lists, look at what is relied on, locators, identity, confirmation, look."""
    remote, local = Remote(), new_store()
    v1, v2 = add_folder(local, TREE), add_folder(local, {**TREE, b"20": (b"edit",)})
    base = send(local, remote.store, tmp_path, v1).record
    remote.counting.reset()
    done = send(local, remote.store, tmp_path, Version(v2, (v1,)))
    calls = remote.counting.counts.calls
    record, rid = remote.record(done.record), f"j/{done.record.hex()}"

    def at(op: str, start: str) -> list[int]:
        return [i for i, (o, key) in enumerate(calls) if o == op and key.startswith(start)]

    data, pages_, p3 = at("put", "p/"), at("put", "m/"), at("put", rid)[0]
    p4 = at("list", "g/c-")
    p5 = [i for i in at("stat", "p/") + at("stat", "m/") if i > p3]
    locators, identity = at("put", "l/"), [i for i in at("get", KEY) if i > p3]
    p6, p7 = at("put", rid + ".ok"), [i for i in at("list", rid) if i > p3]
    assert max(data) < min(pages_) and max(pages_) < p3
    assert len(p4) == 1 and p3 < p4[0] < min(p5)
    assert {calls[i][1] for i in p5} >= {*record.packs, *record.reused}
    bases = [i for i in at("list", f"j/{base.hex()}") if i > p4[0]]
    assert len(bases) == 1
    assert max(*p5, *bases) < min(locators) <= max(locators) < identity[0] < p6[0] < p7[0] == len(calls) - 1
    assert [key for op, key in calls if op == "put" and key.startswith("j/")] == [rid, rid + ".ok"]
    assert not at("delete", "")


# ---------------------------------------------------------------- conflicts


def condemn(backend: Backend, packs: Sequence[str], name: str = "0" * 32) -> None:
    store = json.loads(backend.get(KEY, max_bytes=1 << 16))["store"]
    body = json.dumps({"format": 1, "packs": sorted(packs), "store": store}, sort_keys=True, separators=(",", ":"))
    backend.put(f"g/c-{name}", [body.encode() + b"\n"])


def is_p4(op: str, key: str) -> bool:
    return (op, key) == ("list", "g/c-")


def pushed_with(
    inner: Backend, when: Callable[[str, str], bool], do: Callable[[], None], local: Store, state: Path, v: Version
) -> tuple[Before, Any]:
    backend = Before(inner, when, do)
    done = push(local, Store(backend), [v], str(state))
    assert backend.done and [x.root for x in done.sent] == [v.root]
    return backend, done


def test_condemned_packs_are_replaced_by_new_ones(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    dead: list[str] = []

    def collector() -> None:
        dead.extend(remote.keys("p/"))
        condemn(remote.inner, dead)

    _, done = pushed_with(remote.inner, is_p4, collector, local, tmp_path, Version(root))
    assert dead and not set(dead) & covered_by(remote, done.record)
    for key in dead:
        remote.inner.delete(key)
    arrives(remote.inner, root, TREE)


def test_condemned_page_packs_are_replaced_by_new_ones(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    dead: list[str] = []

    def collector() -> None:
        dead.extend(remote.keys("m/"))
        condemn(remote.inner, dead)

    _, done = pushed_with(remote.inner, is_p4, collector, local, tmp_path, Version(root))
    assert dead and not set(dead) & relied_on(remote, root)
    assert not set(dead) & set(remote.record(done.record).packs)


@pytest.mark.parametrize("kind", ["p/", "m/"])
def test_packs_that_vanish_before_the_check_are_sent_again(kind: str, tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    gone: list[str] = []

    def collector() -> None:
        gone.append(remote.keys(kind)[0])
        remote.inner.delete(gone[0])

    _, done = pushed_with(remote.inner, is_p4, collector, local, tmp_path, Version(root))
    assert gone[0] not in remote.record(done.record).packs
    arrives(remote.inner, root, TREE)


def test_a_base_that_is_retired_before_the_check_is_not_relied_on(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    v1, v2 = add_folder(local, TREE), add_folder(local, {**TREE, b"20": (b"edit",)})
    base = send(local, remote.store, tmp_path, v1).record

    def retire() -> None:
        remote.inner.put(f"j/{base.hex()}.x", [format_mark(base)])

    _, done = pushed_with(remote.inner, is_p4, retire, local, tmp_path, Version(v2, (v1,)))
    record = remote.record(done.record)
    assert not record.bases and relied_on(remote, v2) <= {*record.packs, *record.reused}
    arrives(remote.inner, v2, {**TREE, b"20": (b"edit",)})


@pytest.mark.parametrize("kind", ["p/", "m/"])
def test_what_a_remote_lost_of_a_base_is_sent_again(kind: str, tmp_path: Path) -> None:
    """A live base answers for its packs; where one is missing all the same, a clone that has the data heals it."""
    remote, local = Remote(), new_store()
    edited = {**TREE, b"20": (b"edit",)}
    v1, v2 = add_folder(local, TREE), add_folder(local, edited)
    send(local, remote.store, tmp_path, v1)
    for key in remote.keys(kind):
        remote.inner.delete(key)
    heard = kit.Heard()
    send(local, remote.store, tmp_path, Version(v2, (v1,)), on_event=heard)
    arrives(remote.inner, v2, edited)


@pytest.mark.parametrize("mark", [".x", ".e"])
def test_a_push_whose_record_is_marked_at_the_last_moment_makes_another(tmp_path: Path, mark: str) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    retired: list[str] = []

    def retire() -> None:
        retired.append(next(k for k in remote.keys("j/") if k.endswith(".ok"))[:-3])
        remote.inner.put(retired[0] + mark, [format_mark(bytes.fromhex(retired[0][2:]))])

    confirmed = lambda op, key: op == "list" and key.startswith("j/")  # noqa: E731
    _, done = pushed_with(remote.inner, confirmed, retire, local, tmp_path, Version(root))
    assert retired[0] != f"j/{done.record.hex()}" and remote.is_live(done.record)
    assert relied_on(remote, root) <= covered_by(remote, done.record)
    arrives(remote.inner, root, TREE)


def test_a_push_ends_when_it_is_collected_again_and_again(tmp_path: Path) -> None:
    class Greedy(Around):
        n = 0

        def list(self, prefix: str) -> Any:
            if prefix == "g/c-":
                self.n += 1
                condemn(self.inner, keys(self.inner, "p/"), f"{self.n:032x}")
            return super().list(prefix)

    remote, local = Greedy(MemoryBackend()), new_store()
    root = add_file(local, chunks("f", 3))
    error = dvk_error(lambda: push(local, Store(remote), [Version(root)], str(tmp_path)))
    assert isinstance(error, RemoteError) and "again" in error.message and error.hint
    assert not [k for k in keys(remote, "j/") if k.endswith(".ok")]


def test_a_store_that_is_replaced_during_the_push_stops_it(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_file(local, chunks("f", 3))

    def replace_store() -> None:
        remote.inner.put(KEY, [format_descriptor(Descriptor.new())])

    backend = Before(remote.inner, is_p4, replace_store)
    error = dvk_error(lambda: push(local, Store(backend), [Version(root)], str(tmp_path)))
    assert isinstance(error, NotOurs) and error.hint
    assert not [k for k in remote.keys("j/") if k.endswith(".ok")]
    send(local, remote.store, tmp_path, root)
    arrives(remote.inner, root, chunks("f", 3))


def test_a_store_that_is_emptied_during_the_push_stops_it(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_file(local, chunks("f", 3))
    backend = Before(remote.inner, lambda op, k: op == "put" and k[0] == "l", lambda: remote.inner.delete(KEY))
    assert isinstance(dvk_error(lambda: push(local, Store(backend), [Version(root)], str(tmp_path))), NotOurs)
    assert not [k for k in remote.keys("j/") if k.endswith(".ok")]


PACK = "p/ab/ab" + "0" * 62
GOOD = {"format": 1, "packs": [PACK], "store": "0" * 32}
UNREADABLE = {
    "empty": b"",
    "garbage": b"\x00\xff",
    "newer": {**GOOD, "format": 2},
    "unknown key": {**GOOD, "but": []},
    "no packs": {"format": 1, "store": "0" * 32},
    "a pack in capitals": {**GOOD, "packs": [PACK.upper()]},
    "a pack in another folder": {**GOOD, "packs": ["p/cd/ab" + "0" * 62]},
    "a number": {**GOOD, "packs": [7]},
    "a text for a list": {**GOOD, "packs": PACK},
    "repeats": {**GOOD, "packs": [PACK, PACK]},
    "spaces": json.dumps(GOOD, sort_keys=True).encode() + b"\n",
    "no newline": json.dumps(GOOD, sort_keys=True, separators=(",", ":")).encode(),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_condemned_list_stops_a_push_before_it_promises(name: str, tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    body = UNREADABLE[name]
    if isinstance(body, dict):
        body = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    remote.inner.put("g/c-" + "1" * 32, [body])
    root = add_file(local, chunks("f", 3))
    error = dvk_error(lambda: push(local, remote.store, [Version(root)], str(tmp_path)))
    assert isinstance(error, FormatError) and "g/c-" in error.subject and error.hint
    assert not [k for k in remote.keys("j/") if k.endswith(".ok")] and not remote.keys("l/")
    assert not ConfirmedRoots(str(tmp_path), remote.store.create().store).read()
    # Once its collector has finished, all is well.
    remote.inner.delete("g/c-" + "1" * 32)
    send(local, remote.store, tmp_path, root)


def test_a_readable_list_of_other_packs_is_no_obstacle(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_file(local, chunks("f", 3))
    remote.inner.put("g/c-" + "1" * 32, [json.dumps(GOOD, sort_keys=True, separators=(",", ":")).encode() + b"\n"])
    remote.inner.put("g/census", [b"of collectors alone"])
    send(local, remote.store, tmp_path, root)


# ---------------------------------------------------------------- remotes that lie


class Liar(Around):
    """Stores something else than it was given, under keys with a prefix."""

    def __init__(self, inner: Backend, prefix: str, lie: Callable[[bytes], bytes | None]) -> None:
        super().__init__(inner)
        self.prefix, self.lie = prefix, lie

    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        if not key.startswith(self.prefix):
            return super().put(key, parts, create_only=create_only)
        stored = self.lie(b"".join(parts))
        if stored is not None:
            super().put(key, [stored], create_only=create_only)
        return None


LIES: dict[str, Callable[[bytes], bytes | None]] = {
    "nothing": lambda data: None,
    "empty": lambda data: b"",
    "without its last byte": lambda data: data[:-1],
    "without its middle": lambda data: data[: len(data) // 3] + data[len(data) // 2 :],
    "with a byte more": lambda data: data + b"\n",
    "with framing": lambda data: b"%x;chunk\r\n" % len(data) + data + b"\r\n0\r\n",
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "the last bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
}


@pytest.mark.parametrize(
    ("prefix", "name"),
    # The contents of marks and records are not read back, their lengths are.
    [(p, n) for p in ("p/", "m/", "j/") for n in LIES if p != "j/" or n not in ("zeros", "the last bit")],
)
def test_a_remote_that_stores_something_else_is_noticed(prefix: str, name: str, tmp_path: Path) -> None:
    inner, local = MemoryBackend(), new_store()
    root = add_file(local, chunks("f", 3))
    remote = Store(Liar(inner, prefix, LIES[name]))
    error = dvk_error(lambda: push(local, remote, [Version(root)], str(tmp_path)))
    assert isinstance(error, (RemoteError, FormatError, kit.DvkError))
    store = Store(inner).describe()
    assert store is None or not ConfirmedRoots(str(tmp_path), store.store).read()
    # With an honest remote the same command continues.
    send(local, Store(inner), tmp_path, root)
    arrives(inner, root, chunks("f", 3))


def test_reading_everything_back_finds_any_byte(tmp_path: Path) -> None:
    """`verify_all`: one altered byte anywhere in a data pack, the header and footer included."""
    local = new_store()
    root = add_file(local, chunks("f", 3))
    length = 0

    def measure(data: bytes) -> bytes:
        nonlocal length
        length = len(data)
        return data

    send(local, Store(Liar(MemoryBackend(), "p/", measure)), tmp_path / "measure", root)
    for at in range(0, length, 5):
        flip = lambda data, at=at: data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]  # noqa: E731
        remote = Store(Liar(MemoryBackend(), "p/", flip))
        error = dvk_error(
            lambda r=remote, at=at: push(local, r, [Version(root)], str(tmp_path / str(at)), verify_all=True)
        )
        assert isinstance(error, RemoteError), at


def test_reading_everything_back_includes_what_an_earlier_run_sent(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    crash = Before(remote.inner, lambda op, key: op == "put" and key.startswith("m/"), _crash)
    assert dvk_error(lambda: push(local, Store(crash), [Version(root)], str(tmp_path))) is not None
    bad = remote.keys("p/")[0]
    data = bytearray(remote.inner.get(bad, max_bytes=1 << 20))
    data[40] ^= 1
    remote.inner.put(bad, [bytes(data)])
    remote.counting.reset()
    done = send(local, remote.store, tmp_path, root, verify_all=True)
    assert bad not in remote.record(done.record).packs
    read = {key for op, key in remote.counting.counts.calls if op == "get"}
    assert set(remote.keys("p/") + remote.keys("m/")) <= read
    arrives(remote.inner, root, TREE)


def test_a_damaged_local_chunk_is_not_sent(tmp_path: Path) -> None:
    """Its block is whole by its checksum, and the chunk is not what its id says."""
    local, remote = new_store(), Remote()
    local.create()
    builder = PackBuilder(PackKind.DATA)
    builder.add_block(0, b"wrong", 5, ids=b3(b"right"), lengths=np.array([5], np.uint32))
    name, parts = builder.finish()
    put_pack(local, name, b"".join(parts))
    root = Root(1, b3(b"right"), 5)
    error = dvk_error(lambda: push(local, remote.store, [Version(root)], str(tmp_path)))
    assert isinstance(error, Corrupt) and error.hint
    assert not remote.keys("p/") and not remote.keys("j/")


def test_a_profile_that_the_remote_does_not_take_is_refused(tmp_path: Path) -> None:
    """Another codec is no obstacle: blocks are encoded again (test_upgrade.py). Cuts cannot be changed."""
    remote, local = Remote(), new_store()
    remote.inner.put(KEY, [format_descriptor(replace(Descriptor.new(), profiles=("cdc-64k",)))])
    root = add_file(local, (b"a" * 200, b"b" * 200), profile="other-1")
    error = dvk_error(lambda: push(local, remote.store, [Version(root)], str(tmp_path)))
    assert isinstance(error, Refused) and "upgrade" in error.hint
    assert not remote.keys("j/")


def test_what_turned_out_not_to_be_confirmed_is_forgotten(tmp_path: Path) -> None:
    """`status` must not go on saying that it is pushed."""
    remote, local = Remote(), new_store()
    root = add_folder(local, TREE)
    done = send(local, remote.store, tmp_path, root)
    remote.inner.put(f"j/{done.record.hex()}.x", [format_mark(done.record)])
    known = ConfirmedRoots(str(tmp_path), remote.store.create().store)
    assert root.text in known.read()
    push(new_store(), remote.store, [Version(root)], str(tmp_path))  # a clone that lacks the data cannot send it again
    assert root.text not in known.read()
    send(local, remote.store, tmp_path, root)
    assert root.text in known.read() and root.kind == FOLDER
