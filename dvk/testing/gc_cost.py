"""What collecting a remote costs: requests and seconds, for many packs and records on the backend in memory.

    python -m dvk.testing.gc_cost                               # 1,000 packs, 10,000 records
    python -m dvk.testing.gc_cost --packs 1000 --records 1000

Records are real, packs are names with a few bytes: a collection reads no pack. Ten records in a row build on each
other, as pushes of one history do; every tenth such history is not wanted any more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from dvk.backend.memory import MemoryBackend
from dvk.backend.wrappers import CountingBackend
from dvk.store.collect import Collector, Kept, Limits
from dvk.store.record import Record, format_mark, format_record, record_id, record_key
from dvk.store.store import Store

_HISTORY = 10


@dataclass(frozen=True, slots=True)
class Cost:
    """What one collection took, from the plan to the sweep."""

    packs: int
    records: int
    deleted: int
    requests: int
    seconds: float
    cpu_seconds: float


def measure(packs: int, records: int) -> Cost:
    """Make a remote and collect it."""
    inner = MemoryBackend("remote")
    store = Store(inner).create().store
    names = [blake3(f"pack {i}".encode()).hexdigest() for i in range(packs)]
    keys = [f"p/{name[:2]}/{name}" for name in names]
    for key in keys:
        inner.put(key, [bytes(64)])
    known: set[str] = set()
    wanted: set[str] = set()
    before = ""
    histories = -(-records // _HISTORY)
    for i in range(records):
        root = f"f:{blake3(f'root {i}'.encode()).hexdigest()}"
        history = i // _HISTORY
        known.add(root)
        if history % 10:
            wanted.add(root)
        if i % _HISTORY == 0:
            before = ""
        mine = tuple(sorted(keys[history * packs // histories : (history + 1) * packs // histories]))
        record = Record(
            store=store,
            roots=(root,),
            packs=() if before else mine,
            reused=(),
            bases=(before,) if before else (),
            time=1_000_000_000,
            writer="dvk.testing.gc_cost",
            nonce=f"{i:032x}",
        )
        data = format_record(record)
        rid = record_id(data)
        inner.put(record_key(rid), [data])
        inner.put(record_key(rid, ".ok"), [format_mark(rid)])
        before = rid.hex()
    counting = CountingBackend(inner)
    kept = Kept(frozenset(known), frozenset(wanted))
    begun, cpu = time.perf_counter(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as state,
        Collector(Store(counting), state, limits=Limits(young=0, grace=0)) as collector,
    ):
        collector.condemn(kept, collector.plan(kept))
        swept = collector.sweep(kept)
    return Cost(
        packs, records, swept.packs, counting.counts.requests, time.perf_counter() - begun, time.process_time() - cpu
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cost of one collection."""
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.gc_cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--packs", type=int, default=1000)
    parser.add_argument("--records", type=int, default=10_000)
    asked = parser.parse_args(argv)
    cost = measure(asked.packs, asked.records)
    sys.stdout.write(
        f"{cost.packs:,} packs, {cost.records:,} records: {cost.deleted:,} packs deleted, {cost.requests:,} requests, "
        f"{cost.seconds:.1f} s ({cost.cpu_seconds:.1f} s of processor)\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
