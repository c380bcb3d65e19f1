"""A text as UTF-8 bytes at random access, whatever it is packed in.

`a.csv` in UTF-8 is read where it lies. `a.csv.gz`, or a file in UTF-16, has no place where row 5,000,000 begins: it is
expanded once, block by block, into an unnamed temporary file of compressed blocks (about as large as the `.gz`), and
then read like any other text. Memory stays at a few blocks whatever a hostile file claims to expand to.

    text = open_text(source, encoding=None)          # BOM, gzip and zstd are recognised by their first bytes
    text.read_at(text.skip, 100)
"""

from __future__ import annotations

import codecs
import errno
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Protocol

import zstandard

from dvk.errors import StorageError, StorageFull, TableError, UsageError
from dvk.store.opened import check_range
from dvk.table.broken import broken
from dvk.table.contract import Notice, Source

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
PIECE_BYTES = 1 << 20
MAX_RATIO = 2000
_FREE_BYTES = 1 << 30  #: what any file may expand to, whatever its ratio
_ZSTD_FEED = 1 << 10  # a block of 4 bytes may hold 128 KiB, so that a feed expands to 43 MiB at most
_KEPT_BLOCKS = 4
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, which begins alike
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

Rewrite = Callable[[Iterator[bytes]], Iterator[bytes]]


