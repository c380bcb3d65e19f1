"""Models and checkpoints: a fine-tune of a model, plain Gaussian weights, a training run epoch by epoch.

Weights are Gaussian with a standard deviation of 0.02, as after usual initialisation, and an update adds noise that is
small against them, so the high bytes mostly stay and the low bytes do not: what makes checkpoints hard to deduplicate.
A `.pt` is laid out as PyTorch does it (a zip of stored members, tensor data on 64-byte boundaries) without PyTorch.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import numpy as np

SEED = 20_260_102
MODEL_BYTES = 1_000_000_000
WEIGHTS_BYTES = 200_000_000
EPOCH_BYTES = 100_000_000
EPOCHS = 20
PT_ALIGN = 64

#: name, dtype as safetensors calls it, shape, bytes
Tensor = tuple[str, str, tuple[int, ...], bytes]


def model(cache: str, scale: float) -> None:
    """Layers that are FP32 and BF16 in turn; the fine-tune touches every weight of the last fifth of the layers."""
    total = MODEL_BYTES * scale
    side = 1024 if total >= 64e6 else 128
    layers = max(5, round(total / (side * side * 12)))

    def tensors(version: int) -> Iterator[Tensor]:
        for layer in range(layers):
            for number, name in enumerate(("attn.q", "attn.o", "mlp.up", "mlp.down")):
                weights = _gaussian(side, 0.02, 1, layer, number)
                if version and layer >= layers * 0.8:
                    weights = weights + _gaussian(side, 2e-5, 2, layer, number)
                dtype = "F32" if layer % 2 == 0 else "BF16"
                yield f"layers.{layer}.{name}.weight", dtype, (side, side), _encode(weights, dtype)

    for version in (0, 1):
        _write_safetensors(os.path.join(cache, "model", f"{version}.safetensors"), tensors(version))


def weights_bf16(cache: str, scale: float) -> None:
    """Nothing but Gaussian weights in BF16."""
    _weights(cache, "weights-bf16", "BF16", scale)


def weights_fp16(cache: str, scale: float) -> None:
    """The same in FP16."""
    _weights(cache, "weights-fp16", "F16", scale)


def weights_fp32(cache: str, scale: float) -> None:
    """The same in FP32."""
    _weights(cache, "weights-fp32", "F32", scale)


def _weights(cache: str, item: str, dtype: str, scale: float) -> None:
    total = WEIGHTS_BYTES * scale
    side = 1024 if total >= 16e6 else 128
    count = max(2, round(total / (side * side * (4 if dtype == "F32" else 2))))
    tensors = ((f"w.{i}", dtype, (side, side), _encode(_gaussian(side, 0.02, 3, i), dtype)) for i in range(count))
    _write_safetensors(os.path.join(cache, item, "0.safetensors"), tensors)


def series_safetensors(cache: str, scale: float) -> None:
    """A training run: model and optimizer state after each epoch."""
    for epoch, tensors in enumerate(_epochs(scale)):
        _write_safetensors(os.path.join(cache, "series-safetensors", f"{epoch}.safetensors"), tensors)


def series_pt(cache: str, scale: float) -> None:
    """The same run as `.pt` files."""
    for epoch, tensors in enumerate(_epochs(scale)):
        _write_pt(os.path.join(cache, "series-pt", f"{epoch}.pt"), tensors)


def _epochs(scale: float) -> Iterator[Sequence[Tensor]]:
    """Tensors after each epoch: the first 30 % of the layers frozen, the rest with Adam's two moments.

    Updates shrink as training goes on, as under a decaying learning rate.
    """
    total = EPOCH_BYTES * scale
    side = 512 if total >= 16e6 else 64
    # A frozen layer is one matrix, a trained one three: 0.3 + 0.7 * 3 = 2.4 matrices on average.
    layers = max(4, round(total / (side * side * 4 * 2.4)))
    frozen = round(layers * 0.3)
    weights = [_gaussian(side, 0.02, 4, layer) for layer in range(layers)]
    first = [np.zeros((side, side), np.float32) for _ in range(layers)]
    second = [np.zeros((side, side), np.float32) for _ in range(layers)]
    for epoch in range(EPOCHS):
        for layer in range(frozen, layers):
            gradient = _gaussian(side, 1e-3, 5, epoch, layer)
            first[layer] = (0.9 * first[layer] + 0.1 * gradient).astype(np.float32)
            second[layer] = (0.999 * second[layer] + 0.001 * gradient * gradient).astype(np.float32)
            step = first[layer] / (np.sqrt(second[layer]) + np.float32(1e-8))
            weights[layer] = (weights[layer] - np.float32(1e-4 * 0.8**epoch) * step).astype(np.float32)
        out: list[Tensor] = []
        for layer in range(layers):
            out.append((f"model.layers.{layer}.weight", "F32", (side, side), weights[layer].tobytes()))
        for layer in range(frozen, layers):
            out.append((f"optimizer.{layer}.exp_avg", "F32", (side, side), first[layer].tobytes()))
            out.append((f"optimizer.{layer}.exp_avg_sq", "F32", (side, side), second[layer].tobytes()))
        yield out


def _gaussian(side: int, deviation: float, *key: int) -> Any:
    noise = np.random.default_rng([SEED, *key]).standard_normal((side, side), dtype=np.float32)
    return noise * np.float32(deviation)


def _encode(weights: Any, dtype: str) -> bytes:
    if dtype == "F32":
        return bytes(weights.astype("<f4").tobytes())
    if dtype == "F16":
        return bytes(weights.astype("<f2").tobytes())
    bits = weights.astype("<f4").view("<u4")
    rounded = bits + (0x7FFF + ((bits >> 16) & 1))  # to nearest even, as every framework does
    return bytes((rounded >> 16).astype("<u2").tobytes())


def _write_safetensors(path: str, tensors: Iterable[Tensor]) -> None:
    """Write the data first, below a space for the header, so that only one tensor is in memory."""
    header: dict[str, Any] = {}
    with open(path + ".data", "wb") as data:
        for name, dtype, shape, content in tensors:
            begin = data.tell()
            data.write(content)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, data.tell()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f, open(path + ".data", "rb") as data:
        f.write(struct.pack("<Q", len(text)) + text)
        _pump(data, f)
    os.unlink(path + ".data")


def _pump(source: IO[bytes], target: IO[bytes]) -> None:
    while block := source.read(1 << 20):
        target.write(block)


def _write_pt(path: str, tensors: Sequence[Tensor]) -> None:
    names = {name: (dtype, shape, str(number)) for number, (name, dtype, shape, _) in enumerate(tensors)}
    with open(path, "wb") as raw, zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
        _member(archive, raw, "archive/data.pkl", pickle.dumps(names, protocol=2))
        _member(archive, raw, "archive/byteorder", b"little")
        for number, (_, _, _, content) in enumerate(tensors):
            _member(archive, raw, f"archive/data/{number}", content)
        _member(archive, raw, "archive/version", b"3\n")


def _member(archive: zipfile.ZipFile, raw: IO[bytes], name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    start = raw.tell() + 30 + len(name) + 4  # local header, name, and the head of the padding field
    pad = -start % PT_ALIGN
    info.extra = b"FB" + struct.pack("<H", pad) + b"Z" * pad
    archive.writestr(info, content)
