"""The memory medium under the contract suite."""

from __future__ import annotations

import pytest

from dvk.backend.contract import Backend
from dvk.backend.memory import MemoryBackend
from dvk.testing.backend_suite import BackendSuite


class TestMemory(BackendSuite):
    tells_time = False

    @pytest.fixture(autouse=True)
    def _medium(self) -> None:
        self.medium = MemoryBackend()

    def make(self) -> Backend:
        return self.medium
