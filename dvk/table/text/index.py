"""Where each record of a text begins, from facts about its chunks.

    chunk              0            1            2            3
    quotes             4            1            0            1
    state before       even         even         odd          odd        prefix sums of quotes
    record ends        9            7            0            3          `even` or `odd` ends, as the state says
    records before     0            9            16           16         prefix sums of record ends

So row 12 lies in chunk 1 or begins at the end of it, and one chunk is decoded to know where exactly. The facts are
of chunks, and two versions share chunks: the second version costs a scan of what it does not share.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import xxhash
from msgspec import Struct

from dvk.errors import TableError
from dvk.store.names import I64
from dvk.store.pages import Chunks
from dvk.table.cache import Cache
from dvk.table.parallel import ordered_map
from dvk.table.text.scan import U32, Facts, find_record_ends, scan
from dvk.table.text.spool import Text

BLOCK_BYTES = 256 << 10  #: blocks of a text without a recipe
RUN_BYTES = 4 << 20  #: what is scanned at once
MAX_RECORD_BYTES = 64 << 20


class Marks(Struct, frozen=True):
    """The bytes that decide where records end: `quote` (0: none) and `end` (LF or CR)."""

    quote: int
    end: int

    @property
    def spec(self) -> bytes:
        return bytes((self.quote, self.end))


class TextIndex:
    """Record boundaries of a text. Records are counted from 0, a header included.

    `starts`: int64[n + 1], offsets of the blocks; `odd`: bool[n], whether a quote is open before each; `before`:
    int64[n + 1], record ends before each; `first`: int64[n], the offset behind the first record end in each, or -1.
    """

    def __init__(self, text: Text, marks: Marks, lengths: I64, facts: Facts) -> None:
        self._text = text
        self.marks = marks
        self.starts = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=self.starts[1:])
        quotes = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(facts.quotes, out=quotes[1:])
        self.odd = (quotes[:-1] & 1).astype(bool)
        self.before = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(np.where(self.odd, facts.odd, facts.even), out=self.before[1:])
        self.first = self._place(facts.first_even, facts.first_odd)
        self._last = self._place(facts.last_even, facts.last_odd)
        self._lines = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(facts.even.astype(np.int64) + facts.odd, out=self._lines[1:])
        self.facts = facts
        self._pins: dict[int, int] = {}
        self.open_at_end = bool(quotes[-1] & 1)
        self.unfinished = self.size > text.skip and int(self._last.max(initial=-1)) != self.size

    def _place(self, even: U32, odd: U32) -> I64:
        """Offsets in the text of offsets in blocks, by the state before each; -1 for 0."""
        inside = np.where(self.odd, odd, even).astype(np.int64)
        return np.where(inside > 0, self.starts[:-1] + inside, -1)

    @property
    def size(self) -> int:
        return int(self.starts[-1])

    @property
    def records(self) -> int:
        """Records of the text; the last one need not end in a line end."""
        return int(self.before[-1]) + (self.unfinished or self.open_at_end)

    def pin(self, record: int, offset: int) -> None:
        """Note where a record begins, so that nothing is read to find it."""
        self._pins[record] = offset

    def offsets(self, records: I64) -> I64:
        """Where these records begin (ascending; `self.records` is where the last one ends)."""
        if not self._pins:
            return self._offsets(records)
        pinned = np.array([self._pins.get(record, -1) for record in records.tolist()], np.int64)
        out = np.where(pinned < 0, self.size, pinned)
        free = np.flatnonzero(pinned < 0)
        out[free] = self._offsets(records[free])
        return out

    def _offsets(self, records: I64) -> I64:
        out = np.full(len(records), self.size, np.int64)
        out[records == 0] = self._text.skip
        inner = np.flatnonzero((records > 0) & (records <= self.before[-1]))
        wanted = records[inner]
        # Record k begins behind record end k; block b holds the record ends before[b] + 1 .. before[b + 1].
        blocks = np.searchsorted(self.before, wanted, side="left") - 1
        nth = wanted - self.before[blocks] - 1
        ends_block = wanted == self.before[blocks + 1]
        out[inner] = np.where(ends_block, self._last[blocks], self.first[blocks])
        rest = np.flatnonzero((nth > 0) & ~ends_block)
        for part in np.split(rest, np.flatnonzero(np.diff(blocks[rest])) + 1):
            if len(part):
                out[inner[part]] = self._ends_in(int(blocks[part[0]]), nth[part])
        return out

    def _ends_in(self, block: int, nth: I64) -> I64:
        """Offsets behind the record ends of these numbers in a block."""
        start, stop = int(self.starts[block]), int(self.starts[block + 1])
        data, marks = self._text.read_at(start, stop - start), self.marks
        return start + find_record_ends(data, nth, quote=marks.quote, end=marks.end, odd=bool(self.odd[block]))

    def near(self, records: I64, *, span_bytes: int) -> Iterator[I64]:
        """Cut records (ascending) into runs that begin within about `span_bytes` of each other."""
        blocks = np.searchsorted(self.before, records, side="left") - 1
        window = self.starts[np.maximum(blocks, 0)] // span_bytes
        yield from np.split(records, np.flatnonzero(np.diff(window)) + 1)

    def units(self, first: int, records: int, *, unit_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut a run of records into (first record, records, offset, stop) of about `unit_bytes`.

        Raises:
            TableError: a record is larger than 64 MiB.
        """
        if not records:
            return
        ends = self.offsets(np.array([first, first + records], np.int64))
        # Candidates: the first record that begins in each block that lies inside.
        low, high = np.searchsorted(self.before, [first, first + records], side="right")
        low, high = max(int(low) - 1, 0), min(int(high), len(self.first))
        has = np.flatnonzero(self.first[low:high] >= 0) + low
        number, offset = self.before[has] + 1, self.first[has]
        inside = (number > first) & (number < first + records)
        number = np.concatenate([[first], number[inside], [first + records]])
        offset = np.concatenate([ends[:1], offset[inside], ends[1:]])
        at = 0
        while at < len(offset) - 1:
            stop = int(np.searchsorted(offset, offset[at] + unit_bytes, side="right")) - 1
            stop = min(max(stop, at + 1), len(offset) - 1)
            if offset[stop] - offset[at] > MAX_RECORD_BYTES:
                self._too_long(int(offset[at]))
            yield int(number[at]), int(number[stop] - number[at]), int(offset[at]), int(offset[stop])
            at = stop

    def _too_long(self, offset: int) -> None:
        raise TableError(
            f"a record near line {self.line(offset)} (byte {offset}) is longer than {MAX_RECORD_BYTES >> 20} MiB",
            subject=self._text.label,
            hint="a quote there may never be closed; `--quote-char ''` reads quotes as plain characters",
        )

    def line(self, offset: int) -> int:
        """The number of the line, from 1, that holds the byte at `offset`; lines inside quotes count."""
        block = int(np.searchsorted(self.starts, offset, side="right")) - 1
        block = min(max(block, 0), len(self.first) - 1)
        start = int(self.starts[block])
        inside = (
            self._text.read_at(start, min(offset, self.size) - start).count(self.marks.end) if len(self.first) else 0
        )
        return int(self._lines[block]) + inside + 1


