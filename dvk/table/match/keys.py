"""Which columns identify a row: as asked, as the file says, else as its rows suggest, else none.

    for key in choose(sample_a, sample_b, matched, options, declared): ...      # ("id",) from "inferred", then "none"

A key that nobody named is inferred from a sample of both versions: columns without nulls and repeats on both sides,
those that are called like identifiers first, single columns before pairs, never floats. It is a guess, so it is said to
be one, and it is held to what it claims: after the comparison, repeats anywhere among the rows that were read, or fewer
than half of the rows found on the other side, refute it, and the next candidate is tried. Columns that are not called
like identifiers need a hundred rows of evidence, since anything is unique in a table of three.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from pyarrow import types as T

from dvk.errors import TableError
from dvk.table.equal import encode
from dvk.table.equal.forms import is_bytes, is_text, storage
from dvk.table.match.schema import Match
from dvk.table.options import CompareOptions
from dvk.table.walk.feed import Rows

#: Rows of each side that a key is inferred from.
SAMPLE_ROWS = 20_000
#: Of the rows of the smaller side, those that an inferred key must find on the other.
SHARED = 0.5

_CANDIDATES = 3
_EVIDENCE_ROWS = 100
_COLUMNS_IN_PAIRS = 8
_EXACTLY = re.compile(r"(?i)^_?(id|key|uuid|guid|pk|_id|rowid|index)$")
_LIKE = re.compile(r"(?i)(^|[_\-. ])(id|key|uuid|guid|pk|code|no|nr|number)$|[a-z](Id|ID|Key|Uuid|UUID)$")


class ChosenKey(Struct, frozen=True):
    """`source`: `option`, `config`, `file`, `inferred` or `none`; `columns`: pairs of the match."""

    source: str
    columns: tuple[int, ...] = ()


def choose(
    matched: Match,
    options: CompareOptions,
    *,
    declared: tuple[Sequence[str], Sequence[str]],
    samples: Callable[[], tuple[Rows, Rows]] | None,
) -> Iterator[ChosenKey]:
    """Keys to try, best first; the last one is none unless somebody named a key.

    `declared`: what each file says of itself; `samples`: first rows of both sides in comparable form, for inference;
    None where there is nothing to identify.

    Raises:
        TableError: a column that was named does not exist or cannot be a key; or `key_strict` and nobody named one.
    """
    if options.key:
        yield ChosenKey(options.key_source, tuple(_usable(matched, label) for label in dict.fromkeys(options.key)))
        return
    by_label = {label: i for i, pair in enumerate(matched.pairs) for label in (pair.a.label, pair.b.label)}
    for labels in reversed(declared):
        if labels and all(label in by_label for label in labels):
            columns = tuple(dict.fromkeys(by_label[label] for label in labels))
            if all(matched.pairs[c].form is not None for c in columns):
                yield ChosenKey("file", columns)
                return
    if options.key_strict and samples is not None:
        raise TableError(
            "nobody said which columns identify a row",
            hint="say it with `--key`, or in dvk.toml; without strictness a key is inferred",
        )
    if options.infer and options.align == "auto" and samples is not None:
        for columns in _inferred(*samples(), matched):
            yield ChosenKey("inferred", columns)
    yield ChosenKey("none")


def _usable(matched: Match, label: str) -> int:
    index = matched.find(label)
    pair = matched.pairs[index]
    if pair.form is None:
        raise TableError(
            f"the key column {label!r} is {pair.a.type} on one side and {pair.b.type} on the other",
            hint="values of such types are never equal; `coerce` compares them by what they mean",
        )
    return index


def _inferred(a: Rows, b: Rows, matched: Match) -> Iterator[tuple[int, ...]]:
    named: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i, pair in enumerate(matched.pairs):
        if _possible(pair.a.type, pair.b.type, a.flat[i], b.flat[i]):
            named[_rank(pair.label)].append(i)
    enough = min(a.count, b.count) >= _EVIDENCE_ROWS
    singles = named[0] + named[1] + (named[2] if enough else [])
    found = 0
    alone: set[int] = set()
    for i in singles:
        if found < _CANDIDATES and _unique(a, (i,)) and _unique(b, (i,)):
            alone.add(i)
            found += 1
            yield (i,)
    parts = [i for i in singles if i not in alone][:_COLUMNS_IN_PAIRS]
    for pair_of in combinations(parts, 2):
        if found < _CANDIDATES and _unique(a, pair_of) and _unique(b, pair_of):
            found += 1
            yield pair_of


def _rank(label: str) -> int:
    if _EXACTLY.match(label):
        return 0
    return 1 if _LIKE.search(label) else 2


def _possible(kind_a: pa.DataType, kind_b: pa.DataType, a: pa.Array, b: pa.Array) -> bool:
    """Whether values of these types identify anything: integers, text, bytes, dates; no nulls, no fractions."""
    for kind in (storage(kind_a), storage(kind_b)):
        dates = T.is_date(kind) or T.is_timestamp(kind)
        if not (T.is_integer(kind) or is_text(kind) or is_bytes(kind) or dates):
            return False
    if a.null_count or b.null_count:
        return False
    return not any(T.is_string(x.type) and _fractions(x) for x in (a, b))


def _fractions(texts: pa.Array) -> bool:
    """Whether these texts are numbers with a point."""
    return bool(len(texts)) and bool(pc.all(pc.match_substring_regex(texts, r"^\s*-?[0-9]*\.[0-9]*([eE].*)?$")).as_py())


def _unique(rows: Rows, columns: tuple[int, ...]) -> bool:
    key = rows.flat[columns[0]] if len(columns) == 1 else encode.rows([rows.flat[c] for c in columns])
    return int(pc.count_distinct(key, mode="all").as_py()) == rows.count
