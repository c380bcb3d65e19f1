"""The error of a file that is not what its format says, wherever that shows."""

from __future__ import annotations

from dvk.errors import TableError


def broken(why: str, label: str) -> TableError:
    """`why` the file `label` is broken; its bytes are as somebody wrote them, so that only whoever did can mend it."""
    return TableError(why, subject=label, hint="write the file again, or take a version that is whole")
