"""The fields of many JSON objects, one a line, found all at once.

    {"id": 7, "tags": ["a, b"]}          keys   "id"   "tags"
    {"id": 8}                            values  7     ["a, b"]         8        by place, nothing copied

A JSON parser makes Python objects, a microsecond each, and loses how a number was written. Here the same places are
computed with arrays: what lies inside strings is a prefix XOR of the quotes, how deep a bracket lies is a running sum,
and what is left at depth one are the colons, commas and braces that cut a line into fields. That these are all in order
is checked here; what lies between them is checked by whoever takes it as a value (`jsonl.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from dvk.store.names import I64, U8
from dvk.table.text.scan import LF, QUOTE, Flaw, inside_quotes

_BACKSLASH, _COMMA, _COLON, _OPEN, _CLOSE, _CASE = 92, 44, 58, 123, 125, 32
_END, _BEGIN, _NAMED, _NEXT, _DONE = range(5)  # a line end, {, :, comma, }
_SPACE = np.zeros(256, np.bool_)
_SPACE[[32, 9, 13]] = True
_FOLLOWS = np.zeros((5, 5), np.bool_)
_FOLLOWS[_END, _BEGIN] = _FOLLOWS[_BEGIN, _NAMED] = _FOLLOWS[_BEGIN, _DONE] = True
_FOLLOWS[_NAMED, _NEXT] = _FOLLOWS[_NAMED, _DONE] = _FOLLOWS[_NEXT, _NAMED] = _FOLLOWS[_DONE, _END] = True
_FEW = 4  # spaces in a row that are stepped over one by one

Bools = npt.NDArray[np.bool_]


class NotJson(Exception):
    """A place in the data that is no JSON object a line."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.why)
        self.flaw = flaw


class Fields(Struct, frozen=True):
    """Fields in the order of the data: `line` of each, from 0, of `lines`.

    `places`: int64[4 * n], ascending: key start and stop, value start and stop of each, white space left out.
    """

    lines: int
    line: I64
    places: I64

    def __len__(self) -> int:
        return len(self.line)


def find_fields(data: bytes) -> Fields:
    """The fields of all lines of `data`, which ends with a line end.

    Raises:
        NotJson: a line is empty, is no object, or its brackets and quotes do not fit together.
    """
    bytes_ = np.frombuffer(data, np.uint8)
    place, kind = _cuts(data, bytes_)
    before = np.concatenate([np.zeros(1, np.int8), kind[:-1]])
    start = np.concatenate([np.zeros(1, np.int64), place[:-1] + 1])
    wrong = np.flatnonzero(~_FOLLOWS[before, kind])
    if len(wrong):
        at = int(wrong[0])
        empty = before[at] == _END == kind[at] and not data[int(start[at]) : int(place[at])].strip()
        raise NotJson(Flaw(int(start[at]), "an empty line" if empty else "this is no JSON object"))
    start, stop = _strip(bytes_, start, place)
    # Nothing may stand around an object, nor in an empty one.
    bare = (before == _END) | (kind == _END) | ((before == _BEGIN) & (kind == _DONE))
    stray = np.flatnonzero(bare & (start < stop))
    if len(stray):
        raise NotJson(Flaw(int(start[stray[0]]), "text outside an object"))
    named = np.flatnonzero(kind == _NAMED)
    places = np.empty(4 * len(named), np.int64)
    places[0::4], places[1::4] = start[named], stop[named]
    places[2::4], places[3::4] = start[named + 1], stop[named + 1]
    line = np.cumsum(kind == _END)
    return Fields(int(line[-1]) if len(line) else 0, line[named], places)


def _cuts(data: bytes, bytes_: U8) -> tuple[I64, npt.NDArray[np.int8]]:
    """(places, kinds) of what cuts lines into fields: line ends, outer braces, and colons and commas right in these."""
    lower = bytes_ | np.uint8(_CASE)  # [ and { differ in this bit, as do ] and }
    mask = (lower == _OPEN) | (lower == _CLOSE) | (bytes_ == _COMMA) | (bytes_ == _COLON)
    if QUOTE in data:
        quotes = bytes_ == QUOTE
        if _BACKSLASH in data:
            quotes[_escaped(bytes_)] = False
        strings = inside_quotes(quotes)
        open_ = np.flatnonzero(strings & (bytes_ == LF))
        if len(open_):
            begin = data.rfind(b"\n", 0, int(open_[0])) + 1
            raise NotJson(Flaw(begin, "a string of this line is never closed"))
        mask &= ~strings
    mask |= bytes_ == LF
    place = np.flatnonzero(mask)
    byte = bytes_[place]
    folded = byte | np.uint8(_CASE)
    opens, closes, ends = folded == _OPEN, folded == _CLOSE, byte == LF
    depth = np.cumsum(opens.view(np.int8) - closes.view(np.int8), dtype=np.int32)
    unbalanced = np.flatnonzero((depth < 0) | (ends & (depth != 0)))
    if len(unbalanced):
        first = int(place[unbalanced[0]])
        raise NotJson(Flaw(data.rfind(b"\n", 0, first) + 1, "the brackets of this line do not match"))
    kind = np.full(len(place), -1, np.int8)
    separate = ~(opens | closes | ends) & (depth <= 1)
    kind[separate & (byte == _COMMA)] = _NEXT
    kind[separate & (byte == _COLON)] = _NAMED
    kind[ends] = _END
    top = opens & (depth == 1)
    kind[top] = _BEGIN
    bottom = closes & (depth == 0)
    kind[bottom] = _DONE
    if not ((byte[top] == _OPEN).all() and (byte[bottom] == _CLOSE).all()):
        bad = np.flatnonzero((top & (byte != _OPEN)) | (bottom & (byte != _CLOSE)))
        raise NotJson(Flaw(int(place[bad[0]]), "a line must be an object in braces, not a list"))
    keep = np.flatnonzero(kind >= 0)
    return place[keep], kind[keep]


def _escaped(bytes_: U8) -> I64:
    """Places of bytes behind an odd number of backslashes, those that are escaped themselves left out."""
    at = np.flatnonzero(bytes_ == _BACKSLASH)
    begins = np.concatenate([np.ones(1, np.bool_), np.diff(at) != 1])
    nth = np.arange(len(at)) - np.maximum.accumulate(np.where(begins, np.arange(len(at)), 0))
    escaped: I64 = at[nth % 2 == 0] + 1
    return escaped


def _strip(bytes_: U8, start: I64, stop: I64) -> tuple[I64, I64]:
    """The runs [start, stop) without white space at their ends."""
    start, stop = start.copy(), stop.copy()
    for _ in range(_FEW):
        spaces = (start < stop) & _SPACE[bytes_[np.minimum(start, len(bytes_) - 1)]]
        if not spaces.any():
            break
        start += spaces
    else:
        text = np.append(np.flatnonzero(~_SPACE[bytes_]), len(bytes_))
        start = np.minimum(text[np.searchsorted(text, start)], stop)
    for _ in range(_FEW):
        spaces = (start < stop) & _SPACE[bytes_[stop - 1]]
        if not spaces.any():
            break
        stop -= spaces
    else:
        text = np.append(-1, np.flatnonzero(~_SPACE[bytes_]))
        stop = np.maximum(text[np.searchsorted(text, stop) - 1] + 1, start)
    return start, stop
