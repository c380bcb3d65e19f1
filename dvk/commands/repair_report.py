"""What a repair did, as a record and as a file: docs/verify-repair.md says where it lies and what is in it."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct, field
from msgspec.structs import asdict

from dvk.commands.repo import Repo
from dvk.commands.verify_report import DamagedObject, VerifyResult, Wanted, damaged_object, summarize
from dvk.errors import Corrupt
from dvk.events import Note, OnEvent
from dvk.store.examine import Damage
from dvk.store.names import show


class Mended(Struct, frozen=True):
    """One thing that was done (or would be)."""

    what: str  #: "salvaged", "index", "healed", "sent", "locator", "quarantine", "mark", "store", "state"
    subject: str  #: a key, a path, or a version
    detail: str = ""


class RepairResult(Struct):
    """What a repair did, and what it could not mend."""

    store: str = ""
    remote: str = ""  #: empty for the local store
    before: VerifyResult = field(default_factory=VerifyResult)
    after: VerifyResult = field(default_factory=VerifyResult)
    done: list[Mended] = field(default_factory=list)
    quarantine: str = ""  #: the prefix in the store where damaged objects are now; empty when there are none
    report: str = ""  #: the file that says all this
    dry_run: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged or lost any more, and everything could be read."""
        return not (self.after.damaged or self.after.unread or self.after.unread_here)


def name_what_is_left(after: VerifyResult, left: Mapping[str, str], unread: Iterable[DamagedObject]) -> None:
    """Add to the last look what it may not see: a damaged pack looks sound to whoever does not read it whole.

    Args:
        left: damaged objects that could not be put aside, and why.
        unread: what could not be read before.
    """
    known = {o.key: o for o in after.objects}
    for o in unread:
        known.setdefault(o.key, o)
    for key, why in left.items():
        damage = Damage(key, Corrupt(f"is damaged and could not be put aside: {why}"))
        known[key] = damaged_object(damage, hint="`dvk repair` again, when the cause is gone", needed=False)
    after.objects = list(known.values())
    after.summary = summarize(after)


def describe(w: Wanted) -> str:
    """A version for people."""
    return f"{show(w.path)} ({w.root.id.hex()[:12]})"


def write_report(repo: Repo, out: RepairResult, on_event: OnEvent) -> str:
    """Write what was done to a file of the repository; its path, empty when it could not be."""
    folder = os.path.join(os.fsdecode(repo.workspace.common_dir), "reports")
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = os.path.join(folder, f"repair-{stamp}-{secrets.token_hex(4)}.json")
    document = {
        "format": 1,
        "store": out.store,
        "remote": out.remote,
        "quarantine": out.quarantine,
        "done": out.done,
        "before": _summary(out.before),
        "after": _summary(out.after),
    }
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(path, "x", encoding="ascii") as file:
            json.dump(document, file, indent=1, default=_plain)
            file.write("\n")
    except OSError as error:
        on_event(Note(f"the report could not be written ({error.strerror})", subject=path))
        return ""
    return path


def _summary(found: VerifyResult) -> Mapping[str, object]:
    return {
        "summary": found.summary,
        "versions": found.versions,
        "whole": found.whole,
        "affected": found.affected,
        "objects": found.objects,
        "workspace": found.workspace,
    }


def _plain(value: object) -> object:
    if isinstance(value, Struct):
        return asdict(value)
    return value.decode("utf-8", "backslashreplace") if _is_text(value) else value.hex()  # type: ignore[attr-defined]


def _is_text(value: object) -> bool:
    if not isinstance(value, bytes):
        raise TypeError(f"no form for {type(value).__name__} in a report")
    try:
        return value.decode("utf-8").isprintable()
    except UnicodeDecodeError:
        return False
