"""Making a record count: steps P3 to P7 of docs/format/record.md, the same for a push and for a compaction.

The record becomes visible first; only then condemned lists, packs and bases are looked at, so that of a pusher and a
collector who meet at least one sees the other. Nobody is told "done" before the last look.

>>> rid = promise(remote, record, store=descriptor, pool=pool)            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor

from dvk.errors import NotOurs, RemoteError
from dvk.ids import RecordId
from dvk.store.condemned import condemned
from dvk.store.descriptor import Descriptor
from dvk.store.record import Record, format_mark, format_record, record_id, record_key
from dvk.store.roots import is_live
from dvk.store.store import Store


class Conflict(Exception):
    """Something that was relied on is condemned, gone or marked: pack names and record ids. Make another record."""

    def __init__(self, packs: set[bytes], records: set[bytes]) -> None:
        super().__init__()
        self.packs, self.records = packs, records


def promise(
    remote: Store,
    record: Record,
    *,
    store: Descriptor,
    pool: Executor,
    sizes: Mapping[str, int],
    covered: Mapping[str, bytes],
    put_locators: Callable[[RecordId], object],
) -> RecordId:
    """Write and confirm `record`; its id.

    Args:
        sizes: of packs that must have exactly this many bytes.
        covered: packs that it relies on through a base: key -> the base, which fell if the pack is gone.
        put_locators: called with the id once everything is known to be there.

    Raises:
        Conflict: nothing was promised. NotOurs, RemoteError: the remote is not what it was, or answers wrongly.
    """
    backend = remote.backend
    data = format_record(record)
    rid = record_id(data)
    backend.put(record_key(rid), [data])  # P3
    dead = condemned(backend) & {*record.packs, *record.reused}  # P4
    _check(remote, record, dead, sizes, covered, pool)  # P5
    put_locators(rid)
    again = remote.describe_again()
    if again is None or again.store != store.store:
        raise NotOurs(
            "the store on this remote was replaced during the push",
            subject=remote.name,
            hint="nothing was promised; if that is what it should be now, push again",
        )
    again.require("write", subject=remote.name)
    if not {*store.codecs, *store.profiles} <= {*again.codecs, *again.profiles}:
        raise RemoteError(
            "dvk.json allows less than it did at the beginning: two upgrades met, and the smaller one came last",
            subject=remote.name,
            hint="`dvk remote upgrade` with the newest dvk in the team, then push again; nothing was promised",
        )
    key = record_key(rid)
    backend.put(key + ".ok", [format_mark(rid)])  # P6
    seen = {item.key: item.size_bytes for item in backend.list(key)}  # P7
    if key + ".x" in seen or key + ".e" in seen:
        raise Conflict(set(), {rid})
    # Everything hangs on the record, so that the remote took it is worth a look, too.
    if seen.get(key) != len(data) or key + ".ok" not in seen:
        raise RemoteError(
            "the record of this push is not on the remote, though that took it",
            subject=f"{remote.name}/{key}",
            hint="`dvk remote check` names what is wrong with this remote; nothing was promised, push again",
        )
    return rid


def _check(
    remote: Store,
    record: Record,
    dead: set[str],
    sizes: Mapping[str, int],
    covered: Mapping[str, bytes],
    pool: Executor,
) -> None:
    """P5: what is relied on exists, whole, and every base can be relied on."""
    # A live base answers for its packs. That they exist is asked all the same, for a remote that lost some.
    asked = sorted({*record.packs, *record.reused, *covered})
    there = dict(zip(asked, pool.map(remote.backend.stat, asked), strict=True))
    bases = [bytes.fromhex(b) for b in record.bases]
    live = pool.map(lambda b: is_live(remote.backend, b), bases)
    fallen = {b for b, alive in zip(bases, live, strict=True) if not alive}
    for key, size in there.items():
        if size is None:
            dead.add(key)
            if base := covered.get(key, b""):
                fallen.add(base)
        elif size != sizes.get(key, size):
            raise RemoteError(
                f"a pack that was sent with {sizes[key]:,} bytes has {size:,} now",
                subject=f"{remote.name}/{key}",
                hint="`dvk remote check` names what is wrong with this remote; nothing was promised, push again",
            )
    if dead or fallen:
        raise Conflict({bytes.fromhex(k.rsplit("/", 1)[-1]) for k in dead}, fallen)
