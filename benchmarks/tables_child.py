"""What the diff of tables is measured against: one full outer join of two files on all columns, by DuckDB alone.

    python -m benchmarks.tables_child KEY A B

Prints how many rows were added, removed and modified; nothing of dvk is imported.
"""

from __future__ import annotations

import sys

import duckdb


def main() -> None:
    key, a, b = sys.argv[1:]
    connection = duckdb.connect()
    connection.execute("set enable_progress_bar = false")
    columns = [row[0] for row in connection.execute(f"describe select * from '{a}'").fetchall()]
    differs = " or ".join(f'a."{c}" is distinct from b."{c}"' for c in columns if c != key)
    print(
        *connection.execute(
            f'select count(*) filter (a."{key}" is null), count(*) filter (b."{key}" is null),'
            f' count(*) filter (a."{key}" is not null and b."{key}" is not null and ({differs}))'
            f" from '{a}' a full outer join '{b}' b on a.\"{key}\" = b.\"{key}\""
        ).fetchone()
        or ()
    )


main()
