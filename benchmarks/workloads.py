"""What is versioned and how it is edited: the catalog of items, each with its versions in the cache folder.

    item = CATALOG["files"]
    cached = item.open(cache)            # cache: the folder that `ensure` filled
    cached.place(b"repo/images", 0)      # the first version
    cached.edit(b"repo/images", 1)       # into the second, in place, as a user's program would

A version must be checked without trusting the tool under test, so an item also knows from which cached file each
of its bytes comes (`differences`). Nothing here imports numpy: the bytes are made by a child process (`make_*`), so
that the process that measures stays small.
"""

# ruff: noqa: ARG002 - signatures are those of the class above

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

#: Raised when the bytes of any item change, so that an old cache is not taken for a new one.
GENERATION = 1
BLOCK = 1 << 20


class Cached(ABC):
    """One item's versions in the cache. `share` is the part of a folder's subfolders that a tool gets."""

    def __init__(self, folder: str, *, share: float = 1.0) -> None:
        self.folder = folder
        self.share = share

    @abstractmethod
    def place(self, target: str, version: int) -> None:
        """Write a version to `target`, which must not exist."""

    @abstractmethod
    def edit(self, target: str, version: int) -> None:
        """Turn `target` from version - 1 into `version`, all of it."""

    @abstractmethod
    def revert_part(self, target: str) -> None:
        """Give `target`, which is at version 1, version 0's bytes again: a file all, of a folder 1 % of the files."""

    @abstractmethod
    def size_bytes(self, version: int) -> int:
        """Bytes of content of a version."""

    @abstractmethod
    def files(self, version: int) -> int:
        """How many files a version has."""

    @abstractmethod
    def differences(self, target: str, version: int, *, extra_allowed: bool = False) -> str:
        """Empty when `target` is exactly this version, else what is wrong first."""


class CachedFile(Cached):
    """A file with every version in full: `0.csv`, `1.csv`, ..."""

    def _source(self, version: int) -> str:
        stem = f"{version}."
        return os.path.join(self.folder, next(n for n in os.listdir(self.folder) if n.startswith(stem)))

    def place(self, target: str, version: int) -> None:
        shutil.copyfile(self._source(version), target)

    def edit(self, target: str, version: int) -> None:
        shutil.copyfile(self._source(version), target)

    def revert_part(self, target: str) -> None:
        self.place(target, 0)

    def size_bytes(self, version: int) -> int:
        return os.stat(self._source(version)).st_size

    def files(self, version: int) -> int:
        return 1

    def differences(self, target: str, version: int, *, extra_allowed: bool = False) -> str:
        return "" if _same(self._source(version), target) else f"{os.path.basename(target)} has other bytes"


class CachedPatched(Cached):
    """A file too big to keep twice: version 1 is version 0 with the ranges of `patch.json` written into it."""

    def place(self, target: str, version: int) -> None:
        shutil.copyfile(os.path.join(self.folder, "0.bin"), target)
        if version:
            self.edit(target, version)

    def edit(self, target: str, version: int) -> None:
        with open(os.path.join(self.folder, "patch.bin"), "rb") as new, open(target, "r+b") as f:
            for offset, length in self._ranges():
                f.seek(offset)
                f.write(new.read(length))

    def revert_part(self, target: str) -> None:
        offset, length = self._ranges()[0]
        with open(os.path.join(self.folder, "0.bin"), "rb") as old, open(target, "r+b") as f:
            old.seek(offset)
            f.seek(offset)
            f.write(old.read(length))

    def size_bytes(self, version: int) -> int:
        size = os.stat(os.path.join(self.folder, "0.bin")).st_size
        return max([size, *(offset + length for offset, length in self._ranges())]) if version else size

    def files(self, version: int) -> int:
        return 1

    def differences(self, target: str, version: int, *, extra_allowed: bool = False) -> str:
        name = os.path.basename(target)
        if os.stat(target).st_size != self.size_bytes(version):
            return f"{name} has another size"
        ranges = iter(self._ranges() if version else ())
        old, new = os.path.join(self.folder, "0.bin"), os.path.join(self.folder, "patch.bin")
        with open(old, "rb") as base, open(new, "rb") as patch, open(target, "rb") as f:
            at = 0
            for offset, length in ranges:
                if not _same_run(base, f, offset - at):
                    return f"{name} has other bytes before {offset}"
                if patch.read(length) != f.read(length):
                    return f"{name} has other bytes at {offset}"
                at = offset + length
                base.seek(at)
            return "" if _same_run(base, f, self.size_bytes(version) - at) else f"{name} has other bytes after {at}"

    def _ranges(self) -> list[tuple[int, int]]:
        with open(os.path.join(self.folder, "patch.json")) as f:
            return [(offset, length) for offset, length in json.load(f)]


