"""Condemned lists: one form each, under the name of their bytes, since one bit decides whether a pack is relied on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from storekit import flips, vectors

from dvk.backend.memory import MemoryBackend
from dvk.errors import Corrupt, DvkError, NewerFormat
from dvk.store.condemned import condemned, condemned_key, condemned_lists, format_condemned, parse_condemned

ACCEPT, REFUSE = vectors("condemned")
STORE = "5" * 32
PACKS = [f"{kind}/{i:02x}/{i:02x}{'0' * 62}" for kind in "mp" for i in range(3)]


@pytest.mark.parametrize("case", ACCEPT)
def test_golden_lists_are_read_and_those_of_today_written_alike(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    assert parse_condemned(case["key"], data, subject="here") == tuple(case["packs"])
    raw = json.loads(data)
    if raw["format"] == 2:
        assert format_condemned(raw["packs"], store=raw["store"], nonce=raw["nonce"]) == data
        assert condemned_key(data) == case["key"]


@pytest.mark.parametrize("case", REFUSE)
def test_what_is_no_list_is_refused_as_what_it_is(case: dict[str, Any]) -> None:
    with pytest.raises(DvkError) as caught:
        parse_condemned(case["key"], bytes.fromhex(case["hex"]), subject="here")
    assert caught.value.kind == case["kind"] and caught.value.hint and caught.value.subject == "here"


def test_no_bit_of_a_list_changes_unnoticed() -> None:
    data = format_condemned(PACKS[:1], store=STORE)
    for bad in flips(data):
        with pytest.raises(Corrupt):
            parse_condemned(condemned_key(data), bad, subject="here")


def test_all_lists_count_whatever_their_version() -> None:
    remote = MemoryBackend()
    assert condemned(remote) == set()
    old = json.dumps({"format": 1, "packs": PACKS[:2], "store": STORE}, separators=(",", ":")) + "\n"
    remote.put("g/c-" + "0" * 32, [old.encode()])
    for part in (PACKS[1:], PACKS[1:], []):
        data = format_condemned(part, store=STORE)
        remote.put(condemned_key(data), [data])
    assert len(list(remote.list("g/c-"))) == 4, "two lists of the same packs are two lists"
    assert condemned(remote) == set(PACKS)


def test_damaged_lists_can_be_heard_of_and_those_of_a_newer_dvk_stop_all_the_same() -> None:
    remote = MemoryBackend()
    good = format_condemned(PACKS[:1], store=STORE)
    remote.put(condemned_key(good), [good])
    remote.put("g/c-" + "0" * 64, [good])
    heard: list[str] = []
    assert list(condemned_lists(remote, on_damage=lambda key, _: heard.append(key))) == [condemned_key(good)]
    assert heard == ["g/c-" + "0" * 64]
    remote.put("g/c-" + "0" * 40, [good])
    with pytest.raises(NewerFormat):
        condemned_lists(remote, on_damage=lambda key, _: heard.append(key))


def test_a_list_that_goes_away_while_it_is_read_counts_as_none() -> None:
    class Finishing(MemoryBackend):
        def get(self, key: str, *, max_bytes: int) -> bytes:
            self.delete(key)
            return super().get(key, max_bytes=max_bytes)

    remote = Finishing()
    remote.put("g/c-" + "0" * 32, [b"whatever"])
    assert condemned(remote) == set()
