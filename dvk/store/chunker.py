"""Where a file is cut into chunks.

Problem: two versions of a file must share chunks although bytes were inserted, so cuts must follow content;
and they must come out the same on every machine, for ever, or sharing silently stops.

    cutter = Cutter("auto-64k").for_file(read, size)        # `read` looks at headers, wherever they lie
    lengths, hints = cutter.feed(memoryview(data), final=True)     # data[:lengths[0]] is the first chunk

Choice: a *profile* names the whole cut function, and cuts depend on bytes and profile only: not on the
name of the file, on how it was read or on who computes them. A file is a sequence of regions
(`dvk.store.regions`; one for the whole file in a profile without splitters), cut by content or on a grid. Two engines
make the same cuts by content: the native extension of pyfastcdc where it is there and proven to agree, numpy
(`dvk.store.gear`) elsewhere.

Format, reasons and test vectors: docs/format/chunking.md.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from dvk.errors import NewerFormat, UsageError
from dvk.store.codec import Hint
from dvk.store.gear import I64, U8, GearScanner
from dvk.store.profiles import PROFILES, GearRule
from dvk.store.regions import Regions, plain_regions, plan_regions
from dvk.store.regions.span import Read

try:
    with warnings.catch_warnings():
        # Without its extension the package warns and offers a pure Python loop of 3 MB/s, which we replace.
        warnings.simplefilter("ignore")
        from pyfastcdc.cy import FastCDC as _NativeFastCDC
except ImportError:
    _NativeFastCDC = None

Engine = Literal["auto", "native", "numpy"]

max_chunk_bytes: Final = 1 << 20  #: no chunk of any known profile is longer

#: The grid of regions that are not cut by content. A chunk of it is a block.
_FIXED_BYTES: Final = 1 << 20
_length_of: Final[Callable[[Any], int]] = attrgetter("length")


class Cut(NamedTuple):
    """Complete chunks: int64[n] lengths, and what each holds, for the codec."""

    lengths: I64
    hints: list[Hint]


class Cutter:
    """Cuts files into chunks by one profile.

    It remembers nothing between calls, so one cutter serves any number of files, but its scratch memory
    belongs to one thread at a time. Scanning happens outside the interpreter lock.

    Raises:
        NewerFormat: this version does not know `profile`.
        UsageError: engine "native" was asked for and is not usable here.
    """

    def __init__(self, profile: str, *, engine: Engine = "auto") -> None:
        found = PROFILES.get(profile)
        if found is None:
            raise NewerFormat(
                f"unknown chunking profile; this dvk knows {', '.join(PROFILES)}",
                subject=repr(profile[:80]),
                hint="upgrade dvk on this machine, or correct the profile in dvk.toml",
            )
        rule = found.rule
        usable = engine != "numpy" and _native_agrees(rule)
        if engine == "native" and not usable:
            raise UsageError(
                "the native chunking engine is missing here or does not make the cuts of the profile",
                subject=profile,
                hint="use the engine 'auto'; reinstalling pyfastcdc from a wheel may bring it back",
            )
        self.profile = profile
        self.engine: Literal["native", "numpy"] = "native" if usable else "numpy"
        self.max_chunk_bytes = rule.max_bytes  #: of cuts by content
        self.min_chunk_bytes = rule.min_bytes  #: a file of at most this length is one chunk
        self._splits = found.splits
        self._lengths = _native(rule) if usable else GearScanner(rule).lengths

    def for_file(self, read: Read, size: int) -> FileCutter:
        """A cutter for one file of `size` bytes, which need not be what is fed to it later.

        Args:
            read: `read(offset, n)` gives up to `n` bytes at `offset`; it is called before this returns, for headers
                and footers, and what it raises is passed on.
        """
        return FileCutter(self, plan_regions(read, size) if self._splits else plain_regions())

    def feed(self, buffer: memoryview, *, final: bool) -> I64:
        """Cut by content: the lengths of the complete chunks at the start of `buffer` (contiguous bytes), in order.

        `buffer` must start where a chunk starts. When not `final`, more of the file follows: bytes after
        the returned chunks, at most `max_chunk_bytes` - 1 of them, are to be put in front of the next read.
        When `final`, the buffer ends with the file and all of it is cut. Any split of a file into calls
        gives the same chunks; calls of several MB keep the bytes scanned twice few.
        """
        if buffer.nbytes == 0:
            return np.empty(0, np.int64)
        lengths = self._lengths(np.frombuffer(buffer, np.uint8))
        # A cut lies before a byte that was seen, so the last chunk ran into the end, unless it is full.
        if not final and lengths[-1] < self.max_chunk_bytes:
            return lengths[:-1]
        return lengths


class FileCutter:
    """Cuts one file from front to back; made by `Cutter.for_file`, whose thread it needs."""

    def __init__(self, cutter: Cutter, regions: Regions) -> None:
        self._cutter = cutter
        self._ends = [*regions.starts[1:].tolist(), None]  # the last one ends with the file, whatever its length
        self._fixed = regions.fixed.tolist()
        self._hints = regions.hints
        self._region = 0
        self._position = 0  # in the file, of the next byte to cut

    def feed(self, buffer: memoryview, *, final: bool) -> Cut:
        """The complete chunks at the start of `buffer` (contiguous bytes), in order.

        `buffer` must start where the chunks returned so far end. When not `final`, more of the file follows: bytes
        after the returned chunks, fewer than the module's `max_chunk_bytes`, are to be put in front of the next read.
        When `final`, the buffer ends with the file and all of it is cut. Any split of a file into calls gives the same
        chunks.
        """
        lengths: list[I64] = []
        hints: list[Hint] = []
        at, total = 0, buffer.nbytes
        while at < total:
            end = self._ends[self._region]
            left = total - at if end is None else min(total - at, end - self._position)
            is_whole = final if end is None else final or self._position + left == end
            if self._fixed[self._region]:
                cut = _grid(left, is_whole)
            else:
                cut = self._cutter.feed(buffer[at : at + left], final=is_whole)
            used = int(cut.sum())
            lengths.append(cut)
            hints += [self._hints[self._region]] * len(cut)
            at += used
            self._position += used
            if self._position != end:
                break  # the rest waits for more, or there is none
            self._region += 1
        return Cut(np.concatenate(lengths) if lengths else np.empty(0, np.int64), hints)


def _grid(size: int, is_whole: bool) -> I64:
    """The chunks of `size` bytes of a region on the grid; a last one that is not full waits until `is_whole`."""
    full, rest = divmod(size, _FIXED_BYTES)
    lengths = np.full(full + (is_whole and rest > 0), _FIXED_BYTES, np.int64)
    if len(lengths) > full:
        lengths[-1] = rest
    return lengths


def _native(rule: GearRule) -> Callable[[U8], I64]:
    """The native function from bytes to the lengths of all chunks."""
    fastcdc = _NativeFastCDC(
        rule.target_bytes, min_size=rule.min_bytes, max_size=rule.max_bytes, normalized_chunking=0, seed=0
    )

    def lengths(data: U8) -> I64:
        return np.fromiter(map(_length_of, fastcdc.cut_buf(data.data)), np.int64)

    return lengths


@functools.cache
def _native_agrees(rule: GearRule) -> bool:
    """Whether the native engine is here and cuts a sample as the numpy engine does (about 2 ms, once).

    A release of a library that we do not control must not move the cuts of a store.
    """
    if _NativeFastCDC is None:
        return False
    # Any bytes with hundreds of candidates do: a linear congruential walk, its high byte.
    steps = np.arange(1, 768 * 1024 + 1, dtype=np.uint64)
    sample = ((steps * np.uint64(6364136223846793005)) ** 2 >> np.uint64(56)).astype(np.uint8)
    sample[400_000:650_000] = 0  # without a candidate: a chunk of maximum length
    try:
        cuts = _native(rule)(sample)
    except (TypeError, ValueError, AttributeError):
        return False  # the library changed its interface
    return bool(np.array_equal(cuts, GearScanner(rule).lengths(sample)))
