"""Progress: a line at most every ten seconds in a log, nothing when quiet, and it never stops the work."""

from __future__ import annotations

import threading

import pytest
from helpers_cli import Stream

from dvk.cli.output import Terminal
from dvk.cli.progress import MAX_NOTES, Watcher, describe
from dvk.events import Meter, Note, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watcher(clock: Clock, **options: bool) -> tuple[Watcher, Stream]:
    err = Stream()
    return Watcher(Terminal(Stream(), err, environ={}, **options), clock=clock), err


def lines(err: Stream) -> list[str]:
    return err.raw_bytes.decode().splitlines()


def test_a_line_every_ten_seconds_with_bytes_rate_and_time_left() -> None:
    clock = Clock()
    watch, err = watcher(clock)
    meter = Meter(watch, "upload", total_bytes=1_000_000_000)
    for _ in range(35):
        meter.advance(bytes_=10_000_000)
        clock.now += 1
    assert lines(err) == [
        "upload: 110 MB of 1 GB (11 %), 10 MB/s, 1 min 29 s left",
        "upload: 210 MB of 1 GB (21 %), 10 MB/s, 1 min 19 s left",
        "upload: 310 MB of 1 GB (31 %), 10 MB/s, 1 min 9 s left",
    ]


def test_quiet_says_nothing_and_json_only_progress() -> None:
    for options, expected in (({"quiet": True}, 0), ({"as_json": True}, 1), ({}, 2)):
        clock = Clock()
        watch, err = watcher(clock, **options)
        watch(Note("left out", subject="a"))
        clock.now += 11
        watch(Progress("read", 1, None, 0, None))
        watch.close()
        assert len(lines(err)) == expected
        assert watch.notes == [Note("left out", subject="a")]


def test_notes_are_bounded_and_the_rest_is_counted() -> None:
    watch, err = watcher(Clock())
    for i in range(MAX_NOTES + 5):
        watch(Note(f"n{i}"))
    watch.close()
    watch.close()
    assert len(lines(err)) == MAX_NOTES + 1
    assert lines(err)[-1] == "note: 5 more notes left out"
    assert len(watch.notes) == MAX_NOTES


def test_a_closed_standard_error_does_not_stop_the_work() -> None:
    clock = Clock()
    watch, err = watcher(clock)
    err.close()
    clock.now += 60
    watch(Progress("read", 1, None, 0, None))
    watch(Note("x"))
    watch.close()


def test_many_threads_may_report_at_once() -> None:
    clock = Clock()
    watch, err = watcher(clock)
    meter = Meter(watch, "read", total_items=8000)

    def work() -> None:
        for _ in range(1000):
            meter.advance(items=1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert meter.done_items == 8000 and lines(err) == []


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [  # done and total are (bytes, items)
        ((0, 0), (100, None), 0, "0 B of 100 B"),
        ((50, 5), (100, 10), 5, "50 B of 100 B, 5 of 10 items, 10 B/s, 5 s left"),
        ((100, 0), (100, None), 5, "100 B of 100 B, 20 B/s"),
        ((50, 0), (None, None), 5, "50 B, 10 B/s"),
        ((0, 4000), (None, 8000), 2, "4,000 of 8,000, 2,000/s, 2 s left"),
        ((0, 0), (0, None), 2, "0 B of 0 B"),
    ],
)
def test_the_phrase(done: tuple[int, int], total: tuple[int | None, int | None], seconds: float, text: str) -> None:
    first = Progress("s", 0, total[0], 0, total[1])
    event = Progress("s", done[0], total[0], done[1], total[1])
    assert describe(event, first, seconds) == text


def test_a_stage_that_starts_over_has_a_new_speed() -> None:
    clock = Clock()
    watch, err = watcher(clock)
    watch(Progress("read", 900, 1000, 0, None))
    clock.now += 100
    watch(Progress("read", 0, 1000, 0, None))
    clock.now += 10
    watch(Progress("read", 100, 1000, 0, None))
    assert lines(err)[-1] == "read: 100 B of 1 kB (10 %), 10 B/s, 1 min 30 s left"