class CachedFolder(Cached):
    """A folder: `0/` in full, `1/` only with what is new, `edit.json` names what changes, comes and goes."""

    def place(self, target: str, version: int) -> None:
        os.mkdir(target)
        for name in self._shared():
            subprocess.run(["cp", "-R", os.path.join(self.folder, "0", name), target], check=True)
        if version:
            self.edit(target, version)

    def edit(self, target: str, version: int) -> None:
        edit = self._edit()
        for path in (*edit["changed"], *edit["added"]):
            shutil.copyfile(os.path.join(self.folder, "1", path), os.path.join(target, path))
        for path in edit["removed"]:
            os.unlink(os.path.join(target, path))

    def revert_part(self, target: str) -> None:
        for path in self._edit()["changed"]:
            shutil.copyfile(os.path.join(self.folder, "0", path), os.path.join(target, path))

    def size_bytes(self, version: int) -> int:
        return sum(os.stat(source).st_size for source in self._sources(version).values())

    def files(self, version: int) -> int:
        return len(self._sources(version))

    def differences(self, target: str, version: int, *, extra_allowed: bool = False) -> str:
        wanted = self._sources(version)
        for path, source in wanted.items():
            try:
                if not _same(source, os.path.join(target, path)):
                    return f"{path} has other bytes"
            except FileNotFoundError:
                return f"{path} is missing"
        if not extra_allowed:
            for path in walk(target):
                if path not in wanted:
                    return f"{path} should not be there"
        return ""

    def _shared(self) -> list[str]:
        names = sorted(os.listdir(os.path.join(self.folder, "0")))
        return names[: max(1, round(len(names) * self.share))]

    def _edit(self) -> dict[str, list[str]]:
        shared = set(self._shared())
        with open(os.path.join(self.folder, "edit.json")) as f:
            said = json.load(f)
        return {kind: [p for p in paths if p.split("/")[0] in shared] for kind, paths in said.items()}

    def _sources(self, version: int) -> dict[str, str]:
        base = os.path.join(self.folder, "0")
        sources = {}
        for name in self._shared():
            for path in walk(os.path.join(base, name)):
                sources[f"{name}/{path}"] = os.path.join(base, name, path)
        if version:
            edit = self._edit()
            for path in edit["removed"]:
                del sources[path]
            for path in (*edit["changed"], *edit["added"]):
                sources[path] = os.path.join(self.folder, "1", path)
        return sources


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing that is versioned, and which part of the work is done with it."""

    name: str
    title: str
    path: str  #: what it is called in the repository
    kind: type[Cached]
    versions: int = 2
    edits: bool = True  #: status, an edit and the ways back are measured too; otherwise the first add only
    remotes: bool = False  #: push and pull are measured too
    full_scale_only: bool = False  #: left out of scaled runs unless it is named
    once: bool = False  #: one round is enough, it takes minutes
    tools: tuple[str, ...] = ()  #: only these; empty for all
    shares: tuple[tuple[str, float], ...] = ()  #: tools that get only a part, since all of it would take hours

    def open(self, cache: str, *, tool: str = "dvk") -> Cached:
        """The item's versions, as `tool` gets them."""
        return self.kind(os.path.join(cache, self.name), share=dict(self.shares).get(tool, 1.0))


