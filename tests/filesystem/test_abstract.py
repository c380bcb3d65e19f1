"""fsspec's own tests for filesystems that are read: everything that `get` and `open` promise.

They make their files through the filesystem under test. So here a version is made of what they wrote as soon as
something is read: a tracked folder in one round, files of Git in the other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flowkit import Flow
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests, AbstractOpenTests

from dvk.commands.where import close_all
from dvk.filesystem import DvkFileSystem

TOP = "root"


class Committing(DvkFileSystem):
    """A filesystem that writes into a work tree, and reads the commit of what was written."""

    flow: Flow
    tracked = True
    changed = False

    def _path(self, path: Any) -> str:
        return os.path.join(self.flow.top, self._strip_protocol(path))

    def _write(self, path: Any, data: bytes) -> None:
        full = self._path(path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(data)
        self.changed = True

    def touch(self, path: Any, truncate: bool = True, **options: Any) -> None:
        self._write(path, b"")

    def pipe(self, path: Any, value: bytes | None = None, **options: Any) -> None:
        self._write(path, value or b"")

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        os.makedirs(self._path(path), exist_ok=True)
        self.changed = True

    def mkdir(self, path: Any, create_parents: bool = True, **options: Any) -> None:
        self.makedirs(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        for each in path if isinstance(path, list) else [path]:
            full = self._path(each)
            shutil.rmtree(full) if os.path.isdir(full) else os.unlink(full)
        self.changed = True

    def _node(self, path: Any) -> Any:
        if self.changed:
            self.changed = False
            if self.tracked:
                self.flow.add(TOP)
            else:
                self.flow.git("add", "-A", TOP)
            self.flow.git("commit", "-q", "--allow-empty", "-m", "more")
            self.where = DvkFileSystem(str(self.flow.top)).where
        return super()._node(path)

    def _place(self, path: Any) -> Any:
        if self.changed:
            self._node("")
        return super()._place(path)


@pytest.fixture(scope="module", params=["dvk", "git"])
def flow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Flow, bool]]:
    home = tmp_path_factory.mktemp(request.param)
    yield Flow(home / "repo", home), request.param == "dvk"
    close_all()


class Fixtures(AbstractFixtures):
    @pytest.fixture
    def fs(self, flow: tuple[Flow, bool]) -> Iterator[Committing]:
        repo, tracked = flow
        os.makedirs(repo.at(TOP), exist_ok=True)
        Committing.flow, Committing.tracked = repo, tracked
        fs = Committing(str(repo.top))
        fs.changed = True
        yield fs
        shutil.rmtree(repo.at(TOP))

    @pytest.fixture
    def fs_path(self) -> str:
        return TOP

    @pytest.fixture
    def fs_join(self) -> Any:
        return os.path.join

    @pytest.fixture
    def supports_empty_directories(self, flow: tuple[Flow, bool]) -> bool:
        return flow[1]


class TestGet(Fixtures, AbstractGetTests):
    """Whatever fsspec expects of copying out."""


class TestOpen(Fixtures, AbstractOpenTests):
    def test_open_exclusive(self, fs: Any, fs_target: str, tmp_path: Path) -> None:  # fsspec's own writes first
        fs.pipe(fs_target, b"data")
        with fs.open(fs_target, "rb") as file:
            assert file.read() == b"data"
        for mode in ("xb", "wb", "ab", "r+b"):
            with pytest.raises(NotImplementedError, match="can only be read"):
                fs.open(fs_target, mode)
