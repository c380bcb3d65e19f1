"""Shows the events of long work: live for a person, a line every ten seconds for a log, nothing when quiet.

    upload  ━━━━━━━━━━━━╺━━━━━  412 MB of 1.02 GB  118 MB/s  5 s left
    upload: 412 MB of 1.02 GB (40 %), 118 MB/s, 5 s left

The live display appears after half a second of work, since short verbs should leave no trace and rich costs
50 ms to import. Listeners are called from worker threads, thousands of times a second: everything happens
under one lock and costs a comparison unless something is due. A display that fails (a closed terminal) turns
itself off; the work goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dvk.cli.output import Terminal
from dvk.cli.text import count, duration, percent, rate, size
from dvk.events import Event, Note, Progress

if TYPE_CHECKING:
    from dvk.cli.live import Live

LIVE_AFTER_S = 0.5
LINE_EVERY_S = 10.0

#: More notes than this say nothing new; the rest are counted.
MAX_NOTES = 1000


class Watcher:
    """A listener (`OnEvent`) for one verb. Use it as a context: leaving it takes the display away."""

    def __init__(self, terminal: Terminal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._due = self._began + (LIVE_AFTER_S if terminal.err_is_terminal else LINE_EVERY_S)
        self._stages: dict[str, tuple[float, Progress]] = {}  # stage -> (time of its first event, that event)
        self._live: Live | None = None
        self._silent = terminal.quiet
        self._left_out = 0
        self.notes: list[Note] = []

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event, from any thread."""
        with self._lock:
            if isinstance(event, Note):
                self._on_note(event)
            elif isinstance(event, Progress) and not self._silent:
                try:
                    self._on_progress(event)
                except (OSError, ValueError):  # standard error went away; that must not stop the work
                    self._silent = True

    def close(self) -> None:
        """Remove the live display and count the notes that were too many. Safe to call twice."""
        with self._lock:
            if self._live is not None:
                try:
                    self._live.close()
                except (OSError, ValueError):
                    self._silent = True
                self._live = None
            if self._left_out:
                left_out, self._left_out = self._left_out, 0
                self._say(Note(f"{count(left_out)} more notes left out"))

    def _on_note(self, note: Note) -> None:
        if len(self.notes) >= MAX_NOTES:
            self._left_out += 1
            return
        self.notes.append(note)
        self._say(note)

    def _say(self, note: Note) -> None:
        if self._terminal.quiet or self._terminal.as_json:  # JSON carries its notes in the document
            return
        for line in self._terminal.note(note):
            if self._live is not None:
                self._live.print_above(self._terminal.for_stderr(line))
            else:
                self._terminal.say(line)

    def _on_progress(self, event: Progress) -> None:
        now = self._clock()
        began, first = self._stages.setdefault(event.stage, (now, event))
        if event.done_bytes < first.done_bytes or event.done_items < first.done_items:
            began, first = self._stages[event.stage] = (now, event)  # the stage starts over with other work
        if self._live is None and now < self._due:
            return
        if self._terminal.err_is_terminal:
            if self._live is None:
                from dvk.cli.live import Live  # rich: imported once somebody has waited long enough to see it

                self._live = Live(self._terminal.stderr, color=self._terminal.color_err)
            self._live.update(event, describe(event, first, now - began))
        else:
            self._due = now + LINE_EVERY_S
            self._terminal.say(f"{event.stage}: {describe(event, first, now - began, with_percent=True)}")


def describe(event: Progress, first: Progress, seconds: float, *, with_percent: bool = False) -> str:
    """How far a stage is, how fast it goes and how long it still takes, as one phrase.

    Speed is the mean since the stage's first event, `seconds` ago: steady enough to read. Time left follows
    from bytes where their total is known, else from items.
    """
    parts = []
    by_bytes = event.total_bytes is not None or (event.done_bytes > 0 and event.total_items is None)
    if by_bytes:
        done, total, began = event.done_bytes, event.total_bytes, first.done_bytes
        text = size(done) + (f" of {size(total)}" if total is not None else "")
    else:
        done, total, began = event.done_items, event.total_items, first.done_items
        text = count(done) + (f" of {count(total)}" if total is not None else "")
    if with_percent and total:
        text += f" ({percent(done, total)})"
    parts.append(text)
    if by_bytes and event.total_items is not None:
        parts.append(f"{count(event.done_items)} of {count(event.total_items)} items")
    speed = (done - began) / seconds if seconds > 0 else 0.0
    if speed > 0:
        parts.append(rate(speed) if by_bytes else f"{count(round(speed))}/s")
        if total is not None and done < total:
            parts.append(f"{duration(max((total - done) / speed, 1))} left")
    return ", ".join(parts)
