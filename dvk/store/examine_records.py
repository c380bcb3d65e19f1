"""Whether what only a remote has is what it should be: records, their marks, condemned lists and locators.

    found = examine_records(store, pool, packs=keys_that_are_there)
    found.damage, found.lost(packs)     # what is wrong with them, and which packs a live record misses

All of them are small and read whole. What damage and *unread* mean: see `examine`, which looks at packs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from concurrent.futures import Executor

from msgspec import Struct, field

from dvk.backend.contract import KeyMissing
from dvk.backend.disk import patiently
from dvk.errors import Corrupt, DvkError, FormatError, RemoteError, StorageError
from dvk.store.condemned import MAX_BYTES as MAX_CONDEMNED_BYTES
from dvk.store.condemned import condemned_lists, is_named_by_hash
from dvk.store.examine import Damage
from dvk.store.locator import MAX_BYTES as MAX_LOCATOR_BYTES
from dvk.store.locator import parse_locator
from dvk.store.record import Record, format_mark
from dvk.store.roots import load_record
from dvk.store.store import Store

_LOCATOR_KEY = re.compile(r"l/([fd])/([0-9a-f]{2})/(\2[0-9a-f]{62})")
_RECORD_KEY = re.compile(r"j/([0-9a-f]{64})(|\.ok|\.x|\.e)")


class Records(Struct):
    """The records of a remote, by their ids in hex."""

    damage: list[Damage] = field(default_factory=list)
    all: dict[str, Record] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)  #: confirmed and not retired
    bad: set[str] = field(default_factory=set)  #: that cannot be read, or are confirmed and not there
    ended: set[str] = field(default_factory=set)  #: that were retired or given up, whether they are there or not

    def named(self, rid: str) -> set[str]:
        """The packs that a record relies on, its bases' included."""
        return {key for r in self.with_bases(rid) for key in (*self.all[r].packs, *self.all[r].reused)}

    def with_bases(self, rid: str) -> set[str]:
        """A record with those that it relies on, and they on, as far as they can be read."""
        seen, todo = set(), [rid]
        while todo:
            one = todo.pop()
            if one in self.all and one not in seen:
                seen.add(one)
                todo += self.all[one].bases
        return seen

    def shaky(self) -> set[str]:
        """Live records that rely on one that cannot be read, so that nobody knows all that they need."""
        return {rid for rid in self.live if any(self.bad.intersection(self.all[r].bases) for r in self.with_bases(rid))}

    def roots(self, *, without: Container[str] = ()) -> dict[str, str]:
        """Root -> a live record that names it and none of some packs."""
        out: dict[str, str] = {}
        for rid in sorted(self.live):
            if not any(key in without for key in self.named(rid)):
                out.update(dict.fromkeys(self.all[rid].roots, rid))
        return out

    def lost(self, packs: Container[str]) -> dict[str, set[str]]:
        """Packs that are not among `packs` and that a live record needs: key -> roots that only such records name.

        Who mends a loss sends the data under another record, and the old one stays: it needs nothing any more.
        """
        broken = {rid: {k for k in self.named(rid) if k not in packs} for rid in self.live}
        whole = {root for rid, gone in broken.items() if not gone for root in self.all[rid].roots}
        out: dict[str, set[str]] = {}
        for rid, gone in broken.items():
            roots = set(self.all[rid].roots) - whole
            for key in gone if roots else ():
                out.setdefault(key, set()).update(roots)
        return out


