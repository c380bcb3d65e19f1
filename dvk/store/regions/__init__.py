"""Where the parts of a file lie that change together: tensors, columns, members of archives.

Problem: a header that grows by a few bytes shifts everything behind it; content-defined cuts recover after a chunk or
two, but know neither that a tensor is never inserted into nor that its words are FP32.

    regions = plan_regions(read, size)      # starts [0, 4168, ...], fixed [False, True, ...], hints [UNKNOWN, WORDS_4]

Choice: splitters that read headers only, find their format by content and never by name, and are advisory: any doubt
means content-defined cuts, so a file that lies is stored exactly and at most without the gain. Regions are part of a
profile's cut function (docs/format/chunking.md); hints are not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from struct import error as StructError
from typing import Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.store.codec import MAGIC_BYTES, Hint, magic_is_incompressible
from dvk.store.gear import I64
from dvk.store.regions.archives import is_tar, is_zip, split_tar, split_zip
from dvk.store.regions.parquet import is_parquet, split_parquet
from dvk.store.regions.span import STANDING_BYTES, Budget, Doubt, Piece, Read, Span
from dvk.store.regions.tensors import (
    is_gguf,
    is_npy,
    is_safetensors,
    split_gguf,
    split_npy,
    split_safetensors,
)

_HEAD_BYTES: Final = 512
_Split = Callable[[Span], list[Piece]]
#: Asked in this order: the one with the weakest mark of its own, a brace behind a length, comes last.
_FORMATS: Final[tuple[tuple[Callable[[bytes], bool], _Split], ...]] = (
    (is_gguf, split_gguf),
    (is_npy, split_npy),
    (is_parquet, split_parquet),
    (is_zip, lambda span: split_zip(span, _split)),
    (is_tar, lambda span: split_tar(span, _split)),
    (is_safetensors, split_safetensors),
)
#: What lying bytes make of the parsers: a count that is text, a length beyond 64 bits, brackets without end.
_LIES: Final = (Doubt, StructError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError)


class Regions(Struct, frozen=True):
    """n regions that cover a file; each ends where the next one starts.

    Attributes:
        starts: int64[n], ascending from 0.
        fixed: bool[n]: cut on a grid from the start of the region, else by content.
        hints: what the blocks of the region hold.
    """

    starts: I64
    fixed: npt.NDArray[np.bool_]
    hints: tuple[Hint, ...]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Regions:
        """Of pieces that follow each other without a gap."""
        return cls(
            np.array([p.start for p in pieces], np.int64),
            np.array([p.fixed for p in pieces], np.bool_),
            tuple(p.hint for p in pieces),
        )


@functools.cache
def plain_regions(hint: Hint = Hint.UNKNOWN) -> Regions:
    """The whole file cut by content."""
    return Regions.of([Piece(0, 0, False, hint)])


def plan_regions(read: Read, size: int) -> Regions:
    """The regions of a file of `size` bytes. Reads little, and never fails for what it reads.

    Args:
        read: `read(offset, n)` gives the `n` bytes at `offset`; what it raises is passed on.
    """
    if size <= STANDING_BYTES:
        return plain_regions()
    head = read(0, _HEAD_BYTES)
    try:
        known = any(matches(head) for matches, _ in _FORMATS)
    except _LIES:
        return plain_regions()
    if not known:  # so nearly all of many small files, and the rest costs more than cutting one
        media = len(head) == _HEAD_BYTES and magic_is_incompressible(head[:MAGIC_BYTES])
        return plain_regions(Hint.INCOMPRESSIBLE if media else Hint.UNKNOWN)
    return Regions.of(_joined(_split(Span(read, 0, size, Budget(size)))))


def _split(span: Span) -> list[Piece]:
    """Pieces that cover `span`."""
    whole = [span.piece(0, span.size)]
    if span.size <= STANDING_BYTES or not span.may_nest:
        return whole
    try:
        head = span.at(0, _HEAD_BYTES)
        for matches, split in _FORMATS:
            if matches(head):
                return _covered(span, split(span))
        if magic_is_incompressible(head[:MAGIC_BYTES]):
            return [span.piece(0, span.size, hint=Hint.INCOMPRESSIBLE)]
    except _LIES:
        pass  # cut by content, as promised
    return whole


def _covered(span: Span, pieces: list[Piece]) -> list[Piece]:
    """`pieces` and what lies between them."""
    out: list[Piece] = []
    at, end = span.base, span.base + span.size
    for piece in pieces:
        if not at <= piece.start <= piece.end <= end:
            raise Doubt
        if at < piece.start:
            out.append(Piece(at, piece.start, False, Hint.UNKNOWN))
        if piece.start < piece.end:
            out.append(piece)
        at = piece.end
    if at < end:
        out.append(Piece(at, end, False, Hint.UNKNOWN))
    return out


def _joined(pieces: list[Piece]) -> list[Piece]:
    """`pieces` with neighbours that are too short to stand alone made one."""
    out: list[Piece] = []
    joining = False
    for piece in pieces:
        short = piece.end - piece.start < STANDING_BYTES
        if short and joining:
            last = out[-1]
            out[-1] = Piece(last.start, piece.end, False, last.hint if last.hint is piece.hint else Hint.UNKNOWN)
        else:
            out.append(piece._replace(fixed=False) if short else piece)
        joining = short
    return out
