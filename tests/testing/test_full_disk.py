"""A sample of small disks: `python -m dvk.testing.full_disk --sizes 40` sweeps them all."""

from __future__ import annotations

import pytest

from dvk.testing.full_disk import can_mount, sweep


@pytest.mark.skipif(not can_mount(), reason="nothing can be mounted here: this needs root")
@pytest.mark.parametrize(("place", "verb"), [("store", "add"), ("work", "pull"), ("remote", "push")])
def test_a_disk_that_runs_full_costs_nobody_a_byte(place: str, verb: str) -> None:
    report = sweep(2, places={place: [verb]}, limits=["bytes"], say=print)
    assert report.broken == []
    assert report.full >= 1


@pytest.mark.skipif(not can_mount(), reason="nothing can be mounted here: this needs root")
def test_a_disk_without_inodes_costs_nobody_a_byte() -> None:
    report = sweep(2, places={"store": ["add"]}, limits=["inodes"], say=print)
    assert report.broken == []
    assert report.full >= 1
