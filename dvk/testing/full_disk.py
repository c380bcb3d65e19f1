"""Runs verbs on disks that become full or cannot be written: `python -m dvk.testing.full_disk --sizes 40`.

Problem: what a program does in the one moment when the disk is full is seldom seen and is where data was lost elsewhere
(an `add` that had moved the originals into its cache). So the store, the work tree, the remote and the temporary folder
are each put on a tmpfs of their own that has room for a bit more than is there: for each verb that writes to it, at as
many sizes as asked, from no room at all to nearly enough. The same with a disk that has bytes and no inodes, and with
one that is mounted read-only, on which verbs that only read have to succeed. What must hold is the same as after a kill
(`dvk.testing.stages`): the user's files untouched or whole, all that was acknowledged there, an error that names the
full disk; and with room the same command succeeds.

Mounting needs root; `can_mount` says whether it can be done here.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dvk.cli.exit_codes import for_error
from dvk.errors import StorageError, StorageFull
from dvk.testing.command import Broken, say
from dvk.testing.stages import ONCE, ONCE_CODES, Stage, build
from dvk.testing.strike import Program, Ran

_BIG = 1 << 30
_MANY = 1 << 20
_PAGE = 4096
_FULL = for_error(StorageFull(""))
_DISK = for_error(StorageError(""))

#: what a disk can be short of
LIMITS = ("bytes", "inodes", "read-only")

#: what lies on the small disk -> the verbs that write there
PLACES: Mapping[str, Sequence[str]] = {
    "store": ("add", "fetch", "pull", "gc", "fold"),
    "work": ("add", "checkout", "pull", "update", "restore", "rm", "mv"),
    "remote": ("push", "condemn", "sweep"),
    "out": ("get",),
    "tmp": ("add", "checkout", "pull"),  # they need no temporary folder, and a full one must not stop them
}
#: what lies on the read-only disk -> verbs, and whether they do without writing there
READ_ONLY: Mapping[str, Mapping[str, bool]] = {
    "store": {"add": False, "fetch": False, "gc": False, "push": False, "get": True, "verify": True, "status": True},
    "work": {"add": False, "checkout": False, "pull": False, "rm": False, "get": True, "verify": True, "status": True},
    "remote": {"push": False, "condemn": False, "sweep": False, "plan": True, "fetch": True, "pull": True},
    "tmp": {"add": True, "checkout": True, "pull": True},
}


@dataclass(slots=True)
class Report:
    """What was done."""

    runs: int = 0
    full: int = 0  #: ended with an error
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


class Disk:
    """A tmpfs at `folder`, which can be short of something."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        os.makedirs(folder, exist_ok=True)
        options = f"size={_BIG},nr_inodes={_MANY},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_how: object) -> None:
        gc.collect()  # garbage of this process may hold files that it read there
        subprocess.run(["umount", self._folder], check=True)

    def used(self, limit: str) -> int:
        """Bytes, or inodes, that are taken."""
        info = os.statvfs(self._folder)
        return info.f_files - info.f_ffree if limit == "inodes" else (info.f_blocks - info.f_bfree) * info.f_frsize

    def narrow(self, limit: str, room: int = 0) -> None:
        """Leave `room` more bytes or inodes than are taken, or none to write anything."""
        if limit == "read-only":
            self._remount("ro")
        elif limit == "inodes":
            self._remount(f"nr_inodes={self.used(limit) + room}")
        else:
            self._remount(f"size={max(self.used(limit) + room, _PAGE)}")  # 0 would be no limit

    def free(self) -> None:
        """Take all limits away."""
        self._remount(f"rw,size={_BIG},nr_inodes={_MANY}")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self._folder], check=True)


