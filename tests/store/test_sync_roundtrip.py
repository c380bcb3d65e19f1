"""What was pushed comes back bit for bit, whatever its shape, and only what is new moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synckit as kit
from storekit import add, noise, words
from synckit import EMPTY, Cut, Exec, Link, Remote, add_file, add_folder, arrives, chunks, content, new_store, send

from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.memory import MemoryBackend
from dvk.ids import EMPTY_FILE
from dvk.store.fetch import Wanted, fetch, is_here
from dvk.store.listing import Kind
from dvk.store.pages import read_entries
from dvk.store.push import Version, plan_push, push
from dvk.store.resolve import RemoteContent, Resolver
from dvk.store.restore import restore
from dvk.store.root import FILE, FOLDER, Root
from dvk.store.store import Store

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["memory", "local"])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return MemoryBackend() if request.param == "memory" else LocalBackend(str(tmp_path / "remote"))


FILES: dict[str, tuple[bytes, ...]] = {
    "one byte": (b"x",),
    "one chunk": chunks("one", 1),
    "a block": chunks("b", 5, 100),
    "compressible": (words("w", 9000), words("v", 100)),
    "same chunk twice": (*chunks("s", 3), *chunks("s", 2), b"end"),
    "some leaves": chunks("leaves", 30),
    "three levels": chunks("levels", 200, 20),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inline", [True, False], ids=["inline", "by range"])
def test_files_come_back(
    name: str, inline: bool, medium: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.small_pages(monkeypatch)
    if not inline:
        kit.never_inline(monkeypatch)
    local = new_store()
    root = add_file(local, FILES[name])
    done = send(local, Store(medium), tmp_path / "state", root)
    assert [v.root for v in done.sent] == [root]
    assert done.new_bytes == sum(len(c) for c in set(FILES[name]))
    arrives(medium, root, FILES[name])


def test_a_file_of_nothing_needs_no_object(tmp_path: Path) -> None:
    remote, root = Remote(), Root(FILE, EMPTY_FILE, 0)
    done = send(new_store(), remote.store, tmp_path, root)
    assert len(done.covered) == 1 and not remote.keys()
    arrives(remote.inner, root, ())


TREES: dict[str, dict[bytes, Any]] = {
    "empty": {},
    "one entry": {b"a": chunks("a", 1)},
    "only an empty directory": {b"a": EMPTY},
    "only an empty file": {b"a": ()},
    "kinds": {
        b"a": chunks("a", 1),
        b"b/link": Link(b"../a"),
        b"b/run": Exec(chunks("run", 3)),
        b"c": EMPTY,
        b"d/empty": (),
        b"\xff\xfe odd \n name": chunks("odd", 2),
    },
    "2 to 64 chunks": {b"%02d" % n: chunks(("n", n), n, 20) for n in range(1, 30)},
    "over 64 chunks": {b"big": chunks("big", 65, 20), b"bigger": chunks("bigger", 400, 20), b"small": chunks("s", 2)},
    "the same again": {b"d%d/f%d" % (i % 3, i): chunks(("same", i % 2), 1 + 8 * (i % 2)) for i in range(9)},
    "the same with and without x": {b"a": chunks("q", 9), b"b": Exec(chunks("q", 9)), b"c": chunks("q", 9)},
    "profiles": {
        b"a": Cut(chunks("a", 3), "cdc-64k"),
        b"b": Cut(chunks("b", 3), "auto-1"),
        b"c": chunks("c", 1),
        b"d": Cut(chunks("d", 30), "auto-1"),
        b"e": Cut(chunks("e", 4), "cdc-64k"),
    },
    "leaves": {b"dir%d/file%03d" % (i % 4, i): chunks(i, 1 + i % 4) for i in range(90)},
}


@pytest.mark.parametrize("limits", ["small", "small by range", "real"])
@pytest.mark.parametrize("name", TREES)
def test_folders_come_back(name: str, limits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if limits != "real":
        kit.small_pages(monkeypatch)
        kit.small_packs(monkeypatch)
    if limits == "small by range":
        kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    allow_profiles(remote, "auto-1")
    root = add_folder(local, TREES[name])
    send(local, remote.store, tmp_path, root)
    arrives(remote.inner, root, TREES[name])


def allow_profiles(remote: Remote, *names: str) -> None:
    """Make a store that takes these profiles besides those that this version writes."""
    from msgspec.structs import replace

    from dvk.store.descriptor import KEY, Descriptor, format_descriptor

    new = Descriptor.new()
    new = replace(new, profiles=tuple(sorted({*new.profiles, *names})))
    remote.inner.put(KEY, [format_descriptor(new)])


def test_folders_come_back_on_disk(medium: Backend, tmp_path: Path) -> None:
    local = Store(LocalBackend(str(tmp_path / "local")))
    root = add_folder(local, TREES["kinds"])
    send(local, Store(medium), tmp_path / "state", root)
    arrives(medium, root, TREES["kinds"], into=Store(LocalBackend(str(tmp_path / "other"))))


def test_files_of_the_real_chunker_come_back(tmp_path: Path) -> None:
    """With the profile, blocks and codecs of `add`: a table, noise, and a run of small files."""
    remote, local = Remote(), new_store()
    contents = [words("table", 3 << 20), noise("n", 1 << 20), *(words(i, 40_000) for i in range(20)), b""]
    ids, _ = add(local, contents)
    roots = [Root(FILE, ids[i].tobytes(), len(c)) for i, c in enumerate(contents)]
    send(local, remote.store, tmp_path, *roots)
    other = new_store()
    done = fetch(remote.store, other, [Wanted(r) for r in roots])
    assert (done.roots, done.failures) == (len(roots) - 1, [])  # nothing is fetched for nothing
    assert [content(other, r) for r in roots] == contents


def test_a_recipe_of_several_real_leaves_comes_back(tmp_path: Path) -> None:
    """More than 6,144 chunks with the limits of the format."""
    remote, local = Remote(), new_store()
    pieces = tuple(b"%07d" % i for i in range(6_500))
    root = add_file(local, pieces)
    send(local, remote.store, tmp_path, root)
    assert len(remote.locator(root).sections) > 1
    arrives(remote.inner, root, pieces)


@pytest.mark.parametrize("under", [b"dir1", b"dir2/file006", b"dir3/nothing", b"dir"])
def test_a_part_of_a_folder_comes_back(under: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = TREES["leaves"]
    root = add_folder(local, tree)
    send(local, remote.store, tmp_path, root)
    part = {n: x for n, x in tree.items() if n == under or n.startswith(under + b"/")}
    other = arrives(remote.inner, root, part, under=under)
    assert not is_here(other, Wanted(root))
    # The rest follows, and only the rest.
    held = sum(len(b"".join(x)) for x in part.values())
    done = fetch(remote.store, other, [Wanted(root)])
    assert done.new_bytes == sum(len(b"".join(x)) for x in tree.values()) - held
    assert content(other, root) == kit.meant(tree)


def test_several_parts_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    root = add_folder(local, TREES["leaves"])
    send(local, remote.store, tmp_path, root)
    other, wanted = new_store(), Wanted(root, (b"dir0", b"dir3/file003"))
    fetch(remote.store, other, [wanted])
    assert is_here(other, wanted) and not is_here(other, Wanted(root, (b"dir3",)))
    assert sorted(content(other, root, b"dir0")) == sorted(n for n in TREES["leaves"] if n.startswith(b"dir0/"))


def test_what_versions_share_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    trees = [{**TREES["leaves"], b"new%d" % i: chunks(("new", i), 2)} for i in range(3)]
    roots = [add_folder(local, t) for t in trees]
    file = add_file(local, chunks("big", 65, 20))
    send(local, remote.store, tmp_path, *roots, file, *roots)
    other = new_store()
    done = fetch(remote.store, other, [Wanted(r) for r in (*roots, file, roots[0])])
    assert done.new_bytes == sum(len(c) for c in {c for t in trees for x in t.values() for c in x}) + file.size
    assert [content(other, r) for r in roots] == [kit.meant(t) for t in trees]


def test_a_dry_run_says_what_would_come_and_reads_no_data(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, TREES["leaves"])
    send(local, remote.store, tmp_path, root)
    other = new_store()
    remote.counting.reset()
    plan = fetch(remote.store, other, [Wanted(root)], dry_run=True)
    assert not [k for op, k in remote.counting.counts.calls if k.startswith("p/")]
    assert not list(other.backend.list(""))
    done = fetch(remote.store, other, [Wanted(root)])
    assert (plan.new_bytes, plan.moved_bytes, plan.roots) == (done.new_bytes, done.moved_bytes, done.roots)


def test_straight_from_the_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content by locators restores without a local store."""
    from storekit import Folder

    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"a": chunks("a", 1), b"b": chunks("b", 4), b"c": chunks("c", 40), b"d": (), b"e": chunks("b", 4)}
    root = add_folder(local, tree)
    send(local, remote.store, tmp_path / "s", root)
    source = RemoteContent(remote.store)
    with Resolver(remote.store) as resolver:
        parts = list(resolver.resolve(root))
    for part in parts:
        source.add(part)
    entries = parts[0].entries
    for part in parts[1:]:
        entries = type(entries).join([entries, part.entries])
    sink = Folder(tmp_path / "out")
    assert restore(source, entries.ids, entries.sizes, sink) == []
    assert {entries.names[i]: data for i, data in sink.read().items()} == kit.meant(tree)
    assert [Kind(int(k)) for k in entries.kinds] == [Kind.FILE] * 5


