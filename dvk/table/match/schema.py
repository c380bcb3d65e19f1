"""Which columns of two tables correspond, which are compared, and what changed in the schema.

>>> import pyarrow as pa
>>> from dvk.table.contract import columns_of
>>> a, b = (columns_of((name, pa.string(), True) for name in names) for names in (["id", "x", "x"], ["x", "id", "y"]))
>>> [(p.label, p.a.index, p.b.index) for p in match(a, b, CompareOptions()).pairs]
[('x', 1, 0), ('id', 0, 1)]

Columns correspond by name and occurrence: the second `x` of one side to the second `x` of the other. Names that differ
in case only are different names. Other correspondences come from the user (`rename`) or from evidence
(`dvk.table.match.renames`). The engine knows columns by number only, so a name can hold anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
from msgspec import Struct

from dvk.errors import TableError
from dvk.table.contract import Column
from dvk.table.equal.forms import Equality, Form, meet
from dvk.table.options import CompareOptions
from dvk.table.result import SchemaChange
from dvk.table.walk.chain import heaviest_chain

_SHOWN = 12  # labels in a message


class Pair(Struct, frozen=True):
    """A column that is on both sides. `form` is None where no two values of it can be equal."""

    a: Column
    b: Column
    form: Form | None

    @property
    def label(self) -> str:
        """As the new version calls it."""
        return self.b.label

    @property
    def renamed(self) -> bool:
        """Whether it has another name on each side."""
        return self.a.identity != self.b.identity


class Match(Struct, frozen=True):
    """Corresponding columns in the order of B, and those that one side has alone; left out ones are in neither."""

    pairs: tuple[Pair, ...]
    removed: tuple[Column, ...]
    added: tuple[Column, ...]

    def find(self, label: str) -> int:
        """The pair of this label, on either side.

        Raises:
            TableError: there is none; names what there is.
        """
        for i, pair in enumerate(self.pairs):
            if label in (pair.b.label, pair.a.label):
                return i
        one_sided = [("first", c.label) for c in self.removed] + [("second", c.label) for c in self.added]
        for side, other in one_sided:
            if other == label:
                raise TableError(f"the column {label!r} is in the {side} table only", hint=_hint(label, self.labels))
        raise TableError(f"no column {label!r}", hint=_hint(label, self.labels))

    @property
    def labels(self) -> list[str]:
        """Of the pairs."""
        return [pair.label for pair in self.pairs]


def match(
    a: Sequence[Column],
    b: Sequence[Column],
    options: CompareOptions,
    *,
    keep: Sequence[str] = (),
    renames: Sequence[tuple[str, str]] = (),
) -> Match:
    """Find what corresponds.

    `keep`: labels that `ignore` and `only` do not leave out; `renames`: besides those that were asked for.

    Raises:
        TableError: a name in `rename` that does not exist or is used twice, a name in `only` without a column.
    """
    equality = equality_of(options)
    by_label_a = {c.label: c for c in a}
    by_label_b = {c.label: c for c in b}
    by_identity = {c.identity: c for c in a}
    partner: dict[int, Column] = {}  # index in B -> column of A
    taken: set[int] = set()
    for old, new in (*options.rename, *renames):
        for label, side, known in ((old, "first", by_label_a), (new, "second", by_label_b)):
            if label not in known:
                raise TableError(f"no column {label!r} in the {side} table to rename", hint=_hint(label, list(known)))
        x, y = by_label_a[old], by_label_b[new]
        if x.index in taken or y.index in partner:
            raise TableError(f"the column {old!r} or {new!r} is renamed twice")
        partner[y.index] = x
        taken.add(x.index)
    for column in b:
        same = by_identity.get(column.identity)
        if column.index not in partner and same is not None and same.index not in taken:
            partner[column.index] = same
            taken.add(same.index)
    _check_patterns(options, [c.label for c in (*a, *b)])

    def wanted(*labels: str) -> bool:
        if any(label in keep for label in labels):
            return True
        if options.only and not any(fnmatchcase(x, glob) for x in labels for glob in options.only):
            return False
        return not any(fnmatchcase(x, glob) for x in labels for glob in options.ignore)

    pairs = [
        Pair(partner[c.index], c, meet(partner[c.index].type, c.type, equality))
        for c in b
        if c.index in partner and wanted(partner[c.index].label, c.label)
    ]
    return Match(
        tuple(pairs),
        removed=tuple(c for c in a if c.index not in taken and wanted(c.label)),
        added=tuple(c for c in b if c.index not in partner and wanted(c.label)),
    )


def equality_of(options: CompareOptions) -> Equality:
    """The part of the options that is about single values."""
    return Equality(
        null_values=options.null_values,
        ignore_case=options.ignore_case,
        ignore_space=options.ignore_space,
        coerce=options.coerce,
        float_bits=options.float_bits,
    )


def changes(matched: Match, *, formats: tuple[str, str], scores: dict[str, float]) -> tuple[SchemaChange, ...]:
    """What changed in the schema. `scores`: label in B -> share of equal values, of renames that were inferred."""
    out = [SchemaChange("format")] if formats[0] != formats[1] else []
    out += [SchemaChange("removed", a=c) for c in matched.removed]
    out += [SchemaChange("added", b=c) for c in matched.added]
    for pair in matched.pairs:
        if pair.renamed:
            out.append(SchemaChange("renamed", pair.a, pair.b, scores.get(pair.b.label)))
    for pair in matched.pairs:
        if pair.a.type != pair.b.type:
            out.append(SchemaChange("retyped", pair.a, pair.b))
        elif pair.a.nullable != pair.b.nullable:
            out.append(SchemaChange("nullability", pair.a, pair.b))
    if formats == ("jsonl", "jsonl"):
        return tuple(out)  # the members of a JSON object have no order
    order = np.array([pair.a.index for pair in matched.pairs], np.int64)
    stayed = set(heaviest_chain(order, np.ones_like(order)).tolist())
    out += [SchemaChange("reordered", p.a, p.b) for i, p in enumerate(matched.pairs) if i not in stayed]
    return tuple(out)


def _check_patterns(options: CompareOptions, labels: list[str]) -> None:
    for glob in options.only:
        if not any(fnmatchcase(label, glob) for label in labels):
            raise TableError(f"no column matches {glob!r}", hint=_hint(glob, labels))


def _hint(label: str, labels: Sequence[str]) -> str:
    unique = list(dict.fromkeys(labels))
    close = difflib.get_close_matches(label, unique[:10_000], n=3)
    if close:
        return "did you mean " + " or ".join(repr(x) for x in close) + "?"
    more = f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return "columns: " + ", ".join(repr(x) for x in unique[:_SHOWN]) + more
