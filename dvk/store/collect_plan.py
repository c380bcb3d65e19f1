"""What a collection of garbage would do, decided from one census and from what Git says. Changes nothing.

    plan = decide(census, kept, limits, project=..., now=..., seen=..., needs=..., subject="origin")

A record is retired when nothing that it brought is wanted; where other records rely on it, one new record over what is
wanted takes their place first. What this repository's history never named is somebody else's and stays, and so are
records of other projects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from blake3 import blake3
from msgspec import Struct, field
from msgspec.structs import asdict

from dvk.errors import FormatError, Unsafe
from dvk.store.census import Census
from dvk.store.root import Root

_FORMAT = 1
_KIND = "dvk gc plan"


class Kept(Struct, frozen=True):
    """What Git says, as records write roots: everything its history ever named, and of that what is to stay."""

    known: frozenset[str]
    wanted: frozenset[str]
    roots: Mapping[str, Root] = field(default_factory=dict)  #: how large versions are, as far as Git says so


class Limits(Struct, frozen=True):
    """Times are in seconds and leave room for people; safety does not rest on them."""

    retention: int = 30 * 86400  #: a record stays at least this long, whatever Git says
    young: int = 86400  #: packs and intents of pushes that may be under way stay at least this long
    grace: int = 7 * 86400  #: between condemning and deleting
    more_than_half: bool = False  #: allow deleting more than half of all bytes
    exclusive: bool = False  #: the operator promises that nobody else pushes or collects until it has ended


class CollectPlan(Struct, frozen=True):
    """What a collection would do. `digest` names it: the plan that was looked at is the one that is done."""

    store: str
    retire: tuple[str, ...]  #: records of which nothing is wanted any more
    replace: tuple[str, ...]  #: records that one over `keep` takes the place of
    keep: tuple[str, ...]  #: wanted roots of those
    give_up: tuple[str, ...]  #: intents that nobody confirmed for long
    unwanted: tuple[str, ...]  #: roots that go
    packs: tuple[str, ...]  #: that nobody needs then
    bytes: int
    total_packs: int
    total_bytes: int
    young: int  #: packs that no record names yet, too new to judge
    records: int
    repack: tuple[str, ...] = ()  #: packs of which little lives: that is sent again in others first
    made_at: int = 0  #: Unix seconds of the clock that ages were judged by

    @property
    def digest(self) -> str:
        """16 hex digits over everything that is decided."""
        decided: list[object] = [
            self.store,
            self.retire,
            self.replace,
            self.keep,
            self.give_up,
            self.unwanted,
            self.packs,
        ]
        decided += [self.repack] if self.repack else []
        return blake3(json.dumps(decided).encode()).hexdigest()[:16]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.retire or self.replace or self.give_up or self.packs or self.repack)


def format_plan(plan: CollectPlan, policy: Mapping[str, Any]) -> str:
    """A plan as the file that a person looks at and hands back; `policy` is what the collection was asked for."""
    raw = {"kind": _KIND, "format": _FORMAT, "digest": plan.digest, "policy": dict(policy), "plan": asdict(plan)}
    return json.dumps(raw, indent=1, sort_keys=True) + "\n"


def parse_plan(text: str, *, subject: str) -> tuple[CollectPlan, dict[str, Any]]:
    """The plan in a file, and its policy.

    Raises:
        FormatError: it is none, or was changed: its digest does not fit.
    """
    try:
        raw = json.loads(text)
        if raw["kind"] != _KIND or raw["format"] != _FORMAT or not isinstance(raw["policy"], dict):
            raise ValueError("kind")
        columns: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["plan"].items()}
        plan = CollectPlan(**columns)
        texts = [
            *plan.retire,
            *plan.replace,
            *plan.keep,
            *plan.give_up,
            *plan.unwanted,
            *plan.packs,
            *plan.repack,
            plan.store,
        ]
        numbers = (plan.bytes, plan.total_packs, plan.total_bytes, plan.young, plan.records, plan.made_at)
        if not all(isinstance(t, str) for t in texts) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("types")
        digest = raw["digest"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(
            "this is no plan of dvk gc", subject=subject, hint="`dvk gc --remote NAME` writes one"
        ) from error
    if plan.digest != digest:
        raise FormatError(
            "this plan was changed: it does not fit its digest", subject=subject, hint="make a new plan and look at it"
        )
    return plan, raw["policy"]


def is_ours(project: str, ours: str, *, exclusive: bool) -> bool:
    """Whether records of a project are for a collector of `ours` to retire; those of nobody only when it is alone."""
    return project == ours or (exclusive and not project)


def ours(census: Census, limits: Limits, project: str) -> set[str]:
    """Records that a collector of `project` may retire."""
    return {
        rid for rid, record in census.records.items() if is_ours(record.project, project, exclusive=limits.exclusive)
    }


def roots_that_go(census: Census, kept: Kept, limits: Limits, *, project: str, now: int) -> frozenset[str]:
    """Roots that Git knew and does not want. A version that was pushed again lately stays, whatever Git says here."""
    mine = ours(census, limits, project) & census.live & census.confirmed
    young = [census.records[rid] for rid in mine if census.times[rid] > now - limits.retention]
    return (kept.known - kept.wanted).difference(*(record.roots for record in young))


def decide(
    census: Census,
    kept: Kept,
    limits: Limits,
    *,
    project: str,
    now: int,
    seen: Mapping[str, int],
    needs: Callable[[Sequence[str]], Collection[str]],
    subject: str,
    free: Collection[str] = (),
) -> CollectPlan:
    """What could go.

    Args:
        seen: when packs that no record names were seen first.
        needs: the pack keys that roots use, proven.
        free: packs that nothing has to use any more: records that name them are to be replaced.

    Raises:
        Unsafe: nothing that is wanted would be left, or more than half would go; and what `needs` raises.
    """
    confirmed = census.live & census.confirmed
    mine = ours(census, limits, project) & confirmed
    roots = {rid: frozenset(census.records[rid].roots) for rid in mine}
    goes = roots_that_go(census, kept, limits, project=project, now=now)
    touched = {rid for rid in mine if not roots[rid].isdisjoint(goes)}
    retire = {rid for rid in touched if roots[rid] <= goes}
    # Whoever relies on a record that goes, or that is gone already, holds all of its packs.
    replaced = (touched - retire) | ((census.relying(touched | census.retired) & mine) - touched)
    if free:
        naming = {rid for rid, r in census.records.items() if not set(free).isdisjoint((*r.packs, *r.reused))}
        replaced |= ((naming | census.relying(naming)) & mine) - retire
    give_up = {rid for rid in census.intents - census.expired if census.times[rid] <= now - limits.young}
    stay = census.live - give_up - retire
    garbage = census.packs.keys() - census.named(stay)
    keep = {root for rid in replaced for root in roots[rid]} - goes
    if keep and census.named(stay) - census.named(stay - replaced):
        less = census.packs.keys() - census.named(stay - replaced) - set(needs(sorted(keep)))
    else:
        less = garbage
    if less > garbage:
        garbage = less
    else:  # a compaction that frees nothing would only cost
        replaced, keep = set(), set()
    unwanted = {root for rid in retire | replaced for root in roots[rid] & goes}
    nobodys = garbage - census.named(census.records)
    young = {k for k in nobodys if seen.get(k, now) > now - limits.young}
    packs = sorted(garbage - young)
    plan = CollectPlan(
        store=census.store,
        retire=tuple(sorted(retire)),
        replace=tuple(sorted(replaced)),
        keep=tuple(sorted(keep)),
        give_up=tuple(sorted(give_up)),
        unwanted=tuple(sorted(unwanted)),
        packs=tuple(packs),
        bytes=sum(census.packs[k] for k in packs),
        total_packs=len(census.packs),
        total_bytes=sum(census.packs.values()),
        young=len(young),
        records=len(census.records),
        made_at=now,
    )
    if not confirmed - retire:
        raise Unsafe(
            "nothing that is wanted would be left; nothing was deleted",
            subject=subject,
            hint="fetch all branches and tags first; what Git does not know here looks unwanted",
        )
    if plan.bytes * 2 > plan.total_bytes and not limits.more_than_half:
        raise Unsafe(
            f"{plan.bytes:,} of {plan.total_bytes:,} bytes would go, more than half; nothing was deleted",
            subject=subject,
            hint="if that is right, say --i-know",
        )
    return plan
