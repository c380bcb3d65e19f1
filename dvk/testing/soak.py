"""Kills `dvk push` and `dvk pull` at many points and looks whether every byte is there afterwards.

    python -m dvk.testing.soak --kills 200 --server-kills 20

Problem: the moments at which a kill hurts are few and nobody knows them. So one remote lives through hundreds of
them: each round makes a new version, kills its push, runs the same push again, kills a pull of it, runs the same pull
again and compares every byte with what was committed. All the while a third clone reads versions that were told done,
straight from the remote, and may never see a wrong byte or an error.

A point is drawn from a seed that is printed: the Nth change to the disk, the Nth request to the server (before it is
applied, or after it and before the answer), or a share of the time that the command takes. Seed and round replay it;
threads may make the order of requests differ. With `--server-kills` it is the server that is killed, at the Nth
request, and started again while dvk is still trying. Packs are kept small (`PACK_BYTES`), so that a push has several.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from blake3 import blake3

from dvk.commands.add import add
from dvk.commands.get import get
from dvk.commands.pull import fetch, pull
from dvk.errors import DvkError
from dvk.testing.command import Broken, end, say, seed_or_new
from dvk.testing.http_proxy import HttpProxy
from dvk.testing.s3server import S3Server
from dvk.testing.stages import Files, Stage, differences, environ_of, files_of

Kind = Literal["disk", "before", "after", "time"]
PACK_BYTES = 512 << 10
_LIMIT_S = 300.0
_DARK_S = 1.5  # how long a killed server stays away, at least


@dataclass(frozen=True, slots=True)
class Point:
    """Where to strike: a share of all changes to the disk, requests or seconds that the command has."""

    kind: Kind
    share: float


@dataclass(slots=True)
class Report:
    """What was done, and that all of it went well."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)  #: "push disk" -> how many
    finished: int = 0  #: commands that were done before their point came
    server_kills: int = 0
    versions: int = 0
    compared_files: int = 0
    compared_bytes: int = 0
    reads: int = 0  #: versions that the third clone read
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """Commands that were killed."""
        return sum(self.kills.values())

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {name}" for name, n in sorted(self.kills.items()))
        return (
            f"seed {self.seed}: {self.killed} kills of dvk ({kinds}; {self.finished} came too late), "
            f"{self.server_kills} of the server; {self.versions} versions, {self.compared_files:,} files "
            f"({self.compared_bytes / 1e6:,.0f} MB) compared, {self.reads} reads by a third clone meanwhile; "
            f"0 wrong, 0 lost, {self.seconds:.0f} s"
        )


