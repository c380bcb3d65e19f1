"""Cuts the power under dvk again and again: `python -m dvk.testing.power --cuts 200`.

Problem: after a kill the kernel still writes what it has; after a power cut it does not, and a file that was renamed
and never synced comes back empty under its final name. So the store, the work tree and the remote lie on an ext4 in a
file, which is told to shut down (the ioctl FS_IOC_SHUTDOWN) at a random moment of a verb: from then on nothing reaches
the disk. It is unmounted, mounted again, the journal is replayed, and what was acknowledged before has to be there.
`--without-sync` lets dvk skip every fsync, and has to find broken promises: else the cuts prove nothing.

Half of the cuts lose what is in the journal too (flag 2), half do not (flag 1). Needs root, a loop device and
`mkfs.ext4`; `can_cut` says whether they are here. A seed replays the moments, though not what the kernel did by then.

A work tree's files are reproducible and are not synced, so one that was just checked out may come back empty after a
cut. What has to hold is that the next run sees it (the stat cache of an earlier boot is not believed), names it or
makes it right.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dvk.testing.command import Broken, say, seed_or_new
from dvk.testing.stages import Stage, build, files_of
from dvk.testing.strike import Program, Ran

_SHUTDOWN = 0x8004587D
_LOG_FLUSH, _NO_LOG_FLUSH = 1, 2
_DISK_BYTES = 64 << 20

VERBS = ("add", "push", "pull", "checkout")


@dataclass(slots=True)
class Report:
    """What was done."""

    seed: int
    cuts: int = 0
    within: int = 0  #: while the verb ran
    after: int = 0  #: right after it said that it was done
    forced: int = 0  #: a file of the work tree came back cut, was named, and --force replaced it
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.cuts} power cuts, {self.within} while a verb ran and {self.after} right after it "
            f"was done; {self.forced} times a checkout had to be told to replace a file that came back cut; "
            f"{len(self.broken)} promises broken"
        )


class Disk:
    """An ext4 in a file, mounted at `folder`, whose power can be cut."""

    def __init__(self, image: str, folder: str) -> None:
        self.image, self.folder = image, folder

    def make(self) -> None:
        """A new filesystem, mounted."""
        with open(self.image, "wb") as f:
            f.truncate(_DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True, capture_output=True)
        os.makedirs(self.folder, exist_ok=True)
        self.mount()

    def mount(self) -> None:
        """Power on."""
        subprocess.run(["mount", "-o", "loop", self.image, self.folder], check=True, capture_output=True)

    def cut(self, *, flush_log: bool) -> None:
        """Power off: from now on nothing reaches the image."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flag = _LOG_FLUSH if flush_log else _NO_LOG_FLUSH
            fcntl.ioctl(fd, _SHUTDOWN, flag.to_bytes(4, sys.byteorder))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Let go of it. A process that was just killed may hold it for a moment, and so may garbage of this one."""
        gc.collect()
        for _ in range(100):
            done = subprocess.run(["umount", self.folder], capture_output=True, check=False)
            if done.returncode == 0:
                return
            time.sleep(0.05)
        raise RuntimeError(os.fsdecode(done.stderr))


@contextlib.contextmanager
def disk(place: str) -> Iterator[Disk]:
    """A disk of its own at `place`/disk."""
    made = Disk(os.path.join(place, "image"), os.path.join(place, "disk"))
    made.make()
    try:
        yield made
    finally:
        made.unmount()


def can_cut() -> str:
    """Why power cannot be cut here; empty when it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    with tempfile.TemporaryDirectory() as place:
        try:
            with disk(place) as made:
                made.cut(flush_log=True)
        except (OSError, subprocess.CalledProcessError) as e:
            return f"no loop device, or no ext4 that can be shut down: {e}"
    return ""


