"""The few operations that a store needs of a medium.

A store writes each object once under a name that nobody else uses, reads objects whole or by range,
lists a prefix and deletes single keys. Everything else (locks, renames, appends, conditional writes) is
left out on purpose, so that a dumb bucket is enough.

What a medium must guarantee:

1. `put` returns only after the object is durable and visible under its key, whole. A failed or
   killed `put` leaves either nothing or the whole object under the key, never a part.
2. A `get`, `get_range`, `stat` or `list` that starts after a `put` (or `delete`) returned sees it.
3. An answer has exactly the bytes that were asked for, or the call raises. Callers hash what they get.

Keys are relative, `/`-separated, made of ``[a-z0-9._-]`` and never empty, absolute or with a `.`/`..` part;
`check_key` refuses the rest.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from msgspec import Struct

from dvk.errors import DvkError, NotFound, RemoteError

Buffer = bytes | bytearray | memoryview

_KEY = re.compile(r"[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*")
_PREFIX = re.compile(r"([a-z0-9_-][a-z0-9._-]*/)*([a-z0-9_-][a-z0-9._-]*)?")
MAX_KEY = 512  #: characters; S3 takes 1,024 and the remote's own prefix needs room


class KeyMissing(NotFound):
    """No object has this key."""


class KeyExists(DvkError):
    """A create-only `put` found the key taken. It may be our own write whose reply was lost: read it back."""

    kind = "exists"


class WrongAnswer(RemoteError):
    """A whole answer with wrong content. Something on the way may have broken it, so it is worth another try or two."""


class ShortAnswer(WrongAnswer):
    """The medium answered fewer bytes than were asked for and there are."""


class Capabilities(Struct, frozen=True):
    """What a medium does beyond the contract. Used as a bonus, never relied on."""

    create_only: bool  #: `put(create_only=True)` is atomic under a race
    writable: bool = True  #: False for a mirror that can only be read
    #: Whether nothing reads the parts of a `put` again once it returned or raised. Not so where a request that was
    #: given up, and maybe repeated, still goes on somewhere: then they must never change.
    releases_parts: bool = False
    #: Ranges of one object that lie closer than this, in bytes, are read as one: a request costs as much as they do.
    gap_bytes: int = 1 << 20


class Listed(Struct, frozen=True):
    """One row of a listing."""

    key: str
    size_bytes: int
    #: When the medium says that it was written, in Unix seconds of the medium's clock; None where it does not tell.
    #: No part of what makes two rows equal.
    modified_s: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listed) and (self.key, self.size_bytes) == (other.key, other.size_bytes)

    def __hash__(self) -> int:
        return hash((self.key, self.size_bytes))


def check_key(key: str) -> str:
    """`key` itself if it is well-formed.

    Raises:
        ValueError: for a malformed key; a bug in the caller, since every id is checked before.
    """
    if not is_key(key):
        raise ValueError(f"malformed key {key!r}")
    return key


def is_key(text: str) -> bool:
    """Whether `text` fits the grammar of keys; what a listing finds that does not is foreign."""
    return len(text) <= MAX_KEY and _KEY.fullmatch(text) is not None


def check_prefix(prefix: str) -> str:
    """`prefix` itself if some well-formed key can start with it; "" is fine.

    Raises:
        ValueError: otherwise; a bug in the caller.
    """
    if not _PREFIX.fullmatch(prefix) or len(prefix) > MAX_KEY:
        raise ValueError(f"malformed prefix {prefix!r}")
    return prefix


def check_range(offset: int, length: int) -> None:
    """Refuse a negative offset or length.

    Raises:
        ValueError: a bug in the caller.
    """
    if offset < 0 or length < 0:
        raise ValueError(f"malformed range {offset}+{length}")


class Backend(ABC):
    """One medium. Safe to use from many threads at once."""

    #: for messages, without credentials: "s3://acme/churn" or a path
    name: str
    capabilities: Capabilities

    @abstractmethod
    def put(self, key: str, parts: Sequence[Buffer], *, create_only: bool = False) -> None:
        """Store the concatenation of `parts` under `key`, durably; replaces an existing object.

        Raises:
            KeyExists: `create_only` and the key is taken (needs `capabilities.create_only` to be exact).
            StorageFull, StorageError, RemoteError: nothing, or the whole object, is there.
        """

    @abstractmethod
    def get(self, key: str, *, max_bytes: int) -> bytes:
        """The whole object.

        Raises:
            KeyMissing: no such object.
            FormatError: it is larger than `max_bytes`; nothing larger was read into memory.
        """

    @abstractmethod
    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises:
            KeyMissing: no such object.
            Corrupt: the object ends before `offset + length`, or the medium answered short.
        """

    def view(self, key: str, *, max_bytes: int) -> memoryview:
        """The whole object for random access; a medium that can maps it instead of copying it.

        Only for objects of a store, which nobody truncates. Raises as `get`.
        """
        return memoryview(self.get(key, max_bytes=max_bytes))

    @abstractmethod
    def stat(self, key: str) -> int | None:
        """The object's size in bytes, or None when there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Listed]:
        """All objects whose key starts with `prefix` (a string prefix; "" for all), in no order.

        Keys that do not fit the grammar (foreign objects) are passed over.
        """

    def survey(self, prefix: str) -> Iterator[Listed]:
        """As `list`, and with the foreign objects that the medium tells of, as it spells them; for diagnosis."""
        return self.list(prefix)

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; no error when it is not there."""

    def close(self) -> None:  # noqa: B027  (most media hold nothing)
        """Release connections and handles. The backend must not be used afterwards."""
