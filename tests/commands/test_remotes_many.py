"""Several remotes: the default first, then the others in the order of the files; any may be down or lack something."""

from __future__ import annotations

import http.server
import io
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from workbench import Bench

from dvk.commands.get import cat, get
from dvk.commands.pull import fetch, pull
from dvk.commands.push import push
from dvk.commands.remote_check import remote_check
from dvk.commands.remotes import remote_add
from dvk.commands.repo import Repo
from dvk.errors import DataMissing, NotFound, NotOurs, Refused, RemoteUnreachable, StorageError
from dvk.events import Event, Note
from dvk.testing.s3server import aws_env, free_ports

A, B = b"a,1\n" * 4000, b"b,2\n" * 4000


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """a.csv was pushed to `first`, b.csv and img to `second`; `first` is the default."""
    bench = Bench(tmp_path / "work", tmp_path / "home")
    for name in ("first", "second"):
        with bench.open() as repo:
            remote_add(repo, name, str(tmp_path / name))
    bench.add_commit({"a.csv": A, "b.csv": B, "img/x": b"x" * 999}, "a.csv", "b.csv", "img")
    for path, remote in ((["a.csv"], "first"), (["b.csv", "img"], "second")):
        with bench.open() as repo:
            assert push(repo, path, remote=remote).sent
    return bench


def clone(bench: Bench) -> Path:
    top = bench.top.parent / f"clone {len(list(bench.top.parent.iterdir()))}"
    bench.git("clone", "-q", str(bench.top), str(top))
    return top


@pytest.mark.parametrize("store", [True, False])
def test_pull_takes_each_path_from_the_first_remote_that_has_it(bench: Bench, store: bool) -> None:
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo:
        done = pull(repo, store=store)
    assert not done.failures
    assert done.fetch.remote == "first, second"
    assert ((top / "a.csv").read_bytes(), (top / "b.csv").read_bytes()) == (A, B)
    assert (top / "img/x").read_bytes() == b"x" * 999


def test_a_remote_that_has_all_is_the_only_one_that_is_asked(bench: Bench, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "second")
    with Repo(clone(bench), environ=bench.environ) as repo:
        done = fetch(repo, ["a.csv"])
    assert (done.remote, done.fetched, done.failures) == ("first", 1, [])
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("store", [True, False])
def test_a_remote_that_is_named_is_the_only_one(bench: Bench, store: bool) -> None:
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo:
        done = pull(repo, remote="second", store=store)
    (failure,) = done.failures
    assert isinstance(failure, DataMissing) and failure.subject == "a.csv"
    assert "on second" in failure.message and "first" not in failure.message
    assert (top / "b.csv").read_bytes() == B


def test_get_and_cat_read_from_whoever_has_it(bench: Bench) -> None:
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo:
        out = io.BytesIO()
        assert cat(repo, "b.csv", out).remote == "second"
        assert out.getvalue() == B
        assert get(repo, "img", out="got").remote == "second"
        assert get(repo, "a.csv", out="got.csv").remote == "first"
        with pytest.raises(DataMissing, match="on first"):
            cat(repo, "b.csv", io.BytesIO(), remote="first")


def unreachable(bench: Bench, name: str) -> None:
    """Let a remote be a server where nobody listens."""
    bench.git_repo.environ |= aws_env(f"http://127.0.0.1:{free_ports(1)[0]}")
    text = (bench.top / "dvk.toml").read_text()
    text = text.replace(f'url = "{bench.top.parent}/{name}"', 'url = "s3://gone/away"')
    bench.put({"dvk.toml": text.encode()})
    bench.git("add", "-A")
    bench.commit("moved away")


def settle(top: Path, name: str) -> None:
    (top / ".git/dvk").mkdir(exist_ok=True)
    (top / ".git/dvk/config.toml").write_text(f"[remote.{name}]\ndeadline_s = 1\nconnect_timeout_s = 1\n")


