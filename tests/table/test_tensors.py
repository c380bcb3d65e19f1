"""Files of tensors: what changed is told in exact numbers, what did not is not read, nothing hostile gets through."""

from __future__ import annotations

import io
import itertools
import json
import math
import pickle
import random
import struct
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from dvk.errors import TableError
from dvk.store.pages import Chunks
from dvk.table.source import BytesSource
from dvk.table.tensors.compare import Cover, TensorChange, TensorDiff, compare_tensors, equal_spans
from dvk.table.tensors.files import as_numbers

Row = tuple[str, tuple[int, ...], bytes]


def safetensors(tensors: dict[str, Row], *, metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of a file: name -> type, shape, items."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, items) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(items)]}
        at += len(items)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(items for _, _, items in tensors.values())


def npy(array: npt.NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def npz(*, compressed: bool = False, **arrays: npt.NDArray[Any]) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def cut(data: bytes, sizes: list[int]) -> Chunks:
    """A recipe with chunks of these sizes, the rest in one."""
    parts, at = [], 0
    for n in sizes:
        if at < len(data):
            parts.append(data[at : at + n])
            at += n
    if at < len(data):
        parts.append(data[at:])
    ids = np.frombuffer(b"".join(blake3(p).digest() for p in parts), np.uint8).reshape(-1, 32)
    return Chunks(ids, np.array([len(p) for p in parts], np.uint32))


def grid(data: bytes, size: int) -> Chunks:
    return cut(data, [size] * (len(data) // size + 1))


def compare(a: bytes, b: bytes, *, name: bytes = b"m.safetensors", chunk: int = 0) -> TensorDiff:
    chunks = (grid(a, chunk), grid(b, chunk)) if chunk else (None, None)
    return compare_tensors(
        BytesSource(a, name=name, label="old", chunks=chunks[0]),
        BytesSource(b, name=name, label="new", chunks=chunks[1]),
    )


def f32(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def only(diff: TensorDiff) -> TensorChange:
    assert len(diff.changes) == 1, diff.changes
    return diff.changes[0]


# ---------------------------------------------------------------- what changed


def test_every_kind_of_change_is_named() -> None:
    a = {
        "same": ("F32", (2,), f32(1, 2)),
        "gone": ("F32", (1,), f32(1)),
        "wider": ("F32", (2,), f32(1, 2)),
        "flat": ("F32", (2, 2), f32(1, 2, 3, 4)),
        "grown": ("F32", (2,), f32(1, 2)),
        "moved": ("F32", (4,), f32(3, 4, 0, 0)),
    }
    b = {
        "new": ("F32", (1,), f32(9)),
        "same": a["same"],
        "wider": ("F64", (2,), np.array([1, 2.5]).tobytes()),
        "flat": ("F32", (4,), f32(1, 2, 3, 4)),
        "grown": ("F32", (3,), f32(1, 2, 3)),
        "moved": ("F32", (4,), f32(3, 4, 0, -1)),
    }
    diff = compare(safetensors(a, metadata={"step": "1"}), safetensors(b, metadata={"step": "2", "x": "y"}))
    assert {c.name: c.kind for c in diff.changes} == {
        "new": "added", "wider": "retyped", "flat": "reshaped", "grown": "reshaped", "moved": "changed",
        "gone": "removed",
    }  # fmt: skip
    found = {c.name: c for c in diff.changes}
    moved = found["moved"]
    assert (moved.elements, moved.changed, moved.max_abs, moved.nan) == (4, 1, 1.0, (0, 0))
    assert moved.relative_l2 == pytest.approx(1 / 5)
    assert (found["wider"].changed, found["wider"].max_abs) == (1, 0.5)
    assert (found["flat"].changed, found["flat"].max_abs) == (0, 0.0)
    assert found["grown"].changed is None
    assert diff.metadata == (("step", "1", "2"), ("x", None, "y"))
    assert (diff.unchanged, diff.tensors, diff.equal) == (1, (6, 6), False)


def test_equal_files_are_equal_and_other_orders_of_tensors_too() -> None:
    rows = {"a": ("F32", (1,), f32(1)), "b": ("F32", (1,), f32(2))}
    swapped = dict(reversed(rows.items()))
    assert compare(safetensors(rows), safetensors(swapped)).equal


def test_nan_infinity_and_signed_zero_are_counted_and_do_not_spoil_the_numbers() -> None:
    nan, inf = math.nan, math.inf
    a = safetensors({"t": ("F32", (6,), f32(nan, 1, inf, 0.0, 2, nan))})
    b = safetensors({"t": ("F32", (6,), f32(nan, nan, inf, -0.0, 3, 7))})
    change = only(compare(a, b))
    assert (change.changed, change.max_abs, change.nan) == (4, 1.0, (2, 2))
    assert change.relative_l2 == pytest.approx(1 / math.sqrt(1 + 4))
    flipped = only(compare(safetensors({"t": ("F32", (1,), f32(inf))}), safetensors({"t": ("F32", (1,), f32(-inf))})))
    assert flipped.max_abs == inf
    from_zero = only(compare(safetensors({"t": ("F32", (1,), f32(0))}), safetensors({"t": ("F32", (1,), f32(2))})))
    assert from_zero.relative_l2 == inf


def test_small_floats_have_the_values_that_their_bits_say() -> None:
    def numbers(dtype: str, *codes: int, word: str = "u1") -> list[float]:
        found = as_numbers(np.frombuffer(np.array(codes, f"<{word}").tobytes(), np.uint8), dtype)
        assert found is not None
        return [float(x) for x in found]

    assert numbers("BF16", 0x3F80, 0xC000, 0x7F80, 0x0001, word="u2") == [1.0, -2.0, math.inf, 2.0**-133]
    assert numbers("F8_E4M3", 0x38, 0x7E, 0x01, 0xB8) == [1.0, 448.0, 2.0**-9, -1.0]
    assert numbers("F8_E5M2", 0x3C, 0x7B, 0x7C, 0x01) == [1.0, 57344.0, math.inf, 2.0**-16]
    assert numbers("F8_E8M0", 127, 128, 0) == [1.0, 2.0, 2.0**-127]
    assert numbers("F8_E4M3FNUZ", 0x40, 0x7F) == [1.0, 240.0]
    for dtype, code in (("F8_E4M3", 0x7F), ("F8_E5M2", 0x7D), ("F8_E8M0", 255), ("F8_E4M3FNUZ", 0x80)):
        assert math.isnan(numbers(dtype, code)[0])
    halves = np.arange(65536).astype("<u2")
    seen = as_numbers(np.frombuffer(halves.tobytes(), np.uint8), "F16")
    assert seen is not None and np.array_equal(seen, halves.view("<f2").astype(np.float64), equal_nan=True)


def test_types_without_numbers_still_tell_equal_from_changed() -> None:
    packed = ("F4", (4,), b"\x12\x34")
    assert compare(safetensors({"t": packed}), safetensors({"t": packed})).equal
    change = only(compare(safetensors({"t": packed}), safetensors({"t": ("F4", (4,), b"\x12\x35")})))
    assert (change.kind, change.changed, change.max_abs) == ("changed", None, None)
    text = compare(npy(np.array(["a", "bc"])), npy(np.array(["a", "bd"])), name=b"x.npy")
    assert (only(text).changed, only(text).max_abs) == (1, None)


def test_npy_and_npz() -> None:
    a, b = np.arange(12.0).reshape(3, 4), np.arange(12.0).reshape(3, 4)
    b[1, 2] += 2
    change = only(compare(npy(a), npy(b), name=b"x.npy"))
    assert (change.name, change.changed, change.max_abs, change.elements) == ("", 1, 2.0, 12)
    big_endian = compare(npy(a), npy(a.astype(">f8")), name=b"x.npy")
    assert (only(big_endian).kind, only(big_endian).changed) == ("retyped", 0)
    ints = only(compare(npy(np.array([1, 2**62])), npy(np.array([1, 2**62 + 1])), name=b"x.npy"))
    assert ints.changed == 1, "equality is of the items, not of their nearest float"
    fortran = only(compare(npy(a), npy(np.asfortranarray(a)), name=b"x.npy"))
    assert (fortran.kind, fortran.changed) == ("changed", None)
    scalar = compare(npy(np.array(1.5)), npy(np.array(2.5)), name=b"x.npy")
    assert only(scalar).max_abs == 1.0
    for compressed in (False, True):
        diff = compare(
            npz(compressed=compressed, w=a, same=a), npz(compressed=not compressed, w=b, same=a, new=b), name=b"x.npz"
        )
        assert {c.name: (c.kind, c.changed) for c in diff.changes} == {"w": ("changed", 1), "new": ("added", None)}
        assert diff.unchanged == 1


def test_a_structured_array_is_compared_item_by_item() -> None:
    a = np.array([(1, 2.0), (3, 4.0)], [("i", "<i4"), ("x", "<f8")])
    b = a.copy()
    b["x"][1] = 5
    change = only(compare(npy(a), npy(b), name=b"x.npy"))
    assert (change.changed, change.max_abs) == (1, None)


# ---------------------------------------------------------------- what is not read


def test_what_the_same_chunks_cover_is_not_read() -> None:
    source = random.Random(1)
    frozen, tuned = source.randbytes(1 << 20), source.randbytes(1 << 16)
    a = safetensors({"frozen": ("U8", (1 << 20,), frozen), "tuned": ("U8", (1 << 16,), tuned)})
    b = safetensors({"frozen": ("U8", (1 << 20,), frozen), "tuned": ("U8", (1 << 16,), tuned[::-1])})
    assert only(compare(a, b, chunk=4096)).name == "tuned"
    header = 8 + int.from_bytes(a[:8], "little")
    start = [header, 1 << 20, 1 << 16]
    exact = compare_tensors(
        BytesSource(a, name=b"m", chunks=cut(a, start)), BytesSource(b, name=b"m", chunks=cut(b, start))
    )
    assert (exact.unchanged, exact.not_read) == (1, 1)
    assert exact.bytes_read < 2 * (header + (1 << 16)) + 1000 < exact.bytes_total / 5


def test_a_header_that_grew_does_not_hide_that_the_tensors_are_the_same() -> None:
    items = random.Random(2).randbytes(1 << 18)
    a = safetensors({"w": ("U8", (1 << 18,), items)})
    b = safetensors({"w": ("U8", (1 << 18,), items)}, metadata={"a": "b" * 500})
    cuts = [[8 + int.from_bytes(x[:8], "little"), *[1 << 16] * 4] for x in (a, b)]
    diff = compare_tensors(
        BytesSource(a, name=b"m", chunks=cut(a, cuts[0])), BytesSource(b, name=b"m", chunks=cut(b, cuts[1]))
    )
    assert (diff.not_read, diff.changes) == (1, ()) and diff.metadata


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_chunks_prove_only_what_is_equal_and_change_no_answer(data: st.DataObject) -> None:
    source = random.Random(data.draw(st.integers(0, 2**32)))
    old = source.randbytes(data.draw(st.integers(1, 200)))
    new = bytearray(old)
    for at in data.draw(st.lists(st.integers(0, len(old) - 1), max_size=3)):
        new[at] ^= 1
    before, behind = (source.randbytes(data.draw(st.integers(0, 9))) for _ in range(2))
    sizes = [data.draw(st.lists(st.integers(1, 40), max_size=20)) for _ in range(2)]
    if data.draw(st.booleans()):
        sizes[1] = sizes[0]
    a, b = before + old, behind + bytes(new) + b"tail"
    spans = equal_spans(
        Cover(cut(a, [max(1, len(before)), *sizes[0]])),
        Cover(cut(b, [max(1, len(behind)), *sizes[1]])),
        (len(before), len(behind)),
        len(old),
    )
    for low, high in spans:
        assert 0 <= low < high <= len(old) and old[low:high] == new[low:high]
    assert all(x[1] < y[0] for x, y in itertools.pairwise(spans))

    left = safetensors({"t": ("U8", (len(old),), old), "u": ("U8", (len(old),), old)})
    right = safetensors({"t": ("U8", (len(old),), bytes(new)), "u": ("U8", (len(old),), old)})
    plain = compare(left, right)
    skipped = compare_tensors(
        BytesSource(left, name=b"m.safetensors", chunks=cut(left, sizes[0])),
        BytesSource(right, name=b"m.safetensors", chunks=cut(right, sizes[1])),
    )
    assert plain.changes == skipped.changes and plain.unchanged == skipped.unchanged
    assert [c.changed for c in plain.changes] == (
        [sum(x != y for x, y in zip(old, new, strict=True))] if old != new else []
    )


def test_big_tensors_are_read_in_blocks_and_add_up() -> None:
    a = np.random.default_rng(3).standard_normal(3_000_001).astype("<f4")
    b = a.copy()
    b[[0, 1_500_000, 3_000_000]] += 0.5
    change = only(compare(npy(a), npy(b), name=b"x.npy"))
    gap = b.astype(float) - a.astype(float)
    assert (change.changed, change.max_abs) == (3, float(np.abs(gap).max()))
    assert change.relative_l2 == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(a.astype(float)))


# ---------------------------------------------------------------- bad input


def refused(data: bytes, name: bytes) -> TableError:
    good = npy(np.zeros(1)) if name.endswith(b"npy") else safetensors({})
    with pytest.raises(TableError) as found:
        compare_tensors(BytesSource(good, name=b"a.npy" if name.endswith(b"npy") else b"a.safetensors"),
                        BytesSource(data, name=name, label="the file at v1"))  # fmt: skip
    assert found.value.subject == "the file at v1"
    return found.value


def test_pickles_and_arrays_of_objects_are_refused_by_name() -> None:
    assert "pickle" in refused(pickle.dumps([1, 2, 3]), b"x.npy").message
    objects = npy(np.array([1, "x"], dtype=object), allow_pickle=True)
    assert "Python objects" in refused(objects, b"x.npy").message
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("a.npy", objects)
    assert "the array a holds Python objects" in refused(archive.getvalue(), b"x.npz").message
    assert "pickle" in refused(pickle.dumps({"w": 1}), b"x.safetensors").message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no safetensors"),
        (struct.pack("<Q", 1 << 60) + b"{}", "does not fit"),
        (struct.pack("<Q", 2) + b"[]", "malformed"),
        (struct.pack("<Q", 4000) + b"[" * 4000, "malformed"),
        (safetensors({"t": ("F32", (2,), f32(1, 2))})[:-1], "ends behind the end"),
        (safetensors({"t": ("F32", (3,), f32(1, 2))}), "not the size"),
        (safetensors({"t": ("F32", (-1,), b"")}), "malformed"),
        (struct.pack("<Q", 70) + b'{"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":1}'.ljust(70), "malformed"),
        (struct.pack("<Q", 50) + b'{"t":{"dtype":"U8","shape":[1e9],"x":1}}'.ljust(50), "malformed"),
    ],
)  # fmt: skip
def test_malformed_safetensors(data: bytes, says: str) -> None:
    assert says in refused(data, b"x.safetensors").message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (npy(np.arange(9))[:-1], "cut short"),
        (npy(np.arange(9)) + b"x", "something follows"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "no npy"),
        (b"\x93NUMPY\x01\x00\xff\xff{    ", "cut short"),
        (b"\x93NUMPY\x01\x00\x40\x00" + b"(" * 64, "malformed"),
        (b"\x93NUMPY\x01\x00\x40\x00" + b"__import__('os').system('true')".ljust(64), "malformed"),
        (
            b"\x93NUMPY\x01\x00\x60\x00" + b"{'descr':'<f8','fortran_order':False,'shape':(2**99,)}".ljust(96),
            "malformed",
        ),
    ],
)
def test_malformed_npy(data: bytes, says: str) -> None:
    assert says in refused(data, b"x.npy").message


