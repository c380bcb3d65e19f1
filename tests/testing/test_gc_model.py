"""The protocol between pushers and collectors loses nothing, and each of its rules is needed."""

from __future__ import annotations

import pytest

from dvk.testing.gc_model import REMOVALS, RULES, SCENES, Model, Scene, caught_by


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_no_interleaving_and_no_crash_loses_a_promised_pack(scene: Scene) -> None:
    states, verdict = Model(scene).check()
    assert verdict == "safe"
    # Where all belongs to another project there is nothing to do, in any order.
    assert states > (20 if scene.may == ("foreign",) else 300), "the scene explores something"


@pytest.mark.parametrize("rules", REMOVALS, ids="+".join)
def test_without_a_rule_data_is_lost_and_the_model_notices(rules: tuple[str, ...]) -> None:
    assert caught_by(rules, SCENES) is not None


def test_every_rule_is_removed_once() -> None:
    assert sorted(rule for rules in REMOVALS for rule in rules) == sorted(RULES)
