"""An older version of a file as a source of bytes for a newer one.

Problem: a checkout of the version before changes 3 % of a 1 GB table, and the other 97 % lie in the workspace, in the
file that is to be replaced. Copying them costs a third of decoding them, and nothing where the filesystem can let two
files share blocks.

    at = find_shared(new_chunks, old.chunks)       # for each chunk where the old file has it, or -1
    Reuse(old, new_fd, subject="train.csv").take(some, old_at, new_at, room)     # written, and in `room` for the hash

Choice: the two recipes are compared, not the files. What the old file should consist of is a hint, since the file may
have been changed by who knows what; so everything that is taken from it goes through the hash of the whole new file,
like any other byte. A copy passes through memory, where it is hashed on its way: `copy_file_range` would have to be
followed by another read, and on a filesystem that copies anyway both together take longer. Where blocks can be shared
(btrfs, XFS, NFS 4.2), they are, and are hashed as the new file has them. The hash of the whole file proves what was
written. It proves a recipe as well only if the bytes are those of its chunks, so while that matters each chunk taken is
hashed too.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys

import numpy as np
from blake3 import blake3
from msgspec import Struct

from dvk.backend.disk import WRITE_BYTES
from dvk.store.names import I64, U8
from dvk.store.outfile import done_with, write_all
from dvk.store.pages import Chunks
from dvk.timings import Stage, stage

_FICLONERANGE = 0x4020940D  # linux/fs.h; another number on MIPS, PowerPC and SPARC, where it is then refused
_CLONE_RANGE = struct.Struct("=qQQQ")
_CAN_SHARE = sys.platform == "linux"
#: Sharing less than this is not worth a call of its own.
_SHARE_BYTES = 64 << 10


class OldChanged(Exception):
    """The old file is not what its chunks say, or cannot be read; never leaves the store."""


class Old(Struct, frozen=True):
    """An open file and the chunks that it should consist of. Whoever is handed one closes it."""

    fd: int
    chunks: Chunks
    prove_chunks: bool = False  #: what is taken has to be what the new recipe says, chunk by chunk: it is to be proven


def find_shared(new: Chunks, old: Chunks) -> I64:
    """int64[n]: where the old file has each chunk of the new one, in bytes; -1 where it has not."""
    out = np.full(len(new), -1, np.int64)
    if not len(new) or not len(old):
        return out
    theirs = _first_word(old.ids)
    order = np.argsort(theirs, kind="stable")
    at = np.searchsorted(theirs[order], _first_word(new.ids))
    at = order[np.minimum(at, len(order) - 1)]
    same = (old.ids[at] == new.ids).all(axis=1) & (old.lengths[at] == new.lengths)
    ends = np.cumsum(old.lengths, dtype=np.int64)
    out[same] = (ends - old.lengths)[at[same]]
    return out


def _first_word(ids: U8) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """uint64[n]: enough to tell ids apart by; those that agree in it and are different count as not found."""
    return np.ascontiguousarray(ids[:, :8]).view(np.uint64)[:, 0]


class Reuse:
    """Takes ranges of an old file over into a new one. Any thread may call `take`.

    Args:
        new_fd: open for reading and writing.
        subject: the new file, for messages.
    """

    def __init__(self, old: Old, new_fd: int, *, subject: str) -> None:
        self._old_fd, self._new_fd, self._subject = old.fd, new_fd, subject
        self._prove_chunks = old.prove_chunks
        #: What blocks can be shared by; 0 once the filesystem refused.
        self._grain = os.fstat(new_fd).st_blksize if _CAN_SHARE else 0

    def take(self, chunks: Chunks, old_at: int, new_at: int, room: memoryview) -> None:
        """Put chunks, as long as `room`, into the new file, and the bytes that are there now into `room`.

        Raises:
            OldChanged: the old file ends before that, or cannot be read; or where the new recipe is to be proven, it
            does not have one of the chunks there.
            StorageFull, CannotWrite: from writing.
        """
        with stage(Stage.COPY, bytes_=len(room)):
            begin, end = self._aligned(old_at, new_at, len(room))
            if begin == end or not self._share(old_at + begin, new_at + begin, end - begin):
                begin = end = len(room)
            self._copy(old_at, new_at, room[:begin])
            _read(self._new_fd, room[begin:end], new_at + begin)
            self._copy(old_at + end, new_at + end, room[end:])
            done_with(self._old_fd, old_at, len(room))
        if self._prove_chunks:
            with stage(Stage.HASH, bytes_=len(room), count=len(chunks)):
                _check(chunks, room)

    def _copy(self, old_at: int, new_at: int, room: memoryview) -> None:
        # Piece by piece, so that what is written is still in the cache of the core that read it.
        for start in range(0, len(room), WRITE_BYTES):
            piece = room[start : start + WRITE_BYTES]
            _read(self._old_fd, piece, old_at + start)
            write_all(self._new_fd, piece, at=new_at + start, subject=self._subject)

    def _aligned(self, old_at: int, new_at: int, length: int) -> tuple[int, int]:
        """Beginning and end of what is made of whole blocks in both files; equal when it is too little."""
        grain = self._grain
        if not grain or (old_at - new_at) % grain:
            return 0, 0
        begin = -new_at % grain
        end = length - (new_at + length) % grain
        return (begin, end) if end - begin >= _SHARE_BYTES else (0, 0)

    def _share(self, old_at: int, new_at: int, length: int) -> bool:
        try:
            fcntl.ioctl(self._new_fd, _FICLONERANGE, _CLONE_RANGE.pack(self._old_fd, old_at, length, new_at))
        except OSError:
            self._grain = 0  # this filesystem, or this pair of files, cannot; writing says what else is wrong
            return False
        return True


def _check(chunks: Chunks, data: memoryview) -> None:
    # The whole file would be right all the same, and its recipe would be kept, although the store's chunks of these
    # ids are something else.
    at = 0
    for name, length in zip(chunks.ids, chunks.lengths.tolist(), strict=True):
        if blake3(data[at : at + length]).digest() != name.tobytes():
            raise OldChanged
        at += length


def _read(fd: int, room: memoryview, at: int) -> None:
    done = 0
    try:
        while done < len(room):
            got = os.preadv(fd, [room[done:]], at + done)
            if not got:
                raise OldChanged
            done += got
    except OSError as error:
        raise OldChanged from error
