"""dvk versions big files and folders beside the code in Git.

>>> import dvk                                              # doctest: +SKIP
>>> with dvk.Repo(".") as repo:
...     dvk.add(repo, ["data/train.csv"], stage=False)
...     dvk.push(repo)
>>> with dvk.open("data/train.csv", rev="v1.0") as file:    # doctest: +SKIP
...     header = file.readline()

Functions over a `Repo`: synchronous, typed, silent. Each is imported when it is first used, so that `import dvk`
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dvk.commands.add import add
    from dvk.commands.checkout import checkout
    from dvk.commands.diff import diff
    from dvk.commands.diff_plain import diff_files
    from dvk.commands.get import get
    from dvk.commands.imports import import_repo, import_url, update
    from dvk.commands.manifest import manifest
    from dvk.commands.pull import fetch, pull
    from dvk.commands.push import push
    from dvk.commands.read import local_path, open, read_bytes
    from dvk.commands.repair import repair
    from dvk.commands.repo import Repo
    from dvk.commands.status import status
    from dvk.commands.verify import verify

_HOMES = {
    "Repo": "dvk.commands.repo",
    "add": "dvk.commands.add",
    "checkout": "dvk.commands.checkout",
    "diff": "dvk.commands.diff",
    "diff_files": "dvk.commands.diff_plain",
    "fetch": "dvk.commands.pull",
    "get": "dvk.commands.get",
    "import_repo": "dvk.commands.imports",
    "import_url": "dvk.commands.imports",
    "local_path": "dvk.commands.read",
    "manifest": "dvk.commands.manifest",
    "open": "dvk.commands.read",
    "pull": "dvk.commands.pull",
    "push": "dvk.commands.push",
    "read_bytes": "dvk.commands.read",
    "repair": "dvk.commands.repair",
    "status": "dvk.commands.status",
    "update": "dvk.commands.imports",
    "verify": "dvk.commands.verify",
}

__all__ = [
    "Repo",
    "add",
    "checkout",
    "diff",
    "diff_files",
    "fetch",
    "get",
    "import_repo",
    "import_url",
    "local_path",
    "manifest",
    "open",
    "pull",
    "push",
    "read_bytes",
    "repair",
    "status",
    "update",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dvk' has no attribute {name!r}")
