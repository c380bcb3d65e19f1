"""Runs verbs on disks that become full, at many sizes: `python -m dvk.testing.full_disk --sizes 40`.

Problem: what a program does in the one moment when the disk is full is seldom seen and is where data was lost elsewhere
(an `add` that had moved the originals into its cache). So the store, the work tree, the remote and the temporary folder
are each put on a tmpfs of their own that has room for a bit more than is there: for each verb that writes to it, at as
many sizes as asked, from no room at all to nearly enough. What must hold is the same as after a kill
(`dvk.testing.stages`): the user's files untouched or whole, all that was acknowledged there, an error that names the
full disk; and with room the same command succeeds.

Mounting needs root; `can_mount` says whether it can be done here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dvk.cli.exit_codes import for_error
from dvk.errors import StorageFull
from dvk.testing.command import Broken, say
from dvk.testing.stages import ONCE, ONCE_CODES, Stage, build
from dvk.testing.strike import Program, Ran

_BIG = 1 << 30
_PAGE = 4096
_FULL = for_error(StorageFull(""))

#: what lies on the small disk -> the verbs that write there
PLACES: Mapping[str, Sequence[str]] = {
    "store": ("add", "fetch", "pull", "gc"),
    "work": ("add", "checkout", "pull", "update", "rm", "mv"),
    "remote": ("push", "condemn", "sweep"),
    "out": ("get",),
    "tmp": ("add", "checkout", "pull"),  # they need no temporary folder, and a full one must not stop them
}


@dataclass(slots=True)
class Report:
    """What was done."""

    runs: int = 0
    full: int = 0  #: ended with "no space"
    fine: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.runs} runs on small disks: {self.full} ended with an error, {self.fine} had room enough; "
            f"{len(self.broken)} promises broken"
        )


def can_mount() -> bool:
    """Whether this process may mount a filesystem."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", folder], capture_output=True, check=False)
        return done.returncode == 0


@contextlib.contextmanager
def disk(folder: str) -> Iterator[Callable[[int], None]]:
    """A tmpfs at `folder`; the value sets its size in bytes."""
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_BIG},mode=0700", "none", folder], check=True)

    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", folder], check=True)


def used(folder: str) -> int:
    """Bytes that are taken of the disk at `folder`."""
    info = os.statvfs(folder)
    return (info.f_blocks - info.f_bfree) * info.f_frsize


def fill(program: Program, stage: Stage, folder: str, sizes: int, report: Report, say: Callable[[str], None]) -> None:
    """Run the verb of `stage` with the disk at `folder` full after so many different amounts."""
    began = time.monotonic()
    with disk(folder) as resize:
        stage.reset()
        before = used(folder)
        run = _run(program, stage)
        if run.code:
            raise Broken(f"an undisturbed {stage.argv[0]} failed: {run.said}")
        grows = max(used(folder) - before, sum(size for _, size in stage.after.values()) // 2)
        for i in range(sizes):
            room = max(i * (grows + 16 * _PAGE), 0) // sizes // _PAGE * _PAGE
            resize(_BIG)
            stage.reset()
            resize(max(used(folder) + room, _PAGE))  # 0 would be no limit
            _once(program, stage, room, lambda: resize(_BIG), report, say)
    say(f"{stage.argv[0]} on a full {os.path.basename(folder)}: {sizes} sizes, {time.monotonic() - began:.0f} s")


def _once(
    program: Program, stage: Stage, room: int, heal: Callable[[], None], report: Report, say: Callable[[str], None]
) -> None:
    report.runs += 1
    ran = _run(program, stage)
    report.fine += ran.code == 0
    report.full += ran.code != 0
    try:
        # Before there is room again: what was acknowledged can be read on a full disk too.
        stage.check_struck(ran)
        if ran.code not in (0, _FULL) and not (ran.code == 3 and "no space" in ran.said):
            raise Broken(f"exit code {ran.code}, which does not say that the disk is full: {ran.said}")
        heal()
        again = _run(program, stage)
        if again.code and not (stage.argv[0] in ONCE and again.code in ONCE_CODES):
            raise Broken(f"with room again it ended with {again.code}: {again.said}")
        stage.check_done()
    except Broken as e:
        line = f"{' '.join(stage.argv[:2])} with {room:,} bytes of room: {e}"
        report.broken.append(line)
        say(f"BROKEN: {line}")


def _run(program: Program, stage: Stage) -> Ran:
    return program.run(stage.argv, cwd=stage.top, environ=stage.environ)


def sweep(
    sizes: int, *, places: Mapping[str, Sequence[str]] = PLACES, say: Callable[[str], None] = lambda _line: None
) -> Report:
    """All verbs of `places`, each at so many sizes. Needs `can_mount()`."""
    report = Report()
    base = tempfile.mkdtemp(prefix="dvk-full-")
    try:
        with Program() as program:
            for place, verbs in places.items():
                for verb in verbs:
                    stage = build(verb, os.path.join(base, f"{place}-{verb}"))
                    if place == "store":
                        _move_store(stage)
                    if place == "tmp":
                        stage.environ["TMPDIR"] = os.path.join(stage.place, "tmp")
                    fill(program, stage, os.path.join(stage.place, place), sizes, report, say)
                    stage.remove()
        return report
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _move_store(stage: Stage) -> None:
    """Put the store of the stage into a folder of its own, where a setting says that it is."""
    inside = os.path.join(stage.saved, "work", ".git", "dvk", "store")
    outside = os.path.join(stage.saved, "store")
    if os.path.isdir(inside):
        os.rename(inside, outside)
    stage.environ["DVK_STORE"] = os.path.join(stage.place, "store")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken, 2 when nothing can be mounted here."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.full_disk", description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, default=40, help="of each disk, for each verb; default: %(default)s")
    parser.add_argument("--places", default=",".join(PLACES), help="default: %(default)s")
    given = parser.parse_args(argv)
    if not can_mount():
        say("nothing can be mounted here: run it as root")
        return 2
    report = sweep(given.sizes, places={p: PLACES[p] for p in given.places.split(",")}, say=say)
    say(str(report))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