class Text(Protocol):
    """UTF-8 text (not yet proven to be) at random access. Safe to use from many threads."""

    @property
    def label(self) -> str: ...

    @property
    def size(self) -> int:
        """Bytes, a byte-order mark included."""

    @property
    def skip(self) -> int:
        """Bytes of a byte-order mark."""

    @property
    def is_source(self) -> bool:
        """Whether these are the bytes of the file itself, so that its offsets and chunks apply."""

    @property
    def what(self) -> str:
        """What offsets count in, for messages: empty for the file itself."""

    @property
    def notices(self) -> tuple[Notice, ...]: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly these bytes."""

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """See `Source.expect`."""

    def close(self) -> None:
        """Give back the temporary file; the source stays open."""


class PlainText:
    """The bytes of the file itself."""

    def __init__(self, source: Source, *, skip: int) -> None:
        self._source = source
        self.skip = skip
        self.label = source.label
        self.size = source.size
        self.is_source = True
        self.what = ""
        self.notices: tuple[Notice, ...] = ()

    def read_at(self, offset: int, length: int) -> bytes:
        return self._source.read_at(offset, length)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._source.expect(ranges)

    def close(self) -> None:
        """The source stays open."""


class Spool:
    """Text in an unnamed temporary file: blocks of 1 MiB, each compressed, gone with the process."""

    def __init__(
        self,
        source: Source,
        pieces: Iterable[bytes],
        *,
        what: str,
        notices: tuple[Notice, ...],
        directory: bytes | None,
    ) -> None:
        """Take all of `pieces`.

        Raises:
            StorageFull: the temporary directory has no room.
            TableError: `pieces` says so.
        """
        self.label, self.what, self.notices = source.label, what, notices
        self.skip, self.is_source = 0, False
        self.size = 0
        self._offsets = [0]
        self._lock = threading.Lock()
        self._blocks: dict[int, bytes] = {}
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        except OSError as error:
            raise _spool_failed(error, source.label) from error
        try:
            self._fill(pieces)
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise _spool_failed(error, source.label) from error
            raise

    def _fill(self, pieces: Iterable[bytes]) -> None:
        packer = zstandard.ZstdCompressor(level=1, write_checksum=True)
        waiting = bytearray()
        for piece in pieces:
            self.size += len(piece)
            waiting += piece
            while len(waiting) >= PIECE_BYTES:
                self._write(packer.compress(bytes(waiting[:PIECE_BYTES])))
                del waiting[:PIECE_BYTES]
        if waiting:
            self._write(packer.compress(bytes(waiting)))
        self._file.flush()

    def _write(self, block: bytes) -> None:
        self._file.write(block)
        self._offsets.append(self._offsets[-1] + len(block))

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size, self.label)
        if not length:
            return b""
        low, high = offset // PIECE_BYTES, (offset + length - 1) // PIECE_BYTES
        data = b"".join([self._block(i) for i in range(low, high + 1)])
        return data[offset - low * PIECE_BYTES :][:length]

    def _block(self, number: int) -> bytes:
        with self._lock:
            if (kept := self._blocks.pop(number, None)) is not None:
                self._blocks[number] = kept  # used last
                return kept
            try:
                self._file.seek(self._offsets[number])
                packed = self._file.read(self._offsets[number + 1] - self._offsets[number])
            except OSError as error:
                raise _spool_failed(error, self.label) from error
        block = zstandard.ZstdDecompressor().decompress(packed, max_output_size=PIECE_BYTES)
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
        return block

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """It is here, in the temporary file."""

    def close(self) -> None:
        self._file.close()


def _spool_failed(error: OSError, label: str) -> StorageError:
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
    return kind(
        f"the temporary copy of {label} cannot be written: {error.strerror}",
        hint="name a directory with more room with `--tmp DIR`",
    )


# ---------------------------------------------------------------- opening


def packing(source: Source) -> str | None:
    """`gzip` or `zstd` if the file begins like it, else None."""
    head = source.read_at(0, min(4, source.size))
    return "gzip" if head.startswith(GZIP) else "zstd" if head == ZSTD else None


def open_text(
    source: Source, rewrite: Rewrite | None = None, *, encoding: str | None, directory: bytes | None = None
) -> Text:
    """The text of a file; nothing is checked to be UTF-8 yet where it is read where it lies.

    `encoding`: a name known to Python, by default what a byte-order mark says, else UTF-8. `rewrite` makes other pieces
    out of the pieces of UTF-8; `directory`: for temporary files.

    Raises:
        UsageError: there is no such encoding.
        TableError: it does not decompress, or holds bytes that the encoding does not know.
        StorageFull: no room for the temporary copy.
    """
    packed = packing(source)
    expanded = {None: _plain, "gzip": _gunzip, "zstd": _unzstd}[packed](source)
    head = source.read_at(0, min(4, source.size)) if packed is None else b""
    if packed is not None:
        head, expanded = _peek(expanded)
    codec, skip = _codec(head, encoding)
    if packed is None and codec == "utf-8" and rewrite is None:
        return PlainText(source, skip=skip)
    what = "" if packed is None else "decompressed"
    notices: tuple[Notice, ...] = ()
    if packed is not None:
        notices += (Notice("compressed", f"{source.label} is {packed} data: it was expanded first"),)
    if codec != "utf-8":
        notices += (Notice("encoding", f"{source.label} was read as {codec}"),)
    pieces = _transcode(expanded, codec, skip, source.label, what)
    if codec != "utf-8":
        what = " ".join(filter(None, [what, "as UTF-8"]))
    if rewrite is not None:
        pieces = rewrite(pieces)
    return Spool(source, pieces, what=what, notices=notices, directory=directory)


def _codec(head: bytes, encoding: str | None) -> tuple[str, int]:
    """(name of the codec, bytes of the byte-order mark)."""
    marked = next(((name, len(bom)) for bom, name in _BOMS if head.startswith(bom)), None)
    if encoding is None:
        return marked or ("utf-8", 0)
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise UsageError(f"there is no text encoding {encoding!r}", hint="for example utf-8, cp1252, utf-16") from error
    if name == "utf-8-sig":
        name = "utf-8"
    if marked is not None and (marked[0] == name or (marked[0].startswith(name) and name in ("utf-16", "utf-32"))):
        return marked
    return name, 0


def _transcode(pieces: Iterator[bytes], codec: str, skip: int, label: str, what: str) -> Iterator[bytes]:
    """UTF-8 without a byte-order mark; strict unless it is UTF-8 already, which is checked when it is parsed."""
    if codec == "utf-8":
        for piece in pieces:
            yield piece[skip:]
            skip = 0
        return
    try:
        decoder = codecs.getincrementaldecoder(codec)("strict")
    except LookupError as error:
        raise UsageError(f"{codec} cannot be read piece by piece", subject=label) from error
    done, lines = skip, 0  # bytes that went in before `piece`
    held = 0  # bytes of a character that the decoder waits to complete
    try:
        for piece in pieces:
            piece, skip = piece[skip:], 0
            held = len(decoder.getstate()[0])
            text = decoder.decode(piece)
            lines += text.count("\n")
            yield text.encode()
            done += len(piece)
        held = len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        at = done - held + getattr(error, "start", 0)
        line = (
            lines + 1 + getattr(error, "object", b"")[: getattr(error, "start", 0)].decode(codec, "ignore").count("\n")
        )
        raise TableError(
            f"line {line}, byte {at}{f' of the {what} text' if what else ''}, is not {codec}",
            subject=label,
            hint="say what it is with `--encoding NAME`",
        ) from error


def _plain(source: Source) -> Iterator[bytes]:
    for at in range(0, source.size, PIECE_BYTES):
        yield source.read_at(at, min(PIECE_BYTES, source.size - at))


def _peek(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first four bytes, and the pieces as they were."""
    kept: list[bytes] = []
    while sum(map(len, kept)) < 4 and (piece := next(pieces, None)) is not None:
        kept.append(piece)

    def again() -> Iterator[bytes]:
        yield b"".join(kept)
        yield from pieces

    return b"".join(kept)[:4], again()