_ITEMS = (
    Item(name="table", title="table, CSV", path="train.csv", kind=CachedFile, remotes=True),
    Item(name="parquet", title="the same as Parquet", path="train.parquet", kind=CachedFile),
    Item(
        name="parquet-cdc",
        title="the same as Parquet with content-defined pages",
        path="train.parquet",
        kind=CachedFile,
    ),
    Item(name="model", title="model, safetensors", path="model.safetensors", kind=CachedFile),
    Item(name="files", title="files of 2 to 40 KiB", path="images", kind=CachedFolder, remotes=True),
    Item(
        name="weights-bf16",
        title="Gaussian weights, BF16",
        path="w.safetensors",
        kind=CachedFile,
        versions=1,
        edits=False,
    ),
    Item(
        name="weights-fp16",
        title="Gaussian weights, FP16",
        path="w.safetensors",
        kind=CachedFile,
        versions=1,
        edits=False,
    ),
    Item(
        name="weights-fp32",
        title="Gaussian weights, FP32",
        path="w.safetensors",
        kind=CachedFile,
        versions=1,
        edits=False,
    ),
    Item(
        name="series-safetensors",
        title="model and optimizer each epoch, safetensors",
        path="last.safetensors",
        kind=CachedFile,
        versions=20,
        once=True,
    ),
    Item(
        name="series-pt",
        title="model and optimizer each epoch, .pt",
        path="last.pt",
        kind=CachedFile,
        versions=20,
        once=True,
    ),
    Item(
        name="mixed",
        title="one mixed file",
        path="mixed.bin",
        kind=CachedPatched,
        full_scale_only=True,
        once=True,
        tools=("dvk", "dvc", "restic", "xet", "cp"),
    ),
    Item(
        name="many",
        title="files of 1 KB",
        path="many",
        kind=CachedFolder,
        full_scale_only=True,
        once=True,
        tools=("dvk", "dvc", "restic", "cp"),
        shares=(("dvc", 0.1),),
    ),
)
CATALOG = {item.name: item for item in _ITEMS}
#: Items that one run of a generator makes together.
_TOGETHER = {"parquet": "table", "parquet-cdc": "table"}


def chosen(names: Sequence[str], *, scale: float) -> list[Item]:
    """The named items in the order of the catalog, or those that suit the scale.

    Raises:
        KeyError: no item has this name.
    """
    for name in names:
        CATALOG[name]
    return [i for i in _ITEMS if (i.name in names if names else scale >= 1 or not i.full_scale_only)]


def ensure(items: Sequence[Item], *, work: str, scale: float) -> str:
    """Make what the cache lacks and return the cache folder of this scale.

    Raises:
        subprocess.CalledProcessError: a generator failed; what it said is on standard error.
    """
    cache = os.path.abspath(os.path.join(work, f"cache-g{GENERATION}-x{scale:g}"))
    os.makedirs(cache, exist_ok=True)
    for maker in dict.fromkeys(_TOGETHER.get(item.name, item.name) for item in items):
        done = os.path.join(cache, f"{maker}.done")
        if not os.path.exists(done):
            # A child, so that gigabytes of arrays never count as memory of what is measured later.
            command = [sys.executable, "-m", "benchmarks.make", maker, "--scale", repr(scale), cache]
            subprocess.run(command, check=True, cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
            with open(done, "w"):
                pass
    return cache


def walk(folder: str) -> Iterable[str]:
    """The paths of all files below `folder`, relative to it."""
    stack = [""]
    while stack:
        at = stack.pop()
        with os.scandir(os.path.join(folder, at)) as entries:
            for entry in entries:
                path = f"{at}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    stack.append(f"{path}/")
                else:
                    yield path


def _same(source: str, target: str) -> bool:
    if os.stat(source).st_size != os.stat(target).st_size:
        return False
    with open(source, "rb") as a, open(target, "rb") as b:
        return _same_run(a, b, os.stat(source).st_size)


def _same_run(a: IO[bytes], b: IO[bytes], length: int) -> bool:
    while length > 0:
        n = min(length, BLOCK)
        x, y = a.read(n), b.read(n)
        if x != y or len(x) != n:
            return False
        length -= n
    return True
