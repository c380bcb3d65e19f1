"""A file that is being written: room is set aside where that helps, and no byte depends on it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvk.store import outfile
from dvk.store.outfile import done_with, empty, reserve, write_all

_SIZE = 3 << 20


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    out = os.open(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    yield out
    os.close(out)


def _held(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


def test_room_is_set_aside_on_ext4_and_goes_again_with_the_bytes(fd: int) -> None:
    if not outfile._on_ext4(fd):
        pytest.skip("no ext4 here")
    reserve(fd, _SIZE)
    assert _held(fd) >= _SIZE
    empty(fd, subject="new")
    assert os.fstat(fd).st_size == 0
    assert _held(fd) < _SIZE


def test_no_room_is_set_aside_for_a_small_file_or_on_another_filesystem(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve(fd, 4096)
    assert os.fstat(fd).st_size == 0
    monkeypatch.setattr(outfile, "_EXT4", -1)
    reserve(fd, _SIZE)
    assert os.fstat(fd).st_size == 0


def test_bytes_are_the_same_with_and_without_room(fd: int, tmp_path: Path) -> None:
    data = os.urandom(_SIZE)
    reserve(fd, _SIZE)
    for at in reversed(range(0, _SIZE, 700_000)):
        write_all(fd, data[at : at + 700_000], at=at, subject="new")
    assert (tmp_path / "new").read_bytes() == data


def test_what_is_no_file_gets_no_room_and_no_error() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        reserve(nowhere, _SIZE)
        done_with(nowhere, 0, _SIZE)
    finally:
        os.close(nowhere)


def test_a_file_of_which_the_system_forgot_a_part_reads_as_before(fd: int, tmp_path: Path) -> None:
    data = os.urandom(_SIZE)
    write_all(fd, data, subject="new")
    done_with(fd, 4096, 1 << 20)
    assert (tmp_path / "new").read_bytes() == data


def test_a_disk_that_has_too_little_room_keeps_what_it_has(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ext4 sets aside what there is before it says that it is not enough."""

    def take_half(fd: int, _mode: int, at: int, size: int) -> int:
        os.posix_fallocate(fd, at, size // 2)
        return -1

    monkeypatch.setattr(outfile, "_on_ext4", lambda _fd: True)
    monkeypatch.setattr(outfile, "_fallocate", take_half)
    assert not reserve(fd, _SIZE)
    assert os.fstat(fd).st_size == 0
    assert _held(fd) < _SIZE // 2


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1])
def test_room_for_an_absurd_size_is_refused_and_nothing_is_kept(fd: int, size: int) -> None:
    assert not reserve(fd, size)
    assert os.fstat(fd).st_size == 0


def test_advice_that_a_filesystem_does_not_take_is_no_error(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(outfile, "_fadvise", refuse)
    done_with(fd, 0, _SIZE)
