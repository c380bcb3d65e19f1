"""What changed between two files of tensors: which came, went, or have other numbers, and by how much.

    diff = compare_tensors(source_a, source_b)
    diff.changes[0]     # TensorChange("blocks.7.attn.weight", "changed", ..., changed=8_388_608, max_abs=0.0031, ...)

A fine-tune of a checkpoint of 100 GB touches some tensors. Both versions are chunks, cut on a grid from each tensor's
start; a tensor whose bytes are covered by the same chunks in both is the same, and is not read. The others are streamed
in blocks through numpy: memory is a few blocks, whatever the tensor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.errors import TableError
from dvk.store.threads import brisk, default_workers
from dvk.table.tensors.files import (
    Tensor,
    TensorFile,
    as_numbers,
    item_bytes,
    read_tensors,
    tensor_format,
    unpacked_items,
)

if TYPE_CHECKING:
    from dvk.store.pages import Chunks
    from dvk.table.contract import Source

#: The published name and version of the JSON form (docs/format/diff.schema.json).
FORMAT: Final = "dvk.tensor-diff/1"

_BLOCK_BYTES: Final = 4 << 20
_I64 = npt.NDArray[np.int64]


class TensorShape(Struct, frozen=True):
    """A tensor as one side has it; `dtype` in the words of its format."""

    dtype: str
    shape: tuple[int, ...]
    size: int  #: bytes in the file


class TensorChange(Struct, frozen=True):
    """One tensor that is not the same on both sides.

    `kind`: `added`, `removed`, `reshaped`, `retyped` (also when reshaped as well) or `changed`. The numbers are there
    when both sides have as many items, in the same order; types may differ. A number that cannot be told is None.

    Attributes:
        changed: items with another value. Of equal type: other bytes; so 0.0 to -0.0 counts.
        max_abs: the largest |new - old| over items that are numbers on both sides (infinite ones included).
        relative_l2: |new - old| / |old|, of all finite items; infinite where old is zero.
        nan: items that are NaN, before and after.
    """

    name: str
    kind: str
    a: TensorShape | None = None
    b: TensorShape | None = None
    elements: int | None = None
    changed: int | None = None
    max_abs: float | None = None
    relative_l2: float | None = None
    nan: tuple[int, int] | None = None


class TensorDiff(Struct, frozen=True):
    """The whole answer. `changes` in the order of the second file, what is gone last; `metadata`: key, old, new."""

    format: tuple[str, str]
    tensors: tuple[int, int]
    changes: tuple[TensorChange, ...]
    metadata: tuple[tuple[str, str | None, str | None], ...]
    unchanged: int
    not_read: int  #: of these, how many are equal since their chunks are
    bytes_read: int
    bytes_total: int
    seconds: float

    @property
    def equal(self) -> bool:
        """No tensor and no metadata differs."""
        return not self.changes and not self.metadata

    def close(self) -> None:
        """There is nothing to give back; so that it is used as a table's diff is."""


def compare_tensors(a: Source | None, b: Source | None) -> TensorDiff:
    """Compare two files of tensors of any of the formats that `tensor_format` knows; None: there is none.

    Raises:
        TableError: one is malformed, a pickle, or holds objects.
        DataMissing, Corrupt, StorageError, RemoteUnreachable: as the sources do.
    """
    started = time.monotonic()
    sources = [s for s in (a, b) if s is not None]
    before = sum(s.bytes_read for s in sources)
    file_a, file_b = _read(a), _read(b)
    changes: list[TensorChange] = []
    unchanged = not_read = 0
    if a is None or b is None:
        changes += [TensorChange(name, "added", b=_shape(t)) for name, t in file_b.tensors.items()]
    else:
        work = _Comparison(a, b)
        with brisk():
            for name, tensor in file_b.tensors.items():
                change = work.one(name, file_a.tensors.get(name), tensor)
                if change is None:
                    unchanged += 1
                else:
                    changes.append(change)
        not_read = work.not_read
    for name, tensor in file_a.tensors.items():
        if name not in file_b.tensors:
            changes.append(TensorChange(name, "removed", a=_shape(tensor)))
    return TensorDiff(
        (file_a.format, file_b.format),
        (len(file_a.tensors), len(file_b.tensors)),
        tuple(changes),
        _metadata(file_a, file_b),
        unchanged,
        not_read,
        sum(s.bytes_read for s in sources) - before,
        sum(s.size for s in sources),
        time.monotonic() - started,
    )


def _read(source: Source | None) -> TensorFile:
    if source is None:
        return TensorFile("", {})
    format = tensor_format(source.read_at(0, min(16, source.size)), source.name)
    if not format:
        raise TableError("is no file of tensors that dvk reads (safetensors, npy, npz)", subject=source.label)
    return read_tensors(source, format)


def _metadata(a: TensorFile, b: TensorFile) -> tuple[tuple[str, str | None, str | None], ...]:
    keys = sorted({*a.metadata, *b.metadata})
    rows = ((k, a.metadata.get(k), b.metadata.get(k)) for k in keys)
    return tuple(row for row in rows if row[1] != row[2])


