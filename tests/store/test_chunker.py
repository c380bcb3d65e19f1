"""The chunker: two engines, one set of cuts, the same for ever."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.errors import FormatError, NewerFormat, UsageError
from dvk.store import chunker, gear
from dvk.store.chunker import Cutter, Engine, max_chunk_bytes
from dvk.store.gear import GEAR, GearScanner
from dvk.store.profiles import DEFAULT_PROFILE, GearRule, known_profiles

VECTORS = Path(__file__).parents[2] / "docs" / "format" / "vectors" / "chunking"
MIN, MAX = 32 * 1024, 192 * 1024
MASK = 0x0000_D90F_0353_0000
ENGINES: tuple[Engine, ...] = ("native", "numpy")


def xof(label: str, size: int) -> bytes:
    """`size` bytes of BLAKE3 extended output: the random bytes of all format vectors."""
    return blake3(label.encode("ascii")).digest(size)


def make_input(spec: dict[str, Any]) -> bytes:
    """The input of a format vector, as docs/format/chunking.md defines the generators."""
    size: int = spec["size"]
    match spec["make"]:
        case "xof":
            return xof(spec["label"], size)
        case "fill":
            return bytes([spec["byte"]]) * size
        case "repeat":
            period = xof(spec["label"], spec["period"])
            return (period * (size // len(period) + 1))[:size]
        case "sparse":
            return (np.frombuffer(xof(spec["label"], size), np.uint8) & spec["and"]).astype(np.uint8).tobytes()
        case "insert":
            base = xof(spec["label"], size)
            return base[: spec["at"]] + xof(spec["insert_label"], spec["insert_size"]) + base[spec["at"] :]
    raise AssertionError(spec)


def cut(data: bytes, engine: Engine = "auto") -> list[int]:
    lengths = Cutter(DEFAULT_PROFILE, engine=engine).feed(memoryview(data), final=True)
    assert lengths.dtype == np.int64
    return lengths.tolist()


def cut_by_the_page(data: bytes) -> list[int]:
    """docs/format/chunking.md, `cdc-64k`, word for word: one byte at a time."""
    table = GEAR.tolist()
    lengths = []
    start = 0
    while start < len(data):
        left = len(data) - start
        length = limit = min(left, MAX)
        if left > MIN:
            h = 0
            for p in range(MIN, limit - limit % 2):
                h = (2 * h + table[data[start + p]]) % 2**64
                if h & MASK == 0:
                    length = p
                    break
        lengths.append(length)
        start += length
    return lengths


def cut_in_reads(data: bytes, reads: list[int], engine: Engine) -> list[int]:
    """The chunks when the file arrives in reads of these sizes, then the rest: as a caller streams it."""
    cutter = Cutter(DEFAULT_PROFILE, engine=engine)
    lengths: list[int] = []
    pending = b""
    at = 0
    for size in reads:
        pending += data[at : at + size]
        at += size
        complete = cutter.feed(memoryview(pending), final=False).tolist()
        lengths += complete
        pending = pending[sum(complete) :]
        assert len(pending) < max_chunk_bytes
    pending += data[at:]
    return lengths + cutter.feed(memoryview(pending), final=True).tolist()


def load_vectors() -> list[dict[str, Any]]:
    document = json.loads((VECTORS / "cdc-64k.json").read_text())
    assert document["profile"] == "cdc-64k"
    vectors: list[dict[str, Any]] = document["vectors"]
    return vectors


# Bytes of every texture a cutter meets: random, few values, constant, periodic, and pieces of all of them.
textures = st.one_of(
    st.builds(lambda n: xof(f"texture {n}", 150_000), st.integers(0, 50)),
    st.builds(lambda v, n: bytes([v]) * n, st.integers(0, 255), st.integers(0, 400_000)),
    st.builds(lambda p, n: (p * (n // len(p) + 1))[:n], st.binary(min_size=1, max_size=300), st.integers(0, 300_000)),
    st.builds(
        lambda n, mask: (np.frombuffer(xof(f"few {n}", 120_000), np.uint8) & mask).astype(np.uint8).tobytes(),
        st.integers(0, 20),
        st.sampled_from([1, 3, 0x49, 0x0F, 0xF0]),
    ),
    st.binary(max_size=200),
)
files = st.lists(textures, max_size=5).map(b"".join)
edge_sizes = sorted(
    {0, 1, 2, 3, 63, 64, 65}
    | {base + d for base in (MIN, 2 * MIN, MAX, MAX + MIN, 2 * MAX, 3 * MAX) for d in (-2, -1, 0, 1, 2, 63, 64, 65)}
)


class TestTheFormatIsFrozen:
    @pytest.mark.parametrize("vector", load_vectors(), ids=lambda v: str(v["name"]).replace(" ", "-"))
    @pytest.mark.parametrize("engine", ENGINES)
    def test_every_vector_is_cut_as_published(self, vector: dict[str, Any], engine: Engine) -> None:
        data = make_input(vector["input"])
        assert blake3(data).hexdigest() == vector["input_b3"]
        assert cut(data, engine) == vector["chunk_lengths"]

    def test_the_vectors_file_itself_is_frozen(self) -> None:
        """Vectors may be added for a new profile, in a new file; these never change."""
        assert (
            blake3((VECTORS / "cdc-64k.json").read_bytes()).hexdigest()
            == "3156ed2f536d5c9af49d1720930172aebb335f21ebf3748fe4ec92c67ef8d89b"
        )

    def test_the_gear_table_is_the_published_one(self) -> None:
        table = GEAR.astype("<u8").tobytes()
        assert table == (VECTORS / "gear.bin").read_bytes()
        page = (VECTORS.parents[1] / "chunking.md").read_text()
        assert blake3(table).hexdigest() in page and hashlib.sha256(table).hexdigest() in page
        md5 = [hashlib.md5(bytes([i]) * 64, usedforsecurity=False).digest()[:8] for i in range(256)]
        assert GEAR.tolist() == [int.from_bytes(d, "big") for d in md5]

    @pytest.mark.parametrize("size", [MIN, MIN + 1, MIN + 2, 100_001, MAX + MIN + 3])
    def test_the_page_in_plain_python_gives_the_same_cuts(self, size: int) -> None:
        data = xof("by the page", size)
        assert cut_by_the_page(data) == cut(data, "numpy") == cut(data, "native")

    def test_a_cut_may_follow_the_first_tested_byte_and_never_the_last_odd_one(self) -> None:
        """A one-bit mask makes both corners reachable: the shortest chunk and the untested last position."""
        rule = GearRule(min_bytes=4, target_bytes=4, max_bytes=8, mask=1)
        odd, even = (next(i for i in range(256) if int(GEAR[i]) & 1 == bit) for bit in (1, 0))
        scanner = GearScanner(rule)
        assert scanner.lengths(np.array([odd] * 4 + [even] + [odd] * 3, np.uint8)).tolist() == [4, 4]
        assert scanner.lengths(np.array([odd] * 4 + [even], np.uint8)).tolist() == [5]
        assert scanner.lengths(np.array([odd] * 4 + [odd, even], np.uint8)).tolist() == [5, 1]


class TestEnginesAgree:
    @settings(max_examples=60, deadline=None)
    @given(files)
    def test_on_any_texture(self, data: bytes) -> None:
        lengths = cut(data, "numpy")
        assert lengths == cut(data, "native")
        assert sum(lengths) == len(data)
        assert all(MIN <= n <= MAX for n in lengths[:-1]) and all(0 < n <= MAX for n in lengths[-1:])

    @pytest.mark.parametrize("texture", ["random", "zeros", "ones", "period"])
    def test_at_every_boundary_size(self, texture: str) -> None:
        longest = max(edge_sizes)
        whole = {
            "random": xof("boundary", longest),
            "zeros": bytes(longest),
            "ones": b"\xff" * longest,
            "period": (xof("period", 97) * (longest // 97 + 1))[:longest],
        }[texture]
        for size in edge_sizes:
            assert cut(whole[:size], "numpy") == cut(whole[:size], "native"), size

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10**6), st.integers(0, 70_000))
    def test_wherever_the_chunk_grid_begins(self, seed: int, drop: int) -> None:
        data = xof(f"grid {seed}", 500_000)[drop:]
        assert cut(data, "numpy") == cut(data, "native")

    @pytest.mark.parametrize("positions", [7, 16, 61])
    def test_however_finely_the_work_is_sliced(self, positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each slice must see all the history its hashes depend on; tiny slices make all of it matter."""
        monkeypatch.setattr(gear, "_SLICE", positions)
        data = xof("slices", 250_000)
        assert cut(data, "numpy") == cut(data, "native")

    def test_an_engine_that_disagrees_or_fails_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Shifted:
            def __init__(self, *args: Any, **kwargs: Any) -> None: ...

            def cut_buf(self, data: memoryview) -> list[Any]:
                """The cuts of a library that now counts the byte at the cut to the chunk before it."""
                first, *others, last = cut(bytes(data), "numpy")
                return [SimpleNamespace(length=n) for n in (first + 1, *others, last - 1)]

        class Renamed:
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                raise TypeError("got an unexpected keyword argument 'seed'")

        for broken in (Shifted, Renamed, None):
            monkeypatch.setattr(chunker, "_NativeFastCDC", broken)
            chunker._native_agrees.cache_clear()
            assert Cutter(DEFAULT_PROFILE).engine == "numpy"
            with pytest.raises(UsageError):
                Cutter(DEFAULT_PROFILE, engine="native")
        monkeypatch.undo()
        chunker._native_agrees.cache_clear()
        assert Cutter(DEFAULT_PROFILE).engine == "native"

    def test_without_the_native_extension_numpy_cuts_and_nobody_is_warned(self) -> None:
        """A real interpreter in which the extension cannot be imported, warnings being errors."""
        program = (
            "import sys; sys.modules['pyfastcdc.cy'] = None\n"
            "from dvk.store.chunker import Cutter\nfrom dvk.store.profiles import DEFAULT_PROFILE\n"
            "c = Cutter(DEFAULT_PROFILE)\n"
            "print(c.engine, c.feed(memoryview(bytes(200000)), final=True).tolist())"
        )
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("numpy [196608, 3392]\n", "")


