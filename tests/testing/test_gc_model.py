"""The protocol between pushers and collectors loses nothing, and each of its rules is needed."""

from __future__ import annotations

import pytest

from dvk.testing.gc_model import REMOVALS, RULES, SCENES, Model, Scene, caught_by

#: rule -> the scene in which its lack is noticed soonest; a rule without one is looked for in all, from the first on
LIKELY = {
    "base_not_expired": "2 pushes, stale intents expire",
    "pusher_fenced": "1 push, stale intents expire",
    "expired_then_confirmed": "1 push, 2 gc, stale intents expire",
    "mark_stays": "1 push, 2 gc, stale intents expire",
    "given_up_for_good": "1 push, stale intents expire",
    "own_record": "1 push of what another project's record covers",
    "own_project": "2 gc, a record of another project",
    "undo_as_push": "2 gc, Git retires, one takes it back",
    "list_of_its_own": "1 push, 2 copies of a clone that condemned",
    "compact_confirmed": "compaction, expiry beside it",
    "base_kept": "1 push on a base, retired records are removed",
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_no_interleaving_and_no_crash_loses_a_promised_pack(scene: Scene) -> None:
    states, verdict = Model(scene).check()
    assert verdict == "safe"
    # Where all belongs to another project there is nothing to do, in any order.
    assert states > (20 if scene.may == ("foreign",) else 300), "the scene explores something"


@pytest.mark.parametrize("rules", REMOVALS, ids="+".join)
def test_without_a_rule_data_is_lost_and_the_model_notices(rules: tuple[str, ...]) -> None:
    likely = LIKELY.get(rules[0], "")
    assert caught_by(rules, tuple(sorted(SCENES, key=lambda scene: scene.name != likely))) is not None


def test_every_likely_scene_is_one() -> None:
    assert {*LIKELY.values()} <= {scene.name for scene in SCENES} and LIKELY.keys() <= {*RULES}


def test_every_rule_is_removed_once() -> None:
    assert sorted(rule for rules in REMOVALS for rule in rules) == sorted(RULES)
