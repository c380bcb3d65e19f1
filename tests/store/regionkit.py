"""Files with a structure, made byte by byte: what writers of tensors, tables and archives leave."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from blake3 import blake3

from dvk.store.chunker import Cutter
from dvk.store.codec import Hint

PROFILE = "auto-64k"


def xof(label: str, size: int) -> bytes:
    """`size` bytes of BLAKE3 extended output: the random bytes of all format vectors."""
    return blake3(label.encode()).digest(size)


# ---------------------------------------------------------------- cutting


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def cut(data: bytes) -> tuple[list[int], list[Hint]]:
    lengths, hints = Cutter(PROFILE).for_file(reader(data), len(data)).feed(memoryview(data), final=True)
    assert len(lengths) == len(hints) and sum(lengths.tolist()) == len(data)
    return lengths.tolist(), hints


def cut_in_reads(data: bytes, reads: Sequence[int]) -> tuple[list[int], list[Hint]]:
    """The chunks when the file arrives in reads of these sizes, then the rest: as a caller streams it."""
    cutter = Cutter(PROFILE).for_file(reader(data), len(data))
    lengths: list[int] = []
    hints: list[Hint] = []
    pending, at = b"", 0
    for size in [*reads, len(data)]:
        pending += data[at : at + size]
        at = min(at + size, len(data))
        some, held = cutter.feed(memoryview(pending), final=at == len(data))
        assert len(pending) - sum(some.tolist()) < 1 << 20
        pending = pending[sum(some.tolist()) :]
        lengths += some.tolist()
        hints += held
        if at == len(data):
            break
    assert not pending
    return lengths, hints


def starts(lengths: Sequence[int]) -> set[int]:
    """Where chunks start."""
    return set(np.cumsum([0, *lengths])[:-1].tolist())


def chunks(data: bytes) -> dict[bytes, int]:
    """Id and length of each chunk."""
    out, at = {}, 0
    for length in cut(data)[0]:
        out[blake3(data[at : at + length]).digest()] = length
        at += length
    return out


def new_bytes(old: bytes, new: bytes) -> int:
    """How much of `new` is not stored with `old`."""
    had = chunks(old)
    return sum(length for name, length in chunks(new).items() if name not in had)


# ---------------------------------------------------------------- tensors


def safetensors(tensors: Mapping[str, tuple[str, bytes]], **metadata: str) -> bytes:
    """Of (dtype, bytes) by name."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def lying_safetensors(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def gguf(tensors: Mapping[str, tuple[int, bytes]], *, words: int = 100, alignment: int = 32) -> bytes:
    """Of (type, bytes) by name, with a vocabulary of so many words."""
    pairs = [
        _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama"),
        _text(b"general.alignment") + struct.pack("<II", 4, alignment),
        _text(b"general.quantized") + struct.pack("<IB", 7, 1),
        _text(b"tokens") + struct.pack("<IIQ", 9, 8, words) + b"".join(_text(b"word%d" % i) for i in range(words)),
        _text(b"scores") + struct.pack("<IIQ", 9, 6, words) + bytes(4 * words),
    ]
    infos, body = b"", b""
    for name, (kind, data) in tensors.items():
        body += bytes(-len(body) % alignment)
        infos += _text(name.encode()) + struct.pack("<IQQIQ", 2, len(data), 1, kind, len(body))
        body += data
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    return head + bytes(-len(head) % alignment) + body


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


# ---------------------------------------------------------------- archives


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def zip_of(members: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.comment = comment
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def pt(storages: Mapping[int, bytes]) -> bytes:
    """What torch.save leaves, but for the pickle."""
    members = {"model/data.pkl": b"\x80\x02}q\0." * 20, "model/byteorder": b"little"}
    members |= {f"model/data/{i}": data for i, data in storages.items()}
    return zip_of(members | {"model/version": b"3\n"})


def tar_of(members: Mapping[str, bytes], *, format_: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


# ---------------------------------------------------------------- Parquet


def varint(n: int) -> bytes:
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def _number(field: int, last: int, value: int) -> bytes:
    return bytes([(field - last) << 4 | 6]) + varint(value << 1 ^ value >> 63)


def _list_of_structs(field: int, last: int, items: Sequence[bytes]) -> bytes:
    head = bytes([len(items) << 4 | 12]) if len(items) < 15 else b"\xfc" + varint(len(items))
    return bytes([(field - last) << 4 | 9]) + head + b"".join(items)


def parquet_footer(groups: Sequence[Sequence[tuple[int, int, int]]], *, codec: int = 0) -> bytes:
    """Of (dictionary page or 0, data page, length) of each column chunk of each row group."""

    def chunk(dictionary: int, data: int, size: int) -> bytes:
        meta = _number(1, 0, 1) + b"\x19\x25\x00\x06" + b"\x19\x18\x01x" + _number(4, 3, codec) + _number(7, 4, size)
        meta += _number(9, 7, data) + (_number(11, 9, dictionary) if dictionary else b"") + b"\0"
        return _number(2, 0, data) + b"\x1c" + meta + b"\0"

    rows = [_list_of_structs(1, 0, [chunk(*c) for c in group]) + _number(2, 1, 5) + b"\0" for group in groups]
    schema = [b"\x48\x06schema\x15\x02\0", b"\x15\x02\x25\x02\x18\x01x\0"]
    return _number(1, 0, 2) + _list_of_structs(2, 1, schema) + _number(3, 2, 5) + _list_of_structs(4, 3, rows) + b"\0"


def parquet_of(groups: Sequence[Sequence[bytes]], *, codec: int = 0) -> bytes:
    """A file with these column chunks; the pages themselves are any bytes."""
    at = 4
    placed = []
    for group in groups:
        places = []
        for body in group:
            places.append((at, at + len(body) // 3, len(body)))
            at += len(body)
        placed.append(places)
    footer = parquet_footer(placed, codec=codec)
    body = b"".join(b"".join(group) for group in groups)
    return b"PAR1" + body + footer + struct.pack("<I", len(footer)) + b"PAR1"
