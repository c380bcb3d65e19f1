"""The ids of files on disk, without storing them: what `status` and `checkout` ask about files that changed.

>>> ids = hash_files(SourceFiles(root_fd, b"data", scan, index), scan.stats.sizes[index])      # doctest: +SKIP
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from blake3 import blake3

from dvk.errors import ChangedWhileRead, DvkError, StorageError
from dvk.events import Meter, OnEvent, ignore
from dvk.ids import ID_BYTES
from dvk.store.names import I64, U8
from dvk.store.threads import brisk, default_workers
from dvk.timings import Stage, stage
from dvk.workspace.source import SourceFiles

_PIECE_BYTES = 4 << 20
_GROUP = 64


def hash_files(source: SourceFiles, sizes: I64, *, on_event: OnEvent = ignore) -> tuple[U8, list[tuple[int, DvkError]]]:
    """Ids uint8[n, 32] of n files, and the number and error of each that could not be read (its id is zero)."""
    ids = np.zeros((len(sizes), ID_BYTES), np.uint8)
    problems: list[tuple[int, DvkError]] = []
    meter = Meter(on_event, "read", total_bytes=int(sizes.sum(dtype=np.uint64)), total_items=len(sizes))

    def run(start: int) -> None:
        stop = min(start + _GROUP, len(sizes))
        for i in range(start, stop):
            try:
                ids[i] = np.frombuffer(_hash_one(source, i, int(sizes[i]), meter), np.uint8)
            except DvkError as error:
                problems.append((i, error))
        meter.advance(items=stop - start)

    with brisk(), ThreadPoolExecutor(default_workers(), thread_name_prefix="dvk-hash") as pool:
        list(pool.map(run, range(0, len(sizes), _GROUP)))
    return ids, sorted(problems, key=lambda p: p[0])


def _hash_one(source: SourceFiles, i: int, size: int, meter: Meter) -> bytes:
    fd = source.open(i)
    try:
        hasher = blake3()
        done = 0
        while piece := os.read(fd, min(_PIECE_BYTES, size + 1 - done)):
            with stage(Stage.HASH, bytes_=len(piece)):
                hasher.update(piece)
            done += len(piece)
            meter.advance(bytes_=len(piece))
            if done > size:
                raise ChangedWhileRead("it changed while it was read", subject=source.show(i))
        source.recheck(i, fd)
        return hasher.digest()
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", subject=source.show(i)) from error
    finally:
        os.close(fd)
