"""Eight pushers at once into one remote: different branches, data that overlap, no locks. Everything can be restored.

What they have in common with what was there before is never sent. What is new to several of them is sent by each that
began before another had ended: there is nobody to ask. Whoever comes later sends only what is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flowkit import Flow, noise

if TYPE_CHECKING:
    from dvk.testing.s3server import S3Address

PUSHERS = 8
BASE, SHARED, OWN, EDIT = 1_500_000, 300_000, 120_000, 100_000
#: Pages, locators and what stands around blocks, for one push of a folder of this size.
OVERHEAD = 60_000


@pytest.fixture(params=["file", "s3"])
def flow(request: pytest.FixtureRequest, tmp_path: Path) -> Flow:
    """A repository with a version on its remote."""
    remote, environ = None, {}
    if request.param == "s3":
        s3: S3Address = request.getfixturevalue("s3")
        new_bucket: Callable[[], str] = request.getfixturevalue("new_bucket")
        remote, environ = f"s3://{new_bucket()}/team", s3.env
    flow = Flow(tmp_path / "a", tmp_path, remote=remote, environ=environ)
    files: dict[str | bytes, bytes] = {f"d/{i}": noise(BASE // 60, i) for i in range(40)}
    flow.version({**files, "big.bin": noise(BASE // 3, 99)}, "d", "big.bin")
    flow.push()
    return flow


def branch(flow: Flow, i: int, top: Path) -> Flow:
    """A clone with a branch of its own: an edit of what all have, something new that all have, something of its own."""
    clone = flow.clone(top)
    clone.git("checkout", "-q", "-b", f"b{i}")
    clone.pull()
    big = bytearray(clone.read("big.bin"))
    big[200_000 : 200_000 + EDIT] = noise(EDIT, 1000 + i)
    clone.write({"big.bin": bytes(big), "shared.bin": noise(SHARED, 7), f"d/own{i}": noise(OWN, 2000 + i)})
    clone.version({}, "big.bin", "d", "shared.bin")
    return clone


def result_of(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, said = process.communicate(timeout=200)
    assert process.returncode == 0, (out, said)
    found: dict[str, Any] = json.loads(out)["result"]
    return found


@pytest.mark.timeout(300)
def test_all_succeed_everything_is_there_and_what_is_sent_twice_is_what_was_in_flight(
    flow: Flow, tmp_path: Path
) -> None:
    clones = [branch(flow, i, tmp_path / f"c{i}") for i in range(PUSHERS)]
    running = [clone.start("push", "--json") for clone in clones]
    results = [result_of(process) for process in running]
    moved = sum(r["moved_bytes"] for r in results)
    needed = PUSHERS * (OWN + EDIT) + SHARED
    print(f"sent {moved:,} bytes, {needed:,} of them needed; {(moved - needed) / moved:.0%} by more than one at once")
    assert moved <= PUSHERS * (OWN + EDIT + SHARED + OVERHEAD + (64 << 10))
    assert all(r["already_there"] >= 2 and not r["lost_packs"] for r in results)
    # Whoever comes later finds what all have in common.
    late = branch(flow, PUSHERS, tmp_path / "late")
    result = result_of(late.start("push", "--json"))
    assert OWN + EDIT <= result["moved_bytes"] <= OWN + EDIT + OVERHEAD + (64 << 10)
    for i, clone in enumerate([*clones, late]):
        fresh = clone.clone(tmp_path / f"f{i}")
        fresh.pull()
        assert fresh.data() == clone.data()
        assert fresh.push(verify_full=True).sent == []
    before = flow.clone(tmp_path / "first")
    before.pull()
    assert before.data() == flow.data()


def test_all_push_the_same_first_version_at_once(flow: Flow, tmp_path: Path) -> None:
    """The store itself is made by one of them, and all use it."""
    clones = [flow.clone(tmp_path / f"c{i}") for i in range(4)]
    for clone in clones:
        clone.pull()
        clone.git("remote", "remove", "origin")
        toml = clone.read("dvk.toml").decode().replace('/team"', '/second"').replace('/remote"', '/second"')
        clone.write({"dvk.toml": toml.encode()})
        clone.environ["DVK_TRUST_REMOTES"] = flow.environ["DVK_TRUST_REMOTES"].rsplit("/", 1)[0]
    for result in [result_of(process) for process in [clone.start("push", "--json") for clone in clones]]:
        assert len(result["sent"]) + result["already_there"] == 2
    fresh = clones[0].clone(tmp_path / "fresh")
    fresh.write({"dvk.toml": clones[0].read("dvk.toml")})
    fresh.environ = dict(clones[0].environ)
    fresh.pull()
    assert fresh.data() == flow.data() and os.listdir(fresh.top)
