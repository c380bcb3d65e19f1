"""Condemned lists: what a collector warns pushers of before it deletes it. docs/format/gc.md is the truth.

A pack that stands in any list must not be relied on, so one bit of a list that turned over unnoticed could cost data:
a list is named by the hash of its bytes. Lists of format 1, under a random name, are still read.

>>> data = format_condemned(["p/ab/" + "ab" * 32], store="0" * 32, nonce="1" * 32)
>>> parse_condemned(condemned_key(data), data, subject="here")
('p/ab/abababababababababababababababababababababababababababababababab',)
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from blake3 import blake3

from dvk.backend.contract import Backend, KeyMissing
from dvk.errors import Corrupt, FormatError, NewerFormat

MAX_BYTES = 64 << 20
_KEY = re.compile(r"g/c-([0-9a-f]{32}|[0-9a-f]{64})")
_PACK_KEY = re.compile(r"[pm]/([0-9a-f]{2})/\1[0-9a-f]{62}")
_ID = re.compile(r"[0-9a-f]{32}")
_HINT = "upgrade dvk"
_GO_ON = "who knows that nobody collects garbage there now removes it: `dvk gc --remote NAME --sweep --exclusive`"


def format_condemned(packs: Iterable[str], *, store: str, nonce: str = "") -> bytes:
    """The bytes of a list, unlike those of any other: `nonce` (32 hex digits) is random by default."""
    raw = {"format": 2, "nonce": nonce or secrets.token_hex(16), "packs": sorted(set(packs)), "store": store}
    return _canonical(raw)


def condemned_key(data: bytes) -> str:
    """The key that a list must lie under."""
    return f"g/c-{blake3(data).hexdigest()}"


def is_named_by_hash(key: str) -> bool:
    """Whether the key of a list tells when a bit of it changed."""
    return len(key) == len("g/c-") + 64


def parse_condemned(key: str, data: bytes, *, subject: str) -> tuple[str, ...]:
    """The keys of the packs in a list.

    Raises:
        Corrupt: it fails its hash. FormatError: it is no list. NewerFormat.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise NewerFormat("this may be a condemned list that was written by a newer dvk", subject=subject, hint=_HINT)
    named_by_hash = is_named_by_hash(key)
    if named_by_hash and condemned_key(data) != key:
        raise Corrupt("this condemned list fails its hash, so it might condemn anything", subject=subject, hint=_GO_ON)
    try:
        raw = json.loads(data)
        if type(raw["format"]) is int and raw["format"] > 2:
            raise NewerFormat("this condemned list was written by a newer dvk", subject=subject, hint=_HINT)
        keys = {"format", "nonce", "packs", "store"} if named_by_hash else {"format", "packs", "store"}
        packs = raw["packs"]
        # Strict, since a pack that is spelled in another way than ours would be condemned unseen.
        fine = (
            set(raw) == keys
            and type(raw["format"]) is int
            and raw["format"] == (2 if named_by_hash else 1)
            and _ID.fullmatch(raw["store"])
            and (not named_by_hash or _ID.fullmatch(raw["nonce"]))
            and all(_PACK_KEY.fullmatch(p) for p in packs)
            and packs == sorted(set(packs))
            and data == _canonical(raw)
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(subject) from error
    if not fine:
        raise _unreadable(subject)
    return tuple(packs)


def condemned_lists(
    remote: Backend, *, on_damage: Callable[[str, FormatError], None] | None = None
) -> dict[str, tuple[str, ...]]:
    """Every condemned list: its key and the keys of the packs in it.

    Args:
        on_damage: hears of lists that are damaged, with their keys, instead of an error; those of a newer dvk are none.

    Raises:
        FormatError: a list that cannot be read might condemn anything.
    """
    out: dict[str, tuple[str, ...]] = {}
    for item in remote.list("g/c-"):
        subject = f"{remote.name}/{item.key}"
        try:
            data = remote.get(item.key, max_bytes=MAX_BYTES)
        except KeyMissing:
            continue  # its collector has finished and removed it
        except FormatError as error:
            raise _unreadable(subject) from error
        try:
            out[item.key] = parse_condemned(item.key, data, subject=subject)
        except FormatError as error:
            if on_damage is None or isinstance(error, NewerFormat):
                raise
            on_damage(item.key, error)
    return out


def condemned(remote: Backend) -> set[str]:
    """The pack keys in all condemned lists. Raises as `condemned_lists`."""
    return {pack for packs in condemned_lists(remote).values() for pack in packs}


def _canonical(raw: dict[str, Any]) -> bytes:
    return (json.dumps(raw, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")


def _unreadable(subject: str) -> FormatError:
    return FormatError(
        "a condemned list cannot be read, so nothing on this remote can be relied on", subject=subject, hint=_GO_ON
    )
