"""More changes than are kept, in any order, within a small memory: the same answer, read again where needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tablekit import MemoryTable

from dvk.errors import StorageFull
from dvk.table import compare as compare_module
from dvk.table.answer import fetch as fetch_module
from dvk.table.answer.kept import Kept
from dvk.table.compare import compare
from dvk.table.options import CompareOptions
from dvk.table.pair import residue as residue_module

N = 30_000


def pair(*, shuffled: bool) -> tuple[MemoryTable, MemoryTable]:
    rng = np.random.default_rng(3)
    ids = np.arange(N)
    text = pa.array([f"value {i % 100}" for i in range(N)])
    old = pa.table({"id": ids, "x": ids % 10, "t": text, "kind": text.dictionary_encode()})
    new = old.set_column(1, "x", pa.array(ids % 10 + 1))
    if shuffled:
        new = new.take(pa.array(rng.permutation(N)))
    return MemoryTable(old, batch_rows=4000), MemoryTable(new, batch_rows=3000)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("few", [20_000, 100])
def test_rows_that_were_let_go_are_read_again(monkeypatch: pytest.MonkeyPatch, few: int, shuffled: bool) -> None:
    """Nothing is kept at first, so that full values come from the table: by number, or by streaming it again."""
    monkeypatch.setattr(compare_module, "_KEPT_LEAST_BYTES", 0)
    monkeypatch.setattr(fetch_module, "_FEW", few)
    a, b = pair(shuffled=shuffled)
    a.source.size = b.source.size = 0
    with compare(a, b, CompareOptions(key=("id",))) as diff:
        assert diff.rows.modified == N and diff.columns[0].changed == N
        assert [count for _, count in diff.columns[0].top] == [N // 10] * 5
        assert sum(batch.num_rows for batch in diff.changed_rows("modified")) == N
        assert [c.cells for c in diff.changes(limit=2)] == [{"x": (0, 1)}, {"x": (1, 2)}]


@pytest.mark.parametrize("key", [("id",), ("x",), ()])
def test_rows_joined_in_slices_give_the_same(monkeypatch: pytest.MonkeyPatch, key: tuple[str, ...]) -> None:
    """As when rows do not fit in memory at once: by a key, by one that repeats, and by content."""
    answers = []
    for size in (residue_module._ROW_BYTES, residue_module._ROW_BYTES * 50):
        monkeypatch.setattr(residue_module, "_ROW_BYTES", size)
        a, b = pair(shuffled=True)
        b = MemoryTable(b.data.slice(0, 5000))
        with compare(a, b, CompareOptions(key=key, infer=False, memory_bytes=640 << 20)) as diff:
            answers.append((diff.rows, diff.columns, diff.key, list(diff.changes(limit=50))))
    assert answers[0] == answers[1]


def test_many_changed_cells_have_exact_counts_of_the_frequent_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvk.table.answer import cells

    monkeypatch.setattr(cells, "_TOP_CELLS", 1000)
    monkeypatch.setattr(cells, "_TOP_PAIRS", 20)
    monkeypatch.setattr(compare_module, "CHUNK_ROWS", 500)
    a, b = pair(shuffled=False)
    with compare(a, b, CompareOptions(key=("id",), top=2)) as diff:
        assert diff.columns[0].top == (((0, 1), N // 10), ((1, 2), N // 10))


def test_rows_kept_in_a_file_come_back_in_any_order(tmp_path: Path) -> None:
    kept = Kept(os.fsencode(tmp_path), "rows", memory_bytes=1000, limit_bytes=None)
    for start in range(0, 1000, 50):
        numbers = np.arange(start, start + 50) * 2
        kept.add(numbers, pa.record_batch({"c0": numbers, "c1": [f"row {n}" for n in numbers]}))
    for rows in ([1998, 0, 4, 4, 100], [], [6]):
        assert kept.take(np.array(rows, np.int64)).to_pylist() == [{"c0": n, "c1": f"row {n}"} for n in rows]
    with pytest.raises(KeyError):
        kept.take(np.array([3]))
    kept.close()
    assert not kept.complete and os.listdir(tmp_path) == []


def test_a_full_disk_under_kept_rows_is_told(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    child = """
import os, resource, signal, sys
import numpy as np, pyarrow as pa
from dvk.errors import DvkError
from dvk.table.answer.kept import Kept
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
kept = Kept(os.fsencode(sys.argv[1]), "rows", memory_bytes=1000, limit_bytes=None)
try:
    for start in range(100):
        kept.add(np.arange(start * 1000, start * 1000 + 1000), pa.record_batch({"c0": np.arange(1000)}))
except DvkError as problem:
    print(problem.kind, problem.hint)
"""
    done = subprocess.run([sys.executable, "-c", child, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("storage") and "another disk" in done.stdout
    assert StorageFull.kind == "storage-full"


@pytest.mark.slow
def test_three_million_scrambled_rows_stay_within_the_limit(tmp_path: Path) -> None:
    """All of the process, as the system counts it; about half a minute."""
    child = """
import json, resource, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from dvk.table.compare import compare
from dvk.table.open import open_table
from dvk.table.options import CompareOptions
from dvk.table.source import FileSource
a, b = (open_table(FileSource(path.encode(), label=path)) for path in sys.argv[1:3])
with compare(a, b, CompareOptions(key=("id",), memory_bytes=640 << 20, temp_dir=sys.argv[3].encode())) as diff:
    counts = (diff.rows.added, diff.rows.removed, diff.rows.modified)
print(json.dumps([counts, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""
    rng = np.random.default_rng(1)
    n = 3_000_000
    ids = rng.permutation(n)
    names = []
    for number, order in enumerate((np.arange(n), ids)):
        data = pa.table({"id": order, "x": order * 7 % 1001, "t": pa.array(order % 10_000).cast(pa.string())})
        if number:
            data = data.slice(10).set_column(
                1, "x", pa.array(np.where(order[10:] % 1000 == 0, -1, order[10:] * 7 % 1001))
            )
        names.append(str(tmp_path / f"{number}.parquet"))
        pa.parquet.write_table(data, names[-1], row_group_size=1 << 17)
    done = subprocess.run(
        [sys.executable, "-c", child, *names, str(tmp_path)], capture_output=True, text=True, check=True
    )
    counts, peak_kib = json.loads(done.stdout)
    assert counts[:2] == [0, 10] and n // 1000 - 10 <= counts[2] <= n // 1000
    assert peak_kib < 640 << 10
