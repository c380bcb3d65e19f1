"""Paged lists: the one Merkle structure. docs/format/pages.md is the truth, this module is its code.

A folder of a million files and a file of a million chunks are the same thing: an ordered list, cut into pages where
the entries themselves say so. Two versions share every page but those around a change, so that a push, a diff or a
status looks at unequal pages only. Entries stay columns of numbers from end to end.

>>> data = format_page(ListKind.RECIPE, 0, Chunks(np.zeros((2, 32), np.uint8), np.array([5, 6], np.uint32)))
>>> read_recipe(page_id(ListKind.RECIPE, data), lambda _: data).lengths.tolist()
[5, 6]

Where pages end, and how lists are written: `dvk.store.pagewriter`.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec import Struct

from dvk.errors import Corrupt, NewerFormat
from dvk.ids import ID_BYTES, PageId
from dvk.store.listing import Entries, Kind
from dvk.store.names import I64, U8, Names, show
from dvk.store.paths import check_link, check_names

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

MAX_PAGE_BYTES = 1 << 20
FULL_PAGE_BYTES = 786_432  # an entry takes at most 8,235 bytes, so no page reaches MAX_PAGE_BYTES
MIN_ENTRIES = 1024
MAX_ENTRIES = 6144
MAX_LEVEL = 8

PAGE_HEADER = struct.Struct("<4sBBBBIIQQQ")
_MAGIC = b"dvkP"

_SLASH = ord("/")

Load = Callable[[PageId], bytes]  #: the bytes of a page; raises DataMissing. Verified by the caller.
Emit = Callable[[PageId, bytes], None]  #: takes a finished page


class ListKind(IntEnum):
    """Which list a page belongs to."""

    LISTING = 1
    RECIPE = 2

    @property
    def context(self) -> str:
        return "dvk v1 listing page" if self is ListKind.LISTING else "dvk v1 recipe page"


def page_id(kind: ListKind, data: bytes | memoryview) -> PageId:
    """The id of a page."""
    return PageId(blake3(data, derive_key_context=kind.context).digest())


class PageRef(Struct, frozen=True):
    """What a parent says of a page."""

    id: PageId
    entries: int
    files: int
    total_bytes: int
    first: bytes  #: listing: the first path below; recipe: empty


class Chunks(Struct, frozen=True):
    """Entries of a recipe: ids uint8[n, 32], lengths uint32[n]."""

    ids: U8
    lengths: U32

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def total_bytes(self) -> int:
        return int(self.lengths.sum(dtype=np.uint64))

    def slice(self, start: int, stop: int) -> Chunks:
        return Chunks(self.ids[start:stop], self.lengths[start:stop])

    @classmethod
    def join(cls, parts: Sequence[Chunks]) -> Chunks:
        if not parts:
            return cls(np.zeros((0, ID_BYTES), np.uint8), np.zeros(0, np.uint32))
        return cls(np.concatenate([p.ids for p in parts]), np.concatenate([p.lengths for p in parts]))


class Children(Struct, frozen=True):
    """Entries of a page above the leaves."""

    refs: tuple[PageRef, ...]

    def __len__(self) -> int:
        return len(self.refs)

    def slice(self, start: int, stop: int) -> Children:
        return Children(self.refs[start:stop])

    @classmethod
    def join(cls, parts: Sequence[Children]) -> Children:
        return cls(tuple(r for p in parts for r in p.refs))


Body = Entries | Chunks | Children


class Page(Struct, frozen=True):
    """A page, read and checked."""

    kind: ListKind
    level: int
    entries: int
    files: int
    total_bytes: int
    body: Body


# ---------------------------------------------------------------- bytes


def format_page(kind: ListKind, level: int, body: Body) -> bytes:
    """The bytes of a page."""
    if isinstance(body, Entries):
        columns = [
            body.kinds.astype(np.uint8).tobytes(),
            body.names.lengths.astype("<u2").tobytes(),
            body.sizes.astype("<u8").tobytes(),
            body.ids.tobytes(),
            _blob(body.names),
            _blob(body.targets),
        ]
        totals = (len(body), body.files, body.total_bytes)
    elif isinstance(body, Chunks):
        columns = [body.lengths.astype("<u4").tobytes(), np.ascontiguousarray(body.ids).tobytes()]
        totals = (len(body), 0, body.total_bytes)
    else:
        refs = body.refs
        columns = [
            b"".join(r.id for r in refs),
            struct.pack(f"<{len(refs)}Q", *(r.entries for r in refs)),
            struct.pack(f"<{len(refs)}Q", *(r.total_bytes for r in refs)),
        ]
        if kind is ListKind.LISTING:
            columns.insert(2, struct.pack(f"<{len(refs)}Q", *(r.files for r in refs)))
            columns.append(struct.pack(f"<{len(refs)}H", *(len(r.first) for r in refs)))
            columns.append(b"".join(r.first for r in refs))
        totals = (sum(r.entries for r in refs), sum(r.files for r in refs), sum(r.total_bytes for r in refs))
    length = PAGE_HEADER.size + sum(map(len, columns))
    return PAGE_HEADER.pack(_MAGIC, 1, kind, level, 0, length, len(body), *totals) + b"".join(columns)


def _blob(names: Names) -> bytes:
    return names.blob[int(names.offsets[0]) : int(names.offsets[-1])].tobytes()


def page_length(data: memoryview, *, subject: str) -> int:
    """The length that the page at the start of `data` states, checked against what is there."""
    if len(data) < PAGE_HEADER.size or bytes(data[:4]) != _MAGIC:
        raise Corrupt("no page starts here", subject=subject)
    length = int.from_bytes(data[8:12], "little")
    if not PAGE_HEADER.size <= length <= min(MAX_PAGE_BYTES, len(data)):
        raise Corrupt("a page states an impossible length", subject=subject)
    return length


def parse_page(data: bytes | memoryview, kind: ListKind, *, subject: str) -> Page:
    """Read a page; everything that the format promises is checked.

    Raises:
        NewerFormat: another version. Corrupt: anything that a page of this version cannot be.
    """
    if len(data) < PAGE_HEADER.size:
        raise Corrupt("a page is cut short", subject=subject)
    magic, version, kind_, level, reserved, length, n, entries, files, total = PAGE_HEADER.unpack_from(data)
    if magic != _MAGIC or kind_ != kind:
        raise Corrupt(f"this is no {kind.name.lower()} page", subject=subject)
    if version != 1 or reserved or level > MAX_LEVEL:
        raise NewerFormat("this page was written by a newer dvk", subject=subject, hint="upgrade dvk")
    if length != len(data) or length > MAX_PAGE_BYTES:
        raise Corrupt("a page has not the length it states", subject=subject)
    columns = _Columns(bytes(data), PAGE_HEADER.size, subject)
    body: Body
    if level:
        body = _parse_children(columns, kind, n)
        sums = (
            sum(r.entries for r in body.refs),
            sum(r.files for r in body.refs),
            sum(r.total_bytes for r in body.refs),
        )
    elif kind is ListKind.LISTING:
        body = _parse_entries(columns, n)
        sums = (n, body.files, body.total_bytes)
    else:
        chunks = Chunks(lengths=columns.u32(n), ids=columns.ids(n))
        if n and not 1 <= int(chunks.lengths.min()) <= int(chunks.lengths.max()) <= 1 << 20:
            raise Corrupt("a recipe page states an impossible chunk", subject=subject)
        body, sums = chunks, (n, 0, chunks.total_bytes)
    columns.end()
    if sums != (entries, files, total):
        raise Corrupt("the totals of a page do not add up", subject=subject)
    return Page(kind, level, entries, files, total, body)


class _Columns:
    """Takes columns off a buffer; each count is checked before anything is made of it."""

    def __init__(self, data: bytes, at: int, subject: str) -> None:
        self.data, self.at, self.subject = data, at, subject

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise Corrupt("a page states more than it holds", subject=self.subject)
        out = self.data[self.at : self.at + size]
        self.at += size
        return out

    def u32(self, n: int) -> U32:
        return np.frombuffer(self.take(4 * n), "<u4")

    def u64(self, n: int) -> U64:
        return np.frombuffer(self.take(8 * n), "<u8")

    def ids(self, n: int) -> U8:
        return np.frombuffer(self.take(ID_BYTES * n), np.uint8).reshape(n, ID_BYTES)

    def names(self, lengths: I64) -> Names:
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return Names(np.frombuffer(self.take(int(offsets[-1])), np.uint8), offsets)

    def end(self) -> None:
        if self.at != len(self.data):
            raise Corrupt("a page holds more than it states", subject=self.subject)


def _parse_children(columns: _Columns, kind: ListKind, n: int) -> Children:
    if n < 1:
        raise Corrupt("a page above the leaves has no children", subject=columns.subject)
    ids, entries = columns.take(ID_BYTES * n), columns.u64(n).tolist()
    files = columns.u64(n).tolist() if kind is ListKind.LISTING else [0] * n
    totals = columns.u64(n).tolist()
    firsts: list[bytes] = [b""] * n
    if kind is ListKind.LISTING:
        lengths = np.frombuffer(columns.take(2 * n), "<u2").astype(np.int64)
        firsts = list(columns.names(lengths))
        if not firsts[0] or any(a >= b for a, b in itertools.pairwise(firsts)):
            raise Corrupt("the children of a page are not in order", subject=columns.subject)
    if min(entries) < 1:  # only the page of an empty list is empty, and that has no parent
        raise Corrupt("a page has an empty child", subject=columns.subject)
    return Children(
        tuple(PageRef(PageId(ids[32 * i : 32 * i + 32]), entries[i], files[i], totals[i], firsts[i]) for i in range(n))
    )


def _parse_entries(columns: _Columns, n: int) -> Entries:
    subject = columns.subject
    kinds = np.frombuffer(columns.take(n), np.uint8)
    lengths = np.frombuffer(columns.take(2 * n), "<u2").astype(np.int64)
    sizes = columns.u64(n)
    if n and int(sizes.max()) >= 1 << 62:
        raise Corrupt("an entry states an impossible size", subject=subject)
    ids = columns.ids(n)
    names = columns.names(lengths)
    links, empties = kinds == Kind.LINK, kinds == Kind.EMPTYDIR
    if np.any(sizes[links] > 4096):
        raise Corrupt("a link with an impossible target", subject=subject)
    targets = columns.names(sizes[links].astype(np.int64))
    columns.end()
    if n and not 1 <= int(kinds.min()) <= int(kinds.max()) <= 4:
        raise NewerFormat("an entry of unknown kind", subject=subject, hint="upgrade dvk")
    if np.any(sizes[empties]) or np.any(ids[links | empties]):
        raise Corrupt("an entry without content states some", subject=subject)
    check_names(names, subject=subject)
    for i, target in zip(np.flatnonzero(links).tolist(), targets, strict=True):
        check_link(names[i], target, subject=subject)
    return Entries(names, kinds, sizes.astype(np.int64), ids, targets)


# ---------------------------------------------------------------- reading


def load_page(kind: ListKind, ref_id: PageId, load: Load) -> Page:
    """Fetch a page, prove its id and read it."""
    data = load(ref_id)
    subject = f"{kind.name.lower()} page {ref_id.hex()[:12]}"
    if page_id(kind, data) != ref_id:
        raise Corrupt("a page fails its hash", subject=subject)
    return parse_page(data, kind, subject=subject)


def leaf_refs(kind: ListKind, root: PageId, load: Load, *, total_bytes: int | None = None) -> Iterator[PageRef]:
    """References to all leaves in order, loading only the pages above them.

    The root's own totals are learned by loading it. Each page must hold what its parent stated, and the root
    `total_bytes`, where that is known: a list that claims terabytes is not gone through for a file of kilobytes.
    """

    def below(ref: PageRef, page: Page) -> Iterator[PageRef]:
        if page.level == 0:
            yield ref
            return
        assert isinstance(page.body, Children)
        if page.level == 1:
            yield from page.body.refs
            return
        for child in page.body.refs:
            got = load_page(kind, child.id, load)
            _agree(child, got, page.level - 1)
            yield from below(child, got)

    top = load_page(kind, root, load)
    if total_bytes is not None and top.total_bytes != total_bytes:
        raise Corrupt("a list is not of the length it should have", subject=f"page {root.hex()[:12]}")
    last = b""
    for ref in below(PageRef(root, top.entries, top.files, top.total_bytes, _first(top.body)), top):
        if kind is ListKind.LISTING and ref.first <= last and last:
            raise Corrupt("the pages of a folder are not in order", subject=f"folder {root.hex()[:12]}")
        last = ref.first
        yield ref


def _first(body: Body) -> bytes:
    """The first path on a page of a listing; empty for a recipe."""
    if isinstance(body, Entries):
        return body.names[0] if len(body) else b""
    return body.refs[0].first if isinstance(body, Children) else b""


def _agree(ref: PageRef, page: Page, level: int) -> None:
    subject = f"page {ref.id.hex()[:12]}"
    stated = (level, ref.entries, ref.files, ref.total_bytes)
    if (page.level, page.entries, page.files, page.total_bytes) != stated:
        raise Corrupt("a page is not what its parent says", subject=subject)
    if _first(page.body) != ref.first:
        raise Corrupt("a page does not start where its parent says", subject=subject)


def load_leaf(kind: ListKind, ref: PageRef, load: Load) -> Entries | Chunks:
    """The entries of one leaf, checked against its reference."""
    page = load_page(kind, ref.id, load)
    _agree(ref, page, 0)
    assert not isinstance(page.body, Children)
    return page.body


def leaves_under(refs: Sequence[PageRef], prefix: bytes) -> list[PageRef]:
    """The leaves of a listing that may hold `prefix` or something below it."""
    if not prefix or len(refs) <= 1:
        return list(refs)
    beyond = prefix + b"0"  # the byte after a slash, so that everything below sorts before it
    out = []
    for i, ref in enumerate(refs):
        begins_after = ref.first >= beyond
        ends_before = i + 1 < len(refs) and refs[i + 1].first <= prefix
        if not begins_after and not ends_before:
            out.append(ref)
    return out


def iter_entries(root: PageId, load: Load, *, under: bytes = b"") -> Iterator[Entries]:
    """The entries of a folder leaf by leaf, or those at and below one path."""
    refs = list(leaf_refs(ListKind.LISTING, root, load))
    last = b""
    inside: list[bytes] = []
    for ref in leaves_under(refs, under):
        entries = load_leaf(ListKind.LISTING, ref, load)
        assert isinstance(entries, Entries)
        if len(entries):
            if entries.names[0] <= last and last:
                raise Corrupt("the pages of a folder are not in order", subject=f"folder {root.hex()[:12]}")
            inside = _check_border(inside, entries, root)
            last = entries.names[-1]
        yield entries.under(under) if under else entries


def _check_border(before: list[bytes], entries: Entries, root: PageId) -> list[bytes]:
    """See that no name on earlier leaves is a directory of a name on this one.

    Args:
        before: names on earlier leaves that the last name there begins with; no other can still be a directory.

    Returns:
        the same for the leaves that follow.
    """
    first, last = entries.names[0], entries.names[-1]
    before = [name for name in before if first.startswith(name)]
    for name in before:
        low, high = entries.names.under(name)
        if low < high:
            raise Corrupt(
                f'"{show(name)}" is a file and also a directory of "{show(entries.names[low])}"',
                subject=f"folder {root.hex()[:12]}",
            )
    out = [name for name in before if last.startswith(name)]
    # A shorter start of `last` sorts before `first`, so it cannot be here.
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    for end in range(max(1, shared), len(last) + 1):
        at = entries.names.find(last[:end])
        if at < len(entries) and entries.names[at] == last[:end]:
            out.append(last[:end])
    return out


def read_entries(root: PageId, load: Load, *, under: bytes = b"") -> Entries:
    """The entries of a folder as one set of columns."""
    return Entries.join(iter_entries(root, load, under=under))


def iter_recipe(root: PageId, load: Load, *, total_bytes: int | None = None) -> Iterator[Chunks]:
    """The chunks of a file leaf by leaf; `total_bytes` is its length, where that is known."""
    for ref in leaf_refs(ListKind.RECIPE, root, load, total_bytes=total_bytes):
        chunks = load_leaf(ListKind.RECIPE, ref, load)
        assert isinstance(chunks, Chunks)
        yield chunks


def read_recipe(root: PageId, load: Load, *, total_bytes: int | None = None) -> Chunks:
    """The chunks of a file as one set of columns (36 bytes a chunk); `total_bytes` as `iter_recipe`."""
    return Chunks.join(list(iter_recipe(root, load, total_bytes=total_bytes)))
