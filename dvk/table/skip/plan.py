"""What has to be read to compare two tables: the cheapest proof that the rest is equal.

plan(a, b, cache=cache).level      "L0" same file, "L1" chunks of a text, "L2", "L3" parts of a column file, "L4" all
"""

from __future__ import annotations

from dvk.table.cache import Cache
from dvk.table.contract import Plan, Table
from dvk.table.skip.columnar import plan_columnar
from dvk.table.skip.text import plan_text
from dvk.table.text.table import TextTable


def plan(a: Table, b: Table, *, cache: Cache | None = None) -> Plan:
    """Find out what two versions share. `cache`: what earlier diffs learned, and what this one leaves behind.

    A plan says which rows are equal, column by column of the same label: a comparison that sets other columns against
    each other (`rename`) has to read everything.

    Raises:
        TableError: one of them is broken in a way that shows already.
    """
    if isinstance(a, TextTable) and isinstance(b, TextTable):
        return plan_text(a, b, cache)
    return plan_columnar(a, b, cache)  # two formats share nothing: everything
