"""`dvk remote upgrade`: let a remote (or the local store) hold what this version of dvk can write.

Until then a newer dvk writes there as the oldest one did, so that everybody in the team can read it.
"""

from __future__ import annotations

from msgspec import Struct

from dvk.commands.repo import Repo
from dvk.store.names import show
from dvk.store.store import Store
from dvk.store.upgrade import Upgrade, plan_upgrade
from dvk.store.upgrade import upgrade as upgrade_store


class UpgradeResult(Struct, frozen=True):
    """What a store may hold in addition, or would."""

    name: str  #: of the remote; empty for the local store
    url: str
    upgrade: Upgrade
    dry_run: bool


def upgrade(repo: Repo, name: str | None = None, *, local: bool = False, dry_run: bool = False) -> UpgradeResult:
    """Raise the list of codecs and profiles of a remote (the default one without a name).

    Args:
        local: of this clone's store instead.
        dry_run: only say what would be added, and which dvk everybody needs then.

    Raises:
        NotFound: no such remote, or no store there yet. NewerFormat: a newer dvk made it.
        RemoteDenied, StorageError: dvk.json cannot be written.
    """
    if local:
        return UpgradeResult("", show(repo.workspace.store_dir), _run(repo.store, dry_run), dry_run)
    remote = repo.remote(name, write=not dry_run)
    try:
        return UpgradeResult(remote.name, remote.url, _run(remote.store, dry_run), dry_run)
    finally:
        remote.store.close()


def _run(store: Store, dry_run: bool) -> Upgrade:
    return plan_upgrade(store) if dry_run else upgrade_store(store)
