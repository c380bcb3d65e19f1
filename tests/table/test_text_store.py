"""Versions in a real store: what they share is not read, and the answer is that of plain files."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from storekit import add, b3
from textkit import Row, difference, rows_of, write_csv

from dvk.backend.memory import MemoryBackend
from dvk.store.content import StoreContent
from dvk.store.opened import Opened
from dvk.store.store import Store
from dvk.table.cache import Cache
from dvk.table.contract import Source, Table
from dvk.table.open import open_table
from dvk.table.skip.plan import plan
from dvk.table.source import FileSource

MIB = 1 << 20


def rows(edited: bool) -> list[Row]:
    """60,000 rows, quoted line ends in each; the edit changes one, puts ten in and takes the last out."""
    source = random.Random(5)
    out: list[Row] = [
        (str(i), f'say "{source.random():.12f}",\nline {i}', None if i % 3 else "") for i in range(60_000)
    ]
    if edited:
        out[20_000] = ("20000", "changed", "1")
        out[40_000:40_000] = [(f"new{i}", "n\n", None) for i in range(10)]
        del out[-1]
    return out


def text(table: Sequence[Row]) -> bytes:
    """Equal rows as equal bytes."""
    return b'"id",note,x\n' + b"".join(write_csv([row], random.Random(repr(row))) for row in table)


@pytest.fixture(scope="module")
def versions() -> tuple[bytes, bytes]:
    return text(rows(False)), text(rows(True))


@pytest.fixture(scope="module")
def store(versions: tuple[bytes, bytes]) -> Store:
    made = Store(MemoryBackend())
    add(made, [versions[0]])
    add(made, [versions[1]])
    return made


def version(store: Store, data: bytes) -> Opened:
    return Opened(StoreContent(store), b3(data), len(data), label="t.csv at v1", name=b"t.csv")


def changes(a: Table, b: Table, cache: Cache | None = None) -> tuple[object, int]:
    """What differs in what a plan leaves, and how many rows that are."""
    made = plan(a, b, cache=cache)
    assert made.level == "L1"
    left = rows_of(a, made.a), rows_of(b, made.b)
    return difference(*left), sum(map(len, left))


def test_stored_and_plain_versions_in_any_pairing(versions: tuple[bytes, bytes], store: Store, tmp_path: Path) -> None:
    """From the store, from the workspace, or one from each: one answer, from a part of the rows."""
    expected = difference(rows(False), rows(True))
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path, data in zip(paths, versions, strict=True):
        path.write_bytes(data)
    for kinds in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sources: list[Source] = [
            FileSource(bytes(path)) if kind else version(store, data)
            for kind, path, data in zip(kinds, paths, versions, strict=True)
        ]
        a, b = (open_table(source) for source in sources)
        answer, count = changes(a, b)
        assert answer == expected
        assert count < 25_000
        a.close()
        b.close()


def test_a_second_diff_decodes_what_changed(versions: tuple[bytes, bytes], store: Store, tmp_path: Path) -> None:
    """With the facts of the first in the cache, only blocks around a change are decoded."""
    cache = Cache(bytes(tmp_path))
    answers, decoded = [], []
    for _ in range(2):
        sources = [version(store, data) for data in versions]
        a, b = (open_table(source) for source in sources)
        made = plan(a, b, cache=cache)
        decoded.append(sum(source.bytes_read for source in sources))
        answers.append(changes(a, b, cache))
        assert made.skipped > 40_000
    assert answers[0] == answers[1]
    assert decoded[0] > len(versions[0]) > 1.5 * MIB
    # All three blocks of A hold a change; of B its new blocks and the one of the header line.
    assert decoded[1] <= decoded[0] < len(versions[0]) + 1.5 * MIB < 0.8 * sum(map(len, versions))
