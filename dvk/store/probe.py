"""What a block may hold, by a look at a few KiB of it: floating-point words, bytes that repeat, or noise.

    find_words(memoryview(weights), (2, 4, 8), needed_gain=0.03)      # Words(width=4, phase=0)

The n-th bytes of all words are a *lane*. Where a file holds words of fixed width, some lanes are far from random and
others are noise, and lanes of different words differ; text has the same letters in every lane. One histogram of eight
lanes answers for the widths 8, 4, 2 and 1 at once, since those of the narrower widths are its sums.

Advice only: right or wrong, it costs time or space, never bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from dvk.store.frames import compress
from dvk.store.planes import encode_planes

_LANES: Final = 8
_PIECES: Final = 4
_PIECE_BYTES: Final = 2048
SAMPLE_BYTES: Final = _PIECES * _PIECE_BYTES

_OFFSETS: Final = np.tile(np.arange(_LANES, dtype=np.uint16) << 8, SAMPLE_BYTES // _LANES)
_COUNTS: Final = np.arange(SAMPLE_BYTES + 1, dtype=np.float64)
_C_LOG_C: Final = _COUNTS * np.log2(np.maximum(_COUNTS, 1))
# A small sample of noise looks less random than it is; this many bits for each value seen but one put that right
# (Miller and Madow).
_BIAS_BITS: Final = 1 / (2 * math.log(2))
# Rows 0-7 are the lanes of width 8, 8-11 of width 4, 12-13 of width 2, 14 of width 1.
_FIRST_ROW: Final = {8: 0, 4: 8, 2: 12, 1: 14}
# How close to the least random lane the last one of a word must be, in parts of a byte, for the first byte of the
# block to be taken for the first of a word.
_PHASE_MARGIN: Final = 0.03
# Where the histogram promises this little, words repeat; if plain zstd comes close to it, both are tried on a longer
# run, as a histogram knows nothing of repetition, and a short sample little.
_REPETITIVE: Final = 0.5
_TOO_CLOSE: Final = 1.25
_TRIAL_BYTES: Final = 64 << 10


class Words(NamedTuple):
    """Words of `width` bytes (2, 4 or 8); the first one starts at `phase`."""

    width: int
    phase: int


def take_sample(raw: memoryview) -> bytes:
    """`SAMPLE_BYTES` of at least that many, in pieces spread over `raw` that start at multiples of 8."""
    last = (raw.nbytes - _PIECE_BYTES) // _LANES
    starts = [last * i // (_PIECES - 1) * _LANES for i in range(_PIECES)]
    return b"".join(raw[s : s + _PIECE_BYTES] for s in starts)


def find_words(raw: memoryview, widths: Sequence[int], *, needed_gain: float) -> Words | None:
    """The width whose planes promise to be the smallest; None where plain zstd promises to do as well.

    Args:
        raw: at least `SAMPLE_BYTES`.
        widths: to choose from. One alone is what somebody knows; of several, one must also beat bytes without lanes.
        needed_gain: how much smaller than plain zstd planes must be, 0.03 for 3 %; negative where they may be larger.
    """
    sample = take_sample(raw)
    shares = _lane_shares(sample)
    costs = {w: float(shares[_FIRST_ROW[w] : _FIRST_ROW[w] + w].mean()) for w in (1, *widths)}
    width = min(widths, key=lambda w: costs[w] * (1 + w / 1000))  # of equals the narrower
    if len(widths) > 1 and costs[width] > costs[1] * (1 - needed_gain):
        return None
    plain = len(compress(sample)) / len(sample)
    if costs[width] < _REPETITIVE and plain < costs[width] * _TOO_CLOSE:
        if not _wins_trial(raw, width, 1 - needed_gain):
            return None
    elif costs[width] > plain * (1 - needed_gain):
        return None
    if len(widths) == 1:
        return Words(width, 0)
    lanes = shares[_FIRST_ROW[width] : _FIRST_ROW[width] + width]
    top = int(lanes.argmin())
    phase = 0 if lanes[-1] <= lanes[top] + _PHASE_MARGIN else (top + 1) % width
    return Words(width, phase)


def _wins_trial(raw: memoryview, width: int, share: float) -> bool:
    """Whether planes of a run from the middle take at most `share` of what plain zstd makes of it."""
    start = max(0, (raw.nbytes - _TRIAL_BYTES) // 2 // _LANES * _LANES)
    run = raw[start : start + _TRIAL_BYTES]
    planes = encode_planes(run, width)
    return planes is not None and len(planes) <= len(compress(run)) * share


def _lane_shares(sample: bytes) -> npt.NDArray[np.float64]:
    """For every row of `_FIRST_ROW`: what an entropy coder makes of its bytes, as a share of them (0 to 1)."""
    rows = np.empty((15, 256), np.intp)
    rows[:8] = np.bincount(np.frombuffer(sample, np.uint8) + _OFFSETS, minlength=_LANES * 256).reshape(_LANES, 256)
    np.add(rows[0:4], rows[4:8], out=rows[8:12])
    np.add(rows[8:10], rows[10:12], out=rows[12:14])
    np.add(rows[12], rows[13], out=rows[14])
    totals = rows.sum(axis=1)
    bits = _C_LOG_C[totals] - _C_LOG_C[rows].sum(axis=1) + (np.count_nonzero(rows, axis=1) - 1) * _BIAS_BITS
    return np.asarray(np.minimum(bits / (8 * totals), 1))
