"""One table: what went wrong -> the number a script sees.

A script wants to know whether to try again (busy, unreachable), to ask a person (refused, denied) or to raise
an alarm (corrupt). So each category of `dvk.errors` has a code of its own, a subclass without a row takes the
row of its parent, and a number never changes its meaning. `docs/exit-codes.md` is this table: `python -m
dvk.cli.exit_codes` prints it.

>>> for_error(RemoteDenied("no credentials"))
12
"""

from __future__ import annotations

from msgspec import Struct

from dvk.cli.signals import Terminated
from dvk.errors import (
    Busy,
    ChangedWhileRead,
    Corrupt,
    Damaged,
    DataMissing,
    DvkError,
    FormatError,
    Interrupted,
    NewerFormat,
    NotARepository,
    NotFound,
    NotOurs,
    Partial,
    Refused,
    RemoteDenied,
    RemoteError,
    RemoteUnreachable,
    StorageError,
    StorageFull,
    TableError,
    Unsafe,
    UsageError,
)

OK = 0
FAILED = 1
DIFFERENCES = 4
OUTPUT_CLOSED = 141


class Row(Struct, frozen=True):
    """One exit code: its number, its word in JSON, what it means, and the error behind it if there is one."""

    code: int
    kind: str
    meaning: str
    category: type[DvkError] | None = None


def _row(code: int, category: type[DvkError], meaning: str) -> Row:
    return Row(code, category.kind, meaning, category)


TABLE: tuple[Row, ...] = (
    Row(OK, "ok", "done, or nothing to do"),
    _row(FAILED, DvkError, "failed for a reason without a code of its own, a bug in dvk (`bug`) included"),
    _row(2, UsageError, "the command line makes no sense as written; nothing was touched"),
    _row(3, Partial, "some paths arrived and some did not; each failure is listed"),
    Row(
        DIFFERENCES,
        "differences",
        "`diff --exit-code` or `status --exit-code` found some, or `diff --fail-on` too many; not an error",
    ),
    _row(5, Refused, "possible, but user data or somebody's rule is in the way; the hint says how to clear it"),
    _row(6, NotFound, "a path, revision, remote or key that was named does not exist"),
    _row(7, DataMissing, "the data of a known version is not here, and maybe nowhere"),
    _row(8, ChangedWhileRead, "a file changed while it was read; nothing of it was recorded; run it again"),
    _row(10, NotARepository, "no Git work tree (or plain folder with `dvk.toml`) here"),
    _row(11, Busy, "another process holds what is needed; try again"),
    _row(12, RemoteDenied, "credentials missing, wrong, expired or without the right"),
    _row(13, Corrupt, "bytes fail their hash or checksum"),
    _row(14, FormatError, "bytes are malformed: a pointer, a configuration, an object"),
    _row(15, NewerFormat, "written by a newer dvk than this one; upgrade"),
    _row(16, StorageError, "a disk refused: permissions, I/O error, read-only"),
    _row(17, StorageFull, "no space or quota left; the originals are intact"),
    _row(18, RemoteUnreachable, "the remote did not answer within the deadline; try again"),
    _row(19, RemoteError, "the remote answered wrongly"),
    _row(20, NotOurs, "there is something else where the remote should be"),
    _row(21, TableError, "a file is no table as its format says, or cannot be compared as asked"),
    _row(22, Unsafe, "collecting garbage now could delete what somebody needs; nothing was deleted"),
    _row(23, Damaged, "`verify` found damage or losses, or `repair` could not mend all; the report names each"),
    _row(130, Interrupted, "Ctrl-C; the same command continues"),
    Row(
        OUTPUT_CLOSED,
        "output-closed",
        "the reader of standard output went away, as in `dvk log | head`; said quietly",
    ),
    _row(143, Terminated, "SIGTERM; the same command continues"),
)

_CODES = {row.category: row.code for row in TABLE if row.category is not None}


def for_error(error: DvkError) -> int:
    """The exit code of the nearest category of `error`."""
    for cls in type(error).__mro__:
        if (code := _CODES.get(cls)) is not None:
            return code
    return FAILED


def markdown() -> str:
    """The text of `docs/exit-codes.md`."""
    rows = "\n".join(f"| {row.code} | `{row.kind}` | {row.meaning} |" for row in TABLE)
    return f"""# Exit codes

<!-- Generated from dvk/cli/exit_codes.py by `python -m dvk.cli.exit_codes`; edit the table there. -->

Every verb ends with one of these. The word is the `kind` of the error in `--json` output
([json.md](json.md)). A number keeps its meaning for good; new ones may be added, so treat an unknown number
as a failure.

| code | kind | meaning |
|---:|---|---|
{rows}

Worth trying again without a change: 8, 11, 18, and 130 or 143 when you stopped it yourself. An alarm: 13 and 23.
"""


if __name__ == "__main__":
    print(markdown(), end="")
