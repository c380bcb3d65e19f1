"""Strikes each verb at each call that it makes, and looks whether a promise was broken.

    python -m dvk.testing.matrix --verbs add,push --faults kill,torn            # killed before each change to the disk
    python -m dvk.testing.matrix --faults EIO,ENOSPC --forever                  # call N and all after it fail
    python -m dvk.testing.matrix --faults kill --strace                         # at each system call, git's included

Problem: the calls at which a fault hurts are few and nobody knows them. So a verb is run once undisturbed, which says
how many calls it makes, and then once for each of them, on a small project that is put back each time
(`dvk.testing.stages` has the projects and says what must hold; `dvk.testing.strike` says what a call is).

`kill` and `torn` strike before each call that changes the disk. An error strikes at each call that can fail with it;
with `--sites` only at the first calls from each place of the source, which is what CI has time for. Then the same
command runs again without a fault and has to succeed.

Most strikes leave a state that another one has left: a read that fails before anything is written leaves what was
there. A state that was judged, and found good, is not judged a second time (`dvk.testing.kept` names states); what the
run said is looked at each time. So that states repeat, all struck runs draw the same random names, those that repeat
the command draw others, and both find the same second on the clock.

Threads may make the order of calls differ from run to run, so a number is not the same call each time; over all numbers
that does not matter. A broken promise prints the verb, the strike and where in the source it struck.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dvk.testing.command import Broken, say, seed_or_new
from dvk.testing.kept import Kept
from dvk.testing.stages import ONCE, ONCE_CODES, STAGES, Stage, build
from dvk.testing.strike import CAN_STRIKE, FAULTS, KILLS, Call, Program, Ran, Strike

#: the system calls that change something, for strace
SYSTEM_CALLS = (
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,write,writev,pwrite64,"
    "ftruncate,fallocate,copy_file_range,fchmod,flock,openat,close"
)
#: in what strace writes: an error that it made up, or a call that never came back (dvk itself kills a git that it
#: needs no more, so that somebody was killed says nothing)
BITTEN = re.compile(r"\(INJECTED\)|= \?$", re.MULTILINE)

#: how far ahead the clock of a stage stands still: nothing that its runs write is of the future, nor old
_AHEAD_S = 1500


@dataclass(slots=True)
class Report:
    """What was done."""

    strikes: int = 0
    killed: int = 0
    refused: int = 0  #: runs that ended with an error
    late: int = 0  #: runs that ended before the strike
    fine: int = 0  #: runs that succeeded in spite of it
    known: int = 0  #: runs that left a state which another strike had left and which was judged then
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.strikes} strikes: {self.killed} killed, {self.refused} ended with an error, {self.fine} succeeded "
            f"all the same, {self.late} came too late; {self.known} left a state that was judged before; "
            f"{len(self.broken)} promises broken"
        )


def points(calls: Sequence[Call], fault: str, *, each_site: int) -> list[int]:
    """The numbers of calls at which `fault` can strike; with `each_site`, so many of each place in the source."""
    seen: dict[tuple[str, str], int] = {}
    found = []
    for at, call in enumerate((c for c in calls if c.kind in CAN_STRIKE[fault]), 1):
        site = (call.kind, call.place)
        seen[site] = seen.get(site, 0) + 1
        if not each_site or seen[site] <= each_site:
            found.append(at)
    return found


class Matrix:
    """Strikes at one stage after the other. `say` gets a line for each broken promise and each verb."""

    def __init__(self, program: Program, *, say: Callable[[str], None]) -> None:
        self._program, self._say = program, say
        self._judged: set[tuple[bytes, bool]] = set()  # states of this stage, and whether they were called a success
        self._done: set[bytes] = set()  # states that the second run left and that are as they should be
        self._stage: Stage | None = None
        self.report = Report()

    def stage(self, stage: Stage, strikes: Callable[[Sequence[Call]], Iterator[Strike]]) -> None:
        """Strike at this stage wherever `strikes` says."""
        calls = self.undisturbed(stage)
        began, before, known = time.monotonic(), self.report.strikes, self.report.known
        for strike in strikes(calls):
            self.strike(stage, strike)
        done, known = self.report.strikes - before, self.report.known - known
        self._say(
            f"{stage.name}: {len(calls)} calls, {done} strikes, {done - known} judged, {time.monotonic() - began:.0f} s"
        )

    def undisturbed(self, stage: Stage) -> Sequence[Call]:
        """The calls of a run without a fault, which has to do what it should."""
        self._reset(stage)
        run = self._run(stage, "first", record=True)
        if run.code:
            raise Broken(f"an undisturbed {stage.name} failed: {run.said}")
        stage.check_done()
        return run.calls

    def strike(self, stage: Stage, strike: Strike) -> None:
        """Strike once, look, run again, look.

        A state that an earlier strike has left is not judged again: what would follow is known.
        """
        self._reset(stage)
        ran = self._run(stage, "first", strike=strike)
        late = not ran.struck and ran.code == 0
        self._judge(stage, strike, ran, late=late)

    def strike_traced(self, stage: Stage, strike: Strike, tracer: Sequence[str], bitten: Callable[[], bool]) -> bool:
        """The same with a `tracer` that does the striking; False, and nothing counted, when by `bitten` it did not."""
        self._reset(stage)
        ran = self._run(stage, "first", tracer=tracer)
        if not bitten():
            return False
        self._judge(stage, strike, ran, late=False)
        return True

    def _judge(self, stage: Stage, strike: Strike, ran: Ran, *, late: bool) -> None:
        report = self.report
        report.strikes += 1
        report.killed += ran.killed
        report.late += late
        report.fine += ran.code == 0 and not late
        report.refused += ran.code > 0
        try:
            stage.check_words(ran)
            state = (self._kept.state(), ran.code == 0)
            if state in self._judged:
                report.known += 1
                return
            stage.check_struck(ran)
            again = self._run(stage, "again")
            if again.code and not (stage.argv[0] in ONCE and again.code in ONCE_CODES):
                raise Broken(f"the same command again ended with {again.code}: {again.said}")
            if (done := self._kept.state()) not in self._done:
                stage.check_done()
                self._done.add(done)
            self._judged.add(state)
        except Broken as e:
            line = f"{stage.name}, {strike} ({ran.struck}): {e}"
            report.broken.append(line)
            self._say(f"BROKEN: {line}")

    def _reset(self, stage: Stage) -> None:
        if self._stage is not stage:
            self._stage, self._kept = stage, Kept(stage.place, stage.saved)
            self._judged, self._done = set(), set()
            self._now_s = float(int(time.time()) + _AHEAD_S)
        self._kept.reset()

    def _run(
        self,
        stage: Stage,
        entropy: str,
        *,
        strike: Strike | None = None,
        record: bool = False,
        tracer: Sequence[str] = (),
    ) -> Ran:
        return self._program.run(
            stage.argv,
            cwd=stage.top,
            environ=stage.environ,
            scope=stage.place,
            strike=strike,
            record=record,
            tracer=tracer,
            entropy=entropy,
            now_s=self._now_s,
        )


def run_matrix(
    verbs: Sequence[str],
    faults: Sequence[str],
    *,
    forever: bool = False,
    each_site: int = 0,
    sample: int = 0,
    strace: Sequence[str] = (),
    seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
) -> Report:
    """Strike at all of `verbs` with all of `faults`, in a folder of its own.

    Args:
        forever: errors go on.
        each_site: see `points`. sample: at most so many of the points, drawn from `seed`.
        strace: strike at these system calls, with strace.
    """
    # Not below a folder whose name changes the length of paths from run to run.
    place = tempfile.mkdtemp(prefix="dvk-matrix-")
    try:
        with Program() as program:
            matrix = Matrix(program, say=say)
            for verb in verbs:
                stage = build(verb, os.path.join(place, verb))
                if strace:
                    _with_strace(matrix, stage, faults, strace, say)
                else:
                    rng = random.Random(f"{seed} {verb}")

                    def strikes(calls: Sequence[Call], rng: random.Random = rng) -> Iterator[Strike]:
                        for fault in faults:
                            at = points(calls, fault, each_site=each_site)
                            if sample and len(at) > sample:
                                at = sorted(rng.sample(at, sample))
                            for n in at:
                                yield Strike(n, fault, forever and fault not in KILLS)

                    matrix.stage(stage, strikes)
                stage.remove()
        return matrix.report
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _with_strace(
    matrix: Matrix, stage: Stage, faults: Sequence[str], calls: Sequence[str], say: Callable[[str], None]
) -> None:
    """Strike at the Kth call that any one thread makes of each kind of system call, for each K until there is none."""
    matrix.undisturbed(stage)
    with tempfile.NamedTemporaryFile("r", errors="replace") as trace:
        for fault in faults:
            how = "signal=KILL" if fault == "kill" else f"error={fault}"
            for name in calls:
                at, struck = 0, True
                while struck:
                    at += 1
                    tracer = ["strace", "-f", "-o", trace.name, "-e", f"trace={name}"]
                    tracer += ["-e", f"inject={name}:{how}:when={at}"]

                    def bitten() -> bool:
                        trace.seek(0)
                        return BITTEN.search(trace.read()) is not None

                    struck = matrix.strike_traced(stage, Strike(at, f"{fault} of {name}"), tracer, bitten)
                if at > 1:
                    say(f"{stage.name}: {fault} at {at - 1} calls of {name}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--verbs", default=",".join(STAGES), help="default: %(default)s")
    parser.add_argument("--faults", default="kill,torn", help=f"of {', '.join(FAULTS)}; default: %(default)s")
    parser.add_argument("--forever", action="store_true", help="an error goes on from its call")
    parser.add_argument("--sites", type=int, default=0, metavar="N", help="only the first N calls from each place")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="at most N calls of each verb and fault")
    parser.add_argument(
        "--strace",
        nargs="?",
        const=SYSTEM_CALLS,
        default="",
        metavar="CALLS",
        help="strike at system calls with strace; by default at %(const)s",
    )
    parser.add_argument("--seed", type=int, default=None, help="of the sample, to replay it")
    given = parser.parse_args(argv)
    verbs, faults = given.verbs.split(","), given.faults.split(",")
    for word, known in [(verbs, STAGES), (faults, FAULTS)]:
        if unknown := [w for w in word if w not in known]:
            parser.error(f"{unknown[0]} is none of {', '.join(known)}")
    seed = seed_or_new(given.seed)
    say(f"seed {seed}")
    report = run_matrix(
        verbs,
        faults,
        forever=given.forever,
        each_site=given.sites,
        sample=given.sample,
        strace=[name for name in given.strace.split(",") if name],
        seed=seed,
        say=say,
    )
    say(str(report))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
