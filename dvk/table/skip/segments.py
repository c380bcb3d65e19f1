"""A table as a list of segments: runs of rows cut where the rows themselves say so, each with a digest of its values.

Inserting a row into a Parquet file shifts all rows behind it, and no byte of it is what it was. The segments are: those
before and behind the inserted row hold the same rows, so they have the same digests, and only one is new.

    builder = SegmentBuilder()
    for first, batch in table.batches(range(len(table.columns))):
        builder.add(first, batch.columns)
    segments = builder.finish()             # about one for each 1,300 rows

Choice: two hashes. A cheap one of each row, vectorised over its fixed-width values and the ends of its texts, only
decides where a segment ends; were it bad, segments would be long, never wrong. A cryptographic one of the whole content
of a segment decides what is equal. docs/format/table-cache.md is the truth about both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3
from msgspec import Struct

from dvk.store.names import I64, U8
from dvk.table.contract import Region

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

SPEC = b"segments/1"
DIGEST_BYTES = 16
MIN_ROWS = 256
MAX_ROWS = 8192
_CUT_MASK = np.uint64(1023)  # so that a segment has about 1,280 rows
_CUT_COLUMNS = 16

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_NULL = np.uint64(0xA5A5A5A5A5A5A5A5)


class Segments(Struct, frozen=True):
    """n runs of rows, ascending and disjoint: `starts` int64[n], `rows` uint32[n], `digests` uint8[n, 16].

    They need not cover a table: what an earlier diff did not have to read has none.
    """

    starts: I64
    rows: U32
    digests: U8

    @property
    def total_rows(self) -> int:
        return int(self.rows.sum(dtype=np.uint64))

    def inside(self, regions: Sequence[Region]) -> Segments:
        """Those that lie in one of `regions` (ascending) as a whole."""
        firsts = np.array([r.first for r in regions], np.int64)
        ends = np.array([r.first + r.rows for r in regions], np.int64)
        at = np.searchsorted(firsts, self.starts, side="right") - 1
        fits = at >= 0
        fits[fits] = (self.starts + self.rows)[fits] <= ends[at[fits]]
        return Segments(self.starts[fits], self.rows[fits], self.digests[fits])

    def to_bytes(self) -> bytes:
        """For a cache."""
        columns = (self.starts.astype("<u8"), self.rows.astype("<u4"), np.ascontiguousarray(self.digests))
        return b"".join(c.tobytes() for c in columns)

    @classmethod
    def from_bytes(cls, data: bytes, *, rows: int) -> Segments | None:
        """What `to_bytes` gave; None if it is not that, or not of a table of `rows` rows."""
        n, rest = divmod(len(data), 12 + DIGEST_BYTES)
        if rest:
            return None
        starts = np.frombuffer(data, "<i8", n)
        counts = np.frombuffer(data, "<u4", n, 8 * n)
        if n:
            ends = np.concatenate([[0], starts + counts])  # of none before the first, then of each
            good = counts.min() >= 1 and counts.max() <= MAX_ROWS and bool((starts >= ends[:-1]).all())
            if not good or int(ends[-1]) > rows:
                return None
        return cls(starts, counts, np.frombuffer(data, np.uint8, offset=12 * n).reshape(n, DIGEST_BYTES))


def spec_of(types: Sequence[pa.DataType]) -> bytes | None:
    """The name of the facts about a table of these (plain) types for a cache; None where a type is not supported."""
    if not types or not all(_is_supported(t) for t in types):
        return None
    return SPEC + b"\0" + blake3("\n".join(map(str, types)).encode()).digest(16)


class SegmentBuilder:
    """Cuts rows into segments as they come by, of plain types that `spec_of` supports. Holds one segment."""

    def __init__(self) -> None:
        self._held: list[list[pa.Array]] = []  # rows behind the last cut: for each batch its columns
        self._held_rows = 0
        self._next = 0  # the row that continues what is held
        self._starts: list[int] = []
        self._rows: list[int] = []
        self._digests: list[bytes] = []

    def add(self, first: int, columns: Sequence[pa.Array]) -> None:
        """Rows from number `first` on: an array for each column. Where rows are left out, a segment ends."""
        if first != self._next:
            self._flush()
        count = len(columns[0])
        cuts = self._cuts(columns, count)
        start = 0
        if cuts and self._held:
            start = cuts.pop(0)
            self._hold(columns, 0, start)
            self._next = first + start
            self._flush()
        if cuts:
            self._digest(first, columns, [start, *cuts])
            start = cuts[-1]
        if start < count:
            self._hold(columns, start, count)
        self._next = first + count

    def finish(self) -> Segments:
        """The segments of all rows that came by."""
        self._flush()
        digests = np.frombuffer(b"".join(self._digests), np.uint8).reshape(-1, DIGEST_BYTES)
        return Segments(np.array(self._starts, np.int64), np.array(self._rows, np.uint32), digests)

    def _flush(self) -> None:
        if self._held:
            joined = [pa.concat_arrays(parts) for parts in zip(*self._held, strict=True)]
            self._digest(self._next - self._held_rows, joined, [0, self._held_rows])
            self._held, self._held_rows = [], 0

    def _hold(self, columns: Sequence[pa.Array], start: int, stop: int) -> None:
        self._held.append([c.slice(start, stop - start) for c in columns])
        self._held_rows += stop - start

    def _cuts(self, columns: Sequence[pa.Array], count: int) -> list[int]:
        """Where segments end in these rows, exclusive."""
        candidates = np.flatnonzero((row_hashes(columns) & _CUT_MASK) == 0) + 1
        cuts: list[int] = []
        begun = -self._held_rows
        while True:
            i = int(np.searchsorted(candidates, begun + MIN_ROWS))
            stop = min(int(candidates[i]) if i < len(candidates) else count + 1, begun + MAX_ROWS)
            if stop > count:
                return cuts
            cuts.append(stop)
            begun = stop

    def _digest(self, first: int, columns: Sequence[pa.Array], cuts: Sequence[int]) -> None:
        """Add the segments [cuts[i], cuts[i + 1]); row 0 here is row `first` of the table."""
        at = np.array(cuts, np.int64)
        streams = [s for array in columns for s in _streams(array, at)]
        for i in range(len(cuts) - 1):
            rows = cuts[i + 1] - cuts[i]
            # Joined first, since the hash is four times as fast on 100 KB as on twenty times 5 KB.
            content = [rows.to_bytes(4, "little"), *(data[places[i] : places[i + 1]] for data, places in streams)]
            self._starts.append(first + cuts[i])
            self._rows.append(rows)
            self._digests.append(blake3(b"".join(content)).digest(DIGEST_BYTES))


# ---------------------------------------------------------------- content

_Stream = tuple[Any, list[int]]  # bytes, and where each cut lies in them


def _streams(array: pa.Array, cuts: I64) -> Iterator[_Stream]:
    """The content of an array as byte streams, each with the places of `cuts` (row numbers in the array).

    What lies between two cuts in all streams together says exactly which values these rows have: the number of rows
    fixes the length of the first stream, and each stream that of the next.
    """
    kind, t = array.type, pa.types
    valid = _validity(array)
    yield _null_stream(valid, cuts)
    if t.is_null(kind):
        return
    if t.is_struct(kind):
        for i in range(kind.num_fields):
            yield from _streams(array.field(i), cuts)  # what lies below a null only makes segments differ
    elif t.is_fixed_size_list(kind):
        size = kind.list_size
        child = array.values.slice(array.offset * size, len(array) * size)
        yield from _streams(child, cuts * size)
    elif _is_var(kind):
        offsets = _offsets(array)
        lengths = np.diff(offsets).astype("<i4")
        yield _view(lengths), (cuts * 4).tolist()
        places = offsets[cuts].astype(np.int64)
        first, last = int(places[0]), int(places[-1])
        if t.is_list(kind) or t.is_map(kind):
            if t.is_map(kind):
                yield from _streams(array.keys.slice(first, last - first), places - first)
                yield from _streams(array.items.slice(first, last - first), places - first)
            else:
                yield from _streams(array.values.slice(first, last - first), places - first)
        else:
            data = array.buffers()[2]
            view = memoryview(data)[first:last] if data is not None else memoryview(b"")
            yield view, (places - first).tolist()
    else:
        values = _fixed(array, valid)
        yield _view(values), (cuts * values.shape[1]).tolist()


def _null_stream(valid: npt.NDArray[np.bool_] | None, cuts: I64) -> _Stream:
    """A byte for each pair of cuts, 1 where there is a null between them, and then a byte for each row there."""
    spans = np.diff(cuts)
    if valid is None:
        return memoryview(bytes(len(spans))), list(range(len(cuts)))
    parts, places = [], [0]
    for low, high in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        part = valid[low:high]
        parts.append(b"\0" if part.all() else b"\1" + part.tobytes())
        places.append(places[-1] + len(parts[-1]))
    return memoryview(b"".join(parts)), places


def _validity(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    if not array.null_count or pa.types.is_null(array.type):
        return None
    found: npt.NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return found


def _fixed(array: pa.Array, valid: npt.NDArray[np.bool_] | None) -> U8:
    """uint8[n, width]: values of fixed width; zero where they are null, since what lies there means nothing."""
    n = len(array)
    data = array.buffers()[1]
    if pa.types.is_boolean(array.type):
        bits = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        low = array.offset // 8
        raw = np.unpackbits(bits[low : (array.offset + n + 7) // 8], bitorder="little")
        out = raw[array.offset - 8 * low :][:n].reshape(n, 1)
    else:
        width = array.type.bit_width // 8
        flat = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        out = flat[array.offset * width : (array.offset + n) * width].reshape(n, width)
    if valid is not None:
        out = np.where(valid[:, None], out, np.uint8(0))
    return out


def _offsets(array: pa.Array) -> npt.NDArray[np.int32]:
    """int32[n + 1] of a list, a map, text or bytes."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(len(array) + 1, np.int32)
    return np.frombuffer(data, "<i4", len(array) + 1, array.offset * 4)


