"""How the commands `python -m dvk.testing.X` speak and end: line by line, with a seed, and 1 for a broken promise."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable


class Broken(AssertionError):
    """A promise was broken; the message says which one."""


def say(line: str) -> None:
    """A line for whoever waits, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def seed_or_new(seed: int | None) -> int:
    """The seed of an earlier run, to replay it, or a new one."""
    return random.SystemRandom().getrandbits(32) if seed is None else seed


def end(work: Callable[[], object]) -> int:
    """Do the work and say what it found; the exit code, 1 when a promise was broken."""
    try:
        say(str(work()))
    except Broken as error:
        say(f"BROKEN: {error}")
        return 1
    return 0