class Cuts:
    """Cuts the power during one stage after the other."""

    def __init__(
        self, program: Program, made: Disk, report: Report, say: Callable[[str], None], *, sync: bool, after: bool
    ) -> None:
        self._program, self._disk, self.report, self._say = program, made, report, say
        self._sync, self._after = sync, after
        self._rng = random.Random(report.seed)
        self._boots = 0

    def stage(self, verb: str, cuts: int) -> None:
        """Cut so many times during a verb, or right after it."""
        began = time.monotonic()
        stage = build(verb, os.path.join(self._disk.folder, verb))
        saved = os.path.join(os.path.dirname(self._disk.image), "saved")
        shutil.move(stage.saved, saved)
        stage.saved = saved
        # Whether Git's own files survive is Git's to say; here it is told to be careful.
        stage.environ |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsync", "GIT_CONFIG_VALUE_0": "all"}
        lasts = 0.0
        for _ in range(2):  # the first is slower than the others
            stage.reset()
            started = time.monotonic()
            run = self._run(stage)
            lasts = time.monotonic() - started
            if run.code:
                raise Broken(f"an undisturbed {verb} failed: {run.said}")
        for _ in range(cuts):
            self._once(stage, lasts)
        stage.remove()
        self._say(f"{verb}: {cuts} cuts, {time.monotonic() - began:.0f} s")

    def _run(self, stage: Stage, *more: str) -> Ran:
        argv = [*stage.argv, *more]
        boot = f"boot {self._boots}"
        return self._program.run(argv, cwd=stage.top, environ=stage.environ, boot=boot, sync=self._sync)

    def _once(self, stage: Stage, lasts: float) -> None:
        stage.reset()
        subprocess.run(["sync", "-f", self._disk.folder], check=True)
        flush = self._rng.random() < 0.5
        share = 1e3 if self._after else self._rng.random() * 1.1
        off = threading.Event()

        def cut() -> None:
            self._disk.cut(flush_log=flush)
            off.set()

        timer = threading.Timer(share * lasts, cut)
        timer.start()
        ran = self._run(stage)
        late = not off.is_set()
        timer.cancel()
        timer.join()
        if not off.is_set():
            self._disk.cut(flush_log=flush)
        self._disk.unmount()
        self._disk.mount()
        self._boots += 1
        self.report.cuts += 1
        self.report.after += late
        self.report.within += not late
        try:
            self._check(stage, ran)
        except Broken as e:
            line = f"{stage.argv[0]}, power cut at {share:.3f} (journal {'kept' if flush else 'lost'}): {e}"
            self.report.broken.append(line)
            self._say(f"BROKEN: {line}")

    def _check(self, stage: Stage, ran: Ran) -> None:
        """What was acknowledged is there and whole, and the same command makes the rest right."""
        found = files_of(stage.top)
        if stage.argv[0] in ("add", "push"):
            if found != stage.before:
                raise Broken("a file of the user's changed")
            stage.check_pointers()
        stage.check_objects()
        stage.check_versions(ran)
        again = self._run(stage)
        if again.code and stage.argv[0] in ("pull", "checkout"):
            # A file that came back cut is content that no store holds, so it is named and not replaced.
            known = (stage.before, stage.after)
            cut = [p for p, x in found.items() if all(x != files.get(p) for files in known)]
            unnamed = [p for p in cut if p not in again.said]
            if not cut or unnamed:
                raise Broken(f"the same command again ended with {again.code}: {again.said}")
            self.report.forced += 1
            again = self._run(stage, "--force")
        if again.code:
            raise Broken(f"the same command again ended with {again.code}: {again.said}")
        stage.check_done()


def cut_power(
    cuts: int,
    *,
    verbs: Sequence[str] = VERBS,
    seed: int | None = None,
    sync: bool = True,
    after: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Cut the power so many times in all, with `after` only when a verb is done. Needs `not can_cut()`."""
    report = Report(seed_or_new(seed))
    say(f"seed {report.seed}")
    place = tempfile.mkdtemp(prefix="dvk-power-")
    try:
        with Program() as program, disk(place) as made:
            for i, verb in enumerate(verbs):
                share = cuts * (i + 1) // len(verbs) - cuts * i // len(verbs)
                Cuts(program, made, report, say, sync=sync, after=after).stage(verb, share)
        return report
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken, 2 when power cannot be cut here."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.power", description=__doc__.split("\n")[0])
    parser.add_argument("--cuts", type=int, default=200, help="in all; default: %(default)s")
    parser.add_argument("--verbs", default=",".join(VERBS), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run, to replay it")
    parser.add_argument("--without-sync", action="store_true", help="skip every fsync: this has to find lost data")
    parser.add_argument("--after", action="store_true", help="cut only when the verb is done")
    given = parser.parse_args(argv)
    if why := can_cut():
        say(f"power cannot be cut here: {why}")
        return 2
    sync = not given.without_sync
    report = cut_power(given.cuts, verbs=given.verbs.split(","), seed=given.seed, sync=sync, after=given.after, say=say)
    say(str(report))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