def _gunzip(source: Source) -> Iterator[bytes]:
    """The content of all members, in pieces of at most 1 MiB."""
    guard = _Guard(source)
    unpacker = zlib.decompressobj(31)
    begun = False  # whether the member at hand has had a byte
    for piece in _plain(source):
        while piece:
            if unpacker.eof:
                piece = piece.lstrip(b"\0")  # tools pad with zeros behind the last member
                if not piece:
                    break
                unpacker, begun = zlib.decompressobj(31), False
            try:
                out = unpacker.decompress(piece, PIECE_BYTES)
            except zlib.error as error:
                raise guard.broken("gzip", str(error)) from error
            begun = True
            piece = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if out:
                yield guard.count(out)
    while begun and not unpacker.eof and (out := unpacker.decompress(b"", PIECE_BYTES)):
        yield guard.count(out)
    if begun and not unpacker.eof:
        raise guard.broken("gzip", "it ends early")


def _unzstd(source: Source) -> Iterator[bytes]:
    """The content of all frames, in pieces of at most 43 MiB."""
    guard = _Guard(source)
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    begun = False
    for piece in _plain(source):
        while piece:
            feed, piece = piece[:_ZSTD_FEED], piece[_ZSTD_FEED:]
            while feed:
                try:
                    out = unpacker.decompress(feed)
                except zstandard.ZstdError as error:
                    raise guard.broken("zstd", str(error)) from error
                begun, feed = True, b""
                if unpacker.eof:
                    feed = unpacker.unused_data
                    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                    begun = False
                if out:
                    yield guard.count(out)
    if begun:
        raise guard.broken("zstd", "it ends early")


class _Guard:
    """Stops a file that expands beyond all reason."""

    def __init__(self, source: Source) -> None:
        self._label = source.label
        self._limit = max(_FREE_BYTES, MAX_RATIO * source.size)
        self._size = 0

    def count(self, piece: bytes) -> bytes:
        self._size += len(piece)
        if self._size > self._limit:
            raise TableError(
                f"it expands to more than {self._limit >> 20} MiB, {MAX_RATIO} times its size",
                subject=self._label,
                hint="if that is meant, decompress it yourself and compare the result",
            )
        return piece

    def broken(self, kind: str, why: str) -> TableError:
        return broken(f"the {kind} data is broken: {why}", self._label)
