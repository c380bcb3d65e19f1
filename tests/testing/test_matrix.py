"""A sample of the fault matrix: `python -m dvk.testing.matrix` strikes at every call of every verb."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dvk.testing.command import Broken
from dvk.testing.matrix import BITTEN, Matrix, points, run_matrix
from dvk.testing.stages import Stage, build
from dvk.testing.strike import Call, Program, Ran, Strike

FAULTS = ("torn", "short", "EIO", "ENOSPC", "EMFILE", "EROFS", "ESTALE", "EDQUOT", "EACCES")


@pytest.fixture
def program() -> Iterator[Program]:
    with Program() as program:
        yield program


@pytest.mark.parametrize("verb", ["add", "push", "pull", "checkout"])
def test_a_verb_that_is_struck_anywhere_breaks_no_promise(verb: str, tmp_path: Path, program: Program) -> None:
    """A kill and three other faults at calls drawn from the seed, once or for ever."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)

    def strikes(calls: Sequence[Call]) -> Iterator[Strike]:
        for fault in ("kill", *rng.sample(FAULTS, 3)):
            yield Strike(rng.choice(points(calls, fault, each_site=0)), fault, rng.random() < 0.5)

    matrix = Matrix(program, say=print)
    matrix.stage(build(verb, str(tmp_path / "stage")), strikes)
    assert matrix.report.broken == []
    assert matrix.report.strikes == 4
    assert matrix.report.killed + matrix.report.late >= 1


def test_a_repair_that_is_struck_anywhere_forgets_nothing_and_goes_on(tmp_path: Path, program: Program) -> None:
    """Of a store with damaged packs and no index, killed or on a disk that fails meanwhile."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)

    def strikes(calls: Sequence[Call]) -> Iterator[Strike]:
        for fault in ("kill", "torn", "EIO", "EIO", "ENOSPC", "EMFILE"):
            yield Strike(rng.choice(points(calls, fault, each_site=0)), fault)

    matrix = Matrix(program, say=print)
    matrix.stage(build("repair", str(tmp_path / "stage")), strikes)
    assert matrix.report.broken == [] and matrix.report.strikes == 6


def test_the_command_counts_and_reports() -> None:
    lines: list[str] = []
    report = run_matrix(["rm", "condemn"], ["kill"], sample=1, say=lines.append)
    assert (report.strikes, report.killed, report.broken) == (2, 2, [])
    assert [line.partition(": ")[0] for line in lines] == ["rm", "condemn"]


@pytest.mark.parametrize(
    ("told", "struck"),
    [
        ("7 fsync(10) = 0\n7 +++ exited with 0 +++\n", False),
        ("7 fsync(10) = 0\n8 +++ killed by SIGKILL +++\n7 +++ exited with 0 +++\n", False),  # a git that dvk ended
        ("7 fsync(10 <unfinished ...>\n7 <... fsync resumed>) = ?\n7 +++ killed by SIGKILL +++\n", True),
        ("7 fsync(10) = -1 EIO (Input/output error) (INJECTED)\n7 +++ exited with 16 +++\n", True),
    ],
)
def test_what_strace_struck_is_told_from_what_it_saw(told: str, struck: bool) -> None:
    """Else the loop over the calls ends too early, or never."""
    assert (BITTEN.search(told) is not None) == struck


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return build("push", str(tmp_path_factory.mktemp("oracle") / "stage"))


class TestTheOracleNotices:
    """A check that cannot fail is none: each promise is broken by hand, and the oracle says which."""

    @pytest.fixture(autouse=True)
    def anew(self, stage: Stage) -> None:
        stage.reset()

    def damage(self, store: str, kind: str) -> None:
        for folder, _, names in os.walk(os.path.join(store, kind)):
            for name in names:
                path = os.path.join(folder, name)
                os.chmod(path, 0o600)
                with open(path, "r+b") as file:
                    file.seek(40)
                    byte = file.read(1)
                    file.seek(40)
                    file.write(bytes([byte[0] ^ 1]))

    def test_damage_in_the_local_store(self, stage: Stage) -> None:
        self.damage(stage.store, "p")
        with pytest.raises(Broken, match="has other content"):
            stage.check_struck(Ran(-9, ""))

    def test_a_lost_object_in_the_local_store(self, stage: Stage) -> None:
        os.rename(os.path.join(stage.store, "m"), os.path.join(stage.store, "gone"))
        with pytest.raises(Broken, match="not to be had from the local store"):
            stage.check_struck(Ran(-9, ""))

    def test_a_lost_object_on_the_remote(self, stage: Stage) -> None:
        os.rename(os.path.join(stage.remote, "p"), os.path.join(stage.remote, "gone"))
        with pytest.raises(Broken, match="not to be had from the remote"):
            stage.check_struck(Ran(-9, ""))

    def test_a_success_that_is_none(self, stage: Stage) -> None:
        with pytest.raises(Broken, match="not to be had from the remote"):
            stage.check_struck(Ran(0, ""))

    @pytest.mark.parametrize("data", [None, b"half of i"])
    def test_a_file_that_is_neither_old_nor_new(self, stage: Stage, data: bytes | None) -> None:
        stage.write({"d/0/0": data})
        with pytest.raises(Broken, match="d/0/0 is neither"):
            stage.check_struck(Ran(-9, ""))

    @pytest.mark.parametrize(
        ("run", "says"),
        [
            (Ran(1, "Traceback (most recent call last):"), "a bug shown"),
            (Ran(1, "error: dvk ran into a bug: KeyError"), "a bug shown"),
            (Ran(16, "error: Input/output error"), "does not say which object"),
            (Ran(77, "error: x: y"), "no documented one"),
            (Ran(16, ""), "no error"),
        ],
    )
    def test_words_that_help_nobody(self, stage: Stage, run: Ran, says: str) -> None:
        with pytest.raises(Broken, match=says):
            stage.check_struck(run)
