"""dvk.json: what a store is and what a program must know to use it. docs/format/store.md is the truth.

>>> d = Descriptor.new()
>>> parse_descriptor(format_descriptor(d), subject="here") == d
True
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from dvk.errors import FormatError, NewerFormat, NotOurs
from dvk.store.codec import known_codecs
from dvk.store.profiles import known_profiles

KEY = "dvk.json"
MAX_BYTES = 64 << 10
_KNOWN_FEATURES: frozenset[str] = frozenset()
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")  # of a codec, profile or feature; goes into messages
Operation = Literal["read", "write", "gc"]


class Descriptor(Struct, frozen=True):
    """Identity, mandatory features per operation, and what packs may contain."""

    store: str  #: 32 hex digits
    codecs: tuple[str, ...]
    profiles: tuple[str, ...]
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    gc: tuple[str, ...] = ()

    @classmethod
    def new(cls) -> Descriptor:
        """A new store with everything that this program can write."""
        return cls(os.urandom(16).hex(), tuple(sorted(known_codecs())), tuple(sorted(known_profiles())))

    def raised(self) -> Descriptor:
        """The same store, and it may hold everything that this program can write."""
        return replace(
            self,
            codecs=tuple(sorted({*self.codecs, *known_codecs()})),
            profiles=tuple(sorted({*self.profiles, *known_profiles()})),
        )

    def require(self, operation: Operation, *, subject: str) -> None:
        """Refuse an operation whose mandatory features this program does not know.

        Raises:
            NewerFormat: naming the features.
        """
        needed = {"read": self.read, "write": self.read + self.write, "gc": self.read + self.write + self.gc}
        unknown = sorted(set(needed[operation]) - _KNOWN_FEATURES)
        if operation != "read":
            unknown += [f"codec {c}" for c in self.codecs if c not in known_codecs()]
        if unknown:
            raise NewerFormat(
                f"this store was written by a newer dvk and needs {', '.join(unknown)} to {operation}",
                subject=subject,
                hint="upgrade dvk",
            )


def format_descriptor(d: Descriptor) -> bytes:
    """The canonical bytes."""
    data = {
        "codecs": list(d.codecs),
        "features": {"gc": list(d.gc), "read": list(d.read), "write": list(d.write)},
        "format": 1,
        "kind": "dvk store",
        "profiles": list(d.profiles),
        "store": d.store,
    }
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode("ascii")


def parse_descriptor(data: bytes, *, subject: str) -> Descriptor:
    """Read dvk.json.

    Raises:
        NotOurs: it is not the file of a dvk store. NewerFormat: of a later format.
        FormatError: it is one and is not canonical.
    """
    not_ours = NotOurs(
        "there is a dvk.json here, but not of a dvk store",
        subject=subject,
        hint="check the URL, or choose a prefix where nothing else is",
    )
    if len(data) > MAX_BYTES:
        raise not_ours
    try:
        raw: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise not_ours from error
    if not isinstance(raw, dict) or raw.get("kind") != "dvk store":
        raise not_ours
    if raw.get("format") != 1:
        raise NewerFormat("this store has a format that this dvk does not know", subject=subject, hint="upgrade dvk")
    try:
        features = raw["features"]
        found = Descriptor(
            store=raw["store"],
            codecs=tuple(raw["codecs"]),
            profiles=tuple(raw["profiles"]),
            read=tuple(features["read"]),
            write=tuple(features["write"]),
            gc=tuple(features["gc"]),
        )
        lists = (found.codecs, found.profiles, found.read, found.write, found.gc)
        fine = re.fullmatch(r"[0-9a-f]{32}", found.store) and all(_NAME.fullmatch(x) for li in lists for x in li)
        if not fine or format_descriptor(found) != data:
            raise ValueError("not canonical")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            "dvk.json of this store is damaged",
            subject=subject,
            hint="ask whoever looks after it to put back what was there before; nothing else is touched until then",
        ) from error
    return found
