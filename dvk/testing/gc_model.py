"""Exhaustive check of the handshake between pushers and collectors: every interleaving, every crash point.

    python -m dvk.testing.gc_model            # every scene, then every rule removed in turn; seconds
    python -m dvk.testing.gc_model --large    # larger scenes too; half a minute, two gigabytes

The model is docs/format/record.md and gc.md reduced to one chunk. Packs are names that hold it, the store is
linearizable, each step of a process is one operation on the store, and a process that crashes is one that never moves
again, so every prefix is explored. There is no clock, lease or grace period: safety must not depend on them.

A record names packs: its own, and those of its bases. A pack is live while a live record names it, directly or through
a base, retired bases included. So a collector never weighs chunks, and two collectors agree without asking each other.

The promise: the pack that a confirmed push relies on exists in every reachable state, and so does the pack of a record
that was live from the start until Git retires it. That is stronger than "some copy exists": locators stay right.
A second one: no record that collectors take for confirmed and live names a pack that was collected, for it would look
like a loss and stop every collection from then on.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

#: The rules of the protocol. Without one of them some scene must lose data.
RULES = {
    "post_check": "a pusher looks after its record is visible (P4, P5)",
    "lists_then_exists": "condemned lists are read before existence is checked (P4 before P5)",
    "exists": "what is relied on is checked to exist (P5)",
    "base_after_record": "a base is looked at after the record that names it is visible (P5)",
    "base_live": "a base must be there, confirmed and not retired (P5)",
    "base_not_expired": "a base must not carry an expiry mark, confirmed or not (P5)",
    "pusher_fenced": "a pusher looks for a mark on its own record after confirming (P7)",
    "publish": "the condemned list is published before records are listed again (G2)",
    "list_again": "records are listed again after the list is visible (G3)",
    "fresh_listing": "that listing shows every record written before it (G3)",
    "retired_bases": "a retired base of a live record still names its packs",
    "expired_then_confirmed": "an expired record is dead only if no confirmation is seen after its mark was",
    "mark_stays": "an expiry mark is never taken back",
    "given_up_for_good": "what is taken for dead is retired before its packs go: a late confirmation is none (G5)",
    "own_record": "a root that only another project's record, or an old one, covers gets a record of its own",
    "own_project": "a collector retires records of its own project only",
    "undo_as_push": "who takes a collection back looks like a pusher (P4, P5, P7)",
    "list_of_its_own": "a sweep deletes under a list of its own, not under one that a copy of its clone knows (G3)",
    "owner_only": "only its owner removes a condemned list (G7)",
    "compact_confirmed": "a compaction retires the old record after its own is confirmed and looked at once more",
    # Two that stand in for each other: data is lost only when both are gone. dvk keeps all four.
    "rescue_bases": "a record seen in G3 rescues the packs of its bases too",
    "retire_then_list": "records are retired before the listing that marks (G1)",
    "base_kept": "a retired record is not removed while a listed record names it as a base",
    "hole_refused": "a listing in which a live record names an absent base stops the collector",
}
_TOGETHER = (("rescue_bases", "retire_then_list"), ("base_kept", "hole_refused"))
_ALONE = tuple(r for r in RULES if not any(r in pair for pair in _TOGETHER))
#: What is removed in turn.
REMOVALS: tuple[tuple[str, ...], ...] = (*((r,) for r in _ALONE), *_TOGETHER)
GOOD = dict.fromkeys(RULES, True)


class Rec(NamedTuple):
    """A record: the pack that it names itself, or the record whose packs it relies on."""

    name: str
    pack: str | None
    base: Rec | None

    def packs(self) -> frozenset[str]:
        """Everything that it names, through bases too."""
        own = frozenset([self.pack]) if self.pack is not None else frozenset()
        return own | (self.base.packs() if self.base is not None else frozenset())


_NOTHING = Rec("", None, None)


class Push(NamedTuple):
    """Where a pusher stands: next step, its record, uploads so far, and what an early look said (for removed rules)."""

    step: str = "plan"
    rec: Rec = _NOTHING
    uploads: int = 0
    early: bool = False


class Collect(NamedTuple):
    """Where a collector stands.

    Next step, what it would delete, the records it listed, those it takes for dead, the one at hand, the keys left.
    """

    step: str = "choose"
    doomed: frozenset[str] = frozenset()
    seen: frozenset[Rec] = frozenset()
    dead: frozenset[Rec] = frozenset()
    at: Rec = _NOTHING
    left: tuple[str, ...] = ()


class State(NamedTuple):
    """The whole store and where everybody stands."""

    packs: frozenset[str]
    recs: frozenset[Rec]
    confirmed: frozenset[Rec]
    retired: frozenset[Rec]
    expired: frozenset[Rec]
    lists: tuple[frozenset[str] | None, ...]
    pushers: tuple[Push, ...]
    collectors: tuple[Collect, ...]
    wanted: bool  # Git still wants the root of the first record


_FIRST = Rec("first", "p", None)
_NONE: frozenset[Any] = frozenset()


@dataclass(frozen=True, slots=True)
class Scene:
    """Who is there.

    `live`: a confirmed record names pack `p` from the start; else `p` is garbage. `may`: what collectors try.
    """

    name: str
    pushers: int
    collectors: int
    live: bool = False
    may: tuple[str, ...] = ()
    uploads: int = 2


SCENES = (
    Scene("1 push, 1 gc, a dead pack", 1, 1),
    Scene("2 pushes, 1 gc, a dead pack", 2, 1),
    Scene("1 push, 2 gc, a dead pack", 1, 2),
    Scene("1 push on a base, Git retires the base", 1, 1, live=True, may=("retire",)),
    Scene("2 pushes on bases, Git retires the first", 2, 1, live=True, may=("retire",), uploads=1),
    Scene("1 push on a base, 2 gc, Git retires", 1, 2, live=True, may=("retire",), uploads=1),
    Scene("compaction, expiry beside it", 0, 2, live=True, may=("compact", "expire")),
    Scene("1 push on a base, compaction", 1, 1, live=True, may=("compact",), uploads=1),
    Scene("1 push on a base, compaction beside gc", 1, 2, live=True, may=("compact",), uploads=1),
    Scene("1 push, stale intents expire", 1, 1, may=("expire",)),
    Scene("2 pushes, stale intents expire", 2, 1, may=("expire",), uploads=1),
    Scene("1 push, 2 gc, stale intents expire", 1, 2, may=("expire",), uploads=1),
    Scene("1 push of what another project's record covers", 1, 1, live=True, may=("retire", "covered"), uploads=1),
    Scene("2 gc, a record of another project", 0, 2, live=True, may=("foreign",)),
    Scene("2 gc, Git retires, one takes it back", 0, 2, live=True, may=("retire", "undo")),
    Scene("1 push on a base, 1 gc that is taken back", 1, 1, live=True, may=("retire", "undo"), uploads=1),
    Scene("1 push, 2 copies of a clone that condemned", 1, 2, may=("copied",)),
    Scene("2 pushes, 2 copies of a clone that condemned", 2, 2, may=("copied",), uploads=1),
    Scene("1 push on a base, retired records are removed", 1, 2, live=True, may=("retire", "remove"), uploads=1),
)
#: Minutes.
LARGE = (
    Scene("2 pushes, 2 gc, a dead pack", 2, 2, uploads=1),
    Scene("2 pushes on bases, Git retires, intents expire", 2, 1, live=True, may=("retire", "expire"), uploads=1),
    Scene("2 pushes, 1 gc, stale intents expire, two uploads", 2, 1, may=("expire",)),
    Scene("1 push, 2 gc, everything", 1, 2, live=True, may=("retire", "expire", "remove"), uploads=1),
)


class Model:
    """One scene under one set of rules."""

    def __init__(self, scene: Scene, rules: dict[str, bool] | None = None) -> None:
        self.scene, self.rules = scene, rules or GOOD
        self.copied = "copied" in scene.may

    def start(self) -> State:
        """The first state."""
        first = frozenset([_FIRST]) if self.scene.live else _NONE
        return State(
            frozenset(["p"]),
            first,
            first,
            _NONE,
            _NONE,
            # The last list is that which copies of one clone have in common: condemned before it was copied.
            (None,) * self.scene.collectors + ((frozenset(["p"]),) if self.copied else ()),
            (Push(),) * self.scene.pushers,
            (Collect("sweep", frozenset(["p"])) if self.copied else Collect(),) * self.scene.collectors,
            self.scene.live,
        )

    def broken(self, s: State) -> bool:
        """Whether a promise is broken."""
        held = all(p.rec.packs() <= s.packs for p in s.pushers if p.step == "done")
        held = held and all(c.at.packs() <= s.packs for c in s.collectors if c.step == "undone")
        return not held or (s.wanted and "p" not in s.packs) or self.stuck(s)

    def stuck(self, s: State) -> bool:
        """Whether a record that collectors take for confirmed and live names a pack that is gone."""
        return any(not r.packs() <= s.packs for r in s.recs & s.confirmed - s.retired)

    def check(self, limit: int = 4_000_000) -> tuple[int, str]:
        """(states seen, `safe`, or after how many steps a promise is broken)."""
        start = self.start()
        parent: dict[State, State | None] = {start: None}
        queue = deque([start])
        while queue:
            state = queue.popleft()
            if self.broken(state):
                steps, at = -1, state
                while at is not None:
                    steps, at = steps + 1, parent[at]  # type: ignore[assignment]
                return len(parent), f"loss after {steps} steps"
            if len(parent) > limit:
                return len(parent), "no loss found up to the limit"
            for following in self.following(state):
                if following not in parent:
                    parent[following] = state
                    queue.append(following)
        return len(parent), "safe"

    def following(self, s: State) -> Iterator[State]:
        """Every state that one operation of one process leads to."""
        for i, p in enumerate(s.pushers):
            for following, mine in self._push(s, i, p):
                yield following._replace(pushers=(*s.pushers[:i], mine, *s.pushers[i + 1 :]))
        for i, c in enumerate(s.collectors):
            for following, me in self._collect(s, i, c):
                yield following._replace(collectors=(*s.collectors[:i], me, *s.collectors[i + 1 :]))

    # ------------------------------------------------------------ pushers

    def _push(self, s: State, i: int, p: Push) -> Iterator[tuple[State, Push]]:
        rules, rec = self.rules, p.rec
        retry = p._replace(step="upload" if p.uploads < self.scene.uploads else "given up", early=False)
        match p.step:
            case "plan":  # any stale view will do: rely on a pack, on a record, or upload
                for pack in sorted(s.packs):
                    yield s, p._replace(step="intent", rec=Rec(f"r{i}.0", pack, None))
                for base in s.recs & s.confirmed:
                    early = base in s.recs and base not in s.retired
                    yield s, p._replace(step="intent", rec=Rec(f"r{i}.0", None, base), early=early)
                if "covered" in self.scene.may and not rules["own_record"] and _FIRST in s.confirmed - s.retired:
                    yield s, p._replace(step="done", rec=_FIRST)
                yield s, p._replace(step="upload")
            case "upload":  # a pack under a fresh unique name
                name = f"n{i}.{p.uploads}"
                mine = Rec(f"r{i}.{p.uploads + 1}", name, None)
                yield s._replace(packs=s.packs | {name}), Push("intent", mine, p.uploads + 1)
            case "intent":
                yield s._replace(recs=s.recs | {rec}), p._replace(step="lists" if rules["post_check"] else "done")
            case "lists":  # P4; the other order where that rule is removed
                if not rules["lists_then_exists"]:
                    yield s, p._replace(step="exists", early=rec.packs() <= s.packs)
                elif rec.pack is not None and rec.pack in _condemned(s.lists):
                    yield s, retry
                else:
                    yield s, p._replace(step="exists")
            case "exists":  # P5
                there = rec.packs() <= s.packs or not rules["exists"]
                if not rules["lists_then_exists"]:
                    there = p.early and not rec.packs() & _condemned(s.lists)
                yield s, (p._replace(step="base") if there else retry)
            case "base":  # P5
                good = rec.base is None or not rules["base_live"]
                if not good and not rules["base_after_record"]:
                    good = p.early
                elif not good:
                    good = rec.base in s.recs and rec.base in s.confirmed and rec.base not in s.retired
                    good = good and (rec.base not in s.expired or not rules["base_not_expired"])
                yield s, (p._replace(step="confirm") if good else retry)
            case "confirm":  # P6
                after = "fence" if rules["pusher_fenced"] else "done"
                yield s._replace(confirmed=s.confirmed | {rec}), p._replace(step=after)
            case "fence":  # P7
                fine = rec in s.recs and rec in s.confirmed and rec not in s.retired | s.expired
                yield s, (p._replace(step="done") if fine else retry)

    # ------------------------------------------------------------ collectors

    def _collect(self, s: State, i: int, c: Collect) -> Iterator[tuple[State, Collect]]:
        rules, may = self.rules, self.scene.may
        at = c.at

        def publish(value: frozenset[str] | None) -> State:
            return s._replace(lists=(*s.lists[:i], value, *s.lists[i + 1 :]))

        def common(value: frozenset[str] | None) -> tuple[frozenset[str] | None, ...]:
            return (*s.lists[:-1], value)

        match c.step:
            case "choose":
                yield s, c._replace(step="list")
                if "retire" in may and _FIRST in s.recs - s.retired:  # Git says that nobody wants it any more
                    yield s, c._replace(step="retire" if rules["retire_then_list"] else "list", at=_FIRST)
                if "foreign" in may and not rules["own_project"] and _FIRST in s.recs - s.retired:
                    yield s, c._replace(step="retire foreign", at=_FIRST)
                if "expire" in may:
                    for rec in s.recs - s.confirmed - s.expired:
                        yield s, c._replace(step="expire", at=rec)
                if not rules["mark_stays"]:
                    for rec in s.expired & s.confirmed:
                        yield s._replace(expired=s.expired - {rec}), c._replace(step="list")
                if "compact" in may and _FIRST in s.recs - s.retired:
                    mine = Rec(f"c{i}", "p", None)
                    yield s, c._replace(step="compact", at=mine)
                if "remove" in may:
                    for rec in s.recs & s.retired:
                        if not rules["base_kept"] or not any(_names(r, rec) for r in s.recs - s.retired):
                            yield s, c._replace(step="remove", at=rec)
            case "retire":
                yield s._replace(retired=s.retired | {at}, wanted=False), c._replace(step="list", at=_NOTHING)
            case "retire foreign":  # Git here does not know who wants it
                yield s._replace(retired=s.retired | {at}), c._replace(step="list", at=_NOTHING)
            case "expire":
                yield s._replace(expired=s.expired | {at}), c._replace(step="list", at=_NOTHING)
            case "compact":  # a record over what is still wanted, written as a pusher does
                after = "compact look" if rules["compact_confirmed"] else "compact retire"
                yield s._replace(recs=s.recs | {at}), c._replace(step=after)
            case "compact look":
                fine = "p" not in _condemned(s.lists) and _FIRST in s.recs - s.retired
                yield s, c._replace(step="compact exists" if fine else "list", at=at if fine else _NOTHING)
            case "compact exists":
                fine = "p" in s.packs
                yield s, c._replace(step="compact confirm" if fine else "list", at=at if fine else _NOTHING)
            case "compact confirm":
                yield s._replace(confirmed=s.confirmed | {at}), c._replace(step="compact fence")
            case "compact fence":
                fine = at in s.recs and at not in s.expired | s.retired
                yield s, c._replace(step="compact retire" if fine else "list", at=at if fine else _NOTHING)
            case "compact retire":
                yield s._replace(retired=s.retired | {_FIRST}), c._replace(step="list", at=_NOTHING)
            case "remove":  # record, confirmation, retirement, in this order
                yield s._replace(recs=s.recs - {at}), c._replace(step="remove marks")
            case "remove marks":
                yield s._replace(confirmed=s.confirmed - {at}), c._replace(step="list", at=_NOTHING)
            case "list":  # G1: records and confirmations, before marks: the worst order of one listing
                hole = any(b not in s.recs for r in s.recs - s.retired for b in _bases(r))
                if hole and rules["hole_refused"]:
                    yield s, Collect("end")
                else:
                    yield s, c._replace(step="marks", seen=s.recs, dead=s.recs - s.confirmed)
            case "marks":
                stale = c.dead & s.expired
                after = "look again" if stale and rules["expired_then_confirmed"] else "mark"
                yield s, c._replace(step=after, dead=stale | (c.seen & s.retired))
            case "look again":
                yield s, c._replace(step="mark", dead=c.dead - (s.confirmed - s.retired))
            case "mark":  # G1: packs
                late = frozenset([at] if at is not _NOTHING else [])  # the removed rule: listed first, retired now
                doomed = s.packs - self._live(c.seen - c.dead - late, s)
                state = s._replace(retired=s.retired | late, wanted=s.wanted and not late)
                yield state, Collect("publish", doomed, c.seen, c.dead & s.expired) if doomed else Collect("end")
            case "sweep":  # what was condemned by all copies of this clone: delete it, or take it back
                own = publish(c.doomed)
                yield own if rules["list_of_its_own"] else s._replace(lists=common(c.doomed)), c._replace(step="again")
                yield s, Collect("withdraw common")
            case "withdraw common":
                yield s._replace(lists=common(None)), Collect("end")
            case "publish":  # G2
                yield publish(c.doomed) if rules["publish"] else s, c._replace(step="again")
            case "again":  # G3
                if "undo" in may and _FIRST in s.retired:
                    yield s, Collect("undo withdraw", at=Rec(f"u{i}", "p", None))
                if not rules["list_again"]:
                    yield s, c._replace(step=self._bury(c), left=tuple(sorted(c.doomed)))
                else:
                    now = s.recs - c.seen
                    views = [now] if rules["fresh_listing"] else [now, *(now - {r} for r in now)]
                    for view in views:
                        spared = self._live(view, s, rescue=True)
                        left = tuple(sorted(c.doomed - spared))
                        step = self._bury(c) if left else "withdraw"
                        yield s, c._replace(step=step, left=left, seen=_NONE, doomed=_NONE)
            case "bury":  # G5, one mark at a time
                rec = min(c.dead)
                rest = c.dead - {rec}
                onward = c._replace(step="bury" if rest else "delete", dead=rest)
                yield s._replace(retired=s.retired | {rec}), onward
            case "undo withdraw":  # our list would stand in our own way
                yield publish(None), c._replace(step="undo intent")
            case "undo intent":
                after = "undo look" if rules["undo_as_push"] else "undo confirm"
                yield s._replace(recs=s.recs | {at}), c._replace(step=after)
            case "undo look":
                yield s, c._replace(step="undo exists") if "p" not in _condemned(s.lists) else Collect("end")
            case "undo exists":
                yield s, c._replace(step="undo confirm") if "p" in s.packs else Collect("end")
            case "undo confirm":
                yield s._replace(confirmed=s.confirmed | {at}), c._replace(step="undo fence")
            case "undo fence":
                fine = at in s.recs and at not in s.expired | s.retired
                yield s, c._replace(step="undone") if fine else Collect("end")
            case "delete":  # G6, one key at a time
                left = c.left[1:]
                onward = c._replace(step="delete" if left else "withdraw", left=left)
                yield s._replace(packs=s.packs - {c.left[0]}), onward
            case "withdraw":  # G7
                yield publish(None), Collect("withdraw common" if self.copied else "end")
        if not rules["owner_only"] and s.lists[i] is not None and c.step == "delete":
            yield publish(None), c  # somebody else cleans up

    def _bury(self, c: Collect) -> str:
        return "bury" if c.dead and self.rules["given_up_for_good"] else "delete"

    def _live(self, recs: frozenset[Rec], s: State, *, rescue: bool = False) -> frozenset[str]:
        """Packs that records name."""
        retired, kept = s.retired, s.recs
        out: set[str] = set()
        for rec in recs:
            if rec.pack is not None:
                out.add(rec.pack)
            for base in _bases(rec):
                if rescue and not self.rules["rescue_bases"]:
                    continue
                known = self.rules["hole_refused"] or base in kept
                if base.pack is not None and known and (self.rules["retired_bases"] or base not in retired):
                    out.add(base.pack)
        return frozenset(out)


def _bases(rec: Rec) -> Iterator[Rec]:
    while rec.base is not None:
        rec = rec.base
        yield rec


def _names(rec: Rec, base: Rec) -> bool:
    return any(b == base for b in _bases(rec))


def _condemned(lists: tuple[frozenset[str] | None, ...]) -> frozenset[str]:
    return frozenset(p for one in lists if one is not None for p in one)


def without(*rules: str) -> dict[str, bool]:
    """All rules but these."""
    return {**GOOD, **dict.fromkeys(rules, False)}


def caught_by(rules: tuple[str, ...], scenes: tuple[Scene, ...], limit: int = 400_000) -> tuple[Scene, str] | None:
    """The first scene that loses data without `rules`, and how."""
    for scene in scenes:
        _, verdict = Model(scene, without(*rules)).check(limit)
        if verdict.startswith("loss"):
            return scene, verdict
    return None


def main(argv: list[str] | None = None, *, say: Callable[[str], object] = print) -> int:
    """Check every scene and every removed rule; 1 when a scene loses data or a removed rule is not noticed."""
    parser = argparse.ArgumentParser(
        prog="python -m dvk.testing.gc_model", description="check the collector's protocol"
    )
    parser.add_argument("--large", action="store_true", help="larger scenes too: half a minute, two gigabytes")
    scenes = SCENES + LARGE if parser.parse_args(argv).large else SCENES
    failed = 0
    say("the protocol")
    for scene in scenes:
        begun = time.perf_counter()
        states, verdict = Model(scene).check()
        failed += verdict != "safe"
        say(f"  {scene.name:48s}{states:10,d} states  {verdict}  {time.perf_counter() - begun:.1f} s")
    say("rules removed")
    for rules in REMOVALS:
        found = caught_by(rules, SCENES)
        failed += found is None
        say(f"  {' + '.join(rules):32s}{f'{found[1]} ({found[0].name})' if found else 'NOT NOTICED'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
