"""Every fault of a network or server, on every verb that touches a remote, against a real S3 server.

The promise: either the verb succeeds with identical bytes, or it ends with a clear error within its deadline; nothing
is lost, and the same command succeeds when the fault is gone. docs/remote-faults.md is the table of what happened,
written by `DVK_TEST_WRITE_DOCS=1 pytest -m slow tests/commands/test_remote_faults.py`.
"""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from blake3 import blake3
from workbench import Bench

from dvk.commands.checkout import checkout
from dvk.commands.get import cat, get
from dvk.commands.ls import ls
from dvk.commands.pull import fetch, pull
from dvk.commands.push import push
from dvk.commands.remote_check import remote_check
from dvk.commands.remotes import remote_add
from dvk.commands.repo import Repo
from dvk.commands.upgrade import upgrade
from dvk.errors import DvkError
from dvk.store.descriptor import KEY, Descriptor, format_descriptor
from dvk.store.profiles import known_profiles
from dvk.testing.http_proxy import FAULTS, HttpProxy
from dvk.testing.s3server import S3Address, aws_env

DOCS = Path(__file__).parents[2] / "docs/remote-faults.md"
VERBS = ("push", "fetch", "pull", "get", "cat", "ls", "check", "upgrade")
#: `check` and `upgrade` are `dvk remote check` and `dvk remote upgrade`.
#: Every other request, and all but the first.
MODES = {"some": {"every": 2}, "all": {"skip": 1}}
#: These run with every change; the whole table takes half an hour.
DAILY = ("503", "reset-during", "lost-reply", "truncated-matching", "flipped", "expired-token")
LIMIT_S = {"check": 150.0}  # it asks some sixty things, each of which a busy server may put off for a second
USUAL_LIMIT_S = 40.0
OLD_STORE = Descriptor("7" * 32, ("raw", "zstd"), known_profiles())
SETTINGS = {"connect_timeout_s": "1", "read_timeout_s": "1", "deadline_s": "3"}


@dataclass(frozen=True)
class World:
    """A bucket behind a proxy, a repository to push from, and a remote to pull from; both as templates."""

    proxy: HttpProxy
    environ: dict[str, str]
    bucket: str
    source: Path
    clone: Path
    data: dict[str, bytes]


