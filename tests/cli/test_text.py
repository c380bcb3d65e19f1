"""Numbers read well at every magnitude, and nothing hostile reaches a terminal."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvk.cli.text import (
    ago,
    bold,
    columns,
    count,
    duration,
    green,
    percent,
    plain,
    plural,
    printable,
    rate,
    red,
    size,
    styled,
    width,
)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1024, "1.02 kB"),
        (9994, "9.99 kB"),
        (9996, "10 kB"),
        (99_949, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (28_000_000, "28 MB"),
        (385_000_000, "385 MB"),
        (1_020_000_000, "1.02 GB"),
        (3_100_000_000, "3.1 GB"),
        (412 * 10**9, "412 GB"),
        (10**21, "1000 EB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_size(n: int, text: str) -> None:
    assert size(n) == text


@given(st.integers(0, 10**20))
def test_size_is_short_and_right_to_half_a_percent(n: int) -> None:
    number, unit = size(n).split(" ")
    factor = 1000 ** ["B", "kB", "MB", "GB", "TB", "PB", "EB"].index(unit)
    assert abs(float(number) * factor - n) <= max(0.0051 * n, 0)
    assert len(number) <= 4


@pytest.mark.parametrize(
    ("s", "text"),
    [
        (0, "0 ms"),
        (0.05, "50 ms"),
        (0.0999, "0.1 s"),
        (1.234, "1.2 s"),
        (9.0, "9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3599.7, "1 h"),
        (3780, "1 h 3 min"),
        (86_400, "1 day"),
        (183_600, "2 days 3 h"),
    ],
)
def test_duration(s: float, text: str) -> None:
    assert duration(s) == text


def test_counts_rates_shares_and_ages() -> None:
    assert [plural(n, "file") for n in (0, 1, 48_800)] == ["0 files", "1 file", "48,800 files"]
    assert plural(2, "copy", "copies") == "2 copies"
    assert count(1_000_000) == "1,000,000"
    assert rate(112e6) == "112 MB/s"
    assert [percent(*x) for x in ((0, 10), (1, 1000), (1, 10**6), (999, 1000), (5, 5), (0, 0))] == [
        "0 %",
        "0.1 %",
        "0.1 %",
        "99 %",
        "100 %",
        "100 %",
    ]
    assert [ago(s) for s in (3, 300, 7200, 86_400, 172_800, 10**8)] == [
        "just now",
        "5 min ago",
        "2 h ago",
        "1 day ago",
        "2 days ago",
        "3 years ago",
    ]


@given(st.text(st.characters()))
def test_nothing_unprintable_is_left(text: str) -> None:
    """C0, C1, bidi controls, separators and lone surrogates are all gone, and what is left can be encoded."""
    out = printable(text)
    assert out.isprintable()
    out.encode("utf-8")
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in out)


def test_escapes_are_readable() -> None:
    assert printable("a\x1b[31m\nb\u202ec\x9b\udce9") == r"a\x1b[31m\nb\u202ec\x9b\xe9"


@given(st.lists(st.tuples(st.sampled_from([None, bold, red, green]), st.text()), max_size=4))
def test_styles_add_only_our_own_sequences(parts: list) -> None:  # type: ignore[type-arg]
    line = [text if style is None else style(text) for style, text in parts]
    assert re.sub(r"\x1b\[[0-9;]*m", "", styled(line)) == plain(line)
    assert plain(line) == "".join(printable(text) for _, text in parts)


def test_columns_align_by_cells() -> None:
    """Wide and combining characters take the room they take on a terminal."""
    lines = columns([("a", "10", "x"), ("日本", "9", green("y")), ("e\u0301", "1,000")], right=[1])
    assert [plain(line) for line in lines] == ["a        10  x", "日本      9  y", "e\u0301     1,000"]
    assert width("日本") == 4 and width("e\u0301") == 1
    assert columns([]) == []
