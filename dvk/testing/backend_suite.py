"""The backend contract as tests that any medium can be put under.

    class TestMine(BackendSuite):
        def make(self) -> Backend:
            return MyBackend(...)

`make` is called at least once a test and has to hand out backends of one medium, which is empty
at the start of the test. Every call must be a backend of its own where the medium can have several
users (the suite plays two processes with it); a medium that lives in one object returns that object.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

import pytest

from dvk.backend.contract import Backend, Buffer, KeyExists, KeyMissing, Listed
from dvk.errors import Corrupt, FormatError

ODD_SIZES = (0, 1, 2, 4095, 4096, 4097, 1 << 20, (8 << 20) + 1)
MALFORMED_KEYS = (
    "",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    ".",
    "a/.b",
    "A",
    "a b",
    "a\0",
    "é",
    "a\n",
    "x" * 600,
)


def pattern(size_bytes: int, *, seed: int = 0) -> bytes:
    """`size_bytes` bytes that differ at every offset that a test could confuse."""
    period = bytes((i * 7 + (i >> 8) * 13 + seed) & 0xFF for i in range(65_521))
    return (period * (size_bytes // len(period) + 1))[:size_bytes]


class BrokenParts(Sequence[Buffer]):
    """Parts whose reading fails after some: the disk below the writer's source broke."""

    def __init__(self, good: Sequence[Buffer]) -> None:
        self._good = good

    def __len__(self) -> int:
        return len(self._good) + 1

    @overload
    def __getitem__(self, i: int) -> Buffer: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Buffer]: ...
    def __getitem__(self, i: int | slice) -> Buffer | Sequence[Buffer]:
        if isinstance(i, int) and i >= len(self._good):
            raise SourceBroke
        return self._good[i]

    def __iter__(self) -> Iterator[Buffer]:
        yield from self._good
        raise SourceBroke


class SourceBroke(Exception):
    """What `BrokenParts` raises."""


def race(n: int, work: Callable[[int], object]) -> list[object]:
    """Start `work(0)` ... `work(n - 1)` at one moment in threads; what each returned or raised."""
    gate = threading.Barrier(n)

    def run(i: int) -> object:
        gate.wait()
        try:
            return work(i)
        except Exception as e:
            return e

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n)))


