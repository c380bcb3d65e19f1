"""The journal of packs that were sent: knowledge that may be lost or damaged, never an obstacle."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from storekit import b3, flips, make_pack

from dvk.store.journal import Journal
from dvk.store.pack import TRAILER, PackBuilder, PackKind, parse_trailer

STORE = "0" * 32


def sent(label: int) -> tuple[bytes, bytes, bytes, int]:
    """Name, footer, trailer and size of a data pack."""
    name, data = make_pack([b"%d-%d" % (label, i) for i in range(4)], label=label)
    trailer = data[-TRAILER.size :]
    at = parse_trailer(trailer, subject="").footer_offset
    return name, data[at : -TRAILER.size], trailer, len(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / STORE / "sent"


def test_what_was_sent_is_known_until_the_push_ends(tmp_path: Path, folder: Path) -> None:
    journal = Journal(str(tmp_path), STORE)
    assert list(journal.read()) == []
    packs = [sent(i) for i in range(3)]
    for name, footer, trailer, _ in packs:
        journal.add(name, footer, trailer)
    found = {s.name: s for s in Journal(str(tmp_path), STORE).read()}
    assert {n: s.size_bytes for n, s in found.items()} == {name: size for name, _, _, size in packs}
    assert found[packs[0][0]].footer.ids[0].tobytes() == b3(b"0-0")
    journal.forget(packs[0][0])
    journal.forget(packs[0][0])
    assert {s.name for s in journal.read()} == {packs[1][0], packs[2][0]}
    journal.clear()
    assert list(journal.read()) == [] and list(folder.iterdir()) == []


def test_stores_have_journals_of_their_own(tmp_path: Path) -> None:
    name, footer, trailer, _ = sent(1)
    Journal(str(tmp_path), STORE).add(name, footer, trailer)
    assert list(Journal(str(tmp_path), "1" * 32).read()) == []


def test_reading_changes_nothing_and_passes_over_what_is_damaged(tmp_path: Path, folder: Path) -> None:
    journal = Journal(str(tmp_path), STORE)
    name, footer, trailer, _ = sent(1)
    journal.add(name, footer, trailer)
    good = (folder / name.hex()).read_bytes()
    (folder / ("ab" * 32)).write_bytes(b"")
    (folder / ("cd" * 32)).write_bytes(good[:-1])
    (folder / "abcd").write_bytes(good)
    (folder / "not hex").write_bytes(good)
    (folder / "0123456789abcdef.tmp").write_bytes(good[:20])
    (folder / ("ef" * 32)).mkdir()
    before = sorted(p.name for p in folder.iterdir())
    assert [s.name for s in journal.read()] == [name]
    assert sorted(p.name for p in folder.iterdir()) == before


def test_any_bit_is_noticed(tmp_path: Path, folder: Path) -> None:
    name, footer, trailer, _ = sent(1)
    journal = Journal(str(tmp_path), STORE)
    journal.add(name, footer, trailer)
    path = folder / name.hex()
    for i, bad in enumerate(flips(path.read_bytes())):
        if i % 7 == 0:
            path.write_bytes(bad)
            assert list(journal.read()) == []


def test_page_packs_are_not_believed(tmp_path: Path) -> None:
    """Their sections are known by range only, so a push writes them again."""
    builder = PackBuilder(PackKind.PAGES)
    builder.add_block(0, b"page", 4, ids=bytes(32), lengths=np.array([4], np.uint32))
    name, parts = builder.finish()
    journal = Journal(str(tmp_path), STORE)
    journal.add(name, bytes(parts[-2]), bytes(parts[-1]))
    assert list(journal.read()) == []


def test_a_disk_that_refuses_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    journal = Journal(str(tmp_path / "file"), STORE)
    name, footer, trailer, _ = sent(1)
    journal.add(name, footer, trailer)
    assert list(journal.read()) == []
    journal.forget(name)
    journal.clear()


def test_a_failed_entry_leaves_no_file(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    name, footer, trailer, _ = sent(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        Journal(str(tmp_path), STORE).add(name, footer, trailer)
    assert list(folder.iterdir()) == []


def test_what_a_kill_left_goes_with_the_next_end(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "0123456789abcdef.tmp").write_bytes(b"half")
    Journal(str(tmp_path), STORE).clear()
    assert list(folder.iterdir()) == []


def test_many_writers_and_one_that_clears(tmp_path: Path) -> None:
    """Two pushes of one clone: the end of one must not stop the other."""
    journal, errors = Journal(str(tmp_path), STORE), []
    packs = [sent(i) for i in range(20)]

    def write(part: list[tuple[bytes, bytes, bytes, int]]) -> None:
        try:
            for name, footer, trailer, _ in part * 5:
                journal.add(name, footer, trailer)
                list(journal.read())
        except BaseException as error:
            errors.append(error)

    def clear() -> None:
        try:
            for _ in range(50):
                journal.clear()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(packs[i::2],)) for i in range(2)]
    threads.append(threading.Thread(target=clear))
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert not errors
