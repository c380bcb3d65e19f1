"""`dvk verify` names exactly what cannot be had, says what is lost and what is only out of reach, and cries no wolf."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flowkit import Flow, noise

from dvk.commands.acknowledged import Acknowledged
from dvk.commands.gc_local import gc_local
from dvk.commands.repair import repair
from dvk.commands.verify import Level, VerifyResult, verify
from dvk.errors import NotFound, NotOurs, Refused, StorageError
from dvk.events import OnEvent, ignore

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """Two versions of a file and of a folder; the first of each is on the remote."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(400_000, 1), **{f"f/{i}": noise(9_000, i) for i in range(10, 30)}}, "a.bin", "f")
    flow.push()
    flow.version({"a.bin": noise(300_000, 2), "f/12": noise(500, 99)}, "a.bin", "f")
    return flow


def look(
    flow: Flow,
    *revs: str,
    paths: Sequence[str] = (),
    remote: str | None = None,
    level: Level = Level.NORMAL,
    percent: float = 100,
    on_event: OnEvent = ignore,
) -> VerifyResult:
    with flow.repo() as repo:
        return verify(repo, revs, paths, remote=remote, level=level, percent=percent, on_event=on_event)


def said(found: VerifyResult) -> set[tuple[str, bytes, str]]:
    """State, path and the first revision of each affected version."""
    return {(v.state, v.path, v.revisions[0]) for v in found.affected}


def store(flow: Flow) -> Path:
    return flow.top / ".git/dvk/store"


def objects(where: Path, pattern: str) -> list[Path]:
    """Objects, biggest first."""
    return sorted((p for p in where.glob(pattern) if p.is_file()), key=lambda p: -p.stat().st_size)


def change(path: Path, edit: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    edit(data)
    path.chmod(0o600)
    path.write_bytes(bytes(data))


def flip(at: int) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[at] ^= 1

    return edit


@pytest.mark.parametrize("level", list(Level))
def test_a_sound_store_and_remote_raise_no_alarm(flow: Flow, level: Level) -> None:
    flow.push()
    for found in (
        look(flow, level=level),
        look(flow, remote="", level=level),
        look(flow, "HEAD", remote="", level=level),
    ):
        assert not found.damaged and not found.missing and found.summary == ""
        assert found.whole == found.versions > 0


def test_a_bit_in_a_block_costs_the_versions_that_need_it_and_no_other(flow: Flow) -> None:
    (head, first) = (flow.head(), flow.git("rev-parse", "HEAD~1").strip())
    # The pack of the second commit holds what is new in it alone.
    new = min(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size)
    assert new.stat().st_size < 400_000
    change(new, flip(1000))
    assert not look(flow).damaged, "a block is read by --data"
    found = look(flow, level=Level.DATA)
    assert said(found) == {("unreachable", b"a.bin", head)}
    assert found.affected[0].elsewhere == ["the file on disk"]
    (damaged,) = found.objects
    assert damaged.kind == "data pack" and damaged.needed and damaged.key.endswith(new.name)
    assert said(look(flow, first, level=Level.DATA)) == set()
    assert said(look(flow, "HEAD", paths=["f"], level=Level.DATA)) == set()


def test_what_nobody_has_is_lost_and_says_whom_to_ask(flow: Flow) -> None:
    head = flow.head()
    change(min(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size), flip(1000))
    flow.write({"a.bin": b"something else"})
    found = look(flow, level=Level.DATA)
    assert said(found) == {("lost", b"a.bin", head)}
    assert found.summary.startswith("lost: 1 version of 1 path (a.bin); to do: ")
    assert f"dvk push --rev {head[:9]}" in found.affected[0].hint


def test_damage_that_was_found_is_held_no_more(flow: Flow) -> None:
    """`add` stores it again, and then all is well for the versions."""
    change(min(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size), flip(1000))
    assert flow.add("a.bin").paths[0].new_bytes == 0
    look(flow, level=Level.DATA)
    assert flow.add("a.bin").paths[0].new_bytes > 0
    again = look(flow)
    assert said(again) == set() and again.damaged, "the damaged pack is still there"
    assert not again.objects[0].needed


@pytest.mark.parametrize("tree", ["p", "m"])
def test_a_pack_that_is_gone_is_noticed_by_what_the_index_knows_of_it(flow: Flow, tree: str) -> None:
    lost = objects(store(flow), f"{tree}/*/*")[0]
    lost.unlink()
    found = look(flow, level=Level.QUICK)
    assert found.damaged and {v.state for v in found.affected} == {"unreachable"}
    assert [o.key.rsplit("/", 1)[-1] for o in found.objects] == [lost.name] and found.objects[0].needed


@pytest.mark.parametrize("what", ["pack and index", "everything"])
@pytest.mark.parametrize("pushed", [True, False])
def test_what_was_added_here_is_lost_and_not_never_fetched_when_all_that_spoke_of_it_is_gone(
    tmp_path: Path, what: str, pushed: bool
) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(90_000, 1), **{f"f/{i}": noise(9_000, i) for i in range(9)}}, "a.bin", "f")
    if pushed:
        flow.push()
    shutil.rmtree(flow.top / "f")
    flow.remove("a.bin")
    for path in [*objects(store(flow), "[pm]/*/*"), *objects(store(flow), "i/*")]:
        path.unlink()
    if what == "everything":
        shutil.rmtree(store(flow))
    found = look(flow)
    state = "unreachable" if pushed else "lost"
    assert {(w, p) for w, p, _ in said(found)} == {(state, b"a.bin"), (state, b"f")}
    assert found.damaged and not found.not_here
    with flow.repo() as repo:
        done = repair(repo)
    assert done.after.whole == (2 if pushed else 0) and done.after.damaged != pushed


