"""Conflicts of real merges end in the version that was chosen, whether or not a merge driver ran, and data follows."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from flowkit import Flow, noise

from dvk.commands.hooks import install_hooks
from dvk.commands.resolve import ResolveResult, resolve
from dvk.errors import NotFound, Refused, UsageError
from dvk.workspace.ignore import ensure_attributes


@pytest.fixture(params=["driver", "text"])
def flow(request: pytest.FixtureRequest, tmp_path: Path) -> Flow:
    """With the merge driver, and as a clone has it that never heard of dvk."""
    made = Flow(tmp_path / "a", tmp_path)
    ensure_attributes(bytes(made.top))
    made.git("add", ".gitattributes")
    if request.param == "driver":
        with made.repo() as repo:
            install_hooks(repo, ["pre-push"])
    return made


def sides(flow: Flow, base: dict[str, bytes], ours: dict[str, bytes | None], theirs: dict[str, bytes | None]) -> str:
    """Merge two branches that did this to `base`; what git said. Data of `theirs` is not checked out."""
    flow.version(dict(base), *{p.partition("/")[0] for p in base})
    for name, changes in (("theirs", theirs), ("ours", ours)):
        flow.git("checkout", "-q", "-b", name, "main")
        flow.checkout()
        for path, data in changes.items():
            if data is None:
                flow.remove(path)
                if "/" not in path:
                    flow.git("rm", "-q", f"{path}.dvk")
        flow.write({p: d for p, d in changes.items() if d is not None})
        there = {p.partition("/")[0] for p in changes if flow.exists(p.partition("/")[0])}
        flow.add(*there)
        flow.commit()
    return flow.git_repo.git("merge", "theirs", ok=False)


def run(flow: Flow, *paths: str, ok: bool = True, **options: object) -> ResolveResult:
    with flow.repo() as repo:
        done = resolve(repo, paths, **options)  # type: ignore[arg-type]
    assert not ok or not done.failures, [str(e) for e in done.failures]
    return done


def ended(flow: Flow) -> None:
    assert flow.git("ls-files", "-u") == ""
    flow.commit("merged")
    assert flow.status().clean and flow.git("status", "--porcelain") == ""


def test_a_side_is_taken_and_data_follows(flow: Flow) -> None:
    said = sides(flow, {"a": b"0", "b": b"0"}, {"a": b"ours", "b": b"ours"}, {"a": b"theirs", "b": b"theirs"})
    assert "CONFLICT" in said and flow.read("a") == b"ours"
    assert [c.what for c in flow.status().conflicts] == ["both changed"] * 2 and not flow.status().clean
    assert b"<<<<<<<" in flow.read("a.dvk"), "both versions are there to be seen, and no tool takes one of them"
    done = run(flow, "a", side="theirs", dry_run=True)
    assert done.dry_run and flow.read("a") == b"ours" and flow.git("ls-files", "-u") != ""
    assert run(flow, "a.dvk", side="theirs").paths[0].outcome == "theirs"
    run(flow, side="ours")
    assert (flow.read("a"), flow.read("b")) == (b"theirs", b"ours")
    ended(flow)


def test_a_path_that_looks_like_an_option_merges_and_conflicts_as_any_other(flow: Flow) -> None:
    for name, change in (("--dry-run", b"left"), ("-n", b"left")):
        flow.write({name: b"base"})
        flow.add(f"./{name}")
        flow.commit()
        flow.git("branch", f"side{name}")
        flow.write({name: b"main"})
        flow.add(f"./{name}")
        flow.commit()
        flow.git("checkout", "-q", f"side{name}")
        flow.checkout()
        flow.write({name: change})
        flow.add(f"./{name}")
        flow.commit()
        said = flow.git("merge", "main", ok=False)
        assert "Merge conflict" in said and b"<<<<<<<" in flow.read(f"{name}.dvk"), said
        done = run(flow, f"./{name}", side="theirs")
        assert [p.outcome for p in done.paths] == ["theirs"] and flow.read(name) == b"main"
        ended(flow)
        flow.git("checkout", "-q", "main")
        flow.checkout()


def test_a_folder_merges_file_by_file(flow: Flow) -> None:
    base = {f"im/{i}": b"%d" % i for i in range(4)}
    sides(
        flow, base, {"im/0": b"ours", "im/1": None, "im/new": b"n"}, {"im/2": b"theirs", "im/3": None, "im/far": b"f"}
    )
    if flow.git("ls-files", "-u"):
        assert run(flow, "im", merge=True).paths[0].outcome == "merged"
        flow.commit()
    else:
        flow.checkout()  # no hook after the merge in this test
    found = {p: flow.read(f"im/{p}") for p in ("0", "2", "new", "far")}
    assert found == {"0": b"ours", "2": b"theirs", "new": b"n", "far": b"f"}
    assert not flow.exists("im/1") and not flow.exists("im/3")
    ended(flow)


def test_files_that_both_changed_are_named_and_a_side_decides_about_these_only(flow: Flow) -> None:
    sides(
        flow,
        {"im/x": b"0", "im/y": b"0", "im/z": b"0"},
        {"im/x": b"ours", "im/y": b"ours", "im/z": None},
        {"im/x": b"theirs", "im/z": b"theirs", "im/w": b"theirs"},
    )
    done = run(flow, "im", merge=True, ok=False)
    assert [type(e) for e in done.failures] == [Refused] and done.paths == []
    assert [line.strip() for line in done.conflicts[1:]] == [
        "im/x: changed on both sides",
        "im/z: deleted on our side and changed on theirs",
    ]
    run(flow, "im", merge=True, side="theirs")
    assert (flow.read("im/x"), flow.read("im/y"), flow.read("im/z"), flow.read("im/w")) == (
        b"theirs",
        b"ours",
        b"theirs",
        b"theirs",
    )
    ended(flow)


def test_one_side_deleted_what_the_other_changed(flow: Flow) -> None:
    said = sides(flow, {"a": b"0", "b": b"0"}, {"a": None, "b": b"ours"}, {"a": b"theirs", "b": None})
    assert said.count("CONFLICT (modify/delete)") == 2
    assert [(c.path, c.what) for c in flow.status().conflicts] == [(b"a", "deleted by us"), (b"b", "deleted by them")]
    done = run(flow, "a", "b", merge=True, ok=False)
    assert ["our side deleted it" in str(e) for e in done.failures] == [True, False]
    assert run(flow, "a", side="theirs").paths[0].version
    assert run(flow, "b", side="theirs").paths[0].outcome == "deleted"
    assert flow.read("a") == b"theirs" and not flow.exists("b") and not flow.exists("b.dvk")
    ended(flow)


def test_both_sides_added_the_path_one_as_a_folder(flow: Flow) -> None:
    said = sides(flow, {"k": b"0"}, {"a": b"file", "im/1": b"1"}, {"a/x": b"folder", "im/2": b"2"})
    assert "CONFLICT (add/add)" in said
    done = run(flow, merge=True, ok=False)
    assert "a file on our side and a folder on theirs" in str(done.failures[0]) and len(done.failures) == 1
    assert run(flow, "a", side="theirs").paths[0].outcome == "theirs"
    flow.checkout("im")  # where the driver merged it, no hook ran in this test
    assert flow.read("a/x") == b"folder" and {flow.read("im/1"), flow.read("im/2")} == {b"1", b"2"}
    ended(flow)


def test_a_rebase_goes_on_with_what_was_chosen(flow: Flow) -> None:
    flow.version({"a": b"0"}, "a")
    flow.git("checkout", "-q", "-b", "topic")
    flow.version({"a": b"topic"}, "a")
    flow.git("checkout", "-q", "main")
    flow.checkout()
    flow.version({"a": b"main"}, "a")
    flow.git("checkout", "-q", "topic")
    flow.git_repo.git("rebase", "main", ok=False)
    run(flow, "a", side="theirs")
    flow.git("-c", "core.editor=true", "rebase", "--continue")
    assert flow.read("a") == b"topic" and flow.status().clean


def test_what_has_no_conflict_and_a_command_without_a_choice_are_said(flow: Flow) -> None:
    flow.version({"a": b"1"}, "a")
    with pytest.raises(UsageError, match="say how"):
        run(flow)
    with pytest.raises(NotFound, match="no conflict"):
        run(flow, "a", side="ours")
    assert run(flow, side="ours").paths == []
    code, said = flow.dvk("resolve", "--ours", "--theirs")
    assert code == 2 and "different things" in said


def test_edits_by_hand_stay_where_a_version_is_chosen(flow: Flow) -> None:
    sides(flow, {"a": b"0"}, {"a": b"ours"}, {"a": b"theirs"})
    flow.write({"a": b"my own"})
    done = run(flow, "a", side="theirs", ok=False)
    assert "would be overwritten" in str(done.failures[0]) and flow.read("a") == b"my own"
    assert flow.git("ls-files", "-u") == "" and flow.one("a").modified
    flow.add("a")
    assert flow.read("a") == b"my own"
    ended(flow)


def test_a_conflict_stays_until_the_disk_took_its_data(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same command goes on; it used to say that there was no conflict any more."""
    sides(flow, {"a": b"0", "b": b"0"}, {"a": b"ours", "b": b"ours"}, {"a": b"theirs", "b": b"theirs"})
    real, left = os.pwrite, [1]

    def fails_once(fd: int, data: memoryview, at: int) -> int:
        if bytes(data) == b"theirs" and left:
            left.pop()
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", fails_once)
    done = run(flow, side="theirs", ok=False)
    assert len(done.failures) == 1 and [p.path for p in done.paths] == [b"b"] and flow.read("a") == b"ours"
    assert [p.path for p in run(flow, side="theirs").paths] == [b"a"]
    assert (flow.read("a"), flow.read("b")) == (b"theirs", b"theirs")
    ended(flow)