@pytest.fixture(scope="module")
def world(s3: S3Address, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("faults")
    bucket = f"faults{os.getpid()}"
    s3.create_bucket(bucket)
    rng = random.Random(7)
    table = "\n".join(f"{i},{rng.random()}" for i in range(2_500)).encode()
    data = {"a.csv": table + b"\nlast,row\n"} | {f"img/{i:02}.bin": rng.randbytes(900 + i) for i in range(12)}
    with HttpProxy(s3.port) as proxy:
        bench = Bench(place / "source", place / "home")
        bench.git_repo.environ |= aws_env(proxy.endpoint_url)
        bench.add_commit({"a.csv": table}, "a.csv")
        bench.add_commit(dict(data), "a.csv", "img")
        shutil.copytree(bench.top, place / "bare source")
        with bench.open() as repo:
            remote_add(repo, "origin", f"s3://{bucket}/ready", settings=SETTINGS)
        with bench.open() as repo:
            push(repo)
        bench.git("add", "-A")
        bench.commit("the remote")
        bench.git("clone", "-q", str(bench.top), str(place / "clone"))
        settings = "".join(f"{k} = {v}\n" for k, v in SETTINGS.items())
        (place / "clone/.git/dvk").mkdir()
        (place / "clone/.git/dvk/config.toml").write_text(f"[remote.origin]\n{settings}")
        yield World(proxy, dict(bench.environ), bucket, place / "bare source", place / "clone", data)


def files_of(top: Path) -> dict[str, bytes]:
    found = {}
    for folder, folders, names in os.walk(top):
        folders[:] = [f for f in folders if f != ".git"]
        for name in names:
            if not name.endswith((".dvk", ".toml", ".gitattributes")):
                found[str((Path(folder) / name).relative_to(top))] = (Path(folder) / name).read_bytes()
    return found


class Cell:
    """One verb in a repository of its own."""

    def __init__(self, world: World, verb: str, place: Path) -> None:
        self.world, self.verb, self.top, self.place = world, verb, place / "work", place
        self.heard: dict[str, bytes] = {}
        own = verb in ("push", "check", "upgrade")  # what writes has a remote of its own
        shutil.copytree(world.source if own else world.clone, self.top, symlinks=True)
        if own:
            self.url = f"s3://{world.bucket}/{random.SystemRandom().getrandbits(64):x}"
            with self.open() as repo:
                remote_add(repo, "origin", self.url, scope="local", settings=SETTINGS)
        if verb in ("check", "upgrade"):
            world.proxy.heal()
            with self.open() as repo:
                repo.remote(write=True).store.backend.put(KEY, [format_descriptor(OLD_STORE)])

    def open(self) -> Repo:
        return Repo(self.top, environ=self.world.environ)

    def be_patient(self) -> None:
        """Have time from now on: a machine with much to do is no fault."""
        path = self.top / ".git/dvk/config.toml"
        text, changed = re.subn(r"((?:timeout|deadline)_s) = .*", r"\1 = 30", path.read_text())
        assert changed == len(SETTINGS)
        path.write_text(text)

    def run(self) -> str:
        """Run the verb: "ok", or the kinds of its errors."""
        return " ".join(sorted({e.kind for e in self.errors()})) or "ok"

    def error(self) -> DvkError | None:
        """Run the verb; its first error."""
        return next(iter(self.errors()), None)

    def errors(self) -> list[DvkError]:
        """Run the verb; its errors, each of which says something."""
        began = time.monotonic()
        self.heard = {}
        errors: list[DvkError] = []
        try:
            with self.open() as repo:
                if self.verb == "push":
                    errors = push(repo).failures
                elif self.verb == "fetch":
                    errors = fetch(repo).failures
                elif self.verb == "pull":
                    errors = pull(repo).failures
                elif self.verb == "cat":
                    sink = io.BytesIO()
                    cat(repo, "a.csv", sink)
                    self.heard["a.csv"] = sink.getvalue()
                elif self.verb == "ls":
                    self.heard = {os.fsdecode(e.path): e.id or b"" for e in ls(repo, "img", recursive=True).entries}
                elif self.verb == "check":
                    errors = remote_check(repo).failures
                elif self.verb == "upgrade":
                    upgrade(repo)
                else:
                    errors = get(repo, "img", out=str(self.place / "out"), force=True).failures
        except DvkError as error:
            errors = [error]
        assert time.monotonic() - began < LIMIT_S.get(self.verb, USUAL_LIMIT_S)
        for error in errors:
            assert error.message and not re.search(r"Traceback|Errno|0x[0-9a-f]{6}", str(error)), error
        return errors

    def check(self, outcome: str) -> None:
        """What is at a final name is right, whatever happened; and after success all of it is there."""
        data = self.world.data
        if self.verb == "push":
            assert files_of(self.top) == data  # what is pushed is never touched
            if outcome == "ok":
                self.restore_elsewhere()
            return
        if self.verb in ("cat", "ls"):
            img = {name: blake3(content).digest() for name, content in data.items() if name.startswith("img/")}
            wanted = {"a.csv": data["a.csv"]} if self.verb == "cat" else img
            assert self.heard == (wanted if outcome == "ok" else {})
            return
        if self.verb in ("check", "upgrade"):
            self.check_store(outcome)
            return
        found = files_of(self.place / "out") if self.verb == "get" else files_of(self.top)
        wanted = {k[4:]: v for k, v in data.items() if k.startswith("img/")} if self.verb == "get" else data
        assert all(wanted[name] == content for name, content in found.items())
        if outcome == "ok" and self.verb != "fetch":
            assert found == wanted
        if outcome == "ok" and self.verb == "fetch":
            with self.open() as repo:
                assert not checkout(repo).failures
            assert files_of(self.top) == wanted

    def check_store(self, outcome: str) -> None:
        """dvk.json is the old one or the new one, whole, and nothing but probes came beside it."""
        self.world.proxy.heal()
        with self.open() as repo:
            store = repo.remote(write=False).store
            found = store.describe()
            keys = {item.key for item in store.backend.survey("")}
        assert found in (OLD_STORE, OLD_STORE.raised())
        assert (found == OLD_STORE.raised()) >= (self.verb == "upgrade" and outcome == "ok")
        assert all(key == KEY or key.startswith("check/") for key in keys)

    def restore_elsewhere(self) -> None:
        """An independent clone restores what was pushed, without the fault."""
        self.world.proxy.heal()
        other = self.place / f"other {len(list(self.place.iterdir()))}"
        shutil.copytree(self.world.clone, other, symlinks=True)
        with Repo(other, environ=self.world.environ) as repo:
            remote_add(repo, "copy", self.url, scope="local")
        with Repo(other, environ=self.world.environ) as repo:
            assert not pull(repo, remote="copy").failures
        assert files_of(other) == self.world.data


def try_cell(world: World, fault: str, verb: str, mode: str, place: Path) -> str:
    """Run one cell of the table; what came of it."""
    cell = Cell(world, verb, place)
    world.proxy.heal()
    world.proxy.spoil(fault, times=None, **MODES[mode])
    outcome = cell.run()
    hit = world.proxy.spoiled
    if mode == "some":
        world.proxy.heal()
    cell.check(outcome)
    world.proxy.heal()
    cell.be_patient()
    assert cell.run() == "ok"
    cell.check("ok")
    assert hit, "the fault never came"
    return outcome


@pytest.mark.parametrize("library", ["obstore", "fsspec"])
@pytest.mark.parametrize(("verb", "mode"), [("push", "some"), ("pull", "all")])
@pytest.mark.parametrize("fault", DAILY)
def test_success_with_identical_bytes_or_a_clear_error_and_success_later(
    world: World, tmp_path: Path, fault: str, verb: str, mode: str, library: str
) -> None:
    world = replace(world, environ={**world.environ, "DVK_BACKEND": library})
    assert try_cell(world, fault, verb, mode, tmp_path) in ("ok", published()[fault][verb][mode])


@pytest.mark.parametrize(("verb", "skip"), [("push", 2), ("push", 6), ("push", 12), ("pull", 1), ("pull", 3)])
def test_a_token_that_expires_in_the_middle_of_a_transfer_is_named_and_what_arrived_is_kept(
    world: World, tmp_path: Path, skip: int, verb: str
) -> None:
    cell = Cell(world, verb, tmp_path)
    world.proxy.heal()
    world.proxy.spoil("expired-token", times=None, skip=skip)
    error = cell.error()
    assert error is not None and "expired" in error.message and "aws sso login" in error.hint
    cell.check(error.kind)
    world.proxy.heal()
    cell.be_patient()
    assert cell.run() == "ok"
    cell.check("ok")


@pytest.mark.parametrize("key", ["/dvk.json", "/j/", "/p/", "/m/", "/l/"])
def test_an_upload_whose_reply_is_lost_is_recognised_as_ours(world: World, tmp_path: Path, key: str) -> None:
    """The first try was applied, so a create-only one finds its own object; nothing is sent under another name."""
    cell = Cell(world, "push", tmp_path)
    cell.be_patient()
    world.proxy.heal()
    world.proxy.spoil("lost-reply", method="PUT", key=key, times=1)
    assert cell.run() == "ok" and world.proxy.spoiled == 1
    cell.check("ok")


@pytest.mark.parametrize("verb", ["push", "pull", "get", "check"])
def test_a_stalled_transfer_ends_within_the_deadline(world: World, tmp_path: Path, verb: str) -> None:
    """Silence in the middle of a body, on every try: an error within seconds, not in ten minutes."""
    cell = Cell(world, verb, tmp_path)
    world.proxy.heal()
    world.proxy.spoil("stall", times=None, skip=1)
    began = time.monotonic()
    error = cell.error()
    assert error is not None and error.kind == "remote-unreachable" and time.monotonic() - began < 20
    assert "network" in error.hint
    world.proxy.heal()
    cell.be_patient()
    assert cell.run() == "ok"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_fault_on_every_verb_and_the_table_of_results(world: World, tmp_path: Path) -> None:
    results: dict[str, dict[str, dict[str, str]]] = {}
    for fault in FAULTS:
        for verb in VERBS:
            for mode in MODES:
                outcome = try_cell(world, fault, verb, mode, tmp_path / f"{fault} {verb} {mode}")
                results.setdefault(fault, {}).setdefault(verb, {})[mode] = outcome
                print(fault, verb, mode, outcome, flush=True)
    if os.environ.get("DVK_TEST_WRITE_DOCS"):
        DOCS.write_text(page(results))
    wrong = [
        (fault, verb, mode, found)
        for fault, verbs in results.items()
        for verb, modes in verbs.items()
        for mode, found in modes.items()
        if found not in ("ok", published()[fault][verb][mode])  # luck with which requests were hit is fine
    ]
    assert not wrong


def test_the_table_speaks_of_every_fault_and_verb() -> None:
    found = published()
    assert list(found) == list(FAULTS)
    assert all(set(verbs) == set(VERBS) for verbs in found.values())
    for fault, meaning in FAULTS.items():
        assert f"| `{fault}` | {meaning} |" in DOCS.read_text()


def published() -> dict[str, dict[str, dict[str, str]]]:
    """fault -> verb -> mode -> outcome, from the page."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in DOCS.read_text().splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(row) == 2 + len(VERBS):
            found[row[0].strip("`")] = {
                verb: dict(zip(MODES, (part.strip() for part in cell.split("/")), strict=True))
                for verb, cell in zip(VERBS, row[2:], strict=True)
            }
    return found


def page(results: dict[str, dict[str, dict[str, str]]]) -> str:
    rows = ""
    for fault, verbs in results.items():
        cells = " | ".join(" / ".join(verbs[verb][mode] for mode in MODES) for verb in VERBS)
        rows += f"| `{fault}` | {FAULTS[fault]} | {cells} |\n"
    kills = DOCS.read_text().partition("## Kills")
    return PAGE.format(verbs=" | ".join(VERBS), lines="---|" * len(VERBS), rows=rows, kills="".join(kills[1:]))


PAGE = """# Faults of networks and servers

<!-- Written by tests/commands/test_remote_faults.py; see there how. -->

Each verb that touches a remote, run against a real S3 server (SeaweedFS) behind a proxy that spoils its answers
(`dvk.testing.http_proxy`). A cell has two results: with every other request spoilt, and with all but the first.
"ok" means that every byte was as committed; anything else is the kind of the error ([exit-codes.md](exit-codes.md)).

In every cell, whatever the result: nothing at its final name was wrong, what was pushed from was untouched, an error
came within the deadline, and the same command succeeded as soon as the fault was gone. `check` and `upgrade` stand for
`dvk remote check` and `dvk remote upgrade`; a `check` that ends in "remote" has named what is wrong with the remote.

| fault | what it does | {verbs} |
|---|---|{lines}
{rows}
The table is of obstore as the way to S3, with a deadline of three seconds; some of it runs with every change, and with
s3fs too. Besides, one by one (`tests/commands/test_remote_faults.py`): an upload of each kind of object whose reply is
lost, a token that expires in the middle of a transfer, a transfer that stalls.

{kills}"""
