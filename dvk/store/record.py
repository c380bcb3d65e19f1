"""Records: what a push relies on, and the only roots of garbage collection. docs/format/record.md is the truth.

>>> r = Record(store="0" * 32, roots=(), packs=(), reused=(), bases=(), time=0, writer="dvk 1", nonce="0" * 32)
>>> parse_record(format_record(r), subject="here") == r
True
"""

from __future__ import annotations

import json
import re
from typing import Any

from blake3 import blake3
from msgspec import Struct

from dvk.errors import Corrupt, NewerFormat
from dvk.ids import RecordId

MAX_BYTES = 64 << 20
_ROOT = re.compile(r"[fd]:[0-9a-f]{64}")
_PACK = re.compile(r"[pm]/([0-9a-f]{2})/\1[0-9a-f]{62}")
_WRITER = re.compile(r"[ -~]{1,100}")
_ID = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[0-9a-f]{32}")
_KEYS = {"format", "store", "roots", "packs", "reused", "bases", "time", "writer", "nonce"}


class Record(Struct, frozen=True):
    """An intent. All lists are sorted and without repeats."""

    store: str
    roots: tuple[str, ...]
    packs: tuple[str, ...]
    reused: tuple[str, ...]
    bases: tuple[str, ...]
    time: int
    writer: str
    nonce: str
    project: str = ""  #: whose it is (`project.id` of dvk.toml); empty where nobody said


def record_id(data: bytes) -> RecordId:
    """The name of a record, from its bytes."""
    return RecordId(blake3(data).digest())


def record_key(rid: bytes, suffix: str = "") -> str:
    """`j/<rid>`, or with a mark: `.ok`, `.x`, `.e`."""
    return f"j/{rid.hex()}{suffix}"


def _canonical(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")


def format_record(r: Record) -> bytes:
    """The canonical bytes."""
    raw: dict[str, Any] = {key: getattr(r, key) for key in _KEYS - {"format"}}
    if r.project:
        return _canonical({**raw, "project": r.project, "format": 2})
    return _canonical({**raw, "format": 1})


def format_mark(rid: bytes) -> bytes:
    """The body of a confirmation or a retirement."""
    return _canonical({"format": 1, "record": rid.hex()})


def parse_record(data: bytes, *, subject: str) -> Record:
    """Read an intent.

    Raises:
        NewerFormat: of a later format. Corrupt: anything that is not canonical.
    """
    damaged = Corrupt("this record is damaged", subject=subject)
    if len(data) > MAX_BYTES:
        raise damaged
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged from error
    if not isinstance(raw, dict):
        raise damaged
    if raw.get("format") not in (1, 2):
        raise NewerFormat("this record was written by a newer dvk", subject=subject, hint="upgrade dvk")
    try:
        project = raw["project"] if raw["format"] == 2 else ""
        if set(raw) != (_KEYS | {"project"} if raw["format"] == 2 else _KEYS):
            raise ValueError("keys")
        lists = {
            k: _checked(raw[k], p) for k, p in (("roots", _ROOT), ("packs", _PACK), ("reused", _PACK), ("bases", _ID))
        }
        if not _NONCE.fullmatch(raw["nonce"]) or not _NONCE.fullmatch(raw["store"]):
            raise ValueError("nonce")
        if raw["format"] == 2 and not _NONCE.fullmatch(project):
            raise ValueError("project")
        if type(raw["time"]) is not int or not 0 <= raw["time"] < 1 << 62 or not _WRITER.fullmatch(raw["writer"]):
            raise ValueError("time")
        found = Record(
            store=raw["store"],
            time=raw["time"],
            writer=raw["writer"],
            nonce=raw["nonce"],
            project=project,
            **lists,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged from error
    if format_record(found) != data:
        raise damaged
    return found


def _checked(items: Any, pattern: re.Pattern[str]) -> tuple[str, ...]:
    out = tuple(items)
    if any(not pattern.fullmatch(x) for x in out) or list(out) != sorted(set(out)):
        raise ValueError("list")
    return out
