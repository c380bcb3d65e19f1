"""`dvk repair` brings back what a good copy is left of, deletes nothing, and may be killed anywhere."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flowkit import Flow, failure_of, noise
from test_verify import change, flip, look, objects, remote_objects, said, store

from dvk.backend.local import LocalBackend
from dvk.commands.remove import remove
from dvk.commands.repair import Level, RepairResult, repair
from dvk.errors import DataMissing, NotFound, NotOurs, Refused, StorageError, StorageFull
from dvk.store.pack import PackKind


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """Two versions of a file and of a folder, all of it on the remote."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(400_000, 1), **{f"f/{i}": noise(9_000, i) for i in range(10, 30)}}, "a.bin", "f")
    flow.push()
    flow.version({"a.bin": noise(300_000, 2), "f/12": noise(500, 99)}, "a.bin", "f")
    flow.push()
    return flow


def mend(
    flow: Flow,
    *,
    remote: str | None = None,
    source: str | None = None,
    level: Level | None = None,
    drop_records: bool = False,
    dry_run: bool = False,
) -> RepairResult:
    with flow.repo() as repo:
        return repair(repo, remote=remote, source=source, level=level, drop_records=drop_records, dry_run=dry_run)


def small_pack(where: Path) -> Path:
    """The smallest data pack: what is new in the second version."""
    return objects(where, "p/*/*")[-1]


def bytes_of(where: Path) -> list[bytes]:
    """The content of all packs, those in quarantine included, in order."""
    names = [*where.glob("[pm]/*/*"), *where.glob("quarantine/*/[pm]/*/*")]
    return sorted(p.read_bytes() for p in names if p.is_file())


def test_nothing_to_repair_changes_nothing(flow: Flow) -> None:
    before = {p: p.read_bytes() for p in store(flow).rglob("*") if p.is_file() and p.name != "checked"}
    done = mend(flow)
    assert done.whole and not done.done and not done.report
    assert {p: p.read_bytes() for p in store(flow).rglob("*") if p.is_file() and p.name != "checked"} == before


def test_a_rotten_block_comes_back_from_the_remote_and_the_bad_copy_is_kept(flow: Flow) -> None:
    flow.write({"a.bin": b"something else"})
    bad = small_pack(store(flow))
    change(bad, flip(1000))
    kept = bad.read_bytes()
    tried = mend(flow, dry_run=True)
    assert bad.exists() and not tried.quarantine and {m.what for m in tried.done} == {"quarantine", "healed"}
    done = mend(flow)
    assert done.whole and ("healed", "from origin") in {(m.what, m.detail) for m in done.done}
    assert not bad.exists()
    assert (store(flow) / done.quarantine / "p" / bad.parent.name / bad.name).read_bytes() == kept
    assert not look(flow, level=Level.DATA).damaged
    report = json.loads(Path(done.report).read_text())
    assert report["quarantine"] == done.quarantine and report["after"]["affected"] == []
    flow.checkout(force=True)
    assert flow.read("a.bin") == noise(300_000, 2)


def test_it_comes_back_from_the_file_on_disk_without_any_remote(flow: Flow) -> None:
    shutil.rmtree(flow.remote_dir)
    for pack in objects(store(flow), "[pm]/*/*"):
        pack.unlink()
    done = mend(flow)
    assert not done.whole, "the first versions are nowhere"
    now = {(w, p) for w, p, _ in said(done.after)}
    assert now == {("unreachable", b"a.bin"), ("unreachable", b"f")}  # a remote once confirmed them
    assert {m.subject.split()[0] for m in done.done if m.what == "healed"} == {"a.bin", "f"}
    shutil.rmtree(flow.top / "f")
    flow.remove("a.bin")
    flow.checkout()
    assert flow.read("a.bin") == noise(300_000, 2) and flow.read("f/12") == noise(500, 99)


