"""Letting a store hold what newer versions of dvk write: new codecs, new ways to cut.

Problem: a store lists what its packs may contain, so that nobody finds data there that their dvk cannot read. A newer
dvk keeps to that list, and so writes as the oldest one did until somebody raises it.

    plan = plan_upgrade(store)              # codecs=("planes-2", "planes-4"), needs="0.1"
    upgrade(store)                          # dvk.json says so now

Choice: raising the list is a decision of a person, because from then on everybody needs a dvk that knows it. It is
never lowered. dvk.json is one object that is replaced whole, and it is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from dvk.errors import NotFound, NotOurs, RemoteError
from dvk.store import descriptor as dvk_json
from dvk.store.store import Store

#: The first version of dvk that knows a codec or profile.
SINCE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "raw": "0.1",
        "zstd": "0.1",
        "planes-2": "0.1",
        "planes-4": "0.1",
        "planes-8": "0.1",
        "cdc-64k": "0.1",
        "auto-64k": "0.1",
    }
)


class Upgrade(Struct, frozen=True):
    """What a store may hold in addition."""

    store: str  #: its id
    codecs: tuple[str, ...]
    profiles: tuple[str, ...]
    needs: str  #: the oldest dvk that can use the store afterwards; empty when nothing changes

    @property
    def changes(self) -> bool:
        """Whether there is anything to raise."""
        return bool(self.codecs or self.profiles)


def plan_upgrade(store: Store) -> Upgrade:
    """Work out what `upgrade` would add. Changes nothing.

    Raises:
        NotFound: there is no store yet. NewerFormat: a newer dvk wrote it than this one.
    """
    found = _described(store)
    goal = found.raised()
    codecs = tuple(c for c in goal.codecs if c not in found.codecs)
    profiles = tuple(p for p in goal.profiles if p not in found.profiles)
    needs = max((SINCE[name] for name in (*codecs, *profiles)), key=_order, default="")
    return Upgrade(found.store, codecs, profiles, needs)


def upgrade(store: Store) -> Upgrade:
    """Let a store hold everything that this dvk writes; no-op when it may already. Returns what was added.

    Raises:
        NotFound, NewerFormat: as `plan_upgrade`. NotOurs: somebody replaced the store meanwhile.
        RemoteDenied, StorageError: dvk.json cannot be written.
    """
    plan = plan_upgrade(store)
    if not plan.changes:
        return plan
    # Once more, for whoever raised it at the same time; of two that write at once one is seen to have lost.
    goal = _described(store).raised()
    store.backend.put(dvk_json.KEY, [dvk_json.format_descriptor(goal)])
    now = store.describe_again()
    if now is None or now.store != plan.store:
        raise NotOurs("the store was replaced during the upgrade", subject=store.name)
    if not {*goal.codecs, *goal.profiles} <= {*now.codecs, *now.profiles}:
        raise RemoteError(
            "somebody else wrote dvk.json at the same time", subject=store.name, hint="run the same command again"
        )
    return plan


def _described(store: Store) -> dvk_json.Descriptor:
    found = store.describe_again()
    if found is None:
        raise NotFound(
            "there is no dvk store yet", subject=store.name, hint="the first `dvk push` or `dvk add` makes one"
        )
    found.require("write", subject=store.name)
    return found


def _order(version: str) -> tuple[int, ...]:
    """Versions in their order: 0.10 after 0.9."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("."))
