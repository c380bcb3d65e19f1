"""Tables that are none: which file, where in it, what to do, and the documented exit code; never a number."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from projects import Project

from dvk.cli.exit_codes import TABLE

EXIT_CODES = {row.kind: row.code for row in TABLE}

GOOD = b"id,x\n1,a\n2,b\n"


def parquet(**more: object) -> bytes:
    out = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"id": range(99), "x": [str(i) for i in range(99)]}), out, **more)
    return out.getvalue().to_pybytes()


def objects() -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"


def unknown_codec() -> bytes:
    """The codec of the first column chunk, snappy (1, so 2 in the footer), is one that nobody knows."""
    data = bytearray(parquet(compression="snappy", use_dictionary=False, write_statistics=False))
    at = data.index(b"\x19\x18\x02id\x15\x02")
    data[at + 6] = 60
    return bytes(data)


FILES: dict[str, tuple[bytes | Callable[[], bytes], str, str]] = {
    # name: (bytes, what is said, what to do)
    "ragged.csv": (GOOD + b"3,c,d\n", r"line 4, byte 13: a record of 3 fields in a table of 2", "--ragged"),
    "open.csv": (GOOD + b'3,"c\n', r"line 4, byte 15: the quote that opens here is never closed", "--quote-char"),
    "latin.csv": (GOOD + b"3,caf\xe9\n", r"line 4, byte 18: the bytes e9 0a are not UTF-8", "--encoding"),
    "line.jsonl": (b'{"id":1}\n{"id":\n', r"line 2, byte 9: ", "mend"),
    "twice.jsonl": (b'{"id":1,"id":2}\n', r"line 1, byte \d+: the field 'id' occurs twice", "mend"),
    "cut.parquet": (lambda: parquet()[:-100], "cut short", "write the file again"),
    "codec.parquet": (unknown_codec, "codec|compression", "."),
    "encrypted.parquet": (b"PARE" + bytes(100) + b"PARE", "encrypted", "decrypt"),
    "cut.csv.gz": (lambda: gzip.compress(GOOD * 900)[:-9], "the gzip data is broken: it ends early", "write the file"),
    "fake.csv.zst": (GOOD, "named .zst and is no zstd data", "write the file"),
    "pickle.npy": (lambda: pickle.dumps([1]), "is a pickle, which runs code", "safetensors"),
    "objects.npy": (objects, "Python objects", "numbers or text"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with each of the files in a good state committed, and the bad one on disk; and one that changed."""
    folder = tmp_path_factory.mktemp("bad")
    made = Project(folder / "p", folder / "home")
    whole = {
        ".csv": GOOD,
        ".jsonl": b'{"id":1}\n',
        ".parquet": parquet(),
        ".gz": gzip.compress(GOOD),
        ".npy": npy(3),
        ".zst": zstandard.compress(GOOD),
    }
    good = {name: whole.get(Path(name).suffix, GOOD + b" ") for name in FILES}
    made.version({**good, "fine.csv": GOOD}, *good, "fine.csv")
    made.write({name: data() if callable(data) else data for name, (data, _, _) in FILES.items()})
    made.write({"fine.csv": GOOD + b"3,c\n"})
    return made


def npy(n: int) -> bytes:
    out = pa.BufferOutputStream()
    np.save(out, np.arange(n))
    return out.getvalue().to_pybytes()


@pytest.mark.parametrize("name", FILES)
def test_what_is_wrong_is_named_and_other_files_are_compared(project: Project, name: str) -> None:
    """Alone, the file ends the run with the code of a table; beside another one, the run ends in part."""
    _, says, advice = FILES[name]
    alone = project.dvk("diff", name)
    assert alone.code == EXIT_CODES["table"], alone.err
    assert re.search(rf"^error: {name} in the workspace: .*(?:{says})", alone.err, re.M), alone.err
    assert re.search(rf"^hint: .*{advice}", alone.err, re.M), alone.err
    assert "rows" not in alone.out
    both = project.dvk("--json", "diff", name, "fine.csv")
    assert both.code == EXIT_CODES["partial"]
    paths = {p["path"]: p for p in json.loads(both.out)["result"]["paths"]}
    assert paths["fine.csv"]["table"]["rows"]["added"] == 1
    assert paths[name].get("table") is None


@pytest.mark.parametrize(
    ("options", "kind", "says", "advice"),
    [
        (("--key", "nope"), "table", "nope", "."),
        (("--memory", "1M"), "usage", "640 MiB of memory", "give it more"),
        (("--tmp", "/nowhere/at/all"), "storage", "no folder for temporary files", ""),
        (("--where", "x ="), "usage", "where", ""),
        (("--encoding", "klingon"), "usage", "no text encoding 'klingon'", "utf-8"),
        (("--delimiter", "ab"), "usage", "delimiter", ""),
    ],
)
def test_what_cannot_be_done_as_asked(
    project: Project, options: tuple[str, ...], kind: str, says: str, advice: str
) -> None:
    """The word of the error is the one that the exit codes document, and says which option it is about."""
    done = project.dvk("diff", *options, "fine.csv")
    assert done.code == EXIT_CODES[kind], done.err
    assert re.search(says, done.err) and re.search(rf"^hint: .*{advice}" if advice else "", done.err, re.M), done.err
    assert "rows" not in done.out


def test_data_that_is_nowhere_and_no_network(project: Project, tmp_path: Path) -> None:
    """A clone without data, offline: what is missing, and what gets it."""
    project.git("clone", "-q", str(project.top), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", tmp_path / "home2", init=False)
    clone.write({"fine.csv": b"id,x\n"})
    done = clone.dvk("diff", "--no-fetch", "fine.csv")
    assert done.code == EXIT_CODES["data-missing"], done.err
    assert "fine.csv" in done.err and "--no-fetch" in done.err


def test_null_text_and_absent_of_json_lines_look_different(tmp_path: Path) -> None:
    """Three things that a person must be able to tell apart."""
    project = Project(tmp_path / "p", tmp_path / "home")
    project.version({"t.jsonl": b'{"id":1,"a":null,"b":"null","c":1}\n{"id":2,"c":2}\n'}, "t.jsonl")
    project.write({"t.jsonl": b'{"id":1,"a":"null","b":null}\n{"id":2,"c":2}\n'})
    said = project.dvk("diff", "--key", "id", "t.jsonl").out
    assert 'a: null -> "null", b: "null" -> null, c: 1 -> absent' in said
    assert "1 -> absent (1), 1 value to absent" in said
    rows = json.loads(project.dvk("diff", "--key", "id", "--format", "json", "t.jsonl").out)["paths"][0]["table"][
        "changes"
    ]
    assert rows[0]["cells"]["a"] == {"a": "null", "b": '"null"'} and rows[0]["cells"]["c"] == {"a": "1", "b": None}