def rooms(disk: Disk, program: Program, stage: Stage, limit: str, sizes: int) -> list[int]:
    """How much is left to the verb of `stage` each time: from nothing to nearly what it takes."""
    if limit == "read-only":
        return [0]
    stage.reset()
    before = disk.used(limit)
    run = _run(program, stage)
    if run.code:
        raise Broken(f"an undisturbed {stage.name} failed: {run.said}")
    grows = disk.used(limit) - before
    if limit == "inodes":
        return sorted({i * (max(grows, 0) + 8) // sizes for i in range(sizes)})
    grows = max(grows, sum(size for _, size in stage.after.values()) // 2) + 16 * _PAGE
    return [i * grows // sizes // _PAGE * _PAGE for i in range(sizes)]


def fill(
    program: Program,
    stage: Stage,
    folder: str,
    limit: str,
    sizes: int,
    report: Report,
    say: Callable[[str], None],
    *,
    reads: bool = False,
) -> None:
    """Run the verb of `stage` with the disk at `folder` short of something, each time of a bit less.

    Args:
        reads: it has to succeed in spite of it.
    """
    began, before = time.monotonic(), report.runs
    with Disk(folder) as disk:
        for room in rooms(disk, program, stage, limit, sizes):
            disk.free()
            stage.reset()
            disk.narrow(limit, room)
            line = f"{stage.name}, {os.path.basename(folder)} with {room:,} {limit}"
            try:
                _once(program, stage, limit, disk.free, report, reads=reads)
            except Broken as e:
                report.broken.append(f"{line}: {e}")
                say(f"BROKEN: {line}: {e}")
    what = f"{stage.name}, {os.path.basename(folder)} short of {limit}"
    say(f"{what}: {report.runs - before} runs, {time.monotonic() - began:.0f} s")


def _once(program: Program, stage: Stage, limit: str, heal: Callable[[], None], report: Report, *, reads: bool) -> None:
    report.runs += 1
    ran = _run(program, stage)
    report.fine += ran.code == 0
    report.full += ran.code != 0
    # Before there is room again: what was acknowledged can be read on a full disk too.
    stage.check_struck(ran)
    if limit == "read-only":
        if ran.code != (0 if reads else _DISK) or (ran.code and "read-only" not in ran.said):
            raise Broken(f"exit code {ran.code} on a read-only disk: {ran.said}")
    elif ran.code not in (0, _FULL) and not (ran.code == 3 and "no space" in ran.said):
        raise Broken(f"exit code {ran.code}, which does not say that the disk is full: {ran.said}")
    heal()
    again = _run(program, stage)
    if again.code and not (stage.argv[0] in ONCE and again.code in ONCE_CODES):
        raise Broken(f"with room again it ended with {again.code}: {again.said}")
    stage.check_done()


def _run(program: Program, stage: Stage) -> Ran:
    return program.run(stage.argv, cwd=stage.top, environ=stage.environ)


def sweep(
    sizes: int,
    *,
    places: Mapping[str, Sequence[str]] = PLACES,
    limits: Sequence[str] = LIMITS,
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """All verbs of `places` (of these places, those of `READ_ONLY`), each at so many sizes. Needs `can_mount()`."""
    report = Report()
    base = tempfile.mkdtemp(prefix="dvk-full-")
    try:
        with Program() as program:
            for limit in limits:
                for place, verbs in places.items():
                    reads = dict.fromkeys(verbs, False) if limit != "read-only" else READ_ONLY.get(place, {})
                    for verb in reads:
                        stage = build(verb, os.path.join(base, f"{place}-{verb}"))
                        if place == "store":
                            _move_store(stage)
                        if place == "tmp":
                            stage.environ["TMPDIR"] = os.path.join(stage.place, "tmp")
                        folder = os.path.join(stage.place, place)
                        fill(program, stage, folder, limit, sizes, report, say, reads=reads[verb])
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
    parser.add_argument("--verbs", default="", help="only these of each place (not of read-only ones)")
    parser.add_argument("--limits", default=",".join(LIMITS), help="default: %(default)s")
    given = parser.parse_args(argv)
    for word, known in [(given.places, PLACES), (given.limits, LIMITS)]:
        if unknown := [w for w in word.split(",") if w not in known]:
            parser.error(f"{unknown[0]} is none of {', '.join(known)}")
    if not can_mount():
        say("nothing can be mounted here: run it as root")
        return 2
    only = given.verbs.split(",") if given.verbs else None
    places = {p: [v for v in PLACES[p] if only is None or v in only] for p in given.places.split(",")}
    report = sweep(given.sizes, places=places, limits=given.limits.split(","), say=say)
    say(str(report))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
