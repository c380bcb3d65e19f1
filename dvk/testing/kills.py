"""Kills every verb at random moments, on a project of real size: `python -m dvk.testing.kills --kills 1000`.

Problem: on the small projects of `dvk.testing.matrix` there is never more than one pack, page or batch under way. So a
project of some hundred megabytes in thousands of files lives through hundreds of kills: each round edits, adds, adds
again, commits, pushes, pulls into another clone, checks an old version out and collects, and each of these is killed at
a random moment, again and again, until it was done before its moment came or its turns are over. Then the same command
has to succeed.

What must hold (`dvk.testing.stages`): after each kill the files of the work tree are the old or the new ones, to the
bit; after each command they are what was committed. Every round reads one version back that was told done, from the
remote alone; at the end all of them, from the store of each clone and from the remote, and every object there is what
its name says. The seed is printed; moments are shares of a span that follows how long a verb takes, so
a seed replays the data and the shares, not the instant.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from dvk.commands.get import get
from dvk.commands.repo import Repo
from dvk.errors import DvkError
from dvk.testing.command import Broken, end, say, seed_or_new
from dvk.testing.stages import ONCE_CODES, Files, Stage, content_of, differences, environ_of, files_of, table
from dvk.testing.strike import Program, Ran

TURNS = 8  #: kills of one command in a row, at most
_PATHS = ("data", "model.bin", "table.csv")


@dataclass(slots=True)
class Report:
    """What was done, and that all of it went well."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)  #: verb -> how many
    late: int = 0  #: commands that were done before their moment came
    versions: int = 0
    files: int = 0  #: of the last version
    size: int = 0  #: its bytes
    compared: int = 0  #: bytes that were compared
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        """Commands that were killed."""
        return sum(self.kills.values())

    def __str__(self) -> str:
        verbs = ", ".join(f"{n} {verb}" for verb, n in sorted(self.kills.items()))
        return (
            f"seed {self.seed}: {self.killed} kills ({verbs}; {self.late} came too late) on {self.files:,} files of "
            f"{self.size / 1e6:,.0f} MB in {self.versions} versions; {self.compared / 1e9:,.1f} GB compared: 0 wrong, "
            f"0 lost; {self.seconds:.0f} s"
        )