# ---------------------------------------------------------------- building


def build_index(
    text: Text,
    marks: Marks,
    recipe: Chunks | None,
    *,
    file_id: bytes | None,
    cache: Cache | None,
    like: TextIndexed | None,
) -> TextIndexed:
    """The index of a text: facts from the cache, else of chunks shared with `like`, else from a scan.

    `recipe`: the chunks of the text, which become the blocks of the index; `file_id`: under which the cache knows them.
    """
    if recipe is None:
        lengths = np.full(-(-text.size // BLOCK_BYTES), BLOCK_BYTES, np.int64)
        if len(lengths):
            lengths[-1] = text.size - BLOCK_BYTES * (len(lengths) - 1)
        every = np.arange(len(lengths))
        return TextIndexed(TextIndex(text, marks, lengths, _scan(text, marks, lengths, every)), None)
    lengths = recipe.lengths.astype(np.int64)
    spec = _spec(recipe, marks)
    if cache is not None and file_id is not None and (kept := _parse(cache.get(file_id, spec), lengths)) is not None:
        return TextIndexed(TextIndex(text, marks, lengths, kept), recipe)
    known = np.full(len(lengths), -1, np.int64)
    if like is not None and like.recipe is not None and like.index.marks == marks:
        known = find_shared(like.recipe, recipe)
    missing = np.flatnonzero(known < 0)
    scanned = _scan(text, marks, lengths, missing)
    facts = Facts(*(np.zeros(len(lengths), np.uint32) for _ in scanned.arrays))
    shared = np.flatnonzero(known >= 0)
    for column, new in zip(facts.arrays, scanned.arrays, strict=True):
        column[missing] = new
    if like is not None:
        for column, old in zip(facts.arrays, like.index.facts.take(known[shared]).arrays, strict=True):
            column[shared] = old
    if cache is not None and file_id is not None:
        cache.put(file_id, spec, b"".join(column.astype("<u4").tobytes() for column in facts.arrays))
    return TextIndexed(TextIndex(text, marks, lengths, facts), recipe)


class TextIndexed(Struct, frozen=True):
    """An index with the recipe whose chunks are its blocks; None: plain blocks."""

    index: TextIndex
    recipe: Chunks | None


def find_shared(old: Chunks, new: Chunks) -> I64:
    """For each chunk of `new`: the position of a chunk of `old` with the same id and length, or -1."""
    out = np.full(len(new), -1, np.int64)
    if not len(old) or not len(new):
        return out
    order = np.argsort(chunk_names(old), kind="stable")
    names = chunk_names(old)[order]
    at = np.minimum(np.searchsorted(names, chunk_names(new)), len(names) - 1)
    same = (names[at] == chunk_names(new)) & (old.lengths[order[at]] == new.lengths)
    out[same] = order[at[same]]
    return out


def chunk_names(chunks: Chunks) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """The ids as one array that can be sorted and searched."""
    return np.ascontiguousarray(chunks.ids).view("S32").reshape(-1)


def _spec(recipe: Chunks, marks: Marks) -> bytes:
    cuts = xxhash.xxh3_128(recipe.ids.tobytes())
    cuts.update(recipe.lengths.astype("<u4").tobytes())
    return b"text-facts/1\0" + marks.spec + cuts.digest()


def _parse(body: bytes | None, lengths: I64) -> Facts | None:
    """Facts from the cache, if they can be of chunks with these lengths."""
    if body is None or len(body) != 28 * len(lengths):
        return None
    facts = Facts(*np.frombuffer(body, "<u4").reshape(7, -1).astype(np.uint32))
    if (facts.quotes + facts.even.astype(np.int64) + facts.odd > lengths).any():
        return None
    for count, first, last in (
        (facts.even, facts.first_even, facts.last_even),
        (facts.odd, facts.first_odd, facts.last_odd),
    ):
        if ((count > 0) != (first > 0)).any() or ((count > 0) & (first.astype(np.int64) + count - 1 > last)).any():
            return None
        if (last > lengths).any() or ((count == 0) & (last > 0)).any() or ((count == 1) & (last != first)).any():
            return None
    return facts


def _scan(text: Text, marks: Marks, lengths: I64, blocks: I64) -> Facts:
    """Facts about some blocks (ascending) of a text, on all cores."""
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Facts.join(list(ordered_map(partial(_scan_run, text, marks, starts), _runs(lengths, blocks))))


def _runs(lengths: I64, blocks: I64) -> Iterator[tuple[int, int]]:
    """Cut ascending block numbers into runs [low, high) of neighbours, of about RUN_BYTES."""
    for part in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1):
        if not len(part):
            continue
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[part])])
        at = 0
        while at < len(part):
            stop = max(int(np.searchsorted(sums, sums[at] + RUN_BYTES, side="right")) - 1, at + 1)
            yield int(part[at]), int(part[at]) + stop - at
            at = stop


def _scan_run(text: Text, marks: Marks, starts: I64, run: tuple[int, int]) -> Facts:
    low, high = run
    start, stop = int(starts[low]), int(starts[high])
    return scan(text.read_at(start, stop - start), starts[low : high + 1] - start, quote=marks.quote, end=marks.end)
