"""What `dvk verify` and `dvk repair` found, as records: which versions are affected, which objects, and what to do.

    lost: 1 version of data/train.csv (3f2a91c4d); unreachable: 2 versions of 1 path; to do: dvk repair --from origin

is the first line of a report: what is lost (no place that is known has it), what is only unreachable (not to be had
here, but something that is known has it), and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from dvk.errors import DvkError
from dvk.store.examine import Damage
from dvk.store.names import show
from dvk.store.root import FOLDER, Root
from dvk.store.wholeness import Found

WORK_TREE = "work tree"  #: as a revision
UNSURE = "unsure"  #: a state of versions: not found whole, and not everything could be read
READ_AGAIN = "something could not be read, so it cannot be told: run it again; if it stays so, look at the disk"
_EXAMPLES = 3


class Wanted(Struct):
    """A version of a path, or of a part of it, that is looked at, and the revisions that brought it."""

    path: bytes
    root: Root
    under: bytes = b""  #: a part of a folder
    revisions: list[str] = field(default_factory=list)


class AffectedFile(Struct, frozen=True):
    """A file that cannot be had."""

    path: bytes  #: from the top of the work tree
    size: int
    files: int = 1  #: more than one where a page of a folder's list is gone: they begin at `path`
    why: str = ""


class AffectedVersion(Struct):
    """One version of one path that is not as it should be."""

    path: bytes
    kind: str  #: "file" or "dir"
    id: bytes
    size: int
    #: "lost", "unreachable", "unsure" (not found whole, and not all could be read); of a remote also "not-pushed"
    #: (no record promises it), "unprotected" (the same, and all of it is there)
    state: str
    revisions: list[str]  #: commits that brought it, "index", "work tree"
    files: int = 0  #: how many of its files cannot be had; of a file 1
    bytes: int = 0
    missing: list[AffectedFile] = field(default_factory=list)  #: the first 1,000 of them
    elsewhere: list[str] = field(default_factory=list)  #: "this clone", "the file on disk", names of remotes
    why: str = ""
    hint: str = ""


class DamagedObject(Struct, frozen=True):
    """One object of a store that is damaged or gone."""

    key: str
    kind: str  #: "data pack", "page pack", "index", "locator", "record", "condemned list", "store"
    message: str
    hint: str = ""
    bytes: int = 0  #: of data in it that is damaged, where that is known
    needed: bool = False  #: some affected version needs it
    certain: bool = True  #: false where something that was cut short looks the same
    unread: bool = False  #: it could not be read: nobody knows whether it is damaged
    others: list[str] = field(default_factory=list)  #: versions that need it and that no revision here names, as roots


class WorkspaceProblem(Struct, frozen=True):
    """Something of the work tree or its state. `path` is from the top, or names the file of state."""

    path: bytes
    kind: str  #: "pointer", "selection", "stat cache", "state", "data"
    message: str
    hint: str = ""
    unread: bool = False  #: it could not be read: nobody knows whether something is wrong with it


class VerifyResult(Struct):
    """The whole answer."""

    store: str = ""  #: what was looked at: a folder or a URL
    remote: str = ""  #: the name of the remote; empty for the local store
    level: str = ""  #: "quick", "default" or "data"
    versions: int = 0  #: versions that were looked at
    whole: int = 0  #: of these, how many are whole
    not_here: int = 0  #: of a local store: never fetched, or only in part; no damage
    packs: int = 0
    packs_read: int = 0  #: packs that were read to the last byte
    read_bytes: int = 0
    affected: list[AffectedVersion] = field(default_factory=list)
    objects: list[DamagedObject] = field(default_factory=list)
    workspace: list[WorkspaceProblem] = field(default_factory=list)
    summary: str = ""  #: the first line of the report
    failures: list[DvkError] = field(default_factory=list)  #: pointers in history that cannot be read

    @property
    def damaged(self) -> bool:
        """Whether something is damaged or lost; what was never pushed is not."""
        certain = any(o.certain for o in self.objects)
        here = any(not p.unread for p in self.workspace)
        return certain or here or any(v.state in ("lost", "unreachable") for v in self.affected)

    @property
    def unread(self) -> list[DamagedObject]:
        """The objects that could not be read."""
        return [o for o in self.objects if o.unread]

    @property
    def unread_here(self) -> list[WorkspaceProblem]:
        """What of the work tree and its state could not be read."""
        return [p for p in self.workspace if p.unread]

    @property
    def missing(self) -> bool:
        """Whether a remote lacks something that it never promised."""
        return any(v.state in ("not-pushed", "unprotected") for v in self.affected)

    def state(self, state: str) -> list[AffectedVersion]:
        """The versions in a state."""
        return [v for v in self.affected if v.state == state]


def affected_version(w: Wanted, found: Found, state: str, elsewhere: list[str], hint: str) -> AffectedVersion:
    """What was found of a version, as the report has it."""
    folder = w.root.kind == FOLDER
    found_why = str(found.error) if found.error is not None else found.missing[0].why if found.missing else ""
    dark = "it may be in what cannot be read" if state == UNSURE else ""
    return AffectedVersion(
        path=w.path,
        kind="dir" if folder else "file",
        id=w.root.id,
        size=w.root.size,
        state=state,
        revisions=w.revisions,
        files=found.missing_files,
        bytes=found.missing_bytes,
        missing=[
            AffectedFile(w.path + b"/" + m.name if folder and m.name else w.path, m.size, m.files, dark or m.why)
            for m in found.missing
        ],
        elsewhere=elsewhere,
        why=dark or found_why,
        hint=hint,
    )


def damaged_object(d: Damage, *, hint: str, needed: bool, others: Sequence[str] = ()) -> DamagedObject:
    """What is wrong with an object, as the report has it."""
    if d.unread:
        hint = READ_AGAIN
    return DamagedObject(
        key=d.key,
        kind=d.kind,
        message=d.error.message,
        hint=d.error.hint or hint,
        bytes=d.bytes,
        needed=needed,
        certain=d.certain and not d.unread,
        unread=d.unread,
        others=list(others),
    )


def who_to_ask(w: Wanted) -> str:
    """The next step for a version that nobody known has."""
    commit = next((r for r in w.revisions if r != WORK_TREE), "")
    if not commit:
        return "`dvk add` stores it again from the data, if you have that; nobody else ever had this version"
    return (
        f"its pointer came with commit {commit[:9]}: ask its author for `dvk push --rev {commit[:9]}`, "
        "or `dvk repair --from` a clone that has it"
    )


def summarize(r: VerifyResult) -> str:
    """The first line."""
    parts = [
        f"{word}: {_versions(r.state(state))}"
        for state, word in (
            ("lost", "lost"),
            ("unreachable", "unreachable"),
            ("not-pushed", "never pushed"),
            ("unprotected", "there, but promised by no record"),
            (UNSURE, "cannot be told"),
        )
        if r.state(state)
    ]
    certain = [o for o in r.objects if o.certain]
    if r.damaged and not r.state("lost"):
        parts.insert(0, "lost: nothing")
    spare = [o for o in certain if not o.needed]
    if spare:
        parts.append(f"damaged, and no version looked at needs it: {_count(len(spare), 'object')}")
    dark = [_count(len(x), noun) for x, noun in ((r.unread, "object"), (r.unread_here, "file")) if x]
    if dark:
        parts.append(f"could not be read: {' and '.join(dark)}")
    if problems := len(r.workspace) - len(r.unread_here):
        parts.append(f"in the work tree: {_count(problems, 'problem')}")
    if not parts:
        return ""
    return "; ".join([*parts, f"to do: {_todo(r)}"])


def _todo(r: VerifyResult) -> str:
    option = f" --remote {r.remote}" if r.remote else ""
    # Whatever else there is to do, what nobody has must be asked for.
    if any(v.state == "lost" for v in r.affected):
        return f"dvk repair{option} --from REMOTE-OR-CLONE that has it; each version below says whom to ask"
    if r.damaged and (any(o.certain for o in r.objects) or any(v.state == "unreachable" for v in r.affected)):
        return f"dvk repair{option}"
    if r.unread or r.unread_here:
        return "run it again; if it stays so, look at the disk"
    if r.workspace:
        return "see below"
    return f"dvk push{option}" if r.missing else "see below"


def _versions(found: Sequence[AffectedVersion]) -> str:
    names = sorted({show(v.path) for v in found})
    shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    return f"{_count(len(found), 'version')} of {_count(len(names), 'path')} ({shown})"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
