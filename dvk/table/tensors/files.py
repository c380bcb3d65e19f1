"""Files of tensors, by their headers alone: what tensors there are, of which type and shape, and where their bytes lie.

    found = read_tensors(source)
    found.tensors["layer.0.weight"]      # Tensor("layer.0.weight", "BF16", (4096, 4096), start=8_192, stop=33_562_624)

safetensors, npy and npz. A header is a stranger's: its length and nesting are bounded, every range is checked against
the file and against type and shape, and nothing in it is executed. Arrays of objects and pickles run code when they are
loaded, so they are refused by name.
"""

from __future__ import annotations

import ast
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedReader, RawIOBase
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from dvk.errors import TableError
from dvk.store.regions.tensors import MAX_JSON_DEPTH, json_depth
from dvk.table.broken import broken

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from dvk.table.contract import Source

#: Of some 150,000 tensors. JSON takes thirty times its length while it is parsed.
_MAX_SAFETENSORS_HEADER_BYTES: Final = 16 << 20
_MAX_NPY_HEADER_BYTES: Final = 64 << 10
_MAX_MEMBERS: Final = 10_000
_ENCRYPTED: Final = 1  # flag of a member
_MAX_DIMENSIONS: Final = 64
_NPY_MAGIC: Final = b"\x93NUMPY"
_ZIP_MAGIC: Final = (b"PK\x03\x04", b"PK\x05\x06")
#: What lying bytes make of the parsers.
_LIES: Final = (ValueError, TypeError, KeyError, SyntaxError, OverflowError, RecursionError, MemoryError, struct.error)

#: Bits of an item of each type of safetensors.
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Tensor(Struct, frozen=True):
    """A tensor as a file declares it. Bytes [start, stop) of the file hold it, or its compressed form.

    `dtype`: the word of safetensors (`BF16`), or NumPy's (`<f4`). `member`: in an npz, the archive's name for it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    fortran: bool = False
    member: str = ""
    compressed: bool = False
    skip: int = 0  #: of a compressed one, bytes of header before the items once it is decompressed

    @property
    def elements(self) -> int:
        """How many items."""
        return math.prod(self.shape)


class TensorFile(Struct, frozen=True):
    """What a file holds, in its order."""

    format: str  #: `safetensors`, `npy` or `npz`
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def tensor_format(head: bytes, name: bytes) -> str:
    """`safetensors`, `npy` or `npz` by the first bytes of a file (16 or more) and its name; empty for anything else.

    A pickle that is named as a file of tensors is one of those too, so that it is refused for what it is.
    """
    if head.startswith(_NPY_MAGIC):
        return "npy"
    suffix = name.lower().rpartition(b".")[2]
    if suffix == b"npz":
        return "npz"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= _MAX_SAFETENSORS_HEADER_BYTES:
        return "safetensors"
    return suffix.decode() if suffix in (b"safetensors", b"npy") else ""


def read_tensors(source: Source, format: str) -> TensorFile:
    """The tensors of a file of the `format` that `tensor_format` found. Reads headers only.

    Raises:
        TableError: it is malformed, a pickle, or holds objects.
        DataMissing, Corrupt, StorageError, RemoteUnreachable: as the source does.
    """
    head = source.read_at(0, min(16, source.size))
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        _wrong(source, "is a pickle, which runs code when it is loaded", "save it as safetensors or npy")
    try:
        if format == "safetensors":
            return _safetensors(source)
        if format == "npy":
            return TensorFile("npy", {"": _npy(source)})
        return _npz(source)
    except _LIES as error:
        raise broken(f"is no {format} file: its header is malformed", source.label) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise broken(f"is no {format} file that can be read: {error}", source.label) from error


def unpacked_items(source: Source, tensor: Tensor, step: int) -> Iterator[bytes]:
    """The items of a compressed tensor in runs of `step` bytes, the last one shorter.

    Raises:
        TableError: they cannot be decompressed, or fail their checksum.
    """
    size = tensor.elements * np.dtype(tensor.dtype).itemsize
    try:
        with zipfile.ZipFile(_file(source)) as archive, archive.open(tensor.member) as member:
            _exactly(member, tensor.skip)
            for at in range(0, size, step):
                yield _exactly(member, min(step, size - at))
            if member.read(1):  # the checksum is compared at the end
                raise ValueError("it is longer than its header states")
    except (*_LIES, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise broken(f"the array {tensor.name} cannot be read: {error}", source.label) from error


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    while len(data) < size:
        more = stream.read(size - len(data))
        if not more:
            raise EOFError("it is cut short")
        data += more
    return data


def _wrong(source: Source, message: str, hint: str = "") -> NoReturn:
    raise TableError(message, subject=source.label, hint=hint)


# ---------------------------------------------------------------- safetensors


def _safetensors(source: Source) -> TensorFile:
    length = int.from_bytes(source.read_at(0, min(8, source.size)), "little")
    if source.size < 8 or not 2 <= length <= min(source.size - 8, _MAX_SAFETENSORS_HEADER_BYTES):
        _wrong(
            source,
            "is no safetensors file: its header does not fit in it, or is larger than"
            f" {_MAX_SAFETENSORS_HEADER_BYTES >> 20} MiB",
        )
    text = source.read_at(8, length)
    if json_depth(text) > MAX_JSON_DEPTH:
        raise ValueError
    header = json.loads(text, object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise ValueError
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError
    base = 8 + length
    found = {}
    for name, row in header.items():
        dtype, shape, (begin, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
        _check_shape(shape)
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise ValueError
        if base + end > source.size:
            _wrong(source, f"is cut short: the tensor {name} ends behind the end of the file")
        bits = _BITS.get(str(dtype))
        if bits is not None and (end - begin) * 8 != math.prod(shape) * bits:
            _wrong(source, f"the tensor {name} has not the size that its type and shape state")
        found[name] = Tensor(name, str(dtype), shape, base + begin, base + end)
    return TensorFile("safetensors", found, metadata)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object whose keys are all different; two tensors of one name would hide one of them."""
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError
    return out


