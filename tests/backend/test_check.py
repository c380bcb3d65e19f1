"""`remote check` passes good media and names each misbehaviour of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvk.backend import check as check_module
from dvk.backend.check import LIGHT_KEY, Misbehaves, check, check_light
from dvk.backend.contract import Backend
from dvk.backend.local import LocalBackend
from dvk.backend.locate import RemoteSettings, open_backend
from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.errors import RemoteDenied, RemoteUnreachable
from dvk.testing.faults import FaultBackend
from dvk.testing.liar import LIES, Lie, LyingBackend
from dvk.testing.s3server import S3Address

#: What dvk can live with, so that the remote is not refused.
WEAK = {"create-only", "no-delete", "no-write"}
#: What only a thorough check finds.
THOROUGH = {"list-cap"}
#: What the one object of a first push cannot show.
BEYOND_LIGHT = WEAK | THOROUGH | {"keeps-deleted", "missing-is-denied"}


def names(backend: Backend, *, thorough: bool = False) -> list[str]:
    report = check(backend, patience_s=0.2, thorough=thorough)
    return sorted({f.name for f in report.fatal + report.weak})


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_is_named(lie: Lie) -> None:
    medium = MemoryBackend()
    medium.put("dvk.json", [b"{}" * 100])
    report = check(LyingBackend(medium, lie), patience_s=0.3, thorough=lie in THOROUGH)
    assert {f.name for f in report.fatal + report.weak} >= {lie}
    assert (lie in {f.name for f in report.weak}) is (lie in WEAK)
    assert bool(report.fatal) is (lie not in WEAK)


@pytest.mark.parametrize("lie", LIES)
def test_a_first_push_refuses_what_would_lose_data_and_accepts_the_rest(lie: Lie) -> None:
    backend = LyingBackend(MemoryBackend(), lie)
    if lie == "no-write":
        with pytest.raises(RemoteDenied):
            check_light(backend, patience_s=0.2)
    elif lie in BEYOND_LIGHT:
        check_light(backend, patience_s=0.2)
    else:
        with pytest.raises(Misbehaves) as caught:
            check_light(backend, patience_s=0.2)
        assert caught.value.finding.name == lie
        assert lie in caught.value.message and caught.value.hint


@pytest.mark.parametrize("thorough", [False, True])
def test_a_good_medium_passes_and_is_left_as_it_was(tmp_path: Path, thorough: bool) -> None:
    for backend in (MemoryBackend(), LocalBackend(str(tmp_path / "remote"))):
        backend.put("p/ab/x", [b"data"])
        report = check(backend, thorough=thorough)
        assert not report.fatal + report.weak and not report.left_over
        assert not any(step.skipped for step in report.steps)
        assert [row.key for row in backend.list("")] == ["p/ab/x"]
        check_light(backend)
        check_light(backend)
        assert sorted(row.key for row in backend.list("")) == [LIGHT_KEY, "p/ab/x"]


def test_the_light_form_never_deletes_and_is_small() -> None:
    counting = CountingBackend(MemoryBackend())
    check_light(counting)
    assert counting.counts.delete == 0
    assert counting.counts.put == 1
    assert counting.counts.requests <= 10


def test_a_real_server_passes(s3: S3Address, new_bucket: Callable[[], str]) -> None:
    backend = open_backend(f"s3://{new_bucket()}/some prefix", settings=RemoteSettings(), environ=s3.env)
    report = check(backend)
    assert not report.fatal + report.weak and not report.left_over
    check_light(backend)
    assert [row.key for row in backend.list("")] == [LIGHT_KEY]
    backend.close()


def test_who_may_not_delete_is_told_how_much_stays() -> None:
    medium = MemoryBackend()
    report = check(LyingBackend(medium, "no-delete"))
    assert report.left_over == len(list(medium.list("check/"))) > 0


def test_no_answer_is_no_verdict() -> None:
    backend = FaultBackend(MemoryBackend())
    backend.fail("any", at=12, error=lambda: RemoteUnreachable("cut"), forever=True)
    with pytest.raises(RemoteUnreachable):
        check(backend)


def test_nothing_is_written_where_nothing_may_be() -> None:
    with pytest.raises(RemoteDenied):
        check(LyingBackend(MemoryBackend(), "no-write"))


def test_a_key_that_comes_late_is_not_taken_for_respelled() -> None:
    found = check_module._respelled(["check/a", "check/b"], ["check/a"])
    assert found.name == "stale-list"
    assert check_module._respelled(["check/a"], ["CHECK/A"]).name == "key-case"
