"""Nothing that a repository names is contacted, read or written before the user trusts it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workbench import Bench

from dvk.commands.get import get
from dvk.commands.pull import fetch, pull
from dvk.commands.push import push
from dvk.commands.remotes import remote_add, remote_rename
from dvk.commands.repo import Repo
from dvk.commands.settings import Settings
from dvk.commands.trust import trust, trust_list
from dvk.errors import DvkError, Refused


class Listener:
    """A port that counts who knocks, and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.seen = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                self.seen += 1
                client.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A repository with one version that is here, and one that is nowhere."""
    bench = Bench(tmp_path / "work", tmp_path / "home")
    bench.git_repo.environ["DVK_CONFIG_HOME"] = str(tmp_path / "config")
    bench.add_commit({"a.csv": b"x,y\n1,2\n" * 50}, "a.csv")
    lines = (bench.top / "a.csv.dvk").read_text().splitlines()
    lines = [f"id {'ab' * 32}" if line.startswith("id ") else line for line in lines]
    bench.put({"gone.csv.dvk": ("\n".join(lines) + "\n").encode()})
    bench.git("add", "-A")
    bench.commit()
    return bench


def name_remote(bench: Bench, url: str, *, scope: str = "repo") -> None:
    """Write a remote as a stranger's commit would."""
    text = f'[remote.origin]\nurl = "{url}"\n'
    if scope == "repo":
        bench.put({"dvk.toml": f"format = 1\n{text}".encode()})
    else:
        bench.put({".git/dvk/config.toml": text.encode()})


WRITES: dict[str, Callable[[Repo], object]] = {
    "push": lambda repo: push(repo),
    "push --only-head": lambda repo: push(repo, only_head=True),
}
READS: dict[str, Callable[[Repo], object]] = {
    "fetch": lambda repo: fetch(repo, ["gone.csv"]),
    "pull": lambda repo: pull(repo, ["gone.csv"]),
    "pull --no-store": lambda repo: pull(repo, ["gone.csv"], store=False),
    "get": lambda repo: get(repo, "gone.csv", out="got.csv"),
    "push --dry-run": lambda repo: push(repo, dry_run=True),
}


def outcome(bench: Bench, work: Callable[[Repo], object]) -> DvkError | None:
    with bench.open() as repo:
        try:
            work(repo)
        except DvkError as error:
            return error
    return None


@pytest.mark.parametrize("verb", WRITES | READS)
@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/x", "ssh://127.0.0.1:{port}/x"])
def test_a_server_that_the_repository_names_sees_no_connection(
    bench: Bench, listener: Listener, verb: str, scheme: str
) -> None:
    url = scheme.format(port=listener.port)
    name_remote(bench, url)
    error = outcome(bench, (WRITES | READS)[verb])
    assert isinstance(error, Refused)
    assert error.subject == url
    assert "dvk.toml" in error.message
    assert "`dvk remote trust origin`" in error.hint
    assert listener.seen == 0


@pytest.mark.parametrize("verb", WRITES)
def test_nothing_is_sent_to_a_bucket_that_the_repository_names(bench: Bench, listener: Listener, verb: str) -> None:
    bench.git_repo.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.port}",
        "AWS_ACCESS_KEY_ID": "a" * 20,
        "AWS_SECRET_ACCESS_KEY": "b" * 40,
    }
    name_remote(bench, "s3://stranger/bucket")
    error = outcome(bench, WRITES[verb])
    assert isinstance(error, Refused) and error.subject == "s3://stranger/bucket"
    assert listener.seen == 0


def test_an_endpoint_of_the_users_own_settings_is_read_without_trust(bench: Bench, listener: Listener) -> None:
    bench.git_repo.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.port}",
        "AWS_ACCESS_KEY_ID": "a" * 20,
        "AWS_SECRET_ACCESS_KEY": "b" * 40,
    }
    name_remote(bench, "s3://team/bucket")
    with bench.open() as repo:
        remote = repo.remote(write=False)
        backend = remote.store.backend
        while "inner" in vars(backend):  # without retries
            backend = vars(backend)["inner"]
        with pytest.raises(DvkError) as caught:
            backend.stat("dvk.json")
        remote.store.close()
    assert not isinstance(caught.value, Refused)
    assert listener.seen > 0