# ---------------------------------------------------------------- only what is new


def stored(pieces: tuple[bytes, ...]) -> int:
    return sum(len(c) for c in set(pieces))


def packs_bytes(remote: Remote) -> int:
    return sum(len(d) for k, d in remote.objects("p/").items())


@pytest.mark.parametrize("fresh", [False, True], ids=["same clone", "fresh clone"])
def test_an_edit_of_a_big_file_moves_the_edit(fresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file of many leaves only the chunks and the leaf around the edit, from a clone that never pushed it, too."""
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    old = chunks("f", 120)
    new = (*old[:50], b"edit", *old[51:])
    v1, v2 = add_file(local, old), add_file(local, new)
    state = tmp_path / "1"
    send(local, remote.store, state, v1)
    done = send(local, remote.store, tmp_path / "2" if fresh else state, Version(v2, (v1,)))
    assert done.new_bytes == len(b"edit")
    first, second = remote.locator(v1).sections, remote.locator(v2).sections
    assert 0 < len(set(second) - set(first)) <= 2
    record = remote.record(done.record)
    assert len(record.bases) == 1 and not record.reused
    assert is_only_chunks(remote, record.packs, {b"edit"})
    arrives(remote.inner, v2, new)


def is_only_chunks(remote: Remote, keys: tuple[str, ...], wanted: set[bytes]) -> bool:
    from storekit import b3

    from dvk.store.pack import parse_footer_of

    found = set()
    for key in keys:
        if key.startswith("p/"):
            footer = parse_footer_of(remote.inner.get(key, max_bytes=1 << 30))
            found |= {footer.ids[i].tobytes() for i in range(len(footer.ids))}
    return found == {b3(c) for c in wanted}


def test_an_edit_in_a_folder_rewrites_one_leaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%03d" % i: chunks(i, 1 + i % 4) for i in range(200)}
    v1 = add_folder(local, tree)
    send(local, remote.store, tmp_path, v1)
    edited = {**tree, b"100": (b"edit",)}
    v2 = add_folder(local, edited)
    done = send(local, remote.store, tmp_path, Version(v2, (v1,)))
    assert done.new_bytes == 4
    assert len(set(remote.locator(v2).sections) - set(remote.locator(v1).sections)) == 1
    arrives(remote.inner, v2, edited)


def copy_pages(local: Store, root: Root, into: Store) -> None:
    """What a clone has that pulled nothing of a folder but its listing."""
    from dvk.ids import PageId
    from dvk.store.pages import iter_entries
    from dvk.store.writer import Writer

    with Writer(into) as writer:

        def load(name: PageId) -> bytes:
            data = local.load_page(name)
            writer.add_page(name, data)
            return data

        list(iter_entries(PageId(root.id), load))
        writer.flush()


@pytest.mark.parametrize("live", [True, False], ids=["live record", "retired record"])
def test_a_clone_without_the_old_data_pushes_an_edit(
    live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the listing and the new chunks; what it lacks is referred to where the remote has it."""
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%02d" % i: chunks(i, 1 + i % 6) for i in range(40)} | {b"05big": chunks("big", 50)}
    v1 = add_folder(local, tree)
    done = send(local, remote.store, tmp_path / "1", v1)
    if not live:
        remote.inner.put(f"j/{done.record.hex()}.x", [b"retired"])
    clone = new_store()
    copy_pages(local, v1, clone)
    edited = {**tree, b"06": (b"edit",)}
    v2 = add_folder(local, edited)
    copy_pages(local, v2, clone)
    add_file(clone, (b"edit",))
    done = send(clone, remote.store, tmp_path / "2", Version(v2, (v1,)))
    assert done.new_bytes == 4
    record = remote.record(done.record)
    assert bool(record.bases) == live and bool(record.reused) == (not live)
    arrives(remote.inner, v2, edited)


def test_a_clone_without_the_old_data_pushes_edits_of_several_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit touches another leaf, and only the oldest version of the chain is on the remote."""
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    trees = [{b"%03d" % i: chunks(i, 1 + i % 6) for i in range(60)}]
    roots = [add_folder(local, trees[0])]
    send(local, remote.store, tmp_path / "1", roots[0])
    clone = new_store()
    copy_pages(local, roots[0], clone)
    versions = []
    for n in range(1, 6):
        trees.append({**trees[-1], b"%03d" % (n * 11): (b"edit%d" % n,)})
        roots.append(add_folder(local, trees[-1]))
        copy_pages(local, roots[-1], clone)
        add_file(clone, (b"edit%d" % n,))
        versions.append(Version(roots[-1], tuple(reversed(roots[:-1]))[:3]))
    done = send(clone, remote.store, tmp_path / "2", *versions)
    assert len(done.sent) == 5 and done.new_bytes == 25
    for root, tree in zip(roots, trees, strict=True):
        arrives(remote.inner, root, tree)


def test_a_version_that_is_nowhere_whole_is_named_and_the_others_go(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    root = add_folder(local, {b"a": chunks("a", 3)})
    clone = new_store()
    copy_pages(local, root, clone)
    other = add_file(clone, chunks("f", 3))
    done = push(clone, remote.store, [Version(root), Version(other)], str(tmp_path))
    assert [v.root for v in done.sent] == [other] and [v.root for v, _ in done.absent] == [root]
    arrives(remote.inner, other, chunks("f", 3))
    assert remote.inner.stat(kit.locator_key(root.kind, root.id)) is None


def test_an_edit_of_a_big_file_in_a_folder_moves_the_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints live in folders: a changed one is compared with the one of the same name."""
    kit.small_pages(monkeypatch)
    kit.never_inline(monkeypatch)
    remote, local = Remote(), new_store()
    old = chunks("model", 90)
    tree = {b"m/a.bin": old, b"m/b.bin": chunks("other", 90), b"readme": (b"hello",)}
    new = (*old[:40], b"tuned", *old[41:])
    v1, v2 = add_folder(local, tree), add_folder(local, {**tree, b"m/a.bin": new})
    send(local, remote.store, tmp_path / "1", v1)
    done = send(local, remote.store, tmp_path / "2", Version(v2, (v1,)))
    assert done.new_bytes == len(b"tuned")
    arrives(remote.inner, v2, {**tree, b"m/a.bin": new})


def test_an_edit_of_a_big_file_two_versions_later_moves_the_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version between changed a neighbour of it, so its leaf was looked at before."""
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    old = chunks("model", 90)
    tree = {b"a.bin": old, b"b": chunks("b", 2)}
    edited = {**tree, b"b": (b"edit",)}
    tuned = {**edited, b"a.bin": (*old[:40], b"tuned", *old[41:])}
    v1, v2, v3 = (add_folder(local, t) for t in (tree, edited, tuned))
    send(local, remote.store, tmp_path / "1", v1)
    done = send(local, remote.store, tmp_path / "2", Version(v2, (v1,)), Version(v3, (v2, v1)))
    assert done.new_bytes == len(b"edit" + b"tuned")
    for root, what in ((v1, tree), (v2, edited), (v3, tuned)):
        arrives(remote.inner, root, what)


def test_versions_pushed_together_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%02d" % i: chunks(i, 1 + i % 6) for i in range(40)}
    edited = {**tree, b"20": (b"edit",)}
    v1, v2 = add_folder(local, tree), add_folder(local, edited)
    f1 = add_file(local, chunks("f", 50))
    f2 = add_file(local, (*chunks("f", 50), b"more"))
    done = send(local, remote.store, tmp_path, v1, Version(v2, (v1,)), f1, Version(f2, (f1,)))
    every = {c for x in (*tree.values(), *edited.values(), chunks("f", 50), (b"more",)) for c in x}
    assert done.new_bytes == sum(map(len, every)) and is_only_chunks(remote, remote.record(done.record).packs, every)
    assert len(set(remote.locator(v2).sections) - set(remote.locator(v1).sections)) == 1
    for root, what in ((v1, tree), (v2, edited), (f1, chunks("f", 50)), (f2, (*chunks("f", 50), b"more"))):
        arrives(remote.inner, root, what)


def test_only_wanted_chunks_leave_the_machine(tmp_path: Path) -> None:
    """Blocks of the local store mix what is pushed with what is not."""
    remote, local = Remote(), new_store()
    add_file(local, tuple(c for i in range(20) for c in (noise(("secret", i), 50), noise(("public", i), 50))))
    public = tuple(noise(("public", i), 50) for i in range(20))
    root = add_file(local, public)
    done = send(local, remote.store, tmp_path, root)
    assert is_only_chunks(remote, remote.record(done.record).packs, set(public))
    arrives(remote.inner, root, public)


def test_a_plan_tells_what_a_push_would_do_and_changes_nothing(tmp_path: Path) -> None:
    remote, local = Remote(), new_store()
    tree = {b"%02d" % i: chunks(i % 5, 1 + i % 5) for i in range(40)}
    root = add_folder(local, tree)
    state = tmp_path / "state"
    plan = plan_push(local, remote.store, [Version(root)], str(state))
    assert not remote.keys() and not state.exists()
    done = send(local, remote.store, state, root)
    assert (plan.sent, plan.covered, plan.new_bytes) == (done.sent, done.covered, done.new_bytes)
    before = {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}
    assert plan_push(local, remote.store, [Version(root)], str(state)).covered == [Version(root)]
    assert before == {p: p.read_bytes() for p in state.rglob("*") if p.is_file()}


def test_many_chunks_with_one_prefix_are_kept_apart() -> None:
    """Eight bytes decide where to look, all 32 whether it is that chunk."""
    from dvk.store.known import KnownChunks, SeenOnce
    from dvk.store.pages import Chunks
    from dvk.store.placement import Placement

    ids = np.zeros((50, 32), np.uint8)
    ids[:, 20] = np.arange(50)
    known = KnownChunks()
    from dvk.store.pack import PackKind
    from dvk.store.placement import Blocks

    u32 = np.zeros(1, np.uint32)
    blocks = Blocks(PackKind.DATA, (bytes(32),), u32, np.zeros(1, np.int64), u32, u32, np.zeros(1, np.uint8))
    for i in range(0, 50, 2):
        where = Placement(blocks, np.zeros(1, np.uint32), np.array([i], np.uint32))
        known.add(Chunks(ids[i : i + 1], np.ones(1, np.uint32)), where)
        assert known.holds(ids[i : i + 1]).all()
    assert known.holds(ids).tolist() == [i % 2 == 0 for i in range(50)]
    assert known.place(ids) is None
    placed = known.place(ids[::2][::-1])
    assert placed is not None and placed.offset.tolist() == list(range(48, -2, -2))
    seen = SeenOnce()
    rng = np.random.default_rng(3).integers(0, 255, (400, 32), np.uint8)
    firsts = [seen.first(rng[a : a + 37]).tolist() for a in range(0, 400, 20)]
    assert firsts[0] == list(range(37)) and all(
        f == list(range(17, min(37, 400 - 20 * n))) for n, f in enumerate(firsts) if n
    )


def test_entries_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.small_pages(monkeypatch)
    remote, local = Remote(), new_store()
    tree = {b"%03d" % i: chunks(i, 1) for i in range(150)}
    root = add_folder(local, tree)
    send(local, remote.store, tmp_path, root)
    with Resolver(remote.store) as resolver:
        parts = list(resolver.resolve(root))
    assert [n for p in parts for n in p.entries.names] == sorted(tree)
    assert root.kind == FOLDER and len(read_entries(root.id, local.load_page)) == 150  # type: ignore[arg-type]