def test_lists_that_are_not_here_are_fetched_and_files_are_not(tmp_path: Path) -> None:
    """A clone that never pulled merges a folder: the driver says what is missing, `--merge` fetches lists alone."""
    flow = Flow(tmp_path / "a", tmp_path)
    ensure_attributes(bytes(flow.top))
    flow.git("add", ".gitattributes")
    flow.version({f"im/{i}": noise(5000, i) for i in range(20)}, "im")
    flow.git("checkout", "-q", "-b", "theirs")
    flow.version({"im/3": noise(5000, 33)}, "im")
    flow.git("checkout", "-q", "main")
    flow.checkout()
    flow.version({"im/5": noise(5000, 55)}, "im")
    flow.push(revs=["main", "theirs"])
    expected = flow.data() | {b"im/3": b""}
    clone = flow.clone(tmp_path / "clone")
    with clone.repo() as repo:
        install_hooks(repo)
    done = subprocess.run(
        ["git", "merge", "origin/theirs"], cwd=clone.top, env=clone.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "`dvk resolve im --merge` fetches them and merges" in done.stdout + done.stderr
    result = run(clone, "im", merge=True)
    assert result.paths[0].behind == 100_000 and not clone.exists("im")
    used = sum(f.stat().st_size for f in (clone.top / ".git/dvk/store").rglob("*") if f.is_file())
    assert used < 20_000, "no file came along"
    clone.commit()
    clone.pull()
    assert clone.read("im/3") == noise(5000, 33) and clone.read("im/5") == noise(5000, 55)
    assert clone.data().keys() == expected.keys() and clone.status().clean
