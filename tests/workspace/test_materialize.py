"""A checkout writes verified content, never over what only the user has, and leaves no traces when it fails."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvk.errors import ChangedWhileRead, DvkError, Refused, StorageFull
from dvk.store.listing import Entries, Kind
from dvk.store.names import Names
from dvk.workspace import materialize, probe
from dvk.workspace.materialize import WorkTree
from dvk.workspace.plan import CheckoutPlan, content_needed, plan_checkout
from dvk.workspace.probe import check_space, clean_leftovers, find_folded, leftovers_in, temp_name
from dvk.workspace.scan import Scan, empty_scan, scan_file, scan_folder
from dvk.workspace.statcache import StatCache, read_clock

Model = dict[bytes, tuple[Kind, bytes]]  # path -> kind, content (of a link its target)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "f").mkdir()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def digest(data: bytes) -> np.ndarray:
    return np.frombuffer(blake3(data).digest(), np.uint8)


def entries_of(model: Model) -> Entries:
    names = sorted(model)
    kinds = [model[n][0] for n in names]
    ids = np.zeros((len(names), 32), np.uint8)
    for i, n in enumerate(names):
        if kinds[i] in (Kind.FILE, Kind.EXEC):
            ids[i] = digest(model[n][1])
    return Entries(
        Names.of(names),
        np.array(kinds, np.uint8),
        np.array([len(model[n][1]) for n in names], np.int64),
        ids,
        Names.of([model[n][1] for n in names if model[n][0] == Kind.LINK]),
    )


def read(top: Path, path: bytes) -> bytes:
    with open(os.fsencode(top) + b"/" + path, "rb") as f:
        return f.read()


def hashed(top: Path, folder: bytes, scan: Scan) -> np.ndarray:
    ids = np.zeros((len(scan), 32), np.uint8)
    for i, name in enumerate(scan.names):
        if scan.kinds[i] in (Kind.FILE, Kind.EXEC):
            ids[i] = digest(read(top, folder + b"/" + name if name else folder))
    return ids


def holder(contents: set[bytes]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    held = {blake3(c).digest() for c in contents}
    return lambda ids, sizes: np.array([row.tobytes() in held for row in ids], np.bool_)


def on_disk(top: Path) -> Model:
    out: Model = {}
    base = os.fsencode(top)
    for directory, dirs, files in os.walk(base):
        inside = directory[len(base) + 1 :]
        for name in [*files, *[d for d in dirs if os.path.islink(os.path.join(directory, d))]]:
            path = inside + b"/" + name if inside else name
            whole = os.path.join(directory, name)
            if os.path.islink(whole):
                out[path] = (Kind.LINK, os.readlink(whole))
            else:
                kind = Kind.EXEC if os.stat(whole).st_mode & 0o100 else Kind.FILE
                out[path] = (kind, Path(os.fsdecode(whole)).read_bytes())
        if not dirs and not files and inside:
            out[inside] = (Kind.EMPTYDIR, b"")
    return out


def lay_out(top: Path, model: Model) -> None:
    for path, (kind, content) in model.items():
        whole = os.fsencode(top) + b"/" + path
        os.makedirs(whole if kind == Kind.EMPTYDIR else os.path.dirname(whole), exist_ok=True)
        if kind == Kind.LINK:
            os.symlink(content, whole)
        elif kind != Kind.EMPTYDIR:
            with open(whole, "wb") as f:
                f.write(content)
            os.chmod(whole, 0o755 if kind == Kind.EXEC else 0o644)


def carry_out(tree: WorkTree, contents: dict[bytes, bytes]) -> list[DvkError]:
    """What a command does, with `contents` (id -> bytes) as the store."""
    problems = tree.delete() + tree.make_dirs()
    for k in range(len(tree.plan.write)):
        try:
            fd = tree.create(k)
            os.write(fd, contents[tree.plan.ids[k].tobytes()])
            tree.finish(k, fd)
        except DvkError as error:
            problems.append(error)
    return problems + tree.link() + tree.set_modes()


def contents_of(*models: Model) -> dict[bytes, bytes]:
    return {blake3(c).digest(): c for m in models for k, c in m.values() if k in (Kind.FILE, Kind.EXEC)}


def checkout(
    top: Path,
    root: int,
    target: Model,
    *,
    previous: Model | None = None,
    held: set[bytes] | None = None,
    force: bool = False,
    selected: np.ndarray | None = None,
) -> tuple[CheckoutPlan, list[DvkError]]:
    scan = scan_folder(root, b"f")
    store = contents_of(target, previous or {})
    plan = plan_checkout(
        entries_of(target),
        scan,
        known=np.ones(len(scan), np.bool_),
        ids=hashed(top, b"f", scan),
        holds=holder(set(store.values()) if held is None else held),
        previous=[entries_of(previous)] if previous is not None else (),
        selected=selected,
        force=force,
        subject=b"f",
    )
    with WorkTree(root, b"f", plan) as tree:
        return plan, carry_out(tree, store)


def test_a_folder_is_written_whole_with_modes_links_and_empty_directories(tmp_path: Path, root: int) -> None:
    target: Model = {
        b"a": (Kind.FILE, b"1"),
        b"b/x": (Kind.EXEC, b"22"),
        b"b/y": (Kind.LINK, b"../a"),
        b"c/d/e": (Kind.EMPTYDIR, b""),
        b"z\n\xff": (Kind.FILE, b""),
    }
    plan, problems = checkout(tmp_path, root, target)
    assert (plan.conflicts, problems) == ((), [])
    assert on_disk(tmp_path / "f") == target
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "f/a").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "f/b/x").stat().st_mode & 0o777 == 0o777 & ~mask
    plan, problems = checkout(tmp_path, root, target)
    assert plan.empty and plan.stay.all() and problems == []


def test_only_what_changed_is_touched(tmp_path: Path, root: int) -> None:
    old: Model = {
        b"same": (Kind.FILE, b"1"),
        b"changed": (Kind.FILE, b"2"),
        b"mode": (Kind.FILE, b"3"),
        b"gone/x": (Kind.FILE, b"4"),
        b"link": (Kind.LINK, b"same"),
    }
    new: Model = {
        b"same": (Kind.FILE, b"1"),
        b"changed": (Kind.FILE, b"22"),
        b"mode": (Kind.EXEC, b"3"),
        b"link": (Kind.LINK, b"changed"),
    }
    lay_out(tmp_path / "f", old)
    (tmp_path / "f/mine").write_bytes(b"untracked")
    before = os.stat(tmp_path / "f/same")
    mode_inode = os.stat(tmp_path / "f/mode").st_ino
    plan, problems = checkout(tmp_path, root, new, previous=old)
    assert (plan.conflicts, problems) == ((), [])
    assert on_disk(tmp_path / "f") == {**new, b"mine": (Kind.FILE, b"untracked")}
    assert os.stat(tmp_path / "f/same").st_ctime_ns == before.st_ctime_ns
    assert os.stat(tmp_path / "f/mode").st_ino == mode_inode
    assert [plan.target.names[i] for i in plan.write] == [b"changed"]


def test_a_folder_that_a_run_emptied_and_did_not_come_to_remove_is_removed_by_the_next(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old: Model = {b"a": (Kind.FILE, b"1"), b"gone/x/y": (Kind.FILE, b"2")}
    new: Model = {b"a": (Kind.FILE, b"1")}
    lay_out(tmp_path / "f", {**old, b"mine": (Kind.EMPTYDIR, b"")})

    def fails(*_args: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "rmdir", fails)
        plan, problems = checkout(tmp_path, root, new, previous=old)
    assert [p.subject for p in problems] == ["f/gone/x"], "a failure is told"
    assert on_disk(tmp_path / "f") == {**new, b"gone/x": (Kind.EMPTYDIR, b""), b"mine": (Kind.EMPTYDIR, b"")}
    plan, problems = checkout(tmp_path, root, new, previous=old)
    assert (plan.conflicts, problems) == ((), [])
    assert on_disk(tmp_path / "f") == {**new, b"mine": (Kind.EMPTYDIR, b"")}


def test_content_that_no_store_holds_is_never_replaced_or_deleted(tmp_path: Path, root: int) -> None:
    old: Model = {b"a": (Kind.FILE, b"1"), b"b": (Kind.FILE, b"2"), b"l": (Kind.LINK, b"a")}
    new: Model = {b"a": (Kind.FILE, b"11"), b"c": (Kind.FILE, b"3"), b"l": (Kind.LINK, b"c")}
    mine: Model = {b"a": (Kind.FILE, b"my a"), b"b": (Kind.FILE, b"my b"), b"l": (Kind.LINK, b"b")}
    lay_out(tmp_path / "f", mine)
    plan, problems = checkout(tmp_path, root, new, previous=old)
    assert problems == []
    assert sorted(c.subject for c in plan.conflicts) == ["f/a", "f/b", "f/l"]
    assert all(c.hint for c in plan.conflicts)
    assert on_disk(tmp_path / "f") == {**mine, b"c": (Kind.FILE, b"3")}
    plan, problems = checkout(tmp_path, root, new, previous=old, force=True)
    assert (plan.conflicts, problems) == ((), [])
    assert on_disk(tmp_path / "f") == new


def test_content_that_was_not_read_is_a_conflict_until_it_is(tmp_path: Path, root: int) -> None:
    lay_out(tmp_path / "f", {b"a": (Kind.FILE, b"1"), b"mine": (Kind.FILE, b"2")})
    target = entries_of({b"a": (Kind.FILE, b"11")})
    scan = scan_folder(root, b"f")
    nothing = np.zeros(2, np.bool_)
    needed = content_needed(target, scan, nothing)
    assert [scan.names[i] for i in needed] == [b"a"]
    plan = plan_checkout(
        target, scan, known=nothing, ids=np.zeros((2, 32), np.uint8), holds=holder({b"1"}), subject=b"f"
    )
    assert plan.empty and "was not read" in str(plan.conflicts[0])


def test_what_was_not_asked_for_is_left_alone(tmp_path: Path, root: int) -> None:
    target: Model = {b"train/1": (Kind.FILE, b"1"), b"val/1": (Kind.FILE, b"2"), b"val/2": (Kind.FILE, b"3")}
    plan, _ = checkout(tmp_path, root, target, selected=np.array([False, True, True]))
    assert on_disk(tmp_path / "f") == {n: e for n, e in target.items() if n.startswith(b"val")}
    assert len(plan.write) == 2


def test_a_file_in_place_of_a_directory_and_back(tmp_path: Path, root: int) -> None:
    one: Model = {b"x/y/z": (Kind.FILE, b"1"), b"e": (Kind.EMPTYDIR, b""), b"w": (Kind.FILE, b"2")}
    two: Model = {b"x": (Kind.FILE, b"3"), b"e": (Kind.FILE, b"4"), b"w/v": (Kind.LINK, b"../x")}
    lay_out(tmp_path / "f", one)
    for target, previous in ((two, one), (one, two)):
        plan, problems = checkout(tmp_path, root, target, previous=previous, held={b"1", b"2", b"3", b"4"})
        assert (plan.conflicts, problems) == ((), [])
        assert on_disk(tmp_path / "f") == target
    (tmp_path / "f/x/y/mine").write_bytes(b"only here")
    plan, problems = checkout(tmp_path, root, two, previous=one, held={b"1", b"2", b"3", b"4"})
    assert [c.subject for c in plan.conflicts] == ["f/x/y/mine"]
    assert (tmp_path / "f/x/y/mine").read_bytes() == b"only here"


PATHS = [b"a", b"a/b", b"a/b/c", b"a/d", b"b", b"b-", b"c/d", b"e"]
ENTRY = st.one_of(
    st.tuples(st.sampled_from([Kind.FILE, Kind.EXEC]), st.sampled_from([b"", b"1", b"22", b"333"])),
    st.just((Kind.EMPTYDIR, b"")),
    st.tuples(st.just(Kind.LINK), st.sampled_from([b"b", b"nowhere"])),
)
MODELS = st.dictionaries(st.sampled_from(PATHS), ENTRY, max_size=6).map(
    lambda m: {n: e for n, e in m.items() if not any(o.startswith(n + b"/") for o in m)}
)
EDITS = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from([None, b"mine", b"22", b"my own"])), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(MODELS, MODELS, EDITS, st.booleans())
def test_nothing_of_the_user_is_lost_and_a_checkout_converges(
    tmp_path: Path, old: Model, new: Model, edits: list[tuple[bytes, bytes | None]], knows_old: bool
) -> None:
    """From any version to any other over any edits: what no store holds stays; without conflicts, all is exact."""
    top = tmp_path / "t"
    shutil.rmtree(top, ignore_errors=True)
    (top / "f").mkdir(parents=True)
    lay_out(top / "f", old)
    for path, content in edits:
        whole = os.path.join(os.fsencode(top / "f"), path)
        try:
            if content is None:
                os.unlink(whole)
            else:
                with open(whole, "wb", opener=lambda p, f: os.open(p, f | os.O_NOFOLLOW)) as f:
                    f.write(content)
        except OSError:
            continue
    before = on_disk(top / "f")
    held = set(contents_of(old, new).values())
    root = os.open(top, os.O_RDONLY)
    try:
        plan, problems = checkout(top, root, new, previous=old if knows_old else None)
        after = on_disk(top / "f")
        assert problems == []
        for path, (kind, content) in before.items():
            if kind in (Kind.FILE, Kind.EXEC) and content not in held:
                assert after.get(path) is not None and after[path][1] == content
        extras = {n for n in before if n not in new and (not knows_old or n not in old)}
        if not plan.conflicts:
            for path, entry in new.items():
                if entry[0] == Kind.EMPTYDIR:
                    assert os.path.isdir(os.path.join(os.fsencode(top / "f"), path))
                else:
                    assert after[path] == entry
            assert {n for n in after if after[n][0] != Kind.EMPTYDIR} <= set(new) | extras
            again, problems = checkout(top, root, new, previous=old if knows_old else None)
            assert not len(again.write) and not len(again.deletes) and not again.conflicts and not problems
        assert not [n for n in after if b".dvk-" in n]
    finally:
        os.close(root)


def one_file(tmp_path: Path, root: int, data: bytes = b"new") -> CheckoutPlan:
    target = entries_of({b"": (Kind.FILE, data)})
    scan = scan_file(root, b"d/x.csv") if (tmp_path / "d/x.csv").exists() else empty_scan()
    return plan_checkout(
        target,
        scan,
        known=np.ones(len(scan), np.bool_),
        ids=hashed(tmp_path, b"d/x.csv", scan),
        holds=holder({b"old"}),
        subject=b"d/x.csv",
    )


def test_the_store_is_asked_only_of_what_would_go(tmp_path: Path, root: int) -> None:
    """A checkout costs what it changes: of a hundred files one is replaced, one deleted, and two are asked for."""
    before: Model = {b"%02d" % i: (Kind.FILE, b"%d" % i) for i in range(100)}
    lay_out(tmp_path / "f", before)
    after = {name: before[name] for name in sorted(before)[1:]}
    after[b"50"] = (Kind.FILE, b"new")
    scan = scan_folder(root, b"f")
    asked: list[bytes] = []

    def holds(ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        asked.extend(row.tobytes() for row in ids)
        return np.ones(len(sizes), np.bool_)

    plan = plan_checkout(
        entries_of(after),
        scan,
        known=np.ones(len(scan), np.bool_),
        ids=hashed(tmp_path, b"f", scan),
        holds=holds,
        previous=[entries_of(before)],
    )
    assert [scan.names[i] for i in plan.deletes.tolist()] == [b"00"]
    assert sorted(asked) == sorted(blake3(c).digest() for c in (b"0", b"50"))
    assert plan.replaced_ids.tobytes() == blake3(b"50").digest()


def test_a_single_file_is_made_and_replaced(tmp_path: Path, root: int) -> None:
    for data in (b"old", b"newer"):
        plan = one_file(tmp_path, root, data)
        with WorkTree(root, b"d/x.csv", plan) as tree:
            tree.check_space()
            assert list(tree.shown()) == ["d/x.csv"]
            assert carry_out(tree, {blake3(data).digest(): data}) == []
        assert (tmp_path / "d/x.csv").read_bytes() == data
        assert os.listdir(tmp_path / "d") == ["x.csv"]


@pytest.mark.parametrize("noreplace", [True, False])
@pytest.mark.parametrize("meanwhile", ["appears", "appears as a directory", "changes", "vanishes", "becomes a link"])
def test_what_happens_to_the_target_meanwhile_is_respected(
    tmp_path: Path, root: int, meanwhile: str, noreplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a rename that refuses to replace; the temporary file is gone in each case."""
    if not noreplace:
        monkeypatch.setattr(materialize, "rename_new", lambda *a: False)
    file = tmp_path / "d/x.csv"
    if not meanwhile.startswith("appears"):
        (tmp_path / "d").mkdir()
        file.write_bytes(b"old")
    plan = one_file(tmp_path, root)
    with WorkTree(root, b"d/x.csv", plan) as tree:
        fd = tree.create(0)
        os.write(fd, b"new")
        if meanwhile == "appears as a directory":
            file.mkdir()
        elif meanwhile == "vanishes":
            file.unlink()
        elif meanwhile == "becomes a link":
            file.unlink()
            (tmp_path / "d/other").write_bytes(b"old")
            file.symlink_to("other")
        else:
            file.write_bytes(b"edited just now")
        with pytest.raises(ChangedWhileRead):
            tree.finish(0, fd)
        with pytest.raises(OSError):
            os.fstat(fd)
    left = sorted(os.listdir(tmp_path / "d"))
    assert left == {"vanishes": [], "becomes a link": ["other", "x.csv"]}.get(meanwhile, ["x.csv"])
    if meanwhile in ("appears", "changes"):
        assert file.read_bytes() == b"edited just now"


