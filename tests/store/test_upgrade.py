"""A writer never exceeds what its store lists, and only an upgrade raises the list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from storekit import Bytes, get, words
from synckit import Before

from dvk.backend.memory import MemoryBackend
from dvk.errors import DvkError, NewerFormat, NotFound, NotOurs, Refused
from dvk.ids import FileId
from dvk.store import descriptor as dvk_json
from dvk.store.codec import (
    ALL_CODECS,
    PLANES,
    RAW,
    WORDS,
    ZSTD,
    Hint,
    codec_numbers,
    decode_block,
    encode_block,
    known_codecs,
)
from dvk.store.descriptor import Descriptor, format_descriptor, parse_descriptor
from dvk.store.fetch import Wanted, fetch
from dvk.store.ingest import ingest
from dvk.store.pack import parse_footer_of
from dvk.store.profiles import known_profiles
from dvk.store.push import Version, push
from dvk.store.root import FILE, Root
from dvk.store.store import Store
from dvk.store.upgrade import SINCE, plan_upgrade, upgrade
from dvk.store.writer import Writer

OLD = ("raw", "zstd")
NEW_STORE = "7" * 32


def weights(size: int) -> bytes:
    """Numbers that planes shorten much more than zstd does."""
    return np.random.default_rng(3).normal(0, 0.02, size // 4).astype("<f4").tobytes()


def store_of(codecs: tuple[str, ...] = OLD, profiles: tuple[str, ...] = known_profiles()) -> Store:
    backend = MemoryBackend()
    listed = Descriptor(NEW_STORE, tuple(sorted(codecs)), tuple(sorted(profiles)))
    backend.put(dvk_json.KEY, [format_descriptor(listed)])
    return Store(backend)


def codecs_in(store: Store) -> set[int]:
    """The codecs of all blocks in a store."""
    found: set[int] = set()
    for prefix in ("p/", "m/"):
        for item in store.backend.list(prefix):
            footer = parse_footer_of(store.backend.get(item.key, max_bytes=1 << 28))
            found |= set(footer.codec.tolist())
    return found


def add(store: Store, data: bytes, *, profile: str = "cdc-64k") -> FileId:
    source = Bytes([data])
    with Writer(store) as writer:
        ids = ingest(writer, source, source.sizes, profile=profile)
        writer.flush()
    return FileId(ids[0].tobytes())


def content(store: Store, file: FileId, size: int, folder: Path) -> Any:
    return get(store, np.frombuffer(file, np.uint8).reshape(1, 32), np.array([size], np.int64), folder)


def refreshed(store: Store) -> Store:
    return Store(store.backend)


DATA = weights(2 << 20) + words("x", 300_000)


# -- blocks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hint", Hint)
@pytest.mark.parametrize("names", [("raw",), OLD, ("planes-4", "raw"), known_codecs()])
def test_a_block_is_encoded_only_as_the_store_takes(names: tuple[str, ...], hint: Hint) -> None:
    allowed = codec_numbers(names)
    for raw in (weights(1 << 20), weights(600), words("a", 100_000), b"x"):
        codec, payload = encode_block(memoryview(raw), hint=hint, codecs=allowed)
        assert codec in allowed
        assert decode_block(codec, payload, len(raw)) == raw


def test_unknown_names_of_a_list_are_no_codecs_and_raw_always_is_one() -> None:
    assert codec_numbers(["deltas", "zstd"]) == {RAW, ZSTD}
    assert codec_numbers(known_codecs()) == ALL_CODECS
    assert set(PLANES.values()) <= ALL_CODECS


# -- writers ---------------------------------------------------------------------------------------


def test_add_keeps_to_the_list_of_the_local_store(tmp_path: Path) -> None:
    store = store_of()
    file = add(store, DATA)
    assert codecs_in(store) <= {RAW, ZSTD}
    assert content(refreshed(store), file, len(DATA), tmp_path / "out") == ({0: DATA}, {})
    new = store_of(known_codecs())
    add(new, DATA)
    assert codecs_in(new) & set(PLANES.values())


@pytest.mark.parametrize("names", [("raw",), OLD])
def test_push_encodes_again_what_the_remote_does_not_take(tmp_path: Path, names: tuple[str, ...]) -> None:
    local, remote = store_of(known_codecs()), store_of(names)
    file = add(local, DATA)
    done = push(local, remote, [Version(Root(FILE, file, len(DATA), 0))], str(tmp_path / "state"))
    assert done.sent
    assert codecs_in(remote) <= codec_numbers(names)
    elsewhere = store_of()
    wanted = Wanted(Root(FILE, file, len(DATA), 0), (b"",), "x")
    assert not fetch(refreshed(remote), elsewhere, [wanted]).failures
    assert content(elsewhere, file, len(DATA), tmp_path / "out") == ({0: DATA}, {})


def test_fetch_encodes_again_what_the_local_store_does_not_take(tmp_path: Path) -> None:
    local, remote = store_of(known_codecs()), store_of(known_codecs())
    file = add(local, DATA)
    push(local, remote, [Version(Root(FILE, file, len(DATA), 0))], str(tmp_path / "state"))
    assert codecs_in(remote) & set(PLANES.values())
    old = store_of()
    assert not fetch(refreshed(remote), old, [Wanted(Root(FILE, file, len(DATA), 0), (b"",), "x")]).failures
    assert codecs_in(old) <= {RAW, ZSTD}
    assert content(refreshed(old), file, len(DATA), tmp_path / "out") == ({0: DATA}, {})


def test_a_profile_that_the_store_does_not_list_is_refused_before_anything_is_written() -> None:
    store = store_of(profiles=("cdc-64k",))
    with pytest.raises(Refused, match="auto-64k") as caught:
        add(store, DATA, profile="auto-64k")
    assert "--local" in caught.value.hint
    assert [row.key for row in store.backend.list("")] == ["dvk.json"]
    upgrade(store)
    add(refreshed(store), DATA, profile="auto-64k")


# -- upgrade ---------------------------------------------------------------------------------------


def test_an_upgrade_adds_what_this_dvk_writes_and_keeps_the_rest() -> None:
    store = store_of()
    plan = plan_upgrade(store)
    assert plan.codecs == tuple(sorted(set(known_codecs()) - set(OLD)))
    assert plan.needs and plan.changes
    before = store.backend.get(dvk_json.KEY, max_bytes=1000)
    assert upgrade(store) == plan
    now = parse_descriptor(store.backend.get(dvk_json.KEY, max_bytes=9999), subject="")
    assert now.store == NEW_STORE
    assert set(now.codecs) == set(known_codecs()) and set(now.profiles) == set(known_profiles())
    assert before != format_descriptor(now)
    assert not upgrade(store).changes
    file = add(refreshed(store), DATA)
    assert codecs_in(store) & set(PLANES.values()) and file


def test_a_store_that_has_all_is_not_written() -> None:
    store = store_of(known_codecs())
    store.backend.put = None  # type: ignore[method-assign,assignment]
    assert not upgrade(store).changes
    assert upgrade(store).needs == ""


def test_there_must_be_a_store_that_this_dvk_may_write() -> None:
    with pytest.raises(NotFound):
        upgrade(Store(MemoryBackend()))
    newer = store_of((*OLD, "deltas"))
    with pytest.raises(NewerFormat):
        upgrade(newer)


def test_a_store_that_is_replaced_meanwhile_is_noticed() -> None:
    store = store_of()
    put = store.backend.put

    def replaced(key: str, parts: Any, **more: Any) -> None:
        put(key, [format_descriptor(Descriptor("9" * 32, OLD, ("cdc-64k",)))])

    store.backend.put = replaced  # type: ignore[method-assign]
    with pytest.raises(NotOurs):
        upgrade(store)


def test_an_upgrade_that_lost_a_race_says_so() -> None:
    store = store_of()
    store.backend.put = lambda *_a, **_k: None  # type: ignore[method-assign]
    with pytest.raises(DvkError, match="same time"):
        upgrade(store)


# -- upgrades while somebody pushes ------------------------------------------------------------------


def push_while(store: Store, then: Descriptor, tmp_path: Path) -> list[str]:
    """Push into a store whose dvk.json is written by somebody else before the push confirms; its records."""
    local = store_of(known_codecs())
    file = add(local, DATA)
    late = Before(
        store.backend,
        lambda op, key: op == "put" and key.startswith("l/"),
        lambda: store.backend.put(dvk_json.KEY, [format_descriptor(then)]),
    )
    push(local, Store(late), [Version(Root(FILE, file, len(DATA), 0))], str(tmp_path / "state"))
    return [row.key for row in store.backend.list("j/") if row.key.endswith(".ok")]


def test_an_upgrade_during_a_push_does_not_disturb_it(tmp_path: Path) -> None:
    store = store_of()
    found = store.describe()
    assert found is not None
    assert push_while(store, found.raised(), tmp_path)
    assert codecs_in(store) <= {RAW, ZSTD}


def test_an_upgrade_by_a_newer_dvk_during_a_push_is_named_and_nothing_is_promised(tmp_path: Path) -> None:
    store = store_of()
    with pytest.raises(NewerFormat, match="codec deltas"):
        push_while(store, Descriptor(NEW_STORE, ("deltas", *OLD), known_profiles()), tmp_path)
    assert not [row for row in store.backend.list("j/") if row.key.endswith(".ok")]


def test_a_list_that_was_lowered_during_a_push_is_named_and_nothing_is_promised(tmp_path: Path) -> None:
    """Two upgrades met, and the one of the older dvk was written last: packs may hold what is not listed now."""
    store = store_of(known_codecs())
    with pytest.raises(DvkError, match="upgrades met") as caught:
        push_while(store, Descriptor(NEW_STORE, OLD, known_profiles()), tmp_path)
    assert "remote upgrade" in caught.value.hint
    assert not [row for row in store.backend.list("j/") if row.key.endswith(".ok")]
    upgrade(store)
    local = store_of(known_codecs())
    file = add(local, DATA)
    assert push(local, Store(store.backend), [Version(Root(FILE, file, len(DATA), 0))], str(tmp_path / "2")).sent


def test_every_codec_and_profile_says_since_when_it_is_known() -> None:
    assert {*known_codecs(), *known_profiles()} == set(SINCE)
    assert set(WORDS) == set(PLANES)
