"""The pointer: one spelling for one meaning, and everything else refused with a word on what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dvk.errors import DvkError, FormatError, UsageError
from dvk.ids import EMPTY_FILE
from dvk.workspace.pointer import (
    MAX_BYTES,
    MAX_NUMBER,
    Pointer,
    data_name,
    format_pointer,
    is_pointer_name,
    parse,
    pointer_name,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "docs/format/vectors/pointer/vectors.json").read_text(encoding="utf-8")
)


def _bytes(vector: dict[str, Any]) -> bytes:
    data = bytes.fromhex(vector["hex"]) if "hex" in vector else vector["text"].encode()
    count, text = vector.get("repeat", (0, ""))
    return bytes(data + text.encode() * count)


@pytest.mark.parametrize("vector", VECTORS["valid"], ids=lambda v: v["name"])
def test_valid_vectors_mean_what_they_say(vector: dict[str, Any]) -> None:
    said = vector["pointer"]
    expected = Pointer(
        said["kind"],
        bytes.fromhex(said["id"]),
        said["size"],
        said["files"],
        said["exec"],
        tuple((a, b) for a, b in said["source"]),
    )
    assert parse(_bytes(vector), subject="x.dvk") == expected
    assert format_pointer(expected) == _bytes(vector)


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: v["name"])
def test_invalid_vectors_are_refused_with_a_reason_and_a_hint(vector: dict[str, Any]) -> None:
    with pytest.raises(FormatError) as caught:
        parse(_bytes(vector), subject="x.dvk")
    assert caught.value.kind == vector["kind"]
    assert vector["says"] in caught.value.message
    assert caught.value.subject == "x.dvk"
    assert caught.value.hint


_texts = (
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=40)
    .map(lambda t: t.strip(" "))
    .filter(bool)
)
_sources = st.dictionaries(st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True), _texts, max_size=4).map(
    lambda d: tuple(sorted(d.items()))
)
_ids = st.binary(min_size=32, max_size=32).filter(lambda i: i != EMPTY_FILE)
_sizes = st.integers(1, MAX_NUMBER)
pointers = st.one_of(
    st.builds(Pointer, st.just("file"), _ids, _sizes, st.none(), st.booleans(), _sources),
    st.builds(Pointer, st.just("dir"), _ids, _sizes, _sizes, st.just(False), _sources),
    st.builds(Pointer, st.just("file"), st.just(bytes(EMPTY_FILE)), st.just(0), st.none(), st.booleans(), _sources),
)


@given(pointers)
def test_what_is_written_reads_back_the_same(pointer: Pointer) -> None:
    data = format_pointer(pointer)
    assert parse(data, subject="x") == pointer
    assert len(data) <= MAX_BYTES


@given(pointers.map(format_pointer), st.data())
def test_a_changed_pointer_is_refused_or_has_the_changed_bytes_as_its_one_spelling(
    data: bytes, draw: st.DataObject
) -> None:
    """Whatever parses is canonical, so two different files never mean the same."""
    at = draw.draw(st.integers(0, len(data)))
    cut = draw.draw(st.integers(0, 3))
    changed = data[:at] + draw.draw(st.binary(max_size=3)) + data[at + cut :]
    try:
        pointer = parse(changed, subject="x")
    except FormatError:
        return
    assert format_pointer(pointer) == changed


@given(st.binary(max_size=300))
@example(b"dvk pointer 99999999999999999999999\n")
@example(b"\xff\xfe")
def test_only_our_errors_escape_from_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data, subject="x")


@pytest.mark.parametrize(
    "pointer",
    [
        Pointer("file", bytes(31), 5),
        Pointer("file", bytes(32), -1),
        Pointer("file", bytes(32), 5, files=1),
        Pointer("dir", bytes(32), 5),
        Pointer("dir", bytes(32), 5, 1, exec=True),
        Pointer("file", bytes(32), 5, source=(("url", "a\nb"),)),
        Pointer("file", bytes(32), 5, source=(("url", "\udcff"),)),
        Pointer("file", bytes(32), 5, source=(("b", "1"), ("a", "2"))),
        Pointer("file", bytes(32), 5, source=tuple((f"s{i:03}", "x" * 4096) for i in range(20))),
    ],
)
def test_a_record_that_no_pointer_can_say_is_never_written(pointer: Pointer) -> None:
    with pytest.raises(DvkError):
        format_pointer(pointer)


@given(st.binary(min_size=1, max_size=30).filter(lambda b: not b.endswith((b".dvk", b"/"))))
def test_names_of_pointer_and_data_are_each_others_inverse(path: bytes) -> None:
    assert data_name(pointer_name(path)) == path


def test_names_that_are_no_pointers() -> None:
    """`.dvk` alone has no data beside it, and data called x.dvk would make `x` ambiguous."""
    assert is_pointer_name(b"a/x.dvk")
    assert not is_pointer_name(b"a/.dvk")
    assert not is_pointer_name(b".dvk")
    assert not is_pointer_name(b"x.dvk/y")
    for path in (b"x", b"a/.dvk", b"x.dvk.dvk"):
        with pytest.raises(UsageError):
            data_name(path)
    with pytest.raises(UsageError):
        pointer_name(b"x.dvk")
    assert pointer_name(b"d" * 255 + b"/" + b"n" * 251).endswith(b"n.dvk")
    with pytest.raises(UsageError, match="251"):
        pointer_name(b"d/" + b"n" * 252)