class _Proxy(HttpProxy):
    """Passes requests on, and calls `hit` at one of them."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._turn = threading.Lock()
        self._at, self._when = 0, ""
        self._hit: Callable[[], object] = lambda: None
        self.count = 0  #: requests since `aim`
        self._done = 0

    def aim(self, at: int, when: Literal["before", "after", ""], hit: Callable[[], object]) -> None:
        """From now on count; call `hit` before or after the `at`-th request is applied."""
        with self._turn:
            self._at, self._when, self._hit, self.count, self._done = at, when, hit, 0, 0

    def due(self, method: str, path: str) -> str:
        with self._turn:
            self.count += 1
            strike = self._when == "before" and self.count == self._at
        if strike:
            self._hit()
        return super().due(method, path)

    def applied(self, method: str, path: str) -> None:  # noqa: ARG002
        with self._turn:
            self._done += 1
            strike = self._when == "after" and self._done == self._at
        if strike:
            self._hit()


class Soak:
    """One remote and its clones through many kills. Prints a line now and then through `say`."""

    def __init__(self, place: str, server: S3Server, *, seed: int, say: Callable[[str], None]) -> None:
        self._place, self._server, self._say = place, server, say
        self._rng = random.Random(seed)
        self.report = Report(seed)
        self._where = "the beginning"
        self._began = time.monotonic()
        bucket = f"soak-{secrets.token_hex(4)}"
        server.create_bucket(bucket)
        self._url = f"s3://{bucket}/team"
        self._proxy = _Proxy(server.address.port)
        self._scale: dict[str, tuple[int, int, float]] = {}  # verb -> changes to the disk, requests, seconds
        self._told: list[tuple[str, Files]] = []  # commits whose push was told done, with what they hold
        self._data: dict[str, bytes] = {}
        self._wrong: list[str] = []
        self._reading = threading.Event()
        self._shaky = False  # the server is being killed, so the third clone may be told so

    # ------------------------------------------------------------ the whole

    def run(self, kills: int, server_kills: int) -> Report:
        """Kill dvk and the server so many times.

        Raises:
            Broken: a byte was wrong or lost, or the same command did not succeed.
        """
        with self._proxy:
            self._source = self._first()
            reader = threading.Thread(target=self._read_all_the_while)
            self._calibrate()
            self._reading.set()
            reader.start()
            try:
                rounds = 0
                while self.report.killed < kills:
                    self._round(rounds)
                    rounds += 1
                self._shaky = True
                while self.report.server_kills < server_kills:
                    self._round(rounds, server=True)
                    rounds += 1
            finally:
                self._reading.clear()
                reader.join()
            self._last_look()
        self.report.seconds = time.monotonic() - self._began
        return self.report

    def _round(self, n: int, *, server: bool = False) -> None:
        """A new version; its push and a pull of it, each killed once and run again."""
        self._where = f"seed {self.report.seed}, round {n}"
        self._check_reader()
        expected = self._new_version()
        self._strike(self._source, "push", server)
        if files_of(self._source.top) != expected:
            raise Broken(f"{self._where}: a push changed the work tree")
        self._again(self._source, "push")
        commit = self._source.git("rev-parse", "HEAD")
        # Every other pull is into an empty clone, which is also the proof of the push; the rest go on from before.
        clone = self._clone("fresh") if n % 2 == 0 else self._follower()
        before = files_of(clone.top)
        self._strike(clone, "pull", server)
        for path, found in files_of(clone.top).items():
            if found not in (expected.get(path), before.get(path)):
                raise Broken(f"{self._where}: after a killed pull {path} is neither the old file nor the new one")
        self._again(clone, "pull")
        self._compare(files_of(clone.top), expected, f"{self._where}: after the same pull again")
        self._told.append((commit, expected))
        self.report.versions += 1
        if n % 10 == 9:
            self._say(f"{self.report.killed} kills, {self.report.reads} reads, {time.monotonic() - self._began:.0f} s")

    # ------------------------------------------------------------ kills

    def _draw(self, kinds: Sequence[Kind]) -> Point:
        return Point(self._rng.choice(kinds), self._rng.random())

    def _strike(self, clone: Stage, verb: str, server: bool) -> None:
        """Run a verb and kill it, or the server under it, at a point of the seed."""
        point = self._draw(("before", "after") if server else get_args(Kind))
        disk, requests, seconds = self._scale[verb]
        self._where = f"{self._where.split(';')[0]}; {verb} struck at {point.share:.3f} of {point.kind}"
        dead = threading.Event()
        at_disk = 1 + int(point.share * disk) if point.kind == "disk" else 1 << 40
        with self._program(clone, verb, at_disk) as child:

            def hit() -> None:
                if server:
                    self._server.stop()
                    dead.set()
                else:
                    child.send_signal(signal.SIGKILL)

            when = point.kind if point.kind in ("before", "after") else ""
            self._proxy.aim(1 + int(point.share * requests), when, hit)
            assert child.stderr is not None
            child.stderr.readline()  # ready
            if point.kind == "time":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(point.share * seconds)
                child.send_signal(signal.SIGKILL)
            if server:
                self._raise_the_dead(dead, child)
            said = os.fsdecode(child.stderr.read())
            code = child.wait(_LIMIT_S)
        self._proxy.aim(0, "", lambda: None)
        if "Traceback" in said:
            raise Broken(f"{self._where}: {said}")
        if server:
            self.report.server_kills += dead.is_set()
        elif code == -signal.SIGKILL:
            name = f"{verb} {point.kind}"
            self.report.kills[name] = self.report.kills.get(name, 0) + 1
        elif code == 0:
            self.report.finished += 1
        else:
            raise Broken(f"{self._where}: exit code {code}: {said}")

    def _raise_the_dead(self, dead: threading.Event, child: subprocess.Popen[bytes]) -> None:
        """Start a killed server again, while the command is trying to reach it."""
        while not dead.wait(0.05):
            if child.poll() is not None:
                return
        time.sleep(_DARK_S)
        self._server.start()

    @contextlib.contextmanager
    def _program(self, clone: Stage, verb: str, at_disk: int) -> Iterator[subprocess.Popen[bytes]]:
        argv = [sys.executable, "-c", _CHILD, str(at_disk), str(int(signal.SIGKILL)), verb]
        # What it says fits a pipe that nobody reads for a while: notes, and an error.
        with subprocess.Popen(
            argv, cwd=clone.top, env=clone.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    def _calibrate(self) -> None:
        """How many changes to the disk, requests and seconds each verb takes undisturbed."""
        expected = self._new_version()
        clones = {"push": self._source, "pull": self._clone("fresh")}
        for verb, clone in clones.items():
            self._proxy.aim(0, "", lambda: None)
            with self._program(clone, verb, 0) as child:
                assert child.stderr is not None
                child.stderr.readline()
                began = time.monotonic()
                said = os.fsdecode(child.stderr.read())
                if child.wait(_LIMIT_S):
                    raise Broken(f"an undisturbed {verb} failed: {said}")
            self._scale[verb] = (int(said.splitlines()[-1]), self._proxy.count, time.monotonic() - began)
        self._compare(files_of(clones["pull"].top), expected, "an undisturbed pull")
        self._told.append((self._source.git("rev-parse", "HEAD"), expected))
        self._say("; ".join(f"{v}: {d} changes, {r} requests, {s:.2f} s" for v, (d, r, s) in self._scale.items()))

    def _again(self, clone: Stage, verb: str) -> None:
        """The same command, undisturbed: it has to succeed."""
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(1 << 40), "9", verb],
            cwd=clone.top,
            env=clone.environ,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise Broken(f"{self._where}: the same command ended with {done.returncode}: {os.fsdecode(done.stderr)}")

    # ------------------------------------------------------------ data and clones

    def _environ(self, endpoint_url: str) -> dict[str, str]:
        mine = {"DVK_TRUST_REMOTES": self._url, "DVK_HOOKS": "0", "AWS_ENDPOINT_URL": endpoint_url}
        return {**environ_of(self._place), **self._server.env, **mine}

    def _first(self) -> Stage:
        clone = Stage(os.path.join(self._place, "source"), environ=self._environ(self._proxy.endpoint_url))
        clone.init(self._url)
        rows = "\n".join(f"{i},{self._rng.random()}" for i in range(12_000))
        self._data = {"table.csv": rows.encode(), "model.bin": self._rng.randbytes(900_000)}
        self._data |= {f"data/{i % 4}/{i:03}.bin": self._rng.randbytes(self._rng.randrange(60_000)) for i in range(60)}
        return clone

    def _new_version(self) -> Files:
        """Edit, add and commit, as somebody would who works with these data; what the commit holds."""
        rng, data = self._rng, self._data
        for path in rng.sample(sorted(p for p in data if p.startswith("data/")), 6):
            data[path] = rng.randbytes(rng.randrange(90_000))
        name = f"data/{rng.randrange(4)}/{rng.getrandbits(32):08x}.bin"
        gone = rng.choice(sorted(p for p in data if p.startswith("data/")))
        del data[gone]
        data[name] = rng.randbytes(rng.randrange(200_000))
        data["table.csv"] += f"\n{rng.random()},{rng.random()}".encode() * 50
        model, at = bytearray(data["model.bin"]), rng.randrange(500_000)
        model[at : at + 300_000] = rng.randbytes(300_000)
        data["model.bin"] = bytes(model)
        with contextlib.suppress(FileNotFoundError):
            self._source.write({gone: None})
        self._source.write(data)
        with self._source.repo() as repo:
            add(repo, ["data", "table.csv", "model.bin"])
        self._source.git("commit", "-q", "-m", "a version")
        return {path: (blake3(content).hexdigest(), len(content)) for path, content in data.items()}

    def _clone(self, name: str) -> Stage:
        """A fresh clone, which holds pointers and no data."""
        clone = Stage(os.path.join(self._place, name), environ=self._source.environ)
        shutil.rmtree(clone.place, ignore_errors=True)
        os.makedirs(clone.place)
        self._source.git("clone", "-q", self._source.top, clone.top)
        return clone

    def _follower(self) -> Stage:
        """The clone that stays, with the newest pointers and the data of two versions before."""
        clone = Stage(os.path.join(self._place, "follower"), environ=self._source.environ)
        if not os.path.isdir(clone.top):
            return self._clone("follower")
        clone.git("pull", "-q", "--ff-only")
        return clone

    # ------------------------------------------------------------ looking

    def _compare(self, found: Files, expected: Files, when: str) -> None:
        if found != expected:
            raise Broken(f"{when}: {differences(found, expected)}")
        self.report.compared_files += len(expected)
        self.report.compared_bytes += sum(size for _, size in expected.values())

    def _read_all_the_while(self) -> None:
        """The third clone: versions that were told done, straight from the remote, one after the other."""
        rng = random.Random(self.report.seed + 1)
        clone = self._clone("third")
        clone = Stage(clone.place, environ=self._environ(self._server.endpoint_url))
        out = os.path.join(self._place, "read")
        while self._reading.is_set():
            commit, expected = rng.choice(self._told)
            shutil.rmtree(out, ignore_errors=True)
            shaky = self._shaky
            try:
                clone.git("fetch", "-q")
                with clone.repo() as repo:
                    failures = get(repo, f"{commit}:data", out).failures
                found = {f"data/{p}": x for p, x in files_of(out).items()}
            except DvkError as error:
                failures, found = [error], {}
            except (OSError, Broken) as error:
                self._wrong.append(f"the third clone: {error}")
                return
            wanted = {p: x for p, x in expected.items() if p.startswith("data/")}
            if any(wanted.get(p) != x for p, x in found.items()) or (not failures and found != wanted):
                self._wrong.append(f"the third clone read wrong bytes of {commit}")
            elif failures and not (shaky or self._shaky):
                self._wrong.append(f"the third clone could not read {commit}: {failures[0]}")
            self.report.reads += not failures

    def _check_reader(self) -> None:
        if self._wrong:
            raise Broken(f"{self._where}: {self._wrong[0]}")

    def _last_look(self) -> None:
        """Every version from the remote into an empty clone."""
        self._where = "the last look"
        self._check_reader()
        clone = self._clone("last")
        for commit, expected in self._told:
            clone.git("checkout", "-q", commit)
            with clone.repo() as repo:
                problems = [*fetch(repo).failures, *pull(repo).failures]
            if problems:
                raise Broken(f"{self._where}: {commit}: {problems[0]}")
            self._compare(files_of(clone.top), expected, f"{self._where} at {commit}")


#: Small packs, so that a push of little data has several under way.
_CHILD = f"""
import sys
from dvk.store import pack
pack.TARGET_PACK_BYTES = {PACK_BYTES}
from dvk.testing.dying import main
main(sys.argv[1:])
"""


def soak(
    kills: int, server_kills: int = 0, *, seed: int | None = None, say: Callable[[str], None] = lambda _line: None
) -> Report:
    """Run it in a folder and with a server of its own, both gone afterwards.

    Raises:
        Broken: with the seed in the message. ServerFailed: there is no server program, or it does not start.
    """
    seed = seed_or_new(seed)
    say(f"seed {seed}")
    place = tempfile.mkdtemp(prefix="dvk-soak-")
    try:
        with S3Server() as server:
            return Soak(place, server, seed=seed, say=say).run(kills, server_kills)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.soak", description="kill push and pull many times")
    parser.add_argument("--kills", type=int, default=200, help="of dvk, half of them in push, half in pull")
    parser.add_argument("--server-kills", type=int, default=0, help="of the server under a push or pull")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to replay it")
    given = parser.parse_args(argv)
    return end(lambda: soak(given.kills, given.server_kills, seed=given.seed, say=say))


if __name__ == "__main__":
    sys.exit(main())
