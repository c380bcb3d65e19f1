"""What a decoder is to `dvk.testing.fuzz`, and the decoders of users' files: tables, tensors, archives."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dvk.store.regions import plan_regions
from dvk.table.contract import ReadOptions
from dvk.table.open import open_table
from dvk.table.source import BytesSource
from dvk.table.tensors.files import read_tensors, tensor_format, unpacked_items

SUBJECT = "input"  #: what errors call what is decoded


@dataclass(frozen=True, slots=True)
class Decoder:
    """One decoder."""

    name: str
    decode: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    repair: Callable[[bytes], bytes] | None = None


def _table(name: bytes) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        with closing(open_table(BytesSource(data, name=name), ReadOptions())) as table:
            rows = table.count_rows()
            for _, batch in table.batches(range(len(table.columns))):
                rows -= batch.num_rows
        return rows

    return decode


def _csv() -> list[bytes]:
    rows = [b"id,price,note\n", *(b'%d,%d.5,"a ""b""\nc"\n' % (i, i) for i in range(30))]
    return [b"".join(rows), "\ufeffa;b\n1;ü\n".encode(), "a\tb\n1\t2\n".encode("utf-16"), b"a,b\r\n1,2\r\n"]


def _jsonl() -> list[bytes]:
    return [
        b"".join(json.dumps({"id": i, "x": [i, {"y": None}], "s": "é\n"}).encode() + b"\n" for i in range(30)),
        b'{"a": 1}\n{"b": 1.5e300}\n',
    ]


def _arrow_table() -> pa.Table:
    words = pa.array(["a", "b", "a", None] * 10).dictionary_encode()
    return pa.table({"id": pa.array(range(40)), "x": pa.array([1.5] * 40), "w": words, "l": [[i] for i in range(40)]})


def _parquet() -> list[bytes]:
    found = []
    for codec in ("NONE", "snappy", "zstd"):
        out = io.BytesIO()
        pq.write_table(_arrow_table(), out, compression=codec, row_group_size=15)
        found.append(out.getvalue())
    return found


def _arrow() -> list[bytes]:
    out = io.BytesIO()
    table = _arrow_table()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return [out.getvalue()]


def _npy() -> list[bytes]:
    found = []
    for array in (
        np.arange(12.0).reshape(3, 4),
        np.zeros(3, "<f2"),
        np.array(7),
        np.zeros(2, [("a", "<i4"), ("b", "S3")]),
    ):
        out = io.BytesIO()
        np.save(out, array)
        found.append(out.getvalue())
    return found


def _npz() -> list[bytes]:
    out = io.BytesIO()
    np.savez(out, a=np.arange(50), b=np.zeros((3, 3)))
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.arange(5000))
    return [out.getvalue(), packed.getvalue()]


def _safetensors() -> list[bytes]:
    head = {"__metadata__": {"a": "b"}}
    tensors = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    tensors["b"] = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    text = json.dumps(head | tensors).encode()
    return [len(text).to_bytes(8, "little") + text + bytes(32)]


def _tensors(name: bytes) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        source = BytesSource(data, name=name)
        if len(data) < 16 or not tensor_format(data[:16], name):
            return None
        found = read_tensors(source, tensor_format(data[:16], name))
        for tensor in list(found.tensors.values())[:4]:
            if tensor.member:
                for n, _ in enumerate(unpacked_items(source, tensor, 1 << 16)):
                    if n > 64:
                        break
        return found

    return decode


def _gguf() -> bytes:
    key = b"general.name"
    kv = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 1) + b"x"
    info = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 64, 64, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + kv + info


def _tar() -> bytes:
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, size in (("a.bin", 3000), ("b/c.npy", 9000)):
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.bin", bytes(5000))
        archive.writestr("b.npy", _npy()[0])
    return out.getvalue()


_PAD = 300_000  # below that a file is one region, and nobody looks into it


def _region_seeds() -> list[bytes]:
    heads = [_gguf(), *_npy(), *_npz(), *_safetensors(), _tar(), _zip()]
    return [*heads, *_parquet()]


def _decode_regions(data: bytes) -> object:
    """As a large file: what the head states is far more than what the input holds."""
    found = []
    for whole in (data + bytes(_PAD), data[: len(data) // 2] + bytes(_PAD) + data[len(data) // 2 :]):
        found.append(plan_regions(lambda at, n, whole=whole: whole[at : at + n], len(whole)))  # type: ignore[misc]
    for regions, size in zip(found, (len(data) + _PAD,) * 2, strict=True):
        starts = regions.starts
        if not len(starts) or starts[0] != 0 or bool((np.diff(starts) <= 0).any()) or int(starts[-1]) >= size:
            raise AssertionError("the regions do not cover the file")
    return found


FILES: tuple[Decoder, ...] = (
    Decoder("csv", _table(b"x.csv"), _csv),
    Decoder("jsonl", _table(b"x.jsonl"), _jsonl),
    Decoder("parquet", _table(b"x.parquet"), _parquet),
    Decoder("arrow", _table(b"x.arrow"), _arrow),
    Decoder("npy", _tensors(b"x.npy"), _npy),
    Decoder("npz", _tensors(b"x.npz"), _npz),
    Decoder("safetensors", _tensors(b"x.safetensors"), _safetensors),
    Decoder("regions", _decode_regions, _region_seeds),
)
