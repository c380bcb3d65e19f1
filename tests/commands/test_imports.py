"""`import` tracks data of elsewhere and keeps where it came from; `update` brings what is newer, and asks little."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import Project, files_below, noise
from webserver import WebServer

from dvk.backend.locate import RemoteSettings, open_medium, parse_remote_url
from dvk.backend.s3 import S3Medium
from dvk.commands.imports import import_repo, import_url, update
from dvk.commands.push import push
from dvk.commands.status import status
from dvk.errors import (
    ChangedWhileRead,
    DataMissing,
    DvkError,
    NotFound,
    Refused,
    RemoteError,
    StorageError,
    UsageError,
)
from dvk.events import Note
from dvk.testing import dying
from dvk.testing.s3server import S3Address
from dvk.workspace.pointer import parse
from dvk.workspace.provenance import provenance_of


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer({"/d/iris.csv": noise(300_000, 1)}) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "mine", tmp_path / "home")


def sources(project: Project, path: str) -> dict[str, str]:
    return dict(parse(project.read(path + ".dvk"), subject=path).source)


# ------------------------------------------------------------ a URL


def test_a_file_from_a_web_server_is_tracked_with_where_it_came_from(home: Project, web: WebServer) -> None:
    with home.repo() as repo:
        result = import_url(repo, web.url("/d/iris.csv?download=1"), "data/iris.csv")
    assert home.read("data/iris.csv") == noise(300_000, 1)
    assert (result.paths[0].state, result.paths[0].size, result.staged) == ("imported", 300_000, 1)
    kept = sources(home, "data/iris.csv")
    assert (
        kept["url"] == web.url("/d/iris.csv?download=1") and kept["size"] == "300000" and kept["etag"].startswith('"')
    )
    assert home.git("status", "--short").split() == ["A", "data/iris.csv.dvk"]
    assert [line.split()[0] for line in web.asked] == ["GET", "HEAD"]
    with home.repo() as repo:
        assert status(repo)[0].paths[0].modified == 0


def test_an_update_asks_once_when_nothing_is_new_and_downloads_when_something_is(home: Project, web: WebServer) -> None:
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        web.asked.clear()
        result = update(repo)
        assert [(p.state, p.requests) for p in result.paths] == [("unchanged", 1)]
        assert web.asked == ["HEAD /d/iris.csv"]
        web.files["/d/iris.csv"] = noise(300_000, 1) + b"more"
        dry = update(repo, dry_run=True)
        assert [p.state for p in dry.paths] == ["changed"] and home.read("iris.csv") == noise(300_000, 1)
        result = update(repo, ["iris.csv"])
        assert [(p.state, p.size) for p in result.paths] == [("updated", 300_004)]
        assert result.paths[0].new_bytes < 200_000, "what both have is not stored twice"
        assert home.read("iris.csv") == noise(300_000, 1) + b"more"
        assert [p.state for p in update(repo).paths] == ["unchanged"]


def test_a_weak_etag_does_not_hide_a_change_that_the_time_tells(home: Project, web: WebServer) -> None:
    """Servers may keep a weak etag where they find a change unimportant; bytes are bytes."""
    web.weak, web.modified = "same", "Mon, 02 Jan 2023 10:00:00 GMT"
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        assert update(repo).paths[0].state == "unchanged"
        web.files["/d/iris.csv"] = noise(300_000, 9)  # of the same size
        web.modified = "Mon, 02 Jan 2023 10:00:07 GMT"
        assert update(repo).paths[0].state == "updated"
    assert home.read("iris.csv") == noise(300_000, 9)


def test_a_url_has_no_revision_to_follow(home: Project, web: WebServer) -> None:
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        [failure] = update(repo, ["iris.csv"], rev="v2").failures
    assert isinstance(failure, UsageError) and "no revisions" in failure.message


def test_a_server_that_knows_neither_head_nor_etags_still_works(home: Project, web: WebServer) -> None:
    web.heads = web.etags = False
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        result = update(repo)
    assert [p.state for p in result.paths] == ["recorded"], "it may be another one, so it was read; it was the same"
    assert home.read("iris.csv") == noise(300_000, 1)


def test_a_broken_transfer_goes_on_where_it_stopped(home: Project, web: WebServer) -> None:
    web.files["/d/iris.csv"] = noise(5_000_000, 2)
    web.cut = [2_000_000, 1_000_000]
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
    assert home.read("iris.csv") == noise(5_000_000, 2)
    assert web.asked.count("GET /d/iris.csv") == 3


@pytest.mark.parametrize("lie", [1000, 7])
def test_a_server_that_lies_about_the_length_is_an_error_and_leaves_nothing(
    home: Project, web: WebServer, lie: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dvk.backend.origin._WAITS_S", (0.01, 0.01))
    web.lie, web.ranges = lie, False
    with home.repo() as repo, pytest.raises(RemoteError):
        import_url(repo, web.url("/d/iris.csv"))
    assert os.listdir(home.top) == [".git"]
    assert not [p for p in (home.top / ".git/dvk").iterdir() if p.name.startswith("import-")]


def test_a_missing_length_is_mentioned(home: Project, web: WebServer) -> None:
    web.lengths = False
    notes: list[object] = []
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"), on_event=notes.append)
    assert any(isinstance(n, Note) and "does not say how long" in n.message for n in notes)


def test_a_source_that_changes_during_the_import_is_noticed(home: Project, web: WebServer) -> None:
    web.after_get = lambda: web.files.update({"/d/iris.csv": b"another"})
    with home.repo() as repo, pytest.raises(ChangedWhileRead):
        import_url(repo, web.url("/d/iris.csv"))
    assert os.listdir(home.top) == [".git"]


def test_a_file_here_that_is_written_meanwhile_is_noticed(home: Project, tmp_path: Path) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(noise(20_000_000, 3))
    done = []

    def change(_event: object) -> None:
        if not done:
            done.append(1)
            with source.open("ab") as file:
                file.write(b"x")

    with home.repo() as repo, pytest.raises(ChangedWhileRead):
        import_url(repo, str(source), on_event=change)
    with home.repo() as repo:
        import_url(repo, "../big.bin", "b.bin")
        assert [p.state for p in update(repo).paths] == ["unchanged"]
        source.write_bytes(b"new")
        assert [p.state for p in update(repo).paths] == ["updated"]
    assert home.read("b.bin") == b"new"


def test_a_source_that_is_gone_leaves_what_is_here(home: Project, web: WebServer) -> None:
    web.files["/other"] = b"other"
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        import_url(repo, web.url("/other"))
        del web.files["/d/iris.csv"]
        web.files["/other"] = b"newer"
        result = update(repo)
    assert [(p.path, p.state) for p in result.paths] == [(b"other", "updated")]
    assert len(result.failures) == 1 and "is not any more where it was imported from" in str(result.failures[0])
    assert home.read("iris.csv") == noise(300_000, 1) and home.read("other") == b"newer"


def test_what_was_changed_here_is_not_replaced(home: Project, web: WebServer) -> None:
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
        home.write({"iris.csv": b"mine"})
        web.files["/d/iris.csv"] = b"theirs"
        result = update(repo)
        assert isinstance(result.failures[0], Refused) and home.read("iris.csv") == b"mine"
        update(repo, force=True)
        assert home.read("iris.csv") == b"theirs"
    home.version({"iris.csv": b"mine again"}, "iris.csv")
    assert sources(home, "iris.csv") == {}, "an edited file is no copy of its source any more"
    with home.repo() as repo, pytest.raises(DvkError):
        raise update(repo, ["iris.csv"]).failures[0]


def test_a_url_in_a_pointer_of_others_is_not_asked_without_trust(home: Project, web: WebServer, tmp_path: Path) -> None:
    with home.repo() as repo:
        import_url(repo, web.url("/d/iris.csv"))
    home.git("commit", "-qm", "import")
    other = home.clone(tmp_path / "theirs")
    other.environ["HOME"] = str(tmp_path / "stranger")
    web.asked.clear()
    with other.repo() as repo:
        result = update(repo)
        assert isinstance(result.failures[0], Refused) and not web.asked
        assert f"dvk remote trust '{web.url('/d/iris.csv')}'" in result.failures[0].hint
    assert other.dvk("remote", "trust", web.url("/d/iris.csv")).code == 0
    with other.repo() as repo:
        assert [p.state for p in update(repo).paths] == ["unchanged"]


def test_redirects_stay_out_of_private_networks(home: Project, web: WebServer) -> None:
    web.redirects = {"/here": "/d/iris.csv", "/local": "http://127.0.0.1:1/x", "/meta": "http://169.254.169.254/latest"}
    web.redirects["/tls"] = "https://192.168.0.1/x"
    with home.repo() as repo:
        import_url(repo, web.url("/here"))
        for path in ("/local", "/meta", "/tls"):
            with pytest.raises(RemoteError, match="does not follow"):
                import_url(repo, web.url(path))


@pytest.mark.parametrize(
    "url",
    [
        *("https://user:secret@h/x", "https://h/x?X-Amz-Signature=secret", "https://h/x?token=secret", "s3://bucket"),
        *("reference::s3://b/x", "filecache::http://h/x", "ftp://h/x", "https://h", "https://h/x#y", "memory://x", ""),
        *("https://h/a\nb", "-x://y/z", "dvk://x", "https:///x"),
    ],
)
def test_urls_that_make_no_sense_or_hold_a_secret_are_refused(home: Project, url: str) -> None:
    with home.repo() as repo, pytest.raises(UsageError) as caught:
        import_url(repo, url, "x")
    assert "secret" not in str(caught.value)


def test_what_is_in_the_way_is_named(home: Project, web: WebServer) -> None:
    home.write({"code.py": b"1", "plain": b"2", "im/a": b"3"})
    home.git("add", "code.py")
    home.version({}, "im")
    with home.repo() as repo:
        for out, words in (("plain", "exists already"), ("im/x", "tracked as a whole"), ("code.py", "exists already")):
            with pytest.raises(Refused, match=words):
                import_url(repo, web.url("/d/iris.csv"), out)
        import_url(repo, web.url("/d/iris.csv"))
        with pytest.raises(Refused, match="is tracked already"):
            import_url(repo, web.url("/d/iris.csv"))
        with pytest.raises(NotFound):
            import_url(repo, web.url("/missing"), "y")
        with pytest.raises(NotFound):
            import_url(repo, "/nowhere/x")
        with pytest.raises((Refused, StorageError)):
            import_url(repo, "/tmp/", "z")
        with pytest.raises(UsageError, match="no name for the data"):
            import_url(repo, web.url("/"))
    assert not web.asked or web.asked.count("GET /d/iris.csv") == 1


def test_objects_and_folders_of_a_bucket(home: Project, s3: S3Address, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    home.environ |= s3.env
    medium = open_medium(parse_remote_url(f"s3://{bucket}"), settings=RemoteSettings(), environ=home.environ)
    assert isinstance(medium, S3Medium)

    def put(key: str, data: bytes) -> None:
        medium.write(key, [data], create_only=False)

    put("raw/a b.bin", noise(20_000_000, 4))
    put("raw/x/1", b"one")
    put("raw/x/y/2", b"two")
    with home.repo() as repo:
        import_url(repo, f"s3://{bucket}/raw/a b.bin", "a.bin")
        assert home.read("a.bin") == noise(20_000_000, 4)
        result = import_url(repo, f"s3://{bucket}/raw/x/")
        assert (result.paths[0].kind, result.paths[0].files) == ("dir", 2)
        assert files_below(home.top / "x") == {"1": b"one", "y/2": b"two"}
        again = update(repo)
        assert [(p.state, p.requests) for p in again.paths] == [("unchanged", 1), ("unchanged", 1)]
        put("raw/x/y/2", b"new")
        assert [p.state for p in update(repo).paths] == ["unchanged", "updated"]
        assert files_below(home.top / "x") == {"1": b"one", "y/2": b"new"}
        replaced = []

        def replace(_event: object) -> None:
            if not replaced:
                replaced.append(put("raw/a b.bin", noise(20_000_000, 5)))

        with pytest.raises(ChangedWhileRead):
            import_url(repo, f"s3://{bucket}/raw/a b.bin", "other.bin", on_event=replace)
        assert not (home.top / "other.bin").exists() and not (home.top / "other.bin.dvk").exists()
        with pytest.raises(NotFound):
            import_url(repo, f"s3://{bucket}/nothing")
        with pytest.raises(NotFound):
            import_url(repo, f"s3://{bucket}/nothing/", "n")


# ------------------------------------------------------------ another repository


def test_a_disk_that_writes_short_costs_an_import_no_byte(
    home: Project,
    web: WebServer,
    s3: S3Address,
    new_bucket: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one does that is nearly full: the end of a file must not be missing without a word."""
    bucket, data, real = new_bucket(), noise(700_000, 6), os.pwrite
    home.environ |= s3.env
    medium = open_medium(parse_remote_url(f"s3://{bucket}"), settings=RemoteSettings(), environ=home.environ)
    assert isinstance(medium, S3Medium)
    medium.write("x", [data], create_only=False)
    web.files["/x"] = data
    (tmp_path / "x").write_bytes(data)
    monkeypatch.setattr(os, "pwrite", lambda fd, part, at: real(fd, memoryview(part)[: (len(part) + 1) // 2], at))
    with home.repo() as repo:
        for url, name in ((f"s3://{bucket}/x", "a"), (web.url("/x"), "b"), (str(tmp_path / "x"), "c")):
            import_url(repo, url, name)
            assert home.read(name) == data, name


def test_an_import_that_cannot_put_its_file_in_place_is_no_success(
    home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"data")

    def fails(*_args: object, **_options: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "utime", fails)
        done = home.dvk("import", str(tmp_path / "x"))
    assert done.code == 3 and "1 of 1 path failed" in done.err and "dvk checkout" in done.err, done
    assert home.dvk("checkout").code == 0 and home.read("x") == b"data"


@pytest.fixture
def registry(tmp_path: Path) -> Project:
    """Two versions of a file and a folder, pushed to a folder."""
    made = Project(tmp_path / "registry", tmp_path / "home")
    made.version({"data/t.bin": noise(90_000, 1), "im/a/1": b"one", "im/b": noise(70_000, 2)}, "data/t.bin", "im")
    made.git("tag", "v1")
    made.version({"data/t.bin": noise(90_000, 3)}, "data/t.bin")
    made.push(tmp_path / "bucket")
    return made


def test_a_path_of_another_repository_follows_its_branch_or_stays_at_a_tag(home: Project, registry: Project) -> None:
    with home.repo() as repo:
        import_repo(repo, "../registry", "data/t.bin")
        import_repo(repo, "../registry", "v1:im", "images")
        import_repo(repo, str(registry.top), "v1:im/a", "part")
        assert home.read("t.bin") == noise(90_000, 3)
        assert files_below(home.top / "images") == {"a/1": b"one", "b": noise(70_000, 2)}
        assert files_below(home.top / "part") == {"1": b"one"}
        assert sources(home, "part") == {
            "commit": registry.git("rev-parse", "v1").strip(),
            "path": "im/a",
            "repo": f"file://{registry.top}",
            "rev": "v1",
        }
        assert {p.state for p in update(repo).paths} == {"unchanged"}
        registry.version({"other.bin": b"1"}, "other.bin")
        assert {p.state for p in update(repo).paths} == {"unchanged"}, "another commit, the same data"
        commit = registry.version({"data/t.bin": noise(90_000, 3) + b"!", "im/a/1": b"uno"}, "data/t.bin", "im")
        dry = update(repo, dry_run=True)
        assert {p.path: p.state for p in dry.paths} == {
            b"images": "unchanged",
            b"part": "unchanged",
            b"t.bin": "changed",
        }
        done = update(repo)
        assert {p.path: p.state for p in done.paths} == {
            b"images": "unchanged",
            b"part": "unchanged",
            b"t.bin": "updated",
        }
        assert home.read("t.bin") == noise(90_000, 3) + b"!" and sources(home, "t.bin")["commit"] == commit
        assert [p.state for p in update(repo, ["part"], rev="main").paths] == ["updated"]
        assert files_below(home.top / "part") == {"1": b"uno"} and sources(home, "part")["rev"] == "main"
        assert [p.state for p in update(repo, ["images"], rev="v1^{commit}").paths] == ["recorded"]


def test_what_the_shared_remote_has_is_not_sent_again(home: Project, registry: Project, tmp_path: Path) -> None:
    assert home.dvk("remote", "add", "origin", str(tmp_path / "bucket")).code == 0
    registry.write({"data/t.bin": b"not committed"})
    os.rename(registry.top / ".git/dvk/store", tmp_path / "gone")  # the data is on the remote alone
    with home.repo() as repo:
        import_repo(repo, "../registry", "v1:im")
        import_repo(repo, "../registry", "HEAD:data/t.bin")
        assert home.read("t.bin") == noise(90_000, 3)
        home.git("commit", "-qam", "imports")
        sent = push(repo)
    assert sent.new_bytes == 0 and sent.failures == []
    assert not (registry.top / ".git/dvk/store").exists(), "nothing was fetched into the other repository"


def test_data_that_is_nowhere_and_paths_that_are_not_tracked_there(
    home: Project, registry: Project, tmp_path: Path
) -> None:
    os.rename(registry.top / ".git/dvk/store", tmp_path / "gone")
    os.rename(tmp_path / "bucket", tmp_path / "bucket-gone")
    with home.repo() as repo:
        with pytest.raises(DvkError) as caught:
            import_repo(repo, "../registry", "data/t.bin")
        assert isinstance(caught.value, DataMissing | RemoteError | Refused)
        with pytest.raises(NotFound, match="does not track it at v1") as near:
            import_repo(repo, "../registry", "v1:t.bin")
        assert near.value.hint == "did you mean data/t.bin?"
        with pytest.raises(NotFound, match="no such revision"):
            import_repo(repo, "../registry", "v2:data/t.bin")
    assert not [name for name in os.listdir(home.top) if name not in (".git", ".gitattributes")]


def test_a_part_that_is_gone_there_is_named(home: Project, registry: Project) -> None:
    with home.repo() as repo:
        import_repo(repo, "../registry", "im/a")
        shutil.rmtree(registry.top / "im/a")
        registry.version({}, "im")
        result = update(repo)
    assert "is not any more where it was imported from" in str(result.failures[0])
    assert files_below(home.top / "a") == {"1": b"one"}


def test_an_edited_folder_is_no_import_any_more(home: Project, registry: Project) -> None:
    with home.repo() as repo:
        import_repo(repo, "../registry", "im")
    assert sources(home, "im")
    home.version({"im/new": b"x"}, "im")
    assert sources(home, "im") == {}


def test_source_lines_that_contradict_each_other_are_refused(home: Project) -> None:
    for lines in (
        (("repo", "x"), ("url", "y")),
        (("commit", "12"), ("path", "a"), ("repo", "x")),
        (("commit", "1" * 40), ("path", "../a"), ("repo", "x")),
        (("size", "-1"), ("url", "x")),
    ):
        pointer = parse(home_pointer(lines), subject="x")
        with pytest.raises(DvkError, match="makes no sense"):
            provenance_of(pointer, subject="x")
    assert provenance_of(parse(home_pointer((("note", "ours"),)), subject="x"), subject="x") is None


@pytest.mark.parametrize(
    "lines",
    [
        (("commit", "1" * 40), ("path", "x"), ("repo", "ext::sh -c 'touch ran'")),
        (("commit", "1" * 40), ("path", "x"), ("repo", "--upload-pack=touch ran")),
        (("commit", "1" * 40), ("path", "x"), ("repo", "../registry")),
        (("url", "https://user:secret@example.invalid/x"),),
    ],
)
def test_a_place_in_a_pointer_that_cannot_be_one_is_told_with_the_path(
    home: Project, lines: tuple[tuple[str, str], ...]
) -> None:
    home.version({"x": b"abc"}, "x")
    (home.top / "x.dvk").write_bytes(home_pointer(lines))
    with home.repo() as repo:
        [failure] = update(repo).failures
    assert failure.subject == "x" and "names a place that cannot be one" in failure.message and failure.hint
    assert "secret" not in str(failure) and not (home.top / "ran").exists()


def test_a_scratch_folder_that_another_import_took_for_a_leftover_is_made_again(
    home: Project, web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock it looks like what a killed run left."""
    made: list[bytes] = []
    mkdir = os.mkdir

    def taken(path: bytes | str, *args: object, **kwargs: object) -> None:
        mkdir(path, *args, **kwargs)  # type: ignore[arg-type]
        name = os.fsencode(path)
        if os.path.basename(name).startswith(b"import-"):
            made.append(name)
            if len(made) == 1:
                os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", taken)
    with home.repo() as repo:
        assert import_url(repo, web.url("/d/iris.csv")).paths[0].state == "imported"
    assert len(made) == 2 and not any(map(os.path.exists, made))


def home_pointer(source: tuple[tuple[str, str], ...]) -> bytes:
    from dvk.workspace.pointer import Pointer, format_pointer

    return format_pointer(Pointer("file", bytes([7]) * 32, 3, source=source))


def test_the_terminal_says_what_happened(home: Project, registry: Project, web: WebServer) -> None:
    done = home.dvk("import", web.url("/d/iris.csv"))
    assert done.code == 0 and "imported" in done.out and "300 kB" in done.out, done.out + done.err
    done = home.dvk("import", "--repo", "../registry", "v1:data/t.bin", "-o", "t.bin")
    assert done.code == 0 and "v1:data/t.bin" in done.out, done.err
    done = home.dvk("update")
    assert done.code == 0 and done.out.count("unchanged") == 2, done.out + done.err
    assert home.dvk("update", "--json").code == 0
    assert home.dvk("import", web.url("/nothing")).code != 0


def test_a_dry_run_looks_and_changes_nothing(home: Project, registry: Project, web: WebServer) -> None:
    with home.repo() as repo:
        assert import_url(repo, web.url("/d/iris.csv"), dry_run=True).paths[0].size == 300_000
        assert import_repo(repo, "../registry", "v1:im", dry_run=True).paths[0].files == 2
    assert os.listdir(home.top) == [".git"] and web.asked == ["HEAD /d/iris.csv"]


@pytest.mark.parametrize("at", [8, 20, 30, 36, 42, 48, 54, 60])
def test_a_killed_update_leaves_the_old_or_the_new_and_can_be_run_again(home: Project, tmp_path: Path, at: int) -> None:
    source, old, new = tmp_path / "s.bin", noise(200_000, 5), noise(200_000, 6)
    source.write_bytes(old)
    with home.repo() as repo:
        import_url(repo, str(source), "s.bin")
    source.write_bytes(new)
    argv = [sys.executable, dying.__file__, str(at), str(int(signal.SIGKILL)), "update"]
    subprocess.run(argv, cwd=home.top, env=home.environ, capture_output=True)
    assert home.read("s.bin") in (old, new)
    with home.repo() as repo:
        result = update(repo)
        assert result.failures == [] and home.read("s.bin") == new, result
        assert status(repo)[0].paths[0].modified == 0
    assert not [p for p in (home.top / ".git/dvk").iterdir() if p.name.startswith("import-")]
