"""Where the time goes is told by stage, from any thread, and costs nothing while nobody asks."""

from __future__ import annotations

import threading
import time

import pytest

from dvk.timings import Recorder, Row, Stage, recording, stage


def row(recorder: Recorder, what: Stage) -> Row:
    (found,) = [r for r in recorder.report().stages if r.stage == what.value]
    return found


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def test_a_stage_counts_its_seconds_bytes_and_calls() -> None:
    with recording() as recorder:
        with stage(Stage.READ, bytes_=10) as reading:
            burn(0.02)
            reading.add(bytes_=5, count=2)
        with stage(Stage.READ):
            time.sleep(0.02)
    found = row(recorder, Stage.READ)
    assert (found.size, found.count) == (15, 4)
    assert found.wall_seconds >= 0.04 and 0.02 <= found.cpu_seconds < found.wall_seconds


def test_a_stage_inside_another_counts_for_itself_alone() -> None:
    """So that the processor seconds of all stages add up."""
    with recording() as recorder, stage(Stage.PACK):
        burn(0.01)
        with stage(Stage.ENCODE):
            burn(0.03)
            with stage(Stage.VERIFY):
                burn(0.02)
    pack, encode, verify = (row(recorder, s).cpu_seconds for s in (Stage.PACK, Stage.ENCODE, Stage.VERIFY))
    assert 0.01 <= pack < 0.02 <= verify < 0.03 <= encode < 0.04


def test_all_threads_are_counted_and_no_count_is_lost() -> None:
    def work() -> None:
        for _ in range(500):
            with stage(Stage.HASH, bytes_=2):
                pass

    with recording() as recorder, stage(Stage.WAIT):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert (row(recorder, Stage.HASH).size, row(recorder, Stage.HASH).count) == (4000, 2000)
    report = recorder.report()
    assert sum(r.cpu_seconds for r in report.stages) + report.rest_cpu_seconds <= report.cpu_seconds + 0.01


def test_a_stage_that_fails_is_counted_and_the_next_one_is_not_inside_it() -> None:
    with recording() as recorder:
        with pytest.raises(OSError, match="disk"), stage(Stage.WRITE):
            raise OSError("disk")
        with stage(Stage.SYNC):
            burn(0.01)
    assert row(recorder, Stage.WRITE).count == 1
    assert row(recorder, Stage.SYNC).cpu_seconds >= 0.01


def test_the_start_is_all_until_the_last_mark_before_the_work() -> None:
    from dvk.timings import started

    with recording() as recorder:
        started()
        first = row(recorder, Stage.START).wall_seconds
        time.sleep(0.02)
        started()
        second = row(recorder, Stage.START).wall_seconds
        with stage(Stage.READ):
            time.sleep(0.02)
        started()
        assert row(recorder, Stage.START).wall_seconds == second >= first + 0.02


def test_without_a_recorder_a_stage_costs_next_to_nothing() -> None:
    """A block takes milliseconds; a microsecond for saying what is done with it is not to be noticed."""

    def best(tries: int = 5, calls: int = 2000) -> float:
        times = []
        for _ in range(tries):
            began = time.thread_time()
            for _ in range(calls):
                with stage(Stage.ENCODE, bytes_=1):
                    pass
            times.append((time.thread_time() - began) / calls)
        return min(times)

    assert best() < 2e-6


def test_one_recorder_at_a_time() -> None:
    with recording(), pytest.raises(RuntimeError), recording():
        pass
    with recording():
        pass
