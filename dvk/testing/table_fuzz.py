"""Random tables, random edits, every format: the diff has to be the edit, whatever it did not have to read.

    python -m dvk.testing.table_fuzz --cases 5000

Each case draws columns, rows, a key or none, an edit (rows put in, taken out, changed, moved, columns renamed away or
put in another order), a format, how the files are written (quotes, line ends, spellings of JSON, row groups, codecs)
and how they are kept: as plain files, in memory with tiny chunks, or in a store. It compares them twice, with and
without a plan, and asks for counts, for each changed row with its cells, and for the counts of each column. The case
with its seed is printed where an answer is another one; `--seed N --cases 1` is that case again.
"""

from __future__ import annotations

import argparse
import gzip
import io
import itertools
import json
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import zstandard
from blake3 import blake3

from dvk.store.pages import Chunks
from dvk.table.cache import Cache
from dvk.table.compare import compare
from dvk.table.contract import Plan, ReadOptions, Source, Table
from dvk.table.open import open_table
from dvk.table.options import CompareOptions
from dvk.table.skip.plan import plan
from dvk.table.source import BytesSource, FileSource
from dvk.testing.command import say

Cell = str | int | None
Row = tuple[Cell, ...]  #: the key first, where there is one

FORMATS = ("csv", "tsv", "csv.gz", "csv.zst", "jsonl", "jsonl.gz", "parquet", "arrow", "feather")
_TEXTS: tuple[str | None, ...] = (
    None, "", "a", "A", "7", "007", '"', 'say "x"', "two\nlines", "c,d", "\t", "\n", "é😀", " "
)  # fmt: skip
_NUMBERS: tuple[int | None, ...] = (None, 0, 1, -1, 7, 2**53 + 1, -(2**63), 2**63 - 1)


class Wrong(AssertionError):
    """An answer is not the edit; says which case, and what."""


@dataclass(frozen=True, slots=True)
class Case:
    """Two versions: names of the columns, rows in file order, and which rows of A are which of B (None: by content)."""

    seed: int
    format: str
    names: tuple[str, ...]
    numeric: tuple[bool, ...]
    keyed: bool
    a: tuple[Row, ...]
    b: tuple[Row, ...]

    def __str__(self) -> str:
        key = "keyed" if self.keyed else "without a key"
        rows = f"{len(self.a)} -> {len(self.b)} rows"
        return f"seed {self.seed}: {self.format}, {len(self.names)} columns, {rows}, {key}"


def make(seed: int, formats: Sequence[str] = FORMATS) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)
    format = rng.choice(formats)
    text_only = format.startswith(("csv", "tsv"))
    width = rng.randint(1, 5)
    numeric = tuple(not text_only and rng.random() < 0.4 for _ in range(width))
    keyed = rng.random() < 0.75
    count = rng.choice((0, 1, 2, 9, 60, 300))

    def cells() -> Row:
        return tuple(rng.choice(_NUMBERS if n else _TEXTS) for n in numeric)

    keys = rng.sample(range(-2_000, 2_000), count) if rng.random() < 0.5 else list(range(count))
    a: list[Row] = [(_key(k, text_only), *cells()) if keyed else cells() for k in keys]
    b = list(a)
    first = int(keyed)
    for _ in range(rng.choice((0, 1, 1, 2, 5, 30))):
        at = rng.randint(0, len(b))
        match rng.randrange(5):
            case 0 if at < len(b):
                changed = list(b[at])
                n = rng.randrange(width)
                changed[first + n] = rng.choice(_NUMBERS if numeric[n] else _TEXTS)
                b[at] = tuple(changed)
            case 1:
                new = [cells() for _ in range(rng.choice((1, 1, 3, 40)))]
                ids = rng.sample(range(10_000, 10**9), len(new))
                b[at:at] = [(_key(k, text_only), *row) if keyed else row for k, row in zip(ids, new, strict=True)]
            case 2:
                del b[at : at + rng.choice((1, 1, 4, 50))]
            case 3 if rng.random() < 0.3:
                b = b[at:] + b[:at]
            case 4 if rng.random() < 0.2:
                rng.shuffle(b)
    names = tuple(f"x{i}" for i in range(width))
    if keyed:
        names, numeric = ("id", *names), (not text_only, *numeric)
    return Case(seed, format, names, numeric, keyed, tuple(a), tuple(b))


