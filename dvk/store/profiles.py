"""The profiles: which cut functions there are, by name. Each is one, whole and for ever (docs/format/chunking.md).

Every store lists the profiles that it takes, so every command asks for their names; cutting by one is for the few that
store files (`dvk.store.chunker`), and loading what that needs takes a twentieth of a command's start.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

DEFAULT_PROFILE: Final = "auto-64k"


class GearRule(Struct, frozen=True):
    """One cut rule: sizes in bytes, and the mask whose bits must all be zero in the hash at a cut."""

    min_bytes: int
    target_bytes: int
    max_bytes: int
    mask: int

    def __post_init__(self) -> None:
        # The two-byte step of the rule equals a plain scan only for even sizes.
        if self.min_bytes % 2 or self.max_bytes % 2 or not 0 < self.min_bytes <= self.max_bytes:
            raise ValueError("a gear rule needs even sizes with min <= max")


_CDC_64K: Final = GearRule(
    min_bytes=32 * 1024, target_bytes=32 * 1024, max_bytes=192 * 1024, mask=0x0000_D90F_0353_0000
)


class Profile(Struct, frozen=True):
    """How files are cut under one name."""

    rule: GearRule  #: of cuts by content
    splits: bool  #: whether formats are recognised and split into regions


PROFILES: Final = {
    "auto-64k": Profile(_CDC_64K, splits=True),
    "cdc-64k": Profile(_CDC_64K, splits=False),
}


def known_profiles() -> tuple[str, ...]:
    """The names of the profiles that this version of dvk can cut by, the default first."""
    return tuple(PROFILES)
