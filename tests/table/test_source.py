"""A plain file is read as it was when it was opened, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dvk.errors import ChangedWhileRead, NotFound, Refused, StorageError
from dvk.table.source import BytesSource, FileSource


def test_a_file(tmp_path: Path) -> None:
    """Any range of it, counted."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"0123456789")
    with FileSource(bytes(path), label="a.csv in the workspace") as source:
        assert (source.size, source.name, source.path, source.id) == (10, b"a.csv", bytes(path), None)
        assert source.chunks() is None
        assert source.read_at(3, 4) == b"3456"
        assert source.read_at(10, 0) == b""
        assert source.bytes_read == 4
        for offset, length in ((9, 2), (-1, 2), (2, -1), (11, 0)):
            with pytest.raises(ValueError, match="in the workspace"):
                source.read_at(offset, length)
    source.close()


@pytest.mark.parametrize("change", ["append", "cut", "rewrite"])
def test_a_file_that_changes(tmp_path: Path, change: str) -> None:
    """Half of it old and half of it new is no version."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(1, 1))
    with FileSource(bytes(path)) as source:
        source.read_at(0, 5)
        path.write_bytes({"append": b"0123456789x", "cut": b"0123", "rewrite": b"9876543210"}[change])
        with pytest.raises(ChangedWhileRead, match="changed while"):
            source.read_at(5, 5)


def test_a_replaced_file_is_still_the_old_one(tmp_path: Path) -> None:
    """Editors write beside and rename: the version that was opened stays whole."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"0123456789")
    with FileSource(bytes(path)) as source:
        (tmp_path / "new").write_bytes(b"other")
        (tmp_path / "new").rename(path)
        assert source.read_at(0, 10) == b"0123456789"


def test_what_is_no_file(tmp_path: Path) -> None:
    """Named and refused at once, without waiting for a writer."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match="not a regular file"):
        FileSource(bytes(tmp_path / "pipe"))
    with pytest.raises(Refused, match="a folder"):
        FileSource(bytes(tmp_path))
    with pytest.raises(NotFound, match="no such file"):
        FileSource(bytes(tmp_path / "none"))
    with pytest.raises(NotFound):
        FileSource(bytes(tmp_path / "pipe" / "below"))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError):
        FileSource(bytes(tmp_path / "loop"))


def test_bytes() -> None:
    """The same promises for what is in memory."""
    with BytesSource(b"abc", name=b"x.csv") as source:
        assert (source.read_at(1, 2), source.size, source.label, source.bytes_read) == (b"bc", 3, "x.csv", 2)
        with pytest.raises(ValueError, match=r"x\.csv"):
            source.read_at(2, 2)
