"""The kinds of id, and the one way to write and read them.

Every id is 32 bytes of BLAKE3. Mixing two kinds up is the mistake that a content-addressed store
cannot detect at run time, so each kind has its own type for the type checker; at run time all are
plain ``bytes``, which numpy and the hash libraries take without a copy.

>>> to_hex(FileId(bytes(32)))[:8]
'00000000'
"""

from __future__ import annotations

import re
from typing import NewType

from blake3 import blake3

from dvk.errors import FormatError

ID_BYTES = 32

FileId = NewType("FileId", bytes)  #: BLAKE3-256 of a whole file, what `b3sum` prints
ChunkId = NewType("ChunkId", bytes)  #: BLAKE3-256 of a chunk; equals the FileId of a one-chunk file
PageId = NewType("PageId", bytes)  #: BLAKE3-256 in derive_key mode of a page; a folder's id is a PageId
PackId = NewType("PackId", bytes)  #: BLAKE3-256 of a pack's bytes
RecordId = NewType("RecordId", bytes)  #: BLAKE3-256 of a record's bytes

EMPTY_FILE = FileId(blake3(b"").digest())  #: the id of zero bytes; never stored, never looked up

_HEX = re.compile(r"[0-9a-f]{64}")


def to_hex(an_id: bytes) -> str:
    """The 64 lowercase hexadecimal digits of an id."""
    return an_id.hex()


def short(an_id: bytes) -> str:
    """The first 12 digits, for messages to people; never parsed back."""
    return an_id.hex()[:12]


def parse_hex(text: str) -> bytes:
    """The 32 bytes behind exactly 64 lowercase hexadecimal digits.

    Raises:
        FormatError: for anything else, before it can become part of a key or a path.
    """
    if not _HEX.fullmatch(text):
        raise FormatError("malformed id", subject=repr(text[:80]))
    return bytes.fromhex(text)
