"""The options of `dvk diff` as people write them, turned into the records that the library takes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dvk.errors import UsageError

if TYPE_CHECKING:
    from dvk.commands.diff_json import Show
    from dvk.table.contract import ReadOptions
    from dvk.table.options import CompareOptions

FORMATS = ("text", "json", "jsonl", "csv", "markdown", "html")
_KINDS = ("added", "removed", "modified", "moved", "schema")
_LIMIT = 20
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([kKMGT]?)(i?)B?")


def names(text: str) -> tuple[str, ...]:
    """`a, b` as names; two commas in a row stand for one that belongs to a name: no column is out of reach."""
    parts = [p.replace("\0", ",").strip() for p in text.replace(",,", "\0").split(",")]
    return tuple(p for p in parts if p)


def many(texts: Sequence[str] | None) -> tuple[str, ...]:
    """The names of an option that may be repeated."""
    return tuple(name for text in texts or () for name in names(text))


def pairs(texts: Sequence[str] | None, option: str) -> tuple[tuple[str, str], ...]:
    """`OLD=NEW`, repeated.

    Raises:
        UsageError: one has no `=`, or nothing on a side of it.
    """
    out = []
    for text in texts or ():
        left, sign, right = text.partition("=")
        if not (sign and left and right):
            raise UsageError("should be NAME=VALUE", subject=f"{option} {text}")
        out.append((left, right))
    return tuple(out)


def size_of(text: str, option: str) -> int:
    """`2G`, `500 MB`, `2GiB`: bytes. Without `i` decimal.

    Raises:
        UsageError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError("should be a size like 2G or 500MiB", subject=f"{option} {text}")
    step = 1024 if found[3] else 1000
    return int(float(found[1]) * step ** " kMGT".index(found[2].replace("K", "k") or " "))


def seconds_or_number(text: str, option: str) -> float:
    """`0.01`, or for times `1s`, `250ms`, `2min`, `1h`, `3d` in seconds.

    Raises:
        UsageError: it is neither.
    """
    found = re.fullmatch(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(us|ms|s|min|h|d)?", text.strip())
    try:
        if found is None:
            raise ValueError
        unit = {"us": 1e-6, "ms": 1e-3, "min": 60.0, "h": 3600.0, "d": 86_400.0}.get(found[2] or "", 1.0)
        return float(found[1]) * unit
    except ValueError:
        raise UsageError("should be a number, or a time like 1s", subject=f"{option} {text}") from None


def limit_of(text: str | None, form: str) -> int | None:
    """How many rows are shown; None: all.

    Raises:
        UsageError: it is neither a number nor `all`.
    """
    if text is None:
        return None if form in ("csv", "jsonl") else _LIMIT
    if text == "all":
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise UsageError("should be a number, or `all`", subject=f"--limit {text}")
    return int(text)


def delimiter_of(text: str | None) -> str | None:
    """A delimiter as it is typed: one character, `tab` or `\\t`."""
    return "\t" if text in ("tab", "\\t") else text


def shown(
    *,
    form: str,
    schema: bool,
    rows: bool,
    stats: bool,
    kinds: str | None,
    limit: str | None,
    offset: int,
    sort: str,
    full: bool,
) -> Show:
    """Which parts are shown: those that were asked for, all without a word.

    Raises:
        UsageError: an option has a value that makes no sense.
    """
    from dvk.commands.diff_json import ROW_KINDS, Show

    if form not in FORMATS:
        raise UsageError(f"one of {', '.join(FORMATS)}", subject=f"--format {form}")
    if sort not in ("key", "position"):
        raise UsageError("key or position", subject=f"--sort {sort}")
    if offset < 0:
        raise UsageError("0 or more", subject=f"--offset {offset}")
    wanted = names(kinds) if kinds is not None else ROW_KINDS
    unknown = [k for k in wanted if k not in _KINDS]
    if unknown:
        raise UsageError(f"of {', '.join(_KINDS)}", subject=f"--kind {unknown[0]}")
    chosen = schema or rows or stats
    return Show(
        schema=(schema or not chosen) and (kinds is None or "schema" in wanted),
        columns=stats or not chosen,
        rows=rows or not chosen,
        kinds=wanted,
        limit=limit_of(limit, form),
        offset=offset,
        sort=sort,
        full=full,
    )


def records(
    *,
    tol: Sequence[str] | None,
    abs_tol: float,
    rel_tol: float,
    ignore: Sequence[str] | None,
    only: Sequence[str] | None,
    null_values: str | None,
    rename: Sequence[str] | None,
    memory: str | None,
    tmp: str | None,
    read: dict[str, Any],
    compare: dict[str, Any],
) -> tuple[CompareOptions | None, ReadOptions | None]:
    """The records of a comparison; None where nothing was asked for, so that what they need is not loaded.

    Raises:
        UsageError: an option has a value that makes no sense. DvkError: `dvk[table]` is not installed.
    """
    from dvk.commands.diff_content import tables_module

    temp_dir = os.fsencode(tmp) if tmp is not None else None
    given = {name: value for name, value in compare.items() if value}
    for name, value in (
        ("ignore", many(ignore)),
        ("only", many(only)),
        ("null_values", tuple(null_values.split(",")) if null_values is not None else ()),
        ("rename", pairs(rename, "--rename")),
        ("memory_bytes", size_of(memory, "--memory") if memory is not None else None),
        ("temp_dir", temp_dir),
    ):
        if value:
            given[name] = value
    columns = {name: seconds_or_number(value, "--tol") for name, value in pairs(tol, "--tol")}
    how = {name: value for name, value in {**read, "temp_dir": temp_dir}.items() if value is not None}
    if not (given or columns or abs_tol or rel_tol or how):
        return None, None
    found: tuple[CompareOptions, ReadOptions] = tables_module().table_options(
        tolerance=(abs_tol, rel_tol, columns), read=how, compare=given
    )
    return found