@pytest.mark.parametrize("kind", ["p", "m"])
def test_what_lies_under_a_foreign_name_is_not_lost_and_comes_back_without_any_other_copy(
    tmp_path: Path, kind: str
) -> None:
    """A page pack is found by a look that reads lists, a data pack by one that reads everything."""
    flow = Flow(tmp_path / "work", tmp_path)
    for n in range(3):
        flow.version({f"{n}.bin": noise(400_000, n)}, f"{n}.bin")
    for n in range(3):
        flow.remove(f"{n}.bin")
    packs = objects(store(flow), f"{kind}/*/*")
    assert len(packs) == 3
    first, second, third = (p.read_bytes() for p in packs)
    for path, data in zip(packs, (second, third, first), strict=True):
        path.chmod(0o600)
        path.write_bytes(data)
    found = look(flow, level=Level.DATA)
    assert {w for w, _, _ in said(found)} == {"unreachable"} and len(found.affected) == 3
    assert {e for v in found.affected for e in v.elsewhere} == {"the sound parts of damaged packs"}
    assert mend(flow, level=Level.DATA).whole
    assert not look(flow, level=Level.DATA).damaged
    flow.checkout(force=True)
    assert [flow.read(f"{n}.bin") for n in range(3)] == [noise(400_000, n) for n in range(3)]


def test_a_list_that_can_be_saved_is_no_version_that_can(tmp_path: Path) -> None:
    """The list lies under a foreign name; of what it names a file is nowhere."""
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({f"f/{i}": noise(90_000, i) for i in range(3)}, "f")
    flow.version({"other": noise(200_000, 9)}, "other")
    lists = objects(store(flow), "m/*/*")
    assert len(lists) == 2
    swapped = [p.read_bytes() for p in lists]
    for path, data in zip(lists, reversed(swapped), strict=True):
        path.chmod(0o600)
        path.write_bytes(data)
    shutil.rmtree(flow.top / "f")
    assert {(w, p) for w, p, _ in said(look(flow, level=Level.DATA)) if p == b"f"} == {("unreachable", b"f")}
    biggest = max(objects(store(flow), "p/*/*"), key=lambda p: p.stat().st_size)
    biggest.unlink()
    assert {(w, p) for w, p, _ in said(look(flow, level=Level.DATA)) if p == b"f"} == {("lost", b"f")}
    assert not mend(flow, level=Level.DATA).whole


@pytest.mark.parametrize("as_clone", [True, False])
def test_a_clone_or_a_bare_store_is_as_good_a_source(flow: Flow, tmp_path: Path, as_clone: bool) -> None:
    clone = flow.clone(tmp_path / "clone")
    shutil.copytree(store(flow), store(clone))
    shutil.rmtree(flow.remote_dir)
    for pack in objects(store(flow), "[pm]/*/*"):
        pack.unlink()
    done = mend(flow, source=str(clone.top if as_clone else store(clone)))
    assert done.whole and not look(flow, level=Level.DATA).damaged


def test_what_is_bad_on_both_sides_stays_on_both_and_is_named(flow: Flow) -> None:
    flow.write({"a.bin": b"something else"})
    here, there = small_pack(store(flow)), small_pack(flow.remote_dir)
    change(here, flip(1000))
    change(there, flip(1000))
    kept = {here.read_bytes(), there.read_bytes()}
    done = mend(flow)
    assert not done.whole and {p for _, p, _ in said(done.after)} == {b"a.bin"}
    assert flow.dvk("repair")[0] == 23
    mend(flow, remote="", level=Level.DATA)
    assert flow.dvk("verify", "--remote", "--data")[0] == 23
    assert kept <= {*bytes_of(store(flow)), *bytes_of(flow.remote_dir)}
    assert there.exists(), "nothing took its place"


def test_lost_for_good_is_remembered(flow: Flow) -> None:
    """After the repair no pack speaks of it any more, and still it is no version that was never fetched."""
    shutil.rmtree(flow.remote_dir)
    flow.write({"a.bin": b"something else"})
    change(small_pack(store(flow)), flip(1000))
    mend(flow)
    for found in (look(flow), look(flow, level=Level.QUICK)):
        assert found.damaged and {p for _, p, _ in said(found)} == {b"a.bin"} and not found.not_here
    flow.write({"a.bin": noise(300_000, 2)})
    flow.add("a.bin")
    assert not look(flow).damaged
    assert mend(flow).whole


