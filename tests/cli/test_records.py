"""A record becomes JSON without losing a byte."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, field

from dvk.cli.records import to_json
from dvk.ids import ChunkId, FileId
from dvk.store.names import Names


class Kind(IntEnum):
    FILE = 1
    NOT_PUSHED = 2


class Inner(Struct, frozen=True):
    path: bytes
    kind: Kind


class Everything(Struct, frozen=True):
    id: bytes
    root: FileId | None
    chunks: tuple[ChunkId, ...]
    store_ids: tuple[bytes, ...]
    inner: tuple[Inner, ...]
    by_path: Mapping[bytes, FileId]
    by_word: Mapping[str, int]
    when: datetime
    day: date
    ratio: float
    share: float
    words: frozenset[str]
    names: Names
    sizes: np.ndarray  # type: ignore[type-arg]
    columns: np.ndarray  # type: ignore[type-arg]
    one: np.int64
    nothing: None = None
    _hidden: int = field(default=3)


def test_every_kind_of_field() -> None:
    record = Everything(
        id=b"\x01" * 2,
        root=FileId(b"\xff"),
        chunks=(ChunkId(b"\x0a"),),
        store_ids=(b"\x0b",),
        inner=(Inner(b"a b.csv", Kind.FILE), Inner(b"\xff", Kind.NOT_PUSHED)),
        by_path={b"x": FileId(b"\x01")},
        by_word={"a": 1},
        when=datetime(2026, 11, 23, 16, 4, 5, tzinfo=timezone(timedelta(hours=1))),
        day=date(2026, 11, 23),
        ratio=0.5,
        share=math.nan,
        words=frozenset({"b", "a"}),
        names=Names.of([b"n1", b"\xfe"]),
        sizes=np.array([1, 2], np.int64),
        columns=np.zeros((2, 2), np.uint8),
        one=np.int64(7),
    )
    assert to_json(record) == {
        "id": "0101",
        "root": "ff",
        "chunks": ["0a"],
        "store_ids": ["0b"],
        "inner": [{"path": "a b.csv", "kind": "file"}, {"path": {"bytes_b64": "/w=="}, "kind": "not-pushed"}],
        "by_path": [{"key": "x", "value": "01"}],
        "by_word": {"a": 1},
        "when": "2026-11-23T15:04:05Z",
        "day": "2026-11-23",
        "ratio": 0.5,
        "share": None,
        "words": ["a", "b"],
        "names": ["n1", {"bytes_b64": "/g=="}],
        "sizes": [1, 2],
        "columns": ["0000", "0000"],
        "one": 7,
        "nothing": None,
    }


@given(st.binary(max_size=40))
def test_any_path_can_be_read_back(raw: bytes) -> None:
    """Raw, and as a str that came through os.fsdecode."""
    for value in (Inner(raw, Kind.FILE), os.fsdecode(raw)):
        text = json.dumps(to_json(value), allow_nan=False)
        found = json.loads(text)
        path = found["path"] if isinstance(value, Inner) else found
        assert (base64.b64decode(path["bytes_b64"]) if isinstance(path, dict) else path.encode()) == raw


def test_text_is_redacted_and_names_are_not() -> None:
    class Row(Struct, frozen=True):
        url: str
        path: bytes

    found = to_json(Row("secret", b"secret"), clean=lambda text: text.replace("secret", "***"))
    assert found == {"url": "***", "path": "secret"}


def test_an_unknown_type_is_a_bug_and_not_a_guess() -> None:
    for value in (object(), ValueError("x"), datetime.now(UTC).timetz()):
        with pytest.raises(TypeError):
            to_json(value)


def test_a_mapping_with_names_for_keys_is_a_list_also_when_it_is_empty() -> None:
    class Rules(Struct, frozen=True):
        rules: dict[bytes, str]
        plain: dict[str, int]

    assert to_json(Rules({}, {})) == {"rules": [], "plain": {}}
    assert to_json(Rules({b"a": "b"}, {"a": 1})) == {"rules": [{"key": "a", "value": "b"}], "plain": {"a": 1}}
