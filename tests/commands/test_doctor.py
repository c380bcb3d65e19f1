"""`dvk doctor`: it finds each thing that can be wrong, says what to do, and never ends in an error of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from workbench import Bench

from dvk.backend.local import LocalBackend
from dvk.commands.doctor import DoctorResult, doctor
from dvk.workspace.ignore import ensure_attributes, update_exclude


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "work", tmp_path / "home")
    made.put({"dvk.toml": b"format = 1\n"})
    ensure_attributes(os.fsencode(made.top))
    return made


def examine(bench: Bench, top: Path | None = None) -> DoctorResult:
    return doctor(top or bench.top, environ=bench.environ)


def trouble(found: DoctorResult) -> list[tuple[str, str]]:
    """What is not as it should be: state and name."""
    return [(c.state, c.name) for c in found.checks if c.state in ("warn", "fail")]


def message(found: DoctorResult, name: str) -> str:
    return " | ".join(f"{c.message} -> {c.hint}" for c in found.checks if c.name == name)


def test_a_healthy_repository_has_nothing_to_complain_of_and_is_not_changed(bench: Bench) -> None:
    bench.add_commit({"a.csv": b"1", "im/x": b"2"}, "a.csv", "im")
    before = bench.files(), sorted(p for p in (bench.top / ".git").rglob("*"))
    found = examine(bench)
    assert trouble(found) == [] and (found.failed, found.warned) == (0, 0)
    assert (bench.files(), sorted(p for p in (bench.top / ".git").rglob("*"))) == before
    names = [c.name for c in found.checks]
    assert names == sorted(names, key=names.index) and {"git", "store", "locks", "space", "remotes"} <= set(names)
    assert "2 tracked paths" in message(found, "pointers")


def test_a_fresh_repository_is_healthy_too(tmp_path: Path) -> None:
    fresh = Bench(tmp_path / "fresh", tmp_path / "home")
    found = examine(fresh)
    assert trouble(found) == []
    assert "nothing is stored yet" in message(found, "store") and "dvk init" in message(found, "settings")
    assert not (fresh.top / ".git/dvk").exists()


def test_outside_of_a_repository_the_machine_is_examined_all_the_same(bench: Bench, tmp_path: Path) -> None:
    found = examine(bench, tmp_path)
    assert trouble(found) == [("fail", "repository")]
    assert {c.name for c in found.checks} >= {"dvk", "libraries", "git"}


def test_settings_that_cannot_be_read(bench: Bench) -> None:
    bench.put({"dvk.toml": b"format = 1\nnonsense = [\n"})
    found = examine(bench)
    assert trouble(found) == [("fail", "settings")] and "dvk.toml" in message(found, "settings")


def test_broken_pointers_are_all_named(bench: Bench) -> None:
    bench.add_commit({"a": b"1", "b": b"2", "c": b"3"}, "a", "b", "c")
    bench.put({"a.dvk": b"<<<<<<< ours\n", "b.dvk": b"something\n"})
    found = examine(bench)
    assert trouble(found) == [("fail", "pointers"), ("fail", "pointers")] and found.failed == 2
    assert "a.dvk" in message(found, "pointers") and "b.dvk" in message(found, "pointers")


def test_data_that_git_would_take_in(bench: Bench) -> None:
    bench.add_commit({"a": b"1", "b": b"2"}, "a", "b")
    update_exclude(os.fsencode(bench.top / ".git"), remove=[b"a", b"b"])
    found = examine(bench)
    assert trouble(found) == [("warn", "rules")]
    assert "2 tracked paths not hidden from Git (a, b)" in message(found, "rules")
    bench.put({".gitignore": b"/a\n/b\n"})
    assert trouble(examine(bench)) == []


def test_pointers_that_git_might_convert(bench: Bench) -> None:
    (bench.top / ".gitattributes").unlink()
    assert trouble(examine(bench)) == []
    bench.add_commit({"a": b"1"}, "a")
    found = examine(bench)
    assert trouble(found) == [("warn", "attributes")] and "dvk init" in message(found, "attributes")


def test_a_damaged_selection(bench: Bench) -> None:
    bench.add_commit({"im/x": b"2"}, "im")
    (bench.top / ".git/dvk/selection.json").write_text("{")
    found = examine(bench)
    assert trouble(found) == [("fail", "selection")] and "--keep-missing" in message(found, "selection")


def test_a_damaged_pack(bench: Bench) -> None:
    bench.add_commit({"a": b"1" * 1000}, "a")
    store = bench.top / ".git/dvk/store"
    for segment in store.glob("i/*"):
        segment.unlink()  # so that footers are read
    (pack,) = store.glob("p/*/*")
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes()[:-10])
    found = examine(bench)
    assert trouble(found) == [("fail", "store")] and "1 pack of 1 cannot be read" in message(found, "store")


def test_somebody_else_s_folder_as_store(bench: Bench, tmp_path: Path) -> None:
    bench.environ["DVK_STORE"] = str(tmp_path / "store")
    LocalBackend(str(tmp_path / "store")).put("dvk.json", [b"{}"])
    assert trouble(examine(bench)) == [("fail", "store")]


def test_leftovers_of_killed_runs(bench: Bench) -> None:
    bench.add_commit({"a": b"1"}, "a")
    left = bench.top / ".git/dvk/store/tmp" / ("." + "a" * 32)
    left.write_bytes(b"x" * 5000)
    assert message(examine(bench), "leftovers") == ""  # it may belong to a run that is under way
    os.utime(left, (1, 1))
    assert "1 file of killed runs, 5,000 bytes" in message(examine(bench), "leftovers")


def test_remotes(bench: Bench) -> None:
    bench.put({"dvk.toml": b'format = 1\n[core]\nremote = "gone"\n[remote.a]\nurl = "s3://bucket/x"\n'})
    found = examine(bench)
    assert trouble(found) == [("fail", "remotes")]
    assert "`gone`" in message(found, "remotes") and "a: s3://bucket/x (from dvk.toml, through " in message(
        found, "remotes"
    )


def test_through_which_library_a_remote_goes_and_why(bench: Bench) -> None:
    bench.put({"dvk.toml": b'format = 1\n[remote.a]\nurl = "s3://bucket/x"\n'})
    bench.environ |= {"AWS_REGION": "eu-west-1", "AWS_CONFIG_FILE": os.devnull, "DVK_BACKEND": "fsspec"}
    assert "through s3fs, not obstore: as the settings say" in message(examine(bench), "remotes")
    bench.put({"dvk.toml": b'format = 1\n[remote.a]\nurl = "ssh://host/x"\n'})
    found = examine(bench)
    assert trouble(found) == [("fail", "remotes")] and "need the package sshfs" in message(found, "remotes")


def test_without_git_it_says_what_works(bench: Bench, tmp_path: Path) -> None:
    bench.environ["PATH"] = str(tmp_path)
    found = examine(bench)
    assert ("warn", "git") in trouble(found) and found.failed == 0


def test_no_locks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvk.commands.doctor.has_locks", lambda _: False)
    assert trouble(examine(bench)) == [("warn", "locks")]


def test_a_probe_that_cannot_be_made_is_a_warning(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(_: bytes) -> bool:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dvk.commands.doctor.has_locks", read_only)
    found = examine(bench)
    assert trouble(found) == [("warn", "locks")] and "Read-only file system" in message(found, "locks")


def test_little_space(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvk.commands.doctor.free_bytes", lambda _: 5_000_000)
    found = examine(bench)
    assert ("warn", "space") in trouble(found) and "5 MB free" in message(found, "space")


def test_a_plain_folder(bench: Bench, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "dvk.toml").write_text("format = 1\n")
    found = examine(bench, plain)
    assert found.failed == 0 and "plain folder" in message(found, "repository")
