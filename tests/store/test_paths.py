"""Names that may be stored and written, and the rest refused by name."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.errors import FormatError
from dvk.store.names import Names
from dvk.store.paths import (
    bad_names,
    check_link,
    check_names,
    check_path,
    find_collisions,
    fold,
    why_bad,
)

GOOD = [
    b"a",
    b"a/b/c.txt",
    b"-rf",
    b" leading and trailing ",
    b"new\nline\ttab",
    b"\xff\xfe\x80",
    b"x" * 255,
    b".gitignore",
    b".github/workflows",
    b".dvkignore",
    b"git",
    b"gitted~1",
    b"CON",
    b"a:b",
    b"...",
    b"caf\xc3\xa9",
    b"/".join([b"d" * 200] * 20),
    "it’s – here".encode(),
]

BAD = [
    b"",
    b"/etc/passwd",
    b"a/",
    b"a//b",
    b".",
    b"..",
    b"a/../b",
    b"./a",
    b"a\0b",
    b"x" * 256,
    b"/".join([b"d" * 200] * 21),
    b".git",
    b"a/.git/hooks/post-checkout",
    b".GIT",
    b".Git ",
    b".git.",
    b".git. .",
    b".git:x",
    b".git::$INDEX_ALLOCATION",
    b"git~1",
    b"GIT~25/x",
    b".dvk",
    b".DVK/store",
    ".dv\u212a".encode(),  # the Kelvin sign folds to k
    ".g\u200cit".encode(),
    "\ufeff.git".encode(),
    ".gi\u206et".encode(),
    "g\u200dit~1".encode(),
]


@pytest.mark.parametrize("path", GOOD, ids=repr)
def test_good_names_pass(path: bytes) -> None:
    check_path(path, subject="x.dvk")
    assert bad_names(Names.of([path])) == []


@pytest.mark.parametrize("path", BAD, ids=lambda p: repr(p)[:40])
def test_bad_names_are_refused_alone_and_in_columns(path: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        check_path(path, subject="x.dvk")
    assert caught.value.subject == "x.dvk"
    found = bad_names(Names.of([b"a", path, b"z"]))
    assert [i for i, _ in found] == [1]
    assert found[0][1] == why_bad(path)


PART = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b".git", b".GIT.", b".dvk", b"git~1", b"..", b".", b".x", "\u200c.git".encode(), b"a~1", b"~1"]),
)


@given(st.lists(st.lists(PART, min_size=1, max_size=4).map(b"/".join), max_size=12))
def test_columns_are_judged_as_each_name_is(paths: list[bytes]) -> None:
    assert bad_names(Names.of(paths)) == [(i, why_bad(p)) for i, p in enumerate(paths) if why_bad(p)]


@given(st.lists(st.lists(PART, min_size=1, max_size=4).map(b"/".join), max_size=12))
def test_a_slice_is_judged_as_a_copy(paths: list[bytes]) -> None:
    whole = Names.of([b".git", *paths, b"/"])
    assert bad_names(whole.slice(1, 1 + len(paths))) == bad_names(Names.of(paths))


NAME = st.text(alphabet="ab-./", min_size=1, max_size=7).map(str.encode)


@given(st.lists(NAME, max_size=10))
def test_check_names_agrees_with_the_plain_definition(names: list[bytes]) -> None:
    fine = (
        all(not why_bad(n) for n in names)
        and names == sorted(set(names))
        and not any(b.startswith(a + b"/") for a in names for b in names)
    )
    if fine:
        check_names(Names.of(names), subject="s")
    else:
        with pytest.raises(FormatError):
            check_names(Names.of(names), subject="s")


def test_a_file_that_is_also_a_directory_is_found_past_its_neighbours() -> None:
    with pytest.raises(FormatError, match=r'"a" is a file and also a directory of "a/b"'):
        check_names(Names.of([b"a", b"a-x", b"a.txt", b"a/b"]), subject="s")


def test_offsets_that_make_no_sense_are_refused() -> None:
    names = Names.of([b"abc"])
    names.offsets[1] = 99
    with pytest.raises(FormatError):
        check_names(names, subject="s")


def test_half_a_million_names_take_well_under_a_second() -> None:
    names = Names.of([b"images/d%03d/file_%06d.jpg" % (i // 1000, i) for i in range(500_000)])
    began = time.process_time()
    check_names(names, subject="s")
    assert time.process_time() - began < 1.5  # 0.14 s alone on an idle core


def test_collisions_of_case_forms_and_directories() -> None:
    nfc, nfd = "é".encode(), unicodedata.normalize("NFD", "é").encode()
    assert find_collisions([b"A/x", b"B", b"a/y", b"b"]) == [(b"A", b"a"), (b"B", b"b")]
    assert find_collisions([nfc, nfd]) in ([(nfc, nfd)], [(nfd, nfc)])
    assert find_collisions([nfc, nfd], forms=False) == []
    assert find_collisions([b"A", b"a"], case=False) == []
    assert find_collisions([b"a", b"b/a", b"\xff"]) == []
    assert find_collisions([b"STRASSE", "straße".encode()]) != []


@given(st.lists(st.text(alphabet="aAé/", min_size=1, max_size=5), max_size=8, unique=True))
def test_every_name_that_folds_together_is_in_a_pair(texts: list[str]) -> None:
    names = [t.encode() for t in texts if not why_bad(t.encode())]
    pairs = find_collisions(names)
    for a, b in pairs:
        assert a != b and fold(a) == fold(b)
    leaves = {fold(n) for n in names}
    if len(leaves) < len(names):
        assert pairs


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"l", b"a"),
        (b"l", b"a/b"),
        (b"d/l", b"../a"),
        (b"d/e/l", b"../../x/y"),
        (b"d/l", b".."),
        (b"l", b"./a"),
    ],
)
def test_links_inside_pass(path: bytes, target: bytes) -> None:
    check_link(path, target)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"l", b""),
        (b"l", b"/etc/passwd"),
        (b"l", b".."),
        (b"l", b"../x"),
        (b"d/l", b"../../x"),
        (b"d/l", b"a/../../../x"),
        (b"l", b"d/d/../../.."),
        (b"l", b"a\0b"),
        (b"l", b"a" * 5000),
    ],
)
def test_links_that_leave_are_refused_and_named(path: bytes, target: bytes) -> None:
    with pytest.raises(FormatError, match="the link"):
        check_link(path, target, subject="folder")