@pytest.mark.parametrize("store", [True, False])
def test_a_remote_that_is_down_is_passed_over_and_named(bench: Bench, store: bool) -> None:
    unreachable(bench, "first")
    top = clone(bench)
    settle(top, "first")
    heard: list[Event] = []
    with Repo(top, environ=bench.environ) as repo:
        done = pull(repo, store=store, on_event=heard.append)
        with Repo(top, environ=bench.environ) as again:
            assert cat(again, "b.csv", io.BytesIO()).size == len(B)
    assert (top / "b.csv").read_bytes() == B
    (failure,) = done.failures
    assert "second" in failure.message and "first could not be asked" in failure.message
    assert any(isinstance(e, Note) and e.subject == "first" for e in heard)


def test_when_nobody_can_be_asked_the_first_problem_is_the_answer(bench: Bench, tmp_path: Path) -> None:
    unreachable(bench, "first")
    shutil.rmtree(tmp_path / "second")
    top = clone(bench)
    settle(top, "first")
    for work in (fetch, pull, lambda repo: pull(repo, store=False), lambda repo: cat(repo, "a.csv", io.BytesIO())):
        with Repo(top, environ=bench.environ) as repo, pytest.raises(RemoteUnreachable):
            work(repo)


def test_with_one_remote_its_error_is_the_answer(bench: Bench, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "first")
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo, pytest.raises((NotOurs, StorageError)):
        pull(repo, remote="first")
    with Repo(top, environ=bench.environ) as repo, pytest.raises(NotFound):
        pull(repo, remote="nobody")


def test_an_untrusted_remote_is_passed_over_and_never_read(bench: Bench, tmp_path: Path) -> None:
    top = clone(bench)
    stranger = bench.environ | {
        "DVK_CONFIG_HOME": str(tmp_path / "stranger"),
        "DVK_TRUST_REMOTES": str(tmp_path / "second"),
    }
    with Repo(top, environ=stranger) as repo:
        done = pull(repo)
    assert [f.subject for f in done.failures] == ["a.csv"]
    assert "first could not be asked" in done.failures[0].message
    assert (top / "b.csv").read_bytes() == B


def test_a_damaged_remote_is_healed_by_the_next(bench: Bench, tmp_path: Path) -> None:
    with bench.open() as repo:
        push(repo, remote="second")
    for pack in (tmp_path / "first/p").rglob("*"):
        if pack.is_file():
            pack.chmod(0o644)
            data = bytearray(pack.read_bytes())
            data[60] ^= 1
            pack.write_bytes(data)
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo:
        assert not pull(repo).failures
    assert (top / "a.csv").read_bytes() == A


def test_the_order_is_the_default_then_that_of_the_files(bench: Bench) -> None:
    with bench.open() as repo:
        remote_add(repo, "alpha", "/nowhere/alpha")
    with bench.open() as repo:
        assert repo.workspace.config.remote_order() == ["first", "second", "alpha"]
        remote_add(repo, "zeta", "/nowhere/zeta", default=True)
    with bench.open() as repo:
        assert repo.workspace.config.remote_order() == ["zeta", "first", "second", "alpha"]


class Mirror(http.server.SimpleHTTPRequestHandler):
    """A static server that knows ranges."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not path.is_file():
            return super().do_GET()
        data = path.read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are silent."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """`tmp_path` behind a plain web server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("store", [True, False])
def test_a_mirror_behind_a_web_server_is_read_and_never_written(bench: Bench, web: str, store: bool) -> None:
    with bench.open() as repo:
        push(repo, remote="first")
        remote_add(repo, "mirror", f"{web}/first")
    with bench.open() as repo, pytest.raises(Refused, match="only be read"):
        push(repo, remote="mirror")
    with bench.open() as repo:
        checked = remote_check(repo, "mirror")
        assert checked.fit and checked.store, checked.failures
    bench.git("add", "-A")
    bench.commit("the mirror")
    top = clone(bench)
    with Repo(top, environ=bench.environ) as repo:
        assert not pull(repo, remote="mirror", store=store).failures
    assert (top / "a.csv").read_bytes() == A and (top / "img/x").exists()


def test_a_mirror_of_nothing_is_named(bench: Bench, web: str) -> None:
    with bench.open() as repo:
        remote_add(repo, "mirror", f"{web}/nothing")
    with bench.open() as repo:
        assert [f.message.partition(":")[0] for f in remote_check(repo, "mirror").failures] == ["not-ours"]