class BackendSuite(ABC):
    """Subclass it as `Test...` and define `make`."""

    #: Whether listings say when objects were written.
    tells_time = True

    @abstractmethod
    def make(self) -> Backend:
        """A backend of this test's medium."""

    def plant_foreign(self) -> bool:
        """Put objects that are not keys (odd names, links) on the medium; False if that cannot be done."""
        return False

    @pytest.fixture
    def backend(self) -> Iterator[Backend]:
        backend = self.make()
        yield backend
        backend.close()

    # -- what was put comes back -----------------------------------------------------------------

    @pytest.mark.parametrize("size", ODD_SIZES)
    def test_an_object_comes_back_whole_with_its_size(self, backend: Backend, size: int) -> None:
        data = pattern(size)
        backend.put("p/ab/one", [data])
        assert backend.get("p/ab/one", max_bytes=size) == data
        assert backend.stat("p/ab/one") == size
        assert list(backend.list("p/")) == [Listed("p/ab/one", size)]

    def test_parts_of_every_buffer_kind_are_joined_in_order(self, backend: Backend) -> None:
        data = pattern(300_000)
        parts: list[Buffer] = [data[:100], b"", bytearray(data[100:5000]), memoryview(data)[5000:]]
        backend.put("a", parts)
        assert backend.get("a", max_bytes=1 << 20) == data

    def test_thousands_of_small_parts_make_one_object(self, backend: Backend) -> None:
        data = pattern(40_000)
        backend.put("a", [data[i : i + 7] for i in range(0, len(data), 7)])
        assert backend.get("a", max_bytes=len(data)) == data

    def test_no_parts_make_an_empty_object(self, backend: Backend) -> None:
        backend.put("a/empty", [])
        assert backend.stat("a/empty") == 0
        assert backend.get("a/empty", max_bytes=0) == b""

    def test_put_replaces_also_by_something_shorter(self, backend: Backend) -> None:
        backend.put("p/x", [pattern(100_000)])
        assert backend.get_range("p/x", 99_999, 1) == pattern(100_000)[-1:]
        backend.put("p/x", [b"short"])
        assert backend.get("p/x", max_bytes=10) == b"short"
        with pytest.raises(Corrupt):
            backend.get_range("p/x", 99_999, 1)

    # -- missing and bounded ---------------------------------------------------------------------

    def test_a_missing_object_is_missing_in_every_operation(self, backend: Backend) -> None:
        assert backend.stat("p/none") is None
        with pytest.raises(KeyMissing):
            backend.get("p/none", max_bytes=10)
        with pytest.raises(KeyMissing):
            backend.get_range("p/none", 0, 1)
        with pytest.raises(KeyMissing):
            backend.get_range("p/none", 0, 0)
        backend.delete("p/none")
        assert list(backend.list("")) == []

    def test_get_refuses_more_than_was_allowed(self, backend: Backend) -> None:
        backend.put("a", [pattern(1000)])
        with pytest.raises(FormatError):
            backend.get("a", max_bytes=999)
        assert backend.get("a", max_bytes=1000) == pattern(1000)

    @pytest.mark.parametrize("key", MALFORMED_KEYS)
    def test_malformed_keys_are_a_bug_of_the_caller(self, backend: Backend, key: str) -> None:
        for call in (
            lambda: backend.put(key, [b""]),
            lambda: backend.get(key, max_bytes=1),
            lambda: backend.get_range(key, 0, 1),
            lambda: backend.stat(key),
            lambda: backend.delete(key),
        ):
            with pytest.raises(ValueError, match="malformed key"):
                call()

    # -- ranges ----------------------------------------------------------------------------------

    def test_ranges_at_every_edge(self, backend: Backend) -> None:
        size = 70_001
        data = pattern(size)
        backend.put("p/r", [data])
        edges = (0, 1, 4095, 4096, 65_536, size - 64, size - 1, size)
        for a in edges:
            for b in edges:
                if a <= b:
                    assert backend.get_range("p/r", a, b - a) == data[a:b]

    @pytest.mark.parametrize(("offset", "length"), [(0, 101), (100, 1), (99, 2), (101, 0), (5000, 5), (1, 1 << 40)])
    def test_a_range_past_the_end_is_corrupt_and_never_short(self, backend: Backend, offset: int, length: int) -> None:
        backend.put("p/r", [pattern(100)])
        with pytest.raises(Corrupt):
            backend.get_range("p/r", offset, length)

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
    def test_a_negative_range_is_a_bug_of_the_caller(self, backend: Backend, offset: int, length: int) -> None:
        backend.put("p/r", [b"abc"])
        with pytest.raises(ValueError, match="malformed range"):
            backend.get_range("p/r", offset, length)

    def test_a_range_of_an_empty_object(self, backend: Backend) -> None:
        backend.put("p/e", [])
        assert backend.get_range("p/e", 0, 0) == b""
        with pytest.raises(Corrupt):
            backend.get_range("p/e", 0, 1)

    # -- listing and deleting --------------------------------------------------------------------

    def test_list_takes_any_string_prefix(self, backend: Backend) -> None:
        keys = ["dvk.json", "j/aa", "j/aa.ok", "j/ab", "l/d/00/x", "l/f/00/y", "p/ab/1", "p/abc", "p/b"]
        for key in keys:
            backend.put(key, [key.encode()])
        for prefix in (
            "",
            "d",
            "j",
            "j/",
            "j/a",
            "j/aa",
            "j/aa.",
            "l/",
            "l/f/00/",
            "p/ab",
            "p/ab/",
            "p/ab/1",
            "z",
        ):
            found = sorted(backend.list(prefix), key=lambda row: row.key)
            assert found == [Listed(k, len(k)) for k in keys if k.startswith(prefix)], prefix

    @pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../", "A", "."])
    def test_malformed_prefixes_are_a_bug_of_the_caller(self, backend: Backend, prefix: str) -> None:
        with pytest.raises(ValueError, match="malformed prefix"):
            list(backend.list(prefix))

    def test_a_listing_is_complete_beyond_a_thousand(self, backend: Backend) -> None:
        keys = {f"m/{i % 8:02x}/{i:04d}" for i in range(1_050)}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: backend.put(key, [b"x"]), keys))
        assert {row.key for row in backend.list("m/")} == keys

    def test_a_listing_tells_when_an_object_was_written_or_nothing(self, backend: Backend) -> None:
        before = time.time()
        backend.put("j/one", [b"x"])
        (row,) = backend.list("j/")
        assert (row.modified_s is not None) == self.tells_time
        assert row.modified_s is None or before - 5 < row.modified_s < time.time() + 5, "seconds may be rounded"

    def test_foreign_objects_are_passed_over(self, backend: Backend) -> None:
        backend.put("p/ab/mine", [b"1"])
        if not self.plant_foreign():
            pytest.skip("this medium cannot hold foreign objects")
        assert list(backend.list("")) == [Listed("p/ab/mine", 1)]

    def test_a_deleted_object_is_gone_and_can_come_back(self, backend: Backend) -> None:
        backend.put("p/x", [b"one"])
        assert backend.get_range("p/x", 0, 3) == b"one"
        backend.delete("p/x")
        backend.delete("p/x")
        assert backend.stat("p/x") is None
        with pytest.raises(KeyMissing):
            backend.get_range("p/x", 0, 3)
        assert list(backend.list("p/")) == []
        backend.put("p/x", [b"two!"])
        assert backend.get_range("p/x", 0, 4) == b"two!"

    def test_another_user_of_the_medium_sees_what_was_done(self, backend: Backend) -> None:
        other = self.make()
        backend.put("p/x", [b"one"])
        assert other.get_range("p/x", 0, 3) == b"one"
        assert [row.key for row in other.list("")] == ["p/x"]
        backend.put("p/x", [b"other"])
        assert other.get_range("p/x", 0, 5) == b"other"
        backend.delete("p/x")
        assert other.stat("p/x") is None
        with pytest.raises(KeyMissing):
            other.get_range("p/x", 0, 3)
        if other is not backend:
            other.close()

    # -- all or nothing --------------------------------------------------------------------------

    def test_a_put_that_fails_leaves_nothing(self, backend: Backend) -> None:
        with pytest.raises(SourceBroke):
            backend.put("p/x", BrokenParts([b"half"]))
        assert backend.stat("p/x") is None
        assert list(backend.list("")) == []

    def test_a_replacement_that_fails_leaves_the_old_object(self, backend: Backend) -> None:
        backend.put("p/x", [b"old"])
        with pytest.raises(SourceBroke):
            backend.put("p/x", BrokenParts([b"half"]))
        assert backend.get("p/x", max_bytes=10) == b"old"

    def test_create_only_keeps_the_first(self, backend: Backend) -> None:
        backend.put("j/x", [b"first"], create_only=True)
        with pytest.raises(KeyExists):
            backend.put("j/x", [b"second"], create_only=True)
        assert backend.get("j/x", max_bytes=10) == b"first"

    def test_one_of_eight_racing_creators_wins(self) -> None:
        backends = [self.make() for _ in range(2)] * 4
        if not backends[0].capabilities.create_only:
            pytest.skip("this medium does not promise create-only")
        for turn in range(2):
            key = f"j/{turn}"
            values = [pattern(50_000, seed=i) for i in range(8)]
            answers = race(8, lambda i, k=key, v=values: backends[i].put(k, [v[i]], create_only=True))  # type: ignore[misc]
            winners = [i for i, answer in enumerate(answers) if answer is None]
            assert len(winners) == 1, answers
            assert all(isinstance(a, KeyExists) for i, a in enumerate(answers) if i != winners[0])
            assert backends[winners[0]].get(key, max_bytes=50_000) == values[winners[0]]
        for backend in {id(b): b for b in backends}.values():
            backend.close()

    def test_a_reader_sees_the_old_or_the_new_object_whole(self, backend: Backend) -> None:
        versions = [pattern(60_000, seed=1), pattern(90_000, seed=2)]
        backend.put("p/x", [versions[0]])

        def work(i: int) -> object:
            if i == 0:
                for turn in range(10):
                    backend.put("p/x", [versions[turn % 2]])
                return True
            return all(backend.get("p/x", max_bytes=90_000) in versions for _ in range(10))

        assert race(4, work) == [True] * 4

    def test_sixteen_threads_read_and_write_at_once(self, backend: Backend) -> None:
        def work(i: int) -> object:
            data = pattern(120_000, seed=i)
            for n in range(4):
                key = f"p/{i:02x}/{n}"
                backend.put(key, [data])
                assert backend.get_range(key, n * 1000, 5000) == data[n * 1000 : n * 1000 + 5000]
                assert backend.stat(key) == len(data)
            backend.delete(f"p/{i:02x}/0")
            return len(list(backend.list(f"p/{i:02x}/")))

        assert race(16, work) == [3] * 16