def test_damaged_npz() -> None:
    good = npz(compressed=True, w=np.arange(5000.0))
    locked = bytearray(good)
    locked[good.index(b"PK\1\2") + 8] |= 1
    assert "an encrypted member, 'w.npy'" in refused(bytes(locked), b"x.npz").message
    assert "no npz" in refused(b"PK" + bytes(100), b"x.npz").message
    for data in (good[:-30], good[: len(good) // 2]):
        refused(data, b"x.npz")
    broken = bytearray(good)
    broken[len(good) // 2] ^= 0xFF
    with pytest.raises(TableError):
        compare(good, bytes(broken), name=b"x.npz")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["safetensors", "npy", "npz"]))
def test_damage_anywhere_is_an_answer_or_an_error_of_ours(seed: int, format: str) -> None:
    source = random.Random(seed)
    good = {
        "safetensors": safetensors(
            {"t": ("F32", (2,), f32(1, 2)), "u": ("BF16", (2, 1), b"abcd")}, metadata={"a": "b"}
        ),
        "npy": npy(np.arange(6.0).reshape(2, 3)),
        "npz": npz(w=np.arange(3), x=np.ones(2)),
    }[format]
    data = bytearray(good)
    for _ in range(source.randint(1, 4)):
        data[source.randrange(len(data))] = source.randrange(256)
    try:
        compare(
            good, bytes(data[: source.choice([len(data), source.randrange(len(data))])]), name=b"x." + format.encode()
        )
    except TableError:
        pass
