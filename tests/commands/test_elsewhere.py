"""Versions of other repositories: folders of this machine and Git URLs, without a clone of their data."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gitkit
import pytest
from gitdaemon import GitDaemon
from projects import Project, files_below, noise

from dvk.commands.elsewhere import open_elsewhere
from dvk.commands.get import get
from dvk.errors import DvkError, NotFound, Refused, RemoteDenied, RemoteUnreachable, UsageError
from dvk.workspace.git_mirror import parse_git_url


@pytest.fixture
def registry(tmp_path: Path) -> Project:
    """Two versions of a file and a folder, pushed to a folder; bare in `served/registry.git`."""
    made = Project(tmp_path / "registry", tmp_path / "home", environ={"DVK_TRUST_REMOTES": f"file://{tmp_path}/bucket"})
    made.environ.pop("GIT_ALLOW_PROTOCOL", None)
    made.version({"data/t.bin": noise(90_000, 1), "im/a/1": b"one", "im/b": noise(70_000, 2)}, "data/t.bin", "im")
    made.write({"code.py": noise(60_000, 5)})
    made.git("add", "code.py")
    made.git("commit", "-q", "-m", "code")
    made.git("tag", "v1")
    made.version({"data/t.bin": noise(90_000, 3)}, "data/t.bin")
    made.push(tmp_path / "bucket")
    made.git("clone", "-q", "--bare", str(made.top), str(tmp_path / "served/registry.git"))
    return made


@pytest.fixture
def daemon(registry: Project, tmp_path: Path) -> Iterator[GitDaemon]:
    with GitDaemon(tmp_path / "served", registry.environ) as running:
        yield running


def take(project: Project, where: str, path: str, out: Path, rev: str | None = None) -> bytes:
    with open_elsewhere(where, rev, environ=project.environ, cwd=os.fsencode(out.parent)) as there:
        get(there.repo, there.spec(os.fsencode(path)), str(out), cwd=os.fsencode(out.parent))
    return out.read_bytes() if out.is_file() else b""


def test_a_version_comes_from_a_url_without_a_clone_of_code_or_data(
    registry: Project, daemon: GitDaemon, tmp_path: Path
) -> None:
    registry.git("push", "-q", str(tmp_path / "served/registry.git"), "HEAD:main")
    url = daemon.url("registry.git")
    assert take(registry, url, "data/t.bin", tmp_path / "old", "v1") == noise(90_000, 1)
    assert take(registry, url, "data/t.bin", tmp_path / "new") == noise(90_000, 3)
    take(registry, url, "im", tmp_path / "folder", "v1")
    assert files_below(tmp_path / "folder") == {"a/1": b"one", "b": noise(70_000, 2)}
    take(registry, url, "im/a", tmp_path / "part", "v1~0")
    assert files_below(tmp_path / "part") == {"1": b"one"}
    # What was kept of it: no data, and of Git's blobs only those that were read.
    with open_elsewhere(url, "v1", environ=registry.environ) as there:
        assert not os.path.exists(there.repo.workspace.store_dir)
        top = os.fsdecode(there.repo.workspace.top)
        missing = registry.git("-C", top, "rev-list", "--objects", "--all", "--missing=print")
    assert missing.count("?") == 1, "code.py and nothing else"
    assert sum(p.stat().st_size for p in Path(top).rglob("*.pack")) < 20_000


def test_what_is_new_there_is_seen_and_a_whole_commit_id_asks_nobody(
    registry: Project, daemon: GitDaemon, tmp_path: Path
) -> None:
    url, first = daemon.url("registry.git"), registry.git("rev-parse", "v1").strip()
    assert take(registry, url, "data/t.bin", tmp_path / "1") == noise(90_000, 3)
    commit = registry.version({"data/t.bin": noise(50, 4)}, "data/t.bin")
    assert registry.dvk("push").code == 0
    registry.git("push", "-q", str(tmp_path / "served/registry.git"), "+HEAD:main")
    assert take(registry, url, "data/t.bin", tmp_path / "2") == noise(50, 4)
    with open_elsewhere(url, environ=registry.environ) as there:
        assert there.commit == commit and there.rev == "HEAD"
    assert take(registry, url, "data/t.bin", tmp_path / "3", first) == noise(90_000, 1)
    before = daemon.requests
    assert take(registry, url, "data/t.bin", tmp_path / "4", first) == noise(90_000, 1)
    assert daemon.requests == before


def test_a_work_tree_here_means_what_it_says_now_and_a_bare_one_its_head(registry: Project, tmp_path: Path) -> None:
    registry.write({"data/t.bin": b"now"})
    assert registry.dvk("add", "data/t.bin").code == 0
    assert take(registry, str(registry.top), "data/t.bin", tmp_path / "1") == b"now"
    assert take(registry, "registry", "data/t.bin", tmp_path / "2", "HEAD") == noise(90_000, 3)
    assert take(registry, str(tmp_path / "served/registry.git"), "data/t.bin", tmp_path / "3") == noise(90_000, 3)
    assert take(registry, f"file://{tmp_path}/served/registry.git", "data/t.bin", tmp_path / "4") == noise(90_000, 3)
    assert sorted(os.listdir(tmp_path / "served/registry.git")) == sorted(
        ["HEAD", "branches", "config", "description", "hooks", "info", "objects", "packed-refs", "refs"]
    ), "nothing is written into somebody's repository"


def test_a_remote_that_the_other_repository_names_needs_trust(
    registry: Project, daemon: GitDaemon, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    registry.environ |= {"HOME": str(stranger), "DVK_TRUST_REMOTES": ""}
    with pytest.raises(Refused, match=r"came with the repository") as caught:
        take(registry, daemon.url("registry.git"), "data/t.bin", tmp_path / "x")
    assert f"dvk remote trust file://{tmp_path}/bucket" in caught.value.hint
    home = Project(tmp_path / "mine", stranger)
    home.environ.pop("GIT_ALLOW_PROTOCOL", None)
    assert home.dvk("remote", "trust", f"file://{tmp_path}/bucket").code == 0
    done = home.dvk("get", "--repo", daemon.url("registry.git"), "v1:data/t.bin", "-o", "here")
    assert done.code == 0, done.err
    assert home.read("here") == noise(90_000, 1)
    assert home.dvk("remote", "trust", "--revoke", f"file://{tmp_path}/bucket").code == 0
    assert home.dvk("get", "--repo", daemon.url("registry.git"), "v1:data/t.bin", "-o", "-").code != 0


def test_a_store_that_holds_the_data_is_read_first(registry: Project, daemon: GitDaemon, tmp_path: Path) -> None:
    home = Project(tmp_path / "mine", tmp_path / "home")
    home.environ.pop("GIT_ALLOW_PROTOCOL", None)
    home.version({"copy": noise(90_000, 1)}, "copy")
    done = home.dvk("get", "--repo", daemon.url("registry.git"), "v1:data/t.bin", "-o", "here")
    assert done.code == 0, done.err  # its remote is not trusted and not asked
    assert home.read("here") == noise(90_000, 1)


def test_get_works_outside_of_any_repository(
    registry: Project, daemon: GitDaemon, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "plain").mkdir()
    outside = Project(tmp_path / "plain", tmp_path / "home", init=False, environ=registry.environ)
    outside.environ.pop("GIT_ALLOW_PROTOCOL")
    done = outside.dvk("get", "--repo", daemon.url("registry.git"), "v1:im", "-o", "images")
    assert done.code == 0, done.err
    assert files_below(tmp_path / "plain/images") == {"a/1": b"one", "b": noise(70_000, 2)}
    done = outside.dvk("get", "--repo", "../registry", "im/a/1", "-o", "-")
    assert (done.code, done.out) == (0, "one")


def test_what_does_not_exist_there_is_said_with_what_is_near(
    registry: Project, daemon: GitDaemon, tmp_path: Path
) -> None:
    url = daemon.url("registry.git")
    registry.git("tag", "v1.0-final")
    registry.git("push", "-q", str(tmp_path / "served/registry.git"), "v1.0-final")
    with pytest.raises(NotFound, match="no such revision in git://") as caught:
        take(registry, url, "data/t.bin", tmp_path / "x", "v1.0-fina")
    assert caught.value.hint == "did you mean v1.0-final?"
    with pytest.raises(NotFound, match="does not track it at v1") as caught:
        take(registry, url, "t.bin", tmp_path / "x", "v1")
    assert caught.value.hint == "did you mean data/t.bin?"
    with pytest.raises(NotFound, match="no such Git repository"):
        take(registry, daemon.url("nothing.git"), "t.bin", tmp_path / "x")
    with pytest.raises(NotFound, match="no such folder"):
        take(registry, "nowhere", "t.bin", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_server_that_is_not_there_or_says_nothing_is_no_hang(
    registry: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(RemoteUnreachable, match="cannot be read"):
        take(registry, f"http://127.0.0.1:{port}/x.git", "t", tmp_path / "x")
    monkeypatch.setattr("dvk.workspace.git_mirror._SILENCE_S", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(RemoteUnreachable, match="said nothing"),
    ):
        take(registry, f"git://127.0.0.1:{silent.getsockname()[1]}/x.git", "t", tmp_path / "x")


def test_a_server_that_wants_a_password_is_an_error_at_once(registry: Project, tmp_path: Path) -> None:
    answer = b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(RemoteDenied, match="wants a sign-in") as caught:
            take(registry, f"http://127.0.0.1:{server.getsockname()[1]}/x.git", "t", tmp_path / "x")
        assert time.monotonic() - start < 20
        assert "git ls-remote http://127.0.0.1" in caught.value.hint
        server.shutdown(socket.SHUT_RDWR)


HOSTILE = [
    *("ext::sh -c touch% /tmp/owned", "fd::3", "EXT::x", "https::x", "-oProxyCommand=x", "--upload-pack=touch x"),
    *("ssh://-oProxyCommand=x/y", "ssh://a@-oProxy/y", "-x:y", "git@-host:path", "ssh://host:99999999/x"),
    *("https://user:secret@host/x", "https://token@host/x", "http://h/x?y=1", "https://h/x#y", "git://u@h/x"),
    *("ftp://h/x", "javascript://h/x", "file://host/x", "https:///x", "https://h", "https://h/", "https://h/a/../b"),
    *("https://h/a\nb", "https://h/\x1b[31m", "ssh://h/a\0b", "https://h//x", "host:-x", "a@b@c:d"),
    "https://h/" + "x" * 1100,
    *("https://h\\@evil/x", "ssh://h%0a/x", "x+ext::y", "", "dvk://x/y", "s3://bucket/x", "https://[::1/x"),
]


def test_no_url_runs_a_program_or_carries_a_secret(tmp_path: Path) -> None:
    environ = gitkit.environ(tmp_path / "home")
    environ.pop("GIT_ALLOW_PROTOCOL")
    for url in HOSTILE:
        with pytest.raises(DvkError) as caught:
            open_elsewhere(url, environ=environ, cwd=os.fsencode(tmp_path))
        assert isinstance(caught.value, UsageError | NotFound), caught.value
        assert "secret" not in str(caught.value) + caught.value.hint
    assert not (tmp_path / "home/.cache/dvk/mirrors").exists()


def test_no_revision_is_an_option(registry: Project, daemon: GitDaemon, tmp_path: Path) -> None:
    for rev in ("--upload-pack=x", "-x", "a\nb", "\x1b[1m"):
        with pytest.raises(UsageError, match="not a revision"):
            take(registry, daemon.url("registry.git"), "t", tmp_path / "x", rev)
    assert daemon.requests == 0


def test_urls_that_people_use() -> None:
    for text, place in (
        ("git@github.com:acme/data.git", "ssh://git@github.com/acme/data.git"),
        ("host:/srv/git/x", "ssh://host/srv/git/x"),
        ("https://github.com/acme/data/", "https://github.com/acme/data"),
        ("ssh://git@host:2222/~me/x.git", "ssh://git@host:2222/~me/x.git"),
        ("http://127.0.0.1:3000/a/b", "http://127.0.0.1:3000/a/b"),
        ("http://[::1]:3000/a/b", "http://[::1]:3000/a/b"),
    ):
        url = parse_git_url(text)
        assert (str(url), str(url.place)) == (text.rstrip("/"), place)


def test_hooks_and_programs_of_others_are_not_run(registry: Project, daemon: GitDaemon, tmp_path: Path) -> None:
    """A template folder with hooks, and a `git` in the work tree that asks."""
    template = tmp_path / "template/hooks"
    template.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (template / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (template / name).chmod(0o755)
    home = Project(tmp_path / "mine", tmp_path / "home")
    home.environ.pop("GIT_ALLOW_PROTOCOL", None)
    home.write({"bin/git": f"#!/bin/sh\ntouch {tmp_path}/ran\n".encode()})
    (home.top / "bin/git").chmod(0o755)
    environ = {
        **registry.environ,
        "GIT_TEMPLATE_DIR": str(tmp_path / "template"),
        "PATH": f"{home.top}/bin:{registry.environ.get('PATH', os.environ['PATH'])}",
    }
    done = home.dvk("get", "--repo", daemon.url("registry.git"), "v1:im/a/1", "-o", "x", environ=environ)
    assert done.code == 0, done.err
    assert not (tmp_path / "ran").exists()


def test_a_bare_repository_in_a_strangers_folder_runs_nothing(registry: Project, tmp_path: Path) -> None:
    """Its settings may name programs for fetching what it lacks."""
    with GitDaemon(tmp_path / "served", registry.environ) as daemon:
        evil = tmp_path / "evil.git"
        clone = ["git", "clone", "-q", "--bare", "--filter=blob:none", daemon.url("registry.git"), str(evil)]
        subprocess.run(clone, env=registry.environ, check=True)
    registry.git("-C", str(evil), "config", "remote.origin.url", f"file://{tmp_path}/served/registry.git")
    program = f"touch {tmp_path}/ran; git-upload-pack"
    registry.git("-C", str(evil), "config", "remote.origin.uploadpack", program)
    registry.git("-C", str(evil), "config", "protocol.ext.allow", "always")
    with pytest.raises(DvkError):
        take(registry, str(evil), "data/t.bin", tmp_path / "x")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "git@127.0.0.1:1").symlink_to(evil)
    with pytest.raises(DvkError):
        take(registry, "git@127.0.0.1:1", "data/t.bin", tmp_path / "x")
    assert not (tmp_path / "ran").exists()


def test_a_listing_of_many_paths_asks_once(registry: Project, daemon: GitDaemon, tmp_path: Path) -> None:
    registry.write({f"many/{i}": b"%d" % i for i in range(30)})
    registry.version({}, *[f"many/{i}" for i in range(30)])
    registry.git("push", "-q", str(tmp_path / "served/registry.git"), "+HEAD:main")
    home = Project(tmp_path / "mine", tmp_path / "home")
    home.environ.pop("GIT_ALLOW_PROTOCOL", None)
    done = home.dvk("ls", "--repo", daemon.url("registry.git"))
    assert done.code == 0 and len(done.out.splitlines()) == 32, done.out + done.err
    assert daemon.requests <= 6, "the history, dvk.toml, and all pointers together"
    done = home.dvk("ls", "--repo", daemon.url("registry.git"), "v1:im")
    assert (done.code, done.out) == (0, "im/a/\nim/b\n")
    assert home.dvk("ls", "--repo", "../registry").out.splitlines()[-1] == "many/9"