class Kills:
    """A project, its remote and a second clone through many kills. `say` gets a line for each round."""

    def __init__(
        self, place: str, program: Program, *, files: int, model_bytes: int, seed: int, say: Callable[[str], None]
    ) -> None:
        self._place, self._program, self._say = place, program, say
        self._model_bytes = model_bytes
        self._rng = random.Random(seed)
        self.report = Report(seed)
        self._spans: dict[str, float] = {}  # verb -> seconds within which its kills are drawn
        self._seen: dict[str, tuple[tuple[int, ...], tuple[str, int]]] = {}  # path -> its stat and what it holds
        self._where = "the beginning"
        self._told: dict[str, Files] = {}  # commits whose push was told done
        environ = {**environ_of(place), "DVK_TRUST_REMOTES": f"file://{place}/remote"}
        self._source = Stage(os.path.join(place, "source"), environ=environ)
        self._second = Stage(os.path.join(place, "second"), environ=environ)
        self._begin(files)

    def run(self, kills: int, *, until: float = float("inf")) -> Report:
        """Kill so many times, or until the clock of `time.monotonic` says so.

        Raises:
            Broken: a byte was wrong or lost, or the same command did not succeed.
        """
        began = time.monotonic()
        try:
            while self.report.killed < kills and time.monotonic() < until:
                self._round()
                self._say(f"{self.report.versions} versions, {self.report.kills}, {time.monotonic() - began:.0f} s")
            self._where = "the last look"
            self.look()
        except Broken as error:
            raise Broken(f"seed {self.report.seed}, {self._where}: {error}") from error
        self.report.seconds = time.monotonic() - began
        return self.report

    def _round(self) -> None:
        """A new version through all verbs."""
        n = self.report.versions
        self._where = f"round {n}"
        source = self._source
        if n:
            self._edit()
            self._struck(source, "add", *_PATHS)  # overwritten below and never committed: garbage
            self._edit()
        now = self._files(source)
        self._struck(source, "add", *_PATHS)
        source.git("commit", "-q", "-m", "a version")
        head = source.git("rev-parse", "HEAD")
        self._struck(source, "push")
        self._told[head] = now
        self.report.versions, self.report.files = n + 1, len(now)
        self.report.size = sum(size for _, size in now.values())
        if n % 5 == 0:
            shutil.rmtree(self._second.place, ignore_errors=True)
            os.makedirs(self._second.place)
            source.git("clone", "-q", source.top, self._second.top)
        else:
            self._second.git("pull", "-q", "--ff-only")
        self._struck(self._second, "pull", after=now)
        old = self._rng.choice(list(self._told))
        for commit in (old, "main"):
            source.git("checkout", "-q", commit)
            self._struck(source, "checkout", after=self._told[source.git("rev-parse", "HEAD")])
        self._struck(source, "gc", "--yes", "--young", "0")
        self._read_back(source, self._rng.choice(list(self._told)), "the remote")

    # ------------------------------------------------------------ kills

    def _struck(self, stage: Stage, *argv: str, after: Files | None = None) -> None:
        """Kill a command again and again, run it to its end, and look each time."""
        verb = argv[0]
        before = self._files(stage)
        after = before if after is None else after
        for turn in range(TURNS):
            span = self._spans.get(verb, 1.0)
            moment = self._rng.random() * span
            self._where = f"round {self.report.versions}, {verb} killed after {moment:.3f} s (turn {turn})"
            ran = self._program.run(argv, cwd=stage.top, environ=stage.environ, kill_after_s=moment)
            if not ran.killed:
                self._check_end(ran, verb)
                self._spans[verb] = span * 0.5
                self.report.late += 1
                break
            self._spans[verb] = span * 1.15  # so about one of six comes too late, and every part of a run is struck
            self.report.kills[verb] = self.report.kills.get(verb, 0) + 1
            self._unlock(stage)
            for path, found in self._files(stage).items():
                if found not in (before.get(path), after.get(path)):
                    raise Broken(f"{path} is neither the old file nor the new one")
        self._check_end(self._program.run(argv, cwd=stage.top, environ=stage.environ), verb)
        self._compare(self._files(stage), after, f"after {verb}")

    def _check_end(self, ran: Ran, verb: str) -> None:
        if "Traceback" in ran.said or (ran.code and not (verb == "gc" and ran.code in ONCE_CODES)):
            raise Broken(f"the command ended with {ran.code}: {ran.said}")

    def _unlock(self, stage: Stage) -> None:
        """What `git` says to do when it was killed itself, or was cut off from who asked it."""
        lock = os.path.join(stage.top, ".git", "index.lock")
        if os.path.exists(lock):
            os.unlink(lock)

    # ------------------------------------------------------------ data

    def _begin(self, files: int) -> None:
        source, rng = self._source, self._rng
        source.init(f"file://{self._place}/remote")
        source.write({"model.bin": rng.randbytes(self._model_bytes), "table.csv": table(60_000)})
        for i in range(files):
            source.write({f"data/{i % 40}/{i:05}.bin": rng.randbytes(rng.randrange(120_000))})

    def _edit(self) -> None:
        """Some files new, some gone, many changed; the model in one place, the table at its end."""
        source, rng = self._source, self._rng
        there = sorted(p for p in self._files(source) if p.startswith("data/"))
        for path in rng.sample(there, len(there) // 50):
            source.write({path: rng.randbytes(rng.randrange(120_000))})
        for path in rng.sample(there, 5):
            source.write({path: None, f"data/{rng.randrange(40)}/{rng.getrandbits(64):016x}": rng.randbytes(50_000)})
        with open(os.path.join(source.top, "model.bin"), "r+b") as model:
            model.seek(rng.randrange(self._model_bytes * 9 // 10))
            model.write(rng.randbytes(self._model_bytes * 3 // 40))
        with open(os.path.join(source.top, "table.csv"), "ab") as rows:
            rows.write(b"".join(b"%d,%.4f,n\n" % (i, rng.random()) for i in range(2_000)))

    # ------------------------------------------------------------ looking

    def _compare(self, found: Files, wanted: Files, when: str) -> None:
        if found != wanted:
            raise Broken(f"{when}: {differences(found, wanted)}")
        self.report.compared += sum(size for _, size in wanted.values())

    def _files(self, stage: Stage) -> Files:
        """What `files_of` says; of files that nobody wrote since they were looked at, without reading them again."""

        def content(path: str) -> tuple[str, int]:
            info = os.lstat(path)
            key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
            if self._seen.get(path, ((), None))[0] != key:
                self._seen[path] = (key, content_of(path))
            return self._seen[path][1]

        return files_of(stage.top, content=content)

    def _read_back(self, stage: Stage, commit: str, where: str, store: str = "") -> None:
        """All of a version; from the remote into `store`, which knows nothing, or from that of `stage` alone."""
        place = tempfile.mkdtemp(dir=self._place)
        out = os.path.join(place, "out")
        os.makedirs(out)
        alone = {"DVK_TRUST_REMOTES": ""}
        if where == "the remote":
            alone = {"DVK_STORE": store or os.path.join(place, "store")}
        try:
            with Repo(stage.top, environ={**stage.environ, **alone}) as repo:
                for path in _PATHS:
                    if failures := get(repo, f"{commit}:{path}", os.path.join(out, path)).failures:
                        raise Broken(f"{commit} is not to be had from {where}: {failures[0]}")
        except DvkError as error:
            raise Broken(f"{commit} is not to be had from {where}: {error}") from error
        self._compare(files_of(out), self._told[commit], f"{commit} from {where}")
        shutil.rmtree(place)

    def look(self) -> None:
        """All versions from everywhere, and all objects.

        Raises:
            Broken: a version or an object is not what it should be.
        """
        for commit in self._told:
            self._read_back(self._source, commit, "the remote", os.path.join(self._place, "from-remote"))
            self._read_back(self._source, commit, "the local store")
        self._read_back(self._second, self._second.git("rev-parse", "HEAD"), "the store of the second clone")
        for store in (self._source.store, self._second.store, os.path.join(self._place, "remote")):
            for kind in ("p", "m"):
                for folder, _, names in os.walk(os.path.join(store, kind)):
                    for name in names:
                        with open(os.path.join(folder, name), "rb") as file:
                            if blake3(file.read()).hexdigest() != name:
                                raise Broken(f"the object {name} in {store} has other content")


def kills(
    count: int,
    *,
    files: int = 3000,
    model_bytes: int = 40_000_000,
    seed: int | None = None,
    seconds: float = float("inf"),
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Run it in a folder of its own, which is gone afterwards. About `files` * 60 kB + `model_bytes` of data.

    Raises:
        Broken: with the seed in the message.
    """
    seed = seed_or_new(seed)
    say(f"seed {seed}")
    place = tempfile.mkdtemp(prefix="dvk-kills-")
    try:
        with Program() as program:
            run = Kills(place, program, files=files, model_bytes=model_bytes, seed=seed, say=say)
            return run.run(count, until=time.monotonic() + seconds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.kills", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--files", type=int, default=3000, help="of the project; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new round after so long")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to replay it")
    given = parser.parse_args(argv)
    return end(lambda: kills(given.kills, files=given.files, seed=given.seed, seconds=given.seconds, say=say))


if __name__ == "__main__":
    sys.exit(main())