@pytest.mark.parametrize("pattern", ["p/*/*", "m/*/*", "i/*", "dvk.json"])
@pytest.mark.parametrize("how", ["gone", "cut", "empty", "flipped"])
def test_every_kind_of_local_object(flow: Flow, pattern: str, how: str) -> None:
    edits: dict[str, Callable[[bytearray], object]] = {
        "cut": lambda data: data.pop(),
        "empty": lambda data: data.clear(),
        "flipped": flip(40),
    }
    for path in objects(store(flow), pattern):
        if how == "gone":
            path.unlink()
        else:
            change(path, edits[how])  # type: ignore[arg-type]
    done = mend(flow)
    assert done.whole, done.after.summary
    assert not look(flow, level=Level.DATA).damaged
    assert mend(flow).done == []


# ---------------------------------------------------------------- remotes


@pytest.mark.parametrize("pattern", ["p/*/*", "m/*/*", "l/*/*/*", "j/*", "dvk.json"])
@pytest.mark.parametrize("how", ["gone", "flipped"])
def test_every_kind_of_remote_object(flow: Flow, tmp_path: Path, pattern: str, how: str) -> None:
    for path in remote_objects(flow, pattern):
        if how == "gone":
            path.unlink()
        else:
            change(path, flip(path.stat().st_size // 2))
    done = mend(flow, remote="", level=Level.DATA, drop_records=pattern == "j/*")
    assert done.whole and not done.after.missing, done.after.summary
    clone = flow.clone(tmp_path / "clone")
    clone.pull()
    assert clone.data() == flow.data()
    found = look(flow, remote="", level=Level.DATA)
    assert not found.damaged and not found.missing


def test_a_remote_is_mended_from_another_clone_that_this_one_names(flow: Flow, tmp_path: Path) -> None:
    clone = flow.clone(tmp_path / "clone")
    change(small_pack(flow.remote_dir), flip(1000))
    done = mend(clone, remote="", source=str(flow.top), level=Level.DATA)
    assert done.whole
    other = flow.clone(tmp_path / "other")
    other.pull()
    assert other.data() == flow.data()


def test_a_locator_is_written_again_by_a_clone_that_has_no_data(flow: Flow, tmp_path: Path) -> None:
    for path in remote_objects(flow, "l/*/*/*"):
        path.unlink()
    clone = flow.clone(tmp_path / "clone")
    assert mend(clone, remote="").whole
    assert not look(flow, remote="", level=Level.DATA).damaged


def test_a_damaged_pack_of_somebody_else_stays_where_it_is(flow: Flow, tmp_path: Path) -> None:
    other = flow.clone(tmp_path / "other")
    other.version({"theirs": noise(70_000, 8)}, "theirs")
    before = set(remote_objects(flow, "p/*/*"))
    other.push()
    (new,) = set(remote_objects(flow, "p/*/*")) - before
    change(new, flip(1000))
    done = mend(flow, remote="", level=Level.DATA)
    assert not done.whole and new.exists()
    assert mend(other, remote="", level=Level.DATA).whole and not new.exists()


# ---------------------------------------------------------------- killed anywhere


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


@pytest.mark.parametrize("remote", [None, ""])
def test_a_repair_that_is_cut_short_anywhere_loses_nothing_and_goes_on(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str | None
) -> None:
    where = store(flow) if remote is None else flow.remote_dir
    for pack in (small_pack(where), objects(where, "m/*/*")[0]):
        change(pack, flip(200))
    bad = {p.read_bytes() for p in objects(where, "[pm]/*/*")}
    good, link = tmp_path / "damaged", flow.remote_dir
    shutil.copytree(store(flow), good / "store")
    shutil.copytree(link, good / "remote")
    state = flow.top / ".git/dvk/remotes"
    shutil.copytree(state, good / "state")

    def reset() -> None:
        for path, kept in ((store(flow), "store"), (link, "remote"), (state, "state")):
            shutil.rmtree(path)
            shutil.copytree(good / kept, path)

    put, delete = LocalBackend.put, LocalBackend.delete
    at = 0
    while True:
        reset()
        left = at

        def strike(self: LocalBackend, key: str) -> None:
            nonlocal left
            if self.root == str(where):
                left -= 1
                if left < 0:
                    raise Killed

        def dying_put(self: LocalBackend, key: str, *a: object, **k: object) -> None:
            strike(self, key)
            put(self, key, *a, **k)  # type: ignore[arg-type]

        def dying_delete(self: LocalBackend, key: str) -> None:
            strike(self, key)
            delete(self, key)

        with monkeypatch.context() as patch:
            patch.setattr(LocalBackend, "put", dying_put)
            patch.setattr(LocalBackend, "delete", dying_delete)
            try:
                mend(flow, remote=remote, level=Level.DATA)
                finished = True
            except Killed:
                finished = False
        assert bad <= set(bytes_of(where)), f"after {at} changes something is gone"
        if finished:
            break
        assert mend(flow, remote=remote, level=Level.DATA).whole, f"after {at} changes"
        assert bad <= set(bytes_of(where))
        at += 1
    assert at > 4


# ---------------------------------------------------------------- the disk itself fails


def failing_reads(patch: pytest.MonkeyPatch, where: Path, *, times: int, number: int = errno.EIO) -> None:
    """The next reads of the object at `where` fail, so many of them."""
    read, left = LocalBackend._read, [times]

    def fail(self: LocalBackend, file: object, key: str, offset: int, length: int) -> bytes:
        if key.endswith(where.name) and left[0]:
            left[0] -= 1
            raise OSError(number, "struck")
        return read(self, file, key, offset, length)  # type: ignore[arg-type]

    patch.setattr(LocalBackend, "_read", fail)


def notes(flow: Flow) -> list[Path]:
    return objects(store(flow), "i/bad-*")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("pattern", ["p/*/*", "m/*/*", "i/*"])
def test_a_read_that_fails_once_is_tried_again_and_is_no_damage(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, pattern: str, number: int
) -> None:
    for at in objects(store(flow), pattern):
        with monkeypatch.context() as patch:
            failing_reads(patch, at, times=2, number=number)
            assert not look(flow, level=Level.DATA).summary
        with monkeypatch.context() as patch:
            failing_reads(patch, at, times=2, number=number)
            assert not mend(flow).done
    assert not notes(flow)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("pattern", ["p/*/*", "m/*/*"])
def test_what_cannot_be_read_is_named_and_left_alone(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, pattern: str, indexed: bool
) -> None:
    """The versions that others have come all the same, beside what is damaged; the pack itself is not touched."""
    dark, bad = objects(store(flow), pattern)[0], objects(store(flow), "p/*/*")[-1]
    kept = dark.read_bytes()
    if not indexed:
        shutil.rmtree(store(flow) / "i")
    with monkeypatch.context() as patch:
        failing_reads(patch, dark, times=10**9)
        seen = look(flow, level=Level.DATA)
        assert [o.key.rsplit("/")[-1] for o in seen.unread] == [dark.name] and not seen.damaged and not notes(flow)
        assert {(v.state, v.why) for v in seen.affected} <= {("unsure", "it may be in what cannot be read")}
        assert "could not be read: 1 object" in seen.summary
        change(bad, flip(1000))
        done = mend(flow)
        assert not done.whole and [o.key.rsplit("/")[-1] for o in done.after.unread] == [dark.name]
        assert dark.read_bytes() == kept and not bad.exists()
        assert not done.after.damaged
    again = mend(flow)
    assert again.whole and again.after.whole == again.after.versions
    assert dark.read_bytes() == kept


def test_without_a_durable_note_nothing_is_moved_and_nothing_forgotten(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = small_pack(store(flow))
    change(bad, flip(1000))
    shutil.rmtree(store(flow) / "i")
    flow.write({"a.bin": b"something else"})
    put = LocalBackend.put

    def full(self: LocalBackend, key: str, *a: object, **k: object) -> None:
        if key.startswith("i/bad-"):
            raise StorageFull("no space left", subject=key)
        put(self, key, *a, **k)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "put", full)
        with pytest.raises(StorageFull, match="could not be noted, so nothing was put aside"):
            mend(flow)
        assert look(flow, level=Level.DATA).damaged
    assert bad.exists() and not (store(flow) / "quarantine").exists()
    shutil.rmtree(flow.remote_dir)
    after = mend(flow).after
    assert [v.state for v in after.affected] == ["unreachable"] and after.damaged


def test_what_cannot_be_put_aside_is_named_and_noted_until_it_can(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = small_pack(store(flow))
    change(bad, flip(1000))
    delete = LocalBackend.delete

    def stuck(self: LocalBackend, key: str) -> None:
        if key.endswith(bad.name):
            raise StorageError("permission denied", subject=key)
        delete(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "delete", stuck)
        done = mend(flow)
    assert not done.whole and done.after.damaged
    (left,) = done.after.objects
    assert left.key.endswith(bad.name) and "could not be put aside: permission denied" in left.message
    assert bad.exists() and notes(flow), "readers must pass it over as long as it lies there"
    assert done.after.whole == done.after.versions
    assert mend(flow).whole and not bad.exists() and not notes(flow)


def test_a_note_on_a_pack_that_is_right_is_dropped_once_it_was_read_whole(flow: Flow) -> None:
    good = small_pack(store(flow))
    with flow.repo() as repo:
        name = bytes.fromhex(good.name)
        repo.store.note_damage(name, repo.store.footer(name, PackKind.DATA), np.array([0], np.int64), keep=True)
    shutil.rmtree(flow.remote_dir)
    flow.write({"a.bin": b"something else"})
    assert look(flow).damaged
    done = mend(flow)
    assert not notes(flow) and good.exists() and not look(flow, level=Level.DATA).damaged, done.done


# ---------------------------------------------------------------- bad input, and who relies on damage


def test_bad_input(flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        mend(flow, source="nosuch")
    with pytest.raises(NotFound):
        mend(flow, remote="nosuch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotOurs):
        mend(flow, source=str(tmp_path / "empty"))
    assert flow.dvk("repair", "x")[0] == 2
    code, text = flow.dvk("repair")
    assert code == 0 and "nothing to repair" in text


def test_rm_deletes_no_file_of_which_the_store_has_only_a_rotten_copy(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({"a.bin": noise(50_000, 1), "f/1": noise(9_000, 2)}, "a.bin", "f")
    change(objects(store(flow), "p/*/*")[0], flip(1000))
    with flow.repo() as repo:
        error = failure_of(lambda: remove(repo, ["a.bin"]))
        assert isinstance(error, Refused) and "dvk repair" in str(error)
        assert flow.read("a.bin") == noise(50_000, 1)
    assert mend(flow).whole
    with flow.repo() as repo:
        assert [r.deleted for r in remove(repo, ["a.bin", "f"]).paths] == [1, 1]


def test_add_rebuilds_a_lost_store_from_the_folder_on_disk(tmp_path: Path) -> None:
    flow = Flow(tmp_path / "work", tmp_path)
    flow.version({f"f/{i}": noise(9_000, i) for i in range(5)}, "f")
    pointer = flow.read("f.dvk")
    shutil.rmtree(store(flow))
    added = flow.add("f").paths[0]
    assert not added.changed and (added.added, added.modified, added.removed) == (0, 0, 0)
    assert flow.read("f.dvk") == pointer and not look(flow).damaged
    shutil.rmtree(flow.top / "f")
    flow.checkout()
    assert flow.read("f/3") == noise(9_000, 3)


def test_add_does_not_guess_what_a_folder_had_whose_list_is_lost(flow: Flow, tmp_path: Path) -> None:
    clone = flow.clone(tmp_path / "clone")
    clone.pull("f/12", "f/13")
    shutil.rmtree(store(clone))
    assert isinstance(failure_of(lambda: clone.add("f")), DataMissing)
    (clone.top / ".git/dvk/selection.json").unlink()
    assert isinstance(failure_of(lambda: clone.add("f")), DataMissing)
    clone.add("f", delete_missing=True)
    assert clone.pointer("f").files == 2