def test_a_folder_that_was_added_in_part_is_not_said_to_have_been_here(flow: Flow, tmp_path: Path) -> None:
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    clone.pull("f/12")
    clone.write({"f/12": noise(500, 3)})
    clone.add("f/12")
    assert not look(clone).damaged


def test_what_was_let_go_is_not_lost_when_a_pointer_leads_to_it_again(flow: Flow, tmp_path: Path) -> None:
    flow.write({"x.bin": noise(50_000, 5)})
    flow.add("x.bin")
    pointer = flow.read("x.bin.dvk")
    flow.git("reset", "-q", "--hard")
    with flow.repo() as repo:
        gc_local(repo, young_s=0)
    flow.write({"x.bin.dvk": pointer})
    flow.git("add", "-f", "x.bin.dvk")
    flow.git("commit", "-q", "-m", "of a colleague who added the same")
    found = look(flow)
    assert not [v for v in found.affected if v.path == b"x.bin"] and found.not_here == 1


def test_the_list_of_what_was_added_is_whole_where_every_write_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [parts[0][: (len(parts[0]) + 1) // 2]]))
    here = Acknowledged(os.fsencode(tmp_path))
    roots = {f"f:{c * 64}" for c in "123"}
    here.add(sorted(roots))
    assert here.read() == roots and (tmp_path / "acknowledged").stat().st_size < 300


def test_the_list_of_what_was_added_believes_no_damaged_line_and_goes_on_after_one(tmp_path: Path) -> None:
    here = Acknowledged(os.fsencode(tmp_path))
    one, two, three = (f"f:{c * 64}" for c in "123")
    here.add([one])
    with open(tmp_path / "acknowledged", "ab") as file:
        file.write(b"f:22")
    here.add([two, three])
    assert here.read() == {one, two, three}
    data = (tmp_path / "acknowledged").read_bytes()
    for at in range(0, 8 * len(data), 5):
        bad = bytearray(data)
        bad[at // 8] ^= 1 << at % 8
        (tmp_path / "acknowledged").write_bytes(bad)
        assert here.read() <= {one, two, three}
    (tmp_path / "acknowledged").write_bytes(data)
    here.keep([two, "f:" + "9" * 64])
    assert here.read() == {two} and os.listdir(tmp_path) == ["acknowledged"]
    for _ in range(1000):  # somebody goes back and forth between versions
        here.add([two])
    here.keep([two])
    assert here.read() == {two} and (tmp_path / "acknowledged").stat().st_size < 100


def test_what_was_added_and_cannot_be_listed_for_want_of_room_is_an_error(tmp_path: Path) -> None:
    """The first write of a disk that becomes full is short, and no error."""
    here = Acknowledged(os.fsencode(tmp_path))
    roots = [f"f:{c * 64}" for c in "1234"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 84 + 20, before[1]))
    try:
        with pytest.raises(StorageError):
            here.add(roots)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert here.read() == set(roots[:2])
    here.add(roots[2:])
    assert here.read() == set(roots)


def test_files_of_a_folder_are_named_one_by_one(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({f"f/{i}": noise(9_000, i) for i in range(10)}, "f")
    flow.version({"f/new": noise(9_000, 77)}, "f")
    change(min(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size), flip(1000))
    shutil.rmtree(flow.top / "f")
    (version,) = look(flow, level=Level.DATA).affected
    assert [m.path for m in version.missing] == [b"f/new"] and version.files == 1


def test_damaged_garbage_is_no_loss(flow: Flow) -> None:
    flow.write({"x.bin": noise(50_000, 5)})
    flow.add("x.bin")
    flow.git("reset", "-q", "--hard")
    change(min(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size), flip(-80))
    found = look(flow)
    assert said(found) == set() and found.damaged
    assert [o.needed for o in found.objects] == [False]


def test_what_was_never_fetched_is_no_damage(flow: Flow, tmp_path: Path) -> None:
    flow.push()
    clone = flow.clone(tmp_path / "clone")
    found = look(clone)
    assert not found.damaged and found.not_here == found.versions
    clone.pull("a.bin")
    found = look(clone)
    assert not found.damaged and found.whole == 1


def test_a_damaged_index_hides_nothing(flow: Flow) -> None:
    for segment in objects(store(flow), "i/*"):
        change(segment, flip(100))
    found = look(flow)
    assert said(found) == set() and {o.kind for o in found.objects} == {"index"}


def test_an_index_that_says_what_no_footer_says_is_named(flow: Flow) -> None:
    """Its checksum is right; a program wrote it wrong."""
    from dvk.store.index import Segment, Table, format_segment, parse_segment

    path = objects(store(flow), "i/*")[0]
    s = parse_segment(path.read_bytes(), subject="")
    rows = s.chunks.row.copy()
    rows[0] ^= 1
    wrong = Segment(s.level, s.packs, s.kinds, Table(s.chunks.prefix, s.chunks.pack, rows), s.recipes)
    change(path, lambda data: data.__setitem__(slice(None), format_segment(wrong)))
    assert [o.key for o in look(flow).objects] == [f"i/{path.name}"]


def test_a_share_reads_what_was_read_longest_ago(flow: Flow) -> None:
    for i in range(4):
        flow.version({"a.bin": noise(300_000, 10 + i)}, "a.bin")
    total = look(flow).packs
    read = [look(flow, level=Level.DATA, percent=10).packs_read for _ in range(40)]
    assert max(read) < total
    checked = (store(flow) / "checked").read_text().splitlines()[1:-1]
    assert len(checked) == total


# ---------------------------------------------------------------- remotes


def remote_objects(flow: Flow, pattern: str) -> list[Path]:
    return objects(flow.remote_dir, pattern)


def test_a_commit_that_was_not_pushed_is_told_from_one_that_is_damaged(flow: Flow) -> None:
    head = flow.head()
    found = look(flow, "HEAD", remote="origin")
    assert not found.damaged and found.missing
    assert said(found) == {("not-pushed", b"a.bin", head), ("not-pushed", b"f", head)}
    assert not look(flow, "HEAD~1", remote="origin").missing
    assert flow.dvk("verify", "--remote", "HEAD")[0] == 7
    assert flow.dvk("verify", "--remote", "HEAD~1")[0] == 0
    change(remote_objects(flow, "p/*/*")[0], lambda data: data.pop())
    assert flow.dvk("verify", "--remote", "HEAD~1")[0] == 23


def test_a_lost_locator_leaves_a_version_out_of_reach(flow: Flow) -> None:
    flow.push()
    name = flow.pointer("a.bin").id.hex()
    (flow.remote_dir / "l/f" / name[:2] / name).unlink()
    found = look(flow, remote="origin")
    assert said(found) == {("unreachable", b"a.bin", flow.head())}
    assert "locator" in found.affected[0].hint


@pytest.mark.parametrize("narrow", [True, False])
def test_a_bit_in_a_remote_block_is_found_by_reading(flow: Flow, narrow: bool) -> None:
    flow.push()
    shutil.rmtree(store(flow))
    change(min(remote_objects(flow, "p/*/*"), key=lambda p: p.stat().st_size), flip(1000))
    revs = ("HEAD",) if narrow else ()
    assert not look(flow, *revs, remote="origin").damaged
    found = look(flow, *revs, remote="origin", level=Level.DATA)
    assert said(found) == {("lost", b"a.bin", flow.head())}
    assert [(o.kind, o.needed) for o in found.objects] == [("data pack", True)]


def test_a_pack_that_records_promise_and_nobody_has_names_versions_of_others(flow: Flow, tmp_path: Path) -> None:
    """A colleague's branch, of which this clone knows nothing."""
    flow.push()
    other = flow.clone(tmp_path / "other")
    other.version({"theirs": noise(70_000, 8)}, "theirs")
    before = set(remote_objects(flow, "p/*/*"))
    other.push()
    (new,) = set(remote_objects(flow, "p/*/*")) - before
    new.unlink()
    found = look(flow, remote="origin")
    assert said(found) == set() and found.damaged
    (gone,) = found.objects
    assert gone.key.endswith(new.name) and gone.others == [f"f:{other.pointer('theirs').id.hex()}"]


@pytest.mark.parametrize("pattern", ["j/*", "l/*/*/*", "m/*/*", "dvk.json"])
def test_every_kind_of_metadata_on_a_remote_is_read(flow: Flow, pattern: str) -> None:
    flow.push()
    for path in remote_objects(flow, pattern):
        keep = path.read_bytes()
        change(path, flip(len(keep) // 2))
        found = look(flow, remote="origin")
        key = str(path.relative_to(flow.remote_dir))
        assert key in {o.key for o in found.objects}, key
        change(path, lambda data, keep=keep: data.__setitem__(slice(None), keep))  # type: ignore[misc]
    assert not look(flow, remote="origin").damaged


def test_a_pack_that_a_collector_takes_meanwhile_is_no_damage(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was listed, nobody needs it, and when it is to be read it is gone."""
    from dvk.store import restorable
    from dvk.store.pack import PackKind

    listed = restorable.list_packs
    monkeypatch.setattr(restorable, "list_packs", lambda backend: {**listed(backend), (PackKind.DATA, bytes(32)): 99})
    flow.push()
    for level in Level:
        assert not look(flow, remote="origin", level=level).damaged
        assert not look(flow, level=level).damaged


def test_no_store_at_the_url_is_an_error_and_no_damage(flow: Flow) -> None:
    shutil.rmtree(flow.remote_dir)
    os.mkdir(flow.remote_dir)
    with pytest.raises(Refused):
        look(flow, remote="origin")
    with flow.repo() as repo:
        repo.forget_store(f"file://{flow.remote_dir}")
    with pytest.raises(NotOurs):
        look(flow, remote="origin")


def test_a_store_that_took_the_place_of_another_is_refused_and_not_called_damaged(flow: Flow, tmp_path: Path) -> None:
    other = Flow(tmp_path / "other", tmp_path / "elsewhere")
    other.version({"x": noise(1000, 1)}, "x")
    other.push()
    shutil.rmtree(flow.remote_dir)
    shutil.copytree(other.remote_dir, flow.remote_dir)
    with pytest.raises(Refused):
        look(flow, remote="origin")


# ---------------------------------------------------------------- the work tree, bad input


def test_what_is_wrong_in_the_work_tree_is_named(flow: Flow) -> None:
    flow.write({"b.dvk": b"<<<<<<< ours\n"})
    state = flow.top / ".git/dvk"
    for cache in (state / "stat").iterdir():
        change(cache, flip(300))
    (state / "selection.json").write_text("{")
    found = {(p.path, p.kind) for p in look(flow).workspace}
    assert found == {
        (b"b", "pointer"),
        (b"selection.json", "selection"),
        (b"a.bin", "stat cache"),
        (b"f", "stat cache"),
    }


def test_a_file_that_rots_on_disk_is_found_by_reading(flow: Flow) -> None:
    flow.status()
    path = flow.top / "a.bin"
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(5)
        byte = file.read(1)
        file.seek(5)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    cache = flow.top / ".git/dvk/stat"
    assert cache.exists()
    # The ctime cannot be set back; a disk that rots does not touch it, so the cache is made to agree.
    with flow.repo() as repo:
        from dvk.workspace.statcache import StatCache

        known = StatCache.load(repo.state, b"a.bin")
        assert known is not None
        known.stats.ctime_ns[:] = os.stat(path).st_ctime_ns
        known.trusted[:] = True
        known.save(repo.state, b"a.bin")
    assert [(p.path, p.kind) for p in look(flow, level=Level.DATA).workspace] == [(b"a.bin", "data")]


@pytest.mark.parametrize(("file", "kind"), [("a.bin.dvk", "pointer"), ("a.bin", "data")])
def test_what_the_disk_does_not_give_out_is_tried_again_and_then_no_damage(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, file: str, kind: str
) -> None:
    """Of the work tree as of the store: a read that fails once is nothing, and nobody calls all well unread."""
    time.sleep(0.05)
    flow.status()
    real, inode, left = os.read, os.stat(flow.top / file).st_ino, [1]

    def read(fd: int, count: int) -> bytes:
        if left[0] and os.fstat(fd).st_ino == inode:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, count)

    monkeypatch.setattr(os, "read", read)
    assert look(flow, level=Level.DATA).workspace == [] and not left[0]
    left[0] = 1000
    found = look(flow, level=Level.DATA)
    assert [(p.path, p.kind, p.unread) for p in found.workspace] == [(b"a.bin", kind, True)]
    assert not found.damaged and found.summary.startswith("could not be read: 1 file; to do: run it again")


def test_bad_input(flow: Flow) -> None:
    with pytest.raises(NotFound):
        look(flow, "nosuch")
    with pytest.raises(NotFound):
        look(flow, remote="nosuch")
    assert flow.dvk("verify", "--quick", "--data")[0] == 2
    assert flow.dvk("verify", "--data=0%")[0] == 2
    assert flow.dvk("verify", "--data=lots")[0] == 2
    assert flow.dvk("verify", "--remote", "nosuch")[0] == 6
    code, text = flow.dvk("verify", "--data", "HEAD", "--", "a.bin")
    assert code == 0 and "all is well" in text


def test_a_bucket_is_verified_and_mended_like_a_folder(
    s3: S3Address, new_bucket: Callable[[], str], tmp_path: Path
) -> None:
    """What a CI job asks, of a real S3 server; a lost object there comes back from this clone."""
    flow = Flow(tmp_path / "work", tmp_path, remote=f"s3://{new_bucket()}/x", environ=s3.env)
    flow.version({"a.bin": noise(200_000, 1), **{f"f/{i}": noise(3_000, i) for i in range(10)}}, "a.bin", "f")
    flow.push()
    assert not look(flow, "HEAD", remote="origin", level=Level.DATA).damaged
    with flow.repo() as repo:
        backend = repo.remote("origin", write=True).store.backend
        for prefix in ("l/f/", "p/"):
            for item in list(backend.list(prefix)):
                backend.delete(item.key)
    found = look(flow, "HEAD", remote="origin")
    assert {(v.state, v.path) for v in found.affected} == {("unreachable", b"a.bin"), ("unreachable", b"f")}
    with flow.repo() as repo:
        assert repair(repo, remote="origin").whole
    clone = flow.clone(tmp_path / "clone")
    clone.pull()
    assert clone.data() == flow.data()
