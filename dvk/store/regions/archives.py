"""Archives: tar, and zip with stored members (so `.npz` and `.pt`). Each member is looked into as if it lay alone."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from dvk.store.codec import Hint
from dvk.store.regions.span import STANDING_BYTES, Doubt, Piece, Span

#: Cuts the inside of a member.
Inner = Callable[[Span], list[Piece]]

# ---------------------------------------------------------------- tar

_BLOCK: Final = 512
#: Headers of tiny members come in runs: behind one of less than `_TINY_BYTES`, so many bytes are read at once.
_WINDOW_BYTES: Final = 16 << 10
_TINY_BYTES: Final = 4 << 10
_MAX_PAX_BYTES: Final = 64 << 10
_WITH_DATA: Final = frozenset(b"\x0007xgLK")
_WITHOUT_DATA: Final = frozenset(b"123456")


def is_tar(head: bytes) -> bool:
    """Whether a file is a tar archive of POSIX or GNU."""
    return head[257:262] == b"ustar" and _tar_sum_holds(head)


def _tar_sum_holds(header: bytes) -> bool:
    stated = header[148:156].strip(b" \0")
    # The field of the sum counts as eight spaces.
    return stated.isdigit() and int(stated, 8) == sum(header) - sum(header[148:156]) + 8 * 32


def split_tar(span: Span, inner: Inner) -> list[Piece]:
    """The pieces of each member that stands alone; what follows a doubt is left out."""
    pieces: list[Piece] = []
    at = 0
    size = _TINY_BYTES
    window, window_at = b"", 0
    try:
        while at + _BLOCK <= span.size:
            span.budget.spend(steps=8)
            if not window_at <= at <= window_at + len(window) - _BLOCK:
                ahead = _WINDOW_BYTES if size < _TINY_BYTES else _BLOCK
                window, window_at = span.at(at, min(ahead, span.size - at)), at
            header = window[at - window_at : at - window_at + _BLOCK]
            if not header[0] or not _tar_sum_holds(header):
                break  # the end of the archive, or none
            size, kind = _tar_number(header[124:136]), header[156]
            if kind in _WITHOUT_DATA:
                size = 0
            elif kind not in _WITH_DATA:
                break  # sparse files and other extensions
            at += _BLOCK
            if kind in b"xg" and b" size=" in span.at(at, min(size, _MAX_PAX_BYTES)):
                break  # the next header does not tell the truth
            if size >= STANDING_BYTES:
                pieces += inner(span.within(at, size))
            at += -(-size // _BLOCK) * _BLOCK
    except Doubt:
        pass
    return pieces


def _tar_number(field: bytes) -> int:
    if field[0] == 0x80:  # the extension for files from 8 GiB on: big-endian
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and not digits.isdigit():  # int() takes signs and underscores
        raise Doubt
    return int(digits, 8) if digits else 0


# ---------------------------------------------------------------- zip

_END: Final = struct.Struct("<4s4H2IH")
_END64_LOCATOR: Final = struct.Struct("<4sIQI")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_MAX_COMMENT_BYTES: Final = 0xFFFF
_STORED: Final = 0
_ENCRYPTED: Final = 1


def is_zip(head: bytes) -> bool:
    """Whether a file starts like a zip archive."""
    return head.startswith(b"PK\x03\x04")


def split_zip(span: Span, inner: Inner) -> list[Piece]:
    """The pieces of each member that stands alone, in the order of their bytes."""
    members, directory = _zip_members(span)
    # torch.save: the storages of tensors lie in data/, a number each, without a word on what they hold.
    is_torch = any(name.endswith(b"/data.pkl") for _, _, _, _, name in members)
    members.sort()
    pieces: list[Piece] = []
    at = 0
    for local, packed, method, flags, name in members:
        if packed < STANDING_BYTES:
            continue
        try:
            header = _LOCAL.unpack(span.at(local, _LOCAL.size))
        except Doubt:
            break
        start = local + _LOCAL.size + header[9] + header[10]
        end = start + packed
        if header[0] != b"PK\x03\x04" or not at <= local or end > directory:
            raise Doubt
        at = end
        if method != _STORED or flags & _ENCRYPTED:
            pieces.append(span.piece(start, end, hint=Hint.INCOMPRESSIBLE))
        elif is_torch and name.rpartition(b"/data/")[2].isdigit():
            pieces.append(span.piece(start, end, fixed=True))
        else:
            pieces += inner(span.within(start, packed))
    return pieces


def _zip_members(span: Span) -> tuple[list[tuple[int, int, int, int, bytes]], int]:
    """The members as (offset of the local header, stored size, method, flags, name); where the directory starts."""
    end_at = span.size - _END.size
    tail = span.at(end_at, _END.size)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        begin = max(0, end_at - _MAX_COMMENT_BYTES)
        tail = span.at(begin, span.size - begin)
        end_at = begin + tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
        if end_at < begin:
            raise Doubt
        tail = tail[end_at - begin :]
    _, _, _, _, count, size, start, _ = _END.unpack_from(tail)
    if 0xFFFF in (count,) or 0xFFFFFFFF in (size, start):
        magic, _, end64, _ = _END64_LOCATOR.unpack(span.at(end_at - _END64_LOCATOR.size, _END64_LOCATOR.size))
        if magic != b"PK\x06\x07":
            raise Doubt
        magic, _, _, _, _, _, _, count, size, start = _END64.unpack(span.at(end64, _END64.size))
        if magic != b"PK\x06\x06":
            raise Doubt
    if start + size > end_at or count * _ENTRY.size > size:
        raise Doubt
    span.budget.spend(steps=4 * count)
    directory = span.at(start, size)
    members: list[tuple[int, int, int, int, bytes]] = []
    at = 0
    for _ in range(count):
        entry = _ENTRY.unpack_from(directory, at)
        magic, flags, method, packed, full = entry[0], entry[3], entry[4], entry[8], entry[9]
        name_len, extra_len, comment_len, local = entry[10], entry[11], entry[12], entry[16]
        if magic != b"PK\x01\x02":
            raise Doubt
        at += _ENTRY.size
        name = directory[at : at + name_len]
        at += name_len
        if 0xFFFFFFFF in (packed, local):
            packed, local = _zip64(directory[at : at + extra_len], full, packed, local)
        at += extra_len + comment_len
        members.append((local, packed, method, flags, name))
    return members, start


def _zip64(extra: bytes, full: int, packed: int, local: int) -> tuple[int, int]:
    """Stored size and offset of a member that needs 64 bits."""
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, at)
        at += 4
        if tag == 1:
            numbers = iter(struct.unpack_from(f"<{size // 8}Q", extra, at))
            if full == 0xFFFFFFFF:
                next(numbers, 0)
            if packed == 0xFFFFFFFF:
                packed = next(numbers, packed)
            if local == 0xFFFFFFFF:
                local = next(numbers, local)
            return packed, local
        at += size
    raise Doubt