def _shape(t: Tensor) -> TensorShape:
    return TensorShape(t.dtype, t.shape, t.stop - t.start)


# ---------------------------------------------------------------- what chunks prove


class Cover:
    """The chunks of a file, and where each one ends."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks, self._ends = chunks, np.cumsum(chunks.lengths, dtype=np.int64)

    def of(self, start: int, size: int) -> tuple[_I64, Chunks]:
        """The chunks that cover `size` bytes from `start`, and where each begins, counted from `start`."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        last = int(np.searchsorted(self._ends, start + size, side="left")) + 1
        part = self.chunks.slice(first, last)
        return self._ends[first:last] - part.lengths.astype(np.int64) - start, part


def equal_spans(a: Cover, b: Cover, at: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Runs of `size` bytes from `at[0]` in A and `at[1]` in B that are the same, since the same chunks cover them.

    Returns half-open ranges within [0, size), ascending, none touching another.
    """
    if not size:
        return []
    begin_a, part_a = a.of(at[0], size)
    begin_b, part_b = b.of(at[1], size)
    common, i, j = np.intersect1d(begin_a, begin_b, assume_unique=True, return_indices=True)
    same = (part_a.ids[i] == part_b.ids[j]).all(axis=1) & (part_a.lengths[i] == part_b.lengths[j])
    low = np.maximum(common[same], 0)
    high = np.minimum(common[same] + part_a.lengths[i][same].astype(np.int64), size)
    if not len(low):
        return []
    breaks = np.flatnonzero(low[1:] != high[:-1])
    return list(zip(low[np.r_[0, breaks + 1]].tolist(), high[np.r_[breaks, len(high) - 1]].tolist(), strict=True))


class _Comparison:
    def __init__(self, a: Source, b: Source) -> None:
        self._a, self._b = a, b
        chunks_a, chunks_b = a.chunks(), b.chunks()
        self._covers = None if chunks_a is None or chunks_b is None else (Cover(chunks_a), Cover(chunks_b))
        self._same_file = a.id is not None and a.id == b.id
        self.not_read = 0

    def one(self, name: str, a: Tensor | None, b: Tensor) -> TensorChange | None:
        """What became of a tensor; None when it is the same."""
        if a is None:
            return TensorChange(name, "added", b=_shape(b))
        alike = (a.dtype, a.shape, a.fortran) == (b.dtype, b.shape, b.fortran)
        spans: list[tuple[int, int]] = []
        if alike and a.stop - a.start == b.stop - b.start:
            spans = self._equal_spans(a, b)
            if a.start == a.stop or spans == [(0, a.stop - a.start)]:
                self.not_read += 1
                return None
        kind = "retyped" if a.dtype != b.dtype else "reshaped" if a.shape != b.shape else "changed"
        change = TensorChange(name, kind, _shape(a), _shape(b))
        if a.elements != b.elements or (a.fortran != b.fortran and len(a.shape) > 1):
            return change
        width_a, width_b = item_bytes(a.dtype), item_bytes(b.dtype)
        if width_a is None or width_b is None:
            if alike and _all_equal(self._a, a, self._b, b):
                return None
            return change
        sums = self._sums(a, b, width_a, width_b, spans)
        if alike and not sums.changed:
            return None
        if kind == "retyped" and not sums.numeric:
            return change
        return sums.result(change, a.elements)

    def _equal_spans(self, a: Tensor, b: Tensor) -> list[tuple[int, int]]:
        if self._same_file:
            return [(0, a.stop - a.start)] if a.start == b.start else []
        if self._covers is None or (a.compressed, a.skip) != (b.compressed, b.skip):
            return []
        return equal_spans(*self._covers, (a.start, b.start), a.stop - a.start)

    def _sums(self, a: Tensor, b: Tensor, width_a: int, width_b: int, spans: list[tuple[int, int]]) -> _Sums:
        """Add up the blocks of two tensors with as many items."""
        items = max(1, _BLOCK_BYTES // max(width_a, width_b))
        total = _Sums()
        if a.compressed or b.compressed:
            for left, right in zip(
                _blocks(self._a, a, items * width_a), _blocks(self._b, b, items * width_b), strict=True
            ):
                total.add(_compare(left, a.dtype, right, b.dtype))
            return total
        equal = np.array(spans, np.int64).reshape(-1, 2)

        def read(source: Source, start: int, first: int, width: int) -> bytes:
            return source.read_at(start + first * width, min(items, a.elements - first) * width)

        def block(first: int) -> _Sums | None:
            """What a block adds; None where both sides are the same bytes, of which nothing else is known yet."""
            if alike and _inside(equal, first * width_a, min(first + items, a.elements) * width_a):
                return None
            left, right = read(self._a, a.start, first, width_a), read(self._b, b.start, first, width_b)
            return None if alike and left == right else _compare(left, a.dtype, right, b.dtype)

        def same_block(first: int) -> _Sums:
            left = read(self._a, a.start, first, width_a)
            return _compare(left, a.dtype, left, a.dtype)

        alike = a.dtype == b.dtype
        pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="dvk-tensors")
        try:
            same = []
            firsts = range(0, a.elements, items)
            for first, sums in zip(firsts, pool.map(block, firsts), strict=True):
                if sums is None:
                    same.append(first)
                else:
                    total.add(sums)
            if total.changed:  # only then does anybody ask for the norm and the NaNs of what did not change
                for sums in pool.map(same_block, same):
                    total.add(sums)
        finally:
            pool.shutdown(cancel_futures=True)
        return total


def _inside(spans: _I64, start: int, stop: int) -> bool:
    """Whether one of the ascending `spans` (int64[n, 2]) covers [start, stop)."""
    at = int(np.searchsorted(spans[:, 0], start, side="right")) - 1
    return at >= 0 and bool(spans[at, 1] >= stop)


def _blocks(source: Source, tensor: Tensor, step: int) -> Iterator[bytes]:
    """The items of a tensor in runs of `step` bytes."""
    if tensor.compressed:
        yield from unpacked_items(source, tensor, step)
        return
    for at in range(tensor.start, tensor.stop, step):
        yield source.read_at(at, min(step, tensor.stop - at))


def _all_equal(source_a: Source, a: Tensor, source_b: Source, b: Tensor) -> bool:
    """Whether the bytes of two tensors are the same, for types that have no whole bytes."""
    pairs = zip_longest(_blocks(source_a, a, _BLOCK_BYTES), _blocks(source_b, b, _BLOCK_BYTES))
    return all(left == right for left, right in pairs)


# ---------------------------------------------------------------- numbers


class _Sums(Struct):
    """What adds up over blocks."""

    changed: int = 0
    max_abs: float = 0.0
    square_diff: float = 0.0
    square_old: float = 0.0
    nan_a: int = 0
    nan_b: int = 0
    numeric: bool = True

    def add(self, other: _Sums) -> None:
        self.changed += other.changed
        self.max_abs = max(self.max_abs, other.max_abs)
        self.square_diff += other.square_diff
        self.square_old += other.square_old
        self.nan_a += other.nan_a
        self.nan_b += other.nan_b
        self.numeric = self.numeric and other.numeric

    def result(self, change: TensorChange, elements: int) -> TensorChange:
        if not self.numeric:
            return TensorChange(change.name, change.kind, change.a, change.b, elements, self.changed)
        if self.square_old:
            relative = math.sqrt(self.square_diff / self.square_old)
        else:
            relative = math.inf if self.square_diff else 0.0
        return TensorChange(
            change.name,
            change.kind,
            change.a,
            change.b,
            elements,
            self.changed,
            self.max_abs,
            relative,
            (self.nan_a, self.nan_b),
        )


def _compare(left: bytes, dtype_a: str, right: bytes, dtype_b: str) -> _Sums:
    """What a block of both sides adds."""
    raw_a, raw_b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
    with np.errstate(all="ignore"):  # signalling NaNs and overflows are what is being counted
        old = as_numbers(raw_a, dtype_a)
        if dtype_a == dtype_b:
            differs = np.zeros(0, np.bool_) if left == right else _unequal_items(raw_a, raw_b, item_bytes(dtype_a) or 1)
            if old is None:
                return _Sums(changed=int(np.count_nonzero(differs)), numeric=False)
            if not differs.any():
                nan = int(np.count_nonzero(np.isnan(old)))
                return _Sums(square_old=_square(old), nan_a=nan, nan_b=nan)
            new = as_numbers(raw_b, dtype_b)
            assert new is not None
        else:
            other = as_numbers(raw_b, dtype_b)
            if old is None or other is None:
                return _Sums(numeric=False)
            new = other
            differs = (old != new) & ~(np.isnan(old) & np.isnan(new))
        return _numbers(old, new, differs)


def _numbers(old: npt.NDArray[Any], new: npt.NDArray[Any], differs: npt.NDArray[np.bool_]) -> _Sums:
    nan_a, nan_b = np.isnan(old), np.isnan(new)
    rows = differs & ~nan_a & ~nan_b
    gap = np.abs(new[rows] - old[rows])  # an infinite number that changed its sign: infinite
    finite = gap[np.isfinite(gap)]
    return _Sums(
        changed=int(np.count_nonzero(differs)),
        max_abs=float(gap.max()) if len(gap) else 0.0,
        square_diff=float(finite @ finite),
        square_old=_square(old),
        nan_a=int(np.count_nonzero(nan_a)),
        nan_b=int(np.count_nonzero(nan_b)),
    )


def _square(values: npt.NDArray[Any]) -> float:
    """The sum of squares of the finite ones."""
    total = float(np.vdot(values, values).real)
    if math.isfinite(total):
        return total
    kept = values[np.isfinite(values)]
    return float(np.vdot(kept, kept).real)


def _unequal_items(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_]:
    """bool[n]: which items of `width` bytes differ."""
    if width in (1, 2, 4, 8):
        word = np.dtype(f"<u{width}")
        return np.asarray(a.view(word) != b.view(word))
    return np.asarray((a.reshape(-1, width) != b.reshape(-1, width)).any(axis=1))