def _key(number: int, text: bool) -> Cell:
    return str(number) if text else number


# ---------------------------------------------------------------- writing


def write(case: Case, rows: Sequence[Row], order: Sequence[int]) -> bytes:
    """A version as bytes, its columns in this order; equal rows are mostly written alike, not always."""
    rng = random.Random(case.seed)
    base, _, packed = case.format.partition(".")
    if base in ("csv", "tsv"):
        data = _csv(case, rows, order, "," if base == "csv" else "\t", rng)
    elif base == "jsonl":
        data = _jsonl(case, rows, order, rng)
    else:
        return _columnar(case, rows, order, rng)
    if packed == "gz":
        return gzip.compress(data)
    return zstandard.compress(data) if packed == "zst" else data


def _csv(case: Case, rows: Sequence[Row], order: Sequence[int], delimiter: str, rng: random.Random) -> bytes:
    end = rng.choice(("\n", "\r\n"))
    bom = rng.choice(("", "", "\ufeff"))
    special = (delimiter, '"', "\n", "\r")

    def field(value: Cell, how: random.Random) -> str:
        if value is None:
            return ""
        text = str(value)
        if not text or how.random() < 0.2 or any(c in text for c in special) or text.startswith("\ufeff"):
            return '"' + text.replace('"', '""') + '"'
        return text

    lines = [delimiter.join(case.names[i] for i in order)]
    for row in rows:
        how = random.Random(f"{case.seed} {row}" if rng.random() < 0.97 else rng.random())
        # A row of one null is an empty line, which is a row of one null.
        lines.append(delimiter.join(field(row[i], how) for i in order))
    # Without its line end, an empty last line is no row.
    last = end if rng.random() < 0.7 or not lines[-1] else ""
    return (bom + end.join(lines) + last).encode()


def _jsonl(case: Case, rows: Sequence[Row], order: Sequence[int], rng: random.Random) -> bytes:
    lines = []
    for row in rows:
        how = random.Random(f"{case.seed} {row}" if rng.random() < 0.97 else rng.random())
        # None is a field that is not there, but a key is always there.
        fields = {case.names[i]: row[i] for i in order if row[i] is not None}
        separators = how.choice(((",", ":"), (", ", ": ")))
        lines.append(json.dumps(fields, ensure_ascii=how.random() < 0.5, separators=separators) + "\n")
    # All names in the first line, so that a column of nothing is one; it is a row of both versions.
    first = json.dumps(
        {n: -(10**15) if numeric else "head" for n, numeric in zip(case.names, case.numeric, strict=True)}
    )
    return (first + "\n" + "".join(lines)).encode()


def _columnar(case: Case, rows: Sequence[Row], order: Sequence[int], rng: random.Random) -> bytes:
    arrays = [pa.array([row[i] for row in rows], pa.int64() if case.numeric[i] else pa.string()) for i in order]
    table = pa.Table.from_arrays(arrays, names=[case.names[i] for i in order])
    out = io.BytesIO()
    if case.format == "parquet":
        pa.parquet.write_table(
            table,
            out,
            row_group_size=rng.choice((7, 50, 1000)),
            compression=rng.choice(("none", "snappy", "zstd")),
            use_dictionary=rng.random() < 0.5,
            data_page_size=rng.choice((64, 4096)),
        )
    elif case.format == "feather":
        pa.feather.write_feather(table, out, compression=rng.choice(("uncompressed", "lz4", "zstd")))
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=rng.choice((5, 100)))
    return out.getvalue()


