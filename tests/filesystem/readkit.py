"""A repository of two versions on a remote, a clone that holds no data, and how much of the remote was read.

with reading(flow) as counted:            # this process sees the environment of the test's own machine
    fs = DvkFileSystem(str(clone.top), "v1")
    fs.cat_file("data/t.csv")
    counted.bytes, counted.requests, counted.touched
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dvk.backend.contract import Backend
from dvk.backend.wrappers import CountingBackend
from dvk.commands.repo import Repo
from dvk.commands.where import close_all
from dvk.store.block_reader import BlockReader


@dataclass
class Counted:
    """What was asked of remotes since `reset`."""

    backends: list[CountingBackend] = field(default_factory=list)
    _touched: dict[tuple[bytes, int], int] = field(default_factory=dict)
    _meta: int = 0

    def reset(self) -> None:
        """Start again at zero."""
        for backend in self.backends:
            backend.reset()
        self._touched.clear()

    @property
    def requests(self) -> int:
        """Questions of any kind."""
        return sum(b.counts.requests for b in self.backends)

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Operation and key of each question."""
        return [call for b in self.backends for call in b.counts.calls]

    @property
    def data_bytes(self) -> int:
        """Bytes that came out of data packs."""
        return self._meta

    @property
    def touched(self) -> int:
        """Encoded bytes of the blocks that hold what readers asked for, each once."""
        return sum(self._touched.values())


class _Counting(CountingBackend):
    def __init__(self, inner: Backend, counted: Counted) -> None:
        super().__init__(inner, keep_calls=True)
        self._counted = counted

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        data = super().get_range(key, offset, length)
        if key.startswith("p/"):
            self._counted._meta += len(data)
        return data

    def reset(self) -> Any:
        self._counted._meta = 0
        return super().reset()


@contextmanager
def reading(environ: Mapping[str, str]) -> Iterator[Counted]:
    """This process as a process of `environ`, with every remote that it opens counted."""
    counted = Counted()
    close_all()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("GIT_", "DVK_", "XDG_", "AWS_")):
                patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        plain = Repo._backend

        def backend(self: Repo, *arguments: Any) -> Backend:
            counting = _Counting(plain(self, *arguments), counted)
            counted.backends.append(counting)
            return counting

        get = BlockReader.get

        def noted(self: BlockReader, wanted: Any) -> Any:
            if not self._local:
                for b in wanted:
                    counted._touched[self._place(b)] = self._blocks.span(b)[1]
            return get(self, wanted)

        patch.setattr(Repo, "_backend", backend)
        patch.setattr(BlockReader, "get", noted)
        try:
            yield counted
        finally:
            close_all()
