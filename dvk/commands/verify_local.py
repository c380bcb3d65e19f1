"""`dvk verify` of the local store: its objects, then the versions, then (where asked) every byte, then the work tree.

The order matters: what is damaged is noted before versions are looked at, so that a version counts as held only by what
can really be read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dvk.commands.acknowledged import Acknowledged
from dvk.commands.repo import Repo, root_of
from dvk.commands.tracked import look, read_unknown
from dvk.commands.verify_report import (
    READ_AGAIN,
    UNSURE,
    WORK_TREE,
    DamagedObject,
    VerifyResult,
    Wanted,
    affected_version,
    damaged_object,
    summarize,
    who_to_ask,
)
from dvk.commands.verify_workspace import workspace_problems
from dvk.errors import Corrupt, DataMissing, DvkError
from dvk.events import Meter, Note, OnEvent
from dvk.store.checked import CheckedPacks, choose
from dvk.store.descriptor import Descriptor
from dvk.store.examine import Damage, Level, examine_store
from dvk.store.examine_index import IndexCheck
from dvk.store.index import prefixes
from dvk.store.names import show
from dvk.store.pack import Footer, PackKind, pack_key
from dvk.store.pagewriter import write_listing
from dvk.store.restorable import Packs
from dvk.store.root import FOLDER, Root
from dvk.store.threads import brisk, default_workers
from dvk.store.wholeness import Found, State, Wholeness
from dvk.workspace.pointer import Pointer

IN_DAMAGED_PACKS = "the sound parts of damaged packs"
WORDS = {Level.QUICK: "quick", Level.NORMAL: "default", Level.DATA: "data"}


class LocalCheck:
    """One look at the local store. After `run` its parts say more than the report; `dvk repair` starts from them."""

    def __init__(
        self,
        repo: Repo,
        wanted: Sequence[Wanted],
        level: Level,
        *,
        narrow: bool = False,
        percent: float = 100,
        on_event: OnEvent,
    ) -> None:
        """`narrow`: data is read of the packs that `wanted` use, not of all."""
        self.repo, self.store, self.wanted = repo, repo.store, wanted
        self.level, self.narrow, self.percent, self.on_event = level, narrow, percent, on_event
        self.damage: list[Damage] = []
        self.found: list[tuple[Wanted, Found]] = []
        self.was_here = Acknowledged(repo.workspace.common_dir).read()
        self.whole = Wholeness(self.store)
        self._pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="dvk-verify")
        self._meter = Meter(on_event, "verify", total_bytes=0)
        self._disk: dict[bytes, Root | None] = {}
        self._confirmed: dict[str, frozenset[str]] | None = None

    def __enter__(self) -> LocalCheck:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, work_tree: Sequence[bytes] | None) -> VerifyResult:
        """Look at everything.

        Args:
            work_tree: where in the work tree to look as well (nothing: everywhere); None: not at all.

        Raises:
            StorageError: the store cannot be listed.
        """
        out = VerifyResult(show(self.repo.workspace.store_dir), level=WORDS[self.level])
        with brisk():
            self._objects()
            self._versions()
            if self.level is Level.DATA and self._read():
                self._versions()
        if work_tree is not None:
            read = self.level is Level.DATA and self.percent >= 100
            out.workspace += workspace_problems(
                self.repo, work_tree, strange=self._is_strange, read=read, on_event=self.on_event
            )
        for problem in self.packs.problems:
            self.on_event(Note(f"damage could not be noted down, so others still count it as held ({problem})"))
        self._report(out)
        return out

    # ------------------------------------------------------------ objects

    def _objects(self) -> None:
        store = self.store
        # Where nothing was ever stored there is nothing to be wrong.
        used = any(True for prefix in ("dvk.json", "i/", "m/", "p/") for _ in store.backend.list(prefix))
        self.damage = examine_store(store) if used else []
        if self.damage:
            store.assume(Descriptor.new())
        self.index = IndexCheck(store)

        def compare(name: bytes, footer: Footer) -> None:
            self.index.pack(name, footer, subject=f"{store.name}, index")

        self.packs = Packs(store, min(self.level, Level.NORMAL), self._pool, self._meter, keep_notes=True, look=compare)
        self.packs.examine(list(self.packs.sizes))
        store.refresh()
        self.vanished = store.vanished

    def index_damage(self) -> list[Damage]:
        """What is wrong with the index. Where a pack is not what it was, that is why they disagree."""
        return self.index.all_damage(but={x.name for x in self.packs.found.values() if x.trouble is not None})

    @property
    def proven(self) -> set[bytes]:
        """Packs that were read to the last byte and are right."""
        return {x.name for x in self.packs.found.values() if x.level is Level.DATA and x.trouble is None}

    def _read(self) -> bool:
        """Read packs to the last byte; whether that brought damage to light that changes what versions are."""
        checked = CheckedPacks(os.path.join(os.fsdecode(self.repo.workspace.store_dir), "checked"))
        pages = {key for key in self.packs.sizes if key[0] is PackKind.PAGES}
        scope = pages | {(PackKind.DATA, name) for name in self.whole.used} if self.narrow else set(self.packs.sizes)
        sizes = {key: self.packs.sizes[key] for key in scope if key in self.packs.sizes}
        last = checked.read()
        chosen = choose(sizes, {key: last[key[1]] for key in sizes if key[1] in last}, self.percent)
        before = {key for key, x in self.packs.found.items() if x.trouble is not None}
        self.packs.examine(chosen, Level.DATA)
        read = (key[1] for key in chosen if key not in self.packs.unread)
        checked.update(read, int(time.time()), there=(name for _, name in self.packs.sizes))
        return any(x.trouble is not None for key, x in self.packs.found.items() if key not in before)

    def _versions(self) -> None:
        self.whole = Wholeness(self.store, salvageable=self.packs.salvageable(), was_here=self.was_here)
        known: dict[tuple[Root, bytes], Found] = {}
        meter = Meter(self.on_event, "look", total_items=len(self.wanted))
        for w in self.wanted:
            key = (w.root, w.under)
            if key not in known:
                known[key] = self.whole.look(w.root, w.under)
            meter.advance(items=1)
        self.found = [(w, known[w.root, w.under]) for w in self.wanted]

    def _is_strange(self, path: bytes, root: Root) -> bool:
        """Whether no commit names a version that is not here: a pointer that nobody can have made."""
        git = self.repo.workspace.git
        if git is None or not git.has_program or self.narrow:
            return False
        committed = any(r != WORK_TREE for w in self.wanted if w.root == root for r in w.revisions)
        here = any(f.state is not State.ABSENT for w, f in self.found if (w.path, w.root) == (path, root))
        return not (committed or here or self.elsewhere_known(root))

    def elsewhere_known(self, root: Root) -> list[str]:
        """The remotes that this clone has seen confirm a version. Offline."""
        if self._confirmed is None:
            remotes = self.repo.workspace.config.remotes()
            self._confirmed = {name: frozenset(self.repo.confirmed([name])) for name in remotes}
        return [name for name, roots in self._confirmed.items() if root.text in roots]

    # ------------------------------------------------------------ the report

    def _report(self, out: VerifyResult) -> None:
        out.versions = len(self.found)
        for w, found in self.found:
            if found.state is State.WHOLE:
                out.whole += 1
            elif found.state is State.LOST:
                elsewhere = self.elsewhere(w, found)
                state = "unreachable" if elsewhere else "lost"
                hint = f"`dvk repair` brings it back from {elsewhere[0]}" if elsewhere else who_to_ask(w)
                if self.packs.unread:
                    state, hint = UNSURE, READ_AGAIN
                out.affected.append(affected_version(w, found, state, elsewhere, hint))
            else:
                out.not_here += 1
        out.affected.sort(key=lambda v: (v.state, v.path))
        out.packs = len(self.packs.sizes)
        out.packs_read = sum(x.level is Level.DATA for x in self.packs.found.values())
        out.read_bytes = self._meter.done_bytes
        out.objects = self._damaged_objects()
        out.summary = summarize(out)

    def _damaged_objects(self) -> list[DamagedObject]:
        needed = self._needed()
        rows = [(d, False) for d in (*self.damage, *self.index_damage())]
        for (kind, name), examined in self.packs.found.items():
            if (d := examined.damage) is not None:
                rows.append((d, pack_key(kind, name) in needed))
        for key in sorted(self.vanished_keys()):
            gone = Corrupt("the index speaks of this pack and it is not there", subject=f"{self.store.name}/{key}")
            rows.append((Damage(key, gone), key in needed))
        for name, kind, rows_, mine in self.store.noted():
            key = pack_key(kind, name)
            x = self.packs.found.get((kind, name))
            if x is not None and x.trouble is None and rows_:
                known = Corrupt(
                    f"an earlier look found {rows_:,} of its chunks damaged", subject=f"{self.store.name}/{key}"
                )
                rows.append((Damage(key, known), bool(np.isin(mine, self._gone()).any())))
        hint = "`dvk repair` puts it aside, keeps what is good in it, and brings back the rest"
        return [
            damaged_object(d, hint=hint, needed=need) for d, need in {d.key: (d, need) for d, need in rows}.values()
        ]

    def vanished_keys(self) -> set[str]:
        """Keys of packs that the index knows and that are not there."""
        return {pack_key(kind, name) for name, kind in self.vanished.items()}

    def _needed(self) -> set[str]:
        """Keys of damaged or vanished packs that held something which versions need and nobody has here."""
        wanted = self._gone()
        if not len(wanted):
            return set()
        out: set[str] = set()
        for (kind, name), x in self.packs.found.items():
            if x.footer is not None and np.isin(prefixes(x.footer.ids[x.unusable]), wanted).any():
                out.add(pack_key(kind, name))
        for name, kind, mine in self.store.index_rows():
            if np.isin(mine, wanted).any():
                out.add(pack_key(kind, name))
        return out

    def _gone(self) -> npt.NDArray[np.uint64]:
        """Prefixes of what versions need and nobody has here."""
        if not self.whole.gone:
            return np.zeros(0, np.uint64)
        return np.unique(prefixes(np.concatenate(self.whole.gone)))

    # ------------------------------------------------------------ where else it is

    def elsewhere(self, w: Wanted, found: Found) -> list[str]:
        """Where else a version is known to be."""
        out = []
        if all(m.saved for m in found.missing if m.lost):
            out.append(IN_DAMAGED_PACKS)
        if self.is_on_disk(w):
            out.append("the file on disk" if w.root.kind != FOLDER else "the files on disk")
        return out + self.elsewhere_known(w.root)

    def is_on_disk(self, w: Wanted) -> bool:
        """Whether the work tree has a version, by its content."""
        if w.path not in self._disk:
            self._disk[w.path] = root_on_disk(self.repo, w.path, self.on_event)
        return self._disk[w.path] == w.root


def root_on_disk(repo: Repo, path: bytes, on_event: OnEvent) -> Root | None:
    """What lies at a tracked path, by its content; None where that is nothing, or cannot be told."""
    try:
        pointer = repo.workspace.read_pointer(path)
        seen = look(repo.root_fd, path, repo.state, repo.workspace.ignore_rules(), on_event=on_event)
    except DvkError:
        return None
    if not isinstance(pointer, Pointer) or seen.kind != pointer.kind or seen.scan.problems:
        return None
    seen = read_unknown(repo.root_fd, seen, seen.unknown(), on_event=on_event)
    if len(seen.unknown()):
        return None
    if not pointer.is_dir:
        return Root(root_of(pointer).kind, seen.ids[0].tobytes(), int(seen.scan.stats.sizes[0]))
    try:
        ref = write_listing(seen.entries(), lambda _name, _data: None)
    except DataMissing:
        return None
    return Root(FOLDER, ref.id, ref.total_bytes, ref.files)