# ---------------------------------------------------------------- keeping


def chunks_of(data: bytes, mean: int) -> Chunks:
    """Chunks cut where the bytes say so, of about this size: borders everywhere, and versions share them."""
    ends = [i for i in range(1, len(data)) if zlib.crc32(data[max(0, i - 4) : i]) % mean == 0]
    bounds = sorted({0, len(data), *ends})
    parts = [data[low:high] for low, high in itertools.pairwise(bounds)]
    ids = b"".join(blake3(part).digest() for part in parts)
    return Chunks(np.frombuffer(ids, np.uint8).reshape(-1, 32), np.array([len(p) for p in parts], np.uint32))


def _keep(case: Case, data: bytes, side: str, folder: Path) -> Source:
    rng = random.Random(f"{case.seed} kept")
    name = f"{side}.{case.format}".encode()
    if rng.random() < 0.25:
        path = folder / name.decode()
        path.write_bytes(data)
        return FileSource(bytes(path))
    mean = rng.choice((3, 30, 300))
    return BytesSource(data, name=name, id=blake3(data).digest(), chunks=chunks_of(data, mean))


# ---------------------------------------------------------------- judging


def check(case: Case, folder: Path) -> str:
    """Compare the versions of a case, with and without a plan; the level of the plan.

    Raises:
        Wrong: an answer is not the edit.
    """
    rng = random.Random(f"{case.seed} order")
    width = len(case.names)
    orders = [list(range(width)), list(range(width))]
    if rng.random() < 0.15:
        rng.shuffle(orders[1])
    data = [write(case, rows, order) for rows, order in zip((case.a, case.b), orders, strict=True)]
    cache = Cache(bytes(folder)) if rng.random() < 0.5 else None
    level = "L4"
    for planned in (True, False, True) if cache is not None else (True, False):
        a: Table = open_table(_keep(case, data[0], "a", folder), ReadOptions(), cache=cache)
        with closing(a):
            b: Table = open_table(_keep(case, data[1], "b", folder), ReadOptions(), like=a, cache=cache)
            with closing(b):
                made = plan(a, b, cache=cache) if planned else Plan.everything(a, b)
                level = made.level if planned else level
                key = ("id",) if case.keyed else ()
                verify = case.keyed and rng.random() < 0.3
                options = CompareOptions(key=key, infer=False, verify_key=verify, threads=1)
                with closing(compare(a, b, options, plan=made)) as diff:
                    (_check_keyed if case.keyed else _check_rows)(case, diff)
    return level