@pytest.mark.parametrize("verb", WRITES | READS)
def test_a_folder_that_the_repository_names_is_neither_read_nor_made(bench: Bench, tmp_path: Path, verb: str) -> None:
    folder = tmp_path / "home/private"
    name_remote(bench, str(folder))
    assert isinstance(outcome(bench, (WRITES | READS)[verb]), Refused)
    assert not folder.exists()


def test_the_same_url_in_the_clones_own_settings_is_the_users_word(bench: Bench, tmp_path: Path) -> None:
    name_remote(bench, str(tmp_path / "team"), scope="local")
    assert outcome(bench, WRITES["push"]) is None


def test_trust_is_asked_once_for_a_user_and_holds_in_every_clone(bench: Bench, tmp_path: Path) -> None:
    name_remote(bench, str(tmp_path / "team"))
    with bench.open() as repo:
        done = trust(repo)
        assert (done.name, done.trusted, done.changed, done.needed) == ("origin", True, True, True)
        assert not trust(repo, "origin").changed
    assert outcome(bench, WRITES["push"]) is None
    bench.git("add", "-A")
    bench.commit()
    bench.git("clone", "-q", str(bench.top), str(tmp_path / "clone"))
    with Repo(tmp_path / "clone", environ=bench.environ) as clone:
        pull(clone, ["a.csv"])
    assert (tmp_path / "clone/a.csv").read_bytes() == bench.read("a.csv")
    other = bench.environ | {"DVK_CONFIG_HOME": str(tmp_path / "other user")}
    with Repo(tmp_path / "clone", environ=other) as clone, pytest.raises(Refused):
        pull(clone, ["gone.csv"])


def test_a_changed_url_is_a_new_question(bench: Bench, tmp_path: Path) -> None:
    name_remote(bench, str(tmp_path / "team"))
    with bench.open() as repo:
        trust(repo)
    name_remote(bench, str(tmp_path / "elsewhere"))
    assert isinstance(outcome(bench, WRITES["push"]), Refused)
    assert not (tmp_path / "elsewhere").exists()


def test_trust_can_be_taken_back(bench: Bench, tmp_path: Path) -> None:
    name_remote(bench, str(tmp_path / "team"))
    with bench.open() as repo:
        trust(repo)
        assert trust_list(repo.environ).urls == (f"file://{tmp_path}/team",)
        assert trust(repo, revoke=True).changed
    assert isinstance(outcome(bench, WRITES["push"]), Refused)


def test_what_the_user_types_here_is_trusted(bench: Bench, tmp_path: Path) -> None:
    with bench.open() as repo:
        assert not remote_add(repo, "origin", str(tmp_path / "team")).not_trusted
    assert outcome(bench, WRITES["push"]) is None
    with bench.open() as repo:
        remote_rename(repo, "origin", "team")
    with bench.open() as repo:
        Settings(repo, repo.environ).set("remote.team.url", str(tmp_path / "moved"))
    assert outcome(bench, WRITES["push"]) is None
    assert (tmp_path / "moved/dvk.json").exists()


def test_an_unwritable_home_does_not_keep_a_remote_from_being_added(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    bench.git_repo.environ["DVK_CONFIG_HOME"] = str(tmp_path / "file/x")
    with bench.open() as repo:
        assert "cannot be remembered" in remote_add(repo, "origin", str(tmp_path / "team")).not_trusted
    error = outcome(bench, WRITES["push"])
    assert isinstance(error, Refused) and "DVK_TRUST_REMOTES=" in error.hint
    bench.git_repo.environ["DVK_TRUST_REMOTES"] = str(tmp_path)
    assert outcome(bench, WRITES["push"]) is None


def test_a_fork_cannot_widen_what_the_job_trusts(bench: Bench, tmp_path: Path) -> None:
    bench.git_repo.environ["DVK_TRUST_REMOTES"] = str(tmp_path / "team")
    for url in (f"{tmp_path}/team-of-others", f"{tmp_path}", f"{tmp_path}/team/../other"):
        name_remote(bench, url)
        assert outcome(bench, WRITES["push"]) is not None, url
    assert not {"team-of-others", "other", "dvk.json"} & set(os.listdir(tmp_path))
    name_remote(bench, f"{tmp_path}/team/project")
    assert outcome(bench, WRITES["push"]) is None
