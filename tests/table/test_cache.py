"""A cache of derived facts is right or empty, whatever lies in its folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dvk.table.cache import Cache

ID, OTHER = b"i" * 32, b"o" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(bytes(tmp_path))


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "tables" / "1").iterdir())


def test_what_is_put_is_got_by_its_id_and_spec_alone(cache: Cache) -> None:
    """And by nothing that looks alike."""
    assert cache.get(ID, b"spec") is None
    assert cache.put(ID, b"spec", b"body")
    assert cache.put(ID, b"empty", b"")
    assert cache.get(ID, b"spec") == b"body"
    assert cache.get(ID, b"empty") == b""
    assert cache.get(OTHER, b"spec") is None
    assert cache.get(ID, b"specb") is None
    assert cache.put(ID, b"spec", b"new")
    assert cache.get(ID, b"spec") == b"new"


def test_any_damage_is_absence(cache: Cache, tmp_path: Path) -> None:
    """Each byte of an entry is under the checksum or the comparison; so is its length."""
    cache.put(ID, b"spec", b"a body of some length")
    (entry,) = entries(tmp_path)
    good = entry.read_bytes()
    for i in range(len(good)):
        if i in (5, 6, 7):
            continue  # reserved
        entry.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        assert cache.get(ID, b"spec") is None, i
    for damaged in (b"", good[:-1], good + b"x", good[:10]):
        entry.write_bytes(damaged)
        assert cache.get(ID, b"spec") is None
    entry.write_bytes(good)
    assert cache.get(ID, b"spec") == b"a body of some length"


def test_an_entry_under_a_foreign_name_is_absent(cache: Cache, tmp_path: Path) -> None:
    """A file that was copied over another does not answer for it."""
    cache.put(ID, b"spec", b"mine")
    (mine,) = entries(tmp_path)
    cache.put(OTHER, b"spec", b"theirs")
    (theirs,) = [e for e in entries(tmp_path) if e != mine]
    theirs.write_bytes(mine.read_bytes())
    assert cache.get(OTHER, b"spec") is None


def test_links_folders_and_pipes_are_absent(cache: Cache, tmp_path: Path) -> None:
    """A cache never waits, and never follows."""
    cache.put(ID, b"spec", b"body")
    (entry,) = entries(tmp_path)
    real = tmp_path / "elsewhere"
    entry.rename(real)
    entry.symlink_to(real)
    assert cache.get(ID, b"spec") is None
    entry.unlink()
    os.mkfifo(entry)
    assert cache.get(ID, b"spec") is None
    entry.unlink()
    entry.mkdir()
    assert cache.get(ID, b"spec") is None
    assert not cache.put(ID, b"spec", b"body")  # refused by the medium, and no error


def test_it_stays_within_its_bound(tmp_path: Path) -> None:
    """What was not used for longest goes; what is too large is not kept at all."""
    cache = Cache(bytes(tmp_path), limit_bytes=4000)
    for n in range(5):
        assert cache.put(ID, b"%d" % n, bytes(900))
        for entry in entries(tmp_path):
            info = entry.stat()
            os.utime(entry, (info.st_atime, info.st_mtime - 100))
        cache.get(ID, b"0")
    assert cache.get(ID, b"0") is not None
    assert cache.get(ID, b"1") is None
    assert sum(e.stat().st_size for e in entries(tmp_path)) <= 4000
    assert not cache.put(ID, b"big", bytes(3000))


def test_what_a_kill_left_is_removed_in_time(cache: Cache, tmp_path: Path) -> None:
    """A temporary file of an hour ago belongs to nobody; a fresh one to somebody."""
    cache.put(ID, b"spec", b"body")
    folder = tmp_path / "tables" / "1"
    (folder / "tmp-old").write_bytes(b"x")
    (folder / "tmp-new").write_bytes(b"x")
    os.utime(folder / "tmp-old", (0, 0))
    cache.put(ID, b"spec", b"body")
    assert {e.name for e in folder.iterdir() if e.name.startswith("tmp-")} == {"tmp-new"}


def test_nowhere_to_write(tmp_path: Path) -> None:
    """No cache, no error."""
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(bytes(tmp_path / "file"))
    assert not cache.put(ID, b"spec", b"body")
    assert cache.get(ID, b"spec") is None


def test_several_at_once(tmp_path: Path) -> None:
    """Readers see a whole entry or none."""
    wrong: list[bytes] = []

    def work(n: int) -> None:
        cache = Cache(bytes(tmp_path))
        for _ in range(60):
            cache.put(ID, b"spec", bytes([n]) * 5000)
            body = cache.get(ID, b"spec")
            if body is not None and body != body[:1] * 5000:
                wrong.append(body)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [e.name.startswith("tmp-") for e in entries(tmp_path)] == [False]