def test_a_planted_link_is_never_walked_through(tmp_path: Path, root: int) -> None:
    (tmp_path / "outside").mkdir()
    target: Model = {b"sub/x": (Kind.FILE, b"1"), b"sub/l": (Kind.LINK, b"x"), b"ok": (Kind.FILE, b"2")}
    (tmp_path / "f/inside").mkdir()
    os.symlink("inside", tmp_path / "f/sub")
    plan, problems = checkout(tmp_path, root, target)
    assert [c.subject for c in plan.conflicts] == ["f/sub"]
    assert problems == [] and (tmp_path / "f/ok").read_bytes() == b"2"
    assert os.listdir(tmp_path / "f/inside") == []
    # One that leaves the folder is no entry of it, and is met on the way.
    os.unlink(tmp_path / "f/sub")
    os.symlink("../outside", tmp_path / "f/sub")
    plan, problems = checkout(tmp_path, root, target)
    assert [(p.subject, p.kind) for p in problems] == [("f/sub", "refused")] * 2
    # Planted after the plan was made.
    os.unlink(tmp_path / "f/sub")
    scan = scan_folder(root, b"f")
    plan = plan_checkout(
        entries_of(target),
        scan,
        known=np.ones(len(scan), np.bool_),
        ids=hashed(tmp_path, b"f", scan),
        holds=holder(set()),
    )
    os.symlink("../outside", tmp_path / "f/sub")
    with WorkTree(root, b"f", plan) as tree:
        problems = carry_out(tree, contents_of(target))
    assert len(problems) == 2 and all(isinstance(p, Refused) for p in problems)
    assert os.listdir(tmp_path / "outside") == []


