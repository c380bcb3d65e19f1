"""The live progress display. Only this module imports rich; `dvk.cli.progress` loads it when it is due."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from dvk import events


class Live:
    """One row per stage: name, bar, phrase. Gone after `close`. Calls must be serialized by the caller."""

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._console = Console(file=stream, force_terminal=True, no_color=not color, highlight=False, markup=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[phrase]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._rows: dict[str, TaskID] = {}
        self._progress.start()

    def update(self, event: events.Progress, phrase: str) -> None:
        """Show `event`; `phrase` is its state in words."""
        by_bytes = event.total_bytes is not None
        done = event.done_bytes if by_bytes else event.done_items
        total = event.total_bytes if by_bytes else event.total_items
        row = self._rows.get(event.stage)
        if row is None:
            row = self._rows[event.stage] = self._progress.add_task(event.stage, total=None, phrase="")
        self._progress.update(row, completed=done, total=total, phrase=phrase)

    def print_above(self, line: str) -> None:
        """A finished line (escaped, maybe with SGR codes of ours) above the bars."""
        self._console.print(Text.from_ansi(line), soft_wrap=True)

    def close(self) -> None:
        """Take the display away and give the cursor back."""
        self._progress.stop()
