"""Paths as people see them: from the folder where they work, as `git status` shows them, so that they can be copied."""

from __future__ import annotations

import os


class Here:
    """Shows paths from the top of the work tree `top` as seen from the folder `cwd`.

    >>> Here(b"/w", b"/w/data")(b"models", folder=True)
    '../models/'
    """

    def __init__(self, top: bytes, cwd: bytes) -> None:
        self._top = top
        self._at = os.path.relpath(os.path.realpath(cwd), top) if cwd != top else b"."

    def __call__(self, path: bytes, *, folder: bool = False) -> str:
        """`path` from here; a folder gets a slash."""
        if self._at != b"." and not self._at.startswith(b".."):
            path = os.path.relpath(path, self._at)
        return show_name(path) + ("/" if folder else "")


def show_name(name: bytes, *, folder: bool = False) -> str:
    """A name for people, escaped; a folder gets a slash."""
    # Loads numpy, which a help page does not need.
    from dvk.store.names import show

    return show(name) + ("/" if folder else "")