def test_a_discarded_file_leaves_nothing_and_the_old_one_intact(tmp_path: Path, root: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x.csv").write_bytes(b"old")
    with WorkTree(root, b"d/x.csv", one_file(tmp_path, root)) as tree:
        fd = tree.create(0)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        os.write(fd, b"half")
        tree.discard(0, fd)
    assert os.listdir(tmp_path / "d") == ["x.csv"]
    assert (tmp_path / "d/x.csv").read_bytes() == b"old"


def test_many_threads_write_one_tree(tmp_path: Path, root: int) -> None:
    target: Model = {b"d%02d/e/%03d" % (i % 40, i): (Kind.FILE, b"%d" % i) for i in range(400)}
    plan = plan_checkout(
        entries_of(target),
        empty_scan(),
        known=np.zeros(0, np.bool_),
        ids=np.zeros((0, 32), np.uint8),
        holds=holder(set()),
    )
    store = contents_of(target)
    before = len(os.listdir("/dev/fd"))
    gate = threading.Barrier(4)
    with WorkTree(root, b"f", plan) as tree:

        def work(part: int) -> None:
            gate.wait(10)
            for k in range(part, len(plan.write), 4):
                fd = tree.create(k)
                os.write(fd, store[plan.ids[k].tobytes()])
                if k % 7:
                    tree.finish(k, fd)
                else:
                    tree.discard(k, fd)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        written = tree.entries()
    assert len(os.listdir("/dev/fd")) == before
    names = [n for k, n in enumerate(plan.target.names) if k % 7]
    assert list(written.scan.names) == names
    assert on_disk(tmp_path / "f").keys() >= set(names)


def test_files_just_written_are_trusted_at_once_and_any_edit_shows(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status after a checkout reads nothing, and yet an edit in the same tick is seen."""
    target: Model = {b"%03d" % i: (Kind.FILE, b"%03d" % i) for i in range(200)}
    target |= {b"e": (Kind.EMPTYDIR, b""), b"l": (Kind.LINK, b"001")}
    state = os.fsencode(tmp_path / "state")
    plan = plan_checkout(
        entries_of(target),
        scan_folder(root, b"f"),
        known=np.zeros(0, np.bool_),
        ids=np.zeros((0, 32), np.uint8),
        holds=holder(set()),
    )
    clock = read_clock(state)
    with WorkTree(root, b"f", plan) as tree:
        assert carry_out(tree, contents_of(target)) == []
        for i in range(0, 200, 10):
            (tmp_path / f"f/{i:03}").write_bytes(b"%03d" % (999 - i))  # the same size, right away
        written = tree.entries()
    assert written.settled.sum() == 200
    cache = StatCache.of(written.scan, written.ids, clock=clock, settled=written.settled)
    cache.save(state, b"f")
    loaded = StatCache.load(state, b"f")
    assert loaded is not None
    scan = scan_folder(root, b"f")
    match = loaded.match(scan)
    unknown = [scan.names[i] for i in np.flatnonzero(~match.known)]
    assert unknown == [b"%03d" % i for i in range(0, 200, 10)]


WRITER = """
import os, sys
import numpy as np
from dvk.store.listing import Entries
from dvk.store.names import Names
from dvk.workspace.materialize import WorkTree
from dvk.workspace.plan import plan_checkout
from dvk.workspace.scan import scan_folder

n = 300
target = Entries(Names.of([b"d/%03d" % i for i in range(n)]), np.ones(n, np.uint8), np.full(n, 5000, np.int64),
                 np.zeros((n, 32), np.uint8), Names.of([]))
root = os.open(sys.argv[1], os.O_RDONLY)
scan = scan_folder(root, b"f")
k = len(scan)
plan = plan_checkout(target, scan, known=np.ones(k, bool), ids=np.ones((k, 32), np.uint8),
                     holds=lambda ids, sizes: np.ones(len(ids), bool))
print("go", flush=True)
with WorkTree(root, b"f", plan) as tree:
    for i in range(n):
        fd = tree.create(i)
        os.write(fd, b"n" * 2500)
        os.write(fd, b"n" * 2500)
        tree.finish(i, fd)
"""


@pytest.mark.parametrize("delay_ms", [0, 3, 8, 15])
def test_a_killed_checkout_leaves_every_file_old_or_new(tmp_path: Path, root: int, delay_ms: int) -> None:
    lay_out(tmp_path / "f", {b"d/%03d" % i: (Kind.FILE, b"old") for i in range(300)})
    run = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"go\n"
    time.sleep(delay_ms / 1000)
    run.kill()
    run.wait()
    run.stdout.close()
    scan = scan_folder(root, b"f")
    assert len(scan) == 300 and len(scan.leftovers) <= 1
    for entry in on_disk(tmp_path / "f/d").items():
        if not entry[0].startswith(b".dvk-"):
            assert entry[1][1] in (b"old", b"n" * 5000)
    assert subprocess.run([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.DEVNULL).returncode == 0
    assert {content for _, content in (e for n, e in on_disk(tmp_path / "f/d").items() if n[:1] != b".")} == {
        b"n" * 5000
    }


def test_folded_names_are_found_by_trying_the_filesystem(
    tmp_path: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names.of([b"A/x", b"README", b"a/y", b"readme", b"z"])
    real = find_folded(root, b"f", names)
    insensitive = os.path.exists(tmp_path / "F")
    assert bool(real) == insensitive
    assert os.listdir(tmp_path / "f") == []
    monkeypatch.setattr(probe, "_exists", lambda fd, name: name.startswith(b".DVK-"))
    pairs = find_folded(root, b"f/not/yet", names)
    assert pairs == [(b"A", b"a"), (b"README", b"readme")]
    target = entries_of(dict.fromkeys(names, (Kind.FILE, b"1")))
    plan = plan_checkout(
        target,
        empty_scan(),
        known=np.zeros(0, np.bool_),
        ids=np.zeros((0, 32), np.uint8),
        holds=holder(set()),
        collisions=pairs,
        subject=b"f",
    )
    assert [target.names[i] for i in plan.write] == [b"z"]
    assert sorted(c.subject for c in plan.conflicts) == ["f/A", "f/README", "f/a", "f/readme"]


def test_leftovers_of_killed_runs_go_when_they_are_old(tmp_path: Path, root: int) -> None:
    old, young = os.fsdecode(temp_name()), os.fsdecode(temp_name())
    (tmp_path / "f/d").mkdir()
    for name in (old, young, ".dvk-mine.tmp"):
        (tmp_path / "f/d" / name).write_bytes(b"half")
    os.utime(tmp_path / "f/d" / old, (1, 1))
    leftovers = scan_folder(root, b"f").leftovers
    assert len(leftovers) == 2 and len(leftovers_in(root, b"f/d")) == 2
    assert clean_leftovers(root, b"f", leftovers) == 1
    assert sorted(os.listdir(tmp_path / "f/d")) == sorted([young, ".dvk-mine.tmp"])
    with pytest.raises(Refused):
        clean_leftovers(root, b"f", [b"d/.dvk-mine.tmp"])


def test_too_little_space_is_said_before_anything_is_touched(root: int) -> None:
    check_space(root, 1)
    with pytest.raises(StorageFull, match=r"needs 412 PB, .* free"):
        check_space(root, 412 * 10**15)


def test_needed_space_counts_growth_and_not_what_is_replaced(tmp_path: Path, root: int) -> None:
    big = b"x" * 100_000
    lay_out(tmp_path / "f", {b"%d" % i: (Kind.FILE, big) for i in range(20)})
    target: Model = {b"%d" % i: (Kind.FILE, big[:-1]) for i in range(20)}
    scan = scan_folder(root, b"f")
    plan = plan_checkout(
        entries_of(target),
        scan,
        known=np.ones(20, np.bool_),
        ids=hashed(tmp_path, b"f", scan),
        holds=holder({big}),
    )
    assert len(plan.write) == 20
    assert 100_000 < plan.needed_bytes < 600_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root to mount a small filesystem")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=40", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip("a small filesystem cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_runs_full_leaves_old_files_whole_and_a_second_run_finishes(small_disk: Path) -> None:
    target: Model = {b"%d" % i: (Kind.FILE, bytes([i]) * 60_000) for i in range(4)}
    old: Model = {b"0": (Kind.FILE, b"old"), b"3": (Kind.FILE, b"old")}
    (small_disk / "f").mkdir()
    lay_out(small_disk / "f", old)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    store = contents_of(target, old)
    root = os.open(small_disk, os.O_RDONLY)
    try:

        def run() -> int:
            scan = scan_folder(root, b"f")
            plan = plan_checkout(
                entries_of(target),
                scan,
                known=np.ones(len(scan), np.bool_),
                ids=hashed(small_disk, b"f", scan),
                holds=holder({b"old"}),
            )
            failed = 0
            with WorkTree(root, b"f", plan) as tree:
                for k in range(len(plan.write)):
                    fd = tree.create(k)
                    data = memoryview(store[plan.ids[k].tobytes()])
                    try:
                        while data:
                            data = data[os.write(fd, data) :]
                    except OSError:
                        tree.discard(k, fd)
                        failed += 1
                    else:
                        tree.finish(k, fd)
            return failed

        assert run() > 0
        now = on_disk(small_disk / "f")
        assert set(now) <= set(target)
        for path, entry in now.items():
            assert entry in (target[path], old.get(path))
        assert os.path.exists(small_disk / "f/3")
        with pytest.raises(StorageFull):
            check_space(root, 1 << 20)
        ballast.unlink()
        assert run() == 0
        assert on_disk(small_disk / "f") == target
    finally:
        os.close(root)


def test_running_out_of_inodes_is_a_full_disk(small_disk: Path) -> None:
    target: Model = {b"d/%03d" % i: (Kind.FILE, b"") for i in range(60)}
    root = os.open(small_disk, os.O_RDONLY)
    plan = plan_checkout(
        entries_of(target),
        empty_scan(),
        known=np.zeros(0, np.bool_),
        ids=np.zeros((0, 32), np.uint8),
        holds=holder(set()),
    )
    try:
        with WorkTree(root, b"f", plan) as tree, pytest.raises(StorageFull, match="no space left"):
            for k in range(60):
                tree.finish(k, tree.create(k))
    finally:
        os.close(root)