def _check_shape(shape: tuple[object, ...]) -> None:
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError


# ---------------------------------------------------------------- npy, npz


def _npy(source: Source) -> Tensor:
    head = source.read_at(0, min(_MAX_NPY_HEADER_BYTES, source.size))
    dtype, shape, fortran, start = _npy_header(source, head, "")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if start + size != source.size:
        _wrong(source, "has not the size that its type and shape state: it is cut short, or something follows")
    return Tensor("", dtype, shape, start, start + size, fortran)


def _npy_header(source: Source, head: bytes, name: str) -> tuple[str, tuple[int, ...], bool, int]:
    """Type, shape, whether the first dimension runs fastest, and where the items start."""
    what = f"the array {name} " if name else ""
    if not head.startswith(_NPY_MAGIC) or len(head) < 12 or head[6] not in (1, 2, 3):
        _wrong(source, f"{what}is no npy array")
    start, length = (10, head[8:10]) if head[6] == 1 else (12, head[8:12])
    stop = start + int.from_bytes(length, "little")
    if stop > len(head):
        _wrong(source, f"{what}has a header that is cut short or longer than {_MAX_NPY_HEADER_BYTES:,} bytes")
    text = head[start:stop]
    if json_depth(text.replace(b"(", b"[").replace(b")", b"]")) > MAX_JSON_DEPTH:
        raise ValueError
    header = ast.literal_eval(text.decode("utf-8" if head[6] == 3 else "latin-1").strip())
    dtype = np.dtype(header["descr"] if isinstance(header["descr"], str) else [tuple(f) for f in header["descr"]])
    shape, fortran = tuple(header["shape"]), header["fortran_order"]
    _check_shape(shape)
    if type(fortran) is not bool:
        raise ValueError
    if dtype.hasobject:
        _wrong(source, f"{what}holds Python objects (a pickle), which run code when they are loaded",
               "save it with a type of numbers or text")  # fmt: skip
    word = dtype.str if dtype.fields is None else f"V{dtype.itemsize}"
    return word, shape, fortran, stop


