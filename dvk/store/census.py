"""What lies on a remote, as a collector of garbage must see it: records with their marks, packs, condemned lists.

Everything that a collector deletes follows from one census, so a census believes nothing: a record that does not
parse, a confirmation without its record, a base that a live record names and that is not there, two listings that
disagree: each stops the collection. docs/format/record.md says what the marks mean.

>>> census = take_census(remote, pool)                                    # doctest: +SKIP
>>> sorted(census.packs.keys() - census.named(census.live))               # doctest: +SKIP
['p/3f/3f0c...']
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from concurrent.futures import Executor

from msgspec import Struct

from dvk.backend.contract import KeyMissing, Listed
from dvk.errors import DvkError, FormatError, NotOurs, Unsafe
from dvk.store.condemned import condemned_lists
from dvk.store.record import Record, record_key
from dvk.store.roots import load_record
from dvk.store.store import Store

_RECORD = re.compile(r"j/([0-9a-f]{64})(|\.ok|\.x|\.e)")
_PACK = re.compile(r"[pm]/([0-9a-f]{2})/\1[0-9a-f]{62}")
_NO_PLAN = "nothing was deleted"


class Census(Struct, frozen=True):
    """One look at a remote. Records are named by their ids in hex, packs by their keys.

    `live`: records that keep what they name. `dead`: retired, or given up before they were confirmed. An intent
    without a mark is live: it names packs of a push that may be under way.
    """

    store: str
    records: dict[str, Record]
    confirmed: frozenset[str]
    retired: frozenset[str]
    expired: frozenset[str]
    dead: frozenset[str]
    packs: dict[str, int]
    lists: dict[str, tuple[str, ...]]
    leftovers: tuple[str, ...]  #: keys of marks whose record is removed already
    times: dict[str, int]  #: when records came, by the clock of the storage where it tells, else of their writers
    strangers: tuple[str, ...] = ()  #: keys among the packs that are no packs
    damaged_lists: tuple[str, ...] = ()  #: keys of condemned lists that cannot be read

    @property
    def live(self) -> frozenset[str]:
        """Records that are not dead."""
        return frozenset(self.records) - self.dead

    @property
    def intents(self) -> frozenset[str]:
        """Live records that nobody confirmed: pushes under way, or their remains."""
        return self.live - self.confirmed

    def reach(self, rids: Iterable[str]) -> set[str]:
        """Records, their bases and the bases of those, as far as they are named, here or not."""
        out: set[str] = set()
        todo = list(rids)
        while todo:
            rid = todo.pop()
            if rid not in out:
                out.add(rid)
                todo += self.records[rid].bases if rid in self.records else ()
        return out

    def relying(self, rids: Iterable[str]) -> set[str]:
        """Records that have one of these as a base, directly or through others; not those themselves."""
        users: dict[str, list[str]] = {}
        for rid, record in self.records.items():
            for base in record.bases:
                users.setdefault(base, []).append(rid)
        first = set(rids)
        out: set[str] = set()
        todo = list(first)
        while todo:
            new = set(users.get(todo.pop(), ())) - out
            out |= new
            todo += new
        return out - first

    def named(self, rids: Iterable[str]) -> frozenset[str]:
        """Packs that records name, directly or through bases, retired bases included."""
        out: set[str] = set()
        for rid in self.reach(rids):
            if (record := self.records.get(rid)) is not None:
                out.update(record.packs, record.reused)
        return frozenset(out)


def take_census(
    remote: Store, pool: Executor, *, known: dict[str, Record] | None = None, alone: bool = False
) -> Census:
    """Look at everything: two listings of records, one of packs, every record, every condemned list.

    Args:
        known: records that were read before; a record is named by its bytes, so it is still that. Takes in more.
        alone: nobody else collects now, so a condemned list that is damaged warns of nothing.

    Raises:
        NotOurs: no store is there. NewerFormat: it needs features that this dvk does not know to collect.
        Unsafe: what is seen cannot be whole or cannot be read; names the object.
    """
    found = remote.describe_again()
    if found is None:
        raise NotOurs("there is no dvk store here", subject=remote.name)
    found.require("gc", subject=remote.name)
    backend = remote.backend
    rows = {item.key: item for item in backend.list("j/")}
    keys = set(rows)
    marks: dict[str, set[str]] = {"": set(), ".ok": set(), ".x": set(), ".e": set()}
    for key in keys:
        match = _RECORD.fullmatch(key)
        if match is None:
            raise Unsafe(
                f"something that is no record lies among the records ({_told(rows[key])}); {_NO_PLAN}",
                subject=f"{remote.name}/{key}",
                hint="a newer dvk may have put it there, and it may say what is needed: upgrade. If nobody "
                "knows it, move it to a folder of another name with the tools of the storage; dvk never does",
            )
        marks[match[2]].add(match[1])
    names = sorted(marks[""])
    known = {} if known is None else known
    new = [rid for rid in names if rid not in known]
    known.update(zip(new, pool.map(lambda rid: _load(remote, rid, found.store), new), strict=True))
    records = {rid: known[rid] for rid in names}
    orphans = (marks[".ok"] | marks[".x"] | marks[".e"]) - marks[""]
    for rid in sorted(orphans - marks[".x"] - marks[".e"]):
        raise Unsafe(
            f"a record is confirmed and not there, so this listing has a hole; {_NO_PLAN}",
            subject=f"{remote.name}/{record_key(bytes.fromhex(rid))}",
            hint="`dvk remote check` says whether listings of this remote can be trusted",
        )
    # A mark counts only where no confirmation is seen after it was: this look is a second one.
    doubtful = sorted((marks[".e"] - marks[".ok"]) & marks[""])
    late = pool.map(lambda rid: backend.stat(record_key(bytes.fromhex(rid), ".ok")), doubtful)
    saved = {rid for rid, size in zip(doubtful, late, strict=True) if size is not None}
    dead = (marks[".x"] & marks[""]) | (set(doubtful) - saved)
    packs, strangers = _packs(remote)
    lists, damaged = _lists(remote, alone=alone)
    out = Census(
        store=found.store,
        records=records,
        confirmed=frozenset(marks[".ok"] & marks[""]) | frozenset(saved),
        retired=frozenset(marks[".x"] & marks[""]),
        expired=frozenset(marks[".e"] & marks[""]),
        dead=frozenset(dead),
        packs=packs,
        lists=lists,
        leftovers=tuple(sorted(k for k in keys if (m := _RECORD.fullmatch(k)) and m[1] in orphans)),
        times={rid: _time(rows[record_key(bytes.fromhex(rid))], record) for rid, record in records.items()},
        strangers=strangers,
        damaged_lists=damaged,
    )
    _look_for_holes(remote, out, keys)
    return out


def _load(remote: Store, rid: str, store: str) -> Record:
    try:
        record = load_record(remote.backend, bytes.fromhex(rid))
    except (KeyMissing, FormatError) as error:
        raise Unsafe(
            f"a record cannot be read ({error.message}), so nobody knows what it needs; {_NO_PLAN}",
            subject=f"{remote.name}/{record_key(bytes.fromhex(rid))}",
            hint=error.hint
            or "bring it back from a version or a copy of the bucket; if there is none: when everybody has pushed "
            "again, `dvk repair --remote --drop-records` puts it aside",
        ) from error
    if record.store != store:
        raise Unsafe(
            f"a record belongs to another store; {_NO_PLAN}",
            subject=f"{remote.name}/{record_key(bytes.fromhex(rid))}",
            hint="two stores were mixed in one place: copy them apart first",
        )
    return record


def _time(row: Listed, record: Record) -> int:
    return record.time if row.modified_s is None else int(row.modified_s)


def _told(row: Listed) -> str:
    """What a person wants to know of an object that nobody knows."""
    when = "" if row.modified_s is None else time.strftime(", written %Y-%m-%d", time.gmtime(row.modified_s))
    return f"{row.size_bytes:,} bytes{when}"


def _packs(remote: Store) -> tuple[dict[str, int], tuple[str, ...]]:
    """Packs, and what is none. Nothing that lies there can say that a pack is needed, so that need not stop anybody."""
    out: dict[str, int] = {}
    strangers: list[str] = []
    for prefix in ("p/", "m/"):
        for item in remote.backend.list(prefix):
            if _PACK.fullmatch(item.key) is None:
                strangers.append(f"{item.key} ({_told(item)})")
            else:
                out[item.key] = item.size_bytes
    return out, tuple(strangers)


def _lists(remote: Store, *, alone: bool) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    damaged: list[str] = []
    try:
        found = condemned_lists(remote.backend, on_damage=(lambda key, _: damaged.append(key)) if alone else None)
        return found, tuple(damaged)
    except DvkError as error:
        raise Unsafe(f"{error.message}; {_NO_PLAN}", subject=error.subject, hint=error.hint) from error


def _look_for_holes(remote: Store, census: Census, keys: set[str]) -> None:
    """A listing that leaves something out would make it garbage."""
    again = {item.key for item in remote.backend.list("j/")}
    for key in sorted(keys - again):
        if f"{key[:66]}.x" in keys or f"{key[:66]}.e" in keys:
            continue  # another collector removes what it retired
        raise Unsafe(
            f"one listing has it and the next has not; {_NO_PLAN}",
            subject=f"{remote.name}/{key}",
            hint="`dvk remote check` says whether listings of this remote can be trusted",
        )
    removed = {key[2:66] for key in census.leftovers}
    confirmed = census.live & census.confirmed
    missing = census.reach(confirmed) - census.records.keys()
    # A base is removed after a look that no record names it, so an intent on it came later and its pusher will not
    # confirm it: the mark of the base stays.
    missing |= census.reach(census.intents) - census.records.keys() - removed
    for base in sorted(missing):
        rid = min(census.relying([base]) & census.live)
        raise Unsafe(
            f"record {rid[:12]} relies on a record that is not there, so this listing has a hole; {_NO_PLAN}",
            subject=f"{remote.name}/{record_key(bytes.fromhex(base))}",
            hint="`dvk remote check` says whether listings of this remote can be trusted",
        )
    # Who mends a loss sends it under another name, and the record of what was lost stays: it promises nothing alone.
    lacking = {
        rid: lost
        for rid, record in census.records.items()
        if (lost := {*record.packs, *record.reused} - census.packs.keys())
    }
    broken = confirmed & (lacking.keys() | census.relying(lacking))
    whole = {root for rid in confirmed - broken for root in census.records[rid].roots}
    unmended = {rid for rid in broken if not whole.issuperset(census.records[rid].roots)}
    for key in sorted({key for rid in census.reach(unmended) & lacking.keys() for key in lacking[rid]}):
        raise Unsafe(
            f"a record relies on this pack and it is not there: lost, or left out of the listing; {_NO_PLAN}",
            subject=f"{remote.name}/{key}",
            hint="`dvk push --verify full` from a clone that holds the data sends again what is lost",
        )
