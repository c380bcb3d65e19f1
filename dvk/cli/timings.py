"""The table that `--timings` prints: a line a stage, and what is in none of them.

    stage      wall s   cpu s    bytes  count     rate
    encode       2.31    2.27  1.02 GB    974  441 MB/s
    ...
    in all       2.41    4.02

The rate is bytes by seconds of wall, so that of one thread: two threads encode twice as much.
"""

from __future__ import annotations

from dvk.cli.text import Line, columns, count, dim, rate, size
from dvk.timings import Row, Timings


def table(timings: Timings) -> list[Line]:
    """The lines of the table."""
    rows = [(dim("stage"), dim("wall s"), dim("cpu s"), dim("bytes"), dim("count"), dim("rate"))]
    cells = [tuple(_cells(r)) for r in timings.stages]
    rest = ("rest", "", _seconds(timings.rest_cpu_seconds))
    total = ("in all", _seconds(timings.wall_seconds), _seconds(timings.cpu_seconds))
    return columns([*rows, *cells, rest, total], right=range(1, 6))


def _cells(row: Row) -> list[str]:
    cells = [row.stage, _seconds(row.wall_seconds), _seconds(row.cpu_seconds)]
    speed = [rate(row.size / row.wall_seconds)] if row.size and row.wall_seconds > 0 else []
    return [*cells, size(row.size) if row.size else "", count(row.count), *speed]


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
