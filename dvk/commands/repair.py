"""`dvk repair`: brings back what `verify` finds damaged or lost, from wherever a good copy is, and deletes nothing.

    repair(repo)                                  # the local store: salvage, index, then the file on disk and remotes
    repair(repo, source="../colleague/clone")     # ... and that clone
    repair(repo, remote="")                       # the default remote, from this clone's good copies

Every byte that comes from elsewhere is proven by its hash. What is damaged is put aside under `quarantine/` once what
was good in it is stored anew; what nobody has stays lost, and is named. A repair may be killed at any moment and run
again. What it did is written to a file.
"""

from __future__ import annotations

from dvk.commands.repair_local import repair_local
from dvk.commands.repair_remote import repair_remote
from dvk.commands.repair_report import Mended, RepairResult, write_report
from dvk.commands.repo import Repo
from dvk.events import OnEvent, ignore
from dvk.store.examine import Level

__all__ = ["Level", "Mended", "RepairResult", "repair"]


def repair(
    repo: Repo,
    *,
    remote: str | None = None,
    source: str | None = None,
    level: Level | None = None,
    drop_records: bool = False,
    dry_run: bool = False,
    on_event: OnEvent = ignore,
) -> RepairResult:
    """Mend the local store, or a remote.

    Args:
        remote: the name of a remote to mend instead of the local store; "" for the default one.
        source: where good copies are, besides what is known: the name of a remote, or the folder of a clone or store.
        level: how closely to look for damage; everything is read of the local store by default, of a remote what
            `verify` reads by default.
        drop_records: of a remote: put records aside that cannot be read, though nobody knows what they promised.
        dry_run: look, and say what would be done.

    Raises:
        NotFound, NotOurs: `source` or `remote` is none. RemoteError: a remote that is to be mended does not answer.
        StorageError: the store cannot be written; what was done until then stands, and the rest can be run again.
    """
    if remote is None:
        out = repair_local(repo, source=source, level=level or Level.DATA, dry_run=dry_run, on_event=on_event)
    else:
        target = repo.remote(remote or None, write=not dry_run)
        out = repair_remote(
            repo,
            target,
            source=source,
            level=level or Level.NORMAL,
            drop_records=drop_records,
            dry_run=dry_run,
            on_event=on_event,
        )
    if out.done and not dry_run:
        out.report = write_report(repo, out, on_event)
    return out