def examine_records(store: Store, pool: Executor, *, packs: set[str], any_store: bool = False) -> Records:
    """Read every record, mark and condemned list of a remote.

    Args:
        packs: keys of the packs that are there.
        any_store: it is not known which store this is.

    Raises:
        RemoteError: the remote does not answer.
    """
    out = Records()
    backend = store.backend
    found = store.describe()
    keys = {m[0]: (m[1], m[2]) for item in backend.list("j/") if (m := _RECORD_KEY.fullmatch(item.key))}

    def record(rid: str) -> None:
        loaded = load_record(backend, bytes.fromhex(rid))
        if found is not None and loaded.store != found.store and not any_store:
            raise Corrupt("a record is of another store than dvk.json says", subject=f"{store.name}/j/{rid}")
        out.all[rid] = loaded
        if f"j/{rid}.ok" in keys and f"j/{rid}.x" not in keys:
            out.live.add(rid)

    def mark(key: str) -> None:
        wanted = format_mark(bytes.fromhex(keys[key][0]))
        if backend.get(key, max_bytes=len(wanted)) != wanted:
            raise Corrupt("this mark is damaged; that it is there is what counts", subject=f"{store.name}/{key}")

    def look(key: str) -> Damage | None:
        rid, mark_ = keys[key]
        try:
            patiently(lambda: mark(key) if mark_ else record(rid))
        except (FormatError, StorageError, KeyMissing) as error:
            if not mark_:
                out.bad.add(rid)
            return Damage(key, error)
        return None

    out.damage += [d for d in pool.map(look, sorted(keys)) if d is not None]
    out.ended = {rid for rid, mark_ in keys.values() if mark_ in (".x", ".e")}
    for rid, mark_ in keys.values():
        if mark_ == ".ok" and f"j/{rid}" not in keys and rid not in out.ended:
            lost = Corrupt("a record is confirmed and not there", subject=f"{store.name}/j/{rid}")
            out.damage.append(Damage(f"j/{rid}", lost))
            out.bad.add(rid)
    for rid in sorted(out.live):
        for base in sorted(set(out.all[rid].bases) - out.all.keys() - out.bad):
            lost = Corrupt(f"record {rid[:12]} relies on it and it is not there", subject=f"{store.name}/j/{base}")
            out.damage.append(Damage(f"j/{base}", lost))
            out.bad.add(base)
    out.damage += _lists(store, found.store if found is not None else "", packs)
    return out


def _lists(store: Store, store_id: str, packs: set[str]) -> list[Damage]:
    try:
        lists = condemned_lists(store.backend)
    except RemoteError:
        raise
    except DvkError as error:
        return [Damage(error.subject.rpartition(f"{store.name}/")[2] or "g/", error)]
    out = []
    for key, named in lists.items():
        subject = f"{store.name}/{key}"
        if json.loads(store.backend.get(key, max_bytes=MAX_CONDEMNED_BYTES))["store"] != store_id:
            out.append(Damage(key, Corrupt("a condemned list is of another store", subject=subject)))
        # A list names packs that are there, until its owner deletes them one by one. Those of format 1 have no hash.
        elif gone := sorted(set(named) - packs):
            what = f"it condemns {gone[0][:17]}, which is not there: a collection was cut short"
            what += "" if is_named_by_hash(key) else ", or the list is damaged"
            out.append(Damage(key, Corrupt(what, subject=subject, hint="`dvk gc` of its owner ends it"), certain=False))
    return out


def examine_locators(store: Store, pool: Executor) -> dict[str, Damage | None]:
    """Read every locator of a remote: root -> what is wrong with it.

    Raises:
        RemoteError: the remote does not answer.
    """

    def look(key: str) -> Damage | None:
        match = _LOCATOR_KEY.fullmatch(key)
        assert match is not None
        subject = f"{store.name}/{key}"
        try:
            data = patiently(lambda: store.backend.get(key, max_bytes=MAX_LOCATOR_BYTES))
            parse_locator(data, kind=1 if match[1] == "f" else 2, wanted=bytes.fromhex(match[3]), subject=subject)
        except (FormatError, StorageError) as error:
            return Damage(key, error)
        except KeyMissing:
            return None
        return None

    keys = sorted(item.key for item in store.backend.list("l/") if _LOCATOR_KEY.fullmatch(item.key))
    return {f"{k[2]}:{k.rsplit('/', 1)[-1]}": d for k, d in zip(keys, pool.map(look, keys), strict=True)}