def _view(values: npt.NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _is_var(kind: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_string(kind) or t.is_binary(kind) or t.is_list(kind) or t.is_map(kind))


def _is_supported(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_struct(kind) or t.is_list(kind) or t.is_map(kind) or t.is_fixed_size_list(kind):
        return kind.num_fields > 0 and all(_is_supported(kind.field(i).type) for i in range(kind.num_fields))
    if t.is_string(kind) or t.is_binary(kind) or t.is_null(kind) or t.is_boolean(kind):
        return True
    if t.is_nested(kind) or t.is_dictionary(kind):
        return False
    try:
        return int(kind.bit_width) % 8 == 0 and int(kind.bit_width) > 0
    except ValueError:
        return False


# ---------------------------------------------------------------- cutting


def row_hashes(columns: Sequence[pa.Array]) -> U64:
    """uint64[n]: a cheap hash of each row, of its first columns; only good for deciding where to cut."""
    n = len(columns[0])
    out = np.zeros(n, np.uint64)
    for array in columns[:_CUT_COLUMNS]:
        out ^= _words(array)
        out *= _ODD
        out ^= out >> _HALF
    out *= _MIX
    out ^= out >> _HALF
    return out


def _words(array: pa.Array) -> U64:
    """uint64[n]: something of each value."""
    kind, t, n = array.type, pa.types, len(array)
    valid = _validity(array)
    if t.is_null(kind) or t.is_struct(kind) or t.is_fixed_size_list(kind):
        out = np.zeros(n, np.uint64)
    elif _is_var(kind):
        offsets = _offsets(array)
        lengths = np.diff(offsets).astype(np.uint64)
        out = lengths * _MIX
        if (t.is_string(kind) or t.is_binary(kind)) and array.buffers()[2] is not None:
            out ^= _last_words(array.buffers()[2], offsets, lengths)
    else:
        out = _fixed_words(_fixed(array, valid))
    if valid is not None:
        out = np.where(valid, out, _NULL)
    return out


def _fixed_words(values: U8) -> U64:
    n, width = values.shape
    if width in (1, 2, 4, 8):
        return np.ascontiguousarray(values).view(f"<u{width}").reshape(n).astype(np.uint64)
    padded = np.zeros((n, -(-width // 8) * 8), np.uint8)
    padded[:, :width] = values
    words = padded.view("<u8")
    out = words[:, 0].copy()
    for i in range(1, words.shape[1]):
        out *= _ODD
        out ^= words[:, i]
    return out


def _last_words(data: pa.Buffer, offsets: npt.NDArray[np.int32], lengths: U64) -> U64:
    """The last eight bytes of each text as a number; of shorter ones all."""
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(8 + last - first, np.uint8)
    padded[8:] = np.frombuffer(data, np.uint8, last - first, first)
    # Every eight bytes in a row as a number, wherever they begin.
    words = np.ndarray((last - first + 1,), "<u8", padded, 0, (1,))
    found: U64 = words[offsets[1:] - first]
    missing = np.where(lengths < 8, (8 - np.minimum(lengths, 8)) * 8, 0).astype(np.uint64)
    return np.where(lengths > 0, found >> np.minimum(missing, np.uint64(63)), np.uint64(0))
