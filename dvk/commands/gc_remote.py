"""`dvk gc --remote`: what no commit leads to any more leaves a remote, in two steps that can be looked at.

    plan = plan_remote_gc(repo, asked)                  # writes a plan file, changes nothing
    apply_remote_gc(repo, plan.plan_file)               # condemns: everything can still be read, and it can be undone
    sweep_remote_gc(repo, "origin")                     # after the grace: deletes
    undo_remote_gc(repo, "origin")                      # instead

The protocol is that of `dvk.store.collect`; here is what Git says, and the files. A plan is done as it was looked at:
it is worked out again, and must come out alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from dvk.backend.disk import translate
from dvk.commands.kept import Policy, check_complete, kept
from dvk.commands.repo import Remote, Repo
from dvk.errors import DataMissing, DvkError, FormatError, NotFound, UsageError
from dvk.events import OnEvent, ignore
from dvk.store.collect import Collector
from dvk.store.collect_plan import CollectPlan, Kept, Limits, format_plan, parse_plan
from dvk.store.roots import ConfirmedRoots

Clock = Callable[[], float]


class Asked(Struct, frozen=True):
    """What a collection is asked for."""

    remote: str | None = None
    policy: Policy = field(default_factory=Policy)
    limits: Limits = field(default_factory=Limits)
    offline: bool = False  #: go by what Git fetched last


class RemoteGcResult(Struct):
    """What was found or done on a remote. Times are Unix seconds.

    Attributes:
        step: "plan", "condemn", "sweep" or "undo".
        records: that are retired, replaced by a smaller one or given up, or would be.
        versions: that go, or that an undo brought back.
        spared: packs that were condemned and that somebody came to need.
        waiting: packs that this clone condemned earlier and has not swept.
    """

    step: str
    remote: str
    url: str
    plan_file: str = ""
    digest: str = ""
    records: int = 0
    versions: int = 0
    packs: int = 0
    bytes: int = 0
    total_packs: int = 0
    total_bytes: int = 0
    total_records: int = 0
    repack: int = 0  #: packs of which little lives: that is sent again in others first
    young: int = 0  #: packs that no record names yet, too new to judge
    spared: int = 0
    waiting: int = 0
    ripe_at: int | None = None  #: from when what is condemned may be swept
    requests: int = 0
    failures: list[DvkError] = field(default_factory=list)


def plan_remote_gc(
    repo: Repo, asked: Asked, *, plan_file: str | None = None, on_event: OnEvent = ignore, clock: Clock = time.time
) -> RemoteGcResult:
    """Say what could go, and write that down for `apply_remote_gc`. Changes nothing on the remote.

    Args:
        plan_file: where; in dvk's folder of this clone by default.

    Raises:
        Unsafe: what is seen cannot be trusted; nothing may be collected. Refused, NotFound: the remote.
    """
    with _collector(repo, asked, on_event, clock) as (target, collector, said):
        plan = collector.plan(said())
        out = _result("plan", target, plan)
        waiting = collector.condemned
        out.waiting = len(waiting.packs)
        out.ripe_at = waiting.condemned_at + asked.limits.grace if waiting.list_key else None
        if not plan.empty:
            default = os.path.join(repo.remotes_state, plan.store, f"gc-{plan.digest}.json")
            out.plan_file = _write(plan_file or default, format_plan(plan, _policy(asked, target)))
        out.requests = target.requests
        return out


def apply_remote_gc(
    repo: Repo,
    plan_file: str,
    *,
    remote: str | None = None,
    more_than_half: bool = False,
    on_event: OnEvent = ignore,
    clock: Clock = time.time,
) -> RemoteGcResult:
    """Do a plan: retire what is not wanted and condemn its packs. Until the sweep all of it can be read and taken back.

    Raises:
        FormatError: the file is no plan. UsageError: it is one for another remote.
        Refused: something changed since the plan was made. Unsafe: as `plan_remote_gc`.
    """
    plan, asked = _read(plan_file, remote)
    if more_than_half:
        asked = replace(asked, limits=replace(asked.limits, more_than_half=True))
    with _collector(repo, asked, on_event, clock) as (target, collector, said):
        with repo.writing():  # it may fetch, to write locators that lead nowhere again or to pack anew
            done = collector.condemn(said(), plan, policy=_policy(asked, target))
        out = _result("condemn", target, done)
        out.ripe_at = collector.ripe_at
        out.plan_file = plan_file
        out.requests = target.requests
        return out


def sweep_remote_gc(
    repo: Repo,
    remote: str | None = None,
    *,
    grace: int | None = None,
    offline: bool = False,
    exclusive: bool = False,
    on_event: OnEvent = ignore,
    clock: Clock = time.time,
) -> RemoteGcResult:
    """Delete what this clone condemned, once the grace is over. What Git wants again by now stays.

    Args:
        grace: instead of the one that the plan was made with.
        exclusive: nobody else uses the remote: what others left behind goes, too.

    Raises:
        Refused: nothing is condemned, or the grace is not over. Unsafe: as `plan_remote_gc`; nothing was deleted.
    """
    with _collector(repo, Asked(remote), on_event, clock) as (target, collector, _):
        policy = collector.condemned.policy
    asked = _asked(policy, remote or target.name) if policy else Asked(target.name)
    limits = replace(asked.limits, grace=asked.limits.grace if grace is None else grace, exclusive=exclusive)
    asked = replace(asked, limits=limits, offline=offline or asked.offline)
    with _collector(repo, asked, on_event, clock) as (target, collector, said):
        with repo.writing():
            done = collector.sweep(said())
        out = RemoteGcResult("sweep", target.name, target.url, packs=done.packs, bytes=done.bytes, spared=done.spared)
        out.requests = target.requests
        return out


def undo_remote_gc(
    repo: Repo, remote: str | None = None, *, on_event: OnEvent = ignore, clock: Clock = time.time
) -> RemoteGcResult:
    """Take back what was condemned and is not swept. What cannot be brought back is in `failures`.

    Raises:
        Refused: nothing is condemned. Unsafe: another collection deletes the same.
    """
    with _collector(repo, Asked(remote), on_event, clock) as (target, collector, _):
        done = collector.undo()
        out = RemoteGcResult("undo", target.name, target.url, versions=len(done.kept), requests=target.requests)
        out.failures = [
            DataMissing("a part of it is deleted already", subject=root, hint="`dvk push` from a clone that holds it")
            for root in done.lost
        ]
        return out


@contextmanager
def _collector(
    repo: Repo, asked: Asked, on_event: OnEvent, clock: Clock
) -> Iterator[tuple[Remote, Collector, Callable[[], Kept]]]:
    repo.workspace.need_git("gc of a remote")
    target = repo.remote(asked.remote, write=True)
    found = target.store.describe()
    if found is None:
        raise NotFound("there is no dvk store on this remote", subject=target.url, hint="`dvk push` makes one")
    confirmed = ConfirmedRoots(repo.remotes_state, found.store).read()

    def said() -> Kept:
        heard = check_complete(repo, offline=asked.offline)
        return kept(repo, asked.policy, confirmed=confirmed, heard=heard, on_event=on_event)

    with Collector(
        target.store,
        repo.remotes_state,
        limits=asked.limits,
        project=repo.project,
        promised={rid.hex() for rid in confirmed.values()},
        local=repo.store,
        clock=clock,
        on_event=on_event,
    ) as collector:
        yield target, collector, said


def _result(step: str, target: Remote, plan: CollectPlan) -> RemoteGcResult:
    return RemoteGcResult(
        step,
        target.name,
        target.url,
        digest=plan.digest,
        records=len(plan.retire) + len(plan.replace) + len(plan.give_up),
        versions=len(plan.unwanted),
        packs=len(plan.packs),
        bytes=plan.bytes,
        total_packs=plan.total_packs,
        total_bytes=plan.total_bytes,
        total_records=plan.records,
        young=plan.young,
        repack=len(plan.repack),
    )


# ------------------------------------------------------------ the plan file


def _policy(asked: Asked, target: Remote) -> dict[str, Any]:
    keep, limits = asked.policy.as_json(), asdict(asked.limits)
    return {"remote": target.name, "keep": keep, "limits": limits, "offline": asked.offline}


def _asked(policy: dict[str, Any], subject: str) -> Asked:
    try:
        limits = policy["limits"]
        flags = {k: limits[k] for k in ("more_than_half", "exclusive")}
        times = {k: limits[k] for k in ("retention", "young", "grace")}
        if not all(type(n) is int and n >= 0 for n in times.values()) or not all(
            type(b) is bool for b in (*flags.values(), policy["offline"])
        ):
            raise ValueError("limits")
        return Asked(str(policy["remote"]), Policy.of_json(policy["keep"]), Limits(**times, **flags), policy["offline"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("what this collection was asked for cannot be read", subject=subject) from error


def _read(plan_file: str, remote: str | None) -> tuple[CollectPlan, Asked]:
    try:
        with translate(plan_file), open(plan_file, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise FormatError("this is no plan of dvk gc", subject=plan_file) from error
    plan, policy = parse_plan(text, subject=plan_file)
    asked = _asked(policy, plan_file)
    if remote is not None and remote != asked.remote:
        raise UsageError(f"this plan is for the remote {asked.remote}", subject=plan_file)
    return plan, asked


def _write(plan_file: str, text: str) -> str:
    with translate(plan_file):
        os.makedirs(os.path.dirname(os.path.abspath(plan_file)), exist_ok=True)
        with open(plan_file, "w", encoding="utf-8") as file:
            file.write(text)
    return plan_file