def _npz(source: Source) -> TensorFile:
    if source.size < 22 or source.read_at(0, 4) not in _ZIP_MAGIC:
        _wrong(source, "is no npz file: it does not start as a zip archive")
    found: dict[str, Tensor] = {}
    with zipfile.ZipFile(_file(source)) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            _wrong(source, f"has more than {_MAX_MEMBERS:,} members")
        for info in members:
            name = info.filename.removesuffix(".npy")
            if name in found:
                _wrong(source, f"has two members called {info.filename!r}")
            if info.flag_bits & _ENCRYPTED:
                _wrong(source, f"has an encrypted member, {info.filename!r}", "dvk holds no keys: decrypt it first")
            with archive.open(info) as member:
                head = member.read(min(_MAX_NPY_HEADER_BYTES, info.file_size))
            dtype, shape, fortran, skip = _npy_header(source, head, name)
            if skip + math.prod(shape) * np.dtype(dtype).itemsize != info.file_size:
                _wrong(source, f"the array {name} has not the size that its type and shape state")
            start = _data_start(source, info)
            compressed = info.compress_type != zipfile.ZIP_STORED
            found[name] = Tensor(
                name,
                dtype,
                shape,
                start if compressed else start + skip,
                start + info.compress_size,
                fortran,
                member=info.filename,
                compressed=compressed,
                skip=skip,
            )
            if found[name].stop > source.size or (not compressed and info.compress_size != info.file_size):
                raise ValueError
    return TensorFile("npz", found)


def _data_start(source: Source, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: behind its own header, which may be longer than the directory says."""
    header = source.read_at(info.header_offset, 30)
    if header[:4] != _ZIP_MAGIC[0] or info.flag_bits & _ENCRYPTED:
        raise ValueError
    name, extra = struct.unpack_from("<HH", header, 26)
    return info.header_offset + 30 + int(name) + int(extra)


def _file(source: Source) -> BufferedReader:
    return BufferedReader(_Raw(source), 256 << 10)


class _Raw(RawIOBase):
    """A source as a file."""

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._source.size)[whence])
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read_at(self._at, max(0, min(len(view), self._source.size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


# ---------------------------------------------------------------- items as numbers


def item_bytes(dtype: str) -> int | None:
    """Whole bytes of an item; None where items share bytes, or the type is not known."""
    if dtype in _BITS:
        return _BITS[dtype] // 8 if _BITS[dtype] % 8 == 0 else None
    try:
        return np.dtype(dtype).itemsize or None
    except TypeError:
        return None


def as_numbers(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[Any] | None:
    """Items as float64 (complex128 for complex ones); None for what is no number.

    Args:
        raw: uint8[n * item_bytes(dtype)], contiguous.
    """
    if dtype in _TINY:
        return _TINY[dtype][raw]
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    word = _NUMPY.get(dtype)
    if word is None:
        if dtype in _BITS:
            return None
        word = dtype
    items = raw.view(np.dtype(word))
    if items.dtype.kind in "biuf":
        return items.astype(np.float64)
    return items.astype(np.complex128) if items.dtype.kind == "c" else None


_NUMPY: Final = {
    "BOOL": "|u1", "U8": "|u1", "I8": "|i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4", "U32": "<u4",
    "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8",
}  # fmt: skip


def _tiny_floats(exponent: int, mantissa: int, bias: int, *, special: str) -> npt.NDArray[np.float64]:
    """The 256 values of a float of 8 bits. `special`: what the highest codes are: `ieee`, or as `fn` and `fnuz` say."""
    codes = np.arange(256)
    e, m = (codes >> mantissa) & ((1 << exponent) - 1), codes & ((1 << mantissa) - 1)
    value = np.where(
        e == 0,
        m * 2.0 ** (1 - bias - mantissa),
        (1 + m * 2.0**-mantissa) * 2.0 ** (e - bias).astype(np.float64),
    )
    top = e == (1 << exponent) - 1
    if special == "ieee":
        value = np.where(top, np.where(m == 0, np.inf, np.nan), value)
    elif special == "fn":
        value = np.where(top & (m == (1 << mantissa) - 1), np.nan, value)
    value = np.where(codes >= 128, -value, value)
    if special == "fnuz":
        value[128] = np.nan
    return value


_TINY: Final = {
    "F8_E5M2": _tiny_floats(5, 2, 15, special="ieee"),
    "F8_E4M3": _tiny_floats(4, 3, 7, special="fn"),
    "F8_E5M2FNUZ": _tiny_floats(5, 2, 16, special="fnuz"),
    "F8_E4M3FNUZ": _tiny_floats(4, 3, 8, special="fnuz"),
    "F8_E8M0": np.concatenate([2.0 ** (np.arange(255) - 127.0), [np.nan]]),
}
