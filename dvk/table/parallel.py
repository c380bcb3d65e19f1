"""The same work on many pieces, on all cores, results in order, only a few pieces in memory at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from dvk.store.threads import brisk, default_workers

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(work: Callable[[T], R], items: Iterable[T], *, workers: int | None = None) -> Iterator[R]:
    """`work(item)` for each item, in order; at most two results a worker wait for the caller.

    `work` runs in threads and must release the interpreter lock to gain anything. The first failure is raised in its
    place. Closing the iterator early drops what has not begun, and waits for what has.
    """
    count = workers or default_workers()
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(count, "dvk-table")
    try:
        with brisk():
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)