def _fail(case: Case, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise Wrong(f"{case}: {what} is {found!r}, and was made to be {expected!r}")


def _shown(case: Case, row: Row) -> dict[str, Any]:
    """What a diff says of a row: of JSON Lines the JSON text of each value."""
    if not case.format.startswith("jsonl"):
        return dict(zip(case.names, row, strict=True))
    values = (None if v is None else json.dumps(v, ensure_ascii=False) for v in row)
    return dict(zip(case.names, values, strict=True))


def _check_keyed(case: Case, diff: Any) -> None:
    """By key, everything about the answer is known."""
    a, b = ({row[0]: _shown(case, row) for row in rows} for rows in (case.a, case.b))
    modified = {k: {n: (a[k][n], b[k][n]) for n in case.names if a[k][n] != b[k][n]} for k in a.keys() & b.keys()}
    modified = {k: cells for k, cells in modified.items() if cells}
    head = int(case.format.startswith("jsonl"))
    r = diff.rows
    both = len(a.keys() & b.keys())
    expected = (len(b) - both, len(a) - both, len(modified), both - len(modified) + head)
    _fail(case, "added, removed, modified, unchanged", (r.added, r.removed, r.modified, r.unchanged), expected)
    changes = list(diff.changes(full=False))
    of = {kind: {c.key["id"]: c for c in changes if c.kind == kind} for kind in ("added", "removed", "modified")}
    name = next(iter(_shown(case, case.a[0] if case.a else case.b[0]))) if case.a or case.b else "id"
    for kind, rows, only in (("added", b, b.keys() - a.keys()), ("removed", a, a.keys() - b.keys())):
        _fail(case, kind, {c.values[name]: c.values for c in of[kind].values()}, {rows[k][name]: rows[k] for k in only})
    cells = {k: c.cells for k, c in of["modified"].items()}
    _fail(case, "cells", cells, {b[k][name]: cells for k, cells in modified.items()})
    per_column = Counter(n for cells in modified.values() for n in cells)
    _fail(case, "columns", {c.name: c.changed for c in diff.columns}, dict(per_column))
    places = {kind: {row[0]: i + head for i, row in enumerate(rows)} for kind, rows in (("a", case.a), ("b", case.b))}
    keys = {_shown(case, row)[name]: row[0] for row in (*case.a, *case.b)}
    for c in changes:
        for side, at in (("a", c.a_row), ("b", c.b_row)):
            if at is not None:
                _fail(case, f"place in {side}", at, places[side][keys[c.key["id"]]])


def _check_rows(case: Case, diff: Any) -> None:
    """Without a key, what is left over must explain both versions."""
    head = int(case.format.startswith("jsonl"))
    rows = [[_shown(case, row) for row in version] for version in (case.a, case.b)]
    r = diff.rows
    _fail(case, "rows", (r.a, r.b), (len(rows[0]) + head, len(rows[1]) + head))
    _fail(case, "rows of A", r.removed + r.modified + r.unchanged, r.a)
    _fail(case, "rows of B", r.added + r.modified + r.unchanged, r.b)
    a, b = (Counter(tuple(row.values()) for row in version) for version in rows)
    _fail(case, "unchanged", r.unchanged, sum((a & b).values()) + head)
    for c in diff.changes(kinds=("added", "removed", "modified", "moved")):
        old = None if c.a_row is None else rows[0][c.a_row - head]
        new = None if c.b_row is None else rows[1][c.b_row - head]
        if c.kind == "modified":
            assert old is not None and new is not None
            _fail(case, "cells", c.cells, {n: (old[n], new[n]) for n in case.names if old[n] != new[n]})
        elif c.kind == "moved":
            _fail(case, "a moved row", old, new)
        else:
            _fail(case, c.kind, c.values, old if new is None else new)


# ---------------------------------------------------------------- command


def fuzz(
    seeds: Sequence[int], *, formats: Sequence[str] = FORMATS, say: Callable[[str], None] = lambda _: None
) -> Counter[tuple[str, str]]:
    """Check the cases of these seeds; how many of each (format, level of the plan).

    Raises:
        Wrong: an answer is not the edit.
    """
    found: Counter[tuple[str, str]] = Counter()
    said = time.monotonic()
    for n, seed in enumerate(seeds):
        case = make(seed, formats)
        with tempfile.TemporaryDirectory(prefix="dvk-fuzz-") as folder:
            try:
                found[case.format, check(case, Path(folder))] += 1
            except Exception as error:
                if isinstance(error, Wrong):
                    raise
                raise Wrong(f"{case}: {type(error).__name__}: {error}") from error
        if time.monotonic() - said > 10:
            said = time.monotonic()
            say(f"{n + 1} of {len(seeds)} cases")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 1 when an answer was wrong."""
    about = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m dvk.testing.table_fuzz", description=about)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of the first case; each next one has the next")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of: %(default)s")
    args = parser.parse_args(argv)
    start = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    say(f"{args.cases} cases from seed {start}")
    try:
        found = fuzz(range(start, start + args.cases), formats=args.formats.split(","), say=say)
    except Wrong as wrong:
        sys.stderr.write(f"{wrong}\n")
        return 1
    for (format, level), count in sorted(found.items()):
        say(f"{format:10} {level}  {count:6}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
