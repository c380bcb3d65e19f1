"""Swaps folders for links while dvk works: `python -m dvk.testing.swaps --seconds 60`.

Problem: between a look and a write somebody may put a link where a folder was, and the write lands wherever the link
leads. So a thread swaps folders of the work tree, of the local store and of the remote for links to a folder outside,
and back, as fast as it can, while `checkout`, `pull`, `add`, `get` and `push` run again and again. The folder outside
holds bait: files of the same names. None of them may be written, removed or read into a version, and nothing may
appear beside them. Verbs may fail as they like, with an error of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from dvk.cli.exit_codes import TABLE
from dvk.commands.get import get
from dvk.commands.repo import Repo
from dvk.errors import DvkError
from dvk.testing.command import Broken, end, say, seed_or_new
from dvk.testing.stages import Stage, build
from dvk.testing.strike import Program

_CODES = {row.code for row in TABLE}
_SECRET = b"the bait: this must never be read into a version\n" * 40


@dataclass(slots=True)
class Report:
    """What was done."""

    seed: int
    runs: int = 0
    failed: int = 0  #: runs that noticed and ended with an error
    swaps: int = 0

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.swaps:,} swaps under {self.runs} runs, {self.failed} of which ended with an "
            "error; "
            "0 writes outside, 0 reads of what is outside"
        )


class _Swapper(threading.Thread):
    """Puts a link to `outside` in the place of a folder, and back."""

    def __init__(self, folders: Sequence[str], outside: str, report: Report) -> None:
        super().__init__(daemon=True)
        self._folders, self._outside, self._report = folders, outside, report
        self._rng = random.Random(report.seed)
        self.stop = threading.Event()

    def run(self) -> None:
        """Swap until told to stop; then all is as it was."""
        while not self.stop.is_set():
            folder = self._rng.choice(self._folders)
            aside = f"{os.path.dirname(os.path.dirname(folder))}/.aside-{blake3(folder.encode()).hexdigest()[:8]}"
            try:
                os.rename(folder, aside)
            except OSError:
                continue  # it is not there just now
            try:
                os.symlink(self._outside, folder)
                time.sleep(self._rng.random() * 0.002)
                os.unlink(folder)
            except OSError:
                pass  # the program made a folder there meanwhile
            self._back(aside, folder)
            self._report.swaps += 1
            time.sleep(self._rng.random() * 0.002)

    @staticmethod
    def _back(aside: str, folder: str) -> None:
        with contextlib.suppress(OSError):
            if os.path.islink(folder):
                os.unlink(folder)
        try:
            os.rename(aside, folder)
        except OSError:  # a new one stands there: the next reset puts all back
            shutil.rmtree(aside, ignore_errors=True)


def _tree(top: str) -> dict[str, tuple[int, str]]:
    found = {}
    for folder, folders, names in os.walk(top):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            digest = ""
            if os.path.isfile(path):
                with open(path, "rb") as f:
                    digest = blake3(f.read()).hexdigest()
            found[os.path.relpath(path, top)] = (os.lstat(path).st_mode, digest)
    return found


def _bait(outside: str) -> None:
    """Files of the names that the verbs are after."""
    for name in ("0", "1", "2", "3", "4", "5", "6", "7", "new", "n.bin", "third"):
        with open(os.path.join(outside, name), "wb") as f:
            f.write(_SECRET)
    for name in ("0", "1", "2", "p", "m", "tmp"):
        os.makedirs(os.path.join(outside, "folder", name))


def swap(seconds: float, *, seed: int | None = None, say: Callable[[str], None] = lambda _line: None) -> Report:
    """Swap for so long.

    Raises:
        Broken: something outside was touched or read.
    """
    report = Report(seed_or_new(seed))
    say(f"seed {report.seed}")
    place = tempfile.mkdtemp(prefix="dvk-swaps-")
    outside = os.path.join(place, "outside")
    os.makedirs(outside)
    _bait(outside)
    before = _tree(outside)
    try:
        with Program() as program:
            stages = [build(verb, os.path.join(place, verb)) for verb in ("checkout", "pull", "add", "get", "push")]
            for stage in stages:
                stage.environ["DVK_HOOKS"] = "0"
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                for stage in stages:
                    _under_attack(program, stage, outside, report)
                    if _tree(outside) != before:
                        raise Broken(f"seed {report.seed}: {stage.argv[0]} touched what lies outside")
        return report
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _under_attack(program: Program, stage: Stage, outside: str, report: Report) -> None:
    stage.reset()
    folders = [os.path.join(stage.top, "d", "0"), os.path.join(stage.top, "d", "1"), os.path.join(stage.top, "d")]
    folders += [os.path.join(stage.remote, "p"), os.path.join(stage.store, "p"), os.path.join(stage.store, "m")]
    folders += [os.path.join(stage.place, "out", "0")]
    swapper = _Swapper(folders, outside, report)
    swapper.start()
    try:
        ran = program.run(stage.argv, cwd=stage.top, environ=stage.environ)
    finally:
        swapper.stop.set()
        swapper.join()
    report.runs += 1
    report.failed += ran.code != 0
    if ran.code not in _CODES or "Traceback" in ran.said or "ran into a bug" in ran.said:
        raise Broken(f"seed {report.seed}: {stage.argv[0]} ended with {ran.code}: {ran.said}")
    if stage.argv[0] == "add" and ran.code == 0:
        _look_for_bait(stage, report)


def _look_for_bait(stage: Stage, report: Report) -> None:
    """What was added holds no byte of the bait."""
    out = os.path.join(stage.place, "added")
    try:
        with Repo(stage.top, environ=stage.environ) as repo:
            get(repo, "d", out)
    except DvkError:
        return  # an object of the store was aside when it was wanted
    for folder, _, names in os.walk(out):
        for name in names:
            with open(os.path.join(folder, name), "rb") as f:
                if _SECRET in f.read():
                    raise Broken(f"seed {report.seed}: add read {name} from outside")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.swaps", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to replay it")
    given = parser.parse_args(argv)
    return end(lambda: swap(given.seconds, seed=given.seed, say=say))


if __name__ == "__main__":
    sys.exit(main())
