"""A sample of the fuzzing: `python -m dvk.testing.fuzz --seconds 60` gives every decoder a minute."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dvk.errors import Corrupt
from dvk.testing.decoders import DECODERS
from dvk.testing.file_decoders import Decoder
from dvk.testing.fuzz import Finding, corpus_of, fuzz, in_process, smaller, try_one

CORPUS = Path(__file__).parent / "corpus"


def test_no_decoder_takes_damaged_bytes_badly() -> None:
    """The corpus and a hundred new inputs for each: a value or an error of ours, soon and in little memory."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    found = in_process(",".join(DECODERS), seconds=3.0, seed=seed, corpus=str(CORPUS), inputs=150)
    assert not found.finding, found
    assert found.inputs > 20 * len(DECODERS)


def test_lines_of_nothing_but_commas_take_little_memory() -> None:
    """pyarrow takes 3 kB for each column that it converts, and ends the process where there is no memory."""
    code = (
        "from dvk.testing.decoders import DECODERS as d; from dvk.testing.fuzz import LIMIT_BYTES, limit_memory\n"
        "for data in d['csv'].seeds(): d['csv'].decode(data)\n"
        "limit_memory(LIMIT_BYTES)\n"
        "d['csv'].decode((b',' * 65_000 + b'\\n') * 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_corpus_belongs_to_decoders() -> None:
    folders = {p.name for p in CORPUS.iterdir()}
    assert folders and folders <= set(DECODERS)
    assert all(corpus_of(str(CORPUS), name) for name in folders)


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (lambda data: data[9], "IndexError"),
        (lambda data: time.sleep(0) or sum(i for i in range(60_000_000)) + len(data), "took"),
    ],
)
def test_what_is_no_error_of_ours_or_slow_is_a_finding(decode: object, says: str) -> None:
    with pytest.raises(Finding, match=says):
        try_one(Decoder("x", decode, lambda: [b"x"]), b"x")  # type: ignore[arg-type]


def test_a_finding_is_made_smaller() -> None:
    def decode(data: bytes) -> None:
        if b"bad" in data:
            raise KeyError
        raise Corrupt("no")

    decoder = Decoder("x", decode, lambda: [b"good bytes"])
    assert fuzz(decoder, seconds=5, seed=1, inputs=100) == 100
    assert smaller(decoder, b"something bad in here" * 9) == b"bad"