class TestAnyReadSizeGivesTheSameCuts:
    @settings(max_examples=40, deadline=None)
    @given(files, st.lists(st.integers(0, 250_000), max_size=6), st.sampled_from(ENGINES))
    def test_any_split(self, data: bytes, reads: list[int], engine: Engine) -> None:
        assert cut_in_reads(data, reads, engine) == cut(data)

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("size", [MAX, MAX + 1, 2 * MAX, 2 * MAX + MIN])
    @pytest.mark.parametrize("step", [MIN - 1, MIN, MIN + 1, MAX - 1, MAX, MAX + 1])
    def test_reads_at_the_limits(self, engine: Engine, size: int, step: int) -> None:
        for data in (xof("limits", size), bytes(size)):
            assert cut_in_reads(data, [step] * (size // step + 1), engine) == cut(data)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_splits_beside_each_cut(self, engine: Engine) -> None:
        """The dangerous reads are those that end at, just before or just after a cut."""
        data = xof("beside", 500_000)
        expected = cut(data)
        for end in itertools.accumulate(expected[:-1]):
            for delta in (-1, 0, 1, 2):
                assert cut_in_reads(data, [end + delta], engine) == expected

    @pytest.mark.parametrize("engine", ENGINES)
    def test_an_unfinished_chunk_is_kept_back_unless_it_is_full(self, engine: Engine) -> None:
        cutter = Cutter(DEFAULT_PROFILE, engine=engine)
        assert cutter.feed(memoryview(b""), final=False).tolist() == []
        assert cutter.feed(memoryview(b""), final=True).tolist() == []
        assert cutter.feed(memoryview(bytes(MAX - 1)), final=False).tolist() == []
        assert cutter.feed(memoryview(bytes(MAX)), final=False).tolist() == [MAX]
        assert cutter.feed(memoryview(bytes(10)), final=True).tolist() == [10]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_any_kind_of_buffer_is_read_and_let_go(self, engine: Engine) -> None:
        data = xof("buffers", 300_000)
        owner = bytearray(data)
        cutter = Cutter(DEFAULT_PROFILE, engine=engine)
        assert cutter.feed(memoryview(owner), final=True).tolist() == cut(data)
        assert cutter.feed(memoryview(data).cast("Q"), final=True).tolist() == cut(data)
        owner.clear()  # would raise BufferError while a view is alive
        assert bytes(data) == data


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12, deadline=None)
@given(at=st.integers(0, 3_000_000), inserted=st.integers(1, 5_000))
def test_an_insertion_changes_only_the_chunks_around_it(engine: Engine, at: int, inserted: int) -> None:
    """Promise "small": after an edit in the middle the cuts fall into step again."""
    before = xof("insertion", 3_000_000)
    after = before[:at] + xof("inserted", inserted) + before[at:]

    def chunks(data: bytes) -> set[bytes]:
        ends = list(itertools.accumulate(cut(data, engine), initial=0))
        return {data[a:b] for a, b in itertools.pairwise(ends)}

    assert sum(map(len, chunks(after) - chunks(before))) < 1_000_000


def test_a_file_that_grows_keeps_all_chunks_but_the_last() -> None:
    data = xof("growing", 2_000_000)
    for size in (1, MIN, 500_001, 1_999_999):
        shorter = cut(data[:size])
        assert cut(data)[: len(shorter) - 1] == shorter[:-1]


def test_an_unknown_profile_asks_for_an_upgrade() -> None:
    with pytest.raises(NewerFormat) as caught:
        Cutter("cdc-128k\x1b[2J" + "x" * 10_000)
    assert isinstance(caught.value, FormatError)
    assert "cdc-64k" in caught.value.message and "upgrade" in caught.value.hint
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_the_published_constants() -> None:
    assert set(known_profiles()) == {"auto-64k", "cdc-64k"} and DEFAULT_PROFILE in known_profiles()
    assert max_chunk_bytes == 1 << 20
    assert {Cutter(p).max_chunk_bytes for p in known_profiles()} == {196_608}


def test_a_rule_with_odd_sizes_is_refused() -> None:
    """Odd sizes would make the two-byte step and the plain scan differ."""
    for sizes in ((3, 8), (4, 7), (8, 4), (0, 4)):
        with pytest.raises(ValueError):
            GearRule(min_bytes=sizes[0], target_bytes=sizes[0], max_bytes=sizes[1], mask=1)
