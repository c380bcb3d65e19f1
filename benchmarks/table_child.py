"""Asks one table diff tool about one pair of files; runs in the environment of the peers, where dvk is not.

    python table_child.py pandas a.csv b.csv id

It prints one JSON object: added, removed, modified; or error; or unsupported, where the tool cannot be asked. Each
tool is used the way its own documentation shows first, with the key named, and without options that a user would only
know after having been bitten.
"""

from __future__ import annotations

import json
import sys
from typing import Any


class Unsupported(Exception):
    """The tool cannot be asked this."""


def _frames(a: str, b: str) -> tuple[Any, Any]:
    import pandas as pd  # type: ignore[import-not-found, import-untyped, unused-ignore]

    def read(path: str) -> Any:
        if path.endswith(".parquet"):
            return pd.read_parquet(path)
        if path.endswith(".jsonl"):
            return pd.read_json(path, lines=True)
        return pd.read_csv(path, sep="\t" if path.endswith(".tsv") else ",")

    return read(a), read(b)


def _pandas(a: str, b: str, key: list[str]) -> dict[str, int]:
    """An outer join with an indicator, then the columns that both have."""
    left, right = _frames(a, b)
    keys = key or [c for c in left.columns if c in right.columns]
    both = left.merge(right, on=keys, how="outer", suffixes=("_a", "_b"), indicator=True)
    matched = both[both["_merge"] == "both"]
    shared = [c for c in left.columns if c in right.columns and c not in keys]
    differs = None
    for column in shared:
        x, y = matched[f"{column}_a"], matched[f"{column}_b"]
        one = (x != y) & ~(x.isna() & y.isna())
        differs = one if differs is None else differs | one
    return {
        "added": int((both["_merge"] == "right_only").sum()),
        "removed": int((both["_merge"] == "left_only").sum()),
        "modified": 0 if differs is None else int(differs.sum()),
    }


def _datacompy(a: str, b: str, key: list[str]) -> dict[str, int]:
    import datacompy  # type: ignore[import-not-found, import-untyped, unused-ignore]

    left, right = _frames(a, b)
    made = getattr(datacompy, "PandasCompare", None) or datacompy.Compare
    compared = made(left, right, join_columns=key) if key else made(left, right, on_index=True)
    return {
        "added": len(compared.df2_unq_rows),
        "removed": len(compared.df1_unq_rows),
        "modified": len(compared.intersect_rows) - int(compared.count_matching_rows()),
    }


def _csv_diff(a: str, b: str, key: list[str]) -> dict[str, int]:
    from csv_diff import compare, load_csv  # type: ignore[import-not-found, import-untyped, unused-ignore]

    if len(key) > 1:
        raise Unsupported("one key column at most")
    if a.endswith((".parquet", ".jsonl")):
        raise Unsupported("does not read this format")
    with open(a, newline="", encoding="utf-8") as left, open(b, newline="", encoding="utf-8") as right:
        found = compare(load_csv(left, key=key[0] if key else None), load_csv(right, key=key[0] if key else None))
    return {"added": len(found["added"]), "removed": len(found["removed"]), "modified": len(found["changed"])}


def _daff(a: str, b: str, key: list[str]) -> dict[str, int]:
    import csv

    import daff  # type: ignore[import-not-found, import-untyped, unused-ignore]

    if a.endswith((".parquet", ".jsonl")):
        raise Unsupported("does not read this format")

    def read(path: str) -> Any:
        with open(path, newline="", encoding="utf-8") as file:
            return daff.PythonTableView(list(csv.reader(file, delimiter="\t" if path.endswith(".tsv") else ",")))

    flags = daff.CompareFlags()
    for column in key:
        flags.addPrimaryKey(column)
    left, right = read(a), read(b)
    out: list[list[Any]] = []
    daff.TableDiff(daff.compareTables(left, right, flags).align(), flags).hilite(daff.PythonTableView(out))
    tags = [row[0] for row in out]
    return {
        "added": tags.count("+++"),
        "removed": tags.count("---"),
        "modified": sum(1 for tag in tags if isinstance(tag, str) and tag.endswith("->")),
    }


TOOLS = {"daff": _daff, "csv-diff": _csv_diff, "datacompy": _datacompy, "pandas": _pandas}


def main() -> None:
    """One answer, whatever happens: an exception is an answer too."""
    tool, a, b, *key = sys.argv[1:]
    try:
        answer: dict[str, Any] = dict(TOOLS[tool](a, b, key))
    except Unsupported as error:
        answer = {"unsupported": str(error)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
